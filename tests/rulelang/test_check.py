"""Checking: names, types, units, ranges and reachability, each with its code, its place and a hint that helps."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from trainvitals.events import CATALOGUE
from trainvitals.rulelang import units
from trainvitals.rulelang.check import check
from trainvitals.rulelang.errors import Problem, RuleError, Where
from trainvitals.rulelang.expr import Expr, Kind, parse


@dataclass
class P:
    default: float
    unit: str
    low: float
    high: float


PARAMS = {
    "low": P(0.05, "reward", 0, 10),
    "n": P(20, "updates", 3, 100),
    "share": P(0.8, "fraction", 0.1, 1),
    "huge": P(20, "updates", 1, 1e9),
}


def _check(
    text: str, expect: Kind | None = None, label: str | None = None, lets: dict[str, Expr] | None = None, **known: tuple[str, ...]
) -> Expr:
    where = Where("rules/x.yaml", 19, 5, "    " + text)
    return check(
        parse(text, where),
        signals=CATALOGUE,
        params=PARAMS,
        lets=lets,
        label=label,
        expect=expect,
        later=known.get("later", ()),
        broken=known.get("broken", ()),
    )


def _problems(text: str, expect: Kind | None = None, **known: tuple[str, ...]) -> list[Problem]:
    with pytest.raises(RuleError) as caught:
        _check(text, expect, **known)
    return caught.value.problems


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("nobody > 1", "E101"), ("meen(reward.mean, updates=5)", "E102"), ("policy.entrpy > 1", "E103"), ("run.stepp > 1", "E104"),
        ("updates_since(evil_end)", "E105"), ("reward.component_mean > 1", "E106"), ("below > 1", "E107"), ("mean > 1", "E108"),
        ("policy.kl_ref > completion.length_mean", "E201"), ("reward.mean + policy.kl_ref", "E201"), ("low < policy.kl_ref", "E201"),
        ("min(reward.mean, policy.kl_ref)", "E201"), ("not reward.mean", "E202"), ("reward.mean + (reward.std > 1)", "E202"), ("'a' + 1", "E202"),
        ("1 if reward.mean > 2 else 'x'", "E202"), ("sqrt(1, 2)", "E203"), ("max(1)", "E203"), ("mean(reward.mean)", "E204"),
        ("mean(reward.mean, updates=5, points=5)", "E204"), ("mean(reward.mean, update=5)", "E204"), ("nonfinite_count(optim.loss)", "E204"),
        ("mean(reward.mean, updates=2 * n)", "E205"), ("has(low)", "E205"), ("firing(reward.mean)", "E205"),
        ("mean(reward.mean, updates=2)", "E304"), ("mean(reward.mean, updates=100001)", "E304"), ("mean(reward.mean, points=2.5)", "E304"),
        ("mean(reward.mean, updates=huge)", "E304"), ("quantile(reward.mean, 95, updates=20)", "E304"), ("reward.mean / 0", "E305"),
        ("memory.vram_used_fraction < 34", "E301"), ("optim.grad_norm < -1", "E301"), ("run.step < 0", "E302"), ("policy.entropy >= 0", "E303"),
        ("policy.entropy > 2 and policy.entropy < 1", "E302"), ("policy.entropy > 1 or policy.entropy < 2", "E303"), ("2 < policy.entropy < 1", "E302"),
        ("share_true(reward.mean > 1, updates=5) > 1", "E302"), ("run.phase == 'evaluation'", "E302"), ("policy.clip_fraction - share > 0.3", "E301"),
    ],
)  # fmt: skip
def test_codes(text: str, code: str) -> None:
    assert [problem.code for problem in _problems(text, later=("below",))] == [code]


def test_the_message_of_an_unknown_signal_describes_the_nearest() -> None:
    problem = _problems("median(sampler.logp_diff_mean, updates=10)")[0]
    assert problem.render() == (
        "rules/x.yaml:19:12 error E103 unknown signal 'sampler.logp_diff_mean'\n"
        "   19 |     median(sampler.logp_diff_mean, updates=10)\n"
        "      |            ^^^^^^^^^^^^^^^^^^^^^^ did you mean 'sampler.logp_difference_mean' (nats, per rollout, emitted by grpo, rloo)?"
    )


def test_a_percentage_is_answered_with_its_fraction() -> None:
    problem = _problems("maximum(memory.vram_used_fraction, updates=20) < 34")[0]
    assert (problem.code, problem.hint) == ("E301", "did you mean 0.34?")


def test_all_problems_are_reported_in_order() -> None:
    assert [
        (problem.column, problem.code) for problem in _problems("nobody > 1 and policy.entrpy < 2 and mean(reward.mean) > 1")
    ] == [(5, "E101"), (20, "E103"), (42, "E204")]


@pytest.mark.parametrize(
    ("text", "kind", "unit"),
    [
        ("mean(reward.std, updates=n)", "number", "reward"), ("2 * low", "number", "reward"), ("reward.std / low", "number", "ratio"),
        ("slope(policy.entropy, updates=20)", "number", "nats/updates"), ("config.n * 2", "number", None), ("config.n * low", "number", "reward"),
        ("sqrt(reward.std * reward.std)", "number", "reward"), ("policy.clip_fraction * reward.std", "number", "reward"),
        ("share_true(reward.std < low, updates=5)", "number", "fraction"), ("firing_for('x') > n", "bool", None), ("run.trainer", "string", None),
        ("policy.clip_fraction / share", "number", "ratio"), ("min(config.temperature + 0.2, 1.2)", "number", None), ("has(policy.kl_ref)", "bool", None),
    ],
)  # fmt: skip
def test_types_and_units(text: str, kind: str, unit: str | None) -> None:
    found = _check(text)
    assert (found.kind, found.unit) == (kind, unit)


def test_a_condition_is_needed_where_a_rule_decides() -> None:
    assert _problems("reward.mean", "bool")[0].code == "E206"
    assert _check("config.use_vllm", "bool").kind == "any"


def test_reads_are_collected_through_lets() -> None:
    spread = _check("mean(reward.std, updates=20) * config.beta")
    found = _check("spread < 1 and firing('a-b') and config.n > 2", lets={"spread": spread})
    assert (found.signals, found.config, found.rules, found.names) == ({"reward.std"}, {"beta", "n"}, {"a-b"}, {"spread"})


def test_labels_belong_to_for_each() -> None:
    assert _check("reward.component_mean > 1", label="component").signals == {"reward.component_mean"}


def test_broken_lets_are_no_second_problem() -> None:
    assert _check("lost > 3 and lost < reward.mean", broken=("lost",)).kind == "bool"


def test_lets_cannot_explode() -> None:
    lets: dict[str, Expr] = {"v0": _check("reward.mean + 1")}

    def double_thirty_times() -> None:
        for index in range(30):
            lets[f"v{index + 1}"] = _check(f"v{index} + v{index}", lets=lets)

    with pytest.raises(RuleError) as caught:
        double_thirty_times()
    assert caught.value.problems[0].code == "E452"


@pytest.mark.parametrize(
    ("left", "right", "fits"),
    [("nats", "nats", True), (None, "nats", True), ("fraction", "ratio", True), ("fraction", "count", False), ("reward", "score", False),
     ("reward/update", "reward/updates", True), ("nats", "ratio", False), ("seconds", "updates", False)],
)  # fmt: skip
def test_units_agree(left: str | None, right: str | None, fits: bool) -> None:
    assert units.agree(left, right) is units.agree(right, left) is fits
