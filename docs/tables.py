"""Tables and numbers of README.md, docs/*.md and results/README.md, written from the files in results/.

    python docs/tables.py            # write them
    python docs/tables.py --check    # write nothing; name the blocks that are out of date, exit code 1

A block is the text between `<!-- NAME -->` and `<!-- /NAME -->`: a table, or a number within a sentence. NAME is a key
of `blocks()`. Tables over seeds show mean ± sample standard deviation.
"""

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterable
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pandas as pd

from plg_utils.tables import ladder as paired

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "results"
SUPERVISED, UNIMATCH = "supervised only", "UniMatch, no zero-shot labels"
LONG, PAPER, PLAIN = "raw zero-shot labels, twice the steps", "paper A with SEPL (ours)", "paper A, plain reading"
RAW, SOFT, SHARP = "zero-shot labels", "enhanced labels, the network's borders", "enhanced labels, SAM's borders"
UNIMATCH_LONG = "UniMatch, no zero-shot labels, twice the steps"
ALONE = ["zero-shot labels, no network", "few-shot labels, no network"]  # of the val images
MIOU = "mean IoU (%)"
CAMVID = {"camvid_table": "2,000 steps", "camvid_warm_up": "of them 1,250 a warm-up"}  # grids, as columns
WORDS = ("six_templates", "bare", "no_background_words")  # class files of ablation_words

# results/README.md: groups of runs, and where the results of each run are shown, seen from results/. The first
# pattern that fits a run counts.
RUNS = {
    "Start here": {
        "demo": "[notebook 05](demo/05_evaluation.ipynb), [page](demo/index.html)",
        "compare_labellers": "[notebook 06](compare_labellers/06_compare_labellers.ipynb)",
        "storybook_table": "[longer trainings](../docs/results.md#longer-trainings)",
        "paper_figures": "[notebook 08](paper_figures/08_paper_figures.ipynb)",
    },
    "Your own photos": {
        "my_photos": "[README](../README.md#your-own-photos)",
        "my_network": "[data sets](../docs/datasets.md#your-own-photos)",
        "first_real_run": "[models](../docs/models.md#a-first-real-run)",
    },
    "More of the storybook": {
        "demo_seeds": "[the demo, explained](../docs/results.md#the-demo-explained)",
        "storybook_*": "[longer trainings](../docs/results.md#longer-trainings)",
        "compare_labellers_seeds": "[three labellers](../docs/results.md#three-labellers)",
        "few_shot*": "[labelled scenes as examples](../docs/results.md#labelled-scenes-as-examples)",
        "chosen_words": "[notebook 07](../notebooks/07_prompt_lab.ipynb), when it has run",
        "spoiled_names": "[labels that harm](../docs/results.md#labels-that-harm)",
        "late_stage": "[labels that harm](../docs/results.md#labels-that-harm)",
        "baselines*": "[the demo, explained](../docs/results.md#the-demo-explained)",
        "targets": "[decisions](../docs/decisions.md#where-the-training-gives-no-detail)",
        "best*": "[the best of the house](../docs/results.md#the-best-of-the-house)",
        "labeller_networks": "[networks](../docs/results.md#networks-trained-on-each-labellers-labels)",
        "review": "[correcting labels](../docs/review.md), [notebook](review/review.ipynb)",
    },
    "Decisions and cost": {
        "ablation_*": "[decisions](../docs/decisions.md)",
        "passes": "[speed](../docs/results.md#speed)",
    },
    "Real data sets": {"camvid_[tw]*": "[CamVid](../docs/results.md#camvid)", "*": "[data sets](../docs/datasets.md)"},
}
NOT_KEPT = ("voc_trial",)  # executed, but the results are not in the repository


def read(name: str) -> Any:
    """Content of a json below results/."""
    return json.loads((RESULTS / name).read_text(encoding="utf-8"))


def rows(*grids: str) -> pd.DataFrame:
    """Rows of published grids, one for each stage, method and seed."""
    return pd.DataFrame([row for grid in grids for row in read(f"{grid}/grid.json")["rows"]])


def once(found: pd.DataFrame) -> pd.DataFrame:
    """Of a result that two grids have measured, the last one's."""
    return found.drop_duplicates(["stage", "name", "labelled", "seed"], keep="last")


def percent(values: Iterable[float], digits: int = 1, scale: float = 100) -> str:
    """Mean ± sample standard deviation over seeds."""
    series = scale * pd.Series(list(values), dtype=float)
    if len(series) != 3:
        raise ValueError(f"a cell has {len(series)} values, expected one for each of three seeds: complete the grid")
    return f"{series.mean():.{digits}f} ± {series.std():.{digits}f}"


def scores(found: pd.DataFrame, *by: str) -> dict[tuple, str]:
    """Mean IoU of each group of rows."""
    return {key: percent(group.miou) for key, group in found.groupby(list(by), sort=False)}


def markdown(head: list[str], lines: Iterable[Iterable[Any]]) -> str:
    """A table in Markdown."""
    cells = [head, ["---"] * len(head), *lines]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in cells)


