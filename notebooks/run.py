"""Execute the numbered notebooks of a run in order, and print their copies.

    python notebooks/run.py demo                 # 00 to 05 with results/demo/parameters.yaml
    python notebooks/run.py demo -p steps 200    # the same with one parameter changed
    python notebooks/run.py demo --publish       # copy the finished run from results/local/demo to results/demo
    python notebooks/run.py table -g labelled 12,24,48 -g seed 0,1,2    # nine runs and a table of their means
    torchrun --nproc-per-node 4 notebooks/run.py voc_92 --stages        # the slow stages, in several processes

A run is a file results/RUN/parameters.yaml: what differs from the notebooks' defaults. `notebooks` lists which ones it
has, by default 00 to 05; `grid` (parameter: list of values) runs them with each combination, see grid.py. -p data_root
DIR and -p class_file FILE stand for `root` and `classes` in dataset_options. Of a mapping only the keys that are named
change. Results go below the environment's PLG_RESULTS, by default results/local; run.json there holds all parameters.
The same command continues a run that was stopped.
"""

import argparse
import ast
import base64
import os
import re
import shlex
import shutil
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import allowed
import grid

from plg_utils import checkpoints, choices, files

NOTEBOOKS = files.ROOT / "notebooks"
PUBLISHED = files.ROOT / "results"
Refused = ValueError  # every refusal says what would be right
KERNEL_START = 600  # seconds; a busy machine may need minutes
SHORT = {"data_root": ("dataset_options", "root"), "class_file": ("dataset_options", "classes")}  # for -p
# A mapping, and the parameter that names the thing it belongs to.
BELONGS_TO = {f"{name}_options": name for name in ("dataset", "encoder", "segmenter", "detector")}
BELONGS_TO |= {"mask_options": "mask_model", "concept_options": "concepts"}
MEMORY = (  # Linux ends a process that fills the memory, and says so to no one
    "The notebook's process died, probably out of memory. Close other programs, make the photos smaller, or lower "
    "images_at_once, batch_size or crop_size with -p. The same command goes on from here."
)
environment = partial(mock.patch.dict, os.environ)  # variables while a block runs, for the kernels that it starts


# What a run is


def source(cell: dict) -> str:
    """Text of a cell; files hold it whole or as a list of lines."""
    return "".join(cell["source"])


def tagged(cell: dict, tag: str) -> bool:
    """Whether a cell has a tag."""
    return tag in cell["metadata"].get("tags", [])


def defaults(notebook: Path) -> dict[str, Any]:
    """Names and default values in the cell of a notebook that is tagged `parameters`."""
    cells = [source(cell) for cell in files.read_json(notebook)["cells"] if tagged(cell, "parameters")]
    return {line.targets[0].id: ast.literal_eval(line.value) for line in ast.parse("\n".join(cells)).body}


@dataclass(frozen=True)
class Step:
    """A notebook of a run and what is injected into it."""

    notebook: Path
    parameters: dict[str, Any]  # `run` first, then what was set

    @property
    def known(self) -> dict[str, Any]:
        """All parameters of the notebook, defaults included."""
        return defaults(self.notebook) | self.parameters

    def shows(self, cell: dict) -> bool:
        """Whether a cell is part of this run: what was seen in the demo's pictures is only said of the demo."""
        known = self.known | {"run": 0}
        if known.get("concept_options") == {"checkpoint": None}:  # random weights have no vote and no score
            known["concept_options"] = None
        return not tagged(cell, "demo") or known == defaults(self.notebook) | {"run": 0}


@dataclass(frozen=True)
class Recipe:
    """What results/RUN/parameters.yaml says."""

    run: str
    known: dict[Path, dict[str, Any]]  # notebook -> its parameters and their defaults
    values: dict[str, Any]  # what differs from the defaults
    axes: dict[str, list]  # of the grid


