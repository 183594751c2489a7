"""The kinds of jobs: for each, all that `convmlp check` and `convmlp run` ask of a job of that kind.

A new kind is a class here with its line in `KINDS`, beside its schema in `config.schema`. A method imports its work
when it is called: an error in a job file costs no import of PyTorch or Ray.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convmlp_platform.config.evaluate_job import EvaluateJob
from convmlp_platform.config.promote_job import PromoteJob
from convmlp_platform.config.schema import Job, PrepareJob, TrainJob
from convmlp_platform.config.sweep_job import SweepJob
from data_prep.console import counted

if TYPE_CHECKING:
    from convmlp_platform.launch.cluster.capacity import Node
    from convmlp_platform.launch.early_start import EarlyStart
    from convmlp_platform.runs.lease import Lease
    from convmlp_platform.sweep.sweep_plan import SweepPlan
    from convmlp_platform.tracking.provenance.submitted_job import GivenJob
    from convmlp_platform.training.preflight.preparation_preflight import PreflightReport

    CountNodes = Callable[[], Sequence[Node]]


class JobKind(ABC):
    """A job whose paths are resolved, by its kind. `preflight` is called first."""

    given: GivenJob | None = None
    """The file that the job came from, for the record; None: none did."""
    needs_ray: str | None = None
    """The reason why jobs of this kind can't be run without Ray; None: they can."""

    @abstractmethod
    def preflight(self, *, deep: bool) -> PreflightReport:
        """All that is wrong with the job itself, and what it would do. Starts and writes nothing.

        Args:
            deep: also make the checks that cost as much as the job's own start, which makes them itself.
        """

    def preflight_of_start(self) -> PreflightReport:
        """As `preflight`, of a job that starts on a cluster if there are no problems."""
        return self.preflight(deep=False)

    def lease(self) -> Lease | None:
        """The lease of what the job writes.

        None: `preflight` sees to it, or it isn't known before.

        Raises:
            PlatformError: what the job writes can't have one.
        """
        return None

    def address(self) -> str | None:
        """The cluster that the job names, `launch.address`; None: it needs none, or has problems that come first."""
        return None

    def room_problems(self, address: str | None, nodes: CountNodes | None = None) -> list[str]:
        """The problems that keep the job from running on a cluster.

        Args:
            address: of the cluster; None: one of the job's own.
            nodes: counts its nodes; default: those of the connected one.
        """
        return []

    def machine_lines(self, nodes: CountNodes) -> list[str]:
        """Lines of `convmlp check` on what the job takes of these nodes, and on what makes little sense there."""
        return []

    @abstractmethod
    def run(self, *, use_ray: bool) -> int:
        """Run a job that has no problems to its end and print what came of it; returns the exit code.

        Args:
            use_ray: on the cluster that it names; else in this process.

        Raises:
            PlatformError: what a user can fix.
        """


@dataclass
class PreparationKind(JobKind):
    """`kind: prepare`. Its lease is data_prep's own, and it fits on any cluster: no node is counted for it."""

    job: PrepareJob

    def preflight(self, *, deep: bool) -> PreflightReport:
        """See JobKind."""
        from convmlp_platform.training.preflight.preparation_preflight import preflight_preparation

        return preflight_preparation(self.job, deep=deep)

    def address(self) -> str | None:
        """See JobKind."""
        return self.job.launch.address

    def run(self, *, use_ray: bool) -> int:
        """See JobKind."""
        from convmlp_platform.jobs.preparation_job import prepare_dataset

        return prepare_dataset(self.job, use_ray=use_ray)


@dataclass
class TrainingKind(JobKind):
    """`kind: train`."""

    job: TrainJob
    early: EarlyStart | None = None
    """What `preflight_of_start` has started."""

    def preflight(self, *, deep: bool) -> PreflightReport:
        """See JobKind."""
        from convmlp_platform.training.preflight.preflight import preflight

        return preflight(self.job, deep=deep)

    def preflight_of_start(self) -> PreflightReport:
        """See JobKind. In a fork of the server that training processes are forked from."""
        from convmlp_platform.launch.early_start import EarlyStart

        self.early = EarlyStart(self.job)
        report = None
        try:
            report = self.early.preflight()
            return report
        finally:
            if report is None or report.problems:
                self.early.close()

    def lease(self) -> Lease | None:
        """See JobKind."""
        from convmlp_platform.runs.lease import run_lease
        from convmlp_platform.runs.run_folder import run_path

        return run_lease(run_path(self.job))

    def address(self) -> str | None:
        """See JobKind."""
        return self.job.launch.address

    def room_problems(self, address: str | None, nodes: CountNodes | None = None) -> list[str]:
        """See JobKind."""
        from convmlp_platform.launch.cluster import capacity

        return capacity.check(self.job, None if nodes is None else nodes())

    def machine_lines(self, nodes: CountNodes) -> list[str]:
        """See JobKind."""
        from convmlp_platform.launch.cluster import capacity

        found = nodes()
        job, gpu = self.job, capacity.uses_gpu(self.job, found)
        workers = counted(job.launch.num_workers, "GPU worker" if gpu else "CPU worker")
        cpus, readers = job.launch.cpus_per_worker, job.data.num_workers
        return [
            f"workers  {workers} of {counted(cpus, 'CPU')} and {counted(readers, 'reader')}, in "
            f"{job.engine.precision}",
            *capacity.slow_precision("engine.precision", job.engine.precision, gpu, found),
        ]

    def run(self, *, use_ray: bool) -> int:
        """See JobKind."""
        from convmlp_platform.jobs.training_job import train_here, train_on_ray

        if use_ray:
            return train_on_ray(self.job, self.given, self.early)
        return train_here(self.job, self.given)


