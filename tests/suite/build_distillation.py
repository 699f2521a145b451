"""One builder for each trainer that learns from a teacher's distribution: GKD, Distillation, GOLD, IW-OPD, SDFT, SDPO, SSD.

Each is called ``name(output_dir, callbacks=(), **changes)`` and returns a trainer that is ready to train. Students answer with
3 to 9 random letters and stop; teachers prefer vowels. A trainer that this TRL does not have raises ImportError.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Sequence
from random import Random
from typing import Any

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")

import torch

from trainvitals.integrations import tiny

HINT = "use vowels"
"""Text in a prompt on which a self-teacher prefers vowels."""
_ALPHABET = "abcdefghijklmnopqrstuvwxyz"
_VOWELS = "aeiou" * 12 + _ALPHABET
"""Three letters in four are vowels: a teacher that knew no consonant would find the student's answers less likely than noise."""
_MADE: dict[str, Any] = {}


def speaker(name: str) -> Any:
    """A copy of a small model that was taught to answer: ``plain`` random letters, ``vowels`` mostly vowels, ``both`` vowels on a
    `HINT`, ``brief`` one or two letters on a `HINT`, ``loops`` one letter over and over on a `HINT`.

    All start from the same weights, so a student is near enough to its teacher to learn in a few dozen steps.
    """
    if name not in _MADE:
        vocabulary = tiny.tokenizer()
        model = tiny.model(vocabulary)
        if name in {"both", "brief"}:
            _teach(model, vocabulary, {"": _ALPHABET, f" {HINT}": _VOWELS}, steps=160, lengths=(1, 2) if name == "brief" else (3, 9))
        elif name == "loops":
            _teach(model, vocabulary, {"": _ALPHABET, f" {HINT}": "a"}, steps=160, lengths=(8, 14))
        else:
            _teach(model, vocabulary, {"": _VOWELS if name == "vowels" else _ALPHABET}, steps=120)
        _MADE[name] = model
    return copy.deepcopy(_MADE[name])


def _teach(model: Any, vocabulary: Any, answers: dict[str, str], *, steps: int, lengths: tuple[int, int] = (3, 9)) -> None:
    """Train on random answers of these letters; `lengths` are those of answers to a prompt with a suffix."""
    random = Random(0)
    rows = []
    for suffix, letters in answers.items():
        ids = vocabulary.convert_tokens_to_ids(list(letters))
        for text in tiny.questions():
            start = vocabulary.apply_chat_template([{"role": "user", "content": text + suffix}], add_generation_prompt=True, tokenize=False)
            rows.append((vocabulary(start)["input_ids"], ids, lengths if suffix else (3, 9)))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.0)
    model.train()
    for _ in range(steps):
        batch = []
        for start, ids, lengths in random.sample(rows, 16):
            answer = [*random.choices(ids, k=random.randint(*lengths)), vocabulary.eos_token_id]
            batch.append((torch.tensor(start + answer), torch.tensor([-100] * len(start) + answer)))
        pad = torch.nn.utils.rnn.pad_sequence
        ids = pad([row for row, _ in batch], batch_first=True, padding_value=vocabulary.pad_token_id)
        labels = pad([row for _, row in batch], batch_first=True, padding_value=-100)
        model(input_ids=ids, attention_mask=ids != vocabulary.pad_token_id, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()


def saved(output_dir: str, model: Any, vocabulary: Any, name: str = "start") -> str:
    """Path of the model on disk: SDFT and SDPO load their teacher from where the student came from."""
    path = f"{output_dir}/{name}"
    model.save_pretrained(path)
    vocabulary.save_pretrained(path)
    return path


def dialogues(letters: str = _VOWELS) -> Any:
    """Questions, each with an answer such as the teacher would give."""
    from datasets import Dataset

    random = Random(1)
    rows = [
        {"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": "".join(random.choices(letters, k=random.randint(3, 9)))}]}
        for text in tiny.questions()
    ]
    return Dataset.from_list(rows)


def hints(hint: str = f" {HINT}") -> Any:
    """Prompts with what the self-teacher may read and the student may not."""
    from datasets import Dataset

    return Dataset.from_list([{"prompt": [{"role": "user", "content": text}], "privileged_context": hint} for text in tiny.questions()])


