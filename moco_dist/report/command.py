"""Make a page of one run or several: verdict, curves, figures, config, pictures; or serve it for runs that go on.

python -m moco_dist.report RUN_DIR [RUN_DIR ...]          RUN_DIR/report.html; of several runs, report.html here
python -m moco_dist.report --sweep DIR            DIR/report.html, of all runs in a folder
python -m moco_dist.report RUN_DIR --watch            a page on this machine that shows new rows as they come

The page is one file that makes no request. A RUN_DIR may be running, finished or crashed.
"""

import argparse
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from moco_dist.arguments import check_out, parser_of, path_of, refused
from moco_dist.errors import UserError, printable
from moco_dist.run.paths import REPORT, RunPaths, run_of


def run(arguments: Sequence[str]) -> int:
    """Make or serve the page as the command line says. Returns the exit status."""
    try:
        return _make(_parser().parse_args(arguments))
    except UserError as error:
        return refused("moco_dist.report", error)


def _parser() -> argparse.ArgumentParser:
    p = parser_of("moco_dist.report", __doc__)
    p.add_argument("runs", nargs="*", metavar="RUN_DIR", type=path_of("RUN_DIR"), help="a run directory")
    p.add_argument("--sweep", metavar="DIR", type=path_of("--sweep"), help="a folder: all runs in it, at any depth")
    p.add_argument("--out", metavar="PATH", type=path_of("--out"), help="where the page goes")
    p.add_argument("--watch", action="store_true", help="serve the page on 127.0.0.1 until Ctrl-C, and write no file")
    p.add_argument("--port", type=int, metavar="N", help="of --watch; unset, a free one")
    return p


def _make(options: argparse.Namespace) -> int:
    _check(options)
    folders = _folders(options)
    title = f"Runs in {printable(options.sweep.resolve().name)}" if options.sweep else "Runs side by side"
    if options.watch:
        from moco_dist.report import serve

        return serve.serve(_folders_now(options, folders), title, options.port or 0)
    from moco_dist.report import page, record

    file = options.out or _file_for(options, folders)
    check_out(file)
    try:
        page.write(record.read_all(folders), file, title=title)
    except OSError as error:
        rule = f"cannot be written: {error.strerror}"
        raise UserError.of("--out", file, rule, "give another --out PATH") from None
    print(f"report: {printable(str(file))}")
    return 0


def _check(options: argparse.Namespace) -> None:
    if not options.runs and not options.sweep:
        raise UserError("RUN_DIR: no run is named; give a run directory, or --sweep DIR")
    if options.port is not None and not options.watch:
        raise UserError.of("--port", options.port, "is about --watch", "add --watch, or drop it")
    if options.port is not None and not 0 <= options.port < 65536:
        raise UserError.of("--port", options.port, "must be 0 to 65535", "drop it for a free port")
    if options.out and options.watch:
        raise UserError.of("--out", options.out, "--watch writes no file", "drop one of them")
    if options.sweep and not options.sweep.is_dir():
        raise UserError.of("--sweep", options.sweep, "no such folder", "give the folder of a sweep's runs")


def _folders(options: argparse.Namespace) -> list[Path]:
    """Return the run directories that the command line means, each once. Raises UserError where there is none."""
    from moco_dist.report import record

    swept = record.runs_below(options.sweep) if options.sweep else []
    if options.sweep and not swept:
        raise UserError.of("--sweep", options.sweep, "holds no run", "give the folder of a sweep's runs")
    named = [run_of(path) or path for path in options.runs]
    folders = {os.path.realpath(folder): folder for folder in [*named, *swept]}
    return list(folders.values())


def _folders_now(options: argparse.Namespace, folders: list[Path]) -> Callable[[], list[Path]]:
    """Return what lists the runs to be watched: those of a sweep may become more."""
    return (lambda: _folders(options)) if options.sweep else (lambda: folders)


def _file_for(options: argparse.Namespace, folders: Sequence[Path]) -> Path:
    """Return the file that the page goes to where the command line names none."""
    if options.sweep:
        return Path(options.sweep) / REPORT
    return RunPaths(folders[0]).report if len(folders) == 1 else Path(REPORT)
