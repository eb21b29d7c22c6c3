"""Labeller D: SAM 3's answers against transformers', word by word; the rule by hand; its stage."""

import gzip
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import clip
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.numpy import save_file
from test_masks import random_images
from test_pipeline import do_stages, of_world, tiny

from plg_utils import files, generators, stages, store
from plg_utils.generators import concepts
from plg_utils.records import Classes, PseudoLabel

transformers = pytest.importorskip("transformers")
WORDS = (("sky", "green grass"), ("cat", "kitten", "tabby cat with stripes"), ("dog",))
CLASSES = Classes(("background", "cat", "dog"), WORDS, ((0, 0, 0),) * 3)


@pytest.fixture(scope="module")
def network():
    """A tiny SAM 3 with random weights, and its image processor."""
    return concepts.load(None)


@pytest.fixture(scope="module")
def processor(network):
    """The library's own processor, with the tokenizer of OpenAI's CLIP in the library's form."""
    lines = gzip.open(Path(clip.__file__).with_name("bpe_simple_vocab_16e6.txt.gz")).read().decode().split("\n")
    merges = [tuple(line.split()) for line in lines[1 : 49152 - 256 - 2 + 1]]
    vocabulary = clip.simple_tokenizer.SimpleTokenizer().encoder
    tokenizer = transformers.CLIPTokenizer(vocab=vocabulary, merges=merges)
    return transformers.Sam3Processor(network[1], tokenizer)


def surest_by_the_library(network, processor, image, mask_score):
    """The rule over full stacks of masks, each word a call of its own, after transformers' own processing."""
    size, maps = image.shape[:2], []
    for word in (word for words in WORDS for word in words):
        inputs = processor(images=image, text=word, return_tensors="pt")
        with torch.inference_mode():
            out = network[0](**{key: inputs[key] for key in ("pixel_values", "input_ids", "attention_mask")})
        presence = out.presence_logits.sigmoid()  # (1, 1)
        everything = F.interpolate(out.semantic_seg, size, mode="bilinear")[0, 0].sigmoid() * presence
        scores = out.pred_logits.sigmoid() * presence  # (1, Q)
        stack = F.interpolate(out.pred_masks, size, mode="bilinear")[0].sigmoid()  # (Q, H, W)
        kept = processor.post_process_instance_segmentation(out, mask_score, target_sizes=[size])[0]
        assert (scores > mask_score).sum() == len(kept["scores"])
        things = (stack * scores[0, :, None, None])[scores[0] > mask_score]
        maps.append(torch.cat([everything[None], things]).amax(dim=0))
    stacked, owners = torch.stack(maps), torch.tensor([0, 0, 1, 1, 1, 2])
    return owners[stacked.argmax(dim=0)].numpy(), stacked.amax(dim=0).numpy()


@pytest.mark.parametrize(("words_at_once", "mask_score"), [(1, 0.0), (4, 0.24), (8, 1.0)])
def test_labels_are_those_of_the_library_asked_word_by_word(network, processor, words_at_once, mask_score):
    options = {"checkpoint": None, "threshold": None, "mask_score": mask_score, "words_at_once": words_at_once}
    generate = generators.build("concepts", CLASSES, **options)
    for image, found in zip(images := random_images((40, 70), (70, 40)), generate(images), strict=True):
        label, surest = surest_by_the_library(network, processor, image, mask_score)
        np.testing.assert_allclose(found.confidence, surest, atol=1e-5)
        np.testing.assert_array_equal(found.label, label)
        assert len(np.unique(label)) > 1


def test_words_become_the_tokens_of_the_librarys_processor(processor):
    words = ["cat", "Tabby cat, with stripes", "naïve café", "a 12-year-old's toy", "x" * 30]
    theirs = processor(text=words, return_tensors="pt")
    ours = concepts.tokenize(words, 32)
    attended = torch.arange(32) <= ours.argmax(1, keepdim=True)
    np.testing.assert_array_equal(attended.long(), theirs.attention_mask)
    np.testing.assert_array_equal(ours[attended], theirs.input_ids[attended])


