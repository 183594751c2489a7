"""Python imports this by itself in every process of the tests: `conftest.py` puts its folder on PYTHONPATH."""

import runpy
from pathlib import Path

runpy.run_path(str(Path(__file__).parents[1] / "empty_database.py"))
