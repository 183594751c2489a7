"""The notation by which a user names a model, the same one for all jobs and commands.

    models:/NAME@ALIAS, models:/NAME/3    a version in the registry
    NAME, runs/NAME                       a run (see `runs.find_run`): its best model, else its newest checkpoint
    runs/NAME/checkpoints/step-000000120  a checkpoint, in a folder or at a URL
    runs/NAME/best                        a model bundle (`model.safetensors` and `bundle.json`)
    convmlp_s.pth, Mixer-B_16.npz         a file of released weights (also .safetensors)

Nothing that is read here is ever executed.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

from convmlp.weight_files import Choice
from convmlp_platform.checkpoints import layout
from convmlp_platform.checkpoints.checkpointer import Checkpointer
from convmlp_platform.checkpoints.layout import FOLDER as CHECKPOINTS
from convmlp_platform.config.load import parse_job
from convmlp_platform.config.paths import REGISTRY_SCHEME
from convmlp_platform.config.schema import TrainJob
from convmlp_platform.config.sections.execution import TrackingTarget
from convmlp_platform.errors import ConfigError
from convmlp_platform.models.bundle import SPEC_NAME, WEIGHTS_NAME, BundleSpec, read_spec
from convmlp_platform.runs import init_record
from convmlp_platform.runs.find_run import is_remote, locate, missing
from convmlp_platform.runs.found_model import FoundModel, Kind, checkpoint_run, explained
from convmlp_platform.runs.run_folder import checkpoints_of, stored_identity, stored_job
from data_prep.storage.files import sha256_file
from data_prep.storage.urls import is_url, shown

_FORMS = (
    "give models:/NAME@ALIAS, models:/NAME/VERSION, a run's folder, one of its checkpoints, a model bundle, "
    "or a .pth, .npz or .safetensors file"
)


def find_model(
    text: str, tracking: TrackingTarget | None = None, into: Path | None = None, choice: Choice = "auto"
) -> FoundModel:
    """The model that `text` means.

    Args:
        text: paths and names of runs as in `runs.find_run`.
        tracking: whose registry is asked; default: that of MLFLOW_TRACKING_URI, else the one beside the runs.
        into: an empty folder for what a registry on another machine sends (default: a temporary one that stays).
        choice: which of two sets of weights, where there are two.

    Raises:
        ConfigError: there is no such model, or it is damaged, or there is nothing to choose; the message says what
            there is.
    """
    found = explained(text, lambda: _find(text, tracking, into))
    if found.record is not None or choice == "auto":
        return found
    if found.spec is not None:
        raise ConfigError(
            f"{shown(text)}: a finished model has only one set of weights, so {choice!r} can't be chosen. Checkpoints "
            "of a run with training.ema_decay (RUN/checkpoints/step-...) have both"
        )
    return replace(found, choice=choice)


def _find(text: str, tracking: TrackingTarget | None, into: Path | None) -> FoundModel:
    if text.startswith(REGISTRY_SCHEME):
        return _registered(text, tracking, into)
    if is_remote(text):
        return _remote(text)
    path = _local(text)
    if path.is_file():
        return _file(text, path)
    if (path / init_record.RECORD).is_file():
        return _copied(text, path)
    if (path / SPEC_NAME).is_file():
        return _bundle(text, path)
    if layout.step_of(path.name) is not None:
        return _checkpoint(text, "checkpoint", str(path), _job_of(path.parent.parent))
    if path.name == CHECKPOINTS:
        return _newest(text, path, _job_of(path.parent))
    if any((path / name).exists() for name in ("run.json", CHECKPOINTS, "best")):
        return _run(text, path)
    raise ConfigError(f"{path} is no model; {_FORMS}")


def _registered(text: str, tracking: TrackingTarget | None, into: Path | None) -> FoundModel:
    from convmlp_platform.registry.registry import DATASET_DIGEST_TAG, WEIGHTS_TAG, resolve

    found = resolve(text, section=tracking, into=into)
    spec, weights = read_spec(found.bundle), sha256_file(found.bundle / WEIGHTS_NAME)
    if found.tags.get(WEIGHTS_TAG, weights) != weights:
        raise ConfigError(
            f"its weights ({found.bundle / WEIGHTS_NAME}) are not those that were registered: their SHA-256 is "
            f"{weights}, not {found.tags[WEIGHTS_TAG]}"
        )
    pinned = f"{REGISTRY_SCHEME}{found.name}/{found.version}"
    lineage = _lineage(text, pinned, weights, spec) | {"init.version": str(found.version)}
    for tag, name in (
        ("run", "init.run"),
        ("identity", "init.identity"),
        (DATASET_DIGEST_TAG, "init.dataset_digest"),
    ):
        if found.tags.get(tag):
            lineage[name] = found.tags[tag]
    return FoundModel(text, "registry", pinned, found.bundle, spec, None, lineage)


def _bundle(text: str, folder: Path, kind: Kind = "bundle", job: TrainJob | None = None) -> FoundModel:
    spec = read_spec(folder)
    lineage = _lineage(text, str(folder), sha256_file(folder / WEIGHTS_NAME), spec)
    return FoundModel(text, kind, str(folder), folder, spec, job, lineage)


def _file(text: str, path: Path) -> FoundModel:
    return FoundModel(text, "file", str(path), path, lineage=_lineage(text, str(path), sha256_file(path)))


def _copied(text: str, folder: Path) -> FoundModel:
    """The weights that a run started from, out of its own copy: told as what they were."""
    record = init_record.read_record(folder.parent)
    assert record is not None  # it was there a moment ago
    file = init_record.check_copy(folder.parent, record)
    return FoundModel(
        text,
        record.kind,  # type: ignore[arg-type]
        record.pinned,
        file,
        lineage=record.lineage,
        record=record,
    )


def _run(text: str, run: Path) -> FoundModel:
    job = _job_of(run)
    if (run / "best" / SPEC_NAME).is_file():
        return _bundle(text, run / "best", "run", job)
    local = run / CHECKPOINTS
    return _newest(text, local if local.is_dir() or job is None else checkpoints_of(job), job)


def _newest(text: str, place: Path | str, job: TrainJob | None) -> FoundModel:
    location = Checkpointer(place).newest()
    if location is None:
        raise ConfigError(f"neither a best model nor a checkpoint yet in {shown(str(place))}")
    return _checkpoint(text, "run", location, job)


def _remote(text: str) -> FoundModel:
    url = text.rstrip("/")
    if layout.step_of(url.rpartition("/")[2]) is not None:
        return _checkpoint(text, "checkpoint", url, None)
    for place in (url, f"{url}/{CHECKPOINTS}"):
        if Checkpointer(place).store.steps():
            return _newest(text, place, None)
    raise ConfigError(
        f"no checkpoints here nor in its {CHECKPOINTS}/; of remote models only checkpoints are read"
    )


def _checkpoint(text: str, kind: Kind, location: str, job: TrainJob | None) -> FoundModel:
    place, _, name = location.rpartition("/")
    checkpointer, step = Checkpointer(place), layout.step_of(name) or 0
    steps = checkpointer.store.steps()
    if step not in steps:
        there = ", ".join(layout.step_name(each) for each in steps) or "none"
        raise ConfigError(f"no such checkpoint in {shown(place)}; there are: {there}")
    files = checkpointer.files(step)
    groups = layout.tensor_files(files)
    hashes = [files[file].sha256 for file in groups.get("ema", groups.get("model", []))]
    weights = hashes[0] if len(hashes) == 1 else hashlib.sha256(" ".join(hashes).encode()).hexdigest()
    lineage = _lineage(text, shown(location), weights) | {"init.step": str(step)}
    if job is not None:
        lineage |= {"init.run": job.name, "init.model": job.model.name} | _dataset_of(location)
    return FoundModel(text, kind, shown(location), location, None, job, lineage)


def _dataset_of(location: str) -> dict[str, str]:
    """The digest of the dataset that a checkpoint's run was started with, as its tag."""
    fields = None if is_url(location) else stored_identity(checkpoint_run(location))
    return (
        {}
        if fields is None or "data.digest" not in fields
        else {"init.dataset_digest": fields["data.digest"]}
    )


def _lineage(text: str, pinned: str, weights: str, spec: BundleSpec | None = None) -> dict[str, str]:
    lineage = {"init.source": shown(text), "init.pinned": pinned, "init.weights_sha256": weights}
    if spec is None:
        return lineage
    told = {name: str(spec.provenance[name]) for name in _PROVENANCE if spec.provenance.get(name) is not None}
    return lineage | {"init.model": spec.model} | {f"init.{name}": value for name, value in told.items()}


_PROVENANCE = ("run", "identity", "step", "dataset", "dataset_digest", "weights")


def _job_of(run: Path) -> TrainJob | None:
    """Reads the job that trained the run in this folder; None if no valid one is there.

    The job's paths are as they were then.
    """
    try:
        job = parse_job(stored_job(run), str(run))
    except ConfigError:
        return None
    return job if isinstance(job, TrainJob) else None


def _local(text: str) -> Path:
    found = locate(text)
    if found is None:
        raise ConfigError(f"there is no such file or folder{missing(text)}; {_FORMS}")
    return found
