"""The clinic's own instruments: a score that cannot be wrong unseen, and recordings that are whole."""

from __future__ import annotations

import ast
import functools
import json
import math
from dataclasses import replace

import pytest
from tests.clinic.ward import __main__ as commands
from tests.clinic.ward import effect, fresh, goals, intervals, report, rounds
from tests.clinic.ward.case import HEALTHY_STATES, Case
from tests.clinic.ward.cases import BY_ROUND, CASES, by_id
from tests.clinic.ward.onset import Twins, series, visible
from tests.clinic.ward.record import first_recorded, load, record_all, save, thin
from tests.clinic.ward.score import Alarm, Judged, judge, ranked, set_aside, split_of
from tests.clinic.ward.tally import Share, first_scored, per_rule, tally

from trainvitals.rulelang.loader import load_rules

SICK = [case for case in CASES if case.sick]


def _case(**changes: object) -> Case:
    base = Case("x-fault", "grpo", "A fault.", lambda *_, **__: None, 100, onset=50, roots=("a",), categories=("collapse",), verdicts=("collapsed",))
    return replace(base, **changes)  # type: ignore[arg-type]


def _judged(*alarms: tuple[int, str], sick: bool = True, states: tuple[str, ...] = ("collapsed",), seen: int | None = 55) -> Judged:
    said = [Alarm(step, rule, "warning", "collapse", f"{rule}.1") for step, rule in alarms]
    run = Judged("x-fault" if sick else "x-twin", "grpo", 0, "dev", sick, False, 100, 50 if sick else 0, visible=seen if sick else None, alarms=said, states=list(states))
    run.causes = ranked(run.after or run.alarms)
    return run


# -- numbers -----------------------------------------------------------------------------------------------------------


def test_intervals_agree_with_published_values() -> None:
    assert intervals.share(81, 263) == pytest.approx((0.2553, 0.3662), abs=2e-4)  # Newcombe 1998, table I, method 3
    assert intervals.share(0, 20) == pytest.approx((0.0, 0.1611), abs=2e-4)  # the same table
    assert intervals.rate(0, 1.0) == pytest.approx((0.0, 3.689), abs=2e-3)  # Garwood 1936
    assert intervals.rate(10, 1.0) == pytest.approx((4.795, 18.390), abs=2e-3)
    assert intervals.share(0, 0) == (0.0, 1.0)
    assert intervals.median([]) is None


def _records(values: list[float | None], name: str = "reward.mean") -> list[dict[str, object]]:
    return [
        {"kind": "signal", "step": step, "values": {name: {"value": None, "nonfinite": "nan"} if value is None else value}} for step, value in enumerate(values, 1)
    ]


def test_a_fault_is_visible_from_its_first_of_three_far_samples() -> None:
    twins = Twins(series(_records([0.5 + 0.01 * ((step * 7 + run) % 5) for step in range(60)])) for run in range(5))
    healthy = [0.52] * 60
    lone = [*healthy[:30], 0.9, 0.9, *healthy[32:]]
    assert visible(series(_records(lone)), twins, 0) is None
    sick = [*healthy[:30], *[0.9] * 30]
    assert visible(series(_records(sick)), twins, 0) == (31, "reward.mean")
    assert visible(series(_records(sick)), twins, 40) == (41, "reward.mean")  # nothing before the injection counts
    assert visible(series(_records([*healthy[:20], None, *healthy[21:]])), twins, 0) == (21, "reward.mean")


