"""Strict YAML: our own nodes with positions, YAML 1.2 scalars, and an error for everything that YAML lets pass silently.

Refused, each with a code, a place and a hint: duplicate keys, null values, ``yes``/``no``/``on``/``off``, octal, hexadecimal
and base-60 numbers, tags, anchors, aliases, merge keys, tabs, several documents, bytes that are not UTF-8, and files that
are too big, too deep or too full. ``1e-5`` is a number here (PyYAML alone reads it as text).

libyaml does the parsing when PyYAML was built with it, for it is ten times faster. PyYAML's own parser decides whatever is
unusual (any problem, and ``?`` inside braces, where the two differ), so both builds give the same nodes and problems.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import yaml

from trainvitals.rulelang.errors import Problem, RuleError, Where

MAX_BYTES = 256 * 1024
MAX_DEPTH = 16
MAX_NODES = 5_000
MAX_PROBLEMS = 50
"""Problems reported per file: nobody reads more."""

_UNPRINTABLE = re.compile("[^\t\n\x20-\x7e\xa0-\u2027\u202a-\ud7ff\ue000-\ufefe\uff00-\ufffd\U00010000-\U0010ffff]")
_INTEGER = re.compile(r"[-+]?(?:0|[1-9][0-9]*)")
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|(?:0|[1-9][0-9]*)(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")
_NOTATION: tuple[tuple[re.Pattern[str], str, str], ...] = (
    (re.compile(r"[-+]?0[0-9_]+"), "a leading 0 means octal in YAML 1.1 and decimal in 1.2", "drop the 0, or quote it"),
    (re.compile(r"[-+]?0[0-9]+\.[0-9]*(?:[eE][-+]?[0-9]+)?"), "a number starts with a single 0 at most", "drop the 0, or quote it"),
    (re.compile(r"[-+]?0[xob][0-9a-fA-F_]+"), "only decimal numbers are read", "write it in decimal, or quote it"),
    (
        re.compile(r"[-+]?[0-9]+(?::[0-5]?[0-9])+(?:\.[0-9_]*)?"),
        "YAML 1.1 reads this as a base-60 number",
        "quote it, or write seconds",
    ),
    (
        re.compile(r"[-+]?(?=[0-9_.]*_)[0-9][0-9_]*(?:\.[0-9_]*)?(?:[eE][-+]?[0-9]+)?"),
        "a number with '_'",
        "drop the '_', or quote it",
    ),
    (re.compile(r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"), "a number must be finite", "quote it if it is text"),
)
_NULLS = frozenset(("", "~", "null", "Null", "NULL"))
_TRUTHS = {"yes": "true", "on": "true", "true": "true", "no": "false", "off": "false", "false": "false"}


@dataclass(frozen=True, slots=True)
class Source:
    """The file that nodes come from."""

    path: str
    lines: tuple[str, ...]

    def line(self, number: int) -> str:
        """Text of a 1-based line; empty past the end."""
        return self.lines[number - 1] if 0 < number <= len(self.lines) else ""


@dataclass(frozen=True, slots=True)
class _Placed:
    source: Source
    line: int
    column: int

    def problem(self, code: str, message: str, hint: str = "", length: int = 0) -> Problem:
        """A problem at this node; `length` 0 underlines the node's text on its first line."""
        return Problem(
            code, message, self.source.path, self.line, self.column, length or self.width, self.source.line(self.line), hint
        )

    @property
    def width(self) -> int:
        """Characters to underline."""
        return 1


