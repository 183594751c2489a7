"""Files made to harm, read in a process of their own: with little memory, for a short time, whatever they do."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

_CHILD = """
import json, pathlib, sys
{imports}
for name, path in json.loads(sys.argv[1]).items():
    path = pathlib.Path(path)
    try:
        {call}
        found = "accepted"
    except {refusal} as error:
        found = str(error)
    print(json.dumps([name, found]), flush=True)
"""


def outcomes(
    files: Mapping[str, Path],
    imports: str,
    call: str,
    refusal: str,
    *,
    memory: int = 3 << 29,
    seconds: int = 60,
    quiet: bool = False,
) -> dict[str, str]:
    """What became of each file: the refusal's message, or "accepted".

    A file that takes too long, or more memory than there is, or ends the process in another way, fails the test and is
    the one after the last in the output.

    Args:
        files: by a name.
        imports: a line of Python.
        call: an expression that reads `path`.
        refusal: the error that is the right answer.
        memory: address space, in bytes, of the process with its libraries.
        seconds: for all files.
        quiet: the reading may print nothing.
    """

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))

    names = {name: str(path) for name, path in files.items()}
    done = subprocess.run(
        [sys.executable, "-c", _CHILD.format(imports=imports, call=call, refusal=refusal), json.dumps(names)],
        env={"PYTHONPATH": ":".join(sys.path), "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
        preexec_fn=limited,
        capture_output=True,
        text=True,
        timeout=10 * seconds,
    )
    found = dict(json.loads(line) for line in done.stdout.splitlines() if line.startswith("["))
    assert done.returncode == 0, f"after {list(found)}: exit {done.returncode}\n{done.stderr[-3000:]}"
    assert not (quiet and done.stderr), done.stderr[:1000]
    return found
