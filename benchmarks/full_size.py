"""The large architectures through every stage, with random weights: what they cost in seconds and memory.

    python benchmarks/full_size.py --root /path/to/VOC2012                     # SAM ViT-B, CLIP ViT-B/16, R101, CPU
    python benchmarks/full_size.py --sam vit_h --device cuda --batch-size 8    # drawn scenes of VOC's size

Random weights are written to files (SAM's .pth, a state dict of CLIP in half precision, timm's safetensors) and loaded
by path, like your own, by notebooks 00 to 05 with the parameters of the run voc_92, except for what is given here. The
labels mean nothing; each must have its photo's size. The seconds and memory of each stage, from the manifests, are
written to results/full_size.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import safetensors.torch
import timm
import torch
from clip.model import CLIP, convert_weights
from PIL import Image
from segment_anything import sam_model_registry

from plg_utils import datasets, files

RUN = "voc_92"  # whose parameters are taken
SIZE = (375, 500)  # of drawn scenes: VOC's usual one
CLIP_B16 = {  # the numbers of OpenAI's ViT-B/16
    "embed_dim": 512,
    "image_resolution": 224,
    "vision_layers": 12,
    "vision_width": 768,
    "vision_patch_size": 16,
    "context_length": 77,
    "vocab_size": 49408,
    "transformer_width": 512,
    "transformer_heads": 8,
    "transformer_layers": 12,
}


def main() -> None:
    """Write the weights, execute the notebooks, write what was measured."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=Path, help="VOC's folder; without it four scenes are drawn at VOC's size")
    parser.add_argument("--sam", default="vit_b", choices=("vit_b", "vit_l", "vit_h"))
    parser.add_argument("--density", type=float, default=0.25, help="factor of SAM's 32 points per side")
    parser.add_argument("--encoder", default="resnet101s", help="of the segmenter, a name of timm")
    parser.add_argument("--batch-size", type=int, default=2, help="CutMix needs two images")
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--images", type=int, default=1, help="unlabelled; more tell how many go through in a second")
    parser.add_argument("--precision", default="fp32", choices=("fp32", "bf16"))
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        root = given.root.absolute() if given.root else draw_photos(folder / "VOC2012", given.images)
        weights = write_weights(folder / "weights", given.sam, given.encoder)
        parameters = {
            "dataset_options": {"root": str(root), "split": None, "limit": given.images},
            "labelled": 1,
            "image": 0,
            "mask_options": {
                "checkpoint": str(weights["sam"]),
                "model": given.sam,
                "density": given.density,
                "pred_iou_thresh": 0.0,  # a network that has learnt nothing is sure of nothing
                "stability_score_thresh": 0.0,
            },
            "encoder_options": {"checkpoint": str(weights["clip"])},
            "segmenter_options": {"encoder": given.encoder, "pretrained": str(weights["encoder"])},
            "methods": ["direct", "paper_a_plain"],
            "warm_up": None,
            "steps": given.steps,
            "batch_size": given.batch_size,
            "precision": given.precision,
            "images_at_once": 1,
            "device": given.device,
        }
        command = [sys.executable, str(files.ROOT / "notebooks" / "run.py"), RUN]
        for name, value in parameters.items():
            command += ["-p", name, json.dumps(value)]
        subprocess.run(command, check=True, env=os.environ | {"PLG_RESULTS": str(folder / "results")})
        check_sizes(root, folder / "results" / RUN)
        stages = measured(folder / "results" / RUN)
    content = {
        "device": stages[0]["device"],
        "processor": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "photo": "real" if given.root else f"drawn, {SIZE[0]} x {SIZE[1]}",
        "sam": given.sam,
        "points_per_side": round(32 * given.density),
        "clip": "ViT-B/16, GEM",
        "segmenter": f"DeepLabV3+ on {given.encoder}",
        "crop_size": 321,
        "batch_size": given.batch_size,
        "steps": given.steps,
        "precision": given.precision,
        "stages": stages,
    }
    name = f"{given.device}_{given.sam}.json"
    files.write_json(files.ROOT / "results" / "full_size" / name, content)
    for stage in stages:
        print(stage)


def write_weights(folder: Path, sam: str, encoder: str) -> dict[str, Path]:
    """Write random weights to files; return where."""
    folder.mkdir(parents=True)
    torch.manual_seed(0)
    paths = {
        "sam": folder / f"sam_{sam}.pth",
        "clip": folder / "ViT-B-16.pt",
        "encoder": folder / "encoder.safetensors",
    }
    torch.save(sam_model_registry[sam]().state_dict(), paths["sam"])
    network = CLIP(**CLIP_B16)
    convert_weights(network)  # to half precision, as OpenAI's
    torch.save(network.state_dict(), paths["clip"])
    safetensors.torch.save_file(timm.create_model(encoder).state_dict(), paths["encoder"])
    return paths


def draw_photos(root: Path, images: int) -> Path:
    """Scenes of the drawn world at the size of VOC's photos, in VOC's layout."""
    size = (SIZE[1], SIZE[0])  # PIL's order
    found = datasets.load("storybook", labelled=4, limit=2 * images, truth_of=("labelled", "unlabelled"))
    for sample in [*found.labelled, *found.unlabelled]:  # a quarter becomes val
        photo = np.asarray(Image.fromarray(sample.image()).resize(size, Image.Resampling.BICUBIC))
        label = np.asarray(Image.fromarray(sample.truth()).resize(size, Image.Resampling.NEAREST))
        (root / "JPEGImages").mkdir(parents=True, exist_ok=True)
        files.write_label(root / "SegmentationClass" / f"{sample.id}.png", label)
        Image.fromarray(photo).save(root / "JPEGImages" / f"{sample.id}.jpg")
    return root


def check_sizes(root: Path, results: Path) -> None:
    """Stop if the size of a label map is not that of its photo."""
    maps = sorted(results.glob("labels_*/*.png")) + sorted(results.glob("predictions_*/*.png"))
    assert maps, f"{results} holds no label map"
    for path in maps:
        photo = files.read_image(root / "JPEGImages" / f"{path.stem}.jpg")
        assert files.read_label(path).shape == photo.shape[:2], path


def measured(results: Path) -> list[dict]:
    """Seconds and memory of each stage, from its manifest."""
    found = []
    for path in sorted(results.glob("*/manifest.json"), key=lambda path: path.stat().st_mtime):
        manifest = files.read_json(path)
        counts = manifest.get("counts") or {}
        found.append(
            {
                "stage": manifest["stage"],
                "device": manifest["device"],
                "seconds": manifest["wall_seconds"],
                "images": counts.get("images"),
                "steps": counts.get("steps"),
                "masks": counts.get("masks"),
                "peak_memory_mb": manifest["peak_memory_mb"],
                "peak_cuda_memory_mb": manifest["peak_cuda_memory_mb"],
            }
        )
    return found


if __name__ == "__main__":
    main()
