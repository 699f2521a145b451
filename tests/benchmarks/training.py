"""What `attach` costs in real training: CPU time of a step with and without it, and the time spent in our own code.

    python -m tests.benchmarks.training            every trainer of the suite, prints a table (under six minutes)
    python -m tests.benchmarks.training sft dpo    these
    python -m tests.benchmarks.training --width 512    models eight times as wide, whose steps take a quarter of a second
    .venv-trl112/bin/python -m tests.benchmarks.training ppo    of the last TRL that has PPO

One training per trainer, in which blocks of `BLOCK` steps take turns: *with* our callback and wraps, *without* both (taken off the
trainer, not merely idle), and *again* without. The order changes through all six permutations. So all three sides see the same model,
the same process and the same machine, and with / without stands beside again / without: the same thing twice, which is the noise.
Neither is believed on its own: each comes with a 95% bootstrap interval of its median.

The models are tiny: a step takes tens of milliseconds where a real one takes seconds. Our cost per step depends on the number of
weight matrices and hardly on their size: `sft, 24 layers` shows the first, ``--width`` the second.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib.util
import io
import itertools
import random
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

Build = Callable[..., Any]
WARM = 10
"""First steps left out: lazy imports, the first log row, the first full windows."""
BLOCK = 4
"""Steps of a side before the next one's turn, after one step that is left out: its caches are the other side's."""
SIDES = ("with", "without", "again")
SECONDS = 16.0
"""Of one trainer, in which as many rounds of the three sides are done as fit; at least `ROUNDS`."""
ROUNDS = 12
SAMPLES = 2000
"""Of the bootstrap."""


@dataclass(frozen=True)
class Spread:
    """A median and how well it is known.

    Attributes:
        middle: The median.
        quartiles: First and third quartile of the single values.
        interval: 95% bootstrap interval of the median (percentiles, `SAMPLES` resamples, fixed seed).
    """

    middle: float
    quartiles: tuple[float, float]
    interval: tuple[float, float]

    def __contains__(self, value: float) -> bool:
        return self.interval[0] <= value <= self.interval[1]


def spread(values: Sequence[float]) -> Spread:
    """Median, quartiles and bootstrap interval of one value per round."""
    draw = random.Random(0)
    medians = sorted(statistics.median(draw.choices(values, k=len(values))) for _ in range(SAMPLES))
    quarters = statistics.quantiles(values, n=4)
    return Spread(statistics.median(values), (quarters[0], quarters[2]), (medians[round(0.025 * SAMPLES)], medians[round(0.975 * SAMPLES) - 1]))


@dataclass(frozen=True)
class Cost:
    """Of one trainer. All times are CPU seconds of the whole process (our watchdog thread included) per step.

    Attributes:
        trainer: Its name.
        rounds: Rounds of the three sides.
        plain: Median over the rounds of a step without `attach`.
        ratio: With / without, one per round.
        noise: Again / without, one per round: what the same code twice differs by.
        more: With minus without.
        own: Time in our hooks and callback, records and rules included: mean over the steps with `attach`.
        collected: Time of Python's garbage collector in a step with `attach` minus that in one without.
    """

    trainer: str
    rounds: int
    plain: float
    ratio: Spread
    noise: Spread
    more: Spread
    own: float
    collected: float

    @property
    def within_noise(self) -> bool:
        """Whether the ratio lies within what the same side differs by between two blocks (the quartiles of again / without)."""
        low, high = self.noise.quartiles
        return low <= self.ratio.middle <= high


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
        **({"ppo": _ppo} if importlib.util.find_spec("trl.experimental.ppo") else {}),
        "sft with LoRA": functools.partial(build_models.sft, peft=build_models.lora()),
        "sft, 24 layers": _deep,
    }  # fmt: skip


def _ppo(output_dir: str, *, max_steps: int, **changes: Any) -> Any:
    """PPO does not stop when a callback asks it to, so it gets as many updates as `ROUNDS` rounds take, instead of `max_steps`."""
    from tests.suite import build_sampling

    return build_sampling.ppo(output_dir, updates=WARM + (ROUNDS * len(SIDES) + 1) * (BLOCK + 1), **changes)


def _deep(output_dir: str, **changes: Any) -> Any:
    """SFT of a model as deep as real ones are: 24 layers, 170 matrices; still narrow."""
    from tests.suite import build_supervised

    from trainvitals.integrations import tiny

    vocabulary = tiny.tokenizer()
    config = tiny.model(vocabulary).config
    config.num_hidden_layers = 24
    if getattr(config, "layer_types", None):
        config.layer_types = [config.layer_types[0]] * 24
    return build_supervised.sft(output_dir, vocabulary=vocabulary, model=type(tiny.model(vocabulary))(config), **changes)


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


class Collections:
    """Adds up the time that Python's garbage collector takes, whoever caused it."""

    def __init__(self) -> None:
        self.seconds = self._began = 0.0

    def __call__(self, phase: str, info: dict[str, int]) -> None:
        now = time.thread_time()
        if phase == "stop":
            self.seconds += now - self._began
        self._began = now


