"""Pickles of plain values and numpy arrays, read without the power to run code.

A pickle can call any function it names. The unpickler here knows numpy's arrays and nothing else; it reads what
Python 2 wrote, too, such as CIFAR's published files.
"""

from __future__ import annotations

import io
import pickle
from typing import Any

import numpy as np

from data_prep.errors import DataPrepError


def load_plain_pickle(content: bytes, where: str) -> dict[bytes, Any]:
    """Unpickle a dictionary of plain values and numpy arrays; nothing else can be built or called.

    Python 2's strings come as bytes.

    Raises:
        DataPrepError: it asks for anything else, or is damaged.
    """
    try:
        value = _PlainUnpickler(io.BytesIO(content), encoding="bytes").load()
    except Exception as error:  # a damaged pickle raises nearly any type
        raise DataPrepError(f"{where} is not a pickle of plain arrays ({error}): it was not loaded") from None
    if not isinstance(value, dict):
        raise DataPrepError(f"{where} does not hold a dictionary")
    return value


def _encode_latin1(text: str, encoding: str) -> bytes:
    """How protocol 2 carries bytes; any other codec of `_codecs.encode` is of no use here."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"codec {encoding!r} is not allowed")
    return text.encode("latin1")


_RECONSTRUCT = np.zeros(0).__reduce__()[0]
"""How numpy makes an empty array to unpickle into; its private home has moved between releases."""
_ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): _encode_latin1,
}


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if module in ("numpy.core.multiarray", "numpy._core.multiarray") and name == "_reconstruct":
            return _RECONSTRUCT
        if (module, name) in _ALLOWED:
            return _ALLOWED[module, name]
        raise pickle.UnpicklingError(f"{module}.{name} is not allowed")
