"""Recorded steps are replayed: what is as it was comes out equal to the bit, and what is not is caught."""

from __future__ import annotations

import hashlib
import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from moco_dist.engine import checkpoint
from moco_dist.run import status
from moco_dist.run.lease import Lease
from moco_dist.run.paths import RunPaths
from moco_dist.verify import command, plan, replay
from tests.jobs import Job, Pair, rows, send, train_here

STEPS = 9
SMALL = {"optim.steps": STEPS, "checkpoint.every_steps": 4, "checkpoint.keep": 9, "track.log_every": 1}


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on one rank, with the checkpoints of steps 4, 8 and 9."""
    run_dir = tmp_path_factory.mktemp("recorded") / "run"
    assert train_here(run_dir, SMALL) == 0
    return run_dir


@pytest.fixture
def run_dir(recorded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, for a test to spoil."""
    monkeypatch.chdir(tmp_path)
    return shutil.copytree(recorded, tmp_path / "run")


def verified(run_dir: Path, *arguments: str) -> tuple[int, dict[str, Any]]:
    """Verify a run on one rank in this process. Returns the exit status, and the result where one is written."""
    out = run_dir.with_name("result.json")
    out.unlink(missing_ok=True)
    code = command.run([str(run_dir), "--out", str(out), *arguments])
    return code, json.loads(out.read_text()) if out.exists() else {}


def digests(folder: Path) -> dict[str, str]:
    return {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in folder.rglob("*")
        if file.is_file()
    }


def change_row(run_dir: Path, step: int, change: Callable[[dict[str, Any]], list[dict[str, Any]]], kind: str) -> None:
    """Replace the row of a step that has a figure `kind` by others."""
    lines = [new for row in rows(run_dir) for new in (change(row) if row["step"] == step and kind in row else [row])]
    RunPaths(run_dir).metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))


def state_file(run_dir: Path, step: int) -> Path:
    return RunPaths(run_dir).checkpoints / f"step_{step:09d}.pt"


