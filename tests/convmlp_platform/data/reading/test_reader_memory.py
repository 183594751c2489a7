"""Memory that batches lie in is used again, but never while anyone looks at it."""

from __future__ import annotations

import gc
from pathlib import Path

import numpy as np
import pytest
import torch
from reader_helpers import loader, open_split, photos

from convmlp_platform.data.reading.batch_memory import BatchPool, Lent, ReadBatch

SHAPE, UINT8 = (4, 8, 8, 3), np.dtype(np.uint8)


def test_a_slot_is_free_once_its_tensor_and_all_views_are_gone() -> None:
    pool = BatchPool(2, SHAPE, UINT8)
    slot = pool.take()
    assert slot is not None and pool.take() is not None
    assert pool.take() is None
    images = pool.lend(slot, 3)
    assert images.shape == (3, 8, 8, 3)
    view = images[1:].float().sum(), images[2].numpy()
    del images
    gc.collect()
    assert pool.take() is None
    del view
    gc.collect()
    assert pool.take() == slot


def test_lent_memory_outlives_its_pool() -> None:
    pool = BatchPool(1, SHAPE, UINT8)
    slot = pool.take()
    assert slot is not None
    pool.array(slot)[:] = 7
    images = pool.lend(slot, 4)
    del pool
    gc.collect()
    assert (images == 7).all()


def test_pinning_copies_and_frees_the_slot(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.Tensor, "pin_memory", torch.Tensor.clone)
    pool = BatchPool(1, SHAPE, UINT8)
    slot = pool.take()
    assert slot is not None
    pool.array(slot)[:] = 9
    none = np.zeros(4, np.int64)
    read = ReadBatch(Lent(pool.number, slot, 4), none, none, none, none, none > 0, ())
    pinned = read.pin_memory()
    gc.collect()
    assert pool.take() == slot
    pool.array(slot)[:] = 1
    assert (pinned.tensors() == 9).all()


def test_batches_that_are_kept_are_not_overwritten(tmp_path: Path) -> None:
    """Sixty kept batches are more than the pool has room for: the rest come in memory of their own."""
    source = open_split(photos(tmp_path))
    kept = [micro for micros in loader(source, num_workers=2).steps(0, 30) for micro in micros]
    alone = [micro for micros in loader(source).steps(0, 30) for micro in micros]
    assert all(torch.equal(ours.images, wanted.images) for ours, wanted in zip(kept, alone, strict=True))
    assert all(micro.images.is_contiguous(memory_format=torch.channels_last) for micro in kept)


def test_a_reader_process_that_dies_is_an_error_not_a_hang(tmp_path: Path) -> None:
    source = open_split(photos(tmp_path))
    source.payload = lambda sample: __import__("os")._exit(1)  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="exited unexpectedly"):
        next(loader(source, num_workers=1).steps(0, 3))
