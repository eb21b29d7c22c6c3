"""Figures: the arrays behind them, and that each one draws."""

import matplotlib.pyplot as plt
import numpy as np
import pytest

from plg_utils import diagnosis, figures
from plg_utils.comparisons import Interval
from plg_utils.records import Classes

CLASSES = Classes(("background", "cat"), ((), ("cat",)), ((0, 0, 0), (10, 200, 30)))
IMAGE = np.full((6, 8, 3), 100, np.uint8)
LABEL = np.zeros((6, 8), np.uint8)
LABEL[2:4, 2:5] = 1
LABEL[5, 7] = 255
SURE = diagnosis.reliability(diagnosis.calibration(np.linspace(0, 1, 9) ** 0.5, np.arange(9) % 3 > 0))
MASKS = np.stack([LABEL == 1, LABEL == 0])


def test_colours_are_those_of_the_classes():
    painted = figures.colour(LABEL, CLASSES)
    assert painted[2, 2].tolist() == [10, 200, 30]
    assert painted[0, 0].tolist() == [0, 0, 0]
    assert painted[5, 7].tolist() == list(figures.VOID)


def test_edges_are_where_the_label_changes():
    line = np.array([[0, 0, 1, 1]])
    assert figures.edges(line).tolist() == [[False, True, False, False]]


def test_small_masks_are_drawn_over_large_ones():
    large, small = np.ones((6, 8), bool), np.zeros((6, 8), bool)
    small[1:5, 1:7] = True
    one = figures.mask_picture(IMAGE, np.stack([large, small]))
    two = figures.mask_picture(IMAGE, np.stack([small, large]))
    assert (one[3, 3] != one[0, 0]).any() and (two[3, 3] != two[0, 0]).any()


def test_heat_is_bright_where_a_score_is_high():
    maps = np.zeros((2, 6, 8), np.float32)
    maps[1, 2, 3] = 1
    picture = figures.heat_picture(IMAGE, maps)
    assert picture.shape == IMAGE.shape and picture.dtype == np.uint8
    assert picture[2, 3].sum() > picture[0, 0].sum()
    np.testing.assert_array_equal(figures.heat_picture(IMAGE, maps[:0]), figures.heat_picture(IMAGE, 0 * maps))


def test_features_that_agree_look_alike():
    features = np.random.default_rng(0).normal(size=(16, 4, 4)).astype(np.float32)
    features[:, 0, 0] = features[:, 3, 3]
    picture = figures.feature_picture(features)
    assert picture.shape == (4, 4, 3) and picture[0, 0].tolist() == picture[3, 3].tolist()


@pytest.mark.parametrize(
    "figure",
    [
        lambda: figures.gallery([[IMAGE, LABEL]], ["image", "label"], CLASSES),
        lambda: figures.gallery([[IMAGE, IMAGE]], ["a", "b"]),
        lambda: figures.similarities(np.eye(2), [IMAGE, IMAGE], ["a", "b"], [0, 1]),
        lambda: figures.curve([0, 1], [0.1, 0.2], 1, "x", "y"),
        lambda: figures.history([{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0}], ["loss"]),
        lambda: figures.histories({"a": [(1, 2.0)], "b": [(1, 1.0)]}, "loss"),
        lambda: figures.shares(np.array([3, 1]), CLASSES),
        lambda: figures.ladder([{"stage": "zero_shot", "name": "zero-shot", "miou": 0.5}]),
        lambda: figures.class_bars({"a": [0.1, float("nan")]}, ["x", "y"]),
        lambda: figures.error_bars({"a": np.arange(10).reshape(2, 5), "b": np.array([0, 0, 0, 0, 9])}),
        lambda: figures.reliability({"a": SURE, "b": SURE}),
        lambda: figures.accuracy_coverage({"a": SURE}),
        lambda: figures.scatter([0.1, 0.2], {"a": [0.3, 0.4], "b": [0.1, 0.9]}, "x", "y"),
        lambda: figures.seeds({"a": [0.5, 0.7], "b": [0.1]}, ["enhanced", "segmenter"]),
        lambda: figures.intervals({"a minus b": Interval(0.1, -0.1, 0.2, 0.95)}, "points"),
    ],
)
def test_each_figure_draws_the_same_file_twice_and_stays_closed(figure, tmp_path):
    first, second = (figures.save(figure(), tmp_path / name) for name in ("a.png", "b.png"))
    assert first.read_bytes() == second.read_bytes()
    assert plt.get_fignums() == []


