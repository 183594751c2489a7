"""The code that a registered model takes along: what inference imports of ours, as one zip that Python imports from.

The imports are read from the sources, those in functions too, beginning with the model; so nothing has to be listed,
and nothing is run. The same sources give the same bytes.
"""

from __future__ import annotations

import ast
import io
import zipfile
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path

ZIP_NAME = "inference.zip"
_START = "convmlp_platform.registry.pyfunc_model"
_PACKAGES = ("convmlp", "data_prep", "convmlp_platform")
_LEFT_OUT = ("data_prep.storage",)
"""Only writing a bundle imports it."""
_WHEN = (1980, 1, 1, 0, 0, 0)


def zipped_code() -> bytes:
    """The zip of `code_files`."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as file:
        for name, path in sorted(code_files().items()):
            file.writestr(
                zipfile.ZipInfo(name, _WHEN), path.read_bytes(), zipfile.ZIP_DEFLATED, compresslevel=9
            )
    return content.getvalue()


def code_files() -> dict[str, Path]:
    """Name in the zip → source file, of every module of ours that inference may import."""
    folders = {package: _folder_of(package) for package in _PACKAGES}
    found: dict[str, Path] = {}
    seen: set[str] = set()
    ahead = [_START]
    while ahead:
        module = ahead.pop()
        package, _, rest = module.partition(".")
        if module in seen or package not in folders or module.startswith(_LEFT_OUT):
            continue
        seen.add(module)
        if rest.endswith("*"):
            folder = folders[package].joinpath(*rest.split(".")[:-1])
            ahead += [f"{module.removesuffix('*')}{path.stem}" for path in folder.glob("*.py")]
            continue
        if module != package:
            ahead.append(module.rpartition(".")[0])
        path = _source(folders[package].joinpath(*rest.split(".")) if rest else folders[package])
        if path is not None:
            found[f"{package}/{path.relative_to(folders[package]).as_posix()}"] = path
            ahead += _imports(path, path.stat().st_mtime_ns)
    return found


def imported_modules(path: Path) -> Iterator[str]:
    """The names of modules that a source file imports, wherever in it, but for type checkers only.

    Of `from a import b` it gives `a` and `a.b`, as `b` may be a module; of `import_module(f"a.{b}")` it gives `a.*`.
    """
    ahead: list[ast.AST] = [ast.parse(path.read_bytes(), str(path))]
    while ahead:
        node = ahead.pop()
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            ahead += node.orelse
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and "import_module" in ast.unparse(node.func) and node.args:
            yield _named(node.args[0])
        ahead += ast.iter_child_nodes(node)


@cache
def _imports(path: Path, _changed: int) -> tuple[str, ...]:
    """`imported_modules`, read once by a process that registers several models."""
    return tuple(imported_modules(path))


def _named(argument: ast.expr) -> str:
    """The module that `import_module` is called with, or `a.*` where only its package is written out."""
    parts = argument.values if isinstance(argument, ast.JoinedStr) else [argument]
    first = parts[0]
    text = first.value if isinstance(first, ast.Constant) and isinstance(first.value, str) else ""
    return text if len(parts) == 1 else f"{text.rpartition('.')[0]}.*"


def _folder_of(package: str) -> Path:
    spec = find_spec(package)
    assert spec is not None and spec.origin is not None, package
    return Path(spec.origin).parent


def _source(path: Path) -> Path | None:
    """The file of a module; None where the name is not a module's but something's in one."""
    candidates = (path / "__init__.py", path.with_suffix(".py"))
    return next((one for one in candidates if one.is_file()), None)
