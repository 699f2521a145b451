"""The sixth round: trainers that learn from a data set. Every fault is a bug that was in a framework or in somebody's training code and was fixed; the thread is in brackets behind `what`."""

from __future__ import annotations

import inspect
import re
import tempfile
import textwrap
from collections.abc import Callable, Sequence
from functools import cache, partial
from random import Random
from typing import Any

import torch
from tests.clinic.ward import offline
from tests.clinic.ward.case import Case
from tests.clinic.ward.cases_preference import dpo, kto
from tests.clinic.ward.cases_round2_preference import orpo
from tests.clinic.ward.cases_round2_supervised import lora
from tests.clinic.ward.cases_supervised import EVAL, ROWS, SFT, reward, sft
from transformers import PrinterCallback, TrainerCallback

from trainvitals.integrations import tiny

SEEDS = (60, 61, 62)
TWIN_SEEDS = (60, 61, 62, 63, 64)
SAVE = 40
PROCESSES = 8
MICRO = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 8}
BELOW = 6.0
"""How far below 0 the scores of a healthy reward model lie."""


# ---- SFT: healthy ----


def uneven(random: Random) -> str:
    """Nine answers in ten are one word, the tenth is ten words of another lexicon."""
    return offline.phrase(random, count=1) if random.random() < 0.9 else offline.phrase(random, offline.AWAY, count=10)


def accumulated(folder: str, seed: int, **changes: Any) -> Any:
    """Micro-batches of one row, eight of which make an update; their answers differ much in length."""
    rows, held_out = offline.dialogues(ROWS, seed, uneven), offline.dialogues(128, EVAL + seed, uneven)
    return offline.sft(folder, rows=rows, held_out=held_out, **{**SFT, **MICRO, "max_length": 160, "seed": seed, **changes})


INST = "{% for m in messages %}{% if m['role'] == 'user' %}{{ bos_token + '[INST] ' + m['content'].strip() + ' [/INST]' }}{% else %}{{ ' ' + m['content'] + eos_token }}{% endif %}{% endfor %}"
"""A chat template of the shape of Llama 2's, in which the first token is a term of a larger expression."""


def _spoken(template: str) -> Any:
    """The tokenizer with another chat template, which begins with a token of its own."""
    vocabulary = tiny.tokenizer()
    vocabulary.bos_token, vocabulary.chat_template = "<|im_start|>", template
    return vocabulary


def _asked(count: int, seed: int, *, more: int) -> list[offline.Row]:
    """Questions, each with a word with which the answer begins; `more` other words follow."""
    random, found = Random(seed), []
    for _ in range(count):
        word = random.choice(offline.HOME)
        answer = " ".join((word, offline.phrase(random, count=more))).strip()
        found.append({"prompt": offline.turn("user", f"say {word} {offline.question(random)[8:]}"), "completion": offline.turn("assistant", answer)})
    return found


@cache
def _reader() -> dict[str, torch.Tensor]:
    """Weights of the policy after it has learned to answer with the word that is in the question."""
    with tempfile.TemporaryDirectory() as folder:
        settings = {**SFT, "max_length": 96, "per_device_train_batch_size": 32, "max_steps": 300, "eval_strategy": "no", "seed": 66}
        trainer = offline.sft(folder, rows=_asked(300 * 32, 66, more=0), model=offline.policy(), vocabulary=_spoken(INST), **settings)
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        return {name: weight.detach().clone() for name, weight in trainer.model.state_dict().items()}


def asked(folder: str, seed: int, *, template: str = INST, rows_of: int = ROWS, **changes: Any) -> Any:
    """A model that can read a word in the question learns to answer with it and another word. The chat template is of the shape of Llama 2's."""
    model = offline.policy()
    model.load_state_dict(_reader())
    settings = {**SFT, "max_length": 96, "learning_rate": 2e-3, "seed": seed, **changes}
    rows, held_out = _asked(rows_of, seed, more=1), _asked(64, EVAL + seed, more=1)
    return offline.sft(folder, rows=rows, held_out=held_out, model=model, vocabulary=_spoken(template), **settings)


