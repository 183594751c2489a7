"""The store at which ranks meet listens where they are told to meet, and nowhere else."""

from __future__ import annotations

import socket

import psutil
import pytest

from convmlp_platform.distributed import _meeting_place


@pytest.fixture
def port(monkeypatch: pytest.MonkeyPatch) -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        number: int = free.getsockname()[1]
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("MASTER_PORT", str(number))
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    return number


def test_it_listens_on_one_address(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    place = _meeting_place(1)
    listening = {one.laddr.ip for one in psutil.Process().net_connections("tcp") if one.laddr.port == port}
    assert listening == {"127.0.0.1"}
    place["store"].set("a", "b")
    assert place["store"].get("a") == b"b"
    assert (place["rank"], place["world_size"]) == (0, 1)


def test_an_address_of_another_machine_is_left_to_torch(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASTER_ADDR", "203.0.113.1")
    assert _meeting_place(1) == {}
