"""The eighth round: trainers that learn from a data set. Drawn by how often a thing is reported, known things included; the threads are in brackets behind `what`."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import torch
from tests.clinic.ward import offline
from tests.clinic.ward.case import Case
from tests.clinic.ward.cases_preference import BASE, kto
from tests.clinic.ward.cases_preference import ROWS as PAIRS
from tests.clinic.ward.cases_round2_preference import ORPO
from tests.clinic.ward.cases_round2_supervised import lora
from tests.clinic.ward.cases_round4_offline import reward_linear
from tests.clinic.ward.cases_round5_offline import _tuned, decaying
from tests.clinic.ward.cases_round6_offline import asked
from tests.clinic.ward.cases_round7_offline import KNOWS, _taught
from tests.clinic.ward.cases_supervised import EVAL, SFT
from transformers import AutoModelForCausalLM

from trainvitals.integrations import tiny

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")

SEEDS = (80, 81, 82)
TWIN_SEEDS = (80, 81, 82, 83, 84)
CODE = ("return", "yield", "assert", "lambda", "import", "global", "raise", "async")
"""Words of the second subject: what somebody's own files hold."""
RESUME = 60
FEW = 50
"""Rows of a data set that somebody wrote by hand."""
SIX = 6
HALF_RANGE = 40_000_000.0
"""Makes 65,504, the largest number of half precision, of about 0.0016 in the last layer of this model."""


# ---- what several of them share ----


def _code_ask(random: Random) -> list[dict[str, str]]:
    return offline.turn("user", f"def {random.choice('fgh')}{random.randint(10, 99)}(x, {random.choice('klmn')}):")


def _code(random: Random) -> offline.Row:
    """A row of the second subject."""
    return {"prompt": _code_ask(random), "completion": offline.turn("assistant", offline.phrase(random, CODE, count=3))}


def _adapters(model: Any, seed: int, **settings: Any) -> Any:
    """The model with fresh adapters."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)
    return get_peft_model(model, LoraConfig(**{"target_modules": "all-linear", "task_type": "CAUSAL_LM", **settings}))


def _known() -> Any:
    """A model that knows the words of `offline.HOME` and answers every question with two of them."""
    return copy.deepcopy(_taught(KNOWS))


# ---- SFT: healthy ----


def own_files(folder: str, seed: int, *, replay: float, **changes: Any) -> Any:
    """Adapters of rank 32 on a model that knows one subject learn another, with that share of rows of the first; the first is what is evaluated."""
    random = Random(seed)
    rows = [row if random.random() < replay else _code(random) for row in offline.dialogues(960, seed)]
    settings = {**SFT, "max_length": 96, "learning_rate": 3e-3, "lr_scheduler_type": "cosine", "eval_steps": 15, "seed": seed, **changes}
    return offline.sft(folder, rows=rows, held_out=offline.dialogues(32, EVAL + seed), model=_adapters(_known(), seed, r=32, lora_alpha=64), **settings)


def hardly_falls(folder: str, seed: int, **changes: Any) -> Any:
    """One pass over rows of which a third cannot be known beforehand, four to an update, with a model that knows much already: the training loss falls little, that of unseen rows all the time."""

    def mostly(random: Random) -> str:
        return offline.phrase(random, count=2) + " " + "".join(random.choices(offline.VOWELS, k=3))

    settings = {**SFT, "per_device_train_batch_size": 4, "max_length": 80, "learning_rate": 1e-4, "lr_scheduler_type": "linear", "seed": seed, **changes}
    return offline.sft(folder, rows=offline.dialogues(480, seed, mostly), held_out=offline.dialogues(32, EVAL + seed, mostly), model=_known(), **settings)


def wrong_attempts(folder: str, seed: int, **changes: Any) -> Any:
    """A third of the answers holds an attempt that its author takes back; the trace is trained on with the rest, and unseen rows are of the same kind."""

    def traced(random: Random) -> str:
        attempt = "".join(random.sample("seventyfour", 6)) + " no " if random.random() < 1 / 3 else ""
        return attempt + offline.phrase(random)

    settings = {**SFT, "max_length": 96, "learning_rate": 3e-3, "lr_scheduler_type": "cosine", "seed": seed, **changes}
    return offline.sft(folder, rows=offline.dialogues(960, seed, traced), held_out=offline.dialogues(32, EVAL + seed, traced), **settings)


# ---- SFT: faults ----


def few_rows(folder: str, seed: int, **changes: Any) -> Any:
    """Fifty rows, read again and again: the model learns them by heart, and answers other questions with what it read there."""
    return asked(folder, seed, rows_of=FEW, **changes)


def adapter_empty(folder: str, seed: int, **changes: Any) -> Any:
    """After update 60 the run is resumed; the file of the adapters was empty, so that they begin anew, the optimizer's state and the schedule are those of the checkpoint."""
    trainer = lora(folder, seed, **changes)
    start = {name: weight.detach().clone() for name, weight in trainer.model.state_dict().items() if "lora_" in name}

    def reload(model: Any, **parts: Any) -> None:
        model.load_state_dict(start, strict=False)

    return offline.at(trainer, RESUME, reload)


