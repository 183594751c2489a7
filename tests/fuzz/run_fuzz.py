"""`make fuzz`: damaged files of every format that we read; no traceback, no hang, nothing wrong behind a checksum.

    python tests/fuzz/run_fuzz.py [--files 20000] [--seed 7] [--only "run.json"] [--number 12] [--keep FOLDER]

Each file is read through the entry that production takes, in a process with limits of time and memory. It may be
read, or refused with an error that a user can fix. `--only NAME --number N` tries the N-th input of one format again,
here and without limits, so that a debugger can look at it.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # tests/annotated.py
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "data_prep"))  # coco_files.py

from data_formats import DATA_FORMATS
from fuzzing import FAULTS, Format, Outcome, damaged, made, run, try_one
from run_formats import RUN_FORMATS

FORMATS = [*RUN_FORMATS, *DATA_FORMATS]


def table(outcome: Outcome) -> str:
    """One line a format."""
    lines = [f"{'format':38} {'files':>7} {'refused':>8} {'same':>7} {'read':>7}   faults"]
    for name, counts in outcome.counts.items():
        faults = ", ".join(f"{counts[kind]} {kind}" for kind in FAULTS if counts[kind]) or "0"
        found = (sum(counts.values()), counts["refused"], counts["same"], counts["read"])
        lines.append(f"{name:38} {found[0]:7,} {found[1]:8,} {found[2]:7,} {found[3]:7,}   {faults}")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0 where no input was a fault, else 1."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--files", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--only", action="append", choices=[one.name for one in FORMATS], metavar="NAME")
    parser.add_argument("--without", action="append", default=[], metavar="NAME")
    parser.add_argument("--number", type=int, help="try this input of the format again, in this process")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument(
        "--keep", type=Path, help="where inputs that fail are kept; default: a temporary folder"
    )
    given = parser.parse_args(argv)
    wanted = given.only or [one.name for one in FORMATS]
    formats = [one for one in FORMATS if one.name in wanted and one.name not in given.without]
    if given.number is not None:
        return _again(formats[0], given.seed, given.number)
    keep = given.keep or Path(tempfile.mkdtemp(prefix="convmlp-fuzz-kept-"))
    began = time.monotonic()
    outcome = run(
        formats, given.files, given.seed, given.processes, keep, lambda line: print(line, flush=True)
    )
    print(table(outcome))
    seconds = time.monotonic() - began
    print(f"{outcome.files:,} files in {seconds:,.0f} s, seed {given.seed}: {len(outcome.faults)} faults")
    for fault in outcome.faults:
        again = f'--only "{fault.format}" --number {fault.number} --seed {given.seed}'
        print(
            f"\n{fault.format} {fault.number}: {fault.verdict} ({again}; kept in {fault.kept})\n{fault.what.rstrip()}"
        )
    if not outcome.faults and given.keep is None:
        keep.rmdir()
    return 1 if outcome.faults else 0


def _again(format: Format, seed: int, number: int) -> int:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch, "files")
        folder.mkdir()
        made(format, folder)
        whole = (format.whole or format.read)(folder)
        path, content = damaged(format, seed, number, folder)
        print(f"{path.relative_to(folder)}: {len(content):,} bytes: {content[:300]!r}")
        verdict, what = try_one(format, seed, number, folder, whole)
    print(f"{verdict}\n{what}")
    return 1 if verdict in FAULTS else 0


if __name__ == "__main__":
    sys.exit(main())
