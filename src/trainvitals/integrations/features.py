"""Family: the last hidden states, under any trainer that calls ``training_step``: how large they are and how many directions they use.

Every `EVERY` updates, the first among them, one forward pass that is trained on anyway is looked at: hooks sit on the final norm of the model for one micro-batch
and take `TOKENS` tokens, spread without a rhythm over what is no padding. Where the trainer asks for the scores of completions only
(``logits_to_keep``, in RL), the tokens are those of the prompts, since what the policy writes changes with the policy: in a causal model
prompts are read the same way whatever follows. Rows that begin with the same token give the same state there unless something is drawn at random, which
shows dropout that no setting tells of. One Gram matrix of 64 x 64 leaves the device; its eigenvalues cost the host half a millisecond.

Large states before the final norm are what a rising learning rate does to a model before its features fall into few directions
(arXiv:2405.00662). Models without a final norm (BERT) give nothing, nor do compiled ones, in which hooks do not run.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from trainvitals.integrations.adapters import effective_rank

if TYPE_CHECKING:
    from trainvitals.integrations.hooks import Hooks

SIGNALS = frozenset({"hidden.norm", "hidden.effective_rank", "hidden.norm_start", "hidden.rank_start", "hidden.repeat_difference"})
"""Signals that only these hooks give."""

EVERY = 10
"""Updates between two looks."""
TOKENS = 64
"""Tokens that are looked at; a rank of their states lies between 1 and 63."""
_GOLDEN = (math.sqrt(5) - 1) / 2  # its multiples are spread evenly and keep no time with rows of a batch


def final_norm(model: Any) -> Any | None:
    """The norm behind the layers of the largest stack of layers; None where there is none."""
    best, size = None, 0
    for module in model.modules():
        children = list(module.named_children())
        stacks = [i for i, (_, child) in enumerate(children) if isinstance(child, torch.nn.ModuleList) and len(child)]
        norms = [child for _, child in children[stacks[0] + 1 :] if "norm" in type(child).__name__.lower()] if stacks else []
        if norms:
            numbers = sum(p.numel() for p in children[stacks[0]][1].parameters())
            if numbers > size:
                best, size = norms[-1], numbers
    return best


def causal(model: Any) -> bool:
    """Whether a token's state depends on the tokens before it alone, by the name of the class: not in encoders, nor behind one."""
    name = type(model.get_base_model() if hasattr(model, "get_base_model") else model).__name__
    return "ForCausalLM" in name or "LMHeadModel" in name


def install(hooks: Hooks) -> None:
    """Look at the final norm of a model that has one. PPO never calls ``training_step``."""
    if final_norm(hooks.trainer.model) is None or hasattr(hooks.trainer, "value_model"):
        return
    reader = _Features(hooks)
    gives = SIGNALS if causal(hooks.trainer.model) else SIGNALS - {"hidden.repeat_difference"}
    hooks.wrap(hooks.trainer, "training_step", reader.after_step, before=reader.before_step, gives=gives)
    hooks.at_step_end.append(reader.step_end)


