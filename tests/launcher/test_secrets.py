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
        ("environment: {WANDB_BASE_URL: 'https://user:hush@host'}", "environment.WANDB_BASE_URL"),
        ("environment: {HTTPS_PROXY: 'http://hush@proxy:3128'}", "environment.HTTPS_PROXY"),
        ("environment: {https_proxy: 'user:hush@proxy:3128'}", "environment.https_proxy"),
        ("setup: ['export HTTPS_PROXY=http://user:hush@proxy']", "setup"),
        ("setup: export HTTPS_PROXY=user:hush@proxy", "setup"),
        ("container: {image: 'docker://user:hush@host/image', runtime: pyxis}", "container.image"),
        ("container: {image: x.sif, mounts: ['s3://key:hush@host/x']}", "container.mounts"),
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
        "setup: ['ssh-keygen -l', 'export HTTPS_PROXY=http://$USER:$PASSWORD@proxy:3128']",
        "environment: {HTTPS_PROXY: 'http://proxy:3128', WANDB_BASE_URL: 'https://here'}",
        "container: {image: 'docker://user@host#image:tag@sha256:12', runtime: pyxis}",
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
    assert str(caught.value).startswith((f"{key} = ", f"{key}: is missing in "))


def test_a_password_that_a_variable_brings_into_a_profile_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would stand in the batch script."""
    monkeypatch.setenv("IMAGE", "docker://user:hush@host/image")
    file = tmp_path / "mine.yaml"
    file.write_text("container: {image: $IMAGE}\n")
    with pytest.raises(UserError, match=r"container\.image = \$IMAGE: holds a password") as caught:
        cluster.load(str(file))
    assert "hush" not in str(caught.value)