class Loader(files.PlainYaml):
    """Our YAML, in which 1e-3 is a number, as in Python; YAML 1.1 wants 1.0e-3 and reads the other as text."""


Loader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"[-+]?\d+[eE][-+]?\d+$"), list("-+0123456789"))
literal = partial(files.parse_yaml, loader=Loader)  # (text, where) -> Python's numbers, texts, lists and mappings


def read(run: str, *, notebooks: Path = NOTEBOOKS, published: Path = PUBLISHED) -> Recipe:
    """Read the file of a run, and the parameters of its notebooks."""
    runs = sorted(path.parent.name for path in published.glob("*/parameters.yaml"))
    try:
        file = published / choices.one_of(run, runs, "run") / "parameters.yaml"
    except ValueError as error:
        raise Refused(f"{error}. A new run is a new file results/RUN/parameters.yaml") from error
    values = literal("\n".join(files.read_lines(file)), file) or {}
    if not isinstance(values, dict):
        raise Refused(f"{file} holds a {type(values).__name__}; write lines of `name: value`")
    axes, chosen = values.pop("grid", None) or {}, values.pop("notebooks", None) or []
    if not (isinstance(chosen, list) and all(isinstance(item, str) for item in chosen)):
        raise Refused(f"`notebooks` in {file} is {chosen!r}; write a list of names such as [01_data]")
    if not isinstance(axes, dict):
        raise Refused(f"`grid` in {file} is a {type(axes).__name__}; write lines of `name: [value, value]`")
    if twice := [name for name in axes if name in values]:
        raise Refused(f"{file} has {twice[0]} both as a parameter and in its grid: keep one")
    paths = [notebooks / f"{name}.ipynb" for name in chosen] or sorted(notebooks.glob("0[0-5]_*.ipynb"))
    if missing := [path.name for path in paths if not path.is_file()]:
        raise Refused(f"{notebooks} holds no {', '.join(missing)}: correct `notebooks` in {file}")
    return Recipe(run, {path: defaults(path) for path in paths}, values, axes)


def all_defaults_of(recipe: Recipe) -> dict[str, Any]:
    """Parameters of all notebooks of a run, with their defaults."""
    return {name: default for own in recipe.known.values() for name, default in own.items()}


def yaml_of(text: str, where: str) -> Any:
    """Value of a YAML text on the command line, unless YAML takes a part of it for a comment."""
    hidden = re.sub(r"(?<!\S)#", "\ue000", text)
    try:
        value = literal(text, where)
    except Refused as error:
        if hidden == text:
            raise
        value = error
    if hidden != text and repr(literal(hidden, where)).replace("\\ue000", "#") != repr(value):
        raise Refused(f"{where} is {text}, and YAML leaves out all after ' #': put the text that holds it into quotes")
    return value


def written_out(given: list[tuple[str, str]]) -> dict[str, Any]:
    """Parameters as -p gives them, in YAML, later ones over earlier ones, with those in SHORT put where they belong.

    Paths are taken as they are, and are meant from where the command is given; notebooks run in a folder of their own.
    """
    changes: dict[str, Any] = {}
    for name, text in given:
        is_path = name in SHORT and not (name == "class_file" and text.lstrip()[:1] in ("[", "{"))
        value = text if is_path else yaml_of(text, f"the value of {name}")
        if name not in SHORT:
            added = {name: paths_from_here(name, value)}
        elif not isinstance(value, str | list) or not value:
            raise Refused(f"{name} is {value!r}, a {type(value).__name__}; give the path of a file or folder")
        else:
            if is_path and not absolute(text).exists():
                names = f", or a list of names: -p class_file '[{text}]'" if name == "class_file" else ""
                raise Refused(f"{name} is {text}, and there is no {absolute(text)}: correct the path{names}")
            mapping, key = SHORT[name]
            added = {mapping: {key: str(absolute(text)) if is_path else value}}
        changes |= joined(changes, added, {})
    return changes


