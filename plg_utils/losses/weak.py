"""Undisturbed views alone, one pass a step: the warm-up before a loss that looks at disturbed views.

L = (labelled + weak) / 2: cross-entropy of the labelled images with their truth, and of the weak views of the
unlabelled images with their label maps. There is no consistency in it; a network must know something before its own
predictions are worth agreeing with, and this is the cheapest way to learn it.
"""

import torch
from torch import nn

from plg_utils.losses import mean_cross_entropy
from plg_utils.records import IGNORE

SMOKE: dict = {}


def build(*, smoothing: float = 0.1):
    """Build the loss; smoothing: of the unlabelled images' labels."""

    def loss(model: nn.Module, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        sizes = len(batch["image"]), len(batch["weak"])
        logits_labelled, logits_weak = model(torch.cat([batch["image"], batch["weak"]])).split(sizes)
        labelled = mean_cross_entropy(logits_labelled, batch["label"])
        target = batch["pseudo_label"].masked_fill(batch["ignore"], IGNORE)
        weak = mean_cross_entropy(logits_weak, target, smoothing=smoothing)
        return {"total": (labelled + weak) / 2, "labelled": labelled, "weak": weak}

    return loss
