"""The runs that wait for a GPU: their schedules follow from the lists, and nothing in them is refused."""

import math
import re

import pytest
import run
import yaml

from plg_utils import stages

TRAIN = {"voc": 10582, "coco": 118287}  # images with which UniMatch trains
EPOCHS = {"voc": 80, "coco": 30}  # UniMatch's configs
SBD = {"1_16": 662, "1_8": 1323, "1_4": 2646}
LISTS = {  # run -> labelled images, UniMatch's splits folder
    **{f"voc_{count}": count for count in (92, 183, 366, 732, 1464)},
    **{f"voc_{kind}_{part}": count for kind in ("blended", "u2pl") for part, count in SBD.items()},
    **{f"coco_1_{part}": count for part, count in ((512, 232), (256, 463), (128, 925), (64, 1849), (32, 3697))},
}
V2 = {name: count for name, count in LISTS.items() if name.startswith("coco") or name[4:].isdigit()}  # UniMatch V2's
V2_EPOCHS, V2_SECONDS = {"voc": 60, "coco": 20}, {"voc": 1.16, "coco": 1.2}  # its configs; a step in its logs
OF_LABELS = ["direct", "direct_long", "paper_a_plain", "paper_a"]
V2_RUNS = [*(f"{name}_dinov2" for name in V2), "coco_1_512_dinov2_zero_shot"]
OF_PAPER_A = [*LISTS, "coco_1_512_dinov2_zero_shot"]
RUNS = sorted(path.parent.name for path in run.PUBLISHED.glob("*/parameters.yaml"))


def head(name):
    text = (run.PUBLISHED / name / "parameters.yaml").read_text(encoding="utf-8")
    return "\n".join(line for line in text.splitlines() if line.startswith("#")), yaml.safe_load(text)


@pytest.mark.parametrize("name", RUNS)
def test_each_run_says_what_it_is_and_how_it_is_started(name):
    comment, _ = head(name)
    assert re.search(rf"#   (\.venv/bin/python notebooks/run\.py {name}|make demo)|Run it with: make demo", comment)
    for word in ("Hardware", "ublished") if name != "demo" else ():
        assert word in comment


@pytest.mark.parametrize("name", LISTS)
def test_schedules_are_unimatch_s(name):
    comment, values = head(name)
    recipe = run.read(name)
    run.steps_of(recipe, {}, name)  # nothing is refused
    kind, labelled = values["dataset"], LISTS[name]
    unlabelled = TRAIN[kind] - labelled
    epoch = math.ceil(unlabelled / 4) // 2  # DistributedSampler on 4 GPUs, batches of 2, drop_last
    assert epoch == math.ceil(unlabelled / 2) // 4 or "u2pl" not in name  # these on 2 GPUs, batches of 4
    assert values["steps"] == epoch * EPOCHS[kind]
    assert f"{EPOCHS[kind]} epochs of {epoch:,} steps" in comment
    assert values["labelled"] == labelled and f"{labelled:,} labelled" in comment
    assert f"{'half' if 'u2pl' in name else 'a quarter'} of the {unlabelled:,} unlabelled" in comment
    assert values["dataset_options"] == {"split": re.sub("^(voc_blended|voc|coco)_", "", name)}
    setting = {"voc": (8, 0.001, 513 if "u2pl" in name else 321), "coco": (8, 0.004, 513)}[kind]
    assert (values["batch_size"], values["learning_rate"], values["crop_size"]) == setting
    assert "not available" in comment and "not measured" in comment


@pytest.mark.parametrize("name", V2_RUNS)
def test_schedules_are_unimatch_v2_s(name):
    comment, values = head(name)
    run.steps_of(run.read(name), {}, name)  # nothing is refused
    kind, of = values["dataset"], name.split("_dinov2")[0]
    unlabelled = TRAIN[kind] - V2[of]
    epoch = math.ceil(unlabelled / 4) // 4  # DistributedSampler on 4 GPUs, batches of 4, drop_last
    assert epoch == {"voc_92": 655, "coco_1_512": 7378}.get(of, epoch)  # as its logs count
    assert values["steps"] == epoch * V2_EPOCHS[kind]
    assert f"{V2_EPOCHS[kind]} epochs of {epoch:,} steps" in comment and f"{unlabelled:,} unlabelled" in comment
    assert values["labelled"] == V2[of] and values["dataset_options"] == head(of)[1]["dataset_options"]
    hours = values["steps"] * V2_SECONDS[kind] / 3600
    assert re.search(rf"{V2_SECONDS[kind]} s a step on\s+(# )?4 GPUs: {hours:.0f} hours", comment)
    settings = {"batch_size": 16, "crop_size": 518, "learning_rate": 5e-6, "head_lr_factor": 40.0, "warm_up": None}
    settings |= {"training_options": {"weight_decay": 0.01, "ema": 0.996}, "resize_range": [0.5, 2.0]}
    settings |= {"optimizer": "adamw", "passes": "v2"}
    assert {name: values[name] for name in settings} == settings
    assert values["segmenter"] == "dpt" and "not measured" in comment


@pytest.mark.parametrize("name", OF_PAPER_A)
def test_paper_a_is_compared_with_the_plain_reading_and_the_raw_labels(name):
    comment, values = head(name)
    own = ["unimatch"] if "dinov2" in name else ["supervised", "supervised_epochs", "unimatch"]
    own = [method for method in own if not (name.startswith("coco") and method == "supervised_epochs")]
    assert values["methods"] == [*own, *(OF_LABELS[1:] if "dinov2" in name else OF_LABELS)]
    assert "paper_a is our variant" in comment and "paper_a_plain is the plain reading" in comment


@pytest.mark.parametrize("name", OF_PAPER_A)
def test_the_refinement_can_be_as_sure_as_it_is_asked_to_be(name):
    """A network that meets a smoothed target perfectly is surer than refine_confidence: else nothing is refined."""
    known = run.known_of(run.steps_of(run.read(name), {}, name))
    num_classes = {"voc": 21, "coco": 81}[known["dataset"]]
    taught = 1 - known["smoothing"] + known["smoothing"] / num_classes
    assert known["refine_target"] == "fusion" and known["refine_confidence"] <= taught - 0.1
    text = (run.PUBLISHED / name / "parameters.yaml").read_text(encoding="utf-8")
    assert f"teach at most {taught:.3f}" in text


def test_epochs_of_the_labelled_list_are_unimatch_s():
    """supervised.py: 4 GPUs with 4 images each, a DistributedSampler that rounds up, drop_last."""
    for labelled, steps in ((92, 5), (183, 11), (366, 23), (732, 45), (1464, 91), (662, 41), (1323, 82), (2646, 165)):
        assert stages.steps_of_epoch(labelled, 16) == steps == math.ceil(labelled / 4) // 4
    assert stages.steps_of_epoch(10399, 8) == 1300
    assert stages.steps_of_epoch(12, 16) == 0  # training then takes one step for an epoch
