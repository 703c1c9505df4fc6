"""The step against recordings: of a slow oracle written from the paper, and of the authors' own code where at hand."""

from __future__ import annotations

import copy
import hashlib
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from moco_dist import config
from moco_dist.data.views import Views
from moco_dist.engine.build import ExactEngine
from moco_dist.engine.engine import Engine, Figures
from moco_dist.methods import shuffle
from moco_dist.methods.method import Keys
from moco_dist.methods.moco import MoCo
from moco_dist.networks import batchnorm
from moco_dist.ranks.collectives import World
from tests import oracle, replay
from tests.ranks import Ranks
from tests.replay import TOLERANCE, Trace, TraceEncoder

GOLDENS = Path(__file__).parents[3] / "shared" / "goldens"
ALONE = World(0, 1, 0, torch.device("cpu"))


@pytest.fixture(scope="module")
def traces(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return oracle.record_all(tmp_path_factory.mktemp("traces"))


def averaged(trace: Trace) -> Trace:
    """Average the running statistics over the recorded ranks, as one process that stands for them keeps them.

    Their update is linear, so the mean of the ranks' statistics is the statistic of the mean. Not so in the
    reference, whose ranks begin each step with the statistics of rank 0.
    """
    arrays = dict(trace.arrays)
    for name in trace.arrays:
        if name.startswith("final.rank0.") and "running" in name:
            others = [arrays[name.replace("rank0", f"rank{rank}")] for rank in range(trace.ranks)]
            arrays[name] = np.mean(others, axis=0)
    return replace(trace, arrays=arrays)


def check(ranks: Ranks, trace: Trace, *, reference: bool = False) -> None:
    groups = trace.config.moco.bn_groups
    assert groups
    for size in [size for size in (1, 2, 4) if groups % size == 0]:
        for mode in ("all_gather", "all_to_all"):
            for errors in ranks.run(size, replay.play, averaged(trace), mode):
                assert errors.keys() == {"loss", "queue", "parameters"} | ({"statistics"} if size == 1 else set())
                if reference and size == 1 < trace.ranks:  # comparable but for the running statistics
                    del errors["statistics"]
                assert max(errors.values()) < TOLERANCE, f"{size} ranks, {mode}: {errors}"


@pytest.mark.parametrize("kind", oracle.KINDS)
def test_the_oracle_agrees(ranks: Ranks, traces: dict[str, Path], kind: str) -> None:
    check(ranks, replay.read(traces[kind]))


NAMES = [f"{kind}_world{ranks}" for kind in ("v1", "v2") for ranks in (1, 2, 4)] + ["symmetric_split4"]


@pytest.mark.parametrize("name", NAMES)
def test_the_reference_agrees(ranks: Ranks, name: str) -> None:
    path = GOLDENS / f"reference_{name}.npz"
    if not path.exists():
        pytest.skip(f"no recordings of the reference at {GOLDENS}")
    check(ranks, replay.read(path), reference=True)


def test_accuracy_is_the_recorded_one(traces: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    trace, seen = replay.read(traces["v1 four ranks, odd queue"]), []
    real = Engine.step

    def step(self: Engine, *args: Any, **keywords: Any) -> Figures:
        seen.append(real(self, *args, **keywords))
        return seen[-1]

    monkeypatch.setattr(Engine, "step", step)
    replay.play(ALONE, trace, "all_gather")
    top1 = trace.arrays["top1"].mean(axis=1)
    assert [figures.numbers()["top1"] for figures in seen] == pytest.approx(top1.tolist())
    assert 0 < top1.mean() < 1
    assert all(figures.numbers()["top5"] >= figures.numbers()["top1"] for figures in seen)


# ------------------------------------------------------ the replay can fail


def swapped(perm: np.ndarray) -> np.ndarray:
    """Two images change places between BatchNorm groups in one step."""
    perm = perm.copy()
    perm[0, [0, -1]] = perm[0, [-1, 0]]
    return perm


def changed(name: str, change: Callable[[np.ndarray], None]) -> Callable[[dict[str, np.ndarray]], None]:
    def apply(arrays: dict[str, np.ndarray]) -> None:
        arrays[name] = arrays[name].copy()
        change(arrays[name])

    return apply


def put(index: Any, value: float) -> Callable[[np.ndarray], None]:
    return lambda array: array.__setitem__(index, value)


def add(index: Any, value: float) -> Callable[[np.ndarray], None]:
    return lambda array: array.__setitem__(index, array[index] + value)


WRONG: dict[str, tuple[Callable[[dict[str, np.ndarray]], None], str]] = {
    "momentum": (changed("hparams", put(5, 0.91)), "loss"),
    "temperature": (changed("hparams", put(6, 0.202)), "loss"),
    "learning rate": (changed("hparams", put(7, 0.11)), "parameters"),
    "SGD's momentum": (changed("hparams", put(8, 0.89)), "parameters"),
    "weight decay": (changed("hparams", put(9, 3e-3)), "parameters"),
    "shuffle": (changed("perm", lambda a: a.__setitem__(slice(None), swapped(a))), "queue"),
    "a loss": (changed("loss", add((3, 0), 1e-3)), "loss"),
    "a loss that is no number": (changed("loss", put((3, 0), np.nan)), "loss"),
    "a key": (changed("queue", add((2, 0, 4), 2e-4)), "queue"),
    "a cursor": (changed("queue_ptr", put(2, 0)), "queue"),
    "the last cursor": (changed("final.rank0.queue_ptr", put(0, 1)), "queue"),
    "a weight of the key encoder": (
        changed("final.rank0.encoder_k.conv1.weight", add((0, 0, 0, 0), 2e-4)),
        "parameters",
    ),
    "a running variance": (changed("final.rank0.encoder_q.bn2.running_var", add(0, 2e-3)), "statistics"),
    "a first weight": (changed("init.encoder_q.conv2.weight", add((0, 0, 0, 0), 0.1)), "loss"),
    "a view": (lambda arrays: arrays.update(x_q=arrays["x_k"]), "loss"),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_recording_is_noticed(traces: dict[str, Path], tmp_path: Path, what: str) -> None:
    change, where = WRONG[what]
    with np.load(traces["v1 four ranks, odd queue"]) as file:
        arrays = {name: file[name] for name in file.files}
    change(arrays)
    np.savez(tmp_path / "wrong.npz", **arrays)
    errors = replay.play(ALONE, averaged(replay.read(tmp_path / "wrong.npz")), "all_gather")
    assert errors[where] > TOLERANCE, errors


@pytest.fixture
def borrowed(ranks: Ranks, monkeypatch: pytest.MonkeyPatch) -> None:
    """`replay.main` uses the session's ranks."""
    monkeypatch.setattr(replay, "Ranks", lambda size: SimpleNamespace(run=ranks.run, close=lambda: None))


@pytest.mark.usefixtures("borrowed")
def test_main(traces: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = traces["v2 two ranks, batch larger than queue"]
    assert replay.main([str(good), str(traces["symmetric, four splits"])]) == 0
    out = capsys.readouterr().out
    assert len(re.findall(r"^ok ", out, re.MULTILINE)) == 4
    assert "all agree" in out
    with np.load(good) as file:
        arrays = {name: file[name] for name in file.files}
    arrays["loss"][2] += 1e-3
    np.savez(tmp_path / "wrong.npz", **arrays)
    assert replay.main([str(good), str(tmp_path / "wrong.npz"), "--shuffle", "all_to_all"]) == 1
    out = capsys.readouterr().out
    assert len(re.findall(r"^ok ", out, re.MULTILINE)) == 1
    assert len(re.findall(r"^FAIL ", out, re.MULTILINE)) == 1


def test_what_is_no_trace(traces: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = traces["v1 one rank, odd queue"].read_bytes()
    (tmp_path / "short.npz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.npz").write_text("no numbers")
    (tmp_path / "empty.npz").write_bytes(b"")
    np.savez(tmp_path / "other.npz", loss=np.zeros(3))
    for name in ("short", "text", "empty", "other", "nowhere"):
        assert replay.main([str(tmp_path / f"{name}.npz")]) == 1, name
        captured = capsys.readouterr()
        assert f"{name}.npz: cannot be read as a trace" in captured.err
        assert "all agree" not in captured.out


# ------------------------------------- the same curve on any number of ranks

STEPS, BATCH = 6, 16


def engine_of(world: World, run: config.Config, dtype: torch.dtype = torch.float64) -> Engine:
    plan = config.layout(run, world.size)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        encoder = TraceEncoder(run.model.dim, mlp=True)
    batchnorm.set_group_size(encoder, plan.group_size)
    return ExactEngine(MoCo(run, world, encoder).to(dtype), run, plan, world)


def run_of(precision: str = "fp64", accumulate: int = 1, **moco: Any) -> config.Config:
    defaults = {"queue_size": 37, "momentum": 0.9, "temperature": 0.2, "bn_groups": 4}
    return config.parse(
        {
            "run": {"seed": 2},
            "model": {"dim": 8},
            "moco": {**defaults, **moco},
            "optim": {"global_batch": BATCH, "accumulate": accumulate, "lr": 0.1, "schedule": "constant"},
            "device": {"precision": precision},
        }
    )


def take_steps(engine: Engine, first: int, last: int) -> list[list[float]]:
    world = engine.world
    n = BATCH // world.size
    mine = slice(world.rank * n, (world.rank + 1) * n)
    figures = []
    for step in range(first, last):
        generator = torch.Generator().manual_seed(step)
        one = torch.randn(BATCH, 3, 16, 16, generator=generator, dtype=torch.float64)
        one = one * torch.linspace(0.3, 2, BATCH)[:, None, None, None]  # it matters who is in whose group
        two = one + 0.5 * torch.randn(one.shape, generator=generator, dtype=torch.float64)
        dtype = next(engine.method.parameters()).dtype
        views = Views.of(one[mine].to(dtype), two[mine].to(dtype))
        figures.append(engine.step(views, step, 0.1, sums={"one": world.rank + 1, "two": 0.5}).values.tolist())
    return figures


def flat(state: Any) -> list[torch.Tensor]:
    if isinstance(state, torch.Tensor):
        return [state]
    if isinstance(state, dict):
        state = list(state.values())
    return [t for part in state for t in flat(part)] if isinstance(state, list) else []


def digest(engine: Engine) -> str:
    sha = hashlib.sha256(str(engine.method.cursor).encode())
    for tensor in flat(engine.state()):
        sha.update(tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()


def curves(world: World, runs: dict[str, config.Config]) -> dict[str, tuple[list[list[float]], np.ndarray, str]]:
    by_name = {}
    for name, run in runs.items():
        engine = engine_of(world, run)
        figures = take_steps(engine, 0, STEPS)
        assert all(p.grad is not None for p in engine.method.encoder_q.parameters())
        assert all(p.grad is None and not p.requires_grad for p in engine.method.encoder_k.parameters())
        state = {key: engine.state()[key] for key in ("encoder_q", "encoder_k", "queue")}
        numbers = torch.cat([t.detach().double().reshape(-1) for t in flat(state)]).numpy().copy()
        by_name[name] = figures, numbers, digest(engine)
    return by_name


RUNS = {
    f"{mode} {'symmetric' if symmetric else 'plain'} in {accumulate}": run_of(
        accumulate=accumulate, shuffle=mode, symmetric=symmetric
    )
    for mode in ("all_gather", "all_to_all", "none")
    for symmetric in (False, True)
    for accumulate in (1, 2)
}


@pytest.fixture(scope="module")
def by_size(ranks: Ranks) -> dict[int, list[dict[str, tuple[list[list[float]], np.ndarray, str]]]]:
    return {size: ranks.run(size, curves, RUNS) for size in (1, 2, 4)}


def test_the_same_curve_on_any_number_of_ranks_and_in_any_parts(by_size: dict[int, Any]) -> None:
    assert [config.layout(RUNS["none plain in 2"], size).parts for size in (1, 2, 4)] == [2, 2, 1]
    for name in RUNS:
        kind = "none" if name.startswith("none") else "all_gather"
        reference = f"{kind} {name.split()[1]} in 1"
        figures, numbers, _ = by_size[1][0][reference]
        for size, outcomes in by_size.items():
            for other, state, _ in (of_rank[name] for of_rank in outcomes):
                expected = [[*row[:3], size * (size + 1) / 2, 0.5 * size] for row in figures]
                np.testing.assert_allclose(other, expected, rtol=0, atol=1e-9, err_msg=f"{name} on {size}")
                np.testing.assert_allclose(state, numbers, rtol=0, atol=1e-9, err_msg=f"{name} on {size}")


def test_all_ranks_hold_the_same_bits(by_size: dict[int, Any]) -> None:
    for name in RUNS:
        for outcomes in by_size.values():
            assert len({of_rank[name][2] for of_rank in outcomes}) == 1, name
    assert len({by_size[1][0][name][2] for name in RUNS if name.endswith("in 1")}) == 4  # the digest can tell


def test_the_curve_does_depend_on_what_it_should(by_size: dict[int, Any]) -> None:
    """Else the test above could not fail."""
    losses = {name: np.array(curve[0])[:, 0] for name, curve in by_size[1][0].items()}
    assert np.abs(losses["none plain in 1"] - losses["all_gather plain in 1"]).max() > 1e-4
    assert np.abs(losses["all_gather symmetric in 1"] - losses["all_gather plain in 1"]).min() > 0.5
    fewer = curves(ALONE, {"two": run_of(bn_groups=2)})["two"][0]
    assert np.abs(np.array(fewer)[:, 0] - losses["all_gather plain in 1"]).max() > 1e-4


def test_a_restored_engine_goes_on_bit_for_bit() -> None:
    run = run_of(symmetric=True)
    whole = engine_of(ALONE, run)
    figures = take_steps(whole, 0, 6)
    begun, resumed = engine_of(ALONE, run), engine_of(ALONE, run)
    take_steps(begun, 0, 3)
    resumed.restore_(copy.deepcopy(begun.state()))
    assert take_steps(resumed, 3, 6) == figures[3:]
    assert digest(resumed) == digest(whole)
    assert digest(begun) != digest(whole)


@pytest.mark.parametrize("symmetric", [False, True])
def test_images_are_on_their_way_while_the_first_queries_are_encoded(
    symmetric: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    real = shuffle.start_shuffle

    def start(*args: Any) -> Callable[[], torch.Tensor]:
        events.append("start")
        wait = real(*args)
        return lambda: events.append("wait") or wait()

    monkeypatch.setattr(shuffle, "start_shuffle", start)
    engine = engine_of(ALONE, run_of(accumulate=2, symmetric=symmetric))
    engine.method.encoder_q.register_forward_hook(lambda *_: events.append("query"))
    engine.method.encoder_k.register_forward_hook(lambda *_: events.append("key"))
    take_steps(engine, 0, 1)
    directions = 1 + symmetric
    of_keys = ["wait", *["key"] * engine.parts] * directions
    assert events == ["start"] * directions + ["query"] + of_keys + ["query"] * (engine.parts * directions - 1)


# ----------------------------------------------------------- a skipped step


def parameters(module: torch.nn.Module) -> list[torch.Tensor]:
    return [p.detach().clone() for p in module.parameters()]


def test_after_a_skipped_step_the_key_encoder_waits() -> None:
    engine = engine_of(ALONE, run_of())
    take_steps(engine, 0, 2)
    before = parameters(engine.method.encoder_k)
    engine.skipped = True
    take_steps(engine, 2, 3)
    assert all(torch.equal(a, b) for a, b in zip(before, parameters(engine.method.encoder_k), strict=True))
    assert not engine.skipped
    query = parameters(engine.method.encoder_q)
    take_steps(engine, 3, 4)
    for old, q, new in zip(before, query, parameters(engine.method.encoder_k), strict=True):
        torch.testing.assert_close(new, 0.9 * old + 0.1 * q, rtol=0, atol=1e-14)


def test_fp16_gradients_that_overflow_skip_the_step() -> None:
    engine = engine_of(ALONE, run_of(precision="fp16"), torch.float32)
    take_steps(engine, 0, 1)
    assert not engine.skipped
    engine.scaler.load_state_dict({**engine.scaler.state_dict(), "scale": 2.0**100})
    before, queue = parameters(engine.method.encoder_q), engine.method.queue.clone()
    take_steps(engine, 1, 2)
    assert engine.skipped
    assert all(torch.equal(a, b) for a, b in zip(before, parameters(engine.method.encoder_q), strict=True))
    assert not torch.equal(queue, engine.method.queue)  # its keys are good
    assert engine.method.queue.isfinite().all()
    assert engine.state()["skipped"] is True


# ------------------------------------------------------------------- pieces


def test_a_new_moco() -> None:
    engine = engine_of(ALONE, run_of())
    moco = engine.method
    torch.testing.assert_close(moco.queue.norm(dim=1), torch.ones(37, dtype=torch.float64))
    assert torch.equal(engine_of(ALONE, run_of()).method.queue, moco.queue)
    pairs = zip(moco.encoder_q.state_dict().values(), moco.encoder_k.state_dict().values(), strict=True)
    assert all(torch.equal(q, k) for q, k in pairs)
    assert "queue" in moco.state_dict()
    q, k = torch.randn(4, 8).double() * 7, F.normalize(torch.randn(4, 8).double())
    terms = moco.loss(q, Keys(k, []), slice(0, 4))
    positive, negative = (F.normalize(q) * k).sum(1) / 0.2, F.normalize(q) @ moco.queue.T / 0.2
    expected = torch.logsumexp(torch.cat([positive[:, None], negative], dim=1), dim=1) - positive
    torch.testing.assert_close(terms.loss["loss"], expected.mean())
    assert terms.figures["top1"] == (positive > negative.max(dim=1).values).double().mean()
