"""Family: sequences whose chat template was applied twice, or that begin with two BOS tokens.

``apply_chat_template`` writes a BOS and turn markers into the text. A tokenizer that adds its own BOS to that text, or a second pass of rendered text
through the template, doubles them. What is looked at is what the model gets: rows of SFT, GKD, the preference trainers and reward models, and the prompts
that a policy answers (GRPO, RLOO, online DPO). Markers are learned by rendering a conversation with the tokenizer's own template (`turn_markers`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from trainvitals.integrations.supervised import HEADER, Sequences, among, per_sequence, sequences, turn_markers

if TYPE_CHECKING:
    from trainvitals.integrations.hooks import Hooks

SIGNALS = frozenset({"token.doubled_template_fraction"})
"""Signals that only these wraps give."""

_NAMES = ("input_ids", "chosen_input_ids", "prompt_input_ids")  # SFT, DPO and KTO; ORPO, CPO, reward models; BCO
_PROMPTS = 64  # rows of a generation batch whose prompts are looked at
_HEAD = 256  # of their tokens: the first turn is doubled like the others


def install(hooks: Hooks) -> None:
    """Look at the first micro-batch of each update, or at the prompts of each generation batch."""
    trainer = hooks.trainer
    reader = _Doubled(hooks)
    if reader.bos is None and not reader.openers:
        return
    if hasattr(trainer, "num_generations") and hasattr(trainer, "_calculate_rewards"):
        hooks.wrap(trainer, "_generate", reader.after_generate, gives=SIGNALS)
    elif "objective/scores" in (getattr(trainer, "stats", None) or {}):  # online DPO, as in preference.py
        hooks.wrap(trainer, "_forward", reader.after_forward, gives=SIGNALS)
    elif not any(hasattr(trainer, name) for name in ("num_generations", "reward_funcs", "reward_model", "rollout_queue")):
        hooks.wrap(trainer, "compute_loss", before=reader.before_loss, gives=SIGNALS)
        hooks.at_step_end.append(reader.step_end)


def doubled_counts(ids: torch.Tensor, where: Sequences, bos: int | None, openers: frozenset[int], closers: frozenset[int]) -> torch.Tensor:
    """Sequences whose template was applied twice, and all sequences.

    Either the sequence begins with two BOS tokens, or a turn opens within `HEADER` tokens of another that was not closed.
    """
    flat, first, valid = ids.flatten(), where.start.flatten(), where.real.flatten()
    index = torch.arange(flat.numel(), device=flat.device)
    twice = torch.zeros_like(valid)
    if bos is not None:
        twice[1:] = first[:-1] & ~first[1:] & (flat[:-1] == bos) & (flat[1:] == bos)
    if openers:
        opened, closed = _last(flat, openers, index), _last(flat, closers, index)
        begin = torch.where(first, index, -1).cummax(0).values
        before, shut = opened[:-1], closed[:-1]
        inside = (before > shut) & (before >= begin[1:]) & (before >= index[1:] - HEADER)
        twice[1:] = twice[1:] | (inside & (opened[1:] == index[1:]))
    return (per_sequence(torch.stack([twice & valid, valid & ~first]), where.number) > 0).sum(1)


def doubled_signals(tensors: list[torch.Tensor]) -> dict[str, float]:
    """Signals from one `doubled_counts`; none where there was no sequence."""
    hits, total = tensors[0].tolist()
    return {"token.doubled_template_fraction": hits / total} if total else {}


def _last(flat: torch.Tensor, wanted: frozenset[int], index: torch.Tensor) -> torch.Tensor:
    """For every position the newest position up to it that holds one of `wanted`; -1 for none."""
    return torch.where(among(flat, wanted), index, -1).cummax(0).values


class _Doubled:
    """What the tokenizer's template writes, and what the newest batch held."""

    def __init__(self, hooks: Hooks) -> None:
        self._hooks = hooks
        self._counts: torch.Tensor | None = None
        owner = getattr(hooks.trainer, "processing_class", None)
        tokenizer = getattr(owner, "tokenizer", owner)
        self.bos: int | None = getattr(tokenizer, "bos_token_id", None)
        self.openers, self._closers = turn_markers(tokenizer)

    def _count(self, ids: torch.Tensor, mask: torch.Tensor | None, positions: torch.Tensor | None = None) -> torch.Tensor:
        with torch.no_grad():
            return doubled_counts(ids, sequences(ids, mask, positions), self.bos, self.openers, self._closers)

    def before_loss(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
        """One micro-batch per update is sample enough."""
        inputs = args[1] if len(args) > 1 else kwargs["inputs"]
        name = next((name for name in _NAMES if isinstance(inputs.get(name), torch.Tensor)), None)
        if self._hooks.training and self._counts is None and name is not None and inputs[name].dim() == 2:
            self._counts = self._count(inputs[name], inputs.get(name.replace("input_ids", "attention_mask")), inputs.get("position_ids"))
        return args

    def step_end(self) -> None:
        """Hand over what the update's first micro-batch gave."""
        if self._counts is not None:
            self._hooks.put([self._counts], doubled_signals)
        self._counts = None

    def after_generate(self, result: Any, args: tuple[Any, ...], kwargs: dict[str, Any], seconds: float) -> None:
        """One generation batch of GRPO or RLOO: the prompts' token ids come first, as lists."""
        if not self._hooks.training or not isinstance(result, tuple) or not result[0]:
            return
        prompts = [torch.tensor(row) for row in dict.fromkeys(tuple(row[:_HEAD]) for row in result[0][:_PROMPTS])]  # each is there once for every answer
        lengths = torch.tensor([len(row) for row in prompts])
        ids = torch.nn.utils.rnn.pad_sequence(prompts, batch_first=True)
        mask = torch.arange(ids.size(1)) < lengths[:, None]
        self._hooks.put([self._count(ids, mask)], doubled_signals)

    def after_forward(self, result: Any, args: tuple[Any, ...], kwargs: dict[str, Any], seconds: float) -> None:
        """A batch of online DPO's pairs: prompts with their mask, padded on the left."""
        if self._hooks.training and len(args) >= 3 and isinstance(args[2], torch.Tensor):
            self._hooks.put([self._count(args[1], args[2])], doubled_signals)