def demo() -> str:
    """One run: every method with the labels that it learns from and its network."""
    found = read("demo/summary.json")["rows"]
    images = {row["split"]: row["images"] for row in found}
    lines = []
    for row in paired(found):
        given = row.get("zero_shot", row.get("enhanced")), row.get("segmenter")
        lines.append([row["name"], *("" if miou is None else f"{100 * miou:.1f}" for miou in given)])
    columns = [f"its labels, {images['unlabelled']} unlabelled images", f"{images['val']} val images"]
    return markdown(["mean IoU (%)", *columns], lines)


def seeds() -> str:
    """The demo with three seeds, and what there is to beat: mean, spread and each of them."""
    found = pd.concat([rows("demo_seeds"), rows("baselines").query("split == 'val'")])
    order = [RAW, SOFT, SHARP, *ALONE, SUPERVISED, UNIMATCH, UNIMATCH_LONG, LONG, PLAIN, PAPER]
    lines = []
    for name in order:
        of = found[found.name == name].sort_values("seed")
        lines.append([name, of.split.iloc[0], percent(of.miou), *(f"{100 * miou:.1f}" for miou in of.miou)])
    return markdown(["what", "counted on", MIOU, "seed 0", "1", "2"], lines)


def ladder(*grids: str) -> str:
    """Every method with twelve labelled scenes: label maps, then networks, each from worst to best."""
    found = pd.concat([once(rows(*grids)).query("labelled == 12"), rows("baselines_long").query("split == 'val'")])
    groups = [(of.iloc[0], of.miou) for _, of in found.groupby("name")]
    groups.sort(key=lambda group: (group[0].split == "val", group[0].stage == "enhanced", group[1].mean()))
    lines = [[first["name"], f"{first.images} {first.split} images", percent(miou)] for first, miou in groups]
    return markdown(["what", "counted on", MIOU], lines)


def labelled() -> str:
    """Four networks with 12, 24 and 48 labelled scenes."""
    found = scores(once(rows("storybook_table", "storybook_labelled")), "name", "labelled")
    lines = [[name, *(found[name, count] for count in (12, 24, 48))] for name in (SUPERVISED, UNIMATCH, LONG, PAPER)]
    return markdown(["network, 200 val images", "12 labelled", "24", "48"], lines)


def labellers() -> str:
    """Quality of the labels of each labeller."""
    found, columns = rows("compare_labellers_seeds"), ("miou", "precision", "recall", "boundary_f")
    groups = dict(list(found.groupby(["method", found.options.str.get("cam").fillna("")])))
    # Each has a threshold, which the label maps of the labelled scenes choose.
    ways = {
        ("segment_match", ""): ("A: SAM's masks, named by CLIP", "nothing"),
        ("cam", "classifier"): ("CAM, classifier", "tags"),
        ("sepl", "classifier"): ("B: SEPL on CAM, classifier", "tags"),
        ("cam", "clip_text"): ("CAM, CLIP's words", "tags"),
        ("sepl", "clip_text"): ("B: SEPL on CAM, CLIP's words", "tags"),
        ("boxes", ""): ("C: tags, boxes, SAM", "nothing"),
        ("ensemble", ""): ("vote of A, B (classifier) and C", "tags"),
    }
    lines = [[*ways[way], *(percent(groups[way][column]) for column in columns)] for way in ways]
    return markdown(["labels", "a person gave", MIOU, "precision (%)", "recall (%)", "border F (%)"], lines)


def trust() -> str:
    """Correlation of each signal with the quality of an image's labels."""
    found, signals = rows("compare_labellers_seeds"), ("agreement", "mask stability", "CLIP margin", "all three")
    of = {method: found.trust[found.method == method].str for method in ("segment_match", "ensemble")}
    lines = [[signal, *(percent(of[method].get(signal), 2, 1) for method in of)] for signal in signals]
    return markdown(["signal", "A: SAM + CLIP", "vote"], lines)


def few_shot() -> str:
    """Labels by words alone, and by words and examples; with noise the mean of its three draws."""
    found, noisy = rows("few_shot"), rows("few_shot_noise")
    asked = found.dataset_options.str.get("classes").fillna("")
    groups = {
        "as they are": found[asked == ""],
        "two pairs of classes swapped": found[asked == "results/few_shot/swapped.yaml"],
        "noise of length 1.2 added to each": noisy,
        "none for the background": found[asked == "results/ablation_words/no_background_words.yaml"],
    }
    lines = []
    for words, of in groups.items():
        before, after = (of[of.method == name].groupby("seed").miou.mean() for name in ("segment_match", "few_shot"))
        lines.append([words, percent(before), percent(after), *(f"{100 * gain:+.1f}" for gain in after - before)])
    return markdown(["words", "labels by words (%)", "and by examples (%)", "gain with seed 0", "1", "2"], lines)


def filter_draws() -> str:
    """What the filter keeps of the names, and whether its promise holds, over draws of the labelled scenes."""
    lines, found = [], read("bench/filter_draws.json")["damage"]
    words = ["word noise of length 1.2", "no background words", "two pairs of words swapped"]
    for damage in ["none", *words, "a quarter of the names", "half of the names"]:
        of = found[damage]
        shares = [f"{100 * of[name]:.0f}" for name in ("right", "kept", "kept_pixels", "right_of_kept", "lowest")]
        lines.append([damage, *shares, str(of["nothing_kept"]), str(of["broken"])])
    heads = ["damage", "right (%)", "kept (%)", "pixels kept (%)", "right of the kept (%)", "in the worst draw"]
    return markdown([*heads, "draws that keep nothing", "promises broken"], lines)


