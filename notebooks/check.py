"""Compute the committed print of a run anew and compare: do its notebooks show the same here, cell by cell?

    make check RUN=demo
    python notebooks/check.py compare_labellers

The printed notebooks of results/RUN are executed under nbval, in the order of the run, with results in an empty
temporary folder, so that nothing is reused. They run as they were printed: with as many threads, on the CPU if that is
where they were printed, and with PLG_DETERMINISTIC if it was set. A print of a GPU is checked on a GPU of that name.

Exit code 0: all is the same; 1: something is not, and which cell stands above; 2: there is nothing to compare; 3: the
print is another device's.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import run as runner

from plg_utils import files

WEEK = 7 * 24 * 3600  # seconds for a cell; those of a large run train for days


def stated(manifests: dict[str, dict], key: str) -> list:
    """What the stages of a run state of a thing, each value once."""
    return sorted({stage[key] for stage in manifests.values() if stage.get(key) is not None})


def prints_of(run: str, published: Path) -> list[Path]:
    """The printed notebooks of a run in its order; a run that has none is refused, with what can be done instead."""
    recipe = runner.read(run, published=published)
    paths = [published / run / path.name for path in recipe.known]
    there = [path for path in paths if path.is_file()]
    if there == paths:
        return paths
    if there:
        missing = ", ".join(path.name for path in paths if path not in there)
        raise runner.Refused(
            f"{published / run} lacks {missing}: publish the run again, notebooks/run.py {run} --publish"
        )
    if recipe.axes:
        raise runner.Refused(
            f"{run} is a grid, of which points are published and no notebooks: `notebooks/run.py {run} --dry-run`"
            f" tells whether they were made with the parameters as they are now; remove a json from "
            f"{published / run / 'points'}, and `notebooks/run.py {run}` computes that point anew, to compare"
        )
    raise runner.Refused(f"{run} was never printed: notebooks/run.py {run}, then notebooks/run.py {run} --publish")


def other_device(devices: list[str]) -> str:
    """Why this machine cannot compute what these devices printed; empty if it can."""
    wanted = [device for device in devices if device != "cpu"]
    if not wanted:
        return ""
    import torch  # it takes seconds, and most prints are the CPU's

    here = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    strange = [device for device in wanted if not any(f"({name})" in device for name in here)]
    return f"it was printed on {', '.join(strange)}; here is {', '.join(here) or 'no GPU'}" if strange else ""


def surroundings(manifests: dict[str, dict]) -> dict[str, str]:
    """Variables of the environment that make this machine compute as the print was computed."""
    found = {}
    threads = stated(manifests, "threads")
    if len(threads) == 1:
        found["OMP_NUM_THREADS"] = str(threads[0])
        if stated(manifests, "deterministic") == [True]:
            found["PLG_DETERMINISTIC"] = str(threads[0])
    if stated(manifests, "device") == ["cpu"]:
        found["CUDA_VISIBLE_DEVICES"] = ""
    return found


def command(prints: list[Path]) -> list[str]:
    """The call of pytest; conftest.py gives it an empty folder for results."""
    told = ["--nbval", "--nbval-current-env", "--nbval-sanitize-with", str(files.ROOT / "tests" / "nbval_sanitize.cfg")]
    told += ["--nbval-cell-timeout", str(WEEK), "--nbval-kernel-startup-timeout", str(runner.KERNEL_START)]
    return [sys.executable, "-m", "pytest", "-q", *map(str, prints), *told]


def main(arguments: list[str] | None = None, *, published: Path = runner.PUBLISHED) -> int:
    """Do what the command line says."""
    told = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    told.add_argument("run", metavar="RUN", help="its name, such as demo")
    run = told.parse_args(arguments).run
    try:
        prints = prints_of(run, published)
        summary = published / run / "summary.json"
        manifests: dict[str, Any] = files.read_json(summary)["manifest"] if summary.is_file() else {}
    except runner.Refused as refusal:
        print(refusal, file=sys.stderr)
        return 2
    if reason := other_device(stated(manifests, "device")):
        print(f"{run} cannot be checked here: {reason}", file=sys.stderr)
        return 3
    variables = surroundings(manifests)
    with_these = " ".join(f"{name}={value}" for name, value in variables.items())
    print(
        f"{run}: {len(prints)} printed notebooks are computed anew{with_these and f', with {with_these}'}", flush=True
    )
    code = subprocess.run(command(prints), cwd=files.ROOT, env=os.environ | variables, check=False).returncode
    print(f"{run}: {'all that is printed is the same here' if code == 0 else 'not the same here, see above'}")
    return min(code, 1)


if __name__ == "__main__":
    sys.exit(main())
