"""Repair of a damaged dataset: every file that isn't what the manifest says is made anew, exactly or not at all.

A damaged shard made anew from the images it was once made of, by the recorded job's own shard task.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path

from pydantic import ValidationError

from data_prep.config import PrepareConfig, recorded_source
from data_prep.dataset.manifest import DatasetManifest, load_manifest, manifest_path
from data_prep.errors import DataPrepError
from data_prep.output_folder import exclusive_folder
from data_prep.repair.from_twin import NotPossible, rebuild_file, rebuild_index
from data_prep.repair.stored_shard import StoredShard, replace_if_same
from data_prep.shards.shard import WORK_FOLDER, ShardTask, write_shard
from data_prep.shards.shard_plan import Plan, encoder_versions, make_plan
from data_prep.sources import open_source

_SCRATCH = ".repair"


class SourceGone(Exception):
    """The source can't be used; the message says why."""


def recorded_plan(folder: Path, manifest: DatasetManifest) -> Plan:
    """The plan of the job that made the dataset, its output going to a scratch folder below `folder`.

    Raises:
        SourceGone: the source isn't where it was, or has other samples now.
    """
    settings = manifest.preprocessing
    output = {"path": folder / _SCRATCH} | {
        name: settings.get(name) for name in ("formats", "samples_per_shard", "resize")
    }
    others = {name: settings.get(name) for name in ("shuffle_seed", "validate_images", "statistics_images")}
    others["keep"] = settings.get("keep") or {}
    try:
        config = PrepareConfig.model_validate(
            {"source": recorded_source(manifest.source), "output": output} | others
        )
        source = open_source(config.source)
        plan = make_plan(config, source, source.listing())
    except ValidationError:
        raise SourceGone("the manifest doesn't record a job that this release understands") from None
    except DataPrepError as error:
        raise SourceGone(str(error)) from None
    except OSError as error:
        raise SourceGone(f"source.path: can't list the source: {error}") from None
    if plan.listing != settings.get("listing"):
        raise SourceGone(
            f"{_where(manifest)} has other samples or classes now than when the dataset was made"
        )
    return plan


def rebuild_from_source(
    plan: Plan, damaged: Sequence[StoredShard], manifest: DatasetManifest, progress: Callable[[str], None]
) -> dict[str, str]:
    """Replace the damaged files of shards, each only by one of the manifest's SHA-256.

    Returns:
        Files, relative to the dataset's folder, that came out differently, with the reason.

    Raises:
        DataPrepError: no room or no permission to write.
    """
    tasks = {task.name: task for task in plan.tasks}
    different: dict[str, str] = {}
    for name in sorted({Path(shard.info.file).stem for shard in damaged}):
        shards = [shard for shard in damaged if Path(shard.info.file).stem == name]
        scratch = shards[0].folder / _SCRATCH
        try:
            progress(f"making {name} again from {_where(manifest)}")
            different |= _rebuild(tasks[name], shards, scratch, manifest)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    return different


def _rebuild(
    task: ShardTask, shards: Sequence[StoredShard], scratch: Path, manifest: DatasetManifest
) -> dict[str, str]:
    formats = tuple(shard.format for shard in shards)
    shutil.rmtree(scratch, ignore_errors=True)
    try:
        for name in (*formats, WORK_FOLDER):
            (scratch / name).mkdir(parents=True)
        write_shard(replace(task, output=scratch, formats=formats))
        different = [
            file
            for shard in shards
            for file, sha256 in (
                (shard.info.file, shard.info.sha256),
                (shard.info.index, shard.info.index_sha256),
            )
            if not _take(scratch / file, shard.folder / file, sha256)
        ]
    except OSError as error:
        raise DataPrepError(f"{scratch.parent}: can't write: {error.strerror or error}") from None
    return dict.fromkeys(different, f"made again from {_where(manifest)} it is another file{_why(manifest)}")


def _take(made: Path, path: Path, sha256: str) -> bool:
    """Move a file that was made to its place, if it is the right one. Intact neighbours are replaced by the same."""
    if not made.exists():  # every sample was rejected this time
        return False
    path.parent.mkdir(exist_ok=True)

    def move(temporary: Path) -> None:
        made.replace(temporary)

    return replace_if_same(path, sha256, move)


def _where(manifest: DatasetManifest) -> str:
    kind, path = manifest.source.get("kind"), manifest.source.get("path")
    return f"the source {path}" if path else f"the source {kind}"


def _why(manifest: DatasetManifest) -> str:
    for name, here in encoder_versions().items():
        if (before := manifest.preprocessing.get(name)) != here:
            return f": images were encoded by {name} {before}, here is {here}"
    return ": an image or an annotation has changed since"


