"""Pooling, assigning and painting: by hand, and against plain loops."""

import numpy as np
import pytest
import reference
import torch
import torch.nn.functional as F

from plg_utils import labels, run_lengths
from plg_utils.records import IGNORE, Masks

# pool


@pytest.mark.parametrize("chunk", [labels.CHUNK, 200])  # all masks at once, and few
@pytest.mark.parametrize("grid", [(1, 1), (2, 3), (5, 4), (16, 11)])
@pytest.mark.parametrize("size", [(1, 1), (4, 3), (7, 13), (21, 10)])
def test_pool_is_the_mean_of_the_upsampled_features(grid, size, chunk, monkeypatch):
    monkeypatch.setattr(labels, "CHUNK", chunk)
    rng = np.random.default_rng(0)
    features, masks = rng.normal(size=(3, *grid)), rng.random((4, *size)) < 0.4
    masks[0] = False
    masks[1] = True
    pooled = labels.pool(torch.tensor(features, dtype=torch.float32), masks, size)
    np.testing.assert_allclose(pooled, reference.pool(features, masks, size), atol=1e-5)
    upsampled = F.interpolate(torch.tensor(features)[None], size=size, mode="bilinear", align_corners=False)
    np.testing.assert_allclose(pooled[1], upsampled[0].mean(dim=(1, 2)), atol=1e-5)


# choose_threshold


@pytest.mark.parametrize(
    ("curve", "smooth", "best"),
    [
        ([0.50, 0.60, 0.61, 0.60, 0.40, 0.64, 0.40], True, 0.3),  # a lonely peak does not decide
        ([0.50, 0.60, 0.61, 0.60, 0.40, 0.64, 0.40], False, 0.6),
        ([0.1, 0.5, 0.5, 0.5, 0.5, 0.5, 0.1], True, 0.4),  # a flat peak is taken in its middle
    ],
)
def test_the_best_threshold(curve, smooth, best):
    grid, scores = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7], iter(curve)
    assert labels.choose_threshold(grid, lambda threshold: next(scores), smooth=smooth).threshold == best


# assign


def towards(*angles):
    """Vectors (M, 2) of length 3 at these angles in degrees."""
    return 3 * torch.tensor([[np.cos(np.radians(angle)), np.sin(np.radians(angle))] for angle in angles])


NEAR = np.cos(np.radians(10))


@pytest.mark.parametrize(
    ("segments", "texts", "options", "classes", "scores"),
    [
        ((10, 80, 180), (0, 90), {"owner": [1, 2], "threshold": 0.5}, [1, 2, 0], [NEAR, NEAR, 1]),
        ((60.1, 59.9), (0,), {"owner": [1], "threshold": 0.5}, [0, 1], [0.5, 0.5]),
        ((10, 180), (0, 90), {"background": None, "threshold": 0.9}, [0, 1], [NEAR, 0]),
        # A second word for the same thing does not take half of its class's probability.
        ((0,), (0, 0, 90, 180), {"owner": [1, 1, 2, 0], "rule": "softmax", "temperature": 1.0},
         [1], [np.e / (np.e + 1 + 1 / np.e)]),
    ],
    ids=["nearest class", "threshold", "no background", "softmax"],
)  # fmt: skip
def test_assign_by_hand(segments, texts, options, classes, scores):
    found = labels.assign(towards(*segments), towards(*texts), **options)
    assert found[0].tolist() == classes
    np.testing.assert_allclose(found[1], scores, atol=2e-3)


@pytest.mark.parametrize("rule", ["cosine", "softmax"])
@pytest.mark.parametrize("owner", [[3, 1, 1, 2], [3, 0, 1, 0, 2, -1], [0, 1, 2, 3]])
def test_assign_equals_plain_loops(rule, owner):
    rng = np.random.default_rng(1)
    segments, texts = rng.normal(size=(40, 5)), rng.normal(size=(len(owner), 5))
    options = {"background": 0, "threshold": 0.4 if rule == "cosine" else 0.6, "rule": rule, "temperature": 0.3}
    classes, scores = labels.assign(torch.tensor(segments), torch.tensor(texts), owner=owner, **options)
    expected_classes, expected_scores = reference.assign(segments, texts, owner, **options)
    assert classes.tolist() == expected_classes
    np.testing.assert_allclose(scores, expected_scores, atol=1e-5)
    assert 0 < expected_classes.count(0) < 40


