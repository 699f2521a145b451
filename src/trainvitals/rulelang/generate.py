"""Generated code for bound trees: straight-line Python over numbered slots.

The source holds operators, numbers and slot names that we made, never a word of a rule: reads, strings and functions are
passed in as slots. It gives exactly what `kleene.evaluate` gives (property test), at a tenth of the cost: unknown is
checked where it can occur, and terms of ``and``/``or`` come cheapest first, which Kleene's logic allows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from types import CodeType
from typing import Any, cast

from trainvitals.rulelang.functions import MATH, apply_math
from trainvitals.rulelang.kleene import (
    Absent,
    Arithmetic,
    Bound,
    Choice,
    Comparison,
    Const,
    Inverse,
    Junction,
    Math,
    Negative,
    Read,
    Value,
    cost,
)

_TOTAL = frozenset({"abs", "min", "max", "floor", "ceil", "round", "clamp"})
"""Functions that give a finite number for all finite numbers: called without a guard."""
_FROM = {"log": "0.0 <", "sqrt": "0.0 <="}
"""Functions that give a finite number for all finite numbers from here on, and none for the others."""


def generate(node: Bound) -> Callable[[], Value]:
    """A function without arguments that gives the value of the tree now."""
    if isinstance(node, Const):
        value = node.value
        return lambda: value
    if isinstance(node, Read):
        return node.read
    return cast("Callable[[], Value]", _function(node, None))


def generate_each(node: Bound, argument: str) -> Callable[[Sequence[float]], list[Value]]:
    """A function of finite numbers, each of which stands in turn for every read with the text `argument`: a value for each."""
    return cast("Callable[[Sequence[float]], list[Value]]", _function(node, argument))


def _function(node: Bound, argument: str | None) -> Callable[..., Any]:
    writer = _Writer(argument)
    each = argument is not None
    atom, _ = writer.emit(node, 2 if each else 1)
    names = ", ".join([*(["xs"] if each else []), *(f"{name}={name}" for name in writer.slots)])
    if not each:
        body = [*writer.lines, f"    return {atom}"]
    elif len(writer.lines) == 1 and (formula := writer.lines[0].strip().removeprefix(f"{atom} = ")) != writer.lines[0].strip():
        body = [f"    return [{formula} for x in xs]"]
    else:
        body = ["    out = []", "    add = out.append", "    for x in xs:", *writer.lines, f"        add({atom})", "    return out"]
    namespace: dict[str, Any] = dict(writer.slots)
    exec(_code("\n".join([f"def bound({names}):", *body])), namespace)
    function: Callable[..., Any] = namespace["bound"]
    return function


@lru_cache(maxsize=4096)
def _code(source: str) -> CodeType:
    """Compiled source, kept: a rule that is bound again, or for the next run, is written in the same words."""
    return compile(source, "<bound expression>", "exec")


class _Writer:
    """Writes statements; `emit` gives the atom that holds a node's value and whether it can be unknown."""

    def __init__(self, argument: str | None) -> None:
        self.argument = argument
        self.lines: list[str] = []
        self.slots: dict[str, Any] = {}
        self._ids: dict[int, str] = {}
        self._count = 0
        self._known: dict[Bound, tuple[str, bool]] = {}

    def slot(self, value: object, key: object = None) -> str:
        """Name under which an object is passed in; one per object."""
        ident = id(value) if key is None else hash(key)
        if ident not in self._ids:
            self._ids[ident] = f"s{len(self.slots)}"
            self.slots[self._ids[ident]] = value
        return self._ids[ident]

    def temporary(self) -> str:
        self._count += 1
        return f"t{self._count}"

    def line(self, depth: int, text: str) -> None:
        self.lines.append("    " * depth + text)

    def emit(self, node: Bound, depth: int) -> tuple[str, bool]:
        """Write what computes a node, unless a statement that certainly ran before has done so."""
        if isinstance(node, Const):
            return self.constant(node.value), node.value is None
        if node not in self._known:
            self._known[node] = self.compute(node, depth)
        return self._known[node]

    def branch(self, node: Bound, depth: int) -> tuple[str, bool]:
        """Write a node inside a block that may be skipped: what is computed there is not known outside."""
        outside = dict(self._known)
        found = self.emit(node, depth)
        self._known = outside
        return found

    def compute(self, node: Bound, depth: int) -> tuple[str, bool]:
        """Write what computes a node that is no constant."""
        match node:
            case Const() | Absent():
                return "None", True
            case Read():
                if node.text == self.argument:
                    return "x", False
                name = self.temporary()
                self.line(depth, f"{name} = {self.slot(node.read, ('read', node.text))}()")
                return name, True
            case Negative(operand):
                atom, unknown = self.emit(operand, depth)
                return self.assign(depth, f"-{atom}", [atom] if unknown else [])
            case Inverse(operand):
                atom, unknown = self.emit(operand, depth)
                return self.assign(depth, f"not {atom}", [atom] if unknown else [])
            case Comparison(op, left, right):
                (a, first), (b, second) = self.emit(left, depth), self.emit(right, depth)
                return self.assign(depth, f"{a} {op} {b}", [a] * first + [b] * second)
            case Arithmetic(op, left, right):
                return self.arithmetic(op, left, right, depth)
            case Junction(op, terms):
                return self.junction(op, terms, depth)
            case Choice(condition, then, other):
                return self.choice(condition, then, other, depth)
            case Math(name, args):
                found = [self.emit(argument, depth) for argument in args]
                atoms = [atom for atom, _ in found]
                if name in _TOTAL:
                    return self.assign(depth, f"{self.slot(MATH[name])}({', '.join(atoms)})", [atom for atom, unknown in found if unknown])
                result = self.temporary()
                if name in _FROM:
                    (atom, unknown), = found
                    known = f"{atom} is not None and " if unknown else ""
                    self.line(depth, f"{result} = {self.slot(MATH[name])}({atom}) if {known}{_FROM[name]} {atom} < {self.slot(math.inf)} else None")
                    return result, True
                self.line(depth, f"{result} = {self.slot(apply_math)}({', '.join([self.slot(name, ('text', name)), *atoms])})")
                return result, True

    def constant(self, value: Value) -> str:
        if isinstance(value, str):
            return self.slot(value, ("text", value))
        return f"({value!r})" if isinstance(value, float) and value < 0 else repr(value)

    def assign(self, depth: int, formula: str, unknown: list[str]) -> tuple[str, bool]:
        name = self.temporary()
        guard = " or ".join(f"{atom} is None" for atom in dict.fromkeys(unknown))
        self.line(depth, f"{name} = None if {guard} else {formula}" if guard else f"{name} = {formula}")
        return name, bool(guard)

    def arithmetic(self, op: str, left: Bound, right: Bound, depth: int) -> tuple[str, bool]:
        (a, first), (b, second) = self.emit(left, depth), self.emit(right, depth)
        guards = [f"{atom} is None" for atom in dict.fromkeys([a] * first + [b] * second)]
        if op == "/" and not (isinstance(right, Const) and right.value):
            guards.append(f"{b} == 0.0")
        name = self.temporary()
        self.line(depth, f"{name} = None if {' or '.join(guards)} else {a} {op} {b}" if guards else f"{name} = {a} {op} {b}")
        self.line(depth, f"if {name} is not None and {name} - {name} != 0.0: {name} = None")
        return name, True

    def junction(self, op: str, terms: tuple[Bound, ...], depth: int) -> tuple[str, bool]:
        decider, neutral = ("False", "True") if op == "and" else ("True", "False")
        result = self.temporary()
        self.line(depth, f"{result} = {neutral}")
        may_be_unknown = False
        for index, term in enumerate(sorted(terms, key=cost)):
            inner = depth
            if index:
                self.line(depth, f"if {result} is not {decider}:")
                inner = depth + 1
            atom, unknown = self.branch(term, inner) if index else self.emit(term, inner)
            decides = f"not {atom}" if op == "and" else atom
            if unknown:
                may_be_unknown = True
                self.line(inner, f"if {atom} is None: {result} = None")
                self.line(inner, f"elif {decides}: {result} = {decider}")
            else:
                self.line(inner, f"if {decides}: {result} = {decider}")
        return result, may_be_unknown

    def choice(self, condition: Bound, then: Bound, other: Bound, depth: int) -> tuple[str, bool]:
        test, unknown = self.emit(condition, depth)
        result = self.temporary()
        if unknown:
            self.line(depth, f"if {test} is None: {result} = None")
        self.line(depth, f"{'elif' if unknown else 'if'} {test}:")
        atom, first = self.branch(then, depth + 1)
        self.line(depth + 1, f"{result} = {atom}")
        self.line(depth, "else:")
        atom, second = self.branch(other, depth + 1)
        self.line(depth + 1, f"{result} = {atom}")
        return result, unknown or first or second
