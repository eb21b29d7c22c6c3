"""Detectors: the contract of every file, regions against a flood fill, Grounding DINO against transformers."""

import builtins
import re
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch

from plg_utils import checkpoints, detectors, store
from plg_utils.detectors import Boxes, clip_boxes, grounding_dino
from plg_utils.records import Classes

NAMES = sorted(path.stem for path in Path(detectors.__file__).parent.glob("[a-z]*.py"))
CLASSES = Classes(
    ("background", "house", "tree", "boat"),
    ((), ("a house", "barn"), ("a tree",), ("a boat",)),
    ((0, 0, 0),) * 4,
)


def random_images(*sizes):
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes]


# Every detector


@pytest.mark.parametrize("name", NAMES)
def test_contract(name):
    if name == "grounding_dino":
        pytest.importorskip("transformers")
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


def test_an_unknown_detector_is_refused():
    with pytest.raises(ValueError, match=f"no detector 'yolo', only {', '.join(NAMES)}"):
        detectors.build("yolo", CLASSES)


def test_boxes_belong_together():
    with pytest.raises(ValueError, match="not 1 boxes, 2 classes, 1 scores"):
        Boxes.of([[0, 0, 1, 1]], [1, 2], [0.5])
    assert Boxes.of([], [], []).xyxy.shape == (0, 4)
    boxes = Boxes.of([[0, 0, 1, 1], [0, 0, 2, 2]], [1, 2], [0.5, 0.25])
    assert boxes.take([1, 0]).classes.tolist() == [2, 1]
    assert boxes.take(boxes.scores > 0.3).xyxy.tolist() == [[0, 0, 1, 1]]


# Regions of CLIP's maps


def test_boxes_lie_around_the_regions_in_pixels():
    maps = torch.zeros(2, 4, 6)
    maps[0, 1:3, 1:3], maps[0, 1, 1] = 0.6, 0.8
    maps[0, 0, 5] = 0.4  # half of the highest value
    maps[0, 3, 4] = 0.39
    maps[1, :, :] = 0.1
    options = {"threshold": 0.5, "upsample": 1, "min_area": 0}
    boxes = clip_boxes.boxes_of_maps(maps, [3, 1], (40, 120), **options)
    assert sorted(zip(boxes.classes.tolist(), boxes.xyxy.tolist(), strict=True)) == [
        (1, [0, 0, 120, 40]),
        (3, [20, 10, 60, 30]),
        (3, [100, 0, 120, 10]),
    ]
    by_box = dict(zip(map(tuple, boxes.xyxy.tolist()), boxes.scores.tolist(), strict=True))
    assert by_box == pytest.approx({(0, 0, 120, 40): 0.1, (20, 10, 60, 30): 0.8, (100, 0, 120, 10): 0.4})
    large = clip_boxes.boxes_of_maps(maps, [3, 1], (40, 120), **options | {"min_area": 2})
    assert large.classes.tolist() == [3, 1]
    only = clip_boxes.boxes_of_maps(maps, [3, 1], (40, 120), **options | {"min_area": 99})
    assert only.xyxy.tolist() == large.xyxy.tolist()  # the best region of a class stays
    assert len(clip_boxes.boxes_of_maps(maps[:0], [], (40, 120), **options)) == 0


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


def test_a_threshold_that_is_no_part_is_refused():
    with pytest.raises(ValueError, match="threshold=0 must be a part"):
        clip_boxes.build(CLASSES, threshold=0)


# Grounding DINO


@pytest.fixture(scope="module")
def network():
    """A tiny network with random weights and its processor."""
    pytest.importorskip("transformers")
    return grounding_dino.load(None, ["a house", "barn", "a tree", "a boat"])


@pytest.fixture
def no_hub(network, monkeypatch):
    """Give the tiny network whatever checkpoint is asked for, and count its calls."""
    monkeypatch.setattr(grounding_dino, "load", lambda checkpoint, words=(): network)
    calls = []
    forward = network[0].forward
    monkeypatch.setattr(
        network[0], "forward", lambda **inputs: calls.append(tuple(inputs["input_ids"].shape)) or forward(**inputs)
    )
    return calls


