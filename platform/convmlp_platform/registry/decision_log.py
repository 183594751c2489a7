"""The log of promotions of a registered model: who moved its alias, when, from which version to which, and why.

MLflow sets an alias without asking what it was: of two promotions at once the later write wins, whatever either was
compared with. The log decides instead. Its entries are versions of a registered model of its own, NAME.decisions, whose
numbers the registry gives out one by one: they are in one order for everybody. An entry moves the alias only if the
version that it was compared with (`held`) is the champion by the entries before it. The alias follows the log: whoever
has appended reads the log again, writes the alias that it gives, and repeats until nothing has been appended meanwhile.
"""

from __future__ import annotations

import getpass
import json
import os
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Literal

from convmlp_platform.errors import TrackingError
from convmlp_platform.tracking.mlflow.client import versions_of
from data_prep.storage.json_files import DamagedJson, parse_json

if TYPE_CHECKING:
    from mlflow import MlflowClient

DecisionKind = Literal["promoted", "automatic", "rolled back", "adopted", "refused"]
"""`promoted`: after a comparison. `automatic`: by figures that training gave. `rolled back`: by a person, to an earlier
champion. `adopted`: the alias was set outside of the log, and a person confirmed it. `refused`: moves nothing."""

_SUFFIX = ".decisions"
_TAG, _APPLIED = "decision", "applied"
_LOG_OF = "convmlp.decisions_of"
_TRIES = 20
_QUIET_S = 0.2  # seconds after which an alias that differs from the log is looked at again


@dataclass(frozen=True)
class Decision:
    """One entry.

    Args:
        alias: that it is about, `champion`.
        held: the version that had the alias, and that the candidate was compared with; None: nobody had it.
        version: the candidate, or the version that gets the alias.
        who: the person or account. reason: one sentence.
        evidence: plain JSON values: the comparison's figures.
        number, at: its place in the log and unix seconds, by the registry; 0 before it is appended.
    """

    kind: DecisionKind
    alias: str
    held: str | None
    version: str
    who: str
    reason: str
    evidence: dict[str, Any] = field(default_factory=dict)
    number: int = 0
    at: float = 0.0
    applied: bool = False
    """Whether the alias was seen to have followed it."""

    def facts(self) -> dict[str, Any]:
        """All that is on record, as plain JSON values."""
        return {one.name: getattr(self, one.name) for one in fields(self) if one.name != "applied"}

    @property
    def moves(self) -> bool:
        """Whether it moves the alias, if `held` is right."""
        return self.kind != "refused"


@dataclass(frozen=True)
class _Stored:
    """The part of an entry that stands in its tag."""

    kind: DecisionKind
    alias: str
    held: str | None
    version: str
    who: str
    reason: str
    evidence: dict[str, Any]


@dataclass(frozen=True)
class Reign:
    """A version's time as champion; `until` is None for the one that is it now. Unix seconds."""

    version: str
    since: float
    until: float | None
    decision: Decision


def log_name(name: str) -> str:
    """The registered model that holds the log of `name`."""
    return name + _SUFFIX


def is_log(name: str) -> bool:
    """Whether a registered model is a log."""
    return name.endswith(_SUFFIX)


def in_force(decisions: Sequence[Decision], alias: str) -> list[Decision]:
    """The decisions that moved the alias, oldest first: each was compared with the champion of its time.

    The first of all is right whatever it was compared with: before it there was no log.
    """
    found: list[Decision] = []
    for one in sorted(decisions, key=lambda decision: decision.number):
        if one.alias != alias or not one.moves:
            continue
        if not found or one.held == found[-1].version or one.kind == "adopted":
            found.append(one)
    return found


def reigns(decisions: Sequence[Decision], alias: str) -> list[Reign]:
    """Every champion and its time, oldest first."""
    moved = in_force(decisions, alias)
    ends: list[float | None] = [one.at for one in moved[1:]]
    return (
        [Reign(one.version, one.at, until, one) for one, until in zip(moved, [*ends, None], strict=True)]
        if moved
        else []
    )


def champion_at(decisions: Sequence[Decision], alias: str, moment: float) -> Reign | None:
    """The champion at `moment` (unix seconds); None before the first."""
    before = [one for one in reigns(decisions, alias) if one.since <= moment]
    return before[-1] if before else None


def read_log(client: MlflowClient, name: str) -> list[Decision]:
    """All entries of a model's log, oldest first; empty where there is none.

    Raises:
        TrackingError: an entry can't be read: it names the version of NAME.decisions.
        MlflowException: the server's.
    """
    found = [
        _parsed(version, name)
        for version in versions_of(client, log_name(name))
        if _TAG in version.tags  # an entry is there once its tag is
    ]
    return sorted(found, key=lambda decision: decision.number)


