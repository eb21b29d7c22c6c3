"""Tables of measured runs, by hand on a few rows, and notebook 08 on a made-up grid."""

import csv
import itertools
import re

import numpy as np
import pytest
from test_pipeline import execute

from plg_utils import datasets, files, store, tables

NASTY = r"50% & more_$x$ #1 {a} ~b ^c \d <e>"


def row(name, miou, *, seed=0, labelled=12, stage="segmenter", split="val", **more):
    """A row as 05_evaluation writes it, of two classes."""
    where = {"stage": stage, "method": name, "name": name, "labelled": labelled, "seed": seed, "split": split}
    return where | {"images": 4, "miou": miou, "iou": {"a": miou, "b": None}, "options": {}, "run": "r"} | more


def write_grid(folder, rows, **axes):
    files.write_json(folder / "grid.json", {"run": folder.name, "grid": axes, "rows": rows})


def names(rows):
    return [(what.name, what.labelled, len(own)) for what, own in tables.grouped(rows).items()]


@pytest.fixture
def results(tmp_path, monkeypatch):
    """Folder of the runs of a test."""
    monkeypatch.setenv("PLG_RESULTS", str(tmp_path))
    return tmp_path


# Reading


def test_a_local_run_goes_before_the_published_one(results):
    published = tables.rows_of(["storybook_table"])
    assert {each["run"] for each in published} == {"storybook_table"} and len(published) > 3
    assert all(each["axes"] == {} for each in published)  # labelled and seed are not part of a name
    write_grid(results / "storybook_table", [row("x", 0.5) | {"rule": "r1"}], seed=[0], rule=["r1"])
    (local,) = tables.rows_of(["storybook_table"])
    assert local["axes"] == {"rule": "r1"}
    files.write_json(results / "one" / "summary.json", {"rows": [row("x", 0.5), row("no truth", None)]})
    assert [each["name"] for each in tables.rows_of(["one"])] == ["x"]


def test_the_ladder_has_a_row_for_a_method_with_its_labels():
    def of(folder, miou, split="val", learnt_from=None, **more):
        return row(folder, miou, split=split, made={"folder": folder}, learnt_from=learnt_from, **more)

    raw, soft = (of(name, 0.7, "unlabelled", stage=name) for name in ("zero_shot", "enhanced"))
    nets = [of("supervised", 0.5), of("raw", 0.8, learnt_from="zero_shot"), of("test", 0.9, "test", "zero_shot")]
    found = tables.ladder([raw, *nets, soft, of("alone", 0.6, learnt_from="zero_shot", stage="zero_shot")])
    assert found == [
        {"name": "alone", "zero_shot": 0.7, "segmenter": 0.6},
        {"name": "enhanced", "enhanced": 0.7},  # no method learns from them
        {"name": "supervised", "segmenter": 0.5},
        {"name": "raw", "zero_shot": 0.7, "segmenter": 0.8},
        {"name": "test", "zero_shot": 0.7, "segmenter": 0.9},
    ]


def test_results_that_cannot_be_read_or_compared_are_refused(results):
    files.write_json(results / "broken" / "summary.json", {"rows": 3})
    write_grid(results / "g", [row("x", 0.5)])
    write_grid(results / "h", [row("x", 0.5) | {"iou": {"c": 0.5}}])
    for runs, message in (
        (["nowhere"], "nowhere have no summary.json or grid.json. Run"),
        ("demo", "Give a list"),
        (["broken"], "broken/summary.json has no list of rows"),
        (["g", "h"], "g and h have different classes"),
    ):
        with pytest.raises(ValueError, match=message):
            tables.rows_of(runs)


def test_only_seeds_of_one_run_are_averaged():
    rows = [row("x", 0.5), row("x", 0.7, seed=1), row("x", 0.9, labelled=24), row("y", 0.1)]
    assert names(rows) == [("x", 12, 2), ("x", 24, 1), ("y", 12, 1)]
    assert tables.mean_iou(tables.grouped(rows)[tables.What("segmenter", "x", "val", 12)]).mean == pytest.approx(0.6)
    apart = [row("x", 0.5), row("x", 0.7, seed=1, run="s"), row("y", 0.1)]
    assert names(apart) == [("x (r)", 12, 1), ("x (s)", 12, 1), ("y (r)", 12, 1)]
    again = [row("x", 0.5, seed=seed, run=run, seconds=s) for run, s in (("r", 1), ("s", 2)) for seed in (0, 1)]
    assert names([*again, row("y", 0.1, run="s")]) == [("x", 12, 2), ("y", 12, 1)]  # to the last digit: one measurement
    for other in (0.6, 0.5):
        with pytest.raises(ValueError, match="r has two rows that look the same .x, val, 12 labelled, seed 0"):
            tables.grouped([row("x", 0.5), row("x", other)])