def absolute(path: str) -> Path:
    """A path as the shell means it where the command is given; a folder may be called ~x."""
    return Path(os.path.expanduser(path)).absolute()


def paths_from_here(name: str, value: Any) -> Any:
    """The value of a parameter; of a mapping of options with relative paths as absolute ones.

    A class file, a checkpoint or weights may have a name that is no path, which is left if no such file is here.
    """
    if not (isinstance(value, dict) and name in BELONGS_TO):
        return value
    found = dict(value)
    for key, item in value.items():
        must, may = key in ("root", "labels"), key in ("classes", "checkpoint", "pretrained")
        if (must and item is not None and not isinstance(item, str)) or (may and type(item) in (int, float, date)):
            raise Refused(f"{key} in {name} is {item!r}, a {type(item).__name__}; a path belongs into quotes: '{item}'")
        if isinstance(item, str) and item not in checkpoints.LISTED and (must or may):
            path = absolute(item)
            is_file = path.is_file() or (path / checkpoints.WEIGHTS).is_file()
            if may and not is_file and path.suffix in (".pth", ".pt", ".ckpt", ".bin", ".safetensors"):
                raise Refused(f"{key} in {name} is {item}, and there is no file {path}: correct the path")
            if must or is_file:
                found[key] = str(path)
    return found


def joined(below: dict[str, Any], above: dict[str, Any], known: dict[str, Any]) -> dict[str, Any]:
    """Values `above`, in which a mapping keeps the keys of the one below that it does not name.

    It stands alone if it is empty, if it belongs to another thing than the one below (BELONGS_TO), or if it names
    another encoder than the defaults do: these are the options of the miniature. known: the defaults
    """
    found = dict(above)
    for name, value in above.items():
        old, thing = below.get(name), BELONGS_TO.get(name)
        if value and isinstance(value, dict) and isinstance(old, dict):
            inherited = old == known.get(name)
            same = (below | above).get(thing) == (known if inherited else below).get(thing)
            if same and not (inherited and value.get("encoder", old.get("encoder")) != old.get("encoder")):
                found[name] = old | value
    return found


def settled(recipe: Recipe, changes: dict[str, Any]) -> dict[str, Any]:
    """What is set: the run's values, over them the changes, see `joined`."""
    known = all_defaults_of(recipe)
    values = joined(known, recipe.values, known)
    return values | joined(known | values, changes, known)


def check(recipe: Recipe, values: dict[str, Any]) -> None:
    """Refuse a parameter that no notebook of the run has, or a value of another kind than the default."""
    known = all_defaults_of(recipe)
    for name, value in values.items():
        if name == "run":
            raise Refused("`run` is the name of the run, the first argument; it is not set as a parameter")
        if name in SHORT:
            mapping, key = SHORT[name]
            raise Refused(f"{name} is for -p alone; in a file or a grid write {mapping}: {{{key}: {value!r}}}")
        choices.one_of(name, [*known, *SHORT], f"parameter of the run {recipe.run} called")
        allowed.check_value(name, value, known[name])


def steps_of(recipe: Recipe, changes: dict[str, Any], name: str) -> list[Step]:
    """The notebooks, each with those parameters that its own cell names; `name` is what they get as `run`."""
    check(recipe, recipe.values | changes)
    values = {"run": name} | settled(recipe, changes)
    allowed.check_options(values, all_defaults_of(recipe))
    return [
        Step(path, {key: values[key] for key in ("run", *own) if key in values}) for path, own in recipe.known.items()
    ]


def known_of(steps: list[Step]) -> dict[str, Any]:
    """All parameters of the steps, defaults included."""
    return {name: value for step in steps for name, value in step.known.items()}


