"""All that a job of any kind would be refused for before its first step: what `convmlp check` prints.

`launch` asks the same functions, so that the two never differ: first the kind's own preflight, then other drivers, then
the cluster, or this machine where none is named.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from convmlp_platform.config.evaluate_job import EvaluateJob
from convmlp_platform.config.load import Job
from convmlp_platform.config.schema import PrepareJob, TrainJob
from convmlp_platform.config.sweep_job import SweepJob
from convmlp_platform.errors import PlatformError

if TYPE_CHECKING:
    from convmlp_platform.launch.cluster.capacity import Node
    from convmlp_platform.sweep.sweep_plan import SweepPlan
    from convmlp_platform.training.preflight.preparation_preflight import PreflightReport


def check(job: Job) -> PreflightReport:
    """Problems of a job whose paths are resolved, and what it would do. Starts and writes nothing."""
    plan: SweepPlan | None = None
    if isinstance(job, EvaluateJob):
        from convmlp_platform.evaluation.evaluation_preflight import preflight_evaluation

        report = preflight_evaluation(job)
    elif isinstance(job, SweepJob):
        from convmlp_platform.sweep.sweep_plan import preflight_sweep

        report, plan = preflight_sweep(job)
    elif isinstance(job, PrepareJob):
        from convmlp_platform.training.preflight.preparation_preflight import preflight_preparation

        report = preflight_preparation(job, deep=True)
    else:
        from convmlp_platform.training.preflight.preflight import preflight

        report = preflight(job, deep=True)
    later: list[Callable[[], None]] = [
        lambda: _check_held(job, plan),
        lambda: _check_cluster(job, plan, report),
    ]
    for one in later:
        try:
            one()
        except PlatformError as error:
            report.problems += [line for line in str(error).splitlines() if line not in report.problems]
    return report


def _check_held(job: Job, plan: SweepPlan | None) -> None:
    """Whether another driver has the run, the sweep or the result."""
    from convmlp_platform.launch.supervisor.lease import refuse_if_held, refuse_if_result_held

    if isinstance(job, TrainJob):
        from convmlp_platform.runs.run_folder import run_path

        refuse_if_held(run_path(job))
    elif isinstance(job, EvaluateJob):
        refuse_if_result_held(Path(job.output.path) / job.name)
    elif plan is not None:
        refuse_if_held(plan.folder)


def _check_cluster(job: Job, plan: SweepPlan | None, report: PreflightReport) -> None:
    """Whether the cluster that the job or RAY_ADDRESS names can be reached and has room; or this machine."""
    from convmlp_platform.launch.cluster import auth
    from convmlp_platform.launch.cluster.capacity import own_nodes
    from convmlp_platform.launch.cluster.connect import connect, resolve_address

    if isinstance(job, SweepJob):
        if plan is None:
            return  # its trials are known where none has a problem
        named = plan.trials[0].trial.job.launch.address
    else:
        named = job.launch.address
    if resolve_address(named) is None:
        auth.settle(None)
        report.summary.append("cluster  none named: a Ray of its own is started on this machine")
        if not isinstance(job, PrepareJob):  # it fits anywhere, and counting GPUs takes PyTorch, 4 s
            report.problems += _room_problems(job, plan, None, own_nodes())
        return
    with connect(named) as address:
        report.summary.append(f"cluster  {address}")
        report.problems += _room_problems(job, plan, address)


def _room_problems(
    job: Job, plan: SweepPlan | None, address: str | None, nodes: Sequence[Node] | None = None
) -> list[str]:
    from convmlp_platform.launch.cluster import capacity

    if isinstance(job, TrainJob):
        return capacity.check(job, nodes)
    if isinstance(job, EvaluateJob):
        from convmlp_platform.jobs.evaluation_job import capacity_problems

        return capacity_problems(job, capacity.cluster_nodes() if nodes is None else nodes)
    if plan is not None:
        from convmlp_platform.sweep.sweep_plan import room_problems

        return room_problems(plan, address, nodes)
    return []
