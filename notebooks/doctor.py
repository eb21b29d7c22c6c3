"""Ask before a long run: will it work on this machine, and what will it cost?

    make doctor                            # the machine, and the demo
    make doctor RUN=voc_92                 # the run of results/voc_92/parameters.yaml
    python notebooks/doctor.py RUN -p NAME VALUE    # a run with changed parameters, as for run.py

Executes 09_doctor.ipynb with the run's parameters and prints what it found. The run's own folder is not touched: the
executed notebook and 09_doctor.json lie below results/local/doctor. The exit code is 1 if something would stop the run.
"""

import argparse
import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import grid
import run
from run import NOTEBOOKS, PUBLISHED, Refused, Step

from plg_utils import doctor, files

NOTEBOOK = "09_doctor.ipynb"


def step_of(name: str, changes: dict[str, Any], *, notebooks: Path = NOTEBOOKS, published: Path = PUBLISHED) -> Step:
    """The doctor's notebook with the parameters of a run, and what the run consists of.

    changes: of the run's parameters or the doctor's own. Of a grid the first point is examined, and all are counted.
    """
    recipe = run.read(name, notebooks=notebooks, published=published)
    chosen = [path.stem for path in recipe.known]
    own = run.defaults(notebooks / NOTEBOOK)
    recipe = replace(recipe, known=recipe.known | {notebooks / NOTEBOOK: own})
    axes = {parameter: values for parameter, values in recipe.axes.items() if parameter not in changes}
    changes = {parameter: values[0] for parameter, values in axes.items()} | changes
    step = run.steps_of(recipe, changes, name)[-1]
    presets = {}
    for preset in run.presets():
        values = own | run.settled(recipe, changes | {"preset": preset})
        presets[preset] = {key: values[key] for key in own if values[key] != step.parameters.get(key, own[key])}
    presets = {
        preset: {key: value for key, value in values.items() if key != "run"} for preset, values in presets.items()
    }
    about = {"notebooks": chosen, "points": points(axes, recipe.shared), "presets": presets}
    return replace(step, parameters=step.parameters | about)


def points(axes: dict[str, list], shared: list[str] | None) -> dict[str, int]:
    """Points of a grid, and how many of them do a shared stage anew."""
    counted = {"all": math.prod(map(len, axes.values()))}
    for stage in grid.SHARED if shared is None else shared:
        if stage in grid.UNRELATED:
            own = [values for name, values in axes.items() if name not in grid.UNRELATED[stage]]
            counted[stage] = math.prod(map(len, own))
    return counted


def main(arguments: list[str] | None = None, *, notebooks: Path = NOTEBOOKS, published: Path = PUBLISHED) -> int:
    """Examine; 0 if nothing would stop the run, 1 if something would, 2 if there is no such run or parameter."""
    command = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    command.add_argument("run", metavar="RUN", nargs="?", default="demo", help="its name; without one the demo")
    command.add_argument(
        "-p", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"), help="change a parameter (YAML)"
    )
    options = command.parse_args(arguments)
    try:
        changes = run.written_out([(name, run.literal(value, f"the value of {name}")) for name, value in options.p])
        step = step_of(options.run, changes, notebooks=notebooks, published=published)
    except Refused as refusal:
        print(refusal, file=sys.stderr)
        return 2
    root = files.results_root()
    folder = root / "doctor" / files.check_stem(options.run)
    (folder / "09_doctor.json").unlink(missing_ok=True)
    print(f"{options.run}: {step.notebook.name} takes a minute or a few", flush=True)
    try:
        with run.environment(PLG_RESULTS=str(root), PYDEVD_DISABLE_FILE_VALIDATION="1"):
            run.execute(step, folder)
    except Exception as error:  # a broken environment: what can be said without the notebook
        print(doctor.report(doctor.machine(step.parameters.get("device", "auto"))))
        print(f"The notebook stopped, so nothing was timed:\n{run.last_lines(error)}", file=sys.stderr)
        return 1
    found = files.read_json(folder / "09_doctor.json")
    print(found["text"])
    print(f"\nnotebook: {folder / NOTEBOOK}")
    return 1 if any(finding["level"] == "stop" for finding in found["findings"]) else 0


if __name__ == "__main__":
    sys.exit(main())