@dataclass
class RepairReport:
    """The findings and the repairs; all is well when `ok`. Files are relative to the dataset's folder."""

    path: Path
    num_files: int = 0
    repaired: dict[str, str] = field(default_factory=dict)
    """File → where its bytes came from."""
    failed: dict[str, str] = field(default_factory=dict)
    """File → why it is still damaged."""

    @property
    def ok(self) -> bool:
        """Every file is what the manifest says."""
        return not self.failed


def repair(
    path: str | Path, *, from_source: bool = False, progress: Callable[[str], None] = lambda line: None
) -> RepairReport:
    """Make damaged or missing shard files and indexes of a dataset anew.

    They come from the intact samples of the same shard in both formats, else from the job's source where that still
    is what it was. A file is replaced only by one of the manifest's SHA-256, so nothing gets worse, and a second
    repair finds nothing to do. What needs an intact manifest can't be done without one: run the job again.

    Args:
        path: the dataset's folder or its manifest file.
        from_source: use the source alone.
        progress: gets a line for everything that takes long.

    Raises:
        DataPrepError: there is no intact manifest, the folder can't be written, or a job is writing it now.
    """
    manifest = load_manifest(path)
    report = RepairReport(manifest_path(path).parent.absolute())
    with _held(report.path):
        shards = [
            StoredShard(report.path, manifest.task, name, info)
            for split in manifest.splits.values()
            for name, infos in split.formats.items()
            for info in infos
        ]
        report.num_files = 2 * len(shards)
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(StoredShard.refresh, shards))
        damaged = {file for shard in shards for file in _damaged_files(shard)}
        if damaged:
            for file in sorted(damaged):
                progress(f"{file} is damaged or missing")
            try:
                _repair(shards, manifest, report, from_source, progress)
            except OSError as error:
                raise DataPrepError(f"{report.path}: can't write: {error.strerror or error}") from None
        report.repaired = {file: how for file, how in report.repaired.items() if file in damaged}
    return report


@contextmanager
def _held(folder: Path) -> Iterator[None]:
    try:
        with exclusive_folder(folder):
            yield
    except DataPrepError as error:  # no job is at hand whose field it would be
        raise DataPrepError(str(error).removeprefix("output.path: ")) from None


def _repair(
    shards: Sequence[StoredShard],
    manifest: DatasetManifest,
    report: RepairReport,
    from_source: bool,
    progress: Callable[[str], None],
) -> None:
    if not from_source:
        by_name = sorted(shards, key=_shard_name)
        for _, group in groupby(by_name, _shard_name):
            _repair_from_twin(list(group), manifest, report)
    left = [shard for shard in shards if not shard.ok]
    if not left:
        return
    try:
        different = rebuild_from_source(recorded_plan(report.path, manifest), left, manifest, progress)
    except SourceGone as error:
        different = dict.fromkeys((file for shard in left for file in _damaged_files(shard)), str(error))
    for shard in left:
        before = _damaged_files(shard)
        shard.refresh()
        for file in before:
            if file not in _damaged_files(shard):
                report.repaired[file] = "the source"
                report.failed.pop(file, None)
            else:
                reasons = filter(None, (report.failed.get(file), different.get(file)))
                report.failed[file] = "; ".join(reasons)


def _repair_from_twin(group: list[StoredShard], manifest: DatasetManifest, report: RepairReport) -> None:
    """Rebuild what can be rebuilt from the group's own files; each one may be what the next one needs."""
    while True:
        before = sum(shard.file_ok + (shard.index is not None) for shard in group)
        for shard in group:
            for damaged, rebuild, file in (
                (not shard.file_ok, rebuild_file, shard.info.file),
                (shard.file_ok and shard.index is None, rebuild_index, shard.info.index),
            ):
                if not damaged:
                    continue
                try:
                    (shard.folder / file).parent.mkdir(exist_ok=True)
                    rebuild(shard, group, manifest)
                except NotPossible as error:
                    report.failed[file] = str(error)
                    continue
                shard.refresh()
                report.failed.pop(file, None)
                report.repaired[file] = "the intact samples of this shard"
        if sum(shard.file_ok + (shard.index is not None) for shard in group) == before:
            break
    for shard in group:
        if not shard.file_ok and shard.index is None:
            report.failed.setdefault(shard.info.index, "the shard file it describes is damaged too")


def _damaged_files(shard: StoredShard) -> list[str]:
    damaged = [] if shard.file_ok else [shard.info.file]
    return damaged if shard.index is not None else [*damaged, shard.info.index]


def _shard_name(shard: StoredShard) -> str:
    return Path(shard.info.file).stem
