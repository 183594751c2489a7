"""Names that every tool understands: keys of samples and readable, unique names of classes."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from urllib.parse import quote

_PLAIN = re.compile(r"[A-Za-z0-9_~/-]+")


def sample_key(name: str) -> str:
    """A reversible ASCII name without dots: webdataset splits a member's name at its first dot."""
    if _PLAIN.fullmatch(name):
        return name
    return quote(name.encode("utf-8", "surrogateescape"), safe="/").replace(".", "%2E")


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


def readable_classes(classes: Sequence[str], names: Mapping[str, str]) -> list[str]:
    """The first synonym of each class's name; `crane (n02012849)` where two classes share it.

    Args:
        classes: ids such as WordNet's, by label.
        names: id → comma-separated synonyms; ids without one keep their id as name.
    """
    first = {key: names.get(key, "").split(",")[0].strip() or key for key in classes}
    uses = Counter(first.values())
    return [name if uses[name] == 1 else f"{name} ({key})" for key, name in first.items()]


def read_class_lines(text: str) -> dict[str, str]:
    """Lines of `<id> <names>`, as in ImageNet's LOC_synset_mapping.txt (copies of it put a colon between)."""
    pairs = (line.strip().partition(" ") for line in text.splitlines() if line.strip())
    return {key.rstrip(":"): names.lstrip(" :\t") for key, _, names in pairs}
