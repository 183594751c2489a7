"""Whether the cluster can hold what a job asks for, answered before any worker starts."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass

from convmlp_platform.config.schema import TrainJob

# For clusters that grow or are still starting (KubeRay sets it): how long to wait for nodes to join.
WAIT_VARIABLE = "CONVMLP_WAIT_FOR_CAPACITY_S"


@dataclass(frozen=True)
class Node:
    """What Ray may hand out on one machine."""

    cpus: int
    gpus: int


def cluster_nodes() -> list[Node]:
    """The nodes of the connected cluster that are alive."""
    import ray

    resources = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return [Node(int(one.get("CPU", 0)), int(one.get("GPU", 0))) for one in resources]


def uses_gpu(job: TrainJob, nodes: Sequence[Node]) -> bool:
    """launch.use_gpu, with auto decided: GPUs wherever the cluster has any."""
    if job.launch.use_gpu == "auto":
        return any(node.gpus for node in nodes)
    return job.launch.use_gpu


def check(job: TrainJob, nodes: Sequence[Node] | None = None) -> list[str]:
    """Each thing the job asks for and the cluster lacks, as a sentence; `nodes` default to the connected
    cluster's.
    """
    if nodes is None:
        nodes = _nodes_once_enough(job)
    return _problems(job, nodes)


def _nodes_once_enough(job: TrainJob) -> list[Node]:
    deadline = time.monotonic() + float(os.environ.get(WAIT_VARIABLE) or 0)
    nodes = cluster_nodes()
    while _problems(job, nodes) and time.monotonic() < deadline:
        time.sleep(2)
        nodes = cluster_nodes()
    return nodes


def _problems(job: TrainJob, nodes: Sequence[Node]) -> list[str]:
    launch, gpu = job.launch, uses_gpu(job, nodes)
    workers, cpus = launch.num_workers, launch.cpus_per_worker
    has_cpus, has_gpus = sum(node.cpus for node in nodes), sum(node.gpus for node in nodes)
    problems = []
    if job.engine.precision == "fp16" and not gpu:
        problems.append("engine.precision: fp16 needs GPUs, but this job runs on CPUs: use bf16 or fp32")
    if gpu and workers > has_gpus:
        problems.append(
            f"launch.num_workers (={workers}) with one GPU each needs {workers} GPUs, "
            f"the cluster has {has_gpus}: {_lower_workers(has_gpus)}"
            + ("" if has_gpus else ", or train on CPUs: --set launch.use_gpu=false")
        )
    if workers * cpus > has_cpus:
        fits = has_cpus // cpus
        lower_cpus = ", or lower launch.cpus_per_worker" if cpus > 1 else ""
        problems.append(
            f"launch.num_workers (={workers}) with launch.cpus_per_worker (={cpus}) "
            f"needs {workers * cpus} CPUs, the cluster has {has_cpus}: {_lower_workers(fits)}{lower_cpus}"
        )
    return problems or _placement_problems(job, nodes, gpu)


def _lower_workers(fits: int) -> str:
    return f"--set launch.num_workers={fits}" if fits else "start more nodes"


def _placement_problems(job: TrainJob, nodes: Sequence[Node], gpu: bool) -> list[str]:
    """Totals suffice, but a worker must fit on one node, and a strict placement on one node or on many."""
    launch = job.launch
    room = [min(node.cpus // launch.cpus_per_worker, node.gpus if gpu else node.cpus) for node in nodes]
    each = f"{launch.cpus_per_worker} CPUs" + (" and one GPU" if gpu else "")
    if sum(room) < launch.num_workers:
        return [
            f"launch.num_workers (={launch.num_workers}) with {each} each: "
            f"the cluster's {len(nodes)} nodes have room for {sum(room)}: "
            f"lower launch.cpus_per_worker (={launch.cpus_per_worker}) or launch.num_workers"
        ]
    if launch.placement == "STRICT_PACK" and max(room) < launch.num_workers:
        return [
            f"launch.placement: STRICT_PACK wants all {launch.num_workers} workers on one node, "
            f"but the largest has room for {max(room)} ({each} each): use PACK"
        ]
    roomy = sum(1 for one in room if one)
    if launch.placement == "STRICT_SPREAD" and roomy < launch.num_workers:
        return [
            f"launch.placement: STRICT_SPREAD wants {launch.num_workers} nodes with {each} each, "
            f"the cluster has {roomy}: use SPREAD"
        ]
    return []
