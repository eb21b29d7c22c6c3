"""Few-shot labels: the classifier and its choice against plain loops, toys whose answer is known, and the stage."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_generators import CLASSES, ColourEncoder, colour_squares, segment_squares
from test_pipeline import do_stages, of_world, tiny

from plg_utils import encoders, files, generators, labels, metrics, stages
from plg_utils.encoders.noisy_words import NoisyWords
from plg_utils.generators import few_shot
from plg_utils.generators.few_shot import Labelled
from plg_utils.records import IGNORE, Classes, Masks, Sample

K, WIDTH = 4, 6
NULL = np.zeros((WIDTH + 1, K))
NOTHING = torch.empty(0, WIDTH), torch.empty(0, dtype=torch.int64)  # no words


@pytest.fixture
def results(tmp_path, monkeypatch):
    monkeypatch.setenv("PLG_RESULTS", str(tmp_path / "results"))
    return tmp_path / "results" / "tiny"


def scene(seed, count=5):
    """Masks that overlap, embeddings that tell a bit of the truth, and the truth with void, of an image."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, K, (4, 3)).repeat(3, axis=0).repeat(3, axis=1).astype(np.uint8)
    truth[0, :2] = IGNORE
    dense = np.zeros((count, *truth.shape), dtype=bool)
    for mask in dense:
        top, left = rng.integers(0, 8), rng.integers(0, 5)
        mask[top : top + rng.integers(2, 6), left : left + rng.integers(2, 5)] = True
    masks = Masks.from_dense(dense, rng.random(count))
    shown = np.eye(WIDTH)[[np.bincount(truth[mask], minlength=256)[:K].argmax() for mask in dense]]
    return masks, torch.tensor(shown + 0.7 * rng.normal(size=(count, WIDTH))).float(), truth


def labelled(*scenes):
    return Labelled(*zip(*scenes, strict=True)) if scenes else Labelled([], [], [])


def classes_of(background=0):
    names = ("background", "red", "green", "blue")
    return Classes(names, tuple((name,) for name in names), CLASSES.colours, background)


def words(seed=0):
    """Two words of the background, one of the others."""
    texts = torch.eye(WIDTH)[[0, 4, 1, 2, 3]] + 0.5 * torch.tensor(np.random.default_rng(seed).normal(size=(5, WIDTH)))
    return texts.float(), torch.tensor([0, 0, 1, 2, 3])


# What the code must equal, in plain loops


def majority(masks, truth, share):
    found = []
    for mask in masks.dense():
        known = [int(value) for value in truth[mask] if value != IGNORE]
        best = max(range(K), key=known.count)
        found.append(best if known and known.count(best) >= share * len(known) else -1)
    return found


def view(every, texts, owner, embeddings):
    texts = np.asarray(texts)
    unit = [row / np.linalg.norm(row) for row in every]
    mean = sum(unit) / len(unit)
    spread = sum(np.outer(row - mean, row - mean) for row in unit) / len(unit)
    spread = 0.5 * spread + 0.5 * np.eye(WIDTH) * np.trace(spread) / WIDTH
    values, vectors = np.linalg.eigh(spread)
    whiten = sum(np.outer(vectors[:, k], vectors[:, k]) / np.sqrt(values[k]) for k in range(WIDTH))
    of_words, features = np.zeros((len(embeddings), K)), []
    for index, row in enumerate(embeddings):
        row = row / np.linalg.norm(row)
        for k in range(K):
            own = [text @ row / np.linalg.norm(text) for text, of in zip(texts, owner, strict=True) if of == k]
            of_words[index, k] = max(own, default=0)
        white = whiten @ (row - mean)
        features.append([*(white / np.linalg.norm(white)), 1])
    return of_words, np.array(features)


def fitted(of_words, features, target, strength):
    """The scores' function, by a general least squares solver."""
    wanted = np.eye(K)[target]
    both = np.stack([of_words.ravel(), np.ones(of_words.size)], axis=1)
    slope, offset = np.linalg.lstsq(both, wanted.ravel(), rcond=None)[0]
    if slope < 0:
        slope, offset = 0, wanted.mean()
    rows = np.concatenate([features, np.sqrt(strength) * np.eye(WIDTH + 1)])
    left = np.concatenate([wanted - slope * of_words - offset, np.zeros((WIDTH + 1, K))])
    weights = np.linalg.lstsq(rows, left, rcond=None)[0]
    return lambda of_words, features: slope * of_words + offset + features @ weights


