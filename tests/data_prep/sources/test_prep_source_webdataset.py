"""Existing WebDataset shards: whole samples or a reason, whatever the order of members."""

from __future__ import annotations

import json
import random
import tarfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prep_helpers import image_bytes, make_folder, prepare_folder, smooth_image
from published_minis import write_tar

from data_prep.config import OutputConfig, PrepareConfig, WebDatasetSource
from data_prep.errors import DataPrepError, RejectedSample
from data_prep.prepare import prepare
from data_prep.sources import Listing, open_source
from data_prep.sources.webdataset_shards import expand_braces, find_shards
from data_prep.verify import verify

TRAIN = {"train": "train-*.tar"}


def listing(path: Path, **settings: Any) -> Listing:
    return open_source(WebDatasetSource(path=path, **({"splits": TRAIN} | settings))).listing()


def sample(key: str, label: int | str = 0, suffix: str = "jpg") -> dict[str, bytes]:
    kind = "PNG" if suffix == "png" else "WEBP" if suffix == "webp" else "JPEG"
    return {f"{key}.{suffix}": image_bytes(smooth_image(len(key)), kind), f"{key}.cls": str(label).encode()}


def test_our_own_shards_come_back(tmp_path: Path) -> None:
    """What we write is a source again: the same keys, labels and bytes."""
    first = prepare_folder(make_folder(tmp_path / "source"), tmp_path / "out", formats=("webdataset",))
    config = PrepareConfig(
        source=WebDatasetSource(path=tmp_path / "out" / "webdataset"),
        output=OutputConfig(path=tmp_path / "again", samples_per_shard=4),
    )
    again = prepare(config, progress=lambda line: None)
    assert {name: split.num_samples for name, split in again.splits.items()} == {"train": 11, "val": 5}
    assert again.classes == ["0", "1", "2"]
    assert verify(tmp_path / "again").ok
    for split in ("train", "val"):
        theirs = [shard.sha256 for shard in again.splits[split].formats["webdataset"]]
        keys = [ref.key for ref in open_source(config.source).listing().splits[split]]
        assert len(keys) == first.splits[split].num_samples and len(theirs) > 0


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 9), st.randoms(use_true_random=False))
def test_any_order_of_members_gives_the_same_samples(
    tmp_path_factory: pytest.TempPathFactory, count: int, chance: random.Random
) -> None:
    root = tmp_path_factory.mktemp("shards")
    members = {}
    for i in range(count):
        members |= {f"a/{i:03d}.jpg": b"%d" % i, f"a/{i:03d}.cls": b"%d\n" % (i % 4), f"a/{i:03d}.txt": b"?"}
    names = list(members)
    chance.shuffle(names)
    write_tar(root / "train-0.tar", {name: members[name] for name in names})
    source = open_source(WebDatasetSource(path=root, splits=TRAIN))
    refs = source.listing().splits["train"]
    assert [(ref.key, ref.label) for ref in refs] == [(f"a/{i:03d}", i % 4) for i in range(count)]
    assert [source.read(ref) for ref in refs] == [b"%d" % i for i in range(count)]


def test_half_samples_are_rejected_with_a_reason(tmp_path: Path) -> None:
    members = sample("good") | sample("unnamed.x") | {"lonely.jpg": image_bytes(smooth_image(1))}
    members |= {"blind.cls": b"1", "readme.txt": b"hello", "word.jpg": b"x", "word.cls": b"cat"}
    members |= {"two.jpg": b"x", "two.png": b"y", "two.cls": b"0", "minus.jpg": b"x", "minus.cls": b"-1"}
    members |= {"__meta__/x.json": b"{}", ".hidden.jpg": b"", "deep/__meta__/x.jpg": b""}
    path = tmp_path / "in" / "train-0.tar"
    path.parent.mkdir()
    write_tar(path, members)
    with tarfile.open(path, "a") as tar:
        for name, kind in (
            ("link.jpg", tarfile.SYMTYPE),
            ("../out.jpg", tarfile.REGTYPE),
            ("good.cls", b"0"),
            ("word.jpg", b"0"),
            ("word.jpg", b"0"),
        ):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "good.jpg"
            tar.addfile(member)
    source = open_source(WebDatasetSource(path=path.parent, splits=TRAIN))
    reasons = {}
    for ref in source.listing().splits["train"]:
        try:
            source.read(ref)
        except RejectedSample as error:
            reasons[ref.key] = str(error)
    assert list(reasons) == sorted(reasons)
    expected = {
        "blind": "no image",
        "good": "two members of the same name",
        "lonely": "no member 'cls'",
        "link": "symbolic link",
        "minus": "neither a whole number",
        "readme": "no image",
        "two": "several images",
        "two%2Epng": "several images",
        "unnamed%2Ex%2Ejpg": "a dot before the suffix",
        "word": "two members of the same name",
        "word%2Ejpg%2E2": "two members of the same name",
        "word%2Ejpg%2E3": "two members of the same name",
    }
    outside = reasons.pop("%2E%2E/out")
    assert "leads out" in outside
    assert reasons.keys() == expected.keys()
    assert all(expected[key] in reason for key, reason in reasons.items()), reasons


