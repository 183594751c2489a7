"""`convmlp k8s check`: what it says, and what it asks a cluster for (a kubectl of this test's own)."""

from __future__ import annotations

import base64
import json
import stat
import sys
from pathlib import Path
from typing import Any

import pytest
from prepared import digits

from convmlp_platform.cli.main import main

ROOT = Path(__file__).parents[3]
TINY = "jobs/pretrain_digits.yaml"
FIELDS = {"deletionStrategy": {}, "preRunningDeadlineSeconds": {}}
SPEC = {"properties": {"spec": {"properties": FIELDS}}}
CRD = {"spec": {"versions": [{"name": "v1", "schema": {"openAPIV3Schema": SPEC}}]}}


def encoded(**values: str) -> dict[str, Any]:
    return {"data": {key: base64.b64encode(value.encode()).decode() for key, value in values.items()}}


WHOLE: dict[str, Any] = {
    "namespace convmlp": {},
    "secret convmlp-ray-auth": encoded(auth_token="hush"),
    "secret convmlp-mlflow": encoded(uri="http://mlflow:5000"),
    "secret convmlp-s3": encoded(AWS_ACCESS_KEY_ID="hush", AWS_SECRET_ACCESS_KEY="hush"),
    "persistentvolumeclaim convmlp-storage": {"spec": {"accessModes": ["ReadWriteMany"]}},
    "priorityclass urgent": {},
    "customresourcedefinition rayjobs.ray.io": CRD,
}
FAKE = """#!{python} -IS
import json, sys
objects = json.load(open({file!r}))
words = [word for word in sys.argv[2:] if not word.startswith("--")]
if "--namespace" in sys.argv:
    words.remove(sys.argv[sys.argv.index("--namespace") + 1])
found = objects.get(" ".join(words))
if found is None:
    sys.exit('Error from server (NotFound): ' + " ".join(words))
print(json.dumps(found))
"""


@pytest.fixture(autouse=True)
def _at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.delenv("CONVMLP_ROOT", raising=False)


@pytest.fixture
def kubectl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    def install(objects: dict[str, Any]) -> None:
        (tmp_path / "objects.json").write_text(json.dumps(objects))
        program = tmp_path / "kubectl"
        program.write_text(FAKE.format(python=sys.executable, file=str(tmp_path / "objects.json")))
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")

    return install


def check(*words: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, list[str]]:
    code = main(["k8s", "check", TINY, "--image", "convmlp:1", *words])
    out, err = capsys.readouterr()
    return code, out, err.strip().splitlines()


def test_a_job_whose_data_is_elsewhere_is_checked_without(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, problems = check("--workers", "2", capsys=capsys)
    assert (code, problems) == (0, [])
    assert "data/digits isn't here: the driver checks it first" in out
    assert "pods     2 of workers, each 1 CPU, 4 GiB of memory with 1 GiB of /dev/shm" in out
    assert "needs    in namespace convmlp: Secret convmlp-ray-auth (auth_token)" in out
    assert "no problems found; --cluster asks the cluster, too" in out


def test_data_that_can_be_seen_are_checked_too(capsys: pytest.CaptureFixture[str]) -> None:
    """The path is relative: below CONVMLP_ROOT, as in the pods."""
    folder = digits("webdataset")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CONVMLP_ROOT", str(folder.parent))
        code, out, problems = check("--set", f"data.path={folder.name}", capsys=capsys)
        assert (code, problems) == (0, [])
        assert "train + " in out and "isn't here" not in out
        code, _, problems = check(
            "--set", f"data.path={folder.name}", "--set", "data.train_split=nosuch", capsys=capsys
        )
    assert code == 2
    assert "has no split 'nosuch'" in problems[0]


def test_a_cluster_with_all_of_it_has_no_problem(kubectl: Any, capsys: pytest.CaptureFixture[str]) -> None:
    kubectl(WHOLE)
    words = ("--overlay", "external-services", "--priority", "urgent", "--cluster")
    code, out, problems = check(*words, capsys=capsys)
    assert (code, problems) == (0, [])
    assert out.endswith("no problems found\n")


@pytest.mark.parametrize(
    ("change", "words", "told"),
    [
        ({"namespace convmlp": None}, (), "namespace convmlp isn't there: kubectl apply -k k8s/base"),
        ({"secret convmlp-ray-auth": None}, (), "Secret convmlp-ray-auth isn't in namespace convmlp: openssl rand"),
        ({"secret convmlp-ray-auth": encoded(token="hush")}, (), "Secret convmlp-ray-auth has no key auth_token"),
        ({"secret convmlp-ray-auth": encoded(auth_token="hush\n")}, (), "begins or ends with white space"),
        ({"secret convmlp-s3": None}, ("--overlay", "external-services"), "Secret convmlp-s3 isn't in namespace"),
        ({"persistentvolumeclaim convmlp-storage": None}, (), "PersistentVolumeClaim convmlp-storage isn't in"),
        (
            {
                "persistentvolumeclaim convmlp-storage": {"spec": {"accessModes": ["ReadWriteOnce"]}},
                "nodes": {"items": [{}, {}]},
            },
            (),
            "may be mounted by one node only, and the cluster has 2",
        ),
        ({}, ("--priority", "high"), "--priority high: the cluster has none of this name: kubectl get priorityclass"),
        ({}, ("--queue", "vision"), "--queue vision: namespace convmlp has no LocalQueue of this name"),
        ({"rayjob.ray.io pretrain-digits": {}}, (), "RayJob pretrain-digits is there already, and wouldn't run again"),
        ({"customresourcedefinition rayjobs.ray.io": None}, (), "KubeRay isn't installed"),
        (
            {"customresourcedefinition rayjobs.ray.io": json.loads(json.dumps(CRD).replace("deletionStrategy", "x"))},
            (),
            "KubeRay is older than 1.6: its RayJob has no deletionStrategy",
        ),
    ],
)  # fmt: skip
def test_what_a_cluster_lacks_is_told(
    change: dict[str, Any],
    words: tuple[str, ...],
    told: str,
    kubectl: Any,
    capsys: pytest.CaptureFixture[str],
) -> None:
    kubectl({key: value for key, value in (WHOLE | change).items() if value is not None})
    code, _, problems = check(*words, "--cluster", capsys=capsys)
    assert code == 2
    assert len(problems) == 1 and told in problems[0], problems
    assert "hush" not in problems[0]


def test_without_kubectl_it_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    code, _, problems = check("--cluster", capsys=capsys)
    assert (code, problems) == (2, ["error: --cluster: kubectl isn't on PATH"])
