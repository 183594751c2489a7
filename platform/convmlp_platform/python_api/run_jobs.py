"""Jobs run from Python: `prepare`, `train`, `evaluate`, each as `convmlp run` runs its job, after the same checks.

They print the lines that the command prints. Ctrl-C lets a training save its state and ends it with KeyboardInterrupt;
the same call goes on from there.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from convmlp_platform.config import paths
from convmlp_platform.config.automatic import value_at
from convmlp_platform.config.evaluate_job import EvaluateJob
from convmlp_platform.config.load import job_values
from convmlp_platform.config.schema import Job, PrepareJob, TrainJob
from convmlp_platform.errors import ConfigError
from convmlp_platform.python_api.datasets.prepared_dataset import PreparedDataset, open_dataset
from convmlp_platform.python_api.folder_recipes import PREPARE, TRAIN, folder_source, stand_in
from convmlp_platform.python_api.job_values import Settings, checked_before, job_of, laid_over
from convmlp_platform.runs.find_dataset import find_dataset
from data_prep import console
from data_prep.dataset.manifest import MANIFEST_NAME
from data_prep.storage.urls import is_url, local_path

if TYPE_CHECKING:
    from convmlp_platform.evaluation.result import EvaluationResult

JobT = TypeVar("JobT", bound=Job)
_CALLS = ("prepare", "train", "evaluate")
PREPARED = "prepared"
"""Folder below CONVMLP_ROOT, or the current one, for datasets that `train` prepares."""


@dataclass(frozen=True)
class TrainingSummary:
    """A finished training.

    Args:
        name: of the run.
        run: its folder.
        steps: that were done.
        metrics: of the last evaluation, by name (`top1`: per cent).
        best: of the best one, which `bundle` has the weights of.
        checkpoint: path or URL of the newest.
        bundle: folder of the best model; None: none was evaluated.
        registered: the registry's URI of the best model; None: not asked for (`tracking.register_as`), or out of reach.
    """

    name: str
    run: Path
    steps: int
    metrics: dict[str, float]
    best: dict[str, float]
    checkpoint: str | None
    bundle: Path | None
    registered: str | None


@dataclass(frozen=True)
class EvaluationSummary:
    """A finished evaluation.

    Args:
        name: of the evaluation.
        folder: of its table, plots and pictures.
        metrics: by name (`top1`: per cent).
        result: all of it, as result.json has it: scores by class, hardware, lineage.
    """

    name: str
    folder: Path
    metrics: dict[str, float]
    result: EvaluationResult


def prepare(
    job: PrepareJob | str | Path | None = None,
    *,
    out: str | Path | None = None,
    settings: Settings | None = None,
    ray: bool | str = False,
    **sections: Any,
) -> PreparedDataset:
    """Prepare a dataset, or find that it is prepared already; returns it open.

    Args:
        job: a job file (.yaml), a job of `load_job`, or a folder of images: `<class>/*.jpg`, of which a fifth is held
            out, or `train/<class>/*.jpg` and `val/<class>/*.jpg`. Other sources: `source={"kind": "coco", ...}`.
        out: the dataset's folder (`output.path`).
        settings, sections: as in `load_job`.
        ray: False: in this process. True: on the cluster of `launch.address`; or its address.

    Raises:
        ConfigError: the job's problems, all at once.
        DataError: the source can't be used, or another dataset is there.
    """
    base, where = _base(job, PREPARE, "prepare()")
    if out is not None:
        output = base.get("output")
        base["output"] = (output if isinstance(output, dict) else {}) | {"path": str(out)}
    values = _on(laid_over(base, sections, settings), ray)
    values.setdefault(
        "name", f"prep-{_as_name(Path(str(value_at(values, 'output.path') or 'dataset')).name)}"
    )
    ready = _checked(values, where, PrepareJob).resolved()
    from convmlp_platform.jobs.preparation_job import prepare_dataset
    from convmlp_platform.jobs.run_job import admitted

    admitted(ready, use_ray=bool(ray))
    prepare_dataset(ready, use_ray=bool(ray))
    return open_dataset(ready.output.path)


def train(
    job: TrainJob | str | Path | None = None,
    *,
    out: str | Path | None = None,
    model: str | Mapping[str, Any] | None = None,
    data: str | Path | PreparedDataset | Mapping[str, Any] | None = None,
    prepared: str | Path | None = None,
    settings: Settings | None = None,
    ray: bool | str = False,
    **sections: Any,
) -> TrainingSummary:
    """Train a model to its end, going on where an earlier call of the same recipe stopped.

    Args:
        job: a job file (.yaml) or a job of `load_job`; default: the recipe of jobs/finetune_folder.yaml, for
            classification, whose length and batch follow from the number of images.
        out: the run's folder (`checkpoint.path` and `name`).
        model: a name from `convmlp models` (`model.name`), or the section.
        data: a prepared dataset, its folder, name or URL (`data.path`); a folder of images, as `prepare` takes it,
            which is prepared first; or the section.
        prepared: where such a folder's dataset goes; default: prepared/NAME below CONVMLP_ROOT or the current folder.
        settings, sections: as in `load_job`.
        ray: False: in this process, one rank of many under torchrun. True: on the cluster of `launch.address`, under
            the supervisor; or its address.

    Raises:
        ConfigError: the job's problems, all at once, before anything starts.
        PlatformError: what stopped the run; its checkpoints stay.
        KeyboardInterrupt, SystemExit: after SIGINT or SIGTERM; the state is saved.
    """
    base, where = _base(job, TRAIN, "train()")
    given = {"model": model, "data": data}
    if job is None and (missing := [name for name, value in {"out": out, **given}.items() if value is None]):
        raise ConfigError(f"train(): {', '.join(missing)}: needed where no job is given")
    if out is not None:
        place = Path(out).expanduser()
        base["name"] = place.name
        sections = {"checkpoint": {"path": str(place.parent)}, **sections}
    if model is not None:
        sections["model"] = model if isinstance(model, Mapping) else {"name": model}
    if data is not None:
        sections["data"] = data if isinstance(data, Mapping) else {"path": _dataset_or_folder(data)}
    values = _on(laid_over(base, sections, settings), ray)
    if data is not None and (folder := _folder_of_images(value_at(values, "data.path"))) is not None:
        _checked(values, where, TrainJob, stand_in_for=str(value_at(values, "data.train_split") or "train"))
        values["data"]["path"] = _prepared_from(folder, prepared, ray).path
    ready = _checked(values, where, TrainJob).resolved()
    from convmlp_platform.jobs.run_job import admitted

    admitted(ready, use_ray=bool(ray))
    return _trained(ready, on_ray=bool(ray))


def evaluate(
    job: EvaluateJob | str | Path | None = None,
    *,
    model: str | Path | Mapping[str, Any] | None = None,
    data: str | Path | PreparedDataset | Mapping[str, Any] | None = None,
    split: str | None = None,
    out: str | Path | None = None,
    settings: Settings | None = None,
    ray: bool | str = False,
    **sections: Any,
) -> EvaluationSummary:
    """Measure a model on a split of a prepared dataset.

    Args:
        job: a job file (.yaml) or a job of `load_job`; default: one of `model` and `data`.
        model: as `load_model` takes it (`model.from`), or the section.
        data: a prepared dataset, its folder, name or URL (`data.path`), or the section.
        split: of the dataset (`data.split`); default: val, or that of an opened dataset.
        out: folder of the result (`output.path` and `name`); default: evaluations/MODEL-SPLIT. An earlier result there
            is replaced once MLflow has it, else put aside.
        settings, sections: as in `load_job`.
        ray: False: in this process. True: on one worker of the cluster of `launch.address`; or its address.

    Raises:
        ConfigError: the job's problems, all at once.
    """
    base, where = _base(job, {"kind": "evaluate"}, "evaluate()")
    given = {"model": model, "data": data}
    if job is None and (missing := [name for name, value in given.items() if value is None]):
        raise ConfigError(f"evaluate(): {', '.join(missing)}: needed where no job is given")
    if model is not None:
        sections["model"] = model if isinstance(model, Mapping) else {"from": str(model)}
    if data is not None:
        section = dict(data) if isinstance(data, Mapping) else {"path": _dataset_or_folder(data)}
        own = split or (data.split if isinstance(data, PreparedDataset) else None)
        sections["data"] = section if own is None else section | {"split": own}
    elif split is not None:
        sections["data"] = {"split": split}
    if out is not None:
        place = Path(out).expanduser()
        base["name"] = place.name
        sections = {"output": {"path": str(place.parent)}, **sections}
    values = _on(laid_over(base, sections, settings), ray)
    named = str(value_at(values, "model.from")).removeprefix(paths.REGISTRY_SCHEME).rstrip("/")
    values.setdefault(
        "name", _as_name(f"{named.rpartition('/')[2]}-{value_at(values, 'data.split') or 'val'}")
    )
    ready = _checked(values, where, EvaluateJob).resolved()
    from convmlp_platform.jobs.evaluation_job import evaluated
    from convmlp_platform.jobs.run_job import admitted

    admitted(ready, use_ray=bool(ray))
    result = evaluated(ready, use_ray=bool(ray))
    return EvaluationSummary(ready.name, Path(ready.output.path) / ready.name, dict(result.metrics), result)


def _base(
    job: Job | str | Path | Mapping[str, Any] | None, default: Mapping[str, Any], caller: str
) -> tuple[dict[str, Any], str]:
    """The values to begin with, and what an error's lines begin with."""
    if job is None:
        return dict(default), caller
    if isinstance(job, str | Path):
        if default is PREPARE and not str(job).endswith((".yaml", ".yml")):
            folder = Path(paths.resolve(str(job), "source.path"))
            return {**default, "source": folder_source(folder)}, caller
        return job_values(job)[0], str(job)
    if isinstance(job, Mapping):
        raise ConfigError(
            f"{caller}: the job is a file or a job of load_job(); give sections by name, source={{...}}"
        )
    return job.model_dump(mode="json"), job.name


