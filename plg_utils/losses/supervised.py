"""Cross-entropy on the labelled images alone."""

import torch
from torch import nn

from plg_utils.losses import mean_cross_entropy

SMOKE: dict = {}


def build():
    """Build the loss."""

    def loss(model: nn.Module, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {"total": mean_cross_entropy(model(batch["image"]), batch["label"])}

    return loss
