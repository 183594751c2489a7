"""Models as MLflow stores them, for tests: saved to a folder, without a server."""

from __future__ import annotations

import io
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import mlflow.pyfunc
import numpy as np
import torch
from PIL import Image
from tiny_dense import tiny_dense

import convmlp
from convmlp_platform.models.bundle import BundleSpec, write_bundle
from convmlp_platform.registry.log_model import model_parts

CLASSES = ("cat", "dog", "owl", "ant", "bee", "cow", "elk")
KINDS = ("classification", "retinanet", "mask_rcnn", "semantic_fpn")


def png(seed: int = 0) -> bytes:
    """A picture of 40 x 50 pixels."""
    pixels = np.random.default_rng(seed).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "PNG")
    return content.getvalue()


def picture_for(kind: str) -> bytes:
    """One in which the model of this kind finds something."""
    if kind == "classification":
        return png()
    content = io.BytesIO()
    tiny_dense(kind).split.image(0)[0].save(content, "PNG")
    return content.getvalue()


@cache
def bundle_of(kind: str) -> Path:
    """A bundle with fresh weights; the same for all tests of a session."""
    if kind != "classification":
        return tiny_dense(kind).bundle
    folder = Path(mkdtemp(prefix="convmlp-test-")) / "best"
    torch.manual_seed(1)
    weights = convmlp.create_model("convmlp_tiny", num_classes=len(CLASSES)).state_dict()
    facts = {"image_size": 32, "mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}
    spec = {"model": "convmlp_tiny", "num_classes": len(CLASSES), "classes": CLASSES, **facts}
    write_bundle(folder, weights, BundleSpec.model_validate(spec))
    return folder


@cache
def stored_model(kind: str) -> Path:
    """The folder that MLflow makes of the bundle."""
    folder = Path(mkdtemp(prefix="convmlp-test-")) / "model"
    with model_parts(bundle_of(kind), picture_for(kind)) as parts:
        mlflow.pyfunc.save_model(folder, **parts)
    return folder
