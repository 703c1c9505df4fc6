"""Checkpoints of the authors' code go out and in again, and agree with their step and the recordings of it."""

from __future__ import annotations

import copy
import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from moco_dist import config
from moco_dist.data.views import Views
from moco_dist.engine.build import build
from moco_dist.engine.engine import Engine
from moco_dist.methods.moco import MoCo
from moco_dist.ranks.collectives import World
from moco_dist.reference import write
from moco_dist.reference.read import Unfit, engine_state, read
from tests import oracle, replay
from tests.methods.test_moco import GOLDENS, NAMES
from tests.reference import authors
from tests.replay import TOLERANCE, Trace, TraceEncoder

ALONE = World(0, 1, 0, torch.device("cpu"))


def through_a_file(content: dict[str, Any]) -> dict[str, Any]:
    """Save an object and load it without running any code of the file."""
    file = io.BytesIO()
    torch.save(content, file)
    file.seek(0)
    loaded: dict[str, Any] = torch.load(file, weights_only=True)
    return loaded


def engine_of(run: config.Config, orders: Any = None) -> Engine:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        moco = MoCo(run, ALONE, TraceEncoder(run.model.dim, run.model.mlp))
    if orders is not None:
        moco.order = lambda step, direction, length: orders[step, direction]
    return build(moco, run, config.layout(run, 1), ALONE)


def take(engine: Engine, content: dict[str, Any]) -> None:
    names = [name for name, _ in engine.method.trained.named_parameters()]
    engine.restore_(engine_state(read(through_a_file(content)), engine.state(), names))


def losses(engine: Engine, trace: Trace, first: int, last: int) -> list[float]:
    views = torch.from_numpy(trace.views)
    return [
        engine.step(Views.of(views[0, step], views[1, step]), step, engine.config.optim.lr).values[0].item()
        for step in range(first, last)
    ]


def first_checkpoint(trace: Trace) -> dict[str, Any]:
    """Return the checkpoint that the authors' code would save before step 0."""
    names = [name for name in trace.arrays if name.startswith("init.")]
    state = {f"module.{name.removeprefix('init.')}": torch.from_numpy(trace.arrays[name]) for name in names}
    return {"epoch": 1, "arch": "resnet50", "state_dict": state}


