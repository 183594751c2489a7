"""Progress that a running data-prep job reports: shards, images, speed and the time left."""

from __future__ import annotations

import time

from data_prep.shard import ShardRecord

_SECONDS_BETWEEN_LINES = 5.0


class Meter:
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
            f"{self._images / seconds:,.0f} images/s, {self._bytes / seconds / 1e6:,.0f} MB/s written, "
            f"{_duration(left)} left"
        )


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
