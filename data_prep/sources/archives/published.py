"""Files as their publisher offers them: what is missing, fetching them, their MD5 sums, unpacking archives.

What lies on disk may be a published archive or the folder that unpacking it gives.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path, PurePosixPath
from typing import NamedTuple
from urllib.error import HTTPError

from data_prep.console import say
from data_prep.errors import DataPrepError
from data_prep.sources.archives.archive_bytes import open_tar
from data_prep.storage import locks
from data_prep.storage.files import sync_folder

_TEMP_PREFIX = ".tmp-published-"
_SILENCE_SECONDS = 60.0


class PublishedFile(NamedTuple):
    """A file to fetch: its name and URL, its size in words, and its published MD5 sum."""

    name: str
    size: str
    url: str
    md5: str


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


def missing_unpacked(what: str, place: Unpacked, published: PublishedFile) -> DataPrepError:
    """The error that says where the archive is to be put."""
    folder = f"its unpacked folder {place.folder.name}/"
    return missing_files(what, place.archive.parent, [published], otherwise=folder)


def missing_files(
    what: str, folder: Path, files: Sequence[PublishedFile], *, otherwise: str
) -> DataPrepError:
    """The error that says which files to put where.

    Args:
        what: the dataset's name.
        folder: where they belong.
        files: those that are missing.
        otherwise: what the source takes instead of them.
    """
    wanted = ", ".join(f"{file.name} ({file.size}) from {file.url}" for file in files)
    return DataPrepError(
        f"source.path: no {what} at {folder}: put there {wanted}; or {otherwise}; "
        "or set source.download: true on a machine that reaches the internet"
    )


def fetch(file: PublishedFile, folder: Path) -> None:
    """Download a file into a folder; it gets its name when it is whole and has its published MD5 sum.

    Raises:
        DataPrepError: that did not work; the message says how to do it by hand.
    """
    from torchvision.datasets.utils import download_url

    say(f"downloading {file.url} ({file.size}) into {folder}")
    with _workspace(folder, f"download {file.name}") as temporary, _patience():
        try:
            download_url(file.url, temporary, filename=file.name, md5=file.md5)
        except (OSError, RuntimeError, ValueError, http.client.HTTPException) as error:
            reason = error if isinstance(error, HTTPError) else getattr(error, "reason", None) or error
            raise DataPrepError(
                f"source.download: can't fetch {file.url}: {reason}. Download {file.name} ({file.size}, MD5 "
                f"{file.md5}) on a machine that reaches it, and put it into {folder}"
            ) from None
        _into_place(temporary / file.name, folder / file.name)


def expect_md5(path: Path, expected: str) -> None:
    """Compare a file with its published MD5 sum.

    Raises:
        DataPrepError: it differs, or can't be read.
    """
    try:
        with path.open("rb") as file:
            actual = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    except OSError as error:
        raise DataPrepError(f"can't read {path}: {error.strerror}") from None
    if actual != expected:
        raise DataPrepError(
            f"{path} has MD5 {actual}, published is {expected}: download it again, "
            "or set source.check_md5: false if it was changed on purpose"
        )


def unpack(archive: Path, folder: Path, wanted: Callable[[str], str | None]) -> None:
    """Unpack some members of a tar.gz into a folder that appears, or grows, only when all are written.

    Nothing but regular files is unpacked, under names that `wanted` gives: names and links inside the archive have
    no say in where anything is written.

    Args:
        archive: a tar, compressed or not.
        folder: where the files go.
        wanted: a member's name → its plain file name in `folder`, or None to leave it out.

    Raises:
        DataPrepError: the archive is damaged, or the folder can't be written.
    """
    say(f"unpacking {archive} into {folder}")
    with _workspace(folder.parent, f"unpack {archive.name}") as temporary:
        names = _unpack(archive, temporary, wanted)
        os.sync()  # one for 8,000 files
        try:
            folder.mkdir(exist_ok=True)
            for name in names:
                (temporary / name).replace(folder / name)
        except OSError as error:
            raise DataPrepError(f"can't unpack {archive} into {folder}: {error.strerror}") from None
        sync_folder(folder)


def _unpack(archive: Path, target: Path, wanted: Callable[[str], str | None]) -> list[str]:
    names = []
    try:
        with open_tar(archive) as tar:
            for member in tar.members():
                name = None if member.problem else wanted(member.name)
                if name is None:
                    continue
                with (target / Path(name).name).open("wb") as file:
                    file.writelines(tar.chunks(member))
                names.append(Path(name).name)
    except DataPrepError as error:
        raise DataPrepError(f"source.path: {archive} is not an intact archive ({error})") from None
    except OSError as error:
        raise DataPrepError(f"source.path: can't unpack {archive}: {error}") from None
    return names


@contextmanager
def _workspace(folder: Path, task: str) -> Iterator[Path]:
    """A temporary folder inside `folder`, which one job at a time may have; a killed one's is swept."""
    with ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(locks.holding(folder / locks.OF_FOLDER))
            for stale in folder.glob(f"{_TEMP_PREFIX}*"):
                shutil.rmtree(stale, ignore_errors=True)
            temporary = Path(tempfile.mkdtemp(prefix=_TEMP_PREFIX, dir=folder))
        except locks.Held as held:
            raise DataPrepError(
                f"source.path: another job is downloading or unpacking in {folder}: {held}; start this one when it is "
                "done"
            ) from None
        except OSError as error:
            raise DataPrepError(
                f"source.path: can't {task} in {folder}: {error.strerror}; do it by hand in a folder of yours, and "
                "let source.path name that"
            ) from None
        try:
            yield temporary
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def _patience() -> Iterator[None]:
    """urllib waits for ever on a server that has gone silent."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_SILENCE_SECONDS)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _into_place(temporary: Path, path: Path) -> None:
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    temporary.replace(path)
    sync_folder(path.parent)
