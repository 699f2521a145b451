"""``trainvitals run -- COMMAND``: start a training with the vitals attached and no line of code changed.

The child gets a folder in front of ``PYTHONPATH`` whose sitecustomize waits for a trainer
(`trainvitals.integrations.bootstrap.sitecustomize`). Arguments, stdin, stdout and stderr are the child's own, signals are passed
on, and its exit status is ours: 128+N when signal N ended it.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

from trainvitals.cli import UserError
from trainvitals.cli.common import add_rule_arguments, builtin_rule_paths, load_ruleset, say

EXIT_STOPPED, EXIT_RESTART = 1, 75
BOOTSTRAP = Path(__file__).resolve().parent.parent / "integrations" / "bootstrap"
FORWARDED = [
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2") if hasattr(signal, name)
]
POLL_SECONDS = 0.5
"""How often the folder is looked at for a wish to stop, and the child where signals cannot be waited for."""
GRACE_SECONDS = 60.0
"""Between SIGTERM and SIGKILL when we stop the child: torchrun itself gives its workers 30 s."""
_FROM_KERNEL = 0x80  # si_code SI_KERNEL: Ctrl-C on a terminal, which the whole foreground group has got already


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this command."""
    parser.usage = "trainvitals run [options] -- COMMAND [ARGUMENT ...]"
    parser.add_argument("--output", metavar="DIR", help="records go to DIR/vitals (default: the trainer's own output folder)")
    add_rule_arguments(parser)
    parser.add_argument("--no-console", action="store_true", help="print nothing during training and no end block")
    parser.add_argument(
        "--stop-on",
        choices=("warning", "error"),
        help="stop the command when a finding of this level opens; exit 75 when a restart from a checkpoint is advised, else 1",
    )
    parser.add_argument("words", nargs=argparse.REMAINDER, metavar="COMMAND", help="what to run, after --")


def run(options: argparse.Namespace) -> int:
    """Run the command; returns its exit status.

    Raises:
        UserError: If there is no such command, or rule files are wrong: both are told before anything starts.
    """
    command = options.words[1:] if options.words[:1] == ["--"] else options.words
    if not command:
        raise UserError("no command to run", "for example: trainvitals run -- python train.py --learning_rate 1e-6")
    if options.rules or options.overrides or options.enable:
        load_ruleset(options)
    closed = isolated(command)
    if closed:
        say(f"[trainvitals] cannot attach: {command[0]} is told to ignore PYTHONPATH or site (-I, -E, -S). It runs unobserved.")
    with tempfile.TemporaryDirectory(prefix="trainvitals-run-") as folder:
        status, stopped = _supervise(command, environment(options, folder), Path(folder), options.stop_on)
        trainings = read_reports(Path(folder))
        looked, told = ((Path(folder) / name).exists() for name in ("python", "told"))
    farewell(trainings, stopped=stopped, looked=looked, quiet=closed or told)
    if stopped:
        return EXIT_RESTART if any(training["resume_from"] for training in trainings) else EXIT_STOPPED
    return 128 - status if status < 0 else status


def environment(options: argparse.Namespace, folder: str) -> dict[str, str]:
    """Environment of the child: ours, plus what its Python needs to attach. Paths are absolute, since scripts change folder."""
    rules = [os.path.abspath(path) for path in options.rules]
    wishes = {
        "output_dir": options.output and os.path.abspath(options.output),
        "rules": [*map(str, builtin_rule_paths(options.enable)), *rules] if rules else [],
        "overrides": [os.path.abspath(path) for path in options.overrides],
        "enable": options.enable,
        "console": not options.no_console,
        "stop_on": options.stop_on,
    }
    before = os.environ.get("PYTHONPATH")
    return {
        **os.environ,
        "PYTHONPATH": f"{BOOTSTRAP}{os.pathsep}{before}" if before else str(BOOTSTRAP),
        "TRAINVITALS_RUN": json.dumps(wishes),
        "TRAINVITALS_RUN_FOLDER": folder,
    }


def isolated(command: list[str]) -> bool:
    """Whether `command` is a Python that is told not to read PYTHONPATH or not to import site: ``-I``, ``-E``, ``-S``."""
    if not Path(command[0]).name.startswith("python"):
        return False
    words = iter(command[1:])
    for word in words:
        if not word.startswith("-") or word in ("-", "--") or word[1] in "cm":
            return False
        if word in ("-X", "-W"):
            next(words, None)
        elif not word.startswith(("--", "-X", "-W")) and {"I", "E", "S"} & set(word.split("c")[0].split("m")[0]):
            return True
    return False


def read_reports(folder: Path) -> list[dict[str, Any]]:
    """What the trainings of all processes have told, see `trainvitals.integrations.autoattach.Report`."""
    found = []
    for path in sorted(folder.glob("training-*.json")):
        try:
            found.append(json.loads(path.read_text()))
        except (OSError, ValueError):
            continue  # a broken disk: the training itself does not depend on this
    return found


