"""`HeldoutProbe`: a second opinion on the policy where a run has no evaluation.

::

    from trainvitals import HeldoutProbe, attach

    attach(trainer)
    trainer.add_callback(HeldoutProbe(strict_checker, held_out_prompts, every=50))

Every so many updates the current policy answers the same prompts and a checker that is *not* the training reward scores the
answers. The numbers come as ``eval.*``: when the training reward rises while they fall, `proxy-divergence` says so.

Training goes on exactly as without the probe: modes and random states are put back, no tensor of the trainer is written.
"""

from __future__ import annotations

import asyncio
import inspect
import math
import random
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from transformers import GenerationConfig, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from trainvitals.integrations import full_marks
from trainvitals.integrations.attention import for_padded_rows
from trainvitals.integrations.facts import PROBED, PROMISED, RUNNING
from trainvitals.integrations.full_marks import Marks
from trainvitals.integrations.transformers import VitalsCallback, notice

Prompt = str | list[dict[str, Any]]
_LENGTH_NAMES = ("max_completion_length", "response_length", "max_new_tokens")  # GRPO and RLOO, PPO, OnlineDPO
_PARTS = frozenset({"DTensor"})
_FIRST = 5
"""Updates whose mean reward stands for the beginning. One alone is noisy, and rewards rise within tens."""
_COSTLY = 0.25
"""Share of the time between two evaluations above which the user is told once. A choice, not a measurement."""


