"""The record of which samples training consumed: one append-only file per attempt and rank.

    RUN/ledger/attempt-000003/rank-00002-of-00004.ledger
        line 1    `convmlp-ledger 1 HASH JSON`: the `LedgerHeader`, and the XXH3-64 of the JSON in hexadecimal
        then      one frame a step, all of one size, so the n-th lies at a known place; little-endian:
                  step u64 | numbers u32 [M] | samples u64 [M, B] | checksums u32 [M, B] | hash u64

M is the rank's number of micro-batches, B their size. A sample is epoch << 40 | sample id, with bit 63 set where
quarantine gave its place to another; a checksum is the low half of the XXH3-64 of the payload that was read. A
frame's hash is its XXH3-64 seeded with the header's, so that no frame passes for one of another file. A sample
costs 12 + (16 + 4 M) / (M B) bytes: 14.5 in one micro-batch of 8, 12.25 in four of 32.

An attempt is one start of training. It names its parent, the attempt whose checkpoint it went on from, and the
step of that checkpoint: `ledger.proof` follows this line. Workers of an older attempt that don't know yet that they
are dead write to their own attempt's files, and harm nothing.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
import xxhash
from torch import Tensor

from convmlp_platform.data.sample_order import SampleOrder, share_of
from convmlp_platform.distributed import World, on_main
from convmlp_platform.errors import DataError
from data_prep.errors import os_cause
from data_prep.storage.files import sync_folder, write_atomically
from data_prep.storage.json_files import parse_json

MAGIC, SCHEMA = "convmlp-ledger", 1
EPOCH_SHIFT, REPLACED_SHIFT = 40, 63


class Consumed(Protocol):
    """The part of a micro-batch that the ledger needs (data.reading.loader has the real one): tensors of [B] on the
    CPU."""

    @property
    def sample_ids(self) -> Tensor: ...
    @property
    def epochs(self) -> Tensor: ...
    @property
    def checksums(self) -> Tensor: ...
    @property
    def replaced(self) -> Tensor: ...
    @property
    def number(self) -> int: ...
    @property
    def ghost(self) -> bool: ...


@dataclass(frozen=True)
class LedgerHeader:
    """Whose record a file is, and of what.

    Args:
        identity, digest: the run's identity and the dataset's digest.
        split, format: what is read of the dataset.
        order: all parameters of the sample order.
        attempt: counts the starts of training, from 1.
        parent: the attempt whose checkpoint this one went on from; 0: none, it began at step 0.
        start_step: steps that were done when it began.
    """

    identity: str
    digest: str
    split: str
    format: str
    order: SampleOrder
    global_batch_size: int
    micro_batch_size: int
    world_size: int
    rank: int
    attempt: int = 0
    parent: int = 0
    start_step: int = 0

    @property
    def num_micro_batches(self) -> int:
        """Micro-batches of a step, over all ranks."""
        return self.global_batch_size // self.micro_batch_size

    @property
    def frame(self) -> np.dtype[np.void]:
        """The layout of a frame."""
        micros = share_of(self.rank, self.world_size, self.num_micro_batches).real
        samples = (micros, self.micro_batch_size)
        return np.dtype(
            [
                ("step", "<u8"),
                ("numbers", "<u4", (micros,)),
                ("samples", "<u8", samples),
                ("checksums", "<u4", samples),
                ("hash", "<u8"),
            ]
        )

    def file(self, folder: Path) -> Path:
        """Returns the path of the record in the ledger's folder."""
        return attempt_folder(folder, self.attempt) / f"rank-{self.rank:05d}-of-{self.world_size:05d}.ledger"

    def encode(self) -> bytes:
        """The file's first line."""
        text = json.dumps(asdict(self), sort_keys=True, separators=(",", ":"))
        return f"{MAGIC} {SCHEMA} {xxhash.xxh3_64_hexdigest(text.encode())} {text}\n".encode()

    @staticmethod
    def decode(line: bytes) -> LedgerHeader:
        """Undo `encode`. Raises ValueError where the line isn't what was written."""
        if not (line.startswith(MAGIC.encode()) and line.endswith(b"\n")):
            raise ValueError("it doesn't begin with a ledger's header")
        _, schema, digest, text = line[:-1].decode().split(" ", 3)
        if digest != xxhash.xxh3_64_hexdigest(text.encode()):
            raise ValueError("its header is damaged")
        if int(schema) != SCHEMA:
            raise ValueError(f"it has schema {schema}, this release reads {SCHEMA}")
        return parse_json(text.encode(), LedgerHeader)

    @property
    def seed(self) -> int:
        """Seed of the hashes of this file's frames."""
        seed: int = xxhash.xxh3_64_intdigest(self.encode())
        return seed