def _on(values: dict[str, Any], ray: bool | str) -> dict[str, Any]:
    """With the address of the cluster that the caller names."""
    return laid_over(values, {"launch": {"address": ray}}) if isinstance(ray, str) else values


def _checked(values: dict[str, Any], where: str, kind: type[JobT], stand_in_for: str | None = None) -> JobT:
    """The job; with `stand_in_for`, the training split of a dataset that isn't there yet.

    Raises:
        ConfigError: it is none, or one of another kind.
    """
    if stand_in_for is None:
        job = job_of(values, where)
    else:
        job = checked_before(values, where, lambda _path: stand_in(stand_in_for))
    if not isinstance(job, kind):
        wanted = kind.__name__.removesuffix("Job").lower()
        other = (
            f"{job.kind}() takes this job" if job.kind in _CALLS else f"`convmlp run` runs a {job.kind} job"
        )
        raise ConfigError(f"{where}: kind: must be {wanted} (got {job.kind}): {other}")
    return job


def _dataset_or_folder(data: str | Path | PreparedDataset) -> str:
    if isinstance(data, PreparedDataset):
        return data.path
    given = Path(data).expanduser()
    found = str(given) if given.is_dir() else find_dataset(str(data))
    return found if is_url(found) else str(Path(found).expanduser().absolute())


