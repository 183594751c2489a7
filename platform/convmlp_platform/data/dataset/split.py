"""One split of a prepared dataset, read sample by sample through its index, from either shard format.

From a payload to pixels: libjpeg-turbo for JPEG, Pillow for all else that an image file may be.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Protocol

import numpy as np
import simplejpeg
import xxhash
from numpy.typing import NDArray
from PIL import Image

from convmlp_platform.data.dataset.damage import Damage, DamagedSample
from convmlp_platform.data.reading import process_name
from convmlp_platform.data.storage.local import LocalStorage
from convmlp_platform.data.storage.storage import Storage, load_remote_manifest, shards_of
from convmlp_platform.errors import Cause, DataError, StorageUnreachable, cause_of, data_error
from data_prep.dataset.index import ENCODED, RAW_RGB, ShardIndex
from data_prep.dataset.manifest import DatasetManifest, load_manifest
from data_prep.errors import DataPrepError
from data_prep.images.image_file import expect_usual_size, open_image
from data_prep.images.jpeg import expect_affordable
from data_prep.images.jpeg_box import Rectangle, decode_box, eighths_for, header_for_boxes, size_at
from data_prep.images.orientation import (
    UPRIGHT,
    orientation_of_jpeg,
    stored_rectangle,
    turned_pixels,
    turned_size,
)
from data_prep.storage.urls import local_path, shown

Pixels = NDArray[np.uint8]

# What libjpeg-turbo turns into the same RGB as Pillow; CMYK and YCCK are Pillow's.
_COLORSPACES = ("YCbCr", "Gray", "RGB")
_JPEG_START = b"\xff\xd8"


def stored_orientation(content: bytes) -> int:
    """How an image file of a dataset is to be turned: preparation leaves that to readers with JPEG files alone."""
    return orientation_of_jpeg(content) if content.startswith(_JPEG_START) else UPRIGHT


def decode(
    content: bytes | memoryview,
    smallest: tuple[int, int] | None = None,
    *,
    orientation: int | None = None,
) -> Pixels:
    """An image file's RGB pixels, shape (height, width, 3).

    Args:
        content: a JPEG, PNG, BMP or WebP file.
        smallest: None decodes exactly as Pillow does (bit-identical on 400 ImageNet files). A (height, width)
            allows what training doesn't notice: libjpeg-turbo's fast transforms, and a JPEG at 1/2, 3/8, 1/4 or
            1/8 of its size that is not below this one. Scales between 1/2 and 1 have no vectorised
            transform and take longer than the whole image (5/8: 1,261 µs, 1: 1,115, 1/2: 1,014). Of the turned image.
        orientation: how to turn it, 1 to 8 as EXIF numbers them; None reads it from the file's own EXIF data.

    Raises:
        OSError, ValueError: it can't be decoded.
    """
    content = bytes(content)
    if orientation is None:
        orientation = stored_orientation(content)
    if smallest is not None:
        smallest = turned_size(*smallest, orientation)
    return turned_pixels(_decode(content, smallest), orientation)


class SeenBox(Protocol):
    """A box of an image as it is stored, top, left, height, width (`convmlp.transforms.pixels.Box`)."""

    def scaled(self, seen: tuple[int, int], stored: tuple[int, int]) -> Rectangle:
        """The box in the image decoded at another size; sizes are height and width."""


def decode_seen(
    content: bytes | memoryview,
    box: SeenBox,
    stored: tuple[int, int],
    smallest: tuple[int, int],
    *,
    orientation: int | None = None,
) -> Pixels:
    """The pixels of a box of an image file, those that `decode` with `smallest` gives there, bit for bit.

    Args:
        content, smallest, orientation: as in `decode`.
        box: of the turned image.
        stored: height and width of the image that the box was drawn for.

    Raises:
        OSError, ValueError: it can't be decoded.
    """
    content = bytes(content)
    if orientation is None:
        orientation = stored_orientation(content)
    if header := header_for_boxes(content):
        eighths = eighths_for(header, turned_size(*smallest, orientation))
        size = turned_size(*size_at(header, eighths), orientation)
        place = stored_rectangle(box.scaled(size, stored), size, orientation)
        pixels = decode_box(content, header, place, eighths)
        if pixels is not None:
            return turned_pixels(pixels, orientation)
    pixels = decode(content, smallest, orientation=orientation)
    return _cut(pixels, box.scaled(pixels.shape[:2], stored))


def _cut(pixels: Pixels, place: Rectangle) -> Pixels:
    top, left, height, width = place
    return pixels[top : top + height, left : left + width]


def _decode(content: bytes, smallest: tuple[int, int] | None) -> Pixels:
    if content.startswith(_JPEG_START):
        expect_affordable(content, None)
        try:
            return _decode_jpeg(content, smallest)
        except ValueError:
            pass  # cut short, or of a kind that libjpeg-turbo doesn't turn into RGB: Pillow decides
    return np.asarray(open_image(content)[0].convert("RGB"))


def _decode_jpeg(content: bytes, smallest: tuple[int, int] | None) -> Pixels:
    height, width, colorspace, _ = simplejpeg.decode_jpeg_header(content)
    expect_usual_size(width, height)
    if colorspace not in _COLORSPACES:
        raise ValueError("not RGB")
    if smallest is None:
        return simplejpeg.decode_jpeg(content)
    return simplejpeg.decode_jpeg(
        content, fastdct=True, fastupsample=True, min_height=smallest[0], min_width=smallest[1], min_factor=2
    )


@dataclass(frozen=True, slots=True)
class ReadPayload:
    """One sample: `content` is an image file as it is stored, or raw RGB pixels; `height` and `width` are of the image
    as readers see it, turned by `orientation` (1 to 8, EXIF's)."""

    content: bytes | memoryview
    encoding: int
    height: int
    width: int
    label: int
    checksum: int
    """XXH3-64 of `content`, as it was read."""
    sample: int
    split: ShardedSplit = field(repr=False, compare=False)
    orientation: int = UPRIGHT

    def pixels(self) -> Pixels:
        """Shape (height, width, 3), read-only, decoded exactly; `decode` says what is raised."""
        if self.encoding == RAW_RGB:
            return np.frombuffer(self.content, np.uint8).reshape(self.height, self.width, 3)
        return decode(self.content, orientation=self.orientation)

    def seen(self, box: SeenBox, smallest: tuple[int, int]) -> Pixels:
        """The pixels of a box of the image, shape (height, width, 3), which may be decoded smaller than stored, though
        not below `smallest`: as `decode_seen`."""
        size = (self.height, self.width)
        if self.encoding == RAW_RGB:
            return _cut(self.pixels(), box.scaled(size, size))
        return decode_seen(self.content, box, size, smallest, orientation=self.orientation)

    def annotation(self) -> bytes:
        """Returns the sample's annotation, read from the same shard; as `ShardedSplit.annotation`."""
        return self.split.annotation(self.sample)


def open_manifest(path: str, digest: str | None = None) -> DatasetManifest:
    """The manifest of the dataset at `path`, a folder or URL.

    Raises:
        DataError: there is none, it is damaged, or it is not the dataset that `digest` names.
    """
    folder = local_path(path)
    try:
        manifest = load_remote_manifest(path) if folder is None else load_manifest(folder)
    except DataPrepError as error:
        raise data_error(error, "data.path: ") from error
    if digest is not None and manifest.digest != digest:
        raise DataError(
            f"data.digest: the dataset at {shown(path)} is {manifest.digest}, but the job asks for {digest}: "
            "point data.path at the dataset it was written for, or update data.digest"
        )
    return manifest


class ShardedSplit:
    """Random access to the samples 0..len-1 of a split; files and indexes are opened when they are needed.

    Every payload's XXH3-64 is compared with the index's unless `verify` is False. Forked reader processes may
    share one object.

    Args:
        storage: where the shards lie; default: in `folder` itself.

    Raises:
        DataError: the split or format isn't in the dataset, or, while reading, a file or index is missing or
            damaged; a `DamagedSample` names shard, sample and byte range.
    """

    def __init__(
        self,
        folder: str | Path,
        manifest: DatasetManifest,
        split: str,
        format: str,
        *,
        verify: bool = True,
        storage: Storage | None = None,
    ) -> None:
        self.folder, self.name, self.format = str(folder), f"{manifest.name}/{split}", format
        self.manifest, self.verify = manifest, verify
        self.shards = shards_of(manifest, split, format)
        self.storage: Storage = LocalStorage(Path(folder), self.shards) if storage is None else storage
        self._starts = [0, *accumulate(shard.num_samples for shard in self.shards)]

    def __len__(self) -> int:
        return self._starts[-1]

    def check_files(self) -> None:
        """Whether all shards are there with their sizes, where that can be known without reading them.

        Raises:
            DataError: naming the first that is not.
        """
        if isinstance(self.storage, LocalStorage):
            self.storage.check_files()

    def index(self, number: int) -> ShardIndex:
        """The index of a shard, by its number in `shards`."""
        return self.storage.index(number)

    def locate(self, sample: int) -> tuple[int, int]:
        """A sample's shard, as its number in `shards`, and its 0-based position there."""
        if not 0 <= sample < len(self):
            raise IndexError(f"sample {sample} is not in 0..{len(self) - 1}")
        number = bisect_right(self._starts, sample) - 1
        return number, sample - self._starts[number]

    def key(self, sample: int) -> str:
        """The sample's name, unique within the split."""
        number, position = self.locate(sample)
        return self.index(number).key(position)

    def label(self, sample: int) -> int:
        """The sample's class number (-1 where its task has none)."""
        number, position = self.locate(sample)
        return int(self.index(number).label[position])

    def payload(self, sample: int) -> ReadPayload:
        """The sample's stored image, checked."""
        number, position = self.locate(sample)
        process_name.reads(self.shards[number].file)
        index = self.index(number)
        content, checksum = self._checked(
            sample,
            int(index.offset[position]),
            int(index.length[position]),
            int(index.checksum[position]),
        )
        encoding, orientation = int(index.encoding[position]), UPRIGHT
        if encoding == ENCODED and self.manifest.exif_orientation == "apply":
            content = bytes(content)
            orientation = stored_orientation(content)
        height, width = turned_size(int(index.height[position]), int(index.width[position]), orientation)
        return ReadPayload(
            content,
            encoding,
            height,
            width,
            int(index.label[position]),
            checksum,
            sample,
            self,
            orientation,
        )

    def annotation(self, sample: int) -> bytes:
        """The sample's annotation as stored, checked: JSON for detection, the mask's PNG for segmentation.

        Raises:
            DataError: also where the task has no annotations.
        """
        number, position = self.locate(sample)
        index = self.index(number)
        length = int(index.annotation_length[position])
        if not length:
            raise DataError(f"{self.name}: sample {index.key(position)!r} has no annotation")
        checksum = int(index.annotation_checksum[position])
        return bytes(self._checked(sample, int(index.annotation_offset[position]), length, checksum)[0])

    def image(self, sample: int) -> tuple[Image.Image, int]:
        """The sample's RGB image, decoded exactly, and its label."""
        payload = self.payload(sample)
        try:
            return Image.fromarray(payload.pixels()), payload.label
        except (OSError, ValueError) as error:
            raise self.damaged(sample, f"it can't be decoded ({error})") from None

    def damaged(self, sample: int, reason: str) -> DamagedSample:
        """The error that says where the sample's image lies."""
        number, position = self.locate(sample)
        index = self.index(number)
        return self._damaged(sample, int(index.offset[position]), int(index.length[position]), reason)

    def _damaged(
        self, sample: int, offset: int, length: int, reason: str, cause: Cause = "data"
    ) -> DamagedSample:
        number, position = self.locate(sample)
        file = f"{self.folder}/{self.shards[number].file}"
        damage = Damage(
            sample,
            self.index(number).key(position),
            file,
            offset,
            length,
            reason,
            cause="storage" if cause == "storage" else "data",
        )
        return DamagedSample(damage, self.folder)

    def _checked(
        self, sample: int, offset: int, length: int, checksum: int
    ) -> tuple[bytes | memoryview, int]:
        """The bytes and their XXH3-64. Wrong ones are read once more, past any cache, before they are given up."""
        number, _ = self.locate(sample)
        try:
            for last in (False, True):
                content = self.storage.read(number, offset, length)
                found = xxhash.xxh3_64_intdigest(content)
                if len(content) == length and (found == checksum or not self.verify):
                    return content, found
                if last or not self.storage.discard(number, offset, length):
                    break
        except StorageUnreachable:
            raise
        except DataError as error:
            raise self._damaged(sample, offset, length, str(error), cause_of(error)) from error
        cut = f"only {len(content)} of its {length} bytes are there"
        reason = "its checksum is not the index's" if len(content) == length else cut
        raise self._damaged(sample, offset, length, reason)
