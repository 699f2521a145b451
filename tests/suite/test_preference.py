"""Preference trainers train for real: the signals on record, and their numbers computed anew from the same batches."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from typing import Any

import build_preference as build
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from trainvitals.events import CATALOGUE
from trainvitals.integrations import pair_scores, preference
from trainvitals.names import Mapper

STEPS = 3
FAST = {"max_steps": STEPS, "learning_rate": 1e-3, "lr_scheduler_type": "constant"}
MANY = {**FAST, "per_device_train_batch_size": 32}  # enough pairs for what needs some dozens of them


def varied(row: dict[str, str]) -> dict[str, str]:
    """Responses of other lengths; in one pair of four, about, the rejected one is longer."""
    size = 1 + sum(map(ord, row["chosen"])) % 4
    return {**row, "chosen": row["chosen"] + "a" * size, "rejected": row["rejected"] if size > 1 else row["rejected"] * 2}


# ---- numbers in, numbers out ----


def test_identical_and_empty_pairs_are_counted() -> None:
    chosen = torch.tensor([[1, 2, 3, 0], [1, 2, 3, 4], [1, 2, 0, 0], [1, 5, 9, 0]])
    rejected = torch.tensor([[1, 2, 3, 7, 7], [1, 2, 3, 5, 7], [1, 2, 7, 7, 7], [1, 5, 9, 9, 7]])
    left = torch.tensor([[0, 0, 1, 0], [0, 0, 1, 1], [0, 0, 0, 0], [0, 1, 1, 0]])
    right = torch.tensor([[0, 0, 1, 0, 0], [0, 0, 1, 1, 0], [0, 0, 0, 0, 0], [0, 1, 1, 1, 0]])
    counts = preference.pair_counts(chosen, rejected, left, right)
    assert counts.tolist() == [4, 1, 8, 2]  # one pair equal whatever pads it, one empty on both sides, one a prefix only
    both = preference.share_signals([counts, preference.response_counts(left)])
    assert both == {"preference.empty_fraction": 3 / 12, "preference.identical_fraction": 1 / 4}
    assert preference.share_signals([preference.response_counts(left)]) == {"preference.empty_fraction": 1 / 4}


@pytest.mark.parametrize("label", [[True, False, False, False], torch.tensor([1, 0, 0, 0])])
def test_balance_of_classes(label: Any) -> None:
    counts = [preference.class_counts(label), preference.class_counts([True, True])]
    assert preference.class_signals(counts) == {"preference.desirable_fraction": 0.5, "preference.one_class_fraction": 0.5}


def test_ties_and_failures_of_a_judge() -> None:
    scores = [torch.tensor([1.0, 2.0, math.nan, 2.0]), torch.tensor([1.0, 1.0])]
    assert pair_scores.tie_signals(scores) == {"preference.tied_fraction": 2 / 3, "reward.max": 2.0, "reward.min": 1.0, "reward.std": pytest.approx(statistics.stdev([1, 2, 2, 1, 1]))}
    assert pair_scores.tie_signals([torch.full((2,), math.nan)]) == {"preference.tied_fraction": 0.0}
    assert pair_scores.tie_signals([]) == {}
    heard = pair_scores.heard_signals([[1.0, None, math.nan, 0.0], [None, None, math.nan, 3.0]], [1.0, 0.0], ["right", "long"])
    assert heard["reward.unscored_fraction"] == 0.5
    assert heard["reward.component_mean{component=right}"] == 0.5
    assert heard["reward.component_zero_fraction{component=right}"] == 0.5
    assert heard["reward.component_unscored_fraction{component=long}"] == 0.75
    assert heard["reward.unpaid_mean{component=long}"] == 3.0
    assert not set(heard) & pair_scores.ENDS, "they are of the scores that TRL goes on with"


def test_score_and_length_go_together_within_pairs() -> None:
    scores = torch.tensor([2.0, 0.0, 1.0, 1.0, 0.0, 2.0, 1.0, math.nan])  # differences 2, -2, 0, nan
    lengths = torch.tensor([7, 2, 5, 9, 5, 4, 9, 1])  # differences 2, -2, -4, 8
    assert preference.length_signals([scores, lengths]) == {"reward.length_correlation": pytest.approx(8 / math.sqrt(8 * 24))}
    apart = [scores[[0, 4]], scores[[1, 2, 5, 6]], lengths[[0, 4]], lengths[[1, 2, 5, 6]]]  # two micro-batches
    assert preference.length_signals(apart) == {"reward.length_correlation": pytest.approx(8 / math.sqrt(8 * 24))}
    for nothing in ([], [torch.ones(4), lengths[:4]], [scores[:4], torch.ones(4)], [scores[:3], lengths[:3]], [torch.ones(0), torch.ones(0)]):
        assert preference.length_signals(nothing) == {}


@pytest.mark.parametrize("sign", [1, -1])
def test_within_pairs_the_longer_answer_earns_as_much_more_as_it_is_longer(sign: int) -> None:
    lengths = torch.randint(1, 50, (64,))
    assert preference.length_signals([sign * 0.1 * lengths, lengths])["reward.length_correlation"] == pytest.approx(sign)
    # a score of the prompt is the same for both answers and explains nothing
    prompts = torch.randn(32).repeat(2)
    assert preference.length_signals([sign * lengths + 100 * prompts, lengths])["reward.length_correlation"] == pytest.approx(sign, abs=1e-4)


def test_sums_and_counts_of_one_class_become_means() -> None:
    rows = [
        {"rewards/chosen_sum": 6.0, "count/chosen": 3.0, "kl": 1.0},
        {"rewards/chosen_sum": 2.0, "count/chosen": 1.0, "rewards/rejected_sum": -4.0, "count/rejected": 4.0, "kl": 0.0},
    ]
    assert preference.mean_metrics(rows) == {"rewards/chosen": 2.0, "rewards/rejected": -1.0, "kl": 0.5, "rewards/margins": 3.0}
    assert preference.mean_metrics(rows[:1]) == {"rewards/chosen": 2.0, "kl": 1.0}


def test_a_nan_stays_a_nan() -> None:
    assert math.isnan(preference.gap([0.0, math.nan, 2.0]))
    assert preference.gap([0.5, -2.0]) == 2.0
    assert math.isnan(preference.moved({"rewards/chosen": math.nan}, 0.1)["preference.logratio_chosen"])


def test_rewards_with_and_without_a_reference_never_share_a_name() -> None:
    row = {"rewards/chosen": 1.0, "rewards/rejected": 0.5, "rewards/margins": 0.5, "rewards/accuracies": 1.0}
    dpo, orpo = (Mapper(kind).frame(row, step=1).values for kind in ("dpo", "orpo"))
    assert set(dpo) & set(orpo) == {"preference.accuracy"}
    for name in dpo.keys() - orpo.keys():
        assert not {"orpo", "cpo", "tpo"} & set(CATALOGUE[name].emitters)


# ---- real training ----


class Batches:
    """Every batch that a trainer's loss saw, with the numbers of the policy as it was then."""

    def __init__(self, trainer: Any, read: Callable[[Any, Any], dict[str, float]], method: str = "compute_loss") -> None:
        self.rows: list[dict[str, float]] = []
        original = getattr(trainer, method)

        def call(model: Any, batch: Any, *args: Any, **kwargs: Any) -> Any:
            with torch.no_grad():
                self.rows.append(read(model, batch))
            return original(model, batch, *args, **kwargs)

        setattr(trainer, method, call)

    def series(self, name: str) -> dict[int, float]:
        return dict(enumerate((row[name] for row in self.rows), start=1))


