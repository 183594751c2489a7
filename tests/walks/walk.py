"""Types the commands of a page into a shell, in a fresh clone, and says what each took.

    python tests/walks/walk.py README.md                       # all of a page
    python tests/walks/walk.py docs/evaluation.md#Sweep        # what stands under a heading, or several

The clone is of what is committed and of changes to files that git knows. Its `.venv` lends the packages of this Python.
The shell has a home of its own and, where `unshare` is allowed, a network and processes of its own: clusters of others
are out of its reach, and nothing is left.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from shutil import rmtree

import psutil
from doc_commands import ROOT, blocks, commands
from photos import bring

OWN_WORLD = (
    "unshare",
    "--user",
    "--map-root-user",
    "--net",
    "--pid",
    "--fork",
    "--mount-proc",
    "--kill-child",
)
LONGEST_COMMAND_S = 1200
_ONE_RAY = """export RAY_AUTH_MODE=token RAY_AUTH_TOKEN=$(python -c "import secrets; print(secrets.token_hex())")
export RAY_ADDRESS=127.0.0.1:6379
until RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0 ray start --head --disable-usage-stats; do ray stop --force; done"""
_PIP_AND_PYTHON = ("python", "pip", "activate", "Activate")


@dataclass(frozen=True)
class Step:
    """A command that was typed: what it took, printed, and its exit code; None: it was given up.

    `cpu_seconds`: of all that the shell has started, clusters too.
    """

    command: str
    seconds: float
    cpu_seconds: float
    code: int | None
    output: str


@cache
def can_be_apart() -> bool:
    """Whether a shell can have a network and processes of its own here."""
    try:
        tried = subprocess.run(
            [*OWN_WORLD, "ip", "link", "set", "lo", "up"], capture_output=True, check=False
        )
    except FileNotFoundError:
        return False
    return tried.returncode == 0


def fresh_clone(folder: Path) -> Path:
    """The repository as it is, without what git doesn't know, with a `.venv` that `make` takes for finished."""
    clone = folder / "convmlp"
    changed = _git("stash", "create").strip() or _git("rev-parse", "HEAD").strip()
    _git("clone", "--quiet", "--no-checkout", str(ROOT), str(clone))
    _git("-C", str(clone), "fetch", "--quiet", str(ROOT), changed)
    _git("-C", str(clone), "checkout", "--quiet", "--detach", changed)
    venv = clone / ".venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(venv)], check=True)
    here = Path(sys.prefix)
    packages = Path("lib", f"python{sys.version_info.major}.{sys.version_info.minor}", "site-packages")
    (venv / packages / "lent.pth").write_text(f"{here / packages}\n")
    for script in (here / "bin").iterdir():
        if not script.name.startswith(_PIP_AND_PYTHON):
            (venv / "bin" / script.name).symlink_to(script)
    (venv / ".done").mkdir()
    for mark in ("venv", "torch", "project", "dev", "system", "kubectl", "ffcv"):
        (venv / ".done" / mark).touch()
    return clone


def _git(*words: str) -> str:
    return subprocess.run(["git", *words], cwd=ROOT, check=True, text=True, stdout=subprocess.PIPE).stdout


class Shell:
    """One bash, in which commands are typed one after the other."""

    def __init__(self, clone: Path, scratch: Path) -> None:
        home, temporary = scratch / "home", scratch / "t"
        for folder in (home, temporary):
            folder.mkdir()
        keep = ("PATH", "LANG", "LC_ALL", "CONVMLP_TEST_DATA", "PIP_INDEX_URL")
        self._output = scratch / "output"
        self._read, write = os.pipe()
        with self._output.open("wb") as output:
            self._process = subprocess.Popen(
                [*(OWN_WORLD if can_be_apart() else ()), "bash", "--noprofile", "--norc"],
                cwd=clone,
                env={name: os.environ[name] for name in keep if name in os.environ}
                | {
                    "HOME": str(home),
                    "TMPDIR": str(temporary),
                    "RAY_TMPDIR": str(temporary),
                    "CONVMLP_RAY_START_S": "180",
                    "PYTHONPATH": os.pathsep.join([str(clone), str(clone / "platform")]),
                },
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                pass_fds=[write],
                start_new_session=True,
            )
        os.close(write)
        self._write = write
        if can_be_apart():
            self.type("ip link set lo up")

    def type(self, command: str) -> Step:
        """Type a command and wait for its end."""
        assert self._process.stdin is not None
        began, place, cpu = time.monotonic(), self._output.stat().st_size, self._cpu_seconds()
        # Its input is nothing: the shell's is what is typed next. What it leaves running doesn't hold the pipe.
        closed = f"{self._write}>&-"
        self._process.stdin.write(
            f"{{\n{command}\n}} </dev/null {closed}\necho $? >&{self._write}\n".encode()
        )
        self._process.stdin.flush()
        code = self._next_code(began + LONGEST_COMMAND_S)
        with self._output.open("rb") as output:
            output.seek(place)
            printed = output.read().decode(errors="replace")
        return Step(command, time.monotonic() - began, max(self._cpu_seconds() - cpu, 0.0), code, printed)

    def _cpu_seconds(self) -> float:
        """Of the shell, what it has started, and what of that has ended."""
        found = 0.0
        for process in psutil.Process(self._process.pid).children(recursive=True):
            with suppress(psutil.Error):
                found += sum(process.cpu_times()[:4])
        return found

    def _next_code(self, deadline: float) -> int | None:
        os.set_blocking(self._read, False)
        said = b""
        while not said.endswith(b"\n"):
            try:
                if not (more := os.read(self._read, 100)):
                    return None  # the shell has ended
                said += more
            except BlockingIOError:
                if time.monotonic() > deadline:
                    return None
                time.sleep(0.02)
        return int(said)

    def close(self) -> None:
        """End the shell; in a world of its own, all that it has started ends with it."""
        self._process.kill()
        self._process.wait()
        os.close(self._read)


