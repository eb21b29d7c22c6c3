"""Tags: CLIP's against plain loops and a toy, files of tags, and what they must refuse."""

import json
from dataclasses import replace

import numpy as np
import pytest
import reference_boxes
import torch
import torch.nn.functional as F
from test_generators import ColourEncoder

from plg_utils import tags
from plg_utils.records import Classes, Sample

CLASSES = Classes(
    ("background", "red", "green", "blue"),
    (("white", "black"), ("red", "pink"), ("green",), ("blue",)),
    ((0, 0, 0),) * 4,
    templates=("{}",),
)
COLOURS = {"white": (1, 1, 1), "black": (0.05, 0.05, 0.05), "red": (1, 0, 0), "pink": (1, 0.5, 0.5)}
COLOURS |= {"green": (0, 1, 0), "blue": (0, 0, 1)}


class Encoder(ColourEncoder):
    """A word is its colour, a patch of 4 x 4 pixels its mean colour, the class token the mean of all."""

    colours, side = COLOURS, 4

    def __init__(self, **of_model):
        self.seen = []
        self.model = type("Model", (), of_model)

    def class_tokens(self, images):
        self.seen.append(len(images))
        return [torch.tensor(image).float().mean(dim=(0, 1)) for image in images]


def picture(*places, size=(16, 16)):
    """White, with squares of a colour at rows and columns."""
    image = np.full((*size, 3), 255, dtype=np.uint8)
    for colour, rows, columns in places:
        image[rows, columns] = [round(255 * part) for part in COLOURS[colour]]
    return image


SMALL = picture(("red", slice(0, 4), slice(0, 4)), ("blue", slice(8, 16), slice(8, 16)))


def test_the_score_is_that_of_the_best_view_and_word():
    rng = np.random.default_rng(0)
    views, texts = rng.normal(size=(5, 4)), rng.normal(size=(7, 4))
    owner = [2, 0, 1, 1, 0, 3, 2]
    given = [torch.tensor(values) for values in (views, texts, owner)]
    for background in (0, None):
        expected = reference_boxes.tag_scores(views, texts, owner, background, 0.2)
        scores = tags.score(*given, background=background, temperature=0.2)
        np.testing.assert_allclose(scores, expected, rtol=1e-5)
        assert len(scores) == (3 if background == 0 else 4)


def test_the_answer_yes_or_no_is_pooled_as_the_miniature_was_trained():
    from miniatures import clip as miniature

    torch.manual_seed(0)
    views, texts = F.normalize(torch.randn(6, 4), dim=1), F.normalize(torch.randn(3, 4), dim=1)
    scores = tags.score(views, texts, torch.arange(1, 4), temperature=1 / 17, bias=-4.0)
    logits = 17 * views @ texts.T - 4
    pooled = miniature.pool_regions(logits[None], torch.zeros(1, 6, dtype=torch.long), 1)[0, 0]
    np.testing.assert_allclose(scores, pooled.sigmoid(), rtol=1e-5)


YES_OR_NO = {"logit_scale": torch.tensor(50.0).log(), "logit_bias": torch.tensor(-40.0)}


@pytest.mark.parametrize("views", ["dense", "crops"])
def test_small_things_are_seen_by_some_view(views):
    """The red square fills a patch, and a quarter of a crop; the blue one fills a crop; the mean of all is white.

    The sigmoid, of dense views, does not know background words: white must be unlike each word, and pink is not.
    """
    classes = replace(CLASSES, words=(CLASSES.words[0], ("red",), *CLASSES.words[2:])) if views == "dense" else CLASSES
    encoder = Encoder(**YES_OR_NO if views == "dense" else {"logit_scale": YES_OR_NO["logit_scale"]})
    tag = tags.by_clip(classes, encoder=encoder)
    blue, small, none = tag([picture(("blue", slice(0, 16), slice(0, 8))), SMALL, picture()])
    assert blue.classes.tolist() == [3]
    assert small.classes.tolist() == ([1, 3] if views == "dense" else [3])
    if views == "dense":
        patches, words = encoder.images([SMALL])[0].flatten(1).T, encoder.class_embeddings(classes)
        expected = tags.score(patches, *words, temperature=1 / 50, bias=-40.0)
        np.testing.assert_allclose(small.scores, expected[[0, 2]], rtol=1e-4)
    assert len(none.classes) == 1  # the best class is a tag though it scores next to nothing
    assert none.scores[0] < 0.1 < 0.5 < small.scores.min()
    assert (small.classes.dtype, small.scores.dtype) == (np.int64, np.float32)
    assert encoder.seen == ([] if views == "dense" else [30])  # 3 images x 10 views, together
    assert tags.own_temperature(encoder) == pytest.approx(0.02)
    assert tags.own_temperature(object()) == 0.01


def test_the_crops_are_half_as_long_and_overlap_by_half():
    whole, *crops = tags.crop_slices((9, 16))
    assert whole == (slice(0, 9), slice(0, 16))
    assert [(crop[0].start, crop[0].stop) for crop in crops[::3]] == [(0, 4), (2, 6), (5, 9)]
    assert [(crop[1].start, crop[1].stop) for crop in crops[:3]] == [(0, 8), (4, 12), (8, 16)]
    assert len(tags.crop_slices((1, 1))) == 10
    image = np.random.default_rng(0).integers(0, 256, (9, 16, 3), dtype=np.uint8)
    (views,) = tags.embed_crops(Encoder(), [image])
    assert views.shape == (10, 3)
    np.testing.assert_allclose(views[6], image[2:6, 8:16].mean(axis=(0, 1)), rtol=1e-5)


def test_the_threshold_is_reached_by_equality_and_the_best_always_stays():
    chosen = tags.choose(torch.tensor([0.5, 0.25, 0.75]), (1, 2, 4), 0.5)
    assert (chosen.classes.tolist(), chosen.scores.tolist()) == ([1, 4], [0.5, 0.75])
    chosen = tags.choose(torch.tensor([0.5, 0.25, 0.75]), (1, 2, 4), 0.9)
    assert chosen.classes.tolist() == [4]


def samples(*ids):
    return [Sample(id, lambda: SMALL) for id in ids]


@pytest.mark.parametrize("suffix", ["yaml", "json"])
def test_tags_of_a_file_are_found_by_the_id(tmp_path, suffix):
    path = tmp_path / f"tags.{suffix}"
    path.write_text(json.dumps({"a": ["green", "red", "red"], "b": [], "7": ["blue"]}), encoding="utf-8")
    read = tags.read(path, CLASSES)
    found = read(samples("b", "7", "a"))
    assert [each.classes.tolist() for each in found] == [[], [3], [1, 2]]
    assert [each.scores.tolist() for each in found] == [[], [1], [1, 1]]


def test_what_has_no_tags_is_refused(tmp_path):
    """Files that are none are in test_bad_inputs; what the loader opened is in test_boxes."""
    path = tmp_path / "tags.yaml"
    path.write_text("a: [background]", encoding="utf-8")
    with pytest.raises(ValueError, match="unknown names: background"):
        tags.read(path, CLASSES)
    path.write_text("a: [red]", encoding="utf-8")
    with pytest.raises(ValueError, match="lacks the tags of: b"):
        tags.read(path, CLASSES)(samples("a", "b"))
