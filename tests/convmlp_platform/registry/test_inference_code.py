"""What a registered model holds: few files, all of the code that serving imports, and none besides."""

from __future__ import annotations

import copy
import sys
import zipfile
from collections import defaultdict
from importlib.metadata import packages_distributions
from pathlib import Path

import mlflow.pyfunc
import pytest
from served_models import KINDS, picture_for, stored_model
from timm.models import _registry

from convmlp_platform.models.task_spec import ClassificationSpec, SegmentationSpec
from convmlp_platform.registry.inference_code import code_files, imported_modules, zipped_code
from convmlp_platform.registry.log_model import _requirements

TABLES = (dict, set, defaultdict)
OURS = ("convmlp", "data_prep", "convmlp_platform")


def test_a_model_is_few_files(tmp_path: Path) -> None:
    for kind in KINDS:
        model = stored_model(kind)
        assert sorted(str(path.relative_to(model)) for path in model.rglob("*") if path.is_file()) == [
            *("MLmodel", "artifacts/best/bundle.json", "artifacts/best/model.safetensors"),
            *("code/inference.zip", "conda.yaml", "input_example.json", "model_script.py", "python_env.yaml"),
            *("requirements.txt", "serving_input_example.json"),
        ]
        assert (model / "code/inference.zip").stat().st_size < 200_000


def test_the_same_sources_give_the_same_bytes() -> None:
    assert zipped_code() == zipped_code()


@pytest.fixture(scope="module")
def served_modules() -> dict[str, str]:
    """Module → file of all of ours that serving every kind of model imports, where this tree can't be imported."""
    models = {kind: (stored_model(kind), picture_for(kind)) for kind in KINDS}
    path, known = sys.path, {name: sys.modules.pop(name) for name in list(sys.modules) if is_ours(name)}
    tables = {name: one for name, one in vars(_registry).items() if type(one) in TABLES and name[:2] != "__"}
    registered = copy.deepcopy(tables)
    sys.path = [one for one in path if not any((Path(one) / name).is_dir() for name in OURS)]
    try:
        for model, picture in models.values():
            table = mlflow.pyfunc.load_model(str(model)).predict({"image": [picture, b"bad"]})
            assert table["error"][0] is None and table["error"][1]
        found = {name: str(sys.modules[name].__file__) for name in list(sys.modules) if is_ours(name)}
    finally:
        for name in list(sys.modules):
            if is_ours(name):
                del sys.modules[name]
        sys.path = path
        sys.modules |= known
        for name, table in tables.items():  # timm knows models by the functions that registered them last
            table.clear()
            table.update(registered[name])
    return found


def is_ours(module: str) -> bool:
    return module.partition(".")[0] in OURS


@pytest.mark.filterwarnings("ignore:Overwriting .* in registry")
def test_serving_imports_nothing_of_ours_but_what_the_model_holds(served_modules: dict[str, str]) -> None:
    assert len(served_modules) > 40
    first = str(stored_model(KINDS[0]) / "code/inference.zip")
    assert all(origin.startswith(first) for origin in served_modules.values())


# What other bundles need: Mixers, and classifiers of permuted pixels.
NOT_IN_THESE = {"convmlp.models.mixer", "convmlp.transforms.pixel_order"}


def test_a_model_holds_nothing_that_serving_does_not_import(served_modules: dict[str, str]) -> None:
    with zipfile.ZipFile(stored_model("classification") / "code/inference.zip") as file:
        names = [name.removesuffix(".py").removesuffix("/__init__") for name in file.namelist()]
    assert {name.replace("/", ".") for name in names} - set(served_modules) == NOT_IN_THESE


def test_requirements_name_what_the_code_imports() -> None:
    distributions = packages_distributions()
    needed: dict[str, set[str]] = {}
    for name, path in code_files().items():
        for module in imported_modules(path):
            top = module.partition(".")[0]
            if top not in sys.stdlib_module_names and top not in OURS:
                needed.setdefault(min(distributions[top], key=len).lower(), set()).add(name)
    pinned = {
        one.partition("==")[0] for one in _requirements(SegmentationSpec(pyramid_channels=8, max_side=64))
    }
    assert set(needed) - pinned == set()
    pinned = {one.partition("==")[0] for one in _requirements(ClassificationSpec())}
    dense = {name for name, files in needed.items() if all(_is_dense(file) for file in files)}
    assert set(needed) - dense - pinned == set()


def _is_dense(file: str) -> bool:
    """Whether only detectors and segmenters import it, or only their answers make it import more."""
    return file.startswith("convmlp/tasks/") or file in (
        "convmlp/transforms/joint_view.py", "convmlp_platform/models/prediction.py"
    )  # fmt: skip


def test_imports_are_found_wherever_they_stand(tmp_path: Path) -> None:
    source = tmp_path / "some.py"
    source.write_text(
        "import a.b, c as d\nfrom e import f\nfrom typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    import never\nelse:\n    import g\n"
        "class K:\n    def m(self):\n        try:\n            from h.i import j\n        except ImportError:\n"
        "            import k\n"
        "importlib.import_module('l.m')\nimport_module(f'n.o.{p}')\nimport_module(q)\n"
    )
    assert set(imported_modules(source)) == {
        *(
            "a.b",
            "c",
            "e",
            "e.f",
            "typing",
            "typing.TYPE_CHECKING",
            "g",
            "h.i",
            "h.i.j",
            "k",
            "l.m",
            "n.o.*",
            "",
        )
    }
