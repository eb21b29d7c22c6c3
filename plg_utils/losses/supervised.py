"""Cross-entropy on the labelled images, and if asked on label maps of the unlabelled ones."""

import torch
from torch import nn

from plg_utils.losses import mean_cross_entropy

SMOKE = {"unlabelled_view": "weak"}


def build(*, unlabelled_view: str | None = None, smoothing: float = 0.1):
    """Build the loss.

    unlabelled_view: None trains on the labelled images alone; "weak" or "strong1" also on that view of the unlabelled
        ones with their pseudo labels, L = (Ls + Lu) / 2. This is the cheap form, one view in one pass; paper A's
        several perturbed views are the file unimatch.py with refine_target="zero_shot".
    smoothing: of the pseudo labels
    """
    if unlabelled_view not in (None, "weak", "strong1"):
        raise ValueError(f'unlabelled_view is "{unlabelled_view}"; right are None, "weak" and "strong1"')

    def loss(model: nn.Module, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        if unlabelled_view is None:
            labelled = mean_cross_entropy(model(batch["image"]), batch["label"])
            return {"total": labelled}
        logits = model(torch.cat([batch["image"], batch[unlabelled_view]]))
        count = len(batch["image"])
        labelled = mean_cross_entropy(logits[:count], batch["label"])
        unlabelled = mean_cross_entropy(logits[count:], batch["pseudo_label"], smoothing=smoothing)
        return {"total": (labelled + unlabelled) / 2, "labelled": labelled, "unlabelled": unlabelled}

    return loss
