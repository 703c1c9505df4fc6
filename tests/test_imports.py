"""The house's rules, read from the syntax trees: who may import whom, and what nobody may call."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "moco_dist"

FLOORS = (
    ("errors", "files", "interruption", "packages", "processes", "randomness", "summation"),
    ("config",),
    ("run", "ranks", "arguments"),
    ("networks", "data"),
    ("methods",),
    ("engine", "joint_work"),
    ("encoders", "reference"),
    ("health", "tracking", "report", "evaluate"),
    ("embed", "search"),
    ("train", "why", "diff", "rows", "export"),
    ("verify", "convert", "api"),
)
"""Each imports only from those above it, and nothing in a circle from its own."""
LAUNCHER_FLOORS = (
    ("environment", "job_ids", "passed_on", "progress", "start_rows"),
    ("cluster", "slurm", "snapshot"),
    ("record", "nodes", "slurm_jobs"),
    ("elastic", "job", "options"),
    ("views",),
    ("checks", "executors"),
    ("preparing",),
    ("sending",),
    ("measure", "sweeps"),
    ("commands", "after"),
    ("resize",),
    ("__main__",),
)
"""The floors of the launcher: each imports only from those above it."""
FLOOR = {unit: number for number, floor in enumerate(FLOORS) for unit in floor}


def module_name(file: Path) -> str:
    parts = file.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def trees(package: Path) -> dict[str, ast.Module]:
    return {module_name(file): ast.parse(file.read_text()) for file in sorted(package.rglob("*.py"))}


TREES = trees(PACKAGE)
LAUNCHER = trees(PACKAGE.parent / "launcher")
CLUSTER = trees(PACKAGE.parent / "slurm")
BENCHMARKS = trees(PACKAGE.parent / "benchmarks")


def imports(module: str, tree: ast.AST) -> Iterator[str]:
    """Dotted names that a module imports; `from a import b` gives `a.b`, whether b is a module or not."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{module} line {node.lineno}: a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def within(name: str) -> str | None:
    """The module of ours that a dotted name lies in."""
    while name and name not in TREES:
        name = name.rpartition(".")[0]
    return name or None


INTERNAL = {m: {n for i in imports(m, t) if (n := within(i)) and n not in (m, "moco_dist")} for m, t in TREES.items()}


def unit(module: str) -> str:
    return module.split(".")[1]


def calls(tree: ast.AST) -> Iterator[tuple[str, dict[str, str]]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), {k.arg: ast.unparse(k.value) for k in node.keywords if k.arg}


def test_the_trees_are_those_of_the_package() -> None:
    assert {"moco_dist.train", "moco_dist.data.sources", "moco_dist.tracking"} <= TREES.keys()
    assert "moco_dist.methods.method" in INTERNAL["moco_dist.engine.engine"]
    assert "moco_dist.data.store" in INTERNAL["moco_dist.data.stream"]


@pytest.mark.parametrize("module", [m for m in TREES if m.count(".") and not m.endswith("__main__")])
def test_imports_run_downward_only(module: str) -> None:
    assert unit(module) in FLOOR, f"{module} stands on no floor: add it to FLOORS"
    upward = [other for other in INTERNAL[module] if FLOOR[unit(other)] > FLOOR[unit(module)]]
    assert not upward, f"{module} imports from a floor below it in the list: {upward}"


def test_nothing_imports_in_a_circle() -> None:
    TopologicalSorter(INTERNAL).prepare()  # raises CycleError, which names the circle
    units = {unit(m): {unit(o) for o in others if unit(o) != unit(m)} for m, others in INTERNAL.items() if "." in m}
    TopologicalSorter(units).prepare()


@pytest.mark.parametrize("module", TREES)
def test_outside_libraries_stay_where_they_belong(module: str) -> None:
    imported = set(imports(module, TREES[module]))
    outside = {name.split(".")[0] for name in imported}
    assert not outside & {"submitit", "launcher", "slurm", "tests", "benchmarks"}
    assert not outside & {"wandb", "tensorboard", "trackio"} or module.startswith("moco_dist.tracking")
    elastic = "torch.distributed.elastic.multiprocessing.errors"  # tells torchrun of an error, talks to no rank
    if module != "moco_dist.ranks.collectives":
        assert not [n for n in imported if n.startswith("torch.distributed") and not n.startswith(elastic)]
        attributes = {ast.unparse(n) for n in ast.walk(TREES[module]) if isinstance(n, ast.Attribute)}
        assert not {a for a in attributes if a.startswith(("torch.distributed", "dist."))}


@pytest.mark.parametrize("module", LAUNCHER)
def test_the_launcher_needs_no_torch_where_it_is_typed(module: str) -> None:
    """A login node may have none, and status answers at once: only what runs on the nodes asks for it, when it runs.

    So it is with submitit, which only what sends a job asks for.
    """
    at_the_top = [node for node in LAUNCHER[module].body if isinstance(node, ast.Import | ast.ImportFrom)]
    imported = {name for node in at_the_top for name in imports(module, node)}
    needs_torch = {name for name, tree in TREES.items() if "torch" in {i.split(".")[0] for i in imports(name, tree)}}
    assert not [name for name in imported if name.split(".")[0] in ("torch", "torchvision", "wandb")]
    assert not [name for name in imported if within(name) in needs_torch]
    if module != "launcher.executors":
        assert not [name for name in imported if name.startswith(("submitit", "launcher.executors"))]