def note(steps: list[Step], folder: Path) -> dict[str, Any]:
    """Write all parameters of a run into its run.json, beside what is there; return the file's content.

    What was made with other parameters is removed: executed notebooks, figures, summary and page.
    """
    path, parameters = folder / "run.json", files.plain(known_of(steps))
    remedy = "delete it, and start the same command again"
    content = files.read_json(path, remedy) if path.exists() else {}
    with files.reading(path, "the record of a run", remedy):
        before = content.get("parameters", {}) | {}
    counted = (before.keys() & parameters.keys()) - {*grid.NOT_COUNTED}
    if not all(grid.same(before[name], parameters[name]) for name in counted):
        for pattern in ("notebooks/*.ipynb", "figures/*.*", "summary.json", "index.html"):
            for old in folder.glob(pattern):
                old.unlink()
    content |= {"run": steps[0].parameters["run"], "parameters": parameters}
    content |= {"notebooks": [step.notebook.stem for step in steps]}
    files.write_json(path, content)
    return content


def axes_of(recipe: Recipe, given: list[tuple[str, str]], changes: dict[str, Any]) -> dict[str, list]:
    """Parameters of the grid with their values, in the order of the notebooks' cells; what is wrong is refused.

    given: name and values by -g: a YAML list, with or without its brackets
    """
    names, axes = [name for name, _ in given], dict(recipe.axes)
    if twice := [name for name in names if names.count(name) > 1]:
        raise Refused(f"-g {twice[0]} is given {len(twice)} times: write all its values in one list")
    for name, text in given:
        axes[name] = yaml_of(text if text.strip().startswith("[") else f"[{text}]", f"the list of {name}")
        axes[name] = [paths_from_here(name, value) for value in axes[name]]
    for name, values in axes.items():
        if name in changes:
            raise Refused(f"{name} is in the grid and changed by -p: give its values by -g {name} alone")
        if not isinstance(values, list) or not values:
            raise Refused(f"the grid has {name}: {values!r}; give a list of at least one value")
        for index, value in enumerate(values):
            check(recipe, {name: value})
            if any(grid.same(value, earlier) for earlier in values[:index]):
                raise Refused(f"the list of {name} holds {value!r} twice: keep one")
    return {name: axes[name] for name in all_defaults_of(recipe) if name in axes}


def grid_of(recipe: Recipe, axes: dict[str, list], changes: dict[str, Any], folder: Path, published: Path) -> grid.Grid:
    """All points of a run's grid, which keeps its results in `folder` and publishes into `published`."""
    named = {grid.name_of(chosen): chosen for chosen in grid.combinations(axes)}
    points = [grid.Point(name, chosen, steps_of(recipe, changes | chosen, name)) for name, chosen in named.items()]
    return grid.Grid(recipe.run, axes, points, folder, published)


# Execution


def execute(step: Step, folder: Path) -> Path:
    """Execute a notebook; write its cleaned copy into `folder` and return where.

    While it runs, and if it fails, what there is of it stands in NAME.partial.ipynb.
    """
    import nbformat  # these take seconds to import, which a refused run need not wait for
    import papermill

    warm = {}
    if sys.platform == "linux":  # elsewhere kernels cannot be forked
        import kernels

        warm = {"kernel_manager_class": kernels.Manager}
    folder.mkdir(parents=True, exist_ok=True)
    path, partial = folder / step.notebook.name, folder / f"{step.notebook.stem}.partial.ipynb"
    os.environ.setdefault("PLG_PROGRESS", "stderr")  # of the kernels, which show their bars here
    os.environ.setdefault("PYDEVD_DISABLE_FILE_VALIDATION", "1")  # else each kernel warns about debuggers
    notebook = nbformat.read(step.notebook, as_version=4)
    notebook.cells = [cell for cell in notebook.cells if step.shows(cell)]
    papermill.execute_notebook(
        notebook,
        partial,
        step.parameters,
        cwd=step.notebook.parent,  # nbval runs in the notebook's folder too
        progress_bar=False,  # of cells; the kernels' own bars say more, and come through their stderr
        stderr_file=sys.stderr,
        start_timeout=KERNEL_START,
        extra_arguments=["--IPKernelApp.log_level=50"],
        **warm,
    )
    with files.atomic(path) as temporary:
        nbformat.write(clean(nbformat.read(partial, as_version=4)), temporary)
    partial.unlink()
    return path


