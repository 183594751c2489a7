"""What a checkpoint looks like on disk, and whether one is whole.

    RUN/checkpoints/step-000000120/
        model.safetensors  optimizer.safetensors  ema.safetensors (if averaged)
        state.json      step, samples seen, updates, identity, ...
        manifest.json   size and SHA-256 of the files above
    RUN/checkpoints/latest      the name of the newest committed step

A folder with another name (`.staging-*`, `.retired-*`) is no checkpoint. Reading one runs no code: safetensors
and JSON only.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from convmlp_platform.errors import CheckpointError

MANIFEST, STATE, LATEST = "manifest.json", "state.json", "latest"
STAGING, RETIRED = ".staging-", ".retired-"
_STEP_NAME = re.compile(r"step-(\d{9,})")


def step_name(step: int) -> str:
    """The folder's name for the state after `step` optimizer steps."""
    return f"step-{step:09d}"


def committed_steps(folder: Path) -> list[int]:
    """Steps that were committed in `folder`, oldest first."""
    if not folder.is_dir():
        return []
    found = (_STEP_NAME.fullmatch(path.name) for path in folder.iterdir())
    return sorted(int(match.group(1)) for match in found if match)


def file_digest(path: Path) -> dict[str, Any]:
    """Size in bytes and SHA-256 of a file."""
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def verify(checkpoint: Path) -> None:
    """Check every file of a checkpoint against its manifest.

    Raises:
        CheckpointError: a file is missing or isn't what was written.
    """
    try:
        files: dict[str, Any] = json.loads((checkpoint / MANIFEST).read_text())["files"]
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"checkpoint {checkpoint} has no readable {MANIFEST}: {error}") from None
    for name, wanted in files.items():
        if Path(name).name != name:
            raise CheckpointError(f"checkpoint {checkpoint}: {MANIFEST} names a file outside it: {name!r}")
        try:
            found = file_digest(checkpoint / name)
        except OSError as error:
            raise CheckpointError(
                f"checkpoint {checkpoint}: {name} can't be read: {error.strerror}"
            ) from None
        if found != wanted:
            raise CheckpointError(
                f"checkpoint {checkpoint}: {name} isn't what was written (found {found}, not {wanted})"
            )
