"""notebooks/grid.py: what a grid expands to, what counts as done, what points share, what is told of them."""

import itertools
import json
import os
import re
import shutil
from types import SimpleNamespace

import grid
import numpy as np
import pytest
import run
from test_run import call, write_notebook, write_run

from conftest import COLOURS
from plg_utils import datasets, files, store
from plg_utils.records import Dataset, Sample

PLACE = '\ndevice = "auto"\nimages_at_once = 8\nprocesses = 1'
LABELS = 'run = "demo"\ndataset = "toy"\ndataset_options = {}\nlabelled = 12\nseed = 0\nmask_model = "sam"\n'
LABELS += f'mask_options = {{"min_area": 8}}\nthreshold = None{PLACE}'
TRAINING = 'run = "demo"\nlabelled = 12\nseed = 0\nsteps = 3\nrate = 0.5\nmethods = ["supervised", "direct"]'
GRID = "grid: {labelled: [12, 24], seed: [0, 1]}"
NAMES = ["labelled=12,seed=0", "labelled=12,seed=1", "labelled=24,seed=0", "labelled=24,seed=1"]


def scenes(seed):
    """A labelled image that depends on the seed, and three others."""
    image = np.zeros((2, 2, 3), dtype=np.uint8)
    labelled, *others = (
        Sample(id, lambda: image) for id in (f"labelled_{seed}", *(f"unlabelled_{k}" for k in range(3)))
    )
    return Dataset("toy", COLOURS, (labelled,), tuple(others))


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """Two notebooks, a run `toy` with a grid of four points, and `execute` replaced by what kernels would do.

    .executed: (notebook, run) of each call; .masks: images whose masks were made; .failing: runs that fail in training
    """
    folders = {name: tmp_path / name for name in ("notebooks", "published")}
    for folder in folders.values():
        folder.mkdir()
    write_notebook(folders["notebooks"] / "01_labels.ipynb", LABELS, 'print("labels")')
    write_notebook(folders["notebooks"] / "02_training.ipynb", TRAINING, 'print("trains")')
    write_run(folders, GRID)
    world = SimpleNamespace(folders=folders, folder=tmp_path / "results" / "toy", executed=[], masks=[], failing=set())
    monkeypatch.setenv("PLG_RESULTS", str(tmp_path / "results"))
    monkeypatch.setattr(run, "threads_for", lambda known: {})  # it looks at the machine for half a second
    monkeypatch.setattr(store, "git_commit", lambda: "a" * 40)
    monkeypatch.setattr(store, "package_versions", lambda: {"torch": "2.11.0"})

    def execute(step, prints):
        own = run.defaults(step.notebook) | step.parameters
        world.executed.append((step.notebook.stem, own["run"]))
        folder = store.run_folder(own["run"])  # as in a kernel: by PLG_RESULTS and the parameter
        data = scenes(own.get("seed", 0))
        if step.notebook.stem == "01_labels":
            stage = store.stage(folder / "masks", parameters=own["mask_options"], dataset=data)
            for sample in stage.todo([*data.labelled, *data.unlabelled], [".json"]):
                files.write_json(stage.path(sample.id, ".json"), own["mask_options"]["min_area"])
                world.masks.append(sample.id)
            stage.finish(images=4)
            return
        if own["run"] in world.failing:
            raise ValueError("the loss is not a number")
        given = {"parameters": {"steps": own["steps"]}, "seed": own["seed"], "parents": [folder / "masks"]}
        store.stage(folder / "network", dataset=data, **given).finish(steps=own["steps"])
        gain = {"supervised": 0.0, "direct": (0.1, -0.02, 0.0)[own["seed"]]}
        rows = [
            {"stage": "segmenter", "method": method, "labels": None, "split": "val", "labelled": 0, "options": {}}
            | {"checkpoint": "last", "seed": own["seed"], "miou": own["labelled"] / 100 + gain[method]}
            for method in own["methods"]
        ]
        manifest = {path.parent.name: files.read_json(path) for path in folder.glob("*/manifest.json")}
        summary = {"run": own["run"], "dataset": "toy", "rows": rows, "manifest": manifest}
        files.write_json(folder / "summary.json", summary)

    monkeypatch.setattr(run, "execute", execute)
    world.execute = execute
    world.call = lambda *arguments: call(folders, "toy", *arguments)
    world.point = lambda name: files.read_json(world.folder / "points" / f"{name}.json")
    return world


