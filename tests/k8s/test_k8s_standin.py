"""A rendered job trains on pods of a stand-in for Kubernetes: what KubeRay would start, in namespaces of this machine.

Each test is a scenario, in this order, on one cluster, as a Ray start costs a minute. When the job is done, its head
serves what needs one only. What only a real cluster can show stands in docs/operations.md.
"""

from __future__ import annotations

import copy
import time
from pathlib import Path

import pytest
from standin_life import START_S, Life, policies
from standin_pod import Caller, missing, wait_for

REASON = missing()
pytestmark = [
    pytest.mark.slow,
    pytest.mark.standin,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(REASON is not None, reason=str(REASON)),
    pytest.mark.usefixtures("timed"),
]


def test_pods_of_a_rendered_job_find_each_other_and_train(life: Life) -> None:
    plain = life.apply(
        "plain", "1.7", "training.epochs=4", "checkpoint.every_steps=20", "tracking.register_as=null"
    )
    life.until(lambda: life.events("plain", "attempt_running"), "the first step")
    (started,) = life.events("plain", "attempt_started")
    assert sorted(started["hosts"]) == sorted(pod.name for pod in plain.workers)
    assert len({pod.address for pod in (plain.head, *plain.workers)}) == 3, "an address each"
    assert len({pod.node for pod in plain.workers}) == 2


def test_they_run_as_nobody_special_on_a_root_that_they_cannot_write(life: Life) -> None:
    plain = life.operators["plain"]
    for pod in (plain.head, *plain.workers):
        status = dict(
            line.split(":\t", 1) for line in Path(f"/proc/{pod.pid()}/status").read_text().splitlines()
        )
        assert status["Uid"].split() == ["1000"] * 4 and status["CapEff"].strip("0") == ""
        assert status["NoNewPrivs"] == "1" and status["Groups"].split() == ["1000"]
        mounts = Path(f"/proc/{pod.pid()}/mounts").read_text().splitlines()
        writable = {line.split()[1] for line in mounts if "rw" in line.split()[3].split(",")}
        wanted = {mount["mountPath"] for mount in pod.document["spec"]["containers"][0]["volumeMounts"]}
        ours = {place for place in writable if not place.startswith(("/proc", "/dev", "/sys"))} - {
            "/etc/hosts"
        }
        assert ours == wanted - {"/dev/shm", "/etc/convmlp/job"}
        assert "/dev/shm" in writable and "/etc/convmlp/job" not in writable
    if life.site.cgroup:
        used = [life.site.cgroup / f"{pod.name}-ray-worker" for pod in plain.workers]
        assert all((group / "cgroup.procs").read_text().split() for group in used), "its memory is counted"


def test_network_policies_let_in_whom_they_name(life: Life) -> None:
    plain, site = life.operators["plain"], life.site
    namespace, _ = site.network.join("a pod of another namespace")
    stranger = Caller(namespace)
    head, worker = plain.head.address, plain.workers[0].address
    operator = site.operator_caller

    assert operator.reaches(head, 8265), "KubeRay asks for the job's status"
    assert site.caller.reaches(worker, 52365), "its kubelet asks how it is"
    assert not operator.reaches(head, 6379) and not operator.reaches(worker, 52365)
    assert not any(stranger.reaches(head, port) for port in (8265, 6379, 52365))
    assert not stranger.reaches(worker, 52365)
    site.apply([])
    assert stranger.reaches(head, 8265), "it is the policies that keep it out"
    site.apply(policies())
    stranger.close()


def test_an_operator_that_starts_anew_changes_nothing(life: Life) -> None:
    plain = life.operators["plain"]
    before = [pod.name for pod in life.site.living()]
    plain.stop()
    asked = len(plain.statuses)
    time.sleep(3)
    plain.start()
    time.sleep(3)
    assert [pod.name for pod in life.site.living()] == before
    assert len(plain.submitters) == 1 and plain.statuses[asked:] in ([], ["SUCCEEDED"])


def test_a_plain_run_ends_and_gives_its_workers_back(life: Life) -> None:
    plain = life.operators["plain"]
    life.until(lambda: plain.done, "the end")
    assert plain.deployment_status == "Complete", life.standing()
    assert plain.submitters[0].exits == [0] and "plain is done" in plain.log()
    assert plain.statuses[-1] == "SUCCEEDED" and "no answer" not in plain.statuses
    assert {pod.exits[-1] for pod in plain.workers if pod.exits} <= {0}
    wait_for(lambda: all(pod.gone for pod in plain.workers), "workers to be gone", 60)
    assert plain.head.ready, "the head stays, for its dashboard"
    life.prove("plain")


def test_a_wrong_job_is_refused_once_with_exit_code_2(life: Life) -> None:
    plain = life.operators["plain"]
    submitter = plain.submit_here(life.rendered("wrong", "data.path=data/nothing"), "wrong")
    wait_for(lambda: submitter.ended, "the submitter's end", START_S)
    code, told = plain.status_of("wrong-wrong")
    assert code == 200 and told["status"] == "FAILED", told
    assert told["driver_exit_code"] == 2, told
    assert "data.path" in submitter.text() and "Traceback" not in submitter.text()
    assert submitter.exits == [0], (
        "KubeRay's Job is complete: no other pod follows, and nothing is submitted again"
    )


def test_a_wrong_token_opens_nothing(life: Life) -> None:
    plain, site = life.operators["plain"], life.site
    right = site.objects["Secret", "convmlp-ray-auth"]
    site.objects["Secret", "convmlp-ray-auth"] = {"auth_token": "f" * 64}
    try:
        submitter = plain.submit_here(life.rendered("stranger"), "token")
        worker = site.create(copy.deepcopy(plain.made.workers[0]))
        wait_for(lambda: submitter.ended, "the submitter's end", START_S)
    finally:
        site.objects["Secret", "convmlp-ray-auth"] = right
    assert submitter.exits[0] != 0 and "the authentication token is invalid" in submitter.text()
    assert plain.status_of("stranger-token")[0] == 404
    assert not worker.running and "GCS is ready" not in worker.text(), (
        "it waits for a head that takes its token"
    )
    worker.delete()


def test_shared_memory_that_is_too_small_is_said_by_the_pod(life: Life) -> None:
    """Rendered pods have more than their object store needs; a patch may take it away."""
    plain = life.operators["plain"]
    document = copy.deepcopy(plain.made.workers[0])
    (volume,) = [one for one in document["spec"]["volumes"] if one["name"] == "shm"]
    volume["emptyDir"]["sizeLimit"] = "64Mi"
    pod = life.site.create(document)
    said = "using /tmp/ray instead of /dev/shm because /dev/shm has only 67108864 bytes"
    wait_for(lambda: said in pod.text(), "Ray's warning", START_S)
    pod.delete()
