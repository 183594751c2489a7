"""Faults in a run, one after another: each once the run has made some progress, until it has recovered."""

from __future__ import annotations

import os
import random
import re
import time
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from chaos_faults import FAULTS, Fault, Stage
from chaos_proof import final_checkpoint
from chaos_run import Event, Run, now, seconds_since
from chaos_site import JOB, ChaosError, Site, is_alive, settings_of
from ranks import run_ranks

from convmlp_platform.checkpoints.checkpointer import Checkpoint
from convmlp_platform.training.step_plan import StepPlan

MIN_PROGRESS, MAX_PROGRESS = 4, 20
"""Steps that a run makes at least between its recovery and the next fault."""


@dataclass
class Blow:
    """What came of one fault. Seconds are from the fault."""

    fault: str
    step: int
    target: str = ""
    told: str = ""
    detected_s: float | None = None
    resumed_s: float | None = None
    lost_steps: int | None = None
    parts: dict[str, Any] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


class Play:
    """A run under faults; `blows` has what came of each."""

    def __init__(
        self, site: Site, run: Run, faults: Sequence[str], steps: int, seed: int, plan: StepPlan
    ) -> None:
        self.draw = random.Random(seed)
        self.stage = Stage(site, run, self.draw)
        self.run, self.deck, self.blows = run, list(faults), list[Blow]()
        slot = 0.9 * steps / len(self.deck)
        self.steps, self.plan = steps, plan
        self.slots = [int(slot * (index + self.draw.uniform(0.1, 0.9))) for index in range(len(self.deck))]

    def perform(self) -> int:
        """All faults, and the run's end; returns the command's last exit code."""
        self.run.start()
        resumed = 0
        try:
            for index, slot in enumerate(self.slots):
                last = self.steps - MIN_PROGRESS * (len(self.slots) - index)
                if FAULTS[self.deck[0]].recovery == "end":
                    last = slot = self.steps - 1
                due = min(last, max(slot, resumed + self.draw.randint(MIN_PROGRESS, MAX_PROGRESS)))
                self.run.wait(lambda due=due: self.run.step >= due and self._whole(), f"step {due}")
                fault = self._next()
                blow = Blow(fault.name, self.run.step)
                self.blows.append(blow)
                resumed = self._strike(fault, blow)
                print(
                    f"  {blow.fault:18} {blow.target:8} at step {blow.step:4}: {blow.told or '-'}, "
                    f"detected {blow.detected_s} s, next step after {blow.resumed_s} s"
                    f"{'; '.join(['', *blow.problems])}",
                    flush=True,
                )
            return self.run.wait_for_end()
        finally:
            self.run.end()

    def _whole(self) -> bool:
        """All workers that the job asks for train: their first step is done, and we know their processes."""
        started, running = self.run.of_kind("attempt_started"), self.run.of_kind("attempt_running")
        if not started or not running or running[-1]["start"] != started[-1]["start"]:
            return False
        wanted = self.run.of_kind("driver_started")[-1]["num_workers"]
        return bool(len(self.run.ranks()) == started[-1]["world_size"] == wanted)

    def _next(self) -> Fault:
        """The first fault of the deck that is possible now; one that needs a second node may wait for it."""
        guest = self.stage.guest_node() is not None
        for name in self.deck:
            if FAULTS[name].recovery == "end" and name != self.deck[0]:
                continue
            if guest or not FAULTS[name].needs_guest:
                self.deck.remove(name)
                return FAULTS[name]
        # All that remain need a worker on another node: a driver that starts anew spreads its workers anew.
        del self.deck[0]
        return FAULTS["SIGTERM driver"]

    def _strike(self, fault: Fault, blow: Blow) -> int:
        """Inject, see it told, see the run go on; returns the step it went on from."""
        stage, known = self.stage, len(self.run.events())
        stage.rank = stage.node = None
        lines, before = len(self.run.lines), self.run.all_pids()
        stage.moment = now()
        fault.inject(stage)
        moment = stage.moment
        if stage.rank is not None:
            blow.target = f"rank {stage.rank}"
        elif stage.node is not None:
            blow.target = f"node {stage.node}"
        if fault.recovery == "in place":
            self._in_place(fault, blow, moment, known, lines)
            return self.run.step
        if fault.recovery == "any":
            self._borne(fault, blow, moment, known, lines)
            return self.run.step
        if fault.recovery == "end":
            self._finished(fault, blow, known)
            return self.steps
        if fault.recovery in ("driver", "rivals"):
            self._type_again(fault, blow, lines)
        resumed = self._restarted(fault, blow, moment, known)
        left = [pid for pid in before if is_alive(pid)]
        if left:
            blow.problems.append(f"processes of the attempt before are alive: {left}")
        if fault.evaluated and not self.plan.evaluates_after(resumed):
            blow.problems.append(f"training went on after step {resumed}, which was not the evaluated one")
        if fault.heal and fault.recovery != "driver":
            fault.heal(stage)
        return resumed

    def _type_again(self, fault: Fault, blow: Blow, lines: int) -> None:
        """After the driver's end."""
        code = self.run.wait_for_end(timeout=60.0 if fault.exit_code is None else 300.0)
        if fault.exit_code is not None:
            said = "\n".join(self.run.lines[lines:])
            if code != fault.exit_code or not re.search(fault.told, said):
                blow.problems.append(f"the driver ended with {code}, not {fault.exit_code}: {said[-600:]}")
        if fault.heal:
            fault.heal(self.stage)
        if fault.recovery == "rivals":
            self.run.start_twice()
        else:
            self.run.start()

    def _borne(self, fault: Fault, blow: Blow, moment: float, known: int, lines: int) -> None:
        """Told in a line; for as long as it lasts the run may wait or start again; then it goes on and saves."""
        run = self.run
        self._wait_until_told(fault, blow, moment, lines)
        self._hold(fault, moment)
        newest = self._newest_checkpoint()
        run.wait(
            lambda: self._newest_checkpoint() > newest, f"a checkpoint after {fault.name}", timeout=300.0
        )
        blow.resumed_s = round(now() - moment, 2)
        for ended in run.of_kind("attempt_ended", known):
            if ended.get("cause") not in ("data", "storage"):
                blow.problems.append(f"cause {ended.get('cause')!r} was told, not the storage: {ended}")
            blow.told = str(ended.get("cause"))

    def _hold(self, fault: Fault, moment: float) -> None:
        """Keep the fault up for its time, then heal it."""
        while (left := fault.holds_s - (now() - moment)) > 0:
            if fault.repeat:
                fault.repeat(self.stage)
            time.sleep(min(left, 0.2))
        if fault.heal:
            fault.heal(self.stage)

    def _finished(self, fault: Fault, blow: Blow, known: int) -> None:
        """A new attempt finds training complete, and finishes the rest."""
        run = self.run
        run.wait(lambda: bool(run.of_kind("attempt_ended", known)), f"{fault.name} to be told")
        self._judge(fault, blow, run.of_kind("attempt_ended", known)[0])

    def _wait_until_told(self, fault: Fault, blow: Blow, moment: float, lines: int) -> None:
        run, stage = self.run, self.stage

        def told() -> bool:
            if fault.repeat:
                fault.repeat(stage)
            return any(re.search(fault.told, line) for line in run.lines[lines:])

        run.wait(told, f"{fault.name} to be told")
        blow.told = next(line for line in run.lines[lines:] if re.search(fault.told, line))[:90]
        blow.detected_s = round(now() - moment, 2)

    def _in_place(self, fault: Fault, blow: Blow, moment: float, known: int, lines: int) -> None:
        """Told in a line; training goes on, in the same attempt; checkpoints are saved again."""
        run = self.run
        if fault.told:
            self._wait_until_told(fault, blow, moment, lines)
        self._hold(fault, moment)
        newest = self._newest_checkpoint()
        run.wait(lambda: self._newest_checkpoint() > newest, f"a checkpoint after {fault.name}")
        if ended := run.of_kind("attempt_ended", known):
            blow.problems.append(f"the attempt ended: {ended[0].get('cause')}")

    def _restarted(self, fault: Fault, blow: Blow, moment: float, known: int) -> int:
        """Told in an event; a new attempt makes its first step."""
        run = self.run

        def running() -> Event | None:
            started = run.of_kind("attempt_started", known)
            found = [
                event
                for event in run.of_kind("attempt_running", known)
                if started and event["start"] == started[-1]["start"]
            ]
            return found[-1] if found else None

        run.wait(lambda: running() is not None, f"the run to go on after {fault.name}", timeout=180.0)
        event = running()
        assert event is not None
        if ended := run.of_kind("attempt_ended", known):
            self._judge(fault, blow, ended[0])
            blow.detected_s = seconds_since(moment, ended[0])
        elif fault.causes:
            blow.problems.append("no attempt_ended was told")
        else:
            blow.told = "driver_started"
        blow.resumed_s, blow.parts = seconds_since(moment, event), dict(event.get("seconds") or {})
        first = int(event["step"])
        last = int(ended[0].get("step") or blow.step) if ended else blow.step
        blow.lost_steps = max(0, last - first)
        return first

    def _judge(self, fault: Fault, blow: Blow, ended: Event) -> None:
        blow.told = str(ended.get("cause"))
        if fault.causes and blow.told not in fault.causes:
            blow.problems.append(f"cause {blow.told!r} was told, not {fault.causes[0]!r}: {ended}")
        if fault.names_rank and ended.get("rank") != self.stage.rank:
            blow.problems.append(f"rank {ended.get('rank')} was told, not {self.stage.rank}: {ended}")

    def _newest_checkpoint(self) -> int:
        steps = [int(p.name[5:]) for p in self.stage.site.checkpoints(self.run.name).glob("step-*")]
        return max(steps, default=0)


