"""What the driver and rank 0 do, at up to 4,096 workers and a million steps, with made-up inputs: `make bench-scale`.

    python tests/bench/bench_scale.py [--workers 8 256 1024 4096] [--lines 1000 100000 1000000] [--only NAME ...]

Each row is measured in a process of its own: seconds of CPU (its threads and children included), and how much its
memory grew at most. No Ray, no network and no MLflow server takes part but where a row says so.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import resource
import shutil
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[1]))

from ledger_runs import MadeUpRun

from convmlp_platform.checkpoints import layout
from convmlp_platform.config.load import load_job
from convmlp_platform.config.sections.resilience import HangSection
from convmlp_platform.data.sample_order import SampleOrder
from convmlp_platform.goodput.account import account_of
from convmlp_platform.goodput.goodput_log import LINE_BYTES, LogHeader
from convmlp_platform.goodput.goodput_picture import plot
from convmlp_platform.health.hangs.hang_watch import HangWatch, RankView
from convmlp_platform.health.heartbeat.heartbeat import Heartbeat
from convmlp_platform.health.heartbeat.phases import Phase
from convmlp_platform.launch.cluster.ray_cluster import listening
from convmlp_platform.launch.cluster_view import Clock
from convmlp_platform.launch.supervisor.attempt import Attempt, begin_attempt, look_s
from convmlp_platform.launch.workers.placement import Home, choose_nodes, rank_order, seats
from convmlp_platform.launch.workers.worker_report import Report
from convmlp_platform.ledger.proof import check_ledger
from convmlp_platform.tracking.journal import read_chunk
from convmlp_platform.tracking.journal_digest import digest_of
from convmlp_platform.tracking.mlflow.delivery import in_batches
from convmlp_platform.training.outputs.curves import plot_curves

REPOSITORY = Path(__file__).resolve().parents[2]
T0 = 1.8e9
Prepared = Callable[[], str]
"""What is measured; returns a note for the table."""


# -- of the driver -----------------------------------------------------------------------------------------------------


def placement(workers: int, _folder: Path) -> Prepared:
    """8 workers a node: the nodes for all of them, their ranks, their seats."""
    room = {f"node-{number:05d}": 8 for number in range(-(-workers // 8))}

    def measure() -> str:
        nodes = choose_nodes(room, {}, workers, "PACK")
        homes = [Home(node, "10.0.0.1", node, (str(place % 8),)) for place, node in enumerate(nodes)]
        seats([homes[position] for position in rank_order(homes)])
        return ""

    return measure


def reachability(workers: int, _folder: Path) -> Prepared:
    """A node a worker; one of 64 is dead and says nothing."""
    server, dead = socket.socket(), socket.socket()
    for one, backlog in ((server, 4096), (dead, 0)):
        one.bind(("127.0.0.1", 0))
        one.listen(backlog)
    held = [socket.socket() for _ in range(4)]
    for one in held:
        one.setblocking(False)
        one.connect_ex(dead.getsockname())
    asked = {
        f"{number}": dead.getsockname() if number % 64 == 63 else server.getsockname()
        for number in range(workers)
    }

    def measure() -> str:
        began = time.monotonic()
        found = len(listening(asked))
        assert found == workers - workers // 64, found
        assert server and dead and held, "they listen until the end"
        return f"{time.monotonic() - began:.1f} s of waiting"

    return measure


class Instant:
    """A cluster whose agents answer at once that all is well, in virtual time."""

    def __init__(self) -> None:
        self.now, self.answers = 0.0, 0
        self.clock = Clock(lambda: self.now, lambda: T0 + self.now, self._sleep)
        self._due: dict[int, float] = {}
        self._report: tuple[float, Report | None] = (-1.0, None)

    def _sleep(self, seconds: float) -> None:
        self.now += seconds

    def ask(self, _agent: Any, method: str, *arguments: Any) -> int:
        number = self.answers = self.answers + 1
        # At any moment of their time, as those of a real cluster.
        spread = (number * 0.61803398875) % 1.0 if method == "watch" and number < 20_000 else 1.0
        self._due[number] = self.now + (arguments[0] * spread if method == "watch" else 0.0)
        return number

    def done(self, calls: Sequence[int], *, least: int = 1, timeout: float = 0.0) -> list[int]:
        due = self._due
        if least == 1 and timeout:
            self.now = min(self.now + timeout, max(self.now, min(due[call] for call in calls)))
        return [call for call in calls if due[call] <= self.now]

    def answer(self, call: int) -> Any:
        del self._due[call]
        at, report = self._report
        if at != self.now:
            report = Report(
                1,
                1,
                "S",
                _beat(int(self.now), 4),
                {"begun": 1.0, "stepped": 2.0, "step": 0.0},
                None,
                (),
                None,
            )
            self._report = (self.now, report)
        return report


def _beat(step: int, world: int) -> Heartbeat:
    return Heartbeat(
        0,
        world,
        1,
        Phase.COMPUTE,
        step,
        1,
        "",
        10 * step,
        0.1,
        60.0,
        1.0,
        9.0,
        None,
        0.0,
        (2 * step, True, 3, False, 1),
    )


def supervision(workers: int, _folder: Path) -> Prepared:
    """A minute of a run that goes well: taking in all reports, looking for hangs and for what to do. Without Ray's own
    time for a call (0.1 to 0.2 ms)."""
    job, cluster = load_job(REPOSITORY / "jobs/pretrain_digits.yaml", []), Instant()
    homes = [Home(f"node-{number // 8:05d}", "10.0.0.1", "host") for number in range(workers)]
    members: Any = [SimpleNamespace(home=home, actor=None, node=home.node) for home in homes]
    attempt = begin_attempt(job, 1, members, lambda _: None, cluster)  # type: ignore[arg-type]
    assert isinstance(attempt, Attempt)

    def measure() -> str:
        until, before, looks = cluster.now + 60.0, cluster.answers, 0
        while cluster.now < until:
            attempt._look()
            looks += 1
            assert attempt._hung() is None and attempt.failed_at is None
        return f"{looks / 60:.0f} looks, {(cluster.answers - before) / 60:,.0f} reports a second"

    return measure


def start(workers: int, _folder: Path) -> Prepared:
    """Making the calls that start an attempt."""
    job = load_job(REPOSITORY / "jobs/pretrain_digits.yaml", [])
    homes = [Home(f"node-{number // 8:05d}", "10.0.0.1", "host") for number in range(workers)]
    members: Any = [SimpleNamespace(home=home, actor=None, node=home.node) for home in homes]

    def measure() -> str:
        begin_attempt(job, 1, members, lambda _: None, Instant())  # type: ignore[arg-type]
        return ""

    return measure


def hang_watch(workers: int, _folder: Path) -> Prepared:
    """One look at all ranks."""
    watch, now = HangWatch(HangSection(), workers, look_s(workers)), 0.0

    def measure() -> str:
        watch.update(
            [RankView(rank, "host", _beat(int(now), workers), "S", now + 1.0) for rank in range(workers)]
        )
        assert watch.check() is None
        return ""

    return measure


# -- of rank 0 ---------------------------------------------------------------------------------------------------------


def goodput(workers: int, folder: Path) -> Prepared:
    """The account at the run's end of logs of 1,000 lines a rank (a million steps, saved every thousand): metrics,
    table and picture."""
    lines, attempt = 1000, folder / "goodput" / "attempt-000001"
    attempt.mkdir(parents=True)
    end = 30 + 10 * lines
    events: list[dict[str, Any]] = [
        {"time": T0, "kind": "driver_started", "num_workers": workers},
        {"time": T0 + 1, "kind": "attempt_started", "start": 1, "world_size": workers},
        {"time": T0 + 20, "kind": "attempt_running", "start": 1, "step": 1, "seconds": {}},
        {"time": T0 + end, "kind": "attempt_ended", "start": 1, "cause": "finished"},
        {"time": T0 + end + 1, "kind": "driver_ended", "exit_code": 0},
    ]
    (folder / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    body = b"".join(_line(number) for number in range(lines))
    for rank in range(workers):
        header = LogHeader("id", 1, 0, 0, rank, workers, f"host-{rank // 8}", "cuda", 100, T0 + 2, 1)
        head = json.dumps(asdict(header)).encode().ljust(LINE_BYTES - 1) + b"\n"
        (attempt / f"rank-{rank:05d}.jsonl").write_bytes(head + body)

    def measure() -> str:
        found = account_of(folder)
        assert found is not None
        found.metrics()
        json.dumps(found.to_dict())
        plot("bench", found, folder / "goodput.png")
        return f"{workers * lines:,} lines on disk"

    return measure


def _line(number: int) -> bytes:
    seconds = {
        "START": 15.0, "COMPILE": 3.0, "DATA": 0.3 * number, "COMPUTE": 9.1 * number, "UPDATE": 0.4 * number,
        "CHECKPOINT": 0.2 * number,
    }  # fmt: skip
    line = {"time": T0 + 20 + 10 * number, "step": 1000 * number, "phase": "DATA", "seconds": seconds}
    return json.dumps(line).encode().ljust(LINE_BYTES - 1) + b"\n"


def manifest(workers: int, _folder: Path) -> Prepared:
    """The manifest of a checkpoint with three files a rank: parts handed in, written, read again."""
    part, names = layout.Part, ("model", "optimizer", "ema")
    files = [
        {
            layout.tensor_file_name(name, part(rank, workers)): layout.FileRecord(1 << 28, f"{rank:064x}")
            for name in names
        }
        for rank in range(workers)
    ]
    handed = [layout.hand_in_bytes(one) for one in files]

    def measure() -> str:
        records = {layout.STATE: layout.FileRecord(1000, "0" * 64)}
        for one in handed:
            records |= layout.parse_hand_in(one)
        text = layout.manifest_bytes(1000, records)
        layout.parse_manifest(text, "step")
        return f"{len(text) / 1e6:.1f} MB"

    return measure


def ledger(workers: int, folder: Path) -> Prepared:
    """The proof of 16,384 samples a rank's files of which hold: 1 sample a micro-batch, one micro-batch a rank."""
    steps = max(4, 16_384 // workers)
    order = SampleOrder(steps * workers, num_streams=min(workers, 64), seed=7)
    run = MadeUpRun(folder / "run", order, global_batch_size=workers, micro_batch_size=1)
    run.attempt(workers, 0, steps)

    def measure() -> str:
        report = check_ledger(run.path)
        assert report.ok, report.lines()
        return f"{steps * workers:,} samples in {workers:,} files"

    return measure


# -- of the length of a run --------------------------------------------------------------------------------------------


def _journal(lines: int, folder: Path) -> Path:
    path = folder / "journal.jsonl"
    with path.open("w") as file:
        for step in range(lines):
            values = (
                f'{{"train/loss":{1 + 1 / (step + 1):.6f},"train/lr":0.001,"train/images_per_second":400.5}}'
            )
            file.write(
                f'{{"time":{int(T0) * 1000 + step},"kind":"metrics","step":{step},"values":{values}}}\n'
            )
    return path


def curves(lines: int, folder: Path) -> Prepared:
    """The run's curves at its end, of a journal of so many lines of three metrics."""
    path = _journal(lines, folder)

    def measure() -> str:
        series = digest_of(path).series
        plot_curves(series, folder / "curves.png")
        return f"{max(len(one.buckets) for one in series.values())} points a curve"

    return measure


def replay(lines: int, folder: Path) -> Prepared:
    """Reading the journal in the batches that MLflow is told by."""
    path = _journal(lines, folder)

    def measure() -> str:
        offset, batches = 0, 0
        while (chunk := read_chunk(path, offset)).end > offset:
            batches += sum(1 for _ in in_batches(chunk))
            offset = chunk.end
        return f"{batches:,} requests of at most 1,000 values"

    return measure


def mlflow(lines: int, folder: Path) -> Prepared:
    """MLflow's own time, SQLite store, for batches of 1,000 values: of 20 of them, times as many as `replay` has."""
    from mlflow import MlflowClient
    from mlflow.entities import Metric

    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    run = client.create_run(client.create_experiment("bench")).info.run_id
    batches = [
        [
            Metric("train/loss", 1.0, int(T0) * 1000 + place, place)
            for place in range(1000 * number, 1000 * number + 1000)
        ]
        for number in range(20)
    ]

    def measure() -> str:
        for batch in batches:
            client.log_batch(run, batch)
        return "20 requests (in the replayer's process, beside training)"

    return measure


BY_WORKERS = (placement, reachability, start, supervision, hang_watch, goodput, manifest, ledger)
BY_LINES = (curves, replay)
ONCE = (mlflow,)


def measured(case: Callable[[int, Path], Prepared], size: int) -> tuple[float, float, str]:
    """CPU seconds, megabytes of growth and the case's note, in a child of this process."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        folder = Path(
            tempfile.mkdtemp(prefix="convmlp-scale-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None)
        )
        try:
            run = case(size, folder)
            gc.collect()
            Path("/proc/self/clear_refs").write_text("5")  # the peak of memory counts from here
            before, began = _resident(), _cpu()
            note = run()
            os.write(write, json.dumps([_cpu() - began, max(0.0, _peak() - before), note]).encode())
        except BaseException:
            traceback.print_exc()
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            os._exit(0)
    os.close(write)
    with os.fdopen(read) as answer:
        text = answer.read()
    os.waitpid(child, 0)
    if not text:
        raise SystemExit(f"{case.__name__} of {size}: it failed, see above")
    cpu, growth, note = json.loads(text)
    return cpu, growth, note


def _cpu() -> float:
    both = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in both)


def _status(name: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) / 1024
    return 0.0


def _resident() -> float:
    return _status("VmRSS:")


def _peak() -> float:
    return _status("VmHWM:")


def main() -> int:
    """Print a table in Markdown."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workers", type=int, nargs="+", default=[8, 256, 1024, 4096])
    parser.add_argument("--lines", type=int, nargs="+", default=[1000, 100_000, 1_000_000])
    parser.add_argument("--only", nargs="+", help="names of rows")
    given = parser.parse_args()
    for cases, sizes, unit in (
        (BY_WORKERS, given.workers, "workers"),
        (BY_LINES, given.lines, "lines"),
        (ONCE, [0], ""),
    ):
        cases = tuple(case for case in cases if not given.only or case.__name__ in given.only)
        if not cases:
            continue
        print(
            f"\n| CPU s, MB of growth | {' | '.join(f'{size:,} {unit}'.strip() for size in sizes)} | the largest |"
        )
        print("|---|" + "---:|" * len(sizes) + "---|")
        for case in cases:
            cells, note = [], ""
            for size in sizes:
                cpu, growth, note = measured(case, size)
                cells.append(f"{cpu:.3f} s, {growth:.0f} MB")
            print(f"| {case.__name__.replace('_', ' ')} | {' | '.join(cells)} | {note} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
