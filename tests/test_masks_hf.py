"""Masks by the networks of transformers, held against its own processors and against SAM's package.

All networks are the library's classes, small, with random weights.
"""

import re
import sys
import warnings
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save, save_file
from test_masks import agree, package_sam, random_images
from torchvision.transforms.v2 import functional as torchvision

from plg_utils import checkpoints, datasets, encoders, files
from plg_utils import masks as mask_models
from plg_utils.generators import concepts
from plg_utils.masks import hf, sam
from plg_utils.masks._everything import Resize

hub = pytest.importorskip("transformers")
KEEP_ALL = {"pred_iou_thresh": 0.0, "stability_score_thresh": 0.0, "box_nms_thresh": 1.0, "crop_nms_thresh": 1.0}
KEEP_ALL["stability_score_offset"] = 0.05  # the logits of a network with random weights are small
SIZES = [(40, 62), (70, 30)]  # landscape, portrait; the networks see 64 x 64 or 56 x 56
DECODER = hf.SMALL["mask_decoder_config"]
FEATURES = {"backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]], "fpn_hidden_size": 32}
SAM_3 = {
    "vision_config": concepts.tiny().to_dict()["vision_config"],
    "prompt_encoder_config": {"hidden_size": 32, "image_size": 56, "patch_size": 14},
    "mask_decoder_config": DECODER,
}


def sam_config(name):
    """A SAM or SAM-HQ of 64 x 64 pixels."""
    vision = {"hidden_size": 16, "output_channels": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision |= {"image_size": 64, "patch_size": 16, "mlp_dim": 32, "window_size": 2, "global_attn_indexes": [1]}
    prompts = {"hidden_size": 32, "image_size": 64, "patch_size": 16, "mask_input_channels": 4}
    decoder = DECODER | ({"vit_dim": 16} if name == "SamHQ" else {})
    return getattr(hub, f"{name}Config")(
        vision_config=vision | {"num_pos_feats": 16}, prompt_encoder_config=prompts, mask_decoder_config=decoder
    )


def edgetam_vision():
    model_args = {"in_chans": 3, "features_only": True, "out_indices": [0, 1, 2, 3]}
    backbone = hub.AutoConfig.for_model("timm_wrapper", architecture="repvit_m1.dist_in1k", model_args=model_args)
    return hub.EdgeTamVisionConfig(backbone_config=backbone, backbone_channel_list=[384, 192, 96, 48], **FEATURES)


def square(kind, side):
    return kind(size={"height": side, "width": side})


def small(name):
    """A network and its processor, which takes points in pixels of an image."""
    torch.manual_seed(0)
    if name in ("Sam", "SamHQ"):
        model, sides = getattr(hub, f"{name}Model")(sam_config(name)), {"height": 64, "width": 64}
        processor = getattr(hub, f"{name}Processor")(hub.SamImageProcessor(size={"longest_edge": 64}, pad_size=sides))
    elif name == "Sam3Tracker":
        model = hub.Sam3TrackerModel(hub.Sam3TrackerConfig(**SAM_3))
        processor = hub.Sam3TrackerProcessor(square(hub.Sam3ImageProcessor, 56))
    else:
        config = hf.SMALL | ({"vision_config": edgetam_vision()} if name == "EdgeTam" else {})
        model = getattr(hub, f"{name}Model")(getattr(hub, f"{name}Config")(**config))
        processor = hub.Sam2Processor(square(hub.Sam2ImageProcessor, 64))
    for key, weight in model.named_parameters():  # else all images and points are nearly the same
        if weight.dim() > 1 and "timm_model" not in key:
            weight.data.normal_(std=0.15)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        model.train().vision_encoder(torch.randn(2, 3, *[56 if name == "Sam3Tracker" else 64] * 2))
    places = model.shared_image_embedding.positional_embedding.data.normal_()
    model.prompt_encoder.shared_embedding.positional_embedding.data.copy_(places)
    return model.eval(), processor


NETWORKS = {"Sam": 0.88, "SamHQ": 0.88, "Sam2": 0.8, "EdgeTam": 0.8, "Sam3Tracker": 0.5}  # and their pred_iou_thresh


@pytest.fixture(scope="module", params=NETWORKS)
def network(request):
    return small(request.param)


def everything(network, **options):
    return hf.Everything(network[0], processor=network[1].image_processor, **KEEP_ALL | options)


@pytest.mark.parametrize("size", SIZES)
def test_logits_and_predicted_iou_are_those_of_the_library(network, size, monkeypatch):
    image, points = random_images(size)[0], np.random.default_rng(1).random((7, 2)) * size[::-1]
    segment = everything(network, points_per_side=None, point_grids=[points / size[::-1]], points_per_batch=3)
    asked, ask = [], hf.Everything.ask
    monkeypatch.setattr(hf.Everything, "ask", lambda *given: asked.append(ask(*given)) or asked[-1])
    found = segment(image)
    logits = torch.cat([draw(torch.ones_like(iou, dtype=torch.bool)) for iou, draw in asked])  # (21, r, r)
    predicted_iou = torch.cat([iou for iou, _ in asked])

    inputs = network[1](images=image, input_points=[[[point] for point in points.tolist()]], return_tensors="pt")
    sizes = {name: inputs.pop(name) for name in ("original_sizes", "reshaped_input_sizes") if name in inputs}
    with torch.inference_mode():
        outputs = network[0](**inputs)
        turned = network[0](**inputs | {"pixel_values": inputs["pixel_values"].flip(3)})
    assert outputs.pred_masks.std(dim=1).mean() > 0.01  # over the points
    assert (outputs.pred_masks - turned.pred_masks).std() > 0.01
    torch.testing.assert_close(predicted_iou, outputs.iou_scores[0], atol=1e-5, rtol=0)
    near = {"atol": 1e-5 * float(logits.abs().max()), "rtol": 0}
    torch.testing.assert_close(logits, outputs.pred_masks[0].flatten(0, 1), **near)
    (whole,) = network[1].post_process_masks(outputs.pred_masks, binarize=False, **sizes)
    ours = torch.cat([*segment.enlarge(logits, size)], dim=1).transpose(1, 2)
    torch.testing.assert_close(ours, whole.flatten(0, 1), **near)
    order = outputs.iou_scores.flatten().argsort(descending=True)
    np.testing.assert_allclose(found.predicted_iou, outputs.iou_scores.flatten()[order], atol=1e-5)
    assert (found.dense() != (whole.flatten(0, 1)[order] > 0).numpy()).sum() <= 2


@pytest.mark.parametrize("size", [(48, 96), (96, 48)])
def test_every_cell_of_the_image_is_asked_at_the_pixel_that_the_network_sees(network, size):
    segment, seen = everything(network, points_per_side=4), {}
    hooks = [
        network[0].prompt_encoder.register_forward_pre_hook(
            lambda _, given, named: seen.update(points=named["input_points"][0, :, 0].numpy()), with_kwargs=True
        ),
        network[0].vision_encoder.register_forward_pre_hook(
            lambda _, given, named: seen.update(pixels=(given or [named["pixel_values"]])[0][0].numpy()),
            with_kwargs=True,
        ),
    ]
    cells = (np.stack(np.meshgrid(range(4), range(4)), axis=2).reshape(-1, 2) + 0.5) / 4  # x, y in 0 to 1
    for place in (0, 3, 12, 15):  # in the corners
        x, y = cells[place] * size[::-1]
        image = np.zeros((*size, 3), dtype=np.uint8)
        image[int(y) - 1 : int(y) + 2, int(x) - 1 : int(x) + 2] = 255
        segment(image)
        bright = seen["pixels"].mean(axis=0).clip(min=0)  # of padding 0, of black less
        centre = [(bright.sum(axis=axis) * (np.arange(len(bright)) + 0.5)).sum() / bright.sum() for axis in (0, 1)]
        np.testing.assert_allclose(seen["points"][place], centre, atol=1.2)
    assert len(seen["points"]) == 16
    for hook in hooks:
        hook.remove()


# SAM's weights by its package and by transformers

RENAMED = (  # what convert_sam_to_hf.py of transformers does with the names of the package
    ("image_encoder", "vision_encoder"),
    ("patch_embed.proj", "patch_embed.projection"),
    ("blocks", "layers"),
    (".norm", ".layer_norm"),
    ("pe_layer.positional_encoding_gaussian_matrix", "shared_embedding.positional_embedding"),
    ("point_embeddings", "point_embed"),
    *((f"neck.{old}.", f"neck.{new}.") for old, new in enumerate(("conv1", "layer_norm1", "conv2", "layer_norm2"))),
    ("mask_downscaling.0", "mask_embed.conv1"),
    ("mask_downscaling.1", "mask_embed.layer_norm1"),
    ("mask_downscaling.3", "mask_embed.conv2"),
    ("mask_downscaling.4", "mask_embed.layer_norm2"),
    ("mask_downscaling.6", "mask_embed.conv3"),
    ("output_upscaling.0", "upscale_conv1"),
    ("output_upscaling.1", "upscale_layer_norm"),
    ("output_upscaling.3", "upscale_conv2"),
)
MLP = ("proj_in", "layers.0", "proj_out")


def renamed(state):
    found = {}
    for name, weight in state.items():
        for old, new in RENAMED:
            name = name.replace(old, new)
        name = re.sub(r"((?:head|mlps\.\d)\.)layers\.(\d)", lambda part: part[1] + MLP[int(part[2])], name)
        found[name] = weight
    found["shared_image_embedding.positional_embedding"] = found["prompt_encoder.shared_embedding.positional_embedding"]
    return found


@pytest.fixture
def twice(monkeypatch):
    """One SAM by its package and by transformers, in place of any checkpoint."""
    encoder = {"embed_dim": 16, "depth": 2, "num_heads": 2, "mlp_ratio": 2, "use_rel_pos": True, "window_size": 2}
    encoder |= {"global_attn_indexes": (1,), "norm_layer": partial(torch.nn.LayerNorm, eps=1e-6)}
    decoder = {"heads": 2, "mlp_dim": 32, "iou_head_depth": 3, "iou_head_hidden_dim": 32}
    colours = {"pixel_mean": [123.675, 116.28, 103.53], "pixel_std": [58.395, 57.12, 57.375]}
    package = package_sam(64, 16, 32, encoder, decoder, **colours)
    for weight in package.parameters():
        weight.data += 0.15 * torch.randn_like(weight)  # also of biases and relative positions, which begin with 0
    package.mask_decoder.iou_prediction_head.layers[-1].bias.data += 1  # so that a threshold can lie among them
    config = sam_config("Sam")
    config.mask_decoder_config.layer_norm_eps = 1e-5  # the package's; transformers has 1e-6
    model = hub.SamModel(config).eval()
    model.load_state_dict(renamed(package.state_dict()))
    processor = hub.SamImageProcessor(size={"longest_edge": 64}, pad_size={"height": 64, "width": 64})
    monkeypatch.setattr(sam, "load", lambda checkpoint, model=None: package)
    monkeypatch.setattr(hf, "load", lambda checkpoint: (model, processor))
    return package, model


def both(options, image):
    return [mask_models.build(name, **KEEP_ALL | options)([image])[0] for name in ("hf", "sam")]


def resized_by_torchvision(resize, image):
    """What transformers' image processor does; the package asks Pillow, and some pixels differ by one level of 256."""
    shape = resize.get_preprocess_shape(*image.shape[:2], resize.target_length)
    pixels = torchvision.resize(torch.from_numpy(image).permute(2, 0, 1), shape, antialias=True)
    return pixels.permute(1, 2, 0).numpy()


CHANGED = [
    {"points_per_side": 4, "min_area": 30, "box_nms_thresh": 0.9},
    {"points_per_side": 4, "crop_n_layers": 1, "box_nms_thresh": 0.7, "crop_nms_thresh": 0.7},
    {"points_per_side": 4, "crop_n_layers": 2, "crop_n_points_downscale_factor": 2, "crop_overlap_ratio": 0.6},
    {"points_per_side": 4, "pred_iou_thresh": 0.3, "stability_score_thresh": 0.05},
]


@pytest.mark.parametrize("size", [(26, 34), (70, 100)])
@pytest.mark.parametrize("changed", CHANGED, ids=str)
def test_the_weights_of_sam_give_the_masks_of_its_package(twice, size, changed, monkeypatch):
    monkeypatch.setattr(Resize, "apply_image", resized_by_torchvision)
    ours, package = both(changed, random_images(size)[0])
    assert len(ours) > 0
    agree(ours, package)


def test_the_two_resizings_differ_by_a_level(twice):
    image = datasets.load("storybook", labelled=1, limit=1).labelled[0].image()
    side = twice[0].image_encoder.img_size
    pixels = Resize(side).apply_image(image).astype(int), resized_by_torchvision(Resize(side), image)
    assert np.abs(np.subtract(*pixels)).max() <= 1
    agree(*both({"points_per_side": 4}, image))


# Loading


def write(folder, model, processor):
    """A folder in the layout of the hub."""
    model.config.save_pretrained(folder)
    weights = {name: weight.contiguous().clone() for name, weight in model.state_dict().items()}
    save_file(weights, folder / checkpoints.WEIGHTS, metadata={"format": "pt"})
    processor.save_pretrained(folder)
    return folder


def test_a_folder_of_each_network_is_loaded(network, tmp_path):
    model, processor = network
    folder, image = write(tmp_path, model, processor.image_processor), random_images((30, 40))[0]
    options = KEEP_ALL | {"points_per_side": 2}
    (found,) = mask_models.build("hf", checkpoint=folder, **options)([image])
    agree(found, everything(network, points_per_side=2)(image))
    loaded, _ = hf.load(folder)
    assert not loaded.training
    chosen = mask_models.build("hf", checkpoint=folder).__closure__
    segment = next(cell.cell_contents for cell in chosen if isinstance(cell.cell_contents, hf.Everything))
    assert segment.pred_iou_thresh == NETWORKS[type(model).__name__.removesuffix("Model")]
    assert (segment.stability_score_thresh, segment.points_per_side) == (0.95, 32)


def test_the_published_repositories_hold_the_video_models(tmp_path):
    """SAM 2.1, EdgeTAM and SAM 3 are on the hub as networks for video, of which ours is a part."""
    memory = {"image_size": 64, "memory_attention_hidden_size": 32, "memory_encoder_hidden_size": 32}
    edgetam = hub.EdgeTamVideoConfig(**hf.SMALL | {"vision_config": edgetam_vision()}, **memory)
    tracker = hub.Sam3TrackerVideoConfig(**SAM_3, image_size=56)
    sam_3 = hub.Sam3VideoConfig(detector_config=concepts.tiny().to_dict(), tracker_config=tracker.to_dict())
    for video, config, side, name in (
        (hub.Sam2VideoModel, hub.Sam2VideoConfig(**hf.SMALL, image_size=64), 64, "Sam2Model"),
        (hub.EdgeTamVideoModel, edgetam, 64, "EdgeTamModel"),
        (hub.Sam3VideoModel, sam_3, 56, "Sam3TrackerModel"),
    ):
        whole, of_sam_3 = video(config).bfloat16(), video is hub.Sam3VideoModel
        processor = square(hub.Sam3ImageProcessor if of_sam_3 else hub.Sam2ImageProcessor, side)
        place = write(tmp_path / name, whole, processor)
        if of_sam_3:  # which has one file for all its processors
            settings = files.read_json(place / "preprocessor_config.json")
            (place / "preprocessor_config.json").unlink()
            content = {"image_processor": settings | {"image_processor_type": "Sam3ImageProcessorFast"}}
            files.write_json(place / "processor_config.json", content)
        model, loaded = hf.load(place)
        assert type(model).__name__ == name and model.dtype == torch.float32
        assert loaded.image_mean == processor.image_mean
        state = whole.state_dict()
        prefixes = {"vision_encoder.neck.": "tracker_neck.", "vision_encoder.": "detector_model.vision_encoder."}
        for key, weight in model.state_dict().items():
            if of_sam_3:
                start = next((start for start in prefixes if key.startswith(start)), "")
                key = prefixes.get(start, "tracker_model.") + key.removeprefix(start)
            assert torch.equal(weight.float(), state[key].float()), key


def test_weights_and_processor_are_whole_and_of_one_network(tmp_path):
    """Rows: content of config.json, weights (None: cut), image processor, and what the error says."""
    model, whole = small("Sam2")
    state, own = {name: weight.clone() for name, weight in model.state_dict().items()}, whole.image_processor
    name, one = next(iter(state)), {"vision_encoder.neck.convs.0.bias": torch.zeros(32)}
    needs = "could not be loaded .*; it needs config.json, model.safetensors, preprocessor_config.json"
    other = "preprocessor_config.json .* is of another network: it resizes to .*"
    for number, (config, weights, pictures, says) in enumerate((
        ({"model_type": "bert"}, state, own, "there is no mask model in .*: 'bert', only edgetam, .*sam2.*sam_hq"),
        ({}, one, own, "another network than its config.json says: [0-9]+ of a Sam2Model are missing, e.g. mask"),
        ({"mask_decoder_config": DECODER | {"mlp_dim": 64}}, state, own, needs),
        ({}, state, None, needs),
        ({}, None, own, needs),
        ({}, state | {name: state[name] * np.nan}, own, f"{name} is nan or infinite"),
        ({}, state, hub.CLIPImageProcessor(), f"{other}224.*, a Sam2Model sees 64 pixels"),
        ({}, state, square(hub.Sam2ImageProcessor, 1024), f"{other}1024.*, a Sam2Model sees 64 pixels"),
    )):  # fmt: skip
        place = write(tmp_path / str(number), model, own)
        files.write_json(place / "config.json", files.read_json(place / "config.json") | config)
        (place / "preprocessor_config.json").unlink()
        if pictures:
            pictures.save_pretrained(place)
        file = place / checkpoints.WEIGHTS
        file.write_bytes(save(weights, {"format": "pt"}) if weights else file.read_bytes()[:999])
        with pytest.raises((ValueError, FileNotFoundError), match=says) as caught:
            mask_models.build("hf", checkpoint=place)
        assert "\n" not in str(caught.value)


def test_what_is_no_network_for_masks_is_refused(tmp_path, monkeypatch):
    small("Sam2")[0].save_pretrained(tmp_path / "parts", max_shard_size="20KB")
    (tmp_path / "own.safetensors").write_bytes(b"")
    for checkpoint, message in (
        (tmp_path / "own.safetensors", "own.safetensors has no config.json; it needs config.json"),
        (tmp_path / "parts", "needs model.safetensors, and it holds config.json, model-00001-of-"),
        ("sam_2.1_tiny", "neither a file nor a checkpoint; did you mean 'sam2.1_hiera_tiny'"),
    ):
        with pytest.raises(FileNotFoundError, match=message):
            mask_models.build("hf", checkpoint=checkpoint)
    for options, message in (
        ({"density": 0}, "density is 0"),
        ({"precision": "fp8"}, "no precision 'fp8', only fp32, bf16"),
    ):
        with pytest.raises(ValueError, match=message):
            mask_models.build("hf", checkpoint=None, **options)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match=re.escape("plg-utils[models]")):
        mask_models.build("hf")


# Options


def test_thresholds_that_leave_no_mask_are_told_with_the_best_predicted_iou():
    network = small("Sam2")
    image = random_images((30, 40))[0]
    best = everything(network, points_per_side=2)(image).predicted_iou.max()
    for options, lower in (
        ({"pred_iou_thresh": 0.99}, "pred_iou_thresh, which is 0.99"),
        ({"stability_score_thresh": 1.01}, "stability_score_thresh, which is 1.01"),
    ):
        with pytest.warns(UserWarning, match=f"best predicted IoU is {best:.3f}: lower {lower}, unless"):
            nothing = everything(network, points_per_side=2, points_per_batch=1, **options)(image)
        assert len(nothing) == 0 and nothing.dense().shape == (0, 30, 40)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(everything(network, points_per_side=2)(image)) == 12


@pytest.mark.parametrize(
    ("folder_of_choices", "file", "checkpoint", "says"),
    [
        (mask_models, "sam", "sam2.1_hiera_small", r"not for the mask model sam \(hf takes others\): take one of mini"),
        (mask_models, "hf", "sam_vit_h", "not for the mask model hf .*take one of sam_vit_base"),
        (mask_models, "hf", "facebook/sam2.1-hiera-tiny", "did you mean 'hub:facebook/sam2.1-hiera-tiny'"),
        (encoders, "clip", "RN50", r"encoder clip \(open_clip takes MODEL:TAG .*take one of miniature_clip, ViT-B/32"),
        (encoders, "clip", "ViT-B-16", "did you mean 'ViT-B/16'"),
    ],
)
def test_names_of_other_networks_are_refused_before_they_are_fetched(folder_of_choices, file, checkpoint, says):
    with pytest.raises((ValueError, FileNotFoundError), match=says):
        folder_of_choices.build(file, checkpoint=checkpoint)


@pytest.mark.parametrize("size", [(1, 200), (3, 90), (1, 1)])
@pytest.mark.parametrize("name", ["Sam", "Sam2"])
def test_strips_and_single_pixels_are_images(name, size, tmp_path):
    model, processor = small(name)
    folder = write(tmp_path, model, processor.image_processor)
    (masks,) = mask_models.build("hf", checkpoint=folder, points_per_side=2, **KEEP_ALL)(random_images(size))
    assert masks.dense().shape == (12, *size)
    crops = {"crop_n_layers": 2, "points_per_side": 1}  # of few pixels, some have none
    (masks,) = mask_models.build("hf", checkpoint=folder, **KEEP_ALL | crops)(random_images(size))
    assert masks.dense().shape[1:] == size


def test_the_three_rows_of_a_strip_are_no_channels():
    model, processor = small("Sam2")
    image = random_images((3, 90))[0]
    pixels = processor(images=Image.fromarray(image), return_tensors="pt")["pixel_values"]
    seen = everything((model, processor)).embed(image)["image_embeddings"]
    torch.testing.assert_close(seen, model.get_image_embeddings(pixels))
