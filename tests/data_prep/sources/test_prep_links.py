"""Subsets made of links, and names that look the same in two Unicode forms."""

from __future__ import annotations

import io
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from coco_files import make_coco
from PIL import Image
from prep_helpers import image_bytes, make_folder, rejected_lines, smooth_image
from published_minis import write_files

from data_prep.config import PrepareConfig
from data_prep.dataset.manifest import DatasetManifest
from data_prep.errors import DataPrepError
from data_prep.prepare import prepare


def prepared(source: dict[str, Any], output: Path, **settings: Any) -> DatasetManifest:
    job = {"source": source, "output": {"path": str(output)}, **settings}
    return prepare(PrepareConfig.model_validate(job), progress=lambda line: None)


def subset(kind: str, root: Path) -> dict[str, Any]:
    """A source below `root/subset` whose images are links into `root/whole`."""
    whole, links = root / "whole", root / "subset"
    splits = {"train": "train", "val": "val"}
    if kind == "linked folders":
        make_folder(whole)
        links.mkdir()
        for split in splits:
            (links / split).symlink_to(whole / split)
        return {"kind": "image_folder", "path": str(links)}
    if kind == "image_folder":
        make_folder(whole)
    elif kind == "imagenet":
        for split in splits:
            write_files(
                whole, {f"{split}/n0000000{i}/{i}.JPEG": image_bytes(smooth_image(i)) for i in (1, 2)}
            )
    elif kind == "ade20k":
        mask = io.BytesIO()
        Image.fromarray(np.ones((20, 24), np.uint8)).save(mask, "PNG")
        for split in splits:
            write_files(
                whole,
                {
                    f"images/{split}/a.jpg": image_bytes(smooth_image(1)),
                    f"annotations/{split}/a.PNG": mask.getvalue(),
                },
            )
        write_files(links, {"objectInfo150.txt": b"Idx\tRatio\tTrain\tVal\tName\n1\t1\t1\t1\twall\n"})
    for path in [path for path in whole.rglob("*") if path.is_file()]:
        link = links / path.relative_to(whole)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(path)
    return {"kind": kind, "path": str(links)} | ({"splits": splits} if kind == "ade20k" else {})


@pytest.mark.parametrize("kind", ["image_folder", "linked folders", "imagenet", "ade20k"])
def test_links_lead_out_where_the_job_says_so(kind: str, tmp_path: Path) -> None:
    source = subset(kind, tmp_path)
    with pytest.raises(DataPrepError, match=r"leads out of source.path .* set source.follow_links: true"):
        prepared(source, tmp_path / "out")
    assert not (tmp_path / "out" / "manifest.json").exists()
    linked = prepared(source | {"follow_links": True}, tmp_path / "out")
    whole = source | {"path": str(tmp_path / "whole")}
    if kind == "ade20k":
        whole["class_names"] = str(tmp_path / "subset/objectInfo150.txt")
    assert linked.digest == prepared(whole, tmp_path / "twin").digest


def test_coco_images_may_be_links(tmp_path: Path) -> None:
    make_coco(tmp_path / "whole")
    links = tmp_path / "links"
    (links / "annotations").mkdir(parents=True)
    for name in ("train2017", "val2017"):
        (links / name).symlink_to(tmp_path / "whole" / name)
        document = f"annotations/instances_{name}.json"
        (links / document).write_bytes((tmp_path / "whole" / document).read_bytes())
    source = {"kind": "coco", "path": str(links)}
    with pytest.raises(DataPrepError, match=r"set source.follow_links: true"):
        prepared(source, tmp_path / "out")
    assert prepared(source | {"follow_links": True}, tmp_path / "out").splits["train"].num_samples


def test_a_dataset_of_links_is_the_one_of_files(tmp_path: Path) -> None:
    """How files are come by is no difference: the job may say it or not once the dataset is there."""
    source = {"kind": "image_folder", "path": str(make_folder(tmp_path / "source"))}
    prepared(source, tmp_path / "out")
    assert prepared(source | {"follow_links": True}, tmp_path / "out").splits


def test_twins_of_another_unicode_form_are_told_apart(tmp_path: Path) -> None:
    composed, split = "caf\u00e9", unicodedata.normalize("NFD", "caf\u00e9")
    write_files(
        tmp_path / "source",
        {
            f"train/{composed}/1.jpg": image_bytes(smooth_image(1)),
            f"val/{split}/1.jpg": image_bytes(smooth_image(2)),
        },
    )
    with pytest.raises(DataPrepError, match=r"'cafe\\u0301' looks the same as 'caf\\xe9', which is there"):
        prepared({"kind": "image_folder", "path": str(tmp_path / "source")}, tmp_path / "out")


def test_an_image_that_is_there_in_another_unicode_form_is_rejected_so(tmp_path: Path) -> None:
    make_coco(tmp_path / "source")
    file = tmp_path / "source/train2017/zweite Ebene/gr\u00f6\u00dfe.jpg"
    file.rename(file.with_name(unicodedata.normalize("NFD", file.name)))
    prepared({"kind": "coco", "path": str(tmp_path / "source")}, tmp_path / "out", max_rejected=0.5)
    (line,) = rejected_lines(tmp_path / "out")
    assert "there is no such file" in line["reason"] and "looks the same as 'gro\\u0308" in line["reason"]


@pytest.mark.parametrize(
    ("values", "notes"),
    [
        ([1, 2, 3], []),
        ([0, 1, 3], ["1 of 3 classes occur in no mask of train: sky"]),
        ([0, 1, 2], ["1 of 3 classes occur in no mask of train: sea", "add 1 to all values"]),
        ([2], ["2 of 3 classes occur in no mask of train: wall, sea"]),
    ],
)
def test_classes_that_no_mask_has_are_noted(values: list[int], notes: list[str], tmp_path: Path) -> None:
    mask = io.BytesIO()
    Image.fromarray(np.resize(np.array(values, np.uint8), (20, 24))).save(mask, "PNG")
    table = "".join(f"{i}\t1\t1\t1\t{name}\n" for i, name in enumerate(("wall", "sky", "sea"), 1))
    write_files(
        tmp_path / "source",
        {
            "images/training/a.jpg": image_bytes(smooth_image(1)),
            "annotations/training/a.png": mask.getvalue(),
            "objectInfo150.txt": f"Idx\tRatio\tTrain\tVal\tName\n{table}".encode(),
        },
    )
    source = {"kind": "ade20k", "path": str(tmp_path / "source"), "splits": {"train": "training"}}
    found = prepared(source, tmp_path / "out").preprocessing.get("notes", [])
    assert len(found) == len(notes)
    for line, note in zip(found, notes, strict=True):
        assert note in line
