"""Common to all tests: this folder is importable (`from ranks import run_ranks`); Ray makes no token; no deadlines."""

import gc
import os
from collections.abc import Iterator

import pytest
from hypothesis import settings

os.environ.setdefault("RAY_AUTH_MODE", "disabled")

# How long an example takes says more about the machine than about the code.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


@pytest.fixture(autouse=True)
def finish_with_ffcv(request: pytest.FixtureRequest) -> Iterator[None]:
    """numba's functions raise when they are collected; amid another test's `compile` CPython 3.11 gives up on that."""
    yield
    if request.node.get_closest_marker("ffcv"):
        gc.collect()