def test_scores_of_hand_made_runs() -> None:
    cases = {"x-fault": _case(), "x-twin": _case(id="x-twin", roots=(), onset=0, verdicts=HEALTHY_STATES)}
    runs = [
        _judged((60, "a"), (61, "b")),  # found, named, first
        _judged((58, "b"), (70, "a")),  # found, named, not first
        _judged(states=("steady",)),  # missed
        _judged((40, "b"), (65, "a")),  # a false alarm before the fault, then right
        _judged(sick=False, states=("improving",)),
        _judged((10, "b"), sick=False, states=("collapsed",)),
    ]
    scores = tally(runs, cases)
    assert (scores.detected.hits, scores.detected.of) == (3, 4)
    assert scores.delays == (3, 5, 10)
    assert (scores.first.hits, scores.three.hits) == (2, 3)
    assert (scores.false_rate.events, scores.false_rate.updates) == (2, 4 * 50 + 2 * 100)
    assert (scores.false_runs.hits, scores.false_runs.of) == (1, 2)
    assert (scores.sick_verdict.hits, scores.healthy_verdict.hits) == (3, 1)
    by_rule = {entry.rule: entry for entry in per_rule(runs, cases)}
    assert (by_rule["a"].due, by_rule["a"].hit, by_rule["a"].false) == (4, 3, 0)
    assert (by_rule["b"].other, by_rule["b"].false) == (2, 2)


def test_what_is_true_of_the_data_from_the_start_is_no_false_alarm_before_its_effect() -> None:
    """The file is sorted at update 1; what is sorted to its end works from update 51 on."""
    run = _judged((1, "b"), (2, "c"), (60, "a"))
    assert [alarm.rule for alarm in run.false] == ["b", "c"]
    true = replace(run, from_start=("b",), roots=("a",))
    assert [alarm.rule for alarm in true.false] == ["c"], "another rule before the effect stays false"
    assert [alarm.rule for alarm in true.after] == ["a"], "what is true and not the cause has detected nothing"
    cause = replace(run, from_start=("b",), roots=("a", "b"))
    assert [alarm.rule for alarm in cause.after] == ["b", "a"]
    assert cause.delay == 1 - 55


def test_a_root_that_spoke_later_stands_before_its_symptom() -> None:
    alarms = [Alarm(10, "symptom", "warning", "collapse", "i1"), Alarm(12, "other", "warning", "data", "i2"), Alarm(14, "cause", "error", "numerics", "i1", "root")]
    assert ranked(alarms) == ["cause", "symptom", "other"]


# -- recordings --------------------------------------------------------------------------------------------------------


def test_a_recording_survives_the_disk_and_holds_nothing_of_the_machine(tmp_path) -> None:  # type: ignore[no-untyped-def]
    line = {
        "schema": "trainvitals/1.0", "seq": 3, "ts": "2026-01-01T00:00:00Z", "run": "somebody", "rank": 0, "step": 4, "kind": "signal", "time": 1.7e9,
        "values": {"optim.loss": 0.123456789, "time.step_seconds": 0.3, "reward.mean": {"value": None, "nonfinite": "nan"}},
    }  # fmt: skip
    kept = thin(line, _case(), 4)
    assert kept == {
        "schema": "trainvitals/1.0", "run": "x-fault-s4", "step": 4, "kind": "signal", "values": {"optim.loss": 0.123457, "reward.mean": {"value": None, "nonfinite": "nan"}},
    }  # fmt: skip
    start = {"kind": "run_start", "run": "x-fault-s4", "trainer": "grpo"}
    save("x-fault", {4: [start, kept], 1: [{**start, "run": "x-fault-s1"}]}, tmp_path)
    first = (tmp_path / "x-fault.jsonl.xz").read_bytes()
    assert load("x-fault", tmp_path) == {1: [{**start, "run": "x-fault-s1"}], 4: [start, kept]}
    save("x-fault", load("x-fault", tmp_path), tmp_path)
    assert (tmp_path / "x-fault.jsonl.xz").read_bytes() == first
    assert load("unknown", tmp_path) == {}


@functools.cache
def recorded(case_id: str) -> tuple[int, frozenset[str]]:
    """Runs of a case as it was recorded first, and the signals of one of them. Many faults share a twin, and reading one takes half a second."""
    runs = first_recorded(case_id)
    return len(runs), frozenset(name for record in next(iter(runs.values()), []) for name in record.get("values", {}))


