"""The runs that wait for a GPU: their schedules follow from the lists, and nothing in them is refused."""

import re

import pytest
import run
import yaml

TRAIN = {"voc": 10582, "coco": 118287}  # images with which UniMatch trains
EPOCHS = {"voc": 80, "coco": 30}  # UniMatch's configs
LISTS = {  # run -> labelled images, UniMatch's splits folder
    **{f"voc_{count}": count for count in (92, 183, 366, 732, 1464)},
    **{
        f"voc_{kind}_{part}": count
        for kind in ("blended", "u2pl")
        for part, count in (("1_16", 662), ("1_8", 1323), ("1_4", 2646))
    },
    **{f"coco_1_{part}": count for part, count in ((512, 232), (256, 463), (128, 925), (64, 1849), (32, 3697))},
}
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
    assert values["steps"] == unlabelled // 8 * EPOCHS[kind]
    assert values["labelled"] == labelled and f"{labelled:,} labelled" in comment
    assert f"{unlabelled:,} // 8" in comment
    assert values["dataset_options"] == {
        "split": name.removeprefix("voc_").removeprefix("blended_").removeprefix("coco_")
    }
    assert values["batch_size"] == 8
    assert (values["learning_rate"], values["crop_size"]) == {
        "voc": (0.001, 513 if "u2pl" in name else 321),
        "coco": (0.004, 513),
    }[kind]
    assert "not available" in comment and "not measured" in comment


def test_hours_are_those_of_the_log():
    for name in LISTS:
        comment, values = head(name)
        told = re.search(r"0\.67 s a step on 4 GPUs: (\d+) hours", comment)
        assert bool(told) == (values["crop_size"] == 321)  # the log is of that size
        if told:
            assert int(told[1]) == round(values["steps"] * 0.67 / 3600)
