"""Family: mixtures of experts, under any trainer: where the routers send the tokens.

Routers are found by what they are: a module that scores as many outputs as there are experts, beside its ``experts`` or with
``num_experts`` and ``top_k`` of its own. Forward hooks sit on them only while the trainer is in ``training_step``, so
saving, copying, evaluating and generating meet an untouched model. They count on the device; one small table leaves it per step.

What counts: tokens of forward passes that will be trained on. Generation, reference models and scoring run without
gradients and are left out, as is the second forward of gradient checkpointing (it runs outside the model's own forward), as
is padding. In a region that torch.compile traces the hooks do nothing, so a compiled model has no router signals.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

if TYPE_CHECKING:
    from trainvitals.integrations.hooks import Hooks

SIGNALS = frozenset({
    "moe.router_entropy", "moe.max_load_fraction", "moe.min_load_fraction", "moe.load_imbalance", "moe.dead_expert_fraction",
    "moe.dropped_token_fraction", "moe.fair_load_fraction",
})  # fmt: skip
"""Signals that only these hooks give."""

DEAD_SHARE = 0.01
"""An expert is dead when it gets less than this part of its fair share of tokens (pathologies.md MO-04)."""
RECENT = 10
"""Steps over which an expert must stay idle to be called dead."""
MIN_TOKENS = 30.0
"""Fair share of tokens per expert below which none is called dead: with 30 expected, an idle expert is no chance (e^-30)."""

_Floats = NDArray[np.float64]


@dataclass(slots=True, eq=False)
class Router:
    """One router: its module, how many experts it serves and how many it picks per token."""

    module: Any
    experts: int
    top_k: int
    path: str


def routers_of(model: Any) -> list[Router]:
    """The routers of a model, in the order of its layers; empty for a dense model."""
    config: Any = getattr(model, "config", None)
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    found: dict[int, Router] = {}
    for path, module in model.named_modules():
        for name, child, experts in _scorers(module):
            top_k = _top_k(child, module, config)
            if 0 < top_k <= experts:
                found.setdefault(id(child), Router(child, experts, top_k, f"{path}.{name}" if path else name))
    nested = {id(part) for router in found.values() for part in router.module.modules() if part is not router.module}
    return [router for key, router in found.items() if key not in nested]


def _scorers(module: Any) -> Iterator[tuple[str, Any, int]]:
    """Children of a module that score experts."""
    children = dict(module.named_children())
    experts = children.get("experts")
    count = _expert_count(module, experts)
    for name, child in children.items():
        if child is experts:
            continue
        own = getattr(child, "num_experts", None)
        if experts is not None and count > 1 and count in (own, _outputs(child)):
            yield name, child, count
        elif isinstance(own, int) and own > 1 and isinstance(getattr(child, "top_k", None), int) and not hasattr(child, "experts"):
            yield name, child, own


def _expert_count(block: Any, experts: Any) -> int:
    for owner in (experts, block):
        for name in ("num_experts", "num_local_experts", "n_routed_experts"):
            count = getattr(owner, name, None)
            if isinstance(count, int):
                return count
    return len(experts) if hasattr(experts, "__len__") else 0


def _outputs(module: Any) -> int:
    """Scores that a module gives: those of a linear layer (quantised or adapted as well) or the rows of its weight matrix."""
    count = getattr(module, "out_features", None)
    if isinstance(count, int):
        return count
    weight = getattr(module, "weight", None)
    return int(weight.shape[0]) if isinstance(weight, torch.Tensor) and weight.dim() == 2 else 0


def _top_k(router: Any, block: Any, config: Any) -> int:
    # A configuration's own top_k is that of sampling, 50.
    places = ((router, "top_k"), (block, "top_k"), (config, "num_experts_per_tok"), (config, "moe_k"))
    found = [getattr(owner, name, None) for owner, name in places]
    return next((value for value in found if isinstance(value, int) and value > 0), 1)


def backbone_of(model: Any, router: Router) -> Any:
    """The module that holds the list of layers: its forward is one pass, and it is called with the attention mask."""
    module, path = model, router.path.split(".")
    for name in path:
        child = getattr(module, name)
        if isinstance(child, torch.nn.ModuleList):
            return module
        module = child
    return model


def read_output(output: Any, experts: int, top_k: int) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Logits and selection from what a router returned; None for what it does not tell.

    A plain linear gate returns logits; routers of transformers 5 return ``(logits, weights, indices)``, some of 4.57
    ``(scores, indices)`` or ``(indices, weights)``. A selection is either indices of width `top_k` or a 0/1 mask of width `experts`.
    """
    parts = [part for part in (output if isinstance(output, tuple | list) else (output,)) if isinstance(part, torch.Tensor)]
    wide = [part for part in parts if part.is_floating_point() and part.dim() >= 2 and part.shape[-1] == experts]
    picks = [part for part in parts if not part.is_floating_point() and part.dim() >= 2 and part.shape[-1] in (top_k, experts)]
    if picks and len(parts) < 3:
        return None, picks[0]  # (scores, indices): what is wide has been normalised and cut already (GPT-OSS of 4.57)
    if not wide and not picks:
        msg = f"a router returned neither scores of {experts} experts nor a choice among them"
        raise LookupError(msg)
    # Without a selection the last is the logits: Llama 4 puts its scores before them. Switch has scores of width 1 in front.
    return (wide[0] if picks else wide[-1]) if wide else None, picks[0] if picks else None