@pytest.mark.parametrize(("background", "sign"), [(0, 1), (None, 1), (0, -1)], ids=["", "no background", "words lie"])
def test_the_classifier_and_its_strength_equal_plain_loops(background, sign):
    """Scores differ by 2e-7 at most, because they are float32 in the end; mean IoU of each strength by nothing."""
    scenes, (texts, owner), others = [scene(seed) for seed in range(6)], words(), [scene(9)[1], scene(10)[1]]
    texts = sign * texts
    namer = few_shot.learn(labelled(*scenes), classes_of(background), texts, owner, others=others, share=0.6)

    embeddings = [each[1].double().numpy() for each in scenes]
    every = np.concatenate([*embeddings, *(each.double().numpy() for each in others)])
    seen = [view(every, texts.double().numpy(), owner.tolist(), each) for each in embeddings]
    target = [majority(masks, truth, 0.6) for masks, _, truth in scenes]
    assert -1 in sum(target, []) and set(sum(target, [])) == {-1, *range(K)}

    def learnt_from(images, strength):
        chosen = [(*pair, k) for i in images for *pair, k in zip(*seen[i], target[i], strict=True) if k >= 0]
        return fitted(*(np.array(part) for part in zip(*chosen, strict=True)), strength)

    curve = []
    for strength in few_shot.STRENGTHS:
        painted = []
        for out, (masks, _, _) in enumerate(scenes):
            scores = learnt_from([i for i in range(6) if i != out], strength)(*seen[out])
            named = scores.argmax(axis=1), scores.max(axis=1).clip(0, 1)
            painted.append(labels.paint(masks.dense(), *named, background=background).label)
        curve.append(metrics.mean_iou([truth for *_, truth in scenes], painted, K, background=background))
    np.testing.assert_allclose(namer.choice.mean_iou, curve, rtol=1e-12)
    assert len(set(curve)) > 1
    of_strength = dict(zip(few_shot.STRENGTHS, curve, strict=True))
    chosen = labels.choose_threshold(few_shot.STRENGTHS, of_strength.get, smooth=True)
    assert namer.choice.threshold == chosen.threshold
    assert namer.examples.tolist() == [sum(target, []).count(k) for k in range(K)]

    new = scene(11, 8)[1]
    of_new = view(every, texts.double().numpy(), owner.tolist(), new.double().numpy())
    cases = [(named, [i for i in range(6) if i != out], seen[out]) for out, named in enumerate(namer.left_out)]
    for (found, scores), images, looked_at in [*cases, (namer(new), range(6), of_new)]:
        expected = learnt_from(images, namer.choice.threshold)(*looked_at)
        np.testing.assert_array_equal(found, expected.argmax(axis=1))
        np.testing.assert_allclose(scores, expected.max(axis=1).clip(0, 1), atol=2e-7)


def test_what_the_examples_say_without_words_equals_plain_loops():
    """Each labelled image by the others' examples, others by all; an image's own truth changes nothing for it."""
    scenes, others = [scene(seed) for seed in range(5)], [scene(9)[1]]
    said, ask = few_shot.opinions(labelled(*scenes), K, others=others, share=0.6)
    every = np.concatenate([*(each[1].double().numpy() for each in scenes), others[0].double().numpy()])
    seen = [view(every, np.empty((0, WIDTH)), [], each[1].double().numpy()) for each in scenes]
    target = [majority(masks, truth, 0.6) for masks, _, truth in scenes]

    def learnt_from(images):
        chosen = [(*pair, k) for i in images for *pair, k in zip(*seen[i], target[i], strict=True) if k >= 0]
        of_words, features, found = (np.array(part) for part in zip(*chosen, strict=True))
        wanted = np.eye(K)[found]
        rows, left = np.concatenate([features, np.eye(WIDTH + 1)]), np.concatenate([wanted - wanted.mean(), NULL])
        return lambda features: wanted.mean() + features @ np.linalg.lstsq(rows, left, rcond=None)[0]

    for out, found in enumerate(said):
        np.testing.assert_allclose(found, learnt_from([i for i in range(5) if i != out])(seen[out][1]), atol=1e-10)
    new = scene(11)[1]
    features = view(every, np.empty((0, WIDTH)), [], new.double().numpy())[1]
    np.testing.assert_allclose(ask(new), learnt_from(range(5))(features), atol=1e-10)

    masks, embeddings, truth = scenes[2]
    edited = [*scenes[:2], (masks, embeddings, np.roll(truth, 3)), *scenes[3:]]
    again, _ = few_shot.opinions(labelled(*edited), K, others=others, share=0.6)
    assert torch.equal(again[2], said[2]) and not torch.equal(again[1], said[1])


