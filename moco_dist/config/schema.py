"""The keys of a run's config are the fields of frozen sections, which are validated when they are read.

What needs no knowledge of the machine is checked here; `layout` checks what depends on the number of ranks.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from moco_dist.config.data_section import DataSection
from moco_dist.config.paths import PathText
from moco_dist.config.section import CompileSwitch, FileName, Float, Fraction, Int, Natural, Positive, Section, Switch


class RunSection(Section):
    name: FileName = "run"
    """Name of the run; unset, the name of the config file."""
    dir: PathText | None = None
    """Run directory; unset, runs/<name>."""
    seed: Annotated[Int, Field(ge=0, lt=2**63)] = 0
    """Seed of every random number: weights, queue, batch order, augmentation, shuffle."""
    resume: Literal["auto", "never"] = "auto"
    """auto: continue from the last checkpoint in the run directory; never: refuse a directory that has one."""
    init_from: PathText | None = None
    """Weights to begin from: a run, or those of a ResNet of another program (docs/weights.md); layers must fit."""
    max_minutes: Annotated[Float, Field(gt=0)] | None = None
    """Save and exit with 75 after so many minutes of this start, ahead of a time limit."""
    hang_timeout_seconds: Annotated[Float, Field(ge=5, le=31_536_000)] = 600.0  # a year: torch's clocks overflow later
    """A rank that waits so long for another one ends the job."""


class ModelSection(Section):
    arch: Literal["resnet18", "resnet34", "resnet50", "resnet101", "resnet152"] = "resnet18"
    """torchvision's ResNets."""
    stem: Literal["imagenet", "small"] = "imagenet"
    """imagenet: 7x7 stride 2 and a pool; small: 3x3 stride 1, no pool, for images of about 32 pixels."""
    width: Annotated[Int, Field(ge=8, multiple_of=8)] = 64
    """Channels of the first stage; torchvision's is 64."""
    dim: Positive = 128
    """Dimension of q and k."""
    mlp: bool = True
    """true: the two-layer head of MoCo v2; false: the linear head of v1."""


class MoCoSection(Section):
    queue_size: Positive = 65536
    """Number of keys in the queue, K of the paper."""
    momentum: Fraction = 0.999
    """m of the key encoder's update k <- m k + (1-m) q."""
    temperature: Annotated[Float, Field(gt=0)] = 0.07
    """tau of InfoNCE."""
    symmetric: bool = False
    """true: each view is query and key once, and the losses add up."""
    shuffle: Literal["all_gather", "all_to_all", "none"] = "all_gather"
    """How shuffle-BN moves the images; all_to_all receives this rank's slice alone."""
    bn_groups: Positive | None = None
    """BatchNorm groups of the global batch, runs of neighbours; unset, one a rank and accumulated part."""


class OptimSection(Section):
    global_batch: Positive = 256
    """Images of one step over all ranks and accumulated parts."""
    lr: Annotated[Float, Field(gt=0)] = 0.03
    """Learning rate after the warm-up."""
    sgd_momentum: Annotated[Float, Field(ge=0, lt=1)] = 0.9
    """Momentum of SGD."""
    weight_decay: Annotated[Float, Field(ge=0)] = 1e-4
    """L2 penalty of SGD."""
    epochs: Positive = 200
    """Length of the run in epochs."""
    steps: Positive | None = None
    """Length of the run, and of the schedule, in steps; where given, epochs does not count."""
    schedule: Literal["cosine", "step", "constant"] = "cosine"
    """Learning rate over time: cosine to zero, drops at milestones, or constant."""
    milestones: tuple[Natural, ...] = (120, 160)
    """Epochs at which schedule=step multiplies the learning rate by decay."""
    decay: Annotated[Float, Field(gt=0, le=1)] = 0.1
    """Factor of schedule=step at each milestone."""
    warmup_epochs: Annotated[Float, Field(ge=0)] = 0.0
    """Epochs of linear warm-up from zero."""
    accumulate: Positive = 1
    """Parts that a rank's batch is computed in, to save memory; changes no result."""


