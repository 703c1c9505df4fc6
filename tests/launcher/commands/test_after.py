"""`submit --after`: what a job waits for, and how `--wait` ends where that never comes. No SLURM is asked."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from launcher.__main__ import main
from launcher.views import ends, follow
from tests.launcher.made import make_run, replace_sleep
from tests.launcher.programs import Programs

SMALL = ("--gpus-per-node", "2", "--cpus-per-gpu", "1")
QUEUE = """\
12|RUNNING|None|n1|1:00|
12_3|PENDING|Priority||1:00|
13|PENDING|DependencyNeverSatisfied||1:00|
14|COMPLETED|None|n1|0:00|
15|CANCELLED|None|n1|0:00|
"""
Said = pytest.CaptureFixture[str]


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Programs:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    programs = Programs(tmp_path / "slurm", monkeypatch)
    programs.says("squeue", {"--states=all": QUEUE})
    make_run(Path("runs/training"), job="12", state="running", starts=1, executor="slurm")
    make_run(Path("runs/failed"), job="15", state="crashed", starts=1)
    make_run(Path("runs/over"), job="99", state="done", starts=1)
    make_run(Path("runs/here"), job="1", state="stopped", starts=1, executor="local")
    return programs


@pytest.mark.parametrize(
    ("after", "expected"),
    [
        ("12", "afterok:12"),
        ("any:12", "afterany:12"),
        ("12_3", "afterok:12_3"),
        ("any:13", "afterany:13"),
        ("14", None),  # it has succeeded already
        ("any:15", None),
        ("training", "afterok:12"),
        ("any:runs/training", "afterany:12"),
        ("over", None),  # SLURM has forgotten its job
        ("any:failed", None),
    ],
)
def test_what_a_job_waits_for(programs: Programs, capsys: Said, after: str, expected: str | None) -> None:
    assert main(["submit", *SMALL, "--dry-run", "--after", after]) == 0
    text = capsys.readouterr().out
    assert re.findall(r"^#SBATCH --dependency=(.*)$", text, re.MULTILINE) == ([expected] if expected else [])
    assert ("#SBATCH --kill-on-invalid-dep=yes" in text) is (expected is not None)


@pytest.mark.parametrize(
    ("after", "line"),
    [
        ("98", "98: SLURM knows no such job; see python -m launcher status"),
        ("any:98", "any:98: SLURM knows no such job; see python -m launcher status"),
        ("15", "15: job 15 has ended as CANCELLED, and will never succeed; use --after any:15"),
        ("13", "13: job 13 waits for a job that has failed, and will never succeed; use --after any:13"),
        (
            "failed",
            "failed: the run has ended: cancelled; python -m launcher requeue failed, or use --after any:failed",
        ),
        ("here", "here: the run has ended: stopped; python -m launcher requeue here, or use --after any:here"),
    ],
)
def test_what_would_wait_for_ever_is_refused(programs: Programs, capsys: Said, after: str, line: str) -> None:
    assert main(["submit", *SMALL, "--after", after]) == 2
    assert capsys.readouterr().err == f"launcher: --after = {line}\n"
    assert not list(programs.sent.iterdir())


def test_waiting_ends_where_what_a_job_waits_for_has_failed(
    programs: Programs, capsys: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SLURM has cancelled the job, or leaves it in the queue; the run has a status of an earlier job."""
    replace_sleep(monkeypatch, follow, lambda _: None)
    monkeypatch.setattr(ends, "_SURE_SECONDS", 0.0)
    for state, reason in (("PENDING", "DependencyNeverSatisfied"), ("CANCELLED", "DependencyNeverSatisfied")):
        run_dir = Path(f"runs/{state}").absolute()
        make_run(run_dir, job="11", state="stopped", step=7)
        run_dir.chmod(0o700)
        programs.runs("sbatch", "echo Submitted batch job 16")
        programs.runs(
            "squeue",
            f"case \"$*\" in *--jobs=16*) echo '16|{state}|{reason}||1:00|{run_dir}' ;; *) printf '{QUEUE}' ;; esac",
        )
        words = ["submit", *SMALL, f"run.dir={run_dir}", "--after", "12", "--wait"]
        assert main(words) == 1
        said = capsys.readouterr().err
        assert ("can never start: what it waits for has failed" in said) is (state == "PENDING")
