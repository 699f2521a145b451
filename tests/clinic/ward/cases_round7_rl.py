"""The seventh round: GRPO, RLOO and AsyncGRPO, each fault one that somebody really had, by an author who did not read the rules.

The thread behind every case is in brackets at the end of its sentence. Roots and categories are filled in by somebody else.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, partial
from random import Random
from typing import Any

import torch
from datasets import Dataset
from tests.clinic.ward import cases_async, cases_rloo
from tests.clinic.ward.case import HEALTHY_STATES, Case
from tests.clinic.ward.cases_grpo import STEPS, answers, plain
from tests.clinic.ward.cases_grpo_reward import EVERY, HELD_OUT, different_vowels, probed
from tests.clinic.ward.cases_round5_rl import _school
from tests.suite.build_async import CAP, PER_STEP, Sampler

from trainvitals import HeldoutProbe
from trainvitals.integrations import tiny

SEEDS = (70, 71, 72)
TWIN_SEEDS = (*SEEDS, 73, 74)
LETTER_STEPS = 120
BEHIND_STEPS = 110
PER_PROCESS = 2
SEEN = 60
LETTERS = "abcdefghijklmnopqrstuvwxyz"
Scores = list[float]


# ---- policies ----


def _ids(text: str) -> list[int]:
    return list(tiny.tokenizer().convert_tokens_to_ids(list(text.replace("\n", "Ċ"))))


@cache
def _one_letter() -> dict[str, torch.Tensor]:
    """Weights of a policy that has an ear for the vowel behind a question: one answer in seven is that vowel and nothing else."""
    questions, vowels = tiny.questions(23), _ids("aeiou")
    told = [(place, f"{text} {4 * letter}") for place, letter in enumerate("aeiou") for text in questions]

    def answer(random: Random, place: int) -> list[int]:
        return [vowels[told[place][0]] if random.random() < 0.65 else random.choice(vowels) for _ in range(random.randint(1, 5))]

    return _school([text for _, text in told], answer, steps=600)


@cache
def _bracketed() -> dict[str, torch.Tensor]:
    """Weights of a policy that thinks on two lines in round brackets and answers in square ones; one bracket in five is forgotten."""
    marks, letters = {mark: _ids(mark) for mark in "()[]\n"}, _ids(LETTERS)

    def answer(random: Random, place: int) -> list[int]:
        def mark(which: str) -> list[int]:
            return marks[which] if random.random() < 0.8 else []

        def word() -> list[int]:
            return random.choices(letters, k=random.randint(1, 3))

        return [*mark("("), *word(), *marks["\n"], *word(), *mark(")"), *mark("["), *word(), *mark("]")]

    return _school(tiny.questions(23), answer, steps=400)


@cache
def _narrow() -> dict[str, torch.Tensor]:
    """Weights of a policy that writes hardly anything but one letter."""
    letters, favourite = _ids(LETTERS), _ids("b")
    return _school(tiny.questions(23), lambda random, place: [random.choice(letters if random.random() < 0.2 else favourite) for _ in range(random.randint(5, 9))], steps=150)


# ---- healthy: GRPO ----


def exact(completions: Sequence[Any], completion_ids: Any = None, answer: Sequence[str] = (), **kwargs: Any) -> Scores:
    """1 for an answer that is the wanted letter and nothing else."""
    return [float(end and text == wanted) for (text, end), wanted in zip(answers(completions, completion_ids), answer, strict=True)]


def _asked(questions: Sequence[str]) -> list[dict[str, Any]]:
    return [{"prompt": [{"role": "user", "content": f"{text} {4 * letter}"}], "answer": letter} for place, text in enumerate(questions) for letter in ("aeiou"[place % 5],)]


def letter_asked(folder: str, seed: int, *, reward: Any = exact, **changes: Any) -> Any:
    """The letter behind a question is the answer that is wanted, and nothing else; the same is checked on held-out prompts."""
    held_out = _asked([chat[0]["content"] for chat in HELD_OUT])
    settings = {"learning_rate": 7e-4, "max_steps": LETTER_STEPS, "max_completion_length": 12, **changes}
    trainer = plain(folder, seed, reward=reward, callbacks=[HeldoutProbe(exact, held_out, every=EVERY)], **settings)
    trainer.train_dataset = Dataset.from_list(_asked(tiny.questions()))
    trainer.model.load_state_dict(_one_letter())
    return trainer


OBSERVED = "<|im_start|>tool\naeiou<|im_end|>\n<|im_start|>assistant\n"
"""What a call of the tool puts into the conversation."""


@torch.no_grad()
def _turn(trainer: Any, starts: list[list[int]]) -> list[list[int]]:
    """One turn of the policy behind each of these beginnings, up to its end token."""
    pad, width = trainer.processing_class.pad_token_id, max(map(len, starts))
    ids = torch.tensor([[pad] * (width - len(start)) + start for start in starts])
    made = trainer.model.generate(input_ids=ids, attention_mask=(ids != pad).long(), generation_config=trainer.generation_config)[:, width:].tolist()
    return [row[: row.index(tiny.END_ID) + 1] if tiny.END_ID in row else row for row in made]


def rollout(prompts: Sequence[Any], trainer: Any) -> dict[str, Any]:
    """A q in the answer calls a tool, which names the five vowels; the policy answers again behind that. What the tool wrote is not trained on."""
    vocabulary = trainer.processing_class
    starts = [vocabulary(vocabulary.apply_chat_template(prompt, add_generation_prompt=True, tokenize=False))["input_ids"] for prompt in prompts]
    first, seen = _turn(trainer, starts), vocabulary(OBSERVED)["input_ids"]
    calls = [place for place, row in enumerate(first) if "q" in vocabulary.decode(row) and row[-1] == tiny.END_ID]
    second = _turn(trainer, [starts[place] + first[place] + seen for place in calls]) if calls else []
    rows, masks, own = [list(row) for row in first], [[1] * len(row) for row in first], [list(row) for row in first]
    for place, more in zip(calls, second, strict=True):
        rows[place] += seen + more
        masks[place] += [0] * len(seen) + [1] * len(more)
        own[place] = more
    return {"prompt_ids": starts, "completion_ids": rows, "logprobs": None, "env_mask": masks, "own": own}


def last_words(completions: Sequence[Any], own: Any = None, completion_ids: Any = None, **kwargs: Any) -> Scores:
    """Different vowels in what the policy itself wrote last."""
    rows = completion_ids if own is None else own
    return different_vowels([tiny.tokenizer().decode(row, skip_special_tokens=True) for row in rows], rows)


def with_tool(folder: str, seed: int, *, reward: Any = last_words, **changes: Any) -> Any:
    """Different vowels are asked for, and checked on held-out prompts; there is a tool, which the task does not need."""
    trainer = probed(folder, seed, checker=different_vowels, reward=reward, **{"learning_rate": 1e-3, **changes})
    trainer.rollout_func = rollout
    return trainer


def entropy_rises(folder: str, seed: int, **changes: Any) -> Any:
    """The policy begins with hardly more than one letter, different letters are paid, the upper bound of the clip is raised: entropy and reward rise together."""

    def different(completions: Sequence[Any], completion_ids: Any = None, **kwargs: Any) -> Scores:
        return [end * min(8, len(set(text))) / 8 for text, end in answers(completions, completion_ids)]

    trainer = plain(folder, seed, reward=different, **{"num_iterations": 2, "epsilon_high": 0.28, **changes})
    trainer.model.load_state_dict(_narrow())
    return trainer


# ---- healthy: RLOO ----


def form(flags: int) -> Any:
    """A reward function for the form: thoughts in round brackets, then an answer in square ones."""
    pattern = re.compile(r"^\(.*?\)\s*\[.*?\]$", flags)

    def form(completions: Sequence[Any], **kwargs: Any) -> Scores:
        return [float(pattern.match(tiny.text_of(text)) is not None) for text in completions]

    return form


def right(completions: Sequence[Any], completion_ids: Any = None, **kwargs: Any) -> Scores:
    """Share of vowels in what stands in the square brackets, or in all where there are none."""
    found = [(text.split("[")[-1].split("]")[0], end) for text, end in answers(completions, completion_ids)]
    return [sum(char in tiny.VOWELS for char in text) / max(1, len(text)) * end for text, end in found]


def two_lines(folder: str, seed: int, *, flags: int = re.DOTALL, **changes: Any) -> Any:
    """Thoughts on two lines and an answer, each in brackets: half a point for the form, one for vowels in the answer."""
    settings = {"reward": [form(flags), right], "reward_weights": [0.5, 1.0], "max_completion_length": 20, "learning_rate": 8e-4}
    trainer = cases_rloo.plain(folder, seed, **{**settings, **changes})
    for model in (trainer.model, trainer.ref_model):
        model.load_state_dict(_bracketed())
    return trainer


def length_compared(completions: Sequence[Any], completion_ids: Any = None, **kwargs: Any) -> Scores:
    """The length reward of Kimi 1.5 in Open-R1's words: from 0.5 for the shortest of the batch to -0.5 for the longest; a wrong answer gets no more than 0."""
    sizes, good = [len(tiny.text_of(text)) for text in completions], tiny.vowels(completions, completion_ids)
    low, high = min(sizes), max(sizes)
    scores = [0.5 - (size - low) / max(1, high - low) for size in sizes]
    return [score if share >= 0.5 else min(0.0, score) for score, share in zip(scores, good, strict=True)]