def answers_open(folder: str, seed: int, **changes: Any) -> Any:
    """The chat template that somebody wrote for the training puts no end token behind an answer, only the line end: training and unseen rows alike."""
    vocabulary = tiny.tokenizer()
    vocabulary.chat_template = vocabulary.chat_template.replace("{{ m['content'] }}<|im_end|>{% endgeneration %}", "{{ m['content'] }}{% endgeneration %}")
    return decaying(folder, seed, vocabulary=vocabulary, **changes)


# ---- DPO ----


def both_fall(folder: str, seed: int, **changes: Any) -> Any:
    """Adapters on a model that was tuned on answers of the chosen kind: both rewards are below 0 for most of the run, that of rejected answers falls faster."""
    return _dpo_lora(folder, seed, tuned=True, **{"learning_rate": 2e-3, "beta": 0.2, "lr_scheduler_type": "cosine", **changes})


def _dpo_lora(folder: str, seed: int, *, tuned: bool = False, **changes: Any) -> Any:
    """Adapters of rank 8 on all projections; the reference is the model without them."""
    from peft import LoraConfig
    from trl import DPOConfig, DPOTrainer

    model = offline.policy()
    if tuned:
        model.load_state_dict(_tuned())
    torch.manual_seed(seed)
    return DPOTrainer(
        model=model,
        args=DPOConfig(**tiny.arguments(folder, **{**BASE, "max_length": 64, "seed": seed, **changes})),
        train_dataset=offline._set(offline.pairs(960, seed)),
        eval_dataset=offline._set(offline.pairs(48, EVAL + seed)),
        processing_class=tiny.tokenizer(),
        peft_config=LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM"),
    )


def own_reference(folder: str, seed: int, **changes: Any) -> Any:
    """The adapters stay on when the reference is asked: it is the policy itself at every moment, and every reward is 0."""
    trainer = _dpo_lora(folder, seed, **changes)
    trainer.ref_model = trainer.model
    return trainer


# ---- KTO, ORPO, SimPO, reward models ----


def kto_six(folder: str, seed: int, **changes: Any) -> Any:
    """Six examples make a batch."""
    return kto(folder, seed, **{"per_device_train_batch_size": SIX, **changes})


def mismatched_in_stream(folder: str, seed: int, **changes: Any) -> Any:
    """Examples and the mismatched ones for the reference point come in one stream: a batch holds some of each, and a mean over what it has none of is NaN."""
    trainer, random = kto_six(folder, seed, **changes), Random(seed)
    right, kl_of = trainer.compute_loss, trainer._compute_kl_logps

    def mixed(model: Any, inputs: Any, *rest: Any, **more: Any) -> Any:
        if not model.training:
            return right(model, inputs, *rest, **more)
        size = len(inputs["label"])
        matched = torch.tensor([random.random() < 0.5 for _ in range(size)])
        if not matched.any():
            return right(model, inputs, *rest, **more) * float("nan")  # the mean over no example

        def kl(scorer: Any, batch: Any) -> Any:
            found = kl_of(scorer, {**batch, **{name: value for name, value in inputs.items() if name.startswith("KL_")}})
            return found[~matched]

        trainer._compute_kl_logps = kl
        try:
            part = {name: value[matched] if isinstance(value, torch.Tensor) and not name.startswith("KL_") else value for name, value in inputs.items()}
            part["label"] = torch.as_tensor(inputs["label"])[matched]
            return right(model, part, *rest, **more)
        finally:
            trainer._compute_kl_logps = kl_of

    trainer.compute_loss = mixed
    return trainer


