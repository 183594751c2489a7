"""A cluster that begins with its head alone and is grown by Ray's own autoscaler (v2, as KubeRay runs it), its nodes
processes of this machine."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prepared import digits

from convmlp_platform.launch.cluster.capacity import WAIT_VARIABLE
from convmlp_platform.launch.cluster.local_cluster import OBJECT_STORE_BYTES, LocalCluster

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[3]
HEAD_ID = "fffffffffffffffffffffffffffffffffffffffffffffffffff00000"
"""Ray's fake provider counts its nodes from here."""
MOST_NODES, IDLE_S = 2, 30
_STAGES = (
    "initialization",
    "setup",
    "head_setup",
    "worker_setup",
    "head_start_ray",
    "worker_start_ray",
)


def autoscaling(address: str) -> dict[str, Any]:
    """The configuration of Ray's autoscaler for a cluster at this address."""
    return {
        "cluster_name": "growing",
        "max_workers": MOST_NODES,
        "provider": {
            # By its class: the defaults of its own type are in a file that Ray's wheel lacks.
            "type": "external",
            "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
            "gcs_address": address,
            "head_node_id": HEAD_ID,
            "launch_multiple": True,
        },
        "auth": {},
        "available_node_types": {
            "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
            "worker": {
                "resources": {"CPU": 1, "object_store_memory": OBJECT_STORE_BYTES},
                "node_config": {},
                "min_workers": 0,
                "max_workers": MOST_NODES,
            },
        },
        "head_node_type": "ray.head.default",
        "upscaling_speed": 1.0,
        "idle_timeout_minutes": IDLE_S / 60,
        "file_mounts": {},
        "cluster_synced_files": [],
        "file_mounts_sync_continuously": False,
        "rsync_exclude": [],
        "rsync_filter": [],
        **{f"{stage}_commands": [] for stage in _STAGES},
    }


class GrowingCluster(LocalCluster):
    """Its nodes but the head are made by Ray's monitor, where something waits for them."""

    def __init__(self) -> None:
        super().__init__(num_nodes=1, cpus_per_node=0, directory=ROOT)

    def _spawn_node(self, index: int, arguments: list[str]) -> subprocess.Popen[bytes]:
        file = self._folder / "autoscaling.json"
        file.write_text(json.dumps(autoscaling(self.address)))
        self.env |= {
            "RAY_FAKE_CLUSTER": "1",
            "RAY_enable_autoscaler_v2": "1",
            "RAY_CLOUD_INSTANCE_ID": HEAD_ID,
            "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD_ID,
            "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        }
        process = super()._spawn_node(index, [*arguments, f"--autoscaling-config={file}"])
        for name in ("RAY_CLOUD_INSTANCE_ID", "RAY_OVERRIDE_NODE_ID_FOR_TESTING"):
            del self.env[name]
        return process


@pytest.fixture(scope="module")
def cluster() -> Iterator[GrowingCluster]:
    with GrowingCluster() as growing:
        yield growing


def train(
    cluster: GrowingCluster, root: Path, patience_s: int, *settings: str
) -> subprocess.CompletedProcess[str]:
    given = [
        "tracking.register_as=null",
        f"data.path={digits('webdataset')}",
        f"checkpoint.path={root / 'runs'}",
        f"tracking.uri=sqlite:///{root / 'mlflow.db'}",
        *settings,
    ]
    words = [word for setting in given for word in ("--set", setting)]
    return subprocess.run(
        [sys.executable, "-m", "convmlp_platform", "run", "jobs/pretrain_digits.yaml", *words],
        env=cluster.env | {WAIT_VARIABLE: str(patience_s), "CONVMLP_ROOT": str(root)},
        cwd=ROOT, text=True, capture_output=True, timeout=280, check=False,
    )  # fmt: skip


def workers(cluster: GrowingCluster) -> int:
    """Worker nodes that live, as Ray's own command line counts them."""
    code = (
        "import ray; ray.init(address='auto', logging_level='ERROR', log_to_driver=False); "
        "print('NODES', sum(node['Alive'] and node['Resources'].get('CPU', 0) > 0 for node in ray.nodes()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=cluster.env, text=True, capture_output=True, timeout=100, check=True
    )
    found = re.search(r"NODES (\d+)", done.stdout)
    assert found is not None
    return int(found[1])


def test_a_wrong_job_asks_for_nothing(cluster: GrowingCluster, tmp_path: Path) -> None:
    done = train(cluster, tmp_path, 60, "name=wrong", "data.train_split=nosuch")
    assert done.returncode == 2, done.stdout + done.stderr
    assert "has no split 'nosuch'" in done.stderr
    done = train(cluster, tmp_path, 60, "name=undecided", "launch.use_gpu=auto")
    assert done.returncode == 2, done.stdout + done.stderr
    assert done.stderr.strip().splitlines() == [
        "error: launch.use_gpu: auto can't be decided on a cluster that grows and has no GPU now: "
        "--set launch.use_gpu=true, or false"
    ]
    assert workers(cluster) == 0


def test_from_no_worker_to_the_end_and_back_to_none(cluster: GrowingCluster, tmp_path: Path) -> None:
    began = time.monotonic()
    size = ("launch.num_workers=2", "launch.min_workers=1", "training.max_steps=4")
    done = train(cluster, tmp_path, 120, "name=grown", *size)
    assert done.returncode == 0, done.stdout + done.stderr
    asked = "asked the cluster for room for 2 workers (at least 1) with 1 CPU each; waiting up to 120 s"
    assert asked in done.stdout
    assert re.search(r"the cluster has room after \d+ s", done.stdout)
    events = [json.loads(line) for line in (tmp_path / "runs/grown/events.jsonl").read_text().splitlines()]
    running = [event for event in events if event["kind"] == "attempt_running"]
    # Those that hold a worker of the run are never idle, however long it takes: no attempt ended for want of a node.
    ends = {event["cause"] for event in events if event["kind"] == "attempt_ended"}
    assert running and ends <= {"finished", "grow"}
    print(f"\n{done.stdout}\nall of it took {time.monotonic() - began:.0f} s")
    deadline = time.monotonic() + IDLE_S + 90
    while workers(cluster):
        assert time.monotonic() < deadline, "idle nodes stay"
        time.sleep(2)


def test_a_job_that_cannot_be_satisfied_ends_in_one_sentence(cluster: GrowingCluster, tmp_path: Path) -> None:
    done = train(cluster, tmp_path, 10, "name=never", f"launch.num_workers={MOST_NODES + 1}",
                 "training.global_batch_size=96")  # fmt: skip
    assert done.returncode == 2, done.stdout + done.stderr
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith(
        "error: launch.num_workers (=3) with launch.cpus_per_worker (=1) needs 3 CPUs, the cluster has"
    )
    assert line.endswith("(asked for, and waited 10 s: CONVMLP_WAIT_FOR_CAPACITY_S)")
    assert not (tmp_path / "runs/never/checkpoints").exists()
