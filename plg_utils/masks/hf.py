"""Automatic masks by the networks of transformers: SAM, SAM 2.1, SAM-HQ, EdgeTAM, and the tracker of SAM 3.

The rules are those of sam.py: see _everything.py. Network and image processor are transformers' own. Its pipeline
`mask-generation` is not used. It scales the grid by the longest side, so that in the networks that squash an image to a
square the bottom of a landscape photo gets no point; it has one threshold for all networks, and ignores options that it
does not know.

    pip install "plg-utils[models]"      installs transformers
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from plg_utils import checkpoints, devices, files
from plg_utils.choices import one_of
from plg_utils.masks import Generate, sam
from plg_utils.masks._everything import Draw, Resize, SegmentEverything, resizing
from plg_utils.miniature import untrained

if TYPE_CHECKING:
    from transformers import BaseImageProcessor, PreTrainedModel

NEEDED = ("config.json", checkpoints.WEIGHTS, "preprocessor_config.json")  # of a repository that is not listed
THRESHOLDS = {  # pred_iou_thresh; stability_score_thresh is 0.95 in all these files
    "SamModel": 0.88,  # segment_anything/automatic_mask_generator.py
    "SamHQModel": 0.88,  # the same file in its fork
    "Sam2Model": 0.8,  # sam2/automatic_mask_generator.py
    "EdgeTamModel": 0.8,  # built on the package sam2
    "Sam3TrackerModel": 0.5,  # its authors have no generator: users report that 0.88 drops nearly all masks
}
SMOKE = sam.SMOKE


def build(
    *,
    checkpoint: str | Path | None = "sam2.1_hiera_small",
    density: float = 1.0,
    min_area: int = 0,
    device: str = "cpu",
    **options,
) -> Generate:
    """Load a network of transformers.

    checkpoint: a name of `checkpoints` ("sam_vit_base", "sam2.1_hiera_tiny", "sam_hq_vit_base", "edgetam", "sam3" and
        so on), "hub:owner/name", a folder in the layout of the hub, or None: a small untrained SAM 2.1
    density, min_area, device, and all further options: as for `sam.build`; the default of pred_iou_thresh
        is that in THRESHOLDS. Memory grows with points_per_batch, not with the image: SAM-HQ ViT-B took
        2.2 GB for 16 points at once and 5.3 GB for 64, float32 on a CPU
    """
    network, processor = load(checkpoint)
    defaults = sam.OFFICIAL | {"pred_iou_thresh": THRESHOLDS[type(network).__name__]}
    chosen = sam.settings(checkpoint, density, defaults=defaults, **options)
    everything = Everything(network.to(devices.choose(str(device))), processor=processor, **chosen)
    return sam.one_by_one(everything, min_area)


@dataclass(kw_only=True)
class Everything(SegmentEverything):
    """The rules of `SegmentEverything` with a network of transformers, called as its own processor calls it."""

    processor: "BaseImageProcessor"

    @property
    def side(self) -> int:
        """Pixels along a side of the network's square input."""
        size = self.processor.size
        return size["height"] if "height" in size else size["longest_edge"]

    @property
    def squashes(self) -> bool:
        """Whether the network sees an image squashed to a square; SAM and SAM-HQ see it with padding."""
        return "height" in self.processor.size

    def inside(self, size: tuple[int, int]) -> tuple[int, int]:
        """Size in which the network sees an image or crop (H, W)."""
        return (self.side, self.side) if self.squashes else super().inside(size)

    def back(self, small: int, size: tuple[int, int]) -> list[torch.Tensor]:
        """Matrices (H, small) and (W, small) from the network's masks (small, small) to an image or crop (H, W)."""
        return [resizing(small, small, small, side) for side in size] if self.squashes else super().back(small, size)

    def embed(self, image: np.ndarray) -> dict:
        """What the network makes of an image (H, W, 3) uint8, by the names that its `forward` has for it."""
        pixels = self.processor(image, input_data_format="channels_last", return_tensors="pt")["pixel_values"]
        found = self.network.get_image_embeddings(pixels.to(self.network.device))
        if type(self.network).__name__ == "SamHQModel":
            return dict(zip(("image_embeddings", "intermediate_embeddings"), found, strict=True))
        return {"image_embeddings": found}

    def ask(self, embedding: dict, points: torch.Tensor) -> tuple[torch.Tensor, Draw]:
        """Ask for three masks at each of these points (P, 2): as `SegmentEverything.ask`, but all masks are drawn."""
        outputs = self.network(**embedding, input_points=points[None, :, None], multimask_output=True)
        return outputs.iou_scores[0].float(), lambda good: outputs.pred_masks[0][good].float()


def load(checkpoint: str | Path | None) -> tuple["PreTrainedModel", "BaseImageProcessor"]:
    """Load a network and its image processor, ready for inference; None: random weights, the same in each call."""
    transformers = checkpoints.import_extra("transformers", "masks/hf needs transformers")
    if checkpoint is None:
        network = untrained(lambda: transformers.Sam2Model(transformers.Sam2Config(**SMALL)))
        return network, transformers.Sam2ImageProcessor(size={"height": 64, "width": 64})
    if not str(checkpoint).startswith("hub:"):
        taken = [name for name, each in checkpoints.LISTED.items() if each.hub and "dino" not in name]
        checkpoints.check_kind(checkpoint, taken, "the mask model hf (sam takes sam_vit_b, sam_vit_l, sam_vit_h)")
    folder = checkpoints.locate(checkpoint, NEEDED)
    needs = f"it needs {', '.join(NEEDED)} of one repository of the Hugging Face hub, or of save_pretrained()"
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{folder} has no config.json; {needs}")
    known = sorted(transformers.models.auto.modeling_auto.MODEL_FOR_MASK_GENERATION_MAPPING_NAMES)
    one_of(files.read_json(folder / "config.json").get("model_type"), known, f"mask model in {folder}:")
    classes = transformers.AutoModelForMaskGeneration, transformers.AutoImageProcessor
    network, processor = checkpoints.of_transformers(*classes, folder, NEEDED)
    wanted = network.config.prompt_encoder_config.image_size
    if wanted not in (dict(processor.size).get("height"), dict(processor.size).get("longest_edge")):
        raise ValueError(
            f"the preprocessor_config.json in {folder} is of another network: it resizes to {dict(processor.size)}, a "
            f"{type(network).__name__} sees {wanted} pixels; {needs}"
        )
    if "longest_edge" in processor.size:  # else the short side of a strip would have no pixel
        processor._get_preprocess_shape = lambda size, longest_edge: Resize.get_preprocess_shape(*size, longest_edge)
    return network, processor


SMALL = {  # a SAM 2.1 of 64 x 64 pixels and few channels
    "vision_config": {
        "backbone_config": {
            "model_type": "sam2_hiera_det_model",
            "hidden_size": 8,
            "image_size": [64, 64],
            "blocks_per_stage": [1, 1, 2, 1],
            "embed_dim_per_stage": [8, 16, 32, 64],
            "num_attention_heads_per_stage": [1, 1, 2, 2],
            "window_size_per_stage": [8, 4, 4, 2],
            "global_attention_blocks": [3],
            "window_positional_embedding_background_size": [2, 2],
        },
        "backbone_channel_list": [64, 32, 16, 8],
        "backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]],
        "fpn_hidden_size": 32,
    },
    "prompt_encoder_config": {"hidden_size": 32, "image_size": 64},
    "mask_decoder_config": {"hidden_size": 32, "mlp_dim": 32, "num_attention_heads": 2, "iou_head_hidden_dim": 32},
}
