"""Execute the stages of notebooks in several processes that share the work, each with a device of its own.

    torchrun --nproc-per-node 4 notebooks/worker.py voc_92
    torchrun --nproc-per-node 4 notebooks/worker.py voc_92 -p data_root /data/VOCdevkit/VOC2012

Nothing is printed as a notebook here: `python notebooks/run.py voc_92` does that afterwards and finds the work done.
A notebook that is opened with `processes` above 1 starts this for itself. See plg_utils/distributed.py.
"""

import argparse
import os
import sys
from pathlib import Path
from typing import Any

import run as runner

from plg_utils import distributed, files


def stages(notebook: Path) -> list[tuple[str, bool]]:
    """Code of the cells up to the last one that opens a stage, and whether it holds the parameters.

    What comes after only looks at what the stages have made.
    """
    cells = [cell for cell in files.read_json(notebook)["cells"] if cell["cell_type"] == "code"]
    last = max((index for index, cell in enumerate(cells) if "store.stage(" in runner.source(cell)), default=-1)
    return [(runner.source(cell), "parameters" in cell["metadata"].get("tags", [])) for cell in cells[: last + 1]]


def execute(notebook: Path, parameters: dict[str, Any]) -> None:
    """Execute the stages of a notebook in this process."""
    variables: dict[str, Any] = {"__name__": "__main__"}
    for number, (code, holds_parameters) in enumerate(stages(notebook)):
        exec(compile(code, f"{notebook.name}, code cell {number}", "exec"), variables)  # noqa: S102  our own notebook
        if holds_parameters:
            variables |= parameters
    distributed.wait()


def jobs(options: argparse.Namespace) -> list[tuple[Path, dict[str, Any]]]:
    """The notebooks whose work can be shared, those that have a parameter `processes`, and what they are told."""
    if options.notebook:
        told = files.read_json(options.parameters)
        own = {path: runner.defaults(path) for path in options.notebook}
        return [(path, {name: told[name] for name in own[path] if name in told}) for path in options.notebook]
    changes = runner.written_out([(name, runner.literal(text, f"the value of {name}")) for name, text in options.p])
    steps = runner.plan(options.run, changes)
    return [(step.notebook, step.parameters) for step in steps if "processes" in runner.defaults(step.notebook)]


def main(arguments: list[str] | None = None) -> int:
    """Do what the command line says."""
    command = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    command.add_argument("run", nargs="?", metavar="RUN", help="its name, such as voc_92")
    command.add_argument("-p", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"), help="as for run.py")
    command.add_argument("--notebook", type=Path, nargs="+", help="instead of RUN: notebooks, in order")
    command.add_argument("--parameters", type=Path, help="with --notebook: their parameters, JSON")
    options = command.parse_args(arguments)
    given = [told is not None for told in (options.run, options.notebook, options.parameters)]
    if given not in ([True, False, False], [False, True, True]):
        command.error("say either RUN, or --notebook and --parameters")
    try:
        todo = jobs(options)
    except runner.Refused as refusal:
        print(refusal, file=sys.stderr)
        return 2
    os.environ["MPLBACKEND"] = "Agg"
    os.chdir(runner.NOTEBOOKS)  # where notebooks run
    distributed.start(next((parameters["device"] for _, parameters in todo if "device" in parameters), "auto"))
    if not distributed.is_main():
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115  for as long as the process lives
    for notebook, parameters in todo:
        execute(notebook, parameters)  # if it fails, the others are stopped by who started them
    distributed.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
