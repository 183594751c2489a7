"""Whether the cluster can hold what a job asks for, answered before any worker starts.

A cluster that grows has `CONVMLP_WAIT_FOR_CAPACITY_S` in its head's environment (`convmlp k8s render` sets it): a
training whose room isn't there asks Ray for it, by a placement group, and waits as long. Ray's autoscaler makes nodes
for what waits. The placement group is the driver's: it ends with it, however that ends.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from convmlp_platform.config.schema import TrainJob
from convmlp_platform.config.sections.execution import CPU_PRECISIONS
from convmlp_platform.errors import LaunchError
from convmlp_platform.tracking.provenance.frozen_environment import CPUINFO, cpu_instructions
from data_prep import console

WAIT_VARIABLE = "CONVMLP_WAIT_FOR_CAPACITY_S"
"""Seconds to wait for nodes to join; unset or 0: the cluster is as large as it gets."""
_LOOK_S = 1.0
_GPU_DEVICES = ("/dev/nvidiactl", "/dev/nvhost-gpu", "/dev/dxg", "/dev/kfd")
"""Of NVIDIA's driver (Tegra's, Windows' subsystem's too) and AMD's. Without any, CUDA finds no GPU."""
_KIND_OF_GPU = "accelerator_type:"
_BEFORE_AMPERE = ("K80", "M60", "P4", "P40", "P100", "T4", "V100")
"""NVIDIA's data-centre GPUs of compute capability below 8.0, as Ray names them (ray.util.accelerators)."""


@dataclass(frozen=True)
class Node:
    """The CPUs and GPUs that Ray may assign on one machine.

    fast_bf16: whether these GPUs, or without any the CPUs, have instructions for bf16.
    """

    cpus: int
    gpus: int
    fast_bf16: bool = field(default=False, compare=False)


def cluster_nodes() -> list[Node]:
    """The nodes of the connected cluster that are alive."""
    import ray

    resources = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return [Node(int(one.get("CPU", 0)), int(one.get("GPU", 0)), _fast_gpus(one)) for one in resources]


def _fast_gpus(resources: Mapping[str, float]) -> bool:
    """Whether a node's GPUs are of a kind that computes bf16 fast, by the name that Ray gives it as a resource."""
    kinds = [name.partition(":")[2] for name in resources if name.startswith(_KIND_OF_GPU)]
    return bool(kinds) and not any(kind in _BEFORE_AMPERE for kind in kinds)


def own_nodes() -> list[Node]:
    """The one node of a Ray that would be started on this machine, without starting it."""
    if not any(Path(found).exists() for found in _GPU_DEVICES):
        return [Node(_own_cpus(), 0, cpu_has_bf16())]  # and PyTorch, 4 s of CPU, isn't imported to say so
    import torch

    gpus = torch.cuda.device_count()
    fast = (
        all(torch.cuda.get_device_capability(gpu) >= (8, 0) for gpu in range(gpus))
        if gpus
        else cpu_has_bf16()
    )
    return [Node(_own_cpus(), gpus, fast)]


def cpu_has_bf16(cpuinfo: Path = CPUINFO) -> bool:
    """Whether this machine's CPU has instructions for bf16 products (AVX512-BF16, AMX, or Arm's).

    Without them PyTorch computes bf16 about ten times slower than fp32 (docs/benchmarks.md).
    """
    return not {"avx512_bf16", "amx_bf16", "bf16"}.isdisjoint(cpu_instructions(cpuinfo))