def farewell(trainings: list[dict[str, Any]], *, stopped: str, looked: bool, quiet: bool) -> None:
    """At most a line: why we stopped the command, or why no end block came from the training itself.

    Args:
        trainings: From `read_reports`.
        stopped: Why we stopped the command; empty when it ended by itself.
        looked: A Python process started with our bootstrap.
        quiet: The user knows already why nothing was seen.
    """
    cut_off = [training for training in trainings if training["ended"] is None]
    if stopped:
        resume = next((training["resume_from"] for training in trainings if training["resume_from"]), None)
        advice = (
            f"Restart from {resume} with the change that it suggests."
            if resume
            else "There is no healthy checkpoint to go back to."
        )
        say(f"[trainvitals] stopped the command: {stopped}. {advice}")
    elif cut_off:
        records = next((training["records"] for training in cut_off if training["records"]), None)
        where = f" Its records are whole up to there: trainvitals check {records}" if records else ""
        say(f"[trainvitals] the training was cut off before it could say how it ended.{where}")
    elif trainings or quiet:
        return
    elif not looked:
        say("[trainvitals] no Python process of this command could be looked into: nothing was recorded.")
    else:
        say("[trainvitals] no known trainer has trained: nothing was recorded. A loop of your own can use trainvitals.Monitor.")


# ---- the child --------------------------------------------------------------------------------------------------------


def _supervise(command: list[str], env: dict[str, str], folder: Path, stop_on: str | None) -> tuple[int, str]:
    """Run the child to its end: its return code as `subprocess` gives it, and why we stopped it (empty: we did not)."""
    caught: list[int] = []
    with _handlers(caught):
        child = _start(command, env)
        stopped, deadline = "", 0.0
        with _waiting_for_signals() as wait:
            while child.poll() is None:
                caught += wait(child, POLL_SECONDS if stop_on else 60.0)
                while caught:
                    _send(child, caught.pop(0))
                if stop_on and not stopped:
                    stopped = next((report["stop"] for report in read_reports(folder) if report["stop"]), "")
                    if stopped:
                        _send(child, signal.SIGTERM)
                        deadline = time.monotonic() + GRACE_SECONDS
                elif stopped and time.monotonic() > deadline:
                    _send(child, getattr(signal, "SIGKILL", signal.SIGTERM))
    if stopped:
        _stop_orphans(folder)
    return child.returncode, stopped


def _stop_orphans(folder: Path) -> None:
    """A shell script dies of SIGTERM without telling what it runs: stop trainings that go on, and let them say their last words."""
    deadline = time.monotonic() + GRACE_SECONDS / 4
    told: set[int] = set()
    while (going := [report["pid"] for report in read_reports(folder) if report["ended"] is None]) and time.monotonic() < deadline:
        for pid in set(going) - told:
            told.add(pid)
            with suppress(OSError):
                os.kill(pid, signal.SIGTERM)
        if not any(_alive(pid) for pid in going):
            break
        time.sleep(0.1)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except OSError:
        return False
    return True


def _start(command: list[str], env: dict[str, str]) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(command, env=env)
    except FileNotFoundError:
        hint = "give the program after --" if shutil.which(command[0]) is None else "its interpreter (the #! line) is missing"
        raise UserError(f"{command[0]}: no such program", hint) from None
    except OSError as error:
        raise UserError(f"{command[0]}: {error.strerror or error}", "is it executable? Scripts: -- python train.py") from None


def _send(child: subprocess.Popen[bytes], number: int) -> None:
    if child.poll() is None:
        child.send_signal(number)


@contextmanager
def _handlers(caught: list[int]) -> Iterator[None]:
    """Note signals instead of dying of them, before the child runs and where `_waiting_for_signals` cannot."""

    def note(number: int, frame: FrameType | None) -> None:
        if number != signal.SIGINT or hasattr(signal, "sigtimedwait") or not sys.stdin.isatty():
            caught.append(number)

    before = {number: signal.signal(number, note) for number in FORWARDED if signal.getsignal(number) is not signal.SIG_IGN}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _waiting_for_signals() -> Iterator[Any]:
    """A function that waits for the child or a signal and returns the signals to pass on.

    With ``sigtimedwait`` (Linux) the sender is known: what the kernel sent on a Ctrl-C has reached the child already, which is in
    the same foreground group, and is not passed on a second time. Elsewhere a Ctrl-C is left to the terminal.
    """
    if not hasattr(signal, "sigtimedwait"):
        yield _wait_by_polling
        return
    watched = {*FORWARDED, signal.SIGCHLD}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, watched)  # after the fork: the child must not inherit it

    def wait(child: subprocess.Popen[bytes], seconds: float) -> list[int]:
        if child.poll() is not None:
            return []
        info = signal.sigtimedwait(watched, seconds)
        if info is None or info.si_signo == signal.SIGCHLD or info.si_code == _FROM_KERNEL:
            return []
        return [info.si_signo]

    try:
        yield wait
    finally:
        while signal.sigpending() & watched:  # what came last is not for whoever runs after us
            signal.sigtimedwait(watched, 0)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _wait_by_polling(child: subprocess.Popen[bytes], seconds: float) -> list[int]:
    with suppress(subprocess.TimeoutExpired):
        child.wait(min(seconds, POLL_SECONDS))
    return []
