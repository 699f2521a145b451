"""`VitalsCallback`: trainvitals under any `transformers.Trainer`, TRL's included.

::

    from trainvitals.integrations.transformers import VitalsCallback

    trainer.add_callback(VitalsCallback())

The callback reads every optimizer step, not only the logged ones. What a callback cannot see (raw loss, rewards per group,
importance ratios) comes with `trainvitals.integrations.trl.attach`, which hands the trainer over.

Order within one optimizer step (transformers 4.56 to 5.x): ``on_pre_optimizer_step``, ``on_step_end``, then, if due,
``on_log``, evaluation, ``on_save``. So a step that will be logged is closed at ``on_log``, every other at ``on_step_end``.
"""

from __future__ import annotations

import functools
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from trainvitals.integrations.checkpoint import held
from trainvitals.integrations.facts import RUNNING, known_at_start, promised, run_start, sharded, trainer_kind
from trainvitals.integrations.full_marks import Answers
from trainvitals.integrations.grpo import RewardRange
from trainvitals.integrations.housekeeping import Housekeeping, room, room_at_start, size_of
from trainvitals.integrations.later import Later, scalar
from trainvitals.integrations.lifecycle import ExitGuard, Status
from trainvitals.integrations.nvml import Nvml
from trainvitals.integrations.optimizer_check import OptimizerCheck
from trainvitals.integrations.torch import memory_signals, norm_signals, parameter_norms
from trainvitals.integrations.update_size import UpdateSize
from trainvitals.integrations.watchdog import Watchdog
from trainvitals.items import Boundary, BoundaryKind, Frame, RunStart

if TYPE_CHECKING:
    from trainvitals.monitor import Monitor
    from trainvitals.names import Mapper

STATE_FILE = "vitals_state.json"
F = TypeVar("F", bound=Callable[..., None])


def notice(text: str) -> None:
    """One line on stderr, above a progress bar if there is one."""
    bar = sys.modules.get("tqdm")
    if bar is not None:
        bar.tqdm.write(f"[trainvitals] {text}", file=sys.stderr)
    else:
        print(f"[trainvitals] {text}", file=sys.stderr)


def _guarded(method: F) -> F:
    """Training must not die of us: the first exception gives one notice and switches the callback off."""

    @functools.wraps(method)
    def call(self: VitalsCallback, *args: Any, **kwargs: Any) -> None:
        if self.off:
            return
        with self.guard.busy():
            try:
                method(self, *args, **kwargs)
            except Exception as error:
                self.switch_off(f"{method.__name__} raised {type(error).__name__}: {error}")

    return cast("F", call)


