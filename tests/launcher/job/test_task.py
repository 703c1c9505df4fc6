"""What a task of the job gives its ranks, and how it names its nodes. No rank is started."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from launcher import environment
from launcher.cluster import Profile
from launcher.job.start import Start
from launcher.record import Submission
from tests.launcher.made import make_run


@pytest.fixture
def run_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run directory; this process has the variables of a task of SLURM's, on the second of two nodes."""
    for name in environment.left_out():
        monkeypatch.delenv(name)
    variables = {"SUBMITIT_EXECUTOR": "slurm", "SLURM_JOB_ID": "12", "SLURM_JOB_NUM_NODES": "2", "SLURM_NTASKS": "2"}
    variables |= {"SLURM_NODEID": "1", "SLURM_PROCID": "1", "SLURM_LOCALID": "0", "SLURM_JOB_NODELIST": "n[07-08]"}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    return make_run(tmp_path / "run").run_dir


def test_nodes_are_known_by_their_names(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start = Start(run_dir, Submission(nodes=2), "")
    assert start.hostnames == start.addresses == ("n07", "n08")
    start.say("here")
    assert (start.launch.logs / "launcher.log").read_text().endswith(" n08: here\n")
    for name, value in {"JOB_NUM_NODES": "1", "NODEID": "0", "PROCID": "0", "JOB_NODELIST": "n07"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    alone = Start(run_dir, Submission(), "")
    assert (alone.hostnames, alone.addresses) == (("n07",), ("127.0.0.1",))


@pytest.mark.parametrize(
    ("profile", "shell", "rest"),
    [("/theirs", None, ["/theirs"]), ("/theirs:/more", "CODE:/mine", ["/theirs", "/more", "/mine"]), (None, None, [])],
)
def test_the_jobs_own_code_comes_first(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch, profile: str | None, shell: str | None, rest: list[str]
) -> None:
    code = str(run_dir / "launch" / "code" / "c0de")
    monkeypatch.delenv("PYTHONPATH", raising=False)
    if shell:
        monkeypatch.setenv("PYTHONPATH", shell.replace("CODE", code))
    variables = {"PYTHONPATH": profile} if profile else {}
    start = Start(run_dir, Submission(code="c0de", profile=Profile(environment=variables)), "")
    assert start.environment()["PYTHONPATH"].split(os.pathsep) == [code, *rest]


def test_the_job_has_the_last_word_on_what_it_needs_itself(run_dir: Path) -> None:
    theirs = {"MOCO_DIST_JOB": "7", "OMP_NUM_THREADS": "3"}
    variables = Start(run_dir, Submission(profile=Profile(environment=theirs)), "").environment()
    assert (variables["MOCO_DIST_JOB"], variables["OMP_NUM_THREADS"]) == ("12", "3")
