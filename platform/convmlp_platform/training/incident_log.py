"""A run's incidents in MLflow: as artifacts under `incidents/`, and the newest in words as a tag."""

from __future__ import annotations

from pathlib import Path

from convmlp_platform.tracking.journal import artifact_folders
from convmlp_platform.tracking.state import journal_path
from convmlp_platform.tracking.tracker import Tracker
from convmlp_platform.training.incidents import WEIGHTS, read_incidents
from convmlp_platform.training.run_folder import RunFolder


def log_incident(tracker: Tracker, incident: Path) -> None:
    """Upload an incident's files, but no weights: they stay in the run's folder, where a replay finds them."""
    for file in sorted(incident.iterdir()):
        if file.name != WEIGHTS:
            tracker.log_artifact(file, _folder_of(incident))


def log_new_incidents(tracker: Tracker, folder: RunFolder) -> None:
    """Log what others have recorded since: the supervisor finds hangs, and has no tracker."""
    found = read_incidents(folder.incidents)
    if not found:
        return
    known = artifact_folders(journal_path(folder.path))
    for incident in found:
        if _folder_of(incident.path) not in known:
            log_incident(tracker, incident.path)
    last = found[-1]
    message = str(last.facts.get("message", ""))
    tracker.set_tags(
        {"incidents": str(len(found)), "incidents.last": f"{last.kind} at step {last.step}: {message}"}
    )


def _folder_of(incident: Path) -> str:
    return f"incidents/{incident.name}"
