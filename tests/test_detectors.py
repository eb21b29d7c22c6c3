"""Detectors: the contract of every file, regions against a flood fill, Grounding DINO by hand."""

import re
import sys
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import safetensors.torch
import torch
from test_masks import random_images

from plg_utils import checkpoints, detectors, miniature
from plg_utils.detectors import Boxes, clip_boxes, grounding_dino
from plg_utils.records import Classes

NAMES = sorted(path.stem for path in Path(detectors.__file__).parent.glob("[a-z]*.py"))
CLASSES = Classes(
    ("background", "house", "tree", "boat"),
    ((), ("a house", "barn"), ("a tree",), ("a boat",)),
    ((0, 0, 0),) * 4,
)


# Every detector


@pytest.mark.parametrize("name", NAMES)
def test_contract(name, request):
    if name == "grounding_dino":
        request.getfixturevalue("no_hub")
    smoke = import_module(f"plg_utils.detectors.{name}").SMOKE
    images = random_images((24, 36), (36, 24), (24, 36))
    tags = [(1, 3), (), (2,)]
    detect = detectors.build(name, CLASSES, **smoke)
    found = detect(images, tags)
    assert len(found) == 3
    for boxes, image, of_image in zip(found, images, tags, strict=True):
        assert isinstance(boxes, Boxes)
        assert boxes.xyxy.shape == (len(boxes), 4)
        assert (boxes.xyxy.dtype, boxes.classes.dtype, boxes.scores.dtype) == (np.float32, np.int64, np.float32)
        assert set(boxes.classes.tolist()) <= set(of_image)
        assert ((0 <= boxes.scores) & (boxes.scores <= 1)).all()
        left, top, right, bottom = boxes.xyxy.T
        assert ((0 <= left) & (left < right) & (right <= image.shape[1])).all()
        assert ((0 <= top) & (top < bottom) & (bottom <= image.shape[0])).all()
    assert max(len(boxes) for boxes in found) > 0
    (alone,) = detect(images[2:], tags[2:])
    np.testing.assert_allclose(alone.xyxy, found[2].xyxy, atol=1e-3)
    assert detect([], []) == []
    with pytest.raises(ValueError, match=re.escape("[0, 4] are no foreground classes")):
        detect(images[:1], [(0, 1, 4)])
    with pytest.raises(ValueError, match="2 images need as many lists"):
        detect(images[:2], [(1,)])
    if name == "clip_boxes":
        with pytest.raises(ValueError, match="threshold=0 must be a part"):
            detectors.build(name, CLASSES, threshold=0)
        with pytest.raises(ValueError, match="temperature is -1; give a number above 0"):
            detectors.build(name, CLASSES, temperature=-1)


# Regions of CLIP's maps


def test_boxes_lie_around_the_regions_in_pixels():
    maps = torch.zeros(2, 4, 6)
    maps[0, 1:3, 1:3], maps[0, 1, 1] = 0.6, 0.8
    maps[0, 0, 5] = 0.4  # half of the highest value
    maps[0, 3, 4] = 0.39
    maps[1, :, :] = 0.1

    def boxes(maps, min_area, chosen=(3, 1)):
        return clip_boxes.boxes_of_maps(maps, chosen, (40, 120), threshold=0.5, upsample=1, min_area=min_area)

    every, large, only = (boxes(maps, min_area) for min_area in (0, 2, 99))
    by_box = {
        (index, *box): score
        for index, box, score in zip(every.classes, map(tuple, every.xyxy), every.scores, strict=True)
    }
    expected = {(1, 0, 0, 120, 40): 0.1, (3, 20, 10, 60, 30): 0.8, (3, 100, 0, 120, 10): 0.4}
    assert by_box == pytest.approx(expected)
    assert large.classes.tolist() == [3, 1]
    assert only.xyxy.tolist() == large.xyxy.tolist()  # the best region of a class stays
    assert len(boxes(maps[:0], 0, [])) == 0


def test_finer_maps_give_finer_boxes():
    maps = torch.zeros(1, 4, 4)
    maps[0, 1, 1] = 1
    (fine,) = clip_boxes.boxes_of_maps(maps, [1], (16, 16), threshold=0.5, upsample=4).xyxy
    assert fine.tolist() == [4, 4, 8, 8]
    (coarse,) = clip_boxes.boxes_of_maps(maps, [1], (16, 16), threshold=0.2, upsample=4).xyxy
    assert coarse.tolist() == [3, 3, 9, 9]
    maps = torch.zeros(1, 8, 8)
    maps[0, 1, 1], maps[0, 5, 5] = 1, 0.8
    counts = [len(clip_boxes.boxes_of_maps(maps, [1], (16, 16), threshold=0.5, min_area=area)) for area in (0.5, 3)]
    assert counts == [2, 1]  # the area is in cells of the map, not in finer ones


