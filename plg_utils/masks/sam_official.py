"""SAM's automatic mask generator as its authors' package has it: the reference that sam.py is measured against.

The same masks come out of both, but for pixels whose logit is nearly 0. This one is slower; see _everything.py.
"""

from collections.abc import Callable

import numpy as np
import torch
from segment_anything import SamAutomaticMaskGenerator

from plg_utils import devices
from plg_utils.masks import Generate, sam
from plg_utils.masks._everything import PACKAGE_AT_ONCE, Resize, has_pixels
from plg_utils.records import Masks

SMOKE = sam.SMOKE
SCORES = ("predicted_iou", "stability_score")


def build(
    *,
    checkpoint: str | None = "miniature_sam",
    model: str | None = None,
    density: float = 1.0,
    min_area: int = 0,
    device: str = "cpu",
    **options,
) -> Generate:
    """Load a SAM; the options are those of `sam.build` and of the package's `SamAutomaticMaskGenerator`."""
    if options.get("min_mask_region_area"):
        raise ValueError("min_mask_region_area needs OpenCV, which this project does not install: use min_area")
    chosen = sam.settings(checkpoint, density, **options)
    network = sam.load(checkpoint, model).to(devices.choose(str(device)))
    generator = Generator(network, **chosen, output_mode="coco_rle")  # a stack of (N, H, W) would be large
    return sam.one_by_one(torch.inference_mode()(masks_by(generator)), min_area)


def masks_by(generator: SamAutomaticMaskGenerator) -> Callable[[np.ndarray], Masks]:
    """The function from an image (H, W, 3) to its masks by the package's generator."""

    def segment(image: np.ndarray) -> Masks:
        found = generator.generate(image)
        rles = tuple(record["segmentation"] for record in found)
        scores = (np.array([record[name] for record in found], np.float32) for name in SCORES)
        return Masks(rles, image.shape[:2], *scores)

    return segment


class Generator(SamAutomaticMaskGenerator):
    """The package's generator, which stops with an error if no crop has a mask, or if one has no pixel."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.predictor.transform = Resize(self.predictor.transform.target_length)
        self.most_points = self.points_per_batch

    def _process_crop(self, image, box, layer, size):
        looked_at = box if has_pixels(box) else [0, 0, size[1], size[0]]
        left, top, right, bottom = looked_at
        affordable = PACKAGE_AT_ONCE // (3 * (right - left) * (bottom - top))  # it draws three masks a point in full
        self.points_per_batch = min(self.most_points, max(1, affordable))
        crop = super()._process_crop(image, looked_at, layer, size)
        if not has_pixels(box):
            crop.filter(torch.zeros(len(crop["rles"]), dtype=torch.bool, device=crop["boxes"].device))
        crop["crop_boxes"] = crop["crop_boxes"].reshape(-1, 4)
        return crop
