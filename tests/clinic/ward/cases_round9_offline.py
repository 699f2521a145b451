"""The ninth round: trainers that learn from a data set. Drawn by how often a thing is reported, known things included; the threads are in brackets behind `what`."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from random import Random
from typing import Any

import torch
from tests.clinic.ward import offline
from tests.clinic.ward.case import Case
from tests.clinic.ward.cases_preference import BASE
from tests.clinic.ward.cases_round2_preference import ORPO
from tests.clinic.ward.cases_round2_supervised import in_training
from tests.clinic.ward.cases_round5_offline import _tuned
from tests.clinic.ward.cases_round8_offline import _known
from tests.clinic.ward.cases_supervised import EVAL, REWARD, SFT
from transformers import AutoModelForCausalLM, PrinterCallback

from trainvitals.integrations import tiny

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")

SEEDS = (85, 86, 87)
TWIN_SEEDS = (85, 86, 87, 88, 89)
STATES = ("paid", "open", "late", "void", "held", "sent", "lost", "due")
"""Words of the second subject: what a company's own tickets say."""
TARGET = 11
"""Tokens of an answer that somebody's own code keeps: about two of its words."""
RESULT = 72
"""Characters that a tool answers."""


# ---- what several of them share ----


def _ids(row: offline.Row, vocabulary: Any) -> tuple[list[int], list[int]]:
    """Tokens of the question with the head of the answer, and those of the answer with its end."""
    asked = vocabulary.apply_chat_template(row["prompt"], tokenize=False, add_generation_prompt=True)
    answered = row["completion"][0]["content"] + vocabulary.eos_token
    return vocabulary(asked)["input_ids"], vocabulary(answered)["input_ids"]


