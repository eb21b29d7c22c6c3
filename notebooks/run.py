"""Execute the numbered notebooks of a run in order, and print their copies.

    python notebooks/run.py demo                 # 00 to 05 with results/demo/parameters.yaml
    python notebooks/run.py demo -p steps 200    # the same with one parameter changed
    python notebooks/run.py demo --publish       # copy the finished run from results/local/demo to results/demo

A run is a file results/RUN/parameters.yaml: only what differs from the notebooks' defaults, and, if it is not 00 to
05, a list `notebooks`. Results go below the environment's PLG_RESULTS, by default results/local. A run that was
stopped is started again with the same command; the stages skip what is already done.
"""

import argparse
import ast
import difflib
import json
import os
import re
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from plg_utils import files

NOTEBOOKS = files.ROOT / "notebooks"
PUBLISHED = files.ROOT / "results"
KERNEL_START = 600  # seconds; a busy machine may need minutes
TRACEBACK_LINES = 12  # shown of a failed cell; the copy holds the rest


class Refused(Exception):
    """A run that cannot start, with what would be right."""


@dataclass(frozen=True)
class Step:
    """A notebook of a run and what is injected into it."""

    notebook: Path
    parameters: dict[str, Any]  # `run` first, then what differs from the defaults


# What a run is


class Loader(yaml.SafeLoader):
    """YAML in which 1e-3 is a number, as in Python; YAML 1.1 wants 1.0e-3 and reads the other as text."""


Loader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"[-+]?\d+[eE][-+]?\d+$"), list("-+0123456789"))


def literal(text: str, where: str) -> Any:
    """Read YAML as Python's numbers, texts, lists and mappings."""
    try:
        return yaml.load(text, Loader)  # noqa: S506  Loader is a SafeLoader
    except yaml.YAMLError as error:
        raise Refused(f"{where} is not readable YAML: {error}") from error


def source(cell: dict) -> str:
    """Text of a cell; files hold it whole or as a list of lines."""
    return "".join(cell["source"])


def tagged(notebook: Path, tag: str) -> list[str]:
    """Texts of a notebook's code cells with this tag."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return [source(cell) for cell in cells if tag in cell["metadata"].get("tags", []) and cell["cell_type"] == "code"]


def assigned(code: str) -> dict[str, Any]:
    """Names and values of a cell of literals; a value that is no literal becomes None."""
    values = {}
    for statement in ast.parse(code).body:
        targets = statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, "target", None)]
        for target in targets:
            if isinstance(target, ast.Name):
                try:
                    values[target.id] = ast.literal_eval(statement.value)
                except ValueError:
                    values[target.id] = None
    return values


def defaults(notebook: Path) -> dict[str, Any]:
    """Names and default values in the cell of a notebook that is tagged `parameters`."""
    return assigned("\n".join(tagged(notebook, "parameters")))


def fits(value: Any, default: Any) -> bool:
    """Whether a value can stand for a default: the same kind, a whole number for any number, null for all."""
    if value is None or default is None:
        return True
    kind = {tuple: list}.get(type(default), type(default))  # YAML knows no tuple
    return type(value) is kind or (kind is float and type(value) is int)


def plan(run: str, changes: dict[str, Any], *, notebooks: Path = NOTEBOOKS, published: Path = PUBLISHED) -> list[Step]:
    """The notebooks of a run with their parameters; everything that can be wrong before any work is refused here."""
    file = published / run / "parameters.yaml"
    runs = sorted(path.parent.name for path in published.glob("*/parameters.yaml"))
    if run not in runs:
        raise Refused(f"no run {run!r}; known are: {', '.join(runs) or 'none'}. A new run is a new file {file}")
    values = literal(file.read_text(encoding="utf-8"), str(file)) or {}
    if not isinstance(values, dict):
        raise Refused(f"{file} holds a {type(values).__name__}, not lines of `name: value`")

    chosen = values.pop("notebooks", None) or sorted(path.stem for path in notebooks.glob("0[0-5]_*.ipynb"))
    paths = [notebooks / f"{name}.ipynb" for name in chosen]
    missing = [path.name for path in paths if not path.is_file()]
    if missing or not paths:
        raise Refused(f"{notebooks} holds no {', '.join(missing) or 'notebooks 00 to 05'}")

    values |= changes
    if "run" in values:
        raise Refused("`run` is the name of the run, the first argument; it is not set as a parameter")
    known = {path: defaults(path) for path in paths}
    all_defaults = {name: default for own in known.values() for name, default in own.items()}
    for name, value in values.items():
        if name not in all_defaults:
            near = difflib.get_close_matches(str(name), all_defaults)
            hint = f"did you mean {' or '.join(near)}?" if near else f"there are: {', '.join(sorted(all_defaults))}"
            raise Refused(f"no notebook of the run {run} has a parameter {name!r}; {hint}")
        if not fits(value, all_defaults[name]):
            default = all_defaults[name]
            raise Refused(
                f"{name} is {value!r}, a {type(value).__name__}; "
                f"it should be a {type(default).__name__} such as the default {default!r}"
            )
    # A notebook gets only what its own cell of parameters names, in that order.
    return [Step(path, {"run": run} | {name: values[name] for name in known[path] if name in values}) for path in paths]


# Execution


def execute(step: Step, folder: Path) -> Path:
    """Execute a notebook; write its cleaned copy into `folder` and return where.

    While it runs, and if it fails, what there is of it stands in NAME.partial.ipynb.
    """
    import nbformat  # these two take seconds to import, which a refused run need not wait for
    import papermill

    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f"{step.notebook.stem}.partial.ipynb"
    papermill.execute_notebook(
        step.notebook,
        partial,
        step.parameters,
        cwd=step.notebook.parent,  # nbval runs in the notebook's folder too
        progress_bar=False,  # of cells; the kernels' own bars say more, and come through their stderr
        stderr_file=sys.stderr,
        start_timeout=KERNEL_START,
        extra_arguments=["--IPKernelApp.log_level=40"],  # errors; no kernel need say that it listens on this machine
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
    """Outputs of a cell as they are printed: no stderr, no widgets, neighbouring pieces of text as one."""
    kept = []
    for output in outputs:
        if output.get("name") == "stderr" or "application/vnd.jupyter.widget-view+json" in output.get("data", {}):
            continue
        if kept and output.output_type == "stream" and kept[-1].output_type == "stream":
            kept[-1].text += output.text  # where a text is cut depends on the moment
        else:
            kept.append(output)
    return kept


def execute_all(steps: list[Step], folder: Path) -> bool:
    """Execute the notebooks of a run in order, up to the first that fails; whether all went well."""
    prints = folder / "notebooks"
    for step in steps:
        (prints / step.notebook.name).unlink(missing_ok=True)  # a copy that exists belongs to this run
    # Kernels run in another folder and must find the same results.
    os.environ["PLG_RESULTS"] = str(folder.parent)
    os.environ["PYDEVD_DISABLE_FILE_VALIDATION"] = "1"  # else each kernel starts with a warning about debuggers
    print(f"{steps[0].parameters['run']}: {len(steps)} notebooks, results in {folder}", flush=True)
    for step in steps:
        begin = time.perf_counter()
        try:
            execute(step, prints)
        except Exception as error:  # a failed cell, a dead kernel, a full disk: all stop the run here
            copy = prints / f"{step.notebook.stem}.partial.ipynb"
            print(f"{step.notebook.stem} failed after {duration(begin)}\n{last_lines(error)}", file=sys.stderr)
            print(f"The cells up to here: {copy}", file=sys.stderr)
            return False
        print(f"{step.notebook.stem}  {duration(begin)}", flush=True)
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
    """The rows of a run's summary as a table: mIoU in percent, from stage to stage."""
    names = ("stage", "method", "labels", "labelled", "split", "mIoU %", "options")
    table = [list(names)]
    for row in summary["rows"]:
        texts = ["-" if row.get(name) is None else str(row[name]) for name in names[:5]]
        miou = "-" if row["miou"] is None else f"{100 * row['miou']:.1f}"
        options = " ".join(f"{name}={value}" for name, value in (row.get("options") or {}).items())
        table.append([*texts, miou.rjust(len("mIoU %")), options])
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = ["  ".join(map(str.ljust, texts, widths)) for texts in table]
    return "\n".join(line.rstrip() for line in lines)


