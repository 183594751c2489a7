"""From a run to its report: sections, one template, one file without any request to a network.

The page is bounded: pictures are made smaller until it has less than `MOST_BYTES`, tables show their ends, curves a few
hundred points. A section whose files are damaged says so; the others stand.
"""

from __future__ import annotations

import logging
import time
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from convmlp_platform.config.sections.task_section import best_score
from convmlp_platform.errors import ConfigError, PlatformError
from convmlp_platform.goodput.account import Price
from convmlp_platform.goodput.goodput_picture import CLASS_COLORS
from convmlp_platform.ledger.proof_report import LedgerReport
from convmlp_platform.pictures.style import hex_color
from convmlp_platform.report.blocks import Block, ReportSection, Sentence, Tile, cut, minute
from convmlp_platform.report.reported_run import ReportedRun, ReportLimits
from convmlp_platform.report.sections.curves_section import curves, metric_label
from convmlp_platform.report.sections.data_section import data
from convmlp_platform.report.sections.model_sections import best_metrics, evaluation, predictions
from convmlp_platform.report.sections.origin_sections import hardware, lineage
from convmlp_platform.report.sections.time_sections import what_happened, where_the_time_went
from convmlp_platform.runs.find_run import OF_RUNS, SWEEP_NAME
from convmlp_platform.runs.run_folder import REPORT_NAME
from data_prep.console import counted, duration
from data_prep.errors import DataPrepError
from data_prep.storage.files import write_atomically

logger = logging.getLogger(__name__)

MOST_BYTES = 5_000_000
_SMALLER_PICTURES = (200_000, 0)
"""Bytes of a picture, where the page is too large with the usual ones."""
_SECTIONS: Sequence[tuple[str, str, Callable[[ReportedRun], list[Block]]]] = (
    ("curves", "Curves", curves),
    ("timeline", "What happened when", what_happened),
    ("time", "Where the time went", where_the_time_went),
    ("data", "Data", data),
    ("evaluation", "Evaluation", evaluation),
    ("predictions", "Predictions", predictions),
    ("hardware", "Hardware", hardware),
    ("lineage", "Lineage", lineage),
)


def write_report(
    run: Path, out: Path | None = None, *, price: Price | None = None, limits: ReportLimits | None = None
) -> Path:
    """Write the report of the run in the folder `run`; returns its file.

    Args:
        out: the file (default: `report.html` in the run's folder); its folder is made.
        price: takes the place of the job's.
        limits: what it may cost.

    Raises:
        ConfigError: the folder is no run's, or `out` can't be written.
    """
    out = run / REPORT_NAME if out is None else out
    text = render(run, price=price, limits=limits)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(out, text)
    except OSError as error:
        raise ConfigError(
            f"{out}: the report can't be written: {error.strerror or error}; --out FILE puts it elsewhere"
        ) from None
    return out


def render(run: Path, *, price: Price | None = None, limits: ReportLimits | None = None) -> bytes:
    """The page in UTF-8, of less than `MOST_BYTES`; arguments and errors as `write_report`."""
    if (run / SWEEP_NAME).is_file():
        raise ConfigError(f"{run} is a sweep: name one of its trials, such as {run.name}/TRIAL")
    if not any((run / name).exists() for name in OF_RUNS):
        raise ConfigError(
            f"{run} holds none of a run's records ({', '.join(OF_RUNS)}): there is nothing to report"
        )
    facts = ReportedRun(run, price, limits)
    page = _page(facts)
    for pictures in _SMALLER_PICTURES:
        if len(page) < MOST_BYTES:
            break
        facts.limits = replace(facts.limits, picture_bytes=pictures)
        page = _page(facts)
    return page


def _page(facts: ReportedRun) -> bytes:
    sections = [ReportSection(name, title, _guarded(title, build, facts)) for name, title, build in _SECTIONS]
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, finalize=_clean, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["code"] = _with_code
    template = environment.from_string(files(__package__).joinpath("page.html").read_text(encoding="utf-8"))
    html = template.render(
        name=facts.name,
        tiles=_tiles(facts),
        sections=sections,
        now=minute(time.time()),
        class_colors=Markup("").join(
            Markup("--{}: {}; ").format(f"c-{kind}", hex_color(color)) for kind, color in CLASS_COLORS.items()
        ),
        classes=[str(kind) for kind in CLASS_COLORS],
    )
    return html.lstrip().encode("utf-8", errors="replace")


def _guarded(title: str, build: Callable[[ReportedRun], list[Block]], facts: ReportedRun) -> list[Block]:
    """A section's blocks, or the reason why there are none: a damaged file is no reason for having no report."""
    try:
        return build(facts)
    except (OSError, ValueError, PlatformError, DataPrepError) as error:
        logger.warning("report: %s: %s", title, error)
        return [Sentence(f"This can't be read: {cut(str(error) or type(error).__name__)}", "bad")]


def _tiles(facts: ReportedRun) -> list[Tile]:
    """The figures at the top; one that can't be had is left out, its section says why."""
    tiles: list[Tile] = []
    for make in (_status, _score, _goodput, _steps, _samples):
        try:
            tile = make(facts)
        except (OSError, ValueError, PlatformError, DataPrepError):
            continue
        tiles += [] if tile is None else [tile]
    return tiles


def _status(facts: ReportedRun) -> Tile:
    found = facts.standing
    return Tile("state", found.word, found.sentence, found.tone)


def _score(facts: ReportedRun) -> Tile | None:
    score = best_score(best_metrics(facts))
    if score is None:
        return None
    return Tile(
        "best evaluation", f"{score[1]:.2f} %", f"{metric_label(f'eval/{score[0]}')} on held-out images"
    )


def _goodput(facts: ReportedRun) -> Tile | None:
    found = facts.account
    if found is None or found.total_s <= 0.0:
        return None
    count = len(found.interruptions)
    told = f"of {duration(found.total_s)} of workers; {counted(count, 'interruption')}"
    return Tile("goodput", f"{100 * found.goodput:.1f} %", told)


def _steps(facts: ReportedRun) -> Tile:
    digest = facts.digest
    count = digest.checkpoints.count
    return Tile("steps on record", f"{digest.last_step:,}", f"{counted(count, 'checkpoint')} committed")


def _samples(facts: ReportedRun) -> Tile | None:
    found = facts.proof if facts.may_prove else ""
    if not isinstance(found, LedgerReport):
        return None
    if not found.ok:
        return Tile("samples", "not proven", "see Data", "bad")
    return Tile("samples", "proven", f"each used once an epoch, up to step {found.steps:,}", "good")


def _with_code(text: str) -> Markup:
    """The text, escaped, with what stands in backticks as code."""
    parts = str(_clean(text)).split("`")
    if len(parts) % 2 == 0:
        return Markup.escape("`".join(parts))
    return Markup("").join(
        Markup("<code>{}</code>").format(part) if place % 2 else Markup.escape(part)
        for place, part in enumerate(parts)
    )


_SPOOFING = {*range(0x202A, 0x202F), *range(0x2066, 0x206A)}
"""Characters that reorder a text: a name must not pass for another."""


def _clean(value: Any) -> Any:
    """A value for the page: texts without control characters, which HTML forbids."""
    if isinstance(value, Markup) or not isinstance(value, str):
        return value
    if value.isascii() and value.isprintable():
        return value
    return "".join(
        letter
        if letter in "\n\t"
        or (unicodedata.category(letter) not in ("Cc", "Cs") and ord(letter) not in _SPOOFING)
        else "\N{REPLACEMENT CHARACTER}"
        for letter in value
    )
