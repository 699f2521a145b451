"""Family: trainers that learn from labels (`input_ids` with `labels`): SFT, GKD, plain causal language modelling.

What the loss is computed on is counted before the loss is: labels, end tokens among them. A logged loss
cannot show any of it; it even looks best when nothing carries a label.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from trainvitals.integrations.later import scalar
from trainvitals.integrations.newest import Commonest, place_weights

if TYPE_CHECKING:
    from trainvitals.integrations.hooks import Hooks

_LABELS = frozenset({
    "token.label_fraction", "token.unlabelled_batch_fraction", "token.unlabelled_sequence_fraction", "token.end_label_fraction",
    "token.cut_fraction", "token.pad_label_fraction", "token.commonest_answer_fraction",
})  # fmt: skip
_PADDING = frozenset({"data.padding_fraction"})
_START = frozenset({"optim.loss_start"})
_UNTRAINED = frozenset({"data.untrained_token_fraction"})
SIGNALS = _LABELS | _PADDING | _START | _UNTRAINED
"""Signals that only these wraps give."""

IGNORED = -100  # label of a token that does not count (torch cross entropy's ignore_index, transformers and TRL)
_STEP_LIMIT = 4096  # as in hooks.py
_CLOSE = 2  # tokens that close a sequence: an end token, and the line break that templates like ChatML write behind it
_ANSWERS = 64  # sequences of a micro-batch whose answers are compared with others: their fingerprints must have a fixed number
HEADER = 12  # tokens that open a turn at most: marker, role, line break
_SHORT = 1e-3  # of the median row: an embedding that was never trained, or was set to 0 (notes/pathologies.md SF-14, from NeMo's documentation)


def install(hooks: Hooks) -> None:
    """Read the labels of every micro-batch of a language model."""
    trainer = hooks.trainer
    head = getattr(trainer.model, "get_output_embeddings", None)
    if head is None or head() is None or hasattr(trainer, "num_generations"):
        return  # no language model, or one that learns from samples and not from labels
    reader = _Supervised(hooks)
    hooks.wrap(trainer, "compute_loss", reader.after_loss, before=reader.before_loss, gives=_LABELS | _PADDING | _UNTRAINED)
    hooks.wrap(trainer, "generalized_jsd_loss", before=reader.before_divergence)  # GKD
    hooks.wrap(trainer, "training_step", reader.after_step, gives=_START)
    hooks.at_step_end.append(reader.step_end)
    hooks.at_finish.append(reader.finish)


class _Supervised:
    """What one step has gathered so far."""

    def __init__(self, hooks: Hooks) -> None:
        self._hooks = hooks
        self._counts: list[torch.Tensor] = []
        self._padding: list[torch.Tensor] = []
        self._batch: dict[str, Any] | None = None  # whose padding is not counted yet
        self._inputs: dict[str, Any] | None = None  # the batch whose loss is being computed
        self._entry: torch.utils.hooks.RemovableHandle | None = None
        self._error: Exception | None = None
        self._prints: list[torch.Tensor] = []
        self._commonest = Commonest()
        self._open: list[torch.Tensor] = []
        self._open_lengths = (math.inf, 0.0)  # shortest and longest sequence so far whose last turn stays open
        self._real: list[torch.Tensor] = []  # tokens of each micro-batch that are no padding
        self._size = 0  # tokens of all of them, padding included
        self._first: list[torch.Tensor] | None = []  # losses of the first update; None once it is over
        self._short: torch.Tensor | None = None  # which rows of the embedding are next to nothing
        self._untrained: list[torch.Tensor] = []  # of the first update: tokens with such a row, and all
        trainer = hooks.trainer
        owner = getattr(trainer, "processing_class", None)
        tokenizer = getattr(owner, "tokenizer", owner)
        self._limit = int(getattr(trainer.args, "max_length", None) or 0)
        self._ends = end_ids(tokenizer, trainer.model)
        self._pad = getattr(tokenizer, "pad_token_id", None)
        self._openers = turn_markers(tokenizer)[0]

    def before_loss(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
        """Count the labels of one micro-batch; a `compute_loss_func` takes them out of the batch, so before the call."""
        inputs = args[1] if len(args) > 1 else kwargs["inputs"]
        ids, labels = inputs.get("input_ids"), inputs.get("labels")
        if not self._hooks.training or ids is None or labels is None or ids.shape != labels.shape or len(self._counts) >= _STEP_LIMIT:
            return args
        with torch.no_grad():
            where = sequences(ids, inputs.get("attention_mask"), inputs.get("position_ids"))
            self._counts.append(label_counts(labels, where, self._ends, self._limit))
            self._open.append(open_counts(ids, labels, where, self._ends, self._openers, self._limit))
            self._prints.append(answer_prints(labels, where))
            self._real.append(where.real.sum())
            self._size += where.real.numel()
            if self._first is not None:
                self._count_untrained(ids, where.real)
        self._batch = self._inputs = {name: inputs.get(name) for name in ("input_ids", "labels", "attention_mask", "position_ids")}
        self.finish()
        if not getattr(self._hooks.trainer.args, "torch_compile", False):  # a hook that comes and goes is compiled anew each time
            self._entry = self._hooks.trainer.model.register_forward_pre_hook(self._enter, with_kwargs=True)
        return args

    def _count_untrained(self, ids: torch.Tensor, real: torch.Tensor) -> None:
        """Tokens of one micro-batch whose embedding is next to nothing; before the first update, later ones say what training did."""
        if self._short is None:
            self._short = short_rows(self._hooks.trainer.model)
        if self._short.numel() == 0:
            return
        counted = real if self._pad is None else real & (ids != self._pad)  # its row is 0 in a model that was made with a padding_idx
        counted = counted & (ids >= 0) & (ids < self._short.numel())  # others stand for images and the like, or are told by token_ids.py
        short = self._short.to(ids.device)[ids.clamp(0, self._short.numel() - 1)]
        self._untrained.append(torch.stack([(short & counted).sum(), counted.sum()]))

    def _enter(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """The model is called: what it gets is what is learned, whatever a loss of somebody's own has done to the batch."""
        try:
            if self._batch is not None and kwargs.get("labels") is not None and kwargs.get("input_ids") is not None:
                self._batch = kwargs
                self._count_padding()
        except Exception as error:  # it must not leave the model's call
            self._error = error

    def _count_padding(self) -> None:
        batch, self._batch = self._batch, None
        if batch is None or batch["input_ids"].shape != batch["labels"].shape:
            return
        with torch.no_grad():
            real = sequences(batch["input_ids"], batch.get("attention_mask"), batch.get("position_ids")).real
            self._padding.append(padding_counts(batch["input_ids"], batch["labels"], real, self._pad, self._ends))

    def before_divergence(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
        """Labels that a divergence gets, one place to the left: they decide, whatever was done to those of the batch on the way."""
        labels = args[2] if len(args) > 2 else kwargs.get("labels")
        batch = self._inputs
        if labels is None or batch is None or labels.dim() != 2 or labels.shape[0] != batch["labels"].shape[0] or labels.shape[1] >= batch["labels"].shape[1]:
            return args
        with torch.no_grad():
            given = torch.cat([batch["labels"][:, : -labels.shape[1]], labels], dim=1)  # TRL 1.0 hands over what is behind the prompts alone
            where = sequences(batch["input_ids"], batch["attention_mask"], batch["position_ids"])
            self._counts[-1] = label_counts(given, where, self._ends, self._limit)
            self._open[-1] = open_counts(batch["input_ids"], given, where, self._ends, self._openers, self._limit)
        return args

    def after_loss(self, result: Any, args: tuple[Any, ...], kwargs: dict[str, Any], seconds: float) -> None:
        """A model that was not given the labels: the batch has to do."""
        self.finish()
        self._inputs = None
        if self._error is not None:
            raise self._error
        self._count_padding()

    def finish(self, status: str = "") -> None:
        """Take the hook off the model."""
        if self._entry is not None:
            self._entry.remove()
            self._entry = None

    def after_step(self, loss: Any, args: tuple[Any, ...], kwargs: dict[str, Any], seconds: float) -> None:
        """Losses of the first update; the trainer scales them so that their sum is the loss of the step."""
        if self._first is not None and len(self._first) < _STEP_LIMIT:
            self._first.append(loss.detach().float())

    def step_end(self) -> None:
        """Hand over what the micro-batches of this step gave."""
        if self._first:
            self._hooks.put([torch.stack(self._first).sum()], scalar("optim.loss_start"))
        if self._untrained:
            self._hooks.put([torch.stack(self._untrained)], _untrained_signals)
        self._first, self._short, self._untrained = None, None, []
        if self._counts:
            size = self._size
            self._hooks.put([torch.stack(self._counts), torch.stack(self._open)], self._label_signals)
            if self._padding:
                self._hooks.put([torch.stack(self._padding)], _padding_signals)
            self._hooks.put([torch.stack(self._prints)], self._answer_signals)
            self._hooks.put([torch.stack(self._real).sum()], lambda t: {"data.padding_fraction": 1.0 - float(t[0]) / size})
        self._counts, self._real, self._size = [], [], 0
        self._padding, self._prints, self._open = [], [], []

    def _label_signals(self, tensors: list[torch.Tensor]) -> dict[str, float]:
        number, shortest, longest = tensors[1][:, 0].sum(), tensors[1][:, 1].min(), tensors[1][:, 2].max()
        self._open_lengths = (min(self._open_lengths[0], float(shortest)), max(self._open_lengths[1], float(longest)))
        differ = self._open_lengths[0] < self._open_lengths[1]  # text that was cut into blocks is open at the end of a block, and blocks are all of one length
        return label_signals(tensors[0], float(number) if differ else 0.0)

    def _answer_signals(self, tensors: list[torch.Tensor]) -> dict[str, float]:
        share = self._commonest.share(x for row in tensors[0].tolist() for x in row if x)
        return {} if share is None else {"token.commonest_answer_fraction": share}


def short_rows(model: Any) -> torch.Tensor:
    """Which rows of the input embedding are shorter than a thousandth of the median row; empty where the whole table is not here.

    A table that is cut up among ranks (FSDP, ZeRO-3, tensor parallelism) or quantised is not looked at.
    """
    weight = getattr(model.get_input_embeddings(), "weight", None)
    if not isinstance(weight, torch.Tensor) or type(weight) not in (torch.Tensor, torch.nn.Parameter):
        return torch.empty(0, dtype=torch.bool)
    if weight.dim() != 2 or weight.numel() == 0 or weight.is_meta or not weight.is_floating_point():
        return torch.empty(0, dtype=torch.bool)
    length = torch.linalg.vector_norm(weight.detach(), dim=1, dtype=torch.float32)
    return length < _SHORT * length.median()


class Sequences(NamedTuple):
    """Where the sequences of a micro-batch lie (documents, in a packed or padding-free batch).

    Attributes:
        real: Which tokens are no padding, batch by length.
        start: Which of them begin a sequence.
        number: Sequence of every token, from 1, batch times length long; 0 before the first.
    """

    real: torch.Tensor
    start: torch.Tensor
    number: torch.Tensor


def sequences(ids: torch.Tensor, mask: torch.Tensor | None, positions: torch.Tensor | None) -> Sequences:
    """Where the sequences of a micro-batch lie.

    Args:
        ids: Token ids, batch by length.
        mask: Attention mask of the same shape; anything else counts as no padding.
        positions: Position ids of the same shape, which start at 0 in every document; None where a row is a sequence.
    """
    real = mask.bool() if mask is not None and mask.shape == ids.shape else torch.ones_like(ids, dtype=torch.bool)
    start = real & (real.cumsum(1) == 1)
    if positions is not None and positions.shape == ids.shape:
        start = start | (real & (positions == 0))
    return Sequences(real, start, start.flatten().cumsum(0))


def per_sequence(values: torch.Tensor, number: torch.Tensor) -> torch.Tensor:
    """Sums over each sequence, with zeros up to a fixed length: no waiting for the device.

    Args:
        values: Of each token, in rows that are summed apart.
        number: As in `Sequences`.
    """
    sums = torch.zeros(len(values), number.numel() + 1, dtype=torch.long, device=number.device)
    return sums.scatter_add_(1, number.expand(len(values), -1), values.long())


def label_counts(labels: torch.Tensor, where: Sequences, ends: frozenset[int], limit: int) -> torch.Tensor:
    """Counts of one micro-batch: predictable tokens, labelled ones, sequences, those with labels, with an end token, cut.

    The first token of a sequence is predicted from nothing, so it never counts. A sequence of one token is padding of a
    padding-free batch or predicts nothing. Cut is a sequence with labels that is as long as `limit` and does not close with an
    end token; end tokens inside do not count there, for those of earlier turns say nothing about the last. A cut sequence
    is not among those with an end token.

    Args:
        labels: Labels, `IGNORED` where masked.
        where: From `sequences`.
        ends: Ids that end a generation.
        limit: Length at which sequences are cut; 0 for none.
    """
    targets = where.real & ~where.start
    labelled = targets & (labels != IGNORED)
    ending = torch.zeros_like(labelled)
    for end in ends:
        ending = ending | (labels == end)
    ending = labelled & ending
    closing = ending & closing_places(where)
    tokens, with_label, with_end, closed = per_sequence(torch.stack([targets, labelled, ending, closing]).flatten(1), where.number)
    any_label = with_label > 0
    cut = any_label & (closed == 0) & (tokens + 1 >= limit) if limit else torch.zeros_like(any_label)
    return torch.stack([part.sum() for part in (targets, labelled, tokens > 0, any_label, (with_end > 0) & ~cut, cut)])


def closing_places(where: Sequences) -> torch.Tensor:
    """The last `_CLOSE` tokens of each sequence."""
    real = where.real.flatten()
    upto = per_sequence(real[None], where.number)[0].cumsum(0)  # tokens up to the end of each sequence
    return where.real & (upto[where.number] - real.cumsum(0) < _CLOSE).view_as(where.real)


def open_counts(
    ids: torch.Tensor, labels: torch.Tensor, where: Sequences, ends: frozenset[int], openers: frozenset[int], limit: int
) -> torch.Tensor:
    """Sequences of one micro-batch with an end token among their labels that all the same teach no end: how many, the shortest, the longest.

    Their last turn was opened behind the last end token and goes on for more than `_NEAR` tokens, with labels, to the end of the sequence: the end
    tokens are those of earlier turns (the question's own). A header of an answer at the very end is no turn. Sequences as long as `limit`
    are cut, and not among them. Shortest is the largest whole number where there are none, longest 0.

    Args:
        ids: Token ids, batch by length.
        labels: Labels, `IGNORED` where masked.
        where: From `sequences`.
        ends: Ids that end a generation.
        openers: From `turn_markers`.
        limit: Length at which sequences are cut; 0 for none.
    """
    real, number = where.real.flatten(), where.number
    flat, index = ids.flatten(), torch.arange(ids.numel(), device=ids.device)
    labelled = (where.real & ~where.start & (labels != IGNORED)).flatten()
    wanted = torch.stack([among(flat, part) & real for part in (ends, openers)])
    last = torch.full((2, flat.numel() + 1), -1, device=ids.device).scatter_reduce_(1, number.expand(2, -1), torch.where(wanted, index, -1), "amax")
    end, opened = last
    behind = real & (index > opened[number])
    left, taught, ending, size = per_sequence(torch.stack([behind, behind & labelled, labelled & wanted[0], real]), number)
    still = (opened > end) & (left > HEADER) & (taught > 0) & (ending > 0)
    still = still & (size < limit) if limit else still
    most = torch.iinfo(torch.long).max
    return torch.stack([still.sum(), torch.where(still, size, most).min(), torch.where(still, size, 0).max()])


def among(flat: torch.Tensor, wanted: frozenset[int]) -> torch.Tensor:
    """Which tokens are one of `wanted`."""
    hit = torch.zeros_like(flat, dtype=torch.bool)
    for one in wanted:
        hit = hit | (flat == one)
    return hit


def label_signals(counts: torch.Tensor, still_open: float = 0.0) -> dict[str, float]:
    """Signals of a step.

    Args:
        counts: From `label_counts`, one row for each micro-batch.
        still_open: Of the sequences with an end token among their labels, how many do not end their last turn (`open_counts`).
    """
    tokens, labelled, sequence, with_label, with_end, cut = (float(x) for x in counts.sum(0))
    values = {"token.unlabelled_batch_fraction": float((counts[:, 1] == 0).double().mean())}
    if tokens:
        values["token.label_fraction"] = labelled / tokens
        values["token.unlabelled_sequence_fraction"] = 1 - with_label / sequence
    if with_label:
        values["token.cut_fraction"] = cut / with_label
    if with_label > cut:
        values["token.end_label_fraction"] = max(0.0, with_end - still_open) / (with_label - cut)
    return values


def padding_counts(ids: torch.Tensor, labels: torch.Tensor, real: torch.Tensor, pad: int | None, ends: frozenset[int]) -> torch.Tensor:
    """Labelled tokens that are padding, and all labelled tokens, of one micro-batch.

    Padding is what the attention mask leaves out, and the run of pad tokens at the end of a row, whatever the mask says. Where
    the pad token ends a generation as well, the first two of that run are the answer's own end, which some templates write twice.
    A label there that is the real token before its place, and not the token at it, teaches text: labels were moved (label_shift.py).
    """
    labelled = labels != IGNORED
    labelled[:, 0] = False  # predicted from nothing
    padding = ~real
    if pad is not None:
        run = (ids == pad).flip(1).long().cumprod(1).flip(1).bool()
        if pad in ends:
            run = run & torch.nn.functional.pad(run, (2, 0))[:, :-2]
        padding = padding | run
    before, real_before = (torch.nn.functional.pad(part, (1, 0))[:, :-1] for part in (ids, real))
    padding = padding & ~((labels != ids) & (labels == before) & real_before)
    return torch.stack([(labelled & padding).sum(), labelled.sum()])


def _untrained_signals(tensors: list[torch.Tensor]) -> dict[str, float]:
    short, counted = tensors[0].sum(0).tolist()
    return {"data.untrained_token_fraction": short / counted} if counted else {}


def _padding_signals(tensors: list[torch.Tensor]) -> dict[str, float]:
    wrong, labelled = (float(x) for x in tensors[0].sum(0))
    return {"token.pad_label_fraction": wrong / labelled} if labelled else {}


def answer_prints(labels: torch.Tensor, where: Sequences) -> torch.Tensor:
    """A fingerprint of the label tokens of each of the first `_ANSWERS` sequences of a micro-batch; 0 where there are none."""
    labelled = (where.real & ~where.start & (labels != IGNORED)).flatten()
    counts = per_sequence(labelled[None], where.number)[0]
    place = labelled.cumsum(0) - (counts.cumsum(0) - counts)[where.number]
    prints = per_sequence(((labels.flatten().long() + 1) * place_weights(place) * labelled)[None], where.number)[0]
    return torch.nn.functional.pad(prints[1:], (0, _ANSWERS))[:_ANSWERS]


def end_ids(tokenizer: Any, model: Any) -> frozenset[int]:
    """Ids at which a generation stops: the tokenizer's end token and those of the model's configurations."""
    found: list[Any] = [getattr(tokenizer, "eos_token_id", None)]
    for owner in (getattr(model, "generation_config", None), getattr(model, "config", None)):
        more = getattr(owner, "eos_token_id", None)
        found += more if isinstance(more, list) else [more]
    return frozenset(token for token in found if isinstance(token, int))


def turn_markers(tokenizer: Any) -> tuple[frozenset[int], frozenset[int]]:
    """Added tokens that open and that close a turn, learned by rendering a conversation with the tokenizer's own template.

    An opener is the last added token before a message's text, a closer the first one behind it. What does both (``[/INST]``)
    or is a BOS opens nothing. Empty where there is no template, or one without added tokens.
    """
    nothing: tuple[frozenset[int], frozenset[int]] = (frozenset(), frozenset())
    added = set(getattr(tokenizer, "added_tokens_decoder", ()) or ())
    if not added or not getattr(tokenizer, "chat_template", None):
        return nothing
    texts = ("qzx one", "qzx two", "qzx three")
    turns = [{"role": role, "content": text} for role, text in zip(("user", "assistant", "user"), texts, strict=True)]
    try:
        rendered = tokenizer.apply_chat_template(turns, tokenize=False)
    except Exception:  # a template of its own kind that wants other roles or contents
        return nothing
    openers, closers = set[int](), {token for token in (tokenizer.eos_token_id,) if token is not None}
    for text in texts:
        head, found, tail = rendered.partition(text)
        if not found:
            return nothing
        before, behind = (tokenizer(part, add_special_tokens=False)["input_ids"] for part in (head, tail))
        openers |= set([token for token in before if token in added][-1:])
        closers |= set([token for token in behind if token in added][:1])
    return frozenset(openers - closers - {tokenizer.bos_token_id}), frozenset(closers)
