"""Trust without truth: every number by hand on maps of a few pixels."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from plg_utils import trust
from plg_utils.records import IGNORE, Masks

A = np.array([[1, 1, 0, 0]], np.uint8)
B = np.array([[1, 0, 0, 2]], np.uint8)
C = np.array([[1, 1, IGNORE, 2]], np.uint8)


def test_agreement_by_hand():
    # A and B: background 1 of 3, class 1 1 of 2, class 2 0 of 1; A and C: 1 of 2, 2 of 2, 0 of 1; B and C: 1/2, 1/2, 1
    expected = [[1, 5 / 18, 1 / 2], [5 / 18, 1, 2 / 3], [1 / 2, 2 / 3, 1]]
    pairs = trust.agreement([A, B, C], 3)
    np.testing.assert_allclose(pairs, expected)
    np.testing.assert_allclose(trust.support(pairs), [7 / 18, 17 / 36, 7 / 12])
    np.testing.assert_allclose(trust.agreement([A, A], 5), 1)  # classes that occur in neither do not count


def test_votes_are_weighed():
    np.testing.assert_array_equal(trust.vote([A, B, C], [1, 1, 1], 3).label, [[1, 1, 0, 2]])
    alone = trust.vote([A, B, C], [5, 1, 1], 3)
    np.testing.assert_array_equal(alone.label, [[1, 1, 0, 0]])
    np.testing.assert_allclose(alone.confidence, [[1, 6 / 7, 1, 5 / 7]], atol=1e-6)
    tie = trust.vote([np.full((1, 1), 2, np.uint8), np.full((1, 1), 1, np.uint8)], [0.3, 0.3], 3)
    assert tie.label[0, 0] == 1
    np.testing.assert_array_equal(trust.vote([A, B, C], [0, 0, 0], 3).label, [[1, 1, 0, 2]])  # all weigh the same


def test_margins_by_hand():
    texts = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0.6, 0.8, 0], [0, 0, 1]])
    owner = torch.tensor([1, 2, 2, 0])
    segments = torch.tensor([[2.0, 0, 0], [0, 3, 0], [0, 0, 1]])
    # the first: class 1 at 1, class 2 at .6; the second: class 2 at 1, class 1 at 0; the third: 0 and background at 1
    np.testing.assert_allclose(trust.margins(segments, texts, owner), [0.4, 1.0, -1.0], atol=1e-6)
    with pytest.raises(ValueError, match="compares two classes"):
        trust.margins(segments, texts[:1], owner[:1])


def test_few_shot_margins_by_hand():
    of_words, features = torch.tensor([[0.2, 0.4, 0.1], [0.5, 0.5, 0.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    namer = SimpleNamespace(seen=lambda embeddings: (of_words, features), slope=2.0, offset=0.1)
    namer.weights = torch.tensor([[0.0, -0.1, 0.5], [0.3, 0.0, 0.0]])
    # 2 w + 0.1 + f V: the first 0.5, 0.8, 0.8; the second 1.4, 1.1, 0.1
    np.testing.assert_allclose(trust.few_shot_margins(namer, None), [0.0, 0.3], atol=1e-6)
    namer.seen, namer.weights = lambda embeddings: (of_words[:, :1], features), namer.weights[:, :1]
    with pytest.raises(ValueError, match="compares two classes, and there is one"):
        trust.few_shot_margins(namer, None)


def test_only_things_are_asked():
    masks = Masks.from_dense(np.array([[[1, 1, 0, 0]], [[0, 1, 1, 1]], [[0, 0, 1, 1]]], bool))
    values = np.array([1.0, 0.4, np.nan])
    assert trust.mean_over_things(values, masks, A) == pytest.approx((2 * 1 + 1 * 0.4) / 3)
    assert trust.mean_over_things(values, masks, np.array([[1, 1, 0, 2]])) == pytest.approx((2 * 1 + 2 * 0.4) / 4)
    assert trust.mean_over_things(values, masks, np.zeros((1, 4), np.uint8)) == 0
    assert trust.mean_over_things(values, masks, np.full((1, 4), IGNORE, np.uint8)) == 0


def test_ranks_and_their_correlation():
    np.testing.assert_array_equal(trust.ranks([3.0, 1.0, 3.0, 2.0]), [2.5, 0, 2.5, 1])
    np.testing.assert_allclose(trust.combine({"a": [1, 2, 3], "b": [30, 10, 20]}), [0.5, 0.25, 0.75])
    assert trust.spearman([1, 2, 3, 4], [10, 20, 25, 1000]) == pytest.approx(1)
    assert trust.spearman([1, 2, 3, 4], [4, 3, 2, 1]) == pytest.approx(-1)
    assert trust.spearman([1, 2, 3, 4, 5], [2, 1, 4, 3, 5]) == pytest.approx(0.8)  # 1 - 6 * 4 / (5 * 24)
    assert np.isnan(trust.spearman([1, 1, 1], [1, 2, 3]))
    with pytest.raises(ValueError, match="1 of 2 values are nan"):
        trust.ranks([1, np.nan])


def test_maps_of_other_sizes_are_refused():
    with pytest.raises(ValueError, match="same shape"):
        trust.agreement([A, A.T], 3)
