"""`trainvitals.integrations.attention`: a model made for packed rows can generate for a moment, and is as before afterwards."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from transformers import AttentionInterface

from trainvitals.integrations.attention import for_padded_rows


class Model:
    def __init__(self, own: str | None) -> None:
        self.config = SimpleNamespace(_attn_implementation=own)

    def set_attn_implementation(self, name: str) -> None:
        self.config._attn_implementation = name


def tries(module: Any, query: Any, key: Any, value: Any, mask: Any, *, index: Any, **kwargs: Any) -> Any:
    """Attention that cannot do without an index of its own."""
    raise AssertionError


@pytest.fixture(autouse=True)
def registered():
    AttentionInterface.register("tries", tries)


@pytest.mark.parametrize(("own", "inside"), [("tries", "sdpa"), ("sdpa", "sdpa"), ("eager", "eager"), ("nobody-knows", "nobody-knows"), (None, None)])
def test_only_what_cannot_generate_is_replaced_and_put_back(own, inside):
    model = Model(own)
    with for_padded_rows(model):
        assert model.config._attn_implementation == inside
    assert model.config._attn_implementation == own


def test_it_is_put_back_after_an_error():
    model = Model("tries")
    with pytest.raises(ValueError, match="no room"), for_padded_rows(model):
        raise ValueError("no room")
    assert model.config._attn_implementation == "tries"


def test_a_model_without_a_configuration_is_left_alone():
    model = SimpleNamespace()
    with for_padded_rows(model):
        assert vars(model) == {}
    assert vars(model) == {}
