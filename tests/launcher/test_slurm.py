"""The answers of SLURM's commands are read, the unusual ones too."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from launcher import nodes, slurm, slurm_jobs
from launcher.__main__ import main
from launcher.slurm import Refused, Unavailable
from launcher.slurm_jobs import Job
from tests.launcher.made import make_run
from tests.launcher.programs import Programs


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Programs:
    return Programs(tmp_path, monkeypatch)


def test_a_slurm_conf_that_is_not_there_is_named_at_once(programs: Programs, monkeypatch: pytest.MonkeyPatch) -> None:
    """SLURM's commands look for it for a minute."""
    monkeypatch.setenv("SLURM_CONF", "/nowhere/slurm.conf")
    programs.keeps("squeue")
    with pytest.raises(Unavailable, match=r"^squeue: SLURM_CONF = /nowhere/slurm.conf: no such file; export"):
        slurm.call("squeue")
    assert not programs.given("squeue")


def test_the_users_own_formats_do_not_reach_it(programs: Programs, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("SQUEUE_FORMAT", "SINFO_FORMAT", "SACCT_FORMAT", "SLURM_TIME_FORMAT", "LC_ALL", "SLURM_CONF")
    for name in names:
        monkeypatch.setenv(name, __file__)
    programs.keeps("squeue", *names)
    slurm.call("squeue", "--x", "a b")
    [(words, environment)] = programs.given("squeue")
    assert words == ["--x", "a b"]
    assert environment == dict.fromkeys(names, None) | {
        "SLURM_TIME_FORMAT": "standard",
        "LC_ALL": "C",
        "SLURM_CONF": __file__,
    }


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (
            "echo 'slurm_load_partitions: Unable to contact slurm controller (connect failure)' >&2; exit 1",
            Unavailable(
                "scontrol: the SLURM controller does not answer (slurm_load_partitions: Unable to contact slurm"
            ),
        ),
        (
            "echo 'slurm_load_jobs error: Socket timed out on send/recv operation' >&2; exit 1",
            Unavailable("scontrol: the SLURM controller does not answer (slurm_load_jobs error: Socket timed out on"),
        ),
        (
            "echo 'scontrol: fatal: could not establish a configuration source' >&2; exit 1",
            Unavailable("scontrol: SLURM is installed here, but finds no configuration; export SLURM_CONF="),
        ),
        (
            "exec sleep 20",
            Unavailable("scontrol: no answer in 0.2 s; is slurmctld up (scontrol ping)? --patience waits longer"),
        ),
        ("echo a hint >&2; echo 'x: error: bad job' >&2; exit 1", Refused("scontrol: x: error: bad job")),
        ("echo a hint >&2; echo; echo the last >&2; exit 1", Refused("scontrol: the last")),
        ("exit 3", Refused("scontrol: exit status 3")),
    ],
)
def test_a_command_that_fails_is_one_line(programs: Programs, lines: str, expected: Exception) -> None:
    programs.runs("scontrol", lines)
    with pytest.raises(type(expected)) as caught:
        slurm.call("scontrol", "show", "config", timeout_seconds=0.2 if "sleep" in lines else 10)
    assert str(caught.value).startswith(str(expected))
    assert str(caught.value).isprintable()


def test_no_slurm_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    line = "squeue is not installed here; log in to a node of the cluster, or use --local"
    with pytest.raises(Unavailable, match=f"^{line}$"):
        slurm_jobs.queue(["12"])
    (tmp_path / "squeue").touch()  # not executable
    with pytest.raises(Unavailable, match=f"^{line}$"):
        slurm_jobs.queue(["12"])


QUEUE = """\
12|RUNNING|None|n[1-2]|1-02:03:04|/runs/a
13_0|PENDING|Dependency|||/runs/b|c d
13_1|CANCELLED by 1000|None||INVALID|
slurm: a line of a plugin
"""


def test_the_queue(programs: Programs) -> None:
    programs.says("squeue", {"--states=all --array --noheader --jobs=12,13": QUEUE})
    running = Job("12", "RUNNING", "None", "n[1-2]", "1-02:03:04", "/runs/a")
    waiting = Job("13_0", "PENDING", "Dependency", "", "", "/runs/b|c d")  # a comment may hold what parts the fields
    assert slurm_jobs.queue(["13_0", "12"]) == {"12": running, "13_0": waiting}
    assert (running.live, running.waits, waiting.live, waiting.waits) == (True, False, True, True)
    ended = slurm_jobs.queue(["12", "13_1"])["13_1"]
    assert not ended.live
    assert slurm_jobs.queue(["12", "99"]).keys() == set()  # it was asked for others: the program says nothing


