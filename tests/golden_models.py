"""Models filled from their entries' names, so that outputs of published code can be compared without its weights.

The numbers in `tests/convmlp/models/golden.json` were computed by the authors' own code in float64, evaluation mode
(ConvMLP: SHI-Labs/Convolutional-MLPs 092bf71; CycleMLP: ShoufaChen/CycleMLP 4e062a0 with torchvision's
deform_conv2d; Mixer: timm 1.0.31), with these weights and this input.
"""

from __future__ import annotations

import zlib
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from convmlp import ConvMLP, CycleMLP, create_model

STRIDES = (4, 8, 16, 32)
Arrays = dict[str, NDArray[Any]]


def golden_array(name: str, shape: tuple[int, ...]) -> NDArray[Any]:
    """The values of the state_dict entry `name`."""
    z = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape)
    if name.endswith("running_var"):
        return 1 + 0.1 * np.abs(z)
    if name.endswith(("running_mean", "bias")):
        return 0.1 * z
    return 1 + 0.1 * z if len(shape) == 1 else z / np.sqrt(np.prod(shape[1:]))


def fill_from_names(model: nn.Module) -> nn.Module:
    """Every floating-point entry but CycleFC's offsets, in place."""
    for name, value in model.state_dict().items():
        if value.is_floating_point() and not name.endswith("offset"):
            value.copy_(torch.from_numpy(golden_array(name, tuple(value.shape))))
    return model


@cache
def on_meta(name: str, **options: Any) -> nn.Module:
    """Without memory or time for its weights; shared by the tests, so not to be changed."""
    with torch.device("meta"):
        return create_model(name, **options)


def golden_model(name: str, dtype: torch.dtype = torch.float64, **options: Any) -> nn.Module:
    """Made without initialising it first, which takes longer than filling it."""
    with torch.device("meta"):
        model = create_model(name, **options)
    model = model.to(dtype).to_empty(device="cpu").to(memory_format=torch.channels_last)
    fill_from_names(getattr(model, "model", model))
    return model.eval()


def golden_images(height: int, width: int) -> Tensor:
    """float64 [2, 3, H, W]."""
    return torch.from_numpy(np.random.default_rng(0).standard_normal((2, 3, height, width)))


def run(name: str, size: tuple[int, int], dtype: torch.dtype = torch.float64) -> Arrays:
    """Our outputs under the keys of the golden file: logits, and of each dense map shape, corner, mean and std."""
    images = golden_images(*size).to(dtype)
    model = golden_model(name, dtype)
    maps: list[Tensor] = []
    with torch.inference_mode():
        if isinstance(model, ConvMLP):
            features, maps = model.forward_intermediates(images)
            logits = model.forward_head(features)
        else:
            logits = model(images)
        if isinstance(model, CycleMLP):  # published with norms of its own for dense prediction
            maps = golden_model(name, dtype, features_only=True)(images)
    arrays: Arrays = {"logits": logits.double().numpy()}
    for stride, one in zip(STRIDES[: len(maps)], maps, strict=True):
        arrays[f"s{stride}/shape"] = np.array(one.shape)
        arrays[f"s{stride}/corner"] = one[:, :8, :3, :3].double().numpy()
        arrays[f"s{stride}/meanstd"] = np.array([one.mean().item(), one.std(correction=0).item()])
    return arrays


def digest(arrays: Arrays) -> dict[str, Any]:
    """A few numbers that hold only for equal outputs: what golden.json keeps of each case."""
    logits = arrays["logits"]
    maps = []
    for stride in STRIDES:
        if f"s{stride}/shape" in arrays:
            corner = arrays[f"s{stride}/corner"]
            maps.append(
                {
                    "shape": arrays[f"s{stride}/shape"].tolist(),
                    "mean_std": arrays[f"s{stride}/meanstd"].tolist(),
                    "ends": [corner.flat[0].item(), corner.flat[-1].item()],
                    "corner_norm": float(np.linalg.norm(corner)),
                }
            )
    chosen = logits[:, [0, 499, 999]].flatten().tolist()
    return {"logits_norm": float(np.linalg.norm(logits)), "logits": chosen, "maps": maps}
