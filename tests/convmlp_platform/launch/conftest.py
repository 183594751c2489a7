"""A real two-node Ray cluster for all tests of a file, started when the first needs it: idle, it takes a sixteenth of a
core, so it doesn't stay for the session."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import prepared
import pytest
from ray_site import REPOSITORY, Site, clean_environment, home_with_stale_token

from convmlp_platform.launch.cluster.local_cluster import LocalCluster


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    root = tmp_path_factory.mktemp("root")
    home = home_with_stale_token(tmp_path_factory.mktemp("home"))
    temporary = tmp_path_factory.mktemp("temporary-files-of-a-job-with-a-name-as-long-as-on-some-clusters")
    environment = clean_environment(root, home) | {"TMPDIR": str(temporary)}
    with LocalCluster(num_nodes=2, directory=REPOSITORY, environment=environment) as cluster:
        yield Site(cluster, root, home)


@pytest.fixture(scope="module")
def digits(site: Site) -> Path:
    """The digits, prepared where the README's job looks for them."""
    return Path(shutil.copytree(prepared.digits(), site.root / "data" / "digits"))
