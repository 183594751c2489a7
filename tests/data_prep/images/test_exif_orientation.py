"""A photo that a camera held sideways: prepared, read, verified, mended and predicted the same way up everywhere."""

from __future__ import annotations

import io
import json
import shutil
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image, ImageOps
from prep_helpers import rejected_lines, smooth_image
from published_minis import write_files
from torch.nn.functional import cross_entropy

from convmlp.transforms.pixels import Normalize
from convmlp_platform.config.evaluate_job import EvaluateJob
from convmlp_platform.config.schema import TrainJob
from convmlp_platform.data.dataset.split import ShardedSplit, decode, open_manifest
from convmlp_platform.data.reading.loader import EvalLoader
from convmlp_platform.evaluation.evaluation_preflight import preflight_evaluation
from convmlp_platform.evaluation.evaluation_run import run_evaluation
from convmlp_platform.models.bundle import write_bundle
from convmlp_platform.models.predictors.given_images import open_image as predicted
from convmlp_platform.models.predictors.predictor import Predictor
from convmlp_platform.training.build import parts
from convmlp_platform.training.build.build_transforms import eval_transform_of
from convmlp_platform.training.build.bundle_spec import bundle_spec
from data_prep.config import PrepareConfig
from data_prep.dataset.manifest import DatasetManifest, write_manifest
from data_prep.errors import DataPrepError
from data_prep.images.check_image import Steps, store_image
from data_prep.images.image_file import RejectedImage, open_image
from data_prep.images.orientation import orientation_of_image, orientation_of_jpeg
from data_prep.prepare import prepare
from data_prep.repair.repair import repair
from data_prep.verify import verify

FORMATS = ("webdataset", "ffcv")
KINDS: dict[str, dict[str, Any]] = {
    "plain.jpg": {"format": "JPEG", "quality": 95},
    "cmyk.jpg": {"format": "JPEG"},
    "grey.jpg": {"format": "JPEG"},
    "lossless.png": {"format": "PNG"},
    "web.webp": {"format": "WEBP", "lossless": True},
}
View = Literal["apply", "ignore"]


def photo(orientation: int, kind: str = "plain.jpg", size: tuple[int, int] = (44, 32)) -> bytes:
    mode = {"cmyk.jpg": "CMYK", "grey.jpg": "L"}.get(kind, "RGB")
    exif, buffer = Image.Exif(), io.BytesIO()
    exif[0x0112] = orientation
    smooth_image(sum(map(ord, kind)), size, mode).save(buffer, exif=exif, **KINDS[kind])
    return buffer.getvalue()


def seen(content: bytes, view: View) -> np.ndarray[Any, Any]:
    """By Pillow."""
    with Image.open(io.BytesIO(content)) as image:
        return np.asarray((ImageOps.exif_transpose(image) if view == "apply" else image).convert("RGB"))


@cache
def sources() -> tuple[Path, dict[str, bytes]]:
    """Every kind of file in every orientation, one class each."""
    folder = Path(mkdtemp(prefix="convmlp-test-"))
    files = {
        f"{orientation}_{kind}": photo(orientation, kind) for kind in KINDS for orientation in range(1, 9)
    }
    write_files(folder, {f"class_{name[0]}/{name}": content for name, content in files.items()})
    return folder, files


@cache
def prepared(view: View | None) -> Path:
    """With the source's default for None."""
    output = Path(mkdtemp(prefix="convmlp-test-")) / "photos"
    given = {} if view is None else {"exif_orientation": view}
    source = {"kind": "image_folder", "path": str(sources()[0]), "val_fraction": 0.0} | given
    prepare(
        PrepareConfig.model_validate(
            {"source": source, "output": {"path": str(output), "samples_per_shard": 9}}
        )
    )
    return output


def opened(folder: Path, format: str) -> ShardedSplit:
    return ShardedSplit(folder, open_manifest(str(folder)), "train", format)


def file_of(key: str, files: dict[str, bytes]) -> bytes:
    return next(content for name, content in files.items() if key.endswith(name.rsplit(".", 1)[0]))


@pytest.mark.parametrize("view", ["apply", "ignore"])
@pytest.mark.parametrize("format", FORMATS)
def test_readers_see_what_pillow_sees(view: View, format: str) -> None:
    split, files = opened(prepared(view), format), sources()[1]
    assert len(split) == len(files)
    for sample in range(len(split)):
        payload = split.payload(sample)
        expected = seen(file_of(split.key(sample), files), view)
        assert (payload.height, payload.width) == expected.shape[:2], split.key(sample)
        np.testing.assert_array_equal(payload.pixels(), expected, split.key(sample))


