"""The sections of a training job beside its recipe (`config.sections.recipe`): one frozen class each, every field with
its unit and meaning.

A section checks its own values; combinations of sections are checked in `config.schema`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from convmlp_platform.config.sections.model_options import MAX_CLASSES, MAX_IMAGE_SIZE, ModelOptions
from convmlp_platform.config.sections.resilience import HangSection, RestartsSection
from convmlp_platform.config.sections.section import (
    Mean,
    Name,
    PositiveInt,
    Probability,
    Section,
    Std,
    also_auto,
)

DEFAULT_ZERO_STAGE: Literal[2] = 2

MOST_PROFILED_STEPS = 100
"""A trace of ConvMLP-S has 3,000 to 5,000 events a step; a viewer bears some hundred thousand."""


class ModelSection(Section):
    """The network."""

    name: str = Field(description="a name from `convmlp models`, or any name timm knows", max_length=128)
    num_classes: PositiveInt | None = Field(
        None, le=MAX_CLASSES, description="default: the dataset's number of classes"
    )
    drop_path_rate: Probability | None = Field(
        None,
        description="stochastic depth; default: the model's own; auto: none in a short run",
        json_schema_extra=also_auto,
    )
    init_from: str | None = Field(
        None,
        description="weights to start from: models:/NAME@ALIAS or /VERSION, a run's folder, a checkpoint (path or "
        "URL), a model bundle, or a .pth, .npz or .safetensors file; a head of other classes is replaced",
    )
    init_weights: Literal["auto", "ema", "raw"] = Field(
        "auto",
        description="of a checkpoint or file with two sets of weights: the moving average, or those that the optimizer "
        "moves; auto: the average where there is one",
    )
    init_head: Literal["auto", "keep", "fresh"] = Field(
        "auto",
        description="the head of init_from, where it has as many classes: keep it or make it anew; auto: anew where it "
        "is known to be for other classes than the dataset's",
    )
    options: ModelOptions = Field(
        default_factory=dict, description="further arguments of the model, e.g. {stem_stride: 2}"
    )


CPU_PRECISIONS = "use fp32, or bf16 where the CPU has instructions for it"
"""The advice where fp16 was asked of a CPU."""


class DataSection(Section):
    """The samples, their order, and the processes that read them."""

    path: str = Field(description="folder of the prepared dataset (it holds manifest.json)")
    format: Literal["webdataset", "ffcv"] = Field(
        "webdataset", description="which of the dataset's shard formats to read"
    )
    digest: str | None = Field(
        None, pattern=r"^sha256:[0-9a-f]{64}$", description="refuse any other dataset than this one"
    )
    train_split: str = "train"
    eval_split: str = "val"
    image_size: int = Field(
        224, ge=8, le=MAX_IMAGE_SIZE, description="pixels, height and width of a training image"
    )
    mean: Mean | None = Field(
        None, description="of red, green and blue in 0..1, subtracted from pixels; default: the dataset's own"
    )
    std: Std | None = Field(
        None, description="of red, green and blue, which pixels are divided by; default: the dataset's own"
    )
    num_workers: int = Field(
        2,
        ge=0,
        description="reader processes per training worker; 0 reads in the training process; auto: by its CPUs",
        json_schema_extra=also_auto,
    )
    num_streams: PositiveInt | None = Field(
        None,
        description="canonical streams of the sample order; default: the number of micro-batches in a step",
    )
    shuffle_block: PositiveInt = Field(
        64, description="samples that stay neighbours on disk when blocks are permuted"
    )
    shuffle_window: PositiveInt = Field(4096, description="samples within which a stream is fully shuffled")
    verify: bool = Field(True, description="check each sample's checksum while reading")
    on_damage: Literal["fail", "quarantine"] = Field(
        "fail",
        description="quarantine: a damaged sample is read from the other format, or else left out and reported",
    )
    max_quarantined: Annotated[float, Field(ge=0.0, le=1.0)] = Field(
        1e-4, description="share of the split's samples that may be left out before the run fails"
    )
    cache_dir: str = Field(
        "~/.cache/convmlp",
        description="folder on the node's own disk for parts of a remote dataset (data.path: s3://...)",
    )
    cache_bytes: Annotated[int, Field(ge=1 << 20)] = Field(
        100 * 10**9, description="size the cache is kept below, per node"
    )
    read_ahead: int = Field(
        2, ge=0, description="shuffle windows of each stream fetched before they are needed"
    )


class EngineSection(Section):
    """The engine that runs the step, and its precision."""

    strategy: Literal["ddp", "fsdp", "deepspeed"] = "ddp"
    zero_stage: Literal[1, 2, 3] = Field(DEFAULT_ZERO_STAGE, description="deepspeed only")
    precision: Literal["fp32", "bf16", "fp16"] = Field(
        "fp32",
        description="weights stay fp32; bf16 and fp16 are autocast; fp16 needs GPUs; auto: bf16 where it is fast, "
        "else fp32; a run that has begun keeps what it has",
        json_schema_extra=also_auto,
    )
    compile: bool = Field(False, description="torch.compile the model")
    channels_last: bool = True
    deepspeed: dict[str, Any] = Field(
        default_factory=dict, description="options passed through to DeepSpeed's config"
    )

    @model_validator(mode="after")
    def _deepspeed_options_need_deepspeed(self) -> EngineSection:
        # Compared with the defaults: a job written out in full, as workers get it, loads again.
        given = {"zero_stage": self.zero_stage != DEFAULT_ZERO_STAGE, "deepspeed": bool(self.deepspeed)}
        if self.strategy != "deepspeed" and any(given.values()):
            name = next(name for name, differs in given.items() if differs)
            raise ValueError(f"{name} is for strategy: deepspeed, but strategy is {self.strategy}")
        return self


class CheckpointSection(Section):
    """The checkpoints of a run's state: their place, how often they are saved, how many are kept."""

    path: str = Field("runs", description="folder of all runs; this run's is PATH/NAME")
    store: str | None = Field(
        None,
        description="where checkpoints lie, if not in the run's folder: STORE/NAME, a path or URL (s3://...)",
    )
    every_steps: PositiveInt | None = Field(
        None, description="in addition to the end of each evaluated epoch"
    )
    keep: int = Field(3, ge=2, description="checkpoints kept; the newest two always are")


