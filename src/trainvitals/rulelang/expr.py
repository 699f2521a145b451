"""Expressions of the rule language: own nodes, made from Python's parser under tight limits.

`parse` accepts arithmetic, comparison chains in one direction, ``and``/``or``/``not``, ``a if c else b`` and calls; dots
only in names (``policy.kl_ref``, ``config.beta``, ``run.step``). Python's `ast` gives exact columns and a grammar that
people know, but nothing a user wrote is ever compiled: the text is turned into the nodes below, and everything later
(`check`, `compile`) works on nodes. Limits: 2,000 characters, 200 nodes, depth 32, numbers below 1e100 in size.
"""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from trainvitals.rulelang.errors import Problem, RuleError, Where

Kind = Literal["number", "bool", "string", "any"]
"""``any`` is a configuration value or something computed from one: its type is known only when a run starts."""

MAX_CHARACTERS = 2_000
MAX_NODES = 200
MAX_DEPTH = 32
MAX_NUMBER = 1e100


@dataclass(frozen=True, slots=True)
class Num:
    """A number without a unit: it adopts the other side's."""

    value: float
    at: int = field(default=0, compare=False)
    end: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class Flag:
    """``true`` or ``false`` (``True`` and ``False`` as well)."""

    value: bool
    at: int = field(default=0, compare=False)
    end: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class Text:
    """A string literal."""

    value: str
    at: int = field(default=0, compare=False)
    end: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class Name:
    """A signal, parameter, `let`, ``config.X`` or ``run.X``."""

    name: str
    at: int = field(default=0, compare=False)
    end: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class Negate:
    """Unary minus."""

    operand: Node
    at: int = field(default=0, compare=False)
    end: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class Binary:
    """``left op right`` with one of ``+ - * /``."""

    op: str
    left: Node
    right: Node
    at: int = field(default=0, compare=False)
    end: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class Compare:
    """One comparison. A chain ``a < b < c`` becomes `Logic` ``and`` of its links."""

    op: str
    left: Node
    right: Node
    at: int = field(default=0, compare=False)
    end: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class Logic:
    """``and`` or ``or`` of two or more terms, in Kleene's three-valued sense."""

    op: str
    terms: tuple[Node, ...]
    at: int = field(default=0, compare=False)
    end: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class Not:
    """Logical negation; unknown stays unknown."""

    operand: Node
    at: int = field(default=0, compare=False)
    end: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class If:
    """``then if condition else other``; unknown when the condition is."""

    condition: Node
    then: Node
    other: Node
    at: int = field(default=0, compare=False)
    end: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class Call:
    """``function(args, key=value)``."""

    function: str
    args: tuple[Node, ...]
    keywords: tuple[tuple[str, Node], ...] = ()
    at: int = field(default=0, compare=False)
    end: int = field(default=0, compare=False)

    def keyword(self, name: str) -> Node | None:
        """Value given for a keyword, or None."""
        return next((value for key, value in self.keywords if key == name), None)


Node = Num | Flag | Text | Name | Negate | Binary | Compare | Logic | Not | If | Call


@dataclass(frozen=True, slots=True)
class Expr:
    """A parsed expression. ``kind``, ``unit`` and the sets are filled in by `check.check`.

    Attributes:
        text: As written, line breaks turned into spaces.
        root: The tree.
        where: Where its first character stands.
        kind: Type of its value.
        unit: Unit of a number; None adopts any.
        signals: Catalogue names that it reads, those of the `let` names it uses included.
        names: `let` and parameter names used directly.
        config: ``config.X`` names read, as ``X``, those of its `let` names included.
        rules: Ids of rules that it asks about.
        low: Smallest value possible; for a bool 1 when it always holds.
        high: Largest value possible; for a bool 0 when it can never hold.
        size: Nodes, with `let` names expanded.
        depth: Nesting, with `let` names expanded.
    """

    text: str
    root: Node
    where: Where
    kind: Kind = "any"
    unit: str | None = None
    signals: frozenset[str] = frozenset()
    names: frozenset[str] = frozenset()
    config: frozenset[str] = frozenset()
    rules: frozenset[str] = frozenset()
    low: float = float("-inf")
    high: float = float("inf")
    size: int = 0
    depth: int = 0


def problem(where: Where, at: int, length: int, code: str, message: str, hint: str = "") -> Problem:
    """A problem inside an expression, underlined at its place in the file."""
    return where.problem(code, message, at, max(1, length), hint)


def children(node: Node) -> Iterator[Node]:
    """Direct parts of a node, from left to right."""
    match node:
        case Negate(operand) | Not(operand):
            yield operand
        case Binary(_, left, right) | Compare(_, left, right):
            yield left
            yield right
        case Logic(_, terms):
            yield from terms
        case If(condition, then, other):
            yield condition
            yield then
            yield other
        case Call(_, args, keywords):
            yield from args
            for _, value in keywords:
                yield value
        case _:
            return


