"""Shards written by Ray tasks: the same bytes as in one process, and errors that arrive as they were."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from prep_helpers import folder_job, make_folder, prepare_folder, snapshot

from data_prep.errors import DataPrepError
from data_prep.prepare import prepare

pytestmark = (
    pytest.mark.slow
)  # tests/convmlp_platform/launch/test_launch_on_ray.py prepares on a cluster, too


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    import ray

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "disabled")
        patch.setenv(
            "PYTHONPATH", os.pathsep.join([str(Path(__file__).parents[3]), str(Path(__file__).parent)])
        )
        ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
        yield
        ray.shutdown()


def test_ray_writes_the_same_bytes(cluster: None, tmp_path: Path) -> None:
    from data_prep.shards.runner import ray_map

    source = make_folder(tmp_path / "source")
    prepare(folder_job(source, tmp_path / "ray" / "out"), map_shards=ray_map, progress=lambda line: None)
    prepare_folder(source, tmp_path / "serial" / "out")
    assert snapshot(tmp_path / "ray" / "out") == snapshot(tmp_path / "serial" / "out")


def test_every_result_comes_once_and_errors_as_raised(cluster: None) -> None:
    from data_prep.shards.runner import ray_map

    def double(item: int) -> int:
        if item == 13:
            raise DataPrepError("item 13 is broken")
        return 2 * item

    assert sorted(ray_map(double, range(10), max_in_flight=3)) == [2 * i for i in range(10)]
    with pytest.raises(DataPrepError, match=r"^item 13 is broken$"):
        list(ray_map(double, range(20), num_cpus=0.5))
