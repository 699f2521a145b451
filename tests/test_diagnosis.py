"""The verdict and incidents."""

from __future__ import annotations

import json
import math
import random
from dataclasses import replace

import pytest

from trainvitals.diagnosis import VerdictMaker, ancestors
from trainvitals.findings import Finding, RuleRef
from trainvitals.rulelang.errors import Where
from trainvitals.rulelang.expr import Expr, Flag
from trainvitals.rulelang.model import Rule, RuleAction, Template

ALWAYS = Expr("true", Flag(True), Where(), kind="bool")


def rule(rule_id: str, category: str = "collapse", severity: str = "warning", **more: object) -> Rule:
    base = Rule(rule_id, "RWD001", "1.0.0", "Title", category, severity, "stable", ALWAYS, Template("m"))  # type: ignore[arg-type]
    return replace(base, **more)  # type: ignore[arg-type]


def finding(of: Rule, state: str = "firing", step: int = 50, onset: int = 45, **more: object) -> Finding:
    return Finding.model_validate({
        "finding_id": of.id, "fingerprint": "f", "rule": RuleRef(id=of.id, code=of.code), "state": state, "severity": of.severity,
        "category": of.category, "title": of.title, "message": f"{of.id} speaks.", "step": step, "onset_step": onset, **more,
    })  # fmt: skip


def maker(*rules: Rule, updates: int = 100, trainer: str = "grpo") -> VerdictMaker:
    made = VerdictMaker(rules, trainer)
    for step in range(1, updates + 1):
        made.due(step)
    return made


@pytest.mark.parametrize(("category", "state"), [("collapse", "collapsed"), ("over-optimization", "over_optimizing"), ("ood-drift", "drifting"), ("stall", "stalled")])
def test_category_gives_the_state(category: str, state: str) -> None:
    one = rule("one", category)
    made = maker(one)
    made.take(finding(one), one)
    verdict = made.make(50)
    assert verdict is not None
    assert (verdict.state, verdict.decision, verdict.rule) == (state, "watch", "one")
    assert (verdict.since_step, verdict.last_healthy_step, verdict.reason) == (45, 44, "one speaks.")


@pytest.mark.parametrize("category", ["ood-drift", "collapse"])
@pytest.mark.parametrize(("gradients", "moved"), [([0.0] * 9, False), ([0.0, 1e-9, 0.0], True), ([math.nan, 0.0], True), ([], True)])
def test_a_policy_without_any_gradient_has_not_drifted_but_stalled(category: str, gradients: list[float], moved: bool) -> None:
    one = rule("one", category)
    made = maker(one)
    for norm in gradients:
        made.values({"optim.grad_norm": norm})
    again = VerdictMaker([one], "grpo")
    again.load_state_dict(json.loads(json.dumps(made.state_dict())))
    for now in (made, again):
        now.take(finding(one), one)
        verdict = now.make(50)
        assert verdict is not None
        assert (verdict.state == "stalled") is not moved


def test_numerics_diverge_by_an_error_or_by_the_rule_s_own_word() -> None:
    for one, state in (
        (rule("spike", "numerics"), "steady"),
        (rule("nan", "numerics", "error"), "diverged"),
        (rule("growth", "numerics", verdict="diverged"), "diverged"),
    ):
        made = maker(one)
        made.take(finding(one), one)
        verdict = made.make(50)
        assert verdict is not None
        assert (verdict.state, verdict.rule, verdict.last_healthy_step) == (state, one.id, 44)


def test_efficiency_advises_without_calling_the_run_sick() -> None:
    slow = rule("slow", "efficiency")
    made = maker(slow)
    action = {"action_id": "a", "parameter": "per_device_train_batch_size", "from": 4, "to": 8}
    made.take(finding(slow, actions=[action]), slow)
    verdict = made.make(50)
    assert verdict is not None
    assert (verdict.state, verdict.decision, verdict.last_healthy_step) == ("steady", "adjust", 50)


def test_an_error_stops_or_restarts_from_a_checkpoint_before_the_onset() -> None:
    bad = rule("bad", "numerics", "error")
    made = maker(bad)
    made.take(finding(bad), bad)
    verdict = made.make(50)
    assert verdict is not None
    assert (verdict.decision, verdict.resume_from) == ("stop", None)
    made = maker(bad)
    made.checkpoint(20, "checkpoint-20")
    made.checkpoint(40, "checkpoint-40")
    made.checkpoint(48, "checkpoint-48")
    made.take(finding(bad), bad)
    verdict = made.make(50)
    assert verdict is not None
    assert (verdict.decision, verdict.resume_from) == ("restart_from", "checkpoint-40")


def test_the_error_leads_and_suppressed_and_resolved_do_not() -> None:
    warn, bad = rule("warn", "collapse"), rule("bad", "numerics", "error")
    made = maker(warn, bad)
    made.take(finding(warn, onset=30), warn)
    made.take(finding(bad, onset=45), bad)
    verdict = made.make(50)
    assert verdict is not None
    assert (verdict.rule, verdict.open_findings, verdict.last_healthy_step) == ("bad", {"error": 1, "warning": 1}, 29)
    made.take(finding(bad, "resolved"), bad)
    made.take(finding(warn, "suppressed", suppressed_by="x"), warn)
    verdict = made.make(60)
    assert verdict is not None
    assert (verdict.state, verdict.rule) == ("steady", None)


