"""Two runs are compared: where they part, what differs between them, and the most probable cause."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from moco_dist import config as configs
from moco_dist.diff import command
from moco_dist.run.paths import RunPaths
from tests.jobs import train_here
from tests.test_earlier_run import EARLIER

LOSSES = [4.0, 3.5, 3.25, 3.0]
START = {
    "step": 0,
    "ranks": 2,
    "hosts": ["a"],
    "device": "cpu",
    "devices": {"Xeon": 2},
    "cpus": {"Xeon": 1},
    "exact": True,
    "deterministic": False,
    "data": {"images": 9, "classes": 3, "digest": "abc"},
    "code": {"git": "1f", "sha256": "aa"},
    "versions": {"torch": "2.14", "wandb": "1"},
}
ON_GPU = {"device": "cuda", "devices": {"NVIDIA H100": 2}, "exact": False}


def write_run(
    folder: Path,
    *overrides: str,
    losses: list[float] = LOSSES,
    lr: list[float] | None = None,
    starts: list[dict[str, Any]] | None = None,
    every: int = 1,
) -> Path:
    """Write the run directory of a run that had these losses, one a step, and these starts."""
    folder.mkdir()
    run, rates = RunPaths(folder), lr or [0.1] * len(losses)
    dumped = configs.dump(configs.load(None, [f"run.dir={folder}", *overrides]))
    run.config.write_text(f"# moco-dist 0.1.0, git 1f; python 3.11, torch 2.14\n{dumped}")
    rows = [{"step": n, "epoch": 0, "loss": loss, "lr": rates[n - 1]} for n, loss in enumerate(losses, 1)]
    run.metrics.write_text("".join(json.dumps(row) + "\n" for row in rows if row["step"] % every == 0))
    lines = [START] if starts is None else [{**START, **start} for start in starts]
    run.provenance.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def diff(capsys: pytest.CaptureFixture[str], one: Path, other: Path) -> tuple[int, dict[str, Any], str]:
    """Return the exit status, the JSON, and the lines for people."""
    code = command.run([str(one), str(other), "--json"])
    result = json.loads(capsys.readouterr().out)
    assert command.run([str(one), str(other)]) == code
    return code, result, capsys.readouterr().out


def test_equal_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = write_run(tmp_path / "one", "track.log_every=1", losses=[*LOSSES, 9.0])
    other = write_run(tmp_path / "two", "track.log_every=2", losses=[*LOSSES, 9.0, 8.0], every=2)
    code, result, text = diff(capsys, one, other)
    assert code == 0 and result["equal"] and not any(result["differs"].values())
    assert result["rows"]["training"]["compared"] == 2
    assert text.startswith(
        f"{one} and {other} are equal to the bit over 2 steps, to step 4; {other} goes on to step 6\n"
    )
    assert [entry["name"] for entry in result["cannot_matter"]] == ["run.dir", "track.log_every"]
    assert text.endswith("equal: seed, data, config, ranks, hardware, code, versions\n")


PARTED = [4.0, 3.5, 3.75, 2.0]
ROUNDED = [4.0, 3.5, 3.25 + 2**-20, 3.0]
LATER_LR = [0.1, 0.2, 0.2, 0.2]


@pytest.mark.parametrize(
    ("one", "other", "step", "cause"),
    [
        ({}, {"overrides": ["run.seed=1", "optim.lr=0.2"], "losses": [5.0]}, 1, "run.seed differs (0 and 1)"),
        ({}, {"starts": [{"data": {"images": 8, "classes": 3, "digest": "d"}}], "losses": [5.0]}, 1, "training images"),
        ({}, {"overrides": ["optim.lr=0.2"], "lr": LATER_LR, "losses": PARTED}, 3, "optim.lr differs (0.03 and 0.2)"),
        # The learning rates are equal, so that a longer run is no cause, and the precision is.
        ({}, {"overrides": ["optim.epochs=90", "device.precision=fp64"], "losses": PARTED}, 3, "device.precision"),
        # The first loss comes before any update.
        ({}, {"overrides": ["optim.weight_decay=0", "device.precision=fp64"], "losses": [5.0]}, 1, "device.precision"),
        ({}, {"starts": [{"code": {"git": "2e", "sha256": "bb"}}], "losses": PARTED}, 3, "the code differs"),
        (
            {"starts": [ON_GPU]},
            {"starts": [{**ON_GPU, "ranks": 4, "code": {"git": "2e", "sha256": "bb"}}], "losses": ROUNDED},
            3,
            "the number of ranks differs (2 and 4), which changes last bits",
        ),
        # A difference that large is not one of rounding: the code comes first.
        (
            {"starts": [ON_GPU]},
            {"starts": [{**ON_GPU, "ranks": 4, "code": {"git": "2e", "sha256": "bb"}}], "losses": PARTED},
            3,
            "the code differs",
        ),
        ({}, {"starts": [ON_GPU], "losses": ROUNDED}, 3, "hardware differs (1 x Xeon and "),
        ({}, {"starts": [{"versions": {"torch": "2.15", "wandb": "2"}}], "losses": ROUNDED}, 3, "torch differs"),
        ({"starts": [ON_GPU]}, {"starts": [ON_GPU], "losses": ROUNDED}, 3, "device.deterministic is off"),
        # Without fixed groups, BatchNorm's follow the ranks.
        (
            {"overrides": ["moco.bn_groups=null"]},
            {"overrides": ["moco.bn_groups=null"], "starts": [{"ranks": 1}], "losses": [5.0]},
            1,
            "the number of ranks differs (2 and 1)",
        ),
        # On the CPU, the exact engine gives the same bits on any number of ranks.
        ({}, {"starts": [{"ranks": 1}], "losses": PARTED}, 3, None),
    ],
)
def test_the_most_probable_cause(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    one: dict[str, Any],
    other: dict[str, Any],
    step: int,
    cause: str | None,
) -> None:
    sides = []
    for name, side in (("one", one), ("two", other)):
        options = {"losses": LOSSES, **side}
        sides.append(write_run(tmp_path / name, *options.pop("overrides", ()), **options))
    code, result, text = diff(capsys, *sides)
    assert code == 1 and not result["equal"]
    assert result["rows"]["training"]["first_step"] == step
    assert result["rows"]["training"]["equal_before"] == step - 1
    assert f"part at step {step}" in text.partition("\n")[0]
    if cause is None:
        assert result["causes"] == [] and "for no reason that both of them record" in result["verdict"]
    else:
        assert result["causes"][0].startswith(cause), result["causes"]
        assert f"most probably since {cause}" in result["verdict"]


@pytest.mark.parametrize(
    ("override", "step", "is_cause"),
    [
        ("eval.knn_k=5", 3, True),
        ("eval.knn_every=7", 3, False),
        ("optim.epochs=90", 3, False),
        ("optim.epochs=90", 4, True),  # the last evaluation takes all images
    ],
)
def test_the_cause_where_evaluations_alone_differ(
    override: str, step: int, is_cause: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = write_run(tmp_path / "one"), write_run(tmp_path / "two", override)
    for number, run in enumerate(runs):
        with RunPaths(run).metrics.open("a") as file:
            file.write(json.dumps({"step": step, "epoch": 0, "knn_top1": 0.5 + 0.1 * number}) + "\n")
    code, result, _ = diff(capsys, *runs)
    cause = f"most probably since {override.partition('=')[0]} differs" if is_cause else "for no reason that both"
    assert code == 1 and f"knn_top1 differs after step {step}: {cause}" in result["verdict"]


def test_what_changed_between_starts_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    starts = [{}, {"step": 2, "ranks": 4, "hosts": ["a", "b"]}, {"step": 1, "ranks": 1}]
    one, other = write_run(tmp_path / "one"), write_run(tmp_path / "two", starts=starts)
    code, result, _ = diff(capsys, one, other)
    assert code == 0
    assert result["differs"]["ranks"][0]["values"] == ["2", "2, from step 2 1"]
    third = write_run(tmp_path / "three", starts=starts[:2])
    assert diff(capsys, one, third)[1]["differs"]["ranks"][0]["values"] == ["2", "2, from step 3 4 on 2 nodes"]


def test_what_is_not_recorded_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, other = write_run(tmp_path / "one"), write_run(tmp_path / "two", starts=[])
    code, result, text = diff(capsys, one, other)
    assert code == 0 and not any(result["differs"].values())
    missing = {entry["name"] for entry in result["not_recorded"]}
    assert {"training images", "hardware", "the number of ranks", "files of the trainer"} <= missing
    assert text.splitlines()[-1] == "equal: seed, config"
    assert command.run([str(EARLIER), str(EARLIER)]) == 0


def test_mistakes_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_run(tmp_path / "run")
    begun = write_run(tmp_path / "begun", losses=[])
    odd = write_run(tmp_path / "odd", losses=LOSSES[:3], every=3)
    even = write_run(tmp_path / "even", every=2)
    for arguments, line in (
        ([run, tmp_path / "none"], "no such folder; give the directory of a run"),
        ([run, tmp_path], "holds no config.yaml; give the directory of a run"),
        ([run, begun], "holds no row of a training step yet; wait for its first one"),
        ([odd, even], "has a row of no step that"),
        ([run], "the following arguments are required: RUN"),
    ):
        assert command.run([*map(str, arguments)]) == 2
        out, err = capsys.readouterr()
        assert err.startswith("moco_dist.diff: ") and line in err and err.count("\n") == 1 and not out, err


def test_real_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = {"optim.steps": 3, "checkpoint.every_steps": 3}
    runs = [tmp_path / name for name in ("one", "same", "seeded")]
    for run, more in zip(runs, ({}, {"run.name": "same"}, {"run.seed": 1}), strict=True):
        assert train_here(run, {**settings, **more}) == 0
    capsys.readouterr()
    code, result, text = diff(capsys, runs[0], runs[1])
    assert code == 0 and "are equal to the bit over 3 steps, to step 3" in text
    assert {"loss", "lr", "gradient_norm"} <= set(result["rows"]["training"]["figures"])
    assert result["rows"]["evaluation"]["compared"] == 1 and not result["not_recorded"]
    code, result, text = diff(capsys, runs[0], runs[2])
    assert code == 1
    assert text.startswith(
        f"{runs[0]} and {runs[2]} part at step 1, the first that both have: most probably since run.seed"
    )
