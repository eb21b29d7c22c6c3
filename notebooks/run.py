"""Execute the numbered notebooks of a run in order, and print their copies.

    python notebooks/run.py demo                 # 00 to 05 with results/demo/parameters.yaml
    python notebooks/run.py demo -p steps 200    # the same with one parameter changed
    python notebooks/run.py demo -p preset fast  # the same, faster and not as good: see presets.yaml
    python notebooks/run.py demo --publish       # copy the finished run from results/local/demo to results/demo
    python notebooks/run.py table -g labelled 12,24,48 -g seed 0,1,2    # nine runs and a table of their means
    python notebooks/run.py table --dry-run      # which of them are done

A run is a file results/RUN/parameters.yaml: only what differs from the notebooks' defaults, and, if it is not 00 to
05, a list `notebooks`. Results go below the environment's PLG_RESULTS, by default results/local. A run that was
stopped is started again with the same command; the stages skip what is already done.

A mapping `grid` in that file, parameter: list of values, makes the run a grid: the notebooks run with each combination.
-g changes or adds one of its parameters; values that hold commas or brackets are written as one YAML list. A list
`shared` names the stages that points with the same parameters compute once, by default masks and segments. How points
are kept, shared and gone on with stands in grid.py.

The parameter `preset`, which no notebook has, stands for those that presets.yaml lists under its value; -p data_root
DIR and -p class_file FILE stand for `root` and `classes` in dataset_options.
"""

import argparse
import base64
import difflib
import json
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grid
from grid import Refused

from plg_utils import files
from plg_utils.notebooks import assigned, code_of, defaults, source, tagged

NOTEBOOKS = files.ROOT / "notebooks"
PUBLISHED = files.ROOT / "results"
KERNEL_START = 600  # seconds; a busy machine may need minutes
PRESETS = NOTEBOOKS / "presets.yaml"
SHORT = {"data_root": ("dataset_options", "root"), "class_file": ("dataset_options", "classes")}  # for -p
COUNTS = ("steps", "batch_size", "crop_size", "images_at_once", "processes")  # 0 of them makes no sense
PARTS = ("labelled",)  # whole numbers that may also be told as a part, such as "1/8"
TRACEBACK_LINES = 12  # shown of a failed cell; the copy holds the rest


@dataclass(frozen=True)
class Step:
    """A notebook of a run and what is injected into it."""

    notebook: Path
    parameters: dict[str, Any]  # `run` first, then what differs from the defaults


@dataclass(frozen=True)
class Recipe:
    """What results/RUN/parameters.yaml says."""

    run: str
    known: dict[Path, dict[str, Any]]  # notebook -> its parameters and their defaults
    values: dict[str, Any]  # what differs from the defaults
    axes: dict[str, list]  # of the grid
    shared: list[str] | None  # stages that points of the grid share; None: not said


# What a run is


class Loader(files.PlainYaml):
    """Our YAML, in which 1e-3 is a number, as in Python; YAML 1.1 wants 1.0e-3 and reads the other as text."""


Loader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"[-+]?\d+[eE][-+]?\d+$"), list("-+0123456789"))


def literal(text: str, where: str) -> Any:
    """Read YAML as Python's numbers, texts, lists and mappings."""
    try:
        return files.parse_yaml(text, where, Loader)
    except ValueError as error:
        raise Refused(str(error)) from error


def fits(value: Any, default: Any) -> bool:
    """Whether a value can stand for a default: the same kind, a whole number for any number, null for all."""
    if value is None or default is None:
        return True
    kind = {tuple: list}.get(type(default), type(default))  # YAML knows no tuple
    return type(value) is kind or (kind is float and type(value) is int)


