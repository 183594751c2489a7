"""The log of promotions: of writers at once just those decisions hold that were compared with the champion of now."""

from __future__ import annotations

import multiprocessing
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from random import Random
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from convmlp_platform.config.sections.execution import TrackingTarget
from convmlp_platform.errors import ConfigError, TrackingError
from convmlp_platform.registry import decision_log
from convmlp_platform.registry.decision_log import (
    Decision,
    champion_at,
    expect_in_step,
    in_force,
    last_living,
    read_log,
    reigns,
)
from convmlp_platform.registry.promotions import PromotionDesk
from convmlp_platform.tracking.mlflow.client import open_client

ALIAS = "champion"


def entry(held: str | None, version: str, kind: Any = "promoted", number: int = 0) -> Decision:
    return Decision(kind, ALIAS, held, version, "somebody", "a reason", number=number, at=100.0 + number)


# --- every interleaving of writers, one operation of the registry at a time ---------------------------


class Killed(Exception):
    """A process that ends before its next operation."""


@dataclass
class Registry:
    """What the log needs of MLflow's client. Operations come one by one, in an order that `chance` draws."""

    chance: Random
    deadly: int = -1
    """The operation at which its writer dies; -1: none."""
    aliases: dict[str, str] = field(default_factory=dict)
    entries: list[SimpleNamespace] = field(default_factory=list)
    _turn: threading.Condition = field(default_factory=threading.Condition)
    _waiting: set[int] = field(default_factory=set)
    _chosen: int | None = None
    _done: int = 0

    def _operation(self) -> None:
        own = threading.get_ident()
        with self._turn:
            self._waiting.add(own)
            self._turn.notify_all()
            assert self._turn.wait_for(lambda: self._chosen == own, 60)
            self._waiting.discard(own)
            self._chosen = None
            self._done += 1
            if self._done == self.deadly:
                raise Killed

    def play(self, *writers: Callable[[], object]) -> None:
        def ends(writer: Callable[[], object]) -> None:
            with suppress(Killed):
                writer()
            with self._turn:
                running.discard(threading.get_ident())
                self._turn.notify_all()

        threads = [threading.Thread(target=ends, args=[writer]) for writer in writers]
        running: set[int | None] = set()
        with self._turn:
            for thread in threads:
                thread.start()
                running.add(thread.ident)
            while running:
                if self._chosen is None and running and self._waiting == running:
                    self._chosen = self.chance.choice(sorted(self._waiting))
                    self._turn.notify_all()
                self._turn.wait(60)
        for thread in threads:
            thread.join()

    def create_registered_model(self, *_: Any, **__: Any) -> None:
        self._operation()

    def get_registered_model(self, _name: str) -> SimpleNamespace:
        self._operation()
        return SimpleNamespace(aliases=dict(self.aliases))

    def set_registered_model_alias(self, _name: str, alias: str, version: str) -> None:
        self._operation()
        self.aliases[alias] = version

    def get_model_version(self, _name: str, version: str) -> SimpleNamespace:
        self._operation()
        return SimpleNamespace(version=version)

    def create_model_version(self, _name: str, *, tags: dict[str, str], **_: Any) -> SimpleNamespace:
        self._operation()
        number = len(self.entries) + 1
        made = SimpleNamespace(version=str(number), tags=dict(tags), creation_timestamp=1000 * number)
        self.entries.append(made)
        return made

    def set_model_version_tag(self, _name: str, number: str, key: str, value: str) -> None:
        self._operation()
        self.entries[int(number) - 1].tags[key] = value

    def search_model_versions(self, *_: Any, **__: Any) -> Any:
        self._operation()
        return Page([SimpleNamespace(**vars(one) | {"tags": dict(one.tags)}) for one in self.entries])


class Page(list[Any]):
    token = None


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 2**32), st.integers(2, 3), st.one_of(st.just(-1), st.integers(1, 60)))
def test_whatever_comes_between_the_alias_is_the_logs(seed: int, writers: int, deadly: int) -> None:
    registry = Registry(Random(seed), deadly)
    client, told, said = cast(Any, registry), list[tuple[int, bool]](), list[str]()

    def write(writer: int) -> None:
        for place in range(3):
            held = decision_log.holder(client, "m", ALIAS)
            made, moved = decision_log.decide(client, "m", entry(held, f"{writer}{place}"))
            told.append((made.number, moved))

    def look() -> None:
        """Whoever comes next finds what a dead one has left: an alias to be set, or one to be said."""
        try:
            expect_in_step(client, "m", ALIAS)
        except TrackingError as error:
            said.append(str(error))

    registry.play(*(partial(write, number) for number in range(writers)))
    registry.deadly = -1
    log: list[Decision] = []
    registry.play(look)
    registry.play(lambda: log.extend(read_log(client, "m")))
    moved = in_force(log, ALIAS)
    assert said or registry.aliases[ALIAS] == moved[-1].version
    assert deadly >= 0 or (not said and len(log) == 3 * writers == len(told))
    assert [one.held for one in moved[1:]] == [one.version for one in moved[:-1]]
    assert {number for number, done in told if done} <= {one.number for one in moved}
    assert {number for number, done in told if not done}.isdisjoint(one.number for one in moved)


