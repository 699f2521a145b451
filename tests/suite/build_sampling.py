"""One builder for each trainer that samples completions and scores them: GRPO and its relatives, RLOO, PPO.

Each is called ``name(output_dir, callbacks=(), **changes)`` and returns a trainer that is ready to train on the vowel task of
`trainvitals.integrations.tiny`. A trainer that this TRL does not have raises ImportError.
"""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from trainvitals.integrations import tiny

SAMPLING = {"num_generations": 8, "per_device_train_batch_size": 32, "max_completion_length": 16, "temperature": 1.0}


def grpo(output_dir: str, *, callbacks: Sequence[Any] = (), **changes: Any) -> Any:
    """`trl.GRPOTrainer`."""
    return tiny.grpo(output_dir, callbacks=callbacks, **changes)


def grpo_with_tools(output_dir: str, *, tool: Any, callbacks: Sequence[Any] = (), **changes: Any) -> Any:
    """`trl.GRPOTrainer` with a tool: an ``s`` in the tiny model's random letters calls it with the letters that follow.

    The pretrained letters are all that the model knows, so the response template makes calls out of them: how a call is spelled is
    the template's business, and everything behind it (parsing, calling, the tool's answer in the context, the mask) is TRL's own.
    """
    from trl import GRPOConfig, GRPOTrainer

    vocabulary = tiny.tokenizer()
    vocabulary.chat_template = vocabulary.chat_template.replace(
        "{{ m['content'] }}<|im_end|>{% endgeneration %}",
        "{{ m['content'] }}{% for call in m.get('tool_calls') or [] %}s{{ call['function']['name'] }}{{ call['function']['arguments'] | tojson }}"
        "{% endfor %}<|im_end|>{% endgeneration %}",
    )
    vocabulary.response_template = {
        "defaults": {"role": "assistant"},
        "start_anchor": "<|im_start|>assistant\n",
        "fields": {
            "tool_calls": {
                "open_pattern": "s",
                "close_pattern": r"<\|im_end\|>\s*",
                "content": "text",
                "repeats": True,
                "transform": {"type": "function", "function": {"name": tool.__name__, "arguments": {"text": "{content}"}}},
            },
            "content": {"close_pattern": r"<\|im_end\|>\s*", "content": "text"},
        },
    }
    settings = {**SAMPLING, "max_completion_length": 64, "max_tool_calling_iterations": 1, **changes}
    return GRPOTrainer(
        model=tiny.policy(vocabulary),
        reward_funcs=ends,
        args=GRPOConfig(**tiny.arguments(output_dir, **settings)),
        train_dataset=tiny.prompts(),
        processing_class=vocabulary,
        callbacks=list(callbacks),
        tools=[tool],
    )


def ends(completions: list[Any], completion_ids: list[list[int]], **kwargs: Any) -> list[float]:
    """Share of vowels among the tokens, tools' answers included."""
    texts = ["".join(str(message.get("content") or "") for message in completion) for completion in completions]
    return [sum(char in tiny.VOWELS for char in text) / max(1, len(text)) for text in texts]


def rloo(output_dir: str, *, reward: Any = tiny.vowels, callbacks: Sequence[Any] = (), **changes: Any) -> Any:
    """`trl.RLOOTrainer`; its reference model is loaded by path, so the policy is written to the output folder first."""
    from trl import RLOOConfig, RLOOTrainer

    return _online(RLOOTrainer, RLOOConfig, output_dir, reward, callbacks, changes)


def relative(name: str) -> Callable[..., Any]:
    """Builder of a relative of GRPO in ``trl.experimental``, by the name of its package."""
    classes = {
        "gmpo": ("GMPOTrainer", "GMPOConfig"),
        "dppo": ("DPPOTrainer", "DPPOConfig"),
        "gfpo": ("GFPOTrainer", "GFPOConfig"),
        "gspo_token": ("GRPOTrainer", None),
        "grpo_with_replay_buffer": ("GRPOWithReplayBufferTrainer", "GRPOWithReplayBufferConfig"),
        "minillm": ("MiniLLMTrainer", "MiniLLMConfig"),
        "papo": ("PAPOTrainer", "PAPOConfig"),
    }

    def build(output_dir: str, *, reward: Any = tiny.vowels, callbacks: Sequence[Any] = (), **changes: Any) -> Any:
        from importlib import import_module

        import trl

        package = import_module(f"trl.experimental.{name}")
        trainer, config = classes[name]
        return _online(getattr(package, trainer), getattr(package, config) if config else trl.GRPOConfig, output_dir, reward, callbacks, changes)

    return build


def _online(trainer: Any, config: Any, output_dir: str, reward: Any, callbacks: Sequence[Any], changes: dict[str, Any]) -> Any:
    vocabulary = tiny.tokenizer()
    own = {key: changes.pop(key) for key in ("teacher_model", "tools") if key in changes}
    if trainer.__name__ != "MiniLLMTrainer":
        own["reward_funcs"] = reward
    start = f"{output_dir}/start"
    tiny.policy(vocabulary).save_pretrained(start)  # a reference model is loaded from the policy's path
    vocabulary.save_pretrained(start)
    return trainer(
        model=start,
        args=config(**tiny.arguments(output_dir, **{**SAMPLING, **changes})),
        train_dataset=tiny.prompts(),
        processing_class=vocabulary,
        callbacks=list(callbacks),
        **own,
    )


