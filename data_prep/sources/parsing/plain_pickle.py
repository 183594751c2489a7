"""Pickles of plain values and arrays of numbers, read without Python's unpickler.

A pickle is a program: it calls what it names, and changes objects that it has made behind numpy's back. Here the
standard library only takes it apart (`pickletools`); a machine that knows a few operations puts values together, and
arrays are made of bytes whose number has been checked. It reads what Python 2 wrote, too, as CIFAR was published.

No class is looked up, nothing is called, and what a pickle costs is in proportion to its length. There is room for what
the publishers' files hold: a dictionary of plain values, lists of plain values, and arrays.
"""

from __future__ import annotations

import math
import pickletools
from dataclasses import dataclass
from types import NoneType
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from data_prep.errors import DataPrepError

MAX_BYTES = 512 << 20
"""CIFAR-100's largest file has 155 MB."""
_MAX_OPERATIONS = 1_000_000
"""CIFAR-100's training pickle has 0.3 million; an operation of one byte can cost a hundred bytes of memory."""
_MAX_DIMENSIONS = 8
_BITS = 64
_NUMBERS = {f"{kind}{size}" for kind in "iu" for size in (1, 2, 4, 8)} | {"f2", "f4", "f8"}
_ORDERS = {"<", ">", "=", "|"}


class _Refused(Exception):
    """The pickle asks for what isn't allowed; the message says what."""


@dataclass(frozen=True)
class _Name:
    """Something that the pickle names; only these are known."""

    name: str


@dataclass
class _Dtype:
    code: str
    order: str = "="
    built: bool = False


@dataclass
class _Array:
    """An array that the pickle has announced; `values` once it has given the bytes."""

    values: NDArray[Any] | None = None


_MARK = _Name("where the items of a tuple, list or dictionary begin on the stack")
_RECONSTRUCT, _NDARRAY, _DTYPE, _ENCODE = map(_Name, ("_reconstruct", "ndarray", "dtype", "encode"))
_NAMES = {
    "numpy.core.multiarray _reconstruct": _RECONSTRUCT,
    "numpy._core.multiarray _reconstruct": _RECONSTRUCT,
    "numpy ndarray": _NDARRAY,
    "numpy dtype": _DTYPE,
    "_codecs encode": _ENCODE,
}
_VALUES = {
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "NONE", "NEWTRUE", "NEWFALSE", "FLOAT", "BINFLOAT",
    "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8",
}  # fmt: skip
_PYTHON2_TEXT = {"STRING", "BINSTRING", "SHORT_BINSTRING"}
_PLAIN = (bytes, str, int, float, NoneType)
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_TUPLES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


def load_plain_pickle(content: bytes, where: str) -> dict[Any, Any]:
    """The dictionary of plain values and arrays of numbers that a pickle holds; nothing else can be built or called.

    Python 2's strings come as bytes. Arrays can't be written to.

    Args:
        content: the pickle, of protocol 0 to 4.
        where: its name for messages.

    Raises:
        DataPrepError: it asks for anything else, is damaged, or is larger than a limit.
    """
    if len(content) > MAX_BYTES:
        raise DataPrepError(f"{where} has {len(content):,} bytes, more than the {MAX_BYTES:,} that are read")
    try:
        value = _Machine(content).run()
        if isinstance(value, dict):
            return _finished(value)
    except _Refused as error:
        raise DataPrepError(f"{where} is not a pickle of plain arrays ({error}): it was not loaded") from None
    except (ValueError, TypeError, IndexError, KeyError, UnicodeError, OverflowError) as error:
        raise DataPrepError(f"{where} is not an intact pickle ({_short(error)}): it was not loaded") from None
    raise DataPrepError(f"{where} does not hold a dictionary")