class DeviceSection(Section):
    type: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: CUDA with NCCL where there is one, else CPU with gloo."""
    threads: Positive = 1
    """CPU threads of a rank. One makes the curve the same on any number of ranks; use ranks to use cores."""
    precision: Literal["fp32", "bf16", "fp16", "fp64"] = "fp32"
    """Arithmetic of the encoders; logits and loss are float32 or wider always. fp64 is for proofs."""
    compile: CompileSwitch = "auto"
    """torch.compile; reduce-overhead: its mode with CUDA graphs; auto: large networks in half precision on a GPU."""
    channels_last: Switch = "auto"
    """NHWC memory format; auto: on the CPU, and on a GPU in half precision."""
    engine: Literal["auto", "exact", "overlapped"] = "auto"
    """exact: equal bits on any number of ranks; overlapped: faster; auto: exact on the CPU and where deterministic."""
    deterministic: bool = False
    """Deterministic CUDA kernels: resuming is then bit-exact on CUDA too."""

    def is_exact(self, *, on_cpu: bool) -> bool:
        """Tell whether a step is taken by the exact engine, on the CPU or on a GPU."""
        return self.engine == "exact" or (self.engine == "auto" and (on_cpu or self.deterministic))


class CheckpointSection(Section):
    every_steps: Positive | None = 1000
    """Steps between checkpoints; null: none by steps."""
    every_minutes: Annotated[Float, Field(gt=0)] | None = 15.0
    """Minutes between checkpoints; null: none by time."""
    keep: Annotated[Int, Field(ge=2)] = 2
    """Last checkpoints kept."""
    milestone_epochs: Positive | None = None
    """Keep for good the checkpoint of every so many epochs."""


class EvalSection(Section):
    knn_every: Natural = 5
    """Epochs between evaluations by kNN and a linear probe, the last at the end of the run; 0: none."""
    online_images: Positive | None = 10000
    """Images of the bank for evaluations but the last of a run, at most, and a fifth as many queries; null: all."""
    knn_k: Positive = 200
    """Neighbours that vote."""
    knn_temperature: Annotated[Float, Field(gt=0)] = 0.1
    """Temperature of the votes' weights."""
    knn_split: Literal["test", "validation"] = "test"
    """Evaluate on the test set, or on a part cut from the training set."""
    validation_fraction: Annotated[Float, Field(gt=0, lt=1)] = 0.1
    """Part of the training set that knn_split=validation cuts off."""


class TrackSection(Section):
    wandb: Literal["offline", "online", "disabled"] = "offline"
    """Weights & Biases; offline needs no account; unset, WANDB_DISABLED and WANDB_MODE where they are set."""
    project: str = "moco-dist"
    """Project at W&B; unset, WANDB_PROJECT where that is set."""
    group: str | None = None
    """Group of the run at W&B: the members of a sweep share one."""
    tags: tuple[str, ...] = ()
    """Tags of the run at W&B, for its filters."""
    notes: str | None = None
    """What the run is for, as W&B shows it beside the run."""
    artifact: bool = False
    """Show the final encoder at W&B as an artifact that refers to the file, with the training images as its input."""
    tensorboard: bool = False
    """Write TensorBoard's event files into the run directory; needs the package tensorboard."""
    trackio: bool = False
    """Write a database of Trackio's into the run directory; needs the package trackio."""
    log_every: Positive = 10
    """Steps between rows of metrics."""
    compare_ranks_every: Natural = 100
    """Steps between comparisons of the ranks, whose weights and queues are to be equal; told in rows; 0: none."""


class Config(Section):
    """A config describes a whole run."""

    run: RunSection = RunSection()
    data: DataSection = DataSection()
    model: ModelSection = ModelSection()
    moco: MoCoSection = MoCoSection()
    optim: OptimSection = OptimSection()
    device: DeviceSection = DeviceSection()
    checkpoint: CheckpointSection = CheckpointSection()
    eval: EvalSection = EvalSection()
    track: TrackSection = TrackSection()

    @model_validator(mode="after")
    def _keys_fit_together(self) -> Config:
        # Raised as ValueError so that pydantic gathers it; _explain turns it back into one line.
        for key, (low, high), least in (
            ("data.crop_scale", self.data.crop_scale, 0.0),
            ("data.crop_ratio", self.data.crop_ratio, 0.0),
            ("data.blur_sigma", self.data.blur_sigma, 0.0),
        ):
            if not least < low <= high:
                raise ValueError(f"{key} = {[low, high]}: must be [least, most] above 0; swap or raise them")
        if self.data.crop_scale[1] > 1:
            raise ValueError(f"data.crop_scale = {list(self.data.crop_scale)}: must not exceed 1; lower the second")
        if self.data.source in ("mnist", "cifar10", "imagefolder") and not self.data.root:
            raise ValueError(f"data.root = null: data.source={self.data.source} needs a folder; add data.root=FOLDER")
        if self.data.download and self.data.source not in ("mnist", "cifar10"):
            raise ValueError(f"data.download = true: nothing to download for data.source={self.data.source}; drop it")
        if self.data.channels and self.data.source not in ("imagefolder", "synthetic"):
            raise ValueError(f"data.channels = {self.data.channels}: {self.data.source} has its own; drop it")
        self.data.check_pixels()
        groups, batch = self.moco.bn_groups, self.optim.global_batch
        if groups and batch % groups:
            raise ValueError(
                f"optim.global_batch = {batch}: must be divisible by moco.bn_groups={groups}; "
                f"use optim.global_batch={round_up(max(batch, groups + 1), groups)}"
            )
        if groups and batch // groups < 2:
            raise ValueError(
                f"moco.bn_groups = {groups}: BatchNorm needs at least 2 images a group; "
                f"use moco.bn_groups={max(1, batch // 2)} or less"
            )
        return self

    @property
    def run_dir(self) -> Path:
        return Path(self.run.dir) if self.run.dir else Path("runs") / self.run.name

    def at(self, run_dir: Path) -> Config:
        """Return the config of a run that lies in the directory, wherever it was begun."""
        if self.run_dir.resolve() == run_dir.resolve():
            return self
        return self.model_copy(update={"run": self.run.model_copy(update={"dir": str(run_dir)})})


def round_up(number: int, divisor: int) -> int:
    """Return the least multiple of the divisor that is not below the number."""
    return -(-number // divisor) * divisor
