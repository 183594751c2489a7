"""`convmlp goodput`: a table, JSON and a picture of a run's time, and clear errors."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from goodput_story import TRUTH, write_run
from PIL import Image

from convmlp_platform.cli.main import main


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "runs" / "story", price=36.0)


def test_the_table_tells_classes_interruptions_and_money(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["goodput", str(run)]) == 0
    text = capsys.readouterr().out
    assert text.startswith(
        "run story: goodput 31.8 %\n  1 min 06 s x 2 workers = 0.037 worker hours; 2 starts"
    )
    lines = {line[:24].strip(): line[24:].split() for line in text.splitlines()}
    assert lines["useful steps"] == ["42.0", "s", "31.82", "%", "0.4200"]
    assert lines["all"] == ["2", "min", "12", "s", "100.00", "%", "1.11"]
    words = " ".join(text.split())
    assert "hardware 7.50 s 0.00 s 7.50 s 29.0 s 0.3650 the node of rank 1 is gone" in words
    assert "cost 1.11 EUR at 36 EUR an hour and worker\n  the last failure cost 0.3650 EUR" in text


def test_json_has_every_second_and_a_price_may_be_given(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["goodput", str(run), "--json", "--price", "72", "--currency", "CHF"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["seconds"] == pytest.approx(TRUTH)
    assert sum(sum(worker.values()) for worker in found["workers"]) == pytest.approx(found["worker_s"])
    assert [start["cause"] for start in found["starts"]] == ["hardware", "finished"]
    assert (found["money"]["currency"], found["money"]["total"]) == ("CHF", pytest.approx(2.23))


def test_a_run_is_found_by_its_name_below_the_root(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CONVMLP_ROOT", str(tmp_path))
    (run / "run.json").write_text("{}")
    assert main(["goodput", "story"]) == 0
    assert main(["goodput", "stroy"]) == 2
    assert "no run stroy" in capsys.readouterr().err
    (tmp_path / "runs" / "empty").mkdir()
    assert main(["goodput", "empty"]) == 2
    assert "has no record of time" in capsys.readouterr().err


def test_the_picture_is_drawn_and_an_unknown_format_refused(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = tmp_path / "new" / "time.png"
    assert main(["goodput", str(run), "--plot", str(picture)]) == 0
    with Image.open(picture) as image:
        assert image.width > 1000
        useful = sum(
            count for count, color in image.convert("RGB").getcolors(1 << 24) or [] if color == (89, 161, 79)
        )
    assert useful > 10_000
    assert main(["goodput", str(run), "--plot", str(tmp_path / "time.nonsense")]) == 2
    assert "nonsense" in capsys.readouterr().err


def test_a_price_must_be_one(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["goodput", str(run), "--price", "cheap"]) == 2
    assert "must be a number from 0, not 'cheap'" in capsys.readouterr().err
