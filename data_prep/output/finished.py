"""A finished dataset met by a job: is it what the job would make?"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from data_prep.config import PrepareConfig
from data_prep.dataset.manifest import DatasetManifest, load_manifest
from data_prep.errors import DataPrepError
from data_prep.shards.shard_plan import Plan, recorded_settings
from data_prep.shards.source_contents import changes
from data_prep.source_config import ACQUISITION_FIELDS, recorded_source


def difference(output: Path, given: PrepareConfig, make_plan: Callable[[], Plan]) -> str:
    """How the finished dataset at `output` differs from what this job would make, or ''.

    A source that is gone by now is no difference: deleting the originals after preparation is normal.
    """
    try:
        manifest = load_manifest(output)
    except DataPrepError as error:
        return str(error)
    if found := _setting_difference(manifest, given) or _damage(manifest, output):
        return found
    try:
        plan = make_plan()
    except DataPrepError:
        return ""
    if plan.listing != manifest.preprocessing.get("listing"):
        return "the source has other samples or classes now"
    shards = [(task.index_path(manifest.formats[0]), task.samples.refs) for task in plan.tasks]
    return changes(output, plan.contents, plan.source, shards)


def _setting_difference(manifest: DatasetManifest, given: PrepareConfig) -> str:
    wanted_source = _with_absolute_path(given.source.model_dump(mode="json"))
    found_source = _with_absolute_path(recorded_source(manifest.source))
    pairs: list[tuple[str, Any, Any]] = []
    for field in sorted((wanted_source.keys() | found_source.keys()) - ACQUISITION_FIELDS):
        pairs.append((f"source.{field}", found_source.get(field), wanted_source.get(field)))
    for field, wanted in recorded_settings(given).items():
        pairs.append((field, manifest.preprocessing.get(field), wanted))
    for field, found, wanted in pairs:
        if found != wanted:
            return f"{field} is {json.dumps(found)} there, {json.dumps(wanted)} in this job"
    return ""


def _with_absolute_path(source: dict[str, Any]) -> dict[str, Any]:
    if path := source.get("path"):
        return source | {"path": str(Path(path).expanduser().absolute())}
    return source


def _damage(manifest: DatasetManifest, output: Path) -> str:
    """Missing files and wrong sizes only; `data_prep.check.verify` reads the contents."""
    for split in manifest.splits.values():
        for shard in (shard for shards in split.formats.values() for shard in shards):
            if not (output / shard.index).is_file():
                return f"{shard.index} is missing"
            if not (output / shard.file).is_file():
                return f"{shard.file} is missing"
            if (size := (output / shard.file).stat().st_size) != shard.bytes:
                return f"{shard.file} has {size} bytes, its manifest says {shard.bytes}"
    return ""
