"""MLflow's scoring server with our models: all forms of requests and images, bad images, limits."""

from __future__ import annotations

import base64
import io
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import mlflow.pyfunc
import numpy as np
import pandas as pd
import pytest
from mlflow.exceptions import MlflowException
from mlflow.pyfunc import scoring_server
from PIL import Image
from served_models import KINDS, bundle_of, picture_for, png, stored_model
from starlette.testclient import TestClient

from convmlp_platform.models.predictors.predictor import Predictor
from convmlp_platform.models.serving.served_model import ServedModel

JSON = "application/json"
REQUESTS: dict[str, Callable[[Sequence[object]], dict[str, Any]]] = {
    "dataframe_records": lambda images: {"dataframe_records": [{"image": one} for one in images]},
    "dataframe_split": lambda images: {
        "dataframe_split": {"columns": ["image"], "data": [[one] for one in images]}
    },
    "inputs, a list": lambda images: {"inputs": list(images)},
    "inputs, a column": lambda images: {"inputs": {"image": list(images)}},
    "inputs, rows": lambda images: {"inputs": [{"image": one} for one in images]},
    "instances, a list": lambda images: {"instances": list(images)},
    "instances, a column": lambda images: {"instances": {"image": list(images)}},
    "instances, rows": lambda images: {"instances": [{"image": one} for one in images]},
}
IMAGES: dict[str, Callable[[bytes], object]] = {
    "base64": lambda content: base64.b64encode(content).decode(),
    "data URL": lambda content: f"data:image/png;base64,{base64.b64encode(content).decode()}",
    "lists": lambda content: np.asarray(Image.open(io.BytesIO(content))).tolist(),
}


@cache
def loaded(kind: str) -> Any:
    return mlflow.pyfunc.load_model(str(stored_model(kind)))


@cache
def client_of(kind: str) -> TestClient:
    return TestClient(scoring_server.init(loaded(kind)))


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], TestClient]:
    monkeypatch.setenv("_MLFLOW_IS_IN_SERVING_ENVIRONMENT", "false")  # the server sets it for its process
    return client_of


def ask(client: TestClient, request: dict[str, Any]) -> list[dict[str, Any]]:
    answer = client.post("/invocations", json=request)
    assert answer.status_code == 200, answer.text
    # NaN, which Python would read, is no JSON.
    predictions = json.loads(answer.text, parse_constant=lambda name: pytest.fail(f"{name} in {answer.text}"))
    rows: list[dict[str, Any]] = predictions["predictions"]
    return rows


@cache
def own_loader(kind: str) -> ServedModel:
    return ServedModel.from_folder(bundle_of(kind))


@cache
def predictor() -> Predictor:
    return Predictor.from_folder(bundle_of("classification"))


def own_rows(kind: str, images: Sequence[object], **options: float) -> list[dict[str, Any]]:
    """The rows of our own loader."""
    columns = own_loader(kind).answer(images, **options)
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


@pytest.mark.parametrize("form", IMAGES)
@pytest.mark.parametrize("request_form", REQUESTS)
@pytest.mark.parametrize("count", [1, 2])
def test_every_request_with_every_form_of_image_has_the_answer_of_predict(
    client: Callable[[str], TestClient], request_form: str, form: str, count: int
) -> None:
    contents = [png(seed) for seed in range(count)]
    rows = ask(client("classification"), REQUESTS[request_form]([IMAGES[form](one) for one in contents]))
    predictions = predictor().predict(contents)
    assert [row["top5_labels"] for row in rows] == [[k for k, _ in one.top(5)] for one in predictions]  # type: ignore[union-attr]
    for row, one in zip(rows, predictions, strict=True):
        assert row["top5_probabilities"] == pytest.approx([value for _, value in one.top(5)], abs=1e-7)  # type: ignore[union-attr]
        assert (row["error"], row["label"]) == (None, row["top5_labels"][0])


@pytest.mark.parametrize("kind", KINDS)
def test_every_task_answers_as_our_own_loader(client: Callable[[str], TestClient], kind: str) -> None:
    content = picture_for(kind)
    wanted = own_rows(kind, [content])
    for form in IMAGES.values():
        assert ask(client(kind), {"inputs": [form(content)]}) == wanted
    if "boxes" in wanted[0]:
        least = float(np.median(wanted[0]["scores"]))
        request = {"inputs": [IMAGES["base64"](content)], "params": {"min_score": least}}
        (found,) = ask(client(kind), request)
        assert found == own_rows(kind, [content], min_score=least)[0]
        assert 0 < len(found["boxes"]) < len(wanted[0]["boxes"])