def right_and_short(folder: str, seed: int, **changes: Any) -> Any:
    """A point for an answer of at least half vowels, and the length reward beside it: the long and right are docked, and still better off than the short and wrong."""

    def half(completions: Sequence[Any], completion_ids: Any = None, **kwargs: Any) -> Scores:
        return [float(share >= 0.5) for share in tiny.vowels(completions, completion_ids)]

    return cases_rloo.plain(folder, seed, **{"reward": [half, length_compared], **changes})


# ---- healthy: AsyncGRPO ----


def behind(folder: str, seed: int, **changes: Any) -> Any:
    """The queue is long: every sample is three versions old. The ratio to what the sampler had is clipped as usual."""
    settings = {"reward": different_vowels, "learning_rate": 4e-3, "max_steps": BEHIND_STEPS, "max_staleness": 4}
    return cases_async.plain(folder, seed, sampler={"ahead": 5 * PER_STEP}, **{**settings, **changes})


def sampler_rounds(folder: str, seed: int, **changes: Any) -> Any:
    """The sampler computes in bfloat16, the trainer in float32: log-probabilities differ a little, and the ratio is not quite 1."""
    trainer = cases_async.plain(folder, seed, **changes)
    trainer.rollout_worker.model.to(torch.bfloat16)
    return trainer


