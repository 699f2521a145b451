"""The functions of the rule language: what they take, what they give, and the pure ones themselves."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

Family = Literal["window", "reference", "time", "presence", "rule", "math"]
Argument = Literal["number", "bool", "signal", "boundary", "rule", "fraction"]

AXES = ("updates", "points", "tokens", "seconds")
BOUNDARIES = (
    "train_begin", "epoch", "eval_begin", "eval_end", "save_begin", "save_end", "resume", "ref_sync", "schedule_change",
    "config_change", "train_end", "update_end",
)  # fmt: skip
"""What ``updates_since`` and ``seconds_since`` know: boundaries of the bus, and the end of an update."""
MAX_WINDOW = 100_000
"""Longest window in updates or points."""


@dataclass(frozen=True, slots=True)
class Function:
    """One function.

    Attributes:
        name: As written.
        family: How it is evaluated.
        args: Kind of each positional argument.
        most: Positional arguments allowed; None: as many as ``args``, -1: any number.
        keywords: Keywords that must be given.
        optional: Keywords that may be given.
        axes: Exactly one of these must be given.
        kind: Type of the result.
        meaning: One sentence.
        samples: Fewest and most updates or points of its window; None: as many as any window.
    """

    name: str
    family: Family
    args: tuple[Argument, ...]
    meaning: str
    most: int | None = None
    keywords: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    axes: tuple[str, ...] = ()
    kind: Literal["number", "bool"] = "number"
    samples: tuple[int, int] | None = None

    @property
    def usage(self) -> str:
        """How it is called, for messages and pages."""
        shown = {"number": "x", "bool": "condition", "signal": "signal", "boundary": "boundary", "rule": '"rule-id"', "fraction": "q"}
        parts = [shown[argument] for argument in self.args] + (["..."] if self.most == -1 else [])
        parts += [f"{key}=" for key in self.keywords] + [f"[{key}=]" for key in self.optional]
        parts += ["|".join(f"{axis}=" for axis in self.axes)] if self.axes else []
        return f"{self.name}({', '.join(parts)})"


def _window(name: str, meaning: str, args: tuple[Argument, ...] = ("number",)) -> Function:
    return Function(name, "window", args, meaning, axes=AXES)


def _trend(name: str, meaning: str) -> Function:
    return Function(name, "window", ("number",), meaning, axes=("updates", "points"), samples=(10, 512))


def _shift(name: str, meaning: str) -> Function:
    return Function(name, "reference", ("number",), meaning, keywords=("points",), optional=("skip", "every"), samples=(30, 2000))


def _gain(name: str, meaning: str) -> Function:
    return Function(name, "reference", ("number",), meaning, keywords=("points",), samples=(20, 2000))


def _reference(name: str, meaning: str) -> Function:
    return Function(name, "reference", ("number",), meaning, keywords=("updates",), optional=("skip",))


_ALL = (
    _window("mean", "Arithmetic mean of the samples inside."),
    _window("median", "Median of the samples inside."),
    _window("std", "Sample standard deviation (n - 1)."),
    _window("minimum", "Smallest sample inside."),
    _window("maximum", "Largest sample inside."),
    _window("sum", "Sum of the samples inside."),
    _window("quantile", "Quantile q (0..1) with linear interpolation.", ("number", "fraction")),
    _window("slope", "Least-squares slope, per update (on other axes per point, token or second)."),
    _trend("trend_z", "Standard errors by which x rises inside (negative: falls): Mann-Kendall, for ties and autocorrelation; compare with 4.5."),
    _trend("theil_sen", "Median slope of all pairs of samples inside, per update or point; a quarter of wild samples cannot turn it."),
    _window("delta", "Last minus first sample inside."),
    _window("count", "Number of samples inside."),
    _window("share_true", "Share of evaluations inside at which a condition held; unknown ones do not count.", ("bool",)),
    _reference("frozen_median", "Median over an early stretch of this run, fixed once it is over."),
    _reference("frozen_spread", "1.4826 * median absolute deviation over an early stretch of this run, fixed once it is over."),
    _reference("trailing_median", "Median over a stretch that ends `skip` updates ago."),
    _reference("trailing_spread", "1.4826 * median absolute deviation over a stretch that ends `skip` updates ago."),
    _shift("shift_up", "log10 of the evidence, -1 to 8, that x has moved up against its last samples; 4: chance alone says so once in 10,000 samples. Takes every so manieth sample; without `every` the first 64 teach it how many are one independent one."),
    _shift("shift_down", "The same for a move down."),
    _gain("gain_low", "Lower end of what x gained, on average, since its first samples or since its last proven change; a 95 % confidence sequence, right at every moment at once. Above 0: x has risen."),
    _gain("gain_high", "Upper end of the same. Below a gain of interest: a plateau; narrows for as long as x is flat."),
    Function("updates_since", "time", ("boundary",), "Updates since a boundary; unknown before the first."),
    Function("seconds_since", "time", ("boundary",), "Seconds since a boundary or update_end; unknown without times."),
    Function("age", "time", ("signal",), "Updates since the newest finite sample of a signal."),
    Function("has", "presence", ("signal",), "Whether a signal has a value that is not stale.", kind="bool"),
    Function("is_finite", "presence", ("signal",), "Whether the newest sample is finite; unknown before the first.", kind="bool"),
    Function("nonfinite_count", "presence", ("signal",), "Samples of the last updates that were NaN or infinite.", keywords=("updates",)),
    Function("firing", "rule", ("rule",), "Whether a rule is firing now.", kind="bool"),
    Function("firing_for", "rule", ("rule",), "Updates for which a rule has been firing; 0 when it is not."),
    Function("fired_within", "rule", ("rule",), "Whether a rule fires or began to fire in the last updates.", keywords=("updates",), kind="bool"),
    Function("ordered", "rule", ("rule", "rule"), "Whether the first rule began to fire before the second, at most so many updates apart.", keywords=("updates",), kind="bool"),
    Function("abs", "math", ("number",), "Absolute value."),
    Function("min", "math", ("number", "number"), "Smallest argument.", most=-1),
    Function("max", "math", ("number", "number"), "Largest argument.", most=-1),
    Function("sqrt", "math", ("number",), "Square root; unknown for a negative number."),
    Function("log", "math", ("number",), "Natural logarithm; unknown for a number that is not positive."),
    Function("exp", "math", ("number",), "Exponential."),
    Function("floor", "math", ("number",), "Largest whole number not above."),
    Function("ceil", "math", ("number",), "Smallest whole number not below."),
    Function("round", "math", ("number",), "Nearest whole number, halves to even."),
    Function("clamp", "math", ("number", "number", "number"), "clamp(x, low, high): x, but not below low and not above high."),
    Function("pow2_floor", "math", ("number",), "Largest power of two not above; unknown for a number that is not positive."),
    Function("pow2_ceil", "math", ("number",), "Smallest power of two not below; unknown for a number that is not positive."),
)

FUNCTIONS: Mapping[str, Function] = {function.name: function for function in _ALL}
"""Every function by name."""


def _pow2_floor(x: float) -> float:
    if x <= 0.0:
        msg = "not positive"
        raise ValueError(msg)
    return math.ldexp(1.0, math.frexp(x)[1] - 1)


def _pow2_ceil(x: float) -> float:
    floor = _pow2_floor(x)
    return floor if floor == x else 2.0 * floor


MATH: Mapping[str, Callable[..., float]] = {
    "abs": lambda x: float(abs(x)),
    "min": lambda *xs: float(min(xs)),
    "max": lambda *xs: float(max(xs)),
    "sqrt": math.sqrt,
    "log": math.log,
    "exp": math.exp,
    "floor": lambda x: float(math.floor(x)),
    "ceil": lambda x: float(math.ceil(x)),
    "round": lambda x: float(round(x)),
    "clamp": lambda x, low, high: float(min(max(x, low), high)),
    "pow2_floor": _pow2_floor,
    "pow2_ceil": _pow2_ceil,
}


def apply_math(name: str, *values: float | None) -> float | None:
    """Value of a pure function; None when an argument is unknown or the result is not a finite number."""
    if None in values:
        return None
    try:
        result = MATH[name](*values)
    except (ValueError, ArithmeticError):
        return None
    return result if result - result == 0.0 else None
