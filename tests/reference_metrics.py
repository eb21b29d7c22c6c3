"""What the fast counts of errors, borders and confidence must equal: the definitions in plain loops, pixel by pixel."""

import math

IGNORE = 255


def pixels(values):
    return [(y, x) for y in range(values.shape[0]) for x in range(values.shape[1])]


def near(place, radius, size):
    """Pixels of the image in the disc around a pixel, itself included."""
    y, x = place
    for other_y in range(max(0, y - radius), min(size[0], y + radius + 1)):
        for other_x in range(max(0, x - radius), min(size[1], x + radius + 1)):
            if (other_y - y) ** 2 + (other_x - x) ** 2 <= radius**2:
                yield other_y, other_x


def error_types(truth, label, num_classes, background, band):
    """(K, 5) counts: boundary, background bleed, missed object, wrong class, right."""
    counts = [[0] * 5 for _ in range(num_classes)]
    for place in pixels(truth):
        true, given = int(truth[place]), int(label[place])
        if true == IGNORE:
            continue
        if given == IGNORE and background is not None:
            given = background
        if given == true:
            kind = 4
        elif any(truth[other] != true for other in near(place, band, truth.shape)):
            kind = 0
        elif true == background:
            kind = 1
        elif given in (background, IGNORE):
            kind = 2
        else:
            kind = 3
        counts[true][kind] += 1
    return counts


def border(values, index):
    """Pixels of this value with another value above, below, left or right."""
    found = []
    for y, x in pixels(values):
        around = [(y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)]
        inside = [(v, u) for v, u in around if 0 <= v < values.shape[0] and 0 <= u < values.shape[1]]
        if values[y, x] == index and any(values[other] != index for other in inside):
            found.append((y, x))
    return found


def boundaries(truth, label, num_classes, background, tolerance):
    """(K, 4) counts: border pixels given, of them near a true one, true ones, of them near a given one."""
    if background is not None:
        label = label.copy()
        label[label == IGNORE] = background
    counts = []
    for index in range(num_classes):
        true, given = border(truth, index), border(label, index)
        hits = [place for place in given if set(near(place, tolerance, truth.shape)) & set(true)]
        misses = [place for place in given if place not in hits and truth[place] != IGNORE]
        found = [place for place in true if set(near(place, tolerance, truth.shape)) & set(given)]
        counts.append([len(hits) + len(misses), len(hits), len(true), len(found)])
    return counts


def f_score(given, given_near, true, true_near):
    """Harmonic mean of precision and recall; nan without a true border."""
    if not true:
        return math.nan
    if not given or not given_near:
        return 0.0
    precision, recall = given_near / given, true_near / true
    return 2 * precision * recall / (precision + recall)


def calibration(confidence, correct, bins):
    """(bins, 3): pixels, right ones, sum of their confidence."""
    counts = [[0, 0, 0.0] for _ in range(bins)]
    for sure, is_right in zip(confidence.ravel().tolist(), correct.ravel().tolist(), strict=True):
        index = bins - 1 if sure == 1 else int(sure * bins)
        counts[index][0] += 1
        counts[index][1] += is_right
        counts[index][2] += sure
    return counts


def ece(counts):
    total = sum(row[0] for row in counts)
    return sum(row[0] / total * abs(row[1] / row[0] - row[2] / row[0]) for row in counts if row[0])


def accuracy_coverage(counts):
    """Pairs (share kept, share right of them), the surest bin first."""
    total, pairs = sum(row[0] for row in counts), []
    for lowest in range(len(counts) - 1, -1, -1):
        kept = sum(row[0] for row in counts[lowest:])
        if counts[lowest][0]:
            pairs.append((kept / total, sum(row[1] for row in counts[lowest:]) / kept))
    return pairs
