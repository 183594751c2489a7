"""The output folder of a data-prep job: who may write it, what an earlier job left there, and sweeping it."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from data_prep.annotations.object_report import ODD_OBJECTS_NAME
from data_prep.dataset.manifest import MANIFEST_NAME
from data_prep.errors import DataPrepError
from data_prep.shards.shard import WORK_FOLDER
from data_prep.shards.source_contents import CONTENTS_NAME
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
