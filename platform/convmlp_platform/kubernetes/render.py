"""`convmlp k8s render`: from a job file and options to YAML for `kubectl apply -f -`."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from convmlp_platform.config.automatic import OF_MACHINES, value_at
from convmlp_platform.config.explain import yaml_text
from convmlp_platform.config.explain.job_file import EXTENDS, read_values
from convmlp_platform.config.load import flatten, load_job
from convmlp_platform.config.overrides import apply_overrides
from convmlp_platform.config.schema import Job
from convmlp_platform.config.sections.section import AUTO
from convmlp_platform.errors import ConfigError
from convmlp_platform.kubernetes.fitting import fitting_problems, gpu_sets, launch_sets
from convmlp_platform.kubernetes.manifests import job_documents, raycluster
from convmlp_platform.kubernetes.options import RenderOptions, kubernetes_name, option_problems
from convmlp_platform.kubernetes.pods import JOB_FOLDER
from convmlp_platform.kubernetes.sizes import AUTO_CPUS, AUTO_CPUS_A_GPU, JobPlan, pod_sizes

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
    sets = [*_decided_sets(path, job, options), *launch_sets(job, options)]
    own = {one.split("=", 1)[0] for one in sets}
    sets = [*(one for one in options.sets if one.split("=", 1)[0] not in own), *sets]
    job = load_job(path, sets, of_machines=partial(_of_pods, options))
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
    """The job with the user's settings; and where its pods have GPUs, with those.

    Raises:
        ConfigError: as `load_job`; or a value of `auto` can't be known before there are machines.
    """
    autos = _autos(path, options)
    if "launch.num_workers" in autos and options.workers is None:
        raise ConfigError(
            f"{path}: launch.num_workers: auto follows from machines, and a rendered job says how many: --workers N"
        )
    if "engine.precision" in autos and options.autoscaled:
        raise ConfigError(
            f"{path}: engine.precision: auto follows from GPUs that aren't there when an autoscaled job starts: "
            "--set engine.precision=bf16 (fast from compute capability 8.0 on), or fp32"
        )
    gpus = gpu_sets(read_values(path)[0], options) if options.gpus_per_pod else []
    return load_job(path, [*options.sets, *gpus], of_machines=partial(_of_pods, options))


def _autos(path: Path, options: RenderOptions) -> list[str]:
    """The fields of a training job that are left to machines."""
    values, _, _ = apply_overrides(read_values(path)[0], options.sets)
    return (
        [name for name in OF_MACHINES if value_at(values, name) == AUTO]
        if values.get("kind") == "train"
        else []
    )


def _of_pods(options: RenderOptions, values: dict[str, Any], _where: str) -> dict[str, Any]:
    """The values with a number for each that follows from machines, which are the pods."""
    from convmlp_platform.launch.cluster.capacity import Node
    from convmlp_platform.launch.cluster.machine_values import decided_for

    each = max(1, options.gpus_per_pod)
    cpus = options.cpus_per_pod or (AUTO_CPUS_A_GPU * each if options.gpus_per_pod else AUTO_CPUS)
    node = Node(cpus, options.gpus_per_pod, fast_bf16=options.gpus_per_pod > 0)
    return decided_for(values, [node] * -(-(options.workers or 1) // each))


def _decided_sets(path: Path, job: Job, options: RenderOptions) -> list[str]:
    """What was decided from pods is said to the driver, which may find other machines, or none yet. Not the precision:
    the driver finds its GPUs' kind, and the one that a run has begun with."""
    decided = flatten(job)
    names = [name for name in _autos(path, options) if name not in ("launch.num_workers", "engine.precision")]
    return [f"{name}={decided[name]}" for name in names]


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
    """The job file, the one that it extends, and the one that a sweep names.

    Raises:
        ConfigError: that one doesn't lie beside it.
    """
    text = path.read_text(encoding="utf-8")
    files = {path.name: text}
    values = yaml_text.parse(text, str(path))
    for field in (EXTENDS, "job"):
        named = values.get(field) if isinstance(values, dict) else None
        if isinstance(named, str):
            if Path(named).name != named:
                raise ConfigError(
                    f"{path}: {field}: {named} lies in another folder, which can't come along: put the two files side "
                    "by side"
                )
            files |= _files(path.parent / named)
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
