"""Trainers that learn from a teacher: their signals are on record, and the numbers are those of the batch."""

from __future__ import annotations

import math
from typing import Any

import build_distillation as build
import pytest
import torch

from trainvitals.integrations import distill_math as calc
from trainvitals.integrations import tiny
from trainvitals.names import Mapper

STEPS = 4


def made(name: str, output_dir: Any, **changes: Any) -> Any:
    """A trainer, or a skip where this TRL does not have it."""
    try:
        return getattr(build, name)(str(output_dir), **{"max_steps": STEPS, **changes})
    except ImportError as error:
        from trl import __version__

        pytest.skip(f"TRL {__version__} has no {name}: {error}")


class Spy:
    """Keeps what a method was given and what it returned, and the weights of the student at that moment."""

    def __init__(self, owner: Any, name: str) -> None:
        self.calls: list[tuple[Any, tuple[Any, ...], dict[str, Any]]] = []
        original = getattr(owner, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            result = original(*args, **kwargs)
            self.calls.append((result, args, kwargs))
            return result

        setattr(owner, name, call)


def read_alone(seen: Any) -> tuple[str, set[str]]:
    """Trainer and signals as told by the log rows alone; no name in them may be unknown."""
    mapper, found = Mapper(), set()
    for row in seen.trainer.state.log_history:
        if "train_runtime" not in row:
            found |= set(mapper.frame(row, step=row["step"]).values)
    assert mapper.unknown == set()
    return mapper.trainer, found


def jsd(student: torch.Tensor, teacher: torch.Tensor, beta: float) -> torch.Tensor:
    """The definition, in double precision: beta * KL(t || m) + (1 - beta) * KL(s || m) with m = beta * t + (1 - beta) * s, per token."""
    s, t = student.double().softmax(-1), teacher.double().softmax(-1)
    if beta in {0.0, 1.0}:
        p, q = (t, s) if beta == 0 else (s, t)
        return (p * (p / q).log()).sum(-1)
    m = beta * t + (1 - beta) * s
    return beta * (t * (t / m).log()).sum(-1) + (1 - beta) * (s * (s / m).log()).sum(-1)


def entropy(logits: torch.Tensor) -> torch.Tensor:
    p = logits.double().softmax(-1)
    return -(p * p.log()).sum(-1)


def test_gkd(tmp_path, train, saw):
    trainer = made("gkd", tmp_path, lmbda=1.0)
    spy = Spy(trainer, "generalized_jsd_loss")
    seen = train(trainer)
    assert seen.notices == []
    saw("gkd", seen)
    assert seen.series("distill.beta") == {1: 0.5}
    assert set(seen.series("distill.on_policy_fraction").values()) == {1.0}
    for step, (loss, _, given) in enumerate(spy.calls, start=1):
        mask = given["labels"] != -100
        rows = [given[name].detach()[mask] for name in ("student_logits", "teacher_logits")]
        right = float(jsd(*rows, 0.5).mean())
        assert seen.series("distill.divergence")[step] == pytest.approx(right, rel=1e-4)
        assert seen.series("policy.entropy")[step] == pytest.approx(float(entropy(rows[0]).mean()), rel=1e-4)
        surprise = -rows[1].double().log_softmax(-1).gather(-1, given["labels"][mask].unsqueeze(-1)).mean() / math.log(len(tiny.tokenizer()))
        assert seen.series("distill.teacher_surprise")[step] == pytest.approx(float(surprise), rel=1e-4)
        assert seen.series("completion.length_mean")[step] == pytest.approx(float(mask.sum(1).double().mean()))
        assert seen.series("completion.truncated_fraction")[step] <= 0.5
        if given.get("num_items_in_batch") is not None:
            # TRL divides the student's tokens by the number of the data set's tokens: its own loss is no mean.
            assert float(loss) != pytest.approx(right, rel=1e-3)


def test_gkd_labels_that_its_loss_gets(tmp_path, train):
    trainer = made("gkd", tmp_path, lmbda=0.0)
    right = trainer.compute_loss

    def cut(model, inputs, *rest, **more):
        labels = inputs["labels"]
        return right(model, {**inputs, "labels": labels.masked_fill((labels != -100).cumsum(dim=1) > 1, -100)}, *rest, **more)

    whole = train(made("gkd", tmp_path, lmbda=0.0))
    trainer.compute_loss = cut
    seen = train(trainer)
    assert set(whole.series("token.end_label_fraction").values()) == {1.0}
    assert set(seen.series("token.end_label_fraction").values()) == {0.0}
    assert max(seen.series("token.label_fraction").values()) < min(whole.series("token.label_fraction").values())


def test_gkd_writes_a_part_of_its_batches(tmp_path, train):
    seen = train(made("gkd", tmp_path, lmbda=0.5, gradient_accumulation_steps=4, max_steps=6))
    shares = seen.series("distill.on_policy_fraction")
    assert len(shares) == 6
    assert {share * 4 % 1 for share in shares.values()} == {0.0}
    assert 0.2 < sum(shares.values()) / 6 < 0.8
    assert set(train(made("gkd", tmp_path, lmbda=0.0)).series("distill.on_policy_fraction").values()) == {0.0}


def test_what_the_teacher_writes_is_not_on_policy(tmp_path, train):
    seen = train(made("gkd", tmp_path, lmbda=0.0, seq_kd=True))
    assert set(seen.series("distill.on_policy_fraction").values()) == {0.0}
    assert "completion.length_mean" not in seen.signals


def test_distillation(tmp_path, train, saw):
    trainer = made("distillation", tmp_path, gradient_accumulation_steps=2)
    teacher, inputs = trainer.teacher_model, []
    spy = Spy(trainer, "_compute_loss")
    original = trainer._compute_loss

    def remember(student: Any, batch: dict[str, Any], items: Any) -> Any:
        ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1)
        mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], 1)
        keep = batch["completion_mask"].bool()
        with torch.no_grad():
            rows = [model(input_ids=ids, attention_mask=mask).logits[:, -keep.size(1) - 1 : -1][keep] for model in (student, teacher)]
        inputs.append((*rows, batch["completion_ids"][keep]))
        return original(student, batch, items)

    trainer._compute_loss = remember
    seen = train(trainer)
    assert seen.notices == []
    saw("distillation", seen)
    assert read_alone(seen)[0] == "distillation"
    assert spy.calls
    assert set(seen.series("distill.on_policy_fraction").values()) == {1.0}
    for step in range(1, STEPS + 1):
        student, other, tokens = (torch.cat(parts) for parts in zip(*inputs[2 * step - 2 : 2 * step], strict=True))
        assert seen.series("distill.divergence")[step] == pytest.approx(float(jsd(student, other, 1.0).mean()), rel=1e-3)
        assert seen.series("policy.entropy")[step] == pytest.approx(float(entropy(student).mean()), rel=1e-3)
        surprise = -other.log_softmax(-1).gather(-1, tokens.unsqueeze(-1)).mean() / math.log(student.size(-1))
        assert seen.series("distill.teacher_surprise")[step] == pytest.approx(float(surprise), rel=1e-3)


