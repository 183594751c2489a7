"""Who is to blame for a failed attempt, and what for."""

from __future__ import annotations

import errno
import json
import os
import signal
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from convmlp_platform.config.sections.resilience import RestartsSection
from convmlp_platform.errors import CheckpointError, ConfigError, DataError, NumbersError, StorageUnreachable
from convmlp_platform.launch.supervisor.restarts import Budgets
from convmlp_platform.launch.supervisor.verdict import patience, verdict
from convmlp_platform.launch.workers.training_process import failed
from convmlp_platform.launch.workers.worker_report import Ending, Exit, Report, ending_of


def error(rank: int, text: str, **facts: Any) -> Ending:
    return Ending(rank, f"host-{rank}", "error", headline=text, message=text, **facts)


def killed(rank: int, number: int = signal.SIGKILL, **facts: Any) -> Ending:
    return Ending(rank, f"host-{rank}", "died", signal=number, code=-number, **facts)


def lost(rank: int) -> Ending:
    return Ending(rank, f"host-{rank}", "lost", lost="was lost with its node")


consequences = st.builds(
    lambda rank, at: error(rank, "RuntimeError: Connection closed by peer", at=at, peer=True),
    st.integers(0, 7),
    st.floats(0, 100),
)
real = st.one_of(
    st.builds(lambda at: killed(9, at=at), st.floats(0, 100)),
    st.builds(lambda: lost(9)),
    st.builds(lambda at: error(9, "ValueError: seven", at=at), st.floats(0, 100)),
    st.builds(
        lambda at: error(9, "StorageUnreachable: connection reset", cause="storage", at=at), st.floats(0, 100)
    ),
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


@pytest.mark.parametrize(
    ("exception", "cause"),
    [
        (DataError("s3://b/x is cut: EndpointConnectionError: Connection refused"), "data"),
        (StorageUnreachable("http://host/x: ClientConnectorError: Connection reset by peer"), "storage"),
        (StorageUnreachable("access is refused", cause="job"), "job"),
        (CheckpointError("step-120 isn't committed: the storage is slow", cause="storage"), "storage"),
        (ConfigError("connection refused"), "job"),
        (NumbersError("nan"), "numbers"),
        (RuntimeError("Tensor mlp_connection closed over gloo_weights is NaN"), "code"),
        (KeyError("nccl_blocks"), "code"),
        (ValueError("DataLoader worker (pid 7) is killed by signal: Killed."), "code"),
        (ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"), "storage"),
    ],
)
def test_a_verdict_follows_the_class_and_not_the_text(exception: Exception, cause: str) -> None:
    ending = ended(exception)
    assert not ending.is_consequence
    found = verdict([ending, error(2, "RuntimeError: Connection closed by peer", peer=True)])
    assert (found.cause, found.culprit) == (cause, ending)
    decision = Budgets(RestartsSection()).decide(found.cause, 0.0)
    assert decision.restart == (cause in ("storage", "code"))


def ended(exception: Exception) -> Ending:
    """As its agent reports a process that raised this."""
    outcome = json.loads(json.dumps(failed(exception)))
    report = Report(1, 7, "X", None, {}, Exit(1, 1.0, outcome, False, ()), (), None)
    return ending_of(1, "host-1", report)


@pytest.mark.parametrize(
    "exception", [DataError("x", details={"a": [1]}), StorageUnreachable("y", cause="job")]
)
def test_the_last_error_of_a_run_is_the_workers(exception: DataError) -> None:
    found = verdict([ended(exception)])
    error = found.error("")
    assert type(error) is type(exception)
    assert (str(error), error.cause, error.details) == (str(exception), exception.cause, exception.details)


def test_an_outage_that_outlasts_the_budget_ends_the_run_as_one_of_the_storage() -> None:
    found = verdict([ended(StorageUnreachable("s3://b/x: gave up after 20 tries in 120 s"))])
    error = found.error("launch.restarts.storage (=10 in 24 h) is used up")
    assert error.cause == "storage"
    assert "gave up after 20 tries in 120 s; launch.restarts.storage" in str(error)
    assert "Traceback" not in str(error)


class Lives(torch.utils.data.Dataset[int]):
    """Its second item kills the reader."""

    def __getitem__(self, item: int) -> int:
        if item:
            os.kill(os.getpid(), signal.SIGKILL)
        return item

    def __len__(self) -> int:
        return 2


def test_a_reader_that_was_killed_is_the_machines_fault() -> None:
    with pytest.raises(RuntimeError) as raised:
        list(torch.utils.data.DataLoader(Lives(), num_workers=1, multiprocessing_context="fork"))
    assert failed(raised.value)["cause"] == "hardware"


@pytest.mark.parametrize(
    ("number", "cause"), [(214, "hardware"), (999, "hardware"), (710, "code"), (700, "code")]
)
def test_a_broken_gpu_is_told_by_cudas_number(number: int, cause: str) -> None:
    error = torch.AcceleratorError("CUDA error: uncorrectable ECC error encountered")
    error.error_code = number  # type: ignore[attr-defined]
    assert failed(error)["cause"] == cause


def test_the_headline_is_one_line() -> None:
    assert failed(ValueError("one\ntwo"))["headline"] == "ValueError: one"
    assert failed(KeyboardInterrupt())["headline"] == "KeyboardInterrupt"
