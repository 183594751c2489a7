"""The command `convmlp`: each sub-command is one function, and imports what it needs when it is called.

What a user can fix ends with one line a problem on stderr and exit code 2; all else is a bug, with traceback.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from convmlp_platform.errors import ConfigError, DataError, PlatformError

if TYPE_CHECKING:
    from convmlp_platform.config.schema import PrepareJob, TrainJob
    from convmlp_platform.training.preflight import PreflightReport

_EXAMPLES = """\
examples:
  convmlp run jobs/prep_digits.yaml           prepare a dataset
  convmlp check jobs/pretrain_digits.yaml     what would be done, and everything that is wrong
  convmlp jobs/pretrain_digits.yaml --set training.epochs=5 --set launch.num_workers=4
  convmlp predict models:/convmlp-digits@champion image.png
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line (default: this process's) and return its exit code."""
    try:
        code = _main(list(sys.argv[1:] if argv is None else argv))
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader (head, less) has left. stdout is flushed once more at exit: let that go nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 141


def _main(argv: list[str]) -> int:
    parser, commands = _parser()
    if argv and argv[0] not in commands and _is_job_file(argv[0]):
        argv = ["run", *argv]
    try:
        arguments = parser.parse_args(argv)
    except SystemExit as stop:
        return int(stop.code or 0)
    if not hasattr(arguments, "call"):
        parser.print_help()
        return 0
    try:
        return int(arguments.call(arguments))
    except PlatformError as error:
        return _fail(str(error), error.exit_code)
    except ValueError as error:
        from data_prep.errors import DataPrepError

        if not isinstance(error, DataPrepError):
            raise
        return _fail(str(error), DataError.exit_code)


def _is_job_file(word: str) -> bool:
    return not word.startswith("-") and (word.endswith((".yaml", ".yml")) or Path(word).is_file())


def _fail(message: str, code: int) -> int:
    for line in message.splitlines():
        print(f"error: {line}", file=sys.stderr)
    return code


def _parser() -> tuple[argparse.ArgumentParser, set[str]]:
    parser = argparse.ArgumentParser(
        prog="convmlp",
        description="Prepare image datasets and train ConvMLPs on them, on this machine or a Ray cluster.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    run = commands.add_parser("run", help="run a job file (the word may be left out)")
    run.add_argument("--no-ray", action="store_true", help="work in this process, one of many under torchrun")
    check = commands.add_parser("check", help="list all that is wrong with a job, without starting it")
    show = commands.add_parser("show", help="print a job with all its values, defaults included")
    for command, call in ((run, _run), (check, _check), (show, _show)):
        command.add_argument("job", metavar="JOB", help="a job file, such as jobs/pretrain_digits.yaml")
        command.add_argument(
            "--set",
            action="append",
            default=[],
            metavar="KEY=VALUE",
            help="set a value, e.g. optimizer.lr=1e-3",
        )
        command.set_defaults(call=call)
    schema = commands.add_parser("schema", help="print the JSON schema of job files, for editors")
    schema.add_argument("--kind", choices=("prepare", "train"), help="of this kind of job only")
    schema.set_defaults(call=_schema)
    models = commands.add_parser("models", help="list the models that model.name may name")
    models.add_argument("pattern", nargs="?", metavar="PATTERN", help="e.g. 'resnet*': timm's models, too")
    models.set_defaults(call=_models)
    predict = commands.add_parser("predict", help="class names and probabilities for images")
    predict.add_argument("model", metavar="MODEL_URI", help="e.g. models:/convmlp-digits@champion")
    predict.add_argument("images", nargs="+", type=Path, metavar="IMAGE")
    predict.add_argument(
        "--top-k", type=_positive, default=3, metavar="N", help="classes to show (default: 3)"
    )
    predict.add_argument("--json", action="store_true", help="for programs")
    predict.set_defaults(call=_predict)
    _add_data(commands.add_parser("data", help="look after prepared datasets"))
    demo = commands.add_parser("demo", help="data, training and registry on this machine, in minutes")
    demo.add_argument("--keep", action="store_true", help="leave the demo's Ray cluster up until Ctrl-C")
    demo.set_defaults(call=_demo)
    replay = commands.add_parser(
        "replay-tracking", help="send what a run recorded to MLflow, where it is missing"
    )
    replay.add_argument("run_dir", type=Path, metavar="RUN_DIR", help="a run's folder: CHECKPOINT.PATH/NAME")
    replay.set_defaults(call=_replay)
    return parser, set(commands.choices)


def _add_data(data: argparse.ArgumentParser) -> None:
    commands = data.add_subparsers(title="commands", metavar="COMMAND", required=True)
    verify = commands.add_parser("verify", help="read a dataset whole and compare every checksum")
    verify.add_argument(
        "path", type=Path, metavar="PATH", help="the dataset's folder (it holds manifest.json)"
    )
    verify.set_defaults(call=_verify)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1, not {text!r}")
    return int(text)


def _load(arguments: argparse.Namespace) -> TrainJob | PrepareJob:
    from convmlp_platform.config.load import load_job, resolve_paths

    return resolve_paths(load_job(arguments.job, arguments.set))


def _run(arguments: argparse.Namespace) -> int:
    job = _load(arguments)
    from convmlp_platform.launch.entry import launch

    return launch(job, use_ray=not arguments.no_ray)


def _check(arguments: argparse.Namespace) -> int:
    job = _load(arguments)
    from convmlp_platform.training.preflight import preflight

    report = preflight(job)
    _check_cluster(job, report)
    print(f"{arguments.job}: {job.kind} {job.name}")
    for line in report.summary:
        print(f"  {line}")
    if report.problems:
        count = len(report.problems)
        print(f"{count} problem{'s' * (count > 1)}, see below: the job would not start", flush=True)
        return _fail(
            "\n".join(f"{arguments.job}: {problem}" for problem in report.problems), ConfigError.exit_code
        )
    print("no problems found")
    return 0


def _check_cluster(job: TrainJob | PrepareJob, report: PreflightReport) -> None:
    """Whether the cluster that the job or RAY_ADDRESS names can be reached and is large enough."""
    from convmlp_platform.launch.capacity import check
    from convmlp_platform.launch.connect import connect, resolve_address

    try:
        if resolve_address(job.launch.address) is None:
            report.summary.append("cluster  none named: a Ray of its own is started on this machine")
            return
        with connect(job.launch.address) as address:
            report.summary.append(f"cluster  {address}")
            report.problems += check(job) if job.kind == "train" else []
    except PlatformError as error:
        report.problems.append(str(error))


def _show(arguments: argparse.Namespace) -> int:
    from convmlp_platform.config.load import dump_yaml

    print(dump_yaml(_load(arguments)), end="")
    return 0


def _schema(arguments: argparse.Namespace) -> int:
    from convmlp_platform.config.load import json_schema

    print(json.dumps(json_schema(arguments.kind), indent=2))
    return 0


def _models(arguments: argparse.Namespace) -> int:
    import timm

    import convmlp

    names = convmlp.list_models() if arguments.pattern is None else timm.list_models(arguments.pattern)
    if not names:
        return _fail(
            f"no model's name matches {arguments.pattern!r}; try '*{arguments.pattern.strip('*')}*'", 2
        )
    print("\n".join(names))
    return 0


def _predict(arguments: argparse.Namespace) -> int:
    from convmlp_platform.tracking.predict import predict

    predictions = predict(arguments.model, arguments.images, arguments.top_k)
    if arguments.json:
        rows = [
            {"image": str(one.image), "labels": [{"name": name, "probability": p} for name, p in one.labels]}
            for one in predictions
        ]
        print(json.dumps(rows, indent=2))
        return 0
    for one in predictions:
        print(f"{one.image}: " + ", ".join(f"{name} {probability:.1%}" for name, probability in one.labels))
    return 0


def _verify(arguments: argparse.Namespace) -> int:
    from data_prep.verify import verify

    report = verify(arguments.path)
    if not report.ok:
        return _fail("\n".join(report.problems), DataError.exit_code)
    print(
        f"{report.path}: {report.num_shards:,} shards with {report.num_payloads:,} payloads, all as written"
    )
    return 0


def _demo(arguments: argparse.Namespace) -> int:
    from convmlp_platform.launch import demo

    return demo.main(keep=arguments.keep)


def _replay(arguments: argparse.Namespace) -> int:
    from convmlp_platform.tracking.replayer import replay

    print(f"MLflow has all that was recorded: run {replay(arguments.run_dir)}")
    return 0
