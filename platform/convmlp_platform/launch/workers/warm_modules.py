"""The modules that the fork server imports, so that a start of training need not.

They are the modules that a run of this job imports before its end; pictures are rank 0's alone, which imports
matplotlib (1 s of CPU) for them.
"""

from __future__ import annotations

from convmlp_platform.config.schema import TrainJob

_ALWAYS = (
    "convmlp.transforms.image_transforms",
    "convmlp_platform.checkpoints.stores.local_store",
    "convmlp_platform.pictures.charts",
    "convmlp_platform.report.page",
    "convmlp_platform.training.outputs.curves",
    "PIL.JpegImagePlugin",
    "PIL.PngImagePlugin",
    "torch._dynamo",  # torch.optim and DDP import it as they are used, 2 s of CPU
)
_TASKS = {
    "classification": ("convmlp.tasks.classification",),
    "detection": ("convmlp.tasks.heads", "convmlp.tasks.detection"),
    "segmentation": ("convmlp.tasks.heads", "convmlp.tasks.segmentation"),
}
_STRATEGIES = {
    "ddp": ("convmlp_platform.engine.ddp", "torch.distributed.algorithms.ddp_comm_hooks"),
    "fsdp": ("convmlp_platform.engine.fsdp",),
    "deepspeed": (
        "convmlp_platform.engine.deepspeed",
        "torch._inductor.compile_fx",
    ),
}
# By name, for the driver imports no torch. All other networks are made of timm's parts (1 s of CPU).
WITHOUT_TIMM = ("convmlp", "cyclemlp", "cycle_mlp", "pure_mlp")
# What a fork becomes; see `fork_server`.
_ENTRY = "convmlp_platform.launch.workers.training_process"


def modules_for(job: TrainJob) -> list[str]:
    """Their names; the last one's `main` is what a training process does."""
    augment = job.augment
    augments = augment.mixes or augment.random_erasing or augment.rand_augment
    with_timm = augments or not job.model.name.startswith(WITHOUT_TIMM)
    return [
        *_STRATEGIES[job.engine.strategy],
        *_TASKS[job.task.dataset],
        *_ALWAYS,
        *(("timm.data",) if with_timm else ()),
        _ENTRY,
    ]
