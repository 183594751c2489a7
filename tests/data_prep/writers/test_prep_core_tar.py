"""Tar headers made by hand are tarfile's own, whatever the name and size."""

from __future__ import annotations

import tarfile

from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.writers.webdataset_writer import tar_header

NAMES = st.text(st.characters(min_codepoint=33, exclude_categories=["Cs"]), min_size=1, max_size=30)


@given(
    st.one_of(NAMES, st.integers(90, 300).map("x".__mul__)),
    st.one_of(st.integers(0, 2**20), st.integers(8**11 - 2, 8**11 + 2)),
)
@settings(deadline=None)
def test_headers_are_those_of_tarfile(name: str, size: int) -> None:
    expected = tarfile.TarInfo(name)
    expected.size = size
    assert tar_header(name, size) == expected.tobuf(tarfile.GNU_FORMAT)
