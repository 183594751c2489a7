"""Faults that must happen inside a training process, each while (or once) a file in the flags' folder says so.

FLAGS/nan-rank-1     the next loss of rank 1 is NaN, once
FLAGS/gil-rank-0     rank 0 blocks in C with Python's lock held, for ever
FLAGS/evaluation-rank-1     rank 1 is killed in its next evaluation, once
FLAGS/registration-rank-0   rank 0 is killed once its model is a version of the registry, before it has an alias
FLAGS/no-space       writes of checkpoints fail with ENOSPC while it is there
FLAGS/refused        files of checkpoints can't be created (EACCES) while it is there
FLAGS/pids/rank-R-of-start-S.PID   which process is which rank: the faults outside need to know
"""

from __future__ import annotations

import ctypes
import errno
import os
import signal
from pathlib import Path
from typing import Any

import torch

FLAGS = Path(os.environ.get("CONVMLP_ROOT", ".")) / "flags"
STAGED = ".staging-"


def install() -> None:
    """Patch this process, and those forked from it."""
    torch.nn.modules.module.register_module_forward_hook(_after_forward)
    # The checkpoints' folder writes by these two (tests/convmlp_platform/checkpoints stop it at each of them too).
    os.write, os.open = _failing_write(os.write), _failing_open(os.open)
    from convmlp_platform.registry import registry

    registry.log_bundle = _killed_after(registry.log_bundle)


def _after_forward(module: torch.nn.Module, _inputs: Any, output: Any) -> Any:
    """After each forward pass of the task (model and loss)."""
    if type(module).__name__ != "ClassificationTask":
        return None
    rank = os.environ.get("RANK", "0")
    if not module.training:
        if _claim(f"evaluation-rank-{rank}"):
            os.kill(os.getpid(), signal.SIGKILL)
        return None
    _tell(rank)
    if _claim(f"gil-rank-{rank}"):
        _block_with_the_gil()
    if _claim(f"nan-rank-{rank}"):
        loss, *rest = output
        return (loss * float("nan"), *rest)
    return None


_told: list[int] = []


def _tell(rank: str) -> None:
    if _told != [os.getpid()]:
        _told[:] = [os.getpid()]
        pids = FLAGS / "pids"
        pids.mkdir(parents=True, exist_ok=True)
        (pids / f"rank-{rank}-of-start-{os.environ.get('CONVMLP_START', '0')}.{os.getpid()}").touch()


def _claim(flag: str) -> bool:
    path = FLAGS / flag
    if not path.exists():
        return False
    path.rename(FLAGS / f"{flag}.done")
    return True


def _block_with_the_gil() -> None:
    """Lock a mutex twice: signals interrupt `sleep`, but not this; PyDLL keeps Python's lock meanwhile."""
    library, mutex = ctypes.PyDLL(None), ctypes.create_string_buffer(64)
    library.pthread_mutex_lock(mutex)
    library.pthread_mutex_lock(mutex)


def _killed_after(log_bundle: Any) -> Any:
    def killed(*args: Any, **named: Any) -> Any:
        version = log_bundle(*args, **named)
        if _claim(f"registration-rank-{os.environ.get('RANK', '0')}"):
            os.kill(os.getpid(), signal.SIGKILL)
        return version

    return killed


def _failing_write(write: Any) -> Any:
    def failing(descriptor: int, content: Any, /) -> int:
        full = (FLAGS / "no-space").exists() and STAGED in str(Path(f"/proc/self/fd/{descriptor}").readlink())
        if full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(descriptor, content)

    return failing


def _failing_open(open_: Any) -> Any:
    def failing(path: Any, flags: int, *rest: Any, **options: Any) -> int:
        creates = flags & os.O_CREAT and STAGED in os.fsdecode(path)
        if creates and (FLAGS / "refused").exists():
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), os.fsdecode(path))
        return open_(path, flags, *rest, **options)

    return failing