def test_parquet_carries_bytes(client: Callable[[str], TestClient]) -> None:
    content = io.BytesIO()
    pd.DataFrame({"image": [png(0), png(1)]}).to_parquet(content)
    kind = "application/vnd.apache.parquet"
    answer = client("classification").post(
        "/invocations", content=content.getvalue(), headers={"content-type": kind}
    )
    assert answer.json()["predictions"] == own_rows("classification", [png(0), png(1)])


@pytest.mark.parametrize("request_form", REQUESTS)
@pytest.mark.parametrize("bad", [None, 5, "no image", "R0lGODlh"])
def test_a_bad_image_is_its_rows_error_alone(
    client: Callable[[str], TestClient], request_form: str, bad: object
) -> None:
    good = [IMAGES["base64"](png(seed)) for seed in (1, 2)]
    rows = ask(client("classification"), REQUESTS[request_form]([good[0], bad, good[1]]))
    assert [rows[0], rows[2]] == own_rows("classification", [png(1), png(2)])
    assert rows[1]["error"].startswith("image 1: ")
    assert all(value is None for column, value in rows[1].items() if column != "error")


@pytest.mark.parametrize("request_form", [name for name in REQUESTS if name != "instances, rows"])
def test_images_of_several_sizes_and_forms_in_one_request(
    client: Callable[[str], TestClient], request_form: str
) -> None:
    """MLflow itself makes one array of `instances` that are objects: there arrays must be of one size."""
    small = np.zeros((3, 4, 3), np.uint8)
    images = [IMAGES["lists"](png()), small.tolist(), IMAGES["data URL"](png()), [[1]]]
    rows = ask(client("classification"), REQUESTS[request_form](images))
    wanted = own_rows("classification", [png(), small, png()])
    for row, one in zip(rows, wanted, strict=False):
        assert row["label"] == one["label"]
        assert row["top5_probabilities"] == pytest.approx(one["top5_probabilities"], abs=1e-6)
    assert "list of something else" in rows[3]["error"]


def test_no_images_are_no_rows(client: Callable[[str], TestClient]) -> None:
    for request in ({"inputs": []}, {"instances": []}, {"inputs": {"image": []}}):
        assert ask(client("classification"), request) == []


