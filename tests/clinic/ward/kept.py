"""What the last `make clinic` said about every recording, so that a check of the page need not judge them all again.

``results/judged.json.xz`` holds it beside a digest of all that it came from: the engine, the rules, the ward, the recordings. As long as that is the same,
results are taken from there, but for one case in `SAMPLE`, which is judged again and must say the same to the last field. When anything has changed,
everything is judged: that takes minutes, and is what `make clinic` does.
"""

from __future__ import annotations

import hashlib
import json
import lzma
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.clinic.ward.case import Case
from tests.clinic.ward.score import Alarm, Judged, as_json, remembering

REPO = Path(__file__).parents[3]
FILE = Path(__file__).parent / "results" / "judged.json.xz"
SAMPLE = 12
SOURCES = ("src/trainvitals/*.py", "src/trainvitals/detectors/*.py", "src/trainvitals/rulelang/*.py", "src/trainvitals/names/*.py", "src/trainvitals/readers/*.py", "rules/stable/*.yaml", "tests/clinic/ward/*.py", "tests/clinic/ward/recordings*/*.xz")
"""All that decides what is said of a recording. The cases of rules (``.test.yaml``) do not."""


def digest() -> str:
    """Of the sources, by path and content."""
    whole = hashlib.sha256()
    for path in sorted({path for pattern in SOURCES for path in REPO.glob(pattern) if not path.name.endswith(".test.yaml")}):
        whole.update(f"{path.relative_to(REPO)}\0".encode() + path.read_bytes() + b"\0")
    return whole.hexdigest()


def read() -> tuple[str, dict[str, Any]]:
    """Digest of the sources, and what was kept of them: nothing where it was made from others."""
    now = digest()
    loaded: dict[str, Any] = json.loads(lzma.decompress(FILE.read_bytes())) if FILE.exists() else {}
    return now, loaded["cases"] if loaded.get("made_from") == now else {}


@contextmanager
def known() -> Iterator[list[str]]:
    """Within, cases that were judged before by the same sources are not judged again, but for the sample. Gives a list of what was said otherwise, which must stay empty."""
    made_from, cases = read()
    differing = list[str]()

    def recall(case: Case, folder: Path) -> list[Judged] | None:
        key = _key(case, folder)
        return None if key not in cases or sampled(key, made_from) else [_judged(one) for one in cases[key]]

    def note(case: Case, folder: Path, found: Sequence[Judged]) -> None:
        key = _key(case, folder)
        if key in cases and json.loads(json.dumps(as_json(found))) != cases[key]:
            differing.append(case.id)

    with remembering(recall, note):
        yield differing


@contextmanager
def keeping() -> Iterator[None]:
    """Within, everything is judged, and kept when it is over."""
    cases: dict[str, Any] = {}

    def note(case: Case, folder: Path, found: Sequence[Judged]) -> None:
        cases[_key(case, folder)] = as_json(found)

    with remembering(lambda case, folder: None, note):
        yield
    FILE.write_bytes(lzma.compress(json.dumps({"made_from": digest(), "cases": cases}, sort_keys=True).encode()))


def sampled(key: str, made_from: str) -> bool:
    """Whether a case is judged again although it is known: one in `SAMPLE`, others after every change."""
    return int(hashlib.sha256((key + made_from).encode()).hexdigest(), 16) % SAMPLE == 0


def _key(case: Case, folder: Path) -> str:
    return f"{folder.name}/{case.id}"


def _judged(one: dict[str, Any]) -> Judged:
    tuples = {name: tuple(one[name]) for name in ("from_start", "roots")}
    return Judged(**{**one, **tuples, "alarms": [Alarm(**alarm) for alarm in one["alarms"]]})
