"""The sections of an evaluation job (`kind: evaluate`): which model, on which images, and what is to be measured."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, create_model, model_validator

from convmlp_platform.config import paths
from convmlp_platform.config.sections.execution import CPU_PRECISIONS, TrackingTarget
from convmlp_platform.config.sections.model_options import MAX_IMAGE_SIZE, ModelOptions
from convmlp_platform.config.sections.section import Mean, Name, PositiveInt, Section, Std
from convmlp_platform.config.sections.task_section import TaskSection

if TYPE_CHECKING:
    _From = Section
else:  # `from` is Python's word, too, so a class body can't name a field so
    _FORMS = (
        "models:/NAME@ALIAS or models:/NAME/3, a run's folder, a checkpoint's folder or URL, a bundle's folder, or a "
        "file of weights (.pth, .npz, .safetensors)"
    )
    _From = create_model("_From", __base__=Section, **{"from": (str, Field(description=_FORMS))})


class EvaluatedModelSection(_From):
    """The model. A registered model, bundle, run or checkpoint knows all but `from`; a bare file of weights knows its
    weights only."""

    weights: Literal["auto", "ema", "raw"] = Field(
        "auto",
        description="of a checkpoint or file with two sets of weights: the moving average, or those that the optimizer "
        "moves; auto: the average where there is one",
    )
    name: str | None = Field(
        None, max_length=128, description="of a bare file: a name from `convmlp models`, or timm's"
    )
    num_classes: PositiveInt | None = Field(
        None, description="of a bare file: classes of its head; default: the dataset's"
    )
    options: ModelOptions = Field(
        default_factory=dict, description="of a bare file: further arguments of the model"
    )

    @property
    def source(self) -> str:
        """Value of `from`."""
        return str(getattr(self, "from"))


class EvaluatedDataSection(Section):
    """The images, and how they are prepared. Fields that are left out have the values that the model was made for."""

    path: str = Field(description="folder or URL of the prepared dataset (it holds manifest.json)")
    format: Literal["webdataset", "ffcv"] = Field(
        "webdataset", description="which of the dataset's shard formats to read"
    )
    split: str = "val"
    digest: str | None = Field(
        None, pattern=r"^sha256:[0-9a-f]{64}$", description="refuse any other dataset than this one"
    )
    image_size: int | None = Field(None, ge=8, le=MAX_IMAGE_SIZE, description="pixels; default: the model's")
    crop_pct: float | None = Field(
        None, gt=0.0, le=1.0, description="share of the resized short side that is kept; default: the model's"
    )
    interpolation: Literal["bilinear", "bicubic"] | None = Field(None, description="default: the model's")
    mean: Mean | None = Field(
        None, description="of pixels in [0, 1], by channel; default: that of the model's training"
    )
    std: Std | None = Field(None, description="as mean")
    num_workers: int = Field(2, ge=0, description="reader processes; 0 reads in the evaluating process")
    verify: bool = Field(True, description="check each sample's checksum while reading")
    cache_dir: str = Field("~/.cache/convmlp", description="for parts of a remote dataset")
    cache_bytes: Annotated[int, Field(ge=1 << 20)] = Field(
        100 * 10**9, description="size the cache is kept below"
    )


class ThroughputSection(Section):
    """Images per second of the forward pass alone: images lie on the device already."""

    batch_sizes: tuple[PositiveInt, ...] = Field((), description="each is measured; [] measures none")
    warmup: int = Field(3, ge=0, description="batches before the clock runs")
    batches: PositiveInt = Field(20, description="batches that are timed one by one")


class PermutationSection(Section):
    """Accuracy on images whose pixels are in another order, the same for all: the Mixer paper's, section 3.4. The paper
    trains on such images (augment.permute of a training job); here a finished model is shown them."""

    kinds: tuple[Literal["patches", "pixels"], ...] = Field(
        (), description="patches: shuffled, and the pixels of each alike; pixels: all of the image; [] none"
    )
    patch_size: PositiveInt = Field(16, description="side of a patch in pixels")
    seed: int = Field(0, ge=0)


class EvaluateSection(Section):
    """The measurement: how the images are computed and what is measured of them."""

    batch_size: PositiveInt = Field(64, description="images a forward pass")
    precision: Literal["fp32", "bf16", "fp16"] = Field(
        "fp32", description="bf16 and fp16 are autocast; fp16 needs a GPU"
    )
    channels_last: bool = True
    compile: bool = Field(False, description="torch.compile the model")
    real_labels: str | None = Field(
        None,
        description="ImageNet ReaL's real.json: top-1 by its labels, too (dataset: ImageNet's val split)",
    )
    confusion: bool = Field(True, description="which classes are taken for which (not for detection)")
    per_class: bool = Field(True, description="accuracy, AP or IoU of every class")
    pictures: bool = Field(True, description="images with what the model found in them")
    throughput: ThroughputSection = ThroughputSection()
    permutation: PermutationSection = PermutationSection()


class EvaluateOutputSection(Section):
    """The place of the results."""

    path: str = Field("evaluations", description="folder of all evaluations; this one's is PATH/NAME")


class EvaluateLaunchSection(Section):
    """On what the job runs: one worker."""

    address: str = Field(
        "auto", description="auto: the cluster of RAY_ADDRESS, else a local Ray; local; or host:port"
    )
    use_gpu: Literal["auto"] | bool = Field("auto", description="auto: where the cluster has GPUs")
    cpus: PositiveInt = Field(1, description="CPU cores of the worker")


def precision_problems(precision: str, launch: EvaluateLaunchSection) -> list[str]:
    """The problem of a precision that the device of `launch` can't compute, or none."""
    if precision == "fp16" and launch.use_gpu is False:
        return [f"evaluate.precision: fp16 needs a GPU, but launch.use_gpu is false: {CPU_PRECISIONS}"]
    return []


class EvaluateJob(Section):
    """Measure a model on a split of a prepared dataset."""

    kind: Literal["evaluate"]
    name: Name = Field(description="of the result's folder, and of the run in MLflow")
    model: EvaluatedModelSection
    task: TaskSection | None = Field(None, description="of a bare file or checkpoint; default: the model's")
    data: EvaluatedDataSection
    evaluate: EvaluateSection = EvaluateSection()
    output: EvaluateOutputSection = EvaluateOutputSection()
    tracking: TrackingTarget = TrackingTarget()
    launch: EvaluateLaunchSection = EvaluateLaunchSection()

    def resolved(self) -> EvaluateJob:
        """The job with every local path absolute, from CONVMLP_ROOT or the current folder (`config.paths`).

        Raises:
            ConfigError: a relative path would be lost with Ray's copy of the code.
        """
        model = self.model.model_copy(update={"from": paths.resolve_model(self.model.source, "model.from")})
        data = self.data.model_copy(update={"path": paths.resolve(self.data.path, "data.path")})
        output = self.output.model_copy(update={"path": paths.resolve(self.output.path, "output.path")})
        evaluate, labels = self.evaluate, self.evaluate.real_labels
        if labels is not None:
            labels = paths.resolve(labels, "evaluate.real_labels")
            evaluate = evaluate.model_copy(update={"real_labels": labels})
        sections = {"model": model, "data": data, "output": output, "evaluate": evaluate}
        return self.model_copy(update=sections)

    @model_validator(mode="after")
    def _combinations(self) -> EvaluateJob:
        problems = []
        if (self.data.mean is None) != (self.data.std is None):
            problems.append("data.mean and data.std belong together: give both or neither")
        problems += precision_problems(self.evaluate.precision, self.launch)
        if problems:
            raise ValueError("\n".join(problems))
        return self