TAUGHT = {  # methods and labellers of spoiled_names and late_stage
    "raw labels": ("direct", "segment_match"),
    "filtered labels": ("direct", "filtered"),
    "paper A": ("paper_a", "segment_match"),
    "paper A, filtered labels": ("paper_a", "filtered"),
}


def spoiled() -> str:
    """Networks on labels of which a share is wrong on purpose, with and without the filter, and without labels."""
    found, plain = rows("spoiled_names"), scores(rows("demo_seeds"), "name")
    shares = sorted(found.spoiled.unique())
    lines = []
    for title, (name, labeller) in TAUGHT.items():
        of = found[(found.method == name) & (found.labeller == labeller) & (found.stage == "segmenter")]
        lines.append([title, *(percent(of.miou[of.spoiled == share]) for share in shares)])
    for name in (SUPERVISED, UNIMATCH):  # which no name reaches
        lines.append([name, *[plain[name,]] * len(shares)])
    return markdown(["network, 100 val images", *(f"{share:.0%} of the names replaced" for share in shares)], lines)


def late_stage() -> str:
    """Networks that leave their labels behind at the end, and what that changes."""
    by = ["method", "labeller", "spoiled", "seed"]
    late, usual = (
        rows(grid).query("stage == 'segmenter'").set_index(by).miou.sort_index()
        for grid in ("late_stage", "spoiled_names")
    )
    lines = []
    for title, which in TAUGHT.items():
        line = [title]
        for share in (0.0, 0.5):
            miou = late.loc[*which, share]
            gain = 100 * (miou - usual.loc[*which, share])
            line += [percent(miou), f"{gain.min():+.1f} to {gain.max():+.1f}"]
        lines.append(line)
    heads = [head for share in ("0%", "50%") for head in (f"{share} of the names replaced", "gain, in three draws")]
    return markdown(["network, 100 val images", *heads], lines)


def best() -> str:
    """The best recipe, and what is lost with each of its parts."""
    found, vote, words, plain = rows("best"), rows("best_vote"), rows("best_words"), rows("demo_seeds")
    filtered = rows("best_alone").query("labeller == 'filtered'")
    sam, used = "with SAM", "SAM's borders in use"
    ways = {
        f"paper A, {used}": (words, f"{PAPER}, {sam}"),
        f"raw zero-shot labels, one network for the steps of two, {used}": (words, f"{LONG}, {sam}"),
        f"few-shot names, one network for the steps of two, {used}": (found, f"{LONG}, {sam}"),
        f"few-shot names, paper A, {used}": (found, f"{PAPER}, {sam}"),
        "few-shot names, paper A": (found, PAPER),
        "the same with the network's borders in the labels": (found, "paper A, second network goes on"),
        "few-shot names, one network for the steps of two": (found, LONG),
        f"the vote, one network for the steps of two, {used}": (vote, f"{LONG}, {sam}"),
        f"paper A with the vote, {used}": (vote, f"{PAPER}, {sam}"),
        "paper A with the vote": (vote, PAPER),
        "few-shot names through the filter, paper A": (filtered, PAPER),
        "paper A as it is": (plain, PAPER),
        **{name: (rows("baselines"), name) for name in ALONE},
    }
    base = plain[plain.name == PAPER].set_index("seed").miou
    lines = []
    for title, (of, name) in ways.items():
        found = of[of.name == name].set_index("seed").miou.sort_index()
        gains = [f"{100 * (value - base[seed]):+.1f}" for seed, value in found.items()]
        lines.append([title, percent(found), *gains])
    return markdown(["network, 100 val images", MIOU, "over paper A, seed 0", "1", "2"], lines)


def networks() -> str:
    """Labels of four labellers, and networks trained on them."""
    found = scores(rows("labeller_networks").query("added != added"), "labeller", "stage")  # added is nan: of 05
    names = {"segment_match": "A", "sepl": "B: SEPL on CAM, classifier", "boxes": "C", "ensemble": "vote"}
    lines = [[names[name], found[name, "zero_shot"], found[name, "segmenter"]] for name in names]
    return markdown(["labels", "mean IoU of the labels (%)", "of the network (%)"], lines)


def camvid() -> str:
    """Two networks on CamVid at half size."""
    found = [{name: score for (name,), score in scores(rows(grid), "name").items()} for grid in CAMVID]
    return markdown(
        ["network, 101 val images", *CAMVID.values()], [[name, *(of[name] for of in found)] for name in found[0]]
    )


def passes() -> str:
    """Three passes through the network in a step, or two."""
    found = scores(rows("passes").query("stage == 'segmenter'"), "passes", "method")
    lines = [[f"`{way}`", found[way, "unimatch"], found[way, "direct"]] for way in ("exact", "fast")]
    return markdown(["passes", "UniMatch", "raw zero-shot labels as targets"], lines)


