"""Advice: bounds, types, divisibility, the effective batch, live or restart, conflicts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainvitals.advice import PARAMETERS, Context, advise, bounded, how_to_apply, mark_conflicts, same, whole_groups
from trainvitals.findings import Action
from trainvitals.rulelang.errors import Where
from trainvitals.rulelang.expr import Expr, Flag, Num
from trainvitals.rulelang.loader import load_rules
from trainvitals.rulelang.model import Also, Suggest


def value(number: float | bool) -> Expr:
    root = Flag(number) if isinstance(number, bool) else Num(float(number))
    return Expr(str(number), root, Where())


def evaluate(expr: Expr) -> Any:
    assert isinstance(expr.root, Num | Flag)
    return expr.root.value


def one(parameter: str, to: float | bool, config: Mapping[str, Any], trainer: str = "grpo", framework: str = "trl", world: int = 1, **more: Any) -> list[Action]:
    suggest = Suggest(set=parameter, to=value(to), **more)
    return advise([suggest], evaluate, Context(config, trainer, framework, world), finding_id="RWD001.1")


def test_a_change_to_the_present_value_is_no_advice() -> None:
    assert one("learning_rate", 1e-6, {"learning_rate": 1e-6}) == []
    assert one("num_generations", 8.0, {"num_generations": 8}) == []


def test_a_learning_rate_that_no_schedule_makes_is_the_present_value() -> None:
    config = {"learning_rate": 5e-4}
    suggest = Suggest(set="learning_rate", to=value(5e-4))

    def at(rate: float | None) -> list[Action]:
        return advise([suggest], evaluate, Context(config, "grpo", "trl", 1, rate), finding_id="OPT004.1")

    assert [(action.from_, action.to) for action in at(0.1)] == [(0.1, 5e-4)]  # a scheduler built anew with other numbers
    assert [(action.from_, action.to) for action in at(0.0)] == [(0.0, 5e-4)]
    assert at(2e-4) == at(5e-4) == at(None) == []  # a warm-up, a decay, the peak, no log of it


def test_integers_stay_integers_and_values_inside_bounds() -> None:
    assert bounded("num_generations", 15.6) == 16
    assert isinstance(bounded("num_generations", 15.6), int)
    assert bounded("learning_rate", 5.0) == PARAMETERS["learning_rate"].high
    assert bounded("learning_rate", 4.73421e-6) == 4.734e-6
    assert bounded("bf16", True) is True
    assert bounded("bf16", 1.0) is None
    assert bounded("learning_rate", None) is None
    assert bounded("learning_rate", float("nan")) is None


def test_the_effective_batch_is_kept() -> None:
    config = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 8}
    (action,) = one("per_device_train_batch_size", 16, config, trainer="sft")
    assert [(change.parameter, change.from_, change.to) for change in action.also] == [("gradient_accumulation_steps", 8, 2)]
    assert not action.changes_objective
    assert action.costs is None


def test_an_effective_batch_that_cannot_be_kept_is_said() -> None:
    config = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 1}
    (action,) = one("per_device_train_batch_size", 16, config, trainer="sft", world=2)
    assert action.to == 16
    assert action.costs == "effective batch changes from 8 to 32"
    assert action.changes_objective


def test_a_group_must_fit_into_the_generation_batch() -> None:
    config = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 3, "num_generations": 4}
    (action,) = one("num_generations", 8, config)
    assert action.to == 6  # 4 * 3 = 12 completions hold two groups of 6 but not of 8
    assert one("num_generations", 5, {**config, "num_generations": 4}) == []


@given(
    batch=st.integers(1, 64), accumulation=st.integers(1, 64), world=st.integers(1, 8), group=st.sampled_from([2, 4, 8, 16]), to=st.integers(1, 256),
    parameter=st.sampled_from(["per_device_train_batch_size", "gradient_accumulation_steps", "num_generations"]),
)  # fmt: skip
def test_the_trainer_would_start_after_any_advice(batch: int, accumulation: int, world: int, group: int, to: int, parameter: str) -> None:
    config = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulation, "num_generations": group}
    context = Context(config, "grpo", "trl", world)
    if not whole_groups({}, context):
        return
    for action in one(parameter, to, config, world=world):
        changes = {parameter: action.to, **{change.parameter: change.to for change in action.also}}
        assert whole_groups(changes, context)
        after = {**config, **changes}
        grew = after["per_device_train_batch_size"] * after["gradient_accumulation_steps"] != batch * accumulation
        assert (action.costs is not None) == grew


def test_what_is_live_comes_from_the_table_not_from_the_rule() -> None:
    live, note = how_to_apply("learning_rate", Context({}, "grpo", "trl"))
    assert live == "live"
    assert note is not None
    assert "base_lrs" in note
    assert how_to_apply("beta", Context({"beta": 0.04}, "grpo", "trl"))[0] == "live"
    assert how_to_apply("beta", Context({"beta": 0.0}, "grpo", "trl"))[0] == "restart"
    assert how_to_apply("temperature", Context({}, "grpo", "trl"))[0] == "restart"
    assert how_to_apply("epsilon_high", Context({}, "rloo", "trl"))[0] == "restart"
    assert how_to_apply("my_knob", Context({}, "grpo", "trl"))[0] == "manual"
    (action,) = one("temperature", 1.1, {"temperature": 0.9})
    assert action.apply == "restart"


def test_condition_skip_and_inspect() -> None:
    context = Context({"learning_rate": 1e-6})
    suggests = [
        Suggest(set="learning_rate", to=value(5e-7), condition=value(False)),
        Suggest(set="learning_rate", to=value(2e-7)),
        Suggest(inspect="Read ten completions."),
    ]
    actions = advise(suggests, evaluate, context, finding_id="X1.1")
    assert [(action.type, action.to) for action in actions] == [("set_param", 2e-7), ("inspect", None)]
    assert [action.action_id for action in actions] == ["X1.1-1", "X1.1-2"]
    assert [action.type for action in advise(suggests, evaluate, context, finding_id="X1.1", skip=["learning_rate"])] == ["inspect"]


def test_own_compensation_wins_over_ours() -> None:
    config = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 8}
    (action,) = one("per_device_train_batch_size", 16, config, "sft", also=(Also("gradient_accumulation_steps", value(4), "by hand"),))
    assert [(change.to, change.why) for change in action.also] == [(4, "by hand")]
    assert action.costs == "effective batch changes from 32 to 64"


def test_opposite_directions_are_conflicts() -> None:
    (down,) = one("learning_rate", 5e-7, {"learning_rate": 1e-6})
    (up,) = one("learning_rate", 2e-6, {"learning_rate": 1e-6})
    up = up.model_copy(update={"action_id": "other"})
    assert mark_conflicts([up], [down])[0].conflicts_with == [down.action_id]
    assert mark_conflicts([down], [down.model_copy(update={"action_id": "z"})])[0].conflicts_with == []


@pytest.mark.parametrize(("left", "right", "equal"), [(1, 1.0, True), (True, 1, False), ("a", "a", True), (None, None, True), (None, 0, False), (1e-6, 1.0000000001e-6, True)])
def test_same(left: Any, right: Any, equal: bool) -> None:
    assert same(left, right) is equal


def test_the_table_is_consistent() -> None:
    for name, parameter in PARAMETERS.items():
        assert (parameter.low is None) == (parameter.high is None) == (parameter.kind in {"bool", "string"}), name
        if parameter.low is not None and parameter.high is not None:
            assert parameter.low < parameter.high, name


def test_every_parameter_that_a_rule_suggests_is_known() -> None:
    """What is not in the table has no type: 32.0 was suggested for a number of tasks."""
    rules = load_rules().rules
    suggested = {change.set for rule in rules for part in rule.suggest for change in (part, *part.also) if change.set}
    assert len(suggested) > 40
    assert suggested - set(PARAMETERS) == set()
