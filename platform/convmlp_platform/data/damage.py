"""A sample that can't be read as it was written: what is known of it, and the error that says so."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Literal, NamedTuple

from convmlp_platform.errors import DataError


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
