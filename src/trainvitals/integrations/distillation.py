"""Family: trainers that learn from a teacher's distribution: GKD, GOLD, IW-OPD, Distillation, and SDFT, SDPO, SSD.

What is read where, by what the trainer has:

* `generalized_jsd_loss` (GKD, GOLD, IW-OPD): its loss, turned back into nats per token; student and teacher logits.
* `_get_last_hidden_state` (Distillation): hidden states, projected at a sample of positions.
* `_compute_self_distillation_loss` (SDFT, SDPO): logits of both, or what TRL 1.0 makes of them.
* the counters behind GOLD's and IW-OPD's on- and off-policy losses, and GKD's own generation.
* weights of a teacher that is made from the student (SDFT, SDPO): how far the student is ahead of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from trainvitals.integrations import distill_math as calc
from trainvitals.integrations.grpo import text_signals

if TYPE_CHECKING:
    from trainvitals.integrations.hooks import Hooks

_LOGITS = frozenset({"policy.entropy", "distill.teacher_surprise"})
_LOSS = frozenset({"distill.divergence"})
_SHARE = frozenset({"distill.on_policy_fraction"})
_WRITTEN = frozenset({"completion.repetition_fraction", "completion.empty_fraction"})
_LENGTHS = frozenset({"completion.length_mean", "completion.length_min", "completion.length_max", "completion.truncated_fraction"})
_TIME = frozenset({"time.generation_seconds"})
SIGNALS = frozenset({"distill.on_policy_fraction", "distill.teacher_surprise", "distill.teacher_distance", "distill.beta"})
"""Signals that only these wraps give."""
LOGGED_BY_NONE = {
    "gkd": _LOSS | _LENGTHS | {"policy.entropy"},
    "distillation": _LOSS | {"completion.improbable_copies_fraction"},
    "sdft": frozenset({"policy.entropy"}),
    "sdpo": frozenset({"policy.entropy"}),
}
"""Signals that other trainers log and this one does not: they come only if a wrap here promises them."""

_STEP_LIMIT = 4096  # as in hooks.py
IGNORED = -100
_UNSCALED = ("logit_scale", "output_multiplier", "lm_head_multiplier", "logits_scaling", "final_logit_softcapping")
# Settings of models that change the logits after the output layer: TRL applies them, a plain projection would not.


def install(hooks: Hooks) -> None:
    """Read divergence, entropy, the teacher's surprise, shares of the student's own samples and the lag of a self-teacher."""
    trainer = hooks.trainer
    if hasattr(trainer, "teacher_context_builder"):
        _install_self(hooks)
    elif hasattr(trainer, "filter_empty") and hasattr(trainer, "_generate_completion_ids"):
        _Written(hooks).install_ids("_generate_completion_ids")  # SSD: no teacher at all
    elif hasattr(trainer, "teacher_model") and hasattr(trainer, "beta") and not hasattr(trainer, "reward_funcs"):  # MiniLLM is a GRPO: sampling.py
        _install_teacher(hooks)


def _install_teacher(hooks: Hooks) -> None:
    trainer = hooks.trainer
    if hasattr(trainer, "rollout_queue"):
        return  # the asynchronous one logs its divergence itself and is read in async_rollout.py
    reader = _Teacher(hooks)
    fused = getattr(trainer, "use_liger_gkd_loss", False) or getattr(trainer, "use_liger_kernel", False)
    across = getattr(trainer, "use_uld_loss", False) and getattr(trainer, "teacher_tokenizer", None) is not None
    mixed = frozenset() if hasattr(trainer, "_compute_iw_opd_loss") else frozenset({"distill.beta"})  # whose divergence is what `beta` says
    if hasattr(trainer, "generalized_jsd_loss") and not fused and not across:
        hooks.wrap(trainer, "generalized_jsd_loss", reader.after_jsd, gives=_LOSS | _LOGITS | mixed)  # GOLD across tokenizers never calls it
    hooks.wrap(trainer, "_compute_iw_opd_loss", reader.after_sampled, gives=_LOSS | _LOGITS | _LENGTHS)  # IW-OPD logs its lengths itself
    for name in ("_compute_server_sparse_top_1_divergence_loss", "_compute_server_forward_kl_loss"):
        hooks.wrap(trainer, name, reader.after_server)
    if hasattr(trainer, "_get_last_hidden_state"):
        server = hasattr(trainer, "_get_teacher_token_logprobs_from_server")
        hooks.wrap(trainer, "_get_last_hidden_state", reader.after_hidden, gives=() if server or not plain_head(trainer) else _LOGITS)
        hooks.wrap(trainer, "_compute_loss", reader.after_chunked, gives=() if server else _LOSS | mixed)
        hooks.wrap(trainer, "compute_loss", reader.after_own_samples, gives=_SHARE | _WRITTEN | (_LOSS if server else frozenset()))
    if hasattr(trainer, "_on_policy_step_equiv"):
        hooks.wrap(trainer, "training_step", reader.after_counted, before=reader.before_counted, gives=_SHARE)
    elif hasattr(trainer, "lmbda"):
        hooks.wrap(trainer, "training_step", reader.after_step, before=reader.before_step, gives=_SHARE)
    hooks.wrap(trainer, "generate_on_policy_outputs", reader.after_generate, gives=_LENGTHS | _WRITTEN | _TIME)
    for name in ("_generate_student_completions", "_generate_on_policy_for_slices"):
        hooks.wrap(trainer, name, reader.written.after_generate, gives=_TIME if hasattr(trainer, name) else ())
    hooks.at_step_end.append(reader.step_end)


def _install_self(hooks: Hooks) -> None:
    trainer = hooks.trainer
    reader = _SelfTeacher(hooks)
    if not getattr(trainer, "use_teacher_server", False):
        if hasattr(trainer, "_compute_teacher_student_logits"):
            gives = _LOGITS | _LOSS
        else:  # TRL 1.0 keeps the logits to itself
            gives = _LOSS
            if not compares_distributions(trainer):
                gives |= {"distill.teacher_surprise"}
                hooks.wrap(trainer, "_compute_token_level_distillation_loss", reader.after_token_level)
                hooks.wrap(trainer, "_aggregate_self_distillation_loss", reader.after_aggregate)
        gives |= frozenset() if hasattr(trainer, "_calculate_rewards") else _WRITTEN
        hooks.wrap(trainer, "_compute_self_distillation_loss", reader.after_loss, gives=gives, needed=True)
        if compares_distributions(trainer):
            hooks.wrap(trainer, "_log_self_distillation_metric", reader.after_metric, needed=True)
    hooks.wrap(trainer, "_generate_completion_ids", reader.written.after_ids, gives=_LENGTHS | _TIME)
    if reader.pairs() or trainer.teacher_model is None or trainer.teacher_model is trainer.model:
        hooks.wrap(trainer, "training_step", gives={"distill.teacher_distance"})
    hooks.at_step_end.append(reader.step_end)


def compares_distributions(trainer: Any) -> bool:
    """Whether a self-distillation's loss is a divergence; else it is a policy gradient on log-probabilities of sampled tokens."""
    mode = getattr(trainer.args, "distillation_mode", None)
    if mode is not None:
        return bool(mode != "sampled_token")
    allowed = getattr(trainer, "_allow_topk_without_full_logit_distillation", lambda: False)()
    return bool(trainer.args.full_logit_distillation or (trainer.args.distillation_topk is not None and allowed))


