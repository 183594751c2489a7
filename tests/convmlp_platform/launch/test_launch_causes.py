"""Who is to blame for a failed attempt, and what for."""

from __future__ import annotations

import errno
import signal
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from convmlp_platform.errors import CheckpointError, ConfigError, DataError, NumbersError
from convmlp_platform.launch.causes import Ending, headline, kind_of, patience, verdict

CONSEQUENCES = (
    "RuntimeError: [../third_party/gloo/gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.2]:4711",
    "DistBackendError: NCCL error in: ProcessGroupNCCL.cpp:3356, remote process exited or there was a network error",
    "ConnectionResetError: [Errno 104] Connection reset by peer",
    "BrokenPipeError: [Errno 32] Broken pipe",
)


def error(rank: int, text: str, **facts: Any) -> Ending:
    return Ending(rank, f"host-{rank}", "error", headline=text, message=text, **facts)


def killed(rank: int, number: int = signal.SIGKILL, **facts: Any) -> Ending:
    return Ending(rank, f"host-{rank}", "died", signal=number, code=-number, **facts)


def lost(rank: int) -> Ending:
    return Ending(rank, f"host-{rank}", "lost", lost="was lost with its node")


consequences = st.builds(
    lambda rank, text, at: error(rank, text, at=at),
    st.integers(0, 7),
    st.sampled_from(CONSEQUENCES),
    st.floats(0, 100),
)
real = st.one_of(
    st.builds(lambda at: killed(9, at=at), st.floats(0, 100)),
    st.builds(lambda: lost(9)),
    st.builds(lambda at: error(9, "ValueError: seven", at=at), st.floats(0, 100)),
    st.builds(lambda at: error(9, "DataError: disk", cause="data", at=at), st.floats(0, 100)),
    st.builds(lambda at: error(9, "ConfigError: connection refused", cause="job", at=at), st.floats(0, 100)),
)


@given(others=st.lists(consequences, max_size=7), culprit=real, place=st.integers(0, 7))
def test_a_consequence_is_never_the_culprit(others: list[Ending], culprit: Ending, place: int) -> None:
    endings = [*others[:place], culprit, *others[place:]]
    found = verdict(endings)
    assert found.culprit is culprit
    assert "worker 9 on host-9" in found.message
    assert patience(endings) < 1


@given(st.lists(consequences, min_size=1, max_size=7))
def test_consequences_alone_are_waited_on_and_then_hardware(endings: list[Ending]) -> None:
    assert patience(endings) > 1
    assert verdict(endings).cause == "hardware"


@pytest.mark.parametrize(
    ("ending", "cause", "words"),
    [
        (killed(1, step=120), "hardware", "worker 1 on host-1 was killed by SIGKILL at step 120"),
        (killed(0, out_of_memory=True), "hardware", "was killed by SIGKILL, out of memory while starting"),
        (killed(0, signal.SIGSEGV), "hardware", "SIGSEGV"),
        (killed(0, signal.SIGTERM), "preemption", "SIGTERM"),
        (replace(lost(2), cause="preemption"), "preemption", "worker 2"),
        (lost(2), "hardware", "worker 2 on host-2 was lost with its node"),
        (error(1, "ValueError: seven", step=3), "code", "worker 1 on host-1 failed at step 3: ValueError: seven"),
        (error(1, "NumbersError: nan", cause="numbers"), "numbers", "nan"),
        (Ending(0, "h", "died", code=7), "code", "ended with exit code 7 and no word"),
    ],
)  # fmt: skip
def test_what_happened_is_told(ending: Ending, cause: str, words: str) -> None:
    found = verdict([ending])
    assert found.cause == cause
    assert words in found.message


def test_ranks_that_were_told_to_stop_are_preempted_and_those_at_the_end_are_not() -> None:
    told = [Ending(rank, "h", "stopped", step=40, reason="SIGTERM") for rank in (0, 1)]
    assert verdict(told).cause == "preemption"
    assert "SIGTERM" in verdict(told).message
    assert verdict([Ending(0, "h", "finished"), Ending(1, "h", "finished")]).cause == "finished"


def test_the_first_of_two_alike_is_the_culprit() -> None:
    found = verdict([killed(0, at=5.0), killed(1, at=4.9)])
    assert found.culprit is not None
    assert found.culprit.rank == 1


def test_a_watchdogs_abort_explains_less_than_the_death_it_saw() -> None:
    found = verdict([killed(0, signal.SIGABRT, at=1.0), error(1, "ValueError: seven", at=2.0)])
    assert found.cause == "code"


def raised_from(outer: Exception, inner: Exception) -> Exception:
    outer.__cause__ = inner
    return outer


@pytest.mark.parametrize(
    ("exception", "cause"),
    [
        (ValueError("seven"), "code"),
        (ConfigError("lr"), "job"),
        (NumbersError("nan"), "numbers"),
        (DataError("shard train-3.tar: its SHA-256 is not the manifest's"), "job"),
        (DataError("shard train-3.tar can't be read: Stale file handle"), "data"),
        (OSError(errno.EIO, "Input/output error"), "data"),
        (TimeoutError(), "data"),
        (FileNotFoundError(errno.ENOENT, "no such file"), "code"),
        (raised_from(CheckpointError("can't write"), OSError(errno.ENOSPC, "No space")), "data"),
        (raised_from(CheckpointError("can't write"), PermissionError(errno.EACCES, "denied")), "job"),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed."), "hardware"),
    ],
)
def test_what_an_exception_stands_for(exception: Exception, cause: str) -> None:
    assert kind_of(exception) == cause


def test_the_headline_is_one_line() -> None:
    assert headline(ValueError("one\ntwo")) == "ValueError: one"
    assert headline(KeyboardInterrupt()) == "KeyboardInterrupt"
