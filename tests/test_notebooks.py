"""The notebooks as source (clean, one cell of explained parameters, prose) and their print in results/demo (fresh)."""

import ast
import itertools
import json
import re

import nbformat
import pytest
import run
from nbval.plugin import find_comment_markers, metadata_tags

from plg_utils import datasets, files

NUMBERED = sorted(run.NOTEBOOKS.glob("*.ipynb"))
ALL = NUMBERED + sorted(run.NOTEBOOKS.glob("extra/*.ipynb"))
PRINTS = sorted((files.ROOT / "results" / "demo").glob("*.ipynb"))
FREE_OF_THE_DRAWN_WORLD = ("02", "03", "04", "05", "06")
MARKED_CELLS = 0  # cells in which nbval does not compare everything; each says why beneath its mark

numbered = pytest.mark.parametrize("path", NUMBERED, ids=lambda path: path.stem)
every = pytest.mark.parametrize("path", ALL, ids=lambda path: path.stem)
printed = pytest.mark.skipif(not PRINTS, reason="results/demo holds no notebooks yet: make demo, make publish RUN=demo")


def cells(path, kind=None):
    """Cells of a notebook, of one kind or all."""
    content = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [cell for cell in content if kind in (None, cell["cell_type"])]


def python(cell):
    """The syntax tree of a code cell without its % and ! lines."""
    return ast.parse(re.sub(r"^\s*[%!].*$", "", run.source(cell), flags=re.MULTILINE))


def names_read(cell):
    """Names that a code cell reads."""
    return {node.id for node in ast.walk(python(cell)) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}


def marks(cell):
    """What in a cell makes nbval compare less: comments and tags."""
    tags = [tag for tag in cell["metadata"].get("tags", []) if tag in metadata_tags]
    return [name for name, _ in find_comment_markers(run.source(cell))] + tags


@every
def test_committed_without_outputs(path):
    assert [cell["outputs"] for cell in cells(path, "code") if cell["outputs"]] == []
    assert {cell["execution_count"] for cell in cells(path, "code")} <= {None}
    assert json.loads(path.read_text(encoding="utf-8"))["metadata"]["kernelspec"]["name"] == "python3"


@every
def test_opens_with_title_and_what_it_reads_and_writes(path):
    opening = "".join(run.source(cell) + "\n\n" for cell in itertools.takewhile(is_prose, cells(path)))
    title = opening.splitlines()[0]
    assert title.startswith("# ")
    assert path.stem[:2] in title or not path.stem[:2].isdigit(), f"{title!r} does not hold the notebook's number"
    assert re.search(r"^\| *reads *\| *writes *\|", opening, flags=re.MULTILINE)


def is_prose(cell):
    return cell["cell_type"] == "markdown"


@numbered
def test_first_code_cell_holds_the_parameters(path):
    first, *others = cells(path, "code")
    assert "parameters" in first["metadata"].get("tags", [])
    assert not any("parameters" in cell["metadata"].get("tags", []) for cell in others)
    lines = run.source(first).splitlines()
    for statement in python(first).body:
        assert isinstance(statement, ast.Assign), f"{lines[statement.lineno - 1]!r} is not name = literal"
        ast.literal_eval(statement.value)  # raises if it is no literal
        assert re.search(r"#\s*\S", lines[statement.end_lineno - 1]), f"{lines[statement.lineno - 1]!r}: what is it?"
    read = set().union(*map(names_read, others))
    assert set(run.defaults(path)) - read == set(), "parameters that nothing reads"
    assert run.defaults(path)["run"] == "demo"


def test_a_parameter_has_the_same_default_everywhere():
    values = {}
    for path in NUMBERED:
        for name, default in run.defaults(path).items():
            values.setdefault(name, {}).setdefault(repr(default), []).append(path.stem)
    assert {name: found for name, found in values.items() if len(found) > 1} == {}


def test_what_was_seen_in_the_drawn_world_stands_in_cells_of_the_demo():
    """In other cells of these notebooks no class of the storybook is named: a run of other photos prints them too."""
    things = files.read_yaml(datasets.CLASS_FILES / "storybook.yaml")["classes"]
    names = "|".join(thing["name"] for thing in things if thing["name"] != "person")  # who draws labels is one too
    words = re.compile(rf"\b({names})(e?s)?\b", re.IGNORECASE)
    for path in [path for path in NUMBERED if path.stem[:2] in FREE_OF_THE_DRAWN_WORLD]:
        for cell in cells(path, "markdown"):
            if not run.tagged(cell, "demo"):
                prose = re.sub(r"\]\([^)]*\)|`[^`]*`", "", run.source(cell))  # addresses and code may name them
                assert not words.search(prose), f"{path.stem}: {words.search(prose)} in {prose!r}"
    assert any(run.tagged(cell, "demo") for path in NUMBERED for cell in cells(path))


def test_the_notebooks_are_a_chain_and_the_first_lists_them_all():
    titles = {path.name: run.source(cells(path)[0]).splitlines()[0].removeprefix("# ") for path in NUMBERED}
    links = [f"[{title}]({name})" for name, title in titles.items()]
    assert [link for link in links[1:] if link not in run.source(cells(NUMBERED[0])[0])] == []
    for path, before, after in zip(NUMBERED, [None, *links], [*links[1:], None], strict=False):
        closing = run.source(cells(path)[-1]).splitlines()[-1]
        assert before is None or f"**Before:** {before}" in closing, f"{path.name} ends with {closing!r}"
        assert after is None or f"**Next:** {after}" in closing, f"{path.name} ends with {closing!r}"


@every
def test_no_class_and_at_most_three_code_cells_in_a_row(path):
    assert not any(isinstance(node, ast.ClassDef) for cell in cells(path, "code") for node in ast.walk(python(cell)))
    runs = [len(list(group)) for prose, group in itertools.groupby(cells(path), key=is_prose) if not prose]
    assert max(runs) <= 3


def test_a_cell_that_nbval_does_not_compare_says_why_and_is_counted():
    marked = [cell for path in NUMBERED for cell in cells(path, "code") if marks(cell)]
    for cell in marked:
        assert re.search(r"^# *NBVAL_\w+ *\n# *(\S+ +){3,}", run.source(cell), flags=re.MULTILINE), run.source(cell)
    assert len(marked) == MARKED_CELLS


@pytest.mark.skipif(not NUMBERED, reason="notebooks/ holds none yet")
@pytest.mark.parametrize("name", sorted(path.parent.name for path in run.PUBLISHED.glob("*/parameters.yaml")))
def test_each_published_run_names_notebooks_and_parameters_that_exist(name):
    run.steps_of(run.read(name), {}, name)


@printed
def test_the_print_is_of_these_notebooks():
    steps = run.steps_of(run.read("demo"), {}, "demo")
    assert [path.name for path in PRINTS] == [step.notebook.name for step in steps]
    run_file = PRINTS[0].parent / "run.json"
    stale = {path.stem: run.outdated(path, step, run_file) for path, step in zip(PRINTS, steps, strict=True)}
    assert not any(stale.values()), f"the demo run is older than its source: {stale}; make demo, make publish RUN=demo"


@printed
@pytest.mark.parametrize("path", PRINTS, ids=lambda path: path.stem)
def test_the_print_is_clean_and_holds_outputs(path):
    text = path.read_text(encoding="utf-8")
    notebook = nbformat.reads(text, as_version=4)
    assert any(cell.outputs for cell in notebook.cells if cell.cell_type == "code")
    assert not any(output.output_type == "error" for cell in notebook.cells for output in cell.get("outputs", []))
    assert nbformat.writes(run.clean(notebook)).strip() == text.strip()
