"""`convmlp checkpoints list | verify | export`: what is there, whether it is whole, and the weights alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from safetensors.torch import save

from convmlp_platform.checkpoints import layout
from convmlp_platform.checkpoints.checkpointer import Checkpointer, load
from convmlp_platform.checkpoints.layout import FOLDER
from convmlp_platform.errors import CheckpointError
from data_prep.errors import DataPrepError
from data_prep.storage.files import write_atomically
from data_prep.storage.json_files import Count


@dataclass(frozen=True)
class CheckpointRow:
    """A committed step as its manifest and state describe it; `problem` says what is wrong with it, if anything."""

    step: int
    location: str
    bytes: int = 0
    files: int = 0
    samples_seen: int | None = None
    epoch: float | None = None
    metrics: dict[str, float] | None = None
    attempt: int = 0
    problem: str | None = None


@dataclass(frozen=True)
class _Facts:
    """The part of a checkpoint's state.json that is shown."""

    samples_seen: Count | None = None
    epoch: float | None = None
    metrics: dict[str, float] | None = None
    evaluated: Count | None = None
    attempt: Count = 0


def list_checkpoints(location: str | Path) -> list[CheckpointRow]:
    """The committed steps of a run, oldest first; manifests and states are read, tensors are not.

    Args:
        location: a run's folder or URL, or its `checkpoints/`.

    Raises:
        CheckpointError: the storage can't be read, or there is no checkpoint.
    """
    checkpointer, steps = _open(location)
    return [_row(checkpointer, step) for step in steps]


def verify_checkpoints(location: str | Path) -> Iterator[CheckpointRow]:
    """The same rows, each once every byte of its step has been read and compared with its manifest.

    Raises:
        CheckpointError: as `list_checkpoints`.
    """
    checkpointer, steps = _open(location)
    for step in steps:
        row = _row(checkpointer, step)
        if row.problem is None:
            try:
                checkpointer.verify(step)
            except CheckpointError as error:
                row = CheckpointRow(**{**vars(row), "problem": str(error)})
        yield row


def export_checkpoint(
    location: str | Path, output: Path, weights: Literal["ema", "model"] | None = None
) -> dict[str, str]:
    """Write the weights of a checkpoint to one safetensors file, which timm and torch load as they are.

    Args:
        location: a checkpoint, or a run's folder or URL: then its newest whole checkpoint.
        output: the file to write; whole or absent.
        weights: the moving average or the weights trained; default: the average where there is one.

    Returns:
        What the file's metadata says: step, weights, samples_seen, identity, source.

    Raises:
        CheckpointError: there is no such checkpoint or average, or `output` can't be written.
    """
    if layout.step_of(str(location).rstrip("/").rpartition("/")[2]) is None:
        checkpointer, _ = _open(location)
        found = checkpointer.newest()
    else:
        found = str(location).rstrip("/")
        parent, _, name = found.rpartition("/")
        Checkpointer(parent or ".").verify(layout.step_of(name) or 0)
    assert found is not None  # _open refuses a place without checkpoints
    checkpoint = load(found)
    group = weights or ("ema" if "ema" in checkpoint.tensors else "model")
    if group not in checkpoint.tensors:
        raise CheckpointError(
            f"checkpoint {found} has no {group} weights: the run kept no average (training.ema_decay); "
            "export its model"
        )
    facts: dict[str, Any] = {"step": checkpoint.step, "weights": group, "source": found}
    facts |= {
        name: checkpoint.facts[name] for name in ("samples_seen", "identity") if name in checkpoint.facts
    }
    metadata = {"format": "pt"} | {name: str(value) for name, value in facts.items()}
    tensors = {name: tensor.contiguous() for name, tensor in checkpoint.tensors[group].items()}
    try:
        write_atomically(output, save(tensors, metadata))
    except OSError as error:
        raise CheckpointError(f"can't write {output}: {error.strerror}") from error
    return metadata


def _open(location: str | Path) -> tuple[Checkpointer, list[int]]:
    """The checkpoints in a place, or in its `checkpoints/`."""
    text = str(location).rstrip("/")
    try:
        for place in (text, f"{text}/{FOLDER}"):
            checkpointer = Checkpointer(place)
            if steps := checkpointer.store.steps():
                return checkpointer, steps
    except (OSError, DataPrepError) as error:
        raise CheckpointError(f"{location}: checkpoints can't be listed: {error}") from error
    raise CheckpointError(
        f"{location}: no checkpoints here nor in its {FOLDER}/: name a run's folder, such as runs/NAME"
    )


def _row(checkpointer: Checkpointer, step: int) -> CheckpointRow:
    location = checkpointer.store.location(step)
    try:
        files = checkpointer.files(step)
        facts = checkpointer.facts(step, _Facts)
    except CheckpointError as error:
        return CheckpointRow(step, location, problem=str(error))
    return CheckpointRow(
        step,
        location,
        sum(record.bytes for record in files.values()),
        len(files),
        facts.samples_seen,
        facts.epoch,
        # A step is saved before it is evaluated; what older releases saved knows its own evaluation.
        facts.metrics if facts.evaluated in (None, step) else None,
        facts.attempt,
    )