def logps(model: Any, ids: torch.Tensor, mask: torch.Tensor, attention: torch.Tensor) -> torch.Tensor:
    """Log-probability of each row's masked tokens, from plain logits."""
    logits = model(input_ids=ids, attention_mask=attention).logits[:, :-1].log_softmax(-1)
    tokens = torch.gather(logits, 2, ids[:, 1:].clamp(min=0).unsqueeze(2)).squeeze(2)
    return (tokens * mask[:, 1:]).sum(1)


def close(found: dict[int, float], expected: dict[int, float]) -> None:
    assert found == {step: pytest.approx(value, abs=2e-4) for step, value in expected.items()}


def test_dpo(tmp_path, train, saw) -> None:
    trainer = build.dpo(str(tmp_path), data=build.pairs(varied, count=96), **MANY)
    start = AutoModelForCausalLM.from_pretrained(tmp_path / "start")

    def read(model: Any, batch: Any) -> dict[str, float]:
        parts = batch["input_ids"], batch["completion_mask"], batch["attention_mask"]
        moved = (logps(model, *parts) - logps(start, *parts)).chunk(2)
        return {"chosen": float(moved[0].mean()), "rejected": float(moved[1].mean())}

    batches = Batches(trainer, read)
    seen = train(trainer)
    assert seen.notices == []
    saw("dpo", seen)
    for split in ("chosen", "rejected"):
        close(seen.series(f"preference.logratio_{split}"), batches.series(split))
        close(seen.series(f"preference.reward_{split}"), seen.logged(f"rewards/{split}"))
    assert batches.rows[-1]["chosen"] > 0.05  # it moved
    assert seen.series("preference.reference_gap") == {1: 0.0}
    assert set(seen.series("preference.identical_fraction").values()) == {0.0}
    assert seen.callback.monitor.findings == [] or all(finding.severity == "info" for finding in seen.callback.monitor.findings)


