"""A run on another cluster than the local one: every question and order about its job goes to that cluster."""

from __future__ import annotations

import json
import shutil
import sys
import time
from pathlib import Path

import pytest

from launcher import after, cluster, slurm_jobs
from launcher.__main__ import main
from launcher.cluster import Profile
from launcher.job.start import Start
from launcher.record import Launch, Submission
from launcher.views.runs import look
from tests.launcher.made import make_run
from tests.launcher.programs import PARTITION, Programs

SMALL = ("submit", "--gpus-per-node", "2", "--cpus-per-gpu", "1")
ON_GPU = Profile(gpus_per_node=2, slurm_cluster="gpu")
Said = pytest.CaptureFixture[str]


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Programs:
    """The commands of a site with a cluster gpu; each keeps its words."""
    monkeypatch.chdir(tmp_path)
    for name in ("SLURM_CLUSTERS", "SBATCH_CLUSTERS", "SLURM_CLUSTER_NAME"):
        monkeypatch.delenv(name, raising=False)
    made = Programs(tmp_path / "slurm", monkeypatch)
    log = tmp_path / "words"
    node = "main|g1|idle|gpu:8(S:0-1)|64|512000|(null)"
    (tmp_path / "queue").touch()
    answers = {
        "scontrol": f'''case "$*" in *partition*) echo "{PARTITION}" ;; "show job"*) echo Requeue=1 ;; esac''',
        "sinfo": f'echo "CLUSTER: gpu"; echo "{node}"',
        "squeue": f'echo "CLUSTER: gpu"; cat {tmp_path}/queue',
        "sacct": "true",
        "scancel": f"case $* in *--signal*) ;; *) : > {tmp_path}/queue ;; esac",
    }
    for name, answer in answers.items():
        elsewhere = "exit 0" if name != "scancel" else "true"
        made.runs(name, f'echo "{name} $*" >> {log}\ncase "$*" in *--clusters=gpu*) {answer} ;; *) {elsewhere} ;; esac')
    lines = ['case "$*" in *--help) exit 0 ;; esac', f'echo "sbatch $SBATCH_CLUSTERS $SLURM_CLUSTERS" >> {log}']
    lines += [f'cp "$1" {made.sent}/12.sh', 'echo "Submitted batch job 12 on cluster gpu"']
    made.runs("sbatch", "\n".join(lines))
    return made


def runs(name: str) -> Launch:
    """Make a run whose job 12 runs there."""
    launch = make_run(Path("runs", name).absolute(), job="12@gpu", state="running", starts=1, profile=ON_GPU)
    Path("queue").write_text(f"12|RUNNING|None|g1|1:00|{launch.run_dir}\n")
    return launch


def words(command: str) -> list[str]:
    """List the words of each call of a command, but those of preflight."""
    lines = Path("words").read_text().splitlines() if Path("words").exists() else []
    return [line for line in lines if line.startswith(f"{command} ")]


def test_a_run_is_sent_there_and_known_by_its_cluster(programs: Programs, capsys: Said) -> None:
    assert main([*SMALL, "--slurm-cluster", "gpu"]) == 0
    assert "job: 12@gpu\n" in capsys.readouterr().out
    assert "#SBATCH --clusters=gpu\n" in (programs.sent / "12.sh").read_text()
    sent = Launch(Path("runs/digits")).submission()
    assert sent and (sent.job, sent.profile.slurm_cluster) == ("12@gpu", "gpu")
    assert all("--clusters=gpu" in line for line in [*words("sinfo"), *words("scontrol"), *words("squeue")])
    assert len(words("scontrol")) == 3 and len(words("squeue")) >= 1


