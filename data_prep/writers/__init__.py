"""Writes shards: a writer for each format.

Files in reading order:

    writer             The interface of a shard writer
    webdataset_writer  Plain tars in WebDataset's convention
    ffcv_writer        `.beton` files, version 2, with the stock fields `image` (RGBImageField) and `label`

May import: data_prep.dataset, data_prep.errors, data_prep.images, data_prep.storage.
"""

from data_prep.writers.ffcv_writer import FfcvWriter
from data_prep.writers.webdataset_writer import WebDatasetWriter
from data_prep.writers.writer import ShardWriter, WrittenPayload

__all__ = ["WRITERS", "ShardWriter", "WrittenPayload"]

WRITERS: dict[str, type[ShardWriter]] = {"webdataset": WebDatasetWriter, "ffcv": FfcvWriter}