@contextmanager
def shell_in_clone() -> Iterator[tuple[Shell, Path]]:
    """A shell in a fresh clone, and the clone's folder; both are gone afterwards."""
    scratch = Path(tempfile.mkdtemp(prefix="walk-"))  # Ray's sockets need a short name
    try:
        clone = fresh_clone(scratch)
        shell = Shell(clone, scratch)
        try:
            yield shell, clone
        finally:
            shell.close()
    finally:
        rmtree(scratch, ignore_errors=True)


def walked(shell: Shell, page: str, headings: Sequence[str] = ()) -> Iterator[Step]:
    """Type the commands of a page, or of what stands under some of its headings."""
    for block in blocks(page):
        if headings and block.heading not in headings:
            continue
        if block.language == "sh":
            for command in commands(block.text):
                yield shell.type(command)
        elif block.language == "python" and page == "README.md":
            yield shell.type(f"python - <<'END'\n{block.text}END")


def shown(step: Step) -> str:
    """A step as a line: seconds, those of CPU, exit code where it isn't 0, and the command."""
    first, *more = step.command.splitlines()
    failed = "" if step.code == 0 else f" [{'no end' if step.code is None else step.code}]"
    return f"{step.seconds:7.1f} s  {step.cpu_seconds:6.1f} of CPU{failed}  {first}{' ...' if more else ''}"


def walk(place: str, *, brought: int, with_output: bool = False, one_ray: bool = False) -> list[Step]:
    """Walk `PAGE` or `PAGE#HEADING#...` in a clone of its own and print each step; ends at the first that fails.

    Args:
        brought: so many photographs of each class lie where the pages say that a user puts theirs.
        with_output: print what the commands say, too.
        one_ray: start a Ray first, for all commands, in place of one for each.
    """
    page, *headings = place.split("#")
    steps: list[Step] = []
    with shell_in_clone() as (shell, clone):
        bring(clone, brought)
        shell.type("source .venv/bin/activate")
        if one_ray:
            shell.type(_ONE_RAY)
        for step in walked(shell, page, headings):
            steps.append(step)
            print(shown(step), flush=True)
            if with_output or step.code != 0:
                print(step.output[-6000:], flush=True)
            if step.code != 0:
                break
    return steps


def main(arguments: Sequence[str] | None = None) -> int:
    """Walk pages; 1 where a command failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("places", nargs="+", metavar="PAGE[#HEADING...]")
    parser.add_argument("--photos", type=int, default=8, help="of each class; default: 8")
    parser.add_argument(
        "--one-ray", action="store_true", help="one Ray for all commands, on a machine that is busy"
    )
    parser.add_argument("--output", action="store_true", help="print what the commands say, too")
    given = parser.parse_args(arguments)
    if not can_be_apart():
        print("walk: no network and processes of its own here (unshare is refused): pages that start Ray need ports "
              "6379 and 8265, and end all of this user's Ray with `ray stop`", file=sys.stderr)  # fmt: skip
    good = True
    for place in given.places:
        print(place, flush=True)
        steps = walk(place, brought=given.photos, with_output=given.output, one_ray=given.one_ray)
        good &= bool(steps) and all(step.code == 0 for step in steps)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
