"""The page in a real Chromium: drawn, silent, accessible, on a desk and on a phone, in light and in dark."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect

from moco_dist.report import command
from moco_dist.report.serve import Pages, Server
from moco_dist.run.paths import RunPaths
from tests.report.conftest import EVIL, STEPS, a_run, with_classes

DESK, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}


class Watched:
    """A page of the browser, and what it has complained of and asked for."""

    def __init__(
        self, browser: Browser, scheme: str = "light", viewport: dict[str, int] = DESK, **options: Any
    ) -> None:
        self.context = browser.new_context(viewport=viewport, color_scheme=scheme, **options)  # type: ignore[arg-type]
        self.context.set_default_timeout(60_000)
        self.page = self.context.new_page()
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))

    def open(self, url: str) -> Page:
        self.page.goto(url)
        self.page.locator(".panel .plot").first.scroll_into_view_if_needed()
        self.page.wait_for_selector(".panel canvas")
        return self.page


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Addresses of the page of one run, and of one of several."""
    folder = tmp_path_factory.mktemp("runs")
    one = a_run(folder / "a", bad_from=300)
    a_run(folder / "b", optim__lr=0.5)
    a_run(folder / "c", optim__lr=0.05, moco__momentum=0.9)
    command.run([str(one)])
    command.run(["--sweep", str(folder)])
    return {"one": (one / "report.html").as_uri(), "several": (folder / "report.html").as_uri()}


@pytest.fixture
def watched(chromium: Browser) -> Iterator[Watched]:
    made = Watched(chromium)
    yield made
    made.context.close()
    assert made.complaints == []


def open_all(page: Page) -> None:
    """Open all sections, and bring each panel into sight, since panels are drawn when they are seen."""
    page.evaluate("for (const each of document.querySelectorAll('details')) each.open = true")
    for panel in page.locator(".panel").all():
        panel.scroll_into_view_if_needed()
        expect(panel.locator("canvas, .empty")).to_have_count(1)
    page.evaluate("scrollTo(0, 0)")


def until(page: Page, condition: str) -> None:
    """Wait until a condition holds; Playwright's own wait evaluates text, which the policy of the page forbids."""
    deadline = time.monotonic() + 60
    while not page.evaluate(condition):
        assert time.monotonic() < deadline, condition
        page.wait_for_timeout(50)


def inked(page: Page, number: int = 0) -> int:
    """Count the pixels of a panel that are not transparent."""
    script = """(canvas) => canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data
        .filter((value, index) => index % 4 === 3 && value > 0).length"""
    return int(page.locator(".panel canvas").nth(number).evaluate(script))


