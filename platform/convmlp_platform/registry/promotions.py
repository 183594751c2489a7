"""A registered model as promotions see it: its versions, what they were trained on, its champion, its log."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from convmlp_platform.config.sections.execution import TrackingTarget
from convmlp_platform.errors import ConfigError, DataError, TrackingError
from convmlp_platform.registry import decision_log
from convmlp_platform.registry.decision_log import Decision, Reign
from convmlp_platform.tracking.mlflow.client import A_PAGE, every, fluent_at, open_client, versions_of
from convmlp_platform.tracking.mlflow.server import mlflow_errors
from convmlp_platform.tracking.mlflow.tracking_uri import tracking_uri

if TYPE_CHECKING:
    from mlflow import MlflowClient

SAMPLES_TAG, SAMPLES_FILE = "training.samples_sha256", "training_samples.bin"
SAMPLES_FOLDER = "lineage"


@dataclass(frozen=True)
class AliasHolder:
    """The alias now.

    Args:
        version: that has it, by the log; it may be deleted. None: nobody ever had.
        compared_with: the version that a candidate is compared with: the champion, or where it was deleted the newest
            champion before it that is still there. None: none is.
        note: says so where it was deleted.
    """

    version: str | None
    compared_with: str | None
    note: str = ""


class PromotionDesk:
    """Within `with`: one registered model, at one registry.

    Raises:
        TrackingError: the registry doesn't answer.
        ConfigError: it has no such model.
    """

    def __init__(self, section: TrackingTarget, name: str, alias: str = "champion") -> None:
        self.name, self.alias, self.uri = name, alias, tracking_uri(section)
        self._open = ExitStack()

    def __enter__(self) -> PromotionDesk:
        self._open.enter_context(
            mlflow_errors(self.uri, f"models:/{self.name} can't be looked up or changed")
        )
        self.client: MlflowClient = open_client(self.uri)
        self._expect_model()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        return self._open.__exit__(kind, error, trace)

    def _expect_model(self) -> None:
        from mlflow.exceptions import MlflowException

        try:
            if not decision_log.is_log(self.name):
                self.client.get_registered_model(self.name)
                return
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
        raise ConfigError(no_model(self.client, self.name))

    def version_of(self, wanted: str) -> str:
        """The number of a version that is named by alias or number.

        Raises:
            ConfigError: there is none.
        """
        model = self.client.get_registered_model(self.name)
        numbers = {str(one.version) for one in self.versions()}
        found = str(model.aliases.get(wanted, wanted))
        if found not in numbers:
            aliases = ", ".join(sorted(model.aliases)) or "none"
            raise ConfigError(
                f"models:/{self.name} has no version or alias {wanted!r}; its aliases: {aliases}; its versions: "
                f"{', '.join(sorted(numbers, key=int)) or 'none'}"
            )
        return found

    def versions(self) -> list[Any]:
        """All versions, oldest first."""
        return sorted(versions_of(self.client, self.name), key=lambda one: int(one.version))

    def tags_of(self, version: str) -> dict[str, str]:
        """The tags of a version."""
        return dict(self.client.get_model_version(self.name, version).tags)

    def champion(self) -> AliasHolder:
        """The alias's holder, as the log has it too.

        Raises:
            TrackingError: the alias was moved outside of the log.
        """
        decisions, held = decision_log.expect_in_step(self.client, self.name, self.alias)
        if held is not None:
            return AliasHolder(held, held)
        found = decision_log.reigns(decisions, self.alias)
        if not found:
            return AliasHolder(None, None)
        gone = found[-1].version
        rival = decision_log.last_living(self.client, self.name, decisions, self.alias)
        then = (
            "none of the champions before is left"
            if rival is None
            else f"compared with version {rival}, before it"
        )
        return AliasHolder(gone, rival, f"version {gone}, the champion, was deleted: {then}")

    def decide(self, decision: Decision) -> tuple[Decision, bool]:
        """Put a decision on record, and move the alias if it still holds; see `decision_log.decide`."""
        return decision_log.decide(self.client, self.name, decision)

    def history(self) -> list[Decision]:
        """All decisions, oldest first."""
        return decision_log.read_log(self.client, self.name)

    def champion_on(self, moment: datetime) -> Reign | None:
        """Who was champion at a moment."""
        return decision_log.champion_at(self.history(), self.alias, moment.astimezone(UTC).timestamp())

    def roll_back(self, who: str, reason: str, to: str | None = None) -> Decision:
        """Give the alias back to an earlier champion: the newest one that is still there, or version `to`.

        Raises:
            ConfigError: there is none, or `to` was never champion.
            TrackingError: another decision came between.
        """
        decisions = self.history()
        moved = decision_log.in_force(decisions, self.alias)
        held = moved[-1].version if moved else decision_log.holder(self.client, self.name, self.alias)
        numbers = {str(one.version) for one in self.versions()}
        earlier = [
            one.version for one in reversed(moved[:-1]) if one.version in numbers and one.version != held
        ]
        known = {one.version for one in moved}
        if to is not None and (to not in numbers or to not in known):
            raise ConfigError(
                f"models:/{self.name}/{to} was never {self.alias} or is deleted; these were and are there: "
                f"{', '.join(dict.fromkeys(earlier)) or 'none'}"
            )
        target = to or next(iter(earlier), None)
        if target is None:
            raise ConfigError(f"models:/{self.name} has no earlier {self.alias} to go back to")
        decision, done = self.decide(Decision("rolled back", self.alias, held, target, who, reason))
        if not done:
            raise TrackingError(
                f"models:/{self.name}@{self.alias} was moved by another decision meanwhile: look again"
            )
        return decision

    def adopt(self, who: str, reason: str) -> Decision:
        """Put on record that the alias is where somebody has set it.

        Raises:
            ConfigError: nobody has the alias.
        """
        held = decision_log.holder(self.client, self.name, self.alias)
        if held is None:
            raise ConfigError(f"models:/{self.name} has no {self.alias} to adopt")
        moved = decision_log.in_force(self.history(), self.alias)
        before = moved[-1].version if moved else None
        return self.decide(Decision("adopted", self.alias, before, held, who, reason))[0]

    def training_samples(self, version: str, into: Path) -> tuple[bytes | None, str]:
        """The record of what a version was trained on (registry.training_samples), or None and the reason.

        Raises:
            MlflowException, OSError: the artifact store fails.
        """
        found = self.client.get_model_version(self.name, version)
        wanted = found.tags.get(SAMPLES_TAG)
        if wanted is None or not found.run_id:
            return (
                None,
                "what it was trained on is not on record (registered by an older release, or by hand)",
            )
        with fluent_at(self.uri):
            path = self.client.download_artifacts(found.run_id, f"{SAMPLES_FOLDER}/{SAMPLES_FILE}", str(into))
        content = Path(path).read_bytes()
        if hashlib.sha256(content).hexdigest() != wanted:
            raise DataError(
                f"models:/{self.name}/{version}: the record of its training samples in run {found.run_id} is not what "
                "was registered"
            )
        return content, ""


def list_models(section: TrackingTarget) -> list[dict[str, Any]]:
    """Every registered model: name, number of versions, aliases (alias → version). Logs of promotions are left out.

    Raises:
        TrackingError: the registry doesn't answer.
    """
    uri = tracking_uri(section)
    with mlflow_errors(uri, "the registry can't be read"):
        client = open_client(uri)
        return [
            {
                "name": str(model.name),
                "versions": sum(1 for _ in versions_of(client, str(model.name))),
                "aliases": {str(alias): str(version) for alias, version in sorted(model.aliases.items())},
            }
            for model in _models(client)
        ]


def no_model(client: MlflowClient, name: str) -> str:
    """The sentence that there is no registered model `name`, and which there are."""
    known = ", ".join(sorted(str(model.name) for model in _models(client))) or "none yet"
    return f"no registered model is named {name!r}; there are: {known}"


def _models(client: MlflowClient) -> Iterator[Any]:
    """All registered models but the logs of promotions."""
    found: Iterator[Any] = every(
        lambda token: client.search_registered_models(max_results=A_PAGE, page_token=token)
    )
    return (model for model in found if not decision_log.is_log(model.name))
