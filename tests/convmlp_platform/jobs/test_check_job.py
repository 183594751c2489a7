"""What `convmlp run` refuses before a job's first step, `convmlp check` refuses, in the same words, of every kind."""

from __future__ import annotations

import contextlib
import copy
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from annotated import stripes
from prepared import digits
from safetensors.torch import save_file
from saved import save_now
from unsent import without_replayer

import convmlp
from convmlp_platform.checkpoints.checkpointer import Checkpoint, Checkpointer
from convmlp_platform.cli.main import main
from convmlp_platform.config.load import load_job
from convmlp_platform.config.schema import JOB_KINDS, TrainJob
from convmlp_platform.data.dataset.split import open_manifest
from convmlp_platform.jobs.kinds import KINDS, JobKind, TrainingKind, kind_of
from convmlp_platform.launch.cluster import capacity, connect
from convmlp_platform.models.bundle import BundleSpec, write_bundle
from convmlp_platform.runs import lease
from convmlp_platform.training.build.build_run import begin
from data_prep.output_folder import exclusive_folder

DIGITS = tuple("0123456789")
HALF = (0.5, 0.5, 0.5)
Values = dict[str, Any]
Before = Callable[[Path], None]

TRAIN: Values = {
    "kind": "train",
    "name": "it",
    "model": {"name": "convmlp_tiny"},
    "data": {"path": "DIGITS", "image_size": 32, "num_workers": 0},
    "optimizer": {"lr": 1e-3},
    "training": {"epochs": 1, "global_batch_size": 16, "micro_batch_size": 8},
    "checkpoint": {"path": "ROOT/runs"},
    "tracking": {"uri": "sqlite:///ROOT/mlflow.db"},
    "launch": {"address": "local", "use_gpu": False},
}
EVALUATE: Values = {
    "kind": "evaluate",
    "name": "it",
    "model": {"from": "ROOT/model"},
    "data": {"path": "DIGITS", "num_workers": 0},
    "output": {"path": "ROOT/evaluations"},
    "tracking": {"uri": "sqlite:///ROOT/mlflow.db"},
    "launch": {"address": "local", "use_gpu": False},
}
PREPARE: Values = {
    "kind": "prepare",
    "name": "it",
    "source": {"kind": "digits"},
    "output": {"path": "ROOT/out", "formats": ["webdataset"]},
    "tracking": {"uri": "sqlite:///ROOT/mlflow.db"},
    "launch": {"address": "local"},
}
SWEEP: Values = {"kind": "sweep", "name": "it", "job": TRAIN, "space": {"optimizer.lr": [1e-3, 1e-2]}}


@pytest.fixture(scope="module", autouse=True)
def unsent() -> Iterator[None]:
    with without_replayer():
        yield


def network(num_classes: int = 10, name: str = "convmlp_tiny") -> dict[str, torch.Tensor]:
    return convmlp.create_model(name, num_classes, image_size=32).state_dict()


def a_bundle(root: Path, **changed: Any) -> None:
    classes = changed.get("classes", DIGITS)
    values = {"model": "convmlp_tiny", "num_classes": len(classes), "classes": classes, "image_size": 32}
    spec = BundleSpec(**(values | {"mean": HALF, "std": HALF} | changed))
    write_bundle(root / "model", network(len(classes)), spec)


def a_file(root: Path) -> None:
    save_file(network(), root / "model.safetensors")


def another_network(root: Path) -> None:
    save_file(network(name="resnet10t"), root / "model.safetensors")


def its_weights(root: Path) -> None:
    save_file(network(name="pure_mlp_s"), root / "model.safetensors")


def seven_classes(root: Path) -> None:
    save_file(network(7), root / "model.safetensors")


def garbage(root: Path) -> None:
    (root / "model.pth").write_bytes(b"not weights")


def with_code(root: Path) -> None:
    torch.save({"model": network(), "args": capacity.Node(1, 0)}, root / "model.pth")


def a_backbone(root: Path) -> None:
    save_file(network(), root / "model.safetensors")


