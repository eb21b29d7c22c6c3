"""What networks cost at full size on one photo: python benchmarks/bench_models.py NAME... --photo JPG

Without a name, all are measured. Each is built with random weights, in the architecture that its repository states, and
runs in a process of its own, whose largest memory is listed. A mask model asks at --points-per-side points along each
side and keeps all their masks (thresholds 0, box_nms_thresh 1), because a network that has learnt nothing is sure of
nothing. An encoder averages its features in 48 squares, SAM 3 is asked for two words, a segmenter predicts the photo.
The seconds are those of the first photo. `cpu_s` are those that the processor worked, which other jobs on the machine
lengthen less; in `encode_cpu_s` of them no point has been asked yet.

To add a network, add an entry to NETWORKS: what builds it, and returns its module and a function of a photo
(H, W, 3) uint8 to what shall be listed.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import side_by_side
import torch
import transformers

from plg_utils import devices, files, segmenters
from plg_utils.encoders import open_clip
from plg_utils.generators import concepts
from plg_utils.labels import pool
from plg_utils.masks import hf
from plg_utils.records import Classes, Masks

# Numbers: sam2/configs/sam2.1/*.yaml of facebookresearch/sam2; base_plus lacks some, which are the defaults of its
# hieradet.py. Those of tiny, SAM ViT-B, SAM-HQ ViT-B and SAM 3's tracker are the defaults of transformers' classes.
HIERA = {  # hidden_size, heads, blocks_per_stage, global_attention_blocks, window_size_per_stage, background size
    "tiny": (96, 1, [1, 2, 7, 2], [5, 7, 9], [8, 4, 14, 7], [7, 7]),
    "small": (96, 1, [1, 2, 11, 2], [7, 10, 13], [8, 4, 14, 7], [7, 7]),
    "base_plus": (112, 2, [2, 3, 16, 3], [12, 16, 20], [8, 4, 14, 7], [14, 14]),
    "large": (144, 2, [2, 6, 36, 4], [23, 33, 43], [8, 4, 16, 8], [7, 7]),
}
VIT = {  # of SAM and SAM-HQ: hidden_size, layers, heads, global_attn_indexes (build_sam.py of segment_anything)
    "base": (768, 12, 12, [2, 5, 8, 11]),
    "large": (1024, 24, 16, [5, 11, 17, 23]),
    "huge": (1280, 32, 16, [7, 15, 23, 31]),
}
Call = Callable[[np.ndarray], dict[str, Any]]


def sam(size: str, kind: str) -> transformers.PreTrainedModel:
    """SAM or SAM-HQ with the vision transformer of this size."""
    width, layers, heads, global_layers = VIT[size]
    vision = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads, "mlp_dim": 4 * width}
    vision["global_attn_indexes"] = global_layers
    decoder = {"mask_decoder_config": {"vit_dim": width}} if kind == "SamHQ" else {}
    config = getattr(transformers, f"{kind}Config")(vision_config=vision, **decoder)
    return getattr(transformers, f"{kind}Model")(config)


def sam2(size: str) -> transformers.Sam2Model:
    """SAM 2.1 with the Hiera of this size."""
    width, heads, blocks, global_blocks, windows, background = HIERA[size]
    widths = [width * 2**stage for stage in range(4)]
    backbone = {
        "model_type": "sam2_hiera_det_model",
        "hidden_size": width,
        "num_attention_heads": heads,
        "blocks_per_stage": blocks,
        "embed_dim_per_stage": widths,
        "num_attention_heads_per_stage": [heads * 2**stage for stage in range(4)],
        "window_size_per_stage": windows,
        "global_attention_blocks": global_blocks,
        "window_positional_embedding_background_size": background,
    }
    vision = {"backbone_config": backbone, "backbone_channel_list": widths[::-1]}
    return transformers.Sam2Model(transformers.Sam2Config(vision_config=vision))


def edgetam() -> transformers.EdgeTamModel:
    """EdgeTAM, whose backbone is timm's RepViT-M1 (convert_edgetam_to_hf.py of transformers)."""
    model_args = {"in_chans": 3, "features_only": True, "out_indices": [0, 1, 2, 3]}
    backbone = transformers.AutoConfig.for_model(
        "timm_wrapper", architecture="repvit_m1.dist_in1k", model_args=model_args
    )
    vision = transformers.EdgeTamVisionConfig(backbone_config=backbone)
    return transformers.EdgeTamModel(transformers.EdgeTamConfig(vision_config=vision))


