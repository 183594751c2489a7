from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from convmlp_platform.tracking.delivery_state import (
    FeedState,
    journal_path,
    load_feed,
    save_feed,
    tracking_folder,
)
from convmlp_platform.tracking.journal import (
    Artifact,
    Journal,
    MetricsRecord,
    Params,
    Record,
    Tags,
    read_chunk,
    tail_start,
)

texts = st.dictionaries(st.text(max_size=20), st.text(max_size=50), max_size=4)
records: st.SearchStrategy[Record] = st.one_of(
    st.builds(Params, values=texts),
    st.builds(Tags, values=texts),
    st.builds(
        MetricsRecord,
        step=st.integers(0, 2**40),
        values=st.dictionaries(st.text(max_size=9), st.floats(), max_size=4),
    ),
    st.builds(Artifact, source=st.text(), folder=st.text()),
)


@given(written=st.lists(records, max_size=8), cut=st.integers(0, 200))
@settings(max_examples=60, deadline=None)
def test_every_record_survives_a_torn_end_but_the_torn_one(written: list[Record], cut: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "journal.jsonl"
        journal = Journal(path)
        for record in written:
            journal.append(record)
        journal.close()
        assert repr(read_chunk(path).records) == repr(written)  # repr: NaN is not equal to itself

        content = path.read_bytes()
        path.write_bytes(content[: max(0, len(content) - cut)])
        whole = path.read_bytes().count(b"\n")
        journal = Journal(path)
        journal.append(Tags(time=1, values={"after": "crash"}))
        journal.close()
        expected = [*written[:whole], Tags(time=1, values={"after": "crash"})]
        assert repr(read_chunk(path).records) == repr(expected)


def test_reading_goes_on_where_it_stopped(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    journal = Journal(path)
    for step in range(10):
        journal.append(MetricsRecord(step=step, values={"loss": step / 2}))
    first = read_chunk(path, max_bytes=1)
    assert len(first.records) == 1 and first.ends == [first.end]
    rest = read_chunk(path, first.end)
    assert [r.step for r in rest.records if isinstance(r, MetricsRecord)] == list(range(1, 10))
    assert read_chunk(path, rest.end).records == []
    journal.close()


def test_the_end_of_a_journal_begins_with_a_whole_line(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    assert tail_start(path, 100) == 0
    lines = [b"a" * length + b"\n" for length in (10, 30, 5, 50)]
    path.write_bytes(b"".join(lines))
    starts = [0, 11, 42, 48, 99]
    for max_bytes in range(1, 120):
        assert tail_start(path, max_bytes) == min(start for start in starts if start >= 99 - max_bytes)


def test_a_damaged_line_costs_only_itself(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "journal.jsonl"
    journal = Journal(path)
    journal.append(Tags(values={"a": "1"}))
    journal.close()
    path.write_bytes(path.read_bytes() + b"\0\0\0\n" + path.read_bytes())
    chunk = read_chunk(path)
    assert len(chunk.records) == 2 and chunk.damaged == 1
    assert "1 damaged lines" in caplog.text


def test_a_missing_journal_is_an_empty_one(tmp_path: Path) -> None:
    assert read_chunk(tmp_path / "none").records == []


@pytest.mark.parametrize("damage", [b"1e999", b"1" + b"0" * 30, b"-1", b'"3"', b"[" * 9999, b"true"])
def test_a_record_with_a_number_that_no_server_takes_is_left_out(tmp_path: Path, damage: bytes) -> None:
    path = tmp_path / "journal.jsonl"
    path.write_bytes(b'{"kind":"metrics","time":1,"step":%s,"values":{}}\n' % damage)
    journal = Journal(path)
    journal.append(MetricsRecord(step=3, values={"loss": 1.0}))
    journal.close()
    chunk = read_chunk(path)
    steps = [record.step for record in chunk.records if isinstance(record, MetricsRecord)]
    assert steps[-1] == 3 and all(0 <= step < 1 << 63 for step in steps)


@pytest.mark.parametrize(
    "content",
    [
        b'{"values": 7, "artifacts": 0}',
        b'{"values": 1000000, "artifacts": 0}',
        b'{"values": 1' + b"0" * 30 + b"}",
        b'{"values": 1e999}',
        b'{"run_id": 5}',
        b"[" * 100_000,
        b"",
    ],
)
def test_a_position_that_is_none_of_the_journals_is_as_good_as_none(tmp_path: Path, content: bytes) -> None:
    """Taken at its word, it would leave records unsent and say that all of them were."""
    journal = Journal(journal_path(tmp_path))
    journal.append(Tags(time=1, values={"a": "b"}))
    end = journal.path.stat().st_size
    journal.append(Tags(time=2, values={"c": "d"}))
    journal.close()
    save_feed(tmp_path, FeedState(address="a", run_id="r", values=end))
    assert load_feed(tmp_path).values == end
    (tracking_folder(tmp_path) / "feed.json").write_bytes(content)
    assert load_feed(tmp_path) == FeedState()
