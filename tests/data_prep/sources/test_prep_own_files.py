"""Folders, tables and tars as people have them: each gives what was meant, or one sentence that says what is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from odd_files import png
from PIL import Image
from prep_helpers import folder_job, image_bytes, make_folder, prepare_folder, rejected_lines, smooth_image
from published_minis import write_files, write_tar

from convmlp.transforms.image_transforms import EvalTransform
from data_prep.config import OutputConfig, PrepareConfig, WebDatasetSource
from data_prep.dataset.manifest import DatasetManifest
from data_prep.errors import DataPrepError
from data_prep.images.image_file import RejectedImage, open_image, to_rgb
from data_prep.images.masks import read_mask
from data_prep.prepare import prepare
from data_prep.sources.parsing.source_folder import decode_text


@pytest.mark.parametrize(
    ("suffix", "kind", "reason"),
    [
        ("jfif", "JPEG", None),
        ("jpe", "JPEG", None),
        ("tif", "TIFF", "a TIFF file, not a JPEG, PNG, BMP or WebP image"),
        ("TIFF", "TIFF", "a TIFF file, not a JPEG, PNG, BMP or WebP image"),
        ("gif", "GIF", "a GIF file, not a JPEG, PNG, BMP or WebP image"),
        ("ppm", "PPM", "a PPM file, not a JPEG, PNG, BMP or WebP image"),
        ("avif", "AVIF", "an AVIF file, not a JPEG, PNG, BMP or WebP image"),
        ("heic", "TIFF", "a TIFF file, not a JPEG, PNG, BMP or WebP image"),
    ],
)
def test_images_of_other_kinds_are_read_or_counted(
    tmp_path: Path, suffix: str, kind: str, reason: str | None
) -> None:
    source = make_folder(tmp_path / "source")
    write_files(source, {f"train/class_0/x.{suffix}": image_bytes(smooth_image(7), kind)})
    manifest = prepare_folder(source, tmp_path / "out", max_rejected=0.1)
    found = {line["location"]: line["reason"] for line in rejected_lines(tmp_path / "out")}
    assert found == ({} if reason is None else {f"train/class_0/x.{suffix}": reason})
    assert manifest.splits["train"].num_samples == 12 - len(found)


def test_files_that_are_no_images_are_noted(tmp_path: Path) -> None:
    source = make_folder(tmp_path / "source")
    names = ("Thumbs.db", "notes.txt", "more.txt", "LICENSE")
    write_files(source, {f"train/class_0/{name}": b"no image" for name in names})
    lines: list[str] = []
    manifest = prepare(folder_job(source, tmp_path / "out"), progress=lines.append)
    note = "4 files in class folders are no images and were passed over: 2 .txt, 1 without suffix, 1 .db"
    assert manifest.preprocessing["notes"][0] == note
    assert f"note: {note}" in lines


@pytest.mark.parametrize("name", ["__MACOSX", "lost+found", "@eaDir", "0empty", "class_0a"])
def test_a_folder_without_images_is_no_class(tmp_path: Path, name: str) -> None:
    source = make_folder(tmp_path / "source")
    write_files(source, {f"train/{name}/._1.jpg": b"\0\5\26\7"})
    with pytest.raises(
        DataPrepError, match=rf"1 class folders without images: {name.replace('+', '.')}; remove"
    ):
        prepare_folder(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("in_train", [False, True])
def test_a_class_that_only_validation_has_is_noted(tmp_path: Path, in_train: bool) -> None:
    source = make_folder(tmp_path / "source", val=2)
    write_files(source, {"val/class_1a/x.jpg": image_bytes(smooth_image(7))})
    if in_train:
        (source / "train" / "class_1a").mkdir()
    manifest = prepare_folder(source, tmp_path / "out")
    assert manifest.classes == ["class_0", "class_1", "class_1a", "class_2"]
    assert "1 classes occur in val only: class_1a" in manifest.preprocessing["notes"]


@pytest.mark.parametrize(
    ("names", "shown"),
    [
        (["train/9.jpg"], "train/9.jpg"),
        (["9.png", "val/9.TIF"], "val/9.TIF, 9.png"),
        (["test/class_0/9.jpg"], "test/"),
        ([f"train/{n}.jpg" for n in range(7)], ", ".join(f"train/{n}.jpg" for n in range(5)) + ", ..."),
    ],
)
def test_images_outside_class_folders_are_counted(tmp_path: Path, names: list[str], shown: str) -> None:
    source = make_folder(tmp_path / "source", val=2)
    write_files(source, dict.fromkeys(names, image_bytes(smooth_image(7))))
    notes = prepare_folder(source, tmp_path / "out").preprocessing["notes"]
    assert notes[0] == (
        f"{len(names)} images or folders lie in no class folder of a split and were passed over: {shown}"
    )


def test_images_beside_the_classes_of_a_folder_without_splits_are_counted(tmp_path: Path) -> None:
    source = make_folder(tmp_path / "source") / "train"
    write_files(source, {"9.jpg": image_bytes(smooth_image(7)), "classes.txt": b"no image"})
    notes = prepare_folder(source, tmp_path / "out", val_fraction=0.5).preprocessing["notes"]
    assert notes[0] == "1 images or folders lie in no class folder of a split and were passed over: 9.jpg"


@pytest.mark.parametrize("twin", ["Class_0", " class_0", "CLASS_0 ", "class _0"])
def test_classes_that_look_alike_are_noted(tmp_path: Path, twin: str) -> None:
    source = make_folder(tmp_path / "source", val=2)
    write_files(source, {f"train/{twin}/x.jpg": image_bytes(smooth_image(7))})
    notes = prepare_folder(source, tmp_path / "out").preprocessing["notes"]
    (note,) = [note for note in notes if "capitals" in note]
    alike = " = ".join(map(repr, sorted(["class_0", twin])))
    assert note == f"2 classes differ in capitals, blanks or nothing from another: {alike}"


def test_a_class_of_training_may_have_no_images_in_validation(tmp_path: Path) -> None:
    source = make_folder(tmp_path / "source", val=2)
    (source / "val" / "class_2").mkdir()
    assert prepare_folder(source, tmp_path / "out").num_classes == 3


def tar_job(root: Path, members: dict[str, bytes], **settings: Any) -> DatasetManifest:
    root.mkdir(exist_ok=True)
    write_tar(root / "train.tar", members)
    source = WebDatasetSource(path=root, splits={"train": "train.tar"})
    job = PrepareConfig(source=source, output=OutputConfig(path=root.parent / "out"), **settings)
    return prepare(job, progress=lambda line: None)


@pytest.mark.parametrize("label", ["\ufeff1", "1\r\n", "\ufeff1\r", " 1 \n"])
def test_labels_from_any_editor_are_the_same(tmp_path: Path, label: str) -> None:
    members = {"a.jpg": image_bytes(smooth_image(1)), "a.cls": label.encode()}
    assert tar_job(tmp_path / "in", members).splits["train"].num_samples == 1


def test_names_with_dots_are_counted_one_by_one(tmp_path: Path) -> None:
    jpeg, members = image_bytes(smooth_image(1)), dict[str, bytes]()
    for number in range(6):
        members |= {f"ok{number}.jpg": jpeg, f"ok{number}.cls": b"0", f"ok{number}.seg.png": b"a mask, say"}
    for number in range(4):
        members |= {f"scan_v1.{number}.jpg": jpeg, f"scan_v1.{number}.cls": b"1"}
    with pytest.raises(DataPrepError, match=r"4 of 10 images can't be used.*has a dot before the suffix"):
        tar_job(tmp_path / "source", members, max_rejected=0.3)
    assert tar_job(tmp_path / "source", members, max_rejected=0.4).splits["train"].num_samples == 6


@pytest.mark.parametrize("bits", [8, 10, 12, 15, 16])
def test_16_bit_grey_of_few_bits_keeps_its_contrast(tmp_path: Path, bits: int) -> None:
    values = np.asarray(smooth_image(3).convert("L")).astype(np.uint32)
    values = (values * ((1 << bits) - 1) // int(values.max())).astype(np.uint16)
    content = image_bytes(Image.fromarray(values), "PNG")
    pixels = np.asarray(to_rgb(open_image(content)[0]))
    assert np.array_equal(pixels[..., 0], (values >> (bits - 8)).astype(np.uint8))
    assert pixels.max() == 255


@pytest.mark.parametrize(
    ("depth", "rows"), [(4, b"\x00\x10\x00\x23"), (2, b"\x00\x40\x00\xb0"), (1, b"\x00\x40\x00\x80")]
)
def test_masks_of_few_bits_hold_classes(depth: int, rows: bytes) -> None:
    values = read_mask(png(2, 2, depth, 0, rows))
    bits = [[row >> (8 - depth), row >> (8 - 2 * depth) & ((1 << depth) - 1)] for row in (rows[1], rows[3])]
    assert values.tolist() == bits


@pytest.mark.parametrize("size", [(3000, 1), (1, 3000), (65535, 2), (4000, 30)])
def test_a_very_long_image_costs_no_more_than_others(size: tuple[int, int]) -> None:
    transform, out = EvalTransform(64, mean=(0.5,) * 3, std=(0.5,) * 3), np.zeros((64, 64, 3), np.uint8)
    image = Image.new("RGB", size)
    middle = (size[0] // 2, size[1] // 2)
    image.paste(
        (200, 100, 50),
        (middle[0] - 40, 0 if size[1] < 40 else middle[1] - 40, middle[0] + 40, middle[1] + 40),
    )
    transform.render(image, out)
    assert out[32, 32].tolist() == [200, 100, 50]


def test_usual_shapes_are_resized_as_a_whole() -> None:
    image = smooth_image(5, (160, 20))
    out = np.zeros((32, 32, 3), np.uint8)
    transform = EvalTransform(32, mean=(0.5,) * 3, std=(0.5,) * 3)
    transform.render(image, out)
    whole = image.resize((36 * 8, 36), Image.Resampling.BICUBIC)
    left, top = (whole.width - 32) // 2, 2
    assert np.array_equal(out, np.asarray(whole.crop((left, top, left + 32, top + 32))))


@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
def test_tables_from_any_editor_are_the_same(tmp_path: Path, mark: str, newline: str) -> None:
    source = make_folder(tmp_path / "source")
    lines = [f"class_{number} Nämé {number}, other" for number in range(3)]
    write_files(source, {"names.txt": (mark + newline.join([*lines, ""])).encode()})
    manifest = prepare_folder(source, tmp_path / "out", class_names=Path("names.txt"))
    assert manifest.classes == ["Nämé 0", "Nämé 1", "Nämé 2"]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
def test_utf_16_is_said(encoding: str) -> None:
    with pytest.raises(DataPrepError, match=r"names.txt is UTF-16 text .* save it as UTF-8"):
        decode_text("class_0 a\n".encode(encoding), "names.txt")
    with pytest.raises(DataPrepError, match="line 2 has the byte 0xe9; save it as UTF-8"):
        decode_text("class_0 a\nclass_1 é\n".encode("latin-1"), "names.txt")


def test_the_kind_of_a_file_is_named() -> None:
    for content, name in ((b"%PDF-1.4 and so on", "PDF"), (b"\0\0\0\x20ftypheic" + b"\0" * 40, "HEIC")):
        with pytest.raises(RejectedImage, match=f"a {name} file, not a JPEG"):
            open_image(content)
