"""An evaluation on one worker of a Ray cluster, or in this process."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convmlp_platform.config.evaluate import EvaluateJob
from convmlp_platform.config.load import parse_job
from convmlp_platform.errors import ConfigError, ErrorRecord, LaunchError, PlatformError, recorded
from convmlp_platform.evaluation.preflight import preflight_evaluation
from convmlp_platform.evaluation.record import record
from convmlp_platform.evaluation.result import EvaluationResult
from convmlp_platform.evaluation.table import console_lines
from convmlp_platform.launch import messages
from convmlp_platform.launch.lease import result_lease
from data_prep.console import adapt_streams

if TYPE_CHECKING:
    from convmlp_platform.launch.capacity import Node


def evaluate(job: EvaluateJob, *, use_ray: bool) -> int:
    """Evaluate a job whose paths are resolved, print its table and log it; returns the exit code.

    Raises:
        PlatformError: all problems of the job before any worker starts; later what a user can fix.
    """
    problems = preflight_evaluation(job).problems
    if problems:
        raise ConfigError("\n".join(problems))
    with result_lease(Path(job.output.path) / job.name):
        result = _on_ray(job) if use_ray else _here(job)
        for line in console_lines(result):
            messages.say(line)
        messages.say(f"  result    {job.output.path}/{job.name}: table.md, result.json and plots")
        record(job, result, messages.say)
    return 0


def capacity_problems(job: EvaluateJob, nodes: Sequence[Node]) -> list[str]:
    """Returns the problems that keep the job from running on a cluster of these nodes; empty if there are none."""
    fitting = [node for node in nodes if node.cpus >= job.launch.cpus]
    problems = []
    if not fitting:
        most = max((node.cpus for node in nodes), default=0)
        problems.append(
            f"launch.cpus (={job.launch.cpus}): the largest node has {most}: --set launch.cpus={max(most, 1)}"
        )
    if job.launch.use_gpu is True and not any(node.gpus for node in nodes):
        problems.append("launch.use_gpu: the cluster has no GPU: --set launch.use_gpu=false")
    elif job.evaluate.precision == "fp16" and not any(node.gpus for node in nodes):
        problems.append("evaluate.precision: fp16 needs a GPU, and the cluster has none: use bf16 or fp32")
    return problems


def _here(job: EvaluateJob) -> EvaluationResult:
    from convmlp_platform.evaluation.run import run_evaluation

    return run_evaluation(job, messages.say)


def _on_ray(job: EvaluateJob) -> EvaluationResult:
    from convmlp_platform.launch.capacity import cluster_nodes
    from convmlp_platform.launch.connect import connect
    from convmlp_platform.launch.environment import private_variables, shared_env_vars

    with connect(job.launch.address, shared_env_vars(threads=job.launch.cpus)):
        import ray
        from ray.exceptions import RayError

        nodes = cluster_nodes()
        if problems := capacity_problems(job, nodes):
            raise LaunchError("\n".join(problems))
        gpu = job.launch.use_gpu is not False and any(node.gpus for node in nodes)
        remote = ray.remote(num_cpus=job.launch.cpus, num_gpus=int(gpu), max_retries=0)(_in_worker)
        try:
            outcome = ray.get(remote.remote(job.model_dump(mode="json"), private_variables()))
        except RayError as error:
            reason = str(error).strip().splitlines()[-1]
            raise LaunchError(f"{job.name}: the worker ended without a result: {reason}") from error
    if "problem" in outcome:
        raise ErrorRecord.from_json(outcome["problem"]).error()
    return EvaluationResult.model_validate(outcome["result"])


def _in_worker(values: dict[str, Any], private: dict[str, str]) -> dict[str, Any]:
    """In a Ray task: plain values in and out, so that no class of ours has to be the same on both sides.

    `private` becomes part of the worker's environment: where MLflow is, and its password.
    """
    adapt_streams()
    os.environ.update(private)
    job = parse_job(values, "job")
    assert isinstance(job, EvaluateJob)
    try:
        return {"result": _here(job).model_dump(mode="json")}
    except PlatformError as error:
        return {"problem": recorded(error).to_json()}