def plain_logits(model: Any) -> bool:
    """Whether the logits of a model are its output layer's own, unscaled and uncapped."""
    return not any(getattr(model.config.get_text_config(), name, None) is not None for name in _UNSCALED)


def plain_head(trainer: Any) -> bool:
    """Whether the logits of student and teacher are the output layer's own."""
    models = [trainer.accelerator.unwrap_model(model) for model in (trainer.model, trainer.teacher_model) if model is not None]
    return all(plain_logits(model) for model in models)


def interpolation(trainer: Any) -> float | None:
    """Which divergence: 0 forward KL (teacher to student), 1 reverse KL (student to teacher), between them generalised JSD."""
    value = getattr(trainer.args, "distillation_alpha", getattr(trainer, "beta", None))
    return None if value is None else float(value)


def vocabulary_of(trainer: Any) -> int:
    """Number of tokens that the student can say."""
    return int(trainer.accelerator.unwrap_model(trainer.model).config.get_text_config().vocab_size)


def _argument(args: tuple[Any, ...], kwargs: dict[str, Any], index: int, name: str) -> Any:
    return args[index] if len(args) > index else kwargs.get(name)


class _Written:
    """What the student wrote: lengths and text of one micro-batch per step."""

    def __init__(self, hooks: Hooks) -> None:
        self._hooks = hooks
        ends = getattr(getattr(hooks.trainer.model, "generation_config", None), "eos_token_id", None)
        tokenizer = getattr(hooks.trainer, "processing_class", None)
        own = getattr(getattr(tokenizer, "tokenizer", tokenizer), "eos_token_id", None)
        self.ends = frozenset(end for end in [own, *(ends if isinstance(ends, list) else [ends])] if isinstance(end, int))
        self.read = False

    def install_ids(self, name: str) -> None:
        """For a trainer whose generation returns ids and mask and that has nothing else to read."""
        self._hooks.wrap(self._hooks.trainer, name, self.after_ids, gives=_LENGTHS | _WRITTEN | _TIME)
        self._hooks.at_step_end.append(self.step_end)

    def step_end(self) -> None:
        """The next micro-batch is of another step."""
        self.read = False

    def after_generate(self, result: Any, args: tuple[Any, ...], kwargs: dict[str, Any], seconds: float) -> None:
        """Time of a generation."""
        if self._hooks.training:
            self._hooks.add_seconds("time.generation_seconds", seconds)

    def after_ids(self, result: Any, args: tuple[Any, ...], kwargs: dict[str, Any], seconds: float) -> None:
        """Generation that returns padded ids and their mask (TRL 1.0's SDFT, SSD)."""
        self.after_generate(result, args, kwargs, seconds)
        if self._hooks.training:
            self.put(result[0], result[1], lengths=True)

    def put(self, ids: torch.Tensor, mask: torch.Tensor, *, lengths: bool) -> None:
        """Hand over ids and mask of a micro-batch; `lengths` where the trainer does not log them."""
        if self.read:
            return
        self.read = True
        ends = self.ends

        def compute(tensors: list[torch.Tensor]) -> dict[str, float]:
            kept = [[token for token, on in zip(row, line, strict=True) if on] for row, line in zip(tensors[0].tolist(), tensors[1].tolist(), strict=True)]
            values = text_signals(kept, 1, ends)
            values.pop("completion.distinct_fraction", None)
            return {**values, **(_length_signals(kept, ends) if lengths else {})}

        self._hooks.put([ids, mask], compute)