def flip(file: Path) -> None:
    """Change a bit in the midst of a file."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def test_a_run_is_equal_to_the_bit_and_left_alone(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before, lease = digests(run_dir), Lease(run_dir)  # a live job has it: the run may be running
    before["lease.json"] = digests(run_dir)["lease.json"]
    code, result = verified(run_dir)
    assert digests(run_dir) == before
    lease.release()
    assert code == 0 and result["result"] == "equal"
    assert (result["replayed"]["first_step"], result["replayed"]["last_step"]) == (1, STEPS)
    assert result["training"]["rows"] == STEPS and not result["training"]["differ"]
    assert {"loss", "lr", "top1"} <= set(result["training"]["figures"])
    assert "images_per_second" not in result["training"]["figures"]
    assert result["evaluations"]["rows"] == 1
    assert [(state["step"], state["result"]) for state in result["checkpoints"]] == [
        (4, "equal"),
        (8, "equal"),
        (9, "equal"),
    ]
    assert all(state["compared"] > 300 for state in result["checkpoints"])
    assert result["digests"]["config_sha256"] == before["config.yaml"]
    assert result["here"]["ranks"] == result["recorded"]["ranks"] == 1 and "hosts" not in result["recorded"]
    assert result["digests"]["code_sha256"] == result["recorded"]["code"]["sha256"]
    assert capsys.readouterr().out.startswith(f"equal to the bit: {STEPS} rows of steps 1 to {STEPS}")


def test_steps_are_replayed_from_a_checkpoint(run_dir: Path) -> None:
    code, result = verified(run_dir, "--from", "4", "--steps", "3")
    assert code == 0 and result["training"]["rows"] == 3
    replayed = result["replayed"]
    assert (replayed["first_step"], replayed["last_step"], replayed["checkpoint"]["step"]) == (5, 7, 4)
    assert replayed["checkpoint"]["sha256"] in state_file(run_dir, 4).read_bytes()[-64:].decode()
    assert not result["checkpoints"] and not result["evaluations"]["rows"]


def test_rows_of_some_steps_are_enough(run_dir: Path) -> None:
    """`track.log_every=3` leaves these rows: the replay goes on to one. Where nothing tells of machines, none is."""
    for step in set(range(1, STEPS + 1)) - {3, 6, 9}:
        change_row(run_dir, step, lambda row: [], "loss")
    RunPaths(run_dir).provenance.unlink()
    code, result = verified(run_dir, "--from", "4", "--steps", "1")
    assert code == 0 and result["training"]["rows"] == 1 and result["replayed"]["last_step"] == 6
    assert result["recorded"]["versions"]["torch"] == result["here"]["versions"]["torch"]


def nudged(name: str) -> Callable[[dict[str, Any]], list[dict[str, Any]]]:
    """Return what moves a figure of a row by its last bit."""
    return lambda row: [{**row, name: float(np.nextafter(row[name], 9))}]


@pytest.mark.parametrize(
    ("step", "kind", "change", "first", "words"),
    [
        (6, "loss", nudged("loss"), ("training", "loss"), "different: loss from step 6, after 1 equal rows"),
        (7, "loss", nudged("top1"), ("training", "top1"), "different: top1 from step 7, after 2 equal rows"),
        (9, "knn_top1", nudged("knn_top1"), ("evaluations", "knn_top1"), "different: knn_top1 from step 9"),
        (7, "loss", lambda row: [row, row], None, "different: step 7 has more than one row"),
    ],
)
def test_a_changed_row_is_caught(
    run_dir: Path,
    capsys: pytest.CaptureFixture[str],
    step: int,
    kind: str,
    change: Callable[[dict[str, Any]], list[dict[str, Any]]],
    first: tuple[str, str] | None,
    words: str,
) -> None:
    change_row(run_dir, step, change, kind)
    code, result = verified(run_dir, "--from", "4")
    assert code == 1 and result["result"] == "different"
    assert capsys.readouterr().out.startswith(words)
    differing = {(name, figure) for name in ("training", "evaluations") for figure in result[name]["differ"]}
    assert differing == ({first} if first else set())
    if first:
        assert result[first[0]]["differ"][first[1]]["first_step"] == step
    assert all(state["result"] == "equal" for state in result["checkpoints"])


@pytest.mark.parametrize(("step", "kind"), [(6, "loss"), (9, "knn_top1")])
def test_a_row_that_is_gone_is_missed(run_dir: Path, capsys: pytest.CaptureFixture[str], step: int, kind: str) -> None:
    change_row(run_dir, step, lambda row: [], kind)
    code, result = verified(run_dir, "--from", "4")
    assert code == 1 and result["missing"] == [step]
    words = f"different: a row of step {step} is missing, which the run has written; steps 5 to 9 on 1 rank here"
    assert capsys.readouterr().out.startswith(words)


def test_rows_that_nobody_can_miss(run_dir: Path) -> None:
    """An earlier start may have written other rows; and an evaluation may come after the last row of a live run."""
    change_row(run_dir, 3, lambda row: [], "loss")
    change_row(run_dir, 9, lambda row: [], "knn_top1")
    file = RunPaths(run_dir).provenance
    file.write_text(file.read_text() + json.dumps({**json.loads(file.read_text()), "step": 4}) + "\n")
    status.write(run_dir, "running", 9)
    code, result = verified(run_dir, "--from", "0")
    assert code == 0 and not result["missing"] and result["training"]["rows"] == STEPS - 1


def test_a_changed_checkpoint_is_caught(run_dir: Path) -> None:
    file = state_file(run_dir, 8)
    state = checkpoint.load(file)
    state["queue"].view(-1)[5].nextafter_(torch.tensor(9.0))
    checkpoint.write(file, state)  # with a checksum that is right
    code, result = verified(run_dir, "--from", "4", "--steps", "5")
    assert code == 1
    assert [(s["step"], s["result"], list(s["unequal"])) for s in result["checkpoints"]] == [
        (8, "different", ["queue"]),
        (9, "equal", []),
    ]
    state["queue"].neg_()  # a last bit of one key may be lost in the sums of the next step
    checkpoint.write(file, state)
    code, result = verified(run_dir, "--from", "8")
    assert code == 1 and any(name.startswith("encoder_q") for name in result["checkpoints"][0]["unequal"])


def test_a_damaged_checkpoint_is_caught_and_left_in_its_place(
    run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flip(state_file(run_dir, 8))
    before = digests(run_dir)
    code, result = verified(run_dir, "--from", "4", "--steps", "4")
    assert code == 1 and "checksum" in result["checkpoints"][0]["problem"]
    code, result = verified(run_dir, "--from", "8")
    assert code == 2 and not result
    assert "moco_dist.verify: --from = 8: step_000000008.pt cannot be read: its checksum" in capsys.readouterr().err
    assert digests(run_dir) == before


def test_a_checkpoint_that_the_run_has_removed_meanwhile_is_no_difference(tmp_path: Path) -> None:
    compared = replay.compare_with(tmp_path / "gone", {})
    assert compared.gone and compared.equal


def test_a_difference_is_expected_of_another_device(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = RunPaths(run_dir).provenance
    start = json.loads(file.read_text())
    file.write_text(json.dumps({**start, "device": "cuda", "exact": False, "devices": {"NVIDIA H100": 1}}) + "\n")
    assert verified(run_dir, "--from", "8")[0] == 0  # equal all the same: nothing to expect
    change_row(run_dir, 9, nudged("loss"), "loss")
    code, result = verified(run_dir, "--from", "8")
    assert code == 1 and len(result["expected_since"]) == 1
    assert result["expected_since"][0].startswith("the run was on NVIDIA H100, the replay on ")
    assert capsys.readouterr().out.splitlines()[-1].startswith("  a difference is expected: the run was on NVIDIA H100")
    capsys.readouterr()
    file.write_text(json.dumps({**start, "code": {"git": "x", "sha256": "y"}}) + "\n")
    code, result = verified(run_dir, "--from", "8")
    assert code == 1 and not result["expected_since"] and result["other_code"] == "the trainer's files have changed"
    later = {**start, "step": 8}  # the first of the steps were taken by another start than the last one
    other_torch = {**start, "versions": {**start["versions"], "torch": "1.0"}}
    file.write_text("".join(json.dumps(line) + "\n" for line in (other_torch, later)))
    assert verified(run_dir, "--from", "8")[1]["expected_since"] == []
    assert verified(run_dir, "--from", "4")[1]["expected_since"][0].startswith("torch 1.0 became ")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--from", "5"], "--from = 5: the run keeps no checkpoint of this step; use one of 0, 4, 8"),
        (["--from", "9"], "--from = 9: the last recorded step is 9; use one of 0, 4, 8"),
        (["--steps", "0"], "--steps = 0: must be a whole number, 1 or more; use --steps 50"),
        (["optim.lr=0.5"], "optim.lr = 0.5 (was 0.06): would change the curve of the run in "),
        (["other.yaml"], "argument = other.yaml: a run directory has its config; give overrides alone"),
        (["--out", "/nowhere/x"], "--out = /nowhere/x: cannot be written; name a file in a folder that you may"),
        (["device.type=cuda"], "device.type = cuda: there is no CUDA device here; use device.type=cpu or auto"),
        (["eval.knn_k=5"], "eval.knn_k = 5: the run has evaluated with 20, and its accuracies are compared; drop the"),
        (["eval.knn_every=0"], "eval.knn_every = 0: the run has evaluated with "),
        (["--what"], "unrecognized arguments: --what; see python -m moco_dist.verify --help"),
    ],
)
def test_mistakes_are_one_line(
    run_dir: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], line: str
) -> None:
    assert command.run([str(run_dir), *arguments]) == 2
    out, err = capsys.readouterr()
    assert err.startswith(f"moco_dist.verify: {line}") and err.count("\n") == 1 and not out


def test_what_is_no_run_is_refused(run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.run([str(tmp_path / "none")]) == 2
    assert command.run([str(tmp_path)]) == 2
    RunPaths(run_dir).metrics.write_text("")
    assert command.run([str(run_dir)]) == 2
    RunPaths(run_dir).config.write_text(f"{RunPaths(run_dir).config.read_text()}later: {{key: 1}}\n")
    assert command.run([str(run_dir)]) == 2
    lines = capsys.readouterr().err.splitlines()
    endings = [
        "no such directory; give",
        "holds no config.yaml; give",
        "holds no row of a training step yet; wait",
        "later",
    ]
    assert len(lines) == 4
    assert all(ending in line for ending, line in zip(endings, lines, strict=True)), lines


def test_the_default_steps(tmp_path: Path) -> None:
    """The last checkpoint with fifty recorded steps after it; then on to a checkpoint that is near."""
    run = RunPaths(tmp_path)
    run.checkpoints.mkdir()

    def choice(last: int, *kept: int, steps: int | None = None) -> tuple[int, int]:
        run.metrics.write_text("".join(f'{{"step": {step}, "loss": 1.0}}\n' for step in range(1, last + 1)))
        for old in run.checkpoints.glob("*"):
            old.unlink()
        for step in kept:
            state_file(tmp_path, step).touch()
        chosen = plan.choose(tmp_path, steps, None)
        return chosen.start, chosen.end

    assert choice(880, 800, 880) == (800, 880)
    assert choice(2013, 1000, 2000) == (1000, 1050)
    assert choice(2060, 1000, 2000) == (2000, 2050)
    assert choice(2060, 1000, 2000, steps=100) == (1000, 1100)
    assert choice(2010, 2000) == (2000, 2010)
    assert choice(40, 40) == (0, 40)
    assert choice(400, 400) == (0, 50)


@pytest.fixture
def photographs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of small images, and a run on them in `run`."""
    monkeypatch.chdir(tmp_path)
    generator = np.random.default_rng(0)
    for number in range(16):
        folder = tmp_path / "images" / "train" / "ab"[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        pixels = generator.integers(0, 256, (12, 12, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    settings = {"data.source": "imagefolder", "data.root": tmp_path / "images", "optim.global_batch": 8}
    settings |= {"moco.queue_size": 16, "eval.knn_every": 0, "optim.steps": 3, "checkpoint.every_steps": 2}
    assert train_here(tmp_path / "run", settings) == 0
    return tmp_path / "images"


def test_other_data_are_caught(photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_dir, image = tmp_path / "run", photographs / "train" / "a" / "0.png"
    moved = photographs.rename(tmp_path / "moved")
    assert verified(run_dir) == (2, {})
    assert f"data.root = {photographs}: no such folder" in capsys.readouterr().err
    assert verified(run_dir, f"data.root={moved}")[0] == 0
    moved.rename(photographs)
    pixels = image.read_bytes()
    Image.fromarray(np.full((12, 12, 3), 7, dtype=np.uint8)).save(image)  # other pixels under the old name
    code, result = verified(run_dir)
    assert code == 1 and "loss" in result["training"]["differ"]
    image.write_bytes(pixels)
    image.rename(image.with_name("99.png"))
    capsys.readouterr()
    assert verified(run_dir) == (2, {})
    line = capsys.readouterr().err
    assert f"data.root = {photographs}: has 16 images of 2 classes" in line and "and the run learned from 16" in line


def test_what_was_evaluated_on_must_be_there(
    photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(photographs / "train", photographs / "val")
    settings = {"data.source": "imagefolder", "data.root": photographs, "optim.global_batch": 8, "optim.steps": 3}
    settings |= {"moco.queue_size": 16, "eval.knn_every": 1, "track.log_every": 1}
    assert train_here(tmp_path / "watched", settings) == 0
    assert verified(tmp_path / "watched")[0] == 0
    (photographs / "val").rename(tmp_path / "val")
    capsys.readouterr()
    assert verified(tmp_path / "watched") == (2, {})
    rule = "has no held-out images, and the run has evaluated on some after step 2; name a folder with both"
    assert f"moco_dist.verify: data.root = {photographs}: {rule}" in capsys.readouterr().err
    assert verified(tmp_path / "watched", "--steps", "1")[0] == 0


def test_a_run_of_before_there_was_another_decoder(photographs: Path, tmp_path: Path) -> None:
    """A run that is older than the key was decoded by Pillow, and its config does not say so."""
    run, settings = tmp_path / "old", {"data.source": "imagefolder", "data.root": photographs, "data.enlarge": True}
    settings |= {"data.image_size": 16, "optim.global_batch": 8, "moco.queue_size": 16, "eval.knn_every": 0}
    assert train_here(run, {**settings, "optim.steps": 2, "data.decode": "pillow", "track.log_every": 1}) == 0
    file = RunPaths(run).config
    file.write_text(file.read_text().replace("  decode: pillow\n", ""))
    code, result = verified(run, "--from", "0")
    assert code == 0, result
    assert verified(run, "--from", "0", "data.decode=pillow")[0] == 0
    assert verified(run, "--from", "0", "data.decode=cpu")[0] == 2


def test_any_number_of_ranks_verifies_any_other(run_dir: Path, tmp_path: Path) -> None:
    """A run on two ranks is killed and goes on on one; then one rank verifies it, and two verify one on one rank."""
    killed = tmp_path / "killed"
    with Pair(killed, SMALL) as pair:
        pair.until_step(5)
        for rank in pair.ranks:
            send(rank.process.pid, signal.SIGKILL)
        pair.exits()
    assert train_here(killed, SMALL) == 0
    code, result = verified(killed)
    assert code == 0 and result["training"]["rows"] == STEPS, result
    assert [state["step"] for state in result["checkpoints"]] == [4, 8, 9]
    assert rows(killed)[-1]["knn_top1"] == rows(run_dir)[-1]["knn_top1"]
    starts = [json.loads(line) for line in RunPaths(killed).provenance.read_text().splitlines()]
    assert [(start["step"], start["ranks"]) for start in starts] == [(0, 2), (starts[1]["step"], 1)]
    out = tmp_path / "two.json"
    arguments = [str(run_dir), "--out", str(out)]
    with Job(run_dir, 2, {}, module="moco_dist.verify", arguments=arguments) as job:
        assert job.wait() == 0, job.log
    result = json.loads(out.read_text())
    assert result["result"] == "equal" and result["here"]["ranks"] == 2 and result["training"]["rows"] == STEPS
    assert "2 ranks here" in job.log
