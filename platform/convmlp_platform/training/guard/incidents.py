"""The record of what went wrong in a run: one folder for each incident, whole or absent.

RUN/incidents/0003-non_finite-step-1200/
        incident.json         kind, step and time, and what is known: rank, host, message, or the step's numbers
        weights.safetensors   of the first few bad steps: weights and buffers as they were before the step
        stacks-rank-00002.txt, ...   whatever files its writer adds

No torch is imported here, so that the supervisor, which has none, can write incidents too.
"""

from __future__ import annotations

import json
import logging
import os
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from shutil import rmtree
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict
from typing_extensions import TypedDict

from data_prep.storage.files import sync_folder, write_atomically
from data_prep.storage.json_files import Count, DamagedJson, plain_values, read_json

if TYPE_CHECKING:
    from torch import Tensor

    from convmlp_platform.ledger.ledger import Consumed

logger = logging.getLogger(__name__)

Kind = Literal["hang", "non_finite", "spike", "crash", "callback"]
Action = Literal["accept", "skip", "rollback", "stop"]

RECORD, WEIGHTS = "incident.json", "weights.safetensors"
MOST_WITH_WEIGHTS = 3
"""So many incidents of a run keep weights: those of a large model in a run gone wrong would fill the disk."""

_NAME = re.compile(r"(\d{4,})-([a-z_]+)-step-(\d+)")
_WRITING = re.compile(r"\.writing-(\d{4,})")
_FILE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


class MicroBatchRecord(TypedDict):
    """A micro-batch of a bad step: its place in the step, mean loss (None where it isn't known), and its samples'
    ids and epochs; `replaced` are the places whose damaged samples were replaced."""

    number: int
    loss: float | None
    samples: list[int]
    epochs: list[int]
    replaced: list[int]


_Number = float | Literal["nan", "inf", "-inf"] | None


class _StoredMicroBatch(BaseModel):
    number: Count
    loss: _Number
    samples: list[Count]
    epochs: list[Count]
    replaced: list[Count]


class _Stored(BaseModel):
    """The types of what is read again of incident.json; it has more."""

    model_config = ConfigDict(extra="allow")

    attempt: Count | None = None
    world_size: Count | None = None
    loss: _Number = None
    grad_norm: _Number = None
    lr: _Number = None
    action: str | None = None
    message: str | None = None
    micro_batches: list[_StoredMicroBatch] = []


@dataclass(frozen=True)
class Incident:
    """One incident; numbers count a run's from 1, and steps count from 0."""

    path: Path
    number: int
    kind: str
    step: int
    facts: dict[str, Any]

    @property
    def weights(self) -> Path | None:
        """The safetensors file of the weights before the step, where they were kept."""
        path = self.path / WEIGHTS
        return path if path.is_file() else None

    @property
    def micro_batches(self) -> list[MicroBatchRecord]:
        """Those of the step, by number; empty where the incident is none of numbers."""
        records: list[MicroBatchRecord] = list(self.facts.get("micro_batches", ()))
        return [{**record, "loss": number(record["loss"])} for record in records]

    @property
    def loss(self) -> float | None:
        """The global batch's, where the incident is one of numbers."""
        return number(self.facts.get("loss"))

    @property
    def grad_norm(self) -> float | None:
        return number(self.facts.get("grad_norm"))


def open_incident(
    folder: Path,
    kind: Kind,
    step: int,
    facts: Mapping[str, Any],
    files: Mapping[str, bytes] | None = None,
) -> Path:
    """Record an incident; returns its folder, to which `add_file` may add.

    Args:
        folder: the run's `incidents/`; made where it is missing.
        step: counted from 0; of an incident between steps, the one that was due.
        facts: JSON values; floats that are not finite become "nan", "inf" and "-inf", which `float` reads.
        files: contents by name, which are there from the first moment on.

    Raises:
        OSError: the storage refuses. Nothing is left behind then.
        ValueError: a file's name is none.
    """
    with _new_folder(folder, kind, step, facts) as made:
        for name, content in (files or {}).items():
            write_atomically(made.writing / _checked(name), content)
    return made.path


def add_file(incident: Path, name: str, content: bytes) -> Path:
    """Put a file into an incident's folder, whole or not at all; returns its path.

    Raises:
        OSError: the storage refuses.
        ValueError: `name` is not a plain file name.
    """
    path = incident / _checked(name)
    write_atomically(path, content)
    return path


def part_of(
    micro_batches: Sequence[Consumed], losses: Sequence[float] | None = None
) -> list[MicroBatchRecord]:
    """Returns one rank's part of a step: its micro-batches without ghosts, as plain values to be gathered on rank 0.

    Args:
        losses: mean losses, one for each given micro-batch, ghosts too; None: they are not known.
    """
    known: Sequence[float | None] = losses if losses is not None else [None] * len(micro_batches)
    return [
        {
            "number": micro.number,
            "loss": loss,
            "samples": micro.sample_ids.tolist(),
            "epochs": micro.epochs.tolist(),
            "replaced": [place for place, replaced in enumerate(micro.replaced.tolist()) if replaced],
        }
        for micro, loss in zip(micro_batches, known, strict=True)
        if not micro.ghost
    ]


