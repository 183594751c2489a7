"""One rendered job on the stand-in for Kubernetes, through all that ends pods, to its end with the ledger's proof."""

from __future__ import annotations

import time

import pytest
from standin_life import Life, epochs_of, goes_on
from standin_pod import missing, wait_for

REASON = missing()
pytestmark = [
    pytest.mark.slow,
    pytest.mark.standin,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(REASON is not None, reason=str(REASON)),
    pytest.mark.usefixtures("timed"),
]


def test_a_worker_that_is_told_to_end_has_all_ranks_save(life: Life) -> None:
    # Long enough on any machine: without their head, workers train on for a minute, here 250 steps, there 1,000.
    sets = (f"training.epochs={epochs_of(240)}", "checkpoint.every_steps=10", "tracking.register_as=null")
    # A busy machine may need minutes for a pod.
    long = life.apply("long", "1.6", *sets, "launch.wait_for_workers_s=1800")
    life.until(lambda: life.step("long") >= 20, "20 steps")
    leaves = long.workers[0]
    with goes_on(life, "SIGTERM to a worker"):
        begun = time.monotonic()
        leaves.delete()
        life.until(lambda: life.events("long", "attempt_ended"), "the attempt's end", 120)
        life.seconds["SIGTERM to a worker: all ranks have saved"] = time.monotonic() - begun
    ended = life.events("long", "attempt_ended")[0]
    assert ended["cause"] == "preemption" and life.resumed_at("long") == ended["step"], (
        "no step is trained again"
    )
    assert leaves.gone and leaves.exits and -9 not in leaves.exits, (
        f"before its grace was over: {leaves.exits}"
    )


def test_a_worker_that_is_killed_starts_again_in_its_pod(life: Life) -> None:
    long = life.operators["long"]
    pod = long.workers[1]
    before = len(pod.exits)
    with goes_on(life, "kill -9 of a worker"):
        pod.kill()
    assert pod.exits[before] == -9 and not pod.gone, "the same pod, with its folders"
    assert life.events("long", "attempt_ended")[-1]["cause"] == "hardware"


def test_a_node_that_is_lost_without_a_word_is_left(life: Life) -> None:
    long = life.operators["long"]
    pod = long.workers[0]
    with goes_on(life, "a node lost"):
        life.site.lose_node(pod.node)
    assert pod.gone and long.workers[0].node != pod.node
    assert life.events("long", "attempt_ended")[-1]["cause"] == "hardware"


def test_a_suspended_job_saves_and_goes_on_in_another_cluster(life: Life) -> None:
    long = life.operators["long"]
    pods = [long.head, *long.workers]
    with goes_on(life, "suspended and resumed"):
        begun = time.monotonic()
        long.suspend()
        wait_for(lambda: long.deployment_status == "Suspended", "all pods to be gone", 150)
        life.seconds["suspended: all pods are gone"] = time.monotonic() - begun
        assert -9 not in [code for pod in pods for code in pod.exits[-1:]], life.standing()
        ended = life.events("long", "attempt_ended")[-1]
        assert life.step("long") == ended["step"], "nothing that was trained is lost"
        long.resume("q2w9e")
    assert life.resumed_at("long") == ended["step"]


def test_a_lost_head_is_followed_and_the_job_submitted_again(life: Life) -> None:
    long = life.operators["long"]
    head, submitter = long.head, long.submitters[-1]
    drivers = len(life.events("long", "driver_started"))
    with goes_on(life, "the head's node lost"):
        life.site.lose_node(head.node)
    assert head.gone and long.head.address != head.address
    assert submitter.exits == [-9] and long.submitters[-1] is not submitter, "its probe ended a wait for ever"
    assert len(life.events("long", "driver_started")) == drivers + 1


def test_the_run_ends_with_each_sample_used_once_an_epoch(life: Life) -> None:
    long = life.operators["long"]
    life.until(lambda: long.done, "the end", 900)
    assert long.deployment_status == "Complete", life.standing()
    assert life.events("long")[-1]["exit_code"] == 0
    life.prove("long")
