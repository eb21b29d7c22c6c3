"""The scorer: `python -m plg_utils.score` over folders of label maps."""

import json
import re
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from plg_utils import files, metrics, score

CLASSES = "{background: [], classes: [{name: cat}, {name: dog}]}"
TRUTH = {"a": [[0, 0, 1, 1], [255, 0, 1, 1]], "b": [[0, 2, 2, 0], [0, 2, 2, 0]], "c": [[0, 0, 0, 0], [0, 0, 1, 1]]}
PREDICTIONS = {
    "a": [[0, 0, 1, 255], [0, 0, 1, 1]],
    "b": [[0, 2, 2, 0], [0, 1, 2, 0]],
    "c": [[0, 0, 0, 0], [0, 0, 1, 1]],
}


@pytest.fixture
def world(tmp_path):
    """Three tiny label maps with their truth, and a class file: folders, paths and a way to run the scorer."""
    for folder, maps in (("truth", TRUTH), ("given", PREDICTIONS)):
        for name, values in maps.items():
            files.write_label(tmp_path / folder / f"{name}.png", np.array(values, np.uint8))
    (tmp_path / "pets.yaml").write_text(CLASSES)
    given, truth = tmp_path / "given", tmp_path / "truth"
    start = [str(given), str(truth), "--classes", str(tmp_path / "pets.yaml")]
    return SimpleNamespace(root=tmp_path, given=given, truth=truth, start=start)


def scored(world, *more):
    """What the scorer writes as JSON."""
    assert score.main([*world.start, "--json", str(world.root / "out" / "scores.json"), *more]) == 0
    return json.loads((world.root / "out" / "scores.json").read_text())


def test_a_folder_is_scored_by_hand(world, capsys):
    scores = scored(world)
    printed = capsys.readouterr().out
    # one uncovered cat becomes background, one dog a cat: background 13 of 14, cat 5 of 7, dog 3 of 4
    assert scores["iou"] == pytest.approx({"background": 13 / 14, "cat": 5 / 7, "dog": 3 / 4})
    assert scores["miou"] == pytest.approx((13 / 14 + 5 / 7 + 3 / 4) / 3)
    assert scores["miou_uncovered_missed"] == pytest.approx((1 + 5 / 7 + 3 / 4) / 3)
    assert scores["coverage"] == pytest.approx(22 / 23)
    pairs = [(np.array(TRUTH[id]), np.array(PREDICTIONS[id])) for id in TRUTH]
    assert scores["confusion"] == sum(metrics.confusion(*pair, 3) for pair in pairs).tolist()
    assert scores["precision"] == pytest.approx({"background": 13 / 14, "cat": 5 / 6, "dog": 1})
    assert scores["recall"] == pytest.approx({"background": 1, "cat": 5 / 6, "dog": 3 / 4})
    lines = printed.splitlines()
    assert [line.split()[0] for line in lines[1:4]] == ["background", "cat", "dog"]
    assert lines[2].split() == ["cat", "71.43", "83.33", "83.33", "6"]
    assert "79.76" in lines[4] and "82.14" in lines[5]
    assert lines[6].split() == ["coverage", "95.65"] and lines[7].split() == ["images", "3"]
    assert score.main([str(world.given), str(world.truth), "--classes", "cat, dog"]) == 0  # as plg label takes them
    assert capsys.readouterr().out == printed
    many = ", ".join(["cat", "dog", *(f"thing number {index}" for index in range(30))])  # longer than a path may be
    for names in (many, many.replace(", ", "\n")):
        assert score.main([str(world.given), str(world.truth), "--classes", names]) == 0
        assert capsys.readouterr().out.splitlines()[2].split() == lines[2].split()
    for wrong, says in (
        ("pets.yaml", "there is no class file pets.yaml: give one of"),
        ("a/pets", "is no single name and no file that is"),
    ):
        assert score.main([str(world.given), str(world.truth), "--classes", wrong]) == 1
        assert says in capsys.readouterr().err


def test_one_name_is_one_class(world, capsys):
    for folder in (world.given, world.truth):
        for path in folder.iterdir():
            files.write_label(path, np.minimum(files.read_label(path), 1))
    for names in ("person", "person,"):
        assert score.main([str(world.given), str(world.truth), "--classes", names]) == 0
        assert [line.split()[0] for line in capsys.readouterr().out.splitlines()[1:3]] == ["background", "person"]


