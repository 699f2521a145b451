"""The catalogue and the packing of events."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from trainvitals.events import CATALOGUE, FAMILIES, OptimEvent, PolicyEvent, RewardEvent, custom_signal, labelled, split_label
from trainvitals.items import Frame

UNITS = {
    "fraction", "nats", "tokens", "seconds", "bytes", "reward", "score", "count", "norm", "loss", "ratio", "rate", "celsius",
}  # fmt: skip


def test_every_signal_is_fully_declared() -> None:
    for name, spec in CATALOGUE.items():
        assert spec.name == name
        assert spec.unit in UNITS, name
        assert spec.meaning.endswith("."), name
        assert spec.emitters, name
        if spec.low is not None and spec.high is not None:
            assert spec.low < spec.high, name
        if spec.unit == "fraction":
            assert (spec.low, spec.high) == (0, 1), name


def test_families_are_unique_and_name_their_signals() -> None:
    families = [model.family for model in FAMILIES]
    assert len(families) == len(set(families))
    assert {name.partition(".")[0] for name in CATALOGUE} == set(families)


def test_the_three_kls_are_three_signals() -> None:
    assert {"policy.kl_ref", "policy.kl_old", "sampler.kl"} <= set(CATALOGUE)


def test_frame_packs_and_unpacks_events() -> None:
    events = [OptimEvent(loss=0.5, grad_norm=math.inf), RewardEvent(mean=1.0, component_mean={"fmt": 0.5, "acc": 0.25})]
    frame = Frame.of(7, events, time=12.5)
    assert frame.values["reward.component_mean{component=fmt}"] == 0.5
    assert frame.events() == events
    assert (frame.step, frame.time, frame.closes) == (7, 12.5, True)


@given(st.dictionaries(st.sampled_from(list(PolicyEvent.model_fields)), st.floats(allow_nan=False), max_size=6))
def test_packing_is_lossless(fields: dict[str, float]) -> None:
    frame = Frame.of(1, [PolicyEvent(**fields)])
    assert frame.values == {f"policy.{name}": value for name, value in fields.items()}
    assert Frame.of(1, frame.events()).values == frame.values


def test_nonfinite_values_are_named_not_dropped() -> None:
    frame = Frame(1, {"optim.loss": math.nan, "optim.grad_norm": -math.inf, "policy.entropy": math.inf, "reward.mean": 1.0})
    assert frame.nonfinite() == {"optim.loss": "nan", "optim.grad_norm": "-inf", "policy.entropy": "inf"}


@given(st.text(st.characters(blacklist_categories=["Cs"]), max_size=20))
def test_labels_survive(value: str) -> None:
    assert split_label(labelled("reward.component_mean", "component", value)) == ("reward.component_mean", "component", value)


def test_a_plain_name_has_no_label() -> None:
    assert split_label("policy.kl_ref") == ("policy.kl_ref", None, None)


def test_events_refuse_unknown_fields_and_changes() -> None:
    with pytest.raises(ValidationError, match="los"):
        OptimEvent(los=1.0)  # type: ignore[call-arg]
    event = OptimEvent(loss=1.0)
    with pytest.raises(ValidationError):
        event.loss = 2.0


def test_custom_signals_have_their_own_family() -> None:
    spec = custom_signal("custom.unit_tests_passed", "fraction", "Share of unit tests that pass.", low=0, high=1)
    assert spec.emitters == ("user",)
    for bad in ("kl", "policy.kl_ref", "custom.Has Space", "custom."):
        with pytest.raises(ValueError, match="expected 'custom"):
            custom_signal(bad, "ratio", "x")
    assert Frame(1, {"custom.x": 1.0}).events() == []
