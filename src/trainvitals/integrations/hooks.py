"""`Hooks`: wraps on one trainer instance, read once per optimizer step.

What to wrap for which kind of trainer is said by the *families*: one file each (`sampling.py`, ...) with two names,
``SIGNALS`` (what only its wraps can give) and ``install(hooks)``, which wraps what it finds. They are listed in `trl.py`.

No class is patched. TRL's private names hardly changed from 1.0 to 1.16; should one be missing or a reader fail, that one
reader switches itself off with one notice and the trainer's own method goes on as before.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from trainvitals.integrations.facts import trainer_kind
from trainvitals.integrations.later import Compute
from trainvitals.integrations.lifecycle import cause_of, status_of
from trainvitals.integrations.torch import parameter_norms
from trainvitals.integrations.transformers import VitalsCallback, notice

STEP_LIMIT = 4096
"""Micro-batches kept for one step: should our callback be removed, nobody empties the lists."""

After = Callable[[Any, tuple[Any, ...], dict[str, Any], float], None]
"""Reader of a call: result, positional and keyword arguments, seconds that the call took."""
Before = Callable[[tuple[Any, ...], dict[str, Any]], tuple[Any, ...]]
"""Sees the arguments before the call and returns the positional ones to call with."""


@dataclass(slots=True, eq=False)
class Reader:
    """One family's interest in one method."""

    method: str
    gives: frozenset[str]
    after: After | None
    before: Before | None
    on: bool = True


@dataclass(slots=True, eq=False)
class _Wrap:
    """One wrapped method with everybody who reads it."""

    undo: Callable[[], None]
    readers: list[Reader] = field(default_factory=list)


class Saved(Protocol):
    """What remembers the start of a run, and so must outlive a resume."""

    def state_dict(self) -> dict[str, Any]:
        """Everything, as JSON holds it."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was."""


