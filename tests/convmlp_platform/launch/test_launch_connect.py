"""Which cluster a job means, and what is said where there is none."""

from __future__ import annotations

import socket

import pytest

from convmlp_platform.errors import LaunchError
from convmlp_platform.launch.cluster.connect import connect, resolve_address


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_JOB_CONFIG_JSON_ENV_VAR"):
        monkeypatch.delenv(name, raising=False)


def test_auto_is_the_cluster_of_the_environment_else_a_local_one(monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve_address("auto") is None
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.7:6379")
    assert resolve_address("auto") == "10.0.0.7:6379"
    assert resolve_address("local") is None
    assert resolve_address("ray://head:10001") == "ray://head:10001"


def test_the_job_servers_address_is_not_the_clusters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:8265")
    with pytest.raises(LaunchError, match=r"RAY_ADDRESS is http://127.0.0.1:8265.*ray job submit"):
        resolve_address("auto")


@pytest.mark.parametrize("address", ["head", "head:", "127.0.0.1:port"])
def test_a_malformed_address_is_refused(address: str) -> None:
    with pytest.raises(LaunchError, match=r"launch\.address must be"):
        resolve_address(address)


def test_nobody_listens() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, but it doesn't listen: connections are refused
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(LaunchError, match=f"no Ray cluster can be reached at {address}.*launch.address"):
            connect(address).__enter__()
