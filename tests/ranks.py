"""Run a function on several real gloo ranks of this machine.

The ranks are forked from a server that has imported the engines: alone, each would take 5 s of a core for that.
"""

from __future__ import annotations

import multiprocessing
import os
import tempfile
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from undrawn import without_drawing
from unsent import without_replayer

PRELOADED = [
    "accelerate",
    "timm",
    "convmlp_platform.training.run",
    "convmlp_platform.training.build.parts",
    "convmlp_platform.engine.ddp",
    "convmlp_platform.engine.fsdp",
    "convmlp_platform.engine.deepspeed",
    "torch._inductor.compile_fx",
]


def run_ranks(function: Callable[..., Any], world_size: int, *args: Any) -> list[Any]:
    """`function(*args)` on ranks 0..world_size-1, one process each; returns their results in rank order.

    The function must be importable (module level). A failing rank fails the call with its traceback.
    """
    multiprocessing.set_forkserver_preload(PRELOADED)
    with tempfile.TemporaryDirectory() as folder:
        given = (world_size, folder, dict(os.environ), function, args)
        mp.start_processes(_rank, given, nprocs=world_size, join=True, start_method="forkserver")
        return [torch.load(Path(folder, f"result-{rank}"), weights_only=False) for rank in range(world_size)]


def _rank(
    rank: int,
    world_size: int,
    folder: str,
    environment: dict[str, str],
    function: Callable[..., Any],
    args: tuple[Any, ...],
) -> None:
    os.environ.clear()  # of the server: what it was when the first ranks were asked for
    os.environ.update(environment)
    os.environ.update(
        RANK=str(rank), WORLD_SIZE=str(world_size), LOCAL_RANK=str(rank), MASTER_ADDR="127.0.0.1"
    )
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/store",
        rank=rank,
        world_size=world_size,
        timeout=timedelta(seconds=120),
    )
    try:
        with without_replayer(), without_drawing():
            torch.save(function(*args), Path(folder, f"result-{rank}"))
    finally:
        dist.destroy_process_group()