def test_the_classes_looked_for_compete_with_the_background_words():
    features = torch.eye(3)[:, None, :]  # (D, h, w) = (3, 1, 3): three cells, one along each axis
    texts, owner = torch.eye(3), torch.tensor([1, 2, 0])
    options = {"background": 0, "temperature": 0.5}
    maps = clip_boxes.class_maps(features, texts, owner, [2], **options)
    e = np.exp(2)
    np.testing.assert_allclose(maps, [[[0.5, e / (e + 1), 1 / (e + 1)]]], rtol=1e-6)
    both = clip_boxes.class_maps(features, texts, owner, [2, 1], **options)
    np.testing.assert_allclose(both[:, 0], [[1 / (e + 2), e / (e + 2), 1 / (e + 2)], [e / (e + 2)] + [1 / (e + 2)] * 2])
    no_words = clip_boxes.class_maps(features, texts[:2], owner[:2], [2], **options)
    np.testing.assert_allclose(no_words, [[[1 / (e + 1), e / (e + 1), 0.5]]], rtol=1e-6)


# Grounding DINO


@pytest.fixture(scope="module")
def network():
    """A network small enough for a test, with random weights and a tokenizer that knows the words of CLASSES."""
    hub = pytest.importorskip("transformers")
    # The network knows BERT's numbers of these by heart.
    special = {"[PAD]": 0, "[UNK]": 100, "[CLS]": 101, "[SEP]": 102, "[MASK]": 103, ".": 1012, "?": 1029}
    vocabulary = special | {word: 2000 + number for number, word in enumerate("a house barn tree boat".split())}
    swin = {"embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "window_size": 2, "out_indices": [1, 2]}
    bert = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    # It ties the decoder's layers after the first to the first, and stops if there is none.
    size = {"num_queries": 8, "d_model": 32, "num_feature_levels": 3, "encoder_layers": 1, "decoder_layers": 2}
    size |= dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 2)
    size |= dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim"), 16)
    config = hub.GroundingDinoConfig(
        backbone_config=hub.SwinConfig(image_size=32, **swin),
        text_config=hub.BertConfig(vocab_size=max(vocabulary.values()) + 1, **bert),
        disable_custom_kernels=True,
        **size,
    )
    model = miniature.untrained(lambda: hub.GroundingDinoForObjectDetection(config))
    tokenizer = hub.BertTokenizerFast(vocab=vocabulary, do_lower_case=True)
    pictures = hub.GroundingDinoImageProcessor(size={"shortest_edge": 32, "longest_edge": 64})
    return model, hub.GroundingDinoProcessor(pictures, tokenizer)


@pytest.fixture
def no_hub(network, monkeypatch):
    """Give the tiny network for every checkpoint, and list the shapes of the captions that it gets."""
    monkeypatch.setattr(grounding_dino, "load", lambda checkpoint: network)
    calls, forward = [], network[0].forward
    counted = lambda **inputs: calls.append(tuple(inputs["input_ids"].shape)) or forward(**inputs)  # noqa: E731
    monkeypatch.setattr(network[0], "forward", counted)
    return calls


def test_a_query_needs_a_sure_token_and_a_token_of_a_word_and_some_area_in_the_image(network):
    words = [grounding_dino.caption("a", ["barn", "tree Boat"]), grounding_dino.caption("b", ["House"])]
    assert words == ["barn. tree boat.", "house."]
    tokens = network[1].tokenizer(words, padding=True, return_tensors="pt").input_ids
    middle, rest = [0.5, 0.5, 0.5, 0.5], [0.0] * 5
    found = [  # score of each token, box; the tokens: start, barn, dot, tree, boat, dot, end
        ([0.1, 0.5, 0.2, 0.6, 0.1, 0.0, 0.0], middle),
        ([0.9, 0.5, 0.2, 0.4, 0.1, 0.0, 0.0], middle),  # the start gives the score
        ([0.1, 0.3, 0.2, 0.2, 0.1, 0.0, 0.0], middle),  # not more than 0.3
        ([0.9, 0.25, 0.8, 0.1, 0.2, 0.9, 0.9], middle),  # no word above 0.25
        ([0.1, 0.1, 0.31, 0.2, 0.26, 0.0, 0.0], middle),
        ([0.0, 0.4] + rest, [0.0, 0.5, 0.5, 2.0]),  # these two are clipped to the image
        ([0.0, 0.4] + rest, [1.0, 1.0, 1.0, 0.5]),
        ([0.0, 0.4] + rest, [1.5, 0.5, 0.5, 0.5]),  # these two have no area in it
        ([0.0, 0.4] + rest, [0.5, 0.5, 0.0, 0.5]),
    ]
    logits = torch.tensor([[*scores, 0.0] for scores, _ in found]).logit()
    outputs = SimpleNamespace(
        logits=torch.stack([logits] * 2), pred_boxes=torch.tensor([[box for _, box in found]] * 2)
    )
    (xyxy, scores), (of_house, _) = grounding_dino.boxes_of_queries(network[1], outputs, tokens, [(40, 80)] * 2)
    np.testing.assert_allclose(scores, [0.6, 0.9, 0.31, 0.4, 0.4], rtol=1e-5)
    np.testing.assert_allclose(xyxy, [[20, 10, 60, 30]] * 3 + [[0, 0, 20, 40], [40, 30, 80, 40]])
    assert len(of_house) == 4  # its only word is the token after the start
    ((xyxy, scores), _) = grounding_dino.boxes_of_queries(
        network[1], outputs, tokens, [(40, 80)] * 2, box_threshold=0.95
    )
    assert (len(scores), xyxy.shape) == (0, (0, 4))


