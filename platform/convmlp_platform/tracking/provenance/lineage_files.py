"""The facts behind a result as files in its folder, which MLflow gets as artifacts below `lineage/`.

given_job.yaml    the job file as it was given, without secrets
base_job.yaml     the file that it extends
submission.json   its name, the overrides, the driver and the driver's code
job.json          the job with all its values
code.json         commit, what differs from it, hashes of all source files (`code_state`)
code.patch        what differs from the commit, without secrets, up to 1 MB
environment.json  Python, packages, processor (`frozen_environment`)
requirements.txt  the packages, for pip
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from convmlp_platform.tracking.provenance.code_state import CodeState
from convmlp_platform.tracking.provenance.frozen_environment import frozen_environment, requirements_text
from convmlp_platform.tracking.provenance.submitted_job import (
    BASE_JOB,
    FOLDER,
    GIVEN_JOB,
    SUBMISSION,
    as_json,
    write_diff,
)
from data_prep.storage.files import write_atomically
from data_prep.storage.urls import scrubbed

logger = logging.getLogger(__name__)

JOB, CODE, CODE_DIFF, ENVIRONMENT, REQUIREMENTS = (
    "job.json", "code.json", "code.patch", "environment.json", "requirements.txt",
)  # fmt: skip
ALL_FILES = (GIVEN_JOB, BASE_JOB, SUBMISSION, JOB, CODE, CODE_DIFF, ENVIRONMENT, REQUIREMENTS)


def write_facts(folder: Path, job: Mapping[str, Any], code: CodeState) -> list[Path]:
    """Write the facts of this process beside those of its driver; the files that are there now, for the journal.

    A folder that can't be written costs the facts and a line in the log, not the work.

    Args:
        folder: of the run or result.
        job: all its values, as plain JSON; passwords in URLs are left out.
    """
    place = folder / FOLDER
    try:
        place.mkdir(parents=True, exist_ok=True)
        environment = frozen_environment()
        write_atomically(place / JOB, as_json(scrubbed_values(dict(job))), durable=False)
        write_atomically(place / CODE, as_json(code.facts()), durable=False)
        write_diff(place / CODE_DIFF, code)
        write_atomically(place / ENVIRONMENT, as_json(environment), durable=False)
        write_atomically(
            place / REQUIREMENTS, requirements_text(environment["packages"]).encode(), durable=False
        )
    except OSError as error:
        logger.warning("code and environment of this start aren't on record: %s: %s", place, error.strerror)
    return [place / name for name in ALL_FILES if (place / name).is_file()]


def scrubbed_values(value: Any) -> Any:
    """Plain JSON values whose texts have lost the user info and queries of URLs."""
    if isinstance(value, dict):
        return {key: scrubbed_values(item) for key, item in value.items()}
    if isinstance(value, list):
        return [scrubbed_values(item) for item in value]
    return scrubbed(value) if isinstance(value, str) else value
