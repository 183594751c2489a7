"""Test workers that have their imports from the start: they are forked from one process, as ranks are (`ranks.py`).

Each of them would take 15 s of a core to import what the tests import. xdist starts a worker as `python -u -c CODE`;
here it starts this file instead, which hands CODE, its input and its output to a process that has imported all, and
stays until the worker forked there has ended. No worker outlives the process that it was forked from.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

# What tests import at their head, and what trains in their process.
IMPORTED = (
    "torch", "torchvision", "torchmetrics", "timm", "accelerate", "mlflow.pyfunc", "ray", "scipy.stats",
    "sklearn.datasets", "matplotlib.pyplot", "pandas", "convmlp_platform.training.run",
    "convmlp_platform.training.build.parts", "convmlp_platform.engine.ddp", "convmlp_platform.engine.fsdp",
)  # fmt: skip
_SIGNAL_AT_PARENTS_DEATH = 1  # PR_SET_PDEATHSIG
_SOURCE = """
import sys
sys.path.insert(0, sys.argv[1])
from forked_workers import serve
code = serve(int(sys.argv[2]))
sys.path.remove(sys.argv[1])
sys.argv = ["-c"]
exec(code)
"""


def start_source() -> tuple[str, Callable[[], None]]:
    """Start the process that workers are forked from.

    Returns:
        the command that is a worker, and a function that ends the process.
    """
    folder = tempfile.TemporaryDirectory(prefix="convmlp-test-")
    address = f"{folder.name}/workers"
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen()
    command = [sys.executable, "-c", _SOURCE, str(Path(__file__).parent), str(listener.fileno())]
    source = subprocess.Popen(command, stdin=subprocess.PIPE, pass_fds=[listener.fileno()])
    listener.close()

    def end() -> None:
        source.communicate()
        folder.cleanup()

    return f"{sys.executable} -IS {__file__} {address}", end


def serve(listening: int) -> str:
    """Fork a worker for each that asks, until standard input ends. Returns in the workers: the code to run."""
    for name in IMPORTED:
        with suppress(ImportError):
            importlib.import_module(name)
    gc.collect()
    gc.freeze()  # no collection in a worker goes through all that was imported
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the workers
    with socket.socket(fileno=listening) as listener:
        while select.select([listener, 0], [], [])[0] != [0]:
            link, _ = listener.accept()
            code, given, *_ = socket.recv_fds(link, 1 << 16, 3)
            if os.fork() == 0:
                break
            for one in (link.detach(), *given):
                os.close(one)
        else:
            os._exit(0)
    ctypes.CDLL(None).prctl(_SIGNAL_AT_PARENTS_DEATH, signal.SIGKILL)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for place, one in enumerate(given):
        os.dup2(one, place)
        os.close(one)
    link.detach()  # closed by the worker's end, however it comes
    return code.decode()


if __name__ == "__main__":
    with socket.socket(socket.AF_UNIX) as link:
        link.connect(sys.argv[1])
        socket.send_fds(link, [sys.argv[-1].encode()], [0, 1, 2])
        link.recv(1)
