"""Existing WebDataset shards (Aizman, Maltby and Breuel, "High Performance I/O For Large Scale Deep Learning", 2019).

Readers of WebDataset see a sample as neighbouring members and lose what comes apart. Here a tar's members are
grouped over the whole tar, and what is no whole sample is listed, to be rejected with its reason when it is read.

The files that a pattern such as `train-{000..146}.tar` or `*val*.tar` names below a folder.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from data_prep.config import WebDatasetSource
from data_prep.console import some_of
from data_prep.errors import DataPrepError
from data_prep.sources.archives.archive_bytes import ByteRanges, range_location
from data_prep.sources.archives.tar_members import PROBLEMS, TarMember, tar_members
from data_prep.sources.parsing.source_folder import read_text, sample_key
from data_prep.sources.source import Listing, SampleRef

_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_MAX_NAMES = 100_000


def expand_braces(pattern: str) -> list[str]:
    """`a{1..3}` → a1 a2 a3, `{000..146}` keeps its zeros, `{x,y}` → x y, as in a shell; in order, each once.

    Raises:
        DataPrepError: a brace has no partner, or there are more than 100,000 names.
    """
    names = [pattern]
    while any(_BRACES.search(name) for name in names):
        expanded: dict[str, None] = {}
        for name in names:
            match = _BRACES.search(name)
            choices = _choices(match[1]) if match else [""]
            if len(expanded) + len(choices) > _MAX_NAMES:
                raise DataPrepError(f"{pattern!r} stands for more than {_MAX_NAMES:,} names")
            for choice in choices:
                expanded[name[: match.start()] + choice + name[match.end() :] if match else name] = None
        names = list(expanded)
    if any("{" in name or "}" in name for name in names):
        raise DataPrepError(f"{pattern!r} has a brace without its partner")
    return names


def find_shards(root: Path, pattern: str, where: str) -> list[str]:
    """The files below `root` that a pattern names, relative to it, sorted.

    Args:
        root: the folder.
        pattern: with braces and wildcards.
        where: the dotted field the pattern is from, for messages.

    Raises:
        DataPrepError: no file matches, one that is named outright is missing, or one lies outside of `root`.
    """
    found: dict[str, None] = {}
    absent = []
    for name in expand_braces(pattern):
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts or not name:
            raise DataPrepError(f"{where}: {name!r} must lie below source.path, {root}")
        if any(character in name for character in "*?["):
            matches = [str(path.relative_to(root)) for path in root.glob(name) if path.is_file()]
        else:
            matches = [name] if (root / name).is_file() else []
        if not matches:
            absent.append(name)
        found |= dict.fromkeys(matches)
    if absent:
        raise DataPrepError(f"{where}: no file {some_of(absent, 3)} below {root}{_what_is_there(root)}")
    for name in found:
        if not (root / name).resolve().is_relative_to(root.resolve()):
            raise DataPrepError(f"{root / name} leads out of source.path to {(root / name).resolve()}")
    return sorted(found)


def _choices(inside: str) -> list[str]:
    if match := _RANGE.fullmatch(inside):
        first, last = int(match[1]), int(match[2])
        if abs(last - first) >= _MAX_NAMES:
            raise DataPrepError(f"{{{inside}}} stands for more than {_MAX_NAMES:,} names")
        padded = any(text.startswith("0") and len(text) > 1 for text in match.groups())
        width = max(map(len, match.groups())) if padded else 0
        step = 1 if last >= first else -1
        return [f"{number:0{width}d}" for number in range(first, last + step, step)]
    if "," not in inside:
        raise DataPrepError(f"{{{inside}}} is neither a range {{000..146}} nor a list {{a,b}}")
    return inside.split(",")


def _what_is_there(root: Path) -> str:
    tars = sorted(str(path.relative_to(root)) for glob in ("*.tar", "*/*.tar") for path in root.glob(glob))
    return f"; the tars there: {some_of(tars, 3)}" if tars else ", where there are no tars at all"


_IMAGE_FIELDS = {"jpg", "jpeg", "png", "webp", "bmp"}
_SCANNERS = 16
_MAX_LABEL_BYTES = 1 << 20
_MAX_UNNAMED_CLASSES = 1_000_000


class _Sample(NamedTuple):
    shard: str
    key: str
    label: int
    """-1 for what is not a whole sample."""
    location: str


def open_source(config: WebDatasetSource) -> WebDatasetShards:
    """The shards below `path`."""
    return WebDatasetShards(config)


class WebDatasetShards:
    """Samples of one image and one label each; keys are the members' names up to the first dot of the file name,
    after the shard's name where a key occurs in several shards of a split."""

    def __init__(self, config: WebDatasetSource) -> None:
        self._config = config
        self._root = config.path.expanduser()
        field = config.label_field
        self._label_member = "json" if field.startswith("json:") else field.lower()
        self._problems = PROBLEMS | {
            "no-image": f"its sample has no image ({', '.join(sorted(_IMAGE_FIELDS))})",
            "dots": "its name has a dot before the suffix, and WebDataset ends a sample's name at the first dot: "
            "rename it, and its label, without",
            "two-images": "its sample has several images",
            "twice": "its sample has two members of the same name",
            "no-label": f"its sample has no member {self._label_member!r} for the label",
            "bad-label": f"its label ({field}) is neither a whole number from 0 nor a known class name",
        }
        self._ranges = ByteRanges(self._root, self._problems)

    def listing(self) -> Listing:
        """Reads all headers and labels of all shards.

        Raises:
            DataPrepError: shards are missing, damaged or cut short, or a label has no class.
        """
        if not self._root.is_dir():
            raise DataPrepError(f"source.path: {self._root} is not a folder of shards")
        names = self._class_names()
        numbers = {name: i for i, name in enumerate(names)}
        shards = {
            split: find_shards(self._root, pattern, f"source.splits.{split}")
            for split, pattern in self._config.splits.items()
        }
        self._expect_disjoint(shards)
        samples = {split: self._samples(found, numbers) for split, found in shards.items()}
        classes = names or self._numbered(list(chain.from_iterable(samples.values())))
        return Listing(
            classes, {split: _refs(found, len(classes), self._config) for split, found in samples.items()}
        )

    def read(self, ref: SampleRef) -> bytes:
        """The image member's bytes, untouched."""
        return self._ranges.read(ref.location)

    def files(self, ref: SampleRef) -> tuple[str]:
        """The sample's shard."""
        return (f"{self._root}/{ref.location.rsplit(':', 2)[0]}",)

    def _samples(self, shards: list[str], numbers: dict[str, int]) -> list[_Sample]:
        with ThreadPoolExecutor(_SCANNERS) as threads:
            found = list(
                chain.from_iterable(threads.map(lambda shard: list(self._scan(shard, numbers)), shards))
            )
        if not found:
            raise DataPrepError(f"{self._root}: {', '.join(shards[:3])} hold no samples")
        return found

    def _scan(self, shard: str, numbers: dict[str, int]) -> Iterator[_Sample]:
        groups: dict[str, dict[str, TarMember]] = {}
        torn: dict[str, dict[str, TarMember]] = {}
        with (self._root / shard).open("rb") as file:
            for member in tar_members(file.fileno(), str(self._root / shard)):
                key, field = _key_and_field(member.name)
                if not key:
                    continue
                group = groups.setdefault(key, {})
                if field in group:
                    again = torn.setdefault(key, {})
                    again[f"{field}.{len(again) + 2}"] = member
                group.setdefault(field, member)
            for key, group in groups.items():
                plain = [group[field] for field in sorted(_IMAGE_FIELDS & group.keys())]
                dotted = (
                    [] if plain else [field for field in sorted(group) if _suffix(field) in _IMAGE_FIELDS]
                )
                if dotted:  # every one of them is lost
                    for field in dotted:
                        yield _Sample(
                            shard, f"{key}.{field}", -1, range_location(shard, group[field].offset, "dots")
                        )
                    continue
                problem = "twice" if key in torn else ""
                image = plain[0] if plain else next(iter(group.values()))
                problem = problem or _image_problem(plain)
                label = -1
                # Every image that is lost is counted, though one key is all that they have.
                lost = {name: group[name] for name in sorted(_IMAGE_FIELDS & group.keys())[1:]}
                lost |= {
                    name: one
                    for name, one in torn.get(key, {}).items()
                    if name.split(".")[0] in _IMAGE_FIELDS
                }
                for name, member in lost.items():
                    yield _Sample(shard, f"{key}.{name}", -1, range_location(shard, member.offset, problem))
                if not problem:
                    label, problem = self._label(file.fileno(), group.get(self._label_member), numbers)
                yield _Sample(shard, key, label, range_location(shard, image.offset, problem or image.size))

    def _label(self, descriptor: int, member: TarMember | None, numbers: dict[str, int]) -> tuple[int, str]:
        """The class's number and no problem, or -1 and a problem."""
        if member is None:
            return -1, "no-label"
        if member.problem:
            return -1, member.problem
        text = self._label_text(os.pread(descriptor, min(member.size, _MAX_LABEL_BYTES), member.offset))
        if text.isascii() and text.isdigit() and len(text) < 10:
            return int(text), ""
        return (numbers[text], "") if text in numbers else (-1, "bad-label")

    def _label_text(self, content: bytes) -> str:
        """The label as text; empty if there is none."""
        try:
            if not self._config.label_field.startswith("json:"):
                return content.decode("utf-8-sig").strip()
            value = json.loads(content).get(self._config.label_field.removeprefix("json:"))
        except (ValueError, AttributeError, RecursionError):
            return ""
        return str(value).strip() if isinstance(value, str | int) and not isinstance(value, bool) else ""

    def _class_names(self) -> list[str]:
        if self._config.class_names is None:
            return []
        path = self._root / self._config.class_names.expanduser()
        names = [line.strip() for line in read_text(path, "source.class_names").split("\n")]
        while names and not names[-1]:
            names.pop()
        if not names or "" in names or len(set(names)) != len(names):
            raise DataPrepError(f"source.class_names: {path} must hold one class name a line, each once")
        return names

    def _numbered(self, samples: list[_Sample]) -> list[str]:
        """Without names a class is called by its number, up to the highest label that occurs."""
        highest = max(samples, key=lambda sample: sample.label)
        if highest.label >= _MAX_UNNAMED_CLASSES:
            raise DataPrepError(
                f"{self._root / highest.shard}: sample {highest.key} has the label {highest.label:,}; if that many "
                "classes are meant, name them in source.class_names"
            )
        return [str(number) for number in range(max(highest.label + 1, 1))]

    def _expect_disjoint(self, shards: dict[str, list[str]]) -> None:
        split_of: dict[str, str] = {}
        for split, names in shards.items():
            for name in names:
                if split_of.setdefault(name, split) != split:
                    raise DataPrepError(
                        f"source.splits: {self._root / name} is in both {split_of[name]!r} and {split!r}: "
                        "give patterns that tell the splits apart"
                    )


