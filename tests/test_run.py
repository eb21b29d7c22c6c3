"""notebooks/run.py on two toy notebooks: what reaches them, what is refused, what their copies hold."""

import contextlib
import io
import os
import re
import subprocess
import sys
import time

import allowed
import grid
import nbformat
import psutil
import pytest
import run

from plg_utils import files

PARAMETERS = 'run = "demo"  # name of the run\nsteps = 3  # optimizer steps\nrate = 0.5  # learning rate'
WORK = """
import json, os, pathlib, sys
folder = pathlib.Path(os.environ["PLG_RESULTS"]) / run
(folder / "figures").mkdir(parents=True, exist_ok=True)
(folder / "figures" / "all.png").write_bytes(b"a picture")
row = {"stage": "zero_shot", "name": "raw", "method": "segment_match", "split": "unlabelled", "images": 7}
row |= {"miou": 0.4567, "coverage": 1, "options": {"steps": steps}, "made": {"folder": "labels"}}
(folder / "summary.json").write_text(json.dumps({"run": run, "rows": [row]}))
print("half", flush=True)
print("a warning", file=sys.stderr, flush=True)
print(steps, type(rate).__name__, pathlib.Path.cwd().name)
"""
FAILURE = 'raise ValueError("no such thing as " + str(steps))'


def write_notebook(path, *codes):
    first = nbformat.v4.new_code_cell(codes[0], metadata={"tags": ["parameters"]})
    cells = [nbformat.v4.new_markdown_cell("# Toy"), first, *map(nbformat.v4.new_code_cell, codes[1:])]
    cells.append(nbformat.v4.new_markdown_cell("A fish lost its tail.", metadata={"tags": ["demo"]}))
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel}), path)
    return path


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    """Folders `notebooks`, with two notebooks of which the second fails, and `published`, with the run `toy`."""
    root = tmp_path_factory.mktemp("toy")
    folders = {name: root / name for name in ("notebooks", "published")}
    for folder in folders.values():
        folder.mkdir()
    write_notebook(folders["notebooks"] / "00_works.ipynb", PARAMETERS, WORK, "steps + 1")
    own = 'run = "demo"  # name\nsteps = 3  # steps'
    write_notebook(folders["notebooks"] / "01_fails.ipynb", own, FAILURE, "steps")
    write_notebook(folders["notebooks"] / "06_later.ipynb", 'run = "demo"  # name\nlater = 1  # of no numbered run')
    write_run(folders, "rate: 1e-3")
    return folders


def write_run(folders, text, name="toy"):
    path = folders["published"] / name / "parameters.yaml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"# What this run is.\n{text}\n")


