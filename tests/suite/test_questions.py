"""Whether prompts hold their questions: against a second way of counting, on data sets that TRL prepared and in rollouts."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import build_preference
import build_sampling
import build_supervised
import numpy as np
import pytest
from datasets import Dataset

from trainvitals.integrations import questions as look
from trainvitals.integrations import tiny

pytestmark = pytest.mark.trl

SHORT = {"max_steps": 2, "learning_rate": 1e-4}
LATER = 1e12
CODE = "{% for m in messages %}'<|im_start|>' + m['role'] }}{% endfor %}{{ 'a:' }}"
"""A template that lost an opening brace: every question is the same piece of its source code."""


class Letters:
    """A tokenizer of single letters."""

    def decode(self, ids: list[int]) -> str:
        """Text of some ids."""
        return "".join(map(chr, ids))


def rows(*pairs: tuple[str, str]) -> list[tuple[list[str], list[int]]]:
    return [([question], [ord(letter) for letter in made]) for question, made in pairs]


def sft(folder: str, **more: Any) -> Any:
    return build_supervised.sft(folder, rows=more.pop("rows", build_supervised.completions(80)), **{**SHORT, **more})


@pytest.mark.parametrize("name", ["sft", "dpo", "kto", "orpo", "cpo", "tpo", "bco", "reward"])
def test_every_trainer_tells_once(name: str, tmp_path: Path, train: Any) -> None:
    trainer = sft(str(tmp_path)) if name == "sft" else getattr(build_supervised if name == "reward" else build_preference, name)(str(tmp_path), **SHORT)
    data, names = trainer.train_dataset, trainer.train_dataset.column_names
    if name == "sft":
        def prompt(row: dict[str, Any]) -> list[int]:
            free = [label != -100 for label in row["labels"]] if "labels" in names else row["completion_mask"]
            return row["input_ids"][: free.index(1)]
    else:
        def prompt(row: dict[str, Any]) -> list[int]:
            return row["prompt_ids" if "prompt_ids" in names else "prompt_input_ids"]
    seen = train(trainer)
    assert seen.notices == []
    if name == "reward":
        assert seen.series("data.prompt_commonest_fraction") == {}
    else:
        commonest = Counter(tuple(prompt(row)) for row in data).most_common(1)[0][1]
        assert seen.series("data.prompt_commonest_fraction") == {1: pytest.approx(commonest / len(data))}
        assert commonest < len(data) / 4
    assert seen.series("data.question_absent_fraction") == {1: 0.0}
    assert {"data.question_absent_fraction"} <= seen.start.emits


@pytest.mark.parametrize("build", [build_sampling.grpo, build_sampling.rloo])
@pytest.mark.parametrize("broken", [False, True])
def test_rollouts(build: Any, broken: bool, tmp_path: Path, train: Any) -> None:
    trainer = build(str(tmp_path), **SHORT)
    if broken:
        trainer.processing_class.chat_template = CODE
        trainer.chat_template = CODE  # later versions keep their own
    seen = train(trainer)
    assert seen.notices == []
    assert seen.series("data.question_absent_fraction") == {1: float(broken)}


def test_a_template_that_became_text(tmp_path: Path, train: Any) -> None:
    vocabulary = tiny.tokenizer()
    vocabulary.chat_template = "{% for m in messages %}{% if m['role'] == 'user' %}'u: ' + m['content'] }}{% else %}{{ 'a: ' + m['content'] + eos_token }}{% endif %}{% endfor %}"
    rows = [{"prompt": row["chosen"][:1], "completion": row["chosen"][1:]} for row in build_supervised.pairs(80)]
    seen = train(sft(str(tmp_path), rows=rows, vocabulary=vocabulary))
    assert seen.notices == []
    assert seen.series("data.prompt_commonest_fraction") == {1: 1.0}
    assert seen.series("data.question_absent_fraction") == {1: 1.0}
    effects = {one.rule.id: one.suppressed_by for one in seen.callback.monitor.findings}
    assert effects.pop("questions-not-rendered") is None
    assert effects["prompts-all-alike"] is not None


def test_one_question_for_all_is_said_without_a_claim_about_the_template(tmp_path: Path, train: Any) -> None:
    made = build_supervised.pairs(80)
    seen = train(sft(str(tmp_path), rows=[{"prompt": made[0]["chosen"][:1], "completion": row["chosen"][1:]} for row in made]))
    assert seen.series("data.prompt_commonest_fraction") == {1: 1.0}
    assert seen.series("data.question_absent_fraction") == {}
    assert {one.rule.id for one in seen.callback.monitor.findings} & {"questions-not-rendered", "prompts-all-alike"} == {"prompts-all-alike"}


def test_chats_in_which_everything_is_labelled(tmp_path: Path, train: Any) -> None:
    seen = train(build_supervised.sft(str(tmp_path), **SHORT))
    assert seen.series("data.prompt_commonest_fraction") == {}
    assert seen.series("data.question_absent_fraction") == {1: 0.0}


def test_the_tokens_before_the_first_mark() -> None:
    random = Random(3)
    table = [[(random.randint(0, 9), random.random() < 0.3) for _ in range(random.randint(0, 6))] for _ in range(500)]
    values, marked = (np.array([pair[part] for row in table for pair in row]) for part in (0, 1))
    found, lengths = look.before_first(values, np.array([len(row) for row in table]), marked.astype(bool))
    wanted = [[one for one, _ in row[: [mark for _, mark in row].index(True)]] if any(mark for _, mark in row) else [] for row in table]
    assert lengths.tolist() == [len(row) for row in wanted]
    assert found.tolist() == [one for row in wanted for one in row]


def test_stretches_are_spread_and_do_not_overlap() -> None:
    assert look.stretches(4_000) == [(0, 4_000)]
    for count in (4_001, 5_003, 1_000_000):
        found = look.stretches(count)
        assert (found[0][0], found[-1][1]) == (0, count)
        assert sum(end - begin for begin, end in found) == 4_000
        assert all(end <= begin for (_, end), (begin, _) in pairwise(found))


def test_what_counts_as_a_prompt() -> None:
    ids, labels = [[1, 2, 3]] * 4 + [[1, 5, 3]] * 4, [[-100, -100, 3]] * 8
    assert look.commonest_prompt(Dataset.from_dict({"input_ids": ids, "labels": labels}), ("input_ids",), LATER) == 0.5
    mask = [[0, 0, 1]] * 8
    assert look.commonest_prompt(Dataset.from_dict({"input_ids": ids, "completion_mask": mask}), ("input_ids",), LATER) == 0.5
    for other in ([[-100, 2, 3]] * 8, [[1, 2, 3]] * 8, [[-100] * 3] * 8, [1] * 8):  # a BOS alone, everything, nothing, classes
        assert look.commonest_prompt(Dataset.from_dict({"input_ids": ids, "labels": other}), ("input_ids",), LATER) is None
    assert look.commonest_prompt(Dataset.from_dict({"input_ids": ids}), ("input_ids",), LATER) is None
    assert look.commonest_prompt(Dataset.from_dict({"chosen_ids": ids, "rejected_ids": ids}), ("chosen_ids", "rejected_ids"), LATER) is None


def test_what_is_held_and_what_is_not() -> None:
    asked = [f"what is the number {one} of the list" for one in ("seven", "eleven", "twenty", "forty")]
    frame = "<s>[INST] {} [/INST]"
    whole = rows(*[(one, frame.format(one)) for one in asked])
    assert look.absent(whole, Letters(), 4) == 0.0
    assert look.absent(rows(*[(one, frame.format("{{ m }}")) for one in asked]), Letters(), 4) == 1.0
    assert look.absent(rows((asked[0], "nothing of it"), *[(one, one) for one in asked[1:]]), Letters(), 4) == 0.25
    assert look.absent(rows(*[(one, one.upper().replace(" ", "\n")) for one in asked]), Letters(), 4) == 0.0
    assert look.absent(whole, Letters(), 5) is None  # too few
    assert look.absent(rows(*[("the-template-v2", "a question")] * 8), Letters(), 1) is None  # no question, but a name
    assert look.absent(rows(*[(str(one), "x") for one in range(8)]), Letters(), 1) is None  # too short to be told from chance


def test_cut_prompts_still_hold_an_end() -> None:
    random = Random(2)
    asked = ["".join(random.choices("abcdefghij klm", k=3_000)) for _ in range(8)]
    assert look.absent(rows(*[(one, one[:220]) for one in asked]), Letters(), 8) == 0.0
    assert look.absent(rows(*[(one, one[-220:]) for one in asked]), Letters(), 8) == 0.0
    assert look.absent(rows(*[(one, "x" * 9_000 + one) for one in asked]), Letters(), 8) == 0.0  # behind a long system prompt


def test_accents_and_invalid_ids_do_not_matter() -> None:
    found = [(["où est la bibliothèque"], [-100, *map(ord, "ou est la bibliotheque")]), (["ÜBER DEN WOLKEN"], [*map(ord, "über den wolken")])]
    assert look.absent(found, Letters(), 2) == 0.0


def test_what_a_user_said() -> None:
    turns = [{"role": "system", "content": "S"}, {"role": "user", "content": "one"}, {"role": "assistant", "content": "A"}, {"role": "user", "content": [{"type": "text", "text": "two"}, {"type": "image"}]}]
    assert look.asked(turns) == ["one", "two"]
    assert look.asked(turns[:2]) == ["one"]
    assert look.asked("plain") == ["plain"]
    for other in (None, [], turns[:1], 3, [{"role": "user", "content": None}]):
        assert [text for text in look.asked(other) if text] == []


def test_rows_of_plain_text_have_no_question() -> None:
    data = Dataset.from_dict({"text": ["a b"] * 3, "prompt": ["q"] * 3, "input_ids": [[1, 2]] * 3})
    assert list(look.given_and_made(data, ("input_ids",), "text")) == []
    assert [made for _, made in look.given_and_made(data, ("input_ids",), None)] == [[1, 2]] * 3


def test_prompts_that_come_one_at_a_time() -> None:
    given: dict[str, float] = {}
    hooks: Any = SimpleNamespace(training=True, give=given.__setitem__)
    reader = look._Sampled(hooks, Letters())
    for one in ("what is the first", "what is the first", "and what is the second"):
        assert given == {}
        reader.after_generate(([[ord(letter) for letter in "nothing"]] * 4, []), ([one] * 4,), {}, 0.0)
    assert given == {"data.question_absent_fraction": 1.0}
    given.clear()
    reader.after_generate(([[1]] * 4, []), (["another question"] * 4,), {}, 0.0)
    assert given == {}
