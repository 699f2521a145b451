"""What can be known about a run before its first step: kind of trainer, configuration, and which signals can come."""

from __future__ import annotations

import math
import os
import re
from typing import Any

from trainvitals.events import CATALOGUE
from trainvitals.integrations import distillation, ppo, sampling
from trainvitals.integrations.families import FAMILIES
from trainvitals.integrations.grpo import clip_range
from trainvitals.integrations.housekeeping import LINUX
from trainvitals.integrations.model_facts import judge_settings, model_settings
from trainvitals.integrations.update_size import ROUGH
from trainvitals.items import RunStart

_KINDS = {
    "grpo": "grpo", "rloo": "rloo", "ppo": "ppo", "asyncgrpo": "async_grpo", "onlinedpo": "online_dpo", "sft": "sft", "axolotl": "sft",
    "dpo": "dpo", "kto": "kto", "orpo": "orpo", "cpo": "cpo", "reward": "reward", "gkd": "gkd", "gold": "gkd", "iwopd": "gkd", "ssd": "sdft",
    "distillation": "distillation", "asyncdistillation": "distillation", "sdft": "sdft", "sdpo": "sdpo", "gmpo": "grpo",
    "minillm": "distillation", "gfpo": "grpo", "dppo": "grpo", "papo": "grpo", "nashmd": "nash_md", "xpo": "xpo", "bco": "bco", "tpo": "tpo", "a2po": "a2po",
}  # fmt: skip
_SECRET = re.compile(r"(^|_)(token|secret|password|passwd|credentials?|api_?key|access_?key|private_?key)$", re.IGNORECASE)
_NOT_SECRET = re.compile(r"^(pad|eos|bos|unk|sep|cls|mask|think_end)_token$")

GPU_ONLY = frozenset(name for name in CATALOGUE if name.startswith(("memory.vram", "device.")))
"""Signals that need a CUDA device."""

PROBED = frozenset({"eval.score_fall", "eval.fall_chance", "eval.proxy_gain", "eval.unearned_fraction", "eval.length_mean", "eval.seconds"})
"""Signals that only `heldout.HeldoutProbe` gives."""

RETAINED = frozenset({"eval.unlearned"})
"""Signals that only `retention.RetentionProbe` gives."""

HOOKED = frozenset({"optim.loss_raw", "time.data_wait_seconds"}).union(PROBED, RETAINED, *(family.SIGNALS for family in FAMILIES if family is not ppo))
"""Signals that only a hook on the trainer gives: absent unless one that works promises them (`Hooks.gives`).
What PPO's hooks give, other trainers log (`_UNLESS_HOOKED`)."""

_NEVER = frozenset(
    {"memory.host_rss_bytes", "time.tokens_per_second", "data.prompt_length_mean", "data.prompt_length_max", "time.samples_per_second"}
)  # fmt: skip
# Signals that these callbacks do not compute and that no supported trainer logs, but for those in `_LOGGED` and `_QUEUED`.


OPTIMIZER = frozenset({"optim.left_out_fraction", "optim.never_reached_fraction", "optim.state_restored_fraction", "optim.resumed_differing_fraction"})
"""Signals about which parameters the optimizer holds: not where a rank sees shards."""

CHECKPOINT = frozenset({"run.checkpoint_missing_fraction", "run.checkpoint_differing_fraction"})
"""Signals about what a checkpoint holds: not of shards."""

_UNLESS_HOOKED = {
    "ppo": ppo.SIGNALS | {  # its loop logs no gradients, clips none and reads no batches through the base class
        "optim.grad_norm", "optim.clipped_step", "optim.update_ratio", "optim.update_lost_fraction", "optim.moved_outside_ratio", "optim.trainable_fraction", *OPTIMIZER, "run.tokens_seen", "completion.terminated_length_mean",
        "completion.distinct_fraction", "completion.tool_call_rate", "completion.tool_failure_fraction", "reward.component_mean",
        "reward.component_std", "reward.unscored_fraction",
    },
    "online_dpo": {"reward.component_mean", "reward.component_std"},
    **distillation.LOGGED_BY_NONE,
    "a2po": sampling.SINGLES,
    "rloo": sampling.PENALTY | {"completion.tool_call_rate", "completion.tool_failure_fraction"},
}  # fmt: skip
# Signals that other trainers log and this one does not: they come only if a hook promises them.
_SIDES = frozenset({"policy.clip_fraction_low", "policy.clip_fraction_high"})
_RANGE = _SIDES | {"policy.clip_fraction", "policy.clip_low", "policy.clip_high"}
_NO_CLIP = {"cispo": _SIDES, "sapo": _RANGE, "vespo": _RANGE, "dppo": _RANGE}
# What TRL does not log with losses that clip on one side only or not at all.
_QUEUED = frozenset({"time.tokens_per_second", "data.padding_fraction"})  # of trainers that read their samples from a queue
_LOGGED = {"ppo": frozenset({"policy.ratio_mean", "time.samples_per_second"})}
# Signals that need a hook with other trainers and that this one logs.