def a_file_called(name: str) -> Before:
    def make(root: Path) -> None:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("{")

    return make


def begun_job(root: Path) -> TrainJob:
    file = root / "begun.yaml"
    file.write_text(json.dumps(filled(TRAIN, root)))
    found = load_job(file).resolved()
    assert isinstance(found, TrainJob)
    return found


def a_run_of_another_recipe(root: Path) -> None:
    begun = begun_job(root)
    begin(begun.model_copy(update={"seed": 3}), open_manifest(str(digits())).digest)


def damaged_checkpoints(root: Path) -> None:
    begin(begun_job(root), open_manifest(str(digits())).digest)
    checkpointer = Checkpointer(root / "runs/it/checkpoints")
    save_now(checkpointer, Checkpoint(5, {"model": {"a": torch.ones(3)}}, {"step": 5}))
    (root / "runs/it/checkpoints/step-000000005/model.safetensors").write_bytes(b"")


def a_damaged_copy(root: Path) -> None:
    a_file(root)
    begun = begun_job(root)
    source = begun.model.model_copy(update={"init_from": str(root / "model.safetensors")})
    begin(begun.model_copy(update={"model": source}), open_manifest(str(digits())).digest)
    (root / "runs/it/init/model.safetensors").write_bytes(b"")


def another_dataset(root: Path) -> None:
    other = filled(PREPARE, root) | {"shuffle_seed": 3}
    (root / "other.yaml").write_text(json.dumps(other))
    assert main(["run", "--no-ray", str(root / "other.yaml")]) == 0


def foreign_shards(root: Path) -> None:
    folder = root / "out/webdataset"
    folder.mkdir(parents=True)
    (folder / "train-000000.tar").touch()


def an_image_folder(root: Path) -> None:
    (root / "images/train/a").mkdir(parents=True)


def filled(values: Values, root: Path) -> Values:
    text = json.dumps(values).replace("ROOT", str(root)).replace("DIGITS", str(digits()))
    filled: Values = json.loads(text.replace("STRIPES", str(stripes())) if "STRIPES" in text else text)
    return filled


def changed(values: Values, settings: Values) -> Values:
    values = copy.deepcopy(values)
    for name, value in settings.items():
        *parents, last = name.split("/")
        place = values
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last] = value
    return values


def refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> list[str]:
    """The errors of a command that ends with code 2."""
    capsys.readouterr()
    assert main(words) == 2
    lines = capsys.readouterr().err.splitlines()
    return [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]


