"""The script of a registered model, which MLflow copies and runs ("models from code", no pickle).

The code that the model needs travels beside it in one zip, which comes before whatever is installed. In a process that
has imported our packages already, those are used. Versions live longer than the tree: what this script imports, and its
name there, stays (docs/decisions/0013).
"""

import sys
from pathlib import Path

import mlflow.models

_CODE = Path(__file__).with_name("code") / "inference.zip"
if "convmlp_platform" not in sys.modules and _CODE.is_file():
    sys.path.insert(0, str(_CODE))

from convmlp_platform.registry.pyfunc_model import BundleModel  # noqa: E402

mlflow.models.set_model(BundleModel())
