"""A stage on which another tool's own callback is played: what the workers share. Runs in that tool's environment.

Nothing of trainvitals is imported here. The callback sees what a `transformers.Trainer` shows it: training arguments, state,
control, and the calls in their order (``on_step_begin``, ``on_step_end``, ``on_log``, ``on_evaluate``, ``on_train_end``).
There is no model and no completion text: recordings hold numbers only.

Each run is played in a forked process, so that no tool's module state (a random generator, a global monitor, exit handlers)
carries over from one run to the next, and the answer for a run does not depend on which others are played.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
import time
import traceback
from importlib.metadata import version
from types import SimpleNamespace

from transformers import TrainerControl, TrainerState

SETUP = sys.argv[2] if len(sys.argv) > 2 else "default"
"""``default``, or ``eager``: look more often than the tool does by itself."""


class Clock:
    """A clock that shows the recorded wall time, for tools that time steps themselves."""

    def __init__(self):
        self.now = 0.0

    def monotonic(self):
        return self.now


class Trainer:
    """What a callback can reach of a trainer. Its class is renamed, for tools that read the class's name."""

    def __init__(self, run):
        self.args = SimpleNamespace(**{"world_size": 1, "process_index": 0, "n_gpu": 0, **run["config"]})
        self.args.to_dict = lambda: dict(run["config"])
        self.model = SimpleNamespace(name_or_path="recording", config=SimpleNamespace(_name_or_path="recording"))
        self.state = TrainerState(max_steps=run["total_steps"], logging_steps=1)
        self.control = TrainerControl()
        self.callbacks = []
        self.clock = Clock()

    def add_callback(self, callback):
        self.callbacks.append(callback)

    def call(self, event, **kwargs):
        for callback in self.callbacks:
            getattr(callback, event)(self.args, self.state, self.control, **kwargs)


def trainer_for(run):
    """A stand-in trainer of the right class name: ``GRPOTrainer`` for ``grpo``."""
    name = "".join(part.upper() if len(part) < 5 else part.capitalize() for part in run["trainer"].split("_"))
    return type(f"{name}Trainer", (Trainer,), {})(run)


def play(trainer, run):
    """Every row of a run through the callbacks; gives seconds spent in ``on_log`` and around, per row."""
    spent = []
    trainer.call("on_train_begin", model=trainer.model)
    for step, kind, logs, seconds in run["rows"]:
        begin = time.perf_counter()
        if kind in ("train", "step") and step != trainer.state.global_step:
            if seconds is not None:  # a tool that times steps must not time the replay
                trainer.call("on_step_begin")
                trainer.clock.now += seconds
            trainer.state.global_step = step
            trainer.call("on_step_end")
        if kind != "step":
            trainer.state.epoch = logs.get("epoch", trainer.state.epoch)
            trainer.state.log_history.append({**logs, "step": step})
            trainer.call("on_log", logs=dict(logs))
        if kind == "eval":
            trainer.call("on_evaluate", metrics=dict(logs))
        if kind != "step":
            spent.append(time.perf_counter() - begin)
    if run["status"] == "completed":
        trainer.call("on_train_end")
    return spent


def one(run, attach):
    """Alerts of one run as a plain dict."""
    folder = tempfile.mkdtemp(prefix="peer-")
    answer = {"run": run["run"], "alerts": {}, "errors": []}
    finish = None
    try:
        os.chdir(folder)  # tools look for, and leave, files where they run
        trainer = trainer_for(run)
        finish = attach(trainer, folder)
        spent = play(trainer, run)
        answer["rows"] = len(spent)
        answer["seconds_per_row"] = sum(spent) / max(1, len(spent))
        answer["worst_seconds"] = max(spent, default=0.0)
    except Exception as error:  # out of a callback this would have ended the training
        answer["errors"].append(f"step {trainer.state.global_step}: {type(error).__name__}: {error}"[:300])
        traceback.print_exc()
    try:
        answer["alerts"] = {} if finish is None else finish()
    except Exception as error:
        answer["errors"].append(f"at the end: {type(error).__name__}: {error}"[:300])
        traceback.print_exc()
    shutil.rmtree(folder, ignore_errors=True)
    return answer


def serve(package, attach):
    """Read runs from the file named on the command line, one JSON object a line, and write one answer a line to stdout.

    A second word on the command line names another setup than the default; see `SETUP`.

    Args:
        package: Name of the installed distribution, for its version.
        attach: ``attach(trainer, folder)`` connects the tool the way its documentation says and returns a function that
            gives, at the end, ``{mode: [[step, rule, severity], ...]}``; a fourth entry is the onset that the tool claims.
    """
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what tools print is not an answer
    out.write(json.dumps({"version": version(package), "python": sys.version.split()[0]}) + "\n")
    out.flush()
    with open(sys.argv[1], encoding="utf-8") as runs:
        for line in runs:
            run = json.loads(line)
            child = os.fork()
            if child == 0:
                answer = one(run, attach)
                out.write(json.dumps(answer) + "\n")
                out.flush()
                os._exit(0)
            code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            if code:
                out.write(json.dumps({"run": run["run"], "alerts": {}, "errors": [f"its process ended with {code}"]}) + "\n")
                out.flush()
