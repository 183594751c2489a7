"""Reading tar headers: as Python's tarfile reads them, and never silently fewer members."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from published_minis import tar_bytes

from data_prep.errors import DataPrepError, RejectedSample
from data_prep.sources.archives.archive_bytes import ByteRanges, range_location
from data_prep.sources.archives.tar_members import PROBLEMS, TarMember, tar_members

NAMES = st.text(
    st.characters(blacklist_categories=("Cs", "Cc"), blacklist_characters="/"), min_size=1, max_size=60
)
PATHS = st.lists(NAMES.filter(lambda name: name not in (".", "..")), min_size=1, max_size=5).map("/".join)
FILES = st.dictionaries(PATHS, st.binary(max_size=1200), min_size=1, max_size=5)
FORMATS = st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])


def scan(content: bytes, folder: Path, *, start: int = 0, end: int | None = None) -> list[TarMember]:
    path = folder / "a.tar"
    path.write_bytes(content)
    with path.open("rb") as file:
        return list(tar_members(file.fileno(), "a.tar", start, end))


def one_member(**fields: object) -> bytes:
    """A tar of one member that tarfile writes as told."""
    member = tarfile.TarInfo("image.jpg")
    for name, value in fields.items():
        setattr(member, name, value)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        tar.addfile(member, io.BytesIO(bytes(member.size)))
    return buffer.getvalue()


@settings(max_examples=60, deadline=None)
@given(FILES, FORMATS)
def test_members_as_tarfile_sees_them(
    tmp_path_factory: pytest.TempPathFactory, files: dict[str, bytes], kind: int
) -> None:
    content = tar_bytes(files, kind=kind)
    found = scan(content, tmp_path_factory.getbasetemp())
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        expected = [TarMember(m.name, m.offset_data, m.size, "") for m in tar]
    assert found == expected
    assert [content[m.offset : m.offset + m.size] for m in found] == list(files.values())


def test_ustar_prefix_and_nested_tars(tmp_path: Path) -> None:
    long = f"{'d' * 90}/{'f' * 90}.JPEG"
    inner = tar_bytes({long: b"content"}, kind=tarfile.USTAR_FORMAT)
    outer = tar_bytes({"inner.tar": inner})
    (member,) = scan(outer, tmp_path)
    assert scan(outer, tmp_path, start=member.offset, end=member.offset + member.size) == [
        TarMember(long, member.offset + 512, 7, "")
    ]
    # an inner tar without end mark: the outer one vouches for its length
    bare = inner[:1024]
    (member,) = scan(tar_bytes({"inner.tar": bare}), tmp_path)
    assert len(scan(tar_bytes({"inner.tar": bare}), tmp_path, start=512, end=512 + len(bare))) == 1


def test_every_cut_is_noticed(tmp_path: Path) -> None:
    content = tar_bytes({"a.jpg": b"x" * 700, "b" * 150: b"y" * 10, "c.cls": b"1"})
    end_mark = max(member.offset for member in scan(content, tmp_path)) + 512
    for length in range(0, end_mark + 512, 37):
        with pytest.raises(DataPrepError, match=r"a\.tar, byte [\d,]+: it (is cut short|ends after)"):
            scan(content[:length], tmp_path)
    assert len(scan(content[: end_mark + 512], tmp_path)) == 3


def test_every_flipped_bit_of_a_header_is_noticed(tmp_path: Path) -> None:
    content = tar_bytes({"a.jpg": b"x" * 700, "b.jpg": b"y"})
    for bit in range(0, 512 * 8, 13):
        damaged = bytearray(content)
        damaged[1536 + bit // 8] ^= 1 << bit % 8
        try:
            found = scan(bytes(damaged), tmp_path)
        except DataPrepError as error:
            assert "byte 1,536: there is no intact member header" in str(error)
        else:  # blanks and NULs that end the checksum field don't count
            assert [member.name for member in found] == ["a.jpg", "b.jpg"]
            assert 148 <= bit // 8 < 156


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x1f\x8b" + bytes(600), "compressed with gzip"),
        (b"x" * 2000, "not an uncompressed tar"),
        (b"", "cut short"),
        (tar_bytes({"a": b"1"}) + tar_bytes({"b": b"2"}), "goes on after tar's end mark"),
        (one_member(size=4)[:300], "cut short"),
    ],
)
def test_what_is_no_tar(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(DataPrepError, match=message):
        scan(content, tmp_path)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (one_member(type=tarfile.SYMTYPE, linkname="/etc/passwd"), "symlink"),
        (one_member(type=tarfile.LNKTYPE, linkname="other.jpg"), "hardlink"),
        (one_member(type=tarfile.CHRTYPE), "special"),
        (one_member(type=tarfile.FIFOTYPE), "special"),
        (one_member(type=b"V"), "special"),
        (one_member(name="../../etc/image.jpg"), "outside"),
        (one_member(name="/etc/image.jpg"), "outside"),
        (one_member(name="a/../../image.jpg", type=tarfile.SYMTYPE), "symlink"),
        (one_member(pax_headers={"GNU.sparse.major": "1", "GNU.sparse.name": "image.jpg"}), "sparse"),
    ],
)
def test_members_that_are_no_plain_files(tmp_path: Path, content: bytes, problem: str) -> None:
    (member,) = scan(content, tmp_path)
    assert member.problem == problem
    location = range_location("a.tar", member.offset, member.problem)
    with pytest.raises(RejectedSample, match=PROBLEMS[problem][:20]):
        ByteRanges(tmp_path, PROBLEMS).read(location)


def test_old_gnu_sparse_maps_are_skipped(tmp_path: Path) -> None:
    header = bytearray(one_member(size=3, type=b"S", name="hole.jpg")[:512])
    header[482] = 1  # a block of the map follows
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    content = bytes(header) + bytes(512) + b"abc".ljust(512, b"\0") + tar_bytes({"after.jpg": b"x"})
    first, second = scan(content, tmp_path)
    assert (first.problem, first.offset, second.name) == ("sparse", 1024, "after.jpg")


def test_pax_size_and_path_override(tmp_path: Path) -> None:
    content = tar_bytes({"short": b""})[:512]
    records = b"".join(
        b"%d %s\n" % (len(record) + 4, record) for record in (b"path=real/name.jpg", b"size=000005")
    )
    extension = one_member(name="x", type=tarfile.XHDTYPE, size=len(records))[:512] + records.ljust(
        512, b"\0"
    )
    body = b"12345".ljust(512, b"\0")
    (member,) = scan(extension + content + body + bytes(1024), tmp_path)
    assert member == TarMember("real/name.jpg", 1536, 5, "")
    for broken in (b"999 path=x\n", b"11 path=x\n", b"x path=y\n", b"10 size=-1\n", b"9 size=x\n"):
        damaged = one_member(name="x", type=tarfile.XHDTYPE, size=len(broken))[:512] + broken.ljust(
            512, b"\0"
        )
        with pytest.raises(DataPrepError, match="extended header"):
            scan(damaged + content + bytes(1024), tmp_path)
    with pytest.raises(DataPrepError, match="belongs to no member"):
        scan(extension + bytes(1024), tmp_path)


def test_members_beyond_eight_gigabytes(tmp_path: Path) -> None:
    """GNU's base-256 sizes and offsets beyond 32 bits, in a file of holes."""
    size, path = 9 << 30, tmp_path / "a.tar"
    big = tarfile.TarInfo("big.bin")
    big.size = size
    with path.open("wb") as file:
        file.write(big.tobuf(tarfile.GNU_FORMAT))
        file.seek(size, io.SEEK_CUR)
        file.write(tar_bytes({"small.jpg": b"tiny"}))
    with path.open("rb") as file:
        first, second = tar_members(file.fileno(), "a.tar")
    assert (first.size, second.name, second.offset) == (size, "small.jpg", size + 1024)
    ranges = ByteRanges(tmp_path, PROBLEMS)
    assert ranges.read(range_location("a.tar", second.offset, second.size)) == b"tiny"
    with pytest.raises(RejectedSample, match="more than an image can have"):
        ranges.read(range_location("a.tar", first.offset, first.size))


def test_ranges_keep_few_files_open_and_notice_change(tmp_path: Path) -> None:
    for i in range(80):
        (tmp_path / f"{i}:x.bin").write_bytes(b"%03d" % i)
    ranges = ByteRanges(tmp_path, {})
    for i in [*range(80), *range(80)]:
        assert ranges.read(range_location(f"{i}:x.bin", 1, 2)) == (b"%03d" % i)[1:]
    assert len(ranges._open) <= 64
    with pytest.raises(OSError, match="was changed"):
        ranges.read("5:x.bin:2:9")
    with pytest.raises(FileNotFoundError):
        ranges.read("absent.tar:0:1")
