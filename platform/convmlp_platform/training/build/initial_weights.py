"""The weights that a run starts from.

`model.init_from` is looked up once, when the run begins. The run keeps these weights from then on.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from convmlp.weight_files import FileWeights
from convmlp.weights import Misfit, WeightsReport, load_pretrained, match_pretrained
from convmlp_platform.checkpoints.stores.store import open_store
from convmlp_platform.config.identity import INIT_FROM
from convmlp_platform.config.paths import REGISTRY_SCHEME, root
from convmlp_platform.config.schema import TrainJob
from convmlp_platform.errors import ConfigError
from convmlp_platform.runs import init_record
from convmlp_platform.runs.find_model import find_model
from convmlp_platform.runs.found_model import FoundModel, class_difference
from convmlp_platform.runs.init_record import InitRecord, read_record
from convmlp_platform.runs.run_folder import (
    checkpoints_of,
    run_path,
    stored_identity,
    stored_identity_fields,
    stored_job,
)
from data_prep.dataset.manifest import DatasetManifest
from data_prep.storage.urls import is_url, shown

_HASHED = "sha256:"


def counted_weights(job: TrainJob, run: Path | None = None) -> str | None:
    """Returns the hash that represents `model.init_from` in the run's identity; None if the name itself does.

    If the run has begun with the same text, it is the hash of the weights that the run began with: since then, an alias
    may have moved, or the registry may be down. Another text is looked up, because it may name the same weights.

    Args:
        run: the run's folder, if not the job's.

    Raises:
        ConfigError: a source that has to be looked up isn't there.
    """
    if job.model.init_from is None:
        return None
    run = run or run_path(job)
    record, begun = read_record(run), stored_identity(run)
    if record is not None and (begun is None or record.text == _asked(job)):
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
    run, record = run_path(job), read_record(run_path(job))
    if job.model.init_from is None or stored_identity(run) is not None:
        return record
    if record is not None:
        if record.text == _asked(job):
            return record
        init_record.remove_copy(run)  # of a start that never came to a first step
    with tempfile.TemporaryDirectory() as folder:
        found = _looked_up(job, Path(folder))
        weights = _read(found)
        return init_record.write_copy(
            run,
            # As safetensors wants them: no two in the same memory.
            {name: value.contiguous().clone() for name, value in weights.tensors.items()},
            text=_asked(job),
            kind=found.kind,
            pinned=found.pinned,
            lineage=found.lineage,
            classes=weights.classes,
            choice=_choice(weights),
        )


def _choice(weights: FileWeights) -> str | None:
    """Returns a sentence on which of two sets of weights was taken, and how to take the other; None if there is one."""
    if weights.choice is None:
        return None
    return f"{weights.choice} (model.init_weights: {'raw' if weights.is_average else 'ema'} takes the other)"


def _asked(job: TrainJob) -> str:
    """The source as the job names it, for comparison with that of an earlier start."""
    choice = job.model.init_weights
    return portable(str(job.model.init_from)) + ("" if choice == "auto" else f" ({choice})")


def starting_job(job: TrainJob) -> TrainJob:
    """The job with `model.init_from` as this start of its run needs it: nothing, where it goes on from a checkpoint;
    else the run's own copy."""
    if job.model.init_from is None:
        return job
    if open_store(checkpoints_of(job)).steps():
        return _starting_from(job, None)
    return replayed_job(job, run_path(job))


def check_kept(job: TrainJob) -> None:
    """Look at the run's own copy of the weights it began with, where this start of it needs that.

    Raises:
        ConfigError: it is gone or damaged.
    """
    if job.model.init_from is not None and read_record(run_path(job)) is not None:
        starting = starting_job(job)
        if starting.model.init_from is not None:
            _looked_up(starting, Path())


