"""Of `make bench-gpu` and `make bench`: the device's limits, and steps of networks against them and plain code.

`PlainConvMLP` is written from the paper's description, layer by layer, as its authors trained it: NCHW, LayerNorm by
way of permutations, eager, fp16 autocast with a GradScaler, AdamW as torch makes it. Its state_dict is ours.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from accelerate_state import forget_accelerate
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

import convmlp
from convmlp.optim import create_optimizer
from convmlp.tasks.classification import ClassificationTask
from convmlp_platform.distributed import joined_world
from convmlp_platform.engine.engine import Engine
from convmlp_platform.engine.types import EngineOptions
from convmlp_platform.training.build.parts import create_engine

Row = dict[str, Any]
CLASSES = 1000
SIZES = {
    "convmlp_s": (64, 2, (128, 256, 512), (2, 4, 2), 2),
    "convmlp_m": (64, 3, (128, 256, 512), (3, 6, 3), 3),
    "convmlp_l": (96, 3, (192, 384, 768), (4, 8, 3), 3),
}
ROUNDS = 3


@dataclass(frozen=True)
class Scale:
    """The size of what is measured: a GPU's, or a tiny one that only shows that the benchmark works."""

    tiny: bool
    device: torch.device

    @property
    def precision(self) -> str:
        return "bf16" if self.device.type == "cuda" else "fp32"

    @property
    def pixels(self) -> int:
        return 32 if self.tiny else 224

    @property
    def batch(self) -> int:
        return 4 if self.tiny else 256

    @property
    def steps(self) -> int:
        """In one round."""
        return 1 if self.tiny else 20

    @property
    def matrix_side(self) -> int:
        """Rows and columns of the matrices by which the device's rate is measured."""
        return 256 if self.tiny else 8192

    @property
    def copied_bytes(self) -> int:
        """Of the copy by which the memory's rate is measured; more than caches hold."""
        return 1 << 22 if self.tiny else 1 << 31

    def wait(self) -> None:
        """Until the device has done all."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


# --- the device's limits -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Limits:
    """Measured: FLOP/s of a square matrix product by precision, bytes/s of a copy (read and written)."""

    flops: dict[str, float]
    bandwidth: float


def limits(scale: Scale) -> Limits:
    """What this device reaches at its best, on random numbers."""
    side = scale.matrix_side
    kinds = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    if scale.device.type == "cpu":
        kinds = {name: kinds[name] for name in {"fp32", scale.precision}}
    flops = {}
    for name, dtype in kinds.items():
        a, b = (torch.randn(side, side, device=scale.device, dtype=dtype) for _ in range(2))
        flops[name] = 2 * side**3 / best_seconds(scale, partial(torch.mm, a, b), 10)
    source = torch.empty(scale.copied_bytes, dtype=torch.uint8, device=scale.device)
    target = torch.empty_like(source)
    return Limits(flops, 2 * source.numel() / best_seconds(scale, partial(target.copy_, source), 10))


def best_seconds(scale: Scale, work: Callable[[], Any], times: int) -> float:
    """Seconds of one call, of the best of `ROUNDS` rounds."""
    work()
    found = []
    for _ in range(ROUNDS):
        scale.wait()
        start = time.perf_counter()
        for _ in range(times):
            work()
        scale.wait()
        found.append((time.perf_counter() - start) / times)
    return min(found)


class OperatorBound(TorchDispatchMode):
    """The least time of the operators that run within: each takes its FLOPs at the matrix rate, or its inputs and
    outputs at the memory's, whichever is longer; nothing is fused, and no cache helps between two operators."""

    def __init__(self, rate: float, bandwidth: float) -> None:
        super().__init__()
        self.rate, self.bandwidth, self.seconds, self.flops = rate, bandwidth, 0.0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        given = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        made = [t for t in tree_leaves(out) if isinstance(t, Tensor)]
        known = {t.untyped_storage().data_ptr() for t in given}
        writes = func._schema.is_mutable or any(t.untyped_storage().data_ptr() not in known for t in made)
        if not writes:  # a view
            return out
        moved = sum(t.numel() * t.element_size() for t in [*given, *made])
        flops = _flops(func, args, kwargs or {}, out)
        self.flops += flops
        self.seconds += max(flops / self.rate, moved / self.bandwidth)
        return out


def step_flops(step: Callable[[], None]) -> int:
    """Arithmetic of one call of `step`."""
    with OperatorBound(1.0, 1.0) as operators:
        step()
    return operators.flops


