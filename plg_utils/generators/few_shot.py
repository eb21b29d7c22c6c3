"""Few-shot labels: paper A's segments, named by the words and by the segments of the few labelled images.

A segment whose pixels mostly show one class in a labelled image's truth is an *example* of it. A linear classifier
begins at the words and learns from the examples what the words miss. A class k scores

    slope * w_k(x) + offset + v_k f(x)      w_k(x): cosine of its best word, so that the background may be many things

slope and offset are the least squares fit of the words' scores to the examples (1 for its own class, 0 for another);
V is ridge regression of what is left, in closed form: the stronger its penalty, the more the words decide. The strength
is that which labels labelled images best whose own examples were left out.

f: CLIP's embeddings fill a narrow cone. So f takes the segments' mean away and whitens, as GDA does with the covariance
of the classes (Wang et al., "A Hard-to-Beat Baseline for Training-free CLIP-based Adaptation", ICLR 2024); here with
that of all segments, which needs no truth, mixed half and half with a sphere.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch
import torch.nn.functional as F

from plg_utils import labels, metrics
from plg_utils import masks as mask_models
from plg_utils.encoders import clip
from plg_utils.generators import Generate, segment_match
from plg_utils.masks import sam
from plg_utils.records import IGNORE, Classes, Masks, Sample
from plg_utils.run_lengths import crop

STRENGTHS = 10.0 ** np.arange(-1, 1.1, 0.25)  # penalties that are tried; f has length 1, so 1 is worth an example
SHARE = 0.5  # of a segment's known pixels that must show one class
FOLDS = 20  # parts of the labelled images that are left out in turn: single images, where there are no more than these
_TOY = Sample("toy", lambda: np.zeros((16, 16, 3), np.uint8), lambda: np.zeros((16, 16), np.uint8))
SMOKE = {"masks_options": sam.SMOKE, "encoder_options": clip.SMOKE, "examples": [_TOY]}


@dataclass(frozen=True, eq=False)
class Labelled:
    """What is known of the labelled images; lists have an entry for each of them."""

    masks: Sequence[Masks]
    embeddings: Sequence[torch.Tensor]  # (N, D)
    truths: Sequence[np.ndarray]  # (H, W)


@dataclass(frozen=True, eq=False)
class Namer:
    """Names segments; made by `learn`."""

    seen: Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]  # embeddings -> scores of words, f, see `_view`
    slope: torch.Tensor
    offset: torch.Tensor
    weights: torch.Tensor  # (D + 1, K), V and a constant
    choice: labels.ThresholdChoice  # of the strength, by mean IoU on labelled images that were left out
    examples: np.ndarray  # (K,) how many each class has
    left_out: list[tuple]  # classes and scores of each labelled image's segments, had it been left out

    def __call__(self, embeddings: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Classes (N,) int64 of segments (N, D), and their scores (N,) float32; of equal scores the lower class wins.

        A score is about 1 where the classifier is sure, and is cut to [0, 1].
        """
        return _named(self.seen(embeddings), (self.slope, self.offset, self.weights))


def build(
    classes: Classes,
    *,
    examples: Sequence[Sample],
    masks: str | mask_models.Generate = "sam",
    masks_options: dict | None = None,
    encoder: str | object = "clip",
    encoder_options: dict | None = None,
    overlap: str = "score",
    **how,
) -> Generate:
    """Load the mask model and the encoder, and learn from labelled images; the whitening is of their segments alone.

    examples: samples whose truth is open; masks, encoder: as in `segment_match.build`
    overlap: see `labels.paint`; how: strength, share and words_of of `learn`
    """
    encode, segments_of = segment_match.embedder(masks, masks_options, encoder, encoder_options)
    known = Labelled(*segments_of(examples), [sample.truth() for sample in examples])
    name = learn(known, classes, *encode.class_embeddings(classes), overlap=overlap, **how)
    how = {"background": classes.background, "overlap": overlap}
    return lambda samples: [*segment_match.painted(*segments_of(samples), name, **how)]