def test_distillation_behind_a_server(tmp_path, train, saw):
    seen = train(made("server_distillation", tmp_path))
    assert seen.notices == []
    saw("server_distillation", seen)
    assert seen.series("distill.divergence") == pytest.approx(seen.logged("loss"), rel=1e-4)


@pytest.mark.parametrize("across", [False, True], ids=["one-vocabulary", "across-tokenizers"])
def test_gold(tmp_path, train, saw, across):
    changes = {"use_uld_loss": True, "uld_use_hybrid_loss": True, "teacher_tokenizer_name_or_path": f"{tmp_path}/teacher"} if across else {}
    trainer = made("gold", tmp_path, gradient_accumulation_steps=2, **changes)
    seen = train(trainer)
    assert seen.notices == []
    saw("gold_uld" if across else "gold", seen)
    told, found = read_alone(seen)
    assert told == ("gold" if across else "distillation")
    assert {"distill.on_policy_loss", "distill.off_policy_loss"} <= found
    shares = seen.series("distill.on_policy_fraction")
    assert set(shares.values()) <= {0.0, 0.5, 1.0}
    assert 0 < sum(shares.values()) < STEPS
    logged = {name: seen.logged(f"{name}_policy_loss") for name in ("on", "off")}
    assert set(logged["on"]) == {step for step, share in shares.items() if share > 0}
    assert set(logged["off"]) == {step for step, share in shares.items() if share < 1}
    assert seen.series("distill.on_policy_loss") == logged["on"]
    if across:
        assert len(seen.logged("matched_loss")) == STEPS
        for kind in ("matched", "unmatched"):
            assert seen.series(f"distill.{kind}_loss") == seen.logged(f"{kind}_loss")
        assert "distill.divergence" not in seen.signals


