"""One micro-batch of a step, of which parts can be computed by themselves, and the first layer in it whose numbers stop
being finite.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from convmlp_platform.data.reading.loader import MicroBatch
from convmlp_platform.engine.engine import Engine, seed_all


class PartialStep:
    """A micro-batch in training mode, mixed as it was (mixup, cutmix). The model is left as it was, BatchNorm's
    statistics too.

    `units` are what can be left out: places of samples, or pairs of them that were mixed with one another. A part
    of one sample is computed twice over, since BatchNorm takes none of one value; random depth draws anew for each
    part.
    """

    def __init__(self, engine: Engine, micro: MicroBatch, step: int) -> None:
        self.engine, self.micro = engine, micro
        self.seed = engine.options.seed_for(step, micro.number)
        self.images, self.targets = engine.to_device(micro)
        self.mixed: Any = None
        """Soft targets, where samples are mixed."""
        size = len(micro.sample_ids)
        self.units: list[tuple[int, ...]] = [(place,) for place in range(size)]
        mixing = getattr(engine.task, "mixing", None)
        if mixing is not None:
            seed_all(self.seed)
            self.images, self.mixed = mixing(self.images, self.targets)
            self.units = [(place, size - 1 - place) for place in range(size // 2)]

    def fails(self, units: Sequence[int]) -> bool:
        """Whether the loss or a gradient of these units alone is not finite."""
        rows = self._rows(units)
        with self._prepared(rows):
            loss = self._forward(rows)
            self.engine.backward(loss)
            grads = [p.grad for p in self.engine.task.parameters() if p.grad is not None]
            return not (bool(loss.isfinite()) and all(bool(grad.isfinite().all()) for grad in grads))

    @torch.no_grad()
    def loss(self, unit: int) -> float:
        """The loss of one unit alone."""
        rows = self._rows([unit])
        with self._prepared(rows):
            return float(self._forward(rows))

    def first_fault(self) -> Fault | None:
        """The first layer at which the whole micro-batch stops being finite."""
        rows = self._rows(range(len(self.units)))
        watch = FaultWatch(len(rows))
        with self._prepared(rows), watch.on(self.engine.model):
            self.engine.backward(self._forward(rows))
        return watch.first

    def _rows(self, units: Sequence[int]) -> list[int]:
        rows = [place for unit in units for place in self.units[unit]]
        return sorted(rows) if len(rows) > 1 else rows * 2

    def _forward(self, rows: list[int]) -> Tensor:
        seed_all(self.seed)
        with self.engine.forward_context(last=True):
            loss: Tensor = self.engine.wrapped(chosen(self.images, rows), chosen(self.targets, rows))[0]
        return loss.float()

    @contextmanager
    def _prepared(self, rows: list[int]) -> Iterator[None]:
        """In training mode and with these rows' targets; then all is as before."""
        task: Any = self.engine.task
        task.train()
        mixed = self.mixed
        with ExitStack() as undo:
            undo.enter_context(kept_buffers(task))
            undo.callback(self.engine.drop_gradients)
            if mixed is not None:
                undo.callback(setattr, task, "mixing", task.mixing)
                task.mixing = lambda images, targets: (images, mixed[rows])
            yield


def chosen(batch: Any, rows: list[int]) -> Any:
    """These rows of images or targets: a tensor, or a list where sizes or numbers of objects differ."""
    return batch[rows] if isinstance(batch, Tensor) else [batch[row] for row in rows]


@contextmanager
def kept_buffers(module: nn.Module) -> Iterator[None]:
    """Within: buffers (BatchNorm's statistics) may change; after: they are what they were."""
    before = [(buffer, buffer.clone()) for buffer in module.buffers()]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in before:
                buffer.copy_(value)


@dataclass(frozen=True)
class Fault:
    """The first layer whose output, or the gradient with respect to it, is not finite.

    `rows`: the places of the samples of which that is so, where the layer keeps samples apart.
    """

    layer: str
    what: str
    count: int
    of: int
    rows: list[int]

    def __str__(self) -> str:
        return f"{self.layer}: {self.count:,} of {self.of:,} values of its {self.what} are not finite"


class FaultWatch:
    """Looks at what layers put out, and at the gradients of that, in the order in which they are computed.

    Layers that change their input in place (ReLU) hide the output of the layer before them from nobody: each is
    looked at the moment it is there.
    """

    def __init__(self, batch: int) -> None:
        self.batch = batch
        self.output: Fault | None = None
        self.gradient: Fault | None = None

    @property
    def first(self) -> Fault | None:
        """Outputs come before gradients."""
        return self.output or self.gradient

    @contextmanager
    def on(self, model: nn.Module) -> Iterator[None]:
        """Within: watch all layers that hold no others, and the model as a whole."""
        leaves = [
            (name, layer) for name, layer in model.named_modules() if name and not any(layer.children())
        ]
        handles = [
            layer.register_forward_hook(self._hook(f"{name} ({type(layer).__name__})"))
            for name, layer in [*leaves, ("the model", model)]
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _hook(self, title: str) -> Callable[[nn.Module, Any, Any], None]:
        def after(_layer: nn.Module, _inputs: Any, output: Any) -> None:
            for tensor in _tensors(output):
                self.output = self.output or self._fault(title, "output", tensor.detach())
                if tensor.requires_grad:
                    tensor.register_hook(self._look_at_gradient(title))  # type: ignore[no-untyped-call]

        return after

    def _look_at_gradient(self, title: str) -> Callable[[Tensor], None]:
        def look(gradient: Tensor) -> None:
            self.gradient = self.gradient or self._fault(title, "output's gradient", gradient)

        return look

    def _fault(self, layer: str, what: str, tensor: Tensor) -> Fault | None:
        wrong = ~tensor.isfinite()
        count = int(wrong.sum())
        if not count:
            return None
        rows: list[int] = []
        if tensor.ndim > 1 and len(tensor) == self.batch:
            rows = torch.nonzero(wrong.flatten(1).any(dim=1)).flatten().tolist()
        return Fault(layer, what, count, tensor.numel(), rows)


def _tensors(output: Any) -> Iterator[Tensor]:
    """The floating-point tensors in what a layer put out."""
    if isinstance(output, Tensor):
        if output.is_floating_point():
            yield output
    elif isinstance(output, Mapping):
        for item in output.values():
            yield from _tensors(item)
    elif isinstance(output, (list, tuple)):
        for item in output:
            yield from _tensors(item)