@functools.cache
def ids() -> frozenset[str]:
    """Ids of the built-in rules, once for the several hundred cases."""
    return frozenset(rule.id for rule in load_rules().rules)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_a_case_is_whole(case: Case) -> None:
    runs = load(case.id)
    assert set(case.seeds) <= set(runs), f"record it: python -m tests.clinic.ward record {case.id}"
    assert set(case.roots) <= ids()
    if case.sick:
        assert not by_id(case.twin).sick
        assert case.categories
        assert 0 <= case.onset < case.steps
        assert case.goal.lstrip("-") in recorded(case.twin)[1]
    for records in runs.values():
        assert records[0]["kind"] == "run_start"
        assert records[-1]["kind"] == "run_end"
        assert not any("ts" in record or "/" in json.dumps(record.get("config", {})) for record in records[:1])


def test_a_case_of_another_trl_is_left_out_in_words(tmp_path, capsys) -> None:  # type: ignore[no-untyped-def]
    assert record_all([_case(needs_trl="0.1")], jobs=1, folder=tmp_path) == 0
    assert "skipped: x-fault is recorded with TRL 0.1, this is 1." in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_the_set_aside_half_is_a_half() -> None:
    aside = set(set_aside()["faults"])
    assert aside <= {case.id for case in SICK}
    for trainer in {case.trainer for case in SICK}:
        of_it = [case.id for case in SICK if case.trainer == trainer]
        assert abs(len(aside & set(of_it)) - len(of_it) / 2) <= 1
    assert split_of(SICK[0], set_aside()["seeds"][0]) != "dev"


# -- the later rounds: nothing here judges their recordings, to do so is to look ------------------------------------------


@pytest.mark.parametrize(("which", "case"), [(which, case) for which in rounds.ROUNDS.values() for case in which.cases], ids=lambda one: getattr(one, "id", ""))
def test_a_case_of_a_later_round_is_whole(which: rounds.Round, case: Case) -> None:
    runs = load(case.id, which.folder)
    assert set(runs) == set(case.seeds), f"record it: python -m tests.clinic.ward record --round-{which.word} {case.id}"
    assert all(root in ids() or root.startswith(report.NO_RULE) for root in case.roots)
    if case.sick:
        assert not by_id(case.twin).sick
        assert case.categories
        assert 0 <= case.onset < case.steps
        count, signals = recorded(case.twin)
        assert count >= 5
        assert case.goal.lstrip("-") in signals
    for records in runs.values():
        assert records[0]["kind"] == "run_start"
        assert records[-1]["kind"] == "run_end"
        assert not any("ts" in record or "/" in json.dumps(record.get("config", {})) for record in records[:1])


