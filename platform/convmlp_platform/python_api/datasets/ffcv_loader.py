"""A stock `ffcv.Loader` over a prepared dataset's .beton files, with pipelines for each task."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import numpy as np

from convmlp_platform.data.dataset.sample_view import read_columns
from convmlp_platform.errors import DataError
from convmlp_platform.python_api.datasets.whole_beton import beton_of

if TYPE_CHECKING:
    from convmlp_platform.python_api.datasets.prepared_dataset import PreparedDataset

_EVAL_RATIO = 0.875
"""Side of the middle that evaluation takes, of the shorter side: the field's 224 of 256."""
_EXTRA = "pip install 'convmlp-platform[ffcv]', after apt's pkg-config, libopencv-dev and libturbojpeg0-dev"


def ffcv_loader(
    dataset: PreparedDataset,
    batch_size: int,
    *,
    image_size: int | tuple[int, int] | None,
    train: bool,
    normalize: bool,
    device: Any,
    options: dict[str, Any],
) -> Any:
    """See `PreparedDataset.as_ffcv_loader`."""
    if "ffcv" not in dataset.manifest.splits[dataset.split].formats:
        raise DataError(
            f"dataset {dataset.manifest.name} has no .beton files: prepare it with output.formats: [webdataset, ffcv]"
        )
    try:
        from ffcv.loader import Loader, OrderOption
    except ImportError as error:
        raise DataError(f"as_ffcv_loader() needs ffcv ({error}): {_EXTRA}") from None
    size, whole = _size(dataset, image_size)
    file = beton_of(dataset)
    image = _image_operations(dataset, size, whole, train, normalize, device)
    defaults: dict[str, Any] = {
        "num_workers": len(os.sched_getaffinity(0)),
        "order": OrderOption.RANDOM if train else OrderOption.SEQUENTIAL,
        "drop_last": train,
    }
    pipelines = {"image": image, **_target_operations(dataset, size)} | options.pop("pipelines", {})
    return Loader(str(file), batch_size=batch_size, pipelines=pipelines, **(defaults | options))


def _size(dataset: PreparedDataset, given: int | tuple[int, int] | None) -> tuple[tuple[int, int], bool]:
    """Height and width of a batch's images, and whether all images of the split have that size.

    Raises:
        DataError: none is given, and images have several.
    """
    columns = read_columns(dataset.in_format("ffcv"))
    heights, widths = (columns.height.min(), columns.height.max()), (columns.width.min(), columns.width.max())
    # Some may be turned, by which only squares keep their size.
    same = heights[0] == heights[1] and widths[0] == widths[1]
    same = same and (not dataset.manifest.num_turned or heights[0] == widths[0])
    own = (int(heights[0]), int(widths[0]))
    if given is None:
        if not same:
            raise DataError(
                f"image_size: the images of {dataset.manifest.name}/{dataset.split} have {heights[0]} to {heights[1]} "
                f"rows and {widths[0]} to {widths[1]} columns, and FFCV's batches one size: give it, such as "
                "image_size=224"
            )
        return own, True
    size = (given, given) if isinstance(given, int) else (int(given[0]), int(given[1]))
    return size, same and size == own


def _image_operations(
    dataset: PreparedDataset, size: tuple[int, int], whole: bool, train: bool, normalize: bool, device: Any
) -> list[Any]:
    """Decoder, augmentation in classification, then to a tensor [B, 3, H, W] in channels-last memory."""
    from ffcv.fields.rgb_image import (
        CenterCropRGBImageDecoder,
        RandomResizedCropRGBImageDecoder,
        SimpleRGBImageDecoder,
    )
    from ffcv.transforms import NormalizeImage, RandomHorizontalFlip, ToDevice, ToTensor, ToTorchImage

    from convmlp_platform.python_api.datasets.ffcv_targets import WholeImageDecoder

    random = train and dataset.task == "classification"
    if random:
        operations: list[Any] = [RandomResizedCropRGBImageDecoder(size), RandomHorizontalFlip()]
    elif whole:
        operations = [SimpleRGBImageDecoder()]
    elif dataset.task == "classification":
        operations = [CenterCropRGBImageDecoder(size, _EVAL_RATIO)]
    else:
        operations = [WholeImageDecoder(size)]
    mean = np.array(dataset.manifest.mean) * 255
    std = np.array(dataset.manifest.std) * 255
    if device is None:
        norm = [NormalizeImage(mean, std, np.float32)] if normalize else []
        return [*operations, *norm, ToTensor(), ToTorchImage()]
    # Bytes travel, not floats. FFCV's own normalisation on a GPU needs CuPy.
    import torch

    from convmlp_platform.python_api.datasets.ffcv_targets import NormalizeBatch

    after: list[Any] = [NormalizeBatch(dataset.manifest.mean, dataset.manifest.std)] if normalize else []
    return [*operations, ToTensor(), ToDevice(torch.device(device)), ToTorchImage(), *after]


def _target_operations(dataset: PreparedDataset, size: tuple[int, int]) -> dict[str, Any]:
    from ffcv.fields.basics import IntDecoder
    from ffcv.fields.bytes import BytesDecoder
    from ffcv.transforms import Squeeze, ToTensor

    from convmlp_platform.python_api.datasets.ffcv_targets import DecodeAnnotations

    if dataset.task == "classification":
        return {"label": [IntDecoder(), ToTensor(), Squeeze(1)]}
    decode = DecodeAnnotations(dataset.task, dataset.manifest.class_ids, size, masks=dataset.masks)
    return {"label": None, "annotation": [BytesDecoder(), decode]}
