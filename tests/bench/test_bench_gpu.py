"""`make bench-gpu` without a GPU: its arithmetic, its tables, and all of it in tiny on a CPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import bench_gpu
import gpu_platform
import gpu_steps
import pytest
import torch
from torch import nn

import convmlp
from convmlp.model_cost import count_macs

# A GPU host has none of these; PathFinder finds what is installed here.
WITHOUT = """
import sys
from importlib.machinery import PathFinder

class Hiding(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name.split(".")[0] in ("ray", "mlflow", "deepspeed", "webdataset", "ffcv"):
            return None
        return PathFinder.find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = Hiding
"""


def test_the_plain_network_is_the_published_one() -> None:
    ours = convmlp.create_model("convmlp_s").eval()
    plain = gpu_steps.PlainConvMLP("convmlp_s").eval()
    plain.load_state_dict(ours.state_dict())
    images = torch.randn(2, 3, 40, 33)
    with torch.no_grad():
        torch.testing.assert_close(plain(images), ours(images), rtol=1e-4, atol=1e-5)
    drop = gpu_steps._PlainDropPath(0.5)
    kept = drop(torch.ones(400, 1, 1, 1)).unique()
    assert kept.tolist() == [0.0, 2.0]


def test_an_operator_takes_its_arithmetic_or_its_bytes_and_a_view_nothing() -> None:
    a, b = torch.randn(8, 16), torch.randn(16, 4)
    with gpu_steps.OperatorBound(rate=1.0, bandwidth=1e9) as product:
        torch.mm(a, b)
    assert product.seconds == product.flops == 2 * 8 * 16 * 4
    with gpu_steps.OperatorBound(rate=1e9, bandwidth=4.0) as moved:
        a.t().reshape(-1, 2)
        a.add_(1.0)
        a.view(4, 32)
    # A transposed tensor is copied: read, written; added to in place: read, and told as the result again.
    assert moved.seconds == 2 * a.numel() + 2 * a.numel()
    model = convmlp.create_model("convmlp_s").train()
    with gpu_steps.OperatorBound(1e12, 1e10) as step:
        nn.functional.cross_entropy(model(torch.randn(2, 3, 32, 32)), torch.tensor([0, 1])).backward()
    # Backward is twice forward, without the gradient of the images.
    assert 5.5 < step.flops / 2 / count_macs(model, 32) < 6.0


def test_losses_are_compared_step_by_step() -> None:
    row = gpu_platform.compared("x", [1.0, 2.02], [1.0, 2.0], 0.02)
    assert (row["state"], row["off"]) == ("right", pytest.approx(0.01))
    assert gpu_platform.compared("x", [1.0, 2.1], [1.0, 2.0], 0.02)["state"] == "FAILED"
    assert gpu_platform.compared("x", [1.0], [1.0, 2.0], 0.02)["state"] == "FAILED: 1 steps instead of 2"


def test_the_budgets_leave_room_for_what_matters_most() -> None:
    found = bench_gpu.parts()
    first = [part.name for part in found[:5]]
    assert first == ["limits", "correctness", "synchronisations", "step-s", "whole-job"]
    assert sum(part.budget for part in found[:6]) < bench_gpu.BUDGET < 540


@pytest.mark.slow
def test_all_of_it_works_in_tiny_without_ray_mlflow_and_deepspeed(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(WITHOUT)
    search = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    out = tmp_path / "out"
    command = [sys.executable, bench_gpu.__file__, "--device", "cpu", "--tiny", "--out", str(out)]
    done = subprocess.run(
        command,
        env={**os.environ, "PYTHONPATH": search},
        text=True,
        stdout=-1,
        stderr=subprocess.STDOUT,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    results = json.loads((out / "results.json").read_text())
    assert {part["name"]: part["state"] for part in results["parts"]} == {
        part.name: "done" for part in bench_gpu.parts()
    }
    rows = {part["name"]: part["rows"] for part in results["parts"]}
    assert {row["state"] for row in rows["correctness"]} == {"right", "deepspeed isn't installed"}
    steps = [(row["network"], row["step"]) for row in rows["step-m"]]
    assert steps == [("convmlp_m", "authors' eager AMP"), ("convmlp_m", "ours")]
    figures = {row["figure"]: row["value"] for row in rows["whole-job"]}
    assert figures["whole job / step"] > 0 and figures["save stall, median"] > 0
    assert (out / "profile" / "summary.md").is_file() and (out / "profile" / "trace.json.gz").is_file()
    assert "| convmlp_l, ours | fp32 |" in (out / "results.md").read_text()
