"""COCO through both formats and back: every object as published, AP 1; and what makes a document unusable."""

from __future__ import annotations

import json
import mmap
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from coco_files import average_precision, made_up_document, make_coco, write_document
from hypothesis import given, settings
from hypothesis import strategies as st
from prep_helpers import image_bytes, rejected_lines, smooth_image

from data_prep.annotations.annotations import Detection, parse_detection, to_coco
from data_prep.config import CocoSource, OutputConfig, PrepareConfig
from data_prep.dataset.index import read_index
from data_prep.dataset.manifest import DatasetManifest, load_manifest
from data_prep.errors import DataPrepError
from data_prep.prepare import prepare
from data_prep.sources import open_source
from data_prep.sources.coco.json_ranges import json_parts
from data_prep.verify import verify

FORMATS = ("webdataset", "ffcv")


def prepare_coco(source: Path, output: Path, **settings: Any) -> DatasetManifest:
    config = PrepareConfig(
        source=CocoSource(path=source), output=OutputConfig(path=output, samples_per_shard=5), **settings
    )
    return prepare(config, progress=lambda line: None)


def read_annotations(folder: Path, split: str, format_name: str) -> list[Detection]:
    """All of a split, from the shards' bytes."""
    manifest = load_manifest(folder)
    found = []
    for shard in manifest.splits[split].formats[format_name]:
        content = (folder / shard.file).read_bytes()
        index = read_index(folder / shard.index)
        for row in map(index.row, range(len(index))):
            start = row.annotation_offset
            found.append(parse_detection(content[start : start + row.annotation_length], manifest.class_ids))
            assert (found[-1].height, found[-1].width) == (row.height, row.width)
    return found


def assert_equals_published(
    manifest: DatasetManifest, images: list[Detection], published: dict[str, Any]
) -> None:
    """Object for object; the order of images is the shuffled one, so both sides are sorted by id."""
    rebuilt = to_coco(images, manifest.classes, manifest.class_ids)
    for kind, keys in (
        ("images", {"id", "file_name", "height", "width"}),
        ("categories", {"id", "name"}),
        ("annotations", None),
    ):
        expected = [
            {key: item[key] for key in item if keys is None or key in keys} for item in published[kind]
        ]
        assert _by_id(rebuilt[kind]) == _by_id(expected)


def _by_id(items: list[dict[str, Any]]) -> str:
    """As text, which tells 1 from 1.0."""
    return json.dumps(sorted(items, key=lambda item: item["id"]), sort_keys=True)


def assert_round_trip(source: Path, output: Path, scored: tuple[str, ...] = ("train", "val")) -> None:
    manifest = load_manifest(output)
    assert manifest.task == "detection"
    report = verify(output)
    assert report.ok, report.problems
    for split in manifest.splits:
        published = json.loads((source / "annotations" / f"instances_{split}2017.json").read_text())
        for format_name in FORMATS:
            images = read_annotations(output, split, format_name)
            assert_equals_published(manifest, images, published)
            if split in scored:
                assert average_precision(published, images) == {"bbox": 1.0, "segm": 1.0}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_coco(tmp_path_factory.mktemp("coco") / "source")


@pytest.fixture(scope="module")
def prepared(source: Path) -> Path:
    prepare_coco(source, source.parent / "out")
    return source.parent / "out"


def test_all_objects_come_back_from_both_formats_with_ap_1(source: Path, prepared: Path) -> None:
    assert_round_trip(source, prepared)


def test_the_platform_reads_the_same_annotations(prepared: Path) -> None:
    from convmlp_platform.data.dataset.split import ShardedSplit

    manifest = load_manifest(prepared)
    for format_name in FORMATS:
        split = ShardedSplit(prepared, manifest, "train", format_name)
        images = [parse_detection(split.annotation(i), manifest.class_ids) for i in range(len(split))]
        assert [image.objects for image in images] == [
            image.objects for image in read_annotations(prepared, "train", format_name)
        ]
        assert {split.label(i) for i in range(len(split))} == {-1}


@pytest.mark.real_data
def test_real_images_come_back_from_both_formats_with_ap_1(tmp_path: Path) -> None:
    folder = os.environ.get("CONVMLP_TEST_DATA")
    if not folder or not (Path(folder) / "coco").is_dir():
        pytest.skip("CONVMLP_TEST_DATA does not name a folder that holds coco/")
    manifest = prepare_coco(Path(folder) / "coco", tmp_path / "out", validate_images="structure")
    assert manifest.preprocessing["num_rejected"] == 0
    assert (len(manifest.classes), manifest.class_ids and manifest.class_ids[-1]) == (80, 90)
    # the 1,369 objects of train take pycocotools 10 s; that they equal the published ones is shown for all
    assert_round_trip(Path(folder) / "coco", tmp_path / "out", scored=("val",))


