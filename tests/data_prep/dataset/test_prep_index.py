"""The sample index: what is written is what is mapped; damage is an error."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.dataset.checksums import order_key
from data_prep.dataset.index import IndexRow, read_index, write_index
from data_prep.errors import DataPrepError

ROWS = st.lists(
    st.builds(
        IndexRow,
        key=st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
        offset=st.integers(0, 2**63 - 1),
        length=st.integers(0, 2**63 - 1),
        label=st.integers(-(2**31), 2**31 - 1),
        checksum=st.integers(0, 2**64 - 1),
        encoding=st.integers(0, 255),
        height=st.integers(0, 2**31 - 1),
        width=st.integers(0, 2**31 - 1),
        source_hash=st.binary(min_size=16, max_size=16),
        annotation_offset=st.integers(0, 2**63 - 1),
        annotation_length=st.integers(0, 2**63 - 1),
        annotation_checksum=st.integers(0, 2**64 - 1),
    ),
    max_size=20,
)


@given(ROWS)
@settings(max_examples=60, deadline=None)
def test_round_trip(tmp_path_factory: pytest.TempPathFactory, rows: list[IndexRow]) -> None:
    path = tmp_path_factory.mktemp("index") / "a.index.arrow"
    write_index(path, rows)
    index = read_index(path)
    assert [index.row(i) for i in range(len(index))] == rows
    written = path.read_bytes()
    write_index(path, iter(rows))
    assert path.read_bytes() == written


def test_columns_are_views_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.index.arrow"
    write_index(path, [IndexRow(f"k{i}", i, 1, i, i, 0, 2, 3, bytes(16)) for i in range(1000)])
    index = read_index(path)
    for column in (index.offset, index.length, index.label, index.checksum, index.height, index.source_hash):
        assert not column.flags.owndata
        assert not column.flags.writeable
    assert index.source_hash.shape == (1000, 16)
    assert index.checksum.dtype == np.uint64
    assert index.label.dtype == np.int32
    path.unlink()
    assert int(index.offset[999]) == 999


@pytest.mark.parametrize("damage", ["missing", "empty", "truncated", "foreign"])
def test_damage_is_one_clear_error(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "a.index.arrow"
    write_index(path, [IndexRow("k", 0, 1, 0, 0, 0, 2, 3, bytes(16))])
    match damage:
        case "missing":
            path.unlink()
        case "empty":
            path.write_bytes(b"")
        case "truncated":
            path.write_bytes(path.read_bytes()[:-40])
        case "foreign":
            path.write_bytes(b"not an arrow file at all, but long enough to look at")
    with pytest.raises(DataPrepError, match=r"a\.index\.arrow"):
        read_index(path)


@given(st.integers(0, 2**63 - 1), st.lists(st.text(max_size=10), unique=True, max_size=30), st.integers())
@settings(deadline=None)
def test_order_depends_on_seed_and_names_only(seed: int, keys: list[str], other: int) -> None:
    ordered = sorted(keys, key=lambda key: order_key(seed, key))
    shuffled = list(keys)
    Random(other).shuffle(shuffled)
    assert sorted(shuffled, key=lambda key: order_key(seed, key)) == ordered


def test_order_key_is_fixed_for_ever() -> None:
    """Datasets of every release and machine lie in the same order: these values must not change."""
    assert order_key(0, "n01440764/n01440764_10026").hex() == "7ab8e818b24784b864606aa26bf092f2"
    assert order_key(1, "n01440764/n01440764_10026").hex() == "33bfd939588117fdea8c31af0790c7a5"


def test_order_breaks_up_classes() -> None:
    keys = [f"class_{i // 100:02d}/{i:04d}" for i in range(1000)]
    ordered = sorted(keys, key=lambda key: order_key(0, key))
    neighbours_of_one_class = sum(a[:8] == b[:8] for a, b in pairwise(ordered))
    assert 60 < neighbours_of_one_class < 140  # 100 expected of a random order
