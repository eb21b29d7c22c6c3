"""What the stages hand to each other, and the words and letters the package uses for it.

Letters of array shapes, the same in every docstring:

    B  images of a batch          N  segments of an image      D  numbers of an embedding
    H, W  height and width        K  classes, background included where there is one
    h, w  height and width of a feature map                    M  items of a longer list, where it is said which

Names, the same in every module:

    image, images         (H, W, 3) uint8 RGB, or (B, 3, H, W) float as a network sees it
    masks                 (N, H, W) bool, which may overlap and need not cover the image
    segments              the same parts of the image, where their pixels do not matter
    segment_embeddings    (N, D), the mean CLIP feature of each mask
    text_embeddings       (K, D), one for each class or for each word asked
    probabilities         (N, K) or (B, K, H, W), summing to 1 over the classes
    logits                the same before the softmax
    label                 (H, W) uint8, the class of each pixel as proposed; IGNORE where nothing is
    truth                 (H, W) uint8, the class of each pixel as annotated; IGNORE is void
    confidence            (H, W) float32 in [0, 1]
    num_classes           K
    boxes_xywh, boxes_xyxy    (N, 4) pixels, left, top, and then width, height or right, bottom

Scores are fractions; a percent sign appears only in print. A size is (H, W).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path

import numpy as np
from pycocotools import mask as coco

from plg_utils import run_lengths

IGNORE = 255  # in a label map: no class; VOC calls it void
SPLITS = ("labelled", "unlabelled", "val", "test")


class TruthHidden(PermissionError):
    """A stage asked for a truth, or for tags, that it may not see, or that do not exist."""


@dataclass(frozen=True)
class Classes:
    """The classes of a data set: the index is the value in a label map."""

    names: tuple[str, ...]  # K
    words: tuple[tuple[str, ...], ...]  # K; what CLIP is asked for each class, perhaps nothing for the background
    colours: tuple[tuple[int, int, int], ...]  # K, RGB in 0..255
    background: int | None = 0  # index of the class "none of the others"; None if the data set has no such class
    templates: tuple[str, ...] = ("a photo of a {}.",)  # sentences that hold one word each

    def __post_init__(self):
        """Refuse lists that do not belong together."""
        if not len(self.names) == len(self.words) == len(self.colours):
            counts = f"{len(self.names)} names, {len(self.words)} lists of words, {len(self.colours)} colours"
            raise ValueError(f"classes need one of each, not {counts}")

    @property
    def num_classes(self) -> int:
        """K, background included where there is one."""
        return len(self.names)

    @property
    def nothing(self) -> int:
        """The value of a pixel where nothing is painted: background, or IGNORE if there is none."""
        return IGNORE if self.background is None else self.background

    @property
    def foreground(self) -> tuple[int, ...]:
        """Indices of the classes that are not the background."""
        return tuple(index for index in range(self.num_classes) if index != self.background)


@dataclass(frozen=True)
class Sample:
    """One image of a data set, read when it is asked for."""

    id: str  # a safe file stem: what a stage writes about this image is called so
    read_image: Callable[[], np.ndarray]
    read_truth: Callable[[], np.ndarray] | None = None  # None: there is no truth, or this stage may not see it
    read_tags: Callable[[], tuple[int, ...]] | None = None  # None: there are no tags, or this stage may not see them
    read_content: Callable[[], str] | None = None  # of what `content` returns; None: it is counted from the pixels
    read_truth_content: Callable[[], str] | None = None  # the same of `truth_content`
    path: Path | None = None  # file that the image is read from, perhaps at another size; None: there is none

    def image(self) -> np.ndarray:
        """Read the image: (H, W, 3) uint8 RGB."""
        return self.read_image()

    def truth(self) -> np.ndarray:
        """Read the annotated label map: (H, W) uint8, void is IGNORE."""
        if self.read_truth is None:
            raise TruthHidden(f"the truth of {self.id} does not exist, or this stage may not see it")
        return self.read_truth()

    @cached_property
    def content(self) -> str:
        """SHA-256, in hex, of what the image is read from, and how it is read: another value, another image."""
        return self.read_content() if self.read_content else _digest(self.image())

    @cached_property
    def truth_content(self) -> str | None:
        """The same of the annotated label map; None where it may not be read."""
        if self.read_truth is None:
            return None
        return self.read_truth_content() if self.read_truth_content else _digest(self.truth())

    def tags(self) -> tuple[int, ...]:
        """Read the image-level labels: the foreground classes that a person said are in the image, rising."""
        if self.read_tags is None:
            raise TruthHidden(f"the tags of {self.id} do not exist, or this stage may not see them")
        return self.read_tags()


def images_of(samples: Sequence[Sample | np.ndarray]) -> list[np.ndarray]:
    """The images (H, W, 3) uint8 RGB of samples; images stay."""
    return [item.image() if isinstance(item, Sample) else item for item in samples]


def _digest(pixels: np.ndarray) -> str:
    return sha256(repr((pixels.shape, str(pixels.dtype))).encode() + pixels.tobytes()).hexdigest()


@dataclass(frozen=True)
class Dataset:
    """The four splits of a data set. Truth and tags are open only where the loader was told so."""

    name: str
    classes: Classes
    labelled: tuple[Sample, ...]
    unlabelled: tuple[Sample, ...] = ()
    val: tuple[Sample, ...] = ()
    test: tuple[Sample, ...] = ()
    source: dict | None = None  # arguments of `datasets.load` that load it again, where it was loaded so
    provenance: str = ""  # how the labelled images were chosen
    remarks: tuple[tuple[str, str, int, str], ...] = ()  # rows for `plg_utils.check`: level, finding, count, detail
    left_out: tuple[str, ...] = ()  # ids of the photos that cannot be read, if the caller asked to skip them


@dataclass(frozen=True, eq=False)
class Masks:
    """The segments of an image in the order of their generator, kept small as COCO run lengths."""

    rles: tuple[dict, ...]  # N of {"size": [H, W], "counts": ascii}
    size: tuple[int, int]  # (H, W)
    predicted_iou: np.ndarray  # (N,) float32, what the generator thinks of each mask; nan if it does not say
    stability: np.ndarray  # (N,) float32, IoU of the mask at a higher and a lower threshold; nan if unknown

    def __len__(self) -> int:
        return len(self.rles)

    @classmethod
    def from_dense(
        cls,
        masks: np.ndarray,
        predicted_iou: Sequence[float] | np.ndarray | None = None,
        stability: Sequence[float] | np.ndarray | None = None,
    ) -> "Masks":
        """Encode masks (N, H, W) bool; scores (N,) that are not given become nan."""
        masks = np.asarray(masks)
        if masks.ndim != 3 or masks.dtype != bool:
            raise ValueError(f"masks are (N, H, W) bool, not {masks.shape} {masks.dtype}; of logits take `> 0`")
        for name, scores in (("predicted_iou", predicted_iou), ("stability", stability)):
            if scores is not None and np.shape(scores) != (len(masks),):
                raise ValueError(f"{len(masks)} masks need as many scores: {name} is {np.shape(scores)}")
        rles = coco.encode(np.asfortranarray(masks.transpose(1, 2, 0), dtype=np.uint8)) if len(masks) else []
        unknown = np.full(len(masks), np.nan)
        return cls(
            rles=tuple({"size": list(rle["size"]), "counts": rle["counts"].decode("ascii")} for rle in rles),
            size=(masks.shape[1], masks.shape[2]),
            predicted_iou=np.asarray(unknown if predicted_iou is None else predicted_iou, dtype=np.float32),
            stability=np.asarray(unknown if stability is None else stability, dtype=np.float32),
        )

    @cached_property
    def runs(self) -> list[np.ndarray]:
        """Lengths of each mask's runs, N of (R,) int64, see `run_lengths`."""
        return run_lengths.decode([rle["counts"] for rle in self.rles])

    def dense(self) -> np.ndarray:
        """Decode: (N, H, W) bool."""
        return run_lengths.dense(self.runs, self.size)

    def inside(self, box: Sequence[int]) -> np.ndarray:
        """Decode what lies in a box, left, top, right, bottom in pixels, the last two not included: (N, h, w) bool."""
        left, top, right, bottom = box
        drawn = [run_lengths.crop(runs, self.size, box) for runs in self.runs]
        return np.array(drawn, dtype=bool).reshape(len(self), bottom - top, right - left)

    def coverage(self) -> float:
        """Share of the pixels that lie in a mask."""
        union = coco.area(coco.merge(list(self.rles))) if self.rles else 0
        return float(union / (self.size[0] * self.size[1]))

    def areas(self) -> np.ndarray:
        """Pixels of each mask: (N,) int64."""
        # coco.area puts the number of masks into a uint8: with numpy 2 it fails for 256 masks or more.
        return np.array([runs[1::2].sum() for runs in self.runs], dtype=np.int64)

    def boxes(self) -> np.ndarray:
        """Smallest box around each mask: (N, 4) float64, left, top, width, height in pixels."""
        return np.asarray(coco.toBbox(list(self.rles)) if self.rles else [], dtype=np.float64).reshape(-1, 4)

    def corners(self) -> list[list[int]]:
        """The same boxes as left, top, right, bottom in pixels, the last two not included."""
        boxes = self.boxes().astype(np.int64)
        return np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1).tolist()

    def take(self, chosen: Sequence[int] | np.ndarray) -> "Masks":
        """Keep the masks at these indices, or where a bool array (N,) is true, in the order given."""
        chosen = np.asarray(chosen)
        if chosen.dtype == bool and chosen.shape != (len(self),):
            raise ValueError(f"{len(self)} masks are chosen by as many bools, not by {chosen.shape}")
        indices = np.flatnonzero(chosen) if chosen.dtype == bool else chosen.astype(np.int64)
        rles = tuple(self.rles[index] for index in indices)
        return Masks(rles, self.size, self.predicted_iou[indices], self.stability[indices])


@dataclass(frozen=True, eq=False)
class PseudoLabel:
    """A label map that a model proposed, and how sure it was of each pixel."""

    label: np.ndarray  # (H, W) uint8, IGNORE where no mask covers the pixel
    confidence: np.ndarray  # (H, W) float32 in [0, 1]


@dataclass(frozen=True, eq=False)
class Scores:
    """What follows from one confusion matrix over a whole set of images."""

    iou: np.ndarray  # (K,) float64, nan where the class has no truth pixel
    mean_iou: float  # over the classes that have truth pixels
    coverage: float  # part of the pixels with truth that got any class
    confusion: np.ndarray  # (K, K+1) int64, truth by prediction; the last column is IGNORE
