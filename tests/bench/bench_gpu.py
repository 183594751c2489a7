"""`make bench-gpu`: one GPU, under 9 minutes: is it right, how fast is a step, a whole run, a save?

    python tests/bench/bench_gpu.py [--out FOLDER] [--cifar10 FOLDER] [--images FOLDER] [--parts correctness,step-s]

Needs torch, torchvision, timm, accelerate and our package with its small dependencies; neither Ray nor MLflow, and
DeepSpeed only for its strategies. Each part is a process of its own with a budget of seconds: one that hangs or dies
costs its own figures. Each figure is in FOLDER/PART.jsonl as soon as it is known, and after each part all are in
FOLDER/results.json and, as the tables of docs/benchmarks.md, in results.md. FOLDER/profile: of the whole run.

--cifar10: a prepared dataset, or the published cifar-10-python.tar.gz's folder. --images: photographs, as
<class>/<image> or prepared; without it some are made up. `--device cpu --tiny` shows in a minute that all of it works.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[1]))

BUDGET = 530.0
"""Seconds for all parts; starting and writing take the rest of nine minutes."""
Row = dict[str, Any]


@dataclass
class Part:
    """A part of the benchmark: its most seconds, and what it has found."""

    name: str
    budget: float
    table: str
    state: str = "not reached"
    seconds: float = 0.0
    rows: list[Row] = field(default_factory=list)


def parts() -> list[Part]:
    """In order: what is most wanted comes first. The budgets add up to more than there is: few use theirs up."""
    return [
        Part("limits", 30, "limits"),
        Part("correctness", 90, "checks"),
        Part("synchronisations", 25, "checks"),
        Part("step-s", 80, "steps"),
        Part("whole-job", 90, "figures"),
        Part("cifar10", 110, "figures"),
        Part("step-m", 70, "steps"),
        Part("step-l", 90, "steps"),
        Part("step-others", 60, "steps"),
    ]


# --- in a part's own process ---------------------------------------------------------------------------------


def rows_of(part: str, root: Path, given: argparse.Namespace, found: Mapping[str, Any]) -> Iterator[Row]:
    """The part's rows, each as soon as it is known."""
    import gpu_platform
    import gpu_steps
    import torch

    scale = gpu_steps.Scale(given.tiny, torch.device(given.device))
    if part == "limits":
        measured = gpu_steps.limits(scale)
        yield {"flops": measured.flops, "bandwidth": measured.bandwidth}
    elif part == "correctness":
        yield from gpu_platform.correctness(root, scale)
    elif part == "synchronisations":
        yield from gpu_platform.synchronisations(scale)
    elif part == "whole-job":
        yield from gpu_platform.whole_job(root, given.out, scale, given.images)
    elif part == "cifar10":
        yield from gpu_platform.cifar10(root, scale, given.cifar10)
    else:
        limits = gpu_steps.Limits(found["flops"], found["bandwidth"])
        if part == "step-others":
            for name in ("resnet18",) if given.tiny else ("resnet50", "convnext_tiny", "mixer_b16"):
                yield from gpu_steps.step_rows(name, scale, limits, published=False, compiles=False)
        else:
            name = f"convmlp_{part[-1]}"
            yield from gpu_steps.step_rows(name, scale, limits, published=True, compiles=not given.tiny)


def work(part: str, given: argparse.Namespace) -> None:
    """Write the part's rows, a line each, to the file that `given.rows` names."""
    from convmlp_platform.distributed import joined_world

    found = json.loads(os.environ.get("BENCH_GPU_LIMITS", "{}"))
    with (
        tempfile.TemporaryDirectory(prefix="bench-gpu-") as root,
        given.rows.open("w") as file,
        joined_world(
            use_gpu=given.device == "cuda"
        ),  # one for all engines and runs: DeepSpeed bears no second
    ):
        for row in rows_of(part, Path(root), given, found):
            file.write(json.dumps(row) + "\n")
            file.flush()


