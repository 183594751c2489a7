"""`convmlp reproduce models:/NAME@champion`: rebuild, say what is at hand, train again, compare the weights."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from convmlp_platform.config.sections.execution import TrackingTarget
from convmlp_platform.errors import ConfigError
from convmlp_platform.jobs.run_job import launch
from convmlp_platform.models.bundle import WEIGHTS_NAME
from convmlp_platform.registry.lineage.read_lineage import read_lineage
from convmlp_platform.registry.lineage.stored_files import RegisteredWeights, registered_weights
from convmlp_platform.reproduction.at_hand import AtHand, at_hand
from convmlp_platform.reproduction.equal_weights import WeightsComparison, compare_weights
from convmlp_platform.reproduction.rebuild import REBUILT_JOB, TAG, Rebuilt, Wishes, rebuild
from convmlp_platform.runs.run_folder import last_job, run_path
from convmlp_platform.tracking.provenance.submitted_job import as_json, given_job
from data_prep.console import say, some_of
from data_prep.storage.files import write_atomically

NOT_EQUAL = 3
"""Exit code: it was trained again, and the weights are not equal; with `check_only`: they can't be expected to be."""
FINDINGS, VERDICT = "at_hand.json", "verdict.json"
_SIGNS = {"same": "same", "differs": "DIFFERS", "unknown": "unknown", "missing": "MISSING"}
_SHOWN = 5


def reproduce(
    uri: str, wishes: Wishes, section: TrackingTarget | None = None, *, check_only: bool, use_ray: bool
) -> int:
    """Train a registered version again, by the ordinary path; 0: the weights are equal, 3: they are not.

    Args:
        uri: `models:/NAME@ALIAS` or `models:/NAME/3`.
        wishes: without a name the run is `reproduce-NAME-3`.
        check_only: leave off before training; 0: everything is at hand and the same, 3: something differs or is
            unknown.
        use_ray: on Ray; else in this process, alone.

    Raises:
        PlatformError: something is missing, said before anything starts; or training failed.
    """
    section = section or TrackingTarget()
    lineage = read_lineage(uri, section)
    name, _, version = lineage.uri.removeprefix("models:/").rpartition("/")
    wishes = Wishes(
        wishes.name or f"reproduce-{name}-{version}", wishes.dataset, wishes.register, wishes.overrides
    )
    with tempfile.TemporaryDirectory(prefix="convmlp-reproduce-") as scratch:
        weights = registered_weights(lineage.uri, section, _new(scratch, "registered"))
        rebuilt = rebuild(lineage, section, wishes)
        findings = [*at_hand(rebuilt, _new(scratch, "start")), _weights_finding(weights)]
        findings += _way(rebuilt, use_ray)
        _tell(rebuilt, findings)
        _expect_possible(rebuilt, findings, wishes.name)
        if check_only:
            return 0 if all(one.kind == "same" for one in findings) else NOT_EQUAL
        if not use_ray:
            _use_threads(rebuilt)
        file = rebuilt.folder / REBUILT_JOB
        code = launch(rebuilt.job, use_ray=use_ray, given=given_job(file, ()))
        if code:
            return code
        found = compare_weights(weights.file, run_path(rebuilt.job) / "best" / WEIGHTS_NAME)
    write_atomically(rebuilt.folder / VERDICT, as_json({"version": lineage.uri, **asdict(found)}))
    for line in _verdict(rebuilt, findings, found):
        say(line)
    return 0 if found.equal else NOT_EQUAL


def _use_threads(rebuilt: Rebuilt) -> None:
    """In this process, as many threads as the run's workers had: sums are split between them."""
    import torch

    if rebuilt.run.device == "cpu":
        torch.set_num_threads(rebuilt.job.launch.cpus_per_worker)


def _new(scratch: str, name: str) -> Path:
    folder = Path(scratch) / name
    folder.mkdir()
    return folder


def _weights_finding(weights: RegisteredWeights) -> AtHand:
    what = "registered weights"
    if weights.recorded is None:
        return AtHand("unknown", what, f"sha256:{weights.sha256}; what was registered isn't on record")
    if weights.recorded != weights.sha256:
        text = (
            f"sha256:{weights.sha256} isn't what was registered ({weights.recorded}): the version was edited"
        )
        return AtHand("differs", what, text)
    return AtHand("same", what, f"sha256:{weights.sha256}")


def _way(rebuilt: Rebuilt, use_ray: bool) -> list[AtHand]:
    """Whether this way of training has as many workers as the run had."""
    if use_ray or rebuilt.job.launch.num_workers == 1:
        return []
    text = f"--no-ray trains with one worker, the run had {rebuilt.job.launch.num_workers}"
    return [AtHand("differs", "workers", text)]


def _tell(rebuilt: Rebuilt, findings: Sequence[AtHand]) -> None:
    write_atomically(rebuilt.folder / FINDINGS, as_json({"findings": [vars(one) for one in findings]}))
    say(f"{rebuilt.lineage.uri}: rebuilt from the registry in {rebuilt.folder}")
    for one in findings:
        say(f"  {_SIGNS[one.kind]:<8} {one.what:<19} {one.text}")
    if all(one.kind == "same" for one in findings):
        say("everything is at hand and the same: the weights must be equal")
    elif not any(one.kind == "missing" for one in findings):
        say("what differs or is unknown may change the weights: they needn't be equal")


def _expect_possible(rebuilt: Rebuilt, findings: Sequence[AtHand], name: str) -> None:
    """Raises ConfigError where training can't begin, or would be taken for another run."""
    problems = [f"{one.what}: {one.text}" for one in findings if one.kind == "missing"]
    folder = run_path(rebuilt.job)
    if folder.exists():
        tags = last_job(folder).get("tracking", {}).get("tags", {})
        if tags.get(TAG) != rebuilt.lineage.uri:
            problems.append(
                f"--out {name}: {folder} is there, and isn't a reproduction of {rebuilt.lineage.uri}: give another name"
            )
    if problems:
        raise ConfigError("\n".join(problems))


def _verdict(rebuilt: Rebuilt, findings: Sequence[AtHand], found: WeightsComparison) -> list[str]:
    name, uri = rebuilt.job.name, rebuilt.lineage.uri
    if found.equal:
        files = "" if found.sha256 == found.other_sha256 else " (in a file of another form)"
        return [
            f"EQUAL: the weights of {name} are those of {uri}, bit by bit{files}: sha256:{found.other_sha256}"
        ]
    lines = [
        f"NOT EQUAL: the weights of {name} (sha256:{found.other_sha256}) are not those of {uri} (sha256:{found.sha256})"
    ]
    far = "" if found.furthest is None else f"; the largest difference is {found.furthest:.3g}"
    lines.append(f"  {len(found.differing)} tensors differ: {some_of(found.differing, _SHOWN)}{far}")
    reasons = [f"{one.what}: {one.text}" for one in findings if one.kind != "same"]
    lines += [f"  a possible reason: {reason}" for reason in reasons]
    if not reasons:
        lines.append("  everything was the same here, as far as it is on record: no reason is known")
    return lines