@pytest.fixture(scope="module")
def traces(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return oracle.record_all(tmp_path_factory.mktemp("traces"))


def check(trace: Trace) -> None:
    whole = engine_of(trace.config, trace.orders)
    take(whole, first_checkpoint(trace))
    recorded = trace.arrays["loss"].reshape(len(trace.arrays["loss"]), -1).mean(axis=1)
    played = losses(whole, trace, 0, len(recorded))
    assert played == pytest.approx(recorded.tolist(), rel=0, abs=TOLERANCE)
    half, begun, resumed = len(recorded) // 2, *(engine_of(trace.config, trace.orders) for _ in range(2))
    take(begun, first_checkpoint(trace))
    assert losses(begun, trace, 0, half) == played[:half]
    take(resumed, write.checkpoint(begun.state(), 1, "resnet50"))
    assert losses(resumed, trace, half, len(recorded)) == played[half:]
    ends = [flat(engine.state()) for engine in (whole, resumed)]
    assert ends[0].keys() == ends[1].keys()
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


def flat(state: Any, name: str = "") -> dict[str, torch.Tensor]:
    """Return the tensors of a state by their paths, and its numbers as tensors."""
    if isinstance(state, list):
        state = dict(enumerate(state))
    if isinstance(state, dict):
        return {n: t for key, value in state.items() for n, t in flat(value, f"{name}.{key}").items()}
    if isinstance(state, torch.Tensor):
        return {name: state}
    return {name: torch.tensor(state, dtype=torch.float64)} if isinstance(state, int | float) else {}


@pytest.mark.parametrize("kind", oracle.KINDS)
def test_a_recording_goes_on_from_a_checkpoint(traces: dict[str, Path], kind: str) -> None:
    check(replay.read(traces[kind]))


@pytest.mark.parametrize("name", NAMES)
def test_a_recording_of_the_authors_code_goes_on_from_a_checkpoint(name: str) -> None:
    path = GOLDENS / f"reference_{name}.npz"
    if not path.exists():
        pytest.skip(f"no recordings of the reference at {GOLDENS}")
    check(replay.read(path))


# ------------------------------------------------- the authors' step and ours


RUN = config.parse(
    {
        "data": {"source": "synthetic"},
        "model": {"dim": 6, "mlp": True},
        "moco": {"queue_size": 24, "momentum": 0.9, "temperature": 0.2, "bn_groups": 1},
        "optim": {"global_batch": 8, "lr": 0.1, "weight_decay": 1e-3, "schedule": "constant"},
    }
)


def images(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    one = torch.randn(8, 3, 16, 16, generator=generator)
    return one, one + 0.5 * torch.randn(one.shape, generator=generator)


def theirs() -> tuple[authors.AuthorsMoCo, torch.optim.SGD]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        model = authors.AuthorsMoCo(oracle.encoder(6, mlp=True).float(), 6, 24, 0.9, 0.2)
    return model, authors.sgd(model)


def test_ours_goes_on_where_theirs_stands() -> None:
    model, optimizer = theirs()
    for step in range(4):
        authors.step(model, optimizer, *images(step))
    engine = engine_of(RUN)
    take(engine, authors.saved(model, optimizer))
    assert engine.method.cursor == 8
    expected = [authors.step(model, optimizer, *images(step)) for step in range(4, 8)]
    ours = [engine.step(Views.of(*images(step)), step, 0.1).values[0].item() for step in range(4, 8)]
    assert ours == pytest.approx(expected, rel=0, abs=2e-5)
    without = engine_of(RUN)  # else nothing above would show that SGD's momentum counts
    take(without, {**authors.saved(*theirs()), "optimizer": None})
    assert not without.state()["optimizer"]["state"]


def test_theirs_goes_on_where_ours_stands() -> None:
    engine = engine_of(RUN)
    for step in range(4):
        engine.step(Views.of(*images(step)), step, 0.1)
    content = through_a_file(write.checkpoint(engine.state(), 3, "resnet18"))
    assert (content["epoch"], content["arch"]) == (3, "resnet18")
    model, optimizer = theirs()
    model.load_state_dict({name.removeprefix("module."): t for name, t in content["state_dict"].items()})
    assert all(name.startswith("module.") for name in content["state_dict"])
    optimizer.load_state_dict(content["optimizer"])
    assert all(t.is_contiguous() for t in flat(content).values())
    expected = [engine.step(Views.of(*images(step)), step, 0.1).values[0].item() for step in range(4, 8)]
    losses = [authors.step(model, optimizer, *images(step)) for step in range(4, 8)]
    assert losses == pytest.approx(expected, rel=0, abs=2e-5)


def test_the_momentum_counts() -> None:
    """The tests above could not fail on a lost momentum if this did not hold."""
    model, optimizer = theirs()
    for step in range(4):
        authors.step(model, optimizer, *images(step))
    content = authors.saved(model, optimizer)
    ends = []
    for kept in (content, {**content, "optimizer": None}):
        engine = engine_of(RUN)
        take(engine, kept)
        ends.append([engine.step(Views.of(*images(step)), step, 0.1).values[0].item() for step in range(4, 8)])
    assert max(abs(a - b) for a, b in zip(*ends, strict=True)) > 1e-2


# -------------------------------------------------------- what a file may hold


@pytest.fixture
def content() -> dict[str, Any]:
    model, optimizer = theirs()
    for step in range(2):
        authors.step(model, optimizer, *images(step))
    return through_a_file(authors.saved(model, optimizer, 7))


def state_of(content: dict[str, Any]) -> dict[str, Any]:
    engine = engine_of(RUN)
    names = [name for name, _ in engine.method.trained.named_parameters()]
    return engine_state(read(content), engine.state(), names)


def renamed(state: dict[str, Any], prefix: str) -> dict[str, Any]:
    return {prefix + name.removeprefix("module."): value for name, value in state.items()}


def by_addresses(optimizer: dict[str, Any]) -> dict[str, Any]:
    """Name the entries of an optimizer by the addresses of the parameters, as torch did before 1.6."""
    address = {number: 140000000 - 96 * number for number in optimizer["param_groups"][0]["params"]}
    entries = {address[number]: entry for number, entry in optimizer["state"].items()}
    return {"state": entries, "param_groups": [{**optimizer["param_groups"][0], "params": list(address.values())}]}


SAME: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "no prefix": lambda c: {**c, "state_dict": renamed(c["state_dict"], "")},
    "two prefixes": lambda c: {**c, "state_dict": renamed(c["state_dict"], "module._orig_mod.")},
    "entries by addresses": lambda c: {**c, "optimizer": by_addresses(c["optimizer"])},
    "None for the key encoder": lambda c: {
        **c,
        "optimizer": {
            **c["optimizer"],
            "state": {**{number: {"momentum_buffer": None} for number in range(16)}, **c["optimizer"]["state"]},
        },
    },
    "more beside it": lambda c: {**c, "scaler": {}, "best_acc1": 0.5},
    "the layers at the top": lambda c: {**c["state_dict"], "epoch": 7, "optimizer": c["optimizer"]},
    "parameters with a gradient": lambda c: {
        **c,
        "state_dict": {n: torch.nn.Parameter(t) if t.is_floating_point() else t for n, t in c["state_dict"].items()},
    },
    "no counts of batches": lambda c: {
        **c,
        "state_dict": {n: t for n, t in c["state_dict"].items() if "num_batches" not in n},
    },
}


@pytest.mark.parametrize("how", SAME)
def test_the_same_state_in_other_words(content: dict[str, Any], how: str) -> None:
    expected, state = flat(state_of(content)), flat(state_of(SAME[how](copy.deepcopy(content))))
    assert expected.keys() == state.keys()
    differing = [name for name in expected if not torch.equal(expected[name], state[name])]
    counts = [name for name in expected if "num_batches" in name]
    assert differing == (counts if how == "no counts of batches" else [])
    assert any("momentum_buffer" in name for name in expected)
    assert not any(tensor.requires_grad for tensor in state.values())


def put(*path: Any) -> Callable[[dict[str, Any]], None]:
    """Return a change of the value at a path of keys; the last argument is the new value, or computes it."""
    *keys, last, value = path

    def change(content: dict[str, Any]) -> None:
        place: Any = content
        for key in keys:
            place = place[key]
        place[last] = value(place[last]) if callable(value) else value

    return change


def dropped(pattern: str) -> Callable[[dict[str, Any]], None]:
    def change(content: dict[str, Any]) -> None:
        for name in [name for name in content["state_dict"] if re.search(pattern, name)]:
            del content["state_dict"][name]

    return change


def nan(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.clone().fill_(float("nan"))


def reversed_order(state: dict[str, Any]) -> dict[str, Any]:
    return dict(reversed(state.items()))


LAYER, GROUP = "module.encoder_q.conv2.weight", ("optimizer", "param_groups", 0)
WRONG: dict[str, tuple[Callable[[dict[str, Any]], None], str]] = {
    "no queue": (dropped("queue"), r"no queue .*run\.init_from"),
    "no cursor": (dropped("queue_ptr"), "no cursor of the queue"),
    "no key encoder": (dropped("encoder_k"), r"no key encoder .*run\.init_from"),
    "no encoder": (dropped("encoder_q"), r"which has encoder_q.*it holds module\.queue"),
    "two models": (put("state_dict", "encoder_q.conv1.weight", torch.zeros(1)), "several models: encoder_q, module"),
    "our own": (put("encoder_q", {}), "this trainer's own"),
    "a layer of k alone": (dropped(r"encoder_q\.bn2\.weight"), "different layers: bn2.weight"),
    "a layer of none": (dropped(r"bn2\.weight"), r"1 layers of its encoder_q .*bn2\.weight missing for \[16\]"),
    "one more layer": (
        lambda c: c["state_dict"].update({f"module.encoder_{e}.bn3.weight": torch.ones(2) for e in "qk"}),
        r"bn3\.weight \[2\] for no such layer",
    ),
    "another shape": (
        lambda c: c["state_dict"].update({f"module.encoder_{e}.bn2.weight": torch.ones(2) for e in "qk"}),
        r"bn2\.weight \[2\] for \[16\]",
    ),
    "half": (put("state_dict", LAYER, lambda t: t.half()), "torch.float16"),
    "double": (put("state_dict", LAYER, lambda t: t.double()), "torch.float64"),
    "NaN": (put("state_dict", LAYER, nan), "conv2.weight holds NaN"),
    "NaN in the queue": (put("state_dict", "module.queue", nan), "queue holds NaN"),
    "no tensor": (put("state_dict", LAYER, 3), "not a tensor"),
    "a queue by rows": (put("state_dict", "module.queue", lambda t: t.T.contiguous()), "column of length"),
    "another queue": (put("state_dict", "module.queue", lambda t: t[:, :17]), r"does not fit: \[6, 17\] for \[6, 24\]"),
    "a flat queue": (put("state_dict", "module.queue", torch.ones(24)), r"shape \[24\]"),
    "a cursor behind the end": (put("state_dict", "module.queue_ptr", torch.tensor([24])), "24, outside of the queue"),
    "a cursor below 0": (put("state_dict", "module.queue_ptr", torch.tensor([-8])), "outside of the queue"),
    "a cursor of floats": (put("state_dict", "module.queue_ptr", torch.tensor([8.0])), "no whole number"),
    "two cursors": (put("state_dict", "module.queue_ptr", torch.tensor([8, 8])), "no whole number"),
    "epoch 0": (put("epoch", 0), "its epoch is 0"),
    "an epoch of text": (put("epoch", "7"), "its epoch is '7'"),
    "an epoch that is true": (put("epoch", True), "its epoch is True"),
    "Adam": (put("optimizer", "state", 0, {"exp_avg": torch.zeros(3)}), "keeps exp_avg for conv1.weight"),
    "no such entry": (put("optimizer", "state", 0, 3), "keeps int for conv1.weight"),
    "the momentum of another layer": (
        put("optimizer", "state", lambda s: {**s, 0: s[3]}),
        r"momentum of conv1\.weight has the shape \[16, 8, 3, 3\]",
    ),
    "a momentum that is NaN": (put("optimizer", "state", 0, "momentum_buffer", nan), "momentum of conv1.weight holds"),
    "a momentum of half": (put("optimizer", "state", 0, "momentum_buffer", lambda t: t.half()), "torch.float16"),
    "too few parameters": (put(*GROUP, "params", list(range(9))), r"9 parameters, and the two encoders 10 each"),
    "a parameter twice": (put(*GROUP, "params", [0] * 20), "not numbered as torch's"),
    "parameters in lists": (put(*GROUP, "params", [[0]] * 20), "not numbered as torch's"),
    "no list of parameters": (put(*GROUP, "params", 20), "not torch's"),
    "two groups": (put("optimizer", "param_groups", lambda groups: groups * 2), "not one group"),
    "no groups": (put("optimizer", {"state": {}}), "not one group"),
    "another order": (put("state_dict", reversed_order), "another order"),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_does_not_fit_is_refused(content: dict[str, Any], what: str) -> None:
    change, pattern = WRONG[what]
    state_of(content)
    change(content)
    with pytest.raises(Unfit) as unfit:
        state_of(content)
    assert re.search(pattern, f"{unfit.value.rule}; {unfit.value.fix}"), f"{unfit.value.rule}; {unfit.value.fix}"


def test_what_is_left_out_is_named(content: dict[str, Any]) -> None:
    content |= {"scaler": {}, "optimizer": 3}
    content["state_dict"]["module.predictor.weight"] = torch.ones(1)
    contents = read(content)
    assert contents.others == ["module.predictor.weight", "scaler", "optimizer"]
    assert contents.optimizer is None


def test_a_parameter_that_had_no_gradient_has_no_momentum(content: dict[str, Any]) -> None:
    whole = state_of(content)["optimizer"]["state"]
    content["optimizer"]["state"][0] = {"momentum_buffer": None}
    assert state_of(content)["optimizer"]["state"].keys() == whole.keys() - {0}


def test_a_layer_that_the_demo_has_not_is_refused(content: dict[str, Any]) -> None:
    layers = {f"module.encoder_{e}.net.{n}.weight": torch.ones(2) for e in "qk" for n in (0, 99)}
    others = {name: tensor for name, tensor in content["state_dict"].items() if ".encoder_" not in name}
    with pytest.raises(Unfit) as unfit:
        read({**content, "state_dict": {**others, **layers}})
    assert unfit.value.rule == "module.encoder_q.net.99.weight is no layer of the authors' encoder"
