"""The stand-in for Kubernetes, one a test file."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from standin_life import Life, standin_life


@pytest.fixture(scope="module")
def life(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Life]:
    with standin_life(tmp_path_factory.mktemp("standin")) as lived:
        yield lived


@pytest.fixture
def timed(request: pytest.FixtureRequest, life: Life) -> Iterator[None]:
    if life.stuck:
        pytest.skip(f"{life.stuck} has not come about")
    begun = time.monotonic()
    yield
    life.seconds[request.node.name.removeprefix("test_")] = time.monotonic() - begun
