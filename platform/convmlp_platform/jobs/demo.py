"""`convmlp demo`, `make demo`: the platform's whole path on this machine, in minutes.

Real handwritten digits become verified shards, a tiny ConvMLP is trained on them by two workers on two Ray
nodes, its best model is registered, looked up under its alias and asked about an image. All steps are
commands that a user would type; all they write lies in ./demo-output.

One held-out digit of the demo's dataset, as a file and as a picture for the terminal.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from convmlp_platform.errors import DataError, LaunchError
from convmlp_platform.launch.cluster.local_cluster import LocalCluster
from data_prep import console

_IMAGES = (".png", ".jpg", ".jpeg")
_SHADES = " .:-=+*#%@"


def save_held_out_digit(dataset: Path, target: Path, split: str = "val") -> str:
    """Copy the first image of a WebDataset split to `target`, byte for byte; returns its class."""
    shards = sorted((dataset / "webdataset").glob(f"{split}*.tar"))
    if not shards:
        raise DataError(f"{dataset}: no WebDataset shards of split {split}")
    with tarfile.open(shards[0]) as tar:
        members = {Path(member.name).suffix: member for member in reversed(tar.getmembers())}
        image = next(members[suffix] for suffix in _IMAGES if suffix in members)
        target.write_bytes(_content(tar, image))
        return _content(tar, members[".cls"]).decode().strip()


def ascii_art(path: Path, columns: int = 16, rows: int = 8) -> str:
    """The image as `rows` lines of `columns` shades; characters are twice as high as wide."""
    gray = (
        Image.open(path, formats=["PNG", "JPEG"]).convert("L").resize((columns, rows), Image.Resampling.BOX)
    )
    levels = np.asarray(gray, dtype=np.int64) * (len(_SHADES) - 1) // 255  # [rows, columns]
    return "\n".join("    " + "".join(_SHADES[level] for level in row) for row in levels)


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(member)
    if file is None:
        raise DataError(f"{tar.name!s}: {member.name} is not a file")
    return file.read()


OUTPUT = "demo-output"
MODEL_URI = "models:/convmlp-digits@champion"
REQUIRED_TOP1 = 98.5
PREPARE, TRAIN = "jobs/prep_digits.yaml", "jobs/pretrain_digits.yaml"

# What the demo writes, and so may remove; a folder that holds anything else isn't ours to empty.
_OURS = {"data", "runs", "mlartifacts", "digit.png"}
# `ray job submit` explains itself around the job's own lines.
_CHATTER = re.compile(r"(cli|job_manager|sdk)\.py:\d+ -- |^Running entrypoint for job ")


def main(keep: bool = False) -> int:
    """Run the demo in the current directory, the root of the repository; returns the exit code.

    With `keep`, the Ray cluster stays up until Ctrl-C, to look at its dashboard. Raises LaunchError where a
    step fails or the model is worse than it must be.
    """
    here = Path.cwd()
    if not (here / PREPARE).is_file():
        raise LaunchError(f"{here} has no {PREPARE}: start the demo in the root of the repository")
    started = time.monotonic()
    output = _emptied(here / OUTPUT)
    environment = _environment(output)
    _say("Starting Ray: two nodes on this machine, each with one CPU, as two machines would be", started)
    with LocalCluster(num_nodes=2, cpus_per_node=1, directory=here, environment=environment) as cluster:
        _run_steps(cluster, output, started)
        took = console.duration(time.monotonic() - started)
        console.say(f"\nDone in {took}. {_where_to_look(cluster, output, keep)}")
        if keep:
            _until_interrupted()
    return 0


def _run_steps(cluster: LocalCluster, output: Path, started: float) -> None:
    data = output / "data" / "digits"
    _say(
        "Preparing 1,797 real handwritten digits as WebDataset and FFCV shards, one Ray task a shard", started
    )
    _submit(cluster, [PREPARE])
    _say("Verifying: every byte of every shard against the checksums in the manifest", started)
    _step(["convmlp", "data", "verify", os.path.relpath(data)], cluster)
    _say("Training ConvMLP: two workers, one on each node, gradients averaged between them", started)
    lines = _submit(cluster, [TRAIN])
    top1 = _top1(lines)
    if top1 < REQUIRED_TOP1:
        raise LaunchError(
            f"the model reached top-1 {top1:.2f} % on the held-out digits; the demo wants {REQUIRED_TOP1} %"
        )
    _say(
        f"Top-1 {top1:.2f} % on the held-out fifth. Looking up {MODEL_URI} for a digit it hasn't seen",
        started,
    )
    picture = output / "digit.png"
    label = save_held_out_digit(data, picture)
    console.say(ascii_art(picture))
    _step(["convmlp", "predict", MODEL_URI, os.path.relpath(picture)], cluster)
    console.say(f"  (its label says {label})")


def _submit(cluster: LocalCluster, arguments: Sequence[str]) -> list[str]:
    return _step(["ray", "job", "submit", "--", *arguments], cluster)


def _step(command: Sequence[str], cluster: LocalCluster) -> list[str]:
    """Run a command as a user would, its output passing through; returns the lines. Raises LaunchError if it
    fails.
    """
    console.say(f"$ {' '.join(command)}")
    module = {"convmlp": "convmlp_platform", "ray": "ray.scripts.scripts"}[command[0]]
    program = [sys.executable, "-m", module, *command[1:]]
    lines = []
    process = subprocess.Popen(
        program, env=cluster.env, cwd=cluster.directory, text=True, errors="replace",
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if line.strip() and not _CHATTER.search(line):
                lines.append(line.rstrip())
                console.say(f"  {lines[-1]}")
        code = process.wait()
    except BaseException:
        process.terminate()
        process.wait()
        raise
    if code:
        raise LaunchError(f"the demo's step `{' '.join(command)}` failed with exit code {code}; see above")
    return lines


def _top1(lines: Sequence[str]) -> float:
    """The best evaluation's top-1 from the summary that `launch.run_summary` prints, per cent."""
    found = [match[1] for line in lines if (match := re.search(r"best evaluation:.*\btop1 ([\d.]+) %", line))]
    if not found:
        raise LaunchError("the training job ended without its summary; see above")
    return float(found[-1])