class HeldoutProbe(TrainerCallback):
    """Generates with the current policy on a fixed set of prompts and publishes the scores of a checker of your own.

    Needs a `VitalsCallback` in the same trainer (`attach` adds one). Rank 0 generates alone; the other ranks wait for it in their
    next collective, so one evaluation must be shorter than the timeout of the process group. Where rank 0 does not hold the whole
    model (FSDP, ZeRO-3, tensor parallelism) the probe switches itself off with one notice.

    Args:
        reward_func: Scores completions, with TRL's signature: called with ``prompts``, ``completions``, ``completion_ids``,
            the other columns of `prompts` and ``trainer_state``, returns one number or None per completion; may be async.
            Use something the training does not optimise: stricter, slower, or of another kind.
        prompts: 64 are enough for a test with power, 16 are not. Strings, chats, or rows (dicts, a `datasets.Dataset`) with ``prompt`` and
            whatever other columns `reward_func` takes.
        every: Updates between two evaluations; there is one before the first update and one after the last as well.
        max_new_tokens: Cap of a completion; None takes the trainer's own, or 64.
        sample: Draw from the policy at temperature 1, as training does. False decodes greedily: that shows only the likeliest
            answer, which can change for all prompts at once, and for the worse while the policy gets better.
        seed: For `sample`: the same at each evaluation, so that differences come from the policy.
        batch_size: Prompts per generation.

    Attributes:
        history: ``(step, values)`` of each evaluation; the last 1,000.
        off: True once the probe has switched itself off.
    """

    promises = frozenset({"eval.score"}) | PROBED
    """Signals that this callback publishes."""

    def __init__(
        self,
        reward_func: Callable[..., Any],
        prompts: Iterable[Any],
        *,
        every: int = 50,
        max_new_tokens: int | None = None,
        sample: bool = True,
        seed: int = 0,
        batch_size: int = 16,
    ) -> None:
        rows = [dict(item) if isinstance(item, dict) else {"prompt": item} for item in prompts]
        if not rows or not all("prompt" in row for row in rows):
            msg = "prompts: at least one string, chat, or row with a column 'prompt' is needed"
            raise ValueError(msg)
        if every < 1 or batch_size < 1:
            msg = "every and batch_size must be at least 1"
            raise ValueError(msg)
        self.reward_func, self.every, self.max_new_tokens = reward_func, every, max_new_tokens
        self.sample, self.seed, self.batch_size = sample, seed, batch_size
        self.history: list[tuple[int, dict[str, float]]] = []
        self.off = False
        self._rows = rows
        self._told: set[str] = set()
        self._start()

    def _start(self) -> None:
        self._falls = Falls()
        self._last = -1  # step of the newest evaluation
        self._begins = False  # the loop of PPO never says that a step begins
        self._vitals: VitalsCallback | None = None
        self._given: Any = None
        self._seen: dict[str, float] = {}
        self._ended: float | None = None
        self._marks = Marks()

    # ---- when ----

    def on_init_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Tell a `VitalsCallback` that starts before us and knows no trainer what will come."""
        vars(control)[PROMISED] = self.promises

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Start anew; `auto_find_batch_size` begins a training several times."""
        vars(control)[PROMISED] = self.promises
        self._start()

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Evaluate after every `every` updates, here and not at their end: then the last one is closed, logged and saved."""
        self._begins = True
        self._read_reward()
        if state.global_step % self.every == 0:
            self._evaluate(args, state, control, kwargs)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Remember to evaluate at the end of training, with what is at hand now; in PPO's loop evaluate here."""
        if self.off or not state.is_world_process_zero:
            return
        if not self._begins:
            self._read_reward()
        vitals = self._watching(control)
        if vitals is None:
            return
        if not self._begins and state.global_step % self.every == 0:
            vitals.at_close.append(lambda: self._evaluate(args, state, control, kwargs))
            if vitals.closed >= state.global_step:  # it comes before us
                vitals.at_close.pop()()
        self._given = args, control, {name: kwargs.get(name) for name in ("model", "processing_class", "tokenizer")}
        if self._at_end not in vitals.at_train_end:
            vitals.at_train_end.append(self._at_end)

    def _at_end(self, state: TrainerState) -> None:
        args, control, given = self._given
        self._evaluate(args, state, control, given)

    def _read_reward(self) -> None:
        latest = {} if self._vitals is None else self._vitals.latest
        if latest is not self._seen:  # each step once: a step that is not closed yet is read at the next
            self._seen = latest
            self._falls.train(latest.get("reward.mean", math.nan))

    def _watching(self, control: TrainerControl) -> VitalsCallback | None:
        """The callback that publishes; a notice when there is none, since nobody would see the scores."""
        if self._vitals is None:
            self._vitals = vars(control).get(RUNNING)
            if self._vitals is None:
                self._switch_off("there is no VitalsCallback in this trainer to publish to: call attach(trainer)")
            else:
                self._vitals.scored.wanted = len(self._rows)
                run = getattr(self._vitals.monitor, "run", None)
                if run is not None and run.emits is not None and "eval.score" not in run.emits:
                    self._tell("order", "add HeldoutProbe before VitalsCallback, or use attach(trainer): no rule expects its scores now.")
        return None if self._vitals is None or self._vitals.off else self._vitals

    def _switch_off(self, why: str) -> None:
        self.off = True
        notice(f"HeldoutProbe switched off: {why}. Training goes on.")

    def _tell(self, what: str, text: str) -> None:
        if what not in self._told:
            self._told.add(what)
            notice(f"HeldoutProbe: {text}")

    # ---- one evaluation ----

    def _evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, given: dict[str, Any]) -> None:
        if self.off or not state.is_world_process_zero or state.global_step == self._last:
            return
        try:
            model, tokenizer = policy_of(given.get("model")), tokenizer_of(given)
            vitals = self._watching(control)
            why = why_not(model, tokenizer, args)
            if why is not None:
                self._switch_off(why)
            if self.off or vitals is None:
                return
            began, self._last = time.perf_counter(), state.global_step
            with vitals.evaluating() as values:
                self._read_reward()
                try:
                    values.update(self._values(model, tokenizer, args, state))
                    values["eval.seconds"] = time.perf_counter() - began
                except Exception as error:
                    self._switch_off(f"the evaluation raised {type(error).__name__}: {error}")
            self.history = [*self.history[-999:], (state.global_step, dict(values))]
            self._watch_cost(began)
        except Exception as error:
            self._switch_off(f"{type(error).__name__}: {error}")

    def _watch_cost(self, began: float) -> None:
        now = time.perf_counter()
        if self._ended is not None and now - began > _COSTLY * (now - self._ended) and now - began > 1:
            share = (now - began) / (now - self._ended)
            self._tell("cost", f"an evaluation takes {now - began:.1f} s, {share:.0%} of the time: raise every, or ask less.")
        self._ended = now

    def _values(self, model: Any, tokenizer: Any, args: TrainingArguments, state: TrainerState) -> dict[str, float]:
        limit = self.max_new_tokens or next((int(n) for name in _LENGTH_NAMES if (n := getattr(args, name, None))), 64)
        with _apart(model, self.seed):
            ids = self._generate(model, tokenizer, limit)
            values = {"eval.length_mean": sum(map(len, ids)) / len(ids)}
            try:
                scores = self._scores(tokenizer, ids, state)
            except Exception as error:
                self._tell("reward", f"the reward function raised {type(error).__name__}: {error}. Scores are missing; training goes on.")
                return values
        known = [score for score in scores if score is not None]
        if known:
            values["eval.score"] = sum(known) / len(known)  # a NaN stays one
            values.update(self._falls.add(scores, values["eval.score"]))
        self._marks.see(scores)
        with _apart(model, self.seed):
            values.update(self._full_marks(state))
        return values

    def _full_marks(self, state: TrainerState) -> dict[str, float]:
        """What the checker says of training's own answers that earned the most. It may know nothing of those prompts: then it may raise, and nothing is said."""
        vitals = self._vitals
        if vitals is None:
            return {}
        try:
            share = full_marks.ask(vitals.scored, vitals.seen.high, [*self._rows[0]], self._marks, lambda given: self._ask(given, state))
        except Exception:
            return {}
        return {} if share is None else {"eval.unearned_fraction": share}

    def _generate(self, model: Any, tokenizer: Any, limit: int) -> list[list[int]]:
        """Token ids of one completion per prompt, up to and with the end token."""
        texts = [_text(row["prompt"], tokenizer) for row in self._rows]
        # Special tokens: a chat template has written its own; a plain prompt gets what the tokenizer gives everybody.
        encoded = [
            tokenizer(text, add_special_tokens=isinstance(row["prompt"], str))["input_ids"]
            for text, row in zip(texts, self._rows, strict=True)
        ]
        own = getattr(model, "generation_config", None)
        ends = {tokenizer.eos_token_id} if own is None or own.eos_token_id is None else own.eos_token_id
        ends = set(ends) if isinstance(ends, list | set) else {int(ends)}
        ends |= {tokenizer.eos_token_id} - {None}
        pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else min(ends, default=0)
        config = GenerationConfig(
            max_new_tokens=limit, do_sample=self.sample, temperature=1.0, top_k=0 if self.sample else None, use_cache=True,
            pad_token_id=pad, eos_token_id=sorted(ends) or None, bos_token_id=tokenizer.bos_token_id,
        )  # fmt: skip
        device = next(model.parameters()).device
        results: list[list[int]] = []
        for start in range(0, len(encoded), self.batch_size):
            batch = encoded[start : start + self.batch_size]
            width = max(map(len, batch))
            ids = torch.tensor([[pad] * (width - len(row)) + row for row in batch], device=device)
            mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in batch], device=device)
            with torch.no_grad(), for_padded_rows(model):
                output = model.generate(input_ids=ids, attention_mask=mask, generation_config=config)
            results += [_until(row, ends) for row in output[:, width:].tolist()]
        return results

    def _scores(self, tokenizer: Any, ids: list[list[int]], state: TrainerState) -> list[float | None]:
        texts = tokenizer.batch_decode(ids, skip_special_tokens=True)
        prompts = [row["prompt"] for row in self._rows]
        given = {
            **{key: [row.get(key) for row in self._rows] for key in self._rows[0] if key not in {"prompt", "completion", "completion_ids"}},
            "prompts": prompts,
            "completions": [
                text if isinstance(prompt, str) else [{"role": "assistant", "content": text}]
                for prompt, text in zip(prompts, texts, strict=True)
            ],
            "completion_ids": ids,
        }
        return self._ask(given, state)

    def _ask(self, given: dict[str, Any], state: TrainerState) -> list[float | None]:
        """The checker's score of each completion in `given`."""
        result = self.reward_func(**given, trainer_state=state, log_extra=_ignore, log_metric=_ignore)
        result = asyncio.run(_wait(result)) if inspect.isawaitable(result) else result
        scores = [None if score is None else float(score) for score in result]
        if len(scores) != len(given["completions"]):
            msg = f"{len(scores)} scores for {len(given['completions'])} completions"
            raise ValueError(msg)
        return scores


