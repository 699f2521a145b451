"""Every rule is opened to every trainer that gives what it reads, or `closed_cells.yaml` says why not."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from trainvitals.events import CATALOGUE
from trainvitals.integrations import facts
from trainvitals.names import KIN
from trainvitals.rulelang.compile import Binder, RunInfo
from trainvitals.rulelang.loader import load_rules
from trainvitals.rulelang.model import TRAINERS, Rule
from trainvitals.rulelang.windows import Store

TESTS = Path(__file__).parents[1]
REASONS: dict[str, list[dict[str, Any]]] = yaml.safe_load((TESTS / "rules" / "closed_cells.yaml").read_text())
KINDS = {
    **KIN, "gold_uld": "gkd", "server_distillation": "distillation", "minillm": "distillation",
    **dict.fromkeys(("dppo", "gmpo", "gspo_token", "grpo_with_replay_buffer"), "grpo"),
}  # fmt: skip
"""Trainers on record under a name of their own, by the kind that rules see (`facts.trainer_kind`)."""


class _AnySetting(dict[str, float]):
    """A configuration in which every field is set: what a rule asks of it decides nothing here."""

    def get(self, key: str, default: Any = None) -> Any:
        return 1.0

    def __contains__(self, key: object) -> bool:
        return True

    def __getitem__(self, key: str) -> float:
        return 1.0


def signals() -> dict[str, frozenset[str]]:
    """Signals that some training of a kind gave, in any TRL."""
    found: dict[str, set[str]] = defaultdict(set)
    for path in sorted((TESTS / "suite" / "seen").glob("*.json")):
        record = json.loads(path.read_text())
        name = record["trainer"].partition("-")[0]
        found[KINDS.get(name, name)].update(record["signals"])
    return {kind: frozenset(names) for kind, names in found.items()}


def enough(rule: Rule, kind: str, given: frozenset[str]) -> bool:
    """Whether the rule's condition can be decided of such a run, by its signals, at least one of which it reads, or by settings alone."""
    return decided(rule, kind, given) and (not _reads(rule) or bool(_reads(rule) & given))


def _reads(rule: Rule) -> set[str]:
    return {name for name in rule.signals if not name.startswith("run.")}


def decided(rule: Rule, kind: str, given: frozenset[str]) -> bool:
    """Whether the rule's condition can be decided of such a run."""
    binder = Binder(Store(CATALOGUE), config=_AnySetting(), run=RunInfo(kind, "trl", 1, 1000, None), absent=frozenset(CATALOGUE) - given, rules=defaultdict(lambda: None))  # type: ignore[arg-type]
    bound = binder.bind(rule.when, rule.param_values, rule.lets, (rule.for_each, "x") if rule.for_each else None)
    return bound.status != "inactive"


def closed() -> Iterator[tuple[str, str]]:
    """Rule and kind of every closed cell."""
    given = signals()
    assert set(given) <= set(TRAINERS), "a trainer on record that rules cannot name: add its kind"
    for rule in load_rules():
        yield from ((rule.id, kind) for kind in sorted(given) if rule.trainers and kind not in rule.trainers and enough(rule, kind, given[kind]))


def reasoned() -> list[tuple[str, str]]:
    """Rule and kind of every cell with a reason."""
    return [(rule, trainer) for rule, entries in REASONS.items() for entry in entries for trainer in entry["trainers"]]


def test_every_closed_cell_has_a_reason_and_every_reason_a_cell() -> None:
    found, said = set(closed()), reasoned()
    assert sorted(found - set(said)) == [], "add the trainer to the rule's applies_to, or say in closed_cells.yaml why not"
    assert sorted(set(said) - found) == [], "the rule applies there, or has not what it reads: the reason is a leftover"
    assert len(said) == len(set(said)), "one reason a cell"


def test_reasons_name_rules_that_exist() -> None:
    ids = {rule.id for rule in load_rules()}
    words = {word.strip(".,:;()") for entries in REASONS.values() for entry in entries for word in entry["why"].split()}
    named = {word for word in words if word.count("-") >= 1 and word.islower() and word.replace("-", "").isalpha()}
    plain = {"log-probability", "log-probabilities", "held-out", "so-called", "nash-md"}
    assert named - plain <= ids, sorted(named - plain - ids)


UNDECLARED = {
    "optim.loss_start": "a first loss tells of a model only where the loss is one of tokens; of pairs and rewards it says nothing",
    "policy.entropy": "KTO and TPO log it, and no rule would be right about it there",
    "token.accuracy": "TPO: of pairs, as above",
    **dict.fromkeys(("policy.clip_fraction", "policy.clip_fraction_low", "policy.clip_fraction_high", "policy.clip_low", "policy.clip_high"), "MiniLLM alone among its kind"),
}
"""Signals that come in a training of which the catalogue does not say so, on purpose: to rules they are absent there."""


def test_what_comes_is_declared() -> None:
    """What a run gives and the catalogue does not say of its trainer is absent to every rule (`facts.emitted`): a rule would be silent for ever."""
    for kind, names in signals().items():
        silent = {name for name in names if name in CATALOGUE and not {"any", kind} & set(CATALOGUE[name].emitters)}
        assert not silent - set(UNDECLARED), (kind, sorted(silent - set(UNDECLARED)))


@pytest.mark.parametrize("trainer", TRAINERS)
def test_a_rule_is_not_said_to_apply_where_it_can_never_be_decided(trainer: str) -> None:
    given = frozenset(spec.name for spec in CATALOGUE.values() if {"any", trainer} & set(spec.emitters))
    assert [rule.id for rule in load_rules() if trainer in rule.trainers and not decided(rule, trainer, given)] == []


def test_what_a_rule_reads_is_needed_to_open_a_cell() -> None:
    rule = next(rule for rule in load_rules() if rule.id == "reward-collapse")
    given = signals()["grpo"]
    assert enough(rule, "grpo", given)
    assert not enough(rule, "grpo", given - {"reward.mean"})


@pytest.mark.parametrize(("trainer", "kind"), sorted(KIN.items()))
def test_a_log_calls_a_trainer_what_a_live_run_does(trainer: str, kind: str) -> None:
    live = type(trainer.replace("_", "") + "Trainer", (), {})
    assert facts.trainer_kind(live()) == kind
    assert trainer not in TRAINERS, "no run is called so: a rule that names it would never be asked"
