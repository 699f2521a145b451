"""The page that says which pathology of the catalogue (notes/pathologies.md, 191 ids) is answered by which rule, and why the rest is not."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

LIST = Path(__file__).with_name("pathologies.yaml")
_ID = re.compile(r"\b[A-Z]{2}-\d\d\b")
FAMILIES = {
    "RS": "Reward and advantage signal", "EN": "Entropy and diversity", "TR": "Trust region", "OO": "Over-optimization of the checker", "LT": "Length and termination",
    "VF": "Value function", "AS": "Sampler mismatch and asynchrony", "DP": "DPO", "KT": "KTO", "OR": "ORPO", "RM": "Reward models", "SF": "SFT and data",
    "DI": "Distillation", "NU": "Optimization and numerics", "LO": "Adapters and quantization", "MO": "Mixtures of experts", "RE": "Representation", "IN": "Hangs, input, time", "HW": "Memory and hardware",
}  # fmt: skip
HEAD = """# What can go wrong, and who tells

The catalogue from which this project works lists {count} pathologies of post-training. {answered} of them are answered by at least one of the stable rules; where
none does, the page says why. An answer means that a rule would name it, not that it always does: how often it does is measured
in [the clinic](benchmark.md).
"""


def entries() -> dict[str, dict[str, Any]]:
    """The list by id: `name`, `also` (rules beside those whose sources name the id) and `why_not`."""
    loaded: dict[str, dict[str, Any]] = yaml.safe_load(LIST.read_text())
    return loaded


def answers(rules: Mapping[str, str]) -> dict[str, list[str]]:
    """Ids of the rules that answer each pathology.

    Args:
        rules: Text of each rule file by the rule's id.
    """
    named = {rule: set(_ID.findall(text)) for rule, text in rules.items()}
    return {one: sorted({rule for rule, ids in named.items() if one in ids} | set(entry.get("also", ()))) for one, entry in entries().items()}


def page(rules: Mapping[str, str], notice: str) -> str:
    """The page as Markdown."""
    listed, found = entries(), answers(rules)
    parts = [HEAD.format(count=len(listed), answered=sum(map(bool, found.values()))), notice]
    for family, title in FAMILIES.items():
        parts.append(f"## {title}\n\n| id | pathology | told by |\n| --- | --- | --- |")
        for one, entry in listed.items():
            if one.startswith(family):
                told = ", ".join(f"[{rule}](rules/{rule}.md)" for rule in found[one]) or f"*no rule:* {entry.get('why_not', '')}"
                parts.append(f"| {one} | {entry['name']} | {told} |")
        parts.append("")
    return "\n".join(parts).rstrip() + "\n"
