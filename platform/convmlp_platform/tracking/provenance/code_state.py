"""The code that runs: its commit, what differs from it, and hashes that hold without git.

A commit is known in a checkout. An image has none: its build writes the commit into CONVMLP_GIT_COMMIT. Ray leaves .git
out of a `--working-dir`: there the variable counts only if it came with the job, as the image's own would name other
code than the one that came along. Whatever is known of commits, the hashes of the source files are: `trees` are those
that git gives the packages' folders. So `git rev-parse COMMIT:convmlp` in any clone tells whether a commit has this
code.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from data_prep.storage.secret_texts import redacted, without_values

COMMIT_VARIABLE = "CONVMLP_GIT_COMMIT"
"""The commit of an image's code, set when it is built; or of a `--working-dir`, set by who submits it."""
PACKAGES = ("convmlp", "data_prep", "convmlp_platform")
MAX_DIFF_BYTES = 1 << 20
"""A larger diff isn't kept: its size and SHA-256 are."""

CHECKOUT, FROM_DRIVER = "checkout", "driver's checkout"
"""Origins of a commit, besides COMMIT_VARIABLE."""

_JOB_CONFIG = "RAY_JOB_CONFIG_JSON_ENV_VAR"
_RAY_COPY = "working_dir_files"
_COMMIT = re.compile(r"[0-9a-f]{7,64}")
_GIT_SECONDS = 10.0
_NO_SOURCE = re.compile(r"__pycache__|.*\.py[co]|.*\.egg-info|\..*")
_CODE_FILES = (".py", ".pyi", ".c", ".cc", ".cpp", ".cu", ".h", ".js", ".ts", ".go", ".rs")


@dataclass(frozen=True)
class CodeDiff:
    """What a checkout has beyond its commit: changes of tracked files, and new files in the packages.

    Args:
        sha256, bytes: of git's own text.
        text: of it, without secrets; None where it is too large to be kept.
        redacted: how many of its lines have lost a secret; such a diff can't be applied.
        binary: whether it only names binary files that differ.
    """

    sha256: str
    bytes: int
    text: str | None = None
    redacted: int = 0
    binary: bool = False

    @property
    def is_whole(self) -> bool:
        """Whether applying it to the commit gives the code."""
        return self.text is not None and not self.redacted and not self.binary

    def told(self) -> str:
        """Its size, and whether it is all there, for people."""
        size = f"{self.bytes:,} bytes"
        if self.text is None:
            return f"{size}, too large to be kept"
        notes = [f"{self.redacted} lines without their secrets"] if self.redacted else []
        notes += ["binary files only named"] if self.binary else []
        return ", ".join([size, *notes])


@dataclass(frozen=True)
class CodeState:
    """The code of this process, as it was on disk when it was first asked for.

    Args:
        commit: 7 to 64 hexadecimal digits; None: unknown.
        origin: where the commit is known from; empty: it isn't.
        dirty: whether the code differs from the commit; None: unknown.
        diff: what differs, in a checkout.
        trees: package → SHA-1 of its folder as git computes it.
        files: path from the packages' parent folder → SHA-1 as git computes it.
        version: of the installed distribution; None: there is none.
    """

    commit: str | None = None
    origin: str = ""
    dirty: bool | None = None
    diff: CodeDiff | None = None
    trees: dict[str, str] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)
    version: str | None = None

    def facts(self) -> dict[str, object]:
        """All but the diff's text, as plain JSON values."""
        diff = None
        if self.diff is not None:
            values = vars(self.diff)
            diff = {name: values[name] for name in ("sha256", "bytes", "redacted", "binary")}
            diff |= {"kept": self.diff.text is not None}
        return vars(self) | {"diff": diff}


def this_code() -> CodeState:
    """The code of this process, read once: later the disk may hold another version than the one that was imported.

    Its diff is without the secrets that the environment holds now: a process that was forked got some since then.
    """
    code = _code_at_first()
    if code.diff is None or code.diff.text is None:
        return code
    text, lines = without_values(code.diff.text)
    diff = replace(code.diff, text=text, redacted=code.diff.redacted + lines)
    return replace(code, diff=diff) if lines else code


