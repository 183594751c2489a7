"""A sample that can't be read as it was written: what is known of it, and the error that says so.

Damaged samples that a rank knows: each is reported once, kept in the run's record, and counted against a budget.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

from convmlp_platform.errors import DataError
from data_prep.errors import os_cause


class Damage(NamedTuple):
    """One damaged sample: its number in the split, where its bytes lie, and what became of it.

    `outcome`: "repaired" was read from the dataset's other format, "replaced" had its place in a micro-batch
    taken by another sample. `cause`: `storage` where the storage failed to read just these bytes (EIO).
    """

    sample: int
    key: str
    file: str
    offset: int
    length: int
    reason: str
    outcome: Literal["repaired", "replaced"] = "replaced"
    epoch: int = 0
    cause: Literal["data", "storage"] = "data"

    @property
    def where(self) -> str:
        """File, sample and byte range."""
        return f"{self.file}: sample {self.key!r} (bytes {self.offset}..{self.offset + self.length})"


class DamagedSample(DataError):
    """A payload is not what the index says, also when read anew. `damage` says where."""

    def __init__(self, damage: Damage, folder: str | Path) -> None:
        super().__init__(
            f"{damage.where} is damaged: {damage.reason}; `convmlp data repair {folder}` restores it from the "
            "dataset's other format or its source, data.on_damage: quarantine trains on without it",
            cause=damage.cause,
        )
        self.damage, self._folder = damage, folder

    def __reduce__(self) -> tuple[type[DamagedSample], tuple[Damage, str | Path]]:
        return DamagedSample, (self.damage, self._folder)


def cause_of_all(damages: Iterable[Damage]) -> Literal["data", "storage"]:
    """Of several damages: `storage` where it failed to read one of them."""
    return "storage" if any(damage.cause == "storage" for damage in damages) else "data"


_SHOWN = 20


def _print(line: str) -> None:
    print(line, flush=True)


@dataclass
class Quarantine:
    """Lives in the training process; readers only report.

    Args:
        num_samples: of the split.
        max_share: of these, how many may be left out before the run fails.
        folder: of the dataset, for the message.
        record: JSON lines are appended here, one a sample; ranks share the file.
    """

    num_samples: int
    max_share: float
    folder: str
    record: Path | None = None
    rank: int = 0
    tell: Callable[[str], None] = _print
    left_out: dict[int, Damage] = field(default_factory=dict)
    repaired: dict[int, Damage] = field(default_factory=dict)

    def add(self, damages: Iterable[Damage]) -> None:
        """Take note of a micro-batch's damage.

        Raises:
            DataError: more distinct samples are left out than the budget allows; it lists them.
        """
        for damage in damages:
            known = self.left_out if damage.outcome == "replaced" else self.repaired
            if damage.sample in known:
                continue
            known[damage.sample] = damage
            self.tell(f"rank {self.rank}: {_told(damage)}")
            self._append(damage)
        if len(self.left_out) > self.max_share * self.num_samples:
            raise self._exhausted()

    def _append(self, damage: Damage) -> None:
        if self.record is None:
            return
        line = {"time": time.time(), "rank": self.rank, **damage._asdict()}
        content = json.dumps(line, ensure_ascii=False).encode() + b"\n"
        try:
            file = os.open(self.record, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            try:
                os.write(file, content)  # one write: ranks' lines don't mix
                os.fsync(file)
            finally:
                os.close(file)
        except OSError as error:
            raise DataError(
                f"can't record a damaged sample in {self.record}: {error.strerror}", cause=os_cause(error)
            ) from error

    def _exhausted(self) -> DataError:
        lost = list(self.left_out.values())
        lines = [f"  {damage.where}: {damage.reason}" for damage in lost[:_SHOWN]]
        more = [f"  and {len(lost) - _SHOWN} more"] if len(lost) > _SHOWN else []
        return DataError(
            f"{len(lost)} of {self.num_samples} samples are damaged, data.max_quarantined "
            f"(={self.max_share:g}) allows {int(self.max_share * self.num_samples)}:\n"
            + "\n".join(lines + more)
            + f"\n`convmlp data repair {self.folder}` restores them from the other format or the source",
            cause=cause_of_all(lost),
        )


def _told(damage: Damage) -> str:
    if damage.outcome == "repaired":
        return f"read from the dataset's other format: {damage.where} is damaged: {damage.reason}"
    return f"left out, its place taken by a neighbour: {damage.where} is damaged: {damage.reason}"