# --- the process that starts them ----------------------------------------------------------------------------


def take(part: Part, seconds: float, given: argparse.Namespace, limits: Mapping[str, Any]) -> None:
    """Run a part in a process of its own for so many seconds at most."""
    rows, log = given.out / f"{part.name}.jsonl", given.out / f"{part.name}.log"
    rows.unlink(missing_ok=True)
    command = [sys.executable, __file__, "--part", part.name, "--rows", str(rows), "--out", str(given.out)]
    command += ["--device", given.device, *(["--tiny"] if given.tiny else [])]
    for option in ("cifar10", "images"):
        if (value := getattr(given, option)) is not None:
            command += [f"--{option}", str(value)]
    environment = {**os.environ, "BENCH_GPU_LIMITS": json.dumps(limits), "PYTHONUNBUFFERED": "1"}
    start = time.monotonic()
    with log.open("w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=environment)
        try:
            code = process.wait(seconds)
            last = (log.read_text(errors="replace").strip().splitlines() or ["no word"])[-1]
            part.state = "done" if code == 0 else f"FAILED: {last[:200]}"
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            part.state = f"cut off after {seconds:.0f} s"
    part.seconds = time.monotonic() - start
    part.rows = [json.loads(line) for line in rows.read_text().splitlines()] if rows.is_file() else []


def environment_of(given: argparse.Namespace) -> Row:
    """Facts on the machine and the code, found in a process of its own: this one never touches the device."""
    code = (
        "import json,torch,torchvision,timm,accelerate;c=torch.cuda.is_available();"
        "print(json.dumps(dict(torch=torch.__version__,torchvision=torchvision.__version__,timm=timm.__version__,"
        "accelerate=accelerate.__version__,cuda=torch.version.cuda if c else None,"
        "gpu=torch.cuda.get_device_name() if c else None)))"
    )
    found: Row = json.loads(
        subprocess.run([sys.executable, "-c", code], text=True, stdout=-1, check=True).stdout
    )
    commit = os.environ.get("GIT_COMMIT") or _git("describe", "--always", "--dirty")
    cores = f"{os.cpu_count()} CPU cores ({platform.machine()})"
    hardware = f"{found.pop('gpu')}, {cores}" if given.device == "cuda" else cores
    python = platform.python_version()
    return {
        "hardware": hardware,
        "python": python,
        **found,
        "commit": commit,
        "date": time.strftime("%Y-%m-%d"),
    }


def _git(*words: str) -> str:
    done = subprocess.run(
        ["git", *words], text=True, stdout=-1, stderr=-1, cwd=Path(__file__).parent, check=False
    )
    return done.stdout.strip() or "unknown"


def write(out: Path, facts: Row, found: list[Part]) -> None:
    """All that is known by now."""
    results = {"environment": facts, "parts": [asdict(part) for part in found]}
    for name, text in (
        ("results.json", json.dumps(results, indent=2)),
        ("results.md", markdown(facts, found)),
    ):
        temporary = out / f".{name}"
        temporary.write_text(text)
        temporary.replace(out / name)


def markdown(facts: Row, found: list[Part]) -> str:
    """The tables of docs/benchmarks.md."""
    known = ", ".join(
        f"{name} {facts[name]}" for name in ("torch", "cuda", "timm", "accelerate") if facts[name]
    )
    lines = [
        f"{facts['hardware']}; {known}; Python {facts['python']}; {facts['commit']}, {facts['date']}.",
        "",
    ]
    for table, (head, cells) in TABLES.items():
        rows = [row for part in found if part.table == table for row in part.rows]
        if rows:
            lines += [
                head,
                "|" + "|".join(_alignment(head)) + "|",
                *(f"| {' | '.join(cells(row))} |" for row in rows),
                "",
            ]
    lines += ["| part | seconds | |", "|---|---:|---|"]
    lines += [f"| {part.name} | {part.seconds:.0f} | {part.state} |" for part in found]
    return "\n".join(lines) + "\n"


def _alignment(head: str) -> list[str]:
    return ["---" if not place else "---:" for place, _ in enumerate(head.strip("| ").split("|"))]


def _limits(row: Row) -> list[str]:
    rates = ", ".join(f"{name} {rate / 1e12:,.3g}" for name, rate in row["flops"].items())
    return [rates, f"{row['bandwidth'] / 1e9:,.3g}"]


def _check(row: Row) -> list[str]:
    return [
        row["check"],
        f"{row['off']:.1e}" if "off" in row else "",
        f"{row.get('tolerance', '')}",
        row["state"],
    ]


def _step(row: Row) -> list[str]:
    return [
        f"{row['network']}, {row['step']}",
        row["precision"],
        f"{row['batch']}",
        f"{row['images_per_second']:,.0f}",
        f"{row['step_ms']:,.1f} ms",
        f"{row['ratio']:.2f}",
        f"{row['matmul_share']:.0%}",
        f"{row['operator_bound_share']:.0%}",
        f"{row['peak_gib']:.1f}" if row["peak_gib"] else "",
        f"{row['first_step_s']:.1f} s",
    ]


def _figure(row: Row) -> list[str]:
    value = row["value"]
    shown = "" if value is None else f"{value:,.4g}"
    return [row["figure"], f"{shown} {row['unit']}".strip(), f"{row.get('aim', '')}"]


TABLES: dict[str, tuple[str, Callable[[Row], list[str]]]] = {
    "limits": ("| matrix products, TFLOP/s | copying, GB/s |", _limits),
    "checks": ("| check | off by | tolerance | |", _check),
    "steps": (
        "| step | precision | batch | images/s | a step | ratio to the first | of the matrix rate "
        "| of the operators' bound | peak GiB | first step |",
        _step,
    ),
    "figures": ("| whole runs | | aim |", _figure),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("bench-gpu"))
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument(
        "--tiny", action="store_true", help="tiny sizes: shows that it works, measures nothing"
    )
    parser.add_argument("--cifar10", type=Path)
    parser.add_argument("--images", type=Path)
    parser.add_argument("--parts", help="some parts alone, by name; limits are always measured")
    parser.add_argument("--seconds", type=float, default=BUDGET, help="for all parts")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    parser.add_argument("--rows", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    if given.part:
        work(given.part, given)
        return
    if given.device == "cuda" and shutil.which("nvidia-smi") is None:
        sys.exit("no GPU here (no nvidia-smi): `--device cpu --tiny` shows that the benchmark works")
    if given.tiny:  # no measurement: a busy machine may take its time
        given.seconds *= 20
    began, facts, found = time.monotonic(), environment_of(given), parts()
    wanted = {"limits", *given.parts.split(",")} if given.parts else {part.name for part in found}
    if unknown := wanted - {part.name for part in found}:
        sys.exit(f"no part is called {', '.join(sorted(unknown))}: {', '.join(part.name for part in found)}")
    found = [part for part in found if part.name in wanted]
    for part in found:
        left = given.seconds - (time.monotonic() - began)
        if left > 5:
            take(
                part,
                min(part.budget * (20 if given.tiny else 1), left),
                given,
                found[0].rows[0] if found[0].rows else {},
            )
        write(given.out, facts, found)
        print(f"{part.name}: {part.state}, {part.seconds:.0f} s", flush=True)
    print(f"\n{(given.out / 'results.md').read_text()}")
    failed = [part.name for part in found if part.state.startswith("FAILED")]
    wrong = [
        row["check"] for part in found for row in part.rows if str(row.get("state", "")).startswith("FAILED")
    ]
    if failed or wrong:
        sys.exit(f"not right: {', '.join([*failed, *wrong])}")


if __name__ == "__main__":
    main()
