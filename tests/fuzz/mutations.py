"""Damage: what disks, killed writers, editors and people do to a file, drawn from a seeded generator."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Callable
from typing import Any, Literal

Text = Literal["json", "jsonl", "yaml"]

_EDGE = 4096
"""Bytes at a file's ends, where headers and footers are: every other place is drawn there."""
_RAW = "\0raw:"


def mutate(draw: random.Random, content: bytes, text: Text | None) -> bytes:
    """Another content: a part of it damaged as bytes, or, of texts, every other time as values."""
    if text is not None and draw.random() < 0.6:
        changed = _TEXTS[text](draw, content)
    else:
        changed = content
        for _ in range(draw.choice((1, 1, 1, 2, 3, 8))):
            changed = draw.choice(_BYTES)(draw, changed)
    return changed if changed != content else _flip(draw, content)


# --- bytes ---------------------------------------------------------------------------------------------------


def _place(draw: random.Random, size: int) -> int:
    if size <= 2 * _EDGE or draw.random() < 0.5:
        return draw.randrange(size) if size else 0
    place = draw.randrange(2 * _EDGE)
    return place if place < _EDGE else size - 2 * _EDGE + place


def _length(draw: random.Random) -> int:
    return draw.choice((1, 1, 2, 3, 4, 8, draw.randrange(1, 64), draw.randrange(1, 5000)))


def _flip(draw: random.Random, content: bytes) -> bytes:
    if not content:
        return b"\0"
    changed = bytearray(content)
    changed[_place(draw, len(content))] ^= 1 << draw.randrange(8)
    return bytes(changed)


def _set_byte(draw: random.Random, content: bytes) -> bytes:
    place = _place(draw, len(content))
    return (
        content[:place]
        + bytes([draw.choice((0, 1, 0x7F, 0x80, 0xFF, draw.randrange(256)))])
        + content[place + 1 :]
    )


