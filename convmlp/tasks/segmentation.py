"""Semantic segmentation: cross entropy over labelled pixels, and the mean intersection over union."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassJaccardIndex

from convmlp.tasks.heads.pyramid import no_weight_decay, pad_images
from convmlp.tasks.heads.semantic_fpn import SemanticFPN
from convmlp.tasks.task import Images, Task, TaskOutput, check_num_classes
from convmlp.transforms.joint_view import IGNORED


class SegmentationTask(Task):
    """Pixel-wise cross entropy at the label maps' own size, whatever the images' is; the mean over labelled pixels.

    Args:
        model: [B, 3, H, W] → logits [B, num_classes, H', W'].
        num_classes: of the dataset.

    Raises:
        ValueError: the model's head has another number of classes.
    """

    best_metric = "miou"

    def __init__(self, model: SemanticFPN, num_classes: int) -> None:
        super().__init__(model)
        check_num_classes(model, num_classes)
        self.num_classes = num_classes

    def forward(self, images: Images, targets: Tensor | list[Tensor]) -> TaskOutput:
        """Loss, and in evaluation the predicted label maps, uint8 [H, W] each, of the targets' sizes.

        Args:
            images: normalised float32; of several sizes, they are padded to one.
            targets: label maps uint8, `IGNORED` where there is no label: [B, H, W], or B of them [H, W].

        Raises:
            ValueError: a label is none of the classes.
        """
        logits, maps = self._logits(images), list(targets)
        if isinstance(logits, Tensor) and isinstance(targets, Tensor):
            logits, maps = [logits], [targets]
        else:
            logits, maps = [one[None] for one in logits], [one[None] for one in targets]
        losses, counts, predicted = [], [], []
        for one, stored in zip(logits, maps, strict=True):
            full, labels = F.interpolate(one, size=stored.shape[-2:], mode="bilinear"), self._checked(stored)
            losses.append(F.cross_entropy(full, labels, ignore_index=IGNORED, reduction="sum"))
            counts.append((labels != IGNORED).sum())
            predicted += [] if self.training else list(full.argmax(1).to(torch.uint8))
        return torch.stack(losses).sum() / torch.stack(counts).sum().clamp(min=1), predicted

    @torch.no_grad()
    def label_maps(self, images: Images, sizes: Sequence[Sequence[int]]) -> list[Tensor]:
        """Returns the label maps of evaluation's `forward`, uint8 [H, W], for images without targets, at these heights
        and widths."""
        resized = (
            F.interpolate(one[None], size=tuple(size), mode="bilinear")
            for one, size in zip(self._logits(images), sizes, strict=True)
        )
        return [one.argmax(1)[0].to(torch.uint8) for one in resized]

    def metrics(self) -> MetricCollection:
        """`miou`: over the pixels of all images, the mean over classes that occur; `pixel_accuracy`."""
        return _PixelMetrics(
            {
                "miou": MulticlassJaccardIndex(
                    self.num_classes, average="macro", ignore_index=IGNORED, validate_args=False
                ),
                "pixel_accuracy": MulticlassAccuracy(
                    self.num_classes, average="micro", ignore_index=IGNORED, validate_args=False
                ),
            },
            compute_groups=False,
        )

    def no_weight_decay(self) -> set[str]:
        return no_weight_decay(self.model.backbone.body, "model.backbone.body")  # type: ignore[arg-type,union-attr]

    def _logits(self, images: Images) -> Tensor | list[Tensor]:
        """[num_classes, H', W'] float32 of each image, without what was added to it."""
        if isinstance(images, Tensor):
            return self.model(images).float()
        padded = pad_images(images)
        height, width = padded.tensors.shape[-2:]
        logits = self.model(padded.tensors).float()
        full = F.interpolate(logits, size=(height, width), mode="bilinear")
        return [one[:, :high, :wide] for one, (high, wide) in zip(full, padded.image_sizes, strict=True)]

    def _checked(self, labels: Tensor) -> Tensor:
        """As int64; on the CPU, where it costs nothing, unknown ones are told by name."""
        labels = labels.long()
        if labels.device.type == "cpu":
            wrong = (labels >= self.num_classes) & (labels != IGNORED) | (labels < 0)
            if bool(wrong.any()):
                raise ValueError(
                    f"label {int(labels[wrong][0])} in a label map: the model has classes 0..{self.num_classes - 1}, "
                    f"{IGNORED} is ignored"
                )
        return labels


class _PixelMetrics(MetricCollection):
    """Takes label maps of different sizes."""

    def update(self, outputs: list[Tensor], targets: Tensor | list[Tensor]) -> None:
        predicted = torch.cat([one.flatten() for one in outputs]).long()
        super().update(predicted, torch.cat([one.flatten() for one in targets]).long())
