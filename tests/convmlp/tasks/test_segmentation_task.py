"""Semantic segmentation: loss over labelled pixels, any size, mIoU of all images together."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from shapes import label_map, pictures
from torch import Tensor

from convmlp.tasks.heads import create_dense_model
from convmlp.tasks.segmentation import SegmentationTask


def task(num_classes: int = 4) -> SegmentationTask:
    torch.manual_seed(0)
    return SegmentationTask(
        create_dense_model("semantic_fpn", "convmlp_tiny", num_classes, pyramid_channels=16), num_classes
    )


def batch() -> tuple[Tensor, Tensor]:
    images, targets = pictures(2, 4)
    return torch.stack(images), torch.stack([label_map(target) for target in targets])


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("convmlp_s", 12_759_158), ("convmlp_m", 21_146_742), ("convmlp_l", 46_331_046)],
)
def test_parameters_are_the_published_ones(name: str, parameters: int) -> None:
    with torch.device("meta"):
        model = create_dense_model("semantic_fpn", name, 150)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters


def test_a_few_steps_reduce_the_loss_and_every_parameter_takes_part() -> None:
    images, labels = batch()
    segmenter = task()
    optimizer = torch.optim.AdamW(segmenter.parameters(), lr=2e-3)
    losses = []
    for step in range(12):
        torch.manual_seed(step)
        loss, outputs = segmenter(images, labels)
        assert outputs == []
        loss.backward()
        assert all(parameter.grad is not None for parameter in segmenter.parameters())
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.6 * losses[0]


def test_ignored_pixels_don_t_count() -> None:
    images, labels = batch()
    segmenter = task().eval()
    loss, predicted = segmenter(images, labels)
    logits = F.interpolate(segmenter.model(images), size=labels.shape[-2:], mode="bilinear")
    torch.testing.assert_close(loss, F.cross_entropy(logits, labels.long(), ignore_index=255))
    assert torch.equal(torch.stack(predicted), logits.argmax(1).to(torch.uint8))
    nothing, _ = segmenter(images, torch.full_like(labels, 255))
    assert float(nothing) == 0.0


@pytest.mark.parametrize("size", [(32, 32), (33, 47), (65, 101), (96, 128)])
def test_any_size(size: tuple[int, int]) -> None:
    labels = torch.zeros(1, *size, dtype=torch.uint8)
    loss, predicted = task().eval()(torch.randn(1, 3, *size), labels)
    assert torch.isfinite(loss) and predicted[0].shape == size


def test_images_and_maps_of_different_sizes() -> None:
    images = [torch.randn(3, 40, 70), torch.randn(3, 64, 50)]
    maps = [torch.zeros(80, 140, dtype=torch.uint8), torch.ones(64, 50, dtype=torch.uint8)]
    segmenter = task().eval()
    loss, predicted = segmenter(images, maps)
    assert [one.shape for one in predicted] == [one.shape for one in maps]
    alone = [segmenter([image], [map_]) for image, map_ in zip(images, maps, strict=True)]
    weights = [map_.numel() for map_ in maps]
    mean = sum(float(one[0]) * weight for one, weight in zip(alone, weights, strict=True)) / sum(weights)
    # Alone, an image is padded less: what lies beyond its edge differs.
    assert float(loss) == pytest.approx(mean, rel=0.05)


def test_miou_is_of_all_pixels_together_over_classes_that_occur() -> None:
    metrics = task().metrics()
    truth = [
        torch.tensor([[0, 0, 1, 255]], dtype=torch.uint8),
        torch.tensor([[1, 1], [1, 0]], dtype=torch.uint8),
    ]
    metrics.update([one.where(one != 255, 0) for one in truth], truth)
    assert metrics.compute()["miou"] == metrics.compute()["pixel_accuracy"] == 1.0
    metrics.reset()
    wrong = [truth[0].where(truth[0] != 255, 3), torch.tensor([[1, 1], [0, 0]], dtype=torch.uint8)]
    metrics.update(wrong, truth)
    scores = {name: float(value) for name, value in metrics.compute().items()}
    assert scores["miou"] == pytest.approx(
        (3 / 4 + 3 / 4) / 2
    )  # class 3 was predicted on an ignored pixel only
    assert scores["pixel_accuracy"] == pytest.approx(6 / 7)


def test_unknown_labels_and_other_heads_are_refused() -> None:
    images, labels = batch()
    labels[0, 5, 5] = 9
    with pytest.raises(ValueError, match=r"label 9 in a label map: the model has classes 0..3"):
        task()(images, labels)
    with pytest.raises(ValueError, match="SemanticFPN has 4 classes, the dataset has 5"):
        SegmentationTask(task().model, 5)
