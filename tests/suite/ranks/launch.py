"""Launch `scenarios.py` under torchrun, with a limit: a deadlock fails the test and leaves nothing behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
LIMIT = 90
"""Seconds for one launch; each rank needs about ten for its imports on a free core."""
OVERRIDES = "rules:\n  - id: rank-missing\n    params: {min_wait: 5}\n    reason: a test has no minute\n"


def launch(output: Path, ranks: int, mode: str, *names: str) -> subprocess.CompletedProcess[str]:
    """Run the scenarios one after the other in one process group; what was printed is in ``stdout``."""
    (output / "trainvitals.yaml").write_text(OVERRIDES)
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(ranks), "--master_port", "0",
        "--rdzv_backend", "c10d", "--rdzv_endpoint", "localhost:0", str(HERE / "scenarios.py"), str(output), mode, *names,
    ]  # fmt: skip
    env = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
    log = output / "log"
    with log.open("w") as file:
        child = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=env, start_new_session=True)
        try:
            code = child.wait(LIMIT)
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)
            code = child.wait()
            raise AssertionError(f"no end after {LIMIT} s:\n{log.read_text()[-4000:]}") from None
    return subprocess.CompletedProcess(command, code, log.read_text())


def records(folder: Path, rank: int) -> list[dict[str, Any]]:
    """All records of one rank; each line must be whole."""
    return [json.loads(line) for line in (folder / "vitals" / f"rank{rank}.jsonl").read_text().splitlines()]


def series(folder: Path, rank: int, name: str) -> list[Any]:
    """Values of one signal in the records of one rank, in order; a value that is not finite is its word."""
    found = [record["values"][name] for record in records(folder, rank) if record.get("event") == "frame" and name in record["values"]]
    return [value["nonfinite"] if isinstance(value, dict) else value for value in found]


def fired(folder: Path, rank: int = 0) -> dict[tuple[str, str | None], int]:
    """Step at which each rule first fired for each rank: ``{("slow-rank", "2"): 27}``; suppressed findings left out."""
    found: dict[tuple[str, str | None], int] = {}
    for record in records(folder, rank):
        if record["kind"] == "finding" and record["state"] == "firing":
            found.setdefault((record["rule"]["id"], record["instance"].get("rank")), record["step"])
    return found
