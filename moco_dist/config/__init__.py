"""The config of a run is a YAML file of sections (`optim: {lr: 0.03}`) plus overrides (`optim.lr=0.03`).

Every mistake in it is told in one line that names key, value, rule and fix.
"""

from moco_dist.config.effects import Effect, effect_of
from moco_dist.config.environment import overruled
from moco_dist.config.layout import Layout, layout
from moco_dist.config.load import (
    DEFAULT_CONFIG,
    SHIPPED_CONFIGS,
    dump,
    load,
    parse,
    parse_arguments,
    read_overrides,
    resolve,
    schema,
    usage,
    validate,
)
from moco_dist.config.paths import expanded, literal
from moco_dist.config.read import MOST_BYTES, flat, read_tree
from moco_dist.config.resume import check_resumable, earlier_values, with_decoder
from moco_dist.config.schema import Config

__all__ = [
    "DEFAULT_CONFIG",
    "MOST_BYTES",
    "SHIPPED_CONFIGS",
    "Config",
    "Effect",
    "Layout",
    "check_resumable",
    "dump",
    "earlier_values",
    "effect_of",
    "expanded",
    "flat",
    "layout",
    "literal",
    "load",
    "overruled",
    "parse",
    "parse_arguments",
    "read_overrides",
    "read_tree",
    "resolve",
    "schema",
    "usage",
    "validate",
    "with_decoder",
]
