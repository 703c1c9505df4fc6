"""`~` and `$NAME` in paths."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moco_dist import config
from moco_dist.config import expanded, literal, load, parse_arguments
from moco_dist.config.paths import expand
from moco_dist.errors import UserError


@pytest.fixture(autouse=True)
def _variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/$me")
    monkeypatch.setenv("SCRATCH", "/scratch/~u")
    monkeypatch.setenv("EMPTY", "")
    monkeypatch.delenv("SLURM_TMPDIR", raising=False)


PATHS = [
    ("~", "/home/$me"),
    ("~/runs/a", "/home/$me/runs/a"),
    ("$SCRATCH/a", "/scratch/~u/a"),
    ("${SCRATCH}a", "/scratch/~ua"),
    ("~/$SCRATCH", "/home/$me//scratch/~u"),
    ("a/~/b", "a/~/b"),
    ("./~", "./~"),
    ("a$$SCRATCH", "a$SCRATCH"),
    ("a$/b$", "a$/b$"),
    ("/a b #1", "/a b #1"),
]


@pytest.mark.parametrize(("text", "path"), PATHS)
@pytest.mark.parametrize("key", ["run.dir", "data.root", "run.init_from"])
def test_every_path_key_is_expanded(key: str, text: str, path: str, tmp_path: Path) -> None:
    section, name = key.split(".")
    file = tmp_path / "mine.yaml"
    for quote in ("'", '"'):
        file.write_text(f"{section}: {{{name}: {quote}{text}{quote}}}\n")
        assert load(file) == load(file, [f"{key}='{text}'"])
        assert text == "~" or load(file) == load(file, [f"{key}={text}"])  # which is null
    run = load(file)
    assert getattr(getattr(run, section), name) == path
    file.write_text(config.dump(run))  # what is resolved means the same wherever it is read
    assert load(file) == run


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("$SLURM_TMPDIR/data", "the variable SLURM_TMPDIR is not set here, or empty; export it"),
        ("/a/${SLURM_TMPDIR}", "the variable SLURM_TMPDIR is not set here, or empty; export it"),
        ("$EMPTY/data", "the variable EMPTY is not set here, or empty"),
        ("${EMPTY:-x}/data", "${EMPTY:-x} is no ${NAME}; write the path out"),
        ("${SCRATCH", "${SCRATCH is no ${NAME}"),
        ("${}/a", "${} is no ${NAME}"),
        ("$1", "the variable 1 is not set here"),
        ("~nobody-of-that-name/a", "there is no user nobody-of-that-name; write ./~nobody-of-that-name for a folder"),
    ],
)
def test_what_cannot_be_expanded_is_refused(text: str, rule: str) -> None:
    for key in ("data.root", "run.dir", "run.init_from"):
        with pytest.raises(UserError) as caught:
            load(None, [f"{key}={text}"])
        assert str(caught.value).startswith(f"{key} = {text}: {rule}") and str(caught.value).isprintable()
    with pytest.raises(UserError) as caught:
        expanded("--out", text)
    assert str(caught.value).startswith(f"--out = {text}: {rule}")


@pytest.mark.parametrize("home", [None, ""])
def test_a_user_without_a_home(home: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """An image of a container need not know its user, and of an empty HOME Python makes the root."""
    monkeypatch.delenv("HOME") if home is None else monkeypatch.setenv("HOME", home)
    monkeypatch.setattr("os.getuid", lambda: 2**31 - 7)
    with pytest.raises(UserError, match=r"data\.root = ~/a: the variable HOME is not set here, or empty; export it"):
        load(None, ["data.root=~/a"])


@given(st.text(st.sampled_from("~$ab/{}.A \\"), min_size=1))
def test_a_literal_path_is_what_it_says(path: str) -> None:
    text = expand(literal(path))
    assert text == (f"./{path}" if path.startswith("~") else path)


def test_other_keys_are_not_expanded() -> None:
    run = load(None, ["track.project=~/$SCRATCH", "track.group=$$"])
    assert (run.track.project, run.track.group) == ("~/$SCRATCH", "$$")


def test_the_config_file_on_the_command_line() -> None:
    assert parse_arguments(["~/a.yaml", "run.dir=~"]) == (Path("/home/$me/a.yaml"), ["run.dir=~"])
