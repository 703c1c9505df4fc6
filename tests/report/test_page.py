"""The text of the page: it is escaped, masked, self-contained, and complete."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml

from moco_dist.report import drawings, page, panels, record
from moco_dist.run.figures import FIGURES
from moco_dist.run.paths import RunPaths
from tests.health import made
from tests.report.conftest import EVIL, a_run, a_view, with_classes


class _Tags(HTMLParser):
    """Lists tags with their attributes, and the text outside scripts and styles."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self._within = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._within = tag

    def handle_endtag(self, tag: str) -> None:
        self._within = ""

    def handle_data(self, data: str) -> None:
        if self._within not in ("script", "style"):
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def page_of(*folders: Path, **options: object) -> _Tags:
    return _Tags(page.page_of(record.read_all(folders), **options))  # type: ignore[arg-type]


def test_verdict_and_findings_stand_first_with_the_override(tmp_path: Path) -> None:
    text = page_of(a_run(tmp_path / "a", bad_from=200)).text
    assert "1 thing is wrong" in text and "Collapsed" in text
    assert text.index("1 thing is wrong") < text.index("Is it learning?")
    [finding] = record.read(tmp_path / "a").diagnosis.findings  # type: ignore[union-attr]
    assert finding.evidence[1:] in text and f"Try {finding.override}" in text


def test_a_healthy_run_is_told_to_be_one(tmp_path: Path) -> None:
    text = page_of(a_run(tmp_path / "a")).text
    assert "It is done, and its rows show nothing wrong." in text
    assert "4 ranks on 2 nodes (node-1, node-2) from step 0" in text and "2 ranks on node-1 from step 300" in text


def _cut(folder: Path, rows: int) -> Path:
    """Leave the first rows of a run alone."""
    metrics = RunPaths(folder).metrics
    metrics.write_text("".join(metrics.read_text().splitlines(keepends=True)[:rows]))
    return folder


def test_a_run_that_few_rules_could_judge_is_not_told_to_be_healthy(tmp_path: Path) -> None:
    hardly = _cut(a_run(tmp_path / "a"), 20)
    barely = shutil.copytree(Path(__file__).parent.parent / "earlier_run", tmp_path / "b")
    by_folder = {hardly: "its rows show nothing wrong, but ", barely: "there are too few rows yet to judge it by."}
    for folder, words in by_folder.items():
        made_page = page_of(folder)
        [verdict] = [attributes for tag, attributes in made_page.tags if attributes.get("id") == "verdict"]
        assert words in made_page.text and verdict["class"] == "verdict none"
    text = page_of(hardly, barely).text
    assert "2 runs · 1 without a finding" in text and "There is no finding." in text


def test_a_note_ends_with_its_phase(tmp_path: Path) -> None:
    text = page_of(_cut(a_run(tmp_path / "a"), 20)).text
    assert "Queue filling steps 1 to 9, over" in text and "First epoch since step 1" in text


def test_a_run_that_no_process_goes_on_with_is_broken_off(tmp_path: Path) -> None:
    text = page_of(a_run(tmp_path / "a", state="running")).text
    assert "broken off" in text and "It was broken off" in text


def test_what_is_absent_names_the_command_that_makes_it(tmp_path: Path) -> None:
    (tmp_path / "my runs").mkdir()
    folder = a_run(tmp_path / "my runs" / "a")
    RunPaths(folder).features_view.unlink()
    RunPaths(folder).pairs_picture.unlink()
    text = page_of(folder).text
    assert f"python -m moco_dist.evaluate '{folder}' --knn" in text  # as a shell takes it
    assert "training writes it at its first step" in text


def test_the_command_for_the_map_is_one_that_the_images_allow(tmp_path: Path) -> None:
    def page_without_map(name: str, classes: int, **changes: str) -> str:
        folder = a_run(tmp_path / name, **changes)
        RunPaths(folder).features_view.unlink()
        RunPaths(folder).provenance.write_text(
            json.dumps({"step": 0, "data": {"images": 9, "classes": classes}}) + "\n"
        )
        if name == "watched":
            return page_of(folder).text
        lines = RunPaths(folder).metrics.read_text().splitlines(keepends=True)
        RunPaths(folder).metrics.write_text("".join(line for line in lines if "knn_top1" not in line))
        return page_of(folder).text

    assert "the images have no labels." in page_without_map("flat", 0)
    assert "--knn , with --split validation where no images are held out" in page_without_map("alone", 2)
    assert "--knn --split validation" in page_without_map("cut", 2, eval__knn_split="validation")
    assert "--split validation" not in page_without_map("watched", 2)


