"""The pictures of the notebooks and of a paper: each function returns one closed figure.

A closed figure shows once, under Jupyter, papermill and nbval alike, as the last value of a cell. Label maps always
have the colours of their class file, the same in every notebook.
"""

import io
import math
from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib import patheffects
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from PIL import Image

from plg_utils import files, metrics
from plg_utils.diagnosis import OUTCOMES, Reliability
from plg_utils.records import IGNORE, Classes
from plg_utils.statistics import Interval, summarise

INK, FAINT = "#20242c", "#8a93a3"
STAGES = {"zero_shot": "#9db4d3", "enhanced": "#4f7cac", "segmenter": "#1f3f66"}  # light to dark along the pipeline
ERRORS = ("#a9b1bd", "#f0b429", "#56b4e9", "#c8553d")  # of diagnosis.OUTCOMES; the colour-blind tell them apart
VOID = (224, 224, 192)  # colour of IGNORE, as in VOC's own label maps
SINGLE, DOUBLE = 3.3, 6.9  # inches: one column of a two-column page, and both
# Of the lines and bars of a paper's figures: Tol's dark blue and Okabe and Ito's vermilion, sky blue, black and yellow.
# No two are alike to the colour-blind, nor in grey: 29, 54, 70, 0 and 89 of CIE's lightness. A test measures it.
SERIES = ("#004488", "#d55e00", "#56b4e9", "#000000", "#f0e442")
MARKERS, DASHES, HATCHES = "os^Dv", ("-", (0, (4, 1.4))), ("", "////", "....", "xxxx", "\\\\\\\\")
UNDATED = {".png": {"Software": None}, ".pdf": {"CreationDate": None}, ".svg": {"Date": None}}

plt.rcParams.update(
    {
        "figure.dpi": 100,
        "font.size": 9,
        "axes.titlesize": 9,
        "axes.titlecolor": INK,
        "axes.edgecolor": FAINT,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "xtick.color": INK,
        "ytick.color": INK,
    }
)

PAPER = {  # of each figure of a paper, over the above
    "font.family": ["STIXGeneral", "DejaVu Sans"],  # like a paper's Times, and what it lacks; both come with matplotlib
    "text.parse_math": False,  # a class may be called $x$
    "font.size": 8,
    "axes.labelsize": 8,
    "axes.titlesize": 8,
    "legend.fontsize": 7,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "axes.linewidth": 0.6,
    "axes.edgecolor": INK,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "lines.linewidth": 1.3,
    "lines.markersize": 4.5,
    "hatch.linewidth": 0.5,
    "figure.constrained_layout.h_pad": 0.02,
    "figure.constrained_layout.w_pad": 0.02,
    "pdf.fonttype": 42,  # TrueType, so that text stays text; many publishers refuse matplotlib's usual Type 3
    "svg.fonttype": "path",  # an SVG holds no font: as text it would look different where STIX is missing
    "svg.hashsalt": "plg_utils",  # names inside the file are otherwise drawn by chance
}


def colour(label: np.ndarray, classes: Classes) -> np.ndarray:
    """Paint a label map in the colours of its classes.

    label: (H, W) uint8
    returns: (H, W, 3) uint8
    """
    palette = np.zeros((256, 3), np.uint8)
    palette[: classes.num_classes] = classes.colours
    palette[IGNORE] = VOID
    return palette[label]


def overlay(image: np.ndarray, label: np.ndarray, classes: Classes, strength: float = 0.62) -> np.ndarray:
    """Lay a label map over its image; the background stays as it is, only paler.

    image: (H, W, 3) uint8, label: (H, W) uint8
    returns: (H, W, 3) uint8
    """
    painted = colour(label, classes).astype(np.float32)
    named = label != (-1 if classes.background is None else classes.background)
    grey = image.mean(axis=2, keepdims=True) * 0.6 + 90
    mixed = np.where(named[..., None], strength * painted + (1 - strength) * image, grey)
    mixed[edges(label)] = 255
    return mixed.clip(0, 255).astype(np.uint8)


def edges(label: np.ndarray) -> np.ndarray:
    """Where a label map changes: (H, W) bool, true on the upper left side of each border."""
    border = np.zeros(label.shape, bool)
    border[:-1] |= label[:-1] != label[1:]
    border[:, :-1] |= label[:, :-1] != label[:, 1:]
    return border


