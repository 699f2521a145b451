"""Saving and loading an engine: what goes into a trainer's checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from trainvitals.findings import Action
from trainvitals.watch import Watched

if TYPE_CHECKING:
    from trainvitals.engine import Engine

VERSION = 1


def save(engine: Engine) -> dict[str, Any]:
    """The engine's state as JSON can hold it. Findings themselves are not in it: they are in the record stream."""
    return {
        "version": VERSION,
        "rules_digest": engine.ruleset.digest,
        "step": engine.step, "late": engine.late, "counts": dict(engine.counts), "closed": engine._closed,
        "open_step": engine._open_step, "open_time": engine._open_time, "dirty": engine._dirty, "origin": engine._origin,
        "blank_until": engine._blank_until, "blind_at": engine._blind_at, "known": sorted(engine._known), "phase": engine._info.phase,
        "store": engine.store.state_dict(),
        "maker": engine._maker.state_dict(),
        "open_actions": {
            key: [action.model_dump(mode="json", by_alias=True) for action in actions]
            for key, actions in engine._reporter.open_actions.items()
        },
        "followups": [
            {"rule": watch.owner.rule.id, "label": watch.label[1] if watch.label else "", "note": note}
            for watch, note in engine._followups.waiting
        ],
        "rules": {watched.rule.id: _save_rule(watched) for watched in engine._watched},
    }  # fmt: skip


def _save_rule(watched: Watched) -> dict[str, Any]:
    return {
        "digest": watched.rule.digest, "error": watched.reason if watched.off == "error" else None,
        "applied": sorted(watched.applied), "overflow": sorted(watched.overflow), "blind_at": watched.blind_at,
        "status": [watched.status.firing, watched.status.firing_since, watched.status.last_fired],
        "instances": {key: {"label": watch.label, **watch.state_dict()} for key, watch in watched.instances.items()},
    }  # fmt: skip


def load(engine: Engine, state: Mapping[str, Any]) -> None:
    """Put a saved state into an engine. Rules that changed since start afresh; the others continue.

    Raises:
        ValueError: If the state is of another version.
    """
    if state.get("version") != VERSION:
        msg = f"engine state of version {state.get('version')!r}; this trainvitals reads version {VERSION}"
        raise ValueError(msg)
    findings, run, info, trainer, bound = list(engine.findings), engine._reporter.run, engine._info, engine._maker.trainer, engine._bound
    type(engine).__init__(engine, engine.ruleset, catalogue=engine.catalogue)
    engine.findings.extend(findings)
    engine._reporter.run, engine._info, engine._maker.trainer = run, info, trainer
    engine.store.load_state_dict(state["store"])
    engine.step, engine.late = state["step"], state["late"]
    engine.counts.clear()
    engine.counts.update(state["counts"])
    engine._closed, engine._open_step, engine._open_time = state["closed"], state["open_step"], state["open_time"]
    engine._dirty, engine._origin, engine._blank_until = state["dirty"], state["origin"], state["blank_until"]
    engine._blind_at, engine._known = state["blind_at"], set(state["known"])
    engine._info.phase = state["phase"]
    engine._maker.load_state_dict(state["maker"])
    engine._reporter.open_actions = {
        key: [Action.model_validate(action) for action in actions] for key, actions in state["open_actions"].items()
    }
    for watched in engine._watched:
        saved = state["rules"].get(watched.rule.id)
        if saved is not None and saved["digest"] == watched.rule.digest:
            _load_rule(engine, watched, saved)
        elif engine._origin is not None:
            watched.blind_at = engine.step + watched.rule.warmup + 200
            for watch in watched.instances.values():
                watch.warm_until = engine.step + watched.rule.warmup
    engine._carried = True
    if bound:
        engine._bind()
    for entry in state["followups"]:
        owner = engine._by_id.get(entry["rule"])
        if owner is not None and entry["label"] in owner.instances:
            engine._followups.waiting.append((owner.instances[entry["label"]], dict(entry["note"])))


def _load_rule(engine: Engine, watched: Watched, saved: Mapping[str, Any]) -> None:
    if saved["error"] is not None:
        watched.off, watched.reason = "error", saved["error"]
    watched.applied, watched.overflow, watched.blind_at = set(saved["applied"]), set(saved["overflow"]), saved["blind_at"]
    watched.status.firing, watched.status.firing_since, watched.status.last_fired = saved["status"]
    for key, entry in saved["instances"].items():
        label = (entry["label"][0], entry["label"][1]) if entry["label"] else None
        watch = watched.instances.get(key) or watched.watch(label, engine._origin)
        watch.load_state_dict(entry)
