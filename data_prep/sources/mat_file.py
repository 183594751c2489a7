"""MATLAB files, as some publishers ship their labels."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_prep.errors import DataPrepError

_MAX_BYTES = 64 << 20


def read_mat(content: bytes, where: str, *names: str) -> dict[str, NDArray[Any]]:
    """Variables of a MATLAB file (version 4 to 7), without dimensions of length one.

    Raises:
        DataPrepError: it can't be parsed, or lacks one of the variables.
    """
    from scipy.io import loadmat

    if len(content) > _MAX_BYTES:
        raise DataPrepError(f"{where} has {len(content):,} bytes: too many for a file of labels")
    try:
        found = loadmat(io.BytesIO(content), variable_names=names, squeeze_me=True)
    except Exception as error:  # a damaged file raises nearly any type
        raise DataPrepError(f"{where} is not a MATLAB file that can be read ({error})") from None
    if absent := [name for name in names if name not in found]:
        raise DataPrepError(f"{where} has no variable {' and no '.join(absent)}")
    return {name: np.atleast_1d(found[name]) for name in names}


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
