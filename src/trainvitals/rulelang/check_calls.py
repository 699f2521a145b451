"""The checker's part for function calls: number of arguments, keywords, window lengths, results."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trainvitals.rulelang import expr as ex
from trainvitals.rulelang import ranges, units
from trainvitals.rulelang.expr import Node
from trainvitals.rulelang.functions import AXES, BOUNDARIES, MAX_WINDOW, Function
from trainvitals.rulelang.ranges import ANY, BOOL, INF, Type

if TYPE_CHECKING:
    from trainvitals.rulelang.check import _Checker

LONGEST = {"updates": float(MAX_WINDOW), "points": float(MAX_WINDOW), "tokens": 1e15, "seconds": 1e7}
"""Longest window on each axis."""


def check_call(checker: _Checker, node: ex.Call, function: Function) -> Type:
    """Type of a call; problems go to the checker."""
    problems = len(checker.problems)
    _arity(checker, node, function)
    axis = _keywords(checker, node, function)
    args = [_argument(checker, argument, kind) for argument, kind in zip(node.args, _kinds(node, function), strict=False)]
    if len(checker.problems) > problems:
        return BOOL if function.kind == "bool" else ANY
    match function.family:
        case "window" | "reference":
            return ranges.window(function.name, args[0], axis or "updates")
        case "math":
            return _math(checker, node, function, args)
        case _:
            if function.kind == "bool":
                return BOOL
            unit = "seconds" if function.name == "seconds_since" else "count" if function.name == "nonfinite_count" else "updates"
            return Type("number", unit, 0.0, INF)


def _kinds(node: ex.Call, function: Function) -> list[str]:
    return [*function.args, *["number"] * (len(node.args) - len(function.args) if function.most == -1 else 0)]


def _arity(checker: _Checker, node: ex.Call, function: Function) -> None:
    least, most = len(function.args), len(node.args) if function.most == -1 else len(function.args)
    if not least <= len(node.args) <= most:
        needed = f"at least {least}" if function.most == -1 else str(least)
        checker.fail(node, "E203", f"{function.name} takes {needed} argument{'s' * (least != 1)}, here are {len(node.args)}", function.usage)


def _keywords(checker: _Checker, node: ex.Call, function: Function) -> str | None:
    """Check the keywords; the axis of a window."""
    allowed = (*function.keywords, *function.optional, *function.axes)
    given = [key for key, _ in node.keywords]
    for key, value in node.keywords:
        if key not in allowed:
            checker.fail(value, "E204", f"{function.name} has no keyword {key!r}", checker.near(key, allowed) or function.usage)
        else:
            _length(checker, function, key, value)
    missing = [key for key in function.keywords if key not in given]
    if missing:
        checker.fail(node, "E204", f"{function.name} needs {', '.join(f'{key}=' for key in missing)}", function.usage)
    axes = [key for key in given if key in function.axes]
    if function.axes and len(axes) != 1 and set(given) <= set(allowed):
        checker.fail(node, "E204", f"{function.name} needs exactly one of {', '.join(f'{axis}=' for axis in function.axes)}", f"{function.name}(..., updates=20)")
    return axes[0] if axes else None


def _length(checker: _Checker, function: Function, key: str, value: Node) -> None:
    """A length is a literal or a parameter, and within bounds over the parameter's whole range."""
    if isinstance(value, ex.Num):
        ends = [value.value]
    elif isinstance(value, ex.Name) and value.name in checker.params and value.name not in checker.lets:
        param = checker.params[value.name]
        checker.names.add(value.name)
        ends = [param.default, *(end for end in (param.low, param.high) if abs(end) < INF)]
    else:
        checker.fail(value, "E205", f"{key}= takes a number or a parameter, so that the window's cost is known")
        return
    windowed = function.family in ("window", "reference")
    least = 0.0 if key == "skip" else 3.0 if windowed and key == "updates" and function.name != "count" else 1.0
    if key in ("tokens", "seconds"):
        least = 1e-3
    longest = LONGEST.get(key, float(MAX_WINDOW))
    if function.samples is not None and key in AXES:
        least, longest = map(float, function.samples)
    for end in ends:
        whole = end == int(end) or key in ("tokens", "seconds")
        if not (least <= end <= longest and whole):
            why = "; a window over updates needs three samples" if least == 3.0 and end < 3.0 else ""
            kind = "a whole number" if key not in ("tokens", "seconds") else "a number"
            checker.fail(value, "E304", f"{key}= must be {kind} from {least:g} to {longest:g}, here it is {end:g}{why}")
            return


def _argument(checker: _Checker, node: Node, kind: str) -> Type:
    if kind == "number":
        return checker._number(node)
    if kind == "bool":
        return checker._bool(node)
    if kind == "fraction":
        if isinstance(node, ex.Name) and node.name in checker.params:
            value: float | None = checker.params[node.name].default
            checker.names.add(node.name)
        else:
            value = node.value if isinstance(node, ex.Num) else None
        if value is None or not 0.0 <= value <= 1.0:
            checker.fail(node, "E304", "a quantile is a number or parameter from 0 to 1", "0.95")
        return ANY
    if kind == "signal":
        if not isinstance(node, ex.Name):
            checker.fail(node, "E205", "the name of a signal is needed here")
        elif node.name in checker.lets or node.name in checker.params or node.name.startswith(("config.", "run.")):
            checker.fail(node, "E205", f"{node.name!r} is not a signal")
        else:
            checker._signal(node)
        return ANY
    if kind == "boundary":
        name = node.name if isinstance(node, ex.Name) else node.value if isinstance(node, ex.Text) else ""
        if name not in BOUNDARIES:
            checker.fail(node, "E105", f"unknown boundary {name!r}", checker.near(name, BOUNDARIES) or f"known: {', '.join(BOUNDARIES)}")
        return ANY
    if isinstance(node, ex.Text):
        checker.rules.add(node.value)
    else:
        checker.fail(node, "E205", "a rule id in quotes is needed here", 'firing("advantage-collapse")')
    return ANY


def _math(checker: _Checker, node: ex.Call, function: Function, args: list[Type]) -> Type:
    for argument, found in zip(node.args[1:], args[1:], strict=True):
        if not all(units.agree(found.unit, before.unit) for before in args):
            checker.fail(argument, "E201", f"arguments of {function.name} need one unit, here are {args[0].unit} and {found.unit}")
            return ANY
    if all(found.kind == "any" for found in args):
        return ANY
    return ranges.math_function(function.name, args)
