"""Mask models: the contract of every file, and SAM against its own package."""

from importlib import import_module
from pathlib import Path

import allowed
import numpy as np
import pytest
import torch
from pycocotools import mask as coco
from segment_anything import SamAutomaticMaskGenerator
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer
from segment_anything.utils.amg import batched_mask_to_box, build_point_grid

from plg_utils import datasets
from plg_utils import masks as mask_models
from plg_utils.masks import _encoder, _everything, _two_way, sam, sam_official
from plg_utils.miniature import DEFAULTS
from plg_utils.records import Masks

NAMES = sorted(path.stem for path in Path(mask_models.__file__).parent.glob("[a-z]*.py"))
KEEP_ALL = {"points_per_side": 3, "pred_iou_thresh": 0.0, "stability_score_thresh": 0.0}
KEEP_ALL["stability_score_offset"] = 0.0005  # the logits of a network with random weights are small


def package_decoder(channels, heads, depth=2, rate=2, mlp_dim=8, activation=torch.nn.GELU, **head):
    """The package's mask decoder with random weights."""
    options = {"mlp_dim": mlp_dim, "num_heads": heads, "attention_downsample_rate": rate}
    return MaskDecoder(
        num_multimask_outputs=3,
        transformer=TwoWayTransformer(depth=depth, embedding_dim=channels, **options),
        transformer_dim=channels,
        activation=activation,
        **{"iou_head_depth": 2, "iou_head_hidden_dim": 8} | head,
    )


def package_sam(image_size, patch, width, encoder, decoder, **options):
    """The package's own network with random weights."""
    torch.manual_seed(0)
    grid = image_size // patch
    shape = {"img_size": image_size, "patch_size": patch, "out_chans": width}
    model = Sam(
        image_encoder=ImageEncoderViT(**shape, **encoder),
        prompt_encoder=PromptEncoder(
            embed_dim=width, image_embedding_size=(grid, grid), input_image_size=(image_size,) * 2, mask_in_chans=4
        ),
        mask_decoder=package_decoder(width, **decoder),
        **options,
    )
    return model.eval()


def toy_sam():
    """A network with few channels, whose masks are of all sizes."""
    encoder = {"embed_dim": 8, "depth": 1, "num_heads": 1, "mlp_ratio": 1}
    return package_sam(32, 8, 8, encoder, {"heads": 1, "depth": 1, "rate": 1})


def random_images(*sizes):
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes]


@pytest.fixture
def toy(monkeypatch):
    """A model that `sam.build` loads in place of any checkpoint."""
    model = toy_sam()
    model.mask_decoder.iou_prediction_head.layers[-1].bias.data += 0.5  # so that a threshold can lie among them
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


def agree(ours, official, near=2):
    """Whether two records are the same but for a few pixels whose logit is nearly 0."""
    assert len(ours) == len(official) and ours.size == official.size
    np.testing.assert_allclose(ours.predicted_iou, official.predicted_iou, atol=1e-5)
    np.testing.assert_allclose(ours.stability, official.stability, atol=0.01)
    assert (ours.dense() != official.dense()).sum() <= near


def recorded(official):
    """Records of the package's generator as `Masks`."""
    dense = np.stack([record["segmentation"] for record in official])
    scores = ([record[name] for record in official] for name in ("predicted_iou", "stability_score"))
    return Masks.from_dense(dense, *scores)


CHANGED = [
    {"box_nms_thresh": 1.0},
    {"pred_iou_thresh": 0.15, "stability_score_thresh": 0.925},
    {"crop_n_layers": 1, "box_nms_thresh": 0.7},
    {"crop_n_layers": 1, "box_nms_thresh": 1.0, "pred_iou_thresh": 0.15, "stability_score_thresh": 0.925},
]


@pytest.mark.parametrize("size", [(20, 30), (32, 32), (50, 34)])
@pytest.mark.parametrize("changed", CHANGED, ids=str)
def test_masks_are_those_of_the_package_in_its_order(toy, changed, size):
    options, image = KEEP_ALL | changed, random_images(size)[0]
    (segments,) = sam.build(**options, points_per_batch=2)([image])
    official = SamAutomaticMaskGenerator(toy, **options, points_per_batch=4).generate(image)
    assert official
    agree(segments, recorded(official))
    assert "crop_n_layers" in changed or (np.diff(segments.predicted_iou) <= 0).all()
    assert all(isinstance(rle["counts"], str) for rle in segments.rles)
    assert segments.areas().tolist() == [int(coco.area(rle)) for rle in segments.rles]
    (same,) = sam_official.build(**options)([image])
    agree(segments, same)


