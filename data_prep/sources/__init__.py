"""Reads source images; `open_source` opens the one that a configuration names.

Files in reading order:

    source             The interface of every source of images
    digits             scikit-learn's handwritten digits
    cifar              CIFAR-10 and CIFAR-100, as published
    image_folder       Folders of image files in ImageNet's layout
    webdataset_shards  Existing WebDataset shards
    flowers102         Oxford Flowers-102, as published
    stl10              STL-10, as published
    ade20k             ADE20K SceneParse150, and any set in its layout
    coco/              COCO: images beside a JSON document of their annotations
    imagenet/          ImageNet as folders or as published archives
    archives/          Reads archives without unpacking them
    parsing/           Reads the file formats of published datasets; nothing foreign is run

May import: data_prep.annotations, data_prep.config, data_prep.console, data_prep.dataset, data_prep.errors,
data_prep.images, data_prep.storage.
"""

from __future__ import annotations

from importlib import import_module
from typing import cast

from data_prep.config import SourceConfig
from data_prep.sources.source import AnnotatedSource, FileSource, Listing, SampleRef, Source

__all__ = ["AnnotatedSource", "FileSource", "Listing", "SampleRef", "Source", "open_source"]

# A source's module is imported when a job names it: scipy and scikit-learn take a second that others don't need.
_OPENERS = {
    "digits": "digits",
    "image_folder": "image_folder",
    "imagenet": "imagenet.imagenet",
    "cifar10": "cifar",
    "cifar100": "cifar",
    "flowers102": "flowers102",
    "stl10": "stl10",
    "coco": "coco.coco",
    "ade20k": "ade20k",
    "webdataset": "webdataset_shards",
}


def open_source(config: SourceConfig) -> Source:
    """The source of a configuration.

    Raises:
        DataPrepError: its folder or file does not exist.
    """
    module = import_module(f"data_prep.sources.{_OPENERS[config.kind]}")
    return cast(Source, module.open_source(config))