NONE = "sha256:" + "0" * 64
INIT = "model/init_from"
FROM = "model/from"
FILE = {FROM: "ROOT/model.safetensors", "model/name": "convmlp_tiny"}
CASES: list[tuple[str, Values, Values, Before | None]] = [
    # Jobs that don't make sense at all.
    ("schema", TRAIN, {"optimizer/lr": -1, "engine/x": 1}, None),
    ("no such kind", TRAIN, {"kind": "trian"}, None),
    # Training: data.
    ("no dataset", TRAIN, {"data/path": "ROOT/none"}, None),
    ("another dataset", TRAIN, {"data/digest": NONE}, None),
    ("damaged manifest", TRAIN, {"data/path": "ROOT/d"}, a_file_called("d/manifest.json")),
    ("no such split", TRAIN, {"data/eval_split": "test"}, None),
    ("no such format", TRAIN, {"data/format": "ffcv"}, None),
    ("another task", TRAIN, {"data/path": "STRIPES"}, None),
    ("too few images", TRAIN, {"training/global_batch_size": 4096}, None),
    # Training: network and recipe.
    ("no such network", TRAIN, {"model/name": "convmlp_xxl"}, None),
    ("no such option", TRAIN, {"model/options": {"depth_of_all": 3}}, None),
    ("number of classes", TRAIN, {"model/num_classes": 7}, None),
    ("image size", TRAIN, {"model/name": "pure_mlp_s", "data/image_size": 40}, None),
    ("warm-up", TRAIN, {"schedule/warmup_steps": 10**6}, None),
    ("optimizer", TRAIN, {"optimizer/name": "sgd", "optimizer/momentum": 0.0}, None),
    ("augmentation", TRAIN, {"augment/rand_augment": "nonsense"}, None),
    # Training: weights to start from.
    ("no such weights", TRAIN, {INIT: "ROOT/none.pth"}, None),
    ("no weights", TRAIN, {INIT: "ROOT/model.pth"}, garbage),
    ("weights with code", TRAIN, {INIT: "ROOT/model.pth"}, with_code),
    ("weights of another network", TRAIN, {INIT: "ROOT/model.safetensors"}, another_network),
    ("no average", TRAIN, {INIT: "ROOT/model.safetensors", "model/init_weights": "ema"}, a_file),
    ("nothing to choose", TRAIN, {INIT: "ROOT/model", "model/init_weights": "raw"}, a_bundle),
    ("no such version", TRAIN, {INIT: "models:/none/3"}, None),
    # Training: where it writes, and what is there.
    ("runs are a file", TRAIN, {}, a_file_called("runs")),
    ("the run is a file", TRAIN, {}, a_file_called("runs/it")),
    ("no such store", TRAIN, {"tracking/uri": "ftp://x"}, None),
    ("no callbacks", TRAIN, {"callbacks": ["no_such.module:A", "json:dumps", "json:JSONDecoder"]}, None),
    ("another recipe", TRAIN, {}, a_run_of_another_recipe),
    ("damaged run.json", TRAIN, {}, a_file_called("runs/it/run.json")),
    ("damaged init.json", TRAIN, {INIT: "ROOT/x.pth"}, a_file_called("runs/it/init/init.json")),
    ("damaged rollbacks", TRAIN, {}, a_file_called("runs/it/rollbacks.json")),
    ("damaged copy", TRAIN, {INIT: "ROOT/model.safetensors"}, a_damaged_copy),
    ("damaged checkpoints", TRAIN, {}, damaged_checkpoints),
    # Evaluations.
    ("no model", EVALUATE, {}, None),
    ("no such version", EVALUATE, {FROM: "models:/none/3"}, None),
    ("no name", EVALUATE, {FROM: "ROOT/model.safetensors"}, a_file),
    ("no such network", EVALUATE, FILE | {"model/name": "convmlp_xxl"}, a_file),
    ("weights of another network", EVALUATE, FILE, another_network),
    ("weights with code", EVALUATE, FILE | {FROM: "ROOT/model.pth"}, with_code),
    ("no weights", EVALUATE, FILE | {FROM: "ROOT/model.pth"}, garbage),
    ("head of other classes", EVALUATE, FILE, seven_classes),
    ("no average", EVALUATE, FILE | {"model/weights": "ema"}, a_file),
    (
        "a backbone alone",
        EVALUATE,
        FILE | {"data/path": "STRIPES", "data/split": "train", "task/name": "semantic_fpn"},
        a_backbone,
    ),
    ("options it wasn't made with", EVALUATE, {}, lambda root: a_bundle(root, options={"conv_blocks": 2})),
    ("other classes", EVALUATE, {}, lambda root: a_bundle(root, classes=("1", "0", *DIGITS[2:]))),
    ("another number of classes", EVALUATE, {}, lambda root: a_bundle(root, classes=tuple("abc"))),
    ("another task", EVALUATE, {"data/path": "STRIPES", "data/split": "train"}, a_bundle),
    ("no dataset", EVALUATE, {"data/path": "ROOT/none"}, a_bundle),
    ("no such split", EVALUATE, {"data/split": "test"}, a_bundle),
    ("no such format", EVALUATE, {"data/format": "ffcv"}, a_bundle),
    (
        "image size",
        EVALUATE,
        FILE | {"model/name": "pure_mlp_s", "data/image_size": 40},
        its_weights,
    ),
    ("labels", EVALUATE, {"evaluate/real_labels": "ROOT/none.json"}, a_bundle),
    ("permutation", EVALUATE, {"evaluate/permutation": {"kinds": ["patches"], "patch_size": 5}}, a_bundle),
    ("output is a file", EVALUATE, {}, lambda root: (a_bundle(root), a_file_called("evaluations")(root))[0]),
    ("no such store", EVALUATE, {"tracking/uri": "ftp://x"}, a_bundle),
    # Preparations.
    ("no source", PREPARE, {"source": {"kind": "imagefolder", "path": "ROOT/none"}}, None),
    ("an empty source", PREPARE, {"source": {"kind": "imagefolder", "path": "ROOT/images"}}, an_image_folder),
    (
        "output inside source",
        PREPARE,
        {"source": {"kind": "imagefolder", "path": "ROOT/images"}, "output/path": "ROOT/images/out"},
        an_image_folder,
    ),
    ("output is a file", PREPARE, {}, a_file_called("out")),
    ("another finished dataset", PREPARE, {}, another_dataset),
    ("a damaged finished dataset", PREPARE, {}, a_file_called("out/manifest.json")),
    ("shards of nobody", PREPARE, {}, foreign_shards),
    ("no such split to keep", PREPARE, {"keep": {"holdout": 3}}, None),
    ("no such store", PREPARE, {"tracking/uri": "ftp://x"}, None),
    # Sweeps.
    ("no dataset", SWEEP, {"job/data/path": "ROOT/none"}, None),
    ("a trial that makes no sense", SWEEP, {"space": {"optimizer.lr": [1e-3, -1.0]}}, None),
    ("a trial's network", SWEEP, {"space": {"model.name": ["convmlp_tiny", "convmlp_xxl"]}}, None),
    ("weights of another network", SWEEP, {"job/model/init_from": "ROOT/model.safetensors"}, another_network),
    ("nothing to stop", SWEEP, {"scheduler": {"name": "asha", "grace_epochs": 9}}, None),
    ("what can't be varied", SWEEP, {"space": {"tracking.experiment": ["a", "b"]}}, None),
]

