"""The configuration of a data-prep job: strict, frozen sections that a job schema can embed as they are."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator

from data_prep.source_config import SourceConfig, SplitName, StrictSection

FormatName = Literal["webdataset", "ffcv"]


class ResizeConfig(StrictSection):
    """Shrink images whose short side is longer than `short_side` and store them as JPEG."""

    short_side: int = Field(ge=1, le=65535)
    quality: int = Field(default=90, ge=1, le=100)


class OutputConfig(StrictSection):
    """The place and the form of the dataset."""

    path: Path
    """The dataset's folder; every worker must see it under this path."""
    formats: tuple[FormatName, ...] = ("webdataset", "ffcv")
    samples_per_shard: int = Field(default=4096, ge=1)
    """4,096 ImageNet images are about 450 MB: big enough for sequential reads, small enough to redo."""
    resize: ResizeConfig | None = None
    overwrite: bool = False
    """Prepare anew and replace a finished dataset, whatever it was made from."""

    @field_validator("formats")
    @classmethod
    def _some_format_once(cls, value: tuple[FormatName, ...]) -> tuple[FormatName, ...]:
        if not value or len(set(value)) != len(value):
            raise ValueError("formats must name webdataset, ffcv or both, each once")
        return value

    @field_validator("path")
    @classmethod
    def _has_a_name(cls, value: Path) -> Path:
        if not value.name:
            raise ValueError(f"{str(value)!r} must name the dataset's own folder")
        return value


class PrepareConfig(StrictSection):
    """One data-prep job."""

    source: SourceConfig
    output: OutputConfig
    shuffle_seed: int = Field(default=0, ge=0, lt=2**63)
    """Samples lie in a pseudo-random order of this seed: sources are usually sorted by class."""
    keep: dict[SplitName, Annotated[int, Field(ge=1)] | Annotated[tuple[str, ...], Field(min_length=1)]] = (
        Field(default_factory=dict)
    )
    """Split → how many of its samples to take (the first by key), or the keys of those; all of a split not named."""
    max_rejected: float = Field(default=0.0, ge=0, le=1)
    """Share of samples that may be unreadable before the job fails."""
    max_unusable_objects: float = Field(default=0.01, ge=0, le=1)
    """Detection: share of annotated objects that training may have to leave out (a box without area or more than a
    pixel outside its image) before the job fails."""
    validate_images: Literal["decode", "structure", "headers"] = "decode"
    """decode: every image once, completely; structure: walk through a JPEG's segments to its end, which finds
    truncated files at a hundredth of the cost; headers: format and size only."""
    statistics_images: int = Field(default=1_000, ge=1)
    """Mean and standard deviation come from so many samples, evenly from the shuffled train split. A thousand
    ImageNet images give the mean within 0.0044 (one sigma, on the 0..1 scale; images differ by 0.14), 10,000
    within 0.0014 for ten times the decoding."""
