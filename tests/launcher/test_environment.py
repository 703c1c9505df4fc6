"""A part of the shell's environment reaches sbatch, SLURM's other commands and the job."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from types import SimpleNamespace

import pytest

from launcher import environment, executors, slurm
from launcher.__main__ import main
from launcher.job.task import Task
from launcher.record import Submission
from tests.launcher.made import make_run
from tests.launcher.programs import Programs

OF_A_SITE = {"SBATCH_EXPORT": "NONE", "SBATCH_PARTITION": "mian", "SBATCH_TIMELIMIT": "1", "SBATCH_NO_REQUEUE": "1"}
OF_A_USER = {"SLURM_CPU_BIND": "map_cpu:0", "SRUN_CPUS_PER_TASK": "1", "SLURM_EXPORT_ENV": "NONE"}
OF_A_JOB = {"SLURM_JOB_ID": "7", "SLURM_ARRAY_JOB_ID": "6", "SLURM_ARRAY_TASK_ID": "3", "SLURM_RESTART_COUNT": "2"}
OF_OURS = {"SUBMITIT_EXECUTOR": "local", "TORCHELASTIC_RESTART_COUNT": "1", "RANK": "3", "MASTER_PORT": "1"}
KEPT = {"SLURM_CONF": __file__, "SLURM_CLUSTERS": "here", "SBATCH_CLUSTERS": "here", "CUDA_HOME": "/cuda"}
SMALL = ("submit", "--gpus-per-node", "2", "--cpus-per-gpu", "1")


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Programs:
    monkeypatch.chdir(tmp_path)
    for name in environment.left_out():
        monkeypatch.delenv(name)
    return Programs(tmp_path / "slurm", monkeypatch)


def export(monkeypatch: pytest.MonkeyPatch, *groups: dict[str, str]) -> None:
    for name, value in [item for group in groups for item in group.items()]:
        monkeypatch.setenv(name, value)


def test_sbatch_gets_nothing_of_another_job_and_no_settings_but_ours(
    programs: Programs, monkeypatch: pytest.MonkeyPatch
) -> None:
    export(monkeypatch, OF_A_SITE, OF_A_USER, OF_A_JOB, OF_OURS, KEPT)
    programs.runs("sbatch", f"env -0 > {shlex.quote(str(programs.sent))}/env; echo Submitted batch job 12")
    assert main([*SMALL]) == 0
    entries = (programs.sent / "env").read_text().split("\0")
    variables = dict(entry.split("=", 1) for entry in entries if entry)
    assert not variables.keys() & {**OF_A_SITE, **OF_A_USER, **OF_A_JOB, **OF_OURS}.keys()
    assert {name: variables.get(name) for name in KEPT} == KEPT


def test_so_it_is_for_a_sweep(programs: Programs, monkeypatch: pytest.MonkeyPatch) -> None:
    export(monkeypatch, OF_A_SITE, OF_A_JOB)
    Path("sweep.yaml").write_text("grid: {optim.lr: [0.03, 0.06]}\n")
    programs.runs("sbatch", f"env -0 > {shlex.quote(str(programs.sent))}/env; echo Submitted batch job 12")
    assert main(["sweep", "sweep.yaml", *SMALL[1:]]) == 0
    assert not set((programs.sent / "env").read_text().replace("=", "\0").split("\0")) & {*OF_A_SITE, *OF_A_JOB}
    assert os.environ["SBATCH_PARTITION"] == "mian"


def test_the_script_says_itself_what_of_the_environment_the_job_gets(programs: Programs) -> None:
    assert main([*SMALL]) == 0
    script = (programs.sent / "12.sh").read_text()
    [srun] = [line for line in script.splitlines() if line.startswith("srun ")]
    assert "#SBATCH --export=ALL\n" in script
    assert "--export=ALL" in shlex.split(srun)


def test_slurms_other_commands_get_the_same(programs: Programs, monkeypatch: pytest.MonkeyPatch) -> None:
    export(monkeypatch, OF_A_SITE, OF_A_JOB, KEPT)
    programs.keeps("squeue", *OF_A_SITE, *OF_A_JOB, *KEPT)
    slurm.call("squeue")
    [(_, given)] = programs.given("squeue")
    assert given == {**dict.fromkeys(OF_A_SITE), **dict.fromkeys(OF_A_JOB), **KEPT}


def test_preflight_names_what_is_left_out(
    programs: Programs, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def lines() -> list[str]:
        assert main(["preflight", *SMALL[1:]]) == 0
        return [line for line in capsys.readouterr().out.splitlines() if "in this shell" in line or "shell is" in line]

    assert not lines()
    export(monkeypatch, KEPT, OF_OURS, {"SBATCH_PARTITION": "mian", "SLURM_CPU_BIND": "none", "SQUEUE_FORMAT": "%i"})
    rule = "set in this shell, and reach neither sbatch nor the job; use the profile or options, or export them in"
    assert lines() == [f"warning: environment = SBATCH_PARTITION, SLURM_CPU_BIND: {rule} a line of setup"]
    export(monkeypatch, OF_A_JOB)  # the allocation's own variables are no wish of the user's
    assert lines() == [
        f"warning: environment = SBATCH_PARTITION: {rule} a line of setup",
        "note: this shell is in job 7, whose SLURM variables do not reach the new job",
    ]


def test_a_local_job_takes_nothing_from_the_job_that_it_is_sent_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    variables: dict[str, str] = {}

    def popen(*_: object, env: dict[str, str], **__: object) -> SimpleNamespace:
        variables.update(env)
        return SimpleNamespace(pid=os.getpid())

    monkeypatch.setattr(executors, "subprocess", SimpleNamespace(Popen=popen, DEVNULL=None))
    export(monkeypatch, OF_A_JOB, OF_OURS, KEPT)
    executors.send_locally(make_run(tmp_path), Task(str(tmp_path), Submission()))
    assert not variables.keys() & {**OF_A_JOB, "RANK": "", "MASTER_PORT": "", "TORCHELASTIC_RESTART_COUNT": ""}.keys()
    assert variables["SUBMITIT_EXECUTOR"] == "local" and variables["CUDA_HOME"] == "/cuda"
