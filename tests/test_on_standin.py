"""All that computes on a device, on the stand-in for a GPU: as on the CPU, and without a wait where none is meant."""

from __future__ import annotations

import json
import pickle
import signal
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from moco_dist import config as configs
from moco_dist import train
from moco_dist.config import Config
from moco_dist.data import crops, operations, sources, stream
from moco_dist.data.augment import COLOUR_DRAWS, Augment, Recipe
from moco_dist.data.loader import make_loader
from moco_dist.data.views import Views
from moco_dist.engine import schedule
from moco_dist.engine.build import build
from moco_dist.engine.engine import Details
from moco_dist.errors import OwnMistake, UserError
from moco_dist.evaluate import command, few, linear, sgd_probe
from moco_dist.methods import moco
from moco_dist.networks import batchnorm
from moco_dist.networks.resnet import build_encoder
from moco_dist.ranks import devices
from moco_dist.ranks.collectives import World
from moco_dist.run.figures import is_measured
from moco_dist.train import loop
from moco_dist.verify import command as verify
from tests import standin
from tests.jobs import EPOCH_STEPS, FAST, Job, Pair, send
from tests.ranks import Ranks
from tests.views import OPERATIONS, RECIPES, WARP, images

pytestmark = pytest.mark.standin

ALONE = World(0, 1, 0, torch.device("cpu"))
BATCH, STEPS = 16, 4
SUMS = {"stop": 1.0, "save": 2.0}


# -------------------------------------------------------------------------------------------------- which device it is


def test_the_device_of_a_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    auto, cuda, cpu = (configs.load(None, [f"device.type={kind}"]) for kind in ("auto", "cuda", "cpu"))
    with standin.present():
        assert devices.pick(auto, 0).type == devices.pick(cuda, 0).type == standin.NAME
        assert devices.pick(cuda, 3).index == 3
        assert devices.pick(cpu, 0).type == devices.pick(cpu, 8).type == "cpu"
        for config in (auto, cuda):  # a script of srun's own that tells each rank of one GPU, say
            with pytest.raises(OwnMistake, match=r"there are 8 CUDA devices for the rank with LOCAL_RANK=8; start the"):
                devices.pick(config, 8)
        monkeypatch.setenv("LOCAL_WORLD_SIZE", "9")
        assert devices.pick(auto, 0).type == "cpu"
        with pytest.raises(UserError, match=r"device\.type = cuda: there are 8 CUDA devices for 9 ranks; use --nproc"):
            devices.pick(cuda, 0)
        data = sources.load(auto)
        lines = list(loop.advice(auto, configs.layout(auto, 1), data, torch.device("cpu")))
        assert any("more ranks than the 8 CUDA devices here, so the CPU is used" in line for line in lines)


def test_a_wait_is_permitted_within_may_wait_alone() -> None:
    with standin.present(strict=True) as device:
        number = torch.ones(3, device=device).sum()
        with devices.may_wait(device):
            assert number.item() == 3
        with pytest.raises(standin.HostWaits):
            number.item()
    with devices.may_wait(torch.device("cpu")):
        pass


# ------------------------------------------------------------------------------------------------------ augmentation


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe(name: str, channels: int, dtype: torch.dtype) -> None:
    augmentation = Augment(RECIPES[name], (0.5,) * channels, (0.2,) * channels)
    draws = torch.rand(BATCH, COLOUR_DRAWS, generator=torch.Generator().manual_seed(1))
    pixels = images(BATCH, channels)
    with standin.present(strict=True) as device:
        on_device = pixels.to(device, non_blocking=True)
        view, plain = augmentation(on_device, draws, dtype), augmentation.plain(on_device, dtype)
    assert view.device == plain.device == device
    assert torch.equal(standin.held(view), augmentation(pixels, draws, dtype))
    assert torch.equal(standin.held(plain), augmentation.plain(pixels, dtype))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation(name: str, channels: int) -> None:
    x, draw = images(BATCH, channels) / 255, torch.rand(BATCH, generator=torch.Generator().manual_seed(1))
    expected = OPERATIONS[name](x, draw)
    with standin.present(strict=True) as device:
        result = OPERATIONS[name](*(t.to(device, non_blocking=True) for t in (x, draw)))
    assert result.device == device
    assert torch.equal(standin.held(result), expected)


def test_every_operation_is_named_here() -> None:
    public = {name for name, value in vars(operations).items() if callable(value) and not name.startswith("_")}
    ours = {name for name in public if getattr(vars(operations)[name], "__module__", "") == operations.__name__}
    assert ours == set(OPERATIONS)


