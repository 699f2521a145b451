"""Advice: from a rule's suggestions to typed parameter changes that are safe to apply.

A rule says what to change and by what formula; this module decides what may come out: the value stays inside `PARAMETERS`,
integers stay integers, TRL's divisibility of the generation batch holds, the effective batch does not grow unseen, and
whether a change works on a running trainer comes from `LIVE`, not from the author of the rule.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from trainvitals.findings import Action, Change, Scalar
from trainvitals.rulelang.expr import Expr
from trainvitals.rulelang.model import Also, Suggest

Evaluate = Callable[[Expr], Any]
"""Value of an expression at this moment; None when it is unknown."""


@dataclass(frozen=True, slots=True)
class Parameter:
    """What is known about one training parameter.

    Attributes:
        kind: Type of its value.
        low: Smallest sensible value; None for words and flags.
        high: Largest sensible value.
        scale: How far apart two values feel: an agent should walk a ``log`` parameter by factors.
        changes_objective: True when another value optimises for something else, so that two runs no longer compare.
    """

    kind: Literal["float", "int", "bool", "string"]
    low: float | None = None
    high: float | None = None
    scale: Literal["linear", "log"] = "linear"
    changes_objective: bool = False


def _float(low: float, high: float, scale: Literal["linear", "log"] = "linear", objective: bool = False) -> Parameter:
    return Parameter("float", low, high, scale, objective)


def _int(low: int, high: int, scale: Literal["linear", "log"] = "linear", objective: bool = False) -> Parameter:
    return Parameter("int", low, high, scale, objective)


PARAMETERS: Mapping[str, Parameter] = {
    # optimisation
    "learning_rate": _float(1e-9, 1.0, "log"),  # SGD and tiny models take a tenth and more
    "max_grad_norm": _float(1e-3, 100.0, "log"),
    "weight_decay": _float(0.0, 1.0),
    "warmup_steps": _int(0, 100_000),
    "warmup_ratio": _float(0.0, 0.5),
    "lr_scheduler_type": Parameter("string"),
    "optim": Parameter("string"),
    "adam_beta1": _float(0.0, 0.999),
    "adam_beta2": _float(0.5, 0.9999),
    "adam_epsilon": _float(1e-15, 1e-3, "log"),
    "num_train_epochs": _float(0.01, 1000.0),
    "max_steps": _int(-1, 100_000_000),
    "bf16": Parameter("bool"),
    "fp16": Parameter("bool"),
    # batch: the product of these two and the number of ranks is the effective batch
    "per_device_train_batch_size": _int(1, 4096, "log"),
    "gradient_accumulation_steps": _int(1, 4096, "log"),
    "generation_batch_size": _int(1, 1_000_000, "log"),
    "steps_per_generation": _int(1, 1024, "log"),
    "gradient_checkpointing": Parameter("bool"),
    # policy optimisation
    "num_generations": _int(2, 256, "log"),
    "num_iterations": _int(1, 64),
    "beta": _float(0.0, 10.0, "log", objective=True),
    "epsilon": _float(0.01, 0.9),
    "epsilon_high": _float(0.01, 5.0),
    "delta": _float(1.0, 100.0, "log"),
    "cliprange": _float(0.01, 0.9),
    "cliprange_value": _float(0.01, 10.0),
    "kl_coef": _float(0.0, 10.0, "log", objective=True),
    "vf_coef": _float(0.0, 10.0),
    "gamma": _float(0.0, 1.0, objective=True),
    "lam": _float(0.0, 1.0),
    "num_ppo_epochs": _int(1, 64),
    "entropy_coef": _float(0.0, 1.0, "log", objective=True),
    "use_adaptive_entropy": Parameter("bool", changes_objective=True),
    "loss_type": Parameter("string", changes_objective=True),
    "scale_rewards": Parameter("string", changes_objective=True),
    "whiten_rewards": Parameter("bool", changes_objective=True),
    "normalize_advantages": Parameter("bool", changes_objective=True),
    "importance_sampling_level": Parameter("string"),
    "top_entropy_quantile": _float(0.01, 1.0),
    "off_policy_mask_threshold": _float(0.0, 100.0),
    "mask_truncated_completions": Parameter("bool"),
    "sync_ref_model": Parameter("bool", changes_objective=True),
    "ref_model_sync_steps": _int(1, 1_000_000, "log"),
    "ref_model_mixup_alpha": _float(0.0, 1.0),
    # sampling
    "temperature": _float(0.05, 2.0),
    "top_p": _float(0.05, 1.0),
    "top_k": _int(0, 1_000_000),
    "min_p": _float(0.0, 1.0),
    "repetition_penalty": _float(1.0, 2.0),
    "max_completion_length": _int(8, 1_000_000, "log", objective=True),
    "max_prompt_length": _int(8, 1_000_000, "log", objective=True),
    "max_length": _int(8, 1_000_000, "log", objective=True),
    "max_new_tokens": _int(8, 1_000_000, "log", objective=True),
    "response_length": _int(8, 1_000_000, "log", objective=True),
    "vllm_gpu_memory_utilization": _float(0.05, 0.95),
    "vllm_importance_sampling_correction": Parameter("bool"),
    "vllm_importance_sampling_cap": _float(1.0, 100.0),
    "vllm_importance_sampling_clip_max": _float(1.0, 100.0),
    "max_staleness": _int(0, 1000),
    "max_inflight_tasks": _int(1, 1_000_000, "log"),
    "use_vllm": Parameter("bool"),
    "use_bias_correction_kl": Parameter("bool", changes_objective=True),
    "disable_dropout": Parameter("bool"),
    "success_reward_threshold": _float(-1e9, 1e9, objective=True),
    "teacher_update_rate": _float(0.0, 1.0, objective=True),
    "distillation_alpha": _float(0.0, 1.0, objective=True),
    "weight_sync_steps": _int(1, 1000),
    # preference, supervised
    "label_smoothing": _float(0.0, 0.5),
    "desirable_weight": _float(0.01, 100.0, "log", objective=True),
    "undesirable_weight": _float(0.01, 100.0, "log", objective=True),
    "rpo_alpha": _float(0.0, 10.0, objective=True),
    "cpo_alpha": _float(0.0, 100.0, "log", objective=True),
    "center_rewards_coefficient": _float(0.0, 1.0, "log", objective=True),
    "packing": Parameter("bool"),
    "assistant_only_loss": Parameter("bool", changes_objective=True),
    "completion_only_loss": Parameter("bool", changes_objective=True),
    "neftune_noise_alpha": _float(0.0, 50.0),
    "lmbda": _float(0.0, 1.0, objective=True),
    # observation and plumbing
    "logging_steps": _int(1, 100_000),
    "eval_steps": _int(1, 1_000_000),
    "save_steps": _int(1, 1_000_000),
    "save_only_model": Parameter("bool"),
    "dataloader_num_workers": _int(0, 64),
    "dataloader_pin_memory": Parameter("bool"),
    "dataloader_prefetch_factor": _int(1, 64),
    "torch_empty_cache_steps": _int(1, 100_000),
    "logging_nan_inf_filter": Parameter("bool"),
    "router_aux_loss_coef": _float(0.0, 1.0, "log", objective=True),
}
"""Every parameter a suggestion may set, under its native (TRL, transformers) name. Bounds are sanity limits, not optima."""

LIVE: Mapping[tuple[str, str, str], str] = {
    ("trl", "grpo", "beta"): "trainer.beta is read at every step; only if it was above 0 at start, else no reference model exists",
    ("trl", "grpo", "epsilon_high"): "trainer.epsilon_high is read at every step",
    ("trl", "dpo", "beta"): "trainer.beta is read at every step",
    ("trl", "any", "learning_rate"): "set both optimizer.param_groups[*]['lr'] and lr_scheduler.base_lrs: the scheduler undoes the first alone",
    ("transformers", "any", "learning_rate"): "set both optimizer.param_groups[*]['lr'] and lr_scheduler.base_lrs: the scheduler undoes the first alone",
    ("torch", "any", "learning_rate"): "set optimizer.param_groups[*]['lr'], and base_lrs of a scheduler if there is one",
}
"""(framework, trainer, parameter) -> how to change it on a running trainer. Read in TRL 1.16.0 (GRPO `_compute_loss`, DPO
`_compute_loss`). What is not listed needs a restart: sampling settings such as `temperature` are baked in at construction."""

BATCH = ("per_device_train_batch_size", "gradient_accumulation_steps")
GROUPED_TRAINERS = frozenset({"grpo", "rloo", "async_grpo"})


@dataclass(frozen=True, slots=True)
class Context:
    """What advice must know about the run.

    Attributes:
        config: Parameters under their native names.
        trainer: Kind of trainer.
        framework: Who trains.
        world_size: Ranks.
        rate: Learning rate of the newest update; None when it is unknown.
    """

    config: Mapping[str, Any]
    trainer: str = "unknown"
    framework: str = "unknown"
    world_size: int = 1
    rate: float | None = None


def how_to_apply(parameter: str, context: Context) -> tuple[Literal["live", "restart", "manual"], str | None]:
    """Whether a change of `parameter` works on the running trainer, and how."""
    if parameter not in PARAMETERS:
        return "manual", None
    note = LIVE.get((context.framework, context.trainer, parameter)) or LIVE.get((context.framework, "any", parameter))
    if note is None or (parameter == "beta" and not _positive(context.config.get("beta"))):
        return "restart", None
    return "live", note


def advise(
    suggests: Sequence[Suggest],
    evaluate: Evaluate,
    context: Context,
    *,
    finding_id: str,
    verify: str | None = None,
    within_updates: int | None = None,
    skip: Iterable[str] = (),
) -> list[Action]:
    """Turn a rule's suggestions into actions, in the rule's order.

    Args:
        suggests: From the rule.
        evaluate: Gives the value of an expression now.
        context: Configuration and framework of the run.
        finding_id: Prefix of action ids.
        verify: Text of the rule's `expect`, checked after the change.
        within_updates: In how many updates `verify` should hold.
        skip: Parameters that were changed on this rule's advice already.

    Returns:
        Actions. A change to the present value, to an unknown value or of a parameter in `skip` is left out.
    """
    actions: list[Action] = []
    taken = set(skip)
    for suggest in suggests:
        if suggest.condition is not None and evaluate(suggest.condition) is not True:
            continue
        action_id = f"{finding_id}-{len(actions) + 1}"
        if suggest.set is None:
            actions.append(Action(action_id=action_id, type="inspect", apply="manual", text=suggest.inspect, why=suggest.why, costs=suggest.costs))
        elif suggest.set not in taken:
            action = _change(suggest, evaluate, context, action_id, verify, within_updates)
            if action is not None:
                actions.append(action)
                taken.add(suggest.set)
    return actions


def _change(
    suggest: Suggest, evaluate: Evaluate, context: Context, action_id: str, verify: str | None, within_updates: int | None
) -> Action | None:
    parameter = suggest.set
    assert parameter is not None
    old = present(parameter, context)
    wanted = bounded(parameter, evaluate(suggest.to)) if suggest.to is not None else None
    if wanted is None:
        return None
    also = {change.parameter: change for change in (_also(part, evaluate, context) for part in suggest.also) if change is not None}
    wanted = _divisible(parameter, old, wanted, also, context)
    if wanted is None or same(old, wanted):
        return None
    costs = _keep_batch(parameter, old, wanted, also, context)
    spec = PARAMETERS.get(parameter, Parameter("string"))
    apply, note = how_to_apply(parameter, context)
    if apply == "live" and any(how_to_apply(name, context)[0] != "live" for name in also):
        apply, note = "restart", None
    predicts = {signal: number(evaluate(expr)) for signal, expr in suggest.predicts.items()}
    return Action.model_validate(
        {
            "action_id": action_id,
            "parameter": parameter,
            "from": old,
            "to": wanted,
            "bounds": None if spec.low is None or spec.high is None else [spec.low, spec.high],
            "apply": apply,
            "also": [change for change in also.values() if not same(change.from_, change.to)],
            "changes_objective": bool(suggest.objective) or spec.changes_objective or costs is not None,
            "predicts": {signal: value for signal, value in predicts.items() if value is not None},
            "verify": verify,
            "within_updates": within_updates,
            "why": suggest.why or None,
            "costs": "; ".join(part for part in (suggest.costs, costs) if part) or None,
            "text": note,
        }
    )


def present(parameter: str, context: Context) -> Scalar:
    """The value in effect: as configured, but for a learning rate that no schedule makes of it.

    Schedules warm up to the configured rate and decay from it (transformers `optimization`): a rate above it, or of exactly 0 when advice
    on it is asked for, comes from a scheduler with other numbers, and to set the configured one is then a change.
    """
    configured = scalar(context.config.get(parameter))
    peak, rate = number(configured), context.rate
    if parameter == "learning_rate" and peak is not None and rate is not None and (rate == 0 or rate > 1.001 * peak):
        return float(f"{rate:.4g}")
    return configured


def _also(part: Also, evaluate: Evaluate, context: Context) -> Change | None:
    to = bounded(part.set, evaluate(part.to))
    if to is None:
        return None
    return Change.model_validate({"parameter": part.set, "from": scalar(context.config.get(part.set)), "to": to, "why": part.why or None})


def bounded(parameter: str, value: Any) -> Scalar:
    """The value inside the parameter's bounds and of its type; None when it has none.

    Floats are rounded to four significant digits: nobody sets a learning rate of 4.7342e-06.
    """
    spec = PARAMETERS.get(parameter)
    if value is None or spec is None:
        return scalar(value)
    if spec.kind in {"bool", "string"}:
        return value if isinstance(value, bool | str) else None
    plain = number(value)
    if plain is None:
        return None
    assert spec.low is not None
    assert spec.high is not None
    clamped = min(max(plain, spec.low), spec.high)
    return round(clamped) if spec.kind == "int" else float(f"{clamped:.4g}")


def _divisible(parameter: str, old: Scalar, wanted: Scalar, also: dict[str, Change], context: Context) -> Scalar:
    """The value nearest to `wanted`, on the way from `old`, with which the trainer would start; None when there is none.

    GRPO and RLOO refuse a generation batch that does not hold whole groups (TRL 1.16 `GRPOConfig.__post_init__`).
    """
    involved = {parameter, *also} & {*BATCH, "num_generations", "steps_per_generation", "generation_batch_size"}
    if context.trainer not in GROUPED_TRAINERS or not involved or not isinstance(wanted, int) or isinstance(wanted, bool):
        return wanted
    changes = {name: change.to for name, change in also.items()}
    if not whole_groups({}, context):
        return wanted  # the configuration we know does not start either: it is incomplete, so do not judge by it
    if not isinstance(old, int):
        return wanted if whole_groups({**changes, parameter: wanted}, context) else None
    step = -1 if wanted > old else 1
    for candidate in range(wanted, old, step)[:100_000]:
        trial = {**changes, parameter: candidate}
        if parameter in BATCH and not also:
            trial.update({name: to for name, to in (_partner(parameter, old, candidate, context),) if to is not None})
        if whole_groups(trial, context):
            return candidate
    return None


def whole_groups(changes: Mapping[str, Scalar], context: Context) -> bool:
    """Whether a generation batch holds whole groups after `changes`; True when a size is unknown.

    Generation batch = per-device batch x ranks x steps per generation (the accumulation steps unless set apart).
    """

    def size(name: str) -> int | None:
        value = changes.get(name, context.config.get(name))
        return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None

    group, batch, accumulation = size("num_generations"), size(BATCH[0]), size(BATCH[1])
    per_generation = size("steps_per_generation")
    # TRL fills steps_per_generation with the accumulation steps; a recorded value equal to them follows them.
    if per_generation is None or per_generation == context.config.get(BATCH[1]):
        per_generation = accumulation
    if group is None or batch is None or per_generation is None:
        return True
    return batch * context.world_size * per_generation % group == 0


def _partner(parameter: str, old: Scalar, new: Scalar, context: Context) -> tuple[str, int | None]:
    """The other half of the effective batch, and its value that keeps the product; None when no integer does."""
    other = BATCH[1] if parameter == BATCH[0] else BATCH[0]
    present = context.config.get(other)
    if not isinstance(present, int) or not isinstance(old, int) or not isinstance(new, int) or new <= 0:
        return other, None
    product = present * old
    return other, product // new if product % new == 0 and product >= new else None


def _keep_batch(parameter: str, old: Scalar, wanted: Scalar, also: dict[str, Change], context: Context) -> str | None:
    """Add the change that keeps batch x accumulation x ranks; where none can, say by how much the effective batch moves."""
    if parameter not in BATCH:
        return None
    other, kept = _partner(parameter, old, wanted, context)
    present = context.config.get(other)
    if other not in also and kept is not None and kept != present and whole_groups({parameter: wanted, other: kept}, context):
        also[other] = Change.model_validate({"parameter": other, "from": present, "to": kept, "why": "keeps the effective batch"})
    after = also[other].to if other in also else present
    if not all(isinstance(part, int) for part in (old, present, wanted, after)):
        return None
    before = old * present * context.world_size  # type: ignore[operator]
    now = wanted * after * context.world_size  # type: ignore[operator]
    return None if before == now else f"effective batch changes from {before} to {now}"


def opposed(first: Action, second: Action) -> bool:
    """Whether two actions move one parameter in opposite directions (or to different words)."""
    if first.parameter is None or first.parameter != second.parameter or same(first.to, second.to):
        return False
    start, one, two = number(first.from_), number(first.to), number(second.to)
    if start is None or one is None or two is None:
        return True
    return (one - start) * (two - start) < 0


def mark_conflicts(actions: Sequence[Action], open_actions: Iterable[Action]) -> list[Action]:
    """`actions` with the ids of open actions that contradict them; the open ones are nearer the root cause and lead."""
    others = list(open_actions)
    marked = []
    for action in actions:
        against = [other.action_id for other in others if other.action_id != action.action_id and opposed(action, other)]
        marked.append(action.model_copy(update={"conflicts_with": against}) if against else action)
    return marked


def same(left: Scalar, right: Scalar) -> bool:
    """Equal as values of a parameter: 1 and 1.0 are, true and 1 are not, rounding noise is not a difference."""
    if isinstance(left, bool) or isinstance(right, bool) or isinstance(left, str) or isinstance(right, str):
        return left is right or (type(left) is type(right) and left == right)
    if left is None or right is None:
        return left is right
    return math.isclose(left, right, rel_tol=1e-6, abs_tol=1e-15)


def number(value: Any) -> float | None:
    """`value` as a finite number, or None."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def scalar(value: Any) -> Scalar:
    """`value` if a record can hold it, else None."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, bool | int | float | str) else None


def _positive(value: Any) -> bool:
    plain = number(value)
    return plain is not None and plain > 0
