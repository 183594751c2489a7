"""An agent's hold on the fork server of its node, which the first agent of a run starts; and the modules that the
server imports, so that a start of training need not.

They are the modules that a run of a job imports before its end; pictures are rank 0's alone, which imports matplotlib
(1 s of CPU) for them.
"""

from __future__ import annotations

import contextlib
import hashlib
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
_LONGEST_PARENT = 50

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
        key: part of a file's name; agents of another user, interpreter or code have another server all the same.
        modules: what the server imports; see `fork_server.main`.
        outputs: the writing ends of pipes for what this agent's processes print, stdout's first; also for what the
            server prints if this agent starts it.
        folder: the agent's; the server removes it after the agent, however that ended.
        environment: of what is forked for this agent, and of the server if this agent starts it.
    """

    def __init__(
        self,
        key: str,
        modules: Sequence[str],
        outputs: tuple[int, int],
        folder: Path,
        environment: dict[str, str],
    ) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        _remove_left()
        self._place = place_of(key)
        with held_folder(self._place):
            knocking = _connected(self._place / _SOCKET) or self._start(modules, outputs, environment)
        socket.send_fds(knocking, [b"p"], outputs)
        self.channel = Connection(knocking.detach())
        brought = {"environment": environment, "folder": str(folder)}
        with contextlib.suppress(OSError):  # a server that is gone tells by its end
            self.channel.send_bytes(json.dumps(brought).encode())

    def move(self, key: str) -> None:
        """Be found under another key from now on."""
        place = place_of(key)
        with (
            held_folder(self._place),
            contextlib.suppress(OSError),
        ):  # an agent was faster: there are two servers
            self._place.rename(place)
            self.channel.send_bytes(json.dumps({"moved": str(place)}).encode())
            self._place = place

    def exit_code(self, timeout: float) -> int | None:
        """Of a server that this agent has started and that has ended; else None."""
        if self._process is None:
            return None
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self._process.wait(timeout)
        return None

    def _start(
        self, modules: Sequence[str], outputs: tuple[int, int], environment: dict[str, str]
    ) -> socket.socket:
        path = self._place / _SOCKET
        path.unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
            listener.listen(256)
            command = [sys.executable, "-m", "convmlp_platform.launch.workers.fork_server"]
            self._process = subprocess.Popen(
                [*command, str(listener.fileno()), str(self._place), *modules],
                # NVML says whether there are GPUs without starting CUDA, which doesn't survive a fork.
                env=environment | {"PYTORCH_NVML_BASED_CUDA_CHECK": "1", "PYTHONUNBUFFERED": "1"},
                stdin=subprocess.DEVNULL,
                stdout=outputs[0],
                stderr=outputs[1],
                pass_fds=[listener.fileno()],
                start_new_session=True,
            )
        connected = _connected(path)
        assert connected is not None, "the server holds the listening socket"
        return connected


def place_of(key: str) -> Path:
    """Returns the folder of the server that agents with this key, user, interpreter and code share.

    A socket's path may have 107 characters at most: the key is hashed, and a long TMPDIR gives way to /tmp.
    """
    of = json.dumps([key, os.getuid(), sys.executable, str(Path(__file__).resolve())])
    return _parent() / f"{SERVER_PREFIX}{hashlib.sha256(of.encode()).hexdigest()[:24]}"


def _parent() -> Path:
    parent = memory_folder()
    return parent if len(str(parent)) <= _LONGEST_PARENT else Path("/tmp")


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
    for left in _parent().glob(f"{SERVER_PREFIX}*"):
        with contextlib.suppress(OSError), held_folder(left, wait=False):
            if (found := _connected(left / _SOCKET)) is None:
                shutil.rmtree(left, ignore_errors=True)
            else:
                found.close()
