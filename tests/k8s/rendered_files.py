"""The files in k8s/ that `convmlp k8s render` has written; `make k8s` writes them again."""

from __future__ import annotations

import contextlib
import io
import os
import shlex
from pathlib import Path

from convmlp_platform.cli.main import main

ROOT = Path(__file__).resolve().parents[2]
K8S = ROOT / "k8s"
_GPUS = "jobs/pretrain_convmlp.yaml --set training.micro_batch_size=64 --workers 16 --gpus-per-pod 8"
# The image is named, as it is not this program's version that the files are of: a test compares it with the project's.
_IMAGE = "--image convmlp:0.1.0 --from-image"

RENDERED = {
    # Small enough for kind on a laptop: with MLflow 4 CPUs.
    "jobs/prep-digits/rayjob.yaml": "jobs/prep_digits.yaml --cpus-per-pod 1",
    "jobs/pretrain-digits/rayjob.yaml": "jobs/pretrain_digits.yaml --workers 2",
    "jobs/prep-imagenet/rayjob.yaml": "jobs/prep_imagenet.yaml --workers 4 --cpus-per-pod 4",
    "jobs/pretrain-convmlp/rayjob.yaml": "jobs/pretrain_convmlp.yaml --workers 8 --gpus-per-pod 8",
    "raycluster/raycluster.yaml": (
        "jobs/pretrain_digits.yaml --standing convmlp --workers 2 --cpus-per-pod 4 --memory-gib 16"
    ),
    "overlays/gpu/raycluster.yaml": f"{_GPUS} --standing convmlp",
    "overlays/autoscale/raycluster.yaml": f"{_GPUS} --standing convmlp --overlay autoscale",
    "overlays/spot/raycluster.yaml": f"{_GPUS} --standing convmlp --overlay spot",
}
"""File in k8s/ → words of `convmlp k8s render`, without those that all have."""


def words(file: str) -> str:
    """All words of the command that writes a file."""
    return f"{RENDERED[file]} {_IMAGE}"


def rendered(file: str) -> str:
    """The file's text: what its command prints, below a line that says so."""
    out = io.StringIO()
    before = Path.cwd()
    os.chdir(ROOT)
    try:
        with contextlib.redirect_stdout(out):
            code = main(["k8s", "render", *shlex.split(words(file))])
    finally:
        os.chdir(before)
    assert code == 0, file
    return f"# make k8s: convmlp k8s render {words(file)}\n{out.getvalue()}"


if __name__ == "__main__":
    for name in RENDERED:
        (K8S / name).write_text(rendered(name))
        print(K8S / name)