def mask_picture(image: np.ndarray, masks: np.ndarray, seed: int = 0) -> np.ndarray:
    """Lay masks over their image, the small ones on top, each in a colour of its own with a light border.

    image: (H, W, 3) uint8, masks: (N, H, W) bool
    returns: (H, W, 3) uint8
    """
    picture = image.astype(np.float32) * 0.45 + 60
    colours = plt.get_cmap("hsv")(np.linspace(0, 1, max(len(masks), 1), endpoint=False))[:, :3] * 255
    colours = np.random.default_rng(seed).permutation(colours)
    for k in np.argsort(-masks.sum(axis=(1, 2)), kind="stable"):
        picture[masks[k]] = 0.35 * image[masks[k]] + 0.65 * colours[k]
        picture[edges(masks[k])] = 245
    return picture.clip(0, 255).astype(np.uint8)


def heat_picture(image: np.ndarray, maps: np.ndarray) -> np.ndarray:
    """Lay the highest of some score maps over their image, from dark (0) to bright (1).

    image: (H, W, 3) uint8, maps: (C, H, W) in [0, 1], perhaps none
    returns: (H, W, 3) uint8
    """
    heat = maps.max(axis=0) if len(maps) else np.zeros(image.shape[:2])
    glow = 255 * plt.get_cmap("inferno")(np.clip(heat, 0, 1))[..., :3]
    return np.round(0.4 * image + 0.6 * glow).astype(np.uint8)


def feature_picture(features: np.ndarray) -> np.ndarray:
    """Show a feature map by its three strongest directions, as red, green and blue.

    features: (D, h, w)
    returns: (h, w, 3) uint8
    """
    depth, height, width = features.shape
    rows = features.reshape(depth, -1).T  # (h*w, D)
    rows = rows - rows.mean(axis=0)
    _, _, directions = np.linalg.svd(rows, full_matrices=False)
    directions = directions * np.sign(directions.sum(axis=1, keepdims=True) + 1e-12)  # svd leaves the sign open
    three = rows @ directions[:3].T
    low, high = np.percentile(three, [2, 98], axis=0)
    return ((three - low) / (high - low + 1e-9) * 255).clip(0, 255).astype(np.uint8).reshape(height, width, 3)


def gallery(
    rows: Sequence[Sequence[np.ndarray]], titles: Sequence[str], classes: Classes | None = None, width=1.5
) -> Figure:
    """Show rows of pictures under common titles; a legend of the classes that occur goes below.

    rows: each a sequence of images (H, W, 3) uint8 or label maps (H, W) uint8, as many as titles
    width: inches of a picture
    """
    legend = classes is not None and any(cell.ndim == 2 for row in rows for cell in row)
    height = width * len(rows) * np.mean([row[0].shape[0] / row[0].shape[1] for row in rows])
    figure, axes = plt.subplots(
        len(rows), len(titles), figsize=(width * len(titles), height + 0.3 + 0.4 * legend), squeeze=False
    )
    for axes_row, row in zip(axes, rows, strict=True):
        for axis, cell in zip(axes_row, row, strict=True):
            axis.imshow(colour(cell, classes) if cell.ndim == 2 else cell, interpolation="nearest")
            axis.set_axis_off()
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title, pad=4)
    figure.subplots_adjust(0.005, 0.01, 0.995, 0.995, wspace=0.04, hspace=0.04)
    figure.subplots_adjust(top=1 - 0.28 / figure.get_figheight(), bottom=0.42 * legend / figure.get_figheight() + 0.005)
    if legend:
        shown = sorted({int(k) for row in rows for cell in row if cell.ndim == 2 for k in np.unique(cell)})
        _legend(figure, classes, shown)
    return _closed(figure)


def _legend(figure, classes, shown):
    told = [(VOID, "no label") if k == IGNORE else (classes.colours[k], classes.names[k]) for k in shown]
    patches = [Patch(color=np.array(colour) / 255, label=name) for colour, name in told]
    lines = max(1, math.ceil(len(patches) / max(1, int(figure.get_figwidth() / 0.95))))
    columns = max(1, math.ceil(len(patches) / lines))
    patches = [patch for column in range(columns) for patch in patches[column::columns]]  # to be read line by line
    style = {"frameon": False, "handlelength": 1.1, "columnspacing": 1.0, "fontsize": 8}
    figure.legend(handles=patches, loc="lower center", ncol=columns, **style)


def similarities(
    scores: np.ndarray, pictures: Sequence[np.ndarray], names: Sequence[str], marked: Sequence[int]
) -> Figure:
    """A table of cosines: a row for each segment with its picture, a column for each word, the winner framed.

    scores: (N, K'), pictures: N of (H, W, 3) uint8, names: K', marked: (N,) winning column
    """
    figure, axis = plt.subplots(figsize=(1.6 + 0.52 * len(names), 0.5 + 0.52 * len(pictures)))
    axis.imshow(scores, cmap="Blues", vmin=min(0, scores.min()), vmax=max(scores.max(), 0.01), aspect="auto")
    for (row, column), score in np.ndenumerate(scores):
        dark = score > 0.6 * scores.max()
        axis.text(column, row, f"{score:.2f}", ha="center", va="center", fontsize=7, color="white" if dark else INK)
    for row, column in enumerate(marked):
        axis.add_patch(plt.Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, edgecolor="#d1495b", linewidth=1.8))
    axis.set_xticks(range(len(names)), names, rotation=45, ha="left")
    axis.xaxis.tick_top()
    axis.set_yticks([])
    axis.tick_params(length=0)
    for spine in axis.spines.values():
        spine.set_visible(False)
    for row, picture in enumerate(pictures):
        inset = axis.inset_axes([-1.52, row - 0.47, 0.94, 0.94], transform=axis.transData)  # left of the first column
        inset.imshow(picture)
        inset.set_axis_off()
    figure.tight_layout()
    return _closed(figure)


