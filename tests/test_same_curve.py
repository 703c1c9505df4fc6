"""The comparison of two runs tells what differs, by name; on made run directories, without a process."""

from __future__ import annotations

import copy
import json
import struct
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torchvision import datasets

from tests import same_curve
from tests.jobs import ROOT
from tests.same_curve import COLUMNS, Verdict, compare

Run = dict[str, Any]


def made_run() -> Run:
    """Make what a run of two steps and its evaluation leave, as Python holds it."""
    weights = {"conv1.weight": torch.tensor([0.5, -0.25]), "bn1.num_batches_tracked": torch.tensor(2)}
    return {
        "rows": [
            {"step": 1, "epoch": 0, "loss": 2.5, "lr": 0.03, "top1": 0.25, "top5": 0.5, "images_per_second": 9.0},
            {"step": 2, "epoch": 0, "loss": 2.25, "lr": 0.02, "top1": 0.5, "top5": 0.75, "images_per_second": 9.0},
            {"step": 2, "epoch": 1, "knn_top1": 0.75, "linear_top1": 0.625},
        ],
        "encoder": copy.deepcopy(weights),
        "state": {
            "step": 2,
            "config": {"run": {"dir": "somewhere"}},
            "encoder_q": copy.deepcopy(weights),
            "encoder_k": copy.deepcopy(weights),
            "queue": torch.eye(3),
            "cursor": 1,
            "optimizer": {
                "state": {0: {"momentum_buffer": torch.ones(2)}},
                "param_groups": [{"lr": 0.02, "fused": True}],
            },
            "scaler": {},
            "skipped": False,
        },
        "evaluation": [
            {"method": "kNN", "labels": None, "test_accuracy_mean": 0.75, "seconds": 1.5, "notes": {}},
            {"method": "linear", "labels": None, "test_accuracy_mean": 0.625, "seconds": 1.5, "notes": {}},
            {"method": "linear", "labels": 50, "test_accuracy_mean": 0.5, "seconds": 1.5, "notes": {"decay": 0.1}},
        ],
        "cells": [{"key": {"method": "kNN", "labels": None, "draw": 0}, "seconds": 1.5, "predicted": [3, 1, 4]}],
    }


def write(run: Run, folder: Path) -> Path:
    """The run directory of a made run."""
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "evaluation").mkdir()
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in run["rows"]))
    torch.save({"step": 1}, folder / "checkpoints" / "step_000000001.pt")
    torch.save(run["state"], folder / "checkpoints" / "step_000000002.pt")
    save_file(run["encoder"], folder / "encoder.safetensors")
    (folder / "evaluation.json").write_text(json.dumps({"settings": str(folder), "rows": run["evaluation"]}))
    (folder / "evaluation" / "cells.jsonl").write_text("\n".join(map(json.dumps, run["cells"])))
    return folder


def compared(change: Callable[[Run], object], folder: Path) -> dict[str, Verdict]:
    """The verdicts on a made run here and a changed one there."""
    changed = made_run()
    change(changed)
    return compare(write(made_run(), folder / "here"), write(changed, folder / "there"))


def differing(verdicts: dict[str, Verdict]) -> list[str]:
    return [column for column, verdict in verdicts.items() if not verdict.equal]


def flip_(tensor: torch.Tensor) -> None:
    """Change the last bit of a tensor's last element."""
    tensor.view({4: torch.int32, 8: torch.int64}[tensor.itemsize]).reshape(-1)[-1] ^= 1


def after(value: float) -> float:
    """The float64 next to a value."""
    return float(np.nextafter(value, 9.0))


def set_(place: Any, key: Any) -> None:
    """Move a figure by one bit."""
    place[key] = after(place[key])


