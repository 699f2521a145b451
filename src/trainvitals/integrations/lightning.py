"""`LightningVitals`: trainvitals under a Lightning `Trainer`, as one more callback::

    trainer = L.Trainer(callbacks=[LightningVitals()])

Works with ``lightning`` and with ``pytorch_lightning``, whichever the script uses. Every optimizer step is read, whether the
module logs it or not: loss, gradient norm before clipping, learning rate, step time, memory. What the module logs with
``self.log`` comes with it: ``train_loss`` and ``train/loss`` are read as ``loss``, ``val_loss`` as ``eval_loss``.
"""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import math
import os
import re
import sys
import time
from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch

from trainvitals.integrations.later import Later
from trainvitals.integrations.lifecycle import ExitGuard, Status, cause_of, status_of
from trainvitals.integrations.torch import memory_signals, parameter_norms
from trainvitals.integrations.watchdog import Watchdog
from trainvitals.items import Boundary, BoundaryKind, Frame, RunStart
from trainvitals.monitor import Monitor
from trainvitals.names import Mapper
from trainvitals.sinks.console import write_line

_LIBRARIES = ("lightning.pytorch", "pytorch_lightning")
_TRAIN = re.compile(r"^train(?:ing)?[/_]|_step$")
_EVAL = re.compile(r"^(?:val|valid|validation)[/_]")
_OTHER = re.compile(r"^(?:val|valid|validation|test|predict)[/_]|_epoch$")
F = TypeVar("F", bound=Callable[..., None])


def _library() -> Any:
    """The Lightning that the script has imported, else the one that is installed.

    Raises:
        ImportError: If neither is.
    """
    for name in sorted(_LIBRARIES, key=lambda name: name not in sys.modules):
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError:
            continue
    msg = "LightningVitals needs lightning or pytorch_lightning: pip install lightning"
    raise ImportError(msg)


_LIGHTNING = _library()
_Callback: Any = _LIGHTNING.Callback


def _guarded(method: F) -> F:
    """Training must not die of us: the first exception gives one line and switches the callback off."""

    @functools.wraps(method)
    def call(self: LightningVitals, *args: Any, **kwargs: Any) -> None:
        if self.off:
            return
        with self.guard.busy():
            try:
                method(self, *args, **kwargs)
            except Exception as error:
                self.off = True
                write_line(
                    None, f"[trainvitals] switched off: {method.__name__}: {type(error).__name__}: {error}. Training goes on."
                )

    return cast("F", call)


