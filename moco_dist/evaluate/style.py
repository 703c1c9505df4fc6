"""Give all pictures one style, whatever a matplotlibrc says but for its fonts, and write names that can be drawn.

Of a matplotlibrc, another origin would turn images upside down, and LaTeX would be needed where it typesets all text.
"""

from __future__ import annotations

import matplotlib
from matplotlib.font_manager import FontProperties, findfont, get_font

from moco_dist.errors import printable

_STYLES = (
    *("axes", "errorbar", "figure", "grid", "image", "legend", "lines", "mathtext", "patch", "path", "savefig", "text"),
    *("xtick", "ytick"),
)
"""The parts of matplotlib's settings that change how pictures look."""
_SETTINGS = {
    name: matplotlib.rcParamsDefault[name] for name in matplotlib.rcParamsDefault if name.split(".")[0] in _STYLES
}
plain_style = matplotlib.rc_context(_SETTINGS)
"""This decorates what draws, so that a matplotlibrc changes no picture but for its fonts."""


def drawable(name: str) -> str:
    """Write a name on one line, with ? for each letter that the font lacks."""
    letters = get_font(findfont(FontProperties())).get_charmap()
    return "".join(letter if ord(letter) in letters else "?" for letter in printable(name))


def short(name: str, most: int) -> str:
    """Shorten a name to at most so many characters, all of which can be drawn."""
    name = drawable(name)
    return name if len(name) <= most else name[: most - 1] + "…"
