import clip as official
import numpy as np
import pytest
import torch

from miniatures import clip, encoder, scenes
from plg_utils.miniature import clip as clip_network
from plg_utils.miniature import encoder as encoder_network

CAPTIONS = [
    "a photo of a red house and two people on the meadow under the clear sky.",
    "two fish under the water.",
    "a scene with an orange car by the water and the forest floor with hills under a night sky.",
    "a tree.",
]


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return clip.build(len(clip.vocabulary())).eval()


def noise(count):
    return np.random.default_rng(0).integers(0, 256, (count, 128, 128, 3), dtype=np.uint8)


def test_it_is_clips_own_class_and_its_own_functions_give_the_same_embeddings(model):
    assert isinstance(model, official.model.CLIP)
    images = clip.normalise(noise(2))
    tokens = torch.stack([clip._tokenize(caption) for caption in CAPTIONS])
    with torch.no_grad():
        assert torch.allclose(clip.image_tokens(model, images)[:, 0], model.encode_image(images), atol=1e-4)
        assert torch.allclose(clip.text_embeddings(model, tokens), model.encode_text(tokens), atol=1e-4)


def test_every_caption_and_prompt_has_trained_tokens():
    known = set(clip.vocabulary())
    rows = clip._tokenize(CAPTIONS[0])
    assert np.array(clip.vocabulary())[rows].tolist() == official.tokenize(CAPTIONS[0], 40)[0].tolist()
    for text in [*CAPTIONS, *clip.prompts(np.random.default_rng(0))]:
        assert known.issuperset(official.tokenize(text, 40)[0].tolist()), text


def test_pooling_equals_a_plain_loop():
    logits = 5 * torch.randn(2, 6, 3)
    region = torch.tensor([[0, 0, 1, 1, 1, 2], [0] * 6])
    pooled = clip.pool_regions(logits, region)
    for b, r in [(0, 0), (0, 1), (0, 2), (1, 0)]:
        for k in range(3):
            terms = [float(logits[b, i, k].exp()) for i in range(6) if region[b, i] == r]
            assert float(pooled[b, r, k]) == pytest.approx(np.log(sum(terms) / len(terms)), abs=1e-4)


def test_a_batch_knows_the_caption_of_each_quarter():
    flat = np.broadcast_to(np.array([0, 60, 120, 180], np.uint8)[:, None, None, None], (4, 128, 128, 3))
    batch = clip.draw_batch(flat, CAPTIONS, np.random.default_rng(0), size=6, collage=1.0)
    assert batch.exists.all() and not batch.whole
    brightness = batch.images.mean(1)  # (B, H, W)
    answers = {tuple(scenes.nouns_in(caption)) for caption in CAPTIONS}
    for b in range(6):
        for r in range(4):
            cells = batch.region[b].view(12, 12).repeat_interleave(8, 0).repeat_interleave(8, 1) == r
            assert brightness[b][cells].std() < 1e-3  # one scene fills it
            assert tuple(batch.named[b, r].tolist()) in answers
    whole = clip.draw_batch(flat, CAPTIONS, np.random.default_rng(0), size=2, collage=0.0)
    assert [b for b, _ in whole.whole] == [0, 1] and whole.exists.sum() == 2


def test_trained_rows_survive_the_file_and_the_others_depend_on_their_number_alone(model, tmp_path):
    ids = clip.vocabulary()
    clip.save(model, tmp_path / "clip.safetensors", ids)
    first, second = (clip.load(tmp_path / "clip.safetensors") for _ in range(2))
    table = first.token_embedding.weight
    assert table.shape[0] == 49408
    assert torch.equal(table[ids], model.token_embedding.weight.half().float())
    assert torch.equal(table, second.token_embedding.weight)
    other = official.tokenize("zebra")[0, 1]
    assert float(table[other].std()) == pytest.approx(float(table[ids].std()), rel=0.3)
    assert clip.threshold(first) == pytest.approx(clip.threshold(model), abs=1e-2)
    tokens = official.tokenize(CAPTIONS, 40)
    short = torch.stack([clip._tokenize(caption) for caption in CAPTIONS])
    with torch.no_grad():
        assert torch.allclose(first.encode_text(tokens), model.encode_text(short), atol=2e-2)
    texts = ["a photo of a Zebra.", "itap of a house, people and a zebra"]
    assert clip_network.load(tmp_path / "clip.safetensors").unseen_words(texts) == ["zebra"]


def stopping(function, after):
    """`function` until it has been called `after` times; then the run is cut off."""
    calls = []

    def once_too_often(*arguments, **options):
        calls.append(1)
        if len(calls) > after:
            raise KeyboardInterrupt
        return function(*arguments, **options)

    return once_too_often


def test_a_stopped_training_goes_on_as_if_it_had_not_been(monkeypatch, tmp_path):
    for module in (clip, clip_network):
        monkeypatch.setattr(module, "GRID", 4)  # 32 pixels
    images = noise(4)[:, :32, :32]
    options = dict(tokens=32, collage=0.5, warmup=2, steps=4, keep=2)
    whole = clip.train(images, CAPTIONS, state=tmp_path / "whole.pt", **options)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(clip, "losses", stopping(clip.losses, 3))
        clip.train(images, CAPTIONS, state=tmp_path / "halves.pt", **options)
    assert clip.training.load_state(tmp_path / "halves.pt")["step"] == 2
    halves = clip.train(images, CAPTIONS, state=tmp_path / "halves.pt", **options)
    assert halves["step"] == 4 and halves["images"] == whole["images"]
    assert all(torch.equal(whole["model"][name], halves["model"][name]) for name in whole["model"])


def test_the_encoder_has_the_promised_maps_and_survives_its_file(tmp_path):
    features = encoder.build().eval()
    images = encoder.normalise(noise(1))
    with torch.no_grad():
        maps = features(images)
        assert features.channels == encoder.CHANNELS
        assert [tuple(m.shape[1:]) for m in maps] == [(24, 32, 32), (48, 16, 16), (96, 16, 16), (128, 16, 16)]
        encoder.save(features, tmp_path / "encoder.safetensors")
        assert (tmp_path / "encoder.safetensors").stat().st_size < 1.5e6
        again, coarse = (
            encoder_network.load(tmp_path / "encoder.safetensors", output_stride=stride) for stride in (8, 16)
        )
        assert torch.allclose(again(images)[-1], maps[-1], atol=0.05)
        assert [m.shape[-1] for m in coarse(images)] == [32, 16, 8, 8]


@pytest.mark.skipif(not clip.WEIGHTS.exists(), reason="the miniature CLIP has not been trained here")
def test_the_committed_weights_name_true_masks(tmp_path):
    drawn = [scenes.storybook.draw(scenes.HELD_OUT + i) for i in range(2)]
    arrays = {name: np.stack([getattr(scene, name) for scene in drawn]) for name in scenes.ARRAYS}
    found = clip.evaluate(clip.load(), scenes.Scenes(**arrays, captions=[scene.caption for scene in drawn]))
    assert found["accuracy"] >= 0.6 and found["auc"] > 0.9
