"""On N nodes each fetches about 1/N of the dataset in an epoch."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from web_server import web_server

sys.path.insert(0, str(Path(__file__).parents[3] / "bench"))

from bench_amplification import amplification, make_dataset


@pytest.mark.parametrize("nodes", [2, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 4, 8))])
def test_each_of_n_nodes_fetches_little_more_than_its_share(tmp_path: Path, nodes: int) -> None:
    make_dataset(tmp_path / "dataset", samples_per_shard=140, payload_bytes=7000)
    with web_server(tmp_path / "dataset") as server:
        assert amplification(server, nodes, tmp_path).worst <= 1.2
