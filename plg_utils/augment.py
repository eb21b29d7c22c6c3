"""Weak and strong views of an image and its label map, and CutMix boxes, as UniMatch draws them.

Images stay uint8 until `normalise`; every choice comes from the `rng` that is passed in. Operations and numbers are
those of UniMatch's dataset/transform.py and dataset/semi.py (github.com/LiheYoung/UniMatch), PIL's included.
"""

import math

import numpy as np
import torch
from PIL import Image, ImageFilter
from torchvision.transforms.v2 import functional as ops

from plg_utils.records import IGNORE

MEAN = (0.485, 0.456, 0.406)  # of ImageNet, RGB, for images in [0, 1]
STD = (0.229, 0.224, 0.225)


def normalise(images: torch.Tensor) -> torch.Tensor:
    """Bring images to the mean and deviation that ImageNet encoders expect.

    images: (B, 3, H, W) uint8
    returns: (B, 3, H, W) float32
    """
    mean = torch.tensor(MEAN, device=images.device).view(3, 1, 1)
    std = torch.tensor(STD, device=images.device).view(3, 1, 1)
    return (images.float() / 255 - mean) / std


def weak(
    image: np.ndarray,
    label: np.ndarray,
    size: int,
    rng: np.random.Generator,
    *,
    scale: tuple[float, float] = (0.5, 2.0),
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Resize at random, cut a square out of it, mirror half of the time.

    image: (H, W, 3) uint8, label: (H, W) uint8; scale: least and greatest factor of the long side
    returns: image (size, size, 3), label (size, size), padding (size, size) bool: where the resized image was too
        small for the square; there the image is black and the label IGNORE
    """
    long_side = max(label.shape)
    new_long_side = int(rng.integers(int(long_side * scale[0]), int(long_side * scale[1]), endpoint=True))
    height, width = (max(1, int(side * new_long_side / long_side + 0.5)) for side in label.shape)
    image = np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))
    label = np.asarray(Image.fromarray(label).resize((width, height), Image.Resampling.NEAREST))

    top = int(rng.integers(0, max(0, height - size), endpoint=True))
    left = int(rng.integers(0, max(0, width - size), endpoint=True))
    inside = slice(0, min(height, size)), slice(0, min(width, size))  # a small image is in the upper left corner
    cut = slice(top, top + size), slice(left, left + size)
    view, view_label = np.zeros((size, size, 3), np.uint8), np.full((size, size), IGNORE, np.uint8)
    padding = np.ones((size, size), bool)
    view[inside], view_label[inside], padding[inside] = image[cut], label[cut], False
    if rng.random() < 0.5:
        view, view_label, padding = view[:, ::-1], view_label[:, ::-1], padding[:, ::-1]
    return view, view_label, padding


def strong(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Disturb the colours, sometimes drop them, sometimes blur: what changes no label.

    image: (H, W, 3) uint8
    returns: the same shape and type
    """
    view = Image.fromarray(np.ascontiguousarray(image))
    if rng.random() < 0.8:
        jitter = (
            (ops.adjust_brightness, rng.uniform(0.5, 1.5)),
            (ops.adjust_contrast, rng.uniform(0.5, 1.5)),
            (ops.adjust_saturation, rng.uniform(0.5, 1.5)),
            (ops.adjust_hue, rng.uniform(-0.25, 0.25)),  # in turns of the colour circle
        )
        for which in rng.permutation(len(jitter)):  # torchvision's ColorJitter shuffles them too
            adjust, factor = jitter[which]
            view = adjust(view, factor)
    if rng.random() < 0.2:
        view = ops.rgb_to_grayscale(view, num_output_channels=3)
    if rng.random() < 0.5:
        view = view.filter(ImageFilter.GaussianBlur(rng.uniform(0.1, 2.0)))  # standard deviation in pixels
    return np.asarray(view)


def cutmix_box(
    size: int,
    rng: np.random.Generator,
    *,
    probability: float = 0.5,
    area: tuple[float, float] = (0.02, 0.4),
    ratio: tuple[float, float] = (0.3, 1 / 0.3),
) -> tuple[int, int, int, int]:
    """Draw the box of a square view into which another image is pasted.

    area: part of the view, ratio: height / width
    returns: left, top, right, bottom in pixels; (0, 0, 0, 0) where nothing is pasted
    """
    if rng.random() > probability:
        return 0, 0, 0, 0
    pixels = rng.uniform(*area) * size**2
    while True:  # the area stays; shape and place are drawn until the box is inside
        shape = rng.uniform(*ratio)
        width, height = int(math.sqrt(pixels / shape)), int(math.sqrt(pixels * shape))
        left, top = (int(value) for value in rng.integers(0, size, 2))
        if left + width <= size and top + height <= size:
            return left, top, left + width, top + height
