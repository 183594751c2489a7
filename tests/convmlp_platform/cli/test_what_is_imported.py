"""What a command costs before it works: libraries that it doesn't need aren't imported.

A table, not a stopwatch: seconds of CPU are what the modules below take (docs/benchmarks.md).
"""

from __future__ import annotations

import json
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
import json, sys
from convmlp_platform.cli.main import main
commands, forbidden = json.loads(sys.argv[1])
found = []
for words in commands:
    code = main(words)
    found.append([code, [name for name in forbidden if name in sys.modules]])
print("IMPORTED", json.dumps(found))
"""


def imported(
    tmp_path: Path, commands: list[list[str]], forbidden: tuple[str, ...]
) -> list[tuple[int, list[str]]]:
    """Of each of the commands, typed one after the other in one process: its exit code, and which of the forbidden
    modules have been imported by then."""
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "MLFLOW_"))
    }
    environment |= {"CONVMLP_ROOT": str(tmp_path), "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'platform'}"}
    done = subprocess.run(
        [sys.executable, "-c", CODE, json.dumps([commands, forbidden])],
        cwd=ROOT, env=environment, text=True, capture_output=True, timeout=250,
    )  # fmt: skip
    assert "IMPORTED" in done.stdout, done.stderr
    return [
        (code, found) for code, found in json.loads(done.stdout.splitlines()[-1].removeprefix("IMPORTED"))
    ]


DATA = ("--set", "data.path=DIGITS")
GROUPS: dict[str, tuple[tuple[str, ...], list[tuple[list[str], int]]]] = {
    "help": (
        LIGHT,
        [(["--help"], 0), (["run", "--help"], 0), (["k8s", "render", "--help"], 0)],
    ),
    "a job alone": (
        JOB_ALONE,
        [
            (["k8s", "render", "jobs/prep_digits.yaml", "--image", "convmlp:1"], 0),
            (["check", "nothing.yaml"], 2),
            (["check", "BAD_YAML"], 2),
            (["check", "jobs/pretrain_digits.yaml", "--set", "model.nme=x"], 2),
            (["check", "jobs/pretrain_digits.yaml", "--set", "training.epochs=many"], 2),
            (["run", "jobs/pretrain_digits.yaml", "--set", "optimizer.lr=-1"], 2),
            (["show", "jobs/pretrain_convmlp.yaml"], 0),
            (["schema"], 0),
        ],
    ),
    "runs": ((*RUNS, "rich"), [(["runs"], 0)]),
    "watch": (RUNS, [(["watch", "RUN"], 0)]),
    "check": (CHECK, [(["check", "jobs/pretrain_digits.yaml", *DATA], 0)]),
    "check of other networks": (
        CHECK,
        [
            (["check", f"jobs/{name}.yaml", *DATA], 0)
            for name in ("pretrain_convmlp", "finetune_folder", "pretrain_cyclemlp")
        ],
    ),
    "check of a preparation": (
        ("torch", "timm", "ray", "mlflow", "matplotlib"),
        [(["check", "jobs/prep_digits.yaml"], 0)],
    ),
    "data show": (
        ("torch", "timm", "ray", "mlflow", "pandas", "sklearn"),
        [(["data", "show", "DIGITS", "--output", "SHOWN"], 0)],
    ),
}


@pytest.mark.parametrize(
    "which",
    [pytest.param(name, marks=SLOW if name == "check of other networks" else []) for name in GROUPS],
)
def test_a_command_leaves_alone_what_it_does_not_need(tmp_path: Path, which: str) -> None:
    forbidden, expected = GROUPS[which]
    (tmp_path / "bad.yaml").write_text("kind: [train\n")
    finished(tmp_path / "runs" / "run", time.time())
    stands_for = {
        "DIGITS": str(digits("webdataset")),
        "BAD_YAML": str(tmp_path / "bad.yaml"),
        "SHOWN": str(tmp_path / "shown"),
        "RUN": str(tmp_path / "runs" / "run"),
    }
    commands = [words for words, _ in expected]
    for name, value in stands_for.items():
        commands = [[word.replace(name, value) for word in words] for words in commands]
    found = imported(tmp_path, commands, forbidden)
    assert [(words, *one) for words, one in zip(commands, found, strict=True)] == [
        (words, code, []) for words, (_, code) in zip(commands, expected, strict=True)
    ]


@pytest.mark.slow
def test_the_table_can_fail(tmp_path: Path) -> None:
    ((_, found),) = imported(tmp_path, [["models", "resnet18"]], ("timm", "torch._dynamo", "ray"))
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
    assert imported(tmp_path, [words], CHECK) == [(0, [])]
