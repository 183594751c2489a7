"""A damaged shard made anew from the images it was once made of, by the recorded job's own shard task."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from pydantic import ValidationError

from data_prep.config import PrepareConfig
from data_prep.errors import DataPrepError
from data_prep.manifest import DatasetManifest
from data_prep.plan import Plan, encoder_versions, make_plan
from data_prep.replace import replace_if_same
from data_prep.shard import WORK_FOLDER, ShardTask, write_shard
from data_prep.source_config import recorded_source
from data_prep.sources import open_source
from data_prep.stored_shard import StoredShard

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
