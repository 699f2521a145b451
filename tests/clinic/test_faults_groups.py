"""What must hold of every group: faults of the plumbing planted into GRPO and RLOO, each beside a healthy twin that stays silent."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "suite"))

import build_sampling
import torch
from tests.clinic.ward.cases import by_id

from trainvitals.integrations import tiny

pytestmark = [pytest.mark.slow, pytest.mark.trl]

HEALTHY = {"learning_rate": 1e-4, "lr_scheduler_type": "constant_with_warmup", "warmup_steps": 5}
BUILDS = [build_sampling.grpo, build_sampling.rloo]
LETTERS = "abcdefghijklmnopqrstuvwxyz"


def said(patient: Any, rule: str) -> str:
    """The line on the console about a rule."""
    return next(line for line in patient.said if f"({rule}" in line)


def last(folder: Path, name: str) -> float:
    """Newest value of a signal, from what the run wrote."""
    records = [json.loads(line) for line in (folder / "vitals" / "rank0.jsonl").read_text().splitlines()]
    return [record["values"][name] for record in records if record["kind"] == "signal" and name in record.get("values", {})][-1]


def never_repeats(trainer: Any) -> None:
    """A sampler that somebody wrote for another trainer: every row is another prompt."""
    trainer._get_train_sampler = lambda *args, **kwargs: torch.utils.data.RandomSampler(trainer.train_dataset)


def baseline_across(trainer: Any) -> None:
    """A baseline along the wrong axis: of the first completions of all prompts, of the second ones, and so on."""
    score = trainer._generate_and_score_completions

    def scored(inputs: Any) -> Any:
        result = score(inputs)
        size = trainer.num_generations
        rewards = torch.tensor(trainer._logs["rewards"]["vowels"])[-len(inputs) :].reshape(-1, size)
        result["advantages"] = (rewards - rewards.mean(dim=0, keepdim=True)).reshape(-1)
        return result

    trainer._generate_and_score_completions = scored


@pytest.mark.parametrize("build", BUILDS)
def test_a_sampler_that_does_not_repeat_its_prompts(tmp_path, observe, build):
    trainer = build(str(tmp_path), max_steps=10, **HEALTHY)
    never_repeats(trainer)
    patient = observe(trainer)
    assert patient.loud == {"groups-mixed": 1}
    assert "100% of the groups" in said(patient, "groups-mixed")


def test_a_baseline_along_the_wrong_axis(tmp_path, observe):
    trainer = tiny.grpo(str(tmp_path), max_steps=10, **HEALTHY)
    baseline_across(trainer)
    patient = observe(trainer)
    assert patient.loud.keys() == {"advantages-off-centre"}
    assert patient.loud["advantages-off-centre"] <= 3


# ---- one score for one text ----


def brief(build: Callable[..., Any], folder: Path, reward: Any, **changes: Any) -> Any:
    """A trainer whose policy answers with one letter, as a classifier or a multiple choice does: copies are common."""
    settings = {**HEALTHY, "learning_rate": 1e-5, "max_steps": 40, "beta": 0.0, **changes}
    trainer = build(str(folder), reward=reward, **settings)
    vocabulary = trainer.processing_class
    letters, random = vocabulary.convert_tokens_to_ids(list(LETTERS)), Random(0)
    asked = [
        vocabulary.apply_chat_template([{"role": "user", "content": text}], add_generation_prompt=True, tokenize=False) for text in tiny.questions()
    ]
    starts = [vocabulary(text)["input_ids"] for text in asked]
    optimizer = torch.optim.AdamW(trainer.model.parameters(), lr=3e-3)
    for _ in range(40):
        rows = [torch.tensor([*random.choice(starts), random.choice(letters), vocabulary.eos_token_id]) for _ in range(16)]
        ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=vocabulary.pad_token_id)
        labels = torch.full_like(ids, -100)
        for place, row in enumerate(rows):
            labels[place, len(row) - 2 : len(row)] = row[-2:]
        trainer.model(input_ids=ids, attention_mask=(ids != vocabulary.pad_token_id).long(), labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return trainer


def place_in_alphabet(completions: list[Any], **kwargs: Any) -> list[float]:
    """A score with many values: how late in the alphabet the answer begins."""
    return [1 + (ord(tiny.text_of(completion)[0]) - 97) / 25 if tiny.text_of(completion) else 0.0 for completion in completions]


def is_vowel(completions: list[Any], **kwargs: Any) -> list[float]:
    """A score of 0 or 1."""
    return [float(tiny.text_of(completion)[:1] in tiny.VOWELS) for completion in completions]


class Shuffled:
    """The scores come back in another order: a thread pool whose results are taken as they are ready."""

    __name__ = "judge"

    def __init__(self, right: Callable[..., list[float]]) -> None:
        self.right, self.random = right, Random(0)

    def __call__(self, completions: list[Any], **kwargs: Any) -> list[float]:
        scores = self.right(completions)
        return self.random.sample(scores, len(scores))


class Failing:
    """A tenth or more of the calls fails, and each counts as 0."""

    __name__ = "judge"

    def __init__(self, right: Callable[..., list[float]], share: float = 0.2) -> None:
        self.right, self.share, self.random = right, share, Random(0)

    def __call__(self, completions: list[Any], **kwargs: Any) -> list[float]:
        return [0.0 if self.random.random() < self.share else score for score in self.right(completions)]


class Drawing:
    """A judge that draws: the same answer gets now more, now less."""

    __name__ = "judge"

    def __init__(self, right: Callable[..., list[float]], width: float) -> None:
        self.right, self.width, self.random = right, width, Random(0)

    def __call__(self, completions: list[Any], **kwargs: Any) -> list[float]:
        return [score + self.random.gauss(0, self.width) for score in self.right(completions)]


class NoCopies:
    """A penalty for copies: the second of two equal answers earns less. The place decides, on purpose."""

    __name__ = "no_copies"

    def __call__(self, completions: list[Any], **kwargs: Any) -> list[float]:
        seen: dict[str, int] = {}
        scores = []
        for score, text in zip(place_in_alphabet(completions), map(tiny.text_of, completions), strict=True):
            scores.append(score - 0.5 * seen.get(text, 0))
            seen[text] = seen.get(text, 0) + 1
        return scores


@pytest.mark.parametrize("build", BUILDS)
def test_scores_that_come_back_in_another_order(tmp_path, observe, build):
    patient = observe(brief(build, tmp_path, Shuffled(place_in_alphabet)))
    assert patient.loud.keys() - {"scores-not-repeatable"} == {"scores-of-other-answers"}  # the weaker one needs fewer copies
    assert "the scores of this reward function do not go by the answer" in said(patient, "scores-of-other-answers")


def test_scores_of_0_and_1_that_come_back_in_another_order(tmp_path, observe):
    assert observe(brief(build_sampling.grpo, tmp_path, Shuffled(is_vowel))).loud.keys() == {"scores-of-other-answers"}


def test_failed_calls_that_count_as_zero(tmp_path, observe):
    patient = observe(brief(build_sampling.grpo, tmp_path, Failing(place_in_alphabet)))
    assert patient.loud.keys() == {"failed-scores-count-as-zero"}
    assert "100% of" in said(patient, "failed-scores-count-as-zero")


@pytest.mark.parametrize("reward", [Failing(is_vowel, 0.3), Drawing(place_in_alphabet, 0.6)], ids=["fails", "draws"])
def test_what_may_be_failure_or_chance(tmp_path, observe, reward):
    """Of a judge that says 0 or 1, nothing tells a failed call from a change of mind."""
    patient = observe(brief(build_sampling.grpo, tmp_path, reward))
    assert patient.loud.keys() == {"scores-not-repeatable"}


@pytest.mark.parametrize("reward", [place_in_alphabet, is_vowel, Drawing(place_in_alphabet, 0.1), NoCopies()], ids=["many", "two", "draws a little", "no copies"])
def test_the_twins_of_all_faults_of_scores_are_silent(tmp_path, observe, reward):
    patient = observe(brief(build_sampling.grpo, tmp_path, reward))
    assert patient.loud == {}
    name = getattr(reward, "__name__", "")
    assert last(tmp_path, f"reward.same_text_spread{{component={name}}}") < 0.1


# ---- scores that go by the text, where no answer is written twice ----


class Lost:
    """The vowel task; from an update on the scores come back in another order, or those of the batch before do."""

    __name__ = "judge"

    def __init__(self, how: str, onset: int = 25) -> None:
        self.how, self.onset, self.random = how, onset, Random(0)
        self.before: list[float] = []

    def __call__(self, completions: list[Any], completion_ids: Any = None, trainer_state: Any = None, **kwargs: Any) -> list[float]:
        right = list(tiny.vowels(completions, completion_ids))
        before, self.before = self.before, right
        if self.how == "never" or trainer_state.global_step < self.onset:
            return right
        return before if self.how == "late" else self.random.sample(right, len(right))


def another(completions: list[Any], completion_ids: Any = None, trainer_state: Any = None, **kwargs: Any) -> list[float]:
    """Vowels, and from update 26 on, on purpose, letters of the first half of the alphabet."""
    if trainer_state.global_step < 25:
        return list(tiny.vowels(completions, completion_ids))
    texts = [tiny.text_of(completion) for completion in completions]
    return [sum(char < "n" for char in text) / max(1, len(text)) for text in texts]


@pytest.mark.parametrize("how", ["another order", "late"])
@pytest.mark.parametrize("build", BUILDS)
def test_scores_that_leave_their_answers_in_the_middle_of_a_run(tmp_path, observe, build, how):
    patient = observe(build(str(tmp_path), reward=Lost(how), max_steps=48, **HEALTHY))
    assert patient.loud.keys() == {"scores-ignore-answers"}
    assert 33 <= patient.loud["scores-ignore-answers"] <= 45
    assert "no longer go by the answers" in said(patient, "scores-ignore-answers")
    assert abs(last(tmp_path, "reward.text_slope{component=judge}")) < 0.5


@pytest.mark.parametrize("build", BUILDS)
@pytest.mark.parametrize("reward", [Lost("never"), another], ids=["as ever", "another on purpose"])
def test_the_twins_whose_scores_go_by_the_text(tmp_path, observe, build, reward):
    patient = observe(build(str(tmp_path), reward=reward, max_steps=48, **HEALTHY))
    assert "scores-ignore-answers" not in patient.fired
    assert last(tmp_path, f"reward.text_slope{{component={reward.__name__}}}") >= 0.5
    if reward is not another:
        assert patient.loud == {}


@pytest.mark.parametrize("other", [False, True], ids=["same", "another"])
def test_a_reward_model_from_the_checkpoint_of_the_policy(tmp_path, observe, other):
    """Given by name, as TRL allows: its head is made anew."""
    start = tmp_path / "start"
    vocabulary = tiny.tokenizer()
    for folder in (start, tmp_path / "judge"):
        tiny.policy(vocabulary).save_pretrained(folder)
        vocabulary.save_pretrained(folder)
    judge = str(tmp_path / "judge") if other else str(start)
    patient = observe(build_sampling.rloo(str(tmp_path), reward=judge, max_steps=8, **HEALTHY))
    assert ("judge-is-policy" in patient.loud) is not other


def disagreeing(folder: Path, spread: float, **changes: Any) -> Any:
    """GRPO with a sampler like vLLM's whose log-probabilities are off by so much per token; transformers samples in its place."""
    trainer = tiny.grpo(str(folder), max_steps=30, **{**HEALTHY, **changes})
    original, generator = trainer._generate_single_turn, torch.Generator().manual_seed(0)

    def generate(*args: Any, **kwargs: Any) -> Any:
        trainer.use_vllm = False
        completions = original(*args, **kwargs)[0]
        trainer.use_vllm = True
        prompts = args[0]
        logps = []
        with torch.no_grad():
            for prompt, row in zip(prompts, completions, strict=True):
                scores = trainer.model(input_ids=torch.tensor([[*prompt, *row]])).logits[0, len(prompt) - 1 : -1].float().log_softmax(-1)
                right = scores.gather(1, torch.tensor(row)[:, None])[:, 0]
                logps.append((right + spread * torch.randn(len(row), generator=generator)).tolist())
        return completions, logps

    trainer._generate_single_turn = generate
    trainer.use_vllm = trainer.args.use_vllm = trainer.vllm_importance_sampling_correction = True
    return trainer


