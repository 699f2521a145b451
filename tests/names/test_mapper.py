"""Names to signals: the traps of TRL's logs."""

from __future__ import annotations

import math

import numpy as np
import pytest

from trainvitals.events import CATALOGUE, split_label
from trainvitals.names import FRAMEWORKS, Entry, Mapper, config_signals, detect, safe_config
from trainvitals.names.transformers import EVAL, TABLE

GRPO = {
    "loss": 0.0, "grad_norm": 0.1, "learning_rate": 1e-6, "num_tokens": 1000.0, "completions/mean_length": 20.0,
    "completions/clipped_ratio": 0.5, "completions/mean_terminated_length": 12.0, "rewards/fmt/mean": 0.5, "rewards/fmt/std": 0.25,
    "reward": 0.5, "reward_std": 0.25, "frac_reward_zero_std": 0.5, "entropy": 0.3, "kl": 0.01, "clip_ratio/region_mean": 0.02,
    "step_time": 2.0, "epoch": 0.5,
}  # fmt: skip


def values(row: dict[str, object], trainer: str | None = None) -> dict[str, float]:
    return Mapper(trainer).frame(row, step=1).values


def test_every_table_row_names_a_signal_of_the_catalogue() -> None:
    for entry in (*TABLE, *EVAL, *(entry for table in FRAMEWORKS.values() for entry in table)):
        assert not entry.signal or entry.signal in CATALOGUE, entry
        label = CATALOGUE[entry.signal].label if entry.signal else None
        assert label is None or f"<{label}>" in entry.raw, entry


UNITS = {("GiB", "bytes"): 1024.0**3, ("1e-4 rate", "rate"): 1e-4}
"""What a number in the first unit is multiplied with to be in the second, where a framework logs another unit than the signal's."""


def rows_of_all_tables() -> list[Entry]:
    return [*TABLE, *EVAL, *(entry for table in FRAMEWORKS.values() for entry in table)]


def test_the_unit_of_every_row_is_that_of_its_signal_after_the_scale() -> None:
    for entry in rows_of_all_tables():
        if not entry.signal:
            assert (entry.unit, entry.per, entry.sign, entry.scale) == ("", "", 1, 1.0), f"{entry} has a unit and no signal"
            continue
        unit = CATALOGUE[entry.signal].unit
        factor = 1.0 if entry.unit == unit else UNITS.get((entry.unit, unit))
        assert factor == entry.scale, f"{entry.raw}: logged in {entry.unit!r} and scaled by {entry.scale:g}, but {entry.signal} is in {unit!r}"
        assert entry.sign in (1, -1), entry


def test_a_number_per_token_never_feeds_a_signal_per_sequence() -> None:
    for entry in rows_of_all_tables():
        wanted = CATALOGUE[entry.signal].per if entry.signal else ""
        fits = entry.per == wanted or (wanted == "either" and entry.per in ("token", "sequence"))
        assert fits, f"{entry.raw} is logged per {entry.per or 'nothing'}, {entry.signal} is per {wanted or 'nothing'}"


@pytest.mark.parametrize(
    ("signal", "unit"),
    [(name, spec.unit) for name, spec in CATALOGUE.items() if (spec.unit == "nats" and not name.endswith("drift")) or name.endswith(("length_mean", "length_min", "length_max"))],
)
def test_kls_log_probs_and_lengths_say_per_what(signal: str, unit: str) -> None:
    # A `drift` compares two whole distributions: neither of a token nor of a sequence.
    assert CATALOGUE[signal].per, f"{signal} in {unit}: per token or per sequence?"


def test_the_row_behind_a_name() -> None:
    mapper = Mapper("orpo")
    row = mapper.entry("train/log_odds_ratio")
    assert row is not None
    assert (row.sign, row.reading()) == (-1, "minus loss")
    assert mapper.frame({"log_odds_ratio": -0.5}, step=1).values == {"preference.odds_loss": 0.5}
    chosen = [found.reading() for name in ("orpo", "dpo", "cpo") if (found := Mapper(name).entry("logps/chosen"))]
    assert chosen == ["nats per token", "nats per sequence", "nats per token or sequence"]
    held_out = mapper.entry("eval_loss")
    assert held_out is not None
    assert held_out.signal == "eval.loss"
    assert mapper.entry("policy.kl_ref") is None
    assert Mapper(aliases={"mine": "policy.kl_ref"}).entry("mine") is None


def test_grpo_row() -> None:
    mapper = Mapper()
    frame = mapper.frame(GRPO, step=7, time=5.0)
    assert (mapper.trainer, mapper.framework, mapper.unknown) == ("grpo", "trl", set())
    assert (frame.step, frame.time, frame.tokens, frame.epoch, frame.phase, frame.closes) == (7, 5.0, 1000.0, 0.5, "train", True)
    assert frame.values["policy.kl_ref"] == 0.01
    assert frame.values["reward.component_mean{component=fmt}"] == 0.5
    assert frame.values["reward.std"] == 0.25
    assert mapper.applied["kl"] == "policy.kl_ref"


