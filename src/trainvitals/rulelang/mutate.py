"""Mutants: copies of a rule with one small fault each, to see whether the rule's tests notice.

A mutant is made by editing the model, not the text, so that it needs no parsing. `trainvitals.testing.run_mutants` runs the
tests against each; one that passes them all shows what the tests do not pin down.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from trainvitals.rulelang import expr as ex
from trainvitals.rulelang.expr import Expr, Node
from trainvitals.rulelang.functions import FUNCTIONS
from trainvitals.rulelang.model import Rule, Suggest, Sustain

_FLIPPED = {"<": ">", ">": "<", "<=": ">=", ">=": "<=", "==": "!=", "!=": "=="}
_AXES = ("updates", "points")


@dataclass(frozen=True, slots=True)
class Mutant:
    """One faulty copy.

    Attributes:
        name: Stable within a rule, such as ``when.flip.2`` or ``param.min_std.x2``; excuses name it.
        what: The fault in words.
        rule: The copy.
    """

    name: str
    what: str
    rule: Rule


def mutate(rule: Rule) -> list[Mutant]:
    """All mutants of a rule, in a fixed order."""
    mutants: list[Mutant] = []
    for part, expr, put in _places(rule):
        for name, what, root in _variants(expr.root):
            mutants.append(Mutant(f"{part}.{name}", f"{part}: {what}", put(replace(expr, root=root))))
    mutants += _parameters(rule)
    mutants += _life_cycle(rule)
    mutants += _relations(rule)
    mutants += _suggestions(rule)
    return mutants


Put = Callable[[Expr], Rule]


def _places(rule: Rule) -> Iterator[tuple[str, Expr, Put]]:
    """Every expression that decides something, and how to put another in its place."""
    for name, expr in rule.lets.items():
        yield f"let.{name}", expr, _put_let(rule, name)
    yield "when", rule.when, lambda new: replace(rule, when=new)
    if rule.clear is not None:
        yield "clear", rule.clear, lambda new: replace(rule, clear=new)
    for name, expr in rule.unless.items():
        yield f"unless.{name}", expr, _put_unless(rule, name)
    if rule.applies_where is not None:
        yield "where", rule.applies_where, lambda new: replace(rule, applies_where=new)


def _put_let(rule: Rule, name: str) -> Put:
    return lambda new: replace(rule, lets={**rule.lets, name: new})


def _put_unless(rule: Rule, name: str) -> Put:
    return lambda new: replace(rule, unless={**rule.unless, name: new})


def _variants(root: Node) -> Iterator[tuple[str, str, Node]]:
    """Every single change of a tree: name, words, changed tree. Numbering follows the text from left to right."""
    counts: dict[str, int] = {}

    def name(kind: str) -> str:
        counts[kind] = counts.get(kind, 0) + 1
        return f"{kind}.{counts[kind]}"

    def walk(node: Node, rebuild: Callable[[Node], Node]) -> Iterator[tuple[str, str, Node]]:
        match node:
            case ex.Compare(op):
                yield name("flip"), f"'{op}' became '{_FLIPPED[op]}'", rebuild(replace(node, op=_FLIPPED[op]))
            case ex.Logic(op, terms):
                other = "or" if op == "and" else "and"
                yield name("swap"), f"'{op}' became '{other}'", rebuild(replace(node, op=other))
                for at in range(len(terms)):
                    left = (*terms[:at], *terms[at + 1 :])
                    yield name("drop"), f"term {at + 1} of '{op}' dropped", rebuild(left[0] if len(left) == 1 else replace(node, terms=left))
            case ex.Not(operand):
                yield name("not"), "'not' dropped", rebuild(operand)
            case ex.Call(function):
                if FUNCTIONS[function].family in ("window", "reference"):
                    yield from _windows(node, name, rebuild)
        for child, put in _children(node):
            yield from walk(child, lambda new, put=put: rebuild(put(new)))  # type: ignore[misc]

    yield from walk(root, lambda new: new)


def _windows(node: ex.Call, name: Callable[[str], str], rebuild: Callable[[Node], Node]) -> Iterator[tuple[str, str, Node]]:
    """Window lengths, halved and doubled. Lengths that are parameters change with the parameter."""
    for axis in _AXES:
        length = node.keyword(axis)
        if isinstance(length, ex.Num):
            label = name("window")
            for factor in (0.5, 2.0):
                new = max(2.0, float(round(length.value * factor)))
                if new != length.value:
                    keywords = tuple((key, replace(length, value=new) if key == axis else value) for key, value in node.keywords)
                    yield f"{label}.x{factor:g}", f"{node.function} over {new:g} {axis} instead of {length.value:g}", rebuild(replace(node, keywords=keywords))


def _children(node: Node) -> Iterator[tuple[Node, Callable[[Node], Node]]]:
    """Direct parts, each with the function that puts another in its place."""
    match node:
        case ex.Negate(operand) | ex.Not(operand):
            yield operand, lambda new: replace(node, operand=new)
        case ex.Binary(_, left, right) | ex.Compare(_, left, right):
            yield left, lambda new: replace(node, left=new)
            yield right, lambda new: replace(node, right=new)
        case ex.Logic(_, terms):
            for at, term in enumerate(terms):
                yield term, lambda new, at=at: replace(node, terms=(*terms[:at], new, *terms[at + 1 :]))  # type: ignore[misc]
        case ex.If(condition, then, other):
            yield condition, lambda new: replace(node, condition=new)
            yield then, lambda new: replace(node, then=new)
            yield other, lambda new: replace(node, other=new)
        case ex.Call(_, args):
            for at, argument in enumerate(args):
                yield argument, lambda new, at=at: replace(node, args=(*args[:at], new, *args[at + 1 :]))  # type: ignore[misc]


def _parameters(rule: Rule) -> Iterator[Mutant]:
    """Every parameter halved and doubled; one that is 0 is moved to the ends of its range."""
    for name, param in rule.params.items():
        values = {"x0.5": param.default * 0.5, "x2": param.default * 2}
        if param.default == 0:
            values = {word: value for word, value in (("low", param.low), ("high", param.high)) if value != 0}
        for word, value in values.items():
            changed = replace(param, default=value)
            yield Mutant(f"param.{name}.{word}", f"{name} is {value:g} instead of {param.default:g}", replace(rule, params={**rule.params, name: changed}))


def _life_cycle(rule: Rule) -> Iterator[Mutant]:
    hits, of = rule.sustain.hits, rule.sustain.of
    changes = {"hits-1": (hits - 1, of), "hits+1": (hits + 1, max(of, hits + 1)), "of": (hits, of * 2) if hits > 1 else (0, 0)}
    for name, (new_hits, new_of) in changes.items():
        if new_hits >= 1:
            yield Mutant(f"sustain.{name}", f"{new_hits} hits of {new_of} instead of {hits} of {of}", replace(rule, sustain=Sustain(new_hits, new_of)))
    if rule.warmup:
        yield Mutant("warmup.none", "no warm-up", replace(rule, warmup=0))
        yield Mutant("warmup.x2", f"warm-up of {rule.warmup * 2} updates", replace(rule, warmup=rule.warmup * 2))
    if rule.clear is not None:
        yield Mutant("clear.none", "no end condition of its own", replace(rule, clear=None))
    ending = rule.clear_sustain or Sustain(of, of)
    if ending.of > 1:
        yield Mutant("clear_sustain.once", "one evaluation ends it", replace(rule, clear_sustain=Sustain(1, 1)))


def _relations(rule: Rule) -> Iterator[Mutant]:
    for name in rule.unless:
        left = {key: expr for key, expr in rule.unless.items() if key != name}
        yield Mutant(f"unless.{name}.none", f"exception {name} dropped", replace(rule, unless=left))
    if rule.applies_where is not None:
        yield Mutant("where.none", "applies to every configuration", replace(rule, applies_where=None))


def _suggestions(rule: Rule) -> Iterator[Mutant]:
    for at, suggest in enumerate(rule.suggest):
        if suggest.set is None or suggest.to is None:
            continue
        def put(new: Suggest, at: int = at) -> Rule:
            return replace(rule, suggest=(*rule.suggest[:at], new, *rule.suggest[at + 1 :]))

        name = f"suggest.{suggest.set}.{at + 1}"
        yield Mutant(f"{name}.opposite", f"{suggest.set} moves the other way", put(replace(suggest, to=_opposite(suggest.set, suggest.to))))
        if suggest.condition is not None:
            yield Mutant(f"{name}.always", f"{suggest.set} is suggested without its condition", put(replace(suggest, condition=None)))
        for place, also in enumerate(suggest.also):
            rest = (*suggest.also[:place], *suggest.also[place + 1 :])
            yield Mutant(f"{name}.without.{also.set}", f"{suggest.set} is suggested without {also.set}", put(replace(suggest, also=rest)))


def _opposite(parameter: str, to: Expr) -> Expr:
    """``2 * config.X - to``: as far from the present value, on the other side; ``not to`` for a truth value."""
    if to.kind == "bool" or isinstance(to.root, ex.Flag):
        return replace(to, root=ex.Not(to.root))
    if to.kind == "string" or isinstance(to.root, ex.Text):
        return replace(to, root=ex.Text("another"))
    present = ex.Name(f"config.{parameter}")
    return replace(to, root=ex.Binary("-", ex.Binary("*", ex.Num(2.0), present), to.root))
