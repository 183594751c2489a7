"""Values that a training job leaves to its dataset: `auto`, and the rules by which each follows from it.

They are decided while the job file is read, so that all that comes later (`convmlp show` and `check`, a run's identity,
its job.json, MLflow's params) has numbers. The rules know the dataset's manifest and the rest of the job, and no
machine: a run that is started again, elsewhere or on other workers, has the same values. What follows from machines has
rules of its own (`launch.cluster.machine_values`).

    training.global_batch_size  an eighth of the training images as a power of two, 8 to 256; never more than images
    training.micro_batch_size   the largest divisor of the global batch up to 64
    training.epochs             those of 400 updates, rounded up; 10 at least. None where training.steps is given
    training.ema_decay          1 - 10 / updates, 0.9999 at most: the average spans a tenth of the run
    schedule.warmup_steps       a tenth of the updates; 0 where schedule.warmup_epochs is given
    eval.every_epochs           a tenth of the epochs, 1 at least. None where eval.every_steps is given
    model.drop_path_rate        0 below 1,000 updates; else the model's own
    optimizer.lr                1e-3 for fresh weights, 2e-4 for trained ones (model.init_from); of sgd 50 times that
    tracking.register_as.name   the dataset's name; what a model's name can't hold becomes "-"
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

from convmlp_platform.config import paths
from convmlp_platform.config.sections.section import AUTO
from convmlp_platform.errors import ConfigError, PlatformError
from data_prep.dataset.manifest import DatasetManifest, load_manifest
from data_prep.errors import DataPrepError
from data_prep.storage.urls import local_path, shown

FIELDS = (
    "training.global_batch_size",
    "training.micro_batch_size",
    "training.epochs",
    "training.ema_decay",
    "schedule.warmup_steps",
    "eval.every_epochs",
    "model.drop_path_rate",
    "optimizer.lr",
    "tracking.register_as.name",
)
"""The fields that may be `auto`, in the order in which they are decided."""

OF_MACHINES: dict[str, int | str] = {
    "launch.num_workers": 1,
    "launch.cpus_per_worker": 1,
    "data.num_workers": 1,
    "engine.precision": "fp32",
}
"""The fields of a training job whose `auto` follows from the machines it runs on, in the order in which they are
decided; and a value with which the rest of the job can be checked before."""

FEW_UPDATES = 1000
"""Below which stochastic depth costs more than it brings."""

_UPDATES = 400
_LEAST_EPOCHS = 10
_BATCH = (8, 256)
_MICRO_BATCH = 64
_MOST_DECAY = 0.9999
_LR = {"fresh": 1e-3, "trained": 2e-4}
_SGD = 50

OpenManifest = Callable[[str], DatasetManifest]
"""From the path or URL of a dataset to its manifest."""


def decided(values: dict[str, Any], where: str, open_manifest: OpenManifest | None = None) -> dict[str, Any]:
    """The nested values of a training job with a number or name for each `auto`; other values stay as they are.

    Args:
        where: the job file; begins an error's lines.
        open_manifest: default: that of a dataset in a folder of this machine.

    Raises:
        ConfigError: there is no such dataset or split, or a value doesn't follow from it.
    """
    asked = [name for name in FIELDS if value_at(values, name) == AUTO]
    path, split = value_at(values, "data.path"), value_at(values, "data.train_split") or "train"
    if not asked or not isinstance(path, str) or not isinstance(split, str):
        return values  # the schema says what is wrong
    field = asked[0]
    try:
        manifest = (open_manifest or _manifest_in_folder)(paths.resolve(path, "data.path"))
        if (lack := manifest.lacks(split)) is not None:
            raise ConfigError(f"the dataset {lack}")
        rules = _Rules(values, manifest, manifest.splits[split].num_samples)
        for field in asked:
            rules.decide(field)
        return rules.values
    except (PlatformError, DataPrepError) as error:
        told = str(error).removeprefix("data.path: ")
        raise ConfigError(
            f"{where}: {field}: auto follows from the dataset at data.path (={shown(path)}): {told}"
        ) from None


def with_stand_ins(values: dict[str, Any]) -> dict[str, Any]:
    """The nested values with stand-ins for those that follow from machines."""
    for name, stand_in in OF_MACHINES.items():
        if value_at(values, name) == AUTO:
            values = with_value(values, name.split("."), stand_in)
    return values


def _manifest_in_folder(path: str) -> DatasetManifest:
    folder = local_path(path)
    if folder is None:
        raise ConfigError("it is no folder on this machine: name one, or write the values instead of auto")
    return load_manifest(folder)


class _Rules:
    """The rules, applied to one job; a value that is given counts as it is."""

    def __init__(self, values: dict[str, Any], manifest: DatasetManifest, count: int) -> None:
        self.values, self.manifest, self.count = values, manifest, count

    def decide(self, field: str) -> None:
        """Put the field's value into `values`; the fields it follows from must have theirs."""
        value = getattr(self, f"_{field.rpartition('.')[2]}")()
        self.values = with_value(self.values, field.split("."), value)

    def _global_batch_size(self) -> int:
        least, most = _BATCH
        wanted = min(max(self.count // 8, least), most)
        batch = 1 << max(1, min(wanted, self.count).bit_length() - 1)
        micro = self._number("training.micro_batch_size")
        return batch if micro is None or micro < 1 else math.ceil(batch / micro) * int(micro)

    def _micro_batch_size(self) -> int:
        batch = int(self._number("training.global_batch_size") or 1)
        return next(size for size in range(min(max(batch, 1), _MICRO_BATCH), 0, -1) if batch % size == 0)

    def _epochs(self) -> int | None:
        if self._number("training.steps") is not None:
            return None
        batch = self._number("training.global_batch_size") or 1
        return max(_LEAST_EPOCHS, math.ceil(_UPDATES * batch / self.count))

    def _ema_decay(self) -> float:
        return round(min(max(1 - 10 / max(self._updates(), 1), 0.1), _MOST_DECAY), 6)

    def _warmup_steps(self) -> int:
        return 0 if self._number("schedule.warmup_epochs") else self._updates() // 10

    def _every_epochs(self) -> int | None:
        if self._number("eval.every_steps") is not None:
            return None
        batch = self._number("training.global_batch_size") or 1
        return max(1, int(self._updates() * batch / self.count / 10))

    def _drop_path_rate(self) -> float | None:
        return 0.0 if self._updates() < FEW_UPDATES else None

    def _lr(self) -> float:
        rate = _LR["fresh" if value_at(self.values, "model.init_from") is None else "trained"]
        return rate * _SGD if value_at(self.values, "optimizer.name") == "sgd" else rate

    def _name(self) -> str:
        name = re.sub(r"[^A-Za-z0-9._-]+", "-", self.manifest.name).strip("-._")[:128]
        if not name:
            raise ConfigError(f"its name, {self.manifest.name!r}, has no letter that a model's name may have")
        return name

    def _updates(self) -> int:
        """Of the whole run, without a cool-down."""
        steps, epochs = self._number("training.steps"), self._number("training.epochs")
        if steps is not None:
            return int(steps)
        return int((epochs or 0) * self.count / (self._number("training.global_batch_size") or 1))

    def _number(self, name: str) -> float | None:
        """A value that is given; None where there is none, or none that the schema will take."""
        value = value_at(self.values, name)
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        return value if is_number and math.isfinite(value) and value > 0 else None


def value_at(values: Any, name: str) -> Any:
    """What the dotted `name` leads to in nested mappings; None where nothing is there."""
    for key in name.split("."):
        values = values.get(key) if isinstance(values, dict) else None
    return values


def with_value(values: dict[str, Any], path: list[str], value: Any) -> dict[str, Any]:
    """The nested mappings with another value at `path`, whose sections are there."""
    key, *rest = path
    return values | {key: with_value(values[key], rest, value) if rest else value}
