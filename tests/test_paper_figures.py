"""Tables of measured runs, by hand on a few rows, and notebook 08 on a grid that was made up."""

import csv
import re

import numpy as np
import pytest
from test_pipeline import execute

from plg_utils import datasets, files, statistics, tables

NASTY = r"50% & more_$x$ #1 {a} ~b ^c \d <e>"


def row(name, miou, *, seed=0, labelled=12, stage="segmenter", method=None, split="val", images=4, **more):
    """A row as 05_evaluation writes it, of two classes."""
    told = {"stage": stage, "method": method or name, "name": name, "labelled": labelled, "seed": seed, "split": split}
    return told | {"images": images, "miou": miou, "iou": {"a": miou, "b": None}, "options": {}, "run": "r"} | more


def write_grid(folder, rows, **axes):
    files.write_json(folder / "grid.json", {"run": folder.name, "grid": axes, "rows": rows})


@pytest.fixture
def results(tmp_path, monkeypatch):
    """Where runs lie in these tests."""
    monkeypatch.setenv("PLG_RESULTS", str(tmp_path))
    return tmp_path


# Reading


def test_rows_come_from_grids_and_runs_made_here_before_published_ones(results):
    published = tables.rows_of(["storybook_table"])
    assert {each["run"] for each in published} == {"storybook_table"} and len(published) > 3
    assert all(each["axes"] == {} for each in published)  # labelled and seed are no part of a name
    write_grid(results / "storybook_table", [row("x", 0.5) | {"rule": "r1"}], seed=[0], rule=["r1"])
    (own,) = tables.rows_of(["storybook_table"])
    assert own["axes"] == {"rule": "r1"}
    files.write_json(results / "one" / "summary.json", {"rows": [row("x", 0.5), row("no truth", None)]})
    assert [each["name"] for each in tables.rows_of(["one"])] == ["x"]


def test_what_cannot_be_read_is_refused(results):
    with pytest.raises(ValueError, match="neither .*nowhere nor .*nowhere holds a summary.json or grid.json: run"):
        tables.rows_of(["nowhere"])
    with pytest.raises(ValueError, match="runs is 'demo', not a list"):
        tables.rows_of("demo")
    files.write_json(results / "broken" / "summary.json", {"rows": 3})
    with pytest.raises(ValueError, match="broken/summary.json has no list of rows"):
        tables.rows_of(["broken"])
    write_grid(results / "g", [row("x", 0.5)])
    write_grid(results / "h", [row("x", 0.5) | {"iou": {"c": 0.5}}])
    with pytest.raises(ValueError, match="g and h have other classes"):
        tables.rows_of(["g", "h"])


def test_only_seeds_are_averaged():
    rows = [row("x", 0.5), row("x", 0.7, seed=1), row("x", 0.9, labelled=24), row("y", 0.1)]
    found = tables.grouped(rows)
    assert [(what.name, what.labelled, len(own)) for what, own in found.items()] == [
        ("x", 12, 2),
        ("x", 24, 1),
        ("y", 12, 1),
    ]
    assert tables.mean_iou(found[tables.What("segmenter", "x", "val", 12)]).mean == pytest.approx(0.6)


def test_what_a_grid_varies_is_part_of_the_name_and_options_only_where_they_are_needed():
    rows = [row("x", 0.5, axes={"rule": rule}) for rule in ("r1", "r2")]
    rows += [row("y", 0.5, options={"k": 1}), row("y", 0.6, options={"k": 2}), row("z", 0.5, options={"k": 1})]
    rows += [row("z", 0.5, checkpoint="best_val")]
    names = [what.name for what in tables.grouped(rows)]
    assert names == ["x (rule=r1)", "x (rule=r2)", "y (k=1)", "y (k=2)", "z", "z (checkpoint=best_val)"]
    with pytest.raises(ValueError, match="r has two rows that nothing tells apart .*x, val, 12 labelled, seed 0"):
        tables.grouped([row("x", 0.5), row("x", 0.6)])


