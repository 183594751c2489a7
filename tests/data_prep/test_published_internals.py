"""Private names of torchvision and fsspec that data_prep uses: where an upgrade takes one away, this fails by name."""

from __future__ import annotations

import fsspec
from fsspec.implementations.memory import MemoryFileSystem
from torchvision.datasets import Flowers102

FLOWERS = "data_prep/sources/flowers102.py downloads by it"
REMOTE = "data_prep/storage/remote_files.py, and so all remote storage, depends on it"


def test_torchvision_tells_where_the_flowers_are_published() -> None:
    prefix = getattr(Flowers102, "_download_url_prefix", None)
    assert isinstance(prefix, str), f"torchvision: no Flowers102._download_url_prefix; {FLOWERS}"
    assert prefix.startswith("https://"), (
        f"torchvision: Flowers102._download_url_prefix is {prefix!r}; {FLOWERS}"
    )
    files = getattr(Flowers102, "_file_dict", None)
    assert isinstance(files, dict), f"torchvision: no Flowers102._file_dict; {FLOWERS}"
    assert {name for name, _ in files.values()} == {"102flowers.tgz", "imagelabels.mat", "setid.mat"}, FLOWERS
    assert all(len(md5) == 32 for _, md5 in files.values()), f"torchvision: Flowers102._file_dict: {FLOWERS}"


def test_fsspec_takes_the_protocol_off_a_url() -> None:
    named = "fsspec: AbstractFileSystem._strip_protocol"
    assert hasattr(fsspec.AbstractFileSystem, "_strip_protocol"), f"{named} isn't there; {REMOTE}"
    assert MemoryFileSystem._strip_protocol("memory://a/b") == "/a/b", f"{named} does another thing; {REMOTE}"
