"""Nodes on which starts fail: how one is found at fault, when it is left out, and who is told. No rank is started."""

from __future__ import annotations

import errno
import json
import os
import shlex
import sys
from collections import namedtuple
from pathlib import Path

import pytest

from launcher import after
from launcher.__main__ import main
from launcher.cluster import Profile
from launcher.job import bad_nodes, failure, node_check, stage, task
from launcher.job.start import Start
from launcher.record import Launch, Submission
from tests.launcher.made import make_run, replace_sleep
from tests.launcher.programs import NODES, PARTITION, Programs


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Programs:
    """Those of a site of the nodes n1 to n3; this process has the variables of a job on two of them."""
    monkeypatch.chdir(tmp_path)
    made = Programs(tmp_path / "slurm", monkeypatch)
    made.says("sinfo", {"--Node": NAMES})
    made.says("squeue", {"--states=all": "12|RUNNING|None|n[1-2]|1:00|/run\n"})
    made.keeps("scontrol")
    variables = {"SUBMITIT_EXECUTOR": "slurm", "SLURM_JOB_ID": "12", "SLURM_JOB_NUM_NODES": "2", "SLURM_NTASKS": "2"}
    variables |= {"SLURM_NODEID": "1", "SLURM_PROCID": "1", "SLURM_LOCALID": "0", "SLURM_JOB_NODELIST": "n[1-2]"}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    for name in ("SLURM_RESTART_COUNT", "SLURM_ARRAY_JOB_ID", "SLURM_JOB_PARTITION"):
        monkeypatch.delenv(name, raising=False)
    return made


def run(folder: Path, reason: str = "", **more: object) -> Launch:
    return make_run(folder / "runs" / "a", state="crashed", reason=reason, starts=3, nodes=2, **more)


def said(launch: Launch) -> list[str]:
    return [line.partition(" ")[2] for line in (launch.logs / "launcher.log").read_text().splitlines()]


def updates(programs: Programs) -> list[list[str]]:
    return [words for words, _ in programs.given("scontrol") if words[0] == "update"]


NAMES = "".join(f"main|{name}|idle|gpu:8(S:0-1)|64|512000|(null)\n" for name in ("n1", "n2", "n3"))
Rank = namedtuple("Rank", "rank node exit_status error")
LOST = "PeerLost: another rank was lost in all_gather"
LATE = "rank 0: the other ranks did not start within 60 s"


@pytest.mark.parametrize(
    ("reason", "ranks", "expected"),
    [
        ("rank 3: CudaError: x", [Rank(3, "n2", 1, "CudaError: x"), Rank(0, "n1", 1, LOST)], ["n2"]),
        (f"rank 0: {LOST}", [Rank(3, "n2", -9, "Signal 9 (SIGKILL)"), Rank(0, "n1", 1, LOST)], ["n2"]),
        ("rank 3: ValueError: x", [Rank(3, "n2", 1, "ValueError: x"), Rank(0, "n1", 1, "ValueError: x")], ["n2"]),
        ("", [Rank(3, "n2", -9, "Signal 9"), Rank(0, "n1", -9, "Signal 9")], []),  # both, and nobody knows which first
        ("", [Rank(3, "n2", 1, "RuntimeError: CUDA error"), Rank(0, "n1", 1, f"TimeoutError: {LATE}")], ["n2"]),
        (f"rank 0: {LOST}", [Rank(0, "n1", 1, LOST)], []),
        ("rank 3: Hang: no progress", [Rank(3, "n2", 1, "Hang: no progress")], []),
        ("", [], []),
    ],
)
def test_the_node_of_the_rank_that_failed_first_is_at_fault(
    programs: Programs, tmp_path: Path, reason: str, ranks: list[Rank], expected: list[str]
) -> None:
    launch = run(tmp_path, reason)
    launch.add_failed_rank(job="12", restart=1, **Rank(0, "n1", -9, "of another start")._asdict())
    for rank in ranks:
        launch.add_failed_rank(job="12", restart=2, **rank._asdict())
    failure.note(launch, "12", 2, "srun failed")
    [end] = launch.ends()
    assert (end["restart"], end["reason"], end["bad_nodes"]) == (2, "srun failed", expected)


