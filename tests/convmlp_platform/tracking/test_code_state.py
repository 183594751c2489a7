"""What is known of the code: in a checkout, in an image, in Ray's copy of a working directory."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from convmlp_platform.tracking.environment_tags import environment_tags
from convmlp_platform.tracking.provenance import code_state
from convmlp_platform.tracking.provenance.code_state import (
    MAX_DIFF_BYTES,
    CodeState,
    code_tags,
    known_from,
    read_code,
)
from convmlp_platform.tracking.provenance.frozen_environment import frozen_environment, requirements_text
from convmlp_platform.tracking.provenance.lineage_files import write_facts
from convmlp_platform.tracking.provenance.submitted_job import (
    given_job,
    read_submission,
    submission_tags,
    write_submission,
)

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def git(folder: Path, *words: str) -> str:
    who = ("-c", "user.name=n", "-c", "user.email=n@example.org", "-c", "commit.gpgsign=false")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    command = ["git", "-C", str(folder), *who, *words]
    return subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout.strip()


def make_tree(root: Path) -> dict[str, Path]:
    """Three packages as in the repository."""
    folders = {
        "convmlp": root / "convmlp",
        "data_prep": root / "data_prep",
        "convmlp_platform": root / "platform" / "convmlp_platform",
    }
    for name, folder in folders.items():
        (folder / "deep").mkdir(parents=True)
        (folder / "__init__.py").write_text(f"'''{name}'''\n")
        (folder / "deep" / "code.py").write_text("x = 1\n")
        (folder / "deep.py").write_text("y = 1\n")
        (folder / "__pycache__").mkdir()
        (folder / "__pycache__" / "code.pyc").write_bytes(b"compiled")
    return folders


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, Path]:
    root = tmp_path / "checkout"
    found = make_tree(root)
    (found["data_prep"] / "run.py").write_text("#!/usr/bin/env python\n")
    (found["data_prep"] / "run.py").chmod(0o755)
    (root / ".gitignore").write_text("__pycache__/\n*.log\n")
    git(root, "init", "-q")
    git(root, "add", ".")
    git(root, "commit", "-q", "-m", "first")
    return found


def top(folders: dict[str, Path]) -> Path:
    return folders["convmlp"].parent


def test_a_clean_checkout(folders: dict[str, Path]) -> None:
    code, root = read_code(folders, {}), top(folders)
    assert (code.commit, code.origin, code.dirty, code.diff) == (
        git(root, "rev-parse", "HEAD"),
        "checkout",
        False,
        None,
    )
    places = {"convmlp": "convmlp", "data_prep": "data_prep", "convmlp_platform": "platform/convmlp_platform"}
    assert code.trees == {name: git(root, "rev-parse", f"HEAD:{place}") for name, place in places.items()}
    assert code.files["data_prep/run.py"] == git(root, "rev-parse", "HEAD:data_prep/run.py")
    assert not any("pycache" in name for name in code.files)
    tags = code_tags(code)
    assert (tags["git.commit"], tags["git.dirty"], tags["code.origin"]) == (code.commit, "false", "checkout")
    assert tags["mlflow.source.git.commit"] == code.commit


def test_changes_and_new_files_are_in_the_diff_and_the_checkout_stays_as_it_is(
    folders: dict[str, Path],
) -> None:
    root = top(folders)
    (folders["convmlp"] / "deep" / "code.py").write_text("x = 2\n")
    (folders["data_prep"] / "deep.py").unlink()
    (folders["convmlp_platform"] / "new.py").write_text("z = 3\n")
    (root / "notes.txt").write_text("not ours\n")
    (folders["convmlp"] / "debug.log").write_text("ignored\n")
    status = git(root, "status", "--porcelain")  # it refreshes the index
    index = (root / ".git/index").read_bytes()
    code = read_code(folders, {})
    assert (root / ".git/index").read_bytes() == index and git(root, "status", "--porcelain") == status
    assert code.dirty and code.diff is not None and code.diff.is_whole and code.diff.text is not None
    assert "-x = 1\n+x = 2\n" in code.diff.text and "+z = 3" in code.diff.text and "-y = 1" in code.diff.text
    assert "not ours" not in code.diff.text and "ignored" not in code.diff.text
    assert code_tags(code)["code.diff"] == f"{code.diff.bytes:,} bytes"
    git(root, "stash", "-q", "-u")
    (root / "p").write_text(code.diff.text)
    git(root, "apply", "p")
    (root / "p").unlink()
    assert read_code(folders, {}).files == code.files


def test_a_large_diff_is_said_and_not_kept(folders: dict[str, Path]) -> None:
    (folders["convmlp"] / "deep.py").write_text("y = 1  # and more\n" * (MAX_DIFF_BYTES // 16))
    diff = read_code(folders, {}).diff
    assert diff is not None and diff.text is None and not diff.is_whole and diff.bytes > MAX_DIFF_BYTES
    assert len(diff.sha256) == 64 and diff.told() == f"{diff.bytes:,} bytes, too large to be kept"


def test_secrets_leave_the_diff_and_it_is_said(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "planted-password")
    root = top(folders)
    (root / "run.sh").write_text("echo hello\n")
    git(root, "add", "run.sh")
    git(root, "commit", "-q", "-m", "second")
    (root / "run.sh").write_text("export RAY_AUTH_TOKEN=planted-token\n# planted-password\n")
    (folders["convmlp"] / "deep.py").write_text(
        "y = 1\ntoken = next_token()\nuri = 'http://u:planted-uri@h/'\n"
    )
    diff = read_code(folders, {}).diff
    assert diff is not None and diff.text is not None and "planted" not in diff.text
    assert "+token = next_token()" in diff.text, "code that speaks of tokens is none"
    assert diff.redacted == 3 and not diff.is_whole and "3 lines without their secrets" in diff.told()


def test_binary_files_are_only_named(folders: dict[str, Path]) -> None:
    (folders["convmlp"] / "weights.bin").write_bytes(bytes(range(256)) * 8)
    diff = read_code(folders, {}).diff
    assert diff is not None and diff.binary and not diff.is_whole and "binary files only named" in diff.told()


def test_an_image_states_its_commit(tmp_path: Path) -> None:
    folders = make_tree(tmp_path / "image")
    assert read_code(folders, {}).commit is None
    code = read_code(folders, {"CONVMLP_GIT_COMMIT": COMMIT})
    assert (code.commit, code.origin, code.dirty) == (COMMIT, "CONVMLP_GIT_COMMIT", None)
    assert "git.dirty" not in code_tags(code)
    for stated in ("unknown", "", "v1.2", f"{COMMIT}; rm"):
        code = read_code(folders, {"CONVMLP_GIT_COMMIT": stated})
        assert code.commit is None and "git.commit" not in code_tags(code) and "code.trees" in code_tags(code)


def test_an_image_s_commit_is_not_that_of_a_working_dir(tmp_path: Path) -> None:
    folders = make_tree(tmp_path / "runtime_resources" / "working_dir_files" / "_ray_pkg_1")
    image = {"CONVMLP_GIT_COMMIT": "f" * 40}
    assert read_code(folders, image).commit is None
    submitted = json.dumps({"runtime_env": {"env_vars": {"CONVMLP_GIT_COMMIT": COMMIT}}})
    assert read_code(folders, image | {"RAY_JOB_CONFIG_JSON_ENV_VAR": submitted}).commit == COMMIT
    for odd in ("", "{", "[]", '{"runtime_env": null}', '{"runtime_env": {"env_vars": []}}'):
        assert read_code(folders, image | {"RAY_JOB_CONFIG_JSON_ENV_VAR": odd}).commit is None


def test_an_environment_inside_somebody_else_s_checkout_is_not_our_commit(tmp_path: Path) -> None:
    git(tmp_path, "init", "-q")
    (tmp_path / "theirs.txt").write_text("x")
    git(tmp_path, "add", "theirs.txt")
    git(tmp_path, "commit", "-q", "-m", "theirs")
    assert read_code(make_tree(tmp_path / "venv"), {}).commit is None


def test_without_git(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    known = read_code(folders, {})
    monkeypatch.setattr(code_state.shutil, "which", lambda _name: None)
    code = read_code(folders, {})
    assert code.commit is None and code.dirty is None and code.trees == known.trees


def test_a_worker_knows_the_commit_from_its_driver_if_it_runs_the_same_files(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    (folders["convmlp"] / "deep" / "code.py").write_text("x = 2\n")
    driver = read_code(folders, {})
    copy = make_tree(tmp_path / "copy")
    for name, folder in folders.items():
        for path in folder.rglob("*.py"):
            (copy[name] / path.relative_to(folder)).write_bytes(path.read_bytes())
    (copy["data_prep"] / "run.py").chmod(0o755)
    own = read_code(copy, {})
    found = known_from(own, driver)
    assert (found.commit, found.dirty, found.origin) == (driver.commit, True, "driver's checkout")
    assert found.diff == driver.diff
    (copy["convmlp"] / "deep.py").write_text("y = 7\n")
    assert known_from(read_code(copy, {}), driver).commit is None, "other files"
    assert known_from(own, None) == own and known_from(own, CodeState(trees=own.trees)) == own


def test_a_submission_comes_back_as_it_was_written(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folders["convmlp"] / "deep" / "code.py").write_text("x = 2  # \udcff\n", errors="surrogateescape")
    code = read_code(folders, {})
    monkeypatch.setattr("convmlp_platform.tracking.provenance.submitted_job.this_code", lambda: code)
    file = tmp_path / "job.yaml"
    file.write_text("kind: train\ntracking: {uri: 'http://u:planted@h/'}\n# token: planted\n")
    given = given_job(file, ["tracking.uri=http://u:planted@h/", "optimizer.lr=1e-3"])
    assert given is not None
    run = tmp_path / "run"
    write_submission(run, given)
    found = read_submission(run)
    assert found is not None and found.code == code and found.overrides[1] == "optimizer.lr=1e-3"
    assert submission_tags(found)["job.file"] == str(file)
    write_facts(run, {"tracking": {"uri": "http://u:planted@h/"}, "x": ["http://u:planted@h/"]}, code)
    written = {path.name: path.read_bytes() for path in (run / "lineage").iterdir()}
    assert written.keys() == {
        "given_job.yaml", "submission.json", "driver.patch", "job.json", "code.json", "code.patch", "environment.json",
        "requirements.txt",
    }  # fmt: skip
    assert not [name for name, content in written.items() if b"planted" in content]
    write_submission(run, None)
    assert submission_tags(read_submission(run)) == {} and not (run / "lineage" / "given_job.yaml").exists()
    for damage in (b"{", b"[]", b'{"file": 3}'):
        (run / "lineage" / "submission.json").write_bytes(damage)
        assert read_submission(run) is None


def test_the_file_that_a_job_extends_goes_along(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("kind: train\nname: base\n# token: planted\n")
    (tmp_path / "own.yaml").write_text("extends: base.yaml\nname: own\n")
    given = given_job(tmp_path / "own.yaml", [])
    assert given is not None and given.base == "kind: train\nname: base\n# token: ***\n"
    write_submission(tmp_path / "run", given)
    assert (tmp_path / "run" / "lineage" / "base_job.yaml").read_text() == given.base
    write_submission(tmp_path / "run", given_job(tmp_path / "base.yaml", []))
    assert not (tmp_path / "run" / "lineage" / "base_job.yaml").exists()


def test_a_job_file_that_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"\xff\xfe")
    assert given_job(tmp_path / "x", []) is None and given_job(tmp_path / "none", []) is None


def test_the_environment_names_its_packages_and_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "planted")
    found = frozen_environment()
    assert found["packages"]["torch"] == __import__("importlib.metadata").metadata.version("torch")
    assert found["packages"]["scikit-learn"] and "planted" not in json.dumps(found)
    assert found["variables"]["OMP_NUM_THREADS"] == "1" and found["cpu"]["model"]
    assert f"torch=={found['packages']['torch']}\n" in requirements_text(found["packages"])


def test_the_tags_of_this_checkout_are_those_of_its_code() -> None:
    tags = environment_tags()
    assert tags["code.trees"].startswith("convmlp:") and tags["cpu.model"]
