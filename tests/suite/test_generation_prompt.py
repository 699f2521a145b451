"""Whether prompts end where the assistant's turn begins: on templates of known shapes, and in rollouts."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import build_preference
import build_sampling
import pytest
import torch
from datasets import Dataset

from trainvitals.integrations import generation_prompt as look
from trainvitals.integrations import tiny

pytestmark = pytest.mark.trl

NAME = "data.generation_prompt_absent_fraction"
RULE = "generation-prompt-missing"
SHORT = {"max_steps": 2, "learning_rate": 1e-4}
CHATML = tiny.tokenizer().chat_template
DEFAULT_SYSTEM = "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nYou are kind.<|im_end|>\n{% endif %}" + CHATML
THINKING = CHATML.replace("<|im_start|>assistant\n{% endif %}", "<|im_start|>assistant\n{% if enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}")
LLAMA3 = (
    "{% for m in messages %}{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' + m['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
GEMMA = (
    "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}"
    "<start_of_turn>{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n{{ m['content'] | trim }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
DEEPSEEK = (
    "{% for m in messages %}{% if m['role'] == 'user' %}<|User|>{{ m['content'] }}{% else %}<|Assistant|></think>{{ m['content'] }}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|Assistant|>{{ '<think>' if thinking else '</think>' }}{% endif %}"
)
WORDS = "{% for m in messages %}{{ 'User: ' if m['role'] == 'user' else 'Assistant: ' }}{{ m['content'] }}\n{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"
MISTRAL = "{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]{% else %} {{ m['content'] }}<|im_end|>{% endif %}{% endfor %}"
ALWAYS = CHATML.replace("{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}", "<|im_start|>assistant\n")
ASKED = [{"role": "user", "content": "what is one"}, {"role": "assistant", "content": "one is"}, {"role": "user", "content": "and two"}]
SHAPES = {"chatml": CHATML, "default system": DEFAULT_SYSTEM, "thinking": THINKING, "llama3": LLAMA3, "gemma": GEMMA, "deepseek": DEEPSEEK, "words": WORDS}


def turns_of(template: str) -> look.Turns | None:
    vocabulary = tiny.tokenizer()
    vocabulary.chat_template = template
    return look.turns_of(vocabulary, vocabulary, None, {})


@pytest.mark.parametrize("template", SHAPES.values(), ids=SHAPES)
def test_templates_that_have_a_header(template: str) -> None:
    vocabulary = tiny.tokenizer()
    vocabulary.chat_template = template
    turns = turns_of(template)
    assert turns is not None
    for messages in (ASKED[:1], ASKED):
        assert turns.unopened(vocabulary.apply_chat_template(messages, tokenize=False))
        for more in ({}, {"enable_thinking": False}, {"thinking": True}):
            whole = vocabulary.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **more)
            assert not turns.unopened(whole)
            assert not turns.unopened(whole + "a beginning")
    assert not turns.unopened(vocabulary.apply_chat_template(ASKED[:2], tokenize=False))  # the last turn is the assistant's
    assert not turns.unopened(vocabulary.apply_chat_template(ASKED[:2], tokenize=False, continue_final_message=True))
    assert not turns.unopened("what is one")


def test_another_system_prompt_than_the_templates_own() -> None:
    turns = turns_of(DEFAULT_SYSTEM)
    assert turns is not None
    assert turns.unopened("<|im_start|>user\nwhat is one<|im_end|>\n")


@pytest.mark.parametrize("template", [MISTRAL, ALWAYS, "{{ raise_exception('no') }}", "{% for m in messages %}{{ m['content'] }}{% endfor %}", None])
def test_templates_of_which_nothing_can_be_told(template: Any) -> None:
    assert turns_of(template) is None


def test_a_tokenizer_that_does_not_spell_the_header() -> None:
    vocabulary = tiny.tokenizer()

    class Lossy:
        def __call__(self, text: str) -> dict[str, Any]:
            return {"input_ids": text.replace("assistant", "?")}

        def decode(self, ids: str) -> str:
            return ids

    assert look.turns_of(vocabulary, Lossy(), None, {}) is None


def test_marks_are_no_parts_of_words_and_care_little_for_blanks() -> None:
    assert look.mark("User:").search("SuperUser: root") is None
    assert look.mark("User:").search("\nUser: root") is not None
    assert look.mark("<|a|> user").search("<|a|>user") is not None
    assert look.shared_start(["abc", "abd", "ab"]) == "ab"
    assert look.shared_start(["abc", "xbc"]) == ""
    assert look.between("a b c b d", "b", "d") == " "


def test_prompts_that_come_one_at_a_time() -> None:
    vocabulary = tiny.tokenizer()
    turns = look.turns_of(vocabulary, vocabulary, None, {})
    assert turns is not None
    bare, whole = ([*vocabulary.apply_chat_template(ASKED[:1], add_generation_prompt=prompt, return_dict=True)["input_ids"]] for prompt in (False, True))
    for batches, told in (([[bare] * 4, [whole] * 4], 0.5), ([[bare] * 4, [bare] * 4], 1.0), ([[bare, whole, whole]], 0.5), ([[whole] * 4] * 2, 0.0)):
        given: dict[str, float] = {}
        hooks: Any = SimpleNamespace(training=True, give=given.__setitem__)
        reader = look._Prompts(hooks, vocabulary, turns)
        for batch in batches:
            assert given == {}
            reader.after_generate((batch, []), (), {}, 0.0)
        assert given == {NAME: told}
        given.clear()
        reader.after_generate(([bare] * 4, []), (), {}, 0.0)
        assert given == {}


def as_text(trainer: Any, *, prompt: bool) -> Any:
    """Prompts that were rendered before the trainer got them."""
    texts = [trainer.processing_class.apply_chat_template(row["prompt"], tokenize=False, add_generation_prompt=prompt) for row in tiny.prompts()]
    trainer.train_dataset = Dataset.from_list([{"prompt": text} for text in texts])
    return trainer


@pytest.mark.parametrize("build", [build_sampling.grpo, build_sampling.rloo, build_preference.online_dpo])
@pytest.mark.parametrize("prompt", [False, True, None])
def test_rollouts(build: Any, prompt: bool | None, tmp_path: Path, train: Any) -> None:
    trainer = build(str(tmp_path), **SHORT)
    seen = train(trainer if prompt is None else as_text(trainer, prompt=prompt))
    assert seen.notices == []
    assert seen.series(NAME) == {1: 1.0 if prompt is False else 0.0}
    assert NAME in seen.start.emits
    assert (RULE in {one.rule.id for one in seen.callback.monitor.findings}) is (prompt is False)


def test_a_template_without_a_header_promises_nothing(tmp_path: Path, train: Any) -> None:
    trainer = build_sampling.grpo(str(tmp_path), **SHORT)
    trainer.processing_class.chat_template = trainer.chat_template = ALWAYS
    seen = train(trainer)
    assert seen.notices == []
    assert NAME not in seen.start.emits
    assert seen.series(NAME) == {}


def test_no_forward_pass_is_read_twice() -> None:
    vocabulary = tiny.tokenizer()
    turns = look.turns_of(vocabulary, vocabulary, None, {})
    assert turns is not None
    put: list[Any] = []
    hooks: Any = SimpleNamespace(training=True, put=lambda tensors, compute: put.append(compute(tensors)))
    reader = look._Prompts(hooks, vocabulary, turns)
    ids = vocabulary.apply_chat_template(ASKED[:1], return_dict=True)["input_ids"]
    args = (None, torch.tensor([[0, 0, *ids]] * 2), torch.tensor([[0, 0] + [1] * len(ids)] * 2), None, None)
    reader.after_forward(None, args, {}, 0.0)
    reader.after_forward(None, args, {}, 0.0)
    assert put == [{NAME: 1.0}]