def _environment(output: Path) -> dict[str, str]:
    """This process's environment, with all of the demo below `output`, its MLflow store included."""
    own = {
        name: value
        for name, value in os.environ.items()
        if name not in ("MLFLOW_TRACKING_URI", "RAY_ADDRESS")
    }
    return own | {"CONVMLP_ROOT": str(output), "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1"}


def _emptied(folder: Path) -> Path:
    """`folder`, made or emptied of an earlier demo. Raises LaunchError if it holds anything else."""
    folder.mkdir(exist_ok=True)
    entries = list(folder.iterdir())
    strange = sorted(
        entry.name for entry in entries if entry.name not in _OURS and "mlflow.db" not in entry.name
    )
    if strange:
        raise LaunchError(
            f"{folder} holds {strange[0]}, which no demo wrote: move it away, or remove the folder"
        )
    for entry in entries:
        shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
    return folder


def _where_to_look(cluster: LocalCluster, output: Path, keep: bool) -> str:
    shown = Path(os.path.relpath(output))
    lines = [
        "Where to look next:",
        f"  the run, its curves and the registry   .venv/bin/mlflow ui --backend-store-uri sqlite:///{shown}/mlflow.db",
        f"  the saved plots                        {shown}/runs/*/plots/",
        f"  the dataset's manifest                 {shown}/data/digits/manifest.json",
        "  train it your way                      "
        ".venv/bin/convmlp run jobs/pretrain_digits.yaml --set name=mine --set optimizer.lr=2e-3",
        f"                                         (first: export CONVMLP_ROOT={shown})",
    ]
    if keep:
        names = ("RAY_API_SERVER_ADDRESS", "RAY_AUTH_MODE")
        exports = " ".join(f"{name}={cluster.env[name]}" for name in names)
        exports += f" RAY_AUTH_TOKEN_PATH={cluster.token_file}"
        lines += [
            f"  the Ray dashboard                      {cluster.dashboard_url} (until Ctrl-C)",
            f"  the token that it asks for             {cluster.token_file}",
            f"  a job of yours on this cluster         export {exports}",
            "                                         .venv/bin/ray job submit -- jobs/pretrain_digits.yaml "
            "--set name=mine",
        ]
    else:
        lines.append("  the Ray dashboard                      make demo KEEP=1 leaves the cluster up")
    return "\n".join(lines)


def _until_interrupted() -> None:
    console.say("\nThe cluster stays up. Ctrl-C stops it.")
    try:
        while True:
            time.sleep(3600)
    except KeyboardInterrupt:
        console.say("\nStopping the cluster.")


def _say(line: str, started: float) -> None:
    console.say(f"\n[{time.monotonic() - started:5.1f} s] {line}")