def test_dpo_reads_every_micro_batch_and_every_step_between_logs(tmp_path, train) -> None:
    trainer = build.dpo(str(tmp_path), **{**FAST, "max_steps": 4}, logging_steps=2, gradient_accumulation_steps=2)
    seen = train(trainer)
    chosen = seen.series("preference.logratio_chosen")
    assert set(chosen) == {1, 2, 3, 4}
    logged = seen.logged("rewards/chosen")
    close({2: (chosen[1] + chosen[2]) / 2, 4: (chosen[3] + chosen[4]) / 2}, {step: value / trainer.beta for step, value in logged.items()})


def test_a_reference_that_is_another_model(tmp_path, train) -> None:
    trainer = build.dpo(str(tmp_path), **FAST)
    with torch.no_grad():
        next(trainer.model.parameters()).mul_(2.0)
    seen = train(trainer)
    (gap,) = seen.series("preference.reference_gap").values()
    first = [abs(seen.series(f"preference.logratio_{split}")[1]) for split in ("chosen", "rejected")]
    assert gap == pytest.approx(max(first))
    assert gap > 0.2


def test_kto(tmp_path, train, saw) -> None:
    trainer = build.kto(str(tmp_path), data=build.examples((True, False, False, False)), **FAST)
    start = AutoModelForCausalLM.from_pretrained(tmp_path / "start")

    def read(model: Any, batch: Any) -> dict[str, float]:
        label = torch.as_tensor(batch["label"]).bool()
        if "completion_mask" in batch:
            parts = batch["input_ids"], batch["completion_mask"], batch["attention_mask"]
        else:
            parts = batch["completion_input_ids"], batch["completion_labels"] != -100, batch["completion_attention_mask"]
        moved = logps(model, *parts) - logps(start, *parts)
        return {"share": float(label.float().mean()), "chosen": float(moved[label].mean()), "rejected": float(moved[~label].mean())}

    batches = Batches(trainer, read)
    seen = train(trainer)
    assert seen.notices == []
    saw("kto", seen)
    close(seen.series("preference.desirable_fraction"), batches.series("share"))
    for split in ("chosen", "rejected"):
        close(seen.series(f"preference.logratio_{split}"), batches.series(split))
    close(seen.series("preference.kl_zero_fraction"), {step: float(value <= 0) for step, value in seen.logged("kl").items()})
    assert seen.series("preference.kl_baseline")[1] == 0.0
    assert seen.series("preference.reference_gap") == {1: 0.0}
    assert "preference.accuracy" not in seen.signals


def test_kto_without_a_kl_does_not_promise_its_share_of_zeros(tmp_path, train) -> None:
    seen = train(build.kto(str(tmp_path), loss_type="apo_zero_unpaired", **FAST))
    assert "preference.kl_zero_fraction" not in seen.signals
    assert "preference.kl_zero_fraction" not in seen.start.emits


def _free(model: Any, batch: Any) -> dict[str, float]:
    """Log-probability per token of ORPO's and CPO's batches."""
    values = []
    for split in ("chosen", "rejected"):
        mask = batch[f"{split}_labels"] != -100
        total = logps(model, batch[f"{split}_input_ids"], mask, batch[f"{split}_attention_mask"])
        values.append((total, mask[:, 1:].sum(1)))
    (chosen, n), (rejected, m) = values
    c, r = chosen / n, rejected / m
    odds = (c - r) - (torch.log1p(-c.exp()) - torch.log1p(-r.exp()))
    return {
        "sum": float(chosen.mean()), "mean": float(c.mean()), "odds": float(odds.mean()),
        "loss": float(-torch.nn.functional.logsigmoid(odds).mean()), "margin": float((c - r).mean()), "margin_sum": float((chosen - rejected).mean()),
    }  # fmt: skip


