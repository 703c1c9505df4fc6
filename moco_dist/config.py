"""The schema of a run: frozen, validated at load, every error names key, value, rule and fix.

A config is a YAML file of sections (`optim: {lr: 0.03}`) plus overrides (`optim.lr=0.03`). What needs no
knowledge of the machine is checked here; `layout` checks what depends on the number of ranks.
"""

from __future__ import annotations

import difflib
import json
import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

SHIPPED_CONFIGS = Path(__file__).parent / "configs"
DEFAULT_CONFIG = SHIPPED_CONFIGS / "digits.yaml"


class UserError(Exception):
    """A mistake of the user's: one line that names key, value, rule and fix. The process exits with 2."""

    def __init__(self, line: str) -> None:
        # A data worker's comes with its traceback before it.
        super().__init__(line.rsplit("UserError: ", 1)[-1].rstrip())

    @classmethod
    def of(cls, key: str, value: object, rule: str, fix: str) -> UserError:
        return cls(f"{key} = {shown(value)}: {rule}; {fix}")


def shown(value: object) -> str:
    """A value as the user would write it in YAML, on one line and not longer than a line."""
    text = json.dumps(value) if isinstance(value, bool | list | dict | type(None)) else str(value)
    text = " ".join(text.split())
    return text if len(text) <= 80 else text[:77] + "..."


def _number(value: object) -> object:
    """YAML 1.1 reads `1e-4` as text and `true` as a number: take the first, refuse the second."""
    if isinstance(value, bool):
        raise ValueError("must be a number, not true or false")
    if isinstance(value, str) and re.fullmatch(r"\s*[-+]?(\d[\d_]*\.?\d*|\.\d+)([eE][-+]?\d+)?\s*", value):
        return float(value)
    return value


def _file_name(text: str) -> str:
    if not re.fullmatch(r"\w[\w.+=-]*", text):
        raise ValueError("must be a file name of letters, digits and _ . + = -")
    return text


Int = Annotated[int, BeforeValidator(_number)]
Float = Annotated[float, BeforeValidator(_number)]
Positive = Annotated[Int, Field(gt=0)]
Natural = Annotated[Int, Field(ge=0)]
Fraction = Annotated[Float, Field(ge=0, le=1)]
Interval = tuple[Float, Float]


class Section(BaseModel):
    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, coerce_numbers_to_str=True, use_attribute_docstrings=True
    )


S = TypeVar("S", bound=Section)


class RunSection(Section):
    name: Annotated[str, AfterValidator(_file_name)] = "run"
    """Name of the run; unset, the name of the config file."""
    dir: str | None = None
    """Run directory; unset, runs/<name>."""
    seed: Annotated[Int, Field(ge=0, lt=2**63)] = 0
    """Seed of every random number: weights, queue, batch order, augmentation, shuffle."""
    resume: Literal["auto", "never"] = "auto"
    """auto: continue from the last checkpoint in the run directory; never: refuse a directory that has one."""
    init_from: str | None = None
    """Weights to begin from: an encoder.safetensors, or a .pt of torchvision's names; shapes must match."""
    max_minutes: Annotated[Float, Field(gt=0)] | None = None
    """Save and exit with 75 after so many minutes of this start, ahead of a time limit."""
    hang_timeout_seconds: Annotated[Float, Field(ge=5)] = 600.0
    """A rank that waits so long for another one ends the job."""


