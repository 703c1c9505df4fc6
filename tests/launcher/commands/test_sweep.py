"""`sweep`: the members of a file, and their job array. No SLURM is asked."""

from __future__ import annotations

import json
import os
import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
from submitit.core.utils import DelayedSubmission

from launcher import progress, snapshot, sweeps
from launcher.__main__ import main
from launcher.job.task import Task
from launcher.record import Launch
from launcher.views import ends, follow
from moco_dist import config as configs
from moco_dist.config import Config
from moco_dist.errors import UserError
from moco_dist.run import status
from tests.launcher.made import MadeUp, earlier, knn_row, make_run, replace_sleep, train_row
from tests.launcher.programs import Programs

Said = pytest.CaptureFixture[str]
SMALL = ("--gpus-per-node", "2", "--cpus-per-gpu", "1")

GRID = """\
config: digits
grid:
  moco.temperature: [0.1, 0.2]
  optim.lr: [0.03, 0.06]
"""
CASES = """\
name: both
grid: {optim.lr: [0.03, 0.06]}
cases:
  - {moco.symmetric: true, optim.epochs: 10}
  - {moco.symmetric: false, optim.epochs: 20}
"""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Programs:
    programs = Programs(tmp_path / "slurm", monkeypatch)
    programs.keeps("srun")
    return programs


def write(text: str, name: str = "temperatures.yaml") -> Path:
    Path(name).write_text(text)
    return Path(name)


def loaded(file: sweeps.Sweep, overrides: Sequence[str] = ()) -> list[Config]:
    """Configs of a sweep's new members."""
    return [member.config for member in sweeps.plan(file, overrides, staged=False).new]


def mistake(text: str) -> str:
    """Return what is said of a file, in one line."""
    with pytest.raises(UserError) as caught:
        loaded(sweeps.read(write(text)))
    assert str(caught.value).isprintable()
    return str(caught.value)


# The members.


def test_a_grid_is_every_combination_in_order() -> None:
    members = loaded(sweeps.read(write(GRID)))
    assert [(run.moco.temperature, run.optim.lr) for run in members] == [
        (0.1, 0.03),
        (0.1, 0.06),
        (0.2, 0.03),
        (0.2, 0.06),
    ]
    assert [run.run.name for run in members] == [
        "00_temperature=0.1_lr=0.03",
        "01_temperature=0.1_lr=0.06",
        "02_temperature=0.2_lr=0.03",
        "03_temperature=0.2_lr=0.06",
    ]
    assert {run.track.group for run in members} == {"temperatures"}
    assert [run.run_dir for run in members] == [Path.cwd() / "runs/temperatures" / run.run.name for run in members]


def test_each_case_goes_with_every_combination() -> None:
    members = loaded(sweeps.read(write(CASES)))
    values = [(run.moco.symmetric, run.optim.epochs, run.optim.lr) for run in members]
    assert values == [(True, 10, 0.03), (True, 10, 0.06), (False, 20, 0.03), (False, 20, 0.06)]
    assert {run.track.group for run in members} == {"both"}
    assert members[0].run_dir.parent == Path.cwd() / "runs/both"


def test_cases_alone() -> None:
    file = write("cases: [{optim.lr: 1}, {model.width: 8}]")
    members = loaded(sweeps.read(file))
    assert [run.run.name for run in members] == ["00_lr=1", "01_width=8"]
    assert [run.run.name for run in loaded(sweeps.read(write("cases: [{}]")))] == ["00"]


def test_members_share_the_overrides_but_not_a_place() -> None:
    words = ["optim.epochs=3", "data.root=a"]
    members = loaded(sweeps.read(write(GRID)), words)
    assert {run.optim.epochs for run in members} == {3}
    assert {run.optim.lr for run in members} == {0.03, 0.06}
    assert {run.data.root for run in members} == {str(Path.cwd() / "a")}
    assert {run.run_dir.parent for run in members} == {Path.cwd() / "runs/temperatures"}
    assert {run.track.group for run in members} == {"temperatures"}


