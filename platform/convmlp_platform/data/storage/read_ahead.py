"""Reading ahead: a process beside each rank that fetches the blocks of coming shuffle windows into the cache.

A process of its own and no thread, so that TLS and hashing never hold the interpreter lock of the training loop, and
so that forked readers inherit no half-done request. It is started with `subprocess` (`python -m` this module), needs no
import of torch, and ends with its parent however that dies. Readers that come first fetch for themselves: nothing
depends on it.

Its standard input brings one line of JSON, then the steps the rank reaches; its end means that the rank is gone.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

from pydantic import TypeAdapter

from convmlp_platform.data.sample_order import SampleOrder
from convmlp_platform.data.storage.block_cache import BlockCache, CacheOptions
from convmlp_platform.data.storage.remote import Block, RemoteStorage
from convmlp_platform.errors import DataError
from data_prep.dataset.manifest import ShardInfo

_MODULE = "convmlp_platform.data.storage.read_ahead"
_log = logging.getLogger(_MODULE)


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
        plan = _PLAN.dump_python(self, mode="json")
        with Progress(json.dumps({"plan": plan, "start": start, "stop": stop})) as progress:
            yield progress


_PLAN = TypeAdapter(ReadAhead)


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


# Steps whose samples are computed at once; the order's permutations are cheap in bulk.
_STEPS_AT_ONCE = 16


class ReadAheadWalk:
    """Goes through the rank's coming steps and fetches each block before its first use there."""

    def __init__(self, plan: ReadAhead, storage: RemoteStorage, start: int, stop: int) -> None:
        self.plan, self.storage, self.steps = plan, storage, range(start, stop)
        self._reached, self._gone = start, False
        self._news = threading.Condition()
        self._unread: deque[tuple[int, int]] = deque()

    def run(self) -> None:
        """Until the last step's blocks are there, or the rank is gone."""
        pool = ThreadPoolExecutor(self.plan.threads)
        under_way: deque[Future[None]] = deque()
        for step, block in self.first_uses():
            if not self._wait_for_room(step):
                break
            self._unread.append((step, block[2] - block[1]))
            under_way.append(pool.submit(self._ensure, block))
            # Not further: the order of first use is the order of fetching.
            if len(under_way) > 2 * self.plan.threads:
                under_way.popleft().result()
        pool.shutdown(cancel_futures=self._gone)

    def first_uses(self) -> Iterator[tuple[int, Block]]:
        """(step, block) for each block that the rank meets, again only when it has been unused for a window."""
        plan = self.plan
        forget_after = max(1, -(-plan.steps_ahead // max(plan.windows, 1)))
        last_use: dict[Block, int] = {}
        for first in range(self.steps.start, self.steps.stop, _STEPS_AT_ONCE):
            last_use = {block: step for block, step in last_use.items() if step >= first - forget_after}
            for step in range(first, min(first + _STEPS_AT_ONCE, self.steps.stop)):
                for block in self.storage.blocks(self._samples(step)):
                    if block not in last_use:
                        yield step, block
                    last_use[block] = step

    def reached(self, step: int) -> None:
        """The rank is at this step: what it used before counts as read."""
        with self._news:
            self._reached = step
            self._news.notify()

    def end(self) -> None:
        """The rank is gone."""
        with self._news:
            self._gone = True
            self._news.notify()

    def _wait_for_room(self, step: int) -> bool:
        """Until `step` is near enough and little enough is fetched and unread; False if the rank is gone."""
        with self._news:
            while not self._gone:
                while self._unread and self._unread[0][0] < self._reached:
                    self._unread.popleft()
                waiting = sum(size for _, size in self._unread)
                near = step <= self._reached + self.plan.steps_ahead
                if near and (waiting < self.plan.max_bytes or not self._unread):
                    return True
                self._news.wait()
            return False

    def _samples(self, step: int) -> list[int]:
        size = self.plan.micro_batch_size
        found: list[int] = []
        for number in self.plan.numbers:
            _, samples = self.plan.order.step_samples(step, self.plan.global_batch_size, number * size, size)
            found += samples.tolist()
        return found

    def _ensure(self, block: Block) -> None:
        """Its readers meet an error again, and report it; here the next block may do better."""
        try:
            self.storage.ensure(block)
        except DataError as error:
            _log.warning("reading ahead: %s", error)


def _listen(walk: ReadAheadWalk) -> None:
    for line in sys.stdin:
        walk.reached(int(line))
    # The rank is gone, perhaps killed: what is half fetched is fetched anew by whoever needs it.
    os._exit(0)


def main() -> None:
    """Read the request from standard input and walk."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    request = json.loads(sys.stdin.readline())
    plan = _PLAN.validate_python(request["plan"])
    storage = RemoteStorage(plan.url, plan.shards, BlockCache(plan.cache), plan.order.block)
    walk = ReadAheadWalk(plan, storage, request["start"], request["stop"])
    threading.Thread(target=_listen, args=(walk,), daemon=True).start()
    _die_with_parent()
    walk.run()


def _die_with_parent() -> None:
    """A forked reader of the rank may keep the pipe's other end open after the rank was killed."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            threading.Event().wait(2.0)
        os._exit(0)

    threading.Thread(target=watch, daemon=True).start()


if __name__ == "__main__":
    main()
