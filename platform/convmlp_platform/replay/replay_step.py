"""One step of a run done again on one machine: weights, batch and random numbers as they were.

A world of one takes all micro-batches in the order of their numbers. Each is the same on any number of workers, and
so is what a forward pass draws; only sums over workers depend on who summed. Nothing is written to the run's folder.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean

import torch

from convmlp_platform.config.schema import TrainJob
from convmlp_platform.data.reading.loader import MicroBatch, TrainLoader
from convmlp_platform.distributed import joined_world
from convmlp_platform.engine.engine import Engine
from convmlp_platform.errors import ConfigError, DataError
from convmlp_platform.replay.recorded_batches import read_again
from convmlp_platform.replay.sample_search import SampleFindings, search_samples
from convmlp_platform.replay.step_record import ReplayStart, StepRecord, find_start, load_start, read_step
from convmlp_platform.runs.run_folder import RunFolder
from convmlp_platform.tracking.delivery_state import journal_path
from convmlp_platform.tracking.journal import tag_history
from convmlp_platform.training.build import parts
from convmlp_platform.training.build.initial_weights import replayed_job
from convmlp_platform.training.guard.agreement import Agreement, agree
from convmlp_platform.training.outputs.exactness import inexact_machine, inexact_weights, threads_of
from convmlp_platform.training.step_plan import StepPlan

_SAY_EVERY = 5.0  # seconds

Say = Callable[[str], None]


@dataclass(frozen=True)
class Replay:
    """A step done again.

    Args:
        lr: its learning rate.
        loss, grad_norm: of the global batch; the gradient's L2 norm before clipping.
        losses: mean loss of each micro-batch, by number.
        window: means of loss and gradient norm over the steps that the run logged together with this one, where
            all of these were done again; else None.
        inexact: why micro-batches may differ from the run's in their last bits; empty: they must not.
        inexact_sums: why loss and gradient norm may, even if no micro-batch does.
        bad_weights: parameters that were not finite before the step.
        compared: whether the ledger had the payloads' checksums; if so, they are those of what was read now.
        num_replaced: places whose damaged samples were replaced, then and now.
        seconds: how long the step and those before it took.
        loader: knows the samples.
    """

    record: StepRecord
    start: ReplayStart
    lr: float
    loss: float
    grad_norm: float
    losses: list[float]
    window: tuple[float, float] | None
    inexact: list[str]
    inexact_sums: list[str]
    bad_weights: list[str]
    findings: SampleFindings
    compared: bool
    num_replaced: int
    seconds: float
    loader: TrainLoader = field(repr=False)

    @property
    def finite(self) -> bool:
        """Whether loss and gradient are."""
        return math.isfinite(self.loss) and math.isfinite(self.grad_norm)


def replay(
    run: Path,
    step: int,
    *,
    device: str = "cpu",
    overrides: Sequence[str] = (),
    incident: int | None = None,
    attempt: int | None = None,
    from_start: bool = False,
    say: Say = lambda line: None,
) -> Replay:
    """Do step `step` (counted from 0) of the run in folder `run` again, and look into it.

    Args:
        device: `cpu` or `cuda`.
        overrides, incident, attempt: as in `read_step`.
        from_start: as in `find_start`.
        say: is told what is done and how long it will take.

    Raises:
        ConfigError, DataError, CheckpointError: what it takes is not there, or isn't the run's.
    """
    if device not in ("cpu", "cuda") or (device == "cuda" and not torch.cuda.is_available()):
        raise ConfigError(f"--device {device}: no such device is here; cpu always is")
    record = read_step(run, step, overrides=overrides, incident=incident, attempt=attempt)
    start = find_start(record, from_start=from_start)
    tags = tag_history(journal_path(run))
    job = _job_here(record, start, device)
    with (
        _computing_with(threads_of(tags) if device == "cpu" else None),
        joined_world(use_gpu=device == "cuda") as world,
    ):
        folder = RunFolder(run, record.attempts[record.attempt].header.identity)
        loader = parts.build_train_loader(job, record.manifest, folder, world)
        task = parts.build_task(job, record.manifest)
        engine = parts.build_engine(job, task, record.manifest, world)
        load_start(start, engine)
        return _Steps(record, start, engine, loader, say).replay(inexact_machine(record.job, device, tags))


def _job_here(record: StepRecord, start: ReplayStart, device: str) -> TrainJob:
    """The run's job, to be computed by one process; what is left out changes no step."""
    job, header = replayed_job(record.job, record.run), record.attempts[record.attempt].header
    fp16_on_cpu = job.engine.precision == "fp16" and device == "cpu"
    changes = {
        "engine": {"strategy": "ddp", "compile": False} | ({"precision": "fp32"} if fp16_on_cpu else {}),
        "training": {"ema_decay": None},
        "data": {"format": header.format, "num_workers": 0, "read_ahead": 0},
        "model": {} if start.kind == "beginning" else {"init_from": None},
    }
    sections = {
        name: getattr(job, name).model_copy(update=values) for name, values in changes.items() if values
    }
    return job.model_copy(update=sections)