class _Features:
    """One look at a time at the states of one training."""

    def __init__(self, hooks: Hooks) -> None:
        self._hooks = hooks
        self._updates = 0
        self._done = False  # in this update
        self._handles: list[Any] = []
        self._mask: torch.Tensor | None = None
        self._ids: torch.Tensor | None = None
        self._keep = 0
        self._error: Exception | None = None

    def before_step(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
        """Put the hooks on for the first micro-batch of every `EVERY`th update."""
        self._remove()
        if self._updates % EVERY == 0 and not self._done:
            model = self._hooks.trainer.model
            norm = final_norm(model)
            if norm is not None:
                self._handles = [
                    model.register_forward_pre_hook(self._enter, with_kwargs=True),
                    norm.register_forward_hook(self._read),
                ]
        return args

    def after_step(self, result: Any, args: tuple[Any, ...], kwargs: dict[str, Any], seconds: float) -> None:
        """Take the hooks off again; an error that one of them met switches this reader off."""
        self._remove()
        if self._error is not None:
            raise self._error

    def step_end(self) -> None:
        """An update is over."""
        self._updates, self._done = self._updates + 1, False

    def _remove(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles, self._mask, self._ids, self._keep = [], None, None, 0

    def _enter(self, module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        mask, keep = kwargs.get("attention_mask"), kwargs.get("logits_to_keep")
        self._mask = mask if isinstance(mask, torch.Tensor) and mask.dim() == 2 else None
        self._keep = keep if isinstance(keep, int) else 0
        ids = kwargs.get("input_ids")
        self._ids = ids if isinstance(ids, torch.Tensor) and ids.dim() == 2 else None

    def _read(self, module: Any, args: Any, output: Any) -> None:
        if torch.compiler.is_compiling() or self._done or self._error is not None or not torch.is_grad_enabled() or not module.training:
            return
        try:
            states = args[0]
            if states.dim() != 3:
                return
            weight = torch.ones(states.shape[:2], device=states.device) if self._mask is None else self._mask.float()
            if 0 < self._keep < states.shape[1]:
                weight = torch.cat([weight[:, : -self._keep], torch.zeros_like(weight[:, -self._keep :])], dim=1)
            if weight.shape == states.shape[:2] and weight.numel() >= TOKENS:
                self._done = True
                untouched = self._updates == 0 and self._hooks.trainer.state.global_step == 0
                self._hooks.put(sketch(states, output, weight), first_signals if untouched else hidden_signals)
                if self._ids is not None and self._ids.shape == states.shape[:2] and len(states) > 1 and causal(self._hooks.trainer.model):
                    self._hooks.put(repeats(output, self._ids, weight), repeat_signals)
        except Exception as error:  # nothing may leave a hook in the middle of the model: `after_step` reports it
            self._error = error


def sketch(before: torch.Tensor, after: torch.Tensor, weight: torch.Tensor) -> list[torch.Tensor]:
    """What leaves the device of one pass, shapes (batch, length, width): norms before the final norm, Gram matrix after it, weights.

    Args:
        before: States that go into the final norm.
        after: States that come out of it.
        weight: 1 for tokens that may be taken, else 0; (batch, length).
    """
    with torch.no_grad(), torch.autocast(before.device.type, enabled=False):
        flat = weight.reshape(-1)
        order = torch.arange(1, flat.numel() + 1, device=flat.device, dtype=torch.float64).mul_(_GOLDEN).frac_().add_(1e-9).float()
        picked, places = (flat * order).topk(TOKENS)
        taken = (picked > 0).float().unsqueeze(1)
        norms = torch.linalg.vector_norm(before.detach().reshape(flat.numel(), -1)[places].float(), dim=1)
        features = after.detach().reshape(flat.numel(), -1)[places].float()
        features = (features - (features * taken).sum(0) / taken.sum().clamp(min=1.0)) * taken
        return [norms, features @ features.T, taken.squeeze(1)]


def repeats(after: torch.Tensor, ids: torch.Tensor, weight: torch.Tensor) -> list[torch.Tensor]:
    """Rows that begin with the same token as the first: in a causal model their states there are equal but for rounding and dropout.

    Gives the relative difference of each row from the first, and whether it begins alike; padding on the left has no such place.
    """
    with torch.no_grad():
        states = after.detach()[:, 0].float()
        difference = torch.linalg.vector_norm(states[1:] - states[0], dim=1) / torch.linalg.vector_norm(states[0]).clamp(min=1e-12)
        return [difference, (ids[1:, 0] == ids[0, 0]) & (weight[1:, 0] > 0) & (weight[0, 0] > 0)]


def repeat_signals(tensors: list[torch.Tensor]) -> dict[str, float]:
    """Median difference of rows that begin alike; nothing where there are none."""
    difference, alike = tensors
    return {"hidden.repeat_difference": float(difference[alike].median())} if bool(alike.any()) else {}


def hidden_signals(tensors: list[torch.Tensor]) -> dict[str, float]:
    """Median norm and effective rank (Roy and Vetterli 2007) of the tokens' states; nothing where there were too few tokens."""
    norms, gram, taken = (tensor.double().numpy() for tensor in tensors)
    if taken.sum() < TOKENS:
        return {}
    if not np.isfinite(gram).all():
        return {"hidden.norm": float(np.median(norms)), "hidden.effective_rank": math.nan}
    rank = effective_rank(np.sqrt(np.clip(np.linalg.eigvalsh(gram)[::-1], 0.0, None)))
    return {"hidden.norm": float(np.median(norms)), **({} if rank is None else {"hidden.effective_rank": rank})}


def first_signals(tensors: list[torch.Tensor]) -> dict[str, float]:
    """The same at the first update of a run, before any weight has changed, with what later looks are compared with."""
    values = hidden_signals(tensors)
    starts = {"hidden.norm": "hidden.norm_start", "hidden.effective_rank": "hidden.rank_start"}
    return {**values, **{starts[name]: value for name, value in values.items() if math.isfinite(value)}}