def test_assign_of_an_empty_segment_of_none_and_of_what_does_not_fit():
    assert labels.assign(torch.zeros(1, 2), towards(0, 90), owner=[1, 2], threshold=0.1)[0].tolist() == [0]
    assert labels.assign(torch.zeros(0, 2), towards(0, 90), owner=[1, 2], threshold=0.1)[0].tolist() == []
    for options, says in (
        ({"owner": [1]}, r"owners \(1,\) are not"),
        ({"owner": [0, -1]}, "foreground"),
        ({"owner": [0, -1], "background": None}, "no background class"),
        ({"owner": [1, 2], "rule": "nearest"}, "no rule 'nearest', only cosine, softmax"),
    ):
        with pytest.raises(ValueError, match=says):
            labels.assign(towards(0), towards(0, 90), **options)


# paint


def row(*masks):
    """Masks (N, 1, W) from texts in which # is inside."""
    return np.array([[[character == "#" for character in mask]] for mask in masks])


def test_ways_to_settle_overlaps_by_hand():
    masks, classes, scores = row("####.", "..##.", "...##", "#..#."), [1, 2, 3, 1], [0.5, 0.4, 0.7, 0.4]
    highest = labels.paint(masks, classes, scores)
    assert highest.label.tolist() == [[1, 1, 1, 3, 3]]
    np.testing.assert_allclose(highest.confidence, [[0.5, 0.5, 0.5, 0.7, 0.7]])
    assert labels.paint(masks, classes, scores, overlap="small_on_top").label.tolist() == [[1, 1, 2, 3, 3]]
    better = labels.paint(masks, classes, scores, overlap="predicted_iou", predicted_iou=[0.5, 0.9, 0.8, 0.1])
    assert better.label.tolist() == [[1, 1, 2, 2, 3]]
    voted = labels.paint(masks, classes, scores, overlap="vote")
    assert voted.label.tolist() == [[1, 1, 1, 1, 3]]
    np.testing.assert_allclose(voted.confidence, [[0.45, 0.5, 0.25, 0.225, 0.7]], atol=1e-6)
    with pytest.raises(ValueError, match="predicted_iou of each mask"):
        labels.paint(masks, classes, scores, overlap="predicted_iou")
    with pytest.raises(ValueError, match="no overlap 'last', only score"):
        labels.paint(masks, classes, scores, overlap="last")
    with pytest.raises(ValueError, match="as many classes, scores"):
        labels.paint(masks, [1, 2], [0.5])


@pytest.mark.parametrize("chunk", [labels.CHUNK, 12])  # whole images, and strips of two columns
@pytest.mark.parametrize("background", [0, None])
@pytest.mark.parametrize("overlap", labels.OVERLAPS)
def test_paint_equals_plain_loops_in_any_order_of_the_masks(overlap, background, chunk, monkeypatch):
    monkeypatch.setattr(labels, "CHUNK", chunk)
    rng = np.random.default_rng(2)
    for trial in range(20):
        count = trial % 7
        masks = rng.random((count, 5, 4)) < 0.5
        classes = rng.integers(0, 4, count)
        # Few distinct values, so that there are ties.
        scores = rng.choice([0.1, 0.2, 0.3, 0.7, 1.2, -0.1], count).astype(np.float32)
        predicted_iou = rng.choice([0.5, 0.9], count)
        options = {"background": background, "overlap": overlap}
        guess = labels.paint(masks, classes, scores, predicted_iou=predicted_iou, **options)
        label, confidence = reference.paint(masks, classes, scores, predicted_iou=predicted_iou, **options)
        np.testing.assert_array_equal(guess.label, label)
        np.testing.assert_allclose(guess.confidence, confidence, atol=1e-6)
        assert (guess.label.dtype, guess.confidence.dtype) == (np.uint8, np.float32)
        if overlap == "vote":
            with pytest.raises(ValueError, match="a pixel belongs to no single mask"):
                labels.winners(masks, classes, scores, **options)
        else:
            won = labels.winners(masks, classes, scores, predicted_iou=predicted_iou, **options)
            np.testing.assert_array_equal(np.append(classes, IGNORE)[won], guess.label)
            np.testing.assert_allclose(np.append(scores.clip(0, 1), 0)[won], guess.confidence)
        order = rng.permutation(count)
        again = labels.paint(masks[order], classes[order], scores[order], predicted_iou=predicted_iou[order], **options)
        np.testing.assert_array_equal(again.label, guess.label)
        np.testing.assert_array_equal(again.confidence, guess.confidence)


