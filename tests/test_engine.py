"""The engine: states, causes, boundaries, blindness, errors, and that nothing depends on when or how it was run."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainvitals.engine import Engine
from trainvitals.events import labelled
from trainvitals.findings import RECORD, Finding, Verdict
from trainvitals.items import Applied, Boundary, Frame, Item, RunEnd, RunStart, Tick
from trainvitals.rule_state import Life
from trainvitals.rulelang.loader import RuleSet, load_rules
from trainvitals.speaker import Output

KL = """
id: {id}
code: KL{number:03d}
version: 1.0.0
title: KL is high
category: {category}
severity: {severity}
applies_to: {{trainers: any}}
params:
  limit: {{default: 1, unit: nats, range: [0, 10], why: test}}
when: {signal} > limit
message: "KL is {{{signal}:num}}."
docs: {{explain: test, look_first: test}}
"""


def rule(tmp: Path, rule_id: str, number: int = 1, signal: str = "policy.kl_ref", extra: str = "", severity: str = "warning", category: str = "numerics") -> Path:
    text = KL.format(id=rule_id, number=number, signal=signal, severity=severity, category=category) + extra
    path = tmp / f"{rule_id}.yaml"
    path.write_text(text)
    return path


def load(*paths: Path) -> RuleSet:
    return load_rules(paths)


def frames(values: Iterable[float | None], signal: str = "policy.kl_ref", first: int = 1) -> list[Item]:
    return [Frame(step, {} if value is None else {signal: value}, time=1000.0 + step) for step, value in enumerate(values, first)]


def drive(engine: Engine, items: Iterable[Item]) -> list[Output]:
    return [record for item in items for record in engine.observe(item)]


def findings(records: Sequence[Any]) -> list[tuple[int | None, str, str]]:
    return [(one.step, one.rule.id, one.state) for one in records if isinstance(one, Finding)]


def test_opens_after_enough_hits_and_closes_after_enough_misses(tmp_path: Path) -> None:
    rules = load(rule(tmp_path, "kl-high", extra="sustain: {hits: 2, of: 3}\n"))
    records = drive(Engine(rules), frames([0, 2, 0, 2, 2, 0, 2, 0, 0, 0, 0]))
    assert findings(records) == [(4, "kl-high", "firing"), (10, "kl-high", "resolved")]
    opened = records[1] if isinstance(records[1], Finding) else next(one for one in records if isinstance(one, Finding))
    assert (opened.onset_step, opened.first_step, opened.count) == (2, 4, 1)
    assert opened.message == "KL is 2."
    assert opened.ts == "1970-01-01T00:16:44.000000Z"


def test_states_follow_the_life_cycle(tmp_path: Path) -> None:
    rules = load(rule(tmp_path, "kl-high", extra="warmup: {updates: 2}\nsustain: {hits: 2, of: 2}\n"))
    engine, states = Engine(rules), []
    for frame in frames([2, 2, 0, 2, 2, 0, 0]):
        engine.observe(frame)
        states.append(engine.states("kl-high")[""])
    assert states == ["warming", "warming", "ok", "pending", "firing", "clearing", "ok"]


def test_unknown_neither_fires_nor_clears(tmp_path: Path) -> None:
    rules = load(rule(tmp_path, "kl-high", extra="sustain: {hits: 3, of: 3}\n"))
    engine = Engine(rules)
    records = drive(engine, frames([1, 2, 2] + [None] * 30 + [2]))
    assert [state for _, _, state in findings(records)] == ["firing"]
    records = drive(engine, frames([None] * 30, first=35))
    assert findings(records) == []
    assert engine.states("kl-high") == {"": "firing"}
    assert engine.data_of("kl-high") == "stale"


def test_a_known_end_closes_although_the_condition_is_unknown(tmp_path: Path) -> None:
    extra = "clear: policy.entropy > 1\n"
    rules = load(rule(tmp_path, "kl-high", extra=extra))
    engine = Engine(rules)
    items: list[Item] = [Frame(1, {"policy.kl_ref": 2.0, "policy.entropy": 0.5}), Frame(2, {"policy.kl_ref": 2.0, "policy.entropy": 0.5})]
    items += [Frame(step, {"policy.entropy": 0.5 if step < 15 else 2.0}) for step in range(3, 25)]
    records = drive(engine, items)
    assert [state for _, _, state in findings(records)] == ["firing", "resolved"]


def test_an_exception_never_adds_a_firing_and_an_unknown_one_excuses_nothing(tmp_path: Path) -> None:
    extra = "unless:\n  saving: updates_since(save_begin) < 3\n"
    rules = load(rule(tmp_path, "kl-high", extra=extra))
    assert findings(drive(Engine(rules), frames([0, 2]))) == [(2, "kl-high", "firing")]
    items = [*frames([0]), Boundary(1, "save_begin"), *frames([2, 2, 2], first=2)]
    assert findings(drive(Engine(rules), items)) == [(4, "kl-high", "firing")]


def test_evaluates_once_per_update_when_frames_come_in_parts(tmp_path: Path) -> None:
    rules = load(rule(tmp_path, "kl-high", extra="sustain: {hits: 2, of: 2}\n"))
    items: list[Item] = [
        Frame(1, {"policy.kl_ref": 2.0}, closes=False), Frame(1, {"policy.entropy": 1.0}, closes=False),
        Frame(2, {"policy.kl_ref": 2.0}, closes=False), Frame(3, {"policy.kl_ref": 2.0}),
    ]  # fmt: skip
    assert findings(drive(Engine(rules), items)) == [(2, "kl-high", "firing")]


def test_a_second_attempt_in_the_same_stream_is_not_late(tmp_path: Path) -> None:
    engine = Engine(load(rule(tmp_path, "kl-high")))
    first = [RunStart("r"), *frames([0] * 20), RunEnd(20, "killed")]
    second = [RunStart("r"), Boundary(10, "resume"), *frames([0, 2, 0], first=11), RunEnd(13)]
    records = drive(engine, [*first, *second])
    assert findings(records) == [(12, "kl-high", "firing"), (13, "kl-high", "resolved")]
    assert [one.final for one in records if isinstance(one, Verdict)].count(True) == 2
    assert engine.late == 0


def test_late_frames_are_counted_and_decide_nothing(tmp_path: Path) -> None:
    engine = Engine(load(rule(tmp_path, "kl-high")))
    records = drive(engine, [*frames([0, 0, 0]), Frame(2, {"policy.kl_ref": 5.0}), *frames([0], first=4)])
    assert findings(records) == []
    assert engine.coverage().late_events == 1


def test_values_of_an_evaluation_after_the_last_update_are_seen_at_the_end(tmp_path: Path) -> None:
    text = KL.format(id="eval-high", number=1, signal="eval.loss", severity="warning", category="numerics").replace("unit: nats", "unit: loss")
    path = tmp_path / "eval-high.yaml"
    path.write_text(text)
    engine = Engine(load(path))
    items: list[Item] = [Frame(1, {"optim.loss": 1.0}), Frame(1, {"eval.loss": 3.0}, closes=False, phase="eval"), RunEnd(1)]
    assert findings(drive(engine, items)) == [(1, "eval-high", "firing")]


def test_cause_hides_effect_until_it_clears_and_both_are_closed(tmp_path: Path) -> None:
    cause = rule(tmp_path, "cause", 1, "policy.kl_ref")
    effect = rule(tmp_path, "effect", 2, "policy.kl_old", "caused_by: [cause]\n")
    both = [(2, 2), (2, 2), (0, 2), (0, 0)]
    items: list[Item] = [Frame(step, {"policy.kl_ref": a, "policy.kl_old": b}) for step, (a, b) in enumerate([(0, 0), *both], 1)]
    records = drive(Engine(load(cause, effect)), items)
    assert findings(records) == [
        (2, "cause", "firing"), (2, "effect", "suppressed"), (4, "cause", "resolved"), (4, "effect", "firing"), (5, "effect", "resolved"),
    ]  # fmt: skip
    hidden = next(one for one in records if isinstance(one, Finding) and one.state == "suppressed")
    root = next(one for one in records if isinstance(one, Finding) and one.rule.id == "cause")
    assert hidden.suppressed_by == "cause"
    assert hidden.role == "symptom"
    assert hidden.incident_id == root.finding_id
    outlives = next(one for one in records if isinstance(one, Finding) and one.rule.id == "effect" and one.state == "firing")
    assert (outlives.role, outlives.incident_id) == ("symptom", root.finding_id)  # it outlives its cause and does not become one


def test_an_error_does_not_stay_hidden_behind_a_warning_and_speaks_once_per_incident(tmp_path: Path) -> None:
    cause = rule(tmp_path, "cause", 1, "policy.kl_ref")
    broken = rule(tmp_path, "broken", 2, "policy.kl_old", "caused_by: [cause]\n", severity="error")
    too = rule(tmp_path, "broken-too", 3, "policy.entropy", "caused_by: [cause]\n", severity="error")
    rows = [(0, 0, 0), (2, 0, 0), (2, 2, 0), (2, 2, 2), (2, 0, 2), (0, 0, 0)]
    items: list[Item] = [
        Frame(step, {"policy.kl_ref": a, "policy.kl_old": b, "policy.entropy": c}) for step, (a, b, c) in enumerate(rows, 1)
    ]
    records = drive(Engine(load(cause, broken, too)), items)
    assert findings(records) == [
        (2, "cause", "firing"), (3, "broken", "firing"), (4, "broken-too", "suppressed"), (5, "broken", "resolved"), (5, "broken-too", "firing"),
        (6, "cause", "resolved"), (6, "broken-too", "resolved"),
    ]  # fmt: skip
    root, told = (next(one for one in records if isinstance(one, Finding) and one.rule.id == name) for name in ("cause", "broken"))
    assert told.message.startswith("Now an error, after cause: ")
    assert (told.severity, told.role, told.incident_id, told.suppressed_by) == ("error", "symptom", root.finding_id, None)
    verdict = next(one for one in records if isinstance(one, Verdict) and one.step == 3)
    assert (verdict.decision, verdict.rule, verdict.reason) == ("stop", "cause", told.message)  # what to act on, and how soon


def test_hold_waits_for_a_pending_cause_and_remembers_a_gone_one(tmp_path: Path) -> None:
    cause = rule(tmp_path, "cause", 1, "policy.kl_ref", "sustain: {hits: 2, of: 2}\n")
    effect = rule(tmp_path, "effect", 2, "policy.kl_old", "caused_by: [cause]\nhold: {updates: 3}\n")
    rules = load(cause, effect)
    items: list[Item] = [Frame(step, {"policy.kl_ref": a, "policy.kl_old": b}) for step, (a, b) in enumerate([(0, 0), (2, 2), (2, 2)], 1)]
    assert findings(drive(Engine(rules), items)) == [(3, "cause", "firing"), (3, "effect", "suppressed")]
    never = [Frame(step, {"policy.kl_ref": a, "policy.kl_old": 2.0}) for step, a in enumerate([2, 0, 0, 0, 0, 0], 1)]
    assert findings(drive(Engine(rules), never)) == [(3, "effect", "firing")]


def test_composite_takes_over_its_parts(tmp_path: Path) -> None:
    part = rule(tmp_path, "part", 1)
    whole = rule(tmp_path, "whole", 2, extra="absorbs: [part]\n")
    whole.write_text(whole.read_text().replace("when: policy.kl_ref > limit", "when: firing_for('part') >= 3 and policy.kl_ref > limit"))
    records = drive(Engine(load(part, whole)), frames([0, 2, 2, 2, 2, 2, 0]))
    assert findings(records) == [
        (2, "part", "firing"), (5, "whole", "firing"), (5, "part", "suppressed"), (7, "part", "resolved"), (7, "whole", "resolved"),
    ]  # fmt: skip


def test_flapping_is_said_once_and_then_silent_until_calm(tmp_path: Path) -> None:
    engine = Engine(load(rule(tmp_path, "kl-high")))
    records = drive(engine, frames([0, 2] * 12 + [0] * 30))
    states = [state for _, _, state in findings(records)]
    assert states == ["firing", "resolved", "firing", "resolved", "flapping", "resolved"]
    assert engine.states("kl-high") == {"": "ok"}


def test_repeat(tmp_path: Path) -> None:
    every = Engine(load(rule(tmp_path, "kl-high", extra="repeat: {updates: 5}\n")))
    records = drive(every, frames([2] * 12))
    assert [(one.step, one.count) for one in records if isinstance(one, Finding)] == [(1, 1), (6, 2), (11, 3)]
    never = Engine(load(rule(tmp_path, "kl-high", extra="repeat: never\n")))
    assert findings(drive(never, frames([2, 0, 2, 0]))) == [(1, "kl-high", "firing"), (2, "kl-high", "resolved")]


@pytest.mark.parametrize("what", ["resume", "ref_sync", "config_change", "schedule_change"])
def test_statistical_rules_look_away_after_a_legal_jump(tmp_path: Path, what: Any) -> None:
    drift = rule(tmp_path, "drift", 1, category="ood-drift")
    number = rule(tmp_path, "number", 2, category="numerics")
    items = [*frames([0] * 5), Boundary(5, what), *frames([2] * 7, first=6)]
    assert findings(drive(Engine(load(drift, number)), items)) == [(6, "number", "firing"), (11, "drift", "firing")]


def test_clock_rules_fire_on_ticks_and_close_with_the_next_update(tmp_path: Path) -> None:
    path = rule(tmp_path, "stalled", category="stall", extra="clock: {seconds: 15}\n")
    path.write_text(path.read_text().replace("when: policy.kl_ref > limit", "when: seconds_since(update_end) > 100 * limit").replace("unit: nats", "unit: seconds").replace("{policy.kl_ref:num}", "{seconds_since(update_end):.0f}"))
    engine = Engine(load(path))
    items: list[Item] = [*frames([0, 0, 0]), *(Tick(3, 1003.0 + 15 * n) for n in range(1, 10)), *frames([0], first=4)]
    records = drive(engine, items)
    assert findings(records) == [(3, "stalled", "firing"), (4, "stalled", "resolved")]


def test_one_instance_per_label_value_and_too_many_are_reported(tmp_path: Path) -> None:
    path = rule(tmp_path, "component", signal="reward.component_mean", extra="for_each: component\n")
    path.write_text(path.read_text().replace("unit: nats", "unit: reward"))
    engine = Engine(load(path))
    items: list[Item] = [Frame(step, {labelled("reward.component_mean", "component", f"c{n}"): 2.0 if n == 1 else 0.0 for n in range(100)}) for step in range(1, 260)]
    records = [one for one in drive(engine, items) if isinstance(one, Finding)]
    assert [(one.state, one.instance) for one in records] == [("firing", {"component": "c1"}), ("blind", {})]
    assert "36 more" in records[1].message
    assert "36 values" in (engine.coverage().rules[0].reason or "")


def test_a_hostile_label_cannot_write_control_characters(tmp_path: Path) -> None:
    path = rule(tmp_path, "component", signal="reward.component_mean", extra="for_each: component\n")
    path.write_text(path.read_text().replace("unit: nats", "unit: reward"))
    name = labelled("reward.component_mean", "component", "x\x1b[31m" + "y" * 500)
    found = [one for one in drive(Engine(load(path)), [Frame(1, {name: 2.0})]) if isinstance(one, Finding)]
    assert found[0].instance["component"].isprintable()
    assert len(found[0].instance["component"]) <= 80


def test_a_rule_without_a_decision_is_blind_once(tmp_path: Path) -> None:
    engine = Engine(load(rule(tmp_path, "kl-high")))
    start = RunStart("r", "grpo", total_steps=1000, emits=frozenset({"optim.loss", "policy.kl_ref"}))
    records = drive(engine, [start, *frames([1.0] * 400, "optim.loss")])
    assert findings(records) == [(200, "kl-high", "blind")]
    line = engine.coverage().rules[0]
    assert (line.status, line.missing) == ("blind", ["policy.kl_ref"])


def test_a_run_that_does_not_say_what_it_emits_emits_what_came_so_far(tmp_path: Path) -> None:
    """A plain loop: the rule waits as inactive, says so in the coverage, and works from the first sample on."""
    engine = Engine(load(rule(tmp_path, "kl-high")))
    drive(engine, [RunStart("r", "grpo"), *frames([1.0] * 300, "optim.loss")])
    assert engine.states("kl-high") == {"": "inactive"}
    line = engine.coverage().rules[0]
    assert (line.status, line.missing) == ("inactive", ["policy.kl_ref"])
    records = drive(engine, [Frame(301 + index, {"policy.kl_ref": 9.0}) for index in range(20)])
    assert [state for _, name, state in findings(records) if name == "kl-high"] == ["firing"]


def test_a_rule_that_turns_on_a_setting_which_nobody_told_is_inactive_until_it_is(tmp_path: Path) -> None:
    """A plain loop has no configuration to read: the rule names the setting instead of being called blind later."""
    lint = rule(tmp_path, "lint")
    lint.write_text(lint.read_text().replace("when: ", "when: config.beta > 0 and config.beta < 0.5 and "))
    engine = Engine(load(lint))
    records = drive(engine, [RunStart("r", "grpo"), *frames([9.0] * 300, "policy.kl_ref")])
    assert findings(records) == []
    line = engine.coverage().rules[0]
    assert (line.status, line.reason) == ("inactive", "needs settings that are not known of this run: config.beta")
    records = drive(engine, [Applied(300, "beta", None, 0.1), *(Frame(301 + index, {"policy.kl_ref": 9.0}) for index in range(20))])
    assert [state for _, name, state in findings(records) if name == "lint"] == ["firing"]


def test_what_cannot_come_is_inactive_and_other_trainers_are_not_applicable(tmp_path: Path) -> None:
    absent = rule(tmp_path, "absent", 1)
    other = rule(tmp_path, "other", 2)
    other.write_text(other.read_text().replace("trainers: any", "trainers: [grpo]"))
    engine = Engine(load(absent, other))
    drive(engine, [RunStart("r", "sft", emits=frozenset({"optim.loss"})), *frames([1.0] * 5, "optim.loss")])
    assert engine.states("absent") == {"": "inactive"}
    assert engine.states("other") == {"": "not_applicable"}
    assert {line.id: line.status for line in engine.coverage().rules} == {"absent": "inactive", "other": "not_applicable"}
    assert engine.verdict is not None
    assert engine.verdict.not_checked == ["absent"]


def test_a_failing_rule_is_off_for_the_run_and_the_others_go_on(tmp_path: Path) -> None:
    engine = Engine(load(rule(tmp_path, "bad", 1), rule(tmp_path, "good", 2)))
    drive(engine, frames([0]))

    def explode() -> None:
        raise ZeroDivisionError("boom")

    engine._schedule.all[0].read = explode  # type: ignore[assignment]
    records = drive(engine, frames([2, 2, 2], first=2))
    assert findings(records) == [(2, "bad", "error"), (2, "good", "firing")]
    assert engine.states("bad") == {"": "error"}
    assert engine.coverage().rules[0].status == "error"


SUGGEST = """
suggest:
  - set: learning_rate
    to: config.learning_rate / 2
    why: test