CROPS = [
    {"crop_overlap_ratio": 0.1},
    {"crop_overlap_ratio": 0.6, "crop_nms_thresh": 0.3},
    {"crop_n_points_downscale_factor": 2},
    {"crop_n_layers": 2, "crop_n_points_downscale_factor": 2, "crop_nms_thresh": 1.0},
    {"points_per_side": None, "point_grids": [np.array([[0.3, 0.6], [0.8, 0.2]]), np.array([[0.5, 0.5]])]},
    {"points_per_side": None, "point_grids": [np.array([[0.2, 0.9], [0.1, 0.5], [0.5, 0.5]])], "crop_n_layers": 0},
]


@pytest.mark.parametrize("changed", CROPS, ids=str)
def test_crops_and_points_are_those_of_the_package(toy, changed):
    options = KEEP_ALL | {"crop_n_layers": 1, "points_per_side": 4} | changed
    image = random_images((26, 34))[0]
    expected = recorded(SamAutomaticMaskGenerator(toy, **options).generate(image))
    for name in ("sam", "sam_official"):
        (found,) = mask_models.build(name, **options)([image])
        agree(found, expected)


@pytest.mark.parametrize("name", ["sam", "sam_official"])
def test_point_grids_that_do_not_fit_are_refused(toy, name):
    grid = [[0.5, 0.5]]
    for options, message in (
        ({"point_grids": [grid], "points_per_side": 3}, "leave points_per_side and density out"),
        ({"point_grids": [grid], "crop_n_layers": 1}, r"give 2 of them \(crop_n_layers \+ 1\)"),
        ({"point_grids": [[[16, 16]]]}, "from 0 to 1"),
    ):
        with pytest.raises(ValueError, match=message):
            mask_models.build(name, **options)


@pytest.mark.parametrize(
    "options", [{}, {"crop_n_layers": 1, "points_per_side": 4, "crop_n_points_downscale_factor": 2}], ids=str
)
def test_the_miniature_finds_what_the_package_finds(options):
    data = datasets.load("storybook", labelled=1, limit=1)
    images = [sample.image() for sample in (*data.labelled, *data.unlabelled)]
    for ours, official in zip(sam.build(**options)(images), sam_official.build(**options)(images), strict=True):
        assert len(ours) > 1
        agree(ours, official)


DECODERS = {  # channels, heads; of the decoder; tokens of a prompt, size of the embedding, prompts
    "SAM's numbers": ((256, 8), {}, 2, (5, 7), 3),
    "the miniature's": ((64, 2), {"activation": torch.nn.ReLU}, 2, (4, 4), 9),
    "three layers, one head": ((16, 1), {"depth": 3}, 3, (2, 9), 2),
    "one layer, all channels": ((32, 4), {"depth": 1, "rate": 1}, 1, (3, 3), 1),
}


