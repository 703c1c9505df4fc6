"""The commands that look into a running job: shell, stacks, top."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from launcher.__main__ import main
from launcher.record import Launch
from moco_dist.run.lease import process_start
from tests.launcher.made import make_run, train_row
from tests.launcher.programs import Programs

STACKS = [{"rank": rank, "pid": 100 + rank, "host": f"n{rank + 1}", "stacks": f"File {rank}\n"} for rank in (1, 0)]
USE = {
    "host": "n1",
    "ranks": [0, 1, 2, 3],
    "cores": 3.26,
    "cores_allowed": 8,
    "memory_bytes": 6 * 2**30,
    "node_memory_bytes": 64 * 2**30,
    "node_memory_used_bytes": 10 * 2**30,
    "gpus": [
        {"index": 0, "use": 97.0, "memory_mib": 40960.0, "memory_total_mib": 81920.0},
        {"index": 1, "use": None, "memory_mib": None, "memory_total_mib": None},
    ],
}


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Programs:
    monkeypatch.chdir(tmp_path)
    return Programs(tmp_path / "programs", monkeypatch)


@pytest.fixture
def launch(tmp_path: Path, programs: Programs) -> Launch:
    """A run of job 12, which runs on two nodes."""
    rows = [train_row(step, data_wait=0.25) for step in range(1, 31)]
    launch = make_run(tmp_path / "runs" / "a", state="running", step=20, starts=1, rows=rows)
    launch.add_start(job="12", restart=1, step=20, time=0, nodes=["n1", "n2"])
    in_queue(programs, launch, "RUNNING")
    return launch


def in_queue(programs: Programs, launch: Launch, state: str) -> None:
    programs.says("squeue", {"": f"12|{state}|None|n[1-2]|1:00|{launch.run_dir}\n"})


@pytest.mark.parametrize(("command", "code"), [(["no-such-command"], 2), (["false"], 1)])
def test_a_command_beside_a_local_run(
    tmp_path: Path, programs: Programs, capfd: pytest.CaptureFixture[str], command: list[str], code: int
) -> None:
    started = process_start(os.getpid())
    make_run(
        tmp_path / "runs" / "a", job=str(os.getpid()), executor="local", started=started, state="running", starts=1
    )
    assert main(["shell", "a", "--", *command]) == code
    line = "launcher: COMMAND = no-such-command: cannot be run: No such file or directory; name another\n"
    assert capfd.readouterr().err == (line if code == 2 else "")


def prints(programs: Programs, *lines: object) -> Path:
    """Let srun print lines of JSON, among what a site's prolog prints, and keep its words."""
    path = programs.keeps("srun")
    text = path.read_text()
    words = "".join(f"print({json.dumps(json.dumps(line))})\n" for line in lines)
    path.write_text(text.replace("sys.exit(0)", f"print('welcome to n1\\n[prolog] ready\\n[1]')\n{words}sys.exit(0)"))
    return path


def test_stacks_of_all_nodes_are_shown_by_rank(
    launch: Launch, programs: Programs, capfd: pytest.CaptureFixture[str]
) -> None:
    prints(programs, [STACKS[0]], [STACKS[1]])
    assert main(["stacks", "a"]) == 0
    out = capfd.readouterr().out
    assert out == "rank 0 on n1, process 100:\nFile 0\n\nrank 1 on n2, process 101:\nFile 1\n\n"
    [(words, _)] = programs.given("srun")
    assert words[:7] == [
        "--jobid=12",
        "--overlap",
        "--mem=0",
        "--cpus-per-task=1",
        "--quiet",
        "--nodes=2",
        "--ntasks=2",
    ]
    assert words[-4:] == ["-m", "launcher.job.look", "stacks", str(launch.run_dir.resolve())]


def test_stacks_of_one_rank_as_json(launch: Launch, programs: Programs, capfd: pytest.CaptureFixture[str]) -> None:
    prints(programs, STACKS)
    assert main(["stacks", "12", "--rank", "1", "--json"]) == 0
    assert json.loads(capfd.readouterr().out) == [STACKS[0]]
    assert main(["stacks", "a", "--rank", "5"]) == 2
    assert "--rank = 5: no such rank runs now; there are 0, 1; name one of them" in capfd.readouterr().err


def test_a_rank_that_does_not_answer_is_told(
    launch: Launch, programs: Programs, capfd: pytest.CaptureFixture[str]
) -> None:
    prints(programs, [{**STACKS[0], "stacks": ""}])
    assert main(["stacks", "a"]) == 1
    assert "rank 1 on n2, process 101:\ndoes not answer" in capfd.readouterr().out
    prints(programs, [])
    assert main(["stacks", "a"]) == 1
    assert "no rank runs yet" in capfd.readouterr().out


