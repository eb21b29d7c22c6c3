"""Every committed summary and grid hangs together: rows, manifests, weights, class file, splits, parameters, points."""

import hashlib
import json
import re

import grid
import numpy as np
import pytest
import run
import yaml

from plg_utils import checkpoints, class_files, datasets, files, stages, store

SUMMARIES = sorted(run.PUBLISHED.glob("*/summary.json"))
GRIDS = sorted(run.PUBLISHED.glob("*/grid.json"))
POINTS = sorted(run.PUBLISHED.glob("*/points/*.json"))
# Stage of a row: how the folder of its label maps begins.
FOLDERS = {"zero_shot": ("labels_", "predictions_"), "enhanced": "labels_enhanced", "segmenter": "predictions_"}
IDENTITY = ["stage", "parameters", "seed", "checkpoints", "classes_sha256", "dataset", "learns_from", "inputs_sha256"]
IDENTITY += ["whole_set_sha256", "parents"]  # the first of these was in manifests before version 0.2
PIXELS = {"storybook": 128 * 128, "camvid": 240 * 180}  # of an image; CamVid as camvid_table reads it


def named(paths):
    return pytest.mark.parametrize("path", paths, ids=lambda path: path.relative_to(run.PUBLISHED).as_posix())


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Load the data set as a run had it, once for each; nothing of the storybook is drawn, others may not be here."""
    loaded, root = {}, tmp_path_factory.mktemp("nothing")

    def load(parameters):
        key = json.dumps([parameters[name] for name in ("dataset_options", "labelled", "seed")])
        if key not in loaded:
            drawn = parameters["dataset"] == "storybook"
            options = parameters["dataset_options"] | ({"root": root} if drawn else {})
            try:
                loaded[key] = datasets.load(
                    parameters["dataset"], labelled=parameters["labelled"], seed=parameters["seed"], **options
                )
            except FileNotFoundError as error:
                if drawn:
                    raise
                pytest.skip(f"needs the photos of {parameters['dataset']} in PLG_DATA: {error}")
        return loaded[key]

    return load


def parameters_of(path):
    """What the notebooks of a published run were run with."""
    return files.read_json(path.parent / "run.json")["parameters"]


def check_row(row, dataset="storybook"):
    """A row's mean is that of its classes, and its pixels are those of its images."""
    assert row["miou"] == pytest.approx(np.mean([iou for iou in row["iou"].values() if iou is not None]), abs=1e-12)
    assert all(iou is None or 0 <= iou <= 1 for iou in row["iou"].values())
    if "wrong_pixels" in row:
        counted, there = sum(row["wrong_pixels"].values()), row["images"] * PIXELS[dataset]
        assert counted == there if dataset == "storybook" else 0.95 * there < counted < there  # the rest is void


def check_seconds(row, stages, shared=False):
    """A row's seconds are those of a stage of its kind, or, where a labeller needs several, of some stages together.

    shared: other points have looked at the same masks since, which took a moment each
    """
    if not row.get("added"):
        stages = {name: seconds for name, seconds in stages.items() if name.startswith(FOLDERS[row["stage"]])}
        assert row["seconds"] in stages.values(), row["name"]
    else:
        sums = np.zeros(1)
        for seconds in stages.values():
            sums = np.unique(np.concatenate([sums, sums + seconds]))
        assert np.abs(row["seconds"] - sums).min() < (1 if shared else 1e-6), row["method"]


def check_weights(listed):
    assert listed == {name: checkpoints.sha256_of(name) for name in listed}


@named(SUMMARIES)
def test_the_stages_of_a_run_are_one_chain(path):
    summary = files.read_json(path)
    assert summary["run"] == path.parent.name
    manifests = summary["manifest"]
    for name, manifest in manifests.items():
        assert manifest["state"] == "done" and manifest["stage"] == name, name
        content = json.dumps({key: manifest[key] for key in IDENTITY if key in manifest}, sort_keys=True)
        assert manifest["fingerprint"] == hashlib.sha256(content.encode()).hexdigest(), name
        for parent, fingerprint in manifest["parents"].items():
            assert manifests[parent]["fingerprint"] == fingerprint, f"{name} stems from another {parent}"
        check_weights(manifest["checkpoints"])
        assert re.fullmatch(r"[0-9a-f]{40}(-dirty)?", manifest["git_commit"])


