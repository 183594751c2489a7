"""The story of a data-prep job: list → order → cut → write shards → statistics → manifest.

Progress that a running data-prep job reports: shards, images, speed and the time left.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

from data_prep.annotations.object_report import ODD_OBJECTS_NAME, check_budget, sum_objects
from data_prep.annotations.object_report import describe as describe_objects
from data_prep.config import DigitsSource, PrepareConfig
from data_prep.console import progress_bar, rough_duration, say, some_of, stored_size
from data_prep.dataset.manifest import MANIFEST_NAME, DatasetManifest, load_manifest, write_manifest
from data_prep.errors import DataPrepError
from data_prep.output_folder import (
    REJECTED_NAME,
    begin_work,
    difference,
    end_work,
    exclusive_folder,
    expect_accounted,
    expect_free,
    free_of_the_dead,
    remove_dataset,
)
from data_prep.shards.fill import Rejected
from data_prep.shards.shard import ShardRecord, ShardTask, write_shard
from data_prep.shards.shard_plan import Plan, make_plan
from data_prep.shards.source_contents import contents_of
from data_prep.sources import open_source
from data_prep.storage.files import write_atomically
from data_prep.summary import build_manifest, describe

_SECONDS_BETWEEN_LINES = 5.0


class PreparationProgress:
    """Counts finished shards; a line now and then, and one at the end."""

    def __init__(self, num_shards: int, num_samples: int) -> None:
        self._num_shards, self._num_samples = num_shards, num_samples
        self._shards = self._images = self._bytes = 0
        self._started = self._last = time.monotonic()

    def add(self, record: ShardRecord) -> str | None:
        """Count a shard in; a line to show if it is time for one."""
        self._shards += 1
        self._images += record.num_samples + len(record.rejected)
        self._bytes += sum(shard.bytes for shard in record.shards.values())
        now = time.monotonic()
        if now - self._last < _SECONDS_BETWEEN_LINES and self._shards < self._num_shards:
            return None
        self._last = now
        seconds = max(now - self._started, 1e-6)
        left = seconds / max(1, self._images) * (self._num_samples - self._images)
        return (
            f"{self._shards:,}/{self._num_shards:,} shards, {self._images:,}/{self._num_samples:,} images, "
            f"{self._images / seconds:,.0f} images/s, {stored_size(self._bytes / seconds)}/s written, "
            f"{rough_duration(left)} left"
        )


_SHOWN_REJECTS = 5
_SHOWN_CHARACTERS = 120  # of a location: COCO's names byte ranges

Progress = Callable[[str], None]


class MapShards(Protocol):
    """How shard tasks are spread over processes; results may come in any order."""

    def __call__(
        self, fn: Callable[[ShardTask], ShardRecord], items: Sequence[ShardTask], /
    ) -> Iterable[ShardRecord]:
        """Apply `fn` to every item."""
        ...


def serial_map(
    fn: Callable[[ShardTask], ShardRecord], items: Sequence[ShardTask], /
) -> Iterator[ShardRecord]:
    """One shard after the other, in this process."""
    return map(fn, items)


def prepare(
    config: PrepareConfig, *, map_shards: MapShards = serial_map, progress: Progress = say
) -> DatasetManifest:
    """Turn a source into shards, indexes and a manifest.

    Killed at any instant and run again, it goes on from the finished shards and ends with the same bytes.
    Over a finished dataset of the same configuration it changes nothing.

    Args:
        config: the job; relative paths are taken from the current folder.
        map_shards: runs the shard tasks, such as `data_prep.shards.runner.ray_map`.
        progress: gets one line at a time.

    Raises:
        DataPrepError: bad source or output, too many rejected images, or a finished dataset of another
            configuration at `output.path`. A job that failed leaves no manifest.
    """
    given, config = config, _with_absolute_paths(config)
    output = config.output.path
    finished = (output / MANIFEST_NAME).exists()
    plan = _settled(given, config, progress)
    if plan is None:
        free_of_the_dead(output)
        end_work(output)
        manifest = load_manifest(output)
        progress(f"{output} is prepared already: {describe(manifest)}")
        return manifest
    with exclusive_folder(output):
        another_was_faster = not finished and (output / MANIFEST_NAME).exists()
        try:
            if not another_was_faster:
                manifest = _run(plan, given, config, map_shards, progress)
        except OSError as error:
            raise DataPrepError(f"output.path: can't write into {output}: {error}") from None
    if another_was_faster:  # and its dataset is asked for first, before it may be replaced
        return prepare(config, map_shards=map_shards, progress=progress)
    progress(f"{output}: {describe(manifest)}")
    return manifest


def check(config: PrepareConfig, *, progress: Progress = say) -> None:
    """List the source and plan as `prepare` does, without writing anything.

    Raises:
        DataPrepError: `prepare` would be refused, before it writes its first shard.
    """
    given, config = config, _with_absolute_paths(config)
    output = config.output.path
    if _settled(given, config, progress) is not None and output.exists():
        expect_free(output)
        expect_accounted(output)


def _settled(given: PrepareConfig, config: PrepareConfig, progress: Progress) -> Plan | None:
    """Returns the plan of what is to be done; None where the output is already what the job makes."""
    output = config.output.path
    if (output / MANIFEST_NAME).exists():
        if config.output.overwrite:
            progress(f"replacing the dataset at {output}, as output.overwrite says")
            return _list_and_plan(config, progress)
        if differs := difference(output, given, lambda: _list_and_plan(config, progress)):
            raise DataPrepError(
                f"output.path: {output} holds a finished dataset that is not what this job makes: {differs}; "
                "choose another folder, or set output.overwrite: true to replace it"
            )
        return None
    return _list_and_plan(config, progress)


def _run(
    plan: Plan, given: PrepareConfig, config: PrepareConfig, map_shards: MapShards, progress: Progress
) -> DatasetManifest:
    output = config.output.path
    if (output / MANIFEST_NAME).exists():
        remove_dataset(output)
    if begin_work(output, plan.digest):
        progress("going on with an interrupted job: its finished shards are checked and kept")
    for name in config.output.formats:
        (output / name).mkdir(exist_ok=True)
    records = _write_shards(plan, config, map_shards, progress)
    if plan.task == "detection":
        _check_objects(records, config, progress)
    _expect_unchanged(plan)
    plan.contents.write(output)
    manifest = build_manifest(given, output, plan, records)
    for note in manifest.preprocessing.get("notes", []):
        progress(f"note: {note}")
    write_manifest(manifest, output)
    end_work(output)
    return manifest


def _expect_unchanged(plan: Plan) -> None:
    """A source that changes while it is read is neither what it was nor what it is now; the finished shards stay."""
    samples = (task.samples.refs for task in plan.tasks)
    now = contents_of(plan.source, samples, map(Path, plan.contents.documents))
    if found := plan.contents.differs(now):
        raise DataPrepError(f"{found} changed while they were being prepared: start the job again")


def _with_absolute_paths(config: PrepareConfig) -> PrepareConfig:
    """Workers may have another current folder than this process."""
    output = config.output.model_copy(update={"path": config.output.path.expanduser().absolute()})
    source = config.source
    if not isinstance(source, DigitsSource):
        source = source.model_copy(update={"path": source.path.expanduser().absolute()})
        if output.path.resolve().is_relative_to(source.path.resolve()):
            raise DataPrepError(
                f"output.path: {output.path} lies inside source.path: choose a folder outside the source"
            )
    return config.model_copy(update={"output": output, "source": source})


def _list_and_plan(config: PrepareConfig, progress: Progress) -> Plan:
    try:
        source = open_source(config.source)
        listing = source.listing()
    except OSError as error:
        raise DataPrepError(f"source.path: can't list the source: {error}") from None
    counts = ", ".join(f"{len(refs):,} {split}" for split, refs in listing.splits.items())
    progress(f"source: {counts} samples in {len(listing.classes):,} classes")
    try:
        return make_plan(config, source, listing)
    except OSError as error:
        raise DataPrepError(f"source.path: can't read the source: {error}") from None


def _write_shards(
    plan: Plan, config: PrepareConfig, map_shards: MapShards, progress: Progress
) -> list[ShardRecord]:
    """All shards' records in order; fails as soon as more samples are rejected than the job allows."""
    records: list[ShardRecord] = []
    rejected: list[Rejected] = []
    meter = PreparationProgress(len(plan.tasks), plan.num_samples)
    with progress_bar("writing shards", plan.num_samples, "images") as bar:
        for record in map_shards(write_shard, plan.tasks):
            records.append(record)
            rejected += record.rejected
            if len(rejected) > config.max_rejected * plan.num_samples:
                _write_rejected(config, rejected)
                raise _too_many(rejected, plan, config, all_read=len(records) == len(plan.tasks))
            bar.advance(record.num_samples + len(record.rejected))
            line = meter.add(record)
            if line and (not bar.is_shown or len(records) == len(plan.tasks)):
                progress(line)
    _write_rejected(config, rejected)
    return sorted(records, key=lambda record: (record.split, record.number))