def review() -> str:
    """Mean IoU after a person has corrected some images."""
    of = read("review/review.json")["mean_iou_after"]
    orders = ("least trusted first", "by chance", "the really worst first")
    lines = [[count, *(f"{100 * of[order][count]:.1f}" for order in orders)] for count in (0, 6, 20)]
    return markdown(["images corrected, of 100", *orders[:2], "worst first (needs the truth)"], lines)


def measured(grid: str, stage: str, **chosen: Any) -> list[float]:
    """Mean IoU of the rows of a grid with these settings: raw labels, enhanced labels or networks."""
    own = [row for row in read(f"{grid}/grid.json")["rows"] if row["stage"] == stage]
    own = [row for row in own if row["options"] in ({}, {"refine_target": "fusion"})]
    return [row["miou"] for row in own if all(row[name] == value for name, value in chosen.items())]


def ablations() -> str:
    """Choices of labelling."""

    def labels(grid: str, name: str, values: Iterable[Any], **chosen: str) -> str:
        found = [measured(grid, "zero_shot", **{name: value}, **chosen) for value in values]
        return " / ".join(f"{100 * miou:.1f}" for (miou,) in found)

    threshold = [percent(measured("ablation_threshold", "zero_shot", threshold=value)) for value in (None, 0.2)]
    plain, gem = ({"checkpoint": "miniature_clip", "features": name} for name in ("plain", "gem"))
    features = [plain, *(gem | {"depth": depth} for depth in (2, 3, 5))]
    asked = [{"limit": 100, "classes": f"results/ablation_words/{name}.yaml"} for name in WORDS]
    overlaps = ["score", "small_on_top", "predicted_iou", "vote"]
    cosine, softmax = (labels("ablation_painting", "overlap", overlaps, rule=rule) for rule in ("cosine", "softmax"))
    words = "one template / six averaged / bare words / no words for the background"
    pooled = "features as they are / each brought to length 1 first"
    pooling = labels("ablation_pooling", "embedding_options", [{}, {"normalise_patches": True}])
    blocks = "its last ones / GEM over the last 1 / 2 / 4 blocks"
    lines = [
        ["CLIP's features", blocks, labels("ablation_features", "encoder_options", features)],
        ["what is averaged in a mask", pooled, pooling],
        ["what CLIP is asked", words, labels("ablation_words", "dataset_options", [{"limit": 100}, *asked])],
        ["overlaps, names by cosine", "best score / smallest / predicted IoU on top / vote", cosine],
        ["overlaps, names by softmax", "the same", softmax],
        ["threshold, three seeds", "best on the 12 labelled scenes / fixed at 0.2", " / ".join(threshold)],
    ]
    return markdown(["decision", "choices", "mean IoU of the labels (%)"], lines)


def training() -> str:
    """Choices of training."""

    def network(grid: str, **chosen: Any) -> str:
        return percent(measured(grid, "segmenter", **chosen))

    targets = [{}, {"threshold": 0.95}, {"threshold": [0.95, 0.6]}, {"refine_target": "zero_shot"}]
    targets = [percent(measured("ablation_targets", "enhanced", loss_options=options)) for options in targets]
    smoothing = [network("ablation_smoothing", smoothing=value) for value in (0.1, 0.0, 0.2)]
    default, taken = smoothing[0], "from 0.8 on / from 0.95 on / first from 0.95, later from 0.6 on / never"
    loss = {
        "true labels smoothed too": {"labelled_smoothing": 0.1},
        "the weak view learns too": {"weak_weight": 0.5},
        "only where the network is sure": {"gate": True, "threshold": 0.8},
    }
    average = network("ablation_average", training_options={"ema": 0.99})
    lines = [
        ["the refined target is the network's", taken, " / ".join(targets)],
        ["smoothing of the targets", "0.1 / none / 0.2", " / ".join(smoothing)],
        *([k, "no / yes", f"{default} / {network('ablation_losses', loss_options=loss[k])}"] for k in loss),
        ["weights", "the last / averaged (0.99)", f"{default} / {average}"],
    ]
    return markdown(["decision", "choices", MIOU], lines)


def targets() -> str:
    """What the refined network's own predictions are worth as targets, in three seeds."""
    found, lines = rows("targets").query("stage == 'enhanced'"), []
    for name in (SOFT, SHARP):
        of = found[found.name == name].set_index(["refine_target", "seed"]).miou.sort_index()
        own, none = of["fusion"], of["zero_shot"]
        lines.append([name, percent(own), percent(none), *(f"{100 * gain:+.1f}" for gain in own - none)])
    taken = ["from 0.8 on the network's, else the zero-shot label", "the zero-shot label"]
    return markdown(["target of the refinement", *taken, "gain, seed 0", "1", "2"], lines)


def trials() -> str:
    """Lengths of the demo's schedule that were tried, each with two seeds."""
    lines = []
    for key, of in pd.DataFrame(read("demo_seeds/trials.json")["rows"]).groupby(
        ["warm_up", "steps", "change"], sort=False
    ):
        pairs = zip(of.enhanced, of.paper_a, of.raw_twice, strict=True)
        lines.append([f"{key[0]} + {key[1]}", key[2], *(" / ".join(map(str, values)) for values in pairs)])
    each = "labels / paper A / raw, twice the steps; seed"
    return markdown(["warm-up + full loss", "other change", f"{each} 0", f"{each} 1"], lines)


