"""`load_model`: a trained model by name as a torch module, with its own preprocessing and its classes."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from convmlp.weights import load_pretrained
from convmlp_platform.data.dataset.split import open_manifest
from convmlp_platform.errors import ConfigError, DataError, TrackingError
from convmlp_platform.models.bundle import BundleSpec, fresh_network, load_bundle, read_spec
from convmlp_platform.models.prediction import Prediction
from convmlp_platform.models.predictors.given_images import ImageLike
from convmlp_platform.models.predictors.predictor import predictor_of
from convmlp_platform.models.task_spec import DetectionSpec, SegmentationSpec
from convmlp_platform.runs.find_model import find_model
from convmlp_platform.runs.found_model import FoundModel, checkpoint_run

GivenImage = ImageLike | NDArray[np.uint8] | Tensor
"""A PIL image; a file's path or bytes; pixels, uint8 [H, W, 3] or [H, W], or a tensor [3, H, W]."""


def load_model(
    name: str | Path,
    *,
    weights: Literal["auto", "ema", "raw"] = "auto",
    device: str | torch.device | None = None,
) -> LoadedModel:
    """A trained model, ready to be used.

    Args:
        name: models:/NAME@ALIAS or models:/NAME/3; a run's folder or name, for its best model; a checkpoint; a bundle.
        weights: of a checkpoint with a moving average: that, or those that the optimizer moves; auto: the average.
        device: default: the GPU where there is one.

    Raises:
        ConfigError: there is no such model, or only weights, without classes and preprocessing.
    """
    text = str(name)
    with tempfile.TemporaryDirectory(prefix="convmlp-model-") as folder:
        found = find_model(text, into=Path(folder), choice=weights)
        if found.spec is not None:
            network, spec = load_bundle(Path(found.location))
        else:
            spec = _spec_of(found)
            network = _with_weights(found, spec)
    model = LoadedModel(network, spec, found.pinned)
    return model if device is None else model.to(device)


def _spec_of(found: FoundModel) -> BundleSpec:
    """Of a run's checkpoint: as the run's best model has it, else by its job and dataset.

    Raises:
        ConfigError: nothing says it.
    """
    if found.job is None:
        raise ConfigError(
            f"{found.text}: only weights are there (a {found.kind}), neither class names nor how images are prepared: "
            "name a registered model (models:/NAME@ALIAS), a run, or a checkpoint in its run's folder"
        )
    try:
        return read_spec(checkpoint_run(str(found.location)) / "best")
    except TrackingError:
        pass  # not evaluated yet
    from convmlp_platform.training.build.bundle_spec import bundle_spec

    try:
        manifest = open_manifest(found.job.data.path, found.lineage.get("init.dataset_digest"))
    except DataError as error:
        raise ConfigError(
            f"{found.text}: its classes are those of its dataset, which is out of reach: {error}"
        ) from None
    return bundle_spec(found.job, manifest, {})


def _with_weights(found: FoundModel, spec: BundleSpec) -> nn.Module:
    weights = found.weights()
    try:
        with torch.random.fork_rng(devices=[]):
            network = fresh_network(spec)
        report = load_pretrained(network, weights, name=found.pinned, note=lambda _line: None)
    except (ValueError, RuntimeError) as error:
        raise ConfigError(f"{found.text}: {error}") from None
    if report.backbone_only or report.replaced or report.dropped or report.fresh:
        raise ConfigError(f"{found.text}: its weights aren't all of {spec.model} for {spec.task.name}")
    return network.eval()


class LoadedModel(nn.Module):
    """A network in eval mode, with its preprocessing, its classes and its predictions.

    `model(images)` is the network's own forward pass: of a classifier, logits [B, classes] of images [B, 3, H, W] as
    `transform` makes them; of detectors and segmenters what their heads give, which `predict` reads.

    Args:
        network: the plain module, without any of the rest.
        spec: its description.
        source: what exactly it is: `models:/NAME/3`, a path.
    """

    def __init__(self, network: nn.Module, spec: BundleSpec, source: str) -> None:
        super().__init__()
        self._predictor = predictor_of(network, spec)
        self.network, self.spec, self.source = network, spec, source
        self.transform = ModelTransform(spec)
        self.eval()

    @property
    def classes(self) -> list[str]:
        """Names, in the order of the logits."""
        return list(self.spec.classes)

    def forward(self, images: Tensor) -> Any:
        """See the class."""
        return self.network(images)

    def predict(self, images: Sequence[GivenImage]) -> list[Prediction]:
        """Returns for each image what the model says of it, where the model is: `Labels` (`.top(3)`), `Detections`
        (`.boxes`, `.scores`, `.names`) or a `LabelMap` (`.labels`).

        Raises:
            DataError: an image is missing or unreadable, the message names it.
            TypeError: a single image instead of a list.
        """
        if isinstance(images, str | bytes | Path | Image.Image):
            raise TypeError("predict() takes a list of images: predict([image])")
        was_training = self.training
        self.eval()
        try:
            return self._predictor.predict([as_image(image) for image in images])
        finally:
            self.train(was_training)

    def __repr__(self) -> str:
        return (
            f"LoadedModel({self.spec.model} for {self.spec.task.name}, {self.spec.num_classes:,} classes, "
            f"{self.spec.image_size} px, from {self.source})"
        )


class ModelTransform:
    """From an image to the tensor that a model sees: float32 [3, H, W] on the CPU, by the model's own evaluation.

    It can be pickled, for a DataLoader's workers.
    """

    def __init__(self, spec: BundleSpec) -> None:
        self.spec = spec
        if not isinstance(spec.task, DetectionSpec | SegmentationSpec):
            from convmlp_platform.models.predictors.classifier import preparation

            self._prepare: Any = preparation(spec)
            return
        from convmlp.transforms.label_map_transforms import SegmentationEvalTransform
        from convmlp.transforms.object_transforms import DetectionTransform
        from convmlp_platform.models.predictors.whole_images import WholeImages

        transform: Any
        if isinstance(spec.task, DetectionSpec):
            transform = DetectionTransform((spec.image_size,), spec.task.max_side)
        else:
            transform = SegmentationEvalTransform(spec.image_size, spec.task.max_side)
        self._prepare = WholeImages(transform, spec, torch.device("cpu"))

    def __call__(self, image: GivenImage) -> Tensor:
        """Raises DataError where the image is missing or unreadable."""
        from convmlp_platform.models.predictors.given_images import open_image
        from convmlp_platform.models.predictors.whole_images import WholeImages

        if isinstance(self._prepare, WholeImages):
            return self._prepare.prepared(as_image(image), 0)[0]
        prepared: Tensor = self._prepare(open_image(as_image(image), 0, self.spec.exif_orientation))
        return prepared


def as_image(image: GivenImage) -> ImageLike:
    """Pixels as a PIL image; all else as it is.

    Raises:
        DataError: they are not uint8 [H, W, 3] or [H, W], or a tensor [3, H, W].
    """
    pixels: Any = image
    if isinstance(image, Tensor):
        pixels = image.cpu().numpy()
        pixels = pixels.transpose(1, 2, 0) if pixels.ndim == 3 else pixels
    if not isinstance(pixels, np.ndarray):
        return pixels
    if pixels.dtype != np.uint8 or not (pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] == 3)):
        raise DataError(
            f"an image of pixels must be uint8 [H, W, 3] or [H, W], a tensor uint8 [3, H, W]; "
            f"this is {image.dtype} {list(image.shape)}"  # type: ignore[union-attr]
        )
    return Image.fromarray(np.ascontiguousarray(pixels))