def test_iw_opd(tmp_path, train, saw):
    trainer = made("iw_opd", tmp_path)
    spy = Spy(trainer, "_compute_iw_opd_loss")
    seen = train(trainer)
    assert seen.notices == []
    saw("iw_opd", seen)
    told, found = read_alone(seen)
    assert told == "iw_opd"
    assert {"distill.logp_gap", "distill.on_policy_loss", "completion.length_mean", "completion.truncated_fraction"} <= found
    assert set(seen.series("distill.on_policy_fraction").values()) == {1.0}
    assert seen.series("distill.logp_gap") == pytest.approx(seen.logged("iw_opd/mean_abs_advantage"))
    for step, (_, _, given) in enumerate(spy.calls, start=1):
        keep = given["labels"] != -100
        logps = given["student_logits"].detach()[keep].double().log_softmax(-1)
        own = logps.gather(-1, given["completion_tokens"][keep].unsqueeze(-1)).squeeze(-1)
        gap = given["teacher_actual_logprobs"][keep].double() - own
        assert seen.series("distill.divergence")[step] == pytest.approx(float((gap.exp() - 1 - gap).mean()), rel=1e-3)
        assert seen.series("policy.entropy")[step] == pytest.approx(float(entropy(logps).mean()), rel=1e-3)


def test_sdft(tmp_path, train, saw):
    trainer = made("sdft", tmp_path)
    seen = train(trainer)
    assert seen.notices == []
    saw("sdft", seen)
    if seen.logged("sdft/distillation_loss"):  # TRL 1.0 records it and logs none of it
        assert read_alone(seen)[0] == "sdft"
        assert "distill.divergence" in read_alone(seen)[1]
    assert seen.series("distill.beta") == {1: 0.5}
    assert all(value > 0 for value in seen.series("distill.divergence").values())
    if seen.logged("self_distillation/distillation_loss"):
        assert seen.series("distill.divergence") == pytest.approx(seen.logged("self_distillation/distillation_loss"))
    distances = seen.series("distill.teacher_distance")
    if trainer.teacher_model is None:  # TRL 1.0: the student is its own teacher
        assert set(distances.values()) == {0.0}
    else:  # the teacher is the student of the start
        pairs = calc.weight_pairs(trainer.model, trainer.teacher_model)
        gap, norm = (float(x) for x in calc.distance(pairs))
        assert distances[STEPS] == pytest.approx(math.sqrt(gap / norm))
        assert 0 < distances[1] < distances[STEPS] < 0.1


def test_the_lag_of_a_teacher_that_follows(tmp_path, train):
    changes = {"teacher_model_kind": "ema", "teacher_update_rate": 1.0, "teacher_sync_steps": 2}
    try:
        trainer = made("sdft", tmp_path, **changes)
    except TypeError:  # TRL 1.0 has other words for it
        trainer = made("sdft", tmp_path, sync_ref_model=True, ref_model_mixup_alpha=1.0, ref_model_sync_steps=2)
    distances = train(trainer).series("distill.teacher_distance")
    assert [distances[step] > 0 for step in (1, 2, 3, 4)] == [True, False, True, False]


