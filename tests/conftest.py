"""What several tests share: the world of flat-coloured squares, whose right answer is known, and a small storybook."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch starts; kernels take it over

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from clip.model import VisionTransformer
from torch import nn

from plg_utils import datasets, files
from plg_utils.records import Classes, Dataset

torch.set_num_threads(1)  # tiny networks are several times slower with more
RGB = ((0, 0, 0), (255, 0, 0), (0, 255, 0), (0, 0, 255))
COLOURS = Classes(("background", "red", "green", "blue"), (("black",), ("red",), ("green",), ("blue",)), RGB)
NO_IMAGES = Dataset("none", COLOURS, labelled=())  # for stages that are opened and not filled


def colour_squares(seed: int, side: int = 8) -> SimpleNamespace:
    """Draw a red, a green and a blue square on black, with one mask for each colour, black included.

    image: (2 * side, 3 * side, 3) uint8, masks: (4, H, W) bool, truth: (H, W) uint8
    """
    grid = np.random.default_rng(seed).permutation([0, 0, 0, 1, 2, 3]).reshape(2, 3)
    truth = grid.repeat(side, axis=0).repeat(side, axis=1).astype(np.uint8)
    masks = truth == np.arange(4)[:, None, None]
    return SimpleNamespace(image=np.array(RGB, dtype=np.uint8)[truth], truth=truth, masks=masks, classes=COLOURS)


@pytest.fixture(scope="module")
def small_vision():
    """A vision transformer with two heads, three layers, and biases and norms that are not trivial."""
    torch.manual_seed(1)
    visual = VisionTransformer(input_resolution=8, patch_size=4, width=8, layers=3, heads=2, output_dim=5)
    for parameter in visual.parameters():
        nn.init.normal_(parameter, std=0.5)
    return visual.eval()


@pytest.fixture
def squares() -> SimpleNamespace:
    """One image of squares: .image, .truth, .masks, .classes."""
    return colour_squares(0)


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    """Folder of a drawn storybook: two labelled scenes, two unlabelled ones, two for val."""
    root = tmp_path_factory.mktemp("world")
    data = datasets.load("storybook", root=root, labelled=2, limit=2)
    for sample in (*data.labelled, *data.unlabelled, *data.val):
        sample.image()
    return root


@pytest.fixture
def tiny_root(tmp_path):
    """Build a folder in the layout of every data set that reads files: eight images of squares, six with label map."""
    root = tmp_path / "tiny"
    for number in range(8):
        drawn = colour_squares(number)
        for photo in (root / f"{number:02d}.png", root / "JPEGImages" / f"{number:02d}.jpg"):
            files.write_image(photo, drawn.image)
        if number < 6:
            files.write_label(root / "SegmentationClass" / f"{number:02d}.png", drawn.truth)
    return root
