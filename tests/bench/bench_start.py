"""`make bench-start`: `ray job submit` → first step, beside a plain Ray Train script, on one standing two-node cluster.

    python tests/bench/bench_start.py [--rounds 3]

Both train the same tiny network with two workers, one on each node, or both on one; they take turns. The clock runs
from the command to the end of the first step of the slower rank. CPU seconds are those of the cluster's processes and
the command's in that time; memory is the proportional share (PSS) of the processes that the job has added, at its first
step: Ray's own are there before it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

sys.path.extend(str(Path(__file__).resolve().parents[1] / folder) for folder in ("", "chaos"))

import psutil
import ray
import torch
from chaos_site import ChaosError, Site, chaos_site, wait_for

SUBMIT = [sys.executable, "-m", "ray.scripts.scripts", "job", "submit", "--"]
_LONGEST_S = 300.0
_LEFT_MIB = 300
"""Of workers that Ray keeps for the next job, and its own processes' growth."""


@dataclass
class Start:
    """`entrypoint`, `first_step`: seconds since the command; `cpu` seconds; `memory` in MiB."""

    entrypoint: float
    first_step: float
    cpu: float
    memory: float


class Processes:
    """The cluster's processes and those of a command, from now on."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._before = {one.pid: self._cpu(one) for one in self._all(None)}
        self._seen: dict[int, float] = {}

    def look(self, command: int) -> None:
        """Note what each has used; what a process used after the last look is lost."""
        for one in self._all(command):
            self._seen[one.pid] = self._cpu(one)

    def cpu(self) -> float:
        """Seconds since the beginning."""
        return sum(used - self._before.get(pid, 0.0) for pid, used in self._seen.items())

    def added_memory(self, command: int) -> float:
        """MiB of those that weren't there in the beginning."""
        total = 0
        for one in self._all(command):
            if one.pid not in self._before:
                with suppress(psutil.Error):
                    total += one.memory_full_info().pss
        return total / 2**20

    def _all(self, command: int | None) -> list[psutil.Process]:
        pids = {pid for node in (0, 1) for pid in self._site.cluster.node_pids(node)}
        with suppress(psutil.NoSuchProcess):
            if command is not None:
                pids |= {command, *(one.pid for one in psutil.Process(command).children(recursive=True))}
        found = []
        for pid in pids:
            with suppress(psutil.NoSuchProcess):
                found.append(psutil.Process(pid))
        return found

    @staticmethod
    def _cpu(one: psutil.Process) -> float:
        with suppress(psutil.Error):
            times = one.cpu_times()
            return float(times.user + times.system)
        return 0.0


def measure(
    site: Site, command: list[str], begun: Callable[[], float | None], stepped: Callable[[], float | None]
) -> Start:
    """One start, which is killed after its first step.

    Args:
        begun, stepped: unix seconds at which the driver began and the last rank has finished a step; None: not yet.
    """
    processes, moment = Processes(site), time.time()
    output = (site.root / "submit-output").open("wb")
    submit = subprocess.Popen(
        [*SUBMIT, *command], env=site.cluster.env, stdout=output, stderr=output, start_new_session=True
    )
    try:

        def happened() -> bool:
            processes.look(submit.pid)
            return stepped() is not None or submit.poll() is not None

        wait_for(happened, "the first step", _LONGEST_S)
        if (ended := stepped()) is None:
            raise ChaosError((site.root / "submit-output").read_text()[-3000:])
        return Start(
            (begun() or moment) - moment,
            ended - moment,
            processes.cpu(),
            processes.added_memory(submit.pid),
        )
    finally:
        _stop(site, processes, submit)


def _stop(site: Site, processes: Processes, submit: subprocess.Popen[bytes]) -> None:
    """Leave nothing of the job: the client, then the driver, with which all ends that it has started."""
    submit.kill()
    submit.wait()
    for pid in site.cluster.node_pids(0):
        with suppress(psutil.Error, ProcessLookupError):
            command = psutil.Process(pid).cmdline()
            if len(command) > 2 and (command[1].endswith("ray_train_loop.py") or command[3:4] == ["run"]):
                os.kill(pid, signal.SIGTERM)
    wait_for(lambda: processes.added_memory(submit.pid) < _LEFT_MIB, "the job's processes to be gone", 120.0)


def ours(site: Site, number: int, placement: str) -> Start:
    """`jobs/pretrain_digits.yaml`."""
    name = f"start-{number}"
    events = site.run_folder(name) / "events.jsonl"

    def time_of(kind: str) -> float | None:
        with suppress(FileNotFoundError):
            for line in events.read_bytes().rpartition(b"\n")[0].splitlines():
                if (event := json.loads(line))["kind"] == kind:
                    return float(event["time"])
        return None

    command = site.command(name, launch__placement=placement)
    return measure(site, command, lambda: time_of("driver_started"), lambda: time_of("attempt_running"))


def ray_train(site: Site, number: int, _: str) -> Start:
    """ray_train_loop.py."""
    folder = site.root / f"peer-{number}"
    folder.mkdir()

    def times(what: str) -> list[float]:
        with suppress(FileNotFoundError):
            whole = (folder / "log").read_bytes().rpartition(b"\n")[0].splitlines()
            notes = [json.loads(line) for line in whole]
            firsts = {note["pid"]: note["time"] for note in reversed(notes) if note["what"] == what}
            return list(firsts.values())
        return []

    def stepped() -> float | None:
        found = times("step")
        return max(found) if len(found) == 2 else None

    command = [sys.executable, str(Path(__file__).with_name("ray_train_loop.py")), str(folder)]
    return measure(site, command, lambda: min(times("driver"), default=None), stepped)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # clearing up on the way
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}, ray {ray.__version__}, "
        f"load average {os.getloadavg()[0]:.1f}\n"
    )
    contestants = {
        "this platform, a worker a node": (ours, "SPREAD"),
        "this platform, both workers on one node": (ours, "PACK"),
        "Ray Train, a plain script": (ray_train, "SPREAD"),
    }
    found: dict[str, list[Start]] = {name: [] for name in contestants}
    folder = Path(tempfile.mkdtemp(prefix="convmlp-start-"))
    try:
        with chaos_site(folder) as site:
            for number in range(options.rounds):
                for place, (name, (start, placement)) in enumerate(contestants.items()):
                    found[name].append(start(site, 10 * number + place, placement))
                    print(f"{name}: {found[name][-1]}", file=sys.stderr, flush=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print("| submitted | entrypoint begins | first step (all) | CPU | memory of the job's processes |")
    print("|---|---:|---:|---:|---:|")
    for name, starts in found.items():
        middle = [statistics.median(getattr(one, part) for one in starts) for part in vars(starts[0])]
        entry, step, cpu, memory = middle
        spread = f"{min(one.first_step for one in starts):.1f} to {max(one.first_step for one in starts):.1f}"
        print(f"| {name} | {entry:.1f} s | {step:.1f} s ({spread}) | {cpu:.1f} s | {memory:,.0f} MiB |")
    print(f"\nMedians of {options.rounds}.")


if __name__ == "__main__":
    main()
