"""Large images in tiles give what the whole image gives: masks across seams, features between them."""

import numpy as np
import pytest
import torch
from test_masks import random_images

from plg_utils import encoders, tiles
from plg_utils import masks as mask_models
from plg_utils.masks import sam
from plg_utils.records import Masks
from plg_utils.regions import components
from plg_utils.tiles import Tile

TILE, OVERLAP = 48, 16


def by_colour(images):
    """One mask for each value of red but 0, with the value as predicted IoU: what a tile shows of it is never wrong."""
    found = []
    for image in images:
        values = [value for value in np.unique(image[..., 0]) if value]
        masks = np.array([image[..., 0] == value for value in values], dtype=bool).reshape(-1, *image.shape[:2])
        found.append(Masks.from_dense(masks, np.array(values) / 255, np.ones(len(values))))
    return found


def things(seed, size, count=12):
    """Boxes and discs of 3 to 90 pixels, each of a red of its own, the later ones on top."""
    rng, image = np.random.default_rng(seed), np.zeros((*size, 3), np.uint8)
    y, x = np.indices(size)
    for value in range(1, count + 1):
        (top, left), (height, width) = rng.integers(0, size), rng.integers(3, 90, 2)
        box = (abs(y - top) <= height / 2) & (abs(x - left) <= width / 2)
        disc = ((y - top) / height) ** 2 + ((x - left) / width) ** 2 <= 0.25
        image[box if rng.random() < 0.5 else disc, 0] = value
    return image


def regions(mask):
    return len(np.unique(components(mask))) - 1


@pytest.mark.parametrize("size", [(100, 130), (130, 40), (47, 200), (49, 49)])
def test_masks_across_seams_are_those_of_the_whole_image(size):
    for seed in range(4):
        image = things(seed, size)
        (whole,) = by_colour([image])
        found = tiles.segment(by_colour, image, TILE, OVERLAP)
        counts = [{rle["counts"] for rle in masks.rles} for masks in (found, whole)]
        # What another thing parts exactly at a seam stays in two: the tiles share no pixel of it.
        parted = {rle["counts"] for rle, mask in zip(whole.rles, whole.dense(), strict=True) if regions(mask) > 1}
        assert counts[1] - parted <= counts[0] and len(parted) < 6
        assert found.areas().sum() == whole.areas().sum() and found.coverage() == whole.coverage()
        assert found.size == size and (np.diff(found.predicted_iou) <= 0).all() and (found.stability == 1).all()


def test_what_fits_into_a_tile_is_seen_whole():
    seen = []
    find = tiles.segment(lambda images: seen.extend(images) or by_colour(images), things(0, (48, 30)), TILE, OVERLAP)
    assert [image.shape for image in seen] == [(48, 30, 3)] and find.rles == by_colour(seen)[0].rles
    assert len(tiles.segment(by_colour, np.zeros((100, 100, 3), np.uint8), TILE, OVERLAP)) == 0


def tile(left, *rows, iou=None, core=None):
    """A tile at (left, 0) whose masks are rows of pixels of an image one pixel high."""
    dense = np.array([[[sign == "#" for sign in row]] for row in rows])
    scores = np.ones(len(rows)) if iou is None else iou
    return Tile(left, 0, core or (left, 0, left + dense.shape[2], 1), Masks.from_dense(dense, scores, scores))


def test_pairs_by_hand():
    """Tiles 0 to 10 and 6 to 16; both see 6, 7, 8 and 9."""
    pairs = lambda one, other: tiles.same(tile(0, *one), tile(6, *other), axis=1)[0]  # noqa: E731
    assert pairs(["......####"], ["####......"]) == [(0, 0)]
    assert pairs(["........##"], ["..####...."]) == [(0, 0)]  # cut by the seam, equal before it
    assert pairs([".......###"], ["..##......"]) == [(0, 0)]  # cut: IoU 2 / 3 is enough
    assert pairs([".......##."], ["###......."]) == [(0, 0)]  # cut on the other side
    assert pairs([".......##."], [".###......"]) == []  # 2 / 3 is not enough where nothing is cut
    assert pairs(["......##.."], [".###......"]) == []  # 1 / 4
    assert pairs(["......#..."], ["......#..."]) == []  # what is not in the overlap is not compared
    assert pairs([".......##."], [".##......."]) == [(0, 0)]  # the same thing twice
    # A thing and its part look alike in the overlap: the large one goes with the large one.
    both = pairs(["........##", "####..####", ".....#####"], ["####......", "##########"])
    assert both == [(1, 1), (2, 0)]