expect: {that: policy.kl_ref < limit, within: {updates: 5}}
"""


@pytest.mark.parametrize(("after", "outcome"), [([2, 0, 0, 0, 0, 0, 0], "confirmed"), ([2] * 8, "no_effect")])
def test_a_change_is_followed_up_and_not_suggested_again(tmp_path: Path, after: list[float], outcome: str) -> None:
    engine = Engine(load(rule(tmp_path, "kl-high", extra=SUGGEST)))
    start = RunStart("r", "grpo", "trl", config={"learning_rate": 1e-6})
    records = drive(engine, [start, *frames([0, 2]), Applied(2, "learning_rate", 1e-6, 5e-7), *frames([*after, 0, 0, 2], first=3)])
    found = [one for one in records if isinstance(one, Finding)]
    assert [(action.parameter, action.to, action.apply) for action in found[0].actions] == [("learning_rate", 5e-7, "live")]
    judged = [one for one in found if one.state in {"confirmed", "no_effect"}]
    assert [(one.state, one.finding_id) for one in judged] == [(outcome, found[0].finding_id)]
    assert found[-1].state == "firing"
    assert found[-1].actions == []


def _noisy_run(seed: int, length: int) -> list[Item]:
    source = random.Random(seed)
    items: list[Item] = [RunStart("r", "grpo", "trl", None, {"num_generations": 8, "learning_rate": 1e-6, "beta": 0.04, "logging_steps": 1}, length, time=1000.0)]
    for step in range(1, length + 1):
        bad = source.random() < 0.3 or 60 < step < 90
        values = {
            "policy.kl_ref": 5.0 * source.random() if bad else 0.02, "policy.entropy": 0.01 if bad else 0.8, "reward.mean": source.random(),
            "reward.group_zero_std_fraction": 0.99 if bad else 0.1, "reward.group_std_mean": 0.01 if bad else 0.3,
            "optim.grad_norm": float("nan") if source.random() < 0.05 else 1.0, "optim.loss": source.gauss(0, 1),
            labelled("reward.component_share", "component", "a"): 0.95 if bad else 0.5,
        }  # fmt: skip
        items.append(Frame(step, {key: value for key, value in values.items() if source.random() > 0.1}, time=1000.0 + 2 * step))
        if step % 40 == 0:
            items += [Boundary(step, "save_begin", 1000.0 + 2 * step), Boundary(step, "save_end", 1001.0 + 2 * step)]
        if step == 75:
            items.append(Applied(step, "learning_rate", 1e-6, 5e-7, 1000.0 + 2 * step))
        if step % 50 == 0:
            items.append(Frame(step, {"eval.reward": source.random()}, closes=False, phase="eval", time=1000.5 + 2 * step))
    return [*items, RunEnd(length, time=2000.0)]


def _lines(records: Iterable[Any]) -> list[str]:
    return [RECORD.dump_json(record, by_alias=True).decode() for record in records]


@pytest.fixture(scope="module")
def stable() -> RuleSet:
    return load_rules()


def test_the_same_items_give_the_same_bytes(stable: RuleSet) -> None:
    items = _noisy_run(1, 150)
    first, second = Engine(stable), Engine(stable)
    assert _lines(drive(first, items)) == _lines(drive(second, items))
    assert first.coverage() == second.coverage()


@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 1000), cut=st.integers(1, 150))
def test_stopped_and_resumed_anywhere_gives_the_same_records(stable: RuleSet, seed: int, cut: int) -> None:
    items = _noisy_run(seed, 130)
    cut = min(cut, len(items) - 1)
    whole = Engine(stable)
    expected = drive(whole, items)
    before = Engine(stable)
    records = drive(before, items[:cut])
    state = json.loads(json.dumps(before.state_dict(), allow_nan=False))
    after = Engine(stable)
    after.observe(RunStart("r", "grpo", "trl", None, dict(before._reporter.run.config), 130, time=1000.0))
    after.load_state_dict(state)
    records += drive(after, items[cut:])
    assert _lines(records) == _lines(expected)


def test_a_rule_that_changed_starts_afresh_on_resume(tmp_path: Path) -> None:
    engine = Engine(load(rule(tmp_path, "kl-high")))
    drive(engine, frames([2, 2, 2]))
    state = engine.state_dict()
    other = Engine(load(rule(tmp_path, "kl-high", extra="sustain: {hits: 2, of: 2}\n")))
    other.load_state_dict(state)
    assert findings(drive(other, frames([2, 2], first=4))) == [(5, "kl-high", "firing")]
    with pytest.raises(ValueError, match="version"):
        other.load_state_dict({**state, "version": 99})


def test_every_record_has_the_envelope_and_validates(stable: RuleSet) -> None:
    for record in drive(Engine(stable), _noisy_run(3, 120)):
        assert isinstance(record, Finding | Verdict)
        assert record.run == "r"
        assert record.ts is not None
        assert RECORD.validate_json(RECORD.dump_json(record, by_alias=True)) == record


def test_what_recovered_once_needs_half_of_the_evidence_the_next_time() -> None:
    life, opened = Life(4, 4, 1, 1), []
    for step, bad in enumerate([True] * 5 + [False] * 5 + [True] * 5):
        if life.feed(bad, not bad if life.firing else None, step) == "open":
            opened.append(step)
    assert opened == [3, 11]  # after four hits, and after two


@settings(max_examples=200, deadline=None)
@given(values=st.lists(st.sampled_from([True, False, None]), max_size=60), hits=st.integers(1, 4), extra=st.integers(0, 3))
def test_life_opens_and_closes_in_turn(values: list[bool | None], hits: int, extra: int) -> None:
    life, is_open = Life(hits, hits + extra, hits, hits), False
    recent: list[bool] = []
    for step, value in enumerate(values):
        if value is None:
            continue
        transition = life.feed(value, (not value) if life.firing else None, step)
        recent.append(value)
        if transition == "open":
            assert not is_open
            assert sum(recent[-hits - extra :]) >= (hits if life.openings == 1 else (hits + 1) // 2)
            is_open = True
        elif transition == "close":
            assert is_open
            is_open = False
        elif transition is not None:
            break


def test_who_was_left_out_when_its_turn_came_is_looked_at_as_soon_as_it_may(tmp_path: Path) -> None:
    """A rule over a window of twenty is looked at every tenth update; its warm-up ends between two of them, and nothing is news."""
    slow = rule(tmp_path, "slow")
    slow.write_text(slow.read_text().replace("when: policy.kl_ref", "warmup: {updates: 83}\nwhen: median(policy.kl_ref, updates=20)"))
    engine = Engine(load(slow))
    records = drive(engine, [RunStart("r", "grpo"), *frames([9.0] * 120, "policy.kl_ref")])
    assert findings(records)[:1] == [(84, "slow", "firing")]
