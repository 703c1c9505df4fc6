"""`submit`: what sbatch is given, what bash makes of it, and what lies in the run directory. No SLURM is asked."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from submitit.core.utils import DelayedSubmission

from launcher import preparing, sending, slurm, snapshot
from launcher.__main__ import main
from launcher.checks import site
from launcher.cluster import Profile
from launcher.commands import submit
from launcher.executors import Sbatch
from launcher.job.task import Task
from launcher.record import Launch, Submission
from moco_dist import config as configs
from moco_dist.config import Config
from moco_dist.errors import UserError
from moco_dist.run import status
from moco_dist.run.lease import Lease
from moco_dist.run.status import Status
from tests.launcher.made import make_run
from tests.launcher.programs import Programs
from tests.without import without

FULL: dict[str, Any] = {
    "partition": "gpu",
    "account": "vision",
    "qos": "long",
    "constraint": "ib&nvlink",
    "exclude": ["n[1-3,7]", "n9"],
    "reservation": "school",
    "gpus_per_node": 8,
    "gpu_type": "a100",
    "cpus_per_gpu": 12,
    "memory_gib": 960,
    "time_minutes": 1440,
    "exclusive": True,
    "signal_seconds": 90,
    "network_interface": "ib0",
    "min_nodes": 2,
    "environment": {"NCCL_DEBUG": "WARN"},
    "setup": ["module purge", "module load cuda/12.4"],
}

TEXT = """\
#!/bin/bash

# Parameters
#SBATCH --account=vision
#SBATCH --chdir=CODE
#SBATCH --comment=RUN
#SBATCH --constraint='ib&nvlink'
#SBATCH --cpus-per-task=96
#SBATCH --dependency=afterok:12
#SBATCH --exclude='n[1-3,7],n9'
#SBATCH --exclusive
#SBATCH --export=ALL
#SBATCH --gpus-per-node=a100:8
#SBATCH --job-name=one
#SBATCH --kill-on-invalid-dep=yes
#SBATCH --mem=960G
#SBATCH --no-kill
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --open-mode=append
#SBATCH --output=RUN/launch/submitit/%j_0_log.out
#SBATCH --partition=gpu
#SBATCH --qos=long
#SBATCH --requeue
#SBATCH --reservation=school
#SBATCH --signal=USR2@90
#SBATCH --time=1440

# setup
module purge
module load cuda/12.4
export PYTHONPATH=CODE${PYTHONPATH:+:$PYTHONPATH}
export PYTHONSAFEPATH=1

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output RUN/launch/submitit/%j_%t_log.out --cpus-per-task=96 --kill-on-bad-exit=0 --export=ALL \
--no-kill \
PYTHON -u -m submitit.core._submit RUN/launch/submitit


# teardown
code=$?
[ "$code" = 0 ] || [ "$code" = 2 ] || PYTHON -m launcher.after RUN "$code"
exit "$code"
"""

STRANGE = 'it\'s $(touch evil) `touch evil` ; touch evil & "two" #1 ü|>x'


def sbatch(
    run_dir: Path = Path("/runs/one"), name: str = "one", nodes: int = 1, after: str | None = None, **keys: Any
) -> Sbatch:
    """Return the request of a run, with a profile's keys."""
    launch = Launch(run_dir)
    submission = Submission(name=name, nodes=nodes, profile=Profile(**keys), code="c0de")
    return Sbatch(launch, submission, after)


def parameters(text: str) -> dict[str, str]:
    """Return what the lines for sbatch say, read by a shell's rules."""
    directives = [
        shlex.split(line.removeprefix("#SBATCH --")) for line in text.splitlines() if line.startswith("#SBATCH ")
    ]
    assert all(len(words) == 1 for words in directives)
    return {key: value for (word,) in directives for key, _, value in [word.partition("=")]}


def the_line(text: str, start: str) -> list[str]:
    [line] = [line for line in text.splitlines() if line.startswith(start)]
    return shlex.split(line)