Score = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""From the share of vowels of each token, 1 for each token of the text, and 1 from the end token on: the score at each position."""


class Judge(nn.Module):
    """A reward model with a hand-written score: `score_of` of the response's tokens so far, before its end token.

    It has the two parts that TRL's PPO calls: a backbone that returns hidden states, and a `score` head.
    """

    base_model_prefix = "model"

    def __init__(self, vocabulary: Any, score_of: Score) -> None:
        super().__init__()
        self.model = _Backbone(vocabulary, score_of)
        self.score = nn.Linear(1, 1, bias=False)
        nn.init.ones_(self.score.weight)
        self.requires_grad_(False)


class _Backbone(nn.Module):
    def __init__(self, vocabulary: Any, score_of: Score) -> None:
        super().__init__()
        self.score_of = score_of
        texts = [vocabulary.decode([token]) for token in range(len(vocabulary))]
        vowels = torch.tensor([sum(char in tiny.VOWELS for char in text) / max(1, len(text)) for text in texts])
        self.register_buffer("vowels", vowels)
        self.header = len(vocabulary("assistant\n")["input_ids"])  # between the last <|im_start|> and the response
        self.start = vocabulary.convert_tokens_to_ids("<|im_start|>")

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, **kwargs: Any) -> Any:
        begun = (input_ids == self.start).cumsum(1)
        since = torch.cumsum((begun >= 2).long(), 1)  # 1 at the last <|im_start|>
        inside = ((since > 1 + self.header) & attention_mask.bool()).float()
        ended = ((input_ids == tiny.END_ID).float() * inside).cumsum(1).clamp(max=1.0)
        text = inside * (1.0 - ended)
        score = self.score_of(self.vowels[input_ids] * text, text, ended)
        return SimpleNamespace(hidden_states=[score.unsqueeze(-1)])


def unfinished_too(vowels: torch.Tensor, text: torch.Tensor, ended: torch.Tensor) -> torch.Tensor:
    """Share of vowels among the characters so far, whether the response has ended or not."""
    return vowels.cumsum(1) / text.cumsum(1).clamp(min=1.0)


def vowel_share(vowels: torch.Tensor, text: torch.Tensor, ended: torch.Tensor) -> torch.Tensor:
    """The task of `tiny`: share of vowels, 0 for a response without an end."""
    return unfinished_too(vowels, text, ended) * ended


def length_from(update: int) -> Score:
    """The task of `tiny` until an update, from then on the length in sixteenths of the cap."""
    calls = 0

    def score(vowels: torch.Tensor, text: torch.Tensor, ended: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1  # one chunk per update
        return vowel_share(vowels, text, ended) if calls < update else text.cumsum(1) / 16 * ended

    return score


def ppo(output_dir: str, *, score_of: Any = vowel_share, callbacks: Sequence[Any] = (), optimizer: Any = None, **changes: Any) -> Any:
    """`trl.experimental.ppo.PPOTrainer` (TRL 1.0 to 1.12) with a hand-written reward model and a critic that starts from the policy.

    Args:
        output_dir: Where the trainer writes.
        score_of: Score of the reward model, see `Judge`.
        callbacks: Callbacks for the trainer.
        optimizer: Makes the optimizer from the policy's and the critic's parameters; the trainer's own when None.
        **changes: Fields of `PPOConfig` to set differently; ``updates`` sets the number of updates.
    """
    from datasets import Dataset
    from transformers import AutoModelForSequenceClassification
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    vocabulary = tiny.tokenizer()
    vocabulary.padding_side = "left"
    policy = tiny.policy(vocabulary)
    config = copy.deepcopy(policy.config)
    config.num_labels = 1
    critic = AutoModelForSequenceClassification.from_config(config)
    critic.model.load_state_dict(policy.model.state_dict())
    nn.init.zeros_(critic.score.weight)  # a critic that says 0 everywhere, instead of noise
    size = 32
    settings = tiny.arguments(
        output_dir,
        **{
            "per_device_train_batch_size": size, "num_ppo_epochs": 4, "num_mini_batches": 1, "response_length": 16, "num_sample_generations": 0,
            "stop_token": "eos", "local_rollout_forward_batch_size": size, "learning_rate": 3e-4, "temperature": 1.0, **changes,
        },
    )  # fmt: skip
    settings.pop("max_steps")
    updates = settings.pop("updates", 4)
    batch = settings["per_device_train_batch_size"] * settings.get("gradient_accumulation_steps", 1)
    rows = vocabulary.apply_chat_template(
        [row["prompt"] for row in tiny.prompts()], add_generation_prompt=True, tokenize=False
    )
    data = Dataset.from_list([{"input_ids": vocabulary(text)["input_ids"]} for text in rows])
    gc.freeze()  # PPO collects garbage twice per update, which costs half a second in a process as large as pytest
    return PPOTrainer(
        args=PPOConfig(total_episodes=updates * batch, **settings),
        processing_class=vocabulary,
        model=policy,
        ref_model=tiny.policy(vocabulary),
        reward_model=Judge(vocabulary, score_of),
        value_model=critic,
        train_dataset=data,
        eval_dataset=data.select(range(size)),
        callbacks=list(callbacks),
        optimizers=(None, None) if optimizer is None else optimizer(policy, critic),
    )
