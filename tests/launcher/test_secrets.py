"""A secret in a profile is refused, and its value shown nowhere. test_submit.py looks through what is sent."""

from __future__ import annotations

from pathlib import Path

import pytest

from launcher import cluster
from launcher.__main__ import main
from moco_dist.errors import UserError


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("environment: {WANDB_API_KEY: hush}", "environment.WANDB_API_KEY"),
        ("environment: {my_password: hush}", "environment.my_password"),
        ("environment: {Hf-Token: hush}", "environment.Hf-Token"),
        ("wandb_api_key: hush", "wandb_api_key"),
        ("container: {image: x.sif, registry_secret: hush}", "container.registry_secret"),
        ("setup: ['module load cuda', 'export WANDB_API_KEY=hush']", "setup: WANDB_API_KEY"),
        ("setup: [\"export A=1 HF_TOKEN='hush'\"]", "setup: HF_TOKEN"),
        ("setup: export WANDB_API_KEY=hush", "setup: WANDB_API_KEY"),
        ("x-a: &a export A_TOKEN=hush\nsetup: *a", "setup: A_TOKEN"),
        ("gpus_per_node: 0\npassword: hush", "password"),
    ],
)
def test_a_secret_is_refused_and_not_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, name: str
) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(text + "\n")
    assert main(["preflight", "--local", "--cluster", str(file)]) == 2
    out, err = capsys.readouterr()
    line = f"launcher: {name}: a secret has no place in a file; export it in the shell that submits\n"
    assert (out, err) == ("", line)


@pytest.mark.parametrize(
    "text",
    [
        "environment: {NCCL_DEBUG: WARN, PATH_TO_DATA: /x}",
        "setup: ['export WANDB_API_KEY=$(cat ~/.wandb)', 'export HF_TOKEN=\"$TOKEN\"', 'source ~/.secrets']",
        "setup: ['ssh-keygen -l']",
    ],
)
def test_what_names_no_value_may_stand(tmp_path: Path, text: str) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(text + "\n")
    cluster.load(str(file))


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ('partition: "a\\e[31m"', "partition"),
        ('network_interface: "ib0\\a"', "network_interface"),
        ('setup: ["a\\x07b"]', "setup.0"),
        ("container: {}", "container.image"),
        ("container: {image: ''}", "container.image"),
        ("container: {image: x.sif, mounts: ['']}", "container.mounts.0"),
        ("local_disk: ' '", "local_disk"),
    ],
)
def test_words_and_lines_hold_something_that_can_be_read(tmp_path: Path, text: str, key: str) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(text + "\n")
    with pytest.raises(UserError) as caught:
        cluster.load(str(file))
    assert str(caught.value).startswith(f"{key} = ")