def test_crops_of_a_batch() -> None:
    boxes = torch.tensor([[1, 2, 7, 5]] * BATCH)
    with standin.present() as device:
        cropped, centres = (
            standin.held(t)
            for t in (
                crops.resized_crop(images(BATCH, 3).to(device), boxes, 6),
                crops.centre_batch(images(BATCH, 3).to(device), 8),
            )
        )
    assert torch.equal(cropped, crops.resized_crop(images(BATCH, 3), boxes, 6))
    assert torch.equal(centres, crops.centre_batch(images(BATCH, 3), 8))


def cut(world: World, config: Config) -> list[Tensor]:
    """The views of three steps and the centres of some images, in the memory of the host."""
    source = sources.on_all_ranks(config, world, sources.load).train
    assert (source.device == world.device) is (config.data.cache != "none" or world is ALONE)
    batches = make_loader(stream.pretraining(source, config, world), range(3), config.data.workers, world.device)
    augmentation = Augment(Recipe.of(config.data), *source.pixel_statistics)
    assert pickle.dumps(stream.pretraining(source, config, world))  # as workers that are not forked are sent it
    with standin.strictly() if world is not ALONE else nullcontext():
        tensors = [source.centred(np.arange(5), 8)[0]]
        for views, unreadable in stream.on_device(batches, source, augmentation, world.device, torch.float32):
            tensors += [views.images(0), views.images(1)]
            assert [Path(image.name).name for image in unreadable] in ([], ["3.png"])
    return [standin.held(tensor).clone() for tensor in tensors]


def folder_of(root: Path) -> list[str]:
    """A folder of nine images of 10x14 pixels, one of them damaged, as overrides."""
    for number, image in enumerate(images(12, 3, 14)[3:, :, :10]):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(root / f"{number}.png")
    (root / "3.png").write_bytes(b"no png")
    return ["data.source=imagefolder", f"data.root={root}", "data.image_size=8", "optim.global_batch=8"]


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("decode", ["", "cpu", "pillow"])
def test_views_are_cut_where_the_images_are(decode: str, workers: int, tmp_path: Path) -> None:
    of_source = [*folder_of(tmp_path), f"data.decode={decode}"] if decode else []
    config = config_of("v2", *of_source, f"data.workers={workers}", "eval.knn_every=0")
    expected = cut(ALONE, config_of("v2", *of_source, "data.cache=none", "eval.knn_every=0"))
    with standin.present() as device:
        tensors = cut(World(0, 1, 0, device), config)
    assert len(tensors) == 7 and all(map(torch.equal, tensors, expected))


# -------------------------------------------------------------------------------------------------- the training step

STEP = ["data.source=synthetic", "data.image_size=32", "model.arch=resnet18", "model.width=8", "model.dim=16"]
STEP += [f"optim.global_batch={BATCH}", "optim.steps=100", "moco.bn_groups=4", "moco.queue_size=40"]
# float64: to float error alone, float32 curves part within some steps, as a ReLU flips at zero
STEP += ["device.precision=fp64", "device.channels_last=false", "data.workers=0"]

CASES: dict[str, list[str]] = {
    "v1": ["model.mlp=false", "data.augmentation=v1", "model.stem=small"],
    "v2": [],
    "symmetric": ["moco.symmetric=true", "model.stem=small"],
    "accumulated": ["optim.accumulate=2"],
    "symmetric, accumulated": ["moco.symmetric=true", "optim.accumulate=4"],
    "one group": ["moco.bn_groups=1"],
    "all_gather": ["moco.shuffle=all_gather"],
    "no shuffle": ["moco.shuffle=none"],
    "warped": [f"data.{key}={value}" for key, value in WARP.items()],
    "channels_last": ["device.channels_last=true"],
    "bf16": ["device.precision=bf16", "device.channels_last=true", "optim.lr=0.001"],  # rounding grows with the lr
    # Deterministic, since gradients added up in another order may overflow at another scale.
    "fp16": ["device.precision=fp16", "device.deterministic=true", "optim.lr=0.001"],
    "fp32": ["device.precision=fp32"],
}
# in bf16 the losses of both are up to 0.3 from those in float64: a group has four values in the last layers
TOLERANCE = {"fp64": 1e-8, "fp32": 0.02, "bf16": 0.2, "fp16": 0.03}


def config_of(case: str, *overrides: str) -> Config:
    return configs.load(Path("imagenet_v2"), [*STEP, *CASES[case], *overrides])


