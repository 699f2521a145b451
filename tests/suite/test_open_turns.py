"""End tokens of earlier turns teach no end of the last one: counts of sequences, and rows that a script has made tokens of."""

from __future__ import annotations

from typing import Any

import build_supervised as build
import pytest
import torch

from trainvitals.integrations import tiny
from trainvitals.integrations.supervised import label_signals, open_counts, sequences

pytestmark = pytest.mark.trl

END, OPEN, PAD = 2, 3, 9


def turns(*texts: int, closed: bool = True) -> list[int]:
    """Turns of so many letters, each opened, all but the last ended; the last as `closed` says."""
    row = [token for size in texts for token in (OPEN, *[5] * size, END)]
    return row if closed else row[:-1]


@pytest.mark.parametrize(
    ("row", "still"),
    [
        (turns(6, 20), 0),
        (turns(6, 20, closed=False), 1),
        (turns(6, 12, closed=False), 0),  # the header of an answer, not an answer
        (turns(6, 13, closed=False), 1),
        (turns(20, closed=False), 0),  # no end token at all: counted already
        ([*turns(6, 20), *[5] * 20], 0),  # text behind the end, no turn
        ([*turns(6), *[5] * 20], 0),  # running text
        (turns(6, 20, 8, 20, closed=False), 1),
    ],
)  # fmt: skip
def test_a_last_turn_that_no_end_token_ends(row, still):
    ids = torch.nn.functional.pad(torch.tensor([row, turns(4, 4)[:8] + [PAD] * (len(row) - 8)]), (0, 3), value=PAD)
    labels, where = torch.where(ids == PAD, -100, ids), sequences(ids, (ids != PAD).long(), None)
    ends, openers = frozenset({END}), frozenset({OPEN})
    found = open_counts(ids, labels, where, ends, openers, 0)
    assert found[0] == still
    if still:
        assert found.tolist() == [1, len(row), len(row)]
    assert open_counts(ids, labels, where, ends, openers, len(row))[0] == 0  # cut
    assert open_counts(ids, labels, where, ends, frozenset(), 0)[0] == 0
    flat, places = ids[:, : len(row)][None, 0], torch.arange(len(row))[None]
    both, twice = torch.cat([flat, flat], 1), torch.cat([places, places], 1)
    assert open_counts(both, both, sequences(both, None, twice), ends, openers, 0)[0] == 2 * still  # padding-free
    answers = labels.clone()
    answers[:, 8:] = -100  # only the question is learned: not its fault
    assert open_counts(ids, answers, where, ends, openers, 0)[0] == 0


def test_open_turns_take_from_the_share():
    counts = torch.tensor([[40, 40, 4, 4, 3, 0]])
    assert label_signals(counts)["token.end_label_fraction"] == 0.75
    assert label_signals(counts, 2)["token.end_label_fraction"] == 0.25
    assert label_signals(counts, 5)["token.end_label_fraction"] == 0.0


def rows_of_a_script(end: str, *, width: int = 0) -> list[dict[str, Any]]:
    """Rows that a script made tokens of, or blocks of `width` tokens of all of them."""
    vocabulary, rows = tiny.tokenizer(), []
    for row in build.completions():
        asked = vocabulary.apply_chat_template(row["prompt"], tokenize=False, add_generation_prompt=True)
        rows.append(vocabulary(asked + row["completion"][0]["content"] + end)["input_ids"])
    if width:
        text = [token for row in rows for token in row]
        rows = [text[at : at + width] for at in range(0, len(text) - width, width)]
    return [{"input_ids": row} for row in rows]


@pytest.mark.parametrize(
    ("end", "width", "share"), [("<|im_end|>", 0, 1.0), ("<|endoftext|>", 0, 0.0), ("<|im_end|>", 50, None)], ids=["right", "spelled", "blocks"]
)
def test_the_end_token_of_another_model(tmp_path, train, end, width, share):
    rows = rows_of_a_script(end, width=width)
    seen = train(build.sft(str(tmp_path), rows=rows, learning_rate=1e-4, max_steps=6, per_device_train_batch_size=4, max_length=128))
    assert seen.notices == []
    values = list(seen.series("token.end_label_fraction").values())
    assert len(values) == 6
    assert values == [share] * 6 if share is not None else min(values) > 0.5
    assert ("end-token-missing" in {one.rule.id for one in seen.callback.monitor.findings}) == (share == 0.0)