def test_labels_follow_the_ids_and_images_without_objects_stay(prepared: Path) -> None:
    manifest = load_manifest(prepared)
    assert manifest.class_ids == [1, 13, 90]
    assert manifest.classes == ["person", "stop sign", "toothbrush"]
    images = read_annotations(prepared, "train", "webdataset")
    assert sum(len(image.objects) == 0 for image in images) == 1
    for image in images:
        assert [manifest.class_ids[label] for label in image.labels] == [
            o["category_id"] for o in image.objects
        ]


def test_a_location_names_all_that_a_worker_reads(source: Path) -> None:
    coco = open_source(CocoSource(path=source))
    listing = coco.listing()
    ref = next(ref for ref in listing.splits["train"] if "gr" in ref.key)
    assert ref.key == "zweite%20Ebene/gr%C3%B6%C3%9Fe"
    fresh = open_source(CocoSource(path=source))
    assert fresh.annotation(ref) == coco.annotation(ref)  # type: ignore[attr-defined]
    assert isinstance(fresh.read(ref), bytes)


def test_a_document_that_changes_meanwhile_is_noticed(tmp_path: Path) -> None:
    coco = open_source(CocoSource(path=make_coco(tmp_path)))
    refs = coco.listing().splits["train"]
    document = made_up_document("train2017", 9)
    document["info"]["description"] += " again"
    write_document(tmp_path, "train2017", document)
    for ref in refs:
        with pytest.raises(DataPrepError, match="was changed while it was being prepared"):
            coco.annotation(ref)  # type: ignore[attr-defined]


def _append(name: str, /, **changes: Any) -> Callable[[dict[str, Any]], None]:
    def change(document: dict[str, Any]) -> None:
        document[name].append(document[name][-1] | changes)

    return change


def _set(name: str, /, **changes: Any) -> Callable[[dict[str, Any]], None]:
    return lambda document: document[name][0].update(changes)


def _drop(name: str, key: str) -> Callable[[dict[str, Any]], None]:
    return lambda document: document[name][0].pop(key)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_append("images", file_name="x.jpg"), r"instances_train2017.json: two images have the id 9056"),
        (_append("images", id=1, file_name="000000009056.jpg"), "1 files have two images: 000000009056.jpg"),
        (
            _append("images", id=1, file_name="lost.jpg"),
            r"1 of 14 images can't be used so far.*there is no such file: .*lost.jpg",
        ),
        (
            _set("images", file_name="../val2017/000000004000.jpg"),
            "image 9000: file_name .* leads out of train2017/",
        ),
        (_set("images", file_name="/etc/passwd"), "image 9000: file_name '/etc/passwd' leads out"),
        (_set("images", id="9000"), r"byte \d+: an entry of images has no number as its id"),
        (_drop("images", "file_name"), "image 9000 has no file_name"),
        (_append("annotations"), r"two annotations have the id 90000"),
        (
            _append("annotations", id=5, image_id=77),
            "annotations of 1 images that it doesn't list: image_id 77",
        ),
        (
            _append("annotations", id=5, category_id=77),
            r"1 category ids that it doesn't list: 77 \(annotation 5\)",
        ),
        (_drop("annotations", "image_id"), "an entry of annotations has no number as its image_id"),
        (_append("categories"), "two categories have the id 13"),
        (_set("categories", name="comb"), "have different categories: .*comb"),
        (_set("categories", name=3), "category 90 has no name"),
        (_set("categories", name=" "), "category 90 has no name"),
        (lambda document: document.update(images=[], annotations=[]), "has 0 images and 3 categories"),
        (
            lambda document: document.update(images={}),
            r"is not the JSON it should be: byte \d+: expected '\['",
        ),
    ],
)
def test_an_inconsistent_document_is_one_clear_error(
    tmp_path: Path, change: Callable[[dict[str, Any]], Any], message: str
) -> None:
    make_coco(tmp_path / "coco")
    document = made_up_document("train2017", 9)
    change(document)
    write_document(tmp_path / "coco", "train2017", document)
    with pytest.raises(DataPrepError, match=message):
        prepare_coco(tmp_path / "coco", tmp_path / "out")
    assert not (tmp_path / "out" / "manifest.json").exists()


@pytest.mark.parametrize("cut", [0, 1, 100, -1, -200])
def test_a_document_that_is_cut_off_is_one_clear_error(tmp_path: Path, cut: int) -> None:
    make_coco(tmp_path)
    path = tmp_path / "annotations" / "instances_val2017.json"
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(DataPrepError, match=r"instances_val2017.json"):
        open_source(CocoSource(path=tmp_path)).listing()