def router_counts(
    logits: torch.Tensor | None, picks: torch.Tensor | None, weight: torch.Tensor | None, experts: int, top_k: int
) -> torch.Tensor:
    """One call of one router as a row on its device: tokens per expert, tokens elsewhere, sum of entropy, tokens, picks wanted.

    Picks wanted are ``tokens * top_k`` where the router tells which of them were kept (a mask), and NaN where it drops nothing.

    Args:
        logits: Scores before the softmax, shape (..., experts); None where the router does not hand them out.
        picks: Indices of the chosen experts (..., top_k), or a 0/1 mask (..., experts); None means the `top_k` largest logits.
        weight: 1 for tokens that count, 0 for padding, one per token; None counts all.
        experts: Number of experts.
        top_k: Experts per token.
    """
    with torch.no_grad():
        source = logits if picks is None else picks
        assert source is not None
        mask = picks is not None and picks.shape[-1] == experts and top_k < experts
        if picks is not None and mask:
            chosen = torch.nn.functional.pad(picks.reshape(-1, experts).float(), (0, 1))
        else:
            if picks is None:
                picks = source.float().topk(top_k, dim=-1).indices
            # Expert parallelism marks experts of other ranks with the index `experts`, some kernels with -1.
            index = picks.reshape(-1, picks.shape[-1]).long()
            index = index.masked_fill((index < 0) | (index > experts), experts)
            chosen = torch.zeros(index.shape[0], experts + 1, device=index.device).scatter_(1, index, 1.0)
        ones = torch.ones(chosen.shape[0], device=chosen.device)
        count = ones if weight is None else weight.reshape(-1).to(ones)
        load = (chosen * count.unsqueeze(-1)).sum(0)
        if logits is None:
            entropy = torch.full((), math.nan, device=chosen.device)
        else:
            entropy = (torch.special.entr(logits.reshape(-1, experts).float().softmax(-1)).sum(-1) * count).sum()
        tokens = count.sum()
        return torch.cat([load, torch.stack([entropy, tokens, tokens * (top_k if mask else math.nan)])])


def load_signals(table: Sequence[_Floats], top_k: Sequence[int], recent: Sequence[deque[_Floats]]) -> dict[str, float]:
    """Signals of one step from one row per layer as `router_counts` gives them, summed over micro-batches.

    Args:
        table: Rows of this step; layers may differ in their number of experts.
        top_k: Experts per token in each layer.
        recent: Loads of the last steps per layer, updated in place: one batch is too small to show a dead expert.
    """
    entropy, busiest, idlest, imbalance, dropped = [], [], [], [], []
    dead = judged = 0
    for row, picked, before in zip(table, top_k, recent, strict=True):
        load, (elsewhere, bits, tokens, wanted) = row[:-4], row[-4:]
        if not tokens > 0:
            continue
        if math.isfinite(bits):
            entropy.append(bits / tokens)
        if elsewhere > 0:  # expert parallelism: this rank sees its own experts only
            continue
        share, fair = load / tokens, picked / len(load)
        busiest.append(share.max())
        idlest.append(share.min())
        imbalance.append(max(0.0, share.max() - fair) / (1.0 - fair) if fair < 1.0 else 0.0)
        if math.isfinite(wanted):
            dropped.append(1.0 - load.sum() / wanted)
        before.append(load)
        lately = np.sum(before, axis=0)
        expected = lately.sum() / len(load)
        if expected >= MIN_TOKENS:
            dead += int((lately < DEAD_SHARE * expected).sum())
            judged += len(load)
    values: dict[str, float] = {}
    if entropy:
        values["moe.router_entropy"] = float(np.mean(entropy))
    if busiest:
        values["moe.max_load_fraction"], values["moe.min_load_fraction"] = float(max(busiest)), float(min(idlest))
        values["moe.load_imbalance"] = float(np.mean(imbalance))
    if dropped:
        values["moe.dropped_token_fraction"] = float(np.mean(dropped))
    if judged:
        values["moe.dead_expert_fraction"] = dead / judged
    return values