def curve(x: Sequence[float], y: Sequence[float], chosen: float, xlabel: str, ylabel: str) -> Figure:
    """A measured curve and the value that was chosen on it."""
    figure, axis = plt.subplots(figsize=(4.6, 2.4))
    axis.plot(x, y, color=STAGES["segmenter"], linewidth=1.8)
    axis.axvline(chosen, color="#d1495b", linewidth=1.2)
    axis.annotate(f" chosen: {chosen:.2f}", (chosen, min(y)), color="#d1495b", va="bottom")
    axis.set(xlabel=xlabel, ylabel=ylabel)
    figure.tight_layout()
    return _closed(figure)


def history(table: Sequence[dict], terms: Sequence[str]) -> Figure:
    """Loss terms along the training, one small plot each.

    table: rows with "step" and the terms
    """
    figure, axes = plt.subplots(1, len(terms), figsize=(2.6 * len(terms), 1.9), squeeze=False)
    for axis, term in zip(axes[0], terms, strict=True):
        points = [(row["step"], row[term]) for row in table if term in row]
        one = "o" if len(points) == 1 else None  # no line goes through a single point
        axis.plot(*zip(*points, strict=True), color=STAGES["enhanced"], linewidth=1.4, marker=one)
        axis.set_title(term.replace("_", " "))
        axis.set_xlabel("step")
    figure.tight_layout()
    return _closed(figure)


def histories(series: dict[str, Sequence[tuple[int, float]]], term: str) -> Figure:
    """One term of the loss of several trainings in one plot.

    series: training -> (step, value) pairs
    """
    figure, axis = plt.subplots(figsize=(5.2, 2.4))
    shades = plt.get_cmap("cividis")(np.linspace(0.05, 0.9, len(series)))
    for shade, (training, points) in zip(shades, series.items(), strict=True):
        axis.plot(
            *zip(*points, strict=True),
            label=training.replace("_", " "),
            color=shade,
            linewidth=1.5,
            marker="o" if len(points) == 1 else None,
        )
    axis.set(xlabel="step", ylabel=term)
    axis.legend(frameon=False)
    figure.tight_layout()
    return _closed(figure)


def shares(counts: np.ndarray, classes: Classes) -> Figure:
    """Bars of the share of pixels of each class.

    counts: (K,) pixels
    """
    figure, axis = plt.subplots(figsize=(0.62 * classes.num_classes + 0.6, 2.1))
    colours = np.array(classes.colours) / 255
    axis.bar(range(classes.num_classes), 100 * counts / counts.sum(), color=colours, edgecolor=INK, linewidth=0.5)
    axis.set_xticks(range(classes.num_classes), classes.names, rotation=35, ha="right")
    axis.set_ylabel("% of the pixels")
    figure.tight_layout()
    return _closed(figure)


def ladder(rows: Sequence[dict]) -> Figure:
    """The ladder: mean IoU of each stage and method as bars, in the order given.

    rows: with "stage", "name" and "miou"
    """
    figure, axis = plt.subplots(figsize=(6.4, 0.36 * len(rows) + 0.7))
    values = [100 * row["miou"] for row in rows]
    axis.barh(range(len(rows)), values, color=[STAGES[row["stage"]] for row in rows], height=0.72)
    for y, value in enumerate(values):
        axis.text(value + 0.8, y, f"{value:.1f}", va="center", color=INK)
    axis.set_yticks(range(len(rows)), [row["name"] for row in rows])
    axis.invert_yaxis()
    axis.set_xlim(0, 100)
    axis.set_xlabel("mean IoU (%)")
    figure.tight_layout()
    return _closed(figure)