COSTLY = [("image size", TRAIN), ("image size", EVALUATE), ("damaged checkpoints", TRAIN)]
COSTLY += [("weights of another network", SWEEP), ("a trial's network", SWEEP)]
"""They start a run, or make networks of several sizes."""


@pytest.mark.parametrize(
    ("values", "settings", "before"),
    [
        pytest.param(
            *case,
            id=f"{case[0]['kind']}: {name}",
            marks=[pytest.mark.slow] if (name, case[0]) in COSTLY else [],
        )
        for name, *case in CASES
    ],
)
def test_what_run_refuses_check_refuses(
    values: Values,
    settings: Values,
    before: Before | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("CONVMLP_ROOT", str(tmp_path))
    if before is not None:
        before(tmp_path)
    job = tmp_path / "job.yaml"
    job.write_text(json.dumps(filled(changed(values, settings), tmp_path)))
    told = [line.removeprefix(f"{job}: ") for line in refused(["check", str(job)], capsys)]
    assert told and not any("Traceback" in line for line in told)
    no_ray = (
        [] if values["kind"] == "sweep" else ["--no-ray"]
    )  # refused before Ray starts, or the test would last
    for line in refused(["run", *no_ray, str(job)], capsys):
        assert line.removeprefix(f"{job}: ") in told


@pytest.fixture
def small_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Ray of one CPU, on this machine or elsewhere, that isn't started."""

    @contextlib.contextmanager
    def connected(_address: str, _env: Any = None) -> Iterator[None]:
        yield None

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(connect, "connect", connected)
    # The server of the processes that would train takes 10 s of a core for its imports.
    monkeypatch.setattr(TrainingKind, "preflight_of_start", JobKind.preflight_of_start)
    for name in ("cluster_nodes", "own_nodes"):
        monkeypatch.setattr(capacity, name, lambda: [capacity.Node(1, 0)])


@pytest.mark.parametrize("address", ["local", "127.0.0.1:6379"])
@pytest.mark.parametrize(
    ("values", "settings"),
    [
        (TRAIN, {"launch/num_workers": 2}),
        (TRAIN, {"launch/use_gpu": True}),
        (TRAIN, {"launch/use_gpu": "auto", "engine/precision": "fp16"}),
        (EVALUATE, {"launch/cpus": 4}),
        (EVALUATE, {"launch/use_gpu": True}),
        (EVALUATE, {"launch/use_gpu": "auto", "evaluate/precision": "fp16"}),
        (SWEEP, {"job/launch/num_workers": 2}),
    ],
)
@pytest.mark.usefixtures("small_cluster")
def test_what_a_cluster_or_this_machine_lacks_is_said_by_both(
    values: Values,
    settings: Values,
    address: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("CONVMLP_ROOT", str(tmp_path))
    a_bundle(tmp_path)
    where = "job/launch/address" if values is SWEEP else "launch/address"
    job = tmp_path / "job.yaml"
    job.write_text(json.dumps(filled(changed(values, settings | {where: address}), tmp_path)))
    told = [line.removeprefix(f"{job}: ") for line in refused(["check", str(job)], capsys)]
    assert refused(["run", str(job)], capsys) == told


@pytest.mark.parametrize("values", [TRAIN, SWEEP, EVALUATE, PREPARE], ids=lambda values: values["kind"])
@pytest.mark.usefixtures("small_cluster")
def test_what_another_driver_has_is_refused_by_both(
    values: Values, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CONVMLP_ROOT", str(tmp_path))
    a_bundle(tmp_path)
    job = tmp_path / "job.yaml"
    job.write_text(json.dumps(filled(values, tmp_path)))
    held = {
        "evaluate": lease.result_lease(tmp_path / "evaluations/it").hold(),
        "prepare": exclusive_folder(tmp_path / "out"),
    }.get(values["kind"], lease.run_lease(tmp_path / "runs/it").hold())
    with held:
        told = [line.removeprefix(f"{job}: ") for line in refused(["check", str(job)], capsys)]
        assert refused(["run", str(job)], capsys) == told
        assert f"process {os.getpid()}" in told[0]


def test_good_jobs_of_every_kind_pass_and_leave_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("CONVMLP_ROOT", str(tmp_path))
    a_bundle(tmp_path)
    for values in (TRAIN, EVALUATE, PREPARE, SWEEP):
        job = tmp_path / "job.yaml"
        job.write_text(json.dumps(filled(values, tmp_path)))
        assert main(["check", str(job)]) == 0, capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["job.yaml", "model"]


@pytest.mark.slow
def test_this_machine_is_counted_as_ray_counts_it() -> None:
    """`own_nodes` asks a private function of Ray; an upgrade that changes it is found here."""
    with connect.connect("local"):
        assert capacity.cluster_nodes() == capacity.own_nodes()


def test_every_kind_of_job_has_its_checks_and_its_run() -> None:
    assert KINDS.keys() == JOB_KINDS.keys()
    for name, kind in KINDS.items():
        job = JOB_KINDS[name].model_construct(kind=name)
        assert isinstance(kind_of(job), JobKind) and type(kind_of(job)) is kind


@pytest.mark.parametrize("values", [TRAIN, SWEEP, EVALUATE, PREPARE], ids=lambda values: values["kind"])
def test_an_error_in_a_job_file_costs_no_import_of_torch_or_ray(values: Values, tmp_path: Path) -> None:
    job = tmp_path / "job.yaml"
    job.write_text(json.dumps(changed(values, {"nonsense": 1})))
    code = (
        "import sys; from convmlp_platform.cli.main import main; import convmlp_platform.jobs.run_job; "
        f"codes = [main([command, {str(job)!r}]) for command in ('check', 'run')]; "
        "print(codes, sorted({'torch', 'ray', 'mlflow'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout.splitlines()[-1] == "[2, 2] []", done.stderr