def clean(notebook: Any) -> Any:
    """Strip an executed notebook of what differs from run to run, so that a new run makes no diff.

    Gone are papermill's timings and paths, random cell ids, and what was written to stderr: progress and warnings.
    """
    notebook.nbformat_minor = 5  # the first with cell ids
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    notebook.metadata = {"kernelspec": kernel, "language_info": {"name": "python"}}
    count = 0
    for index, cell in enumerate(notebook.cells):
        tags = cell.metadata.get("tags")
        cell.id, cell.metadata = f"{index:02d}", {"tags": tags} if tags else {}
        if cell.cell_type == "code":
            count += 1
            cell.execution_count, cell.outputs = count, printed(cell.outputs, count)
    return notebook


def printed(outputs: list, count: int) -> list:
    """Outputs of the count-th code cell as they are printed: no stderr, no widgets, small pictures, whole texts."""
    from plg_utils.figures import shrink_png  # matplotlib takes a second to import

    kept = []
    for output in outputs:
        data = output.get("data", {})
        if output.get("name") == "stderr" or "application/vnd.jupyter.widget-view+json" in data:
            continue
        if "image/png" in data:
            data["image/png"] = base64.b64encode(shrink_png(base64.b64decode(data["image/png"]))).decode()
        if output.output_type == "execute_result":
            output.execution_count = count
        if kept and output.output_type == kept[-1].output_type == "stream":
            kept[-1].text += output.text  # where a text is cut depends on the moment
        else:
            kept.append(output)
    return kept


def threads_for(known: dict[str, Any]) -> dict[str, str]:
    """Variables of OpenMP for the kernels of a run, whose parameters are `known`.

    The miniatures gain nothing from more than two threads. GOMP_SPINCOUNT says for how long a waiting thread spins
    before it sleeps: shorter where the cores are busy now. How many threads a stage takes, devices.py decides.
    """
    import psutil

    checkpoint = known.get("mask_options", {}).get("checkpoint", "miniature_sam")
    encoder = known.get("segmenter_options", {}).get("encoder", "miniature")
    small = known.get("mask_model") != "hf" and checkpoint in (None, "miniature_sam") and encoder == "miniature"
    waits = {"GOMP_SPINCOUNT": "10000" if psutil.cpu_percent(interval=0.2) < 25 else "1000"}
    return waits | ({"OMP_NUM_THREADS": "2"} if small else {})


def execute_all(
    steps: list[Step], folder: Path, around: Callable[[Step], AbstractContextManager] = nullcontext
) -> bool:
    """Execute the notebooks of a run in order, up to the first that fails; whether all went well.

    around: gives what to hold while a notebook is executed
    """
    prints, run = folder / "notebooks", note(steps, folder)["run"]
    print(f"{run}: {len(steps)} notebooks, results in {folder}", flush=True)
    variables = threads_for(known_of(steps)) | os.environ | {"PLG_RESULTS": str(folder.parent)}  # for the kernels
    for step in steps:
        name, begin = step.notebook.stem, time.perf_counter()
        try:
            with around(step), environment(variables):
                execute(step, prints)
        except Exception as error:  # a failed cell, a dead kernel, a full disk: all stop the run here
            print(f"{name} failed after {time.perf_counter() - begin:.0f} s\n{last_lines(error)}", file=sys.stderr)
            if type(error).__name__ == "DeadKernelError":
                print(MEMORY, file=sys.stderr)
            print(f"The cells up to here: {prints / f'{name}.partial.ipynb'}", file=sys.stderr)
            return False
        print(f"{name}  {time.perf_counter() - begin:.0f} s", flush=True)
        if step is steps[0]:  # from now on what exists belongs to this run; one that fails at once leaves all as it was
            for old in [*(prints / later.notebook.name for later in steps[1:]), folder / "index.html"]:
                old.unlink(missing_ok=True)
    return True


