"""The strength of a detector's evidence stands in the record of the finding, with its limit, so that nobody has to trust a word."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from trainvitals.engine import Engine
from trainvitals.findings import Finding
from trainvitals.items import Frame, Item, RunStart
from trainvitals.rulelang.loader import RuleSet, load_rules
from trainvitals.sinks.encode import encode_record

SHIFT = """
id: entropy-shift
code: ENT900
version: 1.0.0
title: Entropy has left its past
category: ood-drift
severity: warning
params:
  evidence: {default: 4, unit: decades, range: [1, 8], why: "once in 10,000 samples by chance"}
let:
  surprise: shift_down(policy.entropy, points=100, every=1)
when: surprise > evidence
message: "Entropy fell."
docs: {explain: a test, look_first: a test}
"""


def first(rules: RuleSet, items: list[Item], rule: str) -> dict[str, Any]:
    """The record of the first opening of a rule, as a program reads it."""
    engine = Engine(rules)
    for item in items:
        for record in engine.observe(item):
            if isinstance(record, Finding) and record.rule.id == rule and record.state == "firing":
                decoded: dict[str, Any] = json.loads(encode_record(record))
                return decoded
    raise AssertionError(f"{rule} did not fire")


def test_the_e_value_of_a_shift_is_in_the_record(tmp_path: Path) -> None:
    path = tmp_path / "entropy-shift.yaml"
    path.write_text(SHIFT)
    source = random.Random(0)
    values = [source.gauss(1.0 if step < 120 else 0.4, 0.1) for step in range(200)]
    record = first(load_rules([path]), [Frame(step, {"policy.entropy": value}) for step, value in enumerate(values, 1)], "entropy-shift")
    terms = {term["expr"]: term for term in record["why"]}
    named, compared = terms["surprise"], terms["surprise > evidence"]
    assert named["means"] == "shift_down(policy.entropy, points=100, every=1)"
    assert 4 < named["value"] <= 8  # decades, log10 of the e-value
    assert (compared["value"], compared["limit"], compared["result"]) == (named["value"], 4.0, True)
    assert compared["origin"] == "params.evidence default"


def test_the_chance_that_a_held_out_fall_is_luck_is_in_the_record() -> None:
    items: list[Item] = [RunStart("r", trainer="grpo")]
    for step in range(1, 61):
        items.append(Frame(step, {"reward.mean": step / 60}))
        if step % 10 == 0:
            chance = 1.0 if step < 40 else 0.002
            items.append(
                Frame(step, {"eval.score": 0.5, "eval.fall_chance": chance, "eval.score_fall": 0.2, "eval.proxy_gain": 0.3}, phase="eval")
            )
    record = first(load_rules(), items, "proxy-divergence")
    (term,) = [term for term in record["why"] if term["expr"] == "eval.fall_chance < max_chance"]
    assert (term["value"], term["limit"], term["result"]) == (0.002, 0.01, True)
    assert term["origin"].startswith("params.max_chance")
    assert record["signals"]["eval.fall_chance"] == 0.002
