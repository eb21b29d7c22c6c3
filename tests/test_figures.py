"""Figures: the arrays behind them, what each one draws, and the files of a paper."""

import dataclasses
import itertools
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from plg_utils import diagnosis, figures, files
from plg_utils.records import Classes, Masks
from plg_utils.statistics import Interval

CLASSES = Classes(("background", "cat"), ((), ("cat",)), ((0, 0, 0), (10, 200, 30)))
IMAGE = np.full((6, 8, 3), 100, np.uint8)
LABEL = np.zeros((6, 8), np.uint8)
LABEL[2:4, 2:5] = 1
LABEL[5, 7] = 255
SURE = diagnosis.reliability(diagnosis.calibration(np.linspace(0, 1, 9) ** 0.5, np.arange(9) % 3 > 0))
LADDER = [{"name": "a", "enhanced": (0.5, 0.7, 0.6)}, {"name": "b", "segmenter": 0.2}]
GRID = {"a": {12: [0.5, 0.6, 0.7], 24: [0.7, 0.9], 48: [0.8]}, "b": {24: [0.2, 0.4]}}
SEEDS = {"a": [[0.1, 0.2], [0.3, np.nan]], "b": [0.5, 0.6]}


def test_pictures_of_arrays():
    painted = figures.colour(LABEL, CLASSES)
    assert painted[2, 2].tolist() == [10, 200, 30] and painted[5, 7].tolist() == list(figures.VOID)
    large, small = np.ones((6, 8), bool), np.zeros((6, 8), bool)
    small[1:5, 1:7] = True
    for masks in ([large, small], [small, large]):  # the small one is on top
        picture = figures.mask_picture(IMAGE, np.stack(masks))
        assert (picture[3, 3] != picture[0, 0]).any()
    maps = np.zeros((2, 6, 8), np.float32)
    maps[1, 2, 3] = 1
    heat = figures.heat_picture(IMAGE, maps)
    assert heat[2, 3].sum() > heat[0, 0].sum()
    np.testing.assert_array_equal(figures.heat_picture(IMAGE, maps[:0]), figures.heat_picture(IMAGE, 0 * maps))
    features = np.random.default_rng(0).normal(size=(16, 4, 4)).astype(np.float32)
    features[:, 0, 0] = features[:, 3, 3]
    picture = figures.feature_picture(features)
    assert picture.shape == (4, 4, 3) and picture[0, 0].tolist() == picture[3, 3].tolist()


PAPER = {  # what a paper shows, and how wide the test has it
    "ladder": (3.3, lambda **paper: figures.ladder(LADDER, **paper)),
    "curves": (3.3, lambda **paper: figures.curves(GRID, **paper)),
    "one amount": (2.0, lambda **paper: figures.curves({"a": {12: [0.5, 0.6]}, "b": {12: [0.4]}}, **paper)),
    "classes": (6.9, lambda **paper: figures.class_bars(SEEDS, ["x", "y"], **paper)),
    "confusion": (3.3, lambda **paper: figures.confusion(np.array([[3, 1, 0], [0, 0, 2]]), ["x", "y"], **paper)),
    "gallery": (1.6, lambda **paper: figures.gallery([[IMAGE, LABEL]], ["image", "label"], CLASSES, **paper)),
}
SCREEN = {name: draw for name, (_, draw) in PAPER.items()} | {
    "photos": lambda: figures.gallery([[IMAGE, IMAGE]], ["a", "b"]),
    "nearest words": lambda: figures.nearest_words(np.eye(2), [IMAGE, IMAGE], ["a", "b"], [False, True]),
    "curve": lambda: figures.curve([0, 1], [0.1, 0.2], 1, "x", "y"),
    "schedule": lambda: figures.schedule([{"step": 1, "total": 2.0}, {"step": 2, "total": 1.0}], 1, [3.0, 5.0]),
    "history": lambda: figures.history([{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0}], ["loss"], "sure"),
    "histories": lambda: figures.histories({str(k): [(1, 2.0)] for k in range(12)}, "loss"),
    "shares": lambda: figures.shares(np.array([3, 1]), CLASSES),
    "errors": lambda: figures.error_bars({"a": np.arange(10).reshape(2, 5), "b": np.array([0, 0, 0, 0, 9])}),
    "reliability": lambda: figures.reliability({"a": SURE, "b": SURE}),
    "coverage": lambda: figures.accuracy_coverage({"a": SURE}),
    "scatter": lambda: figures.scatter([0.1, 0.2], {"a": [0.3, 0.4], "b": [0.1, 0.9]}, "x", "y"),
    "intervals": lambda: figures.intervals({"a minus b": Interval(0.1, -0.1, 0.2)}, "points"),
}


