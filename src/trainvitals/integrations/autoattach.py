"""The training process's side of ``trainvitals run``: attach to a trainer that is about to train, tell the command what happened.

`trainvitals.integrations.bootstrap.sitecustomize` calls `before_training` at the first ``train()`` of a trainer (``fit()`` in
Lightning). What to do comes in the environment: ``TRAINVITALS_RUN`` holds the options as JSON, ``TRAINVITALS_RUN_FOLDER`` a folder
that the command reads. Each training writes one small file there, which is replaced as it goes; nothing else is shared.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainvitals.findings import SEVERITIES, Finding, RunEndRecord, Verdict
from trainvitals.integrations.lifecycle import cause_of, status_of

if TYPE_CHECKING:
    from trainvitals.monitor import Monitor
    from trainvitals.rulelang.loader import RuleSet


def before_training(trainer: Any) -> Callable[[BaseException], None] | None:
    """Attach to `trainer` unless its script has done so; a trainer of no known kind is left alone.

    Args:
        trainer: A `transformers.Trainer` (TRL's included) or a Lightning `Trainer`.

    Returns:
        What to call when the training that is about to start ends with an exception; None when somebody else sees to that.
    """
    options = json.loads(os.environ["TRAINVITALS_RUN"])
    failed = None
    if hasattr(trainer, "callback_handler"):
        from trainvitals.integrations.transformers import VitalsCallback

        callback = next((one for one in trainer.callback_handler.callbacks if isinstance(one, VitalsCallback)), None)
        if callback is None:
            from trainvitals.integrations.trl import attach

            callback = attach(trainer, **monitor_options(options))

            def failed(error: BaseException) -> None:
                callback.finish(status_of(error), cause_of(error))

        trainer.add_callback(_reporter(callback, Report(type(trainer).__name__, options)))
    elif hasattr(trainer, "strategy"):
        from trainvitals.integrations.lightning import LightningVitals

        mine = next((one for one in trainer.callbacks if isinstance(one, LightningVitals)), None)
        if mine is None:
            mine = LightningVitals(**monitor_options(options))
            trainer.callbacks.append(mine)
        mine.on_monitor = Report(type(trainer).__name__, options).follow
    return failed


def monitor_options(options: dict[str, Any]) -> dict[str, Any]:
    """Arguments for `trainvitals.monitor.Monitor` from the options of the command."""
    kwargs: dict[str, Any] = {name: options[name] for name in ("output_dir", "overrides", "enable") if options.get(name)}
    if options.get("console") is False:
        kwargs["console"] = False
    if options.get("rules"):
        kwargs["rules"] = _rules(options["rules"], kwargs.pop("overrides", ()), kwargs.pop("enable", ()))
    return kwargs


def _rules(paths: list[str], overrides: list[str], enable: list[str]) -> RuleSet:
    """Built-in rules and the user's, as ``trainvitals check --rules`` loads them: `paths` has both."""
    from trainvitals._resources import rules_folder
    from trainvitals.rulelang.loader import load_rules

    loaded = load_rules([Path(path) for path in paths], overrides=[Path(path) for path in overrides], enable=enable)
    root = str(rules_folder())
    rules = tuple(replace(rule, source="builtin") if rule.path.startswith(root) else rule for rule in loaded.rules)
    return replace(loaded, rules=rules, by_id={rule.id: rule for rule in rules})


class Report:
    """What the command is told about one training: a file ``training-<pid>-<n>.json`` in the folder that it watches.

    Args:
        trainer: Name of the trainer's class.
        options: Options of the command; ``stop_on`` is the severity from which it is asked to stop the run, or None.
    """

    def __init__(self, trainer: str, options: dict[str, Any]) -> None:
        self._folder = os.environ.get("TRAINVITALS_RUN_FOLDER", "")
        self._stop_on: str | None = options.get("stop_on")
        self._state: dict[str, Any] = {"trainer": trainer, "ended": None, "records": None, "stop": None, "resume_from": None}
        self._number = 0

    def follow(self, monitor: Monitor) -> None:
        """Report on the training that `monitor` watches from now on; a second training of one trainer is a second file."""
        self._number += 1
        self._state["pid"] = os.getpid()
        path = monitor.records_path
        self._state = {**self._state, "ended": None, "records": None if path is None else os.path.abspath(path)}
        monitor.bus.subscribe("trainvitals run", self._seen)
        self._write()

    def _seen(self, item: Any) -> None:
        if isinstance(item, RunEndRecord):
            self._write(ended=item.status)
        elif isinstance(item, Verdict):
            self._state["resume_from"] = item.resume_from
            if self._state["stop"] is not None:
                self._write()
        elif (
            isinstance(item, Finding) and item.state == "firing" and self._state["stop"] is None and self._bad_enough(item.severity)
        ):
            where = f"{item.rule.id}, step {item.step}"
            self._write(stop=where)

    def _bad_enough(self, severity: str) -> bool:
        return self._stop_on is not None and SEVERITIES.index(severity) >= SEVERITIES.index(self._stop_on)

    def _write(self, **changes: Any) -> None:
        self._state.update(changes)
        if not self._folder:
            return
        path = os.path.join(self._folder, f"training-{self._state['pid']}-{self._number}.json")
        with contextlib.suppress(OSError):  # another machine than the command's, or the command is gone
            with open(f"{path}.tmp", "w", encoding="utf-8") as file:
                json.dump(self._state, file)
            os.replace(f"{path}.tmp", path)


def _reporter(vitals: Any, report: Report) -> Any:
    """A callback that connects `report` to the monitor that the vitals callback makes when training begins."""
    from transformers import TrainerCallback

    class Reporter(TrainerCallback):
        """See `Report`."""

        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            try:
                if vitals.monitor is not None and not vitals.off:
                    report.follow(vitals.monitor)
            except Exception as error:
                from trainvitals.integrations.transformers import notice

                notice(f"trainvitals run is not told about this training: {type(error).__name__}: {error}. Training goes on.")

    return Reporter()