def test_a_name_has_what_the_grid_varies_and_options_only_if_needed():
    rows = [row("x", 0.5, axes={"rule": rule}) for rule in ("r1", "r2")]
    rows += [row("y", 0.5, options={"k": 1}), row("y", 0.6, options={"k": 2}), row("z", 0.5, options={"k": 1})]
    assert [name for name, _, _ in names(rows)] == ["x (rule=r1)", "x (rule=r2)", "y (k=1)", "y (k=2)", "z"]


def test_titles_are_as_short_as_can_be():
    one = tables.What("enhanced", "x", "val", 12)
    assert list(tables.titles([one, one._replace(name="y")]).values()) == ["x", "y"]
    assert list(tables.titles([one, one._replace(split="test")]).values()) == ["x, val", "x, test"]
    assert list(tables.titles([one, one._replace(labelled=24)]).values())[1] == "x, val, 24 labelled"
    assert len(set(tables.titles([one, one._replace(stage="segmenter")]).values())) == 2


def test_classes_come_in_the_order_of_their_file(results):
    """A json file sorts the keys of `iou`; old rows have no list of the classes beside."""
    iou = {"sky": 0.9, "car": 0.2, "bus": None}
    write_grid(results / "old", [row("x", 0.5, iou=iou)])
    write_grid(results / "new", [row("y", 0.5, iou=iou, classes=list(iou))])
    assert tables.classes_of(tables.rows_of(["old"])) == ["bus", "car", "sky"]
    for runs in (["new"], ["old", "new"]):
        rows = tables.rows_of(runs)
        assert tables.classes_of(iter(rows)) == ["sky", "car", "bus"]
    assert tables.long(tables.grouped(rows), tables.classes_of(rows))["class"].tolist() == ["sky", "car", "bus"] * 2
    assert tables.by_class(tables.grouped(rows), tables.classes_of(rows))[0]["y"].tolist()[:2] == ["$90.0$", "$20.0$"]


# Tables


def bold(*values):
    """Which of some methods is bold; each has the values of its seeds."""
    rows = [row(f"m{k}", value, seed=s) for k, own in enumerate(values) for s, value in enumerate(own)]
    return [what.name for what in tables.best(tables.grouped(rows))]


def test_bold_is_what_beats_its_rivals_by_more_than_the_spread():
    assert bold([0.50, 0.52], [0.60, 0.62]) == ["m1"]
    assert bold([0.50, 0.56], [0.54, 0.60]) == []  # 0.57 - 0.042 is below 0.53 + 0.042
    assert bold([0.50, 0.52], [0.60, 0.62], [0.61, 0.60]) == []  # one rival is enough
    assert bold([0.5], [0.9]) == bold([0.50, 0.52], [0.9]) == bold([0.5], [0.90, 0.91]) == []  # one seed has no spread
    assert bold([0.9, 0.91]) == []  # no rival
    given = [("x", 0.5, {}), ("y", 0.6, {}), ("full", 0.9, {})]
    given += [("x", 0.8, {"labelled": 24}), ("z", 0.7, {"split": "test"}), ("w", 0.9, {"images": 9})]
    rows = [row(name, value, seed=seed, **more) for seed in range(2) for name, value, more in given]
    assert [(what.name, what.labelled, what.split) for what in tables.best(tables.grouped(rows))] == [("y", 12, "val")]