@pytest.mark.parametrize("figure", SCREEN.values(), ids=SCREEN)
def test_each_figure_is_closed_and_leaves_the_style_of_the_session_alone(figure, tmp_path):
    before = dict(plt.rcParams)
    figures.save(figure(), tmp_path / "a.png")
    assert plt.get_fignums() == [] and dict(plt.rcParams) == before


def test_terms_of_the_loss_are_lines_of_one_axis_and_the_share_is_in_percent():
    rows = [{"step": 1, "labelled": 2.0, "strong": 1.5, "sure": 0.2}, {"step": 2, "labelled": 1.0, "strong": 1.4}]
    loss, share = figures.history(rows, ["labelled", "feature", "strong"], "sure").axes
    assert {line.get_label(): line.get_ydata().tolist() for line in loss.lines} == {
        "labelled": [2, 1], "strong": [1.5, 1.4],
    }  # fmt: skip
    assert share.lines[0].get_xydata().tolist() == [[1, 20]] and share.get_ylim() == (0, 100)


def test_the_nearest_words_of_each_segment():
    """Three of things and one of the background, and a frame around the nearest of all."""
    cosines = np.array([[0.1, 0.4, -0.2, 0.3, 0.5], [0.2, -0.1, 0.0, 0.6, 0.1]])
    words, behind = ["cat", "dog", "owl", "cow", "sky"], [False] * 4 + [True]
    axis = figures.nearest_words(cosines, [IMAGE, IMAGE], words, behind).axes[0]
    texts = [text.get_text().split("\n") for text in axis.texts]
    first = [["dog", "0.40"], ["cow", "0.30"], ["cat", "0.10"], ["sky", "0.50"]]
    assert texts == [*first, ["cow", "0.60"], ["cat", "0.20"], ["owl", "0.00"], ["sky", "0.10"]]
    assert [patch.get_xy() for patch in axis.patches if patch.get_linewidth() == 2] == [(3, 0), (0, 1)]
    axis = figures.nearest_words(cosines[:, :2], [IMAGE, IMAGE], words[:2], behind[:2]).axes[0]  # no background
    assert [text.get_text()[:3] for text in axis.texts] == ["dog", "cat", "cat", "dog"]


def test_what_changed_has_a_colour_where_it_became_right_and_another_where_wrong():
    before, after, truth = (
        np.array([row], np.uint8) for row in ([0, 1, 0, 255, 0], [1, 0, 0, 0, 1], [1, 1, 0, 255, 2])
    )
    picture = figures.change_picture(np.zeros((1, 5, 3), np.uint8), before, after, truth)[0].tolist()
    right, wrong, *grey = picture
    assert [tuple(right), tuple(wrong)] == list(figures.BECAME.values())
    assert {len(set(pixel)) for pixel in grey} == {1}  # right twice, void, wrong twice


def test_a_schedule_has_a_line_for_each_part_and_adds_up_the_seconds():
    rows = [{"step": step, "total": 1.0 / step} for step in (10, 20, 30, 40)]
    left, right = figures.schedule(rows, 20, [3.0, 5.0]).axes
    assert [line.get_xdata().tolist() for line in left.lines] == [[10, 20], [30, 40]]
    assert right.lines[0].get_xydata().tolist() == [[0, 0], [20, 3], [40, 8]]
    left, right = figures.schedule(rows, 0, [0.0, 8.0]).axes  # no warm-up
    assert len(left.lines) == 1 and right.lines[0].get_xydata()[-1].tolist() == [40, 8]


