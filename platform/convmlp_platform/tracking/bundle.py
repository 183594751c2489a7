"""The portable model: a folder with `model.safetensors` and `bundle.json`, all that a prediction needs.

The JSON holds the model's name and options, the classes and how images are prepared, so nothing of the job
that trained it is needed to use it, and loading it runs no code from the folder.
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

from convmlp_platform.errors import TrackingError

WEIGHTS_NAME, SPEC_NAME = "model.safetensors", "bundle.json"


class BundleSpec(BaseModel):
    """What the weights are for and where they come from."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    schema_version: Literal[1] = 1
    model: str = Field(description="a name for convmlp.create_model")
    options: dict[str, Any] = Field(default_factory=dict, description="its further arguments")
    num_classes: int = Field(gt=0)
    classes: tuple[str, ...] = Field(description="names, in the order of the logits")
    image_size: int = Field(gt=0, description="pixels, height and width")
    channels: Literal[3] = 3
    mean: tuple[float, float, float] = Field(description="of pixels in [0, 1]")
    std: tuple[float, float, float]
    crop_pct: float = Field(0.875, gt=0, le=1, description="share of the resized short side that is kept")
    interpolation: Literal["bilinear", "bicubic"] = "bicubic"
    provenance: dict[str, Any] = Field(
        default_factory=dict, description="run name, dataset digest, step, metrics... of the training"
    )

    @model_validator(mode="after")
    def _one_name_a_class(self) -> BundleSpec:
        if len(self.classes) != self.num_classes:
            raise ValueError(f"{len(self.classes)} class names for num_classes (={self.num_classes})")
        return self


def write_bundle(folder: Path, state_dict: Mapping[str, Tensor], spec: BundleSpec) -> None:
    """Write `folder`; each file is whole or absent, and `bundle.json`, written last, makes it a bundle.

    Raises:
        TrackingError: it can't be written.
    """
    from data_prep.files import write_atomically  # not at the top: a registered model loads without data_prep

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
        return BundleSpec.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise TrackingError(f"{folder}: not a model bundle (no {SPEC_NAME} in it)") from None
    except (OSError, ValidationError) as error:
        raise TrackingError(f"{path}: can't be read: {error}") from error


def load_bundle(folder: Path) -> tuple[nn.Module, BundleSpec]:
    """The model with its weights (float32, CPU, eval mode) and its spec.

    Raises:
        TrackingError: `folder` is no bundle, or weights and spec don't fit together.
    """
    import convmlp

    spec = read_spec(folder)
    try:
        with torch.random.fork_rng(devices=[]):
            model = convmlp.create_model(
                spec.model, num_classes=spec.num_classes, image_size=spec.image_size, **spec.options
            )
        model.load_state_dict(load_file(folder / WEIGHTS_NAME), strict=True)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise TrackingError(f"{folder}: {WEIGHTS_NAME} and {SPEC_NAME} make no model: {error}") from error
    return model.eval(), spec
