"""A folder of odd files: each is stored pixel-right in both formats, or rejected with its reason."""

from __future__ import annotations

import io
import os
import tarfile
import warnings
from pathlib import Path
from urllib.parse import unquote_to_bytes

import numpy as np
import pytest
from odd_files import Pixels, bad_files, good_files, rgb
from prep_helpers import folder_job, image_bytes, prepare_folder, rejected_lines, smooth_image

from data_prep.config import ImageFolderSource
from data_prep.dataset.index import RAW_RGB, read_index
from data_prep.dataset.manifest import DatasetManifest
from data_prep.errors import DataPrepError
from data_prep.prepare import prepare
from data_prep.sources import open_source
from data_prep.verify import verify

GOOD, BAD = good_files(), bad_files()
BUDGET = len(BAD) / (len(GOOD) + len(BAD)) + 1e-9


def write_folder(root: Path) -> Path:
    folder = root / "train" / "Ein Ordner mit ünïcode.d"
    folder.mkdir(parents=True)
    for name, (content, _) in (GOOD | BAD).items():
        (folder / name).write_bytes(content)
    (folder / ".hidden.jpg").write_bytes(b"not an image")
    (folder / "notes.txt").write_bytes(b"not an image")
    return root


def job(root: Path, output: Path, **settings: object) -> DatasetManifest:
    return prepare_folder(root, output, splits={"train": "train"}, samples_per_shard=7, **settings)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("odd")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        job(write_folder(root / "source"), root / "out", max_rejected=BUDGET)
    return root / "out"


def name_of(key: str, names: list[str]) -> str:
    """The file of a key: its name without suffix where that is unique."""
    found = os.fsdecode(unquote_to_bytes(key.rsplit("/", 1)[1]))
    return found if found in names else next(name for name in names if name.rsplit(".", 1)[0] == found)


def stored(prepared: Path, format_name: str) -> dict[str, Pixels]:
    """Name → RGB pixels as this format has them."""
    found = {}
    for path in sorted((prepared / format_name).glob("*.index.arrow")):
        index = read_index(path)
        shard = next(p for p in path.parent.glob(f"{path.name.split('.')[0]}.*") if p.suffix != ".arrow")
        content = shard.read_bytes()
        for row in map(index.row, range(len(index))):
            payload = content[row.offset : row.offset + row.length]
            if row.encoding == RAW_RGB:
                pixels = np.frombuffer(payload, np.uint8).reshape(row.height, row.width, 3)
            else:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    pixels = rgb(payload)
            assert pixels.shape == (row.height, row.width, 3)
            found[name_of(row.key, list(GOOD))] = pixels
    return found


@pytest.mark.parametrize("format_name", ["webdataset", "ffcv"])
def test_every_usable_file_reads_back_pixel_right(prepared: Path, format_name: str) -> None:
    found = stored(prepared, format_name)
    assert sorted(found) == sorted(GOOD)
    for name, (_, pixels) in GOOD.items():
        np.testing.assert_array_equal(found[name], pixels, err_msg=name)
    report = verify(prepared)
    assert report.ok, report.problems


def test_files_pass_through_under_the_suffix_of_their_content(prepared: Path) -> None:
    found = {}
    for path in (prepared / "webdataset").glob("*.tar"):
        with tarfile.open(path) as tar:
            for member in tar:
                assert member.name.isascii() and ".." not in member.name
                key, _, suffix = member.name.partition(".")
                if suffix != "cls":
                    opened = tar.extractfile(member)
                    assert opened is not None
                    found[name_of(key, list(GOOD))] = (suffix, opened.read())
    assert found["really_a_png.JPEG"][0] == "png"
    assert found["really_a_bmp.png"][0] == "bmp"
    changed = {name for name, (content, _) in GOOD.items() if found[name][1] != content}
    assert changed == {"deep_grey.png"}


def test_every_other_file_is_rejected_with_its_reason(prepared: Path) -> None:
    lines = rejected_lines(prepared)
    assert sorted(Path(line["location"]).name for line in lines) == sorted(BAD)
    for line in lines:
        name = Path(line["location"]).name
        assert set(line) == {"split", "key", "location", "reason"}
        assert line["split"] == "train"
        assert line["reason"].startswith(BAD[name][1]), (name, line["reason"])
        assert "\n" not in line["reason"] and "0x7" not in line["reason"]


def test_over_the_budget_the_job_fails_and_nothing_looks_finished(tmp_path: Path) -> None:
    source, output = write_folder(tmp_path / "source"), tmp_path / "out"
    with pytest.raises(DataPrepError, match=r"images can't be used.*max_rejected"):
        job(source, output, max_rejected=BUDGET - 0.03)
    assert not (output / "manifest.json").exists()
    reasons = (output / "rejected.jsonl").read_text().splitlines()
    assert len(reasons) > (BUDGET - 0.03) * (len(GOOD) + len(BAD))
    manifest = job(source, output, max_rejected=BUDGET)
    assert manifest.splits["train"].num_samples == len(GOOD)