def test_bars_of_errors_are_as_long_as_the_shares():
    counts = {"first": np.array([[1, 2, 0, 0, 1], [0, 0, 3, 1, 2]]), "second": np.array([0, 0, 0, 1, 3])}
    (axis,) = figures.error_bars(counts).axes
    widths = [[bar.get_width() for bar in bars] for bars in axis.containers]  # kind of error by stage
    np.testing.assert_allclose(widths, [[10, 0], [20, 0], [30, 0], [10, 25]])
    starts = [[bar.get_x() for bar in bars] for bars in axis.containers]
    np.testing.assert_allclose(starts, [[0, 0], [10, 0], [30, 0], [60, 0]], atol=1e-12)
    assert [bars.get_label() for bars in axis.containers] == list(diagnosis.OUTCOMES[:4])
    numbers = [text.get_text() for text in axis.texts if text.get_text()]
    assert numbers == ["10.0", "20.0", "30.0", "10.0", "25.0", "70.0", "25.0"]


def test_a_ladder_shows_each_seed_and_their_mean():
    (axis,) = figures.ladder(LADDER).axes
    np.testing.assert_allclose([bar.get_width() for bar in axis.patches], [60, 20])
    (points,) = axis.collections  # a single value needs no point
    np.testing.assert_allclose(points.get_offsets(), [[50, 0], [70, 0], [60, 0]])
    assert [text.get_text() for text in axis.texts] == ["60.0 ± 10.0", "20.0"]
    assert [text.get_text() for text in axis.get_yticklabels()] == ["a", "b"]


def test_a_method_has_a_bar_for_its_labels_and_one_for_its_network():
    figure = figures.ladder([{"name": "a", "zero_shot": 0.5, "segmenter": 0.7}, {"name": "b", "segmenter": 0.2}])
    (axis,) = figure.axes
    bars = [(bar.get_width(), round(bar.get_y() + bar.get_height() / 2, 2)) for bar in axis.patches]
    assert bars == [(50, -0.21), (70, 0.21), (20, 1)] and len(figure.legends) == 1


def test_a_logarithmic_axis_has_plain_numbers():
    figure = figures.curve([0.1, 1, 10], [0.1, 0.3, 0.2], 1, "x", "y", log=True)
    figure.canvas.draw()
    (axis,) = figure.axes
    shown = [label.get_text() for label in axis.get_xticklabels()]
    assert {"0.1", "1", "10"} <= set(shown) and not any("$" in text for text in shown)


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("chosen", [0.01, 0.1, 0.96, 1])
def test_the_text_of_a_chosen_value_stays_on_the_axis(chosen, log):
    (axis,) = figures.curve([0.01, 0.1, 1], [1, 0.9, 0.8], chosen, "x", "y", log=log).axes
    axis.figure.canvas.draw()
    text, box = axis.texts[0].get_window_extent(), axis.get_window_extent()
    assert box.x0 <= text.x0 and text.x1 <= box.x1


def test_intervals_and_curves_of_confidence_show_what_was_counted():
    (axis,) = figures.intervals({"b": Interval(0.01, -0.02, 0.03), "c": Interval(-0.1, -0.2, 0.0)}, "").axes
    np.testing.assert_allclose(np.array(axis.collections[0].get_segments())[..., 0], [[-2, 3], [-20, 0]], atol=1e-9)
    np.testing.assert_allclose(axis.lines[1].get_xydata(), [[1, 0], [-10, 1]])
    assert [text.get_text() for text in axis.texts] == ["+1.0", "-10.0"]
    upper, _ = figures.reliability({"a": SURE}).axes
    points = np.stack([SURE.confidence, SURE.accuracy], axis=1)[SURE.pixels > 0]
    np.testing.assert_allclose(upper.lines[1].get_xydata(), points)
    assert "ECE" in upper.get_legend().get_texts()[0].get_text()
    (axis,) = figures.accuracy_coverage({"a": SURE}).axes
    np.testing.assert_allclose(axis.lines[0].get_xydata(), 100 * np.stack([SURE.coverage, SURE.kept_accuracy], axis=1))


