"""Family: rows that were packed into one sequence: does one read another? Measured once a run, in the first batch that has two.

Positions begin anew with each row, and it is left to the attention implementation to stay within a row: some read positions or
``cu_seq_lens``, some do not, and an attention mask of ones switches it off in others. No setting says what happens, so it is measured: the
states of later rows in the training's own forward pass against those of the same rows alone, as log-probabilities of their tokens. The
first row of the sequence has nothing before it: what it differs by is precision, kernels and dropout, and is told beside it.

Nothing of the training changes: the passes of single rows are made without gradient, in evaluation mode module by module, with the state of the random
numbers put back, behind the training's own pass, of 96 tokens each. Sharded models (FSDP, DeepSpeed) and those split among ranks are left alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from trainvitals.integrations.distillation import plain_logits
from trainvitals.integrations.features import causal, final_norm
from trainvitals.integrations.supervised import sequences

if TYPE_CHECKING:
    from trainvitals.integrations.hooks import Hooks

SIGNALS = frozenset({"data.packed_row_gap", "data.packed_row_noise"})
"""Signals that only these wraps give."""

LONGEST = 96
"""Tokens of a row that are compared: in a causal model they do not depend on what follows."""
SHORTEST = 8
"""Tokens that a row needs to be compared; padding at the end of a batch looks like rows of one token."""
ROWS = 3
"""Later rows that are compared."""
TRIES = 16
"""Micro-batches without two rows in one sequence after which nothing is looked for any more."""


class Row(NamedTuple):
    """A row of a packed sequence: its place in the batch, its first token, and the one behind its last."""

    batch: int
    start: int
    end: int


def install(hooks: Hooks) -> None:
    """Watch a language model whose batches are packed, where a second pass is safe and can be compared."""
    trainer = hooks.trainer
    model = trainer.model
    if not packs(trainer) or not causal(model) or not whole(trainer) or final_norm(model) is None or not plain_logits(model):
        return
    reader = _Packed(hooks)
    hooks.wrap(trainer, "compute_loss", reader.after_loss, before=reader.before_loss, gives=SIGNALS)
    hooks.at_finish.append(reader.finish)


def packs(trainer: Any) -> bool:
    """Whether several rows may lie in one sequence, apart from each other. What is cut into blocks ("wrapped") is joined on purpose."""
    args, collator = trainer.args, type(getattr(trainer, "data_collator", None)).__name__
    packed = getattr(args, "packing", False) and getattr(args, "packing_strategy", "bfd") != "wrapped"
    learns = not hasattr(trainer, "num_generations") and not hasattr(trainer, "ref_model")
    return bool(learns and (packed or getattr(trainer, "padding_free", False) or "Flattening" in collator))


def whole(trainer: Any) -> bool:
    """Whether the model is here as a whole, uncompiled and with a plain output layer."""
    args, accelerator = trainer.args, getattr(trainer, "accelerator", None)
    if any(getattr(args, name, None) for name in ("deepspeed", "fsdp", "torch_compile")) or getattr(accelerator, "parallelism_config", None) is not None:
        return False
    if getattr(trainer, "is_deepspeed_enabled", False) or getattr(trainer, "is_fsdp_enabled", False):
        return False  # by the launcher's configuration
    head = getattr(trainer.model, "get_output_embeddings", lambda: None)()
    weight = getattr(head, "weight", None)
    return isinstance(weight, torch.Tensor) and type(weight) in (torch.Tensor, torch.nn.Parameter) and weight.is_floating_point() and weight.element_size() > 1


class _Packed:
    """Waits for the first batch with two rows in one sequence."""

    def __init__(self, hooks: Hooks) -> None:
        self._hooks = hooks
        self._tries = TRIES
        self._rows: list[Row] = []
        self._ids: torch.Tensor | None = None
        self._states: list[torch.Tensor] = []
        self._handle: Any = None

    def before_loss(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
        """Look for rows, and listen at the final norm where there are some."""
        self.finish()
        inputs = args[1] if len(args) > 1 else kwargs["inputs"]
        ids, positions = inputs.get("input_ids"), inputs.get("position_ids")
        if not self._tries or not self._hooks.training or ids is None or inputs.get("labels") is None:
            return args
        self._tries -= 1
        if positions is None or positions.shape != ids.shape:
            return args
        self._rows = pick(positions, sequences(ids, inputs.get("attention_mask"), positions).real)
        if self._rows:
            self._ids, self._states = ids, []
            norm = final_norm(self._hooks.trainer.model)
            self._handle = None if norm is None else norm.register_forward_hook(self._read)
        return args

    def _read(self, module: Any, args: Any, output: Any) -> None:
        if self._states or self._ids is None or not torch.is_grad_enabled() or not isinstance(output, torch.Tensor):
            return
        if output.dim() == 3 and output.shape[:2] == self._ids.shape:
            self._states = [output[row.batch, row.start : row.end].detach().clone() for row in self._rows]

    def after_loss(self, result: Any, args: tuple[Any, ...], kwargs: dict[str, Any], seconds: float) -> None:
        """Compare what the training's pass has made of the rows with what each gives alone."""
        states, ids, rows = self._states, self._ids, self._rows
        self.finish()
        if not states or ids is None:
            return
        self._tries = 0
        model = self._hooks.trainer.model
        gaps = []
        with undisturbed(model, ids.device):
            for row, packed in zip(rows, states, strict=True):
                tokens = ids[row.batch, row.start : row.end]
                alone = row_states(model, tokens)
                if alone is None:
                    return
                head = model.get_output_embeddings()
                gaps.append((logps(head, packed, tokens) - logps(head, alone, tokens)).abs())
        self._hooks.put([gaps[0], torch.cat(gaps[1:])], _signals)

    def finish(self, status: str = "") -> None:
        """Take the hook off the model."""
        if self._handle is not None:
            self._handle.remove()
        self._handle, self._ids, self._rows, self._states = None, None, [], []


