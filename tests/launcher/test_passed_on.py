"""Options that are passed on to sbatch and srun as they are: which may be, how they are written, who checks them."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path

import pytest

from launcher import cluster, passed_on
from launcher.__main__ import main
from launcher.checks import passed_on as check
from launcher.cluster import Profile
from tests.launcher.made import make_run
from tests.launcher.programs import Programs

SMALL = ("submit", "--gpus-per-node", "2", "--cpus-per-gpu", "1")
Said = pytest.CaptureFixture[str]


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Programs:
    monkeypatch.chdir(tmp_path)
    made = Programs(tmp_path / "slurm", monkeypatch)
    made.keeps("srun")
    return made


def test_profile_and_command_line_name_them_in_any_spelling(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(
        "sbatch: {gres: 'nvme:1', --nodelist: [n1, 'n[3-5]'], mail_user: me@x.org, contiguous: true, nice: 100}\n"
        "srun: {mpi: none}\n"
    )
    profile = cluster.load(str(file), {"sbatch": {"nice": "false", "gres": "ssd:2"}, "srun": {"label": "true"}})
    expected = {"gres": "ssd:2", "nodelist": "n1,n[3-5]", "mail-user": "me@x.org", "contiguous": True}
    assert passed_on.words(profile.sbatch) == expected
    assert passed_on.words(profile.srun) == {"mpi": "none", "label": True}
    assert profile == Profile.model_validate_json(profile.model_dump_json())


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--sbatch", "array=0-3"], "sbatch.array = 0-3: is the launcher's own to set; use python -m launcher sweep"),
        (["--sbatch=--nodes=2"], "sbatch.nodes = 2: is the launcher's own to set; use --nodes"),
        (["--sbatch", "qos=a"], "sbatch.qos = a: is the launcher's own to set; use the key qos"),
        (["--sbatch", "dep=afterok:1"], "sbatch.dep = afterok:1: is the launcher's own to set; it is short for depend"),
        (
            ["--sbatch", "open_mode=truncate"],
            "sbatch.open-mode = truncate: is the launcher's own to set; drop it: what",
        ),
        (["--sbatch", "wrap=id"], "sbatch.wrap = id: is the launcher's own to set; drop it: the launcher writes"),
        (["--srun", "kill-on-bad-exit"], "srun.kill-on-bad-exit = true: is the launcher's own to set; use max_rest"),
        (["--srun", "container-image=x"], "srun.container-image = x: is the launcher's own to set; use container, w"),
        (["--sbatch", "p=main"], "sbatch = p: must be the long name of an option; write it as in nodelist: n7"),
        (["--sbatch", "a b=c"], "sbatch = a b: must be the long name of an option"),
        (["--sbatch", "gres=a\n#SBATCH --uid=0"], "sbatch.gres = a #SBATCH --uid=0: must be one line of printable"),
        (["--sbatch", "gres="], "sbatch.gres = : must be one line of printable characters, or a list; write true for"),
    ],
)
def test_what_the_launcher_sets_itself_is_refused_in_one_line(
    programs: Programs, capsys: Said, words: list[str], line: str
) -> None:
    assert main([*SMALL, *words]) == 2
    out, err = capsys.readouterr()
    assert err.startswith(f"launcher: {line}") and err.count("\n") == 1 and not out
    assert not list(programs.sent.iterdir())


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("sbatch: [gres]", "sbatch = [gres]: must be options with values; write sbatch: {gres: 'nvme:1'}"),
        ("sbatch: {gres: null}", "sbatch.gres = null: must be one line of printable characters, or a list; write"),
        ("srun: {mpi: {a: b}}", "srun.mpi = {a: b}: must be one line of printable characters, or a list; write"),
        ("srun: {mpi: [[a]]}", "srun.mpi = [[a]]: must be one line of printable characters, or a list; write"),
    ],
)
def test_values_are_a_line_or_a_list(tmp_path: Path, text: str, line: str) -> None:
    (tmp_path / "mine.yaml").write_text(text + "\n")
    with pytest.raises(cluster.UserError) as error:
        cluster.load(str(tmp_path / "mine.yaml"))
    assert str(error.value).startswith(line)


def test_each_reaches_sbatch_or_srun_as_one_word(programs: Programs) -> None:
    strange = 'it\'s $(touch evil) `touch evil` ; & "two" #1'
    words = ["--sbatch", "contiguous", "--sbatch", f"licenses={strange}", "--srun", f"label={strange}", "--srun=mpi=no"]
    assert main([*SMALL, *words]) == 0
    script = (programs.sent / "12.sh").read_text().splitlines()
    assert "#SBATCH --contiguous" in script
    [licenses] = [line for line in script if line.startswith("#SBATCH --licenses=")]
    assert shlex.split(licenses.removeprefix("#SBATCH ")) == [f"--licenses={strange}"]
    [srun] = [line for line in script if line.startswith("srun ")]
    assert {f"--label={strange}", "--mpi=no"} <= set(shlex.split(srun))
    calls = [words for words, _ in programs.given("srun")]
    assert calls == [[f"--label={strange}", "--help"], ["--mpi=no", "--help"]]


def test_a_gres_that_names_gpus_takes_the_place_of_gpus_per_node(programs: Programs, capsys: Said) -> None:
    for gres, number in (
        ("gpu:a100:2,nvme:1", 2),
        ("gres/gpu=2(S:0)", 2),
        ("gpu", 1),
        ("gres:gpu:4", 4),
        ("gpus:3", None),
    ):
        assert passed_on.gpus({"gres": gres}) == number, gres
    assert main([*SMALL, "--sbatch", "gres=gpu:a100:2"]) == 0
    script = (programs.sent / "12.sh").read_text()
    assert "#SBATCH --gres=gpu:a100:2\n" in script and "--gpus-per-node" not in script
    capsys.readouterr()
    assert main([*SMALL, "run.name=b", "--sbatch", "gres=gpu:4"]) == 2
    line = "error: sbatch.gres = gpu:4: asks for 4 GPUs a node, gpus_per_node for 2; use --gpus-per-node 4\n"
    assert line in capsys.readouterr().err


def test_a_run_is_sent_again_with_its_options_and_further_ones(programs: Programs) -> None:
    launch = make_run(Path("runs/a").absolute(), state="crashed", profile={"sbatch": {"nice": "1", "hold": "true"}})
    assert main(["requeue", "a", "--sbatch", "nice=2", "--sbatch", "hold=false", "--srun", "label"]) == 0
    script = (programs.sent / "12.sh").read_text()
    assert "#SBATCH --nice=2\n" in script and "--hold" not in script and " --label " in script
    sent = launch.submission()
    assert sent and passed_on.words(sent.profile.sbatch) == {"nice": "2"}


def test_what_sbatch_does_not_know_is_refused_in_its_own_words(programs: Programs, capsys: Said) -> None:
    refusal = "echo \"sbatch: unrecognized option '$1'\" >&2; echo Try --help >&2; exit 255"
    programs.runs("sbatch", f'case "$*" in --colour*) {refusal} ;; esac\ncp "$1" {programs.sent}/12.sh; echo job 12')
    assert main([*SMALL, "--sbatch", "colour=red"]) == 2
    line = "error: sbatch.colour = red: unrecognized option '--colour=red'; see sbatch --help\n"
    assert line in capsys.readouterr().err
    assert not list(programs.sent.iterdir())


@pytest.mark.skipif(not shutil.which("sbatch"), reason="SLURM is not installed")
def test_the_real_commands_tell_without_a_controller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = ["ClusterName=x", "SlurmctldHost=localhost(127.0.0.1)", "SlurmctldPort=1", "AuthType=auth/none"]
    (tmp_path / "slurm.conf").write_text("\n".join([*lines, "NodeName=n1", "PartitionName=main Nodes=n1", ""]))
    monkeypatch.setenv("SLURM_CONF", str(tmp_path / "slurm.conf"))
    profile = Profile(sbatch={"nodelist": "n1", "mail-type": "NEVER"}, srun={"mpi": "none", "colour": "red"})
    mail, colour = check.check(profile)
    assert mail.text == "sbatch.mail-type = NEVER: error: Invalid --mail-type specification; see sbatch --help"
    assert colour.text.startswith("srun.colour = red: unrecognized option '--colour=red'")
