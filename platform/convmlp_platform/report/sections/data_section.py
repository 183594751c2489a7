"""The dataset of a run, the proof of what was used of it, and what it looks like."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from convmlp_platform.config.paths import resolve
from convmlp_platform.data.dataset.damage import Damage
from convmlp_platform.data.dataset.sample_view import ROOM, SplitView
from convmlp_platform.data.dataset.split import open_manifest
from convmlp_platform.errors import PlatformError
from convmlp_platform.ledger.proof_report import LedgerReport
from convmlp_platform.pictures.contact_sheet import contact_sheet
from convmlp_platform.pictures.style import FAINT
from convmlp_platform.report.blocks import (
    Block,
    EmbeddedPicture,
    FactTable,
    Folded,
    GridTable,
    Sentence,
    Verbatim,
    cut,
    ends_of,
)
from convmlp_platform.report.embedded_images import encoded
from convmlp_platform.report.reported_run import ReportedRun
from data_prep.console import some_of, stored_size
from data_prep.dataset.manifest import DatasetManifest
from data_prep.storage.json_files import parse_json_lines
from data_prep.storage.urls import is_url, shown

_COUNT = {"classification": 24, "detection": 6, "segmentation": 6}
_COLUMNS = {"classification": 8, "detection": 3, "segmentation": 3}
_LEGEND = 40
_QUARANTINE_BYTES = 4 << 20
_MOST_CLASSES = 200


def data(facts: ReportedRun) -> list[Block]:
    """What is on record of the dataset, the ledger's proof, the quarantine, and a contact sheet."""
    manifest, problem = _manifest(facts)
    blocks: list[Block] = [_facts(facts, manifest)]
    if problem:
        blocks.append(Sentence(problem))
    blocks += _proof(facts)
    blocks += _quarantine(facts)
    if manifest is not None:
        blocks += [_classes(manifest), *_sheet(facts, manifest)]
    return blocks


def _digest(facts: ReportedRun) -> str | None:
    """Of the dataset that the run was begun with."""
    recorded = facts.digest.tags.get("dataset.digest")
    known = [one.digest for one in facts.digest.datasets.values() if one.context == "training"]
    return recorded or (known[-1] if known else None)


def _manifest(facts: ReportedRun) -> tuple[DatasetManifest | None, str]:
    """The dataset as it lies there now, if it is the run's and on this machine; or why there is none."""
    path, wanted = facts.setting("data.path"), _digest(facts)
    if not isinstance(path, str):
        return None, "The job of the run can't be read, so its dataset isn't looked for."
    if is_url(path):
        return (
            None,
            f"The dataset lies at {shown(path)}, which a report doesn't read: `convmlp data show` draws it.",
        )
    try:
        found = open_manifest(resolve(path, "data.path"))
    except (OSError, PlatformError) as error:
        return None, f"The dataset isn't to be seen from here: {cut(str(error))}"
    if wanted is not None and found.digest != wanted:
        return None, f"In {path} lies another dataset now: its digest is {found.digest}."
    return found, ""


def _facts(facts: ReportedRun, manifest: DatasetManifest | None) -> FactTable:
    datasets = list(facts.digest.datasets.values())
    rows: list[tuple[str, str]] = []
    for one in datasets:
        rows.append((f"{one.context} on", f"{one.name}, {one.source}"))
    if (digest := _digest(facts)) is not None:
        rows.append(("digest", digest))
    if manifest is None:
        if classes := facts.digest.tags.get("dataset.classes"):
            rows.append(("classes", classes))
        for name in ("train_split", "eval_split"):
            if split := facts.setting(f"data.{name}"):
                rows.append((name.replace("_", " "), str(split)))
    else:
        used = {
            facts.setting("data.train_split"): "trained on",
            facts.setting("data.eval_split"): "evaluated on",
        }
        for name, info in manifest.splits.items():
            use = f", {used[name]}" if name in used else ""
            rows.append((f"split {name}", f"{info.num_samples:,} images{use}"))
        rows += [
            ("task", manifest.task),
            ("classes", f"{manifest.num_classes:,}"),
            ("formats", " and ".join(manifest.formats)),
        ]
        if rejected := manifest.preprocessing.get("num_rejected"):
            rows.append(("rejected in preparation", f"{rejected:,} images of the source, see rejected.jsonl"))
        rows += [("note", cut(str(note))) for note in manifest.preprocessing.get("notes", [])[:10]]
    return FactTable("The dataset", rows or [("dataset", "none is on record")])


def _classes(manifest: DatasetManifest) -> Folded:
    text = some_of([cut(name, 80) for name in manifest.classes], _MOST_CLASSES)
    return Folded(f"The {manifest.num_classes:,} classes", [Sentence(text)])