def append(client: MlflowClient, name: str, decision: Decision) -> Decision:
    """Append an entry; returns it with its place and time.

    Raises:
        TrackingError: the registry has given no number in many tries.
        MlflowException: the server's.
    """
    from mlflow.exceptions import MlflowException

    log = log_name(name)
    _ensure(client, log, name)
    content = {one.name: getattr(decision, one.name) for one in fields(_Stored)}
    tags = {_TAG: json.dumps(content, sort_keys=True, allow_nan=False)}
    for attempt in range(_TRIES):
        try:
            version = client.create_model_version(
                log,
                source=f"models:/{name}/{decision.version}",
                tags=tags,
                description=f"{decision.kind}: {decision.reason}",
            )
        except MlflowException as error:
            # Many who append at once: MLflow gives up after three tries to take the next number.
            if attempt + 1 == _TRIES or "creation error" not in str(error).lower():
                raise
            time.sleep(0.05 * (attempt + 1))
        else:
            return _parsed(version, name)
    raise TrackingError(f"models:/{log} takes no new version")


def decide(client: MlflowClient, name: str, decision: Decision) -> tuple[Decision, bool]:
    """Append an entry and have the alias follow the log; the entry, and whether it moved the alias.

    It did not where another decision came between: then nothing has changed, and the comparison is to be made again
    with the champion of now.
    """
    entry = append(client, name, decision)
    decisions = follow_log(client, name, entry.alias)
    return entry, any(one.number == entry.number for one in in_force(decisions, entry.alias))


def follow_log(client: MlflowClient, name: str, alias: str) -> list[Decision]:
    """Set the alias to the log's champion, until nothing was appended meanwhile; returns the log.

    A champion whose version was deleted leaves the alias unset.
    """
    decisions = read_log(client, name)
    while True:
        moved = in_force(decisions, alias)
        if moved:
            _apply(client, name, alias, moved[-1])
        again = read_log(client, name)
        if len(again) == len(decisions):
            return again
        decisions = again


def _apply(client: MlflowClient, name: str, alias: str, last: Decision) -> None:
    if holder(client, name, alias) != last.version and _exists(client, name, last.version):
        client.set_registered_model_alias(name, alias, last.version)
    if not last.applied:
        client.set_model_version_tag(log_name(name), str(last.number), _APPLIED, "true")


def expect_in_step(client: MlflowClient, name: str, alias: str) -> tuple[list[Decision], str | None]:
    """The log and the champion: the alias's holder, as the log has it. An entry whose writer died before the alias
    followed it is followed now.

    Raises:
        TrackingError: the alias was moved outside of the log, and stays so.
    """
    for _ in range(5):
        decisions = read_log(client, name)
        moved, held = in_force(decisions, alias), holder(client, name, alias)
        if not moved or held == moved[-1].version:
            return decisions, held
        if held is None and not _exists(client, name, moved[-1].version):
            return decisions, None  # the champion was deleted
        if not moved[-1].applied:
            follow_log(client, name, alias)
        time.sleep(_QUIET_S)
    raise TrackingError(
        f"models:/{name}@{alias} is version {held or 'none'}, but by the log of its promotions it is version "
        f"{moved[-1].version}: it was moved without `convmlp registry`. `convmlp registry adopt {name}` records it "
        f"as it is, `convmlp registry rollback {name} --to {moved[-1].version}` sets the log's back"
    )


def holder(client: MlflowClient, name: str, alias: str) -> str | None:
    """The version that has the alias."""
    found = client.get_registered_model(name).aliases.get(alias)
    return None if found is None else str(found)


def last_living(client: MlflowClient, name: str, decisions: Sequence[Decision], alias: str) -> str | None:
    """The newest champion whose version still exists: whom to compare with where the champion was deleted."""
    for reign in reversed(reigns(decisions, alias)):
        if _exists(client, name, reign.version):
            return reign.version
    return None


def _exists(client: MlflowClient, name: str, version: str) -> bool:
    from mlflow.exceptions import MlflowException

    try:
        client.get_model_version(name, version)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return False
    return True


def _ensure(client: MlflowClient, log: str, name: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(
            log, tags={_LOG_OF: name}, description=f"Log of the promotions of {name}: one version an entry"
        )
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _parsed(version: Any, name: str) -> Decision:
    tags: Mapping[str, str] = version.tags
    where = f"models:/{log_name(name)}/{version.version}"
    try:
        stored = parse_json(tags[_TAG].encode(), _Stored)
    except DamagedJson as error:
        raise TrackingError(f"{where}: tag {_TAG} is not what was written: {error}") from None
    return Decision(
        **vars(stored),
        number=int(version.version),
        at=version.creation_timestamp / 1000,
        applied=tags.get(_APPLIED) == "true",
    )


def who() -> str:
    """The person or account that decides: CONVMLP_USER, or user@host."""
    if named := os.environ.get("CONVMLP_USER"):
        return named[:200]
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a number without a name, in a container
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"
