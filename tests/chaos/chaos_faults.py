"""The faults: how each comes about, when it can, and what must be told of it."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import psutil
from chaos_run import Run, now
from chaos_site import ChaosError, Site, node_of, of_root, ray_id_of
from chaos_storage import DataServer


@dataclass
class Stage:
    """Where a fault acts, and who it hits. `rank` and `node` are those of the fault under way."""

    site: Site
    run: Run
    draw: random.Random
    rank: int | None = None
    node: int | None = None
    moment: float = 0.0
    """When it happened; what has to be prepared first sets it anew."""
    lost_nodes: list[int] = field(default_factory=list)

    def pick_rank(self) -> int:
        """A random rank; returns its process."""
        ranks = self.run.ranks()
        self.rank = self.draw.choice(sorted(ranks))
        return ranks[self.rank]

    def guest_node(self) -> int | None:
        """A node other than the first that has one of the run's processes."""
        for pid in self.run.ranks().values():
            node = node_of(self.site.cluster, pid)
            if node:
                return node
        return None

    def flag(self, name: str) -> None:
        """See inside/faults_inside.py."""
        (self.site.root / "flags" / name).touch()

    def flagged(self, name: str) -> bool:
        """Whether that has happened."""
        return (self.site.root / "flags" / f"{name}.done").exists()


Recovery = Literal["restart", "driver", "rivals", "in place", "any", "end"]
"""`restart`: a new attempt; `driver`: the command again; `rivals`: the command twice at once; `in place`: training
doesn't stop; `any`: one of these; `end`: a new attempt, after the last step."""


@dataclass(frozen=True)
class Fault:
    """`causes`: what attempt_ended may say; `told`: a part of a line that must be printed.

    `exit_code`: the driver's, where the run is its user's to mend and the command is typed again. `holds_s`: seconds
    that the fault lasts. `evaluated`: training goes on from the step whose evaluation it hit.
    """

    name: str
    inject: Callable[[Stage], None]
    recovery: Recovery
    causes: tuple[str, ...] = ()
    told: str = ""
    names_rank: bool = False
    exit_code: int | None = None
    holds_s: float = 0.0
    evaluated: bool = False
    needs_guest: bool = False
    """Whether a process must be on another node than the first."""
    possible: Callable[[Site], bool] = lambda site: True
    repeat: Callable[[Stage], None] | None = None
    """What keeps the fault up until it is told."""
    heal: Callable[[Stage], None] | None = None


def _to_rank(number: signal.Signals) -> Callable[[Stage], None]:
    return lambda stage: os.kill(stage.pick_rank(), number)


def _to_driver(number: signal.Signals) -> Callable[[Stage], None]:
    return lambda stage: stage.run.signal(number)


def _kill_agent(stage: Stage) -> None:
    """The Ray actor of the training process, which may have been forked for it by a server that another process
    started: the child of a raylet that reads what the training process prints."""
    rank = psutil.Process(stage.pick_rank())
    printed = Path(f"/proc/{rank.pid}/fd/1").readlink()
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            above = process.parent()
            if above is not None and above.name() == "raylet" and printed in _open_files(process):
                process.kill()
                return
    raise ChaosError(f"process {rank.pid} of rank {stage.rank} has no Ray actor that reads what it prints")


def _open_files(process: psutil.Process) -> Iterator[Path]:
    for link in Path(f"/proc/{process.pid}/fd").iterdir():
        with suppress(OSError):  # closed meanwhile
            yield link.readlink()


def _kill_node(stage: Stage) -> None:
    node = stage.guest_node()
    assert node is not None
    stage.lost_nodes.append(node)
    stage.node = node
    doomed = stage.site.cluster.node_pids(node)
    stage.moment = now()
    for pid in doomed:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    stage.site.cluster.kill_node(node)


def _return_node(stage: Stage) -> None:
    for node in stage.lost_nodes:
        if stage.site.cluster.is_alive(node):
            stage.site.cluster.kill_node(node)
        stage.site.cluster.start_node(node)
    stage.lost_nodes.clear()


def _drain(stage: Stage) -> None:
    """What Ray's autoscaler does when the cloud announces that it takes a machine back."""
    stage.node = stage.guest_node()
    assert stage.node is not None
    stage.lost_nodes.append(stage.node)
    cluster = stage.site.cluster
    command = [
        sys.executable, "-m", "ray.scripts.scripts", "drain-node", "--address", cluster.address,
        "--node-id", ray_id_of(cluster, stage.node), "--reason", "DRAIN_NODE_REASON_PREEMPTION",
        "--reason-message", "spot instance is taken back", "--deadline-remaining-seconds", "60",
    ]  # fmt: skip
    stage.moment = now()
    done = subprocess.run(command, env=cluster.env, text=True, capture_output=True)
    if done.returncode:
        raise ChaosError(f"ray drain-node: {done.stdout}{done.stderr}")


def _flag_rank(prefix: str) -> Callable[[Stage], None]:
    def inject(stage: Stage) -> None:
        stage.pick_rank()
        stage.flag(f"{prefix}-rank-{stage.rank}")

    return inject


def _fill(stage: Stage) -> None:
    stage.site.disk.fill()


def _free(stage: Stage) -> None:
    stage.site.disk.free()


def _refuse(stage: Stage) -> None:
    stage.site.disk.refuse()


def _accept(stage: Stage) -> None:
    stage.site.disk.accept()