def seeds(series: dict[str, Sequence[float]], stages: Sequence[str]) -> Figure:
    """Mean IoU over seeds: a bar for the mean, a point for each seed, in the order given.

    series: what was measured -> mean IoU of each seed; stages: of each, a key of STAGES
    """
    figure, axis = plt.subplots(figsize=(6.4, 0.36 * len(series) + 0.7), layout="constrained")
    for y, (values, stage) in enumerate(zip(series.values(), stages, strict=True)):
        values = 100 * np.asarray(values, dtype=float)
        axis.barh(y, values.mean(), color=STAGES[stage], height=0.72)
        axis.scatter(values, np.full(len(values), y), s=16, color="white", edgecolor=INK, linewidth=0.8, zorder=3)
        axis.text(values.max() + 1.6, y, f"{values.mean():.1f}", va="center", color=INK)
    axis.set_yticks(range(len(series)), list(series))
    axis.invert_yaxis()
    axis.set_xlim(0, 100)
    axis.set_xlabel("mean IoU (%), a point for each seed")
    return _closed(figure)


def class_bars(series: dict[str, Sequence[float]], names: Sequence[str]) -> Figure:
    """Per-class IoU of several label sources or networks side by side.

    series: name -> (K,) IoU, nan where there is none
    """
    figure, axis = plt.subplots(figsize=(0.8 * len(names) + 1, 2.6))
    width = 0.8 / len(series)
    shades = plt.get_cmap("cividis")(np.linspace(0.1, 0.9, len(series)))
    for k, (name, values) in enumerate(series.items()):
        positions = np.arange(len(names)) + (k - (len(series) - 1) / 2) * width
        axis.bar(positions, 100 * np.asarray(values), width * 0.94, label=name, color=shades[k])
    axis.set_xticks(range(len(names)), names, rotation=35, ha="right")
    axis.set(ylabel="IoU (%)", ylim=(0, 100))
    axis.legend(frameon=False, ncol=len(series), loc="lower left", bbox_to_anchor=(0, 1.0), borderaxespad=0)
    figure.tight_layout()
    return _closed(figure)


def error_bars(series: dict[str, np.ndarray]) -> Figure:
    """Bars of the share of pixels that went wrong, split by kind of error, a bar for each stage or method.

    series: stage or method, in the order of the pipeline -> counts (K, 5) or (5,) of `diagnosis.error_types`
    """
    figure, axis = plt.subplots(figsize=(6.4, 0.36 * len(series) + 1.05), layout="constrained")
    counts = np.array([np.asarray(each).reshape(-1, len(OUTCOMES)).sum(axis=0) for each in series.values()])
    shares_wrong = 100 * counts[:, :-1] / counts.sum(axis=1, keepdims=True).clip(1)  # (stages, 4)
    ends = shares_wrong.cumsum(axis=1)
    longest = max(ends.max(), 1e-9)
    for kind, fill in enumerate(ERRORS):
        lengths = shares_wrong[:, kind]
        axis.barh(range(len(series)), lengths, 0.72, ends[:, kind] - lengths, color=fill, label=OUTCOMES[kind])
        for y, length in enumerate(lengths):
            if length > 0.07 * longest:  # else the number is wider than the bar
                axis.text(
                    ends[y, kind] - length / 2, y, f"{length:.1f}", ha="center", va="center", fontsize=8, color=INK
                )
    for y, end in enumerate(ends[:, -1]):
        axis.text(end + 0.012 * longest, y, f"{end:.1f}", va="center", color=INK, fontweight="bold")
    axis.set_yticks(range(len(series)), list(series))
    axis.invert_yaxis()
    axis.set_xlim(0, 1.1 * longest)
    axis.set_xlabel("% of the pixels that are wrong")
    figure.legend(loc="outside upper center", ncol=len(ERRORS), frameon=False, handlelength=1.1)
    return _closed(figure)


def intervals(series: dict[str, Interval], unit: str) -> Figure:
    """Differences as points with their intervals, and a line at zero; what lies across the line is not certain.

    series: what is compared -> `statistics.bootstrap` of two methods; unit: what stands below, in points (0.01)
    """
    figure, axis = plt.subplots(figsize=(6.4, 0.36 * len(series) + 0.75), layout="constrained")
    axis.axvline(0, color=FAINT, linewidth=1)
    for y, found in enumerate(series.values()):
        axis.plot([100 * found.low, 100 * found.high], [y, y], color=STAGES["enhanced"], linewidth=3)
        axis.plot(100 * found.value, y, "o", color=STAGES["segmenter"])
        axis.annotate(
            f"{100 * found.value:+.1f}", (100 * found.value, y), (0, 7), textcoords="offset points", ha="center"
        )
    axis.set_yticks(range(len(series)), list(series))
    axis.set_ylim(len(series) - 0.5, -0.8)
    axis.set_xlabel(unit)
    return _closed(figure)


