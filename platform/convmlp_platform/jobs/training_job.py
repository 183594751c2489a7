"""A training job: on a Ray cluster under its supervisor, or in this process, one of N under torchrun."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

from convmlp_platform.config.schema import TrainJob
from convmlp_platform.errors import LaunchError
from convmlp_platform.launch import messages
from convmlp_platform.launch.supervisor.signals import Interrupted
from convmlp_platform.runs.lease import run_lease
from convmlp_platform.runs.run_folder import record_submission, run_path
from data_prep import console

if TYPE_CHECKING:
    from convmlp_platform.launch.cluster.capacity import Node
    from convmlp_platform.launch.early_start import EarlyStart
    from convmlp_platform.tracking.provenance.submitted_job import GivenJob

_TAKEN_OVER = "another driver"


def train_on_ray(job: TrainJob, given: GivenJob | None = None, early: EarlyStart | None = None) -> int:
    """As `trained_on_ray`; returns the exit code: 0, or 128 + the signal that ended it."""
    return _exit_code(lambda: trained_on_ray(job, given, early))


def train_here(job: TrainJob, given: GivenJob | None = None) -> int:
    """As `trained_here`; returns the exit code as `train_on_ray`."""
    return _exit_code(lambda: trained_here(job, given))


def _exit_code(work: Callable[[], object]) -> int:
    try:
        work()
    except Interrupted as stop:
        return 128 + stop.signal_number
    return 0


def trained_on_ray(
    job: TrainJob, given: GivenJob | None = None, early: EarlyStart | None = None
) -> dict[str, Any]:
    """Run the job on the cluster that it names, and print and return its summary (`launch.run_summary.summary_of`).

    Args:
        given: the file that the job came from, for the record.
        early: the fork server of this machine, closed at the end.

    Raises:
        PlatformError: see `supervisor.train`; LaunchError where the cluster can't be reached or has no room.
        Interrupted: after SIGINT or SIGTERM, which is printed.
    """
    from convmlp_platform.launch.cluster.connect import connect
    from convmlp_platform.launch.cluster.worker_environment import shared_env_vars

    env_vars = shared_env_vars(threads=job.launch.cpus_per_worker, own_modules=bool(job.callbacks))
    with (
        closing(early) if early else nullcontext(),
        connect(job.launch.address, env_vars) as address,
    ):
        from convmlp_platform.launch.cluster import capacity

        problems = capacity.make_room(job)
        if problems:
            raise LaunchError("\n".join(problems))
        nodes = capacity.cluster_nodes()
        use_gpu = capacity.uses_gpu(job, nodes)
        console.say(_where(job, address, nodes, use_gpu))
        if console.is_terminal():
            console.say(f"  convmlp watch {job.name}  in another terminal shows how it goes")
        from convmlp_platform.launch.supervisor import supervisor

        try:
            with step_bar(job) as at_step:
                summary = supervisor.train(
                    job,
                    use_gpu=use_gpu,
                    own_ray=address is None,
                    given=given,
                    early=early,
                    on_step=at_step,
                )
        except Interrupted as stop:
            console.say(messages.stopped(str(stop), stop.saved))
            raise
    _print_summary(job, summary)
    return summary


def trained_here(job: TrainJob, given: GivenJob | None = None) -> dict[str, Any]:
    """Run the job's part of this process, rank RANK of WORLD_SIZE; returns the summary as `trained_on_ray`.

    Raises:
        PlatformError: see `training.run.run`; LaunchError on every rank where another driver has the run.
        Interrupted: after SIGINT or SIGTERM to any rank, once the state is saved, which is printed.
    """
    from convmlp_platform.distributed import joined_world, on_main
    from convmlp_platform.launch.run_summary import summary_of
    from convmlp_platform.report.report_callback import RunReport
    from convmlp_platform.training.callbacks import StepsDone
    from convmlp_platform.training.run import run
    from convmlp_platform.training.stop_request import StopRequest

    is_main = os.environ.get("RANK", "0") == "0"
    stop, held = StopRequest(), ExitStack()

    def take_lease() -> None:
        lease = run_lease(run_path(job))
        held.enter_context(lease.hold(on_lost=lambda: stop.ask(_TAKEN_OVER)))
        record_submission(run_path(job), given)

    with (
        stop.listening(signal.SIGTERM, signal.SIGINT),
        joined_world(job.launch.use_gpu is not False) as world,
        held,
    ):
        on_main(world, take_lease)  # refused, all ranks end at once
        with step_bar(job, is_shown=is_main) as at_step:
            result = run(job, [RunReport(run_path(job)), StepsDone(at_step)], stop=stop)
    if result.stopped == _TAKEN_OVER:
        raise LaunchError(f"another driver has taken over run {job.name!r}; this one has stopped")
    if result.stopped is not None:
        if is_main:
            console.say(
                f"stopped by {result.stopped} after step {result.steps}, which is saved; the same command goes on"
            )
        raise Interrupted(signal.Signals[result.stopped], result.steps)
    summary = summary_of(result)
    if is_main:
        _print_summary(job, summary)
    return summary


@contextmanager
def step_bar(job: TrainJob, *, is_shown: bool = True) -> Iterator[Callable[[int], None]]:
    """Draw a bar of the run's steps while it trains, on a terminal; gives what is to be told how many are done."""
    if not (is_shown and console.is_terminal()):
        yield lambda step: None
        return
    from convmlp_platform.data.dataset.split import open_manifest
    from convmlp_platform.training.step_plan import StepPlan

    samples = open_manifest(job.data.path, job.data.digest).splits[job.data.train_split].num_samples
    shown = 0
    with console.progress_bar("training", StepPlan(job, samples).stop_step, "steps") as bar:

        def at_step(step: int) -> None:
            nonlocal shown
            if step not in (0, shown):  # 0: of a start that hasn't told yet
                bar.advance(step - shown)
                shown = step

        yield at_step


def _where(job: TrainJob, address: str | None, nodes: Sequence[Node], use_gpu: bool) -> str:
    from convmlp_platform.launch.cluster.capacity import workers_that_fit

    wanted, num_nodes = job.launch.num_workers, len(nodes)
    fits = min(wanted, workers_that_fit(job, nodes, use_gpu))
    workers = console.counted(wanted, "GPU worker" if use_gpu else "CPU worker")
    first = f" ({fits} at first)" if fits < wanted else ""
    cluster = "a local Ray" if address is None else f"the Ray cluster of {console.counted(num_nodes, 'node')}"
    return f"{job.name}: {workers}{first} on {cluster}"


def _print_summary(job: TrainJob, summary: dict[str, Any]) -> None:
    from convmlp_platform.launch.run_summary import summary_lines

    for line in summary_lines(job, summary):
        console.say_result(line)
