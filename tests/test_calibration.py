"""The filter of names: its regression and its promise against plain loops and chance, and the stage."""

import math
from dataclasses import replace
from fractions import Fraction
from itertools import product

import numpy as np
import pytest
import torch
from test_pipeline import do_stages, of_world, tiny

from plg_utils import calibration, files, labels, stages
from plg_utils.generators import segment_match
from plg_utils.records import IGNORE, Masks


@pytest.fixture
def results(tmp_path, monkeypatch):
    monkeypatch.setenv("PLG_RESULTS", str(tmp_path / "results"))
    return tmp_path / "results" / "tiny"


def names(count=60, seed=0, num_classes=3):
    """Signals (M, 2), classes, right and image of names that are right more often where the first signal is high."""
    rng = np.random.default_rng(seed)
    signals, classes = rng.normal(size=(count, 2)) * [3, 1e-3] + [5, 1], rng.integers(0, num_classes, count)
    right = (rng.random(count) < 1 / (1 + np.exp(5 - signals[:, 0] - classes))).astype(float)
    return signals, classes, right, np.arange(count) // 6, num_classes


# Signals and what is right, counted by hand


def test_signals_and_right_names_of_three_segments():
    won = np.array([[0, 0, 0, 1], [0, 1, 1, 1], [-1, -1, -1, -1]])  # the third segment wins nothing
    truth = np.array([[1, 1, 2, 2], [IGNORE, 2, 0, IGNORE], [1, 1, 1, 1]], dtype=np.uint8)
    masks = Masks.from_dense(np.zeros((3, 3, 4), dtype=bool), np.array([0.9, 0.8, 0.7]))
    classes = np.array([1, 0, 2])
    assert calibration.rightness(classes, won, truth)[:2].tolist() == [1, 0]  # two of three; one of three
    assert np.isnan(calibration.rightness(classes, won, truth)[2])
    half = calibration.rightness(np.array([1, 2, 2]), won, np.where(truth == 2, 1, truth).astype(np.uint8))
    assert half[:2].tolist() == [1, 0]
    assert calibration.rightness(np.array([0]), np.array([[0, 0]]), np.array([[0, 1]], np.uint8)) == 1  # a half
    opinion = np.array([[0.1, 0.7, 0.2], [0.5, 0.25, 0.25], [0.3, 0.4, 0.2]])
    found = calibration.signals(masks, classes, np.array([0.3, 0.6, 0.2]), opinion, won)
    np.testing.assert_allclose(found[:, [0, 1, 4, 5]].T, [
        [0.3, 0.6, 0.2], [0.9, 0.8, 0.7], [0.7, 0.5, 0.2], [0.5, 0.25, -0.2],
    ], rtol=1e-6)  # fmt: skip
    np.testing.assert_allclose(np.exp(found[:2, 3]), [4 / 12, 4 / 12], rtol=1e-4)


# Against plain loops and by hand


def test_the_regression_is_where_its_penalised_likelihood_is_highest():
    """Each of its weights, moved a little, makes the likelihood that plain loops count smaller."""
    signals, classes, right, image, num_classes = names()
    found = calibration.calibrate(signals, classes, right, image, num_classes)
    scaled = (signals - signals.mean(axis=0)) / signals.std(axis=0)
    rows = [[1.0, *of, *(float(k == c) for k in range(num_classes))] for of, c in zip(scaled, classes, strict=True)]

    def likelihood(weights):
        total = -sum(w * w for w in weights[1:]) / 2 - 1e-3 * weights[0] ** 2 / 2
        for row, hit in zip(rows, right, strict=True):
            score = sum(w * value for w, value in zip(weights, row, strict=True))
            total -= math.log1p(math.exp(-score if hit else score))
        return total

    weights = calibration._logistic_regression(np.array(rows), right == 1)
    best = likelihood(weights)
    for index, step in product(range(len(weights)), (-1e-3, 1e-3)):
        moved = weights.copy()
        moved[index] += step
        assert likelihood(moved) < best
    np.testing.assert_allclose(
        found.probability(signals, classes), [1 / (1 + math.exp(-sum(weights * row))) for row in rows], rtol=1e-9
    )


def test_a_labelled_image_is_judged_by_the_others():
    """With another truth its own names keep their probability, and those of other images do not."""
    signals, classes, right, image, num_classes = names()
    before = calibration.calibrate(signals, classes, right, image, num_classes)
    flipped = np.where(image == 3, 1 - right, right)
    after = calibration.calibrate(signals, classes, flipped, image, num_classes)
    own = image == 3
    np.testing.assert_array_equal(before.likely[own], after.likely[own])
    assert (before.likely[~own] != after.likely[~own]).all()


