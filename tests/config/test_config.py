"""The schema, its messages, and how a global batch lies on the ranks."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from moco_dist import config
from moco_dist.config import Config, explain, layout, load, parse, parse_arguments
from moco_dist.config.__main__ import run as command
from moco_dist.errors import UserError
from tests.nobody import as_nobody

SHIPPED = sorted(config.SHIPPED_CONFIGS.glob("*.yaml"))


def mistake(*overrides: str, path: Path | None = None) -> str:
    with pytest.raises(UserError) as caught:
        load(path, overrides)
    return str(caught.value)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.stem)
def test_shipped_configs_load_by_path_and_by_name(path: Path) -> None:
    root = [] if yaml.safe_load(path.read_text())["data"]["source"] == "digits" else ["data.root=/data"]
    loaded = load(path, root)
    assert loaded.run.name == path.stem
    assert loaded.run_dir == Path("runs") / path.stem
    assert load(Path(path.stem), root) == load(Path("configs") / path.name, root) == loaded
    for ranks in (1, 2, 4):
        layout(loaded, ranks)


def test_no_config_means_the_digits() -> None:
    assert load() == load(config.DEFAULT_CONFIG)
    assert load().data.source == "digits"


@pytest.mark.parametrize(
    ("variable", "overrides", "mode"),
    [
        (None, [], "offline"),
        ("", [], "offline"),
        ("disabled", [], "disabled"),
        ("online", [], "online"),
        ("dryrun", [], "offline"),  # W&B's older words
        ("run", [], "online"),
        ("disabled", ["track.wandb=offline"], "offline"),
        ("nonsense", ["track.wandb=online"], "online"),
    ],
)
def test_track_wandb_beats_the_variable_which_beats_the_default(
    variable: str | None, overrides: list[str], mode: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if variable is not None:
        monkeypatch.setenv("WANDB_MODE", variable)
    run = load(None, overrides)
    assert run.track.wandb == mode and run.track.log_every == 1  # as digits.yaml says
    monkeypatch.setenv("WANDB_MODE", "nonsense")  # what is written down stays as it was resolved
    (tmp_path / "config.yaml").write_text(config.dump(run))
    assert load(tmp_path / "config.yaml") == run


def test_a_variable_that_means_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "nonsense")
    line = "WANDB_MODE = nonsense: must be offline, online or disabled; unset it, or set track.wandb"
    assert mistake() == mistake("track.log_every=1") == line


def test_schema_for_editors_is_up_to_date() -> None:
    file = config.SHIPPED_CONFIGS / "schema.json"
    assert file.read_text() == config.schema(), "run: python -m moco_dist.config > configs/schema.json"


def test_the_command_prints_the_schema_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert command([]) == 0 and capsys.readouterr().out == config.schema()
    assert command(["mnist"]) == 2
    assert capsys.readouterr() == (
        "",
        "moco_dist.config: unrecognized arguments: mnist; see python -m moco_dist.config --help\n",
    )
    with pytest.raises(SystemExit) as end:
        command(["--help"])
    assert end.value.code == 0 and "Print the JSON schema" in capsys.readouterr().out


def test_every_key_is_explained() -> None:
    lines = config.usage().splitlines()
    assert len(lines) == len(explain.keys(config.Config))
    assert all(re.fullmatch(r"  \w+\.\w+=.* +\w.*[.;)]?", line) and len(line.split()) > 2 for line in lines)
    assert not any(line.endswith("None") for line in lines)
    source, decode = (next(line for line in lines if f"  {key}=" in line) for key in ("data.source", "data.decode"))
    assert source.endswith(" One of: digits, mnist, cifar10, imagefolder, synthetic.")
    assert "One of" not in decode  # whose words have their meanings there


def test_it_is_frozen() -> None:
    with pytest.raises(ValidationError):
        load().optim.lr = 1.0  # type: ignore[misc]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optim.lr=fast", "optim.lr = fast: must be a number; the default is optim.lr=0.03"),
        ("optim.lr=0", "optim.lr = 0: must be greater than 0; the default is optim.lr=0.03"),
        ("optim.lr=.nan", "optim.lr = nan: must be a finite number; the default is optim.lr=0.03"),
        ("optim.lr=true", "optim.lr = true: must be a number, not true or false; the default is optim.lr=0.03"),
        ("optim.epochs=2.5", "optim.epochs = 2.5: must be a"),
        ("optim.global_batch=false", "optim.global_batch = false: must be a number, not true or false"),
        ("optim.weightdecay=1", "optim.weightdecay = 1: unknown key; did you mean optim.weight_decay?"),
        ("optim.learning_rate=1", "optim.learning_rate = 1: unknown key; "),
        ("lr=1", "override lr=1: must be section.key=value; did you mean optim.lr?"),
        ("model.lr=1", "model.lr = 1: unknown key; did you mean optim.lr?"),
        ("moco.tempreature=0.1", "moco.tempreature = 0.1: unknown key; did you mean moco.temperature?"),
        ("optm.schedule=step", "optm.schedule: unknown key; did you mean optim.schedule?"),
        ("zzz.qqq=1", "zzz.qqq: unknown key; sections are run, data, model"),
        ("moco.momentum=1.5", "moco.momentum = 1.5: must be less than or equal to 1; the default is moco.momentum="),
        ("model.arch=vit", "model.arch = vit: must be 'resnet18', 'resnet34'"),
        ("run.name=a/b", "run.name = a/b: must be a file name of letters, digits and _ . + = -"),
        ("run.seed=-1", "run.seed = -1: must be greater than or equal to 0; the default is run.seed=0"),
        ("moco=3", "override moco=3: must be section.key=value"),
        ("data.crop_scale=[0.9,0.2]", "data.crop_scale = [0.9, 0.2]: must be [least, most] above 0; swap"),
        ("data.crop_scale=[0.2,1.5]", "data.crop_scale = [0.2, 1.5]: must not exceed 1; lower the second"),
        ("data.source=mnist", "data.root = null: data.source=mnist needs a folder; add data.root=FOLDER"),
        ("data.download=true", "data.download = true: nothing to download for data.source=digits; drop it"),
        ("data.channels=3", "data.channels = 3: digits has its own; drop it"),
        ("data.channels=13", "data.channels = 13: must be less than or equal to 12; the default is data.channels=null"),
        ("data.mean=[0.5]", "data.mean = [0.5]: mean and std go together; give both or none"),
        ("data.std=[0]", "data.std.0 = 0: must be greater than 0; the default is data.std=null"),
        ("data.value_range=[5,5]", "data.value_range = [5.0, 5.0]: must be [low, high]; swap or raise them"),
        ("data.value_range=[0,.inf]", "data.value_range.1 = inf: must be a finite number; the default is data.value"),
        ("moco.bn_groups=3", "optim.global_batch = 128: must be divisible by moco.bn_groups=3; use optim.global_batch"),
        ("moco.bn_groups=128", "moco.bn_groups = 128: BatchNorm needs at least 2 images a group; use optim.global"),
        ("device.precision=fp8", "device.precision = fp8: must be 'fp32', 'bf16', 'fp16' or 'fp64'; the default is"),
        ("model.width=12", "model.width = 12: must be a multiple of 8; the default is model.width=64"),
        ("checkpoint.keep=1", "checkpoint.keep = 1: must be greater than or equal to 2; the default is checkpoint"),
        ("data.workers=x", "data.workers = x: must be an integer, or 'auto'; the default is data.workers=0"),
        ("data.workers=-1", "data.workers = -1: must be greater than or equal to 0, or 'auto'; the default is"),
        ("data.crop_scale=0.5", "data.crop_scale = [0.5]: must have 2 members; the default is data.crop_scale=[0.2"),
        ("data.value_range=[]", "data.value_range = []: must have 2 members; the default is data.value_range=null"),
        ("data.blur_sigma=1,2,3", "data.blur_sigma = [1, 2, 3]: must have 2 members; the default is"),
        ("data.std=[1]", "data.mean = null: mean and std go together; give both or none"),
        ("moco.symmetric=x", "moco.symmetric = x: must be true or false; the default is moco.symmetric=false"),
        (f"optim.epochs={'9' * 5000}", f"optim.epochs = {'9' * 77}...: must have at most 40 digits; the default is"),
    ],
)
def test_mistakes_are_one_line_that_names_key_value_rule_and_fix(override: str, message: str) -> None:
    text = mistake(override)
    assert text.startswith(message)
    assert "\n" not in text
    assert ";" in text


@pytest.mark.parametrize("value", ["x", "-1", "0.5", "1,2,3", "[]", "{a: 1}", ".inf"])
def test_no_line_speaks_of_how_values_are_read(value: str) -> None:
    lines = 0
    for key in explain.keys(Config):
        try:
            load(None, [f"{key}={value}"])
        except UserError as error:
            lines += 1
            name, rule = re.fullmatch(r"([a-z_.]+)(?:\.\d)? = .*?: (.*)", str(error)).groups()  # type: ignore[union-attr]
            assert name == key or name in ("data.mean", "data.std")
            assert not re.search(r"function|pars|input|field|tuple|boolean|None|\(\)", rule), error
    assert lines > 20


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("data.mean=[0,0]", "data.std=[1,1]"), "data.mean = [0.0, 0.0]: must have 1 numbers, one a channel; add"),
        (("data.mean=[0]", "data.std=[1,1]"), "data.std = [1.0, 1.0]: must have 1 numbers, one a channel; add or"),
        (
            ("data.source=synthetic", "data.channels=5", "data.mean=[0,0,0]", "data.std=[1,1,1]"),
            "data.mean = [0.0, 0.0, 0.0]: must have 5 numbers, one a channel; add or drop some, or mend data.channels",
        ),
    ],
)
def test_pixel_statistics_have_a_number_for_each_channel(overrides: tuple[str, ...], message: str) -> None:
    assert mistake(*overrides).startswith(message)


def test_the_fix_that_a_message_proposes_works() -> None:
    fix = re.search(r"use (optim\.global_batch=\d+)", mistake("moco.bn_groups=3"))
    assert fix
    assert load(None, ["moco.bn_groups=3", fix[1]]).moco.bn_groups == 3


@given(
    batch=st.integers(1, 12), groups=st.none() | st.integers(1, 12), ranks=st.integers(1, 9), parts=st.integers(1, 3)
)
def test_fixes_of_the_batch_lead_to_one_that_fits(batch: int, groups: int | None, ranks: int, parts: int) -> None:
    """Each fix is followed as it is written, and no more than three are needed."""
    values = {"optim.global_batch": batch, "moco.bn_groups": groups}
    for _ in range(4):
        try:
            layout(load(None, [f"optim.accumulate={parts}"], values), ranks)
            return
        except UserError as error:
            fix = re.search(r"use ([\w.]+)=(\d+)", str(error))
            assert fix, error
            values[fix[1]] = int(fix[2])
    raise AssertionError(f"the fixes lead nowhere: {values}")


def test_several_mistakes_are_counted() -> None:
    assert mistake("optim.lr=x", "model.dim=0").endswith("(and 1 more)")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1, 2]", "must be keys with values"),
        ("optim: {lr: 0.1", "cannot be read as YAML"),
        ("optim: 3", "optim = 3: must be a section of keys"),
        ("run: 3", "run = 3: must be a section of keys"),
        ("optim: {lr: {a: 1}}", "optim.lr = "),
        ("optim: {lr: [1\n, 2]}", "optim.lr = [1, 2]: must be a number"),
        ("3: {lr: 0.1}", "unknown key"),
        ("zzz: {~: 3}", "zzz.None: unknown key"),
        ("\x00", "cannot be read as YAML"),
    ],
)
def test_odd_files(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "odd.yaml"
    file.write_text(text)
    line = mistake(path=file)
    assert message in line
    assert "\n" not in line


def test_unreadable_files(tmp_path: Path) -> None:
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x80")
    assert "cannot be read as YAML" in mistake(path=tmp_path / "binary.yaml")
    line = mistake(path=tmp_path / "nowhere.yaml")
    assert "no such file" in line
    assert "digits" in line
    with pytest.raises(UserError, match="no such file"):
        load(tmp_path / "digits.yaml")  # a shipped name in another folder is not the shipped one
    for name in ("digits.mine", "digits.yml", "configs/digits.yaml.old"):
        assert mistake(path=Path(name)).startswith(f"config {name}: no such file; give a YAML file")
    (tmp_path / "own.yaml").touch()
    with as_nobody():  # to whom the folder is closed
        line = f"config {tmp_path}/own.yaml: cannot be read: Permission denied; give a file that you may read"
        assert mistake(path=tmp_path / "own.yaml") == line


def test_a_folder_is_told_from_a_missing_file_and_its_config_is_named(tmp_path: Path) -> None:
    (tmp_path / "another.yaml").touch()
    assert mistake(path=tmp_path).startswith(f"config {tmp_path}: is a folder; give a YAML file or one of the shipped")
    (tmp_path / "config.yaml").touch()
    assert mistake(path=tmp_path) == f"config {tmp_path}: is a folder; give {tmp_path / 'config.yaml'}"


def test_an_empty_file_is_all_defaults(tmp_path: Path) -> None:
    (tmp_path / "empty.yaml").write_text("")
    assert load(tmp_path / "empty.yaml").optim == Config().optim


@pytest.mark.parametrize(
    ("text", "value"), [("1e-4", 1e-4), ("1E-4", 1e-4), ("3e-2", 0.03), (".5", 0.5), ("+2e-1", 0.2), ("1", 1.0)]
)
def test_numbers_that_yaml_reads_as_text(text: str, value: float) -> None:
    assert load(None, [f"optim.lr={text}"]).optim.lr == value
    assert load(None, ["moco.queue_size=4e3"]).moco.queue_size == 4000


def test_overrides_beat_the_file_and_the_last_one_wins() -> None:
    run = load(None, ["optim.lr=1", "optim.lr=2", "run.name=x=y", "optim.milestones=[3,5]", "run.dir=/tmp/some where"])
    assert run.optim.lr == 2
    assert run.optim.milestones == (3, 5)
    assert run.run.name == "x=y"
    assert run.run_dir == Path("/tmp/some where")
    assert load(None, ["run.name=2024"]).run.name == "2024"


FIELDS: dict[str, st.SearchStrategy[Any]] = {
    "run.seed": st.integers(0, 2**63 - 1),
    "run.name": st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.+=-]{0,20}", fullmatch=True),
    "run.dir": st.none() | st.text(st.characters(codec="utf-8", categories=("L", "N", "P", "S", "Zs")), min_size=1),
    "run.max_minutes": st.none() | st.floats(1e-9, 1e9),
    "optim.lr": st.floats(1e-300, 1e300),
    "optim.milestones": st.lists(st.integers(0, 999), max_size=3),
    "optim.accumulate": st.integers(1, 9),
    "moco.temperature": st.floats(1e-12, 1e12),
    "moco.momentum": st.floats(0, 1),
    "moco.symmetric": st.booleans(),
    "moco.shuffle": st.sampled_from(["all_gather", "all_to_all", "none"]),
    "data.blur_sigma": st.tuples(st.floats(1e-6, 1), st.floats(1, 9)),
    "track.project": st.text(st.characters(codec="utf-8", categories=("L", "N", "P", "S", "Zs")), max_size=20),
}


@given(values=st.fixed_dictionaries({}, optional=FIELDS))
def test_dump_reads_back(tmp_path_factory: pytest.TempPathFactory, values: dict[str, Any]) -> None:
    tree: dict[str, dict[str, Any]] = {}
    for key, value in values.items():
        section, name = key.split(".")
        tree.setdefault(section, {})[name] = value
    run = parse(tree)
    file = tmp_path_factory.getbasetemp() / "dumped.yaml"
    file.write_text(config.dump(run), encoding="utf-8")
    if run.run.dir is not None and run.run.dir.startswith("~"):  # a folder of that name, and no home
        run = run.model_copy(update={"run": run.run.model_copy(update={"dir": f"./{run.run.dir}"})})
    assert load(file) == run


def test_dump_reads_back_from_a_file(tmp_path: Path) -> None:
    run = load(None, ["optim.lr=1e-5", "checkpoint.every_steps=null"])
    (tmp_path / "config.yaml").write_text(config.dump(run))
    assert load(tmp_path / "config.yaml") == run


# ------------------------------------------------------------------ layout


def plan_of(batch: int, ranks: int, groups: int | None = None, accumulate: int = 1) -> config.Layout:
    optim = {"global_batch": batch, "accumulate": accumulate}
    return layout(parse({"optim": optim, "moco": {"bn_groups": groups}}), ranks)


def test_layout() -> None:
    assert plan_of(32, 4) == config.Layout(ranks=4, batch_per_rank=8, group_size=8, parts=1)
    assert plan_of(32, 4, accumulate=2) == config.Layout(ranks=4, batch_per_rank=8, group_size=4, parts=2)
    assert plan_of(32, 2, groups=8) == config.Layout(ranks=2, batch_per_rank=16, group_size=4, parts=1)
    assert plan_of(32, 2, groups=8, accumulate=3) == config.Layout(ranks=2, batch_per_rank=16, group_size=4, parts=2)
    assert plan_of(32, 4, groups=4, accumulate=10**12).parts == 1  # at once
    assert plan_of(32, 4, groups=4, accumulate=8) == config.Layout(ranks=4, batch_per_rank=8, group_size=8, parts=1)


@given(group_size=st.integers(2, 6), groups=st.integers(1, 24), ranks=st.integers(1, 8), accumulate=st.integers(1, 9))
def test_where_groups_are_fixed_neither_ranks_nor_parts_change_them(
    group_size: int, groups: int, ranks: int, accumulate: int
) -> None:
    if groups % ranks:
        with pytest.raises(UserError, match="must be divisible by the"):
            plan_of(group_size * groups, ranks, groups, accumulate)
        return
    plan = plan_of(group_size * groups, ranks, groups, accumulate)
    assert plan.group_size == group_size
    assert plan.parts <= accumulate
    assert plan.batch_per_rank % (plan.parts * plan.group_size) == 0  # a part holds whole groups


@pytest.mark.parametrize(
    ("batch", "ranks", "groups", "accumulate", "message"),
    [
        (30, 4, None, 1, "optim.global_batch = 30: must be divisible by the 4 ranks; use optim.global_batch=32"),
        (32, 4, 2, 1, "moco.bn_groups = 2: must be divisible by the 4 ranks; use moco.bn_groups="),
        (36, 4, None, 2, "optim.global_batch = 36: must be divisible by ranks x optim.accumulate = 8; use optim.glob"),
        (4, 4, None, 1, "optim.global_batch = 4: leaves one image for each of 4 BatchNorm groups, which need 2; use"),
    ],
)
def test_layouts_that_do_not_fit(batch: int, ranks: int, groups: int, accumulate: int, message: str) -> None:
    with pytest.raises(UserError) as caught:
        plan_of(batch, ranks, groups, accumulate)
    assert str(caught.value).startswith(message)
    fix = re.search(r"use (\w+)\.(\w+)=(\d+)", str(caught.value))
    assert fix
    values = {"global_batch": batch, "bn_groups": groups} | {fix[2]: int(fix[3])}
    plan_of(values["global_batch"], ranks, values["bn_groups"], accumulate)


# --------------------------------------------------------------- arguments


def test_arguments() -> None:
    assert parse_arguments([]) == (None, [])
    assert parse_arguments(["a.yaml"]) == (Path("a.yaml"), [])
    assert parse_arguments(["x.y=1", "a.yaml", "z.w=a b"]) == (Path("a.yaml"), ["x.y=1", "z.w=a b"])
    assert parse_arguments(["x.y=/a/b", "/runs/lr=0.1/a.yaml"]) == (Path("/runs/lr=0.1/a.yaml"), ["x.y=/a/b"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--lr", "3"], "argument --lr: options"), (["--optim.lr=3"], "section.key=value"), (["a", "b"], "argument b")],
)
def test_arguments_that_are_none(arguments: list[str], message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        parse_arguments(arguments)


# ---------------------------------------------------------------- resuming


def resumed(*overrides: str, ranks: int = 2, before: tuple[str, ...] = ()) -> None:
    """Go on with a run that was begun on 2 ranks."""
    begun, now = load(None, before), load(None, [*before, *overrides])
    config.check_resumable(begun.model_dump(mode="json"), layout(begun, 2).group_size, now, layout(now, ranks))


@pytest.mark.parametrize(
    ("overrides", "ranks"),
    [
        ((), 2),
        ((), 4),
        (("device.channels_last=true", "track.log_every=7", "checkpoint.keep=9", "run.max_minutes=3"), 1),
        (("data.workers=2", "data.root=/elsewhere", "optim.accumulate=2", "eval.knn_every=3", "data.enlarge=true"), 2),
        (("eval.online_images=null", "eval.knn_k=5", "eval.knn_temperature=0.2"), 4),
        (("moco.shuffle=all_to_all",), 2),
    ],
)
def test_a_run_goes_on_under_changes_that_leave_its_curve(overrides: tuple[str, ...], ranks: int) -> None:
    resumed(*overrides, ranks=ranks)


@pytest.mark.parametrize(
    ("now", "begun", "then"),
    [
        ("auto", None, "cpu"),
        ("auto", {}, "pillow"),  # by a revision that had no such key
        ("auto", {"decode": "pillow"}, "pillow"),
        ("auto", {"decode": "cpu"}, "cpu"),
        ("pillow", None, "pillow"),
        ("cpu", {"decode": "cpu"}, "cpu"),
        ("cpu", {}, None),
        ("cpu", {"decode": "pillow"}, None),
        ("pillow", {"decode": "cpu"}, None),
    ],
)
def test_a_run_keeps_its_decoder(now: str, begun: dict[str, str] | None, then: str | None) -> None:
    before = load(None).model_dump(mode="json")
    del before["data"]["decode"]
    before["data"] |= begun or {}
    run = config.with_decoder(load(None, [f"data.decode={now}"]), None if begun is None else before)
    if then is None:
        with pytest.raises(UserError, match=rf"data\.decode = {now} \(was \w+\): would change the curve"):
            config.check_resumable(before, layout(run, 2).group_size, run, layout(run, 2))
        return
    assert run.data.decode == then
    if begun is not None:
        config.check_resumable(before, layout(run, 2).group_size, run, layout(run, 2))


def test_only_a_run_that_evaluates_cuts_its_validation_images_off() -> None:
    cut = ("eval.knn_split=validation",)
    resumed("eval.knn_every=3", before=cut)
    with pytest.raises(UserError, match=r"eval\.knn_every = 0 \(was 10\)"):
        resumed("eval.knn_every=0", before=cut)
    with pytest.raises(UserError, match=r"eval\.knn_every = 1 \(was 0\)"):
        resumed("eval.knn_every=1", before=(*cut, "eval.knn_every=0"))
    resumed("eval.knn_every=0")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optim.lr=0.5", "optim.lr = 0.5 (was "),
        ("optim.epochs=7", "optim.epochs = 7 (was "),
        ("moco.shuffle=none", "moco.shuffle = none (was all_gather)"),
        ("run.seed=1", "run.seed = 1 (was 0)"),
        ("device.precision=bf16", "device.precision = bf16 (was fp32)"),
        ("moco.bn_groups=8", "moco.bn_groups = 8 on 2 ranks (was 4)"),
        ("eval.knn_split=validation", "eval.knn_split = validation (was test)"),
    ],
)
def test_changes_that_would_bend_the_curve_are_refused(override: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        resumed(override)
    assert str(caught.value).startswith(message)
    assert "would change the curve of the run in runs/digits" in str(caught.value)
    assert str(caught.value).endswith("or begin another with run.name=NAME")


@pytest.mark.parametrize(
    ("override", "ranks", "message"),
    [
        (
            "",
            4,
            r"moco.bn_groups = null on 4 ranks \(was 2\): .*; put it back, or",
        ),  # two groups are none of four ranks
        ("", 1, r"moco.bn_groups = null on 1 rank \(was 2\): .*; set moco.bn_groups=2, or put it back, or"),
        (
            "optim.accumulate=3",
            2,
            r"^optim.accumulate = 3 \(was 1\), moco.bn_groups = null on 2 ranks .*; set moco.bn_g",
        ),
        (
            "optim.lr=9",
            1,
            r"^optim.lr = 9.0 .*, moco.bn_groups = null on 1 rank \(was 2\): .* runs/digits; put it back",
        ),
        ("optim.global_batch=60", 2, r"^optim.global_batch = 60 \(was 48\): would"),
    ],
)
def test_what_makes_other_groups_is_named(override: str, ranks: int, message: str) -> None:
    before = "moco.bn_groups=null", "optim.global_batch=48"
    with pytest.raises(UserError, match=message):
        resumed(*filter(None, [override]), ranks=ranks, before=before)
    resumed("moco.bn_groups=2", "optim.accumulate=3", ranks=1, before=before)


def test_a_key_that_came_after_the_run_compares_as_its_default() -> None:
    run = load()
    begun = run.model_dump(mode="json")
    for name in ("enlarge", "value_range", "mean", "std", "samples"):
        del begun["data"][name]
    del begun["optim"]["accumulate"], begun["optim"]["decay"]
    group_size = layout(run, 2).group_size
    config.check_resumable(begun, group_size, run, layout(run, 2))
    for override, was in (("data.value_range=[0,9]", "null"), ("optim.decay=0.2", "0.1")):
        with pytest.raises(UserError, match=rf"\(was {was}\): would change the curve"):
            config.check_resumable(begun, group_size, load(None, [override]), layout(run, 2))


def test_length_is_free_where_the_schedule_does_not_depend_on_it() -> None:
    resumed("optim.epochs=90", "optim.steps=9", before=("optim.schedule=constant",))