def read(run: str, *, notebooks: Path = NOTEBOOKS, published: Path = PUBLISHED) -> Recipe:
    """Read the file of a run, and the parameters of its notebooks."""
    file = published / run / "parameters.yaml"
    runs = sorted(path.parent.name for path in published.glob("*/parameters.yaml"))
    if run not in runs:
        near = difflib.get_close_matches(run, runs)
        hint = f"did you mean {' or '.join(near)}?" if near else f"known are: {', '.join(runs) or 'none'}."
        raise Refused(f"no run {run!r}; {hint} A new run is a new file {file}")
    try:
        values = literal(file.read_text(encoding="utf-8"), str(file)) or {}
    except UnicodeDecodeError as error:
        raise Refused(f"{file} is no text in UTF-8 ({error.reason} at byte {error.start})") from error
    if not isinstance(values, dict):
        raise Refused(f"{file} holds a {type(values).__name__}, not lines of `name: value`")

    chosen = values.pop("notebooks", None) or sorted(path.stem for path in notebooks.glob("0[0-5]_*.ipynb"))
    if not isinstance(chosen, list) or not all(isinstance(name, str) for name in chosen):
        raise Refused(f"`notebooks` in {file} is {chosen!r}, not a list of names such as [01_data]")
    paths = [notebooks / f"{name}.ipynb" for name in chosen]
    missing = [path.name for path in paths if not path.is_file()]
    if missing or not paths:
        raise Refused(f"{notebooks} holds no {', '.join(missing) or 'notebooks 00 to 05'}")

    axes, shared = values.pop("grid", None) or {}, values.pop("shared", None)
    if not isinstance(axes, dict):
        raise Refused(f"`grid` in {file} is a {type(axes).__name__}, not lines of `name: [value, value]`")
    if shared is not None and not (isinstance(shared, list) and all(isinstance(name, str) for name in shared)):
        raise Refused(f"`shared` in {file} is {shared!r}, not a list of stages such as {list(grid.SHARED)}")
    twice = sorted(axes.keys() & values.keys(), key=str)
    if twice:
        raise Refused(f"{file} has {twice[0]} both as a parameter and in its grid: keep one")
    return Recipe(run, {path: defaults(path) for path in paths}, values, axes, shared)


def all_defaults_of(recipe: Recipe) -> dict[str, Any]:
    """Parameters of all notebooks of a run, with their defaults."""
    return {name: default for own in recipe.known.values() for name, default in own.items()}


def presets() -> dict[str, dict[str, Any]]:
    """The presets: name -> parameters, and in `times` factors of parameters."""
    return literal(PRESETS.read_text(encoding="utf-8"), str(PRESETS))


def written_out(given: list[tuple[str, Any]]) -> dict[str, Any]:
    """Parameters as -p gives them, later ones over earlier ones, with those in SHORT put where they belong.

    Paths in these are meant from where the command is given; notebooks run in a folder of their own.
    """
    changes: dict[str, Any] = {}
    for name, value in given:
        mapping, key = SHORT.get(name, (None, None))
        if mapping and not isinstance(value, str | list):
            raise Refused(f"{name} is {value!r}, a {type(value).__name__}, not the path of a file or folder")
        if mapping and isinstance(value, str):
            path = Path(value).expanduser().absolute()
            if not path.exists():
                raise Refused(f"{name} is {value}, and there is no {path}")
            value = str(path)
        changes |= joined(changes, {mapping: {key: value}} if mapping else {name: value})
    return changes


def settled(recipe: Recipe, changes: dict[str, Any]) -> dict[str, Any]:
    """What differs from the defaults: the run's values, over them those of the preset, over these the changes.

    Of a mapping that stands below, the preset and the changes replace the keys that they name.
    """
    values = {key: value for key, value in recipe.values.items() if key != "preset"}
    name = (recipe.values | changes).get("preset")
    if name is not None:
        before = all_defaults_of(recipe) | values
        preset = {key: value for key, value in presets()[name].items() if key in before}  # some runs train nothing
        factors = presets()[name].get("times", {})
        preset |= {key: max(1, round(before[key] * factor)) for key, factor in factors.items() if key in before}
        values |= joined(before, preset)
    return values | joined(values, {key: value for key, value in changes.items() if key != "preset"})


