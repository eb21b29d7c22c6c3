"""FixMatch for segmentation, UniMatch's baseline (fixmatch.py of github.com/LiheYoung/UniMatch).

One strong view with CutMix must predict what the model is sure of in the weak view; L = (labelled + strong) / 2.
"""

import torch
from torch import nn

from plg_utils.losses import cutmix, partner, predict_in_eval_mode, schedule
from plg_utils.losses.unimatch import targets, unimatch_loss

SMOKE = {"threshold": 0.3}


def build(*, threshold: float | tuple[float, float] = 0.95):
    """Build the loss; threshold: probability from which on the model is sure, or that of the first and last step."""

    def loss(model: nn.Module, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        logits_partner = predict_in_eval_mode(model, partner(batch, "weak"))
        logits = model(torch.cat([batch["image"], batch["weak"]]))
        logits_labelled, logits_weak = logits.split([len(batch["image"]), len(batch["weak"])])
        return unimatch_loss(
            **targets(batch),
            logits_labelled=logits_labelled,
            logits_weak=logits_weak,
            logits_partner=logits_partner,
            logits_strong1=model(cutmix(batch["strong1"], partner(batch, "strong1"), batch["boxes1"])),
            logits_strong2=None,
            logits_feature=None,
            threshold=schedule(threshold, batch),
            weights=(1.0, 0.0, 0.0),
        )

    return loss
