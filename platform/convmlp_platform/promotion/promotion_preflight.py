"""All that can be known to be wrong with a promotion before a model is measured."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from convmlp_platform.config.promote_job import PromoteJob
from convmlp_platform.data.dataset.split import open_manifest
from convmlp_platform.errors import ConfigError
from convmlp_platform.promotion.promote import open_split
from convmlp_platform.registry.promotions import PromotionDesk
from convmlp_platform.training.preflight.preparation_preflight import (
    PreflightReport,
    check_writable,
    make_checks,
)


def preflight_promotion(job: PromoteJob) -> PreflightReport:
    """Check a job whose paths are resolved; every check is made."""
    report = PreflightReport()
    make_checks(_checks(job, report), report)
    return report


def _checks(job: PromoteJob, report: PreflightReport) -> Iterator[Callable[[], None]]:
    yield lambda: _check_images(job, report)
    yield lambda: _check_versions(job, report)
    yield lambda: check_writable(job.output.path, "output.path", report)


def _check_images(job: PromoteJob, report: PreflightReport) -> None:
    manifest = open_manifest(job.data.path, job.data.digest)
    count = len(open_split(job, manifest))
    report.summary.append(
        f"data       {manifest.name}: {count:,} {job.data.split} images for {manifest.task}, "
        f"{manifest.num_classes:,} classes, {manifest.digest[:19]}…"
    )


def _check_versions(job: PromoteJob, report: PreflightReport) -> None:
    name, alias = job.model.name, job.model.alias
    with PromotionDesk(job.tracking, name, alias) as desk:
        try:
            candidate = desk.version_of(job.model.candidate)
        except ConfigError as error:
            raise ConfigError(f"model.candidate (={job.model.candidate}): {error}") from None
        held = desk.champion()
    if held.version == candidate:
        raise ConfigError(
            f"model.candidate (={job.model.candidate}): models:/{name}/{candidate} is {alias} already"
        )
    report.summary.append(f"candidate  models:/{name}/{candidate}")
    rival = f"models:/{name}/{held.compared_with}" if held.compared_with else "none yet"
    report.summary.append(f"{alias:<10} {rival}" + (f" ({held.note})" if held.note else ""))
