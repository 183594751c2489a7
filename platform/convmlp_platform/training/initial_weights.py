"""What a run starts from: `model.init_from` looked up once, when the run begins, and held from then on."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from torch import nn

from convmlp.weights import WeightsReport, load_pretrained, match_pretrained
from convmlp_platform.checkpoints.store import open_store
from convmlp_platform.config.identity import INIT_FROM
from convmlp_platform.config.paths import REGISTRY_SCHEME, root
from convmlp_platform.config.schema import TrainJob
from convmlp_platform.errors import ConfigError
from convmlp_platform.training import init_record
from convmlp_platform.training.init_record import InitRecord, read_record
from convmlp_platform.training.model_source import FoundModel, find_model
from convmlp_platform.training.run_folder import (
    checkpoints_of,
    run_path,
    stored_identity,
    stored_identity_fields,
    stored_job,
)
from data_prep.urls import is_url, shown

_HASHED = "sha256:"


def counted_weights(job: TrainJob, run: Path | None = None) -> str | None:
    """What stands for `model.init_from` in the run's identity: the hash of the weights, None where its name does.

    Where the run has begun with the same text, what it began with; an alias may have moved since, the registry may be
    down. Another text is looked up: it may name the same weights.

    Args:
        run: the run's folder, if not the job's.

    Raises:
        ConfigError: a source that has to be looked up isn't there.
    """
    if job.model.init_from is None:
        return None
    run = run or run_path(job)
    record, begun = read_record(run), stored_identity(run)
    if record is not None and (begun is None or record.text == portable(job.model.init_from)):
        return record.weights
    if begun is None or not str(begun.get(INIT_FROM)).startswith(_HASHED):
        return None  # not begun; or begun without, or by a release that counted names
    with tempfile.TemporaryDirectory() as folder:
        return f"{_HASHED}{_looked_up(job, Path(folder)).lineage['init.weights_sha256']}"


def keep_weights(job: TrainJob) -> InitRecord | None:
    """Copy the weights that `job` starts from into its run's folder, unless the run has begun.

    One process does that before the others start (the driver, or rank 0). None where the job starts from fresh ones,
    or its run was begun by a release that kept no copy.

    Raises:
        ConfigError: they can't be had.
        CheckpointError: the folder can't be written.
    """
    run, text = run_path(job), job.model.init_from
    record = read_record(run)
    if text is None or stored_identity(run) is not None:
        return record
    if record is not None:
        if record.text == portable(text):
            return record
        init_record.remove_copy(run)  # of a start that never came to a first step
    with tempfile.TemporaryDirectory() as folder:
        found = _looked_up(job, Path(folder))
        return init_record.write_copy(
            run,
            _contiguous(found),
            text=portable(text),
            kind=found.kind,
            pinned=found.pinned,
            lineage=found.lineage,
        )


def _contiguous(found: FoundModel) -> dict[str, Any]:
    """Tensors as safetensors wants them: no two in the same memory."""
    return {name: value.contiguous().clone() for name, value in found.state_dict().items()}


def starting_job(job: TrainJob) -> TrainJob:
    """The job with `model.init_from` as this start of its run needs it: nothing, where it goes on from a checkpoint;
    else the run's own copy."""
    if job.model.init_from is None:
        return job
    if open_store(checkpoints_of(job)).steps():
        return _starting_from(job, None)
    return replayed_job(job, run_path(job))


def replayed_weights(job: TrainJob, run: Path) -> str | None:
    """What `counted_weights` says of a job that was read from the folder of its run, and may have been changed since.

    Raises:
        ConfigError: as `counted_weights`.
    """
    begun = str(stored_identity_fields(run).get(INIT_FROM))
    if job.model.init_from == stored_job(run)["model"].get("init_from") and begun.startswith(_HASHED):
        return begun
    return counted_weights(job, run)


def replayed_job(job: TrainJob, run: Path) -> TrainJob:
    """The job of the run in folder `run`, to begin as the run did, wherever the folder lies now."""
    return job if read_record(run) is None else _starting_from(job, str(run / init_record.FOLDER))


def _starting_from(job: TrainJob, source: str | None) -> TrainJob:
    return job.model_copy(update={"model": job.model.model_copy(update={"init_from": source})})


def lineage_tags(run: Path) -> dict[str, str]:
    """What the run in this folder starts from, as tags (`init.source`, ...); empty where it starts fresh."""
    record = read_record(run)
    return {} if record is None else record.lineage


def load_initial(model: nn.Module, job: TrainJob) -> WeightsReport | None:
    """Put the weights of `model.init_from` into the model; None where there are none to put.

    Raises:
        ConfigError: they can't be had, or don't fit.
    """
    if job.model.init_from is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        return _fit(model, _looked_up(job, Path(folder)), load_pretrained)


def start_line(job: TrainJob, model: nn.Module) -> str | None:
    """What `load_initial` does, for people: source, tensors taken, what stays fresh. The model may be on "meta".

    Raises:
        ConfigError: as `load_initial`.
    """
    if job.model.init_from is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        found = _looked_up(job, Path(folder))
        line = f"weights of {found}: {_told(_fit(model, found, match_pretrained))}"
    options = found.spec.options if found.spec else job.model.options
    return line + ("" if options == job.model.options else f"; its model.options were {options}")


def _fit(model: nn.Module, found: FoundModel, fit: Any) -> WeightsReport:
    try:
        # By its path, a file can be told to be Google's, whose networks differ a little.
        is_file = isinstance(found.location, Path) and found.location.is_file()
        report: WeightsReport = fit(
            model, found.location if is_file else found.state_dict(), name=found.pinned
        )
    except (ValueError, OSError) as error:
        spec = found.spec
        was = (
            f"\n{found.pinned} is {spec.model} with options {spec.options}, for images of {spec.image_size} px"
            if spec
            else ""
        )
        raise ConfigError(f"{INIT_FROM}: {error}{was}") from None
    return report


def _told(report: WeightsReport) -> str:
    total = len(report.loaded) + len(report.replaced) + len(report.fresh)
    count = f"all {total}" if len(report.loaded) == total else f"{len(report.loaded)} of {total}"
    if report.backbone_only:
        return f"{count} tensors of the backbone, the rest fresh"
    fresh = [
        name for name, some in (("head", report.replaced), ("norms of feature maps", report.fresh)) if some
    ]
    return f"{count} tensors" + (f", {' and '.join(fresh)} fresh" if fresh else "")


def _looked_up(job: TrainJob, into: Path) -> FoundModel:
    try:
        return find_model(str(job.model.init_from), job.tracking, into)
    except ConfigError as error:
        raise ConfigError(f"{INIT_FROM}: {error}") from None


def portable(text: str) -> str:
    """A model's name as it is compared with that of an earlier start: local paths from CONVMLP_ROOT on."""
    if text.startswith(REGISTRY_SCHEME) or is_url(text):
        return shown(text)
    path = Path(text)
    return str(path.relative_to(root())) if path.is_relative_to(root()) else text
