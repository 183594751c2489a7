"""Tars made to harm: refused in a line, or read at a cost in proportion to their length."""

from __future__ import annotations

import gzip
import tarfile
from pathlib import Path

import pytest
from hostile import outcomes
from prep_helpers import make_folder, prepare_folder
from published_minis import MiniImageNet, tar_bytes

from data_prep.errors import DataPrepError

END = bytes(1024)
NEGATIVE = b"\xff" * 12
ZEROS = gzip.compress(bytes(8 << 20))
FILE = tar_bytes({"a.jpg": b"abc"})[:1024]


def header(kind: bytes, size: int | bytes, name: str = "a.jpg") -> bytes:
    """A header with a right checksum, whatever its size field says."""
    block = bytearray(tarfile.TarInfo(name).tobuf(tarfile.USTAR_FORMAT))
    block[124:136] = size if isinstance(size, bytes) else b"%011o\0" % size
    block[156:157] = kind
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def extension(content: bytes, kind: bytes = b"x") -> bytes:
    return header(kind, len(content)) + content + bytes(-len(content) % 512)


def record(key: str, value: str) -> bytes:
    body = f" {key}={value}\n".encode()
    return next(b"%d" % n + body for n in range(len(body), len(body) + 9) if len(b"%d" % n + body) == n)


REFUSED = {
    f"extended header {content[:30]!r}": extension(content) + FILE + END
    for content in (
        b"0 path=x\n",
        b"-1 path=x\n",
        b"+9 path=x",
        b"1 path=x\n",
        b"2 \n",
        b"3  \n",
        b"6 path\n",
        b"7 path\n",
        b"7 =abc\n",
        b"8 path=x\n",
        b"99 path=x\n",
        b" path=x\n",
        b"1_0 path=xy\n",
        b"\xb2 path=x\n",
        b"9" * 30 + b" path=x\n",
        b"9" * 100_000 + b" path=x\n",
        record("size", "-1"),
        record("size", "+3"),
        record("size", "1_0"),
        record("size", "9" * 30),
        record("size", "9" * 10_000),
        record("path", "__a" * 300_000),
    )
} | {
    "a long name of 1 MB": extension(b"__a" * 300_000, b"L") + FILE + END,
    "an extended header larger than the file": header(b"x", 8 << 30) + END,
    "a global header of base-256 size": header(b"g", b"\x80" + b"\xff" * 11) + END,
    "a negative size": header(b"0", NEGATIVE) + END,
    "a negative extended header": header(b"x", NEGATIVE) + FILE + END,
    "a negative long name": header(b"L", NEGATIVE) + FILE + END,
    "a negative sparse file": header(b"S", NEGATIVE) + END,
    "a size of 88 bits": header(b"0", b"\x80" + b"\xff" * 11) + END,
    "a size of eight octal GiB": header(b"0", 8 << 29) + b"abc" + END,
    "a size that is no number": header(b"0", b"00_000000+3\0") + END,
    "a sparse map without end": header(b"S", 3)[:482] + b"\1" + bytes(29) + (bytes(504) + b"\1" + bytes(7)) * 20,
    "long names without a file": extension(b"x\0", b"L") * 5_000 + END,
}  # fmt: skip
READ = {
    "a size taken back": extension(record("size", "9") + record("size", "")) + FILE + END,
    "90,000 tiny records": extension(record("a", "") * 90_000) + FILE + END,
    "20,000 extended headers": extension(record("comment", "x" * 400)) * 20_000 + FILE + END,
    "global headers of new names, and 5,000 files": b"".join(
        extension(b"".join(record(f"{i}.{j}", "") for j in range(500)), b"g") for i in range(50)
    )
    + FILE * 5_000
    + END,
    "5,000 long names": extension(b"y\0", b"L") * 5_000 + FILE + END,
}


def test_tars_that_harm(tmp_path: Path) -> None:
    files = {}
    for number, (label, content) in enumerate((REFUSED | READ).items()):
        files[label] = tmp_path / f"{number}.tar"
        files[label].write_bytes(content)
    files["a terabyte of zeros"] = tmp_path / "zeros.tar"
    with files["a terabyte of zeros"].open("wb") as file:
        file.write(FILE)
        file.truncate(1 << 40)
    found = outcomes(
        files,
        "from data_prep.errors import DataPrepError\nfrom data_prep.sources.archives.tar_members import tar_members\n"
        "import os",
        "sum(1 for _ in tar_members(os.open(path, os.O_RDONLY), 'tar'))",
        "DataPrepError",
        memory=1 << 29,
        seconds=20,
    )
    assert list(found) == list(files)
    assert {label for label, message in found.items() if message == "accepted"} == set(READ)
    assert all(message.startswith("tar, byte ") for label, message in found.items() if label not in READ)
    assert max(map(len, found.values())) < 300


