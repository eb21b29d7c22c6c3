"""Pictures for the notebooks and for a paper: each function of the second half returns one closed figure.

A closed figure appears once under Jupyter, papermill and nbval, as the last value of a cell. A label map always has the
colours of its class file. `paper` is the width in inches of a figure in a paper: 3.3 for a column, 6.9 for two. Such a
figure has a paper's type and no title, and no two lines or bars differ in colour alone. Without `paper`, a figure is
for the screen.
"""

import functools
import io
import math
from collections.abc import Callable, Collection, Sequence
from fractions import Fraction
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib import patheffects
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from PIL import Image

from plg_utils import files, metrics, run_lengths
from plg_utils.diagnosis import OUTCOMES, Reliability, borders
from plg_utils.records import IGNORE, Classes, Masks
from plg_utils.statistics import Interval, summarise

INK, FAINT, CHOSEN = "#20242c", "#8a93a3", "#d1495b"
STAGES = {"zero_shot": "#9db4d3", "enhanced": "#4f7cac", "segmenter": "#1f3f66"}  # light to dark along the pipeline
ERRORS = ("#a9b1bd", "#f0b429", "#56b4e9", "#c8553d")  # of diagnosis.OUTCOMES; safe for the colour-blind
SHOWN = 2048  # pixels of the longer side of a picture
VOID = (224, 224, 192)  # colour of IGNORE, as in VOC's own label maps
BECAME = {"became right": (0, 114, 178), "became wrong": (230, 159, 0)}  # Okabe and Ito's blue and orange
# Lines and bars of a paper's figures: Tol's dark blue and Okabe and Ito's vermilion, sky blue, black and yellow.
# The colour-blind can tell all of them apart. In grey their CIE lightness is 29, 54, 70, 0 and 89. A test measures it.
SERIES = ("#004488", "#d55e00", "#56b4e9", "#000000", "#f0e442")
STRIPES = "//////"  # on pixels without a label
HATCHES = ("", "////", "....", "xxxx", "\\\\\\\\")
LOOKS = [
    {"color": SERIES[k], "marker": "os^Dv"[k], "linestyle": dashes, "hatch": HATCHES[(k + shift) % 5]}
    for shift, dashes in ((0, "-"), (2, (0, (4, 1.4))))
    for k in range(5)
]  # of ten series; in a printout in grey no two look alike
OUTLINE = [patheffects.withStroke(linewidth=1.9, foreground=INK), patheffects.Normal()]  # of lines, some are bright
UNDATED = {".png": {"Software": None}, ".pdf": {"CreationDate": None}, ".svg": {"Date": None}}

STYLE = {
    "figure.dpi": 100,
    "figure.constrained_layout.use": True,
    "font.size": 9,
    "legend.fontsize": 8.5,
    "legend.frameon": False,
    "lines.linewidth": 1.5,
    "axes.titlesize": 9,
    "axes.titlecolor": INK,
    "text.parse_math": False,  # a photo or a class may be called $x$
    "axes.edgecolor": FAINT,
    **{"axes.spines.top": False, "axes.spines.right": False, "xtick.color": INK, "ytick.color": INK},
}
PAPER = STYLE | {
    "font.family": ["STIXGeneral", "DejaVu Sans"],  # like Times, and for other signs; both come with matplotlib
    "axes.edgecolor": INK,
    **dict.fromkeys(("font.size", "axes.labelsize", "axes.titlesize"), 8),
    **dict.fromkeys(("legend.fontsize", "xtick.labelsize", "ytick.labelsize"), 7),
    **dict.fromkeys(("axes.linewidth", "xtick.major.width", "ytick.major.width"), 0.6),
    **dict.fromkeys(("xtick.major.size", "ytick.major.size"), 2.5),
    **dict.fromkeys(("figure.constrained_layout.h_pad", "figure.constrained_layout.w_pad"), 0.02),
    "lines.linewidth": 1.3,
    "lines.markersize": 4.5,
    "hatch.linewidth": 0.5,
    "pdf.fonttype": 42,  # TrueType, so that text stays text; many publishers refuse matplotlib's usual Type 3
    "svg.fonttype": "path",  # an SVG holds no font: as text it would look different where STIX is missing
    "svg.hashsalt": "plg_utils",  # names inside the file are random otherwise
}


# Arrays


def thin(picture: np.ndarray) -> np.ndarray:
    """Every n-th row and column of an image or a label map (H, W, ...) that is larger than a figure shows (SHOWN)."""
    step = math.ceil(max(picture.shape[:2]) / SHOWN)
    return picture[::step, ::step]


