"""What a checkpoint looks like where it is stored, the same in a folder and on an object store.

    RUN/checkpoints/step-000000120/
        model.safetensors  optimizer.safetensors  ema.safetensors (if averaged)
        state.json      step, samples seen, updates, identity, ...
        manifest.json   size and SHA-256 of the files above
    RUN/checkpoints/latest      the name of the newest committed step: a hint for people and tools

Where several ranks write, each writes `GROUP-00002-of-00004.safetensors` with its own pieces of the tensors (see
`checkpoints.tensor_file`). A step without its manifest doesn't exist; nor do folders with other names
(`.staging-*`, `.retired-*`). Reading one runs no code: safetensors and JSON only.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from convmlp_platform.errors import CheckpointError

MANIFEST, STATE, LATEST = "manifest.json", "state.json", "latest"
STAGING, RETIRED = ".staging-", ".retired-"
SCHEMA_VERSION = 2
"""1 had no version, and whole tensors only; it is read as well."""

_STEP_NAME = re.compile(r"step-(\d{9,})")
_TENSOR_FILE = re.compile(r"(\w+?)(?:-(\d{5})-of-(\d{5}))?\.safetensors")


@dataclass(frozen=True)
class FileRecord:
    """What was written under a name."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class Part:
    """Which of `count` writers of one checkpoint this is; number 0 commits."""

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


def manifest_bytes(step: int, files: dict[str, FileRecord]) -> bytes:
    """The manifest's text."""
    records = {name: asdict(files[name]) for name in sorted(files)}
    return json.dumps({"schema_version": SCHEMA_VERSION, "step": step, "files": records}, indent=2).encode()


def parse_manifest(text: bytes, where: str) -> dict[str, FileRecord]:
    """The files of the checkpoint `where`.

    Raises:
        CheckpointError: it isn't a manifest, or one of a newer platform, or it names files outside the checkpoint.
    """
    try:
        fields: dict[str, Any] = json.loads(text)
        version = fields.get("schema_version", 1)
        files = {name: FileRecord(int(f["bytes"]), str(f["sha256"])) for name, f in fields["files"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"checkpoint {where} has no readable {MANIFEST}: {error!r}") from None
    if version not in (1, SCHEMA_VERSION):
        raise CheckpointError(
            f"checkpoint {where} has schema version {version}, and this platform reads up to {SCHEMA_VERSION}: "
            "use the version that wrote it, or a newer one"
        )
    for name in files:
        if not name or name.startswith(".") or re.search(r"[/\\]", name):
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