def test_two_runs_are_never_averaged_but_may_continue_each_other():
    apart = [row("x", 0.5), row("x", 0.7, seed=1, run="s"), row("y", 0.1)]
    assert [what.name for what in tables.grouped(apart)] == ["x (r)", "x (s)", "y (r)"]
    continued = [row("x", 0.5), row("x", 0.7, labelled=24, run="s")]
    assert [(what.name, what.labelled) for what in tables.grouped(continued)] == [("x", 12), ("x", 24)]


def test_what_two_runs_measured_alike_is_one_measurement():
    same = [row("x", 0.5, seed=seed, run=run, seconds=s) for run, s in (("r", 1), ("s", 2)) for seed in (0, 1)]
    found = tables.grouped([*same, row("y", 0.1, run="s")])
    assert [(what.name, {each["run"] for each in own}, len(own)) for what, own in found.items()] == [
        ("x", {"r"}, 2),
        ("y", {"s"}, 1),
    ]
    with pytest.raises(ValueError, match="r has two rows that nothing tells apart"):
        tables.grouped([row("x", 0.5), row("x", 0.5)])


def test_titles_say_no_more_than_they_must():
    one, two = tables.What("enhanced", "x", "val", 12), tables.What("enhanced", "y", "val", 12)
    assert list(tables.titles([one, two]).values()) == ["x", "y"]
    assert list(tables.titles([one, one._replace(split="test")]).values()) == ["x, val", "x, test"]
    assert list(tables.titles([one, one._replace(labelled=24)]).values())[1] == "x, val, 24 labelled"
    assert len(set(tables.titles([one, one._replace(stage="segmenter")]).values())) == 2
    assert tables.titles([]) == {}


# Bold


def chosen(*values, **more):
    """Which of some methods is bold; each has the values of its seeds."""
    rows = [row(f"m{k}", value, seed=s, **more) for k, own in enumerate(values) for s, value in enumerate(own)]
    return [what.name for what in tables.best(tables.grouped(rows))]


def test_bold_is_what_lies_above_its_rivals_by_more_than_the_spread():
    assert chosen([0.50, 0.52], [0.60, 0.62]) == ["m1"]
    assert chosen([0.50, 0.56], [0.54, 0.60]) == []  # 0.57 - 0.042 is below 0.53 + 0.042
    assert chosen([0.50, 0.52], [0.60, 0.62], [0.61, 0.60]) == []  # one rival is enough
    assert chosen([0.5], [0.9]) == []  # one seed each: nobody knows the spread
    assert chosen([0.50, 0.52], [0.9]) == chosen([0.5], [0.90, 0.91]) == []
    assert chosen([0.9, 0.91]) == []  # no rival, no contest


def test_bold_compares_like_with_like_and_leaves_out_the_ceiling():
    seeds = range(2)
    rows = [row("x", 0.5, seed=s) for s in seeds] + [row("y", 0.6, seed=s) for s in seeds]
    rows += [row("full", 0.9, seed=s) for s in seeds]
    rows += [row("x", 0.8, seed=s, labelled=24) for s in seeds] + [row("z", 0.7, seed=s, split="test") for s in seeds]
    rows += [row("w", 0.9, seed=s, images=9) for s in seeds]
    assert [(what.name, what.labelled, what.split) for what in tables.best(tables.grouped(rows))] == [("y", 12, "val")]


# LaTeX and CSV


def test_latex_escapes_every_special_sign():
    assert tables.escape("50% & a_b #1") == r"50\% \& a\_b \#1"
    assert tables.escape(NASTY) == (
        r"50\% \& more\_\$x\$ \#1 \{a\} \textasciitilde{}b \textasciicircum{}c \textbackslash{}d "
        r"\textless{}e\textgreater{}"
    )
    assert tables.escape("two\nlines") == "two lines"