def _proof(facts: ReportedRun) -> list[Block]:
    if not facts.may_prove:
        return [
            Sentence(
                f"The ledger has {stored_size(facts.ledger_bytes)}: it isn't proven here, where the end of training "
                f"would wait for it. `convmlp data ledger {facts.path.name}` proves it, and "
                f"`convmlp report {facts.path.name}` shows that."
            )
        ]
    found = facts.proof
    if isinstance(found, str):
        return [Sentence(f"Nothing is proven of the samples: {cut(found)}")]
    return [
        _verdict(found),
        _used(found),
        Folded("What `convmlp data ledger` says", [Verbatim("proof", _text(found))]),
    ]


def _text(found: LedgerReport) -> str:
    return "\n".join(found.lines())


def _verdict(found: LedgerReport) -> Sentence:
    verdict = found.lines()[-1]
    return Sentence(f"{verdict[:1].upper()}{verdict[1:]}.", "good" if found.ok else "bad")


def _used(found: LedgerReport) -> FactTable:
    newest = max(found.epochs, default=0)
    rows = [
        ("steps proven", f"{found.steps:,}"),
        ("uses of samples", f"{found.samples:,} of {found.num_samples:,} samples"),
        ("complete epochs", f"{found.complete_epochs:,}"),
        ("attempts", f"{found.attempts:,}, of which {len(found.spans):,} are part of the result"),
        ("repeated within an epoch", f"{found.duplicates:,}"),
        ("skipped in a complete epoch", f"{found.losses:,}"),
        ("void: rolled back by a restart", f"{found.void_samples:,} uses"),
        ("left out as damaged", f"{found.num_left_out:,}"),
    ]
    if newest >= found.complete_epochs and newest in found.epochs:
        rows.insert(
            3, (f"epoch {newest}, not complete", f"{found.epochs[newest]:,} of {found.num_samples:,} so far")
        )
    if found.other_format:
        rows.append(("read from the dataset's other format", f"{found.other_format:,}"))
    return FactTable("What the ledger proves", rows)


def _quarantine(facts: ReportedRun) -> list[Block]:
    try:
        with facts.folder.quarantine.open("rb") as file:
            content = file.read(_QUARANTINE_BYTES)
    except FileNotFoundError:
        return [Sentence("No sample was found damaged while training.")]
    lines = [line for line in parse_json_lines(content, dict[str, Any]) if line is not None]
    known = [_damage(line) for line in lines]
    rows = [
        [cut(one.key, 120), cut(one.file, 120), f"{one.epoch}", one.outcome, cut(one.reason, 200)]
        for one in known
        if one is not None
    ]
    if not rows:
        return [Sentence("No sample was found damaged while training.")]
    head = ["sample", "shard", "epoch", "what became of it", "why"]
    return [GridTable(f"Quarantine: {len(rows):,} damaged samples", head, ends_of(rows, 20), frozenset({2}))]


def _damage(line: dict[str, Any]) -> Damage | None:
    """A line of quarantine.jsonl; None where it lacks what every one has."""
    try:
        return Damage(**{name: line[name] for name in Damage._fields if name in line})
    except TypeError:
        return None


def _sheet(facts: ReportedRun, manifest: DatasetManifest) -> list[Block]:
    view = SplitView(resolve(str(facts.setting("data.path")), "data.path"), facts.setting("data.train_split"))
    cells, seen = [], set[int]()
    for sample in _chosen(view, _COUNT[view.task]):
        cell, labels = view.cell(sample)
        cells.append(cell)
        seen |= labels
    legend = [(manifest.classes[label], view.colors[label]) for label in sorted(seen)]
    if view.task == "classification":
        legend = []
    elif len(legend) > _LEGEND:
        legend = [*legend[:_LEGEND], (f"and {len(legend) - _LEGEND} more", FAINT)]
    sheet = contact_sheet(
        cells,
        ROOM[view.task],
        columns=_COLUMNS[view.task],
        title=view.title,
        subtitle=f"{len(cells):,} of {len(view.split):,} images · seed 0",
        legend=legend,
    )
    image = encoded(sheet, facts.limits.picture_bytes)
    if image is None:
        return [Sentence(f"The contact sheet of {view.title} is left out: the page would be too large.")]
    alt = f"Contact sheet: {len(cells)} images of {view.title} with their labels."
    caption = f"Images of {view.title} as they were stored, drawn without replacement."
    return [EmbeddedPicture(image.uri, image.width, image.height, alt, caption)]


def _chosen(view: SplitView, count: int) -> Sequence[int]:
    """As `convmlp data show` chooses: without replacement, those of a class side by side."""
    chosen = np.random.default_rng(0).permutation(len(view.split))[:count].tolist()
    if view.task != "classification":
        return [int(sample) for sample in chosen]
    return sorted(
        (int(sample) for sample in chosen), key=lambda sample: (int(view.columns.label[sample]), sample)
    )
