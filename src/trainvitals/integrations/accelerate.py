"""`VitalsTracker`: trainvitals in a loop that logs through accelerate. One argument more::

    accelerator = Accelerator(log_with=[VitalsTracker("out")])
    accelerator.init_trackers("my-run", config={"learning_rate": 1e-4})
    ...
    accelerator.log({"loss": loss, "grad_norm": norm}, step=step)
    ...
    accelerator.end_training()

accelerate hands custom trackers what it hands wandb; what it does not see (gradients, memory) the loop logs itself, see
`trainvitals.integrations.torch`.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.tracking import GeneralTracker

from trainvitals.items import RunStart
from trainvitals.monitor import Monitor


class VitalsTracker(GeneralTracker):
    """A tracker that watches: give it to ``Accelerator(log_with=[...])``.

    Args:
        output_dir: Records go to ``<output_dir>/vitals/rank<N>.jsonl``; None keeps them in memory.
        trainer: Kind of training (``sft``, ``grpo``, ...) where the rules shall know it; None: found out from the metrics.
        run_id: Name of the run in the records.
        **monitor_kwargs: For `trainvitals.monitor.Monitor` (``rules``, ``overrides``, ``console``, ...).

    Attributes:
        monitor: The `Monitor` from ``init_trackers`` on, whose ``verdict`` and ``findings`` can be read at any time; None before, and
            on the other ranks: accelerate logs on the main process alone.
    """

    name = "trainvitals"
    requires_logging_directory = False

    def __init__(
        self, output_dir: Path | str | None = None, *, trainer: str | None = None, run_id: str = "run", **monitor_kwargs: Any
    ) -> None:
        super().__init__()
        self.monitor: Monitor | None = None
        self._options = {"prefix": "[trainvitals]", "output_dir": output_dir, **monitor_kwargs}
        self._trainer, self._run_id = trainer, run_id
        self._step = 0

    @property
    def tracker(self) -> Monitor | None:
        """The monitor, where ``accelerator.get_tracker("trainvitals", unwrap=True)`` looks for it."""
        return self.monitor

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        """Begin the run with this configuration; ``init_trackers`` calls it."""
        self._begin(dict(values))

    def log(self, values: dict[str, Any], step: int | None = None, **kwargs: Any) -> None:
        """Take the metrics of one optimizer step.

        Args:
            values: Names and numbers, as for `Monitor.log`; other values are passed over.
            step: Optimizer updates completed; None counts the calls.
            **kwargs: As accelerate passes them on; not used.
        """
        monitor = self.monitor or self._begin({})
        self._step = self._step + 1 if step is None else int(step)
        monitor.log(self._step, values)

    def finish(self) -> None:
        """End the run; ``end_training`` calls it."""
        if self.monitor is not None:
            self.monitor.close()

    def _begin(self, config: dict[str, Any]) -> Monitor:
        state = PartialState()
        run = RunStart(
            run_id=self._run_id,
            trainer=self._trainer or "unknown",
            framework="accelerate",
            config=config,
            rank=int(state.process_index),
            world_size=int(state.num_processes),
            time=time.time(),
        )
        self.monitor = Monitor(run=run, **self._options)
        return self.monitor
