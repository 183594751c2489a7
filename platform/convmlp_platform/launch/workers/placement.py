"""The placement of workers on nodes, and the rank of each worker.

All functions are pure: `worker_group` asks Ray and acts.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from typing import Literal

Strategy = Literal["PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"]


@dataclass(frozen=True)
class Home:
    """The location of an agent.

    Args:
        node: Ray's id of the node. address: its IP. host: what people call it.
        gpus: ids of the GPUs that Ray gave the agent, as CUDA_VISIBLE_DEVICES names them.
        interface: the network interface that owns `address`, None where none does.
    """

    node: str
    address: str
    host: str
    gpus: tuple[str, ...] = ()
    interface: str | None = None


@dataclass(frozen=True)
class Seat:
    """One rank's place. Its GPU is number `local_rank` of `gpus`: it sees those of all the run's ranks on the node,
    so that NCCL can use their direct links (as Ray Train does)."""

    rank: int
    local_rank: int
    local_world_size: int
    gpus: tuple[str, ...]


def choose_nodes(
    room: Mapping[str, int], taken: Mapping[str, int], count: int, strategy: Strategy
) -> list[str]:
    """The nodes for up to `count` more workers, one entry a worker; fewer where there is no room.

    Args:
        room: node → workers that fit on it now, beside those that are there.
        taken: node → workers of this run that are there.
    """
    left, load = dict(room), Counter(dict(taken))

    def order(node: str) -> tuple[int, int, str]:
        """Packed: nodes with the most of ours first, then the roomiest, so that few are used."""
        return (load[node] if "SPREAD" in strategy else -load[node], -left[node], node)

    nodes = [node for node in left if left[node] > 0]
    if strategy == "STRICT_SPREAD":
        nodes = [node for node in nodes if not load[node]]
    if strategy == "STRICT_PACK":
        ours = [node for node in nodes if load[node]]
        fitting = [node for node in nodes if left[node] >= count]
        nodes = ours if any(load.values()) else sorted(fitting or nodes, key=order)[:1]
    # A choice changes the order of the chosen node alone, so a heap stays one: 4,096 workers take milliseconds.
    waiting = [(order(node), node) for node in nodes]
    heapify(waiting)
    chosen: list[str] = []
    while waiting and len(chosen) < count:
        _, node = heappop(waiting)
        chosen.append(node)
        left[node] -= 1
        load[node] += 1
        if left[node] > 0 and strategy != "STRICT_SPREAD":
            heappush(waiting, (order(node), node))
    return chosen


def rank_order(homes: Sequence[Home]) -> list[int]:
    """Positions in `homes` in the order of ranks: those of a node are neighbours, nodes in the order in which they
    first appear."""
    first: dict[str, int] = {}
    for position, home in enumerate(homes):
        first.setdefault(home.node, position)
    return sorted(range(len(homes)), key=lambda position: (first[homes[position].node], position))


def seats(homes: Sequence[Home]) -> list[Seat]:
    """The seat of each rank, for homes in the order of ranks."""
    sizes, count = Counter(home.node for home in homes), Counter[str]()
    gpus: dict[str, set[str]] = defaultdict(set)
    for home in homes:
        gpus[home.node].update(home.gpus)
    on_node = {node: tuple(sorted(ids, key=_numerically)) for node, ids in gpus.items()}
    found = []
    for rank, home in enumerate(homes):
        found.append(Seat(rank, count[home.node], sizes[home.node], on_node[home.node]))
        count[home.node] += 1
    return found


def environment(seat: Seat, world_size: int, home: Home, start: int) -> dict[str, str]:
    """Returns the environment variables of a rank's process (torchrun's convention).

    The address and port at which the ranks meet are not among them.
    """
    found = {
        "RANK": str(seat.rank),
        "LOCAL_RANK": str(seat.local_rank),
        "WORLD_SIZE": str(world_size),
        "LOCAL_WORLD_SIZE": str(seat.local_world_size),
        "CONVMLP_START": str(start),
    }
    if seat.gpus:
        found["CUDA_VISIBLE_DEVICES"] = ",".join(seat.gpus)
    if home.interface is not None:
        found["GLOO_SOCKET_IFNAME"] = home.interface
    return found


def _numerically(gpu: str) -> tuple[int, str]:
    """Ids are numbers, or UUIDs (MIG)."""
    return (int(gpu), gpu) if gpu.isdigit() else (1 << 30, gpu)
