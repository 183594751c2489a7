"""Private names of libraries are used in the files that CONTRIBUTING lists, each with its test, and nowhere else."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PRODUCT = (ROOT / "convmlp", ROOT / "data_prep", ROOT / "platform/convmlp_platform")
LIBRARIES = (
    "ray", "deepspeed", "torch", "timm", "ffcv", "mlflow", "torchvision", "accelerate", "torchmetrics", "fsspec",
    "tensorboardX",
)  # fmt: skip
UNDOCUMENTED = (
    "mlflow.utils", "ray.core", "deepspeed.runtime.zero", "tensorboardX.event_file_writer", "tensorboardX.proto",
)  # fmt: skip
"""Modules without an underscore that no documentation names."""
DEEPSPEED = {
    "ds_tensor", "ds_numel", "ds_shape", "averaged_gradients", "all_grad_tensors", "norm_for_param_grads",
    "micro_step_id", "fp32_partitioned_groups_flat", "lp_fragment_address", "get_optim_state_fragment",
    "torch_autocast_gradscaler", "reset_cpu_buffers", "build_shm_op", "external_loss_scale",
}  # fmt: skip
"""Attributes without an underscore that DeepSpeed's documentation doesn't name."""
# A pickle's own names, which are compared and never used; modules that are imported if they are there.
ONLY_NAMED = {"convmlp/weight_files.py", "platform/convmlp_platform/launch/workers/fork_server_link.py"}


def listed() -> dict[str, str]:
    """File → test, from CONTRIBUTING's table "Fragile internals"."""
    text = (ROOT / "CONTRIBUTING.md").read_text().partition("## Fragile internals")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| [\w ]+ \| `(\S+?)` \|.*\| `(\S+?)` \|$", text, re.MULTILINE)
    return dict(rows)


@cache
def product() -> dict[str, ast.Module]:
    files = sorted(path for folder in PRODUCT for path in folder.rglob("*.py"))
    return {path.relative_to(ROOT).as_posix(): ast.parse(path.read_text()) for path in files}


def is_private(name: str) -> bool:
    return name.startswith("_") and not (name.startswith("__") and name.endswith("__"))


def of_a_library(dotted: str) -> bool:
    first, *rest = dotted.split(".")
    undocumented = any(dotted == one or dotted.startswith(f"{one}.") for one in UNDOCUMENTED)
    return first in LIBRARIES and (undocumented or any(map(is_private, rest)))


@cache
def own_names() -> set[str]:
    """Private names that our code defines, and some of Python's own."""
    found = {"_replace", "_asdict", "_fields", "_make", "_exit", "_Decompress"}
    for tree in product().values():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef):
                found.add(node.name)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                found.add(node.id)
            elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                found |= (
                    {node.attr} if isinstance(node.value, ast.Name) and node.value.id == "self" else set()
                )
    return found


def uses(tree: ast.Module, strings: bool = True) -> list[str]:
    """`line: name` of each private name of a library."""
    found, ours = [], own_names()
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif strings and isinstance(node, ast.Constant) and isinstance(node.value, str):
            names = [node.value] if re.fullmatch(r"[a-z]\w*(\.\w+)+", node.value) else []
        found += [f"{node.lineno}: {name}" for name in names if of_a_library(name)]  # type: ignore[attr-defined]
        if isinstance(node, ast.Attribute):
            owner = node.value.id if isinstance(node.value, ast.Name) else ""
            foreign = is_private(node.attr) and owner not in ("self", "cls") and node.attr not in ours
            if foreign or node.attr in DEEPSPEED or (owner in LIBRARIES and is_private(node.attr)):
                found.append(f"{node.lineno}: .{node.attr}")
    return found


def test_the_table_names_files_and_tests_that_are_there() -> None:
    assert len(listed()) > 5
    missing = [name for pair in listed().items() for name in pair if not (ROOT / name).is_file()]
    assert missing == []


def test_each_listed_file_uses_something_private() -> None:
    idle = [name for name in listed() if not uses(product()[name])]
    assert idle == [], "files in CONTRIBUTING's table that use nothing private any more"


def test_no_other_file_uses_a_private_name_of_a_library() -> None:
    found = [
        f"{name}:{use}"
        for name, tree in product().items()
        if name not in listed()
        for use in uses(tree, strings=name not in ONLY_NAMED)
    ]
    assert found == []


@pytest.mark.parametrize(
    "line",
    [
        "import ray._private.worker",
        "from torch._dynamo import disable",
        "from timm.models import _features",
        "from mlflow.utils.rest_utils import http_request",
        "from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3",
        "import importlib; importlib.import_module('ray._raylet')",
        "import torch; torch._foreach_add_([], [])",
        "def drop(zero): zero._partition_everything()",
        "def key(tensor): return tensor.untyped_storage()._cdata",
        "def part(parameter): return parameter.ds_tensor",
    ],
)
def test_a_planted_use_is_found(line: str) -> None:
    assert len(uses(ast.parse(line))) == 1
    assert uses(ast.parse("import torch; torch.nn.Linear(1, 1); self._x = part._replace(a=1)")) == []