def test_a_legend_is_read_line_by_line_and_tells_what_has_no_label():
    names = tuple("abcdefg")
    classes = Classes(names, ((),) * 7, tuple((30 * k, 0, 0) for k in range(7)))
    label = np.array([[*range(7), 255]], np.uint8)
    (legend,) = figures.gallery([[label] * 3], ["one", "two", "three"], classes, width=1.3).legends
    texts = legend.get_texts()
    figure = texts[0].figure
    figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in texts]
    read = sorted(range(len(texts)), key=lambda k: (-round(boxes[k].y0), boxes[k].x0))
    assert [texts[k].get_text() for k in read] == [*names, "no label"]
    assert len({round(box.y0) for box in boxes}) == 2
    colours = {text.get_text(): patch.get_facecolor() for text, patch in zip(texts, legend.get_patches(), strict=True)}
    np.testing.assert_allclose(colours["no label"][:3], np.array(figures.VOID) / 255)
    np.testing.assert_allclose(colours["g"][:3], [180 / 255, 0, 0])


def test_bars_of_errors_are_as_long_as_the_shares():
    counts = {"first": np.array([[1, 2, 0, 0, 1], [0, 0, 3, 1, 2]]), "second": np.array([0, 0, 0, 1, 3])}
    (axis,) = figures.error_bars(counts).axes
    widths = [[bar.get_width() for bar in bars] for bars in axis.containers]  # kind of error by stage
    np.testing.assert_allclose(widths, [[10, 0], [20, 0], [30, 0], [10, 25]])
    starts = [[bar.get_x() for bar in bars] for bars in axis.containers]
    np.testing.assert_allclose(starts, [[0, 0], [10, 0], [30, 0], [60, 0]], atol=1e-12)
    assert [bars.get_label() for bars in axis.containers] == list(diagnosis.OUTCOMES[:4])
    assert {"70.0", "25.0"} <= {text.get_text() for text in axis.texts}


def test_each_seed_is_a_point_and_their_mean_a_bar():
    (axis,) = figures.seeds({"a": [0.5, 0.7, 0.6], "b": [0.2]}, ["enhanced", "segmenter"]).axes
    np.testing.assert_allclose([bar.get_width() for bar in axis.patches], [60, 20])
    drawn = [points.get_offsets() for points in axis.collections]
    np.testing.assert_allclose(np.concatenate(drawn), [[50, 0], [70, 0], [60, 0], [20, 1]])
    assert [text.get_text() for text in axis.texts] == ["60.0", "20.0"]
    assert [text.get_text() for text in axis.get_yticklabels()] == ["a", "b"] and axis.yaxis_inverted()


def test_intervals_are_drawn_in_points():
    found = {"a minus b": Interval(0.01, -0.02, 0.03, 0.95), "a minus c": Interval(-0.1, -0.2, 0.0, 0.95)}
    (axis,) = figures.intervals(found, "points of mean IoU").axes
    zero, *drawn = [line.get_xydata() for line in axis.lines]
    np.testing.assert_allclose(zero[:, 0], 0)
    np.testing.assert_allclose(np.concatenate(drawn), [[-2, 0], [3, 0], [1, 0], [-20, 1], [0, 1], [-10, 1]], atol=1e-9)
    assert [text.get_text() for text in axis.texts] == ["+1.0", "-10.0"]
    assert [text.get_text() for text in axis.get_yticklabels()] == list(found)


def test_curves_of_confidence_show_what_was_counted():
    upper, lower = figures.reliability({"a": SURE}).axes
    told = SURE.pixels > 0
    np.testing.assert_allclose(upper.lines[1].get_xydata(), np.stack([SURE.confidence, SURE.accuracy], 1)[told])
    assert "ECE" in upper.get_legend().get_texts()[0].get_text()
    (axis,) = figures.accuracy_coverage({"a": SURE}).axes
    curve = np.stack([100 * SURE.coverage, 100 * SURE.kept_accuracy], axis=1)
    np.testing.assert_allclose(axis.lines[0].get_xydata(), curve)
