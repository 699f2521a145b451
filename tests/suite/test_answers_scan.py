"""The question in front of the answer, pairs that are there both ways round, and pairs that differ in little: of real trainers' data sets, and of numbers."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import build_preference as build
import build_supervised
import numpy as np
import pytest
import torch
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st

from trainvitals.integrations import tiny
from trainvitals.integrations.answers_scan import Answer, repeated, reversed_fraction, text_of
from trainvitals.integrations.newest import Differing, differing

pytestmark = pytest.mark.trl

REPEATED, REVERSED = "data.prompt_repeated_fraction", "data.pair_reversed_fraction"
ANSWERS = ("chosen", "rejected", "completion")
FEW = {"max_steps": 3, "max_length": 160}
Rows = list[dict[str, Any]]


def findings(seen: Any) -> set[str]:
    return {one.rule.id for one in seen.callback.monitor.findings}


def said(rows: Any) -> Rows:
    """Chats whose answers begin with the user's turn, which has a column of its own."""
    return [{name: row["prompt"] + value if name in ANSWERS else value for name, value in row.items()} for row in rows]


def quoted(rows: Any) -> Rows:
    """Chats whose assistant repeats the question."""
    return [{name: [{**value[0], "content": row["prompt"][0]["content"] + value[0]["content"]}] if name in ANSWERS else value for name, value in row.items()} for row in rows]


def texts(rows: Any, *, twice: bool = False) -> Rows:
    """The same as text, with the tokenizer's template; `twice`: the prompt stands in front of the answers as well."""
    vocabulary, made = tiny.tokenizer(), []
    for row in rows:
        prompt = vocabulary.apply_chat_template(row["prompt"], tokenize=False, add_generation_prompt=True)
        made.append({**row, "prompt": prompt, **{name: (prompt if twice else "") + row[name][0]["content"] for name in ANSWERS if name in row}})
    return made


def whole(rows: Any) -> Rows:
    """Chats without a column of prompts: TRL finds it in what both answers begin with."""
    return [{name: row["prompt"] + row[name] for name in ANSWERS if name in row} for row in rows]


def texts_twice(rows: Any) -> Rows:
    return texts(rows, twice=True)


@pytest.mark.parametrize(
    ("kind", "change", "share"),
    [
        ("dpo", list, 0.0), ("dpo", said, 1.0), ("dpo", quoted, 1.0), ("dpo", texts, 0.0), ("dpo", texts_twice, 1.0), ("dpo", whole, 0.0),
        ("orpo", list, 0.0), ("orpo", texts, 0.0), ("orpo", texts_twice, 1.0), ("cpo", texts, 0.0), ("cpo", texts_twice, 1.0),
        ("kto", list, 0.0), ("kto", texts_twice, 1.0), ("kto", said, 1.0),
    ],
)  # fmt: skip
def test_the_question_in_front_of_the_answers(tmp_path, train, kind, change, share):
    if change is said and tuple(map(int, version("trl").split(".")[:2])) < (1, 16):
        pytest.skip("it cuts chats at the length of the prompt, so that a part of the question is left")
    rows = build.examples() if kind == "kto" else build.pairs()
    seen = train(getattr(build, kind)(str(tmp_path), data=Dataset.from_list(change(list(rows))), **FEW))
    assert seen.notices == []
    assert seen.series(REPEATED) == {1: share}
    assert ("question-repeated-in-answers" in findings(seen)) == (share == 1.0)


@pytest.mark.parametrize(("change", "share"), [(list, 0.0), (quoted, 1.0), (texts_twice, 1.0)], ids=["right", "quoted", "texts"])
def test_of_supervised_rows(tmp_path, train, change, share):
    seen = train(build_supervised.sft(str(tmp_path), rows=change(build_supervised.completions()), **FEW))
    assert seen.notices == []
    assert seen.series(REPEATED) == {1: share}


def test_of_reward_models(tmp_path, train):
    for name, change, share in (("right", list, 0.0), ("twice", texts_twice, 1.0)):
        seen = train(build_supervised.reward(str(tmp_path / name), rows=change(list(build.pairs())), **FEW))
        assert seen.notices == []
        assert seen.series(REPEATED) == {1: share}
        assert seen.series(REVERSED) == {1: 0.0}


def both_ways(rows: Any, count: int) -> Rows:
    """The first rows a second time, the other way round."""
    rows = list(rows)
    return rows + [{**row, "chosen": row["rejected"], "rejected": row["chosen"]} for row in rows[:count]]


@pytest.mark.parametrize("kind", ["dpo", "orpo", "cpo"])
@pytest.mark.parametrize(("count", "share"), [(0, 0.0), (3, 6 / 67), (64, 1.0)])
def test_pairs_both_ways_round(tmp_path, train, kind, count, share):
    data = Dataset.from_list(both_ways(build.pairs(), count))
    seen = train(getattr(build, kind)(str(tmp_path), data=data, **FEW))
    assert seen.notices == []
    assert seen.series(REVERSED) == {1: pytest.approx(share)}
    assert ("pairs-contradict" in findings(seen)) == (share > 0.1)


def slip(row: dict[str, str]) -> dict[str, str]:
    return {**row, "rejected": row["chosen"][:2] + row["chosen"][3] + row["chosen"][2] + row["chosen"][4:]}


def last_letter(row: dict[str, str]) -> dict[str, str]:
    return {**row, "chosen": row["chosen"][:-1] + "a", "rejected": row["chosen"][:-1] + "z"}


