"""A source's folder as people fill it: files and their keys, links, and tables of class names."""

from __future__ import annotations

import codecs
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from urllib.parse import quote

from data_prep.errors import DataPrepError

_PLAIN = re.compile(r"[A-Za-z0-9_~/-]+")


def file_keys(names: Sequence[str]) -> list[str]:
    """A key a file, in the same order: its name without suffix, or with it where others would have the same.

    Args:
        names: different relative paths with slashes.
    """
    keys = [sample_key(_stem(name)) for name in names]
    whole = [False] * len(names)
    while True:
        uses = Counter(keys)
        if len(uses) == len(keys):
            return keys
        # a.jpg beside a.png; then the key of a.jpg may be that of a.jpg.png, so look again
        for i, name in enumerate(names):
            if uses[keys[i]] > 1 and not whole[i]:
                keys[i], whole[i] = sample_key(name), True


def _stem(name: str) -> str:
    dot = name.rfind(".")
    return name[:dot] if name.rfind("/") + 1 < dot else name


def sample_key(name: str) -> str:
    """A reversible ASCII name without dots: webdataset splits a member's name at its first dot."""
    if _PLAIN.fullmatch(name):
        return name
    return quote(name.encode("utf-8", "surrogateescape"), safe="/").replace(".", "%2E")


def inside_of(root: Path, *, follow_links: bool) -> Path | None:
    """Returns the folder that links below a source's folder must lead into, which is that folder itself; None where the
    job lets them lead anywhere."""
    return None if follow_links else root.resolve()


def expect_inside(path: Path, real_root: Path | None) -> Path:
    """Returns the path that `path` leads to; `real_root` is what `inside_of` returned.

    Raises:
        DataPrepError: it leads out of the root.
    """
    real = path.resolve()
    if real_root is not None and not real.is_relative_to(real_root):
        raise DataPrepError(
            f"{path} leads out of source.path to {real}: set source.follow_links: true if that is meant, or point "
            "source.path at the folder that holds them all"
        )
    return real


def unicode_twins(missing: Iterable[str], there: Iterable[str]) -> str:
    """An explanation for messages, where a name that is missing is there in other characters that look the same.

    macOS and some archives write an accented letter as two characters (NFD), most others as one (NFC).
    """
    by_form = {unicodedata.normalize("NFC", name): name for name in there}
    for name in missing:
        twin = by_form.get(unicodedata.normalize("NFC", name), name)
        if twin != name:
            return (
                f" ({name!a} looks the same as {twin!a}, which is there, but is written in other Unicode characters, "
                "NFC and NFD: rename one)"
            )
    return ""


_MAX_BYTES = 64 << 20
_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def read_text(path: Path, field: str = "") -> str:
    """A UTF-8 file; a byte order mark at its beginning is no part of it, and lines end with a newline alone.

    Args:
        path: the file.
        field: the job's setting that names it.

    Raises:
        DataPrepError: it can't be read, is in another encoding, or has more than 64 MiB.
    """
    prefix = f"{field}: " if field else ""
    where = f"{prefix}{path}"
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise DataPrepError(f"{prefix}can't read {path}: {error.strerror}") from None
    if len(content) > _MAX_BYTES:
        raise DataPrepError(f"{where} has more than {_MAX_BYTES:,} bytes: it is no table of names")
    return decode_text(content, where)


def decode_text(content: bytes, where: str) -> str:
    """Text as of `read_text`; `where` names it in messages.

    Raises:
        DataPrepError: it is not UTF-8.
    """
    refuse_utf16(content, where)
    try:
        return content.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataPrepError(
            f"{where} is not UTF-8 text: line {line} has the byte 0x{content[error.start]:02x}; save it as UTF-8"
        ) from None


def refuse_utf16(content: bytes, where: str) -> None:
    """Look at the first four bytes of a text: UTF-16 begins with its mark, or with plain signs of two bytes.

    Raises:
        DataPrepError: they are UTF-16.
    """
    if content.startswith(_UTF16) or (len(content) >= 4 and 0 in content[:2] and 0 in content[2:4]):
        raise DataPrepError(f"{where} is UTF-16 text (Windows calls it Unicode): save it as UTF-8")


def read_class_lines(text: str) -> dict[str, str]:
    """Lines of `<id> <names>`, as in ImageNet's LOC_synset_mapping.txt (copies of it put a colon between)."""
    pairs = (line.strip().partition(" ") for line in text.splitlines() if line.strip())
    return {key.rstrip(":"): names.lstrip(" :\t") for key, _, names in pairs}


def readable_classes(classes: Sequence[str], names: Mapping[str, str]) -> list[str]:
    """The first synonym of each class's name; `crane (n02012849)` where two classes share it.

    Args:
        classes: ids such as WordNet's, by label.
        names: id → comma-separated synonyms; ids without one keep their id as name.
    """
    first = {key: names.get(key, "").split(",")[0].strip() or key for key in classes}
    uses = Counter(first.values())
    return [name if uses[name] == 1 else f"{name} ({key})" for key, name in first.items()]
