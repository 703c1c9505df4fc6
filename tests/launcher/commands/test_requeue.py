"""`requeue`: what is sent again and how, and what becomes of a job that SLURM would not requeue. No SLURM is asked."""

from __future__ import annotations

import shlex
import shutil
from datetime import datetime
from pathlib import Path

import pytest

from launcher import snapshot
from launcher.__main__ import main
from launcher.record import Launch
from moco_dist.run import status
from tests.launcher.made import make_run
from tests.launcher.programs import Programs

SMALL = ("--gpus-per-node", "2", "--cpus-per-gpu", "1")
Said = pytest.CaptureFixture[str]


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Programs:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return Programs(tmp_path / "slurm", monkeypatch)


def sent(programs: Programs, capsys: Said, name: str, state: status.State = "crashed") -> Launch:
    """Send a run, which has begun to train as SLURM's job 12 or a later one."""
    assert main(["submit", *SMALL, f"run.name={name}", "--memory-gib", "8"]) == 0
    capsys.readouterr()
    launch = Launch(Path(f"runs/{name}").absolute())
    last = launch.submission()
    assert last
    launch.add_start(job=last.job, restart=0, step=0, time=1.0, nodes=["n1"])
    status.write(launch.run_dir, state, 7)
    return launch


def queue(programs: Programs, state: str, *launches: Launch) -> None:
    jobs = [(last.job, launch) for launch in launches if (last := launch.submission())]
    lines = [f"{job}|{state}|None|n1|1:00|{launch.run_dir}\n" for job, launch in jobs]
    programs.says("squeue", {"--states=all": "".join(lines)})


def text(programs: Programs, job: str) -> set[str]:
    return set((programs.sent / f"{job}.sh").read_text().splitlines())


def test_an_ended_run_is_sent_again_with_what_the_options_change(programs: Programs, capsys: Said) -> None:
    launch = sent(programs, capsys, "a")
    queue(programs, "FAILED", launch)
    assert main(["requeue", "a", "--memory-gib", "16", "--time-minutes=60", "--exclude", "127.0.0.12"]) == 0
    code = f"with its own copy of the code, {snapshot.digest()}"
    assert capsys.readouterr().out == f"a: was crashed, no checkpoint yet; sent again as job 13, {code}\n"
    wanted = {"#SBATCH --mem=16G", "#SBATCH --time=60", "#SBATCH --exclude=127.0.0.12", "#SBATCH --cpus-per-task=2"}
    assert wanted <= text(programs, "13")
    queue(programs, "FAILED", launch)
    status.write(launch.run_dir, "crashed", 7)
    assert main(["requeue", "a"]) == 0
    assert wanted <= text(programs, "14"), "it is sent as it was sent last"


def test_one_that_is_refused_does_not_keep_the_others(programs: Programs, capsys: Said) -> None:
    runs = [sent(programs, capsys, name) for name in "abc"]
    queue(programs, "FAILED", *runs)
    runs[1].config_file.write_text("optim: {lr: fast}\n")
    assert main(["requeue", "a", "b", "c"]) == 2
    out, err = capsys.readouterr()
    assert [line.partition(":")[0] for line in out.splitlines()] == ["a", "c"]
    assert "launcher: b: optim.lr = fast" in err