def scatter(x: Sequence[float], series: dict[str, Sequence[float]], xlabel: str, ylabel: str) -> Figure:
    """Points of several quantities over the same x, one small plot each; their heights are of one scale.

    x: M values; series: name -> M values
    """
    figure, axes = plt.subplots(1, len(series), figsize=(2.9 * len(series), 2.6), sharey=True, squeeze=False)
    for axis, (name, y) in zip(axes[0], series.items(), strict=True):
        axis.scatter(x, y, s=14, color=STAGES["enhanced"], alpha=0.8, linewidths=0)
        axis.set_title(name, fontsize=9)
        axis.set(xlabel=xlabel)
    axes[0][0].set(ylabel=ylabel)
    figure.tight_layout()
    return _closed(figure)


def reliability(series: dict[str, Reliability]) -> Figure:
    """Calibration: above, how often a confidence is right, and below, how frequent it is.

    On the diagonal a confidence may be believed. Bins with less than a thousandth of the pixels are not drawn above.

    series: label source or network -> `diagnosis.reliability`
    """
    figure, (upper, lower) = plt.subplots(
        2, 1, figsize=(3.9, 4.6), sharex=True, height_ratios=(3, 1), layout="constrained"
    )
    upper.plot([0, 1], [0, 1], color=FAINT, linewidth=1, linestyle="--")
    for shade, marker, (name, found) in zip(_shades(len(series)), _markers(len(series)), series.items(), strict=True):
        style = {"color": shade, "marker": marker, "markersize": 4, "linewidth": 1.5}
        told = found.pixels > found.pixels.sum() / 1000
        upper.plot(found.confidence[told], found.accuracy[told], label=f"{name} (ECE {found.ece:.3f})", **style)
        lower.stairs(100 * found.pixels / max(found.pixels.sum(), 1), found.edges, color=shade, linewidth=1.5)
    upper.set(ylabel="accuracy", xlim=(0, 1), ylim=(0, 1.02))
    upper.legend(frameon=False, loc="lower left", bbox_to_anchor=(0, 1.0), borderaxespad=0)
    lower.set(xlabel="confidence", ylabel="% of pixels")
    figure.align_ylabels()
    return _closed(figure)


def accuracy_coverage(series: dict[str, Reliability]) -> Figure:
    """Accuracy of the surest pixels, against the share of pixels that is kept.

    series: label source or network -> `diagnosis.reliability`
    """
    figure, axis = plt.subplots(figsize=(6.6, 2.8))
    for shade, marker, (name, found) in zip(_shades(len(series)), _markers(len(series)), series.items(), strict=True):
        axis.plot(100 * found.coverage, 100 * found.kept_accuracy, color=shade, linewidth=1.5)
        axis.plot(100 * found.coverage[-1:], 100 * found.kept_accuracy[-1:], marker, color=shade, label=name)
    axis.set(xlabel="% of the pixels kept, the surest first", ylabel="% of them right", xlim=(0, 102))
    axis.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))  # beside the curves, which go everywhere
    figure.tight_layout()
    return _closed(figure)


def _shades(count: int) -> np.ndarray:
    return plt.get_cmap("cividis")(np.linspace(0.1, 0.85, count))


def _markers(count: int) -> list[str]:
    return [("o", "s", "^", "D", "v", "P")[k % 6] for k in range(count)]


# For a paper: the same size and type everywhere, no title (that is the caption's), to be saved by `save_vector`


@plt.rc_context(PAPER)
def paper_gallery(
    rows: Sequence[Sequence[np.ndarray]], titles: Sequence[str], classes: Classes, width: float = DOUBLE
) -> Figure:
    """Rows of images and label maps under common titles, `width` inches wide altogether.

    In grey, classes look alike: so each has its number of the legend written where it is thickest, the background not.

    rows: each a sequence of images (H, W, 3) uint8 or label maps (H, W) uint8 of one size, as many as titles
    """
    gap, head, line = 0.04, 0.17, 0.15  # inches between pictures, of the titles, of a line of the legend
    side = (width - gap * (len(titles) - 1)) / len(titles)
    talls = [side * row[0].shape[0] / row[0].shape[1] for row in rows]
    shown = sorted({int(k) for row in rows for cell in row if cell.ndim == 2 for k in np.unique(cell)})
    names = ["no label" if k == IGNORE else f"{k} {classes.names[k]}" for k in shown]
    columns = _columns(names, width, handle=0.33) if names else 1
    height = head + sum(talls) + gap * len(rows) + line * math.ceil(len(names) / columns)
    figure, top = plt.figure(figsize=(width, height)), height - head
    for row, tall in zip(rows, talls, strict=True):
        for k, (title, cell) in enumerate(zip(titles, row, strict=True)):
            place = (k * (side + gap) / width, (top - tall) / height, side / width, tall / height)
            axis = figure.add_axes(place, title=title if row is rows[0] else "")
            axis.title.set_position((0.5, 1))
            axis.imshow(colour(cell, classes) if cell.ndim == 2 else cell, interpolation="nearest", aspect="auto")
            axis.set_axis_off()
            for number in np.setdiff1d(cell, [classes.background, IGNORE]) if cell.ndim == 2 else []:
                _number(axis, cell == number, int(number))
        top -= tall + gap
    colours = [VOID if k == IGNORE else classes.colours[k] for k in shown]
    patches = [
        Patch(facecolor=np.array(each) / 255, edgecolor=INK, linewidth=0.4, label=name)
        for each, name in zip(colours, names, strict=True)
    ]
    _legend_of(figure, patches, names, columns, loc="lower left", borderaxespad=0, borderpad=0, handlelength=1.4)
    return _laid_out(figure)


