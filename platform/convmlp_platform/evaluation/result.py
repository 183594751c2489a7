"""The result of an evaluation: `EVALUATIONS/NAME/result.json`, its schema, and its reader."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from convmlp_platform.errors import DataError
from data_prep.storage.json_files import DamagedJson, read_json

RESULT_NAME, TABLE_NAME = "result.json", "table.md"


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class ModelEntry(_Entry):
    """The evaluated model, named so that it can be found again."""

    given: str = Field(description="as the job names it: models:/NAME@ALIAS, a folder, a file")
    pinned: str = Field(description="what exactly it was then: models:/NAME/3, a checkpoint, a file")
    kind: str = Field(description="registry, run, checkpoint, bundle or file")
    weights_sha256: str | None = None
    name: str = Field(description="of the network, e.g. convmlp_s")
    parameters: int = Field(ge=0)
    macs: int | None = Field(
        description="multiply-accumulates of one image of macs_size; see convmlp.model_cost"
    )
    macs_size: tuple[int, int] = Field(description="height and width in pixels")
    image_size: int = Field(description="pixels: side, or the shorter side in detection and segmentation")
    num_classes: int
    lineage: dict[str, str] = Field(default_factory=dict, description="where its weights come from, as tags")


class DatasetEntry(_Entry):
    """The images of the evaluation: the dataset and its split."""

    name: str
    digest: str
    split: str
    images: int
    format: str
    path: str


class ClassScore(_Entry):
    """One class."""

    name: str
    count: int = Field(description="images, objects or labelled pixels that are of this class")
    scores: dict[str, float | None] = Field(
        description="per cent: accuracy; box_ap and mask_ap; iou and accuracy. None: no truth of this class"
    )


class ThroughputRow(_Entry):
    """Forward passes of one batch size, images on the device already."""

    batch_size: int
    batches: int = Field(description="timed, after the warm-up")
    images_per_second: float = Field(description="batch_size / median_seconds")
    median_seconds: float = Field(description="of one batch")
    low_seconds: float = Field(description="a quarter of the batches took less")
    high_seconds: float = Field(description="a quarter of the batches took more")


class Throughput(_Entry):
    """How fast the model is on `hardware`."""

    precision: str
    image_size: tuple[int, int] = Field(description="height and width of the largest image of a batch")
    rows: list[ThroughputRow]


class Permuted(_Entry):
    """Metrics of the model on images with their pixels in another order; it was not trained on them."""

    kind: Literal["patches", "pixels"]
    metrics: dict[str, float] = Field(description="per cent")


class Permutation(_Entry):
    """The Mixer paper's orders of pixels, shown to this model."""

    patch_size: int
    seed: int
    rows: list[Permuted]


class Hardware(_Entry):
    """The hardware that computed the result."""

    device: Literal["cpu", "cuda"]
    name: str
    threads: int
    host: str


class EvaluationResult(_Entry):
    """All of it. Metrics are per cent, except `loss`."""

    schema_version: Literal[1] = 1
    name: str
    task: str
    model: ModelEntry
    dataset: DatasetEntry
    metrics: dict[str, float]
    per_class: list[ClassScore] = Field(default_factory=list)
    throughput: Throughput | None = None
    permutation: Permutation | None = None
    settings: dict[str, Any] = Field(description="evaluate.* of the job, and how images were prepared")
    hardware: Hardware
    seconds: float = Field(description="for reading and evaluating all images once")
    date: str = Field(description="ISO 8601, UTC")
    git_commit: str | None = None
    versions: dict[str, str] = Field(default_factory=dict, description="of the libraries")
    artifacts: list[str] = Field(default_factory=list, description="files beside this one")


def read_result(folder: Path) -> EvaluationResult:
    """The result in a folder that an evaluation wrote.

    Raises:
        DataError: there is none, or it can't be read.
    """
    path = folder / RESULT_NAME
    try:
        return read_json(path, EvaluationResult)
    except FileNotFoundError:
        raise DataError(f"{folder}: no evaluation's result is here (no {RESULT_NAME})") from None
    except (OSError, DamagedJson) as error:
        raise DataError(f"{path}: can't be read: {error}") from error


def is_result(folder: Path) -> bool:
    """Whether an evaluation's result lies there."""
    return (folder / RESULT_NAME).is_file()