def merged(parts: Iterable[Sequence[MicroBatchRecord]]) -> list[MicroBatchRecord]:
    """The whole step from every rank's part, by micro-batch number."""
    return sorted((record for part in parts for record in part), key=lambda record: record["number"])


def keeps_weights(folder: Path) -> bool:
    """Whether the next incident of numbers keeps its weights; if not, nobody need gather them."""
    return len(list(folder.glob(f"[0-9]*/{WEIGHTS}"))) < MOST_WITH_WEIGHTS


def capture(
    folder: Path,
    kind: Literal["non_finite", "spike"],
    step: int,
    *,
    attempt: int,
    world_size: int,
    loss: float,
    grad_norm: float | None,
    lr: float,
    action: str,
    micro_batches: Sequence[MicroBatchRecord],
    weights: Mapping[str, Tensor] | None = None,
    message: str = "",
    **facts: Any,
) -> Path:
    """Record a step whose numbers are wrong, on rank 0; returns the incident's folder.

    Args:
        attempt: the ledger's attempt that computed the step.
        loss, grad_norm: the global batch's, as computed; `lr`: the learning rate that was to be used.
        action: what the guard does now; "accept": computed again it was right. `convmlp replay` passes over steps of
            "skip", whose update was left out.
        micro_batches: all ranks' (`merged`).
        weights: full parameters and buffers from before the step, by name; kept if the run has room for them.
        facts: more JSON values.

    Raises:
        OSError: the storage refuses.
    """
    numbers = {
        "attempt": attempt,
        "world_size": world_size,
        "loss": loss,
        "grad_norm": grad_norm,
        "lr": lr,
        "action": action,
        "message": message,
        "micro_batches": list(micro_batches),
    }
    keep = weights is not None and keeps_weights(folder)
    with _new_folder(folder, kind, step, {**facts, **numbers}) as made:
        if weights is not None and keep:
            _save_weights(made.writing / WEIGHTS, weights)
    return made.path


def read_incidents(folder: Path) -> list[Incident]:
    """A run's incidents by number; none where there is no folder. One that can't be read is left out, with a
    warning."""
    found = []
    for path in folder.glob("[0-9]*-step-*"):
        if match := _NAME.fullmatch(path.name):
            try:
                facts = read_json(path / RECORD, _Stored).model_dump(exclude_unset=True)
                found.append(Incident(path, int(match[1]), match[2], int(match[3]), facts))
            except (OSError, DamagedJson) as error:
                logger.warning("incident %s is left out: %s can't be read: %s", path, RECORD, error)
    return sorted(found, key=lambda incident: (incident.number, incident.path))


def number(fact: Any) -> float | None:
    """A number among an incident's facts; those that aren't finite are text there."""
    return None if fact is None else float(fact)


class _New:
    """An incident being written; `path` is its folder once it is whole."""

    def __init__(self, writing: Path, path: Path) -> None:
        self.writing, self.path = writing, path


@contextmanager
def _new_folder(folder: Path, kind: str, step: int, facts: Mapping[str, Any]) -> Iterator[_New]:
    """A folder under a temporary name, which gets its own name once what is within is written and durable."""
    folder.mkdir(parents=True, exist_ok=True)
    writing, number = _claim(folder)
    try:
        new = _New(writing, folder / f"{number:04d}-{kind}-step-{step}")
        yield new
        record = {"kind": kind, "step": step, "time": time.time(), **facts}
        text = json.dumps(plain_values(record), indent=2, allow_nan=False, default=str)
        write_atomically(writing / RECORD, text.encode() + b"\n")
        writing.rename(new.path)
        sync_folder(folder)
    except BaseException:
        rmtree(writing, ignore_errors=True)
        raise


def _claim(folder: Path) -> tuple[Path, int]:
    """A temporary folder whose number no other writer has: mkdir gives a name to one of them only.

    A writer that was done between the look and the mkdir has the number too; hence the second look. What a killed
    writer left keeps its number.
    """
    number = max(_numbers(folder), default=0)
    while True:
        number += 1
        writing = folder / f".writing-{number:04d}"
        try:
            writing.mkdir()
        except FileExistsError:
            continue
        if number not in _numbers(folder, _NAME):
            return writing, number
        writing.rmdir()


def _numbers(folder: Path, *kinds: re.Pattern[str]) -> list[int]:
    names = [path.name for path in folder.iterdir()]
    matches = (kind.fullmatch(name) for kind in kinds or (_NAME, _WRITING) for name in names)
    return [int(match[1]) for match in matches if match]


def _save_weights(path: Path, weights: Mapping[str, Tensor]) -> None:
    from safetensors.torch import save_file

    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}, path)
    _make_durable(path)


def _make_durable(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _checked(name: str) -> str:
    if not _FILE.fullmatch(name) or name == RECORD:
        raise ValueError(f"{name!r} is no name for a file of an incident")
    return name
