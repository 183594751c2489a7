"""The modules that the fork server imports, so that a start of training need not.

They are all modules that a run imports, also those that it imports later.
"""

from __future__ import annotations

from convmlp_platform.config.schema import TrainJob

_ALWAYS = (
    "convmlp.tasks.classification",
    "convmlp.transforms.image_transforms",
    "convmlp_platform.checkpoints.stores.local_store",
    "convmlp_platform.report.page",
    "convmlp_platform.training.outputs.curves",
    "matplotlib.backends.backend_agg",
    "PIL.JpegImagePlugin",
    "PIL.PngImagePlugin",
    "timm.data",
    "timm.optim",
    "torchmetrics",
)
_STRATEGIES = {
    "ddp": ("convmlp_platform.engine.ddp", "torch.distributed.algorithms.ddp_comm_hooks"),
    "fsdp": ("convmlp_platform.engine.fsdp",),
    "deepspeed": (
        "convmlp_platform.engine.deepspeed",
        "torch._inductor.compile_fx",
    ),
}
# What a fork becomes; see `fork_server`.
_ENTRY = "convmlp_platform.launch.workers.training_process"


def modules_for(job: TrainJob) -> list[str]:
    """Their names; the last one's `main` is what a training process does."""
    return [*_STRATEGIES[job.engine.strategy], *_ALWAYS, _ENTRY]
