"""Jobs from Python: a job file, or values, with settings laid over them under the names that job files have."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from convmlp_platform.config.automatic import value_at, with_stand_ins
from convmlp_platform.config.explain import job_file
from convmlp_platform.config.load import job_values, parse_job
from convmlp_platform.config.overrides import put
from convmlp_platform.config.schema import Job
from convmlp_platform.errors import ConfigError
from convmlp_platform.jobs.read_job import manifest_at, of_machines
from data_prep.dataset.manifest import DatasetManifest

Settings = Mapping[str, Any]
"""Dotted name of a job's setting → value: `{"optimizer.lr": 1e-3}`."""


def load_job(path: str | Path, *overrides: str, settings: Settings | None = None, **sections: Any) -> Job:
    """The job that a file describes, checked, with values laid over it.

    Args:
        path: a job file.
        overrides: as after `--set`: `"optimizer.lr=1e-3"`.
        settings: by dotted name: `{"optimizer.lr": 1e-3}`.
        sections: top-level fields: `seed=1`, `optimizer={"lr": 1e-3}`; what a section leaves out stays as it is.

    Raises:
        ConfigError: the file can't be read or describes no job; each problem has a line, with its dotted field.
    """
    values, origins, problems = job_values(path, overrides)
    changed = laid_over(values, sections, settings)
    as_read = {
        name: told for name, told in origins.items() if value_at(values, name) == value_at(changed, name)
    }
    return job_of(changed, str(path), as_read, problems)


def job_of(
    values: dict[str, Any],
    where: str,
    origins: Mapping[str, str] | None = None,
    problems: Sequence[str] = (),
) -> Job:
    """As `config.load.parse_job`, with values of `auto` decided as for the command line: by the dataset, wherever it
    is, and by the machines.
    """
    return parse_job(values, where, origins, problems, manifest_at, of_machines)


def checked_before(values: dict[str, Any], where: str, stand_in: Callable[[str], DatasetManifest]) -> Job:
    """The job as far as it can be known before its dataset is there, whose manifest `stand_in` makes up."""
    return parse_job(values, where, None, (), stand_in, lambda found, _where: with_stand_ins(found))


def laid_over(
    values: Mapping[str, Any], sections: Mapping[str, Any], settings: Settings | None = None
) -> dict[str, Any]:
    """New values: those of a job, with sections and then dotted settings in place of its own.

    Raises:
        ConfigError: a dotted name leads through a value that has no fields.
    """
    result = plain(values)
    for name, value in sections.items():
        result[name] = job_file.laid_over(result.get(name), plain(value))
    for name, value in (settings or {}).items():
        if not isinstance(name, str) or not all(name.split(".")):
            raise ConfigError(f"settings: {name!r} is no name of a setting, such as optimizer.lr")
        put(result, name, plain(value), f"settings[{name!r}]")
    return result


def plain(value: Any) -> Any:
    """The value as a YAML file would give it: paths are texts, NumPy's and PyTorch's numbers Python's."""
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, Mapping):
        return {str(name): plain(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    if isinstance(value, Path):
        return str(value)
    if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):
        return value.item()
    return value