def call(folders, *arguments):
    """Exit code, and what was written to stdout and stderr."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = run.main(list(arguments), **folders)
    return code, out.getvalue(), err.getvalue()


@pytest.fixture(scope="module")
def calls(toy, tmp_path_factory):
    """The toy run as it fails in its second notebook, then without that one: what each call returned and left."""
    results = tmp_path_factory.mktemp("results")
    copy = results / "toy" / "notebooks" / "00_works.ipynb"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PLG_RESULTS", str(results))
        page = results / "toy" / "index.html"
        page.parent.mkdir(parents=True)
        page.write_text("of an earlier run")
        failed = call(toy, "toy", "-p", "steps", "7")
        stale = page.exists()
        first = copy.read_bytes()
        unpublished = call(toy, "toy", "--publish")
        write_run(toy, "rate: 1e-3\nsteps: 7\nnotebooks: [00_works]")
        worked = call(toy, "toy")
        left = sorted(path.name for path in copy.parent.iterdir())
        published = call(toy, "toy", "--publish")
        write_run(toy, "rate: 1e-3")
    found = {"page": page, "stale": stale, "failed": failed, "first": first, "worked": worked, "left": left}
    return found | {"second": copy.read_bytes(), "published": published, "unpublished": unpublished}


# Refused before any work


def test_a_run_that_another_process_makes_is_left_to_it(toy, tmp_path, monkeypatch):
    monkeypatch.setenv("PLG_RESULTS", str(tmp_path))
    monkeypatch.setattr(run, "execute", lambda step, folder: None)
    write_run(toy, "notebooks: [00_works]", name="twice")
    with grid.lock(tmp_path / "twice" / "run.lock") as holder:
        assert holder == ""
        code, out, err = call(toy, "twice")
    assert (code, out) == (2, "") and f"twice is being made by process {os.getpid()} on " in err
    assert [path.name for path in (tmp_path / "twice").iterdir()] == ["run.lock"]
    assert call(toy, "twice")[0] == 0  # the lock is free again


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("later: 2", "called 'later', only run, steps, rate, data_root"),  # of a notebook that is not in the run
        ("steps: true", "steps is True, a bool; give a value of type int, such as the default 3"),
    ],
)
def test_a_wrong_run_is_refused(toy, text, says):
    """More of these, and wrong commands, are in test_bad_inputs."""
    write_run(toy, text, name="wrong")
    code, out, err = call(toy, "wrong")
    assert (code, out) == (2, "") and says in err


MINIATURE = {"encoder": "miniature", "pretrained": True}


def set_by(name, *changes):
    return run.settled(run.read(name), run.written_out(changes))


@pytest.mark.parametrize(
    ("name", "changes", "mapping", "expected"),
    [
        ("demo", [("mask_options", "{density: 0.7}")], "mask_options", {"checkpoint": "miniature_sam", "density": 0.7}),
        ("demo", [("dataset_options", "{val: 5}")], "dataset_options", {"limit": 100, "val": 5}),
        ("demo", [("dataset_options", "{}")], "dataset_options", {}),
        ("demo", [("dataset", "voc"), ("dataset_options", "{val: 5}")], "dataset_options", {"val": 5}),
        ("demo", [("encoder", "own"), ("encoder_options", "{depth: 2}")], "encoder_options", {"depth": 2}),
        ("demo", [("segmenter_options", "{encoder: resnet18}")], "segmenter_options", {"encoder": "resnet18"}),
        ("demo", [("segmenter_options", "{skip: 4}")], "segmenter_options", MINIATURE | {"skip": 4}),
        ("voc_92", [("dataset_options", "{val: 5}")], "dataset_options", {"split": "92", "val": 5}),
        ("voc_92", [("segmenter_options", "{encoder: own}")], "segmenter_options", MINIATURE | {"encoder": "own"}),
    ],
)  # fmt: skip
def test_a_mapping_keeps_the_keys_below_it_that_are_of_the_same_thing(name, changes, mapping, expected):
    assert set_by(name, *changes)[mapping] == expected


def test_a_published_file_means_what_it_says():
    """No default creeps into a mapping that it gives, whether in its grid or not."""
    for path in run.PUBLISHED.glob("*/parameters.yaml"):
        recipe = run.read(path.parent.name)
        for chosen in grid.combinations(recipe.axes):
            given, settled = recipe.values | chosen, run.settled(recipe, chosen)
            assert {key: settled[key] for key in given} == given, recipe.run


def test_short_names_stand_for_options_of_the_data_set(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("here", "there", "my.yaml"):
        (tmp_path / name).touch()
    here, mine = str(tmp_path / "here"), str(tmp_path / "my.yaml")
    assert run.main(["voc_92", "-p", "data_root", "here", "--dry-run"]) == 0
    assert f"'dataset_options': {{'split': '92', 'root': '{here}'}}" in capsys.readouterr().out
    short = [("data_root", "here"), ("class_file", "my.yaml")]
    assert run.written_out(short) == {"dataset_options": {"root": here, "classes": mine}}
    more = [*short, ("dataset_options", "{val: 5, root: x}"), ("data_root", "there"), ("class_file", "[cat]")]
    assert run.written_out(more) == {"dataset_options": {"root": f"{tmp_path}/there", "classes": ["cat"], "val": 5}}


def test_a_dry_run_lists_each_notebook_with_its_own_parameters_and_does_nothing(toy, tmp_path, monkeypatch):
    monkeypatch.setenv("PLG_RESULTS", str(tmp_path / "results"))
    code, out, _ = call(toy, "toy", "-p", "steps", "7", "--dry-run")  # 1e-3 is read as Python reads it
    listed = ["00_works  {'run': 'toy', 'steps': 7, 'rate': 0.001}", "01_fails  {'run': 'toy', 'steps': 7}"]
    assert (code, out.splitlines()) == (0, listed)
    assert not (tmp_path / "results").exists()


# Execution


@pytest.mark.parametrize(
    ("known", "threads"),
    [
        ({}, "2"),
        ({"mask_options": {"checkpoint": None}, "segmenter_options": {"encoder": "miniature"}}, "2"),
        ({"segmenter_options": {"encoder": "resnet50"}}, None),  # torch's own choice: all cores
        ({"mask_options": {"checkpoint": "sam_vit_b"}}, None),
        ({"mask_model": "hf", "mask_options": {}}, None),
    ],
)
def test_the_miniatures_get_two_threads(known, threads, monkeypatch):
    monkeypatch.setattr("psutil.cpu_percent", lambda interval: 90.0)  # other processes use the cores
    assert run.threads_for(known).get("OMP_NUM_THREADS") == threads
    assert run.threads_for(known)["GOMP_SPINCOUNT"] == "1000"


def test_the_environment_is_as_before_when_the_notebooks_are_done(toy, tmp_path, monkeypatch):
    monkeypatch.setattr(run, "threads_for", lambda known: {"OMP_NUM_THREADS": "2", "GOMP_SPINCOUNT": "1000"})
    monkeypatch.setenv("OMP_NUM_THREADS", "4")  # what the user says stands
    seen, variables = [], ("PLG_RESULTS", "OMP_NUM_THREADS", "GOMP_SPINCOUNT")
    monkeypatch.setattr(run, "execute", lambda step, folder: seen.append([os.environ[name] for name in variables]))
    monkeypatch.setenv("PLG_RESULTS", "before")
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    run.execute_all(run.steps_of(run.read("toy", **toy), {}, "toy"), tmp_path / "results" / "toy")
    assert seen == [[str(tmp_path / "results"), "4", "1000"]] * 2
    assert os.environ["PLG_RESULTS"] == "before" and "GOMP_SPINCOUNT" not in os.environ
    path = tmp_path / "results" / "toy" / "run.json"
    content = files.read_json(path)
    assert content["parameters"] == {"run": "toy", "steps": 3, "rate": 0.001}  # defaults included
    assert (content["run"], content["notebooks"]) == ("toy", ["00_works", "01_fails"])
    files.write_json(path, {"dataset": "storybook", "parameters": {"gone": 1}})  # a stage noted the data set there
    run.note(run.steps_of(run.read("toy", **toy), {"steps": 7}, "toy"), path.parent)
    content = files.read_json(path)
    assert content["dataset"] == "storybook" and content["parameters"] == {"run": "toy", "steps": 7, "rate": 0.001}


@pytest.mark.parametrize("name", ["toy", "demo"])
def test_what_was_seen_in_the_demo_is_said_of_it_alone(toy, tmp_path, name, monkeypatch):
    """The run `toy` changes a parameter, a run `demo` none; a kernel is not needed to see which cells go to it."""
    import papermill

    monkeypatch.setattr(papermill, "execute_notebook", lambda notebook, path, *_, **__: nbformat.write(notebook, path))
    write_run(toy, "notebooks: [00_works]", name="demo")
    step = run.steps_of(run.read(name, **toy), {}, name)[0]
    copy = run.execute(step, tmp_path / "notebooks")
    run.note([step], tmp_path)
    assert ("A fish" in copy.read_text()) == (name == "demo")
    assert run.outdated(copy, step, tmp_path / "run.json") == ""


def test_a_sam_3_of_random_weights_leaves_what_was_seen_of_the_other_labellers():
    (_, step) = run.steps_of(run.read("compare_labellers"), {}, "compare_labellers")
    seen = [cell for cell in files.read_json(step.notebook)["cells"] if run.tagged(cell, "demo")]
    assert seen and all(map(step.shows, seen))
    other = run.Step(step.notebook, step.parameters | {"concept_options": {"checkpoint": "sam3"}})
    assert not any(map(other.shows, seen))


def test_a_run_of_own_photos_tells_nothing_of_the_demo():
    given = {"run": "my_photos", "dataset": "folder", "dataset_options": {"root": "photos"}}
    for notebook in run.NOTEBOOKS.glob("0[0-6]_*.ipynb"):
        step = run.Step(notebook, {key: value for key, value in given.items() if key in run.defaults(notebook)})
        cells = files.read_json(notebook)["cells"]
        assert not any(run.tagged(cell, "demo") for cell in cells if step.shows(cell)), notebook.name
        assert all(run.Step(notebook, {"run": "compare_labellers"}).shows(cell) for cell in cells), notebook.name


def test_the_copy_holds_the_parameters_and_outputs_and_nothing_of_the_moment(calls):
    assert calls["first"] == calls["second"]  # to the byte
    notebook = nbformat.reads(calls["first"].decode(), as_version=4)
    cells = notebook.cells
    assert cells[2].source == '# Parameters\nrun = "toy"\nsteps = 7\nrate = 0.001\n'
    assert [output.text for output in cells[3].outputs] == ["half\n7 float notebooks\n"]  # without stderr
    assert cells[4].outputs[0].data["text/plain"] == "8"
    assert [cell.id for cell in cells] == ["00", "01", "02", "03", "04"]  # without what is of the demo
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
    tags = [cell.metadata.pop("tags", []) for cell in cells]
    assert tags == [[], ["parameters"], ["injected-parameters"], [], []]
    assert not any(cell.metadata for cell in cells)


def test_a_run_shows_its_results_or_where_it_failed_and_leaves_no_old_copies(calls):
    code, out, err = calls["failed"]
    assert code == 1 and "00_works" in out and "01_fails" not in out
    assert "ValueError: no such thing as 7" in err and "01_fails.partial.ipynb" in err
    assert not calls["stale"]  # the page of an earlier run
    code, out, err = calls["worked"]
    assert code == 0 and "a warning" in err
    assert out.splitlines()[-5].split() == ["raw", "45.7%"]
    assert [line.split()[0] for line in out.splitlines()[-3:]] == ["page:", "pictures:", "notebooks:"]
    assert str(calls["page"]) in out and "45.7" in calls["page"].read_text(encoding="utf-8")
    assert "00_works.ipynb" in calls["left"] and "01_fails.ipynb" not in calls["left"]


def test_publish_copies_a_whole_run_and_refuses_half_of_one(calls, toy, capsys):
    with pytest.raises(SystemExit):
        run.main(["toy", "--publish", "-p", "steps", "7"], **toy)
    assert "write the change there and run again" in capsys.readouterr().err
    code, _, err = calls["unpublished"]
    assert code == 2
    assert "00_works cannot be published: it was run with steps: 7, now 3" in err
    assert calls["published"][0] == 0
    target = toy["published"] / "toy"
    names = sorted(path.relative_to(target).as_posix() for path in target.rglob("*") if path.is_file())
    page = ["figures/all.png", "index.html", "parameters.yaml", "run.json", "summary.json"]
    assert names == ["00_works.ipynb", *page]
    assert files.read_json(target / "run.json")["parameters"]["steps"] == 7
    assert (target / "00_works.ipynb").read_bytes() == calls["second"]
    assert (target / "index.html").read_bytes() == calls["page"].read_bytes()


def test_a_run_does_not_fail_with_its_page(toy, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "toy"
    run.write_page(folder)
    assert not folder.exists()  # nothing was evaluated, as by 09_doctor
    folder.mkdir()
    (folder / "summary.json").write_text("no json")
    run.write_page(folder)
    assert not (folder / "index.html").exists()
    assert "no page (ValueError: " in (told := capsys.readouterr().err)
    assert "python -m plg_utils.page toy" in told


def test_a_copy_is_outdated_when_its_source_or_parameters_change(calls, toy, tmp_path):
    copy, run_file = tmp_path / "00_works.ipynb", tmp_path / "run.json"
    copy.write_bytes(calls["second"])
    notebook = toy["notebooks"] / copy.name
    parameters = {"run": "toy", "steps": 7, "rate": 0.001}
    assert "run.json is missing" in run.outdated(copy, run.Step(notebook, parameters), run_file)
    run.note([run.Step(notebook, parameters)], tmp_path)
    assert run.outdated(copy, run.Step(notebook, parameters), run_file) == ""
    told = run.outdated(copy, run.Step(notebook, parameters | {"steps": 8}), run_file)
    assert told == "it was run with steps: 7, now 8"
    write_notebook(tmp_path / "changed.ipynb", PARAMETERS, WORK, "steps + 2")
    assert "has changed" in run.outdated(copy, run.Step(tmp_path / "changed.ipynb", parameters), run_file)
    assert "missing" in run.outdated(tmp_path / "gone.ipynb", run.Step(notebook, parameters), run_file)


@pytest.mark.parametrize("changes", [{"steps": 8}, {"rate": 0.5}, {"workers": 2}, {}])
def test_a_summary_of_other_parameters_does_not_stay_beside_the_new_ones(changes, toy, tmp_path):
    """A run that is started with other parameters and stopped at once could be published as what it never was."""
    olds = [tmp_path / name for name in ("notebooks/00_works.ipynb", "figures/02.png", "summary.json", "index.html")]
    parameters = {"run": "toy", "steps": 7, "rate": 0.001, "workers": 0}
    run.note([run.Step(toy["notebooks"] / "00_works.ipynb", parameters)], tmp_path)
    for old in olds:
        old.parent.mkdir(exist_ok=True)
        old.write_text("{}")
    run.note([run.Step(toy["notebooks"] / "00_works.ipynb", parameters | changes)], tmp_path)
    assert [old.exists() for old in olds] == [not changes or "workers" in changes] * 4


@pytest.mark.parametrize("place", ["file", "file/below", "/proc/nothing"])
def test_a_place_that_takes_no_results_is_named(place, toy, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PLG_RESULTS", str(tmp_path / place))
    code, _, err = call(toy, "toy")
    assert code == 2 and "no results can be written into" in err and "PLG_RESULTS" in err


@pytest.mark.parametrize("content", ["", "[]", '{"run": "toy", "parameters": []}', '{"run": '])
def test_a_damaged_run_json_is_named_with_a_remedy(content, toy, tmp_path, monkeypatch):
    monkeypatch.setenv("PLG_RESULTS", str(tmp_path))
    (tmp_path / "toy").mkdir()
    (tmp_path / "toy" / "run.json").write_text(content)
    code, _, err = call(toy, "toy")
    assert code == 2 and "run.json" in err and "delete it, and start the same command again" in err


SLEEPER = 'import os, pathlib, time\npathlib.Path("../pid").write_text(str(os.getpid()))\ntime.sleep(600)'


@pytest.mark.skipif(sys.platform != "linux", reason="kernels are forked on Linux only")
def test_a_killed_run_takes_its_kernel_along(tmp_path):
    """A kernel that outlives its run goes on writing into a folder that the next run takes for its own."""
    (tmp_path / "notebooks").mkdir()
    path = write_notebook(tmp_path / "notebooks" / "00_sleeps.ipynb", PARAMETERS, SLEEPER)
    step = f"run.Step(pathlib.Path({str(path)!r}), {{}})"
    code = f"import kernels, pathlib, run; kernels.PRELOADED = []; run.execute({step}, pathlib.Path({str(tmp_path)!r}))"
    process = subprocess.Popen([sys.executable, "-c", code], cwd=run.NOTEBOOKS, stderr=subprocess.DEVNULL)
    wait_for(tmp_path / "pid")
    kernel = psutil.Process(int((tmp_path / "pid").read_text()))
    process.kill()
    process.wait()
    kernel.wait(timeout=120)  # raises if it lives on


def wait_for(path):
    """Wait until another process has written a file."""
    deadline = time.monotonic() + 120
    while not path.exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(0.1)


def test_a_kernel_that_dies_is_told_from_a_failed_cell(toy, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PLG_RESULTS", str(tmp_path))
    path = write_notebook(tmp_path / "00_dies.ipynb", PARAMETERS, "import os\nos.kill(os.getpid(), 9)")
    assert not run.execute_all([run.Step(path, {"run": "toy"})], tmp_path / "toy")
    assert "probably out of memory" in capsys.readouterr().err


def test_the_comments_of_the_notebooks_name_the_words_that_are_allowed():
    named = {}
    for path in run.NOTEBOOKS.glob("[0-9]*.ipynb"):
        cell = next(run.source(cell) for cell in files.read_json(path)["cells"] if run.tagged(cell, "parameters"))
        for name, default, comment in re.findall(r"^(\w+) = (.*?)  # (.*)$", cell, re.MULTILINE):
            if folder := re.search(r"files? of plg_utils/(\w+)", comment):
                assert allowed.FOLDERS[name] == folder[1]
            elif name in allowed.WORDS:
                named.setdefault(name, set()).update(re.findall(r'"(\w+)"', f"{default} {comment}"))
    assert named == {name: set(words) for name, words in allowed.WORDS.items()}


def test_the_report_says_where_many_pixels_have_no_label(tmp_path):
    row = {"name": "filtered labels", "stage": "zero_shot", "miou": 0.226, "split": "unlabelled", "coverage": 0.4}
    row["made"] = {"folder": "labels_filtered"}
    rows = [row, row | {"name": "others", "miou": None, "coverage": None, "made": {"folder": "labels_others"}}]
    files.write_json(tmp_path / "summary.json", {"rows": rows})
    head, first, second, last = run.report(tmp_path).splitlines()[:4]
    assert head.split() == ["mean", "IoU", "labels", "unseen", "images"] and first.endswith("     22.6%          ")
    assert second.split() == ["others"] and last == "filtered labels: 40% of the pixels have a label"
