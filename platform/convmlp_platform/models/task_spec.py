"""The description of the task of a bundle's model.

It has all facts that are needed to rebuild the network and to read its answers.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from convmlp_platform.config.sections.model_options import MAX_CHANNELS, MAX_IMAGE_SIZE, MAX_SIDE
from convmlp_platform.config.sections.task_section import BEST_METRICS, DATASETS


class _Spec(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    name: str

    @property
    def dataset(self) -> str:
        """The kind of task: classification, detection or segmentation."""
        return DATASETS[self.name]

    @property
    def best_metric(self) -> str:
        """By what models of this task are compared: `top1`, `box_ap`, `mask_ap` or `miou`."""
        return BEST_METRICS[self.name]


class PermutationSpec(BaseModel):
    """The order of pixels that the model was trained with (`convmlp.transforms.pixel_order.pixel_order`)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["patches", "pixels"]
    patch_size: int = Field(gt=0, le=MAX_IMAGE_SIZE, description="side, in pixels")
    seed: int = Field(ge=0, lt=1 << 63)


class ClassificationSpec(_Spec):
    """Class names with probabilities."""

    name: Literal["classification"] = "classification"
    permutation: PermutationSpec | None = Field(
        None, description="what is done to pixels before the model sees them"
    )


class _PyramidSpec(_Spec):
    pyramid_channels: int = Field(gt=0, le=MAX_CHANNELS, description="of the feature pyramid")
    max_side: int = Field(ge=32, le=MAX_SIDE, description="limit of an image's longer side, in pixels")


class DetectionSpec(_PyramidSpec):
    """Boxes, and with Mask R-CNN masks."""

    name: Literal["retinanet", "mask_rcnn"]
    anchor_scale: float = Field(gt=0, le=1e3, description="side of a level's smallest anchor, in strides")
    class_ids: tuple[int, ...] = Field(description="the dataset's category ids, in the order of `classes`")

    @property
    def has_masks(self) -> bool:
        """Whether the model finds masks, too."""
        return self.name == "mask_rcnn"


class SegmentationSpec(_PyramidSpec):
    """A class for each pixel."""

    name: Literal["semantic_fpn"] = "semantic_fpn"


TaskSpec = Annotated[ClassificationSpec | DetectionSpec | SegmentationSpec, Field(discriminator="name")]
