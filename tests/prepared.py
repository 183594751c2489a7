"""Small prepared datasets for tests."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from unittest import mock

from data_prep.config import OutputConfig, PrepareConfig
from data_prep.convert import prepare
from data_prep.source_config import DigitsSource
from data_prep.sources import digits as source


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