def test_bars_by_class_leave_out_what_has_no_iou():
    (axis,) = figures.class_bars(SEEDS, ["x", "y"], paper=6.9).axes
    np.testing.assert_allclose([bar.get_height() for bar in axis.patches], [20, 50, 60])
    assert [bar.get_hatch() for bar in axis.patches] == ["", "////", "////"]
    (deviations,) = [collection.get_segments() for collection in axis.collections]
    np.testing.assert_allclose(np.array(deviations)[0][:, 1], [20 - 10 * np.sqrt(2), 20 + 10 * np.sqrt(2)])


def test_curves_go_through_the_means_and_parts_of_the_images_are_amounts_too():
    (axis,) = figures.curves(GRID).axes
    lines = {line.get_label(): line.get_xydata() for line in axis.lines if not line.get_label().startswith("_")}
    np.testing.assert_allclose(lines["a"], [[np.log2(12), 60], [np.log2(24), 80], [np.log2(48), 80]], atol=0.02)
    np.testing.assert_allclose(lines["b"], [[np.log2(24), 30]], atol=0.02)
    bars = [segment[:, 1] for each in axis.collections for segment in each.get_segments() if len(segment)]
    wanted = [[50, 70], [80 - 10 * 2**0.5, 80 + 10 * 2**0.5], [30 - 10 * 2**0.5, 30 + 10 * 2**0.5]]
    np.testing.assert_allclose(bars, wanted)  # none at 48, of one seed
    assert [text.get_text() for text in axis.get_xticklabels()] == ["12", "24", "48"]
    (axis,) = figures.curves({"a": {"1/8": [0.5], "1/16": [0.4]}}).axes
    assert axis.lines[-1].get_ydata().tolist() == [40, 50]
    assert [text.get_text() for text in axis.get_xticklabels()] == ["1/16", "1/8"]


def test_a_confusion_matrix_has_shares_of_the_true_class():
    matrix = np.array([[3, 1, 0, 0], [0, 0, 2, 0], [0, 0, 0, 0]])
    (axis,) = figures.confusion(matrix, ["x", "y", "z"], paper=3.3).axes
    cells = {text.get_position(): text.get_text() for text in axis.texts}
    assert cells == {(0, 0): "75", (1, 0): "25", (2, 1): "100"}
    assert [text.get_text() for text in axis.get_xticklabels()] == ["x", "y", "z"]  # no pixel is without a label
    matrix[0, 3] = 4
    (axis,) = figures.confusion(matrix, ["x", "y", "z"], paper=3.3).axes
    assert [text.get_text() for text in axis.get_xticklabels()] == ["x", "y", "z", "no label"]
    axis, scale = figures.confusion(np.eye(21, 22, dtype=int), [f"class {k}" for k in range(21)], paper=3.3).axes
    assert not axis.texts and scale.get_ylabel() == "% of the class"  # the cells are too small for numbers


def test_a_paper_s_gallery_has_a_number_on_each_class_but_the_background():
    label = np.zeros((40, 40), np.uint8)
    label[10:30, 5:25] = 1
    label[0:2, :] = 2  # too thin for a digit
    label[:, 38:] = 255
    classes = Classes(("background", "cat", "dog"), ((),) * 3, ((0, 0, 0), (10, 200, 30), (200, 0, 0)))
    picture = np.zeros((40, 40, 3), np.uint8)
    figure = figures.gallery([[picture, label]], ["image", "label"], classes, paper=6.9)
    image, labelled = figure.axes
    (number,) = labelled.texts
    (x, y), text = number.get_position(), number.get_text()
    assert not image.texts and text == "1" and 10 < x < 20 and 15 < y < 25
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names == ["0 background", "1 cat", "2 dog", "no label"]
    without = dataclasses.replace(classes, background=None)  # as CamVid: every class has a number
    _, labelled = figures.gallery([[picture, label]], ["image", "label"], without, paper=6.9).axes
    assert [text.get_text() for text in labelled.texts] == ["0", "1"]


