"""Save a checkpoint as a run does, and see it committed."""

from __future__ import annotations

import time

from convmlp_platform.checkpoints.async_checkpointer import AsyncCheckpointer
from convmlp_platform.checkpoints.checkpointer import Checkpoint, Checkpointer


def save_now(checkpointer: Checkpointer, checkpoint: Checkpoint) -> str:
    """Save in the background and wait for it; the checkpoint's location.

    Raises:
        CheckpointError: the storage refused the first try.
    """
    saver = AsyncCheckpointer(checkpointer)
    saver.save(checkpoint)
    while saver.state in ("writing", "waiting"):
        time.sleep(0.001)
    location = saver.close(timeout=0.0)
    assert location is not None
    return location
