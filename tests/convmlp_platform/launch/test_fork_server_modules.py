"""A start of training imports next to nothing: the fork server has it all."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from prepared import digits
from ray_site import REPOSITORY

from convmlp.models.variants import ALIASES, VARIANTS
from convmlp_platform.config.load import load_job
from convmlp_platform.launch.workers.fork_server_link import modules_for

JOB = load_job("jobs/pretrain_digits.yaml").resolved()

HEAVY = (
    "torch",
    "torchvision",
    "timm",
    "deepspeed",
    "accelerate",
    "sympy",
    "scipy",
    "numpy",
    "pydantic",
    "mlflow",
    "ray",
)

RUN = """
import importlib, sys
from convmlp_platform.config.load import load_job
from convmlp_platform.launch.workers.fork_server_link import modules_for

job = load_job("jobs/pretrain_digits.yaml", sys.argv[1:]).resolved()
for name in modules_for(job):
    importlib.import_module(name)
before = set(sys.modules)
from convmlp_platform.training.run import run
run(job)
print("NEW", *sorted(set(sys.modules) - before))
"""


def test_only_networks_and_augmentation_of_timms_parts_wait_for_timm() -> None:
    by_name = {name: "timm.data" in _modules("model", name=name) for name in [*VARIANTS, *ALIASES]}
    assert by_name == {name: VARIANTS[ALIASES.get(name, name)].network == "Mixer" for name in by_name}
    assert "timm.data" in _modules("model", name="resnet18")
    for setting in ({"mixup": 0.2}, {"random_erasing": 0.1}, {"rand_augment": "rand-m9"}):
        assert "timm.data" in _modules("augment", **setting)


def _modules(section: str, **values: object) -> list[str]:
    changed = getattr(JOB, section).model_copy(update=values)
    return modules_for(JOB.model_copy(update={section: changed}))


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp", "deepspeed"])
def test_a_run_imports_next_to_nothing_more(tmp_path: Path, strategy: str) -> None:
    settings = ("training.max_steps=2", "tracking.register_as=null", f"engine.strategy={strategy}")
    paths = os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "platform")])
    done = subprocess.run(
        [sys.executable, "-c", RUN, f"data.path={digits('webdataset')}", *settings],
        env=os.environ | {"CONVMLP_ROOT": str(tmp_path), "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        cwd=REPOSITORY, text=True, capture_output=True, timeout=250,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    mark, *new = done.stdout.splitlines()[-1].split()
    assert mark == "NEW"
    new = [name for name in new if name.partition(".")[0] in HEAVY or name.startswith("convmlp")]
    assert len(new) < 40, new
