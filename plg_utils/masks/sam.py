"""SAM's automatic masks: a grid of points, three masks each, the best are kept.

The networks are those of its authors' package, the rules those of its mask generator, which sam_official.py runs as it
is; this one is faster. The masks overlap and do not cover the image; their order is that of falling predicted IoU.
SAM can be asked for the mask in a box too, see `build_box_prompter`.
"""

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from segment_anything import SamPredictor, sam_model_registry
from segment_anything.modeling import Sam

from plg_utils import checkpoints, devices
from plg_utils.masks import Generate, _encoder
from plg_utils.masks._everything import PACKAGE_AT_ONCE, Resize, SegmentEverything
from plg_utils.miniature import DEFAULTS
from plg_utils.miniature import sam as miniature
from plg_utils.records import Masks

OFFICIAL = {"points_per_side": 32, "pred_iou_thresh": 0.88, "stability_score_thresh": 0.95}  # SAM's own defaults
SMOKE = {"checkpoint": None, "points_per_side": 2, "pred_iou_thresh": 0.0, "stability_score_thresh": 0.0}

MODELS = ("vit_b", "vit_l", "vit_h")
SHARES = ("box_nms_thresh", "crop_nms_thresh", "crop_overlap_ratio")
LEAST = {"crop_n_layers": 0, "points_per_side": 1, "points_per_batch": 1, "crop_n_points_downscale_factor": 1}

Prompt = Callable[[Sequence[np.ndarray], Sequence[np.ndarray]], list[tuple[np.ndarray, np.ndarray]]]


def build(
    *,
    checkpoint: str | None = "miniature_sam",
    model: str | None = None,
    density: float = 1.0,
    min_area: int = 0,
    device: str = "cpu",
    **options,
) -> Generate:
    """Load a SAM.

    checkpoint: "miniature_sam", "sam_vit_b", "sam_vit_l", "sam_vit_h", a file, or None: the miniature untrained
    model: "vit_b", "vit_l" or "vit_h"; None: as the names in the file say
    density: factor of points_per_side, to trade small masks for time: 0.5 asks at a quarter of the points
    min_area: pixels; smaller masks are dropped
    device: see `devices.choose`

    Further options have the names, the meaning and, where nothing else is said, the defaults of the package:
    points_per_side: of the grid of prompts; points_per_batch: prompts that go through the decoder together, fewer
        where the device's memory does not suffice
    point_grids: in place of a grid of points_per_side: points (P, 2), x and y from 0 to 1, for each layer of crops
    pred_iou_thresh: masks that the model itself thinks worse are dropped; 0 keeps all
    stability_score_thresh: so are those that change more if the cut moves by stability_score_offset; 0 keeps all
    box_nms_thresh: IoU of two boxes from which on the worse mask is dropped
    crop_n_layers: layer i looks at 2^i x 2^i crops that overlap by crop_overlap_ratio of the image's short side, at
        points_per_side / crop_n_points_downscale_factor^i points; crop_nms_thresh: of boxes from different crops
    precision: "fp32", or "bf16" for autocast; not an option of the package
    skip_covered: ask every fifth point first, and of the others those that are not well inside a good mask: fewer
        points for nearly the same masks (docs/speed.md); not an option of the package
    The defaults of points_per_side and the first two thresholds are those in OFFICIAL, or in `miniature.DEFAULTS`.
    """
    chosen = settings(checkpoint, density, **options)
    network = load(checkpoint, model).to(devices.choose(str(device)))
    return one_by_one(SegmentEverything(network, **chosen), min_area)


def one_by_one(segment: Callable[[np.ndarray], Masks], min_area: int) -> Generate:
    """Segment each image by a function, and drop masks of fewer than min_area pixels."""
    return lambda images: [masks.take(masks.areas() >= min_area) for masks in map(segment, images)]


