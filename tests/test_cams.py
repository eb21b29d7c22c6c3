"""Cue maps: the contract of every source, what a folder of maps must hold, and what sources with scores share."""

from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import reference_cams as reference

from plg_utils import cams, files
from plg_utils.records import IGNORE, Sample, TruthHidden

FILES = sorted(path.stem for path in Path(cams.__file__).parent.glob("[a-z]*.py"))


@pytest.fixture
def folder(tmp_path, squares):
    """A folder with the truth of the squares as the map of three samples."""
    for id in "abc":
        files.write_label(tmp_path / "maps" / f"{id}.png", squares.truth)
    return tmp_path / "maps", [Sample(id, lambda: squares.image) for id in "abc"]


@pytest.mark.parametrize("name", FILES)
def test_contract(name, folder, squares):
    root, samples = folder
    smoke = import_module(f"plg_utils.cams.{name}").SMOKE
    options = smoke | ({"root": root} if name == "folder" else {})
    labels = cams.build(name, squares.classes, **options)(samples)
    assert [(label.dtype, label.shape) for label in labels] == [(np.uint8, squares.truth.shape)] * len(samples)
    assert set(np.unique(labels)) <= {0, 1, 2, 3, IGNORE}


def test_maps_are_found_by_id_in_the_order_of_the_samples(folder, squares):
    root, samples = folder
    flipped = squares.truth[:, ::-1].copy()
    flipped[0] = IGNORE
    files.write_label(root / "b.png", flipped)
    files.write_label(root / "nobodys.png", squares.truth[:3])
    read = cams.build("folder", squares.classes, root=str(root))
    first, second = read([samples[1], samples[0]])
    np.testing.assert_array_equal(first, flipped)
    np.testing.assert_array_equal(second, squares.truth)
    assert read([]) == []


def test_missing_maps_are_counted_and_named_before_any_is_read(folder, squares):
    root, samples = folder
    (root / "a.png").write_bytes(b"broken, and not looked at")
    others = [Sample(id, lambda: squares.image) for id in ("d", "e", "f", "g")]
    read = cams.build("folder", squares.classes, root=root)
    with pytest.raises(FileNotFoundError, match=r"lacks the cue map of 3 of 6 images: d\.png, e\.png, f\.png$"):
        read([*samples, *others[:3]])
    with pytest.raises(FileNotFoundError, match=r"of 4 of 7 images: d\.png, e\.png, f\.png, \.\.\.$"):
        read([*samples, *others])


def test_maps_that_do_not_fit_are_refused(folder, squares):
    """More of these are in test_bad_inputs."""
    root, samples = folder
    read = cams.build("folder", squares.classes, root=root)

    files.write_image(root / "a.png", squares.image)
    with pytest.raises(ValueError, match=r"a\.png holds uint8 \(16, 24, 3\), not a uint8 \(H, W\) label map"):
        read(samples)
    with pytest.raises(FileNotFoundError, match="nowhere is not a folder: root must be"):
        cams.build("folder", squares.classes, root=root / "nowhere")


# What sources with scores share


def random_cams(rng, size=(4, 5)):
    """CAMs of 0 to 3 classes in steps of a quarter, so that scores are equal to each other and to thresholds."""
    tags = tuple(sorted(rng.choice([1, 2, 3], size=int(rng.integers(0, 4)), replace=False).tolist()))
    return cams.Cams(tags, (rng.integers(0, 5, (len(tags), *size)) / 4).astype(np.float32))


def test_labels_of_cams_equal_the_loop():
    rng = np.random.default_rng(0)
    for _ in range(100):
        each = random_cams(rng)
        for threshold in (0.0, 0.25, 0.6, 1.0):
            label = cams.label_from_cams(each.maps, each.tags, threshold)
            assert label.dtype == np.uint8
            np.testing.assert_array_equal(label, reference.label(each.maps, each.tags, threshold))
    # By hand: a score at the threshold is background, and the first of equal classes counts.
    maps = np.array([[[0.2, 0.5, 0.3, 0.9]], [[0.1, 0.5, 0.4, 0.2]]], dtype=np.float32)
    np.testing.assert_array_equal(cams.label_from_cams(maps, (3, 7), 0.3), [[0, 3, 7, 3]])
    np.testing.assert_array_equal(cams.label_from_cams(maps, (3, 7), 0.5, background=9), [[9, 9, 9, 3]])


