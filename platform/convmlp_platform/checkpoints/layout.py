"""Layout of a stored checkpoint, the same in a folder and on an object store.

    RUN/checkpoints/step-000000120/
        model.safetensors  optimizer.safetensors  ema.safetensors (if averaged)
        state.json      step, samples seen, updates, identity, ...
        manifest.json   size and SHA-256 of the files above
    RUN/checkpoints/latest      the name of the newest committed step: a hint for people and tools

On an object store, which renames nothing, the files lie in a folder of their writers' below the step
(`attempt-2.7/model.safetensors`), and the manifest, written last, says where. So no other writer touches them.

Where several ranks write, each writes `GROUP-00002-of-00004.safetensors` with its own pieces of the tensors (see
`checkpoints.tensor_file`). A step without its manifest doesn't exist; nor do folders with other names
(`.staging-*`, `.retired-*`). Reading one runs no code: safetensors and JSON only.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from convmlp_platform.errors import CheckpointError
from data_prep.storage.json_files import Count, DamagedJson, parse_json

FOLDER = "checkpoints"
"""In a run's own folder."""
MANIFEST, STATE, LATEST = "manifest.json", "state.json", "latest"
STAGING, RETIRED = ".staging-", ".retired-"
SCHEMA_VERSION = 3
"""Of manifests. 2 had no digest and no keys, 1 no version and whole tensors only; they are read as well."""

_STEP_NAME = re.compile(r"step-(\d{9,})")
_TOKEN = re.compile(r"attempt-(\d+)\.(\d+)")
_TENSOR_FILE = re.compile(r"(\w+?)(?:-(\d{5})-of-(\d{5}))?\.safetensors")


@dataclass(frozen=True)
class FileRecord:
    """The file that was written under a name. `key`: its place below the step, if that isn't the name."""

    bytes: Count
    sha256: str
    key: str = ""

    def place(self, name: str) -> str:
        """Returns the place of the file called `name` below the step."""
        return self.key or name


@dataclass(frozen=True)
class Part:
    """The number of one of the `count` writers of a checkpoint; number 0 commits."""

    number: int = 0
    count: int = 1


def step_name(step: int) -> str:
    """The folder's name for the state after `step` optimizer steps."""
    return f"step-{step:09d}"


def step_of(name: str) -> int | None:
    """The step that a folder's name says, None where it is no checkpoint's."""
    match = _STEP_NAME.fullmatch(name)
    return int(match.group(1)) if match else None


def tensor_file_name(group: str, part: Part) -> str:
    """The file of a group of tensors (`model`, `optimizer`, `ema`)."""
    suffix = "" if part.count == 1 else f"-{part.number + 1:05d}-of-{part.count:05d}"
    return f"{group}{suffix}.safetensors"


def group_of(file: str) -> str | None:
    """The group whose tensors a file holds, None for other files."""
    match = _TENSOR_FILE.fullmatch(file)
    return match.group(1) if match else None


def is_older(token: str, than: str) -> bool:
    """Whether the save called `token` was given up before the one called `than` began: what is left of it may go.

    An attempt at the run never touches what belongs to a later one, which has taken its place.
    """
    one, other = _TOKEN.fullmatch(token), _TOKEN.fullmatch(than)
    if one and other:
        return [int(number) for number in one.groups()] < [int(number) for number in other.groups()]
    return token != than


def manifest_bytes(step: int, files: dict[str, FileRecord]) -> bytes:
    """The manifest's text."""
    records = {name: _fields(files[name]) for name in sorted(files)}
    fields = {
        "schema_version": SCHEMA_VERSION,
        "step": step,
        "files": records,
        "digest": manifest_digest(files),
    }
    return json.dumps(fields, indent=2).encode()


def manifest_digest(files: Mapping[str, FileRecord]) -> str:
    """SHA-256 of all records, so that one that is missing is noticed: two checkpoints that share it are the same."""
    lines = (
        f"{name} {record.bytes} {record.sha256} {record.key}\n" for name, record in sorted(files.items())
    )
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _fields(record: FileRecord) -> dict[str, Any]:
    return {name: value for name, value in asdict(record).items() if value != ""}


def hand_in_bytes(files: dict[str, FileRecord]) -> bytes:
    """Returns the content that one writer hands in to the first: the files that it has written."""
    return json.dumps({name: _fields(record) for name, record in files.items()}).encode()


def parse_hand_in(text: bytes) -> dict[str, FileRecord]:
    """Undo `hand_in_bytes`.

    Raises:
        CheckpointError: it is damaged.
    """
    try:
        return parse_json(text, dict[str, FileRecord])
    except DamagedJson as error:
        raise CheckpointError(f"another rank's part can't be read: {error}") from None


@dataclass(frozen=True)
class _Version:
    schema_version: int = 1


@dataclass(frozen=True)
class _Manifest:
    files: dict[str, FileRecord]
    digest: str | None = None


def parse_manifest(text: bytes, where: str) -> dict[str, FileRecord]:
    """The files of the checkpoint `where`.

    Raises:
        CheckpointError: it isn't a manifest, or one of a newer platform, or it names files outside the checkpoint.
    """
    try:
        version = parse_json(text, _Version).schema_version
        if version not in range(1, SCHEMA_VERSION + 1):
            raise CheckpointError(
                f"checkpoint {where} has schema version {version}, and this platform reads up to {SCHEMA_VERSION}: "
                "use the version that wrote it, or a newer one"
            )
        manifest = parse_json(text, _Manifest)
    except DamagedJson as error:
        raise CheckpointError(f"checkpoint {where} has no readable {MANIFEST}: {error}") from None
    files = manifest.files
    if manifest.digest != manifest_digest(files) and not (
        manifest.digest is None and version < SCHEMA_VERSION
    ):
        raise CheckpointError(f"checkpoint {where}: {MANIFEST} isn't what was written")
    for name, record in files.items():
        folder, _, last = record.place(name).rpartition("/")
        outside = (part[:1] in ("", ".") or re.search(r"[/\\]", part) for part in (name, folder or "-"))
        if last != name or any(outside):
            raise CheckpointError(f"checkpoint {where}: {MANIFEST} names a file outside it: {name!r}")
    if STATE not in files:
        raise CheckpointError(f"checkpoint {where}: {MANIFEST} names no {STATE}")
    return files


def tensor_files(files: Iterable[str]) -> dict[str, list[str]]:
    """The files of each group of tensors."""
    groups: dict[str, list[str]] = {}
    for file in sorted(files):
        if (group := group_of(file)) is not None:
            groups.setdefault(group, []).append(file)
    return groups