# What a grid expands to


def expand(toy, *given):
    recipe = run.read("toy", **toy.folders)
    axes = run.axes_of(recipe, list(given), {})
    return run.grid_of(recipe, axes, {}, toy.folder, toy.folders["published"] / "toy")


def test_points_come_in_the_order_of_the_notebooks_parameters_last_one_fastest(toy):
    write_run(toy.folders, "")
    points = expand(toy, ("seed", "0,1"), ("labelled", " 12, 24 ")).points
    assert [point.name for point in points] == NAMES
    assert points[1].values == {"labelled": 12, "seed": 1}
    assert points[1].steps[1].parameters == {"run": NAMES[1], "labelled": 12, "seed": 1}
    points = expand(toy, ("methods", "[[supervised], [supervised, direct]]")).points
    assert [point.values["methods"] for point in points] == [["supervised"], ["supervised", "direct"]]
    write_run(toy.folders, GRID)
    points = expand(toy, ("labelled", "48"), ("rate", "1e-3,0.5")).points  # one of the file's, one more
    assert [point.name for point in points[:2]] == ["labelled=48,seed=0,rate=0.001", "labelled=48,seed=0,rate=0.5"]
    assert len(points) == 4


def test_names_are_safe_and_differ_where_values_do():
    simple = {12: "12", 0.001: "0.001", None: "null", True: "true", "fusion": "fusion", "bf16": "bf16"}
    assert {value: grid.text_of(value) for value in simple} == simple
    values = ["ViT-B/16", "vit-b-16", "VIT-B-16", "null", None, "true", True, "12", 12, "", "../x", ["a", "b"], "a b"]
    values += [{"checkpoint": "a"}, {"checkpoint": "b"}, "x" * 300, "x" * 301, "é", "a,b=c"]
    names = [grid.name_of({"encoder": value}) for value in values]
    assert len({name.casefold() for name in names}) == len(values)
    assert all(files.check_stem(name) == name and name.isascii() and len(name) < 60 for name in names)
    long = [grid.name_of({f"p{k}": {"a": "b" * 20} for k in range(20)} | {"seed": seed}) for seed in (0, 1)]
    assert max(map(len, long)) == grid.LONGEST and long[0] != long[1]
    assert grid.same(1, 1.0) and not grid.same(1, True)


# Refused before any work


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["-g", "seed", "0", "-g", "seed", "1"], "-g seed is given 2 times: write all its values in one list"),
        (["-g", "steps", ""], "the grid has steps: []; give a list of at least one value"),
        (["-g", "steps", "1,,2"], "the list of steps is not readable YAML"),
        (["-g", "steps", "1,true"], "steps is True, a bool; give a value of type int, such as the default 3"),
        (["-g", "rate", "1e-3,0.001"], "the list of rate holds 0.001 twice: keep one"),
        (["--publish"], "no point of toy is finished: run first"),
        (["--stages"], "toy is a grid: start the grid several times"),
    ],
    ids=str,
)
def test_a_wrong_grid_is_refused(toy, arguments, says):
    """More of these are in test_bad_inputs."""
    code, out, err = toy.call(*arguments)
    assert (code, out, toy.executed) == (2, "", []) and says in err
    assert not toy.folder.exists()


# Making


