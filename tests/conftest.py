"""Common to all tests: this folder is importable (`from ranks import run_ranks`), and Ray makes no auth token."""

import os

os.environ.setdefault("RAY_AUTH_MODE", "disabled")
