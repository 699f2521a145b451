"""Units of numbers: products and quotients of names, compared for equality.

None is a bare number: it adopts whatever unit the other side has. ``fraction``, ``ratio``, ``count`` and ``sigma`` have no
dimension: they vanish in products and quotients, and ``ratio`` goes with each of them.
"""

from __future__ import annotations

from functools import lru_cache

_PLURAL = {"update": "updates", "second": "seconds", "token": "tokens", "nat": "nats", "byte": "bytes", "point": "points", "fractions": "fraction", "s": "seconds"}
PLAIN = frozenset({"fraction", "ratio", "count", "sigma", "rate"})
"""Units without dimension."""

Dimensions = tuple[tuple[str, int], ...]


@lru_cache(maxsize=1024)
def dimensions(unit: str) -> Dimensions:
    """Names and exponents of a unit such as ``reward/update`` or ``nats*nats``, sorted; plain units have none."""
    powers: dict[str, int] = {}
    for index, part in enumerate(unit.replace("**2", "^2").split("/")):
        sign = 1 if index == 0 else -1
        for factor in part.replace("·", "*").split("*"):
            name, _, power = factor.strip().partition("^")
            name = _PLURAL.get(name, name)
            if name in ("", "1") or name in PLAIN:
                continue
            powers[name] = powers.get(name, 0) + sign * (int(power) if power.lstrip("-").isdigit() else 1)
    return tuple(sorted((name, power) for name, power in powers.items() if power))


def spell(found: Dimensions) -> str:
    """Unit text of names and exponents; ``ratio`` when there are none."""
    if not found:
        return "ratio"
    over = [name if power == 1 else f"{name}^{power}" for name, power in found if power > 0]
    under = [name if power == -1 else f"{name}^{-power}" for name, power in found if power < 0]
    return "/".join(["*".join(over) or "1", *under])


def multiply(left: str | None, right: str | None, sign: int = 1) -> str | None:
    """Unit of a product, or of a quotient with ``sign=-1``. A bare number keeps the other's unit in a product."""
    if left is None and right is None:
        return None
    if right is None:
        return left
    if left is None:
        if sign == 1:
            return right
        left = "ratio"
    if sign == 1 and left in PLAIN and right in PLAIN:
        return left if left == right else "ratio"
    if left in PLAIN and sign == 1:
        return right
    if right in PLAIN and (left not in PLAIN):
        return left
    powers = dict(dimensions(left))
    for name, power in dimensions(right):
        powers[name] = powers.get(name, 0) + sign * power
    return spell(tuple(sorted((name, power) for name, power in powers.items() if power)))


def root(unit: str | None) -> str | None:
    """Unit of a square root; a bare number when there is none."""
    if unit is None or unit in PLAIN:
        return unit
    found = dimensions(unit)
    return None if any(power % 2 for _, power in found) else spell(tuple((name, power // 2) for name, power in found))


def agree(left: str | None, right: str | None) -> bool:
    """Whether two numbers may be added, subtracted or compared."""
    if left is None or right is None or left == right or "any" in (left, right):
        return True
    if left in PLAIN and right in PLAIN:
        return "ratio" in (left, right)
    if (left in PLAIN) != (right in PLAIN):
        return (left == "ratio" and not dimensions(right)) or (right == "ratio" and not dimensions(left))
    return dimensions(left) == dimensions(right)


def common(left: str | None, right: str | None) -> str | None:
    """Unit of a sum of two that agree."""
    return right if left is None else left if right is None or left != "ratio" else right