def install(hooks: Hooks) -> None:
    """Count what the routers choose, on a model that has some."""
    if not routers_of(hooks.trainer.model):
        return
    reader = _Moe(hooks)
    hooks.wrap(hooks.trainer, "training_step", reader.after_step, before=reader.before_step, gives=SIGNALS)
    hooks.at_step_end.append(reader.step_end)


class _Moe:
    """What the routers of one training have chosen in the current step."""

    def __init__(self, hooks: Hooks) -> None:
        self._hooks = hooks
        self._routers: list[Router] | None = None  # None until the first step: only then is the model prepared
        self._handles: list[Any] = []
        self._error: Exception | None = None
        self._inside = False
        self._weight: torch.Tensor | None = None
        self._rows: dict[int, torch.Tensor] = {}
        self._recent: list[deque[_Floats]] = []

    def before_step(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
        """Put the hooks on for one micro-batch."""
        self._remove()
        if self._routers is None:
            self._routers = routers_of(self._hooks.trainer.model)
            for router in self._routers[:1]:
                self._hooks.give("moe.fair_load_fraction", router.top_k / router.experts)
        if self._routers:
            backbone = backbone_of(self._hooks.trainer.model, self._routers[0])
            self._handles = [
                backbone.register_forward_pre_hook(self._enter, with_kwargs=True),
                backbone.register_forward_hook(self._leave, always_call=True),
                *(router.module.register_forward_hook(self._reader(index)) for index, router in enumerate(self._routers)),
            ]
        return args

    def after_step(self, result: Any, args: tuple[Any, ...], kwargs: dict[str, Any], seconds: float) -> None:
        """Take the hooks off again; an error that one of them met switches this reader off."""
        self._remove()
        if self._error is not None:
            self._rows = {}
            raise self._error

    def _remove(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles, self._inside, self._weight = [], False, None

    def _enter(self, module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        """One pass through the layers begins; it counts when it will be trained on."""
        if torch.compiler.is_compiling():
            return
        self._inside = self._error is None and torch.is_grad_enabled() and module.training
        mask = kwargs.get("attention_mask")
        self._weight = mask if isinstance(mask, torch.Tensor) and mask.dim() == 2 else None

    def _leave(self, module: Any, args: Any, output: Any) -> None:
        if not torch.compiler.is_compiling():
            self._inside, self._weight = False, None

    def _reader(self, index: int) -> Any:
        def read(module: Any, args: Any, output: Any) -> None:
            if torch.compiler.is_compiling() or not self._inside:
                return
            try:
                self._count(index, output)
            except Exception as error:  # nothing may leave a hook in the middle of the model: `after_step` reports it
                self._error, self._inside = error, False

        return read

    def _count(self, index: int, output: Any) -> None:
        assert self._routers is not None
        router = self._routers[index]
        logits, picks = read_output(output, router.experts, router.top_k)
        tokens = (picks if logits is None else logits).shape[:-1].numel()  # type: ignore[union-attr]
        weight = self._weight if self._weight is not None and self._weight.numel() == tokens else None
        row = router_counts(logits, picks, weight, router.experts, router.top_k)
        self._rows[index] = self._rows[index] + row if index in self._rows else row

    def step_end(self) -> None:
        """Hand the table of this step over."""
        if not self._rows or not self._routers:
            return
        rows, self._rows = self._rows, {}
        routers = [self._routers[index] for index in rows]
        if len(self._recent) != len(routers):
            self._recent = [deque(maxlen=RECENT) for _ in routers]
        recent, top_k = self._recent, [router.top_k for router in routers]
        ends = np.cumsum([router.experts + 4 for router in routers])[:-1]
        device = next(iter(rows.values())).device
        # One copy to the host, however many layers there are.
        packed = torch.cat([row.to(device, non_blocking=True) for row in rows.values()])

        def compute(tensors: list[torch.Tensor]) -> dict[str, float]:
            return load_signals(np.split(tensors[0].double().numpy(), ends), top_k, recent)

        self._hooks.put([packed], compute)
