"""SAM's automatic mask generation: the rules of its package's `SamAutomaticMaskGenerator`, at a fraction of its cost.

A grid of points is asked for three masks each; what SAM predicts to be poor is dropped, then what is unstable, what
touches the edge of a crop, and the poorer of two whose boxes nearly agree (automatic_mask_generator.py of that package;
Kirillov et al. 2023, appendix B). The networks are the package's own; hf.py puts others in their place. What is not
done as the package does it:

- The decoder is taken apart by algebra, see _two_way.py. The encoder does the same with less memory traffic, see
  _encoder.py.
- A mask is drawn only where the predicted IoU, which needs no mask, is high enough.
- Two bilinear resizings and the cut between them are one matrix for the rows and one for the columns, so that nothing
  as large as the network's input (1024 x 1024) is made for a mask.
- Masks stay small (256 x 256) until boxes have been compared; run lengths are made for those that are left, by
  pycocotools for many at once.
- With skip_covered, which is not the default, points inside good masks are not asked.

The order of additions differs, so a predicted IoU differs by 1e-6 or so, and a pixel whose logit is nearly 0 may change
sides; see tests/test_masks.py and benchmarks/bench_masks.py.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from segment_anything.modeling import Sam
from segment_anything.utils import amg
from segment_anything.utils.transforms import ResizeLongestSide
from torchvision.ops import box_area, nms

from plg_utils.choices import one_of
from plg_utils.masks import LOOKED_AT, _encoder, _two_way
from plg_utils.records import Masks

Draw = Callable[[torch.Tensor], torch.Tensor]

FIRST = 5  # with skip_covered every fifth point is asked first: on the usual grids they are evenly spread
THRESHOLD = 0.0  # logit above which a pixel is in a mask: of `Sam`, and of transformers' post_process_masks
PIXELS_AT_ONCE = 2**24  # of all masks that are looked at together in full size: 64 MB of logits
PACKAGE_AT_ONCE = 2**26  # the same where the package resizes masks: no photo of VOC or COCO has more with 64 points


class Resize(ResizeLongestSide):
    """The package's, which leaves no pixel of the short side of a strip such as 3 x 900."""

    @staticmethod
    def get_preprocess_shape(*size_and_side: int) -> tuple[int, int]:
        """Size in which the network sees an image."""
        height, width = ResizeLongestSide.get_preprocess_shape(*size_and_side)
        return max(1, height), max(1, width)


class Candidates(NamedTuple):
    """Masks that passed the tests of their crop, in a form that does not grow with the image."""

    small: torch.Tensor  # (N, r, r) float32 logits, as SAM's decoder gives them
    boxes: torch.Tensor  # (N, 4) int64, left, top, right, bottom in pixels of the whole image, the last ones included
    predicted_iou: torch.Tensor  # (N,) float32
    stability: torch.Tensor  # (N,) float32

    def take(self, chosen: torch.Tensor) -> "Candidates":
        """Keep those at these indices, or where a bool tensor (N,) is true."""
        return Candidates(*(values[chosen] for values in self))


def join(parts: Sequence[Candidates]) -> Candidates:
    """Put candidates behind one another."""
    return Candidates(*map(torch.cat, zip(*parts, strict=True)))


