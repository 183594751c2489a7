"""Pre-train, register, transfer: through job files and a real registry, which may be gone once the run has begun."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from sklearn.datasets import load_digits

from convmlp_platform.ledger.proof import check_ledger
from convmlp_platform.runs.init_record import read_record

JOBS = Path(__file__).parents[2] / "jobs"

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

RECIPE = {
    "data.path": "data/few",
    "data.image_size": 32,
    "model.options": "{}",
    "augment.crop": "pad",
    "augment.hflip": 0.0,
    "eval.every_epochs": 6,
    "training.epochs": 6,
    "training.global_batch_size": 10,
    "training.micro_batch_size": 10,
    "training.ema_decay": "null",
    "engine.precision": "fp32",
    "checkpoint.every_steps": 5,
    "tracking.register_as.name": "few",
    "launch.num_workers": 1,
}
"""What makes a few digits of jobs/transfer_caltech101.yaml's photographs."""


class Site:
    """A folder in which jobs run, as CONVMLP_ROOT."""

    def __init__(self, root: Path) -> None:
        self.root, self.output = root, ""
        self.environment = {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW_")}
        self.environment |= {"CONVMLP_ROOT": str(root), "OMP_NUM_THREADS": "1"}

    def convmlp(self, command: str, job: str, *, code: int = 0, **settings: object) -> str:
        """Of `code`; what it printed. `a__b` sets a.b."""
        names = {name.replace("__", "."): value for name, value in settings.items()}
        sets = [word for name, value in names.items() for word in ("--set", f"{name}={value}")]
        no_ray = ["--no-ray"] if command == "run" else []
        done = subprocess.run(
            [sys.executable, "-m", "convmlp_platform", command, *no_ray, str(JOBS / job), *sets],
            env=self.environment, cwd=self.root, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        assert done.returncode == code, done.stdout
        return done.stdout

    def transfer(self, name: str, source: str = "models:/convmlp-digits@champion", **settings: object) -> str:
        recipe = {key.replace(".", "__"): value for key, value in RECIPE.items()}
        return self.convmlp(
            "run", "transfer_caltech101.yaml", name=name, model__init_from=source, **(recipe | settings)
        )

    def top1(self, name: str) -> float:
        (evaluation,) = (
            json.loads((self.root / "runs" / name / "best" / "bundle.json").read_text())["provenance"],
        )
        return float(evaluation["metrics"]["eval/top1"])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    """With a registered model of ten digits, and a dataset of four images each of five of them, named otherwise."""
    site = Site(tmp_path_factory.mktemp("site"))
    site.convmlp("run", "prep_digits.yaml")
    site.convmlp(
        "run", "pretrain_digits.yaml", training__epochs=4, schedule__warmup_epochs=1, launch__num_workers=1
    )
    images, labels = load_digits(return_X_y=True)
    for label, name in enumerate(("five", "six", "seven", "eight", "nine"), start=5):
        of_class = images[labels == label].reshape(-1, 8, 8)
        for split, some in (("train", of_class[:4]), ("val", of_class[4:44])):
            folder = site.root / "few" / split / name
            folder.mkdir(parents=True)
            for number, pixels in enumerate(some):
                picture = Image.fromarray((pixels * 255 / 16).astype("uint8")).resize((32, 32))
                picture.convert("RGB").save(folder / f"{number}.png")
    site.convmlp("run", "prep_caltech101.yaml", name="few", source__path="few", output__path="data/few")
    return site


def test_transfer_beats_scratch_and_needs_the_registry_once(site: Site) -> None:
    checked = site.convmlp(
        "check", "transfer_caltech101.yaml", name="transfer", model__init_from="models:/convmlp-digits@champion",
        **{key.replace(".", "__"): value for key, value in RECIPE.items()},
    )  # fmt: skip
    assert (
        "start    weights of models:/convmlp-digits/1 (run pretrain-digits, dataset digits sha256:" in checked
    )
    assert "tensors, head fresh" in checked
    begun = site.transfer("transfer", training__max_steps=5)
    assert "model: weights of models:/convmlp-digits/1 (run pretrain-digits" in begun
    site.environment["MLFLOW_TRACKING_URI"] = f"http://127.0.0.1:{closed_port()}"
    try:
        site.transfer("transfer")
        refused = site.convmlp(
            "run", "transfer_caltech101.yaml", code=2, name="another",
            model__init_from="models:/convmlp-digits@champion",
            **{key.replace(".", "__"): value for key, value in RECIPE.items()},
        )  # fmt: skip
    finally:
        del site.environment["MLFLOW_TRACKING_URI"]
    assert "model.init_from: models:/convmlp-digits@champion" in refused
    run = site.root / "runs" / "transfer"
    assert check_ledger(run).ok
    record = read_record(run)
    assert record is not None and record.pinned == "models:/convmlp-digits/1"
    site.transfer("scratch", source="null")
    assert site.top1("transfer") > site.top1("scratch") + 10


def test_a_version_names_its_ancestor(site: Site) -> None:
    site.transfer("descendant", tracking__register_as__name="descendant", training__max_steps=5)
    script = (
        "import json, mlflow; client = mlflow.MlflowClient(); "
        "version = client.get_model_version_by_alias('descendant', 'champion'); "
        "run = client.get_run(version.run_id); print(json.dumps([version.tags, run.data.tags]))"
    )
    uri = f"sqlite:///{site.root}/mlflow.db"
    environment = site.environment | {"MLFLOW_TRACKING_URI": uri}
    output = subprocess.run([sys.executable, "-c", script], env=environment, check=True, capture_output=True)
    for tags in json.loads(output.stdout.splitlines()[-1]):
        assert tags["init.pinned"] == "models:/convmlp-digits/1"
        assert tags["init.source"] == "models:/convmlp-digits@champion"
        assert tags["init.run"] == "pretrain-digits" and len(tags["init.weights_sha256"]) == 64


def test_what_the_registry_lacks_is_told_with_what_it_has(site: Site) -> None:
    recipe = {key.replace(".", "__"): value for key, value in RECIPE.items()}
    for source, said in (
        ("models:/convmlp-digits@best", "its aliases: @candidate, @champion; its versions: 1"),
        ("models:/convmlp-digit/1", "there are: convmlp-digits"),
    ):
        told = site.convmlp(
            "check", "transfer_caltech101.yaml", code=2, name="none", model__init_from=source, **recipe
        )
        assert f"model.init_from: {source}" in told and said in told


def closed_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])