@pytest.mark.parametrize("case", DECODERS.values(), ids=DECODERS)
@torch.inference_mode()
def test_the_decoder_by_algebra_is_the_package_s(case, monkeypatch):
    shape, options, tokens, size, prompts = case
    torch.manual_seed(0)
    decoder = package_decoder(*shape, **options).eval().double()
    for weight in decoder.parameters():  # those, too, that start with 0 or 1
        weight += 0.2 * torch.randn_like(weight)
    image, place, dense = torch.randn(3, 1, shape[0], *size, dtype=torch.double)
    sparse = torch.randn(prompts, tokens, shape[0], dtype=torch.double)
    monkeypatch.setattr(_two_way, "TOKENS_AT_ONCE", 2 * size[0] * size[1])  # two prompts, then two and so on
    good = torch.rand(prompts, 3) < 0.6
    good[0] = torch.tensor([True, False, True])

    def ours():
        algebra = _two_way.Decoder(decoder, image + dense, place)
        outputs = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight]).expand(prompts, -1, -1)
        answers, states = algebra.transform(torch.cat([outputs, sparse], dim=1))
        assert [len(state[0]) for state in states][:-1] == [2] * ((prompts - 1) // 2)
        masks = algebra.draw(states, answers, good)
        return masks, decoder.iou_prediction_head(answers[:, 0])

    def theirs():
        masks, scores = decoder.predict_masks(image, place, sparse, dense)
        return masks[:, 1:][good], scores

    exact = theirs()
    for found, expected in zip(ours(), exact, strict=True):
        limit = 1e-6 if found.dtype == torch.float else 1e-9
        torch.testing.assert_close(found.double(), expected, atol=1e-7, rtol=limit)
    decoder.float()
    image, place, dense, sparse = (each.float() for each in (image, place, dense, sparse))
    no_worse(ours(), theirs(), exact)
    with torch.autocast("cpu", torch.bfloat16):
        no_worse(ours(), theirs(), exact)


def no_worse(found, usual, exact):
    """Whether results are as near to the exact ones as the package's, which rounds at other places."""
    for ours, theirs, expected in zip(found, usual, exact, strict=True):
        error, limit = ((each.double() - expected).square().mean().sqrt() for each in (ours, theirs))
        assert error < 2 * limit, (float(error), float(limit))


ENCODERS = {
    "windows that fit": {"img_size": 32, "window_size": 2},
    "windows over the edge": {"img_size": 40, "window_size": 3},
    "no bias": {"img_size": 40, "window_size": 2, "qkv_bias": False},
    "no places": {"img_size": 24, "window_size": 2, "use_rel_pos": False, "use_abs_pos": False},
}


@pytest.mark.parametrize("options", ENCODERS.values(), ids=ENCODERS)
@pytest.mark.parametrize("at_once", [1, 40, 300])  # one query of one head, a few of it, several heads
@torch.inference_mode()
def test_the_encoder_is_the_package_s(options, at_once, monkeypatch):
    torch.manual_seed(0)
    shape = {"patch_size": 8, "embed_dim": 12, "depth": 3, "num_heads": 3, "out_chans": 4, "global_attn_indexes": (1,)}
    encoder = ImageEncoderViT(**({"use_rel_pos": True} | shape | options)).eval().double()
    for weight in encoder.parameters():
        weight += 0.2 * torch.randn_like(weight)
    images = torch.randn(2, 3, options["img_size"], options["img_size"], dtype=torch.double)
    exact = encoder(images)
    monkeypatch.setattr(_encoder, "ON_CPU", at_once)
    torch.testing.assert_close(_encoder.encode(encoder, images), exact, atol=1e-12, rtol=1e-12)
    encoder, images = encoder.float(), images.float()
    expected = encoder(images)
    no_worse([_encoder.encode(encoder, images)], [expected], [exact])
    with torch.autocast("cpu", torch.bfloat16):
        no_worse([_encoder.encode(encoder, images)], [encoder(images)], [exact])
    monkeypatch.undo()
    monkeypatch.setattr(_encoder, "attend", None)  # with so few scores the blocks are taken as they are
    assert torch.equal(_encoder.encode(encoder, images), expected)


def test_points_well_inside_good_masks_are_covered(toy):
    """By plain loops; a pixel of the toy's masks is two of its input."""
    torch.manual_seed(0)
    everything = _everything.SegmentEverything(toy, points_per_side=1, pred_iou_thresh=0.6)
    small = torch.rand(6, 4, 4).repeat_interleave(4, 1).repeat_interleave(4, 2) - 0.4
    scores = torch.tensor([0.7, 0.79, 0.81, 0.9, 0.8, 0.95])
    points = torch.rand(200, 2) * 32
    expected = []
    for x, y in (points / 2).long().tolist():
        window = small[:, max(0, y - 1) : y + 2, max(0, x - 1) : x + 2]
        expected.append(any(score > 0.8 and (mask > 0).all() for mask, score in zip(window, scores, strict=True)))
    boxes = torch.zeros(6, 4, dtype=torch.long)
    found = everything.covered(points, _everything.Candidates(small, boxes, scores, scores))
    assert found.tolist() == expected and 0 < sum(expected) < 200
    none = everything.covered(points, _everything.Candidates(small, boxes, scores - 0.5, scores))
    assert not none.any()


def test_covered_points_are_skipped_if_that_is_asked_for(monkeypatch):
    data = datasets.load("storybook", labelled=1, limit=1)
    image, asked, decode = data.unlabelled[0].image(), [], _everything.SegmentEverything.decode
    monkeypatch.setattr(_everything.SegmentEverything, "decode", lambda *a: asked.append(a[2]) or decode(*a))
    (exact,) = sam.build()([image])
    grid = torch.as_tensor(build_point_grid(8) * 128)
    assert len(asked) == 1 and torch.equal(asked[0], grid)
    (fast,) = sam.build(skip_covered=True)([image])
    first, later = asked[1:]
    assert torch.equal(first, grid[::5])
    assert 5 < len(later) < 50 and len({*map(tuple, torch.cat([first, later]).tolist())}) == len(first) + len(later)
    overlap = coco.iou(list(exact.rles), list(fast.rles), [0] * len(fast))
    assert (overlap.max(axis=1) > 0.9).mean() > 0.8


def test_boxes_and_areas_by_the_package():
    masks = torch.rand(40, 9, 13) < torch.rand(40, 1, 1) * 0.3
    masks[:2] = False
    by_column = masks.transpose(1, 2).contiguous()
    boxes = _everything.boxes_of(*_everything.touched(by_column))
    assert boxes.tolist() == batched_mask_to_box(masks).tolist()
    assert _everything.count(by_column).tolist() == masks.sum(dim=(1, 2)).tolist()
    assert _everything.count(torch.ones(1, 2, 40000, dtype=torch.bool)).tolist() == [80000]  # more than int16 counts


def test_fewer_points_at_once_where_memory_does_not_suffice(toy):
    everything = _everything.SegmentEverything(toy, points_per_side=1, points_per_batch=8)
    asked = []

    def greedy(points):
        asked.append(len(points))
        if len(points) > 3:
            raise torch.cuda.OutOfMemoryError("out of memory")
        return points

    with pytest.warns(UserWarning, match="from now on 2 points at once"):
        found = list(everything.halving(greedy, torch.arange(11)))
    assert torch.cat(found).tolist() == list(range(11)) and asked == [8, 4, 2, 2, 2, 2, 2, 1]


def test_half_precision_is_asked_for(toy):
    image = random_images((20, 30))[0]
    (full,) = sam.build(**KEEP_ALL, box_nms_thresh=1.0)([image])
    (half,) = sam.build(**KEEP_ALL, box_nms_thresh=1.0, precision="bf16")([image])
    assert len(half) > 0 and half.predicted_iou.dtype == np.float32
    assert not np.array_equal(half.predicted_iou, full.predicted_iou[: len(half)])
    with pytest.raises(ValueError, match="no precision 'fp8', only fp32, bf16"):
        sam.build(**KEEP_ALL, precision="fp8")


@pytest.mark.parametrize("size", [(1, 1), (2, 2), (3, 90), (5, 4)])
def test_crops_of_tiny_images_without_a_pixel_are_left_out(toy, size):
    options = KEEP_ALL | {"crop_n_layers": 2, "points_per_side": 1}
    ours, official = (mask_models.build(name, **options)(random_images(size))[0] for name in ("sam", "sam_official"))
    assert ours.size == size
    agree(ours, official)


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("points_per_side", 0, "give a whole number from 1 on"),  # was one point
        ("crop_n_layers", -1, "give a whole number from 0 on"),
        ("box_nms_thresh", 70, "give a share from 0 to 1"),  # was kept: each thing came back many times
    ],
)
def test_options_of_masks_out_of_their_range_are_refused(name, value, says):
    for file in NAMES:
        with pytest.raises(ValueError, match=f"{name} is {value}; {says}"):
            mask_models.build(file, checkpoint=None, **{name: value})


