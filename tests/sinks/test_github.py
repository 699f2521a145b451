"""GitHub annotations: escaped, limited, only openings."""

from __future__ import annotations

from typing import Any

from trainvitals.findings import Finding, RuleRef
from trainvitals.sinks.github import annotate


def finding(**changes: Any) -> Finding:
    fields: dict[str, Any] = {
        "finding_id": "f", "fingerprint": "p", "rule": RuleRef(id="kl-runaway", code="KL001"), "state": "firing", "severity": "error",
        "category": "collapse", "title": "t", "message": "KL rose by 300%.", "advice": "Lower it.", "step": 7,
    }  # fmt: skip
    return Finding(**{**fields, **changes})


def test_levels_and_escapes() -> None:
    records = [finding(), finding(severity="info"), finding(state="resolved"), finding(message="a\r\nb: 5%", advice="")]
    assert list(annotate(records, "runs/a,b:c.jsonl")) == [
        "::error title=KL001 kl-runaway,file=runs/a%2Cb%3Ac.jsonl::KL rose by 300%25. Lower it. (step 7)",
        "::notice title=KL001 kl-runaway,file=runs/a%2Cb%3Ac.jsonl::KL rose by 300%25. Lower it. (step 7)",
        "::error title=KL001 kl-runaway,file=runs/a%2Cb%3Ac.jsonl::a b: 5%25 (step 7)",
    ]


def test_at_most_ten_of_a_level() -> None:
    out = list(annotate([finding() for _ in range(25)], "x"))
    assert len(out) == 11
    assert out[-1] == "::notice title=trainvitals::15 more findings of level error are not shown"