def test_only_what_was_compared_with_the_champion_holds() -> None:
    log = [
        entry(None, "1", number=1),
        entry("1", "2", number=2),
        entry("1", "3", number=3),
        entry("2", "4", "refused", number=4),
        entry("2", "1", "rolled back", number=5),
        entry("7", "5", "adopted", number=6),
        entry("5", "6", number=7),
    ]
    assert [one.number for one in in_force(log, ALIAS)] == [1, 2, 5, 6, 7]
    assert [(one.version, one.since, one.until) for one in reigns(log, ALIAS)] == [
        ("1", 101.0, 102.0),
        ("2", 102.0, 105.0),
        ("1", 105.0, 106.0),
        ("5", 106.0, 107.0),
        ("6", 107.0, None),
    ]
    found = [champion_at(log, ALIAS, moment) for moment in (100.9, 101.0, 103.5, 105.5, 999.0)]
    assert [one and one.version for one in found] == [None, "1", "2", "1", "6"]
    assert in_force(log, "other") == reigns(log, "other") == reigns([], ALIAS) == []


# --- a real registry -----------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def without_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decision_log, "_QUIET_S", 0.01)


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('registry')}/mlflow.db"


@pytest.fixture
def desk(
    uri: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[PromotionDesk]:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    name = request.node.name.partition("[")[0].removeprefix("test_")
    client = open_client(uri)
    client.create_registered_model(name)
    for number in range(4):
        client.create_model_version(name, source=f"s3://nowhere/{number}")
    with PromotionDesk(TrackingTarget(uri=uri), name) as opened:
        yield opened


def test_history_rollback_and_the_champion_of_a_day(desk: PromotionDesk) -> None:
    assert desk.champion().version is None
    assert [
        desk.decide(entry(held, version))[1] for held, version in ((None, "1"), ("1", "2"), ("1", "3"))
    ] == [*(True, True, False)]
    assert desk.champion().version == "2"
    assert not desk.decide(entry("2", "3", "refused"))[1]
    back = desk.roll_back("me", "it was wrong at night")
    assert (back.held, back.version, desk.champion().version) == ("2", "1", "1")
    assert [one.kind for one in desk.history()] == [*["promoted"] * 3, "refused", "rolled back"]
    with pytest.raises(ConfigError, match="/3 was never champion"):
        desk.roll_back("me", "x", to="3")
    with pytest.raises(
        ConfigError, match="has no version or alias '9'; its aliases: champion; its versions: 1, 2, 3, 4"
    ):
        desk.version_of("9")


def test_a_champion_that_was_deleted_is_not_forgotten(desk: PromotionDesk) -> None:
    desk.decide(entry(None, "1"))
    desk.decide(entry("1", "2"))
    desk.client.delete_model_version(desk.name, "2")
    held = desk.champion()
    assert (held.version, held.compared_with) == ("2", "1")
    assert "version 2, the champion, was deleted: compared with version 1, before it" in held.note
    assert desk.decide(entry("2", "3"))[1] and desk.champion().version == "3"
    for version in ("1", "3"):
        desk.client.delete_model_version(desk.name, version)
    assert desk.champion().compared_with is None


def test_an_alias_that_was_moved_by_hand_is_said_and_adopted(desk: PromotionDesk) -> None:
    desk.client.set_registered_model_alias(desk.name, ALIAS, "4")  # by a release before there was a log
    assert desk.champion().version == "4"
    desk.decide(entry("4", "1"))
    desk.client.set_registered_model_alias(desk.name, ALIAS, "2")
    with pytest.raises(
        TrackingError, match=r"is version 2, but by the log .* it is version 1: .*registry adopt"
    ):
        desk.champion()
    desk.adopt("me", "it was I")
    assert desk.champion().version == "2"
    desk.client.set_registered_model_alias(desk.name, ALIAS, "3")
    desk.roll_back("me", "no", to="2")
    assert desk.champion().version == "2" and desk.history()[-1].kind == "rolled back"


def test_an_entry_that_somebody_has_edited_is_named(desk: PromotionDesk) -> None:
    desk.decide(entry(None, "1"))
    log = decision_log.log_name(desk.name)
    desk.client.set_model_version_tag(log, "1", "decision", '{"kind": "promoted"}')
    with pytest.raises(TrackingError, match=rf"models:/{log}/1: tag decision is not what was written"):
        desk.history()


def promote_often(uri: str, name: str, versions: list[str]) -> None:
    with PromotionDesk(TrackingTarget(uri=uri), name) as opened:
        for version in versions:
            while not opened.decide(entry(opened.champion().version, version))[1]:
                pass


@pytest.mark.slow
def test_two_processes_at_once_leave_one_history(desk: PromotionDesk, uri: str) -> None:
    for number in range(4, 13):
        desk.client.create_model_version(desk.name, source=f"s3://nowhere/{number}")
    context = multiprocessing.get_context("spawn")
    halves = [[str(number) for number in range(first, 13, 2)] for first in (1, 2)]
    processes = [context.Process(target=promote_often, args=(uri, desk.name, half)) for half in halves]
    for process in processes:
        process.start()
    for process in processes:
        process.join(180)
        assert process.exitcode == 0
    log = desk.history()
    moved = in_force(log, ALIAS)
    assert sorted(one.version for one in moved) == sorted(str(number) for number in range(1, 13))
    assert [one.held for one in moved] == [None, *(one.version for one in moved[:-1])]
    assert decision_log.holder(desk.client, desk.name, ALIAS) == moved[-1].version
    assert [one.number for one in log] == list(range(1, len(log) + 1))
    assert [one.version for one in reigns(log, ALIAS)] == [one.version for one in moved]
    assert last_living(desk.client, desk.name, log, ALIAS) == moved[-1].version
    assert expect_in_step(desk.client, desk.name, ALIAS) == (
        read_log(desk.client, desk.name),
        moved[-1].version,
    )
