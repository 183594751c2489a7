"""The folder of a result: filled beside its place and then put there whole; what stood there is never lost unsent."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from convmlp_platform.errors import DataError
from convmlp_platform.evaluation.result import RESULT_NAME, read_result
from convmlp_platform.tracking.finished.finished_work import sent_to
from data_prep.storage.files import sync_folder


@contextlib.contextmanager
def staging(parent: Path, name: str) -> Iterator[Path]:
    """A new folder beside `parent / name`, which takes that name at the end of the block; of a block that fails nothing
    remains. What `put_aside` kept of an earlier evaluation is still there then.

    Raises:
        DataError: the folder can't be written.
    """
    try:
        parent.mkdir(parents=True, exist_ok=True)
        new = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=parent))
    except OSError as error:
        raise DataError(f"output.path: {parent} can't be written: {error.strerror or error}") from None
    try:
        yield new
        for file in new.iterdir():
            with file.open("rb") as written:
                os.fsync(written.fileno())
        sync_folder(new)
        new.chmod(0o755)
        _replace(parent / name, new)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _replace(final: Path, new: Path) -> None:
    aside = None
    if final.exists():
        # Sent to MLflow, it is there for good; otherwise its own folder keeps it until somebody sends it.
        aside = _free_name(final) if sent_to(final) is None else new.with_name(f"{new.name}-old")
        final.rename(aside)
    new.rename(final)
    sync_folder(final.parent)
    if aside is not None and aside.name.startswith("."):
        shutil.rmtree(aside, ignore_errors=True)


def _free_name(final: Path) -> Path:
    """`NAME-20261121-174502` of the old result's date."""
    try:
        date = read_result(final).date
        stamp = "".join(letter for letter in date[:19] if letter.isdigit())
        base = f"{final.name}-{stamp[:8]}-{stamp[8:]}"
    except DataError:
        base = f"{final.name}-old"
    name, number = base, 1
    while (final.parent / name).exists():
        number += 1
        name = f"{base}-{number}"
    return final.parent / name


def is_result(folder: Path) -> bool:
    """Whether an evaluation's result lies there."""
    return (folder / RESULT_NAME).is_file()
