"""`convmlp k8s render`: from a job file and options to YAML for `kubectl apply -f -`."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from convmlp_platform.config.explain import yaml_text
from convmlp_platform.config.load import load_job
from convmlp_platform.config.schema import Job
from convmlp_platform.errors import ConfigError
from convmlp_platform.kubernetes.fitting import fitting_problems, gpu_sets, launch_sets
from convmlp_platform.kubernetes.manifests import job_documents, raycluster
from convmlp_platform.kubernetes.options import RenderOptions, kubernetes_name, option_problems
from convmlp_platform.kubernetes.pods import JOB_FOLDER
from convmlp_platform.kubernetes.sizes import JobPlan, pod_sizes

_STANDING = "cluster"


def plan_job(path: Path, options: RenderOptions) -> tuple[JobPlan, Job]:
    """A job file and options as all that manifests are made of; and the job as its driver will have it.

    Raises:
        ConfigError: a line for each thing that is wrong: the options, the job file, or that the two don't go together.
    """
    name = None
    problems = option_problems(options)
    try:
        job = _load(path, options)
    except ConfigError as error:
        raise ConfigError("\n".join([*(f"{path}: {one}" for one in problems), str(error)])) from None
    try:
        name = kubernetes_name(options.name, job.name)
    except ConfigError as error:
        problems.append(str(error))
    problems += fitting_problems(job, options, path)
    if problems or name is None:
        raise ConfigError("\n".join(f"{path}: {problem}" for problem in problems))
    sets = launch_sets(job, options)
    own = {one.split("=", 1)[0] for one in sets}
    sets = [*(one for one in options.sets if one.split("=", 1)[0] not in own), *sets]
    job = load_job(path, sets)
    return _plan(path, job, name, options, sets), job


def render_job(path: Path, options: RenderOptions) -> str:
    """The manifests of a job, as YAML.

    Raises:
        ConfigError: as `plan_job`.
    """
    plan, _ = plan_job(path, options)
    return to_yaml(job_documents(plan))


def render_cluster(path: Path, options: RenderOptions, name: str) -> str:
    """A standing cluster with pods as the job would have them, as YAML.

    Raises:
        ConfigError: as `plan_job`.
    """
    plan, _ = plan_job(path, options)
    plan = JobPlan(
        name=name, kind=_STANDING, entrypoint="", options=options, sizes=plan.sizes, files={}
    )  # fmt: skip
    return to_yaml([raycluster(plan)])


def to_yaml(documents: Sequence[dict[str, Any]]) -> str:
    """YAML documents as Kubernetes' own tools write them: keys in our order, texts of several lines as blocks."""
    return "---\n".join(yaml.dump(one, Dumper=_Dumper, sort_keys=False, width=1000) for one in documents)


def _load(path: Path, options: RenderOptions) -> Job:
    """The job with the user's settings; and where its pods have GPUs, with those."""
    if not options.gpus_per_pod or not path.is_file():
        return load_job(path, options.sets)
    values = yaml_text.parse(path.read_text(encoding="utf-8"), str(path))
    return load_job(path, [*options.sets, *gpu_sets(values if isinstance(values, dict) else {}, options)])


def _plan(path: Path, job: Job, name: str, options: RenderOptions, sets: Sequence[str]) -> JobPlan:
    files = {} if options.in_image else _files(path)
    command = [str(path)] if options.in_image else ["convmlp", "run", f"{JOB_FOLDER}/{path.name}"]
    for one in sets:
        command += ["--set", one]
    try:
        sizes = pod_sizes(job, options)
    except ValueError as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{path}: model.name: {' '.join(str(error).split())}") from None
    return JobPlan(
        name=name,
        kind=job.kind,
        entrypoint=shlex.join(command),
        options=options,
        sizes=sizes,
        files=files,
    )


def _files(path: Path) -> dict[str, str]:
    """The job file, and the one that a sweep names.

    Raises:
        ConfigError: that one doesn't lie beside it.
    """
    text = path.read_text(encoding="utf-8")
    files = {path.name: text}
    values = yaml_text.parse(text, str(path))
    named = values.get("job") if isinstance(values, dict) else None
    if isinstance(named, str):
        if Path(named).name != named:
            raise ConfigError(
                f"{path}: job: {named} lies in another folder, which can't come along: put the two files side by side"
            )
        files[named] = (path.parent / named).read_text(encoding="utf-8")
    return files


class _Dumper(yaml.SafeDumper):
    """Lists indented below their key; no anchors, which some tools don't read."""

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        super().increase_indent(flow, False)

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _text)