def test_the_tail_of_small_counts_is_the_sum_of_binomial_terms():
    for count, share in product((1, 7, 40, 300), (0.01, 0.5, 0.8, 0.99)):
        for hits in range(0, count + 2, 1 + count // 7):
            terms = [math.comb(count, k) * share**k * (1 - share) ** (count - k) for k in range(hits, count + 1)]
            assert calibration.tail(count, hits, share) == pytest.approx(sum(terms), rel=1e-11)


@pytest.mark.parametrize("count", [1000, 1500, 5000])
def test_the_tail_of_a_real_data_set_s_names(count):
    """VOC's 92 labelled images have some 5,500. Exact fractions of whole numbers: share is 4/5."""
    hits, total = 4 * count // 5, 0
    for k in range(hits, count + 1):
        total += math.comb(count, k) * 4**k
    assert calibration.tail(count, hits, 0.8) == pytest.approx(float(Fraction(total, 5**count)), rel=1e-9)
    assert calibration.tail(count, 0, 0.8) == pytest.approx(1) and 0 <= calibration.tail(count, count, 0.8) < 1e-90


def test_many_names_are_calibrated():
    signals, classes, right, image, num_classes = names(5000)
    found = calibration.calibrate(signals, classes, right, image // 100, num_classes, precision=0.6)
    kept = found.keeps(found.likely)
    assert kept.sum() > 1400 and found.right[kept].mean() > 0.6


def test_the_threshold_is_where_the_first_set_fails():
    """Twenty names, so each level adds one: the first twelve are right, then every second one is wrong."""
    likely = np.linspace(0.95, 0.0, 20)
    right = np.array([True] * 12 + [False, True] * 4)
    tails = {n: calibration.tail(n, int(right[:n].sum()), 0.7) for n in range(5, 21)}
    assert tails[6] > 0.1 > max(tails[n] for n in range(7, 15))  # six right names of six are too few for a promise
    assert tails[15] > 0.1 > tails[16]  # a larger set would pass again, but the test has stopped
    assert (likely >= calibration._threshold(likely, right, 0.7, 0.9)).sum() == 14
    assert calibration._threshold(likely, ~right, 0.7, 0.9) is None
    assert calibration._threshold(likely, np.ones(20, bool), 0.7, 0.9) == 0.0  # all may be kept
    assert calibration._threshold(likely[:6], right[:6], 0.7, 0.9) is None


@pytest.mark.parametrize(("precision", "confidence"), [(0.8, 0.9), (0.7, 0.8)])
def test_the_promise_holds_as_often_as_it_says(precision, confidence):
    """Names as likely right as their probability says, which has the density 2p: above t, 2/3 (1 - t^3) / (1 - t^2)."""
    rng, broken, kept = np.random.default_rng(0), 0, 0
    for _ in range(400):
        likely = np.sqrt(rng.random(91))
        found = calibration._threshold(likely, rng.random(91) < likely, precision, confidence)
        broken += found is not None and 2 / 3 * (1 - found**3) / (1 - found**2) < precision
        kept += found is not None
    assert broken / 400 <= 1 - confidence + 0.02
    assert broken > 4 and kept > 200  # it promises as much as it can


# Little or nothing to learn from


def test_names_that_all_look_the_same():
    signals, classes, right, image, num_classes = names()
    same = np.ones_like(signals)
    found = calibration.calibrate(same, np.zeros_like(classes), right, image, 1)
    assert np.ptp(found.probability(same, np.zeros_like(classes))) == 0
    every = calibration.calibrate(same, classes, np.ones_like(right), image, num_classes, precision=0.9)
    assert every.keeps(every.likely).all()
    one_image = calibration.calibrate(signals, classes, right, np.zeros_like(image), num_classes)
    np.testing.assert_allclose(one_image.likely, 0.5)  # no other image to judge it by
    unknown = calibration.calibrate(signals, classes, np.where(image < 5, right, np.nan), image, num_classes)
    assert len(unknown.likely) == (image < 5).sum()


@pytest.mark.parametrize(
    ("right", "options", "says"),
    [
        (np.nan, {}, "nothing to learn from: no mask of a labelled image lies on pixels with a known class"),
        (1.0, {"precision": 80}, "precision of the filter is 80; give a share between 0 and 1"),
        (1.0, {"confidence": 1.0}, "confidence of the filter is 1.0; give a share"),
        (1.0, {"precision": "0.8"}, "precision of the filter is '0.8'"),
    ],
)
def test_what_cannot_be_calibrated_is_refused_in_a_line(right, options, says):
    signals, classes, _, image, num_classes = names()
    with pytest.raises(ValueError, match=says):
        calibration.calibrate(signals, classes, np.full(len(image), right), image, num_classes, **options)


# The stage


def test_the_stage_leaves_out_whole_segments_and_nothing_else(world, results):
    """The truth of unlabelled images is closed here, as in every run: reading it would raise."""
    promise, few_shot, source = {"precision": 0.3, "confidence": 0.6}, None, "labels_zero_shot"
    parameters = tiny(["02"], **of_world(world, few_shot=few_shot, label_filter=promise, spoiled=0.4))
    here = do_stages(parameters)
    manifest = files.read_json(results / "labels_filtered" / "manifest.json")
    assert manifest["parameters"]["of"] == source and manifest["learns_from"] == ["labelled"]
    gone = 0
    for sample in here.data.unlabelled:
        before, after = here.label_of(source, sample), here.label_of("labels_filtered", sample)
        lost = (after == IGNORE) & (before != IGNORE)
        np.testing.assert_array_equal(after[~lost], before[~lost])
        gone += lost.sum()
    assert gone
    assert next(iter(stages.rows_of(here.folder, "filtered").values())).title == "filtered labels"

    clip = {name: parameters[name] for name in ("encoder", "encoder_options", "overlap")}
    arguments = clip | {"few_shot": few_shot, "label_filter": promise}
    first = here.data.labelled[0]
    other = replace(first, read_truth=lambda: np.zeros_like(first.truth()), read_truth_content=None)
    edited = replace(here, data=replace(here.data, labelled=(other, *here.data.labelled[1:])))
    stages.filtered_labels(edited, **arguments)
    assert files.read_json(results / "labels_filtered" / "manifest.json")["fingerprint"] != manifest["fingerprint"]
    with pytest.warns(UserWarning, match="keeps no name, so no pixel has a label: by .* names of 2 labelled images"):
        stages.filtered_labels(here, **arguments | {"label_filter": {"precision": 0.999}})
    assert {int(here.label_of("labels_filtered", sample).min()) for sample in here.images} == {IGNORE}
    assert files.read_json(results / "labels_filtered" / "manifest.json")["parameters"]["threshold"] is None
    with pytest.raises(ValueError, match="calibrated on labelled images, and there are none"):
        stages.filtered_labels(replace(here, data=replace(here.data, labelled=())), **arguments)
    with pytest.raises(ValueError, match='overlap "vote" a pixel belongs to no single mask'):
        stages.filtered_labels(here, **arguments | {"overlap": "vote"})


def test_few_shot_names_are_judged_as_they_were_without_the_truth_of_their_image(world, results):
    """Else they would look better on the labelled images, whose examples they have learnt, than on any other."""
    strong = {"strength": 0.01}  # the examples decide
    models = {"mask_options": {"checkpoint": "miniature_sam"}, "encoder_options": {"checkpoint": "miniature_clip"}}
    parameters = tiny(["02"], **of_world(world, few_shot=strong, label_filter={}, **models))
    parameters["dataset_options"]["classes"] = str(files.ROOT / "results" / "few_shot" / "swapped.yaml")  # wrong words
    here = do_stages(parameters)
    clip = {name: parameters[name] for name in ("encoder", "encoder_options", "overlap")}
    namer = stages.few_shot_labels(here, **clip, few_shot=strong).name
    found, learnt, expected = stages.filtered_labels(here, **clip, few_shot=strong, label_filter={}).found, [], []
    for sample, left_out in zip(here.data.labelled, namer.left_out, strict=True):
        masks, own = here.masks_of(sample), namer(here.embeddings_of(sample))
        for names, right in ((left_out, expected), (own, learnt)):
            won = labels.winners(masks, *names, overlap=parameters["overlap"], predicted_iou=masks.predicted_iou)
            right.extend(calibration.rightness(names[0].numpy(), won, sample.truth()))
    assert found.right.tolist() == [bool(each) for each in expected if np.isfinite(each)]
    assert np.nansum(learnt) > np.nansum(expected)


def test_spoiled_names():
    """The share is as said, every wrong class is as likely, the score stays, and the draw is the same again."""
    embeddings = torch.randn(4000, 3, generator=torch.Generator().manual_seed(0))
    named = torch.full((4000,), 2), torch.rand(4000)
    classes, scores = segment_match.spoiled(embeddings, named, 0.3, 5)
    assert torch.equal(scores, named[1]) and abs((classes != 2).float().mean() - 0.3) < 0.03
    counts = np.bincount(classes[classes != 2], minlength=5)
    assert counts[2] == 0 and (abs(counts[[0, 1, 3, 4]] / counts.sum() - 0.25) < 0.05).all()
    assert torch.equal(segment_match.spoiled(embeddings[100:], tuple(n[100:] for n in named), 0.3, 5)[0], classes[100:])
    assert torch.equal(segment_match.spoiled(embeddings, named, 0.0, 5)[0], named[0])
    assert (segment_match.spoiled(embeddings, named, 1.0, 5)[0] != 2).all()
    with pytest.raises(ValueError, match="spoiled is 50; give a share of the names"):
        segment_match.spoiled(embeddings, named, 50, 5)
