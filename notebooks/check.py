"""Compute the committed print of a run again and compare: do its notebooks show the same here, cell by cell?

    make check RUN=demo
    python notebooks/check.py compare_labellers

The printed notebooks of results/RUN are executed under nbval, in the order of the run, with results in an empty
temporary folder, as they were printed: with as many threads, on the CPU or on a GPU of the same name, and with
PLG_DETERMINISTIC if it was set. Exit code 0: all is the same; 1: a cell differs; 2: there is nothing to compare; 3: the
print is another device's.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path

import run as runner

from plg_utils import files

WEEK = 7 * 24 * 3600  # seconds for a cell; those of a large run train for days


def prints_of(run: str, published: Path) -> list[Path]:
    """The printed notebooks of a run in its order; a run that has none is refused, with what can be done instead."""
    recipe = runner.read(run, published=published)
    paths = [published / run / path.name for path in recipe.known]
    missing = ", ".join(path.name for path in paths if not path.is_file())
    if missing and recipe.axes:
        raise ValueError(
            f"{run} is a grid, of which points are published and no notebooks: remove a json from "
            f"{published / run / 'points'}, and `notebooks/run.py {run}` makes that point again, to compare"
        )
    if missing:
        publish = f"notebooks/run.py {run}, then notebooks/run.py {run} --publish"
        raise ValueError(f"{published / run} lacks {missing}: {publish}")
    return paths


def surroundings(manifests: dict[str, dict]) -> tuple[dict[str, str], str]:
    """Variables that make this machine compute as the print was computed; and why it cannot, "" if it can."""
    keys = ("threads", "deterministic", "device")
    threads, exact, devices = ({stage.get(key) for stage in manifests.values()} - {None} for key in keys)
    found = {"OMP_NUM_THREADS": str(*threads)} if len(threads) == 1 else {}
    found |= {"PLG_DETERMINISTIC": str(*threads)} if found and exact == {True} else {}
    if devices <= {"cpu"}:
        return found | ({"CUDA_VISIBLE_DEVICES": ""} if devices else {}), ""
    import torch  # it takes seconds, and most prints are the CPU's

    here = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    others = [name for name in sorted(devices - {"cpu"}) if not any(f"({own})" in name for own in here)]
    reason = f"it was printed on {', '.join(others)}; here is {', '.join(here) or 'no GPU'}"
    return found, reason if others else ""


def main(arguments: list[str] | None = None, *, published: Path = runner.PUBLISHED) -> int:
    """Do what the command line says."""
    command = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    command.add_argument("run", metavar="RUN", help="its name, such as demo")
    run = command.parse_args(arguments).run
    try:
        prints, summary = prints_of(run, published), published / run / "summary.json"
        variables, reason = surroundings(files.read_json(summary)["manifest"] if summary.is_file() else {})
    except ValueError as refusal:
        print(refusal, file=sys.stderr)
        return 2
    if reason:
        print(f"{run} cannot be checked here: {reason}", file=sys.stderr)
        return 3
    shown = " ".join(f"{name}={value}" for name, value in variables.items())
    print(f"{run}: {len(prints)} printed notebooks are computed again {shown and 'with '}{shown}", flush=True)
    command = [sys.executable, "-m", "pytest", "-q", *map(str, prints), "--nbval", "--nbval-current-env"]
    command += ["--nbval-sanitize-with", str(files.ROOT / "tests" / "nbval_sanitize.cfg")]
    command += ["--nbval-cell-timeout", str(WEEK), "--nbval-kernel-startup-timeout", str(runner.KERNEL_START)]
    code = subprocess.run(command, cwd=files.ROOT, env=os.environ | variables, check=False).returncode
    print(f"{run}: {'all that is printed is the same here' if code == 0 else 'not the same here, see above'}")
    return min(code, 1)


if __name__ == "__main__":
    sys.exit(main())