def test_a_latex_table_is_whole():
    rows = [row("x", 0.5, split="unlabelled"), row(NASTY, 0.25), row(NASTY, 0.35, seed=1), row("y", 0.2)]
    rows += [row("y", 0.8, labelled=24, seed=seed) for seed in (0, 1)] + [row("x", 0.1, labelled=24, seed=1)] * 0
    text = tables.latex(*tables.wide(tables.grouped(rows)), remark="means\nof seeds")
    assert text.splitlines() == [
        r"\begin{tabular}{llcc}",
        r"\toprule",
        r" & counted on & 12 labelled & 24 labelled \\",
        r"\midrule",
        r"x & unlabelled & $50.0$ & -- \\",
        r"\midrule",
        rf"{tables.escape(NASTY)} & val & $30.0 \pm 7.1$ & -- \\",
        r"y & val & $20.0$ & $80.0 \pm 0.0$ \\",
        r"\bottomrule",
        r"\end{tabular}",
        "% means",
        "% of seeds",
    ]
    with pytest.raises(ValueError, match="a line has 1 cells, the header 2"):
        tables.latex(["a", "b"], [["c"]])


def test_bold_is_set_in_the_table():
    rows = [row(name, value + seed / 500, seed=seed) for name, value in (("x", 0.5), ("y", 0.6)) for seed in (0, 1)]
    text = tables.latex(*tables.wide(tables.grouped(rows)))
    assert r"y & val & $\mathbf{60.1} \pm 0.1$ \\" in text and text.count("mathbf") == 1
    assert r"mean IoU (\%) \\" in text  # one amount of labelled images needs no name


def test_classes_that_do_not_occur_are_dashes():
    found = tables.grouped([row("x", 0.5), row("x", 0.7, seed=1)])
    header, lines = tables.by_class(found, ["a", "b"])
    assert [list(map(str, line)) for line in lines if line] == [
        ["a", r"$60.0 \pm 14.1$"],
        ["b", "--"],
        ["mean", r"$60.0 \pm 14.1$"],
    ]
    assert header == ["", "x"] and lines[2] is None
    header, lines = tables.long_by_class(found, ["a", "b"])
    assert dict(zip(header, lines[0], strict=True)) == {
        "stage": "segmenter", "what": "x", "split": "val", "labelled": 12, "class": "a", "seeds": 2,
        "iou": "0.600000", "std": "0.141421", "each": "0.500000 0.700000",
    }  # fmt: skip
    assert lines[1][4:] == ["b", 0, "", "", ""]


def test_csv_survives_commas_quotes_and_lines(tmp_path):
    found = tables.grouped([row('a "b", c\nd', 0.5)])
    path = tables.write_csv(tmp_path / "t.csv", *tables.long(found))
    assert b"\r" not in path.read_bytes()
    with open(path, encoding="utf-8", newline="") as file:
        (line,) = csv.DictReader(file)
    assert (
        line["what"] == 'a "b", c\nd' and line["mean_iou"] == "0.500000" and line["std"] == "" and line["seeds"] == "1"
    )
    header, lines = tables.confusions(np.array([[1, 2, 3], [4, 5, 6]]), ["a", "b"])
    assert header == ["truth", "a", "b", "no label"] and lines == [["a", 1, 2, 3], ["b", 4, 5, 6]]


def test_the_published_table_says_what_its_rows_say():
    rows = tables.rows_of(["storybook_table"])
    text = tables.latex(*tables.wide(tables.grouped(rows)))
    values = [each["miou"] for each in rows if each["name"] == "supervised only" and each["labelled"] == 12]
    told = statistics.summarise(values)
    assert rf"supervised only & val & ${100 * told.mean:.1f} \pm {100 * told.std:.1f}$" in text


# The notebook


@pytest.fixture
def pictured(world, results):
    """A run `tiny` whose label maps are there: the truth with one corner wrong, and without a label at another."""
    data = datasets.load("storybook", root=world, labelled=2, limit=2, truth_of=("unlabelled",))
    for name in ("labels_zero_shot", "labels_enhanced"):
        for sample in data.unlabelled:
            label = sample.truth()
            label[:8, :8] = 255
            files.write_label(results / "tiny" / name / f"{sample.id}.png", label, data.classes.colours)
        files.write_json(results / "tiny" / name / "manifest.json", {"state": "done"})
    return {"pictured": "tiny", "dataset_options": {"root": str(world), "limit": 2}, "labelled": 2, "examples": 1}