@pytest.mark.parametrize("chunk", [labels.CHUNK, 100])  # an ordinary and a large photo
def test_records_are_pooled_and_painted_as_their_masks(chunk, monkeypatch):
    rng = np.random.default_rng(4)
    monkeypatch.setattr(labels, "CHUNK", chunk)
    for size, grid in (((30, 47), (5, 4)), ((13, 9), (20, 30)), ((1, 200), (1, 3)), ((16, 16), (4, 4))):
        dense = np.zeros((7, *size), dtype=bool)  # one is empty, one full
        dense[1] = True
        for mask in dense[2:]:
            (top, bottom), (left, right) = (np.sort(rng.integers(0, length + 1, 2)) for length in size)
            mask[top:bottom, left:right] = rng.random((bottom - top, right - left)) < 0.7
        features, masks = torch.randn(6, *grid), Masks.from_dense(dense)
        pooled, expected = labels.pool(features, masks, size), labels.pool(features, dense, size)
        torch.testing.assert_close(pooled, expected, atol=1e-5, rtol=1e-4)
        assert chunk == 100 or torch.equal(pooled, labels.pool(features, masks.dense(), size))  # to the bit
        given = rng.integers(0, 4, 7), rng.random(7).astype(np.float32)
        for overlap in labels.OVERLAPS:
            guess, same = (
                labels.paint(each, *given, overlap=overlap, predicted_iou=np.arange(7)) for each in (masks, dense)
            )
            np.testing.assert_array_equal(guess.label, same.label)
            np.testing.assert_array_equal(guess.confidence, same.confidence)
            assert guess.label.flags.c_contiguous
    for nothing in (np.zeros((0, 2, 3), dtype=bool), Masks.from_dense(np.zeros((0, 2, 3), dtype=bool))):
        assert labels.paint(nothing, [], []).label.tolist() == [[IGNORE] * 3] * 2
    assert labels.pool(features, Masks.from_dense(dense[:0]), size).shape == (0, 6)
    with pytest.raises(ValueError, match=r"\(H, W\) = \(16, 17\)"):
        labels.pool(features, masks, (16, 17))


def test_dense_masks_are_pooled_and_painted_as_they_are(monkeypatch):
    """Run lengths of them would take longer. Those on a GPU are pooled there, and copied to be painted."""
    on_gpu = torch.zeros(3, 7, 5, dtype=torch.bool, device="meta")  # it stands for a GPU: it has no numbers to look at
    pooled = labels.pool(torch.zeros(4, 3, 2, device="meta"), on_gpu, (7, 5))
    assert (pooled.device.type, pooled.shape) == ("meta", (3, 4))
    with pytest.raises(NotImplementedError, match="copy out of meta"):
        labels.paint(on_gpu, [1, 2, 3], [0.1, 0.2, 0.3])
    monkeypatch.setattr(Masks, "from_dense", None)
    monkeypatch.setattr(run_lengths, "crop", None)
    masks = torch.ones(1, 7, 5, dtype=torch.bool)
    torch.testing.assert_close(labels.pool(torch.ones(4, 3, 2), masks, (7, 5)), torch.ones(1, 4))
    assert (labels.paint(masks, [2], torch.tensor([0.5], requires_grad=True)).label == 2).all()
