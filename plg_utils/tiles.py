"""Large images in tiles: masks that a seam cuts are joined, features are blended.

A network that sees 1024 pixels finds no car in a satellite's 10,000. So the image is cut into tiles that overlap, and
the network sees each of them as an image. `masks.build` and `encoders.build` take the options

    tile           pixels along the side of a tile, such as the side that the network sees; None: no tiles
    tile_overlap   pixels that neighbours share at least, by default an eighth of the tile. The overlap decides which
                   masks are the same thing, so give about half of what a thing measures

An image that fits into one tile is seen whole, as without these options. micro-sam and SAHI drop or unite by box what
two tiles show (github.com/computational-cell-analytics/micro-sam, github.com/obss/sahi), samgeo leaves a thing at a
seam in two. Here neighbours compare the pixels that both have seen.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from typing import Any

import numpy as np
import torch
from pycocotools import mask as coco

from plg_utils import run_lengths
from plg_utils.records import Masks

CUT, TWICE = 0.5, 0.7  # IoU in the overlap from which two masks are one thing: if a seam cuts one; if none is cut
AT_ONCE = 64  # tiles that are handed to an encoder together


def check(tile: int | None, overlap: int | None) -> tuple[int, int] | None:
    """The two options, or None where no tiles are wanted."""
    if tile is None and overlap is None:
        return None
    if type(tile) is not int or tile < 8:
        raise ValueError(f"tile is {tile!r}, not a number of pixels from 8 on: give the side of a tile, such as 1024")
    overlap = tile // 8 if overlap is None else overlap
    if type(overlap) is not int or not 1 <= overlap <= tile // 2:
        raise ValueError(f"tile_overlap is {overlap!r}; right are 1 to {tile // 2} pixels, half of a tile")
    return tile, overlap


def starts(length: int, tile: int, overlap: int) -> list[int]:
    """Where tiles begin along a side: the first at 0, the last as far as it goes, the others evenly between them."""
    count = max(1, math.ceil((length - overlap) / (tile - overlap)))
    return np.linspace(0, max(0, length - tile), count).round().astype(int).tolist()


# Masks


@dataclass(frozen=True, eq=False)
class Tile:
    """A part of an image, and the masks that were found in it."""

    left: int  # pixels of the image
    top: int
    core: tuple[int, int, int, int]  # left, top, right, bottom, the last two not included: ends amid the overlaps
    masks: Masks  # of the tile

    def own(self, box: Sequence[int]) -> list[int]:
        """What of a box of the image lies in the tile, in its own pixels."""
        sides = zip(box, (self.left, self.top) * 2, self.masks.size[::-1] * 2, strict=True)
        return [min(max(0, side - shift), length) for side, shift, length in sides]


def segment(find: Callable[[Sequence[np.ndarray]], list[Masks]], image: np.ndarray, tile: int, overlap: int) -> Masks:
    """Masks of an image (H, W, 3) uint8 by a mask model `find` that sees it in tiles, by falling predicted IoU.

    Masks of neighbours that agree in their overlap become one mask: its pixels are those of the tile in whose middle
    they lie, its scores are means weighted by these pixels. A fragment at the edge of a tile that its neighbour sees
    better is left out. No mask of the whole image is drawn.
    """
    size = image.shape[:2]
    if max(size) <= tile:
        return find([image])[0]
    rows, columns = ([*zip(starts(n, tile, overlap), _middles(n, tile, overlap), strict=True)] for n in size)
    tiles = {}
    for (r, (top, (high, low))), (c, (left, (first, last))) in product(enumerate(rows), enumerate(columns)):
        (found,) = find([np.ascontiguousarray(image[top : top + tile, left : left + tile])])
        tiles[r, c] = Tile(left, top, (first, high, last, low), found)
    made = [_join([(tiles[place], index) for place, index in members], size) for members in _things(tiles)]
    rles, scores = [rle for rle, _ in made], np.array([scores for _, scores in made], np.float32).reshape(-1, 2)
    return Masks(tuple(rles), size, *scores.T).take(np.argsort(-scores[:, 0], kind="stable"))


def _middles(length: int, tile: int, overlap: int) -> list[tuple[int, int]]:
    """The part of a side that each tile decides about: from the middle of one overlap to that of the next."""
    along = starts(length, tile, overlap)
    ends = [0, *((first + tile + second) // 2 for first, second in pairwise(along)), length]
    return list(pairwise(ends))


def _things(tiles: dict[tuple[int, int], Tile]) -> list[list[tuple]]:
    """The masks of each thing: (row and column of the tile, number of the mask)."""
    group = {(place, index): (place, index) for place in tiles for index in range(len(tiles[place].masks))}
    fragments = set()
    for r, c in tiles:
        for neighbour, axis in (((r, c + 1), 1), ((r + 1, c), 0)):
            if neighbour in tiles:
                pairs, *alone = same(tiles[r, c], tiles[neighbour], axis)
                for first, second in pairs:
                    group[_root(group, (neighbour, second))] = _root(group, ((r, c), first))
                fragments |= {(place, k) for place, of in zip(((r, c), neighbour), alone, strict=True) for k in of}
    members: dict[tuple, list] = {}
    for one in group:
        members.setdefault(_root(group, one), []).append(one)
    return [masks for root, masks in members.items() if len(masks) > 1 or root not in fragments]


def _root(group: dict, one: tuple) -> tuple:
    while group[one] != one:
        one = group[one]
    return one


def same(one: Tile, other: Tile, axis: int) -> tuple[list[tuple[int, int]], list[int], list[int]]:
    """Pairs of masks, a number in each of two neighbours, that show the same thing; each mask is in one pair at most.

    axis: 0 if the other tile lies below, 1 if it lies to the right
    returns: the pairs; of one and of the other, the numbers of fragments in no pair: what the edge of the tile cuts,
        while the neighbour sees all of it and how it goes on
    """
    ends = [(tile.left + tile.masks.size[1], tile.top + tile.masks.size[0]) for tile in (one, other)]
    shared = [max(one.left, other.left), max(one.top, other.top), *map(min, *ends)]
    numbers, drawn = zip(*(_inside(tile.masks, tile.own(shared)) for tile in (one, other)), strict=True)
    cut = [part.take(edge, axis=axis + 1).any(axis=1) for part, edge in zip(drawn, (-1, 0), strict=True)]
    flat = [torch.from_numpy(part).flatten(1).float() for part in drawn]
    both = (flat[0] @ flat[1].T).numpy()
    areas = [part.sum(dim=1).numpy() for part in flat]
    iou = both / (areas[0][:, None] + areas[1] - both)
    enough = iou >= np.where(cut[0][:, None] | cut[1], CUT, TWICE)
    # The best pair first. A thing and its part may be equal here: of pairs that agree as well, the larger one.
    whole = [tile.masks.areas()[of_tile] for tile, of_tile in zip((one, other), numbers, strict=True)]
    order = np.lexsort((-(whole[0][:, None] + whole[1]).ravel(), -iou.round(2).ravel()))
    taken, pairs = (set(), set()), []
    for first, second in zip(*divmod(order, max(1, iou.shape[1])), strict=True):
        if enough[first, second] and first not in taken[0] and second not in taken[1]:
            taken[0].add(first), taken[1].add(second)
            pairs.append((int(numbers[0][first]), int(numbers[1][second])))
    alone = []
    for of_tile, edge, inside, all_of_it, paired in zip(numbers, cut, areas, whole, taken, strict=True):
        seen = np.flatnonzero(edge & (inside == all_of_it))
        alone.append([int(of_tile[index]) for index in seen if index not in paired])
    return pairs, *alone


def _inside(masks: Masks, box: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Numbers (n,) of the masks that reach into a box of their image, and these masks there: (n, h, w) bool."""
    left, top, right, bottom = box
    corners = np.array(masks.corners(), dtype=int).reshape(-1, 4)
    near = np.flatnonzero(((corners[:, :2] < [right, bottom]) & (corners[:, 2:] > [left, top])).all(axis=1))
    drawn = [run_lengths.crop(masks.runs[index], masks.size, box) for index in near]
    drawn = np.array(drawn, dtype=bool).reshape(len(near), bottom - top, right - left)
    there = drawn.any(axis=(1, 2))
    return near[there], drawn[there]