def test_published_archives_that_harm(tmp_path: Path) -> None:
    """Python's own tarfile reads negative sizes for ever, and recurses into chains of long names."""
    archives = {
        "a negative size": gzip.compress(header(b"0", NEGATIVE) + FILE + END),
        "a negative extended header": gzip.compress(header(b"x", NEGATIVE) + FILE + END),
        "long names": gzip.compress(extension(b"x\0", b"L") * 20_000 + END),
        "zeros": gzip.compress(header(b"0", 600 << 20)) + ZEROS * 75,
        "an extended header of 600 MB": gzip.compress(header(b"x", 600 << 20)) + ZEROS * 75,
        "cut short": gzip.compress(FILE * 9 + END)[:-30],
        "no gzip": b"\x1f\x8b" + bytes(100),
        "bzip2": b"BZh9" + bytes(600),
        "empty": b"",
    }
    files = {label: tmp_path / f"{number}.tar.gz" for number, label in enumerate(archives)}
    for label, content in archives.items():
        files[label].write_bytes(content)
    found = outcomes(
        files,
        "from data_prep.errors import DataPrepError\nfrom data_prep.sources.archives.published import unpack",
        "unpack(path, path.parent / 'out', lambda name: 'x')",
        "DataPrepError",
        memory=1 << 30,
        seconds=20,
    )
    assert list(found) == list(files)
    assert all("is not an intact archive" in message for message in found.values()), found
    assert "unpacks to more than 100,000,000 bytes" in found["zeros"]


@pytest.mark.parametrize("size", [NEGATIVE, 600 << 20], ids=["negative", "large"])
def test_imagenets_devkit_is_read_so_too(tmp_path: Path, size: int | bytes) -> None:
    from data_prep.sources.imagenet.tars import PublishedTars

    root = MiniImageNet().tars(tmp_path / "in")
    content = header(b"0", size, "ILSVRC2012_devkit_t12/data/meta.mat") + END
    (root / "ILSVRC2012_devkit_t12.tar.gz").write_bytes(gzip.compress(content))
    with pytest.raises(DataPrepError, match="is not an intact archive"):
        PublishedTars(root, check_md5=False).synsets()


def test_names_that_make_patterns_search_for_long(tmp_path: Path) -> None:
    name = "__a" * 1_360
    members = b"".join(extension(f"{name}{i}.jpg".encode(), b"L") + header(b"0", 0) for i in range(2_000))
    (tmp_path / "a-train.tar").write_bytes(members + END)
    others = {"a.jpg": b"x", "a.cls": b"0", "b__x__/a.jpg": b"x", "__y__.jpg": b""}
    (tmp_path / "a-val.tar").write_bytes(tar_bytes(others))
    found = outcomes(
        {"tars": tmp_path},
        "from data_prep.config import WebDatasetSource\n"
        "from data_prep.sources.webdataset_shards import open_source\n"
        "def read(config): raise ValueError([len(v) for v in open_source(config).listing().splits.values()])",
        "read(WebDatasetSource(path=path))",
        "ValueError",
        seconds=15,
    )
    assert found == {"tars": "[2000, 2]"}


def test_a_hostile_shard_is_a_finding_of_verify(tmp_path: Path) -> None:
    prepare_folder(
        make_folder(tmp_path / "source", train=4, val=2), tmp_path / "out", formats=("webdataset",)
    )
    shard = next((tmp_path / "out" / "webdataset").glob("train*.tar"))
    shard.write_bytes(shard.read_bytes().rstrip(b"\0") + bytes(512) + header(b"0", NEGATIVE) + END)
    found = outcomes(
        {"dataset": tmp_path / "out"},
        "from data_prep.verify import verify\ndef read(path): raise ValueError(verify(path).problems)",
        "read(path)",
        "ValueError",
        seconds=30,
    )
    assert "its structure is damaged: the tar, byte " in found["dataset"]