class VitalsCallback(TrainerCallback):
    """Publishes what a trainer does and prints what is wrong with it.

    Args:
        monitor: Publish to this monitor, which the caller closes. By default each training gets its own, with records in
            ``<output_dir>/vitals/rank<N>.jsonl``, closed at the end of training.
        tick_seconds: Interval of the watchdog that notices a hanging step; 0 switches it off.
        gather_ranks: With `attach` and several processes: rank 0 compares all ranks (docs/several-processes.md).
        **monitor_kwargs: Passed to `trainvitals.monitor.Monitor` (``rules``, ``overrides``, ``enable``, ``console``, ...).

    Attributes:
        monitor: The monitor of the current or last training; None before the first.
        off: True after an internal error; training goes on unobserved.
        closed, latest: The newest closed step, and its signals.
        at_close, at_train_end: Called once each when the open step is closed; when the last one is, before the monitor.
        trainer: The trainer, when `attach` handed it over.
    """

    def __init__(
        self, *, monitor: Monitor | None = None, tick_seconds: float = 15.0, gather_ranks: bool = True, **monitor_kwargs: Any
    ) -> None:
        self.monitor = monitor
        self.gather_ranks = gather_ranks
        self.off = False
        self.trainer: Any = None
        self.at_close: list[Callable[[], None]] = []
        self.at_train_end: list[Callable[[TrainerState], None]] = []
        self.later = Later(notice)
        self._update_size, self._optimizer, self._keeping = UpdateSize(), OptimizerCheck(), Housekeeping()
        self.seen, self.scored = RewardRange(), Answers()
        self.pending: dict[str, float] = {}  # signals of the open step
        self.latest: dict[str, float] = {}
        self.hooks: Any = None  # integrations.hooks.Hooks
        self.share: Callable[[int, dict[str, float]], dict[str, float]] | None = None  # what the ranks make of a step together
        self.resume_path: str | None = None
        self.guard = ExitGuard(self.finish)
        self.pre_clip_norm: torch.Tensor | float | None = None
        self.count_bad = False  # a gradient norm was not finite: from now on count the parameters to blame
        self._owned = monitor is None
        self._kwargs = monitor_kwargs
        self._tick_seconds = tick_seconds
        self._watchdog: Watchdog | None = None
        self._nvml: Nvml | None = None
        self._mapper: Mapper | None = None
        self._row: dict[str, Any] | None = None  # a log row that came before the end of its step (PPO)
        self._open = False  # on_step_end came, the step's on_log is awaited
        self._step = 0
        self.closed = -1
        self._began: float | None = None
        self._once: dict[str, float] = {}
        self._running = False
        self._planned: list[BoundaryKind] = []
        self._epoch: float | None = None
        self._is_last = False

    # ---- the run ----

    @_guarded
    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Start the records, resume the engine when the trainer resumes, start the watchdog."""
        if self._running:  # auto_find_batch_size starts over after running out of memory
            self.finish("failed")
        from trainvitals.names import Mapper

        model = kwargs.get("model")
        cuda = next((p.is_cuda for p in model.parameters()), False) if model is not None else False
        run = run_start(
            args,
            owner=self.trainer if self.trainer is not None else args,
            cuda=cuda,
            hooks=frozenset() if self.hooks is None else self.hooks.gives,
            total_steps=state.max_steps,
            time=time.time(),
            gradients=self.hooks is not None or not sharded(args),
            model=model,
        )
        vars(control)[RUNNING] = self
        once = frozenset({"optim.state_restored_fraction", "optim.resumed_differing_fraction"}) if state.global_step == 0 else frozenset()  # told of a resumed run alone
        run.emits = None if run.emits is None else (run.emits | promised(self.trainer, control)) - once
        self._mapper = Mapper(None if run.trainer == "unknown" else run.trainer)
        self._start_monitor(run, args, state.global_step)
        if self.monitor is not None:
            self.monitor.unknown_metrics = self._mapper.unknown
        self._step = self.closed = state.global_step
        self.later, self.pending, self._row, self._open = Later(notice), {}, None, False
        self._once = {**known_at_start(args, self.trainer), **(room_at_start(model, args, sharded=sharded(args)) if run.rank == 0 else {})}
        self._optimizer.begin(resumed=state.global_step > 0)
        self._update_size.begin()
        self._keeping.begin()
        self._boundary("train_begin")
        if state.global_step > 0:
            self._boundary("resume")
        self._running = True
        self.guard.install()
        if cuda and self._nvml is None:
            self._nvml = Nvml.open(torch.cuda.current_device())
        if self._tick_seconds > 0 and self.monitor is not None:
            on_tick = None if self._nvml is None else self._nvml.sample
            self._watchdog = Watchdog(self.monitor.publish, lambda: self._step, self._tick_seconds, on_tick=on_tick)
            self._watchdog.start()

    def _start_monitor(self, run: RunStart, args: TrainingArguments, step: int) -> None:
        saved = self._saved_state(args, step) if step > 0 else None
        if self._owned:
            from trainvitals.monitor import Monitor

            options = dict(self._kwargs)
            options.setdefault("prefix", "[TRL]" if run.framework == "trl" else "[trainvitals]")
            options.setdefault("output_dir", str(args.output_dir))
            if run.rank != 0:
                options["console"] = False  # rank 0 speaks for all; every rank keeps its own records
            self.monitor = Monitor(resumed_from=step if step > 0 else None, **options)
        assert self.monitor is not None
        if saved is not None:
            low, high = saved["seen"]
            self.seen = RewardRange() if low is None else RewardRange(low, high)
            self.monitor.load_state_dict(saved["monitor"])
            self._update_size.expect(saved.get("weights", []))
            if self.hooks is not None:
                self.hooks.load_state_dict(saved.get("hooks", {}))
        elif step > 0:
            notice(f"no {STATE_FILE} in the checkpoint of step {step}: rules start with empty windows")
        self.monitor.publish(run)

    def _saved_state(self, args: TrainingArguments, step: int) -> dict[str, Any] | None:
        folders = [self.resume_path, args.resume_from_checkpoint, os.path.join(str(args.output_dir), f"checkpoint-{step}")]
        for folder in folders:
            path = os.path.join(folder, _state_file(int(args.process_index))) if isinstance(folder, str) else ""
            if os.path.isfile(path):
                with open(path, encoding="utf-8") as file:
                    saved: dict[str, Any] = json.load(file)
                return saved
        return None

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Close the last step and print the end block, after an internal error as well."""
        if not self.off:
            self._last(state)
        self.finish("completed")

    @_guarded
    def _last(self, state: TrainerState) -> None:
        self._flush()
        while self.at_train_end:
            self.at_train_end.pop(0)(state)
        self._boundary("train_end")

    def finish(self, status: Status = "completed", detail: str | None = None) -> None:
        """Stop observing and close the monitor if it is ours, with what ended the run (`cause_of`); safe to call twice."""
        if not self._running:
            return
        self._running = False
        with self.guard.busy():  # a launcher that loses one rank sends SIGTERM to those that are just saying goodbye
            if self._watchdog is not None:
                self._watchdog.stop()
                self._watchdog = None
            try:
                if status != "completed" and not self.off:
                    self._flush()
                if self.hooks is not None:
                    self.hooks.finish(status)
                if self._owned and self.monitor is not None:
                    self.monitor.close(status, detail)
            except Exception as error:
                notice(f"could not close the records: {type(error).__name__}: {error}")
            finally:
                self.guard.remove()

    def switch_off(self, why: str) -> None:
        """Stop observing for the rest of the run, with one notice."""
        self.off = True
        notice(f"switched off: {why}. Training goes on.")
        if self._watchdog is not None:
            self._watchdog.stop()
        if self.hooks is not None:
            self.hooks.remove()

    # ---- one step ----

    @_guarded
    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Close a step whose log row never came; start the clock."""
        self._flush()
        self._keeping.update_begins()
        self._began = time.perf_counter()
        self.pre_clip_norm = None

    @_guarded
    def on_pre_optimizer_step(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Gradients and learning rate of this very step."""
        optimizer = kwargs.get("optimizer")
        if optimizer is not None and optimizer.param_groups:
            rate = optimizer.param_groups[0]["lr"]
            if not (isinstance(rate, torch.Tensor) and rate.is_cuda):
                self.pending["optim.learning_rate"] = float(rate)
        model, shards = kwargs.get("model"), sharded(args)
        trainable = [p for p in model.parameters() if p.requires_grad] if model is not None and not shards else []
        self._gradients(trainable, float(args.max_grad_norm or 0.0))
        if model is not None and not shards:
            self.pending.update({**self._optimizer.before(model, trainable, optimizer), **self._update_size.before(model, optimizer, self.later)})

    def _gradients(self, trainable: list[torch.nn.Parameter], limit: float) -> None:
        norm = self.pre_clip_norm
        if norm is not None:
            # Handed out by the trainer's own clipping: costs nothing and is the norm before clipping, over all ranks.
            if isinstance(norm, torch.Tensor):
                self.later.put([norm], norm_signals(limit, clipped_before=False))
            else:
                self.pending.update(norm_signals(limit, clipped_before=False)([torch.tensor(norm)]))
            return
        norms = parameter_norms(trainable)
        if norms is not None:
            self.later.put([torch.linalg.vector_norm(norms)], norm_signals(limit, clipped_before=limit > 0))
            if not limit > 0:  # clipping by a NaN norm makes every gradient NaN: there is nothing left to count
                self.later.put([(~torch.isfinite(norms)).sum()], scalar("optim.nonfinite_grads"))

    @_guarded
    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Collect the step; close it now, or at ``on_log`` when the trainer is about to log."""
        self._flush()
        self._update_size.after(self.later)
        self.pending.update({**self._optimizer.after(kwargs.get("optimizer")), **self._keeping.update_ended(state.global_step)})
        self._step = state.global_step
        if self._began is not None:
            self.pending["time.step_seconds"] = time.perf_counter() - self._began
            self._began = None
        if state.max_steps > 0:
            self.pending["run.progress"] = min(1.0, state.global_step / state.max_steps)
        if torch.cuda.is_available() and torch.cuda.is_initialized():
            # With skip_memory_metrics=False transformers reads torch's peaks itself: leave them alone.
            self.pending.update(memory_signals(reset_peak=bool(getattr(args, "skip_memory_metrics", True))))
            if self._nvml is not None:
                self.pending.update(self._nvml.latest)
        if self.hooks is not None:
            self.hooks.collect()
        self._epoch = state.epoch
        self._is_last = 0 < state.max_steps <= state.global_step
        if control.should_evaluate:
            self._planned.append("eval_begin")
        self._legal_jumps(args, state)
        if control.should_save:
            self._planned.append("save_begin")
        self._open = True
        if not control.should_log or self._row is not None:
            self._close(self._row)

    def _legal_jumps(self, args: TrainingArguments, state: TrainerState) -> None:
        """What the configuration says will make signals jump after this step."""
        every = getattr(args, "ref_model_sync_steps", None)
        if getattr(args, "sync_ref_model", False) and every and state.global_step % int(every) == 0:
            self._planned.append("ref_sync")  # TRL's SyncRefModelCallback: the KL to the reference starts again
        if state.max_steps > 0 and state.global_step == args.get_warmup_steps(state.max_steps) > 0:
            self._planned.append("schedule_change")  # the learning rate stops rising

    @_guarded
    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Take a row of metrics: of the open step, of an evaluation, or the summary at the end (which is no step)."""
        if self.hooks is not None:
            self.hooks.read_metrics()  # TRL empties its lists right after this
        if not logs or "train_runtime" in logs:
            return
        if any(key.startswith("eval_") for key in logs):
            self._flush()
            self._publish_row(dict(logs), phase="eval")
        elif self._open:
            self._close(logs)
        elif state.global_step > self.closed:
            self._row = {**(self._row or {}), **logs}
        else:
            self._publish_row(dict(logs), phase="train")

    def _flush(self) -> None:
        if self._open:
            self._close(self._row)

    def _close(self, row: dict[str, Any] | None) -> None:
        """Publish everything about the open step as one closing frame."""
        self._open, self._row = False, None
        self.closed = self._step
        fresh: dict[str, Any] = {} if self.hooks is None else self.hooks.fresh_metrics()
        if row:
            known = set() if self.hooks is None else self.hooks.metric_names
            fresh.update({key: value for key, value in row.items() if key not in known})
        assert self._mapper is not None
        now = time.time()
        frame = self._mapper.frame(fresh, step=self._step, phase="train", time=now, closes=True) if fresh else Frame(self._step, {}, time=now)
        own = {**self._once, **self.pending, **self.later.ready(wait=self._is_last)}
        frame.values.update(own if self.share is None else self.share(self._step, own))
        self.count_bad = self.count_bad or not math.isfinite(frame.values.get("optim.grad_norm_step", 0.0))
        frame.epoch = self._epoch if frame.epoch is None else frame.epoch
        frame.step = self._step
        self._once, self.pending, self.latest = {}, {}, frame.values
        self._publish(frame)
        for what in self._planned:
            self._boundary(what)
        self._planned = []
        while self.at_close:
            self.at_close.pop(0)()

    def _publish_row(self, row: dict[str, Any], *, phase: Literal["train", "eval"]) -> None:
        assert self._mapper is not None
        frame = self._mapper.frame(row, step=self._step, phase=phase, time=time.time(), closes=False)
        frame.step = self._step
        if frame.values:
            self._publish(frame)

    # ---- boundaries ----

    @_guarded
    def on_epoch_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """An epoch ended: data order and signals may jump. (The trainer logs the epoch's last step after this.)"""
        if self._open:
            self._planned.insert(0, "epoch")
        else:
            self._boundary("epoch")

    @_guarded
    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """An evaluation is over; its values came through ``on_log``."""
        self._flush()
        self._once.update(self._keeping.spent("evaluating"))
        self._boundary("eval_end")

    @_guarded
    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """A checkpoint is written: put the state of the engine beside it."""
        self._flush()
        folder = os.path.join(str(args.output_dir), f"checkpoint-{state.global_step}")
        if os.path.isdir(folder) and self.monitor is not None:
            hooks = {} if self.hooks is None else self.hooks.state_dict()
            saved = {"monitor": self.monitor.state_dict(), "seen": self.seen.bounds(), "hooks": hooks, "weights": self._update_size.mark()}
            path = os.path.join(folder, _state_file(int(args.process_index)))
            with open(f"{path}.tmp", "w", encoding="utf-8") as file:
                json.dump(saved, file)
            os.replace(f"{path}.tmp", path)
        self._once.update(self._keeping.spent("saving"))  # told with the next update
        if os.path.isdir(folder) and state.is_world_process_zero:
            self._once.update(room(folder, size_of(folder)))
            # PPO trains a critic too, and saves the policy alone.
            values = {} if sharded(args) or trainer_kind(self.trainer or args) == "ppo" else held(kwargs["model"], folder)
            if values:  # at once: after the last checkpoint there is no update
                self._publish(Frame(self._step, values, time=time.time(), closes=False))
        self._boundary("save_end")

    @contextmanager
    def evaluating(self) -> Iterator[dict[str, float]]:
        """Between two steps: an evaluation, neither timed nor read as a part of training. Publishes what it puts into the dict."""
        values: dict[str, float] = {}
        with self.guard.busy():
            self._flush()
            self._boundary("eval_begin")
        try:
            with nullcontext() if self.hooks is None else self.hooks.pause():
                yield values
        finally:  # an evaluation that raised is over as well
            with self.guard.busy():
                if values:
                    self._publish(Frame(self._step, values, phase="eval", time=time.time(), closes=False))
                self._once.update(self._keeping.spent("evaluating"))
                self._boundary("eval_end")
            self._began = None if self._began is None else time.perf_counter()

    def _boundary(self, what: BoundaryKind) -> None:
        self._publish(Boundary(self._step, what, time=time.time()))

    def _publish(self, item: Frame | Boundary) -> None:
        if self.monitor is not None:
            self.monitor.publish(item)


def _state_file(rank: int) -> str:
    return STATE_FILE if rank == 0 else f"vitals_state.rank{rank}.json"