# For a paper

WRITE = "import sys; sys.path.insert(0, 'tests'); import test_figures; test_figures.write(sys.argv[1])"


def write(folder):
    for name, (width, draw) in PAPER.items():
        figures.save_vector(draw(paper=width), Path(folder) / name)


@pytest.fixture(scope="module")
def vectors(tmp_path_factory):
    """Folder of all figures of a paper, as PDF and SVG."""
    folder = tmp_path_factory.mktemp("vectors")
    write(folder)
    return folder


def test_a_paper_s_figures_are_the_same_files_in_another_process(vectors, tmp_path):
    """Another hash seed and another time would change names inside the files and dates."""
    hurry = {"PYTHONHASHSEED": "7", "PYTHONPATH": str(files.ROOT), "TZ": "Asia/Tokyo", "SOURCE_DATE_EPOCH": "1"}
    subprocess.run([sys.executable, "-c", WRITE, tmp_path], cwd=files.ROOT, env=os.environ | hurry, check=True)
    names = sorted(path.name for path in vectors.iterdir())
    assert len(names) == 2 * len(PAPER)
    assert [name for name in names if (vectors / name).read_bytes() != (tmp_path / name).read_bytes()] == []


@pytest.mark.parametrize("name", PAPER)
def test_a_paper_s_figure_has_its_width_truetype_text_and_no_title(vectors, name):
    width, draw = PAPER[name]
    pdf = (vectors / f"{name}.pdf").read_bytes()
    (box,) = re.findall(rb"/MediaBox \[ ?0 0 ([\d.]+) ([\d.]+) ?\]", pdf)
    assert float(box[0]) == pytest.approx(72 * width, abs=0.01)
    assert b"/CIDFontType2" in pdf and b"/Type3" not in pdf and b"CreationDate" not in pdf  # publishers refuse Type 3
    svg = (vectors / f"{name}.svg").read_text(encoding="utf-8")
    assert f'width="{72 * width:g}pt"' in svg
    assert "<dc:date>" not in svg and "<text" not in svg  # letters are drawn: as text they would depend on the viewer
    figure = draw(paper=width)
    texts = [text for text in figure.findobj(plt.Text) if text.get_text()]
    assert {text.get_fontfamily()[0] for text in texts} == {"STIXGeneral"}
    assert {text.get_fontsize() for text in texts} <= {6, 7, 8}
    assert not any(text.get_parse_math() for text in texts)  # a class called $x$ is no formula
    assert bool([axis for axis in figure.axes if axis.get_title()]) == (name == "gallery") and not figure._suptitle
    drawn = FigureCanvasAgg(figure).get_renderer()
    for part in (*figure.axes, *figure.legends):  # nothing is cut off
        box = part.get_tightbbox(drawn)
        assert -1 < box.x0 and box.x1 < figure.bbox.width + 1 and -1 < box.y0 and box.y1 < figure.bbox.height + 1, part
    if name == "gallery":  # its legend has three lines
        assert figure.legends[0].get_tightbbox(drawn).y1 < figure.axes[-1].get_tightbbox(drawn).y0 + 1


# Of linear RGB: deuteranomaly and protanomaly at severity 1.0 in Machado, Oliveira, Fernandes, "A physiologically-based
# model for simulation of color vision deficiency", IEEE TVCG 15(6), 2009; and XYZ, under D65.
ROWS = """0.367322 0.860646 -0.227968  0.280085 0.672501 0.047413  -0.011820 0.042940 0.968881
    0.152286 1.052583 -0.204868  0.114503 0.786281 0.099216  -0.003882 -0.048116 1.051998
    0.4124 0.3576 0.1805  0.2126 0.7152 0.0722  0.0193 0.1192 0.9505"""
DEUTERANOPES, PROTANOPES, XYZ = np.array(ROWS.split(), float).reshape(3, 3, 3)
SEEN_BY = {"all": np.eye(3), "deuteranopes": DEUTERANOPES, "protanopes": PROTANOPES}