class _Machine:
    def __init__(self, content: bytes) -> None:
        self._content = content
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}
        self._encoded = 0

    def run(self) -> Any:
        for count, (operation, argument, _) in enumerate(pickletools.genops(self._content)):
            if count >= _MAX_OPERATIONS:
                raise _Refused(f"more than {_MAX_OPERATIONS:,} operations")
            self._step(operation.name, argument)
        return self._pop()

    def _step(self, name: str, argument: Any) -> None:
        if name in _VALUES:
            self._stack.append(_CONSTANTS[name] if name in _CONSTANTS else _number_or_text(argument))
        elif name in _PYTHON2_TEXT:
            self._stack.append(argument.encode("latin-1"))
        elif name in ("PUT", "BINPUT", "LONG_BINPUT"):
            self._memo[argument] = self._top()
        elif name == "MEMOIZE":
            self._memo[len(self._memo)] = self._top()
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            self._stack.append(self._memo[argument])
        elif name == "MARK":
            self._stack.append(_MARK)
        elif name in _TUPLES:
            self._stack.append(tuple(reversed([self._pop() for _ in range(_TUPLES[name])])))
        elif name == "TUPLE":
            self._stack.append(tuple(self._after_mark()))
        elif name in ("EMPTY_LIST", "LIST"):
            self._stack.append(self._after_mark() if name == "LIST" else [])
        elif name in ("EMPTY_DICT", "DICT"):
            self._stack.append({})
            if name == "DICT":
                made = self._pop()
                _put(made, self._after_mark())
                self._stack.append(made)
        elif name in ("APPEND", "APPENDS"):
            items = self._after_mark() if name == "APPENDS" else [self._pop()]
            _expected(list, self._top()).extend(items)
        elif name in ("SETITEM", "SETITEMS"):
            items = self._after_mark() if name == "SETITEMS" else [self._pop(), self._pop()][::-1]
            _put(_expected(dict, self._top()), items)
        elif name in ("GLOBAL", "STACK_GLOBAL"):
            full = argument if name == "GLOBAL" else " ".join(map(str, [self._pop(), self._pop()][::-1]))
            if full not in _NAMES:
                raise _Refused(f"{_short(full).replace(' ', '.')} is not allowed")
            self._stack.append(_NAMES[full])
        elif name == "REDUCE":
            arguments, function = self._pop(), self._pop()
            self._stack.append(self._called(function, _expected(tuple, arguments)))
        elif name == "BUILD":
            state = _expected(tuple, self._pop())
            _build(self._top(), state)
        elif name not in ("PROTO", "FRAME", "STOP"):
            raise _Refused(f"operation {name} is not allowed")

    def _top(self) -> Any:
        if not self._stack or self._stack[-1] is _MARK:
            raise _Refused("it takes values that it has not made")
        return self._stack[-1]

    def _pop(self) -> Any:
        self._top()
        return self._stack.pop()

    def _after_mark(self) -> list[Any]:
        items: list[Any] = []
        while self._stack and self._stack[-1] is not _MARK:
            items.append(self._stack.pop())
        if not self._stack:
            raise _Refused("it takes values that it has not made")
        self._stack.pop()
        return items[::-1]

    def _called(self, function: Any, arguments: tuple[Any, ...]) -> Any:
        """Returns the value that the pickle means by calling one of the names; nothing is called."""
        if function is _ENCODE:  # how protocols 0 to 2 carry bytes
            text, codec = arguments
            if codec != "latin1":
                raise _Refused(f"codec {_short(codec)} is not allowed")
            self._encoded += len(_expected(str, text))
            if self._encoded > len(self._content):
                raise _Refused("it repeats itself")
            return text.encode("latin-1")
        if function is _DTYPE:
            code, *flags = arguments
            code = _word(code)
            if code not in _NUMBERS or flags not in ([], [0, 1]):
                raise _Refused(f"dtype {_short(arguments)} is not allowed")
            return _Dtype(code)
        if function is _RECONSTRUCT:
            if arguments[0] is not _NDARRAY:
                raise _Refused("arrays of a class of their own are not allowed")
            return _Array()
        raise _Refused("calling what it calls is not allowed")


def _build(target: Any, state: tuple[Any, ...]) -> None:
    """Gives a numpy dtype or array its state: each only once, and nothing but plain numbers."""
    if isinstance(target, _Dtype) and not target.built:
        order = _word(state[1])
        if state[2:] != (None, None, None, -1, -1, 0) or order not in _ORDERS:
            raise _Refused("a dtype that is no plain number is not allowed")
        target.order, target.built = order, True
    elif isinstance(target, _Array) and target.values is None:
        _, shape, dtype, by_columns, content = state
        if not isinstance(dtype, _Dtype) or not isinstance(content, bytes):
            raise _Refused("arrays of anything but numbers are not allowed")
        if len(_expected(tuple, shape)) > _MAX_DIMENSIONS or any(_expected(int, side) < 0 for side in shape):
            raise _Refused("an array has an impossible shape")
        numbers = np.dtype(dtype.code).newbyteorder(dtype.order)  # type: ignore[arg-type]
        if math.prod(shape) * numbers.itemsize != len(content):
            raise _Refused(f"an array of shape {_short(shape)} has {len(content):,} bytes")
        values = np.frombuffer(content, numbers)
        target.values = values.reshape(shape, order="F" if by_columns else "C")
    else:
        raise _Refused("changing what is made already is not allowed")


def _put(target: dict[Any, Any], items: list[Any]) -> None:
    keys, values = items[::2], items[1::2]
    if not all(isinstance(key, str | bytes) for key in keys):  # numbers can be chosen so that all collide
        raise _Refused("keys that are no text are not allowed")
    target.update(zip(keys, values, strict=True))


def _number_or_text(value: Any) -> Any:
    if isinstance(value, int) and value.bit_length() > _BITS:
        raise _Refused(f"whole numbers of more than {_BITS} bits are not allowed")
    return value


def _finished(values: dict[Any, Any]) -> dict[Any, Any]:
    """With arrays in place of what announced them."""
    flat: set[int] = set()
    finished = {}
    for key, value in values.items():
        if isinstance(value, _Array):
            if value.values is None:
                raise _Refused("an array has no content")
            value = value.values
        elif isinstance(value, list):
            if id(value) not in flat and not all(isinstance(item, _PLAIN) for item in value):
                raise _Refused("lists of anything but plain values are not allowed")
            flat.add(id(value))
        elif not isinstance(value, _PLAIN):
            raise _Refused("nested dictionaries and tuples are not allowed")
        finished[key] = value
    return finished


def _word(value: Any) -> str:
    """Text of Python 3 or 2."""
    return value.decode("latin-1") if isinstance(value, bytes) else _expected(str, value)


_T = TypeVar("_T")


def _expected(kind: type[_T], value: Any) -> _T:
    if not isinstance(value, kind):
        raise _Refused(f"it takes a {type(value).__name__.strip('_')} for a {kind.__name__}")
    return value


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 100 else f"{text[:97]}..."