def miniatures() -> str:
    """How good the small networks are."""
    found = read("miniatures/measured.json")
    sam, labels = found["sam"]["held_out"], found["labels"]
    lines = [
        ["SAM, mean best IoU of objects, held-out scenes", f"{sam['mean_best_iou']:.2f}", "0.80"],
        ["SAM, objects with a mask of IoU 0.5 or more", f"{sam['recall_50']:.2f}", "0.90"],
        ["SAM, mean error of the predicted IoU", f"{sam['iou_error']:.2f}", "0.10"],
        ["SAM, masks per image", f"{sam['masks_per_image']:.1f}", ""],
        ["CLIP, ten-way accuracy on true masks", f"{found['clip']['held_out']['accuracy']:.2f}", "0.92"],
        ["zero-shot labels, 300 unlabelled scenes, mean IoU", f"{labels['plain']['unlabelled']:.2f}", "0.70"],
        ["the same with true masks instead of SAM's", f"{labels['plain, true masks']['unlabelled']:.2f}", "0.88"],
        ["the same with SAM's masks and GEM features", f"{labels['gem']['unlabelled']:.2f}", ""],
    ]
    return markdown(["measured", "value", "goal"], lines)


def bench() -> str:
    """Ours compared with the originals."""
    names = {
        "masks_full_miniature_sam_8": "SAM's masks of an image, miniature",
        "masks_full_sam_vit_b_random_32": "SAM's masks of a photo, ViT-B",
        "training_miniature_exact_fp32_cpu": 'a step of UniMatch, `passes="exact"`',
        "training_miniature_fast_fp32_cpu": '`passes="fast"`',
        "training_miniature_fast_bf16_cpu": '`passes="fast"`, `precision="bf16"`, hardware without it',
        "training_miniature_fast_bf16_cpu_with_bf16": "the same, hardware with it",
        "labels_pool": "mean feature of each mask, compared with one for each pixel",
        "labels_paint": "painting masks, compared with a loop over pixels",
        "sepl_max_iou_imp2": "SEPL's rule on 100 masks, compared with its authors' loop",
    }
    lines = []
    for name, title in names.items():
        of = read(f"bench/{name}.json")
        seconds = [f"{of[side]:.2g}" if of[side] < 10 else f"{of[side]:.0f}" for side in ("ours_s", "original_s")]
        lines.append([title, *seconds, f"{of['ratio']:.1f}", f"{of['best_ratio']:.1f}"])
    return markdown(["what", "ours (s)", "original (s)", "ratio of medians", "of the fastest turns"], lines)


SAMS = {"vit_b": "masks_full_sam_vit_b_random_32", "miniature": "masks_full_miniature_sam_8"}


def beside_the_package() -> str:
    """SAM's masks and networks, beside those of its package."""
    large, small = (read(f"bench/{name}.json") for name in SAMS.values())
    seen = f"{large['n']['images']} photos, {large['agreement']['masks'][0]} masks"
    ways = {
        f"ViT-B, a photo at 32 x 32 points; {seen}": large,
        f"its mask decoder alone, {large['alone']['points_of_decoder']} points with all masks": large["alone"][
            "decoder"
        ],
        "its image encoder alone": large["alone"]["encoder"],
        f"the miniature, {small['n']['images']} scenes at 8 x 8 points": small,
    }
    lines = [
        [title, f"{of['ours_s']:.3g}", f"{of['original_s']:.3g}", f"{of['ratio']:.2g}"] for title, of in ways.items()
    ]
    return markdown(["what", "ours (s)", "the package (s)", "ratio"], lines)


def profile(name: str, second: str, unit: float, counted: str, per: float) -> str:
    """Where the time of masks goes, part by part; second, unit: of the clock; counted, per: of multiplications."""
    of = read(f"bench/{SAMS[name]}.json")["profile"]
    taken, products = of["seconds"], of["multiplications"]
    order = [part for part in taken if part not in ("rest", "whole")]
    order = sorted(
        order, key=lambda part: (not part.startswith("image"), "decoder" not in part, part.endswith("points"))
    )
    lines = []
    for part in [*order, "rest", "whole"]:
        rate = f"{products[part] / taken[part] / 1e9:.0f}" if products[part] > 0.001 * products["whole"] else "–"
        share = f"{100 * taken[part] / taken['whole']:.0f}"
        lines.append([part, f"{taken[part] * unit:.3g}", share, f"{products[part] / per:,.1f}", rate])
    return markdown(
        ["part", f"processor {second}", "share (%)", f"{counted} of multiplications", "billions a second"], lines
    )


def fewer_points() -> str:
    """What `skip_covered` saves and changes, alone and with bf16."""
    lines = []
    for name, title in (("miniature", "miniature, 200 scenes"), ("vit_b", "ViT-B, random weights")):
        found = read(f"bench/{SAMS[name]}.json")
        for key, with_bf16 in (("skip_covered", ""), ("skip_covered_bf16", "; bf16 too")):
            of, images = found[key], found["n"]["images"]
            what = title if name == "miniature" else f"{title}, {images} photos"
            asked, masks = (f"{round(of[each][0], 1):g} of {of[each][1]}" for each in ("points", "masks"))
            equal = f"{100 * of['equal_pixels_of_labels']:.2f} %" if "equal_pixels_of_labels" in of else "–"
            again = f"{100 * of['found_again_at_iou_0.9']:.1f} %"
            lines.append([what + with_bf16, asked, masks, again, equal, f"{of['ratio']:.2f}"])
    return markdown(
        ["", "points asked", "masks", "found again", "equal pixels of labels", "times the exact mode"], lines
    )


