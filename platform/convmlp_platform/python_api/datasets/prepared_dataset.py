"""A prepared dataset opened by its folder or URL: one split, sample by sample, each checked as it is read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from convmlp_platform.data.dataset.sample_view import read_columns
from convmlp_platform.data.dataset.split import ShardedSplit, open_manifest
from convmlp_platform.data.storage.block_cache import CacheOptions
from convmlp_platform.data.storage.storage import open_storage
from convmlp_platform.errors import DataError
from convmlp_platform.python_api.datasets.targets import SampleTarget, target_of
from convmlp_platform.runs.find_dataset import find_dataset
from data_prep.console import counted
from data_prep.dataset.manifest import DatasetManifest
from data_prep.errors import RejectedSample
from data_prep.storage.urls import is_url, shown

if TYPE_CHECKING:
    from convmlp_platform.python_api.datasets.torch_items import TorchSplit

Pixels = NDArray[np.uint8]
Format = Literal["webdataset", "ffcv"]

_CACHE = "~/.cache/convmlp"
_CACHE_BYTES = 100 * 10**9


def open_dataset(
    path: str | Path,
    split: str | None = None,
    *,
    format: Format | None = None,
    digest: str | None = None,
    masks: bool = False,
    verify: bool = True,
    cache_dir: str | Path = _CACHE,
    cache_bytes: int = _CACHE_BYTES,
) -> PreparedDataset:
    """One split of a prepared dataset.

    Args:
        path: its folder (it holds manifest.json), the name of one in data/ below CONVMLP_ROOT, or its URL.
        split: default: train, or the only one.
        format: of the shards that samples are read from by index; default: webdataset where there is one.
        digest: refuse any other dataset than this one (`sha256:...`).
        masks: of detection: also decode the objects' masks.
        verify: compare each sample with its checksum as it is read.
        cache_dir, cache_bytes: of a dataset at a URL: where its parts are kept, and below what size in bytes.

    Raises:
        DataError: there is no such dataset, split or format; it is damaged, or not that of `digest`.
    """
    location = find_dataset(str(path))
    if not is_url(location):
        location = str(Path(location).absolute())  # for processes with another current folder
    manifest = open_manifest(location, digest)
    chosen = split or ("train" if "train" in manifest.splits else next(iter(manifest.splits)))
    if (lack := manifest.lacks(chosen, format)) is not None:
        raise DataError(f"dataset {manifest.name} {lack}")
    formats = manifest.splits[chosen].formats
    cache = CacheOptions(Path(cache_dir).expanduser(), cache_bytes)
    stored: str = format or ("webdataset" if "webdataset" in formats else sorted(formats)[0])
    return PreparedDataset(location, manifest, chosen, stored, masks=masks, verify=verify, cache=cache)


class PreparedDataset:
    """The samples 0..len-1 of a split, in stored order, which is the same in each format: a shuffled one.

    `dataset[i]` is the image (uint8 [H, W, 3], RGB, turned as the manifest says) and its target: in
    classification the label, a place in `classes`; in detection and segmentation see `targets`. It can be pickled, and
    processes that are forked from this one may use it; files are opened as they are needed.

    Raises (on reading): DataError, which names shard, sample and bytes, where one is damaged.
    """

    def __init__(
        self,
        path: str,
        manifest: DatasetManifest,
        split: str,
        format: str,
        *,
        masks: bool,
        verify: bool,
        cache: CacheOptions,
    ) -> None:
        self.path, self.manifest, self.split, self.format = path, manifest, split, format
        self.masks, self._verify, self._cache = masks, verify, cache

    @property
    def task(self) -> str:
        """`classification`, `detection` or `segmentation`."""
        return self.manifest.task

    @property
    def classes(self) -> list[str]:
        """Names, in the order of the labels."""
        return self.manifest.classes

    @cached_property
    def labels(self) -> NDArray[np.int64]:
        """The label of each sample, shape (len,), read from the index: no image is opened for it.

        Raises:
            DataError: images of this task have no label of their own.
        """
        if self.task != "classification":
            raise DataError(f"images of {self.task} have no label of their own: see dataset.target(i)")
        return read_columns(self.samples).label.astype(np.int64)

    @cached_property
    def samples(self) -> ShardedSplit:
        """The split in its `format`, as the platform's own readers have it."""
        return self.in_format(self.format)

    def in_format(self, format: str, *, read_together: int = 1) -> ShardedSplit:
        """The split in one of its formats; of a dataset at a URL, so many neighbouring samples are fetched together.

        Raises:
            DataError: the dataset hasn't this format.
        """
        storage = open_storage(
            self.path, self.manifest, self.split, format, cache=self._cache, block_size=read_together
        )
        return ShardedSplit(
            self.path, self.manifest, self.split, format, verify=self._verify, storage=storage
        )

    def __len__(self) -> int:
        return self.manifest.splits[self.split].num_samples

    def __getitem__(self, place: int) -> tuple[Pixels, SampleTarget]:
        sample = self._sample(place)
        return self._pixels(sample), self._target(sample)

    def __iter__(self) -> Iterator[tuple[Pixels, SampleTarget]]:
        return (self[sample] for sample in range(len(self)))

    def image(self, place: int) -> Image.Image:
        """A sample's image, RGB."""
        return Image.fromarray(self._pixels(self._sample(place)))

    def target(self, place: int) -> SampleTarget:
        """A sample's target; its image isn't decoded."""
        return self._target(self._sample(place))

    def key(self, place: int) -> str:
        """A sample's name, unique within the split: of an image folder `class/file`, without the suffix."""
        return self.samples.key(self._sample(place))

    def as_torch(
        self,
        transform: Callable[[Image.Image], Any] | None = None,
        transforms: Callable[[Any, Any], tuple[Any, Any]] | None = None,
    ) -> TorchSplit:
        """A map-style `torch.utils.data.Dataset` of (image, target).

        Args:
            transform: gets the PIL image; without, images are uint8 [3, H, W].
            transforms: gets PIL image and target together, as torchvision's v2 do.

        Objects are a dictionary of tensors (`boxes`, `labels`, ...) and label maps int64 [H, W], both as torchvision's
        `tv_tensors`, so that its transforms turn and cut them with the image.

        Raises:
            ValueError: both are given.
        """
        from convmlp_platform.python_api.datasets.torch_items import ItemForm, TorchSplit

        return TorchSplit(self, ItemForm(self.task, transform, transforms))

    def as_webdataset(
        self,
        transform: Callable[[Image.Image], Any] | None = None,
        transforms: Callable[[Any, Any], tuple[Any, Any]] | None = None,
        *,
        decode: Literal["pil", "rgb8", "torchrgb8"] | None = "pil",
        fields: tuple[str, ...] = ("image", "target"),
        shuffle: int = 0,
        seed: int | None = None,
    ) -> Any:
        """A stock `webdataset` pipeline over the .tar shards: a torch `IterableDataset` with webdataset's own methods
        (`.map`, `.batched`, `.with_epoch`, ...). Shards are split among torch.distributed's ranks, then among a
        DataLoader's workers. Checksums aren't compared.

        Args:
            transform, transforms: as in `as_torch`.
            decode: form of images without transforms, in webdataset's words: `pil`; `rgb8`, uint8 [H, W, 3], targets
                NumPy's, too; `torchrgb8`, uint8 [3, H, W]. None leaves the members as bytes, in a dictionary by suffix,
                the JPEG as it is stored: what follows must turn it.
            fields: which of `image`, `target` and `key` a sample is made of.
            shuffle: size of the buffer that samples are drawn from at random; then shards are shuffled, too. 0: in
                stored order.
            seed: of that; default: another order each time. Workers that a DataLoader starts anew for each epoch begin
                anew with the seed, too: persistent_workers=True.

        Raises:
            DataError: the dataset has no .tar shards, or webdataset isn't installed.
        """
        from convmlp_platform.python_api.datasets.webdataset_pipeline import webdataset_pipeline

        return webdataset_pipeline(
            self, transform, transforms, decode=decode, fields=fields, shuffle=shuffle, seed=seed
        )

    def as_ffcv_loader(
        self,
        batch_size: int,
        *,
        image_size: int | tuple[int, int] | None = None,
        train: bool = False,
        normalize: bool = True,
        device: Any = None,
        **options: Any,
    ) -> Any:
        """A stock `ffcv.Loader` over the .beton files, of batches (images, targets).

        FFCV reads one file and turns no image. A split of several .beton files, at a URL, or with images that are to be
        turned is therefore written once more as one file, checked and upright, in `cache_dir`; later calls find it.

        Args:
            batch_size: images a batch.
            image_size: pixels, or height and width; default: that of all images, where they have one. In detection and
                segmentation whole images are scaled to it, boxes and label maps alike; in classification evaluation
                takes the middle.
            train: shuffle, leave the last incomplete batch out, and in classification cut and mirror at random.
            normalize: images are float32 by the manifest's `mean` and `std`; otherwise uint8.
            device: for the images; default: the CPU. Targets stay there.
            options: further arguments of `ffcv.Loader`: num_workers, order, os_cache, seed, distributed, drop_last,
                batches_ahead, indices; `pipelines` replaces those of its fields.

        Images are [B, 3, H, W]. Targets are int64 [B] in classification; a list of dictionaries of tensors, as those of
        `as_torch`, in detection; int64 [B, H, W], 255 where nothing is labelled, in segmentation.

        Raises:
            DataError: ffcv isn't installed; the dataset has no .beton files; images have several sizes and none is
                given; that file can't be written.
        """
        from convmlp_platform.python_api.datasets.ffcv_loader import ffcv_loader

        return ffcv_loader(
            self,
            batch_size,
            image_size=image_size,
            train=train,
            normalize=normalize,
            device=device,
            options=options,
        )

    @property
    def cache_dir(self) -> Path:
        """The folder for what is kept of a dataset on this machine."""
        return self._cache.dir

    def __getstate__(self) -> dict[str, Any]:
        """Without what is open."""
        opened = ("samples", "labels")
        return {name: value for name, value in vars(self).items() if name not in opened}

    def __repr__(self) -> str:
        return (
            f"<{self.manifest.name}/{self.split}: {counted(len(self), 'image')} for {self.task}, "
            f"{len(self.classes):,} classes, {self.format} shards at {shown(self.path)}>"
        )

    def _sample(self, place: int) -> int:
        sample = int(place)
        if not -len(self) <= sample < len(self):
            raise IndexError(f"sample {sample} of {len(self)}")
        return sample % len(self)

    def _pixels(self, sample: int) -> Pixels:
        payload = self.samples.payload(sample)
        try:
            return np.require(payload.pixels(), requirements="W")  # some decoders' are read-only
        except (OSError, ValueError) as error:
            raise self.samples.damaged(sample, f"it can't be decoded ({error})") from None

    def _target(self, sample: int) -> SampleTarget:
        annotation = None if self.task == "classification" else self.samples.annotation(sample)
        try:
            return target_of(
                self.task,
                self.samples.label(sample),
                annotation,
                self.manifest.class_ids,
                masks=self.masks,
            )
        except RejectedSample as error:
            raise self.samples.damaged(sample, f"its annotation can't be used ({error})") from None