@cache
def _code_at_first() -> CodeState:
    return read_code(package_folders(), os.environ)


def package_folders() -> dict[str, Path]:
    """Package → its folder, of those that can be found."""
    found = {}
    for package in PACKAGES:
        spec = find_spec(package)
        if spec is not None and spec.origin is not None:
            found[package] = Path(spec.origin).resolve().parent
    return found


def read_code(folders: Mapping[str, Path], variables: Mapping[str, str]) -> CodeState:
    """The state of the packages in these folders.

    Args:
        variables: the environment, for COMMIT_VARIABLE and Ray's own.
    """
    trees: dict[str, str] = {}
    files: dict[str, str] = {}
    for package, folder in folders.items():
        listed: dict[str, str] = {}
        trees[package] = _tree_hash(folder, package, listed)
        files |= listed
    state = CodeState(trees=trees, files=files, version=_version())
    place = folders.get(PACKAGES[-1])
    # An environment folder inside somebody else's checkout is not our commit: our file must be tracked there.
    if place is not None and _git(place, "ls-files", "__init__.py"):
        commit = _git(place, "rev-parse", "HEAD")
        if commit:
            diff = _diff(place, list(folders.values()))
            dirty = None if diff is None else bool(diff.bytes)
            return replace(state, commit=commit, origin=CHECKOUT, dirty=dirty, diff=diff if dirty else None)
    if place is not None and (stated := _stated_commit(place, variables)):
        return replace(state, commit=stated, origin=COMMIT_VARIABLE)
    return state


def known_from(own: CodeState, driver: CodeState | None) -> CodeState:
    """A worker's code, with the commit and diff that its driver knows, if both run the same files."""
    if own.origin == CHECKOUT or driver is None or driver.commit is None or driver.trees != own.trees:
        return own
    origin = FROM_DRIVER if driver.origin == CHECKOUT else driver.origin
    return replace(own, commit=driver.commit, origin=origin, dirty=driver.dirty, diff=driver.diff)


def code_tags(code: CodeState) -> dict[str, str]:
    """The code as tags: `git.commit` and `git.dirty` where they are known, else `code.version`; `code.trees` always."""
    tags = {"code.trees": " ".join(f"{package}:{tree}" for package, tree in code.trees.items())}
    if code.commit is None:
        return tags | {"code.version": code.version or "unknown"}
    tags |= {"git.commit": code.commit, "mlflow.source.git.commit": code.commit, "code.origin": code.origin}
    if code.dirty is not None:
        tags["git.dirty"] = str(code.dirty).lower()
    if code.diff is not None:
        tags |= {"code.diff_sha256": code.diff.sha256, "code.diff": code.diff.told()}
    return tags


def _version() -> str | None:
    try:
        return version("convmlp-platform")
    except PackageNotFoundError:
        return None


def _stated_commit(place: Path, variables: Mapping[str, str]) -> str | None:
    stated = variables.get(COMMIT_VARIABLE, "")
    if _RAY_COPY in place.parts:
        stated = _submitted(variables).get(COMMIT_VARIABLE, "")
    return stated if _COMMIT.fullmatch(stated) else None


def _submitted(variables: Mapping[str, str]) -> dict[str, str]:
    """The variables of `ray job submit --runtime-env-json`."""
    try:
        config = json.loads(variables.get(_JOB_CONFIG) or "{}")
        found = config["runtime_env"]["env_vars"]
    except (ValueError, KeyError, TypeError):
        return {}
    return {str(name): str(value) for name, value in found.items()} if isinstance(found, dict) else {}


