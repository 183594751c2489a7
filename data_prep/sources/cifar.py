"""CIFAR-10 (Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009).

Its published files are Python pickles, which can run any code when loaded: they are read by an
unpickler that knows nothing but byte arrays, after a check of their published MD5 sums.
"""

from __future__ import annotations

import hashlib
import io
import pickle
import tarfile
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_prep.errors import DataPrepError
from data_prep.source_config import Cifar10Source
from data_prep.sources.base import Listing, SampleRef, Source
from data_prep.sources.image_folder import ImageFolder

_ARCHIVE_MD5 = "c58f30108f718f92721af3b95e74349a"
_FILE_MD5 = {
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "test_batch": "40351d587109b95175f43aff81a1287e",
    "batches.meta": "5ff9c542aee3614f3951f8cda6e48888",
}
_SPLITS = {"train": [f"data_batch_{i}" for i in range(1, 6)], "val": ["test_batch"]}


def open_source(config: Cifar10Source) -> Source:
    """The source for whichever of the known layouts lies at `path`.

    Raises:
        DataPrepError: none does.
    """
    path, check_md5 = config.path.expanduser(), config.check_md5
    if path.is_file():
        return CifarBatches(path, check_md5=check_md5)
    for folder in (path, path / "cifar-10-batches-py"):
        if (folder / "data_batch_1").is_file():
            return CifarBatches(folder, check_md5=check_md5)
    if (path / "train").is_dir() and (path / "test").is_dir():
        return ImageFolder(path, splits={"train": "train", "val": "test"})
    raise DataPrepError(
        f"source.path: no CIFAR-10 at {path}: expected cifar-10-python.tar.gz, the folder "
        "cifar-10-batches-py, or a folder with train/<class>/ and test/<class>/ images"
    )


class CifarBatches:
    """The published pickles; keys are `<batch>-<position>`, pixels (32, 32, 3)."""

    def __init__(self, path: Path, *, check_md5: bool) -> None:
        self.path = path
        self._check_md5 = check_md5

    def listing(self) -> Listing:
        """Reads the labels of all batches: about 180 MB."""
        meta = _load(self.path, "batches.meta", self._check_md5)
        classes = [bytes(name).decode() for name in meta[b"label_names"]]
        splits: dict[str, list[SampleRef]] = {}
        for split, batches in _SPLITS.items():
            splits[split] = [
                SampleRef(f"{batch}-{i:05d}", int(label), f"{batch}:{i}")
                for batch in batches
                for i, label in enumerate(_batch(self.path, batch, self._check_md5)[1])
            ]
        return Listing(classes, splits)

    def read(self, ref: SampleRef) -> NDArray[np.uint8]:
        """Pixels as published, never re-encoded."""
        batch, _, position = ref.location.partition(":")
        return _batch(self.path, batch, self._check_md5)[0][int(position)]


@lru_cache(maxsize=6)
def _batch(path: Path, name: str, check_md5: bool) -> tuple[NDArray[np.uint8], list[int]]:
    """A batch's images (n, 32, 32, 3) and labels; all six stay in memory, 184 MB."""
    content = _load(path, name, check_md5)
    data: Any = content.get(b"data")
    labels: Any = content.get(b"labels")
    plain = isinstance(data, np.ndarray) and data.dtype == np.uint8 and isinstance(labels, list)
    if not plain or data.shape != (len(labels), 3072):
        raise DataPrepError(f"{path}: {name} does not hold CIFAR-10 images and labels")
    return np.ascontiguousarray(data.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)), labels


def _load(path: Path, name: str, check_md5: bool) -> dict[bytes, Any]:
    content = _archive_members(path, check_md5).get(name) if path.is_file() else _read(path / name)
    if content is None:
        raise DataPrepError(f"{path} is not the CIFAR-10 archive: it has no {name}")
    if check_md5:
        _expect_md5(content, _FILE_MD5[name], f"{path}: {name}")
    return load_plain_pickle(content, where=f"{path}: {name}")


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataPrepError(f"can't read {path}: {error.strerror}") from None


@lru_cache(maxsize=1)
def _archive_members(path: Path, check_md5: bool) -> dict[str, bytes]:
    content = _read(path)
    if check_md5:
        _expect_md5(content, _ARCHIVE_MD5, str(path))
    try:
        with tarfile.open(fileobj=io.BytesIO(content)) as archive:
            files = {Path(member.name).name: archive.extractfile(member) for member in archive}
            return {name: file.read() for name, file in files.items() if file and name in _FILE_MD5}
    except (tarfile.TarError, EOFError, OSError) as error:
        raise DataPrepError(f"source.path: {path} is not an intact tar archive: {error}") from None


def _expect_md5(content: bytes, expected: str, where: str) -> None:
    actual = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if actual != expected:
        raise DataPrepError(
            f"{where} has MD5 {actual}, published is {expected}: download it again, "
            "or set source.check_md5: false if it was changed on purpose"
        )


def _encode_latin1(text: str, encoding: str) -> bytes:
    """How protocol 2 carries bytes; any other codec of `_codecs.encode` is of no use here."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"codec {encoding!r} is not allowed")
    return text.encode("latin1")


_RECONSTRUCT = np.zeros(0).__reduce__()[0]
"""How numpy makes an empty array to unpickle into; its private home has moved between releases."""
_ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): _encode_latin1,
}


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if module in ("numpy.core.multiarray", "numpy._core.multiarray") and name == "_reconstruct":
            return _RECONSTRUCT
        if (module, name) in _ALLOWED:
            return _ALLOWED[module, name]
        raise pickle.UnpicklingError(f"{module}.{name} is not allowed")


def load_plain_pickle(content: bytes, where: str) -> dict[bytes, Any]:
    """Unpickle a dictionary of plain values and numpy arrays; nothing else can be built or called.

    Raises:
        DataPrepError: it asks for anything else, or is damaged.
    """
    try:
        value = _PlainUnpickler(io.BytesIO(content), encoding="bytes").load()
    except Exception as error:  # a damaged pickle raises nearly any type
        raise DataPrepError(f"{where} is not a pickle of plain arrays ({error}): it was not loaded") from None
    if not isinstance(value, dict):
        raise DataPrepError(f"{where} does not hold a dictionary")
    return value
