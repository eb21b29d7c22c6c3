"""The small networks of the drawn data set: architecture and loading; their weights are beside the code.

    sam         `segment_anything.Sam`, small: masks without names
    clip        `clip.model.CLIP`, small: images and captions
    encoder     a slim ResNet in the place of ImageNet weights

The folder miniatures/ of the repository trains and measures them.
"""

from collections.abc import Callable

import torch
from torch import nn

# Options of masks/sam, encoders/clip and segmenters/deeplabv3plus that differ from those of the large networks.
# The miniature CLIP was trained on its last tokens, which GEM leaves out; cams/clip_text with the layer "ln_1" has half
# the mIoU on the labelled scenes.
DEFAULTS = {
    "miniature_sam": {"points_per_side": 8, "pred_iou_thresh": 0.7, "stability_score_thresh": 0.5},
    "miniature_clip": {"features": "plain", "image_size": 96, "layer": "ln_post", "resize_by": "torch"},
    "miniature_encoder": {"output_stride": 8, "width": 64, "rates": (3, 6, 9)},  # rates as large, on smaller maps
}


def untrained(build: Callable[[], nn.Module]) -> nn.Module:
    """A network with random weights for evaluation, the same in each call; torch's own random numbers do not move."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build().eval()
