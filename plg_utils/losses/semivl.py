"""Fixed zero-shot labels beside UniMatch, with a weight that fades: SemiVL's use of them.

"SemiVL: Semi-Supervised Semantic Segmentation with Vision-Language Guidance", arXiv 2311.16241; the terms and their
weights are those of semivl.py (github.com/google-research/semivl): UniMatch's loss, plus for each disturbed view the
cross-entropy with the zero-shot label, by default at 0.1 in the first step and at 0 in the last.

SemiVL leaves out zero-shot pixels whose probability is below 0.9. The label maps decide that: `stages.sure_labels`
writes them with IGNORE at those pixels, and the method `semivl_sure` learns from these; `semivl` learns from all. Only
the loss is SemiVL's; its zero-shot labels (MaskCLIP's) and its network (a CLIP encoder with a language-guided decoder)
are not.
"""

import torch
from torch import nn

from plg_utils.choices import one_of
from plg_utils.losses import cross_entropy, cutmix, schedule
from plg_utils.losses.unimatch import PASSES, targets, unimatch_loss, views
from plg_utils.records import IGNORE

SMOKE = {"threshold": 0.3}


def build(
    *,
    zero_shot_weight: float | tuple[float, float] = (0.1, 0.0),
    threshold: float | tuple[float, float] = 0.95,
    weights: tuple[float, float, float] = (0.25, 0.25, 0.5),
    feature_dropout: float = 0.5,
    passes: str = "exact",
):
    """Build the loss; zero_shot_weight, threshold: a number, or those of the first and the last step."""
    one_of(passes, PASSES, "passes")

    def loss(model: nn.Module, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return semivl_loss(
            **views(model, batch, predicts=True, feature_dropout=feature_dropout, passes=passes),
            **targets(batch),
            threshold=schedule(threshold, batch),
            weights=weights,
            zero_shot_weight=schedule(zero_shot_weight, batch),
        )

    return loss


def semivl_loss(
    *,
    zero_shot_weight: float,
    threshold: float = 0.95,
    weights: tuple[float, float, float] = (0.25, 0.25, 0.5),
    **arrays: torch.Tensor,
) -> dict[str, torch.Tensor]:
    """L = UniMatch + zero_shot_weight (weights[0] strong1 + weights[1] strong2 + weights[2] feature).

    arrays: those of `unimatch.unimatch_loss`. The zero-shot terms are summed over the pixels that have such a label
    and are no padding, and divided by all pixels of the views.
    returns: what `unimatch_loss` does, and zero_shot, the bracket above
    """
    terms = unimatch_loss(**arrays, threshold=threshold, weights=weights)
    label = arrays["pseudo_label"].masked_fill(arrays["ignore"], IGNORE)
    other = arrays["partner_pseudo_label"].masked_fill(arrays["partner_ignore"], IGNORE)
    targets = [cutmix(label, other, arrays["boxes1"]), cutmix(label, other, arrays["boxes2"]), label]
    zero_shot = sum(
        weight * cross_entropy(arrays[f"logits_{view}"], target).mean()
        for weight, view, target in zip(weights, ("strong1", "strong2", "feature"), targets, strict=True)
    )
    return terms | {"total": terms["total"] + zero_shot_weight * zero_shot, "zero_shot": zero_shot}
