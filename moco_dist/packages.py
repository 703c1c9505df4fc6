"""Tell of packages that a run can do without: whether one is here, whether it works, which version it has."""

import importlib
import importlib.util
from collections.abc import Iterator
from importlib import metadata

from moco_dist.errors import UserError, reason

EXTRAS = {
    "onnx": "onnx",
    "onnxruntime": "onnx",
    "pyarrow": "parquet",
    "tensorboard": "tensorboard",
    "timm": "timm",
    "trackio": "trackio",
    "wandb_workspaces": "workspace",
}
"""The extra of moco-dist that installs each package, by the name under which the package is imported."""


def installed(name: str) -> bool:
    """Return whether a package can be found, without importing it.

    A folder of that name without code is no package: W&B leaves a `wandb/` wherever it has run.
    """
    try:
        spec = importlib.util.find_spec(name)
    except ImportError:
        return False
    return spec is not None and spec.origin is not None


def fault(name: str) -> str | None:
    """Import a package. Return what is wrong with it in one line, or None where nothing is."""
    if not installed(name):
        return f"{name} is not installed here"
    try:
        importlib.import_module(name)
    except (Exception, SystemExit) as error:  # anything: a broken package fails in its own way
        return f"{name} cannot be imported here ({reason(error)})"
    return None


def fix(name: str, otherwise: str = "") -> str:
    """Write how to install a package: by its extra of moco-dist, or by itself where moco-dist always asks for it.

    Args:
        name: the name under which the package is imported.
        otherwise: what else the user can do, such as `use --to csv`.
    """
    requirement = f"'moco-dist[{EXTRAS[name]}]'" if name in EXTRAS else name
    return f"install it (pip install {requirement})" + (f", or {otherwise}" if otherwise else "")


def need(key: str, value: object, *names: str, otherwise: str = "") -> None:
    """Import the packages that a user's wish needs.

    Args:
        key: the option, or the key of the config, by which the user asks for it.
        value: of this key.
        names: the names under which the packages are imported.
        otherwise: what else the user can do, such as `use --to csv`.

    Raises:
        UserError: a package is missing or broken; the line says how to install it.
    """
    for name in names:
        if rule := fault(name):
            raise UserError.of(key, value, rule, fix(name, otherwise))


def versions(*names: str) -> Iterator[str]:
    """Yield `name version` of each of the packages that tells its version; a missing one is left out."""
    for name in names:
        try:
            yield f"{name} {metadata.version(name)}"
        except metadata.PackageNotFoundError:
            continue
