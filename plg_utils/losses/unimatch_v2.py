"""UniMatch V2's loss, with the same choice of targets as V1's.

The step is that of UniMatch V2's unimatch_v2.py (github.com/LiheYoung/UniMatch-V2, arXiv 2410.10777). It differs from
V1's in three points: the target is predicted by an average of the weights, which the training keeps (`ema: 0.996`);
there is no view with dropped features, and no pass of the network on the weak view; instead the two strong views lose
complementary halves of the encoder's channels.
"""

from collections.abc import Sequence

import torch
from torch import nn

from plg_utils import distributed
from plg_utils.choices import one_of
from plg_utils.losses import check_shares, check_weights, others, schedule
from plg_utils.losses.unimatch import TARGETS, pasted_views, targets, unimatch_loss

SMOKE = {"refine_target": "fusion", "threshold": 0.3}


def build(
    *,
    refine_target: str = "unimatch",
    threshold: float | tuple[float, float] = 0.95,
    weights: tuple[float, float] = (0.5, 0.5),
    weak_weight: float = 0.0,
    smoothing: float | None = None,
    gate: bool | None = None,
    labelled_smoothing: float = 0.0,
    fill: bool = False,
):
    """Build the loss.

    threshold: or two, at the beginning and at the end of training, and a straight line between them
    weights: of the two strong views
    smoothing, gate, labelled_smoothing, fill, weak_weight: of `unimatch.unimatch_loss`; the last costs a pass
    """
    check_shares(threshold=threshold, smoothing=smoothing, labelled_smoothing=labelled_smoothing)
    check_weights(weights, 2)
    one_of(refine_target, TARGETS, "refine_target")
    predicts = refine_target != "zero_shot" or bool(gate) or fill
    options = {"refine_target": refine_target, "weights": (*weights, 0.0), "weak_weight": weak_weight}
    options |= {"smoothing": smoothing, "gate": gate, "labelled_smoothing": labelled_smoothing, "fill": fill}

    def loss(model: nn.Module, batch: dict) -> dict[str, torch.Tensor]:
        if refine_target != "unimatch" and "pseudo_label" not in batch:
            raise ValueError(f'refine_target="{refine_target}" needs pseudo labels, and the batch has none')
        if predicts and "average" not in batch:
            raise ValueError("UniMatch V2 learns from an average of the weights: training_options: {ema: 0.996}")
        size, weak, pasted = batch["image"].shape[-2:], None, None
        if predicts:
            weak = batch["average"](batch["weak"])
            pasted = batch["average"](batch["partner_weak"]) if "partner_weak" in batch else others(weak)
        features = lose_channels(model.encode(torch.cat(pasted_views(batch))))
        strong1, strong2 = model.decode(features, size).chunk(2)
        return unimatch_loss(
            logits_labelled=model(batch["image"]),
            logits_weak=weak,
            logits_learnt=model(batch["weak"]) if weak_weight else None,
            logits_partner=pasted,
            logits_strong1=strong1,
            logits_strong2=strong2,
            logits_feature=None,
            **targets(batch),
            threshold=schedule(threshold, batch),
            **options,
        )

    return loss


def lose_channels(features: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Take half of the channels from each first strong view, and the other half from its second one.

    What is left counts double. Half of the images, drawn at random and rounded down, lose nothing. Maps with the same
    number of channels lose the same ones (UniMatch V2: dpt.py, comp_drop).

    features: maps (2U, C, h, w), the first views of U images, then the second ones
    """
    images = len(features[0]) // 2
    whole = images * distributed.count()  # each process draws for the whole batch, and takes its own images
    mine = distributed.rows(whole) if distributed.count() > 1 else slice(None)
    kept = torch.randperm(whole)[: whole // 2]
    factors = {}
    for channels in sorted({maps.shape[1] for maps in features}):
        first = 2.0 * torch.randint(2, (whole, channels))
        second = 2.0 - first
        first[kept] = second[kept] = 1.0
        factors[channels] = torch.cat([first[mine], second[mine]])[:, :, None, None]
    return [maps * factors[maps.shape[1]].to(maps) for maps in features]
