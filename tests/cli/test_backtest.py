"""`rules backtest`: who fired where, with intervals, from logs, files of several runs, and labels."""

from __future__ import annotations

import json
import lzma
from pathlib import Path
from typing import Any

import pytest
from conftest import Run, rows, write

from trainvitals.cli.trials import Label, Outcome, Score, Trial, digest_of, label_of, tally

RULE = "advantage-collapse"
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Two healthy logs, two sick from step 60, one about which nothing is known."""
    folder = tmp_path / "runs"
    folder.mkdir()
    for name, bad_from in (("fine-1", 10_000), ("fine-2", 10_000), ("bad-1", 60), ("bad-2", 60), ("unknown", 60)):
        write(folder / f"{name}.jsonl", rows(bad_from=bad_from))
    return folder


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    """What is known about four of them, under every kind of name."""
    path = tmp_path / "labels.json"
    sick = {"roots": [RULE], "onset": 60}
    path.write_text(json.dumps({"fine-1": {"healthy": True}, "fine-2.jsonl": {"healthy": True}, "bad-1": sick, "bad-2": sick}))
    return path


def of(document: dict[str, Any], rule: str) -> dict[str, Any]:
    found: dict[str, Any] = next(one for one in document["rules"] if one["rule"] == rule)
    return found


def test_counts_per_label(run: Run, runs: Path, labels: Path) -> None:
    done = run("rules", "backtest", "--runs", runs, "--labels", labels, "-f", "json")
    assert done.code == 0
    document = json.loads(done.out)
    assert {key: document["summary"][key] for key in ("runs", "healthy", "sick", "unlabelled", "steps")} == {
        "runs": 5, "healthy": 2, "sick": 2, "unlabelled": 1, "steps": 700,
    }  # fmt: skip
    one = of(document, RULE)
    assert (one["healthy"]["runs"], one["healthy"]["fired"], one["healthy"]["steps"]) == (2, 0, 280)
    assert one["healthy"]["per_1000_steps"] == {"value": 0.0, "low": 0.0, "high": pytest.approx(3.689 / 0.28, abs=0.01)}
    assert (one["own_fault"]["runs"], one["own_fault"]["found"]) == (2, 2)
    assert one["own_fault"]["share"]["low"] == pytest.approx(0.3424, abs=1e-4)
    assert one["unlabelled"] == {"runs": 1, "fired": 1}
    assert len(one["first_steps"]) == 3
    assert one["own_fault"]["delays"] == [step - 60 for step in one["first_steps"][:2]]
    other = of(document, "reward-collapse")
    assert other["own_fault"]["runs"] == 0
    assert (other["other_sick"]["runs"], other["unlabelled"]["runs"]) == (2, 1)
    assert document["summary"]["root_found"]["runs"] == 2
    assert document["summary"]["healthy_with_any"]["runs"] == 0


def test_the_text_says_the_same(run: Run, runs: Path, labels: Path) -> None:
    done = run("rules", "backtest", "--runs", runs, "--labels", labels)
    assert done.out.startswith("5 runs: 2 healthy, 2 sick, 1 without a label; 700 updates; ")
    line = next(line for line in done.out.splitlines() if line.startswith(RULE))
    assert "0 of 2 [0% to 66%]" in line
    assert "2 of 2 [34% to 100%]" in line
    assert "more rules never fired" in done.out
    assert max(map(len, done.out.splitlines())) < 180


def test_without_labels_it_counts(run: Run, runs: Path) -> None:
    done = run("rules", "backtest", RULE, "--runs", runs)
    assert done.code == 0
    assert done.out.startswith("5 runs; 700 updates")
    assert [line.split()[0] for line in done.out.splitlines()[2:]] == ["rule", RULE]
    assert "3 of 5" in done.out


def test_a_rule_that_is_asked_for_is_shown_even_when_it_never_fired(run: Run, runs: Path) -> None:
    assert "hidden-nan  0 of 5" in run("rules", "backtest", "NUM001", "--runs", runs).out


def test_same_input_same_bytes_whatever_the_order(run: Run, runs: Path, labels: Path) -> None:
    once = run("rules", "backtest", "--runs", runs, "--labels", labels, "-f", "json").out
    assert run("rules", "backtest", "--runs", runs, "--labels", labels, "-f", "json").out == once
    turned = json.loads(run("rules", "backtest", "--runs", *sorted(runs.iterdir(), reverse=True), "--labels", labels, "-f", "json").out)
    assert turned["runs_digest"] == json.loads(once)["runs_digest"]
    assert turned["summary"] == json.loads(once)["summary"]


def test_several_runs_of_a_packed_file(run: Run, tmp_path: Path) -> None:
    text = ""
    for name, value in (("a-s0", 0.3), ("a-s1", 0.001)):
        head = {"schema": "trainvitals/1.0", "run": name}
        text += json.dumps({**head, "kind": "run_start", "trainer": "grpo", "framework": "trl", "version": "0"}) + "\n"
        for step in range(1, 101):
            low = step > 40 and value < 0.01
            values = {"reward.mean": 0.05 if low else 0.6, "reward.group_std_mean": value if low else 0.3, "reward.group_zero_std_fraction": 0.98 if low else 0.1}
            text += json.dumps({**head, "kind": "signal", "step": step, "values": values}) + "\n"
    path = tmp_path / "a.jsonl.xz"
    path.write_bytes(lzma.compress(text.encode()))
    labels = tmp_path / "labels.json"
    labels.write_text(json.dumps({"a-s0": {"healthy": True}, "a-s1": {"roots": [RULE], "onset": 41}}))
    document = json.loads(run("rules", "backtest", RULE, "--runs", path, "--labels", labels, "-f", "json").out)
    assert [(one["run"], bool(one["fired"].get(RULE))) for one in document["runs"]] == [("a-s0", False), ("a-s1", True)]
    done = run("check", path)
    assert done.code == 2
    assert "holds 2 runs (a-s0, a-s1), one is expected" in done.err
    assert "rules backtest --runs" in done.err


def test_users_overrides_are_in_force(run: Run, runs: Path, tmp_path: Path) -> None:
    overrides = tmp_path / "trainvitals.yaml"
    overrides.write_text(f"rules:\n  - id: {RULE}\n    params: {{dead_share: 0.99, near_zero: 0.001}}\n    reason: a test\n")
    done = run("rules", "backtest", RULE, "--runs", runs, "--overrides", overrides)
    assert "0 of 5" in done.out
    assert "tuned: advantage-collapse: dead_share 0.9 -> 0.99, near_zero 0.02 -> 0.001 (a test;" in done.out


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("[]", "labels must be an object"),
        ("{", "no JSON"),
        ('{"fine-1": {}}', "expected an object"),
        ('{"fine-1": {"helthy": true}}', "did you mean 'healthy'?"),
        ('{"fine-1": {"healthy": 1}}', "'healthy' is true or false"),
        ('{"fine-1": {"roots": "x"}}', "'roots' a list"),
        ('{"fine-1": {"roots": ["x"], "onset": -1}}', "'onset' is a step"),
        ('{"fine-1": {"healthy": true, "onset": 4}}', "a healthy run has no roots"),
    ],
)
def test_labels_that_make_no_sense(run: Run, runs: Path, tmp_path: Path, text: str, word: str) -> None:
    path = tmp_path / "wrong.json"
    path.write_text(text)
    done = run("rules", "backtest", "--runs", runs, "--labels", path)
    assert (done.code, done.out) == (2, "")
    assert word in done.err


def test_what_cannot_be_read_and_who_is_not_known(run: Run, runs: Path, tmp_path: Path) -> None:
    assert run("rules", "backtest", "--runs", tmp_path / "no").code == 2
    assert "did you mean 'advantage-collapse'?" in run("rules", "backtest", "advantage-colapse", "--runs", runs).err
    (runs / "broken.jsonl").write_bytes(b"\x00\x01\x02" * 100)
    done = run("rules", "backtest", RULE, "--runs", runs)
    assert done.code == 0
    assert "left out:" in done.err
    assert done.out.startswith("5 runs;")
    labels = tmp_path / "labels.json"
    labels.write_text(json.dumps({"nobody": {"healthy": True}, "bad-1": {"roots": ["no-such-rule"]}}))
    err = run("rules", "backtest", RULE, "--runs", runs, "--labels", labels).err
    assert "labels without a run here (1): nobody" in err
    assert "rules that are not in force: no-such-rule" in err


# ---- counting ---------------------------------------------------------------------------------------------------------


def outcome(label: Label | None, *steps: int, decided: bool = True, hidden: bool = False) -> Outcome:
    trial = Trial("r", "r.jsonl", "", None, [], label)  # type: ignore[arg-type]
    return Outcome(trial, 100, frozenset({"x"} if decided else ()), {"x": list(steps)} if steps else {}, frozenset({"x"} if hidden else ()))


def score(*outcomes: Outcome) -> Score:
    return tally(outcomes, ["x"])[0]


def test_before_the_onset_a_firing_is_false() -> None:
    sick = Label(False, ("x",), 50)
    one = score(outcome(sick, 49))
    assert (one.own, one.found, one.early, one.true_runs) == (1, 0, 1, 0)
    one = score(outcome(sick, 50))
    assert (one.found, one.early, one.delays) == (1, 0, [0])
    one = score(outcome(sick, 30, 70))
    assert (one.found, one.early, one.delays) == (1, 1, [20])


def test_silence_where_it_was_blind_says_nothing_in_a_healthy_run_and_is_a_miss_in_a_sick_one() -> None:
    one = score(outcome(Label(True), decided=False), outcome(Label(False, ("x",), 5), decided=False), outcome(Label(False, ("y",)), decided=False))
    assert (one.healthy, one.healthy_steps, one.own, one.found, one.other) == (0, 0, 1, 0, 0)


def test_a_symptom_of_another_fault_is_no_false_alarm() -> None:
    one = score(outcome(Label(False, ("y",), 5), 9), outcome(Label(True), 9, 40), outcome(None, 9), outcome(Label(True), hidden=True))
    assert (one.after, one.false_runs, one.false_firings, one.fired_unlabelled, one.healthy, one.hidden) == (1, 1, 2, 1, 2, 1)


def test_labels_are_found_by_id_path_file_or_stem() -> None:
    label = Label(True)
    for key in ("case-s0", "runs/case.jsonl.xz", "case.jsonl.xz", "case"):
        assert label_of({key: label, "else": Label(False)}, "case-s0", "runs/case.jsonl.xz") == (key, label)
    assert label_of({"cas": label}, "case-s0", "runs/case.jsonl.xz") is None


def test_the_digest_knows_runs_not_files() -> None:
    first, second = Trial("a", "x", "1", None, []), Trial("b", "y", "2", None, [])  # type: ignore[arg-type]
    assert digest_of([first, second]) == digest_of([second, first]) != digest_of([first])


def test_a_rule_of_ones_own_can_be_named_and_one_that_is_off_is_told(run: Run, runs: Path, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    text = (ROOT / "rules/stable" / f"{RULE}.yaml").read_text().replace(f"id: {RULE}", "id: my-rule").replace("code: RWD001", "code: RWD999")
    (folder / "my-rule.yaml").write_text(text)
    assert run("rules", "backtest", "my-rule", "--runs", runs, "--rules", folder).code == 0
    overrides = tmp_path / "trainvitals.yaml"
    overrides.write_text(f"rules:\n  - id: {RULE}\n    disable: true\n    reason: a test\n")
    assert "is switched off: a test" in run("rules", "backtest", RULE, "--runs", runs, "--overrides", overrides).err