def test_top_shows_each_node(launch: Launch, programs: Programs, capfd: pytest.CaptureFixture[str]) -> None:
    prints(programs, [USE], [{**USE, "host": "n0", "ranks": [], "gpus": []}])
    assert main(["top", "a"]) == 0
    head, columns, *nodes = capfd.readouterr().out.splitlines()
    assert "a: step 30, 640 images/s, 25 % of the time waited for data, as a mean of all ranks" in head
    assert columns.split("  ")[0] == "node"
    assert nodes[0].split() == ["n0", "none", "yet", "-", "3.3", "of", "8", "6.0", "10", "of", "64", "none", "none"]
    assert nodes[1].split() == ["n1", "0-3", "-", "3.3", "of", "8", "6.0", "10", "of", "64", "97", "-", "40/80", "-"]
    assert main(["top", "a", "--json"]) == 0
    printed = json.loads(capfd.readouterr().out)
    assert (printed["run"], printed["step"], printed["data_wait"]) == ("a", 30, 0.25) and printed["nodes"][1] == {
        **USE,
        "data_wait": None,
    }
    assert main(["top", "a", "--watch", "often"]) == 2


def test_top_shows_the_data_wait_of_each_node(
    tmp_path: Path, programs: Programs, capfd: pytest.CaptureFixture[str]
) -> None:
    """The rows number the nodes by their ranks, and names of hosts may come in another order."""
    waits = {"node/0/data_wait": 0.5, "node/1/data_wait": 0.0}
    rows = [train_row(step, data_wait=0.25, **waits) for step in range(1, 30)]
    rows.append(train_row(30, data_wait=0.25))  # the row after a checkpoint
    launch = make_run(tmp_path / "runs" / "a", state="running", step=20, starts=1, rows=rows)
    launch.add_start(job="12", restart=1, step=20, time=0, nodes=["n2", "n1"])
    in_queue(programs, launch, "RUNNING")
    prints(programs, [{**USE, "host": "n1", "ranks": [4, 5, 6, 7]}], [{**USE, "host": "n2"}])
    assert main(["top", "a"]) == 0
    n1, n2 = (line.split() for line in capfd.readouterr().out.splitlines()[2:])
    assert (n1[:3], n2[:3]) == (["n1", "4-7", "0"], ["n2", "0-3", "50"])
    prints(programs, [USE])  # the other node does not answer
    assert main(["top", "a", "--json"]) == 0
    assert [node["data_wait"] for node in json.loads(capfd.readouterr().out)["nodes"]] == [None]


def test_a_shell_or_a_command_is_opened_on_a_node(launch: Launch, programs: Programs) -> None:
    programs.keeps("srun", code=3)
    assert main(["shell", "a", "--node", "n2", "--", "nvidia-smi", "-L"]) == 3
    assert main(["shell", "a"]) == 3
    (command, _), (shell, _) = programs.given("srun")
    assert command[5:] == ["--nodelist=n2", "--nodes=1", "--ntasks=1", "--ntasks-per-node=1", "nvidia-smi", "-L"]
    assert "--nodelist=n1" in shell


def test_a_node_that_the_job_does_not_have_is_refused(
    launch: Launch, programs: Programs, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["shell", "a", "--node", "n9"]) == 2
    assert "--node = n9: the job runs on n1, n2; name one of them" in capfd.readouterr().err


@pytest.mark.parametrize("command", ["shell", "stacks", "top"])
@pytest.mark.parametrize(
    ("state", "refusal"),
    [
        ("PENDING", "is requeued, and no job of it runs now; see python -m launcher status"),
        ("SUSPENDED", "is suspended by SLURM, where no step begins; wait until it is resumed"),
    ],
)
def test_a_job_that_does_not_run_cannot_be_looked_into(
    launch: Launch, programs: Programs, capfd: pytest.CaptureFixture[str], command: str, state: str, refusal: str
) -> None:
    in_queue(programs, launch, state)
    assert main([command, "a"]) == 2
    assert f"RUN = a: {refusal}" in capfd.readouterr().err


def test_slurm_that_starts_no_step_is_told_in_a_line(
    launch: Launch, programs: Programs, capfd: pytest.CaptureFixture[str]
) -> None:
    programs.runs("srun", 'echo "srun: error: Unable to create step for job 12: Invalid node name" >&2; exit 1')
    assert main(["top", "a"]) == 1
    assert capfd.readouterr().err.startswith("launcher: srun: srun: error: Unable to create step for job 12")