@pytest.mark.parametrize(
    ("row", "trainer", "signal"),
    [
        ({**GRPO}, "grpo", "policy.kl_ref"),
        ({"reward": 1.0, "reward_std": 0.1, "ratio": 1.0, "kl": 0.01}, "async_grpo", "sampler.kl"),
        ({"rewards/chosen": 0.1, "rewards/rejected": 0.0, "kl": 0.0}, "kto", "preference.kl_baseline"),
    ],
)
def test_kl_means_what_the_trainer_means(row: dict[str, float], trainer: str, signal: str) -> None:
    mapper = Mapper()
    frame = mapper.frame(row, step=1)
    assert mapper.trainer == trainer
    assert signal in frame.values
    assert len({"policy.kl_ref", "sampler.kl", "preference.kl_baseline"} & set(frame.values)) == 1


def test_a_queue_has_one_name_whatever_the_version() -> None:
    """AsyncGRPO of TRL 1.0 and of 1.16, and AsyncDistillation, which is a distillation trainer with a queue."""
    row = {"clip_ratio": 0.2, "buffer_qsize": 3.0, "queue_wait_time_s": 0.5, "weight_sync_time_s": 2.0}
    old = values({"reward": 1.0, "ratio": 1.0, **row})
    assert (old["rollout.queue_size"], old["time.data_wait_seconds"], old["rollout.sync_seconds"]) == (3.0, 0.5, 2.0)
    assert old["policy.ratio_outside_fraction"] == 0.2  # whatever the advantage's sign, unlike GRPO's old clip_ratio
    queue = {"sample/rollout_queue_size": 3.0, "sample/staleness_mean": 1.5, "sample/dropped_stale_total": 4.0}
    queue["perf/weight_sync_s"] = 2.0
    new = values({"reward": 1.0, "ratio": 1.0, "clip_ratio/region_mean": 0.1, **queue})
    mapper = Mapper()
    distilled = mapper.frame({"jsd": 0.5, "entropy": 1.0, **queue}, step=1).values
    assert mapper.trainer == "distillation"
    for row in (new, distilled):
        assert (row["rollout.queue_size"], row["rollout.staleness"], row["rollout.dropped_stale"]) == (3.0, 1.5, 4.0)
        assert row["rollout.sync_seconds"] == 2.0
    assert (new["policy.clip_fraction"], distilled["distill.divergence"]) == (0.1, 0.5)


def test_kl_of_nobody_is_unknown() -> None:
    mapper = Mapper()
    assert mapper.frame({"kl": 0.1}, step=1).values == {}
    assert mapper.unknown == {"kl"}


def test_reward_std_old_and_new_meaning() -> None:
    assert "reward.std" in values(GRPO)
    old = values({**GRPO, "reward_std": 0.1})
    assert old["reward.group_std_mean"] == 0.1
    assert "reward.std" not in old
    unsloth = values({"reward": 1.0, "reward_std": 0.5, "completion_length": 10.0, "rewards/fmt": 1.0})
    assert unsloth["reward.group_std_mean"] == 0.5
    assert unsloth["completion.length_mean"] == 10.0
    weighted = values({**GRPO, "reward": 1.0, "reward_std": 0.5})
    assert weighted["reward.std"] == 0.5
    flat = values({**GRPO, "rewards/b/std": 0.1, "reward_std": 0.2, "frac_reward_zero_std": 1.0})
    assert flat["reward.std"] == 0.2


def test_reward_std_is_decided_once() -> None:
    mapper = Mapper()
    mapper.frame({**GRPO, "reward_std": 0.1}, step=1)
    assert "reward.group_std_mean" in mapper.frame(GRPO, step=2).values


def test_terminated_length_of_nothing_is_missing() -> None:
    assert "completion.terminated_length_mean" not in values({**GRPO, "completions/mean_terminated_length": 0.0})


@pytest.mark.parametrize("bad", [None, math.nan, "nan", "NaN", np.float32("nan"), np.float64("nan")])
def test_nonfinite_survives(bad: object) -> None:
    assert math.isnan(values({**GRPO, "grad_norm": bad})["optim.grad_norm"])


def test_text_numpy_and_bool_become_floats() -> None:
    row = {**GRPO, "loss": "0.0123", "kl": np.float32(0.5), "reward": np.int64(2), "entropy": True, "grad_norm": "inf"}
    read = values(row)
    assert [read[k] for k in ("optim.loss", "policy.kl_ref", "reward.mean", "policy.entropy", "optim.grad_norm")] == [
        0.0123,
        0.5,
        2,
        1,
        math.inf,
    ]
    assert all(type(value) is float for value in read.values())


@pytest.mark.parametrize("bad", ["abc", {}, [1.0], np.zeros(3), object(), "1_0", b"1"])
def test_what_is_no_number_is_dropped_and_counted(bad: object) -> None:
    mapper = Mapper()
    assert "optim.loss" not in mapper.frame({**GRPO, "loss": bad}, step=1).values
    assert "loss" in mapper.unknown


