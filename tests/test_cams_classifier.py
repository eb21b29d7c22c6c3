"""CAMs of a classifier: against plain loops, what the training reads and how it goes on, and what is refused."""

import allowed
import numpy as np
import pytest
import reference_cams as reference
import torch
from safetensors.torch import save_file
from test_masks import random_images

from plg_utils import cams, distributed, training
from plg_utils.cams import classifier
from plg_utils.records import Classes, Sample, TruthHidden

CLASSES = Classes(("none", "red", "green", "blue"), ((),) * 4, ((0, 0, 0), (255, 0, 0), (0, 255, 0), (0, 0, 255)))
OPTIONS = {"steps": 6, "batch_size": 3, "crop_size": 8, "lr": 0.05, "log_every": 2, "progress": None}


@pytest.fixture
def tiny(monkeypatch):
    """In place of every network: cells of 4 x 4 pixels."""

    def network(classes, *, seed=0, **options):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return classifier.Classifier(reference.Cells(), classes.foreground)

    monkeypatch.setattr(classifier, "network", network)
    return network


def hidden():
    raise AssertionError("the truth was read")


def scenes(count, side=16):
    """Dark images with one or two flat-coloured squares; their tags are open, their truth is not."""
    samples = []
    for number in range(count):
        rng = np.random.default_rng(number)
        label = np.zeros((side, side), np.uint8)
        for index in rng.choice([1, 2, 3], size=int(rng.integers(1, 3)), replace=False):
            top, left = 4 * rng.integers(0, side // 4 - 1, 2)
            label[top : top + 8, left : left + 8] = index
        image = np.array(CLASSES.colours, np.uint8)[label]
        tags = tuple(np.unique(label[label > 0]).tolist())
        samples.append(Sample(f"{number}", lambda image=image: image, hidden, lambda tags=tags: tags))
    return samples


def colour_label(sample):
    """The label map of a scene, seen from the image."""
    return (np.argmax(sample.image(), axis=2) + 1) * (sample.image().max(axis=2) > 0)


# CAMs


@pytest.mark.parametrize("scales", [(1.0,), (0.5,), (1.0, 0.5, 1.5)])
def test_cams_equal_the_loop(tiny, scales):
    model = tiny(CLASSES).eval()
    images, tags = np.stack(random_images(*[(10, 13)] * 3)), [(3,), (), (1, 2)]
    made = classifier.cams(model, images, tags, scales=scales)
    for image, of_image, maps in zip(images, tags, made, strict=True):
        assert maps.dtype == np.float32 and maps.shape == (len(of_image), 10, 13)
        expected = reference.classifier_cams(model, image, of_image, scales)
        np.testing.assert_allclose(maps, expected, atol=2e-4)
        if of_image:
            assert maps.min() >= 0 and 0.99 < maps.max() <= 1


def test_images_of_all_sizes_come_back_in_their_order(tiny):
    images = random_images((8, 12), (12, 8), (8, 12), (9, 9), (8, 12))
    tags = [(1,), (2, 3), (), (1, 2), (3,)]
    options = {"weights": None, "batch_size": 2, "scales": (1.0, 0.5)}
    cue = cams.build("classifier", CLASSES, tags=lambda items: tags, **options)
    made = cue.scores(images)
    model = tiny(CLASSES).eval()
    for image, of_image, each in zip(images, tags, made, strict=True):
        alone = classifier.cams(model, image[None], [of_image], scales=(1.0, 0.5))[0]
        assert each.tags == of_image
        np.testing.assert_allclose(each.maps, alone, atol=1e-6)


def test_the_miniature_is_the_encoder_of_the_segmenter():
    from plg_utils.segmenters import deeplabv3plus

    model = classifier.network(CLASSES, encoder="miniature", pretrained=True, output_stride=16)
    other = deeplabv3plus.build(2, encoder="miniature", pretrained=True, output_stride=16)
    images = torch.zeros(1, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(model.eval().encoder(images)[-1], other.eval().encoder(images)[-1])
        assert model.activations(images).shape == (1, 3, 2, 2)
    again = classifier.network(CLASSES, encoder="miniature", pretrained=True, output_stride=16)
    fresh = classifier.network(CLASSES, encoder="miniature", pretrained=True, output_stride=16, seed=1)
    assert training.digest(model) == training.digest(again) != training.digest(fresh)


# Training


def test_it_finds_the_squares_having_read_nothing_but_tags(tiny, tmp_path):
    samples = scenes(40)
    options = OPTIONS | {"steps": 150, "batch_size": 10, "crop_size": 16, "lr": 0.1, "log_every": 50}
    history = classifier.train(samples, CLASSES, tmp_path / "w.safetensors", **options)
    assert [row["step"] for row in history] == [50, 100, 150]
    assert set(history[0]) == {"step", "lr", "total", "right"}
    assert history[-1]["total"] < history[0]["total"] and history[-1]["right"] > 0.9
    cue = cams.build("classifier", CLASSES, weights=tmp_path / "w.safetensors", threshold=0.4)
    right = np.mean([np.mean(label == colour_label(item)) for label, item in zip(cue(samples), samples, strict=True)])
    assert right > 0.85


def test_the_seed_and_nothing_else_decides_in_one_process_of_several(tiny, tmp_path, monkeypatch):
    """That a killed training goes on is `training.fit`'s; here no other process is asked for anything."""
    paths, draw, drawn = [tmp_path / name for name in ("first", "again", "other")], np.random.default_rng, []
    samples = scenes(5)
    monkeypatch.setattr(np.random, "default_rng", lambda of: drawn.append(of) or draw(of))
    history = classifier.train(samples, CLASSES, paths[0], **OPTIONS)
    assert {(0, step) for step in range(6)} <= {*drawn}  # the views of a step, by seed and step
    torch.manual_seed(9)  # nothing depends on the random numbers of the process
    monkeypatch.setattr(distributed, "count", lambda: 2)
    assert classifier.train(scenes(5), CLASSES, paths[1], **OPTIONS) == history
    classifier.train(scenes(5), CLASSES, paths[2], seed=1, **OPTIONS)  # views and first weights are the seed's
    first, again, other = (path.read_bytes() for path in paths)
    assert first == again != other


def test_what_cannot_be_trained_is_refused(tiny, tmp_path):
    paths = {"weights": tmp_path / "w.safetensors", "state_file": tmp_path / "state.safetensors"}
    closed = [Sample("closed", scenes(1)[0].read_image, hidden)]
    with pytest.raises(TruthHidden, match="the tags of closed do not exist"):
        classifier.train(closed, CLASSES, **paths, **OPTIONS)
    assert not list(tmp_path.iterdir())
    classifier.train(scenes(4), CLASSES, **paths, **OPTIONS)
    for change, named in (({"lr": 0.01}, "lr: 0.05, now 0.01"), ({"encoder": "x"}, "other loss")):
        with pytest.raises(ValueError, match=named):
            classifier.train(scenes(4), CLASSES, **paths, **OPTIONS | change)
    known = {"classifier_options": {"encoder": "miniature", "pretrained": True}}
    for option in ("nonsense", "head_lr", "pseudo_label", "part"):
        with pytest.raises(ValueError, match=f"no option of classifier_options called '{option}'"):
            allowed.check_options({"classifier_options": {option: 1}}, known)
    allowed.check_options({"classifier_options": {"head_lr_factor": 1.0, "log_every": 5}}, known)
    for scales in ((), (1.0, 0.0)):
        with pytest.raises(ValueError, match=r"scales=\(.*\) must be factors above 0"):
            cams.build("classifier", CLASSES, weights=None, scales=scales)


# Weights


def test_weights_know_their_network(tmp_path):
    path = tmp_path / "w.safetensors"
    model = classifier.network(CLASSES, encoder="miniature", output_stride=16, seed=3).eval()
    classifier.save(path, model, CLASSES, encoder="miniature", output_stride=16)
    loaded = classifier.load(path, CLASSES)
    assert not loaded.training
    images = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(loaded.activations(images), model.activations(images))


def test_weights_that_do_not_fit_are_refused(tiny, tmp_path):
    path = tmp_path / "w.safetensors"
    for notes in (None, "{", "[]", "{}", '{"classes": 1}'):
        save_file({"a": torch.zeros(1)}, path, {"classifier": notes} if notes else None)
        with pytest.raises(ValueError, match="is not a file that cams.classifier.train wrote: train again"):
            classifier.load(path, CLASSES)
    classifier.save(path, tiny(CLASSES), CLASSES, encoder="cells", output_stride=None)
    others = Classes(("none", "red", "green"), ((),) * 3, ((0, 0, 0),) * 3)
    with pytest.raises(ValueError, match="was trained for red, green, blue, not for red, green: train again"):
        classifier.load(path, others)