class Falls:
    """Whether the newest evaluation is worse than the best one, prompt by prompt, and what the training reward did meanwhile.

    A one-sided sign test as an e-value: of the n prompts whose score changed, s fell. If falling and rising are equally likely the
    mixture over p in (1/2, 1) of p^s (1-p)^(n-s) / 2^-n has mean 1, and so at most has the lesser of two such numbers. Evaluation j
    against j + k and j + k + 1 has the weight 1 / (j (j+1) k (k+1)); the weights sum to 1, so however the best one was picked and
    however often one looks, the chance that the bound ever goes below a is at most a (Markov and the union bound; e-values:
    arXiv:2210.01948). It is about luck in the prompts and the sampling. That the policy moves at all is no luck.
    """

    def __init__(self) -> None:
        self._count = self._best_at = self._updates = 0
        self._best, self._chance, self._reward_then, self._total = -math.inf, 1.0, math.nan, 0.0
        self._scores: Sequence[float | None] = ()
        self._early: list[float] = []
        self._last = 0.0, 0.0  # fall and evidence of the newest evaluation by itself

    def train(self, reward: float) -> None:
        """Take the mean training reward of one update."""
        if not math.isfinite(reward):
            return
        self._total += reward
        self._updates += 1
        if len(self._early) < _FIRST:
            self._early.append(reward)

    def add(self, scores: Sequence[float | None], mean: float) -> dict[str, float]:
        """Take the scores of the next evaluation, one per prompt in the same order, None where there is none.

        Returns:
            ``eval.score_fall``, ``eval.fall_chance``, ``eval.proxy_gain``; what is not known is left out.
        """
        reward = self._total / self._updates if self._updates else math.nan
        self._total, self._updates = 0.0, 0
        if not math.isfinite(mean):
            return {}
        self._count += 1
        if mean >= self._best:
            self._best, self._best_at, self._scores, self._reward_then = mean, self._count, list(scores), reward
            self._chance, last = 1.0, (0.0, 0.0)
        else:
            pairs = [(old, new) for old, new in zip(self._scores, scores, strict=True) if old is not None and new is not None]
            fell, rose = sum(new < old for old, new in pairs), sum(new > old for old, new in pairs)
            last = self._best - mean, sign_evidence(fell, rose)
            # A fall must be there twice in a row: a policy that moves has bad moments, real and soon over. The bound holds at all
            # times at once, so the least of them holds as well.
            look = self._count - self._best_at - 1
            if look > 0:
                looks = self._best_at * (self._best_at + 1) * look * (look + 1)
                self._chance = min(self._chance, looks / min(self._last[1], last[1]))
        then = self._reward_then
        if self._best_at == 1 and self._early and math.isnan(then):
            then = sum(self._early) / len(self._early)  # there is no update before the first evaluation: the next ones stand for it
        fall, self._last = min(self._last[0], last[0]), last
        values = {"eval.score_fall": fall, "eval.fall_chance": self._chance, "eval.proxy_gain": reward - then}
        return {name: value for name, value in values.items() if math.isfinite(value)}


