"""Notes of a dataset: what a person would want to know before training on it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from prep_helpers import folder_job, image_bytes, smooth_image
from published_minis import write_files

from data_prep.prepare import prepare


def folder(root: Path, images: dict[str, int]) -> Path:
    """`split/class/name` → the number of an image."""
    return write_files(
        root, {f"{name}.jpg": image_bytes(smooth_image(number)) for name, number in images.items()}
    )


def whole(classes: str = "ab", count: int = 12) -> dict[str, int]:
    """Many images of each class, all different."""
    names = [f"{split}/{one}/{n}" for split in ("train", "val") for one in classes for n in range(count)]
    return {name: number for number, name in enumerate(names)}


@pytest.mark.parametrize(
    ("changes", "notes"),
    [
        ({}, []),
        (
            {"val/a/0": 0},
            [
                "2 images stand in several splits as the same bytes, so that evaluation sees what was trained: "
                "train/a/0 = val/a/0"
            ],
        ),
        ({"train/b/0": 0}, ["2 images have several classes as the same bytes: train/a/0 = train/b/0",
                            "1 images are copies of another in their split: train/a/0 = train/b/0"]),
        ({"train/a/1": 0, "train/a/2": 0}, ["2 images are copies of another in their split: "
                                            "train/a/0 = train/a/1 = train/a/2"]),
        ({"train/c/0": 900}, ["1 classes occur in train only: c", "1 classes have fewer than 10 images in train: c"]),
    ],
)  # fmt: skip
def test_each_is_a_line_and_none_an_error(tmp_path: Path, changes: dict[str, int], notes: list[str]) -> None:
    lines: list[str] = []
    job = folder_job(folder(tmp_path / "source", whole() | changes), tmp_path / "out")
    manifest = prepare(job, progress=lines.append)
    assert manifest.preprocessing.get("notes", []) == notes
    assert [line.removeprefix("note: ") for line in lines if line.startswith("note: ")] == notes


def test_a_val_that_is_train_is_told_in_one_line(tmp_path: Path) -> None:
    source = folder(tmp_path / "source", whole())
    shutil.rmtree(source / "val")
    shutil.copytree(source / "train", source / "val")
    manifest = prepare(folder_job(source, tmp_path / "out"), progress=lambda _: None)
    (note,) = manifest.preprocessing["notes"]
    assert note.startswith("48 images stand in several splits")
    assert note.endswith("; ...")
