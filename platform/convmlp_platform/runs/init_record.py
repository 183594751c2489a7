"""A run's own copy of the weights it starts from: `RUN/init/`, written once, when the run begins.

From then on the run needs neither the registry nor the file they came from: an alias that moves, a file that is
replaced, a server that is down change nothing.
"""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from convmlp_platform.errors import CheckpointError, ConfigError
from data_prep.storage.files import sha256_file, sync_folder, write_atomically
from data_prep.storage.json_files import DamagedJson, read_json, write_json

if TYPE_CHECKING:
    from torch import Tensor

FOLDER, WEIGHTS, RECORD = "init", "model.safetensors", "init.json"
_STAGING = ".init-"


@dataclass(frozen=True)
class InitRecord:
    """The source of the weights in `RUN/init/`.

    Args:
        text: `model.init_from` as the job gave it, local paths from CONVMLP_ROOT on, URLs without secrets; and
            `model.init_weights` where it chooses.
        kind, pinned, lineage: as in `found_model.FoundModel`.
        weights: "sha256:" and the hash of the source's weights; counts in the run's identity.
        sha256: of the copy.
        classes: names, in the order of the head's rows, where they are known.
        choice: a sentence on which of two sets of weights they are, where there were two.
    """

    text: str
    kind: str
    pinned: str
    weights: str
    sha256: str
    lineage: dict[str, str]
    classes: list[str] | None = None
    choice: str | None = None


def read_record(run: Path) -> InitRecord | None:
    """Reads the source of the initial weights of the run in this folder; None if it has no copy of weights.

    Raises:
        CheckpointError: the record can't be read.
    """
    file = run / FOLDER / RECORD
    try:
        return read_json(file, InitRecord)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, DamagedJson) as error:
        raise CheckpointError(
            f"{file} can't be read: {error}; restore it, or remove {run} to start anew"
        ) from error


def write_copy(
    run: Path,
    tensors: Mapping[str, Tensor],
    *,
    text: str,
    kind: str,
    pinned: str,
    lineage: dict[str, str],
    classes: Sequence[str] | None = None,
    choice: str | None = None,
) -> InitRecord:
    """Make `RUN/init/` appear whole, or find the one that another driver of the run was quicker to make.

    Raises:
        CheckpointError: the folder can't be written.
    """
    from safetensors.torch import save

    staging = run / f"{_STAGING}{secrets.token_hex(4)}"
    try:
        staging.mkdir(parents=True)
        write_atomically(staging / WEIGHTS, save(dict(tensors), {"format": "pt"}))
        record = InitRecord(
            text,
            kind,
            pinned,
            f"sha256:{lineage['init.weights_sha256']}",
            sha256_file(staging / WEIGHTS),
            lineage,
            None if classes is None else list(classes),
            choice,
        )
        write_json(staging / RECORD, asdict(record))
        try:
            staging.rename(run / FOLDER)
        except OSError:
            if (found := read_record(run)) is None:
                raise
            record = found
        sync_folder(run)
    except OSError as error:
        raise CheckpointError(f"checkpoint.path: can't write to {run}: {error.strerror}") from error
    finally:
        for left in run.glob(f"{_STAGING}*"):
            shutil.rmtree(left, ignore_errors=True)
    return record


def remove_copy(run: Path) -> None:
    """Forget the weights of a run that never began."""
    aside = run / f"{_STAGING}{secrets.token_hex(4)}"
    try:
        (run / FOLDER).rename(aside)
    except FileNotFoundError:
        return
    shutil.rmtree(aside, ignore_errors=True)


def check_copy(run: Path, record: InitRecord) -> Path:
    """The file of the run's first weights, compared with its record.

    Raises:
        ConfigError: it is gone or damaged.
    """
    file = run / FOLDER / WEIGHTS
    try:
        whole = sha256_file(file) == record.sha256
    except OSError as error:
        raise ConfigError(
            f"{file}: the weights that the run starts from can't be read: {error.strerror}"
        ) from error
    if not whole:
        raise ConfigError(
            f"{file}: the weights that the run starts from are not what was written there: remove {run} to start "
            "anew"
        )
    return file
