"""Print the JSON schema of a config file, for editors: `python -m moco_dist.config > schema.json`."""

import sys
from collections.abc import Sequence

from moco_dist import config
from moco_dist.arguments import parser_of, refused, run_command
from moco_dist.errors import UserError


def run(arguments: Sequence[str]) -> int:
    """Print the schema. Returns the exit status."""
    try:
        parser_of("moco_dist.config", __doc__).parse_args(arguments)
    except UserError as error:
        return refused("moco_dist.config", error)
    sys.stdout.write(config.schema())
    return 0


if __name__ == "__main__":
    run_command(run)