def test_names_and_values_of_runs_are_escaped(tmp_path: Path) -> None:
    folder = a_run(tmp_path / "a", edits={"run.name": EVIL, "track.group": EVIL, f"track.{EVIL}": EVIL})
    with_classes(folder, 4, EVIL + "{}")
    row = {"step": 641, "loss": 1.0, EVIL: 3.0}
    with RunPaths(folder).metrics.open("a") as file:
        file.write(json.dumps(row) + "\n")
    for folders in ([folder], [folder, a_run(tmp_path / "b", track__group="x")]):
        made_page = page_of(*folders, title=EVIL)
        assert [tag for tag, _ in made_page.tags].count("script") == 4  # the data, uPlot, and ours
        images = [attributes["src"] for tag, attributes in made_page.tags if tag == "img"]
        assert all(source and source.startswith("data:image/") for source in images)
        assert not [name for _, attributes in made_page.tags for name in attributes if name.startswith("on")]
        assert EVIL in " ".join(made_page.words)


def test_passwords_in_the_config_are_masked(tmp_path: Path) -> None:
    edits = {"data.root": "https://me:secret@host/data", "run.name": "https://me:secret@host"}
    folder = a_run(tmp_path / "a", edits=edits)
    for folders in ([folder], [folder, a_run(tmp_path / "b")]):
        text = page.page_of(record.read_all(folders))
        assert "secret" not in text and "https://***@host/data" in text


def test_the_page_refers_to_nothing_outside_itself(tmp_path: Path) -> None:
    made_page = page_of(a_run(tmp_path / "a"))
    for tag, attributes in made_page.tags:
        for name in ("src", "href", "action", "srcset", "poster"):
            value = attributes.get(name)
            assert not value or value.startswith(("data:", "#")), (tag, name, value)
        assert "style" not in attributes, "the policy of the page forbids it"
    [policy] = [a["content"] for t, a in made_page.tags if t == "meta" and "content-security" in str(a).lower()]
    assert policy and policy.startswith("default-src 'none'") and "unsafe" not in policy and "connect-src" not in policy


def test_every_figure_of_the_list_and_any_other_has_a_panel() -> None:
    names = [figure.name.replace("<i>", "3") for figure in FIGURES]
    made_panels = panels.panels([*names, "something/new", "node/0/gpu_use", "node/11/gpu_use", "node/2/gpu_use"])
    drawn = [name for panel in made_panels for name in panel.figures]
    assert sorted(drawn) == sorted({*names, "something/new", "node/0/gpu_use", "node/11/gpu_use", "node/2/gpu_use"})
    [of_nodes] = [panel for panel in made_panels if "node/11/gpu_use" in panel.figures]
    assert of_nodes.section == "nodes" and [label for label in of_nodes.labels if label != "node 3"] == [
        "node 0",
        "node 2",
        "node 11",
    ]
    assert made_panels[-1].section == "other" and made_panels[-1].title == "Something new"
    assert all(len(panel.figures) == len(panel.labels) for panel in made_panels)


def test_the_map_has_a_dot_for_each_image_and_a_ring_for_each_error() -> None:
    view = a_view()
    dots = drawings.dots(view)
    assert sum(of_class.right.count("M") + of_class.wrong.count("M") for of_class in dots) == 60
    assert sum(of_class.wrong.count("M") for of_class in dots) == 3
    assert [of_class.count for of_class in dots] == [15, 15, 15, 15]


def test_the_confusion_matrix_counts_and_ranks() -> None:
    matrix = drawings.confusion(a_view())
    assert [cell.count for cell in matrix.cells[0]] == [12, 0, 0, 3]
    assert matrix.cells[0][3].shade == 9 and matrix.cells[0][0].shade == 0
    assert [(cell.true, cell.predicted, cell.share) for cell in matrix.pairs] == [(0, 3, 0.2)]
    assert matrix.worst[0] == (0, 0.8, 15)
    assert drawings.confusion(a_view(30, 60)).cells == []


