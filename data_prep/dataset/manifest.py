"""The shard contract: what a prepared dataset is made of.

`NAME/manifest.json` is written last, so a folder that has one is complete. It is small whatever the
size of the dataset: samples are listed in the index beside each shard (`data_prep.dataset.index`).
It carries a checksum of itself, so that whoever trusts it has also checked it, and with it the SHA-256 of every
other file. This file needs only pydantic, so readers can import it at no cost.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from data_prep.config import ExifOrientation
from data_prep.errors import DataPrepError
from data_prep.storage.files import write_atomically
from data_prep.storage.json_files import DamagedJson, parse_json

MANIFEST_NAME = "manifest.json"
SCHEMA_VERSION = 2
Task = Literal["classification", "detection", "segmentation"]
_SHA256 = r"^[0-9a-f]{64}$"
_DIGEST = r"^sha256:[0-9a-f]{64}$"


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ShardInfo(_Frozen):
    """One shard file and its sample index; paths are relative to the dataset's folder."""

    file: str
    index: str
    num_samples: int = Field(ge=1)
    bytes: int = Field(ge=1)
    sha256: str = Field(pattern=_SHA256)
    index_sha256: str = Field(pattern=_SHA256)

    @field_validator("file", "index")
    @classmethod
    def _stays_in_folder(cls, value: str) -> str:
        path = PurePosixPath(value)
        if path.is_absolute() or ".." in path.parts or not path.parts:
            raise ValueError(f"{value!r} must be a relative path inside the dataset's folder")
        return value


class SplitInfo(_Frozen):
    """One split; every format holds the same samples in the same order, cut at the same places."""

    num_samples: int = Field(ge=1)
    formats: dict[str, list[ShardInfo]]

    @model_validator(mode="after")
    def _formats_agree(self) -> SplitInfo:
        for name, shards in self.formats.items():
            total = sum(shard.num_samples for shard in shards)
            if total != self.num_samples:
                raise ValueError(f"{name}: shards hold {total} samples, the split says {self.num_samples}")
        counts = {tuple(shard.num_samples for shard in shards) for shards in self.formats.values()}
        if len(counts) > 1:
            raise ValueError(f"formats {sorted(self.formats)} are cut into shards at different places")
        return self


class DatasetManifest(_Frozen):
    """A prepared dataset. `mean` and `std` are per RGB channel on a 0..1 scale, over train pixels."""

    schema_version: int = SCHEMA_VERSION
    name: str
    task: Task = "classification"
    classes: list[str]
    class_ids: list[int] | None = None
    """The publisher's numbers of the classes, by label, where they are not 0..n-1."""
    splits: dict[str, SplitInfo]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    image_mode: Literal["RGB"] = "RGB"
    source: dict[str, Any]
    preprocessing: dict[str, Any]
    digest: str = Field(pattern=_DIGEST)
    checksum: str = Field(default="", pattern=f"^$|{_DIGEST}")
    """Of all other fields; filled in where it is not given."""

    @model_validator(mode="after")
    def _has_a_checksum(self) -> DatasetManifest:
        if not self.checksum:
            object.__setattr__(self, "checksum", _checksum(self.model_dump(mode="json")))
        return self

    @property
    def exif_orientation(self) -> ExifOrientation:
        """How JPEG files of the dataset are to be read. Releases before this setting took them as stored."""
        return "apply" if self.preprocessing.get("exif_orientation") == "apply" else "ignore"

    @property
    def num_turned(self) -> int:
        """Images that are turned: stored upright, or when they are read."""
        return int(self.preprocessing.get("num_oriented", 0)) if self.exif_orientation == "apply" else 0

    @property
    def num_classes(self) -> int:
        """Number of classes; labels are 0-based positions in `classes`."""
        return len(self.classes)

    @property
    def formats(self) -> list[str]:
        """The formats every split is stored in, sorted."""
        return sorted(set.intersection(*(set(split.formats) for split in self.splits.values())))

    def lacks(self, split: str, format: str | None = None) -> str | None:
        """The end of a message where the dataset has no such split, or only in other formats: `has no split 'test'; it
        has train, val`; else None."""
        if split not in self.splits:
            return f"has no split {split!r}; it has {', '.join(sorted(self.splits))}"
        formats = self.splits[split].formats
        if format is None or format in formats:
            return None
        return f"has no {format} shards; it has {', '.join(sorted(formats))}"


