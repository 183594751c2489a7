"""Values that a training job leaves to the machines it runs on: `auto`, and the rules by which each follows from them.

They are decided while the job file is read, from the nodes of the cluster that the job or RAY_ADDRESS names, or from
this machine: `convmlp show` and `check` print them, job.json and MLflow's params record them.

    launch.num_workers      one a GPU; on CPUs one a node. Never more than a step has micro-batches
    launch.cpus_per_worker  of the node with least, its CPUs shared by the workers that it gets
    data.num_workers        readers: beside a GPU all of a worker's CPUs but two, 8 at most; beside a CPU's own
                            training 1, from 4 CPUs on 2
    engine.precision        bf16 where it is computed fast: GPUs from compute capability 8.0 (Ampere) on, and this
                            machine's CPU with AVX512-BF16 or AMX. Else fp32. It decides the run's result: a run that
                            has begun keeps what it has
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from convmlp_platform.config.automatic import OF_MACHINES, value_at, with_value
from convmlp_platform.config.sections.section import AUTO
from convmlp_platform.errors import ConfigError, LaunchError, PlatformError
from convmlp_platform.launch.cluster.capacity import Node, cluster_nodes, own_nodes, wait_seconds

_MOST_READERS = 8


def decided(values: dict[str, Any], where: str) -> dict[str, Any]:
    """The nested values of a valid training job with a number or word for each `auto`; others stay as they are.

    Args:
        where: the job file; begins an error's lines.

    Raises:
        ConfigError: the cluster can't be reached, or its nodes can't be told.
    """
    asked = [name for name in OF_MACHINES if value_at(values, name) == AUTO]
    if not asked:
        return values
    try:
        return decided_for(values, _nodes(value_at(values, "launch.address") or "auto"))
    except PlatformError as error:
        raise ConfigError(f"{where}: {asked[0]}: auto follows from the machines: {error}") from None


def decided_for(values: dict[str, Any], nodes: Sequence[Node]) -> dict[str, Any]:
    """As `decided`, for the nodes of a cluster, of which there is at least one."""
    rules = _OfMachines(values, nodes)
    for name in OF_MACHINES:
        if value_at(values, name) == AUTO:
            rules.decide(name)
    return rules.values


def _nodes(address: str) -> Sequence[Node]:
    from convmlp_platform.launch.cluster.connect import connect, resolve_address

    if resolve_address(address) is None:
        return own_nodes()
    with connect(address):
        nodes = [node for node in cluster_nodes() if node.cpus]
        if not nodes and wait_seconds():
            raise LaunchError("the cluster grows, and has none yet: write a value")
        return nodes or [Node(1, 0)]


class _OfMachines:
    """The rules, applied to one job; a value that is given counts as it is."""

    def __init__(self, values: dict[str, Any], nodes: Sequence[Node]) -> None:
        self.values, self.nodes = values, nodes
        wanted = value_at(values, "launch.use_gpu")
        has_gpus = any(node.gpus for node in nodes)
        self.gpu = has_gpus if wanted in (None, AUTO) else bool(wanted)

    def decide(self, field: str) -> None:
        """Put the field's value into `values`; the fields it follows from must have theirs."""
        value = getattr(self, f"_{field.replace('.', '_')}")()
        self.values = with_value(self.values, field.split("."), value)

    def _launch_num_workers(self) -> int:
        room = sum(node.gpus for node in self.nodes) if self.gpu else len(self.nodes)
        batch, micro = (
            value_at(self.values, f"training.{name}") for name in ("global_batch_size", "micro_batch_size")
        )
        least = value_at(self.values, "launch.min_workers") or 1
        return max(min(room, batch // micro), least)

    def _launch_cpus_per_worker(self) -> int:
        workers = value_at(self.values, "launch.num_workers") or 1
        if self.gpu:
            shares = [node.cpus // node.gpus for node in self.nodes if node.gpus]
            return max(min(shares, default=1), 1)
        return max(min(node.cpus for node in self.nodes) // math.ceil(workers / len(self.nodes)), 1)

    def _data_num_workers(self) -> int:
        cpus = value_at(self.values, "launch.cpus_per_worker") or 1
        if self.gpu:
            return min(max(cpus - 2, 1), _MOST_READERS)
        return 2 if cpus >= 4 else 1

    def _engine_precision(self) -> str:
        begun = self._of_the_run()
        if begun is not None:
            return begun
        if self.gpu:
            return "bf16" if all(node.fast_bf16 for node in self.nodes if node.gpus) else "fp32"
        return "bf16" if all(node.fast_bf16 for node in self.nodes) else "fp32"

    def _of_the_run(self) -> str | None:
        """Returns the precision that a run of this name was begun with."""
        from convmlp_platform.config.paths import resolve
        from convmlp_platform.runs.run_folder import stored_identity

        place, name = value_at(self.values, "checkpoint.path") or "runs", value_at(self.values, "name")
        fields = stored_identity(Path(resolve(str(place), "checkpoint.path")) / str(name))
        found = None if fields is None else fields.get("engine.precision")
        return found if isinstance(found, str) else None