def _join(members: list[tuple[Tile, int]], size: tuple[int, int]) -> tuple[dict, np.ndarray]:
    """Make one mask of an image of this size from a thing's masks in tiles: its run lengths, its two scores (2,)."""
    texts, areas = [], []
    for tile, index in members:
        runs = tile.masks.runs[index]
        others = [other for other, _ in members if other is not tile]
        if others:
            mask = run_lengths.dense([runs], tile.masks.size)[0]
            for other in others:  # which know better in their middle
                left, top, right, bottom = tile.own(other.core)
                mask[top:bottom, left:right] = False
            runs = Masks.from_dense(mask[None]).runs[0]
        areas.append(runs[1::2].sum())
        placed = run_lengths.place(runs, tile.masks.size, (tile.left, tile.top), size)
        texts.append({"size": list(size), "counts": run_lengths.encode(placed, size)})
    counts = coco.merge(texts)["counts"].decode("ascii")
    scores = [(tile.masks.predicted_iou[index], tile.masks.stability[index]) for tile, index in members]
    scores = np.average(scores, axis=0, weights=areas if sum(areas) else None)
    return {"size": list(size), "counts": counts}, scores


# Features


class Tiled:
    """An encoder whose dense features of large images come from tiles; all else is the encoder's own."""

    def __init__(self, encoder: Any, tile: int, overlap: int):
        """Wrap an encoder, see `encoders`."""
        self.encoder, self.tile, self.overlap = encoder, tile, overlap

    def __getattr__(self, name: str) -> Any:
        return getattr(self.encoder, name)

    def images(self, images: Sequence[np.ndarray], masks: Sequence[Masks] | None = None) -> list[torch.Tensor]:
        """Encode images, each (H, W, 3) uint8 RGB of any size: (D, h, w) float32 each, a tile's grid in each tile.

        masks: of each image, if the encoder asks for them; a tile gets what of them lies in it
        """
        pairs = list(zip(images, masks or [None] * len(images), strict=True))
        small = {index: pair for index, pair in enumerate(pairs) if max(pair[0].shape[:2]) <= self.tile}
        made = dict(zip(small, self._encode(*zip(*small.values(), strict=True)), strict=True)) if small else {}
        return [made[index] if index in made else self._blended(*pair) for index, pair in enumerate(pairs)]

    def _encode(self, images: Sequence[np.ndarray], masks: Sequence[Masks | None]) -> list[torch.Tensor]:
        return self.encoder.images(images) if None in masks else self.encoder.images(images, masks=masks)

    def _blended(self, image: np.ndarray, masks: Masks | None) -> torch.Tensor:
        """Features (D, h, w) of an image from its tiles, which weigh less towards their edges."""
        sides = [min(self.tile, length) for length in image.shape[:2]]

        def encode(corners: list[tuple[int, int]]) -> list[torch.Tensor]:
            """Features of the tiles with these corners, each its top and left."""
            boxes = [(left, top, left + sides[1], top + sides[0]) for top, left in corners]
            parts = [np.ascontiguousarray(image[top:low, left:right]) for left, top, right, low in boxes]
            seen = [None if masks is None else Masks.from_dense(_inside(masks, box)[1]) for box in boxes]
            return self._encode(parts, seen)

        (first,) = encode([(0, 0)])
        height, width = first.shape[1:]
        (rows, down, ramp_down), (columns, across, ramp_across) = map(self._along, image.shape[:2], first.shape[1:])
        weight = (ramp_down[:, None] * ramp_across).to(first)
        blended, total = first.new_zeros(len(first), rows, columns), first.new_zeros(rows, columns)
        places = list(product(down, across))
        for begin in range(0, len(places), AT_ONCE):
            together = places[begin : begin + AT_ONCE]
            found = encode([(top, left) for (_, top), (_, left) in together])
            for ((r, _), (c, _)), features in zip(together, found, strict=True):
                blended[:, r : r + height, c : c + width] += weight * features
                total[r : r + height, c : c + width] += weight
        return blended.div_(total)

    def _along(self, length: int, of_tile: int) -> tuple[int, list[tuple[int, int]], torch.Tensor]:
        """Tiles of of_tile cells along a side: its cells, where tiles begin in (cells, pixels), the cells' weights."""
        side = min(self.tile, length)
        cells = max(of_tile, round(length * of_tile / side))
        overlap = min(of_tile - 1, max(1, round(self.overlap * of_tile / side)))
        begins = starts(cells, of_tile, overlap)
        pixels = [min(round(cell * length / cells), length - side) for cell in begins]
        rise = torch.arange(1.0, of_tile + 1)
        return cells, list(zip(begins, pixels, strict=True)), torch.minimum(rise, rise.flip(0)).clamp(max=overlap + 1)
