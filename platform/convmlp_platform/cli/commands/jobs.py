"""Commands on job files: run, check, show, schema, sweep; and demo, which runs some of them."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from math import inf
from typing import TYPE_CHECKING, Any

from convmlp_platform.cli.common import add_overrides, number, price, show_report
from convmlp_platform.errors import ConfigError

if TYPE_CHECKING:
    from convmlp_platform.config.schema import Job


def add_sweep_command(commands: Any) -> None:
    """Add it to the parser's commands."""
    parser = commands.add_parser(
        "sweep",
        help="train a job in many settings and compare them (`kind: sweep`)",
        description="Each trial is a whole run, below RUNS/SWEEP. Started again, it goes on: finished trials aren't "
        "repeated, started ones go on from their checkpoints, failed ones are tried again.",
    )
    parser.add_argument("job", metavar="FILE", help="a sweep's file, such as jobs/sweep_cifar10.yaml")
    add_overrides(parser, "set a value, e.g. max_concurrent=1, or of the job: job.training.epochs=2")
    parser.set_defaults(call=_sweep)


def _sweep(arguments: argparse.Namespace) -> int:
    from convmlp_platform.config.load import load_job
    from convmlp_platform.config.sweep_job import SweepJob

    job = load_job(arguments.job, arguments.set)
    if not isinstance(job, SweepJob):
        raise ConfigError(
            f"{arguments.job}: kind: must be sweep (got {job.kind!r}): `convmlp run {arguments.job}` runs this one"
        )
    from convmlp_platform.jobs.run_job import launch

    return launch(job, use_ray=True)


def add_demo(commands: Any) -> None:
    """Add it to the parser's commands."""
    demo = commands.add_parser("demo", help="data, training and registry on this machine, in minutes")
    demo.add_argument("--keep", action="store_true", help="leave the demo's Ray cluster up until Ctrl-C")
    demo.set_defaults(call=_demo)


def _demo(arguments: argparse.Namespace) -> int:
    from convmlp_platform.jobs import demo

    return demo.main(keep=arguments.keep)


def add_commands(commands: Any) -> None:
    """Add them to the parser's commands."""
    run = commands.add_parser("run", help="run a job file (the word may be left out)")
    run.add_argument("--no-ray", action="store_true", help="work in this process, one of many under torchrun")
    check = commands.add_parser("check", help="list all that is wrong with a job, without starting it")
    show = commands.add_parser("show", help="print a job with all its values, defaults included")
    for command, call in ((run, _run), (check, _check), (show, _show)):
        command.add_argument("job", metavar="JOB", help="a job file, such as jobs/pretrain_digits.yaml")
        add_overrides(command, "set a value, e.g. optimizer.lr=1e-3")
        command.set_defaults(call=call)
    check.add_argument(
        "--scale",
        metavar="N,N",
        type=_counts,
        help="a training: also say step, memory and cost on so many GPUs, e.g. 8,64,1024 (docs/scaling.md)",
    )
    check.add_argument(
        "--images-per-second", metavar="X", type=_rate, help="for --scale: what one GPU was measured to train"
    )
    check.add_argument(
        "--price",
        metavar="X",
        type=price,
        help="for --scale: of a GPU's hour; default: launch.price_per_gpu_hour",
    )
    show.add_argument(
        "--diff",
        metavar="OTHER",
        help="print only the values that differ from this job file's or run's: `OTHER's → JOB's`",
    )
    schema = commands.add_parser("schema", help="print the JSON schema of job files, for editors")
    schema.add_argument(
        "--kind",
        choices=("prepare", "train", "evaluate", "promote", "sweep"),
        help="of this kind of job only",
    )
    schema.set_defaults(call=_schema)


def _load(arguments: argparse.Namespace) -> Job:
    return _read(arguments.job, arguments.set)


def _read(path: str, overrides: Sequence[str] = ()) -> Job:
    from convmlp_platform.config.load import load_job
    from convmlp_platform.jobs.read_job import manifest_at, of_machines

    return load_job(path, overrides, manifest_at, of_machines).resolved()


def _run(arguments: argparse.Namespace) -> int:
    job = _load(arguments)
    from convmlp_platform.jobs.run_job import launch
    from convmlp_platform.tracking.provenance.submitted_job import given_job

    return launch(job, use_ray=not arguments.no_ray, given=given_job(arguments.job, arguments.set))


def _check(arguments: argparse.Namespace) -> int:
    job = _load(arguments)
    from convmlp_platform.jobs.run_job import check

    report = check(job)
    if arguments.scale is not None:
        if job.kind != "train":
            raise ConfigError(
                f"--scale is for trainings (kind: train), and {arguments.job} is of kind: {job.kind}"
            )
        if not report.problems:
            from convmlp_platform.training.preflight.scaling import scaling_lines

            report.summary += scaling_lines(
                job, arguments.scale, arguments.images_per_second, arguments.price
            )
    return show_report(arguments.job, f"{job.kind} {job.name}", report)


def _rate(text: str) -> float:
    """An argument that must be a number above 0."""
    return number(text, "a number above 0", lambda value: 0.0 < value < inf)


def _counts(text: str) -> list[int]:
    """Numbers of GPUs, `8,64`."""
    parts = text.split(",")
    if not all(part.isdecimal() and int(part) for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r} isn't a list of numbers of GPUs, such as 8,64")
    return [int(part) for part in parts]


def _show(arguments: argparse.Namespace) -> int:
    from convmlp_platform.config.load import dump_yaml, job_differences

    job = _load(arguments)
    if arguments.diff is None:
        print(dump_yaml(job), end="")
        return 0
    lines = job_differences(_job_of(arguments.diff), job)
    print("\n".join(lines) or f"{arguments.diff} and {arguments.job} have the same values")
    return 0


def _job_of(text: str) -> Job:
    """The job in a file, or that a run was last started with."""
    if not text.endswith((".yaml", ".yml")):
        from convmlp_platform.config.load import parse_job
        from convmlp_platform.runs.find_run import find_run
        from convmlp_platform.runs.run_folder import stored_job

        run = find_run(text)
        return parse_job(stored_job(run), str(run))
    return _read(text)


def _schema(arguments: argparse.Namespace) -> int:
    from convmlp_platform.config.load import json_schema

    print(json.dumps(json_schema(arguments.kind), indent=2))
    return 0
