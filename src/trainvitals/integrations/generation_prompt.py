"""Family: whether prompts in the chat format end where the assistant's turn begins.

A prompt that was rendered by hand with ``add_generation_prompt=False`` stops behind the user's turn: the policy has to open its own turn before it can
answer, or goes on with the user's. TRL adds the header itself to prompts that are lists of messages, never to text.

How the tokenizer's template opens a turn of the user and the assistant's is found by rendering three short messages with it, once, when we are
attached. The decoded prompts of the first rollouts are then searched for both. A prompt whose last turn is the assistant's (a beginning to go on from) has
that header too. No text leaves this file, only a share.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from trainvitals.integrations.hooks import Hooks

SIGNALS = frozenset({"data.generation_prompt_absent_fraction"})
"""Signals that only these wraps give."""

_ASKED, _ANSWERED, _AGAIN = "vitals one", "vitals two", "vitals three"
_THINKING: tuple[dict[str, bool], ...] = ({}, *({name: way} for name in ("enable_thinking", "thinking") for way in (True, False)))
# Options by which known templates write more behind the header (Qwen3, DeepSeek V3.1); others do not look at them.
_PROMPTS = 16  # different prompts that are read
_FEWEST, _LOOKS = 2, 2  # of them it takes, or else so many generation batches: one odd row is no fault
_TOKENS = 16_384  # of the end of a prompt that are spelled out: the frame of a long question may lie far back


@dataclass(frozen=True, slots=True)
class Turns:
    """How a chat template opens a turn.

    Attributes:
        user: Finds where a turn of the user begins.
        assistant: Finds where one of the assistant begins, whichever option of the template was used.
    """

    user: re.Pattern[str]
    assistant: re.Pattern[str]

    def unopened(self, prompt: str) -> bool:
        """Whether a prompt is in the chat format and its last turn of the user is not followed by the assistant's header."""
        ends = [found.end() for found in self.user.finditer(prompt)]
        return bool(ends) and self.assistant.search(prompt, ends[-1]) is None


def install(hooks: Hooks) -> None:
    """Read the prompts of the first rollouts of a trainer that samples, where the template has a header to miss."""
    trainer = hooks.trainer
    groups = hasattr(trainer, "num_generations") and hasattr(trainer, "_calculate_rewards") and not hasattr(trainer, "teacher_context_builder")
    pairs = "objective/scores" in (getattr(trainer, "stats", None) or {})  # online DPO, as in preference.py
    if not groups and not pairs:
        return
    owner = getattr(trainer, "processing_class", None)
    tokenizer = getattr(owner, "tokenizer", owner)
    turns = turns_of(owner, tokenizer, getattr(trainer, "chat_template", None), getattr(trainer, "chat_template_kwargs", None) or {})
    if turns is None:
        return
    reader = _Prompts(hooks, tokenizer, turns)
    if groups:
        hooks.wrap(trainer, "_generate", reader.after_generate, gives=SIGNALS)
    else:
        hooks.wrap(trainer, "_forward", reader.after_forward, gives=SIGNALS)


# ---- what the template writes ----