def threads() -> str:
    """A training step beside busy processes."""
    of, busy = read("bench/threads.json")["step"], ("0 busy", "1 busy", "2 busy")
    lines = [[name, *(f"{steps[each]:.2f}" for each in busy)] for name, steps in of.items()]
    return markdown(["seconds a step", "idle", "one busy process", "two"], lines)


def scaling() -> str:
    """How time and memory grow with the number of images."""
    lines = []
    for name, title in (("masks", "SAM's masks, miniature"), ("labels", "labels of cached images")):
        of = read(f"bench/scaling_{name}_images.json")
        first, *_, last = of["peak_memory_mb"]
        counts = f"{of['sizes'][-1]:,}", f"{1e3 * of['slope_s']:.0f}", f"{of['r2']:.4f}"
        lines.append([title, *counts, f"{first:.0f} to {last:.0f}"])
    return markdown(["what", "images", "ms per image", "R² of the line", "peak memory, first to last (MB)"], lines)


def kills() -> str:
    """Where the killed runs were at work."""
    stages = read("reliability.json")["kills"]["by_stage"]
    return markdown(["stage", "kills"], [[name if " " in name else f"`{name}`", stages[name]] for name in stages])


def determinism() -> str:
    """Largest differences under other conditions."""
    sys.path.insert(0, str(RESULTS.parent / "tests" / "torture"))
    import determinism as torture  # it knows the order, the names and the units

    return torture.table(read("reliability.json")["determinism"])


def cost(folder: Path) -> str:
    """Time that a run took, as its stages noted it."""
    if folder.name == "demo":
        return f"{read('bench/commands.json')['demo']['seconds'] / 60:.0f} min"
    points = [json.loads(path.read_text(encoding="utf-8"))["made"] for path in sorted(folder.glob("points/*.json"))]
    own = [sum(stage["wall_seconds"] or 0 for stage in point["stages"].values()) for point in points]
    if not own and (folder / "summary.json").exists():
        own = [sum(of.get("wall_seconds") or 0 for of in read(f"{folder.name}/summary.json")["manifest"].values())]
    minutes = f"{max(1, sum(own) / 60 / len(own)):.0f} min" if own else ""
    return f"{len(own)} x {minutes}" if points else minutes


def question(folder: Path) -> str:
    """The first sentence of the comment that a run's parameters.yaml begins with."""
    text = (folder / "parameters.yaml").read_text(encoding="utf-8").split("\n#   ")[0]  # a command follows
    comment = " ".join(line.strip("# ") for line in text.splitlines() if line.startswith("#"))
    return re.match(r".+?[.?](?=\s|$)|.+", comment).group().rstrip(":")


def natural(folder: Path) -> list[str | int]:
    """A sorting key in which voc_92 comes before voc_183."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", folder.name)]


def runs() -> str:
    """Every run: its question, whether it was executed here, its time, where its results are shown."""
    left, sections = sorted((path.parent for path in RESULTS.glob("*/parameters.yaml")), key=natural), []
    for title, links in RUNS.items():
        lines = []
        for pattern, link in links.items():
            for folder in [folder for folder in left if fnmatch(folder.name, pattern)]:
                left.remove(folder)
                kept = (folder / "grid.json").exists() or any(folder.glob("*.ipynb"))
                state = "yes" if kept else "yes, not kept" if folder.name in NOT_KEPT else "no, ready to run"
                name = f"[{folder.name}]({folder.name}/parameters.yaml)"
                lines.append([name, question(folder), state, cost(folder), link])
        head = ["run", "question", "executed here", "time", "shown in"]
        sections.append(f"## {title}\n\n{markdown(head, lines)}")
    return "\n" + "\n\n".join(sections) + "\n"


def of_masks() -> dict[str, str]:
    """Numbers of docs/speed.md: where masks differ from the package's, and how near to the possible rate they are."""
    found = {}
    for name, unit in (("vit_b", 1), ("miniature", 1e3)):
        of = read(f"bench/{SAMS[name]}.json")
        agreement, (taken, products) = of["agreement"], (of["profile"][what] for what in ("seconds", "multiplications"))
        possible = of["profile"]["possible_a_second"]
        found |= {
            f"{name}_masks": f"{agreement['masks'][1]:,}",
            f"{name}_pixels": str(agreement["pixels_that_differ"]),
            f"{name}_logit": f"{agreement['largest_logit_there']:.0e}",
            f"{name}_possible": f"{possible / 1e9:.0f}",
            f"{name}_at_best": f"{products['whole'] / possible * unit:.3g}",
            f"{name}_whole": f"{taken['whole'] * unit:.3g}",
            f"{name}_encoder": f"{100 * taken['image encoder'] / taken['whole']:.0f}",
        }
    large, small = (read(f"bench/{name}.json") for name in SAMS.values())
    of = large["profile"]
    for part in ("image encoder", "decoder, transformer"):
        rate = of["multiplications"][part] / of["seconds"][part] / of["possible_a_second"]
        found[f"vit_b_{part.split()[-1]}_rate"] = f"{100 * rate:.0f}"
    at_best = of["multiplications"]["image encoder"] / of["possible_a_second"]
    found["vit_b_encoder_most"] = f"{large['alone']['encoder']['original_s'] / at_best:.2f}"
    asked, points = small["skip_covered"]["points"]
    at_points = sum(of["seconds"][part] for part in ("decoder, transformer", "decoder, masks of good points"))
    found["vit_b_fewer"] = f"{of['seconds']['whole'] / (of['seconds']['whole'] - (1 - asked / points) * at_points):.1f}"
    return found