CHANGES: list[tuple[str, str, Callable[[Run], object]]] = [
    ("losses", "step 2, loss", lambda run: set_(run["rows"][1], "loss")),
    ("lr", "step 1, lr", lambda run: set_(run["rows"][0], "lr")),
    ("top1 top5", "step 2, top1", lambda run: set_(run["rows"][1], "top1")),
    ("top1 top5", "step 1, top5", lambda run: set_(run["rows"][0], "top5")),
    ("online kNN", "step 2, knn_top1", lambda run: set_(run["rows"][2], "knn_top1")),
    ("online kNN", "step 2, linear_top1", lambda run: set_(run["rows"][2], "linear_top1")),
    ("other figures", "step 1, epoch", lambda run: run["rows"][0].update(epoch=1)),
    ("encoder file", "conv1.weight", lambda run: flip_(run["encoder"]["conv1.weight"])),
    ("encoder file", "bn1.num_batches_tracked", lambda run: flip_(run["encoder"]["bn1.num_batches_tracked"])),
    ("encoders", "encoder_q.conv1.weight", lambda run: flip_(run["state"]["encoder_q"]["conv1.weight"])),
    ("encoders", "encoder_k.conv1.weight", lambda run: flip_(run["state"]["encoder_k"]["conv1.weight"])),
    ("queue", "queue", lambda run: flip_(run["state"]["queue"])),
    ("queue", "queue", lambda run: run["state"]["queue"][0, 1:].neg_()),  # to -0.0
    ("queue", "queue", lambda run: run["state"].update(queue=torch.eye(3).double())),
    ("queue", "queue", lambda run: run["state"].update(queue=torch.eye(3).reshape(1, 9))),
    ("queue", "queue", lambda run: run["state"].update(queue=torch.eye(3).view(torch.int32))),
    ("queue", "cursor", lambda run: run["state"].update(cursor=2)),
    (
        "optimizer",
        "optimizer.state.0.momentum_buffer",
        lambda run: flip_(run["state"]["optimizer"]["state"][0]["momentum_buffer"]),
    ),
    ("optimizer", "optimizer.param_groups.0.lr", lambda run: set_(run["state"]["optimizer"]["param_groups"][0], "lr")),
    ("other state", "step", lambda run: run["state"].update(step=3)),
    ("other state", "skipped", lambda run: run["state"].update(skipped=0)),
    ("kNN", "kNN, test_accuracy_mean", lambda run: set_(run["evaluation"][0], "test_accuracy_mean")),
    ("linear probe", "linear, test_accuracy_mean", lambda run: set_(run["evaluation"][1], "test_accuracy_mean")),
    ("few labels", "linear, test_accuracy_mean", lambda run: set_(run["evaluation"][2], "test_accuracy_mean")),
    ("few labels", "linear, notes.decay", lambda run: set_(run["evaluation"][2]["notes"], "decay")),
    ("classes", "kNN, all labels, draw 0", lambda run: run["cells"][0].update(predicted=[3, 1, 5])),
]


def test_equal_runs_are_equal(tmp_path: Path) -> None:
    verdicts = compared(lambda run: None, tmp_path)
    assert tuple(verdicts) == COLUMNS
    assert {verdict.cell for verdict in verdicts.values()} == {"equal"}
    assert all(verdict.compared for verdict in verdicts.values())
    assert not [line for verdict in verdicts.values() for line in verdict.lines()]


def test_clocks_and_places_do_not_count(tmp_path: Path) -> None:
    def change(run: Run) -> None:
        run["rows"][0]["images_per_second"] = 1.0
        run["rows"][1]["data_seconds"] = 0.5
        run["state"]["config"]["run"]["dir"] = "elsewhere"
        run["evaluation"][0]["seconds"] = 9.0

    assert {verdict.cell for verdict in compared(change, tmp_path).values()} == {"equal"}


@pytest.mark.parametrize(("column", "name", "change"), CHANGES)
def test_the_least_change_is_seen_by_name(
    column: str, name: str, change: Callable[[Run], object], tmp_path: Path
) -> None:
    verdicts = compared(change, tmp_path)
    assert differing(verdicts) == [column]
    assert list(verdicts[column].unequal) == [name]
    assert verdicts[column].cell.startswith("DIFFERS")
    assert f"first {name}: " in next(verdicts[column].lines())


def test_every_column_can_differ() -> None:
    assert {column for column, _, _ in CHANGES} == set(COLUMNS)


def test_the_first_step_and_the_largest_difference_are_shown(tmp_path: Path) -> None:
    def change(run: Run) -> None:
        run["rows"][0]["loss"] += 0.5
        run["rows"][1]["loss"] -= 2.0

    verdict = compared(change, tmp_path)["losses"]
    assert verdict.cell == "DIFFERS\nfrom step 1\nby 2"
    expected = "2 of 2 differ, first step 1, loss: 2.5 here, 3.0 there; the largest difference is 2"
    assert list(verdict.lines()) == [expected]


def test_unequal_elements_are_counted(tmp_path: Path) -> None:
    verdict = compared(lambda run: run["state"]["queue"][0].add_(0.25), tmp_path)["queue"]
    assert verdict.cell == "DIFFERS\nby 0.25"
    assert "first queue: 3 of 9 elements" in next(verdict.lines())


