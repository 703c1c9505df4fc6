"""A config is read so: text stays text, numbers are plain, no key stands twice, anchors work, W&B's variables count."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Annotated, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moco_dist import config
from moco_dist.config import Config, load, overruled
from moco_dist.config.meaning import as_meant
from moco_dist.config.read import read_value
from moco_dist.errors import UserError


def written(folder: Path, text: str) -> Path:
    file = folder / "mine.yaml"
    file.write_text(text)
    return file


def mistake(*overrides: str, path: Path | None = None) -> str:
    with pytest.raises(UserError) as caught:
        load(path, overrides)
    assert str(caught.value).isprintable()
    return str(caught.value)


# Text

TEXTS = ["0123", "1.10", "1:30", "0x1F", "1_0", "1e3", "yes", "no", "on", "Off", "true", "2024-11-24", ".5", ".inf"]


@pytest.mark.parametrize("text", [*TEXTS, "+1", "=", "<<", "089"])
def test_a_text_key_takes_its_text_from_a_file_and_from_the_command_line(text: str, tmp_path: Path) -> None:
    file = written(tmp_path, f"track: {{project: {text}, group: {text}}}\ndata:\n  root: {text}\n")
    run = load(file)
    assert run == load(tmp_path / "mine.yaml", [f"track.project={text}", f"track.group={text}", f"data.root={text}"])
    assert (run.track.project, run.track.group, run.data.root) == (text, text, text)
    again = written(tmp_path, config.dump(run))
    assert load(again) == run


@pytest.mark.parametrize("name", ["0123", "1.10", "1e3", "no", "2024-11-24", "true"])
def test_a_run_is_named_as_it_is_written(name: str, tmp_path: Path) -> None:
    for run in (load(None, [f"run.name={name}"]), load(written(tmp_path, f"run:\n  name: {name} # mine\n"))):
        assert run.run_dir == Path("runs") / name


@pytest.mark.parametrize(
    "text",
    ["/d/a #1", "/d/a: b", "[x]/y", "{a}", "*star", "&a b", "!x", "%x", "@x", "- a", " a ", "|", "a\tb", "'a", "''a"],
)
def test_text_on_the_command_line_is_as_typed(text: str) -> None:
    assert load(None, [f"data.root={text}"]).data.root == text


@given(st.text(st.characters(codec="utf-8", categories=("L", "N", "P", "S", "Zs")), min_size=1))
def test_any_text_without_quotes_around_it_is_as_typed(text: str) -> None:
    if text.strip() not in ("", "~", "null", "Null", "NULL") and text.strip()[0] not in "'\"":
        assert read_value(text) == text


def test_quotes_around_a_value_are_no_part_of_it() -> None:
    run = load(None, ["track.project='0123'", 'track.group="null"', "optim.lr='0.5'", 'data.root="/d/a\'b"'])
    assert (run.track.project, run.track.group, run.optim.lr, run.data.root) == ("0123", "null", 0.5, "/d/a'b")


@pytest.mark.parametrize("word", ["null", "~", "Null", "NULL", ""])
def test_null_is_no_text(word: str, tmp_path: Path) -> None:
    file = written(tmp_path, f"run: {{dir: {word}}}\ncheckpoint: {{every_steps: {word}}}\n")
    for run in (load(file), load(None, [f"run.dir={word}", f"checkpoint.every_steps={word}"])):
        assert (run.run.dir, run.checkpoint.every_steps) == (None, None)
    line = "run.name = null: must be text; where the word null is meant, put it in quotes; the default is run.name=run"
    assert mistake(f"run.name={word}") == line
    assert mistake(path=written(tmp_path, f"run: {{name: {word}}}")) == line
    assert load(written(tmp_path, "run: {dir: 'null', name: \"null\"}")).run_dir == Path("null")


# Numbers, words, lists


@pytest.mark.parametrize("text", ["0123", "1:30", "0x10", "0o17", "1_0", "1__000", "12_34", "1,5", "٣", "2024-11-24"])
def test_a_number_in_another_notation_is_refused(text: str, tmp_path: Path) -> None:
    for key in ("run.seed", "optim.lr", "optim.steps", "optim.weight_decay"):
        section, name = key.split(".")
        line = f"{key} = {text}: must be a plain decimal number, such as 12, 0.5 or 1e-4, without leading zeros"
        assert mistake(f"{key}={text}").startswith(line)
        assert mistake(path=written(tmp_path, f"{section}: {{{name}: '{text}'}}")).startswith(line)
    assert mistake(path=written(tmp_path, "run:\n  seed: 0123\n")).startswith("run.seed = 0123: must be a plain")
    assert mistake(path=written(tmp_path, "optim:\n  lr: 1:30\n")).startswith("optim.lr = 1:30: must be a plain")


def test_plain_numbers_are_exact(tmp_path: Path) -> None:
    overrides = [
        f"run.seed={2**63 - 1}",
        "moco.queue_size=65_536",
        "optim.lr= 0.10 ",
        "optim.epochs=2e2",
        "eval.knn_k=7.0",
    ]
    run = load(None, overrides)
    assert (run.run.seed, run.moco.queue_size, run.optim.lr) == (2**63 - 1, 65536, 0.1)
    assert (run.optim.epochs, run.eval.knn_k) == (200, 7)
    assert load(written(tmp_path, config.dump(run))) == run
    for text in ("0.1", "1e-300", "0.30000000000000004", "5e-324", "1.7976931348623157e+308", "-0.0", "+.5"):
        lr = abs(float(text)) or 1.0
        assert load(None, [f"optim.lr={lr!r}"]).optim.lr == lr


@pytest.mark.parametrize(
    ("word", "truth"), [("true", True), ("yes", True), ("On", True), ("no", False), ("FALSE", False)]
)
def test_words_for_true_and_false(word: str, truth: bool, tmp_path: Path) -> None:
    assert load(None, [f"moco.symmetric={word}"]).moco.symmetric is truth
    assert load(written(tmp_path, f"model: {{mlp: {word}}}")).model.mlp is truth


def test_a_choice_is_shown_as_it_is_written(tmp_path: Path) -> None:
    assert mistake("track.wandb=off").startswith("track.wandb = off: must be 'offline', 'online' or 'disabled'")
    assert mistake(path=written(tmp_path, "run: {resume: no}")).startswith("run.resume = no: must be 'auto' or 'never'")


@pytest.mark.parametrize("text", ["60,80", "[60, 80]", " 60 , 80 ", "60,80,", "[60,80]"])
def test_a_list_needs_no_brackets(text: str, tmp_path: Path) -> None:
    assert load(None, [f"optim.milestones={text}"]).optim.milestones == (60, 80)
    assert load(written(tmp_path, f"optim:\n  milestones: {text}\n")).optim.milestones == (60, 80)
    assert load(None, ["data.crop_scale=0.1,0.9"]).data.crop_scale == (0.1, 0.9)
    assert load(None, ["optim.milestones=60"]).optim.milestones == (60,)
    assert load(None, ["optim.milestones=[]"]).optim.milestones == ()


@pytest.mark.parametrize("text", ["60,,80", "60 80", "60,080", "[60", "1:30,2"])
def test_a_list_that_is_none_is_refused(text: str, tmp_path: Path) -> None:
    assert mistake(f"optim.milestones={text}").startswith("optim.milestones.")
    line = mistake(path=written(tmp_path, "optim: {milestones: {a: 1}}"))
    assert line.startswith("optim.milestones = {a: 1}: must be a list, such as [60, 80]; the default is")


@pytest.mark.parametrize(
    ("text", "annotation", "meant"),
    [
        ("auto", Literal["auto", 1] | tuple[float, float], "auto"),
        (" 1 ", Literal["auto", 1] | tuple[float, float], 1),
        ("1,2", Literal["auto", 1] | tuple[float, float] | None, ["1", "2"]),
        ("a, b", tuple[str, ...] | None, ["a, b"]),
        (" 1 ", str | None, " 1 "),
        ("7", Annotated[int, "of some kind"] | None, "7"),
        ([7], tuple[int, ...], [7]),
    ],
)
def test_what_a_text_means_to_a_key(text: object, annotation: object, meant: object) -> None:
    assert as_meant(text, annotation) == meant


# A key twice, anchors


@pytest.mark.parametrize(
    ("text", "place"),
    [
        (
            "moco: {queue_size: 32}\noptim: {lr: 0.03}\nmoco: {temperature: 0.1}\n",
            "moco stands twice, in line 1 and in line 3",
        ),
        ("optim:\n  lr: 0.1\n  steps: 3\n  'lr': 0.2\n", "lr stands twice, in line 2 and in line 4"),
        ("optim: {lr: 0.1, lr: 0.1}", "lr stands twice, in line 1 and in line 1"),
        ("x-a: &a {lr: 1}\noptim:\n  <<: *a\n  lr: 2\n  lr: 3\n", "lr stands twice, in line 4 and in line 5"),
        ("x-a: {b: 1,\n b: 2}\n", "b stands twice, in line 1 and in line 2"),
    ],
)
def test_a_key_that_stands_twice_is_refused(text: str, place: str, tmp_path: Path) -> None:
    file = written(tmp_path, text)
    assert mistake(path=file) == f"config {file}: {place}, and one would hide the other; keep one of them"


def test_anchors_may_stand_in_sections_of_their_own(tmp_path: Path) -> None:
    text = "x-small: &small {global_batch: 64, lr: 0.1}\nx-list: [1]\nx-note: text\n"
    text += "optim: &optim\n  <<: *small\n  lr: 0.2\nmoco: {queue_size: &n 512}\nmodel: {dim: *n}\n"
    run = load(written(tmp_path, text + "x-more: &more {<<: *optim, lr: 0.3}\n"))
    assert (run.optim.global_batch, run.optim.lr, run.moco.queue_size, run.model.dim) == (64, 0.2, 512, 512)
    both = "x-a: &a {lr: 0.1}\nx-b: &b {lr: 0.2, steps: 3}\noptim: {<<: [*a, *b]}\n"
    assert load(written(tmp_path, both)).optim.lr == 0.1
    assert mistake(path=written(tmp_path, "y-small: {lr: 1}")).startswith("y-small.lr: unknown key")
    assert mistake(path=written(tmp_path, "optim: {x-lr: 1}")).startswith("optim.x-lr = 1: unknown key")


LAUGHS = "x-0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n" + "".join(
    f"x-{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 10)
)
MERGES = "x-0: &a0 {lr: 1}\n" + "".join(
    f"x-{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 10)}]}}\n" for n in range(1, 10)
)


@pytest.mark.parametrize(
    "text",
    [
        LAUGHS,
        f"{LAUGHS}run: {{name: *a9}}",
        f"{MERGES}optim: *a9",
        "optim: &a {lr: *a}",
        "optim: &a\n  <<: *a\n",
        "x-a: &a [*a]",
        "x-0: &a0 1\n" + "".join(f"x-{n}: &a{n} [*a{n - 1}]\n" for n in range(1, 3000)),
        "a: " + "[" * 5000 + "]" * 5000,
    ],
    ids=["laughs", "laughs as a name", "merges", "itself", "merges itself", "list of itself", "ladder", "deep"],
)
def test_aliases_and_nesting_have_an_end(text: str, tmp_path: Path) -> None:
    assert "nests deeper than 20 levels, or is over 100000 values" in mistake(path=written(tmp_path, text))


@pytest.mark.parametrize(
    "value",
    ["!!int 010", "!!float 0x1", "!!int ''", "!!bool maybe", "!!timestamp x", "!!set {1, 2}", "!!binary MTI=", "!a 1"],
)
def test_a_tag_is_refused(value: str, tmp_path: Path) -> None:
    for key in ("steps", "lr", "milestones"):
        line = mistake(path=written(tmp_path, f"optim:\n  {key}: {value}\n"))
        assert line.endswith(f": {value.split()[0]} in line 2 is a tag; drop it, and write the value alone")
    assert load(written(tmp_path, "track: !!map {project: !!str 0123}\n")).track.project == "0123"


def test_what_is_no_character_is_refused_and_what_is_unprintable_is_shown_escaped(tmp_path: Path) -> None:
    for text, shown in ((r"a\0b", r"a\x00b"), (r"\ud800", r"\ud800"), (r"\udfff", r"\udfff")):
        line = mistake(path=written(tmp_path, f'data:\n  root: "{text}"\n'))
        assert line.endswith(f": {shown} in line 2 holds what is no character; drop it")
    assert mistake(path=written(tmp_path, r'optim: {"l\nr\e[31m": 3}')).startswith(r"optim.l\nr\x1b[31m = 3: unknown")
    assert ": must have at most 255 bytes; the default is" in mistake("run.name=" + "é" * 128)
    assert mistake("run.name=a\x1b[31m").startswith(r"run.name = a\x1b[31m: must be a file name")


def test_a_path_is_neither_empty_nor_too_long() -> None:
    for key in ("run.dir", "run.init_from", "data.root"):
        for path in ("a" * 256, "/d/" + "é" * 128, "a/" * 2001):
            assert "must have names of at most 255 bytes, and 4000 in all; shorten it" in mistake(f"{key}={path}")
        load(None, [f"{key}=/{'a' * 255}/{'é' * 127}"])
        assert mistake(f'{key}=""').startswith(f"{key} = : must be a path; for none, write null")


@pytest.mark.parametrize(
    "text", ["a\x85b", "\u2028", "a\x1eb", "\ufeffa", "a\r\nb", "\udcff\udc80", "é😀", "\xa0", "\t", "a\x7f"]
)
def test_any_text_reads_back(text: str, tmp_path: Path) -> None:
    begun = config.parse({"data": {"root": text}, "run": {"dir": text}, "track": {"project": text, "group": text}})
    assert load(written(tmp_path, config.dump(begun))) == begun
    assert "é😀" in config.dump(config.parse({"data": {"root": "é😀"}}))  # as it is typed, where it can be


def test_of_overrides_the_last_one_counts() -> None:
    assert load(None, ["run.name=a", "run.name=0123"]).run.name == "0123"


# W&B's variables


@pytest.mark.parametrize(
    ("variables", "mode"),
    [
        ({"WANDB_DISABLED": "true"}, "disabled"),
        ({"WANDB_DISABLED": "1", "WANDB_MODE": "online"}, "disabled"),
        ({"WANDB_DISABLED": "false", "WANDB_MODE": "online"}, "online"),
        ({"WANDB_DISABLED": ""}, "offline"),
        ({"WANDB_DISABLED": "no"}, "offline"),
        ({"WANDB_PROJECT": "0123"}, "offline"),
    ],
)
def test_what_is_unset_follows_the_environment(
    variables: dict[str, str], mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    run = load()
    assert (run.track.wandb, run.track.project) == (mode, variables.get("WANDB_PROJECT", "moco-dist"))
    assert overruled(run.track) == []


def test_what_is_set_wins_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_PROJECT", "theirs")
    monkeypatch.setenv("WANDB_MODE", "online")
    run = load(None, ["track.wandb=offline", "track.project=mine"])
    assert (run.track.wandb, run.track.project) == ("offline", "mine")
    assert overruled(run.track) == [
        "track.wandb = offline: it is set, so WANDB_MODE=online does not count",
        "track.project = mine: it is set, so WANDB_PROJECT=theirs does not count",
    ]
    assert overruled(load(None, ["track.wandb=online", "track.project=theirs"]).track) == []
    monkeypatch.setenv("WANDB_DISABLED", "true")
    [line] = overruled(load(None, ["track.wandb=online"]).track)
    assert line == "track.wandb = online: it is set, so WANDB_DISABLED=true does not count"
    monkeypatch.setenv("WANDB_DISABLED", "perhaps")
    assert mistake() == "WANDB_DISABLED = perhaps: must be true or false; unset it, or set track.wandb"
    assert "WANDB_DISABLED=perhaps does not count" in overruled(load(None, ["track.wandb=disabled"]).track)[0]


def test_reading_needs_no_torch() -> None:
    script = "import sys; from moco_dist import config; config.load(); assert not {'torch', 'numpy'} & {*sys.modules}"
    subprocess.run([sys.executable, "-c", script], check=True)


def test_a_config_made_of_values_takes_them_as_they_are() -> None:
    assert config.parse({"run": {"dir": "~/$x", "seed": 3}, "moco": {"symmetric": True}}).run.dir == "~/$x"
    assert Config().track.group is None
