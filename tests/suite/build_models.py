"""Builders of tiny trainers on unusual models: low-rank adapters, 4-bit weights, mixtures of experts."""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from transformers import AutoModelForCausalLM, MixtralConfig, Qwen3MoeConfig
from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer

from trainvitals.integrations import tiny
from trainvitals.integrations.moe import routers_of

HAS_BITSANDBYTES = importlib.util.find_spec("bitsandbytes") is not None
_MIXTURES: dict[tuple[str, int, int, int], Any] = {}


def lora(rank: int = 4, **changes: Any) -> LoraConfig:
    """An adapter on every linear layer, on the scale (alpha = 2r) that PEFT's examples use."""
    settings: dict[str, Any] = {"r": rank, "lora_alpha": 2 * rank, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
    return LoraConfig(**{**settings, **changes})


def mixture(vocabulary: Any, kind: str = "qwen3_moe", *, experts: int = 4, top_k: int = 2, steps: int = 80) -> Any:
    """A 2-layer mixture of experts of width 64, pretrained for `steps`, made once per process and copied from then on."""
    key = (kind, experts, top_k, steps)
    if key not in _MIXTURES:
        torch.manual_seed(0)
        shared: dict[str, Any] = {
            "vocab_size": len(vocabulary), "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
            "num_key_value_heads": 2, "max_position_embeddings": 512, "tie_word_embeddings": True, "num_experts_per_tok": top_k,
            "pad_token_id": vocabulary.pad_token_id, "eos_token_id": vocabulary.eos_token_id, "bos_token_id": None,
            "output_router_logits": True, "router_aux_loss_coef": 0.01, "head_dim": 16,
        }  # fmt: skip
        if kind == "mixtral":
            config: Any = MixtralConfig(**shared, num_local_experts=experts)
        else:
            config = Qwen3MoeConfig(**shared, num_experts=experts, moe_intermediate_size=64, norm_topk_prob=True)
        model = AutoModelForCausalLM.from_config(config)
        model.generation_config.eos_token_id = vocabulary.eos_token_id
        model.generation_config.pad_token_id = vocabulary.pad_token_id
        _MIXTURES[key] = _balanced(tiny.pretrain(model, vocabulary, steps=steps), vocabulary)
    return copy.deepcopy(_MIXTURES[key])


def _balanced(model: Any, vocabulary: Any) -> Any:
    """Give every router, one layer after the other, weights that split the tokens evenly, as long pretraining does.

    A young router sends nearly all tokens to the same experts, since all hidden states point the same way. Here experts lie in pairs
    along the main directions in which the hidden states *differ*, at right angles to their mean.
    """
    texts = [vocabulary.apply_chat_template(row["messages"], tokenize=False) for row in tiny.dialogues()]
    batch = vocabulary(texts, return_tensors="pt", padding=True)
    real = batch["attention_mask"].reshape(-1).bool()
    for router in routers_of(model):
        inputs: list[torch.Tensor] = []
        handle = router.module.register_forward_pre_hook(lambda module, args, into=inputs: into.append(args[0].detach()))
        with torch.no_grad():
            model(**batch)
            handle.remove()
            hidden = inputs[0].reshape(-1, inputs[0].shape[-1])[real]
            center = hidden.mean(0)
            spread = hidden - center
            spread = spread - torch.outer(spread @ center, center) / center.square().sum()
            directions = torch.linalg.svd(spread, full_matrices=False).Vh[: (router.experts + 1) // 2]
            directions = directions / (spread @ directions.T).std(0).unsqueeze(1)  # logits of unit variance
            router.module.weight.copy_(torch.cat([directions, -directions])[: router.experts])
    return model


def quantised(vocabulary: Any, folder: Path) -> Any:
    """The tiny policy with its linear layers in 4 bits (NF4), on the CPU; needs bitsandbytes."""
    from transformers import BitsAndBytesConfig

    tiny.policy(vocabulary).save_pretrained(folder)
    four_bits = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
    return AutoModelForCausalLM.from_pretrained(folder, quantization_config=four_bits, device_map={"": "cpu"}, dtype=torch.float32)


def pairs(count: int = 64) -> Any:
    """Preference pairs: a short answer against another one."""
    from datasets import Dataset

    texts = tiny.questions(count)
    return Dataset.from_list([
        {
            "prompt": [{"role": "user", "content": text}],
            "chosen": [{"role": "assistant", "content": "yes " + text[8:12]}],
            "rejected": [{"role": "assistant", "content": "no " + text[-4:]}],
        }
        for text in texts
    ])  # fmt: skip


def sft(output_dir: str, *, model: Any = None, peft: Any = None, callbacks: Sequence[Any] = (), **changes: Any) -> Any:
    """SFT on short dialogues; without `model` the tiny policy."""
    vocabulary = tiny.tokenizer()
    return SFTTrainer(
        model=tiny.policy(vocabulary) if model is None else model,
        args=SFTConfig(**tiny.arguments(output_dir, **{"max_length": 64, **changes})),
        train_dataset=tiny.dialogues(),
        processing_class=vocabulary,
        callbacks=list(callbacks),
        peft_config=peft,
    )


def grpo(
    output_dir: str,
    *,
    model: Any = None,
    peft: Any = None,
    callbacks: Sequence[Any] = (),
    reward: Any = tiny.vowels,
    **changes: Any,
) -> Any:
    """GRPO on the vowel task; without `model` the tiny policy."""
    vocabulary = tiny.tokenizer()
    if model is not None and hasattr(model.config, "output_router_logits"):
        model.config.output_router_logits = False  # generate() of transformers fails with it; TRL asks for them in the loss itself
    settings = {"num_generations": 8, "per_device_train_batch_size": 32, "max_completion_length": 16, "temperature": 1.0, **changes}
    return GRPOTrainer(
        model=tiny.policy(vocabulary) if model is None else model,
        reward_funcs=reward,
        args=GRPOConfig(**tiny.arguments(output_dir, **settings)),
        train_dataset=tiny.prompts(),
        processing_class=vocabulary,
        callbacks=list(callbacks),
        peft_config=peft,
    )


def dpo(output_dir: str, *, model: Any = None, peft: Any = None, callbacks: Sequence[Any] = (), **changes: Any) -> Any:
    """DPO on short pairs; without `model` the tiny policy."""
    vocabulary = tiny.tokenizer()
    return DPOTrainer(
        model=tiny.policy(vocabulary) if model is None else model,
        args=DPOConfig(**tiny.arguments(output_dir, **{"max_length": 64, **changes})),
        train_dataset=pairs(),
        processing_class=vocabulary,
        callbacks=list(callbacks),
        peft_config=peft,
    )
