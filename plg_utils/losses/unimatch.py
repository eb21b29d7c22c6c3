"""UniMatch's loss with a choice of what the unlabelled views are taught.

The step is that of UniMatch's unimatch.py (github.com/LiheYoung/UniMatch, arXiv 2208.09910): two strong views with
CutMix and one with dropped features must predict a target for the weak view. `refine_target` says which target:

    unimatch    the model's own prediction of the weak view; only pixels where it is sure count
    zero_shot   the pseudo label that the batch brings
    fusion      the model's prediction where it is sure, else the pseudo label

The last two are readings of "Zero-Shot Pseudo Labels Generation Using SAM and CLIP for Semi-Supervised Semantic
Segmentation" (arXiv 2505.19846): smoothed labels, every pixel with a target counts, whether the model is sure or not.
"""

import torch
from torch import nn

from plg_utils import distributed
from plg_utils.choices import one_of
from plg_utils.losses import (
    check_shares,
    check_weights,
    cross_entropy,
    cutmix,
    mean_cross_entropy,
    num_valid,
    others,
    partner,
    predict_in_eval_mode,
    schedule,
)
from plg_utils.records import IGNORE

TARGETS = ("unimatch", "zero_shot", "fusion")
PASSES = ("exact", "fast")
SMOKE = {"refine_target": "fusion", "threshold": 0.3}


