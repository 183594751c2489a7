"""Code that comes with a job (`ray job submit --working-dir .`) wins over the package installed on the
cluster.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path


def unpacked_working_dir() -> Path | None:
    """The current directory, if it is Ray's copy of a working_dir that holds this platform's code."""
    here = Path.cwd()
    if (
        "working_dir_files" in here.parts
        and (here / "platform" / "convmlp_platform" / "__main__.py").is_file()
    ):
        return here
    return None


def prefer_working_dir() -> None:
    """Start this command again from the working_dir's `platform/` where the running package is another one.

    Ray puts the working_dir itself on PYTHONPATH, but `python -m convmlp_platform` then still finds the
    installed package, because ours lies one level below. To be called first thing in `__main__`; doesn't
    return if it acts.
    """
    copy = unpacked_working_dir()
    if copy is None:
        return
    ours = copy / "platform"
    if Path(__file__).resolve().is_relative_to(ours.resolve()) or os.environ.get(
        "CONVMLP_WORKING_DIR"
    ) == str(ours):
        return
    path = [str(ours), str(copy), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    # The marker stops a second round in case the interpreter ignores PYTHONPATH (python -I, -E).
    os.environ.update(PYTHONPATH=os.pathsep.join(path), CONVMLP_WORKING_DIR=str(ours))
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-m", "convmlp_platform", *sys.argv[1:]])
