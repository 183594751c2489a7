"""The first held-out images with what the run's best model says of them, kept out of an evaluation that is made anyway.

So nothing is computed twice and no weights are gathered, under any strategy: rank 0 keeps what it computed of the
first images of its part, which are the split's first, and preparation has put these into a random order.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from convmlp.tasks.task import Metrics
from convmlp_platform.data.dataset.sample_view import truth_of
from convmlp_platform.data.dataset.split import ShardedSplit
from convmlp_platform.models.bundle import SPEC_NAME
from convmlp_platform.models.prediction import Detections, Labels
from convmlp_platform.models.prediction import Prediction as Predicted
from convmlp_platform.models.predictors.predictor import Predictor
from convmlp_platform.pictures.predictions import (
    SURE,
    AreaPrediction,
    ClassPrediction,
    DrawnObjects,
    ObjectPrediction,
    Prediction,
    predictions_sheet,
)
from convmlp_platform.runs.run_folder import RunFolder
from convmlp_platform.tracking.tracker import Tracker
from convmlp_platform.training.callbacks import Callback
from convmlp_platform.training.evaluation.evaluate import scores_of, taken_weights
from convmlp_platform.training.step_plan import TrainState

logger = logging.getLogger(__name__)

COUNT = {"classification": 16, "detection": 8, "segmentation": 8}
"""Pictures on a sheet, by the dataset's task."""
_MOST_OBJECTS = 40

Found = NDArray[Any] | DrawnObjects
"""Of an image: probabilities [num_classes], objects, or labels by pixel [height, width]."""


class FirstOutputs:
    """A task's metrics that also keep the outputs of the first images they are updated with.

    Args:
        metrics: what they are besides.
        count: images to keep; 0 keeps none.
    """

    def __init__(self, metrics: Metrics, count: int) -> None:
        self.metrics, self.count = metrics, count
        self.found: list[Found] = []
        """Of the first images since the last `reset`, on the CPU."""
        self.found_before: list[Found] = []
        """Of the first images before the last `reset`."""

    def update(self, outputs: Any, targets: Any) -> None:
        """Take in a micro-batch."""
        self.metrics.update(outputs, targets)
        for output in outputs[: max(0, self.count - len(self.found))]:
            self.found.append(plain(output))

    def compute(self) -> Mapping[str, Any]:
        """Of all images of all ranks (collective)."""
        return self.metrics.compute()

    def reset(self) -> None:
        """Begin anew."""
        self.found_before, self.found = self.found, []
        self.metrics.reset()

    def to(self, device: torch.device) -> Self:
        """Compute on this device."""
        self.metrics = self.metrics.to(device)
        return self


def plain(output: Tensor | dict[str, Tensor]) -> Found:
    """Returns a task's evaluation output for one image as arrays.

    Logits become probabilities. Of objects, those with the highest scores are kept, with masks if they will be drawn.
    """
    if isinstance(output, Tensor):
        values = output.detach().cpu()
        return values.float().softmax(0).numpy() if values.ndim == 1 else values.numpy()
    best = output["scores"].argsort(descending=True, stable=True)[:_MOST_OBJECTS]
    boxes, scores, labels = (
        output[name][best].detach().cpu().numpy() for name in ("boxes", "scores", "labels")
    )
    masks: list[NDArray[Any] | None] = []
    if "masks" in output:
        sure = int((scores >= SURE).sum())
        masks = [*output["masks"][best[:sure]].cpu().numpy(), *[None] * (len(scores) - sure)]
    return DrawnObjects(boxes, labels, scores, masks)


def beside_truth(split: ShardedSplit, sample: int, found: Found) -> Prediction:
    """A prediction with its image and what is annotated of it, from the dataset.

    Raises:
        DataError: the sample is damaged.
    """
    image, _ = split.image(sample)
    truth, key = truth_of(split, sample), split.key(sample)
    if isinstance(truth, DrawnObjects):
        assert isinstance(found, DrawnObjects)
        return ObjectPrediction(image, found, truth, key)
    assert not isinstance(found, DrawnObjects)
    if isinstance(truth, int):
        return ClassPrediction(image, found, truth, key)
    return AreaPrediction(image, found.astype(np.int16), truth, key)