@pytest.mark.parametrize(("box_threshold", "text_threshold"), [(0.0, 0.0), (0.9, 0.25), (0.99, 0.99), (0.999999, 0.9)])
def test_boxes_are_those_of_transformers(network, box_threshold, text_threshold):
    """Oracle: post_process_grounded_object_detection; the class is read from its phrases where they name one."""
    model, processor = network
    images = random_images((24, 36), (24, 36))
    written = [grounding_dino.caption({1: ("barn",), 3: ("tree boat",)}), grounding_dino.caption({2: ("House",)})]
    assert [each.text for each in written] == ["barn. tree boat.", "house."]
    inputs = processor(images=images, text=[each.text for each in written], padding=True, return_tensors="pt")
    with torch.no_grad():
        outputs = model(**inputs)
    official = processor.post_process_grounded_object_detection(
        outputs, threshold=box_threshold, text_threshold=text_threshold, target_sizes=[(24, 36)] * 2
    )
    tokens = processor.tokenizer([each.text for each in written], padding=True, return_offsets_mapping=True)
    named = {"barn": 1, "tree": 3, "boat": 3, "house": 2}
    some = 0
    for k in range(2):
        owners = grounding_dino.token_classes(written[k], torch.tensor(tokens["offset_mapping"][k]))
        assert owners.tolist() == [[-1, 1, -1, 3, 3, -1, -1], [-1, 2, -1, -1, -1, -1, -1]][k]
        boxes = grounding_dino.boxes_of_queries(
            outputs.logits[k],
            outputs.pred_boxes[k],
            owners,
            (24, 36),
            box_threshold=box_threshold,
            text_threshold=text_threshold,
        )
        phrases = [re.findall("[a-z]+", phrase) for phrase in official[k]["text_labels"]]
        kept = [n for n, phrase in enumerate(phrases) if phrase]
        limits = torch.tensor([36, 24, 36, 24])
        expected = torch.minimum(official[k]["boxes"].clamp(min=0), limits)[kept]
        np.testing.assert_allclose(boxes.xyxy, expected, atol=1e-3)
        np.testing.assert_allclose(boxes.scores, official[k]["scores"][kept])
        for index, n in zip(boxes.classes.tolist(), kept, strict=True):
            assert index in {named[part] for part in phrases[n]}
        some += len(boxes)
    assert some == 16 if box_threshold == 0 else some < 16


def queries(*scores, boxes=None):
    """Logits of tokens with these probabilities and boxes in the middle, one row for each query."""
    logits = torch.tensor(scores).logit()
    return logits, torch.tensor(boxes or [[0.5, 0.5, 0.5, 0.5]] * len(scores))


def test_a_query_has_the_class_of_its_likeliest_token():
    owners = torch.tensor([-1, 7, 4, 4, -1])
    logits, boxes = queries(
        (0.1, 0.5, 0.2, 0.6, 0.1, 0.0),  # the second word of 4
        (0.9, 0.5, 0.2, 0.4, 0.1, 0.0),  # a token of no class decides the score, but not the class
        (0.1, 0.3, 0.2, 0.2, 0.1, 0.0),  # not more than 0.3
        (0.9, 0.25, 0.2, 0.1, 0.9, 0.0),  # no class above 0.25
        (0.1, 0.1, 0.31, 0.2, 0.1, 0.0),
    )
    found = grounding_dino.boxes_of_queries(logits, boxes, owners, (40, 80))
    assert found.classes.tolist() == [4, 7, 4]
    np.testing.assert_allclose(found.scores, [0.6, 0.9, 0.31], rtol=1e-5)
    np.testing.assert_allclose(found.xyxy, [[20, 10, 60, 30]] * 3)