def test_sdpo(tmp_path, train, saw):
    trainer = made("sdpo", tmp_path)
    name = "_compute_teacher_student_logits" if hasattr(trainer, "_compute_teacher_student_logits") else "_aggregate_self_distillation_loss"
    spy = Spy(trainer, name)
    pairs = Spy(trainer, "_compute_token_level_distillation_loss") if name.startswith("_agg") else None
    seen = train(trainer)
    assert seen.notices == []
    saw("sdpo", seen)
    if seen.logged("sdpo/distillation_loss"):
        told, found = read_alone(seen)
        assert told == "sdpo"
        assert {"reward.mean", "distill.active_fraction", "distill.success_sample_fraction", "reward.component_mean{component=vowels}"} <= found
        assert "distill.divergence" not in found  # a negative policy gradient
    assert "reward.group_zero_std_fraction" in seen.signals
    assert "distill.success_group_fraction" in seen.signals
    assert all(0 < value < 1 for value in seen.series("distill.teacher_distance").values())
    for step, (both, args, _) in enumerate(spy.calls, start=1):
        if pairs is None:
            keep = both.loss_mask.bool()
            rows = [logits.detach()[keep] for logits in (both.student_logits, both.teacher_logits)]
            assert seen.series("distill.divergence")[step] == pytest.approx(float(jsd(*rows, 1.0).mean()), rel=1e-3)
        else:
            keep = args[1].bool()
            student, teacher = (part.detach()[keep].double() for part in pairs.calls[step - 1][1])
            assert seen.series("distill.divergence")[step] == pytest.approx(float(((teacher - student).exp() - 1 - teacher + student).mean()), rel=1e-3)


def test_sdpo_without_a_success_has_no_teacher(tmp_path, train):
    seen = train(made("sdpo", tmp_path, success_reward_threshold=2.0))
    assert set(seen.series("distill.active_fraction").values()) == {0.0}
    assert "distill.divergence" not in seen.signals


@pytest.mark.parametrize("threshold", [0.34, 2.0])
def test_sdpo_on_whole_distributions_has_the_divergence_of_its_loss(tmp_path, train, threshold):
    changes = {"success_reward_threshold": threshold, "distillation_alpha": 0.5}
    try:
        trainer = made("sdpo", tmp_path, distillation_mode="full_logits", **changes)
    except TypeError:  # TRL 1.0
        trainer = made("sdpo", tmp_path, full_logit_distillation=True, **changes)
    spy = Spy(trainer, "_log_self_distillation_metric")
    seen = train(trainer)
    logged = [args[-1] for _, args, _ in spy.calls]
    assert len(logged) == STEPS
    # TRL logs 0 where no sample had a teacher: there was no divergence to measure.
    assert seen.series("distill.divergence") == {step: value for step, value in enumerate(logged, start=1) if value}
    assert bool(seen.series("distill.divergence")) == (threshold < 1)


def test_feedback_is_counted(tmp_path, train):
    seen = train(made("sdpo", tmp_path, data=build.hints(build.HINT), include_environment_feedback=True, success_reward_threshold=2.0))
    for name in ("feedback_fraction", "feedback_used_fraction", "active_fraction"):
        assert set(seen.series(f"distill.{name}").values()) == {1.0}
    assert set(seen.series("distill.success_group_fraction").values()) == {0.0}


def test_ssd(tmp_path, train, saw):
    seen = train(made("ssd", tmp_path))
    assert seen.notices == []
    saw("ssd", seen)
    assert read_alone(seen)[0] == "ssd"
    assert seen.series("distill.active_fraction") == seen.logged("ssd/active_sample_ratio")


@pytest.mark.parametrize("count", [1, 3, 5, 40])
def test_positions_are_spread_and_exact_when_there_are_few(count):
    mask = torch.zeros(4, 10)
    mask.view(-1)[torch.randperm(40, generator=torch.Generator().manual_seed(count))[:count]] = 1
    index, weight = calc.positions(mask, 6)
    kept = index[weight > 0].tolist()
    assert all(mask.view(-1)[i] for i in kept)
    assert len(set(kept)) == len(kept) == min(count, 6)
    assert float(weight.sum()) == min(count, 6)


def test_no_position_no_signal():
    index, weight = calc.positions(torch.zeros(2, 3))
    sums = calc.sampled(torch.randn(len(index), 7), torch.randn(len(index), 7), torch.zeros(len(index), dtype=torch.long), weight)
    assert calc.sampled_signals(sums.unsqueeze(0), 7, divergence=True) == {}
    assert calc.per_token(torch.zeros(1, 2)) == {} == calc.estimated(torch.zeros(1, 3), 7)


def test_a_broken_distribution_is_not_hidden():
    logits = torch.randn(3, 7)
    logits[1, 2] = math.nan
    sums = calc.sampled(logits, torch.randn(3, 7), torch.zeros(3, dtype=torch.long), torch.ones(3))
    assert math.isnan(calc.sampled_signals(sums.unsqueeze(0), 7, divergence=True)["policy.entropy"])
