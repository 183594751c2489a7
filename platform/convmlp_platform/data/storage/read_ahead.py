"""Reading ahead: a process beside each rank that fetches the blocks of coming shuffle windows into the cache.

A process of its own and no thread, so that TLS and hashing never hold the interpreter lock of the training loop, and
so that forked readers inherit no half-done request. It is started with `subprocess`, needs no import of torch, and
ends with its parent however that dies. Readers that come first fetch for themselves: nothing depends on it.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass

from convmlp_platform.data.order.sample_order import SampleOrder
from convmlp_platform.data.storage.block_cache import CacheOptions
from data_prep.dataset.manifest import ShardInfo

_log = logging.getLogger(__name__)
_MODULE = "convmlp_platform.data.storage.read_ahead_process"


@dataclass(frozen=True)
class ReadAhead:
    """The samples that one rank reads, and how far ahead of it to fetch.

    Args:
        url, shards: the split on remote storage.
        cache: the node's.
        order, global_batch_size, micro_batch_size, numbers: as in `TrainLoader`; `numbers` are the rank's real
            micro-batches (`share_of`).
        windows: shuffle windows of each stream to be ahead.
        max_bytes: fetched and not yet read, at most; half of the cache divided by the node's ranks, so that what
            is fetched isn't evicted before it is read.
        threads: requests under way.
    """

    url: str
    shards: Sequence[ShardInfo]
    cache: CacheOptions
    order: SampleOrder
    global_batch_size: int
    micro_batch_size: int
    numbers: tuple[int, ...]
    windows: int
    max_bytes: int
    threads: int = 8

    @property
    def steps_ahead(self) -> int:
        """Steps that `windows` shuffle windows of a stream last."""
        per_stream = self.global_batch_size // self.order.num_streams
        return -(-self.windows * self.order.window * self.order.repeats // per_stream)

    @contextmanager
    def running(self, start: int, stop: int) -> Iterator[Progress]:
        """Fetch for the steps start..stop-1 while the caller goes through them, telling where it is."""
        plan = {
            "url": self.url,
            "shards": [shard.model_dump() for shard in self.shards],
            "cache": {"dir": str(self.cache.dir), "bytes": self.cache.bytes},
            "order": asdict(self.order),
            "global_batch_size": self.global_batch_size,
            "micro_batch_size": self.micro_batch_size,
            "numbers": self.numbers,
            "windows": self.windows,
            "max_bytes": self.max_bytes,
            "threads": self.threads,
        }
        with Progress(json.dumps({"plan": plan, "start": start, "stop": stop})) as progress:
            yield progress


class Progress:
    """The line to the process: it is told the step the rank has reached."""

    def __init__(self, request: str) -> None:
        # The package may be importable only by this process's path (Ray's working_dir).
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        self.process = subprocess.Popen(
            [sys.executable, "-m", _MODULE], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, env=environment
        )
        assert self.process.stdin is not None
        self._pipe = self.process.stdin
        try:
            self._pipe.write(request.encode() + b"\n")
            self._pipe.flush()
        except BrokenPipeError:
            self._lost()
        os.set_blocking(self._pipe.fileno(), False)

    def reached(self, step: int) -> None:
        """The rank takes this step now. Never waits: if the process is too busy to listen, the next step tells."""
        try:
            os.write(self._pipe.fileno(), b"%d\n" % step)
        except BlockingIOError:
            return
        except BrokenPipeError:
            self._lost()

    def _lost(self) -> None:
        _log.warning("reading ahead has ended; readers fetch for themselves")
        self.reached = lambda step: None  # type: ignore[method-assign]

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        self._pipe.close()
