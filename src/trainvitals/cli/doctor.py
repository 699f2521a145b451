"""``trainvitals doctor``: look at this installation; 1 when something needs attention."""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from typing import Literal

from trainvitals._version import __version__
from trainvitals.sinks.encode import one_line

Mark = Literal["ok", "note", "bad"]
_PACKAGES = ("torch", "transformers", "trl", "accelerate", "peft", "datasets", "orjson", "nvidia-ml-py")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this command."""
    parser.add_argument("--dir", default=".", metavar="PATH", help="folder where runs will write (default: this one)")


def run(options: argparse.Namespace) -> int:
    """Print one line per look."""
    bad = False
    for mark, text in looks(options.dir):
        bad = bad or mark == "bad"
        print(one_line(f"{mark:4}  {text}"))
    return 1 if bad else 0


def version_of(package: str) -> str | None:
    """Installed version; None when it is not installed. Imports nothing."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def looks(folder: str) -> Iterator[tuple[Mark, str]]:
    """What was found, each with a mark."""
    yield "ok", f"trainvitals {__version__}, Python {platform.python_version()}, {platform.system()} {platform.machine()}"
    for package in _PACKAGES:
        found = version_of(package)
        yield ("ok" if found else "note"), f"{package} {found or 'not installed'}"
    yield from _trainer_versions()
    yield from _nvml()
    yield _rules()
    yield _writable(folder)


def _release(text: str) -> tuple[int, ...]:
    parts = []
    for part in text.split(".")[:2]:
        digits = "".join(character for character in part if character.isdigit())
        parts.append(int(digits or 0))
    return tuple(parts)


def _trainer_versions() -> Iterator[tuple[Mark, str]]:
    trl, transformers = version_of("trl"), version_of("transformers")
    if trl is not None and not (1, 0) <= _release(trl) <= (1, 16):
        yield "note", f"TRL {trl} is outside 1.0 to 1.16, the versions this release was tested with"
    if transformers is not None:
        if _release(transformers) < (4, 56):
            yield "bad", f"transformers {transformers} is older than 4.56: pip install -U transformers"
        yield (
            "note",
            "transformers hides NaN: logging_nan_inf_filter=True replaces a NaN loss by a running mean in every log; attach() reads the raw loss",
        )


def _nvml() -> Iterator[tuple[Mark, str]]:
    shim = version_of("pynvml")
    if shim is not None:
        yield (
            "bad",
            f"the deprecated package pynvml {shim} is installed; it warns in every process: pip uninstall pynvml (nvidia-ml-py gives the same module)",
        )
    if version_of("nvidia-ml-py") is None and shim is None:
        yield "note", "no NVML: pip install nvidia-ml-py to see utilisation and temperature"
        return
    try:
        import pynvml

        pynvml.nvmlInit()
        count = pynvml.nvmlDeviceGetCount()
        yield "ok", f"NVML answers, {count} device{'s' if count != 1 else ''}"
        pynvml.nvmlShutdown()
    except Exception as error:
        yield "note", f"NVML does not answer ({error}): no GPU here, or no driver"
    try:
        done = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=10, check=False)
        yield (
            ("ok" if done.returncode == 0 else "note"),
            f"nvidia-smi: {done.stdout.strip() or done.stderr.strip() or done.returncode}",
        )
    except (OSError, subprocess.TimeoutExpired):
        yield "note", "nvidia-smi was not found"


def _rules() -> tuple[Mark, str]:
    from trainvitals.rulelang.errors import RuleError
    from trainvitals.rulelang.loader import load_rules

    try:
        ruleset = load_rules()
    except RuleError as error:
        return "bad", f"the built-in rules do not load, {len(error.problems)} problems: trainvitals rules check"
    return "ok", f"{len(ruleset.rules)} stable rules load"


def _writable(folder: str) -> tuple[Mark, str]:
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        return "bad", f"cannot write in {os.path.abspath(folder)}: {error.strerror}; records would stay in memory"
    return "ok", f"can write in {os.path.abspath(folder)} as {sys.platform} user {os.getuid() if hasattr(os, 'getuid') else '?'}"
