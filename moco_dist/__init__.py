"""moco-dist: distributed Momentum Contrast that gives the same curve on any number of GPUs.

What stands in `__all__` is public, and docs/api.md describes it. A public name is imported when it is first used, so
that `import moco_dist` needs no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from moco_dist.api.assessment import assess
    from moco_dist.api.embedding import embed_folder
    from moco_dist.api.runs import Run
    from moco_dist.api.training import fit
    from moco_dist.encoders.load import load_encoder
    from moco_dist.errors import UserError
    from moco_dist.train.ends import Diverged, Stopped

__all__ = ["Diverged", "Run", "Stopped", "UserError", "__version__", "assess", "embed_folder", "fit", "load_encoder"]

_MODULES = {
    "Diverged": "moco_dist.train.ends",
    "Run": "moco_dist.api.runs",
    "Stopped": "moco_dist.train.ends",
    "UserError": "moco_dist.errors",
    "assess": "moco_dist.api.assessment",
    "embed_folder": "moco_dist.api.embedding",
    "fit": "moco_dist.api.training",
    "load_encoder": "moco_dist.encoders.load",
}
"""The module of each public name. No name may be that of a submodule, which would replace it when imported."""

if not TYPE_CHECKING:  # else a type checker would take any name for a public one

    def __getattr__(name: str) -> Any:
        """Import a public name when it is first asked for."""
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = globals()[name] = getattr(importlib.import_module(_MODULES[name]), name)
        return value


def __dir__() -> list[str]:
    """List the public names beside those that are loaded, for completion in a shell."""
    return sorted({*globals(), *__all__})
