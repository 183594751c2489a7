"""`kuberay.made_of` gives what KubeRay's own tests and samples expect; what it makes of our RayJobs fits together."""

from __future__ import annotations

import copy
import json
import shlex
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
import yaml
from k8s_manifests import Document, source_documents, title
from kuberay import APP_NAME, MadeObjects, made_of, ray_start
from kuberay_submitter import VERSIONS, submit_command

RAYJOBS = [document for document in source_documents() if document["kind"] == "RayJob"]
MADE = [
    pytest.param(job, version, id=f"{title(job)}-{version}") for job in RAYJOBS for version in sorted(VERSIONS)
]  # fmt: skip

SAMPLE = yaml.safe_load("""
metadata: {name: sample, namespace: default}
spec:
  entrypoint: python sample_code.py
  rayClusterSpec:
    rayVersion: 2.52.0
    headGroupSpec:
      rayStartParams: {}
      template:
        spec:
          containers:
            - name: ray-head
              image: ray
              ports: [{containerPort: 8265, name: dashboard}]
              resources: {limits: {cpu: '1', memory: 1Gi}}
    workerGroupSpecs:
      - groupName: small-group
        replicas: 2
        numOfHosts: 2
        rayStartParams: {port: '6379'}
        template:
          spec:
            containers:
              - name: ray-worker
                image: ray
                env: [{name: TEST_ENV_NAME, value: TEST_ENV_VALUE}]
                resources: {limits: {cpu: '1', memory: 1Gi, nvidia.com/gpu: '3'}}
""")
SERVICE = "sample-x7k2p-head-svc.default.svc.cluster.local"


def sample(**changes: Any) -> Document:
    job = copy.deepcopy(SAMPLE)
    job["spec"]["rayClusterSpec"] |= changes
    return job  # type: ignore[no-any-return]


def env_of(container: Document) -> dict[str, Any]:
    """Name → value, or where it is from. A name has one entry."""
    entries = [(one["name"], one.get("value", one.get("valueFrom"))) for one in container["env"]]
    assert len(dict(entries)) == len(entries), container["name"]
    return dict(entries)


def words(command: str) -> list[str]:
    return sorted(command.split())


def container_of(pod: Document) -> Document:
    container: Document = pod["spec"]["containers"][0]
    return container


def test_a_head_is_started_as_the_operators_tests_expect() -> None:
    head = made_of(sample(), "1.7").head
    container, env = container_of(head), env_of(container_of(head))
    assert container["command"] == ["/bin/bash", "-c", "--"]
    assert sorted(container["args"][0].split()) == words(
        "ulimit -n ${RAY_START_ULIMIT_OPEN_FILES:-65536}; ray start --head --block --dashboard-agent-listen-port=52365 "
        "--memory=1073741824 --num-cpus=1 --metrics-export-port=8080 --dashboard-host=0.0.0.0"
    )
    assert env["RAY_ADDRESS"] == "127.0.0.1:6379" and env["RAY_PORT"] == "6379"
    assert env["RAY_USAGE_STATS_EXTRA_TAGS"] == "kuberay_version=v1.7.0;kuberay_crd=RayJob"
    assert env["RAY_CLUSTER_NAME"] == {"fieldRef": {"fieldPath": "metadata.labels['ray.io/cluster']"}}
    assert env["KUBERAY_GEN_RAY_START_CMD"].startswith("ray start --head ")
    assert "FQ_RAY_IP" not in env and "RAY_AUTH_TOKEN" not in env
    assert head["metadata"]["labels"]["ray.io/group"] == "headgroup"
    (volume,) = head["spec"]["volumes"]
    assert volume == {"name": "shared-mem", "emptyDir": {"medium": "Memory", "sizeLimit": "1Gi"}}


def test_a_worker_is_started_as_the_operators_tests_expect() -> None:
    workers = made_of(sample(), "1.7").workers
    assert len(workers) == 4, "replicas x numOfHosts"
    assert len({pod["metadata"]["name"] for pod in workers}) == 4
    container, env = container_of(workers[0]), env_of(container_of(workers[0]))
    assert sorted(container["args"][0].split()) == words(
        "ulimit -n ${RAY_START_ULIMIT_OPEN_FILES:-65536}; ray start --block --dashboard-agent-listen-port=52365 "
        f"--memory=1073741824 --num-cpus=1 --num-gpus=3 --address={SERVICE}:6379 --port=6379 "
        "--metrics-export-port=8080"
    )
    assert env["RAY_ADDRESS"] == f"{SERVICE}:6379"
    assert env["FQ_RAY_IP"] == SERVICE and env["RAY_IP"] == "sample-x7k2p-head-svc"
    assert env["TEST_ENV_NAME"] == "TEST_ENV_VALUE"
    (waits,) = workers[0]["spec"]["initContainers"]
    assert waits["name"] == "wait-gcs-ready" and waits["image"] == "ray"
    assert f"ray health-check --address {SERVICE}:6379" in waits["args"][0]
    assert env_of(waits)["FQ_RAY_IP"] == SERVICE and env_of(waits)["TEST_ENV_NAME"] == "TEST_ENV_VALUE"
    assert waits["resources"]["limits"] == {"cpu": "200m", "memory": "256Mi"}
    assert "RAY_USAGE_STATS_EXTRA_TAGS" not in env


