"""What rules ask about the model itself, before its first step. Each setting is missing where it is not known, or not so."""

from __future__ import annotations

import re
from typing import Any

from trainvitals.integrations.moe import routers_of

_ATTENTION = re.compile(r"attn|attention", re.IGNORECASE)
_MLP = re.compile(r"(^|[._])(mlp|feed_?forward|ffn|fc\d?|dense_h_to_4h)([._]|$)", re.IGNORECASE)


def model_settings(model: Any, trainer: Any = None) -> dict[str, Any]:
    """Settings of the model, for the configuration of a run.

    ``model_vocab_size``: tokens that a language model can write, from its own configuration. ``model_peft``: true where PEFT decides
    what is trained (adapters, prompts). Those of `lora_settings` and `mixture_settings`.

    Args:
        trainer: The trainer, where it is known: TRL's decide themselves about the auxiliary loss of mixtures.
    """
    text: Any = getattr(model, "config", None)
    text = text.get_text_config() if hasattr(text, "get_text_config") else text  # a model of images and text keeps it inside
    size = getattr(text, "vocab_size", None)
    settings: dict[str, Any] = {"model_vocab_size": size} if isinstance(size, int) and size > 0 else {}
    if hasattr(model, "peft_config"):
        settings.update({"model_peft": True, **(lora_settings(model) if hasattr(model, "named_modules") else {})})
    if trainer is not None and isinstance(getattr(text, "router_aux_loss_coef", None), float | int):
        settings.update(mixture_settings(model, text, trainer))
    return settings


def lora_settings(model: Any) -> dict[str, Any]:
    """``model_lora_attention_only``: whether a dense model has layers beside its attention and none of them is adapted."""
    adapted = [name for name, module in model.named_modules() if hasattr(module, "lora_A")]
    others = any(_MLP.search(name) for name, _ in model.named_modules())
    # The experts of a mixture are not what an adapter is usually put on.
    return {"model_lora_attention_only": all(_ATTENTION.search(name) for name in adapted)} if adapted and others and not routers_of(model) else {}


def mixture_settings(model: Any, text: Any, trainer: Any) -> dict[str, Any]:
    """``model_aux_loss``: whether the balancing loss is in the loss; ``model_aux_coef``: its coefficient. Not where the routers are frozen."""
    if not any(p.requires_grad for router in routers_of(model) for p in router.module.parameters()):
        return {}
    coef = getattr(trainer, "router_aux_loss_coef", None)
    enabled = getattr(trainer, "aux_loss_enabled", None)  # TRL asks for the routers' scores in each call where it is True
    return {
        "model_aux_loss": bool(getattr(text, "output_router_logits", False) if enabled is None else enabled),
        "model_aux_coef": float(text.router_aux_loss_coef if coef is None else coef),
    }


def judge_settings(owner: object, model: Any) -> dict[str, Any]:
    """``model_judge_is_policy``: whether a reward model is the policy itself or was loaded from where the policy came from.

    Its score head is new then, with random weights. Not told of trainers without rewards; a model that was made in the process has no origin.
    """
    functions = getattr(owner, "reward_funcs", None)
    found = [*(functions if isinstance(functions, list | tuple) else [functions]), getattr(owner, "reward_model", None)]
    found = [one for one in found if one is not None]
    if model is None or not found:
        return {}
    home = _origin(model)
    return {"model_judge_is_policy": any(one is model or (bool(home) and _origin(one) == home) for one in found if hasattr(one, "parameters"))}


def _origin(model: Any) -> str:
    return str(getattr(getattr(model, "config", None), "_name_or_path", "") or "")
