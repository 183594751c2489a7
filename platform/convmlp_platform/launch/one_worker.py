"""Work that one worker of a cluster does: an evaluation, the measurement of a model. Plain values go in and out."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from convmlp_platform.config.evaluate_job import EvaluateLaunchSection
from convmlp_platform.config.sections.execution import CPU_PRECISIONS
from convmlp_platform.errors import ErrorRecord, LaunchError, PlatformError, recorded
from convmlp_platform.launch.cluster.worker_environment import private_variables, shared_env_vars
from data_prep import console

if TYPE_CHECKING:
    from convmlp_platform.launch.cluster.capacity import Node

Work = Callable[..., Any]
Call = Callable[..., Any]
"""`call(work, *values)`: what `work(*values)` gave."""


def takes_gpu(launch: EvaluateLaunchSection, nodes: Sequence[Node]) -> bool:
    """Whether such work computes on a GPU of these nodes."""
    return launch.use_gpu is not False and any(node.gpus for node in nodes)


def capacity_problems(launch: EvaluateLaunchSection, precision: str, nodes: Sequence[Node]) -> list[str]:
    """The problems that keep such work from running on a cluster of these nodes; empty if there are none."""
    fitting = [node for node in nodes if node.cpus >= launch.cpus]
    problems = []
    if not fitting:
        most = max((node.cpus for node in nodes), default=0)
        problems.append(
            f"launch.cpus (={launch.cpus}): the largest node has {most}: --set launch.cpus={max(most, 1)}"
        )
    if launch.use_gpu is True and not any(node.gpus for node in nodes):
        problems.append("launch.use_gpu: the cluster has no GPU: --set launch.use_gpu=false")
    elif precision == "fp16" and not any(node.gpus for node in nodes):
        problems.append(f"evaluate.precision: fp16 needs a GPU, and the cluster has none: {CPU_PRECISIONS}")
    return problems


@contextmanager
def one_worker(name: str, launch: EvaluateLaunchSection, precision: str) -> Iterator[Call]:
    """Within `with`: calls `work(*values)`, each in a new process of one worker.

    `work` is importable by name, takes and gives plain values. A call raises the work's own PlatformError as it was,
    and LaunchError where the worker ended without a result.

    Args:
        name: of the job, for messages.

    Raises:
        LaunchError: the cluster can't be reached, or has no room.
    """
    from convmlp_platform.launch.cluster.capacity import cluster_nodes
    from convmlp_platform.launch.cluster.connect import connect

    with connect(launch.address, shared_env_vars(threads=launch.cpus)):
        import ray
        from ray.exceptions import RayError

        nodes = cluster_nodes()
        if problems := capacity_problems(launch, precision, nodes):
            raise LaunchError("\n".join(problems))
        gpu = takes_gpu(launch, nodes)
        # One call a process: nothing of one call is left for the next.
        remote = ray.remote(num_cpus=launch.cpus, num_gpus=int(gpu), max_retries=0, max_calls=1)(_in_worker)

        def call(work: Work, *values: Any) -> Any:
            try:
                outcome = ray.get(remote.remote(work, values, private_variables()))
            except RayError as error:
                reason = str(error).strip().splitlines()[-1]
                raise LaunchError(f"{name}: the worker ended without a result: {reason}") from error
            if "problem" in outcome:
                raise ErrorRecord.from_json(outcome["problem"]).error()
            return outcome["result"]

        yield call


def _in_worker(work: Work, values: tuple[Any, ...], private: dict[str, str]) -> dict[str, Any]:
    """In a Ray task. `private` becomes part of the worker's environment: where MLflow is, and its password."""
    console.adapt_streams()
    os.environ.update(private)
    try:
        return {"result": work(*values)}
    except PlatformError as error:
        return {"problem": recorded(error).to_json()}
