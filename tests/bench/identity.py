"""`make identity`: shows that a change of the code leaves shards, checkpoints, ledger, journal and losses as they were.

    python tests/bench/identity.py --out before.json --keep FOLDER     on the tree before the change
    python tests/bench/identity.py --compare before.json               on the tree after it
    python tests/bench/identity.py --resume FOLDER                     what the old tree wrote, read by the new one

One CPU process prepares the digits in both formats, trains jobs/pretrain_digits.yaml in fp32 for 60 steps, saves every
20, evaluates and registers, then goes on to step 80. The JSON holds SHA-256 sums and the loss of every step.

Left out, because clock, host or versions decide it: of the journal the times, the metrics in `CLOCK_METRICS` and the
tags in `PLACE_TAGS`; pictures; goodput; events; MLflow's own files. The working folder reads `WORK` wherever a text
names it. Losses depend on the processor (`machine` in the JSON) and on versions: compare on one machine.

`--resume` works on a copy: verifies the dataset and the checkpoints, proves the ledger, predicts with the kept run's
best model and with the registered one (by the code that travels with it), and trains on from step 60 to 80.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
STEPS, MORE_STEPS = 60, 80
RUN = "runs/pretrain-digits"
CLOCK_METRICS = ("train/data_wait", "checkpoint/", "goodput/", "memory/", "system/", "duration_seconds")
"""Beginnings of the names of metrics that a clock or an allocator decides; `*images_per_second` as well."""
PLACE_TAGS = (
    "host.",
    "mlflow.",
    "git.",
    "code.",
    "system.",
    "job.",
    "goodput",
    "torch.threads",
    "cpu.",
    "python.",
)
"""Beginnings of the names of tags that the machine, the user or the commit decides; `*.version` as well."""

_LOAD_REGISTERED = """
import json, sys
import mlflow.pyfunc, pandas as pd
image = open(sys.argv[2], "rb").read()
found = mlflow.pyfunc.load_model(sys.argv[1]).predict(pd.DataFrame({"image": [image]}))
print("PREDICTED " + found.to_json())
"""


class Site:
    """A working folder, and the tree whose code works in it."""

    def __init__(self, work: Path, tree: Path) -> None:
        self.work, self.tree = work, tree
        own = {"PYTHONPATH": f"{tree}:{tree / 'platform'}", "CONVMLP_ROOT": str(work), "OMP_NUM_THREADS": "1"}
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "RAY_"))}
        self.environment = {**kept, **own, "CUDA_VISIBLE_DEVICES": "", "MLFLOW_DISABLE_TELEMETRY": "true"}

    def python(self, *arguments: str) -> str:
        """Runs Python on the tree; what it printed. A failure ends the check with all that was printed."""
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=self.work,
            env=self.environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        if done.returncode:
            sys.exit(f"{' '.join(arguments[:4])} ended with exit code {done.returncode}:\n{done.stdout}")
        return done.stdout

    def convmlp(self, *words: str) -> str:
        return self.python("-m", "convmlp_platform", *words)

    def prepare(self) -> None:
        job = self.tree / "jobs" / "prep_digits.yaml"
        self.convmlp("run", "--no-ray", str(job), "--set", f"output.path={self.work / 'digits'}")

    def train(self, steps: int) -> None:
        values = {
            "data.path": self.work / "digits",
            "checkpoint.path": self.work / "runs",
            "checkpoint.every_steps": 20,
            "checkpoint.keep": 10,
            "training.max_steps": steps,
            "engine.precision": "fp32",
            "launch.num_workers": 1,
            "launch.use_gpu": "false",
            "tracking.uri": f"sqlite:///{self.work / 'mlflow.db'}",
        }
        sets = [word for name, value in values.items() for word in ("--set", f"{name}={value}")]
        self.convmlp("run", "--no-ray", str(self.tree / "jobs" / "pretrain_digits.yaml"), *sets)

    def image(self) -> Path:
        """The first image of the validation split, as a file."""
        with tarfile.open(self.work / "digits" / "webdataset" / "val-000000.tar") as shard:
            member = next(one for one in shard if one.name.endswith((".png", ".jpg")))
            file = shard.extractfile(member)
            assert file is not None
            path = self.work / f"image{Path(member.name).suffix}"
            path.write_bytes(file.read())
        return path

    def predicted(self) -> dict[str, str]:
        """The answers of the run's best model and of the registered one on one image."""
        image = str(self.image())
        scripts = sorted(self.work.glob("mlartifacts/models/*/artifacts/MLmodel"))
        if len(scripts) != 1:
            sys.exit(f"{self.work}: {len(scripts)} registered models instead of one")
        registered = self.python("-c", _LOAD_REGISTERED, str(scripts[0].parent), image)
        return {
            "best": self.convmlp("predict", f"{self.work / RUN}", image, "--json").replace(
                str(self.work), "WORK"
            ),
            "registered": next(line for line in registered.splitlines() if line.startswith("PREDICTED ")),
        }

    def sums(self) -> dict[str, Any]:
        """SHA-256 of what the tree has written, and the loss of every step."""
        run, data = self.work / RUN, self.work / "digits"
        files = [
            *data.glob("webdataset/*"),
            *data.glob("ffcv/*"),
            *(data / name for name in ("manifest.json", "rejected.jsonl")),
            *run.glob("checkpoints/step-*/*"),
            *run.glob("ledger/*/*"),
            *run.glob("best/*"),
            *(run / name for name in ("run.json", "job.json", "evaluations.jsonl", "checkpoints/latest")),
        ]
        journal = "".join(
            line for path in (data, run) for line in self._journal(path / "tracking/journal.jsonl")
        )
        newest = json.loads(max(run.glob("checkpoints/step-*/state.json")).read_text())
        return {
            "files": {str(path.relative_to(self.work)): self._sum(path) for path in sorted(files)},
            "journal": hashlib.sha256(journal.encode()).hexdigest(),
            "journal_lines": journal.splitlines(),
            "losses": newest["guard"]["losses"],
            "metrics": json.loads((run / "best/bundle.json").read_text())["provenance"]["metrics"],
        }

    def _sum(self, path: Path) -> str:
        content = path.read_bytes()
        if path.suffix in (".json", ".jsonl"):
            content = content.replace(str(self.work).encode(), b"WORK")
        return hashlib.sha256(content).hexdigest()

    def _journal(self, path: Path) -> list[str]:
        """Its records without what a clock or the machine decides, sorted: a save is told whenever it is done."""
        lines = []
        for text in path.read_text().replace(str(self.work), "WORK").splitlines():
            record = json.loads(text)
            del record["time"]
            if record["kind"] in ("metrics", "tags"):
                left_out = CLOCK_METRICS if record["kind"] == "metrics" else PLACE_TAGS
                prepared = (
                    record["values"].get("kind") == "prepare"
                )  # its identity is that of folder and time
                record["values"] = {
                    name: value
                    for name, value in record["values"].items()
                    if not name.startswith(left_out)
                    and not name.endswith((".version", "images_per_second"))
                    and not (prepared and name == "identity")
                }
                if not record["values"]:
                    continue
            lines.append(json.dumps(record, sort_keys=True) + "\n")
        return sorted(lines)