class DataSection(Section):
    source: Literal["digits", "mnist", "cifar10", "imagefolder", "synthetic"] = "digits"
    """Where the images come from."""
    root: str | None = None
    """Folder of the data: a torchvision root (mnist, cifar10) or a tree of images (imagefolder)."""
    download: bool = False
    """Let torchvision download mnist or cifar10 into root."""
    channels: Literal[1, 3] | None = None
    """Read the images of an imagefolder as grayscale (1) or colour (3); unset, 3."""
    image_size: Annotated[Int, Field(ge=4)] = 8
    """Side of the square crop that the encoder sees, in pixels."""
    augmentation: Literal["v1", "v2", "crop_blur"] = "v2"
    """Recipe: v1 and v2 of the papers, or crop and blur alone (grayscale digits)."""
    crop_scale: Interval = (0.2, 1.0)
    """Area of the random crop as a fraction of the image's, least and most."""
    crop_ratio: Interval = (3 / 4, 4 / 3)
    """Width over height of the random crop, least and most."""
    rotation_degrees: Annotated[Float, Field(ge=0, le=180)] = 0.0
    """Largest random rotation to either side; for digits and the like, where colours tell nothing."""
    shear_degrees: Annotated[Float, Field(ge=0, le=60)] = 0.0
    """Largest random slant to either side."""
    elastic_pixels: Annotated[Float, Field(ge=0)] = 0.0
    """Largest shift of a control point of a random elastic distortion."""
    blur_probability: Fraction | None = None
    """Probability of the Gaussian blur; unset, the recipe's."""
    blur_sigma: Interval = (0.1, 2.0)
    """Standard deviation of the Gaussian blur in pixels, least and most."""
    workers: Natural = 0
    """Processes a rank that decode and crop; 0: the training process does it."""
    samples: Positive = 1024
    """Number of images of the synthetic source."""


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
    compile: bool = False
    """torch.compile both encoders."""
    channels_last: bool = False
    """NHWC memory format, faster with tensor cores."""
    deterministic: bool = False
    """Deterministic CUDA kernels: resuming is then bit-exact on CUDA too."""


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
    """Weights & Biases; offline needs no account; unset, WANDB_MODE where that is set."""
    project: str = "moco-dist"
    """Project at W&B."""
    group: str | None = None
    """Group of the run at W&B: the members of a sweep share one."""
    log_every: Positive = 10
    """Steps between rows of metrics."""