def sign_evidence(fell: int, rose: int) -> float:
    """E-value against "a change is as likely up as down", for more falls: its mean is 1 if that is so. 1e300 at most.

    2^(n+1) times the integral of p^fell (1-p)^rose over (1/2, 1), which is a sum of binomial coefficients.
    """
    changed = fell + rose
    above = sum(math.comb(changed + 1, k) for k in range(fell + 1))
    below = (changed + 1) * math.comb(changed, fell)
    return above / below if above < below * 10**300 else 1e300


def policy_of(model: Any) -> Any:
    """The causal LM itself, out of the wraps of DDP, `torch.compile`, DeepSpeed's engine and PPO's pair of models; None if none."""
    for _ in range(4):
        kind = type(model).__name__
        if kind in {"DistributedDataParallel", "DataParallel", "DeepSpeedEngine"}:
            model = model.module
        elif kind == "OptimizedModule":
            model = model._orig_mod
        elif not hasattr(model, "generate") and hasattr(model, "policy"):
            model = model.policy
    return model if isinstance(model, torch.nn.Module) else None


def tokenizer_of(given: dict[str, Any]) -> Any:
    """The tokenizer among what transformers hands to a callback; that of a processor; None if there is none."""
    found = given.get("processing_class") or given.get("tokenizer")
    return getattr(found, "tokenizer", found)