def test_orpo(tmp_path, train, saw) -> None:
    trainer = build.orpo(str(tmp_path), data=build.pairs(varied, count=96), **MANY)
    batches = Batches(trainer, _free)
    seen = train(trainer)
    assert seen.notices == []
    saw("orpo", seen)
    close(seen.series("preference.log_odds"), batches.series("odds"))
    close(seen.series("preference.odds_loss"), batches.series("loss"))
    close(seen.series("preference.logp_token_chosen"), batches.series("mean"))
    close(seen.series("preference.free_margin"), {step: trainer.beta * value for step, value in batches.series("margin").items()})
    assert seen.series("preference.nll") == pytest.approx(seen.logged("nll_loss"))
    assert not {"preference.reward_chosen", "preference.margin", "preference.logratio_chosen"} & seen.signals.keys()


def test_orpo_is_read_between_log_rows(tmp_path, train) -> None:
    seen = train(build.orpo(str(tmp_path), **{**FAST, "max_steps": 4}, logging_steps=4, gradient_accumulation_steps=2))
    odds = seen.series("preference.log_odds")
    assert set(odds) == {1, 2, 3, 4}
    assert sum(odds.values()) / 4 == pytest.approx(seen.logged("log_odds_chosen")[4], abs=1e-5)


def test_cpo(tmp_path, train, saw) -> None:
    trainer = build.cpo(str(tmp_path), data=build.pairs(varied, count=96), **MANY)
    batches = Batches(trainer, _free)
    seen = train(trainer)
    assert seen.notices == []
    saw("cpo", seen)
    close(seen.series("preference.logp_chosen"), batches.series("sum"))
    close(seen.series("preference.free_margin"), {step: trainer.beta * value for step, value in batches.series("margin_sum").items()})


def test_tpo(tmp_path, train, saw) -> None:
    trainer = build.tpo(str(tmp_path), data=build.pairs(varied, count=96, gold=True), **MANY)
    seen = train(trainer)
    assert seen.notices == []
    saw("tpo", seen)
    assert seen.series("preference.free_margin") == pytest.approx(seen.logged("rewards/margins"))
    assert set(seen.series("preference.identical_fraction").values()) == {0.0}  # chosen against rejected, not against the gold answer


def _margins(trainer: Any, model: Any, batch: Any, start: Any) -> list[tuple[int, int, float]]:
    """Length of chosen, length of rejected, margin of every pair of a batch, one by one."""
    if "chosen_input_ids" in batch:
        parts = [(batch[f"{s}_input_ids"], batch[f"{s}_labels"] != -100, batch[f"{s}_attention_mask"]) for s in ("chosen", "rejected")]
    else:
        count = len(batch["input_ids"]) // (3 if hasattr(trainer, "tpo_alpha") else 2)
        names = ("input_ids", "completion_mask", "attention_mask")
        parts = [tuple(batch[name][i * count : (i + 1) * count] for name in names) for i in (0, 1)]
    sizes = [mask.sum(1) for _, mask, _ in parts]
    rewards = [logps(model, *part) - (logps(start, *part) if start is not None else 0.0) for part in parts]
    if hasattr(trainer, "odds_ratio_loss"):  # of the mean per token
        rewards = [reward / size for reward, size in zip(rewards, sizes, strict=True)]
    return list(zip(sizes[0].tolist(), sizes[1].tolist(), (rewards[0] - rewards[1]).tolist(), strict=True))


