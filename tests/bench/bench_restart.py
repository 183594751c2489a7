"""`make bench-restart`: kill → next useful step, beside Ray Train's own defaults, on one two-node cluster.

    python tests/bench/bench_restart.py [--kills 6] [--node-kills 2] [--out FILE]

Both train the same tiny network with two workers, one on each node, and save every 8 steps. They take turns, since
two cores don't carry both: each starts, trains, has a random worker killed with SIGKILL (or its second node, which
comes back later), trains again, and so on, two kills a turn. Ours is `convmlp run`; the other is ray_train_loop.py,
a plain TorchTrainer as its guide has it.

The clock runs from the kill to the end of the first step of the workers that follow. `noticed`: until the death was
known to who restarts; `processes`: until training code runs and its process group has formed; `load`: until model,
data and checkpoint are there; `first step`: the step.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

sys.path.extend(str(Path(__file__).resolve().parents[1] / folder) for folder in ("", "chaos"))

import ray
import torch
from chaos_run import Run, now
from chaos_site import ChaosError, Site, chaos_site, is_alive, node_of, wait_for

PARTS = ("noticed", "processes", "load", "first step")
SAVE_EVERY, KILLS_A_TURN, STEPS_BETWEEN = 8, 2, 12


@dataclass
class Recovery:
    """Seconds from a kill to the next step, their parts, and the steps that had to be done again."""

    total: float
    parts: dict[str, float]
    lost_steps: int


@dataclass
class Recoveries:
    """Of one contestant, by what was killed."""

    found: dict[str, list[Recovery]] = field(default_factory=lambda: {"worker": [], "node": []})


class Contestant(Protocol):
    """A training run that can be hit; `kill` is told processes to kill and does it."""

    def start(self) -> None: ...
    def wait_until_trained(self, steps: int) -> None: ...
    def pids(self) -> list[int]: ...
    def recover(self, kill: Callable[[], None]) -> Recovery: ...
    def stop(self) -> None: ...


class Ours:
    """`convmlp run` of the digits job."""

    def __init__(self, site: Site, turn: int) -> None:
        settings = {
            "training__epochs": 100_000,
            "training__log_every_steps": 1,
            "eval__every_epochs": 100_000,
            "checkpoint__every_steps": SAVE_EVERY,
            "launch__restarts__hardware": -1,
        }
        name = f"ours-{turn}"
        self.run, self._first = Run(site, name, site.command(name, **settings)), 0

    def start(self) -> None:
        self.run.start()

    def wait_until_trained(self, steps: int) -> None:
        def trained() -> bool:
            running = self.run.of_kind("attempt_running")
            return bool(running) and self.run.step >= running[-1]["step"] + steps and len(self.pids()) == 2

        self.run.wait(trained, f"{steps} steps")

    def pids(self) -> list[int]:
        return list(self.run.ranks().values())

    def recover(self, kill: Callable[[], None]) -> Recovery:
        known, step, moment = len(self.run.events()), self.run.step, now()
        kill()
        self.run.wait(
            lambda: bool(self.run.of_kind("attempt_running", known)), "the next attempt's first step"
        )
        ended = self.run.of_kind("attempt_ended", known)[0]
        running = self.run.of_kind("attempt_running", known)[-1]
        seconds = running["seconds"]
        parts = {
            "noticed": ended["time"] - moment,
            "processes": seconds["place"] + seconds["spawn"] + seconds["join"],
            "load": seconds["load"],
            "first step": seconds["first_step"],
        }
        lost = max(int(ended.get("step") or step), step) - int(running["step"])
        return Recovery(running["time"] - moment, parts, max(0, lost))

    def stop(self) -> None:
        self.run.signal(signal.SIGTERM)
        self.run.wait_for_end(timeout=60.0)


class RayTrain:
    """ray_train_loop.py."""

    def __init__(self, site: Site, turn: int) -> None:
        self.site, self.folder = site, site.root / f"ray-train-{turn}"
        self.folder.mkdir()
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [sys.executable, str(Path(__file__).with_name("ray_train_loop.py")), str(self.folder)]
        with (self.folder / "output").open("wb") as output:
            self._process = subprocess.Popen(
                command, env=self.site.cluster.env, stdout=output, stderr=output, start_new_session=True
            )

    def _notes(self, what: str, since: float = 0.0) -> list[dict[str, Any]]:
        with suppress(FileNotFoundError):
            whole = (self.folder / "log").read_bytes().rpartition(b"\n")[0].splitlines()
            notes = [json.loads(line) for line in whole]
            return [note for note in notes if note["what"] == what and note["time"] >= since]
        return []

    def pids(self) -> list[int]:
        entered = {note["rank"]: note["pid"] for note in self._notes("entered")}
        return [pid for pid in entered.values() if is_alive(pid)]

    def wait_until_trained(self, steps: int) -> None:
        def trained() -> bool:
            pids = self.pids()
            done = [sum(note["pid"] == pid for note in self._notes("step")) for pid in pids]
            return len(pids) == 2 and min(done) >= steps

        self._wait(trained, f"{steps} steps")

    def _wait(self, happened: Callable[[], bool], what: str) -> None:
        assert self._process is not None
        process = self._process
        try:
            wait_for(lambda: happened() or process.poll() is not None, what, 180.0)
        except ChaosError as error:
            raise ChaosError(f"Ray Train: {error}\n{(self.folder / 'output').read_text()[-3000:]}") from None
        if not happened():
            raise ChaosError(f"Ray Train ended:\n{(self.folder / 'output').read_text()[-3000:]}")

    def recover(self, kill: Callable[[], None]) -> Recovery:
        old, moment = {note["pid"] for note in self._notes("entered")}, now()
        kill()

        def new(what: str) -> list[dict[str, Any]]:
            return [note for note in self._notes(what, moment) if note["pid"] not in old]

        self._wait(lambda: len({note["pid"] for note in new("step")}) == 2, "a step after the kill")
        # The last attempt's, should one have failed on the way.
        pids = {note["pid"] for note in new("step")}
        detected = [note["time"] for note in self._notes("detected", moment)] or [moment]
        entered, loaded, stepped = (
            max(next(note["time"] for note in new(what) if note["pid"] == pid) for pid in pids)
            for what in ("entered", "loaded", "step")
        )
        before = [note["step"] for note in self._notes("step") if note["time"] < moment]
        first = min(note["step"] for note in new("step"))
        parts = [detected[0] - moment, entered - detected[0], loaded - entered, stepped - loaded]
        lost = max(0, max(before) - first + 1)
        return Recovery(stepped - moment, dict(zip(PARTS, parts, strict=True)), lost)

    def stop(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()
        wait_for(lambda: not self.pids(), "Ray Train's workers to be gone", 60.0)


def play_turn(
    site: Site, contestant: Contestant, victims: Sequence[str], draw: random.Random
) -> list[Recovery]:
    """Start, hit it once for each victim, stop."""
    found = []
    contestant.start()
    try:
        for victim in victims:
            contestant.wait_until_trained(STEPS_BETWEEN + draw.randrange(SAVE_EVERY))
            if victim == "worker":
                pid = draw.choice(contestant.pids())
                found.append(contestant.recover(lambda pid=pid: os.kill(pid, signal.SIGKILL)))
                continue
            node = next(node for pid in contestant.pids() if (node := node_of(site.cluster, pid)))
            doomed = site.cluster.node_pids(node)
            found.append(contestant.recover(lambda doomed=doomed: _kill_all(doomed)))
            site.cluster.kill_node(node)
            site.cluster.start_node(node)
    finally:
        contestant.stop()
    return found


def _kill_all(pids: Sequence[int]) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def measure(site: Site, kills: int, node_kills: int, seed: int) -> dict[str, Recoveries]:
    """Both contestants, in turns."""
    makers: dict[str, Callable[[Site, int], Contestant]] = {"this platform": Ours, "Ray Train": RayTrain}
    results, draw = {name: Recoveries() for name in makers}, random.Random(seed)
    turns = [["worker"] * min(KILLS_A_TURN, kills - done) for done in range(0, kills, KILLS_A_TURN)]
    turns += [["node"]] * node_kills
    for turn, victims in enumerate(turns):
        for name, make in makers.items():
            found = play_turn(site, make(site, turn), victims, draw)
            results[name].found[victims[0]] += found
            shown = ", ".join(f"{one.total:.2f} s" for one in found)
            print(f"{name}, {victims[0]} killed: {shown}", file=sys.stderr, flush=True)
    return results


def table(results: dict[str, Recoveries]) -> str:
    """Medians, in Markdown; the ratio is Ray Train's time to ours."""
    header = ["killed", "who restarts", "kills", "next step after", "longest", *PARTS, "lost steps", "ratio"]
    lines = [f"| {' | '.join(header)} |", f"|---|---|{'---:|' * (len(header) - 2)}"]
    for victim in ("worker", "node"):
        totals = {name: [one.total for one in r.found[victim]] for name, r in results.items()}
        for name, result in results.items():
            found = result.found[victim]
            if not found:
                continue
            parts = [f"{statistics.median(one.parts[part] for one in found):.2f} s" for part in PARTS]
            median = statistics.median(totals[name])
            ratio = statistics.median(totals["Ray Train"]) / median if totals["Ray Train"] else float("nan")
            lost = f"{statistics.median(one.lost_steps for one in found):.0f}"
            cells = [victim, name, len(found), f"{median:.2f} s", f"{max(totals[name]):.2f} s"]
            lines.append(f"| {' | '.join(map(str, [*cells, *parts, lost, f'{ratio:.1f}']))} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--kills", type=int, default=6, help="of workers, for each contestant")
    parser.add_argument("--node-kills", type=int, default=2, help="of nodes, for each contestant")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="write every recovery as JSON")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # clearing up on the way
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}, ray {ray.__version__}, "
        f"load average {os.getloadavg()[0]:.1f}\n"
    )
    folder = Path(tempfile.mkdtemp(prefix="convmlp-restart-"))
    try:
        with chaos_site(folder) as site:
            results = measure(site, options.kills, options.node_kills, options.seed)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(table(results))
    print("\nMedians; ratio: Ray Train's time to the next step against this row's.")
    if options.out:
        plain = {
            name: {victim: [vars(one) for one in found] for victim, found in result.found.items()}
            for name, result in results.items()
        }
        options.out.write_text(json.dumps(plain, indent=2))


if __name__ == "__main__":
    main()
