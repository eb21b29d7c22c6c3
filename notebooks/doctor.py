"""Ask before a long run: will it work on this machine, and what will it cost?

    make doctor RUN=voc_92 ARGS="-p data_root ..."     # without RUN the demo; -p NAME VALUE as for run.py

Executes 09_doctor.ipynb and prints what it found. The run's own folder is not touched: the executed notebook and
09_doctor.json are below results/local/doctor. The exit code is 1 if something would stop the run.
"""

import argparse
import os
import sys
from dataclasses import replace
from typing import Any

import grid
import run

from plg_utils import files

NOTEBOOK = run.NOTEBOOKS / "09_doctor.ipynb"


def examined(name: str, changes: dict[str, Any]) -> tuple[dict[str, Any], dict[str, int]]:
    """Parameters of a run, of a grid those of its first point; and how often a grid does a stage.

    "all" counts its points; a stage that points share is done once for each of its folders.
    """
    recipe = run.read(name)
    recipe = replace(recipe, known=recipe.known | {NOTEBOOK: run.defaults(NOTEBOOK)})  # so that -p hours is checked too
    axes = {axis: values for axis, values in recipe.axes.items() if axis not in changes}
    whole = run.grid_of(recipe, axes, changes, run.PUBLISHED, run.PUBLISHED)
    times = {stage: len({grid.shared_folder(stage, point) for point in whole.points}) for stage in whole.writers}
    parameters = run.defaults(run.NOTEBOOKS / "01_data.ipynb") | {"device": "auto"}
    # 00 takes one image, whatever the run has
    own = [step for step in whole.points[0].steps if not step.notebook.stem.startswith(("00", "09"))]
    return parameters | run.known_of(own), {"all": len(whole.points), **times}


def main(arguments: list[str] | None = None) -> int:
    """Examine; 0 if nothing would stop the run, 1 if something would, 2 if there is no such run or parameter."""
    command = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    command.add_argument("run", metavar="RUN", nargs="?", default="demo", help="its name; without one the demo")
    command.add_argument("-p", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"))
    options = command.parse_args(arguments)
    try:
        given = run.written_out(options.p)
        variables = run.threads_for(examined(options.run, given)[0]) | os.environ
    except run.Refused as refusal:
        print(refusal, file=sys.stderr)
        return 2
    own = {name: given.pop(name) for name in run.defaults(NOTEBOOK) if name in given}
    folder = files.results_root() / "doctor" / options.run
    print(f"{options.run}: {NOTEBOOK.name} takes a minute or a few", flush=True)
    try:
        variables |= {"PLG_RESULTS": str(files.results_root()), "PYDEVD_DISABLE_FILE_VALIDATION": "1"}
        with run.environment(variables):
            run.execute(run.Step(NOTEBOOK, {"run": options.run, "changes": given} | own), folder)
    except Exception as error:  # a package that cannot be imported, a kernel that is killed
        print(f"stop: the notebook stopped, so nothing was timed\n{run.last_lines(error)}", file=sys.stderr)
        print(" -> is a package broken? rm -f .venv/.ready && make doctor. Was memory full? -p images_at_once 1")
        return 1
    content = files.read_json(folder / NOTEBOOK.with_suffix(".json").name)
    print(f"{content['text']}\n\nnotebook: {folder / NOTEBOOK.name}")
    return int(any(finding["level"] == "stop" for finding in content["findings"]))


if __name__ == "__main__":
    sys.exit(main())
