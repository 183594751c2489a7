"""`convmlp k8s ...`: the same job file on Kubernetes."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convmlp_platform.cli.common import add_overrides, from_zero, number, positive, show_report

if TYPE_CHECKING:
    from convmlp_platform.kubernetes.options import RenderOptions

_EXAMPLES = """\
examples:
  convmlp k8s check jobs/pretrain_convmlp.yaml --workers 8 --gpus-per-pod 8
  convmlp k8s render jobs/pretrain_convmlp.yaml --workers 8 --gpus-per-pod 8 | kubectl apply -f -
  convmlp k8s render my_job.yaml --workers 8 --gpus-per-pod 4 --min-workers 4 --overlay spot | kubectl apply -f -
  convmlp k8s render my_job.yaml --workers 8 --gpus-per-pod 8 --queue vision | kubectl apply -f -
"""


def add_commands(commands: Any) -> None:
    """Add them to the parser's commands."""
    group = commands.add_parser(
        "k8s", help="a job on Kubernetes: its manifests, and all that is wrong with it"
    )
    parsers = group.add_subparsers(title="commands", metavar="COMMAND", required=True)
    render = parsers.add_parser(
        "render",
        help="print a job as a RayJob, for kubectl apply -f -",
        description="Print the RayJob of a job file. Its sizes agree: pods x GPUs are the job's workers; memory, "
        "/dev/shm and CPUs follow from its model and readers.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    render.add_argument(
        "--standing", metavar="NAME", help="print a RayCluster of the same pods instead, to submit to by hand"
    )
    render.set_defaults(call=_render)
    check = parsers.add_parser(
        "check",
        help="list all that is wrong with a job on Kubernetes, without starting it",
        description="Takes the options of `convmlp k8s render`, and needs no cluster.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    check.add_argument(
        "--cluster",
        action="store_true",
        help="also ask the cluster that kubectl points at for what the job needs",
    )
    check.set_defaults(call=_check)
    for parser in (render, check):
        _add_options(parser)


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("job", metavar="JOB", help="a job file, such as jobs/pretrain_digits.yaml")
    size = parser.add_argument_group("sizes")
    size.add_argument(
        "--workers",
        type=positive,
        metavar="N",
        help="training processes in all, one a GPU (default: the job's); pods of a preparation",
    )
    size.add_argument(
        "--gpus-per-pod", type=from_zero, default=0, metavar="G", help="default 0: on CPUs, one worker a pod"
    )
    size.add_argument(
        "--min-workers",
        type=positive,
        metavar="M",
        help="go on with as few while nodes are missing; autoscaled",
    )
    size.add_argument("--cpus-per-pod", type=positive, metavar="C", help="default: what its workers reserve")
    size.add_argument(
        "--memory-gib", type=positive, metavar="GIB", help="of a worker pod; default: estimated from the job"
    )
    where = parser.add_argument_group("where")
    where.add_argument(
        "--overlay",
        action="append",
        default=[],
        metavar="NAME",
        help="autoscale, spot, external-services; may be repeated",
    )
    where.add_argument(
        "--queue", metavar="Q", help="Kueue's LocalQueue: the job waits there until it fits as a whole"
    )
    where.add_argument("--priority", metavar="CLASS", help="priority class of its pods, and in its queue")
    where.add_argument(
        "--image", metavar="IMAGE", help="of all its pods (default: convmlp:VERSION of this program)"
    )
    where.add_argument("--namespace", default="convmlp", metavar="NS", help="default: convmlp")
    where.add_argument("--name", metavar="NAME", help="of the RayJob (default: the job's name)")
    more = parser.add_argument_group("the job")
    add_overrides(more, "set a value, e.g. optimizer.lr=1e-3")
    more.add_argument(
        "--from-image",
        action="store_true",
        help="run the image's own jobs/NAME.yaml, rather than send this file along",
    )
    more.add_argument(
        "--patience",
        type=positive,
        metavar="S",
        help="give the job up if its pods don't come in so many seconds (default 1800)",
    )
    more.add_argument(
        "--deadline-hours",
        type=_hours,
        metavar="H",
        help="end the job after so long whatever it does; default: never",
    )


def _hours(text: str) -> float:
    return number(text, "hours, of a year at most", lambda value: 0.0 < value <= 24 * 365)


def _options(arguments: argparse.Namespace) -> RenderOptions:
    from convmlp_platform.kubernetes.options import DEFAULT_PATIENCE_S, RenderOptions, default_image

    return RenderOptions(
        workers=arguments.workers,
        min_workers=arguments.min_workers,
        gpus_per_pod=arguments.gpus_per_pod,
        cpus_per_pod=arguments.cpus_per_pod,
        memory_gib=arguments.memory_gib,
        queue=arguments.queue,
        priority=arguments.priority,
        overlays=tuple(dict.fromkeys(arguments.overlay)),
        image=default_image() if arguments.image is None else arguments.image,
        name=arguments.name,
        namespace=arguments.namespace,
        patience_s=arguments.patience or DEFAULT_PATIENCE_S,
        deadline_hours=arguments.deadline_hours,
        sets=tuple(arguments.set),
        in_image=arguments.from_image,
    )


def _render(arguments: argparse.Namespace) -> int:
    from convmlp_platform.kubernetes.render import render_cluster, render_job

    options, path = _options(arguments), Path(arguments.job)
    text = (
        render_job(path, options)
        if arguments.standing is None
        else render_cluster(path, options, arguments.standing)
    )
    print(text, end="")
    return 0


def _check(arguments: argparse.Namespace) -> int:
    from convmlp_platform.kubernetes.check_job import check_on_kubernetes

    path = Path(arguments.job)
    report = check_on_kubernetes(path, _options(arguments), ask=arguments.cluster)
    all_well = "no problems found" + ("" if arguments.cluster else "; --cluster asks the cluster, too")
    return show_report(path, f"{report.kind} {report.name}", report, all_well)
