"""The profile of some steps, taken while the run trains: `RUN/profile/steps-10-20/rank-00000/`, and in MLflow.

It costs the run nothing that matters: whatever fails of it is said once, and training goes on without it. The time in
which it is written down counts as `checkpoint` in the run's goodput, which stalls training just so; that recorded
steps take longer is part of their time, and the page says by how much.
"""

from __future__ import annotations

import gzip
import json
import logging
import os
import platform
import resource
import statistics
import sys
import threading
from contextlib import AbstractContextManager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]
import torch
from torch.profiler import ProfilerAction, ProfilerActivity, profile, record_function

from convmlp_platform.config.schema import TrainJob
from convmlp_platform.engine.engine import Engine
from convmlp_platform.health.heartbeat.phases import Beats, Phase, PhaseClock
from convmlp_platform.runs.run_folder import RunFolder
from convmlp_platform.torch_internals import begin_memory_history, end_memory_history
from convmlp_platform.tracking.tracker import Tracker
from convmlp_platform.training.callbacks import Callback
from convmlp_platform.training.profiling.profile_page import ProfileFacts, page
from convmlp_platform.training.profiling.trace_reading import SPAN, TraceFacts, read_trace
from convmlp_platform.training.step_plan import TrainState
from data_prep.console import say
from data_prep.storage.files import atomic_file, write_atomically

logger = logging.getLogger(__name__)

TRACE, MEMORY, SNAPSHOT, PAGE = "trace.json.gz", "memory.json", "memory_snapshot.pickle", "summary.md"
_ALLOCATIONS = 200_000
"""Remembered of CUDA's allocator, the newest."""
_POINTS = 20_000
"""Of the time line of memory."""
_USUAL = 20
"""Steps before the profile that say what a step takes without it."""
_SPAN_OF = {
    Phase.COMPILE: "first step",
    Phase.DATA: "data wait",
    Phase.COMPUTE: "rest of forward and backward",
    Phase.UPDATE: "agreement of ranks",
    Phase.EVALUATE: "evaluation",
    Phase.CHECKPOINT: "checkpoint",
}