def test_missing_documents_and_folders(tmp_path: Path) -> None:
    with pytest.raises(DataPrepError, match=r"source.path: .*nowhere is not a folder"):
        open_source(CocoSource(path=tmp_path / "nowhere"))
    with pytest.raises(
        DataPrepError, match=r"no annotations at .*instances_train2017.json.*annotations_trainval2017"
    ):
        open_source(CocoSource(path=tmp_path)).listing()
    make_coco(tmp_path)
    (tmp_path / "outside.jpg").write_bytes(image_bytes(smooth_image(0)))
    (tmp_path / "train2017" / "000000009000.jpg").unlink()
    (tmp_path / "train2017" / "000000009000.jpg").symlink_to("/etc/hostname")
    with pytest.raises(DataPrepError, match=r"leads out of source.path"):
        open_source(CocoSource(path=tmp_path)).listing()


def test_contradictions_leave_their_image_out(tmp_path: Path) -> None:
    make_coco(tmp_path / "coco")
    document = made_up_document("train2017", 9)
    by_image = {item["image_id"]: item for item in document["annotations"]}
    by_image[9007] |= {"segmentation": {"size": [48, 64], "counts": [5]}, "iscrowd": 1}
    by_image[9021] |= {"bbox": [1, 2, 3]}
    by_image[9028] |= {"bbox": [1, 2, 0, 3]}
    document["images"][8]["height"] = 47
    del document["annotations"][document["annotations"].index(by_image[9056])]
    write_document(tmp_path / "coco", "train2017", document)
    with pytest.raises(DataPrepError, match="max_rejected"):
        prepare_coco(tmp_path / "coco", tmp_path / "out")
    manifest = prepare_coco(tmp_path / "coco", tmp_path / "out", max_rejected=0.3, max_unusable_objects=0.1)
    lines = rejected_lines(tmp_path / "out")
    assert {line["key"]: line["reason"].partition(": ")[2] or line["reason"] for line in lines} == {
        "zweite%20Ebene/gr%C3%B6%C3%9Fe": "run lengths of 5 pixels, the image has 3072",
        "000000009021": "bbox [1, 2, 3] is not four finite numbers",
        "000000009056": "the annotation is of 64 x 47 pixels, the image has 64 x 48",
    }
    kept = next(i for i in read_annotations(tmp_path / "out", "train", "ffcv") if i.image_id == 9028)
    assert (
        by_image[9028] | {"image_id": 9028}
        in to_coco([kept], manifest.classes, manifest.class_ids)["annotations"]
    )
    assert not kept.usable.all()


@pytest.mark.parametrize(
    "content",
    [
        b'{["images"]: []}',
        b'{"images": [{"id": 1' + b"0" * 30 + b"}]}",
        b'{"images": [{"id": 1' + b"0" * 5000 + b"}]}",
        b'{"images": [{"id": 1, "x": ' + b"[" * 100_000,
    ],
    ids=["a name that is no text", "a large id", "a larger id", "deep"],
)
def test_what_json_allows_and_nobody_means_is_the_documents_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "annotations" / "instances_train2017.json"
    path.parent.mkdir()
    path.write_bytes(content)
    with pytest.raises(DataPrepError, match=str(path)):
        open_source(CocoSource(path=tmp_path)).listing()


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@given(
    st.dictionaries(st.sampled_from(["a", "b", "list", "liste"]), st.lists(json_values, max_size=6)),
    st.sampled_from([None, 1]),
    st.booleans(),
)
@settings(max_examples=150, deadline=None)
def test_ranges_of_any_document(document: dict[str, Any], indent: int | None, ascii_only: bool) -> None:
    content = json.dumps(document, indent=indent, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")
    with mmap.mmap(-1, len(content)) as mapped:
        mapped[:] = content
        found: dict[str, list[Any]] = {}
        for part in json_parts(mapped, {"list", "liste"}, "it"):
            found.setdefault(part.name, []).append(json.loads(content[part.start : part.end]))
        expected = {
            name: value if name in ("list", "liste") else [value]
            for name, value in document.items()
            if value or name not in ("list", "liste")
        }
        assert found == expected


def test_entries_across_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    from data_prep.sources.coco import json_ranges

    document = {"list": [list(range(i)) for i in range(60)], "number": 123456789}
    content = json.dumps(document).encode()
    with mmap.mmap(-1, len(content)) as mapped:
        mapped[:] = content
        for window in (1, 7, 64, 1000):
            monkeypatch.setattr(json_ranges, "_WINDOW_BYTES", window)
            parts = list(json_parts(mapped, {"list"}, "it"))
            assert [part.value for part in parts] == [*document["list"], 123456789]  # type: ignore[misc]
            assert all(json.loads(content[part.start : part.end]) == part.value for part in parts)
