"""k8s/Dockerfile, read as text: no container engine is needed here."""

from __future__ import annotations

import fnmatch
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from k8s_manifests import K8S, ROOT, cluster_spec, pods, source_documents

INSTRUCTIONS = {"FROM", "RUN", "ARG", "ENV", "WORKDIR", "COPY", "LABEL", "USER", "HEALTHCHECK", "CMD"}


def instructions() -> list[tuple[str, str]]:
    """`(instruction, rest)` of each logical line: comments dropped, continued lines joined."""
    lines = [
        line for line in (K8S / "Dockerfile").read_text().splitlines() if not line.lstrip().startswith("#")
    ]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return [
        (name, rest) for line in joined.splitlines() if line.strip() for name, rest in [line.split(None, 1)]
    ]


def arguments(instruction: str) -> list[str]:
    return [rest for name, rest in instructions() if name == instruction]


def test_only_known_instructions() -> None:
    assert {name for name, _ in instructions()} <= INSTRUCTIONS
    assert [name for name, _ in instructions()][:2] == ["ARG", "FROM"], "the base is an argument"
    assert not any(rest.endswith("\\") for _, rest in instructions())


def copied() -> list[str]:
    """What comes from the repository, not from another stage."""
    return [s for rest in arguments("COPY") if "--from=" not in rest for s in rest.split()[:-1]]


@pytest.mark.parametrize("source", copied())
def test_copied_files_exist_and_reach_the_build(source: str) -> None:
    assert (ROOT / source).exists(), f"k8s/Dockerfile copies {source}, which is not in the repository"
    included = False
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        pattern = line.strip()
        if pattern and not pattern.startswith("#") and fnmatch.fnmatch(source, pattern.lstrip("!")):
            included = pattern.startswith("!")
    assert included, f".dockerignore keeps {source} out of the build"


def test_image_holds_every_package_and_the_jobs() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    assert {package.split("/")[0] for package in packages} | {"jobs"} <= set(copied())
    tags = {
        c["image"].partition(":")[2] for d in source_documents() for _, s in pods(d) for c in s["containers"]
    }
    assert tags == {project["project"]["version"]}


def test_image_and_manifests_agree_on_user_and_folder() -> None:
    user, group = map(int, arguments("USER")[-1].split(":"))
    folder = arguments("WORKDIR")[-1]
    for document in source_documents():
        for role, spec in pods(document):
            assert spec["securityContext"]["runAsUser"] == user
            assert spec["securityContext"]["runAsGroup"] == group
            if role != "deployment":
                assert spec["containers"][0]["workingDir"] == folder


def final_stage() -> list[tuple[str, str]]:
    starts = [number for number, (name, _) in enumerate(instructions()) if name == "FROM"]
    assert len(starts) == 2
    return instructions()[starts[-1] :]


def test_the_image_holds_no_compiler_and_installs_nothing_from_an_index() -> None:
    said = " ".join(rest for name, rest in final_stage() if name == "RUN")
    assert not re.search(r"build-essential|\bg\+\+|-dev\b|pip install", said)
    assert ("ARG", 'COMPILER=""') in final_stage()


def requirements(folder: Path) -> Path:
    """What the image installs, by its own line."""
    (line,) = [rest for name, rest in instructions() if name == "RUN" and "tomllib" in rest]
    command = line.split("> /tmp/requirements.txt")[0].replace("python -c", f"{sys.executable} -c")
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, check=True)
    file = folder / "requirements.txt"
    file.write_text(done.stdout)
    return file


def test_the_image_installs_the_projects_dependencies_and_four_extras(tmp_path: Path) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = [
        one for extra in ("ffcv", "s3", "gs", "server") for one in project["optional-dependencies"][extra]
    ]
    assert requirements(tmp_path).read_text().splitlines() == [*project["dependencies"], *extras]


@pytest.mark.slow
def test_what_the_image_installs_can_be_resolved(tmp_path: Path) -> None:
    arguments = [
        "--dry-run",
        "--quiet",
        "-c",
        str(ROOT / "constraints.txt"),
        "-r",
        str(requirements(tmp_path)),
    ]
    done = subprocess.run(
        [sys.executable, "-m", "pip", "install", *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_ray_is_the_version_that_the_manifests_name() -> None:
    constraints = (ROOT / "constraints.txt").read_text()
    pinned = re.search(r"^ray(?:\[[^]]*\])?==(\S+)", constraints, re.MULTILINE)
    assert pinned, "constraints.txt pins no ray"
    versions = {
        cluster["rayVersion"] for document in source_documents() if (cluster := cluster_spec(document))
    }
    assert versions == {pinned[1]}
