"""The network interface that gloo is bound to, so that ranks reach each other from other machines.

Left alone, gloo takes what the machine's own name resolves to, on many systems 127.0.0.1, and the other nodes'
connections are refused.
"""

from __future__ import annotations

import ipaddress
import socket

import psutil  # type: ignore[import-untyped]


def interface_of(ip: str) -> str | None:
    """The network interface that owns the address `ip`, None if none does (a container behind NAT)."""
    wanted = ipaddress.ip_address(ip)
    for name, addresses in psutil.net_if_addrs().items():
        for one in addresses:
            if one.family not in (socket.AF_INET, socket.AF_INET6):
                continue
            own = ipaddress.ip_address(one.address.split("%")[0])
            if own == wanted or (own.is_loopback and wanted.is_loopback and own.version == wanted.version):
                return name
    return None
