"""What a data-prep job says: strict, frozen sections that a job schema can embed as they are."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

FormatName = Literal["webdataset", "ffcv"]
_SPLIT_NAME = r"^[A-Za-z0-9][A-Za-z0-9_-]*$"
SplitName = Annotated[str, Field(pattern=_SPLIT_NAME)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class DigitsSource(_Section):
    """scikit-learn's 1,797 handwritten digits of 8×8 pixels; a stratified fifth becomes `val`."""

    kind: Literal["digits"] = "digits"


class ImageFolderSource(_Section):
    """ImageNet's layout: `<path>/<split folder>/<class>/<file>`."""

    kind: Literal["image_folder"] = "image_folder"
    path: Path
    splits: dict[SplitName, str] | None = None
    """Split name → its folder under `path`; by default train → train and val → val."""
    val_fraction: float | None = Field(default=None, ge=0, lt=1)
    """For `<path>/<class>/<file>` without split folders: the share of samples, chosen by a hash of
    their key, that becomes `val`."""
    class_names: Path | None = None
    """File of `<class folder> <readable name>` lines (ImageNet's LOC_synset_mapping.txt), looked up
    from `path` when relative."""

    @model_validator(mode="after")
    def _one_layout(self) -> ImageFolderSource:
        if self.splits is not None and self.val_fraction is not None:
            raise ValueError("give either splits (folders per split) or val_fraction (one folder), not both")
        if self.splits is not None and not self.splits:
            raise ValueError("splits must name at least one split")
        return self


class Cifar10Source(_Section):
    """CIFAR-10: the published `cifar-10-batches-py` folder or `cifar-10-python.tar.gz`, or a folder
    `{train,test}/<class>/*.jpg|png`. Its test images become the split `val`."""

    kind: Literal["cifar10"] = "cifar10"
    path: Path
    check_md5: bool = True
    """Compare the published files with their published MD5 sums."""


SourceConfig = Annotated[DigitsSource | ImageFolderSource | Cifar10Source, Field(discriminator="kind")]


class ResizeConfig(_Section):
    """Shrink images whose short side is longer than `short_side` and store them as JPEG."""

    short_side: int = Field(ge=1, le=65535)
    quality: int = Field(default=90, ge=1, le=100)


class OutputConfig(_Section):
    """Where the dataset goes and in which form."""

    path: Path
    """The dataset's folder; every worker must see it under this path."""
    formats: tuple[FormatName, ...] = ("webdataset", "ffcv")
    samples_per_shard: int = Field(default=4096, ge=1)
    """4,096 ImageNet images are about 450 MB: big enough for sequential reads, small enough to redo."""
    resize: ResizeConfig | None = None
    overwrite: bool = False
    """Replace a finished dataset that was made from another configuration."""

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


class PrepareConfig(_Section):
    """One data-prep job."""

    source: SourceConfig
    output: OutputConfig
    shuffle_seed: int = Field(default=0, ge=0, lt=2**63)
    """Samples lie in a pseudo-random order of this seed: sources are usually sorted by class."""
    max_rejected: float = Field(default=0.0, ge=0, le=1)
    """Share of samples that may be unreadable before the job fails."""
    validate_images: bool = True
    """Decode every image completely once; otherwise only headers are read."""
    statistics_images: int = Field(default=10_000, ge=1)
    """Mean and standard deviation come from the first so many samples of the shuffled train split."""