class LightningVitals(_Callback):
    """Publishes what a Lightning trainer does and prints what is wrong with it.

    Args:
        trainer: Kind of training (``sft``, ``grpo``, ...) where the rules and the names shall know it.
        names: Names that the module logs, to signals: ``{"nll": "optim.loss"}``. They win over what is found out.
        tick_seconds: Interval of the watchdog that notices a hanging step; 0 switches it off.
        **monitor_kwargs: For `Monitor`; records go to ``<default_root_dir>/vitals`` unless ``output_dir`` says otherwise.

    Attributes:
        monitor: The monitor of the current or last ``fit``; None before the first.
        off: True after an internal error; training goes on unobserved.
        on_monitor: Called with each new monitor.
    """

    def __init__(
        self, *, trainer: str | None = None, names: dict[str, str] | None = None, tick_seconds: float = 15.0, **monitor_kwargs: Any
    ) -> None:
        super().__init__()
        self.monitor: Monitor | None = None
        self.off = False
        self.on_monitor: Callable[[Monitor], None] | None = None
        self.guard = ExitGuard(self.finish)
        self._kwargs, self._names, self._tick_seconds = monitor_kwargs, names or {}, tick_seconds
        self._kind = trainer
        self._later = Later(lambda text: write_line(None, f"[trainvitals] {text}"))
        self._losses: list[torch.Tensor] = []
        self._values: dict[str, float] = {}
        self._known: dict[str, Any] = {}
        self._mapper = Mapper()
        self._watchdog: Watchdog | None = None
        self._step = 0
        self._total: int | None = None
        self._began: float | None = None
        self._checkpoint = ""
        self._saved: dict[str, Any] | None = None

    # ---- the run ----

    @_guarded
    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Begin the records; continue the engine when a checkpoint brought its state."""
        step = int(trainer.global_step)
        options = {"prefix": "[trainvitals]", "output_dir": trainer.default_root_dir, **self._kwargs}
        monitor = self.monitor = Monitor(resumed_from=step if step > 0 else None, **options)
        self._mapper = Mapper(self._kind, aliases=self._names)
        if self._saved is not None and trainer.global_rank == 0:
            monitor.load_state_dict(self._saved)
        self._saved = None
        run = _run_start(trainer, pl_module, self._kind)
        self._total = run.total_steps
        monitor.publish(run)
        self._step = step
        if step > 0:
            self._boundary("resume")
        self.guard.install()
        if self.on_monitor is not None:
            self.on_monitor(monitor)
        if self._tick_seconds > 0:
            self._watchdog = Watchdog(monitor.publish, lambda: self._step, self._tick_seconds)
            self._watchdog.start()

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Print the end block."""
        self.finish("completed")

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Print it as well when the training fails or is interrupted; Lightning raises this on SIGTERM too."""
        self.finish("killed" if type(exception).__name__ == "SIGTERMException" else status_of(exception), cause_of(exception))

    def finish(self, status: Status = "completed", detail: str | None = None) -> None:
        """Stop observing and close the monitor; safe to call twice."""
        self.guard.remove()
        if self._watchdog is not None:
            self._watchdog.stop()
            self._watchdog = None
        if self.monitor is not None:
            late = {} if self.off else self._later.ready(wait=True)
            if late:
                self.monitor.publish(self._mapper.frame(late, step=self._step, phase="train", time=time.time(), closes=False))
            self.monitor.close(status, detail)

    def state_dict(self) -> dict[str, Any]:
        """What Lightning writes into its checkpoints, so that a resumed run goes on with its baselines."""
        return {} if self.monitor is None or self.off else {"monitor": self.monitor.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Called by Lightning before training goes on from a checkpoint."""
        self._saved = state_dict.get("monitor")

    # ---- one step ----

    @_guarded
    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Start the clock at the first micro-batch of a step."""
        if self._began is None:
            self._began = time.perf_counter()
        path = str(getattr(trainer.checkpoint_callback, "last_model_path", "") or "")
        if path and path != self._checkpoint:
            self._checkpoint = path
            self._boundary("save_end", path=path)

    @_guarded
    def on_before_backward(self, trainer: Any, pl_module: Any, loss: torch.Tensor) -> None:
        """Loss of one micro-batch, which Lightning has divided by ``accumulate_grad_batches`` already."""
        self._losses.append(loss.detach().float().reshape(()))

    @_guarded
    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        """Gradients before clipping, and the learning rate that is about to be used."""
        rate = optimizer.param_groups[0]["lr"]
        if not (isinstance(rate, torch.Tensor) and rate.is_cuda):
            self._values["optim.learning_rate"] = float(rate)
        trainable = [parameter for group in optimizer.param_groups for parameter in group["params"] if parameter.requires_grad]
        if trainable:
            self._values["optim.trainable_with_grad"] = sum(p.grad is not None for p in trainable) / len(trainable)
        norms = parameter_norms(trainable)
        if norms is not None:
            limit = float(trainer.gradient_clip_val or 0.0) if trainer.gradient_clip_algorithm != "value" else 0.0
            self._later.put([torch.linalg.vector_norm(norms), (~torch.isfinite(norms)).sum()], _gradient_signals(limit))

    @_guarded
    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Publish the step when the optimizer has made one; micro-batches in between only add up."""
        if trainer.global_step <= self._step or self.monitor is None:
            return
        self._step = int(trainer.global_step)
        if self._losses:
            self._later.put([torch.stack(self._losses).sum()], lambda t: {"optim.loss_raw": float(t[0]), "optim.loss": float(t[0])})
            self._losses = []
        logged = self._fresh(trainer, train=True)
        if logged:
            names = list(logged)
            self._later.put(list(logged.values()), lambda t: {name: float(value) for name, value in zip(names, t, strict=True)})
        if self._began is not None:
            self._values["time.step_seconds"] = time.perf_counter() - self._began
            self._began = None
        if self._total is not None:
            self._values["run.progress"] = min(1.0, self._step / self._total)
        if torch.cuda.is_available() and torch.cuda.is_initialized():
            self._values.update(memory_signals())
        row, self._values = {**self._later.ready(), **self._values}, {}
        self._publish(row, "train", closes=True)

    def _fresh(self, trainer: Any, *, train: bool) -> dict[str, torch.Tensor]:
        """What ``self.log`` has brought since the last look, under the names of our tables."""
        found = {}
        for name, value in trainer.callback_metrics.items():
            if self._known.get(name) is value or not isinstance(value, torch.Tensor) or value.numel() != 1:
                continue  # Lightning keeps the last value of everything: of an epoch, of an evaluation
            if train and not _OTHER.search(name):
                self._known[name] = value
                found[name if name in self._names else _TRAIN.sub("", name)] = value.reshape(())
            elif not train and _EVAL.search(name):
                self._known[name] = value
                found[name if name in self._names else _EVAL.sub("eval_", name)] = value.reshape(())
        return found

    # ---- evaluation ----

    @_guarded
    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        """An evaluation begins."""
        if not trainer.sanity_checking:
            self._boundary("eval_begin")

    @_guarded
    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """An evaluation is over; its values may be read without harm, since Lightning has read them for its checkpoints."""
        if not trainer.sanity_checking and self.monitor is not None:
            self._publish({name: float(value) for name, value in self._fresh(trainer, train=False).items()}, "eval", closes=False)
            self._boundary("eval_end")

    @_guarded
    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """An epoch ended: signals may jump."""
        self._boundary("epoch")

    def _publish(self, row: dict[str, float], phase: Any, *, closes: bool) -> None:
        now = time.time()
        frame = (
            self._mapper.frame(row, step=self._step, phase=phase, time=now, closes=closes)
            if row
            else Frame(self._step, {}, time=now)
        )
        frame.step = self._step
        if self.monitor is not None and (frame.values or closes):
            self.monitor.unknown_metrics = self._mapper.unknown
            self.monitor.publish(frame)

    def _boundary(self, what: BoundaryKind, **detail: Any) -> None:
        if self.monitor is not None:
            self.monitor.publish(Boundary(self._step, what, time.time(), detail))


