"""The interface of every source of images: a cheap, deterministic listing and random access to one sample."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from data_prep.dataset.manifest import Task


class SampleRef(NamedTuple):
    """One sample of a source, small enough to list by the million.

    Args:
        key: its name, unique in its split; ASCII without dots, so that tar readers split names rightly.
        label: class number; -1 where the task has no label for the whole image.
        location: what the source needs to read it (a path under its root, or a batch and position).
    """

    key: str
    label: int
    location: str


@dataclass(frozen=True)
class Listing:
    """All samples of a source: class names by label, and the samples of every split sorted by key."""

    classes: list[str]
    splits: Mapping[str, Sequence[SampleRef]]
    task: Task = "classification"
    class_ids: list[int] | None = None
    """The publisher's numbers of the classes, by label, where they are not 0..n-1 (COCO's have gaps)."""
    documents: tuple[Path, ...] = ()
    """Files of annotations whose content is in no sample's location."""
    notes: tuple[str, ...] = ()
    """Notes that a person would want, a line each: files that are no samples, ..."""


class Source(Protocol):
    """A collection of labelled images. It is rebuilt in every worker from its configuration."""

    def listing(self) -> Listing:
        """List all samples, without decoding images; the same files give the same listing.

        Raises:
            DataPrepError: the source is missing, empty or not laid out as configured.
        """
        ...

    def read(self, ref: SampleRef) -> bytes | NDArray[np.uint8]:
        """One sample: its original image file, or pixels of shape (height, width[, 3]).

        Raises:
            OSError: it can't be read.
        """
        ...


@runtime_checkable
class FileSource(Source, Protocol):
    """A source whose samples lie in files of people's own, which may change under the same name."""

    def files(self, ref: SampleRef) -> Sequence[str]:
        """The files that a sample is read from; the same sequence for samples of one file that follow each other."""
        ...


@runtime_checkable
class AnnotatedSource(Source, Protocol):
    """A source of images with boxes or masks (its listing's task is not classification)."""

    def annotation(self, ref: SampleRef) -> bytes:
        """The sample's annotation: for detection JSON as `data_prep.annotations.annotations` makes it, for segmentation
        the mask's PNG file as published.

        Raises:
            OSError: it can't be read.
        """
        ...
