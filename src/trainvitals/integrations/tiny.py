"""A real but tiny training task that needs no network and no GPU: for the demo, the clinic and a user's first experiment.

The policy is a 2-layer Qwen2 of width 64 with a byte-level tokenizer made in the process. A second of supervised training
teaches it to answer with a random word of letters and to stop. The task is then to write vowels: the reward is the share of
vowels among the characters of a finished completion. Random letters score about 0.2; GRPO reaches 0.9 and more within 150 steps of
less than 0.1 s on one CPU core.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

# TRL sends a telemetry request at every trainer's start; these runs must not touch the network.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, Qwen2Config

_CHAT = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] }}<|im_end|>{% endgeneration %}"
    "{% else %}{{ m['content'] }}<|im_end|>{% endif %}\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_WORDS = [
    "sum",
    "add",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "plus",
    "minus",
    "what",
    "is",
    "the",
    "answer",
    "good",
    "bad",
    "yes",
    "no",
    "blue",
    "red",
]
END_ID = 2  # <|im_end|>, the third special token
VOWELS = frozenset("aeiouAEIOU")
Reward = Callable[..., list[float]]
_POLICIES: dict[tuple[int, int], Any] = {}


def questions(count: int = 64) -> list[str]:
    """Short prompts, all different for up to 26 of them."""
    return [f"what is {_WORDS[i % len(_WORDS)]} plus {_WORDS[(i * 7 + 3) % len(_WORDS)]}" for i in range(count)]


def tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level tokenizer of about 260 tokens, with separate pad and end tokens, trained in the process."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=272,
        special_tokens=["<|pad|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    raw.train_from_iterator(questions(), trainer)
    result = PreTrainedTokenizerFast(
        tokenizer_object=raw,
        eos_token="<|im_end|>",
        pad_token="<|pad|>",
        model_input_names=["input_ids", "attention_mask"],  # the default adds token_type_ids, which generate() refuses
    )
    result.chat_template = _CHAT
    return result


def model(vocabulary: PreTrainedTokenizerFast, *, seed: int = 0, width: int = 64) -> Any:
    """A 2-layer Qwen2 with random weights."""
    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=len(vocabulary),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        pad_token_id=vocabulary.pad_token_id,
        eos_token_id=vocabulary.eos_token_id,
        bos_token_id=None,
    )
    result = AutoModelForCausalLM.from_config(config)
    result.generation_config.eos_token_id = vocabulary.eos_token_id
    result.generation_config.pad_token_id = vocabulary.pad_token_id
    return result


def pretrain(policy: Any, vocabulary: PreTrainedTokenizerFast, *, steps: int = 120, seed: int = 0) -> Any:
    """Teach a random model to answer any question with 3 to 9 random letters and the end token, in place.

    Without it no completion would ever end, which is a fault of its own (`never-terminates`).
    """
    random = Random(seed)
    letters = vocabulary.convert_tokens_to_ids(list("abcdefghijklmnopqrstuvwxyz"))
    contexts = [
        vocabulary.apply_chat_template([{"role": "user", "content": text}], add_generation_prompt=True, tokenize=False)
        for text in questions()
    ]
    starts = [vocabulary(text)["input_ids"] for text in contexts]
    optimizer = torch.optim.AdamW(policy.parameters(), lr=3e-3, weight_decay=0.0)
    policy.train()
    for _ in range(steps):
        rows, labels = [], []
        for _ in range(16):
            start = random.choice(starts)
            answer = [*random.choices(letters, k=random.randint(3, 9)), vocabulary.eos_token_id]
            rows.append(torch.tensor(start + answer))
            labels.append(torch.tensor([-100] * len(start) + answer))
        pad = torch.nn.utils.rnn.pad_sequence
        ids = pad(rows, batch_first=True, padding_value=vocabulary.pad_token_id)
        mask = ids != vocabulary.pad_token_id
        loss = policy(input_ids=ids, attention_mask=mask, labels=pad(labels, batch_first=True, padding_value=-100)).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return policy


def text_of(completion: Any) -> str:
    """Text of a completion, whether it is a string or a list of chat messages."""
    return completion if isinstance(completion, str) else str(completion[0]["content"])


def vowels(completions: Sequence[Any], completion_ids: Sequence[Sequence[int]] | None = None, **kwargs: Any) -> list[float]:
    """Reward of the task: share of vowels among the characters; 0 for an answer that was cut off.

    Without the second part the policy unlearns to stop, which `truncated-completions` rightly reports.
    """
    texts = [text_of(completion) for completion in completions]
    ended = [True] * len(texts) if completion_ids is None else [END_ID in ids for ids in completion_ids]
    return [sum(char in VOWELS for char in text) / max(1, len(text)) * end for text, end in zip(texts, ended, strict=True)]


def prompts(count: int = 64) -> Any:
    """The training set for online trainers, as a `datasets.Dataset` of chat prompts."""
    from datasets import Dataset

    return Dataset.from_list([{"prompt": [{"role": "user", "content": text}]} for text in questions(count)])


def dialogues(count: int = 64) -> Any:
    """A training set for supervised fine-tuning: questions with short answers."""
    from datasets import Dataset

    rows = [
        {"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": _WORDS[i % len(_WORDS)]}]}
        for i, text in enumerate(questions(count))
    ]
    return Dataset.from_list(rows)


def arguments(output_dir: str, **changes: Any) -> dict[str, Any]:
    """Training arguments that every tiny run shares; `changes` win."""
    base: dict[str, Any] = {
        "output_dir": output_dir,
        "max_steps": 150,
        "logging_steps": 1,
        "per_device_train_batch_size": 8,
        "learning_rate": 1e-3,
        "report_to": "none",
        "save_strategy": "no",
        "use_cpu": True,
        "bf16": False,  # TRL turns both on by default, which a CPU does not like
        "gradient_checkpointing": False,
        "disable_tqdm": True,
        "seed": 0,
    }
    return {**base, **changes}


def policy(vocabulary: PreTrainedTokenizerFast, *, seed: int = 0) -> Any:
    """A pretrained model, made once per process and seed and copied from then on."""
    key = (len(vocabulary), seed)
    if key not in _POLICIES:
        _POLICIES[key] = pretrain(model(vocabulary, seed=seed), vocabulary, seed=seed)
    return copy.deepcopy(_POLICIES[key])


def grpo(output_dir: str, *, reward: Reward | list[Reward] = vowels, callbacks: Sequence[Any] = (), **changes: Any) -> Any:
    """A `trl.GRPOTrainer` on the vowel task, ready to train.

    Args:
        output_dir: Where the trainer writes.
        reward: Reward function or functions.
        callbacks: Callbacks for the trainer.
        **changes: Fields of `trl.GRPOConfig` to set differently.
    """
    from trl import GRPOConfig, GRPOTrainer

    vocabulary = tokenizer()
    settings = {"num_generations": 8, "per_device_train_batch_size": 32, "max_completion_length": 16, "temperature": 1.0, **changes}
    return GRPOTrainer(
        model=policy(vocabulary),
        reward_funcs=reward,
        args=GRPOConfig(**arguments(output_dir, **settings)),
        train_dataset=prompts(),
        processing_class=vocabulary,
        callbacks=list(callbacks),
    )


def sft(output_dir: str, *, callbacks: Sequence[Any] = (), **changes: Any) -> Any:
    """A `trl.SFTTrainer` on short dialogues, ready to train; arguments as in `grpo`."""
    from trl import SFTConfig, SFTTrainer

    vocabulary = tokenizer()
    settings = arguments(output_dir, max_length=64, **changes)
    return SFTTrainer(
        model=model(vocabulary),
        args=SFTConfig(**settings),
        train_dataset=dialogues(),
        eval_dataset=dialogues(8) if settings.get("eval_strategy", "no") != "no" else None,
        processing_class=vocabulary,
        callbacks=list(callbacks),
    )