def test_options_of_the_masks_of_the_package():
    known = {"mask_model": "sam", "mask_options": {}}
    allowed.check_options({"mask_model": "sam_official", "mask_options": {"tile": 64, "box_nms_thresh": 0.5}}, known)
    with pytest.raises(ValueError, match="did you mean 'box_nms_thresh'"):
        allowed.check_options({"mask_model": "sam_official", "mask_options": {"box_nms_tresh": 0.5}}, known)
    with pytest.raises(ValueError, match="needs OpenCV, which this project does not install: use min_area"):
        sam_official.build(checkpoint=None, min_mask_region_area=10)


def test_small_masks_are_dropped(toy):
    image, options = random_images((20, 30))[0], KEEP_ALL | {"box_nms_thresh": 1.0}
    (everything,) = sam.build(**options)([image])
    areas = everything.areas()
    large = areas > np.median(areas)
    assert sam.build(**options, min_area=int(np.median(areas)) + 1)([image])[0].rles == everything.take(large).rles
    assert 0 < large.sum() < len(large)


@pytest.mark.parametrize("name", ["sam", "sam_official"])
def test_an_image_without_masks_is_an_empty_record(toy, name):
    for crop_n_layers in (0, 1):
        options = KEEP_ALL | {"pred_iou_thresh": 1e9, "crop_n_layers": crop_n_layers}
        (nothing,) = mask_models.build(name, **options)(random_images((20, 30)))
        assert nothing.dense().shape == (0, 20, 30) and nothing.predicted_iou.dtype == np.float32


