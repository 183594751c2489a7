"""Small prepared datasets for tests."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import mkdtemp

from data_prep.config import OutputConfig, PrepareConfig
from data_prep.convert import prepare
from data_prep.source_config import DigitsSource


@cache
def digits(*formats: str) -> Path:
    """scikit-learn's digits, prepared once a test session."""
    folder = Path(mkdtemp(prefix="convmlp-test-")) / "digits"
    output = OutputConfig(path=folder, formats=formats or ("webdataset",), samples_per_shard=300)  # type: ignore[arg-type]
    prepare(PrepareConfig(source=DigitsSource(), output=output), progress=lambda _line: None)
    return folder
