"""What `generators/sepl.py` must equal: SEPL's rules step by step, written separately.

`official` goes class by class and mask by mask, as the authors' code does (github.com/cskyl/SAM_WSSS, `merge/`, told in
our words: it has no licence); `paper` goes pixel by pixel.
"""

import numpy as np

VOID = 255


def official(label, masks, num_classes, count=np.sum):
    """Merge by the official code's rules, those of its default variant, max_iou_imp2.

    masks: N of (H, W) bool, or anything that gives the n-th when asked, read from a file for instance
    count: how the pixels of a set are counted; the authors write np.sum
    """
    merged = np.zeros_like(label)
    consumed = set()
    for index in range(1, num_classes):
        region = label == index
        region_size = count(region)
        if region_size == 0:
            continue
        offered = np.zeros(label.shape, dtype=bool)
        accepted = []
        for n in range(len(masks)):
            if n in consumed:
                continue
            mask = masks[n]
            offered = offered | mask
            common, mask_size = count(region & mask), count(mask)
            if (mask_size > 0 and common / mask_size > 0.5) or common / region_size >= 0.85:
                accepted.append(mask)
                consumed.add(n)
        accepted.append(region & ~offered)
        for part in accepted:
            merged[part] = index
    return merged


def paper(label, masks, num_classes):
    """Merge with each mask in the class that it overlaps most; method.md, B1 and B3."""
    height, width = label.shape
    pixels = [(y, x) for y in range(height) for x in range(width)]
    of_mask = []  # (part inside the region, class) of each mask, None if no rule accepts it
    for mask in masks:
        held = [int(label[pixel]) for pixel in pixels if mask[pixel]]
        winner, most = None, 0
        for index in range(1, num_classes):
            if held.count(index) > most:
                winner, most = index, held.count(index)
        region_size = sum(label[pixel] == winner for pixel in pixels)
        is_good = winner is not None and (most / len(held) > 0.5 or most / region_size >= 0.85)
        of_mask.append((most / len(held), winner) if is_good else None)

    merged = np.zeros_like(label)
    for pixel in pixels:
        here = [n for n in range(len(masks)) if masks[n][pixel]]
        claims = [of_mask[n] for n in here if of_mask[n]]
        if claims:
            largest = max(part for part, _ in claims)
            merged[pixel] = min(index for part, index in claims if part == largest)
        elif not here or label[pixel] == VOID:
            merged[pixel] = label[pixel]
    return merged
