"""`make shape`: the tree in figures: its files, how they hang together, and how many a run passes through.

    python tests/bench/shape.py [--json] [--no-run]

Counted is the product: convmlp/, data_prep/, platform/. A single-importer file is imported by one other and is no
package, no command (`__main__`) and no source or script that is found by name. The walk is traced in a real run of
jobs/pretrain_digits.yaml without Ray on one CPU: product files of which a function was called in the main thread, from
`main` to the end of the first step, and within the second step.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
PRODUCT = ("convmlp", "data_prep", "platform/convmlp_platform")

_TRACE = """
import inspect, json, sys
out, arguments = sys.argv[1], sys.argv[2:]
product = set(json.load(sys.stdin))
begun, seen, step = [0], set(), set()

def look(frame, event, argument):
    code = frame.f_code
    if event == "call" and code.co_flags & inspect.CO_OPTIMIZED and code.co_filename in product:
        seen.add(code.co_filename)
        if begun[0] == 2:
            step.add(code.co_filename)
    if code.co_qualname == "Trainer._step":
        if event == "call":
            begun[0] += 1
            if begun[0] == 2:
                step.add(code.co_filename)
        elif event == "return" and begun[0] in (1, 2):
            if begun[0] == 1:
                look.first = sorted(seen)
            else:
                begun[0] = 3
                sys.setprofile(None)
                json.dump({"first": look.first, "step": sorted(step)}, open(out, "w"))

sys.argv = ["convmlp", *arguments]
from convmlp_platform.__main__ import __file__ as entry
seen.add(entry)
from convmlp_platform.cli.main import main
sys.setprofile(look)
sys.exit(main())
"""


def product_files(root: Path) -> list[Path]:
    """The product's Python files that git knows."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z", "--", *PRODUCT]
    listed = subprocess.run(command, cwd=root, check=True, capture_output=True, text=True).stdout
    return sorted(
        root / name for name in listed.split("\0") if name.endswith(".py") and (root / name).is_file()
    )


def module_name(path: Path, root: Path) -> str:
    """`a.b` of ROOT/a/b.py, and of ROOT/platform/a/b.py."""
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[1:] if parts[0] == "platform" else parts).removesuffix(".__init__")


def imports(tree: ast.AST, modules: set[str]) -> Iterator[str]:
    """The product's modules that a file imports."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                below = f"{node.module}.{alias.name}"
                yield from {below if below in modules else node.module} & modules
        elif isinstance(node, ast.Import):
            yield from {alias.name for alias in node.names} & modules


def shape(root: Path) -> dict[str, Any]:
    """The figures that reading the files gives."""
    files = product_files(root)
    trees = {path: ast.parse(path.read_text()) for path in files}
    lines = {path: len(path.read_text().splitlines()) for path in files}
    modules = {module_name(path, root): path for path in files}
    importers: dict[str, set[str]] = defaultdict(set)
    classes: dict[str, list[str]] = defaultdict(list)
    names: dict[str, list[str]] = defaultdict(list)
    folders: dict[str, int] = defaultdict(int)
    functions = []
    for path, tree in trees.items():
        module = module_name(path, root)
        for imported in imports(tree, set(modules)):
            importers[imported].add(module)
        folders[str(path.parent.relative_to(root))] += 1
        if path.name not in ("__init__.py", "__main__.py"):
            names[path.name].append(module)
        for node in ast.walk(tree):
            if (
                isinstance(node, ast.ClassDef)
                and not node.name.startswith("_")
                and node in ast.iter_child_nodes(tree)
            ):
                classes[node.name].append(module)
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                size = (node.end_lineno or node.lineno) - node.lineno + 1
                functions.append((size, f"{module}:{node.name}"))
    code = [path for path in files if path.name != "__init__.py"]
    largest = max(folders.values())
    single = [name for name, by in importers.items() if len(by) == 1 and modules[name].name != "__init__.py"]
    longest = max(functions)
    return {
        "files": len(files),
        "files without __init__": len(code),
        "lines": sum(lines.values()),
        "median lines": statistics.median(lines[path] for path in code),
        "longest file": "{} {}".format(*max((lines[path], module_name(path, root)) for path in code)),
        "longest function": f"{longest[0]} {longest[1]}",
        "folders": len(folders),
        "largest folder": f"{largest} {', '.join(name for name, count in folders.items() if count == largest)}",
        "single-importer files": len(single),
        "duplicate class names": {name: where for name, where in sorted(classes.items()) if len(where) > 1},
        "duplicate file names": {name: where for name, where in sorted(names.items()) if len(where) > 1},
        "packages without a docstring": [
            module_name(path, root)
            for path, tree in trees.items()
            if path.name == "__init__.py" and ast.get_docstring(tree) is None
        ],
    }


def walk(root: Path) -> dict[str, int]:
    """Product files that a run of two steps passes through."""
    environment = {
        **os.environ,
        "PYTHONPATH": f"{root}:{root / 'platform'}",
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }
    with tempfile.TemporaryDirectory(prefix="convmlp-shape-") as folder:
        environment["CONVMLP_ROOT"] = folder
        traced = str(Path(folder) / "traced.json")
        prepare = ["-m", "convmlp_platform", "run", "--no-ray", str(root / "jobs" / "prep_digits.yaml")]
        sets = [
            "training.max_steps=3",
            "launch.num_workers=1",
            "launch.use_gpu=false",
            f"tracking.uri=sqlite:///{folder}/mlflow.db",
            "tracking.register_as=null",
        ]
        train = ["run", "--no-ray", str(root / "jobs" / "pretrain_digits.yaml")]
        train += [word for value in sets for word in ("--set", value)]
        files = json.dumps([str(path) for path in product_files(root)])
        for command in (prepare, ["-c", _TRACE, traced, *train]):
            done = subprocess.run(
                [sys.executable, *command],
                cwd=folder,
                env=environment,
                input=files,
                capture_output=True,
                text=True,
            )
            if done.returncode:
                sys.exit(f"{command[:3]} failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
        found = json.loads(Path(traced).read_text())
    return {"files to the first step": len(found["first"]), "files in one step": len(found["step"])}


def violations(root: Path) -> str:
    """The last line of lint-imports: contracts kept and broken."""
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    environment = {**os.environ, "PYTHONPATH": f"{root}:{root / 'platform'}"}
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
    told = [line for line in done.stdout.splitlines() if line.startswith("Contracts:")]
    return told[0].removeprefix("Contracts: ") if told else f"lint-imports failed: {done.stderr[-300:]}"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="for programs, with every name")
    parser.add_argument("--no-run", action="store_true", help="don't trace a run")
    parser.add_argument("--tree", type=Path, default=REPOSITORY, help="a checkout (default: this one)")
    options = parser.parse_args()
    root = options.tree.resolve()
    figures = shape(root) | {"import contracts": violations(root)}
    if not options.no_run:
        figures |= walk(root)
    if options.json:
        print(json.dumps(figures, indent=2))
        return 0
    for name, value in figures.items():
        text = f"{len(value)}  {', '.join(value)}" if isinstance(value, dict | list) else str(value)
        print(f"{name:30} {text}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