def test_an_example_is_a_mask_that_mostly_shows_one_class():
    truth = np.array([[1, 1, 1, 2], [2, 2, IGNORE, IGNORE], [3, 3, 3, 3]], dtype=np.uint8)
    dense = np.zeros((5, 3, 4), dtype=bool)
    dense[0, 0] = True  # three quarters of 1
    dense[1, :2] = True  # three of 1, three of 2
    dense[2, 1, 2:] = True  # void
    dense[3, 1:, 2:] = True  # void and 3
    masks = Masks.from_dense(dense)  # the last is empty
    for share, expected in ((0.5, [1, 1, -1, 3, -1]), (0.51, [1, -1, -1, 3, -1]), (0.75, [1, -1, -1, 3, -1])):
        assert few_shot._majority(masks, truth, K, share).tolist() == expected
    assert few_shot._majority(masks, truth, K, 0.76).tolist() == [-1, -1, -1, 3, -1]


# Toys


class Swapped(ColourEncoder):
    """Red is called green, and green red."""

    colours = ColourEncoder.colours | {"red": (0, 255, 0), "green": (255, 0, 0)}


def labelled_squares(*seeds):
    drawn = [colour_squares(seed) for seed in seeds]
    return [Sample(str(k), lambda d=d: d[0], lambda d=d: d[1]) for k, d in enumerate(drawn)]


@pytest.mark.parametrize(
    ("encoder", "options"),
    [(ColourEncoder(), {}), (Swapped(), {"strength": 0.1}), (Swapped(), {"words_of": ["blue"]})],
    ids=["right words", "two words swapped", "two classes and the background without words"],
)
def test_colour_squares_are_named_by_words_and_examples(encoder, options):
    images, truths, _ = zip(*map(colour_squares, range(2, 6)), strict=True)
    parts = {"masks": segment_squares, "encoder": encoder}
    generate = generators.build("few_shot", CLASSES, examples=labelled_squares(0, 1), **parts, **options)
    np.testing.assert_array_equal([each.label for each in generate(images)], truths)
    if isinstance(encoder, Swapped):
        by_words = generators.build("segment_match", CLASSES, threshold=0.8, **parts)(images)
        assert not np.array_equal([each.label for each in by_words], truths)


def without(*names, seeds=range(3)):
    """Scenes whose truth does not show some classes."""
    gone = [classes_of().names.index(name) for name in names]
    return [(m, e, np.where(np.isin(t, gone), np.uint8(IGNORE), t)) for m, e, t in map(scene, seeds)]


def test_a_class_without_an_example_is_named_by_its_words():
    """Its truth is void, so no mask shows it; or no truth at all is known; an image without masks adds nothing."""
    known = labelled_squares(0, 1)
    blind = [replace(s, read_truth=lambda s=s: np.where(s.truth() == 3, np.uint8(IGNORE), s.truth())) for s in known]
    images, truths, _ = zip(*map(colour_squares, range(2, 6)), strict=True)
    generate = generators.build("few_shot", CLASSES, examples=blind, masks=segment_squares, encoder=ColourEncoder())
    np.testing.assert_array_equal([each.label for each in generate(images)], truths)

    texts, owner = words()
    void = [(m, e, np.full_like(t, IGNORE)) for m, e, t in [scene(0), scene(1), scene(2, 0)]]
    namer = few_shot.learn(labelled(*void), classes_of(), texts, owner)
    cosine = F.normalize(scene(5)[1], dim=1) @ F.normalize(texts, dim=1).T
    assert namer(scene(5)[1])[0].tolist() == owner[cosine.argmax(dim=1)].tolist()
    assert not namer.examples.any() and namer.choice.mean_iou.size == len(few_shot.STRENGTHS)