def test_boxes_are_clipped_to_the_image_and_empty_ones_dropped():
    places = [[0.0, 0.5, 0.5, 2.0], [1.0, 1.0, 1.0, 0.5], [1.5, 0.5, 0.5, 0.5], [0.5, 0.5, 0.0, 0.5]]
    logits, boxes = queries(*[(0.9,)] * 4, boxes=places)
    found = grounding_dino.boxes_of_queries(logits, boxes, torch.tensor([2]), (40, 80))
    np.testing.assert_allclose(found.xyxy, [[0, 0, 20, 40], [40, 30, 80, 40]])
    nothing = grounding_dino.boxes_of_queries(logits, boxes, torch.tensor([2]), (40, 80), box_threshold=0.95)
    assert (len(nothing), nothing.xyxy.shape) == (0, (0, 4))


def test_captions_are_joined_up_to_the_limit_of_tokens(network):
    tokenizer = network[1].tokenizer
    words = {1: ("a house", "barn"), 2: ("a tree",), 3: ("a boat",)}
    count = len(tokenizer("a house. barn. a tree.").input_ids)
    assert count == 10
    join = grounding_dino.join
    assert [each.text for each in join(tokenizer, words, 99)] == ["a house. barn. a tree. a boat."]
    assert [each.text for each in join(tokenizer, words, count)] == ["a house. barn. a tree.", "a boat."]
    assert [each.text for each in join(tokenizer, words, count - 1)] == ["a house. barn.", "a tree. a boat."]
    assert [each.text for each in join(tokenizer, words, 2)] == ["a house. barn.", "a tree.", "a boat."]
    assert join(tokenizer, words, count)[0].spans == ((0, 7, 1), (9, 13, 1), (15, 21, 2))
    assert join(tokenizer, {}, 99) == []


def test_one_caption_for_each_class_or_one_for_all(no_hub):
    images = random_images((24, 36), (36, 24), (24, 36))
    tags = [(1, 2, 3), (2,), (3,)]
    thresholds = {"box_threshold": 0.0, "text_threshold": 0.0}
    separate = grounding_dino.build(CLASSES, **thresholds, batch_size=8)(images, tags)
    assert [len(boxes) for boxes in separate] == [24, 8, 8]
    assert separate[0].classes.tolist() == [1] * 8 + [2] * 8 + [3] * 8
    assert sorted(no_hub) == [(1, 5), (4, 7)]  # images of one size go together
    no_hub.clear()
    one_by_one = grounding_dino.build(CLASSES, **thresholds, batch_size=1)(images, tags)
    for one, other in zip(one_by_one, separate, strict=True):
        np.testing.assert_allclose(one.xyxy, other.xyxy, atol=1e-3)
        np.testing.assert_allclose(one.scores, other.scores, atol=1e-4)
    no_hub.clear()
    joined = grounding_dino.build(CLASSES, **thresholds, joined=True, batch_size=8)(images, tags)
    assert [len(boxes) for boxes in joined] == [8, 8, 8]
    assert sorted(no_hub) == [(1, 5), (2, 13)]
    np.testing.assert_allclose(joined[1].xyxy, separate[1].xyxy, atol=1e-3)
    nothing = grounding_dino.build(CLASSES, box_threshold=1.0)(images, tags)
    assert [len(boxes) for boxes in nothing] == [0, 0, 0]


def test_doubles_are_dropped_class_by_class():
    parts = [
        Boxes.of([[20, 0, 30, 10], [0, 0, 10, 10], [0, 0, 10, 9]], [1, 1, 1], [0.5, 0.4, 0.6]),
        Boxes.of([[0, 0, 10, 10]], [2], [0.3]),
    ]
    assert len(grounding_dino._together(parts, None)) == 4
    kept = grounding_dino._together(parts, 0.8)
    assert kept.classes.tolist() == [1, 1, 2]
    np.testing.assert_allclose(kept.scores, [0.5, 0.6, 0.3])  # in the detector's order


