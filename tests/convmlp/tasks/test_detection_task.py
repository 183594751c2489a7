"""Detection: losses and detections in both modes, learning, sizes, precision, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from shapes import CLASS_IDS, pictures
from torch import Tensor

import convmlp
from convmlp.tasks.detection import DetectionTask
from convmlp.tasks.heads import create_dense_model
from convmlp.tasks.heads.pyramid import Anchors, create_body, pad_images
from convmlp.transforms.object_transforms import pack_masks

KINDS = ("retinanet", "mask_rcnn")


def task(kind: str, anchor_scale: float = 4.0) -> DetectionTask:
    torch.manual_seed(0)
    model = create_dense_model(kind, "convmlp_tiny", 3, pyramid_channels=16, anchor_scale=anchor_scale)
    if kind == "mask_rcnn":  # a CPU has not all day
        model.roi_heads.fg_bg_sampler.batch_size_per_image = 32
        model.rpn._post_nms_top_n = {"training": 100, "testing": 50}
        model.roi_heads.detections_per_img = 10
    return DetectionTask(model, CLASS_IDS)


@pytest.mark.parametrize(
    ("kind", "name", "parameters"),
    [
        ("retinanet", "convmlp_s", 18_742_484),
        ("retinanet", "convmlp_m", 27_130_068),
        ("retinanet", "convmlp_l", 52_896_004),
        ("mask_rcnn", "convmlp_s", 28_659_920),
        ("mask_rcnn", "convmlp_m", 37_047_504),
        ("mask_rcnn", "convmlp_l", 62_231_808),
    ],
)
def test_parameters_are_the_published_ones(kind: str, name: str, parameters: int) -> None:
    with torch.device("meta"):
        model = create_dense_model(kind, name, 80)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_few_steps_reduce_the_loss_and_every_parameter_takes_part(kind: str) -> None:
    images, targets = pictures(1, 2)
    detector = task(kind)
    optimizer = torch.optim.AdamW(detector.parameters(), lr=1e-3)
    losses = []
    for step in range(10):
        torch.manual_seed(step)
        loss, outputs = detector(images, targets)
        assert outputs == [] and loss.dtype == torch.float32 and loss.ndim == 0
        loss.backward()
        if step == 0:
            assert [name for name, parameter in detector.named_parameters() if parameter.grad is None] == []
        torch.nn.utils.clip_grad_norm_(detector.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert min(losses[-2:]) < 0.9 * losses[0]


@pytest.mark.parametrize("kind", KINDS)
def test_evaluation_has_loss_and_detections_and_leaves_the_generator_alone(kind: str) -> None:
    images, targets = pictures(1, 2)
    for target in targets:  # published at twice the size
        target["size"] = tuple(2 * side for side in target["size"])
    detector = task(kind).eval()
    before = torch.get_rng_state()
    with torch.no_grad():
        loss, found = detector(images, targets)
        again, _ = detector(images, targets)
    assert torch.equal(before, torch.get_rng_state())
    assert float(loss) == float(again) > 0 and len(found) == 2
    for one, target in zip(found, targets, strict=True):
        height, width = target["size"]
        assert (one["boxes"] >= 0).all() and (one["boxes"] <= torch.tensor([width, height] * 2)).all()
        assert ((one["labels"] >= 0) & (one["labels"] < 3)).all()
        assert (one["scores"].diff() <= 0).all()
        if kind == "mask_rcnn":
            assert (
                one["masks"].shape == (len(one["labels"]), height, width) and one["masks"].dtype == torch.bool
            )
    assert not any(module.training for module in detector.modules())
    metrics = detector.metrics()
    metrics.update(found, targets)
    assert detector.best_metric in metrics.compute()


@pytest.mark.parametrize("kind", KINDS)
def test_images_without_objects_train(kind: str) -> None:
    images, targets = pictures(1)
    empty = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64), "size": (64, 64)}
    empty["masks"] = torch.zeros(0, 64, 64, dtype=torch.bool)
    for company in ([torch.zeros(3, 64, 64)], [torch.zeros(3, 64, 64), *images]):
        detector = task(kind)
        loss, _ = detector(company, [empty, *targets][: len(company)])
        loss.backward()
        assert torch.isfinite(loss)
        assert all(parameter.grad is not None for parameter in detector.parameters())


def test_masks_as_bits_are_the_same() -> None:
    images, targets = pictures(1, 2)
    detector = task("mask_rcnn")
    packed = [one | {"masks": torch.from_numpy(pack_masks(one["masks"].numpy()))} for one in targets]

    def loss(of: list[dict[str, Any]]) -> float:
        torch.manual_seed(1)
        return float(detector(images, of)[0])

    assert loss(targets) == loss(packed)


@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_detects_the_same_places(kind: str) -> None:
    """Anchors, boxes and scores are float32 whatever the layers compute in: no box is off by the 8 pixels that
    bfloat16 leaves at 1,000."""
    detector = task(kind).eval()
    image, target = torch.randn(3, 64, 1056), pictures(2)[1][0] | {"size": (64, 1056)}
    target["masks"] = torch.zeros(2, 64, 1056, dtype=torch.bool)
    if kind == "retinanet":
        detector.model.score_thresh = 0.0
        torch.nn.init.constant_(detector.model.head.regression_head.bbox_reg.bias, 0.0123)
    with torch.no_grad():
        loss, _ = detector([image], [target])
        with torch.autocast("cpu", torch.bfloat16):
            half_loss, half = detector([image], [target])
    assert half_loss.dtype == half[0]["boxes"].dtype == half[0]["scores"].dtype == torch.float32
    torch.testing.assert_close(half_loss, loss, rtol=0.05, atol=0.02)
    fractions = half[0]["boxes"] % 1
    assert ((fractions > 0.01) & (fractions < 0.99)).float().mean() > 0.3


def test_anchors_lie_on_their_strides() -> None:
    """Of 800 x 1344 pixels, stride 64 has 13 rows: torchvision would space them by 61."""
    anchors = Anchors((32, 64), scale=4.0, octaves=3)
    images = pad_images([torch.zeros(3, 800, 1333)])
    assert images.tensors.shape == (1, 3, 800, 1344)
    maps = [torch.zeros(1, 1, 25, 42, dtype=torch.bfloat16), torch.zeros(1, 1, 13, 21, dtype=torch.bfloat16)]
    (boxes,) = anchors(images, maps)
    assert boxes.dtype == torch.float32 and len(boxes) == 9 * (25 * 42 + 13 * 21)
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    assert centres[-1].tolist() == [64 * 20, 64 * 12]
    sides = (boxes[:9, 2:] - boxes[:9, :2]).prod(1).sqrt()
    assert [round(side) for side in sides[3:6].tolist()] == [128, 162, 204]


def test_padding_keeps_layout_and_pixels() -> None:
    images = [torch.rand(40, 33, 3).permute(2, 0, 1), torch.rand(20, 70, 3).permute(2, 0, 1)]
    padded = pad_images(images)
    assert padded.tensors.shape == (2, 3, 64, 96) and padded.image_sizes == [(40, 33), (20, 70)]
    assert padded.tensors.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(padded.tensors[0, :, :40, :33], images[0]) and not padded.tensors[1, :, 20:].any()


def refused(targets: list[dict[str, Any]], images: list[Tensor]) -> str:
    with pytest.raises(ValueError) as error:
        task("retinanet")(images, targets)
    return str(error.value)


@pytest.mark.parametrize(
    "box",
    [[10.0, 10.0, 300.0, 40.0], [-5.0, 10.0, 20.0, 40.0], [10.0, 10.0, 10.0, 40.0], [30.0, 10.0, 20.0, 40.0]],
)
def test_boxes_outside_the_image_or_without_area_are_refused(box: list[float]) -> None:
    images, targets = pictures(1, 2)
    targets[1]["boxes"][1] = torch.tensor(box)
    message = refused(targets, images)
    assert message.startswith("image 2, object 1: box [") and "96 x 64 pixels" in message


def test_unknown_classes_are_refused() -> None:
    images, targets = pictures(1)
    targets[0]["labels"][0] = 3
    assert "classes must be 0..2" in refused(targets, images)


def test_heads_must_fit_the_dataset() -> None:
    with pytest.raises(ValueError, match="RetinaNet has 3 classes, the dataset has 2"):
        DetectionTask(create_dense_model("retinanet", "convmlp_tiny", 3, pyramid_channels=16), [1, 2])


def test_networks_without_a_pyramid_are_refused() -> None:
    with pytest.raises(ValueError, match=r"strides .16, 16, 16., detection and segmentation need"):
        create_dense_model("retinanet", "vit_tiny_patch16_224", 3)


@pytest.mark.parametrize("name", ["convmlp_tiny", "resnet18", "regnety_002"])
def test_a_classifier_s_weights_become_the_body_s(name: str, tmp_path: Any) -> None:
    torch.manual_seed(3)
    classifier = convmlp.create_model(name, num_classes=7).eval()
    torch.save(classifier.state_dict(), tmp_path / "weights.pth")
    body = create_body(name, (8, 16, 32), weights=tmp_path / "weights.pth").eval()
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        deepest = body(image)[-1]
        wanted = classifier.forward_intermediates(image, norm=False, intermediates_only=True)[-1]
    torch.testing.assert_close(deepest, wanted)


def test_weights_of_another_network_are_refused(tmp_path: Any) -> None:
    torch.save(convmlp.create_model("resnet18", num_classes=7).state_dict(), tmp_path / "weights.pth")
    with pytest.raises(ValueError):
        create_body("convmlp_tiny", (8, 16, 32), weights=tmp_path / "weights.pth")