@dataclass(frozen=True, slots=True)
class Scalar(_Placed):
    """A text, number or truth value.

    Attributes:
        text: As YAML gives it, without quotes.
        value: Typed: only unquoted scalars are numbers or truth values.
        style: ``""`` plain, ``'`` or ``"`` quoted, ``|`` or ``>`` block.
        span: Characters in the file on the first line, quotes included.
    """

    text: str
    value: str | int | float | bool
    style: str = ""
    span: int = 1

    @property
    def width(self) -> int:
        """Characters to underline."""
        return max(1, self.span)

    @property
    def where(self) -> Where:
        """Position of the text, character by character where they do not follow one another."""
        line = self.source.line(self.line)
        start = self.column + (1 if self.style in ("'", '"') else 0)
        if self.style in ("", "'", '"') and line[start - 1 : start - 1 + len(self.text)] == self.text:
            return Where(self.source.path, self.line, start, line, self.source.lines)
        offsets = tuple(_offsets(self.text, self.source.lines, self.line, self.column, self.style))
        first_line, first_column = offsets[0] if offsets else (self.line, self.column)
        return Where(self.source.path, first_line, first_column, self.source.line(first_line), self.source.lines, offsets)


@dataclass(frozen=True, slots=True)
class Seq(_Placed):
    """A list."""

    items: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Map(_Placed):
    """A mapping; of equal keys the first one counts and the others are problems.

    `values` lacks the keys whose value was refused, so that nobody reports them as missing.
    """

    keys: dict[str, Scalar]
    values: dict[str, Node]


Node = Scalar | Seq | Map


def _offsets(text: str, lines: tuple[str, ...], line: int, column: int, style: str) -> Iterator[tuple[int, int]]:
    """File position of every character of a scalar that is folded, escaped or indented."""
    row, at = line - 1, column - 1
    if style in ("|", ">"):  # the text begins on the line after the indicator
        row, at = row + 1, 0
    elif style:
        at += 1
    for character in text:
        shown = lines[row] if row < len(lines) else ""
        if not character.isspace():
            while row < len(lines) and (at >= len(shown) or shown[at] in " \t" or (style == '"' and shown[at:] == "\\")):
                if at < len(shown) and shown[at] in " \t":
                    at += 1
                else:
                    row, at = row + 1, 0
                    shown = lines[row] if row < len(lines) else ""
        yield min(row + 1, len(lines)), at + 1
        if at >= len(shown):
            continue
        escape = style == '"' and shown[at] == "\\"
        at += _ESCAPES.get(shown[at + 1 : at + 2], 2) if escape else 2 if style == "'" and character == "'" else 1


_ESCAPES = {"x": 4, "u": 6, "U": 10}
"""Characters of the escapes of a double-quoted text that are longer than two."""


def load(data: str | bytes, path: str) -> Node:
    """Read one YAML document.

    Args:
        data: Text, or the bytes of a file.
        path: Name of the file for messages.

    Raises:
        RuleError: With every problem found.
    """
    node, problems = scan(data, path)
    if problems or node is None:
        raise RuleError(problems)
    return node


def scan(data: str | bytes, path: str) -> tuple[Node | None, list[Problem]]:
    """Read one YAML document as far as it can be read: the root, or None when there is none, and every problem."""
    text, problems = _decode(data, path)
    if text is None:
        return None, problems
    source = Source(path, tuple(text.split("\n")))
    problems = _screen(source)
    if problems:
        return None, problems
    if yaml.__with_libyaml__:
        composer = _Composer(source)
        root = composer.compose(yaml.CSafeLoader(text))
        if root is not None and not composer.problems and not composer.unusual:
            return root, []
    composer = _Composer(source)
    root = composer.compose(_PureParser(text))
    return root, sorted(composer.problems, key=lambda problem: (problem.line, problem.column))[:MAX_PROBLEMS]


class _PureParser(yaml.reader.Reader, yaml.scanner.Scanner, yaml.parser.Parser):
    """PyYAML's own event parser, without resolver and constructor."""

    def __init__(self, text: str) -> None:
        yaml.reader.Reader.__init__(self, text)
        yaml.scanner.Scanner.__init__(self)
        yaml.parser.Parser.__init__(self)


