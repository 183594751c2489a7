"""From a job to work on a cluster, `convmlp run JOB`; and all that it would be refused for, `convmlp check JOB`.

Both ask the same of a job, of whatever kind it is (`jobs.kinds`): its preflight, other drivers, then the cluster, or
this machine where none is named.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from convmlp_platform.config.schema import Job
from convmlp_platform.errors import ConfigError, LaunchError, PlatformError
from convmlp_platform.jobs.kinds import JobKind, kind_of

if TYPE_CHECKING:
    from convmlp_platform.tracking.provenance.submitted_job import GivenJob
    from convmlp_platform.training.preflight.preparation_preflight import PreflightReport


def launch(job: Job, *, use_ray: bool, given: GivenJob | None = None) -> int:
    """Run a job whose paths are resolved to its end and print what came of it; returns the exit code (0, or 128 + the
    signal that ended it).

    Args:
        use_ray: False works in this process, one of N under torchrun.
        given: the file that the job came from, for the record.

    Raises:
        PlatformError: what a user can fix. First the problems of the job, all at once, then those of the cluster,
            before any worker starts: no Ray is started for a typo.
    """
    kind = admitted(job, use_ray=use_ray, starts=use_ray)
    kind.given = given
    return kind.run(use_ray=use_ray)


def admitted(job: Job, *, use_ray: bool, starts: bool = False) -> JobKind:
    """A job that may start, whose paths are resolved.

    Args:
        use_ray: as in `launch`.
        starts: whether the kind's `run` follows, in this process.

    Raises:
        PlatformError: the problems of the job, all at once.
    """
    kind = kind_of(job)
    if not use_ray and kind.needs_ray:
        raise LaunchError(f"--no-ray: {kind.needs_ray}")
    # Several ranks are refused together, or they wait for each other.
    alone = use_ray or os.environ.get("WORLD_SIZE", "1") == "1"
    if alone and (lease := kind.lease()) is not None:
        lease.refuse_if_held()
    report = kind.preflight_of_start() if starts else kind.preflight(deep=False)
    if problems := report.problems:
        raise ConfigError("\n".join(problems))
    return kind


def check(job: Job) -> PreflightReport:
    """Problems of a job whose paths are resolved, and what it would do. Starts and writes nothing."""
    kind = kind_of(job)
    report = kind.preflight(deep=True)
    for one in (_check_held, _check_cluster):
        try:
            one(kind, report)
        except PlatformError as error:
            report.problems += [line for line in str(error).splitlines() if line not in report.problems]
    return report


def _check_held(kind: JobKind, _report: PreflightReport) -> None:
    """Whether another driver has the run, the sweep or the result."""
    if (lease := kind.lease()) is not None:
        lease.refuse_if_held()


def _check_cluster(kind: JobKind, report: PreflightReport) -> None:
    """Whether the cluster that the job or RAY_ADDRESS names can be reached and has room; or this machine."""
    from convmlp_platform.launch.cluster import auth, capacity
    from convmlp_platform.launch.cluster.connect import connect, resolve_address

    named = kind.address()
    if named is None:
        return
    if resolve_address(named) is None:
        auth.settle(None)
        report.summary.append("cluster  none named: a Ray of its own is started on this machine")
        report.problems += kind.room_problems(None, capacity.own_nodes)
        report.summary += kind.machine_lines(capacity.own_nodes)
        return
    with connect(named) as address:
        report.summary.append(f"cluster  {address}")
        report.problems += kind.room_problems(address)
        report.summary += kind.machine_lines(capacity.cluster_nodes)