def _own_cpus(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """CPUs of this machine as a Ray would count them: all, or what a container's quota and CPU set leave of them.

    Ray's own count is private, and importing Ray takes a second. tests/.../test_launch_capacity.py compares them.
    """
    if os.environ.get("RAY_USE_MULTIPROCESSING_CPU_COUNT"):
        return os.cpu_count() or 1
    limits = [limit for limit in (_cpu_quota(cgroup), _cpu_set(cgroup)) if limit]
    return int(min(limits)) if limits else os.cpu_count() or 1


def _cpu_quota(cgroup: Path) -> float | None:
    """Of control groups version 1 if they are there, else of version 2; None: as many CPUs as there are."""
    one, two = (cgroup / "cpu" / f"cpu.cfs_{name}_us" for name in ("quota", "period")), cgroup / "cpu.max"
    try:
        quota, period = (file.read_text() for file in one)
    except OSError:
        try:
            quota, period = two.read_text().split()
        except (OSError, ValueError):
            return None
    try:
        share = float(quota) / float(period)
    except (ValueError, ZeroDivisionError):  # "max" is no limit
        return None
    return 1 if share == 0 else share if share > 0 else None


def _cpu_set(cgroup: Path) -> int | None:
    """The number of CPUs in a set like 0-3,8; None: there is none."""
    try:
        ranges = (cgroup / "cpuset" / "cpuset.cpus").read_text().split(",")
        ends = [one.split("-") for one in ranges]
        return sum(int(end[-1]) - int(end[0]) + 1 for end in ends)
    except (OSError, ValueError):
        return None


def uses_gpu(job: TrainJob, nodes: Sequence[Node]) -> bool:
    """launch.use_gpu, with auto decided: GPUs wherever the cluster has any."""
    if job.launch.use_gpu == "auto":
        return any(node.gpus for node in nodes)
    return job.launch.use_gpu


def slow_precision(name: str, precision: str, gpu: bool, nodes: Sequence[Node]) -> list[str]:
    """A line of `convmlp check` where a precision (of the setting `name`) costs what it doesn't seem to; else none.

    Args:
        nodes: of a CPU on another machine than this one nobody knows what it has; that counts as no bf16.
    """
    if precision != "bf16" or gpu or all(node.fast_bf16 for node in nodes):
        return []
    return [
        f"advice   {name} (=bf16): CPUs without instructions for it take about 10 times as long as with fp32: "
        f"--set {name}=fp32"
    ]


def check(job: TrainJob, nodes: Sequence[Node] | None = None) -> list[str]:
    """Each thing the job asks for and the cluster lacks, as a sentence. Asks for nothing and doesn't wait.

    Args:
        nodes: default: the connected cluster's. Of one that grows nothing is said to lack.

    Raises:
        LaunchError: CONVMLP_WAIT_FOR_CAPACITY_S is no number.
    """
    if nodes is not None:
        return _problems(job, nodes)
    nodes = cluster_nodes()
    return _never(job, nodes) if wait_seconds() else _problems(job, nodes)


def make_room(job: TrainJob) -> list[str]:
    """`check` of the connected cluster, which is first asked for what is missing, and given its time.

    Returns as soon as there is room for `launch.least_workers`: a run grows later (`launch.supervisor`).

    Raises:
        LaunchError: CONVMLP_WAIT_FOR_CAPACITY_S is no number.
    """
    nodes, patience = cluster_nodes(), wait_seconds()
    if not patience:
        return _problems(job, nodes)
    if problems := _never(job, nodes):
        return problems
    if not (problems := _problems(job, nodes)):
        return []
    gpu, began = uses_gpu(job, nodes), time.monotonic()
    console.say(_waiting(job, gpu, patience))
    with _asked_for(job, gpu):
        while problems and time.monotonic() - began < patience:
            time.sleep(_LOOK_S)
            problems = _problems(job, cluster_nodes())
    waited = time.monotonic() - began
    if not problems:
        console.say(f"the cluster has room after {waited:.0f} s")
        return []
    return [f"{problem} (asked for, and waited {waited:.0f} s: {WAIT_VARIABLE})" for problem in problems]


def wait_seconds() -> float:
    """CONVMLP_WAIT_FOR_CAPACITY_S; 0 where it isn't set.

    Raises:
        LaunchError: it is no number of seconds.
    """
    text = os.environ.get(WAIT_VARIABLE) or "0"
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise LaunchError(f"{WAIT_VARIABLE} must be seconds, not {text!r}")
    return seconds


def _waiting(job: TrainJob, gpu: bool, patience: float) -> str:
    launch = job.launch
    each = ("one GPU and " if gpu else "") + console.counted(launch.cpus_per_worker, "CPU")
    fewest = f" (at least {launch.min_workers})" if launch.min_workers else ""
    return (
        f"asked the cluster for room for {launch.num_workers} workers{fewest} with {each} each; "
        f"waiting up to {patience:g} s"
    )


@contextmanager
def _asked_for(job: TrainJob, gpu: bool) -> Iterator[None]:
    """Within: Ray is asked for room for all of the job's workers. It is given back at the end, to be used."""
    from ray.util.placement_group import placement_group, remove_placement_group

    launch = job.launch
    each = {"CPU": float(launch.cpus_per_worker)} | ({"GPU": 1.0} if gpu else {})
    wish = placement_group([each] * launch.num_workers, strategy=launch.placement)
    try:
        yield
    finally:
        remove_placement_group(wish)


def _never(job: TrainJob, nodes: Sequence[Node]) -> list[str]:
    """What no new node can mend. `auto`, where no GPU is there yet, would train on CPUs while GPUs are on their way."""
    if job.launch.use_gpu == "auto" and not any(node.gpus for node in nodes):
        return [
            "launch.use_gpu: auto can't be decided on a cluster that grows and has no GPU now: "
            "--set launch.use_gpu=true, or false"
        ]
    return []


def workers_that_fit(job: TrainJob, nodes: Sequence[Node], gpu: bool) -> int:
    """How many of the job's workers the nodes have room for, each on one node."""
    return sum(_room(job, nodes, gpu))


def _room(job: TrainJob, nodes: Sequence[Node], gpu: bool) -> list[int]:
    each = job.launch.cpus_per_worker
    return [min(node.cpus // each, node.gpus if gpu else node.cpus) for node in nodes]


def _problems(job: TrainJob, nodes: Sequence[Node]) -> list[str]:
    launch, gpu = job.launch, uses_gpu(job, nodes)
    least, cpus = launch.least_workers, launch.cpus_per_worker
    field = f"launch.{'num' if launch.min_workers is None else 'min'}_workers"
    has_cpus, has_gpus = sum(node.cpus for node in nodes), sum(node.gpus for node in nodes)
    problems = []
    if job.engine.precision == "fp16" and not gpu:
        problems.append(f"engine.precision: fp16 needs GPUs, but this job runs on CPUs: {CPU_PRECISIONS}")
    if gpu and least > has_gpus:
        problems.append(
            f"{field} (={least}) with one GPU each needs {least} GPUs, "
            f"the cluster has {has_gpus}: {_lower(field, has_gpus)}"
            + ("" if has_gpus else ", or train on CPUs: --set launch.use_gpu=false")
        )
    if least * cpus > has_cpus:
        lower_cpus = ", or lower launch.cpus_per_worker" if cpus > 1 else ""
        problems.append(
            f"{field} (={least}) with launch.cpus_per_worker (={cpus}) "
            f"needs {least * cpus} CPUs, the cluster has {has_cpus}: {_lower(field, has_cpus // cpus)}{lower_cpus}"
        )
    return problems or _placement_problems(job, nodes, gpu, field, least)


def _lower(field: str, fits: int) -> str:
    return f"--set {field}={fits}" if fits else "start more nodes"


def _placement_problems(job: TrainJob, nodes: Sequence[Node], gpu: bool, field: str, least: int) -> list[str]:
    """Totals suffice, but a worker must fit on one node, and a strict placement on one node or on many."""
    launch, room = job.launch, _room(job, nodes, gpu)
    each = f"{launch.cpus_per_worker} CPUs" + (" and one GPU" if gpu else "")
    if sum(room) < least:
        return [
            f"{field} (={least}) with {each} each: "
            f"the cluster's {len(nodes)} nodes have room for {sum(room)}: "
            f"lower launch.cpus_per_worker (={launch.cpus_per_worker}) or {field}"
        ]
    if launch.placement == "STRICT_PACK" and max(room) < least:
        return [
            f"launch.placement: STRICT_PACK wants all {least} workers on one node, "
            f"but the largest has room for {max(room)} ({each} each): use PACK"
        ]
    roomy = sum(1 for one in room if one)
    if launch.placement == "STRICT_SPREAD" and roomy < least:
        return [
            f"launch.placement: STRICT_SPREAD wants {least} nodes with {each} each, "
            f"the cluster has {roomy}: use SPREAD"
        ]
    return []