def test_the_shells_variable_chooses_it_too_and_a_profile_beats_it(
    programs: Programs, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SLURM_CLUSTERS", "gpu")
    assert cluster.load(None).slurm_cluster == "gpu"
    monkeypatch.setenv("SLURM_CLUSTERS", "cpu,gpu")
    assert cluster.load(None).slurm_cluster is None  # the first that has room is another each time
    monkeypatch.setenv("SLURM_CLUSTERS", "cpu")
    assert main([*SMALL, "--slurm-cluster", "gpu"]) == 0
    assert words("sbatch") == ["sbatch  gpu"]  # the variable would beat the script, and later the job's own commands
    with pytest.raises(cluster.UserError, match="slurm_cluster = a,b: must be the name of one cluster"):
        cluster.load(None, {"slurm_cluster": "a,b"})


def test_status_cancel_and_requeue_find_the_job_there(programs: Programs, capsys: Said) -> None:
    launch = runs("digits")
    assert main(["status", "--json"]) == 0
    [row] = json.loads(capsys.readouterr().out)
    assert (row["job"], row["state"], row["slurm_state"]) == ("12@gpu", "running", "RUNNING")
    assert slurm_jobs.queue(["12@gpu", "7"]).keys() == {"12@gpu"}
    assert main(["cancel", "12", "--wait-seconds", "0"]) == 0
    assert words("scancel") == [
        "scancel --quiet --signal=TERM 12 --clusters=gpu",
        "scancel --quiet 12 --clusters=gpu",
    ]
    runs("digits")
    run = look([launch])[0]
    assert run.ask_to_save("USR2") and words("scancel")[-1] == "scancel --quiet --signal=USR2 12 --clusters=gpu"
    assert main(["requeue", "12@gpu", "--slurm-cluster", "cpu"]) == 2
    line = "slurm_cluster = cpu: the run's job is on gpu, where no job of another one can wait for it; python -m"
    assert line in capsys.readouterr().err
    assert launch.submission() == Submission(job="12@gpu", profile=ON_GPU)


def test_from_within_the_job_no_cluster_is_named(programs: Programs, monkeypatch: pytest.MonkeyPatch) -> None:
    run_dir = runs("digits").run_dir
    inside = {"SLURM_CLUSTER_NAME": "gpu", "SLURM_CLUSTERS": "gpu", "SLURM_JOB_ID": "12", "SUBMITIT_EXECUTOR": "slurm"}
    for name, value in inside.items():
        monkeypatch.setenv(name, value)
    programs.keeps("scontrol", "SLURM_CLUSTERS")
    programs.runs("squeue", f'echo "12|RUNNING|None|g1|1:00|{run_dir}"')
    start = Start(run_dir, Submission(job="12@gpu", profile=ON_GPU), "")
    assert start.job == "12@gpu" and start.requeue()
    monkeypatch.setattr(sys, "argv", ["launcher.after", str(run_dir), "1"])
    assert after.main() == 0
    assert programs.given("scontrol") == [(["requeue", "12"], {"SLURM_CLUSTERS": None})] * 2
    programs.runs("scontrol", "echo scontrol: error: not permitted >&2; exit 1")
    assert after.main() == 0  # another job goes on
    assert words("sbatch") == ["sbatch  "] and "--clusters" not in (programs.sent / "12.sh").read_text()


def test_jobs_of_two_clusters_do_not_wait_for_each_other(programs: Programs, capsys: Said) -> None:
    runs("there")
    assert main([*SMALL, "--dry-run", "--slurm-cluster", "gpu", "--after", "there"]) == 0
    assert "#SBATCH --dependency=afterok:12\n" in capsys.readouterr().out
    assert main([*SMALL, "--after", "there"]) == 2
    rule = "job 12@gpu and the new one are on different clusters, which cannot wait for each other"
    assert capsys.readouterr().err.startswith(f"launcher: --after = there: {rule}; wait for its end")


def test_a_sweep_asks_there_what_it_waits_for(programs: Programs, capsys: Said) -> None:
    runs("there")
    Path("lr.yaml").write_text("grid: {optim.lr: [0.03, 0.06]}\n")
    place = ["--gpus-per-node", "2", "--cpus-per-gpu", "1", "--slurm-cluster", "gpu"]
    for predecessor in ("there", "12"):
        assert main(["sweep", "lr.yaml", *place, "--after", predecessor, f"track.project={predecessor}"]) == 0
        assert "job array: 12@gpu, 2 members" in capsys.readouterr().out
        assert "#SBATCH --dependency=afterok:12\n" in (programs.sent / "12.sh").read_text()
        shutil.rmtree("runs/lr")
    assert all("--clusters=gpu" in line for line in words("squeue"))


def test_gpu_hours_are_those_of_its_accounting(programs: Programs, capsys: Said) -> None:
    launch = runs("digits")
    begin = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(time.time() - 3600))
    row = f"12|{begin}|Unknown|1|gres/gpu=2"
    programs.runs("sacct", f'echo "sacct $*" >> words\ncase "$*" in *--clusters=gpu*) echo "{row}" ;; esac')
    assert main(["status", "--hours", "--json"]) == 0
    [digits] = json.loads(capsys.readouterr().out)["runs"]
    assert [(start["job"], start["gpus"], start["by"]) for start in digits["starts"]] == [("12@gpu", 2, "SLURM")]
    assert digits["run_dir"] == str(launch.run_dir) and digits["gpu_hours"] == pytest.approx(2, abs=0.01)
    assert "--jobs=12 " in words("sacct")[-1]