def _set_number(draw: random.Random, content: bytes) -> bytes:
    """Lengths and offsets that are too large, negative, or off by one."""
    form = draw.choice(("<H", "<I", "<Q", ">H", ">I", ">Q"))
    size = struct.calcsize(form)
    place = _place(draw, len(content)) // size * size
    (found,) = struct.unpack(form, content[place : place + size].ljust(size, b"\0"))
    top = 1 << 8 * size
    value = draw.choice(
        (0, 1, top - 1, top // 2 - 1, top // 2, (found + 1) % top, (found - 1) % top, found // 2)
    )
    return content[:place] + struct.pack(form, value) + content[place + size :]


def _delete(draw: random.Random, content: bytes) -> bytes:
    place = _place(draw, len(content))
    return content[:place] + content[place + _length(draw) :]


def _insert(draw: random.Random, content: bytes) -> bytes:
    place, length = _place(draw, len(content)), _length(draw)
    new = draw.choice((draw.randbytes(length), bytes(length), content[place : place + length]))
    return content[:place] + new + content[place:]


def _cut(draw: random.Random, content: bytes) -> bytes:
    return content[: _place(draw, len(content))]


def _swap(draw: random.Random, content: bytes) -> bytes:
    size = draw.choice((16, 512, 4096))
    first, second = sorted(_place(draw, len(content)) // size * size for _ in range(2))
    if first == second:
        return content
    blocks = content[second : second + size], content[first + size : second], content[first : first + size]
    return content[:first] + b"".join(blocks) + content[second + size :]


def _blank(draw: random.Random, content: bytes) -> bytes:
    """Zeros, which a file system gives back for blocks that a power cut kept from the disk."""
    place, length = _place(draw, len(content)), draw.choice((8, 512, 4096))
    new = bytes(min(length, len(content) - place))
    return content[:place] + new + content[place + len(new) :]


def _empty(draw: random.Random, content: bytes) -> bytes:
    return draw.choice((b"", b"\0", b"\n", b"null", content + content))


_BYTES: list[Callable[[random.Random, bytes], bytes]] = [
    _flip, _flip, _flip, _set_byte, _set_number, _set_number, _delete, _insert, _cut, _swap, _blank, _empty,
]  # fmt: skip


# --- values --------------------------------------------------------------------------------------------------


def _hostile(draw: random.Random, found: Any) -> Any:
    """A value in the place of `found`: of another type, or a number that few can hold."""
    raw = draw.choice((
        "NaN", "Infinity", "-Infinity", "1e999", "-1e999", "1" + "0" * 30, "1" + "0" * 400, "-1" + "0" * 400,
        "9" * 5000, "18446744073709551616", "9223372036854775807", "-9223372036854775808", "1e308", "1e-320",
        "[" * 150 + "]" * 150, "[" * 3000 + "]" * 3000, "[" * 100_000, '{"a":' * 3000 + "1" + "}" * 3000,
        '"\\ud800"', '"\\u0000"', '"' + "x" * 100_000 + '"', "tru", "'a'", "01", "",
    ))  # fmt: skip
    plain = draw.choice((
        None, True, False, 0, 1, -1, 2, 3, 0.5, -0.0, "", "x", "../../x", "/etc/passwd", [], {}, [[]], {"a": 1},
        [found], {"a": found}, str(found),
    ))  # fmt: skip
    near = found + draw.choice((1, -1, 0.5)) if type(found) in (int, float) else plain
    return draw.choice((_RAW + raw, plain, near))


def _nodes(value: Any) -> list[tuple[Any, Any]]:
    """All (container, key) of a JSON value."""
    found, pending = [], [value]
    while pending:
        one = pending.pop()
        if isinstance(one, dict | list):
            keys = list(one) if isinstance(one, dict) else range(len(one))
            found += [(one, key) for key in keys]
            pending += [one[key] for key in keys]
    return found


def _json(draw: random.Random, content: bytes) -> bytes:
    value = {"": json.loads(content)}
    twice: list[str] = []
    for _ in range(draw.choice((1, 1, 1, 2, 4))):
        holder, key = draw.choice(_nodes(value))
        kind = draw.randrange(6)
        if kind == 0 and holder is not value:
            del holder[key]
        elif kind == 1 and isinstance(holder, dict) and holder is not value:
            holder[draw.choice(("", "x", key.upper(), key + " "))] = holder.pop(key)
        elif kind == 2 and isinstance(holder, dict) and holder is not value:
            marker = f"\0twice:{len(twice)}"
            twice.append(key)
            holder[marker] = _hostile(draw, holder[key])
        elif kind == 3 and isinstance(holder, list):
            holder.insert(key, holder[key])
        else:
            holder[key] = _hostile(draw, holder[key])
        if not _nodes(value):
            break
    text = json.dumps(value.get(""), indent=draw.choice((None, 1, 2)), ensure_ascii=draw.random() < 0.5)
    for place, key in enumerate(twice):
        text = text.replace(json.dumps(f"\0twice:{place}"), json.dumps(key))
    return _unquoted(text).encode(errors="surrogatepass")


def _unquoted(text: str) -> str:
    """Raw values as they are; they were written as strings that begin with `_RAW`."""
    start = '"' + json.dumps(_RAW)[1:-1]
    parts = text.split(start)
    done = parts[0]
    for part in parts[1:]:
        value, end = json.decoder.scanstring('"' + part, 1)
        done += value + part[end - 1 :]
    return done


def _jsonl(draw: random.Random, content: bytes) -> bytes:
    lines = content.split(b"\n")
    places = [place for place, line in enumerate(lines) if line.strip()]
    place = draw.choice(places)
    kind = draw.randrange(8)
    if kind == 0:
        del lines[place]
    elif kind == 1:
        lines.insert(place, draw.choice(lines))
    elif kind == 2:
        draw.shuffle(lines)
    else:
        lines[place] = _json(draw, lines[place]).replace(b"\n", b" ")
    return b"\n".join(lines)


def _yaml(draw: random.Random, content: bytes) -> bytes:
    lines = content.decode().split("\n")
    for _ in range(draw.choice((1, 1, 2, 4))):
        place = draw.choice(
            [n for n, line in enumerate(lines) if line.strip() and not line.startswith("#")] or [0]
        )
        key, colon, _ = lines[place].partition(": ")
        value = draw.choice(_YAML_VALUES)
        kind = draw.randrange(8)
        if kind == 0:
            del lines[place]
        elif kind == 1:
            lines.insert(place, lines[place])
        elif kind == 2:
            lines.insert(place, draw.choice(_YAML_LINES))
        elif kind == 3:
            lines[place] = " " * draw.randrange(5) + lines[place].strip()
        elif colon:
            lines[place] = f"{key}: {value}"
        else:
            lines[place] = f"{value}: {lines[place]}"
        if not lines:
            return b""
    return "\n".join(lines).encode(errors="surrogatepass")


_YAML_VALUES = [
    "null", "true", "~", "0", "-1", "1e999", ".nan", ".inf", "-.inf", "1" + "0" * 400, "9" * 5000, "0x" + "f" * 300,
    "1e-400", "1_000", "''", "x", "[]", "{}", "[[]]", "{a: 1}", "{1: 2}", "{null: 1}", "{[a]: 1}", "? [a]",
    "[" * 200 + "]" * 200, "[" * 3000 + "]" * 3000, "{a: " * 500 + "1" + "}" * 500, "&a [*a]", "&a {b: *a}", "*a",
    "!!python/object/apply:os.system [ls]", "!!binary aGk=", "!!set {a}", "!!timestamp 2026-01-01", "2026-11-29",
    "!!int x", "!!float x", "!!bool x", "!!null x", "!!omap [a: 1]", "!!pairs [a: 1]", "!!str {}", "!!map x", "!!seq x",
    "|\n  text", ">-\n  text", '"\\ud800"', '"\\0"', '"\\x85"', "'", '"', "@", "`", "%", "<<", "=", "1:30", "0o17",
    "x" * 100_000, "../../x", "/etc/passwd", "http://[", "s3://", "é",
]  # fmt: skip
_YAML_LINES = [
    "---", "...", "- a", "<<: 1", "<<: [1]", "? a", ": a", "\tx: 1", "%YAML 9.9", "1: 2", "null: 1", "[a]: 1", "{}: 1",
    "a: &a [*a]", "a: &x {<<: *x}", "kind: sweep", "kind: evaluate", "kind: []", "\x07", "\ufeff", "!!x y: 1",
    "a: &a [x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b]\n"
    "d: &d [*c,*c,*c,*c,*c,*c,*c,*c]\ne: &e [*d,*d,*d,*d,*d,*d,*d,*d]\nf: &f [*e,*e,*e,*e,*e,*e,*e,*e]\n"
    "g: &g [*f,*f,*f,*f,*f,*f,*f,*f]\nh: [*g,*g,*g,*g,*g,*g,*g,*g]",
]  # fmt: skip

_TEXTS: dict[Text, Callable[[random.Random, bytes], bytes]] = {"json": _json, "jsonl": _jsonl, "yaml": _yaml}
