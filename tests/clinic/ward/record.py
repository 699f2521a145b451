"""Trains the cases for real and keeps what the bus carried, compressed: ``recordings/<case>.jsonl.xz``.

A recording holds the records of `trainvitals` itself (``run_start``, ``signal``, ``run_end``), several seeds one after another, each
beginning with its ``run_start``. Findings are left out: judging is the scorer's work, with the rules of the day. Times and device
memory are left out as well, so that a recording says the same on every machine, unless the case is about them.
"""

from __future__ import annotations

import io
import json
import lzma
import math
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from tests.clinic.ward.case import Case

FOLDER = Path(__file__).parent / "recordings"
LATER_WORDS = ("two", "three", "four", "five", "six", "seven", "eight", "nine")
"""The later rounds in their order; what each is: `rounds`."""
FOLDERS = {"one": FOLDER, **{word: FOLDER.with_name(f"recordings_{number}") for number, word in enumerate(LATER_WORDS, 2)}}
"""Later rounds lie apart: whoever judges or calibrates on `FOLDER` cannot meet them by accident."""
DIGITS = 6
"""Significant digits kept: far below the noise of any signal, and a third of the size."""
_OF_THE_MACHINE = ("time.", "memory.", "device.")
_KINDS = frozenset({"run_start", "signal", "run_end"})
Records = list[dict[str, Any]]


def path_of(case_id: str, folder: Path = FOLDER) -> Path:
    """Where the recordings of a case lie."""
    return folder / f"{case_id}.jsonl.xz"


def run_id(case_id: str, seed: int) -> str:
    """Run id in a recording."""
    return f"{case_id}-s{seed}"


def seeds_in(case_id: str, folder: Path = FOLDER) -> set[int]:
    """Which seeds of a case are recorded, for a tenth of what `load` takes."""
    path = path_of(case_id, folder)
    if not path.exists():
        return set()
    with lzma.open(path, "rt", encoding="utf-8") as lines:
        return {int(json.loads(line)["run"].rsplit("-s", 1)[1]) for line in lines if '"kind":"run_start"' in line}


