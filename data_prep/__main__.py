"""Look after prepared datasets: `python -m data_prep verify PATH`, `repair PATH`, `show-manifest PATH`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from data_prep.console import guarded
from data_prep.dataset.manifest import load_manifest
from data_prep.errors import DataPrepError
from data_prep.repair.repair import repair
from data_prep.summary import describe
from data_prep.verify import verify


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; 0 if all is well, 2 with the problems on stderr if not."""
    parser = argparse.ArgumentParser(prog="python -m data_prep", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    check = commands.add_parser("verify", help="check a dataset's files against its manifest")
    check.add_argument("path", help="the dataset's folder")
    check.add_argument("--quick", action="store_true", help="don't read the shards' contents")
    mend = commands.add_parser("repair", help="make damaged or missing files anew, exactly as they were")
    mend.add_argument("path", help="the dataset's folder")
    mend.add_argument("--from-source", action="store_true", help="use the original images alone")
    show = commands.add_parser("show-manifest", help="print what a dataset holds")
    show.add_argument("path", help="the dataset's folder")
    options = parser.parse_args(arguments)
    try:
        match options.command:
            case "verify":
                return _verify(options.path, deep=not options.quick)
            case "repair":
                return _repair(options.path, from_source=options.from_source)
        print(load_manifest(options.path).model_dump_json(indent=2))
    except DataPrepError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def _verify(path: str, *, deep: bool) -> int:
    report = verify(path, deep=deep)
    for problem in report.problems:
        print(problem, file=sys.stderr)
    if report.manifest and report.ok:
        print(f"{report.path}: {describe(report.manifest)}")
        print(f"{report.num_shards} shard files and {report.num_payloads} payloads are intact")
    return 0 if report.ok else 2


def _repair(path: str, *, from_source: bool) -> int:
    report = repair(path, from_source=from_source)
    for file, origin in report.repaired.items():
        print(f"{file}: repaired from {origin}")
    for file, reason in report.failed.items():
        print(f"{file}: can't be repaired: {reason}", file=sys.stderr)
    if report.ok:
        print(f"{report.path}: all {report.num_files} files are what the manifest says")
    return 0 if report.ok else 2


if __name__ == "__main__":
    sys.exit(guarded(main))