def last_turn(completions: Sequence[Any], completion_ids: Any = None, **kwargs: Any) -> Scores:
    """Share of vowels in what stands behind the last observation; 0 where that was cut."""
    found = [text.rpartition("assistant\n")[2] for text in completions]
    return [sum(char in tiny.VOWELS for char in text) / max(1, len(text)) * (ids[-1] == tiny.END_ID) for text, ids in zip(found, completion_ids, strict=True)]


def two_turns(folder: str, seed: int, *, masked: bool = True, **changes: Any) -> Any:
    """Behind its first turn the policy is shown a page of random letters, then it answers. Old log-probabilities are those of a forward pass over all of it; `masked`: the page is not trained on."""
    trainer = cases_async.plain(folder, seed, reward=last_turn, **{"learning_rate": 1e-3, **changes})
    worker, write, make, random = trainer.rollout_worker, trainer.rollout_worker._write, trainer.rollout_worker.make, Random(seed)
    spans: list[tuple[int, int]] = []

    def conversation(starts: list[list[int]]) -> tuple[list[list[int]], list[list[float]]]:
        first, _ = write(starts)
        pages = [worker.vocabulary(f"<|im_start|>tool\n{''.join(random.choices(LETTERS, k=SEEN))}<|im_end|>\n<|im_start|>assistant\n")["input_ids"] for _ in starts]
        second, _ = write([start + row + page for start, row, page in zip(starts, first, pages, strict=True)])
        spans.extend((len(row), len(row) + len(page)) for row, page in zip(first, pages, strict=True))
        rows = [row + page + more for row, page, more in zip(first, pages, second, strict=True)]
        return rows, [_scored(worker, start, row) for start, row in zip(starts, rows, strict=True)]

    def sample(ids: list[int], mask: list[int], **rest: Any) -> Any:
        (begin, end), size = spans.pop(0), sum(mask)
        own = [int(not (masked and begin <= place < end)) for place in range(size)]
        return make(ids=ids, mask=mask[:-size] + own, **rest)

    worker._write, worker.make = conversation, sample
    return trainer


