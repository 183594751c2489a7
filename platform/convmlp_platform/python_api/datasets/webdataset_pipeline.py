"""A stock `webdataset` pipeline over a prepared dataset's .tar shards, whose images look as our own readers' do.

webdataset's decoders show a JPEG as it is stored; ours turns it where the manifest says so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from convmlp_platform.data.dataset.split import decode, stored_orientation
from convmlp_platform.errors import DataError
from convmlp_platform.python_api.datasets.targets import target_of
from convmlp_platform.python_api.datasets.torch_items import Decoded, ItemForm
from data_prep.errors import RejectedSample
from data_prep.images.orientation import UPRIGHT
from data_prep.storage.remote_files import open_filesystem
from data_prep.storage.urls import is_url, join_url, shown
from data_prep.writers.webdataset_writer import ANNOTATION_SUFFIX

if TYPE_CHECKING:
    from convmlp_platform.python_api.datasets.prepared_dataset import PreparedDataset

FIELDS = ("image", "target", "key")


def webdataset_pipeline(
    dataset: PreparedDataset,
    transform: Callable[[Any], Any] | None,
    transforms: Callable[[Any, Any], tuple[Any, Any]] | None,
    *,
    decode: Decoded | None,
    fields: Sequence[str],
    shuffle: int,
    seed: int | None,
) -> Any:
    """See `PreparedDataset.as_webdataset`."""
    urls = _urls(dataset)
    if unknown := [name for name in fields if name not in FIELDS]:
        raise ValueError(f"fields: {unknown[0]!r} is none of {', '.join(FIELDS)}")
    pipeline = _samples(urls, shuffle, seed)
    if decode is None:
        return pipeline
    manifest = dataset.manifest
    form = ItemForm(manifest.task, transform, transforms, decode)
    turned = manifest.exif_orientation == "apply"
    stage = StoredMembers(form, turned, manifest.class_ids, dataset.masks)
    return pipeline.map(stage).to_tuple(*fields)


def _urls(dataset: PreparedDataset) -> list[str]:
    shards = dataset.manifest.splits[dataset.split].formats.get("webdataset")
    if shards is None:
        raise DataError(
            f"dataset {dataset.manifest.name} has no .tar shards: prepare it with output.formats: [webdataset], "
            "or read it by as_torch()"
        )
    if is_url(dataset.path):
        return [join_url(dataset.path, shard.file) for shard in shards]
    return [str(Path(dataset.path) / shard.file) for shard in shards]


def _samples(urls: list[str], shuffle: int, seed: int | None) -> Any:
    """The pipeline up to samples as dictionaries of bytes by suffix.

    webdataset's own opener takes "?" and "#" in a path for a URL's, reads no s3:// and leaves http:// to curl; and its
    shards come in one order for good.
    """
    try:
        import webdataset as wds
        from webdataset.tariterators import group_by_keys, tar_file_expander
    except ImportError as error:
        raise DataError(f"as_webdataset() needs webdataset ({error}): pip install webdataset") from None

    def mixed(size: int) -> list[Any]:
        if not shuffle:
            return []
        return [wds.shuffle(size) if seed is None else wds.detshuffle(size, seed=seed)]

    stages = [wds.split_by_node, wds.split_by_worker, *mixed(len(urls)), opened_shards]
    stages += [tar_file_expander, group_by_keys, *mixed(shuffle)]
    return wds.FluidWrapper(wds.SimpleShardList(urls)).compose(*stages)


def opened_shards(shards: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """A stage of a pipeline: each shard with the stream of its bytes."""
    for shard in shards:
        with _open(shard["url"]) as stream:
            yield shard | {"stream": stream}


def _open(place: str) -> Any:
    if not is_url(place):
        return Path(place).open("rb")
    fs, path = open_filesystem(place)
    return fs.open(path, "rb")


@dataclass(frozen=True)
class StoredMembers:
    """A stage of a pipeline: from a sample's members as bytes to its image, target and key.

    Args:
        form: of image and target.
        turned: whether images are turned by their EXIF orientation.
        class_ids: the publisher's category ids by label (the manifest's).
        masks: also decode the objects' masks.
    """

    form: ItemForm
    turned: bool
    class_ids: list[int] | None
    masks: bool

    def __call__(self, sample: dict[str, Any]) -> dict[str, Any]:
        """Raises DataError where a member is damaged, naming sample and shard."""
        suffix = ANNOTATION_SUFFIX.get(self.form.task, "cls")  # type: ignore[call-overload]
        own = {name: value for name, value in sample.items() if not name.startswith("__") and name != suffix}
        try:
            (content,), truth = own.values(), sample[suffix]
            orientation = stored_orientation(content) if self.turned else UPRIGHT
            pixels = np.require(decode(content, orientation=orientation), requirements="W")
            target = target_of(
                self.form.task,
                int(truth) if suffix == "cls" else -1,
                None if suffix == "cls" else truth,
                self.class_ids,
                masks=self.masks,
            )
        except (OSError, ValueError, KeyError, RejectedSample) as error:
            where = f"{shown(str(sample.get('__url__')))}: sample {sample.get('__key__')!r}"
            raise DataError(f"{where} is damaged: {error}; `convmlp data verify` finds all that is") from None
        image, target = self.form(pixels, target)
        return {"key": sample["__key__"], "image": image, "target": target}
