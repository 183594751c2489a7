"""The output folder of a data-prep job: who may write it, what an earlier job left there, and sweeping it.

A finished dataset that a job meets there is compared with what the job would make.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from data_prep.annotations.object_report import ODD_OBJECTS_NAME
from data_prep.config import ACQUISITION_FIELDS, PrepareConfig, recorded_source
from data_prep.dataset.manifest import MANIFEST_NAME, DatasetManifest, load_manifest
from data_prep.errors import DataPrepError
from data_prep.shards.shard import WORK_FOLDER
from data_prep.shards.shard_plan import Plan, recorded_settings
from data_prep.shards.source_contents import CONTENTS_NAME, changes
from data_prep.storage import locks
from data_prep.storage.files import remove_temporaries, sync_folder, write_atomically
from data_prep.writers import WRITERS

REJECTED_NAME = "rejected.jsonl"

_PLAN_NAME = "plan"
_SHARD_NAME = re.compile(r".+-\d{6}\.(tar|beton|index\.arrow)")


@contextmanager
def exclusive_folder(path: Path) -> Iterator[None]:
    """Make the folder and hold it for this job alone.

    Raises:
        DataPrepError: it can't be made or written, or another job holds it.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataPrepError(f"output.path: can't make the folder {path}: {error.strerror}") from None
    if not os.access(path, os.W_OK | os.X_OK):
        raise DataPrepError(f"output.path: no permission to write into {path}")
    with ExitStack() as stack:
        try:
            stack.enter_context(locks.holding(path / locks.OF_FOLDER))
        except locks.Held as held:
            raise _held(path, str(held)) from None
        except OSError as error:
            raise DataPrepError(f"output.path: can't write into {path}: {error.strerror}") from None
        yield


def _held(path: Path, holder: str) -> DataPrepError:
    return DataPrepError(
        f"output.path: another data-prep job is writing {path}: {holder}; wait for its end, or stop it"
    )


def expect_free(path: Path) -> None:
    """Refuse a folder that another job surely holds. Doesn't wait, and writes nothing.

    Raises:
        DataPrepError: one does.
    """
    holder = locks.living_holder(path / locks.OF_FOLDER)
    if holder is not None:
        raise _held(path, str(holder))


def expect_accounted(path: Path) -> None:
    """Refuse a folder whose shards aren't known to be ours.

    Raises:
        DataPrepError: it holds shards, but neither a manifest nor an unfinished job.
    """
    known = (path / MANIFEST_NAME).exists() or (path / WORK_FOLDER / _PLAN_NAME).is_file()
    if not known and (found := _shard_files(path)):
        raise DataPrepError(
            f"output.path: {path} holds {len(found)} shard files (such as {found[0].name}) but neither a "
            "manifest nor an unfinished job: move them away, or choose another folder"
        )


def begin_work(path: Path, plan: str) -> bool:
    """Ready an unfinished folder for a plan; true if an interrupted job with that plan is resumed.

    Work of another plan is removed; files that no job made are never touched.

    Raises:
        DataPrepError: the folder holds shards that no unfinished job accounts for.
    """
    plan_file = path / WORK_FOLDER / _PLAN_NAME
    earlier = plan_file.read_text(errors="replace") if plan_file.is_file() else None
    expect_accounted(path)
    if earlier is not None and earlier != plan:
        remove_dataset(path)
    for folder in (path, path / WORK_FOLDER, *(path / name for name in WRITERS)):
        remove_temporaries(folder)
    if earlier != plan:
        (path / WORK_FOLDER).mkdir(exist_ok=True)
        write_atomically(plan_file, plan.encode())
    return earlier == plan


def free_of_the_dead(path: Path) -> None:
    """Free a finished folder's lock whose holder was killed as it ended; a read-only folder keeps it. Doesn't wait."""
    if (path / locks.OF_FOLDER).exists():
        lock = locks.Lock(path / locks.OF_FOLDER)
        with suppress(OSError):
            if lock.try_take():
                lock.release()


def end_work(path: Path) -> None:
    """Sweep the records of a finished job; a finished folder may be read-only by now."""
    if not (path / WORK_FOLDER).exists():
        return
    shutil.rmtree(path / WORK_FOLDER, ignore_errors=True)
    for folder in (path, *(path / name for name in WRITERS)):
        remove_temporaries(folder)
    sync_folder(path)


def remove_dataset(path: Path) -> None:
    """Delete a dataset's files, the manifest first, so what a killed deletion leaves is not taken for whole.

    The plan goes last, so that a killed deletion is known as ours when the job is run again.
    """
    if (path / MANIFEST_NAME).exists():
        (path / WORK_FOLDER).mkdir(exist_ok=True)
        write_atomically(path / WORK_FOLDER / _PLAN_NAME, b"removing")
        (path / MANIFEST_NAME).unlink()
        sync_folder(path)
    for file in _shard_files(path):
        file.unlink()
    for name in (REJECTED_NAME, ODD_OBJECTS_NAME, CONTENTS_NAME):
        (path / name).unlink(missing_ok=True)
    for name in WRITERS:
        if (path / name).is_dir():
            remove_temporaries(path / name)
            if not any((path / name).iterdir()):
                (path / name).rmdir()
    for record in (path / WORK_FOLDER).glob("*.json"):
        record.unlink()
    (path / WORK_FOLDER / _PLAN_NAME).unlink(missing_ok=True)


def _shard_files(path: Path) -> list[Path]:
    return sorted(
        file for name in WRITERS for file in (path / name).glob("*") if _SHARD_NAME.fullmatch(file.name)
    )


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
    """Missing files and wrong sizes only; `data_prep.verify` reads the contents."""
    for split in manifest.splits.values():
        for shard in (shard for shards in split.formats.values() for shard in shards):
            if not (output / shard.index).is_file():
                return f"{shard.index} is missing"
            if not (output / shard.file).is_file():
                return f"{shard.file} is missing"
            if (size := (output / shard.file).stat().st_size) != shard.bytes:
                return f"{shard.file} has {size} bytes, its manifest says {shard.bytes}"
    return ""