class RegisterSection(Section):
    """The registration of the best model."""

    name: Name = Field(
        description="registered model: models:/NAME@ALIAS; auto: the dataset's name",
        json_schema_extra=also_auto,
    )
    alias: Name = Field("champion", description="of the version in use; `convmlp registry promote` moves it")
    automatic: bool = Field(
        False,
        description="give the alias to a version that training found no worse than its holder on the same images, "
        "without comparing the two again; for people alone on a machine",
    )


class TrackingTarget(Section):
    """The place of MLflow. MLFLOW_TRACKING_URI wins over `uri`; by default a SQLite file beside the runs."""

    uri: str | None = None
    experiment: str = "convmlp"
    tags: dict[str, str] = Field(default_factory=dict)


class TrackingSection(TrackingTarget):
    """The place where a training run is recorded, and the registration of its best model."""

    register_as: RegisterSection | None = None
    tensorboard: bool = Field(
        False, description="also write the metrics to RUN/tensorboard, as TensorBoard's event files"
    )


class LaunchSection(Section):
    """On what the job runs. Nothing here changes the result."""

    address: str = Field(
        "auto", description="auto: the cluster of RAY_ADDRESS, else a local Ray; local; or host:port"
    )
    num_workers: PositiveInt = Field(
        1,
        description="training processes, one a GPU; auto: one for each GPU of the cluster, or for each node without",
        json_schema_extra=also_auto,
    )
    min_workers: PositiveInt | None = Field(
        None,
        description="go on with as few as this while nodes are missing, and grow back; default: num_workers",
    )
    use_gpu: Literal["auto"] | bool = Field("auto", description="auto: where the cluster has GPUs")
    cpus_per_worker: PositiveInt = Field(
        1, description="auto: its share of the CPUs of a node", json_schema_extra=also_auto
    )
    placement: Literal["PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"] = "PACK"
    wait_for_workers_s: float = Field(
        600.0, ge=0.0, description="how long a run that lost nodes waits for room for min_workers"
    )
    preemption_grace_s: float = Field(
        120.0,
        gt=0.0,
        description="seconds that workers told to stop may take to save, and that a storage that refuses the last "
        "checkpoint is asked again",
    )
    hang: HangSection = HangSection()
    restarts: RestartsSection = RestartsSection()
    price_per_gpu_hour: float | None = Field(
        None,
        ge=0.0,
        description="what a worker's GPU (on CPUs: a worker) costs an hour; the run then tells its cost",
    )
    currency: str = Field("USD", max_length=8, description="of price_per_gpu_hour")

    @property
    def least_workers(self) -> int:
        """With fewer than this the run waits."""
        return self.min_workers or self.num_workers


# Nothing in it is part of a run's identity.
class ProfileSection(Section):
    """The steps that are recorded operator by operator (torch.profiler), and by which ranks."""

    steps: tuple[Annotated[int, Field(ge=0)], Annotated[int, Field(ge=0)]] = Field(
        description="[FIRST, END]: from when FIRST steps are done until END are, so END - FIRST steps; a first step of "
        "a process is never typical: leave some out"
    )
    every_rank: bool = Field(False, description="a trace of each rank; by default rank 0's alone")

    @field_validator("steps")
    @classmethod
    def _rises(cls, steps: tuple[int, int]) -> tuple[int, int]:
        first, end = steps
        if first >= end:
            raise ValueError(
                f"must rise, e.g. [{first}, {first + 10}]: its end isn't one of the steps recorded"
            )
        if end - first > MOST_PROFILED_STEPS:
            raise ValueError(
                f"are {end - first} steps, whose trace no viewer opens: {MOST_PROFILED_STEPS} at most, "
                f"e.g. [{first}, {first + 10}]"
            )
        return steps