def gkd(output_dir: str, *, teacher: Any = None, student: Any = None, callbacks: Sequence[Any] = (), **changes: Any) -> Any:
    """`trl.experimental.gkd.GKDTrainer`: half of the batches are written by the student."""
    from trl.experimental.gkd import GKDConfig, GKDTrainer

    settings = {"max_length": 96, "lmbda": 0.5, "max_new_tokens": 16, "temperature": 1.0, **changes}
    return _chat(GKDTrainer, GKDConfig, output_dir, teacher, student, callbacks, settings)


def gold(output_dir: str, *, teacher: Any = None, student: Any = None, callbacks: Sequence[Any] = (), **changes: Any) -> Any:
    """`trl.experimental.gold.GOLDTrainer`; with ``use_uld_loss=True`` and a saved teacher across tokenizers."""
    from trl.experimental.gold import GOLDConfig, GOLDTrainer

    settings = {"max_length": 96, "max_completion_length": 16, "lmbda": 0.5, "temperature": 1.0, **changes}
    teacher, student = _paths(output_dir, teacher, student)
    return _chat(GOLDTrainer, GOLDConfig, output_dir, teacher, student, callbacks, settings)


def iw_opd(output_dir: str, *, teacher: Any = None, student: Any = None, callbacks: Sequence[Any] = (), **changes: Any) -> Any:
    """`trl.experimental.iw_opd.IWOPDTrainer` (TRL 1.9 and later)."""
    from transformers import AutoTokenizer
    from trl.experimental.iw_opd import IWOPDConfig, IWOPDTrainer

    settings = {"max_length": 96, "max_completion_length": 16, "lmbda": 1.0, "temperature": 1.0, **changes}
    teacher, student = _paths(output_dir, teacher, student)
    # The teacher's tokenizer is loaded by the type of its model, which adds tokens: the student's has to come the same way.
    settings["vocabulary"] = AutoTokenizer.from_pretrained(student)
    return _chat(IWOPDTrainer, IWOPDConfig, output_dir, teacher, student, callbacks, settings)


def _paths(output_dir: str, teacher: Any, student: Any) -> tuple[str, str]:
    """Teacher and student on disk: GOLD and IW-OPD load the tokenizers from where the models are."""
    vocabulary = tiny.tokenizer()
    models = {"teacher": speaker("vowels") if teacher is None else teacher, "student": speaker("plain") if student is None else student}
    return tuple(saved(output_dir, model, vocabulary, name) for name, model in models.items())


def _chat(trainer: Any, config: Any, output_dir: str, teacher: Any, student: Any, callbacks: Sequence[Any], settings: dict[str, Any]) -> Any:
    vocabulary = settings.pop("vocabulary", None) or tiny.tokenizer()
    return trainer(
        model=speaker("plain") if student is None else student,
        teacher_model=speaker("vowels") if teacher is None else teacher,
        args=config(**tiny.arguments(output_dir, **settings)),
        train_dataset=dialogues(),
        processing_class=vocabulary,
        callbacks=list(callbacks),
    )


def distillation(output_dir: str, *, teacher: Any = None, student: Any = None, callbacks: Sequence[Any] = (), **changes: Any) -> Any:
    """`trl.DistillationTrainer` (TRL 1.10 and later): every sample is written by the student."""
    from trl import DistillationConfig, DistillationTrainer

    return DistillationTrainer(
        model=speaker("plain") if student is None else student,
        teacher_model=speaker("vowels") if teacher is None else teacher,
        args=DistillationConfig(**tiny.arguments(output_dir, **{"max_completion_length": 16, **changes})),
        train_dataset=tiny.prompts(),
        processing_class=tiny.tokenizer(),
        callbacks=list(callbacks),
    )


