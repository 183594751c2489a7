"""Wrong inputs of `convmlp k8s render` and `check`: one clear error each, exit code 2, nothing on standard output."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from convmlp_platform.cli.main import main

ROOT = Path(__file__).parents[3]
TINY, BIG, PREP = "jobs/pretrain_digits.yaml", "jobs/pretrain_convmlp.yaml", "jobs/prep_digits.yaml"


@pytest.fixture(autouse=True)
def _at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.delenv("CONVMLP_ROOT", raising=False)


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("jobs/pretrain_digit.yaml", "no such job file; did you mean jobs/pretrain_digits.yaml?"),
        (f"{TINY} --set model.nme=x", "did you mean model.name?"),
        (f"{BIG} --workers 6 --gpus-per-pod 4",
         "--workers 6 in pods of 4 GPUs (--gpus-per-pod) leaves GPUs of the last pod without a worker: 4 or 8 fit"),
        (f"{BIG} --gpus-per-pod 3 --set launch.num_workers=8 --workers 8",
         "--workers 8 in pods of 3 GPUs (--gpus-per-pod) leaves GPUs of the last pod without a worker: 6 or 9 fit"),
        (f"{BIG} --workers 16 --gpus-per-pod 8", "launch.num_workers (=16) is more than the 8 micro-batches of a step"),
        (f"{BIG} --workers 2 --min-workers 4 --gpus-per-pod 1", "--min-workers 4 is more than --workers 2"),
        (f"{BIG} --workers 8 --min-workers 6 --gpus-per-pod 4", "--min-workers 6 isn't a multiple of --gpus-per-pod 4"),
        (f"{TINY} --min-workers 1 --queue vision", "--min-workers 1: Kueue admits a job as a whole"),
        (f"{TINY} --overlay autoscale --queue vision",
         "--queue: Kueue admits a job as a whole, so it can't be autoscaled"),
        (f"{TINY} --overlay autoscal",
         "--overlay autoscal: there is none of this name: autoscale, spot, external-services; did you mean autoscale?"),
        (f"{PREP} --overlay autoscale", "--overlay autoscale: kind: prepare starts on the pods that are there"),
        (f"{PREP} --gpus-per-pod 1", "--gpus-per-pod 1: a preparation uses no GPU"),
        (f"{PREP} --min-workers 1", "--min-workers 1: only a training goes on with fewer workers, not kind: prepare"),
        ("jobs/evaluate_digits.yaml --workers 2", "kind: evaluate is the work of one worker with one GPU at most"),
        (f"{TINY} --name Digits_1", "--name Digits_1: can't name a RayJob"),
        (f"{TINY} --name {'a' * 48}", "has 48 characters, but KubeRay takes 47 at most"),
        (f"{TINY} --set name=1st", "name: 1st: can't name a RayJob"),
        (f"{TINY} --queue Vision_1", "--queue Vision_1: a name in Kubernetes is lower-case letters"),
        (f"{TINY} --image convmlp", "--image convmlp: say its tag or digest"),
        (f"{TINY} --image 'my image:1'", "--image 'my image:1': not an image"),
        (f"{TINY} --set launch.num_workers=1 --workers 2",
         "--set launch.num_workers=1: --workers decides this, which makes it 2"),
        (f"{TINY} --set launch.use_gpu=true",
         "--set launch.use_gpu=true: --gpus-per-pod decides this, which makes it false"),
        (f"{TINY} --set launch.address=10.0.0.1:6379",
         "launch.address (=10.0.0.1:6379): a rendered job brings its own cluster"),
        (f"{TINY} --set tracking.uri=sqlite:///mlflow.db",
         "tracking.uri (=sqlite:///mlflow.db): pods have MLFLOW_TRACKING_URI, which wins"),
        (f"{TINY} --set data.path=/data/digits", "data.path (=/data/digits): is on no disk that pods share"),
        (f"{TINY} --set checkpoint.store=s3://bucket/runs",
         "checkpoint.store (=s3://bucket/runs): the pods have no keys for it"),
        (f"{TINY} --set data.path=https://me:hidden@host/digits", "has a password or a token in its URL"),
        (f"{TINY} --set 'tracking.tags={{a: b}}'", "it would pass two shells"),
        (f"{BIG} --workers 8 --set engine.precision=fp16", "engine.precision: fp16 needs GPUs: give --gpus-per-pod"),
        (f"{BIG} --workers 8 --gpus-per-pod 4 --set launch.placement=STRICT_PACK",
         "STRICT_PACK wants all 8 workers in one pod, but there are 2 pods"),
        (f"{BIG} --workers 8 --gpus-per-pod 4 --set launch.placement=STRICT_SPREAD",
         "STRICT_SPREAD wants a pod for each worker"),
        (f"{TINY} --deadline-hours 0.1", "--deadline-hours 0.1 is over before --patience 1800 s is"),
        (f"{ROOT}/{TINY} --from-image", "--from-image runs a job that the image holds, jobs/NAME.yaml"),
        (f"{BIG} --gpus-per-pod 8", "launch.num_workers: auto follows from machines, and a rendered job says how many"),
        (f"{BIG} --workers 8 --gpus-per-pod 8 --overlay autoscale --set engine.precision=auto",
         "engine.precision: auto follows from GPUs that aren't there when an autoscaled job starts"),
        (f"{TINY} --set model.name=convmlp_xx", "model.name"),
    ],
)  # fmt: skip
def test_it_is_refused_in_one_sentence(line: str, told: str, capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["k8s", "render", *shlex.split(line)])
    out, err = capsys.readouterr()
    assert code == 2, out + err
    assert told in err
    assert len(err.strip().splitlines()) == 1, err
    assert "hidden" not in err and "Traceback" not in err
    assert out == ""


def test_a_files_name_must_do_for_a_config_map(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "my job.yaml"
    file.write_text((ROOT / PREP).read_text())
    assert main(["k8s", "render", str(file), "--image", "convmlp:1"]) == 2
    assert "the file's name, 'my job.yaml', can't be a ConfigMap's key" in capsys.readouterr().err


def test_check_refuses_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    for line in (
        f"{BIG} --workers 6 --gpus-per-pod 4",
        f"{TINY} --set model.nme=x",
        f"{TINY} --image convmlp",
    ):
        assert main(["k8s", "render", *line.split()]) == 2
        refused = capsys.readouterr().err
        assert main(["k8s", "check", *line.split()]) == 2
        assert capsys.readouterr() == ("", refused)


@pytest.mark.parametrize(
    ("line", "told"),
    [
        (f"{TINY} --workers 0", "argument --workers: must be a whole number from 1, not '0'"),
        (f"{TINY} --gpus-per-pod=-1", "argument --gpus-per-pod: must be a whole number from 0, not '-1'"),
        (f"{TINY} --deadline-hours forever", "argument --deadline-hours: must be hours, of a year at most"),
        ("", "the following arguments are required: JOB"),
    ],
)
def test_an_option_is_refused_by_its_own_name(
    line: str, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["k8s", "render", *shlex.split(line)]) == 2
    assert told in capsys.readouterr().err


def test_all_that_is_wrong_is_told_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    line = f"{BIG} --workers 6 --gpus-per-pod 4 --queue No --set launch.address=local"
    assert main(["k8s", "render", *shlex.split(line)]) == 2
    told = capsys.readouterr().err.strip().splitlines()
    assert len(told) == 3
    assert all(BIG in one for one in told)