def test_the_queue_of_a_user(programs: Programs) -> None:
    programs.says("squeue", {"--states=all --array --noheader --user=": QUEUE})
    assert slurm_jobs.queue().keys() == {"12", "13_0", "13_1"}


def test_a_federation_has_begun_a_job_on_another_cluster(programs: Programs) -> None:
    """It is revoked on the cluster that it was sent to, and orders about it go to the one that runs it."""
    number = 2**26 + 9
    head = "JOBID|STATE|REASON|NODELIST|TIME_LEFT START_TIME|COMMENT\n"
    everywhere = f"CLUSTER: a\n{head}{number}|REVOKED|None||0:00 |/runs/a\n\n"
    everywhere += f"CLUSTER: gpu\n{head}{number}|RUNNING|None|n1|1:00 |/runs/a\n"
    here = f"{number}|REVOKED|None||0:00 |/runs/a\n"
    programs.says("squeue", {"--states=all": here, "--clusters=all --states=all --array --jobs=": everywhere})
    assert slurm_jobs.queue()[str(number)] == Job(str(number), "RUNNING", "None", "n1", "1:00", "/runs/a")
    assert slurm_jobs.queue([str(number)])[str(number)].nodes == "n1"
    assert slurm_jobs.words(str(number)) == [str(number), "--clusters=gpu"]
    member = f"{number}_3"
    of_array = everywhere.replace(f"{number}|", f"{member}|")
    programs.says("squeue", {"--states=all": "", "--clusters=all": of_array})
    assert slurm_jobs.queue([member]).keys() == slurm_jobs.queue([str(number)]).keys() == {member}
    assert slurm_jobs.words(member) == [member, "--clusters=gpu"]
    programs.runs("squeue", 'echo "slurm_load_jobs error: Invalid job id specified" >&2; exit 1')
    assert slurm_jobs.queue([member]) == {} and slurm_jobs.words(member) == [member]  # no cluster has it any more
    assert slurm_jobs.words("12") == ["12"]  # the job of a site without a federation costs no question
    programs.says("squeue", {"--clusters=all": everywhere.replace("RUNNING", "PENDING")})
    assert slurm_jobs.words(str(number)) == [str(number)]  # the cluster that it was sent to answers for one that waits
    words = f"--allocations --noheader --parsable2 --jobs={number} --format=JobID,State,NodeList --federation"
    programs.says("sacct", {words: f"{number}|FAILED|n1"})
    assert slurm_jobs.accounting([str(number)])[str(number)].state == "FAILED"


def test_jobs_that_the_queue_has_forgotten_are_looked_up(programs: Programs) -> None:
    programs.says("squeue", {"--states=all": QUEUE})
    programs.says("sacct", {"--allocations --noheader --parsable2 --jobs=14,15 ": "14|CANCELLED by 0|n1\n15||\n"})
    jobs = slurm_jobs.jobs(["12", "14", "15"])
    assert {job.id: job.state for job in jobs.values()} == {"12": "RUNNING", "14": "CANCELLED", "15": ""}
    programs.keeps("sacct", code=1)
    assert slurm_jobs.jobs(["12", "14"]).keys() == {"12"}  # a site without accounts
    programs.runs("squeue", 'echo "slurm_load_jobs error: Invalid job id specified" >&2; exit 1')
    assert slurm_jobs.jobs(["12"]) == {}
    assert programs.given("sacct")[-1][0][3] == "--jobs=12"
    programs.runs("squeue", 'echo "squeue: error: Something else" >&2; exit 1')
    with pytest.raises(slurm.Unavailable, match="Something else"):  # no word of the job is not "no such job"
        slurm_jobs.jobs(["12"])


def test_nothing_is_asked_about_no_job(programs: Programs) -> None:
    for name in ("squeue", "sacct"):
        programs.keeps(name)
    assert slurm_jobs.jobs([]) == slurm_jobs.accounting([]) == {}
    assert not programs.given("squeue") and not programs.given("sacct")


def test_what_is_asked_of_a_job(programs: Programs) -> None:
    for name in ("scancel", "scontrol"):
        programs.keeps(name)
    slurm_jobs.signal("12", "USR2")
    slurm_jobs.cancel("12")
    slurm_jobs.requeue("12")
    assert [words for words, _ in programs.given("scancel")] == [
        ["--quiet", "--signal=USR2", "12"],
        ["--quiet", "12"],
    ]
    assert [words for words, _ in programs.given("scontrol")] == [["requeue", "12"]]