def test_not_a_number_equals_itself_and_nothing_else(tmp_path: Path) -> None:
    here, there = made_run(), made_run()
    here["state"]["queue"][0, 0] = there["state"]["queue"][0, 0] = float("nan")
    assert not differing(compare(write(here, tmp_path / "a"), write(there, tmp_path / "b")))
    verdict = compare(write(made_run(), tmp_path / "c"), tmp_path / "b")["queue"]
    assert verdict.cell == "DIFFERS\nby inf"


@pytest.mark.parametrize(("one", "other"), [(0.0, -0.0), (1, 1.0), (1, True), ("1", 1), (1.0, torch.tensor(1.0))])
def test_figures_of_another_type_or_sign_are_not_equal(one: Any, other: Any) -> None:
    assert same_curve.equal_bits(one, copy.deepcopy(one))
    assert not same_curve.equal_bits(one, other)
    assert not same_curve.equal_bits(other, one)


def test_a_tensor_on_one_side_alone_is_a_difference(tmp_path: Path) -> None:
    def change(run: Run) -> None:
        run["state"]["method"] = {"centre": torch.zeros(2)}
        run["state"]["momentum_encoder"] = run["state"].pop("encoder_k")

    verdicts = compared(change, tmp_path)
    assert differing(verdicts) == ["encoders", "other state"]
    assert verdicts["encoders"].cell == "DIFFERS\n2 only here"
    assert list(verdicts["encoders"].lines()) == [
        "only here: encoder_k.conv1.weight; encoder_k.bn1.num_batches_tracked"
    ]
    assert verdicts["other state"].cell == "DIFFERS\n3 only there"


def test_a_tensor_in_another_section_stays_in_its_column(tmp_path: Path) -> None:
    verdicts = compared(lambda run: run["state"].update(moco={"queue": run["state"].pop("queue")}), tmp_path)
    assert differing(verdicts) == ["queue"]
    assert list(verdicts["queue"].lines()) == ["only here: queue", "only there: moco.queue"]


def test_a_new_note_in_the_state_is_reported_but_no_difference(tmp_path: Path) -> None:
    def change(run: Run) -> None:
        run["state"]["layout"] = 2
        run["rows"][0]["gradient_norm"] = 0.5
        del run["cells"][0]

    verdicts = compared(change, tmp_path)
    assert not differing(verdicts)
    assert verdicts["other state"].cell == "equal\n1 only there"
    assert list(verdicts["other state"].lines()) == ["only there: layout"]
    assert list(verdicts["other figures"].lines()) == ["only there: step 1, gradient_norm"]
    assert list(verdicts["classes"].lines()) == ["only here: kNN, all labels, draw 0"]


@pytest.mark.parametrize(
    ("change", "column", "line"),
    [
        (lambda run: run["rows"].pop(1), "losses", "only here: step 2, loss"),
        (lambda run: run["rows"].append(run["rows"][1]), "losses", "only there: step 2, loss again"),
        (lambda run: run["rows"].pop(2), "online kNN", "only here: step 2, epoch"),
        (lambda run: run["evaluation"].pop(0), "kNN", "only here: kNN, method"),
        (lambda run: run["encoder"].pop("conv1.weight"), "encoder file", "only here: conv1.weight"),
    ],
    ids=["row lost", "row doubled", "evaluation lost", "method lost", "layer lost"],
)
def test_what_is_lost_or_doubled_is_a_difference(
    change: Callable[[Run], object], column: str, line: str, tmp_path: Path
) -> None:
    verdicts = compared(change, tmp_path)
    assert column in differing(verdicts)
    assert next(verdicts[column].lines()).startswith(line)


def test_what_both_lack_is_not_equal(tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "there").mkdir()
    verdicts = compare(tmp_path / "here", tmp_path / "there")
    assert set(COLUMNS) - set(differing(verdicts)) == set(same_curve.LOOSE)
    assert verdicts["queue"].cell == "NOTHING\nto compare"


