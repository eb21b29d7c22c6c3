"""The formulas of training and scoring in plain loops, and a network small enough to follow; slow, for the tests."""

import math

import numpy as np
import torch
from reference import softmax
from torch import nn

IGNORE = 255


def confusion(truth, label, num_classes):
    """(K, K+1) counts, pixel by pixel."""
    counts = [[0] * (num_classes + 1) for _ in range(num_classes)]
    for true, given in zip(truth.ravel().tolist(), label.ravel().tolist(), strict=True):
        if true != IGNORE:
            counts[true][num_classes if given == IGNORE else given] += 1
    return counts


def iou(truth, label, num_classes, uncovered):
    """IoU of each class (nan where no truth pixel is), their mean, coverage; uncovered pixels get class `uncovered`."""
    pairs = [pair for pair in zip(truth.ravel().tolist(), label.ravel().tolist(), strict=True) if pair[0] != IGNORE]
    covered = sum(given != IGNORE for _, given in pairs) / len(pairs) if pairs else math.nan
    pairs = [(true, uncovered if given == IGNORE else given) for true, given in pairs]
    values = []
    for index in range(num_classes):
        inter = sum(true == index and given == index for true, given in pairs)
        union = sum(true == index or given == index for true, given in pairs)
        values.append(inter / union if any(true == index for true, _ in pairs) else math.nan)
    present = [value for value in values if not math.isnan(value)]
    return values, sum(present) / len(present) if present else math.nan, covered


def pixel_loss(logits, target, smoothing):
    """Cross-entropy of one pixel against the smoothed target, and its gradient by the logits."""
    probabilities = softmax(logits)
    wanted = [smoothing / len(logits) + (1 - smoothing) * (k == target) for k in range(len(logits))]
    loss = -sum(q * math.log(p) for q, p in zip(wanted, probabilities, strict=True))
    return loss, [p - q for q, p in zip(wanted, probabilities, strict=True)]


def inside(box, y, x):
    left, top, right, bottom = box
    return left <= x < right and top <= y < bottom


def unimatch(
    arrays, *, refine_target, threshold, smoothing, gate,
    weights=(0.25, 0.25, 0.5), weak_weight=0.0, labelled_smoothing=0.0, fill=False,
):  # fmt: skip
    """Total loss of UniMatch and its gradients by logits_labelled, _strong1, _strong2, _feature, _weak.

    arrays: the tensors of `unimatch_loss`, by name, as numpy
    """
    smoothing = (0 if refine_target == "unimatch" else 0.1) if smoothing is None else smoothing
    gate = refine_target == "unimatch" if gate is None else gate
    total, gradients = 0.0, {}

    logits, label = arrays["logits_labelled"], arrays["label"]
    gradient = np.zeros(logits.shape)
    pixels = [place for place in np.ndindex(label.shape) if label[place] != IGNORE]
    for b, y, x in pixels:
        loss, slope = pixel_loss(logits[b, :, y, x].tolist(), label[b, y, x], labelled_smoothing)
        total += loss / len(pixels) / 2
        gradient[b, :, y, x] = [value / len(pixels) / 2 for value in slope]
    gradients["logits_labelled"] = gradient

    for name, box_name, weight in (
        ("logits_strong1", "boxes1", weights[0]),
        ("logits_strong2", "boxes2", weights[1]),
        ("logits_feature", None, weights[2]),
        ("logits_weak", None, weak_weight),  # as a student; the teacher's prediction is a constant
    ):
        gradient, rows = np.zeros(arrays[name].shape), []
        for u, y, x in np.ndindex(arrays["ignore"].shape):
            pasted = box_name is not None and inside(arrays[box_name][u], y, x)
            teacher = arrays["logits_partner" if pasted else "logits_weak"][u, :, y, x].tolist()
            stored = arrays["partner_pseudo_label" if pasted else "pseudo_label"][u, y, x]
            probabilities = softmax(teacher)
            sure = max(probabilities) >= threshold
            guess = probabilities.index(max(probabilities))
            if arrays["partner_ignore" if pasted else "ignore"][u, y, x]:
                continue
            if refine_target == "unimatch" or (fill and stored == IGNORE):
                rows.append((u, y, x, guess, sure or (refine_target == "unimatch" and not gate)))
                continue
            if refine_target == "zero_shot":
                target = stored
            elif stored == IGNORE:
                target = IGNORE
            else:
                target = guess if sure else stored
            if target != IGNORE:
                rows.append((u, y, x, target, sure or not gate))
        for u, y, x, target, counts in rows:
            if counts:
                loss, slope = pixel_loss(arrays[name][u, :, y, x].tolist(), target, smoothing)
                total += weight * loss / len(rows) / 2
                gradient[u, :, y, x] = [weight * value / len(rows) / 2 for value in slope]
        gradients[name] = gradient
    return total, gradients


def semivl(arrays, *, weight, threshold, weights):
    """Total loss of UniMatch with zero-shot labels beside it at `weight`, and its gradients; see `unimatch`."""
    options = {"refine_target": "unimatch", "threshold": threshold, "smoothing": None, "gate": None}
    total, gradients = unimatch(arrays, **options, weights=weights)
    views = ("logits_strong1", "boxes1"), ("logits_strong2", "boxes2"), ("logits_feature", None)
    for (name, box_name), share in zip(views, weights, strict=True):
        pixels = arrays["ignore"].size  # all of them, with or without a label
        for u, y, x in np.ndindex(arrays["ignore"].shape):
            prefix = "partner_" if box_name is not None and inside(arrays[box_name][u], y, x) else ""
            target = arrays[f"{prefix}pseudo_label"][u, y, x]
            if target != IGNORE and not arrays[f"{prefix}ignore"][u, y, x]:
                loss, slope = pixel_loss(arrays[name][u, :, y, x].tolist(), target, 0)
                total += weight * share * loss / pixels
                gradients[name][u, :, y, x] += [weight * share * value / pixels for value in slope]
    return total, gradients


class Tiny(nn.Module):
    """A segmenter with batch normalisation, two feature maps and 3x3 pixels of context."""

    def __init__(self, num_classes=3, width=4):
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU())
        self.head = nn.Conv2d(2 * width, num_classes, 1)
        self.calls = []  # (training, images of the batch) of each encode

    def encode(self, images):
        self.calls.append((self.training, len(images)))
        features = self.encoder(images)
        return [features, nn.functional.avg_pool2d(features, 2)]

    def decode(self, features, size):
        fine, coarse = features
        coarse = nn.functional.interpolate(coarse, size=fine.shape[-2:])
        return nn.functional.interpolate(self.head(torch.cat([fine, coarse], 1)).float(), size=size)

    def forward(self, images):
        return self.decode(self.encode(images), images.shape[-2:])


def tiny(seed=0, **options):
    """Build a Tiny with known weights."""
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        return Tiny(**options)