def test_a_job_that_may_not_be_requeued_trains_until_another_takes_over(programs: Programs, capsys: Said) -> None:
    launch = sent(programs, capsys, "a", "running")
    queue(programs, "RUNNING", launch)
    programs.says("scontrol", {"show job 12 --oneliner": "JobId=12 Requeue=0", "show partition": "", "requeue": "no"})
    programs.runs("sbatch", "echo sbatch: error: no more jobs >&2; exit 1")
    programs.keeps("scancel")
    assert main(["requeue", "a"]) == 1
    out, err = capsys.readouterr()
    assert "launcher: a: sbatch: error: no more jobs" in err and out == "a: job 12 is left as it was\n"
    programs.runs("sbatch", "echo sbatch: fatal: Could not establish a configuration source >&2; exit 1")
    assert main(["requeue", "a"]) == 1
    assert "finds no configuration; export SLURM_CONF=/path/to/slurm.conf" in capsys.readouterr().err
    assert not programs.given("scancel")
    state, where = shlex.quote(str(launch.paths.status)), shlex.quote(str(programs.sent))
    programs.runs("sbatch", f'cp "$1" {where}/13.sh; echo Submitted batch job 13')
    saved = '{"state": "stopped", "step": 9, "reason": ""}'
    programs.runs(
        "scancel", f'echo "$*" >> {where}/scancel; case "$*" in *USR2*) echo {shlex.quote(saved)} > {state}; esac'
    )
    assert main(["requeue", "a"]) == 0
    assert capsys.readouterr().out.startswith("a: job 13 takes over from job 12, with its own copy of the code, ")
    assert (programs.sent / "scancel").read_text().splitlines() == ["--quiet --signal=USR2 12", "--quiet 12"]
    assert "#SBATCH --dependency=afterany:12" in text(programs, "13")
    last = launch.submission()
    assert last and (last.job, last.earlier_jobs) == ("13", ())


def test_a_waiting_run_gets_a_new_job_where_options_change_it(programs: Programs, capsys: Said) -> None:
    launch = sent(programs, capsys, "a", "running")
    queue(programs, "PENDING", launch)
    programs.keeps("scancel")
    assert main(["requeue", "a"]) == 0
    assert "waits in the queue already" in capsys.readouterr().out
    assert main(["requeue", "a", "--nodes", "2"]) == 0
    assert {"#SBATCH --nodes=2", "#SBATCH --dependency=afterany:12"} <= text(programs, "13")
    assert [words for words, _ in programs.given("scancel")] == [["--quiet", "12"]]


def test_a_new_job_waits_for_what_the_old_one_waited_for(programs: Programs, capsys: Said) -> None:
    launch = sent(programs, capsys, "a", "stopped")
    last = launch.submission()
    assert last
    launch.write(last.model_copy(update={"after": "afterok:9"}))
    queue(programs, "PENDING", launch)
    programs.keeps("scancel")
    assert main(["requeue", "a", "--nodes", "2"]) == 0
    assert "#SBATCH --dependency=afterany:12,afterok:9" in text(programs, "13")
    mine = f"13|CANCELLED|DependencyNeverSatisfied||1:00|{launch.run_dir}\n"
    programs.says("squeue", {"--states=all": f"{mine}9|FAILED|None||1:00|/other\n"})
    capsys.readouterr()
    assert main(["requeue", "a"]) == 0
    assert "it does not wait any more: job 9 has ended as FAILED\n" in capsys.readouterr().err
    assert not any("--dependency" in line for line in text(programs, "14"))


@pytest.mark.parametrize(
    ("dependency", "state", "why", "expected"),
    [
        ("afterok:9", "RUNNING", "None", "afterok:9"),
        ("afterok:9", "PENDING", "Priority", "afterok:9"),
        ("afterok:9", "PENDING", "DependencyNeverSatisfied", None),
        ("afterany:9", "PENDING", "DependencyNeverSatisfied", "afterany:9"),
        ("afterok:9", "COMPLETED", "None", None),
        ("afterany:9", "FAILED", "None", None),
        ("afterok:8", "RUNNING", "None", "afterok:9"),  # that run goes on as job 9
    ],
)
def test_an_ended_run_waits_again_for_what_has_not_failed(
    programs: Programs, capsys: Said, dependency: str, state: str, why: str, expected: str | None
) -> None:
    launch = sent(programs, capsys, "a")
    last = launch.submission()
    assert last
    launch.write(last.model_copy(update={"after": dependency}))
    make_run(Path("runs/first").absolute(), job="9").add_start(job="8", restart=0, step=0, time=1.0, nodes=["n1"])
    line = f"12|CANCELLED|None||1:00|{launch.run_dir}\n9|{state}|{why}||1:00|/first\n"
    programs.says("squeue", {"--states=all": line})
    assert main(["requeue", "a"]) == 0
    out, err = capsys.readouterr()
    lines = {line for line in text(programs, "13") if "--dependency" in line}
    assert lines == ({f"#SBATCH --dependency={expected}"} if expected else set())
    assert ("sent again as job 13, after job 9, with" in out) is (expected is not None)
    failed = why == "DependencyNeverSatisfied" and expected is None
    assert ("does not wait any more: job 9 can never start" in err) is failed
    again = launch.submission()
    assert again and again.after == expected


