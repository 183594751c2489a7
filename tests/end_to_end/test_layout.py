"""The house's rules that no linter knows: where things lie, who imports whom, what is never committed."""

from __future__ import annotations

import ast
import os
import re
import runpy
import subprocess
import sys
from collections.abc import Iterator, Set
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = {".ci", "convmlp", "data_prep", "docs", "jobs", "k8s", "platform", "tests"}
LARGEST_FILE = 500_000
# Spelt in pieces, or this file would break its own rule. /home/ray is a home inside Ray's container image.
PRIVATE_PATH = re.compile(rb"(?<![\w.$}-])/(?:wo" rb"rk|ro" rb"ot|Us" rb"ers|ho" rb"me(?!/ray\b))/[\w.]")


def our_files() -> list[Path]:
    """Files that are committed, or would be with `git add .`."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return [ROOT / name for name in listed.split("\0") if name and (ROOT / name).is_file()]


def test_platform_is_not_a_package() -> None:
    assert not (ROOT / "platform/__init__.py").exists()
    assert (ROOT / "platform/convmlp_platform/__init__.py").is_file()


def test_import_platform_is_the_standard_librarys() -> None:
    code = "import platform, uuid; print(platform.__file__); print(platform.python_version())"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    file, version = done.stdout.split()
    assert not Path(file).is_relative_to(ROOT / "platform")
    assert version == ".".join(map(str, sys.version_info[:3]))


def test_top_level_folders_are_the_fixed_ones() -> None:
    assert {path.relative_to(ROOT).parts[0] for path in our_files() if path.parent != ROOT} <= FOLDERS


def test_test_files_have_names_of_their_own() -> None:
    """In pytest's prepend mode without `__init__.py`, two files of one name are one module."""
    tests = [path.name for path in our_files() if path.name.startswith("test_") and path.suffix == ".py"]
    assert sorted(tests) == sorted(set(tests))
    assert not list((ROOT / "tests").rglob("__init__.py"))


def test_a_class_has_one_meaning_and_a_folder_ten_files_at_most() -> None:
    figures = runpy.run_path(str(ROOT / "tests/bench/shape.py"))["shape"](ROOT)
    assert figures["duplicate class names"] == {} and figures["packages without a docstring"] == []
    assert int(figures["largest folder"].split()[0]) <= 10, figures["largest folder"]


def lint_imports(root: Path) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache", "--no-logo"]
    if not Path(command[0]).exists():
        pytest.skip("import-linter is not installed")
    code = f"import sys; sys.argv = {command!r}; sys.path[:0] = ['.', 'platform']; " \
        "from importlinter.cli import lint_imports_command; lint_imports_command()"  # fmt: skip
    done = [sys.executable, "-c", code]
    return subprocess.run(done, cwd=root, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": ""})


def test_imports_run_one_way() -> None:
    done = lint_imports(ROOT)
    assert done.returncode == 0, done.stdout + done.stderr


TOPS = ("convmlp", "data_prep", "convmlp_platform")
GUARDED: dict[str, set[str]] = {
    "ray": {"convmlp_platform.launch", "convmlp_platform.sweep"},
    "mlflow": {"convmlp_platform.tracking.mlflow", "convmlp_platform.registry"},
    "deepspeed": set(),
    "accelerate": set(),
    "ffcv": set(),
    "webdataset": set(),
}
"""Library → the packages in which any file may import it. (Some files may besides; pyproject.toml names them.)"""


def test_no_package_may_import_a_library_that_is_not_its_business(tmp_path: Path) -> None:
    """A file with all these imports, planted in every package and in a new one: each is refused, wherever it isn't
    named."""
    sources = [path for path in our_files() if path.suffix == ".py" or path.name == "pyproject.toml"]
    for path in sources:
        if (place := path.relative_to(ROOT)).parts[0] in (
            "convmlp",
            "data_prep",
            "platform",
            "pyproject.toml",
        ):
            copy = tmp_path / place
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(path.read_bytes())
    for top in TOPS:
        novelty = tmp_path / ("platform" if top == "convmlp_platform" else "") / top / "novelty"
        novelty.mkdir()
        (novelty / "__init__.py").touch()
    packages = {
        ".".join(init.parent.relative_to(tmp_path / root).parts): init.parent
        for root in (".", "platform")
        for top in TOPS
        for init in (tmp_path / root / top).rglob("__init__.py")
    }
    assert len(packages) > 15
    for folder in packages.values():
        lines = [f"import {library}" for library in GUARDED]
        (folder / "planted.py").write_text("\n".join([*lines[1:], "def later():", f"    {lines[0]}"]) + "\n")
    told = lint_imports(tmp_path).stdout
    found = set(re.findall(r"^\s*-\s+(\S+)\.planted -> (\w+)", told, re.MULTILINE))
    assert found == {
        (package, library)
        for package in packages
        for library, allowed in GUARDED.items()
        if not any(package == one or package.startswith(f"{one}.") for one in allowed)
    }
    assert all(f"- {top}.novelty\n" in told for top in TOPS), "a new package needs a layer"


def test_each_folders_map_says_what_it_imports() -> None:
    """The line "May import" of every `__init__.py` names the packages that its files import: all of them, and no other.
    convmlp_platform's are said without it; within one room "room" means the files that lie right in it."""
    modules = {
        ".".join(path.relative_to(ROOT / place).with_suffix("").parts).removesuffix(".__init__"): path
        for place, top in zip((".", ".", "platform"), TOPS, strict=True)
        for path in (ROOT / place / top).rglob("*.py")
    }
    imports = {module: imports_of(path, modules.keys()) for module, path in modules.items()}
    wrong = {}
    for folder, init in modules.items():
        if init.name != "__init__.py":
            continue
        told = re.search(
            r"^May import: (.*?)\.$", ast.get_docstring(ast.parse(init.read_text())) or "", re.S | re.M
        )
        assert told, f"{init.relative_to(ROOT)} says nothing of what its files may import"
        said = set(re.split(r",\s+", told[1])) - {"nothing of ours"}
        used = {
            covering(imported, folder, said)
            for module in modules
            if module == folder or module.startswith(f"{folder}.")
            for imported in imports[module]
            if imported != folder and not imported.startswith(f"{folder}.")
        }
        if used != said:
            wrong[folder] = {"imports besides": sorted(used - said), "doesn't import": sorted(said - used)}
    assert wrong == {}, wrong


def imports_of(path: Path, modules: Set[str]) -> set[str]:
    """Those of `modules` that a file imports, or takes something from."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names = {f"{node.module}.{name.name}" for name in node.names}
            found |= names & modules or {node.module}
        elif isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
    return found & modules


def covering(module: str, folder: str, said: set[str]) -> str:
    """The name of `said` that allows a file of `folder` to import `module`; else the module's own."""
    name = module.removeprefix("convmlp_platform.")
    room = folder.removeprefix("convmlp_platform.").partition(".")[0]
    parent = name.rpartition(".")[0]
    prefixes = (name, parent) if name.partition(".")[0] == room else tuple(_prefixes(name))
    return next((one for one in prefixes if one in said), name)


def _prefixes(name: str) -> Iterator[str]:
    while name:
        yield name
        name = name.rpartition(".")[0]


def test_no_file_is_large() -> None:
    assert [str(path) for path in our_files() if path.stat().st_size > LARGEST_FILE] == []


def test_no_file_names_a_path_of_someones_machine() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.decode(errors='replace').strip()}"
        for path in our_files()
        for number, line in enumerate(path.read_bytes().splitlines(), 1)
        if PRIVATE_PATH.search(line)
    ]
    assert found == []