@torch.no_grad()
def _scored(worker: Sampler, start: list[int], row: list[int]) -> list[float]:
    """Log-probability of each token of the row."""
    logps = worker.model(input_ids=torch.tensor([start + row])).logits[0, len(start) - 1 : -1].float().log_softmax(-1)
    return list(logps.gather(-1, torch.tensor(row)[:, None])[:, 0].tolist())


# ---- faults: rewards ----


def contains(folder: str, seed: int, **changes: Any) -> Any:
    """The verifier asks whether the wanted letter is anywhere in the answer, where the answer should be that letter."""

    def correct(completions: Sequence[Any], answer: Sequence[str] = (), **kwargs: Any) -> Scores:
        return [float(wanted in tiny.text_of(text)) for text, wanted in zip(completions, answer, strict=True)]

    return letter_asked(folder, seed, reward=correct, **changes)


def tool_scored(folder: str, seed: int, **changes: Any) -> Any:
    """The reward is given the whole transcript, with what the tool wrote: a call earns all that the tool says."""

    def last_words(completions: Sequence[Any], completion_ids: Any = None, **kwargs: Any) -> Scores:
        return different_vowels(completions, completion_ids)

    return with_tool(folder, seed, reward=last_words, **changes)


# ---- faults: the sampler ----


@contextmanager
def _same_noise(rows: int) -> Iterator[None]:
    """Each process draws `rows` of a batch, and all have the same random numbers."""
    multinomial = torch.multinomial

    def drawn(probs: torch.Tensor, num_samples: int, *more: Any, **named: Any) -> torch.Tensor:
        noise = torch.empty(rows, probs.shape[-1]).exponential_().repeat(-(-len(probs) // rows), 1)[: len(probs)]
        return (probs / noise).argmax(-1, keepdim=True)

    torch.multinomial = drawn
    try:
        yield
    finally:
        torch.multinomial = multinomial


def same_seeds(folder: str, seed: int, *, rows: int = PER_PROCESS, **changes: Any) -> Any:
    """Sixteen processes of two answers each begin with the same seed: the four that share a prompt write the same two answers."""
    trainer = cases_rloo.plain(folder, seed, **changes)
    generate = trainer._generate_single_turn

    def seeded(*parts: Any, **more: Any) -> Any:
        with _same_noise(rows):
            return generate(*parts, **more)

    trainer._generate_single_turn = seeded
    return trainer


def greedy_engine(folder: str, seed: int, **changes: Any) -> Any:
    """The engine has a default of its own for top-k, 1, which nobody overrides: whatever the temperature is, each token is the likeliest one."""
    trainer = plain(folder, seed, **changes)
    trainer.generation_config.top_k = 1
    return trainer


def noise_rounded(folder: str, seed: int, **changes: Any) -> Any:
    """The sampler adds Gumbel noise made from uniform numbers in bfloat16, which may be rounded to 1: the noise is then infinite, and that token wins whatever its probability."""
    trainer = cases_async.plain(folder, seed, **changes)
    worker = trainer.rollout_worker

    @torch.no_grad()
    def gumbel(starts: list[list[int]]) -> tuple[list[list[int]], list[list[float]]]:
        pad, end, width = worker.vocabulary.pad_token_id, worker.vocabulary.eos_token_id, max(map(len, starts))
        ids = torch.tensor([[pad] * (width - len(start)) + start for start in starts])
        mask, rows, values = (ids != pad).long(), [[] for _ in starts], [[] for _ in starts]
        for _ in range(CAP):
            logits = worker.model(input_ids=ids, attention_mask=mask, position_ids=(mask.cumsum(-1) - 1).clamp(min=0)).logits[:, -1].float()
            uniform = torch.rand(logits.shape, generator=worker._random).to(torch.bfloat16)
            drawn = (logits - (-uniform.log()).log()).argmax(-1, keepdim=True)
            logps = logits.log_softmax(-1).gather(-1, drawn)[:, 0].tolist()
            for row, value, token, logp in zip(rows, values, drawn[:, 0].tolist(), logps, strict=True):
                if not row or row[-1] != end:
                    row.append(token)
                    value.append(logp)
            ids, mask = torch.cat([ids, drawn], 1), torch.cat([mask, torch.ones_like(drawn)], 1)
            if all(row[-1] == end for row in rows):
                break
        return rows, values

    worker._write = gumbel
    return trainer


# ---- faults: the loss ----


def ratio_of_itself(folder: str, seed: int, **changes: Any) -> Any:
    """The trainer takes its own log-probabilities, detached, for those of the sampler: the ratio is 1 whatever the age of a sample, and nothing is corrected or clipped."""
    trainer = behind(folder, seed, **changes)
    taken_against_itself(trainer)
    return trainer


def taken_against_itself(trainer: Any) -> None:
    """Overwrite the sampler's log-probabilities with those of the weights of now, on their way into the loss."""
    loss = trainer.compute_loss

    def recomputed(model: Any, inputs: Any, *more: Any, **named: Any) -> Any:
        keep, selected = inputs["attention_mask"].bool(), inputs["token_index"] >= 0
        parts = {name: inputs[name][keep].unsqueeze(0) for name in ("input_ids", "position_ids", "shift_labels")}
        tree = {name: inputs[name][inputs[name] >= 0] for name in ("tree_kv_index", "tree_cu_seqlens_q", "tree_cu_seqlens_k")}
        tree["tree_max_seqlen_q"], tree["tree_max_seqlen_k"] = inputs["tree_max_seqlens"][0].tolist()
        with torch.no_grad():
            logps = model(**parts, **tree, fused_lm_head=True).log_probs.flatten()
        old = inputs["old_log_probs"].clone()
        old[selected] = logps[inputs["token_index"][selected]]
        return loss(model, {**inputs, "old_log_probs": old}, *more, **named)

    trainer.compute_loss = recomputed


def unclipped(folder: str, seed: int, **changes: Any) -> Any:
    """Importance sampling without a bound: the clip is so wide that it never acts, on samples of three versions ago."""
    return behind(folder, seed, **{"epsilon": 1e6, **changes})


def page_trained(folder: str, seed: int, **changes: Any) -> Any:
    """What the environment showed is in the loss mask, as if the policy had written it."""
    return two_turns(folder, seed, masked=False, **changes)


NAMED: dict[str, tuple[Sequence[str], Sequence[Any]]] = {
    "grpo-answer-contained": (["proxy-divergence", "paid-for-length", "exploit-jump", "checker-unmoved"], ["over-optimization", "data"]),
    "grpo-tool-scored": (["proxy-divergence", "exploit-jump"], ["over-optimization", "data"]),
    "grpo-greedy-engine": (["samples-from-another-policy", "mode-collapse", "samples-repeat"], ["config", "stall", "collapse"]),
    "rloo-form-over-lines": (["dead-component"], ["data"]),
    "rloo-same-seeds": (["mode-collapse", "samples-repeat"], ["config", "efficiency", "collapse"]),
    "async_grpo-ratio-of-itself": (["no-rule:ratio-taken-against-itself", "ratio-of-itself"], ["ood-drift", "collapse"]),
    "async_grpo-unclipped": (["no-rule:clip-bound-never-acts", "ratio-blow-up", "clip-range-too-wide"], ["config", "ood-drift", "collapse"]),
    "async_grpo-noise-rounded": (["samples-from-another-policy"], ["numerics", "ood-drift"]),
    "async_grpo-page-trained": (["no-rule:observation-tokens-trained", "samples-from-another-policy"], ["data", "efficiency"]),
}
"""Ids of rules whose meaning is true of the cause, best first, and categories: named from the description of the fault alone, by somebody who saw no recording (docs/decisions/0015).
Rules that were written after the first score because of a fault were added then: `samples-repeat`, `checker-unmoved`, `clip-range-too-wide`, `ratio-of-itself`."""


def _sick(fault: str, trainer: str, what: str, build: Callable[..., Any], steps: int, verdicts: Sequence[Any], **more: Any) -> Case:
    roots, categories = NAMED[f"{trainer}-{fault}"]
    return Case(f"{trainer}-{fault}", trainer, what, build, steps, roots=tuple(roots), categories=tuple(categories), verdicts=tuple(verdicts), seeds=SEEDS, **more)


def _twin(name: str, trainer: str, what: str, build: Callable[..., Any], steps: int, **more: Any) -> Case:
    return Case(f"{trainer}-{name}-twin", trainer, what, build, steps, seeds=TWIN_SEEDS, **more)


CASES: tuple[Case, ...] = (
    _twin("letter-asked", "grpo", "The letter behind a question is the answer that is wanted, and nothing else.", letter_asked, LETTER_STEPS, goal="eval.score"),
    _twin("with-tool", "grpo", "Different vowels are asked for; a tool names them, and only the policy's own last words are scored.", with_tool, STEPS, goal="eval.score"),
    _twin("two-lines", "rloo", "Thoughts on two lines and an answer, each in brackets.", two_lines, cases_rloo.STEPS, goal="reward.component_mean{component=form}"),
    _twin("behind", "async_grpo", "Every sample is three versions old, and the ratio is clipped as usual.", behind, BEHIND_STEPS),
    _twin("two-turns", "async_grpo", "Two turns with a page of random letters between them, which is not trained on.", two_turns, cases_async.STEPS),
    Case("grpo-entropy-rises", "grpo", "Healthy: entropy rises with the reward, the clip's upper bound is raised (rllm-org/rllm#116).", entropy_rises, STEPS, seeds=SEEDS, hard=True),
    Case("rloo-right-and-short", "rloo", "Healthy: beside accuracy a length reward docks the long and right (huggingface/open-r1#360).", right_and_short, cases_rloo.STEPS, seeds=SEEDS, hard=True),
    Case("async_grpo-sampler-rounds", "async_grpo", "Healthy: a sampler in bfloat16, the ratio is not quite 1 (huggingface/trl#4772).", sampler_rounds, cases_async.STEPS, seeds=SEEDS, hard=True),
    _sick(
        "answer-contained", "grpo", "An answer counts as right if the wanted letter is anywhere in it (PrimeIntellect-ai/verifiers#763).", contains, LETTER_STEPS,
        ("over_optimizing", "drifting", *HEALTHY_STATES), twin="grpo-letter-asked-twin", goal="eval.score",
    ),
    _sick(
        "tool-scored", "grpo", "The reward function is given what the tool wrote as if the policy had written it (verl-project/verl#6392).", tool_scored, STEPS,
        ("over_optimizing", "drifting", *HEALTHY_STATES), twin="grpo-with-tool-twin", goal="eval.score",
    ),
    _sick(
        "greedy-engine", "grpo", "The engine's own default for top-k is 1, whatever the temperature: a group holds copies (vllm-project/tpu-inference#1386).", greedy_engine, STEPS,
        ("stalled", "collapsed"), twin="grpo-twin",
    ),
    _sick(
        "form-over-lines", "rloo", "The pattern for the form does not match over a line end, so that its reward is 0 (unslothai/unsloth#1761).", partial(two_lines, flags=0), cases_rloo.STEPS,
        ("stalled", "over_optimizing", "drifting", *HEALTHY_STATES), twin="rloo-two-lines-twin", goal="reward.component_mean{component=form}",
    ),
    _sick(
        "same-seeds", "rloo", "Every process draws with the same seed, so that a group holds copies of two answers (huggingface/trl#2824).", same_seeds, cases_rloo.STEPS,
        ("stalled", "drifting", *HEALTHY_STATES), twin="rloo-twin",
    ),
    _sick(
        "ratio-of-itself", "async_grpo", "The trainer's own log-probabilities stand for the sampler's: the ratio is always 1 (meta-pytorch/torchforge#571).", ratio_of_itself, BEHIND_STEPS,
        ("collapsed", "drifting", "diverged", "stalled"), twin="async_grpo-behind-twin",
    ),
    _sick(
        "unclipped", "async_grpo", "Importance ratios are not clipped, on samples of three versions ago (thinking-machines-lab/tinker-cookbook#822).", unclipped, BEHIND_STEPS,
        ("collapsed", "drifting", "diverged", "stalled"), twin="async_grpo-behind-twin", cure={"epsilon": 0.2},
    ),
    _sick(
        "noise-rounded", "async_grpo", "Uniform numbers behind the sampler's Gumbel noise are rounded to 1: any token may win (tenstorrent/tt-metal#56016).", noise_rounded, cases_async.STEPS,
        ("stalled", "drifting", *HEALTHY_STATES), twin="async_grpo-twin",
    ),
    _sick(
        "page-trained", "async_grpo", "What the environment showed between two turns is in the loss (TIGER-AI-Lab/verl-tool#116).", page_trained, cases_async.STEPS,
        ("stalled", "drifting", *HEALTHY_STATES), twin="async_grpo-two-turns-twin",
    ),
)  # fmt: skip
