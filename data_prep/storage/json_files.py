"""Writing JSON files of ours, and reading them, as files that a disk, a killed writer or an editor may have damaged.

`json.loads` alone takes `NaN` and `1e999`, ends in a RecursionError for deep nesting, and says nothing of what it
returns. Here the whole content is checked against a form (`dict[str, Any]`, a dataclass, a pydantic model, ...), and
all that can be wrong with it is one error, which the callers turn into that of their file.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import Field, TypeAdapter, ValidationError
from pydantic_core import from_json

from data_prep.storage.files import write_atomically

Form = TypeVar("Form")

Count = Annotated[int, Field(ge=0, lt=1 << 63)]
"""A number of steps, samples, bytes: what fits into 64 bits, never negative."""

Seconds = Annotated[float, Field(ge=-1e11, le=1e11)]
"""Unix seconds, or a duration: three thousand years at most, so that sums and products of them stay finite."""

Workers = Annotated[int, Field(ge=0, le=1 << 20)]
"""A number of training processes, or of one among them."""

_MAX_BYTES = 1 << 30
_LARGEST_INTEGER = 1 << 64
_PROBLEMS_SHOWN = 3
_ADAPTERS: dict[Any, TypeAdapter[Any]] = {}
"""Each takes a millisecond to build."""


def write_json(path: Path, value: Any) -> None:
    """Write a value that JSON can say, indented, for programs and people; as `write_atomically`.

    Raises:
        OSError: it can't be written.
    """
    write_atomically(path, json.dumps(value, indent=2).encode())


class DamagedJson(ValueError):
    """A JSON text isn't what its writer wrote; the message says in which way."""


def parse_json(content: bytes, form: type[Form], *, finite: bool = True) -> Form:
    """The value of a JSON text, as a value of `form`. Types are strict: "5", 5.0 and true are no integer.

    Args:
        content: the text in UTF-8.
        form: the type to make of it; names that a dataclass doesn't know are left out.
        finite: False for files whose writers write NaN and infinities (metrics of a run that diverged).

    Raises:
        DamagedJson: it isn't JSON, is nested more than 200 deep, has a number beyond what floats and 64 bits hold,
            or has another form.
    """
    try:
        value = from_json(content, allow_inf_nan=not finite)
        _check_numbers(value, finite)
        return _adapter(form).validate_json(content, strict=True)
    except ValidationError as error:
        raise DamagedJson(_problems(error)) from None
    except ValueError as error:
        raise DamagedJson(f"it is not valid JSON: {error}") from None


def read_json(path: Path, form: type[Form], *, finite: bool = True) -> Form:
    """The value of a JSON file; see `parse_json`.

    Raises:
        OSError: it can't be read.
        DamagedJson: as `parse_json`, and where it is larger than 1 GiB; the message begins with the path.
    """
    with path.open("rb") as file:
        content = file.read(_MAX_BYTES + 1)
    try:
        if len(content) > _MAX_BYTES:
            raise DamagedJson(f"it is larger than {_MAX_BYTES:,} bytes")
        return parse_json(content, form, finite=finite)
    except DamagedJson as error:
        raise DamagedJson(f"{path} is damaged: {error}") from None


def parse_json_lines(content: bytes, form: type[Form], *, finite: bool = True) -> Iterator[Form | None]:
    """The values of a file of JSON lines, None for each damaged line; empty lines don't count.

    A last line without its newline counts as well, if it is whole.
    """
    for line in content.split(b"\n"):
        if line.strip():
            try:
                yield parse_json(line, form, finite=finite)
            except DamagedJson:
                yield None


def plain_values(value: Any) -> Any:
    """Mappings, lists and values as strict JSON has them: numbers that aren't finite as text."""
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, Mapping):
        return {str(key): plain_values(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain_values(item) for item in value]
    return value


def _adapter(form: type[Form]) -> TypeAdapter[Form]:
    if form not in _ADAPTERS:
        _ADAPTERS[form] = TypeAdapter(form)
    return _ADAPTERS[form]


def _check_numbers(value: Any, finite: bool) -> None:
    """Raises ValueError at the first number that no writer of ours writes."""
    pending = [value]
    while pending:
        one = pending.pop()
        if isinstance(one, dict):
            pending.extend(one.values())
        elif isinstance(one, list):
            pending.extend(one)
        elif isinstance(one, float):
            if finite and not math.isfinite(one):
                raise ValueError("a number is too large for a float")
        elif isinstance(one, int) and abs(one) >= _LARGEST_INTEGER:
            raise ValueError("an integer has more than 64 bits")


def _problems(error: ValidationError) -> str:
    """Returns one line that says what is wrong and where."""
    found = [
        f"{'.'.join(map(str, each['loc'])) or 'the whole'}: {each['msg'][0].lower()}{each['msg'][1:]}"
        for each in error.errors(include_url=False, include_context=False, include_input=False)
    ]
    more = f" (and {len(found) - _PROBLEMS_SHOWN} more)" if len(found) > _PROBLEMS_SHOWN else ""
    return "; ".join(found[:_PROBLEMS_SHOWN]) + more
