"""Every strategy in every precision on one job: the same loss curve, before and after a resume.

    python tests/bench/compare_strategies.py IMAGES [--job jobs/pretrain_convmlp.yaml] [--steps 12]

IMAGES is a folder of <class>/<image> files. Starts a Ray cluster of two nodes on this machine, prepares the images,
and submits the job as a user would for each strategy, twice: up to half of the steps, then to the end from the
checkpoint. Prints a table for docs/benchmarks.md; exits with 1 where a curve leaves its tolerance.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from convmlp_platform.launch.cluster.local_cluster import LocalCluster
from convmlp_platform.tracking.delivery_state import journal_path
from convmlp_platform.tracking.journal import metric_history

STRATEGIES = {
    "ddp": [],
    "fsdp": ["engine.strategy=fsdp"],
    **{f"ZeRO-{n}": ["engine.strategy=deepspeed", f"engine.zero_stage={n}"] for n in (1, 2, 3)},
}
# Largest relative difference from ddp's curve in the same precision. bf16 rounds sums in another order to three digits.
TOLERANCE = {"fp32": 1e-4, "bf16": 5e-3}
SETTINGS = [
    "data.path=data/images", "data.image_size=96", "data.num_workers=0",
    "training.global_batch_size=32", "training.micro_batch_size=8", "training.log_every_steps=1",
    "training.ema_decay=0.9", "schedule.warmup_epochs=0.5", "training.epochs=3", "schedule.cooldown_epochs=0",
    "tracking.register_as=null", "launch.num_workers=2", "launch.use_gpu=false", "launch.cpus_per_worker=1",
    "launch.placement=SPREAD",
]  # fmt: skip


def submit(cluster: LocalCluster, job: str, settings: list[str]) -> float:
    """Run a job by `ray job submit`; returns its seconds."""
    arguments = [word for setting in settings for word in ("--set", setting)]
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "ray.scripts.scripts", "job", "submit", "--", job, *arguments],
        env=cluster.env, cwd=cluster.directory, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    if done.returncode:
        sys.exit(f"{job} {' '.join(settings)} failed:\n{done.stdout[-4000:]}")
    return time.monotonic() - started


def losses(run: Path) -> list[float]:
    """Training losses of a run, by step."""
    return [m["train/loss"] for _, m in metric_history(journal_path(run)) if "train/loss" in m]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("images", type=Path)
    parser.add_argument("--job", default="jobs/pretrain_convmlp.yaml")
    parser.add_argument("--steps", type=int, default=12)
    arguments = parser.parse_args()
    missed = False
    print(
        "| precision | strategy | first loss | loss at resume | last loss | off ddp's curve | tolerance | seconds |"
    )
    print("|---|---|---:|---:|---:|---:|---:|---:|", flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        environment = {**os.environ, "CONVMLP_ROOT": scratch, "OMP_NUM_THREADS": "1"}
        with LocalCluster(num_nodes=2, cpus_per_node=1, environment=environment) as cluster:
            source = [
                f"source.path={arguments.images.absolute()}",
                "source.splits=null",
                "source.val_fraction=0.1",
            ]
            submit(cluster, "jobs/prep_imagenet.yaml", [*source, "output.path=data/images", "name=images"])
            for precision, tolerance in TOLERANCE.items():
                reference: list[float] = []
                for name, chosen in STRATEGIES.items():
                    run = f"{precision}-{name.lower()}"
                    settings = [*SETTINGS, *chosen, f"engine.precision={precision}", f"name={run}"]
                    half = arguments.steps // 2
                    seconds = submit(cluster, arguments.job, [*settings, f"training.max_steps={half}"])
                    seconds += submit(
                        cluster, arguments.job, [*settings, f"training.max_steps={arguments.steps}"]
                    )
                    curve = losses(Path(scratch, "runs", run))
                    assert len(curve) == arguments.steps, curve
                    reference = reference or curve
                    off = max(abs(a - b) / b for a, b in zip(curve, reference, strict=True))
                    missed |= off > tolerance
                    print(
                        f"| {precision} | {name} | {curve[0]:.4f} | {curve[half]:.4f} | {curve[-1]:.4f} "
                        f"| {off:.1e} | {tolerance:.0e} | {seconds:.0f} |",
                        flush=True,
                    )
    sys.exit(1 if missed else 0)


if __name__ == "__main__":
    main()