def _refs(samples: list[_Sample], num_classes: int, config: WebDatasetSource) -> list[SampleRef]:
    for sample in samples:
        if sample.label >= num_classes:
            raise DataPrepError(
                f"{config.path / sample.shard}: sample {sample.key} has the label {sample.label}, "
                f"source.class_names has {num_classes} names, counted from 0"
            )
    repeated = len({sample.key for sample in samples}) != len(samples)
    return sorted(
        SampleRef(
            sample_key(f"{sample.shard.removesuffix('.tar')}/{sample.key}" if repeated else sample.key),
            sample.label,
            sample.location,
        )
        for sample in samples
    )


def _key_and_field(name: str) -> tuple[str, str]:
    """`a/0001.seg.png` → (a/0001, seg.png); an empty key for hidden files and WebDataset's own `__meta__` ones."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if not parts or parts[-1].startswith(".") or any(map(_is_meta, parts)):
        return "", ""
    stem, _, field = parts[-1].partition(".")
    return "/".join([*parts[:-1], stem]), field.lower()


def _suffix(field: str) -> str:
    """Of a field with dots, what follows the last."""
    return field.rpartition(".")[2] if "." in field else ""


def _is_meta(part: str) -> bool:
    return part.endswith("__") and "__" in part[:-2]


def _image_problem(images: list[TarMember]) -> str:
    if not images:
        return "no-image"
    return "two-images" if len(images) > 1 else images[0].problem