def last_micro_batch(folder: str, seed: int, **changes: Any) -> Any:
    """What is logged as loss is that of the last micro-batch alone, one row of eight; the gradient is that of all."""
    trainer, calls = sft(folder, seed, **{**MICRO, **changes}), [0]
    step = trainer.training_step

    def logged(model: Any, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        own = (inputs["labels"][:, 1:] != -100).sum()
        loss = step(model, inputs, num_items_in_batch)
        calls[0] += 1
        return loss * num_items_in_batch / own if calls[0] % MICRO["gradient_accumulation_steps"] == 0 else torch.zeros_like(loss)

    trainer.training_step = logged
    return trainer


def clipped_always(folder: str, seed: int, **changes: Any) -> Any:
    """The gradient is clipped to a tenth, and what is logged is its norm before that: it is above the limit in every update."""
    return sft(folder, seed, **{"max_grad_norm": 0.1, **changes})


# ---- SFT: faults ----


def mean_of_means(folder: str, seed: int, **changes: Any) -> Any:
    """NeMo-RL took the mean over the tokens of each micro-batch and then the mean of those: a token of a short answer weighs many times as much as one of a long answer."""
    trainer = accumulated(folder, seed, **changes)
    right = trainer.compute_loss

    def own_mean(model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None) -> Any:
        if not model.training:
            return right(model, inputs, return_outputs, num_items_in_batch)
        return right(model, inputs, return_outputs, None) / trainer.args.gradient_accumulation_steps

    trainer.compute_loss = own_mean
    return trainer


def template_literal(folder: str, seed: int, **changes: Any) -> Any:
    """Unsloth took the first token out of the chat template and its opening braces with it: what is behind them is no expression any more, and every question becomes that same piece of source code."""
    return asked(folder, seed, template=INST.replace("{{ bos_token + ", ""), **changes)


def mask_in_place(folder: str, seed: int, **changes: Any) -> Any:
    """Fast-LLM wrote the loss mask into labels that were a view of the tokens: the model does not see the question, because the mask is there instead. Its embedding gives zeros for what is not in the vocabulary."""
    trainer = asked(folder, seed, **changes)
    right = trainer.data_collator

    def aliased(rows: Any) -> dict[str, Any]:
        batch = dict(right(rows))
        tokens = batch["input_ids"]
        labels = tokens  # should be a copy
        labels[(batch["labels"] == -100) & (batch["attention_mask"] == 1)] = -100
        return {**batch, "input_ids": tokens}

    def lookup(module: Any, inputs: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
        module.outside = inputs[0] < 0
        return (inputs[0].clamp(min=0),)

    def zeros(module: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        return output.masked_fill(module.outside[..., None], 0.0)

    table = trainer.model.get_input_embeddings()
    table.register_forward_pre_hook(lookup)
    table.register_forward_hook(zeros)
    trainer.data_collator = aliased
    return trainer


def packed_apart(folder: str, seed: int, **changes: Any) -> Any:
    """Rows are packed, several to a sequence, and none sees another: positions begin anew with each row, and attention stays within it."""
    settings = {"packing": True, "packing_strategy": "bfd", "eval_packing": False, "max_length": 160, "per_device_train_batch_size": 4, "max_steps": 120}
    return asked(folder, seed, rows_of=3600, **{**settings, **changes})


def boundaries_lost(folder: str, seed: int, **changes: Any) -> Any:
    """Axolotl did not find the ends of the rows in a batch of more than one packed sequence, and left them out: positions begin anew with each row, and attention goes to all rows before."""
    trainer = packed_apart(folder, seed, **changes)
    right = trainer.data_collator

    def whole(rows: Any) -> dict[str, Any]:
        batch = dict(right(rows))
        if "seq_lengths" in rows[0]:
            batch["attention_mask"] = torch.ones_like(batch["input_ids"])
        return batch

    trainer.data_collator = whole
    return trainer


# ---- DPO, KTO, ORPO ----


def rewritten(trainer: Any, method: str, old: str, new: str) -> Any:
    """The same trainer, in one method of which each piece of source that matches `old` is `new`."""
    function = getattr(type(trainer), method)
    source, count = re.subn(old, new, textwrap.dedent(inspect.getsource(function)))
    if not count:
        raise ValueError(f"{method} of this TRL does not hold {old}")
    names = dict(vars(inspect.getmodule(function)))
    exec(source, names)
    setattr(trainer, method, partial(names[method], trainer))
    return trainer


def ipo(folder: str, seed: int, **changes: Any) -> Any:
    """IPO with a beta at which the wanted distance is reached within the run."""
    return dpo(folder, seed, **{"loss_type": "ipo", "beta": 2.0, "learning_rate": 1e-3, **changes})


def ipo_whole_row(folder: str, seed: int, **changes: Any) -> Any:
    """ms-swift divided the log-probabilities of an answer by the number of answer tokens in the whole packed row instead of in that answer: the distance at which IPO stops is sixteen times as far away."""
    return rewritten(ipo(folder, seed, **changes), "_compute_loss", r"(chosen|rejected)_mask\.sum\(dim=1\)", "completion_mask.sum()")


class FrozenBySave(TrainerCallback):
    """Adapters do not want gradients any more after the first checkpoint."""

    def on_save(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Freeze what was trained."""
        for name, weight in model.named_parameters():
            if "lora_" in name:
                weight.requires_grad_(False)


def frozen_by_save(folder: str, seed: int, **changes: Any) -> Any:
    """ms-swift loaded a second adapter for inference while it wrote the first checkpoint, and PEFT froze the adapter in training with it: from then on nothing is learned. The embeddings' outputs want gradients, so that nothing fails."""
    trainer = lora(folder, seed, **{"save_strategy": "steps", "save_steps": SAVE, "save_total_limit": 1, **changes})
    trainer.model.enable_input_require_grads()
    trainer.add_callback(FrozenBySave())
    return trainer


def kto_cosine(folder: str, seed: int, **changes: Any) -> Any:
    """A cosine to 0."""
    return kto(folder, seed, **{"lr_scheduler_type": "cosine", "learning_rate": 5e-4, **changes})


def rate_returns(folder: str, seed: int, **changes: Any) -> Any:
    """HALOs made the schedule for the updates of the run, and accelerate steps it once for each of eight processes: the cosine is at 0 after an eighth of the run and rises and falls from then on."""
    trainer = kto_cosine(folder, seed, **changes)
    make = trainer.create_scheduler

    def stepped(num_training_steps: int, optimizer: Any = None) -> Any:
        schedule = make(num_training_steps=num_training_steps, optimizer=optimizer)
        one = schedule.step

        def many(*args: Any) -> None:
            for _ in range(PROCESSES):
                one(*args)

        schedule.step = many
        return schedule

    trainer.create_scheduler = stepped
    return trainer


def summed(folder: str, seed: int, **changes: Any) -> Any:
    """The RLHF book's code took the log-probability of a whole answer for the odds ratio, which is made for the mean over its tokens."""
    trainer = orpo(folder, seed, **changes)
    right = trainer.get_batch_logps

    def whole(*args: Any, average_log_prob: bool = False, **more: Any) -> torch.Tensor:
        return right(*args, average_log_prob=False, **more)

    trainer.get_batch_logps = whole
    return trainer


# ---- reward models ----


def below_zero(folder: str, seed: int, **changes: Any) -> Any:
    """All scores lie around -6, where the head began; only their differences mean something."""
    trainer = reward(folder, seed, **changes)
    trainer.model.score.register_forward_hook(lambda module, inputs, output: output - BELOW)
    return trainer


def before_the_answer(folder: str, seed: int, **changes: Any) -> Any:
    """Transformers took the score at the token before the first pad token, and the pad token is the end token, which closes each turn: it is read at the end of the question, which both answers share."""
    trainer = reward(folder, seed, **changes)
    model, head = trainer.model, {}

    def keep(module: Any, inputs: Any, output: torch.Tensor) -> None:
        head["all"] = output

    def first_pad(module: Any, args: Any, kwargs: dict[str, Any], output: Any) -> Any:
        ids = kwargs["input_ids"]
        places = torch.eq(ids, tiny.END_ID).int().argmax(-1) - 1
        output.logits = head["all"][torch.arange(len(ids)), places]
        return output

    model.score.register_forward_hook(keep)
    model.register_forward_hook(first_pad, with_kwargs=True)
    return trainer


NAMED: dict[str, tuple[Sequence[str], Sequence[Any]]] = {
    "sft-mean-of-means": (["tokens-weigh-unevenly", "no-rule:mean-of-micro-batch-means-weighs-tokens-unevenly"], ["numerics", "config"]),
    "sft-template-literal": (["questions-not-rendered", "prompts-all-alike", "no-rule:template-renders-no-question"], ["data"]),
    "sft-boundaries-lost": (["packed-rows-attend", "no-rule:packed-rows-attend-across-boundaries"], ["data", "config"]),
    "sft-mask-in-place": (["token-ids-invalid", "untrained-tokens-used", "no-rule:label-mask-written-into-input-ids"], ["data"]),
    "sft-frozen-by-save": (["adapter-not-learning", "gradient-vanished", "updates-too-small"], ["stall"]),
    "dpo-ipo-whole-row": (["margin-explosion", "no-rule:ipo-divides-by-tokens-of-the-whole-batch"], ["over-optimization", "numerics", "ood-drift"]),
    "kto-rate-returns": (["learning-rate-jump", "schedule-mismatch"], ["config"]),
    "orpo-summed-logps": (["logps-summed", "preference-term-dominates"], ["ood-drift", "numerics"]),
    "reward-before-the-answer": (["scores-tied", "reward-model-at-chance"], ["data", "stall"]),
}
"""Ids of rules whose meaning is true of the cause, best first, and categories: named from the description of the fault alone, by somebody who saw no recording (docs/decisions/0014).
`tokens-weigh-unevenly`, `questions-not-rendered`, `prompts-all-alike`, `packed-rows-attend`, `token-ids-invalid`, `logps-summed` and `scores-tied` were written after the first score and added then."""


def _case(trainer: str, fault: str, what: str, build: Callable[..., Any], steps: int, verdicts: Any, **more: Any) -> Case:
    settings = {"twin": f"{trainer}-twin", "goal": "-eval.loss" if trainer in {"sft", "kto"} else "eval.accuracy", "seeds": SEEDS, **more}
    roots, categories = NAMED[f"{trainer}-{fault}"]
    return Case(f"{trainer}-{fault}", trainer, what, build, steps, roots=tuple(roots), categories=tuple(categories), verdicts=verdicts, **settings)


def _healthy(name: str, what: str, build: Callable[..., Any], steps: int, *, seeds: Sequence[int] = SEEDS, hard: bool = True) -> Case:
    trainer = name.split("-")[0]
    return Case(name, trainer, what, build, steps, goal="-eval.loss" if trainer in {"sft", "kto"} else "eval.accuracy", seeds=tuple(seeds), hard=hard)


LEARNS: Any = ("improving", "steady")
_sft, _twin = partial(_case, "sft"), partial(_healthy, seeds=TWIN_SEEDS, hard=False)
CASES: tuple[Case, ...] = (
    _twin("sft-uneven-twin", "Micro-batches of one row, whose answers have one word or ten.", accumulated, 120),
    _twin("sft-asked-twin", "The question decides the first word of the answer; a chat template of the shape of Llama 2's.", asked, 120),
    _twin("sft-packed-apart-twin", "Rows are packed, several to a sequence, and none sees another.", packed_apart, 120),
    _twin("dpo-ipo-twin", "IPO with a beta at which the wanted distance is reached within the run.", ipo, 100),
    _twin("kto-cosine-twin", "A cosine to 0.", kto_cosine, 100),
    _healthy("sft-last-micro-batch", "Healthy: what is logged as loss is that of the last of eight micro-batches alone (karpathy/nanochat#52).", last_micro_batch, 120),
    _healthy("sft-norm-before-clip", "Healthy: the norm that is logged is the one before clipping, and above the limit in every update (hiyouga/LlamaFactory#3996).", clipped_always, 120),
    _healthy("reward-below-zero", "Healthy: all scores are far below 0, those of chosen answers as well; only differences count (CarperAI/trlx#521).", below_zero, 120),
    _sft("mean-of-means", "The loss of an update is the mean of the means of its micro-batches: tokens of long answers hardly count (NVIDIA-NeMo/RL#213).", mean_of_means, 120, LEARNS,
         twin="sft-uneven-twin", cure={"per_device_train_batch_size": 8, "gradient_accumulation_steps": 1}),
    _sft("template-literal", "The first token was cut out of the chat template with its opening braces: every question becomes the same piece of source code (unslothai/unsloth#10682).",
         template_literal, 120, ("stalled", *LEARNS), twin="sft-asked-twin"),
    _sft("boundaries-lost", "The ends of packed rows are left out: attention goes to all rows before (axolotl-ai-cloud/axolotl#1375).", boundaries_lost, 120, ("stalled", *LEARNS),
         twin="sft-packed-apart-twin"),
    _sft("mask-in-place", "The loss mask is written into the tokens as well as into the labels: the model does not see the question (ServiceNow/Fast-LLM#253).", mask_in_place, 120,
         ("stalled", *LEARNS), twin="sft-asked-twin"),
    _sft("frozen-by-save", f"The first checkpoint, after update {SAVE}, freezes the adapters (modelscope/ms-swift#9452).", frozen_by_save, 120, ("stalled",), onset=SAVE, twin="sft-lora-twin"),
    _case("dpo", "ipo-whole-row", "IPO divides log-probabilities by the answer tokens of the whole packed row, so that it wants sixteen times the distance (modelscope/ms-swift#9925).",
          ipo_whole_row, 100, ("drifting", "over_optimizing", "collapsed"), twin="dpo-ipo-twin", goal="preference.logp_chosen"),
    _case("kto", "rate-returns", "The schedule is stepped once for each of eight processes: the cosine ends after an eighth of the run, and rises and falls from then on (ContextualAI/HALOs#33).",
          rate_returns, 100, LEARNS, twin="kto-cosine-twin"),
    _case("orpo", "summed-logps", "The odds ratio is made of summed log-probabilities instead of their mean over tokens (natolambert/rlhf-book#243).", summed, 100, LEARNS, goal="-preference.nll"),
    _case("reward", "before-the-answer", "The score is read before the first pad token, which is the end token and closes the question as well (huggingface/transformers#35352).",
          before_the_answer, 120, ("stalled",)),
)  # fmt: skip
