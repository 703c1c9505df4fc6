"""The list of figures: the document agrees with it, and its names are told apart."""

from __future__ import annotations

import subprocess
import sys

from moco_dist.run import figures
from tests.jobs import ROOT

PAGE = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")


def test_the_document_has_the_tables_of_the_list() -> None:
    assert figures.tables() in PAGE, "run: python -m moco_dist.run.figures, and put its tables into docs/metrics.md"
    assert f"The version of the schema is **{figures.SCHEMA}**." in PAGE


def test_names_are_distinct_and_every_section_has_some() -> None:
    names = [figure.name for figure in figures.FIGURES]
    assert len(set(names)) == len(names)
    assert {figure.section for figure in figures.FIGURES} == set(figures.SECTIONS)


def test_figures_are_looked_up_by_name_and_by_node() -> None:
    by_node = figures.of("node/12/gpu_use")
    assert by_node is not None and by_node.name == "node/<i>/gpu_use" and by_node.section == "nodes"
    assert figures.of("node/x/gpu_use") is figures.of("node/1/other") is figures.of("attraction") is None
    assert [name for name in ("loss", "data_wait", "node/0/data_wait", "attraction") if figures.is_measured(name)] == [
        "data_wait",
        "node/0/data_wait",
    ]


def test_the_list_needs_no_torch() -> None:
    script = "import sys; from moco_dist.run import figures; assert not {'torch', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True)
