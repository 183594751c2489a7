"""All that can be known to be wrong with a training before it costs anything. Nothing is left behind on storage.
`preflight_preparation` has a preparation's. `jobs.run_job` adds what concerns drivers and clusters.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

from torch import nn

from convmlp_platform.checkpoints.stores.store import open_store
from convmlp_platform.config.schema import TrainJob
from convmlp_platform.errors import PlatformError
from convmlp_platform.runs.init_record import read_record
from convmlp_platform.runs.run_folder import RunFolder, check_owner, checkpoints_of, run_path, stored_identity
from convmlp_platform.training.build.build_task import task_mismatch
from convmlp_platform.training.build.initial_weights import check_kept, counted_weights, start_line
from convmlp_platform.training.preflight.advice import advice, recipe_line
from convmlp_platform.training.preflight.image_size import sides_refused, single_value, size_refused
from convmlp_platform.training.preflight.preparation_preflight import (
    PreflightReport,
    check_compiler,
    check_writable,
    make_checks,
)
from convmlp_platform.training.step_plan import StepPlan
from data_prep.console import memory_size
from data_prep.dataset.manifest import DatasetManifest
from data_prep.storage.urls import is_url, local_path


def preflight(job: TrainJob, *, deep: bool = False) -> PreflightReport:
    """Check a job whose paths are resolved against the machine it is started on; every check is made.

    Args:
        job: the job.
        deep: also make the checks that cost as much as the job's own start, which makes them itself: read the newest
            checkpoint.
    """
    report = PreflightReport()
    make_checks(_train_checks(job, report, deep), report)
    return report


def preflight_without_data(job: TrainJob) -> PreflightReport:
    """The checks of a job that need neither its dataset nor its storage: its model, memory and augmentation."""
    report = PreflightReport()

    def network() -> None:
        _check_model(job, None, report)

    make_checks((network, lambda: _check_augment(job, report)), report)
    return report


def _train_checks(job: TrainJob, report: PreflightReport, deep: bool) -> Iterator[Callable[[], None]]:
    from convmlp_platform.data.dataset.split import open_manifest

    manifest: DatasetManifest | None = None
    model: nn.Module | None = None

    def dataset() -> None:
        nonlocal manifest
        manifest = open_manifest(job.data.path, job.data.digest)
        _check_dataset(job, manifest, report)

    def network() -> None:
        nonlocal model
        model = _check_model(job, manifest, report)

    def sense() -> None:
        if manifest is not None:
            report.summary += advice(job, manifest, model)

    yield dataset
    yield network
    yield sense
    yield lambda: _check_start(job, manifest, model, report)
    yield lambda: _check_augment(job, report)
    if job.engine.compile:
        yield lambda: check_compiler("engine.compile", job.launch.use_gpu, report)
    yield lambda: check_writable(job.checkpoint.path, "checkpoint.path", report, job.name)
    if manifest is not None and not is_url(job.checkpoint.path):
        yield lambda: check_owner(job, manifest.digest, counted_weights(job))
    if not is_url(job.checkpoint.path):
        yield lambda: _check_begun(job, deep)
    yield lambda: _check_tracking(job, report)
    if job.callbacks:
        yield lambda: _check_callbacks(job, report)


def _check_dataset(job: TrainJob, manifest: DatasetManifest, report: PreflightReport) -> None:
    if (mismatch := task_mismatch(job, manifest)) is not None:
        report.problems.append(mismatch)
    elif (problem := sides_refused(job, manifest)) is not None:
        report.problems.append(problem)
    for name, split in (("data.train_split", job.data.train_split), ("data.eval_split", job.data.eval_split)):
        if (lack := manifest.lacks(split)) is not None:
            report.problems.append(f"{name}: the dataset at {job.data.path} {lack}")
            continue
        try:
            _check_shards(job, manifest, split, report)
        except PlatformError as error:
            if str(error) not in report.problems:
                report.problems.append(str(error))
    if job.data.train_split in manifest.splits:
        _check_size(job, manifest, report)


def _check_shards(job: TrainJob, manifest: DatasetManifest, split: str, report: PreflightReport) -> None:
    from convmlp_platform.data.dataset.split import ShardedSplit
    from convmlp_platform.data.storage.storage import check_remote_shards, shards_of

    if local_path(job.data.path) is None:
        report.problems += check_remote_shards(job.data.path, shards_of(manifest, split, job.data.format))
    else:
        ShardedSplit(str(local_path(job.data.path)), manifest, split, job.data.format).check_files()


def _check_size(job: TrainJob, manifest: DatasetManifest, report: PreflightReport) -> None:
    data, batch = job.data, job.training.global_batch_size
    count = manifest.splits[data.train_split].num_samples
    plan = StepPlan(job, count)
    if count < job.num_streams:
        report.problems.append(
            f"data.num_streams (={job.num_streams}) is more than the {count:,} images of split "
            f"{data.train_split!r}: set data.num_streams lower"
        )
    if not plan.total_steps:
        report.problems.append(
            f"{job.training.length}: {count:,} images don't fill one step of "
            f"training.global_batch_size (={batch})"
        )
    else:
        _check_schedule(plan, report)
        _check_profile(plan, report)
    held_out = manifest.splits.get(data.eval_split)
    also = f" + {held_out.num_samples:,} {data.eval_split}" if held_out else ""
    cut = ", cut by training.max_steps" if plan.stop_step < plan.total_steps else ""
    report.summary += [
        f"data     {manifest.name}: {count:,} {data.train_split}{also} images, "
        f"{manifest.num_classes:,} classes, {data.format}, {manifest.digest[:19]}…",
        f"steps    {plan.stop_step:,} of {batch:,} images each; an epoch is {plan.steps_per_epoch:,.1f} "
        f"steps, the schedule {plan.total_epochs:g} epochs{cut}",
        recipe_line(job),
    ]


def _check_profile(plan: StepPlan, report: PreflightReport) -> None:
    """Steps that a run has behind it are no problem, but a line: its own restarts begin after them, too."""
    section = plan.job.profile
    if section is None:
        return
    shown = f"profile.steps (={list(section.steps)})"
    if section.steps[1] > plan.stop_step:
        report.problems.append(
            f"{shown}: the run has {plan.stop_step:,} steps; lower it, or raise "
            + ("training.max_steps" if plan.stop_step < plan.total_steps else plan.job.training.length)
        )
        return
    if is_url(plan.job.checkpoint.path) or plan.job.checkpoint.store is not None:
        return
    if (newest := max(open_store(checkpoints_of(plan.job)).steps(), default=0)) >= section.steps[1]:
        report.summary.append(
            f"advice   {shown}: the run has {newest:,} steps behind it and goes on after them; nothing new is profiled"
        )


def _check_schedule(plan: StepPlan, report: PreflightReport) -> None:
    schedule = plan.job.schedule
    try:
        plan.lr(0)
    except ValueError:
        given = {
            "warmup_epochs": schedule.warmup_epochs,
            "warmup_steps": schedule.warmup_steps,
            "cooldown_epochs": schedule.cooldown_epochs,
        }
        parts = [f"schedule.{name} (={value:g})" for name, value in given.items() if value]
        report.problems.append(
            f"{' and '.join(parts)} {'take' if parts[1:] else 'takes'} more than the run's {plan.total_steps:,} whole "
            f"steps: lower {'them' if parts[1:] else 'it'}, or raise {plan.job.training.length}"
        )


def _check_model(
    job: TrainJob, manifest: DatasetManifest | None, report: PreflightReport
) -> nn.Module | None:
    """The model on "meta"; None where it can't be made, which is told."""
    from convmlp.optim import check_optimizer
    from convmlp_platform.training.build.build_task import optimizer_options
    from convmlp_platform.training.preflight.memory import build_on_meta, estimate_memory

    given = job.model.num_classes
    if manifest is not None and given not in (None, manifest.num_classes):
        report.problems.append(
            f"model.num_classes (={given}): the dataset at {job.data.path} has {manifest.num_classes} "
            "classes; leave model.num_classes out to use the dataset's"
        )
    known = given or (manifest.num_classes if manifest else None)
    try:
        model = build_on_meta(job, known or 1000)
        memory = estimate_memory(job, known or 1000, model)
    except (ValueError, RuntimeError, AssertionError) as error:
        told = f"model.name (={job.model.name}): {' '.join(str(error).split())}"
        report.problems.append(size_refused(job, known or 1000) or told)
        return None
    if (problem := single_value(job, known or 1000)) is not None:
        report.problems.append(problem)
    try:
        check_optimizer(**optimizer_options(job.optimizer))
    except ValueError as error:
        report.problems.append(f"optimizer: {error}")
    workers = job.launch.num_workers
    each = "the worker" if workers == 1 else f"each of {workers} workers"
    beside = ", without those of regions" if job.task.name == "mask_rcnn" else ""
    report.summary += [
        f"model    {job.model.name}: {memory.num_parameters:,} parameters"
        + ("" if known else " if there are 1,000 classes (the dataset would tell)"),
        f"memory   about {memory_size(memory.total)} on {each}: "
        f"{memory_size(memory.states)} for weights, gradients and optimizer (exact), "
        f"{memory_size(memory.activations)} for activations (estimated{beside})"
        + "".join(
            f", {memory_size(size)} for {what} (estimated)"
            for size, what in ((memory.passing, "what is gathered"), (memory.copies, "copies of weights"))
            if size
        ),
    ]
    return model