def learn(
    labelled: Labelled,
    classes: Classes,
    text_embeddings: torch.Tensor,
    owner: torch.Tensor,
    *,
    others: Iterable[torch.Tensor] = (),
    strength: float | None = None,
    share: float = SHARE,
    words_of: Sequence[str] | None = None,
    overlap: str = "score",
) -> Namer:
    """Learn to name segments from the words and the labelled images; no other truth is read.

    text_embeddings: (K', D); owner: (K',), the class of each
    others: embeddings (N, D) of further images, for the whitening
    strength: penalty of the ridge regression, above 0; None: the best of STRENGTHS on labelled images left out
    share: of a segment's known pixels that must show one class, in (0, 1]
    words_of: names of the classes whose words are asked; None: of all. The others have examples alone
    overlap: see `labels.paint`
    """
    if not len(labelled.truths):
        raise ValueError("few-shot labels learn from labelled images, and there are none: label some, or do without")
    if strength is not None and not 0 < strength < np.inf:
        raise ValueError(f"strength is {strength!r}; give a number above 0, or None for the best on labelled images")
    if not 0 < share <= 1:
        raise ValueError(f"share is {share!r}; give a part of a segment, above 0 and up to 1")
    if unknown := [name for name in words_of or () if name not in classes.names]:
        raise ValueError(f"words_of has {unknown[0]!r}; the classes are {', '.join(classes.names)}")
    asked = [words_of is None or classes.names[index] in words_of for index in owner.tolist()]
    text_embeddings, owner = text_embeddings[asked], owner[asked]

    together, target, folds = _examples(labelled, classes.num_classes, share)
    counts = np.bincount(target[target >= 0], minlength=classes.num_classes)
    helpless = [name for k, name in enumerate(classes.names) if not counts[k] and k not in owner.tolist()]
    if helpless:
        raise ValueError(
            f"these classes have neither words nor an example: {', '.join(helpless)}. Give them words, or label an "
            "image in which a mask shows them"
        )

    seen = _view(chain([together], others), text_embeddings.cpu(), owner.cpu(), classes.num_classes)
    known = seen(together)
    models = [_fit(known, target, ~out) for out in folds]
    sizes = [len(of_image) for of_image in labelled.embeddings]

    def names_left_out(strength: float) -> list[tuple]:
        classes_of, scores = torch.zeros_like(target), torch.zeros(len(target))
        for out, model in zip(folds, models, strict=True):
            classes_of[out], scores[out] = _named([part[out] for part in known], model(strength))
        return [*zip(classes_of.split(sizes), scores.split(sizes), strict=True)]

    def left_out(strength: float) -> float:
        painted = [
            segment_match.paint(masks, named, classes.background, overlap).label
            for masks, named in zip(labelled.masks, names_left_out(strength), strict=True)
        ]
        found_iou = metrics.mean_iou(labelled.truths, painted, classes.num_classes, background=classes.background)
        return float(np.nan_to_num(found_iou))  # nan: the truth is void everywhere

    tried = STRENGTHS if strength is None else [strength]
    choice = labels.choose_threshold(tried, left_out, smooth=strength is None)
    model = _fit(known, target, target >= 0)(choice.threshold)
    return Namer(seen, *model, choice, counts, names_left_out(choice.threshold))