@pytest.mark.parametrize(("params", "resources", "head", "wanted"), [
    ({}, {"limits": {"nvidia.com/gpu": "1"}}, False, "ray start --num-gpus=1"),
    ({}, {"limits": {"nvidia.com/mig-2g.32gb": "1"}}, False, "ray start --num-gpus=1"),
    ({}, {"requests": {"cpu": "1500m"}}, False, "ray start --num-cpus=2"),
    ({"num-cpus": "0"}, {"limits": {"cpu": "4"}}, True, "ray start --head --num-cpus=0"),
    ({"no-monitor": "true", "include-dashboard": "false", "disable-usage-stats": "false"}, {}, True,
     "ray start --head --include-dashboard=false --no-monitor"),
])  # fmt: skip
def test_ray_start_follows_parameters_before_limits(
    params: dict[str, str], resources: Document, head: bool, wanted: str
) -> None:
    assert ray_start(VERSIONS["1.7"], params, resources, head=head).split() == wanted.split()


def test_the_versions_differ_where_their_sources_do() -> None:
    old, new = made_of(sample(), "1.6"), made_of(sample(), "1.7")
    assert container_of(old.head)["args"][0].startswith("ulimit -n 65536; ray start")
    logs = {"include-log-monitor": "false"}
    assert [ray_start(VERSIONS[one], logs, {}, head=True).split()[3:] for one in ("1.6", "1.7")] == [
        [], ["--include-log-monitor=false"],
    ]  # fmt: skip
    said = [container_of(one.submitter["spec"]["template"])["args"][0] for one in (old, new)]
    assert said[0].startswith("if ! ray job status") and said[1].startswith("until python -c ")
    assert said[1].endswith(said[0])


def test_the_submitters_command_is_the_one_that_the_operators_tests_expect() -> None:
    spec = {
        "runtimeEnvYAML": "test: test",
        "metadata": {"testKey": "testValue"},
        "entrypoint": "echo no quote 'single quote' \"double quote\"",
        "entrypointNumCpus": 1,
        "entrypointNumGpus": 0.5,
        "entrypointResources": '{"Custom_1": 1, "Custom_2": 5.5}',
    }
    address = "http://127.0.0.1:8265"
    assert submit_command(spec, address, "testJobId", VERSIONS["1.6"]).split() == [
        *f"if ! ray job status --address {address} testJobId >/dev/null 2>&1 ; then".split(),
        *f"ray job submit --address {address} --no-wait".split(),
        "--runtime-env-json", json.dumps('{"test":"test"}'),
        "--metadata-json", json.dumps('{"testKey":"testValue"}'),
        "--submission-id", "testJobId", "--entrypoint-num-cpus", "1.000000", "--entrypoint-num-gpus", "0.500000",
        "--entrypoint-resources", *json.dumps('{"Custom_1": 1, "Custom_2": 5.5}').split(),
        "--", *spec["entrypoint"].split(), ";", "fi", ";",  # type: ignore[attr-defined]
        *f"ray job logs --address {address} --follow testJobId".split(),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("version", "new"), [("2.52.1", False), ("2.53.0", True), ("2.60.0", True), ("", False)]
)
def test_probes_are_those_of_rays_version(version: str, new: bool) -> None:
    made = made_of(sample(rayVersion=version), "1.7")
    for pod, timeout in ((made.head, 5), (made.workers[0], 2)):
        for name, begins, failures in (("livenessProbe", 30, 120), ("readinessProbe", 10, 10)):
            probe = container_of(pod)[name]
            assert ("httpGet" in probe) is new and ("exec" in probe) is not new
            assert (probe["timeoutSeconds"], probe["initialDelaySeconds"]) == (timeout, begins)
            assert (probe["periodSeconds"], probe["failureThreshold"]) == (5, failures)
    if new:
        assert container_of(made.head)["readinessProbe"]["httpGet"] == {"path": "/api/healthz", "port": 52365}
    else:
        asked = [
            container_of(pod)["readinessProbe"]["exec"]["command"][2] for pod in (made.head, made.workers[0])
        ]
        assert ["gcs_healthz" in one for one in asked] == [True, False]


def test_a_token_comes_from_the_named_secret_or_one_of_the_clusters_name() -> None:
    for options, secret in (({"secretName": "ours"}, "ours"), ({}, "sample-x7k2p")):
        made = made_of(sample(authOptions={"mode": "token", **options}), "1.7")
        worker = made.workers[0]
        holders = [container_of(made.head), container_of(worker), worker["spec"]["initContainers"][0]]
        for container in [*holders, container_of(made.submitter["spec"]["template"])]:
            env = env_of(container)
            assert env["RAY_AUTH_MODE"] == "token"
            assert env["RAY_AUTH_TOKEN"] == {"secretKeyRef": {"name": secret, "key": "auth_token"}}


