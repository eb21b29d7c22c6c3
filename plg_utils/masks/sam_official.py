"""SAM's automatic mask generator as its authors' package has it: the reference that sam.py is measured against.

The same masks come out of both, but for pixels whose logit is nearly 0. This one is slower; see _everything.py.
"""

from collections.abc import Sequence

import numpy as np
import torch
from segment_anything import SamAutomaticMaskGenerator

from plg_utils import devices
from plg_utils.masks import Generate, sam
from plg_utils.masks._everything import without_small_regions
from plg_utils.records import Masks

SMOKE = sam.SMOKE


def build(
    *,
    checkpoint: str | None = "miniature_sam",
    model: str | None = None,
    points_per_side: int | None = None,
    density: float = 1.0,
    pred_iou_thresh: float | None = None,
    stability_score_thresh: float | None = None,
    point_grids: Sequence[np.ndarray] | None = None,
    crop_n_layers: int = 0,
    min_mask_region_area: int = 0,
    min_area: int = 0,
    device: str = "cpu",
    **options,
) -> Generate:
    """Load a SAM; the options are those of `sam.build`, others go to `SamAutomaticMaskGenerator`.

    The package removes small regions by OpenCV, which is not installed; here the same rule runs without it.
    """
    chosen = sam.settings(checkpoint, density, points_per_side, pred_iou_thresh, stability_score_thresh)
    chosen |= sam.grids(point_grids, crop_n_layers, points_per_side, density) | {"crop_n_layers": crop_n_layers}
    network = sam.load(checkpoint, model).to(devices.choose(str(device)))
    generator = Generator(network, **chosen, **options, output_mode="coco_rle")  # a stack of (N, H, W) would be large
    nms_thresh = max(generator.box_nms_thresh, generator.crop_nms_thresh)

    @torch.inference_mode()
    def generate(images: Sequence[np.ndarray]) -> list[Masks]:
        """Segment images, each (H, W, 3) uint8 RGB of any size."""
        found = [records(generator, image) for image in images]
        found = [without_small_regions(masks, min_mask_region_area, nms_thresh) for masks in found]
        return [masks.take(masks.areas() >= min_area) for masks in found]

    return generate


class Generator(SamAutomaticMaskGenerator):
    """The package's generator, which stops with an IndexError if it looks at crops and no crop has a mask."""

    def _process_crop(self, *arguments):
        crop = super()._process_crop(*arguments)
        crop["crop_boxes"] = crop["crop_boxes"].reshape(-1, 4)
        return crop


def records(generator: SamAutomaticMaskGenerator, image: np.ndarray) -> Masks:
    """Segment an image (H, W, 3) uint8 RGB, and keep what we hand on of the generator's records."""
    found = generator.generate(image)
    return Masks(
        rles=tuple(record["segmentation"] for record in found),
        size=(int(image.shape[0]), int(image.shape[1])),
        predicted_iou=np.array([record["predicted_iou"] for record in found], dtype=np.float32),
        stability=np.array([record["stability_score"] for record in found], dtype=np.float32),
    )