@pytest.mark.parametrize("name", ["dpo", "tpo", "orpo", "cpo"])
def test_margins_and_lengths_of_the_newest_pairs(name: str, tmp_path, train) -> None:
    settings = {**FAST, "max_steps": 8, "per_device_train_batch_size": 8, "gradient_accumulation_steps": 2}
    trainer = getattr(build, name)(str(tmp_path), data=build.pairs(varied, count=128, gold=name == "tpo"), **settings)
    start = AutoModelForCausalLM.from_pretrained(tmp_path / "start").eval() if name == "dpo" else None
    kept: list[list[tuple[int, int, float]]] = []
    original = trainer.compute_loss

    def call(model: Any, batch: Any, *args: Any, **kwargs: Any) -> Any:
        with torch.no_grad():
            kept.append(_margins(trainer, model, batch, start))
        return original(model, batch, *args, **kwargs)

    trainer.compute_loss = call
    seen = train(trainer)
    assert seen.notices == []
    steps = [kept[2 * i] + kept[2 * i + 1] for i in range(8)]
    share = {i: sum((c > r) + 0.5 * (c == r) for c, r, _ in step) / len(step) for i, step in enumerate(steps, start=1)}
    assert seen.series("preference.longer_chosen_fraction") == pytest.approx(share)
    assert 0.5 < sum(share.values()) / 8 < 0.95
    everything = np.array([pair for step in steps for pair in step])
    longer, margin = everything[:, 0] - everything[:, 1], everything[:, 2]
    correlation = seen.series("preference.margin_length_correlation")
    assert set(correlation) == {4, 5, 6, 7, 8}
    assert correlation[8] == pytest.approx(np.corrcoef(longer, margin)[0, 1], abs=1e-3)
    accuracy = seen.series("preference.shorter_chosen_accuracy")
    assert accuracy[8] == pytest.approx((margin[longer < 0] > 0).mean(), abs=0.05)
    assert max(seen.series("preference.chosen_commonest_fraction").values()) < 0.2


@pytest.mark.parametrize(
    ("margins", "logged", "others"),
    [([0.1, 0.5, -0.3], 0.1, False), ([0.1, 0.5, -0.3], -0.1, True), ([-90.0, -80.0], 0.4, True), ([0.0, 0.0], 0.0, False), ([1.0, 1.01], 1.05, False)],
)
def test_whether_margins_are_those_that_are_logged(margins: list[float], logged: float, others: bool) -> None:
    assert preference.not_these(torch.tensor(margins), logged) is others


def test_rewards_in_another_order_than_ours_are_told_and_not_used(tmp_path, train, monkeypatch) -> None:
    """A TRL that gathers rejected before chosen: every margin would have the wrong sign."""
    heard = preference._Preference.after_gather

    def swapped(self: Any, result: Any, args: tuple[Any, ...], kwargs: dict[str, Any], seconds: float) -> None:
        heard(self, result, args, kwargs, seconds)
        if self._rewards is not None and len(self._rewards) == 2:
            self._rewards.reverse()

    monkeypatch.setattr(preference._Preference, "after_gather", swapped)
    seen = train(build.dpo(str(tmp_path), data=build.pairs(varied, count=128), **{**FAST, "max_steps": 8, "per_device_train_batch_size": 16}))
    assert any("are not those whose mean margin" in notice for notice in seen.notices)
    assert "preference.margin_length_correlation" not in seen.signals


def test_one_chosen_answer(tmp_path, train) -> None:
    data = build.pairs(lambda row: {**row, "chosen": "none"})
    seen = train(build.dpo(str(tmp_path), data=data, **{**FAST, "max_steps": 4, "per_device_train_batch_size": 16}))
    assert seen.series("preference.chosen_commonest_fraction") == {4: 1.0}


def test_rewards_that_are_not_gathered_leave_the_lengths(tmp_path, train) -> None:
    trainer = build.dpo(str(tmp_path), **{**FAST, "max_steps": 5, "per_device_train_batch_size": 16})
    trainer._compute_loss = lambda model, inputs, return_outputs: model(inputs["input_ids"]).logits.mean()
    seen = train(trainer)
    assert set(seen.series("preference.longer_chosen_fraction").values()) == {0.5}
    assert "preference.margin_length_correlation" not in seen.signals


def test_bco(tmp_path, train, saw) -> None:
    seen = train(build.bco(str(tmp_path), **FAST))
    assert seen.notices == []
    saw("bco", seen)
    close(seen.series("preference.margin"), seen.logged("rewards/margins"))
    assert set(seen.series("preference.desirable_fraction").values()) == {0.5}


