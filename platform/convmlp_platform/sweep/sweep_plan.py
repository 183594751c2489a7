"""A sweep before it starts: its trials with their runs' folders and lengths, and how many of them run at a time.

From a sweep to its trials: each a whole training job with a name. Pure: the same sweep gives the same trials.
"""

from __future__ import annotations

import itertools
import json
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convmlp_platform.config.overrides import put
from convmlp_platform.config.schema import TrainJob
from convmlp_platform.config.sections.task_section import BEST_METRICS
from convmlp_platform.config.sweep_job import SweepJob
from convmlp_platform.data.dataset.split import open_manifest
from convmlp_platform.errors import ConfigError, PlatformError
from convmlp_platform.launch.cluster import capacity
from convmlp_platform.launch.cluster.capacity import Node, check, uses_gpu, workers_that_fit
from convmlp_platform.runs.run_folder import run_path
from convmlp_platform.runs.trial_record import read_end
from convmlp_platform.training.step_plan import StepPlan

if TYPE_CHECKING:
    from convmlp_platform.training.preflight.preparation_preflight import PreflightReport


Settings = dict[str, Any]
_WHERE = "job: "


@dataclass(frozen=True)
class Trial:
    """One run of a sweep. `settings`: dotted name → value, all that tells it from the other trials."""

    name: str
    settings: Settings
    job: TrainJob


def trials_of(sweep: SweepJob) -> list[Trial]:
    """The trials in the order in which they start; their runs lie in RUNS/SWEEP/TRIAL.

    Raises:
        ConfigError: every problem of every trial's job, one a line; what all trials share is told once.
    """
    drafts = list(_drafts(sweep))
    trials, problems = [], list[tuple[str, str]]()
    for name, settings in drafts:
        try:
            trials.append(Trial(name, settings, _job(sweep, name, settings)))
        except ConfigError as error:
            problems += [(name, line.removeprefix(_WHERE)) for line in str(error).splitlines()]
    if problems:
        raise ConfigError("\n".join(told_once(problems, len(drafts))))
    metrics = {f"eval/{BEST_METRICS[trial.job.task.name]}" for trial in trials}
    if sweep.metric is None and len(metrics) > 1:
        raise ConfigError(
            f"metric: the trials' tasks have different ones ({', '.join(sorted(metrics))}): they can't be "
            "compared; name one that all have, e.g. eval/loss with mode: min"
        )
    return trials


def metric_of(sweep: SweepJob, trials: list[Trial]) -> str:
    """The metric that decides."""
    return sweep.metric or f"eval/{BEST_METRICS[trials[0].job.task.name]}"


def told_once(problems: list[tuple[str, str]], num_trials: int) -> list[str]:
    """(trial, problem) as lines: a problem of all trials has one line, others begin with their trials' names."""
    of: dict[str, list[str]] = {}
    for trial, line in problems:
        of.setdefault(line, []).append(trial)
    return [
        f"job: {line}"
        if len(set(names)) == num_trials
        else f"trial {', '.join(dict.fromkeys(names))}: {line}"
        for line, names in of.items()
    ]


def _drafts(sweep: SweepJob) -> Iterator[tuple[str, Settings]]:
    points = list(_points(sweep))
    several = len(points) > 1
    for variant in sweep.variants or (None,):
        for number, point in enumerate(points):
            parts = ([variant.name] if variant else ["trial"]) + (
                [f"{number:03d}"] if several or not variant else []
            )
            yield "-".join(parts), (flat(variant.set) if variant else {}) | point


def _points(sweep: SweepJob) -> Iterator[Settings]:
    """The grid's points, `samples` times each, with what is drawn for each."""
    grid = {name: values for name, values in sweep.space.items() if isinstance(values, list)}
    drawn = {name: values for name, values in sweep.space.items() if isinstance(values, dict)}
    number = 0
    for values in itertools.product(*grid.values()):
        for _ in range(sweep.samples):
            fixed = dict(zip(grid, values, strict=True))
            yield {
                name: fixed[name] if name in fixed else _draw(drawn[name], sweep.seed, name, number)
                for name in sweep.space
            }
            number += 1


def _draw(values: Mapping[str, Any], seed: int, name: str, number: int) -> Any:
    """One value. Keyed by all that names it, so that a sweep made longer begins with the same trials."""
    rng = random.Random(f"{seed}/{name}/{number}")
    kind, given = next(iter(values.items()))
    if kind == "choice":
        return rng.choice(given)
    low, high = given
    if kind == "randint":
        return rng.randint(low, high)
    value = (
        rng.uniform(low, high) if kind == "uniform" else math.exp(rng.uniform(math.log(low), math.log(high)))
    )
    return min(max(float(f"{value:.6g}"), low), high)  # a number that people can read and type