def report(folder: Path) -> str:
    """What a finished run has to show: its results, and where to look."""
    lines = []
    if (folder / "summary.json").is_file():
        lines += ["", ladder(files.read_json(folder / "summary.json")), ""]
    pictures = sorted((folder / "figures").glob("*"))
    if pictures:
        lines.append(f"pictures:  {folder / 'figures'} ({', '.join(path.name for path in pictures)})")
    lines.append(f"notebooks: {folder / 'notebooks'}")
    return "\n".join(lines)


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
    """Copy a finished run's notebooks, JSON files and figures from `folder` to `target`; return the copies.

    What an earlier run left there is removed; parameters.yaml stays.
    """
    for step in steps:
        reason = outdated(folder / "notebooks" / step.notebook.name, step)
        if reason:
            run = step.parameters["run"]
            raise Refused(f"{step.notebook.stem} cannot be published: {reason}. Run first: notebooks/run.py {run}")
    for old in [*target.glob("*.ipynb"), *target.glob("*.json"), *target.glob("figures/*")]:
        old.unlink()
    originals = [folder / "notebooks" / step.notebook.name for step in steps]
    originals += [*sorted(folder.glob("*.json")), *sorted(folder.glob("figures/*"))]
    copies = [target / (f"figures/{path.name}" if path.parent.name == "figures" else path.name) for path in originals]
    for original, copy in zip(originals, copies, strict=True):
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(original, copy)
    return copies


def main(arguments: list[str] | None = None, *, notebooks: Path = NOTEBOOKS, published: Path = PUBLISHED) -> int:
    """Run or publish what the command line says; 0 if all went well, 1 if a notebook failed, 2 if it was refused."""
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0], epilog="A run is a file results/RUN/parameters.yaml."
    )
    parser.add_argument("run", metavar="RUN", help="its name, such as demo")
    parser.add_argument(
        "-p", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"), help="change a parameter (YAML)"
    )
    parser.add_argument(
        "--publish", action="store_true", help="copy the finished run into results/RUN, execute nothing"
    )
    options = parser.parse_args(arguments)
    if options.publish and options.p:
        parser.error("what is published is what parameters.yaml says: write the change there and run again")
    folder = files.results_root() / options.run
    try:
        changes = {name: literal(value, f"the value of {name}") for name, value in options.p}
        steps = plan(options.run, changes, notebooks=notebooks, published=published)
        if options.publish:
            copies = publish(steps, folder, published / options.run)
            print(f"{len(copies)} files in {published / options.run}")
            return 0
    except Refused as refusal:
        print(refusal, file=sys.stderr)
        return 2
    try:
        if not execute_all(steps, folder):
            return 1
    except KeyboardInterrupt:
        print("\nStopped. The same command goes on from here.", file=sys.stderr)
        return 130
    print(report(folder))
    return 0


if __name__ == "__main__":
    sys.exit(main())
