"""For all tests: what has come to stay in memory is not searched for garbage again at every training.

A training of `transformers` begins with a full collection (accelerate's ``free_memory``). With torch, TRL, all test modules and the reports of
a thousand tests in memory it takes longer than the few updates that a test trains for.
"""

from __future__ import annotations

import gc
from collections.abc import Generator
from pathlib import Path

import pytest

_files: list[Path] = []
"""The file whose tests are running; a list, so that it can be changed in place."""


def _set_aside() -> None:
    """What is garbage goes now; what is left stays until the end anyway."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(hookwrapper=True)
def pytest_collection() -> Generator[None]:
    """Imports make objects by the hundred thousand and no garbage."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
    _set_aside()


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None]:
    """Between two files: trainers import late, rules and recordings are cached, and reports are kept."""
    if _files != [item.path]:
        _files[:] = [item.path]
        _set_aside()
    yield