def manifest_path(path: str | Path) -> Path:
    """The manifest's file, given it or the dataset's folder."""
    path = Path(path)
    return path if path.name.endswith(".json") else path / MANIFEST_NAME


def load_manifest(path: str | Path) -> DatasetManifest:
    """Read a dataset's manifest.

    Args:
        path: the dataset's folder or its manifest file.

    Raises:
        DataPrepError: it is missing, unreadable, damaged, of another schema, or breaks the contract.
    """
    file = manifest_path(path)
    try:
        content = file.read_bytes()
    except FileNotFoundError:
        raise DataPrepError(
            f"no dataset manifest at {file}: the dataset is not prepared, or its preparation did not finish; "
            f"run its data-prep job (kind: prepare with output.path: {file.parent}), "
            "which goes on where it was interrupted"
        ) from None
    except OSError as error:
        raise DataPrepError(f"can't read the dataset manifest {file}: {error.strerror}") from error
    return parse_manifest(content, file)


def parse_manifest(content: bytes, where: str | Path) -> DatasetManifest:
    """A manifest from its file's bytes, all of which are checked: any flipped bit is found.

    Args:
        content: the file as `write_manifest` made it.
        where: its path or URL, for messages.

    Raises:
        DataPrepError: it is damaged or was edited, of another schema, or breaks the contract.
    """
    try:
        fields = parse_json(content, dict[str, Any])
    except DamagedJson as error:
        raise DataPrepError(
            f"{where} is damaged: {error}; it was changed after preparation: {_REPAIR}"
        ) from None
    _expect_this_version(fields.get("schema_version"), where)
    if fields.get("checksum") != _checksum(fields) or content != _render(fields):
        raise DataPrepError(
            f"{where} is damaged: its checksum is not that of its content, so it was changed after preparation; "
            f"{_REPAIR}"
        )
    try:
        return DatasetManifest.model_validate(fields)
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise DataPrepError(f"{where} breaks the manifest contract: {problems}") from None


_REPAIR = "restore it, or prepare the dataset again with output.overwrite: true"


def _expect_this_version(version: object, where: str | Path) -> None:
    if type(version) is not int:
        raise DataPrepError(f"{where} is not a dataset manifest: it has no integer schema_version")
    if version > SCHEMA_VERSION:
        raise DataPrepError(
            f"{where} has schema_version {version}, this release reads {SCHEMA_VERSION}: "
            "upgrade convmlp-platform, or prepare the dataset again with this release"
        )
    if version < SCHEMA_VERSION:
        raise DataPrepError(
            f"{where} has schema_version {version}, this release reads {SCHEMA_VERSION}: prepare the dataset again "
            "(output.overwrite: true replaces it)"
        )


def write_manifest(manifest: DatasetManifest, path: str | Path) -> Path:
    """Write the manifest with its checksum atomically into a folder (or to a `.json` file); returns its path."""
    file = manifest_path(path)
    fields = manifest.model_dump(mode="json")
    write_atomically(file, _render(fields | {"checksum": _checksum(fields)}))
    return file


def _checksum(fields: dict[str, Any]) -> str:
    """`sha256:...` of the fields but itself, as compact JSON with sorted keys."""
    others = {name: value for name, value in fields.items() if name != "checksum"}
    text = json.dumps(others, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return f"sha256:{hashlib.sha256(text.encode(errors='surrogatepass')).hexdigest()}"


def _render(fields: dict[str, Any]) -> bytes:
    """The one form of the file; spaces and key order count, too, so that no flipped bit goes unseen."""
    text = json.dumps(fields, indent=2, ensure_ascii=False) + "\n"
    return text.encode(errors="surrogatepass")
