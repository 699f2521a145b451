"""What a check of the benchmark page takes from the last `make clinic`, and when it does not."""

from __future__ import annotations

import json
import lzma

import pytest
from tests.clinic.ward import kept, score
from tests.clinic.ward.cases import by_id
from tests.clinic.ward.score import judge_all

CASE = by_id("sft-rate-zero")


@pytest.fixture
def before(tmp_path, monkeypatch):
    """Results of one case, kept under a digest of our own."""
    monkeypatch.setattr(kept, "FILE", tmp_path / "judged.json.xz")
    monkeypatch.setattr(kept, "digest", lambda: "one")
    with kept.keeping():
        return judge_all([CASE])


def forbidden(*args: object) -> None:
    raise AssertionError("judged although it is known")


def test_what_is_known_is_not_judged_again(before, monkeypatch):
    monkeypatch.setattr(kept, "SAMPLE", 10**80)
    monkeypatch.setattr(score, "judge", forbidden)
    with kept.known() as differing:
        assert judge_all([CASE]) == before
    assert differing == []
    assert len(before) == len(CASE.seeds)


def test_nothing_is_known_after_a_change(before, monkeypatch):
    monkeypatch.setattr(kept, "SAMPLE", 10**80)
    monkeypatch.setattr(kept, "digest", lambda: "two")
    monkeypatch.setattr(score, "judge", forbidden)
    with kept.known(), pytest.raises(AssertionError, match="although it is known"):
        judge_all([CASE])


def test_the_sample_is_judged_again_and_another_result_is_told(before, monkeypatch):
    monkeypatch.setattr(kept, "SAMPLE", 1)
    with kept.known() as differing:
        assert judge_all([CASE]) == before
    assert differing == []
    loaded = json.loads(lzma.decompress(kept.FILE.read_bytes()))
    loaded["cases"]["recordings/sft-rate-zero"][0]["states"].append("improving")
    kept.FILE.write_bytes(lzma.compress(json.dumps(loaded).encode()))
    with kept.known() as differing:
        assert judge_all([CASE]) == before
    assert differing == ["sft-rate-zero"]


def test_one_case_in_twelve_is_looked_at_and_others_after_a_change():
    names = [f"recordings/{number}" for number in range(2000)]
    first, second = ({name for name in names if kept.sampled(name, made_from)} for made_from in ("one", "two"))
    assert 120 < len(first) < 220
    assert first != second


def test_the_digest_is_of_all_that_decides(tmp_path, monkeypatch):
    monkeypatch.setattr(kept, "REPO", tmp_path)
    paths = ["src/trainvitals/engine.py", "src/trainvitals/rulelang/expr.py", "rules/stable/a.yaml", "tests/clinic/ward/score.py", "tests/clinic/ward/recordings_2/a.jsonl.xz"]
    seen = {kept.digest()}
    for path in paths:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text("1")
        seen.add(kept.digest())
        (tmp_path / path).write_text("2")
        seen.add(kept.digest())
    assert len(seen) == 1 + 2 * len(paths)
    (tmp_path / "rules/stable/a.test.yaml").write_text("1")
    assert kept.digest() in seen