def _number(axis: plt.Axes, region: np.ndarray, number: int) -> None:
    """Write a number where a region (H, W) bool is thickest, if there is room for it."""
    stride = max(1, max(region.shape) // 64)  # coarse, since only a place for a digit is looked for
    inner = np.pad(region[::stride, ::stride], 1)
    peeled = 0
    while inner.any():
        last, peeled = inner, peeled + 1
        inner = inner.copy()
        inner[1:-1, 1:-1] &= last[:-2, 1:-1] & last[2:, 1:-1] & last[1:-1, :-2] & last[1:-1, 2:]
    if peeled < 3:  # of 64 or so: thinner than the digit
        return
    rows, columns = np.nonzero(last)
    middle = np.argmin(np.hypot(rows - rows.mean(), columns - columns.mean()))
    halo = [patheffects.withStroke(linewidth=1.2, foreground="white")]
    x, y = (columns[middle] - 1) * stride, (rows[middle] - 1) * stride
    axis.text(x, y, str(number), ha="center", va="center", fontsize=6, color="black", path_effects=halo)


@plt.rc_context(PAPER)
def paper_ladder(series: dict[str, Sequence[float]], stages: Sequence[str], width: float = SINGLE) -> Figure:
    """Mean IoU as bars from top to bottom, with its standard deviation over the seeds where there are several.

    series: what was measured -> mean IoU of each seed; stages: of each, a key of STAGES
    """
    figure, axis = plt.subplots(figsize=(width, 0.17 * len(series) + 0.42), layout="constrained")
    for y, (values, stage) in enumerate(zip(series.values(), stages, strict=True)):
        found = summarise(100 * np.asarray(values, float))
        axis.barh(y, found.mean, color=STAGES[stage], height=0.76)
        told, end = f"{found.mean:.1f}", found.mean
        if len(found.values) > 1:
            told, end = f"{told} ± {found.std:.1f}", found.mean + found.std
            around = [patheffects.withStroke(linewidth=2, foreground="white"), patheffects.Normal()]  # the bar is dark
            axis.plot([2 * found.mean - end, end], [y, y], "|-", color=INK, linewidth=0.8, path_effects=around)
        axis.annotate(told, (end, y), (4, 0), textcoords="offset points", va="center", fontsize=7, color=INK)
    axis.set_yticks(range(len(series)), list(series))
    axis.set(ylim=(len(series) - 0.45, -0.55), xlim=(0, 118), xticks=range(0, 101, 20), xlabel="mean IoU (%)")
    axis.spines["bottom"].set_bounds(0, 100)
    return _laid_out(figure)


@plt.rc_context(PAPER)
def paper_curves(
    series: dict[str, dict[int | str, Sequence[float]]], xlabel: str = "labelled images", width: float = SINGLE
) -> Figure:
    """Mean IoU over the labelled images: the mean as a line, a band of one standard deviation over the seeds.

    With one amount of labelled images there is no line: the points stand side by side. Of one seed there is no band.

    series: method -> labelled images, as a number or a part such as "1/8" -> mean IoU of each seed
    """
    amounts = sorted({labelled for found in series.values() for labelled in found}, key=Fraction)
    places = [float(Fraction(labelled)) for labelled in amounts]
    if not places or places[0] <= 0 or len({type(labelled) for labelled in amounts}) > 1:
        raise ValueError(f"labelled images are {amounts}: right are numbers above 0, or else parts such as '1/8'")
    columns = _columns(series, width)
    height = min(0.56 * width, 2.6) + 0.15 * math.ceil(len(series) / columns) + 0.1
    figure, axis = plt.subplots(figsize=(width, height), layout="constrained")
    single = len(amounts) == 1
    for k, (style, (name, found)) in enumerate(zip(_styles(len(series)), series.items(), strict=True)):
        x = np.array(sorted(float(Fraction(labelled)) for labelled in found))
        told = [summarise(100 * np.asarray(found[key], float)) for key in amounts if key in found]
        mean, spread = np.array([(each.mean, each.std) for each in told]).T  # nan of a single seed: nothing is drawn
        x = x + k - (len(series) - 1) / 2 if single else x
        axis.fill_between(x, mean - spread, mean + spread, color=style["color"], alpha=0.2, linewidth=0)
        axis.errorbar(x, mean, spread, color=style["color"], fmt="none", elinewidth=0.8, capsize=2)
        line = {"linestyle": "none" if single else style["dashes"], "markeredgecolor": INK, "markeredgewidth": 0.5}
        (drawn,) = axis.plot(x, mean, label=name, color=style["color"], marker=style["marker"], **line)
        drawn.set_path_effects([patheffects.withStroke(linewidth=1.9, foreground=INK), patheffects.Normal()])
    if single:
        axis.set_xlim(places[0] - len(series), places[0] + len(series))
    else:
        axis.set_xscale("log")  # labelled images usually double from one split to the next
    axis.set_xticks(places, [str(labelled) for labelled in amounts])
    axis.set_xticks([], minor=True)
    axis.set(xlabel=xlabel, ylabel="mean IoU (%)")
    axis.grid(axis="y", color=FAINT, linewidth=0.4, alpha=0.6)
    _legend_above(figure, axis, columns, handlelength=2.6)
    return _laid_out(figure)


@plt.rc_context(PAPER)
def paper_class_bars(
    series: dict[str, Sequence[Sequence[float]]], names: Sequence[str], width: float = DOUBLE
) -> Figure:
    """IoU of each class as bars side by side, with the standard deviation over the seeds where there are several.

    series: name -> (S, K) IoU of each seed and class, nan where there is none; names: of the K classes
    """
    columns = _columns(series, width)
    figure, axis = plt.subplots(figsize=(width, 1.8 + 0.15 * math.ceil(len(series) / columns)), layout="constrained")
    thick = 0.84 / max(len(series), 1)
    for k, (style, (name, values)) in enumerate(zip(_styles(len(series)), series.items(), strict=True)):
        values = 100 * np.asarray(values, float).reshape(-1, len(names))
        x = np.arange(len(names)) + (k - (len(series) - 1) / 2) * thick
        known = ~np.isnan(values).any(axis=0)
        bars = {"facecolor": style["color"], "edgecolor": INK, "linewidth": 0.5, "hatch": style["hatch"]}
        axis.bar(x[known], values[:, known].mean(axis=0), thick, label=name, **bars)
        if len(values) > 1:
            told = {"ecolor": FAINT if style["color"] == "#000000" else INK, "elinewidth": 0.7, "capsize": 1.2}
            axis.errorbar(
                x[known], values[:, known].mean(axis=0), values[:, known].std(axis=0, ddof=1), fmt="none", **told
            )
    axis.set_xticks(range(len(names)), names, rotation=35, ha="right", rotation_mode="anchor")
    axis.tick_params(axis="x", length=0)
    axis.set(ylabel="IoU (%)", ylim=(0, 100), xlim=(-0.6, len(names) - 0.4))
    _legend_above(figure, axis, columns, handlelength=1.6, handleheight=1.0)
    return _laid_out(figure)


@plt.rc_context(PAPER)
def paper_confusion(matrix: np.ndarray, names: Sequence[str], width: float = SINGLE) -> Figure:
    """Confusion matrix: what the pixels of each true class were given, in percent of the row.

    Where the cells are large enough, numbers stand in them, else there is a scale. Without a pixel that has no label,
    that column is left out; the row of a class without a pixel stays white.

    matrix: (K, K+1) counts of `metrics.confusion`, summed over the data set
    """
    matrix = np.asarray(matrix)
    given = [*names, "no label"]
    if not matrix[:, -1].any():
        matrix, given = matrix[:, :-1], given[:-1]
    percent = 100 * metrics.shares(matrix, matrix.sum(axis=1, keepdims=True) * np.ones_like(matrix))  # (K, K or K+1)
    side = (width - 0.75) / len(given)  # inches of a cell
    figure, axis = plt.subplots(figsize=(width, side * len(names) + 0.75), layout="constrained")
    picture = axis.imshow(percent, cmap="Blues", vmin=0, vmax=100, aspect="auto", interpolation="none")
    if side >= 0.18:
        for (row, column), value in np.ndenumerate(percent):
            if value >= 0.5:
                colour = "white" if value > 55 else INK
                axis.text(column, row, f"{value:.0f}", ha="center", va="center", fontsize=6, color=colour)
    else:
        figure.colorbar(picture, label="% of the class", pad=0.01).outline.set_linewidth(0.6)
    turned = {"rotation": 45, "rotation_mode": "anchor"} if side >= 0.16 else {"rotation": 90}
    axis.set_xticks(range(len(given)), given, ha="right" if side >= 0.16 else "center", **turned)
    axis.set_yticks(range(len(names)), names)
    axis.tick_params(length=0, labelsize=min(7, 60 * side))  # 72 points are an inch; names must not overlap
    axis.spines[["top", "right"]].set_visible(True)
    axis.set(xlabel="label", ylabel="truth")
    return _laid_out(figure)


def _columns(names: Iterable[str], width: float, handle: float = 0.5) -> int:
    """How many names stand side by side in a legend of `width` inches, each with a handle of so many."""
    return max(1, int(width / (handle + 0.052 * max(map(len, names)))))  # inches of a letter of 7 points


def _legend_above(figure: Figure, axis: plt.Axes, columns: int, **style) -> None:
    """A legend of what is in the axis, above it."""
    _legend_of(figure, *axis.get_legend_handles_labels(), columns, loc="outside upper left", **style)


def _legend_of(figure: Figure, handles: Sequence, names: Sequence[str], columns: int, **style) -> None:
    """A legend to be read line by line; matplotlib's own goes down the columns."""
    columns = min(columns, len(names)) or 1
    order = [k for column in range(columns) for k in range(len(names))[column::columns]]
    told = [handles[k] for k in order], [names[k] for k in order]
    figure.legend(*told, frameon=False, ncol=columns, columnspacing=1.2, **style)


def _styles(count: int) -> list[dict]:
    """Colour, marker, dashes and hatch of each of `count` series: neighbours share the dashes at most."""
    most = len(SERIES) * len(DASHES)
    if count > most:
        raise ValueError(f"{count} lines or bars in one figure cannot be told apart: choose {most} or fewer of them")
    both = [(second, k) for second in range(len(DASHES)) for k in range(len(SERIES))][:count]
    return [
        {"color": SERIES[k], "marker": MARKERS[k], "dashes": DASHES[second], "hatch": HATCHES[(k + 2 * second) % 5]}
        for second, k in both
    ]


def _laid_out(figure: Figure) -> Figure:
    """Close a figure, drawn once: what matplotlib makes only then would get the fonts of the time when it is shown."""
    figure.draw_without_rendering()
    return _closed(figure)


@plt.rc_context(PAPER)
def save_vector(figure: Figure, path: str | Path) -> list[Path]:
    """Write a figure as PDF and as SVG, of the size that it was given: two files called `path` and a suffix."""
    # 300 dots an inch for the photos in it: what printers ask for. Lines and letters have no dots.
    return [save(figure, Path(path).with_name(f"{Path(path).name}{suffix}"), dpi=300) for suffix in (".pdf", ".svg")]


def save(figure: Figure, path: str | Path, dpi: int = 100) -> Path:
    """Write a figure as PNG (in 256 colours), PDF or SVG; without the date: the same picture is the same file."""
    path, drawn = Path(path), io.BytesIO()
    figure.savefig(drawn, format=path.suffix[1:], dpi=dpi, metadata=UNDATED.get(path.suffix))
    with files.atomic(path) as temporary:
        temporary.write_bytes(shrink_png(drawn.getvalue()) if path.suffix == ".png" else drawn.getvalue())
    return path


def _closed(figure: Figure) -> Figure:
    plt.close(figure)  # else a notebook shows it twice: once as drawn, once as returned
    return figure


def shrink_png(png: bytes) -> bytes:
    """Bring a PNG to 256 colours: a figure looks the same at a third of the size. A small one stays as it is.

    Colours of areas, such as those of label maps and legends, stay exact; only the others are merged.
    """
    picture = Image.open(io.BytesIO(png))
    if picture.mode == "P":
        return png
    picture = picture.convert("RGB")
    pixels = np.asarray(picture).astype(np.uint32) @ np.array([1 << 16, 1 << 8, 1], np.uint32)  # (H, W)
    colours, which, counts = np.unique(pixels, return_inverse=True, return_counts=True)
    areas = np.argsort(-counts, kind="stable")[:64]
    areas = areas[counts[areas] >= 50]  # pixels; less than a legend's patch
    # The default, median cut without dithering, spoils photos: rare colours turn grey, smooth skies fall into steps.
    palette = picture.quantize(256 - len(areas), method=Image.Quantize.FASTOCTREE)
    merged = picture.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG)
    place = np.full(len(colours), -1)
    place[areas] = np.arange(len(areas))
    place = place[which.reshape(pixels.shape)]
    indexed = Image.fromarray(np.where(place < 0, np.asarray(merged) + len(areas), place).astype(np.uint8))
    exact = np.stack([colours[areas] >> shift & 255 for shift in (16, 8, 0)], axis=1)
    indexed.putpalette([*exact.ravel().tolist(), *merged.getpalette()])
    small = io.BytesIO()
    indexed.save(small, "PNG", optimize=True)
    return min(png, small.getvalue(), key=len)