def test_a_scored_cue_labels_by_its_threshold():
    made, scores = random_cams(np.random.default_rng(1)), list
    (label,) = cams.ScoredCue(scores, threshold=0.25, background=0)([made])
    np.testing.assert_array_equal(label, reference.label(made.maps, made.tags, 0.25))
    with pytest.raises(ValueError, match="these classes have none"):
        cams.ScoredCue(scores, threshold=0.25, background=None)
    with pytest.raises(ValueError, match="threshold of the CAMs is 50; give a number from 0 to 1"):
        cams.ScoredCue(scores, threshold=50, background=0)


def test_few_images_have_their_scores_in_memory_at_once(monkeypatch):
    monkeypatch.setattr(cams, "TOGETHER", 3)
    made, counts = [random_cams(np.random.default_rng(k)) for k in range(7)], []
    cue = cams.ScoredCue(lambda part: counts.append(len(part)) or part, threshold=0.25, background=0)
    for label, each in zip(cue(made), made, strict=True):
        np.testing.assert_array_equal(label, reference.label(each.maps, each.tags, 0.25))
    assert counts == [3, 3, 1] and cue([]) == []


def test_the_threshold_that_fits_best_is_chosen_in_the_middle_of_equal_ones():
    maps = np.array([[[0.1, 0.3, 0.7, 0.9]]], dtype=np.float32)
    two = [cams.Cams((2,), maps), cams.Cams((), maps[:0])]
    truths = [np.array([[0, 0, 2, 2]], dtype=np.uint8), np.zeros((1, 4), dtype=np.uint8)]
    choice = cams.choose_threshold(two, truths, [0.0, 0.2, 0.4, 0.5, 0.6, 0.8], num_classes=3)
    by_hand = [(4 / 6 + 2 / 4) / 2, (5 / 6 + 2 / 3) / 2, 1, 1, 1, (6 / 7 + 1 / 2) / 2]  # of background and class 2
    np.testing.assert_allclose(choice.mean_iou, by_hand)
    assert choice.threshold == 0.5 and (choice.smoothed == choice.mean_iou).all()
    np.testing.assert_array_equal(choice.grid, [0.0, 0.2, 0.4, 0.5, 0.6, 0.8])


def test_who_says_which_classes_are_there(squares):
    tagged = [Sample("a", None, None, lambda: (2,)), Sample("b", None, None, lambda: ())]
    assert cams.tagger("given", squares.classes)(tagged) == [(2,), ()]
    assert cams.tagger("all", squares.classes)([*tagged, squares.image]) == [(1, 2, 3)] * 3
    (first, second) = cams.tagger(lambda samples: [[3, 1, 3], np.array([2])], squares.classes)(tagged)
    assert (first, second) == ((1, 3), (2,)) and type(second[0]) is int


def test_tags_that_are_closed_or_wrong_are_refused(squares):
    with pytest.raises(TruthHidden, match="the tags of a do not exist, or this stage may not see them"):
        cams.tagger("given", squares.classes)([Sample("a", None, lambda: squares.truth)])

    with pytest.raises(ValueError, match="tags is 'none'; right are"):
        cams.tagger("none", squares.classes)
    with pytest.raises(ValueError, match=r"\[0, 4\] are no foreground classes; those are \[1, 2, 3\]"):
        cams.tagger(lambda samples: [(1,), (0, 2, 4)], squares.classes)([None, None])
    with pytest.raises(ValueError, match="2 images need as many lists of classes"):
        cams.tagger(lambda samples: [(1,)], squares.classes)([None, None])