class Outcome(NamedTuple):
    """The results of some steps, on the CPU."""

    figures: list[list[float]]
    rows: list[dict[str, float]]
    state: dict[str, Tensor]
    skipped: list[bool]


def steps(world: World, config: Config) -> Outcome:
    """The first steps as the trainer takes them, from the loader to what they leave; strict on the stand-in."""
    plan, data = configs.layout(config, world.size), sources.on_all_ranks(config, world, sources.load)
    assert data.train.device == world.device
    engine = build(moco.MoCo(config, world, build_encoder(config.model, 3, seed=0)), config, plan, world)
    augmentation = Augment(Recipe.of(config.data), *data.train.pixel_statistics)
    pairs = stream.pretraining(data.train, config, world, engine.method.own_places)
    loader = make_loader(pairs, range(STEPS), 0, world.device)
    figures, rows, skipped = [], [], []
    for step, (views, _) in enumerate(
        stream.on_device(loader, data.train, augmentation, world.device, engine.image_dtype)
    ):
        settled = step > 1 or world.size == 1  # DDP lays out its buckets anew after the first step, and waits for it
        with standin.strictly() if settled else nullcontext():
            lr = schedule.learning_rate(config.optim, step, 10)
            of_step = engine.step(views, step, lr, SUMS, Details(compare_ranks=True) if step != 1 else None)
        rows.append({**of_step.numbers(), **of_step.spreads(), **dict.fromkeys(SUMS, 0.0)})
        figures.append(of_step.values)
        skipped.append(engine.skipped)
    state = {**engine.method.encoder_q.state_dict(prefix="q."), **engine.method.encoder_k.state_dict(prefix="k.")}
    state |= {"queue": engine.method.queue}
    assert all(tensor.device == world.device for tensor in [*state.values(), *figures])
    numbers, tensors = [standin.held(row).tolist() for row in figures], {k: standin.held(t) for k, t in state.items()}
    return Outcome(numbers, rows, {k: t.clone() for k, t in tensors.items()}, skipped)


def alike(outcome: Outcome, case: str) -> None:
    """Compare with the CPU, which computes one group after the other: alike to float error, by the precision."""
    config = config_of(case)
    expected, tolerance = steps(ALONE, config), TOLERANCE[config.device.precision]
    assert outcome.skipped == expected.skipped
    losses, alone = (np.array([row[0] for row in of.figures]) for of in (outcome, expected))
    np.testing.assert_allclose(losses, alone, rtol=0, atol=tolerance)
    assert [[*row] for row in outcome.rows] == [[*row] for row in expected.rows]
    assert "entropy" not in outcome.rows[1] and {"entropy", "encoder_distance", "q_rank"} <= outcome.rows[0].keys()
    if config.device.precision == "fp64":
        for row, row_expected in zip(outcome.rows, expected.rows, strict=True):
            assert row == pytest.approx(row_expected, rel=1e-6, abs=1e-6)
        torch.testing.assert_close(outcome.state, expected.state, rtol=0, atol=tolerance)


def equal(outcome: Outcome, expected: Outcome) -> None:
    """Assert that two outcomes have the same bits."""
    assert [row[:3] for row in outcome.figures] == [row[:3] for row in expected.figures]
    for row, row_expected in zip(outcome.rows, expected.rows, strict=True):
        assert row == pytest.approx(row_expected, rel=1e-6)  # norms of tensors are added up in another order
    different = [name for name, tensor in expected.state.items() if not torch.equal(outcome.state[name], tensor)]
    assert not different


@pytest.mark.parametrize("case", CASES)
def test_the_step_never_waits(case: str) -> None:
    with standin.present() as device:
        alike(steps(World(0, 1, 0, device), config_of(case)), case)


EXACT = ["device.precision=fp32", "device.deterministic=true"]


@pytest.mark.parametrize("case", ["v1", "symmetric, accumulated", "all_gather"])
def test_the_exact_step_gives_the_cpus_bits(case: str) -> None:
    with standin.present() as device:
        outcome = steps(World(0, 1, 0, device), config_of(case, *EXACT))
    equal(outcome, steps(ALONE, config_of(case, *EXACT)))


ON_TWO_RANKS = ("v1", "v2", "symmetric, accumulated", "all_gather", "no shuffle", "bf16")


def on_two_ranks(world: World) -> dict[str, Outcome]:
    outcomes = {case: steps(world, config_of(case)) for case in ON_TWO_RANKS}
    return outcomes | {"exact": steps(world, config_of("v2", *EXACT))}


