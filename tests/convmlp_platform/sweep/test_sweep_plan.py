"""A sweep between two starts: what is done, what goes on, how many trials at a time, and the table of it all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from prepared import digits

from convmlp_platform.config.load import parse_job
from convmlp_platform.config.sweep_job import SchedulerSection, SweepJob
from convmlp_platform.errors import ConfigError
from convmlp_platform.jobs.run_job import launch
from convmlp_platform.launch.cluster.capacity import Node
from convmlp_platform.runs.trial_record import Ended, read_end, write_end
from convmlp_platform.sweep.launch_sweep import rows_of, table
from convmlp_platform.sweep.sweep_plan import plan_of, preflight_sweep, trials_at_a_time, trials_of
from convmlp_platform.tracking.delivery_state import journal_path
from convmlp_platform.tracking.journal import Journal, MetricsRecord

FIFO, ASHA = SchedulerSection(), SchedulerSection(name="asha", grace_epochs=1)


def sweep(folder: Path, **values: Any) -> SweepJob:
    job = {
        "kind": "train",
        "name": "base",
        "model": {"name": "convmlp_tiny"},
        "data": {"path": str(digits()), "image_size": 32},
        "optimizer": {"lr": 1e-3},
        "training": {"epochs": 2, "global_batch_size": 64, "micro_batch_size": 32},
        "checkpoint": {"path": str(folder)},
    }
    variants = [{"name": "a", "set": {"seed": 1}}, {"name": "b", "set": {"optimizer.lr": 2e-3}}]
    made = parse_job({"kind": "sweep", "name": "s", "job": job, "variants": variants} | values, "s.yaml")
    assert isinstance(made, SweepJob)
    return made


def test_what_has_ended_is_left_out_as_long_as_nothing_asks_for_more(tmp_path: Path) -> None:
    plan = plan_of(sweep(tmp_path))
    a, b = plan.trials
    assert (a.run, a.stop_step, len(plan.todo)) == (tmp_path / "s" / "a", 44, 2)
    write_end(a.run, Ended(status="finished", steps=44, scheduler=FIFO))
    write_end(b.run, Ended(status="failed", steps=3, reason="no", scheduler=FIFO))
    assert [one.name for one in plan_of(sweep(tmp_path)).todo] == ["b"]
    longer = sweep(tmp_path, set={"training.epochs": 3})
    assert [one.name for one in plan_of(longer).todo] == ["a", "b"]


@pytest.mark.parametrize(
    ("end", "now", "holds"),
    [
        (Ended(status="stopped", steps=5, scheduler=ASHA), ASHA, True),
        (Ended(status="stopped", steps=5, scheduler=ASHA), FIFO, False),
        (Ended(status="finished", steps=9, scheduler=FIFO), ASHA, False),
        (Ended(status="finished", steps=10, scheduler=FIFO), ASHA, True),
        (Ended(status="failed", steps=10, scheduler=FIFO), FIFO, False),
    ],
)
def test_an_end_holds_or_not(end: Ended, now: SchedulerSection, holds: bool) -> None:
    assert end.still_holds(10, now) is holds


def test_a_damaged_record_of_an_end_is_none(tmp_path: Path) -> None:
    write_end(tmp_path, end := Ended(status="finished", steps=1, scheduler=FIFO))
    assert read_end(tmp_path) == end
    (tmp_path / "trial.json").write_text("{")
    assert read_end(tmp_path) is None


def test_trials_at_a_time_leave_each_its_room(tmp_path: Path) -> None:
    def at_once(workers: int, cpus: int, nodes: list[Node], limit: int | None = None) -> int:
        launch = {"num_workers": workers, "cpus_per_worker": cpus}
        job = sweep(tmp_path, set={"launch": launch, "training.global_batch_size": 128})
        return trials_at_a_time(trials_of(job), nodes, limit)

    assert at_once(1, 1, [Node(2, 0)]) == 2
    assert at_once(2, 1, [Node(2, 0)]) == 1
    assert at_once(2, 3, [Node(8, 0), Node(8, 0)]) == 2
    assert at_once(1, 1, [Node(16, 4)]) == 4
    assert at_once(1, 1, [Node(16, 4)], limit=3) == 3
    assert at_once(4, 1, [Node(2, 0)]) == 1


def test_the_problems_of_all_trials_are_told_before_anything_starts(tmp_path: Path) -> None:
    job = sweep(
        tmp_path,
        set={"data.path": str(tmp_path / "none")},
        variants=[{"name": "a", "set": {"model.name": "convmlpp"}}, {"name": "b"}],
    )
    with pytest.raises(ConfigError) as caught:
        launch(job, use_ray=True)
    told = str(caught.value).splitlines()
    assert told[0].startswith("job: ") and "none" in told[0]
    assert any(line.startswith("trial a: model.name (=convmlpp)") for line in told)
    assert preflight_sweep(job, deep=True)[0].problems == told
    assert not (tmp_path / "s").exists()


def test_what_all_trials_share_cant_be_varied(tmp_path: Path) -> None:
    elsewhere = {"checkpoint.path": str(tmp_path / "x")}
    with pytest.raises(ConfigError, match=r"checkpoint.path: the same for all trials"):
        plan_of(sweep(tmp_path, variants=[{"name": "a", "set": elsewhere}, {"name": "b"}]))
    with pytest.raises(ConfigError, match=r"scheduler.grace_epochs \(=2\) leaves nothing to stop"):
        plan_of(sweep(tmp_path, scheduler={"name": "asha", "grace_epochs": 2}))


def test_the_table_has_the_best_first_and_the_failed_with_its_reason(tmp_path: Path) -> None:
    from convmlp_platform.data.dataset.split import open_manifest
    from convmlp_platform.runs.run_folder import claim

    plan = plan_of(
        sweep(tmp_path, variants=[{"name": "a"}, {"name": "b", "set": {"seed": 7}}, {"name": "c"}])
    )
    for one, score in zip(plan.trials[:2], (50.0, 60.0), strict=True):
        claim(one.trial.job, open_manifest(str(digits()), None).digest)
        journal = Journal(journal_path(one.run))
        journal.append(MetricsRecord(step=44, values={"eval/top1": score, "eval/loss": 1.0}))
        journal.close()
        write_end(one.run, Ended(status="finished", steps=44, scheduler=FIFO))
    write_end(plan.trials[2].run, Ended(status="failed", steps=0, reason="no data\nat all", scheduler=FIFO))
    rows = rows_of(plan)
    assert [(row.name, row.status, row.score) for row in rows] == [
        ("b", "finished", 60.0), ("a", "finished", 50.0), ("c", "failed", None),
    ]  # fmt: skip
    assert rows[2].reason == "no data\nat all"
    heading, best, second, failed = table(rows, plan)
    assert heading[:5] == ["trial", "seed", "status", "model", "top-1"]
    assert (best[:5], second[1]) == (["b", "7", "finished", "convmlp_tiny", "60.00"], "0")
    assert failed[:3] == ["c", "0", "failed"] and len(failed) == len(heading)
    assert best[heading.index("epochs")] == "1.958"
