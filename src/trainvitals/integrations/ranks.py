"""Family: several processes. Every rank records itself; rank 0 says which rank is slow, has a NaN, ran out of data or is missing.

How the ranks hear of each other, and why no collective is involved, is in `rank_exchange.py`. Here is what a rank measures:

* its *own* time: fetching data and `training_step`, less the calls in which a rank waits for others. Those are told by what is
  wrapped: ``accelerator.gather`` and ``reduce``, and while it trains the functions of accelerate that do the same, in the module
  of the trainer; the backward pass that reduces gradients; DDP's copy of buffers; under FSDP and ZeRO-3, where ranks meet in every
  layer, the whole model. The wall time of a step is the same on all ranks and says nothing.
* its raw loss, and now and then the norm of its weights where all ranks hold the same ones;
* its *place*: how many points it has passed at which ranks wait for each other. In a hang the one with the lowest is missing.
"""

from __future__ import annotations

import collections
import functools
import hashlib
import math
import os
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from trainvitals.integrations.rank_exchange import ENDED, FAILED, OFF, Exchange, Row, is_local, reduced, step_signals
from trainvitals.items import Frame, Tick

if TYPE_CHECKING:
    from trainvitals.integrations.hooks import Hooks

SIGNALS = frozenset({
    "time.rank_step_seconds", "time.rank_own_seconds", "time.rank_lag_fraction", "optim.rank_loss", "optim.rank_nonfinite_alone",
    "optim.rank_weight_drift", "data.rank_exhausted", "run.rank_behind", "run.rank_silent_seconds",
})  # fmt: skip
"""Signals that only rank 0 of several processes gives."""

SWITCH = "TRAINVITALS_GATHER_RANKS"
"""Environment variable: ``0`` switches the comparison of ranks off, like ``attach(trainer, gather_ranks=False)``."""

STALL_SECONDS = 10.0
"""Without a step for so long, rank 0 looks where the others stand; whether it is a fault is for the rules to say."""
WEIGHTS_EVERY = 25
"""Steps between two norms of the weights: one pass over them costs about as much as an optimizer's, so 25 steps make it noise."""
FUNCTIONS = ("gather", "gather_object", "broadcast_object_list", "reduce")
"""Functions of accelerate that wait for other ranks. TRL's trainers import them, and GRPO gathers its rewards with one."""
_LIMIT = 4096  # as in hooks.py
_trainings: collections.Counter[str] = collections.Counter()


def install(hooks: Hooks) -> None:
    """Measure this rank and, on rank 0, compare all; does nothing in a single process."""
    trainer = hooks.trainer
    accelerator = getattr(trainer, "accelerator", None)
    wanted = getattr(hooks.callback, "gather_ranks", True) and os.environ.get(SWITCH, "1") != "0"
    if not wanted or int(getattr(accelerator, "num_processes", 1)) < 2 or not dist.is_available() or not dist.is_initialized():
        return
    ranks = _Ranks(hooks)
    gives = SIGNALS if dist.get_rank() == 0 else frozenset[str]()
    hooks.wrap(trainer, "get_batch_samples", ranks.after_fetch, before=ranks.before_fetch)
    hooks.wrap(trainer, "training_step", ranks.after_training_step, before=ranks.before_training_step, gives=gives)
    hooks.wrap(trainer, "compute_loss", ranks.after_model, before=ranks.before_model)
    for owner, name in ((accelerator, "gather"), (accelerator, "reduce"), (accelerator, "wait_for_everyone")):
        hooks.wrap(owner, name, ranks.leave, before=ranks.enter)
    hooks.wrap(accelerator, "backward", ranks.after_backward, before=ranks.before_backward)
    hooks.at_step_end.append(ranks.step_end)
    hooks.at_finish.append(ranks.finish)