def test_networks_with_as_many_labelled_images_of_two_lists_do_not_compete(results):
    """VOC's blended and u2pl lists both have 662 labelled images, and SBD's maps are coarser."""
    for name, listed, better in (("blended", "1_16", "x"), ("u2pl", "u2pl_1_16", "y")):
        given = [(method, 0.6 + (method == better) / 10 + seed / 500, seed) for seed in (0, 1) for method in ("x", "y")]
        rows = [row(method, miou, seed=seed, labelled=662, split_name=listed) for method, miou, seed in given]
        files.write_json(results / name / "summary.json", {"rows": rows})
    found = tables.grouped(tables.rows_of(["blended", "u2pl"]))
    assert {(what.name, what.split_name) for what in tables.best(found)} == {
        ("x (blended)", "1_16"), ("y (u2pl)", "u2pl_1_16"),
    }  # fmt: skip
    table, _ = tables.wide(found)
    assert list(table)[2:] == ["662 labelled (1_16)", "662 labelled (u2pl_1_16)"]
    assert (table[list(table)[2:]] == "--").to_numpy().tolist() == [[False, True]] * 2 + [[True, False]] * 2
    assert tables.long(found)["list"].tolist() == ["1_16"] * 2 + ["u2pl_1_16"] * 2
    assert "list" not in tables.long(tables.grouped([row("x", 0.5)]))
    one = tables.What("segmenter", "x", "val", 662, "1_16")
    assert list(tables.titles([one, one._replace(split_name="u2pl_1_16")]).values())[0].endswith("(list 1_16)")


def test_a_latex_table_is_whole_and_escapes_every_special_sign(tmp_path):
    rows = [row(NASTY, 0.25), row(NASTY, 0.35, seed=1), row("x", 0.5, split="unlabelled"), row("y", 0.2)]
    rows += [row("y", 0.8 + seed / 500, labelled=24, seed=seed) for seed in (0, 1)]
    rows += [row("z\nz", 0.9 + seed / 500, labelled=24, seed=seed) for seed in (0, 1)]
    path = tables.write_latex(tmp_path / "t.tex", *tables.wide(tables.grouped(rows)), remark="means\nof seeds")
    assert path.read_text(encoding="utf-8").splitlines() == [
        r"\begin{tabular}{llcc}",
        r"\toprule",
        r" & counted on & 12 labelled & 24 labelled \\",
        r"\midrule",
        r"50\% \& more\_\$x\$ \#1 \{a\} \textasciitilde{}b \textasciicircum{}c \textbackslash{}d "
        r"\textless{}e\textgreater{} & val & $30.0 \pm 7.1$ & -- \\",
        r"y & val & $20.0$ & $80.1 \pm 0.1$ \\",
        r"z z & val & -- & $\mathbf{90.1} \pm 0.1$ \\",
        r"\midrule",
        r"x & unlabelled & $50.0$ & -- \\",
        r"\bottomrule",
        r"\end{tabular}",
        "% means",
        "% of seeds",
    ]
    one, rules = tables.wide(tables.grouped([row("x", 0.5)]))
    assert list(one) == ["", "counted on", "mean IoU (%)"] and rules == []  # one amount of images needs no name


def test_a_class_that_does_not_occur_has_no_number():
    found = tables.grouped([row("x", 0.5), row("x", 0.7, seed=1)])
    table, rules = tables.by_class(found, ["a", "b"])
    spread = r"$60.0 \pm 14.1$"
    assert table.to_dict("list") == {"": ["a", "b", "mean"], "x": [spread, "--", spread]} and rules == [2]
    one, two = tables.long(found, ["a", "b"]).to_dict("records")
    assert one == {
        "stage": "segmenter", "what": "x", "split": "val", "labelled": 12, "class": "a", "seeds": 2,
        "iou": "0.600000", "std": "0.141421", "each": "0.500000 0.700000",
    }  # fmt: skip
    assert list(two.values())[4:] == ["b", 0, "", "", ""]


def test_the_published_tables_come_out_byte_for_byte(tmp_path):
    published = files.ROOT / "results" / "paper_figures" / "figures"
    measured = files.read_json(published.parent / "08_paper_figures.json")["measured"]
    found = tables.grouped(tables.rows_of(measured))
    remark = f"{', '.join(measured)}: mean and standard deviation over 3 seeds or fewer"
    tex = tables.write_latex(tmp_path / "08_table.tex", *tables.wide(found), remark)
    for path in (tex, tables.write_csv(tmp_path / "08_table.csv", tables.long(found))):
        assert path.read_bytes() == (published / path.name).read_bytes()