def last_lines(error: Exception) -> str:
    """The end of what an error says, without colours."""
    traceback = getattr(error, "traceback", None) or [f"{type(error).__name__}: {error}"]
    lines = re.sub(r"\x1b\[[\d;]*m", "", "\n".join(traceback)).rstrip().splitlines()
    return "\n".join(f"    {line}" for line in lines[-12:])  # the copy holds the rest


def do_stages(steps: list[Step], folder: Path) -> None:
    """Do the slow stages of a run without notebooks, together with the processes that torchrun has started."""
    from plg_utils import distributed, stages  # torch takes seconds to import

    known = known_of(steps)
    distributed.start(known.get("device", "auto"))
    with distributed.main_first():
        note(steps, folder)
    for name in stages.everything(stages.run_of(known), known):
        if distributed.is_main():
            print(name, flush=True)
    distributed.stop()


def report(folder: Path) -> str:
    """What a finished run has to show: mean IoU from stage to stage, and where to look."""
    lines = []
    if (folder / "summary.json").is_file():
        from plg_utils import tables  # pandas takes a second to import

        rows = files.read_json(folder / "summary.json")["rows"]
        width = max((len(row["name"]) for row in rows), default=0)
        for row in tables.ladder(rows):
            given = (row.get("zero_shot", row.get("enhanced")), row.get("segmenter"))
            lines.append(f"{row['name']:{width}}" + "".join(f"{'' if x is None else f'{x:.1%}':>10}" for x in given))
        for row in rows:
            if row["coverage"] is not None and row["coverage"] < 0.9:  # None: no pixel has a truth
                lines.append(f"{row['name']}: {row['coverage']:.0%} of the pixels have a label")
        head = f"{'mean IoU':{width}}    labels    unseen images"
        lines = [head, *lines, ""] if rows else ["no truth to compare with: look at the pictures"]
    for title, pattern in (("labels", "labels_*"), ("page", "index.html"), ("pictures", "figures"), ("notebooks",) * 2):
        if found := sorted(folder.glob(pattern)):
            lines.append(f"{title + ':':10} {', '.join([str(found[0]), *(path.name for path in found[1:])])}")
    return "\n".join(lines)


def write_page(folder: Path) -> None:
    """Write the page of an evaluated run beside its summary.json; a run is no failure because its page is one."""
    try:
        from plg_utils import page  # matplotlib takes a second to import

        if (folder / "summary.json").is_file():
            page.write(folder)
    except Exception as error:  # whatever it is, the run's results are there and must be shown
        command = f"python -m plg_utils.page {shlex.quote(folder.name)}"
        print(f"no page ({type(error).__name__}: {error}): {command}", file=sys.stderr)


# Publishing


def outdated(copy: Path, step: Step, run_file: Path) -> str:
    """Why an executed copy is not the print of this notebook with the parameters of its run.json; "" if it is."""
    if missing := [path.name for path in (copy, run_file) if not path.is_file()]:
        return f"{missing[0]} is missing"
    copied = [cell for cell in files.read_json(copy)["cells"] if not tagged(cell, "injected-parameters")]
    shown = [cell for cell in files.read_json(step.notebook)["cells"] if step.shows(cell)]
    if [(cell["cell_type"], source(cell)) for cell in copied] != [(cell["cell_type"], source(cell)) for cell in shown]:
        return "the notebook has changed since"
    made = files.read_json(run_file).get("parameters", {})
    for name, value in files.plain(step.known).items():
        if name not in made or not grid.same(made[name], value):
            return f"it was run with {name}: {made.get(name, 'absent')!r}, now {value!r}"
    return ""