def trainer_kind(owner: object) -> str:
    """Kind of trainer (``grpo``, ``sft``, ...) from the name of its class or of its arguments' class, or of a parent's.

    Only a label for messages and rules' `applies_to`; what a number means is decided by its metric name.
    """
    for cls in type(owner).__mro__:
        name = re.sub(r"^_*Unsloth(?=\w+(Config|Trainer)$)", "", cls.__name__)  # its classes are copies that inherit from none of TRL's
        stem = re.sub(r"(Config|Trainer|TrainingArguments)$", "", name).lower()
        if stem in _KINDS:
            return _KINDS[stem]
    return "unknown"


def framework_of(owner: object) -> tuple[str, str | None]:
    """``("trl", version)`` when a parent class of `owner` comes from TRL, else ``("transformers", version)``."""
    import importlib.metadata

    name = "trl" if any(cls.__module__.split(".")[0] == "trl" for cls in type(owner).__mro__) else "transformers"
    try:
        return name, importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return name, None


def config_of(args: Any) -> dict[str, Any]:
    """Scalars of the training arguments under their native names; secrets and non-finite numbers left out."""
    config: dict[str, Any] = {}
    for name, value in sorted(vars(args).items()):
        if name.startswith("_") or (_SECRET.search(name) and not _NOT_SECRET.search(name)):
            continue
        if hasattr(value, "value") and not isinstance(value, (int, float)):
            value = value.value  # enums: eval_strategy, lr_scheduler_type, ...
        if isinstance(value, bool | int | str) or (isinstance(value, float) and math.isfinite(value)):
            config[name] = value
    return config


def sharded(args: Any) -> bool:
    """True under FSDP and DeepSpeed: a rank sees shards of weights and gradients, and their norm would need a collective."""
    return bool(getattr(args, "deepspeed", None) or getattr(args, "fsdp", None))


def emitted(args: Any, trainer: str, *, cuda: bool, hooks: frozenset[str], gradients: bool = True) -> frozenset[str]:
    """Signals that can come in this run; every other one is *absent* for the rules.

    Args:
        args: Training arguments.
        trainer: Kind of trainer.
        cuda: Whether the model trains on a CUDA device.
        hooks: Signals that the hooks promise (`Hooks.gives`).
        gradients: Whether gradients can be read at all (not when they are sharded).
    """
    names = {spec.name for spec in CATALOGUE.values() if trainer == "unknown" or {"any", trainer} & set(spec.emitters)}
    names -= _NEVER
    names -= frozenset() if cuda else GPU_ONLY
    names -= frozenset() if LINUX else {"memory.host_private_bytes", "memory.host_available_bytes"}
    names -= HOOKED - hooks
    names -= _UNLESS_HOOKED.get(trainer, frozenset()) - hooks
    names |= _LOGGED.get(trainer, frozenset())
    if trainer == "ppo":
        names -= {"time.data_wait_seconds"}  # the method that would be timed exists and is never called
    if sharded(args) or trainer == "ppo":
        names -= CHECKPOINT
    if sharded(args):
        names -= {"optim.update_ratio", "optim.update_lost_fraction", "optim.moved_outside_ratio", "optim.trainable_fraction", *OPTIMIZER}
    if not gradients:
        names -= {"optim.grad_norm_step", "optim.nonfinite_grads", "optim.trainable_with_grad", "optim.clipped_step"}
    if getattr(args, "beta", None) == 0 and trainer in {"grpo", "rloo"}:
        names -= {"policy.kl_ref", *sampling.PENALTY}  # TRL loads no reference model then
    names -= _NO_CLIP.get("dppo" if hasattr(args, "divergence_type") else str(getattr(args, "loss_type", "")), frozenset())
    if not getattr(args, "use_vllm", True):
        names -= {name for name in CATALOGUE if name.startswith("sampler.")}
    if str(getattr(getattr(args, "eval_strategy", "no"), "value", "no")) == "no":
        names -= {"time.evaluating_fraction", *(name for name in CATALOGUE if name.startswith("eval."))}
    if str(getattr(getattr(args, "save_strategy", "no"), "value", "no")) == "no":
        names -= {"run.checkpoint_room", "time.saving_fraction", *CHECKPOINT}
    queued = trainer == "async_grpo" or any(name.startswith("rollout.") for name in hooks)
    names |= _QUEUED if queued else frozenset()
    if not queued:
        names -= {name for name in CATALOGUE if name.startswith("rollout.")}
    if not (getattr(args, "max_grad_norm", None) or 0) > 0:
        names -= {"optim.clipped_step"}
    return frozenset(names)