def test_rejections_count_against_the_budget(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    members = {name: content for i in range(9) for name, content in sample(f"{i}", i % 2).items()}
    write_tar(tmp_path / "in" / "train-0.tar", members | {"half.jpg": b"x"})

    def job(max_rejected: float) -> PrepareConfig:
        return PrepareConfig(
            source=WebDatasetSource(path=tmp_path / "in", splits=TRAIN),
            output=OutputConfig(path=tmp_path / "out"),
            max_rejected=max_rejected,
        )

    with pytest.raises(DataPrepError, match=r"1 of 10 images can't be used.*no member 'cls'"):
        prepare(job(0), progress=lambda line: None)
    assert prepare(job(0.1), progress=lambda line: None).splits["train"].num_samples == 9
    (line,) = (tmp_path / "out" / "rejected.jsonl").read_text().splitlines()
    assert json.loads(line)["key"] == "half"


def test_labels_from_json_and_by_name(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("cat\ndog\n")
    members = {}
    for key, label in (("a", 1), ("b", "0"), ("c", "dog"), ("d", True), ("e", None), ("f", 1.5)):
        members |= {f"{key}.png": b"x", f"{key}.json": json.dumps({"label": label}).encode()}
    members |= {"g.png": b"x", "g.json": b"[1]", "h.png": b"x", "h.json": b"\xff"}
    write_tar(tmp_path / "train-0.tar", members)
    found = listing(tmp_path, label_field="json:label", class_names="names.txt")
    assert found.classes == ["cat", "dog"]
    assert [ref.label for ref in found.splits["train"]] == [1, 0, 1, -1, -1, -1, -1, -1]
    write_tar(tmp_path / "train-0.tar", sample("x", 2))
    with pytest.raises(DataPrepError, match=r"train-0\.tar: sample x has the label 2, .* has 2 names"):
        listing(tmp_path, class_names="names.txt")
    write_tar(tmp_path / "train-0.tar", sample("x", 999999999))
    with pytest.raises(DataPrepError, match="sample x has the label 999,999,999"):
        listing(tmp_path)
    for text in ("", "a\n\nb\n", "a\na\n"):
        (tmp_path / "names.txt").write_text(text)
        with pytest.raises(DataPrepError, match="one class name a line"):
            listing(tmp_path, class_names="names.txt")


def test_keys_that_repeat_over_shards_get_the_shards_name(tmp_path: Path) -> None:
    write_tar(tmp_path / "train-0.tar", sample("0", 0) | sample("1", 1, "webp"))
    (tmp_path / "more").mkdir()
    write_tar(tmp_path / "more" / "train-0.tar", sample("0", 2, "png"))
    found = listing(tmp_path, splits={"train": "**/train-*.tar"})
    assert [ref.key for ref in found.splits["train"]] == ["more/train-0/0", "train-0/0", "train-0/1"]
    assert found.classes == ["0", "1", "2"]


def test_damaged_shards_are_errors(tmp_path: Path) -> None:
    path = tmp_path / "train-0.tar"
    write_tar(path, sample("0") | sample("1"))
    path.write_bytes(path.read_bytes()[:2560])
    with pytest.raises(DataPrepError, match=r"train-0\.tar, byte [\d,]+: it is cut short"):
        listing(tmp_path)
    write_tar(path, {})
    with pytest.raises(DataPrepError, match="hold no samples"):
        listing(tmp_path)


def test_which_shards(tmp_path: Path) -> None:
    for name in ("a-000.tar", "a-001.tar", "a-010.tar", "b.tar"):
        write_tar(tmp_path / name, sample(name[:-4].replace("-", "_")))
    assert find_shards(tmp_path, "a-{000..001}.tar", "f") == ["a-000.tar", "a-001.tar"]
    assert find_shards(tmp_path, "{b,a-*}.tar", "f") == ["a-000.tar", "a-001.tar", "a-010.tar", "b.tar"]
    with pytest.raises(
        DataPrepError, match=r"f: no file a-002\.tar, a-003\.tar, a-004\.tar and 5 more below"
    ):
        find_shards(tmp_path, "a-{000..010}.tar", "f")
    with pytest.raises(DataPrepError, match=r"source\.splits\.train: no file .*the tars there: a-000\.tar"):
        listing(tmp_path)
    for pattern in ("/etc/*", "../*.tar", ""):
        with pytest.raises(DataPrepError, match="must lie below"):
            find_shards(tmp_path, pattern, "f")
    with pytest.raises(DataPrepError, match="in both 'train' and 'val'"):
        listing(tmp_path, splits={"train": "*.tar", "val": "b.tar"})
    with pytest.raises(DataPrepError, match="not a folder"):
        listing(tmp_path / "b.tar")
    (tmp_path / "inside").mkdir()
    (tmp_path / "inside" / "c.tar").symlink_to(tmp_path / "b.tar")
    with pytest.raises(DataPrepError, match="leads out"):
        find_shards(tmp_path / "inside", "*.tar", "f")


def test_braces() -> None:
    assert expand_braces("x") == ["x"]
    assert expand_braces("{8..11}") == ["8", "9", "10", "11"]
    assert expand_braces("{008..11}-{b,a}")[:3] == ["008-b", "008-a", "009-b"]
    assert expand_braces("{2..0}") == ["2", "1", "0"]
    assert set(expand_braces("{a,{b,c}}")) == {"a", "b", "c"}
    for broken in ("{", "a}", "{abc}", "{1..}", "{}", "{1..9999999}", "{0..999}{0..9999}"):
        with pytest.raises(DataPrepError):
            expand_braces(broken)
