"""The task that a model is trained to do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field, PositiveInt, model_validator

from convmlp_platform.config.sections.model_options import MAX_CHANNELS, MAX_SIDE
from convmlp_platform.config.sections.section import Section

DATASETS = {
    "classification": "classification",
    "retinanet": "detection",
    "mask_rcnn": "detection",
    "semantic_fpn": "segmentation",
}
"""Task → the task that its dataset must be prepared for."""

BEST_METRICS = {
    "classification": "top1",
    "retinanet": "box_ap",
    "mask_rcnn": "mask_ap",
    "semantic_fpn": "miou",
}
"""Task → the metric by which its models are compared (the tasks' own `best_metric`)."""

# What has masks has boxes too, and is judged by its masks.
_JUDGED_BY = ("top1", "mask_ap", "box_ap", "miou")

Side = Annotated[int, Field(ge=32, le=MAX_SIDE)]


class TaskSection(Section):
    """Task and head. `data.image_size` is the image's side in classification, its shorter side in detection, the crop's
    side in segmentation (and the whole image's shorter side in evaluation)."""

    name: Literal["classification", "retinanet", "mask_rcnn", "semantic_fpn"] = "classification"
    pyramid_channels: PositiveInt = Field(256, le=MAX_CHANNELS, description="of the feature pyramid")
    anchor_scale: float | None = Field(
        None,
        gt=0.0,
        le=1e3,
        description="side of a level's smallest anchor, in strides; default: as published (retinanet 4, mask_rcnn 8)",
    )
    max_side: Side | None = Field(
        None,
        description="limit of an image's longer side; default: image_size x 1333 / 800, of segmentation x 4",
    )
    short_sides: tuple[Side, ...] = Field(
        (), description="detection: training draws the shorter side of these; default: data.image_size"
    )
    scale: tuple[float, float] = Field(
        (0.5, 2.0), description="segmentation: range of the factor an image is resized by before its crop"
    )
    max_class_share: float = Field(
        0.75, gt=0.0, le=1.0, description="segmentation: a crop with more of one class is drawn again"
    )
    photometric: bool = Field(True, description="segmentation: distort colours in training")

    @property
    def dataset(self) -> str:
        """The task that the dataset must be prepared for."""
        return DATASETS[self.name]

    @model_validator(mode="after")
    def _scale_is_a_range(self) -> TaskSection:
        if not 0 < self.scale[0] <= self.scale[1]:
            raise ValueError(f"scale (={list(self.scale)}) must be a range of positive factors")
        return self


def best_score(metrics: Mapping[str, float]) -> tuple[str, float] | None:
    """Of an evaluation's `eval/...`, the name (without that) and value of the one by which models are compared."""
    found = [(name, metrics[f"eval/{name}"]) for name in _JUDGED_BY if f"eval/{name}" in metrics]
    return found[0] if found else None
