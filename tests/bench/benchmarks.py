"""`make benchmarks`: runs the benchmarks one after the other, and writes their tables into the documentation.

    python tests/bench/benchmarks.py [--only start restart] [--images FOLDER] [--write]

Each benchmark prints its tables in Markdown. They are kept in docs/benchmarks.json with machine, commit, date and load,
as soon as a benchmark is done. Every place of docs/benchmarks.md and scaling.md between `<!-- measured: NAME -->`, or
`<!-- measured: NAME/HEADING -->`, and `<!-- end -->` is written from there; a place of what nobody measured stays as it
is. Where several machines have measured a table, each has a column.

--images: a folder of JPEGs, one sub-folder a class, without which `data` is left out. --write: only the documents,
from what is kept.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from convmlp_platform.launch.cluster.capacity import cpu_has_bf16
from convmlp_platform.tracking.provenance.frozen_environment import cpu_instructions, cpu_model
from data_prep.storage.files import write_atomically

HERE = Path(__file__).parent
DOCS = HERE.parents[1] / "docs"
DOCUMENTS = (DOCS / "benchmarks.md", DOCS / "scaling.md")
COMMANDS = {
    "training": ("bench_training.py",),
    "start": ("bench_start.py",),
    "restart": ("bench_restart.py",),
    "overhead": ("bench_overhead.py",),
    "checkpoint": ("bench_checkpoint.py",),
    "scale": ("bench_scale.py",),
    "scaling": ("bench_scaling.py",),
    "data": ("bench_data.py",),
}
ONE_THREAD = {"overhead", "scale", "data"}
"""With a thread a process, as they have several processes."""

PLACE = re.compile(
    r"(<!-- measured: (?P<name>[\w-]+)(?:/(?P<heading>[^>]+?))? -->\n)(?P<old>.*?)(<!-- end -->)", re.S
)

_CHATTER = "Unable to join threads to shut down before fork()"
"""A library's, on standard output."""

Table = list[list[str]]
"""Rows of cells; the first is the header."""


@dataclass
class Section:
    """All that a benchmark printed below one heading."""

    tables: list[Table] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass
class Record:
    """One run of a benchmark on one machine."""

    commit: str
    date: str
    load: float
    """Of the machine, before it began."""
    seconds: float
    sections: dict[str, Section]

    @classmethod
    def from_json(cls, kept: dict[str, Any]) -> Record:
        sections = {heading: Section(**section) for heading, section in kept["sections"].items()}
        return cls(**{**kept, "sections": sections})


# --- what a benchmark prints ---------------------------------------------------------------------------------


def read_sections(printed: str) -> dict[str, Section]:
    """The tables and remarks of a benchmark's output, by heading ("" above the first). What stands before the first
    heading or table tells of the machine, and is left out."""
    found: dict[str, Section] = {}
    rows: Table = []
    heading, begun = "", False

    def close() -> None:
        if rows:
            found.setdefault(heading, Section()).tables.append([row for row in rows if not _is_rule(row)])
            rows.clear()

    for line in [*printed.splitlines(), ""]:
        if line.startswith("|"):
            begun = True
            rows.append([cell.strip() for cell in line.strip().strip("|").split("|")])
            continue
        close()
        if line.startswith("#"):
            begun, heading = True, line.lstrip("# ").strip()
        elif line.strip() and begun and not line.startswith(_CHATTER):
            found.setdefault(heading, Section()).notes.append(line.strip())
    return found


def _is_rule(row: list[str]) -> bool:
    return all(set(cell) <= set(":- ") and "-" in cell for cell in row)


# --- the tables of the document ------------------------------------------------------------------------------


def markdown(heading: str, records: dict[str, Record]) -> str:
    """The tables of a section: as printed if one machine has measured it, else with a column for each machine."""
    known = {letter: record for letter, record in records.items() if heading in record.sections}
    lines = [
        f"Machine {letter} at {record.commit}, {record.date}, load {record.load:.1f} before"
        + (f", {record.seconds:.0f} s." if record.seconds else ".")
        for letter, record in known.items()
    ]
    sections = {letter: record.sections[heading] for letter, record in known.items()}
    for number in range(max(len(section.tables) for section in sections.values())):
        tables = {
            letter: section.tables[number]
            for letter, section in sections.items()
            if number < len(section.tables)
        }
        table = next(iter(tables.values())) if len(tables) == 1 else side_by_side(tables)
        lines += ["", *_markdown_lines(table)]
    for letter, section in sections.items():
        if section.notes:
            lines += ["", *(note if len(sections) == 1 else f"{letter}: {note}" for note in section.notes)]
    return "\n".join(lines).strip() + "\n"


