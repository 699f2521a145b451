"""Mutants: each differs from the rule in one place, and the runner tells the killed from the survivors."""

from __future__ import annotations

from pathlib import Path

from trainvitals.rulelang.loader import load_rules
from trainvitals.rulelang.model import Rule
from trainvitals.rulelang.mutate import mutate
from trainvitals.testing_mutants import run_mutants

TEXT = """\
id: kl-high
code: KL001
version: 1.0.0
title: KL is high
category: numerics
severity: warning
applies_to: {trainers: any}
params:
  limit: {default: 1, unit: nats, range: [0, 10], why: test}
let:
  kl: mean(policy.kl_ref, updates=10)
when: kl > limit and not policy.entropy > 5
sustain: {hits: 2, of: 3}
clear: kl < 0.5 * limit
warmup: {updates: 5}
unless: {saving: updates_since(save_begin) < 3}
message: "KL is {kl:num}."
suggest:
  - set: learning_rate
    to: config.learning_rate / 2
    if: config.learning_rate > 0
    why: smaller steps
docs: {explain: test, look_first: test}
"""
TEST = """\
rule: kl-high
given: {{config: {{learning_rate: 1.0e-6}}}}
{extra}cases:
  - name: fires
    series: {{policy.kl_ref: "0.5x20 3x20", policy.entropy: "1x40"}}
    expect: [{{fires_between: [24, 24]}}, {{at: 30, suggests: {{learning_rate: {{to: 5.0e-7}}}}}}]
"""


def write(tmp: Path, extra: str = "") -> Rule:
    (tmp / "kl-high.yaml").write_text(TEXT)
    (tmp / "kl-high.test.yaml").write_text(TEST.format(extra=extra))
    (rule,) = load_rules([tmp / "kl-high.yaml"]).rules
    return rule


def test_every_kind_of_fault_is_there_once(tmp_path: Path) -> None:
    rule = write(tmp_path)
    mutants = mutate(rule)
    names = [mutant.name for mutant in mutants]
    assert len(set(names)) == len(names)
    expected = {
        "let.kl.window.1.x0.5", "let.kl.window.1.x2", "when.swap.1", "when.drop.1", "when.drop.2", "when.flip.1", "when.not.1", "when.flip.2",
        "clear.flip.1", "unless.saving.flip.1", "param.limit.x0.5", "param.limit.x2", "sustain.hits-1", "sustain.hits+1", "sustain.of",
        "warmup.none", "warmup.x2", "clear.none", "clear_sustain.once", "unless.saving.none", "suggest.learning_rate.1.opposite",
        "suggest.learning_rate.1.always",
    }  # fmt: skip
    assert set(names) == expected
    assert all(mutant.rule != rule for mutant in mutants)
    assert mutate(rule) == mutants


def test_killed_survived_excused_and_stale(tmp_path: Path) -> None:
    write(tmp_path, "excused: {warmup.none: the window is longer, when.flip.1: not true}\n")
    (report,) = run_mutants(tmp_path)
    status = {result.name: result.status for result in report.results}
    assert status["when.flip.1"] == "killed"
    assert status["param.limit.x2"] == "killed"
    assert status["suggest.learning_rate.1.opposite"] == "killed"
    assert status["warmup.none"] == "excused"
    assert status["clear.none"] == "survived"
    assert report.stale == ["when.flip.1"]
    assert not report.passed


def test_a_broken_test_is_reported_instead_of_mutants(tmp_path: Path) -> None:
    write(tmp_path)
    path = tmp_path / "kl-high.test.yaml"
    path.write_text(path.read_text().replace("[24, 24]", "[1, 2]"))
    (report,) = run_mutants(tmp_path)
    assert report.broken == ["fires"]
    assert report.results == []