def test_two_ranks(ranks: Ranks) -> None:
    first, second = ranks.run(2, on_two_ranks, timeout_seconds=240, on_standin=True)
    for name in (*ON_TWO_RANKS, "exact"):
        equal(first[name], second[name])
    for case in ON_TWO_RANKS:
        alike(first[case], case)
    equal(first["exact"], steps(ALONE, config_of("v2", *EXACT)))


def test_an_overflow_skips_the_step() -> None:
    config = config_of("fp16")
    plan = configs.layout(config, 1)
    with standin.present() as device:
        world = World(0, 1, 0, device)
        engine = build(moco.MoCo(config, world, build_encoder(config.model, 3, seed=0)), config, plan, world)
        engine.scaler.load_state_dict({**engine.scaler.state_dict(), "scale": 2.0**100})
        views = torch.randn(2, BATCH, 3, 32, 32).half().to(device)

        def step(number: int) -> list[Tensor]:
            with standin.strictly():
                engine.step(Views(views), number, 0.1)
            return [standin.held(p).clone() for p in engine.method.encoder_q.parameters()]

        begun = [standin.held(p).clone() for p in engine.method.encoder_q.parameters()]
        assert all(map(torch.equal, step(0), begun)) and engine.skipped
        engine.scaler.load_state_dict({**engine.scaler.state_dict(), "scale": 1.0})
        assert not all(map(torch.equal, step(1), begun)) and not engine.skipped


# ----------------------------------------------------------------------------------------------------------- whole runs

RUN = [str(FAST), "device.type=cuda", "optim.schedule=constant", "checkpoint.every_steps=100"]


@contextmanager
def on_standin() -> Iterator[None]:
    """Within it, the trainer's loop is on the stand-in, and may wait for it only where the code says so."""
    steps_of_the_loop = loop.Training._loop

    def strict_loop(self: loop.Training, start: int) -> None:
        with standin.strictly():
            steps_of_the_loop(self, start)

    with standin.present(), mock.patch.object(loop.Training, "_loop", strict_loop):
        yield


def run(folder: Path, *overrides: str) -> int:
    """The trainer on the stand-in. Its loop waits for the device only where the code says so."""
    with on_standin():
        return train.run([*RUN, f"run.dir={folder}", *overrides])


