"""`convmlp report`: one page that is valid and asks no network, whatever became of the run; its figures are those of
the other commands."""

from __future__ import annotations

import json
import re
import shutil
import time
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
from annotated import rectangles, stripes
from goodput_story import EVENTS, T0
from page_checker import PageChecker, checked
from PIL import Image
from prepared import digits
from whole_run import START_MS, training, write_all, write_job, write_journal

from convmlp_platform.cli.main import main
from convmlp_platform.config.sweep_job import SchedulerSection
from convmlp_platform.errors import ConfigError
from convmlp_platform.goodput.account import Price
from convmlp_platform.goodput.report_text import duration
from convmlp_platform.health.events import RunEvents
from convmlp_platform.report.page import MOST_BYTES, render, write_report
from convmlp_platform.report.reported_run import AT_THE_END, ReportLimits
from convmlp_platform.runs.lease import run_lease
from convmlp_platform.runs.trial_record import NAME as TRIAL
from convmlp_platform.runs.trial_record import Ended, write_end
from convmlp_platform.tracking.delivery_state import journal_path
from convmlp_platform.tracking.journal import Status, Tags

PARTS = ("curves", "timeline", "time", "data", "evaluation", "predictions", "hardware", "lineage")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_all(tmp_path_factory.mktemp("root") / "runs" / "story")


def page_of(run: Path, **options: ReportLimits) -> PageChecker:
    content = render(run, **options)  # type: ignore[arg-type]
    assert len(content) < MOST_BYTES
    return checked(content)


def test_a_whole_run_has_every_part(whole: Path) -> None:
    page = page_of(whole)
    assert tuple(page.sections) == PARTS
    assert "finished" in page.text and "It reached its end after step 20." in page.text
    assert [image["alt"][:13] for image in page.images] == ["Contact sheet", "Held-out imag"]
    assert "Gradient norm" not in page.sections["curves"] and "Throughput" in page.sections["curves"]
    assert "top-1, averaged weights" in page.sections["curves"]
    assert "the node of rank 1 is gone" in page.sections["timeline"]
    assert "rank 1 stands still in DATA" in page.sections["timeline"]
    assert "359 images, evaluated on" in page.sections["data"]
    assert "No sample was found damaged" in page.sections["data"]
    assert "The best evaluation has top-1 80.00 %" in page.sections["evaluation"]
    assert "host1" in page.sections["hardware"]
    assert "version 3 of digits (models:/digits/3)" in page.sections["lineage"]
    assert "c0ffee" in page.sections["lineage"] and "strategy: ddp" in page.sections["lineage"]


