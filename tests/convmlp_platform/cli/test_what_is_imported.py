"""What a command costs before it works: libraries that it doesn't need aren't imported.

A table, not a stopwatch: seconds of CPU are what the modules below take (docs/benchmarks.md).
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image
from prepared import digits
from run_folders import finished

import convmlp
from convmlp_platform.models.bundle import BundleSpec, write_bundle

ROOT = Path(__file__).parents[3]
SLOW = pytest.mark.slow
LIGHT = ("torch", "ray", "mlflow", "numpy", "pydantic", "pandas", "pyarrow", "matplotlib", "PIL")
JOB_ALONE = ("torch", "ray", "mlflow", "pandas", "sklearn", "scipy", "timm", "matplotlib", "fsspec")
# torchvision and timm import torch's compiler, which imports sympy and triton. torch's own Python functions for
# "meta" tensors and its optimizers do, too.
NO_COMPILER = ("torch._dynamo", "torch._inductor", "sympy", "triton")
RUNS = ("torch", "numpy", "ray", "mlflow", "pandas", "yaml", "fsspec", "convmlp_platform.config.schema")
CHECK = (
    *NO_COMPILER, "timm", "torchvision", "torchmetrics", "ray", "mlflow", "deepspeed", "accelerate",
    "pandas", "sklearn", "scipy", "matplotlib", "fsspec", "pycocotools",
)  # fmt: skip
CODE = """
import sys
from convmlp_platform.cli.main import main
code = main(sys.argv[2:])
found = [name for name in sys.argv[1].split(",") if name in sys.modules]
print("IMPORTED", code, *found)
"""


def imported(tmp_path: Path, words: list[str], forbidden: tuple[str, ...]) -> tuple[int, list[str]]:
    """The exit code of `convmlp WORDS`, and which of the forbidden modules it imported."""
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "MLFLOW_"))
    }
    environment |= {"CONVMLP_ROOT": str(tmp_path), "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'platform'}"}
    done = subprocess.run(
        [sys.executable, "-c", CODE, ",".join(forbidden), *words],
        cwd=ROOT, env=environment, text=True, capture_output=True, timeout=250,
    )  # fmt: skip
    assert "IMPORTED" in done.stdout, done.stderr
    code, *found = done.stdout.splitlines()[-1].split()[1:]
    return int(code), found


@pytest.mark.parametrize(
    ("words", "forbidden", "code"),
    [
        (["--help"], LIGHT, 0),
        (["run", "--help"], LIGHT, 0),
        (["k8s", "render", "--help"], LIGHT, 0),
        (["k8s", "render", "jobs/prep_digits.yaml", "--image", "convmlp:1"], JOB_ALONE, 0),
        (["check", "nothing.yaml"], JOB_ALONE, 2),
        (["check", "BAD_YAML"], JOB_ALONE, 2),
        (["check", "jobs/pretrain_digits.yaml", "--set", "model.nme=x"], JOB_ALONE, 2),
        (["check", "jobs/pretrain_digits.yaml", "--set", "training.epochs=many"], JOB_ALONE, 2),
        (["run", "jobs/pretrain_digits.yaml", "--set", "optimizer.lr=-1"], JOB_ALONE, 2),
        (["show", "jobs/pretrain_convmlp.yaml"], JOB_ALONE, 0),
        (["schema"], JOB_ALONE, 0),
        (["runs"], (*RUNS, "rich"), 0),
        (["watch", "RUN"], RUNS, 0),
        (["check", "jobs/pretrain_digits.yaml", "--set", "data.path=DIGITS"], CHECK, 0),
        pytest.param(["check", "jobs/pretrain_convmlp.yaml", "--set", "data.path=DIGITS"], CHECK, 0, marks=SLOW),
        pytest.param(["check", "jobs/finetune_folder.yaml", "--set", "data.path=DIGITS"], CHECK, 0, marks=SLOW),
        pytest.param(["check", "jobs/pretrain_cyclemlp.yaml", "--set", "data.path=DIGITS"], CHECK, 0, marks=SLOW),
        (["check", "jobs/prep_digits.yaml"], ("torch", "timm", "ray", "mlflow", "matplotlib"), 0),
        (["data", "show", "DIGITS", "--output", "SHOWN"], ("torch", "timm", "ray", "mlflow", "pandas", "sklearn"), 0),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)  # fmt: skip
def test_a_command_leaves_alone_what_it_does_not_need(
    tmp_path: Path, words: list[str], forbidden: tuple[str, ...], code: int
) -> None:
    (tmp_path / "bad.yaml").write_text("kind: [train\n")
    finished(tmp_path / "runs" / "run", time.time())
    stands_for = {
        "DIGITS": str(digits("webdataset")),
        "BAD_YAML": str(tmp_path / "bad.yaml"),
        "SHOWN": str(tmp_path / "shown"),
        "RUN": str(tmp_path / "runs" / "run"),
    }
    for name, value in stands_for.items():
        words = [word.replace(name, value) for word in words]
    assert imported(tmp_path, words, forbidden) == (code, [])


@pytest.mark.slow
def test_the_table_can_fail(tmp_path: Path) -> None:
    _, found = imported(tmp_path, ["models", "resnet18"], ("timm", "torch._dynamo", "ray"))
    assert found == ["timm", "torch._dynamo"]


@pytest.mark.slow
def test_predict_leaves_the_compiler_alone(tmp_path: Path) -> None:
    model = convmlp.create_model("convmlp_tiny", 4)
    spec = BundleSpec(
        model="convmlp_tiny", num_classes=4, classes=tuple("abcd"), image_size=32, mean=(0.5,) * 3, std=(0.2,) * 3
    )  # fmt: skip
    write_bundle(tmp_path / "bundle", model.state_dict(), spec)
    Image.new("RGB", (32, 32)).save(tmp_path / "one.png")
    words = ["predict", str(tmp_path / "bundle"), str(tmp_path / "one.png")]
    assert imported(tmp_path, words, CHECK) == (0, [])
