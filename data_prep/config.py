"""The configuration of a data-prep job: strict, frozen sections that a job schema can embed as they are.

A source has a section of its own for each kind, told apart by `kind`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

_SPLIT_NAME = r"^[A-Za-z0-9][A-Za-z0-9_-]*$"
SplitName = Annotated[str, Field(pattern=_SPLIT_NAME)]


ExifOrientation = Literal["apply", "ignore"]
"""Whether images are turned upright by the EXIF orientation of their files, or taken as they are stored."""


class StrictSection(BaseModel):
    """Base of all sections of data preparation: immutable, unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class _PublishedPhotos(StrictSection):
    exif_orientation: ExifOrientation = "ignore"
    """Whether images are turned upright by the EXIF orientation of their files, which the published results of this
    dataset ignore."""


class _Photos(StrictSection):
    exif_orientation: ExifOrientation = "apply"
    """Whether images are turned upright by the EXIF orientation of their files, as viewers and labelling tools show
    them, or taken as they are stored. Boxes and masks are of the same view."""


class _Linked(StrictSection):
    follow_links: bool = False
    """Whether links of files and folders may lead out of `path`: for a subset that was made of links into another
    folder. Without it such a link is an error, so that nothing is taken from elsewhere unasked."""


class DigitsSource(StrictSection):
    """scikit-learn's 1,797 handwritten digits of 8×8 pixels; a stratified fifth becomes `val`."""

    kind: Literal["digits"] = "digits"


class ImageFolderSource(_Photos, _Linked):
    """Folders of classes: `<path>/<split folder>/<class>/<file>`."""

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


class ImageNetSource(_PublishedPhotos, _Linked):
    """ImageNet-1k (ILSVRC2012) as published: the tars ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar, still
    packed, with the devkit's ground truth; Kaggle's folders; or `{train,val}/<wnid>/*.JPEG`. All of them give the same
    dataset: labels follow the sorted wnids, classes have WordNet's names, keys are the files' stems."""

    kind: Literal["imagenet"] = "imagenet"
    path: Path
    layout: Literal["auto", "tars", "kaggle", "folders"] = "auto"
    check_md5: bool = False
    """Compare the published tars with their published MD5 sums: reads all of their 144 GB once more."""


class _DownloadableSource(StrictSection):
    path: Path
    download: bool = False
    """Fetch the published files into `path` where they are missing, and check their published MD5 sums. Archives are
    unpacked next to themselves, wherever they came from."""
    check_md5: bool = True
    """Compare the published files with their published MD5 sums."""


class Cifar10Source(_DownloadableSource):
    """CIFAR-10: the published `cifar-10-batches-py` folder or `cifar-10-python.tar.gz`, or a folder
    `{train,test}/<class>/*.jpg|png`. Its test images become the split `val`."""

    kind: Literal["cifar10"] = "cifar10"


class Cifar100Source(_DownloadableSource):
    """CIFAR-100: the published `cifar-100-python` folder or tar.gz, or a folder `{train,test}/<class>/*.jpg|png`.
    Its test images become the split `val`."""

    kind: Literal["cifar100"] = "cifar100"
    labels: Literal["fine", "coarse"] = "fine"
    """The 100 classes or their 20 superclasses."""


class Flowers102Source(_DownloadableSource, _PublishedPhotos):
    """Oxford Flowers-102 as published: 102flowers.tgz (or its folder jpg/), imagelabels.mat and setid.mat, whose
    three splits become `train` (1,020), `val` (1,020) and `test` (6,149)."""

    kind: Literal["flowers102"] = "flowers102"


class Stl10Source(_DownloadableSource):
    """STL-10's binary files (stl10_binary.tar.gz or its folder): 5,000 `train` and 8,000 `val` images of 96×96."""

    kind: Literal["stl10"] = "stl10"


class CocoSource(_Photos, _Linked):
    """COCO 2017 detection: `{train,val}2017/*.jpg` and `annotations/instances_{train,val}2017.json`."""

    kind: Literal["coco"] = "coco"
    path: Path
    splits: dict[SplitName, str] = {"train": "train2017", "val": "val2017"}
    """Split name → image folder; its annotations are annotations/instances_<image folder>.json."""


class Ade20kSource(_Photos, _Linked):
    """ADE20K SceneParse150 (or any set in its layout): `{images,annotations}/{training,validation}/*` and
    objectInfo150.txt. Masks are 8-bit PNG, 0 = ignore, 1..n = classes in the order of the object file."""

    kind: Literal["ade20k"] = "ade20k"
    path: Path
    splits: dict[SplitName, str] = {"train": "training", "val": "validation"}
    """Split name → folder under images/ and annotations/."""
    class_names: Path | None = None
    """The table of classes, looked up from `path` when relative; by default the one objectInfo*.txt there."""


class WebDatasetSource(_Photos):
    """Existing WebDataset shards: tars whose members share a name up to its first dot, such as `0001.jpg` and
    `0001.cls`, in any order. What lacks its image or label is rejected, within the job's budget."""

    kind: Literal["webdataset"] = "webdataset"
    path: Path
    splits: dict[SplitName, str] = {"train": "*train*.tar", "val": "*val*.tar"}
    """Split name → glob of tars under `path`; braces `{000..146}` are understood, as webdataset does."""
    label_field: str = "cls"
    """The member that holds the class: a number as text, or one of the class names; or `json:<key>` for a key of the
    member `json`."""
    class_names: Path | None = None
    """File of one class name a line, looked up from `path` when relative; by default numbers are names."""

    @field_validator("label_field")
    @classmethod
    def _a_member(cls, value: str) -> str:
        if not value or value == "json:":
            raise ValueError("label_field must name a member (cls) or a key of the json member (json:label)")
        return value


ACQUISITION_FIELDS = frozenset({"download", "check_md5", "follow_links"})
"""Fields of sources that say how their files are come by, not what is in them: a dataset that was prepared with a
download is the one that a job without it would make."""


def exif_orientation(source: StrictSection) -> ExifOrientation:
    """Returns whether the EXIF orientation of a source's images is applied or ignored; images that are no photos have
    none to apply."""
    return source.exif_orientation if isinstance(source, (_Photos, _PublishedPhotos)) else "ignore"


SourceConfig = Annotated[
    DigitsSource
    | ImageFolderSource
    | ImageNetSource
    | Cifar10Source
    | Cifar100Source
    | Flowers102Source
    | Stl10Source
    | CocoSource
    | Ade20kSource
    | WebDatasetSource,
    Field(discriminator="kind"),
]

_KINDS_OF_PHOTOS = {
    kind.model_fields["kind"].default
    for kind in (*_Photos.__subclasses__(), *_PublishedPhotos.__subclasses__())
}


def recorded_source(source: dict[str, Any]) -> dict[str, Any]:
    """The source section of a manifest; what releases before `exif_orientation` recorded was taken as stored."""
    return {"exif_orientation": "ignore"} | source if source.get("kind") in _KINDS_OF_PHOTOS else source


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
