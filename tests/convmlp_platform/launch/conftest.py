"""One real two-node Ray cluster for all tests of this folder, started when the first needs it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from ray_site import REPOSITORY, Site, clean_environment, home_with_stale_token

from convmlp_platform.launch.cluster.local_cluster import LocalCluster


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    root = tmp_path_factory.mktemp("root")
    home = home_with_stale_token(tmp_path_factory.mktemp("home"))
    temporary = tmp_path_factory.mktemp("temporary-files-of-a-job-with-a-name-as-long-as-on-some-clusters")
    environment = clean_environment(root, home) | {"TMPDIR": str(temporary)}
    with LocalCluster(num_nodes=2, directory=REPOSITORY, environment=environment) as cluster:
        yield Site(cluster, root, home)


@pytest.fixture(scope="session")
def digits(site: Site) -> Path:
    """The digits, prepared by a job submitted as the README says."""
    done = site.submit("jobs/prep_digits.yaml", "--set", "output.formats=[webdataset]")
    assert done.returncode == 0, done.stdout + done.stderr
    return site.root / "data" / "digits"
