"""All that can be known to be wrong with a preparation before it costs anything, and what it shares with a training's
checks. It imports no PyTorch: a preparation starts 7 s sooner without.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from convmlp_platform.config.schema import PrepareJob
from convmlp_platform.errors import PlatformError
from data_prep.dataset.manifest import MANIFEST_NAME, load_manifest
from data_prep.errors import DataPrepError
from data_prep.storage.urls import is_url


@dataclass
class PreflightReport:
    """`problems`: one message each, empty if the job may start; `summary`: lines on what it would do."""

    problems: list[str] = field(default_factory=list)
    summary: list[str] = field(default_factory=list)


def preflight_preparation(job: PrepareJob, *, deep: bool = False) -> PreflightReport:
    """As `preflight.preflight`; `deep` also lists the source, which costs as much as the job's own start."""
    report = PreflightReport()
    make_checks(_prepare_checks(job, report, deep), report)
    return report


def make_checks(checks: Iterable[Callable[[], None]], report: PreflightReport) -> None:
    """Make every check; what one raises is a problem of the report."""
    for check in checks:
        try:
            check()
        except (PlatformError, DataPrepError) as error:
            report.problems.extend(str(error).splitlines())


def _prepare_checks(job: PrepareJob, report: PreflightReport, deep: bool) -> Iterator[Callable[[], None]]:
    from data_prep.prepare import check
    from data_prep.sources import open_source

    def source() -> None:
        report.summary.append(f"source   {job.source.kind} {getattr(job.source, 'path', '')}".rstrip())
        if deep:
            check(job.preparation, progress=lambda line: report.summary.append(f"         {line}"))
        else:
            open_source(job.source)

    def output() -> None:
        check_writable(str(job.output.path), "output.path", report)
        report.summary.append(f"output   {job.output.path}: {' and '.join(job.output.formats)}")
        if (job.output.path / MANIFEST_NAME).exists():
            finished = load_manifest(job.output.path)
            images = sum(split.num_samples for split in finished.splits.values())
            report.summary.append(
                f"         holds a finished dataset of {images:,} images, {finished.digest[:19]}…"
            )

    yield source
    yield output
    yield lambda: _check_preparation_tracking(job, report)


def _check_preparation_tracking(job: PrepareJob, report: PreflightReport) -> None:
    from convmlp_platform.tracking.delivery_state import without_secrets
    from convmlp_platform.tracking.mlflow.tracking_uri import check_tracking, tracking_uri

    report.problems += check_tracking(job.tracking)
    report.summary.append(
        f"run      MLflow experiment {job.tracking.experiment} at {without_secrets(tracking_uri(job.tracking))}, "
        "once it is done"
    )


def check_writable(path: str, name: str, report: PreflightReport, inside: str = ".") -> None:
    """Whether files can be made in folder `inside` of `path`, tried with a nameless one in its nearest existing
    parent."""
    if is_url(path):
        report.problems.append(f"{name} (={path}) must be a folder: mount the bucket on every node")
        return
    folder = Path(path) / inside
    while not os.path.lexists(folder):
        folder = folder.parent
    if not folder.is_dir():
        report.problems.append(f"{name} (={path}): {folder} is a file, not a folder")
        return
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        reason = (
            "no permission to write"
            if isinstance(error, PermissionError)
            else f"can't write ({error.strerror})"
        )
        report.problems.append(f"{name} (={path}): {reason} in {folder}")


def check_compiler(setting: str, use_gpu: bool | str, report: PreflightReport) -> None:
    """Whether torch.compile finds a compiler here: of C++ for a CPU's kernels, of C for what starts a GPU's. `use_gpu`:
    as in `launch.use_gpu`; with "auto" either will do, as it isn't known yet where the job computes."""
    cpu, gpu = (
        [os.environ.get("CXX", "g++")],
        [os.environ["CC"]] if os.environ.get("CC") else ["gcc", "clang"],
    )
    names = cpu if use_gpu is False else gpu if use_gpu is True else [*cpu, *gpu]
    if not any(shutil.which(name) for name in names):
        report.problems.append(
            f"{setting} (=true): torch.compile needs a compiler ({', '.join(names)}) on PATH, and there is none here: "
            f"install it, name another in {'CXX' if use_gpu is False else 'CC'}, or leave {setting} out (the image has "
            "one where it is built with COMPILER)"
        )