def _tree_hash(folder: Path, name: str, files: dict[str, str]) -> str:
    """The SHA-1 that git gives a folder; `files` gets those of its files, by path beginning with `name`."""
    entries = []
    for path in folder.iterdir():
        if _NO_SOURCE.fullmatch(path.name):
            continue
        below = f"{name}/{path.name}"
        if path.is_dir() and not path.is_symlink():
            digest = _tree_hash(path, below, files)
            if digest != _EMPTY_TREE:  # git knows no empty folders
                entries.append((f"{path.name}/", f"40000 {path.name}", digest))
            continue
        try:
            content, mode = _content(path)
        except OSError:  # it went while we looked, or may not be read
            continue
        digest = _object_hash("blob", content)
        files[below] = digest
        entries.append((path.name, f"{mode} {path.name}", digest))
    entries.sort(key=lambda entry: entry[0].encode())
    return _object_hash(
        "tree", b"".join(f"{head}\0".encode() + bytes.fromhex(one) for _, head, one in entries)
    )


def _content(path: Path) -> tuple[bytes, str]:
    """A file's content and mode as git has them."""
    if path.is_symlink():
        return os.readlink(path).encode(), "120000"  # noqa: PTH115
    return path.read_bytes(), "100755" if path.stat().st_mode & stat.S_IXUSR else "100644"


def _object_hash(kind: str, content: bytes) -> str:
    return hashlib.sha1(f"{kind} {len(content)}\0".encode() + content, usedforsecurity=False).hexdigest()


_EMPTY_TREE = _object_hash("tree", b"")


def _diff(place: Path, folders: list[Path]) -> CodeDiff | None:
    """The changes of all tracked files since HEAD, and the new files in `folders`; None where git doesn't say."""
    top = _git(place, "rev-parse", "--show-toplevel")
    index = _git(place, "rev-parse", "--path-format=absolute", "--git-path", "index")
    if not top or not index:
        return None
    ours = [str(folder) for folder in folders if folder.is_relative_to(top)]
    with tempfile.TemporaryDirectory(prefix="convmlp-index-") as scratch:
        # New files show in a diff once the index knows of them; the checkout's own stays as it is.
        own = Path(scratch) / "index"
        try:
            shutil.copyfile(index, own)
        except OSError:
            return None
        if _git(Path(top), "add", "--intent-to-add", "--", *ours, index=own) is None:
            return None
        options = (
            "--no-color",
            "--no-ext-diff",
            "--no-textconv",
            "--no-renames",
            "--src-prefix=a/",
            "--dst-prefix=b/",
        )
        text = _git(Path(top), "diff", *options, "HEAD", "--", index=own, raw=True)
    return None if text is None else _kept(text)


def _kept(text: str) -> CodeDiff:
    content = text.encode(errors="surrogateescape")
    diff = CodeDiff(hashlib.sha256(content).hexdigest(), len(content))
    if len(content) > MAX_DIFF_BYTES:
        return diff
    parts, lines = [], 0
    for part in _parts(text):
        head = part.partition("\n")[0]
        clean, changed = redacted(part, code=head.endswith(_CODE_FILES))
        parts.append(clean)
        lines += changed
    binary = any(re.search(r"(?m)^Binary files ", part) for part in parts)
    return replace(diff, text="".join(parts), redacted=lines, binary=binary)


def _parts(text: str) -> Iterator[str]:
    """The diff of each file."""
    starts = [match.start() for match in re.finditer(r"(?m)^diff --git ", text)]
    for start, end in zip(starts, [*starts[1:], len(text)], strict=False):
        yield text[start:end]


def _git(folder: Path, *arguments: str, index: Path | None = None, raw: bool = False) -> str | None:
    """git's answer, stripped if not `raw`; None where there is no git or no checkout, or it takes too long.

    Args:
        index: in place of the checkout's.
    """
    program = shutil.which("git")
    if program is None:
        return None
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    environment |= {"GIT_OPTIONAL_LOCKS": "0", "LC_ALL": "C"}
    if index is not None:
        environment["GIT_INDEX_FILE"] = str(index)
    # Nothing that a checkout's own settings name is run.
    command = [
        program,
        "-C",
        str(folder),
        "-c",
        "core.fsmonitor=false",
        "-c",
        "core.hooksPath=/dev/null",
        *arguments,
    ]
    try:
        done = subprocess.run(command, capture_output=True, timeout=_GIT_SECONDS, check=True, env=environment)
    except (OSError, subprocess.SubprocessError):
        return None
    answer = done.stdout.decode(errors="surrogateescape")
    return answer if raw else answer.strip()