def test_a_command_of_the_templates_own_comes_before_rays() -> None:
    job = sample()
    container = job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0]
    container["command"] = ["sleep", "1"]
    assert container_of(made_of(job, "1.6").head)["args"][0].startswith(
        "sleep 1 && ulimit -n 65536; ray start"
    )
    container["command"], container["args"] = ["bash", "-c"], ["ray start --head --block"]
    assert container_of(made_of(job, "1.6").head)["args"] == ["ray start --head --block"]


@pytest.mark.parametrize("change", [{"gcsFaultToleranceOptions": {}}, {"enableInTreeAutoscaling": True}])
def test_what_is_not_modelled_is_refused(change: Document) -> None:
    with pytest.raises(ValueError, match="not modelled"):
        made_of(sample(**change), "1.7")
    with pytest.raises(ValueError, match="HTTPMode"):
        made_of({**SAMPLE, "spec": SAMPLE["spec"] | {"submissionMode": "HTTPMode"}}, "1.7")


def all_containers(made: MadeObjects) -> list[Document]:
    pods = [made.head, *made.workers, made.submitter["spec"]["template"]]
    return [
        one for pod in pods for one in [*pod["spec"].get("initContainers", []), *pod["spec"]["containers"]]
    ]


@pytest.mark.parametrize(("job", "version"), MADE)
def test_our_rayjobs_become_pods_that_find_each_other(job: Document, version: str) -> None:
    made = made_of(job, version)
    of_cluster, of_job = made.services
    for service in made.services:
        labels = made.head["metadata"]["labels"]
        assert service["spec"]["selector"].items() <= labels.items(), (
            f"svc/{service['metadata']['name']} finds no head: its selector has {APP_NAME}="
            f"{service['spec']['selector'][APP_NAME]}, the head {labels[APP_NAME]}"
        )
        assert {("dashboard", 8265), ("gcs-server", 6379)} <= {
            (port["name"], port["port"]) for port in service["spec"]["ports"]
        }
    assert of_job["metadata"]["name"] == f"{job['metadata']['name']}-head-svc"
    host = f"{of_cluster['metadata']['name']}.convmlp.svc.cluster.local"
    for worker in made.workers:
        assert f" --address={host}:6379 " in container_of(worker)["args"][0]
    submitter = container_of(made.submitter["spec"]["template"])
    assert f"--address http://{host}:8265 " in submitter["args"][0]
    assert made.submitter["spec"]["backoffLimit"] == 4
    for container in all_containers(made):
        env_of(container)


@pytest.mark.parametrize(("job", "version"), MADE)
def test_the_shell_hands_our_entrypoint_on_as_it_is(job: Document, version: str) -> None:
    """KubeRay puts it into a line of shell, and Ray into another."""
    line = container_of(made_of(job, version).submitter["spec"]["template"])["args"][0]
    words = shlex.split(line.partition(" -- ")[2])
    assert words[: words.index(";")] == shlex.split(job["spec"]["entrypoint"])


@pytest.mark.parametrize(("job", "version"), MADE)
def test_all_that_kuberay_makes_of_a_pod_meets_the_restricted_profile(job: Document, version: str) -> None:
    made = made_of(job, version)
    for container in all_containers(made):
        assert container["securityContext"]["allowPrivilegeEscalation"] is False, container["name"]
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    for pod in (made.head, *made.workers):
        assert len(pod["metadata"]["name"]) <= 63
        assert [volume["name"] for volume in pod["spec"]["volumes"]].count("shared-mem") == 0, (
            "ours is mounted"
        )


@pytest.mark.parametrize(("answer", "lives"), [(200, True), (404, False), (401, False), (None, False)])
def test_a_submitter_lives_while_its_head_has_the_job(answer: int | None, lives: bool) -> None:
    """Its connection to a head whose node is lost would wait for ever."""
    asked = []

    class Head(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append((self.path, self.headers["Authorization"]))
            self.send_response(answer or 500)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    made = made_of(next(job for job in RAYJOBS if job["metadata"]["name"] == "pretrain-digits"), "1.7")
    container = container_of(made.submitter["spec"]["template"])
    env = {name: value for name, value in env_of(container).items() if isinstance(value, str)}
    with HTTPServer(("127.0.0.1", 0), Head) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        env |= {"RAY_DASHBOARD_ADDRESS": f"127.0.0.1:{server.server_port}", "RAY_AUTH_TOKEN": "secret"}
        if answer is None:
            server.shutdown()
            server.server_close()
        command = container["livenessProbe"]["exec"]["command"]
        done = subprocess.run([sys.executable, *command[1:]], env=env, capture_output=True, timeout=60)
        server.shutdown()
    assert (done.returncode == 0) is lives, done.stderr
    assert asked == ([] if answer is None else [(f"/api/jobs/{made.job_id}", "Bearer secret")])