def opinions(
    labelled: Labelled, num_classes: int, *, others: Iterable[torch.Tensor] = (), share: float = SHARE
) -> tuple[list[torch.Tensor], Callable[[torch.Tensor], torch.Tensor]]:
    """What the examples say of segments, without any words.

    others, share: see `learn`
    returns: scores (N, K) of the segments of each labelled image, by the examples of the others; and a function from
        embeddings (N, D) to such scores, by all examples
    """
    together, target, folds = _examples(labelled, num_classes, share)
    no_words = torch.zeros(0, together.shape[1]), torch.zeros(0, dtype=torch.int64)
    seen = _view(chain([together], others), *no_words, num_classes)
    known = seen(together)

    def learnt_from(chosen: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
        _, offset, weights = _fit(known, target, chosen)(1.0)
        return lambda features: offset + features @ weights

    left_out = torch.zeros(len(target), num_classes, dtype=torch.float64)
    for out in folds:
        left_out[out] = learnt_from(~out)(known[1][out])
    by_all = learnt_from(target >= 0)
    sizes = [len(embeddings) for embeddings in labelled.embeddings]
    return [*left_out.split(sizes)], lambda embeddings: by_all(seen(embeddings)[1])


def _examples(labelled: Labelled, num_classes: int, share: float) -> tuple[torch.Tensor, torch.Tensor, list]:
    """The labelled images' segments: embeddings (M, D), classes (M,), -1 for none, and which are left out in turn."""
    pairs = zip(labelled.masks, labelled.truths, strict=True)
    found = [torch.from_numpy(_majority(*pair, num_classes, share)) for pair in pairs]
    counts = torch.tensor([len(of_image) for of_image in found])
    fold = torch.repeat_interleave(torch.arange(len(found)) % FOLDS, counts)
    return torch.cat([*labelled.embeddings]).cpu(), torch.cat(found), [fold == part for part in fold.unique()]


def _majority(masks: Masks, truth: np.ndarray, num_classes: int, share: float) -> np.ndarray:
    """Class (N,) int64 that at least this share of a mask's pixels show, void ones not counted; -1 for none."""
    found = np.full(len(masks), -1)
    for index, (runs, box) in enumerate(zip(masks.runs, masks.corners(), strict=True)):
        left, top, right, bottom = box
        inside = truth[top:bottom, left:right][crop(runs, masks.size, box)]
        counts = np.bincount(inside[inside != IGNORE], minlength=num_classes)
        if counts.any() and counts.max() >= share * counts.sum():
            found[index] = counts.argmax()
    return found


def _view(every: Iterable[torch.Tensor], texts: torch.Tensor, owner: torch.Tensor, num_classes: int) -> Callable:
    """A function from embeddings (N, D) to the words' scores (N, K), 0 for a class without words, and f (N, D + 1).

    every: (M, D) each, whose mean is taken away and whose covariance whitens
    """
    count, total, products = 0, 0, 0
    for embeddings in every:
        unit = F.normalize(embeddings.cpu().double(), dim=1)
        count, total, products = count + len(unit), total + unit.sum(dim=0), products + unit.T @ unit
    texts, mean = F.normalize(texts.double(), dim=1), total / max(1, count)
    covariance = products / max(1, count) - mean.outer(mean)
    if not covariance.isfinite().all():
        raise ValueError("some embeddings are not finite numbers: make them again, with a sound checkpoint")
    covariance = (covariance + torch.eye(len(mean)) * covariance.trace() / len(mean)) / 2
    values, vectors = torch.linalg.eigh(covariance)
    whiten = vectors / values.clamp(min=1e-12).sqrt() @ vectors.T

    def seen(embeddings: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        unit = F.normalize(embeddings.cpu().double(), dim=1)
        cosine = unit @ texts.T  # (N, K')
        best = torch.full((len(unit), num_classes), -torch.inf, dtype=torch.float64)
        best = best.scatter_reduce(1, owner.expand(len(unit), -1), cosine, "amax")
        features = F.normalize((unit - mean) @ whiten, dim=1)
        return best.masked_fill(best.isinf(), 0), F.pad(features, (0, 1), value=1.0)

    return seen


def _fit(seen: tuple, target: torch.Tensor, chosen: torch.Tensor) -> Callable[[float], tuple]:
    """From a strength to slope, offset and weights (D + 1, K) of the module's formula.

    seen: scores of the words (M, K) and f (M, D + 1); target: (M,); chosen: (M,) bool, of which the examples count;
    without one, the words decide
    """
    chosen = chosen & (target >= 0)
    (of_words, features), target = [part[chosen] for part in seen], target[chosen]
    if not len(target):
        words_alone = torch.tensor(1.0), torch.tensor(0.0), features.new_zeros(features.shape[1], of_words.shape[1])
        return lambda strength: words_alone
    wanted = F.one_hot(target, of_words.shape[1]).double()  # (M, K)
    spread = of_words - of_words.mean()
    slope = ((spread * wanted).sum() / spread.square().sum().clamp(min=1e-12)).clamp(min=0)
    offset = (wanted - slope * of_words).mean()
    products, aim = features.T @ features, features.T @ (wanted - slope * of_words - offset)
    penalty = torch.eye(features.shape[1])
    return lambda strength: (slope, offset, torch.linalg.solve(products + strength * penalty, aim))


def _named(seen: Sequence, model: tuple) -> tuple[torch.Tensor, torch.Tensor]:
    """Best class and its score by the module's formula."""
    (of_words, features), (slope, offset, weights) = seen, model
    scores, classes = (slope * of_words + offset + features @ weights).max(dim=1)
    return classes, scores.clamp(0, 1).float()