def test_jpeg_files_keep_their_bytes_and_decode_upright() -> None:
    split, files = opened(prepared("apply"), "webdataset"), sources()[1]
    for sample in range(len(split)):
        key, content = split.key(sample), bytes(split.payload(sample).content)
        if key.endswith(("plain", "grey")):
            assert content == file_of(key, files)
            np.testing.assert_array_equal(decode(content), seen(content, "apply"))


def test_a_smaller_decode_is_turned_too(tmp_path: Path) -> None:
    content = photo(6, size=(400, 200))
    pixels = decode(content, (180, 60))
    assert pixels.shape == (200, 100, 3)
    small = np.asarray(
        Image.fromarray(seen(content, "apply")).resize(pixels.shape[1::-1], Image.Resampling.BOX)
    )
    assert np.abs(pixels.astype(int) - small).mean() < 2


def test_defaults_suit_photos_and_published_datasets() -> None:
    assert open_manifest(str(prepared(None))).preprocessing["exif_orientation"] == "apply"
    for kind, view in (("coco", "apply"), ("imagenet", "ignore"), ("flowers102", "ignore")):
        job = PrepareConfig.model_validate({"source": {"kind": kind, "path": "x"}, "output": {"path": "y"}})
        assert job.source.model_dump()["exif_orientation"] == view


def test_the_manifest_says_it_and_the_digest_tells_the_views_apart() -> None:
    manifests = [open_manifest(str(prepared(view))) for view in ("apply", "ignore")]
    assert [one.preprocessing["num_oriented"] for one in manifests] == [35, 35]
    assert manifests[0].digest != manifests[1].digest
    assert manifests[0].preprocessing["notes"][0] == "35 images are turned upright by their EXIF orientation"
    assert "taken as they are stored" in manifests[1].preprocessing["notes"][0]


