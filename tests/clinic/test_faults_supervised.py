"""Faults of supervised fine-tuning and of reward models, planted in real training, each beside a healthy twin."""

from __future__ import annotations

import sys
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from tests.clinic.ward.cases import by_id
from tests.clinic.ward.record import train

from trainvitals.integrations import tiny
from trainvitals.monitor import Monitor

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "suite"))
import build_supervised as build

pytestmark = [pytest.mark.slow, pytest.mark.trl]

CALM = {"learning_rate": 1e-3, "lr_scheduler_type": "constant_with_warmup", "warmup_steps": 5, "max_steps": 30}
_SKILLED: list[Any] = []


def skilled(vocabulary: Any, tmp_path: Path) -> Any:
    """A model that already gives the answers of `build.dialogues`, as a pretrained model would."""
    if not _SKILLED:
        settings = {**CALM, "learning_rate": 1e-2, "max_steps": 80, "lr_scheduler_type": "linear"}
        trainer = build.sft(str(tmp_path), rows=build.completions(), vocabulary=vocabulary, **settings)
        trainer.train()
        _SKILLED.append(trainer.model.state_dict())
    model = tiny.model(vocabulary)
    model.load_state_dict(_SKILLED[0])
    return model


def headline(patient: Any, rule: str) -> str:
    """The line of a rule, which is the only loud one."""
    assert list(patient.loud) == [rule], patient.said
    return next(line for line in patient.said if f"({rule}, step" in line)


def effects(patient: Any) -> set[str]:
    """Rules that were true as well, as an effect of another."""
    return {one.rule.id for one in patient.monitor.findings if one.suppressed_by}


def on_the_log(patient: Any) -> set[str]:
    """Loud rules when only the rows that the trainer logged are known."""
    with Monitor(console=False, fail_soft=False) as monitor:
        for row in patient.trainer.state.log_history:
            if "train_runtime" not in row:
                monitor.log(row["step"], {name: value for name, value in row.items() if name != "step"})
    return {one.rule.id for one in monitor.findings if one.state == "firing" and one.severity != "info"}


def test_a_response_template_that_is_never_found(tmp_path, observe):
    vocabulary = tiny.tokenizer()
    patient = observe(build.sft(str(tmp_path / "fault"), collator=build.ResponseOnly(vocabulary, "### Response:"), **CALM))
    line = headline(patient, "labels-masked")
    assert patient.loud["labels-masked"] <= 3
    assert "Label tokens are 0% of the batch. Nothing is being learned from it. Check the chat template and the response mask." in line
    assert "ERROR" in line
    assert patient.monitor.verdict.state == "stalled"
    assert patient.monitor.verdict.decision in {"stop", "restart_from"}
    assert on_the_log(patient) == {"labels-masked"}
    twin = observe(build.sft(str(tmp_path / "twin"), collator=build.ResponseOnly(vocabulary, "<|im_start|>assistant\n"), **CALM))
    assert twin.loud == {}
    assert on_the_log(twin) == set()


def test_an_end_token_that_is_the_pad_token(tmp_path, observe):
    vocabulary = tiny.tokenizer()
    vocabulary.pad_token = vocabulary.eos_token
    patient = observe(build.sft(str(tmp_path / "fault"), vocabulary=vocabulary, collator=build.MaskPadding(vocabulary), **CALM))
    line = headline(patient, "end-token-missing")
    assert patient.loud["end-token-missing"] <= 6
    assert "Only 0% of the training sequences end their last answer with an end token that is learned." in line
    assert "Use a pad token that is not the end token" in line
    twin = observe(build.sft(str(tmp_path / "twin"), collator=build.MaskPadding(tiny.tokenizer()), **CALM))
    assert twin.loud == {}


def test_answers_that_max_length_cuts(tmp_path, observe):
    """Most rows lose the end of their answer, with its end token; the loss looks as healthy as that of the twin."""
    patient = observe(build.sft(str(tmp_path / "fault"), **{**CALM, "max_length": 30}))
    line = headline(patient, "answers-truncated")
    assert patient.loud["answers-truncated"] <= 20
    assert "end at max_length (30 tokens) and not with an end token" in line
    assert "Raise max_length, or leave out the rows that do not fit." in line
    assert any(one.parameter == "max_length" and one.to == 60 for f in patient.monitor.findings if f.rule.id == "answers-truncated" for one in f.actions)
    assert patient.monitor.verdict.decision != "stop"
    twin = observe(build.sft(str(tmp_path / "twin"), **CALM))
    assert twin.loud == {}