def test_one_caption_for_each_class(no_hub):
    images, tags = random_images((24, 36), (36, 24), (24, 36)), [(1, 2, 3), (2,), (3,)]
    found, one_by_one = (
        grounding_dino.build(CLASSES, **grounding_dino.SMOKE, batch_size=number)(images, tags) for number in (8, 1)
    )
    assert [len(boxes) for boxes in found] == [24, 8, 8]
    assert found[0].classes.tolist() == [1] * 8 + [2] * 8 + [3] * 8
    assert no_hub[:2] == [(4, 7), (1, 5)]  # images of one size go together
    for one, other in zip(one_by_one, found, strict=True):
        np.testing.assert_array_equal(one.classes, other.classes)
        np.testing.assert_allclose(one.xyxy, other.xyxy, atol=1e-3)
        np.testing.assert_allclose(one.scores, other.scores, atol=1e-4)
    nothing = grounding_dino.build(CLASSES, box_threshold=1.0)(images, tags)
    assert [len(boxes) for boxes in nothing] == [0, 0, 0]


def test_words_that_make_no_caption_are_refused(no_hub):
    def build(*words):
        return grounding_dino.build(Classes(("background", "tree"), ((), words), ((0, 0, 0),) * 2))

    for words in (("st. john's tree",), ("tree", " "), ()):
        with pytest.raises(ValueError, match="class tree has the words .* at least one word, and none with a dot"):
            build(*words)
    with pytest.raises(ValueError, match="a caption has 303 tokens, over 256: 'tree tree"):
        build("tree " * 300)(random_images((24, 36)), [(1,)])


def test_a_folder_of_safetensors_is_loaded_and_nothing_else(network, tmp_path, monkeypatch):
    model, processor = network
    monkeypatch.setenv("PLG_CHECKPOINTS", str(tmp_path))
    folder = tmp_path / "grounding_dino_tiny"
    for part in (model, processor.image_processor, processor.tokenizer):  # as the authors laid out theirs
        part.save_pretrained(folder)
    assert set(checkpoints.LISTED["grounding_dino_tiny"].files) <= {path.name for path in folder.iterdir()}
    images, tags = random_images((24, 36)), [(1, 3)]
    with monkeypatch.context() as patch:
        patch.setattr(grounding_dino, "load", lambda checkpoint: network)
        expected = detectors.build("grounding_dino", CLASSES, **grounding_dino.SMOKE)(images, tags)[0]
    for checkpoint in ("grounding_dino_tiny", folder):
        (found,) = grounding_dino.build(CLASSES, checkpoint=checkpoint, **grounding_dino.SMOKE)(images, tags)
        np.testing.assert_allclose(found.xyxy, expected.xyxy, atol=1e-4)
    half = dict(list(safetensors.torch.load_file(folder / "model.safetensors").items())[::2])
    safetensors.torch.save_file(half, folder / "other.safetensors", metadata={"format": "pt"})
    (folder / "other.safetensors").rename(folder / "model.safetensors")
    with pytest.raises(ValueError, match="of a GroundingDinoForObjectDetection are missing"):  # were random numbers
        grounding_dino.load(folder)
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="could not be loaded .*it needs config.json, model.safetensors"):
        grounding_dino.load(folder)
    with pytest.raises(FileNotFoundError, match="neither a folder nor one of grounding_dino_tiny, grounding_dino_base"):
        grounding_dino.load("grounding_dino_huge")


def test_without_transformers_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match=re.escape("plg-utils[models]")):
        grounding_dino.build(CLASSES)
