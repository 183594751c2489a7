"""Sources of images; `open_source` builds the one that a configuration names."""

from __future__ import annotations

from importlib import import_module
from typing import cast

from data_prep.source_config import SourceConfig
from data_prep.sources.base import AnnotatedSource, FileSource, Listing, SampleRef, Source

__all__ = ["AnnotatedSource", "FileSource", "Listing", "SampleRef", "Source", "open_source"]

# A source's module is imported when a job names it: scipy and scikit-learn take a second that others don't need.
_OPENERS = {
    "digits": "digits",
    "image_folder": "image_folder",
    "imagenet": "imagenet",
    "cifar10": "cifar",
    "cifar100": "cifar",
    "flowers102": "flowers102",
    "stl10": "stl10",
    "coco": "coco",
    "ade20k": "ade20k",
    "webdataset": "webdataset",
}


def open_source(config: SourceConfig) -> Source:
    """The source of a configuration.

    Raises:
        DataPrepError: its folder or file does not exist.
    """
    module = import_module(f"data_prep.sources.{_OPENERS[config.kind]}")
    return cast(Source, module.open_source(config))