def test_a_node_on_which_two_starts_have_failed_is_left_out(
    programs: Programs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """SLURM is told once the job waits again, each time with those that were left out before."""
    launch = run(tmp_path, profile=Profile(exclude=("n7",)), left_out=("n9",))
    monkeypatch.setattr(sys, "argv", ["launcher.after", str(launch.run_dir), "1"])
    for restart in range(2):
        monkeypatch.setenv("SLURM_RESTART_COUNT", str(restart))
        launch.add_failed_rank(job="12", restart=restart, rank=3, node="n2", exit_status=-9, error="Signal 9")
        assert not updates(programs)
        assert after.main() == 0
    orders = [words for words, _ in programs.given("scontrol") if words[0] in ("requeue", "update")]
    assert orders == [["requeue", "12"], ["requeue", "12"], ["update", "JobId=12", "ExcNodeList=n7,n9,n2"]]
    sent = launch.submission()
    assert sent and sent.left_out == ("n9", "n2")
    assert said(launch)[-1] == "n2 is left out from now on: 2 starts have failed on it"
    programs.says("squeue", {"--states=all": f"12|PENDING|Resources||1:00|{launch.run_dir}\n"})
    assert main(["status", "runs/a", "--json"]) == 0
    [row] = json.loads(capsys.readouterr().out)
    assert row["reason"] == "Resources; left out, since starts failed there: n9, n2"
    assert not bad_nodes.repeated(launch)


def test_no_node_is_left_out_where_too_few_would_be_left_or_slurm_refuses(
    programs: Programs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    launch = run(tmp_path)
    for restart in range(2):
        launch.add_end(job="12", restart=restart, reason="x", bad_nodes=["n2"])
        launch.add_end(job="11", restart=restart, reason="of an earlier submission", bad_nodes=["n1"])
    described = (
        *("n1|idle|gpu:a100:8(S:0-1)|96|512000|ib", "n2|mixed|gpu:a100:8|96|512000|ib,big"),
        *("n3|idle|gpu:v100:8|64|256000|big", "n4|idle|gpu:a100:4|96|512000|ib,big", "n5|idle|(null)|128|512000|big"),
    )
    programs.says("sinfo", {"--Node": "".join(f"main|{line}\n" for line in described)})
    programs.says("scontrol", {"show reservation mine": "ReservationName=mine StartTime=x Nodes=n1,n2 NodeCnt=2\n"})
    no_others: tuple[dict[str, object], ...] = (
        *({"constraint": "ib"}, {"constraint": "ib&big"}, {"gpu_type": "a100"}, {"exclude": ("n3",)}),
        *({"cpus_per_gpu": 10}, {"memory_gib": 400}, {"reservation": "mine"}),
    )
    for keys in no_others:
        launch.write(Submission(job="12", nodes=2, profile=Profile(**keys)))
        assert not bad_nodes.repeated(launch)
        assert said(launch)[-1] == "n2 is not left out, since too few nodes would be left"
    launch.write(Submission(job="12", profile=Profile(sbatch={"nodelist": "n2"})))
    assert not bad_nodes.repeated(launch)
    assert said(launch)[-1] == "n2 is not left out, since the job asks for it by sbatch.nodelist"
    launch.write(Submission(job="12", nodes=2, least_nodes=1))  # one that makes do with fewer
    assert bad_nodes.repeated(launch) == ["n2"]
    launch.write(Submission(job="12", nodes=2))
    programs.says("sinfo", {"--Node": NAMES})
    programs.runs("scontrol", "echo scontrol: error: no >&2; exit 1")
    replace_sleep(monkeypatch, bad_nodes, lambda _: None)
    bad_nodes.leave_out(launch, "12", bad_nodes.repeated(launch))
    assert said(launch)[-1] == "n2 cannot be left out (scontrol: scontrol: error: no)"
    assert launch.submission() == Submission(job="12", nodes=2)


def test_the_record_of_a_job_that_takes_over_meanwhile_stays(
    programs: Programs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    launch = run(tmp_path)
    monkeypatch.setattr(bad_nodes.nodes, "exclude", lambda *_: launch.write(Submission(job="13", nodes=2)))
    bad_nodes.leave_out(launch, "12", ["n2"])
    assert launch.submission() == Submission(job="13", nodes=2)


def test_another_job_that_goes_on_leaves_them_out_too(
    programs: Programs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    launch = run(tmp_path)
    for restart in range(2):
        launch.add_end(job="12", restart=restart, reason="x", bad_nodes=["n2"])
    launch.requeue_mark("12", 2).touch()
    programs.runs("scontrol", f"echo {shlex.quote('error: not permitted')} >&2; exit 1")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "2")
    monkeypatch.setattr(sys, "argv", ["launcher.after", str(launch.run_dir), "75"])
    assert after.main() == 0
    [script] = programs.sent.iterdir()
    assert "#SBATCH --exclude=n2\n" in script.read_text()
    sent = launch.submission()
    assert sent and (sent.left_out, sent.earlier_jobs) == (("n2",), ("12",))


def test_a_run_that_is_sent_again_begins_with_all_nodes(programs: Programs, tmp_path: Path) -> None:
    launch = run(tmp_path, left_out=("n2",))
    programs.says("squeue", {})
    programs.says("scontrol", {"show partition": PARTITION})
    programs.says("sinfo", {"--all": NODES})
    assert main(["requeue", "runs/a", "--nodes", "1"]) == 0
    assert "--exclude" not in (programs.sent / "12.sh").read_text()
    sent = launch.submission()
    assert sent and not sent.left_out


def test_a_start_that_could_not_note_its_end_has_lost_a_node_or_was_killed(programs: Programs, tmp_path: Path) -> None:
    launch = run(tmp_path)
    programs.says("scontrol", {"show node n1,n2": "NodeName=n2 State=DOWN SlurmdStartTime=None\n"})
    for _ in range(2):
        failure.note_unfinished(launch, {"job": "12", "restart": 0, "nodes": ["n1", "n2"]})
    assert [(end["reason"], end["bad_nodes"]) for end in launch.ends()] == [("SLURM has ended it", ["n2"])]


# The check of a node.


def test_a_sound_node(tmp_path: Path) -> None:
    launch = run(tmp_path)
    assert " GiB of memory free, 1 MiB written in 0." in node_check.check(launch, Profile(), "n1")
    assert not list(launch.folder.glob(".check*"))


def test_a_full_disk_is_no_fault_of_the_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    launch = run(tmp_path)
    monkeypatch.setattr(os, "fsync", full)
    words = node_check.check(launch, Profile(), "n1")
    assert words.endswith(f"nothing can be written to {launch.folder}: No space left on device")
    assert not list(launch.folder.glob(".check*"))


def test_what_makes_a_node_unfit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fault(**keys: object) -> str:
        with pytest.raises(node_check.BadNode) as error:
            node_check.check(launch, Profile.model_validate(keys), "n1")
        return str(error.value)

    launch = run(tmp_path)
    import torch

    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(node_check, "_DRIVER", tmp_path / "driver")
    assert node_check.check(launch, Profile(gpus_per_node=2), "n1").startswith("1 GPUs, ")  # auto: it is for the CPU
    for number in range(2):
        (tmp_path / "driver" / str(number)).mkdir(parents=True)
    assert fault(gpus_per_node=2) == "1 of 2 GPUs can be used"
    launch.config_file.write_text("device: {type: cuda}\n")
    assert fault(gpus_per_node=4) == "1 of 4 GPUs can be used"
    launch.config_file.write_text("device: {type: cpu}\n")
    assert fault(memory_gib=10**6).endswith(" GiB of memory, 1000000 were asked for")
    launch.config_file.unlink()
    launch.folder.rename(tmp_path / "away")
    assert fault() == f"it cannot write to {launch.folder}: No such file or directory"


class EndedBySlurm(Exception):
    """SLURM ends the job, which it requeues."""


def ended(_: float) -> None:
    raise EndedBySlurm


def test_an_unfit_node_has_the_job_requeued_and_after_three_starts_ends_it(
    programs: Programs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    launch = run(tmp_path)
    launch.starts_file.unlink()
    profile = Profile(memory_gib=10**6)
    replace_sleep(monkeypatch, node_check, ended)
    for restart in range(2):
        monkeypatch.setenv("SLURM_RESTART_COUNT", str(restart))
        with pytest.raises(EndedBySlurm):
            task._check_node(Start(launch.run_dir, Submission(job="12", nodes=2, profile=profile), ""))
    assert [words for words, _ in programs.given("scontrol")][-1] == ["update", "JobId=12", "ExcNodeList=n2"]
    assert [end["bad_nodes"] for end in launch.ends()] == [["n2"], ["n2"]]
    assert launch.failures()[0]["reason"].startswith("node n2 is not fit: it has ")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "2")
    programs.keeps("scontrol")
    with pytest.raises(SystemExit):
        task._check_node(Start(launch.run_dir, Submission(job="12", nodes=2, profile=profile), ""))
    assert launch.status().reason.startswith("no progress in 3 starts from step 0")
    launch.folder.rename(tmp_path / "away")  # nobody could count its starts
    monkeypatch.setenv("SLURM_RESTART_COUNT", "3")
    calls = len(programs.given("scontrol"))
    with pytest.raises(SystemExit):
        task._check_node(Start(launch.run_dir, Submission(job="12", nodes=2, profile=profile), ""))
    assert len(programs.given("scontrol")) == calls


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO, errno.ENOENT])
def test_a_node_whose_own_disk_is_full_or_broken_is_not_fit(
    programs: Programs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: int
) -> None:
    """Another node may have room for the data; only an archive that is not there is the user's mistake."""

    def failing(*_: Path) -> None:
        raise OSError(error, os.strerror(error))

    launch = run(tmp_path)
    archive = tmp_path / "data.tar"
    archive.touch()
    monkeypatch.setattr(stage, "_extract", failing)
    replace_sleep(monkeypatch, node_check, ended)
    submission = Submission(job="12", nodes=2, profile=Profile(local_disk=str(tmp_path)), stage=str(archive))
    with pytest.raises(SystemExit if error == errno.ENOENT else EndedBySlurm):
        task._staged(Start(launch.run_dir, submission, "."))
    requeued = [words for words, _ in programs.given("scontrol") if words[0] == "requeue"]
    if error == errno.ENOENT:
        assert launch.status().state == "user_error" and not requeued
    else:
        assert launch.status().state == "crashed" and requeued == [["requeue", "12"]]
        [failed] = launch.failures()
        assert failed["reason"].startswith(
            f"node n2 is not fit: --stage = {archive}: cannot be unpacked into {tmp_path} ("
        )
        assert [end["bad_nodes"] for end in launch.ends()] == [["n2"]]
