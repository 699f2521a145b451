"""Typed access to the fields of a strict YAML mapping, with a problem instead of an exception for every fault."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from trainvitals.rulelang.errors import Problem, nearest
from trainvitals.rulelang.yaml_strict import Map, Node, Scalar, Seq

NAME = re.compile(r"[a-z][a-z0-9_]{0,59}")
"""Names of parameters, `let` values and exceptions."""
ID = re.compile(r"[a-z][a-z0-9]*(?:-[a-z0-9]+)*")


def what(node: Node) -> str:
    """The kind of a node, in words."""
    if isinstance(node, Map):
        return "a mapping"
    if isinstance(node, Seq):
        return "a list"
    if isinstance(node.value, bool):
        return f"the truth value {node.text}"
    return f"the number {node.text}" if isinstance(node.value, int | float) else "a text"


class Fields:
    """One mapping of a rule file, read field by field.

    Args:
        node: The mapping.
        problems: Where problems go; shared by all readers of a file.
        name: Path of the mapping for messages, such as ``sustain``; empty for the rule itself.
    """

    def __init__(self, node: Map, problems: list[Problem], name: str = "") -> None:
        self.node = node
        self.problems = problems
        self.name = name

    def __contains__(self, key: str) -> bool:
        return key in self.node.values

    def get(self, key: str) -> Node | None:
        """The node of a field, or None."""
        return self.node.values.get(key)

    def path(self, key: str) -> str:
        """Name of a field for messages."""
        return f"{self.name}.{key}" if self.name else key

    def fail(self, node: Node, code: str, message: str, hint: str = "") -> None:
        """Record a problem at a node."""
        self.problems.append(node.problem(code, message, hint))

    def fail_key(self, key: str, code: str, message: str, hint: str = "") -> None:
        """Record a problem at the key of a field, or at the mapping when the field is missing."""
        at: Node = self.node.keys.get(key, self.node)
        self.problems.append(at.problem(code, message, hint))

    def only(self, known: Sequence[str], required: Iterable[str] = ()) -> None:
        """Refuse unknown fields and report missing ones."""
        for key, node in self.node.keys.items():
            if key not in known:
                inside = f" in '{self.name}'" if self.name else ""
                hint = nearest(key, known) or f"known: {', '.join(known)}"
                self.fail(node, "E420", f"unknown field {key!r}{inside}", hint)
        for key in required:
            if key not in self.node.keys:
                self.fail(self.node, "E421", f"field '{self.path(key)}' is missing")

    def text(self, key: str, default: str = "") -> str:
        """A text that is not empty."""
        scalar = self.scalar_text(key)
        return scalar.text.strip() if scalar else default

    def scalar_text(self, key: str) -> Scalar | None:
        """The scalar of a text field; a number or truth value there is an error."""
        node = self.get(key)
        return None if node is None else self.as_text(node, self.path(key))

    def as_text(self, node: Node, name: str) -> Scalar | None:
        """A node that must be a text."""
        if not isinstance(node, Scalar) or not isinstance(node.value, str):
            hint = "quote it" if isinstance(node, Scalar) else ""
            self.fail(node, "E422", f"'{name}' must be a text, here it is {what(node)}", hint)
            return None
        if not node.text.strip():
            self.fail(node, "E422", f"'{name}' is empty")
            return None
        return node

    def expression(self, key: str) -> Scalar | None:
        """The scalar of an expression: text, number or truth value."""
        node = self.get(key)
        if node is None:
            return None
        if not isinstance(node, Scalar):
            hint = "quote an expression that begins with '{' or '['"
            self.fail(node, "E422", f"'{self.path(key)}' must be an expression, here it is {what(node)}", hint)
            return None
        return node

    def word(self, key: str, allowed: Sequence[str], default: str) -> str:
        """One of a few words."""
        scalar = self.scalar_text(key)
        if scalar is None:
            return default
        if scalar.text not in allowed:
            hint = nearest(scalar.text, allowed) or f"one of: {', '.join(allowed)}"
            self.fail(scalar, "E423", f"'{self.path(key)}' cannot be {scalar.text!r}", hint)
            return default
        return scalar.text

    def number(self, key: str, default: float, low: float | None = None, high: float | None = None) -> float:
        """A number, within bounds when they are given."""
        node = self.get(key)
        return default if node is None else self.as_number(node, self.path(key), default, low, high)

    def as_number(self, node: Node, name: str, default: float, low: float | None = None, high: float | None = None) -> float:
        """A node that must be a number."""
        if not isinstance(node, Scalar) or isinstance(node.value, bool) or not isinstance(node.value, int | float):
            hint = "remove the quotes" if isinstance(node, Scalar) and node.style else ""
            self.fail(node, "E422", f"'{name}' must be a number, here it is {what(node)}", hint)
            return default
        value = float(node.value)
        if (low is not None and value < low) or (high is not None and value > high):
            ends = f"at least {low:g}" if high is None else f"{low:g} to {high:g}" if low is not None else f"at most {high:g}"
            self.fail(node, "E351", f"'{name}' is {node.text}, allowed is {ends}")
            return default
        return value

    def whole(self, key: str, default: int, low: int = 1, high: int = 100_000) -> int:
        """A whole number within bounds."""
        node = self.get(key)
        if isinstance(node, Scalar) and isinstance(node.value, float):
            self.fail(node, "E422", f"'{self.path(key)}' must be a whole number, here it is {node.text}")
            return default
        return int(self.number(key, default, low, high))

    def flag(self, key: str, default: bool = False) -> bool:
        """``true`` or ``false``."""
        node = self.get(key)
        if node is None:
            return default
        if not isinstance(node, Scalar) or not isinstance(node.value, bool):
            self.fail(node, "E422", f"'{self.path(key)}' must be true or false, here it is {what(node)}")
            return default
        return node.value

    def inner(self, key: str, known: Sequence[str], required: Iterable[str] = ()) -> Fields | None:
        """A mapping with known fields."""
        fields = self.names(key)
        if fields is not None:
            fields.only(known, required)
        return fields

    def names(self, key: str) -> Fields | None:
        """A mapping whose keys the author chooses."""
        node = self.get(key)
        if node is None:
            return None
        if not isinstance(node, Map):
            self.fail(node, "E422", f"'{self.path(key)}' must be a mapping, here it is {what(node)}")
            return None
        return Fields(node, self.problems, self.path(key))

    def clock(self) -> tuple[float | None, int | None]:
        """When to look: seconds between ticks, or updates between two looks while calm; at most one of them."""
        clock = self.inner("clock", ("seconds", "updates"))
        if clock is None:
            return None, None
        seconds, updates = clock.get("seconds"), clock.get("updates")
        if (seconds is None) == (updates is None):
            self.fail(clock.node, "E422", "'clock' must have either 'seconds' or 'updates'")
            return None, None
        if seconds is not None:
            return clock.number("seconds", 1.0, 0.1, 86_400), None
        return None, int(clock.number("updates", 1.0, 1, 1000))

    def items(self, key: str) -> tuple[Node, ...]:
        """The items of a list."""
        node = self.get(key)
        if node is None:
            return ()
        if not isinstance(node, Seq):
            self.fail(
                node, "E422", f"'{self.path(key)}' must be a list, here it is {what(node)}", "write [a, b] or one '- a' per line"
            )
            return ()
        return node.items

    def texts(self, key: str) -> tuple[Scalar, ...]:
        """The items of a list of texts, without repetition."""
        found: dict[str, Scalar] = {}
        for node in self.items(key):
            scalar = self.as_text(node, self.path(key))
            if scalar is not None and scalar.text in found:
                self.fail(scalar, "E423", f"{scalar.text!r} stands twice in '{self.path(key)}'")
            elif scalar is not None:
                found[scalar.text] = scalar
        return tuple(found.values())

    def good_name(self, key: str) -> bool:
        """Whether a key that the author chose is a plain name; a problem when it is not."""
        if NAME.fullmatch(key):
            return True
        self.fail_key(key, "E424", f"{key[:80]!r} is not a name", "lower case letters, digits and '_'")
        return False