def numbers() -> dict[str, str]:
    """Numbers within sentences, by the name of their block."""
    commands, bad = read("bench/commands.json"), read("reliability.json")
    found = {f"{name}_minutes": f"{commands[name]['seconds'] / 60:.1f}" for name in ("demo", "test")}
    found["memory_gb"] = f"{max(commands[name]['peak_memory_mb'] for name in ('demo', 'test')) * 2**20 / 1e9:.1f}"

    (raw,) = [row for row in read("demo/summary.json")["rows"] if row["name"] == RAW]
    found |= {"demo_raw": f"{100 * raw['miou']:.1f}", "demo_missed": f"{100 * raw['miou_uncovered_missed']:.1f}"}
    found["demo_uncovered"] = f"{1 / (1 - raw['coverage']):.0f}"

    three = rows("demo_seeds").groupby("name").miou
    found |= {f"three_{key}": percent(three.get_group(name)) for key, name in (("plain", PLAIN), ("long", LONG))}
    alone = rows("baselines").groupby("name").miou.mean()
    for key, name in (("words", ALONE[0]), ("examples", ALONE[1]), ("unimatch_twice", UNIMATCH_LONG)):
        found[f"alone_{key}"] = f"{100 * alone[name]:.1f}"
    long = rows("baselines_long").groupby("name").miou.mean()
    found |= {"long_words": f"{100 * long[ALONE[0]]:.1f}", "long_examples": f"{100 * long[ALONE[1]]:.1f}"}

    every = once(rows("storybook_table", "storybook_labelled"))
    mean = 100 * every.groupby(["labelled", "name"]).miou.mean()
    for count in (12, 24, 48):
        of = mean[count]
        gone = {"sharp": SHARP} | ({"soft": SOFT} if count == 12 else {})  # share of the raw labels' error
        for key, name in gone.items():
            found[f"error_{key}_{count}"] = f"{100 * (of[name] - of[RAW]) / (100 - of[RAW]):.0f}"
        pairs = {"unimatch": (UNIMATCH, SUPERVISED), "paper_unimatch": (PAPER, UNIMATCH), "paper_long": (PAPER, LONG)}
        found |= {f"{key}_{count}": f"{of[a] - of[b]:.1f}" for key, (a, b) in pairs.items()}
    found["long_plain"] = f"{mean[12, LONG] - mean[12, PLAIN]:.1f}"
    single = 100 * rows("storybook_more").groupby("name").miou.mean()
    longer = 100 * rows("storybook_converged").groupby("name").miou.mean()
    found |= {"converged_paper": f"{longer[PAPER]:.1f}", "converged_long": f"{longer[LONG]:.1f}"}
    found["converged_sharp"] = f"{100 * (longer[SHARP] - longer[RAW]) / (100 - longer[RAW]):.0f}"
    found["converged_more"] = f"{longer[PAPER] - mean[12, PAPER]:.1f}"
    for key, name in (
        ("borders", "paper A with SEPL, second network fresh"),
        ("start", "paper A, second network goes on"),
    ):
        found[f"change_{key}"] = f"{single[name] - mean[12, PLAIN]:.1f}"

    used = rows("best").query("split == 'val'").set_index("name")
    for key, name in (("sharpen", f"{PAPER}, with SAM"), ("network", PAPER)):
        found[f"{key}_seconds"] = f"{(used.loc[name].seconds / used.loc[name].images).median():.2f}"

    again, masks = read("bench/labels_again.json"), read("bench/masks_full_miniature_sam_8.json")
    large, whole = read("bench/masks_full_sam_vit_b_random_32.json"), read("bench/demo.json")
    busy = read("bench/commands.json")["demo beside a busy process"]["seconds"]
    found["busy_minutes"] = f"{busy / 60:.0f}"
    found |= {"again_images": f"{again['n']['images']:,}", "again_seconds": f"{again['ours_s']:.1f}"}
    equal, scenes = masks["agreement"], masks["n"]["images"]
    found |= {"equal_scenes": f"{equal['images_with_equal_masks'] * scenes:.0f}", "all_scenes": str(scenes)}
    found["other_pixels"] = str(equal["pixels_that_differ"])
    _, two, four = read("bench/scaling_processes.json")["speedup"]
    found |= {"two_processes": f"{two:.1f}", "four_processes": f"{four:.1f}"}
    for side in ("ours", "original"):
        stages = whole["stages_s"][side]
        trained = sum(
            took for name, took in stages.items() if name == "refined" or name.startswith(("network_", "warm_up"))
        )
        found |= {f"vit_b_{side}": f"{large[f'{side}_s']:.0f}", f"demo_{side}": f"{whole[f'{side}_s'] / 60:.1f}"}
        found |= {f"masks_{side}": f"{stages['masks']:.0f}", f"trainings_{side}": f"{trained:.0f}"}

    found |= of_masks()

    photos, seams = (read("bench/large_photos.json")[name] for name in ("photos", "agreement"))
    for key, name in (
        ("12", "12 megapixels"),
        ("100", "100 megapixels, one scene"),
        ("tiles", "100 megapixels in tiles"),
    ):
        minutes = sum(photos[name]["seconds"].values()) / 60
        found[f"photo_{key}_gb"] = f"{photos[name]['peak_memory_mb'] * 2**20 / 1e9:.1f}"
        found[f"photo_{key}_minutes"] = f"{minutes:.1f}" if minutes > 0.5 else f"{60 * minutes:.0f}"
    for key, name in (("right", "annotated regions"), ("small", "miniatures"), ("part", "one part alone")):
        shares = [100 * seam["same"][name] for seam in seams]
        found[f"seams_{key}"] = f"{min(shares):.0f} to {max(shares):.0f}"
    found["seams_right"] = f"{min(100 * seam['same']['annotated regions'] for seam in seams):.1f}"

    found |= {f"kill_{key}": str(bad["kills"][key]) for key in ("kills", "rounds", "files_compared")}
    found |= {f"fuzz_{key}": f"{bad['fuzz'][key]:,}" for key in ("files", "failed", "crashed", "hung")}
    found |= {"fuzz_kinds": str(len(bad["fuzz"]["by_kind"])), "bad_inputs": str(bad["malformed"]["cases"])}
    return found | {"bad_kinds": str(len(bad["malformed"]) - 1)}