@pytest.mark.parametrize(
    ("number", "values", "name"),
    [
        (3, {"moco.temperature": 0.1, "optim.lr": 1e-5}, "03_temperature=0.1_lr=1e-05"),
        (123, {"moco.symmetric": True, "optim.steps": None}, "123_symmetric=true_steps=null"),
        (0, {"optim.milestones": [1, 2]}, "00_milestones=-1-2-"),
        (0, {"run.init_from": "../a b/c.pt"}, "00_init_from=..-a-b-c.pt"),
        (0, {"track.project": "x" * 300}, "00_project=" + "x" * 77 + "..."),
        (0, {f"a.{'k' * 30}{n}": n for n in range(9)}, "00_" + "_".join(f"{'k' * 30}{n}={n}" for n in range(9))[:97]),
    ],
)
def test_names_tell_the_values(number: int, values: sweeps.Values, name: str) -> None:
    assert sweeps.member_name(number, values) == name
    assert configs.load(None, [f"run.name={name}"]).run.name == name


@pytest.mark.parametrize("value", ["010", "1e3", "yes", "null", "a: b", 'it\'s "two"\nlines', "\U0001f600", "[1", ""])
def test_texts_are_kept_as_they_are(value: str) -> None:
    [run] = loaded(sweeps.Sweep(cases=({"track.project": value},)))
    assert run.track.project == value


def test_a_day_is_a_text() -> None:
    [run] = loaded(sweeps.read(write("cases: [{track.project: 2024-11-24}]")))
    assert run.track.project == "2024-11-24"


def test_values_are_text_and_plain_numbers() -> None:
    file = write("grid:\n  track.project: [0123, 1.10, yes, 2024-11-24]\n  run.seed: [7, 1_000]\n")
    members = loaded(sweeps.read(file))
    texts = ["0123", "1.10", "yes", "2024-11-24"]
    assert [(run.track.project, run.run.seed) for run in members] == [
        (text, seed) for text in texts for seed in (7, 1000)
    ]
    assert members[2].run.name == "02_project=1.10_seed=7"
    [run] = loaded(sweeps.read(write("cases: [{optim.steps: null, optim.milestones: 1,\n data.crop_scale: [0.1, 1]}]")))
    assert (run.optim.steps, run.optim.milestones, run.data.crop_scale) == (None, (1,), (0.1, 1))
    assert mistake("grid: {run.seed: [1, 010]}").startswith("member 01_seed=010: run.seed = 010: must be a plain")
    assert mistake("grid: {optim.epochs: [1:30]}").startswith("member 00_epochs=1-30: optim.epochs = 1:30: must be a")
    assert "lr stands twice, in line 1 and in line 2" in mistake("grid: {optim.lr: [1],\n optim.lr: [2]}")


def test_paths_of_members_are_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HERE", str(tmp_path))
    (tmp_path / "base.yaml").write_text("model: {width: 16}\n")
    [run] = loaded(sweeps.read(write("config: ${HERE}/base.yaml\ncases: [{run.init_from: $HERE/a.pt}]")))
    assert (run.model.width, run.run.init_from) == (16, f"{tmp_path}/a.pt")
    line = mistake("cases: [{data.root: $NOT_SET_HERE/a}]")
    assert line.startswith("member 00_root=-NOT_SET_HERE-a: data.root = $NOT_SET_HERE/a: the variable NOT_SET_HERE is")


@pytest.mark.parametrize("key", ["run.dir", "run.name", "track.group"])
def test_no_value_moves_a_member(key: str) -> None:
    for text in (f"cases: [{{}}, {{{key}: x}}]", f"grid: {{{key}: [x, y]}}"):  # they would be one curve twice
        assert mistake(text).endswith(f": sets {key}, which a sweep sets itself for each member; drop it")
    with pytest.raises(UserError, match=f"{key} = x: a sweep sets it itself for each member; drop it"):
        loaded(sweeps.read(write(GRID)), [f"{key}=x"])


def test_a_key_that_is_given_twice_is_refused() -> None:
    line = mistake("grid: {optim.lr: [1, 2]}\ncases: [{model.width: 8}, {optim.lr: 3}]")
    assert line == "sweep temperatures.yaml: optim.lr stands in the grid and in case 2; keep one of them"
    for text in (GRID, "cases: [{}, {optim.lr: 3}]"):
        with pytest.raises(UserError, match=r"optim\.lr = 0\.5: the sweep file varies it; drop it here, or there"):
            loaded(sweeps.read(write(text)), ["optim.epochs=3", "optim.lr=0.5"])