def load(run_dir: Path, *overrides: str) -> Config:
    return configs.load(None, [f"run.dir={run_dir}", *overrides])


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Programs:
    """Those of a site of two nodes; the current folder is empty."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return Programs(tmp_path / "slurm", monkeypatch)


Said = pytest.CaptureFixture[str]
SMALL = ("--gpus-per-node", "2", "--cpus-per-gpu", "1")


# The text for sbatch.


def test_a_whole_profile() -> None:
    text = sbatch(nodes=4, after="afterok:12", **FULL).text()
    for path, name in (("/runs/one/launch/code/c0de", "CODE"), ("/runs/one", "RUN"), (sys.executable, "PYTHON")):
        text = text.replace(path, name)
    assert text + "\n" == TEXT


def test_a_profile_of_nothing_asks_for_no_more_than_it_must() -> None:
    expected = (
        "chdir comment cpus-per-task export gpus-per-node job-name nodes ntasks-per-node open-mode output requeue"
    )
    assert set(parameters(sbatch().text())) == {*expected.split(), "signal", "time"}


def test_slurm_writes_the_mails() -> None:
    notify = {"mail": "me@x.org", "events": ["end", "failure", "preemption", "first_step"]}
    directives = parameters(sbatch(notify=notify, sbatch={"mail-type": "ALL"}).text())
    assert (directives["mail-user"], directives["mail-type"]) == ("me@x.org", "ALL")
    assert parameters(sbatch(notify=notify).text())["mail-type"] == "END,FAIL,REQUEUE,BEGIN"


def test_one_task_a_rank() -> None:
    text = sbatch(tasks="rank", gpus_per_node=4, cpus_per_gpu=3).text()
    directives, srun = parameters(text), the_line(text, "srun ")
    assert (directives["ntasks-per-node"], directives["cpus-per-task"], directives["gpus-per-node"]) == ("4", "3", "4")
    assert {"--cpus-per-task=3", "--kill-on-bad-exit=1"} <= set(srun)


def test_only_with_min_nodes_a_job_outlives_its_nodes() -> None:
    for least, expected in ((1, True), (None, False)):
        text = sbatch(nodes=2, min_nodes=least).text()
        assert ("no-kill" in parameters(text)) is ("--no-kill" in the_line(text, "srun ")) is expected


def test_apptainer() -> None:
    container = {"image": "/images/it's mine.sif", "mounts": ["/data", "/a b:/c"], "python": "/opt/python 3"}
    words = the_line(sbatch(container=container).text(), "srun ")
    start = ["apptainer", "exec", "--nv", "--bind=/data", "--bind=/a b:/c", "/images/it's mine.sif", "/opt/python 3"]
    assert words[words.index("apptainer") :][: len(start) + 3] == [*start, "-u", "-m", "submitit.core._submit"]


def test_pyxis() -> None:
    container = {"image": "nvcr.io#nvidia/pytorch:25.01", "runtime": "pyxis", "mounts": ["/data", "/a:/b"]}
    words = the_line(sbatch(container=container).text(), "srun ")
    assert {"--container-image=nvcr.io#nvidia/pytorch:25.01", "--container-mounts=/data,/a:/b"} <= set(words)
    assert words[words.index("python3") + 1 :][:3] == ["-u", "-m", "submitit.core._submit"]
    container.pop("mounts")
    assert "--container-mounts" not in sbatch(container=container).text()


def test_strange_names_are_words_of_sbatch() -> None:
    run_dir = Path("/runs") / STRANGE.replace("/", "")
    directives = parameters(sbatch(run_dir, name=STRANGE, constraint=STRANGE, account="$(id)").text())
    assert (directives["job-name"], directives["constraint"], directives["account"]) == (STRANGE, STRANGE, "$(id)")
    assert directives["comment"] == str(run_dir)
    assert directives["chdir"] == f"{run_dir}/launch/code/c0de"
    assert directives["output"] == f"{run_dir}/launch/submitit/%j_0_log.out"


@pytest.mark.skipif(not shutil.which("sbatch"), reason="SLURM is not installed")
def test_sbatch_itself_reads_them_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real one tells what it has understood before it looks for its controller, which is not there."""
    lines = ["ClusterName=x", "SlurmctldHost=localhost(127.0.0.1)", "SlurmctldPort=1", "AuthType=auth/none"]
    lines += ["MessageTimeout=2", "GresTypes=gpu", "NodeName=n1", "PartitionName=main Nodes=n1", ""]
    (tmp_path / "slurm.conf").write_text("\n".join(lines))
    monkeypatch.setenv("SLURM_CONF", str(tmp_path / "slurm.conf"))
    keys = FULL | {"constraint": STRANGE, "gpu_type": None}
    text = sbatch(tmp_path / STRANGE, name=STRANGE, nodes=4, after="afterok:12", **keys).text()
    (tmp_path / "job.sh").write_text(text)
    command = ["sbatch", "--verbose", "--verbose", str(tmp_path / "job.sh")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    understood = dict(re.findall(r"^sbatch: ([\w-]+) +: (.*)$", done.stderr, re.MULTILINE))
    if not understood:
        pytest.skip(f"this sbatch does not come so far: {done.stderr}")
    keys = ("job-name", "comment", "chdir", "output", "constraint", "account", "exclude", "dependency")
    assert {key: understood[key] for key in keys} == {key: parameters(text)[key] for key in keys}
    assert (understood["signal"], understood["mem"], understood["time"]) == ("USR2@90", "960G", "1-00:00:00")


# What bash makes of it.


class Script:
    """The batch script of a run of a strange name, with programs that keep what they are given."""

    def __init__(self, programs: Programs, run_dir: Path, srun: int = 0, after: int = 0) -> None:
        self.programs, self.run_dir = programs, run_dir
        programs.keeps("srun", "PYTHONPATH", "PYTHONSAFEPATH", "SUBMITIT_EXECUTOR", "SETUP", code=srun)
        programs.keeps("scontrol")
        programs.runs("a python", f'test "$2" = launcher.after && printf "%s %s" "$3" "$4" > called\nexit {after}')
        container = {"image": STRANGE, "runtime": "pyxis", "python": "python of the image", "mounts": [STRANGE]}
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "executable", "a python")  # the batch script's own: srun alone knows of the container
            self.text = sbatch(run_dir, name=STRANGE, container=container, setup=["export SETUP='a b'"]).text()

    def run(self, **environment: str) -> int:
        """Run the script by bash and return the exit status."""
        Path("job.sh").write_text(self.text)
        subprocess.run(["bash", "-n", "job.sh"], check=True)
        done = subprocess.run(["bash", "job.sh"], env={**os.environ, **environment}, capture_output=True, text=True)
        assert (done.stdout, done.stderr) == ("", "")
        assert not list(Path().rglob("evil"))
        return done.returncode

    def after(self) -> str:
        """Return what launcher.after was called with."""
        file = Path("called")
        return file.read_text() if file.exists() else ""