def colour(label: np.ndarray, classes: Classes) -> np.ndarray:
    """Paint a label map (H, W) uint8 in the colours of its classes: (H, W, 3) uint8."""
    palette = np.zeros((256, 3), np.uint8)
    palette[: classes.num_classes] = classes.colours
    palette[IGNORE] = VOID
    return palette[label]


def overlay(image: np.ndarray, label: np.ndarray, classes: Classes) -> np.ndarray:
    """Lay a label map (H, W) over its image (H, W, 3), both uint8; the background is grey and paler; see `thin`."""
    image, label = thin(image), thin(label)
    painted = colour(label, classes).astype(np.float32)
    named = label != (-1 if classes.background is None else classes.background)
    grey = image.mean(axis=2, keepdims=True) * 0.6 + 90
    mixed = np.where(named[..., None], 0.62 * painted + (1 - 0.62) * image, grey)
    mixed[borders(label, inner=True)] = 255
    return mixed.clip(0, 255).astype(np.uint8)


def mask_picture(image: np.ndarray, masks: np.ndarray | Masks) -> np.ndarray:
    """Lay masks over their image (H, W, 3) uint8, small ones on top, each in another colour; see `thin`.

    masks: (N, H, W) bool, or a record, which takes less memory
    """
    masks = masks if isinstance(masks, Masks) else Masks.from_dense(masks)
    step, image, boxes = math.ceil(max(image.shape[:2]) / SHOWN), thin(image), masks.corners()
    picture = image.astype(np.float32) * 0.45 + 60
    colours = plt.get_cmap("hsv")(np.linspace(0, 1, max(len(masks), 1), endpoint=False))[:, :3] * 255
    colours = np.random.default_rng(0).permutation(colours)
    for k in np.argsort(-masks.areas(), kind="stable"):
        left, top = (max(0, side // step - 1) * step for side in boxes[k][:2])  # with a margin for the border
        right, bottom = (min(side + step, length) for side, length in zip(boxes[k][2:], masks.size[::-1], strict=True))
        mask = run_lengths.crop(masks.runs[k], masks.size, (left, top, right, bottom))[::step, ::step]
        (height, width), row, column = mask.shape, top // step, left // step
        window = np.s_[row : row + height, column : column + width]
        picture[window][mask] = 0.35 * image[window][mask] + 0.65 * colours[k]
        picture[window][borders(mask, inner=True)] = 245
    return picture.clip(0, 255).astype(np.uint8)


def heat_picture(image: np.ndarray, maps: np.ndarray) -> np.ndarray:
    """Lay the highest of some score maps (C, H, W), from dark (0) to bright (1), over their image (H, W, 3) uint8."""
    heat = maps.max(axis=0) if len(maps) else np.zeros(image.shape[:2])
    glow = 255 * plt.get_cmap("inferno")(np.clip(heat, 0, 1))[..., :3]
    return np.round(0.4 * image + 0.6 * glow).astype(np.uint8)


def change_picture(image: np.ndarray, before: np.ndarray, after: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Show on a greyed image (H, W, 3) uint8 which pixels of its label map became right or wrong (BECAME).

    before, after, truth: (H, W) uint8; void pixels of the truth stay grey
    """
    picture = np.repeat(image.mean(axis=2, keepdims=True) * 0.45 + 110, 3, axis=2)
    was, is_now = before == truth, after == truth
    picture[~was & is_now & (truth != IGNORE)] = BECAME["became right"]
    picture[was & ~is_now & (truth != IGNORE)] = BECAME["became wrong"]
    return picture.astype(np.uint8)


def feature_picture(features: np.ndarray) -> np.ndarray:
    """Show a feature map (D, h, w) by its three strongest directions, as red, green and blue: (h, w, 3) uint8."""
    depth, height, width = features.shape
    rows = features.reshape(depth, -1).T  # (h*w, D)
    rows = rows - rows.mean(axis=0)
    _, _, directions = np.linalg.svd(rows, full_matrices=False)
    directions = directions * np.sign(directions.sum(axis=1, keepdims=True) + 1e-12)  # svd leaves the sign open
    three = rows @ directions[:3].T
    low, high = np.percentile(three, [2, 98], axis=0)
    return ((three - low) / (high - low + 1e-9) * 255).clip(0, 255).astype(np.uint8).reshape(height, width, 3)


# Figures


def _figure(draw: Callable[..., Figure]) -> Callable[..., Figure]:
    """Draw in our style, or in a paper's where `paper` is given, and close the figure."""

    @functools.wraps(draw)
    def styled(*args, **options) -> Figure:
        with plt.rc_context(PAPER if options.get("paper") else STYLE):
            figure = draw(*args, **options)
            figure.draw_without_rendering()  # matplotlib makes ticks only here, in the style of this moment
        plt.close(figure)  # else a notebook shows it twice: once as drawn, once as returned
        return figure

    return styled


def _lines_of(names: Sequence[str], extra: float, paper: float | None = None) -> tuple[Figure, plt.Axes]:
    """Make an axis with a line of text for each name, from top to bottom; extra: inches for the rest."""
    figure, axis = plt.subplots(figsize=(paper or 6.4, (0.17 if paper else 0.36) * len(names) + extra))
    axis.set(yticks=range(len(names)), yticklabels=names, ylim=(len(names) - 0.45, -0.55))
    return figure, axis


def _styles(names: Collection[str], *keys: str, paper: float | None = None) -> list[dict]:
    """Give each series its label and those of colour, marker, linestyle and hatch that `keys` name."""
    if paper and len(names) > len(LOOKS):
        raise ValueError(f"a figure has {len(names)} lines or bars, and at most {len(LOOKS)} look different")
    return [{"label": name} | {key: LOOKS[k % len(LOOKS)][key] for key in keys} for k, name in enumerate(names)]


def _columns(names: Collection[str], width: float, handle: float = 0.5) -> tuple[int, int]:
    """Columns and lines of a legend of `width` inches, each name with a handle of so many."""
    letter = 0.55 * plt.rcParams["legend.fontsize"] / 72  # inches
    columns = max(1, min(len(names), int(width / (handle + letter * max(map(len, names), default=1)))))
    return columns, math.ceil(len(names) / columns)


def _legend(figure: Figure, handles: Sequence, names: Sequence[str], columns: int, **style) -> None:
    """Add a legend that is read line by line; matplotlib's own goes down the columns."""
    order = [k for column in range(columns) for k in range(len(names))[column::columns]]
    shown = [handles[k] for k in order], [names[k] for k in order]
    figure.legend(*shown, ncol=columns, columnspacing=1.2, **style)


@_figure
def gallery(
    rows: Sequence[Sequence[np.ndarray]],
    titles: Sequence[str],
    classes: Classes | None = None,
    width: float = 1.5,
    *,
    more: dict[str, tuple[int, int, int]] | None = None,
    paper: float | None = None,
) -> Figure:
    """Rows of images and label maps under common titles; a legend of the classes that occur goes below.

    Pixels without a label have stripes. Classes may look alike in grey. So in a paper, the number of each class but the
    background is written on it.

    rows: of images (H, W, 3) uint8 or label maps (H, W) uint8, as many as titles; width: inches of one on the screen
    more: further entries of the legend: name -> RGB
    """
    rows = [[thin(cell) for cell in row] for row in rows]
    if not titles:
        figure = plt.figure(figsize=(paper or 2 * width, 0.5), layout="none")
        figure.text(0, 0.4, "no image to show")
        return figure
    total, gap = paper or width * len(titles), 0.04  # inches
    head, line = 1.8 * plt.rcParams["axes.titlesize"] / 72, 1.55 * plt.rcParams["legend.fontsize"] / 72
    side = (total - gap * (len(titles) - 1)) / len(titles)
    heights = [side * np.mean([min(4, cell.shape[0] / cell.shape[1]) for cell in row]) for row in rows]  # of strips 4
    maps = [cell for row in rows for cell in row if cell.ndim == 2]
    shown = sorted({int(k) for label in maps for k in np.unique(label)})
    names = ["no label" if k == IGNORE else f"{k} {classes.names[k]}" if paper else classes.names[k] for k in shown]
    shades = [VOID if k == IGNORE else classes.colours[k] for k in shown] + [*(more or {}).values()]
    hatches = [STRIPES if k == IGNORE else "" for k in shown] + [""] * len(more or {})
    names += more or {}
    columns, lines = _columns(names, total, handle=0.4)
    height = head + sum(heights) + gap * len(rows) + line * lines
    figure, top = plt.figure(figsize=(total, height), layout="none"), height - head
    for row, tall in zip(rows, heights, strict=True):
        for k, (title, cell) in enumerate(zip(titles, row, strict=True)):
            axis = figure.add_axes((k * (side + gap) / total, (top - tall) / height, side / total, tall / height))
            axis.imshow(colour(cell, classes) if cell.ndim == 2 else cell, interpolation="nearest")
            if cell.ndim == 2 and (cell == IGNORE).any():
                with plt.rc_context({"hatch.color": FAINT, "hatch.linewidth": 0.7}):
                    axis.contourf(cell == IGNORE, levels=(0.5, 1), colors="none", hatches=[STRIPES])
            axis.set_axis_off()
            if row is rows[0]:
                axis.set_title(title, pad=3)
            if paper and cell.ndim == 2:
                for number in sorted(set(np.unique(cell).tolist()) - {classes.background, IGNORE}):
                    _number(axis, cell == number, number)
        top -= tall + gap
    if names:
        looks = zip(shades, hatches, strict=True)
        patches = [Patch(facecolor=np.array(shade) / 255, edgecolor=INK, linewidth=0.4, hatch=h) for shade, h in looks]
        _legend(figure, patches, names, columns, loc="lower left", borderaxespad=0, borderpad=0, handlelength=1.4)
    return figure


def _number(axis: plt.Axes, region: np.ndarray, number: int) -> None:
    """Write a number where a region (H, W) bool is thickest, if there is room for it."""
    stride = max(1, max(region.shape) // 64)  # a coarse grid is enough to place a digit
    inner, peeled = np.pad(region[::stride, ::stride], 1), 0
    while inner.any():
        last, peeled = inner, peeled + 1
        inner = inner & ~borders(inner)
    if peeled < 3:  # of 64 or so: thinner than the digit
        return
    rows, columns = np.nonzero(last)
    middle = np.argmin(np.hypot(rows - rows.mean(), columns - columns.mean()))
    halo = [patheffects.withStroke(linewidth=1.2, foreground="white")]
    x, y = (columns[middle] - 1) * stride, (rows[middle] - 1) * stride
    axis.text(x, y, str(number), ha="center", va="center", fontsize=6, color="black", path_effects=halo)


@_figure
def nearest_words(
    cosines: np.ndarray, pictures: Sequence[np.ndarray], words: Sequence[str], of_background: Sequence[bool]
) -> Figure:
    """A table: for each segment its picture, the three nearest words of things and the nearest of the background.

    The nearest of all is framed, and the darker a cell, the nearer its word.

    cosines: (N, K') of segments and words, pictures: N of (H, W, 3) uint8, words: K', of_background: K'
    """
    behind = np.array(of_background, dtype=bool)
    columns = [("nearest thing", ~behind, 0), ("second", ~behind, 1), ("third", ~behind, 2)]
    columns = [column for column in [*columns, ("nearest of background", behind, 0)] if column[2] < column[1].sum()]
    figure, axis = plt.subplots(figsize=(0.7 + 1.5 * len(columns), 0.3 + 0.6 * len(pictures)))
    axis.set(xlim=(-0.45, len(columns)), ylim=(len(pictures), 0), yticks=[])
    for row, (of_segment, picture) in enumerate(zip(cosines, pictures, strict=True)):
        inset = axis.inset_axes([-0.42, row + 0.04, 0.38, 0.92], transform=axis.transData)
        inset.imshow(picture)
        inset.set_axis_off()
        for column, (_, own, k) in enumerate(columns):
            index = np.flatnonzero(own)[np.argsort(-of_segment[own], kind="stable")[k]]
            share = float(of_segment[index] / max(of_segment.max(), 1e-9))  # of the nearest of all
            shade, frame = plt.get_cmap("Blues")(0.6 * max(share, 0)), {"edgecolor": "white"}
            if index == of_segment.argmax():
                frame = {"edgecolor": CHOSEN, "linewidth": 2, "zorder": 3}
            axis.add_patch(plt.Rectangle((column, row), 1, 1, facecolor=shade, **frame))
            text = f"{words[index]}\n{of_segment[index]:.2f}"
            axis.text(column + 0.5, row + 0.5, text, ha="center", va="center", color=INK, zorder=4)
    axis.set_xticks([column + 0.5 for column in range(len(columns))], [title for title, _, _ in columns])
    axis.xaxis.tick_top()
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    return figure


@_figure
def curve(
    x: Sequence[float], y: Sequence[float], chosen: float, xlabel: str, ylabel: str, *, log: bool = False
) -> Figure:
    """A measured curve, and a vertical line at the value that was chosen on it; log: x on a logarithmic axis."""
    figure, axis = plt.subplots(figsize=(4.6, 2.4))
    axis.plot(x, y, color=STAGES["segmenter"], linewidth=1.8)
    axis.axvline(chosen, color=CHOSEN, linewidth=1.2)
    axis.set(xlabel=xlabel, ylabel=ylabel)
    if log:
        axis.set_xscale("log")
        axis.xaxis.set_major_formatter("{x:g}")  # powers of ten would be mathematical text, which is switched off here
    across = (axis.transData - axis.transAxes).transform((chosen, min(y)))[0]  # 0: left end of the axis, 1: right end
    side = "right" if across > 0.6 else "left"  # of the text, which needs a third of the axis
    axis.annotate(f" chosen: {chosen:.2f} ", (chosen, min(y)), color=CHOSEN, va="bottom", ha=side)
    return figure


@_figure
def history(table: Sequence[dict], terms: Sequence[str], share: str) -> Figure:
    """Terms of the loss along one training, and beside them a share of the pixels in percent.

    table: rows of "step", of the terms and of the share; a term that no row has gets no line
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(6.6, 2.4))
    terms = [term for term in terms if any(term in row for row in table)]
    for style, term in zip(_styles(terms, "color", "marker", "linestyle"), terms, strict=True):
        _line(left, [(row["step"], row[term]) for row in table if term in row], **style)
    if points := [(row["step"], 100 * row[share]) for row in table if share in row]:
        _line(right, points, color=STAGES["enhanced"], marker="o")
    left.set(xlabel="step", ylabel="loss", ylim=(0, None))
    left.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=len(terms), borderaxespad=0, columnspacing=1.2)
    right.set(xlabel="step", ylabel=f"{share} (% of the pixels)", ylim=(0, 100))
    return figure


def _line(axis: plt.Axes, points: Sequence[tuple[int, float]], **style) -> None:
    """Draw a line through (step, value) pairs, with a marker at its end."""
    axis.plot(*zip(*points, strict=True), markevery=[-1], markersize=4, **style)


@_figure
def schedule(table: Sequence[dict], warm_up: int, seconds: Sequence[float]) -> Figure:
    """Loss and time of a training with a warm-up, which is shaded.

    table: rows of "step" and "total"; warm_up: its number of steps, or 0; seconds: of the warm-up and of the rest
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(6.6, 2.1))
    look = {"color": STAGES["enhanced"], "marker": "o"}
    for warm in (True, False):
        if points := [(row["step"], row["total"]) for row in table if (row["step"] <= warm_up) == warm]:
            _line(left, points, **look)
    right.plot([0, warm_up, table[-1]["step"]], [0, seconds[0], sum(seconds)], markersize=4, **look)
    left.set(ylabel="total loss", ylim=(0, None))
    right.set(ylabel="seconds", ylim=(0, None))
    for axis in (left, right):
        axis.axvspan(0, warm_up, color=INK, alpha=0.08, linewidth=0)
        axis.set(xlabel="step", xlim=(0, None))
    if warm_up:
        left.annotate("warm-up", (warm_up / 2, 0.94), xycoords=("data", "axes fraction"), ha="center", va="top")
    return figure


@_figure
def histories(series: dict[str, Sequence[tuple[int, float]]], term: str) -> Figure:
    """One term of the loss of several trainings in one plot; series: training -> (step, value) pairs."""
    figure, axis = plt.subplots(figsize=(5.2, 2.4))
    names = [training.replace("_", " ") for training in series]
    for style, points in zip(_styles(names, "color", "marker", "linestyle"), series.values(), strict=True):
        _line(axis, points, **style, path_effects=OUTLINE)
    axis.set(xlabel="step", ylabel=term)
    axis.legend()
    return figure


@_figure
def shares(counts: np.ndarray, classes: Classes) -> Figure:
    """Bars of the share of pixels of each class; counts: (K,) pixels."""
    figure, axis = plt.subplots(figsize=(0.62 * classes.num_classes + 0.6, 2.1))
    percent, colours = 100 * counts / counts.sum(), np.array(classes.colours) / 255
    axis.bar(range(classes.num_classes), percent, color=colours, edgecolor=INK, linewidth=0.5)
    axis.set_xticks(range(classes.num_classes), classes.names, rotation=35, ha="right", rotation_mode="anchor")
    axis.set_ylabel("% of the pixels")
    return figure


@_figure
def ladder(rows: Sequence[dict], *, paper: float | None = None) -> Figure:
    """Mean IoU of each method as bars, in the order given; of several seeds, a point for each.

    rows: "name", and for each bar a key of STAGES with its mean IoU, a number or one for each seed
    """
    figure, axis = _lines_of([row["name"] for row in rows], 0.42 if paper else 0.7, paper)
    shown = [{stage: row[stage] for stage in STAGES if row.get(stage) is not None} for row in rows]
    several = any(len(measured) > 1 for measured in shown)
    height = 0.42 if several else 0.8
    for y, measured in enumerate(shown):
        for k, (stage, miou) in enumerate(measured.items()):
            seeds, at = summarise(100 * np.atleast_1d(miou)), y + (k - (len(measured) - 1) / 2) * height
            axis.barh(at, seeds.mean, color=STAGES[stage], height=0.92 * height)
            text = f"{seeds.mean:.1f}"
            if len(seeds.values) > 1:
                text += f" ± {seeds.std:.1f}"
                style = {"s": 7 if paper else 16, "linewidth": 0.5 if paper else 0.8, "color": "white"}
                axis.scatter(seeds.values, [at] * len(seeds.values), zorder=3, edgecolor=INK, **style)
            place = {"xytext": (5, 0), "textcoords": "offset points", "va": "center"}
            axis.annotate(text, (max(seeds.values), at), fontsize=plt.rcParams["ytick.labelsize"], color=INK, **place)
    axis.set(xlim=(0, 120), xticks=range(0, 101, 20), xlabel="mean IoU (%)")
    axis.spines["bottom"].set_bounds(0, 100)
    if several:
        named = {"zero_shot": "zero-shot labels", "enhanced": "enhanced labels", "segmenter": "unseen images"}
        handles = [Patch(color=STAGES[stage], label=name) for stage, name in named.items()]
        figure.legend(handles=handles, loc="outside upper center", ncols=3)
    return figure


@_figure
def class_bars(series: dict[str, Sequence], names: Sequence[str], *, paper: float | None = None) -> Figure:
    """IoU of each class as bars side by side; of several seeds, the mean and the standard deviation.

    series: name -> (K,) IoU, or (S, K) of each seed, nan where there is none; names: of the K classes
    """
    width = paper or 0.8 * len(names) + 1
    columns, lines = _columns(series, width)
    figure, axis = plt.subplots(figsize=(width, (1.8 if paper else 2.4) + 0.15 * lines))
    thick, styles = 0.84 / len(series), _styles(series, "color", *(["hatch"] if paper else []), paper=paper)
    edge = {"edgecolor": INK, "linewidth": 0.5} if paper else {"edgecolor": "white", "linewidth": 0.4}
    for k, (style, iou) in enumerate(zip(styles, series.values(), strict=True)):
        iou = 100 * np.asarray(iou, float).reshape(-1, len(names))  # (S, K)
        known = np.flatnonzero(~np.isnan(iou).any(axis=0))
        x, mean = known + (k - (len(series) - 1) / 2) * thick, iou[:, known].mean(axis=0)
        axis.bar(x, mean, thick, **style, **edge)
        if len(iou) > 1:
            ink = FAINT if sum(to_rgb(style["color"])) < 0.6 else INK  # on a dark bar
            spread = iou[:, known].std(axis=0, ddof=1)
            axis.errorbar(x, mean, spread, fmt="none", ecolor=ink, elinewidth=0.7, capsize=1.2)
    axis.set_xticks(range(len(names)), names, rotation=35, ha="right", rotation_mode="anchor")
    axis.tick_params(axis="x", length=0)
    axis.set(ylabel="IoU (%)", ylim=(0, 100), yticks=range(0, 101, 20), xlim=(-0.6, len(names) - 0.4))
    handles = axis.get_legend_handles_labels()
    _legend(figure, *handles, columns, loc="outside upper left", handlelength=1.6, handleheight=1.0)
    return figure


@_figure
def curves(
    series: dict[str, dict[int | str, Sequence[float]]], xlabel: str = "labelled images", *, paper: float | None = None
) -> Figure:
    """Mean IoU over the labelled images: lines through the means, with a standard deviation over the seeds as bars.

    series: method -> labelled images, as a number or a part such as "1/8" -> mean IoU of each seed
    """
    amounts = sorted({labelled for measured in series.values() for labelled in measured}, key=Fraction)
    width = paper or 4.6
    columns, lines = _columns(series, width)
    figure, axis = plt.subplots(figsize=(width, min(0.56 * width, 2.6) + 0.15 * lines + 0.1))
    places = {labelled: math.log2(Fraction(labelled)) for labelled in amounts}  # splits usually double the images
    styles = _styles(series, "color", "marker", "linestyle", paper=paper)
    for k, (style, measured) in enumerate(zip(styles, series.values(), strict=True)):
        seeds = {key: summarise(100 * np.asarray(measured[key])) for key in amounts if key in measured}
        mean, spread = [each.mean for each in seeds.values()], [each.std for each in seeds.values()]
        x = [places[key] + 0.012 * (k - (len(series) - 1) / 2) for key in seeds]  # side by side
        axis.errorbar(x, mean, spread, fmt="none", ecolor=style["color"], elinewidth=1, capsize=2)
        axis.plot(x, mean, **style, markeredgecolor=INK, markeredgewidth=0.5, path_effects=OUTLINE)
    axis.set_xticks(list(places.values()), map(str, amounts))
    axis.set(xlabel=xlabel, ylabel="mean IoU (%)")
    axis.grid(axis="y", color=FAINT, linewidth=0.4, alpha=0.6)
    _legend(figure, *axis.get_legend_handles_labels(), columns, loc="outside upper left", handlelength=2.6)
    return figure


@_figure
def confusion(matrix: np.ndarray, names: Sequence[str], *, paper: float | None = None) -> Figure:
    """Confusion matrix: which labels the pixels of each true class have, in percent of the row.

    Cells have numbers if these are large enough to read; else there is a colour scale. The column "no label" appears
    if a pixel has none. The row of a class without a pixel stays white.

    matrix: (K, K+1) counts of `metrics.confusion`, summed over the data set
    """
    matrix, given = np.asarray(matrix), [*names, "no label"]
    if not matrix[:, -1].any():
        matrix, given = matrix[:, :-1], given[:-1]
    percent = 100 * metrics.shares(matrix, matrix.sum(axis=1, keepdims=True) * np.ones_like(matrix))  # (K, K or K+1)
    width = paper or 1.2 + min(0.36 * len(given), 6)
    side = (width - 0.75) / len(given)  # inches of a cell
    figure, axis = plt.subplots(figsize=(width, side * len(names) + 0.75))
    picture = axis.imshow(percent, cmap="Blues", vmin=0, vmax=100, aspect="auto", interpolation="none")
    if side >= 0.18:
        for (row, column), value in np.ndenumerate(percent):
            if value >= 0.5:
                shade = "white" if value > 55 else INK
                axis.text(column, row, f"{value:.0f}", ha="center", va="center", fontsize=6, color=shade)
    else:
        figure.colorbar(picture, label="% of the class", pad=0.01).outline.set_linewidth(0.6)
    turned = {"rotation": 45, "rotation_mode": "anchor"} if side >= 0.16 else {"rotation": 90}
    axis.set_xticks(range(len(given)), given, ha="right" if side >= 0.16 else "center", **turned)
    axis.set_yticks(range(len(names)), names)
    axis.tick_params(length=0, labelsize=min(7, 60 * side))  # 72 points are an inch; names must not overlap
    axis.spines[["top", "right"]].set_visible(True)
    axis.set(xlabel="label", ylabel="truth")
    return figure


@_figure
def error_bars(series: dict[str, np.ndarray]) -> Figure:
    """Bars of the share of wrong pixels, split by kind of error, a bar for each stage or method.

    series: stage or method, in the order of the pipeline -> counts (K, 5) or (5,) of `diagnosis.error_types`
    """
    figure, axis = _lines_of(list(series), 1.05)
    counts = np.array([np.reshape(each, (-1, len(OUTCOMES))).sum(axis=0) for each in series.values()])
    wrong = 100 * counts[:, :-1] / counts.sum(axis=1, keepdims=True).clip(1)  # (stages, 4) percent
    ends = wrong.cumsum(axis=1)
    longest = max(ends.max(), 1e-9)
    for kind, fill in enumerate(ERRORS):
        lengths = wrong[:, kind]
        bars = axis.barh(range(len(series)), lengths, 0.74, ends[:, kind] - lengths, color=fill, label=OUTCOMES[kind])
        numbers = [f"{length:.1f}" if length > 0.07 * longest else "" for length in lengths]  # else wider than the bar
        axis.bar_label(bars, numbers, label_type="center", fontsize=8, color=INK)
    axis.bar_label(bars, [f"{end:.1f}" for end in ends[:, -1]], padding=3, color=INK, fontweight="bold")
    axis.set(xlim=(0, 1.1 * longest), xlabel="% of the pixels that are wrong")
    figure.legend(loc="outside upper center", ncol=len(ERRORS), handlelength=1.1)
    return figure


@_figure
def intervals(series: dict[str, Interval], unit: str) -> Figure:
    """Differences as points with their intervals, and a line at zero; an interval across the line is inconclusive.

    series: what is compared -> `statistics.bootstrap` of two methods; unit: label of the x axis, in points (0.01)
    """
    figure, axis = _lines_of(list(series), 0.75)
    low, value, high = 100 * np.array([(found.low, found.value, found.high) for found in series.values()]).T
    axis.axvline(0, color=FAINT, linewidth=1)
    axis.hlines(range(len(series)), low, high, color=STAGES["enhanced"], linewidth=3)
    axis.plot(value, range(len(series)), "o", color=STAGES["segmenter"])
    for y, x in enumerate(value):
        axis.annotate(f"{x:+.1f}", (x, y), (0, 7), textcoords="offset points", ha="center")
    axis.set(ylim=(len(series) - 0.5, -0.8), xlabel=unit)
    return figure


@_figure
def scatter(x: Sequence[float], series: dict[str, Sequence[float]], xlabel: str, ylabel: str) -> Figure:
    """Points of several quantities (name -> M values) over the same x, one small plot each, one scale for y."""
    figure, axes = plt.subplots(1, len(series), figsize=(2.9 * len(series), 2.6), sharey=True, squeeze=False)
    for axis, (name, y) in zip(axes[0], series.items(), strict=True):
        axis.scatter(x, y, s=14, color=STAGES["enhanced"], alpha=0.8, linewidths=0)
        axis.set(title=name, xlabel=xlabel)
    axes[0][0].set(ylabel=ylabel)
    return figure


@_figure
def reliability(series: dict[str, Reliability]) -> Figure:
    """Calibration: above, how often the pixels of a confidence are right, and below, how many pixels have it.

    On the diagonal, confidence equals accuracy. Bins with less than a thousandth of the pixels are not drawn above.

    series: label source or network -> `diagnosis.reliability`
    """
    figure, (upper, lower) = plt.subplots(2, 1, figsize=(3.9, 4.6), sharex=True, height_ratios=(3, 1))
    upper.plot([0, 1], [0, 1], color=FAINT, linewidth=1, linestyle="--")
    names = [f"{name} (ECE {found.ece:.3f})" for name, found in series.items()]
    for style, found in zip(_styles(names, "color", "marker"), series.values(), strict=True):
        often = found.pixels > found.pixels.sum() / 1000
        upper.plot(found.confidence[often], found.accuracy[often], markersize=4, **style)
        percent = 100 * found.pixels / max(found.pixels.sum(), 1)
        lower.stairs(percent, found.edges, color=style["color"], linewidth=1.5)
    upper.set(ylabel="accuracy", xlim=(0, 1), ylim=(0, 1.02))
    upper.legend(loc="lower left", bbox_to_anchor=(0, 1.0), borderaxespad=0)
    lower.set(xlabel="confidence", ylabel="% of pixels")
    figure.align_ylabels()
    return figure


@_figure
def accuracy_coverage(series: dict[str, Reliability]) -> Figure:
    """Accuracy of the most confident pixels, against the share of pixels that is kept; series: as in `reliability`."""
    figure, axis = plt.subplots(figsize=(6.6, 2.8))
    for style, found in zip(_styles(series, "color", "marker"), series.values(), strict=True):
        axis.plot(100 * found.coverage, 100 * found.kept_accuracy, markevery=[-1], **style)
    axis.set(xlabel="% of the pixels kept, the most confident first", ylabel="% of them right", xlim=(0, 102))
    axis.legend(loc="upper left", bbox_to_anchor=(1, 1))  # beside the curves, which go everywhere
    return figure


# Files


@plt.rc_context({key: PAPER[key] for key in PAPER if key.startswith(("pdf.", "svg."))})
def save_vector(figure: Figure, path: str | Path) -> list[Path]:
    """Write a figure as PDF and as SVG in its own size: two files called `path` and a suffix."""
    # 300 dots an inch for the photos in it, as printers want. Lines and letters have no dots.
    return [save(figure, Path(path).with_name(f"{Path(path).name}{suffix}"), dpi=300) for suffix in (".pdf", ".svg")]


def save(figure: Figure, path: str | Path, dpi: int = 100) -> Path:
    """Write a figure as PNG (in 256 colours), PDF or SVG; without the date: the same picture is the same file."""
    path, drawn = Path(path), io.BytesIO()
    figure.savefig(drawn, format=path.suffix[1:], dpi=dpi, metadata=UNDATED.get(path.suffix))
    with files.atomic(path) as temporary:
        temporary.write_bytes(shrink_png(drawn.getvalue()) if path.suffix == ".png" else drawn.getvalue())
    return path


def shrink_png(png: bytes) -> bytes:
    """Bring a PNG to 256 colours: a figure looks the same at a third of the size. A small one stays as it is.

    Colours of areas, such as those of label maps and legends, stay exact; only the others are merged.
    """
    if (picture := Image.open(io.BytesIO(png))).mode == "P":
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
