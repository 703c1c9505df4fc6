"""The pictures say what the numbers say: read from the figures, and from the files as another program opens them."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

import matplotlib
import numpy as np
import pytest
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from moco_dist.evaluate import plots
from moco_dist.evaluate.plots import Curve
from moco_dist.search import picture
from moco_dist.search.picture import Line, Tile

DIGITS = [str(digit) for digit in range(10)]
TRUTH = np.arange(1000) % 10
PREDICTED = np.where(np.arange(1000) < 13, (TRUTH + 5) % 10, TRUTH)  # 13 wrong: of 0, 1 and 2 two each, else one
METHODS: list[dict[str, Any]] = [
    {"method": "linear probe", "labels": None, "accuracies": [0.9861]},
    {"method": "kNN", "labels": 100, "accuracies": [0.97, 0.98, 0.96]},
]


def run(per_epoch: int, epochs: int, *, log_every: int = 1, knn_every: int = 1) -> list[dict[str, Any]]:
    """Make rows of a run as the trainer writes them; the loss is the step's number, kNN a hundredth of the epoch's."""
    rows: list[dict[str, Any]] = []
    for step in range(1, per_epoch * epochs + 1):
        if step % log_every == 0:
            rows.append({"step": step, "epoch": (step - 1) // per_epoch, "loss": float(step), "lr": 0.1, "top1": 0.5})
        if knn_every and step % (per_epoch * knn_every) == 0:
            rows.append({"step": step, "epoch": step // per_epoch, "knn_top1": step / per_epoch / 100})
    return rows


def wrong(count: int, channels: int = 1) -> tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.int64]]:
    """Images [m, C, 8, 6], each of its own grey, and their true and predicted classes."""
    grey = (np.arange(count) % 256).astype(np.uint8)[:, None, None, None]
    return np.broadcast_to(grey, (count, channels, 8, 6)), np.arange(count) % 10, (np.arange(count) + 3) % 10


DRAWN: dict[str, Callable[[], Figure]] = {
    "confusion": lambda: plots.confusion(TRUTH, PREDICTED, DIGITS),
    "many classes": lambda: plots.confusion(TRUTH, PREDICTED, [f"class {c}" for c in range(60)]),
    "no errors": lambda: plots.confusion(TRUTH, TRUTH, DIGITS),
    "one class": lambda: plots.confusion(np.zeros(3, int), np.zeros(3, int), ["all"]),
    "wrong images": lambda: plots.wrong_images(*wrong(12), DIGITS),
    "wrong in colour": lambda: plots.wrong_images(*wrong(3, 3), DIGITS),
    "nothing wrong": lambda: plots.wrong_images(*wrong(0), DIGITS),
    "accuracies": lambda: plots.accuracies(METHODS, "test"),
    "curves": lambda: plots.curves(Curve(run(100, 4), 100)),
    "no evaluation": lambda: plots.curves(Curve(run(5, 2, knn_every=0), 5)),
    "one row": lambda: plots.curves(Curve(run(5, 1)[:1], 5)),
    "no row": lambda: plots.curves(Curve([], None)),
    "overlay": lambda: plots.overlay({f"run {n}": Curve(run(10 + n, 3), 10 + n) for n in range(10)}),
    "names": lambda: plots.overlay(
        {"_a $x": Curve(run(3, 2), 3), "$\\b_": Curve([], None), "c\udcff" + 99 * "c": Curve(run(3, 1), 3)}
    ),
    "classes' names": lambda: plots.confusion(TRUTH, PREDICTED, ["$a_", "\udcff", "_", "", "猫", "a\nb", *DIGITS[6:]]),
}


def texts(axes: Axes) -> list[str]:
    return [text.get_text() for text in axes.texts]


def ticks(labels: list[Any]) -> list[str]:
    return [label.get_text() for label in labels]


def x_and_y(axes: Axes, which: int = -1) -> tuple[list[float], list[float]]:
    line = axes.lines[which]
    return np.asarray(line.get_xdata()).tolist(), np.asarray(line.get_ydata()).tolist()


@pytest.mark.parametrize("what", DRAWN)
def test_a_picture_is_a_png_with_something_on_it(tmp_path: Path, what: str) -> None:
    plots.save(tmp_path / "a.png", DRAWN[what]())
    with Image.open(tmp_path / "a.png") as image:
        assert image.format == "PNG" and not image.info.keys() & {"Software", "Creation Time"}
        assert image.width >= 800 and image.height >= 250
        assert len(np.unique(np.asarray(image.convert("L")))) > 10
    assert [file.name for file in tmp_path.iterdir()] == ["a.png"]


def test_the_same_picture_is_the_same_bytes_in_any_thread(tmp_path: Path) -> None:
    def draw(number: int) -> dict[str, bytes]:
        folder = tmp_path / str(number)
        folder.mkdir()
        for what in ("confusion", "wrong images", "accuracies", "curves", "overlay"):
            plots.save(folder / what, DRAWN[what]())
        return {file.name: file.read_bytes() for file in folder.iterdir()}

    first = draw(0)
    assert len(set(first.values())) == 5
    with ThreadPoolExecutor(2) as threads:
        assert all(again == first for again in threads.map(draw, range(1, 3)))


STYLE = {"text.usetex": True, "image.origin": "lower", "savefig.bbox": "tight", "axes.prop_cycle": cycler(marker=["x"])}


def test_the_style_of_a_user_changes_no_picture(tmp_path: Path) -> None:
    """LaTeX, which such a style needs, is seldom installed on a cluster."""
    tile = Tile(np.arange(12, dtype=np.uint8).reshape(3, 4), "query", "a.png")
    drawn = {**DRAWN, "search": lambda: picture.draw([Line(tile, [tile])])}
    for what in ("confusion", "wrong images", "accuracies", "curves", "overlay", "search"):
        plots.save(tmp_path / "plain", drawn[what]())
        with matplotlib.rc_context(STYLE):
            plots.save(tmp_path / "styled", drawn[what]())
            assert matplotlib.rcParams["text.usetex"], "it stays as the user has it"
        assert (tmp_path / "plain").read_bytes() == (tmp_path / "styled").read_bytes(), what


def test_a_full_disk_leaves_the_old_picture_and_no_litter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(figure: Figure, file: BinaryIO, **settings: object) -> None:
        file.write(b"half")
        raise OSError("no space left")

    (tmp_path / "a.png").write_bytes(b"old")
    monkeypatch.setattr(Figure, "savefig", fails)
    with pytest.raises(OSError, match="no space"):
        plots.save(tmp_path / "a.png", plots.curves(Curve(run(5, 2), 5)))
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == {"a.png": b"old"}


def test_confusion_writes_the_counts_where_they_belong() -> None:
    axes = plots.confusion(TRUTH, PREDICTED, DIGITS).axes[0]
    assert axes.get_title() == "accuracy 98.70 %: 13 of 1000 wrong"
    assert ticks(axes.get_xticklabels()) == ticks(axes.get_yticklabels()) == DIGITS
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("predicted class", "true class")
    written = {text.get_position(): int(text.get_text()) for text in axes.texts}  # (predicted, true)
    assert sum(written.values()) == 1000 and len(written) == 20
    assert written[0, 0] == 98 and written[5, 0] == 2 and written[0, 5] == 1 and written[9, 9] == 99
    never_right = plots.confusion(np.array([0, 1]), np.array([1, 1]), DIGITS[:2]).axes[0]
    assert {text.get_position(): text.get_text() for text in never_right.texts} == {
        (0, 0): "0",
        (1, 0): "1",
        (1, 1): "1",
    }


def test_one_error_among_thousands_is_seen_and_the_diagonal_has_no_colour() -> None:
    truth = np.repeat([0, 1, 2], 10_000)
    predicted = truth.copy()
    predicted[0], predicted[10_000:10_900] = 2, 0  # one error of class 0, 900 of class 1
    image = plots.confusion(truth, predicted, DIGITS[:3]).axes[0].images[0]
    shown = 255 * image.to_rgba(image.get_array())[..., :3]  # [true, predicted, RGB]

    def saturation(pixel: NDArray[np.float64]) -> float:
        return float(pixel.max() - pixel.min())

    assert [saturation(shown[c, c]) for c in range(3)] == [0, 0, 0]
    assert (shown[2, 0] == 255).all() and (shown[0, 0] < 255).all()  # no errors: white; right: grey
    assert saturation(shown[0, 2]) > 60
    assert shown[1, 0].sum() < 0.5 * shown[0, 2].sum()  # more errors: darker


def test_confusion_shows_shares_of_the_true_class() -> None:
    truth, predicted = np.array([0] * 4 + [1] * 40 + [2]), np.array([1] + [0] * 3 + [2] + [1] * 39 + [2])
    drawn = plots.confusion(truth, predicted, DIGITS[:4]).axes[0].images[0].get_array()
    assert drawn is not None
    assert drawn[0, 1] == 25 and drawn[1, 2] == 2.5  # % of 4 and of 40; class 3 has no image
    assert drawn[0, 2] == drawn[3, 0] == -1  # none
    assert np.ma.getmaskarray(drawn).tolist() == np.eye(4, dtype=bool).tolist()


def test_many_classes_have_no_counts_and_few_ticks() -> None:
    names = [f"class {c}" for c in range(41)]
    truth = np.arange(41)
    axes = plots.confusion(truth, truth[::-1], names).axes[0]
    assert not axes.texts
    assert ticks(axes.get_xticklabels()) == names[::3]
    assert axes.get_xticks().tolist() == list(range(0, 41, 3))
    assert len(plots.confusion(truth[:20], truth[:20], names[:20]).axes[0].texts) == 20


def test_wrong_images_stand_under_their_classes() -> None:
    figure = plots.wrong_images(*wrong(11), DIGITS, 12)
    assert figure.get_suptitle() == "11 of 12 wrongly classified images, true→predicted class"
    [axes] = figure.axes
    assert texts(axes) == [f"{n % 10}→{(n + 3) % 10}" for n in range(11)]
    pixels = [np.asarray(image.get_array()) for image in axes.images]
    assert pixels[0].shape == (8, 6)
    assert [int(p.max()) for p in pixels] == [int(p.min()) for p in pixels] == list(range(11))
    assert {image.get_clim() for image in axes.images} == {(0, 255)}  # not stretched image by image
    assert axes.images[10].get_extent()[2] - axes.images[0].get_extent()[2] == pytest.approx(1.2)  # the next row
    figure.draw_without_rendering()
    boxes = [
        (image.get_window_extent(), text.get_window_extent())
        for image, text in zip(axes.images, axes.texts, strict=True)
    ]
    for image, text in boxes:
        assert image.width / image.height == pytest.approx(6 / 8)
        assert (text.x0 + text.x1) / 2 == pytest.approx((image.x0 + image.x1) / 2, abs=1) and text.y0 > image.y1
    places = [box for pair in boxes for box in pair]
    assert not any(one.overlaps(other) for n, one in enumerate(places) for other in places[:n])


def test_channels_are_colours() -> None:
    red = np.zeros((1, 3, 4, 5), dtype=np.uint8)
    red[:, 0] = 200
    drawn = plots.wrong_images(red, np.array([1]), np.array([2]), DIGITS).axes[0].images[0].get_array()
    assert np.asarray(drawn)[3, 4].tolist() == [200, 0, 0]


def test_long_names_are_cut_and_take_two_lines() -> None:
    figure = plots.wrong_images(*wrong(1), ["automobile", "b", "c", "a very long class name"])
    assert texts(figure.axes[0]) == ["automobile\n→a very long c…"]


def test_nothing_wrong_is_said() -> None:
    figure = plots.wrong_images(*wrong(0), DIGITS)
    assert [text.get_text() for text in figure.texts] == ["no image is classified wrongly"]


def test_accuracies_are_bars_of_means_with_their_draws() -> None:
    (axes,) = plots.accuracies(METHODS, "test").axes
    bars = [(bar.get_y() + bar.get_height() / 2, bar.get_x() + bar.get_width()) for bar in axes.patches]
    assert bars == [pytest.approx((0, 98.61)), pytest.approx((1, 97))]
    assert ticks(axes.get_yticklabels()) == ["linear probe, all labels", "kNN, 100 labels"]
    assert axes.yaxis_inverted()  # the first one on top
    assert texts(axes) == ["98.61 %", "97.00 ± 1.00 %"]
    dots = [x_and_y(axes, n) for n, line in enumerate(axes.lines) if line.get_marker() == "o"]
    assert [x for x, _ in dots] == [pytest.approx([98.61]), pytest.approx([97, 98, 96])]
    assert [set(np.round(y)) for _, y in dots] == [{0}, {1}] and len(set(dots[1][1])) == 3
    (whisker,) = axes.collections
    assert whisker.get_segments()[0][:, 0].tolist() == pytest.approx([96, 98])


@pytest.mark.parametrize(
    ("percent", "start"),
    [([98.6, 97.0], 96), ([99.65, 99.60], 99.58), ([90, 40], 0), ([0.4, 0.3], 0.25), ([50], 49), ([100], 99), ([0], 0)],
)
def test_the_axis_starts_where_differences_are_seen_and_says_so(percent: list[float], start: float) -> None:
    rows = [{"method": "m", "labels": 10, "accuracies": [p / 100]} for p in percent]
    (axes,) = plots.accuracies(rows, "validation").axes
    left, right = axes.get_xlim()
    assert left == pytest.approx(start) == axes.get_xticks()[0]
    assert max(percent) <= right <= 100 and axes.get_xticks()[-1] <= right
    said = f", axis starts at {start:g} %" if start else ""
    assert axes.get_xlabel() == f"top-1 accuracy on validation (%){said}"
    assert all(left <= bar.get_x() + bar.get_width() for bar in axes.patches)


def test_curves_have_epochs_below_them() -> None:
    above, below = plots.curves(Curve(run(4, 3), 4)).axes
    assert below.get_xlabel() == "epoch" and above.get_ylabel() == "loss"
    x, loss = x_and_y(above)
    assert x == [step / 4 for step in range(1, 13)] and loss == list(range(1, 13))
    x, accuracy = x_and_y(below)
    assert x == [1, 2, 3] and accuracy == pytest.approx([1, 2, 3])
    legend = below.get_legend()
    assert legend and ticks(legend.get_texts()) == ["kNN, 3.00 % at the end"]
    assert above.get_shared_x_axes().joined(above, below)


def test_curves_show_every_kind_of_evaluation_and_no_accuracy_of_training() -> None:
    rows = [*run(4, 3), {"step": 12, "epoch": 3, "linear_top1": 0.9}]
    below = plots.curves(Curve(rows, 4)).axes[1]
    assert [x_and_y(below, n)[1] for n in range(len(below.lines))] == [pytest.approx([1, 2, 3]), pytest.approx([90])]
    rows[0]["knn_top1"] = 0.77  # a row with a loss is of training
    assert x_and_y(plots.curves(Curve(rows, 4)).axes[1], 0)[0] == [1, 2, 3]


def test_a_long_loss_is_smoothed_without_a_shift() -> None:
    rows = run(100, 5, knn_every=0)
    for row in rows[::2]:
        row["loss"] += 40
    above = plots.curves(Curve(rows, 100)).axes[0]
    raw, smooth = (np.array(x_and_y(above, n)[1]) for n in range(2))
    assert len(raw) == len(smooth) == 500 and x_and_y(above, 0)[0] == x_and_y(above, 1)[0]
    assert np.abs(np.diff(smooth)).max() < 20 < np.abs(np.diff(raw)).min()
    assert np.abs(smooth - np.arange(1, 501) - 20).max() < 15
    legend = above.get_legend()
    assert legend and ticks(legend.get_texts()) == ["as logged", "mean of 5 rows"]


def test_what_is_missing_is_said() -> None:
    above, below = plots.curves(Curve(run(5, 2, knn_every=0), 5)).axes
    assert not texts(above) and texts(below) == ["no evaluation is logged"]
    above, below = plots.curves(Curve([], None)).axes
    assert texts(above) == ["no step is logged"] and texts(below) == ["no evaluation is logged"]
    above, below = plots.overlay({"a": Curve(run(5, 2, knn_every=0), 5), "b": Curve(run(5, 2), 5)}).axes
    assert not texts(above) and not texts(below)


@pytest.mark.parametrize(
    "rows",
    [
        [],
        run(50, 1, knn_every=0),
        [{"step": 9, "loss": 1.0}],
    ],
)
def test_steps_stand_in_for_unknown_epochs(rows: list[dict[str, Any]]) -> None:
    above, below = plots.curves(Curve(rows, None)).axes
    assert below.get_xlabel() == "step"
    assert x_and_y(above)[0] == [row["step"] for row in rows]


def test_overlay_has_a_line_and_a_name_a_run() -> None:
    runs = {"_momentum $0.9$": Curve(run(4, 3), 4), "b": Curve(run(8, 2), 8)}
    figure = plots.overlay(runs)
    above, below = figure.axes
    (legend,) = figure.legends
    assert ticks(legend.get_texts()) == list(runs) and not any(t.get_parse_math() for t in legend.get_texts())
    assert x_and_y(above, 0) == ([s / 4 for s in range(1, 13)], list(range(1, 13)))
    assert x_and_y(above, 1)[0] == [s / 8 for s in range(1, 17)]
    assert [x_and_y(below, n) for n in (0, 1)] == [
        ([1, 2, 3], pytest.approx([1, 2, 3])),
        ([1, 2], pytest.approx([1, 2])),
    ]
    colours = [[line.get_color() for line in axes.lines] for axes in (above, below)]
    assert colours[0] == colours[1] and len(set(map(str, colours[0]))) == 2
    handles = legend.get_lines()
    assert [handle.get_color() for handle in handles] == colours[0]


def test_overlay_has_epochs_only_if_every_run_tells_them() -> None:
    above, below = plots.overlay({"a": Curve(run(4, 3), 4), "b": Curve(run(40, 1, knn_every=0), None)}).axes
    assert below.get_xlabel() == "step"
    assert x_and_y(above, 0)[0] == list(range(1, 13)) and x_and_y(below, 0)[0] == [4, 8, 12]


def test_no_two_of_many_runs_look_alike() -> None:
    above = plots.overlay({str(n): Curve(run(4, 2), 4) for n in range(20)}).axes[0]
    assert len({(line.get_color(), line.get_linestyle()) for line in above.lines}) == 20


@pytest.mark.parametrize(
    "draw",
    [
        lambda: plots.confusion(TRUTH, PREDICTED[1:], DIGITS),
        lambda: plots.confusion(TRUTH, PREDICTED[:1], DIGITS),
        lambda: plots.confusion(TRUTH, PREDICTED, DIGITS[:9]),
        lambda: plots.confusion(TRUTH, PREDICTED - 1, DIGITS),
        lambda: plots.confusion(TRUTH[:0], PREDICTED[:0], DIGITS),
        lambda: plots.wrong_images(wrong(3)[0], TRUTH[:2], PREDICTED[:3], DIGITS),
        lambda: plots.wrong_images(wrong(2)[0], TRUTH[:3], PREDICTED[:3], DIGITS),
        lambda: plots.wrong_images(wrong(3)[0], TRUTH[:3], TRUTH[:3], DIGITS),
        lambda: plots.wrong_images(wrong(3)[0].astype(np.float32), *wrong(3)[1:], DIGITS),
        lambda: plots.wrong_images(wrong(3)[0].transpose(0, 2, 3, 1), *wrong(3)[1:], DIGITS),
        lambda: plots.accuracies([], "test"),
        lambda: plots.accuracies([{"method": "m", "labels": 1, "accuracies": []}], "test"),
        lambda: plots.overlay({}),
    ],
)
def test_what_makes_no_picture_is_refused(draw: Callable[[], Figure]) -> None:
    with pytest.raises((AssertionError, ValueError)):
        draw()
