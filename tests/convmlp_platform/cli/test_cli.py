"""The command line as a user meets it: exit codes, and what stands on the terminal."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from convmlp_platform.cli import main as cli
from convmlp_platform.cli.main import main
from convmlp_platform.config.schema import JOB_KINDS
from convmlp_platform.errors import LaunchError
from data_prep.config import DigitsSource, OutputConfig, PrepareConfig
from data_prep.errors import DataPrepError
from data_prep.prepare import prepare

ROOT = Path(__file__).parents[3]
JOBS = ROOT / "jobs"


@pytest.fixture(autouse=True)
def _in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("CONVMLP_ROOT", "MLFLOW_TRACKING_URI", "RAY_ADDRESS", "RAY_AUTH_MODE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "digits"
    output = OutputConfig(path=path, formats=("webdataset",), samples_per_shard=512)
    prepare(PrepareConfig(source=DigitsSource(), output=output), progress=lambda line: None)
    return path


def convmlp(*words: str, **options: Any) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(ROOT), str(ROOT / "platform"), os.environ.get("PYTHONPATH", "")])
    env = os.environ | {"PYTHONPATH": path}
    command = [sys.executable, "-m", "convmlp_platform", *words]
    return subprocess.run(
        command, env=env, capture_output=True, text=True, timeout=120, check=False, **options
    )


def test_help_lists_the_commands_and_imports_nothing_heavy() -> None:
    code = (
        "import sys; from convmlp_platform.cli.main import main; main(['--help']); "
        "print('heavy:', sorted({'torch', 'ray', 'mlflow', 'pydantic'} & set(sys.modules)))"
    )
    path = os.pathsep.join([str(ROOT), str(ROOT / "platform")])
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True
    )
    assert done.stdout.splitlines()[-1] == "heavy: []"
    for command in ("run", "check", "show", "schema", "models", "predict", "data", "demo", "replay-tracking"):
        assert f"\n    {command}" in done.stdout


def test_a_wrong_job_is_one_clear_error_and_exit_code_2(tmp_path: Path) -> None:
    job = JOBS / "pretrain_digits.yaml"
    done = convmlp(str(job), "--set", "optimizer.learning_rate=1", "--set", "training.epochs=0", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.splitlines() == [
        f"error: {job}: optimizer.learning_rate: unknown key (from --set); did you mean optimizer.lr?",
        f"error: {job}: training.epochs: must be greater than 0 (got 0, from --set)",
    ]
    assert list(tmp_path.iterdir()) == []


def test_a_missing_job_file_is_an_error_with_its_neighbour(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", str(JOBS / "pretrain_digit.yaml")]) == 2
    assert f"did you mean {JOBS / 'pretrain_digits.yaml'}?" in capsys.readouterr().err


def test_a_job_file_is_a_command_itself(tmp_path: Path) -> None:
    shim = tmp_path / "bin" / "python"
    shim.parent.mkdir()
    shim.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    shim.chmod(0o755)
    path = os.pathsep.join([str(ROOT), str(ROOT / "platform")])
    env = os.environ | {"PYTHONPATH": path, "PATH": f"{shim.parent}{os.pathsep}{os.environ['PATH']}"}
    command = [str(JOBS / "prep_imagenet.yaml"), "--no-ray", "--set", "source.path=nowhere"]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith(f"error: source.path: {tmp_path / 'nowhere'} is not a folder")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "data").exists()


def test_verify_of_a_good_dataset(capsys: pytest.CaptureFixture[str], digits: Path) -> None:
    assert main(["data", "verify", str(digits)]) == 0
    assert "1,797 payloads, all as written" in capsys.readouterr().out


def test_show_prints_a_job_that_loads_again(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["show", str(JOBS / "pretrain_convmlp.yaml"), "--set", "optimizer.lr=1e-3"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("kind: train\nname: pretrain-convmlp-s\n")
    assert yaml.safe_load(shown)["data"]["path"] == str(tmp_path / "data/imagenet")
    Path("shown.yaml").write_text(shown)
    assert main(["show", "shown.yaml"]) == 0
    assert capsys.readouterr().out == shown


def test_schema_is_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema", "--kind", "prepare"]) == 0
    assert json.loads(capsys.readouterr().out)["else"]["properties"]["kind"]["const"] == "prepare"


@pytest.mark.parametrize("kind", JOB_KINDS)
def test_every_kind_of_job_has_a_schema(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema", "--kind", kind]) == 0
    assert json.loads(capsys.readouterr().out)["else"]["properties"]["kind"]["const"] == kind


def test_models_lists_ours_and_timms(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models"]) == 0
    names = capsys.readouterr().out.split()
    assert names[:4] == ["convmlp_tiny", "convmlp_s", "convmlp_m", "convmlp_l"]
    assert {"mixer_b16", "cyclemlp_b1", "pure_mlp_s"} <= set(names)
    assert main(["models", "resnet18*"]) == 0
    assert "resnet18" in capsys.readouterr().out.split()
    assert main(["models", "resnt"]) == 2
    assert capsys.readouterr().err == "error: no model's name matches 'resnt'; try '*resnt*'\n"


def test_check_of_a_good_job_says_what_it_would_do(capsys: pytest.CaptureFixture[str], digits: Path) -> None:
    job = str(JOBS / "pretrain_digits.yaml")
    settings = ["--set", f"data.path={digits}", "--set", "training.epochs=3", "--set", "launch.address=local"]
    assert main(["check", job, *settings]) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[0] == f"{job}: train pretrain-digits"
    assert "1,438 train + 359 val images, 10 classes, webdataset, sha256:" in out
    assert "convmlp_tiny: 8" in out
    assert "(exact)" in out
    assert "(estimated)" in out
    assert out.endswith("no problems found\n")
    assert list(Path.cwd().iterdir()) == []


def test_check_lists_every_problem(capsys: pytest.CaptureFixture[str], digits: Path) -> None:
    Path("file").touch()
    wrong = {
        "data.path": str(digits),
        "data.format": "ffcv",
        "data.eval_split": "test",
        "model.num_classes": "9",
        "model.options": "{num_heads: 2}",
        "checkpoint.path": "file/runs",
        "tracking.uri": "ftp://x",
        "launch.address": "127.0.0.1:1",
    }
    words = [word for name, value in wrong.items() for word in ("--set", f"{name}={value}")]
    assert main(["check", str(JOBS / "pretrain_digits.yaml"), *words]) == 2
    captured = capsys.readouterr()
    lines = captured.err.splitlines()
    for part in (
        "data.format: dataset digits has no ffcv shards; it has webdataset",
        f"data.eval_split: the dataset at {digits} has no split 'test'; it has train, val",
        f"model.num_classes (=9): the dataset at {digits} has 10 classes",
        "model.name (=convmlp_tiny): ",
        f"{Path.cwd() / 'file'} is a file, not a folder",
        "tracking.uri (='ftp://x')",
        "no Ray cluster can be reached at 127.0.0.1:1",
    ):
        assert [line for line in lines if part in line], f"{part!r} is not in {captured.err}"
    assert all(line.startswith("error: ") for line in lines)
    assert "7 problems" in captured.out


def test_check_of_a_dataset_that_is_not_there(capsys: pytest.CaptureFixture[str], digits: Path) -> None:
    job = str(JOBS / "pretrain_digits.yaml")
    assert main(["check", job, "--set", "data.path=nowhere"]) == 2
    assert "data.path: no dataset manifest at" in capsys.readouterr().err
    digest = "sha256:" + "0" * 64
    assert main(["check", job, "--set", f"data.path={digits}", "--set", f"data.digest={digest}"]) == 2
    assert "data.digest: the dataset at" in capsys.readouterr().err


def test_check_of_storage_that_refuses(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(JOBS / "prep_digits.yaml"), "--set", "output.path=/proc/x/y"]) == 2
    assert "output.path (=/proc/x/y): " in capsys.readouterr().err


def test_check_of_a_source_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(JOBS / "prep_imagenet.yaml")]) == 2
    assert "source.path: " in capsys.readouterr().err


def test_verify_names_a_damaged_shard(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    output = OutputConfig(path=tmp_path / "d", formats=("webdataset",), samples_per_shard=2000)
    prepare(PrepareConfig(source=DigitsSource(), output=output), progress=lambda line: None)
    shard = next((tmp_path / "d").rglob("val*.tar"))
    content = bytearray(shard.read_bytes())
    content[5000] ^= 1
    shard.write_bytes(content)
    assert main(["data", "verify", str(tmp_path / "d")]) == 2
    assert shard.name in capsys.readouterr().err
    assert main(["data", "verify", str(tmp_path / "nowhere")]) == 2


class Launch:
    """Stands where `jobs.run_job.launch` is: notes the call, and ends as the test says."""

    def __init__(self) -> None:
        self.end: int | BaseException = 0
        self.calls: list[tuple[Any, bool]] = []

    def __call__(self, job: object, *, use_ray: bool, given: object = None) -> int:
        self.calls.append((job, use_ray))
        if isinstance(self.end, BaseException):
            raise self.end
        return self.end


@pytest.fixture
def launch(monkeypatch: pytest.MonkeyPatch) -> Launch:
    entry, launch = ModuleType("convmlp_platform.jobs.run_job"), Launch()
    entry.launch = launch  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "convmlp_platform.jobs.run_job", entry)
    return launch


def test_run_hands_the_resolved_job_to_launch(launch: Launch, tmp_path: Path) -> None:
    job = str(JOBS / "pretrain_digits.yaml")
    assert main([job, "--set", "seed=7"]) == 0
    assert main(["run", job, "--no-ray"]) == 0
    first = launch.calls[0][0]
    assert (first.seed, first.data.path) == (7, str(tmp_path / "data/digits"))
    assert [use_ray for _, use_ray in launch.calls] == [True, False]


@pytest.mark.parametrize(
    ("end", "code", "message"),
    [
        (LaunchError("a\nb"), 2, "error: a\nerror: b\n"),
        (DataPrepError("c"), 2, "error: c\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
        (7, 7, ""),
    ],
)
def test_how_a_run_ends(
    launch: Launch, capsys: pytest.CaptureFixture[str], end: int | BaseException, code: int, message: str
) -> None:
    launch.end = end
    assert main([str(JOBS / "pretrain_digits.yaml")]) == code
    assert capsys.readouterr().err == message


def test_a_bug_keeps_its_traceback(launch: Launch) -> None:
    launch.end = ValueError("a bug")
    with pytest.raises(ValueError, match="a bug"):
        main([str(JOBS / "pretrain_digits.yaml")])


def test_a_reader_that_leaves_is_no_error() -> None:
    path = os.pathsep.join([str(ROOT), str(ROOT / "platform")])
    command = f"{sys.executable} -m convmlp_platform schema | head -n 1"
    env = os.environ | {"PYTHONPATH": path}
    done = subprocess.run(["bash", "-c", command], env=env, capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("{\n", "")


def test_usage_errors_are_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["frobnicate"]) == 2
    assert main(["predict", "models:/x@y"]) == 2
    assert main(["predict", "models:/x@y", "a.png", "--top-k", "0"]) == 2
    assert "must be a whole number from 1" in capsys.readouterr().err
    assert main([]) == 0
    assert cli.main.__doc__
