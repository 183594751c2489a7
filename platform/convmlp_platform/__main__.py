"""`python -m convmlp_platform` is the command `convmlp`; the first line of every job file runs it."""

from __future__ import annotations

import sys

from convmlp_platform.launch.cluster.working_dir import prefer_working_dir

if __name__ == "__main__":
    prefer_working_dir()  # before anything else of the package is imported
    from convmlp_platform.cli.main import main

    sys.exit(main())