def test_verify_and_repair_know_turned_images(tmp_path: Path) -> None:
    folder = shutil.copytree(prepared("apply"), tmp_path / "photos")
    assert verify(folder).ok
    for format, other in (("webdataset", "tar"), ("ffcv", "beton")):
        shard = folder / format / f"train-000001.{other}"
        before = shard.read_bytes()
        damaged = bytearray(before)
        damaged[len(before) // 2] ^= 1
        shard.write_bytes(damaged)
        assert not verify(folder).ok
        assert repair(folder).ok
        assert shard.read_bytes() == before


def test_a_dataset_of_an_older_release_is_as_it_was_stored(tmp_path: Path) -> None:
    """Its manifest says `ignored`, its source nothing: a job that asks for that is done, one that turns is told."""
    folder, source = (
        tmp_path / "photos",
        {"kind": "image_folder", "path": str(sources()[0]), "val_fraction": 0.0},
    )
    shutil.copytree(prepared("ignore"), folder)
    fields = json.loads((folder / "manifest.json").read_text())
    del fields["source"]["exif_orientation"], fields["preprocessing"]["num_oriented"], fields["checksum"]
    fields["preprocessing"]["exif_orientation"] = "ignored"
    old = DatasetManifest.model_validate(fields)
    write_manifest(old, folder)
    assert open_manifest(str(folder)).exif_orientation == "ignore"
    output = {"path": str(folder), "samples_per_shard": 9}
    ignored = PrepareConfig.model_validate(
        {"source": source | {"exif_orientation": "ignore"}, "output": output}
    )
    assert prepare(ignored).digest == old.digest
    with pytest.raises(
        DataPrepError, match=r'source.exif_orientation is "ignore" there, "apply" in this job'
    ):
        prepare(PrepareConfig.model_validate({"source": source, "output": output}))


def test_shrunk_images_are_stored_upright(tmp_path: Path) -> None:
    write_files(tmp_path / "source", {f"a/{turn}.jpg": photo(turn, size=(120, 80)) for turn in range(1, 9)})
    source = {"kind": "image_folder", "path": str(tmp_path / "source"), "val_fraction": 0.0}
    output = {"path": str(tmp_path / "out"), "resize": {"short_side": 40, "quality": 95}}
    prepare(PrepareConfig.model_validate({"source": source, "output": output}))
    for format in FORMATS:
        split = opened(tmp_path / "out", format)
        for sample in range(8):
            original = seen((tmp_path / "source/a" / f"{split.key(sample)[-1]}.jpg").read_bytes(), "apply")
            payload = split.payload(sample)
            size = (original.shape[1] // 2, original.shape[0] // 2)
            expected = np.asarray(Image.fromarray(original).resize(size, Image.Resampling.BICUBIC))
            assert payload.pixels().shape == expected.shape == (payload.height, payload.width, 3)
            assert np.abs(payload.pixels().astype(int) - expected).mean() < 3


@pytest.mark.parametrize("view", ["apply", pytest.param("ignore", marks=pytest.mark.slow)])
def test_every_way_to_a_prediction_gives_the_same(view: View, tmp_path: Path) -> None:
    """Training's evaluation, `convmlp predict`'s predictor, the served model and `kind: evaluate`, all orientations."""
    from convmlp_platform.registry.pyfunc_model import BundleModel

    folder, files = prepared(view), sources()[1]
    job = TrainJob.model_validate(
        {
            "kind": "train",
            "name": "photos",
            "optimizer": {"lr": 0.1},
            "model": {"name": "convmlp_tiny"},
            "data": {"path": str(folder), "eval_split": "train", "image_size": 32, "num_workers": 0},
            "training": {"epochs": 1, "global_batch_size": 5, "micro_batch_size": 5},
            "eval": {"batch_size": 5},
        }
    )
    manifest = open_manifest(str(folder))
    torch.manual_seed(0)
    task = parts.build_task(job, manifest).eval()
    spec = bundle_spec(job, manifest, {})
    normalize, bundle = Normalize(spec.mean, spec.std), tmp_path / "bundle"
    write_bundle(bundle, task.model.state_dict(), spec)
    loader = EvalLoader(opened(folder, "webdataset"), eval_transform_of(job, manifest), 5, 0, 1, 0)
    expected: list[torch.Tensor] = []
    losses: list[torch.Tensor] = []
    with torch.inference_mode():
        for batch in loader:
            logits = task.model(normalize(batch.images))
            expected += logits.softmax(1)
            losses += cross_entropy(logits, batch.targets, reduction="none")
    names = [
        next(name for name in files if loader.split.key(i).endswith(name.rsplit(".", 1)[0]))
        for i in range(40)
    ]
    write_files(tmp_path, files)
    found = Predictor.from_folder(bundle).predict([tmp_path / name for name in names])
    served = BundleModel()
    served.load_context(SimpleNamespace(artifacts={"bundle": str(bundle)}))
    table = served.predict(None, pd.DataFrame({"image": [files[name] for name in names]}))
    assert len(expected) == len(found) == len(table) == 40
    for place, one in enumerate(found):
        torch.testing.assert_close(one.probabilities, expected[place], rtol=1e-4, atol=1e-6)
        best = one.top(1)[0]
        assert (table.iloc[place]["label"], table.iloc[place]["probability"]) == (
            best[0],
            pytest.approx(best[1]),
        )
    own_loss = float(torch.stack(losses).mean())
    others: tuple[View, ...] = ("apply", "ignore")
    for other in others:
        check: dict[str, Any] = {
            "kind": "evaluate",
            "name": other,
            "model": {"from": str(bundle)},
            "data": {"path": str(prepared(other)), "split": "train", "num_workers": 0},
            "evaluate": {"precision": "fp32"},
            "output": {"path": str(tmp_path / "out")},
            "tracking": {"uri": f"sqlite:///{tmp_path}/mlflow.db"},
            "launch": {"use_gpu": False},
        }
        evaluation = EvaluateJob.model_validate(check)
        report = preflight_evaluation(evaluation)
        assert not report.problems
        told = [line for line in report.summary if "35 of this dataset are" in line]
        assert len(told) == (other != view)
        result = run_evaluation(evaluation, lambda _line: None)
        assert result.dataset.images == 40
        assert (result.metrics["loss"] == pytest.approx(own_loss, rel=1e-5)) == (other == view)


OBJECT = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [2, 3, 10, 20], "area": 200, "iscrowd": 0}


def coco(root: Path, orientation: int, size: tuple[int, int], **setting: str) -> tuple[Path, list[str]]:
    """One image of 44 x 32 stored pixels whose document says `size`, width and height; and what preparing it says."""
    image = {"id": 1, "file_name": "a.jpg", "width": size[0], "height": size[1]}
    polygon = {"segmentation": [[2, 3, 12, 3, 12, 23, 2, 23]]}
    document = {"images": [image], "annotations": [OBJECT | polygon], "categories": [{"id": 1, "name": "a"}]}
    write_files(
        root / "source",
        {
            "train/a.jpg": photo(orientation),
            "annotations/instances_train.json": json.dumps(document).encode(),
        },
    )
    lines: list[str] = []
    source = {"kind": "coco", "path": str(root / "source"), "splits": {"train": "train"}} | setting
    job = PrepareConfig.model_validate(
        {"source": source, "output": {"path": str(root / "out")}, "max_rejected": 1.0}
    )
    try:
        prepare(job, progress=lines.append)
    except DataPrepError as error:
        lines.append(str(error))
    return root / "out", lines


@pytest.mark.parametrize("orientation", range(1, 9))
def test_boxes_are_of_the_upright_view(orientation: int, tmp_path: Path) -> None:
    size = (44, 32) if orientation < 5 else (32, 44)
    folder, lines = coco(tmp_path, orientation, size)
    payload = opened(folder, "ffcv").payload(0)
    assert (payload.width, payload.height) == size
    np.testing.assert_array_equal(payload.pixels(), seen(photo(orientation), "apply"))
    asked = [line for line in lines if "where they were drawn on the pixels as stored" in line]
    assert len(asked) == (orientation != 1)


@pytest.mark.parametrize(
    ("view", "size", "advice"),
    [
        ("apply", (44, 32), "exif_orientation: ignore"),
        ("ignore", (32, 44), "exif_orientation: apply"),
    ],
)
def test_sizes_tell_which_view_was_annotated(
    view: str, size: tuple[int, int], advice: str, tmp_path: Path
) -> None:
    folder, _ = coco(tmp_path, 6, size, exif_orientation=view)
    (line,) = [row["reason"] for row in rejected_lines(folder)] if (folder / "rejected.jsonl").exists() else _
    assert advice in line and f"{size[0]} x {size[1]}" in line


def test_masks_follow_their_images(tmp_path: Path) -> None:
    mask = Image.fromarray(np.arange(44 * 32, dtype=np.uint8).reshape(44, 32) % 3)
    buffer = io.BytesIO()
    mask.save(buffer, "PNG")
    files = {"objectInfo150.txt": b"Idx\tRatio\tTrain\tVal\tName\n1\t0.5\t1\t1\twall\n2\t0.5\t1\t1\tsky\n"}
    for turn in (5, 6, 7, 8):
        files |= {
            f"images/training/{turn}.jpg": photo(turn),
            f"annotations/training/{turn}.png": buffer.getvalue(),
        }
    write_files(tmp_path / "source", files)
    source = {"kind": "ade20k", "path": str(tmp_path / "source"), "splits": {"train": "training"}}
    job = {"source": source, "output": {"path": str(tmp_path / "out")}}
    manifest = prepare(PrepareConfig.model_validate(job))
    assert manifest.splits["train"].num_samples == 4
    job["output"] = {"path": str(tmp_path / "small"), "resize": {"short_side": 16, "quality": 95}}
    prepare(PrepareConfig.model_validate(job))
    for folder in ("out", "small"):
        split = opened(tmp_path / folder, "webdataset")
        for sample in range(4):
            payload = split.payload(sample)
            with Image.open(io.BytesIO(payload.annotation())) as stored:
                assert stored.size == (payload.width, payload.height) == payload.pixels().shape[1::-1]


@pytest.mark.parametrize(
    "between", [b"", b"\xff", b"\xff\xff\xff", b"\0\0", b"\xff\xfe\0\2", b"\xff\xfe\0\1", b"ab\xffc"]
)
@pytest.mark.parametrize("place", ["before", "after", "both"])
def test_orientation_is_found_as_decoders_find_segments(between: bytes, place: str) -> None:
    content = photo(6)
    start = content.index(b"\xff\xe1")
    end = start + 2 + int.from_bytes(content[start + 2 : start + 4])
    before, after = (between if place in (one, "both") else b"" for one in ("before", "after"))
    odd = content[:start] + before + content[start:end] + after + content[end:]
    try:
        expected = orientation_of_image(open_image(odd)[0])
    except RejectedImage:
        return
    assert orientation_of_jpeg(odd) == expected


@pytest.mark.parametrize("validate", ["decode", "headers"])
def test_orientation_behind_the_pixels_of_a_png_counts_as_in_prediction(
    validate: Literal["decode", "headers"],
) -> None:
    content = photo(6, "lossless.png")
    start = content.index(b"eXIf") - 4
    end = start + 12 + int.from_bytes(content[start : start + 4])
    moved = content[:start] + content[end:-12] + content[start:end] + content[-12:]
    stored = store_image(
        moved, Steps(None, validate, for_ffcv=True, exif_orientation="apply"), histogram=False
    )
    assert stored.oriented and (stored.width, stored.height) == predicted(moved).size == (32, 44)
