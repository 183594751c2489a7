"""Runs of this folder's tests send nothing to MLflow and draw nothing, but in modules that say `SENT = True`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from undrawn import without_drawing
from unsent import without_replayer


@pytest.fixture(scope="module", autouse=True)
def lean(request: pytest.FixtureRequest) -> Iterator[None]:
    with ExitStack() as stack:
        if not getattr(request.module, "SENT", False):
            stack.enter_context(without_replayer())
            stack.enter_context(without_drawing())
        yield
