"""The prepared dataset that a user names."""

from __future__ import annotations

from convmlp_platform.config.paths import root
from convmlp_platform.errors import DataError
from data_prep.dataset.manifest import MANIFEST_NAME
from data_prep.storage.urls import is_url, local_path


def find_dataset(name: str) -> str:
    """The folder or URL that a dataset's name means: a folder as given, from the current folder or from the root; else
    one in data/ below the root.

    Raises:
        DataError: there is no such dataset.
    """
    given = local_path(name)
    if given is None:
        return name
    given = given.expanduser()
    if not given.exists() and (root() / given).exists():
        given = root() / given
    if is_url(name) or len(given.parts) != 1 or (given / MANIFEST_NAME).is_file():
        return str(given)
    below = root() / "data"
    if (below / name).is_dir():
        return str(below / name)
    if given.exists():
        return str(given)
    known = sorted(path.parent.name for path in below.glob(f"*/{MANIFEST_NAME}"))
    there = f"it holds {', '.join(known)}" if known else "no prepared datasets are there"
    raise DataError(f"no dataset {name}: neither a folder of that name, nor one in {below} ({there})")
