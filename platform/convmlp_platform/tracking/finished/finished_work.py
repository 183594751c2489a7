"""Work that is done and has a folder, as an MLflow run: a journal beside its files, written at once and sent once.

The journal's id is made of the work, so its run is found again by its tag and logged once, however often it is sent.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

from convmlp_platform.config.sections.execution import TrackingTarget
from convmlp_platform.errors import TrackingError
from convmlp_platform.tracking.delivery_state import (
    Target,
    journal_path,
    load_feed,
    load_target,
    save_target,
    tracking_folder,
    without_secrets,
)
from convmlp_platform.tracking.journal import Record
from convmlp_platform.tracking.mlflow.feeder import Feeder
from convmlp_platform.tracking.mlflow.server import silence
from convmlp_platform.tracking.mlflow.tracking_uri import tracking_uri
from data_prep.storage.files import write_atomically

SEND_SECONDS = 60.0
"""Given to a server that answers; one that fails is given up after 10 s (`replayer.GIVE_UP_SECONDS`)."""


class FinishedWork:
    """Keeps and sends the journal of one piece of work.

    Args:
        section: where to.
        folder: of the work; the journal gets its own folder in it.
        run_name: of the MLflow run.
        identity: hexadecimal digits that no other work has.
        what: "this preparation", for messages.
    """

    def __init__(
        self, section: TrackingTarget, folder: Path, run_name: str, identity: str, *, what: str
    ) -> None:
        self._section, self._folder, self._what = section, folder, what
        self._uri = tracking_uri(section)
        self._target = Target(
            uri=without_secrets(self._uri),
            experiment=section.experiment,
            run_name=run_name,
            journal_id=identity,
        )

    def logged_run(self) -> str | None:
        """The id of the run that has all of this work; None while there is anything to do."""
        if not self.is_recorded or load_target(self._folder) != self._target:
            return None
        return sent_to(self._folder)

    def write_journal(self, records: Iterable[Record]) -> None:
        """Write what is to be sent, unless this work's journal stands there already.

        Raises:
            TrackingError: the folder can't be written.
        """
        try:
            if not self.is_recorded:
                shutil.rmtree(tracking_folder(self._folder), ignore_errors=True)
                tracking_folder(self._folder).mkdir()
                lines = [record.model_dump_json() + "\n" for record in records]
                write_atomically(journal_path(self._folder), "".join(lines).encode())
            save_target(self._folder, self._target)
        except OSError as error:
            raise TrackingError(
                f"{self._what} can't be recorded in {tracking_folder(self._folder)}: {error.strerror or error}"
            ) from None

    def send(self, timeout: float = SEND_SECONDS) -> str:
        """Send what was recorded; the run's id.

        Raises:
            TrackingError: MLflow doesn't take it now; nothing is lost, and the message says how to send it later.
        """
        reason = silence(self._uri)
        if reason is None:
            feeder = Feeder(self._folder, self._uri)
            feeder.ensure_alive()
            if feeder.close(timeout) and (run_id := load_feed(self._folder).run_id):
                return run_id
            reason = "it didn't take everything"
        raise TrackingError(
            f"MLflow at {without_secrets(self._uri)} doesn't have {self._what} yet ({reason}); "
            f"`convmlp replay-tracking {self._folder}` sends it"
        )

    @property
    def is_recorded(self) -> bool:
        """A journal of just this work is there; the target is written after it, so it is whole."""
        try:
            known = load_target(self._folder)
        except TrackingError:
            return False
        return known.journal_id == self._target.journal_id and journal_path(self._folder).is_file()


def sent_to(folder: Path) -> str | None:
    """The id of the run that has all of the journal in this folder; None: some of it isn't sent, or there is none."""
    try:
        target = load_target(folder)
        size = journal_path(folder).stat().st_size
    except (TrackingError, OSError):
        return None
    state = load_feed(folder)
    sent = state.address == target.address and state.has_all(size)
    return state.run_id if sent else None