def joined(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Values `above`, in which a mapping keeps the keys of the one below that it does not name."""
    both = {key for key in above if isinstance(below.get(key), dict) and isinstance(above[key], dict)}
    return above | {key: below[key] | above[key] for key in both}


def check(recipe: Recipe, values: dict[str, Any]) -> None:
    """Refuse a parameter that no notebook of the run has, or a value of another kind than the default."""
    if "run" in values:
        raise Refused("`run` is the name of the run, the first argument; it is not set as a parameter")
    all_defaults = all_defaults_of(recipe)
    for name, value in values.items():
        if name == "preset":
            if value is not None and (not isinstance(value, str) or value not in presets()):
                raise Refused(f"there is no preset {value!r}, only {', '.join(presets())}: see {PRESETS.name}")
            continue
        if name not in all_defaults:
            near = difflib.get_close_matches(str(name), [*all_defaults, *SHORT, "preset"])
            hint = f"did you mean {' or '.join(near)}?" if near else f"there are: {', '.join(sorted(all_defaults))}"
            raise Refused(f"no notebook of the run {recipe.run} has a parameter {name!r}; {hint}")
        default = all_defaults[name]
        if name in COUNTS and type(value) is int and value < 1:
            raise Refused(f"{name} is {value!r}; right is a whole number from 1 on, such as the default {default!r}")
        if not fits(value, default) and not (name in PARTS and isinstance(value, str)):
            raise Refused(
                f"{name} is {value!r}, a {type(value).__name__}; "
                f"right is the type {type(default).__name__}, such as the default {default!r}"
            )


def steps_of(recipe: Recipe, changes: dict[str, Any], name: str) -> list[Step]:
    """The notebooks with their parameters; `name` is what they get as `run`."""
    check(recipe, recipe.values | changes)
    values = settled(recipe, changes)
    # A notebook gets only what its own cell of parameters names, in that order.
    return [
        Step(path, {"run": name} | {key: values[key] for key in own if key in values})
        for path, own in recipe.known.items()
    ]


def plan(run: str, changes: dict[str, Any], *, notebooks: Path = NOTEBOOKS, published: Path = PUBLISHED) -> list[Step]:
    """The notebooks of a run with their parameters; everything that can be wrong before any work is refused here."""
    return steps_of(read(run, notebooks=notebooks, published=published), changes, run)


def listed(name: str, text: str) -> list:
    """Values of -g: a YAML list, or texts between commas."""
    where = f"the list of {name}"
    text = text.strip()
    if text.startswith("["):
        return literal(text, where)
    if re.search(r"[][{}\"']", text):
        raise Refused(f"{where} is {text!r}; values with brackets or quotes are written as a YAML list: '[..., ...]'")
    parts = [part.strip() for part in text.split(",")]
    if not text or "" in parts:
        raise Refused(f"{where} {f'has an empty place: {text!r}' if text else 'is empty'}; write it as 0,1,2")
    return [literal(part, where) for part in parts]


def axes_of(recipe: Recipe, given: list[tuple[str, str]], changes: dict[str, Any]) -> dict[str, list]:
    """Parameters of the grid with their values, in the order of the notebooks' cells; what is wrong is refused."""
    names = [name for name, _ in given]
    for name in names:
        if names.count(name) > 1:
            raise Refused(f"-g {name} is given {names.count(name)} times: write all its values in one list")
    axes = recipe.axes | {name: listed(name, text) for name, text in given}
    for name, values in axes.items():
        if name in changes:
            raise Refused(f"{name} is in the grid and changed by -p: give its values by -g {name} alone")
        if not isinstance(values, list):
            raise Refused(f"the grid has {name}: {values!r}, a {type(values).__name__}, not a list of values")
        check(recipe, {name: None})
        if not values:
            raise Refused(f"the list of {name} is empty; a grid needs at least one value of each of its parameters")
        for index, value in enumerate(values):
            check(recipe, {name: value})
            if any(grid.same(value, earlier) for earlier in values[:index]):
                raise Refused(f"the list of {name} holds {value!r} twice; each value makes points of its own")
    known = ["preset", *all_defaults_of(recipe)]
    return {name: axes[name] for name in known if name in axes}


def grid_of(recipe: Recipe, axes: dict[str, list], changes: dict[str, Any], folder: Path, published: Path) -> grid.Grid:
    """All points of a run's grid, which keeps its results in `folder` and publishes into `published`."""
    points = []
    for chosen in grid.combinations(axes):
        name = grid.name_of(chosen)
        steps = steps_of(recipe, changes | chosen, name)
        values = settled(recipe, changes | chosen)
        known = {
            path.stem: {name: values.get(name, default) for name, default in own.items()}
            for path, own in recipe.known.items()
        }
        points.append(grid.Point(name, chosen, steps, known))
    code = {path.stem: code_of(path) for path in recipe.known}
    found = {stage: grid.writer_of(stage, code) for stage in recipe.shared or grid.SHARED if recipe.shared != []}
    unknown = [stage for stage, writer in found.items() if writer is None]
    if recipe.shared and unknown:
        raise Refused(
            f"{unknown[0]} cannot be shared: no notebook of the run opens store.stage(folder / {unknown[0]!r}"
        )
    writers = {stage: writer for stage, writer in found.items() if writer}
    return grid.Grid(recipe.run, axes, points, folder, published, writers)


# Execution


def execute(step: Step, folder: Path) -> Path:
    """Execute a notebook; write its cleaned copy into `folder` and return where.

    While it runs, and if it fails, what there is of it stands in NAME.partial.ipynb.
    """
    import nbformat  # these two take seconds to import, which a refused run need not wait for
    import papermill

    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f"{step.notebook.stem}.partial.ipynb"
    os.environ.setdefault("PLG_PROGRESS", "stderr")  # of the kernels, whence it comes through to ours
    papermill.execute_notebook(
        step.notebook,
        partial,
        step.parameters,
        cwd=step.notebook.parent,  # nbval runs in the notebook's folder too
        progress_bar=False,  # of cells; the kernels' own bars say more, and come through their stderr
        stderr_file=sys.stderr,
        start_timeout=KERNEL_START,
        extra_arguments=["--IPKernelApp.log_level=50"],  # no kernel need say that it listens here, or is told to end
    )
    path = folder / step.notebook.name
    with files.atomic(path) as temporary:
        nbformat.write(clean(nbformat.read(partial, as_version=4)), temporary)
    partial.unlink()
    return path


def clean(notebook: Any) -> Any:
    """Strip an executed notebook of what differs from run to run, so that a new run makes no diff.

    Gone are papermill's timings and paths, random cell ids, and what was written to stderr: progress and warnings.
    """
    notebook.nbformat_minor = 5  # the first with cell ids
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    count = 0
    for index, cell in enumerate(notebook.cells):
        cell.id = f"{index:02d}"
        tags = cell.metadata.get("tags")
        cell.metadata = {"tags": tags} if tags else {}
        if cell.cell_type == "code":
            count += 1
            cell.execution_count = count
            cell.outputs = printed(cell.outputs)
            for output in cell.outputs:
                if output.output_type == "execute_result":
                    output.execution_count = count
    return notebook


def printed(outputs: list) -> list:
    """Outputs of a cell as they are printed: no stderr, no widgets, small pictures, pieces of text as one."""
    from plg_utils.figures import (
        shrink_png,  # matplotlib takes a second to import, which a refused run need not wait for
    )

    kept = []
    for output in outputs:
        data = output.get("data", {})
        if output.get("name") == "stderr" or "application/vnd.jupyter.widget-view+json" in data:
            continue
        if "image/png" in data:
            data["image/png"] = base64.b64encode(shrink_png(base64.b64decode(data["image/png"]))).decode()
        if kept and output.output_type == "stream" and kept[-1].output_type == "stream":
            kept[-1].text += output.text  # where a text is cut depends on the moment
        else:
            kept.append(output)
    return kept


@contextmanager
def environment(**variables: str) -> Iterator[None]:
    """Set variables of the environment while the block runs, for the kernels that it starts."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def execute_all(
    steps: list[Step], folder: Path, around: Callable[[Step], AbstractContextManager] = nullcontext
) -> bool:
    """Execute the notebooks of a run in order, up to the first that fails; whether all went well.

    around: gives what to hold while a notebook is executed
    """
    prints = folder / "notebooks"
    print(f"{steps[0].parameters['run']}: {len(steps)} notebooks, results in {folder}", flush=True)
    for step in steps:
        begin = time.perf_counter()
        try:
            # Kernels run in another folder and must find the same results; without the second, each starts with a
            # warning about debuggers.
            with around(step), environment(PLG_RESULTS=str(folder.parent), PYDEVD_DISABLE_FILE_VALIDATION="1"):
                execute(step, prints)
        except Exception as error:  # a failed cell, a dead kernel, a full disk: all stop the run here
            copy = prints / f"{step.notebook.stem}.partial.ipynb"
            print(f"{step.notebook.stem} failed after {duration(begin)}\n{last_lines(error)}", file=sys.stderr)
            print(f"The cells up to here: {copy}", file=sys.stderr)
            return False
        print(f"{step.notebook.stem}  {duration(begin)}", flush=True)
        if step is steps[0]:  # from now on what exists belongs to this run; one that fails at once leaves all as it was
            for old in [*(prints / later.notebook.name for later in steps[1:]), folder / "index.html"]:
                old.unlink(missing_ok=True)
    return True


def duration(begin: float) -> str:
    """Time since `begin` (seconds of time.perf_counter) for a reader."""
    seconds = round(time.perf_counter() - begin)
    return f"{seconds} s" if seconds < 120 else f"{seconds // 60} min {seconds % 60:02d} s"


def last_lines(error: Exception) -> str:
    """The end of what an error says, without colours."""
    traceback = getattr(error, "traceback", None) or [f"{type(error).__name__}: {error}"]
    lines = re.sub(r"\x1b\[[\d;]*m", "", "\n".join(traceback)).rstrip().splitlines()
    return "\n".join(f"    {line}" for line in lines[-TRACEBACK_LINES:])


def ladder(summary: dict) -> str:
    """The rows of a run's summary as a table: mean IoU in percent, from stage to stage, called as in the figures."""
    table = [["what", "counted on", "mean IoU %"]]
    for row in summary["rows"]:
        name = row.get("name") or ", ".join([row["method"], *map(str, (row.get("options") or {}).values())])
        miou = "-" if row["miou"] is None else f"{100 * row['miou']:.1f}"
        table.append([name, f"{row.get('images', '')} {row['split']} images".lstrip(), miou.rjust(len("mean IoU %"))])
    return grid.aligned(table)


def report(folder: Path) -> str:
    """What a finished run has to show: its results, and where to look."""
    lines = []
    if (folder / "summary.json").is_file():
        summary = files.read_json(folder / "summary.json")
        told = ladder(summary) if summary["rows"] else "no truth to compare with: look at the pictures"
        lines += ["", told, ""]
    labels = sorted(path.parent.name for path in folder.glob("labels_*/manifest.json"))
    if labels:
        lines.append(f"labels:    {folder}/ {', '.join(labels)}")
    pictures = sorted((folder / "figures").glob("*"))
    if (folder / "index.html").is_file():
        lines.append(f"page:      {folder / 'index.html'}")
    if pictures:
        lines.append(f"pictures:  {folder / 'figures'} ({len(pictures)})")
    lines.append(f"notebooks: {folder / 'notebooks'}")
    return "\n".join(lines)


def write_page(folder: Path) -> None:
    """Write the page of an evaluated run beside its summary.json; a run is no failure because its page is one."""
    if not (folder / "summary.json").is_file():
        return
    from plg_utils import page  # matplotlib takes a second to import, which a refused run need not wait for

    try:
        page.write(folder)
    except Exception as error:  # whatever it is, the run's results are there and must be shown
        print(f"no page ({type(error).__name__}: {error}): python -m plg_utils.page {folder.name}", file=sys.stderr)


# Publishing


def outdated(copy: Path, step: Step) -> str:
    """Why an executed copy is not the print of this notebook with these parameters; empty if it is."""
    if not copy.is_file():
        return "it is missing"

    def cells(path: Path) -> list[tuple[str, str]]:
        content = json.loads(path.read_text(encoding="utf-8"))["cells"]
        own = [cell for cell in content if "injected-parameters" not in cell["metadata"].get("tags", [])]
        return [(cell["cell_type"], source(cell)) for cell in own]

    if cells(copy) != cells(step.notebook):
        return "the notebook has changed since"
    injected = assigned("\n".join(tagged(copy, "injected-parameters")))
    if injected != step.parameters:
        return f"it was run with {injected}, not with {step.parameters}"
    return ""


def publish(steps: list[Step], folder: Path, target: Path) -> list[Path]:
    """Copy a finished run's notebooks, JSON files, figures and page from `folder` to `target`; return the copies.

    What an earlier run left there is removed; parameters.yaml stays.
    """
    for step in steps:
        reason = outdated(folder / "notebooks" / step.notebook.name, step)
        if reason:
            run = step.parameters["run"]
            raise Refused(f"{step.notebook.stem} cannot be published: {reason}. Run first: notebooks/run.py {run}")
    for old in [*target.glob("*.ipynb"), *target.glob("*.json"), *target.glob("figures/*"), target / "index.html"]:
        old.unlink(missing_ok=True)
    originals = [folder / "notebooks" / step.notebook.name for step in steps]
    originals += [*sorted(folder.glob("*.json")), *sorted(folder.glob("figures/*")), *folder.glob("index.html")]
    copies = [target / (f"figures/{path.name}" if path.parent.name == "figures" else path.name) for path in originals]
    for original, copy in zip(originals, copies, strict=True):
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(original, copy)
    return copies


def parser() -> argparse.ArgumentParser:
    """The command line."""
    told = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0], epilog="A run is a file results/RUN/parameters.yaml."
    )
    told.add_argument("run", metavar="RUN", help="its name, such as demo")
    told.add_argument(
        "-p",
        nargs=2,
        action="append",
        default=[],
        metavar=("NAME", "VALUE"),
        help="change a parameter (YAML); of a mapping that the run has only the keys named",
    )
    told.add_argument(
        "-g",
        nargs=2,
        action="append",
        default=[],
        metavar=("NAME", "VALUES"),
        help="run with each of these values, such as 12,24,48 or a YAML list, and with each combination of several -g",
    )
    told.add_argument("--dry-run", action="store_true", help="list what would be executed, execute nothing")
    told.add_argument("--keep", action="store_true", help="keep the folder of each finished point of a grid")
    told.add_argument("--against", metavar="METHOD", help="of a grid: differences to this method, seed by seed")
    told.add_argument("--publish", action="store_true", help="copy the finished run into results/RUN, execute nothing")
    return told


