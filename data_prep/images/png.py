"""Are all pixels of a PNG file there and undamaged? Pillow fills rows that a file lacks with zeros, without a word.

PNG (W3C, third edition): chunks with checksums, pixel data in one zlib stream over the IDAT chunks.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

from data_prep.errors import RejectedSample

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by colour type
_CRITICAL = (b"IHDR", b"PLTE", b"IDAT", b"IEND")
_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
"""First column, first row, column step and row step of the passes of an interlaced image."""
_BLOCK = 1 << 16
"""Pixel data may go on for so many bytes behind the last row: encoders that fill up exist."""


def expect_affordable_png(content: bytes) -> tuple[int, int]:
    """Width and height by the header of a PNG file whose chunks can all be read at a cost like its size.

    Pillow unpacks the colour profile at each mention of one; texts it limits itself.

    Raises:
        RejectedSample: the header is missing or not the only one, or there are several colour profiles.
    """
    header, profiles = b"", 0
    for position, name, length in _places(content):
        if (name == b"IHDR") == bool(header) or (name == b"IHDR" and length != 13):
            raise RejectedSample("damaged PNG data: it must begin with its header, of 13 bytes")
        if name == b"IHDR":
            header = content[position : position + length]
        profiles += name == b"iCCP"
        if profiles > 1:
            raise RejectedSample("damaged PNG data: it has several colour profiles")
        if name == b"IEND":
            break
    if len(header) < 13:
        raise RejectedSample("damaged PNG data: it has no header")
    width, height = struct.unpack(">II", header[:8])
    return width, height


def check_png(content: bytes) -> None:
    """Check the checksums of its critical chunks and that its pixel data has the length that its header says.

    The pixels are unpacked block by block and thrown away, as far as the header goes.

    Raises:
        RejectedSample: something is damaged or missing.
    """
    expected = None
    unpacker = zlib.decompressobj()
    length = 0
    for name, body in _chunks(content):
        if name == b"IHDR":
            expected = _data_length(body)
        elif name == b"IDAT" and expected is not None:
            length += _unpacked(unpacker, body, expected + _BLOCK - length)
            if length > expected + _BLOCK:
                raise RejectedSample(f"damaged PNG data: it goes on after the {expected} bytes of its pixels")
        elif name == b"IEND":
            break
    else:
        raise RejectedSample("damaged PNG data: it ends before its end chunk")
    if expected is None or length < expected:
        raise RejectedSample(f"damaged PNG data: {length} bytes of pixels, its header promises {expected}")


def _chunks(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    for position, name, length in _places(content):
        end = position + length
        body = content[position:end]
        if name in _CRITICAL and content[end : end + 4] != zlib.crc32(name + body).to_bytes(4):
            raise RejectedSample(f"damaged PNG data: the checksum of a chunk {name.decode()} is wrong")
        yield name, body


def _places(content: bytes) -> Iterator[tuple[int, bytes, int]]:
    """Yields for each chunk the place where its body begins, its name and the body's length."""
    position = len(SIGNATURE)
    while position + 12 <= len(content):
        length, name = struct.unpack_from(">I4s", content, position)
        yield position + 8, name, length
        position += 12 + length


def _unpacked(unpacker: zlib._Decompress, body: bytes, most: int) -> int:
    """How many bytes a chunk adds; no more than `most` and a block are unpacked."""
    length = 0
    try:
        while body and not unpacker.eof and length <= most:
            length += len(unpacker.decompress(body, _BLOCK))
            body = unpacker.unconsumed_tail
    except zlib.error as error:
        raise RejectedSample(f"damaged PNG data: {error}") from None
    return length


def _data_length(header: bytes) -> int:
    if len(header) != 13:
        raise RejectedSample("damaged PNG data: its header has another length than 13 bytes")
    width, height, depth, colour, _, _, interlaced = struct.unpack(">IIBBBBB", header)
    bits = depth * _CHANNELS.get(colour, 0)
    passes = _ADAM7 if interlaced else ((0, 0, 1, 1),)
    sizes = [(-(-(width - x) // dx), -(-(height - y) // dy)) for x, y, dx, dy in passes]
    return sum((1 + (columns * bits + 7) // 8) * rows for columns, rows in sizes if columns > 0 and rows > 0)