def test_structure_finds_what_is_cut_off(tmp_path: Path) -> None:
    source = tmp_path / "source" / "train" / "a"
    source.mkdir(parents=True)
    for name in ("cmyk.jpg", "grey.jpg", "bytes_after_the_end.jpg", "twin.png"):
        (source / name).write_bytes(GOOD[name][0])
    for name in ("cut_in_its_header.jpg", "cut_in_its_pixels.jpg", "empty.jpg"):
        (source / name).write_bytes(BAD[name][0])
    job(tmp_path / "source", tmp_path / "out", max_rejected=0.5, validate_images="structure")
    lines = rejected_lines(tmp_path / "out")
    assert [line["reason"] for line in lines] == [
        next(line["reason"] for line in lines if Path(line["location"]).name == name)
        for name in ("cut_in_its_header.jpg", "cut_in_its_pixels.jpg", "empty.jpg")
    ]
    assert all(line["reason"].startswith(BAD[Path(line["location"]).name][1]) for line in lines)


def make_link(folder: Path, outside: Path, kind: str) -> None:
    match kind:
        case "file outside":
            (folder / "link.jpg").symlink_to(outside / "secret.jpg")
        case "folder outside":
            (folder / "more").symlink_to(outside)
        case "loop":
            (folder / "more").symlink_to(folder)
        case "broken":
            (folder / "link.jpg").symlink_to(folder / "missing.jpg")
        case "pipe":
            os.mkfifo(folder / "pipe.jpg")


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("file outside", "link.jpg leads out of source.path"),
        ("folder outside", "more leads out of source.path"),
        ("loop", "remove the loop"),
        ("broken", "link.jpg is neither a file nor a folder, or a broken link"),
        ("pipe", "pipe.jpg is neither a file nor a folder"),
    ],
)
def test_what_is_no_file_of_the_folder_is_refused(tmp_path: Path, kind: str, message: str) -> None:
    folder = tmp_path / "source" / "train" / "a"
    folder.mkdir(parents=True)
    (tmp_path / "outside").mkdir()
    for path in (folder / "own.jpg", tmp_path / "outside" / "secret.jpg"):
        path.write_bytes(image_bytes(smooth_image(0)))
    make_link(folder, tmp_path / "outside", kind)
    with pytest.raises(DataPrepError, match=message):
        job(tmp_path / "source", tmp_path / "out")
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_links_inside_the_folder_are_read(tmp_path: Path) -> None:
    folder = tmp_path / "source" / "train" / "a"
    folder.mkdir(parents=True)
    (folder / "own.jpg").write_bytes(image_bytes(smooth_image(0)))
    (folder / "link.jpg").symlink_to(folder / "own.jpg")
    assert job(tmp_path / "source", tmp_path / "out").splits["train"].num_samples == 2


def test_split_folders_can_not_leave_the_root(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    outside = tmp_path / "outside" / "a"
    outside.mkdir(parents=True)
    (outside / "x.jpg").write_bytes(image_bytes(smooth_image(0)))
    config = folder_job(tmp_path / "source", tmp_path / "out", splits={"train": "../outside"})
    with pytest.raises(DataPrepError, match=r"leads out of source\.path"):
        prepare(config, progress=lambda line: None)


def test_keys_stay_unique_when_names_differ_in_their_suffix_only(tmp_path: Path) -> None:
    folder = tmp_path / "train" / "a"
    folder.mkdir(parents=True)
    names = ["b.jpg", "b.png", "b.jpg.png", "b.jpg.png.jpg", "b.jpg.png.png", "c.jpg"]
    for name in names:
        (folder / name).write_bytes(b"")
    refs = open_source(ImageFolderSource(path=tmp_path, splits={"train": "train"})).listing().splits["train"]
    keys = {Path(ref.location).name: ref.key for ref in refs}
    assert sorted(keys) == sorted(names)
    assert len(set(keys.values())) == len(names)
    assert keys["c.jpg"] == "a/c"


def test_pixels_of_one_file_are_in_memory_at_a_time() -> None:
    """A header that promises 89 megapixels costs nothing until there are pixels to decode."""
    import tracemalloc

    from data_prep.images.check_image import RejectedImage, Steps, store_image

    content = BAD["bomb_of_100_megapixels.png"][0]
    tracemalloc.start()
    with pytest.raises(RejectedImage):
        store_image(content, Steps(None, "decode", for_ffcv=True), histogram=True)
    assert tracemalloc.get_traced_memory()[1] < 2_000_000
    tracemalloc.stop()
    assert io.BytesIO(content).getbuffer().nbytes < 1000
