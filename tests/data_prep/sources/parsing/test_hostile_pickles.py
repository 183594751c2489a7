"""Pickles made to harm: refused in a line, at a cost in proportion to their length."""

from __future__ import annotations

import pickle
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hostile import outcomes
from published_minis import python2_pickle

from data_prep.errors import DataPrepError
from data_prep.sources.parsing.plain_pickle import load_plain_pickle


def text(value: str) -> bytes:
    return b"X" + len(value).to_bytes(4, "little") + value.encode()


def number(value: int) -> bytes:
    return b"J" + value.to_bytes(4, "little", signed=True)


def several(*values: bytes) -> bytes:
    return b"(" + b"".join(values) + b"t"


def dictionary(*pairs: bytes) -> bytes:
    return b"}(" + b"".join(pairs) + b"u"


def name(module: str, attribute: str) -> bytes:
    return f"c{module}\n{attribute}\n".encode()


def raw(content: bytes) -> bytes:
    return b"B" + len(content).to_bytes(4, "little") + content


def dtype(code: str) -> bytes:
    return name("numpy", "dtype") + several(text(code), b"\x89", b"\x88") + b"R"


def dtype_state(order: str, fields: bytes = b"NNN", size: int = -1) -> bytes:
    return several(number(3), text(order), fields, number(size), number(size), number(0)) + b"b"


def announced(owner: bytes) -> bytes:
    made = name("numpy.core.multiarray", "_reconstruct")
    return made + several(owner, several(number(0)), raw(b"b")) + b"R"


def array(shape: bytes, kind: bytes, content: bytes) -> bytes:
    return announced(NDARRAY) + several(number(1), shape, kind, b"\x89", raw(content)) + b"b"


def whole(body: bytes) -> bytes:
    return b"\x80\x03" + body + b"."


def under(value: bytes) -> bytes:
    """The body of a dictionary of one value."""
    return dictionary(text("a"), value)


def rewritten_dtype() -> bytes:
    """A dtype of raw bytes becomes one of objects after its array was made: its bytes are then taken for addresses."""
    fields = dictionary(text("a"), several(dtype("O8"), number(0)))

    def state(flags: int) -> bytes:
        named = b"N" + several(text("a")) + fields
        return several(number(3), text("|"), named, number(8), number(1), number(flags))

    kind = dtype("V8") + b"q\x01" + state(0) + b"b0"
    changed = b"h\x01" + state(63) + b"b"
    return kind + dictionary(text("data"), array(ONE, b"h\x01", b"A" * 8), text("x"), changed)