def replayed_weights(job: TrainJob, run: Path) -> str | None:
    """Returns the `counted_weights` of a job that was read from its run's folder and may have been changed since.

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
    """Returns the source of the run's initial weights as tags (`init.source`, ...); empty if it starts from fresh ones.

    Args:
        run: the run's folder.
    """
    record = read_record(run)
    return {} if record is None else record.lineage


def load_initial(
    model: nn.Module, job: TrainJob, manifest: DatasetManifest | None = None
) -> WeightsReport | None:
    """Put the weights of `model.init_from` into the model; None where there are none to put.

    Args:
        model: the job's.
        job: as this start of its run needs it.
        manifest: of the dataset, by whose classes a head is kept or made anew; None: by their number alone.

    Raises:
        ConfigError: they can't be had, or don't fit.
    """
    if job.model.init_from is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        found = _looked_up(job, Path(folder))
        return _fitted(load_pretrained, model, found, _head(job, found, manifest))


def start_line(job: TrainJob, model: nn.Module, manifest: DatasetManifest | None = None) -> str | None:
    """Returns a line for people on what `load_initial` does; None if the job starts from fresh weights.

    The line names the source, the tensors that are taken, those that stay fresh, and the choices and assumptions that
    were made for the user. The model may be on "meta".

    Raises:
        ConfigError: as `load_initial`.
    """
    if job.model.init_from is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        found = _looked_up(job, Path(folder))
        head = _head(job, found, manifest)
        report = _fitted(match_pretrained, model, found, head)
    parts = [f"weights of {found}: {_told(report)}"]
    if (choice := _choice(head.weights) if found.record is None else found.record.choice) is not None:
        parts.append(choice)
    parts += [note for note in report.notes if head.weights.choice is None or head.weights.choice not in note]
    if head.difference is not None and report.replaced and not report.backbone_only:
        parts.append(f"the head is made anew, as {head.difference} (model.init_head: keep keeps it)")
    if head.is_assumed and report.head:
        parts.append(
            f"its head is taken to be for the dataset's {len(head.classes)} classes, as nothing there says which they "
            "were (model.init_head: fresh makes it anew)"
        )
    options = found.spec.options if found.spec else job.model.options
    if options != job.model.options:
        parts.append(f"its model.options were {options}")
    return "; ".join(parts)


@dataclass(frozen=True)
class _Head:
    """Read weights, and whether their head is for the dataset's classes.

    Args:
        weights: what was read.
        classes: of the dataset.
        is_fresh: the model keeps its own head, even if the other one would fit.
        difference: what is wrong with the other one.
        is_assumed: nothing says its classes, so as many are taken to be the same.
    """

    weights: FileWeights
    classes: Sequence[str] = ()
    is_fresh: bool = False
    difference: str | None = None
    is_assumed: bool = False


def _head(job: TrainJob, found: FoundModel, manifest: DatasetManifest | None) -> _Head:
    weights, asked = _read(found), job.model.init_head
    if asked != "auto" or manifest is None:
        return _Head(weights, is_fresh=asked == "fresh")
    if found.lineage.get("init.dataset_digest") == manifest.digest:
        return _Head(weights, manifest.classes)
    if weights.classes is None:
        return _Head(weights, manifest.classes, is_assumed=True)
    if len(weights.classes) != manifest.num_classes or (
        (differs := class_difference(weights.classes, manifest.classes)) is None
    ):
        return _Head(weights, manifest.classes)  # another number shows in the head's shape
    number, count = differs
    more = f" (and {count - 1} more differ)" if count > 1 else ""
    own, other = weights.classes[number], manifest.classes[number]
    told = f"its class {number} is {own!r}, the dataset's is {other!r}{more}"
    return _Head(weights, manifest.classes, is_fresh=True, difference=told)


def _read(found: FoundModel) -> FileWeights:
    try:
        return found.weights()
    except ConfigError as error:
        raise ConfigError(f"{INIT_FROM}: {error}") from None


def _fitted(
    fit: Callable[..., WeightsReport], model: nn.Module, found: FoundModel, head: _Head
) -> WeightsReport:
    quiet = {"note": lambda _line: None} if fit is load_pretrained else {}  # `start_line` has told them
    try:
        return fit(model, head.weights, name=found.pinned, fresh_head=head.is_fresh, **quiet)
    except (ValueError, OSError) as error:
        spec = found.spec
        was = (
            f" {found.pinned} is {spec.model} with options {spec.options}, for images of {spec.image_size} px."
            if spec
            else ""
        )
        told = error.brief if isinstance(error, Misfit) else error
        raise ConfigError(f"{INIT_FROM}: {told}{was}") from error


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
        return find_model(str(job.model.init_from), job.tracking, into, job.model.init_weights)
    except ConfigError as error:
        raise ConfigError(f"{INIT_FROM}: {error}") from None


def portable(text: str) -> str:
    """A model's name as it is compared with that of an earlier start: local paths from CONVMLP_ROOT on."""
    if text.startswith(REGISTRY_SCHEME) or is_url(text):
        return shown(text)
    path = Path(text)
    return str(path.relative_to(root())) if path.is_relative_to(root()) else text
