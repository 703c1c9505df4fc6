"""Describe a workspace of W&B's: sections of panels, made from the list of figures. Needs neither key nor network."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from moco_dist.errors import UserError
from moco_dist.run.figures import FIGURES, SECTIONS, Figure, of
from moco_dist.tracking.guard import reason
from moco_dist.tracking.names import at_wandb

if TYPE_CHECKING:
    from wandb_workspaces.workspaces import Section, Workspace

NAME = "moco-dist"
"""The name of the workspace."""
STEP = "train/step"
"""The x axis of all panels."""
VARIED = ("optim.lr", "optim.global_batch", "moco.temperature", "moco.momentum", "moco.queue_size")
"""The keys of the config beside the accuracy in the panel of a sweep, where no sweep file says which vary."""

_TOGETHER = (
    ("loss", "loss_at_chance"),
    ("top1", "top5"),
    ("positive_similarity", "hardest_similarity"),
    ("q_std", "k_std"),
    ("q_rank", "k_rank"),
    ("linear_top1", "linear_train_top1"),
)
"""Figures that are compared, and therefore share a panel."""


def build(entity: str, project: str, varied: Sequence[str] = VARIED) -> Workspace:
    """Make the workspace.

    Args:
        entity: the user or team at W&B.
        project: at W&B.
        varied: keys of the config that a sweep varies.
    """
    import wandb_workspaces.workspaces as ws

    return ws.Workspace(
        entity=entity,
        project=project,
        name=NAME,
        sections=[*(_section(name, heading) for name, heading in SECTIONS.items()), _sweep_section(varied)],
        settings=ws.WorkspaceSettings(x_axis=STEP, group_by_prefix="first"),
        runset_settings=ws.RunsetSettings(pinned_columns=["run:displayName", "summary:eval/knn_top1"]),
    )


def spec(workspace: Workspace) -> str:
    """Write what W&B would save as JSON, without the names that the package makes up anew each time."""
    text = workspace._to_model().spec.model_dump_json(by_alias=True, exclude_none=True)
    return json.dumps(_without_ids(json.loads(text)), indent=1)


def save(entity: str, project: str, varied: Sequence[str] = VARIED) -> str:
    """Save the workspace at W&B as a new view, and return its URL.

    Args:
        entity: the user or team at W&B; empty for the one that the key belongs to.
        project: at W&B.
        varied: keys of the config that a sweep varies.

    Raises:
        UserError: W&B cannot be reached, or refuses.
    """
    os.environ.setdefault("WANDB_SILENT", "true")
    import wandb

    try:
        entity = entity or str(wandb.Api().default_entity)
        return str(build(entity, project, varied).save().url)
    except Exception as error:  # anything: wandb raises errors of its own, and of the libraries below it
        fix = "run wandb login, or export WANDB_API_KEY and WANDB_BASE_URL; --print shows it without W&B"
        raise UserError.of("workspace", f"{entity}/{project}", f"cannot be saved ({reason(error)})", fix) from None


def _section(section: str, heading: str) -> Section:
    import wandb_workspaces.reports.v2 as wr
    import wandb_workspaces.workspaces as ws

    panels = []
    for figures in _panels(section):
        names = " and ".join(figure.name.replace("node/<i>/", "") for figure in figures)
        unit = f" ({figures[0].unit})" if figures[0].unit else ""
        if "<i>" in figures[0].name:  # as many curves as there are nodes
            regex = f"^{at_wandb(figures[0].name).replace('<i>', '[0-9]+')}$"
            panels.append(wr.LinePlot(title=names + unit, x=STEP, metric_regex=regex))
        else:
            panels.append(wr.LinePlot(title=names + unit, x=STEP, y=[at_wandb(figure.name) for figure in figures]))
    return ws.Section(name=heading, panels=panels, is_open=True)


def _panels(section: str) -> list[list[Figure]]:
    """Divide the figures of a section among panels: those that are compared, and each of the others alone."""
    partners = {name: names for names in _TOGETHER for name in names}
    names = dict.fromkeys(partners.get(f.name, (f.name,)) for f in FIGURES if f.section == section)
    return [[figure for name in group if (figure := of(name))] for group in names]


def _sweep_section(varied: Sequence[str]) -> Section:
    import wandb_workspaces.reports.v2 as wr
    import wandb_workspaces.workspaces as ws

    columns = [wr.ParallelCoordinatesPlotColumn(wr.Config(key), display_name=key) for key in varied]
    accuracies = [
        wr.ParallelCoordinatesPlotColumn(wr.SummaryMetric(at_wandb(name)), display_name=name)
        for name in ("linear_top1", "knn_top1")
    ]
    plot = wr.ParallelCoordinatesPlot(title="what a sweep varies, and the accuracy", columns=[*columns, *accuracies])
    return ws.Section(name="Sweeps", panels=[plot], is_open=False)


def _without_ids(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {key: _without_ids(value) for key, value in tree.items() if key not in ("__id__", "id")}
    if isinstance(tree, list):
        return [_without_ids(item) for item in tree]
    return tree
