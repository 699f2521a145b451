"""Rows that do not fit `max_length`: who drops them, who trains on what is left of them, and what is said about it."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import build_preference
import build_supervised
import pytest
from datasets import Dataset

from trainvitals.integrations.dropped_rows import rows
from trainvitals.integrations.trl import attach

pytestmark = pytest.mark.trl

OLD = tuple(int(part) for part in version("trl").split(".")[:2]) < (1, 9)
"""Before 1.9.0 only reward models dropped rows."""
LONG = "tell me in many words and letter by letter what is the answer to this long one"
EVERY = 4
"""One row in four is too long."""


def mixed(edit: Callable[[dict[str, Any]], None], made: list[dict[str, Any]]) -> Any:
    """Rows of which every fourth is edited."""
    for row in made[::EVERY]:
        edit(row)
    return Dataset.from_list(made)


def long_prompt(row: dict[str, Any]) -> None:
    row["prompt"] = [{"role": "user", "content": LONG}]


def long_answer(row: dict[str, Any]) -> None:
    row["rejected"][-1]["content"] = LONG


def dpo(folder: str, **changes: Any) -> Any:
    return build_preference.dpo(folder, data=mixed(long_prompt, list(build_preference.pairs())), **changes)


def kto(folder: str, **changes: Any) -> Any:
    return build_preference.kto(folder, data=mixed(long_prompt, list(build_preference.examples())), **changes)


def kto_without_kl(folder: str, **changes: Any) -> Any:
    return kto(folder, loss_type="apo_zero_unpaired", **changes)


def reward(folder: str, **changes: Any) -> Any:
    return build_supervised.reward(folder, rows=list(mixed(long_answer, build_supervised.pairs())), **changes)


def sft(folder: str, **changes: Any) -> Any:
    return build_supervised.sft(folder, rows=list(mixed(long_prompt, build_supervised.completions())), **changes)


CASES = {
    dpo: {"rows-dropped"} if not OLD else set[str](),  # before: `no-completion-tokens`, after 20 updates for so few of them
    kto: set[str](),  # 1.9 and later drop them, and no trace is left; before, prompts were cut at their beginning
    kto_without_kl: {"rows-dropped"} if not OLD else set[str](),
    reward: {"rows-dropped"},
    sft: {"rows-dropped"} if not OLD else set[str](),  # before: `rows-without-labels`, after 40 updates
}
ABOUT_ROWS = {"rows-dropped", "no-completion-tokens", "rows-without-labels", "labels-masked"}


def fired(observed: Any) -> set[str]:
    return {finding.rule.id for finding in observed.callback.monitor.findings if finding.state == "firing"} & ABOUT_ROWS


@pytest.mark.parametrize("build", CASES, ids=lambda build: build.__name__)
def test_one_row_in_four_is_too_long(build: Any, tmp_path: Path, train: Any) -> None:
    observed = train(build(str(tmp_path), max_length=48, max_steps=4))
    assert fired(observed) == CASES[build]
    if OLD and build is dpo:
        assert 0 < max(observed.series("preference.empty_fraction").values()) <= 0.5
    if "rows-dropped" in CASES[build]:
        assert observed.series("data.rows_given") == {1: 64.0}
        assert observed.series("data.rows_kept") == {1: 48.0}
        said = next(finding.message for finding in observed.callback.monitor.findings if finding.rule.id == "rows-dropped")
        assert said == "25% of the 64 rows do not fit max_length (48) and were dropped before training: the run learns from the 48 shorter ones only."


@pytest.mark.parametrize("build", CASES, ids=lambda build: build.__name__)
def test_nothing_is_said_where_the_same_rows_fit(build: Any, tmp_path: Path, train: Any) -> None:
    observed = train(build(str(tmp_path), max_length=160, max_steps=4))
    assert fired(observed) == set()
    kept = observed.series("data.rows_kept")
    assert kept == observed.series("data.rows_given")
    assert set(kept.values()) <= {64.0}
    assert observed.notices == []


def test_rows_that_a_user_left_out_are_not_counted(tmp_path: Path) -> None:
    """Their table is still below the set, as that of a filtered one is: only rows that are too long were dropped by the trainer."""
    trainer = build_preference.dpo(str(tmp_path))
    chosen = trainer.train_dataset.select([1, 5, 9])
    assert rows(chosen, trainer.args) == (3, 3)
    short = chosen.filter(lambda row: len(row["prompt_ids"]) < 1)
    assert rows(short, trainer.args) == (0, 0)
    assert rows(trainer.train_dataset, SimpleNamespace(max_length=None)) is None
    assert rows(trainer.train_dataset.to_iterable_dataset(), trainer.args) is None
    assert rows(None, trainer.args) is None
    assert rows([{"prompt_ids": [1]}], trainer.args) is None


def test_a_set_without_rows_is_named_before_anything_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trainer = build_supervised.reward(str(tmp_path), max_length=8)
    assert len(trainer.train_dataset) == 0
    attach(trainer, console=False)
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("[trainvitals]")]
    assert said == ["[trainvitals] the training set has no rows: all 64 rows were dropped because they do not fit max_length=8"]


def test_the_set_may_be_shuffled_afterwards(tmp_path: Path) -> None:
    trainer = dpo(str(tmp_path), max_length=48)
    expected = (64, 64) if OLD else (64, 48)
    assert rows(trainer.train_dataset.shuffle(seed=1), trainer.args) == expected