class _Ranks:
    """What this rank has measured in the open step, and its side of the exchange."""

    def __init__(self, hooks: Hooks) -> None:
        self._hooks = hooks
        self._exchange: Exchange | None = None
        self._off = False
        self._heard_all = False
        self._model: Any = None  # the wrapped model whose DDP buffers are watched
        self._sharded = False
        self._full = 0
        self._fetching: float | None = None
        self._depth = 0
        self._entered = 0.0
        self._undo: list[Callable[[], None]] = []
        self._reset()

    def _reset(self) -> None:
        self._fetch_seconds = self._busy_seconds = self._waiting_seconds = 0.0
        self._losses: list[torch.Tensor] = []
        self._began: float | None = None
        self._depth = 0

    # ---- places at which ranks wait for each other ----

    def enter(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
        """A call begins in which this rank waits for others."""
        self._pass()
        if self._depth == 0:
            self._entered = time.perf_counter()
        self._depth += 1
        if self._fetching is not None and self._exchange is not None:
            self._exchange.mine.full = self._full + 1  # there is something to count, so a batch came
        return args

    def leave(self, result: Any, args: tuple[Any, ...], kwargs: dict[str, Any], seconds: float) -> None:
        """It is over."""
        self._depth = max(0, self._depth - 1)
        if self._depth == 0 and (self._fetching is not None or self._began is not None):
            self._waiting_seconds += time.perf_counter() - self._entered

    def _pass(self) -> None:
        if self._exchange is not None:
            self._exchange.mine.place += 1

    def before_model(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
        """Where parameters are sharded, ranks meet in every layer of the forward pass."""
        return self.enter(args, kwargs) if self._sharded else args

    def after_model(self, result: Any, args: tuple[Any, ...], kwargs: dict[str, Any], seconds: float) -> None:
        """As `leave`."""
        if self._sharded:
            self.leave(result, args, kwargs, seconds)

    def before_backward(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
        """The backward pass waits for others if it reduces gradients; DDP says so."""
        self._reduces = bool(getattr(self._hooks.trainer.model_wrapped, "require_backward_grad_sync", True))
        return self.enter(args, kwargs) if self._reduces else args

    def after_backward(self, result: Any, args: tuple[Any, ...], kwargs: dict[str, Any], seconds: float) -> None:
        """As `leave`."""
        if self._reduces:
            self.leave(result, args, kwargs, seconds)

    # ---- what a rank does on its own ----

    def before_fetch(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
        """The data for one step is about to be fetched."""
        self._start()
        self._pass()
        self._depth = 0  # a call that raised has not left
        self._fetching = time.perf_counter()
        return args

    def after_fetch(self, result: Any, args: tuple[Any, ...], kwargs: dict[str, Any], seconds: float) -> None:
        """It came, or there is no more."""
        self._fetching = None
        self._fetch_seconds += seconds
        if self._exchange is None:
            return
        self._full += bool(len(result[0]))
        self._exchange.mine.full = self._full
        if not len(result[0]):
            self._exchange.mine.short = self._full
            self._exchange.wake()

    def before_training_step(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
        """One micro-batch begins."""
        self._start()
        self._look_at_model()
        self._pass()
        self._depth = 0
        self._began = time.perf_counter()
        return args

    def after_training_step(self, loss: Any, args: tuple[Any, ...], kwargs: dict[str, Any], seconds: float) -> None:
        """One micro-batch is done."""
        if self._began is not None:
            self._busy_seconds += time.perf_counter() - self._began
        self._began = None
        if len(self._losses) < _LIMIT:
            self._losses.append(loss.detach())

    def _look_at_model(self) -> None:
        """Once per wrapped model: is it sharded, and does DDP copy buffers (rank 0 gives, all others wait)?"""
        model = self._hooks.trainer.model_wrapped
        if model is self._model:
            return
        self._model = model
        first = next(iter(model.parameters()), None)
        self._sharded = type(first).__name__ == "DTensor" or hasattr(first, "ds_id") or "FullyShardedDataParallel" in type(model).__name__
        if hasattr(model, "require_backward_grad_sync"):
            self._hooks.wrap(model, "_sync_buffers", self.leave, before=self.enter)

    # ---- the step is over ----

    def step_end(self) -> None:
        """Hand this rank's numbers to the exchange; on rank 0 publish what all ranks said."""
        exchange = self._exchange
        if exchange is None:
            return
        pending = self._hooks.callback.pending
        step_seconds = float(pending.get("time.step_seconds", math.nan))
        seconds = self._fetch_seconds + (self._busy_seconds if math.isnan(step_seconds) else step_seconds)
        own = max(0.0, self._fetch_seconds + self._busy_seconds - self._waiting_seconds)
        row = Row(int(self._hooks.trainer.state.global_step), seconds, own, step_seconds)
        tensors = [torch.stack([loss.float() for loss in self._losses]).sum()] if self._losses else []
        norm = self._weights() if row.step % WEIGHTS_EVERY == 0 or row.step == 1 else None
        if norm is not None:
            tensors.append(norm)
        has_loss = bool(self._losses)
        self._reset()
        self._pass()

        def rank_row(host: list[torch.Tensor]) -> dict[str, float]:
            if has_loss:
                row.loss = float(host[0])
            if norm is not None:
                row.weights = float(host[-1])
            exchange.add(row)
            return {}

        self._hooks.put(tensors, rank_row)
        if exchange.rank == 0:
            for name, value in {**self._news(exchange), **exchange.standing(stalled=False)}.items():
                self._hooks.give(name, value)

    def share(self, step: int, values: dict[str, float]) -> dict[str, float]:
        """A step is closed: say what this rank made of its own data. Rank 0 gets what all ranks made instead, as much as is there.

        That is of a step or a few before; until the first comes, its own stands in, for rules that look at the first updates.
        """
        exchange = self._exchange
        if exchange is None:
            return values
        exchange.share(step, {name: float(value) for name, value in values.items() if is_local(name)})
        if exchange.rank != 0 or len(exchange.posts) < 2:
            return values
        found = reduced(exchange.settled())
        self._heard_all = self._heard_all or bool(found)
        return {**{name: value for name, value in values.items() if not is_local(name)}, **found} if self._heard_all else values

    def _news(self, exchange: Exchange) -> dict[str, float]:
        """What became complete since the last look; a NaN of one of several steps is not hidden by a later one."""
        values: dict[str, float] = {}
        for rows in exchange.complete():
            for name, value in step_signals(rows).items():
                if name.startswith("optim.rank_nonfinite_alone"):
                    value = max(value, values.get(name, 0.0))
                elif not math.isfinite(values.get(name, 0.0)):
                    continue
                values[name] = value
        return values

    def _weights(self) -> torch.Tensor | None:
        """Norm of the weights where every rank should hold the same: DDP, and ZeRO up to stage 2."""
        model = self._hooks.trainer.model_wrapped
        replicated = hasattr(model, "require_backward_grad_sync") and not getattr(model, "parameters_to_ignore", None)
        if self._sharded or not (replicated or type(model).__name__ == "DeepSpeedEngine"):
            return None
        weights = [p.detach() for p in model.parameters() if p.requires_grad and p.is_floating_point()]
        if not weights or any(p.device != weights[0].device for p in weights):
            return None
        return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(weights, 2, dtype=torch.float32)))

    # ---- the exchange ----

    def _start(self) -> None:
        if self._exchange is not None or self._off:
            return
        # Ranks find each other if they train equally often into the same folder; if not, they are alone, which does no harm.
        folder = str(self._hooks.trainer.args.output_dir)
        _trainings[folder] += 1
        training = hashlib.sha256(f"{_trainings[folder]} {folder}".encode()).hexdigest()[:16]
        self._off = True  # until it works
        from torch.distributed import distributed_c10d

        rank, world = dist.get_rank(), dist.get_world_size()
        store = distributed_c10d._get_default_store()
        exchange = Exchange(
            store, rank, world, f"trainvitals/{training}", on_error=self._failed, on_quiet=self._quiet if rank == 0 else None
        )
        exchange.start()
        self._exchange, self._off, self._heard_all = exchange, False, False
        self._hooks.callback.share = self.share
        for module in {sys.modules[cls.__module__] for cls in type(self._hooks.trainer).__mro__ if cls.__module__ in sys.modules}:
            for name in FUNCTIONS:
                if getattr(vars(module).get(name), "__module__", "").startswith("accelerate."):
                    self._undo.append(self._watched(module, name))

    def _watched(self, module: Any, name: str) -> Callable[[], None]:
        """Watch a function that a trainer's module imported, until the returned function undoes it at the end of training."""
        original = vars(module)[name]

        @functools.wraps(original)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            self.enter((), {})
            try:
                return original(*args, **kwargs)
            finally:
                self.leave(None, (), {}, 0.0)

        def undo() -> None:
            if vars(module).get(name) is wrapper:
                setattr(module, name, original)

        setattr(module, name, wrapper)
        return undo

    def _failed(self, text: str) -> None:
        from trainvitals.integrations.transformers import notice

        self._exchange, self._off = None, True
        notice(text)

    def _quiet(self) -> None:
        """In the exchange's thread, when no step ended for a while."""
        exchange = self._exchange
        if exchange is not None and time.monotonic() - exchange.last_row > STALL_SECONDS:
            self._tell({**self._news(exchange), **exchange.standing(stalled=True)})

    def _tell(self, values: dict[str, float]) -> None:
        """Publish outside of a step, with a tick: rules with a clock look at once."""
        monitor = self._hooks.callback.monitor
        if monitor is None or not any(values.values()):
            return
        step, now = int(self._hooks.trainer.state.global_step), time.time()
        monitor.publish(Frame(step, values, closes=False, time=now))
        monitor.publish(Tick(step, now))

    def finish(self, status: str) -> None:
        """Training is over on this rank, or it is not observed any more (``off``): say so, and on rank 0 publish the last that is known of the others."""
        exchange, self._exchange = self._exchange, None
        while self._undo:
            self._undo.pop()()
        if exchange is None:
            return
        heard = exchange.finish({"completed": ENDED, "off": OFF}.get(status, FAILED))
        self._hooks.callback.share = None
        if exchange.rank == 0 and heard:
            # Who left first cannot be told from here; `trainvitals check` reads the records of all ranks.
            news = {} if status in {"completed", "off"} else self._news(exchange)
            last = reduced(exchange.settled()) if self._heard_all else {}
            self._tell({**last, **news, **exchange.standing(stalled=False)})
