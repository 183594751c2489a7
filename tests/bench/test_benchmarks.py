"""docs/benchmarks.md and docs/scaling.md are written from what the benchmarks printed."""

from __future__ import annotations

from pathlib import Path

import benchmarks
import pytest
from benchmarks import Kept, Record, Section

PRINTED = """x86_64, 2 cores, load average 0.1

### Reading

| what | images/s |
|---|---:|
| ours | 1,400 |
| theirs | 700 |

Ours is 2.00 times as fast.

### Killing

| killed | who restarts | kills | next step after |
|---|---|---:|---:|
| a worker | ours | 6 | 2.7 s |
| a worker | theirs | 6 | 18.7 s |
"""


def record(printed: str) -> Record:
    return Record("abc1234", "2026-11-30", 0.1, 12.3, benchmarks.read_sections(printed))


def test_tables_and_remarks_are_found_by_heading() -> None:
    found = benchmarks.read_sections(PRINTED)
    assert found["Reading"] == Section(
        [[["what", "images/s"], ["ours", "1,400"], ["theirs", "700"]]], ["Ours is 2.00 times as fast."]
    )
    assert found["Killing"].tables[0][2] == ["a worker", "theirs", "6", "18.7 s"]
    assert set(found) == {"Reading", "Killing"}, "what tells of the machine is no remark"


def test_one_machine_shows_the_table_as_it_was_printed() -> None:
    text = "before\n<!-- measured: data/Reading -->\nold\n<!-- end -->\nafter\n"
    assert benchmarks.rewritten(text, {"data": {"B": record(PRINTED)}}) == (
        "before\n<!-- measured: data/Reading -->\n"
        "Machine B at abc1234, 2026-11-30, load 0.1 before, 12 s.\n\n"
        "| what | images/s |\n|---|---:|\n| ours | 1,400 |\n| theirs | 700 |\n\n"
        "Ours is 2.00 times as fast.\n"
        "<!-- end -->\nafter\n"
    )


def test_machines_have_a_column_each_and_a_row_is_known_by_its_labels() -> None:
    other = PRINTED.replace("1,400", "2,800").replace("| theirs | 700 |\n", "").replace("2.7 s", "1.1 s")
    records = {"A": record(PRINTED), "B": record(other)}
    assert "| ours | 1,400 | 2,800 |\n| theirs | 700 |  |\n" in benchmarks.markdown("Reading", records)
    killing = benchmarks.markdown("Killing", records)
    assert "| killed | who restarts |  | A | B |\n|---|---|---|---:|---:|\n" in killing
    assert "| a worker | ours | kills | 6 | 6 |\n|  |  | next step after | 2.7 s | 1.1 s |\n" in killing


@pytest.mark.parametrize("name", ["unknown", "data/No such heading"])
def test_what_nobody_measured_stays(name: str) -> None:
    text = f"<!-- measured: {name} -->\n| cell |\n<!-- end -->\n"
    assert benchmarks.rewritten(text, {"data": {"B": record(PRINTED)}}) == text


def test_a_machine_is_known_again(tmp_path: Path) -> None:
    kept = Kept({"A": "one"}, {"data": {"A": record(PRINTED)}})
    assert [kept.letter(machine) for machine in ("one", "another", "one", "another")] == ["A", "B", "A", "B"]
    kept.write(tmp_path / "kept.json")
    assert Kept.read(tmp_path / "kept.json") == kept


def test_the_documents_show_what_is_kept() -> None:
    text = "".join(document.read_text() for document in benchmarks.DOCUMENTS)
    kept = Kept.read(benchmarks.DOCS / "benchmarks.json")
    assert benchmarks.rewritten(text, kept.figures) == text, "make benchmarks ARGS=--write"
    places = {place["name"] for place in benchmarks.PLACE.finditer(text)}
    assert set(kept.figures) <= places <= set(benchmarks.COMMANDS), "each that is kept has its place"
    for letter, machine in kept.machines.items():
        assert f"**Machine {letter}**: {machine}" in text
