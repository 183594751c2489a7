"""Machines for job files that ask for them (`auto`), without having them."""

from __future__ import annotations

from typing import Any

from convmlp_platform.launch.cluster.capacity import Node
from convmlp_platform.launch.cluster.machine_values import decided_for


def eight_gpus(values: dict[str, Any], _where: str) -> dict[str, Any]:
    """For `load_job`: one node with 64 CPUs and 8 GPUs of today, as the recipes' papers had about."""
    return decided_for(values, [Node(64, 8, fast_bf16=True)])