_STRING = re.compile(r"\"[^\"\\\n]*\"|'[^'\\\n]*'")
_FORBIDDEN: tuple[tuple[str, str], ...] = (
    ("&&", "use 'and'"),
    ("||", "use 'or'"),
    ("**", "there is no power; multiply, or use sqrt() or exp()"),
    ("//", "use floor(a / b)"),
    (":=", "name values under 'let:'"),
    ("!=", ""),
    ("!", "use 'not'"),
    ("&", "use 'and'"),
    ("|", "use 'or'"),
    ("%", "fractions are 0..1; there is no modulo"),
    ("^", "there is no power"),
    ("~", "use 'not'"),
    ("[", "there are no lists or subscripts"),
    ("]", "there are no lists or subscripts"),
    ("{", "braces belong into messages only"),
    ("}", "braces belong into messages only"),
    (":", "there are no slices, lambdas or dicts"),
    (";", "one expression only"),
    ("@", ""),
    ("$", "signals have no sigil"),
    ("?", "use 'a if condition else b'"),
    ("`", ""),
    ("#", "comments belong on a YAML line of their own"),
    ("\\", "no escapes and no line continuation"),
)
_SUSPECT = re.compile("|".join(re.escape(text) for text, _ in _FORBIDDEN) + r"|[^\x20-\x7e\n\t]")
_HINTS = dict(_FORBIDDEN)


def parse(text: str, where: Where) -> Expr:
    """Parse one expression.

    Args:
        text: The expression; line breaks count as spaces.
        where: File, line and column of its first character.

    Raises:
        RuleError: With every problem found, each at its own column.
    """
    problems = _screen(text, where)
    if problems:
        raise RuleError(problems)
    flat = text.replace("\n", " ").replace("\t", " ").rstrip()
    start = len(flat) - len(flat.lstrip())
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(flat[start:], mode="eval")
    except SyntaxError as error:
        at = start + min(max((error.offset or 1) - 1, 0), max(len(flat) - start - 1, 0))
        raise RuleError([problem(where, at, 1, "E451", "not an expression", _syntax_hint(error, flat[start:]))]) from None
    except (ValueError, MemoryError, RecursionError):
        raise RuleError([problem(where, 0, 1, "E452", "expression is nested too deeply")]) from None
    builder = _Builder(text, start, where)
    root = builder.node(tree.body, 1)
    if builder.problems:
        raise RuleError(builder.problems)
    assert root is not None
    return Expr(flat, root, where, size=builder.count, depth=builder.deepest)


def _syntax_hint(error: SyntaxError, flat: str) -> str:
    if re.search(r"(?<![<>=!])=(?!=)", flat) and "=" in (error.msg or ""):
        return "use '==' to compare"
    return (error.msg or "invalid syntax").removeprefix("invalid syntax. ")[:120]


def _screen(text: str, where: Where) -> list[Problem]:
    """Refuse by characters what Python's parser need not see."""
    if len(text) > MAX_CHARACTERS:
        message = f"expression has {len(text)} characters, {MAX_CHARACTERS} are allowed"
        return [problem(where, 0, 1, "E452", message, "name parts of it under 'let:'")]
    if not text.strip():
        return [problem(where, 0, 1, "E453", "expression is empty")]
    bare = _STRING.sub(lambda match: " " * len(match.group()), text)
    problems = []
    for match in _SUSPECT.finditer(bare):
        found = match.group()
        if found == "!=":
            continue
        word = "character outside ASCII" if ord(found[0]) > 126 or ord(found[0]) < 32 else f"{found!r} is not part of the rule language"
        problems.append(problem(where, match.start(), len(found), "E454", word, _HINTS.get(found, "")))
        if len(problems) == 20:
            break
    depth = 0
    for at, character in enumerate(bare):
        depth += (character == "(") - (character == ")")
        if depth > MAX_DEPTH:
            problems.append(problem(where, at, 1, "E452", f"more than {MAX_DEPTH} brackets inside one another"))
            break
    return problems


_COMPARE: dict[type[ast.cmpop], str] = {ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">=", ast.Eq: "==", ast.NotEq: "!="}
_BINARY: dict[type[ast.operator], str] = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/"}
_LITERALS = {"true": True, "false": False}
_UPWARD, _DOWNWARD = {"<", "<="}, {">", ">="}


