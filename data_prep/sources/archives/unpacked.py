"""A published archive and the folder that unpacking it gives, either of which may be what lies on disk."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from data_prep.errors import DataPrepError
from data_prep.sources.archives.published import PublishedFile, expect_md5, fetch, missing_files, unpack


class Unpacked(NamedTuple):
    """The places where the folder and the archive are, or would be."""

    folder: Path
    archive: Path

    def is_there(self) -> bool:
        """Is there either of them?"""
        return self.folder.is_dir() or self.archive.is_file()

    def absent(self, files: Sequence[str]) -> list[str]:
        """Those of the files that the folder lacks."""
        present = {path.name for path in self.folder.iterdir()} if self.folder.is_dir() else set()
        return [name for name in files if name not in present]


def locate(path: Path, folder: str, archive: str, member: str) -> Unpacked:
    """Both places for a `source.path` that names the archive, the folder, or the folder around either.

    Args:
        path: `source.path`.
        folder: the unpacked folder's name.
        archive: the archive's name.
        member: a file that the folder holds.
    """
    if path.is_file() or path.name == archive:
        return Unpacked(path.parent / folder, path)
    if (path / member).is_file():
        return Unpacked(path, path / archive)
    return Unpacked(path / folder, path / archive)


def missing_unpacked(what: str, place: Unpacked, published: PublishedFile) -> DataPrepError:
    """The error that says where the archive is to be put."""
    folder = f"its unpacked folder {place.folder.name}/"
    return missing_files(what, place.archive.parent, [published], otherwise=folder)


def ensure_unpacked(
    what: str,
    place: Unpacked,
    files: Sequence[str],
    published: Callable[[], PublishedFile],
    *,
    download: bool,
    check_md5: bool,
) -> None:
    """See that the folder holds the files: fetch the archive if that is asked for, and unpack it, where they lack.

    This writes next to the source, so it is for the process that lists; workers find the folder.

    Raises:
        DataPrepError: files and archive are missing, or the archive can't be fetched, is damaged or lacks files.
    """
    if not place.absent(files):
        return
    archive = place.archive
    if archive.is_file():
        if check_md5:
            expect_md5(archive, published().md5)
    elif download:
        fetch(published(), archive.parent)
        archive = archive.parent / published().name
    else:
        raise missing_unpacked(what, place, published())
    unpack(archive, place.folder, lambda name: _plain_name(name, place.folder.name, set(files)))
    if absent := place.absent(files):
        raise DataPrepError(
            f"source.path: {archive} has no {', '.join(absent[:3])} ({len(absent)} of {len(files)} files are "
            f"missing): it is not {what}'s published archive"
        )


def _plain_name(member: str, folder: str, wanted: set[str]) -> str | None:
    path = PurePosixPath(member)
    return path.name if path.parent.name == folder and path.name in wanted else None
