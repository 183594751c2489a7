"""An evaluation seen as the evaluation of a training job, so that both build the same network, read the same images
and compute the same figures."""

from __future__ import annotations

from convmlp_platform.config.evaluate import EvaluateJob
from convmlp_platform.config.recipe import AugmentSection, EvalSection, OptimizerSection, TrainingSection
from convmlp_platform.config.schema import TrainJob
from convmlp_platform.config.sections import DataSection, EngineSection, LaunchSection, ModelSection
from convmlp_platform.evaluation.subject import PERMUTED, Subject


def as_training(job: EvaluateJob, subject: Subject) -> TrainJob:
    """A training job whose held-out images and model are those of `job`. It is never trained."""
    data, wanted = job.data, job.evaluate
    return TrainJob(
        kind="train",
        name=job.name,
        task=subject.task,
        model=ModelSection(name=subject.name, num_classes=subject.num_classes, options=subject.options),
        data=DataSection(
            path=data.path,
            format=data.format,
            digest=data.digest,
            train_split=data.split,
            eval_split=data.split,
            image_size=subject.image_size,
            mean=subject.mean,
            std=subject.std,
            num_workers=data.num_workers,
            verify=data.verify,
            cache_dir=data.cache_dir,
            cache_bytes=data.cache_bytes,
        ),
        augment=AugmentSection.model_validate(subject.augment.model_dump(include=PERMUTED)),
        eval=EvalSection(
            batch_size=wanted.batch_size, crop_pct=subject.crop_pct, interpolation=subject.interpolation
        ),
        optimizer=OptimizerSection(name="sgd", lr=1.0),  # the engine wants one; it never steps
        training=TrainingSection(
            epochs=1, global_batch_size=wanted.batch_size, micro_batch_size=wanted.batch_size
        ),
        engine=EngineSection(
            precision=wanted.precision, compile=wanted.compile, channels_last=wanted.channels_last
        ),
        launch=LaunchSection(address=job.launch.address, use_gpu=job.launch.use_gpu),
    )