def test_a_run_keeps_its_code_unless_it_is_to_have_the_checkouts(programs: Programs, capsys: Said) -> None:
    """The config of one that keeps it stays as it is: another revision's may have keys that the code does not know."""
    launch = sent(programs, capsys, "a")
    queue(programs, "FAILED", launch)
    last = launch.submission()
    assert last
    launch.code(last).rename(launch.codes(last) / "0123456789ab")
    launch.write(last.model_copy(update={"code": "0123456789ab"}))
    (launch.folder / "revision.txt").write_text("older\n")
    config = launch.config_file.read_text() + "# as it was\n"
    launch.config_file.write_text(config)
    assert main(["requeue", "a"]) == 0
    words = "with its own copy of the code, 0123456789ab; --fresh-code takes the checkout's, which differs\n"
    assert capsys.readouterr().out.endswith(words)
    assert any(f"{launch.codes(last)}/0123456789ab" in line for line in text(programs, "13"))
    assert launch.config_file.read_text() == config
    assert (launch.folder / "revision.txt").read_text() == "older\n"
    queue(programs, "PENDING", launch)
    programs.keeps("scancel")
    last = launch.submission()
    assert last
    launch.write(last.model_copy(update={"submitted": "2001-02-03T04:05:06"}))
    assert main(["requeue", "a", "--fresh-code"]) == 0
    code = snapshot.digest()
    assert f"job 14 takes over from job 13, with the checkout's code, {code}\n" in capsys.readouterr().out
    assert (again := launch.submission()) and again.submitted > "2002", "it is the newest"
    assert datetime.fromisoformat(again.submitted).tzinfo, "by the clock of any time zone"
    assert any(f"{launch.codes(last)}/{code}" in line for line in text(programs, "14"))
    assert (launch.folder / "revision.txt").read_text() != "older\n"
    queue(programs, "FAILED", launch)
    shutil.rmtree(launch.codes(last) / code)
    assert main(["requeue", "a"]) == 0, "a copy that is gone is made again"
    assert launch.codes(last).joinpath(code).is_dir()


def test_a_running_job_is_replaced_only_by_what_can_be_sent(programs: Programs, capsys: Said) -> None:
    launch = sent(programs, capsys, "a", "running")
    queue(programs, "RUNNING", launch)
    programs.keeps("scancel")
    assert main(["requeue", "a", "--gpus-per-node", "9"]) == 2
    assert "gpus_per_node = 9" in capsys.readouterr().err
    assert not programs.given("scancel") and (last := launch.submission()) and last.job == "12"


SUSPENDED = ("SUSPENDED", "SLURM has suspended it, and it cannot save until it is resumed")
STOPPED = ("STOPPED", "SLURM has stopped it for a while")


@pytest.mark.parametrize(("state", "reason"), [SUSPENDED, STOPPED])
@pytest.mark.parametrize("more", [[], ["--time-minutes", "60"]])
def test_a_suspended_run_is_left_as_it_is(
    programs: Programs, capsys: Said, more: list[str], state: str, reason: str
) -> None:
    """It could not save, and scancel would wait for ever to tell it so."""
    launch = sent(programs, capsys, "a", "running")
    queue(programs, state, launch)
    programs.keeps("scancel")
    assert main(["requeue", "a", *more]) == 1
    assert capsys.readouterr().out == f"a: {reason}; it can be sent again when it has ended\n"
    assert not programs.given("scancel")