def _length_signals(rows: list[list[int]], ends: frozenset[int]) -> dict[str, float]:
    sizes = [len(row) for row in rows]
    if not sizes:
        return {}
    cut = sum(not row or row[-1] not in ends for row in rows) / len(rows)
    return {
        "completion.length_mean": sum(sizes) / len(sizes), "completion.length_min": float(min(sizes)),
        "completion.length_max": float(max(sizes)), "completion.truncated_fraction": cut,
    }  # fmt: skip


class _Gathered:
    """Sums of a step's micro-batches, on the device."""

    def __init__(self, hooks: Hooks) -> None:
        self._hooks = hooks
        self.written = _Written(hooks)
        self._vocabulary = vocabulary_of(hooks.trainer)
        self._sums: list[torch.Tensor] = []
        self._losses: list[torch.Tensor] = []
        self._told = False

    def sample(self, student: torch.Tensor, teacher: torch.Tensor, tokens: torch.Tensor, mask: torch.Tensor) -> None:
        """Look at a sample of the positions where `mask` is set."""
        if len(self._sums) < _STEP_LIMIT:
            with torch.no_grad():
                index, weight = calc.positions(mask)
                said = tokens.reshape(-1)[index].clamp(min=0)
                self._sums.append(calc.sampled(calc.rows(student, index), calc.rows(teacher, index), said, weight))

    def loss(self, whole: torch.Tensor, tokens: torch.Tensor) -> None:
        """Sum of the divergence over a micro-batch and its number of tokens."""
        if len(self._losses) < _STEP_LIMIT:
            self._losses.append(torch.stack([whole.detach().float(), tokens.detach().float().to(whole.device)]))

    def hand_over(self, *, divergence: bool) -> None:
        """End of a step."""
        if self._losses:
            self._hooks.put([torch.stack(self._losses)], lambda t: calc.per_token(t[0]))
        if self._sums:
            size = self._vocabulary
            self._hooks.put([torch.stack(self._sums)], lambda t: calc.sampled_signals(t[0], size, divergence=divergence))
        self._sums, self._losses = [], []
        beta = interpolation(self._hooks.trainer)
        if beta is not None and not self._told:
            self._hooks.give("distill.beta", beta)
            self._told = True
        self.written.step_end()