def _run_start(trainer: Any, module: Any, kind: str | None) -> RunStart:
    folder = os.path.abspath(str(trainer.default_root_dir))
    name = _LIGHTNING.__name__.partition(".")[0]
    config = {key: value for key, value in dict(module.hparams).items() if isinstance(value, bool | int | float | str)}
    config["gradient_accumulation_steps"] = int(trainer.accumulate_grad_batches)
    if trainer.gradient_clip_val:
        config["max_grad_norm"] = float(trainer.gradient_clip_val)
    total = trainer.estimated_stepping_batches
    return RunStart(
        run_id=os.path.basename(folder) or "run",
        trainer=kind or "unknown",
        framework=name,
        framework_version=importlib.metadata.version(name.replace("_", "-")),
        config=config,
        total_steps=int(total) if math.isfinite(total) and total > 0 else None,
        rank=int(trainer.global_rank),
        world_size=int(trainer.world_size),
        time=time.time(),
    )


def _gradient_signals(limit: float) -> Callable[[list[torch.Tensor]], dict[str, float]]:
    def compute(tensors: list[torch.Tensor]) -> dict[str, float]:
        norm = float(tensors[0])
        values = {"optim.grad_norm_step": norm, "optim.nonfinite_grads": float(tensors[1])}
        if limit > 0 and math.isfinite(norm):
            values["optim.clipped_step"] = float(norm > limit)
        return values

    return compute
