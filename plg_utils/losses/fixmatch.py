"""FixMatch for segmentation, UniMatch's baseline (fixmatch.py of github.com/LiheYoung/UniMatch).

One strong view with CutMix must predict what the model is sure of in the weak view; L = (labelled + strong) / 2.
"""

import torch
from torch import nn

from plg_utils.losses import cutmix, mean_cross_entropy, num_valid, partner, predict_in_eval_mode, schedule
from plg_utils.losses.unimatch import choose_target, consistency

SMOKE = {"threshold": 0.3}


def build(*, threshold: float | tuple[float, float] = 0.95):
    """Build the loss; threshold: probability from which on the model is sure, or that of the first and last step."""

    def loss(model: nn.Module, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        logits_partner = predict_in_eval_mode(model, partner(batch, "weak"))
        logits = model(torch.cat([batch["image"], batch["weak"]]))
        logits_labelled, logits_weak = logits.split([len(batch["image"]), len(batch["weak"])])
        return fixmatch_loss(
            logits_labelled=logits_labelled,
            label=batch["label"],
            logits_weak=logits_weak,
            logits_partner=logits_partner,
            logits_strong=model(cutmix(batch["strong1"], partner(batch, "strong1"), batch["boxes1"])),
            ignore=batch["ignore"],
            partner_ignore=partner(batch, "ignore"),
            boxes=batch["boxes1"],
            threshold=schedule(threshold, batch),
        )

    return loss


def fixmatch_loss(
    *,
    logits_labelled: torch.Tensor,
    label: torch.Tensor,
    logits_weak: torch.Tensor,
    logits_partner: torch.Tensor,
    logits_strong: torch.Tensor,
    ignore: torch.Tensor,
    partner_ignore: torch.Tensor,
    boxes: torch.Tensor,
    threshold: float = 0.95,
) -> dict[str, torch.Tensor]:
    """Compute the loss from the arrays that `unimatch.unimatch_loss` describes."""
    options = {"refine_target": "unimatch", "threshold": threshold, "gate": True}
    weak = choose_target(logits_weak, None, ignore, **options)
    pasted = choose_target(logits_partner, None, partner_ignore, **options)
    mixed = [cutmix(*pair, boxes) for pair in zip(weak, pasted, strict=True)]
    labelled = mean_cross_entropy(logits_labelled, label)
    strong = consistency(logits_strong, *mixed, smoothing=0.0)
    sure = weak[1].sum() / num_valid(weak[2])
    return {"total": (labelled + strong) / 2, "labelled": labelled, "strong": strong, "sure": sure}