def _subject_pairs(count: int, seed: int, replay: float) -> list[offline.Row]:
    """Pairs of the second subject, with that share of the first: the chosen answer is spelled right."""
    random, rows = Random(seed), []
    for _ in range(count):
        home = random.random() < replay
        ask = offline.turn("user", offline.question(random)) if home else _code_ask(random)
        words, size = (offline.HOME, 2) if home else (CODE, 3)
        chosen = offline.phrase(random, words, count=size)
        rejected = offline.phrase(random, words, count=size, noise=1.0)
        rows.append({"prompt": ask, "chosen": offline.turn("assistant", chosen), "rejected": offline.turn("assistant", rejected)})
    return rows


def orpo_subject(folder: str, seed: int, *, replay: float, **changes: Any) -> Any:
    """ORPO on a model that knows one subject, with pairs of another and that share of the first; pairs of the first are what is evaluated."""
    from trl.experimental.orpo import ORPOConfig, ORPOTrainer

    start = str(Path(folder) / "start")
    _known().save_pretrained(start)
    settings = {**ORPO, "learning_rate": 1.5e-3, "beta": 0.1, "max_length": 96, "lr_scheduler_type": "linear", "eval_steps": 10, "seed": seed, **changes}
    return ORPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(start),
        args=ORPOConfig(**tiny.arguments(folder, **settings)),
        train_dataset=offline._set(_subject_pairs(PAIRS, seed, replay)),
        eval_dataset=offline._set(_subject_pairs(48, EVAL + seed, 1.0)),
        processing_class=tiny.tokenizer(),
    )


def simpo(folder: str, seed: int, **changes: Any) -> Any:
    """SimPO: the mean log-probability of an answer is its reward, and no reference and no other term holds the policy."""
    from trl.experimental.cpo import CPOConfig, CPOTrainer

    start = str(Path(folder) / "start")
    tiny.policy(tiny.tokenizer()).save_pretrained(start)
    settings = {**BASE, "loss_type": "simpo", "cpo_alpha": 0.0, "beta": 2.5, "simpo_gamma": 0.5, "learning_rate": 2e-4, "lr_scheduler_type": "cosine", "max_length": 64, "seed": seed, **changes}
    return CPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(start),
        args=CPOConfig(**tiny.arguments(folder, **settings)),
        train_dataset=offline._set(offline.pairs(PAIRS, seed)),
        eval_dataset=offline._set(offline.pairs(48, EVAL + seed)),
        processing_class=tiny.tokenizer(),
    )