def undisturbed(run: Run, timeout: float = 600.0) -> Checkpoint:
    """A run without faults; returns its end. Raises ChaosError where it fails."""
    run.start()
    try:
        if code := run.wait_for_end(timeout):
            raise ChaosError(f"the undisturbed run ended with {code}\n{run.last_words()}")
    finally:
        run.end()
    return final_checkpoint(run.site.checkpoints(run.name), run.folder)


def undisturbed_without_ray(folder: Path, data: Path, **settings: object) -> Checkpoint:
    """The same on two plain gloo ranks, as under torchrun; returns its end."""
    sets = settings_of("undisturbed", data, folder, checkpoint__path=folder, **settings)
    folder.mkdir(parents=True, exist_ok=True)
    run_ranks(_train, 2, str(folder), sets)
    return final_checkpoint(folder / "undisturbed" / "checkpoints", folder / "undisturbed")


def _train(folder: str, sets: list[str]) -> None:
    from convmlp_platform.config.load import load_job
    from convmlp_platform.training import run
    from convmlp_platform.training.build import build_run

    os.environ["OMP_NUM_THREADS"] = (
        "1"  # as the platform sets it; else Accelerate takes more, and sums differ
    )
    build_run.open_tracker = lambda *_: None  # type: ignore[attr-defined, assignment]
    with Path(folder, "output").open("a") as output, redirect_stdout(output):
        run.run(load_job(JOB, sets))
