"""A file that is appended to in pieces: the bytes, their hash, and what the disk is asked to begin with."""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.storage import files
from data_prep.storage.files import GatheredWriter, begin_write_back

MEBIBYTE = 1 << 20


@given(st.lists(st.binary(max_size=300_000), max_size=8))
def test_pieces_lie_one_after_the_other(pieces: list[bytes]) -> None:
    with tempfile.TemporaryFile() as file:
        writer = GatheredWriter(file)
        for piece in pieces:
            writer.write(piece)
        writer.flush()
        assert writer.position == sum(map(len, pieces))
        file.seek(0)
        content = file.read()
    assert content == b"".join(pieces)
    assert writer.sha256 == hashlib.sha256(content).hexdigest()


def test_the_disk_begins_while_more_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[tuple[int, int]] = []
    monkeypatch.setattr(files, "begin_write_back", lambda descriptor, *part: begun.append(part))
    with (tmp_path / "file").open("w+b") as file:
        writer = GatheredWriter(file)
        for _ in range(20):
            writer.write(bytes(MEBIBYTE))
            assert not begun or sum(begun[-1]) <= os.fstat(file.fileno()).st_size
        assert begun == [(0, 8 * MEBIBYTE), (8 * MEBIBYTE, 8 * MEBIBYTE)]
        writer.seek(50 * MEBIBYTE)
        for _ in range(8):
            writer.write(bytes(MEBIBYTE))
        assert begun[2:] == [(50 * MEBIBYTE, 8 * MEBIBYTE)]


def test_what_has_no_disk_is_left_alone() -> None:
    reading, writing = os.pipe()
    begin_write_back(writing, 0, 1)
    os.close(reading)
    os.close(writing)
    begin_write_back(writing, 0, 1)