def test_other_words_can_be_asked_for(network, no_hub, monkeypatch):
    seen = []
    tokenizer = network[1].tokenizer

    class Spy:
        def __call__(self, texts, **options):
            seen.extend(texts)
            return tokenizer(texts, **options)

    monkeypatch.setattr(network[1], "tokenizer", Spy())
    words = {"tree": "wild Tree", "boat": ["boat", "barn"]}
    grounding_dino.build(CLASSES, words=words)(random_images((24, 36)), [(1, 2, 3)])
    assert seen == ["a house. barn.", "wild tree.", "boat. barn."]


def test_words_that_make_no_caption_are_refused(network, no_hub):
    with pytest.raises(ValueError, match="unknown classes: bird; known are house, tree, boat"):
        grounding_dino.build(CLASSES, words={"bird": "wild bird"})
    with pytest.raises(ValueError, match="class tree has the words"):
        grounding_dino.build(CLASSES, words={"tree": "st. john's tree"})
    with pytest.raises(ValueError, match="it needs at least one"):
        grounding_dino.build(CLASSES, words={"tree": []})
    detect = grounding_dino.build(CLASSES, words={"tree": "tree " * 300})
    with pytest.raises(ValueError, match="a caption has 303 tokens, over 256: 'tree tree"):
        detect(random_images((24, 36)), [(2,)])


def test_a_folder_of_safetensors_is_loaded_and_nothing_else(network, tmp_path, monkeypatch):
    model, processor = network
    monkeypatch.setenv("PLG_CHECKPOINTS", str(tmp_path))
    folder = tmp_path / "grounding_dino_tiny"
    for part in (model, processor.image_processor, processor.tokenizer):  # as the authors laid out theirs
        part.save_pretrained(folder)
    assert set(checkpoints.LISTED["grounding_dino_tiny"].files) <= {path.name for path in folder.iterdir()}
    images, tags = random_images((24, 36)), [(1, 3)]
    expected = detectors.build("grounding_dino", CLASSES, **grounding_dino.SMOKE)(images, tags)[0]
    for checkpoint in ("grounding_dino_tiny", folder):
        thresholds = {"box_threshold": 0.0, "text_threshold": 0.0}
        (found,) = grounding_dino.build(CLASSES, checkpoint=checkpoint, **thresholds)(images, tags)
        np.testing.assert_allclose(found.xyxy, expected.xyxy, atol=1e-4)
    identity = store.stage(tmp_path / "stage", name="boxes", parameters={}, checkpoints=[folder])._identity
    assert identity["checkpoints"] == {"grounding_dino_tiny": checkpoints.sha256_of("grounding_dino_tiny")}
    (folder / "tokenizer.json").write_text((folder / "tokenizer.json").read_text() + " ")
    with pytest.raises(ValueError, match="tokenizer.json is not the file that was first used"):
        grounding_dino.load("grounding_dino_tiny")
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="lacks model.safetensors of IDEA-Research/grounding-dino-tiny"):
        grounding_dino.load("grounding_dino_tiny")
    with pytest.raises(FileNotFoundError, match="could not be loaded .*it needs config.json, model.safetensors"):
        grounding_dino.load(folder)


def test_offline_the_error_says_what_to_put_where(network, tmp_path, monkeypatch):
    import huggingface_hub

    def offline(address, **options):
        raise ConnectionError("no connection")

    monkeypatch.setenv("PLG_CHECKPOINTS", str(tmp_path))
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", offline)
    place = re.escape(str(checkpoints.folder() / "grounding_dino_base"))
    with pytest.raises(FileNotFoundError, match=f"no connection.*tokenizer.json.*put them into {place}"):
        grounding_dino.load("grounding_dino_base")
    with pytest.raises(FileNotFoundError, match="neither a folder nor one of grounding_dino_tiny, grounding_dino_base"):
        grounding_dino.load("grounding_dino_huge")


def test_without_transformers_the_error_names_the_extra(monkeypatch):
    real = builtins.__import__

    def without(name, *arguments, **options):
        if name.split(".")[0] == "transformers":
            raise ImportError(name)
        return real(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=re.escape("plg-utils[grounding]")):
        grounding_dino.build(CLASSES)