def _trained(rows: Sequence[offline.Row], steps: int, **settings: Any) -> dict[str, torch.Tensor]:
    """Weights of the policy after so many updates on those rows."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = offline.sft(folder, rows=rows, **{**SFT, "max_length": 128, "max_steps": steps, "eval_strategy": "no", **settings})
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        return {name: weight.detach().clone() for name, weight in trainer.model.state_dict().items()}


def _with(weights: dict[str, torch.Tensor]) -> Any:
    model = offline.policy()
    model.load_state_dict(weights)
    return model


def spelling(count: int, seed: int, *, words: int, wrong: int) -> list[offline.Row]:
    """Pairs of answers of the same words; in the rejected one `wrong` of them are misspelled."""
    random, rows = Random(seed), []
    for _ in range(count):
        said = [offline.phrase(random, count=1) for _ in range(words)]
        slips = random.sample(range(words), wrong)
        spoiled = [_misspelled(random, word) if place in slips else word for place, word in enumerate(said)]
        rows.append({"prompt": offline.turn("user", offline.question(random)), "chosen": offline.turn("assistant", " ".join(said)), "rejected": offline.turn("assistant", " ".join(spoiled))})
    return rows


def _misspelled(random: Random, word: str) -> str:
    found = word
    while found == word:
        found = "".join(random.sample(word, len(word)))
    return found


# ---- transformers.Trainer ----


def _ticket(random: Random) -> offline.Row:
    """A row of the second subject."""
    ask = f"ticket {random.randint(1000, 9999)} {random.choice(('status', 'state'))}"
    return {"prompt": offline.turn("user", ask), "completion": offline.turn("assistant", offline.phrase(random, STATES))}


@cache
def _knows_some() -> dict[str, torch.Tensor]:
    """Weights of a model that has learned some of the first subject, and could learn more."""
    return _trained(offline.dialogues(50 * 16, 81), 50, per_device_train_batch_size=16, learning_rate=3e-3, seed=81)


def tickets(folder: str, seed: int, *, replay: float, **changes: Any) -> Any:
    """All weights of a model that knows one subject are trained on another in one pass, with that share of rows of the first; the first is what is evaluated."""
    from transformers import DataCollatorForSeq2Seq, Trainer, TrainingArguments

    vocabulary, random = tiny.tokenizer(), Random(seed)

    def made(rows: Sequence[offline.Row]) -> list[dict[str, list[int]]]:
        both = [_ids(row, vocabulary) for row in rows]
        return [{"input_ids": asked + answered, "labels": [-100] * len(asked) + answered} for asked, answered in both]

    rows = [row if random.random() < replay else _ticket(random) for row in offline.dialogues(1440, seed)]
    settings = {
        "max_steps": 90, "per_device_train_batch_size": 16, "learning_rate": 2e-3, "lr_scheduler_type": "linear", "warmup_steps": 4, "weight_decay": 0.01,
        "eval_strategy": "steps", "eval_steps": 10, "per_device_eval_batch_size": 32, "seed": seed, **changes,
    }  # fmt: skip
    return Trainer(
        model=_with(_knows_some()),
        args=TrainingArguments(**tiny.arguments(folder, **settings)),
        train_dataset=made(rows),
        eval_dataset=made(offline.dialogues(32, EVAL + seed)),
        data_collator=DataCollatorForSeq2Seq(vocabulary),
    )


# ---- SFT ----


def with_tool(folder: str, seed: int, *, results_too: bool = False, **changes: Any) -> Any:
    """Question, call of a tool, what the tool answers (letters and digits that nobody can know) and the answer; `results_too`: what the tool answers is trained on as well."""
    vocabulary = tiny.tokenizer()

    def made(count: int, of: int, *, all_of_it: bool) -> list[offline.Row]:
        random = Random(of)
        return [_turns(vocabulary, random, all_of_it=all_of_it) for _ in range(count)]

    settings = {**SFT, "max_length": 224, "max_steps": 100, "learning_rate": 3e-3, "lr_scheduler_type": "cosine", "completion_only_loss": True, "seed": seed, **changes}
    return offline.sft(folder, rows=made(800, seed, all_of_it=results_too), held_out=made(32, EVAL + seed, all_of_it=False), **settings)


def _turns(vocabulary: Any, random: Random, *, all_of_it: bool) -> offline.Row:
    """Tokens of such a conversation and which of them count."""
    result = "".join(random.choices("abcdefghijklmnopqrstuvwxyz0123456789", k=RESULT))
    head, end = "<|im_start|>assistant\n", "<|im_end|>\n"
    parts = (
        (f"<|im_start|>user\n{offline.question(random)}{end}{head}", False),
        (f"look up {offline.phrase(random, count=1)}<|im_end|>", True),
        (f"\n<|im_start|>tool\n{result}{end}{head}", all_of_it),
        (f"{offline.phrase(random)}<|im_end|>", True),
    )
    ids, mask = [], []
    for text, counts in parts:
        some = vocabulary(text)["input_ids"]
        ids += some
        mask += [int(counts)] * len(some)
    return {"input_ids": ids, "completion_mask": mask}


def packed_rows(folder: str, seed: int, **changes: Any) -> Any:
    """Rows with answers of one to four words are packed, six or so to a sequence, and none sees another."""
    settings = {
        **SFT, "packing": True, "packing_strategy": "bfd", "eval_packing": False, "max_length": 320, "per_device_train_batch_size": 3,
        "max_steps": 110, "learning_rate": 3e-3, "lr_scheduler_type": "linear", "seed": seed, **changes,
    }  # fmt: skip
    return offline.sft(folder, rows=offline.dialogues(2600, seed, _one_to_four), held_out=offline.dialogues(32, EVAL + seed, _one_to_four), **settings)


def _one_to_four(random: Random) -> str:
    return offline.phrase(random, count=random.randint(1, 4))


def ranges_slip(folder: str, seed: int, **changes: Any) -> Any:
    """Where an answer lies in its packed sequence is counted from the sum of the answers before instead of that of the rows before."""
    trainer = packed_rows(folder, seed, **changes)
    right = trainer.data_collator

    def slipped(rows: Any) -> Any:
        return right([{**row, "labels": _slipped(row["input_ids"], row["labels"], row["seq_lengths"])} if "seq_lengths" in row else row for row in rows])

    trainer.data_collator = slipped
    return trainer


def _slipped(ids: Sequence[int], labels: Sequence[int], lengths: Sequence[int]) -> list[int]:
    """The labels of a packed sequence, with that mistake."""
    wrong, begin, answers = [-100] * len(ids), 0, 0
    for length in lengths:
        own = [place for place in range(length) if labels[begin + place] != -100]
        for place in own:
            wrong[answers + place] = ids[answers + place]
        begin, answers = begin + length, answers + len(own)
    return wrong


def drops_out(folder: str, seed: int, **changes: Any) -> Any:
    """Adapters with a dropout of 0.7 on a model that knows another choice of the words: the training loss lies above that of unseen rows for most of the run."""
    from peft import LoraConfig, get_peft_model

    model = _with(_known().state_dict())
    torch.manual_seed(seed)
    model = get_peft_model(model, LoraConfig(r=16, lora_alpha=128, lora_dropout=0.7, target_modules="all-linear", task_type="CAUSAL_LM"))
    answer = partial(offline.phrase, words=(*offline.HOME[::-1],), count=3)
    settings = {**SFT, "max_length": 80, "per_device_train_batch_size": 16, "max_steps": 90, "learning_rate": 2e-3, "lr_scheduler_type": "cosine", "seed": seed, **changes}
    return offline.sft(folder, rows=offline.dialogues(1440, seed, answer), held_out=offline.dialogues(48, EVAL + seed, answer), model=model, **settings)


# ---- DPO ----


def dpo_words(folder: str, seed: int, **changes: Any) -> Any:
    """Adapters of rank 16 on a model that was tuned on such words for a while; of two answers the one that is spelled right is chosen."""
    from peft import LoraConfig
    from trl import DPOConfig, DPOTrainer

    settings = {
        **BASE, "max_steps": 80, "per_device_train_batch_size": 6, "gradient_accumulation_steps": 2, "learning_rate": 1.5e-4, "beta": 0.3, "max_length": 96,
        "lr_scheduler_type": "cosine", "eval_steps": 10, "seed": seed, **changes,
    }  # fmt: skip
    model = _with(_knows_some())
    torch.manual_seed(seed)
    return DPOTrainer(
        model=model,
        args=DPOConfig(**tiny.arguments(folder, **settings)),
        train_dataset=offline._set(spelling(960, seed, words=3, wrong=2)),
        eval_dataset=offline._set(spelling(64, EVAL + seed, words=3, wrong=2)),
        processing_class=tiny.tokenizer(),
        peft_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"),
    )


def for_inference(folder: str, seed: int, **changes: Any) -> Any:
    """The adapters were loaded for inference, so that they want no gradient; since the backward pass then stops with an error, the loss was told to want one."""
    trainer = dpo_words(folder, seed, **changes)
    for weight in trainer.model.parameters():
        weight.requires_grad_(False)
    right = trainer.compute_loss

    def wanting(model: Any, *rest: Any, **more: Any) -> Any:
        found = right(model, *rest, **more)
        if model.training:
            (found[0] if isinstance(found, tuple) else found).requires_grad_(True)
        return found

    trainer.compute_loss = wanting
    return trainer


def warms_up(folder: str, seed: int, **changes: Any) -> Any:
    """The rate rises for 45 of 100 updates: for the first ones rewards are 0 and the loss is ln 2."""
    settings = {**BASE, "per_device_train_batch_size": 12, "learning_rate": 6e-4, "beta": 0.1, "warmup_steps": 45, "lr_scheduler_type": "linear", "seed": seed, **changes}
    return offline.dpo(folder, rows=offline.pairs(1200, seed), held_out=offline.pairs(48, EVAL + seed), **settings)


# ---- KTO, ORPO, CPO and reward models ----


def kto_passes(folder: str, seed: int, **changes: Any) -> Any:
    """Four passes over 240 examples, two micro-batches of five to an update, a cosine."""
    settings = {
        **BASE, "max_steps": 96, "per_device_train_batch_size": 5, "gradient_accumulation_steps": 2, "learning_rate": 4e-4, "lr_scheduler_type": "cosine", "eval_steps": 8,
        "seed": seed, **changes,
    }  # fmt: skip
    return offline.kto(folder, rows=offline.examples(240, seed), held_out=offline.examples(48, EVAL + seed), **settings)


def kl_zero(folder: str, seed: int, **changes: Any) -> Any:
    """A model that was tuned on desirable answers: mismatched ones become less likely, so that the estimate of the reference point is held at 0 all the time, and the margin grows."""
    settings = {**BASE, "max_steps": 90, "per_device_train_batch_size": 16, "lr_scheduler_type": "linear", "eval_steps": 15, "seed": seed, **changes}
    trainer = offline.kto(folder, rows=offline.examples(1440, seed), held_out=offline.examples(48, EVAL + seed), **settings)
    for model in (trainer.model, trainer.ref_model):
        model.load_state_dict(_tuned())
    return trainer


def orpo_words(folder: str, seed: int, **changes: Any) -> Any:
    """ORPO with a long warmup on a model that was tuned on such words for a while: of two answers the rejected one has a misspelled word."""
    from trl.experimental.orpo import ORPOConfig, ORPOTrainer

    start = str(Path(folder) / "start")
    _known().save_pretrained(start)
    settings = {
        **ORPO, "max_steps": 90, "per_device_train_batch_size": 12, "learning_rate": 2e-3, "beta": 0.25, "max_length": 96, "lr_scheduler_type": "cosine", "warmup_steps": 30,
        "eval_steps": 15, "seed": seed, **changes,
    }  # fmt: skip
    return ORPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(start),
        args=ORPOConfig(**tiny.arguments(folder, **settings)),
        train_dataset=offline._set(spelling(1080, seed, words=2, wrong=1)),
        eval_dataset=offline._set(spelling(64, EVAL + seed, words=2, wrong=1)),
        processing_class=tiny.tokenizer(),
    )


def _lettered(count: int, seed: int) -> list[offline.Row]:
    """Pairs of answers of two known words each: the chosen ones are of the rarer half of the lexicon."""
    random, rows = Random(seed), []
    for _ in range(count):
        chosen, rejected = offline.phrase(random, offline.HOME[4:]), offline.phrase(random, offline.HOME[:8])
        rows.append({"prompt": offline.turn("user", offline.question(random)), "chosen": offline.turn("assistant", chosen), "rejected": offline.turn("assistant", rejected)})
    return rows


def cpo(folder: str, seed: int, **changes: Any) -> Any:
    """CPO on a model that knows all the words: of two answers the one with rarer words is chosen, and a term of supervised loss holds the chosen ones."""
    from trl.experimental.cpo import CPOConfig, CPOTrainer

    start = str(Path(folder) / "start")
    _known().save_pretrained(start)
    settings = {**BASE, "max_steps": 110, "cpo_alpha": 1.0, "beta": 0.3, "learning_rate": 2e-3, "lr_scheduler_type": "cosine", "max_length": 80, "seed": seed, **changes}
    return CPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(start),
        args=CPOConfig(**tiny.arguments(folder, **settings)),
        train_dataset=offline._set(_lettered(300, seed)),
        eval_dataset=offline._set(_lettered(64, EVAL + seed)),
        processing_class=tiny.tokenizer(),
    )


def reward_words(folder: str, seed: int, *, rows_of: int = 1760, **changes: Any) -> Any:
    """A reward model learns to tell answers of two words that are spelled right from such with one misspelled; unseen pairs are of the same kind."""
    settings = {**REWARD, "max_steps": 110, "per_device_train_batch_size": 16, "learning_rate": 4e-3, "lr_scheduler_type": "cosine", "eval_steps": 10, "seed": seed, **changes}
    rows, held_out = spelling(rows_of, seed, words=2, wrong=1), spelling(96, EVAL + seed, words=2, wrong=1)
    return offline.reward(folder, rows=rows, held_out=held_out, **settings)


# ---- distillation ----


def _long(random: Random) -> str:
    return offline.phrase(random, count=random.randint(3, 4))


@cache
def _speaks_long() -> dict[str, torch.Tensor]:
    """Weights of a teacher that answers with three or four words."""
    return _trained(offline.dialogues(300 * 16, 79, _long), 300, per_device_train_batch_size=16, learning_rate=3e-3, seed=79)


def gkd_long(folder: str, seed: int, **changes: Any) -> Any:
    """The student learns what its teacher thinks of given answers of three or four words."""
    from trl.experimental.gkd import GKDConfig, GKDTrainer

    def chats(rows: Sequence[offline.Row]) -> Any:
        return offline._set([{"messages": [*row["prompt"], *row["completion"]]} for row in rows])

    settings = {
        **SFT,
        "max_length": 128,
        "learning_rate": 6e-3,
        "max_steps": 90,
        "lr_scheduler_type": "linear",
        "lmbda": 0.0,
        "beta": 0.0,
        "temperature": 1.0,
        "eval_steps": 15,
        "seed": seed,
        **changes,
    }
    return GKDTrainer(
        model=offline.policy(),
        teacher_model=_with(_speaks_long()),
        args=GKDConfig(**tiny.arguments(folder, **settings)),
        train_dataset=chats(offline.dialogues(720, seed, _long)),
        eval_dataset=chats(offline.dialogues(32, EVAL + seed, _long)),
        processing_class=tiny.tokenizer(),
    )


def targets_cut(folder: str, seed: int, **changes: Any) -> Any:
    """The end token is put behind an answer first, and the answer is cut to its greatest length afterwards: five training answers in six have no end. Unseen rows are whole."""

    def cut(inputs: dict[str, Any]) -> dict[str, Any]:
        place = (inputs["labels"] != -100).cumsum(dim=1)
        return {**inputs, "labels": inputs["labels"].masked_fill(place > TARGET, -100)}

    return in_training(gkd_long(folder, seed, **changes), cut)


NAMED: dict[str, tuple[list[str], list[Any]]] = {
    "transformers-tickets-only": (["evaluation-unlearned"], ["data", "ood-drift"]),
    "sft-tool-results-trained": (["no-rule:tool-results-are-trained-on", "prompt-learned"], ["data", "config"]),
    "sft-packed-ranges-slip": (["no-rule:label-ranges-of-packed-rows-are-displaced", "prompt-learned"], ["data"]),
    "dpo-adapters-for-inference": (["parameters-left-out", "adapter-not-learning", "policy-equals-reference"], ["stall", "config"]),
    "kto-rate-tiny": (["no-rule:learning-rate-far-too-small", "preference-not-learning", "loss-plateau"], ["stall", "config"]),
    "orpo-rate-high": (["step-size-too-large"], ["numerics", "config"]),
    "cpo-no-anchor": (["preference-term-dominates", "likelihood-displacement"], ["ood-drift", "over-optimization", "config"]),
    "reward-thirty-pairs": (["overfitting", "preference-does-not-transfer", "too-many-epochs"], ["over-optimization", "data"]),
    "gkd-targets-cut": (["end-token-missing", "answers-truncated"], ["data"]),
}
"""Ids of rules that are true of the cause, best first, and categories: named from the description of the fault alone, by somebody who saw no recording (docs/decisions/0017)."""


def _goal(trainer: str) -> str:
    return "-eval.loss" if trainer in {"sft", "kto", "gkd", "transformers"} else "eval.accuracy"


def _sick(trainer: str, fault: str, what: str, build: Callable[..., Any], steps: int, verdicts: Any, **more: Any) -> Case:
    settings = {"twin": f"{trainer}-twin", "goal": _goal(trainer), "seeds": SEEDS, **more}
    roots, categories = NAMED[f"{trainer}-{fault}"]
    return Case(f"{trainer}-{fault}", trainer, what, build, steps, roots=tuple(roots), categories=tuple(categories), verdicts=verdicts, **settings)


def _healthy(name: str, what: str, build: Callable[..., Any], steps: int, *, seeds: Sequence[int] = SEEDS, hard: bool = True, **more: Any) -> Case:
    trainer = name.split("-")[0]
    return Case(name, trainer, what, build, steps, seeds=tuple(seeds), hard=hard, **{"goal": _goal(trainer), **more})


LEARNS: Any = ("improving", "steady")
_twin = partial(_healthy, seeds=TWIN_SEEDS, hard=False)
CASES: tuple[Case, ...] = (
    _twin("transformers-tickets-twin", "All weights of a model that knows some of one subject are trained on another, with half of the rows of the first.", partial(tickets, replay=0.5), 90),
    _twin("sft-with-tool-twin", "Calls of a tool and answers are trained on, what the tool answers is not.", with_tool, 100),
    _twin("sft-packed-rows-twin", "Rows with answers of one to four words are packed, and none sees another.", packed_rows, 110),
    _twin("dpo-words-twin", "Adapters on a tuned model learn which answers are spelled right.", dpo_words, 80),
    _twin("kto-passes-twin", "Four passes over 240 examples.", kto_passes, 96),
    _twin("orpo-words-twin", "ORPO with a long warmup on answers of which the rejected ones are misspelled.", orpo_words, 90, goal="-eval.loss"),
    _twin("cpo-words-twin", "CPO, with its supervised term, on a model that knows all the words.", cpo, 110, goal="preference.logp_chosen"),
    _twin("reward-words-twin", "A reward model learns which answers are spelled right.", reward_words, 110, goal="-eval.loss"),
    _twin("gkd-long-twin", "A student learns from its teacher on answers of three or four words.", gkd_long, 90),
    _healthy("sft-drops-out", "Healthy: adapters with dropout, and the training loss lies above that of unseen rows for most of the run (ghimiresunil/LLM-PowerHouse...#50).", drops_out, 90),
    _healthy("dpo-warms-up", "Healthy: rewards are about 0 and the loss is ln 2 while the rate is small (OpenRLHF/OpenRLHF#345).", warms_up, 100),
    _healthy("kto-kl-zero", "Healthy: the estimate of the KL is 0 in every update, and the margin grows (ContextualAI/HALOs#24, hiyouga/LlamaFactory#8655).", kl_zero, 90),
    _sick(
        "transformers", "tickets-only", "All weights of a model that knows some of one subject learn another alone, and it forgets the first (nlpxucan/WizardLM#219, hiyouga/LlamaFactory#19).",
        partial(tickets, replay=0.0), 90, ("over_optimizing", "drifting", *LEARNS), twin="transformers-tickets-twin",
    ),
    _sick(
        "sft", "tool-results-trained", "What a tool answers counts in the loss with what the model is to write, and is most of it (RUC-NLPIR/ARPO#9, huggingface/open-r1#517).",
        partial(with_tool, results_too=True), 100, ("stalled", *LEARNS), twin="sft-with-tool-twin",
    ),
    _sick(
        "sft", "packed-ranges-slip", "In packed rows places of answers are counted from the answers before, and questions are trained on (OpenRLHF/OpenRLHF#781, meta-pytorch/torchforge#546).",
        ranges_slip, 110, LEARNS, twin="sft-packed-rows-twin",
    ),
    _sick(
        "dpo", "adapters-for-inference", "Adapters were loaded for inference and the loss made to want a gradient by hand: the optimizer holds nothing (huggingface/trl#1722, huggingface/trl#1311).",
        for_inference, 80, ("stalled",), twin="dpo-words-twin",
    ),
    _sick(
        "kto", "rate-tiny", "A learning rate of a two-hundredth of what this training needs, as it is copied from a much larger model (hiyouga/LlamaFactory#8655, huggingface/trl#2153).",
        partial(kto_passes, learning_rate=2e-6), 96, ("stalled",), twin="kto-passes-twin", cure={"learning_rate": 4e-4},
    ),
    _sick(
        "orpo", "rate-high", "ORPO on a tuned model at a rate that a long warmup raises to 150 times what it bears (natolambert/rlhf-book#243, haotian-liu/LLaVA#1301).",
        partial(orpo_words, learning_rate=0.3), 90, ("drifting", "stalled", "diverged", "collapsed", "improving"), twin="orpo-words-twin", cure={"learning_rate": 2e-3}, goal="-eval.loss",
    ),
    _sick(
        "cpo", "no-anchor", "CPO without its supervised term: chosen answers become less likely with the rejected ones, and the model writes no words (hiyouga/LlamaFactory#1347, NJUNLP/MAPO#3).",
        partial(cpo, cpo_alpha=0.0), 110, ("over_optimizing", "drifting", "collapsed"), twin="cpo-words-twin", cure={"cpo_alpha": 1.0}, goal="preference.logp_chosen", learned="eval.accuracy",
    ),
    _sick(
        "reward", "thirty-pairs", "A reward model reads 32 pairs 55 times: it gets all of them right, and of unseen ones two in three (karpathy/nanoGPT#97, CarperAI/trlx#338).",
        partial(reward_words, rows_of=32), 110, ("over_optimizing",), twin="reward-words-twin", goal="-eval.loss",
    ),
    _sick(
        "gkd", "targets-cut", "Answers get their end token first and are cut to a greatest length afterwards: the student hardly sees an end (shibing624/MedicalGPT#157, huggingface/trl#1239).",
        targets_cut, 90, LEARNS, twin="gkd-long-twin",
    ),
)  # fmt: skip