def _decode(data: str | bytes, path: str) -> tuple[str | None, list[Problem]]:
    size = len(data if isinstance(data, bytes) else data.encode("utf-8", "surrogatepass"))
    if size > MAX_BYTES:
        return None, [Problem("E403", f"file has {size} bytes, {MAX_BYTES} are allowed", path, 1, 1)]
    if isinstance(data, bytes):
        try:
            data = data.decode("utf-8")
        except UnicodeDecodeError as error:
            before = error.object[: error.start].decode("utf-8")
            line = before.count("\n") + 1
            column = len(before) - before.rfind("\n")
            bad = error.object[error.start]
            return None, [Problem("E402", f"not UTF-8: byte 0x{bad:02x}", path, line, column, hint="save the file as UTF-8")]
    return data.removeprefix("\ufeff").replace("\r\n", "\n"), []


def _screen(source: Source) -> list[Problem]:
    """Characters that have no place in a rule file."""
    problems: list[Problem] = []
    for number, line in enumerate(source.lines, 1):
        found = [(match.start(), match.group()) for match in _UNPRINTABLE.finditer(line)]
        tab = line.find("\t")
        if tab >= 0:
            problems.append(Problem("E404", "tab character", source.path, number, tab + 1, 1, line, "use spaces"))
        for at, character in found[:3]:
            message = f"character U+{ord(character):04X} is not allowed"
            problems.append(Problem("E402", message, source.path, number, at + 1, 1, _UNPRINTABLE.sub("?", line), "remove it"))
        if len(problems) >= MAX_PROBLEMS:
            break
    return problems[:MAX_PROBLEMS]


class _Stop(Exception):
    """A limit was passed: the problem is recorded and nothing more is read."""


