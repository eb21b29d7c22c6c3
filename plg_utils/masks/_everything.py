"""SAM's automatic mask generation: the rules of its package's `SamAutomaticMaskGenerator`, at a fraction of its cost.

A grid of points is asked for three masks each; what SAM predicts to be poor is dropped, then what is unstable, and the
poorer of two whose boxes nearly agree (automatic_mask_generator.py of that package; Kirillov et al. 2023, appendix B).
The networks are the package's own. Only sam_official.py looks at crops of the image. What is not done as it does it:

- The image enters the decoder once and not once for each point. Its layers broadcast, so what the first of them makes
  of the image alone is made once.
- A mask is drawn only where the predicted IoU, which needs no mask, is high enough.
- Two bilinear resizings and the cut between them are one matrix for the rows and one for the columns, so that nothing
  as large as the network's input (1024 x 1024) is made for a mask.
- Masks stay small (256 x 256) until boxes have been compared; run lengths are made for those that are left, by
  pycocotools for many at once.
- Connected regions are found in NumPy, where the package needs OpenCV.

The order of additions differs, so a predicted IoU differs by 1e-6 or so, and a pixel whose logit is nearly 0 may change
sides; see tests/test_masks.py and benchmarks/bench_masks.py.
"""

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from segment_anything.modeling import Sam
from segment_anything.utils.amg import build_point_grid
from segment_anything.utils.transforms import ResizeLongestSide
from torchvision.ops import nms

from plg_utils.choices import one_of
from plg_utils.labels import components
from plg_utils.records import Masks

CROP_NMS = 0.7  # the package's default: with min_mask_region_area it counts without crops too
PIXELS_AT_ONCE = 2**24  # of all masks that are looked at together in full size: 64 MB of logits