def masks(network: Callable[[], Any], processor: type, given: argparse.Namespace) -> tuple[torch.nn.Module, Call]:
    """A mask model of masks/hf."""
    model = network().eval().to(given.device)
    keep_all = {"pred_iou_thresh": 0.0, "stability_score_thresh": 0.0, "box_nms_thresh": 1.0}
    segment = hf.Everything(
        model,
        processor=processor(),
        points_per_side=given.points_per_side,
        points_per_batch=given.points_per_batch,
        precision=given.precision,
        **keep_all,
    )

    def call(photo: np.ndarray) -> dict[str, Any]:
        start, embed, encoded = time.process_time(), segment.embed, []

        def timed(image: np.ndarray) -> dict:
            found = embed(image)
            if given.device.startswith("cuda"):
                torch.cuda.synchronize()
            encoded.append(time.process_time() - start)
            return found

        segment.embed = timed
        found = segment(photo)
        assert found.size == photo.shape[:2]
        return {"encode_cpu_s": round(sum(encoded), 2), "points_per_side": given.points_per_side, "masks": len(found)}

    return model, call


def encoder(name: str, features: str, given: argparse.Namespace) -> tuple[torch.nn.Module, Call]:
    """An encoder of encoders/open_clip: the photo's features, averaged in 48 squares."""
    known = open_clip.checkpoints.open_clip_package()
    architecture, tag = name.split(":")
    content = {
        "model_cfg": known.get_model_config(architecture),
        "preprocess_cfg": known.get_pretrained_cfg(*name.split(":")),
    }
    content["model_cfg"]["text_cfg"].pop("hf_tokenizer_name", None)  # no text is read
    encode = open_clip.build(
        checkpoint=None, model=content, features=features, precision=given.precision, device=given.device
    )

    def call(photo: np.ndarray) -> dict[str, Any]:
        height, width = photo.shape[:2]
        square = (np.arange(height) * 6 // height)[:, None] * 8 + np.arange(width) * 8 // width
        cells = Masks.from_dense(square == np.arange(48)[:, None, None])
        (found,) = encode.images([photo], **({"masks": [cells]} if features == "corr" else {}))
        pool(found, cells, cells.size)
        return {"features": features, "grid": list(found.shape[1:])}

    return encode.model, call


def asked_by_words(given: argparse.Namespace) -> tuple[torch.nn.Module, Call]:
    """SAM 3 at its full size, asked for two words."""
    model = transformers.Sam3Model(transformers.Sam3Config()).eval()
    classes = Classes(("background", "cat", "dog"), ((), ("cat",), ("dog",)), ((0, 0, 0),) * 3)
    concepts.load = lambda checkpoint: (model, transformers.Sam3ImageProcessor())
    label = concepts.build(classes, threshold=None, precision=given.precision, device=given.device)

    def call(photo: np.ndarray) -> dict[str, Any]:
        assert label([photo])[0].label.shape == photo.shape[:2]
        return {"words": 2}

    return model, call


def segmenter(name: str, given: argparse.Namespace) -> tuple[torch.nn.Module, Call]:
    """A network of segmenters/dpt, which predicts the photo."""
    model = segmenters.build("dpt", 21, encoder=name, pretrained=False).eval().to(given.device)

    @torch.inference_mode()
    def call(photo: np.ndarray) -> dict[str, Any]:
        pixels = torch.tensor(photo, device=given.device).permute(2, 0, 1)[None] / 255
        with torch.autocast(given.device.partition(":")[0], torch.bfloat16, enabled=given.precision == "bf16"):
            assert model(pixels).shape[2:] == photo.shape[:2]
        return {}

    return model, call


SQUASHED = transformers.Sam2ImageProcessor
NETWORKS = {
    **{
        f"{name}_vit_{size}": partial(masks, partial(sam, size, kind), transformers.SamImageProcessor)
        for name, kind in (("sam", "Sam"), ("sam_hq", "SamHQ"))
        for size in VIT
    },
    **{f"sam2.1_hiera_{size}": partial(masks, partial(sam2, size), SQUASHED) for size in HIERA},
    "edgetam": partial(masks, edgetam, SQUASHED),
    "sam3": partial(
        masks, lambda: transformers.Sam3TrackerModel(transformers.Sam3TrackerConfig()), transformers.Sam3ImageProcessor
    ),
    "sam3 asked by words": asked_by_words,
    **{
        f"{name} {features}": partial(encoder, name, features)
        for name, ways in {
            "ViT-B-16-quickgelu:metaclip_fullcc": ("plain", "gem", "corr"),
            "ViT-L-14-quickgelu:metaclip_fullcc": ("gem", "corr"),
            "ViT-H-14:laion2b_s32b_b79k": ("gem",),
            "ViT-B-16-SigLIP2-256:webli": ("plain",),
            "ViT-L-16-SigLIP2-256:webli": ("plain",),
            "ViT-SO400M-14-SigLIP2-378:webli": ("plain",),
        }.items()
        for features in ways
    },
    **{
        f"dpt {name}": partial(segmenter, name)
        for name in (
            "vit_small_patch14_dinov2.lvd142m",
            "vit_base_patch14_dinov2.lvd142m",
            "vit_base_patch14_reg4_dinov2.lvd142m",
            "vit_large_patch14_dinov2.lvd142m",
            "vit_base_patch16_dinov3.lvd1689m",
            "convnext_small.dinov3_lvd1689m",
        )
    },
}


def measured(name: str, given: argparse.Namespace) -> dict[str, Any]:
    """Build a network and show it the photo."""
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    start = time.perf_counter()
    model, call = NETWORKS[name](given)
    photo = files.read_image(given.photo)
    built, worked = time.perf_counter(), time.process_time()
    found = call(photo)
    if given.device.startswith("cuda"):
        torch.cuda.synchronize()
    return {
        "name": name,
        "parameters_m": round(sum(weight.numel() for weight in model.parameters()) / 1e6, 1),
        "build_s": round(built - start, 1),
        "photo": list(photo.shape[:2]),
        "seconds": round(time.perf_counter() - built, 2),
        "cpu_s": round(time.process_time() - worked, 2),
        **found,
        "peak_memory_mb": devices.peak_memory_mb(),
        "peak_cuda_memory_mb": devices.peak_cuda_memory_mb(),
        "precision": given.precision,
        "device": side_by_side.place(given.device),
    }


def main() -> None:
    """Measure the names that are given, each in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(NETWORKS))
    parser.add_argument("--photo", type=Path, required=True)
    parser.add_argument("--points-per-side", type=int, default=4)
    parser.add_argument("--points-per-batch", type=int, default=64)
    parser.add_argument("--precision", default="fp32", choices=("fp32", "bf16"))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--write", type=Path, nargs="?", const=side_by_side.RESULTS / "models.json", help="JSON file")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)  # in this process: one name
    given = parser.parse_args()
    if unknown := set(given.names) - set(NETWORKS):
        parser.error(f"there is no {', '.join(sorted(unknown))}, only {', '.join(NETWORKS)}")
    if given.here:
        print(json.dumps(measured(given.names[0], given)))
        return
    options = {
        key.replace("_", "-"): value for key, value in vars(given).items() if key not in ("names", "write", "here")
    }
    rows = []
    for name in given.names or NETWORKS:
        command = [sys.executable, __file__, name, "--here", *(f"--{key}={value}" for key, value in options.items())]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        rows.append(json.loads(done.stdout.splitlines()[-1]))
        print("  ".join(f"{key} {value}" for key, value in rows[-1].items() if key not in ("device", "precision")))
    if given.write:
        before = {row["name"]: row for row in files.read_json(given.write)} if given.write.exists() else {}
        found = before | {row["name"]: row for row in rows}
        files.write_json(given.write, [found[name] for name in NETWORKS if name in found])


if __name__ == "__main__":
    main()
