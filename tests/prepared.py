"""Small prepared datasets for tests."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from unittest import mock

from data_prep.config import DigitsSource, OutputConfig, PrepareConfig
from data_prep.dataset.manifest import DatasetManifest, SplitInfo
from data_prep.prepare import prepare
from data_prep.sources import digits as source


def described(images: int, name: str = "photos") -> DatasetManifest:
    """The manifest of a dataset that isn't there: so many training images of three classes."""
    split = SplitInfo(num_samples=images, formats={})
    return DatasetManifest(
        name=name,
        classes=["a", "b", "c"],
        splits={"train": split},
        mean=(0.5, 0.5, 0.5),
        std=(0.2, 0.2, 0.2),
        source={},
        preprocessing={},
        digest=f"sha256:{images:064x}",
    )


@cache
def digits(*formats: str) -> Path:
    """scikit-learn's digits, prepared once a test session."""
    return _prepared(formats or ("webdataset",), 300)


@cache
def few_digits() -> Path:
    """A third of them, for runs that evaluate often: 479 to train with, 120 held out."""
    pixels, labels = source._load()
    with mock.patch.object(source, "_load", lambda: (pixels[::3], labels[::3])):
        return _prepared(("webdataset",), 100)


def _prepared(formats: tuple[str, ...], samples_per_shard: int) -> Path:
    folder = Path(mkdtemp(prefix="convmlp-test-")) / "digits"
    output = OutputConfig(path=folder, formats=formats, samples_per_shard=samples_per_shard)  # type: ignore[arg-type]
    prepare(PrepareConfig(source=DigitsSource(), output=output), progress=lambda _line: None)
    return folder
