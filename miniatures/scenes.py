"""What the miniatures are trained and measured on: many storybook scenes, drawn once and kept as arrays.

Training scenes have seeds from 1,000,000, held-out scenes for measuring have seeds from 900,000; the data set itself
uses seeds below 10,000. Who reads what: the miniature SAM sees images and masks without classes; the miniature CLIP
and the segmenter's encoder see images and captions. Class maps are for measuring alone.
"""

import re
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from plg_utils import files
from plg_utils.datasets import storybook

TRAIN, HELD_OUT = 1_000_000, 900_000  # first seeds
ARRAYS = ("image", "label", "instances", "parts", "stuff")
CHUNK = 100  # scenes a worker draws at a time

NOUNS = {  # what CLIP is asked -> the words that name it in a caption
    **{f"a {name}": (name, storybook.PLURALS.get(name, name + "s")) for name in storybook.NAMES},
    "the sky": ("sky",),
    "the water": ("water",),
    **{f"the {ground}": (ground,) for ground in storybook.GROUNDS},
    "hills": ("hills",),
    "a path": ("path",),
    "rocks": ("rocks",),
    "the sun": ("sun",),
    "the moon": ("moon",),
}
VOCABULARY = tuple(
    sorted(
        {
            word
            for text in (
                *storybook.TEMPLATES,
                *storybook.COLOURS,
                *storybook.SKIES,
                *storybook.NUMBERS.values(),
                *NOUNS,
                *(word for words in NOUNS.values() for word in words),
                "an empty scene in on by with under the of and",
            )
            for word in re.findall(r"[a-z]+|[.,]", text)
        }
    )
)


@dataclass(frozen=True, eq=False)
class Scenes:
    """M scenes of 128 x 128 pixels."""

    image: np.ndarray  # (M, H, W, 3) uint8
    label: np.ndarray  # (M, H, W) uint8, for measuring only
    instances: np.ndarray  # (M, H, W) uint8, 0 = none
    parts: np.ndarray  # (M, H, W) uint8, 0 = none
    stuff: np.ndarray  # (M, H, W) uint8, position in storybook.REGIONS
    captions: list[str]

    def __len__(self):
        return len(self.captions)


def nouns_in(caption: str) -> tuple[bool, ...]:
    """Which of NOUNS a caption names, read from its words alone."""
    text = f" {' '.join(re.findall('[a-z]+', caption))} "
    return tuple(any(f" {word} " in text for word in words) for words in NOUNS.values())


def load(count: int, *, first: int = TRAIN, folder: str | Path | None = None, workers: int = 1) -> Scenes:
    """Load `count` scenes from seed `first` on, drawing what is not there yet with `workers` processes."""
    folder = Path(folder) if folder else files.data_root() / "miniature_scenes"
    chunks = [folder / f"{seed}.npz" for seed in range(first, first + count, CHUNK)]
    missing = [path for path in chunks if not path.exists()]
    if workers > 1 and len(missing) > 1:
        with ProcessPoolExecutor(workers) as pool:
            list(pool.map(_draw_chunk, missing))
    else:
        list(map(_draw_chunk, missing))
    read = [np.load(path) for path in chunks]
    arrays = {name: np.concatenate([chunk[name] for chunk in read])[:count] for name in ARRAYS}
    captions = [str(caption) for chunk in read for caption in chunk["captions"]][:count]
    return Scenes(**arrays, captions=captions)


def _draw_chunk(path):
    """Draw the scenes of one chunk, whose first seed is the file's name."""
    scenes = [storybook.draw(int(path.stem) + i) for i in range(CHUNK)]
    with files.atomic(path) as temporary, open(temporary, "wb") as file:
        arrays = {name: np.stack([getattr(scene, name) for scene in scenes]) for name in ARRAYS}
        np.savez(file, **arrays, captions=np.array([scene.caption for scene in scenes]))