def test_a_member_of_an_array_is_told_by_its_steps(programs: Programs) -> None:
    """While other members wait, SLURM has scancel tell the member itself again and again, for more than a minute."""
    programs.keeps("scancel")
    programs.says("squeue", {"--steps": "12_3.0\n12_3.1\n12_3.batch\n12_3.extern\n"})
    slurm_jobs.signal("12_3", "USR2")
    assert [words for words, _ in programs.given("scancel")] == [["--quiet", "--signal=USR2", "12_3.0", "12_3.1"]]
    programs.says("squeue", {"--steps": "12_3.batch\n"})
    with pytest.raises(slurm.Refused, match="runs no step"):
        slurm_jobs.signal("12_3", "USR2")


def test_nodes_that_a_job_has_lost(programs: Programs) -> None:
    began = time.mktime(time.strptime("2026-11-27T15:00:00", "%Y-%m-%dT%H:%M:%S"))
    cases = {
        "n1": "State=ALLOCATED ThreadsPerCore=1 SlurmdStartTime=2026-11-27T14:59:59",
        "n2": "State=ALLOCATED SlurmdStartTime=2026-11-27T15:00:09",
        "n3": "State=ALLOCATED* SlurmdStartTime=2026-11-27T14:00:00",
        "n4": "State=DOWN SlurmdStartTime=None",
        "n5": "State=MIXED+NOT_RESPONDING SlurmdStartTime=Unknown",
        "n6": "State=IDLE+CLOUD SlurmdStartTime=None",
    }
    lines = "".join(f"NodeName={name} Arch=x86_64 {words} Comment=a b\n" for name, words in cases.items())
    programs.says("scontrol", {"show node n[1-6] --oneliner": lines})
    assert nodes.lost("n[1-6]", began) == ["n2", "n3", "n4", "n5"]


@pytest.mark.parametrize(("words", "may"), [("Requeue=1 Restarts=0", True), ("Priority=1 Requeue=0 x", False)])
def test_whether_a_job_may_be_requeued(programs: Programs, words: str, may: bool) -> None:
    programs.says("scontrol", {"show job 12 --oneliner": f"JobId=12 {words}\n"})
    assert slurm_jobs.may_requeue("12") is may


@pytest.mark.parametrize(("text", "seconds"), [("", 20.0), ("60", 60.0), ("0.5", 0.5), ("0", 20.0)])
def test_patience_is_a_setting(monkeypatch: pytest.MonkeyPatch, text: str, seconds: float) -> None:
    monkeypatch.setenv(slurm.PATIENCE, text)
    assert slurm.patience_seconds() == seconds
    assert slurm.patience_seconds(1.0) == (seconds if text not in ("", "0") else 1.0)


def test_the_option_says_how_patient_a_command_is(
    programs: Programs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(slurm.PATIENCE, "")
    make_run(tmp_path / "runs" / "a", state="stopped", starts=1)
    programs.runs("squeue", "sleep 1.5; echo '12|CANCELLED|None|n1|1:00|'")
    assert main(["status"]) == 0
    assert " stopped? " in capsys.readouterr().out
    assert main(["status", "--patience", "30"]) == 0
    assert " cancelled " in capsys.readouterr().out
    assert main(["status", "--patience", "long"]) == 2
    assert "MOCO_DIST_PATIENCE = long: must be a number of seconds; use --patience 60" in capsys.readouterr().err


def test_jobs_that_wait_for_one_wait_for_another(programs: Programs, tmp_path: Path) -> None:
    lines = ["20|afterok:12(unfulfilled)", "21|afterany:3(fulfilled),afterok:12(unfulfilled)", "22|afterok:121(x)"]
    lines += ["23|afterok:12_3(unfulfilled)", "24|(null)", "25|", "13|afterany:12(unfulfilled)"]
    programs.says("squeue", {"--user=": "\n".join(lines) + "\n"})
    programs.keeps("scontrol", code=1)  # one that is refused does not keep the others
    slurm_jobs.redirect_dependents("12", "13")
    assert [words for words, _ in programs.given("scontrol")] == [
        ["update", "JobId=20", "Dependency=afterok:13"],
        ["update", "JobId=21", "Dependency=afterany:3,afterok:13"],
    ]
