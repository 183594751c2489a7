"""The dense tasks' whole path on real images: a model that learns eight of them by heart from scratch, judged by the
platform's own job. Each takes minutes on one core."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from convmlp_platform.training.evaluation.evaluation_record import RECORD, read_evaluations

ROOT = Path(__file__).parents[2]

pytestmark = [pytest.mark.slow, pytest.mark.real_data, pytest.mark.timeout(3600)]

CASES = {
    "retinanet": ("coco8", "coco", {"eval/box_ap": 80.0}),
    "mask_rcnn": ("coco8", "coco", {"eval/box_ap": 80.0, "eval/mask_ap": 70.0}),
    "semantic_fpn": ("camvid4", "CamVidADE", {"eval/miou": 90.0}),
}
"""Task → prepared dataset, its source, and what is asked of the last evaluation, in per cent."""


def source_of(name: str) -> Path:
    folder = os.environ.get("CONVMLP_TEST_DATA")
    if not folder or not (Path(folder) / name).is_dir():
        pytest.skip(f"$CONVMLP_TEST_DATA holds no {name}/")
    return Path(folder) / name


def convmlp(root: Path, *arguments: str) -> None:
    environment = os.environ | {"CONVMLP_ROOT": str(root), "OMP_NUM_THREADS": "1"}
    subprocess.run(
        [sys.executable, "-m", "convmlp_platform", "run", *arguments], env=environment, cwd=root, check=True
    )


@pytest.mark.parametrize("format", ["webdataset", "ffcv"])
@pytest.mark.parametrize("task", CASES)
def test_eight_images_are_learned_by_heart(task: str, format: str, tmp_path: Path) -> None:
    dataset, source, asked = CASES[task]
    jobs = ROOT / "jobs"
    convmlp(tmp_path, f"{jobs}/prep_{dataset}.yaml", "--no-ray", "--set", f"source.path={source_of(source)}")
    convmlp(tmp_path, f"{jobs}/overfit_{task}.yaml", "--no-ray", "--set", f"data.format={format}")
    found = last_evaluation(tmp_path / "runs" / f"overfit-{task.replace('_', '-')}")
    assert {name: found[name] for name in asked if found[name] < asked[name]} == {}


def last_evaluation(run: Path) -> dict[str, float]:
    """The newest evaluation's metrics."""
    return [line.metrics for line in read_evaluations(run / RECORD) if line.metrics][-1]