def why_not(model: Any, tokenizer: Any, args: TrainingArguments) -> str | None:
    """Why this process cannot generate with this model alone; None when it can."""
    if model is None or not hasattr(model, "generate"):
        return "the model has no generate()"
    if tokenizer is None or not hasattr(tokenizer, "batch_decode"):
        return "the trainer has no tokenizer"
    sharded = bool(getattr(args, "fsdp", None))
    sharded |= any("FullyShardedDataParallel" in type(module).__name__ for module in model.modules())
    sharded |= any(type(p).__name__ in _PARTS or hasattr(p, "ds_id") for p in model.parameters())
    # Generating would wait for the other ranks, who do not come.
    return "the model is sharded (FSDP, ZeRO-3 or tensor parallel) and rank 0 cannot generate alone" if sharded else None


@contextmanager
def _apart(model: Any, seed: int) -> Iterator[None]:
    """Evaluation mode and random numbers of our own inside; afterwards modes and random states are as if nothing had been."""
    modes = [(module, module.training) for module in model.modules()]
    devices = sorted({p.device for p in model.parameters() if p.is_cuda}, key=str)
    states = random.getstate(), np.random.get_state(), torch.random.get_rng_state()
    on_devices = [(device, torch.cuda.get_rng_state(device)) for device in devices]
    try:
        model.eval()
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.default_generator.manual_seed(seed)  # not torch.manual_seed, which seeds devices that we do not put back
        for device in devices:
            torch.cuda.default_generators[device.index].manual_seed(seed)
        yield
    finally:
        for module, mode in modes:
            module.training = mode  # one by one: a frozen part may have been in evaluation mode
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.random.set_rng_state(states[2])
        for device, state in on_devices:
            torch.cuda.set_rng_state(state, device)


def _text(prompt: Prompt, tokenizer: Any) -> str:
    if isinstance(prompt, str):
        return prompt
    return str(tokenizer.apply_chat_template(prompt, add_generation_prompt=True, tokenize=False))


def _until(row: list[int], ends: set[int]) -> list[int]:
    at = next((index for index, token in enumerate(row) if token in ends), len(row))
    return row[: at + 1]


async def _wait(result: Any) -> Any:
    return await result


def _ignore(*args: Any, **kwargs: Any) -> None:
    """Stands in for TRL's ``log_extra`` and ``log_metric``: what a held-out checker logs is no metric of training."""
