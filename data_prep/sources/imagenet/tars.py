"""ImageNet as image-net.org ships it: a tar of 1,000 tars, a flat tar, and the devkit with the ground truth.

Nothing is unpacked: the tars' headers are read once, images by their place in the tar.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path, PurePosixPath

from data_prep.console import say, stored_size
from data_prep.errors import DataPrepError
from data_prep.sources.archives.archive_bytes import ByteRanges, open_tar, range_location
from data_prep.sources.archives.published import expect_md5
from data_prep.sources.archives.tar_members import PROBLEMS, TarMember, tar_members
from data_prep.sources.image_folder import IMAGE_SUFFIXES
from data_prep.sources.imagenet.imagenet import DEVKIT, TRAIN_TAR, VAL_TAR, ImageNetFile, missing_tars
from data_prep.sources.parsing.mat_file import read_mat

_SCANNERS = 16
"""Tars scanned at once: on network storage a header's way takes a hundred times longer than its parsing."""
_WNID_TAR = re.compile(r"(n\d{8})\.tar")
_VAL_NAME = re.compile(r"ILSVRC2012_val_(\d{8})\.\w+")
_META, _TRUTH = "data/meta.mat", "data/ILSVRC2012_validation_ground_truth.txt"
_MAX_DEVKIT_FILE = 64 << 20


class PublishedTars:
    """The three published files in one folder; the devkit may be unpacked."""

    def __init__(self, root: Path, *, check_md5: bool) -> None:
        self._root = root
        self._check_md5 = check_md5
        self._ranges = ByteRanges(root, PROBLEMS)

    def files(self) -> tuple[list[ImageNetFile], list[ImageNetFile]]:
        """Scans 1.3 million headers: seconds where the disk answers in microseconds."""
        devkit = f"{DEVKIT}.tar.gz"
        absent = [name for name in (TRAIN_TAR, VAL_TAR) if not (self._root / name).is_file()]
        if not (self._root / devkit).is_file() and not (self._root / DEVKIT).is_dir():
            absent.append(devkit)
        if absent:
            raise missing_tars(self._root, absent)
        if self._check_md5:
            self._expect_published_md5()
        return self._train(), self._val()

    def synsets(self) -> Mapping[str, str]:
        """The devkit's 1,000 classes."""
        return dict(self._synsets_by_id.values())

    def read(self, location: str) -> bytes:
        """The member's bytes."""
        return self._ranges.read(location)

    def _train(self) -> list[ImageNetFile]:
        path = self._root / TRAIN_TAR
        with path.open("rb") as file, ThreadPoolExecutor(_SCANNERS) as threads:
            descriptor = file.fileno()
            tars = {}
            for member in tar_members(descriptor, str(path)):
                match = _WNID_TAR.fullmatch(_file_name(member))
                if match is None or member.problem or match[1] in tars:
                    raise DataPrepError(
                        f"{path}: unexpected member {member.name!r}: this is not the published tar of 1,000 tars "
                        "n<8 digits>.tar"
                    )
                tars[match[1]] = member

            def scan(wnid: str) -> list[ImageNetFile]:
                outer = tars[wnid]
                where = f"{path} ({wnid}.tar inside)"
                members = tar_members(descriptor, where, outer.offset, outer.offset + outer.size)
                return [_located(TRAIN_TAR, wnid, member) for member in members if _is_image(member)]

            found = list(threads.map(scan, tars))
        if empty := [wnid for wnid, files in zip(tars, found, strict=True) if not files]:
            raise DataPrepError(f"{path}: {', '.join(empty[:3])} hold no images ({len(empty)} tars inside)")
        return [file for files in found for file in files]

    def _val(self) -> list[ImageNetFile]:
        path = self._root / VAL_TAR
        truth = [self._wnid(number) for number in self._ground_truth()]
        files: dict[int, ImageNetFile] = {}
        with path.open("rb") as file:
            for member in filter(_is_image, tar_members(file.fileno(), str(path))):
                match = _VAL_NAME.fullmatch(_file_name(member))
                number = int(match[1]) if match else 0
                if not 1 <= number <= len(truth) or number in files:
                    raise DataPrepError(
                        f"{path}: unexpected member {member.name!r}: expected ILSVRC2012_val_00000001.JPEG to "
                        f"ILSVRC2012_val_{len(truth):08d}.JPEG, each once"
                    )
                files[number] = _located(VAL_TAR, truth[number - 1], member)
        if len(files) != len(truth):
            raise DataPrepError(
                f"{path} has {len(files):,} images, the devkit's ground truth {len(truth):,}: download it again"
            )
        return list(files.values())

    def _wnid(self, number: int) -> str:
        if number not in self._synsets_by_id:
            raise DataPrepError(
                f"{self._root}: the devkit's ground truth names class {number}, its {_META} doesn't"
            )
        return self._synsets_by_id[number][0]

    @cached_property
    def _synsets_by_id(self) -> dict[int, tuple[str, str]]:
        """ILSVRC2012_ID → (wnid, synonyms) of the leaves; the inner nodes of WordNet's tree are listed, too."""
        where = f"{self._root / DEVKIT}: {_META}"
        synsets = read_mat(self._devkit_file(_META), where, "synsets")["synsets"]
        try:
            return {
                int(row["ILSVRC2012_ID"]): (str(row["WNID"]), str(row["words"]))
                for row in synsets
                if int(row["num_children"]) == 0
            }
        except (TypeError, ValueError, IndexError):
            raise DataPrepError(f"{where} does not hold ImageNet's synsets") from None

    def _ground_truth(self) -> list[int]:
        try:
            return [int(line) for line in self._devkit_file(_TRUTH).split()]
        except ValueError as error:
            raise DataPrepError(f"{self._root / DEVKIT}: {_TRUTH} holds {error}") from None

    def _devkit_file(self, name: str) -> bytes:
        folder, archive = self._root / DEVKIT, self._root / f"{DEVKIT}.tar.gz"
        if folder.is_dir():
            try:
                return (folder / name).read_bytes()
            except OSError as error:
                raise DataPrepError(f"can't read {folder / name}: {error.strerror}") from None
        try:
            with open_tar(archive) as tar:
                for member in tar.members():
                    if PurePosixPath(member.name).as_posix().endswith(name) and not member.problem:
                        if member.size > _MAX_DEVKIT_FILE:
                            raise DataPrepError(f"{name} has {member.size:,} bytes")
                        return b"".join(tar.chunks(member))
        except (DataPrepError, OSError) as error:
            raise DataPrepError(f"{archive} is not an intact archive ({error}): download it again") from None
        raise DataPrepError(f"{archive} has no {name}: it is not ImageNet's devkit")

    def _expect_published_md5(self) -> None:
        from torchvision.datasets.imagenet import ARCHIVE_META

        for name, md5 in ARCHIVE_META.values():
            if (path := self._root / name).is_file():
                say(f"checking the MD5 sum of {path} ({stored_size(path.stat().st_size)})")
                expect_md5(path, md5)


def _located(tar: str, wnid: str, member: TarMember) -> ImageNetFile:
    return ImageNetFile(member.name, wnid, range_location(tar, member.offset, member.problem or member.size))


def _file_name(member: TarMember) -> str:
    return member.name.rpartition("/")[2]


def _is_image(member: TarMember) -> bool:
    name = _file_name(member)
    return not name.startswith(".") and f".{name.rpartition('.')[2].lower()}" in IMAGE_SUFFIXES