def publish(steps: list[Step], folder: Path, target: Path) -> list[Path]:
    """Copy a finished run's notebooks, JSON files, figures and page from `folder` to `target`; return the copies.

    What an earlier run left there is removed; parameters.yaml stays.
    """
    copies = {folder / "notebooks" / step.notebook.name: target / step.notebook.name for step in steps}
    for copy, step in zip(copies, steps, strict=True):
        if reason := outdated(copy, step, folder / "run.json"):
            again = f"Run first: notebooks/run.py {shlex.quote(step.parameters['run'])}"
            raise Refused(f"{step.notebook.stem} cannot be published: {reason}. {again}")
    for pattern in ("*.ipynb", "*.json", "figures/*", "index.html"):
        for old in target.glob(pattern):
            old.unlink()
        copies |= {path: target / path.relative_to(folder) for path in sorted(folder.glob(pattern))}
    for original, copy in copies.items():
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(original, copy)
    return list(copies.values())


def main(arguments: list[str] | None = None, *, notebooks: Path = NOTEBOOKS, published: Path = PUBLISHED) -> int:
    """Run or publish what the command line says; 0 if all went well, 1 if a notebook failed, 2 if it was refused."""
    command = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add, several = command.add_argument, {"nargs": 2, "action": "append", "default": []}
    add("run", metavar="RUN", help="its name, such as demo: a file results/RUN/parameters.yaml")
    add("-p", **several, metavar=("NAME", "VALUE"), help="change a parameter (YAML); of a mapping only the keys named")
    add("-g", **several, metavar=("NAME", "VALUES"), help="run with each of these values: 12,24,48 or a YAML list")
    add("--dry-run", action="store_true", help="list what would be executed, execute nothing")
    add("--stages", action="store_true", help="do the slow stages without notebooks; of several processes by torchrun")
    add("--against", metavar="METHOD", help="of a grid: differences to this method, seed by seed")
    add("--publish", action="store_true", help="copy the finished run into results/RUN, execute nothing")
    options = command.parse_args(arguments)
    if options.publish and (options.p or options.g):
        command.error("what is published is what parameters.yaml says: write the change there and run again")
    try:
        changes = written_out(options.p)
        recipe = read(options.run, notebooks=notebooks, published=published)
        axes = axes_of(recipe, options.g, changes)
        folder, target = files.results_root() / options.run, published / options.run
        if axes and options.stages:
            raise Refused(f"--stages is of single runs, and {options.run} is a grid: start the grid several times")
        if axes:
            return grid.main(grid_of(recipe, axes, changes, folder, target), options, execute_all)
        if options.against:
            raise Refused(f"--against is of grids, and {options.run} is none: add -g NAME VALUES")
        steps = steps_of(recipe, changes, options.run)
        if options.dry_run:
            print("\n".join(f"{step.notebook.stem}  {step.parameters}" for step in steps))
        elif options.publish:
            print(f"{len(publish(steps, folder, target))} files in {target}")
        else:
            return make(steps, folder, only_stages=options.stages)
        return 0
    except (Refused, OSError) as refusal:
        print(refusal, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nStopped. The same command goes on from here.", file=sys.stderr)
        return 130


def make(steps: list[Step], folder: Path, *, only_stages: bool) -> int:
    """Do the work of one run, unless another process does it; 0 if all went well, 1 if a notebook failed."""
    first = os.environ.get("RANK", "0") == "0"  # of several processes one holds the lock for all
    with grid.lock(folder / "run.lock") if first else nullcontext() as holder:
        if holder:
            raise Refused(f"{folder.name} is being made by {holder}: two would write the same files. Wait, or stop it")
        if only_stages:
            do_stages(steps, folder)
        elif not execute_all(steps, folder):
            return 1
        else:
            write_page(folder)
            print(report(folder))
    return 0


if __name__ == "__main__":
    sys.exit(main())
