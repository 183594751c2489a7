"""Batches in every form that images come in: equal answers, errors of single rows, limits of the whole."""

from __future__ import annotations

import base64
import io
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tiny_dense import DATASETS, tiny_dense

import convmlp
from convmlp_platform.errors import ConfigError, DataError
from convmlp_platform.models.bundle import BundleSpec, write_bundle
from convmlp_platform.models.prediction import Detections, LabelMap, Labels
from convmlp_platform.models.predictors.predictor import Predictor
from convmlp_platform.models.serving.answer_columns import COLUMNS, columns_of
from convmlp_platform.models.serving.given_batch import BatchLimits
from convmlp_platform.models.serving.served_model import ServedModel

CLASSES = ("cat", "dog", "owl", "ant", "bee", "cow", "elk")


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> ServedModel:
    torch.manual_seed(1)
    folder = tmp_path_factory.mktemp("served")
    spec = BundleSpec(
        model="convmlp_tiny",
        num_classes=len(CLASSES),
        classes=CLASSES,
        image_size=32,
        mean=(0.5, 0.5, 0.5),
        std=(0.25, 0.25, 0.25),
    )
    weights = convmlp.create_model("convmlp_tiny", num_classes=len(CLASSES)).state_dict()
    write_bundle(folder, weights, spec)
    return ServedModel.from_folder(folder)


def pixels(height: int = 40, width: int = 50, seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def png(height: int = 40, width: int = 50, seed: int = 0) -> bytes:
    content = io.BytesIO()
    Image.fromarray(pixels(height, width, seed)).save(content, "PNG")
    return content.getvalue()


def forms(content: bytes) -> dict[str, object]:
    """An image file in all forms; its pixels are those of the file, upright."""
    text = base64.b64encode(content).decode()
    seen = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
    return {
        "bytes": content,
        "bytearray": bytearray(content),
        "base64": text,
        "base64 in lines": base64.encodebytes(content).decode(),
        "NumPy's text": np.array(text),
        "data URL": f"data:image/png;base64,{text}",
        "data URL, shouted": f"DATA:image/jpeg;charset=utf-8;BASE64,{text}",
        "array": seen,
        "array of other numbers": seen.astype(np.int32),
        "array of objects": seen.astype(object),
        "turned memory": np.asfortranarray(seen),
        "lists": seen.tolist(),
        "tuples of arrays": tuple(seen),
    }


@settings(max_examples=10)
@given(height=st.integers(1, 70), width=st.integers(1, 70), seed=st.integers(0, 9))
def test_every_form_gives_equal_probabilities(
    served: ServedModel, height: int, width: int, seed: int
) -> None:
    given_forms = forms(png(height, width, seed))
    (wanted,) = served.predictor.predict([png(height, width, seed)])
    assert isinstance(wanted, Labels)
    for name, form in given_forms.items():
        answer = served.answer([form])
        assert answer["error"] == [None], name
        assert answer["top5_labels"] == [[label for label, _ in wanted.top(5)]], name
        assert answer["top5_probabilities"] == [[value for _, value in wanted.top(5)]], name


def test_a_classifiers_columns(served: ServedModel) -> None:
    answer = served.answer([png()])
    assert list(answer) == list(COLUMNS["classification"])
    (wanted,) = served.predictor.predict([png()])
    assert isinstance(wanted, Labels)
    number = int(wanted.probabilities.argmax())
    assert (answer["class"], answer["label"]) == ([number], [CLASSES[number]])
    assert (
        answer["probability"] == [answer["top5_probabilities"][0][0]] == [float(wanted.probabilities.max())]
    )
    assert [CLASSES[one] for one in answer["top5_classes"][0]] == answer["top5_labels"][0]


@pytest.mark.parametrize("kind", DATASETS)
def test_the_columns_of_dense_models(kind: str) -> None:
    from pycocotools import mask as runs

    tiny, content = tiny_dense(kind), io.BytesIO()
    tiny.split.image(0)[0].save(content, "PNG")
    dense = ServedModel.from_folder(tiny.bundle)
    (one,) = dense.predictor.predict([content.getvalue()])
    answer = dense.answer([content.getvalue(), b"no image", forms(content.getvalue())["lists"]])
    assert list(answer) == list(COLUMNS[kind])
    first, bad, last = ({name: values[row] for name, values in answer.items()} for row in range(3))
    assert first == last and first["error"] is None
    assert bad["error"] == "image 1: not a readable image: not a JPEG, PNG, BMP or WebP image"
    assert all(value is None for name, value in bad.items() if name != "error")
    assert isinstance(one, (Detections, LabelMap)) and (first["height"], first["width"]) == one.size
    if isinstance(one, LabelMap):
        mask = np.asarray(Image.open(io.BytesIO(base64.b64decode(first["mask"]))))
        assert np.array_equal(mask, one.labels)
        assert dict(zip(first["labels"], first["shares"], strict=True)) == one.shares()
        assert first["shares"] == [float((mask == number).mean()) for number in first["classes"]]
        return
    assert 0 < len(one) == len(first["boxes"])
    assert first["boxes"] == one.boxes.tolist() and first["scores"] == one.scores.tolist()
    assert first["labels"] == one.names
    coco = one.as_coco()
    assert first["category_ids"] == [each["category_id"] for each in coco]
    assert [tiny.spec.classes[number] for number in first["classes"]] == one.names
    if one.masks is not None:
        decoded = runs.decode([{"size": list(one.size), "counts": text} for text in first["masks"]])
        assert np.array_equal(decoded.transpose(2, 0, 1), one.masks.numpy())
    least = float(one.scores.median())
    assert len(dense.answer([content.getvalue()], min_score=least)["boxes"][0]) == len(one.above(least))


def test_nothing_found_is_an_empty_list_and_no_images_an_empty_table() -> None:
    nothing = Detections(
        ("a",), (1,), (4, 5), torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64)
    )
    answer = columns_of([nothing], "retinanet")
    assert answer["boxes"] == answer["scores"] == answer["labels"] == [[]] and answer["height"] == [4]
    assert columns_of([], "semantic_fpn") == {name: [] for name in COLUMNS["semantic_fpn"]}


