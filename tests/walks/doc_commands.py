"""The commands of README and docs/: which are walked, which can't be, and why.

A block fenced as `sh` is what a user types on one machine: it is walked, word by word (`walk.py`). One fenced as
`console` is typed somewhere else, or on something that isn't here: it has its reason in `NOT_WALKED`.
"""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = ("README.md", *sorted(f"docs/{page.name}" for page in (ROOT / "docs").glob("*.md")))

NOT_WALKED: dict[str, dict[str, str]] = {
    "README.md": {
        "make test": "runs this very walk, and all else",
        "convmlp registry promote convmlp-s": "a candidate on ImageNet; digits: test_promote.py",
        "ray job submit -- jobs/pretrain_convmlp.yaml": "16 GPUs, ImageNet",
        "ray job submit --address": "a cluster elsewhere",
    },
    "docs/benchmarks.md": {"make bench-gpu": "a GPU; test_bench_gpu.py runs it on CPUs, in tiny"},
    "docs/data.md": {"convmlp pictures predictions MODEL": "README walks both, after a training"},
    "docs/evaluation.md": {
        "convmlp sweep jobs/sweep_cifar10.yaml": "CIFAR-10, and hours; three networks are walked below",
        "convmlp predict MODEL": "a synopsis; README walks it",
    },
    "docs/operations.md": {
        "convmlp run jobs/pretrain_convmlp.yaml --set profile": "16 GPUs, ImageNet; test_profile.py runs one on digits",
        "export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH": "several machines",
        "nft add": "root, and a network between machines",
        "pip install": "PostgreSQL, S3 and a name; real servers: tests/services",
        "export MLFLOW_TRACKING_URI": "a server; real ones: tests/services",
        "pg_dump": "a server; real ones: tests/services",
        "createdb": "a server; real ones: tests/services",
        "kind create cluster": "docker; what can be shown without: make test-standin",
        "mlflow db upgrade": "a store of an older MLflow",
    },
    "docs/registry.md": {
        "convmlp registry list": "trained on ImageNet; README walks some on digits, test_promote.py the others",
        "convmlp checkpoints list": "a run's name; test_checkpoint_models.py runs it",
    },
    "docs/report.md": {"convmlp report NAME": "a synopsis; README walks it"},
    "docs/resilience.md": {
        "convmlp replay": "a bad step, which has to happen first; test_replay.py runs it",
        "convmlp goodput": "a synopsis; README and operations.md walk it",
        "make chaos": "an hour; test_chaos_short.py and test_fuzz_short.py run short ones",
    },
    "docs/scaling.md": {"convmlp check": "ImageNet; test_scaling.py asks it of digits"},
    "docs/serving.md": {
        "export MLFLOW_TRACKING_URI": "a server that stays in the foreground; test_scoring_server.py starts one",
        "mlflow artifacts": "an environment without the platform, from a package index",
        "mlflow models build-docker": "a Docker daemon",
    },
    "docs/tracking.md": {
        "pip install tensorboard": "a package index, and a server that stays in the foreground"
    },
}
"""Page → how a `console` block begins → why it isn't walked."""

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_COMMAND = re.compile(
    r"^    (?:convmlp|make|ray|kubectl|export|mlflow|torchrun|python3?|pip|source|git|curl|aws|\./jobs/)\b.*",
    re.MULTILINE,
)


@dataclass(frozen=True)
class Block:
    """A fenced block of a page: `heading` is the nearest one of level 2 above it, "" before the first."""

    page: str
    heading: str
    language: str
    text: str

    @property
    def first_line(self) -> str:
        return self.text.splitlines()[0]


def blocks(page: str) -> list[Block]:
    """The fenced blocks of a page, in order."""
    text = (ROOT / page).read_text()
    headings = [(match.start(), match[1]) for match in re.finditer(r"^## (.+)$", text, re.MULTILINE)]
    return [
        Block(
            page,
            next((name for start, name in reversed(headings) if start < match.start()), ""),
            match[1],
            match[2],
        )
        for match in _FENCE.finditer(text)
    ]


def unfenced_commands(page: str) -> list[str]:
    """Indented lines that look like commands: they would be walked by nobody."""
    return _COMMAND.findall(_FENCE.sub("", (ROOT / page).read_text()))


def commands(text: str) -> list[str]:
    """A block's commands, one by one: a line, with those that it goes on in."""
    found, lines = list[str](), list[str]()
    for line in text.splitlines():
        lines.append(line)
        so_far = "\n".join(lines)
        bare = re.sub(r"\s+#.*$", "", line).rstrip()
        if not so_far.strip() or so_far.lstrip().startswith("#"):
            lines = []
        elif not bare.endswith(("\\", "|")) and _is_whole(so_far):
            found.append(so_far)
            lines = []
    assert not lines, f"a command has no end: {lines}"
    return found


def _is_whole(text: str) -> bool:
    checked = subprocess.run(["bash", "-n"], input=text, text=True, capture_output=True, check=False)
    return checked.returncode == 0 and "here-document" not in checked.stderr