def load(case_id: str, folder: Path = FOLDER) -> dict[int, Records]:
    """Seed to records, of one case; empty when it was never recorded."""
    path = path_of(case_id, folder)
    runs: dict[int, Records] = {}
    if not path.exists():
        return runs
    with lzma.open(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            record = json.loads(line)
            if record["kind"] == "run_start":
                current = runs.setdefault(int(record["run"].rsplit("-s", 1)[1]), [])
            current.append(record)
    return runs


def first_recorded(case_id: str) -> dict[int, Records]:
    """Seed to records, as the first round that has the case recorded it; empty when none does."""
    return next((runs for folder in FOLDERS.values() if (runs := load(case_id, folder))), {})


def save(case_id: str, runs: dict[int, Records], folder: Path = FOLDER) -> None:
    """Write all seeds of a case, in order; the same runs give the same bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(record, separators=(",", ":")) + "\n" for seed in sorted(runs) for record in runs[seed])
    temporary = path_of(case_id, folder).with_suffix(".tmp")
    temporary.write_bytes(lzma.compress(text.encode(), preset=9 | lzma.PRESET_EXTREME))
    temporary.replace(path_of(case_id, folder))


def train(case: Case, seed: int, folder: str, **changes: Any) -> Any:
    """Build and train one run under observation; returns the callback of `attach`. A training that dies of its fault is a result."""
    import torch
    import transformers

    from trainvitals.integrations.trl import attach

    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    torch.manual_seed(seed)
    trainer = case.build(folder, seed, **changes)
    trainer.remove_callback(transformers.PrinterCallback)
    callback = attach(trainer, console=io.StringIO(), fail_soft=False)
    try:
        trainer.train()
    except (RuntimeError, ValueError, FloatingPointError) as error:  # NaN probabilities stop generation, for one
        print(f"  {case.id} seed {seed}: training died: {str(error).splitlines()[0][:100]}", file=sys.stderr)
    return callback


def record(case: Case, seed: int) -> Records:
    """Train one seed and give its records, thinned to what judging needs."""
    with tempfile.TemporaryDirectory() as folder:
        train(case, seed, folder)
        stream = Path(folder) / "vitals" / "rank0.jsonl"
        lines = [json.loads(line) for line in stream.read_text().splitlines()]
    return [thin(line, case, seed) for line in lines if line["kind"] in _KINDS and line.get("event") != "tick"]


def thin(record_: dict[str, Any], case: Case, seed: int) -> dict[str, Any]:
    """One record without what belongs to this machine or this day, numbers rounded."""
    kept = {key: value for key, value in record_.items() if key not in {"ts", "seq", "rank"} and value is not None}
    kept["run"] = run_id(case.id, seed)
    if "config" in kept:
        kept["config"] = {key: value for key, value in kept["config"].items() if not _is_path(value)}
    if not case.keeps_time:
        kept.pop("time", None)
        if "values" in kept:
            kept["values"] = {key: value for key, value in kept["values"].items() if not key.startswith(_OF_THE_MACHINE)}
        if "emits" in kept:
            kept["emits"] = [name for name in kept["emits"] if not name.startswith(_OF_THE_MACHINE)]
    if "values" in kept:
        kept["values"] = {key: _rounded(value) for key, value in kept["values"].items()}
    return kept


def _is_path(value: Any) -> bool:
    return isinstance(value, str) and ("/" in value or os.sep in value)


def _rounded(value: Any) -> Any:
    if isinstance(value, float) and math.isfinite(value):
        short = float(f"{value:.{DIGITS}g}")
        return int(short) if short.is_integer() and abs(short) < 1e6 else short
    return value


def _job(case_id: str, seed: int) -> tuple[str, int, Records, float]:
    """One run in a worker process, which finds the case by its id: builders do not travel between processes."""
    import warnings

    warnings.simplefilter("ignore")
    from tests.clinic.ward.cases import by_id

    begin = time.process_time()
    return case_id, seed, record(by_id(case_id), seed), time.process_time() - begin


def record_all(
    cases: Iterable[Case], *, jobs: int, again: bool = False, folder: Path = FOLDER, seeds: Callable[[Case], Sequence[int]] = lambda case: case.seeds
) -> int:
    """Record what is missing (all of it with `again`); each case is written as soon as its seeds are there.

    Args:
        cases: What to record.
        jobs: Processes.
        again: Also what is there.
        folder: Where the recordings go.
        seeds: Seeds of a case, its own unless another round asks for others.

    Returns:
        How many runs failed to be recorded.
    """
    cases = [case for case in cases if is_at_home(case)]
    runs = {case.id: {} if again else load(case.id, folder) for case in cases}
    missing = [(case.id, seed) for case in cases for seed in seeds(case) if seed not in runs[case.id]]
    missing.sort(key=lambda item: item[1])  # the first seed of every case comes first: a fault without effect shows early
    if not missing:
        print("nothing to record: every seed of these cases is there", file=sys.stderr)
        return 0
    failed = 0
    begin = time.monotonic()
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        waiting = [pool.submit(_job, case_id, seed) for case_id, seed in missing]
        for done, future in enumerate(as_completed(waiting), 1):
            try:
                case_id, seed, records, seconds = future.result()
            except Exception as error:  # one broken builder must not lose the other recordings
                failed += 1
                print(f"[{done}/{len(missing)}] FAILED: {error!r}", file=sys.stderr)
                continue
            runs[case_id][seed] = records
            save(case_id, runs[case_id], folder)
            print(f"[{done}/{len(missing)}, {time.monotonic() - begin:.0f} s] {case_id} seed {seed}: {len(records)} records, {seconds:.1f} s CPU", file=sys.stderr)
    return failed


def is_at_home(case: Case) -> bool:
    """Whether the installed TRL is the one that records the case; says so when it is not."""
    if not case.needs_trl:
        return True
    installed = ".".join(version("trl").split(".")[:2])
    if installed != case.needs_trl:
        print(f"skipped: {case.id} is recorded with TRL {case.needs_trl}, this is {installed}", file=sys.stderr)
    return installed == case.needs_trl


def seeds_of(case: Case, runs: dict[int, Records]) -> Sequence[int]:
    """Seeds of a case that are recorded, in order."""
    return [seed for seed in case.seeds if seed in runs]


def each(cases: Iterable[Case], folder: Path = FOLDER) -> Iterator[tuple[Case, int, Records]]:
    """Every recorded run of these cases."""
    for case in cases:
        for seed, records in sorted(load(case.id, folder).items()):
            yield case, seed, records