def pick(positions: torch.Tensor, real: torch.Tensor) -> list[Row]:
    """The first row of a sequence and up to `ROWS` later ones of it, the last ones; empty where there are not two of `SHORTEST` tokens.

    Args:
        positions: Position ids, batch by length.
        real: Which tokens are no padding.
    """
    for batch, (line, counts) in enumerate(zip(positions.tolist(), real.tolist(), strict=True)):
        starts = [at for at, place in enumerate(line) if place == 0 and counts[at]]
        if not starts or starts[0] != 0:
            continue
        found = []
        for start, end in zip(starts, [*starts[1:], len(line)], strict=True):
            size = next((n for n in range(end - start) if line[start + n] != n or not counts[start + n]), end - start)
            found.append(Row(batch, start, start + min(size, LONGEST)))
        later = [row for row in found[1:] if row.end - row.start >= SHORTEST]
        if found[0].end - found[0].start >= SHORTEST and later:
            return [found[0], *later[-ROWS:]]
    return []


@contextmanager
def undisturbed(model: Any, device: torch.device) -> Iterator[None]:
    """Without gradient and dropout; afterwards every module is in the mode in which it was, and random numbers go on where they were."""
    modes = [(module, module.training) for module in model.modules()]
    with torch.no_grad(), torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        try:
            for module, _ in modes:  # the flag alone: `eval()` of some layers merges weights
                module.training = False
            yield
        finally:
            for module, mode in modes:
                module.training = mode


def row_states(model: Any, tokens: torch.Tensor) -> torch.Tensor | None:
    """States behind the final norm of one row alone; None where the norm was not reached."""
    found: list[torch.Tensor] = []
    norm = final_norm(model)
    if norm is None:
        return None
    handle = norm.register_forward_hook(lambda module, args, output: found.append(output))
    try:
        model(input_ids=tokens[None], position_ids=torch.arange(len(tokens), device=tokens.device)[None], use_cache=False)
    finally:
        handle.remove()
    return found[0][0] if found and found[0].shape[:2] == (1, len(tokens)) else None


def logps(head: Any, states: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Log-probability of each token of a row but its first, from the states before the output layer."""
    logits = head(states[:-1].to(head.weight.dtype)).float()
    return -torch.nn.functional.cross_entropy(logits, tokens[1:].to(logits.device), reduction="none")


def _signals(tensors: list[torch.Tensor]) -> dict[str, float]:
    first, later = tensors
    return {"data.packed_row_gap": float(later.mean()), "data.packed_row_noise": float(first.mean())}
