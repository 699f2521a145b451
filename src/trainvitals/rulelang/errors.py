"""Problems in rule files: what is wrong, where exactly, and what was probably meant.

Stable codes in families: E1xx names, E2xx types and units, E3xx ranges and reachability, E4xx structure and YAML, E5xx
references between rules, W6xx style. A code keeps its meaning for ever; the wording of a message may change.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

_WIDEST = 160
"""A source line is shown up to this many characters: nobody reads more, and a hostile file may hold one line of 256 KiB."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One fault of one file.

    Attributes:
        code: Stable code such as ``E103``; ``W`` codes are warnings, all others errors.
        message: One sentence without the code.
        path: File as the user named it, or ``builtin``.
        line: 1-based line.
        column: 1-based column, in characters.
        length: Characters to underline.
        source_line: The text of that line.
        hint: What to do, such as ``did you mean 'policy.entropy'?``.
    """

    code: str
    message: str
    path: str
    line: int
    column: int
    length: int = 1
    source_line: str = ""
    hint: str = ""

    @property
    def severity(self) -> Literal["warning", "error"]:
        """``warning`` for style codes (W6xx), ``error`` for all others."""
        return "warning" if self.code.startswith("W") else "error"

    def render(self) -> str:
        """Head line, and below it the source line with carets under the fault when the source is known."""
        head = f"{self.path}:{self.line}:{self.column} {self.severity} {self.code} {self.message}"
        if not self.source_line:
            return f"{head}\n      | {self.hint}" if self.hint else head
        text = self.source_line.replace("\t", " ")
        start = max(0, self.column - 1)
        if len(text) > _WIDEST:
            cut = max(0, start - _WIDEST // 2)
            text, start = text[cut : cut + _WIDEST], start - cut
        carets = "^" * max(1, min(self.length, max(1, len(text) - start)))
        below = f"      | {' ' * start}{carets} {self.hint}".rstrip()
        return f"{head}\n{self.line:5d} | {text}\n{below}"


class RuleError(Exception):
    """Rule files were refused; holds all problems of all files, in order of file and position.

    Attributes:
        problems: Every problem found, at least one of them an error.
    """

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems: list[Problem] = list(problems)
        super().__init__("\n".join(problem.render() for problem in self.problems))


@dataclass(frozen=True, slots=True)
class Where:
    """Position of an expression's text inside a YAML file, so that an offset in the text has a line and a column.

    A text that stands on one line starts at `line` and `column`. The characters of a block scalar (``>-``, ``|``), of a
    quoted scalar with escapes, or of a plain scalar over several lines do not follow one another in the file: `offsets`
    then holds one (line, column) per character of the text.

    Attributes:
        path: File as the user named it.
        line: 1-based line of the first character.
        column: 1-based column of the first character.
        source_line: Text of that line.
        lines: All lines of the file, for positions on later lines; empty when unknown.
        offsets: Position of every character, when they are not consecutive; else empty.
    """

    path: str = "<expression>"
    line: int = 1
    column: int = 1
    source_line: str = ""
    lines: tuple[str, ...] = ()
    offsets: tuple[tuple[int, int], ...] = ()

    def locate(self, offset: int) -> tuple[int, int]:
        """Line and column in the file of the character at `offset` of the text; past the end is one after the last."""
        if not self.offsets:
            return self.line, self.column + max(0, offset)
        if offset < len(self.offsets):
            return self.offsets[max(0, offset)]
        line, column = self.offsets[-1]
        return line, column + 1

    def inner(self, offset: int, length: int) -> Where:
        """The position of a part of the text, such as the expression inside ``{...}`` of a message."""
        line, column = self.locate(offset)
        offsets = self.offsets[offset : offset + length] if self.offsets else ()
        return Where(self.path, line, column, self._text(line), self.lines, offsets)

    def problem(self, code: str, message: str, offset: int = 0, length: int = 1, hint: str = "") -> Problem:
        """A problem that underlines `length` characters of the text from `offset` on, as far as they share a line."""
        line, column = self.locate(offset)
        last_line, last_column = self.locate(offset + max(1, length) - 1)
        shown = self._text(line)
        width = last_column - column + 1 if last_line == line else len(shown.rstrip()) - column + 1
        return Problem(code, message, self.path, line, column, max(1, width), shown, hint)

    def _text(self, line: int) -> str:
        if 0 < line <= len(self.lines):
            return self.lines[line - 1]
        return self.source_line if line == self.line else ""


def nearest(name: str, known: Iterable[str]) -> str:
    """``did you mean 'x'?`` for the known name closest to `name`, or an empty text when none is close.

    A signal is often written without its family, so the part after the dot is tried as well.
    """
    if len(name) > 100:  # difflib is quadratic, and no name of ours is that long
        return ""
    names = sorted(set(known))
    found = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    if not found:
        tails = {other.rpartition(".")[2]: other for other in names}
        close = difflib.get_close_matches(name.rpartition(".")[2], sorted(tails), n=1, cutoff=0.75)
        found = [tails[close[0]]] if close else []
    return f"did you mean {found[0]!r}?" if found else ""