def _flops(func: Any, args: Any, kwargs: Any, out: Any) -> int:
    if func._overloadpacket is torch.ops.aten.convolution_backward:  # torch's count knows no groups
        gradient, _, weight, *_, asked = args
        each = 2 * gradient[:, :1].numel() * weight.numel()
        return each * sum(asked[:2])
    count = flop_registry.get(func._overloadpacket)
    return int(count(*args, **kwargs, out_val=out)) if count else 0


# --- the authors' network ------------------------------------------------------------------------------------


def _conv_bn_relu(inside: int, outside: int, kernel: int, stride: int = 1) -> list[nn.Module]:
    conv = nn.Conv2d(inside, outside, kernel, stride, padding=kernel // 2, bias=False)
    return [conv, nn.BatchNorm2d(outside), nn.ReLU(inplace=True)]


class _PlainMlp(nn.Module):
    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1, self.act, self.fc2 = nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))


class _PlainDropPath(nn.Module):
    def __init__(self, rate: float) -> None:
        super().__init__()
        self.keep = 1 - rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.keep == 1:
            return x
        draw = self.keep + torch.rand((len(x), 1, 1, 1), dtype=x.dtype, device=x.device)
        return x.div(self.keep) * draw.floor()


class _PlainBlock(nn.Module):
    def __init__(self, dim: int, ratio: int, rate: float) -> None:
        super().__init__()
        self.norm1, self.channel_mlp1 = nn.LayerNorm(dim), _PlainMlp(dim, dim * ratio)
        self.connect_norm = nn.LayerNorm(dim)
        self.connect = nn.Conv2d(dim, dim, 3, padding=1, groups=dim, bias=False)
        self.norm2, self.channel_mlp2 = nn.LayerNorm(dim), _PlainMlp(dim, dim * ratio)
        self.drop = _PlainDropPath(rate)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop(self.channel_mlp1(self.norm1(x)))
        x = self.connect(self.connect_norm(x).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return x + self.drop(self.channel_mlp2(self.norm2(x)))


class _PlainStage(nn.Module):
    def __init__(self, dim: int, after: int | None, blocks: int, ratio: int) -> None:
        super().__init__()
        rates = torch.linspace(0, 0.1, blocks).tolist()
        self.blocks = nn.ModuleList(_PlainBlock(dim, ratio, rate) for rate in rates)
        if after is not None:
            self.downsample_mlp = nn.Module()
            self.downsample_mlp.downsample = nn.Conv2d(dim, after, 3, 2, padding=1)
        self.last = after is None

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        if self.last:
            return x
        downsample: Any = self.downsample_mlp.downsample
        return downsample(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class PlainConvMLP(nn.Module):
    """ConvMLP-S, M or L; [B, 3, H, W] → logits [B, 1000]."""

    def __init__(self, name: str) -> None:
        super().__init__()
        stem, convs, dims, blocks, ratio = SIZES[name]
        self.tokenizer = nn.Module()
        self.tokenizer.block = nn.Sequential(
            *_conv_bn_relu(3, stem // 2, 3, 2),
            *_conv_bn_relu(stem // 2, stem // 2, 3),
            *_conv_bn_relu(stem // 2, stem, 3),
            nn.MaxPool2d(3, 2, padding=1),
        )
        self.conv_stages = nn.Module()
        self.conv_stages.conv_blocks = nn.ModuleList(
            nn.Sequential(
                *_conv_bn_relu(stem, dims[0], 1),
                *_conv_bn_relu(dims[0], dims[0], 3),
                *_conv_bn_relu(dims[0], stem, 1),
            )
            for _ in range(convs)
        )
        self.conv_stages.downsample = nn.Conv2d(stem, dims[0], 3, 2, padding=1)
        after = (*dims[1:], None)
        self.stages = nn.ModuleList(map(partial(_PlainStage, ratio=ratio), dims, after, blocks))
        self.norm, self.head = nn.LayerNorm(dims[-1]), nn.Linear(dims[-1], CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        conv_stages: Any = self.conv_stages
        x = self.tokenizer.block(x)  # type: ignore[operator, union-attr]
        for block in conv_stages.conv_blocks:
            x = x + block(x)
        x = conv_stages.downsample(x).permute(0, 2, 3, 1)
        for stage in self.stages:
            x = stage(x)
        return self.head(self.norm(x).flatten(1, 2).mean(dim=1))


def plain_step(name: str, scale: Scale) -> Callable[[], None]:
    """The authors' step: eager, AMP where the device has it, NCHW."""
    device, on_gpu = scale.device, scale.device.type == "cuda"
    model = PlainConvMLP(name).to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-4, weight_decay=0.05)
    scaler = torch.amp.GradScaler(device.type, enabled=on_gpu)
    images = torch.randn(scale.batch, 3, scale.pixels, scale.pixels, device=device)
    labels = torch.randint(0, CLASSES, (scale.batch,), device=device)

    def step() -> None:
        with torch.autocast(device.type, torch.float16 if on_gpu else torch.bfloat16, enabled=on_gpu):
            loss = nn.functional.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()

    return step


# --- our step ------------------------------------------------------------------------------------------------


@dataclass
class Micro:
    """A micro-batch on the host, as the loader gives them: uint8 pixels, here of a device already."""

    images: Tensor
    targets: Tensor
    number: int = 0
    ghost: bool = False


def engine_step(name: str, scale: Scale, *, compiled: bool) -> tuple[Callable[[], None], Engine]:
    """The platform's step on one rank: engine.compute and engine.update, as a run takes them but for the ranks'
    agreement, which waits for the device."""
    torch.manual_seed(0)
    model = convmlp.create_model(name, image_size=scale.pixels)
    task = ClassificationTask(model, num_classes=CLASSES)
    options = EngineOptions(
        micro_batch_size=scale.batch,
        num_micro_batches=1,
        seed_for=lambda step, number: step,
        precision=scale.precision,  # type: ignore[arg-type]
        compile=compiled,
    )
    make = partial(create_optimizer, name="adamw", lr=5e-4, weight_decay=0.05)
    forget_accelerate()
    with joined_world(use_gpu=scale.device.type == "cuda") as world:  # the part's own, which goes on
        engine = create_engine("ddp", task, lambda module: make(module), options, world)
    shape = (scale.batch, 3, scale.pixels, scale.pixels)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, device=scale.device)
    micro = Micro(images, torch.randint(0, CLASSES, (scale.batch,), device=scale.device))

    def step() -> None:
        engine.compute([micro], step=0)
        engine.update(5e-4, 1.0)

    return step, engine


def measured(
    contestants: dict[str, Callable[[], None]], scale: Scale, rounds: int = ROUNDS
) -> dict[str, float]:
    """Seconds of a step of each, the median of alternating rounds; each has been warmed up."""
    found: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, step in contestants.items():
            scale.wait()
            start = time.perf_counter()
            for _ in range(scale.steps):
                step()
            scale.wait()
            found[name].append((time.perf_counter() - start) / scale.steps)
    return {name: statistics.median(seconds) for name, seconds in found.items()}


def warmed(step: Callable[[], None], scale: Scale) -> float:
    """Seconds of the first step, which compiles and chooses kernels; two more follow."""
    start = time.perf_counter()
    step()
    scale.wait()
    first = time.perf_counter() - start
    for _ in range(1 if scale.tiny else 3):
        step()
    scale.wait()
    return first


def step_rows(name: str, scale: Scale, found: Limits, *, published: bool, compiles: bool) -> Iterator[Row]:
    """A row for each way to train the network: the authors' (ConvMLP alone), ours eager and compiled."""
    on_gpu = scale.device.type == "cuda"
    contestants: dict[str, Callable[[], None]] = {}
    firsts, peaks, bound = {}, {}, 0.0
    ways = [*(["authors' eager AMP"] if published else []), "ours", *(["ours, compiled"] if compiles else [])]
    for way in ways:
        if on_gpu:
            torch.cuda.reset_peak_memory_stats()
        if way == "authors' eager AMP":
            step = plain_step(name, scale)
        else:
            step, _ = engine_step(name, scale, compiled=way.endswith("compiled"))
        firsts[way] = warmed(step, scale)
        peaks[way] = torch.cuda.max_memory_allocated() if on_gpu else 0
        contestants[way] = step
        if way == "ours":
            with OperatorBound(found.flops[scale.precision], found.bandwidth) as operators:
                step()
            bound, flops = operators.seconds, operators.flops
    seconds = measured(contestants, scale)
    for way in ways:
        yield {
            "network": name,
            "step": way,
            "precision": "fp16" if way.startswith("authors") and on_gpu else scale.precision,
            "batch": scale.batch,
            "images_per_second": scale.batch / seconds[way],
            "step_ms": 1e3 * seconds[way],
            "ratio": seconds[ways[0]] / seconds[way],
            "matmul_share": flops / found.flops[scale.precision] / seconds[way],
            "operator_bound_share": bound / seconds[way],
            "peak_gib": peaks[way] / 2**30,
            "first_step_s": firsts[way],
        }
