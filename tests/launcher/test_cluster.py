"""Cluster profiles: what may stand in them, and what is said of what may not."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from launcher import cluster
from launcher.__main__ import main
from launcher.cluster import Container, Notify, Profile
from moco_dist.errors import UserError


@pytest.mark.parametrize("name", ["devcluster", "a100", "h100"])
def test_the_shipped_profiles(name: str) -> None:
    profile = cluster.load(name)
    assert profile == cluster.load(f"slurm/clusters/{name}.yaml") == cluster.load(f"{name}.yaml")
    assert profile.partition


def test_the_devcluster_fits_its_nodes() -> None:
    profile = cluster.load("devcluster")
    assert (profile.partition, profile.gpus_per_node, profile.cpus_per_gpu) == ("main", 2, 1)
    assert (profile.time_minutes, profile.signal_seconds) == (10, 30)


def test_without_a_file_the_defaults_hold() -> None:
    assert cluster.load(None) == Profile()


def test_options_take_the_place_of_keys(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("partition: gpu\ngpus_per_node: 4\nexclude: [n1]\n")
    profile = cluster.load(str(file), {"gpus_per_node": 2, "partition": None, "exclude": ["n[1-3],n7"]})
    assert profile == Profile(partition="gpu", gpus_per_node=2, exclude=("n[1-3],n7",))
    assert profile == Profile.model_validate_json(profile.model_dump_json())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gpus_per_node: 0", "gpus_per_node = 0: must be greater than 0; the default is gpus_per_node=8"),
        ("gpus_per_node: many", "gpus_per_node = many: must be an integer; the default is gpus_per_node=8"),
        ("gpus_per_node: true", "gpus_per_node = true: must be a number, not true or false; the default is"),
        ("gpus_per_nodes: 4", "gpus_per_nodes = 4: unknown key; did you mean gpus_per_node?"),
        ("colour: red", "colour = red: unknown key; keys are partition, account, qos"),
        ("tasks: job", "tasks = job: must be 'node' or 'rank'; the default is tasks=node"),
        ("signal_seconds: 0123", "signal_seconds = 0123: must be a plain decimal number, such as 12"),
        ("time_minutes: 1:30:00", "time_minutes = 1:30:00: must be a plain decimal number, such as 12"),
        ("gpu_memory_gib: 0x50", "gpu_memory_gib = 0x50: must be a plain decimal number, such as 12"),
        (
            "environment: {LEVEL: null}",
            "environment.LEVEL = null: must be text; where the word null is meant, put it in",
        ),
        ("qos: a\naccount: b\nqos: c", "qos stands twice, in line 1 and in line 3, and one would hide the other"),
        ("environment: {A: 1,\nB: 2, A: 3}", "A stands twice, in line 1 and in line 2"),
        (
            "container: {image: $NO_SUCH_VARIABLE/x.sif}",
            "container.image = $NO_SUCH_VARIABLE/x.sif: the variable NO_SUCH",
        ),
        ("signal_seconds: 5", "signal_seconds = 5: must be greater than or equal to 15; the default is signal_seconds"),
        ("time_minutes: -1", "time_minutes = -1: must be greater than 0; the default is time_minutes=1440"),
        ("partition: two words", "partition = two words: must be one word without quotes; the default is"),
        ("constraint: 'a\\nb'", None),
        ('constraint: "a\\nb"', "constraint = a b: must be one line of printable characters; the default is"),
        ('setup: ["rm -rf\\n/"]', "setup.0 = rm -rf /: must be one line of printable characters; the default is setup"),
        ("environment: {A-B: 1}", "environment = A-B: must be a name of a variable; write NAME: value"),
        ("environment: {WANDB_API_KEY: hush}", "environment.WANDB_API_KEY: a secret has no place in a file; export it"),
        ("container: {image: x.sif, runtime: docker}", "container.runtime = docker: must be 'apptainer' or 'pyxis'"),
        ("- partition", "must be keys with values"),
        ("partition: [", "cannot be read as YAML"),
        ("gpu_memory_gib: 0", "gpu_memory_gib = 0: must be greater than 0"),
        ("gpus_per_node: 0\ntasks: job", "(and 1 more)"),
    ],
)
def test_a_mistake_is_one_line(tmp_path: Path, text: str, message: str | None) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(text + "\n")
    if message is None:
        cluster.load(str(file))
        return
    with pytest.raises(UserError) as error:
        cluster.load(str(file))
    line = str(error.value)
    assert message in line
    assert line.isprintable() and len(line) < 400
    assert "hush" not in line


def test_text_is_kept_as_it_is_written(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(
        "x-common: &common {TZ: 1:30, LEVEL: 010, FLAG: yes, DAY: 2024-11-24, PLACE: ~/$HOME}\n"
        "account: 0123\nqos: no\npartition: 1.10\nreservation: 1e3\ngpu_type: on\nexclude: n[1,3],n7\n"
        "setup: module load cuda, gcc\nenvironment: {<<: *common, LEVEL: 020, EMPTY: ''}\ntime_minutes: 1_440\n"
    )
    profile = cluster.load(str(file))
    words = (profile.account, profile.qos, profile.partition, profile.reservation, profile.gpu_type)
    assert words == ("0123", "no", "1.10", "1e3", "on")
    assert (profile.exclude, profile.setup) == (("n[1,3],n7",), ("module load cuda, gcc",))
    variables = {"TZ": "1:30", "LEVEL": "020", "FLAG": "yes", "DAY": "2024-11-24", "PLACE": "~/$HOME", "EMPTY": ""}
    assert profile.environment == variables and profile.time_minutes == 1440
    assert cluster.load(None, {"account": "010"}).account == "010"


def test_paths_are_expanded_but_the_node_s_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SCRATCH", "/scratch")
    text = "container: {image: ~/x.sif, mounts: [$SCRATCH, '~/a:/a'], python: $SCRATCH/python}\nlocal_disk: $TMPDIR/x\n"
    (tmp_path / "mine.yaml").write_text(text)
    profile = cluster.load("~/mine.yaml")
    assert profile.container is not None
    assert profile.container.mounts == ("/scratch", f"{tmp_path}/a:/a")
    assert (profile.container.image, profile.container.python) == (f"{tmp_path}/x.sif", "/scratch/python")
    assert profile.local_disk == "$TMPDIR/x"  # which the job expands
    assert profile == Profile.model_validate_json(profile.model_dump_json())


def test_a_profile_that_is_not_there() -> None:
    with pytest.raises(UserError, match=r"^--cluster nope: no such file; .*the shipped: a100, devcluster, h100$"):
        cluster.load("nope")
    with pytest.raises(UserError, match=r"^--cluster h100\.mine: no such file"):
        cluster.load("h100.mine")
    with pytest.raises(UserError, match="no such file"):
        cluster.load("elsewhere/devcluster.yaml")  # a shipped name in another folder is another file


@pytest.mark.parametrize(
    ("name", "refusal"),
    [
        ("RANK", "is set by the job itself; drop it"),
        ("LOCAL_WORLD_SIZE", "is set by the job itself; drop it"),
        ("MASTER_ADDR", "is set by the job itself; drop it"),
        ("TORCHELASTIC_RESTART_COUNT", "is set by the job itself; drop it"),
        ("MOCO_DIST_RESTART", "is set by the job itself; drop it"),
        ("SUBMITIT_EXECUTOR", "is set by the job itself; drop it"),
        ("PYTHONSAFEPATH", "is set by the job itself; drop it"),
        ("SLURM_RESTART_COUNT", "is SLURM's, and would come too late for srun; export it in a line of setup"),
        ("SLURM_CPU_BIND", "is SLURM's, and would come too late for srun; export it in a line of setup"),
        ("PYTHONPATH", None),
        ("SLURM_CONF", None),
        ("NCCL_DEBUG", None),
        ("MOCO_DIST_PATIENCE", None),
    ],
)
def test_variables_that_the_job_needs_are_its_own(tmp_path: Path, name: str, refusal: str | None) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(f"environment: {{{name}: x}}\n")
    if refusal is None:
        assert cluster.load(str(file)).environment == {name: "x"}
        return
    with pytest.raises(UserError, match=rf"^environment = {name}: {refusal}$"):
        cluster.load(str(file))


@pytest.mark.parametrize("command", ["submit", "preflight", "requeue"])
def test_the_keys_of_a_profile_are_explained(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main([command, "--help-profile"])
    assert end.value.code == 0
    text = capsys.readouterr().out
    keys = [*Profile.model_fields, *(f"container.{key}" for key in Container.model_fields)]
    keys += [f"notify.{key}" for key in Notify.model_fields]
    assert re.findall(r"^  ([\w.]+)", text, re.MULTILINE) == keys
    assert "  signal_seconds: 120  (whole number, at least 15, at most 3600)\n      The job is told to save" in text
    assert "  exclude: []  (list of text)\n      Nodes that the job must not run on.\n" in text
    assert "  container.image  (text)\n" in text and "  tasks: node  (node or rank)\n" in text
