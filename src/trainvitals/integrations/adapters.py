"""Family: low-rank adapters (LoRA, QLoRA and what keeps its factors the same way), under any trainer.

An adapter adds ``s*B@A`` to a frozen weight ``W``; A starts random and B at zero, so an adapter that learns nothing shows in B.
The norms of B are read every step (one fused kernel). Rank and size of ``B@A`` are read every `EVERY` steps from at most
`SAMPLE` modules (fewer for a high rank): two r x r Gram matrices each leave the device, the rest is arithmetic on the host.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

if TYPE_CHECKING:
    from trainvitals.integrations.hooks import Hooks

SIGNALS = frozenset({
    "adapter.b_norm", "adapter.still_fraction", "adapter.effective_rank", "adapter.delta_ratio", "adapter.trainable_fraction",
})  # fmt: skip
"""Signals that only this reader gives."""

EVERY = 10
"""Updates between two readings of the rank: a learning adapter's rank moves over hundreds of updates (pathologies.md LO-02)."""
SAMPLE = 16
"""Modules read for the rank, spread evenly over the model."""
BUDGET = SAMPLE * 64**3
"""Bound on the sum of r^3 over the modules that are read, since that is what eigenvalues cost the host: 16 modules up to rank 64, 2 of
rank 128, none above. Measured on one busy core: 1 ms at rank 16, 22 ms at rank 64, every ten updates."""

_FACTORS = (("lora_A", "lora_B"), ("lora_embedding_A", "lora_embedding_B"))
_Floats = NDArray[np.float64]


@dataclass(slots=True, eq=False)
class Adapter:
    """One adapted module: its factors, the factor ``s`` in front of them, and the weight that they correct (None if quantised)."""

    a: torch.Tensor
    b: torch.Tensor
    scale: float
    base: torch.Tensor | None


def adapters_of(model: Any) -> Iterator[Adapter]:
    """The active adapter of every module that has low-rank factors, found by what the module holds."""
    for module in model.modules():
        for name_a, name_b in _FACTORS:
            factors_a: Any = getattr(module, name_a, None)
            factors_b: Any = getattr(module, name_b, None)
            if not hasattr(factors_a, "keys") or not hasattr(factors_b, "keys"):
                continue
            active = getattr(module, "active_adapters", None)
            for name in list(factors_b.keys()) if active is None else active:
                if name in factors_a and name in factors_b:
                    a, b = (getattr(factors[name], "weight", factors[name]) for factors in (factors_a, factors_b))
                    yield Adapter(a, b, _scale(module, name), _base(module))


def _scale(module: Any, name: str) -> float:
    scaling = getattr(module, "scaling", None)
    return float(scaling[name]) if isinstance(scaling, dict) and name in scaling else 1.0


def _base(module: Any) -> torch.Tensor | None:
    """The frozen weight; None where it is packed (4 or 8 bit), since the norm of packed bytes means nothing."""
    weight = getattr(module.get_base_layer() if hasattr(module, "get_base_layer") else module, "weight", None)
    usable = isinstance(weight, torch.Tensor) and weight.is_floating_point() and weight.element_size() >= 2
    return weight if usable else None


def trainable_fraction(model: Any) -> float:
    """Share of the model's parameters that can be trained; PEFT's own count knows how 4-bit weights are packed."""
    if hasattr(model, "get_nb_trainable_parameters"):
        trainable, whole = model.get_nb_trainable_parameters()
    else:
        sizes = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
        trainable, whole = sum(size for size, on in sizes if on), sum(size for size, _ in sizes)
    return trainable / whole if whole else 0.0


def product_spectrum(gram_b: _Floats, gram_a: _Floats) -> _Floats:
    """Singular values of ``B@A``, largest first, from ``B^T B`` and ``A A^T``.

    ``(BA)(BA)^T = B H B^T`` with ``H = A A^T`` has the non-zero eigenvalues of ``G^1/2 H G^1/2`` with ``G = B^T B``: an r x r problem,
    however large the weight is.
    """
    values, vectors = np.linalg.eigh(gram_b)
    root = (vectors * np.sqrt(np.clip(values, 0.0, None))) @ vectors.T
    squares = np.linalg.eigvalsh(root @ gram_a @ root)[::-1]
    singular: _Floats = np.sqrt(np.clip(squares, 0.0, None))
    return singular


def effective_rank(singular: _Floats) -> float | None:
    """``exp`` of the entropy of the normalised singular values (Roy and Vetterli 2007): 1 to r; None for a zero matrix."""
    whole = float(singular.sum())
    if not whole > 0.0 or not math.isfinite(whole):
        return None
    share = singular[singular > 0.0] / whole
    return float(np.exp(-(share * np.log(share)).sum()))


def product_signals(grams: Sequence[tuple[_Floats, _Floats]], scales: Sequence[float], base: Sequence[float]) -> dict[str, float]:
    """Mean effective rank and mean relative size of the corrections; `base` has NaN where a weight's norm is not known."""
    ranks, ratios = [], []
    for (gram_b, gram_a), scale, norm in zip(grams, scales, base, strict=True):
        if not (np.isfinite(gram_b).all() and np.isfinite(gram_a).all()):
            return {"adapter.effective_rank": math.nan}
        singular = product_spectrum(gram_b, gram_a)
        rank = effective_rank(singular)
        if rank is not None:
            ranks.append(rank)
        if norm > 0.0:
            ratios.append(abs(scale) * float(np.sqrt((singular**2).sum())) / norm)
    values = {"adapter.effective_rank": sum(ranks) / len(ranks)} if ranks else {}
    if ratios:
        values["adapter.delta_ratio"] = sum(ratios) / len(ratios)
    return values


