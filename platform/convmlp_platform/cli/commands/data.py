"""`convmlp data ...`: look at prepared datasets, check, repair and copy them, and prove what a run used of one."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from convmlp_platform.cli.common import RUN_HELP, fail, positive
from convmlp_platform.errors import DataError
from data_prep.console import say

_NAME_HELP = (
    "a dataset's folder (it holds manifest.json), or the name of one in data/ below CONVMLP_ROOT "
    "or the current folder"
)


def add_commands(commands: Any) -> None:
    """Add the group to the parser's commands."""
    group = commands.add_parser("data", help="look at prepared datasets; check, repair and copy them")
    data = group.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_show(data)
    verify = data.add_parser("verify", help="read a dataset whole and compare every checksum")
    verify.add_argument("path", metavar="PATH", help=f"{_NAME_HELP}; or a URL (s3://...)")
    verify.set_defaults(call=_verify)
    repair = data.add_parser(
        "repair",
        help="make damaged or missing shard files anew, exactly as they were",
        description="Make damaged or missing shard files and indexes anew: from the intact samples of both formats, "
        "else from the images the dataset was made of. A file is replaced only by one with the SHA-256 that the "
        "manifest has of it.",
    )
    repair.add_argument("path", metavar="PATH", help=_NAME_HELP)
    repair.add_argument(
        "--from-source", action="store_true", help="use the original images alone, not the other format"
    )
    repair.set_defaults(call=_repair)
    copy = data.add_parser(
        "copy",
        help="copy a dataset between folders and remote storage, checking every byte",
        description="Copy a dataset. Every byte is checked on its way; run again, it goes on where it was interrupted.",
    )
    copy.add_argument("source", metavar="SOURCE", help="a dataset's folder or URL")
    copy.add_argument("destination", metavar="DESTINATION", help="a folder or URL (s3://BUCKET/NAME)")
    copy.add_argument("--verify", action="store_true", help="also read back what was uploaded")
    copy.set_defaults(call=_copy)
    ledger = data.add_parser(
        "ledger", help="prove from a run's ledger that it used each sample exactly once an epoch"
    )
    ledger.add_argument("run_dir", metavar="RUN", help=RUN_HELP)
    ledger.add_argument(
        "--dataset", metavar="PATH", help="also compare what was read with this dataset's checksums"
    )
    ledger.set_defaults(call=_ledger)


def _add_show(data: Any) -> None:
    show = data.add_parser("show", help="draw a contact sheet and a class histogram of a split")
    show.add_argument("name", metavar="NAME", help=f"{_NAME_HELP}; or a URL (s3://...)")
    show.add_argument("--split", help="default: train, or the dataset's first")
    show.add_argument(
        "--count",
        type=positive,
        metavar="N",
        help="images on the sheet (default: 36; with boxes or masks 12)",
    )
    show.add_argument(
        "--output", type=Path, default=Path(), metavar="DIR", help="where to put them (default: here)"
    )
    show.add_argument("--seed", type=int, default=0, metavar="N", help="other images (default: 0)")
    show.add_argument(
        "--labels",
        type=lambda text: [name.strip() for name in text.split(",")],
        default=[],
        metavar="A,B",
        help="only images of these classes",
    )
    show.set_defaults(call=_show)


def _show(arguments: argparse.Namespace) -> int:
    from convmlp_platform.show.show_dataset import show

    shown = show(
        dataset_path(arguments.name),
        arguments.output,
        split=arguments.split,
        count=arguments.count,
        seed=arguments.seed,
        labels=arguments.labels,
    )
    print("\n".join(shown.lines))
    print(f"  pictures  {shown.sheet}\n            {shown.histogram}")
    return 0


def _verify(arguments: argparse.Namespace) -> int:
    from data_prep.storage.urls import is_url
    from data_prep.verify import verify, verify_remote

    path = dataset_path(arguments.path)
    report = verify_remote(path) if is_url(path) else verify(path)
    if report.ok:
        count = f"{report.num_shards:,} shards with {report.num_payloads:,} payloads"
        print(f"{report.path}: {count}, all as written")
        return 0
    fail("\n".join(report.problems), DataError.exit_code)
    if report.manifest is not None:
        mend = f"`convmlp data repair {path}` mends what can be mended"
        again = "`convmlp data copy` from an intact copy brings back what is missing or cut"
        print(again if is_url(path) else mend, file=sys.stderr)
    return DataError.exit_code


def _repair(arguments: argparse.Namespace) -> int:
    from data_prep.repair.repair import repair

    path = dataset_path(arguments.path)
    report = repair(path, from_source=arguments.from_source, progress=say)
    for file, origin in report.repaired.items():
        print(f"repaired {file} from {origin}")
    if report.ok:
        done = f"{len(report.repaired)} repaired" if report.repaired else "nothing to repair"
        print(f"{report.path}: {report.num_files:,} files, {done}, all are what the manifest says")
        return 0
    for file, reason in report.failed.items():
        fail(f"{file} can't be repaired: {reason}", DataError.exit_code)
    return fail(
        f"{len(report.failed)} of {report.num_files:,} files of {report.path} stay damaged: fetch them from a copy of "
        "the dataset (`convmlp data copy` skips what is intact), or bring back the source's images and repair again, "
        "or prepare the dataset again",
        DataError.exit_code,
    )


def _copy(arguments: argparse.Namespace) -> int:
    from data_prep.copy_dataset import copy_dataset
    from data_prep.storage.urls import shown

    manifest = copy_dataset(
        dataset_path(arguments.source), arguments.destination, verify=arguments.verify, progress=say
    )
    print(f"{shown(arguments.destination)}: {manifest.name}, {manifest.digest[:19]}…, every byte checked")
    return 0


def _ledger(arguments: argparse.Namespace) -> int:
    from convmlp_platform.ledger.proof import check_ledger
    from convmlp_platform.runs.find_run import find_run

    dataset = None if arguments.dataset is None else dataset_path(arguments.dataset)
    report = check_ledger(find_run(arguments.run_dir), dataset=dataset)
    if report.ok:
        print("\n".join(report.lines()))
        return 0
    return fail("\n".join(report.lines()), DataError.exit_code)


def dataset_path(name: str) -> str:
    """The folder or URL that a dataset's name means, as `runs.find_dataset` has it, which takes a moment to import."""
    from convmlp_platform.runs.find_dataset import find_dataset

    return find_dataset(name)