def test_a_word_is_as_sure_as_its_surest_mask_or_its_map_by_hand():
    def logits(*probabilities):
        return torch.tensor(probabilities).logit()

    masks = [logits([0.9, 0.1], [0.1, 0.1]), logits([0.8, 0.8], [0.8, 0.8]), logits([0.9, 0.9], [0.9, 0.9])]
    masks = torch.stack(masks)
    answer = SimpleNamespace(
        presence_logits=logits([0.1], [0.5]),
        pred_logits=logits([0.9, 0.9, 0.9], [1.0 - 1e-7, 0.5, 0.2]),
        pred_masks=torch.stack([masks.flip(0), masks]),
        semantic_seg=torch.stack([masks[:1], logits([0.2, 0.2], [0.2, 0.6])[None]]),
    )
    # Scores of the second word: 0.5, 0.25, 0.1; its map counts half.
    expected = {0.3: [[0.45, 0.1], [0.1, 0.3]], 0.2: [[0.45, 0.2], [0.2, 0.3]], 0.05: [[0.45, 0.2], [0.2, 0.3]]}
    for mask_score, by_hand in expected.items():
        np.testing.assert_allclose(concepts.word_map(answer, 1, (2, 2), mask_score), by_hand, atol=1e-6)
    many = SimpleNamespace(
        presence_logits=logits([1.0 - 1e-7]), pred_logits=torch.linspace(1, 2, 40)[None],
        pred_masks=torch.full((1, 40, 1, 1), -9.0).index_fill(1, torch.arange(10), 9.0),
        semantic_seg=torch.full((1, 1, 1, 1), -9.0),
    )  # fmt: skip
    assert concepts.word_map(many, 0, (1, 1), 0.0).item() < 0.01  # the masks that cover it are the ten worst of 40


def test_below_the_threshold_is_background_and_the_labelled_images_choose_it():
    said = PseudoLabel(np.array([[1, 2, 0, 1]], np.uint8), np.array([[0.9, 0.42, 0.8, 0.37]], np.float32))
    found = concepts.named(said, 0.4, 0)
    assert found.label.tolist() == [[1, 2, 0, 0]]
    np.testing.assert_allclose(found.confidence, [[0.9, 0.42, 0.8, 0.63]])
    assert concepts.named(said, 0.4, None) is said and concepts.named(said, None, 0) is said
    choice = concepts.choose_threshold([said], [np.array([[1, 2, 0, 0]], np.uint8)], num_classes=3, background=0)
    assert choice.threshold == pytest.approx(0.4)  # the only one of the grid between 0.37 and 0.42


def test_published_weights_hold_a_tracker_too_which_is_left_out(network, processor, tmp_path, monkeypatch):
    monkeypatch.setenv("PLG_CHECKPOINTS", str(tmp_path))
    folder, state = tmp_path / "sam3", network[0].state_dict()
    processor.save_pretrained(folder)
    files.write_json(folder / "config.json", {"model_type": "sam3_video", "detector_config": concepts.tiny().to_dict()})
    weights = {f"detector_model.{name}": value.numpy() for name, value in state.items()}
    save_file(
        weights | {"tracker_model.memory": np.ones(3, np.float32)}, folder / "model.safetensors", {"format": "pt"}
    )
    model, pictures = concepts.load("sam3")
    assert {name: value.shape for name, value in model.state_dict().items()} == {n: v.shape for n, v in state.items()}
    for name, value in model.state_dict().items():
        np.testing.assert_array_equal(value, state[name], err_msg=name)
    assert (pictures.size["height"], pictures.size["width"]) == (56, 56)


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (("word " * 40,), "is too long: SAM 3 reads 32 tokens"),
        ((), "these classes have no words to ask SAM 3 for: cat"),
    ],
)
def test_words_that_sam_3_cannot_be_asked_are_refused(words, problem):
    with pytest.raises(ValueError, match=re.escape(problem)):
        concepts.build(Classes(("background", "cat"), ((), words), ((0, 0, 0),) * 2), checkpoint=None)


