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
TRUTH = {
    "a": [[0, 0, 1, 1], [255, 0, 1, 1]],
    "b": [[0, 2, 2, 0], [0, 2, 2, 0]],
    "c": [[0, 0, 0, 0], [0, 0, 1, 1]],
}
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


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run named trial with one row: the path of its summary.json."""
    monkeypatch.setenv("PLG_RESULTS", str(tmp_path / "results"))
    path = tmp_path / "results" / "trial" / "summary.json"
    row = {"stage": "zero_shot", "method": "sepl", "labels": "sepl", "iou": {"background": 1, "cat": 0.5, "dog": None}}
    files.write_json(path, {"run": "trial", "dataset": "pets", "rows": [row], "manifest": {"masks": {}}})
    return path


ROW = ["--add-to", "trial", "--stage", "segmenter", "--method", "their_tool"]


def by_hand():
    return sum(metrics.confusion(np.array(TRUTH[id]), np.array(PREDICTIONS[id]), 3) for id in TRUTH)


def test_a_folder_is_scored_as_the_metric_does(world, capsys):
    assert score.main([*world.start, "--json", str(world.root / "out" / "scores.json")]) == 0
    printed = capsys.readouterr().out
    found = json.loads((world.root / "out" / "scores.json").read_text())
    # one uncovered cat becomes background, one dog a cat: background 13 of 14, cat 5 of 7, dog 3 of 4
    assert found["iou"] == pytest.approx({"background": 13 / 14, "cat": 5 / 7, "dog": 3 / 4})
    assert found["miou"] == pytest.approx((13 / 14 + 5 / 7 + 3 / 4) / 3)
    assert found["miou_uncovered_missed"] == pytest.approx((1 + 5 / 7 + 3 / 4) / 3)
    assert found["coverage"] == pytest.approx(22 / 23) and found["images"] == 3
    assert found["confusion"] == by_hand().tolist()
    assert found["precision"] == pytest.approx({"background": 13 / 14, "cat": 5 / 6, "dog": 1})
    assert found["recall"] == pytest.approx({"background": 1, "cat": 5 / 6, "dog": 3 / 4})
    lines = printed.splitlines()
    assert [line.split()[0] for line in lines[1:4]] == ["background", "cat", "dog"]
    assert lines[2].split() == ["cat", "71.43", "83.33", "83.33", "6"]
    assert lines[4].startswith("mean IoU") and "79.76" in lines[4] and "82.14" in lines[5]
    assert lines[6].split() == ["coverage", "95.65"] and lines[7].split() == ["images", "3"]


def test_it_runs_as_a_program_without_torch(world):
    code = (
        "import runpy, sys; sys.argv[0] = 'metrics'\n"
        "try: runpy.run_module('plg_utils.score', run_name='__main__')\n"
        "finally: print('torch' in sys.modules, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code, *world.start], capture_output=True, text=True, cwd=world.root)
    assert done.returncode == 0 and done.stderr == "False\n" and "79.76" in done.stdout
    (world.given / "a.png").write_bytes(b"no image")
    done = subprocess.run(
        [sys.executable, "-m", "plg_utils.score", *world.start], capture_output=True, text=True, cwd=world.root
    )
    assert done.returncode == 1 and done.stdout == "" and done.stderr.startswith("error: ")
    assert len(done.stderr.splitlines()) == 1


def test_grey_and_palette_of_any_depth_score_alike(world, capsys):
    assert score.main(world.start) == 0
    usual = capsys.readouterr()
    Image.fromarray(np.array(PREDICTIONS["a"], np.uint8)).save(world.given / "a.png")  # grey
    image = Image.fromarray(np.array(PREDICTIONS["b"], np.uint8))
    image.putpalette([0, 0, 0, 9, 9, 9, 99, 99, 99])
    image.save(world.given / "b.png", bits=2)
    (world.given / "c.png").rename(world.given / "c.PNG")
    assert score.main(world.start) == 0
    assert capsys.readouterr() == usual


def test_a_list_of_ids_chooses(world, capsys):
    (world.root / "list.txt").write_text("c\n\n a \n")
    assert score.main([*world.start, "--ids", str(world.root / "list.txt"), "--json", str(world.root / "s")]) == 0
    found = json.loads((world.root / "s").read_text())
    assert found["images"] == 2 and found["iou"]["dog"] is None and found["precision"]["dog"] is None
    printed = capsys.readouterr()
    assert "-" in next(line for line in printed.out.splitlines() if line.startswith("dog")).split()
    assert printed.err == f"left out, not in {world.root / 'list.txt'}: b\n"


def test_a_missing_prediction_is_refused_or_counted_as_uncovered(world, capsys):
    for name in "ac":
        (world.given / f"{name}.png").unlink()
    assert score.main(world.start) == 1
    error = capsys.readouterr().err
    assert "no PNG for a, c of" in error and "--allow-missing" in error
    assert score.main([*world.start, "--allow-missing", "--json", str(world.root / "s")]) == 0
    assert "uncovered, since there is no prediction: a, c" in capsys.readouterr().err
    found = json.loads((world.root / "s").read_text())
    assert found["missing"] == ["a", "c"] and found["coverage"] == pytest.approx(8 / 23) and found["images"] == 3
    # uncovered pixels are background: the nine true ones of a and c are hits, the six cats are not
    assert found["iou"] == pytest.approx({"background": 13 / 19, "cat": 0, "dog": 3 / 4})


def test_many_missing_ones_are_counted_and_three_named(world, capsys):
    for name in "defgh":
        files.write_label(world.truth / f"{name}.png", np.zeros((2, 2), np.uint8))
    assert score.main(world.start) == 1
    assert "no PNG for d, e, f, ... (5 in all)" in capsys.readouterr().err


def test_a_prediction_without_truth_is_said_and_left_out(world, capsys):
    files.write_label(world.given / "z.png", np.full((2, 2), 77, np.uint8))
    (world.given / ".a.png.partial").write_text("")
    (world.given / ".hidden.png").write_text("")
    assert score.main([*world.start, "--json", str(world.root / "s")]) == 0
    assert capsys.readouterr().err == "left out, for want of a truth to compare with: z\n"
    found = json.loads((world.root / "s").read_text())
    assert found["images"] == 3 and found["left_out"] == ["z"]


def test_a_class_file_without_background_knows_no_default_class(world):
    (world.root / "pets.yaml").write_text("classes: [{name: floor}, {name: cat}, {name: dog}]")
    assert score.main([*world.start, "--json", str(world.root / "s")]) == 0
    found = json.loads((world.root / "s").read_text())
    assert found["miou"] == found["miou_uncovered_missed"] == pytest.approx((1 + 5 / 7 + 3 / 4) / 3)


def broken(path, content=b"\x89PNG\r\n\x1a\nno more"):
    path.write_bytes(content)


def colours(path):
    Image.fromarray(np.zeros((2, 4, 3), np.uint8)).save(path)


def cut(path):
    path.write_bytes(path.read_bytes()[:-30])


def jpeg(path):
    Image.fromarray(np.zeros((2, 4), np.uint8)).save(path, format="JPEG")


BAD = {
    "no folder": (lambda w: w.start.__setitem__(0, f"{w.root}/nowhere"), "nowhere is not a folder: give one"),
    "no truth": (lambda w: w.start.__setitem__(1, f"{w.root}/nowhere"), "nowhere is not a folder: give one"),
    "no PNG": (lambda w: [path.unlink() for path in w.given.glob("*")], "given holds no PNG: label maps lie directly"),
    "other names": (
        lambda w: [path.rename(w.given / f"x{path.name}") for path in w.given.glob("*")],
        "xa, xb, xc, but",
    ),
    "two of a name": (lambda w: (w.given / "a.PNG").write_text(""), "holds both a.PNG and a.png: remove one"),
    "no classes": (lambda w: w.start.__setitem__(3, "pets"), "--classes pets: neither one of .*voc nor a file"),
    "class file": (lambda w: (w.root / "pets.yaml").write_text("classes: 3"), "pets.yaml: `classes` must be a list"),
    "size": (lambda w: files.write_label(w.given / "b.png", np.zeros((4, 2), np.uint8)), r"b.png .*\(4, 2\): score"),
    "value": (
        lambda w: files.write_label(w.given / "b.png", np.full((2, 4), 3, np.uint8)),
        "b.png .*label .*value 3; .*the classes",
    ),
    "in truth": (
        lambda w: files.write_label(w.truth / "b.png", np.full((2, 4), 9, np.uint8)),
        "b.png .*truth .*value 9; .*the classes",
    ),
    "broken": (lambda w: broken(w.given / "b.png"), "given/b.png is not a readable label map .*write it again"),
    "cut": (lambda w: cut(w.truth / "b.png"), "truth/b.png is not a readable label map .*write it again"),
    "empty": (lambda w: broken(w.given / "b.png", b""), "given/b.png is not a readable"),
    "colours": (lambda w: colours(w.given / "b.png"), "b.png holds uint8 .*not colours"),
    "jpeg": (lambda w: jpeg(w.given / "b.png"), "b.png is a JPEG"),
    "all void": (
        lambda w: [files.write_label(w.truth / f"{id}.png", np.full((2, 4), 255, np.uint8)) for id in TRUTH],
        "nothing to score",
    ),
    "json": (lambda w: w.start.extend(["--json", f"{w.root}/pets.yaml/x"]), "pets.yaml"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_message_that_helps(case, world, capsys):
    spoil, message = BAD[case]
    spoil(world)
    assert score.main(world.start) == 1
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1 and re.match(f"error: .*{message}", error), error


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a\nb\na\n", "lists a more than once: give each image one line"),
        (b"\n", "is empty"),
        (b"a\nq\n", "holds no PNG for q of the list of ids"),
        (b"\xff\xfe\x00", "not a readable list"),
        (None, "not a readable list"),
    ],
)
def test_a_bad_list_of_ids_is_refused(content, message, world, capsys):
    if content is not None:
        (world.root / "list.txt").write_bytes(content)
    assert score.main([*world.start, "--ids", str(world.root / "list.txt")]) == 1
    assert message in capsys.readouterr().err


# A row of a run's table


def test_a_row_is_added_to_a_run(world, run, capsys):
    before = files.read_json(run)
    more = ["--labelled", "12", "--seed", "0", "--labels", "boxes", "--options", "{refine_target: zero_shot}"]
    assert score.main([*world.start, *ROW, *more]) == 0
    assert f"added to {run}" in capsys.readouterr().out
    after = files.read_json(run)
    assert {key: after[key] for key in before if key != "rows"} == {key: before[key] for key in before if key != "rows"}
    assert after["rows"][:1] == before["rows"] and len(after["rows"]) == 2
    row = after["rows"][1]
    numbers = {key: row.pop(key) for key in ("miou", "coverage", "miou_uncovered_missed")}
    assert numbers["miou"] == metrics.scores(by_hand()).mean_iou
    assert row.pop("iou") == pytest.approx({"background": 13 / 14, "cat": 5 / 7, "dog": 3 / 4})
    assert row == {
        "stage": "segmenter",
        "method": "their_tool",
        "labels": "boxes",
        "labelled": 12,
        "split_name": None,
        "seed": 0,
        "split": "val",
        "checkpoint": "last",
        "options": {"refine_target": "zero_shot"},
        "name": "their_tool",
        "images": 3,
        "seconds": None,
        "added": True,
    }


def test_rows_have_the_keys_of_the_evaluation_notebook(world, run):
    assert score.main([*world.start, *ROW]) == 0
    printed = files.read_json(files.ROOT / "results" / "demo" / "summary.json")["rows"]
    # the scorer marks its rows, and the notebook alone counts kinds of error
    assert {*files.read_json(run)["rows"][1]} ^ {*printed[0]} <= {"added", "wrong_pixels"}


def test_labels_are_their_own_method_and_count_on_the_unlabelled_split(world, run):
    assert score.main([*world.start, "--add-to", "trial", "--stage", "zero_shot", "--method", "cam"]) == 0
    row = files.read_json(run)["rows"][1]
    assert (row["labels"], row["split"]) == ("cam", "unlabelled")
    assert score.main([*world.start, *ROW, "--name", "Their tool"]) == 0
    row = files.read_json(run)["rows"][2]
    assert (row["labels"], row["split"], row["name"]) == (None, "val", "Their tool")


def test_the_same_row_twice_is_refused_before_the_work(world, run, capsys):
    assert score.main([*world.start, *ROW, "--seed", "0"]) == 0
    before = run.read_bytes()
    capsys.readouterr()
    (world.given / "a.png").write_bytes(b"")  # would be the error, if the maps were read first
    assert score.main([*world.start, *ROW, "--seed", "0"]) == 1
    captured = capsys.readouterr()
    assert "has this row already (stage=segmenter, method=their_tool, seed=0, split=val" in captured.err
    assert run.read_bytes() == before and captured.out == ""


@pytest.mark.parametrize("change", [["--seed", "1"], ["--split", "test"], ["--options", "{t: 1}"], ["--labels", "cam"]])
def test_a_row_that_differs_is_another_row(change, world, run):
    assert score.main([*world.start, *ROW]) == score.main([*world.start, *ROW, *change]) == 0
    assert len(files.read_json(run)["rows"]) == 3


def test_a_run_that_does_not_fit_is_refused_and_unchanged(world, run, capsys):
    (world.root / "pets.yaml").write_text("{background: [], classes: [{name: cat}, {name: cow}]}")
    before = run.read_bytes()
    cases = [
        (ROW, "scores other classes (background, cat, dog)"),
        (["--add-to", "nobody", *ROW[2:]], "run notebooks/05_evaluation.ipynb"),
        (["--add-to", "../trial", *ROW[2:]], "cannot be a file name"),
        ([*ROW, "--options", "3"], "is no mapping"),
        ([*ROW, "--options", "{"], "is no mapping"),
    ]
    for options, message in cases:
        assert score.main([*world.start, *options]) == 1
        assert message in capsys.readouterr().err
    assert run.read_bytes() == before
    for content, message in (
        (b"{", "not readable JSON"),
        (b"[]", "no list of rows"),
        (b'{"rows": 3}', "no list of rows"),
    ):
        run.write_bytes(content)
        assert score.main([*world.start, *ROW]) == 1
        assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--add-to", "trial"], "--add-to needs --stage and --method"),
        (["--method", "x"], "--method describes a row"),
        (["--seed", "0"], "--seed describes a row"),
        (["--stage", "masks"], "invalid choice"),
    ],
)
def test_a_wrong_command_line_is_refused(options, message, world, capsys):
    with pytest.raises(SystemExit, match="2"):
        score.main([*world.start, *options])
    assert message in capsys.readouterr().err