@named(SUMMARIES)
def test_the_rows_of_a_run_are_its_stages(path, data):
    summary, parameters = files.read_json(path), parameters_of(path)
    manifests = summary["manifest"]
    dataset = data(parameters)
    assert summary["dataset"] == dataset.name == parameters["dataset"]
    for name, manifest in manifests.items():
        assert manifest["split_sha256"] in (None, store.split_sha256(dataset)), name
        assert manifest["classes_sha256"] in (None, class_files.sha256(dataset.classes)), name
        assert manifest["seed"] in (None, parameters["seed"]), name
    for row in summary["rows"]:
        check_row(row)
        assert (row["labelled"], row["seed"]) == (parameters["labelled"], parameters["seed"])
        assert row["images"] == len(getattr(dataset, row["split"]))
        assert row["iou"].keys() == set(dataset.classes.names)
        check_seconds(row, {name: found["wall_seconds"] for name, found in manifests.items()})
    assert len(summary["rows"]) == len({json.dumps(row, sort_keys=True) for row in summary["rows"]})


def test_what_the_demo_s_notebooks_wrote_agrees_with_its_manifests():
    folder = run.PUBLISHED / "demo"
    summary = files.read_json(folder / "summary.json")
    manifests, rows = summary["manifest"], [row for row in summary["rows"] if not row.get("added")]
    refinement, segmenter = (files.read_json(folder / f"{name}.json") for name in ("03_refinement", "04_segmenter"))
    assert refinement["steps"] == manifests["refined"]["counts"]["steps"]
    assert refinement["history"][-1]["step"] == manifests["refined"]["parameters"]["steps"]  # with the warm-up's
    assert refinement["images"] == manifests["labels_enhanced"]["counts"]["images"]
    for method, history in segmenter["histories"].items():
        assert history[-1]["step"] == manifests[f"network_{method}"]["parameters"]["steps"]
    evaluation = files.read_json(folder / "05_evaluation.json")
    assert evaluation["rows"] == len(rows)
    assert evaluation["images"] == {row["split"]: row["images"] for row in rows}
    scores = {row["name"]: row["miou"] for row in rows if row["stage"] == "segmenter"}
    assert len(evaluation["bootstrap"]) == 3
    for name, found in evaluation["bootstrap"].items():
        ours, rival = stages.METHODS["paper_a"].title, name.removeprefix("over ")
        assert found["difference"] == pytest.approx(scores[ours] - scores[rival], abs=1e-12)
        assert found["low"] <= found["difference"] <= found["high"]


def test_the_recorded_numbers_are_the_demo_s():
    """What 05 compares trained numbers with lies within its tolerance of what the summary holds, and was printed so."""
    folder, found = run.PUBLISHED / "demo", {}
    recorded = files.read_yaml(folder / "recorded.yaml")
    for row in files.read_json(folder / "summary.json")["rows"]:
        key = "/".join([row["stage"], row["method"], *row["options"].values()])
        if key in recorded:
            found[key] = row["miou"]
            assert abs(row["miou"] - recorded[key]["miou"]) <= recorded[key]["tolerance"], key
            assert abs(recorded[key]["one_thread"] - recorded[key]["miou"]) <= recorded[key]["tolerance"], key
    assert found.keys() == recorded.keys()
    printed = (folder / "05_evaluation.ipynb").read_text(encoding="utf-8")
    assert printed.count(": yes\\n") == len(recorded) and ": no, " not in printed


# Grids


def points_of(recipe):
    """Values of each point of a run's grid, by its name."""
    return {grid.name_of(values): values for values in grid.combinations(run.axes_of(recipe, [], {}))}


