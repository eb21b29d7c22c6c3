"""Generators: the contract of every file, and the toy whose answer is known."""

from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from plg_utils import encoders, generators
from plg_utils.generators import segment_match
from plg_utils.records import IGNORE, Classes, Masks, PseudoLabel, Sample

NAMES = sorted(path.stem for path in Path(generators.__file__).parent.glob("[a-z]*.py"))
COLOURS = {"white": (255, 255, 255), "red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}
CLASSES = Classes(
    names=("background", "red", "green", "blue"),
    words=((), ("red",), ("green",), ("blue",)),
    colours=tuple(COLOURS.values()),
    templates=("{}",),
)
SIZE, SIDE = (24, 36), 6


def colour_squares(seed):
    """An image of flat squares on white, its truth, and one mask for each square and one for the rest."""
    rng = np.random.default_rng(seed)
    of_squares = rng.integers(0, 4, (SIZE[0] // SIDE, SIZE[1] // SIDE))
    of_squares[0, :4] = range(4)  # all of them occur
    truth = of_squares.repeat(SIDE, axis=0).repeat(SIDE, axis=1).astype(np.uint8)
    image = np.array(list(COLOURS.values()), dtype=np.uint8)[truth]
    square = np.arange(of_squares.size).reshape(of_squares.shape).repeat(SIDE, axis=0).repeat(SIDE, axis=1)
    masks = [square == k for k in range(of_squares.size) if truth[square == k][0]] + [truth == 0]
    order = rng.permutation(len(masks))
    return image, truth, np.stack(masks)[order]


class ColourEncoder:
    """A word is its colour, a feature the mean colour of 3 x 3 pixels."""

    colours, side = COLOURS, 3

    def images(self, images):
        pixels = [torch.tensor(image).permute(2, 0, 1)[None].float() / 255 for image in images]
        return [F.avg_pool2d(image, self.side)[0] for image in pixels]

    def texts(self, phrases):
        return F.normalize(torch.tensor([self.colours[phrase] for phrase in phrases]).float(), dim=1)

    def class_embeddings(self, classes):
        return encoders.class_embeddings(self.texts, classes)


def segment_squares(images):
    """The true masks, recognised by the image."""
    known = {colour_squares(seed)[0].tobytes(): colour_squares(seed)[2] for seed in range(6)}
    return [Masks.from_dense(known[image.tobytes()]) for image in images]


@pytest.mark.parametrize("name", NAMES)
def test_contract(name):
    smoke = import_module(f"plg_utils.generators.{name}").SMOKE
    images = [colour_squares(seed)[0] for seed in range(2)]
    images[1] = np.ascontiguousarray(images[1].transpose(1, 0, 2))
    classes = Classes(CLASSES.names, ((), ("a house",), ("a tree",), ("a boat",)), CLASSES.colours)
    samples = [Sample(f"sample_{k}", lambda image=image: image) for k, image in enumerate(images)]
    pseudo_labels = generators.build(name, classes, **smoke)(samples)
    assert [each.label.shape for each in pseudo_labels] == [SIZE, SIZE[::-1]]
    for each in pseudo_labels:
        assert isinstance(each, PseudoLabel) and set(np.unique(each.label)) <= {0, 1, 2, 3, IGNORE}
        assert (each.label.dtype, each.confidence.dtype) == (np.uint8, np.float32)
        assert each.confidence.shape == each.label.shape
        assert 0 <= each.confidence.min() <= each.confidence.max() <= 1


@pytest.mark.parametrize("rule", ["cosine", "softmax"])
@pytest.mark.parametrize("overlap", ["score", "small_on_top", "predicted_iou", "vote"])
def test_colour_squares_are_named_without_a_fault(rule, overlap):
    images, truths, _ = zip(*map(colour_squares, range(6)), strict=True)
    options = {"threshold": 0.8, "rule": rule, "temperature": 0.1, "overlap": overlap}
    generate = generators.build("segment_match", CLASSES, masks=segment_squares, encoder=ColourEncoder(), **options)
    guesses = [each.label for each in generate(images)]
    np.testing.assert_array_equal(guesses, truths)


def test_the_steps_one_by_one_are_what_generate_does_for_images_together():
    images, _, _ = zip(*map(colour_squares, range(3)), strict=True)
    encoder = ColourEncoder()
    options = {"threshold": 0.7, "rule": "softmax", "temperature": 0.3, "overlap": "score"}
    segments, texts = segment_squares(images), encoder.class_embeddings(CLASSES)
    segments[1] = segments[1].take([])  # no mask at all
    embeddings = segment_match.segment_embeddings(encoder, images, segments)
    generate = generators.build("segment_match", CLASSES, masks=lambda _: segments, encoder=encoder, **options)
    for whole, of_image, embedding in zip(generate(images), segments, embeddings, strict=True):
        assert embedding.shape == (len(of_image), 3)
        step = segment_match.label_from_embeddings(of_image, embedding, *texts, background=0, **options)
        np.testing.assert_array_equal(step.label, whole.label)
        np.testing.assert_allclose(step.confidence, whole.confidence, atol=1e-6)


def test_patches_can_count_the_same_whatever_their_length():
    class Halves:
        def images(self, images):
            return [torch.tensor([[[3.0, 0.0]], [[4.0, 1.0]]]) for _ in images]  # (D, h, w) = (2, 1, 2)

    image = np.zeros((1, 2, 3), dtype=np.uint8)
    masks = [Masks.from_dense(np.ones((1, 1, 2), dtype=bool))]
    as_they_are = segment_match.segment_embeddings(Halves(), [image], masks)[0]
    alike = segment_match.segment_embeddings(Halves(), [image], masks, normalise_patches=True)[0]
    np.testing.assert_allclose(as_they_are, [[1.5, 2.5]])
    np.testing.assert_allclose(alike, [[0.3, 0.9]], rtol=1e-6)


def test_sure_labels_by_hand():
    """Two words of class 1, one of class 2, three alike of the background; a segment for each pixel but the last.

    A lead of 0.03 in cosine is a probability of e^3 / (e^3 + 1) = 0.95 against one class, a lead of 0.02 is 0.88.
    """
    texts, owner = torch.eye(5)[[0, 1, 2, 3, 3, 3]], torch.tensor([1, 1, 2, 0, 0, 0])
    cosines = torch.tensor([
        [0.60, 0.55, 0.00, 0.57],  # 0.95: the background counts once, and the other word of class 1 not at all
        [0.60, 0.00, 0.58, 0.00],  # 0.88
        [0.50, 0.00, 0.60, 0.00],  # sure of class 2
        [0.00, 0.00, 0.50, 0.60],  # sure of the background
        [0.48, 0.00, 0.47, 0.50],  # 0.84 for the background, against both classes
    ])  # fmt: skip
    segments = torch.cat([cosines, (1 - cosines.square().sum(dim=1, keepdim=True)).sqrt()], dim=1)
    masks = Masks.from_dense(np.eye(5, 6, dtype=bool)[:, None])
    label = np.array([[1, 1, 1, 0, 0, IGNORE]], dtype=np.uint8)
    for sure_from, expected in (
        (0.96, [IGNORE, IGNORE, IGNORE, 0, IGNORE, IGNORE]),
        (0.9, [1, IGNORE, IGNORE, 0, IGNORE, IGNORE]),
        (0.85, [1, 1, IGNORE, 0, IGNORE, IGNORE]),
        (0.83, [1, 1, IGNORE, 0, 0, IGNORE]),
    ):
        sure = segment_match.only_sure(label, masks, segments, texts, owner, sure_from, 0)
        assert sure.tolist() == [expected] and sure.dtype == np.uint8


def test_the_threshold_is_where_the_labelled_images_are_labelled_best():
    """Two images whose segments have cosines 0.9 and 0.6 with red; the second kind is background."""
    masks = Masks.from_dense(np.array([[[1, 1, 0, 0]], [[0, 0, 1, 0]]], dtype=bool))  # the last pixel is in no mask
    near, far = [0.9, (1 - 0.81) ** 0.5], [0.6, 0.8]
    truths = [np.array([[1, 1, 0, 0]], dtype=np.uint8)] * 2
    segments, red = [torch.tensor([near, far])] * 2, torch.tensor([[1.0, 0.0]])
    options = {"num_classes": 2, "background": 0}
    grid = [0.4, 0.5, 0.58, 0.65, 0.75, 0.85, 0.95]
    chosen = segment_match.choose_threshold(segments, [masks] * 2, truths, red, [1], grid, **options)
    low, high, none = (1 / 2 + 2 / 3) / 2, 1.0, (2 / 4 + 0) / 2
    np.testing.assert_allclose(chosen.mean_iou, [low] * 3 + [high] * 3 + [none])
    np.testing.assert_allclose(chosen.smoothed[2:5], [(3 * low + high) / 4, (low + 3 * high) / 4, high])
    assert chosen.threshold == 0.75
    np.testing.assert_array_equal(chosen.grid, grid)
