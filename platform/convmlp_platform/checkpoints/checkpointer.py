"""Saving and finding a run's state. A step is committed or it does not exist."""

from __future__ import annotations

import json
import logging
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from convmlp_platform.checkpoints import layout
from convmlp_platform.errors import CheckpointError
from data_prep.files import sync_folder, write_atomically

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """A run's whole state: groups of full CPU tensors by name (`model`, `optimizer`, `ema`), and `facts`, plain
    JSON values (step, samples seen, ...)."""

    step: int
    tensors: dict[str, dict[str, Tensor]]
    facts: dict[str, Any]


class Checkpointer:
    """The checkpoints of one run, in `folder`; one process at a time writes them.

    Saving: stage → every file durable and hashed → manifest → one rename → `latest` → retire old ones. The newest
    two are never retired. A crash at any instant leaves the newest committed step loadable.
    """

    def __init__(self, folder: Path, keep: int = 3) -> None:
        if keep < 2:
            raise ValueError(f"keep (={keep}) must be at least 2")
        self.folder, self.keep = folder, keep

    def save(self, checkpoint: Checkpoint) -> Path:
        """Commit a state; returns its folder. Saving a step that is committed already changes nothing.

        Raises:
            CheckpointError: the storage refused; what was committed before is untouched.
        """
        target = self.folder / layout.step_name(checkpoint.step)
        if target.exists():
            return target
        staging = self.folder / f"{layout.STAGING}{target.name}-{os.getpid()}"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            _remove_leftovers(self.folder)
            staging.mkdir()
            _write(staging, checkpoint)
            staging.rename(target)
            sync_folder(self.folder)
            write_atomically(self.folder / layout.LATEST, target.name.encode())
        except OSError as error:
            shutil.rmtree(staging, ignore_errors=True)
            raise CheckpointError(f"can't write checkpoint {target}: {error.strerror or error}") from error
        self._retire()
        return target

    def latest(self) -> Path | None:
        """The newest checkpoint that is whole, or None where there is none.

        A damaged one is passed over for the one before, with a warning. `latest` is a convenience for people and
        tools; what counts is what is committed.

        Raises:
            CheckpointError: there are checkpoints, but all are damaged.
        """
        steps = layout.committed_steps(self.folder)
        for step in reversed(steps):
            path = self.folder / layout.step_name(step)
            try:
                layout.verify(path)
            except CheckpointError as error:
                logger.warning("%s; trying the one before", error)
                continue
            return path
        if steps:
            raise CheckpointError(
                f"all {len(steps)} checkpoints in {self.folder} are damaged: remove them to start anew"
            )
        return None

    def _retire(self) -> None:
        """Rename first, then delete: a crash while deleting leaves nothing that looks like a checkpoint."""
        for step in layout.committed_steps(self.folder)[: -self.keep]:
            path = self.folder / layout.step_name(step)
            retired = path.with_name(f"{layout.RETIRED}{path.name}")
            path.rename(retired)
            shutil.rmtree(retired, ignore_errors=True)


def load(path: Path) -> Checkpoint:
    """Read a checkpoint (verified by whoever chose it).

    Raises:
        CheckpointError: a file can't be read.
    """
    try:
        facts = json.loads((path / layout.STATE).read_text())
        tensors = {file.stem: load_file(file) for file in sorted(path.glob("*.safetensors"))}
        return Checkpoint(int(facts["step"]), tensors, facts)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise CheckpointError(f"checkpoint {path} can't be read: {error}") from None


def _write(staging: Path, checkpoint: Checkpoint) -> None:
    for group, tensors in checkpoint.tensors.items():
        contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
        save_file(contiguous, staging / f"{group}.safetensors")
    facts = {**checkpoint.facts, "step": checkpoint.step}
    (staging / layout.STATE).write_text(json.dumps(facts, indent=2))
    files = sorted(staging.iterdir())
    for file in files:
        _sync(file)
    manifest = {"files": {file.name: layout.file_digest(file) for file in files}}
    write_atomically(staging / layout.MANIFEST, json.dumps(manifest, indent=2).encode())


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _remove_leftovers(folder: Path) -> None:
    """What a crash left behind: staged and retired folders, temporary files. Nobody else writes here."""
    for path in folder.iterdir():
        if path.name.startswith((layout.STAGING, layout.RETIRED)):
            shutil.rmtree(path, ignore_errors=True)
        elif path.name.startswith("."):
            path.unlink(missing_ok=True)