@named(GRIDS)
def test_the_rows_of_a_grid_are_those_of_its_points(path):
    content, recipe = files.read_json(path), run.read(path.parent.name)
    assert content["run"] == path.parent.name
    assert content["grid"] == recipe.axes, "parameters.yaml has another grid"
    points = points_of(recipe)
    there = {name: path.parent / "points" / f"{name}.json" for name in points}
    assert content["points"] == len(points)
    assert content["missing"] == [name for name, point in there.items() if not point.is_file()]
    rows = []
    for name, values in points.items():
        if name not in content["missing"]:
            own = grid.without_repeats(files.read_json(there[name])["rows"])
            rows += [row | {"point": name} | files.plain(values) for row in own]
    assert content["rows"] == rows


def test_no_point_stands_beside_its_grid():
    for path in GRIDS:
        points = points_of(run.read(path.parent.name))
        assert {found.stem for found in path.parent.glob("points/*.json")} <= points.keys(), path.parent.name
    assert {path.parent.parent for path in POINTS} == {path.parent for path in GRIDS}


@named(POINTS)
def test_a_point_was_made_with_what_parameters_yaml_says(path):
    """Of the parameters that it knows; notebooks may have got more since, whose defaults change nothing."""
    content, name = files.read_json(path), path.parent.parent.name
    recipe = run.read(name)
    values = run.settled(recipe, content["point"])
    assert points_of(recipe)[path.stem] == content["point"]
    assert content["notebooks"] == [notebook.stem for notebook in recipe.known]
    known = files.plain(run.all_defaults_of(recipe) | values)
    assert {key: known.get(key, "no notebook has it") for key in content["parameters"]} == content["parameters"]
    assert content["run"] == name


@named(POINTS)
def test_a_point_s_rows_agree_with_how_it_was_made(path, data):
    content = files.read_json(path)
    made, parameters = content["made"], content["parameters"]
    dataset = data(parameters)
    check_weights(made["checkpoints"])
    assert content["dataset"] == dataset.name
    assert made["classes_sha256"] == class_files.sha256(dataset.classes)
    assert made["split_sha256"] == store.split_sha256(dataset)
    stages = made["stages"]
    for shared, key in ((False, "wall_seconds"), (True, "shared_wall_seconds")):
        seconds = sum(stage["wall_seconds"] for stage in stages.values() if stage["shared"] == shared)
        assert made[key] == pytest.approx(seconds, abs=0.02)
    for row in content["rows"]:
        check_row(row, dataset.name)
        assert (row["labelled"], row["seed"]) == (len(dataset.labelled), parameters["seed"])  # a part is a number here
        assert row["images"] == len(getattr(dataset, row["split"]))
        check_seconds(row, {name: stage["wall_seconds"] for name, stage in stages.items()}, shared=True)


@named(POINTS)
def test_what_points_share_is_the_same_in_all(path):
    """A fingerprint stands for all that a stage was made with: two points of a run that share a stage agree in it."""
    mine = files.read_json(path)
    for other in path.parent.glob("*.json"):
        theirs = files.read_json(other)
        same = {key for key in mine["parameters"] if mine["parameters"][key] == theirs["parameters"].get(key)}
        if same >= mine["parameters"].keys() - {"seed", "labelled"}:
            for stage in ("masks", "segments"):
                both = [point["made"]["stages"].get(stage, {}).get("fingerprint") for point in (mine, theirs)]
                assert both[0] == both[1], f"{stage} of {path.stem} and {other.stem}"


def test_each_published_json_is_one_that_these_tests_know():
    """A new kind of result comes with its check."""
    known = {*SUMMARIES, *GRIDS, *POINTS, run.PUBLISHED / "reliability.json"}
    known |= {path for summary in SUMMARIES for name in ("0*.json", "run.json") for path in summary.parent.glob(name)}
    rest = {path.relative_to(run.PUBLISHED).parts[0] for path in run.PUBLISHED.rglob("*.json") if path not in known}
    read_by_readme = set("bench chosen_words demo_seeds full_size miniatures review".split())
    without_own_numbers = {"paper_figures", "labels_that_harm"}
    assert rest - {"local"} == read_by_readme | without_own_numbers  # the former are compared in test_readme.py
    for path in run.PUBLISHED.glob("*/*.yaml"):
        yaml.safe_load(path.read_text(encoding="utf-8"))