@pytest.mark.parametrize("which", [*rounds.ROUNDS.values()], ids=lambda which: which.word)
def test_a_later_round_is_judged_only_by_its_name(which: rounds.Round, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    def looked(*_: object) -> list[Judged]:
        raise AssertionError("looked")

    monkeypatch.setattr(rounds, "judge_all", looked)
    monkeypatch.setattr(commands, "judge_all", lambda cases: [])
    assert commands.main(["score"]) == 0
    assert commands.main(["score", "--split", "all", which.cases[0].id]) == 0
    with pytest.raises(AssertionError, match="looked"):
        commands.main(["score", "--split", f"round-{which.word}"])


def test_a_later_round_is_recorded_into_its_own_folder(monkeypatch) -> None:  # type: ignore[no-untyped-def]
    asked: list[tuple[str, tuple[int, ...], str]] = []

    def recorded(cases, *, jobs, again, folder, seeds):  # type: ignore[no-untyped-def]
        asked.extend((case.id, seeds(case), folder.name) for case in cases)
        return 0

    monkeypatch.setattr(rounds, "record_all", recorded)
    assert commands.main(["record", "--round-three", "sft-moe-twin", "orpo-twin"]) == 0
    assert asked == [("sft-moe-twin", by_id("sft-moe-twin").seeds, "recordings_3"), ("orpo-twin", (7, 8), "recordings_3")]
    asked.clear()
    assert commands.main(["record", "--round-three"]) == 0
    assert [case_id for case_id, _, _ in asked] == [case.id for case in BY_ROUND["three"]]


def test_the_effect_is_shown_beside_the_twins_that_were_recorded_first() -> None:
    of_two = by_id("orpo-labels-swapped")
    assert [records[0]["run"] for records in effect.twins_of(of_two)] == [f"orpo-twin-s{seed}" for seed in range(5)]
    assert effect.twins_of(by_id("orpo-twin")) == []


def _stand_ins(which: rounds.Round = rounds.ALL[0]) -> list[Judged]:
    """Two runs of the development half under a later round's name: its own must not be judged by a test."""
    sick, twin = by_id("sft-rate-jump"), by_id("sft-twin")
    found = [judge(load(case.id)[0], case, 0, load_rules()) for case in (sick, twin)]
    assert {run.split for run in found} == {"dev"}
    return [replace(run, split=which.parts[0]) for run in found]


@pytest.mark.parametrize("which", [*rounds.ROUNDS.values()], ids=lambda which: which.word)
def test_the_first_look_ends_with_what_why_keeps(which: rounds.Round, monkeypatch, capsys) -> None:  # type: ignore[no-untyped-def]
    runs = _stand_ins(which)
    monkeypatch.setattr(rounds, "judge_all", lambda asked, cases: runs if asked is which else [])
    assert commands.main(["score", "--split", f"round-{which.word}"]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    name, _, value = last.partition(" = ")
    assert name == f"FIRST_SCORED_{which.number}"
    assert ast.literal_eval(value) == first_scored(tally(runs, {case.id: case for case in CASES}))


def test_a_page_is_judged_by_the_newest_round_that_was_scored(monkeypatch) -> None:  # type: ignore[no-untyped-def]
    runs = _stand_ins()
    kept = first_scored(tally(runs, {case.id: case for case in CASES}))
    monkeypatch.setattr(report, "judge_all", lambda cases: [replace(run, split="dev") for run in runs])
    monkeypatch.setattr(rounds, "judge_all", lambda which: [replace(run, split=which.parts[0]) for run in runs])
    monkeypatch.setattr(report.peer_scores, "section", lambda found, cases: "")
    monkeypatch.setattr(report.peer_scores, "unseen", lambda found, first, cases: "")
    monkeypatch.setattr(report.fresh, "section", lambda: "")  # it judges two hundred recordings
    words = [which.word for which in rounds.ROUNDS.values()]
    assert [*reversed(words)] == [*report.LATER], "the newest first, and none forgotten"
    for scored in range(len(words) + 1):
        looked, waits = words[:scored], words[scored:]
        monkeypatch.setattr(report, "LATER", {word: kept if word in looked else None for word in reversed(words)})
        page = report.build()
        names = [*(f"round {word}" for word in reversed(looked)), "set aside"]
        assert f"| score | goal | {names[0]}, as first scored | met | {names[0]}, today |" in page
        assert [line.split(" | ")[0] for line in page.splitlines() if " | first | " in line] == [f"| **{name}**" for name in names]
        assert [word for word in reversed(words) if f"| round {word}: new case | " in page] == [*reversed(looked)]
        assert sorted(page.index(f"## {which.title}") for which in rounds.ROUNDS.values() if which.word in looked) == [page.index(f"## {rounds.ROUNDS[f'round-{word}'].title}") for word in reversed(looked)]
        assert not any(f"**round {word}**" in page or f"round {word}: new" in page for word in waits)
        assert report.judges([rounds.ROUNDS[f"round-{word}"] for word in reversed(looked)]) in page


def test_which_runs_count_is_said_in_words() -> None:
    two, three, four = rounds.ALL[:3]
    assert report.judges([]) == "only they count for the goals"
    assert report.judges([two]) == "the goals were judged by them until a second round of faults was scored (docs/decisions/0009), which counts now"
    assert report.judges([four, three, two]) == (
        "the goals were judged by them until a second, a third, then a fourth round of faults were scored (docs/decisions/0009, 0011 and 0012), the last of which counts now"
    )


def test_goals_are_judged_by_the_first_look_at_the_first_column() -> None:
    cases = {"x-fault": _case(), "x-twin": _case(id="x-twin", roots=(), onset=0, verdicts=HEALTHY_STATES)}
    good = tally([_judged((60, "a")), _judged(sick=False, states=("steady",))], cases)
    bad = tally([_judged(states=("steady",)), _judged((10, "b"), sick=False)], cases)
    assert first_scored(good) == {"detected": (1, 1), "first": (1, 1), "verdict": (2, 2), "warned": (0, 1), "false": (0, 150), "delay": 5}
    one = goals.judged(("set aside", first_scored(good), bad), None, None).splitlines()
    assert one[2] == "| score | goal | set aside, as first scored | met | set aside, today |"
    assert one[4].startswith("| detected | at least 95 % | 100% (1/1; 21% to 100%) | yes | 0% (0/1;")
    assert goals.judged(("set aside", first_scored(bad), good), Share(6, 10), 0.31).splitlines()[4:] == [
        "| detected | at least 95 % | 0% (0/1; 0% to 79%) | **no** | 100% (1/1; 21% to 100%) |",
        *goals.judged(("set aside", first_scored(bad), good), None, None).splitlines()[5:10],
        "| cured by the first suggestion, of the curable, unseen seeds | at least 70 % | 60% (6/10; 31% to 83%) | **no** |  |",
        "| ... above the random arm | at least 30 points | +31 points | yes |  |",
    ]


def test_each_round_is_told_twice_as_it_was_and_as_it_is() -> None:
    cases = {"x-fault": _case(), "x-twin": _case(id="x-twin", roots=(), onset=0, verdicts=HEALTHY_STATES)}
    good = tally([_judged((60, "a")), _judged(sick=False, states=("steady",))], cases)
    bad = tally([_judged(states=("steady",)), _judged((10, "b"), sick=False)], cases)
    lines = goals.round_by_round([("round two", first_scored(bad), good), ("development half", None, good)]).splitlines()[4:]
    assert [line.split(" | ")[:3] for line in lines] == [
        ["| **round two**", "first", "0% (0/1; 0% to 79%)"], ["| ", "today", "100% (1/1; 21% to 100%)"], ["| **development half**", "today", "100% (1/1; 21% to 100%)"],
    ]  # fmt: skip
    assert len({line.count(" | ") for line in lines}) == 1


@pytest.mark.parametrize("which", [*rounds.ROUNDS.values()], ids=lambda which: which.word)
def test_the_part_on_a_later_round_names_what_has_no_rule(which: rounds.Round) -> None:
    cases = {"x-fault": _case(), "y-fault": _case(id="y-fault", roots=("no-rule:x",)), "x-twin": _case(id="x-twin", roots=(), onset=0)}
    runs = [_judged((60, "a")), replace(_judged((60, "b")), case="y-fault"), replace(_judged(sick=False, states=("steady",)), case="x-twin")]
    text = report.of_round(which, [replace(run, split=which.parts[0]) for run in runs], cases)
    assert text.startswith(f"## {which.title}\n")
    assert "Of 2 new faults 1 have a cause that no rule's title says" in text
    assert "| x-fault | A fault. | 50 | 1/1 | 5.0 | 1/1 | a | collapsed (1/1) |" in text
    assert "| x-twin | A fault. | healthy | 0/1 warned |" in text
    assert report.of_round(which, [], cases) == ""


def test_judging_a_recording_is_deterministic() -> None:
    case = SICK[0]
    records = load(case.id)[0]
    rules = load_rules()
    assert judge(records, case, 0, rules) == judge(records, case, 0, rules)


def test_onset_scale_never_vanishes() -> None:
    twins = Twins(series(_records([1.0] * 30)) for _ in range(5))
    away = twins.distance("reward.mean", 10, 1.1)
    assert away is not None
    assert math.isfinite(away)
    assert twins.distance("nothing", 10, 1.1) is None


def test_every_older_case_was_trained_anew() -> None:
    """What was never recorded with today's signals can show neither a false alarm of a new rule nor that it hears."""
    kept = {path.name.removesuffix(".jsonl.xz") for path in fresh.FRESH.glob("*.jsonl.xz")}
    assert kept == {case.id for case in fresh.OLDER}
    assert not any(fresh.SEED in case.seeds for case in fresh.OLDER)
    grouped = [case.id for group in fresh.groups().values() for case in group]
    assert sorted(grouped) == sorted(case.id for case in fresh.OLDER if case.sick), "each fault in one group"