class StepProfiler(Callback):
    """Watches the clock for the steps that `profile.steps` names; on every rank, and idle on those that record none.

    Construct it after all else that listens to the clock, so that it hears of a step first.

    Args:
        tracker: on rank 0; None on the others.
    """

    def __init__(
        self, job: TrainJob, engine: Engine, clock: PhaseClock, folder: RunFolder, tracker: Tracker | None
    ) -> None:
        self.job, self.engine, self.clock, self.tracker = job, engine, clock, tracker
        self._section = job.profile
        self._profile: profile | None = None
        self._span: AbstractContextManager[Any] | None = None
        self._phase, self._step, self._recorded_from = Phase.START, -1, 0
        self._usual: list[float] = []
        self._seconds: list[float] = []
        self._thread = threading.get_ident()
        self._then: Beats | None = None
        self._listens = False
        if self._section is None:
            return
        first, end = self._section.steps
        self.place = folder.profile / f"steps-{first}-{end}"
        self.folder = self.place / f"rank-{engine.world.rank:05d}"
        if self._section.every_rank or engine.world.is_main:
            self._then, clock.beats, self._listens = clock.beats, self, True

    def on_start(self, state: TrainState, stop_step: int) -> None:
        """Say where there is nothing left to record; after a rollback, begin anew."""
        if self._section is None or not self._listens:
            return
        self._abandon()
        end = self._section.steps[1]
        if (self.folder / PAGE).is_file():
            self._deaf()
        elif state.step >= end:
            self._deaf()
            if self.engine.world.is_main:
                say(
                    f"profile: steps {list(self._section.steps)} were done before this start, which goes on after step "
                    f"{state.step}; to record others: --set profile.steps=[{state.step + 5},{state.step + 15}]"
                )

    def on_stop(self, reason: str, state: TrainState) -> None:
        """Leave it: whoever told the run to stop may kill it soon, and the next start records these steps."""
        self._abandon()
        self._deaf()

    def on_end(self, state: TrainState) -> None:
        """Hand over the other ranks' profiles, which are written by now."""
        self._abandon()
        self._deaf()
        if self.tracker is None or self._section is None or not self._section.every_rank:
            return
        for folder in sorted(self.place.glob("rank-*")):
            if folder != self.folder and (folder / PAGE).is_file():
                self.tracker.log_artifact(folder, self._artifacts(folder))

    def beat(self, phase: Phase, step: int, micro_batch: int, note: str) -> None:
        """The clock's news, passed on."""
        if self._then is not None:
            self._then.beat(phase, step, micro_batch, note)
        begins = phase is Phase.DATA and step != self._step
        if threading.get_ident() != self._thread or not (begins or phase is not self._phase):
            return
        self._phase = phase
        if begins:
            self._step = step
        self._tried(partial(self._changed, phase, begins))

    def step_done(self, step: int, seconds: float) -> None:
        """The clock's news, passed on."""
        if self._then is not None:
            self._then.step_done(step, seconds)
        if threading.get_ident() == self._thread:
            self._tried(partial(self._ended, step, seconds))

    def bear(self, seconds: float) -> None:
        """The clock's news, passed on."""
        if self._then is not None:
            self._then.bear(seconds)

    def _changed(self, phase: Phase, begins: bool) -> None:
        self._close_span()
        if begins:
            self._begin_step()
        if self._profile is not None and phase in _SPAN_OF:
            self._open_span(_SPAN_OF[phase])

    def _begin_step(self) -> None:
        assert self._section is not None
        first, end = self._section.steps
        if self._profile is not None:
            self._profile.step()
        elif first - 1 <= self._step < end:  # one step to warm up, where there is one
            self._recorded_from = max(first, self._step)
            self._profile = self._started()

    def _started(self) -> profile:
        on_cuda = self.engine.world.device.type == "cuda"
        os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else it tells of each start, and of missing GPUs
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_cuda else [])]
        here, recorded_from = self._step, self._recorded_from

        def action(step: int) -> ProfilerAction:
            return ProfilerAction.RECORD if max(step, here) >= recorded_from else ProfilerAction.WARMUP

        recorder = profile(activities=activities, schedule=action, record_shapes=True, profile_memory=True)
        recorder.step_num = here  # the trace names steps as we do
        if on_cuda:
            torch.cuda.reset_peak_memory_stats(self.engine.world.device)
            begin_memory_history(_ALLOCATIONS)
        recorder.start()
        self.engine.span = lambda part: record_function(SPAN + part)
        return recorder

    def _open_span(self, name: str) -> None:
        span: AbstractContextManager[Any] = record_function(SPAN + name)
        self._span = span
        span.__enter__()

    def _close_span(self) -> None:
        if self._span is not None:
            span, self._span = self._span, None
            span.__exit__(None, None, None)

    def _ended(self, step: int, seconds: float) -> None:
        if self._profile is None:
            if self._phase is not Phase.COMPILE:
                self._usual = [*self._usual[1 - _USUAL :], seconds]
            return
        assert self._section is not None
        if step > self._recorded_from:
            self._seconds.append(seconds)
        if step < self._section.steps[1]:
            return
        self._close_span()
        recorder, self._profile = self._profile, None
        self._quiet()
        with self.clock.during(Phase.CHECKPOINT):
            recorder.stop()
            self._write(recorder)
        self._deaf()

    def _write(self, recorder: profile) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        with atomic_file(self.folder / TRACE) as file:
            recorder.export_chrome_trace(file.name)
            with gzip.open(file.name) as trace:
                facts = read_trace(json.load(trace)["traceEvents"])
        files = [TRACE, MEMORY]
        write_atomically(self.folder / MEMORY, json.dumps(_memory_of(facts)).encode())
        device_peak = None
        if self.engine.world.device.type == "cuda":
            device_peak = torch.cuda.max_memory_allocated(self.engine.world.device)
            with atomic_file(self.folder / SNAPSHOT) as file:
                end_memory_history(Path(file.name))
            files.append(SNAPSHOT)
        # The page comes last: where it is, all is.
        write_atomically(self.folder / PAGE, page(self._facts(device_peak), facts, files).encode())
        if self.tracker is not None:
            self.tracker.log_artifact(self.folder, self._artifacts(self.folder))
            say(f"profile: {self.folder / PAGE}")

    def _artifacts(self, folder: Path) -> str:
        return f"profile/{self.place.name}/{folder.name}"

    def _facts(self, device_peak: int | None) -> ProfileFacts:
        job, world = self.job, self.engine.world
        assert self._section is not None
        cuda = world.device.type == "cuda"
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        return ProfileFacts(
            run=job.name,
            model=job.model.name,
            steps=(self._recorded_from, self._section.steps[1]),
            rank=world.rank,
            world_size=world.size,
            hardware=torch.cuda.get_device_name(world.device)
            if cuda
            else f"CPU ({platform.machine()}), {torch.get_num_threads()} threads",
            torch_version=str(torch.__version__),
            strategy=job.engine.strategy,
            precision=job.engine.precision,
            images_a_step=job.training.global_batch_size // world.size,
            usual_step_s=statistics.median(self._usual) if self._usual else None,
            step_s=statistics.median(self._seconds),
            resident=(psutil.Process().memory_info().rss, peak),
            device_peak=device_peak,
        )

    def _tried(self, work: partial[None]) -> None:
        """Whatever a profiler fails of is no reason to fail a run."""
        if not self._listens:
            return
        try:
            work()
        except Exception as error:
            logger.warning(
                "profile: %s: %s; training goes on without it",
                type(error).__name__,
                " ".join(str(error).split()),
            )
            self._abandon()
            self._deaf()

    def _abandon(self) -> None:
        """Stop recording, and keep nothing."""
        recorder, self._profile = self._profile, None
        self._seconds, self._step = [], -1
        with suppress(Exception):
            self._close_span()
        self._quiet()
        if recorder is None:
            return
        with suppress(Exception):
            recorder.stop()
        if self.engine.world.device.type == "cuda":
            with suppress(Exception):
                end_memory_history(None)

    def _quiet(self) -> None:
        """The engine as it was: nobody records its parts."""
        vars(self.engine).pop("span", None)

    def _deaf(self) -> None:
        """Listen no more."""
        if self._listens and self.clock.beats is self:
            self.clock.beats = self._then
        self._listens = False


def _memory_of(facts: TraceFacts) -> dict[str, Any]:
    """The time line of memory, the highest point of each stretch where there are too many."""
    stretch = -(-len(facts.memory) // _POINTS) or 1
    points = [
        max(facts.memory[at : at + stretch], key=lambda point: point[1])
        for at in range(0, len(facts.memory), stretch)
    ]
    return {
        "unit": "seconds since the first step recorded, bytes allocated by PyTorch",
        "device": "gpu" if facts.device_parts else "cpu, beyond what was there before",
        "peak_by_part": facts.peaks,
        "points": points,
    }