def as_found(predicted: Predicted) -> Found:
    """A predictor's answer as pictures take it."""
    if isinstance(predicted, Labels):
        return predicted.probabilities.numpy()
    if isinstance(predicted, Detections):
        masks = () if predicted.masks is None else list(predicted.masks.numpy())
        return DrawnObjects(
            predicted.boxes.numpy(), predicted.labels.numpy(), predicted.scores.numpy(), masks
        )
    return predicted.labels


def _predicted(best: Path, split: ShardedSplit, count: int) -> tuple[list[Found], int]:
    """What the model in the folder `best` says of the first images, and the step that it is of."""
    predictor = Predictor.from_folder(best)
    images = [split.image(sample)[0] for sample in range(min(count, len(split)))]
    step = predictor.spec.provenance.get("step", 0)
    return [as_found(answer) for answer in predictor.predict(images)], int(step)


def draw_first(
    split: ShardedSplit, found: Sequence[Found], path: Path, *, title: str, subtitle: str = ""
) -> Path:
    """A sheet of the split's first images with what `FirstOutputs` kept of them on rank 0, as PNG at `path`.

    Raises:
        DataError: a sample is damaged.
        OSError: the file can't be written.
    """
    samples = [beside_truth(split, number, one) for number, one in enumerate(found)]
    sheet = predictions_sheet(samples, split.manifest.classes, title=title, subtitle=subtitle)
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)
    return path


class SamplePictures(Callback):
    """`plots/predictions.png`: what the run's best model says, drawn once the run ends; on rank 0 alone.

    They are the outputs of the evaluation that found it the best. Where a process before this one made that
    evaluation, the model that it left predicts these images once more. A picture that can't be drawn costs the run a
    line in its log, no more.

    Args:
        run: the run's name.
        split: the held-out one.
        folder: of the run.
        tracker: gets the picture; None: this is not rank 0, nothing is kept.
    """

    def __init__(self, run: str, split: ShardedSplit, folder: RunFolder, tracker: Tracker | None) -> None:
        self.run, self.split, self.folder, self.tracker = run, split, folder, tracker
        self._outputs: FirstOutputs | None = None
        self._found: list[Found] = []
        self._step = 0

    def watching(self, metrics: Metrics) -> Metrics:
        """The same metrics, whose first outputs are kept."""
        if self.tracker is None:
            return metrics
        self._outputs = FirstOutputs(metrics, COUNT[self.split.manifest.task])
        return self._outputs

    def on_evaluation(self, metrics: dict[str, float], state: TrainState) -> None:
        if self._outputs is None:
            return
        judged_both = bool(scores_of(metrics, "plain"))  # the plain weights last
        takes_first = judged_both and taken_weights(metrics, averages=True) == "average"
        found = self._outputs.found_before if takes_first else self._outputs.found
        self._outputs.found_before, self._outputs.found = [], []  # one that is told again has none
        if found and (not state.best or state.best is metrics or state.best == metrics):
            self._found, self._step = found, state.step

    def on_stop(self, reason: str, state: TrainState) -> None:
        """The next start draws."""

    def on_end(self, state: TrainState) -> None:
        if self.tracker is None or self._outputs is None:
            return
        path = self.folder.plots / "predictions.png"
        try:
            if not self._found and (self.folder.best / SPEC_NAME).is_file():
                self._found, self._step = _predicted(self.folder.best, self.split, self._outputs.count)
            if not (found := self._found):
                return
            title = f"{self.run}: predictions on {self.split.name}"
            count = f"the first {len(found)} of {len(self.split):,} images"
            subtitle = f"{count}; the best model, of step {self._step:,}"
            self.tracker.log_artifact(
                draw_first(self.split, found, path, title=title, subtitle=subtitle), "plots"
            )
        except Exception as error:  # whatever a picture fails of is no reason to fail a finished run
            logger.warning("no picture of predictions: %s: %s", type(error).__name__, error)
