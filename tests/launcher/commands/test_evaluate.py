"""`evaluate`, and `submit --then evaluate`: a second job that waits for the run. No SLURM is asked."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from submitit.core.utils import DelayedSubmission

from launcher import sending
from launcher.__main__ import main
from launcher.cluster import Notify, Profile
from launcher.job import evaluation
from launcher.job.evaluation import Evaluation
from launcher.record import Launch, Submission
from moco_dist.run import status
from tests.launcher.made import make_run
from tests.launcher.programs import Programs

SMALL = ("submit", "--gpus-per-node", "2", "--cpus-per-gpu", "1", "--nodes", "2")
Said = pytest.CaptureFixture[str]


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Programs:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return Programs(tmp_path / "slurm", monkeypatch)


def pickled(launch: Launch, job: int) -> Evaluation:
    function = DelayedSubmission.load(launch.evaluation / f"{job}_submitted.pkl").function
    assert isinstance(function, Evaluation)
    return function


def test_a_run_is_followed_by_its_evaluation(programs: Programs, capsys: Said) -> None:
    assert main([*SMALL, "--then", "evaluate --linear --labels '100'", "--sbatch", "nice=1"]) == 0
    launch = Launch(Path("runs/digits").absolute())
    assert f"evaluation: job 13, when the run is done; log: {launch.evaluation}/" in capsys.readouterr().out
    sent = launch.submission()
    assert sent and (sent.job, sent.then) == ("12", ("--linear", "--labels", "100"))
    script = (programs.sent / "13.sh").read_text()
    lines = [line.removeprefix("#SBATCH --") for line in script.splitlines()]
    assert {"dependency=afterok:12", "kill-on-invalid-dep=yes", "nodes=1", "job-name=digits-evaluate", "nice=1"} <= {
        *lines
    }
    assert f"comment='evaluate {launch.run_dir}'" in lines and "launcher.after" not in script
    job = pickled(launch, 13)
    assert (job.run_dir, job.words) == (str(launch.run_dir), ("--linear", "--labels", "100"))
    assert (job.submission.nodes, job.submission.code) == (1, sent.code)
    assert launch.evaluation.stat().st_mode & 0o777 == 0o700


def test_it_asks_for_one_node_where_the_run_takes_a_range(programs: Programs) -> None:
    assert main([*SMALL, "--nodes", "2-4", "moco.bn_groups=8", "--then", "evaluate"]) == 0
    assert "#SBATCH --nodes=2-4\n" in (programs.sent / "12.sh").read_text()
    assert "#SBATCH --nodes=1\n" in (programs.sent / "13.sh").read_text()


def test_a_run_that_is_sent_again_is_followed_by_it_again(programs: Programs) -> None:
    assert main([*SMALL, "--then", "evaluate"]) == 0
    launch = Launch(Path("runs/digits").absolute())
    status.write(launch.run_dir, "crashed", 7, "said so")
    sending.send_again(launch)
    assert "--dependency=afterok:14" in (programs.sent / "15.sh").read_text()


def test_where_it_is_refused_the_run_goes_on(programs: Programs, capsys: Said) -> None:
    script = programs.sent / "12.sh"
    second = f"if [ -e {script} ]; then echo sbatch: error: no >&2; exit 1; fi"
    programs.runs("sbatch", f'{second}\ncp "$1" {script}; echo Submitted batch job 12')
    assert main([*SMALL, "--then", "evaluate"]) == 0
    out, err = capsys.readouterr()
    assert "job: 12\n" in out
    run_dir = Path("runs/digits").absolute()
    fix = f"python -m launcher evaluate {run_dir}"
    assert f"launcher: the evaluation is not sent (sbatch: error: no); send it with: {fix}\n" in err


@pytest.mark.parametrize(
    ("then", "line"),
    [
        ("export", "--then = export: must begin with evaluate; write --then 'evaluate --linear'"),
        ("evaluate 'x", "--then = evaluate 'x: cannot be read: No closing quotation; write --then"),
        ("evaluate --lineal", "unrecognized arguments: --lineal; see python -m moco_dist.evaluate --help"),
        ("evaluate --draws 3", "--draws = 3: is about few labels; add --labels N or --label-fraction F"),
        ("evaluate --out x", "--out = x: the results of the job are in the run directory; drop it, or use python -m"),
    ],
)
def test_mistakes_are_told_before_anything_is_sent(programs: Programs, capsys: Said, then: str, line: str) -> None:
    assert main([*SMALL, "--then", then]) == 2
    assert capsys.readouterr().err.startswith(f"launcher: {line}")
    assert main([*SMALL, "--local", "--then", "evaluate"]) == 2
    assert not list(programs.sent.iterdir()) and not Path("runs").exists()


def test_a_run_is_evaluated_now_or_when_it_is_done(programs: Programs, capsys: Said) -> None:
    profile = Profile(gpus_per_node=2, min_nodes=1, notify=Notify(mail="a@b"))
    make_run(Path("runs/live"), job="7", state="running", starts=1, nodes=4, profile=profile)
    make_run(Path("runs/done"), job="8", state="done", starts=1)
    make_run(Path("runs/failed"), job="9", state="crashed", starts=1)
    programs.says("squeue", {"--states=all": "7|RUNNING|None|n1|1:00|\n"})
    assert main(["evaluate", "live", "--time-minutes", "60", "--", "--knn", "--labels", "100"]) == 0
    script = (programs.sent / "12.sh").read_text()
    assert "#SBATCH --dependency=afterok:7\n" in script and "#SBATCH --time=60\n" in script
    assert "mail" not in script and "--no-kill" not in script
    live = Launch(Path("runs/live"))
    assert pickled(live, 12).words == ("--knn", "--labels", "100")
    assert (sent := live.submission()) and (sent.job, sent.profile) == ("7", profile)  # it is the run's own job still
    assert main(["evaluate", "done"]) == 0
    assert "--dependency" not in (programs.sent / "13.sh").read_text()
    capsys.readouterr()
    assert main(["evaluate", "failed"]) == 2
    line = "launcher: RUN = failed: the run has ended: crashed; python -m launcher requeue failed, or python -m moco"
    assert capsys.readouterr().err.startswith(line)
    assert main(["evaluate", "live", "--", "--lineal"]) == 2
    assert main(["evaluate", "live", "--nodes", "2"]) == 2
    assert "launcher: --nodes = 2: an evaluation runs on one node; drop it\n" in capsys.readouterr().err
    assert len(list(programs.sent.iterdir())) == 2


def test_the_job_starts_torchrun_with_all_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    variables = {"SUBMITIT_EXECUTOR": "slurm", "SLURM_JOB_ID": "13", "SLURM_JOB_NUM_NODES": "1", "SLURM_NTASKS": "1"}
    variables |= {"SLURM_NODEID": "0", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_JOB_NODELIST": "n1"}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    launch = make_run(tmp_path / "it's a $HOME run")
    launch.evaluation.mkdir()
    called: list[Any] = []

    def run(command: list[str], *, env: dict[str, str], **_: Any) -> SimpleNamespace:
        called.append((command, env["PYTHONPATH"].split(":")[0]))
        return SimpleNamespace(returncode=len(called) - 1)

    monkeypatch.setattr(evaluation, "subprocess", SimpleNamespace(run=run, STDOUT=subprocess.STDOUT))
    job = Evaluation(str(launch.run_dir), Submission(profile=Profile(gpus_per_node=3), code="c0de"), ("--labels", "9"))
    job()
    words = shlex.split("-m torch.distributed.run --standalone --nproc-per-node=3 -m moco_dist.evaluate")
    expected = [sys.executable, *words, f"{tmp_path}/it's a $$HOME run", "--labels", "9"]
    assert called == [(expected, str(launch.folder / "code" / "c0de"))]
    with pytest.raises(SystemExit):
        job()
    staged = Submission(profile=Profile(local_disk=str(tmp_path)), stage=str(tmp_path / "nowhere.tar"))
    with pytest.raises(SystemExit) as end:
        Evaluation(str(launch.run_dir), staged, ())()
    assert end.value.code == 2 and len(called) == 2
    assert launch.evaluation_log.read_text().startswith(f"--stage = {tmp_path}/nowhere.tar: cannot be unpacked into ")
