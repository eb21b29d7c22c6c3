"""The miniature SAM: it is a Sam, its batched decoder is Sam's, training can be interrupted, weights are checked."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from miniatures import sam, scenes, training
from plg_utils.datasets import storybook

SETTINGS = {"points_per_side": 8, "pred_iou_thresh": 0.5, "stability_score_thresh": 0.6}
RECORDED = {"mean_best_iou": 0.82, "iou_error": 0.048}  # of sam.safetensors on 30 held-out scenes
TINY = {"images": 1, "points": 2, "boxes": 1, "tokens": 4, "scenes": 2, "warmup": 2, "log_every": 1}


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return sam.build().eval()


@pytest.fixture
def squares(monkeypatch):
    """A world of two scenes, each a square with a hole of another part, in the place of the drawn ones."""
    instances = np.zeros((2, 128, 128), np.uint8)
    instances[0, 16:80, 16:96] = 1
    instances[1, 40:120, 8:60] = 1
    parts = np.where(instances, 1, 0).astype(np.uint8)
    parts[0, 30:60, 30:60] = parts[1, 60:90, 20:50] = 2
    image = np.stack([90 * instances + 60 * (parts == 2) + 20] * 3, axis=3).astype(np.uint8)
    stuff = np.zeros_like(instances)
    world = scenes.Scenes(
        image=image, label=instances, instances=instances, parts=parts, stuff=stuff, captions=["a square"] * 2
    )
    monkeypatch.setattr(scenes, "load", lambda count, **options: world)
    return world


@torch.no_grad()
def test_decoding_all_prompts_of_a_batch_equals_sam_image_by_image(model):
    images = torch.randint(0, 256, (2, 3, 128, 128)).float()
    points = torch.tensor([[[8.0, 8], [60, 100], [127, 0]], [[64, 64], [3, 90], [20, 21]]])  # (B, K, 2)
    embeddings = model.image_encoder(model.preprocess(images))
    sparse, _ = model.prompt_encoder(points=(points.reshape(6, 1, 2), torch.ones(6, 1)), boxes=None, masks=None)
    dense = model.prompt_encoder.no_mask_embed.weight[0]
    pe = model.prompt_encoder.get_dense_pe()
    logits, quality = sam.decode(model.mask_decoder, embeddings, pe, sparse.unflatten(0, (2, 3)), dense)
    logits = sam.in_place(logits)

    asked = [
        {"image": x, "original_size": (128, 128), "point_coords": p[:, None], "point_labels": torch.ones(3, 1)}
        for x, p in zip(images, points, strict=True)
    ]
    several, single = (model(asked, multimask_output=multimask) for multimask in (True, False))
    for i in range(2):
        mine = slice(3 * i, 3 * i + 3)
        torch.testing.assert_close(logits[mine, 1:], several[i]["low_res_logits"], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(logits[mine, :1], single[i]["low_res_logits"], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(quality[mine, 1:], several[i]["iou_predictions"], atol=1e-5, rtol=1e-5)


def test_the_true_masks_of_a_pixel_are_its_object_and_its_part(squares):
    batch = sam.draw_batch(squares, np.random.default_rng(0), images=3, points=5, boxes=0)
    masks = sam.true_masks(batch["maps"], batch["pixels"])  # (B, K, 2, H, W)
    for maps, pixels, found in zip(batch["maps"], batch["pixels"], masks, strict=True):
        for (x, y), (whole, part) in zip(pixels.tolist(), found, strict=True):
            assert whole[y, x]
            assert part[y, x]
            assert not (part & ~whole).any()
            assert whole.sum() == (maps[sam.WHOLE] == maps[sam.WHOLE, y, x]).sum()


def test_interrupted_training_gives_the_same_bytes(squares, tmp_path):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    once = sam.train(folder=tmp_path / "once", steps=3, **TINY)
    twice = sam.train(folder=tmp_path / "twice", steps=3, sitting=2, **TINY)
    assert training.load_state(twice)["step"] == 2
    sam.train(folder=tmp_path / "twice", steps=3, **TINY)
    torch.set_num_threads(threads)
    a, b = (load_file(sam.finish(path, tmp_path / f"{i}.safetensors")) for i, path in enumerate((once, twice)))
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
    assert sum(t.nbytes for t in a.values()) <= 3e6
    fresh = sam.train(folder=tmp_path / "other", steps=1, seed=1, **TINY)
    c = load_file(sam.finish(fresh, tmp_path / "other.safetensors"))
    assert not all(torch.equal(a[name], c[name]) for name in a)


def test_load_says_what_is_wrong_with_a_file(model, tmp_path):
    weights = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(weights, tmp_path / "right.safetensors")
    assert sam.load(tmp_path / "right.safetensors").image_encoder.pos_embed.dtype == torch.float32
    weights["pixels"] = weights.pop("image_encoder.pos_embed")
    save_file(weights, tmp_path / "wrong.safetensors")
    with pytest.raises(ValueError, match=r"(?s)wrong.safetensors is not a file of this network.*pos_embed.*pixels"):
        sam.load(tmp_path / "wrong.safetensors")


@pytest.mark.skipif(not sam.WEIGHTS.exists(), reason="weights are not trained yet")
def test_trained_weights_find_the_objects():
    drawn = [storybook.draw(scenes.HELD_OUT + i) for i in range(2)]
    arrays = {name: np.stack([getattr(scene, name) for scene in drawn]) for name in scenes.ARRAYS}
    measured = sam.evaluate(sam.load(), scenes.Scenes(**arrays, captions=["", ""]), **SETTINGS)
    assert measured["mean_best_iou"] > RECORDED["mean_best_iou"] - 0.2
    assert measured["iou_error"] < RECORDED["iou_error"] + 0.1