def _wait_for_flag(stage: Stage, name: str) -> None:
    stage.flag(name)
    stage.run.wait(lambda: stage.flagged(name), f"{name} to happen")
    stage.moment = now()


def _kill_in_evaluation(stage: Stage) -> None:
    stage.pick_rank()
    _wait_for_flag(stage, f"evaluation-rank-{stage.rank}")


def _kill_in_registration(stage: Stage) -> None:
    stage.rank = 0
    _wait_for_flag(stage, "registration-rank-0")


def _stop_replayer(stage: Stage) -> None:
    """And kill rank 0, whose it was: the next one must not wait for it."""
    replayers = of_root(stage.site, "convmlp_platform.tracking.mlflow.replayer")
    if not replayers:
        raise ChaosError("no replayer is running")
    for process, _ in replayers:
        process.suspend()
    stage.rank = 0
    os.kill(stage.run.ranks()[0], signal.SIGKILL)


def _second_driver(stage: Stage) -> None:
    """While the run is being trained, somebody types its command."""
    code, output = stage.run.type_again()
    if code != 2:
        raise ChaosError(f"a second driver ended with {code}, not 2: {output[-1500:]}")
    stage.run.lines.append(f"second driver: {output.strip().splitlines()[-1]}")


def _server(stage: Stage) -> DataServer:
    assert stage.site.server is not None
    return stage.site.server


def _lose_shard(stage: Stage) -> None:
    """And kill a worker: what has a block open would read on."""
    _server(stage).lose_shard()
    os.kill(next(iter(stage.run.ranks().values())), signal.SIGKILL)


def _remote(site: Site) -> bool:
    return site.server is not None


HARDWARE, FULL, REFUSED = ("hardware",), "disk is full", "(?i)(read-only file system|permission denied)"
AN_HOUR = 3600

FAULTS = {
    fault.name: fault
    for fault in (
        Fault("kill -9 worker", _to_rank(signal.SIGKILL), "restart", HARDWARE, names_rank=True),
        Fault("kill -9 agent", _kill_agent, "restart", HARDWARE, names_rank=True),
        Fault("node lost", _kill_node, "restart", HARDWARE, needs_guest=True, heal=_return_node),
        Fault("node drained", _drain, "restart", ("preemption",), needs_guest=True, heal=_return_node),
        Fault("SIGTERM worker", _to_rank(signal.SIGTERM), "restart", ("preemption",)),
        Fault("SIGTERM driver", _to_driver(signal.SIGTERM), "driver", ("stopped",)),
        Fault("SIGKILL driver", _to_driver(signal.SIGKILL), "driver"),
        Fault("SIGSTOP worker", _to_rank(signal.SIGSTOP), "restart", ("hang",), names_rank=True),
        Fault("hang with the GIL", _flag_rank("gil"), "restart", ("hang",), names_rank=True),
        Fault("disk full", _fill, "in place", told=FULL, repeat=_fill, heal=_free),
        Fault("writes refused", _refuse, "in place", told=REFUSED, repeat=_refuse, heal=_accept),
        Fault("NaN in a loss", _flag_rank("nan"), "in place", told="(?i)not finite|non-finite|nan"),
        Fault(
            "kill -9 in evaluation", _kill_in_evaluation, "restart", HARDWARE, names_rank=True, evaluated=True
        ),
        Fault("kill -9 in registration", _kill_in_registration, "end", HARDWARE, names_rank=True),
        Fault("replayer stopped, rank 0 killed", _stop_replayer, "restart", HARDWARE, names_rank=True),
        Fault(
            "records' disk full",
            lambda stage: stage.site.records.fill(),
            "any",
            told="(?i)(disk is full|no space left)",
            repeat=lambda stage: stage.site.records.fill(),
            holds_s=5.0,
            heal=lambda stage: stage.site.records.free(),
            possible=lambda site: site.records.real,
        ),
        Fault(
            "storage away for 150 s",
            lambda stage: _server(stage).leave(),
            "any",
            told="trying again",
            holds_s=150.0,
            heal=lambda stage: _server(stage).come_back(),
            possible=_remote,
        ),
        Fault(
            "shard deleted",
            _lose_shard,
            "driver",
            exit_code=2,
            told=r"train-\d+\.tar",
            heal=lambda stage: _server(stage).restore(),
            possible=_remote,
        ),
        Fault(
            "clock set back an hour",
            lambda stage: stage.site.clock.move(-AN_HOUR),
            "in place",
            holds_s=10.0,
            heal=lambda stage: stage.site.clock.move(0),
        ),
        Fault("second driver", _second_driver, "in place", told="another driver"),
        Fault("SIGKILL driver, two anew", _to_driver(signal.SIGKILL), "rivals"),
    )
}
SHORT = ("kill -9 worker", "disk full", "SIGSTOP worker", "NaN in a loss", "SIGTERM worker")


def draw_faults(count: int, draw: random.Random, site: Site) -> list[str]:
    """At least one of each kind that is possible here where there are as many, in random order; what can only happen
    at the end, once, last."""
    names = [name for name, fault in FAULTS.items() if fault.possible(site)]
    last = [name for name in names if FAULTS[name].recovery == "end"][:count]
    names = [name for name in names if name not in last]
    count -= len(last)
    deck = [name for _ in range(count // len(names)) for name in names]
    deck += draw.sample(names, count - len(deck))
    draw.shuffle(deck)
    return deck + last
