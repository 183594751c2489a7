"""A process group whose gloo ranks can reach each other from other machines."""

from __future__ import annotations

import ipaddress
import os
import socket
from dataclasses import dataclass
from typing import Any

import psutil  # type: ignore[import-untyped]
from ray.train.torch import TorchConfig

_TorchBackend: Any = TorchConfig().backend_cls


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


def advertise_node_ip() -> None:
    """Make gloo use this node's address as the cluster knows it.

    Left alone, gloo takes what the machine's own name resolves to, on many systems 127.0.0.1, and the other
    nodes' connections are refused. What is set at `ray start` on the node stays.
    """
    if os.environ.get("GLOO_SOCKET_IFNAME"):
        return
    import ray

    interface = interface_of(ray.util.get_node_ip_address())
    if interface is not None:
        os.environ["GLOO_SOCKET_IFNAME"] = interface


class _NodeAwareBackend(_TorchBackend):
    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        worker_group.execute(advertise_node_ip)
        super().on_start(worker_group, backend_config)


@dataclass
class NodeAwareTorchConfig(TorchConfig):
    """Ray Train's process group, with gloo bound to each node's own interface before the group forms."""

    @property
    def backend_cls(self) -> Any:
        return _NodeAwareBackend