def _folder_of_images(path: Any) -> Path | None:
    """The folder, if it is one of this machine that holds no prepared dataset; else None."""
    local = local_path(path) if isinstance(path, str) else None
    if local is None:
        return None
    folder = Path(paths.resolve(str(local), "data.path"))
    return folder if folder.is_dir() and not (folder / MANIFEST_NAME).is_file() else None


def _prepared_from(folder: Path, out: str | Path | None, ray: bool | str) -> PreparedDataset:
    place = Path(out) if out is not None else Path(PREPARED) / _as_name(folder.name)
    console.say(f"{folder} is no prepared dataset: it is prepared first, into {place}")
    return prepare(folder, out=place, ray=ray)


def _trained(job: TrainJob, *, on_ray: bool) -> TrainingSummary:
    from convmlp_platform.jobs.training_job import trained_here, trained_on_ray
    from convmlp_platform.launch.supervisor.signals import Interrupted
    from convmlp_platform.models.bundle import SPEC_NAME
    from convmlp_platform.runs.run_folder import RunFolder, run_path
    from convmlp_platform.training.evaluation.evaluate import scores_of

    try:
        summary = (trained_on_ray if on_ray else trained_here)(job)
    except Interrupted as stop:
        if stop.signal_number == signal.SIGINT:
            raise KeyboardInterrupt from None
        raise SystemExit(128 + stop.signal_number) from None
    run = run_path(job)
    best = RunFolder(run, "").best
    return TrainingSummary(
        name=job.name,
        run=run,
        steps=summary["steps"],
        metrics=scores_of(summary["metrics"]),
        best=scores_of(summary["best"]),
        checkpoint=summary["checkpoint"],
        bundle=best if (best / SPEC_NAME).is_file() else None,
        registered=summary["registered"],
    )


def _as_name(text: str) -> str:
    """A job's name may hold letters, digits and . _ - after its first letter or digit."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-._")[:100] or "dataset"
