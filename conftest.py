"""For all tests: what was imported is not searched for garbage again at every training.

A training of `transformers` begins with a full collection (accelerate's ``free_memory``). With torch, TRL and all test modules in memory one
takes longer than the few updates that a test trains for. What is there when the tests have been collected stays until the end anyway.
"""

from __future__ import annotations

import gc
from collections.abc import Generator

import pytest


@pytest.hookimpl(hookwrapper=True)
def pytest_collection() -> Generator[None]:
    """Imports make objects by the hundred thousand and no garbage; afterwards they are set aside for good."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
    gc.collect()
    gc.freeze()
