"""What a run does to its nodes, under MLflow's names for it: `system/cpu_utilization_percentage`, ...

One rank of each node reads its kernel's counters when the run logs, and rank 0 hears of all by one sum over the ranks,
beside the one that the logged metrics take anyway. So a run gets no further thread, file or clock. With several nodes
their numbers are in the names, as in MLflow: `system/node_1/cpu_utilization_percentage`; the tag `system.nodes` says
which host is which.
"""

from __future__ import annotations

import json
import logging
import math
import os
import socket
import time
from collections.abc import Callable
from typing import Any

import psutil  # type: ignore[import-untyped]
import torch

from convmlp_platform.distributed import World, gathered, sum_over_ranks
from convmlp_platform.tracking.tracker import Tracker
from convmlp_platform.training.callbacks import Callback
from convmlp_platform.training.step_plan import TrainState

logger = logging.getLogger(__name__)

LEAST_SECONDS = 10.0
"""Between two points of a node: MLflow's own interval."""
PREFIX, NODES_TAG = "system/", "system.nodes"
NODE_METRICS = (
    "cpu_utilization_percentage",
    "system_memory_usage_megabytes",
    "system_memory_usage_percentage",
    "disk_usage_percentage",
    "disk_usage_megabytes",
    "disk_available_megabytes",
    "network_receive_megabytes",
    "network_transmit_megabytes",
)
GPU_METRICS = (
    "utilization_percentage",
    "memory_usage_percentage",
    "memory_usage_megabytes",
    "power_usage_watts",
)
"""Of each GPU in use: `gpu_0_utilization_percentage`."""
_MEGA = 1e6


class NodeMeter:
    """Reads this machine's counters; about 0.3 ms a reading, and a millisecond for each GPU."""

    def __init__(self) -> None:
        psutil.cpu_percent()  # the first call only begins
        network = psutil.net_io_counters()
        self._received, self._sent = network.bytes_recv, network.bytes_sent

    def read(self) -> list[float]:
        """Values of NODE_METRICS since the last reading; network: since the meter was made."""
        memory, disk, network = psutil.virtual_memory(), psutil.disk_usage(os.sep), psutil.net_io_counters()
        return [
            psutil.cpu_percent(),
            memory.used / _MEGA,
            100 * memory.used / memory.total,
            disk.percent,
            disk.used / _MEGA,
            disk.free / _MEGA,
            (network.bytes_recv - self._received) / _MEGA,
            (network.bytes_sent - self._sent) / _MEGA,
        ]


def read_gpu(device: torch.device) -> list[float]:
    """Values of GPU_METRICS of this rank's GPU; NaN where the driver doesn't say (no `nvidia-ml-py`)."""
    free, total = torch.cuda.mem_get_info(device)
    used = total - free
    values = [math.nan, 100 * used / total, used / _MEGA, math.nan]
    for place, ask in ((0, torch.cuda.utilization), (3, torch.cuda.power_draw)):
        try:
            values[place] = float(ask(device))
        except Exception:  # the library that asks the driver is missing, or the driver refuses
            continue
    values[3] /= 1000  # milliwatts
    return values


class SystemMetrics(Callback):
    """On every rank: reads where it is a node's first rank, adds up where it is rank 0.

    Args:
        tracker: on rank 0; None on the others.
    """

    def __init__(
        self, world: World, tracker: Tracker | None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.world, self.tracker, self._clock = world, tracker, clock
        self._hosts: list[str] = []
        self._meter: NodeMeter | None = None
        self._written: float | None = None

    def on_start(self, state: TrainState, stop_step: int) -> None:
        """Number the nodes by their first rank (collective)."""
        if self._hosts:  # training goes back within the process
            return
        hosts = gathered(socket.gethostname())
        self._hosts = list(dict.fromkeys(hosts))
        self._places = [self._hosts.index(host) for host in hosts]
        if hosts.index(hosts[self.world.rank]) == self.world.rank:
            self._meter = _tried(NodeMeter)
        if self.tracker is not None:
            names = {f"node_{number}": host for number, host in enumerate(self._hosts)}
            self.tracker.set_tags({NODES_TAG: json.dumps(names)})

    def on_log(self, metrics: dict[str, float], state: TrainState) -> None:
        """Read, and record where that is due (collective: every rank comes here after the same steps)."""
        table = self._table()
        if self.world.size > 1:
            table = sum_over_ranks(table.to(self.world.device)).cpu()
        now = self._clock()
        if self.tracker is None or (self._written is not None and now - self._written < LEAST_SECONDS):
            return
        self._written = now
        self.tracker.log_metrics(self._named(table), state.step)

    def _table(self) -> torch.Tensor:
        """This rank's share: [nodes, metrics + 1] and behind it [ranks, GPU metrics + 1], float64; the last of a row
        says whether the row was read."""
        gpus = self.world.size if self.world.device.type == "cuda" else 0
        width = max(len(NODE_METRICS), len(GPU_METRICS)) + 1
        table = torch.zeros(len(self._hosts) + gpus, width, dtype=torch.float64)
        if self._meter is not None and (found := _tried(self._meter.read)) is not None:
            self._put(table, self._places[self.world.rank], found)
        if gpus and (found := _tried(lambda: read_gpu(self.world.device))) is not None:
            self._put(table, len(self._hosts) + self.world.rank, found)
        return table

    @staticmethod
    def _put(table: torch.Tensor, row: int, values: list[float]) -> None:
        table[row, : len(values)] = torch.tensor(values, dtype=torch.float64)
        table[row, -1] = 1

    def _named(self, table: torch.Tensor) -> dict[str, float]:
        rows = table.tolist()
        nodes = len(self._hosts)
        found: dict[str, float] = {}
        for number, row in enumerate(rows[:nodes]):
            if row[-1]:
                found |= zip_named(self._prefix(number), NODE_METRICS, row)
        on_node: dict[int, int] = {}
        for rank, row in enumerate(rows[nodes:]):
            number = self._places[rank]
            gpu = on_node[number] = on_node.get(number, -1) + 1
            if row[-1]:
                found |= zip_named(f"{self._prefix(number)}gpu_{gpu}_", GPU_METRICS, row)
        return found

    def _prefix(self, node: int) -> str:
        return f"{PREFIX}node_{node}/" if len(self._hosts) > 1 else PREFIX


def zip_named(prefix: str, names: tuple[str, ...], values: list[float]) -> dict[str, float]:
    """The values under their names, those that aren't known left out."""
    return {
        f"{prefix}{name}": round(value, 1)
        for name, value in zip(names, values, strict=False)
        if not math.isnan(value)
    }


def _tried(work: Callable[[], Any]) -> Any:
    """Whatever a kernel refuses costs points, not the run; the other ranks wait for this one's share."""
    try:
        return work()
    except Exception as error:
        logger.debug("no system metrics: %s: %s", type(error).__name__, error)
        return None