@contextmanager
def _computing_with(threads: int | None) -> Iterator[None]:
    """Within: torch computes with so many threads, on which the last bits of sums depend."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class _Steps:
    """The steps from where there are weights to the one that is asked for."""

    def __init__(
        self, record: StepRecord, start: ReplayStart, engine: Engine, loader: TrainLoader, say: Say
    ) -> None:
        self.record, self.start, self.engine, self.loader, self.say = record, start, engine, loader, say
        self.plan = StepPlan(record.job, len(loader.split))
        self._done: dict[int, Agreement] = {}
        self._diverged: list[str] = []

    def replay(self, inexact_machine: list[str]) -> Replay:
        began, record, engine = time.monotonic(), self.record, self.engine
        self._catch_up()
        step, span = record.step, record.span_of(record.step)
        bad_weights = [name for name, tensor in engine.local_tensors().items() if not tensor.isfinite().all()]
        micro_batches, compared = self._batch()
        computed = engine.compute(micro_batches, step=step)
        agreed = agree(engine, computed, False)
        engine.refuse()
        self._done[step] = agreed
        seconds = time.monotonic() - began
        losses = [float(loss) for loss in computed.losses]
        findings = search_samples(engine, step, micro_batches, losses, agreed.finite or bool(bad_weights))
        return Replay(
            record,
            self.start,
            self.plan.lr(step),
            agreed.loss,
            agreed.grad_norm,
            losses,
            self._window(),
            inexact_machine + inexact_weights(record.line, self.start.step, step) + self._diverged,
            [f"{span.world_size} workers sum micro-batches in another order"] if span.world_size > 1 else [],
            bad_weights,
            findings,
            compared,
            sum(int(micro.replaced.sum()) for micro in micro_batches),
            seconds,
            self.loader,
        )

    def _catch_up(self) -> None:
        """Do the steps before again."""
        first, stop, record = self.start.step, self.record.step, self.record
        self.say(f"weights   {self.start}")
        if first == stop:
            return
        self.say(
            f"again     steps {first} to {stop - 1}, each of {self.plan.job.training.global_batch_size} images"
        )
        began = told = time.monotonic()
        for step in range(first, stop):
            if record.skipped(step):
                self.say(f"          step {step} is left out: the run skipped its update")
                continue
            self._do_again(step)
            now = time.monotonic()
            if step == first or now - told > _SAY_EVERY:
                left = (now - began) / (step + 1 - first) * (stop - step - 1)
                self.say(f"          step {step} done, about {left:.0f} s left")
                told = now

    def _do_again(self, step: int) -> None:
        engine, consumed = self.engine, self.record.consumed(step)
        if consumed is None:
            raise DataError(
                f"the ledger has no whole record of step {step}, which must be done again on the way"
            )
        computed = engine.compute(read_again(self.loader, step, consumed), step=step)
        agreed = self._done[step] = agree(engine, computed, False)
        if agreed.finite:
            engine.update(self.plan.lr(step), agreed.grad_norm)
            return
        engine.absorb_overflow()
        engine.refuse()
        self._diverged.append(f"step {step} isn't finite here, and no skip of it is on record")

    def _batch(self) -> tuple[list[MicroBatch], bool]:
        """The step's batch, and whether it was compared with what the run read."""
        step, consumed = self.record.step, self.record.consumed(self.record.step)
        if consumed is None:
            return read_again(self.loader, step, self.record.due(step)), False
        return read_again(self.loader, step, consumed), True

    def _window(self) -> tuple[float, float] | None:
        """Means as `training.step` takes them: of steps whose update was not refused."""
        logged, record = self.record.logged, self.record
        steps = range(logged.first, logged.last + 1) if logged else range(0)
        taken = [step for step in steps if not record.skipped(step)]
        if not taken or any(step not in self._done for step in taken):
            return None
        done = [self._done[step] for step in taken]
        return fmean(step.loss for step in done), fmean(step.grad_norm for step in done)
