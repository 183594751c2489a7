"""A damaged MATLAB file is an error: SciPy takes its kinds of elements at their word, and dies of unknown ones."""

from __future__ import annotations

import io

import numpy as np
import pytest
from published_minis import mat_bytes
from scipy.io import savemat

from data_prep.errors import DataPrepError
from data_prep.sources.parsing.mat_file import read_mat, read_numbers

KIND, CLASS, LENGTH = 184, 144, 132
"""Bytes of a file of one variable: the kind of its values, the class of its matrix, the length of all of it."""


@pytest.mark.parametrize(
    ("place", "value"), [(KIND, 0xDD), (KIND, 8), (CLASS, 0xFF), (CLASS, 3), (LENGTH, 0xF0)]
)
def test_an_unknown_kind_is_an_error(place: int, value: int) -> None:
    content = bytearray(mat_bytes(labels=[1, 2, 3]))
    assert read_numbers(bytes(content), "it", "labels") == {"labels": [1, 2, 3]}
    content[place] = value
    with pytest.raises(DataPrepError, match="it is not a MATLAB file that can be read"):
        read_numbers(bytes(content), "it", "labels")


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("version", ["4", "5"])
def test_whole_files_of_all_versions_are_read(packed: bool, version: str) -> None:
    buffer = io.BytesIO()
    savemat(buffer, {"labels": [3, 1, 2]}, format=version, do_compression=packed and version == "5")
    assert read_numbers(buffer.getvalue(), "it", "labels") == {"labels": [3, 1, 2]}


def test_structs_and_text_are_read() -> None:
    buffer = io.BytesIO()
    rows = np.array([(1, "größe"), (2, "")], dtype=[("id", object), ("words", object)])
    savemat(buffer, {"synsets": rows[:, None]})
    found = read_mat(buffer.getvalue(), "it", "synsets")["synsets"]
    assert [str(row["words"]) for row in found][:1] == ["größe"]
