"""An agent's hold on the fork server of its node, which the first agent of a run starts; and the modules that the
server imports, so that a start of training need not.

They are the modules that a run of a job imports before its end; pictures are rank 0's alone, which imports matplotlib
(1 s of CPU) for them.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path

from convmlp_platform.config.schema import TrainJob
from convmlp_platform.launch.workers.process_files import held_folder, memory_folder

SERVER_PREFIX = "convmlp-forks-"
_SOCKET = "socket"

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


class ForkServerLink:
    """A connection to the server of the agents that share `key`: the run's on one node.

    Args:
        key: part of a file's name.
        modules: what the server imports; see `fork_server.main`.
        outputs: the writing ends of pipes for what this agent's processes print, stdout's first; also for what the
            server prints if this agent starts it.
        folder: the agent's; the server removes it after the agent, however that ended.
    """

    def __init__(self, key: str, modules: Sequence[str], outputs: tuple[int, int], folder: Path) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        _remove_left()
        place = memory_folder() / f"{SERVER_PREFIX}{key}"
        with held_folder(place):
            knocking = _connected(place / _SOCKET) or self._start(place, modules, outputs)
        socket.send_fds(knocking, [b"p"], outputs)
        self.channel = Connection(knocking.detach())
        brought = {"environment": dict(os.environ), "folder": str(folder)}
        with contextlib.suppress(OSError):  # a server that is gone tells by its end
            self.channel.send_bytes(json.dumps(brought).encode())

    def exit_code(self, timeout: float) -> int | None:
        """Of a server that this agent has started and that has ended; else None."""
        if self._process is None:
            return None
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self._process.wait(timeout)
        return None

    def _start(self, place: Path, modules: Sequence[str], outputs: tuple[int, int]) -> socket.socket:
        path = place / _SOCKET
        path.unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
            listener.listen(256)
            command = [sys.executable, "-m", "convmlp_platform.launch.workers.fork_server"]
            self._process = subprocess.Popen(
                [*command, str(listener.fileno()), str(place), *modules],
                # NVML says whether there are GPUs without starting CUDA, which doesn't survive a fork.
                env=os.environ | {"PYTORCH_NVML_BASED_CUDA_CHECK": "1", "PYTHONUNBUFFERED": "1"},
                stdin=subprocess.DEVNULL,
                stdout=outputs[0],
                stderr=outputs[1],
                pass_fds=[listener.fileno()],
                start_new_session=True,
            )
        connected = _connected(path)
        assert connected is not None, "the server holds the listening socket"
        return connected


def _connected(path: Path) -> socket.socket | None:
    """A connection to who listens there, None if nobody does."""
    one = socket.socket(socket.AF_UNIX)
    try:
        one.connect(str(path))
    except OSError:
        one.close()
        return None
    return one


def _remove_left() -> None:
    """Remove the folders of servers that were killed."""
    for left in memory_folder().glob(f"{SERVER_PREFIX}*"):
        with contextlib.suppress(OSError), held_folder(left, wait=False):
            if (found := _connected(left / _SOCKET)) is None:
                shutil.rmtree(left, ignore_errors=True)
            else:
                found.close()