def _check_start(
    job: TrainJob, manifest: DatasetManifest | None, model: nn.Module | None, report: PreflightReport
) -> None:
    """Whether the weights to start from are there and fit; a run that has begun doesn't need them any more."""
    # Of many ranks under torchrun, one asks the registry.
    if job.model.init_from is None or is_url(job.checkpoint.path) or os.environ.get("RANK", "0") != "0":
        return
    if stored_identity(run_path(job)) is not None:
        record = read_record(run_path(job))
        if record is not None:
            report.summary.append(
                f"start    weights of {record.pinned}, kept in the run's folder when it began"
            )
        return
    if model is None:
        return  # told above
    report.summary.append(f"start    {start_line(job, model, manifest)}")


def _check_begun(job: TrainJob, deep: bool) -> None:
    """Whether a run that has begun can go on from what it has written."""
    from convmlp_platform.checkpoints.checkpointer import Checkpointer
    from convmlp_platform.training.guard.guard import Rollbacks

    begun = run_path(job).is_dir()
    if begun:
        Rollbacks.read(RunFolder(run_path(job), "").rollbacks)
    if not deep or not (begun or job.checkpoint.store):
        return
    Checkpointer(checkpoints_of(job)).newest()
    check_kept(job)


def _check_augment(job: TrainJob, report: PreflightReport) -> None:
    from convmlp.transforms.image_transforms import check_augmentation

    options = job.augment.model_dump(include={"crop", "pad", "rand_augment", "interpolation"})
    try:
        check_augmentation(job.data.image_size, **options)
    except ValueError as error:
        report.problems.append(f"augment: {error}")


def _check_tracking(job: TrainJob, report: PreflightReport) -> None:
    from convmlp_platform.tracking.mlflow.tracking_uri import check_tracking

    report.problems += check_tracking(job.tracking)
    report.summary.append(
        f"run      {job.checkpoint.path}/{job.name}; MLflow experiment {job.tracking.experiment}"
    )


def _check_callbacks(job: TrainJob, report: PreflightReport) -> None:
    from convmlp_platform.training.given_callbacks import callback_problems

    report.problems += callback_problems(job)
    report.summary.append(f"watched  by {', '.join(job.callbacks)}, on rank 0")