@dataclass
class SegmentEverything:
    """Calls give the `Masks` of an image; the fields are named as the package names them."""

    sam: Sam
    points_per_side: int = 32
    points_per_batch: int = 64  # halved where the device's memory does not suffice
    pred_iou_thresh: float = 0.88
    stability_score_thresh: float = 0.95
    stability_score_offset: float = 1.0
    box_nms_thresh: float = 0.7
    min_mask_region_area: int = 0
    precision: str = "fp32"

    def __post_init__(self):
        """Lay the grid (P, 2), in 0 to 1."""
        one_of(self.precision, ("fp32", "bf16"), "precision")
        self.grid = build_point_grid(self.points_per_side)
        self.resize = ResizeLongestSide(self.sam.image_encoder.img_size)

    @torch.inference_mode()
    def __call__(self, image: np.ndarray) -> Masks:
        """Segment an image (H, W, 3) uint8 RGB."""
        size = image.shape[:2]
        with self.autocast():
            embedding = self.embed(image)
        points = torch.as_tensor(self.resize.apply_coords(self.grid * size[::-1], size), device=embedding.device)
        thresholds = [self.sam.mask_threshold + change * self.stability_score_offset for change in (1, -1)]
        found = []  # of the masks that are kept: logits (N, r, r), boxes (N, 4), predicted IoU and stability (N,)
        for small, predicted_iou in self.halving(lambda batch: self.decode(embedding, batch), points):
            for part, predicted in zip(*(t.split(self.at_once(size)) for t in (small, predicted_iou)), strict=True):
                logits = self.enlarge(part, size)
                inner, outer = (count(logits > threshold) for threshold in thresholds)
                columns = part, boxes_around(logits > self.sam.mask_threshold), predicted, inner / outer
                if self.stability_score_thresh > 0:
                    columns = [column[columns[-1] >= self.stability_score_thresh] for column in columns]
                found.append(columns)
        small, boxes, predicted_iou, stability = map(torch.cat, zip(*found, strict=True))
        kept = nms(boxes.float(), predicted_iou, self.box_nms_thresh)
        masks = Masks(
            rles=tuple(self.run_lengths(small[kept], size)),
            size=(int(size[0]), int(size[1])),
            predicted_iou=predicted_iou[kept].cpu().numpy(),
            stability=stability[kept].cpu().numpy(),
        )
        return without_small_regions(masks, self.min_mask_region_area, max(self.box_nms_thresh, CROP_NMS))

    def embed(self, image: np.ndarray) -> torch.Tensor:
        """Image embedding (1, C, h, w) of an image (H, W, 3) uint8."""
        pixels = torch.as_tensor(self.resize.apply_image(image), device=self.sam.device)
        return self.sam.image_encoder(self.sam.preprocess(pixels.permute(2, 0, 1)[None].contiguous()))

    def decode(self, embedding: torch.Tensor, points: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Masks of points (P, 2), in pixels of the network's input, whose predicted IoU is high enough.

        This is `MaskDecoder.predict_masks` with three outputs a point.
        returns: logits (N, r, r) and predicted IoU (N,), float32
        """
        decoder, prompts = self.sam.mask_decoder, self.sam.prompt_encoder
        with self.autocast():
            foreground = torch.ones(len(points), 1, dtype=torch.int, device=points.device)
            sparse, dense = prompts(points=(points[:, None], foreground), boxes=None, masks=None)
            outputs = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight])
            tokens = torch.cat([outputs.expand(len(points), -1, -1), sparse], dim=1)
            queries, places = decoder.transformer(embedding + dense[:1], prompts.get_dense_pe(), tokens)
            predicted_iou = decoder.iou_prediction_head(queries[:, 0])[:, 1:].float()  # (P, 3)
            good = predicted_iou > self.pred_iou_thresh if self.pred_iou_thresh > 0 else predicted_iou > -torch.inf
            rows = good.any(dim=1)
            features = places[rows].unflatten(1, embedding.shape[-2:]).permute(0, 3, 1, 2)  # channels last as it is
            features = decoder.output_upscaling(features)  # (R, c, r, r)
            kernels = [mlp(queries[rows, 2 + k]) for k, mlp in enumerate(decoder.output_hypernetworks_mlps[1:])]
            small = (torch.stack(kernels, dim=1) @ features.flatten(2)).float()  # (R, 3, r * r)
        return small[good[rows]].unflatten(1, features.shape[-2:]), predicted_iou[good]

    def enlarge(self, small: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        """Logits (N, r, r) in the size (H, W) of an image, as `Sam.postprocess_masks` gives them.

        returns: (N, W, H), columns together in memory, as in COCO's run lengths
        """
        side = self.sam.image_encoder.img_size
        inside = self.resize.get_preprocess_shape(*size, side)
        rows, columns = (resizing(small.shape[-1], side, *each).to(small) for each in zip(inside, size, strict=True))
        return torch.bmm(columns.expand(len(small), -1, -1), small.transpose(1, 2) @ rows.T)

    def run_lengths(self, small: torch.Tensor, size: tuple[int, int]) -> list[dict]:
        """Run lengths, in an image of size (H, W), of masks with logits (N, r, r)."""
        rles = []
        for part in small.split(self.at_once(size)):
            masks = (self.enlarge(part, size) > self.sam.mask_threshold).cpu().numpy()
            rles += Masks.from_dense(masks.transpose(0, 2, 1)).rles
        return rles

    def halving(self, function: Callable, points: torch.Tensor) -> Iterator:
        """Call a function on batches of points, on smaller ones from then on where the device runs out of memory."""
        done = 0
        while done < len(points):
            try:
                result = function(points[done : done + self.points_per_batch])
            except torch.cuda.OutOfMemoryError:
                if self.points_per_batch == 1:
                    raise
                self.points_per_batch //= 2
                torch.cuda.empty_cache()
                warnings.warn(f"out of memory: from now on {self.points_per_batch} points at once", stacklevel=2)
                continue
            done += self.points_per_batch
            yield result

    def at_once(self, size: tuple[int, int]) -> int:
        """Count the masks of this size (H, W) that are looked at together."""
        return max(1, PIXELS_AT_ONCE // (size[0] * size[1]))

    def autocast(self) -> torch.autocast:
        """Half precision inside, if it was asked for."""
        return torch.autocast(self.sam.device.type, torch.bfloat16, enabled=self.precision == "bf16")


def without_small_regions(masks: Masks, min_area: int, nms_thresh: float) -> Masks:
    """Fill holes and drop islands of less than min_area pixels; min_area 0 changes nothing.

    nms_thresh: IoU of two boxes from which on one mask is dropped, if it was changed and the other was not
    """
    if min_area <= 0 or not len(masks):
        return masks
    dense, untouched = masks.dense(), []
    for index, mask in enumerate(dense):
        mask, filled = without_small(mask, min_area, holes=True)
        dense[index], dropped = without_small(mask, min_area, holes=False)
        untouched.append(float(not filled and not dropped))
    boxes = boxes_around(torch.from_numpy(dense.transpose(0, 2, 1)))
    kept = nms(boxes.float(), torch.tensor(untouched), nms_thresh).numpy()
    return Masks.from_dense(dense[kept], masks.predicted_iou[kept], masks.stability[kept])


def without_small(mask: np.ndarray, min_area: int, *, holes: bool) -> tuple[np.ndarray, bool]:
    """Fill the small holes of a mask (H, W) bool, or drop its small islands; was there any?

    If all islands are small, the largest stays, of equal ones the first.
    """
    regions = components(mask != holes)
    numbers, sizes = np.unique(regions[regions > 0], return_counts=True)
    small = sizes < min_area
    if not small.any():
        return mask, False
    if holes:
        return mask | np.isin(regions, numbers[small]), True
    return np.isin(regions, numbers[[sizes.argmax()]] if small.all() else numbers[~small]), True


@cache
def resizing(small: int, network: int, inside: int, size: int) -> torch.Tensor:
    """Matrix (size, small): from `small` pixels to `network`, the first `inside` of them, and from these to `size`.

    Both resizings are bilinear, as F.interpolate with align_corners=False has them.
    """
    weights = F.interpolate(torch.eye(small)[None, None], (network, small), mode="bilinear")[:, :, :inside]
    return F.interpolate(weights, (size, small), mode="bilinear")[0, 0]


def count(masks: torch.Tensor) -> torch.Tensor:
    """Pixels of each mask (N, W, H) bool."""
    # int16 is what the official package takes, and faster. A column of more pixels than it can count takes int32.
    narrow = torch.int16 if masks.shape[2] <= torch.iinfo(torch.int16).max else torch.int32
    return masks.sum(dim=2, dtype=narrow).sum(dim=1, dtype=torch.int32)


def boxes_around(masks: torch.Tensor) -> torch.Tensor:
    """Boxes (N, 4) xyxy, last row and column included, of masks (N, W, H) bool; zeros around nothing."""
    masks = masks.contiguous().view(torch.uint8)  # whose maximum is fifty times as fast as any() of bool
    sides = []
    for hit in (masks.amax(dim=2), masks.amax(dim=1)):  # columns (N, W), rows (N, H)
        first, last = hit.argmax(dim=1), hit.shape[1] - 1 - hit.flip(1).argmax(dim=1)
        sides.append((first, torch.where(hit.amax(dim=1) > 0, last, 0)))
    (left, right), (top, bottom) = sides
    return torch.stack([left, top, right, bottom], dim=1)