@pytest.mark.parametrize("how", ["bos", "turns"])
def test_a_chat_template_that_is_applied_twice(tmp_path, observe, how):
    vocabulary = build.with_bos(tiny.tokenizer()) if how == "bos" else tiny.tokenizer()
    rows = build.rendered(vocabulary) if how == "bos" else build.rendered_twice(vocabulary)
    patient = observe(build.sft(str(tmp_path / "fault"), vocabulary=vocabulary, rows=rows, **CALM))
    line = headline(patient, "chat-template-doubled")
    assert patient.loud["chat-template-doubled"] <= 6
    assert "100% of the sequences begin with two BOS tokens or open a turn inside an open turn." in line
    assert "Apply the chat template once" in line
    twin = observe(build.sft(str(tmp_path / "twin"), vocabulary=vocabulary, **CALM))
    assert twin.loud == {}


@pytest.mark.parametrize("warmup", [0, 5])
def test_a_learning_rate_a_hundred_times_too_high(tmp_path, observe, warmup):
    vocabulary = tiny.tokenizer()
    settings = {**CALM, "warmup_steps": warmup, "lr_scheduler_type": "constant_with_warmup" if warmup else "constant"}
    rows = build.completions()
    model = skilled(vocabulary, tmp_path / "before")
    fault = build.sft(str(tmp_path / "fault"), rows=rows, model=model, **{**settings, "learning_rate": 1e-1})
    patient = observe(fault)
    line = headline(patient, "step-size-too-large")
    assert patient.loud["step-size-too-large"] <= 8
    assert "Steps this large throw away what the model knew. Stop, go back to a checkpoint from before, and reduce the learning rate." in line
    advice = next(f for f in patient.monitor.findings if f.rule.id == "step-size-too-large").actions
    assert any(one.parameter == "learning_rate" and one.to < 2e-2 for one in advice)
    assert "loss-diverged" in effects(patient)
    assert patient.monitor.verdict.state == "diverged"
    twin = observe(build.sft(str(tmp_path / "twin"), rows=rows, model=skilled(vocabulary, tmp_path), **settings))
    assert twin.loud == {}


def test_activations_that_overflow_float16(tmp_path, observe):
    """Large activations in one layer, as real models have them: beyond 65504 in float16, harmless in bfloat16.

    transformers refuses fp16=True without a GPU, but what it does there is this autocast, which the CPU has as well.
    """

    def trainer(folder: str, dtype: torch.dtype) -> Any:
        model = tiny.policy(tiny.tokenizer())
        with torch.no_grad():
            for part in (model.model.layers[0].mlp.up_proj, model.model.layers[0].mlp.down_proj):
                part.weight.mul_(2000)
        made = build.sft(str(tmp_path / folder), model=model, **{**CALM, "learning_rate": 1e-4, "max_steps": 12, "per_device_train_batch_size": 2})
        made.compute_loss_context_manager = lambda: torch.autocast("cpu", dtype=dtype)
        return made

    patient = observe(trainer("fault", torch.float16))
    line = headline(patient, "hidden-nan")
    assert patient.loud["hidden-nan"] <= 4
    assert "the trainer's NaN filter hides a dead run" in line
    assert patient.monitor.verdict.state == "diverged"
    twin = observe(trainer("twin", torch.bfloat16))
    assert twin.loud == {}


def test_a_model_that_memorises_its_data(tmp_path, observe):
    def answers(seed: int) -> list[dict[str, Any]]:
        random = Random(seed)
        word = lambda: "".join(random.choices("abcdefghij", k=6))  # noqa: E731
        ask = [[{"role": "user", "content": text}] for text in tiny.questions(16)]
        return [{"prompt": one, "completion": [{"role": "assistant", "content": word()}]} for one in ask]

    settings = {**CALM, "learning_rate": 3e-3, "max_steps": 100, "eval_strategy": "steps", "eval_steps": 10}
    model = tiny.policy(tiny.tokenizer())
    patient = observe(build.sft(str(tmp_path / "fault"), model=model, rows=answers(1), held_out=answers(2), **settings))
    line = headline(patient, "overfitting")
    assert 40 <= patient.loud["overfitting"] <= 100
    assert "Go back to the checkpoint of the best held-out loss" in line
    assert patient.monitor.verdict.state == "over_optimizing"
    rows = build.completions()
    twin = observe(build.sft(str(tmp_path / "twin"), model=tiny.policy(tiny.tokenizer()), rows=rows, held_out=rows[:16], **settings))
    assert twin.loud == {"eval-in-train": 1}  # it is judged on rows that it learns by heart, and never gets worse on them


