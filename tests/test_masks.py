"""Mask models: the contract of every file, and SAM against its own package."""

from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from pycocotools import mask as coco
from segment_anything import SamAutomaticMaskGenerator
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer

from plg_utils import masks as mask_models
from plg_utils.masks import sam
from plg_utils.records import Masks

NAMES = sorted(path.stem for path in Path(mask_models.__file__).parent.glob("[a-z]*.py"))
KEEP_ALL = {"points_per_side": 3, "pred_iou_thresh": 0.0, "stability_score_thresh": 0.0}


def toy_sam(image_size=32, patch=8, width=8):
    """The package's own network with a few channels and random weights; its masks are of all sizes."""
    torch.manual_seed(0)
    grid = image_size // patch
    model = Sam(
        image_encoder=ImageEncoderViT(
            img_size=image_size, patch_size=patch, embed_dim=width, depth=1, num_heads=1, mlp_ratio=1, out_chans=width
        ),
        prompt_encoder=PromptEncoder(
            embed_dim=width,
            image_embedding_size=(grid, grid),
            input_image_size=(image_size, image_size),
            mask_in_chans=4,
        ),
        mask_decoder=MaskDecoder(
            num_multimask_outputs=3,
            transformer=TwoWayTransformer(
                depth=1, embedding_dim=width, mlp_dim=8, num_heads=1, attention_downsample_rate=1
            ),
            transformer_dim=width,
            iou_head_depth=2,
            iou_head_hidden_dim=8,
        ),
    )
    return model.eval()


def random_images(*sizes):
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes]


@pytest.fixture
def toy(monkeypatch):
    """A model that `sam.build` loads in place of any checkpoint."""
    model = toy_sam()
    monkeypatch.setattr(sam, "load", lambda checkpoint, model_name=None: model)
    return model


@pytest.mark.parametrize("name", NAMES)
def test_contract(name):
    smoke = import_module(f"plg_utils.masks.{name}").SMOKE
    images = random_images((24, 36), (36, 24))
    segments = mask_models.build(name, **smoke)(images)
    assert [each.size for each in segments] == [(24, 36), (36, 24)]
    assert all(isinstance(each, Masks) for each in segments)
    assert all(len(each) == len(each.predicted_iou) == len(each.stability) for each in segments)
    assert max(len(each) for each in segments) > 0
    again = mask_models.build(name, **smoke)(images[1:])[0]
    assert again.rles == segments[1].rles


def test_masks_are_those_of_the_package_in_its_order(toy):
    image = random_images((20, 30))[0]
    (segments,) = sam.build(**KEEP_ALL, points_per_batch=4, box_nms_thresh=1.0)([image])
    official = SamAutomaticMaskGenerator(toy, **KEEP_ALL, points_per_batch=4, box_nms_thresh=1.0).generate(image)
    assert len(segments) == len(official) > 2
    assert (np.diff(segments.predicted_iou) <= 0).all()
    np.testing.assert_array_equal(segments.dense(), np.stack([record["segmentation"] for record in official]))
    np.testing.assert_allclose(segments.predicted_iou, [record["predicted_iou"] for record in official])
    np.testing.assert_allclose(segments.stability, [record["stability_score"] for record in official])
    assert all(isinstance(rle["counts"], str) for rle in segments.rles)


def test_small_masks_are_dropped(toy):
    image = random_images((20, 30))[0]
    (everything,) = sam.build(**KEEP_ALL, box_nms_thresh=1.0)([image])
    areas = everything.areas()
    cut = int(np.median(areas)) + 1
    (large,) = sam.build(**KEEP_ALL, box_nms_thresh=1.0, min_area=cut)([image])
    assert 0 < len(large) < len(everything)
    assert large.rles == tuple(rle for rle, area in zip(everything.rles, areas, strict=True) if area >= cut)


def test_an_image_without_masks_is_an_empty_record(toy):
    for crop_n_layers in (0, 1):
        options = KEEP_ALL | {"pred_iou_thresh": 1e9, "crop_n_layers": crop_n_layers}
        (nothing,) = sam.build(**options)(random_images((20, 30)))
        assert len(nothing) == 0
        assert nothing.dense().shape == (0, 20, 30)
        assert nothing.predicted_iou.dtype == np.float32


def test_thresholds_that_are_not_given_are_the_checkpoint_s_own(monkeypatch):
    seen = {}

    def spy(model, **options):
        seen.update(options)

    monkeypatch.setattr(sam, "load", lambda checkpoint, model=None: toy_sam())
    monkeypatch.setattr(sam, "Generator", spy)
    for checkpoint, defaults in (("miniature_sam", sam.MINIATURE), ("sam_vit_h", sam.OFFICIAL)):
        sam.build(checkpoint=checkpoint)
        assert {name: seen[name] for name in defaults} == defaults
    sam.build(checkpoint="sam_vit_b", points_per_side=7, pred_iou_thresh=0.0)
    assert (seen["points_per_side"], seen["pred_iou_thresh"], seen["stability_score_thresh"]) == (7, 0.0, 0.95)
    for density, points in ((0.5, 16), (0.75, 24), (0.01, 1)):
        sam.build(checkpoint="sam_vit_h", density=density)
        assert seen["points_per_side"] == points
    for density in (0, -1.0, float("nan")):
        with pytest.raises(ValueError, match=f"density is {density}"):
            sam.build(checkpoint="sam_vit_h", density=density)


def test_a_file_must_come_with_its_model(tmp_path):
    path = tmp_path / "weights.pth"
    path.write_bytes(b"")
    with pytest.raises(ValueError, match="'vit_b', 'vit_l' or 'vit_h'"):
        sam.load(str(path))
    with pytest.raises(FileNotFoundError, match="neither a file nor a checkpoint"):
        sam.load("sam_vit_x")


def test_run_lengths_are_what_the_records_decode(toy):
    (segments,) = sam.build(**KEEP_ALL)(random_images((20, 30)))
    again = Masks.from_dense(segments.dense(), segments.predicted_iou, segments.stability)
    assert again.rles == segments.rles
    assert segments.areas().tolist() == [int(coco.area(rle)) for rle in segments.rles]