def _job(sweep: SweepJob, name: str, settings: Settings) -> TrainJob:
    from convmlp_platform.config.load import parse_job

    values = json.loads(json.dumps(sweep.job, default=str)) | {"name": name}
    if values.setdefault("kind", "train") != "train":
        raise ConfigError(f"kind: a sweep is over training jobs (kind: train), not {values['kind']!r}")
    for dotted, value in (flat(sweep.set) | settings).items():
        put(values, dotted, value, f"set {dotted}")
    if values["name"] != name:
        raise ConfigError("name: a sweep names its runs itself")
    if sweep.launch is not None:
        values["launch"] = sweep.launch.model_dump(mode="json", exclude_unset=True)
    job = parse_job(values, _WHERE.removesuffix(": "))
    assert isinstance(job, TrainJob)
    return placed(job, sweep.name)


def placed(job: TrainJob, sweep: str) -> TrainJob:
    """The job with its runs below the sweep's folder, tagged as the sweep's, and nothing registered."""
    checkpoint, tracking = job.checkpoint, job.tracking
    places = {"path": f"{checkpoint.path.rstrip('/')}/{sweep}"}
    if checkpoint.store is not None:
        places["store"] = f"{checkpoint.store.rstrip('/')}/{sweep}"
    tags = tracking.tags | {"sweep": sweep, "trial": job.name}
    return job.model_copy(
        update={
            "checkpoint": checkpoint.model_copy(update=places),
            "tracking": tracking.model_copy(update={"tags": tags, "register_as": None}),
        }
    )


def flat(values: Mapping[str, Any], prefix: str = "") -> Settings:
    """Mappings in mappings, as YAML makes them of indented names, as dotted names; both ways of writing are one."""
    found: Settings = {}
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            found |= flat(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = value
    return found


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
    """The sweep's plan, its paths resolved; `deep` as in `training.preflight.preflight`.

    Raises:
        ConfigError: every problem of any trial's job that can be seen without a cluster.
    """
    from convmlp_platform.training.preflight.preflight import preflight

    trials = [replace(trial, job=trial.job.resolved()) for trial in trials_of(sweep)]
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


def preflight_sweep(sweep: SweepJob, *, deep: bool) -> tuple[PreflightReport, SweepPlan | None]:
    """The problems of all trials, and what the sweep would do; and its plan, where there are no problems.

    Args:
        sweep: the sweep.
        deep: as in `training.preflight.preflight`.
    """
    from convmlp_platform.training.preflight.preparation_preflight import PreflightReport

    try:
        plan = plan_of(sweep, deep=deep)
    except PlatformError as error:
        return PreflightReport(problems=str(error).splitlines()), None
    steps = sum(one.stop_step for one in plan.todo)
    lines = [
        f"trials   {len(plan.trials)}, {len(plan.trials) - len(plan.todo)} of them done; {steps:,} steps are left",
        f"metric   {plan.metric} ({sweep.mode}), scheduler {sweep.scheduler.name}",
        f"runs     {plan.folder}",
    ]
    for one in plan.trials:
        lines.append(f"  {one.name}: {one.epochs:.4g} epochs, {settings_text(one.trial.settings)}")
    return PreflightReport(summary=lines), plan


def settings_text(settings: Settings) -> str:
    """`optimizer.lr=0.001, seed=1`."""
    return ", ".join(f"{name}={plain_text(value)}" for name, value in settings.items())


def plain_text(value: Any) -> str:
    """A setting's value for a table."""
    return value if isinstance(value, str) else json.dumps(value)


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
    nodes = capacity.cluster_nodes() if nodes is None else nodes  # as they are: a sweep waits for none
    found = [(planned.name, line) for planned in plan.todo for line in check(planned.trial.job, nodes)]
    return told_once(found, len(plan.todo))


def trials_at_a_time(trials: Sequence[Trial], nodes: Sequence[Node], limit: int | None) -> int:
    """How many trials may run at once, so that each has room for all its workers; at least 1."""
    fits = min(
        workers_that_fit(trial.job, nodes, uses_gpu(trial.job, nodes)) // trial.job.launch.num_workers
        for trial in trials
    )
    return max(1, min(fits, limit or fits))
