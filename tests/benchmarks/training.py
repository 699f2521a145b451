"""What `attach` costs in real training: CPU time per step with and without it, and the time spent in our own code.

    python -m tests.benchmarks.training            every trainer of the suite, prints a table
    python -m tests.benchmarks.training sft dpo    these

Runs with and without take turns, so that a machine that slows down slows both. The models are tiny: a step takes tens of
milliseconds where a real one takes seconds, and our cost per step hardly depends on the model.
"""

from __future__ import annotations

import contextlib
import functools
import io
import itertools
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

Build = Callable[..., Any]
SKIP = 8
"""First steps left out: lazy imports and warm-up."""


@dataclass(frozen=True)
class Cost:
    """Of one trainer.

    Attributes:
        trainer: Its name.
        plain: Median CPU seconds of a step without `attach`, one per run.
        watched: The same with `attach`.
        wall: Ratio of the median wall times with / without, one per pair of runs: what a busy machine disturbs.
        own: Seconds per step spent in our hooks and callback, records and rules included.
    """

    trainer: str
    plain: list[float]
    watched: list[float]
    wall: list[float]
    own: float

    @property
    def ratio(self) -> float:
        """Median over the pairs of runs of with / without."""
        return statistics.median(after / before for after, before in zip(self.watched, self.plain, strict=True))

    @property
    def noise(self) -> float:
        """Spread of the runs without `attach`: largest distance from their median, as a share of it."""
        middle = statistics.median(self.plain)
        return max(abs(one - middle) for one in self.plain) / middle


def builders() -> dict[str, Build]:
    """The trainers of the suite, by name."""
    from tests.suite import build_async, build_distillation, build_models, build_preference, build_sampling, build_supervised

    return {
        "sft": build_supervised.sft, "reward": build_supervised.reward,
        "dpo": build_preference.dpo, "kto": build_preference.kto, "orpo": build_preference.orpo, "cpo": build_preference.cpo,
        "online_dpo": build_preference.online_dpo,
        "grpo": build_sampling.grpo, "rloo": build_sampling.rloo,
        "gkd": build_distillation.gkd, "distillation": build_distillation.distillation, "gold": build_distillation.gold,
        "sdft": build_distillation.sdft, "sdpo": build_distillation.sdpo,
        "async_grpo": build_async.async_grpo,
        "sft with LoRA": functools.partial(build_models.sft, peft=build_models.lora()),
    }  # fmt: skip


def step_seconds(build: Build, *, attached: bool, steps: int = 40) -> tuple[float, float, float]:
    """Median CPU and wall time from the end of one optimizer step to the end of the next, and our own part of it.

    CPU time of the whole process, our watchdog thread included: the run computes on the CPU and waits for nothing, and a busy
    machine disturbs it far less than wall time.

    Args:
        build: Makes a trainer: ``build(output_dir, max_steps=..., ...)``.
        attached: With `trainvitals.attach`, which records to disk as in real use.
        steps: Optimizer steps to train.

    Returns:
        CPU seconds, wall seconds and our own CPU seconds of a step (0 without `attach`).
    """
    import torch
    import transformers

    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    ends: list[tuple[float, float]] = []
    own: list[float] = []
    meter = Meter()

    class Clock(transformers.TrainerCallback):
        """Remembers when each step ended; of all callbacks the last, so that everybody's work on the step is in."""

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            ends.append((time.process_time(), time.perf_counter()))
            own.append(meter.seconds)

    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        trainer = build(folder, max_steps=steps, logging_steps=1)  # every step logs: the least favourable case
        if attached:
            from trainvitals import attach

            meter.watch(attach(trainer, console=False))
        trainer.add_callback(Clock())
        trainer.train()
    ours = statistics.median(after - before for before, after in itertools.pairwise(own[SKIP:]))
    cpu, wall = (statistics.median(after[i] - before[i] for before, after in itertools.pairwise(ends[SKIP:])) for i in (0, 1))
    return cpu, wall, ours


class Meter:
    """Adds up the time that the training thread spends in our callback and in the readers of our hooks."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def watch(self, callback: Any) -> None:
        """Time every entry into our code from now on."""
        for name in dir(callback):
            if name.startswith("on_"):
                setattr(callback, name, self._timed(getattr(callback, name)))
        for reader in callback.hooks._readers():
            reader.after = reader.after and self._timed(reader.after)
            reader.before = reader.before and self._timed(reader.before)

    def _timed(self, call: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(call)
        def timed(*args: Any, **kwargs: Any) -> Any:
            begin = time.thread_time()
            try:
                return call(*args, **kwargs)
            finally:
                self.seconds += time.thread_time() - begin

        return timed


def measure(name: str, build: Build, *, pairs: int = 3, steps: int = 40) -> Cost:
    """Alternating pairs of runs with and without `attach`, after one that warms everything up."""
    step_seconds(build, attached=True, steps=SKIP + 4)
    plain: list[float] = []
    watched: list[float] = []
    own: list[float] = []
    wall: list[float] = []
    for pair in range(pairs):
        clock = {}
        for attached in (False, True) if pair % 2 else (True, False):
            seconds, clock[attached], ours = step_seconds(build, attached=attached, steps=steps)
            (watched if attached else plain).append(seconds)
            own += [ours] if attached else []
        wall.append(clock[True] / clock[False])
    return Cost(name, plain, watched, wall, statistics.median(own))


def costs(names: list[str], **options: Any) -> Iterator[Cost]:
    """One trainer after the other; all without names."""
    for name, build in builders().items():
        if not names or name in names:
            yield measure(name, build, **options)


def main() -> int:
    """Print one line per trainer."""
    print(f"{'trainer':<16} {'without':>9} {'with':>9} {'ratio':>7} {'wall':>7} {'noise':>7} {'own time':>10}")
    for cost in costs(sys.argv[1:]):
        before, after = statistics.median(cost.plain), statistics.median(cost.watched)
        print(
            f"{cost.trainer:<16} {before * 1e3:>6.1f} ms {after * 1e3:>6.1f} ms {cost.ratio:>7.3f} {statistics.median(cost.wall):>7.3f} {cost.noise:>6.1%} {cost.own * 1e3:>7.2f} ms",
            flush=True,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