def known_at_start(args: Any, trainer: Any) -> dict[str, float]:
    """Signals that are settings: how often is logged, the cap on completions, the clip range."""
    values = {"run.logging_every": max(1.0, float(args.logging_steps))} if args.logging_steps >= 1 else {}
    if hasattr(args, "max_completion_length") and args.max_completion_length:
        values["completion.length_cap"] = float(args.max_completion_length)
    bounds = clip_range(trainer) if hasattr(trainer, "epsilon_low") else None
    if bounds is not None:
        values["policy.clip_low"], values["policy.clip_high"] = bounds
    return values


RUNNING, PROMISED = "_vitals_running", "_vitals_promised"
"""Attributes on the control object, which all callbacks of a trainer share: our callback, and signals that others promise it."""


def promise(control: Any, signals: frozenset[str]) -> None:
    """Note on `control` that a callback of ours will publish these signals, beside what others have promised."""
    vars(control)[PROMISED] = vars(control).get(PROMISED, frozenset()) | signals


def promised(trainer: Any, control: Any) -> frozenset[str]:
    """Signals that other callbacks of ours will publish: they say so in ``promises``, or on `control` when `trainer` is None."""
    callbacks = [] if trainer is None else trainer.callback_handler.callbacks
    return frozenset(vars(control).get(PROMISED, ())).union(*(getattr(callback, "promises", ()) for callback in callbacks))


def run_start(
    args: Any, *, owner: object, cuda: bool, hooks: frozenset[str], total_steps: int, time: float, gradients: bool, model: Any = None
) -> RunStart:
    """First event of a run under a transformers or TRL trainer.

    Args:
        owner: The trainer, or its arguments where the trainer is not known.
        model: The model, for the settings of it that rules ask about; None when it is not known.
    """
    kind = trainer_kind(owner)
    emits = emitted(args, kind, cuda=cuda, hooks=hooks, gradients=gradients)
    functions = getattr(owner, "reward_funcs", None)  # XPO and Nash-MD hold their one reward model itself
    if functions is not None and (not isinstance(functions, list | tuple) or len(functions) == 1):
        emits -= {"reward.component_share"}  # with one reward function there is nothing to share
    if model is not None and not any(p.requires_grad and p.dtype in ROUGH for p in model.parameters()):
        emits -= {"optim.update_lost_fraction"}  # float32 loses nothing
    if hasattr(owner, "filter_empty"):
        emits -= {"distill.divergence", "distill.logp_gap"}  # SSD has no teacher
    if hasattr(owner, "tools") and not owner.tools:
        emits -= {"completion.tool_call_rate", "completion.tool_failure_fraction"}
    framework, version = framework_of(owner)
    output = os.path.abspath(str(args.output_dir))
    return RunStart(
        run_id=str(getattr(args, "run_name", None) or os.path.basename(output) or "run"),
        trainer=kind,
        framework=framework,
        framework_version=version,
        config={**config_of(args), **model_settings(model, None if owner is args else owner), **judge_settings(owner, model)},
        total_steps=total_steps if total_steps > 0 else None,
        world_size=int(getattr(args, "world_size", 1)),
        rank=int(getattr(args, "process_index", 0)),
        time=time,
        emits=emits,
    )
