"""`RetentionProbe`: whether the policy still knows what it said before the training, where no evaluation set asks for it.

::

    from trainvitals import attach
    from trainvitals.experimental import RetentionProbe

    attach(trainer, enable=["own-answers-unlearned"])
    trainer.add_callback(RetentionProbe(every=50))

Before the first update the policy answers a fixed set of prompts. Every so many updates it is asked how likely it finds those answers by
now. The mean loss of log-probability per token estimates the forward KL from the start to the policy of now, on prompts that the training
need not contain: what a narrow data set drives out shows there, whatever the training loss says (arXiv:2509.04259: forgetting goes by the
forward KL to the model that one began with). Nothing of the answers is recorded.

Experimental: its rule has a threshold that was measured on tiny models only.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from trainvitals.integrations.attention import for_padded_rows
from trainvitals.integrations.facts import RETAINED, RUNNING, promise
from trainvitals.integrations.generating import Prompt, apart, encode, generate, policy_of, tokenizer_of, why_not
from trainvitals.integrations.transformers import VitalsCallback, notice

GENERAL: tuple[str, ...] = (
    "Why is the sky blue?", "Write a Python function that reverses a string.", "Translate 'good morning, my friend' into French.",
    "A train goes 60 km in 45 minutes. How fast is it in km/h?", "Who wrote 'Romeo and Juliet', and what is it about?", "Give me a recipe for pancakes.",
    "Summarise in one sentence what photosynthesis is.", "Write a polite e-mail that moves a meeting to Thursday.", "What is the capital of Australia?",
    "List three advantages and three disadvantages of working from home.", "Explain what an SQL join does, with an example.", "Write four lines of poetry about the sea.",
    "Is 221 a prime number? Explain.", "I feel nervous before an exam. What can I do?", "What is the difference between a virus and a bacterium?",
    "Return the JSON object for a person called Ada, aged 36.",
)  # fmt: skip
"""What a general assistant can answer; used where the user gives no prompts."""
_BLIND = 0.5
"""A start whose own answers cost half of a blind guess, ln(size of the vocabulary), and more per token knows next to nothing: there is nothing to keep. Language
models are at 0.03 to 0.3 of it."""


class RetentionProbe(TrainerCallback):
    """Asks the policy how likely it finds the answers that it gave before the training, and publishes ``eval.unlearned``.

    Needs a `VitalsCallback` in the same trainer (`attach` adds one). Like `HeldoutProbe` it works on rank 0 alone, leaves modes and random
    states as they were, and switches itself off with one notice where a rank does not hold the whole model, or where the start knows nothing.

    Args:
        prompts: Strings or chats that the model should go on answering as before; not those of the training set. None: `GENERAL`.
        every: Updates between two looks; there is one before the first update and one after the last as well.
        max_new_tokens: Cap of an answer.
        seed: For the answers, which are drawn once at temperature 1.
        batch_size: Prompts per generation.

    Attributes:
        history: ``(step, unlearned)`` of each look, in nats per token; the last 1,000.
        off: True once the probe has switched itself off.
    """

    promises = RETAINED
    """Signals that this callback publishes."""

    def __init__(self, prompts: Iterable[Prompt] | None = None, *, every: int = 50, max_new_tokens: int = 64, seed: int = 0, batch_size: int = 16) -> None:
        self.prompts: list[Prompt] = [[{"role": "user", "content": text}] for text in GENERAL] if prompts is None else list(prompts)
        if not self.prompts:
            msg = "prompts: at least one string or chat is needed, or None for a general set"
            raise ValueError(msg)
        if every < 1 or batch_size < 1 or max_new_tokens < 1:
            msg = "every, max_new_tokens and batch_size must be at least 1"
            raise ValueError(msg)
        self.every, self.max_new_tokens, self.seed, self.batch_size = every, max_new_tokens, seed, batch_size
        self.history: list[tuple[int, float]] = []
        self.off = False
        self._start()

    def _start(self) -> None:
        self._answers: list[tuple[list[int], list[int]]] = []  # ids of prompt and answer
        self._before = math.nan
        self._last = -1
        self._begins = False
        self._given: Any = None

    def on_init_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Tell a `VitalsCallback` that starts before us and knows no trainer what will come."""
        promise(control, self.promises)

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Start anew: the start of a resumed run is what it was resumed with."""
        promise(control, self.promises)
        self._start()

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Look before the first update and after every `every` of them."""
        self._begins = True
        if not self._answers or state.global_step % self.every == 0:
            self._look(args, state, control, kwargs)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Remember to look at the end of training, with what is at hand now."""
        if self.off or not state.is_world_process_zero:
            return
        if not self._begins:
            self._switch_off("this trainer never says that a step begins (PPO), so that the start cannot be asked")
            return
        self._given = args, control, {name: kwargs.get(name) for name in ("model", "processing_class", "tokenizer")}
        vitals = vars(control).get(RUNNING)
        if vitals is not None and self._at_end not in vitals.at_train_end:
            vitals.at_train_end.append(self._at_end)

    def _at_end(self, state: TrainerState) -> None:
        args, control, given = self._given
        self._look(args, state, control, given)

    def _switch_off(self, why: str) -> None:
        self.off = True
        notice(f"RetentionProbe switched off: {why}. Training goes on.")

    def _look(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, given: dict[str, Any]) -> None:
        if self.off or not state.is_world_process_zero or state.global_step == self._last:
            return
        try:
            vitals: VitalsCallback | None = vars(control).get(RUNNING)
            model, tokenizer = policy_of(given.get("model")), tokenizer_of(given)
            why = why_not(model, tokenizer, args) if vitals is not None else "there is no VitalsCallback in this trainer to publish to: call attach(trainer)"
            if why is not None:
                self._switch_off(why)
            if self.off or vitals is None or vitals.off:
                return
            self._last = state.global_step
            with vitals.evaluating() as values, apart(model, self.seed):
                unlearned = self._unlearned(model, tokenizer)
                if unlearned is not None:
                    values["eval.unlearned"] = unlearned
                    self.history = [*self.history[-999:], (state.global_step, unlearned)]
        except Exception as error:
            self._switch_off(f"{type(error).__name__}: {error}")

    def _unlearned(self, model: Any, tokenizer: Any) -> float | None:
        """What a token of the start's answers has lost in log-probability, on the average; None where the start knows nothing."""
        if not self._answers:
            ids = generate(model, tokenizer, self.prompts, self.max_new_tokens, sample=True, batch_size=self.batch_size)
            self._answers = [(encode(prompt, tokenizer), answer) for prompt, answer in zip(self.prompts, ids, strict=True)]
            self._before = mean_logp(model, self._answers)
            blind = math.log(model.get_output_embeddings().weight.shape[0])
            if not -self._before < _BLIND * blind:
                self._switch_off(f"before the training an answer of this model costs {-self._before:.2f} nats a token, a blind guess {blind:.2f}: there is nothing to keep")
                return None
        return self._before - mean_logp(model, self._answers)


def mean_logp(model: Any, answers: Sequence[tuple[list[int], list[int]]]) -> float:
    """Mean log-probability of all tokens of the answers, in nats, each behind its prompt. One by one: nothing is padded, and the logits of one are all that is held."""
    device = next(model.parameters()).device
    total, count = 0.0, 0
    with torch.no_grad(), for_padded_rows(model):
        for prompt, answer in answers:
            logits = model(input_ids=torch.tensor([prompt + answer], device=device)).logits[0, len(prompt) - 1 : -1].float()
            picked = torch.log_softmax(logits, dim=-1).gather(1, torch.tensor(answer, device=device)[:, None])
            total, count = total + float(picked.double().sum()), count + len(answer)
    return total / count
