"""Made-up runs with real ledgers: the product's order and writer, without reading any image."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xxhash
from torch import Tensor

from convmlp_platform.config.identity import ORDER_VERSION, identity_of
from convmlp_platform.data.sample_order import SampleOrder, share_of
from convmlp_platform.ledger.ledger import LedgerHeader, LedgerWriter, claim_attempt


@dataclass(frozen=True)
class Used:
    """What the ledger looks at of a micro-batch."""

    epochs: Tensor
    sample_ids: Tensor
    checksums: Tensor
    replaced: Tensor
    number: int
    ghost: bool = False


@dataclass
class MadeUpRun:
    """A run that uses samples as the loader would and records them.

    `checksums` [num_samples] are those of the payloads, by default made up from the sample's number.
    """

    path: Path
    order: SampleOrder = field(
        default_factory=lambda: SampleOrder(97, num_streams=4, seed=7, block=4, window=16)
    )
    global_batch_size: int = 16
    micro_batch_size: int = 2
    digest: str = "sha256:" + "1" * 64
    format: str = "webdataset"
    checksums: np.ndarray[Any, np.dtype[np.int64]] | None = None

    def __post_init__(self) -> None:
        order = self.order
        self.fields = {
            "seed": order.seed,
            "data.digest": self.digest,
            "data.train_split": "train",
            "data.num_streams": order.num_streams,
            "data.shuffle_block": order.block,
            "data.shuffle_window": order.window,
            "data.order": ORDER_VERSION,
            "training.global_batch_size": self.global_batch_size,
            "training.micro_batch_size": self.micro_batch_size,
        }
        if order.repeats > 1:
            self.fields["augment.repeats"] = order.repeats
        self.path.mkdir(parents=True, exist_ok=True)
        (self.path / "run.json").write_text(json.dumps({"identity_fields": self.fields}))

    @property
    def ledger(self) -> Path:
        return self.path / "ledger"

    @property
    def num_micro_batches(self) -> int:
        return self.global_batch_size // self.micro_batch_size

    def header(self, rank: int, world_size: int, attempt: int, parent: int, start: int) -> LedgerHeader:
        return LedgerHeader(
            identity_of(self.fields),
            self.digest,
            "train",
            self.format,
            self.order,
            self.global_batch_size,
            self.micro_batch_size,
            world_size,
            rank,
            attempt,
            parent,
            start,
        )

    def used(self, step: int, rank: int, world_size: int) -> list[Used]:
        """A rank's micro-batches of a step, ghosts included."""
        share, size = share_of(rank, world_size, self.num_micro_batches), self.micro_batch_size
        found = []
        for place, number in enumerate(share.numbers):
            of_step = _step_samples(self.order, step, self.global_batch_size)
            epochs, samples = (column[number * size : (number + 1) * size].copy() for column in of_step)
            sums = samples * 2654435761 - (1 << 62) if self.checksums is None else self.checksums[samples]
            found.append(
                Used(
                    torch.from_numpy(epochs),
                    torch.from_numpy(samples),
                    torch.from_numpy(sums),
                    torch.zeros(size, dtype=torch.bool),
                    number,
                    ghost=place >= share.real,
                )
            )
        return found

    def attempt(self, world_size: int, start: int, stops: int | Sequence[int], parent: int = 0) -> int:
        """Train from `start` to `stops` (one for all ranks, or each rank's own); returns the attempt's number."""
        number = claim_attempt(self.ledger)
        each = [stops] * world_size if isinstance(stops, int) else stops
        for rank, stop in enumerate(each):
            writer = LedgerWriter(self.ledger, self.header(rank, world_size, number, parent, start))
            for step in range(start, stop):
                writer.append(step, self.used(step, rank, world_size))
            writer.close()
        return number

    def checkpoint(self, step: int, attempt: int) -> None:
        """What is left of a committed checkpoint for the checker to see."""
        folder = self.path / "checkpoints" / f"step-{step:09d}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "state.json").write_text(json.dumps({"step": step, "attempt": attempt}))

    def with_restarts(self) -> MadeUpRun:
        """Three attempts on 3, 2 and 5 ranks, with steps rolled back; 20 steps, 3 complete epochs of 97."""
        first = self.attempt(3, 0, [9, 8, 10])
        self.checkpoint(6, first)
        second = self.attempt(2, 6, 14, parent=first)
        self.checkpoint(12, second)
        third = self.attempt(5, 12, 20, parent=second)
        self.checkpoint(20, third)
        return self


_step_samples = lru_cache(maxsize=4096)(SampleOrder.step_samples)


def reforge(path: Path, change: Any) -> None:
    """Let `change(frames)` edit a ledger file's frames (or return others) and give them valid hashes again:
    a record that is wrong, not damaged."""
    line, _, body = path.read_bytes().partition(b"\n")
    header = LedgerHeader.decode(line + b"\n")
    frames = np.frombuffer(bytearray(body), header.frame)
    changed = change(frames)
    frames = frames if changed is None else changed
    for at in range(len(frames)):
        content = frames[at : at + 1].tobytes()[:-8]
        frames["hash"][at] = xxhash.xxh3_64_intdigest(content, header.seed)
    path.write_bytes(line + b"\n" + frames.tobytes())
