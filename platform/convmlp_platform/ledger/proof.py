"""The proof that each sample was used exactly once an epoch, from a run's ledger alone.

It follows the line of checkpoints that survived: from the newest attempt to its parent, and so on to step 0. What
an attempt recorded past the step that its child went on from was rolled back, and is void. Of what remains it
proves, one by one and none by means of another:

 - every step has every micro-batch once, whichever ranks computed them;
 - by counting alone, each complete epoch used each sample once, and the others none twice;
 - each place of each micro-batch holds the sample that the order function puts there;
 - with the dataset at hand: what was read had the checksum of the sample's payload.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from convmlp_platform.config.identity import (
    IDENTITY_NAME,
    ORDER_VERSION,
    identity_of,
    read_identity,
    stored_value,
)
from convmlp_platform.errors import DataError
from convmlp_platform.ledger.ledger import LedgerHeader
from convmlp_platform.ledger.ledger_reader import (
    RecordedAttempt,
    check_attempts,
    check_checkpoints,
    read_attempts,
    surviving_line,
)
from convmlp_platform.ledger.ledger_walk import EpochCounts, LedgerWalk, PayloadChecksums, complete_epochs
from convmlp_platform.ledger.proof_report import LedgerFindings, LedgerReport, Span
from data_prep.storage.json_files import DamagedJson

# Samples looked at together; they take about 100 bytes each.
CHUNK_SAMPLES = 1 << 20


def check_ledger(run_dir: str | Path, *, dataset: str | Path | None = None) -> LedgerReport:
    """Prove what the run in `run_dir` has used, up to the last step that all of its ranks recorded.

    Args:
        run_dir: the run's folder (it holds run.json and ledger/).
        dataset: the prepared dataset's folder; without it, checksums of payloads are not compared.

    Returns: the report, which has all that is wrong with the samples or their record.

    Raises:
        DataError: there is no ledger or nothing in it, it can't be read, or it is of another run, dataset or
            release than run.json says.
    """
    run = Path(run_dir)
    attempts = read_attempts(run / "ledger")
    _check_belongs(run, attempts)
    findings, header = LedgerFindings(), attempts[max(attempts)].header
    check_attempts(run / "ledger", attempts, findings)
    check_checkpoints(run, attempts, findings)
    spans = surviving_line(attempts, findings)
    if spans[-1].stop == 0:
        raise DataError(f"{run / 'ledger'} holds no step that every rank recorded: nothing can be proven")
    order, batch = header.order, header.global_batch_size
    payloads = None if dataset is None else PayloadChecksums(dataset, header)
    counts = EpochCounts(order.num_samples)
    walk = LedgerWalk(order, batch, header.micro_batch_size, findings, payloads, counts)
    _follow(spans, attempts, walk)
    complete = complete_epochs(order, batch, spans[-1].stop)
    walk.end(complete)
    return LedgerReport(
        run=run.resolve().name,
        num_samples=order.num_samples,
        repeats=order.repeats,
        attempts=len(attempts),
        spans=spans,
        samples=walk.samples,
        complete_epochs=complete,
        epochs=dict(sorted(counts.used.items())),
        num_left_out=walk.num_left_out,
        left_out=walk.left_out,
        other_format=walk.other_format,
        void_samples=sum(attempt.recorded for attempt in attempts.values()) - walk.samples,
        torn_files=sum(bool(file.torn_bytes) for a in attempts.values() for file in a.files.values()),
        checked_payloads=payloads is not None,
        findings=findings,
    )


def _follow(spans: list[Span], attempts: dict[int, RecordedAttempt], walk: LedgerWalk) -> None:
    chunk = max(1, CHUNK_SAMPLES // walk.global_batch_size)
    for span in spans:
        for start in range(span.start, span.stop, chunk):
            stop = min(start + chunk, span.stop)
            walk.steps(attempts[span.attempt], range(start, stop))


def _check_belongs(run: Path, attempts: dict[int, RecordedAttempt]) -> None:
    """Every attempt must be of the run that run.json describes."""
    try:
        fields = read_identity(run)
    except (OSError, DamagedJson) as error:
        raise DataError(
            f"{run / IDENTITY_NAME} can't be read ({error}): is {run} the folder of a run?"
        ) from None
    if fields.get("data.order") != ORDER_VERSION:
        raise DataError(
            f"{run}: its samples are in order version {fields.get('data.order')}, this release has "
            f"{ORDER_VERSION}: check it with the release that wrote it"
        )
    for attempt in attempts.values():
        for name, found in _facts(attempt.header).items():
            wanted = identity_of(fields) if name == "identity" else stored_value(fields, name)
            if found != wanted:
                raise DataError(
                    f"{run}: the ledger of attempt {attempt.number} is of another run: "
                    f"{name} is {found} there, and {wanted} in run.json"
                )


def _facts(header: LedgerHeader) -> dict[str, Any]:
    """Returns the facts of the run's identity that a header holds, by the names of `config.identity`."""
    return {
        "identity": header.identity,
        "seed": header.order.seed,
        "data.digest": header.digest,
        "data.train_split": header.split,
        "data.num_streams": header.order.num_streams,
        "data.shuffle_block": header.order.block,
        "data.shuffle_window": header.order.window,
        "augment.repeats": header.order.repeats,
        "training.global_batch_size": header.global_batch_size,
        "training.micro_batch_size": header.micro_batch_size,
    }