def side_by_side(tables: dict[str, Table]) -> Table:
    """One table with a column of figures for each machine: a row for each row and column that any of them has. A row is
    known by its leading columns, which hold no figures."""
    header, *rows = next(iter(tables.values()))
    labels = next(place for place in range(1, len(header)) if all(_is_figure(row[place]) for row in rows))
    places: dict[tuple[str, ...], dict[str, dict[str, str]]] = {}
    for letter, (columns, *found) in tables.items():
        for row in found:
            of_row = places.setdefault(tuple(row[:labels]), {})
            for column, cell in zip(columns[labels:], row[labels:], strict=True):
                of_row.setdefault(column, {})[letter] = cell
    several = len(header) > labels + 1
    merged = [[*header[:labels], *([""] if several else []), *tables]]
    for label, by_column in places.items():
        for place, (column, cells) in enumerate(by_column.items()):
            shown = label if place == 0 else ("",) * labels
            figures = [cells.get(letter, "") for letter in tables]
            merged.append([*shown, *([column] if several else []), *figures])
    return merged


def _markdown_lines(table: Table) -> Iterator[str]:
    header, *rows = table
    numbers = [
        all(_is_figure(row[place]) for row in rows if place < len(row)) for place in range(len(header))
    ]
    yield f"| {' | '.join(header)} |"
    yield "|" + "|".join("---:" if number else "---" for number in numbers) + "|"
    for row in rows:
        yield f"| {' | '.join(row)} |"


def _is_figure(cell: str) -> bool:
    return not cell or cell[0] in "+-<0123456789*" or cell in ("n/a", "nan")


def rewritten(text: str, figures: dict[str, dict[str, Record]]) -> str:
    """The document with all its marked places written anew."""

    def written(place: re.Match[str]) -> str:
        records, heading = figures.get(place["name"], {}), place["heading"] or ""
        if not any(heading in record.sections for record in records.values()):
            return place[0]
        return f"{place[1]}{markdown(heading, records)}{place[5]}"

    return PLACE.sub(written, text)


# --- what is kept ----------------------------------------------------------------------------------------------


@dataclass
class Kept:
    """docs/benchmarks.json."""

    machines: dict[str, str]
    """Letter → what it is."""
    figures: dict[str, dict[str, Record]]
    """Benchmark → letter → its newest run there."""

    @classmethod
    def read(cls, file: Path) -> Kept:
        kept = json.loads(file.read_text())
        figures = {
            name: {letter: Record.from_json(record) for letter, record in records.items()}
            for name, records in kept["figures"].items()
        }
        return cls(kept["machines"], figures)

    def write(self, file: Path) -> None:
        write_atomically(file, (json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n").encode())

    def letter(self, machine: str) -> str:
        """The letter of a machine; a new one for one that isn't known."""
        for letter, known in self.machines.items():
            if known == machine:
                return letter
        letter = chr(ord("A") + len(self.machines))
        self.machines[letter] = machine
        return letter


def this_machine() -> str:
    """Its kind: processor, instructions that matter to speed, memory, GPU."""
    known = cpu_instructions()
    wide = "AVX-512" if any(name.startswith("avx512") for name in known) else "no AVX-512"
    bf16 = "with bf16 instructions" if cpu_has_bf16() else "no bf16 instructions"
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{os.cpu_count()} cores of {cpu_model()} ({wide}, {bf16}), {memory:.0f} GiB, {_gpu()}"


def _gpu() -> str:
    try:
        listed = subprocess.run(
            ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return "no GPU"
    names = listed.stdout.split("\n")
    return f"{len(names) - 1} {names[0]}"


def measure(name: str, commit: str, images: Path | None) -> Record:
    """Run one benchmark of the tree at `commit`; what it prints is shown, too.

    Raises:
        subprocess.CalledProcessError: it failed.
    """
    command = [sys.executable, str(HERE / COMMANDS[name][0]), *COMMANDS[name][1:]]
    command += [str(images)] if name == "data" else []
    environment = {**os.environ, **({"OMP_NUM_THREADS": "1"} if name in ONE_THREAD else {})}
    load, begun, printed = os.getloadavg()[0], time.monotonic(), []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as running:
        for line in running.stdout or ():
            print(line, end="", flush=True)
            printed.append(line)
    if running.returncode:
        raise subprocess.CalledProcessError(running.returncode, command)
    seconds = time.monotonic() - begun
    return Record(commit, time.strftime("%Y-%m-%d"), load, seconds, read_sections("".join(printed)))


def _commit() -> str:
    described = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=HERE, capture_output=True, text=True, check=True
    )
    return described.stdout.strip()


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=COMMANDS, default=list(COMMANDS), metavar="NAME")
    parser.add_argument("--images", type=Path)
    parser.add_argument("--write", action="store_true")
    given = parser.parse_args()
    kept, failed = Kept.read(DOCS / "benchmarks.json"), []
    commit = _commit()  # before the figures are written, which would make it a changed one
    for name in [] if given.write else given.only:
        if name == "data" and given.images is None:
            print("data is left out: it needs --images FOLDER")
            continue
        print(f"\n## {name}", flush=True)
        try:
            kept.figures.setdefault(name, {})[kept.letter(this_machine())] = measure(
                name, commit, given.images
            )
        except subprocess.CalledProcessError as error:
            print(
                f"{name} ended with exit code {error.returncode}: its figures stay as they were",
                file=sys.stderr,
            )
            failed.append(name)
            continue
        kept.write(DOCS / "benchmarks.json")
    for document in DOCUMENTS:
        write_atomically(document, rewritten(document.read_text(), kept.figures).encode())
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
