"""Other words, templates and thresholds on cached embeddings: what they change, seen at once.

The slow part, SAM and CLIP's image encoder, has been done by notebook 02 and lies on disk. So an edit of the words
costs milliseconds, as long as the encoder's text half takes for what is new in it:

    load     masks, segment embeddings and truths of some images  -> Lab
    edit     other words and templates, checked                    -> Classes
    Lab.try_out    classes, rule, threshold                        -> Outcome: labels, margins, IoU, unknown words
    save     classes, as a class file whose name holds its hash

`Panel` lays widgets over these four, and computes nothing of its own.
"""

import csv
import html
import io
import math
import time
import warnings
from base64 import b64encode
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import ipywidgets as widgets
import matplotlib.pyplot as plt
import numpy as np
import torch
import yaml
from IPython.display import display
from matplotlib.figure import Figure
from PIL import Image

from plg_utils import class_files, encoders, files, labels, metrics, trust
from plg_utils.generators import segment_match
from plg_utils.records import Classes, Dataset, Masks, Sample, Scores

STAGES = ("masks", "segments", "labels_zero_shot")  # of notebook 02, whose files are read
THRESHOLDS = np.arange(0.0, 0.71, 0.02)  # the grid of notebook 02, so that its choice is found again
RULES = ("cosine", "softmax")
THUMBNAIL = 224  # pixels, longest side of a picture in the panel

Show = Callable[[np.ndarray, np.ndarray, Classes], np.ndarray]  # image, label -> picture, such as figures.overlay


# What is tried, and what comes out


@dataclass(frozen=True, eq=False)
class Outcome:
    """What some words, a rule and a threshold make of the lab's images.

    A segment's margin is the cosine of the best class minus that of the second best, the background words being a class
    too; with a minus where a background word is best (see `trust.margins`).
    """

    classes: Classes  # with the words that were tried
    rule: str
    threshold: float
    labels: tuple[np.ndarray, ...]  # M of (H, W) uint8
    assigned: np.ndarray  # (N,) int64, the class of each segment, over all images
    margins: np.ndarray  # (N,) float32, see below; nan where there is nothing to tell a class from
    scores: Scores | None  # on the images with a truth; None if there is none
    unknown: tuple[tuple[str, ...], ...]  # K; of each class what its encoder never read
    unknown_in_templates: tuple[str, ...]

    @property
    def mean_iou(self) -> float:
        """Mean IoU on the images with a truth; nan if there is none."""
        return self.scores.mean_iou if self.scores else float("nan")

    @property
    def iou(self) -> np.ndarray:
        """IoU of each class, (K,), nan where there is no truth."""
        return self.scores.iou if self.scores else np.full(self.classes.num_classes, np.nan)


