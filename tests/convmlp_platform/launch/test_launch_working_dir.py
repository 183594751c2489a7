"""Code that Ray unpacked for a job is what runs, whatever package is installed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

CALL = """
from convmlp_platform.launch.cluster.working_dir import prefer_working_dir
prefer_working_dir()
print('installed')
"""


def run_in(folder: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-c", CALL, "job.yaml"], cwd=folder, text=True, capture_output=True, check=True
    )
    return done.stdout.strip()


def copy_of_the_code(folder: Path) -> Path:
    package = folder / "platform" / "convmlp_platform"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "__main__.py").write_text("import sys; print('copy', *sys.argv[1:])")
    return folder


def test_rays_copy_is_started_instead_with_the_same_arguments(tmp_path: Path) -> None:
    assert run_in(copy_of_the_code(tmp_path / "working_dir_files" / "_ray_pkg_1")) == "copy job.yaml"


def test_any_other_folder_leaves_the_installed_package_alone(tmp_path: Path) -> None:
    assert run_in(copy_of_the_code(tmp_path / "checkout")) == "installed"
    empty = tmp_path / "working_dir_files" / "_ray_pkg_2"
    empty.mkdir(parents=True)
    assert run_in(empty) == "installed"