@pytest.fixture
def strange(programs: Programs, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("PYTHONPATH", raising=False)
    return Path.cwd() / STRANGE


def test_every_path_and_name_is_one_word_of_srun(programs: Programs, strange: Path) -> None:
    script = Script(programs, strange)
    assert script.run() == 0
    [(words, environment)] = programs.given("srun")
    assert words == [
        *("--unbuffered", "--output", f"{strange}/launch/submitit/%j_%t_log.out"),
        *("--cpus-per-task=64", "--kill-on-bad-exit=0", "--export=ALL"),
        *(f"--container-image={STRANGE}", f"--container-mounts={STRANGE}"),
        *("python of the image", "-u", "-m", "submitit.core._submit", f"{strange}/launch/submitit"),
    ]
    assert environment == {
        "PYTHONPATH": f"{strange}/launch/code/c0de",
        "PYTHONSAFEPATH": "1",
        "SUBMITIT_EXECUTOR": "slurm",
        "SETUP": "a b",
    }
    assert not script.after() and not programs.given("scontrol")


def test_apptainer_gets_the_image_its_folders_and_the_jobs_code(programs: Programs, strange: Path) -> None:
    programs.runs("srun", 'while [ "${1#-}" != "$1" ]; do [ "$1" = --output ] && shift; shift; done; exec "$@"')
    programs.keeps("apptainer", "PYTHONPATH", "PYTHONSAFEPATH")
    container = {"image": STRANGE, "mounts": ["/data", "/a b:/c"], "python": "/opt/python 3"}
    Path("job.sh").write_text(sbatch(strange, container=container).text())
    subprocess.run(["bash", "job.sh"], check=True)
    [(words, environment)] = programs.given("apptainer")
    python = ["/opt/python 3", "-u", "-m", "submitit.core._submit", f"{strange}/launch/submitit"]
    assert words == ["exec", "--nv", "--bind=/data", "--bind=/a b:/c", STRANGE, *python]
    assert environment == {"PYTHONPATH": f"{strange}/launch/code/c0de", "PYTHONSAFEPATH": "1"}
    assert not list(Path().rglob("evil"))


def test_the_users_own_path_comes_behind(programs: Programs, strange: Path) -> None:
    Script(programs, strange).run(PYTHONPATH="/a b:/c")
    [(_, environment)] = programs.given("srun")
    assert environment["PYTHONPATH"] == f"{strange}/launch/code/c0de:/a b:/c"


@pytest.mark.parametrize(("srun", "after"), [(0, 0), (2, 0), (1, 1), (1, 0), (143, 0)])
def test_when_srun_has_failed_the_script_sees_to_the_job(
    programs: Programs, strange: Path, srun: int, after: int
) -> None:
    script = Script(programs, strange, srun, after)
    assert script.run() == srun
    assert script.after() == (f"{strange} {srun}" if srun not in (0, 2) else "")


# The command.


def test_a_dry_run_prints_all_and_writes_nothing(programs: Programs, capsys: Said) -> None:
    assert main(["submit", *SMALL, "optim.lr=0.02", "--dry-run", "--nodes", "2"]) == 0
    out, _ = capsys.readouterr()
    text, _, config = out.partition("\n# the config, ")
    run_dir = Path("runs/digits").absolute()
    assert parameters(text) | {"nodes": "2", "job-name": "digits", "comment": str(run_dir)} == parameters(text)
    assert parameters(text)["chdir"] == f"{run_dir}/launch/code/{snapshot.digest()}"
    assert config.startswith(f"{run_dir}/launch/config.yaml\nrun:\n  name: digits\n  dir: {run_dir}\n")
    assert "lr: 0.02\n" in config
    assert not list(Path().iterdir()) and not list(programs.sent.iterdir())


def test_without_slurm_it_is_one_line_and_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Said
) -> None:
    site.read.cache_clear()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["submit", *SMALL]) == 2
    out, err = capsys.readouterr()
    errors = [line for line in err.splitlines() if not line.startswith(("note: ", "warning: "))]
    assert errors == ["error: scontrol is not installed here; log in to a node of the cluster, or use --local"]
    assert not out and not list(tmp_path.iterdir())
    assert main(["submit", *SMALL, "--dry-run"]) == 2  # the text all the same
    assert capsys.readouterr().out.startswith("#!/bin/bash\n")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--local", "--after", "12"], "--after = 12: --local starts at once and waits for nothing; drop one of them"),
        (["--after", "last"], "--after = last: is neither a run that was submitted, nor the name of one in runs/, nor"),
        (["--after", "12,13"], "--after = 12,13: is neither a run"),
        (["--after", "12?afterany:13"], "--after = 12?afterany:13: is neither a run"),
        (["--after", "any:"], "--after = : is neither a run"),
        (["--job-name", "two\nlines"], "--job-name = two lines: must be one printable line of at most 200 characters"),
        (["--job-name", "x\n#SBATCH --uid=0"], "--job-name = x #SBATCH --uid=0: must be one printable line"),
        (["--job-name", "bell\a"], "--job-name = bell\\x07: must be one printable line"),
        (["--job-name", " "], "--job-name = : must be one printable line"),
        (["--job-name", "n" * 201], f"--job-name = {'n' * 77}...: must be one printable line"),
        (["--partition", "a b"], "partition = a b: must be one word without quotes"),
        (["--nodes", "0"], "submit: argument --nodes: must be a whole number above 0"),
        (["--afte", "12"], "submit: unrecognized arguments: --afte"),
        (["run.dir=bell\a"], "run.dir = "),
        (["run.dir=a\\b"], "run.dir = "),  # sbatch drops a backslash, and looks for another folder
        (["run.dir=at 12:30"], "run.dir = "),  # Python would look for the code at two places
    ],
)
def test_mistakes_are_one_line(programs: Programs, capsys: Said, words: list[str], line: str) -> None:
    assert main(["submit", *SMALL, *words]) == 2
    out, err = capsys.readouterr()
    [said] = [one for one in err.splitlines() if not one.startswith(("note: ", "warning: "))]
    assert said.removeprefix("launcher: ").removeprefix("error: ").startswith(line), said
    assert not out and not list(Path().iterdir()) and not list(programs.sent.iterdir())


