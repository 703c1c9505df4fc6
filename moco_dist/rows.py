"""Turn the rows of a run, metrics.jsonl, into a table: a Parquet file for data tools, or CSV for everything else.

python -m moco_dist.rows RUN_DIR --to parquet|csv [--out PATH]

A row of the table is a row of the run, of training, of an evaluation, or a finding; a column is a figure, and a cell is
empty where a row has none. Numbers read back bit for bit. The run may go on meanwhile.
"""

import argparse
import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

from moco_dist import files, packages
from moco_dist.arguments import check_out, parser_of, path_of, refused, run_command
from moco_dist.errors import UserError, printable
from moco_dist.run.figures import SCHEMA
from moco_dist.run.paths import RunPaths, run_of
from moco_dist.run.rows import read_rows

Rows = Sequence[dict[str, Any]]

_INTEGERS = range(-(2**63), 2**63)


def run(arguments: Sequence[str]) -> int:
    """Write the table that the command line asks for. Returns the exit status."""
    try:
        options = _parser().parse_args(arguments)
        paths = RunPaths(run_of(options.run) or options.run)
        out = options.out or paths.metrics.with_suffix(f".{options.to}")
        check_out(out)
        if options.to == "parquet":
            packages.need("--to", options.to, "pyarrow", otherwise="use --to csv")
        rows = _read(paths)
        _write(out, rows, options.to)
    except UserError as error:
        return refused("moco_dist.rows", error)
    print(f"{len(rows)} rows: {printable(str(out))}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = parser_of("moco_dist.rows", __doc__)
    parser.add_argument("run", type=path_of("RUN_DIR"), metavar="RUN_DIR", help="a run directory")
    parser.add_argument("--to", choices=("parquet", "csv"), required=True, help="the format of the table")
    parser.add_argument("--out", type=path_of("--out"), metavar="PATH", help="the table (in RUN_DIR)")
    return parser


def _read(paths: RunPaths) -> Rows:
    fix = "name a run directory, such as runs/NAME"
    try:
        rows = list(read_rows(paths.metrics))
    except OSError as error:
        rule = f"{paths.metrics.name} cannot be read: {error.strerror or error}"
        raise UserError.of("RUN_DIR", paths.folder, rule, fix) from None
    if not rows:
        raise UserError.of("RUN_DIR", paths.folder, f"{paths.metrics.name} has no row yet", "wait for the first ones")
    return rows


def _write(out: Path, rows: Rows, to: str) -> None:
    """Write the whole table, or leave the file that is there as it is. Raises UserError."""
    try:
        with files.replacing(out) as file:
            (as_parquet if to == "parquet" else as_csv)(rows, file)
    except OSError as error:
        rule = f"cannot be written: {error.strerror or error}"
        raise UserError.of("--out", out, rule, "choose another place by --out") from None


def columns(rows: Rows) -> list[str]:
    """Return the names of all figures, in the order in which the rows first have them."""
    return list(dict.fromkeys(name for row in rows for name in row))


def as_csv(rows: Rows, file: BinaryIO) -> None:
    """Write rows as CSV with a heading: numbers as Python writes them, text as it is, all else as JSON."""
    text = io.TextIOWrapper(file, encoding="utf-8", newline="", write_through=True)
    names = columns(rows)
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(map(_text, names))
    writer.writerows([[_text(row[name]) if name in row else "" for name in names] for row in rows])
    text.detach()


def as_parquet(rows: Rows, file: BinaryIO) -> None:
    """Write rows as Parquet: whole numbers, numbers, or text by column, with the schema's version in the metadata."""
    import pyarrow
    from pyarrow import parquet

    arrays = {_text(name): pyarrow.array(*_column([row.get(name) for row in rows])) for name in columns(rows)}
    table = pyarrow.table(arrays).replace_schema_metadata({"moco_dist.schema": str(SCHEMA)})
    parquet.write_table(table, file)


def _column(values: list[Any]) -> tuple[list[Any], str]:
    """Return the values of a column as they can stand in one, and the column's type."""
    kinds = {type(value) for value in values} - {type(None)}
    if kinds == {int} and all(value is None or value in _INTEGERS for value in values):
        return values, "int64"
    # A float64 does not hold every whole number beyond 2^53.
    if kinds <= {int, float} and not any(isinstance(value, int) and abs(value) > 2**53 for value in values):
        return [None if value is None else float(value) for value in values], "float64"
    return [None if value is None else _text(value) for value in values], "string"


def _text(value: Any) -> str:
    """Write a value as text: halves of characters, which no encoding has, become escapes."""
    return value.encode(errors="backslashreplace").decode() if isinstance(value, str) else json.dumps(value)


if __name__ == "__main__":
    run_command(run)
