"""What a segmenter is taught: one file for each method.

A file holds `build(**options)` and `SMOKE`, options for a test. What `build` returns is called with a model of
`segmenters` in training mode and a batch, and gives scalars by name: "total", which is minimised, and what it is made
of. The arithmetic is a pure function beside it. A batch is a dict of tensors on the model's device, as
`training.fit` draws it; a method reads what it needs:

    image           (B, 3, H, W) float32, normalised weak views of labelled images
    label           (B, H, W) int64, IGNORE where void or padding
    weak            (U, 3, H, W) weak views of unlabelled images
    strong1, strong2    (U, 3, H, W) two strong views of the same squares
    ignore          (U, H, W) bool, where those squares show padding
    boxes1, boxes2  (U, 4) int64, left, top, right, bottom of what is pasted into strong1, strong2; zeros for nothing
    pseudo_label    (U, H, W) int64, a label map of `weak`, IGNORE where there is none; only if the run has some
    partner_weak, partner_strong1, partner_strong2, partner_ignore, partner_pseudo_label
                    what is pasted; without these, another image of the batch
    progress        float, share of the training that is done, 0 at the first step
    average         the model with averaged weights, images (B, 3, H, W) -> logits (B, K, H, W) without gradient; only
                    if the training keeps such an average (its option `ema`)
"""

from collections.abc import Sequence
from pkgutil import iter_modules

import torch
import torch.nn.functional as F
from torch import nn

from plg_utils import distributed
from plg_utils.choices import choice
from plg_utils.records import IGNORE


def choices() -> list[str]:
    """Names of the losses that there are."""
    return sorted(module.name for module in iter_modules(__path__))


def build(name: str, **options):
    """Build the loss in the file `name`.py; its name and options stay readable as `loss.settings`."""
    loss = choice(__name__, name, "loss").build(**options)
    loss.settings = {"loss": name, **options}
    return loss


def check_shares(**options: float | Sequence[float] | None) -> None:
    """Refuse options that are no number from 0 to 1, or several of them; None is a default."""
    for name, value in options.items():
        for one in value if isinstance(value, list | tuple) else [value]:
            if one is not None and not (isinstance(one, int | float) and 0 <= one <= 1):
                raise ValueError(f"{name} of the loss is {value!r}; give numbers from 0 to 1")


def check_weights(weights: Sequence[float], views: int) -> None:
    """Refuse weights of the views that are not as many, or of which one is negative."""
    if len(weights) != views or not min(weights) >= 0:
        raise ValueError(f"weights of the loss are {list(weights)}; give {views} numbers from 0 on, one for each view")


def cross_entropy(logits: torch.Tensor, target: torch.Tensor, *, smoothing: float = 0.0) -> torch.Tensor:
    """Cross-entropy of each pixel, 0 where the target is IGNORE.

    logits: (B, K, H, W), target: (B, H, W) int64; smoothing: the target is (1 - smoothing) one-hot + smoothing / K
    returns: (B, H, W) float32
    """
    scores = F.log_softmax(logits.float().contiguous(), dim=1)  # on the CPU, over rows of K it takes four times as long
    rows = scores.permute(0, 2, 3, 1).flatten(0, 2)  # (B*H*W, K): CUDA's loss of (B, K, H, W) is not deterministic
    loss = F.nll_loss(rows, target.flatten(), ignore_index=IGNORE, reduction="none").view(target.shape)
    if smoothing:
        loss = (1 - smoothing) * loss - smoothing * scores.mean(dim=1) * (target != IGNORE)
    return loss


def mean_cross_entropy(logits: torch.Tensor, target: torch.Tensor, *, smoothing: float = 0.0) -> torch.Tensor:
    """Mean of the cross-entropy over the pixels whose target is not IGNORE; 0 if there is none."""
    return cross_entropy(logits, target, smoothing=smoothing).sum() / num_valid(target != IGNORE)


def num_valid(pixels: torch.Tensor) -> torch.Tensor:
    """Number of pixels of (B, H, W) bool that are True, at least 1: what a sum of losses is divided by.

    Where several processes share a batch, it is their mean, so that the mean of their losses is that of the batch.
    """
    total = distributed.mean(pixels.sum())
    return total.masked_fill(total == 0, 1)


def cutmix(maps: torch.Tensor, partner: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
    """Paste what `partner` shows inside the boxes into `maps`.

    maps, partner: (U, H, W) or (U, C, H, W), boxes: (U, 4) left, top, right, bottom
    """
    rows, columns = (torch.arange(side, device=maps.device) for side in maps.shape[-2:])
    left, top, right, bottom = boxes[:, :, None, None].unbind(1)  # each (U, 1, 1)
    inside = (rows[:, None] >= top) & (rows[:, None] < bottom) & (columns >= left) & (columns < right)  # (U, H, W)
    return torch.where(inside[:, None] if maps.ndim == 4 else inside, partner, maps)


def partner(batch: dict[str, torch.Tensor], name: str) -> torch.Tensor | None:
    """What is pasted into batch[name]: an own view of the same images, or the batch in the order of `others`."""
    if "partner_weak" in batch:
        return batch.get(f"partner_{name}")
    return others(batch[name]) if name in batch else None


def others(images: torch.Tensor) -> torch.Tensor:
    """Another image for each of a batch (U, ...): the batch in reverse order, and the next one for the middle image."""
    if len(images) == 1:
        raise ValueError(
            "CutMix needs a second image, and the batch has one. Give a larger batch_size, or "
            "training_options: {cutmix_partner: view}"
        )
    reverse, middle = images.flip(0), len(images) // 2
    if len(images) % 2:
        reverse[middle] = images[middle + 1]
    return reverse


def schedule(value: float | tuple[float, float], batch: dict) -> float:
    """A setting at this point of the training: a number stays, of two the first moves to the second."""
    if isinstance(value, int | float):
        return value
    first, last = value
    return first + (last - first) * batch["progress"]


@torch.no_grad()
def predict_in_eval_mode(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Logits (B, K, H, W) of the model in evaluation mode, which leaves its batch statistics alone."""
    training = model.training
    logits = model.eval()(images)
    model.train(training)
    return logits
