"""Figures: the arrays behind them, and that each one draws."""

import itertools
import os
import re
import subprocess
import sys

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PolyCollection
from PIL import Image

from plg_utils import diagnosis, figures, files
from plg_utils.records import Classes
from plg_utils.statistics import Interval

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


# For a paper

GRID = {"a": {12: [0.5, 0.6, 0.7], 24: [0.7, 0.9], 48: [0.8]}, "b": {24: [0.2, 0.4]}}
PAPER_FIGURES = {
    "ladder": (figures.SINGLE, lambda: figures.paper_ladder({"a": [0.5, 0.7], "b": [0.1]}, ["enhanced", "segmenter"])),
    "curves": (figures.SINGLE, lambda: figures.paper_curves(GRID)),
    "one amount": (2.0, lambda: figures.paper_curves({"a": {12: [0.5, 0.6]}, "b": {12: [0.4]}}, width=2.0)),
    "classes": (figures.DOUBLE, lambda: figures.paper_class_bars({"a": [[0.1, 0.2], [0.3, np.nan]]}, ["x", "y"])),
    "confusion": (figures.SINGLE, lambda: figures.paper_confusion(np.array([[3, 1, 0], [0, 0, 2]]), ["x", "y"])),
    "gallery": (5.0, lambda: figures.paper_gallery([[IMAGE, LABEL]], ["image", "label"], CLASSES, width=5.0)),
}
WRITE = """
import sys
from pathlib import Path
sys.path.insert(0, str(Path("tests").absolute()))
import test_figures
for name, (_, draw) in test_figures.PAPER_FIGURES.items():
    test_figures.figures.save_vector(draw(), Path(sys.argv[1]) / name)
"""


@pytest.fixture(scope="module")
def vectors(tmp_path_factory):
    """Folder of all figures of a paper, as PDF and SVG."""
    folder = tmp_path_factory.mktemp("vectors")
    for name, (_, draw) in PAPER_FIGURES.items():
        figures.save_vector(draw(), folder / name)
    assert plt.get_fignums() == []
    return folder


def test_a_paper_s_figures_are_the_same_files_in_another_process(vectors, tmp_path):
    """Another hash seed, another second of the clock: names inside the files and dates would differ."""
    hurry = {"PYTHONHASHSEED": "7", "PYTHONPATH": str(files.ROOT), "TZ": "Asia/Tokyo", "SOURCE_DATE_EPOCH": "1"}
    subprocess.run([sys.executable, "-c", WRITE, tmp_path], cwd=files.ROOT, env=os.environ | hurry, check=True)
    names = sorted(path.name for path in vectors.iterdir())
    assert len(names) == 2 * len(PAPER_FIGURES)
    assert names == sorted(path.name for path in tmp_path.iterdir())
    assert [name for name in names if (vectors / name).read_bytes() != (tmp_path / name).read_bytes()] == []


@pytest.mark.parametrize("name", PAPER_FIGURES)
def test_a_paper_s_figure_has_the_width_that_was_asked_and_text_in_truetype(vectors, name):
    width = PAPER_FIGURES[name][0]
    pdf = (vectors / f"{name}.pdf").read_bytes()
    (box,) = re.findall(rb"/MediaBox \[ ?0 0 ([\d.]+) ([\d.]+) ?\]", pdf)
    assert float(box[0]) == pytest.approx(72 * width, abs=0.01)
    assert b"/CIDFontType2" in pdf and b"/Type3" not in pdf  # what publishers refuse
    assert b"CreationDate" not in pdf
    svg = (vectors / f"{name}.svg").read_text(encoding="utf-8")
    assert f'width="{72 * width:g}pt"' in svg
    assert "<dc:date>" not in svg and "<text" not in svg  # its letters are drawn: it would be set in any font


@pytest.mark.parametrize("name", PAPER_FIGURES)
def test_a_paper_s_figure_has_one_type_and_leaves_the_title_to_the_caption(name):
    before = dict(plt.rcParams)
    figure = PAPER_FIGURES[name][1]()
    assert dict(plt.rcParams) == before
    texts = [text for text in figure.findobj(plt.Text) if text.get_text()]
    assert {text.get_fontfamily()[0] for text in texts} == {"STIXGeneral"}
    assert {text.get_fontsize() for text in texts} <= {6, 7, 8}
    assert not any(text.get_parse_math() for text in texts)  # a class called $x$ is no formula
    assert figure._suptitle is None
    assert [axis.get_title() for axis in figure.axes if axis.get_title()] == (
        ["image", "label"] if name == "gallery" else []
    )
    drawn = FigureCanvasAgg(figure).get_renderer()
    width, height = figure.bbox.size
    for part in (*figure.axes, *figure.legends):  # nothing sticks out
        box = part.get_tightbbox(drawn)
        assert -1 < box.x0 and box.x1 < width + 1 and -1 < box.y0 and box.y1 < height + 1, part