def test_each_point_leaves_one_small_json_and_is_made_once(toy):
    assert toy.call()[0] == 0
    assert [name for _, name in toy.executed] == [name for name in NAMES for _ in range(2)]
    assert sorted(os.listdir(toy.folder / "points")) == [f"{name}.json" for name in NAMES]
    point = toy.point(NAMES[1])
    assert point["point"] == {"labelled": 12, "seed": 1} and point["parameters"]["steps"] == 3  # a default
    assert [row["miou"] for row in point["rows"]] == pytest.approx([0.12, 0.1])
    made = point["made"]
    assert (made["git_commit"], made["packages"], made["device"]) == ("a" * 40, {"torch": "2.11.0"}, "cpu")
    assert made["stages"]["masks"]["shared"] and not made["stages"]["network"]["shared"]
    content = files.read_json(toy.folder / "grid.json")
    collected = [(row["point"], row["labelled"], row["seed"], row["method"]) for row in content["rows"]]
    assert collected == [(n, int(n[9:11]), int(n[-1]), method) for n in NAMES for method in ("supervised", "direct")]
    assert content["grid"] == {"labelled": [12, 24], "seed": [0, 1]} and content["missing"] == []
    # Masks are made once for all points; a seed has its own labelled image.
    assert sorted(toy.masks) == ["labelled_0", "labelled_1", "unlabelled_0", "unlabelled_1", "unlabelled_2"]
    (toy.folder / "points" / f"{NAMES[2]}.json").unlink()
    toy.executed.clear()
    toy.failing.add(NAMES[2])
    toy.call()
    assert toy.executed == [("01_labels", NAMES[2]), ("02_training", NAMES[2])]
    link = toy.folder / "points" / NAMES[2] / "masks"
    assert not os.path.isabs(os.readlink(link)) and link.resolve().parent == (toy.folder / "shared").resolve()


def test_what_stages_disagree_in_is_listed_and_shared_time_is_apart(toy, tmp_path):
    stages = {
        "masks": {"device": "cuda", "checkpoints": {"sam": "1f"}, "wall_seconds": 60.0, "split_sha256": "another's"},
        "network": {"device": "cpu", "checkpoints": {"resnet": "2e"}, "wall_seconds": 5.0, "peak_memory_mb": 90.0},
        "predictions": {"device": "cpu", "wall_seconds": 1.5, "peak_memory_mb": 80.0, "split_sha256": "own"},
    }
    files.write_json(tmp_path / "summary.json", {"dataset": "toy", "rows": [], "manifest": stages})
    points = expand(toy)
    made = grid.record(points, points.points[0], tmp_path)["made"]
    assert (made["device"], made["checkpoints"]) == (["cuda", "cpu"], {"sam": "1f", "resnet": "2e"})
    assert (made["wall_seconds"], made["shared_wall_seconds"], made["peak_memory_mb"]) == (6.5, 60.0, 90.0)
    assert made["split_sha256"] == "own"


def test_a_point_made_otherwise_is_named_and_made_again(toy):
    toy.call()
    toy.executed.clear()
    for text, says in (("notebooks: [02_training]", "notebooks: ["), ("steps: 200", "steps: 3, now 200")):
        write_run(toy.folders, f"{GRID}\n{text}")
        listed = toy.call("--dry-run")[1]
        assert listed.count(says) == 4 and "4 points: 0 done, 4 to do" in listed
    out = toy.call()[1]
    assert out.count(f"is made again, {toy.folder}") == 4 and says in out and len(toy.executed) == 8


def test_a_broken_json_is_named_and_made_again(toy):
    toy.call()
    toy.executed.clear()
    path = toy.folder / "points" / f"{NAMES[0]}.json"
    for broken in (path.read_text()[:40], "[]", "{}", json.dumps(toy.point(NAMES[1]) | {"rows": None})):
        path.write_text(broken)
        assert f"{path}" in toy.call("--dry-run")[1]
        toy.call()
        assert toy.point(NAMES[0])["point"] == {"labelled": 12, "seed": 0}
    assert len(toy.executed) == 8


def touched(folder):
    for path in folder.glob("*/*.png"):
        path.touch()
    (folder / "classes.yaml").write_text("[cat,   dog]")