class _Teacher(_Gathered):
    """A teacher of its own."""

    def __init__(self, hooks: Hooks) -> None:
        super().__init__(hooks)
        self._estimate = False  # the loss of the step was no divergence
        self._hidden: dict[int, torch.Tensor] = {}
        self._counted = (0.0, 0.0)
        self._own = [0, 0]  # micro-batches that the student wrote, all
        self._inside = self._wrote = False

    def after_jsd(self, loss: Any, args: tuple[Any, ...], kwargs: dict[str, Any], seconds: float) -> None:
        """The divergence of one micro-batch: its loss is a sum over tokens, divided by a number that is not always theirs."""
        labels = _argument(args, kwargs, 2, "labels")
        if not self._hooks.training or labels is None or loss.dim():
            return
        mask = labels != IGNORED
        tokens = mask.sum()
        items = kwargs.get("num_items_in_batch")
        # GKD divides by the labels of the data set's batch even after the student rewrote it.
        self.loss(loss.detach() * (tokens.clamp(min=1) if items is None else _on(items, loss)), tokens)
        self.sample(_argument(args, kwargs, 0, "student_logits"), _argument(args, kwargs, 1, "teacher_logits"), labels, mask)

    def after_sampled(self, loss: Any, args: tuple[Any, ...], kwargs: dict[str, Any], seconds: float) -> None:
        """IW-OPD's loss is a policy gradient: its divergence is estimated from the sampled tokens."""
        labels, teacher = kwargs["labels"], kwargs["teacher_actual_logprobs"]
        if not self._hooks.training or len(self._sums) >= _STEP_LIMIT:
            return
        with torch.no_grad():
            index, weight = calc.positions(labels != IGNORED)
            own = (calc.rows(kwargs["student_logits"], index) / self._hooks.trainer.temperature).log_softmax(-1)
            actual = own.gather(-1, kwargs["completion_tokens"].reshape(-1)[index].unsqueeze(-1)).squeeze(-1)
            theirs = torch.where(weight > 0, teacher.reshape(-1)[index].float(), actual)
            gap = theirs - actual
            parts = [torch.ones_like(weight), -(own.exp() * own).sum(-1), -theirs, gap.exp() - 1 - gap]
            self._sums.append(torch.stack([torch.where(weight > 0, part, 0.0).sum() for part in parts]))
        self._estimate = True

    def after_server(self, loss: Any, args: tuple[Any, ...], kwargs: dict[str, Any], seconds: float) -> None:
        """A teacher behind a server: the loss is a mean over the tokens that the server scored."""
        if self._hooks.training and isinstance(kwargs.get("labels"), torch.Tensor):
            tokens = (kwargs["labels"] != IGNORED).sum()
            self.loss(loss.detach() * tokens, tokens)

    def after_hidden(self, result: Any, args: tuple[Any, ...], kwargs: dict[str, Any], seconds: float) -> None:
        """Hidden states of student and teacher, in the order in which the loss asks for them."""
        if self._hooks.training:
            self._hidden[id(args[0])] = result.detach()

    def after_chunked(self, result: Any, args: tuple[Any, ...], kwargs: dict[str, Any], seconds: float) -> None:
        """Distillation: loss, summed entropy and number of tokens of one micro-batch."""
        hidden, self._hidden = self._hidden, {}
        inputs, items = args[1], _argument(args, kwargs, 2, "num_items_in_batch")
        if not self._hooks.training:
            return
        mask = inputs["completion_mask"] * inputs["tool_mask"] if "tool_mask" in inputs else inputs["completion_mask"]
        tokens = mask.sum()
        self.loss(result[0].detach() * (tokens.clamp(min=1) if items is None else _on(items, result[0])), tokens)
        trainer = self._hooks.trainer
        teacher = trainer.accelerator.unwrap_model(trainer.teacher_model)
        heads = [model.get_output_embeddings() for model in (args[0], teacher)]
        pair = [hidden.get(id(model)) for model in (args[0], teacher)]
        if any(state is None for state in pair) or any(type(head.weight).__name__ == "DTensor" for head in heads) or not plain_head(trainer):
            return
        with torch.no_grad():
            index, weight = calc.positions(mask)
            rows = [torch.nn.functional.linear(calc.rows(state, index).to(head.weight.dtype), head.weight, head.bias).float() for state, head in zip(pair, heads, strict=True)]
            said = inputs["completion_ids"].reshape(-1)[index]
            self._sums.append(calc.sampled(rows[0] / trainer.temperature, rows[1] / trainer.temperature, said, weight))

    def after_own_samples(self, result: Any, args: tuple[Any, ...], kwargs: dict[str, Any], seconds: float) -> None:
        """Distillation trains on what the student wrote and on nothing else."""
        inputs = _argument(args, kwargs, 1, "inputs")
        if self._hooks.training:
            self._own = [self._own[0] + 1, self._own[1] + 1]
            self.written.put(inputs["completion_ids"], inputs["completion_mask"], lengths=False)

    def before_counted(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
        """Counters of GOLD and IW-OPD before a micro-batch."""
        self._counted, self._inside = self._counters(), True
        return args

    def after_counted(self, result: Any, args: tuple[Any, ...], kwargs: dict[str, Any], seconds: float) -> None:
        """Which of the two counters went up."""
        self._inside = False
        own, other = (after - before for after, before in zip(self._counters(), self._counted, strict=True))
        if own or other:
            self._own = [self._own[0] + int(own > other), self._own[1] + 1]

    def _counters(self) -> tuple[float, float]:
        trainer = self._hooks.trainer
        return float(trainer._on_policy_step_equiv), float(trainer._off_policy_step_equiv)

    def before_step(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
        """GKD writes a micro-batch itself, or does not, inside of its training step."""
        self._wrote, self._inside = False, True
        return args

    def after_step(self, result: Any, args: tuple[Any, ...], kwargs: dict[str, Any], seconds: float) -> None:
        """Whether the student wrote it."""
        self._inside = False
        self._own = [self._own[0] + int(self._wrote), self._own[1] + 1]

    def after_generate(self, result: Any, args: tuple[Any, ...], kwargs: dict[str, Any], seconds: float) -> None:
        """Ids, mask and labels that were generated by the student, or by the teacher (`seq_kd`)."""
        trainer = self._hooks.trainer
        writer = _argument(args, kwargs, 0, "model")
        if not self._inside:  # GKD's model is not yet in training mode here, so that its mode says nothing
            return
        if not hasattr(trainer, "_on_policy_step_equiv"):
            self._hooks.add_seconds("time.generation_seconds", seconds)
        if writer is not trainer.accelerator.unwrap_model(trainer.teacher_model):
            self._wrote = True
            start = _argument(args, kwargs, 1, "inputs")["prompts"].shape[1]  # TRL 1.0 labels the prompt as well
            self.written.put(result[0][:, start:], result[2][:, start:] != IGNORED, lengths=True)

    def step_end(self) -> None:
        """Hand over what the micro-batches of this step gave."""
        own, every = self._own
        if every:
            self._hooks.give("distill.on_policy_fraction", own / every)
        self.hand_over(divergence=self._estimate)
        self._own, self._estimate = [0, 0], False


class _SelfTeacher(_Gathered):
    """A teacher that is the student with more in its prompt: now, at the start, or a running mean of the two."""

    def __init__(self, hooks: Hooks) -> None:
        super().__init__(hooks)
        self._pair: tuple[torch.Tensor, torch.Tensor] | None = None
        self._tokens: list[torch.Tensor] = []
        self._weights: list[tuple[torch.Tensor, torch.Tensor]] | None = None
        self._values: list[float] = []

    def pairs(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Weights of the student beside those of the teacher's own copy."""
        trainer = self._hooks.trainer
        teacher = trainer.teacher_model
        if teacher is None or teacher is trainer.model:
            return []
        return calc.weight_pairs(trainer.accelerator.unwrap_model(trainer.model), trainer.accelerator.unwrap_model(teacher))

    def after_loss(self, result: Any, args: tuple[Any, ...], kwargs: dict[str, Any], seconds: float) -> None:
        """Logits of both on one micro-batch; what the student wrote."""
        inputs, both = _argument(args, kwargs, 1, "inputs"), _argument(args, kwargs, 2, "distillation_logits")
        if not self._hooks.training:
            return
        if not hasattr(self._hooks.trainer, "_calculate_rewards"):
            self.written.put(inputs["completion_ids"], inputs["completion_mask"], lengths=False)
        if both is not None:
            self.sample(both.student_logits, both.teacher_logits, both.completion_ids, both.loss_mask)

    def after_metric(self, result: Any, args: tuple[Any, ...], kwargs: dict[str, Any], seconds: float) -> None:
        """The divergence of one micro-batch as TRL logs it; it logs 0 for a batch in which no sample has a teacher."""
        if self._hooks.training and args[-1] != 0.0:
            self._values.append(float(args[-1]))

    def after_token_level(self, result: Any, args: tuple[Any, ...], kwargs: dict[str, Any], seconds: float) -> None:
        """TRL 1.0: log-probabilities of the sampled tokens; which of them count is said when the loss is summed up."""
        self._pair = (args[0], args[1])

    def after_aggregate(self, result: Any, args: tuple[Any, ...], kwargs: dict[str, Any], seconds: float) -> None:
        """TRL 1.0: the mask of the tokens that count."""
        pair, self._pair = self._pair, None
        if pair is not None and self._hooks.training and len(self._tokens) < _STEP_LIMIT:
            with torch.no_grad():
                self._tokens.append(calc.token_sums(*pair, args[1]))

    def step_end(self) -> None:
        """Hand over what the micro-batches of this step gave, and how far the teacher is behind."""
        trainer = self._hooks.trainer
        if self._tokens:
            size = self._vocabulary
            self._hooks.put([torch.stack(self._tokens)], lambda t: calc.estimated(t[0], size))
            self._tokens = []
        if trainer.teacher_model is None or trainer.teacher_model is trainer.model:
            if not hasattr(trainer.model, "peft_config"):
                self._hooks.give("distill.teacher_distance", 0.0)
        else:
            if self._weights is None:
                self._weights = self.pairs()
            if self._weights:
                self._hooks.put([calc.distance(self._weights)], calc.distance_signals)
        if self._values:
            self._hooks.give("distill.divergence", sum(self._values) / len(self._values))
            self._values = []
        self.hand_over(divergence=not compares_distributions(trainer))


def _on(items: Any, loss: torch.Tensor) -> Any:
    return items.to(loss.device) if isinstance(items, torch.Tensor) else items