class Hooks:
    """The wraps on one trainer instance.

    Args:
        callback: The callback that publishes what is read.
        trainer: The trainer.
        families: ``install`` of each family, called in order; one that raises is left out with one notice.

    Attributes:
        callback: As given.
        trainer: As given.
        kind: Kind of trainer by its class name: a label for messages, never for deciding what to read.
        metric_names: Raw metrics read from the trainer step by step; log rows repeat them as averages.
        at_step_end: Called when an optimizer step is over, before its values are handed on; families append to it.
        at_finish: Called once when training is over, with how it ended, before the records are closed.
        saved: What goes into a checkpoint and comes back from it, by name; families add to it.
    """

    def __init__(self, callback: VitalsCallback, trainer: Any, families: Iterable[Callable[[Hooks], None]]) -> None:
        self.callback, self.trainer = callback, trainer
        self.kind = trainer_kind(trainer)
        self.metric_names: set[str] = set()
        self._paused = False
        self.at_step_end: list[Callable[[], None]] = []
        self.at_finish: list[Callable[[str], None]] = []
        self.saved: dict[str, Saved] = {}
        self._wraps: dict[tuple[int, str], _Wrap] = {}
        self._losses: list[torch.Tensor] = []
        self._seconds: dict[str, float] = {}
        self._lists: dict[str, tuple[list[Any], int]] = {}
        self._raw: dict[str, list[Any]] = {}
        self._install()
        for install in families:
            try:
                install(self)
            except Exception as error:
                notice(f"{install.__module__} could not be attached: {type(error).__name__}: {error}. Training goes on.")

    @property
    def names(self) -> frozenset[str]:
        """Methods that are wrapped and have a reader that works."""
        return frozenset(reader.method for reader in self._readers())

    @property
    def gives(self) -> frozenset[str]:
        """Signals that the working readers promise."""
        return frozenset[str]().union(*(reader.gives for reader in self._readers()))

    @property
    def training(self) -> bool:
        """True while the model is in training mode, false in an evaluation."""
        return bool(self.trainer.model.training)

    def _readers(self) -> list[Reader]:
        return [reader for wrap in self._wraps.values() for reader in wrap.readers if reader.on]

    def _install(self) -> None:
        trainer = self.trainer
        self._wrap_train()
        self.wrap(trainer, "training_step", self._after_training_step, gives=["optim.loss_raw"], needed=True)
        self.wrap(trainer, "get_batch_samples", self._after_batch, gives=["time.data_wait_seconds"])
        self.wrap(trainer, "_load_optimizer_and_scheduler", self._after_load)
        self.wrap(getattr(trainer, "accelerator", None), "clip_grad_norm_", self._after_clip, before=self._before_clip, needed=True)

    # ---- for families ----

    def put(self, tensors: Sequence[torch.Tensor], compute: Compute) -> None:
        """Hand tensors over without waiting for the device; `compute` gets them on the host and returns signals."""
        self.callback.later.put(tensors, compute)

    def give(self, name: str, value: float) -> None:
        """Set a signal of the current step to a number that is known already."""
        self.callback.pending[name] = value

    def add_seconds(self, name: str, seconds: float) -> None:
        """Add to a time signal of the current step."""
        self._seconds[name] = self._seconds.get(name, 0.0) + seconds

    def wrap(
        self, owner: Any, name: str, after: After | None = None, *, before: Before | None = None, gives: Iterable[str] = (), needed: bool = False
    ) -> bool:
        """Read every call of one method of one object. Several readers of one method are called in the order of wrapping.

        Args:
            owner: The object, usually the trainer; nothing is changed on its class.
            name: Name of the method.
            after: Called after each call that returned.
            before: Called before each call.
            gives: Signals that come only if this reader works.
            needed: Say so when the method does not exist; else its absence is normal.

        Returns:
            Whether the method exists and is wrapped.
        """
        original = getattr(owner, name, None)
        if original is None:
            if needed:
                notice(f"{type(self.trainer).__name__} has no {name}: the signals that need it are missing")
            return False
        key = (id(owner), name)
        if key not in self._wraps:
            wrap = self._wrapped(owner, name, original, key)
            if wrap is None:
                return False
            self._wraps[key] = wrap
        self._wraps[key].readers.append(Reader(name, frozenset(gives), after, before))
        return True

    def _wrapped(self, owner: Any, name: str, original: Any, key: tuple[int, str]) -> _Wrap | None:
        undo = functools.partial(_restore, owner, name, vars(owner).get(name))

        @functools.wraps(original)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            readers = [reader for reader in wrap.readers if reader.on] if key in self._wraps and not self._paused else []
            for reader in readers:
                if reader.before is not None:
                    try:
                        args = reader.before(args, kwargs)
                    except Exception as error:
                        self._off(wrap, reader, error)
            start = time.perf_counter()
            result = original(*args, **kwargs)
            seconds = time.perf_counter() - start
            for reader in readers:
                if reader.on and reader.after is not None:
                    try:
                        reader.after(result, args, kwargs, seconds)
                    except Exception as error:
                        self._off(wrap, reader, error)
            return result

        wrap = _Wrap(undo)
        try:
            setattr(owner, name, wrapper)
        except Exception as error:  # an object with slots, a frozen proxy
            notice(f"cannot hook {name}: {type(error).__name__}: {error}")
            return None
        return wrap

    def _off(self, wrap: _Wrap, reader: Reader, error: Exception) -> None:
        """Switch one reader off; the last one takes the wrap with it."""
        reader.on = False
        if not any(other.on for other in wrap.readers):
            wrap.undo()
        notice(f"hook {reader.method} switched off: {type(error).__name__}: {error}. Training goes on.")

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Inside, wrapped methods are called for something that is no part of training: nothing is read."""
        self._paused = True
        try:
            yield
        finally:
            self._paused = False

    def remove(self) -> None:
        """Restore every wrapped method."""
        self.finish("off")
        for wrap in reversed(list(self._wraps.values())):
            wrap.undo()
        self._wraps.clear()

    def _wrap_train(self) -> None:
        """`train` itself: an exception that leaves it must still print the end block."""
        trainer, callback = self.trainer, self.callback
        original, own = trainer.train, vars(trainer).get("train")  # Unsloth puts one on the instance

        @functools.wraps(original)
        def train(*args: Any, **kwargs: Any) -> Any:
            try:
                return original(*args, **kwargs)
            except BaseException as error:
                callback.finish(status_of(error), cause_of(error))
                raise

        trainer.train = train
        self._wraps[(id(trainer), "train")] = _Wrap(functools.partial(_restore, trainer, "train", own))

    # ---- what every trainer has ----

    def _after_training_step(self, loss: Any, args: tuple[Any, ...], kwargs: dict[str, Any], seconds: float) -> None:
        if len(self._losses) < STEP_LIMIT:
            self._losses.append(loss.detach())

    def _after_batch(self, result: Any, args: tuple[Any, ...], kwargs: dict[str, Any], seconds: float) -> None:
        self.add_seconds("time.data_wait_seconds", seconds)

    def _after_load(self, result: Any, args: tuple[Any, ...], kwargs: dict[str, Any], seconds: float) -> None:
        checkpoint = args[0] if args else kwargs.get("checkpoint")
        self.callback.resume_path = checkpoint if isinstance(checkpoint, str) else None

    def _before_clip(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
        if not self.callback.count_bad or not args:
            return args
        # After the first bad norm: count the bad gradients while they can be told apart (clipping by NaN spoils them all).
        parameters = list(args[0])
        norms = parameter_norms(parameters)
        if norms is not None:
            self.put([(~torch.isfinite(norms)).sum()], lambda t: {"optim.nonfinite_grads": float(t[0])})
        return (parameters, *args[1:])

    def _after_clip(self, norm: Any, args: tuple[Any, ...], kwargs: dict[str, Any], seconds: float) -> None:
        if type(norm).__name__ == "DTensor":  # FSDP2
            if not all(placement.is_replicate() for placement in norm.placements):
                return  # the full value would be a collective, which is not ours to call
            norm = norm.to_local()  # clipping has reduced it already: every rank holds the whole norm
        if isinstance(norm, torch.Tensor | float | int):
            self.callback.pre_clip_norm = norm

    # ---- handing over ----

    def collect(self) -> None:
        """At the end of a step: move what the wraps gathered to the callback."""
        callback = self.callback
        if self._losses:
            # The trainer scales each micro-batch's loss so that their sum is the loss of the step.
            total = torch.stack([loss.float() for loss in self._losses]).sum()
            self.put([total], lambda t: {"optim.loss_raw": float(t[0])})
        for gather in list(self.at_step_end):
            try:
                gather()
            except Exception as error:
                self.at_step_end.remove(gather)
                notice(f"{gather.__qualname__} switched off: {type(error).__name__}: {error}. Training goes on.")
        callback.pending.update(self._seconds)
        self._losses, self._seconds = [], {}

    def finish(self, status: str) -> None:
        """Training is over, or (``off``) not observed any more; families forget what they have going."""
        for end in self.at_finish:
            try:
                end(status)
            except Exception as error:
                notice(f"{end.__qualname__} failed: {type(error).__name__}: {error}")

    def state_dict(self) -> dict[str, Any]:
        """What the families remember, for a checkpoint."""
        return {name: one.state_dict() for name, one in self.saved.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where a checkpoint was; what it does not hold (it is older, or of another trainer) starts anew."""
        for name, one in self.saved.items():
            if name in state:
                one.load_state_dict(state[name])

    def read_metrics(self) -> None:
        """Take the entries that TRL appended since the last call; before every log row, which empties TRL's lists."""
        store = getattr(self.trainer, "_metrics", None)
        if not isinstance(store, dict) or "train" not in store:
            return
        for name, entries in store["train"].items():
            if not isinstance(entries, list):
                continue
            known, count = self._lists.get(name, (None, 0))
            start = count if known is entries else 0
            if len(entries) > start:
                # The asynchronous trainers log rates as (numerator, denominator) pairs.
                fresh = [
                    x if isinstance(x, tuple) else float(x)
                    for x in entries[start:]
                    if not isinstance(x, torch.Tensor) or not x.is_cuda
                ]
                self._raw.setdefault(name, []).extend(fresh)
                self.metric_names.add(name)
            self._lists[name] = (entries, len(entries))

    def fresh_metrics(self) -> dict[str, float]:
        """Mean of each raw metric over this step's micro-batches; NaN stays NaN."""
        self.read_metrics()
        row: dict[str, float] = {}
        for name, entries in self._raw.items():
            pairs = [x for x in entries if isinstance(x, tuple)]
            if pairs:
                below = sum(pair[1] for pair in pairs)
                row[name] = sum(pair[0] for pair in pairs) / below if below else math.nan
                continue
            # A reward function that scored nothing in this batch has no mean: unscored, not broken.
            values = [x for x in entries if not math.isnan(x)] if name.startswith("rewards/") else entries
            if values:
                whole = sum(values)
                # Counters that are deltas (`..._total`) add up; everything else is a gauge.
                row[name] = values[-1] if name == "num_tokens" else whole if name.endswith("_total") else whole / len(values)
        self._raw = {}
        return row


def _restore(owner: Any, name: str, own: Any) -> None:
    """Undo a wrap: put back what stood on the instance, somebody else's wrap for example, or nothing."""
    if own is not None:
        setattr(owner, name, own)
    else:
        vars(owner).pop(name, None)