CHANGES = {  # of the files of a point; the two last leave it done: nothing differs, or nothing is here
    "photo": lambda folder: files.write_image(folder / "photos" / "0.png", np.ones((8, 8, 3), np.uint8)),
    "label map": lambda folder: files.write_label(folder / "truth" / "1.png", np.full((8, 8), 2, np.uint8)),
    "classes": lambda folder: (folder / "classes.yaml").write_text("[dog, cat]"),
    "weights": lambda folder: (folder / "sam.pth").write_bytes(b"2"),
    "times": touched,
    "everything": shutil.rmtree,
}
REFUSED = {  # file that the refusal names
    "0.png": lambda folder: (folder / "photos" / "0.png").write_bytes(b"no photo"),
    "classes.yaml": lambda folder: (folder / "classes.yaml").write_text("classes: 3"),
    "truth": lambda folder: shutil.rmtree(folder / "truth"),
}


@pytest.fixture
def own_files(toy, tmp_path):
    """Folder of photos, label maps, classes and weights; the run `toy` has a point that is made from them."""
    folder = tmp_path / "own"
    for number in range(3):
        files.write_image(folder / "photos" / f"{number}.png", np.full((8, 8, 3), 50 * number, np.uint8))
        files.write_label(folder / "truth" / f"{number}.png", np.ones((8, 8), np.uint8))
    (folder / "classes.yaml").write_text("[cat, dog]")
    (folder / "sam.pth").write_bytes(b"1")
    options = {"root": str(folder / "photos"), "labels": str(folder / "truth"), "classes": str(folder / "classes.yaml")}
    path = toy.folders["notebooks"] / "02_training.ipynb"
    more = f"dataset = 'folder'  # x\ndataset_options = {options}  # x\nsegmenter_options = {{}}  # x"
    write_notebook(path, f"{TRAINING}\n{more}", 'print("trains")')
    write_run(toy.folders, f"grid: {{labelled: [2]}}\nsegmenter_options: {{pretrained: {folder / 'sam.pth'}}}")
    return folder


@pytest.mark.parametrize("change", CHANGES)
def test_points_of_other_photos_labels_classes_or_weights_are_made_again(change, toy, own_files):
    """Their parameters are the same. Where nothing is there, as on another machine, a point counts as done."""
    for command in ([], ["--publish"]):
        assert toy.call(*command)[0] == 0
    CHANGES[change](own_files)
    is_done = change in ("times", "everything")
    listed = toy.call("--dry-run")[1]
    assert f"1 points: {int(is_done)} done, {int(not is_done)} to do" in listed
    assert listed.count("photos, label maps, classes or weights have changed since") == 2 * (not is_done)
    if not is_done:
        toy.call()
        assert "1 points: 1 done, 0 to do" in toy.call("--dry-run")[1]


@pytest.mark.parametrize("says", REFUSED)
def test_a_point_whose_data_set_is_refused_is_not_done(says, toy, own_files):
    """Only photos that are not on this machine leave a published point as it is."""
    for command in ([], ["--publish"]):
        assert toy.call(*command)[0] == 0
    REFUSED[says](own_files)
    listed = toy.call("--dry-run")[1]
    assert "1 points: 0 done, 1 to do" in listed and listed.count("its data set is refused now: ") == 2
    assert says in listed
    shutil.rmtree(own_files / "photos")
    assert "1 points: 1 done, 0 to do" in toy.call("--dry-run")[1]


@pytest.mark.parametrize("name", [name for name in datasets.choices() if name != "storybook"])  # which draws its own
def test_the_folder_of_a_data_set_in_the_data_folder(name, tmp_path, monkeypatch):
    monkeypatch.setenv("PLG_DATA", str(tmp_path))
    with pytest.raises((OSError, ValueError), match=rf"{re.escape(str(tmp_path / grid.ROOTS.get(name, name)))}\b"):
        datasets.load(name, **{"classes": ["cat"]} if name == "folder" else {})
    known = {"dataset": name, "dataset_options": {"classes": ["cat"]} if name == "folder" else {}}
    known |= {"labelled": 1, "seed": 0}
    point = grid.Point("a", {}, [SimpleNamespace(known=known, notebook=tmp_path / "01_data.ipynb")])
    assert grid.inputs_sha256(point) is None
    (tmp_path / grid.ROOTS.get(name, name)).mkdir()
    with pytest.raises((OSError, ValueError)):
        grid.inputs_sha256(point)


