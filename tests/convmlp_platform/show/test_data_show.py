"""Contact sheets and histograms: the right samples, drawn where they should be, in files of a sensible size."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageChops
from prepared import digits

from convmlp_platform.data.dataset import sample_view as view_module
from convmlp_platform.data.dataset.sample_view import SplitView
from convmlp_platform.errors import DataError
from convmlp_platform.pictures.annotate import draw_classes, draw_objects
from convmlp_platform.pictures.charts import class_histogram, save_figure
from convmlp_platform.pictures.contact_sheet import Cell, contact_sheet, fit
from convmlp_platform.pictures.style import class_color, font, shorten
from convmlp_platform.show.show_dataset import show

GREY = Image.new("RGB", (60, 40), (128, 128, 128))


def test_a_split_becomes_two_pictures_and_a_few_lines(tmp_path: Path) -> None:
    shown = show(str(digits()), tmp_path / "new" / "folder", split="val", count=12)
    assert (shown.sheet.name, shown.histogram.name) == ("digits-val-sheet.png", "digits-val-classes.png")
    for path in (shown.sheet, shown.histogram):
        with Image.open(path) as picture:
            assert min(picture.size) > 300
            assert len(picture.convert("RGB").getcolors(maxcolors=1 << 20) or []) > 5
    text = "\n".join(shown.lines)
    assert "digits / val: 359 images for classification, as webdataset, sha256:" in text
    assert "10; images a class: min 35, median 36, max 37" in text
    assert "all 8 x 8 pixels" in text


def test_the_same_seed_gives_the_same_picture(tmp_path: Path) -> None:
    sheets = [show(str(digits()), tmp_path / str(i), seed=seed).sheet for i, seed in enumerate((0, 0, 1))]
    first, second, other = (path.read_bytes() for path in sheets)
    assert first == second != other


def test_only_wanted_classes_are_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    cell = SplitView.cell

    def spy(self: SplitView, sample: int) -> tuple[Cell, set[int]]:
        drawn = cell(self, sample)
        seen.extend(drawn[1])
        return drawn

    monkeypatch.setattr(view_module.SplitView, "cell", spy)
    show(str(digits()), tmp_path, labels=["3", "7"], count=40)
    assert len(seen) == 40 and set(seen) == {3, 7}
    assert seen == sorted(seen)


def test_what_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has no class 'zebra'; it has 0, 1, 2"):
        show(str(digits()), tmp_path, labels=["zebra"])
    with pytest.raises(DataError, match="has no split 'test'"):
        show(str(digits()), tmp_path, split="test")
    with pytest.raises(DataError, match="no dataset manifest"):
        show(str(tmp_path), tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="can't write pictures into"):
        show(str(digits()), tmp_path / "file")


def test_classes_are_counted_without_the_images(tmp_path: Path) -> None:
    copy = Path(shutil.copytree(digits(), tmp_path / "digits"))
    for shard in copy.rglob("*.tar"):
        shard.write_bytes(bytes(shard.stat().st_size))
    found = SplitView(str(copy)).class_counts()
    assert found.counts.sum() == 1438 and found.remark == ""
    with pytest.raises(DataError, match="its checksum is not the index's"):
        show(str(copy), tmp_path)


def test_boxes_and_masks_are_drawn_where_they_are() -> None:
    red = (255, 0, 0)
    mask = np.zeros((40, 60), bool)
    mask[10:30, 20:40] = True
    drawn = draw_objects(GREY, np.array([[20.0, 10.0, 40.0, 30.0]]), ["a"], [red], [mask], scale=4)
    assert drawn.size == (240, 160)
    pixels = np.asarray(drawn).astype(int)
    assert (pixels[60, 80] == red).all()  # the box's left edge
    assert pixels[80, 120, 0] > 150 > pixels[80, 120, 1]  # tinted inside
    assert (pixels[150, 20] == 128).all()
    box = ImageChops.difference(drawn, GREY.resize((240, 160))).getbbox()
    assert box is not None and box[0] >= 76 and box[3] <= 124 and box[1] >= 18  # the name lies above the box


def test_odd_boxes_do_no_harm() -> None:
    boxes = np.array([[-50.0, -50, 500, 500], [59.9, 39.9, 60, 40], [5, 5, 5, 5], [70, 70, 90, 90]])
    draw_objects(
        GREY, boxes, ["a long name " * 9, "b", "c", "d"], [class_color(i) for i in range(4)], [None] * 4
    )
    assert draw_objects(GREY, np.zeros((0, 4)), [], []).tobytes() == GREY.tobytes()


def test_class_areas_are_coloured_and_ignored_pixels_left_alone() -> None:
    labels = np.full((40, 60), -1)
    labels[:, :30] = 1
    colors = [(255, 0, 0), (0, 0, 255)]
    pixels = np.asarray(draw_classes(GREY, labels, ["sky", "road"], colors, scale=3)).astype(int)
    assert pixels[5, 5, 2] > 190 and pixels[5, 5, 0] < 80
    assert (pixels[:, 100:] == 128).all()
    labels[:] = 200  # none of the classes
    assert draw_classes(GREY, labels, ["sky", "road"], colors).tobytes() == GREY.tobytes()


@pytest.mark.parametrize(
    "counts",
    [
        [3],
        [0] * 60,
        [10**6, *[1] * 200],
        *(pytest.param(more, marks=pytest.mark.slow) for more in ([5] * 10, list(range(102)), [50] * 1000)),
    ],
)
def test_histograms_of_all_sizes_can_be_drawn(tmp_path: Path, counts: list[int]) -> None:
    names = [f"class {i} with a name that is longer than it should be" for i in range(len(counts))]
    figure = class_histogram(np.array(counts), names, title="t", subtitle="s")
    with Image.open(save_figure(figure, tmp_path / "h.png")) as picture:
        assert 700 < picture.width < 1500 and 150 < picture.height < 2000


def test_sheets_hold_odd_numbers_of_odd_pictures() -> None:
    cells = [
        Cell(Image.new("RGB", size), "ein schöner Name 猫", "key") for size in [(9, 90), (90, 9), (1, 1)]
    ]
    legend = [(f"class {i}", class_color(i)) for i in range(40)]
    page = contact_sheet(cells, (90, 90), columns=2, title="t", subtitle="s", legend=legend)
    assert page.height > 2 * 90
    assert fit((8, 8), (168, 168)) == 21 and fit((500, 375), (168, 168)) == pytest.approx(0.336)


def test_long_texts_are_shortened_to_fit() -> None:
    for keep_end in (False, True):
        short = shorten("class_0/n01440764_18_tench", 100, 11, keep_end=keep_end)
        assert font(11).getlength(short) <= 100
        assert short.endswith("tench") is keep_end and short.startswith("class") is not keep_end