def test_an_error_behind_a_warning_still_says_what_became_of_the_run() -> None:
    cause, effect = rule("cause", "config"), rule("effect", "collapse", "error")
    made = maker(cause, effect)
    made.take(finding(cause, onset=40), cause)
    made.take(finding(effect, "suppressed", suppressed_by="cause"), effect)
    verdict = made.make(50)
    assert verdict is not None
    assert (verdict.state, verdict.rule, verdict.open_findings) == ("collapsed", "cause", {"warning": 1})
    weak = rule("weak", "collapse")
    made = maker(cause, weak)
    made.take(finding(cause, onset=40), cause)
    made.take(finding(weak, "suppressed", suppressed_by="cause"), weak)
    verdict = made.make(50)
    assert verdict is not None
    assert verdict.state == "collapsed"  # a cause without a word of its own, and an effect that has one
    named = rule("named", "collapse", verdict="stalled")
    made = maker(named, weak)
    made.take(finding(named, onset=40), named)
    made.take(finding(weak, "suppressed", suppressed_by="named"), weak)
    verdict = made.make(50)
    assert verdict is not None
    assert verdict.state == "stalled"  # a suppressed warning does not overrule


def test_own_verdict_and_stop_offer() -> None:
    odd = rule("odd", "data", verdict="over_optimizing", action=RuleAction(stop="offer"))
    made = maker(odd)
    made.take(finding(odd), odd)
    verdict = made.make(50)
    assert verdict is not None
    assert (verdict.state, verdict.decision) == ("over_optimizing", "stop")


def test_only_changes_are_told_and_the_last_word_always() -> None:
    made = maker()
    assert made.make(1) is not None
    assert made.make(2) is None
    last = made.make(3, final=True)
    assert last is not None
    assert last.final
    assert maker(updates=5).make(5).state == "warming_up"  # type: ignore[union-attr]
    assert maker(updates=5).make(5, final=True).state == "insufficient_data"  # type: ignore[union-attr]
    assert maker().make(100, decided=False, final=True).state == "insufficient_data"  # type: ignore[union-attr]


def test_improving_needs_evidence() -> None:
    source = random.Random(0)
    rising, flat, falling = maker(), maker(), maker()
    for step in range(200):
        rising.values({"reward.mean": 0.2 + 0.002 * step + source.gauss(0, 0.05)})
        flat.values({"reward.mean": 0.4 + source.gauss(0, 0.05)})
        falling.values({"reward.mean": 0.8 - 0.002 * step + source.gauss(0, 0.05)})
    assert [(one.make(200).state, one.make(201, final=True).decision) for one in (rising, flat, falling)] == [  # type: ignore[union-attr]
        ("improving", "continue"), ("steady", "continue"), ("steady", "watch"),
    ]  # fmt: skip


def test_when_the_trends_hear_of_a_value_changes_nothing() -> None:
    """They hear at every frame where somebody saves each time, else of 25 at once; a load forgets what they had not heard."""
    source = random.Random(1)
    often, seldom, loaded = maker(), maker(), maker()
    loaded.values({"reward.mean": 77.0})
    loaded.load_state_dict(often.state_dict())
    for step in range(333):
        values = {"reward.mean": source.choice([source.gauss(0, 1), math.nan]), "optim.loss": source.gauss(0, 1)}
        for one in (often, seldom, loaded):
            one.values({name: value for name, value in values.items() if step % 7 or name != "optim.loss"})
        often.state_dict()
    assert len(seldom._unheard) == 333 % seldom.EVERY
    assert repr(seldom.state_dict()) == repr(often.state_dict()) == repr(loaded.state_dict())


def test_the_loss_is_no_evidence_in_grpo_but_is_in_sft() -> None:
    for trainer, state in (("grpo", "steady"), ("sft", "improving")):
        made = maker(trainer=trainer)
        for step in range(200):
            made.values({"optim.loss": 2.0 - 0.005 * step})
        assert made.make(200).state == state  # type: ignore[union-attr]


def test_a_reward_that_stands_still_is_neither_improving_nor_falling() -> None:
    """0.1 has no last binary digit: sums of blocks of it differed by rounding, and that looked like a trend of 3.4 standard errors."""
    made = maker()
    for step in range(20_000):
        made.values({"reward.mean": 0.1})
        if step % 1_000 == 999:
            assert made._healthy_state(final=False)[:2] == ("steady", "continue")


def test_ancestors_are_transitive_and_composites_are_causes() -> None:
    rules = [rule("a"), rule("b", caused_by=("a",)), rule("c", caused_by=("b",)), rule("all", absorbs=("c",))]
    assert ancestors(rules)["c"] == {"a", "b", "all"}


def test_the_cause_of_a_symptom_is_no_root_of_the_incident() -> None:
    head, middle, effect = rule("head"), rule("middle"), rule("effect", caused_by=("head", "middle"))
    made = maker(head, middle, effect)
    made.take(finding(head, step=50), head)
    place = made.incidents.place("effect", 52, made.open.values())
    assert place == ("head", "symptom")
    made.take(finding(effect, step=52, incident_id=place[0], role=place[1]), effect)
    assert made.incidents.place("middle", 54, made.open.values()) == ("head", "symptom")
    lone = maker(middle, effect)
    lone.take(finding(effect, step=52), effect)
    assert lone.incidents.place("middle", 54, lone.open.values()) == ("effect", "root")
