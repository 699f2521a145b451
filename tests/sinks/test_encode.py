"""One byte form, with and without orjson; secrets and control characters stay out."""

from __future__ import annotations

import enum
import json
import math
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainvitals.sinks import encode

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8")),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(st.characters(codec="utf-8")), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=400)
@given(JSON)
def test_both_encoders_give_the_same_bytes(value: object) -> None:
    assert encode.dumps(value) == encode.dumps_stdlib(value)
    assert json.loads(encode.dumps_stdlib(value)) == value


@settings(max_examples=500)
@given(st.floats(min_value=1e-12, max_value=1e-3) | st.floats(min_value=1e14, max_value=1e18))
def test_small_and_large_numbers_are_spelled_alike(value: float) -> None:
    for number in (value, -value):
        assert encode.dumps([number]) == encode.dumps_stdlib([number])
        assert json.loads(encode.dumps_stdlib(number)) == number


def test_text_that_looks_like_a_number_is_left_alone() -> None:
    assert encode.dumps_stdlib({"1e-05": '"2e-06", 3e-05'}) == encode.dumps({"1e-05": '"2e-06", 3e-05'})
    assert json.loads(encode.dumps_stdlib({"1e-05": '"2e-06", 3e-05'})) == {"1e-05": '"2e-06", 3e-05'}


def test_numbers_beyond_64_bits_and_lone_surrogates_are_written() -> None:
    assert encode.dumps({"flos": 2**70}) == b'{"flos":%d}' % 2**70
    assert json.loads(encode.dumps({"name": "a\ud800b"})) == {"name": "a?b"}


def test_an_orjson_that_spells_numbers_otherwise_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    class Old:
        @staticmethod
        def dumps(value: object) -> bytes:
            return json.dumps(value).encode()

    monkeypatch.setitem(__import__("sys").modules, "orjson", Old)
    assert encode._load_orjson() is None


def test_times() -> None:
    assert encode.rfc3339(1763896072.25) == "2025-11-23T11:07:52.250000Z"
    assert encode.rfc3339(None) is None
    assert encode.rfc3339(1e300) is None
    assert encode.rfc3339(math.nan) is None


@given(st.floats(0, 4e9))
def test_a_time_survives_being_read_back(moment: float) -> None:
    from trainvitals.readers.rows import as_time

    text = encode.rfc3339(moment)
    assert text is not None
    assert encode.rfc3339(as_time(text)) == text


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (1, 1),
        (0.5, 0.5),
        (np.float32(0.5), 0.5),
        (np.int64(3), 3.0),
        (math.nan, {"value": None, "nonfinite": "nan"}),
        (-math.inf, {"value": None, "nonfinite": "-inf"}),
        (None, {"value": None, "nonfinite": "nan"}),
        ("abc", {"value": None, "nonfinite": "nan"}),
    ],
)
def test_plain_numbers(value: object, expected: object) -> None:
    assert encode.plain(value) == expected


class Interval(enum.StrEnum):
    STEPS = "steps"


def test_secrets_and_nested_values_are_not_recorded() -> None:
    config = {
        "learning_rate": 1e-6,
        "hub_token": "abc",
        "wandb_api_key": "x",
        "WANDB_PASSWORD": "x",
        "slack_webhook": "https://x",
        "client_secret": "y",
        "run_name": "hf_abcdefghijklmnop",
        "hub_url": "https://user:pass@host/x",
        "note": "key sk-abcdefghijk",
        "max_tokens": 256,
        "average_tokens_across_devices": True,
        "nested": {"a": 1},
        "betas": [0.9, 0.95],
        "logging_strategy": Interval.STEPS,
        "scale": np.float32(0.5),
        "bad": math.inf,
        "none": None,
        "long": "x" * 1000,
    }
    safe = encode.safe_scalars(config)
    assert safe == {
        "learning_rate": 1e-6,
        "max_tokens": 256,
        "average_tokens_across_devices": True,
        "logging_strategy": "steps",
        "scale": 0.5,
        "bad": None,
        "none": None,
        "long": "x" * 300,
    }
    assert type(safe["logging_strategy"]) is str
    assert type(safe["scale"]) is float


def test_one_line_strips_what_could_move_a_cursor_or_forge_a_line() -> None:
    assert encode.one_line("a\x1b[2Jb\nvitals_verdict: improving\u202ec") == "a [2Jb vitals_verdict: improving c"
    assert len(encode.one_line("x" * 1000)) == 600


def test_encoding_a_frame_is_cheap() -> None:
    row = {f"family.signal_{i}": i / 7 for i in range(30)}
    best = min(_timed(row) for _ in range(5))
    assert best < 100e-6  # a few us with orjson, about 20 without; the bound only catches a wrong order of magnitude


def _timed(row: dict[str, float]) -> float:
    start = time.perf_counter()
    for _ in range(100):
        encode.dumps(row)
    return (time.perf_counter() - start) / 100
