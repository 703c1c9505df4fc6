"""Check the options of an evaluation before its job is sent, by the evaluation's own command line."""

import shlex
from collections.abc import Sequence

from moco_dist.errors import UserError
from moco_dist.evaluate import options as evaluation


def words_of(text: str, *, local: bool) -> tuple[str, ...]:
    """Read the value of --then, `evaluate [OPTIONS]`. Returns the evaluation's options. Raises UserError."""
    if local:
        raise UserError.of("--then", text, "--local runs one job alone", "use python -m moco_dist.evaluate afterwards")
    try:
        command, *words = shlex.split(text) or [""]
    except ValueError as error:
        raise UserError.of("--then", text, f"cannot be read: {error}", "write --then 'evaluate --linear'") from None
    if command != "evaluate":
        raise UserError.of("--then", text, "must begin with evaluate", "write --then 'evaluate --linear'")
    return checked(words)


def checked(words: Sequence[str]) -> tuple[str, ...]:
    """Check the options of an evaluation of a run. Returns them. Raises UserError."""
    options = evaluation.parse(["RUN_DIR", *words])
    if options.out is not None:
        rule = "the results of the job are in the run directory"
        raise UserError.of("--out", options.out, rule, "drop it, or use python -m moco_dist.evaluate")
    return tuple(words)
