"""The question in front of the answer, and pairs that are there both ways round: of real trainers' data sets, and of numbers."""

from __future__ import annotations

from typing import Any

import build_preference as build
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainvitals.integrations import tiny
from trainvitals.integrations.answers_scan import Answer, repeated, reversed_fraction, text_of

pytestmark = pytest.mark.trl

REPEATED, REVERSED = "data.prompt_repeated_fraction", "data.pair_reversed_fraction"


def question_first(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of text whose answers begin with the prompt that has a column of its own."""
    return [{**row, **{name: row["prompt"] + row[name] for name in ("chosen", "rejected", "completion") if name in row}} for row in rows]


def texts(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Chats as text, with the tokenizer's template."""
    vocabulary, made = tiny.tokenizer(), []
    for row in rows:
        one = {name: value if isinstance(value, bool | str) else value[-1]["content"] for name, value in row.items()}
        made.append({**one, "prompt": vocabulary.apply_chat_template(row["prompt"], tokenize=False, add_generation_prompt=True)})
    return made


def findings(seen: Any) -> set[str]:
    return {one.rule.id for one in seen.callback.monitor.findings}


def both_ways(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return rows + [{**row, "chosen": row["rejected"], "rejected": row["chosen"]} for row in rows]
