"""Lets a model generate whose attention was made for its trainer's own rows."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def for_padded_rows(model: Any) -> Iterator[None]:
    """Inside, a model whose attention reads nothing but its trainer's packed rows attends as any other.

    AsyncGRPO registers an attention over tries in TRL 1.16. It wants indices that only the trainer's own forward pass gives, so that
    ``generate()`` raises.
    """
    own = getattr(getattr(model, "config", None), "_attn_implementation", None)
    if not _wants_more(own):
        yield
        return
    model.set_attn_implementation("sdpa")
    try:
        yield
    finally:
        model.set_attn_implementation(own)


def _wants_more(name: Any) -> bool:
    """Whether the attention function of that name has arguments that it cannot do without and ``generate()`` does not know."""
    try:
        from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

        parameters = inspect.signature(ALL_ATTENTION_FUNCTIONS[name]).parameters.values()
    except (ImportError, KeyError, TypeError, ValueError):
        return False
    return any(one.kind is inspect.Parameter.KEYWORD_ONLY and one.default is inspect.Parameter.empty for one in parameters)
