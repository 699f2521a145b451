"""Copies among the answers to one prompt that independent draws from the policy would not give.

Two answers that are drawn independently are the same with the probability of that answer: where the policy has one answer left, copies are
its own; where the answer is one of millions, the second one was not drawn but made from the same random numbers, by a sampler that does not
draw at all, or taken from a cache. The policy says itself which of the two it is.

Groups may lie on several ranks (one seed for all of them is the usual fault), whose token ids are not here; their texts are: TRL gathers
them for its table of completions.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from trainvitals.integrations.groups import prompt_key

if TYPE_CHECKING:
    from trainvitals.integrations.hooks import Hooks

CHANCE = 1e-4
"""What may happen to an answer by chance: where so many copies of it had so much probability at most, it is counted."""
_SIGNAL = "completion.improbable_copies_fraction"
_MIX = (0x5851F42D4C957F2D, 0x14057B7EF767814F, 0x2545F4914F6CDD1D)  # odd constants of PCG and xorshift*: any odd ones would do

Row = tuple[Hashable, Hashable]
"""A prompt and an answer to it, or something that stands for them."""


def improbable(rows: Sequence[Row], logps: Sequence[float], elsewhere: Mapping[Row, tuple[int, int]] | None = None) -> float | None:
    """Share of answers that have more copies than independent draws from the policy would give.

    Of n other answers to a prompt, k or more are equal to one whose probability is p with a chance of at most ``C(n, k) p**k`` (union bound over the
    sets of k). Below `CHANCE` the answer is counted: by chance at most once in ten thousand. So a pair of long answers counts, a whole group
    of copies of a short one as well, and copies of an answer that the policy nearly always gives do not.

    Args:
        rows: Prompt and answer.
        logps: Log-probability of each answer under the policy, summed over its tokens, in nats. Of copies the largest is taken: to other images
            or numerics one answer may be a likelier one.
        elsewhere: Of some rows, how many more copies and how many more answers to their prompt there are beside `rows`.

    Returns:
        The share of all answers, or None without any prompt that has two.
    """
    asked, same, likely = Counter(prompt for prompt, _ in rows), Counter(rows), dict[Row, float]()
    for row, logp in zip(rows, logps, strict=True):
        likely[row] = max(likely.get(row, -math.inf), math.inf if math.isnan(logp) else logp)
    total = found = 0
    for row in rows:
        copies, others = (elsewhere or {}).get(row, (0, 0))
        copies, others = copies + same[row] - 1, others + asked[row[0]] - 1
        total += others > 0
        found += copies > 0 and _log_choose(others, copies) + copies * likely[row] < math.log(CHANCE)
    return found / total if total else None


def _log_choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)


def row_hash(ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """A number of 64 bits for each row's masked tokens and their places, shape (batch,), computed where `ids` lie.

    Each place, counted from the first masked token, has its own factor and the sum is taken modulo 2**64; two different rows of one batch agree
    with a chance of about 2**-60.
    """
    own = mask > 0
    place = own.to(torch.int64).cumsum(1) * _signed(_MIX[0])
    for factor in _MIX[1:]:
        place = (place ^ (place >> 29)) * _signed(factor)
    token = (ids.to(torch.int64) + 1) * _signed(_MIX[1])
    return torch.where(own, (token ^ (token >> 31)) * (place | 1), 0).sum(1)


def _signed(number: int) -> int:
    return number - 2**64 if number >= 2**63 else number


class Copies:
    """The answers of one generation batch, and what the policy says of them when it is about to learn from them.

    Args:
        hooks: Of the trainer.
    """

    def __init__(self, hooks: Hooks) -> None:
        self._hooks = hooks
        self._elsewhere: dict[Row, tuple[int, int]] = {}  # copies and others on other ranks, of this rank's answers
        self._own: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []

    def after_batch(self, result: dict[str, Any]) -> None:
        """A generation batch is there: look for its answers' copies on other ranks, in the texts that TRL has gathered."""
        trainer = self._hooks.trainer
        self._own, self._elsewhere = [], {}
        ranks = int(trainer.accelerator.num_processes)
        prompts, answers = gathered(getattr(trainer, "_logs", None), ranks * len(result["completion_ids"]))
        if ranks < 2 or not prompts:
            return
        count = len(result["completion_ids"])
        start = int(trainer.accelerator.process_index) * count
        found = on_other_ranks(list(zip(prompts, answers, strict=True)), slice(start, start + count))

        def compute(tensors: list[torch.Tensor]) -> dict[str, float]:
            self._elsewhere = dict(zip(_rows(tensors), found, strict=True))
            return {}

        self._hooks.put(_hashes(result), compute)

    def after_loss(self, inputs: dict[str, Any], logps: torch.Tensor, own: torch.Tensor) -> None:
        """One micro-batch, before the policy was updated: what it gives each answer. `own` masks the tokens that it wrote, shape (batch, time)."""
        if {"prompt_ids", "prompt_mask", "completion_ids", "completion_mask"} <= inputs.keys():
            self._own.append((*_hashes(inputs), torch.where(own > 0, logps.float(), 0.0).sum(1)))

    def step_end(self) -> None:
        """Hand over what the update saw."""
        if self._own:
            self._hooks.put([torch.cat(part) for part in zip(*self._own, strict=True)], self._compute)
        self._own = []

    def _compute(self, tensors: list[torch.Tensor]) -> dict[str, float]:
        share = improbable(_rows(tensors), tensors[2].tolist(), self._elsewhere)
        return {} if share is None else {_SIGNAL: share}


def _hashes(batch: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    with torch.no_grad():
        return row_hash(batch["prompt_ids"], batch["prompt_mask"]), row_hash(batch["completion_ids"], batch["completion_mask"])


def _rows(tensors: Sequence[torch.Tensor]) -> list[Row]:
    return list(zip(tensors[0].tolist(), tensors[1].tolist(), strict=True))


def gathered(logs: Any, count: int) -> tuple[list[Hashable], list[Hashable]]:
    """Prompts and answers of the newest `count` rows of TRL's table of completions, all ranks in order; empty where it holds fewer or no texts."""
    prompts, answers = (list(logs.get(name, ()))[-count:] for name in ("prompt", "completion")) if isinstance(logs, dict) else ([], [])
    if len(prompts) != count or len(answers) != count:
        return [], []
    texts = [prompt_key(text) for text in (*prompts, *answers)]
    return ([], []) if None in texts else (texts[:count], texts[count:])


def on_other_ranks(rows: Sequence[Row], own: slice) -> list[tuple[int, int]]:
    """For each row of `own`: how many rows outside it have its prompt and its answer, and how many have its prompt."""
    outside = [*rows[: own.start], *rows[own.stop :]]
    same, asked = Counter(outside), Counter(prompt for prompt, _ in outside)
    return [(same[row], asked[row[0]]) for row in rows[own]]
