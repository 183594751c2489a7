"""From a checked job to work on a cluster: what `convmlp run JOB` does."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from convmlp_platform.config.evaluate_job import EvaluateJob
from convmlp_platform.config.load import resolve_paths
from convmlp_platform.config.schema import PrepareJob, TrainJob
from convmlp_platform.config.sweep_job import SweepJob
from convmlp_platform.errors import ConfigError, DataError, LaunchError
from convmlp_platform.launch import messages
from data_prep.dataset.manifest import MANIFEST_NAME, DatasetManifest
from data_prep.errors import DataPrepError

if TYPE_CHECKING:
    from convmlp_platform.launch.cluster.capacity import Node

_TAKEN_OVER = "another driver"


def launch(job: PrepareJob | TrainJob | EvaluateJob | SweepJob, *, use_ray: bool) -> int:
    """Run `job` to its end and print what came of it; returns the exit code (0, or 128 + the signal that
    ended it).

    `use_ray=False` works in this process, one of N under torchrun. Raises PlatformError for all that a user
    can fix: first the problems of the job, all at once, then those of the cluster, before any worker starts.
    """
    job = resolve_paths(job)
    if isinstance(job, PrepareJob):
        return _prepare(job, use_ray)
    if isinstance(job, EvaluateJob):
        from convmlp_platform.jobs.evaluation_job import evaluate

        return evaluate(job, use_ray=use_ray)
    if isinstance(job, SweepJob):
        if not use_ray:
            raise LaunchError("--no-ray: a sweep needs Ray, which starts its trials")
        from convmlp_platform.sweep.launch_sweep import launch_sweep

        return launch_sweep(job)
    return _train_on_ray(job) if use_ray else _train_here(job)


def _prepare(job: PrepareJob, use_ray: bool) -> int:
    from convmlp_platform.jobs.preparation import record

    _preflight(job)
    try:
        manifest, seconds = _prepare_on_ray(job) if use_ray else _timed_prepare(job)
    except DataPrepError as error:
        raise DataError(str(error)) from error
    record(job, manifest, seconds, messages.say)
    return 0


def _prepare_on_ray(job: PrepareJob) -> tuple[DatasetManifest, float | None]:
    from convmlp_platform.launch.cluster.connect import connect
    from convmlp_platform.launch.cluster.worker_environment import shared_env_vars

    with connect(job.launch.address, shared_env_vars(threads=1)):
        from data_prep.shards.runner import ray_map

        return _timed_prepare(job, map_shards=ray_map)


def _timed_prepare(job: PrepareJob, **options: Any) -> tuple[DatasetManifest, float | None]:
    """The dataset's manifest, and the seconds it took; None where the dataset was finished before."""
    from data_prep.prepare import prepare

    before, started = _stamp(job), time.monotonic()
    manifest = prepare(job.preparation, progress=messages.say, **options)
    return manifest, None if _stamp(job) == before else time.monotonic() - started


def _stamp(job: PrepareJob) -> tuple[int, int] | None:
    """Changes when the job writes its dataset's manifest, and stays where the dataset was finished before."""
    try:
        status = (job.output.path / MANIFEST_NAME).stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns


def _train_on_ray(job: TrainJob) -> int:
    from convmlp_platform.launch.cluster.connect import connect
    from convmlp_platform.launch.cluster.worker_environment import shared_env_vars
    from convmlp_platform.launch.supervisor.lease import refuse_if_held
    from convmlp_platform.runs.run_folder import run_path

    refuse_if_held(run_path(job))
    _preflight(job)
    with connect(job.launch.address, shared_env_vars(threads=job.launch.cpus_per_worker)) as address:
        from convmlp_platform.launch.cluster import capacity

        problems = capacity.check(job)
        if problems:
            raise LaunchError("\n".join(problems))
        nodes = capacity.cluster_nodes()
        use_gpu = capacity.uses_gpu(job, nodes)
        messages.say(_where(job, address, nodes, use_gpu))
        from convmlp_platform.launch.supervisor import supervisor
        from convmlp_platform.launch.supervisor.signals import Interrupted

        try:
            summary = supervisor.train(job, use_gpu=use_gpu, own_ray=address is None)
        except Interrupted as stop:
            messages.say(messages.stopped(str(stop), stop.saved))
            return 128 + stop.signal_number
    _print_summary(job, summary)
    return 0


def _train_here(job: TrainJob) -> int:
    import signal
    from contextlib import ExitStack

    from convmlp_platform.distributed import joined_world, on_main
    from convmlp_platform.launch.run_summary import summary_of
    from convmlp_platform.launch.supervisor.lease import lease, refuse_if_held
    from convmlp_platform.runs.run_folder import run_path
    from convmlp_platform.training.run import run
    from convmlp_platform.training.stop_request import StopRequest

    is_main = os.environ.get("RANK", "0") == "0"
    if (
        os.environ.get("WORLD_SIZE", "1") == "1"
    ):  # several ranks are refused together, or they wait for each other
        refuse_if_held(run_path(job))
    _preflight(job)
    stop, held = StopRequest(), ExitStack()

    def take_lease() -> None:
        held.enter_context(lease(run_path(job), on_lost=lambda: stop.ask(_TAKEN_OVER)))

    with (
        stop.listening(signal.SIGTERM, signal.SIGINT),
        joined_world(job.launch.use_gpu is not False) as world,
        held,
    ):
        on_main(world, take_lease)  # refused, all ranks end at once
        result = run(job, stop=stop)
    if result.stopped == _TAKEN_OVER:
        raise LaunchError(f"another driver has taken over run {job.name!r}; this one has stopped")
    if result.stopped is not None:
        if is_main:
            messages.say(
                f"stopped by {result.stopped} after step {result.steps}, which is saved; the same command goes on"
            )
        return 128 + signal.Signals[result.stopped]
    if is_main:
        _print_summary(job, summary_of(result))
    return 0


def _preflight(job: PrepareJob | TrainJob) -> None:
    """Raises ConfigError with every problem that can be seen without a cluster: a Ray isn't started for a typo."""
    if isinstance(job, PrepareJob):
        from convmlp_platform.training.preflight.preparation_preflight import preflight_preparation

        problems = preflight_preparation(job).problems
    else:
        from convmlp_platform.training.preflight.preflight import preflight

        problems = preflight(job).problems
    if problems:
        raise ConfigError("\n".join(problems))


def _where(job: TrainJob, address: str | None, nodes: Sequence[Node], use_gpu: bool) -> str:
    from convmlp_platform.launch.cluster.capacity import workers_that_fit

    wanted, num_nodes = job.launch.num_workers, len(nodes)
    fits = min(wanted, workers_that_fit(job, nodes, use_gpu))
    workers = messages.count(wanted, "GPU worker" if use_gpu else "CPU worker")
    first = f" ({fits} at first)" if fits < wanted else ""
    cluster = "a local Ray" if address is None else f"the Ray cluster of {messages.count(num_nodes, 'node')}"
    return f"{job.name}: {workers}{first} on {cluster}"


def _print_summary(job: TrainJob, summary: dict[str, Any]) -> None:
    from convmlp_platform.launch.run_summary import summary_lines

    for line in summary_lines(job, summary):
        messages.say(line)
