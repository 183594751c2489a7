"""Common to all tests: this folder is importable (`from ranks import run_ranks`); Ray makes no token; no deadlines."""

import os

from hypothesis import settings

os.environ.setdefault("RAY_AUTH_MODE", "disabled")

# How long an example takes says more about the machine than about the code.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")
