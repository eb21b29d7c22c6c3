import numpy as np
import torch
from PIL import Image, ImageFilter

from plg_utils import augment
from plg_utils.records import IGNORE


def patches(rng, height, width):
    """An image whose red channel is its label map."""
    image = rng.integers(0, 200, (height, width, 3)).astype(np.uint8)
    return image, image[..., 0].copy()


def test_image_and_label_stay_together():
    rng = np.random.default_rng(0)
    flips = 0
    for height, width in ((9, 14), (14, 9), (6, 6), (20, 30)):
        image, label = patches(rng, height, width)
        for _ in range(20):
            view, view_label, padding = augment.weak(image, label, 10, rng, scale=(1, 1))
            assert view.shape == (10, 10, 3) and view_label.shape == padding.shape == (10, 10)
            assert view.dtype == view_label.dtype == np.uint8 and padding.dtype == bool
            assert (view[~padding][:, 0] == view_label[~padding]).all()
            assert (view[padding] == 0).all() and (view_label[padding] == IGNORE).all()
            assert (~padding).sum() == min(height, 10) * min(width, 10)
            if min(height, width) < 10:
                assert padding[-1].all() or padding[:, 0].all() or padding[:, -1].all()
            flipped = np.pad(label, ((0, 20), (0, 20)), constant_values=IGNORE)[:, ::-1]
            windows = np.lib.stride_tricks.sliding_window_view(flipped, (10, 10))
            flips += bool((windows == view_label).all(axis=(2, 3)).any())
    assert 20 <= flips <= 60  # of 80, half


def test_resizing_is_that_of_pil_and_in_its_range():
    rng = np.random.default_rng(1)
    image, label = patches(rng, 12, 18)
    sizes = set()
    for _ in range(200):
        view, view_label, padding = augment.weak(image, label, 40, rng)
        height, width = (~padding).any(axis=1).sum(), (~padding).any(axis=0).sum()
        sizes.add(int(width))
        assert height == int(12 * width / 18 + 0.5)
        resized = np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))
        nearest = np.asarray(Image.fromarray(label).resize((width, height), Image.Resampling.NEAREST))
        if padding[0, 0]:  # mirrored
            view, view_label = view[:, ::-1], view_label[:, ::-1]
        assert (view[:height, :width] == resized).all() and (view_label[:height, :width] == nearest).all()
    assert min(sizes) == 9 and max(sizes) == 36  # 0.5 and 2.0 times the long side, ends included


def test_crops_reach_every_corner():
    rng = np.random.default_rng(2)
    label = np.arange(16, dtype=np.uint8).reshape(4, 4)
    image = np.repeat(label[..., None], 3, axis=2)
    corners = {int(augment.weak(image, label, 3, rng, scale=(1, 1))[1].min()) for _ in range(100)}
    assert corners == {0, 1, 4, 5}


class Dice:
    """Gives what it was told instead of random numbers."""

    def __init__(self, chances, values=(), order=(0, 1, 2, 3)):
        self.chances, self.values, self.order = list(chances), list(values), list(order)

    def random(self):
        return self.chances.pop(0)

    def uniform(self, low, high):
        value = self.values.pop(0)
        assert low <= value <= high
        return value

    def permutation(self, count):
        return self.order[:count]


def test_strong_views_do_what_they_were_told():
    image, _ = patches(np.random.default_rng(4), 9, 9)
    same = augment.strong(image, Dice([0.8, 0.2, 0.5]))
    assert (same == image).all() and same.dtype == np.uint8  # three times no
    grey = augment.strong(image, Dice([0.9, 0.1, 0.9]))
    assert (grey == np.asarray(Image.fromarray(image).convert("L"))[..., None]).all()
    blurred = augment.strong(image, Dice([0.9, 0.9, 0.4], [1.3]))
    assert (blurred == np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(1.3)))).all()
    same = augment.strong(image, Dice([0.7, 0.9, 0.9], [1, 1, 1, 0]))
    assert np.abs(same.astype(int) - image).max() <= 6  # hue goes through 8-bit HSV
    dark = augment.strong(image, Dice([0.7, 0.9, 0.9], [0.5, 1, 1, 0]))
    assert np.abs(dark.astype(int) - image // 2).max() <= 6
    image = np.full((5, 5, 3), (200, 40, 40), np.uint8)
    turned = augment.strong(image, Dice([0.7, 0.9, 0.9], [1, 1, 1, 0.25]))[0, 0].astype(int)
    assert turned[1] == 200 and turned[2] < 60  # a quarter turn from red: yellow-green
    pale = augment.strong(image, Dice([0.7, 0.9, 0.9], [1, 1, 0.5, 0]))[0, 0].astype(int)
    luma = 0.299 * 200 + 0.587 * 40 + 0.114 * 40
    assert np.abs(pale - (luma + 0.5 * (np.array([200, 40, 40]) - luma))).max() <= 6
    # the order is drawn: contrast first keeps the bright half from being cut off at 255
    image = np.repeat(np.array([[200, 40]], np.uint8), 3, axis=1).reshape(1, 2, 3)
    for order, expected in (((0, 1, 2, 3), (206, 109)), ((1, 0, 2, 3), (240, 120))):
        halves = augment.strong(image, Dice([0.7, 0.9, 0.9], [1.5, 0.5, 1, 0], order))[0, :, 0].astype(int)
        assert np.abs(halves - expected).max() <= 6


def test_cutmix_boxes_lie_inside_and_have_their_size():
    rng = np.random.default_rng(6)
    size, boxes = 50, []
    for _ in range(400):
        left, top, right, bottom = augment.cutmix_box(size, rng)
        assert 0 <= left <= right <= size and 0 <= top <= bottom <= size
        boxes.append((right - left, bottom - top))
    drawn = np.array([box for box in boxes if box != (0, 0)])
    assert 150 < len(drawn) < 250  # half of the views
    width, height = drawn.T
    assert (width * height <= 0.4 * size**2).all() and ((width + 1) * (height + 1) > 0.02 * size**2).all()
    assert (height / (width + 1) < 1 / 0.3).all() and ((height + 1) / width > 0.3).all()
    assert height.max() > 1.5 * size**0.5 * 2 and width.max() > 25  # large ones occur
    assert augment.cutmix_box(size, rng, probability=0.0) == (0, 0, 0, 0)
    # the area is drawn once: small boxes are not favoured when shapes are drawn again
    left, top, right, bottom = np.transpose([augment.cutmix_box(size, rng, probability=1) for _ in range(400)])
    assert abs(np.mean((right - left) * (bottom - top)) / size**2 - 0.21) < 0.02


def test_normalise():
    images = torch.tensor([0, 128, 255], dtype=torch.uint8).view(1, 1, 1, 3).expand(2, 3, 4, 3)
    got = augment.normalise(images)
    assert got.dtype == torch.float32 and got.shape == (2, 3, 4, 3)
    for channel, (mean, std) in enumerate(((0.485, 0.229), (0.456, 0.224), (0.406, 0.225))):
        for index, value in enumerate((0, 128, 255)):
            assert abs(float(got[1, channel, 2, index]) - (value / 255 - mean) / std) < 1e-5
