"""MATLAB files, as some publishers ship their labels."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_prep.errors import DataPrepError

_MAX_BYTES = 64 << 20
_ORDERS = {b"\x00\x01IM": "<", b"\x01\x00MI": ">"}
_DATA = {1, 2, 3, 4, 5, 6, 7, 9, 12, 13, 16, 17, 18}
"""Kinds of elements that hold numbers or text."""
_MATRIX, _COMPRESSED = 14, 15
_FLAGS = 6
_CLASSES = {1, 2, 4, *range(6, 16)}
"""Kinds of matrices: cells, structs, text and numbers; neither objects nor sparse ones."""
_MAX_DEPTH = 8


def read_mat(content: bytes, where: str, *names: str) -> dict[str, NDArray[Any]]:
    """Variables of a MATLAB file (version 4 to 7), without dimensions of length one.

    Raises:
        DataPrepError: it can't be parsed, or lacks one of the variables.
    """
    from scipy.io import loadmat

    if len(content) > _MAX_BYTES:
        raise DataPrepError(f"{where} has {len(content):,} bytes: too many for a file of labels")
    try:
        _check(content)
        found = loadmat(io.BytesIO(content), variable_names=names, squeeze_me=True)
    except Exception as error:  # a damaged file raises nearly any type
        raise DataPrepError(f"{where} is not a MATLAB file that can be read ({error})") from None
    if absent := [name for name in names if name not in found]:
        raise DataPrepError(f"{where} has no variable {' and no '.join(absent)}")
    return {name: np.atleast_1d(found[name]) for name in names}


def _check(content: bytes) -> None:
    """Look at the kinds and lengths in a file of version 5 to 7: SciPy takes them at their word, and an unknown kind
    ends the process with a segmentation fault.

    Raises:
        ValueError: one is wrong.
    """
    if 0 in content[:4]:
        return  # version 4, which has no such kinds
    if (order := _ORDERS.get(content[124:128])) is None:
        raise ValueError("its header has no known version")
    _check_elements(memoryview(content)[128:], order, 0)


def _check_elements(content: memoryview, order: str, depth: int) -> None:
    at = 0
    while at < len(content):
        kind, size = struct.unpack_from(f"{order}II", content, at)
        start, end = at + 8, at + 8 + size
        if kind >> 16:  # a small element: both in four bytes, then up to four bytes of data
            kind, size, start = kind & 0xFFFF, kind >> 16, at + 4
            end = start + min(size, 4)
        data = content[start:end]
        if len(data) != size:
            raise ValueError(f"an element at byte {at:,} is cut off")
        if kind == _COMPRESSED and depth == 0:
            unpacked = zlib.decompressobj().decompress(data, _MAX_BYTES)
            _check_elements(memoryview(unpacked), order, 1)
        elif kind == _MATRIX and depth < _MAX_DEPTH:
            _check_matrix(data, order, depth + 1)
        elif kind not in _DATA:
            raise ValueError(f"an element at byte {at:,} is of the unknown kind {kind}")
        at = end if kind == _COMPRESSED else end + -end % 8


def _check_matrix(content: memoryview, order: str, depth: int) -> None:
    if not content:
        return  # an empty field of a struct
    kind, size, flags = struct.unpack_from(f"{order}III", content)
    if (kind, size) != (_FLAGS, 8) or flags & 0xFF not in _CLASSES:
        raise ValueError(f"a matrix has the flags {flags:#x} of kind {kind}, which no array of labels has")
    _check_elements(content, order, depth)


def read_numbers(content: bytes, where: str, *names: str) -> dict[str, list[int]]:
    """Variables of a MATLAB file that are lists of whole numbers.

    Raises:
        DataPrepError: as `read_mat`, or a variable is anything else.
    """
    numbers = {}
    for name, values in read_mat(content, where, *names).items():
        if values.ndim != 1 or values.dtype.kind not in "iuf" or not np.all(values == np.floor(values)):
            raise DataPrepError(f"{where}: its variable {name} is not a list of whole numbers")
        numbers[name] = [int(value) for value in values]
    return numbers