def main(arguments: list[str] | None = None, *, notebooks: Path = NOTEBOOKS, published: Path = PUBLISHED) -> int:
    """Run or publish what the command line says; 0 if all went well, 1 if a notebook failed, 2 if it was refused."""
    command = parser()
    options = command.parse_args(arguments)
    if options.publish and (options.p or options.g):
        command.error("what is published is what parameters.yaml says: write the change there and run again")
    try:
        changes = written_out([(name, literal(value, f"the value of {name}")) for name, value in options.p])
        recipe = read(options.run, notebooks=notebooks, published=published)
        axes = axes_of(recipe, options.g, changes)
        folder, target = files.results_root() / options.run, published / options.run
        if axes:
            return grid.main(grid_of(recipe, axes, changes, folder, target), options, execute_all)
        if options.keep or options.against:
            raise Refused(f"--keep and --against are of grids, and {options.run} is none: add -g NAME VALUES")
        return single_main(steps_of(recipe, changes, options.run), folder, target, options)
    except Refused as refusal:
        print(refusal, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nStopped. The same command goes on from here.", file=sys.stderr)
        return 130


def single_main(steps: list[Step], folder: Path, target: Path, options: argparse.Namespace) -> int:
    """Run or publish one run."""
    if options.dry_run:
        print("\n".join(f"{step.notebook.stem}  {step.parameters}" for step in steps))
        return 0
    if options.publish:
        print(f"{len(publish(steps, folder, target))} files in {target}")
        return 0
    with grid.lock(folder / "run.lock") as holder:
        if holder:
            raise Refused(f"{folder.name} is being made by {holder}: two would write the same files. Wait, or stop it")
        if not execute_all(steps, folder):
            return 1
        write_page(folder)
    print(report(folder))
    return 0


if __name__ == "__main__":
    sys.exit(main())
