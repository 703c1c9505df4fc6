"""Who this process is, as the environment tells."""

from __future__ import annotations

import re

import pytest

from moco_dist import train
from moco_dist.evaluate import command as evaluate
from moco_dist.ranks.rank import Rank

ONE_OF_TWO = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
"""Variables that torchrun sets for the second of two ranks."""


def test_the_world_that_torchrun_describes(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ONE_OF_TWO:
        monkeypatch.delenv(name, raising=False)
    assert Rank.from_environment() == Rank(0, 1, 0)
    monkeypatch.setenv("MASTER_ADDR", "node7")  # a batch script may set it for others
    assert Rank.from_environment() == Rank(0, 1, 0)
    for name, value in {**ONE_OF_TWO, "RANK": "5", "WORLD_SIZE": "8"}.items():
        monkeypatch.setenv(name, value)
    assert Rank.from_environment() == Rank(5, 8, 1)


BAD = {
    "WORLD_SIZE missing": ({"WORLD_SIZE": None}, r"RANK = 1: set in the environment without WORLD_SIZE;"),
    "WORLD_SIZE alone": ({"RANK": None, "LOCAL_RANK": None}, r"WORLD_SIZE = 2: .*without RANK, LOCAL_RANK;"),
    "LOCAL_RANK missing": ({"LOCAL_RANK": None}, r"RANK = 1: .*without LOCAL_RANK;.* unset RANK, WORLD_SIZE"),
    "LOCAL_RANK alone": ({"RANK": None, "WORLD_SIZE": ""}, r"LOCAL_RANK = 1: .*without RANK, WORLD_SIZE"),
    "nowhere to meet": ({"MASTER_ADDR": None, "MASTER_PORT": None}, r"RANK = 1: .*without MASTER_ADDR, MASTER_PORT;"),
    "RANK no number": ({"RANK": "first"}, r"RANK = first: must be a whole number"),
    "WORLD_SIZE a fraction": ({"WORLD_SIZE": "2.0"}, r"WORLD_SIZE = 2\.0: must be a whole number"),
    "LOCAL_RANK negative": ({"LOCAL_RANK": "-1"}, r"LOCAL_RANK = -1: must be a whole number"),
    "port no number": ({"MASTER_PORT": "http"}, r"MASTER_PORT = http: must be a whole number"),
    "port too large": ({"MASTER_PORT": "99999"}, r"MASTER_PORT = 99999: must be 65535 or less"),
    "ranks of a node no number": ({"LOCAL_WORLD_SIZE": "all"}, r"LOCAL_WORLD_SIZE = all: must be a whole number"),
    "RANK too large": ({"RANK": "2"}, r"RANK = 2: must be below WORLD_SIZE=2"),
    "LOCAL_RANK too large": ({"LOCAL_RANK": "7"}, r"LOCAL_RANK = 7: must be below WORLD_SIZE=2"),
    "no ranks": ({"WORLD_SIZE": "0"}, r"RANK = 1: must be below WORLD_SIZE=0"),
}


@pytest.mark.parametrize("name", BAD)
def test_half_an_environment_is_refused_in_one_line(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    changes, pattern = BAD[name]
    for variable, value in {**ONE_OF_TWO, **changes}.items():
        if value is None:
            monkeypatch.delenv(variable, raising=False)
        else:
            monkeypatch.setenv(variable, value)
    assert_refused(pattern, [], capsys)


@pytest.mark.parametrize("argument", ["--local-rank=0", "--local_rank=3", "--local-rank"])
def test_the_argument_of_an_old_launcher_leads_to_torchrun(argument: str, capsys: pytest.CaptureFixture[str]) -> None:
    pattern = rf"argument {argument}: comes from torch\.distributed\.launch; start the ranks with torchrun"
    assert_refused(pattern, [argument], capsys)


def assert_refused(pattern: str, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Both commands tell so in one line, and exit with 2."""
    for command, run in (("train", train.run), ("evaluate", evaluate.run)):
        assert run(arguments) == 2
        error = capsys.readouterr().err
        assert re.match(rf"moco_dist\.{command}: {pattern}", error) and error.count("\n") == 1, error
