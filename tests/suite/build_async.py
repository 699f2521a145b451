"""Builders for the trainers that learn from a rollout queue: TRL's own AsyncGRPO and AsyncDistillation without a vLLM server.

What TRL lets its user inject is injected: the rollout worker and the weight transfer. `Sampler` is both. It holds a copy of the
model, samples with it in the trainer's own thread (so a run is the same every time), tags and scores samples as TRL's worker
does, and loads what the trainer sends. The queue, the batching, the loss, the metrics and the sync are the trainer's.

TRL 1.11 and later attends through a FlashAttention-3 kernel that needs a GPU: sdpa or a function of torch stands in for it.
"""

from __future__ import annotations

import copy
import inspect
import queue
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from trainvitals.integrations import tiny

GROUP, PER_STEP, CAP = 8, 16, 12


class Rollouts(queue.Queue):
    """The rollout queue of a `Sampler`: an empty one makes it generate, and the trainer waits for that."""

    def __init__(self, maxsize: int, generate: Callable[[], None]) -> None:
        super().__init__(maxsize)
        self._generate = generate

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        if self.empty():
            self._generate()
        return super().get(block, timeout)


class Sampler:
    """Rollout worker and weight transfer in one.

    Args:
        model: The model to sample with, a copy of the trainer's.
        vocabulary: Its tokenizer.
        reward: Reward function.
        make: Builds one sample of this TRL from its fields.
        ahead: Samples in the queue before the first step.
        per_sync: Samples added whenever the trainer announces new weights.
        maxsize: Size of the queue.
        seconds: What one group takes when the trainer has to wait for it.
        takes: ``weights``: loads what it is sent; ``nothing``: does not even look at it; ``and-forgets``: receives it and goes on as before.
        lag: Versions by which the tags of its samples are older than the weights that it was last sent.
        seed: Seed of its sampling.
        at_version: Called with each new version before samples are added, to change any of the above in the middle of a run.
    """

    def __init__(
        self, model: Any, vocabulary: Any, reward: Callable[..., list[float]], make: Callable[..., Any], *,
        ahead: int = PER_STEP, per_sync: int = PER_STEP, maxsize: int = 1024, seconds: float = 0.0, takes: str = "weights", lag: int = 0,
        seed: int = 0, at_version: Callable[[Sampler, int], None] | None = None,
    ) -> None:  # fmt: skip
        self.model, self.vocabulary, self.reward, self.make = copy.deepcopy(model).eval(), vocabulary, reward, make
        self.ahead, self.per_sync, self.seconds, self.takes, self.lag = ahead, per_sync, seconds, takes, lag
        self.rollout_buffer: queue.Queue[Any] = Rollouts(maxsize, self._when_empty)
        self.metrics_queue: queue.Queue[dict[str, Any]] = queue.Queue()
        self.version, self.groups, self.received = 0, 0, 0
        self._random, self._at_version = torch.Generator().manual_seed(seed), at_version
        self._blocked_since: float | None = None
        self._prompts = [
            vocabulary.apply_chat_template([{"role": "user", "content": text}], add_generation_prompt=True, tokenize=False)
            for text in tiny.questions()
        ]

    # ---- TRL's protocols ----

    def start(self) -> None:
        self._add(self.ahead)

    def stop(self) -> None: ...

    def check_health(self, stale_after_s: float) -> None: ...

    def init_weight_transfer(self) -> None: ...

    def pause(self) -> None: ...

    def resume(self) -> None: ...

    def destroy(self) -> None: ...

    def send_weights(self, iterator: Iterable[tuple[str, torch.Tensor]]) -> None:
        if self.takes == "nothing":
            return
        mine = dict(self.model.named_parameters())
        for name, tensor in iterator:
            self.received += 1
            if self.takes == "weights":
                mine[name].data.copy_(tensor)

    def update_model_version(self, version: int) -> None:
        began, self.version = self.version > 0, version
        if self._at_version is not None:
            self._at_version(self, version)
        if began:
            self._add(self.per_sync)

    # ---- sampling ----

    def _when_empty(self) -> None:
        time.sleep(self.seconds)
        self._add(GROUP)

    def _add(self, count: int) -> None:
        if self._blocked_since is not None:
            self.metrics_queue.put({"rollout/backpressure_s": time.monotonic() - self._blocked_since})
            self._blocked_since = None
        groups = -(-count // GROUP)
        for sample in self.sample(groups) if groups else ():
            try:
                self.rollout_buffer.put_nowait(sample)
            except queue.Full:  # TRL's worker waits; here the rest of the group is lost and the time until room is noted
                self._blocked_since = time.monotonic()
                break
        self.metrics_queue.put({"rollout/inflight": 0.0, "rollout/generated_tok_s": (float(count * CAP), 0.01)})

    def sample(self, groups: int) -> list[Any]:
        """Sample and score whole groups, all of one version."""
        order = [self._prompts[(self.groups + i) % len(self._prompts)] for i in range(groups)]
        self.groups += groups
        starts = [self.vocabulary(text)["input_ids"] for text in order for _ in range(GROUP)]
        rows, logps = self._write(starts)
        texts = [self.vocabulary.decode(row, skip_special_tokens=True) for row in rows]
        rewards = np.asarray(self.reward(completions=texts, completion_ids=rows), dtype=float).reshape(groups, GROUP)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # a group without any score has neither
            middle, spread = np.nanmean(rewards, axis=1, keepdims=True), np.nanstd(rewards, axis=1, keepdims=True)
        advantages = np.nan_to_num((rewards - middle) / (spread + 1e-8))  # without a score 0, as TRL's worker has it
        made = []
        for place, (start, row, logp) in enumerate(zip(starts, rows, logps, strict=True)):
            group, member = divmod(place, GROUP)
            reward, std = float(rewards[group, member]), float(spread[group, 0])
            made.append(
                self.make(
                    ids=start + row,
                    mask=[0] * len(start) + [1] * len(row),
                    logps=[0.0] * len(start) + logp,
                    advantage=float(advantages[group, member]),
                    version=max(0, self.version - self.lag),
                    group=self.groups - groups + group,
                    metrics={"reward": reward, "reward_std": std, f"rewards/{self.reward.__name__}": reward},
                )
            )
        return made

    @torch.no_grad()
    def _write(self, starts: list[list[int]]) -> tuple[list[list[int]], list[list[float]]]:
        pad, end, width = self.vocabulary.pad_token_id, self.vocabulary.eos_token_id, max(map(len, starts))
        ids = torch.tensor([[pad] * (width - len(start)) + start for start in starts])
        mask = (ids != pad).long()
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        chosen, scores, alive, cache = [], [], torch.ones(len(starts), dtype=torch.bool), None
        for _ in range(CAP):
            result = self.model(input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True)
            logps, cache = result.logits[:, -1].float().log_softmax(-1), result.past_key_values
            ids = torch.multinomial(logps.exp(), 1, generator=self._random)
            chosen.append(torch.where(alive, ids[:, 0], -1))
            scores.append(logps.gather(-1, ids)[:, 0])
            mask, positions = torch.cat([mask, torch.ones_like(ids)], 1), positions[:, -1:] + 1
            alive = alive & (ids[:, 0] != end)
            if not alive.any():
                break
        table, values = torch.stack(chosen, 1).tolist(), torch.stack(scores, 1).tolist()
        rows = [[token for token in row if token >= 0] for row in table]
        return rows, [value[: len(row)] for row, value in zip(rows, values, strict=True)]


def _folder(output_dir: str) -> tuple[str, Any, Any]:
    """A policy written to disk, as these trainers load it by path; its tokenizer; the policy itself."""
    vocabulary = tiny.tokenizer()
    policy = tiny.policy(vocabulary)
    path = str(Path(output_dir) / "policy")
    policy.save_pretrained(path)
    vocabulary.save_pretrained(path)
    return path, vocabulary, policy


def _arguments(output_dir: str, changes: dict[str, Any]) -> dict[str, Any]:
    return tiny.arguments(output_dir, **{"per_device_train_batch_size": PER_STEP, "max_completion_length": CAP, **changes})


def async_grpo(
    output_dir: str,
    *,
    reward: Any = tiny.vowels,
    sampler: dict[str, Any] | None = None,
    peft_config: Any = None,
    callbacks: Sequence[Any] = (),
    **changes: Any,
) -> Any:
    """`trl.experimental.async_grpo.AsyncGRPOTrainer` on the vowel task; ``trainer.rollout_worker`` is the `Sampler`.

    Args:
        output_dir: Where the trainer writes.
        reward: Reward function.
        sampler: Arguments of `Sampler`: how the worker fails.
        peft_config: Train an adapter (TRL 1.15 and later).
        callbacks: Callbacks for the trainer.
        **changes: Fields of `AsyncGRPOConfig` to set differently.

    Raises:
        ImportError: If this TRL needs a package that is not installed (aiohttp in 1.0 to 1.12) or knows no adapters.
    """
    from trl.experimental.async_grpo import AsyncGRPOConfig, AsyncGRPOTrainer
    from trl.experimental.async_grpo import async_grpo_trainer as module
    from trl.experimental.async_grpo.async_rollout_worker import RolloutSample

    _without_gpu(module)
    fields = RolloutSample.__dataclass_fields__
    listed = "group_id" not in fields  # TRL 1.0 has lists, later ones arrays

    def make(ids: list[int], mask: list[int], logps: list[float], group: int, version: int, **rest: Any) -> Any:
        own = {"group_id": group, "enqueued_at": time.time()}
        return RolloutSample(
            prompt=[{"role": "user", "content": ""}],
            completion=[{"role": "assistant", "content": ""}],
            input_ids=ids if listed else np.asarray(ids),
            completion_mask=mask if listed else np.asarray(mask),
            old_log_probs=logps if listed else np.asarray(logps, dtype=np.float32),
            model_version=version,
            **rest,
            **{name: value for name, value in own.items() if name in fields},
        )

    path, vocabulary, policy = _folder(output_dir)
    worker = Sampler(policy, vocabulary, reward, make, **(sampler or {}))
    settings = _arguments(output_dir, {"num_generations": GROUP, **changes})
    if "token_budget" in AsyncGRPOConfig.__dataclass_fields__:
        settings.setdefault("token_budget", 0)  # a fixed count of samples per micro-batch; None would ask the server
    known = inspect.signature(AsyncGRPOTrainer.__init__).parameters
    if peft_config is not None and "peft_config" not in known:
        msg = "it trains no adapters"
        raise ImportError(msg)
    transfer = {"weight_transfer": worker} if "weight_transfer" in known else {}
    return AsyncGRPOTrainer(
        model=path,
        reward_funcs=reward,
        args=AsyncGRPOConfig(**settings),
        train_dataset=tiny.prompts(),
        processing_class=vocabulary,
        callbacks=list(callbacks),
        rollout_worker=worker,
        **transfer,
        **({} if peft_config is None else {"peft_config": peft_config}),
    )


def async_distillation(
    output_dir: str, *, teacher: Any = None, sampler: dict[str, Any] | None = None, callbacks: Sequence[Any] = (), **changes: Any
) -> Any:
    """`trl.experimental.async_distillation.AsyncDistillationTrainer` (TRL 1.11 and later); arguments as in `async_grpo`.

    Args:
        teacher: The teacher, by default one that answers in vowels only.

    Raises:
        ImportError: If this TRL does not have it.
    """
    from trl.experimental.async_distillation import AsyncDistillationConfig, AsyncDistillationTrainer
    from trl.experimental.async_distillation import async_distillation_trainer as module
    from trl.experimental.async_distillation.async_rollout_worker import RolloutSample

    _without_gpu(module)
    path, vocabulary, policy = _folder(output_dir)
    teacher = vowel_teacher(policy, vocabulary) if teacher is None else teacher
    top = 8

    def make(ids: list[int], mask: list[int], logps: list[float], group: int, version: int, **rest: Any) -> Any:
        with torch.no_grad():
            scores = teacher(input_ids=torch.tensor([ids])).logits[0, :-1].float().log_softmax(-1)
        best = scores.topk(top + 1)  # position i is predicted from the tokens before it
        chosen = np.full((len(ids), top + 1), -1, dtype=np.int64)
        values = np.full((len(ids), top + 1), -np.inf, dtype=np.float32)
        newer = {"teacher_id": "default", "prompt_id": group}
        chosen[1:], values[1:] = best.indices.numpy(), best.values.numpy()
        return RolloutSample(
            prompt=[{"role": "user", "content": ""}],
            completion=[{"role": "assistant", "content": ""}],
            input_ids=np.asarray(ids),
            completion_mask=np.asarray(mask),
            teacher_topk_ids=chosen,
            teacher_topk_logprobs=values,
            model_version=version,
            metrics={},
            enqueued_at=time.time(),
            **{name: value for name, value in newer.items() if name in RolloutSample.__dataclass_fields__},
        )

    worker = Sampler(policy, vocabulary, tiny.vowels, make, **(sampler or {}))
    settings = _arguments(output_dir, {"token_budget": 0, "teacher_top_k": top, **changes})
    return AsyncDistillationTrainer(
        model=path,
        args=AsyncDistillationConfig(**settings),
        train_dataset=tiny.prompts(),
        processing_class=vocabulary,
        callbacks=list(callbacks),
        rollout_worker=worker,
        weight_transfer=worker,
    )


def vowel_teacher(policy: Any, vocabulary: Any) -> Any:
    """A copy of the policy whose head prefers vowels and the end token."""
    teacher = copy.deepcopy(policy).eval()
    wanted = [*vocabulary.convert_tokens_to_ids(list("aeiou")), vocabulary.eos_token_id]
    forward = teacher.forward

    def biased(*args: Any, **kwargs: Any) -> Any:
        result = forward(*args, **kwargs)
        result.logits[..., wanted] += 3.0
        return result

    teacher.forward = biased
    return teacher


def _without_gpu(module: Any) -> None:
    """Replace what asks for a GPU or a server: the device's peak FLOP/s, the server's client (never used here), the attention kernel."""
    if hasattr(module, "get_peak_flops_per_device"):
        module.get_peak_flops_per_device = lambda *args, **kwargs: None
    if hasattr(module, "VLLMClient"):
        module.VLLMClient = lambda *args, **kwargs: None  # TRL 1.16 wants `requests` for it
    if hasattr(module, "AutoModelForCausalLM"):  # rows told apart by positions alone: transformers' sdpa can do that too
        module.AutoModelForCausalLM = SimpleNamespace(from_pretrained=_with_sdpa)
    try:
        from trl.experimental.async_grpo import packing
    except ImportError:
        return
    packing._flash_attn = lambda: _Attention


def _with_sdpa(path: str, **kwargs: Any) -> Any:
    return AutoModelForCausalLM.from_pretrained(path, **{**kwargs, "attn_implementation": "sdpa"})


class _Attention:
    @staticmethod
    def flash_attn_varlen_func(
        q: Any, k: Any, v: Any, starts_q: Any, starts_k: Any, longest_q: Any, longest_k: Any, softmax_scale: float, causal: bool = True,
        window_size: Any = None, **kwargs: Any,
    ) -> Any:  # fmt: skip
        """Attention of variable-length segments, the last query at the last key, as flash-attn 3 defines it."""
        repeat = q.shape[1] // k.shape[1]
        k, v = k.repeat_interleave(repeat, 1), v.repeat_interleave(repeat, 1)
        parts = []
        for place in range(len(starts_q) - 1):
            mine = q[starts_q[place] : starts_q[place + 1]]
            keys, values = k[starts_k[place] : starts_k[place + 1]], v[starts_k[place] : starts_k[place + 1]]
            hidden = torch.arange(len(keys))[None, :] > torch.arange(len(mine))[:, None] + len(keys) - len(mine)
            scores = torch.einsum("qhd,khd->hqk", mine, keys) * softmax_scale
            parts.append(torch.einsum("hqk,khd->qhd", scores.masked_fill(hidden, float("-inf")).softmax(-1), values))
        return torch.cat(parts)
