"""A minimal torch loop under Ray Train's own defaults, for bench_restart.py: what one would write after its guide.

    RAY_ADDRESS=... python ray_train_loop.py FOLDER

Its ranks write what they do, and when, into FOLDER/log, one line of JSON an entry.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import ray
import ray.train
import ray.train.torch
from ray.train import FailureConfig, RunConfig, ScalingConfig, UserCallback
from ray.train.torch import TorchTrainer

SAVE_EVERY, BATCH, STEPS = 8, 32, 1_000_000


def note(folder: str, **fields: Any) -> None:
    """One line, in one write."""
    line = json.dumps({"time": time.time(), "pid": os.getpid()} | fields) + "\n"
    descriptor = os.open(f"{folder}/log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(descriptor, line.encode())
    os.close(descriptor)


class Detection(UserCallback):
    """Only writes down when Ray Train noticed."""

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def after_exception(self, run_context: Any, worker_exceptions: Any) -> None:
        note(self.folder, what="detected")


def train(config: dict[str, Any]) -> None:
    """The same model, batch and optimizer as jobs/pretrain_digits.yaml; images are made up, which costs less."""
    folder, rank = config["folder"], ray.train.get_context().get_world_rank()
    note(folder, what="entered", rank=rank)
    import torch

    from convmlp import create_model

    torch.manual_seed(0)
    model = ray.train.torch.prepare_model(create_model("convmlp_tiny", num_classes=10))
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.05)
    first = 0
    if checkpoint := ray.train.get_checkpoint():
        with checkpoint.as_directory() as local:
            state = torch.load(Path(local, "state.pt"), weights_only=True)
        model.module.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        first = state["step"]
    images, labels = torch.rand(BATCH, 3, 32, 32), torch.randint(10, (BATCH,))
    note(folder, what="loaded", rank=rank, step=first)
    for step in range(first, STEPS):
        loss = torch.nn.functional.cross_entropy(model(images), labels, label_smoothing=0.1)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        note(folder, what="step", rank=rank, step=step + 1)
        if (step + 1) % SAVE_EVERY:
            continue
        with tempfile.TemporaryDirectory() as local:
            own = None
            if rank == 0:
                state = {"model": model.module.state_dict(), "optimizer": optimizer.state_dict()}
                torch.save(state | {"step": step + 1}, Path(local, "state.pt"))
                own = ray.train.Checkpoint.from_directory(local)
            ray.train.report({"loss": loss.item()}, checkpoint=own)


def main() -> None:
    folder = sys.argv[1]
    note(folder, what="driver")
    env_vars = {name: os.environ[name] for name in ("PYTHONPATH", "OMP_NUM_THREADS") if name in os.environ}
    # Not a default: without it gloo takes an address that the other node can't reach, and no group forms.
    env_vars["GLOO_SOCKET_IFNAME"] = "lo"
    ray.init(log_to_driver=False, runtime_env={"env_vars": env_vars})
    TorchTrainer(
        train,
        train_loop_config={"folder": folder},
        scaling_config=ScalingConfig(num_workers=2, placement_strategy="SPREAD"),
        run_config=RunConfig(
            name="ray-train",
            storage_path=folder,
            failure_config=FailureConfig(max_failures=-1),
            callbacks=[Detection(folder)],
        ),
    ).fit()


if __name__ == "__main__":
    main()