# The notebook


@pytest.fixture
def pictured(world, results):
    """Parameters of a run whose label maps are there: the truth, but one corner has no label."""
    data = datasets.load("storybook", root=world, labelled=2, limit=2, truth_of=("unlabelled",))
    stage = store.stage(results / "tiny" / "labels_zero_shot", parameters={}, dataset=data, classes=True)
    stage.register([f"{sample.id}.png" for sample in data.unlabelled])
    for sample in data.unlabelled:
        label = sample.truth()
        label[:8, :8] = 255
        files.write_label(stage.path(sample.id, ".png"), label, data.classes.colours)
    stage.finish()
    folders = dict.fromkeys(("gridded", "confused"), [stage.folder.name])
    return folders | {"pictured": "tiny", "dataset_options": {"root": str(world), "limit": 2}, "labelled": 2}


def execute_08(results, amounts, **given):
    """Execute 08 on a grid of two networks and a label stage; its variables, its json and the files it wrote."""
    rows = []
    for labelled, seed in itertools.product(amounts, (0, 1)):
        value, more = 0.5 + labelled / 1000 + seed / 100, {"seed": seed, "labelled": labelled}
        rows += [row(name, value, **more) for name in ("supervised only", "paper A")]
        rows.append(row("zero-shot labels", 0.7, stage="zero_shot", split="unlabelled", **more))
    write_grid(results / "g", rows, labelled=amounts, seed=[0, 1])
    given = {"run": "paper", "measured": ["g"], "curved": ["supervised only", "paper A"]} | given
    names = execute("08", given)
    written = {path.name: path.read_bytes() for path in (results / "paper" / "figures").iterdir()}
    return names, files.read_json(results / "paper" / "08_paper_figures.json"), written


def both(*names):
    return {f"08_{name}.{kind}" for name in names for kind in ("pdf", "svg")}


TABLES = {"08_table.tex", "08_table.csv"}
CLASSES = {"08_classes.tex", "08_classes.csv"}


def test_08_makes_all_figures_of_a_grid_and_a_local_run(results, pictured):
    names, result, written = execute_08(results, [2, 4, 8], **pictured, barred=["zero-shot labels"], examples=1)
    wanted = both("ladder", "curves", "classes", "gallery", "confusion_labels_zero_shot")
    assert written.keys() == wanted | TABLES | CLASSES | {"08_confusion_labels_zero_shot.csv"} == {*result["written"]}
    assert result["left_out"] == {} and result["labelled"] == 2 and names["curves"]["paper A"].keys() == {2, 4, 8}
    lines = csv.reader(written["08_confusion_labels_zero_shot.csv"].decode().splitlines()[1:])
    pixels = np.array([list(map(int, line[1:])) for line in lines])
    assert pixels.sum() == 2 * 128 * 128 and pixels[:, -1].sum() == 2 * 64
    np.testing.assert_array_equal(pixels[:, :-1], np.diag(pixels.diagonal()))


def test_08_leaves_out_label_maps_of_other_images(results, pictured):
    pictured["dataset_options"] |= {"limit": 1}
    _, result, written = execute_08(results, [12], **pictured, barred=[])
    assert result["left_out"]["labels_zero_shot"].endswith(
        "cannot be used: it was made for another split of the images"
    )
    assert "all runs have 12 labelled images" in result["left_out"]["curves"]
    assert written.keys() == both("ladder") | TABLES


def test_08_makes_what_published_numbers_allow_and_says_what_it_leaves_out(results, monkeypatch, capsys):
    monkeypatch.setattr(datasets, "load", lambda *_, **__: pytest.fail("no data set is needed"))
    _, result, written = execute_08(results, [12], measured=["demo"], curved=["no such network"])
    assert written.keys() == both("ladder", "classes") | TABLES | CLASSES
    assert result["left_out"].keys() == {"curves", "labels_zero_shot", "labels_enhanced", "labels_enhanced_sepl"}
    assert "the label maps of demo are not here" in capsys.readouterr().out
    assert "none of ['no such network'] was measured; there are: ['UniMatch" in result["left_out"]["curves"]
    assert not re.search(r"(^|[ '\"])/\w", str(result))  # no path of this machine