class _Builder:
    """Turns Python's tree into ours, collecting problems; stops descending at the limits."""

    def __init__(self, text: str, start: int, where: Where) -> None:
        self.text = text
        self.start = start
        self.where = where
        self.problems: list[Problem] = []
        self.count = 0
        self.deepest = 0

    def fail(self, node: ast.expr, code: str, message: str, hint: str = "") -> None:
        at = node.col_offset + self.start
        end = (node.end_col_offset or node.col_offset + 1) + self.start
        self.problems.append(problem(self.where, at, end - at, code, message, hint))

    def node(self, node: ast.expr, depth: int) -> Node | None:
        """Our node for Python's, or None after a problem."""
        self.count += 1
        self.deepest = max(self.deepest, depth)
        if self.count > MAX_NODES or depth > MAX_DEPTH:
            if not any(problem.code == "E452" for problem in self.problems):
                limit = f"has more than {MAX_NODES} parts" if self.count > MAX_NODES else f"is nested deeper than {MAX_DEPTH}"
                self.fail(node, "E452", f"expression {limit}", "name parts of it under 'let:'")
            return None
        span = (node.col_offset + self.start, (node.end_col_offset or 0) + self.start)
        match node:
            case ast.Constant():
                return self.constant(node, span)
            case ast.Name(id=name):
                return Flag(_LITERALS[name], *span) if name in _LITERALS else Name(name, *span)
            case ast.Attribute():
                return self.dotted(node, span)
            case ast.UnaryOp(op=op, operand=operand):
                return self.unary(node, op, operand, depth, span)
            case ast.BinOp(left=left, op=op, right=right):
                first, second = self.node(left, depth + 1), self.node(right, depth + 1)
                if type(op) not in _BINARY:
                    self.fail(node, "E455", f"operator {type(op).__name__} is not part of the rule language")
                    return None
                return Binary(_BINARY[type(op)], first, second, *span) if first is not None and second is not None else None
            case ast.BoolOp(op=op, values=values):
                terms = [self.node(value, depth + 1) for value in values]
                word = "and" if isinstance(op, ast.And) else "or"
                return Logic(word, tuple(term for term in terms if term is not None), *span) if None not in terms else None
            case ast.Compare():
                return self.compare(node, depth, span)
            case ast.IfExp(test=test, body=body, orelse=orelse):
                parts = [self.node(part, depth + 1) for part in (test, body, orelse)]
                condition, then, other = parts
                return If(condition, then, other, *span) if condition is not None and then is not None and other is not None else None
            case ast.Call():
                return self.call(node, depth, span)
            case _:
                self.fail(node, "E455", f"{type(node).__name__} is not part of the rule language")
                return None

    def constant(self, node: ast.Constant, span: tuple[int, int]) -> Node | None:
        value = node.value
        if isinstance(value, bool):
            return Flag(value, *span)
        if isinstance(value, int | float):
            if not -MAX_NUMBER < value < MAX_NUMBER:
                self.fail(node, "E456", f"number is too large (limit {MAX_NUMBER:g})")
                return None
            return Num(float(value), *span)
        if isinstance(value, str):
            return Text(value, *span)
        self.fail(node, "E455", f"{'None' if value is None else type(value).__name__} is not part of the rule language", "use has(signal) to ask for presence" if value is None else "")
        return None

    def dotted(self, node: ast.Attribute, span: tuple[int, int]) -> Node | None:
        parts = []
        inner: ast.expr = node
        while isinstance(inner, ast.Attribute):
            parts.append(inner.attr)
            inner = inner.value
            if len(parts) > 3:
                break
        if not isinstance(inner, ast.Name) or len(parts) > 1:
            self.fail(node, "E455", "dots are only for names of two parts", "policy.kl_ref, config.beta, run.step")
            return None
        return Name(f"{inner.id}.{parts[0]}", *span)

    def unary(self, node: ast.expr, op: ast.unaryop, operand: ast.expr, depth: int, span: tuple[int, int]) -> Node | None:
        inner = self.node(operand, depth + 1)
        if inner is None:
            return None
        if isinstance(op, ast.Not):
            return Not(inner, *span)
        if isinstance(op, ast.USub):
            return Num(-inner.value, *span) if isinstance(inner, Num) else Negate(inner, *span)
        self.fail(node, "E455", "unary plus and '~' are not part of the rule language")
        return None

    def compare(self, node: ast.Compare, depth: int, span: tuple[int, int]) -> Node | None:
        operands = [self.node(part, depth + 1) for part in (node.left, *node.comparators)]
        operators = [_COMPARE.get(type(op), "") for op in node.ops]
        if "" in operators:
            self.fail(node, "E455", "'in' and 'is' are not part of the rule language", "use == and or")
            return None
        if len(operators) > 1 and not (set(operators) <= _UPWARD or set(operators) <= _DOWNWARD):
            self.fail(node, "E457", "a chain of comparisons must point in one direction", "a < b <= c, or a > b > c")
            return None
        if None in operands:
            return None
        whole = [operand for operand in operands if operand is not None]
        links = [
            Compare(op, left, right, left.at, right.end) for op, left, right in zip(operators, whole, whole[1:], strict=False)
        ]
        return Compare(operators[0], whole[0], whole[1], *span) if len(links) == 1 else Logic("and", tuple(links), *span)

    def call(self, node: ast.Call, depth: int, span: tuple[int, int]) -> Node | None:
        if not isinstance(node.func, ast.Name):
            self.fail(node.func, "E455", "only plain functions can be called", "mean(policy.kl_ref, updates=20)")
            return None
        args = [self.node(argument, depth + 1) for argument in node.args]
        keywords = []
        for keyword in node.keywords:
            value = self.node(keyword.value, depth + 1)
            if keyword.arg is None:
                self.fail(keyword.value, "E455", "'**' is not part of the rule language")
            elif value is not None:
                keywords.append((keyword.arg, value))
        if None in args or len(keywords) != len(node.keywords):
            return None
        return Call(node.func.id, tuple(argument for argument in args if argument is not None), tuple(keywords), *span)
