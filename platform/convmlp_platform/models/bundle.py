"""The portable model: a folder with `model.safetensors` and `bundle.json`, all that a prediction needs.

The JSON holds the model's name and options, its task, the classes and how images are prepared, so nothing of the
job that trained it is needed to use it, and loading it runs no code from the folder.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from convmlp_platform.config.sections.model_options import MAX_CLASSES, MAX_IMAGE_SIZE, ModelOptions
from convmlp_platform.config.sections.section import Mean, Std
from convmlp_platform.errors import TrackingError
from convmlp_platform.models.task_spec import ClassificationSpec, DetectionSpec, SegmentationSpec, TaskSpec
from data_prep.config import ExifOrientation

WEIGHTS_NAME, SPEC_NAME = "model.safetensors", "bundle.json"
_MAX_SPEC_BYTES = 64 << 20
_MAX_LABELS = 255
_ROOM = 1 << 24
_MAX_TENSORS = 20_000


class BundleSpec(BaseModel):
    """The task and the origin of the weights."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    schema_version: Literal[1, 2] = Field(2, description="1 knew classification only")
    task: TaskSpec = ClassificationSpec()
    model: str = Field(max_length=128, description="a name for convmlp.create_model")
    options: ModelOptions = Field(default_factory=dict, description="its further arguments")
    num_classes: int = Field(gt=0, le=MAX_CLASSES)
    classes: tuple[str, ...] = Field(description="names, in the order of the logits")
    image_size: int = Field(
        gt=0,
        le=MAX_IMAGE_SIZE,
        description="pixels: height and width in classification, else the shorter side (see task.max_side)",
    )
    channels: Literal[3] = 3
    mean: Mean = Field(description="of pixels in [0, 1]")
    std: Std
    crop_pct: float = Field(
        0.875, gt=0, le=1, description="classification: share of the resized short side that is kept"
    )
    interpolation: Literal["bilinear", "bicubic"] = Field("bicubic", description="classification")
    exif_orientation: ExifOrientation = Field(
        "apply",
        description="of the training data; bundles of releases that didn't record it are used on upright images, as "
        "they always were",
    )
    provenance: dict[str, Any] = Field(
        default_factory=dict, description="run name, dataset digest, step, metrics... of the training"
    )

    @model_validator(mode="after")
    def _one_name_a_class(self) -> BundleSpec:
        if len(self.classes) != self.num_classes:
            raise ValueError(f"{len(self.classes)} class names for num_classes (={self.num_classes})")
        if isinstance(self.task, DetectionSpec) and len(self.task.class_ids) != self.num_classes:
            raise ValueError(f"{len(self.task.class_ids)} class_ids for num_classes (={self.num_classes})")
        if isinstance(self.task, SegmentationSpec) and self.num_classes > _MAX_LABELS:
            raise ValueError(f"num_classes (={self.num_classes}): label maps have {_MAX_LABELS} values")
        if self.schema_version == 1 and self.task.name != "classification":
            raise ValueError(f"task {self.task.name} needs schema_version 2")
        return self


def write_bundle(folder: Path, state_dict: Mapping[str, Tensor], spec: BundleSpec) -> None:
    """Write `folder`; each file is whole or absent, and `bundle.json`, written last, makes it a bundle.

    Raises:
        TrackingError: it can't be written.
    """
    from data_prep.storage.files import write_atomically  # not at the top: a registered model never writes

    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in state_dict.items()}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / SPEC_NAME).unlink(missing_ok=True)
        write_atomically(folder / WEIGHTS_NAME, save(tensors, metadata={"format": "pt"}))
        write_atomically(folder / SPEC_NAME, json.dumps(spec.model_dump(), indent=1).encode() + b"\n")
    except OSError as error:
        raise TrackingError(f"{folder}: the model bundle can't be written: {error}") from error


def read_spec(folder: Path) -> BundleSpec:
    """Raises TrackingError where `folder` is no bundle."""
    path = folder / SPEC_NAME
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_SPEC_BYTES + 1)
        if len(content) > _MAX_SPEC_BYTES:
            raise TrackingError(f"{path}: has more than {_MAX_SPEC_BYTES:,} bytes")
        return BundleSpec.model_validate_json(content)
    except FileNotFoundError:
        raise TrackingError(f"{folder}: not a model bundle (no {SPEC_NAME} in it)") from None
    except (OSError, ValidationError) as error:
        raise TrackingError(f"{path}: can't be read: {_short(error)}") from error


def _short(error: Exception) -> str:
    """Of many problems the first; without the values, which may be long."""
    if not isinstance(error, ValidationError):
        return str(error)
    first, *others = error.errors(include_url=False, include_input=False)
    place = ".".join(map(str, first["loc"])) or "the file"
    return f"{place}: {first['msg'][:300]}" + (f" (and {len(others)} more problems)" if others else "")


def load_bundle(folder: Path) -> tuple[nn.Module, BundleSpec]:
    """The model with its weights (float32, CPU, eval mode) and its spec.

    Raises:
        TrackingError: `folder` is no bundle, or weights and spec don't fit together.
    """
    spec = read_spec(folder)
    weights = folder / WEIGHTS_NAME
    try:
        with torch.random.fork_rng(devices=[]), _Allocations(weights.stat().st_size):
            model = fresh_network(spec)
        model.load_state_dict(load_file(weights), strict=True)
        if wrong := [name for name, values in model.named_parameters() if not values.isfinite().all()]:
            raise ValueError(f"{wrong[0]} holds values that are not finite ({len(wrong)} tensors do)")
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise TrackingError(f"{folder}: {WEIGHTS_NAME} and {SPEC_NAME} make no model: {error}") from error
    return model.eval(), spec


class _Allocations(TorchFunctionMode):
    """Ends the making of a model that has more numbers than its weights file has bytes, before they are filled in.

    Dense models make their network twice, once without memory. There is room for what isn't kept.
    """

    def __init__(self, file_bytes: int) -> None:
        super().__init__()
        self._numbers, self._tensors = file_bytes + _ROOM, _MAX_TENSORS

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        if func in _FACTORIES and isinstance(made, Tensor):
            self._numbers -= made.numel()
            self._tensors -= 1
            if min(self._numbers, self._tensors) < 0:
                raise ValueError("the model described is much larger than the weights")
        return made


_FACTORIES = {torch.empty, torch.zeros, torch.ones, torch.full, torch.rand, torch.randn, torch.arange}


def fresh_network(spec: BundleSpec) -> nn.Module:
    """The network that a bundle describes, with weights drawn at random.

    Raises:
        ValueError, RuntimeError: there is no such network.
    """
    if isinstance(spec.task, ClassificationSpec):
        from convmlp import create_model

        return create_model(
            spec.model, num_classes=spec.num_classes, image_size=spec.image_size, **spec.options
        )
    from convmlp.tasks.heads import create_dense_model

    anchor_scale = spec.task.anchor_scale if isinstance(spec.task, DetectionSpec) else None
    return create_dense_model(
        spec.task.name,
        spec.model,
        spec.num_classes,
        pyramid_channels=spec.task.pyramid_channels,
        anchor_scale=anchor_scale,
        **spec.options,
    )