def test_equal_scores_give_the_lower_class_and_the_middle_strength():
    masks, embeddings, truth = scene(0)
    same = torch.eye(WIDTH)[[0] * 5]
    texts, owner = torch.eye(WIDTH)[[0] * K], torch.arange(K)
    namer = few_shot.learn(labelled((masks, same, np.full_like(truth, IGNORE))), classes_of(), texts, owner)
    found, scores = namer(same)
    assert found.tolist() == [0] * 5 and scores.isfinite().all()
    assert namer.choice.threshold == few_shot.STRENGTHS[len(few_shot.STRENGTHS) // 2]
    one = Classes(("sky",), (("sky",),), ((0, 0, 0),), None)
    for classes, texts_and_owner in ((classes_of(), (texts, owner)), (one, (texts[:1], owner[:1]))):
        known = labelled((masks, embeddings, np.zeros_like(truth)))  # one image, of one class
        found, scores = few_shot.learn(known, classes, *texts_and_owner)(same)
        assert found.tolist() == [0] * 5 and scores.isfinite().all()


@pytest.mark.parametrize(
    ("scenes", "texts", "options", "says"),
    [
        ([], words(), {}, "learn from labelled images, and there are none: label some"),
        (without("blue", "red"), NOTHING, {}, "neither words nor an example: red, blue. Give them words, or label"),
        (without("red"), words(), {"words_of": ["blue"]}, "neither words nor an example: red"),
        (without(), words(), {"words_of": ["blues"]}, "words_of has 'blues'; the classes are background, red"),
        (without(), words(), {"strength": 0}, "strength is 0; give a number above 0"),
        (without(), words(), {"share": 50}, "share is 50; give a part of a segment"),
        ([(without()[0][0], without()[0][1] * np.nan, without()[0][2])], words(), {}, "embeddings are not finite"),
    ],
    ids=["no labelled image", "nothing known", "its words not asked", "no such class", "no strength", "percent", "nan"],
)
def test_what_cannot_be_learnt_is_refused_in_a_line(scenes, texts, options, says):
    with pytest.raises(ValueError, match=says):
        few_shot.learn(labelled(*scenes), classes_of(), *texts, **options)


# The stage, and words that are spoiled


def test_the_stage_is_made_again_for_another_truth_and_has_a_row(world, results):
    parameters = tiny(["02"], **of_world(world, few_shot={"share": 0.3}))
    here = do_stages(parameters)
    assert len(list((results / "labels_few_shot").glob("*.png"))) == 4
    manifest = files.read_json(results / "labels_few_shot" / "manifest.json")
    assert manifest["parameters"]["share"] == 0.3 and manifest["learns_from"] == ["labelled"]
    titles = [row.title for row in stages.rows_of(here.folder, "segment_match").values()]
    assert titles[:2] == ["zero-shot labels", "few-shot labels"]
    assert [row.title for row in stages.rows_of(here.folder, "few_shot").values()][0] == "few-shot labels"
    clip = {name: parameters[name] for name in ("encoder", "encoder_options", "overlap")}
    first = here.data.labelled[0]
    other = replace(first, read_truth=lambda: np.zeros_like(first.truth()), read_truth_content=None)
    edited = replace(here, data=replace(here.data, labelled=(other, *here.data.labelled[1:])))
    stages.few_shot_labels(edited, **clip, few_shot={"share": 0.3})
    assert files.read_json(results / "labels_few_shot" / "manifest.json")["fingerprint"] != manifest["fingerprint"]
    with pytest.raises(ValueError, match="there are none"):
        stages.few_shot_labels(replace(here, data=replace(here.data, labelled=())), **clip, few_shot={})


def test_spoiled_words_lie_as_far_away_as_they_should():
    """A word of length 1 with noise of length n at a right angle keeps the cosine 1 / sqrt(1 + n^2), in the mean."""
    plain = encoders.build("clip", checkpoint=None)
    texts, owner = plain.class_embeddings(classes_of())
    found = [NoisyWords(plain, 2.0, seed).class_embeddings(classes_of())[0] for seed in range(50)]
    cosines = torch.stack([(each * texts).sum(dim=1) for each in found])
    assert cosines.mean().item() == pytest.approx(5**-0.5, abs=0.02)
    again = encoders.build("noisy_words", checkpoint=None, word_noise=0).class_embeddings(classes_of())
    torch.testing.assert_close(again, (texts, owner))
    with pytest.raises(ValueError, match="word_noise is -1"):
        encoders.build("noisy_words", checkpoint=None, word_noise=-1)