@dataclass
class _OneWorkerKind(JobKind):
    """A job that one worker does, with a result in a folder of its own."""

    job: EvaluateJob | PromoteJob

    def lease(self) -> Lease | None:
        """See JobKind."""
        from convmlp_platform.runs.lease import result_lease

        return result_lease(Path(self.job.output.path) / self.job.name)

    def address(self) -> str | None:
        """See JobKind."""
        return self.job.launch.address

    def room_problems(self, address: str | None, nodes: CountNodes | None = None) -> list[str]:
        """See JobKind."""
        from convmlp_platform.launch.cluster import capacity
        from convmlp_platform.launch.one_worker import capacity_problems

        counted = (nodes or capacity.cluster_nodes)()
        return capacity_problems(self.job.launch, self.job.evaluate.precision, counted)

    def machine_lines(self, nodes: CountNodes) -> list[str]:
        """See JobKind."""
        from convmlp_platform.launch.cluster.capacity import slow_precision
        from convmlp_platform.launch.one_worker import takes_gpu

        counted = nodes()
        gpu = takes_gpu(self.job.launch, counted)
        return slow_precision("evaluate.precision", self.job.evaluate.precision, gpu, counted)


@dataclass
class EvaluationKind(_OneWorkerKind):
    """`kind: evaluate`."""

    job: EvaluateJob

    def preflight(self, *, deep: bool) -> PreflightReport:
        """See JobKind."""
        from convmlp_platform.evaluation.evaluation_preflight import preflight_evaluation

        return preflight_evaluation(self.job)

    def run(self, *, use_ray: bool) -> int:
        """See JobKind."""
        from convmlp_platform.jobs.evaluation_job import evaluate

        return evaluate(self.job, use_ray=use_ray, given=self.given)


@dataclass
class PromotionKind(_OneWorkerKind):
    """`kind: promote`."""

    job: PromoteJob

    def preflight(self, *, deep: bool) -> PreflightReport:
        """See JobKind."""
        from convmlp_platform.promotion.promotion_preflight import preflight_promotion

        return preflight_promotion(self.job)

    def run(self, *, use_ray: bool) -> int:
        """See JobKind."""
        from convmlp_platform.jobs.promotion_job import promote_model

        return promote_model(self.job, use_ray=use_ray)


@dataclass
class SweepKind(JobKind):
    """`kind: sweep`. Its trials, and so its folder and cluster, are known where none of them has a problem."""

    job: SweepJob
    plan: SweepPlan | None = None
    needs_ray = "a sweep needs Ray, which starts its trials"

    def preflight(self, *, deep: bool) -> PreflightReport:
        """See JobKind."""
        from convmlp_platform.sweep.sweep_plan import preflight_sweep

        report, self.plan = preflight_sweep(self.job, deep=deep)
        return report

    def lease(self) -> Lease | None:
        """See JobKind."""
        from convmlp_platform.runs.lease import run_lease

        return None if self.plan is None else run_lease(self.plan.folder)

    def address(self) -> str | None:
        """See JobKind."""
        return None if self.plan is None else self.plan.trials[0].trial.job.launch.address

    def room_problems(self, address: str | None, nodes: CountNodes | None = None) -> list[str]:
        """See JobKind."""
        from convmlp_platform.sweep.sweep_plan import room_problems

        return [] if self.plan is None else room_problems(self.plan, address, nodes and nodes())

    def run(self, *, use_ray: bool) -> int:
        """See JobKind."""
        from convmlp_platform.sweep.launch_sweep import launch_sweep

        assert self.plan is not None  # as `preflight` has found no problems
        return launch_sweep(self.plan)


KINDS: Mapping[str, Callable[[Any], JobKind]] = {
    "prepare": PreparationKind,
    "train": TrainingKind,
    "evaluate": EvaluationKind,
    "promote": PromotionKind,
    "sweep": SweepKind,
}
"""`kind` → what is done with such a job; the same names as `config.schema.JOB_KINDS`."""


def kind_of(job: Job) -> JobKind:
    """The job with all that can be asked of it."""
    return KINDS[job.kind](job)
