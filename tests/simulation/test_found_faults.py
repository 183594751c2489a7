"""What simulated clusters have shown to be wrong with supervision, each as it was found."""

from __future__ import annotations

import random

import pytest
from faults import Faults
from simulate import Observed, Scenario, a_job, simulate
from simulated_cluster import LISTED_S, SimulatedCluster

from convmlp_platform.launch.supervisor.restarts import Spare, attempts_last_s
from convmlp_platform.launch.workers.worker_group import WorkerGroup


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONVMLP_QUIET", "1")


def calm(nodes: int, least: int, hours: float = 2.0) -> Scenario:
    """Nothing happens but what a test plans."""
    return Scenario("calm", nodes, nodes, least, hours / 24.0, rate=0.0)


def test_an_agent_that_dies_while_others_are_waited_for_has_no_attempt_started_on_it() -> None:
    """It was counted as ready: an attempt began without it, and its end was charged to the hardware's budget."""

    def script(cluster: Observed, faults: Faults) -> None:
        nodes = list(cluster.nodes.values())
        cluster.time.at(1000.0, lambda: cluster.node_dies(nodes[0]))
        cluster.time.at(1500.0, lambda: cluster.node_dies(nodes[1]))
        for number, at in enumerate((1800.0, 2400.0)):
            cluster.time.at(at, lambda number=number: cluster.node_comes(f"new-{number}", 1))

    found = simulate(calm(8, 8), 1, script)
    assert (found.end, found.attempts, found.causes["hardware"]) == ("finished", 2, 1)


def test_nobody_waits_for_an_agent_whose_node_is_dead_to_kill_its_process() -> None:
    """10 s of each node's death."""

    def script(cluster: Observed, faults: Faults) -> None:
        node = cluster.nodes["node-00003"]
        cluster.time.at(1000.0, lambda: (cluster.node_dies(node), cluster.node_comes("new", 1)))

    found = simulate(calm(8, 8), 4, script)
    assert found.causes["hardware"] == 1
    assert found.slowest["stop"] < 9.0, "5 s of them are for an end that explains more"


def test_sixty_nodes_that_end_at_once_take_no_agent_of_the_others_with_them() -> None:
    """Each was asked for alone, with a second of time: meanwhile the others' answers seemed to be late."""

    def script(cluster: Observed, faults: Faults) -> None:
        nodes = list(cluster.nodes.values())[:60]

        def strike() -> None:
            for node in nodes:
                cluster.node_dies(node)
                cluster.node_comes(f"{node.name}-again", 1)

        cluster.time.at(1000.0, strike)

    found = simulate(calm(160, 160, hours=0.4), 1, script)
    assert (found.end, found.attempts, found.agents) == ("finished", 2, 220)


def test_a_head_that_is_silent_for_ten_minutes_costs_training_nothing() -> None:
    """The question for the nodes raised, and the run ended with a traceback."""

    def script(cluster: Observed, faults: Faults) -> None:
        cluster.time.at(1000.0, lambda: faults._head_down())
        faults.rng.choice = lambda options: options[-1]  # type: ignore[method-assign]

    found = simulate(calm(8, 8), 1, script)
    assert (found.end, found.attempts, found.drivers) == ("finished", 1, 1)


def test_nodes_that_come_back_one_by_one_do_not_cost_a_pause_each() -> None:
    """After a spot wave each of ten nodes that came back within the hour made all others save, stop and start."""

    def script(cluster: Observed, faults: Faults) -> None:
        nodes = list(cluster.nodes.values())[:10]
        cluster.time.at(1000.0, lambda: [cluster.node_dies(node, orderly=True) for node in nodes])
        for number in range(10):
            at = 1300.0 + 40.0 * number
            cluster.time.at(at, lambda number=number: cluster.node_comes(f"new-{number}", 1))

    found = simulate(calm(40, 20, hours=3.0), 1, script)
    assert found.end == "finished" and found.causes["preemption"] == 1
    assert 1 <= found.causes["grow"] <= 3


def test_one_worker_of_a_thousand_joins_when_something_else_makes_a_pause() -> None:
    lasts = attempts_last_s(0.0, 4, 4 * 21_600.0)
    spare = Spare(pause_s=60.0, lasts_s=lasts)
    assert not any(spare.pays(1, 999, 60.0 * minute) for minute in range(600))
    spare = Spare(pause_s=60.0, lasts_s=lasts)
    told = [(99, 0.0), (99, 50.0), (100, 55.0), (100, 114.0), (100, 115.0)]
    assert [spare.pays(more, 900, at) for more, at in told] == [False, False, False, False, True]


def test_a_pause_of_which_nothing_is_known_is_made_at_once() -> None:
    assert Spare().pays(1, 1, 0.1)
    assert not Spare().pays(0, 1, 0.1)


def spread(*, nodes: int, least: int, slots: int = 1) -> tuple[SimulatedCluster, WorkerGroup]:
    """A cluster, and the agents of two workers that are spread over it, none of them started yet."""
    scenario = calm(nodes, least)
    job = a_job(scenario)
    launch = job.launch.model_copy(update={"placement": "SPREAD", "num_workers": 2})
    cluster = SimulatedCluster(nodes, scenario.recipe, random.Random(0), slots)
    return cluster, WorkerGroup(job.model_copy(update={"launch": launch}), False, [], cluster)


def test_who_was_on_a_dead_node_goes_where_there_is_room_at_once() -> None:
    """A dead node is listed for up to 15 s, and was chosen again and again: it was the emptiest."""
    cluster, group = spread(nodes=2, least=2, slots=2)

    def until_ready() -> None:
        begun = cluster.time.now
        while len(group.ready) < 2:
            assert cluster.time.now - begun < 60.0, "no room was found"
            group.refresh()
            cluster.clock.sleep(0.1)

    until_ready()
    dead, living = (cluster.nodes[member.node] for member in group.members)
    assert dead is not living
    cluster.node_dies(dead)
    group.leave({dead.name})
    begun = cluster.time.now
    while len(group.members) < 2:
        group.refresh()
        cluster.clock.sleep(0.1)
    assert cluster.time.now - begun < LISTED_S / 5, "long before it leaves the list"
    until_ready()
    assert [member.node for member in group.members] == [living.name] * 2


def test_among_many_dead_nodes_the_living_are_found_at_once() -> None:
    """One after the other would have taken a second each."""
    cluster, group = spread(nodes=50, least=1)
    living = list(cluster.nodes)[-2:]
    for node in cluster.nodes.values():
        if node.name not in living:
            cluster.node_dies(node)
    group.refresh()
    assert cluster.time.now < 3.0 and sorted(member.node for member in group.members) == living