class Config(Section):
    """A whole run."""

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
        groups, batch = self.moco.bn_groups, self.optim.global_batch
        if groups and batch % groups:
            raise ValueError(
                f"optim.global_batch = {batch}: must be divisible by moco.bn_groups={groups}; "
                f"use optim.global_batch={_round_up(max(batch, groups + 1), groups)}"
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


@dataclass(frozen=True)
class Layout:
    """How a global batch lies on the ranks; the curve depends on `group_size` alone."""

    ranks: int
    batch_per_rank: int
    group_size: int
    """Images of one BatchNorm group."""
    parts: int
    """Parts that a rank's batch is computed in, each a whole number of groups."""


def layout(config: Config, ranks: int) -> Layout:
    """Lay the global batch on so many ranks.

    Where the groups are fixed, a part of an accumulated batch holds whole groups, so that accumulation never
    changes the result; a rank with too few groups for `optim.accumulate` parts computes in fewer.

    Raises:
        UserError: batch or groups do not divide by the ranks.
    """
    batch, accumulate = config.optim.global_batch, config.optim.accumulate
    if batch % ranks:
        raise UserError.of(
            "optim.global_batch",
            batch,
            f"must be divisible by the {ranks} ranks",
            f"use optim.global_batch={_round_up(batch, ranks)}",
        )
    groups = config.moco.bn_groups or ranks * accumulate
    if groups % ranks:
        raise UserError.of(
            "moco.bn_groups",
            groups,
            f"must be divisible by the {ranks} ranks",
            f"use moco.bn_groups={_round_up(groups, ranks)}, or a number of ranks that divides {groups}",
        )
    if batch % groups:  # only where the groups were not given: Config has checked them otherwise
        raise UserError.of(
            "optim.global_batch",
            batch,
            f"must be divisible by ranks x optim.accumulate = {groups}",
            f"use optim.global_batch={_round_up(batch, groups)}",
        )
    if batch // groups < 2:
        raise UserError.of(
            "optim.global_batch",
            batch,
            f"leaves one image for each of {groups} BatchNorm groups, which need 2",
            f"use optim.global_batch={2 * groups}",
        )
    groups_per_rank = groups // ranks
    parts = max(n for n in range(1, accumulate + 1) if groups_per_rank % n == 0)
    return Layout(ranks, batch // ranks, batch // groups, parts)


def load(path: Path | None = None, overrides: Sequence[str] = ()) -> Config:
    """Read a config file and apply `section.key=value` overrides.

    Args:
        path: YAML file; None means the embedded default, `configs/digits.yaml`. A name that is no file but
            a shipped config's (`configs/mnist.yaml`, `mnist`) is that config.
        overrides: each `section.key=value`, value in YAML.

    Unset, `run.name` is the name of the file, and `track.wandb` what the variable WANDB_MODE says.

    Raises:
        UserError: whatever is wrong with it, in one line.
    """
    file = _find(path) if path else DEFAULT_CONFIG
    tree = read_tree(file)
    for override in overrides:
        _apply(tree, override)
    run = tree.setdefault("run", {})
    if isinstance(run, dict):
        run.setdefault("name", file.stem)
    track = tree.setdefault("track", {})
    if isinstance(track, dict) and "wandb" not in track:
        track["wandb"] = _wandb_mode()
    return parse(tree)


def _wandb_mode() -> str:
    """Return what the variable WANDB_MODE says, in the words of track.wandb, or offline. Raises UserError."""
    mode = os.environ.get("WANDB_MODE") or "offline"
    modes = {"offline": "offline", "online": "online", "disabled": "disabled", "dryrun": "offline", "run": "online"}
    if mode not in modes:
        raise UserError.of("WANDB_MODE", mode, "must be offline, online or disabled", "unset it, or set track.wandb")
    return modes[mode]


def parse(tree: Mapping[str, Any]) -> Config:
    """Validate a tree of sections. Raises UserError for the first mistake, and counts the others."""
    return validate(Config, tree)


def validate(model: type[S], tree: Mapping[str, Any]) -> S:
    """Make a model of a tree of keys. Raises UserError for the first mistake, and counts the others."""
    try:
        return model.model_validate(tree)
    except ValidationError as error:
        first, *others = error.errors()
        more = f" (and {len(others)} more)" if others else ""
        raise UserError(_explain(first, model) + more) from None


def dump(config: Config) -> str:
    """The resolved config as YAML that `load` reads back."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def parse_arguments(arguments: Sequence[str]) -> tuple[Path | None, list[str]]:
    """Split `[CONFIG.yaml] [section.key=value ...]`, in any order. Raises UserError for anything else."""
    words = [a for a in arguments if not a.startswith("-")]
    overrides = [a for a in words if "=" in a and "/" not in a.partition("=")[0]]  # a folder's name may hold a =
    files = [a for a in words if a not in overrides]
    for argument in arguments:
        if argument.startswith("-"):
            raise UserError(f"argument {argument}: options are not known here; write section.key=value")
    if len(files) > 1:
        raise UserError(f"argument {files[1]}: one config file at most, {files[0]} came first; drop one of them")
    return (Path(files[0]) if files else None), overrides


# What a run that goes on may change: where and how fast it runs, what it tells, but not its curve.
_FREE = {"run", "data.root", "data.download", "data.workers", "moco.bn_groups", "optim.accumulate", "device"}
_FREE |= {"checkpoint", "eval.knn_every", "eval.online_images", "eval.knn_k", "eval.knn_temperature", "track"}


def check_resumable(begun: Mapping[str, Any], group_size: int, config: Config, plan: Layout) -> None:
    """Refuse to go on with a run under a config that would change its curve.

    Args:
        begun: the config that the run was begun with, as `model_dump`.
        group_size: of the run until now.
        config: the one to go on with.
        plan: its layout.

    Raises:
        UserError: names each such key with both values.
    """
    free = set(_FREE)
    if config.optim.schedule != "cosine":
        free |= {"optim.epochs", "optim.steps"}  # the learning rate of a step does not depend on the length
    elif config.optim.steps is not None:
        free.add("optim.epochs")  # it does not count
    if "none" not in (config.moco.shuffle, begun["moco"]["shuffle"]):
        free.add("moco.shuffle")  # the two ways to shuffle give equal keys
    now = config.model_dump(mode="json")
    changed = [
        f"{key} = {shown(new)} (was {shown(old)})"
        for section, keys in now.items()
        for name, new in keys.items()
        if section not in free
        if (key := f"{section}.{name}") not in free
        if (old := begun[section].get(name)) != new
    ]
    for key in ("run.seed", "device.precision"):
        section, name = key.split(".")
        if begun[section][name] != now[section][name]:
            changed.append(f"{key} = {shown(now[section][name])} (was {shown(begun[section][name])})")
    if plan.group_size != group_size:
        groups = config.optim.global_batch // group_size
        changed.append(f"moco.bn_groups = {shown(config.moco.bn_groups)} on {plan.ranks} ranks (was {groups})")
    if changed:
        raise UserError(
            f"{', '.join(changed)}: would change the curve of the run in {config.run_dir}; "
            "put it back, or begin another with run.name=NAME"
        )


def _find(path: Path) -> Path:
    if path.is_file():
        return path
    shipped = SHIPPED_CONFIGS / f"{path.stem}.yaml"
    if path.parent in (Path(), Path("configs")) and shipped.is_file():
        return shipped
    names = ", ".join(sorted(p.stem for p in SHIPPED_CONFIGS.glob("*.yaml")))
    raise UserError(f"config {path}: no such file; give a YAML file or one of the shipped: {names}")


def read_tree(file: Path) -> dict[str, Any]:
    """The keys in a YAML file, unchecked. Raises UserError."""
    try:
        tree = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise UserError(f"config {file}: cannot be read as YAML: {' '.join(str(error).split())}; mend it") from None
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise UserError(f"config {file}: must be keys with values (optim: {{lr: 0.03}}); it is a {type(tree).__name__}")
    tree.pop("$schema", None)
    return tree


def _apply(tree: dict[str, Any], override: str) -> None:
    key, _, text = override.partition("=")
    section, dot, name = key.partition(".")
    if not (section and dot and name):
        raise UserError(f"override {override}: must be section.key=value{_nearest(key)}")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        value = text
    keys = tree.setdefault(section, {})
    if not isinstance(keys, dict):
        raise UserError(f"{section} = {shown(keys)}: must be a section of keys; write {section}: {{{name}: ...}}")
    keys[name] = value


def _keys(model: type[BaseModel]) -> list[str]:
    """Every key of a model: `section.key`, or `key` where there are no sections."""
    sections = {name: field.annotation for name, field in model.model_fields.items()}
    return [
        f"{name}.{key}" if key else name
        for name, section in sections.items()
        for key in (section.model_fields if isinstance(section, type) and issubclass(section, BaseModel) else [""])
    ]


def _nearest(key: str, model: type[BaseModel] = Config) -> str:
    """`; did you mean optim.lr?`: a key of that name in another section, else the most similar."""
    keys = _keys(model)
    same_name = [k for k in keys if k.rpartition(".")[2] == key.rpartition(".")[2]]
    near = same_name or difflib.get_close_matches(key, [*keys, *model.model_fields], n=1, cutoff=0.6)
    if near:
        return f"; did you mean {near[0]}?"
    section = key.split(".")[0] + "."
    names = [k.removeprefix(section) for k in keys if k.startswith(section)]
    if names:
        return f"; {section[:-1]} has {', '.join(names)}"
    return f"; {'sections' if model is Config else 'keys'} are {', '.join(model.model_fields)}"


def _explain(error: ErrorDetails, model: type[BaseModel]) -> str:
    """One line for one of pydantic's errors."""
    key = ".".join(str(part) for part in error["loc"])
    if not key:  # a rule across keys has worded itself
        return error["msg"].removeprefix("Value error, ")
    if error["type"] == "invalid_key":  # YAML reads `3: ...` and `yes: ...` as something else than text
        return f"{key}: unknown key{_nearest(key, model)}"
    if error["type"] == "extra_forbidden":
        if isinstance(error["input"], dict) and len(error["input"]) == 1:
            key += "." + next(iter(error["input"]))
            return f"{key}: unknown key{_nearest(key, model)}"
        return f"{key} = {shown(error['input'])}: unknown key{_nearest(key, model)}"
    if error["type"] in ("model_type", "model_attributes_type"):
        return f"{key} = {shown(error['input'])}: must be a section of keys; write {key}: {{key: value}}"
    rule = (
        error["msg"]
        .removeprefix("Value error, ")
        .replace("Input should be", "must be")
        .replace("a valid integer", "an integer")
        .replace("valid ", "")
    )
    rule = rule.split(", unable to parse")[0].split(" after validation")[0]
    return f"{key} = {shown(error['input'])}: {rule[0].lower() + rule[1:]}; {_default(error['loc'], model)}"


def _default(place: Sequence[int | str], model: type[BaseModel]) -> str:
    """`the default is optim.lr=0.03`, as the fix of a wrong value; `drop it or mend it` where there is none."""
    value: Any = model()
    path: list[str] = []
    for part in place:
        if not isinstance(value, BaseModel) or part not in type(value).model_fields:
            break
        value = getattr(value, str(part))
        path.append(str(part))
    if isinstance(value, BaseModel) or not path:
        return "mend it or drop it"
    dumped = model().model_dump(mode="json")
    for name in path:
        dumped = dumped[name]
    return f"the default is {'.'.join(path)}={shown(dumped)}"


def _round_up(number: int, divisor: int) -> int:
    return -(-number // divisor) * divisor


def usage() -> str:
    """Every key with its default and meaning, a line each."""
    lines = []
    for section, field in Config.model_fields.items():
        for name, key in field.annotation.model_fields.items():  # type: ignore[union-attr]
            lines.append(f"  {section}.{name}={shown(key.default)}".ljust(44) + f" {key.description}")
    return "\n".join(lines)


def schema() -> str:
    """JSON schema of a config file, for editors."""
    return json.dumps(Config.model_json_schema(), indent=1) + "\n"


if __name__ == "__main__":
    sys.stdout.write(schema())