class Switch:
    """Takes our callback and our wraps off a trainer in training and puts them back."""

    def __init__(self, trainer: Any, callback: Any) -> None:
        self._trainer, self._callback = trainer, callback
        self._wraps = [wrap for (_, name), wrap in callback.hooks._wraps.items() if name != "train"]
        self._set = [(*wrap.undo.args[:2], vars(wrap.undo.args[0])[wrap.undo.args[1]]) for wrap in self._wraps]
        self._all = list(trainer.callback_handler.callbacks)
        self.on = True

    def turn(self, on: bool) -> None:
        """Put on or take off; nothing when it is so already. New lists, since the handler may be walking through the old one."""
        if on == self.on:
            return
        self.on = on
        for owner, name, wrapper in self._set if on else ():
            setattr(owner, name, wrapper)
        for wrap in () if on else self._wraps:
            wrap.undo()
        self._trainer.callback_handler.callbacks = [one for one in self._all if on or one is not self._callback]


def orders() -> Iterator[tuple[str, ...]]:
    """The sides of one round after the other, through all permutations: each follows each of the others equally often."""
    return itertools.cycle(itertools.permutations(SIDES))


def measure(name: str, build: Build, *, seconds: float = SECONDS, rounds: int = ROUNDS) -> Cost:
    """Train once, with the sides taking turns, and compare them.

    Args:
        name: Of the trainer.
        build: Makes a trainer: ``build(output_dir, max_steps=..., ...)``.
        seconds: After which no new round begins.
        rounds: Which are done in any case.
    """
    import gc

    import torch
    import transformers

    from trainvitals import attach

    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    meter, collector = Meter(), Collections()
    done: list[dict[str, tuple[float, float, float]]] = [{}]  # per round and side: CPU, own and collector's seconds of a step

    class Turns(transformers.TrainerCallback):
        """Before every step and before everybody else's callback: what a step costs includes its logging."""

        def __init__(self) -> None:
            self.switch: Switch | None = None
            self.step = 0
            self.order, self.orders = (SIDES[0],), orders()
            self.end = 0.0
            self.begins = False

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            """In PPO's loop no callback hears that a step begins: the end of the one before it is the same place."""
            if not self.begins:
                self.turn(control)

        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.begins = True
            self.turn(control)

        def turn(self, control: Any) -> None:
            self.step += 1
            if self.switch is None or self.step < WARM:
                return
            turn, place = divmod(self.step - WARM, BLOCK + 1)
            if place == 1:  # the step that is left out is over
                self.before = time.process_time(), meter.seconds, collector.seconds
            if place != 0:
                return
            if turn:
                now = time.process_time(), meter.seconds, collector.seconds
                done[-1][self.side] = tuple((b - a) / BLOCK for a, b in zip(self.before, now, strict=True))
            if turn % len(SIDES) == 0:
                self.order = next(self.orders)
                self.end = self.end or time.monotonic() + seconds
                if len(done) > rounds and time.monotonic() > self.end:
                    control.should_training_stop = True
                elif turn:
                    done.append({})
            self.side = self.order[turn % len(SIDES)]
            self.switch.turn(self.side == "with")

    turns = Turns()
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        trainer = build(folder, max_steps=20_000, logging_steps=1)  # every step logs: the least favourable case
        trainer.callback_handler.callbacks.insert(0, turns)
        callback = attach(trainer, console=False)
        meter.watch(callback)
        turns.switch = Switch(trainer, callback)
        gc.callbacks.append(collector)
        try:
            trainer.train()
        finally:
            gc.callbacks.remove(collector)
            turns.switch.turn(True)
            trainer.callback_handler.callbacks.remove(turns)
            callback.finish("interrupted")
    whole = [one for one in done if len(one) == len(SIDES)]
    cpu = {side: [one[side][0] for one in whole] for side in SIDES}
    return Cost(
        name,
        len(whole),
        statistics.median(cpu["without"]),
        spread([a / b for a, b in zip(cpu["with"], cpu["without"], strict=True)]),
        spread([a / b for a, b in zip(cpu["again"], cpu["without"], strict=True)]),
        spread([a - b for a, b in zip(cpu["with"], cpu["without"], strict=True)]),
        statistics.fmean(one["with"][1] for one in whole),
        statistics.fmean(one["with"][2] - one["without"][2] for one in whole),
    )


def costs(names: Sequence[str], **options: Any) -> Iterator[Cost]:
    """One trainer after the other; all without names."""
    for name, build in builders().items():
        if not names or name in names:
            yield measure(name, build, **options)


def main() -> int:
    """Print one line per trainer."""
    from trainvitals.integrations import tiny

    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.training", description="What attach costs in real training.")
    parser.add_argument("trainers", nargs="*", metavar="TRAINER", help="default: all of them")
    parser.add_argument("--width", type=int, default=64, help="hidden size of the models (default 64)")
    options = parser.parse_args()
    tiny.model.__kwdefaults__["width"] = options.width  # where every builder gets its model from
    print(f"{'trainer':<15} {'rounds':>6} {'without':>8}   {'with / without (95%)':<24} {'again / without (95%)':<24} {'more (95%)':<22} {'own':>5} {'gc':>6}  ms a step")
    for cost in costs(options.trainers):
        ratio, noise = (f"{one.middle:.3f} ({one.interval[0]:.3f} to {one.interval[1]:.3f})" for one in (cost.ratio, cost.noise))
        print(
            f"{cost.trainer:<15} {cost.rounds:>6} {cost.plain * 1e3:>8.1f}   {ratio:<24} {noise:<24}"
            f" {f'{cost.more.middle * 1e3:.2f} ({cost.more.interval[0] * 1e3:.2f} to {cost.more.interval[1] * 1e3:.2f})':<22} {cost.own * 1e3:>5.2f}"
            f" {cost.collected * 1e3:>6.2f}  {'within noise' if cost.within_noise else ''}",
            flush=True,
        )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