def test_options_and_overrides_stand_anywhere(programs: Programs, capsys: Said) -> None:
    lines = (
        "submit digits optim.lr=0.02 run.name=a --nodes 2 --gpus-per-node 2 --cpus-per-gpu 1 --dry-run",
        "submit --nodes=2 optim.lr=0.02 --gpus-per-node 2 digits --cpus-per-gpu 1 run.name=a --dry-run",
        "submit --dry-run --cpus-per-gpu=1 run.name=a --nodes 2 optim.lr=0.02 --gpus-per-node=2 digits",
    )
    outputs = set()
    for line in lines:
        assert main(line.split()) == 0
        outputs.add(capsys.readouterr().out)
    assert len(outputs) == 1
    assert "#SBATCH --nodes=2" in outputs.pop()


def test_paths_are_whole_in_the_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["data.source=imagefolder", "data.root=images/a", "run.init_from=b.pt", "run.dir=./~c/../d"]
    config = sending.absolute(configs.load(None, words), staged=False)
    assert config.data.root == str(tmp_path / "images/a")
    assert config.run.init_from == str(tmp_path / "b.pt")
    assert config.run.dir == str(tmp_path / "~c/../d")
    assert config.model_copy(update={"data": None, "run": None}) == configs.load(None, words).model_copy(
        update={"data": None, "run": None}
    )
    staged = sending.absolute(configs.load(None, words), staged=True)
    assert staged.data.root == "images/a"
    assert sending.absolute(configs.load(None, []), staged=False).run.dir == str(tmp_path / "runs/digits")


