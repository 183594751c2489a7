"""Files of a source folder: their keys, and that none of them lies outside the folder."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from data_prep.errors import DataPrepError
from data_prep.sources.parsing.names import sample_key


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


def _stem(name: str) -> str:
    dot = name.rfind(".")
    return name[:dot] if name.rfind("/") + 1 < dot else name