@dataclass
class SegmentEverything:
    """Calls give the `Masks` of an image; the fields are named as the package names them.

    What depends on the network is in `side`, `inside`, `back`, `embed` and `ask`.
    """

    network: Sam
    points_per_side: int | None = 32
    points_per_batch: int = 64  # halved where the device's memory does not suffice
    pred_iou_thresh: float = 0.88
    stability_score_thresh: float = 0.95
    stability_score_offset: float = 1.0
    box_nms_thresh: float = 0.7
    crop_n_layers: int = 0
    crop_nms_thresh: float = 0.7
    crop_overlap_ratio: float = 512 / 1500
    crop_n_points_downscale_factor: int = 1
    point_grids: list[np.ndarray] | None = None  # instead of points_per_side
    precision: str = "fp32"
    skip_covered: bool = False

    def __post_init__(self):
        """Lay the grids, one for each layer of crops."""
        one_of(self.precision, ("fp32", "bf16"), "precision")
        self.grids = self.point_grids or amg.build_all_layer_point_grids(
            self.points_per_side, self.crop_n_layers, self.crop_n_points_downscale_factor
        )
        self.resize = Resize(self.side)

    @torch.inference_mode()
    def __call__(self, image: np.ndarray) -> Masks:
        """Segment an image (H, W, 3) uint8 RGB."""
        size = image.shape[:2]
        pairs = zip(*amg.generate_crop_boxes(size, self.crop_n_layers, self.crop_overlap_ratio), strict=True)
        crops, layers = zip(*((crop, layer) for crop, layer in pairs if has_pixels(crop)), strict=True)
        looks = [self.look(image, crop, self.grids[layer]) for crop, layer in zip(crops, layers, strict=True)]
        found, best = zip(*looks, strict=True)
        everything = join(found)
        if not len(everything.boxes):
            self.tell_why(max(best))
        kept = torch.arange(len(everything.boxes))
        number = torch.arange(len(crops)).repeat_interleave(torch.tensor([len(each.boxes) for each in found]))
        if len(crops) > 1:  # of two that agree, the one in the smaller crop
            detail = (1 / box_area(torch.tensor(crops)))[number]
            kept = nms(everything.boxes.float(), detail.to(everything.boxes.device), self.crop_nms_thresh).cpu()
        rles = {}
        for index, crop in enumerate(crops):
            here = kept[number[kept] == index]
            rles |= zip(here.tolist(), self.run_lengths(everything.small[here], crop, size), strict=True)
        scores = (part[kept].cpu().numpy() for part in (everything.predicted_iou, everything.stability))
        return Masks(tuple(rles[index] for index in kept.tolist()), size, *scores)

    def tell_why(self, best: float) -> None:
        """Warn that the thresholds left no mask of an image whose best predicted IoU is `best`."""
        name = "pred_iou_thresh" if best <= self.pred_iou_thresh > 0 else "stability_score_thresh"
        warnings.warn(
            f"no mask of {LOOKED_AT.get()} passes the thresholds, its best predicted IoU is {best:.3f}: lower {name}, "
            f"which is {getattr(self, name)}, unless the image shows nothing",
            stacklevel=2,
        )

    def look(self, image: np.ndarray, crop: Sequence[int], grid: np.ndarray) -> tuple[Candidates, float]:
        """Ask SAM at each point of a grid (P, 2), in 0 to 1, what it sees in a crop (xyxy pixels) of an image.

        returns: the candidates, and the best predicted IoU of all masks, also of those that were dropped
        """
        height, width = image.shape[:2]
        left, top, right, bottom = crop
        size = bottom - top, right - left
        with self.autocast():
            embedding = self.embed(image[top:bottom, left:right])
        scale = np.divide(self.inside(size), size)
        points = torch.as_tensor(grid * size[::-1] * scale[::-1], device=self.network.device)
        first = torch.arange(len(points), device=points.device) % (FIRST if self.skip_covered else 1) == 0
        found, best = [], -np.inf
        for asked in (points[first], points[~first]):
            if found and len(asked):
                asked = asked[~self.covered(asked, join(found))]
            for small, predicted_iou, highest in self.halving(partial(self.decode, embedding), asked):
                best = max(best, float(highest))
                for part, predicted in zip(*(t.split(self.at_once(size)) for t in (small, predicted_iou)), strict=True):
                    boxes, stability = self.measure(part, size)
                    chosen = ~amg.is_box_near_crop_edge(boxes, list(crop), [0, 0, width, height])
                    if self.stability_score_thresh > 0:
                        chosen &= stability >= self.stability_score_thresh
                    found.append(Candidates(part, boxes, predicted, stability).take(chosen))
        everything = join(found)
        everything = everything.take(nms(everything.boxes.float(), everything.predicted_iou, self.box_nms_thresh))
        return everything._replace(boxes=amg.uncrop_boxes_xyxy(everything.boxes, list(crop))), best

    def covered(self, points: torch.Tensor, found: Candidates) -> torch.Tensor:
        """Which of these points (P, 2), in pixels of the network's input, need not be asked, (P,) bool.

        They lie inside a mask, and so do the eight pixels around them in the network's size of masks; and its predicted
        IoU is in the upper half of what pred_iou_thresh lets pass.
        """
        small = found.small[found.predicted_iou > (1 + self.pred_iou_thresh) / 2]
        around = torch.cartesian_prod(*[torch.arange(-1, 2, device=points.device)] * 2)  # (9, 2)
        at = (points * small.shape[-1] / self.side).long()[:, None] + around
        columns, rows = at.clamp(0, small.shape[-1] - 1).unbind(2)  # (P, 9)
        return (small[:, rows, columns] > THRESHOLD).all(dim=2).any(dim=0)

    def decode(self, embedding: Any, points: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Masks of points (P, 2), in pixels of the network's input, whose predicted IoU is high enough.

        returns: logits (N, r, r) and predicted IoU (N,), float32; the highest predicted IoU of all masks
        """
        with self.autocast():
            predicted_iou, draw = self.ask(embedding, points)
            good = predicted_iou > (self.pred_iou_thresh if self.pred_iou_thresh > 0 else -torch.inf)
            return draw(good), predicted_iou[good], predicted_iou.amax()

    @property
    def side(self) -> int:
        """Pixels along a side of the network's square input."""
        return self.network.image_encoder.img_size

    def inside(self, size: tuple[int, int]) -> tuple[int, int]:
        """Size in which the network sees an image or crop (H, W); the rest of its input is padding."""
        return self.resize.get_preprocess_shape(*size, self.side)

    def back(self, small: int, size: tuple[int, int]) -> list[torch.Tensor]:
        """Matrices (H, small) and (W, small) from the network's masks (small, small) to an image or crop (H, W)."""
        return [resizing(small, self.side, *each) for each in zip(self.inside(size), size, strict=True)]

    def embed(self, image: np.ndarray) -> _two_way.Decoder:
        """What `ask` takes: the decoder of an image (H, W, 3) uint8."""
        pixels = torch.as_tensor(self.resize.apply_image(image), device=self.network.device)
        pixels = self.network.preprocess(pixels.permute(2, 0, 1)[None].contiguous())
        embedding, prompts = _encoder.encode(self.network.image_encoder, pixels), self.network.prompt_encoder
        _, no_mask = prompts(points=None, boxes=None, masks=None)  # what stands for a mask that was not given
        return _two_way.Decoder(self.network.mask_decoder, embedding + no_mask, prompts.get_dense_pe())

    def ask(self, embedding: Any, points: torch.Tensor) -> tuple[torch.Tensor, Draw]:
        """Ask for three masks at each of these points (P, 2), in pixels of the network's input.

        This is `MaskDecoder.predict_masks` with three outputs a point.
        returns: predicted IoU (P, 3) float32, and a function that draws the masks where a bool tensor (P, 3) is true,
            as logits (N, r, r) float32
        """
        decoder = self.network.mask_decoder
        foreground = torch.ones(len(points), 1, dtype=torch.int, device=points.device)
        sparse, _ = self.network.prompt_encoder(points=(points[:, None], foreground), boxes=None, masks=None)
        outputs = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight])
        answers, states = embedding.transform(torch.cat([outputs.expand(len(points), -1, -1), sparse], dim=1))
        predicted_iou = decoder.iou_prediction_head(answers[:, 0])[:, 1:].float()
        return predicted_iou, partial(embedding.draw, states, answers)

    def enlarge(self, small: torch.Tensor, size: tuple[int, int]) -> Iterator[torch.Tensor]:
        """Logits (N, r, r) in the size (H, W) of an image or crop, as the network's postprocess_masks gives them.

        yields: (N, w, H), columns together in memory, as in COCO's run lengths; all columns of them, or, where a mask
            is very large, a part of the columns after the other
        """
        if self.inside(size) == size:  # seen in its own size, so one resizing is all: cheaper without a matrix
            whole = F.interpolate(small.mT[:, None], (self.side, self.side), mode="bilinear")
            yield whole[:, 0, : size[1], : size[0]]
            return
        rows, columns = (each.to(small) for each in self.back(small.shape[-1], size))
        tall = small.transpose(1, 2) @ rows.T
        for part in columns.split(max(1, PIXELS_AT_ONCE // max(1, len(small) * size[0]))):
            yield torch.bmm(part.expand(len(small), -1, -1), tall)

    def measure(self, small: torch.Tensor, size: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Boxes (N, 4) in an image or crop (H, W), and stability (N,), of masks with logits (N, r, r)."""
        inner, outer, columns, rows = 0, 0, [], []
        for logits in self.enlarge(small, size):
            inner = inner + count(logits > THRESHOLD + self.stability_score_offset)
            outer = outer + count(logits > THRESHOLD - self.stability_score_offset)
            of_columns, of_rows = touched(logits > THRESHOLD)
            columns.append(of_columns)
            rows.append(of_rows)
        return boxes_of(torch.cat(columns, dim=1), torch.stack(rows).amax(dim=0)), inner / outer

    def run_lengths(self, small: torch.Tensor, crop: Sequence[int], size: tuple[int, int]) -> list[dict]:
        """Run lengths, in an image of size (H, W), of masks with logits (N, r, r) in a crop of it."""
        left, top, right, bottom = crop
        view, rles = (bottom - top, right - left), []
        for few in small.split(self.at_once(size)):
            whole, start = np.zeros((len(few), size[1], size[0]), dtype=bool), left
            for logits in self.enlarge(few, view):
                end = start + logits.shape[1]
                whole[:, start:end, top:bottom] = (logits > THRESHOLD).cpu().numpy()
                start = end
            rles += Masks.from_dense(whole.transpose(0, 2, 1)).rles
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
        return torch.autocast(self.network.device.type, torch.bfloat16, enabled=self.precision == "bf16")


def has_pixels(crop: Sequence[int]) -> bool:
    """Whether a crop (xyxy pixels) holds any; of an image of a few pixels the last ones of the package do not."""
    return crop[0] < crop[2] and crop[1] < crop[3]


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


def touched(masks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Columns (N, W) and rows (N, H) that masks (N, W, H) bool touch, as uint8."""
    masks = masks.contiguous().view(torch.uint8)  # whose maximum is fifty times as fast as any() of bool
    return masks.amax(dim=2), masks.amax(dim=1)


def boxes_of(columns: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Boxes (N, 4) xyxy, the last pixels included, of masks that touch these columns (N, W) and rows (N, H) uint8.

    returns: zeros around nothing
    """
    sides = []
    for hit in (columns, rows):
        first, last = hit.argmax(dim=1), hit.shape[1] - 1 - hit.flip(1).argmax(dim=1)
        sides.append((first, torch.where(hit.amax(dim=1) > 0, last, 0)))
    (left, right), (top, bottom) = sides
    return torch.stack([left, top, right, bottom], dim=1)