def test_thresholds_that_are_not_given_are_the_checkpoint_s_own(monkeypatch):
    seen = {}

    def spy(model, **options):
        seen.update(options)

    monkeypatch.setattr(sam, "load", lambda checkpoint, model=None: toy_sam())
    monkeypatch.setattr(sam, "SegmentEverything", spy)
    for checkpoint, defaults in (("miniature_sam", DEFAULTS["miniature_sam"]), ("sam_vit_h", sam.OFFICIAL)):
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


@pytest.mark.parametrize("name", ["sam", "sam_official"])
def test_what_is_no_sam_is_refused(name, tmp_path):
    (tmp_path / "weights.pth").write_bytes(b"")
    for checkpoint, message in (
        (str(tmp_path / "weights.pth"), "weights.pth is not a readable checkpoint"),
        ("sam_vit_x", "neither a file nor a checkpoint"),
        ("miniature_clip", "miniature_clip is not for the mask model sam .*take one of miniature_sam, sam_vit_b"),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            mask_models.build(name, checkpoint=checkpoint)


@pytest.mark.parametrize(("crop_n_layers", "pixels"), [(0, 2 * 40 * 50), (1, 40 * 7)])  # two masks, columns of one
def test_masks_of_large_photos_are_drawn_a_few_at_a_time(toy, crop_n_layers, pixels, monkeypatch):
    """Fewer at once change nothing; the largest stack of each is counted."""
    image, every = random_images((40, 50))[0], {"box_nms_thresh": 1.0, "crop_nms_thresh": 1.0}
    options = KEEP_ALL | every | {"crop_n_layers": crop_n_layers}
    boxes = [np.array([[1, 2, 30, 31], [5, 5, 9, 9], [0, 0, 50, 40]])]

    def found():
        masks = [mask_models.build(name, **options)([image])[0] for name in ("sam", "sam_official")]
        return masks, sam.build_box_prompter()([image], boxes)

    whole, prompted = found()
    drawn, points = [], []
    from_dense, postprocess = Masks.from_dense.__func__, Sam.postprocess_masks
    count = classmethod(lambda cls, m, *a: drawn.append(len(m)) or from_dense(cls, m, *a))
    monkeypatch.setattr(Masks, "from_dense", count)
    monkeypatch.setattr(toy, "postprocess_masks", lambda m, *a: points.append(len(m)) or postprocess(toy, m, *a))
    monkeypatch.setattr(_everything, "PIXELS_AT_ONCE", pixels)
    for module in (sam, sam_official):
        monkeypatch.setattr(module, "PACKAGE_AT_ONCE", 3 * 2 * 40 * 50)
    few, prompted_few = found()
    assert max(drawn) <= 2 and len(drawn) > 1 and max(points) <= 8 and len(points) > 1  # crops are a quarter or so
    for one, other in zip(few, whole, strict=True):
        agree(one, other)
    for (masks, scores), (expected, expected_scores) in zip(prompted_few, prompted, strict=True):
        np.testing.assert_array_equal(masks, expected)
        np.testing.assert_allclose(scores, expected_scores, atol=1e-5)
