"""Identity of a training run: all that decides its result, and nothing of where or how fast it runs.

A driver that finds a run of the same name resumes it if the identities agree, and refuses otherwise.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from convmlp_platform.config.paths import REGISTRY_SCHEME
from data_prep.storage.json_files import DamagedJson, read_json, write_json

# Whoever only reads an identity, of fifty runs say, needs no schema of jobs: 0.3 s of CPU.
if TYPE_CHECKING:
    from pydantic import BaseModel

    from convmlp_platform.config.schema import TrainJob

# Sections that count whole, and the fields that count of the others. All else may change between two starts.
_WHOLE_SECTIONS = ("task", "model", "augment", "loss", "optimizer", "schedule")
_FIELDS = {
    "data": ("train_split", "eval_split", "image_size", "mean", "std", "shuffle_block", "shuffle_window"),
    "training": ("epochs", "steps", "global_batch_size", "micro_batch_size", "clip_grad_norm", "ema_decay"),
    "engine": ("precision",),
    "eval": ("crop_pct", "interpolation"),  # they decide which evaluation, and so which weights, are the best
}

# Of the sample order (data/sample_order.py): raised with its pinned test, so that no run goes on in another
# order.
ORDER_VERSION = 2

INIT_FROM = "model.init_from"
IDENTITY_NAME = "run.json"
"""In a run's folder: the `identity_fields` that it was begun with."""


@dataclass(frozen=True)
class _Stored:
    identity_fields: dict[str, Any]
    identity: str | None = None
    """Of these fields: tells a damaged file from another recipe. Earlier releases wrote none."""


def identity_fields(job: TrainJob, dataset_digest: str, weights: str | None = None) -> dict[str, Any]:
    """Dotted name → JSON value of everything that decides the result; stored in the run's folder.

    The dataset counts by its digest, wherever it lies; the sample order's streams by the number in use, given or not.

    Args:
        weights: the hash of those the run starts from, "sha256:...", which then counts in place of `model.init_from`.
            Without it a file counts by its name, so that the same run can go on under another CONVMLP_ROOT.
    """
    values = job.model_dump(mode="json")
    chosen: dict[str, Any] = {"seed": job.seed} | {name: values[name] for name in _WHOLE_SECTIONS}
    for section, names in _FIELDS.items():
        chosen[section] = {name: values[section][name] for name in names}
    chosen["data"] |= {"digest": dataset_digest, "num_streams": job.num_streams, "order": ORDER_VERSION}
    if job.model.init_from is not None:
        chosen["model"]["init_from"] = weights or _name_of(job.model.init_from)
    return flat_values(chosen)


def flat_values(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as dotted names → scalars and lists; an empty mapping has no names."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat.update(flat_values(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _name_of(source: str) -> str:
    return source if source.startswith(REGISTRY_SCHEME) else PurePath(source).name


def identity(job: TrainJob, dataset_digest: str) -> str:
    """SHA-256 (64 hexadecimal digits) over `identity_fields`."""
    return identity_of(identity_fields(job, dataset_digest))


def identity_of(fields: dict[str, Any]) -> str:
    """The identity that stored `identity_fields` have."""
    canonical = json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(canonical.encode()).hexdigest()


def read_identity(run: Path) -> dict[str, Any]:
    """The `identity_fields` that the run in this folder was begun with.

    Raises:
        OSError: there are none, or they can't be read.
        DamagedJson: the file isn't what was written.
    """
    file = run / IDENTITY_NAME
    stored = read_json(file, _Stored)
    if stored.identity not in (None, identity_of(stored.identity_fields)):
        raise DamagedJson(f"{file} is damaged: its fields don't have the identity that it says")
    return stored.identity_fields


def write_identity(run: Path, fields: dict[str, Any]) -> None:
    """Store the `identity_fields` of a run that begins.

    Raises:
        OSError: the storage refuses.
    """
    stored = {"identity": identity_of(fields), "identity_fields": fields}
    write_json(run / IDENTITY_NAME, stored)


def differences(
    old: dict[str, Any], new: dict[str, Any], recorded: dict[str, Any] | None = None
) -> list[str]:
    """One line `optimizer.lr: 0.001 → 0.0005` for each of the `identity_fields` that changed.

    A field that the old ones lack, because it counts only since they were stored, has the value that the run's job had
    then; an option that came later than that has its default.

    Args:
        recorded: the values of that job, where it is on record.
    """
    absent = object()
    known = _defaults() | flat_values(recorded or {}) | old
    return [
        f"{name}: {_shown(known, name)} → {_shown(new, name)}"
        for name in sorted(old.keys() | new.keys())
        if known.get(name, absent) != new.get(name, absent)
    ]


def stored_value(fields: dict[str, Any], name: str) -> Any:
    """A field of stored `identity_fields`: the option's default where it came later, None where there is none."""
    return fields.get(name, _defaults().get(name))


@cache
def _defaults() -> dict[str, Any]:
    """Dotted name → JSON value of each option of a training job that has a default."""
    from convmlp_platform.config.schema import TrainJob

    return flat_values(_default_values(TrainJob))


def _default_values(section: type[BaseModel]) -> dict[str, Any]:
    from pydantic import BaseModel

    values: dict[str, Any] = section.model_construct().model_dump(mode="json")
    for name, field in section.model_fields.items():
        if (
            field.is_required()
            and isinstance(field.annotation, type)
            and issubclass(field.annotation, BaseModel)
        ):
            values[name] = _default_values(field.annotation)
    return values


def _shown(fields: dict[str, Any], name: str) -> str:
    if name not in fields:
        return "not set"
    value = fields[name]
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