@pytest.mark.parametrize(("spread", "fires"), [(1.0, True), (0.02, False)])
def test_a_correction_that_masks_a_part_of_the_batch(tmp_path, observe, spread, fires):
    patient = observe(disagreeing(tmp_path, spread))
    assert ("correction-masks-too-much" in patient.fired) is fires
    if fires:
        assert last(tmp_path, "sampler.masked_fraction") > 0.2
    else:
        assert last(tmp_path, "sampler.effective_fraction") > 0.9
        assert patient.loud == {}


@pytest.mark.parametrize("seed", [7, 8])
def test_an_end_token_that_the_trainer_does_not_know(tmp_path, observe, seed):
    patient = observe(by_id("grpo-pads-trained").build(str(tmp_path), seed, max_steps=12))
    assert patient.loud["padding-counts-as-answer"] == 1, patient.said
    assert last(tmp_path, "completion.counted_padding_fraction") > 0.05
    assert last(tmp_path, "policy.sampling_gap") > 1
    assert "what fills an answer up to the longest of its batch is trained" in said(patient, "padding-counts-as-answer")


def test_the_same_where_the_trainer_knows_it(tmp_path, observe):
    patient = observe(by_id("grpo-twin").build(str(tmp_path), 7, max_steps=40))
    assert "padding-counts-as-answer" not in patient.fired
    assert last(tmp_path, "completion.counted_padding_fraction") == 0


@pytest.mark.parametrize("seed", [7, 8])
def test_an_environment_that_breaks_down_and_scores_zero(tmp_path, observe, seed):
    patient = observe(by_id("rloo-failures-zero").build(str(tmp_path), seed, max_steps=55))
    assert next(iter(patient.loud)) == "scores-turned-to-zero", patient.said
    assert 48 <= patient.loud["scores-turned-to-zero"] <= 50  # the first bad batch is that of update 46
    assert "reward-drop" not in patient.loud  # explained by it
    assert last(tmp_path, "reward.component_zero_fraction{component=vowels}") > 0.5