class _Composer:
    """Turns parser events into nodes and collects problems."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.problems: list[Problem] = []
        self.unusual = False
        self.count = 0
        self.flow = 0

    def fail(self, event: Any, code: str, message: str, hint: str = "", length: int = 1) -> None:
        mark = event.start_mark
        line = mark.line + 1
        shown = self.source.line(line)
        self.problems.append(Problem(code, message, self.source.path, line, mark.column + 1, length, shown, hint))

    def compose(self, parser: Any) -> Node | None:
        """The root node; None when there is none or reading had to stop."""
        try:
            return self.document(parser)
        except _Stop:
            return None
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            line, column = (mark.line + 1, mark.column + 1) if mark else (1, 1)
            message = " ".join(part for part in (error.context, error.problem) if part)
            shown = self.source.line(line)
            hint = "quote texts that hold ': ', ' #', or begin with a special character" if "mapping values" in message else ""
            self.problems.append(Problem("E401", f"not YAML: {message}", self.source.path, line, column, 1, shown, hint))
        except (yaml.YAMLError, ValueError, OverflowError, IndexError, RecursionError) as error:
            self.problems.append(
                Problem("E401", f"not YAML: {type(error).__name__}", self.source.path, 1, 1, 1, self.source.line(1))
            )
        finally:
            dispose = getattr(parser, "dispose", None)
            if dispose is not None:
                dispose()
        return None

    def document(self, parser: Any) -> Node | None:
        parser.get_event()  # stream start
        if isinstance(parser.peek_event(), yaml.StreamEndEvent):
            self.problems.append(Problem("E405", "file holds no document", self.source.path, 1, 1, 1, self.source.line(1)))
            return None
        start = parser.get_event()
        if start.version or start.tags:
            self.fail(start, "E405", "directives are not allowed", "remove the line that starts with '%'")
        root = self.node(parser, parser.get_event(), 1)
        parser.get_event()  # document end
        following = parser.get_event()
        if isinstance(following, yaml.DocumentStartEvent):
            self.fail(following, "E405", "only one document per file", "one rule per file; remove '---'", 3)
        return root

    def node(self, parser: Any, event: Any, depth: int) -> Node | None:
        """The node that starts with `event`; None for one that was refused."""
        self.count += 1
        if self.count > MAX_NODES:
            self.fail(event, "E403", f"file has more than {MAX_NODES} values")
            raise _Stop
        if depth > MAX_DEPTH:
            self.fail(event, "E403", f"nested deeper than {MAX_DEPTH} levels")
            raise _Stop
        if isinstance(event, yaml.AliasEvent):
            alias = f"*{event.anchor}"
            self.fail(event, "E406", f"alias '{alias}'", "write the value out", len(alias))
            return None
        if event.anchor is not None:
            self.fail(event, "E406", f"anchor '&{event.anchor}'", "remove it; values are written out", len(event.anchor) + 1)
        if event.tag is not None:
            self.fail(event, "E407", f"tag {event.tag!r}", "remove it; quote a text that looks like a number")
        if isinstance(event, yaml.ScalarEvent):
            return self.scalar(event)
        at = (self.source, event.start_mark.line + 1, event.start_mark.column + 1)
        self.flow += bool(event.flow_style)
        if isinstance(event, yaml.SequenceStartEvent):
            items = []
            while not isinstance(inner := parser.get_event(), yaml.SequenceEndEvent):
                items.append(self.node(parser, inner, depth + 1))
            self.flow -= bool(event.flow_style)
            return Seq(*at, tuple(item for item in items if item is not None))
        keys: dict[str, Scalar] = {}
        values: dict[str, Node] = {}
        while not isinstance(inner := parser.get_event(), yaml.MappingEndEvent):
            self.entry(parser, inner, depth, keys, values)
        self.flow -= bool(event.flow_style)
        return Map(*at, keys, values)

    def entry(self, parser: Any, event: Any, depth: int, keys: dict[str, Scalar], values: dict[str, Node]) -> None:
        """One key and its value."""
        before = len(self.problems)
        key = self.node(parser, event, depth + 1)
        value = self.node(parser, parser.get_event(), depth + 1)
        if not isinstance(key, Scalar):
            if key is not None or len(self.problems) == before:
                self.fail(event, "E411", "a key must be a text")
            return
        if key.text == "<<" and not key.style:
            self.problems.append(key.problem("E406", "merge key '<<'", "write the values out"))
        elif not isinstance(key.value, str):
            self.problems.append(key.problem("E411", f"key {key.text} is not a text", "quote it"))
        elif key.text in keys:
            hint = f"first on line {keys[key.text].line}"
            self.problems.append(key.problem("E412", f"duplicate key {key.text!r}", hint))
        else:
            keys[key.text] = key
            if value is not None:
                values[key.text] = value

    def scalar(self, event: Any) -> Scalar | None:
        text: str = event.value
        style: str = "" if event.style in (None, "") else event.style
        line, column = event.start_mark.line + 1, event.start_mark.column + 1
        shown = self.source.line(line)
        single = event.end_mark.line == event.start_mark.line
        span = event.end_mark.column + 1 - column if single else len(shown) - column + 1
        if not style:
            span = min(span, len(text)) if single else span
            self.unusual = self.unusual or (self.flow > 0 and "?" in text)
        bad = _UNPRINTABLE.search(text)
        if bad is not None:
            self.fail(event, "E402", f"character U+{ord(bad.group()):04X} is not allowed", "remove the escape", span)
            return None
        value = text if style else self.plain(event, text, max(1, span))
        if value is None:
            return None
        return Scalar(self.source, line, column, text, value, style, max(1, span))

    def plain(self, event: Any, text: str, span: int) -> str | int | float | bool | None:
        """Value of an unquoted scalar by YAML 1.2 rules; None after a problem."""
        if text in ("true", "false"):
            return text == "true"
        if text in _NULLS:
            self.fail(event, "E408", "no value" if not text else f"null value '{text}'", "give a value or remove the key", span)
            return None
        if text.lower() in _TRUTHS:
            self.fail(
                event,
                "E409",
                f"'{text}' is a truth value to some readers of YAML",
                f"write {_TRUTHS[text.lower()]}, or quote it",
                span,
            )
            return None
        if text[0] not in "+-.0123456789":
            return text
        if _FLOAT.fullmatch(text):
            whole = _INTEGER.fullmatch(text) is not None
            if len(text) > 40 or not math.isfinite(float(text)):
                self.fail(event, "E410", "number is too large or too long", "quote it if it is text", span)
                return None
            return int(text) if whole else float(text)
        for pattern, message, hint in _NOTATION:
            if pattern.fullmatch(text):
                self.fail(event, "E410", f"'{text[:40]}': {message}", hint, span)
                return None
        return text