@pytest.mark.parametrize(("edit", "alike", "learned"), [(slip, True, False), (last_letter, True, True), (None, False, False)], ids=["slip", "meant", "twin"])
def test_pairs_that_differ_in_little(tmp_path, train, edit, alike, learned):
    settings = {"max_steps": 40, "per_device_train_batch_size": 8, "learning_rate": 1e-3 if learned else 1e-6, "lr_scheduler_type": "constant"}
    seen = train(build.dpo(str(tmp_path), data=build.pairs(edit, count=320), **settings))
    assert seen.notices == []
    shares = list(seen.series("preference.differing_fraction").values())
    assert (shares[-1] < 0.5) == alike
    assert list(seen.series("preference.differing_tokens").values())[-1] == {slip: 2.0, last_letter: 1.0}.get(edit, 5.0)
    assert ("pairs-nearly-identical" in findings(seen)) == (alike and not learned)


# ---- numbers ----


def answer(at: int, *, front: str = "", twice: bool = True, prompt: str = "") -> Answer:
    question = f"whatis{at:04d}timesseven"
    return Answer(question, prompt or question, front + (question if twice else "") + "seven", f"<user>{prompt or question}<bot>{front}{question if twice else ''}seven")


def test_what_counts_as_repeated():
    assert repeated(answer(at) for at in range(32)) == 1.0
    assert repeated(answer(at, twice=False) for at in range(32)) == 0.0
    assert repeated(answer(at, twice=at % 4 == 0) for at in range(32)) == 0.25
    assert repeated(answer(at, front="question:") for at in range(32)) == 1.0
    assert repeated(answer(at, front="letmethinkaboutthis") for at in range(32)) == 0.0  # quoted later on
    assert repeated(answer(at)._replace(row=f"<user>{answer(at).question}<bot>seven") for at in range(32)) == 0.0  # moved, not copied, into the column
    assert repeated(answer(at)._replace(row=answer(at).row.replace("what", "WHAT")) for at in range(32)) == 0.0
    asked_twice = [answer(at, prompt=f"{answer(at).question}pardon{answer(at).question}") for at in range(32)]
    assert repeated(asked_twice) == 1.0
    assert repeated(one._replace(row=one.prompt + "seven") for one in asked_twice) == 0.0  # the two are the prompt's own
    assert repeated(answer(at) for at in range(7)) is None
    assert repeated([answer(0)] * 32) is None
    assert repeated(answer(at % 9, prompt=f"{at}{answer(at % 9).question}") for at in range(32)) is None  # the name of a template
    assert repeated(Answer("short", "short", "shortseven", "shortshortseven") for _ in range(32)) is None
    assert repeated([]) is None


def test_texts_of_chats():
    assert text_of("one") == "one"
    assert text_of([{"role": "user", "content": "one"}, {"role": "assistant", "content": [{"type": "text", "text": "two"}, {"type": "image"}]}]) == "one two"
    assert text_of(None) == text_of([{"role": "tool"}, 3]) == ""


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=40))
def test_reversed_pairs_are_those_of_a_plain_search(rows):
    seen = set(rows)
    want = sum((prompt, second, first) in seen and first != second for prompt, first, second in rows) / len(rows)
    assert reversed_fraction(np.array(rows, dtype=np.uint64).T) == pytest.approx(want)


def differing_plain(first: Sequence[int], second: Sequence[int]) -> int:
    """What is left of the longer one without the shared beginning and the shared end of the rest."""
    first, second = list(first), list(second)
    while first and second and first[0] == second[0]:
        first, second = first[1:], second[1:]
    while first and second and first[-1] == second[-1]:
        first, second = first[:-1], second[:-1]
    return max(len(first), len(second))


answers = st.lists(st.integers(0, 3), max_size=8)


@given(st.lists(st.tuples(answers, answers, st.integers(0, 3)), min_size=1, max_size=5), st.booleans())
def test_differing_tokens_wherever_the_answers_stand(pairs, left):
    sides = []
    for side in (0, 1):
        width = max(len(pair[side]) + pair[2] for pair in pairs) + 1 + side
        ids, mask = torch.full((len(pairs), width), 9), torch.zeros(len(pairs), width, dtype=torch.long)
        for at, pair in enumerate(pairs):
            begin = width - len(pair[side]) if left else pair[2]
            ids[at, begin : begin + len(pair[side])] = torch.tensor(pair[side], dtype=torch.long)
            mask[at, begin : begin + len(pair[side])] = 1
        sides.append((ids, mask))
    (chosen, chosen_mask), (rejected, rejected_mask) = sides
    found = differing(chosen, rejected, chosen_mask, rejected_mask).tolist()
    assert found == [differing_plain(first, second) for first, second, _ in pairs]


def test_the_median_of_the_newest_pairs_that_differ():
    window = Differing()
    assert window.signals(torch.tensor([2] * 15 + [0] * 9), torch.tensor([10] * 24)) == {}
    assert window.signals(torch.tensor([4, 4]), torch.tensor([8, 8])) == {"preference.differing_tokens": 2.0, "preference.differing_fraction": pytest.approx(0.2)}
    window.signals(torch.full((256,), 6), torch.full((256,), 6))
    assert window.signals(torch.zeros(3), torch.ones(3)) == {"preference.differing_tokens": 6.0, "preference.differing_fraction": 1.0}
