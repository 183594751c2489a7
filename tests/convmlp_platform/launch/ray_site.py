"""Commands as a user types them, against a cluster that the tests have started."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from convmlp_platform.launch.cluster.local_cluster import LocalCluster

REPOSITORY = Path(__file__).resolve().parents[3]
LONGEST_COMMAND_S = (
    500.0  # submit to the end: 60 s on two idle cores; five times that was seen beside other tests
)


@dataclass(frozen=True)
class Site:
    """A running cluster, the folder its jobs write to, and the home folder of its processes."""

    cluster: LocalCluster
    root: Path
    home: Path

    def submit(self, *job: str) -> subprocess.CompletedProcess[str]:
        """`ray job submit -- JOB ...` from the repository's root."""
        return self.command("ray.scripts.scripts", "job", "submit", "--", *job)

    def run(self, *job: str) -> subprocess.CompletedProcess[str]:
        """`convmlp run JOB ...` with RAY_ADDRESS set: the driver runs here, the workers on the cluster."""
        return self.command("convmlp_platform", "run", *job)

    def command(self, module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        return run_module(module, arguments, self.cluster.env)


def run_module(
    module: str, arguments: Sequence[str], environment: dict[str, str]
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", module, *arguments],
        env=environment,
        cwd=REPOSITORY,
        text=True,
        capture_output=True,
        timeout=LONGEST_COMMAND_S,
    )


def clean_environment(root: Path, home: Path) -> dict[str, str]:
    """This process's environment without any Ray or MLflow settings, and with the code of this checkout."""
    own = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "MLFLOW_"))}
    paths = os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "platform")])
    return own | {"CONVMLP_ROOT": str(root), "HOME": str(home), "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}


def home_with_stale_token(folder: Path) -> Path:
    """A home folder in which an earlier Ray has left its token."""
    (folder / ".ray").mkdir(parents=True)
    (folder / ".ray" / "auth_token").write_text("of-an-earlier-cluster")
    return folder
