"""Which of many nodes answer is found out of all at once."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator

import pytest

from convmlp_platform.launch.cluster.ray_cluster import listening


@pytest.fixture
def deaf() -> Iterator[tuple[str, int]]:
    """An address where nothing accepts and nothing refuses, as that of a node without power: its queue is full."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(0)
        address = server.getsockname()
        waiting = []
        for _ in range(4):
            one = socket.socket()
            one.setblocking(False)
            one.connect_ex(address)
            waiting.append(one)
        yield address
        for one in waiting:
            one.close()


@pytest.fixture
def closed() -> tuple[str, int]:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        address: tuple[str, int] = one.getsockname()
    return address


def test_three_hundred_dead_nodes_take_no_longer_than_one_and_hide_no_living_one(
    deaf: tuple[str, int], closed: tuple[str, int]
) -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(600)
        living: tuple[str, int] = server.getsockname()
        asked = {f"dead-{number}": deaf for number in range(300)}
        asked |= {"closed": closed, "unknown": ("no-such-host.invalid", 1)}
        asked |= {f"living-{number}": living for number in range(500)}
        began = time.monotonic()
        assert listening(asked) == {f"living-{number}" for number in range(500)}
    assert time.monotonic() - began < 30, "one after the other: 300 s"


def test_nobody_is_asked() -> None:
    assert listening({}) == set()
