"""How good zero-shot labels are with each kind of CLIP's features: python benchmarks/dense_features.py

The demo's images of storybook, 12 labelled and 100 unlabelled, with SAM's masks and with the true ones: things, and
regions behind them. The threshold is chosen on the labelled images, for each pair by itself, as notebook 02 does; the
score is the mean IoU on the unlabelled ones. Two minutes on one core.
"""

from collections.abc import Sequence

import numpy as np
import side_by_side
import torch

from plg_utils import datasets, encoders, files, metrics, store
from plg_utils import masks as mask_models
from plg_utils.datasets import storybook
from plg_utils.generators import segment_match
from plg_utils.records import IGNORE, Dataset, Masks, Sample

FEATURES = {  # results/ablation_features: GEM is best over the last block alone
    "plain": {"features": "plain"},
    "gem": {"features": "gem", "depth": 2},
    "corr": {"features": "corr"},
}


def true_masks(sample: Sample) -> Masks:
    """Masks of the things in a scene, and of the regions behind them."""
    split, number = sample.id.split("_")
    scene = storybook.draw(storybook.SPLITS[split][0] + int(number))
    things = [scene.instances == k for k in range(1, len(scene.objects) + 1)]
    regions = [(scene.stuff == k) & (scene.instances == 0) for k in np.unique(scene.stuff)]
    return Masks.from_dense(np.stack(things + [region for region in regions if region.any()]))


def mean_iou(data: Dataset, masks: Sequence[Masks], **features) -> dict[str, float]:
    """Chosen threshold, and mean IoU on the unlabelled images; masks: of the labelled and the unlabelled images."""
    encode, count, background = encoders.build("clip", **features), len(data.labelled), data.classes.background
    texts = encode.class_embeddings(data.classes)
    images = [sample.image() for sample in (*data.labelled, *data.unlabelled)]
    embeddings = segment_match.segment_embeddings(encode, images, masks)
    known = (embeddings[:count], masks[:count], [sample.truth() for sample in data.labelled])
    how = {"num_classes": data.classes.num_classes, "background": background}
    threshold = segment_match.choose_threshold(*known, *texts, **how).threshold
    of_rest = (masks[count:], embeddings[count:])
    found = segment_match.labels_from_embeddings(*of_rest, *texts, background=background, threshold=threshold)
    labels = [np.where(each.label == IGNORE, np.uint8(background), each.label) for each in found]
    truths = [sample.truth() for sample in data.unlabelled]
    return {"threshold": threshold, "mean_iou": metrics.mean_iou(truths, labels, **how)}


def main() -> None:
    """Label with each kind of features and of masks, print the table, and write dense_features.json."""
    options = side_by_side.arguments(__doc__).parse_args()
    torch.set_num_threads(options.threads)
    data = datasets.load("storybook", labelled=12, limit=100, truth_of=("labelled", "unlabelled"))
    samples, find = [*data.labelled, *data.unlabelled], mask_models.build("sam")
    masks = {
        "SAM's masks": [find([sample.image()])[0] for sample in store.progress(samples, what="masks")],
        "true masks": [true_masks(sample) for sample in samples],
    }
    found = {
        name: {kind: mean_iou(data, of_kind, **features) for kind, of_kind in masks.items()}
        for name, features in FEATURES.items()
    }
    print(f"{'mean IoU (%)':<14}" + "".join(f"{kind:>14}" for kind in masks))
    for name, of_name in found.items():
        print(f"{name:<14}" + "".join(f"{100 * each['mean_iou']:>14.1f}" for each in of_name.values()))
    content = {"name": "dense_features", "images": len(data.unlabelled), "features": FEATURES, "found": found}
    files.write_json(options.write / "dense_features.json", files.plain(content))


if __name__ == "__main__":
    main()
