"""`convmlp data ...` and a preparation from start to MLflow, as a newcomer meets them."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from ledger_runs import MadeUpRun
from prep_imagefolder import orphaned_dataset
from prepared import digits

from convmlp_platform.cli.main import main
from convmlp_platform.tracking.mlflow.client import open_client
from data_prep.dataset.index import read_index
from data_prep.dataset.manifest import load_manifest

JOB = str(Path(__file__).parents[3] / "jobs" / "prep_digits.yaml")
Captured = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def _in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("CONVMLP_ROOT", "MLFLOW_TRACKING_URI", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """Both formats, below data/."""
    return Path(shutil.copytree(digits("webdataset", "ffcv"), tmp_path / "data" / "digits"))


def damage(path: Path) -> None:
    row = read_index(path.with_suffix(".index.arrow")).row(3)
    content = bytearray(path.read_bytes())
    content[row.offset + row.length // 2] ^= 4
    path.write_bytes(content)


def test_show_by_name(dataset: Path, capsys: Captured) -> None:
    assert main(["data", "show", "digits", "--split", "val", "--count", "4", "--labels", "3, 7"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("digits / val: 359 images for classification, as ffcv and webdataset, sha256:")
    assert out.endswith("  pictures  digits-val-sheet.png\n            digits-val-classes.png\n")
    assert Path("digits-val-sheet.png").stat().st_size > 1000


def test_show_of_what_is_not_there(dataset: Path, capsys: Captured) -> None:
    assert main(["data", "show", "cifar"]) == 2
    assert capsys.readouterr().err == (
        f"error: no dataset cifar: neither a folder of that name, nor one in {Path.cwd() / 'data'} "
        "(it holds digits)\n"
    )
    assert main(["data", "show", "digits", "--split", "test"]) == 2
    assert "dataset digits has no split 'test'; it has train, val" in capsys.readouterr().err
    assert main(["data", "show", "digits", "--labels", "cat"]) == 2
    assert "error: --labels: dataset digits has no class 'cat'" in capsys.readouterr().err
    assert main(["data", "show", "nowhere/digits"]) == 2
    assert "no dataset manifest at nowhere/digits/manifest.json" in capsys.readouterr().err
    assert main(["data", "show", "digits", "--count", "0"]) == 2


def test_damage_is_found_repaired_and_gone(dataset: Path, capsys: Captured) -> None:
    shard = dataset / "ffcv" / "train-000001.beton"
    damage(shard)
    assert main(["data", "verify", "digits"]) == 2
    captured = capsys.readouterr()
    assert "error: ffcv/train-000001.beton: SHA-256 differs from the manifest's\n" in captured.err
    assert f"`convmlp data repair {dataset}` mends what can be mended" in captured.err
    assert main(["data", "repair", "digits"]) == 0
    assert capsys.readouterr().out == (
        "ffcv/train-000001.beton is damaged or missing\n"
        "repaired ffcv/train-000001.beton from the intact samples of this shard\n"
        f"{dataset}: 28 files, 1 repaired, all are what the manifest says\n"
    )
    assert main(["data", "verify", "digits"]) == 0
    assert main(["data", "repair", "digits"]) == 0
    assert capsys.readouterr().out.endswith("nothing to repair, all are what the manifest says\n")


def test_what_cannot_be_repaired_is_told_with_what_to_do(tmp_path: Path, capsys: Captured) -> None:
    folder = orphaned_dataset(tmp_path)
    for kind in ("webdataset/train-000000.tar", "ffcv/train-000000.beton"):
        damage(folder / kind)
    assert main(["data", "repair", str(folder)]) == 2
    err = capsys.readouterr().err
    assert re.search(
        r"error: ffcv/train-000000.beton can't be repaired: sample \S+ can't be had from the files", err
    )
    assert "source.path: " in err and "is not a folder" in err
    assert f"error: 2 of 8 files of {folder} stay damaged: fetch them from a copy" in err


def test_copy(dataset: Path, capsys: Captured) -> None:
    assert main(["data", "copy", "digits", "elsewhere/digits"]) == 0
    assert "elsewhere/digits: digits, sha256:" in capsys.readouterr().out
    assert main(["data", "verify", "elsewhere/digits"]) == 0
    damage(dataset / "webdataset" / "val-000000.tar")
    assert main(["data", "copy", "digits", "third"]) == 2
    assert "is damaged" in capsys.readouterr().err
    assert not Path("third/manifest.json").exists()


def test_ledger(tmp_path: Path, capsys: Captured) -> None:
    run = MadeUpRun(tmp_path / "run").with_restarts().path
    assert main(["data", "ledger", str(run)]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("proven up to step 20")
    next((run / "ledger").rglob("rank-00001-of-*.ledger")).unlink()
    assert main(["data", "ledger", str(run)]) == 2
    assert capsys.readouterr().err.startswith("error: ")
    assert main(["data", "ledger", str(tmp_path / "nowhere")]) == 2
    assert "nowhere" in capsys.readouterr().err


@pytest.mark.slow
def test_a_preparation_ends_in_mlflow_with_its_pictures(tmp_path: Path, capsys: Captured) -> None:
    settings = ["--no-ray", "--set", "output.samples_per_shard=2000", "--set", "tracking.experiment=data"]
    assert main(["run", JOB, *settings]) == 0
    out = capsys.readouterr().out
    pictures = tmp_path / "data" / "digits" / "pictures"
    assert f"  pictures  {pictures}\n" in out
    run_id = re.search(r"  tracking  MLflow run (\w+) in experiment data\n", out)
    assert run_id, out
    client = open_client(f"sqlite:///{tmp_path / 'mlflow.db'}")
    run = client.get_run(run_id[1])
    assert run.info.run_name == "prep-digits" and run.data.params["source.kind"] == "digits"
    assert run.data.metrics["duration_seconds"] > 0
    assert run.data.tags["dataset.digest"] == load_manifest(tmp_path / "data" / "digits").digest
    found = {Path(item.path).name for item in client.list_artifacts(run_id[1], "pictures")}
    assert found == {path.name for path in pictures.iterdir()} and len(found) == 4
    assert main(["run", JOB, *settings]) == 0
    assert f"  tracking  MLflow has it already: run {run_id[1]}\n" in capsys.readouterr().out


def test_a_preparation_is_finished_without_mlflow(capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    settings = ["--no-ray", "--set", "output.samples_per_shard=2000", "--set", "output.formats=[webdataset]"]
    assert main(["run", JOB, *settings]) == 0
    folder = Path.cwd() / "data" / "digits"
    assert (
        "  tracking  MLflow at http://127.0.0.1:1 doesn't have this preparation yet "
        f"([Errno 111] Connection refused); `convmlp replay-tracking {folder}` sends it\n"
    ) in capsys.readouterr().out


def test_check_says_where_a_preparation_is_tracked(tmp_path: Path, capsys: Captured) -> None:
    settings = ["--set", "launch.address=local", "--set", "tracking.experiment=data"]
    assert main(["check", JOB, *settings]) == 0
    where = f"sqlite:///{tmp_path / 'mlflow.db'}"
    assert f"  run      MLflow experiment data at {where}, once it is done\n" in capsys.readouterr().out
    assert main(["check", JOB, "--set", "tracking.register_as.name=x"]) == 2
    assert "tracking.register_as" in capsys.readouterr().err
