"""The package: what it exports, what importing it costs, one version, and data that travels."""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys
import tomllib
from pathlib import Path

import trainvitals
from trainvitals import _version

ROOT = Path(__file__).resolve().parents[1]


def python(code: str) -> str:
    """What a fresh interpreter prints."""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def test_the_version_is_one_number() -> None:
    """`__version__`, the project file and the installed metadata agree."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert trainvitals.__version__ == _version.__version__ == project["version"] == importlib.metadata.version("trainvitals")
    assert f"## {project['version']}" in (ROOT / "CHANGELOG.md").read_text()


def test_the_stable_api_is_what_all_says() -> None:
    """Every name in `__all__` exists, without duplicates."""
    assert len(set(trainvitals.__all__)) == len(trainvitals.__all__)
    for name in trainvitals.__all__:
        assert getattr(trainvitals, name) is not None


def test_the_stable_api_changes_on_purpose() -> None:
    """A name that leaves this list breaks somebody: see docs/stability.md."""
    promised = {
        "Monitor",
        "VitalsCallback",
        "attach",
        "custom_signal",
        "load_rules",
        "Frame",
        "Boundary",
        "RunStart",
        "RunEnd",
        "Finding",
        "Verdict",
    }
    assert promised <= set(trainvitals.__all__)


def test_importing_the_command_line_loads_nothing_heavy() -> None:
    """No trainer framework, and none of the libraries that only some commands need."""
    heavy = ("torch", "transformers", "trl", "accelerate", "datasets", "pydantic", "numpy", "rich", "jsonschema")
    code = f"import sys, json, trainvitals, trainvitals.cli; print(json.dumps([m for m in {heavy} if m in sys.modules]))"
    assert json.loads(python(code)) == []


def test_checking_a_log_loads_no_trainer(tmp_path: Path) -> None:
    """`check` imports no torch even though it is installed here."""
    log = tmp_path / "log.jsonl"
    log.write_text("".join(json.dumps({"step": step, "loss": 1 / step, "grad_norm": 0.5}) + "\n" for step in range(1, 50)))
    code = (
        "import sys\nfrom trainvitals.cli import main\n"
        f"main(['check', {str(log)!r}])\nprint([m for m in ('torch', 'transformers', 'trl') if m in sys.modules])"
    )
    assert python(code).splitlines()[-1] == "[]"


def test_importing_is_quiet() -> None:
    """No warning and no output, even with warnings as errors."""
    command = [sys.executable, "-W", "error", "-c", "import trainvitals, trainvitals.cli, trainvitals.monitor, trainvitals.engine"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_rules_and_schemas_travel_in_the_wheel() -> None:
    """The build configuration puts them beside the code; tools/wheel_check.py builds and uses the wheel in CI."""
    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert wheel["force-include"] == {"rules": "trainvitals/_data/rules", "schemas": "trainvitals/_data/schemas"}


def test_the_constraints_pin_torch_and_both_ends_of_trl() -> None:
    """A bare `torch` would fetch gigabytes of GPU libraries."""
    newest, oldest = ((ROOT / name).read_text() for name in ("constraints.txt", "constraints-trl-1.0.txt"))
    assert "torch==2.13.0" in newest
    assert "trl==1.16.0" in newest
    assert "torch==2.13.0" in oldest
    assert "trl==1.0.0" in oldest