def test_a_batch_beyond_a_limit_is_one_message_without_the_request(
    client: Callable[[str], TestClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONVMLP_SERVE_MAX_IMAGES", "2")
    strict = TestClient(scoring_server.init(mlflow.pyfunc.load_model(str(stored_model("classification")))))
    text = IMAGES["base64"](png())
    for request in REQUESTS.values():
        answer = strict.post("/invocations", json=request([text] * 3))
        assert answer.status_code == 400
        assert answer.json()["error_code"] == "INVALID_PARAMETER_VALUE"
        assert answer.json()["message"] == (
            "the batch has 3 images, more than the 2 that one request may have: send it in parts, or serve the model "
            "with a larger CONVMLP_SERVE_MAX_IMAGES"
        )
        assert strict.post("/invocations", json=request([text] * 2)).status_code == 200


def test_a_request_without_images_is_refused(client: Callable[[str], TestClient]) -> None:
    for request in ({"dataframe_records": [{"picture": "x"}]}, {"inputs": "x"}, {"dataframe_records": []}):
        answer = client("classification").post("/invocations", json=request)
        assert answer.status_code == 400 and "Model is missing inputs ['image']" in answer.json()["message"]


def test_python_gives_bytes_texts_and_arrays(tmp_path: Path) -> None:
    model, contents = loaded("classification"), [png(0), png(1)]
    wanted = own_rows("classification", contents)
    arrays = np.stack([np.asarray(Image.open(io.BytesIO(one))) for one in contents])
    texts = [base64.b64encode(one).decode() for one in contents]
    for images in (contents, texts, list(arrays), arrays.tolist(), [contents[0], texts[1]]):
        frame = pd.DataFrame({"image": images})
        for given in (frame, frame["image"], {"image": images}, [{"image": one} for one in images]):
            assert model.predict(given).to_dict("records") == wanted
    assert model.predict({"image": arrays}).to_dict("records") == wanted
    assert model.predict({"image": contents[0]}).to_dict("records") == own_rows(
        "classification", contents[:1]
    )
    own = model.unwrap_python_model()
    for given in (arrays, contents, tuple(texts), {"image": arrays}):
        assert own.predict(None, given).to_dict("records") == wanted
    assert own.predict(None, contents[0]).to_dict("records") == own_rows("classification", contents[:1])


def test_a_table_of_good_rows_has_plain_types_and_one_with_errors_has_none_for_nothing() -> None:
    model = loaded("classification")
    table = model.predict({"image": [png()]})
    assert table["class"].dtype == np.int64 and table["probability"].dtype == np.float64
    table = model.predict({"image": [png(), b"bad"]})
    assert table["class"][1] is None and table["label"][1] is None and table["error"][0] is None


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_answers_are_as_the_signature_says(kind: str) -> None:
    from mlflow.models.utils import _enforce_schema
    from mlflow.types.utils import _infer_schema

    model = loaded(kind)
    table, said = model.predict({"image": [picture_for(kind)]}), model.metadata.get_output_schema()
    assert list(table.columns) == said.input_names()
    found = _infer_schema(table.drop(columns="error")).input_dict()
    for column in said.inputs:
        if column.name != "error":
            assert found[column.name].type == column.type, column.name
    assert _enforce_schema(table, said) is not None
    params = model.metadata.get_params_schema()
    assert (params is None) == ("boxes" not in found)


def test_a_direct_call_without_images_is_refused() -> None:
    own = loaded("classification").unwrap_python_model()
    for given in (pd.DataFrame({"picture": [b""]}), {"picture": b""}):
        with pytest.raises(MlflowException, match=r"no .*`image`, only"):
            own.predict(None, given)


# What a machine has that has only the version's requirements: none of our packages.
WITHOUT_US = """
import os, sys
sys.path = [one for one in sys.path if not os.path.isdir(os.path.join(one or ".", "convmlp_platform"))
            and not os.path.isdir(os.path.join(one or ".", "convmlp"))]
"""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Callable[[str], str]]:
    """`mlflow models serve --env-manager local` of a model, in a process that can't import this tree; its address."""
    (tmp_path / "sitecustomize.py").write_text(WITHOUT_US)
    running: list[subprocess.Popen[bytes]] = []

    def start(kind: str) -> str:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        environment = os.environ | {"PYTHONPATH": str(tmp_path), "MLFLOW_DISABLE_TELEMETRY": "true"}
        environment["PATH"] = (
            f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"  # uvicorn's
        )
        command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", str(stored_model(kind))]
        command += ["--env-manager", "local", "--host", "127.0.0.1", "--port", str(port)]
        log = (tmp_path / "server.log").open("wb")
        process = subprocess.Popen(
            command, cwd=tmp_path, env=environment, stdout=log, stderr=log, start_new_session=True
        )
        running.append(process)
        url = f"http://127.0.0.1:{port}"
        until = time.monotonic() + 240
        while time.monotonic() < until:
            try:
                urllib.request.urlopen(f"{url}/ping", timeout=5).close()
                return url
            except OSError:
                assert process.poll() is None, (tmp_path / "server.log").read_text()
                time.sleep(0.2)
        raise AssertionError((tmp_path / "server.log").read_text())

    yield start
    for process in running:
        os.killpg(process.pid, 9)
        process.wait()


def post(url: str, request: dict[str, Any]) -> Any:
    body = json.dumps(request).encode()
    sent = urllib.request.Request(f"{url}/invocations", body, {"Content-Type": JSON})
    with urllib.request.urlopen(sent, timeout=120) as answer:
        return json.loads(answer.read())["predictions"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["classification", "mask_rcnn", "semantic_fpn"])
def test_a_real_server_without_our_packages(server: Callable[[str], str], kind: str) -> None:
    url, content = server(kind), picture_for(kind)
    wanted = own_rows(kind, [content])[0]
    for request in REQUESTS.values():
        for form in IMAGES.values():
            assert post(url, request([form(content)])) == [wanted]
        first, bad, last = post(url, request([IMAGES["base64"](content), "bad", IMAGES["data URL"](content)]))
        assert bad["error"].startswith("image 1: ")
        assert [first, last] == own_rows(kind, [content, content])
    with pytest.raises(urllib.error.HTTPError, match="400"):
        post(url, {"inputs": [IMAGES["base64"](content)] * 1025})