def test_the_figures_are_those_of_the_commands(whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = page_of(whole)
    assert main(["goodput", str(whole), "--json"]) == 0
    account = json.loads(capsys.readouterr().out)
    assert f"{100 * account['goodput']:.2f} %" in page.sections["time"]
    for kind, seconds in account["seconds"].items():
        row = (
            duration(seconds),
            f"{100 * account['share'][kind]:.2f} %",
            f"{account['money']['classes'][kind]:.4f}",
        )
        assert row[0] in page.sections["time"] and row[1] in page.sections["time"]
        assert row[2] in page.sections["time"] or account["money"]["classes"][kind] in (0.0, None)
    (interruption,) = account["interruptions"]
    assert duration(interruption["lost_s"]) in page.sections["time"]
    assert main(["data", "ledger", str(whole)]) == 0
    assert capsys.readouterr().out.strip() in page.sections["data"]


def test_without_a_price_hours_are_told_and_a_price_may_be_given(tmp_path: Path) -> None:
    run = write_all(tmp_path / "cheap", price=None)
    assert "worker hours" in page_of(run).sections["time"]
    assert "launch.price_per_gpu_hour" in page_of(run).sections["time"]
    priced = checked(render(run, price=Price(72.0, "CHF")))
    assert "72 CHF" in priced.sections["time"] and "cost (CHF)" in priced.sections["time"]


HOSTILE = '"><script>alert(1)</script><img src=https://evil.example/x onerror=alert(2)>\u202e\x1b[31m'


def test_names_and_messages_are_text(tmp_path: Path) -> None:
    run = write_all(tmp_path / "x'\"><svg onload=alert(3)>")
    tags = {"note": HOSTILE, f"name {HOSTILE}": "x", "git.commit": HOSTILE}
    with journal_path(run).open("ab") as file:
        file.write(Tags(values=tags, time=START_MS).model_dump_json().encode() + b"\n")
    events = RunEvents(run / "events.jsonl")
    events.append("attempt_started", start=3, world_size=1, time=T0 + 70)
    events.append("attempt_ended", start=3, cause="code", message=HOSTILE, time=T0 + 75)
    record = {"name": HOSTILE, "version": HOSTILE, "uri": "javascript:alert(1)"}
    (run / "registered.json").write_text(json.dumps(record))
    lines = [
        {"sample": 1, "key": HOSTILE, "file": HOSTILE, "offset": 0, "length": 1, "reason": HOSTILE},
        {"odd": 1},
    ]
    (run / "quarantine.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    write_job(run, {"path": HOSTILE, "train_split": HOSTILE, "eval_split": "val"}, HOSTILE)
    page = page_of(run)
    assert page.headings[0] == (1, run.name)
    assert page.text.count("<script>alert(1)</script>") > 5
    assert not {"\u202e", "\x1b"} & set(page.text)
    assert "Quarantine: 1 damaged samples" in page.sections["data"]


def test_a_torn_journal_and_damaged_files_cost_their_own_part(tmp_path: Path) -> None:
    run = write_all(tmp_path / "torn")
    journal = journal_path(run)
    journal.write_bytes(journal.read_bytes() + b'{"kind":"metrics","step":22,"values":{"train/lo')
    assert "It reached its end after step 20." in page_of(run).text
    (run / "registered.json").write_text("{")
    (run / "run.json").write_text("[]")
    (run / "plots" / "predictions.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    page = page_of(run)
    assert "can't be read" in page.sections["predictions"]
    assert "Nothing is proven of the samples" in page.sections["data"]
    assert "can't be read" in page.sections["lineage"]
    assert "The best evaluation" in page.sections["evaluation"]


@pytest.mark.parametrize(
    ("gone", "told"),
    [
        ("tracking", {"curves": "No metrics are on record", "lineage": "the run has no record for it"}),
        (
            "goodput events.jsonl",
            {"timeline": "There is no record of its time", "time": "There is no record"},
        ),
        ("ledger", {"data": "Nothing is proven of the samples"}),
        ("evaluations.jsonl", {"evaluation": "Nothing was evaluated yet"}),
        ("plots", {"predictions": "There is no picture of predictions"}),
        ("job.json registered.json", {"data": "isn't looked for", "lineage": "The job registers no model"}),
    ],
)
def test_what_is_not_there_is_said(tmp_path: Path, whole: Path, gone: str, told: dict[str, str]) -> None:
    run = Path(shutil.copytree(whole, tmp_path / "story"))
    for name in gone.split():
        shutil.rmtree(run / name) if (run / name).is_dir() else (run / name).unlink()
    page = page_of(run)
    for part, words in told.items():
        assert words in page.sections[part]


@pytest.mark.parametrize(
    ("events", "state"),
    [
        ([], "not begun"),
        ([*EVENTS[:2], {"time": T0 + 5, "kind": "attempt_ended", "start": 1, "cause": "code", "message": "no GPU"},
          {"time": T0 + 6, "kind": "driver_ended", "exit_code": 2}], "It died before its first step: code: no GPU;"),
        ([*EVENTS[:2], {"time": T0 + 6, "kind": "driver_ended", "exit_code": 143}],
          "to stop before its first step, by SIGTERM;"),
        (EVENTS[:2], "It died before its first step: its driver is gone;"),
    ],
)  # fmt: skip
def test_a_run_that_ended_before_its_first_step(
    tmp_path: Path, events: list[dict[str, object]], state: str
) -> None:
    run = tmp_path / "early"
    run.mkdir()
    write_job(run, {"path": "nowhere", "train_split": "train", "eval_split": "val"})
    log = RunEvents(run / "events.jsonl")
    for event in events:
        log.append(**event)  # type: ignore[arg-type]
    page = page_of(run)
    assert state in page.text
    assert "No metrics are on record" in page.sections["curves"]
    assert "The dataset isn't to be seen from here" in page.sections["data"]


def test_its_state_is_that_of_convmlp_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Whoever holds it, whatever its clock says, and however fresh its files are: copied ones are."""
    run, now = tmp_path / "alive", time.time()
    began = round(1000 * (now - 3600))
    told = [record.model_copy(update={"time": began}) for record in training("top1")]
    run.mkdir()
    write_job(run, {"path": "nowhere", "train_split": "train", "eval_split": "val"})
    write_journal(run, [Status(status="RUNNING", time=began), *told])

    def states() -> tuple[str, str]:
        assert main(["runs", str(run), "--json"]) == 0
        return json.loads(capsys.readouterr().out)["state"], page_of(run).text

    with run_lease(run).hold():
        word, page = states()
        assert word == "running" and "It is running; step 20 is on record." in page
    word, page = states()
    assert word == "silent" and "There is no sign of life for 60 min: it may be dead, or cut off" in page
    assert re.search(r"Its last sign of life was at \d{4}-\d\d-\d\d \d\d:\d\d UTC", page)
    write_end(run, Ended(status="stopped", steps=20, scheduler=SchedulerSection(name="asha")))
    word, page = states()
    assert word == "stopped" and "It was told to stop after step 20, by the sweep's scheduler." in page
    (run / TRIAL).unlink()
    for status, name, told_so in (
        ("FAILED", "died", "It died after step 20; the same command goes on."),
        ("KILLED", "stopped", "It was told to stop after step 20; the same command goes on."),
        ("FINISHED", "finished", "It reached its end after step 20."),
    ):
        write_journal(run, [Status(status=status, time=began)])  # type: ignore[arg-type]
        word, page = states()
        assert word == name and told_so in page


def test_a_run_reports_itself_as_finished_while_its_driver_has_it(tmp_path: Path) -> None:
    run = write_all(tmp_path / "run")
    with run_lease(run).hold():
        assert "It reached its end" not in page_of(run).text
        assert "It reached its end after step 20." in page_of(run, limits=AT_THE_END).text


@pytest.mark.parametrize(("dataset", "score"), [(rectangles, "box_ap"), (stripes, "miou")])
def test_detection_and_segmentation(tmp_path: Path, dataset: object, score: str) -> None:
    run = write_all(tmp_path / "dense", dataset=dataset(), score=score)  # type: ignore[operator]
    page = page_of(run)
    task = {"box_ap": "detection", "miou": "segmentation"}[score]
    assert f"task{task}" in page.sections["data"].replace("\n", "")
    assert len(page.images) == 2 and "80.00 %" in page.sections["evaluation"]


@pytest.mark.slow
def test_large_pictures_are_made_smaller(tmp_path: Path) -> None:
    run = write_all(tmp_path / "large")
    noise = np.random.default_rng(0).integers(0, 255, (1500, 1400, 3), np.uint8)
    Image.fromarray(noise).save(run / "plots" / "predictions.png", compress_level=1)
    assert (run / "plots" / "predictions.png").stat().st_size > MOST_BYTES
    page = page_of(run, limits=ReportLimits(picture_bytes=300_000))
    assert len(page.images) == 2 and int(page.images[1]["width"]) < 1400
    assert len(page.images[1]["src"]) < 300_000 * 4 / 3 + 100
    none = page_of(run, limits=ReportLimits(picture_bytes=10))
    assert none.images == [] and "the page would be too large" in none.sections["predictions"]


def test_the_proof_of_a_large_ledger_is_left_to_its_command(whole: Path) -> None:
    page = page_of(whole, limits=ReportLimits(ledger_bytes=100))
    assert "convmlp data ledger story proves it" in page.sections["data"]
    assert "duplicates" not in page.sections["data"]


def test_another_dataset_under_the_old_path_is_not_shown(tmp_path: Path) -> None:
    run = write_all(tmp_path / "moved")
    write_job(run, {"path": str(rectangles()), "train_split": "train", "eval_split": "val"})
    page = page_of(run)
    assert "lies another dataset now" in page.sections["data"] and len(page.images) == 1
    write_job(run, {"path": "s3://user:secret@bucket/x", "train_split": "train", "eval_split": "val"})
    text = page_of(run).sections["data"]
    assert "which a report doesn't read" in text and "secret" not in text


def test_a_run_is_found_as_by_every_command(
    whole: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    root = whole.parents[1]
    monkeypatch.setenv("CONVMLP_ROOT", str(root))
    monkeypatch.chdir(root)
    for name in ("story", "runs/story", str(whole), whole.as_uri()):
        out = tmp_path / "new" / "page.html"
        assert main(["report", name, "--out", str(out), "--open", "no"]) == 0
        assert capsys.readouterr().out.startswith(f"{out}: ")
        checked(out.read_bytes())
        out.unlink()
    assert main(["report", "story"]) == 0
    assert (whole / "report.html").is_file()
    assert main(["report", "stroy"]) == 2
    assert "did you mean runs/story?" in capsys.readouterr().err
    assert main(["report", "s3://bucket/runs/story"]) == 2
    assert "mount it" in capsys.readouterr().err


def test_what_is_no_run_or_can_not_be_written_is_refused(tmp_path: Path, whole: Path) -> None:
    with pytest.raises(ConfigError, match="holds none of a run's records"):
        render(tmp_path)
    (tmp_path / "sweep.json").write_text("{}")
    with pytest.raises(ConfigError, match="is a sweep: name one of its trials"):
        render(tmp_path)
    with pytest.raises(ConfigError, match=r"the report can't be written: .*--out FILE puts it elsewhere"):
        write_report(whole, tmp_path / "sweep.json" / "page.html")


def test_the_template_travels_with_the_package() -> None:
    assert files("convmlp_platform.report").joinpath("page.html").is_file()
    assert digits().is_dir()


def test_the_checker_can_fail() -> None:
    bad = PageChecker()
    bad.feed(
        '<!DOCTYPE html><html><body><h1>a</h1><h3>b</h3><img src="https://x/y"><table><tr><th>x</th></tr></table>'
    )
    bad.feed("<script>1</script><a href=/x>y</a><p onclick=z></div></body></html>")
    bad.finish()
    told = "\n".join(bad.problems)
    for problem in (
        "heading of level 3", "img src=https", "without a description", "header cell", "caption", "<script>", "href=/x",
        "onclick", "</div> within", "not closed", "no language", "policy",
    ):  # fmt: skip
        assert problem in told
