"""The interface that gloo is bound to is the one that owns the node's address."""

from __future__ import annotations

import socket

import psutil
import pytest

from convmlp_platform.launch.workers.agent import interface_of


@pytest.mark.parametrize("ip", ["127.0.0.1", "127.0.0.3"])
def test_all_of_127_is_on_the_loopback_interface(ip: str) -> None:
    name = interface_of(ip)
    assert name is not None
    assert "127.0.0.1" in [one.address for one in psutil.net_if_addrs()[name]]


def test_every_own_address_leads_to_its_interface() -> None:
    for name, addresses in psutil.net_if_addrs().items():
        for one in addresses:
            if one.family == socket.AF_INET and not one.address.startswith("127."):
                assert interface_of(one.address) == name


def test_an_address_of_another_machine_has_none() -> None:
    assert interface_of("203.0.113.9") is None
