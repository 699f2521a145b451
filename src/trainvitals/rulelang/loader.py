"""Rule files → `RuleSet`: every file read, every reference checked, causes before effects, all problems at once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path

from trainvitals._resources import rules_folder
from trainvitals.events import CATALOGUE, SignalSpec
from trainvitals.findings import SEVERITIES
from trainvitals.rulelang import confidence
from trainvitals.rulelang import overrides as user
from trainvitals.rulelang.build import Built, build
from trainvitals.rulelang.errors import Problem, RuleError, nearest
from trainvitals.rulelang.model import Rule, Status
from trainvitals.rulelang.yaml_strict import MAX_BYTES, Map, Node, Scalar, Seq, scan


@dataclass(frozen=True, slots=True)
class RuleSet:
    """Checked rules in the order of evaluation: a cause comes before its effects.

    Attributes:
        rules: Rules in force.
        digest: sha256 over the effective rules.
        tuned: User overrides in force, one line each with reason and place.
        disabled: Id to reason of the rules that a user switched off; they are not in `rules`.
        warnings: Style problems (W6xx), which refuse nothing.
    """

    rules: tuple[Rule, ...] = ()
    digest: str = ""
    tuned: list[str] = field(default_factory=list)
    disabled: Mapping[str, str] = field(default_factory=dict)
    warnings: tuple[Problem, ...] = ()
    by_id: Mapping[str, Rule] = field(default_factory=dict)

    def __iter__(self) -> Iterator[Rule]:
        return iter(self.rules)

    def __len__(self) -> int:
        return len(self.rules)


def load_rules(
    paths: Sequence[Path | str] | None = None,
    *,
    overrides: Sequence[Path | str] = (),
    enable: Sequence[str] = (),
    custom: Sequence[SignalSpec] = (),
) -> RuleSet:
    """Read and check rules.

    Args:
        paths: Rule files, or folders that hold them; None reads the built-in ones.
        overrides: Users' override files; a later one wins.
        enable: Experimental rules to switch on, by id, or ``experimental`` for all of them. Rules of user files are on.
        custom: Signals of the user, from `events.custom_signal`.

    Raises:
        RuleError: With every problem of every file.
    """
    signals = {**CATALOGUE, **{spec.name: spec for spec in custom}} if custom else CATALOGUE
    problems: list[Problem] = []
    built, refused = [], set[str]()
    for path, status, source in _builtin_files() if paths is None else _user_files(paths, problems):
        one, found = read_rule(path, status=status, source=source, signals=signals)
        problems += found
        if one is None:
            refused.add(path.stem)
        else:
            built.append(one)
    known = {one.rule.id for one in built} | refused
    _unique(built, problems)
    _references(built, known, problems)
    if not any(problem.code == "E502" for problem in problems):
        _cycles(built, problems)
    on = _enabled(built, known, enable, problems)
    off = {one.rule.id for one in built} - {one.rule.id for one in on}
    effective, tuned = user.apply(on, overrides, signals, known, problems, not_enabled=off)
    errors = [problem for problem in problems if problem.severity == "error"]
    if errors:
        raise RuleError(_in_order(problems))
    ordered = _topological([rule for rule in effective if rule.disabled is None])
    table = _measured()
    finished = tuple(_finished(rule, table) for rule in ordered)
    disabled = {rule.id: rule.disabled for rule in effective if rule.disabled is not None}
    digest = _digest([rule.digest for rule in sorted(finished, key=lambda rule: rule.id)])
    by_id = {rule.id: rule for rule in finished}
    return RuleSet(finished, digest, tuned, disabled, tuple(_in_order(problems)), by_id)


def read_rule(
    path: Path, *, status: Status = "stable", source: str = "builtin", signals: Mapping[str, SignalSpec] = CATALOGUE
) -> tuple[Built | None, list[Problem]]:
    """Read one rule file without looking at other rules."""
    data = _read(path)
    if isinstance(data, Problem):
        return None, [data]
    if signals is CATALOGUE:
        one, problems = _parsed(data, str(path), path.stem, status, source)
        return one, list(problems)
    return parse_rule(data, str(path), stem=path.stem, status=status, source=source, signals=signals)


@lru_cache(maxsize=512)
def _parsed(data: bytes, path: str, stem: str, status: Status, source: str) -> tuple[Built | None, tuple[Problem, ...]]:
    """A rule file as it was read before by this process: every monitor, attach and replay loads the same rules, and nothing changes a parsed one."""
    one, problems = parse_rule(data, path, stem=stem, status=status, source=source)
    return one, tuple(problems)


def parse_rule(
    data: str | bytes,
    path: str,
    *,
    stem: str,
    status: Status = "stable",
    source: str = "builtin",
    signals: Mapping[str, SignalSpec] = CATALOGUE,
) -> tuple[Built | None, list[Problem]]:
    """Read one rule from text; `stem` is the file name that its id must equal."""
    node, problems = scan(data, path)
    if node is None:
        return None, problems
    if not isinstance(node, Map):
        return None, [*problems, node.problem("E422", "a rule file must be a mapping: 'id: ...' at the top")]
    one, found = build(node, stem=stem, status=status, source=source, signals=signals)
    return (None if problems else one), _in_order(problems + found)


def _read(path: Path) -> bytes | Problem:
    try:
        with path.open("rb") as file:
            return file.read(MAX_BYTES + 1)
    except OSError as error:
        return Problem("E427", f"cannot be read: {error.strerror or type(error).__name__}", str(path), 1, 1)


def _is_rule(path: Path) -> bool:
    return path.suffix in (".yaml", ".yml") and not path.stem.endswith(".test")


def _builtin_files() -> Iterator[tuple[Path, Status, str]]:
    root = rules_folder()
    statuses: tuple[Status, ...] = ("stable", "experimental")
    for status in statuses:
        for path in sorted((root / status).glob("*.yaml")):
            if _is_rule(path):
                yield path, status, "builtin"


def _user_files(paths: Sequence[Path | str], problems: list[Problem]) -> Iterator[tuple[Path, Status, str]]:
    for given in paths:
        path = Path(given)
        if path.is_dir():
            files = sorted(file for file in path.rglob("*") if _is_rule(file) and file.is_file())
            if not files:
                problems.append(Problem("E427", "folder holds no rule files (*.yaml)", str(path), 1, 1))
            for file in files:
                yield file, _status(file), str(file)
        else:
            yield path, _status(path), str(path)


def _status(path: Path) -> Status:
    return "experimental" if path.parent.name == "experimental" else "stable"


def _unique(built: Sequence[Built], problems: list[Problem]) -> None:
    for key, code in (("id", "E503"), ("code", "E504")):
        seen: dict[str, Built] = {}
        for one in built:
            value = getattr(one.rule, key)
            if value in seen:
                problems.append(
                    one.node.values[key].problem(code, f"{key} {value!r} is already used", f"by {seen[value].rule.path}")
                )
            else:
                seen[value] = one


def _references(built: Sequence[Built], known: set[str], problems: list[Problem]) -> None:
    """Every rule named by `caused_by`, `absorbs` and `firing(...)` must exist."""
    for one in built:
        for key in ("caused_by", "absorbs"):
            node = one.node.values.get(key)
            for item in node.items if isinstance(node, Seq) else ():
                if isinstance(item, Scalar) and item.text not in known:
                    problems.append(
                        item.problem("E501", f"'{key}' names the unknown rule {item.text[:80]!r}", nearest(item.text, known))
                    )
        for name in sorted(one.rule.asks - known):
            problems.append(
                _place(one.node, name).problem(
                    "E501", f"an expression asks about the unknown rule {name[:80]!r}", nearest(name, known)
                )
            )


def _place(node: Node, text: str) -> Node:
    """The first scalar that holds a text; the node itself when there is none."""
    todo: list[Node] = [node]
    while todo:
        inner = todo.pop(0)
        if isinstance(inner, Scalar) and (f"'{text}'" in inner.text or f'"{text}"' in inner.text):
            return inner
        todo[:0] = inner.values.values() if isinstance(inner, Map) else inner.items if isinstance(inner, Seq) else ()
    return node


def before(rule: Rule) -> tuple[str, ...]:
    """Ids of the rules that must be evaluated earlier: causes, absorbed parts, and those that its expressions ask about."""
    return tuple(dict.fromkeys((*rule.caused_by, *rule.absorbs, *sorted(rule.asks))))


def _cycles(built: Sequence[Built], problems: list[Problem]) -> None:
    """Report each circle of causes once, at the rule of it that comes first in the alphabet."""
    by_id = {one.rule.id: one for one in built}
    done: set[str] = set()
    for start in sorted(by_id):
        trail: list[str] = []
        stack: list[tuple[str, Iterator[str]]] = []
        if start not in done:
            trail.append(start)
            stack.append((start, iter(before(by_id[start].rule))))
        while stack:
            name, following = stack[-1]
            target = next(following, None)
            if target is None:
                done.add(name)
                stack.pop()
                trail.pop()
            elif target in trail:
                circle = [*trail[trail.index(target) :], target]
                _report_cycle(by_id[name], target, circle, problems)
            elif target in by_id and target not in done:
                trail.append(target)
                stack.append((target, iter(before(by_id[target].rule))))


def _report_cycle(one: Built, target: str, circle: Sequence[str], problems: list[Problem]) -> None:
    for key in ("caused_by", "absorbs"):
        node = one.node.values.get(key)
        for item in node.items if isinstance(node, Seq) else ():
            if isinstance(item, Scalar) and item.text == target:
                problems.append(
                    item.problem("E502", f"rules wait for one another: {' -> '.join(circle)}", "remove one of these edges")
                )
                return
    problems.append(
        _place(one.node, target).problem("E502", f"rules wait for one another: {' -> '.join(circle)}", "remove one of these edges")
    )


def _enabled(built: Sequence[Built], known: set[str], enable: Sequence[str], problems: list[Problem]) -> list[Built]:
    """Stable rules, rules of users, and the experimental ones that were named."""
    for name in enable:
        if name != "experimental" and name not in known:
            problems.append(
                Problem(
                    "E508",
                    f"cannot enable the unknown rule {name!r}",
                    "<enable>",
                    1,
                    1,
                    hint=nearest(name, {*known, "experimental"}),
                )
            )
    everything = "experimental" in enable
    return [
        one for one in built if one.rule.status == "stable" or one.rule.source != "builtin" or everything or one.rule.id in enable
    ]


def _topological(rules: Sequence[Rule]) -> list[Rule]:
    """The order in which rules are looked at, and in which a reader meets what one update brings: errors first, then warnings, each after all that explains it.

    Among equals by id, so that the order never depends on the disk.
    """
    left = {rule.id: rule for rule in sorted(rules, key=lambda rule: (-SEVERITIES.index(rule.severity), rule.id))}
    urgent, above = list(left.values()), dict[str, set[str]]()
    ordered: list[Rule] = []
    while left:
        ready = [rule for rule in left.values() if not any(name in left for name in before(rule))]
        for rule in ready:
            known = [name for name in before(rule) if name in above]
            above[rule.id] = {rule.id, *known, *(name for cause in known for name in above[cause])}
        ordered += ready
        for rule in ready:
            del left[rule.id]
    return list({one.id: one for rule in urgent for one in ordered if one.id in above[rule.id]}.values())


def _finished(rule: Rule, table: Mapping[str, confidence.Measured]) -> Rule:
    measured = confidence.of(rule, table)
    return replace(rule, digest=_digest(rule.canonical()), measured=measured, confidence=measured.confidence if measured else None)


def _measured() -> dict[str, confidence.Measured]:
    try:
        return confidence.read(rules_folder() / confidence.FILE)
    except FileNotFoundError:  # rules of one's own without the built-in ones
        return {}


def _digest(data: object) -> str:
    return "sha256:" + hashlib.sha256(json.dumps(data, sort_keys=True, ensure_ascii=True).encode()).hexdigest()


def _in_order(problems: Iterable[Problem]) -> list[Problem]:
    """By file and position, without repetition."""
    return sorted(dict.fromkeys(problems), key=lambda problem: (problem.path, problem.line, problem.column, problem.code))