def test_what_was_published_counts_as_done_elsewhere(toy, monkeypatch, tmp_path):
    toy.call()
    toy.call("--publish")
    target = toy.folders["published"] / "toy"
    names = sorted(path.relative_to(target).as_posix() for path in target.rglob("*") if path.is_file())
    assert names == sorted(["grid.json", "parameters.yaml", *(f"points/{name}.json" for name in NAMES)])
    toy.executed.clear()
    monkeypatch.setenv("PLG_RESULTS", str(tmp_path / "another machine"))
    assert "4 points: 4 done, 0 to do" in toy.call("--dry-run")[1]
    code, out, _ = toy.call("-g", "seed", "0,1,2")
    assert code == 0
    assert {name for _, name in toy.executed} == {"labelled=12,seed=2", "labelled=24,seed=2"}
    collected = files.read_json(tmp_path / "another machine" / "toy" / "grid.json")
    assert len(collected["rows"]) == 12
    write_run(toy.folders, "grid: {labelled: [12, 24], seed: [0, 1, 2, 3]}")  # of which 3 is still to come
    code, out, _ = toy.call("--publish")
    assert code == 0
    assert "2 of 8 points are not done: labelled=12,seed=3 labelled=24,seed=3" in out
    assert len(list(target.glob("points/*.json"))) == 6


def test_a_failing_point_is_named_and_the_others_go_on(toy):
    toy.failing.add(NAMES[1])
    code, out, err = toy.call()
    assert code == 1 and "ValueError: the loss is not a number" in err
    assert str(toy.folder / "points" / NAMES[1] / "notebooks" / "02_training.partial.ipynb") in err
    assert f"1 of 4 points failed: {NAMES[1]}" in err and f"1 of 4 points are not done: {NAMES[1]}" in out
    assert set(os.listdir(toy.folder / "points")) == {NAMES[1], *(f"{name}.json" for name in NAMES if name != NAMES[1])}
    toy.failing.clear()
    toy.executed.clear()
    assert toy.call()[0] == 0
    assert toy.executed == [("01_labels", NAMES[1]), ("02_training", NAMES[1])]
    write_run(toy.folders, f"{GRID}\nnotebooks: [01_labels]")
    code, _, err = toy.call()
    assert code == 1 and f"{NAMES[0]} failed" in err and "it left no summary.json: add the notebook" in err


def test_a_folder_begun_with_other_parameters_is_emptied_before_work(toy):
    toy.failing.add(NAMES[0])
    toy.call()
    stale = toy.folder / "points" / NAMES[0] / "predictions_old"
    stale.mkdir()
    masks = stale.with_name("masks")
    masks.unlink()
    masks.mkdir()  # of a version that did not share them
    toy.call()
    assert stale.exists() and masks.is_symlink()  # the same parameters: it is gone on with
    write_run(toy.folders, f"{GRID}\nsteps: 200")
    _, out, _ = toy.call()
    assert f"{NAMES[0]}: starts again, steps: 3, now 200" in out
    assert not stale.exists()


def test_a_point_or_shared_stage_that_another_makes_is_left_to_it(toy, monkeypatch):
    with grid.lock(toy.folder / "locks" / f"{NAMES[0]}.lock") as holder:
        assert holder == ""
        code, out, _ = toy.call()
    assert code == 0 and f"{NAMES[0]} is being made by process {os.getpid()} on " in out
    assert {name for _, name in toy.executed} == set(NAMES[1:])
    held = {}

    def execute(step, prints):
        found = []
        for path in sorted((toy.folder / "locks").glob("masks-*.lock")):
            with grid.lock(path) as holder:
                found.append(bool(holder))
        held[step.notebook.stem] = found
        toy.execute(step, prints)

    monkeypatch.setattr(run, "execute", execute)
    toy.call("-g", "seed", "0", "-g", "labelled", "12")  # the first point
    assert held == {"01_labels": [True], "02_training": [False]}


