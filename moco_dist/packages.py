"""Tell of packages that a run can do without: whether one is here, whether it works, which version it has."""

import importlib
import importlib.util
from collections.abc import Iterator
from importlib import metadata

from moco_dist.errors import reason


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


def versions(*names: str) -> Iterator[str]:
    """Yield `name version` of each of the packages that tells its version; a missing one is left out."""
    for name in names:
        try:
            yield f"{name} {metadata.version(name)}"
        except metadata.PackageNotFoundError:
            continue