def test_evaluation_is_never_a_training_value() -> None:
    frame = Mapper().frame({"eval_loss": 1.0, "eval_reward": 0.4, "eval_kl": 0.1, "eval_runtime": 3.0, "epoch": 1.0}, step=3)
    assert frame.phase == "eval"
    assert frame.values == {"eval.loss": 1.0, "eval.reward": 0.4, "run.epoch": 1.0}
    assert Mapper().frame({"eval/loss": 1.0}, step=1).values == {"eval.loss": 1.0}
    assert Mapper().frame({"loss": 1.0}, step=1, phase="eval").values == {"eval.loss": 1.0}


def test_prefixes_of_the_tracking_callbacks() -> None:
    row = {f"train/{key}": value for key, value in GRPO.items()}
    assert values(row) == values(GRPO)


def test_reward_models_accuracy_is_no_held_out_score() -> None:
    read = values({"loss": 0.6, "accuracy": 0.9, "margin": 1.0, "min_reward": 0.0, "max_reward": 1.0, "mean_reward": 0.5})
    assert read["preference.accuracy"] == 0.9
    assert not any(key.startswith("eval.") for key in read)
    assert Mapper().resolve("accuracy") is None


@pytest.mark.parametrize("row", [{"eval_mean_token_accuracy": 0.2, "eval_rewards/accuracies": 0.9}, {"eval/mean_token_accuracy": 0.2, "eval/rewards/accuracies": 0.9}])
def test_held_out_accuracy_of_pairs_is_no_token_accuracy(row: dict[str, float]) -> None:
    """DPO logs both in one evaluation row, the share of right tokens first."""
    assert values(row) == {"eval.accuracy": 0.9}
    bare = {key[5:]: value for key, value in row.items()}
    assert Mapper("dpo").frame(bare, step=1, phase="eval").values == {"eval.accuracy": 0.9}


def test_held_out_margin_is_that_of_trainers_with_a_reference() -> None:
    row = {"eval_loss": 0.5, "eval_rewards/margins": 0.3}
    assert Mapper("kto").frame(row, step=1).values == {"eval.loss": 0.5, "eval.margin": 0.3}
    assert Mapper("orpo").frame(row, step=1).values == {"eval.loss": 0.5}  # beta times mean log-probs: another scale


def test_told_trainer_wins() -> None:
    mapper = Mapper("rloo")
    mapper.frame(GRPO, step=1)
    assert mapper.trainer == "rloo"
    assert mapper.applied["kl"] == "policy.kl_ref"


def test_canonical_names_and_custom_signals_pass() -> None:
    row = {"policy.kl_ref": 0.1, "reward.component_mean{component=a}": 1.0, "custom.mine": 2.0}
    assert values(row) == row


def test_verl_scale_and_preference_of_names() -> None:
    read = values({"actor/pg_loss": 0.1, "actor/lr(1e-4)": 0.01, "critic/kl": 0.2, "actor/kl_loss": 0.3, "critic/vf_loss": 1.0})
    assert read["optim.learning_rate"] == pytest.approx(1e-6)
    assert read["policy.kl_ref"] == 0.3


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["objective/kl", "policy/approxkl_avg"], ("ppo", "trl")),
        (["rewards/chosen", "rewards/accuracies", "rewards/margins"], ("dpo", "trl")),
        (["rewards/accuracies", "log_odds_ratio", "nll_loss"], ("orpo", "trl")),
        (["loss", "mean_token_accuracy"], ("sft", "trl")),
        (["loss", "grad_norm", "learning_rate", "epoch"], ("unknown", "transformers")),
        (["something"], ("unknown", "unknown")),
    ],
)
def test_detection(names: list[str], expected: tuple[str, str]) -> None:
    assert detect(names) == expected


def test_secrets_are_not_kept_and_settings_become_signals() -> None:
    config = {
        "hub_token": "abc",
        "wandb_api_key": "x",
        "url": "https://a:b@c",
        "model": "q",
        "x": "hf_abcdef",
        "max_completion_length": 64,
        "epsilon": 0.2,
        "nested": {"a": 1},
    }
    assert safe_config(config) == {"model": "q", "max_completion_length": 64, "epsilon": 0.2}
    assert config_signals(config) == {"completion.length_cap": 64.0, "policy.clip_low": 0.8, "policy.clip_high": 1.2}
    assert config_signals({}) == {}


def test_plans_stay_bounded_and_rows_with_varying_keys_agree() -> None:
    mapper = Mapper("grpo")
    for index in range(1000):
        frame = mapper.frame({"loss": 1.0, f"rewards/f{index}/mean": 2.0}, step=index)
        assert frame.values["optim.loss"] == 1.0
    assert len(mapper._plans) <= 256
    assert split_label(next(key for key in frame.values if "{" in key)) == ("reward.component_mean", "component", "f999")


def test_a_reward_without_a_name_is_one_component_and_not_two() -> None:
    """TRL names a reward model by the last part of its path: nothing, where the path ends in "/"."""
    frame = Mapper("grpo", "trl").frame({"rewards//mean": 0.5, "rewards//std": 0.1}, step=1)
    assert dict(frame.values) == {"reward.component_mean{component=unnamed}": 0.5, "reward.component_std{component=unnamed}": 0.1}