def differences(before: Any, after: Any, name: str = "") -> list[str]:
    """One line for each value that isn't the same, by its dotted name."""
    if isinstance(before, dict) and isinstance(after, dict):
        names = sorted({*before, *after})
        return [
            line
            for key in names
            for line in differences(before.get(key), after.get(key), f"{name}.{key}".strip("."))
        ]
    if isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        pairs = enumerate(zip(before, after, strict=True))
        return [line for n, (one, other) in pairs for line in differences(one, other, f"{name}[{n}]")]
    return [] if before == after else [f"{name}: {_short(before)} → {_short(after)}"]


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 200 else f"{text[:197]}..."


def measured(site: Site) -> dict[str, Any]:
    """The check itself: prepare, train, go on."""
    site.prepare()
    site.train(STEPS)
    at_end = {"sums": site.sums(), "predicted": site.predicted()}
    return {
        "machine": {"processor": platform.machine(), "cpu": _cpu(), "python": platform.python_version()},
        "steps": STEPS,
        **at_end,
    }


def continued(site: Site) -> dict[str, Any]:
    """Goes on to `MORE_STEPS`; the sums of the last checkpoint, and the losses."""
    site.train(MORE_STEPS)
    sums = site.sums()
    last = f"step-{MORE_STEPS:09d}"
    files = {name: text for name, text in sums["files"].items() if last in name or "ledger" in name}
    return {"files": files, "losses": sums["losses"]}


def resumed(kept: Path, work: Path, tree: Path) -> list[str]:
    """What differs when this tree reads, verifies and continues what another has kept in `kept`."""
    before = json.loads((kept / "identity.json").read_text())
    shutil.copytree(kept / "work", work, dirs_exist_ok=True)
    site = Site(work, tree)
    site.convmlp("data", "verify", str(work / "digits"))
    site.convmlp("checkpoints", "verify", str(work / RUN))
    site.convmlp("data", "ledger", str(work / RUN), "--dataset", str(work / "digits"))
    found = differences(before["predicted"], site.predicted(), "predicted")
    return found + differences(before["continued"], continued(site), "continued")


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tree", type=Path, default=REPOSITORY, help="whose code runs (default: this one)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the sums there, as JSON")
    parser.add_argument("--compare", type=Path, metavar="FILE", help="the sums of another tree")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="keep dataset, run and checkpoints there")
    parser.add_argument("--resume", type=Path, metavar="FOLDER", help="read and continue what --keep kept")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="convmlp-identity-") as folder:
        work, tree = Path(folder) / "work", options.tree.resolve()
        work.mkdir()
        if options.resume:
            problems = resumed(options.resume, work, tree)
            print("\n".join(problems) or f"read, verified and continued to step {MORE_STEPS}: bit-identical")
            return 1 if problems else 0
        site = Site(work, tree)
        result = measured(site)
        if options.keep:
            shutil.copytree(work, options.keep / "work", dirs_exist_ok=True)
        result["continued"] = continued(site)
        text = json.dumps(result, indent=1) + "\n"
        if options.keep:
            (options.keep / "identity.json").write_text(text)
        if options.out:
            options.out.write_text(text)
        if options.compare:
            before = json.loads(options.compare.read_text())
            problems = differences(before, result)
            print("\n".join(problems) or "bit-identical")
            return 1 if problems else 0
        sums = result["sums"]
        files, losses = len(sums["files"]), sums["losses"]
        print(f"{files} files, {len(losses)} losses, the last {losses[-1]:.6f}; {sums['metrics']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