def settings(checkpoint: str | None, density: float, *, defaults: dict | None = None, **options) -> dict:
    """The options of a generator: the checkpoint's defaults where none is given, and the points by `density`.

    defaults: named as in OFFICIAL; None: those of sam.py's checkpoints
    """
    is_miniature = checkpoint in (None, "miniature_sam")
    defaults = defaults or (DEFAULTS["miniature_sam"] if is_miniature else OFFICIAL)
    given = {name: value for name, value in options.items() if value is not None}
    chosen = {"crop_n_layers": 0} | defaults | given
    for name, value in chosen.items():
        if name in SHARES and not 0 <= value <= 1:
            raise ValueError(f"{name} is {value!r}; give a share from 0 to 1, such as 0.8")
        if name in LEAST and (type(value) is not int or value < LEAST[name]):
            raise ValueError(f"{name} is {value!r}; give a whole number from {LEAST[name]} on")
    if "point_grids" not in given:
        if not density > 0:
            raise ValueError(f"density is {density}: right is a positive factor, such as 0.5")
        return chosen | {"points_per_side": max(1, round(density * chosen["points_per_side"]))}
    grids, layers = [np.asarray(grid, dtype=np.float64) for grid in chosen["point_grids"]], chosen["crop_n_layers"] + 1
    fit = all(grid.ndim == 2 and grid.shape[1] == 2 and (grid >= 0).all() and (grid <= 1).all() for grid in grids)
    if not fit or len(grids) != layers or "points_per_side" in given or density != 1:
        raise ValueError(
            f"point_grids are {[grid.shape for grid in grids]}; give {layers} of them (crop_n_layers + 1), each (P, 2) "
            "of x and y from 0 to 1, and leave points_per_side and density out"
        )
    return chosen | {"points_per_side": None, "point_grids": grids}


def build_box_prompter(
    *, checkpoint: str | None = "miniature_sam", model: str | None = None, device: str = "cpu"
) -> Prompt:
    """Load a SAM that is prompted with boxes, by the package's own `SamPredictor` with our encoder.

    checkpoint, model, device: as for `build`
    returns: a function of images (H, W, 3) uint8 RGB, and for each its boxes (N, 4) xyxy pixels, to a pair for each
        image: masks (N, H, W) bool and predicted_iou (N,) float32, in the order of the boxes
    """
    predictor = SamPredictor(load(checkpoint, model).to(devices.choose(str(device))))
    encoder = predictor.model.image_encoder
    encoder.forward = partial(_encoder.encode, encoder)  # of this network alone
    predictor.transform = Resize(predictor.transform.target_length)

    @torch.inference_mode()
    def in_boxes(image: np.ndarray, boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        boxes, size = np.asarray(boxes, dtype=np.float32), image.shape[:2]
        if boxes.ndim != 2 or boxes.shape[1] != 4 or not np.isfinite(boxes).all():
            raise ValueError(f"boxes are (N, 4) finite numbers, left, top, right, bottom in pixels, not {boxes.shape}")
        if not len(boxes):  # the image need not be looked at
            return np.zeros((0, *size), dtype=bool), np.zeros(0, dtype=np.float32)
        predictor.set_image(image)
        # The boxes of an image go through the decoder together, of a large one a few.
        asked = predictor.transform.apply_boxes_torch(torch.tensor(boxes, device=predictor.device), size)
        found = []
        for few in asked.split(max(1, PACKAGE_AT_ONCE // (size[0] * size[1]))):
            masks, predicted_iou, _ = predictor.predict_torch(None, None, few, multimask_output=False)
            found.append((masks[:, 0].cpu().numpy(), predicted_iou[:, 0].float().cpu().numpy()))
        return tuple(np.concatenate(part) for part in zip(*found, strict=True))

    return lambda images, boxes: [in_boxes(*pair) for pair in zip(images, boxes, strict=True)]


def load(checkpoint: str | None, model: str | None = None) -> Sam:
    """Load a SAM, ready for inference; None is the miniature with random weights."""
    if checkpoint is not None:
        taken = "miniature_sam", *(f"sam_{name}" for name in MODELS)
        checkpoints.check_kind(checkpoint, taken, "the mask model sam (hf takes others)")
    path = None if checkpoint is None else checkpoints.locate(checkpoint)
    if checkpoint in (None, "miniature_sam"):
        return miniature.load(path)
    content = checkpoints.load_sam_state(path)
    named, seems = str(checkpoint).removeprefix("sam_"), checkpoints.seems_to_be(content)
    model = model or (named if named in MODELS else seems.removeprefix("SAM "))
    if model not in MODELS:
        problem = f"which SAM is {checkpoint}, of {', '.join(MODELS)}? model is {model!r}"
        raise ValueError(f"{problem}, and the file seems to be {seems or 'no SAM'}")
    sam = sam_model_registry[model]()
    shapes = {name: weight.shape for name, weight in sam.state_dict().items()}
    sam.load_state_dict(checkpoints.unwrap(path, content, shapes, f"SAM {model}"))
    return sam.eval()
