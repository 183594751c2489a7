"""Byte ranges of the parts of a big JSON file, found in one pass that holds a few megabytes of it.

COCO's instances_train2017.json has 448 MB; parsed as a whole it takes 2.9 GB in every process that does so. Here
each element of its lists is parsed, handed out with its byte range, and forgotten. Whoever knows a range reads
just that.
"""

from __future__ import annotations

import codecs
import json
import mmap
import re
from collections.abc import Iterator
from typing import Any, NamedTuple, NoReturn

from data_prep.errors import DataPrepError
from data_prep.sources.parsing.source_folder import refuse_utf16

_WINDOW_BYTES = 1 << 20
_SPACE = re.compile(r"[ \t\r\n]*")


class JsonPart(NamedTuple):
    """A member of the document's object, or one element of it where it is a list; bytes start..end of the file.

    `value` is parsed as Latin-1, so that characters are bytes: right in all but strings that aren't ASCII.
    """

    name: str
    value: Any
    start: int
    end: int


def json_parts(content: mmap.mmap, lists: set[str], where: str) -> Iterator[JsonPart]:
    """The members of a JSON object in the file's order, and those named in `lists` element by element.

    Raises:
        DataPrepError: it is not such a document; `where` names it.
    """
    scanner = _Scanner(content, where)
    scanner.expect("{")
    if scanner.accept("}"):
        return
    while True:
        name = scanner.name()
        scanner.expect(":")
        if name in lists:
            yield from _elements(scanner, name)
        else:
            yield JsonPart(name, *scanner.value())
        if not scanner.accept(","):
            break
    scanner.expect("}")


def _elements(scanner: _Scanner, name: str) -> Iterator[JsonPart]:
    scanner.expect("[")
    if scanner.accept("]"):
        return
    while True:
        yield JsonPart(name, *scanner.value())
        if not scanner.accept(","):
            break
    scanner.expect("]")


class _Scanner:
    """Parses one value after the other from a window that moves over the file."""

    def __init__(self, content: mmap.mmap, where: str) -> None:
        self._content = content
        self._where = where
        self._decoder = json.JSONDecoder()
        # Of the window in the file; some editors begin it with a byte order mark.
        self._start = len(codecs.BOM_UTF8) if content[: len(codecs.BOM_UTF8)] == codecs.BOM_UTF8 else 0
        self._text = ""
        self._position = 0  # in the window
        refuse_utf16(content[:4], where)
        self._fill(_WINDOW_BYTES)

    def accept(self, character: str) -> bool:
        """Step over the character if it comes next."""
        self._skip_space()
        if self._text[self._position : self._position + 1] != character:
            return False
        self._position += 1
        return True

    def expect(self, character: str) -> None:
        if not self.accept(character):
            self._fail(f"expected {character!r}")

    def name(self) -> str:
        """The next value, which must be text."""
        value, *_ = self.value()
        if not isinstance(value, str):
            self._fail("expected a name")
        return value

    def value(self) -> tuple[Any, int, int]:
        """The next value with its bytes' start and end in the file."""
        self._skip_space()
        if len(self._text) - self._position < _WINDOW_BYTES // 16:
            self._fill(_WINDOW_BYTES)
        while True:
            try:
                value, end = self._decoder.raw_decode(self._text, self._position)
            except (ValueError, RecursionError) as error:  # not only JSON's: a number of 5,000 digits
                if not self._more():
                    self._fail(str(error).split(":")[0])
            else:
                if end < len(self._text) or not self._more():  # a number may go on behind the window
                    break
        start, self._position = self._position, end
        return value, self._start + start, self._start + end

    def _skip_space(self) -> None:
        while True:
            match = _SPACE.match(self._text, self._position)
            self._position = match.end() if match else self._position
            if self._position < len(self._text) or not self._more():
                return

    def _more(self) -> bool:
        """Twice the text, if the file has any more."""
        if self._start + len(self._text) >= len(self._content):
            return False
        self._fill(2 * max(_WINDOW_BYTES, len(self._text)))
        return True

    def _fill(self, size: int) -> None:
        self._start += self._position
        self._position = 0
        self._text = self._content[self._start : self._start + size].decode("latin-1")

    def _fail(self, what: str) -> NoReturn:
        at = self._start + self._position
        raise DataPrepError(f"{self._where} is not the JSON it should be: byte {at:,}: {what}")