def test_online_dpo(tmp_path, train, saw) -> None:
    scores: list[list[float]] = []

    def vowels(completions: list[Any], **kwargs: Any) -> list[float | None]:
        found = build.tiny.vowels(completions)
        scores.append(found)
        return [None, *found[1:]]

    trainer = build.online_dpo(str(tmp_path), reward=vowels, **{**FAST, "max_steps": 4}, logging_steps=2)
    seen = train(trainer)
    assert seen.notices == []
    saw("online_dpo", seen)
    for step, found in enumerate(scores, start=1):
        half = len(found) // 2
        found = [0.0, *found[1:]]  # what TRL makes of a missing score
        ties = [found[i] == found[half + i] for i in range(half)]
        assert seen.series("preference.tied_fraction")[step] == sum(ties) / half
        assert seen.series("reward.max")[step] == pytest.approx(max(found))
        assert seen.series("reward.min")[step] == min(found)
        assert seen.series("reward.std")[step] == pytest.approx(statistics.stdev(found), rel=1e-6)
        assert seen.series("reward.unscored_fraction")[step] == 1 / (2 * half)
    margins = seen.series("preference.margin")
    assert set(margins) == {1, 2, 3, 4}
    close({2: (margins[1] + margins[2]) / 2, 4: (margins[3] + margins[4]) / 2}, seen.logged("rewards/margins"))
    ended = seen.logged("val/contain_eos_token")
    cut = seen.series("completion.truncated_fraction")
    assert (cut[3] + cut[4]) / 2 == pytest.approx(1 - ended[4])
    assert trainer.reward_funcs == [vowels]
    assert seen.series("preference.reference_gap") == {1: 0.0}
    assert seen.series("completion.length_cap") == {1: 12.0}


@pytest.mark.parametrize("name", ["xpo", "nash_md"])
def test_online_kin(name: str, tmp_path, train, saw) -> None:
    seen = train(getattr(build, name)(str(tmp_path), **FAST))
    assert seen.notices == []
    saw(name, seen)
    if name == "nash_md":  # which calls log pi - log pi_ref a margin; XPO's `objective/kl` averages two KLs of opposite signs
        assert seen.series("policy.kl_ref_sequence") == pytest.approx(seen.logged("rewards/margins"))
    ended = seen.logged("val/model_contain_eos_token")
    assert seen.series("completion.truncated_fraction") == pytest.approx({step: 1 - share for step, share in ended.items()})
    raw = {"xpo": "objective/model_scores", "nash_md": "rewards/chosen"}[name]
    assert seen.series("reward.mean") == pytest.approx(seen.logged(raw))


def test_a2po(tmp_path, train, saw) -> None:
    trainer = build.a2po(str(tmp_path), **FAST)
    decode, end, written = trainer.processing_class.batch_decode, trainer.processing_class.eos_token_id, []

    def heard(ids: Any, **kwargs: Any) -> list[str]:
        written.append(ids.tolist())
        return decode(ids, **kwargs)

    trainer.processing_class.batch_decode = heard
    seen = train(trainer)
    assert seen.notices == []
    saw("a2po", seen)
    for step, rows in enumerate(written[-len(seen.series("reward.mean")) :], start=1):  # before them come the samples of the value estimates
        lengths = [row.index(end) + 1 if end in row else len(row) for row in rows]
        assert seen.series("completion.length_mean")[step] == pytest.approx(sum(lengths) / len(lengths))
        assert seen.series("completion.truncated_fraction")[step] == pytest.approx(sum(end not in row for row in rows) / len(rows))
    assert seen.series("reward.mean") == pytest.approx(seen.logged("reward"))
    assert seen.series("advantage.mean") == pytest.approx(seen.logged("advantage"))


@pytest.mark.parametrize("longer", [True, False])
def test_online_dpo_is_paid_for_length(tmp_path, train, longer: bool) -> None:
    def judged(completions: list[Any], **kwargs: Any) -> list[float]:
        return [float(len(build.tiny.text_of(text))) for text in completions] if longer else build.tiny.vowels(completions)

    settings = {"per_device_train_batch_size": 16, "max_new_tokens": 24, "learning_rate": 1e-3, "beta": 0.05, "lr_scheduler_type": "constant", "max_steps": 16}
    seen = train(build.online_dpo(str(tmp_path), reward=judged, **settings))
    correlations = [*seen.series("reward.length_correlation").values()]
    assert (min(correlations) > 0.8) is longer
    assert ("paid-for-length" in {one.rule.id for one in seen.callback.monitor.findings}) is longer