def _check_objects(records: list[ShardRecord], config: PrepareConfig, progress: Progress) -> None:
    """List the odd objects; the finished shards stay, so that nothing is done again if there are too many."""
    odd = sorted(
        (one for record in records for one in record.odd_objects),
        key=lambda one: (one.split, one.key, one.annotation),
    )
    path = config.output.path / ODD_OBJECTS_NAME
    write_atomically(path, "".join(f"{one.model_dump_json()}\n" for one in odd).encode())
    counts = sum_objects(record.objects for record in records)
    check_budget(counts, odd, config.max_unusable_objects, path)
    progress(describe_objects(counts) + (f"; see {path}" if odd else ""))


def _write_rejected(config: PrepareConfig, rejected: list[Rejected]) -> None:
    rejected.sort(key=lambda sample: (sample.split, sample.key))
    lines = "".join(f"{sample.model_dump_json()}\n" for sample in rejected)
    write_atomically(config.output.path / REJECTED_NAME, lines.encode())


def _too_many(
    rejected: list[Rejected], plan: Plan, config: PrepareConfig, *, all_read: bool
) -> DataPrepError:
    told = [f"{one.location[:_SHOWN_CHARACTERS]}: {one.reason}" for one in rejected]
    so_far = "" if all_read else " so far"
    return DataPrepError(
        f"{len(rejected)} of {plan.num_samples} images can't be used{so_far}, max_rejected "
        f"({config.max_rejected:g}) allows {int(config.max_rejected * plan.num_samples)}: "
        f"{some_of(told, _SHOWN_REJECTS, '; ')}. All are in {config.output.path / REJECTED_NAME}; repair "
        "or remove them, or raise max_rejected"
    )
