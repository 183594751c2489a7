"""Loaded by every Python of the chaos cluster (this folder comes first on its PYTHONPATH): a training process imports
`faults_inside` on its way, and nothing else is touched. The product knows nothing of it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from types import ModuleType

TRAINING = "convmlp_platform.training.trainer"


class _BeforeTraining:
    """Finds no module, but sees which is asked for."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> None:
        if name == TRAINING:
            sys.meta_path.remove(self)
            import faults_inside

            faults_inside.install()


sys.meta_path.insert(0, _BeforeTraining())
