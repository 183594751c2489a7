"""The account of a run as a picture: what each worker did, and when."""

from __future__ import annotations

from pathlib import Path

from convmlp_platform.goodput.account import Goodput
from convmlp_platform.goodput.report_text import NAMES, headline
from convmlp_platform.goodput.slices import TimeClass
from convmlp_platform.pictures.style import Color

# Of each class: work is green to blue, overheads are warm, loss is red, nothing is grey.
_COLORS: dict[TimeClass, Color] = {
    TimeClass.USEFUL_STEP: (89, 161, 79),
    TimeClass.EVALUATION: (118, 183, 178),
    TimeClass.DATA_WAIT: (242, 142, 43),
    TimeClass.CHECKPOINT: (78, 121, 167),
    TimeClass.COMPILE: (176, 122, 161),
    TimeClass.RESTART: (237, 201, 72),
    TimeClass.LOST_WORK: (225, 87, 89),
    TimeClass.IDLE: (190, 194, 200),
}


def plot(run: str, found: Goodput, path: Path) -> Path:
    """Draw what each worker did into the file `path`; returns it.

    Raises:
        OSError, ValueError: it can't be written, or matplotlib knows no such format.
    """
    from convmlp_platform.pictures.class_histogram import save_figure
    from convmlp_platform.pictures.worker_timeline import Stretch, worker_timeline

    figure = worker_timeline(
        [
            Stretch(worker, one.begin, one.end, {str(k): s for k, s in one.seconds.items()})
            for one in found.slices
            for worker in one.workers
        ],
        {
            str(kind): (f"{NAMES[kind]}  {100 * found.share(kind):.1f} %", _COLORS[kind])
            for kind in TimeClass
            if found.seconds[kind] > 0.0
        },
        [(one.time, one.cause) for one in found.interruptions],
        title=f"{run}: where the time went",
        subtitle=headline(found),
    )
    return save_figure(figure, path)
