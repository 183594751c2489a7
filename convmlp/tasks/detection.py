"""Object detection and instance segmentation: the detector's losses, and COCO's average precision."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchvision.models.detection.roi_heads import paste_masks_in_image

from convmlp.tasks.coco_metrics import CocoMetrics
from convmlp.tasks.heads.mask_rcnn import MaskRCNN
from convmlp.tasks.heads.pyramid import no_weight_decay
from convmlp.tasks.heads.retinanet import Detected, RetinaNet
from convmlp.tasks.task import Images, Task, TaskOutput, check_num_classes
from convmlp.transforms.object_transforms import unpack_masks

Size = Sequence[int]
"""Height and width, in pixels."""

_SLACK = 1e-3
"""Pixels by which float32 may put a box over the image's edge."""


class DetectionTask(Task):
    """The sum of a detector's losses, as in the papers; in evaluation, what it detects as well.

    Args:
        model: a RetinaNet or Mask R-CNN.
        class_ids: the dataset's category ids by label, as COCO's files have them (default: 0..num_classes - 1).

    Raises:
        ValueError: the model's head has another number of classes.
    """

    def __init__(self, model: RetinaNet | MaskRCNN, class_ids: Sequence[int] | None = None) -> None:
        super().__init__(model)
        self.class_ids = list(range(model.num_classes) if class_ids is None else class_ids)
        check_num_classes(model, len(self.class_ids))
        self.has_masks = isinstance(model, MaskRCNN)
        self.best_metric = "mask_ap" if self.has_masks else "box_ap"

    def forward(self, images: Images, targets: list[dict[str, Any]]) -> TaskOutput:
        """Loss, and detections by image in evaluation (none in training).

        Args:
            images: normalised float32, of any sizes.
            targets: of each image `boxes` [n, 4] float32 left, top, right, bottom in its pixels, `labels` [n] int64,
                `size`, height and width as published, and for Mask R-CNN `masks`: [n, H, W] bool, or bits
                (`bit_masks`) as uint8.

        Returns:
            Detections are `boxes` [k, 4] in published pixels, `scores` [k], best first, `labels` [k], and for Mask
            R-CNN `masks` [k, height, width] bool.

        Raises:
            ValueError: a box has no area or leaves its image, or a label is none of the classes.
        """
        for image, target in zip(images, targets, strict=True):
            self._check(image, target)
        wanted = [self._of_model(*pair) for pair in zip(images, targets, strict=True)]
        losses, detected = self.model(images, wanted)
        loss = torch.stack([value.float() for value in losses.values()]).sum()
        if self.training:
            return loss, []
        sizes = [target["size"] for target in targets]
        return loss, [_as_published(*three) for three in zip(detected, images, sizes, strict=True)]

    @torch.no_grad()
    def detect(self, images: Images, sizes: Sequence[Size]) -> list[Detected]:
        """Returns the detections of evaluation's `forward` for images without targets, by their published heights and
        widths."""
        _, detected = self.model(images)
        return [_as_published(*three) for three in zip(detected, images, sizes, strict=True)]

    def metrics(self) -> CocoMetrics:
        """Box AP, and mask AP where there are masks; targets need the published `objects`."""
        return CocoMetrics(self.class_ids, masks=self.has_masks)

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """The backbone and its pyramid; what follows has data-dependent shapes."""
        self.model.backbone.compile(*args, **kwargs)  # type: ignore[union-attr]

    def no_weight_decay(self) -> set[str]:
        return no_weight_decay(self.model.backbone.body, "model.backbone.body")  # type: ignore[arg-type,union-attr]

    def _check(self, image: Tensor, target: dict[str, Any]) -> None:
        boxes, labels = target["boxes"], target["labels"]
        if not len(boxes):
            return
        height, width = image.shape[-2:]
        left, top, right, bottom = boxes.unbind(1)
        inside = (
            (left >= -_SLACK) & (top >= -_SLACK) & (right <= width + _SLACK) & (bottom <= height + _SLACK)
        )
        known = (labels >= 0) & (labels < len(self.class_ids))
        right_ones = inside & (right > left) & (bottom > top) & known
        if bool(right_ones.all()):  # the one look at the device
            return
        first = int((~right_ones).nonzero()[0])
        raise ValueError(
            f"image {target.get('image_id', '?')}, object {first}: box {[round(v, 2) for v in boxes[first].tolist()]} "
            f"of class {int(labels[first])}: boxes must have an area within the image (here {width} x {height} "
            f"pixels), classes must be 0..{len(self.class_ids) - 1}"
        )

    def _of_model(self, image: Tensor, target: dict[str, Any]) -> dict[str, Tensor]:
        found = {"boxes": target["boxes"], "labels": target["labels"]}
        if self.has_masks:
            masks = target["masks"]
            bits = masks.dtype == torch.uint8
            found["masks"] = unpack_masks(masks, image.shape[-1]) if bits else masks.to(torch.uint8)
        return found


def _as_published(found: Detected, image: Tensor, published: Size) -> Detected:
    """Boxes and masks at the height and width that the image was published in."""
    size = (int(published[0]), int(published[1]))
    height, width = size[0] / image.shape[-2], size[1] / image.shape[-1]
    boxes = found["boxes"] * found["boxes"].new_tensor([width, height, width, height])
    moved = found | {"boxes": boxes}
    if "masks" in found:
        moved["masks"] = paste_masks_in_image(found["masks"], boxes, size)[:, 0] > 0.5
    return moved
