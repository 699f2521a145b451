"""Generating with the policy in the middle of a training that must not notice: what the probes share.

`heldout.HeldoutProbe` asks a checker about what comes out, `retention.RetentionProbe` the policy of later.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from transformers import GenerationConfig, TrainingArguments

from trainvitals.integrations.attention import for_padded_rows

Prompt = str | list[dict[str, Any]]
_LENGTH_NAMES = ("max_completion_length", "response_length", "max_new_tokens")  # GRPO and RLOO, PPO, OnlineDPO
_PARTS = frozenset({"DTensor"})


def policy_of(model: Any) -> Any:
    """The causal LM itself, out of the wraps of DDP, `torch.compile`, DeepSpeed's engine and PPO's pair of models; None if none."""
    for _ in range(4):
        kind = type(model).__name__
        if kind in {"DistributedDataParallel", "DataParallel", "DeepSpeedEngine"}:
            model = model.module
        elif kind == "OptimizedModule":
            model = model._orig_mod
        elif not hasattr(model, "generate") and hasattr(model, "policy"):
            model = model.policy
    return model if isinstance(model, torch.nn.Module) else None


def tokenizer_of(given: dict[str, Any]) -> Any:
    """The tokenizer among what transformers hands to a callback; that of a processor; None if there is none."""
    found = given.get("processing_class") or given.get("tokenizer")
    return getattr(found, "tokenizer", found)


def why_not(model: Any, tokenizer: Any, args: TrainingArguments) -> str | None:
    """Why this process cannot generate with this model alone; None when it can."""
    if model is None or not hasattr(model, "generate"):
        return "the model has no generate()"
    if tokenizer is None or not hasattr(tokenizer, "batch_decode"):
        return "the trainer has no tokenizer"
    sharded = bool(getattr(args, "fsdp", None))
    sharded |= any("FullyShardedDataParallel" in type(module).__name__ for module in model.modules())
    sharded |= any(type(p).__name__ in _PARTS or hasattr(p, "ds_id") for p in model.parameters())
    # Generating would wait for the other ranks, who do not come.
    return "the model is sharded (FSDP, ZeRO-3 or tensor parallel) and rank 0 cannot generate alone" if sharded else None


@contextmanager
def apart(model: Any, seed: int) -> Iterator[None]:
    """Evaluation mode and random numbers of our own inside; afterwards modes and random states are as if nothing had been."""
    modes = [(module, module.training) for module in model.modules()]
    devices = sorted({p.device for p in model.parameters() if p.is_cuda}, key=str)
    states = random.getstate(), np.random.get_state(), torch.random.get_rng_state()
    on_devices = [(device, torch.cuda.get_rng_state(device)) for device in devices]
    try:
        model.eval()
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.default_generator.manual_seed(seed)  # not torch.manual_seed, which seeds devices that we do not put back
        for device in devices:
            torch.cuda.default_generators[device.index].manual_seed(seed)
        yield
    finally:
        for module, mode in modes:
            module.training = mode  # one by one: a frozen part may have been in evaluation mode
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.random.set_rng_state(states[2])
        for device, state in on_devices:
            torch.cuda.set_rng_state(state, device)


def generate(model: Any, tokenizer: Any, prompts: Sequence[Prompt], limit: int, *, sample: bool, batch_size: int) -> list[list[int]]:
    """Token ids of one completion of at most `limit` tokens per prompt, up to and with the end token.

    Args:
        sample: Draw at temperature 1 without truncation; False takes the likeliest token each time.
        batch_size: Prompts per call of ``model.generate``.
    """
    encoded = [encode(prompt, tokenizer) for prompt in prompts]
    own = getattr(model, "generation_config", None)
    ends = {tokenizer.eos_token_id} if own is None or own.eos_token_id is None else own.eos_token_id
    ends = set(ends) if isinstance(ends, list | set) else {int(ends)}
    ends |= {tokenizer.eos_token_id} - {None}
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else min(ends, default=0)
    config = GenerationConfig(
        max_new_tokens=limit, do_sample=sample, temperature=1.0, top_k=0 if sample else None, use_cache=True,
        pad_token_id=pad, eos_token_id=sorted(ends) or None, bos_token_id=tokenizer.bos_token_id,
    )  # fmt: skip
    device = next(model.parameters()).device
    results: list[list[int]] = []
    for start in range(0, len(encoded), batch_size):
        batch = encoded[start : start + batch_size]
        width = max(map(len, batch))
        ids = torch.tensor([[pad] * (width - len(row)) + row for row in batch], device=device)
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in batch], device=device)
        with torch.no_grad(), for_padded_rows(model):
            output = model.generate(input_ids=ids, attention_mask=mask, generation_config=config)
        results += [_until(row, ends) for row in output[:, width:].tolist()]
    return results


def encode(prompt: Prompt, tokenizer: Any) -> list[int]:
    """Token ids of a prompt, with the turn of the assistant begun where it is a chat.

    A chat template writes its own special tokens; a plain prompt gets what the tokenizer gives everybody.
    """
    text = prompt if isinstance(prompt, str) else str(tokenizer.apply_chat_template(prompt, add_generation_prompt=True, tokenize=False))
    ids: list[int] = tokenizer(text, add_special_tokens=isinstance(prompt, str))["input_ids"]
    return ids


def cap_of(args: TrainingArguments) -> int:
    """The trainer's own cap of a completion in tokens, or 64."""
    return next((int(n) for name in _LENGTH_NAMES if (n := getattr(args, name, None))), 64)


def _until(row: list[int], ends: set[int]) -> list[int]:
    at = next((index for index, token in enumerate(row) if token in ends), len(row))
    return row[: at + 1]
