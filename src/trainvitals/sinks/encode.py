"""One way to write records as bytes, with or without orjson, and what may be written at all.

The form is fixed: one line, no spaces, fields in model order, UTF-8, the shortest digits that give the number back
(``0.00001``, ``1e-7``, ``1e+16``). orjson writes it natively; the standard library needs its small exponents respelled.
Byte equality of the two is a test, because replay must give the bytes that the live run wrote.
"""

from __future__ import annotations

import datetime
import enum
import json
import math
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from trainvitals.items import nonfinite_word

if TYPE_CHECKING:
    from trainvitals.findings import Record

_PROBE = [0.00001, 1.5e-7, 1e16, 1.0]
_PROBE_BYTES = b"[0.00001,1.5e-7,1e+16,1.0]"


def _load_orjson() -> Any:
    try:
        import orjson
    except ImportError:
        return None
    # Older releases spell exponents differently; bytes must not depend on which one happens to be installed.
    return orjson if orjson.dumps(_PROBE) == _PROBE_BYTES else None


_orjson = _load_orjson()
_SMALL = re.compile(r'"(?:[^"\\]|\\.)*"|-?\d+(?:\.\d+)?e-\d+')
_encoder = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def _respell(match: re.Match[str]) -> str:
    token = match.group()
    if token[0] == '"':
        return token
    mantissa, _, exponent = token.partition("e-")
    power = int(exponent)
    if power != 5:
        return f"{mantissa}e-{power}"
    sign = "-" if mantissa[0] == "-" else ""
    return f"{sign}0.0000{mantissa.lstrip('-').replace('.', '')}"


def dumps_stdlib(value: Any) -> bytes:
    """`dumps` without orjson.

    Raises:
        TypeError: If a part of `value` is no JSON type.
        ValueError: If a number is not finite.
    """
    text = _encoder.encode(value)
    if "e-" in text:
        text = _SMALL.sub(_respell, text)
    # A lone surrogate (a damaged file name, a damaged tokenizer) has no UTF-8 form.
    return text.encode("utf-8", "replace")


def dumps(value: Any) -> bytes:
    """Encode JSON types to the fixed form, without a newline. The caller has replaced numbers that are not finite.

    Raises:
        TypeError: If a part of `value` is no JSON type.
    """
    if _orjson is not None:
        try:
            encoded: bytes = _orjson.dumps(value)
        except TypeError:
            return dumps_stdlib(value)  # big integers and lone surrogates are beyond orjson; anything else raises again
        return encoded
    return dumps_stdlib(value)


def encode_record(record: Record) -> bytes:
    """One record as its JSON line, without the newline."""
    return dumps(record.model_dump(mode="python", by_alias=True))


def rfc3339(time: float | None) -> str | None:
    """Unix seconds as ``2026-11-23T11:07:52.123456Z``; None when there is no time or it is no sensible one."""
    if time is None:
        return None
    try:
        return datetime.datetime.fromtimestamp(time, datetime.UTC).isoformat(timespec="microseconds")[:-6] + "Z"
    except (ValueError, OverflowError, OSError):
        return None


def plain(value: Any) -> Any:
    """A number as JSON can hold it: Python's own types for numpy and torch scalars, `NonFinite`'s form for NaN and Inf."""
    if isinstance(value, bool | int) and type(value) in (bool, int):
        return value
    if value is None:
        return {"value": None, "nonfinite": "nan"}
    try:
        number = float(value)
    except (TypeError, ValueError, RuntimeError):
        return {"value": None, "nonfinite": "nan"}
    return number if math.isfinite(number) else {"value": None, "nonfinite": nonfinite_word(number)}


_SECRET_KEY = re.compile(r"token|password|passwd|secret|api_?key|webhook|credential|private_key", re.IGNORECASE)
_SECRET_VALUE = re.compile(
    r"\bhf_[A-Za-z0-9]{6,}|\bsk-[A-Za-z0-9_-]{8,}|\bgh[pousr]_[A-Za-z0-9]{8,}|\bgithub_pat_|\bxox[abprs]-|\bAKIA[A-Z0-9]{8,}|://[^/\s:@]+:[^/\s@]+@"
)
_LONGEST_TEXT = 300


def is_secret(key: str, value: Any) -> bool:
    """Whether a configuration entry must not be written down.

    A key such as ``hub_token`` condemns text only: ``max_new_tokens: 256`` and ``average_tokens_across_devices: true`` are
    numbers and flags that rules may need, and no one keeps a password in them. A telling value condemns under any key.
    """
    return isinstance(value, str) and bool(_SECRET_KEY.search(key) or _SECRET_VALUE.search(value))


def safe_scalars(config: Mapping[str, Any]) -> dict[str, Any]:
    """The scalars of a configuration that may be recorded: no secrets, no nested values, no numbers that JSON lacks.

    Enums give their value and numpy scalars their number, so that a rule sees the same before recording and after.
    """
    kept: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, enum.Enum):
            value = value.value
        if hasattr(value, "item") and not isinstance(value, str | bool | int | float):
            try:
                value = value.item()
            except (TypeError, ValueError, RuntimeError):
                continue
        if isinstance(value, float):
            value = float(value) if math.isfinite(value) else None
        elif isinstance(value, str):
            value = str(value)[:_LONGEST_TEXT]
        elif not (value is None or isinstance(value, bool | int)):
            continue
        if not is_secret(str(key), value):
            kept[str(key)] = value
    return kept


_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2066-\u2069\ufeff]+")


def one_line(text: str, longest: int = 600) -> str:
    """`text` without control characters, line breaks and direction marks, cut to `longest` characters.

    Reward names, paths and templates reach a terminal through here: none of them may move its cursor or forge a line.
    """
    clean = _CONTROL.sub(" ", text)
    return clean if len(clean) <= longest else clean[: longest - 3] + "..."
