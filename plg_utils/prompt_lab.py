"""Other words, templates and thresholds on the embeddings of a finished run, with their effect at once.

Notebook 02 has stored the masks and the segment embeddings. Trying other words needs only CLIP's text encoder, which
takes milliseconds:

    load           masks, segment embeddings and truths of some images   -> Lab
    edit           other words and templates, checked                    -> Classes
    Lab.try_out    classes, threshold                                    -> Outcome: labels, margins, IoU, unknown words
    choose_words   words that may be better                              -> Choice: those that help labelled images
    save           classes                                               -> a class file with its hash in the name

`Panel` is the same in a notebook, as widgets.
"""

import csv
import html
import io
import math
import time
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import ipywidgets as widgets
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure

from plg_utils import choices, class_files, encoders, figures, files, labels, metrics, store, trust
from plg_utils.generators import few_shot, segment_match
from plg_utils.records import IGNORE, Classes, Dataset, Masks, Sample

THUMBNAIL = 224  # pixels of a picture's longer side in `Lab.picture`


@dataclass(frozen=True, eq=False)
class Outcome:
    """The labels that some words and a threshold give the lab's images.

    A segment's margin is the cosine of its best class minus that of the second best, with the background words as one
    class. It is negative where a background word is best (see `trust.margins`).
    """

    classes: Classes  # with the words that were tried
    threshold: float
    labels: tuple[np.ndarray, ...]  # M of (H, W) uint8
    assigned: np.ndarray  # (N,) int64, the class of each segment, over all images
    margins: np.ndarray  # (N,) float32; nan if there is only one class
    mean_iou: float  # on the images with a truth; nan if there is no truth
    iou: np.ndarray  # (K,) the same for each class
    unknown: dict[str, tuple[str, ...]]  # class, or "templates" -> words that the encoder never read, if there are any

    def __str__(self) -> str:
        score = "no truth" if np.isnan(self.mean_iou) else f"mean IoU {100 * self.mean_iou:.1f} % on labelled images"
        return f"threshold {self.threshold:g}, {score}"