def test_equal_members_are_one() -> None:
    default = configs.load(None).optim.lr
    text = f"cases: [{{}}, {{optim.lr: {default}}}, {{optim.lr: 0.5}}, {{optim.lr: 5.0e-1, run.seed: 0}}]"
    plan = sweeps.plan(sweeps.read(write(text)), [], staged=False)
    assert [member.config.run.name for member in plan.new] == ["00", "01_lr=0.5"]
    assert plan.repeated == ["00", "01_lr=0.5"]
    assert plan.new[1].values == {"optim.lr": 0.5, "run.seed": 0}
    apart = sweeps.plan(sweeps.read(write("grid: {track.project: [a, b, a]}")), [], staged=False)
    assert [member.config.track.project for member in apart.new] == ["a", "b"]


@pytest.mark.parametrize("name", ["2024-11-24", "007", "1e3", "no"])
def test_a_sweep_may_be_named_like_a_number_or_a_day(name: str) -> None:
    members = loaded(sweeps.read(write(GRID, f"{name}.yaml")))
    assert {(run.track.group, run.run_dir.parent.name) for run in members} == {(name, name)}


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", "sweep temperatures.yaml: has no members; add grid: {optim.lr: [0.03, 0.06]} or cases"),
        ("grid: {}\ncases: []", "sweep temperatures.yaml: has no members; add grid"),
        ("grid: {optim.lr: []}", "grid.optim.lr = []: must be a list of values; write optim.lr: [0.03, 0.06]"),
        ("grid: {optim.lr: 0.1}", "grid.optim.lr = 0.1: must be a list; "),
        ("gird: {optim.lr: [1]}", "gird.optim.lr: unknown key; keys are name, config, grid, cases"),
        ("name: ../x\ngrid: {optim.lr: [1]}", "name = ../x: must be a file name of letters, digits and _ . + = -; "),
        ("grid: {optim.lr: [1, fast]}", "member 01_lr=fast: optim.lr = fast: must be a number; "),
        ("cases: [{moco.bn_groups: 3}]", "member 00_bn_groups=3: optim.global_batch = 128: must be divisible by moco"),
        ("grid: {lr: [1]}", "member 00_lr=1: override lr=1: must be section.key=value; did you mean optim.lr?"),
        ("config: nowhere\ngrid: {optim.lr: [1]}", "member 00_lr=1: config nowhere: no such file; "),
        ("grid: [", "config temperatures.yaml: cannot be read as YAML"),
        (f"grid: {{optim.lr: {list(range(1, 1002))}}}", "sweep temperatures.yaml: has 1001 members, 1000 at most; "),
        ("cases: [{}, {}]\ngrid: {optim.lr: " + str([*range(1, 502)]) + "}", "sweep temperatures.yaml: has 1002 "),
        (
            f"grid: {{{', '.join(f'a.k{n}: {[0] * 10}' for n in range(30))}}}",
            f"sweep temperatures.yaml: has 1{'0' * 30} ",
        ),
    ],
)
def test_mistakes_are_one_line(text: str, line: str) -> None:
    assert mistake(text).startswith(line)


def test_a_thousand_members_are_allowed() -> None:
    assert len(sweeps.read(write(f"grid: {{run.seed: {list(range(1000))}}}")).points()) == 1000


def test_a_file_that_is_not_there() -> None:
    with pytest.raises(UserError, match=r"sweep nowhere\.yaml: no such file; give a YAML file with `grid` or `cases`"):
        sweeps.read(Path("nowhere.yaml"))


# The command.


def test_one_array_of_runs_like_any_other(programs: Programs, capsys: Said) -> None:
    write(GRID)
    assert main(["sweep", *SMALL, "temperatures.yaml", "optim.epochs=3", "--parallel", "3"]) == 0
    out, err = capsys.readouterr()
    assert sum("of memory a GPU" in line for line in err.splitlines()) == 1  # what holds for all is said once
    folder = Path.cwd() / "runs/temperatures"
    assert out == (
        f"job array: 12, 4 members, 3 at once\nfolder: {folder} (python -m launcher sweep status {folder})\n"
    )
    [script] = programs.sent.iterdir()
    lines = script.read_text().splitlines()
    code = folder / "launch/code" / snapshot.digest()
    assert {"#SBATCH --array=0-3%3", f"#SBATCH --chdir={code}", "#SBATCH --job-name=temperatures"} <= set(lines)
    assert f"#SBATCH --comment={folder}" in lines
    assert (code / "launcher/job/task.py").is_file()
    members = sorted(path for path in folder.iterdir() if path.name != "launch")
    assert [path.name[:2] for path in members] == ["00", "01", "02", "03"]
    for number, run_dir in enumerate(members):
        launch = Launch(run_dir)
        sent = launch.submission()
        assert sent and (sent.job, sent.sweep, sent.code) == (f"12_{number}", str(folder), code.name)
        assert launch.config().run_dir == run_dir and launch.config().optim.epochs == 3
        pickled = DelayedSubmission.load(folder / f"launch/submitit/12_{number}_submitted.pkl").function
        assert isinstance(pickled, Task) and pickled.run_dir == str(run_dir)
        assert run_dir.stat().st_mode & 0o777 == 0o700
        assert not (run_dir / "launch/code").exists()
    assert {path.stat().st_mode & 0o777 for path in (folder, folder / "launch", code.parent)} == {0o700}
    assert len({(path / "wandb/id").read_text() for path in members}) == 4