# Sharing


def test_points_with_other_masks_get_another_folder_and_empty_none(toy):
    write_run(toy.folders, "grid: {mask_options: [{min_area: 8}, {min_area: 16}], seed: [0, 1]}")
    _, out, _ = toy.call()
    assert "starts again" not in out
    assert sorted(files.read_json(path) for path in toy.folder.glob("shared/*/unlabelled_0.json")) == [8, 16]
    assert len(toy.masks) == 2 * 5
    toy.call("-p", "steps", "4")
    assert len(toy.masks) == 2 * 5


def test_another_device_and_an_option_that_is_off_by_default_leave_finished_points_done(toy):
    toy.call()
    toy.executed.clear()
    write_notebook(toy.folders["notebooks"] / "02_training.ipynb", f"{TRAINING}\nema = None", 'print("trains")')
    toy.call("-p", "device", "cpu", "-p", "images_at_once", "2", "-p", "processes", "2")
    assert toy.executed == []
    toy.call("-p", "ema", "0.9")
    assert len(toy.executed) == 8


def test_what_reaches_a_shared_stage_are_the_parameters_of_its_functions():
    masks, segments, network = (grid.reaching(stage) for stage in ("masks", "segments", "cam_network"))
    assert masks == {"dataset", "dataset_options", "mask_model", "mask_options"}
    assert segments == masks | {"encoder", "encoder_options", "embedding_options"}
    assert {"labelled", "seed", "classifier_steps"} <= network and "device" not in network
    for stage in grid.SHARED:  # the notebooks have all of them
        assert grid.reaching(stage) <= {name for path in run.NOTEBOOKS.glob("0*.ipynb") for name in run.defaults(path)}
    two, six = "02_zero_shot_labels", "06_compare_labellers"  # the notebooks that write them
    for name, more in (("labeller_networks", {"cam_network": six}), ("demo", {})):  # 00 has these too, for one image
        points = run.grid_of(run.read(name), {"seed": [0]}, {}, run.NOTEBOOKS, run.NOTEBOOKS)
        assert points.writers == {"masks": two, "segments": two} | more


# Tables


def row(method, seed, miou, **more):
    """A row of grid.json."""
    row = {"stage": "segmenter", "method": method, "split": "val", "seed": seed, "miou": miou, "options": {}}
    return row | {"checkpoint": "last", "labelled": 12, "point": "p"} | more


def cells(rows, against=None, **axes):
    """Table of a grid.json with these rows: its cells below the header."""
    text = grid.table({"run": "toy", "grid": axes | {"seed": [0, 1]}, "rows": rows}, against)
    return [line.split() for line in text.splitlines()[1:]]


def test_the_table_averages_over_seeds_alone(toy):
    _, out, _ = toy.call("-g", "seed", "0,1,2", "--against", "supervised")
    lines = [" ".join(line.split()) for line in out.splitlines()]
    # direct, 12 labelled: 22, 10 and 12; mean 14.67, sample standard deviation 6.43
    assert "segmenter direct val 12 3 14.7 ± 6.4" in lines and "segmenter supervised val 24 3 24.0 ± 0.0" in lines
    # differences 10, -2 and 0; mean 2.67, the same deviation
    assert "segmenter direct val 24 3 +2.7 ± 6.4 0: +10.0 1: -2.0 2: +0.0" in lines
    code, _, err = toy.call("--against", "supervise")
    assert code == 2 and "'supervise', only supervised, direct; did you mean 'supervised'?" in err
    # One seed has no deviation, a row without a value no line; rows that differ in an option are not averaged.
    rows = [row("direct", 0, 0.5), row("direct", 0, 0.7, options={"smoothing": 0}), row("other", 0, None)]
    assert [line[-4:] for line in cells(rows)] == [["1", "50.0", "±", "-"], ["1", "70.0", "±", "-"]]
    with pytest.raises(ValueError, match="two rows that .* cannot be averaged"):
        cells([*rows, rows[0]])