RUN_FILES = re.compile(
    r"metrics\.jsonl|summary\.json|status\.json|provenance\.jsonl|encoder\.safetensors|evaluation\.json|step_[*{\d]"
)
"""Names of files in a run directory, which `moco_dist.run` alone spells."""


def literals(tree: ast.Module) -> Iterator[str]:
    """The string literals of a module that are no docstrings."""
    documents = {
        id(statement.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        for statement in node.body
        if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documents:
            yield node.value


@pytest.mark.parametrize("module", TREES | LAUNCHER | CLUSTER | BENCHMARKS)
def test_a_run_directory_has_one_owner(module: str) -> None:
    spelt = [text for text in literals((TREES | LAUNCHER | CLUSTER | BENCHMARKS)[module]) if RUN_FILES.search(text)]
    assert not spelt or module.startswith("moco_dist.run."), spelt


TORCH_FREE = ("moco_dist.config", "moco_dist.run.directory", "moco_dist.run.checkpoints", "moco_dist.run.rows")
TORCH_FREE += ("moco_dist.embed.command", "moco_dist.search.command", "moco_dist.api.embedding")
TORCH_FREE += ("moco_dist.run.provenance", "moco_dist.diff.command", "moco_dist.verify.command")
TORCH_FREE += ("moco_dist.convert.command", "moco_dist.export.command")
TORCH_FREE += ("moco_dist.train", "moco_dist.rows", "moco_dist.why", "moco_dist.run.figures", "launcher.__main__")


@pytest.mark.parametrize("module", TORCH_FREE)
def test_no_torch_before_a_config_is_valid(module: str) -> None:
    script = f"import sys, {module}; print(*sys.modules)"
    process = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    heavy = {"torch", "torchvision", "sklearn", "scipy", "matplotlib", "wandb", "wandb_workspaces", "submitit"}
    assert not heavy & set(process.stdout.split())


def test_training_imports_what_it_needs() -> None:
    """The digits are scikit-learn's, and are read without it."""
    script = "import sys, moco_dist.methods.moco, moco_dist.train.process\nfrom moco_dist import config, data\n"
    script += "data.sources.open_source(config.load(None), 'train')\nprint(*sys.modules)"
    process = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    heavy = {"torchvision", "torch._dynamo", "sklearn", "scipy", "matplotlib", "wandb"}
    assert not heavy & set(process.stdout.split())


def test_images_are_counted_without_torch() -> None:
    """The launcher asks the index how many images a run reads, on a login node that may have no torch."""
    seen, waiting = set[str](), {"moco_dist.data.index"}
    while waiting:
        module = waiting.pop()
        seen.add(module)
        waiting |= {*INTERNAL[module], module.rpartition(".")[0]} - seen - {"moco_dist"}
        outside = {name.split(".")[0] for name in imports(module, TREES[module])}
        assert not outside & {"torch", "torchvision", "sklearn"}, module
    assert "moco_dist.errors" in seen


@pytest.mark.parametrize("module", [m for m in TREES if m.startswith("moco_dist.data")])
def test_only_their_sources_need_scikit_learn_and_torchvisions_datasets(module: str) -> None:
    at_the_top = [node for node in TREES[module].body if isinstance(node, ast.Import | ast.ImportFrom)]
    outside = {name.split(".")[0] for node in at_the_top for name in imports(module, node)}
    assert not outside & {"sklearn", "torchvision"}


@pytest.mark.parametrize("module", LAUNCHER)
def test_the_launchers_imports_run_downward_too(module: str) -> None:
    """A package may import within itself, but commands are no libraries for each other."""
    own = module.split(".")[1] if "." in module else ""
    ours = {name.split(".")[1] for name in imports(module, LAUNCHER[module]) if name.startswith("launcher.")}
    others = ours - {own} if own != "commands" else ours
    floors = {unit: number for number, floor in enumerate(LAUNCHER_FLOORS) for unit in floor}
    assert not own or own in floors, f"{module} stands on no floor: add it to LAUNCHER_FLOORS"
    assert not [unit for unit in others if floors[unit] >= floors[own]], f"{module} imports {others}"


@pytest.mark.parametrize("module", CLUSTER)
def test_the_devcluster_stands_alone(module: str) -> None:
    outside = {name.split(".")[0] for name in imports(module, CLUSTER[module])} - {"slurm"}
    assert outside <= sys.stdlib_module_names, outside


@pytest.mark.parametrize("module", TREES | LAUNCHER | CLUSTER)
def test_nothing_that_runs_foreign_code(module: str) -> None:
    for function, keywords in calls((TREES | LAUNCHER | CLUSTER)[module]):
        if function == "torch.load":
            assert keywords.get("weights_only") == "True", f"{module}: torch.load without weights_only=True"
        assert function not in ("eval", "exec", "os.system", "os.popen", "pickle.load", "pickle.loads"), module
        assert function.removeprefix("yaml.") not in ("unsafe_load", "full_load", "load_all"), module
        assert function != "yaml.load" or keywords.get("Loader", "").endswith("SafeLoader"), f"{module}: yaml.load"
        assert keywords.get("shell", "False") == "False", f"{module}: {function} with a shell"


@pytest.mark.parametrize("module", TREES)
def test_the_rank_is_compared_in_few_places(module: str) -> None:
    """Sinks, the loop and the ranks' own file ask who is first; the algorithm never does."""
    comparisons = [ast.unparse(n) for n in ast.walk(TREES[module]) if isinstance(n, ast.Compare)]
    who = [c for c in comparisons if re.search(r"\brank (==|!=|>) 0$", c)]
    assert not who or module.split(".")[1] in ("train", "tracking", "ranks", "verify"), who