@pytest.mark.parametrize("change", [lambda run: None, lambda run: flip_(run["state"]["queue"])], ids=["equal", "not"])
def test_the_table_has_a_line_a_scenario_and_decides(
    change: Callable[[Run], object],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    request: pytest.FixtureRequest,
) -> None:
    equal = request.node.callspec.id == "equal"

    def train(scenario: same_curve.Scenario, trees: dict[str, Path], folder: Path) -> None:
        assert scenario.name != "bad", "a rank said no"
        compared(change, folder)

    monkeypatch.setattr(same_curve, "train", train)
    made = same_curve.Scenario("made", "by hand", 2, steps=2, kill_after=1, labels=50)
    assert same_curve.all_equal([made], {}, tmp_path) is equal
    printed = capsys.readouterr().out
    assert printed.splitlines()[-1] == ("all equal" if equal else "NOT equal")
    assert ("DIFFERS" in printed, "made, queue: 1 of 2 differ" in printed) == (not equal, not equal)
    bad = same_curve.Scenario("bad", "by hand", 2, steps=2, kill_after=1, labels=50)
    assert not same_curve.all_equal([bad, made], {}, tmp_path / "again")
    printed = capsys.readouterr().out
    assert "a rank said no" in printed
    assert "FAILED" in printed


@pytest.mark.parametrize(("change", "code"), [(lambda run: None, 0), (lambda run: flip_(run["state"]["queue"]), 1)])
def test_the_exit_status_says_whether_anything_differs(
    change: Callable[[Run], object], code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[str] = []

    def train(scenario: same_curve.Scenario, trees: dict[str, Path], folder: Path) -> None:
        assert trees == {"here": ROOT, "there": tmp_path / "other"}
        compared(change, folder)
        trained.append(scenario.name)

    monkeypatch.setattr(same_curve, "train", train)
    monkeypatch.setattr(same_curve, "checkout", lambda revision, folder: nullcontext(tmp_path / "other"))
    monkeypatch.setattr(same_curve, "imported_package", lambda tree: tree)
    monkeypatch.setattr(same_curve, "_ENDINGS", ())
    arguments = ["--against", "REV", "--scenario", "digits", "--scenario", "folder"]
    assert same_curve.main([*arguments, "--keep", str(tmp_path / "kept")]) == code
    assert trained == ["digits", "folder"]
    assert (tmp_path / "kept" / "digits" / "here" / "metrics.jsonl").exists()


@pytest.mark.parametrize("option", ["--keep", "--mnist"])
def test_a_folder_that_does_not_do_is_refused(option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        same_curve.main(["--against", "REV", option, str(tmp_path)])
    assert end.value.code == 2
    assert f"{option} {tmp_path}: " in capsys.readouterr().err


def test_scenarios_say_where_mnist_is_missing(tmp_path: Path) -> None:
    chosen = same_curve.scenarios(tmp_path / "data", None)
    assert tuple(scenario.name for scenario in chosen) == same_curve.NAMES
    assert "no MNIST" in chosen[1].about
    assert "data.root" not in chosen[1].settings


def test_made_images_are_the_same_every_time(tmp_path: Path) -> None:
    for name in "ab":
        same_curve.make_images(tmp_path / name)
    files = sorted((tmp_path / "a").rglob("*.jpg"))
    assert len(files) == 4 * (24 + 6)
    assert all(file.read_bytes() == (tmp_path / "b" / file.relative_to(tmp_path / "a")).read_bytes() for file in files)


def test_mnist_is_cut_to_its_first_images(tmp_path: Path) -> None:
    raw, dice = tmp_path / "whole" / "MNIST" / "raw", np.random.default_rng(0)
    raw.mkdir(parents=True)
    images = {split: dice.integers(0, 256, (5, 28, 28), dtype=np.uint8) for split in ("train", "t10k")}
    for split, pixels in images.items():
        header = struct.pack(">4I", 0x803, 5, 28, 28)
        (raw / f"{split}-images-idx3-ubyte").write_bytes(header + pixels.tobytes())
        (raw / f"{split}-labels-idx1-ubyte").write_bytes(struct.pack(">2I", 0x801, 5) + bytes([7, 2, 1, 0, 4]))
    assert same_curve.has_mnist(tmp_path / "whole")
    assert not same_curve.has_mnist(tmp_path)
    same_curve.cut_mnist(tmp_path / "whole", tmp_path / "cut", {"train": 3, "t10k": 2})
    for train, split, count in ((True, "train", 3), (False, "t10k", 2)):
        cut = datasets.MNIST(tmp_path / "cut", train=train)
        assert cut.data.numpy().tolist() == images[split][:count].tolist()
        assert cut.targets.tolist() == [7, 2, 1, 0, 4][:count]


def test_the_way_in_which_an_optimizer_computes_is_no_difference(tmp_path: Path) -> None:
    verdicts = compared(lambda run: run["state"]["optimizer"]["param_groups"][0].update(fused=None), tmp_path)
    assert not differing(verdicts)
