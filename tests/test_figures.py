"""Figures: the arrays behind them, and that each one draws."""

import matplotlib.pyplot as plt
import numpy as np
import pytest

from plg_utils import figures
from plg_utils.records import Classes

CLASSES = Classes(("background", "cat"), ((), ("cat",)), ((0, 0, 0), (10, 200, 30)))
IMAGE = np.full((6, 8, 3), 100, np.uint8)
LABEL = np.zeros((6, 8), np.uint8)
LABEL[2:4, 2:5] = 1
LABEL[5, 7] = 255
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
    ],
)
def test_each_figure_draws_the_same_file_twice_and_stays_closed(figure, tmp_path):
    first, second = (figures.save(figure(), tmp_path / name) for name in ("a.png", "b.png"))
    assert first.read_bytes() == second.read_bytes()
    assert plt.get_fignums() == []
