"""Networks as programs without Python: `torch.export`, and ONNX checked against PyTorch with onnxruntime."""

import importlib.util
import os
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from convmlp.model_cost import evaluating

INPUT_NAME = "images"


def export_program(
    model: nn.Module, image_size: int | tuple[int, int], *, in_chans: int = 3, dynamic_size: bool = False
) -> ExportedProgram:
    """`model` in evaluation mode as a graph: images [B, in_chans, H, W], any B → what the model returns.

    `torch.export.save` writes it, `torch.export.load(...).module()` runs it.

    Args:
        image_size: pixels, one side or (height, width).
        dynamic_size: keep height and width open, too: from where the last feature map has two rows and columns
            (33 px for ConvMLP, 35 for CycleMLP). `image_size` is then an example of at least 64 px.

    Raises:
        ValueError: the model doesn't take such images, or is tied to one size and `dynamic_size` asks for more.
    """
    height, width = image_size if isinstance(image_size, tuple) else (image_size, image_size)
    if dynamic_size and min(height, width) < 64:
        raise ValueError(f"dynamic_size needs an example of 64 px or more, not {height}x{width}")
    if dynamic_size and (size := _fixed_size(model)) is not None:
        raise ValueError(
            f"{type(model).__name__} takes images of {size[0]}x{size[1]} only: export it without dynamic_size"
        )
    weight = next(model.parameters())
    images = torch.zeros(2, in_chans, height, width, device=weight.device, dtype=weight.dtype)
    dynamic = {0: Dim.DYNAMIC} | ({2: Dim.DYNAMIC, 3: Dim.DYNAMIC} if dynamic_size else {})
    with evaluating(model), torch.no_grad():
        return torch.export.export(model, (images,), dynamic_shapes=(dynamic,))


def export_onnx(
    model: nn.Module,
    path: str | Path,
    image_size: int | tuple[int, int],
    *,
    in_chans: int = 3,
    dynamic_size: bool = False,
) -> Path:
    """Write `model` as an ONNX file with the input "images" [B, in_chans, H, W]; arguments as `export_program`.

    The file appears complete or not at all. `onnx_difference` compares it with the model.

    Raises:
        ValueError: as `export_program`, or the packages onnx and onnxscript are missing.
    """
    _require("onnx", "onnxscript")
    path = Path(path)
    program = export_program(model, image_size, in_chans=in_chans, dynamic_size=dynamic_size)
    converted = torch.onnx.export(program, dynamo=True, verbose=False, input_names=[INPUT_NAME])
    if converted is None:
        raise ValueError(f"{type(model).__name__} can't be converted to ONNX")
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        converted.save(unfinished)
        with unfinished.open("rb") as file:
            os.fsync(file.fileno())
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
    return path


def onnx_difference(model: nn.Module, path: str | Path, images: Tensor) -> float:
    """Largest difference between the outputs of the ONNX file, run by onnxruntime, and of `model` on `images`.

    Relative to the largest absolute output of the model. Single precision on the CPU gives about 1e-6.

    Args:
        model: the model that was exported, float32 on the CPU.
        images: float32 [B, in_chans, H, W] on the CPU.

    Raises:
        ValueError: the package onnxruntime is missing.
    """
    _require("onnxruntime")
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    found = [torch.from_numpy(output) for output in session.run(None, {INPUT_NAME: images.numpy()})]
    with evaluating(model), torch.no_grad():
        output = model(images)
    expected = [output] if isinstance(output, Tensor) else list(output)
    scale = max(one.abs().max().item() for one in expected)
    differences = [(a - b).abs().max().item() for a, b in zip(found, expected, strict=True)]
    return max(differences) / (scale or 1.0)  # a head of zeros gives zeros


def _fixed_size(model: nn.Module) -> tuple[int, int] | None:
    """The one size that a Mixer, a pure MLP or a timm network with patch embedding takes."""
    size = getattr(model, "fixed_image_size", None)
    embedding = getattr(model, "patch_embed", None)
    if size is None and getattr(embedding, "strict_img_size", False):
        size = getattr(embedding, "img_size", None)
    return size


def _require(*packages: str) -> None:
    missing = [package for package in packages if importlib.util.find_spec(package) is None]
    if missing:
        raise ValueError(
            f"ONNX needs the Python package{'s' * (len(missing) > 1)} {' and '.join(missing)}: "
            "pip install 'convmlp-platform[onnx]'"
        )