def turns_of(owner: Any, tokenizer: Any, template: str | None, options: dict[str, Any]) -> Turns | None:
    """How turns are opened, from what the template makes of a question, an answer and another question.

    None where that cannot be told: no template, no header (Llama 2 and Mistral close the question instead), or one whose tokens do not spell it.

    Args:
        owner: Tokenizer or processor with ``apply_chat_template``.
        tokenizer: Its tokenizer.
        template: The trainer's own template; None for the tokenizer's.
        options: What the trainer calls the template with.
    """
    own = {"chat_template": template} if template else {}

    def render(*texts: str, prompt: bool = False, **more: bool) -> str:
        said = [{"role": ("user", "assistant")[place % 2], "content": text} for place, text in enumerate(texts)]
        return str(owner.apply_chat_template(said, tokenize=False, add_generation_prompt=prompt, **{**own, **options, **more}))

    try:
        closed, answered, again = render(_ASKED), render(_ASKED, _ANSWERED), render(_ASKED, _ANSWERED, _AGAIN)
        opened = [render(_ASKED, prompt=True, **more) for more in _THINKING]
    except Exception:  # a template is a program of somebody else's: it refuses what it likes
        return None
    close, end = closed.rpartition(_ASKED)[2], answered.rpartition(_ANSWERED)[2]
    headers = [*(text.rpartition(_ASKED)[2] for text in opened), between(answered, _ASKED, _ANSWERED)]
    user = between(again, _ANSWERED, _AGAIN)
    if not user.startswith(end) or not all(text.startswith(close) for text in headers):
        return None
    user, header = user[len(end) :].strip(), shared_start([text[len(close) :] for text in headers]).strip()
    if not user or not header:
        return None
    turns = Turns(mark(user), mark(header))
    told = [turns.unopened(tokenizer.decode(tokenizer(text)["input_ids"])) for text in (closed, *opened, answered)]
    return turns if told == [True] + [False] * (len(told) - 1) else None


def between(text: str, first: str, last: str) -> str:
    """What stands between two texts."""
    return text.rpartition(last)[0].rpartition(first)[2]


def shared_start(texts: Sequence[str]) -> str:
    """The letters with which all texts begin."""
    first, last = min(texts), max(texts)
    return first[: next((place for place, letter in enumerate(first) if letter != last[place]), len(first))]


def mark(text: str) -> re.Pattern[str]:
    """Finds a text with any blanks where it has some, and never inside a word."""
    edge = r"(?<!\w)" if text[:1].isalnum() else ""
    return re.compile(edge + r"\s*".join(map(re.escape, text.split())))


def share_unopened(prompts: Iterable[Sequence[int]], tokenizer: Any, turns: Turns) -> float:
    """Share of prompts, as token ids, that stop before the assistant's turn."""
    told = [turns.unopened(tokenizer.decode(list(ids)[-_TOKENS:])) for ids in prompts]
    return sum(told) / len(told)


# ---- what the prompts hold ----


class _Prompts:
    """The prompts of the first rollouts."""

    def __init__(self, hooks: Hooks, tokenizer: Any, turns: Turns) -> None:
        self._hooks, self._tokenizer, self._turns = hooks, tokenizer, turns
        self._seen: dict[tuple[int, ...], None] = {}
        self._looks = 0
        self._done = False

    def after_generate(self, result: Any, args: tuple[Any, ...], kwargs: dict[str, Any], seconds: float) -> None:
        """One generation batch of GRPO or RLOO: the prompts' token ids come first."""
        if self._done or not self._hooks.training or not isinstance(result, tuple) or not result[0]:
            return
        self._seen.update(dict.fromkeys(tuple(ids) for ids in result[0]))
        self._looks += 1
        self._done = len(self._seen) >= _FEWEST or self._looks >= _LOOKS
        if self._done:
            share = share_unopened(list(self._seen)[:_PROMPTS], self._tokenizer, self._turns)
            self._hooks.give("data.generation_prompt_absent_fraction", share)
            self._seen = {}

    def after_forward(self, result: Any, args: tuple[Any, ...], kwargs: dict[str, Any], seconds: float) -> None:
        """The first pairs of online DPO: prompts with their mask, padded on the left."""
        if self._done or not self._hooks.training or len(args) < 3 or not isinstance(args[2], torch.Tensor):
            return
        self._done = True

        def compute(tensors: list[torch.Tensor]) -> dict[str, float]:
            rows = dict.fromkeys(tuple(ids[own.bool()].tolist()) for ids, own in zip(*tensors, strict=True))
            return {"data.generation_prompt_absent_fraction": share_unopened(list(rows)[:_PROMPTS], self._tokenizer, self._turns)}

        self._hooks.put([args[1], args[2]], compute)