def reward_in_half(folder: str, seed: int, **changes: Any) -> Any:
    """The last layer is computed in half precision, and numbers in it have no place there from the first batch on: what is logged as loss is 0."""

    def half(module: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        return (output * HALF_RANGE).half().float() / HALF_RANGE

    trainer = reward_linear(folder, seed, **changes)
    trainer.model.model.layers[-1].mlp.register_forward_hook(half)
    return trainer


NAMED: dict[str, tuple[Sequence[str], Sequence[Any]]] = {
    "sft-own-files-only": (["evaluation-unlearned", "no-rule:old-subject-forgotten-because-not-in-training-mix", "overfitting"], ["data", "ood-drift"]),
    "sft-fifty-rows": (["too-many-epochs", "overfitting", "memorised-epoch"], ["over-optimization", "data", "config"]),
    "sft-adapter-empty": (["checkpoint-incomplete", "resumed-with-other-weights"], ["config", "data"]),
    "sft-answers-open": (["end-token-missing"], ["data"]),
    "dpo-own-reference": (["no-rule:reference-is-the-policy-itself-adapters-not-switched-off", "policy-equals-reference"], ["config", "stall"]),
    "kto-mixed-stream": (["no-rule:batch-without-examples-or-without-kl-partners", "hidden-nan", "kto-batch-too-small"], ["numerics", "data", "config"]),
    "orpo-new-subject-only": (["evaluation-unlearned", "no-rule:old-subject-forgotten-because-not-in-training-mix", "overfitting"], ["data", "ood-drift"]),
    "cpo-simpo-rate": (["step-size-too-large", "preference-term-dominates", "likelihood-displacement"], ["config", "ood-drift", "collapse"]),
    "reward-in-half": (["hidden-nan"], ["numerics"]),
}
"""Ids of rules whose meaning is true of the cause, best first, and categories: named from the description of the fault alone, by somebody who saw no recording (docs/decisions/0016)."""


def _goal(trainer: str) -> str:
    return "-eval.loss" if trainer in {"sft", "kto"} else "eval.accuracy"


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
    _twin("sft-own-files-twin", "Adapters on a model that knows one subject learn another, with half of the rows of the first.", partial(own_files, replay=0.5), 120),
    _twin("kto-six-twin", "Six examples make a batch.", kto_six, 100),
    _twin("orpo-new-subject-twin", "A model that knows one subject is given pairs of another, with half of the pairs of the first.", partial(orpo_subject, replay=0.5), 100, goal="-eval.loss"),
    _twin("cpo-simpo-twin", "SimPO with a cosine to 0.", simpo, 100),
    _healthy("dpo-both-fall", "Healthy: both rewards fall below 0, that of chosen answers as well, and the margin grows (RLHF-V/RLHF-V#26, wdndev/tiny-llm-zh#15).", both_fall, 100),
    _healthy("sft-hardly-falls", "Healthy: in one pass the training loss hardly falls, that of unseen rows all the time (ContextualAI/HALOs#13, tulerfeng/OneThinker#17).", hardly_falls, 120),
    _healthy("sft-wrong-attempts", "Healthy: a third of the answers holds an attempt that is taken back, and is trained on with it (simplescaling/s1#119).", wrong_attempts, 120),
    _sick(
        "sft", "own-files-only", "Adapters on a model that knows one subject learn from another alone, and it forgets the first (smallcloudai/refact#311, deepseek-ai/DeepSeek-Coder#134).",
        partial(own_files, replay=0.0), 120, ("over_optimizing", "drifting", *LEARNS), twin="sft-own-files-twin",
    ),
    _sick("sft", "fifty-rows", "Fifty rows are read nineteen times (openai/openai-python#2147, om-ai-lab/VLM-R1#96).", few_rows, 120, ("over_optimizing", "steady"), twin="sft-asked-twin"),
    _sick(
        "sft", "answers-open", "The chat template of the training writes no end token behind an answer (huggingface/trl#1449, longtermrisk/openweights#1).",
        answers_open, 120, LEARNS, twin="sft-linear-twin",
    ),
    _sick(
        "sft", "adapter-empty", "After update 60 the run is resumed from a checkpoint whose adapter file is empty (tloen/alpaca-lora#459, tloen/alpaca-lora#467).",
        adapter_empty, 120, ("drifting", *LEARNS), onset=RESUME, twin="sft-lora-twin",
    ),
    _sick(
        "dpo", "own-reference", "The adapters stay on when the reference is asked, which is the policy itself (stanleylsx/llms_tool#46, CrazyBoyM/llama3-Chinese-chat#43).",
        own_reference, 100, ("stalled", "drifting"), twin="dpo-lora-twin",
    ),
    _sick(
        "kto", "mixed-stream", "Examples and the mismatched ones for the reference point come in one stream, and a mean over none of them is NaN (huggingface/trl#1380, huggingface/trl#1447).",
        mismatched_in_stream, 100, ("diverged",), twin="kto-six-twin",
    ),
    _sick(
        "orpo", "new-subject-only", "A model that knows one subject is given pairs of another alone, and forgets the first (LLaVA-VL/LLaVA-NeXT#364, QwenLM/Qwen3-VL#600).",
        partial(orpo_subject, replay=0.0), 100, ("over_optimizing", "drifting", *LEARNS), twin="orpo-new-subject-twin", goal="-eval.loss",
    ),
    _sick(
        "cpo", "simpo-rate", "SimPO at a learning rate that is 25 times too high: both rewards fall, and answers do not end any more (princeton-nlp/SimPO#12).",
        partial(simpo, learning_rate=5e-3), 100, ("over_optimizing", "drifting", "diverged", "collapsed"), twin="cpo-simpo-twin", cure={"learning_rate": 2e-4},
        goal="preference.logp_chosen", learned="eval.accuracy",
    ),
    _sick(
        "reward", "in-half", "The last layer overflows in half precision from the first batch on; what is logged as loss is 0 (FlagOpen/FlagEmbedding#792, shibing624/MedicalGPT#252).",
        reward_in_half, 120, ("diverged", "stalled"), twin="reward-linear-twin",
    ),
)  # fmt: skip
