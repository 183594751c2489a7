"""A sweep before it starts: its trials with their runs' folders and lengths, and how many of them run at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convmlp_platform.config.load import resolve_paths
from convmlp_platform.config.schema import TrainJob
from convmlp_platform.config.sweep import SweepJob
from convmlp_platform.config.sweep_trials import Trial, metric_of, told_once, trials_of
from convmlp_platform.data.split import open_manifest
from convmlp_platform.errors import ConfigError, PlatformError
from convmlp_platform.launch.capacity import Node, check, uses_gpu, workers_that_fit
from convmlp_platform.launch.sweep_record import plain, read_end
from convmlp_platform.training.plan import StepPlan
from convmlp_platform.training.run_folder import run_path

if TYPE_CHECKING:
    from convmlp_platform.training.preflight_preparation import PreflightReport


@dataclass(frozen=True)
class PlannedTrial:
    """A trial with its run's folder and length; `done`: an earlier start of the sweep has brought it to its end."""

    trial: Trial
    run: Path
    steps_per_epoch: float
    stop_step: int
    done: bool

    @property
    def name(self) -> str:
        return self.trial.name

    @property
    def epochs(self) -> float:
        """That the run lasts."""
        return self.stop_step / self.steps_per_epoch


@dataclass(frozen=True)
class SweepPlan:
    """All that is known of a sweep before it starts."""

    sweep: SweepJob
    folder: Path
    metric: str
    trials: tuple[PlannedTrial, ...]

    @property
    def todo(self) -> list[PlannedTrial]:
        """The trials that aren't done."""
        return [trial for trial in self.trials if not trial.done]


def plan_of(sweep: SweepJob, *, deep: bool = False) -> SweepPlan:
    """The sweep's plan, its paths resolved; `deep` as in `training.preflight`.

    Raises:
        ConfigError: every problem of any trial's job that can be seen without a cluster.
    """
    from convmlp_platform.training.preflight import preflight

    trials = [_resolved(trial) for trial in trials_of(sweep)]
    found = [(trial.name, line) for trial in trials for line in preflight(trial.job, deep=deep).problems]
    if found:
        raise ConfigError("\n".join(told_once(found, len(trials))))
    fixed: dict[str, set[Any]] = {
        "checkpoint.path": {str(run_path(trial.job).parent) for trial in trials},
        "launch.address": {trial.job.launch.address for trial in trials},
        "tracking": {(trial.job.tracking.uri, trial.job.tracking.experiment) for trial in trials},
    }
    for name, values in fixed.items():
        if len(values) > 1:
            raise ConfigError(f"{name}: the same for all trials of a sweep, so it can't be varied")
    planned = tuple(_planned(trial, sweep) for trial in trials)
    scheduler, longest = sweep.scheduler, max(one.epochs for one in planned)
    if scheduler.name == "asha" and scheduler.grace_epochs >= longest:
        raise ConfigError(
            f"scheduler.grace_epochs (={scheduler.grace_epochs:g}) leaves nothing to stop: the trials last "
            f"{longest:g} epochs"
        )
    return SweepPlan(sweep, run_path(trials[0].job).parent, metric_of(sweep, trials), planned)


def _resolved(trial: Trial) -> Trial:
    job = resolve_paths(trial.job)
    assert isinstance(job, TrainJob)
    return replace(trial, job=job)


def preflight_sweep(sweep: SweepJob) -> tuple[PreflightReport, SweepPlan | None]:
    """The problems of all trials, and what the sweep would do; and its plan, where there are no problems."""
    from convmlp_platform.training.preflight_preparation import PreflightReport

    try:
        plan = plan_of(sweep, deep=True)
    except PlatformError as error:
        return PreflightReport(problems=str(error).splitlines()), None
    steps = sum(one.stop_step for one in plan.todo)
    lines = [
        f"trials   {len(plan.trials)}, {len(plan.trials) - len(plan.todo)} of them done; {steps:,} steps are left",
        f"metric   {plan.metric} ({sweep.mode}), scheduler {sweep.scheduler.name}",
        f"runs     {plan.folder}",
    ]
    for one in plan.trials:
        settings = ", ".join(f"{name}={plain(value)}" for name, value in one.trial.settings.items())
        lines.append(f"  {one.name}: {one.epochs:.4g} epochs, {settings}")
    return PreflightReport(summary=lines), plan


def _planned(trial: Trial, sweep: SweepJob) -> PlannedTrial:
    job, run = trial.job, run_path(trial.job)
    manifest = open_manifest(job.data.path, job.data.digest)
    plan = StepPlan(job, manifest.splits[job.data.train_split].num_samples)
    end = read_end(run)
    done = end is not None and end.still_holds(plan.stop_step, sweep.scheduler)
    return PlannedTrial(trial, run, plan.steps_per_epoch, plan.stop_step, done)


def room_problems(plan: SweepPlan, cluster: str | None, nodes: Sequence[Node] | None = None) -> list[str]:
    """Returns the problems that keep the trials that aren't done from running on the cluster.

    Args:
        cluster: the cluster's address; None: a cluster of the sweep's own.
        nodes: of the cluster; default: the connected one's.
    """
    if cluster is not None and cluster.startswith("ray://"):
        return [
            f"launch.address (={cluster}): a sweep's driver must be on a machine of the cluster: submit it "
            "(`ray job submit jobs/...yaml`), or give the cluster's own address, host:port"
        ]
    found = [(planned.name, line) for planned in plan.todo for line in check(planned.trial.job, nodes)]
    return told_once(found, len(plan.todo))


def trials_at_a_time(trials: Sequence[Trial], nodes: Sequence[Node], limit: int | None) -> int:
    """How many trials may run at once, so that each has room for all its workers; at least 1."""
    fits = min(
        workers_that_fit(trial.job, nodes, uses_gpu(trial.job, nodes)) // trial.job.launch.num_workers
        for trial in trials
    )
    return max(1, min(fits, limit or fits))
