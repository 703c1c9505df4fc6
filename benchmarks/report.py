"""Measure how long the page of many long runs takes: to be made, and to be opened in a real Chromium.

python -m benchmarks.report [--runs 10] [--rows 100000]

Each run has a row a step with about thirty figures. Opening ends when the first curves are drawn; then the time for all
other panels is taken.
"""

import argparse
import os
import random
import sys
import tempfile
import time
from pathlib import Path

from moco_dist import config
from moco_dist.report import command
from moco_dist.run import status
from moco_dist.run.figures import FIGURES
from moco_dist.run.paths import RunPaths
from moco_dist.run.rows import MetricsFile

EPOCH_STEPS = 100


def main(arguments: list[str]) -> int:
    """Make the runs, their page, and open it. Returns the exit status."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("python -m benchmarks.report", description=__doc__, formatter_class=raw)
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--rows", type=int, default=100_000)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        make(Path(folder), options.runs, options.rows)
        began = time.perf_counter()
        command.run(["--sweep", folder])
        made = time.perf_counter() - began
        page = RunPaths(Path(folder)).report
        size = page.stat().st_size / 1e6
        opened, others = seconds_to_open(page)
    print(f"{options.runs} runs of {options.rows:,} rows: made in {made:.1f} s, {size:.1f} MB")
    print(f"opened in {opened:.2f} s; all other panels drawn in {others:.2f} s more")
    return 0


def make(folder: Path, runs: int, rows: int) -> None:
    """Write the runs, which share their rows on the disk and differ in their learning rates."""
    first = folder / "run-0"
    for number in range(runs):
        run = folder / f"run-{number}"
        run.mkdir()
        paths = RunPaths(run)
        overrides = [f"run.name={run.name}", f"optim.lr={0.01 * (number + 1)}"]
        paths.config.write_text(config.dump(config.load(None, overrides)))
        status.write(run, "done", rows, total_steps=rows, epoch_steps=EPOCH_STEPS)
        if number:
            os.link(RunPaths(first).metrics, paths.metrics)
            continue
        names = [figure.name.replace("<i>", "0") for figure in FIGURES if figure.section != "evaluation"]
        noise, file = random.Random(0), MetricsFile(paths.metrics)
        for step in range(1, rows + 1):
            figures = {name: 1 + noise.gauss(0, 0.1) for name in names}
            file.append({"step": step, "epoch": step // EPOCH_STEPS, **figures})
        file.close()


def seconds_to_open(page: Path) -> tuple[float, float]:
    """Open a page in Chromium.

    Returns:
        The seconds until its first curves are drawn, and those that all other panels take.
    """
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        tab = browser.new_page(viewport={"width": 1280, "height": 900})
        began = time.perf_counter()
        tab.goto(page.as_uri())
        tab.locator(".panel .plot").first.scroll_into_view_if_needed()
        tab.wait_for_selector(".panel canvas")
        opened = time.perf_counter() - began
        tab.evaluate("for (const each of document.querySelectorAll('details')) each.open = true")
        began = time.perf_counter()
        tab.evaluate("document.querySelectorAll('.panel').forEach((each) => state.panels.has(each) || draw(each))")
        others = time.perf_counter() - began
        browser.close()
    return opened, others


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