BAD: dict[str, tuple[object, str]] = {
    "nothing": (None, "it is missing"),
    "NaN, pandas' nothing": (float("nan"), "it is missing"),
    "a number": (5, "it is int"),
    "no file": (b"", "the file is empty"),
    "half a file": (png()[:200], "damaged PNG data"),
    "another kind of file": (b"GIF89a" + bytes(40), "a GIF file, not a JPEG, PNG, BMP or WebP image"),
    "text": ("hello, world", "must be the base64"),
    "a path": ("/etc/passwd", "paths and addresses are not read"),
    "an address": ("http://127.0.0.1/a.png", "paths and addresses are not read"),
    "a data URL without base64": ("data:image/png,%89PNG", "must hold base64"),
    "a data URL without data": ("data:image/png;base64", "must hold base64"),
    "no JPEG in base64": (base64.b64encode(b"hello").decode(), "not a JPEG, PNG, BMP or WebP image"),
    "grey pixels": (pixels()[:, :, 0], "shape [40, 50]"),
    "four channels": (np.zeros((4, 4, 4), np.uint8), "shape [4, 4, 4]"),
    "no pixels": (np.zeros((0, 4, 3), np.uint8), "shape [0, 4, 3]"),
    "fractions": (pixels() / 255, "array of float64"),
    "fractions in lists": ([[[0.5, 1, 2]]], "list of something else"),
    "truths": ([[[True, False, True]]], "list of something else"),
    "texts in lists": ([[["1", "2", "3"]]], "list of something else"),
    "ragged lists": ([[[1, 2, 3]], [[1, 2]]], "list of something else"),
    "an empty list": ([], "list of something else"),
    "too bright": ([[[0, 0, 256]]], "values from 0 to 256"),
    "too dark": (np.full((1, 1, 3), -1), "values from -1 to -1"),
    "beyond any number": ([[[0, 0, 10**30]]], "too large"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_image_is_its_rows_error_alone(served: ServedModel, name: str) -> None:
    bad, told = BAD[name]
    batch = [png(seed=1), bad, png(seed=2)]
    answer = served.answer(batch)
    assert answer["error"][0] is None and answer["error"][2] is None
    assert answer["error"][1].startswith("image 1: ") and told in answer["error"][1]
    assert all(values[1] is None for column, values in answer.items() if column != "error")
    good = served.answer([batch[0], batch[2]])
    for column, values in good.items():
        assert values == [answer[column][0], answer[column][2]]


def test_images_beyond_the_limits_of_files_are_errors_of_their_rows(served: ServedModel) -> None:
    header = png()[:16] + (70_000).to_bytes(4) + (70_000).to_bytes(4) + png()[24:]
    answer = served.answer([header, np.zeros((1, 70_000, 3), np.uint8), png()])
    assert "70000 x 70000 pixels are more than 65535 a side" in answer["error"][0]
    assert "70000 x 1 pixels are more than 65535 a side" in answer["error"][1]
    assert answer["error"][2] is None


@pytest.mark.parametrize(
    ("limits", "told"),
    [
        ({"max_images": 2}, "the batch has 3 images, more than the 2 .* larger CONVMLP_SERVE_MAX_IMAGES"),
        ({"max_bytes": 17_999}, "the batch has 18,000 bytes of images, more than .* CONVMLP_SERVE_MAX_BYTES"),
        (
            {"max_pixels": 5_999},
            "the batch has 6,000 pixels, more than the 5,999 .* CONVMLP_SERVE_MAX_PIXELS",
        ),
    ],
)
def test_a_batch_beyond_a_limit_is_refused_as_a_whole_and_before_it_is_decoded(
    served: ServedModel, limits: dict[str, int], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(served.predictor, "see", None)
    strict = ServedModel(served.predictor, BatchLimits(**limits))
    for form in (pixels(), pixels().tolist()):
        with pytest.raises(DataError, match=told):
            strict.answer([form] * 3)
    monkeypatch.undo()
    roomy = BatchLimits(**{name: limit + 1 for name, limit in limits.items()})
    assert ServedModel(served.predictor, roomy).answer([pixels()] * 3)["error"] == [None] * 3


def test_a_small_file_of_many_pixels_counts_by_its_pixels(served: ServedModel) -> None:
    content = io.BytesIO()
    Image.new("1", (3000, 3000)).save(content, "PNG")
    strict = ServedModel(served.predictor, BatchLimits(max_bytes=20_000, max_pixels=20_000_000))
    assert len(content.getvalue()) < 5_000
    assert strict.answer([content.getvalue()] * 2)["error"] == [None] * 2
    for image in (content.getvalue(), base64.b64encode(content.getvalue()).decode()):
        with pytest.raises(DataError, match="27,000,000 pixels"):
            strict.answer([image] * 3)


def test_limits_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONVMLP_SERVE_MAX_IMAGES", "7")
    assert BatchLimits.from_environment() == BatchLimits(max_images=7)
    for wrong in ("many", "0", "-1", "1.5", ""):
        monkeypatch.setenv("CONVMLP_SERVE_MAX_IMAGES", wrong)
        with pytest.raises(ConfigError, match=r"CONVMLP_SERVE_MAX_IMAGES .* must be a positive whole number"):
            BatchLimits.from_environment()


@pytest.fixture
def turned_jpeg() -> Iterator[bytes]:
    content = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels()).save(content, "JPEG", exif=exif.tobytes())
    yield content.getvalue()


@pytest.mark.parametrize("view", ["apply", "ignore"])
def test_photos_are_turned_as_the_bundle_says(
    served: ServedModel, view: str, turned_jpeg: bytes, tmp_path: Path
) -> None:
    spec = served.predictor.spec.model_copy(update={"exif_orientation": view})
    write_bundle(tmp_path / "bundle", served.predictor.model.state_dict(), spec)
    other = ServedModel.from_folder(tmp_path / "bundle")
    (tmp_path / "a.jpg").write_bytes(turned_jpeg)
    (wanted,) = Predictor.from_folder(tmp_path / "bundle").predict([tmp_path / "a.jpg"])
    assert isinstance(wanted, Labels)
    text = base64.b64encode(turned_jpeg).decode()
    seen = Image.open(io.BytesIO(turned_jpeg))
    upright = np.asarray(seen.transpose(Image.Transpose.ROTATE_270) if view == "apply" else seen)
    answer = other.answer([turned_jpeg, text, f"data:image/jpeg;base64,{text}", upright, upright.tolist()])
    for values in answer["top5_probabilities"]:
        assert values == pytest.approx([value for _, value in wanted.top(5)], abs=1e-6)


def test_images_are_decoded_side_by_side_but_not_all_at_once(
    served: ServedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two of them wait for each other; and as long as the first isn't answered, only a few others are held."""
    from convmlp_platform.models.predictors import predictor as module

    monkeypatch.setattr(module, "_thread_count", lambda: 2)
    predictor = module.predictor_of(served.predictor.model, served.predictor.spec)
    own, meeting, seen, held = predictor.see, threading.Barrier(2, timeout=30), [], []

    def see(image: Any, position: int) -> Any:
        if position < 2:
            meeting.wait()
        seen.append(position)
        return own(image, position)

    monkeypatch.setattr(predictor, "see", see)
    monkeypatch.setattr(predictor, "batch_size", 1)
    answer = predictor.answer

    def count(images: Any) -> Any:
        held.append(len(seen) - len(held))
        return answer(images)

    monkeypatch.setattr(predictor, "answer", count)
    assert len(predictor.predict([png(seed=seed) for seed in range(20)])) == 20
    assert sorted(seen) == list(range(20)) and max(held) <= 2 * 2 + 1


def test_several_requests_at_once_get_their_own_answers(served: ServedModel) -> None:
    from concurrent.futures import ThreadPoolExecutor

    batches = [[png(seed=seed), b"bad", pixels(seed=seed + 1).tolist()] for seed in range(8)]
    wanted = [served.answer(batch) for batch in batches]
    with ThreadPoolExecutor(8) as requests:
        assert list(requests.map(served.answer, batches)) == wanted


def test_a_broken_model_is_no_images_fault(served: ServedModel) -> None:
    from convmlp_platform.models.predictors.predictor import predictor_of

    spec = served.predictor.spec.model_copy(update={"std": (1e-4, 1e-4, 1e-4)})
    model = convmlp.create_model("convmlp_tiny", num_classes=len(CLASSES))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1e30)
    with pytest.raises(DataError, match="answer is not finite"):
        ServedModel(predictor_of(model, spec)).answer([png()])