def test_pairs_are_of_the_same_point_but_for_methods():
    rows = []
    for rate, gain in ((1, 0.1), (2, -0.1)):
        for seed in (0, 1):
            rows.append(row("supervised", seed, 0.3 * rate + 0.1 * seed, methods=["supervised"], rate=rate))
            rows.append(row("direct", seed, 0.3 * rate + 0.1 * seed + gain, methods=["direct"], rate=rate))
    axes = {"methods": [["supervised"], ["direct"]], "rate": [1, 2]}
    ends = [line[-8:] for line in cells(rows, "supervised", **axes)]
    assert ends == [f"2 {gain} ± 0.0 0: {gain} 1: {gain}".split() for gain in ("+10.0", "-10.0")]
    alone = {"run": "toy", "grid": axes, "rows": rows[::2]}  # each point has one method, compared with itself
    assert grid.table(alone, "supervised") == grid.table(alone | {"rows": []}, "direct") == "no rows to compare"
    first = cells(rows[1:], "supervised", **axes)[0]  # a seed without a partner
    assert first[-6:] == ["1", "+10.0", "±", "-", "1:", "+10.0"]


def test_lists_of_labelled_images_are_compared_each_by_itself():
    """Of as many labelled images: the mean is of one list, and so is the method that others are compared with."""
    measured = [("1_16", 0.5, 0.6), ("u2pl_1_16", 0.5, 0.4)]
    rows = []
    for seed, (listed, plain, direct) in itertools.product((0, 1), measured):
        rows += [row("supervised", seed, plain, split_name=listed), row("direct", seed, direct, split_name=listed)]
    means = [["1_16", "2", "50.0"], ["1_16", "2", "60.0"], ["u2pl_1_16", "2", "50.0"], ["u2pl_1_16", "2", "40.0"]]
    assert [line[-5:-2] for line in cells(rows)] == means
    gains = [[line[4], line[6]] for line in cells(rows, "supervised")]
    assert gains == [["1_16", "+10.0"], ["u2pl_1_16", "-10.0"]]
    assert "split_name" not in grid.table({"run": "toy", "grid": {"seed": [0]}, "rows": [row("direct", 0, 0.5)]})


def test_a_method_with_changed_options_is_compared_with_the_plain_one():
    rows = [row("direct", 0, 0.5), row("direct", 0, 0.6, options={"steps": "twice"}), row("unimatch", 0, 0.4)]
    twice, unimatch = cells(rows, "direct")
    assert "(steps=twice)" in twice and "+10.0" in twice and "unimatch" in unimatch and "-10.0" in unimatch
    with pytest.raises(ValueError, match="no row of the method 'direct'"):
        cells(rows[1:], "direct")
    # A row that was added gives way to the same one of the evaluation.
    mine, added = rows[0], row("direct", 0, 0.4, added="06")
    other = row("direct", 0, 0.6, options={"cam": "clip_text"}, added="06")
    assert grid.without_repeats([added, mine, other]) == [mine, other]
    assert grid.without_repeats([added]) == [added]


@pytest.mark.parametrize("name", sorted(path.parent.name for path in run.PUBLISHED.glob("*/parameters.yaml")))
def test_each_published_grid_expands_and_its_points_count_as_done(name, tmp_path):
    recipe = run.read(name)
    points = run.grid_of(recipe, run.axes_of(recipe, [], {}), {}, tmp_path, run.PUBLISHED / name)
    published = {path.stem for path in points.published.glob("points/*.json")}
    assert {point.name for point in points.points if grid.finished(points, point)[0]} == published