def test_a_healthy_reward_model(tmp_path, observe):
    """The twin of the three below."""
    patient = observe(build.reward(str(tmp_path), rows=build.pairs(256), **{**CALM, "max_steps": 60}))
    assert patient.loud == {}
    assert on_the_log(patient) == set()


def test_pairs_of_one_answer(tmp_path, observe):
    patient = observe(build.reward(str(tmp_path), rows=build.pairs(choose=build.same), **CALM))
    line = headline(patient, "identical-pairs")
    assert patient.loud["identical-pairs"] <= 6
    assert "100% of the pairs have the same chosen and rejected response." in line
    assert "Check the dataset's columns and max_length." in line
    assert on_the_log(patient) == {"identical-pairs"}


def test_pairs_that_only_length_tells_apart(tmp_path, observe):
    patient = observe(build.reward(str(tmp_path), rows=build.pairs(256, choose=build.longer), **{**CALM, "max_steps": 90}))
    line = headline(patient, "reward-follows-length")
    assert patient.loud["reward-follows-length"] <= 85
    assert "the model scores length, not only preference. Balance the pairs by length" in line


def test_a_reward_model_with_a_learning_rate_a_hundred_times_too_high(tmp_path, observe):
    patient = observe(build.reward(str(tmp_path), rows=build.pairs(256), **{**CALM, "learning_rate": 1e-1, "max_steps": 60}))
    assert "Steps this large throw away what the model knew." in headline(patient, "step-size-too-large")
    assert patient.loud["step-size-too-large"] <= 8
    assert effects(patient) & {"reward-scores-explode", "reward-scores-drift"}  # how far they go depends on the processor's rounding


def test_a_reward_model_that_is_read_before_the_answer(tmp_path, observe):
    """The score is taken at the token before the first pad token, which is the end token and closes the question as well."""
    trainer = build.reward(str(tmp_path), rows=build.pairs(256), **CALM)
    model, head = trainer.model, {}

    def early(module: Any, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        ids = kwargs["input_ids"]
        output.logits = head["all"][torch.arange(len(ids)), ids.eq(tiny.END_ID).int().argmax(-1) - 1]

    model.score.register_forward_hook(lambda module, inputs, output: head.update(all=output))
    model.register_forward_hook(early, with_kwargs=True)
    patient = observe(trainer)
    assert 10 <= patient.loud["scores-tied"] <= 12
    assert "the score does not see the answer" in headline(patient, "scores-tied")
    assert patient.monitor.verdict.state == "stalled"


def test_a_reward_model_that_ends_in_a_sigmoid(tmp_path, observe):
    """A user's own head gives probabilities; the loss pushes them to 0 and 1, where nothing moves them any more."""

    class Probability(torch.nn.Module):
        def __init__(self, linear: Any) -> None:
            super().__init__()
            self.linear = linear

        def forward(self, hidden: torch.Tensor) -> torch.Tensor:
            return torch.sigmoid(4 * self.linear(hidden))

    trainer = build.reward(str(tmp_path), rows=build.pairs(256), **{**CALM, "max_steps": 60})
    trainer.model.score = Probability(trainer.model.score)
    patient = observe(trainer)
    assert "are at the smallest or the largest score that there is" in headline(patient, "reward-scores-pinned")
    assert 15 <= patient.loud["reward-scores-pinned"] <= 55


@pytest.mark.parametrize("subject", ["sft-own-files", "orpo-new-subject"])
def test_a_subject_that_is_evaluated_and_not_trained_is_unlearned(subject: str, tmp_path: Path) -> None:
    findings = train(by_id(f"{subject}-only"), 77, str(tmp_path / "fault")).monitor.findings
    assert [finding.rule.id for finding in findings if finding.severity != "info" and not finding.suppressed_by] == ["evaluation-unlearned"]
    twin = train(by_id(f"{subject}-twin"), 77, str(tmp_path / "twin"))  # half of the rows are of the old subject
    assert not [finding for finding in twin.monitor.findings if finding.severity != "info"]