@dataclass(frozen=True, eq=False)
class Lab:
    """Some images of a run with everything that labelling them needs, in memory; made by `load`."""

    classes: Classes  # of the run
    how: dict[str, Any]  # the run's rule, threshold and overlap
    samples: tuple[Sample, ...]  # M, first those with a truth
    masks: tuple[Masks, ...]  # M
    segment_embeddings: tuple[torch.Tensor, ...]  # M of (N, D)
    truths: tuple[np.ndarray, ...]  # of (H, W) uint8, of the first images; the others are closed or have none
    shown: tuple[int, ...]  # images to look at
    encode: Any  # an encoder; only its `texts` and `unseen_words` are used
    _sentences: dict[str, torch.Tensor] = field(default_factory=dict)  # sentence -> (D,)

    def try_out(self, classes: Classes | None = None, *, threshold: float | None = None) -> Outcome:
        """Label the images with other words or another threshold; by default the run's, for the run's label maps."""
        classes, threshold = classes or self.classes, self.how["threshold"] if threshold is None else threshold
        texts, owner = self.text_embeddings(classes)
        embeddings, background = torch.cat(self.segment_embeddings), classes.background  # (N, D)
        how = {"owner": owner, "background": background, "rule": self.how["rule"], "threshold": threshold}
        assigned, scores = labels.assign(embeddings, texts, **how)
        counts = [len(of_image) for of_image in self.segment_embeddings]
        named = zip(assigned.split(counts), scores.split(counts), strict=True)
        pairs = zip(self.masks, named, strict=True)
        painted = tuple(segment_match.paint(*pair, background, self.how["overlap"]).label for pair in pairs)
        margins = np.full(len(embeddings), np.nan, np.float32)
        if len(owner.unique()) > 1:
            margins = trust.margins(embeddings, texts, owner, background=background)
        matrix = np.zeros((classes.num_classes, classes.num_classes + 1), np.int64)
        for truth, label in zip(self.truths, painted, strict=False):  # the first images are those with a truth
            matrix += metrics.confusion(truth, label, classes.num_classes)
        scored = metrics.scores(matrix, background=background)
        parts = dict(zip(classes.names, classes.words, strict=True)) | {"templates": classes.templates}
        unknown = {name: words for name, texts in parts.items() if (words := tuple(self.unread(texts)))}
        return Outcome(classes, threshold, painted, assigned.numpy(), margins, scored.mean_iou, scored.iou, unknown)

    def unread(self, texts: Sequence[str]) -> list[str]:
        """Words in texts and templates that the encoder never read; none if it has read the whole web."""
        unseen_words = getattr(self.encode, "unseen_words", None)
        return unseen_words([text.replace("{}", " ") for text in texts]) if unseen_words else []

    def text_embeddings(self, classes: Classes) -> tuple[torch.Tensor, torch.Tensor]:
        """Embed the words: (K', D) and (K',) owners, see `encoders.class_embeddings`; only new sentences are encoded.

        A sentence's last bits depend on the sentences encoded with it. For the run's words they are the run's.
        """
        return encoders.class_embeddings(self._texts, classes)

    def best_threshold(self, classes: Classes | None = None) -> float | None:
        """Choose the threshold on the images with a truth, as notebook 02 does; None without a truth or background."""
        classes, count = classes or self.classes, len(self.truths)
        if not count or classes.background is None:
            return None
        given = self.segment_embeddings[:count], self.masks[:count], self.truths, *self.text_embeddings(classes)
        how = {name: self.how[name] for name in ("rule", "overlap")} | {"background": classes.background}
        return segment_match.choose_threshold(*given, num_classes=classes.num_classes, **how).threshold

    def picture(self, outcome: Outcome) -> Figure:
        """Return the images to look at: photo, labels over the photo, labels, truth (white if it is closed)."""
        columns = []
        for k in self.shown:
            step = math.ceil(max(outcome.labels[k].shape) / THUMBNAIL)
            image, label = self.samples[k].image()[::step, ::step], outcome.labels[k][::step, ::step]
            truth = self.truths[k][::step, ::step] if k < len(self.truths) else np.full_like(image, 255)
            columns.append([image, figures.overlay(image, label, outcome.classes), label, truth])
        titles = [self.samples[k].id for k in self.shown]
        return figures.gallery([*zip(*columns, strict=True)], titles, outcome.classes)

    def _texts(self, sentences: Sequence[str]) -> torch.Tensor:
        """Embed sentences: (M, D) of length 1; a ValueError if the encoder does not read one that long."""
        if new := [sentence for sentence in dict.fromkeys(sentences) if sentence not in self._sentences]:
            with warnings.catch_warnings(action="ignore"):  # the outcome says which words the encoder never read
                self._sentences.update(zip(new, self.encode.texts(new).cpu(), strict=True))
        return torch.stack([self._sentences[sentence] for sentence in sentences])


