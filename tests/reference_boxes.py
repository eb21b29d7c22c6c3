"""What paper C's steps must equal: plain loops over pixels and boxes, written separately."""

import numpy as np


def components(mask):
    """Regions of a mask (h, w), cells that touch at a corner connected: a list of sets of (row, column)."""
    height, width = mask.shape
    left = {(y, x) for y in range(height) for x in range(width) if mask[y, x]}
    regions = []
    while left:
        waiting, region = [min(left)], set()
        while waiting:
            y, x = waiting.pop()
            if (y, x) not in left:
                continue
            left.remove((y, x))
            region.add((y, x))
            waiting += [(y + down, x + right) for down in (-1, 0, 1) for right in (-1, 0, 1)]
        regions.append(region)
    return regions


def inside_box(masks, boxes, dilation):
    """Pixels of each mask (N, H, W) whose centre lies in its box, grown by a part of its width and height per side."""
    kept = np.zeros_like(masks)
    for n, (left, top, right, bottom) in enumerate(boxes):
        aside, above = dilation * (right - left), dilation * (bottom - top)
        for y in range(masks.shape[1]):
            for x in range(masks.shape[2]):
                in_x = left - aside <= x + 0.5 <= right + aside
                in_y = top - above <= y + 0.5 <= bottom + above
                kept[n, y, x] = masks[n, y, x] and in_x and in_y
    return kept


def merge(masks, classes, scores, background):
    """Ask each pixel which of the masks on it has the highest score, or comes last: label and confidence (H, W)."""
    label = np.full(masks.shape[1:], background)
    confidence = np.ones(masks.shape[1:])
    for y in range(masks.shape[1]):
        for x in range(masks.shape[2]):
            here = [n for n in range(len(masks)) if masks[n, y, x]]
            if here:
                winner = max(here, key=lambda n: (scores[n], n))
                label[y, x], confidence[y, x] = classes[winner], scores[winner]
    return label, confidence


def tag_scores(views, texts, owner, background, temperature):
    """Softmax over classes and background words in each view, then the best view: one number for each class."""
    classes = sorted({index for index in owner if index != background})
    best = {index: 0.0 for index in classes}
    for view in views:
        cosine = [float(view @ text) / float(np.linalg.norm(view) * np.linalg.norm(text)) for text in texts]
        of_classes = [max(value for value, of in zip(cosine, owner, strict=True) if of == index) for index in classes]
        others = [value for value, of in zip(cosine, owner, strict=True) if of == background]
        powers = [np.exp(value / temperature) for value in of_classes + others]
        for index, power in zip(classes, powers, strict=False):
            best[index] = max(best[index], power / sum(powers))
    return [best[index] for index in classes]