def attempt_folder(folder: Path, attempt: int) -> Path:
    """The folder of an attempt within the ledger's."""
    return folder / f"attempt-{attempt:06d}"


class LedgerWriter:
    """Appends a rank's frames: one write a step; they are durable after `sync`.

    Raises:
        DataError: the storage refuses (`append` and `sync` too).
    """

    def __init__(self, folder: Path, header: LedgerHeader) -> None:
        self.header, self.path = header, header.file(folder)
        self._seed = header.seed
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self.path, header.encode())
            self._descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND)
        except OSError as error:
            raise _refused(self.path, error) from error
        self._bytes = bytearray(header.frame.itemsize)
        self._hashed = memoryview(self._bytes)[:-8]
        self._frame = np.ndarray((), header.frame, self._bytes)

    def append(self, step: int, micro_batches: Sequence[Consumed]) -> None:
        """Record that the optimizer step `step` (counted from 0) consumed these. Ghosts don't count."""
        real = [micro for micro in micro_batches if not micro.ghost]
        frame, shape = self._frame, self._frame["samples"].shape
        if (len(real), *{len(micro.sample_ids) for micro in real}) != shape:
            raise ValueError(f"step {step}: not {shape[0]} micro-batches of {shape[1]} samples")
        epochs = np.stack([micro.epochs.numpy() for micro in real])
        samples = np.stack([micro.sample_ids.numpy() for micro in real])
        replaced = np.stack([micro.replaced.numpy() for micro in real]).astype(np.int64)
        checksums = np.stack([micro.checksums.numpy() for micro in real])
        frame["step"] = step
        frame["numbers"] = [micro.number for micro in real]
        frame["samples"] = (epochs << EPOCH_SHIFT | samples | replaced << REPLACED_SHIFT).view(np.uint64)
        frame["checksums"] = checksums & 0xFFFFFFFF
        frame["hash"] = xxhash.xxh3_64_intdigest(self._hashed, self._seed)
        self._write(self._bytes)

    def sync(self) -> None:
        """Make all that was appended durable."""
        try:
            os.fsync(self._descriptor)
        except OSError as error:
            raise _refused(self.path, error) from error

    def close(self) -> None:
        os.close(self._descriptor)

    def _write(self, content: bytes | bytearray) -> None:
        try:
            written = os.write(self._descriptor, content)
            while written < len(content):  # a disk that gets full takes a part first
                written += os.write(self._descriptor, content[written:])
        except OSError as error:
            raise _refused(self.path, error) from error


@dataclass(frozen=True)
class Ledger:
    """A run's ledger: its folder, and what the headers of this rank's files have in common."""

    folder: Path
    header: LedgerHeader

    def start(self, world: World, start_step: int, parent: int) -> LedgerWriter:
        """Begin the next attempt on every rank (collective), at a checkpoint of attempt `parent`."""
        attempt = on_main(world, lambda: claim_attempt(self.folder))
        header = replace(self.header, attempt=attempt, start_step=start_step, parent=parent)
        return LedgerWriter(self.folder, header)


def claim_attempt(folder: Path) -> int:
    """Take the next attempt's number: two that start at once get different ones, since mkdir does one of them."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        number = max(known_attempts(folder), default=0)
        while True:
            number += 1
            try:
                attempt_folder(folder, number).mkdir()
            except FileExistsError:
                continue
            sync_folder(folder)
            return number
    except OSError as error:
        raise _refused(folder, error) from error


def known_attempts(folder: Path) -> list[int]:
    """The attempts that were begun, in order."""
    names = (path.name.removeprefix("attempt-") for path in folder.glob("attempt-*") if path.is_dir())
    return sorted(int(name) for name in names if name.isdecimal())


def _refused(path: Path, error: OSError) -> DataError:
    return DataError(
        f"can't write the ledger {path}: {error.strerror}; training stops rather than go unrecorded",
        cause=os_cause(error),
    )