def test_fragments_that_the_neighbour_sees_better_are_left_out():
    one, other = tile(0, "....######", ".....#...."), tile(6, "####......", "##........", ".##.......", "..########")
    pairs, *alone = tiles.same(one, other, axis=1)
    assert pairs == [(0, 0)] and alone == [[], [1]]  # 2 is not cut, 3 goes on beyond the overlap
    assert tiles.same(other, tile(12, "..#...", "....##"), axis=1) == ([], [], [])
    things = tiles._things({(0, 0): one, (0, 1): other})
    assert [[index for _, index in thing] for thing in things] == [[0, 0], [1], [2], [3]]  # 1 is of the first tile
    assert ((0, 1), 1) not in [member for thing in things for member in thing]


def test_each_tile_decides_in_its_middle_and_the_scores_are_means():
    assert tiles._middles(100, TILE, OVERLAP) == [(0, 37), (37, 63), (63, 100)]  # of tiles at 0, 26 and 52
    one = tile(0, "..########", iou=[0.5], core=(0, 0, 8, 1))
    other = tile(6, ".###......", iou=[0.9], core=(8, 0, 16, 1))
    rle, scores = tiles._join([(one, 0), (other, 0)], (1, 16))
    drawn = Masks((rle,), (1, 16), scores[:1], scores[1:]).dense()[0, 0]
    # 2 to 7 are those of the first, 8 and 9 of the other
    assert "".join(".#"[int(pixel)] for pixel in drawn) == "..########......"
    np.testing.assert_allclose(scores, (6 * 0.5 + 2 * 0.9) / 8)


class Means:
    """An encoder of the mean colour in cells of 4 x 4 pixels, without any context."""

    dim = 3

    def images(self, images):
        assert max(max(image.shape[:2]) for image in images) <= 32
        return [self.whole(image) for image in images]

    def whole(self, image):
        cells = image.reshape(image.shape[0] // 4, 4, image.shape[1] // 4, 4, 3).mean(axis=(1, 3))
        return torch.tensor(cells, dtype=torch.float32).permute(2, 0, 1)


@pytest.mark.parametrize("size", [(32, 32), (96, 64), (100, 36), (16, 120)])
@pytest.mark.parametrize("overlap", [4, 7, 16])
def test_features_of_tiles_are_those_of_the_whole_image_where_context_does_not_count(size, overlap):
    image = random_images(size)[0]
    encoder = tiles.Tiled(Means(), 32, overlap)
    small, large, again = encoder.images([image[:8, :8], image, image[:8, :8]])
    torch.testing.assert_close(large, Means().whole(image))
    assert small.shape == (3, 2, 2) and torch.equal(small, again) and encoder.dim == 3
    assert encoder.images([random_images((35, 40))[0]])[0].shape == (3, 9, 10)  # the last tile ends with the image


def test_features_turn_smoothly_from_one_tile_to_the_next():
    class Numbers:
        def images(self, images):
            return [torch.full((1, 1, 8), float(image[0, 0, 0])) for image in images]

    image = np.zeros((4, 12, 3), np.uint8)
    image[:, 4:] = 1  # tiles begin at 0 and 4
    blended = tiles.Tiled(Numbers(), 8, 4).images([image])[0]
    assert blended.shape == (1, 1, 12)
    weights = [1, 2, 3, 4, 4, 3, 2, 1]
    expected = [0] * 4 + [weights[k] / (weights[k] + weights[4 + k]) for k in range(4)] + [1] * 4
    np.testing.assert_allclose(blended[0, 0], expected, atol=1e-6)


@pytest.mark.parametrize("build", [mask_models.build, encoders.build])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tile": 0}, "tile is 0"),
        ({"tile_overlap": 64}, "tile is None"),
        ({"tile": 64, "tile_overlap": 33}, "1 to 32 pixels"),
    ],
    ids=str,
)
def test_tiles_that_cannot_be_are_refused(build, options, message):
    with pytest.raises(ValueError, match=message):
        build("sam" if build is mask_models.build else "clip", **options)


def test_the_models_take_tiles_by_their_options():
    image = random_images((40, 60))[0]
    cut = {"tile": 32, "tile_overlap": 8}
    whole, parts = (mask_models.build("sam", **sam.SMOKE, **options)([image])[0] for options in ({}, cut))
    assert parts.size == (40, 60) and parts.rles != whole.rles
    assert mask_models.build("sam", **sam.SMOKE, **cut)([image[:32, :32]])[0].rles  # fits
    plain, tiled = encoders.build("clip"), encoders.build("clip", **cut)
    assert torch.equal(tiled.images([image[:32, :32]])[0], plain.images([image[:32, :32]])[0])
    assert tiled.images([image])[0].shape == (128, 15, 22)  # 12 cells in 32 pixels
    assert torch.equal(tiled.texts(["a photo"]), plain.texts(["a photo"]))
