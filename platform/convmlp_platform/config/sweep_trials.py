"""From a sweep to its trials: each a whole training job with a name. Pure: the same sweep gives the same trials."""

from __future__ import annotations

import itertools
import json
import math
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from convmlp_platform.config.overrides import put
from convmlp_platform.config.schema import TrainJob
from convmlp_platform.config.sweep import SweepJob
from convmlp_platform.config.task import BEST_METRICS
from convmlp_platform.errors import ConfigError

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