# What is sent.


def test_what_lies_in_the_run_directory(programs: Programs, capsys: Said, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "hush" * 10)
    old_umask = os.umask(0o002)  # as of a group that shares its files
    try:
        assert main(["submit", *SMALL, "--job-name", "it's", "optim.lr=0.02"]) == 0
    finally:
        os.umask(old_umask)
    launch = Launch(Path("runs/digits").absolute())
    assert f"job: 12\nrun directory: {launch.run_dir}\n" in capsys.readouterr().out
    sent = launch.submission()
    assert sent is not None
    assert (sent.job, sent.name, sent.nodes, sent.ranks, sent.executor) == ("12", "it's", 1, 2, "slurm")
    assert launch.config() == load(launch.run_dir, "optim.lr=0.02")
    assert re.fullmatch(r"[\w-]+", (launch.run_dir / "wandb" / "id").read_text())
    [script] = programs.sent.iterdir()
    code = launch.folder / "code" / snapshot.digest()
    assert parameters(script.read_text())["chdir"] == str(code)
    assert (code / "moco_dist" / "train" / "loop.py").is_file() and (code / "REVISION").is_file()
    private = [launch.run_dir, launch.folder, launch.logs, launch.submitit, code.parent]
    assert {folder.stat().st_mode & 0o777 for folder in private} == {0o700}
    left = " ".join(sorted(file.name for file in launch.folder.iterdir()))
    assert left == "code config.yaml diff.patch job.json logs packages.txt revision.txt submitit"
    files = [file for file in Path().rglob("*") if file.is_file()]
    assert len(files) > 50 and not [file for file in files if b"hushhush" in file.read_bytes()]
    pickled = DelayedSubmission.load(launch.submitit / "12_submitted.pkl")
    assert isinstance(pickled.function, Task)
    assert pickled.function.run_dir == str(launch.run_dir)
    assert pickled.function.submission.code == code.name