def server_distillation(output_dir: str, *, callbacks: Sequence[Any] = (), **changes: Any) -> Any:
    """`trl.experimental.server_distillation.ServerDistillationTrainer` (TRL 1.9 and later) with a model of this process as the server."""
    from trl.experimental.server_distillation import ServerDistillationConfig, ServerDistillationTrainer
    from trl.generation import vllm_client

    settings = {"max_completion_length": 16, "teacher_model_server_url": "http://localhost:1", **changes}
    kept = vllm_client.VLLMClient
    vllm_client.VLLMClient = lambda *args, **kwargs: None  # the constructor would wait for a server
    try:
        trainer = ServerDistillationTrainer(
            model=speaker("plain"),
            args=ServerDistillationConfig(**tiny.arguments(output_dir, **settings)),
            train_dataset=tiny.prompts(),
            processing_class=tiny.tokenizer(),
            callbacks=list(callbacks),
        )
    finally:
        vllm_client.VLLMClient = kept
    teacher = speaker("vowels")

    def score(inputs: dict[str, Any], prompt_length: int) -> dict[str, torch.Tensor]:
        with torch.no_grad():
            logits = teacher(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits
        logps = logits[:, prompt_length - 1 : -1].log_softmax(-1)
        top = logps.topk(1, dim=-1)
        actual = logps.gather(-1, inputs["input_ids"][:, prompt_length:].unsqueeze(-1)).squeeze(-1)
        return {"actual_logprobs": actual, "topk_logprobs": top.values, "topk_token_ids": top.indices}

    trainer._get_teacher_token_logprobs_from_server = score
    return trainer


def sdft(output_dir: str, *, student: Any = None, data: Any = None, callbacks: Sequence[Any] = (), **changes: Any) -> Any:
    """`trl.experimental.sdft.SDFTTrainer`: the teacher is the student of the start, with a hint in its prompt."""
    from trl.experimental.sdft import SDFTConfig, SDFTTrainer

    vocabulary = tiny.tokenizer()
    own = {"teacher_prompt_template": "{prompt}{privileged_context}"} if hasattr(SDFTConfig, "teacher_prompt_template") else {}
    return SDFTTrainer(
        model=saved(output_dir, speaker("both") if student is None else student, vocabulary),
        args=SDFTConfig(**tiny.arguments(output_dir, **{"max_completion_length": 24, "max_prompt_length": 96, **own, **changes})),
        train_dataset=hints() if data is None else data,
        processing_class=vocabulary,
        callbacks=list(callbacks),
    )


def sdpo(output_dir: str, *, reward: Any = tiny.vowels, data: Any = None, callbacks: Sequence[Any] = (), **changes: Any) -> Any:
    """`trl.experimental.sdpo.SDPOTrainer`: a rollout with a third of vowels is a success and goes into the teacher's prompt."""
    from trl.experimental.sdpo import SDPOConfig, SDPOTrainer

    vocabulary = tiny.tokenizer()
    settings = {
        "num_generations": 8, "per_device_train_batch_size": 16, "max_completion_length": 24, "max_prompt_length": 96,
        "success_reward_threshold": 0.34, "reprompt_template": "{prompt}{solution}{feedback}", "solution_template": f" {HINT}",
        "feedback_template": " {feedback_raw}", **changes,
    }  # fmt: skip
    return SDPOTrainer(
        model=saved(output_dir, speaker("both"), vocabulary),
        reward_funcs=reward,
        args=SDPOConfig(**tiny.arguments(output_dir, **settings)),
        train_dataset=tiny.prompts() if data is None else data,
        processing_class=vocabulary,
        callbacks=list(callbacks),
    )


def ssd(output_dir: str, *, callbacks: Sequence[Any] = (), **changes: Any) -> Any:
    """`trl.experimental.ssd.SSDTrainer` (TRL 1.2 to 1.15): cross-entropy on the student's own samples, no teacher."""
    from trl.experimental.ssd import SSDConfig, SSDTrainer

    vocabulary = tiny.tokenizer()
    return SSDTrainer(
        model=saved(output_dir, speaker("plain"), vocabulary),
        args=SSDConfig(**tiny.arguments(output_dir, **{"max_completion_length": 16, "max_prompt_length": 96, **changes})),
        train_dataset=tiny.prompts(),
        processing_class=vocabulary,
        callbacks=list(callbacks),
    )