@pytest.mark.parametrize("classes", [3, 30, 1000])
def test_pages_of_few_and_many_classes_are_made(tmp_path: Path, classes: int) -> None:
    folder = a_run(tmp_path / "a")
    with_classes(folder, classes)
    text = page.page_of([record.read(folder)])
    assert ("Confusion matrix of" in text) == (classes == 3)
    assert f"class {classes - 1}" in text


def test_several_runs_show_a_table_with_the_keys_that_differ(tmp_path: Path) -> None:
    runs = [a_run(tmp_path / "a"), a_run(tmp_path / "b", optim__lr=0.5, bad_from=200)]
    RunPaths(runs[1]).report.write_text("its own page")
    made_page = page_of(*runs, title="Some runs", beside=tmp_path)
    text = made_page.text
    assert "2 runs · 1 without a finding · 1 key differs" in text
    speed = record.read(runs[0]).curves["images_per_second"]
    assert speed.median != speed.last and f" {speed.median:.4g} " in text[: text.index("Curves Horizontal")]
    header = re.search(r"run state findings step .* optim.lr", text)
    assert header and "moco.dim" not in header[0]
    assert "b/report.html" in [attributes.get("href") for tag, attributes in made_page.tags if tag == "a"]


def test_a_key_that_came_after_a_run_does_not_differ_by_its_default(tmp_path: Path) -> None:
    runs = [a_run(tmp_path / name) for name in ("a", "b", "c")]
    for number, run in enumerate(runs):
        config = yaml.safe_load(RunPaths(run).config.read_text())
        del config["track"]["trackio"]
        if number == 1:
            config["optim"]["decay"] = 0.5
        else:
            del config["optim"]["decay"]
        RunPaths(run).config.write_text(yaml.safe_dump(config) if number < 2 else "")
    text = page_of(*runs, a_run(tmp_path / "d")).text
    assert "4 runs · 3 without a finding · 1 key differs" in text and "images/s optim.decay" in text


def test_the_health_of_speed_and_data_is_told_as_the_rows_have_it(tmp_path: Path) -> None:
    folder = a_run(tmp_path / "a")
    rows = [{"step": 641, "checkpoint_failures": 2, "unreadable": 5}, {"step": 642, "checkpoint_failures": 1}]
    with RunPaths(folder).metrics.open("a") as file:
        file.write("".join(json.dumps({**row, "loss": 1.0}) + "\n" for row in rows))
    text = page_of(folder).text
    assert "Rows of steps with replaced images 1" in text and "Checkpoints of a start that failed, at most 2" in text


def test_runs_of_one_name_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    runs = [a_run(tmp_path / name, edits={"run.name": "digits"}) for name in ("a", "b")]
    text = page_of(*runs, a_run(tmp_path / "c")).text
    assert f"digits ({runs[0]})" in text and f"digits ({runs[1]})" in text and "c (" not in text
    assert page_of(runs[0]).text.startswith("digits Skip to")


def test_rows_of_100_000_steps_are_thinned(tmp_path: Path) -> None:
    rows = ({"step": step, "epoch": 0, "loss": 9.0 if step == 77_777 else 1.0} for step in range(1, 100_001))
    made.write_run(tmp_path / "a", rows, {"state": "done"}, made.config_of())
    run = record.read(tmp_path / "a")
    loss = run.curves["loss"]
    assert len(loss.steps) <= 1000 and loss.rows == 100_000
    assert 9.0 in loss.values and loss.steps[loss.values.index(9.0)] == 77_777
    assert len(page.page_of([run])) < 200_000


def test_the_library_of_curves_is_as_it_was_published() -> None:
    """It is that of uPlot 1.6.32 in the registry of npm."""
    published = "19c8d4c6ad88929a79f4ae49d6f7161566dfd0ba3d15cc495e974f787eb78f1f"
    assert hashlib.sha256((Path(page.__file__).parent / "page" / "uplot.min.js").read_bytes()).hexdigest() == published
