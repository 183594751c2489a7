"""In every process that a test starts: a new MLflow database is a copy of an empty one, which MLflow has made.

Making one costs 2.3 s of CPU (all of MLflow's migrations), a copy 0.1 s, and many tests have one each. Without
EMPTY_DATABASE in the environment nothing happens.
"""

# ruff: noqa: PTH110, PTH119, PTH108
# os.path, which Python has imported already: this runs at the start of every process.

from __future__ import annotations

import os
import shutil
import sys
from typing import Any

EMPTY_DATABASE = "CONVMLP_TEST_EMPTY_DATABASE"
"""Names the file; where there is none yet, MLflow makes its tables as ever."""
_NAME = "mlflow.db"


def _before_sqlite_opens(event: str, arguments: tuple[Any, ...]) -> None:
    if event != "sqlite3.connect":
        return
    path, empty = str(arguments[0]), os.environ.get(EMPTY_DATABASE, "")
    if os.path.basename(path) != _NAME or not empty or os.path.exists(path) or not os.path.exists(empty):
        return
    draft = f"{path}.{os.getpid()}"
    try:
        shutil.copyfile(empty, draft)
        os.link(draft, path)  # of two processes the first one's stays
    except OSError:
        pass  # no folder, no room, no rights: that is for SQLite to say
    finally:
        if os.path.exists(draft):
            os.unlink(draft)


sys.addaudithook(_before_sqlite_opens)