def made_up(amounts):
    """Rows of a grid: two networks whose mean IoU grows with the labelled images, and a label stage."""
    rows = []
    for labelled in amounts:
        for seed in (0, 1):
            value = 0.5 + labelled / 1000 + seed / 100
            rows += [row(name, value, seed=seed, labelled=labelled) for name in ("supervised only", "paper A")]
            rows.append(
                row("zero-shot labels", 0.7, stage="zero_shot", split="unlabelled", seed=seed, labelled=labelled)
            )
    return rows


def names_of(folder):
    return {path.name for path in (folder / "figures").iterdir()}


def both(*names):
    return {f"08_{name}.{kind}" for name in names for kind in ("pdf", "svg")}


TABLES = {"08_table.tex", "08_table.csv", "08_classes.tex", "08_classes.csv"}


def test_08_makes_all_figures_of_a_grid_and_a_run_whose_files_are_here(results, pictured):
    write_grid(results / "g", made_up([2, 4, 8]), labelled=[2, 4, 8], seed=[0, 1])
    given = pictured | {"run": "paper", "measured": ["g"], "curved": ["supervised only", "paper A"]}
    found = execute(
        "08",
        given | {"barred": ["zero-shot labels"], "confused": ["labels_zero_shot"], "gridded": ["labels_zero_shot"]},
    )
    folder = results / "paper"
    wanted = both("ladder", "curves", "classes", "gallery", "confusion_labels_zero_shot")
    assert names_of(folder) == wanted | TABLES | {"08_confusion_labels_zero_shot.csv"}
    told = files.read_json(folder / "08_paper_figures.json")
    assert set(told["written"]) == names_of(folder) and told["left_out"] == {} and told["labelled"] == 2
    assert found["curves"]["paper A"].keys() == {2, 4, 8}
    with open(folder / "figures" / "08_confusion_labels_zero_shot.csv", encoding="utf-8") as file:
        pixels = np.array([[int(cell) for cell in line[1:]] for line in list(csv.reader(file))[1:]])
    assert pixels.sum() == 2 * 128 * 128 and pixels[:, -1].sum() == 2 * 64
    np.testing.assert_array_equal(pixels[:, :-1], np.diag(pixels.diagonal()))
    before = {path.name: path.read_bytes() for path in (folder / "figures").iterdir()}
    execute(
        "08",
        given | {"barred": ["zero-shot labels"], "confused": ["labels_zero_shot"], "gridded": ["labels_zero_shot"]},
    )
    assert before == {path.name: path.read_bytes() for path in (folder / "figures").iterdir()}


def test_08_makes_what_a_published_json_allows_and_says_what_it_leaves_out(results, monkeypatch, capsys):
    monkeypatch.setattr(datasets, "load", lambda *_, **__: pytest.fail("no data set is needed"))
    execute("08", {"run": "paper", "measured": ["demo"], "curved": ["no such network"]})
    told = files.read_json(results / "paper" / "08_paper_figures.json")
    assert names_of(results / "paper") == both("ladder", "classes") | TABLES
    assert told["left_out"].keys() == {"curves", "labels_zero_shot", "labels_enhanced", "labels_enhanced_sepl"}
    assert "the label maps of demo are not here" in capsys.readouterr().out
    assert "none of ['no such network'] was measured; there are: ['UniMatch" in told["left_out"]["curves"]
    assert not re.search(r"(^|[ '\"])/\w", str(told))  # no path of this machine


def test_08_shows_one_amount_of_labelled_images_as_points(results):
    write_grid(results / "g", made_up([12]), labelled=[12], seed=[0, 1])
    given = {"run": "paper", "measured": ["g"], "pictured": "nowhere", "curved": ["supervised only", "paper A"]}
    found = execute("08", given | {"barred": []})
    assert found["curves"] == {"supervised only": {12: (0.512, 0.522)}, "paper A": {12: (0.512, 0.522)}}
    left = {path.name for path in (results / "paper" / "figures").iterdir()}
    assert left == both("ladder", "curves") | {"08_table.tex", "08_table.csv"}
