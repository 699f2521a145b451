"""Two of the mission's words on real training, each as the first headline: entropy to 0, and a reward model asked outside of its range.

The policy of the entropy runs answers with six letters, some of them more often than others, as a language does. Its length is settled, so
that entropy has nowhere to go but into the letters; with the free length of `tiny.policy` the same faults end in `length-collapse`.
"""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from transformers import PrinterCallback, TrainerCallback

sys.path.insert(0, str(Path(__file__).parent.parent / "suite"))

import build_supervised

from trainvitals.integrations import tiny

pytestmark = [pytest.mark.slow, pytest.mark.trl]

SAMPLING = {"num_generations": 8, "per_device_train_batch_size": 32, "max_completion_length": 16, "temperature": 1.0}
STEADY = {"lr_scheduler_type": "constant_with_warmup", "warmup_steps": 5}
SIZE = 6
ONSET = 25
END = 130


class From(TrainerCallback):
    """Does something before each update from `onset` + 1 on, and ends the run after update `end`.

    The run is planned for longer than it is watched: by its middle `reward-plateau` would rightly say of the twin that it gains little.
    """

    def __init__(self, onset: int, act: Any, end: int = END) -> None:
        self.onset, self.act, self.end = onset, act, end

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step >= self.onset:
            self.act(state.global_step - self.onset)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_training_stop = control.should_training_stop or state.global_step >= self.end


def only(patient: Any, rule: str) -> tuple[int, str]:
    """Step and console line of a rule that was the run's only warning."""
    assert patient.loud.keys() == {rule}, patient.said
    finding = next(found for found in patient.monitor.findings if found.rule.id == rule and found.state == "firing")
    assert finding.suppressed_by is None
    return patient.loud[rule], next(line for line in patient.said if f"({rule}, step" in line)


# ---- entropy to 0 ----


@pytest.fixture(scope="module")
def writer() -> Any:
    """A policy that answers any question with six letters, the first of the alphabet most often (Zipf), and stops."""
    vocabulary, random = tiny.tokenizer(), Random(0)
    policy = tiny.model(vocabulary)
    letters = vocabulary.convert_tokens_to_ids(list("abcdefghijklmnopqrstuvwxyz"))
    weights = [1 / (1 + rank) for rank in range(len(letters))]
    starts = [
        vocabulary(vocabulary.apply_chat_template([{"role": "user", "content": text}], add_generation_prompt=True, tokenize=False))["input_ids"]
        for text in tiny.questions()
    ]
    optimizer = torch.optim.AdamW(policy.parameters(), lr=3e-3, weight_decay=0.0)
    for _ in range(200):
        rows, labels = [], []
        for _ in range(16):
            start = random.choice(starts)
            answer = [*random.choices(letters, weights=weights, k=SIZE), vocabulary.eos_token_id]
            rows.append(torch.tensor(start + answer))
            labels.append(torch.tensor([-100] * len(start) + answer))
        pad = torch.nn.utils.rnn.pad_sequence
        ids = pad(rows, batch_first=True, padding_value=vocabulary.pad_token_id)
        mask = ids != vocabulary.pad_token_id
        policy(input_ids=ids, attention_mask=mask, labels=pad(labels, batch_first=True, padding_value=-100)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return policy


class Reader:
    """A judge of some noise: three quarters for an answer of six letters, a quarter for how many of them differ."""

    __name__ = "reader"

    def __init__(self) -> None:
        self.random = Random(1)

    def __call__(self, completions: list[Any], completion_ids: Any = None, **kwargs: Any) -> list[float]:
        marks = []
        for text, ids in zip(map(tiny.text_of, completions), completion_ids, strict=True):
            right = len(text) == SIZE and tiny.END_ID in ids
            marks.append(right * (0.75 + 0.25 * len(set(text)) / SIZE) + self.random.uniform(-0.15, 0.15))
        return marks


def writing(folder: Path, writer: Any, fault: Any = None, **changes: Any) -> Any:
    """A GRPO run of the writer; `fault(trainer)` returns what happens before each update from the onset on."""
    from trl import GRPOConfig, GRPOTrainer

    settings = {**SAMPLING, **STEADY, "learning_rate": 5e-4, "max_steps": 300, "entropy_coef": 0.001, **changes}
    trainer = GRPOTrainer(
        model=copy.deepcopy(writer),
        reward_funcs=Reader(),
        args=GRPOConfig(**tiny.arguments(str(folder), **settings)),
        train_dataset=tiny.prompts(),
        processing_class=tiny.tokenizer(),
    )
    trainer.add_callback(From(ONSET, (lambda since: None) if fault is None else fault(trainer)))
    return trainer


def merged_again(trainer: Any) -> Any:
    """What the head reads grows by a tenth in each update, in training and in sampling alike: an adapter that is merged once more each time."""
    factor = [1.0]
    trainer.model.model.norm.register_forward_hook(lambda module, args, output: output * factor[0])

    def grow(since: int) -> None:
        factor[0] = min(1.1 ** (since + 1), 30.0)

    return grow


def wrong_way(trainer: Any) -> Any:
    """A controller of the entropy bonus with the wrong sign: each update takes a tenth off the coefficient, until randomness is punished."""

    def lower(since: int) -> None:
        trainer.entropy_coef -= 0.1

    return lower


@pytest.mark.parametrize(("fault", "rate", "latest"), [(merged_again, 1e-4, 65), (wrong_way, 5e-4, END)])
def test_entropy_goes_to_zero(tmp_path, observe, writer, fault, rate, latest):
    patient = observe(writing(tmp_path, writer, fault, learning_rate=rate))
    entropy = [row["entropy"] for row in patient.trainer.state.log_history if "entropy" in row]
    step, line = only(patient, "entropy-collapse")
    assert ONSET + 15 < step <= latest
    assert min(entropy[:ONSET]) > 2.0
    assert sum(entropy[step - 10 : step]) / 10 < 0.6
    assert "the policy stopped exploring. Consider a higher epsilon_high or temperature, or a lower learning rate." in line
    assert patient.monitor.verdict.state == "collapsed"
    assert patient.monitor.verdict.decision == "adjust"


@pytest.mark.parametrize("rate", [1e-4, 5e-4])
def test_the_writer_learns_in_silence(tmp_path, observe, writer, rate):
    patient = observe(writing(tmp_path, writer, learning_rate=rate))
    assert patient.loud == {}
    assert patient.monitor.verdict.state in {"improving", "steady"}
