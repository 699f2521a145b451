"""CPU time per step of a real GRPO run, with and without `attach`."""

from __future__ import annotations

import contextlib
import io
import tempfile
import time
import warnings
from typing import Any


def step_seconds(*, attached: bool, steps: int = 60, skip: int = 10) -> list[float]:
    """CPU time from the start of one optimizer step to the start of the next, in a real run of TRL's GRPOTrainer.

    CPU time of the whole process, our watchdog thread included: the run computes on the CPU and waits for nothing, and a busy
    machine disturbs it far less than wall time.

    Args:
        attached: With `trainvitals.attach`, which records to disk as in real use.
        steps: Optimizer steps to train.
        skip: First steps to leave out: lazy imports and warm-up.
    """
    import torch
    import transformers

    from trainvitals.integrations import tiny

    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    ends: list[float] = []

    class Clock(transformers.TrainerCallback):
        """Remembers when each step began anew, after every other callback's work on the last one."""

        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            ends.append(time.process_time())

    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        # One long batch per log row would hide the cost of logging, so every step logs.
        trainer = tiny.grpo(folder, max_steps=steps, learning_rate=5e-4, logging_steps=1)
        trainer.add_callback(Clock())
        if attached:
            from trainvitals import attach

            attach(trainer, console=False)
        trainer.train()
    return [after - before for before, after in zip(ends[skip:], ends[skip + 1 :], strict=False)]