def sample_size(rank: int, modules: int) -> int:
    """How many of the modules are read for the rank, so that the cost stays within `BUDGET`; 0 where two would be too dear."""
    affordable = BUDGET // max(1, rank) ** 3
    return min(SAMPLE, modules, affordable) if min(modules, 2) <= affordable else 0


def _norm_signals(tensors: list[torch.Tensor]) -> dict[str, float]:
    norms, start = tensors
    return {"adapter.b_norm": float(norms.mean()), "adapter.still_fraction": float((norms == start).float().mean())}


def install(hooks: Hooks) -> None:
    """Read the adapters of a model that has some; sharded ones (FSDP, ZeRO-3) cannot be read without a collective and are left alone."""
    args = getattr(hooks.trainer, "args", None)
    if getattr(args, "fsdp", None) or getattr(args, "deepspeed", None):
        return
    found = list(adapters_of(hooks.trainer.model))
    if not found:
        return
    reader = _Adapters(hooks)
    gives = SIGNALS if any(adapter.base is not None for adapter in found) else SIGNALS - {"adapter.delta_ratio"}
    if not sample_size(max(adapter.a.shape[0] for adapter in found), len(found)):
        gives -= {"adapter.effective_rank", "adapter.delta_ratio"}
    hooks.wrap(hooks.trainer, "training_step", before=reader.before_step, gives=gives)
    hooks.at_step_end.append(reader.step_end)


class _Adapters:
    """The adapters of one training, and how B was when it began."""

    def __init__(self, hooks: Hooks) -> None:
        self._hooks = hooks
        self._steps = -1  # -1 until the first training step: only then is the model prepared
        self._b: list[torch.Tensor] = []
        self._start: torch.Tensor | None = None
        self._sample: list[Adapter] = []
        self._base: torch.Tensor | None = None

    def before_step(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
        """Before the first step: find the adapters and keep the norms of their B."""
        if self._steps < 0:
            self._steps = 0
            self._begin()
        return args

    def _begin(self) -> None:
        model = self._hooks.trainer.model
        found = list(adapters_of(model))
        if not found or any(type(item.b).__name__ == "DTensor" or not item.b.numel() for item in found):
            return
        self._hooks.give("adapter.trainable_fraction", trainable_fraction(model))
        self._b = [item.b for item in found]
        self._start = _norms(self._b)
        small = [item for item in found if item.b.flatten(1).shape[1] == item.a.shape[0]]
        count = sample_size(max((item.a.shape[0] for item in small), default=0), len(small))
        self._sample = [small[index * len(small) // count] for index in range(count)]
        if self._sample:
            device = self._sample[0].b.device
            self._base = torch.stack([_weight_norm(item.base, device) for item in self._sample])

    def step_end(self) -> None:
        """After each update: norms of B; every `EVERY` updates the Gram matrices of the sampled modules."""
        if self._start is None:
            return
        self._hooks.put([_norms(self._b), self._start], _norm_signals)
        if self._steps % EVERY == 0 and self._base is not None:
            self._put_products(self._base)
        self._steps += 1

    def _put_products(self, base: torch.Tensor) -> None:
        grams: list[torch.Tensor] = []
        with torch.no_grad(), torch.autocast(base.device.type, enabled=False):
            for item in self._sample:
                b, a = (factor.detach().float().flatten(1).to(base.device, non_blocking=True) for factor in (item.b, item.a))
                grams += [b.T @ b, a @ a.T]
            packed = torch.cat([gram.reshape(-1) for gram in grams])  # one copy to the host instead of many
        scales = [item.scale for item in self._sample]
        ranks = [rank for item in self._sample for rank in (item.a.shape[0],) * 2]

        def compute(tensors: list[torch.Tensor]) -> dict[str, float]:
            flat, norms = (tensor.double().numpy() for tensor in tensors)
            parts = np.split(flat, np.cumsum([rank * rank for rank in ranks])[:-1])
            squares = [part.reshape(rank, rank) for part, rank in zip(parts, ranks, strict=True)]
            return product_signals(list(zip(squares[::2], squares[1::2], strict=True)), scales, norms.tolist())

        self._hooks.put([packed, base], compute)


def _norms(tensors: list[torch.Tensor]) -> torch.Tensor:
    """2-norm of each tensor in float32: in bf16, as QLoRA trains, a norm has 8 bits and would hide small steps."""
    device = tensors[0].device
    with torch.no_grad():
        if all(tensor.device == device for tensor in tensors):
            return torch.stack(list(torch._foreach_norm([tensor.detach() for tensor in tensors], 2, dtype=torch.float32)))
        return torch.stack([_weight_norm(tensor, device) for tensor in tensors])


def _weight_norm(weight: torch.Tensor | None, device: torch.device) -> torch.Tensor:
    if weight is None:
        return torch.full((), math.nan, device=device)
    return torch.linalg.vector_norm(weight.detach(), dtype=torch.float32).to(device, non_blocking=True)
