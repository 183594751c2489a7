from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import convmlp
from convmlp_platform.cli.main import main
from convmlp_platform.config.sections.execution import RegisterSection, TrackingSection
from convmlp_platform.errors import TrackingError
from convmlp_platform.models.bundle import BundleSpec, load_bundle, write_bundle
from convmlp_platform.models.predictors.classifier import Classifier
from convmlp_platform.registry.registry import alias_verdict, first_verdict, register_bundle, resolve

SPEC = BundleSpec(
    model="convmlp_tiny",
    num_classes=3,
    classes=("cat", "dog", "owl"),
    image_size=32,
    mean=(0.5, 0.5, 0.5),
    std=(0.25, 0.25, 0.25),
    provenance={"dataset_digest": "sha256:one"},
)


def make_bundle(folder: Path, seed: int) -> Path:
    torch.manual_seed(seed)
    write_bundle(folder, convmlp.create_model("convmlp_tiny", num_classes=3).state_dict(), SPEC)
    return folder


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("models") / "best", seed=1)


@pytest.fixture(scope="session")
def registered(store: TrackingSection, bundle: Path, png: bytes) -> TrackingSection:
    section = store.model_copy(update={"register_as": RegisterSection(name="toy", automatic=True)})
    version = register_bundle(
        section, run_id=None, bundle=bundle, example_image=png, metrics={"top1": 90.0}, tags={"run": "r1"}
    )
    assert (version.version, version.alias, version.uri) == ("1", "champion", "models:/toy@champion")
    return section