def models() -> str:
    """Size, time and memory of networks at full size."""
    lines = [
        [
            f"`{row['name']}`", f"{row['parameters_m']:,.0f} M", f"{row['cpu_s']:.1f}",
            f"{row['peak_memory_mb'] / 1024:.1f}",
        ]
        for row in read("bench/models.json")
    ]  # fmt: skip
    return markdown(["network", "weights", "processor's seconds", "memory (GB)"], lines)


def dense_features() -> str:
    """Mean IoU of zero-shot labels by each kind of CLIP's features."""
    found = read("bench/dense_features.json")["found"]
    ways = ("plain", "gem", "corr")
    masks = list(found[ways[0]])
    lines = [[f"`{way}`", *(f"{100 * found[way][each]['mean_iou']:.1f}" for each in masks)] for way in ways]
    return markdown(["features", *masks], lines)


def blocks() -> dict[str, Callable[[], str]]:
    """What fills each block, by its name."""
    tables: dict[str, Callable[[], str]] = {
        table.__name__: table
        for table in (demo, seeds, labelled, labellers, trust, networks, camvid, passes, review, ablations)
        + (
            few_shot,
            filter_draws,
            spoiled,
            late_stage,
            best,
            training,
            targets,
            trials,
            miniatures,
            bench,
            beside_the_package,
            fewer_points,
            threads,
            models,
            dense_features,
            scaling,
            kills,
            determinism,
            runs,
        )
    }
    tables["storybook"] = lambda: ladder("storybook_more", "storybook_table")
    tables["profile_vit_b"] = lambda: profile("vit_b", "seconds", 1, "billions", 1e9)
    tables["profile_miniature"] = lambda: profile("miniature", "milliseconds", 1e3, "millions", 1e6)
    return {name: lambda table=table: f"\n{table()}\n" for name, table in tables.items()} | {
        name: lambda text=text: text for name, text in numbers().items()
    }


def documents() -> list[Path]:
    """The files that hold blocks."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), RESULTS / "README.md"]


def main(arguments: list[str] | None = None) -> int:
    """Write every block, or name those that are out of date."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing, name the blocks that differ")
    check, known, used, stale = parser.parse_args(arguments).check, blocks(), set(), []
    for path in documents():
        parts = re.split(r"<!-- (\w+) -->(.*?)<!-- /\1 -->", path.read_text(encoding="utf-8"), flags=re.DOTALL)
        for at in range(1, len(parts), 3):  # text, name, content, text, name, content, ..., text
            name, before = parts[at : at + 2]
            if name not in known:
                raise SystemExit(f"{path.relative_to(ROOT)} has a block {name!r}, unknown to docs/tables.py: rename it")
            after = known[name]()
            stale += [f"{path.relative_to(ROOT)}: {name}"] * (before != after)
            used.add(name)
            parts[at : at + 2] = [f"<!-- {name} -->", f"{after}<!-- /{name} -->"]
        if not check:
            path.write_text("".join(parts), encoding="utf-8")
    if known.keys() - used:
        raise SystemExit(f"no document has these blocks: {', '.join(sorted(known.keys() - used))}. Remove them here")
    print(*[f"out of date, run make tables: {name}" if check else f"written: {name}" for name in stale], sep="\n")
    return int(check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
