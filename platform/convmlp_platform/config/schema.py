"""The job file, by its `kind`: prepare, train, evaluate, sweep. Each option of the platform is here or in the sections'
files."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, model_validator

from convmlp_platform.config import paths
from convmlp_platform.config.evaluate_job import EvaluateJob
from convmlp_platform.config.promote_job import PromoteJob
from convmlp_platform.config.sections.execution import (
    CPU_PRECISIONS,
    CheckpointSection,
    DataSection,
    EngineSection,
    LaunchSection,
    ModelSection,
    ProfileSection,
    TrackingSection,
    TrackingTarget,
)
from convmlp_platform.config.sections.recipe import (
    AugmentSection,
    EvalSection,
    LossSection,
    OptimizerSection,
    ScheduleSection,
    TrainingSection,
)
from convmlp_platform.config.sections.resilience import GuardSection
from convmlp_platform.config.sections.section import ClassPath, Name, Section
from convmlp_platform.config.sections.task_section import TaskSection
from convmlp_platform.config.sweep_job import SweepJob
from data_prep.config import DigitsSource, PrepareConfig


class PrepareLaunchSection(Section):
    """On what a preparation runs."""

    address: str = Field(
        "auto", description="auto: the cluster of RAY_ADDRESS, else a local Ray; local; or host:port"
    )


class PrepareJob(PrepareConfig):
    """Turn a source into verified shards: data_prep's own options, a name, and where to run."""

    kind: Literal["prepare"]
    name: Name
    tracking: TrackingTarget = TrackingTarget()
    launch: PrepareLaunchSection = PrepareLaunchSection()

    @property
    def preparation(self) -> PrepareConfig:
        """The part of the job that data_prep needs."""
        return PrepareConfig(**{field: getattr(self, field) for field in PrepareConfig.model_fields})

    def resolved(self) -> PrepareJob:
        """The job with every local path absolute, from CONVMLP_ROOT or the current folder (`config.paths`).

        Raises:
            ConfigError: a relative path would be lost with Ray's copy of the code, or it is a URL.
        """
        path = paths.resolve_folder(self.output.path, "output.path")
        output = self.output.model_copy(update={"path": path})
        if isinstance(self.source, DigitsSource):
            return self.model_copy(update={"output": output})
        path = paths.resolve_folder(self.source.path, "source.path")
        source = self.source.model_copy(update={"path": path})
        return self.model_copy(update={"source": source, "output": output})


class TrainJob(Section):
    """Train a model on a prepared dataset."""

    kind: Literal["train"]
    name: Name = Field(description="the run's name; starting it again resumes it")
    seed: int = Field(0, ge=0)
    task: TaskSection = TaskSection()
    model: ModelSection
    data: DataSection
    augment: AugmentSection = AugmentSection()
    eval: EvalSection = EvalSection()
    loss: LossSection = LossSection()
    optimizer: OptimizerSection
    schedule: ScheduleSection = ScheduleSection()
    training: TrainingSection
    engine: EngineSection = EngineSection()
    guard: GuardSection = GuardSection()
    checkpoint: CheckpointSection = CheckpointSection()
    tracking: TrackingSection = TrackingSection()
    callbacks: tuple[ClassPath, ...] = Field(
        (),
        description="package.module:Class, each a training.callbacks.Callback, made on rank 0 (docs/tracking.md)",
    )
    launch: LaunchSection = LaunchSection()
    profile: ProfileSection | None = Field(
        None, description="record some steps operator by operator: {steps: [10, 20]}"
    )

    def given_values(self) -> dict[str, Any]:
        """What has been set, as JSON for `TrainJob.model_validate` in another process."""
        return self.model_dump(mode="json", exclude_unset=True) | {"kind": "train"}

    @property
    def num_streams(self) -> int:
        """Canonical streams of the sample order (P in docs/decisions/0003)."""
        return self.data.num_streams or self.training.num_micro_batches

    def resolved(self) -> TrainJob:
        """The job with every local path absolute, from CONVMLP_ROOT or the current folder (`config.paths`).

        Raises:
            ConfigError: a relative path would be lost with Ray's copy of the code.
        """
        model, data, checkpoint = self.model, self.data, self.checkpoint
        if model.init_from is not None:
            start = paths.resolve_model(model.init_from, "model.init_from")
            model = model.model_copy(update={"init_from": start})
        data = data.model_copy(update={"path": paths.resolve(data.path, "data.path")})
        places = {"path": paths.resolve(checkpoint.path, "checkpoint.path")}
        if checkpoint.store is not None:
            places["store"] = paths.resolve(checkpoint.store, "checkpoint.store")
        checkpoint = checkpoint.model_copy(update=places)
        return self.model_copy(update={"model": model, "data": data, "checkpoint": checkpoint})

    @model_validator(mode="after")
    def _combinations(self) -> TrainJob:
        problems = list(_combination_problems(self))
        if problems:
            raise ValueError("\n".join(problems))
        return self


def _combination_problems(job: TrainJob) -> list[str]:
    training, problems = job.training, []
    if job.augment.mixes and training.micro_batch_size % 2:
        problems.append(
            f"training.micro_batch_size (={training.micro_batch_size}) must be even: mixup and cutmix "
            "pair the images of a micro-batch (or set augment.mixup and augment.cutmix to 0)"
        )
    if training.global_batch_size % job.num_streams:
        problems.append(
            f"data.num_streams (={job.num_streams}) must divide "
            f"training.global_batch_size (={training.global_batch_size})"
        )
    if (job.launch.min_workers or 0) > job.launch.num_workers:
        problems.append(
            f"launch.min_workers (={job.launch.min_workers}) is more than "
            f"launch.num_workers (={job.launch.num_workers})"
        )
    if job.launch.num_workers > training.num_micro_batches:
        problems.append(
            f"launch.num_workers (={job.launch.num_workers}) is more than the {training.num_micro_batches} "
            f"micro-batches of a step: raise training.global_batch_size (={training.global_batch_size}) "
            f"or lower training.micro_batch_size (={training.micro_batch_size})"
        )
    schedule = job.schedule
    for name, warmup, span in (
        ("epochs", schedule.warmup_epochs, training.epochs),
        ("steps", schedule.warmup_steps, training.steps),
    ):
        if span is not None and warmup > span:
            problems.append(
                f"schedule.warmup_{name} (={warmup:g}) is longer than training.{name} (={span:g})"
            )
    augment = job.augment
    if augment.permute != "none" and job.task.name != "classification":
        problems.append(
            f"augment.permute (={augment.permute}) is for task.name: classification, not {job.task.name}"
        )
    if augment.permute == "patches" and job.data.image_size % augment.permute_patch:
        problems.append(
            f"augment.permute_patch (={augment.permute_patch}) must divide data.image_size (={job.data.image_size})"
        )
    if job.engine.precision == "fp16" and job.launch.use_gpu is False:
        problems.append(f"engine.precision: fp16 needs GPUs, but launch.use_gpu is false: {CPU_PRECISIONS}")
    return problems


Job = PrepareJob | TrainJob | SweepJob | EvaluateJob | PromoteJob
JOB_KINDS: dict[
    str, type[PrepareJob] | type[TrainJob] | type[EvaluateJob] | type[PromoteJob] | type[SweepJob]
] = {
    "prepare": PrepareJob,
    "train": TrainJob,
    "evaluate": EvaluateJob,
    "promote": PromoteJob,
    "sweep": SweepJob,
}
"""`kind` → the class of its jobs. What is done with them: `jobs.kinds`."""
JOB_ADAPTER: TypeAdapter[Job] = TypeAdapter(Annotated[Job, Field(discriminator="kind")])