def test_a_models_versions_are_shown_with_their_aliases(
    registered: TrackingSection, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """MLflow's searches return versions without them."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", registered.uri or "")
    assert main(["registry", "show", "toy"]) == 0
    first = capsys.readouterr().out.splitlines()[0]
    assert first.split()[0] == "1" and first.endswith("@candidate, @champion"), first


def test_a_bundle_gives_back_the_model(bundle: Path, png: bytes, tmp_path: Path) -> None:
    model, spec = load_bundle(bundle)
    assert spec == SPEC and not model.training
    torch.manual_seed(1)
    original = convmlp.create_model("convmlp_tiny", num_classes=3).eval()
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(model(images), original(images))
    (tmp_path / "a.png").write_bytes(png)
    (from_bytes, from_path) = Classifier(model, spec).predict([png, tmp_path / "a.png"])
    assert from_bytes.top(3) == from_path.top(3) and from_bytes.classes == SPEC.classes
    assert sum(p for _, p in from_bytes.top(3)) == pytest.approx(1, abs=1e-5)


def test_a_folder_that_is_no_bundle(tmp_path: Path, bundle: Path) -> None:
    with pytest.raises(TrackingError, match="not a model bundle"):
        load_bundle(tmp_path)
    write_bundle(tmp_path / "short", {"head.bias": torch.zeros(3)}, SPEC)
    with pytest.raises(TrackingError, match="make no model"):
        load_bundle(tmp_path / "short")


def test_the_alias_moves_only_to_what_is_no_worse_on_the_same_data() -> None:
    held = {"dataset.digest": "sha256:one", "metric.top1": "90.0"}
    assert alias_verdict("models:/m/1", held, held | {"metric.top1": "90.0"})[0]
    for change in ({"metric.top1": "89.9"}, {"dataset.digest": "sha256:two"}, {"dataset.digest": ""}):
        assert not alias_verdict("models:/m/1", held, held | change)[0]
    assert alias_verdict("models:/m/1", {"dataset.digest": "sha256:one"}, held)[0], (
        "a holder without a figure"
    )


@pytest.mark.parametrize("figure", ["nan", "inf", "-1", "100.1", "1e9", "99.7%", "", None])
def test_a_figure_that_is_none_neither_wins_nor_holds(figure: str | None) -> None:
    good = {"dataset.digest": "sha256:one", "metric.top1": "50.0"}
    odd = good | {"metric.top1": figure} if figure is not None else {"dataset.digest": "sha256:one"}
    assert not alias_verdict("models:/m/1", good, odd)[0] and not first_verdict("champion", odd)[0]
    moves, reason = alias_verdict("models:/m/1", odd, good)
    assert moves and "models:/m/1 has no top1 that is a number" in reason


@pytest.mark.parametrize("share", ["1.0", "0.02", "nan", "all"])
def test_who_was_evaluated_on_its_training_images_gets_no_alias(share: str) -> None:
    good = {"dataset.digest": "sha256:one", "dataset.split": "val", "metric.top1": "50.0"}
    cheat = good | {"metric.top1": "99.0", "dataset.seen_share": share}
    for moves, reason in (alias_verdict("models:/m/1", good, cheat), first_verdict("champion", cheat)):
        assert not moves and "are among those that it was trained on" in reason
    other = good | {"metric.top1": "99.0", "dataset.split": "train"}
    assert "was measured on split 'val', not 'train'" in alias_verdict("models:/m/1", good, other)[1]
    assert alias_verdict("models:/m/1", good, good | {"dataset.seen_share": "0.009"})[0]


@pytest.mark.parametrize("metric", ["box_ap", "mask_ap", "miou"])
def test_every_task_is_judged_by_its_own_metric(metric: str) -> None:
    held = {
        "dataset.digest": "sha256:one",
        "gate.metric": metric,
        f"metric.{metric}": "40.0",
        "metric.top1": "9",
    }
    better = held | {f"metric.{metric}": "40.5", "metric.top1": "1"}
    assert alias_verdict("models:/m/1", held, better) == (
        True, f"{metric} 40.5000 is not below 40.0000 of models:/m/1"
    )  # fmt: skip
    assert not alias_verdict("models:/m/1", better, held)[0]
    classifier = {"dataset.digest": "sha256:one", "metric.top1": "90.0"}
    moves, reason = alias_verdict("models:/m/1", classifier, held)
    assert not moves and reason == f"models:/m/1 is of another task: judged by top1, not {metric}"


def test_a_worse_model_is_registered_without_the_alias(
    registered: TrackingSection, tmp_path: Path, png: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    worse = make_bundle(tmp_path / "worse", seed=2)
    version = register_bundle(
        registered, run_id="0" * 32, bundle=worse, example_image=png, metrics={"top1": 80.0}, tags={}
    )
    assert version.alias == "candidate" and version.uri.startswith("models:/toy/")
    assert "80.0000 is below 90.0000" in version.reason and version.reason in caplog.text
    found = resolve("models:/toy@champion", section=registered)
    assert found.version == "1" and found.tags["run"] == "r1" and found.tags["metric.top1"] == "90.0"
    assert (found.tags["task"], found.tags["gate.metric"]) == ("classification", "top1")


def test_the_model_s_own_page_has_its_step_and_the_metrics_of_that_step(
    registered: TrackingSection, tmp_path: Path, png: bytes
) -> None:
    from convmlp_platform.tracking.mlflow.client import ensure_experiment, open_client

    uri = str(registered.uri)
    client = open_client(uri)
    experiment = ensure_experiment(client, uri, registered.experiment)
    run = client.create_run(experiment).info.run_id
    for step, top1 in ((20, 50.0), (40, 80.0), (60, 70.0)):
        client.log_metric(run, "eval/top1", top1, step=step)
    client.log_metric(run, "goodput/restart", 1.0, step=0)
    torch.manual_seed(3)
    weights = convmlp.create_model("convmlp_tiny", num_classes=3).state_dict()
    spec = SPEC.model_copy(update={"provenance": SPEC.provenance | {"step": 40}})
    write_bundle(tmp_path / "best", weights, spec)
    register_bundle(
        registered, run_id=run, bundle=tmp_path / "best", example_image=png, metrics={"top1": 80.0}, tags={}
    )
    (model,) = client.search_logged_models([experiment], f"source_run_id = '{run}'")
    assert [(one.key, one.value, one.step) for one in model.metrics or ()] == [("eval/top1", 80.0, 40)]
    assert [one.step for one in client.get_run(run).outputs.model_outputs] == [40]


def test_registering_the_same_weights_again_makes_no_version(
    registered: TrackingSection, bundle: Path, png: bytes
) -> None:
    again = register_bundle(
        registered, run_id=None, bundle=bundle, example_image=png, metrics={"top1": 90.0}, tags={}
    )
    assert (again.version, again.alias) == ("1", "champion")


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        (
            "models:/toy@nobody",
            r"no alias or version 'nobody'; its aliases: @candidate, @champion; its versions: 1",
        ),
        ("models:/toy/99", r"no alias or version '99'"),
        ("models:/tod@champion", r"no registered model is named 'tod'; there are: toy"),
        ("models:/toy", r"must be models:/NAME@ALIAS or models:/NAME/VERSION"),
    ],
)
def test_an_unknown_model_is_answered_by_what_exists(
    registered: TrackingSection, uri: str, message: str
) -> None:
    with pytest.raises(TrackingError, match=message):
        resolve(uri, section=registered)


def test_no_registry_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONVMLP_ROOT", str(tmp_path))
    with pytest.raises(TrackingError, match="there is no model registry at"):
        resolve("models:/toy@champion")
    assert list(tmp_path.iterdir()) == []


def assert_rows_are_of(bundle: Path, png: bytes, rows: list[dict[str, Any]]) -> None:
    expected = Classifier(*load_bundle(bundle)).predict([png])[0].top(5)
    assert len(rows) == 2
    for row in rows:
        assert row["label"] == expected[0][0]
        assert row["probability"] == pytest.approx(expected[0][1], abs=1e-5)
        assert row["top5_labels"] == [name for name, _ in expected]


def test_plain_mlflow_loads_and_predicts(
    registered: TrackingSection, bundle: Path, png: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow
    import pandas as pd

    monkeypatch.setenv("MLFLOW_TRACKING_URI", registered.uri or "")
    model = mlflow.pyfunc.load_model("models:/toy@champion")
    images = (png, base64.b64encode(png).decode())
    rows = [model.predict(pd.DataFrame({"image": [image]})) for image in images]
    assert_rows_are_of(bundle, png, [row.to_dict("records")[0] for row in rows])


@pytest.mark.slow
def test_plain_mlflow_loads_and_predicts_elsewhere_without_our_packages(
    registered: TrackingSection, bundle: Path, png: bytes, tmp_path: Path
) -> None:
    script = (
        "import sys, json, mlflow, pandas as pd\n"
        "png = open(sys.argv[1], 'rb').read()\n"
        "model = mlflow.pyfunc.load_model('models:/toy@champion')\n"
        "import base64; text = base64.b64encode(png).decode()\n"
        "rows = [model.predict(pd.DataFrame({'image': [cell]})) for cell in (png, text)]\n"
        "print(json.dumps([row.to_dict('records')[0] for row in rows]))\n"
    )
    (tmp_path / "a.png").write_bytes(png)
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    environment["MLFLOW_TRACKING_URI"] = registered.uri or ""
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "a.png")],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert_rows_are_of(bundle, png, json.loads(done.stdout.splitlines()[-1]))


def test_predict_names_the_bad_image(
    registered: TrackingSection,
    bundle: Path,
    png: bytes,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    good, bad = tmp_path / "good.png", tmp_path / "bad.png"
    good.write_bytes(png)
    bad.write_bytes(png[:100])
    assert main(["predict", str(bundle), str(good)]) == 0
    from_folder = capsys.readouterr().out
    assert from_folder.startswith(f"{good}: ") and "%" in from_folder
    monkeypatch.setenv("MLFLOW_TRACKING_URI", registered.uri or "")
    assert main(["predict", "models:/toy@champion", str(good)]) == 0
    assert capsys.readouterr().out == from_folder
    assert main(["predict", str(bundle), str(good), str(bad)]) == 2
    assert "bad.png: not a readable image" in capsys.readouterr().err
    assert main(["predict", str(bundle), str(tmp_path / "none.png")]) == 2
    assert "none.png: no such image file" in capsys.readouterr().err