def lab(colour, seen_by="all"):
    """Lightness and two hues (CIE 1976) of a colour such as #004488."""
    rgb = np.array([int(colour[k : k + 2], 16) for k in (1, 3, 5)]) / 255
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    relative = XYZ @ np.clip(SEEN_BY[seen_by] @ linear, 0, 1) / XYZ.sum(axis=1)
    x, y, z = np.where(relative > 0.008856, np.cbrt(relative), 7.787 * relative + 16 / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def test_a_paper_s_colours_differ_in_grey_and_to_the_colour_blind():
    np.testing.assert_allclose(lab("#ffffff"), [100, 0, 0], atol=0.1)
    red, green = "#b45a3c", "#78783c"  # a pair that deuteranopes confuse
    assert np.linalg.norm(lab(red) - lab(green)) > 35
    assert np.linalg.norm(lab(red, "deuteranopes") - lab(green, "deuteranopes")) < 15
    for one, other in itertools.combinations(figures.SERIES, 2):
        assert abs(lab(one) - lab(other))[0] > 15, (one, other)  # in grey there is only lightness
        assert abs(lab(one, "deuteranopes") - lab(other, "deuteranopes"))[0] > 9, (one, other)
        for kind in SEEN_BY:
            assert np.linalg.norm(lab(one, kind) - lab(other, kind)) > 30, (kind, one, other)
    assert (np.diff([lab(colour)[0] for colour in figures.STAGES.values()]) < -15).all()  # the ladder's: light to dark


def test_no_two_lines_or_bars_differ_in_colour_alone():
    for kind in ("linestyle", "hatch"):
        assert len({(look["color"], look[kind]) for look in figures.LOOKS}) == 10
    for one, other in [*itertools.combinations(figures.LOOKS[:5], 2), *itertools.pairwise(figures.LOOKS)]:
        assert one["color"] != other["color"] and one["marker"] != other["marker"] and one["hatch"] != other["hatch"]
    with pytest.raises(ValueError, match="11 lines or bars, and at most 10 look different"):
        figures.class_bars({letter: [0.5] for letter in "abcdefghijk"}, ["x"], paper=3.3)


def test_pictures_of_large_photos_are_thin_and_their_masks_may_be_records(monkeypatch):
    rng = np.random.default_rng(0)
    for size in ((37, 52), (3, 61), (50, 20)):
        image, dense = rng.integers(0, 256, (*size, 3), dtype=np.uint8), np.zeros((5, *size), dtype=bool)
        for mask in dense[1:]:
            top, left = rng.integers(0, size)
            mask[top : top + 15, left : left + 20] = True
        for shown, step in ((2048, 1), (20, math.ceil(max(size) / 20))):
            monkeypatch.setattr(figures, "SHOWN", shown)
            small = image[::step, ::step]
            np.testing.assert_array_equal(figures.thin(image), small)
            picture = figures.mask_picture(image, Masks.from_dense(dense))
            np.testing.assert_array_equal(picture, plain_mask_picture(small, dense[:, ::step, ::step], dense))
            np.testing.assert_array_equal(figures.mask_picture(image, dense), picture)
            label = dense[1].astype(np.uint8)
            expected = figures.overlay(small, label[::step, ::step], CLASSES)
            np.testing.assert_array_equal(figures.overlay(image, label, CLASSES), expected)
            drawn = figures.gallery([[image, label]], ["a", "b"], CLASSES).axes[0].images[0].get_array()
            assert drawn.shape == small.shape


def plain_mask_picture(image, masks, whole):
    """Paint whole masks, large ones first; a border is the last pixel before another value to the right or below."""
    picture = image.astype(np.float32) * 0.45 + 60
    colours = np.random.default_rng(0).permutation(
        plt.get_cmap("hsv")(np.linspace(0, 1, len(masks), endpoint=False))[:, :3] * 255
    )
    for k in np.argsort(-whole.sum(axis=(1, 2)), kind="stable"):
        picture[masks[k]] = 0.35 * image[masks[k]] + 0.65 * colours[k]
        picture[diagnosis.borders(masks[k], inner=True)] = 245
    return picture.clip(0, 255).astype(np.uint8)
