"""Does the checkpoint that was just written hold what was trained? ``run.checkpoint_missing_fraction``, ``run.checkpoint_differing_fraction``.

The result of a run is a file, and nobody reads it before the run is over: an adapter that was saved empty (443 bytes: huggingface/peft#286, tloen/alpaca-lora#446), a head that was trained beside an
adapter and is in no file, weights of another copy of the model. So the file is opened again at once. Every trained tensor is looked
for by its name and compared in a few numbers; what has no such name may have been renamed and is looked for by shape and content.

Nothing is said where that cannot be told: other formats than safetensors, tensors that were taken apart, fused or merged on their way to the file.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch

NUMBERS = 32
"""Numbers of a tensor that are compared: from its middle row, since the first row of an embedding is often one that nothing trains."""
FILES = ("model*.safetensors", "adapter_model*.safetensors", "*/adapter_model*.safetensors")
"""Of weights; PEFT writes every adapter but ``default`` into a folder of its own name."""
_WRAPPED = frozenset({"module", "_orig_mod", "base_model", "model", "modules_to_save", "base_layer"})
"""Parts of names that wrappers put in or leave out: DDP, torch.compile, PEFT, a model inside of a model."""
_FORMATS = frozenset({".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".distcp", ".msgpack", ".h5", ".gguf", ".npz"})
_OTHERS = frozenset({"optimizer", "scheduler", "scaler", "rng_state", "rng_state_", "training_args"})
"""What transformers writes beside the weights in such formats; ranks count their random numbers."""
_EXACT = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


Name = tuple[str, str]
"""Adapter to which a tensor belongs (empty: the default one, or none), and its name without that."""


class Saved(NamedTuple):
    """A tensor in a file, of which nothing has been read yet."""

    name: Name
    part: Any
    shape: tuple[int, ...]
    size: int


def held(model: torch.nn.Module, folder: str | Path) -> dict[str, float]:
    """What the files of a checkpoint hold of the trained tensors.

    Args:
        model: As it was when the checkpoint was written, whole and in this process.
        folder: Of the checkpoint.

    Returns:
        ``run.checkpoint_missing_fraction`` and ``run.checkpoint_differing_fraction``, of the trained numbers; empty where it cannot be told.
    """
    adapters = frozenset(getattr(model, "peft_config", {}))
    parameters = [(plain(name, adapters), p) for name, p in model.named_parameters()]
    trained = [(name, p) for name, p in parameters if p.requires_grad]
    if not trained or any(type(p.data).__name__ == "DTensor" or not p.numel() for _, p in trained):
        return {}  # shards; under ZeRO-3 a weight that is elsewhere has no numbers here
    with opened(Path(folder), adapters) as found:
        if not found and elsewhere(Path(folder)):
            return {}
        by_name = {saved.name: saved for saved in found}
        absent, differing, met = [], 0, set()
        for name, p in trained:
            saved = by_name.get(name)
            if saved is not None and saved.shape == tuple(p.shape):
                met.add(saved.name)
                differing += 0 if same(p, saved) else p.numel()
            else:
                absent.append(p)
        others = [saved for saved in found if saved.name not in met]
        missing = sum(p.numel() for p in absent if not any(saved.shape == tuple(p.shape) and same(p, saved) for saved in others))
        if missing and not untouched(others, {name: p for name, p in parameters if not p.requires_grad}):
            return {}
    whole = sum(p.numel() for _, p in trained)
    return {"run.checkpoint_missing_fraction": missing / whole, "run.checkpoint_differing_fraction": differing / whole}


def plain(name: str, adapters: Collection[str] = (), adapter: str = "") -> Name:
    """A name without what wrappers put into it, and apart from it the name of the adapter, which a file may have in the name of its folder."""
    parts = name.split(".")
    found = next((part for part in parts if part in adapters), adapter)
    return "" if found == "default" else found, ".".join(part for part in parts if part not in _WRAPPED and part not in adapters)


@contextmanager
def opened(folder: Path, adapters: Collection[str] = ()) -> Iterator[list[Saved]]:
    """Every tensor in the files of safetensors that hold the weights in a folder."""
    from safetensors import safe_open

    files = sorted({path for pattern in FILES for path in folder.glob(pattern)})
    with ExitStack() as stack:
        found = []
        for path in files:
            file = stack.enter_context(safe_open(path, framework="pt"))
            for name in file.keys():  # noqa: SIM118 it is no mapping
                part = file.get_slice(name)
                shape = tuple(part.get_shape())
                found.append(Saved(plain(name, adapters, "" if path.parent == folder else path.parent.name), part, shape, torch.Size(shape).numel()))
        yield found


def elsewhere(folder: Path) -> bool:
    """Whether a folder has other files that may hold weights, or safetensors under names that nobody knows."""
    files = (path for path in folder.rglob("*") if path.suffix in _FORMATS and path.stem.rstrip("0123456789") not in _OTHERS)
    return any(not any(path.relative_to(folder).match(pattern) for pattern in FILES) for path in files)


def same(p: torch.Tensor, saved: Saved) -> bool:
    """Whether a few numbers of a tensor are those in the file, in the file's type; True for types in which it cannot be told."""
    if not saved.shape or not saved.size:
        return True
    place = (*(length // 2 for length in saved.shape[:-1]), slice(0, NUMBERS))
    there = saved.part[place]
    if there.dtype not in _EXACT:
        return True
    here = p.detach()[place].to(there.dtype).cpu()
    return bool(((here == there) | (here.isnan() & there.isnan())).all())


def untouched(others: Iterable[Saved], frozen: Mapping[Name, torch.Tensor]) -> bool:
    """Whether all that is in the file beside the trained tensors are weights that were frozen, as they are in memory.

    Anything else may be what was trained under another name or form: experts taken apart, an adapter that was merged.
    """
    for saved in others:
        p = frozen.get(saved.name)
        if saved.size and (p is None or tuple(p.shape) != saved.shape or not same(p, saved)):
            return False
    return True