# Deuteranomaly and protanomaly at severity 1.0, on linear RGB: Machado, Oliveira, Fernandes, "A physiologically-based
# model for simulation of color vision deficiency", IEEE TVCG 15(6), 2009.
SEEN_BY = {
    "all": np.eye(3),
    "deuteranopes": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    ),
    "protanopes": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
}
XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])  # of linear sRGB, D65


def lab(colour, seen_by="all"):
    """Lightness and two hues (CIE 1976) of a colour such as #004488."""
    rgb = np.array([int(colour[k : k + 2], 16) for k in (1, 3, 5)]) / 255
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    relative = XYZ @ np.clip(SEEN_BY[seen_by] @ linear, 0, 1) / XYZ.sum(axis=1)
    x, y, z = np.where(relative > 0.008856, np.cbrt(relative), 7.787 * relative + 16 / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def test_the_measure_of_colours_knows_black_white_and_a_pair_that_deuteranopes_confuse():
    np.testing.assert_allclose(lab("#000000"), 0, atol=1e-9)
    np.testing.assert_allclose(lab("#ffffff"), [100, 0, 0], atol=0.1)
    red, green = "#b45a3c", "#78783c"
    assert np.linalg.norm(lab(red) - lab(green)) > 35
    assert np.linalg.norm(lab(red, "deuteranopes") - lab(green, "deuteranopes")) < 15


def test_a_paper_s_colours_differ_in_grey_and_to_the_colour_blind():
    for one, other in itertools.combinations(figures.SERIES, 2):
        assert abs(lab(one) - lab(other))[0] > 15, (one, other)  # printed in grey, lightness is all there is
        assert abs(lab(one, "deuteranopes") - lab(other, "deuteranopes"))[0] > 9, (one, other)
        for kind in SEEN_BY:
            assert np.linalg.norm(lab(one, kind) - lab(other, kind)) > 30, (kind, one, other)
    stages = [lab(colour)[0] for colour in figures.STAGES.values()]
    assert (np.diff(stages) < -15).all()  # the ladder's: light to dark
    # A careless printer's grey: Rec. 601's mean of the values as they are, of 255.
    grey = sorted(Image.new("RGB", (1, 1), colour).convert("L").getpixel((0, 0)) for colour in figures.SERIES)
    assert min(np.diff(grey)) > 25


def test_no_two_lines_or_bars_differ_in_colour_alone():
    styles = figures._styles(10)
    assert len({(style["color"], style["dashes"]) for style in styles}) == 10
    assert len({(style["color"], style["hatch"]) for style in styles}) == 10
    for one, other in itertools.combinations(styles[:5], 2):
        assert one["marker"] != other["marker"] and one["hatch"] != other["hatch"]
    for one, other in itertools.pairwise(styles):
        assert one["color"] != other["color"] and one["marker"] != other["marker"] and one["hatch"] != other["hatch"]
    with pytest.raises(ValueError, match="11 lines or bars .* choose 10 or fewer"):
        figures._styles(11)


def test_a_paper_s_ladder_shows_mean_and_deviation():
    (axis,) = figures.paper_ladder({"a": [0.5, 0.7, 0.6], "b": [0.2]}, ["enhanced", "segmenter"]).axes
    np.testing.assert_allclose([bar.get_width() for bar in axis.patches], [60, 20])
    (line,) = axis.lines  # a single value has no deviation
    np.testing.assert_allclose(line.get_xydata(), [[50, 0], [70, 0]])
    assert [text.get_text() for text in axis.texts] == ["60.0 ± 10.0", "20.0"]


def test_a_curve_is_the_mean_and_its_band_the_deviation():
    (axis,) = figures.paper_curves(GRID).axes
    lines = {line.get_label(): line for line in axis.lines if not line.get_label().startswith("_")}
    np.testing.assert_allclose(lines["a"].get_xydata(), [[12, 60], [24, 80], [48, 80]])
    np.testing.assert_allclose(lines["b"].get_xydata(), [[24, 30]])
    band = next(each for each in axis.collections if isinstance(each, PolyCollection))
    vertices = np.concatenate([path.vertices for path in band.get_paths()])
    half = 10 * np.sqrt(2)  # of 70 and 90
    assert {tuple(np.round(corner, 6)) for corner in vertices} == {
        (12, 50), (12, 70), (24, round(80 - half, 6)), (24, round(80 + half, 6))
    }  # none at 48, of one seed  # fmt: skip
    assert axis.get_xscale() == "log"
    assert [text.get_text() for text in axis.get_xticklabels()] == ["12", "24", "48"]


def test_one_amount_of_labelled_images_gives_points_side_by_side():
    (axis,) = figures.paper_curves({"a": {12: [0.5, 0.6]}, "b": {12: [0.4]}}).axes
    points = [line for line in axis.lines if not line.get_label().startswith("_")]
    assert [line.get_linestyle() for line in points] == ["None", "None"]
    np.testing.assert_allclose([line.get_ydata()[0] for line in points], [55, 40])
    assert points[0].get_xdata()[0] < 12 < points[1].get_xdata()[0]
    assert [text.get_text() for text in axis.get_xticklabels()] == ["12"]


def test_parts_of_the_images_are_amounts_too_but_not_both():
    (axis,) = figures.paper_curves({"a": {"1/8": [0.5], "1/16": [0.4]}}).axes
    (line,) = [line for line in axis.lines if line.get_label() == "a"]
    np.testing.assert_allclose(line.get_xydata(), [[1 / 16, 40], [1 / 8, 50]])
    assert [text.get_text() for text in axis.get_xticklabels()] == ["1/16", "1/8"]
    for amounts in ([12, "1/8"], [0], []):
        with pytest.raises(ValueError, match="right are numbers above 0, or else parts"):
            figures.paper_curves({"a": {amount: [0.5] for amount in amounts}})


def test_bars_by_class_leave_out_what_has_no_iou():
    (axis,) = figures.paper_class_bars({"a": [[0.1, 0.2], [0.3, np.nan]], "b": [[0.5, 0.6]]}, ["x", "y"]).axes
    np.testing.assert_allclose([bar.get_height() for bar in axis.patches], [20, 50, 60])
    assert [bar.get_hatch() for bar in axis.patches] == ["", "////", "////"]
    (whiskers,) = [collection.get_segments() for collection in axis.collections]
    np.testing.assert_allclose(np.array(whiskers)[0][:, 1], [20 - 10 * np.sqrt(2), 20 + 10 * np.sqrt(2)])


def test_a_confusion_matrix_tells_shares_of_the_true_class():
    matrix = np.array([[3, 1, 0], [0, 0, 2], [0, 0, 0]])
    matrix = np.concatenate([matrix, np.zeros((3, 1), int)], axis=1)
    (axis,) = figures.paper_confusion(matrix, ["x", "y", "z"]).axes
    told = {text.get_position(): text.get_text() for text in axis.texts}
    assert told == {(0, 0): "75", (1, 0): "25", (2, 1): "100"}
    assert [text.get_text() for text in axis.get_xticklabels()] == ["x", "y", "z"]  # no pixel is without a label
    matrix[0, 3] = 4
    axes = figures.paper_confusion(matrix, ["x", "y", "z"]).axes
    assert [text.get_text() for text in axes[0].get_xticklabels()] == ["x", "y", "z", "no label"]
    many = np.eye(21, 22, dtype=int)
    axis, scale = figures.paper_confusion(many, [f"class {k}" for k in range(21)]).axes  # too small for numbers
    assert not axis.texts and scale.get_ylabel() == "% of the class"


def test_a_number_stands_on_each_class_but_the_background():
    label = np.zeros((40, 40), np.uint8)
    label[10:30, 5:25] = 1
    label[0:2, :] = 2  # too thin for a digit
    label[:, 38:] = 255
    names = ("background", "cat", "dog")
    classes = Classes(names, ((),) * 3, ((0, 0, 0), (10, 200, 30), (200, 0, 0)))
    figure = figures.paper_gallery([[np.zeros((40, 40, 3), np.uint8), label]], ["image", "label"], classes)
    image, map_ = figure.axes
    assert not image.texts
    ((x, y),) = [text.get_position() for text in map_.texts if text.get_text() == "1"]
    assert len(map_.texts) == 1 and 10 < x < 20 and 15 < y < 25
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["0 background", "1 cat", "2 dog", "no label"]
