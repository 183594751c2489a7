"""From a job file to a checked job, and back to text.

The order in which a value is decided: the schema's default; the file that the job file `extends`; the job file;
`--set`, later ones winning.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from convmlp_platform.config import automatic
from convmlp_platform.config.explain import yaml_text
from convmlp_platform.config.explain.job_file import EXTENDS, read_values, with_job
from convmlp_platform.config.explain.problems import Explainer
from convmlp_platform.config.explain.suggest import nearest
from convmlp_platform.config.identity import flat_values
from convmlp_platform.config.overrides import apply_overrides
from convmlp_platform.config.paths import root
from convmlp_platform.config.schema import JOB_ADAPTER, JOB_KINDS, Job, TrainJob
from convmlp_platform.errors import ConfigError

logger = logging.getLogger(__name__)

Scalar = str | int | float | bool | None
OfMachines = Callable[[dict[str, Any], str], dict[str, Any]]
"""`launch.cluster.machine_values.decided`, which knows clusters."""


def load_job(
    path: str | Path,
    overrides: Sequence[str] = (),
    open_manifest: automatic.OpenManifest | None = None,
    of_machines: OfMachines | None = None,
) -> Job:
    """The job that a YAML file describes, with `--set` overrides (`a.b=c`) laid over it and `auto` values decided.

    Args:
        open_manifest, of_machines: as `parse_job` takes them.

    Raises:
        ConfigError: the file can't be read, isn't YAML, or doesn't describe a job. Each problem has
            a line of the message: the file, the dotted field, and the nearest valid name for an unknown one.
    """
    values, origins, problems = job_values(path, overrides)
    return parse_job(values, str(path), origins, problems, open_manifest, of_machines)


def job_values(
    path: str | Path, overrides: Sequence[str] = ()
) -> tuple[dict[str, Any], dict[str, str], list[str]]:
    """The nested values of a job file with `--set` overrides laid over them, not checked yet; dotted name → origin of
    those that don't stand in it; and a line for each override that can't be.

    Raises:
        ConfigError: the file can't be read, or isn't YAML.
    """
    logger.debug(
        "%s, relative paths below %s%s", path, root(), f", --set {' '.join(overrides)}" if overrides else ""
    )
    values, origins = read_values(Path(path))
    values, given, problems = apply_overrides(values, overrides)
    return with_job(values, Path(path)), origins | given, problems


def parse_job(
    values: dict[str, Any],
    where: str,
    origins: Mapping[str, str] | None = None,
    problems: Sequence[str] = (),
    open_manifest: automatic.OpenManifest | None = None,
    of_machines: OfMachines | None = None,
) -> Job:
    """The job that nested `values` describe; `where` begins each line of an error, after earlier `problems`.

    Args:
        origins: dotted name → where a value is from that doesn't stand in `where`, e.g. "from --set", for the messages.
        open_manifest: finds the dataset that values of `auto` follow from; default: in a folder of this machine.
        of_machines: decides the values of `auto` that follow from machines, in those of a training job, after all else
            is known to be right; default: such a value is a problem.

    Raises:
        ConfigError: as `load_job`.
    """
    kind = values.get("kind")
    if not isinstance(kind, str) or kind not in JOB_KINDS:
        raise ConfigError("\n".join([*problems, f"{where}: kind: {_kind_problem(kind, 'kind' in values)}"]))
    model = JOB_KINDS[kind]
    if model is TrainJob:
        values = automatic.decided(values, where, open_manifest)
    stand_ins = automatic.with_stand_ins(values) if of_machines is not None else values
    job = _validated(model, stand_ins, where, origins or {}, problems)
    if of_machines is None or stand_ins == values:
        return job
    return _validated(model, of_machines(values, where), where, origins or {}, ())


def _validated(
    model: type[BaseModel],
    values: dict[str, Any],
    where: str,
    origins: Mapping[str, str],
    problems: Sequence[str],
) -> Any:
    try:
        # Through JSON and strict: a list may be a tuple and a string a path, but "5" or true is not a number.
        job = model.model_validate_json(json.dumps(values, default=str), strict=True)
    except ValidationError as error:
        lines = Explainer(model, values, origins).lines(error)
        raise ConfigError("\n".join([*problems, *(f"{where}: {line}" for line in lines)])) from None
    if problems:
        raise ConfigError("\n".join(problems))
    return job


def _kind_problem(kind: Any, given: bool) -> str:
    if not given:
        return f"required, but missing; one of {', '.join(JOB_KINDS)}"
    near = nearest(str(kind)[:100], JOB_KINDS)
    *others, last = JOB_KINDS
    words = f"{', '.join(others)} or {last}"
    return f"must be {words} (got {repr(kind)[:100]})" + (f"; did you mean {near}?" if near else "")


def flatten(section: BaseModel) -> dict[str, Scalar]:
    """Dotted name → value of every field, defaults included (MLflow's params). Lists become JSON text."""
    return {
        name: json.dumps(value) if isinstance(value, list) else value
        for name, value in flat_values(section.model_dump(mode="json")).items()
    }


def job_differences(old: Job, new: Job) -> list[str]:
    """One line `optimizer.lr: 0.001 → 0.0005` for each value that differs, defaults included, in the schema's order."""
    before, after = flat_values(old.model_dump(mode="json")), flat_values(new.model_dump(mode="json"))
    return [
        f"{name}: {_told(before, name)} → {_told(after, name)}"
        for name in dict.fromkeys([*before, *after])
        if name not in before or name not in after or before[name] != after[name]
    ]


def _told(values: dict[str, Any], name: str) -> str:
    if name not in values:
        return "not there"
    value = values[name]
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def dump_yaml(job: Job) -> str:
    """The whole job as YAML, defaults written out; `load_job` of it gives an equal job."""
    values = job.model_dump(mode="json")
    return yaml_text.dump({"kind": values.pop("kind"), "name": values.pop("name"), **values})


def json_schema(kind: str | None = None) -> dict[str, Any]:
    """The JSON schema (2020-12) of job files of one kind, or of all. A file that extends another one may lack what that
    one says, so only its `extends` is described.
    """
    schema = JOB_ADAPTER.json_schema() if kind is None else JOB_KINDS[kind].model_json_schema()
    definitions = {"$defs": schema.pop("$defs")} if "$defs" in schema else {}
    about = "a job file of the same kind, from this one's folder: what this file says is laid over it"
    extending = {"properties": {EXTENDS: {"type": "string", "description": about}}}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "ConvMLP job file",
        **definitions,
        "if": {"required": [EXTENDS]},
        "then": extending,
        "else": schema,
    }