def test_it_runs_as_a_program_without_torch(world):
    code = (
        "import runpy, sys; sys.argv[0] = 'score'\n"
        "try: runpy.run_module('plg_utils.score', run_name='__main__')\n"
        "finally: print('torch' in sys.modules, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code, *world.start], capture_output=True, text=True, cwd=world.root)
    assert done.returncode == 0 and done.stderr == "False\n" and "79.76" in done.stdout


def test_grey_maps_other_ends_of_names_and_maps_without_truth_change_nothing(world, capsys):
    usual = scored(world)
    files.write_label(world.given / "z.png", np.full((2, 2), 77, np.uint8))
    (world.given / ".hidden.png").write_text("")
    Image.fromarray(np.array(PREDICTIONS["a"], np.uint8)).save(world.given / "a.png")  # grey
    (world.given / "c.png").rename(world.given / "c.PNG")
    assert scored(world) == usual | {"left_out": ["z"]}
    assert capsys.readouterr().err == "left out, no truth has this name: z\n"


def test_a_list_of_ids_chooses(world, capsys):
    (world.root / "list.txt").write_text("c\n\n a \n")
    scores = scored(world, "--ids", str(world.root / "list.txt"))
    assert scores["images"] == 2 and scores["iou"]["dog"] is None and scores["precision"]["dog"] is None
    printed = capsys.readouterr()
    assert re.search(r"^dog +- +- +- +0$", printed.out, re.MULTILINE)
    assert printed.err == f"left out, not in {world.root / 'list.txt'}: b\n"


def test_a_missing_prediction_is_refused_or_counted_as_uncovered(world, capsys):
    for name in "ac":
        (world.given / f"{name}.png").unlink()
    assert score.main(world.start) == 1
    error = capsys.readouterr().err
    assert "no PNG for a, c of" in error and "--allow-missing" in error
    scores = scored(world, "--allow-missing")
    assert "there is no prediction: a, c" in capsys.readouterr().err
    assert scores["missing"] == ["a", "c"] and scores["coverage"] == pytest.approx(8 / 23) and scores["images"] == 3
    # uncovered pixels are background: the nine true ones of a and c are hits, the six cats are not
    assert scores["iou"] == pytest.approx({"background": 13 / 19, "cat": 0, "dog": 3 / 4})


def test_without_background_an_uncovered_pixel_is_a_miss(world):
    (world.root / "pets.yaml").write_text("classes: [{name: floor}, {name: cat}, {name: dog}]")
    scores = scored(world)
    assert scores["miou"] == scores["miou_uncovered_missed"] == pytest.approx((1 + 5 / 7 + 3 / 4) / 3)


def test_void_of_camvids_own_label_maps(world, capsys):
    for folder, values in ((world.truth, [[0, 11], [4, 4]]), (world.given, [[0, 3], [4, 1]])):
        for id in TRUTH:
            label(folder / f"{id}.png", values)
    world.start[-1] = "camvid"
    scores = scored(world)
    assert scores["iou"]["sky"] == 1 and scores["miou"] == pytest.approx((1 + 1 / 2) / 2)
    label(world.given / "a.png", [[0, 11], [4, 4]])  # which no prediction may hold
    assert score.main(world.start) == 1 and "the value 11" in capsys.readouterr().err


def label(path, values):
    files.write_label(path, np.array(values, np.uint8))


BAD = {
    "no PNG": (lambda w: [path.unlink() for path in w.given.iterdir()], "given holds no label map whose name"),
    "other names": (
        lambda w: [path.rename(f"{path.parent}/x{path.name}") for path in w.given.iterdir()],
        "xa, xb, xc, but",
    ),
    "many missing": (lambda w: [label(w.truth / f"{id}.png", [[0]]) for id in "defgh"], r"d, e, f, ... \(5 in all\)"),
    "two of a name": (lambda w: (w.given / "a.PNG").write_text(""), "given holds two PNG called a: remove one"),
    "size": (lambda w: label(w.given / "b.png", np.zeros((4, 2))), r"b.png .*\(4, 2\): score"),
    "value": (lambda w: label(w.given / "b.png", [[3] * 4] * 2), "b.png .*label .*value 3; .*the classes"),
    "in truth": (lambda w: label(w.truth / "b.png", [[9] * 4] * 2), "b.png .*truth .*value 9; .*the classes"),
    "all void": (lambda w: [label(w.truth / f"{id}.png", [[255] * 4] * 2) for id in TRUTH], "nothing to score"),
    "json": (lambda w: w.start.extend(["--json", f"{w.root}/pets.yaml/x"]), "pets.yaml/x .*give the name of a file"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_message_that_helps(case, world, capsys):
    """More of it, and bad lists of ids, are in test_bad_inputs."""
    spoil, message = BAD[case]
    spoil(world)
    assert score.main(world.start) == 1
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1 and re.match(f"error: .*{message}", error), error
