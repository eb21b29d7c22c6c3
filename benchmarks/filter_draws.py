"""Does the filter keep its promise? python benchmarks/filter_draws.py

Twenty draws of 12 labelled scenes out of 48. For each, and for each way to spoil the names, the filter is calibrated on
the twelve; what it keeps is compared with the truth of the storybook's 300 unlabelled scenes. A promise is broken where
fewer of the kept names are right than promised. A few minutes on one core.
"""

import numpy as np
import side_by_side
import torch

from plg_utils import calibration, class_files, datasets, encoders, files, labels, store
from plg_utils import masks as mask_models
from plg_utils.encoders.noisy_words import NoisyWords
from plg_utils.generators import segment_match
from plg_utils.generators.few_shot import Labelled

DRAWS, LABELLED = 20, 12
SWAPPED = files.ROOT / "results" / "few_shot" / "swapped.yaml"


def words(data, encoder, draw: int) -> dict:
    """Text embeddings and their owners, and the share of names that is spoiled besides, by the kind of damage."""
    plain = encoder.class_embeddings(data.classes)
    of_background = plain[1] == data.classes.background
    return {
        "none": (plain, 0),
        "word noise of length 1.2": (NoisyWords(encoder, 1.2, draw).class_embeddings(data.classes), 0),
        "no background words": (tuple(part[~of_background] for part in plain), 0),
        "two pairs of words swapped": (encoder.class_embeddings(class_files.read(SWAPPED)), 0),
        "a quarter of the names": (plain, 0.25),
        "half of the names": (plain, 0.5),
    }


def main() -> None:
    """Calibrate on each draw, print the table, and write filter_draws.json."""
    options = side_by_side.arguments(__doc__).parse_args()
    torch.set_num_threads(options.threads)
    data = datasets.load("storybook", labelled=48, truth_of=("labelled", "unlabelled"))
    encoder, find = encoders.build("clip"), mask_models.build("sam")
    stored = {}  # id: masks, embeddings, truth
    for sample in store.progress([*data.labelled, *data.unlabelled], what="masks"):
        masks = find([sample.image()])
        stored[sample.id] = (
            masks[0],
            *segment_match.segment_embeddings(encoder, [sample.image()], masks),
            sample.truth(),
        )
    rest = [stored[sample.id] for sample in data.unlabelled]
    found = {}
    for draw in store.progress(range(DRAWS), what="draws"):
        chosen = np.random.default_rng(draw).permutation(48)[:LABELLED]
        known = [stored[data.labelled[index].id] for index in chosen]
        for damage, (texts, spoiled) in words(data, encoder, draw).items():
            found.setdefault(damage, []).append(one(data, known, rest, texts, spoiled))
    report = {}
    for damage, draws in found.items():
        made = [each for each in draws if each["kept"]]
        report[damage] = {
            "right": np.mean([each["right"] for each in draws]),
            "kept": np.mean([each["kept"] for each in draws]),
            "kept_pixels": np.mean([each["kept_pixels"] for each in draws]),
            "right_of_kept": np.mean([each["right_of_kept"] for each in made]) if made else None,
            "lowest": min((each["right_of_kept"] for each in made), default=None),
            "nothing_kept": DRAWS - len(made),
            "broken": sum(each["right_of_kept"] < 0.8 for each in made),
        }
        shares = report[damage]
        print(f"{damage:28} right {shares['right']:.3f}, kept {shares['kept']:.3f}, promises broken {shares['broken']}")
    content = {"name": "filter_draws", "precision": 0.8, "confidence": 0.9, "draws": DRAWS, "labelled": LABELLED}
    files.write_json(options.write / "filter_draws.json", files.plain(content | {"damage": report, "each": found}))


def one(data, known: list, rest: list, texts: tuple, spoiled: float) -> dict[str, float]:
    """Calibrate on the known images, and count on the rest: shares of names, and of pixels."""
    classes = data.classes
    parts = [[each[part] for each in known] for part in range(3)]
    how = {"num_classes": classes.num_classes, "background": classes.background}
    threshold = segment_match.choose_threshold(parts[1], parts[0], parts[2], *texts, **how).threshold

    def name(embeddings: torch.Tensor) -> tuple:
        named = labels.assign(embeddings, texts[0], owner=texts[1], background=0, threshold=threshold)
        return segment_match.spoiled(embeddings, named, spoiled, classes.num_classes)

    others = [each[1] for each in rest]
    believed = calibration.learn(Labelled(*parts), [*map(name, parts[1])], classes, others=others)
    right, kept, pixels = [], [], []
    for masks, embeddings, truth in rest:
        named = name(embeddings)
        won = labels.winners(masks, *named)
        right.append(calibration.rightness(named[0].numpy(), won, truth))
        label = believed.label(masks, embeddings, named)
        kept.append([bool((label[won == index] != 255).any()) for index in range(len(masks))])
        pixels.append([(won == index).sum() for index in range(len(masks))])
    right, kept, pixels = (np.concatenate(part) for part in (right, kept, pixels))
    known = np.isfinite(right)
    right, kept, pixels = right[known] == 1, kept[known], pixels[known]
    shares = {"right": right.mean(), "kept": kept.mean(), "kept_pixels": pixels[kept].sum() / pixels.sum()}
    return shares | {"right_of_kept": right[kept].mean() if kept.any() else None}


if __name__ == "__main__":
    main()