@dataclass(frozen=True, eq=False)
class Lab:
    """Some images of a run with all that labelling them needs, in memory; made by `load`."""

    classes: Classes  # as the run has them
    how: dict[str, Any]  # the run's rule, threshold and overlap
    samples: tuple[Sample, ...]  # M
    masks: tuple[Masks, ...]  # M
    segment_embeddings: tuple[torch.Tensor, ...]  # M of (N, D)
    truths: tuple[np.ndarray | None, ...]  # M of (H, W) uint8; None where it is closed or there is none
    shown: tuple[int, ...]  # images to look at
    encode: Any  # an encoder, whose `texts` is asked
    _sentences: dict[str, torch.Tensor] = field(default_factory=dict)  # sentence -> (D,), each encoded once
    _unknown: dict[str, tuple[str, ...]] = field(default_factory=dict)  # text -> what of it the encoder never read
    _painted: dict[int, tuple[bytes, np.ndarray]] = field(default_factory=dict)  # image -> the last label map

    def try_out(
        self, classes: Classes | None = None, *, rule: str | None = None, threshold: float | None = None
    ) -> Outcome:
        """Label the images with other words, by another rule or threshold; what is not given is the run's.

        With nothing given the label maps are those that notebook 02 wrote.
        """
        classes = classes or self.classes
        rule = self.how["rule"] if rule is None else rule
        threshold = self.how["threshold"] if threshold is None else threshold
        self._check(classes)
        text_embeddings, owner = self.text_embeddings(classes)
        embeddings = torch.cat(self.segment_embeddings)  # (N, D)
        asked = {"owner": owner, "background": classes.background}
        assigned, scores = labels.assign(embeddings, text_embeddings, rule=rule, threshold=threshold, **asked)
        counts = [len(of_image) for of_image in self.segment_embeddings]
        painted = tuple(
            self._paint(index, *named)
            for index, named in enumerate(zip(assigned.split(counts), scores.split(counts), strict=True))
        )
        margins = np.full(len(embeddings), np.nan, np.float32)
        if len(owner.unique()) > 1:
            margins = trust.margins(embeddings, text_embeddings, owner, background=classes.background)
        return Outcome(
            classes=classes,
            rule=rule,
            threshold=threshold,
            labels=painted,
            assigned=assigned.numpy(),
            margins=margins,
            scores=self._score(painted),
            unknown=tuple(self.unknown(words) for words in classes.words),
            unknown_in_templates=self.unknown(template.replace("{}", " ") for template in classes.templates),
        )

    def text_embeddings(self, classes: Classes) -> tuple[torch.Tensor, torch.Tensor]:
        """Embed the words: (K', D) and (K',) owners, see `encoders.class_embeddings`; only new sentences are encoded.

        A sentence's last bits depend on those encoded beside it. They are the run's for the run's words.
        """
        return encoders.class_embeddings(self._texts, classes)

    def best_threshold(self, classes: Classes | None = None, *, rule: str | None = None) -> float | None:
        """Choose the threshold on the images with a truth, as notebook 02 does; None if there is nothing to choose on.

        Words and threshold belong together: other words move all cosines.
        """
        classes, chosen = classes or self.classes, [k for k, truth in enumerate(self.truths) if truth is not None]
        if not chosen or classes.background is None:
            return None
        self._check(classes)

        def mean_iou(truths, guesses):
            pairs = zip(truths, guesses, strict=True)
            matrix = sum(metrics.confusion(*pair, classes.num_classes) for pair in pairs)
            return metrics.scores(matrix, background=classes.background).mean_iou

        return segment_match.choose_threshold(
            [self.segment_embeddings[k] for k in chosen],
            [self.masks[k] for k in chosen],
            [self.truths[k] for k in chosen],
            *self.text_embeddings(classes),
            grid=THRESHOLDS,
            mean_iou=mean_iou,
            background=classes.background,
            rule=self.how["rule"] if rule is None else rule,
            overlap=self.how["overlap"],
        ).threshold

    def unknown(self, texts: Iterable[str]) -> tuple[str, ...]:
        """Words of some texts that the encoder never read, and cannot know; none if it read the whole web."""
        unseen = getattr(self.encode, "unseen_words", None)
        if unseen is None:
            return ()
        for text in (texts := list(texts)):
            if text not in self._unknown:
                self._unknown[text] = tuple(unseen([text]))
        return tuple(dict.fromkeys(word for text in texts for word in self._unknown[text]))

    @property
    def knows_its_words(self) -> bool:
        """Whether the encoder can tell which words it never read."""
        return getattr(self.encode, "unseen_words", None) is not None

    def _check(self, classes: Classes) -> None:
        if (classes.names, classes.background) != (self.classes.names, self.classes.background):
            of_run = ", ".join(self.classes.names)
            raise ValueError(f"the classes are {', '.join(classes.names)}; the label maps of the run know {of_run}")

    def _texts(self, sentences: Sequence[str]) -> torch.Tensor:
        """Embed sentences: (M, D) of length 1."""
        new = [sentence for sentence in dict.fromkeys(sentences) if sentence not in self._sentences]
        if new:
            with warnings.catch_warnings():  # which words it never read is in the outcome
                warnings.filterwarnings("ignore", message="the miniature CLIP never saw these words")
                try:
                    encoded = self.encode.texts(new).cpu()
                except RuntimeError as error:
                    if "too long" not in str(error):
                        raise
                    raise ValueError(f"a sentence has more tokens than the encoder reads: {error}") from error
            self._sentences.update(zip(new, encoded, strict=True))
        return torch.stack([self._sentences[sentence] for sentence in sentences])

    def _paint(self, index: int, assigned: torch.Tensor, scores: torch.Tensor) -> np.ndarray:
        """Paint an image, or take the label map painted last if its segments were named and scored the same."""
        key = assigned.numpy().tobytes() + scores.numpy().tobytes()
        if self._painted.get(index, (None,))[0] != key:
            masks = self.masks[index]
            how = {"background": self.classes.background, "overlap": self.how["overlap"]}
            label = labels.paint(masks.dense(), assigned, scores, predicted_iou=masks.predicted_iou, **how).label
            self._painted[index] = key, label
        return self._painted[index][1]

    def _score(self, painted: Sequence[np.ndarray]) -> Scores | None:
        pairs = [(truth, label) for truth, label in zip(self.truths, painted, strict=True) if truth is not None]
        if not pairs:
            return None
        matrix = sum(metrics.confusion(truth, label, self.classes.num_classes) for truth, label in pairs)
        return metrics.scores(matrix, background=self.classes.background)