def rows(folder: Path) -> list[dict[str, Any]]:
    """The rows of a run without its speed."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if not is_measured(k)} for line in lines]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("standin") / "run"
    assert run(folder, f"optim.steps={EPOCH_STEPS + 3}") == 0
    return folder


def test_a_whole_run(whole: Path, tmp_path: Path) -> None:
    assert train.run([*RUN, "device.type=cpu", "optim.steps=5", f"run.dir={tmp_path}/cpu"]) == 0
    there, here = rows(whole), [row for row in rows(tmp_path / "cpu") if "loss" in row]
    assert [row["step"] for row in there if "loss" in row] == list(range(1, EPOCH_STEPS + 4))
    np.testing.assert_allclose(
        [row["loss"] for row in there[: len(here)]], [row["loss"] for row in here], rtol=0, atol=1e-3
    )
    assert [row["step"] for row in there if "knn_top1" in row] == [EPOCH_STEPS, EPOCH_STEPS + 3]
    assert json.loads((whole / "summary.json").read_text())["knn_top1"] > 0.5
    assert {"encoder.safetensors", "augmented_pairs.png"} <= {file.name for file in whole.iterdir()}


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_whole_run_in_half_precision(precision: str, tmp_path: Path) -> None:
    halves = [f"device.precision={precision}", "device.channels_last=true", "eval.knn_every=1"]
    assert run(tmp_path / "run", "optim.steps=4", *halves) == 0
    assert [row["step"] for row in rows(tmp_path / "run") if "loss" in row] == [1, 2, 3, 4]


def test_data_workers_and_pinned_batches_change_nothing(whole: Path, tmp_path: Path) -> None:
    assert run(tmp_path / "run", "optim.steps=4", "data.workers=1", "eval.knn_every=1") == 0
    losses = [row for row in rows(tmp_path / "run") if "loss" in row]
    assert losses == rows(whole)[:4]


def test_a_run_that_goes_on_is_the_run_that_never_stopped(whole: Path, tmp_path: Path) -> None:
    assert run(tmp_path / "run", "optim.steps=9") == 0
    assert run(tmp_path / "run", f"optim.steps={EPOCH_STEPS + 3}") == 0
    resumed = [row for row in rows(tmp_path / "run") if "loss" in row]
    assert resumed == [row for row in rows(whole) if "loss" in row]
    files = [(folder / "encoder.safetensors").read_bytes() for folder in (whole, tmp_path / "run")]
    assert files[0] == files[1]


def test_a_run_is_verified_where_it_was_made_and_on_the_cpu(whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "result.json"

    def verified(*overrides: str) -> tuple[int, dict[str, Any]]:
        arguments = [str(whole), "--steps", "6", "--out", str(out), "--from", "0", *overrides]
        return verify.run(arguments), json.loads(out.read_text())

    with on_standin():
        code, result = verified()
    assert code == 0 and result["training"]["rows"] == 6 and result["here"]["device"] == standin.NAME
    code, result = verified("device.type=cpu")  # another engine
    assert result["training"]["rows"] == 6 and result["here"]["device"] == "cpu"
    assert code == (1 if result["training"]["differ"] else 0)
    reasons = " ".join(result["expected_since"])
    assert not code or ("the replay had device.type=cpu" in reasons and "the run was on" in reasons)


def test_ranks_of_torchrun_killed_and_started_again(tmp_path: Path) -> None:
    """The command line itself, on two processes: SIGKILL to one of them, the same command, no step lost or doubled."""
    settings = {"device.type": "cuda", "device.deterministic": True, "optim.steps": 12, "checkpoint.every_steps": 4}
    module = "tests.train_on_standin"
    with Pair(tmp_path / "whole", settings, module=module) as pair:
        assert pair.exits() == [0, 0], pair.log
    with Job(tmp_path / "killed", 2, settings, module=module) as job:
        assert job.until_step(6), job.log
        send(job.ranks()[1], signal.SIGKILL)
        assert job.wait() != 0
    with Job(tmp_path / "killed", 2, settings, module=module) as job:
        assert job.wait() == 0, job.log
    assert rows(tmp_path / "killed") == rows(tmp_path / "whole")
    files = [(tmp_path / name / "encoder.safetensors").read_bytes() for name in ("whole", "killed")]
    assert files[0] == files[1]


# ----------------------------------------------------------------------------------------------------------- evaluation


def evaluated(run_dir: Path, out: Path, device: str) -> dict[str, float]:
    """Accuracy of every method of the evaluation, shortened."""
    options = ["--knn", "--linear", "--labels", "20", "--finetune", "--supervised"]
    with pytest.MonkeyPatch.context() as patch:
        for name in ("FINE_TUNING", "FROM_SCRATCH", "SEMI_SUPERVISED"):
            patch.setattr(few, name, replace(getattr(few, name), steps=3))
        patch.setattr(few, "ROUNDS", 2)
        patch.setattr(linear, "DECAYS", (1e-3, 1e-1))
        patch.setattr(linear, "_WEAKEST", 1e-3)
        with standin.present() if device == "cuda" else nullcontext():
            assert command.run([str(run_dir), "--out", str(out), *options, f"device.type={device}"]) == 0
    table = json.loads((out / "evaluation.json").read_text())["rows"]
    return {f"{row['method']} {row['labels']}": row["test_accuracy_mean"] for row in table}


def test_every_method_of_the_evaluation(whole: Path, tmp_path: Path) -> None:
    """KNN, L-BFGS, few labels, fine-tuning, label propagation and the baselines: the CPU's figures."""
    there, here = (evaluated(whole, tmp_path / device, device) for device in ("cuda", "cpu"))
    assert len(there) == 7
    assert there == pytest.approx(here, abs=2 / 359)  # of 359 held-out images


def test_the_probe_by_sgd() -> None:
    config = configs.load(None, ["model.width=8", "optim.global_batch=64"])
    source = sources.load(config).train
    recipe = sgd_probe.ProbeRecipe(epochs=1, batch=256)

    def fitted(device: torch.device) -> linear.Probe:
        encoder = build_encoder(config.model, 1, seed=0).to(device).eval()
        batchnorm.set_group_size(encoder, 32)
        augmentation = Augment(Recipe.of(config.data), *source.pixel_statistics)
        world, dim = World(0, 1, 0, device), encoder.feature_dim
        return sgd_probe.fit(encoder.features, source, 10, dim, world, config, augmentation, recipe)

    with standin.present() as device:
        there = fitted(device)
    for part, expected in zip(there, fitted(torch.device("cpu")), strict=True):
        assert part.device == device and torch.equal(standin.held(part), expected)
