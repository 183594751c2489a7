"""Where images come from; `open_source` builds the one a configuration names."""

from __future__ import annotations

from data_prep.config import Cifar10Source, DigitsSource, ImageFolderSource, SourceConfig
from data_prep.sources.base import Listing, SampleRef, Source
from data_prep.sources.cifar10 import open_cifar10
from data_prep.sources.digits import Digits
from data_prep.sources.image_folder import ImageFolder

__all__ = ["Listing", "SampleRef", "Source", "open_source"]


def open_source(config: SourceConfig) -> Source:
    """The source of a configuration.

    Raises:
        DataPrepError: its folder or file does not exist.
    """
    match config:
        case DigitsSource():
            return Digits()
        case ImageFolderSource():
            return ImageFolder(
                config.path,
                splits=config.splits,
                val_fraction=config.val_fraction,
                class_names=config.class_names,
            )
        case Cifar10Source():
            return open_cifar10(config.path, check_md5=config.check_md5)
