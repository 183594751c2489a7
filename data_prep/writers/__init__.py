"""Shard formats by name."""

from data_prep.writers.base import Payload, ShardWriter
from data_prep.writers.ffcv import FfcvWriter
from data_prep.writers.webdataset import WebDatasetWriter

__all__ = ["WRITERS", "Payload", "ShardWriter"]

WRITERS: dict[str, type[ShardWriter]] = {"webdataset": WebDatasetWriter, "ffcv": FfcvWriter}