def test_a_sweep_of_one(programs: Programs) -> None:
    write("cases: [{optim.lr: 0.02}]")
    assert main(["sweep", *SMALL, "temperatures.yaml"]) == 0
    sent = Launch(Path("runs/temperatures/00_lr=0.02")).submission()
    assert sent and sent.job == "12"
    assert "--array" not in next(programs.sent.iterdir()).read_text()


def test_a_dry_run_writes_nothing(programs: Programs, capsys: Said) -> None:
    write(GRID)
    assert main(["sweep", *SMALL, "--dry-run", "temperatures.yaml"]) == 0
    assert capsys.readouterr().out.split()[::3] == ["00_temperature=0.1_lr=0.03", "03_temperature=0.2_lr=0.06"]
    assert [path.name for path in Path().iterdir()] == ["temperatures.yaml"]


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--parallel", "0", "s.yaml"], "--parallel = 0: must be 1 or more; use --parallel=8"),
        (
            ["--local", "s.yaml"],
            "--local: a sweep is a job array, which needs SLURM; send its members by submit --local",
        ),
        ([], "sweep: takes SWEEP.yaml, status DIR or again DIR [MEMBER ...]; see sweep --help"),
        (["status"], "sweep status: no such file"),
        (["status", "a", "b"], "sweep status: no such file"),
        (["status", "."], "DIR = .: holds no members of a sweep; give the folder that sweep has printed"),
        (["again", "."], "DIR = .: holds no members of a sweep"),
        (["s.yaml", "optim.lr=fast"], "member 00_width=16: optim.lr = fast: must be a number"),
        (["s.yaml", "--nodes", "0"], "sweep: argument --nodes: must be a whole number above 0"),
    ],
)
def test_wrong_words_are_one_line(programs: Programs, capsys: Said, words: list[str], line: str) -> None:
    write("grid: {model.width: [16, 32]}", "s.yaml")
    assert main(["sweep", *words]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith(f"launcher: {line}")
    assert not Path("runs").exists() and not list(programs.sent.iterdir())


def test_a_member_that_cannot_be_sent_stops_all_before_anything_is_written(programs: Programs, capsys: Said) -> None:
    write("grid: {optim.global_batch: [128, 129]}")
    assert main(["sweep", *SMALL, "temperatures.yaml", "moco.bn_groups=null"]) == 2
    err = capsys.readouterr().err
    assert "error: optim.global_batch = 129: must be divisible by the 2 ranks" in err
    assert err.endswith("launcher: member 01_global_batch=129: cannot be sent; mend the errors above\n")
    assert not Path("runs").exists() and not list(programs.sent.iterdir())


def test_a_value_more_sends_what_is_new_alone(programs: Programs, capsys: Said) -> None:
    write("grid: {optim.lr: [0.03, 0.06]}")
    assert main(["sweep", *SMALL, "temperatures.yaml"]) == 0
    members = {launch.run_dir.name: launch for launch in map(Launch, sorted(Path("runs/temperatures").iterdir()))}
    done, live = members["00_lr=0.03"], members["01_lr=0.06"]
    status.write(done.run_dir, "done", 9)
    programs.runs("squeue", f"echo '12_1|RUNNING|None|n1|1:00|{Path('runs/temperatures').absolute()}'")
    before = {launch: launch.job_file.read_bytes() for launch in (done, live)}
    write("grid: {optim.lr: [0.01, 6e-2, 0.03], model.width: [16, 32]}")  # 16 is what they had
    capsys.readouterr()
    assert main(["sweep", *SMALL, "temperatures.yaml", "track.log_every=7"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[:2] == ["01_lr=0.06: sent before, running", "00_lr=0.03: sent before, done"]
    assert out[2] == "job array: 13, 4 members, 4 at once"
    new = ["02_lr=0.01_width=16", "03_lr=0.01_width=32", "04_lr=6e-2_width=32", "05_lr=0.03_width=32"]
    folders = sorted(path.name for path in Path("runs/temperatures").iterdir())
    assert folders == ["00_lr=0.03", "01_lr=0.06", *new, "launch"]
    assert {launch: launch.job_file.read_bytes() for launch in before} == before
    assert (sent := Launch(Path("runs/temperatures", new[1])).submission())
    assert (sent.job, sent.values) == ("13_1", {"optim.lr": 0.01, "model.width": 32})
    programs.runs("sbatch", "exit 1")
    assert main(["sweep", *SMALL, "temperatures.yaml"]) == 0  # nothing is new: the others were never begun
    assert "02_lr=0.01_width=16: sent before, lost" in (out := capsys.readouterr().out)
    assert out.endswith(f"are sent again by: python -m launcher sweep again {Path('runs/temperatures').absolute()}\n")


def test_members_that_would_change_beside_their_values_are_refused(programs: Programs, capsys: Said) -> None:
    write("grid: {optim.lr: [0.03, 0.06]}")
    assert main(["sweep", *SMALL, "temperatures.yaml"]) == 0
    capsys.readouterr()
    assert main(["sweep", *SMALL, "temperatures.yaml", "optim.epochs=3"]) == 2
    rule = "00_lr=0.03 was sent with optim.epochs=80; give the sweep another name, or keep that value"
    assert capsys.readouterr().err == f"launcher: optim.epochs = 3: {rule}\n"
    assert len(list(programs.sent.iterdir())) == 1


def test_a_refused_array_leaves_nothing(programs: Programs) -> None:
    programs.runs("sbatch", "echo sbatch: error: no >&2; exit 1")
    write(GRID)
    assert main(["sweep", *SMALL, "temperatures.yaml"]) == 1
    assert not Path("runs").exists()
    programs.runs("sbatch", "echo Submitted batch job 12")
    assert main(["sweep", *SMALL, "temperatures.yaml"]) == 0
    before = sorted(Path("runs").rglob("*"))
    programs.runs("sbatch", "echo sbatch: error: no >&2; exit 1")
    write(GRID.replace("0.06", "0.06, 0.09"))
    assert main(["sweep", *SMALL, "temperatures.yaml"]) == 1
    assert sorted(Path("runs").rglob("*")) == before


def test_a_member_whose_job_is_refused_leaves_no_new_code(
    programs: Programs, monkeypatch: pytest.MonkeyPatch, capsys: Said
) -> None:
    write("cases: [{optim.lr: 0.02}]")
    assert main(["sweep", *SMALL, "temperatures.yaml"]) == 0
    member = Launch(Path("runs/temperatures/00_lr=0.02"))
    status.write(member.run_dir, "crashed", 9)
    member.add_start(job="12", restart=0, step=0, time=0, nodes=[])
    before = sorted(Path("runs").rglob("*"))
    monkeypatch.setattr(snapshot, "_files", lambda: {"launcher/new.py": Path("temperatures.yaml").absolute()})
    programs.runs("sbatch", "echo sbatch: error: no >&2; exit 1")
    assert main(["sweep", "again", "runs/temperatures"]) == 1
    assert "00_lr=0.02: sbatch: error: no" in capsys.readouterr().err
    assert sorted(Path("runs").rglob("*")) == before


def test_slurm_is_asked_as_often_for_many_members_as_for_one(
    programs: Programs, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = []
    for count in (1, 9):
        write(f"grid: {{run.seed: {list(range(count))}}}", f"s{count}.yaml")
        log = Path(f"asked{count}").absolute()
        programs.runs("squeue", f"echo x >> {log}")
        assert main(["sweep", *SMALL, f"s{count}.yaml"]) == 0
        counts.append(len(log.read_text().splitlines()))
    assert counts[0] == counts[1]


def test_how_far_it_has_come_is_printed(capsys: Said, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "_EVERY_SECONDS", 0.0)
    assert list(progress.counted("ab", "are done")) == ["a", "b"]
    assert capsys.readouterr().err == "0 of 2 are done\n1 of 2 are done\n"


@pytest.mark.parametrize(("states", "code"), [("dd", 0), ("ds", 75), ("us", 2), ("cu", 1)])
def test_waiting_for_all_members(programs: Programs, monkeypatch: pytest.MonkeyPatch, states: str, code: int) -> None:
    """The ranks are played by sbatch, which leaves what they would."""
    replace_sleep(monkeypatch, follow, lambda _: None)
    monkeypatch.setattr(ends, "_SURE_SECONDS", 0.0)
    words: dict[str, status.State] = {"d": "done", "s": "stopped", "u": "user_error", "c": "crashed"}
    write("grid: {optim.lr: [0.03, 0.06]}")
    follow_all = follow.follow

    def end_and_follow(launches: Sequence[Launch]) -> int:
        for launch, letter in zip(launches, states, strict=True):
            launch.add_start(job=launch.submission().job, restart=0, step=0, time=0, nodes=[])  # type: ignore[union-attr]
            earlier(launch.starts_file, 1)
            status.write(launch.run_dir, words[letter], 9)
        return follow_all(launches)

    monkeypatch.setattr("launcher.commands.sweep.follow", end_and_follow)
    assert main(["sweep", *SMALL, "temperatures.yaml", "--wait"]) == code


def test_a_sweep_waits_for_another_and_is_waited_for(programs: Programs, capsys: Said) -> None:
    write("grid: {optim.lr: [0.03, 0.06]}", "first.yaml")
    assert main(["sweep", *SMALL, "first.yaml"]) == 0
    folder = Path("runs/first").absolute()
    lines = [f"12_{n}|PENDING|None||1:00|{folder}" for n in (0, 1)]
    programs.runs("squeue", f"printf '%s\\n' {shlex.join(lines)}")
    write(GRID, "second.yaml")
    for after, expected in (("12", "afterok:12_0:12_1"), ("any:first", "afterany:12_0:12_1"), ("12_1", "afterok:12_1")):
        words = ["sweep", *SMALL, "second.yaml", f"track.project={after.replace(':', '')}", "--after", after]
        shutil.rmtree("runs/second", ignore_errors=True)
        assert main(words) == 0, capsys.readouterr().err
        script = max(programs.sent.iterdir(), key=lambda path: int(path.stem)).read_text()
        assert f"#SBATCH --dependency={expected}\n" in script
    capsys.readouterr()
    assert main(["sweep", "again", "runs/first", "--after", "12"]) == 2
    assert capsys.readouterr().err == "launcher: --after = 12: goes with SWEEP.yaml alone; drop it\n"
    assert main(["sweep", "again", "runs/first", "--parallel", "2"]) == 2
    assert capsys.readouterr().err == "launcher: --parallel = 2: goes with SWEEP.yaml alone; drop it\n"


def test_an_arrays_id_names_its_members(monkeypatch: pytest.MonkeyPatch, capsys: Said) -> None:
    made_up = MadeUp(monkeypatch)
    folder = Path("runs/s").absolute()
    for number in range(3):
        make_run(folder / f"{number:02}", job=f"12_{number}" if number else "13", sweep=str(folder))
        made_up.queues(f"12_{number}" if number else "13", "PENDING", folder)
    assert main(["status", "12", "--json"]) == 0
    assert sorted(row["job"] for row in json.loads(capsys.readouterr().out)) == ["12_1", "12_2"]
    assert main(["logs", "12"]) == 2
    rule = "is a sweep of 2 runs: 01, 02; name the directory of one"
    assert capsys.readouterr().err == f"launcher: RUN = 12: {rule}\n"
    assert main(["logs", "s"]) == 2 and "is a sweep of 3 runs" in capsys.readouterr().err
    monkeypatch.setattr("launcher.commands.cancel._LEAVE_SECONDS", 0.0)
    main(["cancel", "12"])
    assert [line for line in made_up.asked if line.startswith("scancel")] == [
        "scancel --quiet 12_1",
        "scancel --quiet 12_2",
    ]


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a folder away")
@pytest.mark.parametrize("place", ["temperatures", "temperatures/launch"])
def test_a_folder_of_another_user_is_refused(programs: Programs, capsys: Said, place: str) -> None:
    write(GRID)
    folder = Path("runs", place)
    folder.mkdir(parents=True)
    os.chown(folder, 12345, -1)
    assert main(["sweep", *SMALL, "temperatures.yaml"]) == 2
    assert ": belongs to another user; choose" in capsys.readouterr().err.splitlines()[-1]
    assert not list(programs.sent.iterdir())


def test_members_that_failed_are_sent_again_each_as_a_job_of_its_own(programs: Programs, capsys: Said) -> None:
    write("grid: {run.seed: [0, 1, 2]}")
    assert main(["sweep", *SMALL, "temperatures.yaml"]) == 0
    members = [Launch(Path(f"runs/temperatures/{n:02}_seed={n}").absolute()) for n in range(3)]
    states: tuple[status.State, ...] = ("done", "crashed", "diverged")
    for launch, state in zip(members, states, strict=True):
        status.write(launch.run_dir, state, 9)
        launch.add_start(job=launch.submission().job, restart=0, step=0, time=0, nodes=[])  # type: ignore[union-attr]
    capsys.readouterr()
    assert main(["sweep", "again", "runs/temperatures"]) == 0
    assert capsys.readouterr().out == "01_seed=1: job 13\n02_seed=2: job 14\n"
    assert [launch.submission().job for launch in members] == ["12_0", "13", "14"]  # type: ignore[union-attr]
    text = (programs.sent / "13.sh").read_text()
    assert f"#SBATCH --comment={members[1].run_dir}\n" in text and "--array" not in text
    chdir = shlex.split(next(line for line in text.splitlines() if "--chdir" in line))[1].partition("=")[2]
    assert Path(chdir).parent == Path.cwd() / "runs/temperatures/launch/code" and Path(chdir).is_dir()
    assert main(["sweep", "again", "runs/temperatures", "00_seed=0"]) == 0  # asked for by name
    assert capsys.readouterr().out == "00_seed=0: job 15\n"
    assert main(["sweep", "again", "runs/temperatures", "03_seed=3"]) == 2
    assert "03_seed=3: is none of runs/temperatures; there are 00_seed=0, 01" in capsys.readouterr().err


def test_a_member_that_is_refused_does_not_keep_the_others(programs: Programs, capsys: Said) -> None:
    write("grid: {run.seed: [0, 1, 2]}")
    assert main(["sweep", *SMALL, "temperatures.yaml"]) == 0
    members = [Launch(Path(f"runs/temperatures/{n:02}_seed={n}").absolute()) for n in range(3)]
    for launch in members:
        status.write(launch.run_dir, "crashed", 9)
        launch.add_start(job=launch.submission().job, restart=0, step=0, time=0, nodes=[])  # type: ignore[union-attr]
    members[0].config_file.write_text("optim: {lr: fast}\n")
    capsys.readouterr()
    words = ["sweep", "again", "runs/temperatures", "--time-minutes", "60", "--memory-gib", "9"]
    assert main([*words, "--dry-run"]) == 0
    assert capsys.readouterr().out == "00_seed=0\n01_seed=1\n02_seed=2\n"
    assert main(words) == 2
    out, err = capsys.readouterr()
    assert out == "01_seed=1: job 13\n02_seed=2: job 14\n"
    assert "launcher: 00_seed=0: optim.lr = fast" in err
    assert err.splitlines()[-1] == "launcher: 1 of 3 were refused: 00_seed=0"
    for job in (13, 14):
        lines = (programs.sent / f"{job}.sh").read_text().splitlines()
        assert {"#SBATCH --time=60", "#SBATCH --mem=9G"} <= set(lines)
    assert main(["sweep", "again", "runs/temperatures", "--local"]) == 2


def test_the_best_member_comes_first(monkeypatch: pytest.MonkeyPatch, capsys: Said) -> None:
    made_up = MadeUp(monkeypatch)
    for number, knn in enumerate((0.5, 0.9, None)):
        rows = [train_row(100), knn_row(100, knn)] if knn else []
        launch = make_run(Path(f"runs/s/{number:02}"), job=f"12_{number}", starts=1, state="running", rows=rows)
        made_up.queues(f"12_{number}", "RUNNING", launch.run_dir.absolute())
    assert main(["sweep", "status", "runs/s", "--json"]) == 0
    members = json.loads(capsys.readouterr().out)
    assert [row["knn_top1"] for row in members] == [0.9, 0.5, None]