def load(
    folder: str | Path,
    dataset: Dataset,
    encode: Any,
    *,
    made_with: Mapping[str, Any] | None = None,
    scored: int | None = None,
    shown: int = 0,
) -> Lab:
    """Read what notebook 02 wrote about the labelled images of a run, and about some unlabelled ones.

    folder: of the run
    encode: the encoder that made the segment embeddings
    made_with: its parameters, to be sure of that
    scored: only so many of the labelled images; None: all
    shown: images to look at, half of them labelled; those of the others that are needed are read besides
    """
    folder = Path(folder)
    remedy = f"run notebooks/02_zero_shot_labels.ipynb for the run {folder.name!r} first, with the same data set"
    manifests = {}
    for stage in STAGES:
        path = folder / stage / "manifest.json"
        manifests[stage] = files.read_json(path) if path.exists() else {}
        if manifests[stage].get("state") != "done":
            raise FileNotFoundError(f"{folder} holds no finished {stage}: {remedy}")
    found = manifests["segments"]["parameters"]
    if made_with is not None and files.plain(dict(made_with)) != found:
        raise ValueError(f"{folder / 'segments'} was made with {found}, not with {dict(made_with)}: {remedy}")

    labelled = dataset.labelled[:scored]
    looked_at = min(shown // 2, len(labelled))
    samples = (*labelled, *dataset.unlabelled[: shown - looked_at])
    masks, embeddings = [], []
    for sample in samples:
        places = folder / "masks" / f"{sample.id}.json", folder / "segments" / f"{sample.id}.safetensors"
        missing = [path for path in places if not path.exists()]
        if missing:
            raise FileNotFoundError(f"{missing[0]} is missing: {remedy}")
        masks.append(files.read_masks(places[0]))
        embeddings.append(files.read_embeddings(places[1]))
        if len(masks[-1]) != len(embeddings[-1]):
            counts = f"{len(masks[-1])} masks and {len(embeddings[-1])} embeddings"
            raise ValueError(f"{sample.id} has {counts} in {folder}: {remedy}")
    if not samples:
        raise ValueError(f"there is no image to try words on: {dataset.name} has {len(dataset.labelled)} labelled ones")
    return Lab(
        classes=dataset.classes,
        how=manifests["labels_zero_shot"]["parameters"],
        samples=samples,
        masks=tuple(masks),
        segment_embeddings=tuple(embeddings),
        truths=tuple(sample.truth() if sample.read_truth else None for sample in labelled)
        + (None,) * (len(samples) - len(labelled)),
        shown=(*range(looked_at), *range(len(labelled), len(samples))),
        encode=encode,
    )


def same_as_written(lab: Lab, outcome: Outcome, folder: str | Path) -> int:
    """How many of the lab's label maps are those that notebook 02 wrote into the run's folder, pixel by pixel."""
    written = [files.read_label(Path(folder) / "labels_zero_shot" / f"{sample.id}.png") for sample in lab.samples]
    return sum(np.array_equal(*pair) for pair in zip(written, outcome.labels, strict=True))


def changed(before: Outcome, after: Outcome) -> np.ndarray:
    """Part of the pixels of each image whose label is another one: (M,)."""
    return np.array([(one != other).mean() for one, other in zip(before.labels, after.labels, strict=True)])


def class_rows(before: Outcome, after: Outcome) -> list[dict[str, Any]]:
    """What became of each class: its IoU and the change, how many segments have its name, the median of their margins.

    A margin counts without its sign: best minus second best, whichever is the background.

    returns: K rows with "class", "iou", "change", "segments", "margin", the numbers nan where there is nothing to tell
    """
    rows = []
    for k, name in enumerate(after.classes.names):
        margins = after.margins[after.assigned == k]
        rows.append(
            {
                "class": name,
                "iou": float(after.iou[k]),
                "change": float(after.iou[k] - before.iou[k]),
                "segments": len(margins),
                "margin": float(np.median(np.abs(margins))) if len(margins) else float("nan"),
            }
        )
    return rows


def told(outcome: Outcome, images: int) -> str:
    """Say in a line how good an outcome is and by which threshold, on so many images with a truth."""
    score = f"mean IoU {100 * outcome.mean_iou:.1f} % on {images} labelled images" if outcome.scores else "no truth"
    return f"rule {outcome.rule}, threshold {outcome.threshold:g}: {score}"


def margin_figure(before: Outcome, after: Outcome) -> Figure:
    """How sure the names are: a histogram of all segments' margins, with the outline of how it was before."""
    figure, axis = plt.subplots(figsize=(4.6, 2.2))
    figure.subplots_adjust(0.1, 0.22, 0.99, 0.97)  # a layout that is computed would take longer than all the rest
    old, new = (outcome.margins[~np.isnan(outcome.margins)] for outcome in (before, after))
    known = np.concatenate([old, new])
    edges = np.linspace(known.min(), known.max(), 31) if known.size and np.ptp(known) else np.linspace(-0.1, 0.1, 31)
    axis.hist(new, edges, histtype="stepfilled", color="#9db4d3", label="now")
    axis.hist(old, edges, histtype="step", color="#20242c", label="before")
    axis.axvline(0, color="#d1495b", linewidth=1.2)
    axis.set(xlabel="margin (cosine); left of 0 a background word is nearest", ylabel="segments")
    axis.legend(frameon=False)
    plt.close(figure)  # else a notebook shows it twice
    return figure


# Words: edited, read from a line of text, saved


def edit(
    classes: Classes,
    *,
    words: Mapping[str, Sequence[str]] | None = None,
    add: Mapping[str, Sequence[str]] | None = None,
    templates: Sequence[str] | None = None,
) -> Classes:
    """Ask for other words; names, numbers and colours of the classes stay, since label maps hold them.

    words: class -> what it is asked by instead; add: class -> what besides; templates: sentences with one {} each
    """
    changed_words = dict(zip(classes.names, (list(of_class) for of_class in classes.words), strict=True))
    for changes, keep in ((words or {}, False), (add or {}, True)):
        for name, new in changes.items():
            if name not in changed_words:
                raise ValueError(f"there is no class {name!r}, only {', '.join(classes.names)}")
            changed_words[name] = [*changed_words[name], *new] if keep else list(new)
    for index in classes.foreground:
        if not changed_words[classes.names[index]]:
            raise ValueError(f"{classes.names[index]} has no word left: write at least one")
    templates = list(classes.templates if templates is None else templates)
    if not templates:
        raise ValueError("there is no template left: write at least one, with {} where the word goes")
    words_of_all = tuple(tuple(changed_words[name]) for name in classes.names)
    edited = class_files.parse(content_of(replace(classes, words=words_of_all, templates=tuple(templates))))
    _check_shared(edited)
    return edited


def _check_shared(classes: Classes) -> None:
    """Refuse a word that two classes are asked by: no segment could be nearer to one of them."""
    owners: dict[str, str] = {}
    for name, of_class in zip(classes.names, classes.words, strict=True):
        for word in of_class:
            plain = " ".join(word.casefold().split())  # as CLIP reads it
            if owners.setdefault(plain, name) != name:
                raise ValueError(f"{owners[plain]} and {name} both have the word {word!r}: give it to one of them")


def words_of(line: str) -> list[str]:
    """Read words between commas, or one in a line; a word that holds a comma stands in double quotes."""
    try:
        rows = list(csv.reader(line.splitlines(), skipinitialspace=True, strict=True))
    except csv.Error as error:
        raise ValueError(f"{line!r} is no list of words ({error}): mend the quotes, or leave them out") from error
    return [word.strip() for row in rows for word in row if word.strip()]


def line_of(words: Sequence[str]) -> str:
    """Write words as `words_of` reads them."""
    doubled = (word.replace('"', '""') for word in words)
    return ", ".join(f'"{word}"' if set(word) & {",", '"'} else word for word in doubled)


def content_of(classes: Classes) -> dict[str, Any]:
    """What a class file says, as `class_files.parse` reads it."""
    content: dict[str, Any] = {"version": 1, "templates": list(classes.templates)}
    if classes.background is not None:
        content["background"] = list(classes.words[classes.background])
    content["classes"] = [
        {
            "name": classes.names[k],
            "words": list(classes.words[k]),
            "colour": [int(part) for part in classes.colours[k]],
        }
        for k in classes.foreground
    ]
    return content


def save(path: str | Path, classes: Classes, origin: str = "") -> tuple[Path, str]:
    """Write a class file as `class_files.read` reads it, and read it back before it gets its name.

    path: the first eight digits of the hash are put before its suffix, so that no other words are ever overwritten
    origin: where the words are from, a comment at the file's head
    returns: where it lies, and `class_files.sha256` of it
    """
    path, digest = Path(path), class_files.sha256(classes)
    path = path.with_name(f"{path.stem}-{digest[:8]}{path.suffix}")
    if path.exists():
        if class_files.read(path) != classes:
            raise ValueError(f"{path} holds other words than its name says: somebody changed it, so move it away")
        return path, digest
    head = [
        f"Written by the prompt lab. SHA-256 of what it says (class_files.sha256): {digest}",
        *origin.splitlines(),
    ]
    text = "".join(f"# {line}\n" for line in head)
    text += yaml.safe_dump(content_of(classes), default_flow_style=None, sort_keys=False, allow_unicode=True, width=110)
    with files.atomic(path) as partial:
        partial.write_text(text, encoding="utf-8")
        if class_files.read(partial) != classes:
            raise ValueError(f"these classes do not fit a class file, so that {path} was not written")
    return path, digest


# The panel

STYLE = """<style>
.plg-lab .plg-unknown input, .plg-lab .plg-unknown textarea { border: 2px solid #c0392b !important; }
.plg-lab .plg-mark { color: #c0392b; display: block; line-height: 1.2; overflow-wrap: anywhere; }
.plg-lab .plg-status { font-size: 1.15em; }
.plg-lab .plg-wrong { color: #c0392b; font-weight: bold; }
.plg-lab .plg-saved { color: #1e7d43; }
.plg-lab .plg-better { color: #1e7d43; }
.plg-lab .plg-worse { color: #c0392b; }
.plg-lab table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
.plg-lab td, .plg-lab th { padding: 1px 7px 1px 0; text-align: right; line-height: 1.5; }
.plg-lab td:first-child, .plg-lab th:first-child { text-align: left; }
.plg-lab .plg-colour { display: inline-block; width: 0.9em; height: 0.9em; margin-right: 6px; }
.plg-lab .plg-pictures { display: flex; flex-wrap: wrap; gap: 10px; }
.plg-lab .plg-pictures figure { margin: 0; }
.plg-lab .plg-message, .plg-lab .plg-mark { overflow-wrap: anywhere; }
.plg-lab .plg-margins img { width: 372px; }
.plg-lab .plg-pictures img { display: block; width: 128px; margin: 0 0 3px; }
.plg-lab .plg-pictures figcaption { font-size: 0.9em; line-height: 1.35; }
</style>"""


class Panel:
    """Widgets over a lab: boxes of words, a rule, a threshold, and what they make of the images.

    A cell whose last value is a panel shows it. Each part can be found by a CSS class. Operated are plg-words-K, the
    box of class K (0 the background), plg-templates, plg-rule, plg-threshold, plg-best, plg-reset and plg-save; told
    are plg-gallery, plg-margins, plg-scores, plg-unknown-words, plg-message and at last plg-status. A box with a word
    that the encoder never read has the class plg-unknown.
    """

    def __init__(self, lab: Lab, show: Show, path: str | Path, origin: str = ""):
        """Build the widgets, with the run's own words in them.

        show: paints a label map over its image, such as `figures.overlay`
        path, origin: see `save`
        """
        self.lab, self.show, self.path, self.origin = lab, show, Path(path), origin
        self.saved = self.outcome = lab.try_out()  # what changes are counted from, and the last that could be tried
        self.wrong: str | None = None  # what is wrong with what stands in the boxes
        self._quiet = False
        self._scored = sum(truth is not None for truth in lab.truths)
        self._photos = {k: _thumbnail(lab.samples[k].image()) for k in lab.shown}
        self._build()
        self._fill(self.saved)
        self._watch()
        self.update()

    def _ipython_display_(self) -> None:
        """Show the widgets, without the text that stands for them elsewhere: it differs from run to run."""
        shown = self.box._repr_mimebundle_()
        display({kind: content for kind, content in shown.items() if kind != "text/plain"}, raw=True)

    def _build(self) -> None:
        wide = {
            "style": {"description_width": "84px"},
            "layout": {"width": "310px", "flex": "0 0 auto"},
            "continuous_update": False,
        }
        self.words, self.marks, rows = {}, {}, []
        for k, name in enumerate(self.lab.classes.names):
            is_background = k == self.lab.classes.background
            kind = widgets.Textarea if is_background else widgets.Text
            box = kind(description=name, tooltip=f"words for {name}, between commas", **wide)
            box.add_class("plg-words").add_class(f"plg-words-{k}")
            if is_background:
                box.rows = 3
            self.words[name], self.marks[name] = box, _told("plg-marks", width="124px")
            rows.append(widgets.HBox([box, self.marks[name]]))
        self.templates = widgets.Textarea(
            description="templates", tooltip="one sentence in each line, {} where the word goes", rows=2, **wide
        ).add_class("plg-templates")
        self.template_mark = _told("plg-marks", width="124px")
        self.rule = widgets.Dropdown(options=RULES, description="rule", style=wide["style"]).add_class("plg-rule")
        self.threshold = widgets.FloatSlider(
            description="threshold",
            min=min(0.0, self.saved.threshold),
            max=max(1.0, self.saved.threshold),
            step=0.01,
            readout_format=".2f",
            **wide,
        ).add_class("plg-threshold")
        self.threshold.disabled = self.lab.classes.background is None
        self.best, self.reset, self.save = (
            widgets.Button(description=text, tooltip=tip, icon=icon, layout={"width": "138px"}).add_class(f"plg-{name}")
            for name, text, icon, tip in (
                ("best", "Best threshold", "crosshairs", "choose the threshold on the labelled images"),
                ("reset", "Reset", "undo", "back to the words and the threshold of the run"),
                ("save", "Save", "save", "write these words and templates as a class file"),
            )
        )
        self.best.disabled = self.threshold.disabled or not self.saved.scores
        answers = ("status", "message", "unknown-words", "scores", "margins", "gallery")
        self.status, self.message, self.unknown_words, self.table, self.margins, self.gallery = (
            _told(f"plg-{name}") for name in answers
        )
        operated = widgets.VBox(
            [
                *rows,
                widgets.HBox([self.templates, self.template_mark]),
                self.rule,
                self.threshold,
                widgets.HBox([self.best, self.reset, self.save]),
                self.message,
                self.unknown_words,
            ],
            layout={"width": "438px"},
        )
        seen = widgets.VBox([self.table, self.margins], layout={"margin": "0 0 0 8px"})
        middle = widgets.HBox([operated, seen], layout={"flex_flow": "row wrap"})
        self.box = widgets.VBox([widgets.HTML(STYLE), self.status, middle, self.gallery]).add_class("plg-lab")

    def _watch(self) -> None:
        for box in (*self.words.values(), self.templates, self.threshold):
            box.observe(self.update, "value")
        self.rule.observe(self._other_rule, "value")
        self.best.on_click(self._choose)
        self.reset.on_click(self._reset)
        self.save.on_click(self._save)

    @contextmanager
    def _together(self):
        """Change several boxes, then try out once."""
        self._quiet = True
        try:
            yield
        finally:
            self._quiet = False
        self.update()

    def _fill(self, outcome: Outcome) -> None:
        for box, of_class in zip(self.words.values(), outcome.classes.words, strict=True):
            box.value = line_of(of_class)
        self.templates.value = "\n".join(outcome.classes.templates)
        self.rule.value = outcome.rule
        self.threshold.value = outcome.threshold

    def classes(self) -> Classes:
        """Read the boxes; a ValueError says what is wrong with them."""
        words = {name: words_of(box.value) for name, box in self.words.items()}
        templates = [line.strip() for line in self.templates.value.splitlines() if line.strip()]
        return edit(self.lab.classes, words=words, templates=templates)

    def update(self, _change: Any = None) -> None:
        """Try out what stands in the boxes, and show it; if that cannot be, say why and leave the rest as it was."""
        if self._quiet:
            return
        start = time.perf_counter()
        try:
            self.outcome = self.lab.try_out(self.classes(), rule=self.rule.value, threshold=self.threshold.value)
        except ValueError as error:
            self.wrong = str(error)
            self._say("plg-wrong", f"{self.wrong}. Below stands what was before.")
            return
        seconds = time.perf_counter() - start
        self.wrong = None
        self._say("", "")
        self._render(seconds)

    def _say(self, kind: str, text: str) -> None:
        self.message.value = f'<div role="alert" class="{kind}">{html.escape(text)}</div>' if text else ""

    def _render(self, seconds: float) -> None:
        """Show the outcome; all is made ready before the first part of it is sent to the browser."""
        now, before = self.outcome, self.saved
        drawn = io.BytesIO()
        margin_figure(before, now).savefig(drawn, format="png")
        told_by = {
            self.gallery: self._pictures(),
            self.margins: _picture("histogram", "the margins", drawn.getvalue()),
            self.table: _table(now, before),
            self.unknown_words: self._unknown_words(),
            self.status: self._status(seconds),
        }
        for name, unknown in zip(now.classes.names, now.unknown, strict=True):
            _mark(self.words[name], self.marks[name], unknown)
        _mark(self.templates, self.template_mark, now.unknown_in_templates)
        for widget, value in told_by.items():
            widget.value = value

    def _status(self, seconds: float) -> str:
        now, before = self.outcome, self.saved
        score = "no image has a truth: look at the pictures"
        if now.scores:
            difference = _difference(now.mean_iou - before.mean_iou)
            score = f"mIoU <b>{100 * now.mean_iou:.1f}</b> {difference} on {self._scored} labelled images"
        moved = f"{100 * changed(before, now).mean():.1f} % of the pixels changed"
        time_taken = f"{len(now.labels)} images in {1000 * seconds:.0f} ms"
        return f'<div role="status">{score} · {moved} · {time_taken}</div>'

    def _unknown_words(self) -> str:
        if not self.lab.knows_its_words:
            return "This encoder has no list of the words that it read, so that none is marked."
        of_all = (*self.outcome.unknown, self.outcome.unknown_in_templates)
        unknown = ", ".join(dict.fromkeys(word for words in of_all for word in words))
        told_of = f"Never read by the encoder, so that its answer means nothing: <b>{html.escape(unknown)}</b>"
        return told_of if unknown else ""

    def _pictures(self) -> str:
        """The gallery: a column for each image, with photo, labels now, and the truth where it is open."""
        parts, columns = changed(self.saved, self.outcome), []
        for k, photo in self._photos.items():
            id, truth, classes = self.lab.samples[k].id, self.lab.truths[k], self.outcome.classes
            pictures = {"photo": photo, "labels": self.show(photo, _thin(self.outcome.labels[k]), classes)}
            if truth is not None:
                pictures["truth"] = self.show(photo, _thin(truth), classes)
            drawn = "".join(_picture(kind, id, _png(picture)) for kind, picture in pictures.items())
            caption = f"<figcaption>{html.escape(id)}<br>{100 * parts[k]:.1f} % changed</figcaption>"
            columns.append(f'<figure data-image="{html.escape(id)}">{drawn}{caption}</figure>')
        legend = "<div>From top to bottom: photo, labels, and the truth where it is open.</div>"
        return f'{legend}<div class="plg-pictures">{"".join(columns)}</div>'

    def _other_rule(self, _change: Any) -> None:
        """A probability is no cosine: with another rule the threshold is chosen anew, if there is a truth."""
        if not self._quiet:
            self._choose()

    def _choose(self, _button: Any = None) -> None:
        with self._together():
            try:
                threshold = self.lab.best_threshold(self.classes(), rule=self.rule.value)
            except ValueError:  # `update` is about to say it
                return
            if threshold is not None:
                self.threshold.value = threshold

    def _reset(self, _button: Any) -> None:
        with self._together():
            self._fill(self.lab.try_out())

    def _save(self, _button: Any) -> None:
        if self.wrong:
            self._say("plg-wrong", f"Not saved: {self.wrong}.")
            return
        try:
            how_good = told(self.outcome, self._scored)
            path, digest = save(self.path, self.outcome.classes, f"{self.origin}\n{how_good}")
        except (OSError, ValueError) as error:
            self._say("plg-wrong", f"Not saved: {error}.")
            return
        self.saved = self.outcome
        self.update()
        self._say("plg-saved", f"Saved: {path}, SHA-256 {digest}")


def _told(name: str, **layout: str) -> widgets.HTML:
    return widgets.HTML(layout=layout).add_class(name)


def _difference(value: float) -> str:
    """A change in points, (+1.2), green or red."""
    if np.isnan(value):
        return ""
    points = round(100 * value, 1) + 0.0  # no -0.0
    kind = "plg-better" if points > 0 else "plg-worse" if points < 0 else ""
    return f'<span class="{kind}">({points:+.1f})</span>'


def _table(now: Outcome, before: Outcome) -> str:
    """The classes, each with its colour and what `class_rows` tells of it."""

    def number(value: float, form: str) -> str:
        return "–" if np.isnan(value) else format(value, form)

    rows = ["<tr><th>class</th><th>IoU %</th><th></th><th>segments</th><th>median margin</th></tr>"]
    for row, (red, green, blue) in zip(class_rows(before, now), now.classes.colours, strict=True):
        name = html.escape(row["class"])
        cells = [
            f'<span class="plg-colour" style="background: rgb({red}, {green}, {blue})"></span>{name}',
            number(100 * row["iou"], ".1f"),
            _difference(row["change"]),
            row["segments"],
            number(row["margin"], ".3f"),
        ]
        rows.append(f'<tr data-class="{name}">{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>')
    return f"<table>{''.join(rows)}</table>"


def _mark(box: widgets.Widget, mark: widgets.HTML, unknown: Sequence[str]) -> None:
    """Mark a box in which a word stands that the encoder never read, in red and in words."""
    (box.add_class if unknown else box.remove_class)("plg-unknown")
    mark.value = f'<span class="plg-mark">⚠ never read: {html.escape(", ".join(unknown))}</span>' if unknown else ""


def _thumbnail(image: np.ndarray) -> np.ndarray:
    """Make a photo as small as `_thin` makes its label map."""
    height, width = _thin(image).shape[:2]
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BOX))


def _thin(label: np.ndarray) -> np.ndarray:
    """Every n-th pixel, so that no side is longer than THUMBNAIL."""
    step = math.ceil(max(label.shape[:2]) / THUMBNAIL)
    return label[::step, ::step]


def _picture(kind: str, id: str, png: bytes) -> str:
    """An img element that holds its picture."""
    source = f"data:image/png;base64,{b64encode(png).decode()}"
    return f'<img src="{source}" alt="{kind} of {html.escape(id)}" title="{kind}">'


def _png(picture: np.ndarray) -> bytes:
    png = io.BytesIO()
    Image.fromarray(picture).save(png, "PNG", compress_level=1)
    return png.getvalue()