@pytest.mark.parametrize("which", ["one", "several"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("viewport", [DESK, PHONE], ids=["desk", "phone"])
def test_the_page_is_drawn_in_silence_and_fits(
    chromium: Browser, pages: dict[str, str], which: str, scheme: str, viewport: dict[str, int]
) -> None:
    watched = Watched(chromium, scheme, viewport)
    page = watched.open(pages[which])
    open_all(page)
    canvases = page.locator(".panel canvas").count()
    assert canvases == page.locator(".panel").count() >= 15
    assert all(inked(page, number) > 500 for number in range(canvases))
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "it scrolls sideways"
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (dark == "rgb(14, 17, 22)") == (scheme == "dark")
    assert watched.complaints == [] and watched.requests == [pages[which]]
    watched.context.close()


@pytest.mark.parametrize("which", ["one", "several"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_serious_fault(chromium: Browser, pages: dict[str, str], which: str, scheme: str) -> None:
    watched = Watched(chromium, scheme, bypass_csp=True)  # axe is put into the page, whose policy forbids it
    page = watched.open(pages[which])
    open_all(page)
    violations = Axe().run(page).response["violations"]
    serious = [v["id"] + str(v["nodes"][0]["target"]) for v in violations if v["impact"] in ("serious", "critical")]
    assert serious == []
    watched.context.close()


def range_of(page: Page, number: int = 0) -> list[float]:
    until(page, f"state.panels.has(document.querySelectorAll('.panel')[{number}])")  # drawn once it is in sight
    script = (
        "(n) => { const s = state.panels.get(document.querySelectorAll('.panel')[n]).scales.x; return [s.min, s.max] }"
    )
    return list(page.evaluate(script, number))


def test_a_drag_zooms_all_curves_and_a_double_click_shows_all(watched: Watched, pages: dict[str, str]) -> None:
    page = watched.open(pages["one"])
    assert range_of(page) == [1, STEPS]
    over = page.locator(".panel .u-over").first
    box = over.bounding_box()
    assert box
    page.mouse.move(box["x"] + box["width"] * 0.25, box["y"] + 50)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.5, box["y"] + 60, steps=4)
    page.mouse.up()
    low, high = range_of(page)
    assert low == pytest.approx(STEPS / 4, abs=8) and high == pytest.approx(STEPS / 2, abs=8)
    assert range_of(page, 1) == [low, high]
    assert page.locator('input[name="from"]').input_value() == str(round(low))
    over.dblclick()
    until(page, "state.range === null")
    assert range_of(page) == [1, STEPS]
    page.locator('input[name="from"]').fill("100")
    page.locator('input[name="from"]').press("Tab")
    page.locator('input[name="to"]').fill("200")
    page.locator('input[name="to"]').press("Tab")
    assert range_of(page) == [100, 200]
    page.get_by_role("button", name="Whole course").click()
    assert range_of(page) == [1, STEPS]


def test_a_figure_is_told_where_the_pointer_is(watched: Watched, pages: dict[str, str]) -> None:
    page = watched.open(pages["one"])
    over = page.locator(".panel .u-over").first
    box = over.bounding_box()
    assert box
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 60)
    tip = page.locator(".panel .tip").first
    expect(tip).to_be_visible()
    expect(tip).to_contain_text("step 32")
    expect(tip).to_contain_text("at chance6.2403")
    page.mouse.move(2, 2)
    expect(tip).to_be_hidden()


def test_a_run_whose_epochs_are_not_known_is_drawn_by_steps_alone(watched: Watched, tmp_path: Path) -> None:
    runs = [a_run(tmp_path / "a"), a_run(tmp_path / "old")]
    RunPaths(runs[1]).status.write_text('{"state": "done", "step": 640, "reason": ""}')
    file = tmp_path / "both.html"
    command.run([*map(str, runs), "--out", str(file)])
    page = watched.open(file.as_uri())
    expect(page.locator("#toolbar .hint")).to_contain_text("By epochs, old is not drawn")
    assert range_of(page)[1] == STEPS
    page.get_by_text("Epochs", exact=True).click()
    until(page, "state.panels.has(document.querySelector('.panel'))")
    assert range_of(page)[1] == STEPS / 32


def test_axes_may_be_logarithmic_and_in_epochs(watched: Watched, pages: dict[str, str]) -> None:
    page = watched.open(pages["one"])
    before = page.locator(".panel canvas").first.evaluate("(canvas) => canvas.toDataURL()")
    page.get_by_label("Log axis").check()
    until(page, "state.panels.has(document.querySelector('.panel'))")
    assert page.evaluate("state.panels.get(document.querySelector('.panel')).scales.y.distr") == 3
    assert page.locator(".panel canvas").first.evaluate("(canvas) => canvas.toDataURL()") != before
    page.get_by_text("Epochs", exact=True).click()
    assert range_of(page) == [pytest.approx(1 / 32), STEPS / 32]


def test_the_axis_of_a_figure_that_is_always_zero_ends_at_one(watched: Watched, tmp_path: Path) -> None:
    run = a_run(tmp_path / "a")
    rows = [json.loads(line) for line in RunPaths(run).metrics.read_text().splitlines()]
    waits = [{**row, "data_wait": 0.0} if "loss" in row else row for row in rows]
    RunPaths(run).metrics.write_text("".join(json.dumps(row) + "\n" for row in waits))
    command.run([str(run)])
    page = watched.open((run / "report.html").as_uri())
    open_all(page)
    number = page.evaluate("page.panels.findIndex((panel) => panel.figures[0] === 'data_wait')")
    plot = f"state.panels.get(document.querySelector('[data-panel=\"{number}\"]'))"
    until(page, f"{plot}?.axes[1]._values")
    assert page.evaluate(f"{plot}.axes[1]._values") == ["0 %", "20 %", "40 %", "60 %", "80 %", "100 %"]


def test_findings_and_restarts_are_marked_on_the_curves(watched: Watched, pages: dict[str, str]) -> None:
    page = watched.open(pages["one"])
    data = page.evaluate("page.runs[0]")
    assert [mark["name"] for mark in data["marks"]] == ["collapsed"] and data["restarts"] == [300]
    marked = page.locator(".panel canvas").first.evaluate("(canvas) => canvas.toDataURL()")
    page.evaluate("page.runs[0].marks = []; drawAnew()")
    until(page, "state.panels.size > 0")
    unmarked = page.locator(".panel canvas").first.evaluate("(canvas) => canvas.toDataURL()")
    assert marked != unmarked
    page.evaluate("page.runs[0].restarts = []; drawAnew()")
    until(page, "state.panels.size > 0")
    assert page.locator(".panel canvas").first.evaluate("(canvas) => canvas.toDataURL()") != unmarked


def shown_runs(page: Page) -> list[str]:
    return [text.strip() for text in page.locator("#table tbody tr:visible th").all_inner_texts()]


def test_runs_are_sorted_by_any_column(watched: Watched, pages: dict[str, str]) -> None:
    page = watched.open(pages["several"])
    assert shown_runs(page) == ["a", "b", "c"]
    by_lr = page.get_by_role("button", name="optim.lr")
    by_lr.click()
    assert shown_runs(page) == ["a", "c", "b"]  # 0.015, 0.05, 0.5
    by_lr.click()
    assert shown_runs(page) == ["b", "c", "a"]
    assert page.locator("th[aria-sort]").all_inner_texts() == ["optim.lr"]
    page.get_by_role("button", name="run", exact=True).click()
    page.get_by_role("button", name="findings").click()
    counts = [int(text) for text in page.locator("#table tbody tr td:nth-child(3)").all_inner_texts()]
    assert counts == sorted(counts) and len(set(counts)) > 1


def test_runs_are_filtered_by_a_key_and_by_name(watched: Watched, pages: dict[str, str]) -> None:
    page = watched.open(pages["several"])
    expect(page.locator("#table th", has_text="moco.dim")).to_have_count(0)
    page.get_by_label("optim.lr").select_option("0.5")
    assert shown_runs(page) == ["b"]
    expect(page.locator("#count")).to_have_text("1 of 3")
    assert page.evaluate("visibleRuns().map((run) => run.name)") == ["b"]
    page.get_by_role("button", name="All runs").click()
    expect(page.locator("#count")).to_have_text("3 of 3")
    page.get_by_label("Name").fill("C")
    assert shown_runs(page) == ["c"]
    page.get_by_role("button", name="All runs").click()
    page.get_by_label("Draw a").uncheck()
    assert page.evaluate("visibleRuns().map((run) => run.name)") == ["b", "c"]


def test_a_class_on_the_map_can_be_looked_at_alone(watched: Watched, pages: dict[str, str]) -> None:
    page = watched.open(pages["one"])
    assert page.locator(".dots path").count() > 4
    page.get_by_role("button", name="class 1").click()
    expect(page.locator(".dots.dim")).to_have_count(3)
    page.get_by_role("button", name="class 1").click()
    expect(page.locator(".dots.dim")).to_have_count(0)


def test_the_config_shows_what_differs_or_all(watched: Watched, pages: dict[str, str]) -> None:
    page = watched.open(pages["one"])
    rows = page.locator(".settings tbody tr:visible")
    few = rows.count()
    expect(rows.filter(has_text="optim.lr")).to_have_count(1)
    page.get_by_label("Only keys that differ").uncheck()
    assert rows.count() > few > 0


def test_a_run_whose_name_is_a_script_stays_a_name(chromium: Browser, tmp_path: Path) -> None:
    runs = [a_run(tmp_path / name, edits={"run.name": EVIL, f"track.{EVIL}": EVIL + name}) for name in "ab"]
    for run in runs:
        with_classes(run, 4, EVIL + "{}")
        with RunPaths(run).metrics.open("a") as file:
            file.write(json.dumps({"step": STEPS + 1, "loss": 1.0, EVIL: 2.0}) + "\n")
    command.run([str(runs[0])])
    command.run(["--sweep", str(tmp_path)])
    for file in (runs[0] / "report.html", tmp_path / "report.html"):
        watched = Watched(chromium)
        page = watched.open(file.as_uri())
        open_all(page)
        assert page.title() != "broken" and EVIL in page.locator("body").inner_text()
        assert page.locator("img[src='x'], script:not([type]) ~ img").count() == 0
        assert watched.complaints == [] and len(watched.requests) == 1
        watched.context.close()


def test_a_page_without_rows_says_so(watched: Watched, tmp_path: Path) -> None:
    run = a_run(tmp_path / "a", state="running")
    RunPaths(run).metrics.write_text("")
    command.run([str(run)])
    watched.page.goto((run / "report.html").as_uri())
    expect(watched.page.locator("#curves .absent")).to_contain_text("No rows yet")


def test_a_watched_page_takes_over_new_rows_and_keeps_what_is_set(watched: Watched, tmp_path: Path) -> None:
    run = a_run(tmp_path / "a")
    with Server(Pages(lambda: [run], ""), 0) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            page = watched.open(server.url)
            page.evaluate("page.watchSeconds = 0.2")
            page.get_by_label("Log axis").check()
            page.evaluate("zoom([100, 200])")
            page.wait_for_timeout(5000)  # the first look, which learns the tag of the page
            with RunPaths(run).metrics.open("a") as file:
                file.write(json.dumps({"step": STEPS + 9, "loss": 0.123}) + "\n")
            expect(page.locator(".facts-line")).to_contain_text(f"step {STEPS + 9}", timeout=30_000)
            until(page, "state.panels.size > 0")
            assert page.get_by_label("Log axis").is_checked() and range_of(page) == [100, 200]
            expect(page.locator("#connection")).to_contain_text("Live")
            assert set(watched.requests) == {server.url} and watched.complaints == []
        finally:
            server.shutdown()
            thread.join()
            server.server_close()
        expect(page.locator("#connection")).to_contain_text("does not answer", timeout=30_000)
    watched.page.close()
    watched.complaints.clear()  # Chromium tells on its console that nobody answered


def test_a_watched_table_keeps_its_order_when_columns_come_and_go(watched: Watched, tmp_path: Path) -> None:
    runs = [a_run(tmp_path / "a"), a_run(tmp_path / "b", optim__lr=0.5)]
    config = RunPaths(runs[1]).config
    text = config.read_text()
    with Server(Pages(lambda: runs, ""), 0) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            page = watched.open(server.url)
            page.evaluate("page.watchSeconds = 0.2")
            page.get_by_role("button", name="optim.lr").click()
            page.wait_for_timeout(5000)  # the first look, which learns the tag of the page
            config.write_text(text.replace("temperature: 0.2", "temperature: 0.4"))
            expect(page.locator("#table th", has_text="moco.temperature")).to_have_count(1, timeout=30_000)
            assert page.locator("th[aria-sort]").all_inner_texts() == ["optim.lr"]
            config.write_text(text.replace("lr: 0.5", "lr: 0.015"))
            expect(page.locator("#table th", has_text="optim.lr")).to_have_count(0, timeout=30_000)
            until(page, "state.panels.size > 0")
        finally:
            server.shutdown()
            thread.join()