def test_a_later_edit_does_not_show_in_what_was_sent(programs: Programs, monkeypatch: pytest.MonkeyPatch) -> None:
    config = load(Path("run"))
    first = sending.send(config, Submission(profile=Profile(gpus_per_node=2)))
    files = snapshot._files()
    edited = Path("edited.py").absolute()
    edited.write_text("raise SystemExit(3)")
    monkeypatch.setattr(snapshot, "_files", lambda: files | {"moco_dist/train/loop.py": edited})
    second = sending.send(config, Submission(profile=Profile(gpus_per_node=2)))
    folder = Launch(Path("run")).folder / "code"
    assert (folder / first.code / "moco_dist/train/loop.py").read_text() != "raise SystemExit(3)"
    assert (folder / second.code / "moco_dist/train/loop.py").read_text() == "raise SystemExit(3)"
    chdirs = [parameters((programs.sent / f"{job}.sh").read_text())["chdir"] for job in (12, 13)]
    assert [Path(folder).name for folder in chdirs] == [first.code, second.code]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("user_error", ("stopped", 7, "sent again")),
        ("diverged", ("stopped", 7, "sent again")),
        ("crashed", ("stopped", 7, "sent again")),
        ("running", ("stopped", 7, "sent again")),
        ("done", ("done", 7, "said so")),
        (None, (None, 0, "")),
    ],
)
def test_an_old_verdict_does_not_end_the_new_job(
    programs: Programs, before: status.State | None, after: tuple[status.State, int, str]
) -> None:
    run_dir = Path("run")
    run_dir.mkdir(mode=0o700)
    if before:
        status.write(run_dir, before, 7, "said so")
    sending.send(load(run_dir), Submission())
    assert status.read(run_dir) == Status(*after)


def test_the_id_at_wandb_stays_the_same(programs: Programs) -> None:
    config = load(Path("run"))
    ids = set()
    for _ in range(2):
        sending.send(config, Submission())
        ids.add(Path("run/wandb/id").read_text())
    assert len(ids) == 1
    sending.send(load(Path("other"), "track.wandb=disabled"), Submission())
    assert not Path("other/wandb").exists()


def test_a_second_submission_at_once_is_refused(programs: Programs) -> None:
    config = load(Path("run"))
    with preparing.held(Launch(config.run_dir)), pytest.raises(UserError, match="is writing to it; wait for it"):
        sending.send(config, Submission())
    assert not list(programs.sent.iterdir())
    sending.send(config, Submission())  # the first has let go


def test_a_job_that_trains_keeps_others_out(programs: Programs, capsys: Said) -> None:
    Path("runs/digits").mkdir(parents=True, mode=0o700)
    lease = Lease(Path("runs/digits"))
    assert main(["submit", *SMALL]) == 2
    lease.release()
    assert "is writing to it; wait for it" in capsys.readouterr().err
    assert not list(programs.sent.iterdir())


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a folder away")
def test_a_run_directory_of_another_user_is_left_alone(programs: Programs, capsys: Said) -> None:
    run_dir = Path("runs/digits")
    run_dir.mkdir(parents=True, mode=0o700)
    os.chown(run_dir, 12345, -1)
    assert main(["submit", *SMALL]) == 2
    assert ": belongs to another user; choose" in capsys.readouterr().err
    with pytest.raises(UserError, match="belongs to another user"):  # one that came between the check and the sending
        sending.send(load(run_dir), Submission())
    assert not list(run_dir.iterdir()) and not list(programs.sent.iterdir())


def test_a_run_directory_that_others_may_write_to_is_left_alone(programs: Programs) -> None:
    run_dir = Path("run")
    run_dir.mkdir()
    run_dir.chmod(0o775)
    with pytest.raises(UserError, match=r"run\.dir = .*run: others may write to it; chmod go-w"):
        sending.send(load(run_dir), Submission())
    assert not list(run_dir.iterdir())


def test_a_folder_that_cannot_be_made_is_one_line(programs: Programs) -> None:
    Path("file").touch()
    with pytest.raises(UserError, match=r"run\.dir = file/run: cannot be written: Not a directory; choose another"):
        sending.send(load(Path("file/run")), Submission())


def test_a_job_that_sbatch_refuses(programs: Programs, capsys: Said) -> None:
    refusal = "sbatch: error: Batch job submission failed: Invalid account or account/partition combination specified"
    programs.runs("sbatch", f"echo sbatch: a hint >&2\necho {shlex.quote(refusal)} >&2\nexit 1")
    assert main(["submit", *SMALL]) == 1
    out, err = capsys.readouterr()
    lines = [line for line in err.splitlines() if not line.startswith(("note: ", "warning: "))]
    assert lines == [f"launcher: {refusal}"]
    assert not out
    assert not list(Path().iterdir())
    launch = Launch(Path("runs/digits"))
    programs.runs("sbatch", "echo Submitted batch job 77")
    assert main(["submit", *SMALL]) == 0
    assert (sent := launch.submission()) and sent.job == "77"