@pytest.mark.parametrize(
    ("config", "changed", "side", "says"),
    [
        ({"model_type": "clip"}, dict, 56, "config.json is of clip, not of sam3"),
        ({}, lambda state: {f"model.{key}": value for key, value in state.items()}, 56, "of a Sam3Model are missing"),
        ({}, lambda state: {key: value * np.nan for key, value in state.items()}, 56, "is nan or infinite"),
        ({}, dict, 1008, "resizes images to .*1008.*, and its SAM 3 sees 56 pixels"),
    ],
)
def test_weights_that_lack_or_are_nan_are_refused(network, tmp_path, config, changed, side, says):
    """The network went on with random numbers, or called everything background, silently."""
    for part in (network[0], transformers.Sam3ImageProcessor(size={"height": side, "width": side})):
        part.save_pretrained(tmp_path)
    files.write_json(tmp_path / "config.json", files.read_json(tmp_path / "config.json") | config)
    state = {key: value.numpy() for key, value in network[0].state_dict().items() if value.is_floating_point()}
    save_file(changed(state), tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=says):
        concepts.load(tmp_path)


@pytest.mark.parametrize("options", [{"threshold": 50}, {"mask_score": 30}, {"threshold": -1}, {"words_at_once": 0}])
def test_thresholds_of_sam_3_are_shares(options):
    with pytest.raises(ValueError, match="the first two are shares from 0 to 1"):
        concepts.build(CLASSES, checkpoint=None, **options)


def test_without_transformers_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match=re.escape("plg-utils[models]")):
        concepts.build(CLASSES)


def test_the_stage_keeps_what_sam_3_said_and_asks_it_once(world, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PLG_RESULTS", str(tmp_path))
    monkeypatch.setattr(store, "_said", set())
    random = {"checkpoint": None, "words_at_once": 4}
    parameters = tiny(["02", "06"], **of_world(world, cam_sources=[], concept_options=random))
    here = do_stages(parameters)
    said = generators.build("concepts", here.data.classes, threshold=None, **random)(here.images)
    said = [PseudoLabel(each.label, np.rint(each.confidence * 255) / np.float32(255)) for each in said]  # as it is kept
    kept = files.read_json(here.folder / "labels_concepts" / "manifest.json")["parameters"]
    truths = [sample.truth() for sample in here.data.labelled]
    chosen = concepts.choose_threshold(
        said[: len(truths)], truths, num_classes=here.data.classes.num_classes, background=here.data.classes.background
    )
    assert kept["threshold"] == chosen.threshold
    for sample, each in zip(here.images, said, strict=True):
        label = concepts.named(each, chosen.threshold, here.data.classes.background).label
        np.testing.assert_array_equal(here.label_of("labels_concepts", sample), label)
    monkeypatch.setattr(concepts, "load", None)  # another threshold asks nobody
    stages.concepts(here, concept_options=random | {"threshold": 0.9})
    assert not any(here.label_of("labels_concepts", sample).any() for sample in here.images)


def test_random_weights_neither_vote_nor_count_as_measured():
    known, random = {"checkpoint": "sam3"}, {"checkpoint": None}
    assert [stages.knows_nothing(options) for options in (known, {}, random)] == [False, False, True]
    assert "labels_concepts" in stages.voters([], known) and "labels_concepts" not in stages.voters([], random)
    for options, needs in ((known, True), (random, False)):
        found = stages.labellers_of([], "clip_boxes", options)
        assert found["labels_concepts"].needs == ("concepts", "labels_concepts")
        assert ("concepts" in found["labels_ensemble"].needs) == needs
    assert "labels_concepts" not in stages.labellers_of([], "clip_boxes")