def load(
    folder: str | Path,
    dataset: Dataset,
    encode: Any,
    *,
    made_with: dict | None = None,
    scored: int | None = None,
    shown=0,
) -> Lab:
    """Read what notebook 02 wrote into the folder of a run, about its labelled images and some unlabelled ones.

    encode: the encoder that made the segment embeddings; made_with: its parameters, which are checked
    scored: how many of the labelled images are read, all by default
    shown: images to look at, the first half of them labelled
    """
    folder, parameters = Path(folder), {}
    remedy = f"run notebooks/02_zero_shot_labels.ipynb for the run {folder.name!r} first, with the same data set"
    for stage in ("masks", "segments", "labels_zero_shot"):
        manifest = files.read_json(folder / stage / "manifest.json", remedy)
        unfinished = "" if manifest.get("state") == "done" else "it is not finished"
        if reason := unfinished or store.outdated(folder / stage, dataset, is_parent=True):
            raise ValueError(f"{folder / stage} cannot be used: {reason}. To make it again, {remedy}")
        parameters[stage] = manifest["parameters"]
    found = parameters["segments"]
    if made_with is not None and files.plain(made_with) != found:
        raise ValueError(f"{folder / 'segments'} was made with {found}, not with {made_with}: {remedy}")
    labelled = dataset.labelled[:scored]
    looked_at = min(shown // 2, len(labelled))
    samples = (*labelled, *dataset.unlabelled[: shown - looked_at])
    if not samples:
        raise ValueError(f"there is no image to try words on: {dataset.name} has {len(dataset.labelled)} labelled ones")
    masks = tuple(files.read_masks(folder / "masks" / f"{sample.id}.json") for sample in samples)
    embeddings = tuple(files.read_embeddings(folder / "segments" / f"{sample.id}.safetensors") for sample in samples)
    if [*map(len, masks)] != [*map(len, embeddings)]:
        raise ValueError(f"images have other numbers of masks than of embeddings in {folder}: {remedy}")
    truths = tuple(sample.truth() for sample in labelled) if all(sample.read_truth for sample in labelled) else ()
    looked_at = (*range(looked_at), *range(len(labelled), len(samples)))
    how = parameters["labels_zero_shot"]
    return Lab(dataset.classes, how, samples, masks, embeddings, truths, looked_at, encode)


def same_as_written(lab: Lab, outcome: Outcome, folder: str | Path) -> int:
    """Count the lab's label maps that equal those of notebook 02 in the run's folder, pixel by pixel."""
    written = [files.read_label(Path(folder) / "labels_zero_shot" / f"{sample.id}.png") for sample in lab.samples]
    return sum(map(np.array_equal, written, outcome.labels))


def changed(before: Outcome, after: Outcome) -> np.ndarray:
    """Return the share of each image's pixels whose label changed: (M,)."""
    return np.array([(one != other).mean() for one, other in zip(before.labels, after.labels, strict=True)])


def class_rows(before: Outcome, after: Outcome) -> list[dict[str, Any]]:
    """Return for each class: IoU, its change, the number of its segments, the median of their margins without sign.

    returns: K rows with "class", "iou", "change", "segments" and "margin", nan where a number is unknown
    """
    table = pd.DataFrame({"class": after.classes.names, "iou": after.iou, "change": after.iou - before.iou})
    sizes = pd.Series(np.abs(after.margins)).groupby(after.assigned)
    every = range(len(table))
    table["segments"], table["margin"] = sizes.size().reindex(every, fill_value=0), sizes.median().reindex(every)
    return table.to_dict("records")


def margin_figure(before: Outcome, after: Outcome) -> Figure:
    """Return a histogram of all segments' margins, with the outline of the margins before."""
    figure, axis = plt.subplots(figsize=(4.6, 2.2), layout="constrained")
    old, new = (outcome.margins[~np.isnan(outcome.margins)] for outcome in (before, after))
    known = np.concatenate([old, new])
    edges = np.linspace(known.min(), known.max(), 31) if known.size and np.ptp(known) else np.linspace(-0.1, 0.1, 31)
    axis.hist(new, edges, histtype="stepfilled", color=figures.STAGES["zero_shot"], label="now")
    axis.hist(old, edges, histtype="step", color="black", label="before")
    axis.axvline(0, color="red", linewidth=1.2)
    axis.set(xlabel="margin (cosine); below 0 a background word is nearest", ylabel="segments")
    axis.legend(frameon=False)
    plt.close(figure)  # else a notebook shows it twice
    return figure


# Words


def edit(
    classes: Classes,
    *,
    words: Mapping[str, Sequence[str]] | None = None,
    add: Mapping[str, Sequence[str]] | None = None,
    templates: Sequence[str] | None = None,
) -> Classes:
    """Return classes with other words; names, numbers and colours stay, because label maps hold them.

    words: class -> words instead of its own; add: class -> more words; templates: sentences with one {} each
    """
    edited = dict(zip(classes.names, classes.words, strict=True))
    for name in (*(words or {}), *(add or {})):
        choices.one_of(name, classes.names, "class")
    edited |= words or {}
    edited |= {name: (*edited[name], *more) for name, more in (add or {}).items()}
    of_all, templates = tuple(map(tuple, edited.values())), classes.templates if templates is None else tuple(templates)
    return class_files.parse(class_files.content_of(replace(classes, words=of_all, templates=templates)))


def words_of(line: str) -> list[str]:
    """Read words separated by commas or line breaks; a word with a comma is in double quotes."""
    try:
        rows = list(csv.reader(line.splitlines(), skipinitialspace=True, strict=True))
    except csv.Error as error:
        raise ValueError(f"{line!r} is no list of words ({error}): fix the quotes, or leave them out") from error
    return [word.strip() for row in rows for word in row if word.strip()]


def line_of(words: Iterable[str]) -> str:
    """Write words as `words_of` reads them."""
    doubled = (word.replace('"', '""') for word in words)
    return ", ".join(f'"{word}"' if set(word) & {",", '"'} else word for word in doubled)


def save(path: str | Path, classes: Classes, origin: str = "") -> tuple[Path, str]:
    """Write a class file, for the next run to read; returns its path and `class_files.sha256` of the classes.

    path: the first eight digits of the hash go before its suffix, so no other words are overwritten
    origin: where the words are from, a comment at the head of the file
    """
    path, digest = Path(path), class_files.sha256(classes)
    path = path.with_name(f"{path.stem}-{digest[:8]}{path.suffix}")
    if path.exists():
        if class_files.read(path) != classes:
            raise ValueError(f"{path} was changed: it holds other words than its name says. Move it away")
        return path, digest
    head = f"Written by the prompt lab. SHA-256 of the content (class_files.sha256): {digest}\n{origin}"
    with files.atomic(path) as partial:
        class_files.write(partial, classes)
        comment = "".join(f"# {line}\n" for line in head.splitlines())
        partial.write_text(comment + partial.read_text(encoding="utf-8"), encoding="utf-8")
    return path, digest


# Words that the labelled images choose


@dataclass(frozen=True, eq=False)
class Choice:
    """Words that labelled images chose from candidates, and how well they label images that did not choose them.

    In all three mean IoU, each labelled image has the threshold that is chosen on the others.
    """

    classes: Classes  # the run's, with the candidates that were kept
    threshold: float | None  # the best for them on all labelled images; None without a background
    before: float  # mean IoU with the run's words
    after: float  # with the chosen words, on the images that chose them: can be too good
    nested: float  # with words that are chosen on the others, as the threshold is; nan for two images
    rows: tuple[dict[str, Any], ...]  # "class", "word", "kept", "effect" and "worst" of each new candidate

    def __str__(self) -> str:
        chose, left_out = f"{100 * self.after:.1f} % on the images that chose", f"{100 * self.nested:.1f} %"
        left_out = "unknown on others" if np.isnan(self.nested) else f"{left_out} on images that did not"
        return f"mean IoU {100 * self.before:.1f} % before; with chosen words {chose}, {left_out}"


def read_candidates(source: str | Path | Mapping[str, Sequence[str]], classes: Classes) -> dict[str, list[str]]:
    """Read words that may be better: a YAML file, or its content, that maps classes to lists of words.

    The name of the background has words for it, and the key `templates` sentences with one {} each. A ValueError says
    what is wrong: another shape, an unknown class, a word of two classes.
    """
    content, place = source, ""
    if isinstance(source, str | Path):
        content, place = files.read_yaml(files.ROOT / source), f" in {source}"
    if not isinstance(content, Mapping):
        raise ValueError(f"candidates{place} must map classes to lists of words, and are {files.shown(content)}")
    owners: dict[str, str] = {}
    for name, words in content.items():
        if name != "templates":
            choices.one_of(name, classes.names, "class")
        if not isinstance(words, list | tuple) or not all(isinstance(word, str) and word.strip() for word in words):
            raise ValueError(f"candidates of {name}{place} must be a list of texts, not {files.shown(words)}")
        for word in words if name != "templates" else ():
            if owners.setdefault(_plain(word), name) != name:
                raise ValueError(f"{owners[_plain(word)]} and {name} both have the word {word!r}: give it to one")
    edit(classes, templates=[*classes.templates, *content.get("templates", ())])
    return {name: [word.strip() for word in words] for name, words in content.items()}


def _plain(word: str) -> str:
    """The word as CLIP reads it."""
    return " ".join(word.casefold().split())


def _pairs(words: Mapping[str, Sequence[str]]) -> list[tuple[str, str]]:
    """Each class with each of its words."""
    return [(name, word) for name, of_class in words.items() for word in of_class]


def choose_words(lab: Lab, candidates: str | Path | Mapping[str, Sequence[str]]) -> Choice:
    """Choose words, templates and background words on the labelled images; no other truth is read.

    Greedy forward selection: the candidate that raises mean IoU most is added, until none raises it. Mean IoU is
    counted over all labelled images, each with the threshold that `segment_match.choose_threshold` chooses on the
    others. With few images, some candidate always fits one of them by chance: so a candidate must also raise the mean
    IoU of the others, whichever image is left out. A word that another class has is taken from that class, which gets
    its own first candidate if it has no word left.

    candidates: see `read_candidates`; one with words that the encoder never read is not tried, with a warning
    returns: "effect" of a kept candidate is what it added to the mean IoU, that of a refused one what it would add to
        the chosen words; "worst" is the least effect on the others when an image is left out. Both are nan where a
        candidate was not tried: it came with another one, cannot be added, or was never read
    """
    candidates, images = read_candidates(candidates, lab.classes), np.arange(len(lab.truths))
    if len(images) < 2:
        problem = f"words are chosen on labelled images that are left out in turn, and {len(images)} have a truth"
        raise ValueError(f"{problem}: label two or more, and run notebook 02 again")
    known = {name: [word for word in words if not lab.unread([word])] for name, words in candidates.items()}
    if never := [word for name, word in _pairs(candidates) if word not in known[name]]:
        warnings.warn(f"the encoder never read these candidates, and they are not tried: {never}", stacklevel=2)

    trials = _Trials(lab)
    chosen, gains = trials.choose(known, images)
    refused = {step: trials.gain(chosen, edited, images) for step, edited in _steps(chosen, known).items()}
    rows = []
    for name, word in _pairs(candidates):
        if _plain(word) not in _words(lab.classes, name):
            kept = _plain(word) in _words(chosen, name)
            effect, worst = (gains | refused).get((name, word), (np.nan, np.nan))
            rows.append({"class": name, "word": word, "kept": kept, "effect": effect, "worst": worst})

    nested, folds = np.nan, images % few_shot.FOLDS
    if len(images) > 2:
        found = []
        for fold in np.unique(folds):
            counts = trials.counts(trials.choose(known, images[folds != fold])[0])
            found.append(counts[_best(counts[:, folds != fold].sum(axis=1)), folds == fold].sum(axis=0))
        nested = float(_mean_iou(sum(found)))
    before, after = (trials.left_out(classes, images)[0] for classes in (lab.classes, chosen))
    return Choice(chosen, lab.best_threshold(chosen), before, after, nested, tuple(rows))


def _steps(classes: Classes, candidates: dict[str, list[str]]) -> dict[tuple[str, str], Classes]:
    """The classes after one more candidate; class and word -> classes."""
    steps = {(name, word): _given(classes, name, word, candidates) for name, word in _pairs(candidates)}
    return {step: edited for step, edited in steps.items() if edited}


def _given(classes: Classes, name: str, word: str, candidates: dict[str, list[str]]) -> Classes | None:
    """The classes after one got a word; None if it has the word, or if another class would have none left."""
    if _plain(word) in _words(classes, name):
        return None
    if name == "templates":
        return replace(classes, templates=(*classes.templates, word))
    words, todo = dict(zip(classes.names, classes.words, strict=True)), [(name, word)]
    while todo:
        name, word = todo.pop()
        for other, before in words.items():
            words[other] = tuple(each for each in before if _plain(each) != _plain(word))
            if before and not words[other] and classes.names.index(other) != classes.background:
                if not candidates.get(other):
                    return None
                todo.append((other, candidates[other][0]))
        words[name] = (*words[name], word)
    return replace(classes, words=tuple(words.values()))


def _words(classes: Classes, name: str) -> list[str]:
    """The words of a class, or the templates, as CLIP reads them."""
    return [*map(_plain, classes.templates if name == "templates" else classes.words[classes.names.index(name)])]


class _Trials:
    """Counts of the labelled images with other words.

    Pixels that are in the same masks get the same label. So an image is painted as a row of such parts.
    """

    def __init__(self, lab: Lab):
        self.lab, self.embeddings = lab, lab.segment_embeddings[: len(lab.truths)]
        how = lab.classes.num_classes, lab.how["overlap"]
        self.images = [_parts(*pair, *how) for pair in zip(lab.masks, lab.truths, strict=False)]
        self.counts = cache(self._counts)
        self.painted: dict[tuple, np.ndarray] = {}  # image, classes and scores of its segments -> (3, K)

    def choose(self, candidates: dict[str, list[str]], images: np.ndarray) -> tuple[Classes, dict]:
        """The words that these labelled images choose, and effect and worst effect of each step."""
        chosen, gains = self.lab.classes, {}
        while True:
            steps = _steps(chosen, candidates)
            tried = {step: self.gain(chosen, edited, images) for step, edited in steps.items()}
            rising = [step for step, both in tried.items() if min(both) > 1e-9]  # sums of floats are not exact
            if not rising:
                return chosen, gains
            best = max(rising, key=lambda step: tried[step][0])
            chosen, gains[best] = steps[best], tried[best]

    def gain(self, before: Classes, after: Classes, images: np.ndarray) -> tuple[float, float]:
        """Change of the mean IoU over images, and the least change of that of the others when one is left out."""
        (old, of_others), (new, now) = (self.left_out(classes, images) for classes in (before, after))
        return new - old, float((now - of_others).min())

    def left_out(self, classes: Classes, images: np.ndarray) -> tuple[float, np.ndarray]:
        """Mean IoU over n images, each with the threshold chosen on the others; and (n,) that of each one's others."""
        counts = self.counts(classes)[:, images]  # (T, n, 3, K)
        others = counts.sum(axis=1, keepdims=True) - counts
        each = np.arange(len(images))
        best = [_best(others[:, k]) for k in each]
        return float(_mean_iou(counts[best, each].sum(axis=0))), _mean_iou(others[best, each])

    def _counts(self, classes: Classes) -> np.ndarray:
        """Pixels that are right, true and given at each threshold: (T, M, 3, K) int64, see `metrics.margins`."""
        texts, owner = self.lab.text_embeddings(classes)
        background, rule = classes.background, self.lab.how["rule"]
        named = labels.assign(torch.cat(self.embeddings), texts, owner=owner, background=background, rule=rule)
        sizes, found = [len(of_image) for of_image in self.embeddings], []
        for k, segments in enumerate(zip(*(tensor.split(sizes) for tensor in named), strict=True)):
            assigned, scores = map(torch.Tensor.numpy, segments)
            found.append([])
            for threshold in [-np.inf] if background is None else segment_match.GRID:
                low = (assigned != background) & (scores < threshold)  # as `labels.assign` rejects them
                given = np.where(low, background or 0, assigned)
                found[-1].append(self._paint(k, given, scores))
        return np.stack(found, axis=1)

    def _paint(self, k: int, assigned: np.ndarray, scores: np.ndarray) -> np.ndarray:
        """Counts (3, K) of image k, whose segments have these classes and scores."""
        key = k, assigned.tobytes(), scores.tobytes()
        if key not in self.painted:
            masks, pixels, how = self.images[k]
            background, num_classes = self.lab.classes.background, pixels.shape[1]
            label = labels.paint(masks, assigned, scores, background=background, **how).label[0].astype(np.int64)
            given = np.eye(num_classes + 1, dtype=np.int64)[np.where(label == IGNORE, num_classes, label)]  # (A, K+1)
            self.painted[key] = np.stack(metrics.margins(pixels.T @ given, "background", background))
        return self.painted[key]


def _parts(masks: Masks, truth: np.ndarray, num_classes: int, overlap: str) -> tuple[np.ndarray, np.ndarray, dict]:
    """The parts into which masks cut an image: (N, 1, A) bool, their pixels of each class (A, K), how to paint them."""
    drawn = [masks.take([k]).dense()[0] for k in range(len(masks))]
    keys = np.random.default_rng(0).integers(2**63, size=len(drawn), dtype=np.uint64)
    code = np.zeros(truth.shape, np.uint64)
    for mask, key in zip(drawn, keys, strict=True):
        code ^= mask * key  # the sum of random keys tells in which masks a pixel is
    _, first, part = np.unique(code, return_index=True, return_inverse=True)
    pixels = np.bincount(part.ravel() * 256 + truth.ravel(), minlength=256 * len(first)).reshape(-1, 256)
    inside = np.array([mask.ravel()[first] for mask in drawn], bool).reshape(len(drawn), 1, len(first))
    how = {"overlap": overlap, "predicted_iou": masks.predicted_iou}
    if overlap == "small_on_top":  # a part is no pixel: the order is that of the masks' real areas
        how = {"overlap": "predicted_iou", "predicted_iou": -masks.areas()}
    return inside, pixels[:, :num_classes], how


def _mean_iou(counts: np.ndarray) -> np.ndarray:
    """Mean IoU (...) of counts (..., 3, K), as `metrics.scores` has it; 0 where no class has a truth pixel."""
    hit, true, given = np.moveaxis(counts, -2, 0)
    iou = metrics.shares(hit, true + given - hit, where=true > 0)
    return np.nansum(iou, axis=-1) / (true > 0).sum(axis=-1).clip(min=1)


def _best(counts: np.ndarray) -> int:
    """Index of the threshold that `segment_match.choose_threshold` chooses by counts (T, 3, K)."""
    curve = _mean_iou(counts)
    return int(labels.choose_threshold(range(len(curve)), lambda k: curve[int(k)], smooth=True).threshold)


# The panel


class Panel(widgets.VBox):
    """Widgets over a lab: boxes of words, templates and threshold, and what they change.

    Tests find the parts by CSS classes: plg-words, plg-templates, plg-threshold, plg-best, plg-reset, plg-save,
    plg-message, plg-status, plg-classes, plg-margins and plg-gallery.
    """

    def __init__(self, lab: Lab, path: str | Path, origin: str = ""):
        """Build the widgets with the run's own words; path, origin: see `save`."""
        self.lab, self.path, self.origin = lab, Path(path), origin
        self.saved = self.outcome = lab.try_out()  # changes count from the first; the second is the last valid one
        wide = {"continuous_update": False, "style": {"description_width": "90px"}, "layout": {"width": "400px"}}
        self.words = {
            name: (widgets.Textarea if k == lab.classes.background else widgets.Text)(description=name, **wide)
            for k, name in enumerate(lab.classes.names)
        }
        bounds = {"min": min(0.0, self.saved.threshold), "max": max(1.0, self.saved.threshold)}
        self.threshold = widgets.FloatSlider(description="threshold", **bounds, step=0.01, **wide)
        self.threshold.disabled = lab.classes.background is None
        self.templates = widgets.Textarea(description="templates", rows=2, **wide)
        self.best, self.reset, self.save = (
            widgets.Button(description=text, layout={"width": "130px"}) for text in ("Best threshold", "Reset", "Save")
        )
        self.best.disabled = self.threshold.disabled or not lab.truths
        self.message, self.status, self.table = widgets.HTML(), widgets.HTML(), widgets.HTML()
        self.margins, self.gallery = widgets.Image(width=400), widgets.Image()
        typed = [*self.words.values(), self.templates, self.threshold]
        left = [*typed, widgets.HBox([self.best, self.reset, self.save])]
        columns = [widgets.VBox(left, layout={"width": "410px"}), widgets.VBox([self.table, self.margins])]
        both = widgets.HBox(columns, layout={"flex_flow": "row wrap"})
        super().__init__([self.status, self.message, both, self.gallery])
        for name in ("templates", "threshold", "best", "reset", "save", "message", "status", "margins", "gallery"):
            getattr(self, name).add_class(f"plg-{name}")
        for name, part in [("lab", self), ("classes", self.table), *(("words", box) for box in self.words.values())]:
            part.add_class(f"plg-{name}")
        self._fill()
        for box in typed:
            box.observe(self.update, "value")
        self.best.on_click(self._choose)
        self.reset.on_click(self._fill)
        self.save.on_click(self._save)

    def __repr__(self) -> str:
        return "the panel of the prompt lab"

    def classes(self) -> Classes:
        """Read the boxes; a ValueError says what is wrong with them."""
        words = {name: words_of(box.value) for name, box in self.words.items()}
        templates = [line.strip() for line in self.templates.value.splitlines() if line.strip()]
        return edit(self.lab.classes, words=words, templates=templates)

    def update(self, _change: Any = None) -> None:
        """Try out the content of the boxes and show the outcome; if it is wrong, say why and leave the rest."""
        if self._filling:
            return
        start, before, self.wrong = time.perf_counter(), self.saved, ""  # what is wrong with the content of the boxes
        try:
            now = self.outcome = self.lab.try_out(self.classes(), threshold=self.threshold.value)
        except ValueError as error:
            self.wrong = str(error)
            self.message.value = html.escape(f"{error}. The results below are those of the last valid words.")
            return
        milliseconds = 1000 * (time.perf_counter() - start)
        table = pd.DataFrame(class_rows(before, now)).set_index("class").rename_axis(None)
        table[["iou", "change"]] *= 100
        table.columns = ["IoU %", "change", "segments", "median margin"]
        forms = dict(zip(table, ("{:.1f}".format, "{:+.1f}".format, str, "{:.3f}".format), strict=True))
        self.table.value = table.to_html(formatters=forms, na_rep="–", border=0)
        self.gallery.value, self.margins.value = _png(self.lab.picture(now)), _png(margin_figure(before, now))
        unknown = "; ".join(f"{', '.join(words)} ({name})" for name, words in now.unknown.items())
        never = f"The encoder never read these words, and its answer to them is random: {unknown}"
        self.message.value = html.escape(never if unknown else "")
        points = f" ({100 * (now.mean_iou - before.mean_iou):+.1f})" if self.lab.truths else ""
        pixels = f"{100 * changed(before, now).mean():.1f} % of the pixels changed"
        self.status.value = f"{now}{points} · {pixels} · {len(now.labels)} images in {milliseconds:.0f} ms"

    def _fill(self, _button: Any = None) -> None:
        """Fill the boxes with the run's words, then try out once."""
        self._filling = True
        for box, of_class in zip(self.words.values(), self.lab.classes.words, strict=True):
            box.value = line_of(of_class)
        self.templates.value, self.threshold.value = "\n".join(self.lab.classes.templates), self.lab.how["threshold"]
        self._filling = False
        self.update()

    def _choose(self, _button: Any) -> None:
        if not self.wrong:
            self.threshold.value = self.lab.best_threshold(self.outcome.classes)

    def _save(self, _button: Any) -> None:
        try:
            if self.wrong:
                raise ValueError(self.wrong)
            path, digest = save(self.path, self.outcome.classes, f"{self.origin}\n{self.outcome}")
        except (OSError, ValueError) as error:
            said = f"Not saved: {error}"
        else:
            said, self.saved = f"Saved: {path}, SHA-256 {digest}", self.outcome
            self.update()
        self.message.value = html.escape(said)


def _png(figure: Figure) -> bytes:
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png")
    return drawn.getvalue()