def build(
    *,
    refine_target: str = "unimatch",
    threshold: float | tuple[float, float] = 0.95,
    smoothing: float | None = None,
    gate: bool | None = None,
    weights: tuple[float, float, float] = (0.25, 0.25, 0.5),
    weak_weight: float = 0.0,
    labelled_smoothing: float = 0.0,
    feature_dropout: float = 0.5,
    fill: bool = False,
    labels_until: float = 1.0,
    passes: str = "exact",
):
    """Build the loss; the options that are not named here are those of `unimatch_loss`.

    threshold: or two, at the beginning and at the end of training, and a straight line between them
    labels_until: share of the training after which the pseudo labels are left behind: from there on the loss is
        UniMatch's own, whose target is the model's prediction where it is sure (the last stage of ConformalSAM, arXiv
        2507.15803, does so with predictions made once)
    feature_dropout, passes: see `views`
    """
    one_of(refine_target, TARGETS, "refine_target")
    one_of(passes, PASSES, "passes")
    shares = {"smoothing": smoothing, "labelled_smoothing": labelled_smoothing, "feature_dropout": feature_dropout}
    check_shares(threshold=threshold, **shares)
    check_weights(weights, 3)
    if not 0 < labels_until <= 1:
        raise ValueError(f"labels_until is {labels_until!r}; give a share of the training, above 0 and up to 1")
    alone = {"refine_target": "unimatch", "labelled_smoothing": labelled_smoothing, "weights": weights}
    by_labels = {"smoothing": smoothing, "gate": gate, "weak_weight": weak_weight, "fill": fill}
    by_labels = alone | by_labels | {"refine_target": refine_target}
    how = {"weak": weak_weight > 0, "feature_dropout": feature_dropout, "passes": passes}

    def loss(model: nn.Module, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        if refine_target != "unimatch" and "pseudo_label" not in batch:
            raise ValueError(f'refine_target="{refine_target}" needs pseudo labels, and the batch has none')
        late = batch.get("progress", 0) >= labels_until
        predicts = late or refine_target != "zero_shot" or bool(gate) or fill
        passed = views(model, batch, predicts=predicts, **how) | targets(batch)
        return unimatch_loss(**passed, threshold=schedule(threshold, batch), **alone if late else by_labels)

    return loss


def views(
    model: nn.Module,
    batch: dict[str, torch.Tensor],
    *,
    predicts: bool,
    weak: bool = False,
    feature_dropout: float,
    passes: str,
) -> dict[str, torch.Tensor | None]:
    """Take the passes of a step: all logits that `unimatch_loss` asks for.

    predicts: whether the loss needs the model's predictions; if not, logits_partner is None, and logits_weak too unless
        `weak` asks for it
    feature_dropout: part of the encoder's channels that the third view loses
    passes: "exact" takes UniMatch's three: the images that CutMix pastes in evaluation mode; labelled and weak views,
        clean and with dropped features; the two strong views. "fast" takes two: the prediction of the pasted images
        is that of the weak views, and of the labelled views no features are dropped (UniMatch does so and uses only
        the batch statistics).
    """
    if passes == "fast" and predicts and "partner_weak" in batch:
        raise ValueError('passes="fast" takes the batch itself as CutMix partner; give passes="exact" for views')
    size, exact = batch["image"].shape[-2:], passes == "exact"
    labelled, unlabelled = len(batch["image"]), len(batch["weak"])
    logits_partner = predict_in_eval_mode(model, partner(batch, "weak")) if predicts and exact else None

    features = model.encode(torch.cat([batch["image"], batch["weak"]]))
    parts = [labelled, unlabelled] if exact else [unlabelled]
    dropped = [distributed.dropout2d(maps[-sum(parts) :], feature_dropout, parts) for maps in features]
    if not (exact or predicts or weak):  # the loss needs no clean weak view
        features = [maps[:labelled] for maps in features]
    logits = model.decode([torch.cat(pair) for pair in zip(features, dropped, strict=True)], size)
    sizes = len(features[0]) - labelled, len(dropped[0]) - unlabelled
    logits_labelled, logits_weak, _, logits_feature = logits.split([labelled, *sizes, unlabelled])
    if predicts and not exact:
        logits_partner = others(logits_weak.detach())
    logits_strong1, logits_strong2 = model(torch.cat(pasted_views(batch))).chunk(2)
    return {
        "logits_labelled": logits_labelled,
        "logits_weak": logits_weak if predicts or weak else None,
        "logits_partner": logits_partner,
        "logits_strong1": logits_strong1,
        "logits_strong2": logits_strong2,
        "logits_feature": logits_feature,
    }


def pasted_views(batch: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    """The two strong views (U, 3, H, W) after CutMix."""
    return [cutmix(batch[f"strong{k}"], partner(batch, f"strong{k}"), batch[f"boxes{k}"]) for k in (1, 2)]


def targets(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor | None]:
    """Labels, padding and boxes of a batch, as `unimatch_loss` names them."""
    given = {name: batch.get(name) for name in ("label", "ignore", "pseudo_label", "boxes1", "boxes2")}
    return given | {f"partner_{name}": partner(batch, name) for name in ("ignore", "pseudo_label")}


def unimatch_loss(
    *,
    logits_labelled: torch.Tensor,
    label: torch.Tensor,
    logits_weak: torch.Tensor | None,
    logits_partner: torch.Tensor | None,
    logits_strong1: torch.Tensor,
    logits_strong2: torch.Tensor | None,
    logits_feature: torch.Tensor | None,
    ignore: torch.Tensor,
    partner_ignore: torch.Tensor,
    boxes1: torch.Tensor,
    boxes2: torch.Tensor,
    pseudo_label: torch.Tensor | None = None,
    partner_pseudo_label: torch.Tensor | None = None,
    logits_learnt: torch.Tensor | None = None,
    refine_target: str = "unimatch",
    threshold: float = 0.95,
    smoothing: float | None = None,
    gate: bool | None = None,
    weights: tuple[float, float, float] = (0.25, 0.25, 0.5),
    weak_weight: float = 0.0,
    labelled_smoothing: float = 0.0,
    fill: bool = False,
) -> dict[str, torch.Tensor]:
    """L = (labelled + weights[0] strong1 + weights[1] strong2 + weights[2] feature + weak_weight weak) / 2.

    logits_labelled: (B, K, H, W), all other logits (U, K, H, W): of the weak view, of the weak view of the images that
        CutMix pastes, of the pasted strong views, of the weak view with dropped features. No gradient flows through
        the first two (through the first only by weak_weight); they may be None where no prediction is asked for. The
        last is None in UniMatch V2, and so are the last two in FixMatch: they have no such view.
    logits_learnt: (U, K, H, W), those of the weak view that weak_weight teaches, if logits_weak are another network's
    label: (B, H, W) int64; pseudo_label, partner_pseudo_label: (U, H, W) int64; IGNORE where nothing is to be learnt
    ignore, partner_ignore: (U, H, W) bool, pixels that never count; boxes1, boxes2: (U, 4) left, top, right, bottom
    threshold: probability from which on the model is sure of its prediction
    smoothing: of the target; by default 0 for "unimatch" and 0.1 for the others
    gate: count only pixels where the model is sure; by default so for "unimatch" and not for the others
    weak_weight: of the undisturbed weak view; UniMatch has no such term, since it would teach a prediction itself
    labelled_smoothing: of the true labels
    fill: where there is no pseudo label, teach the model's own prediction where it is sure, as UniMatch does
    returns: total, labelled, strong (mean of the views), feature, and sure, the part of the pixels where it is sure
    """
    one_of(refine_target, TARGETS, "refine_target")
    smoothing = (0.0 if refine_target == "unimatch" else 0.1) if smoothing is None else smoothing
    gate = refine_target == "unimatch" if gate is None else gate
    options = {"refine_target": refine_target, "threshold": threshold, "gate": gate, "fill": fill}
    weak = choose_target(logits_weak, pseudo_label, ignore, **options)
    pasted = choose_target(logits_partner, partner_pseudo_label, partner_ignore, **options)

    labelled = mean_cross_entropy(logits_labelled, label, smoothing=labelled_smoothing)
    strong = []
    for logits, boxes in ((logits_strong1, boxes1), (logits_strong2, boxes2)):
        if logits is not None:
            mixed = [cutmix(*pair, boxes) for pair in zip(weak, pasted, strict=True)]
            strong.append(consistency(logits, *mixed, smoothing=smoothing))
    unlabelled = sum(weight * of_view for weight, of_view in zip(weights, strong, strict=False))
    terms = {"labelled": labelled, "strong": sum(strong) / len(strong)}
    if logits_feature is not None:
        terms["feature"] = consistency(logits_feature, *weak, smoothing=smoothing)
        unlabelled = unlabelled + weights[2] * terms["feature"]
    if weak_weight:
        learnt = logits_weak if logits_learnt is None else logits_learnt
        unlabelled = unlabelled + weak_weight * consistency(learnt, *weak, smoothing=smoothing)
    terms = {"total": (labelled + unlabelled) / 2, **terms}
    if logits_weak is not None:
        sure = predict(logits_weak, threshold)[1] & ~ignore
        terms["sure"] = sure.sum() / num_valid(~ignore)
    return terms


def predict(logits: torch.Tensor, threshold: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Likeliest class (U, H, W) int64 of logits (U, K, H, W), and whether its probability reaches the threshold."""
    confidence, prediction = logits.detach().float().softmax(dim=1).max(dim=1)
    return prediction, confidence >= threshold


def choose_target(
    logits: torch.Tensor | None,
    pseudo_label: torch.Tensor | None,
    ignore: torch.Tensor,
    *,
    refine_target: str,
    threshold: float,
    gate: bool,
    fill: bool = False,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What a view must predict at each pixel.

    logits: (U, K, H, W), pseudo_label: (U, H, W), ignore: (U, H, W) bool
    returns: target (U, H, W) int64; counts (U, H, W) bool, pixels whose loss is added up; valid (U, H, W) bool, those
        over which the sum is divided, also where the model is not sure
    """
    if refine_target != "zero_shot" or gate or fill:
        prediction, sure = predict(logits, threshold)
    if refine_target == "unimatch":
        return prediction, ~ignore & sure if gate else ~ignore, ~ignore
    target = pseudo_label if refine_target == "zero_shot" else torch.where(sure, prediction, pseudo_label)
    valid = ~ignore & (pseudo_label != IGNORE)
    counts = valid & sure if gate else valid
    if not fill:
        return target, counts, valid
    unlabelled = ~ignore & (pseudo_label == IGNORE)
    return torch.where(unlabelled, prediction, target), counts | (unlabelled & sure), ~ignore


def consistency(
    logits: torch.Tensor, target: torch.Tensor, counts: torch.Tensor, valid: torch.Tensor, *, smoothing: float
) -> torch.Tensor:
    """Sum of the cross-entropy where it counts, divided by the number of valid pixels: UniMatch's denominator."""
    loss = cross_entropy(logits, target, smoothing=smoothing)
    return (loss * counts).sum() / num_valid(valid)
