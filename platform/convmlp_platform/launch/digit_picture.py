"""One held-out digit of the demo's dataset, as a file and as a picture for the terminal."""

from __future__ import annotations

import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

from convmlp_platform.errors import DataError

_IMAGES = (".png", ".jpg", ".jpeg")
_SHADES = " .:-=+*#%@"


def save_held_out_digit(dataset: Path, target: Path, split: str = "val") -> str:
    """Copy the first image of a WebDataset split to `target`, byte for byte; returns its class."""
    shards = sorted((dataset / "webdataset").glob(f"{split}*.tar"))
    if not shards:
        raise DataError(f"{dataset}: no WebDataset shards of split {split}")
    with tarfile.open(shards[0]) as tar:
        members = {Path(member.name).suffix: member for member in reversed(tar.getmembers())}
        image = next(members[suffix] for suffix in _IMAGES if suffix in members)
        target.write_bytes(_content(tar, image))
        return _content(tar, members[".cls"]).decode().strip()


def ascii_art(path: Path, columns: int = 16, rows: int = 8) -> str:
    """The image as `rows` lines of `columns` shades; characters are twice as high as wide."""
    gray = (
        Image.open(path, formats=["PNG", "JPEG"]).convert("L").resize((columns, rows), Image.Resampling.BOX)
    )
    levels = np.asarray(gray, dtype=np.int64) * (len(_SHADES) - 1) // 255  # [rows, columns]
    return "\n".join("    " + "".join(_SHADES[level] for level in row) for row in levels)


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(member)
    if file is None:
        raise DataError(f"{tar.name!s}: {member.name} is not a file")
    return file.read()
