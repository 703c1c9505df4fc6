"""The script `slurm/train.sbatch` with programs in place of SLURM's and of the trainer."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests import jobs
from tests.launcher.programs import Programs

SCRIPT = jobs.ROOT / "slurm" / "train.sbatch"


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Programs:
    """SLURM refuses a requeue, at which the script ends with 75."""
    monkeypatch.chdir(tmp_path)
    made = Programs(tmp_path / "slurm", monkeypatch)
    made.keeps("srun")
    made.runs("scontrol", 'case "$*" in requeue*) echo "$*" >> requeued; exit 1 ;; *hostnames*) echo n1 ;; esac')
    return made


def run(run_dir: str, home: Path, **variables: str) -> tuple[int, str]:
    """Run the script as job 12. Returns its exit status, and what it has said."""
    job = {"SLURM_JOB_ID": "12", "SLURM_JOB_NODELIST": "n1", "SLURM_JOB_NUM_NODES": "1", "HOME": str(home)}
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
    words = ["bash", str(SCRIPT), "config.yaml", f"run.dir={run_dir}"]
    done = subprocess.run(words, env={**kept, **job, **variables}, capture_output=True, text=True, timeout=60)
    return done.returncode, done.stderr


@pytest.mark.parametrize(
    ("state", "code"), [("done", 0), ("user_error", 2), ("diverged", 1), ("stopped", 75), ("crashed", 75)]
)
def test_it_ends_as_the_run_in_the_users_home(programs: Programs, tmp_path: Path, state: str, code: int) -> None:
    """The trainer reads the ~ of `run.dir=~/run`, which no shell has expanded."""
    programs.runs("srun", f"""echo '{{"state": "{state}", "step": 3, "reason": ""}}' > "$HOME/it is/status.json" """)
    assert run("~/it is", tmp_path)[0] == code
    assert Path("requeued").exists() == (state == "crashed")
    assert not Path("~").exists()


@pytest.mark.parametrize("run_dir", ["$HOME/run", "~", "~nobody/run", "'/run'", '"/run"'])
def test_a_path_that_the_trainer_alone_can_read_is_refused(programs: Programs, tmp_path: Path, run_dir: str) -> None:
    rule = "is read in its own way by the trainer alone; write the path out"
    assert run(run_dir, tmp_path) == (2, f"train.sbatch: run.dir = {run_dir}: {rule}\n")
    assert not programs.given("srun")


def test_where_nothing_can_be_written_nothing_is_started_without_end(programs: Programs, tmp_path: Path) -> None:
    Path("file").touch()
    code, said = run("file/run", tmp_path)
    assert code == 2 and said.endswith("train.sbatch: run.dir = file/run: cannot be written to; choose another\n")
    assert not programs.given("srun")
    Path("run/.failures-12").mkdir(parents=True)
    assert run("run", tmp_path)[0] == 1
    assert programs.given("srun") and not Path("requeued").exists()


def test_three_starts_that_fail_end_the_job(programs: Programs, tmp_path: Path) -> None:
    codes = [run("run", tmp_path, SLURM_RESTART_COUNT=str(restart))[0] for restart in range(3)]
    assert codes == [75, 75, 1]
    assert Path("requeued").read_text() == "requeue 12\n" * 2


@pytest.mark.parametrize(
    ("described", "job"),
    [("JobId=12 JobName=x Restarts=0 CPUs/Task=4 Reason=None", "12"), ("JobId=13 ArrayTaskId=1 Restarts=7 x", "77_3")],
)
def test_what_another_job_has_left_in_the_environment_is_not_this_jobs(
    programs: Programs, tmp_path: Path, described: str, job: str
) -> None:
    """SLURM tells which job it is; where it does not, the variables do. The binding of CPUs is always the other's."""
    variables = ("SLURM_ARRAY_TASK_COUNT", "SLURM_RESTART_COUNT", "SLURM_CPUS_PER_TASK", "SLURM_CPU_BIND")
    programs.keeps("srun", *variables)
    lines = [
        f"*show*job*) echo '{described}' ;;",
        '*requeue*) echo "$*" >> requeued; exit 1 ;;',
    ]
    programs.runs("scontrol", "\n".join(['case "$*" in', *lines, "esac"]))
    stale = {"SLURM_ARRAY_JOB_ID": "77", "SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_TASK_COUNT": "8"}
    binding = {"SLURM_CPU_BIND": "quiet,mask_cpu:0x10"}
    assert run("run", tmp_path, **stale, **binding, SLURM_RESTART_COUNT="2", SLURM_CPUS_PER_TASK="99")[0] == 75
    assert Path("requeued").read_text() == f"requeue {job}\n"
    [(_, seen)] = programs.given("srun")
    values = (None, "0", None, None) if job == "12" else ("8", "2", "99", None)
    assert seen == dict(zip(variables, values, strict=True))


def test_the_tasks_get_the_cpus_and_the_variables_of_the_job(programs: Programs, tmp_path: Path) -> None:
    """A step has no CPUs of its job since SLURM 22.05, and no variables where the site sets SBATCH_EXPORT=NONE."""
    run("run", tmp_path, SLURM_CPUS_PER_TASK="64", SLURM_EXPORT_ENV="NONE")
    run("run", tmp_path)
    options = [
        [word for word in words if word.startswith(("--export", "--cpus"))] for words, _ in programs.given("srun")
    ]
    assert options == [["--export=ALL", "--cpus-per-task=64"], ["--export=ALL"]]


def test_the_ranks_are_told_by_their_step(programs: Programs, tmp_path: Path) -> None:
    """SLURM has scancel tell a member of an array itself again and again, as long as other members wait."""
    programs.keeps("scancel")
    programs.runs("srun", "kill -USR2 $PPID")
    array = {"SLURM_ARRAY_JOB_ID": "11", "SLURM_ARRAY_TASK_ID": "3"}
    assert run("run", tmp_path, **array)[0] == 75
    assert [words for words, _ in programs.given("scancel")] == [["--quiet", "--signal=USR2", "11_3.0"]]