def test_a_refused_job_leaves_a_run_as_it_was(programs: Programs, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is sbatch that refuses it, or the record cannot be written: then the job is cancelled."""
    assert main(["submit", *SMALL, "run.name=a"]) == 0
    status.write(Path("runs/a"), "crashed", 7, "out of memory")

    def contents() -> dict[Path, tuple[bytes, int]]:
        files = [path for path in Path("runs").rglob("*") if path.is_file()]
        return {file: (file.read_bytes(), file.stat().st_mtime_ns) for file in files}

    before = contents()
    edited = Path("edited.py").absolute()
    edited.write_text("")
    code = snapshot._files()
    monkeypatch.setattr(snapshot, "_files", lambda: code | {"moco_dist/new.py": edited})
    programs.keeps("scancel")
    for sbatch_says, code_expected in (("echo error: no >&2; exit 1", 1), ("echo Submitted batch job 13", 2)):
        programs.runs("sbatch", sbatch_says)
        assert main(["submit", *SMALL, "run.name=a", "optim.epochs=3"]) == code_expected
        assert contents() == before

        def full_disk(self: Launch, submission: Submission) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(Launch, "write", full_disk)
    assert [words for words, _ in programs.given("scancel")] == [["--quiet", "13"]]


def test_what_sbatch_says_is_understood_or_told(programs: Programs) -> None:
    programs.runs("sbatch", "echo 'sbatch: lua: hello'\necho Submitted batch job 9 on cluster x")
    assert sending.send(load(Path("run")), Submission()).job == "9"
    programs.runs("sbatch", "echo hello")
    with pytest.raises(slurm.Refused, match='Could not make sense of sbatch output "hello"'):
        sending.send(load(Path("run")), Submission())


def test_several_trainings_are_an_array(programs: Programs, tmp_path: Path) -> None:
    launches = [Launch(tmp_path / str(n)) for n in range(3)]
    profile = Profile(gpus_per_node=2, constraint="it's")
    array = Sbatch(Launch(tmp_path), Submission(name="s", profile=profile), parallel=2)
    Launch(tmp_path).submitit.mkdir(parents=True)
    sent = [Task(str(launch.run_dir), Submission()) for launch in launches]
    programs.keeps("srun")
    assert array.send(sent) == ["12_0", "12_1", "12_2"]
    text = (programs.sent / "12.sh").read_text()
    directives = parameters(text)
    assert (directives["array"], directives["constraint"], directives["comment"]) == ("0-2%2", "it's", str(tmp_path))
    assert directives["output"] == f"{tmp_path}/launch/submitit/%A_%a_0_log.out"
    assert f'-m launcher.after {tmp_path} "$code"' in text
    pickles = [DelayedSubmission.load(Launch(tmp_path).submitit / f"12_{n}_submitted.pkl") for n in range(3)]
    assert [pickled.function for pickled in pickles] == sent


def test_sent_again_as_it_was_sent_last(programs: Programs, capsys: Said) -> None:
    assert main(["submit", *SMALL, "--job-name", "first", "--max-restarts", "0", "optim.lr=0.02"]) == 0
    launch = Launch(Path("runs/digits").absolute())
    before = launch.submission()
    status.write(launch.run_dir, "crashed", 7, "said so")
    after = sending.send_again(launch)
    assert before and after == before.model_copy(update={"job": "13", "submitted": after.submitted})
    assert after == launch.submission()
    assert launch.config().optim.lr == 0.02
    first, second = ((programs.sent / f"{job}.sh").read_text() for job in (12, 13))
    assert first == second
    assert status.read(launch.run_dir).state == "stopped"
    with pytest.raises(UserError, match="was never sent; send it: python -m launcher submit"):
        sending.send_again(Launch(Path("runs/other")))


def test_an_archive_is_named_in_whole_and_the_root_lies_in_it(
    programs: Programs, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("in").mkdir()
    subprocess.run(["tar", "cf", "data.tar", "in"], check=True)
    words = ["data.source=imagefolder", "data.root=in", "run.name=a"]
    monkeypatch.setenv("ARCHIVES", str(Path.cwd()))
    assert main(["submit", *SMALL, *words, "--stage", "$ARCHIVES/data.tar"]) == 0
    launch = Launch(Path("runs/a").absolute())
    sent = launch.submission()
    assert sent and sent.stage == str(Path("data.tar").absolute())
    pickled = DelayedSubmission.load(launch.submitit / "12_submitted.pkl")
    assert isinstance(pickled.function, Task)
    assert pickled.function.data_root == launch.config().data.root == "in"


@pytest.mark.parametrize(
    ("environment", "overrides", "expected"),
    [
        ({}, [], "offline; send it with: wandb sync 'a b/wandb'/offline-run-*"),
        ({}, ["track.wandb=online"], "https://wandb.ai, project moco-dist, run ID"),
        ({"WANDB_ENTITY": "us"}, ["track.wandb=online"], "https://wandb.ai/us/moco-dist/runs/ID"),
        (
            {"WANDB_ENTITY": "us", "WANDB_BASE_URL": "https://api.wandb.ai"},
            ["track.wandb=online"],
            "https://wandb.ai/us/",
        ),
        (
            {"WANDB_BASE_URL": "http://here:8080/"},
            ["track.wandb=online"],
            "http://here:8080, project moco-dist, run ID",
        ),
    ],
)
def test_where_the_run_is_found_at_wandb(
    programs: Programs,
    monkeypatch: pytest.MonkeyPatch,
    environment: dict[str, str],
    overrides: list[str],
    expected: str,
) -> None:
    for name in ("WANDB_ENTITY", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    place = submit._wandb_place(Launch(Path("a b")), load(Path("a b"), *overrides))
    assert place.startswith(expected.replace("ID", Path("a b/wandb/id").read_text()))


def test_job_json_reads_back(programs: Programs) -> None:
    profile = Profile(**FULL, container={"image": "x.sif", "mounts": ["/a b"]})
    sent = sending.send(load(Path("run")), Submission(profile=profile, nodes=4))
    assert Launch(Path("run")).submission() == sent
    assert json.loads(Launch(Path("run")).job_file.read_text())["profile"]["gpu_type"] == "a100"


def test_without_submitit_only_what_sends_a_job_ends_and_in_one_line(programs: Programs, tmp_path: Path) -> None:
    """All commands in one process, where wandb is missing too; an ended run is there, and a sweep's file."""
    make_run(Path("runs/old"), state="crashed", step=3, reason="out of memory", executor="local")
    Path("sweep.yaml").write_text("grid: {optim.lr: [0.03, 0.06]}\n")
    job = ["--gpus-per-node=1", "track.wandb=disabled"]
    helps = [["--help"], *([name, "--help"] for name in ("submit", "requeue", "sweep"))]
    looks = [["status"], ["preflight", *job], ["sweep", "sweep.yaml", "--dry-run", *job]]
    sends = [["submit", *job], ["submit", "--local", *job], ["submit", "--dry-run", *job]]
    sends += [["sweep", "sweep.yaml", *job], ["sweep", "again", "runs"], ["requeue", "runs/old"]]
    script = (
        "import contextlib, io, json, sys\n"
        "from launcher.__main__ import main\n"
        "for words in json.loads(sys.argv[1]):\n"
        "    out, err = io.StringIO(), io.StringIO()\n"
        "    try:\n"
        "        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):\n"
        "            code = main(words)\n"
        "    except SystemExit as end:\n"
        "        code = end.code\n"
        "    print(json.dumps([code, out.getvalue(), err.getvalue()]))\n"
    )
    environment = {**os.environ, **without(tmp_path / "bare", "wandb", "submitit")}
    command = [sys.executable, "-c", script, json.dumps([*helps, *looks, *sends])]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert done.stderr == ""
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert [code for code, _, _ in answers] == [0] * len(helps + looks) + [2] * len(sends)
    _, preflight_says, dry_run_says = (out for _, out, _ in answers[len(helps) :][: len(looks)])
    line = "submitit is not installed here, and it is what sends jobs; install it (pip install submitit)\n"
    assert "warning: submitit is not installed here, and submit and sweep need it; install it" in preflight_says
    assert dry_run_says == "00_lr=0.03\n01_lr=0.06\n"
    for words, (_, out, err) in zip(sends, answers[-len(sends) :], strict=True):
        assert (out, err) == ("", f"launcher: {'old: ' if words[0] == 'requeue' else ''}{line}"), words
    assert not list(programs.sent.iterdir()) and sorted(path.name for path in Path("runs").iterdir()) == ["old"]
