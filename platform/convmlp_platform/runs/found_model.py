"""A model that was found where a user named it: its weights, and what is known of it.

Nothing that is read here is ever executed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, TypeVar

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from convmlp.weight_files import Choice, FileWeights, read_weights
from convmlp_platform.checkpoints import layout
from convmlp_platform.checkpoints.checkpointer import Checkpointer, load
from convmlp_platform.config.schema import TrainJob
from convmlp_platform.data.dataset.split import open_manifest
from convmlp_platform.errors import CheckpointError, ConfigError, DataError, TrackingError
from convmlp_platform.models.bundle import WEIGHTS_NAME, BundleSpec, read_spec
from convmlp_platform.runs.init_record import InitRecord
from data_prep.errors import DataPrepError
from data_prep.storage.urls import local_path, shown

Kind = Literal["registry", "run", "checkpoint", "bundle", "file"]
T = TypeVar("T")


@dataclass(frozen=True)
class FoundModel:
    """A model that is there.

    Args:
        text: as it was asked for.
        kind: what it is.
        pinned: what exactly it is, whatever aliases do: `models:/NAME/3`, a checkpoint's path or URL, a file's or
            bundle's path. `find_model` takes it again.
        location: the bundle's folder, the checkpoint's folder or URL, or the file.
        spec: of a bundle: what its model is and needs.
        job: of a run and its checkpoints, where the run's folder is at hand: what trained it.
        lineage: where it comes from, as tags: init.source, init.pinned, init.weights_sha256, and as far as it is
            known init.version, init.model, init.run, init.identity, init.step, init.dataset, init.dataset_digest.
        choice: which of two sets of weights, where there are two.
        record: of a run's own copy of the weights it began with.
    """

    text: str
    kind: Kind
    pinned: str
    location: Path | str
    spec: BundleSpec | None = None
    job: TrainJob | None = None
    lineage: dict[str, str] = field(default_factory=dict)
    choice: Choice = "auto"
    record: InitRecord | None = None

    def weights(self) -> FileWeights:
        """Its weights: float32 (integers as they are), on the CPU, by the names that they have there, with the names of
        their classes as far as they are known.

        Raises:
            ConfigError: they can't be read, are damaged, or the chosen ones aren't there.
        """
        read = explained(self.text, lambda: _read(self.location, self.choice))
        tensors = {
            name: value.float() if value.is_floating_point() else value
            for name, value in read.tensors.items()
        }
        return replace(read, tensors=tensors, classes=read.classes or self._recorded_classes())

    def state_dict(self) -> dict[str, Tensor]:
        """The tensors of `weights`.

        Raises:
            ConfigError: as `weights`.
        """
        return self.weights().tensors

    def _recorded_classes(self) -> tuple[str, ...] | None:
        """The classes of its head by what lies beside the weights; None: unknown."""
        if self.spec is not None:
            return self.spec.classes
        if self.record is not None:
            return None if self.record.classes is None else tuple(self.record.classes)
        if self.job is None:
            return None
        try:
            return read_spec(checkpoint_run(str(self.location)) / "best").classes
        except TrackingError:
            pass
        digest, place = self.lineage.get("init.dataset_digest"), local_path(self.job.data.path)
        try:
            return (
                None if digest is None or place is None else tuple(open_manifest(str(place), digest).classes)
            )
        except DataError:
            return None

    def __str__(self) -> str:
        """For people: `models:/convmlp-s/3 (run pretrain-x, dataset imagenet sha256:0123…)`."""
        known = self.lineage
        dataset = f"{known.get('init.dataset', '')} {known.get('init.dataset_digest', '')[:19]}".strip()
        facts = [f"run {known['init.run']}"] if "init.run" in known else []
        facts += [f"dataset {dataset}…"] if dataset else []
        return self.pinned + (f" ({', '.join(facts)})" if facts else "")


def explained(text: str, work: Callable[[], T]) -> T:
    """All that may go wrong with a source as one kind of error that names it."""
    try:
        return work()
    except (ConfigError, CheckpointError, TrackingError, DataPrepError) as error:
        told = str(error).removeprefix(f"{text}: ")
        raise ConfigError(f"{shown(text)}: {told}") from error
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        reason = (
            (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
        )
        raise ConfigError(f"{shown(text)}: can't be read: {reason}") from error


def _read(location: Path | str, choice: Choice) -> FileWeights:
    if isinstance(location, Path) and location.is_file():
        return read_weights(location, choice)
    if isinstance(location, Path):
        return FileWeights(load_file(location / WEIGHTS_NAME))
    place, _, name = location.rpartition("/")
    Checkpointer(place).verify(layout.step_of(name) or 0)
    checkpoint = load(location)
    groups, known = checkpoint.tensors, checkpoint.facts.get("classes")
    classes = None if known is None else tuple(known)
    if choice == "ema" and "ema" not in groups:
        raise ConfigError("the checkpoint holds no moving average (its run has no training.ema_decay)")
    taken, left = ("ema", "model") if "ema" in groups and choice != "raw" else ("model", "ema")
    return FileWeights(groups[taken], taken, left if left in groups else None, taken == "ema", classes)


def checkpoint_run(location: str) -> Path:
    """The folder of the run that a checkpoint in `RUN/checkpoints` is of."""
    return Path(location).parents[1]


def class_difference(own: Sequence[str], classes: Sequence[str]) -> tuple[int, int] | None:
    """The first number whose class has another name in the two lists, and how many do; None: they are the same.

    Both have to be equally long.
    """
    wrong = [number for number, pair in enumerate(zip(own, classes, strict=True)) if pair[0] != pair[1]]
    return (wrong[0], len(wrong)) if wrong else None
