"""The mission's words on real training: entropy to 0 and a reward model asked outside of its range, each as the first headline; entropy to ln V.

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
    return headline(patient, rule)


def headline(patient: Any, rule: str) -> tuple[int, str]:
    """Step and console line of a rule that spoke before all others, and for itself."""
    assert all(step > patient.loud[rule] for other, step in patient.loud.items() if other != rule), patient.loud
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
    # One update on a batch: no token is ever clipped, so that a wider clip range would change nothing and is not advised.
    assert "the policy stopped exploring. Consider a higher temperature, or a lower learning rate." in line
    assert patient.monitor.verdict.state == "collapsed"
    assert patient.monitor.verdict.decision == "adjust"


def fading(trainer: Any) -> Any:
    """What the head reads shrinks by a tenth in each update: a scale that is divided out once more each time, until all tokens are equally likely."""
    factor = [1.0]
    trainer.model.model.norm.register_forward_hook(lambda module, args, output: output * factor[0])

    def shrink(since: int) -> None:
        factor[0] = max(0.9 ** (since + 1), 0.02)

    return shrink


def test_entropy_goes_to_the_logarithm_of_the_vocabulary(tmp_path, observe, writer):
    patient = observe(writing(tmp_path, writer, fading, learning_rate=1e-4))
    entropy = [row["entropy"] for row in patient.trainer.state.log_history if "entropy" in row]
    assert max(entropy[:ONSET]) < 2.8
    assert entropy[-1] > 3.3
    # Text that is noise loses its reward and its end as well, so the error that counts three signs speaks, with the entropy's own line behind it.
    assert ONSET < patient.loud["policy-breakdown"] <= 60
    assert any(found.rule.id == "entropy-explosion" and found.suppressed_by == "policy-breakdown" for found in patient.monitor.findings)
    assert patient.monitor.verdict.state == "collapsed"


@pytest.mark.parametrize("rate", [1e-4, 5e-4])
def test_the_writer_learns_in_silence(tmp_path, observe, writer, rate):
    patient = observe(writing(tmp_path, writer, learning_rate=rate))
    assert patient.loud == {}
    assert patient.monitor.verdict.state in {"improving", "steady"}


# ---- a reward model outside of its range ----

LAST = 90
OTHERS = "bcdfgklmnprst"


def some_vowels(random: Random) -> tuple[str, str]:
    """A chosen answer with two vowels in five letters, a rejected one with one in ten, of any lengths from three to nine."""

    def word(share: float) -> str:
        return "".join(random.choice("aeiou" if random.random() < share else OTHERS) for _ in range(random.randint(3, 9)))

    return word(0.4), word(0.1)


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A reward model of TRL's RewardTrainer, of which only the score head was trained: it has seen words with some vowels and with few."""
    settings = {"learning_rate": 1e-2, "max_steps": 200, "lr_scheduler_type": "constant", "per_device_train_batch_size": 16}
    rows = build_supervised.pairs(512, choose=some_vowels)
    trainer = build_supervised.reward(str(tmp_path_factory.mktemp("judge")), rows=rows, **settings)
    trainer.model.model.requires_grad_(False)
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    model = trainer.model
    model.config._name_or_path = "judge"  # TRL names the reward after it
    return model


def brief(completions: list[Any], completion_ids: Any = None, **kwargs: Any) -> list[float]:
    """Half a point off for each letter beyond nine, a point for an answer that does not end: the length stays where the judge knows it."""
    return [-0.5 * max(0, len(tiny.text_of(text)) - 9) - (tiny.END_ID not in ids) for text, ids in zip(completions, completion_ids, strict=True)]


def judged(folder: Path, judge: Any, rate: float, fault: Any = None, end: int = LAST) -> Any:
    """A GRPO run that is paid by the judge; `fault(trainer)` happens before update `ONSET` + 1, and the run is watched until update `end`."""
    from trl import GRPOConfig, GRPOTrainer

    settings = {**SAMPLING, **STEADY, "learning_rate": rate, "max_steps": LAST, "max_completion_length": 24}
    trainer = GRPOTrainer(
        model=tiny.policy(tiny.tokenizer()),
        reward_funcs=[judge, brief],
        args=GRPOConfig(**tiny.arguments(str(folder), **settings)),
        train_dataset=tiny.prompts(),
        processing_class=tiny.tokenizer(),
        reward_processing_classes=[tiny.tokenizer(), None],
    )
    if fault is not None:
        trainer.add_callback(From(ONSET, lambda since: None if since else fault(trainer), end))
    return trainer


def test_a_policy_that_learns_texts_which_the_reward_model_never_saw(tmp_path, observe, judge):
    """Two vowels in five letters were the best that it knew; it pays most for nine, of one kind."""
    patient = observe(judged(tmp_path, judge, 1e-3))
    step, line = only(patient, "reward-model-out-of-range")
    assert 50 < step <= LAST
    assert sum(patient.rewards[-5:]) > sum(patient.rewards[:5]) + 15  # the reward alone looks splendid
    assert "its scores are extrapolated. Score a few recent samples by hand" in line
    assert "a larger beta, or a reward model trained on fresh samples" in line
    assert patient.monitor.verdict.state == "drifting"
    assert patient.monitor.verdict.decision == "watch"


def test_a_reward_model_that_is_asked_in_another_template(tmp_path, observe, judge):
    """From an update on its template no longer closes the answer: same policy, same texts, another last token.

    The judge gives such texts less, and some updates later `reward-drop` rightly says so too.
    """

    def other(trainer: Any) -> None:
        vocabulary = trainer.reward_processing_classes[0]
        vocabulary.chat_template = vocabulary.chat_template.replace("<|im_end|>", "")

    patient = observe(judged(tmp_path, judge, 2e-4, other, ONSET + 20))
    step, line = headline(patient, "reward-model-out-of-range")
    assert patient.loud.keys() <= {"reward-model-out-of-range", "reward-drop"}
    assert ONSET + 5 < step <= ONSET + 20
    assert "(1% did then): its scores are extrapolated." in line
    assert patient.monitor.verdict.state == "drifting"


def test_a_policy_that_stays_where_the_reward_model_knows_its_way(tmp_path, observe, judge):
    patient = observe(judged(tmp_path, judge, 2e-4))
    assert sum(patient.rewards[-10:]) > sum(patient.rewards[:10]) + 5
    assert patient.loud == {}
    assert patient.monitor.verdict.state in {"improving", "steady"}