NDARRAY, ONE = name("numpy", "ndarray"), several(number(1))
PLAIN = dtype("u1") + dtype_state("|")
RECORD = b"N" + several(text("a")) + under(several(dtype("u1"), number(0)))
BUILT_AGAIN = several(number(1), ONE, PLAIN, b"\x89", raw(b"2")) + b"b"
ENCODED = name("_codecs", "encode") + b"h\x00" + text("latin1") + b"\x86R"
DOUBLED = b"".join(b"](h%ch%ceq%c" % (i, i, i + 1) for i in range(60))
HUGE = b"\x8a\x08" + (1 << 62).to_bytes(8, "little")
EIGHT_GIB = (8 << 30).to_bytes(8, "little")
HOSTILE = {
    "a dtype rewritten": rewritten_dtype(),
    "a plain dtype rewritten": under(PLAIN + b"q\x01" + dtype_state(">")),
    "a dtype with fields": under(array(ONE, dtype("u1") + dtype_state("|", RECORD, 1), b"1")),
    "a dtype of objects": under(array(ONE, dtype("O8"), b"A" * 8)),
    "an array built twice": under(array(ONE, PLAIN, b"1") + BUILT_AGAIN),
    "an array larger than its bytes": under(array(several(number(1 << 30), number(1 << 30)), PLAIN, b"1")),
    "a shape that overflows": under(array(several(HUGE, number(4)), PLAIN, b"")),
    "a negative shape": under(array(several(number(-1), number(-1)), PLAIN, b"1")),
    "an array without content": under(announced(NDARRAY)),
    "an array of another class": under(announced(name("numpy", "dtype"))),
    "an array's method": under(name("numpy", "ndarray.tofile")),
    "a class as value": under(NDARRAY),
    "a class called": under(NDARRAY + several(number(1 << 30)) + b"R"),
    "NEWOBJ": under(NDARRAY + several(several(number(1 << 30))) + b"\x81"),
    "NEWOBJ_EX": under(NDARRAY + b"(t}\x92"),
    "INST": b"(inumpy\nndarray\n",
    "OBJ": b"(" + NDARRAY + number(1) + b"o",
    "EXT1": under(b"\x82\x01"),
    "EXT4": under(b"\x84\x01\x00\x00\x00"),
    "PERSID": under(b"P1\n"),
    "BINPERSID": under(number(1) + b"Q"),
    "a buffer from outside": under(b"\x97"),
    "a codec": under(name("_codecs", "encode") + several(text("x"), text("zip")) + b"R"),
    "BUILD of a dictionary": under(number(1)) + several(number(1)) + b"b",
    "a memo that was not made": under(b"h\x07"),
    "a place of the memo far away": under(number(1) + b"r\xff\xff\xff\x7f") + b"g9\n",
    "eight GiB of bytes": under(b"\x8e" + EIGHT_GIB + b"x"),
    "eight GiB of text": under(b"\x8d" + EIGHT_GIB + b"x"),
    "two GiB of a number": under(b"\x8b\xff\xff\xff\x7f1"),
    "a large number": under(b"\x8b" + (1 << 20).to_bytes(4, "little") + b"\x7f" * (1 << 20)),
    "a number of many digits": under(b"L" + b"9" * 100_000 + b"L\n"),
    "deep lists": under(b"]" * 200_000 + b"a" * 199_999),
    "deep tuples": under(b"N" + b"\x85" * 200_000),
    "lists of lists, doubled": under(b"]q\x00" + DOUBLED),
    "a list in itself": under(b"]q\x00h\x00a"),
    "a dictionary in itself": b"}q\x00(" + text("a") + b"h\x00u",
    "two million marks": b"(" * 2_000_000 + under(number(1)),
    "bytes made again and again": under(text("x" * 1_000_000) + b"q\x000](" + ENCODED * 5_000 + b"e"),
    "keys that are no text": dictionary(number(1), number(2)),
    "keys that can't be hashed": dictionary(b"]", number(2)),
    "more items than there are": b"aaaa",
    "a tuple without beginning": b"tu",
    "SETITEMS of a list": b"](" + text("a") + number(1) + b"u",
    "nothing left": b"0",
}


def test_pickles_that_harm_are_refused(tmp_path: Path) -> None:
    files = {}
    for number_, (label, body) in enumerate(HOSTILE.items()):
        files[label] = tmp_path / f"{number_}.pickle"
        files[label].write_bytes(whole(body))
    found = outcomes(
        files,
        "from data_prep.errors import DataPrepError\n"
        "from data_prep.sources.parsing.plain_pickle import load_plain_pickle",
        "load_plain_pickle(path.read_bytes(), path.name)",
        "DataPrepError",
        memory=1 << 30,
    )
    assert list(found) == list(HOSTILE)
    wrong = {label: message for label, message in found.items() if not message.startswith(files[label].name)}
    assert not wrong
    assert max(map(len, found.values())) < 300


@pytest.mark.parametrize("protocol", range(5))
def test_arrays_of_all_plain_numbers_are_read(protocol: int) -> None:
    for kind in ("u1", "i1", ">i2", "<u4", "i8", "f2", ">f4", "f8"):
        for values in (
            np.arange(24).astype(kind).reshape(2, 3, 4),
            np.asfortranarray(np.arange(6).astype(kind).reshape(2, 3)),
            np.zeros((0, 3) if protocol > 2 else 1, kind),  # older protocols call `bytes` for no bytes
            np.array(7, kind),
        ):
            loaded = load_plain_pickle(pickle.dumps({"a": values}, protocol=protocol), "here")["a"]
            np.testing.assert_array_equal(loaded, values)
            assert (loaded.dtype, loaded.flags.f_contiguous) == (values.dtype, values.flags.f_contiguous)


def test_every_cut_and_flipped_bit_is_an_answer() -> None:
    content = python2_pickle(
        {"data": np.arange(12, dtype=np.uint8).reshape(2, 6), "labels": [3, 300], "name": "x"}
    )
    for length in range(len(content)):
        with pytest.raises(DataPrepError):
            load_plain_pickle(content[:length], "here")
    for bit in range(8 * len(content)):
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        with suppress(DataPrepError):
            assert isinstance(load_plain_pickle(bytes(damaged), "here"), dict)
