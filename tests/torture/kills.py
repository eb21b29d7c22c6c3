"""Kill real runs at random moments, start them again, and compare what they write with an uninterrupted run's.

    python tests/torture/kills.py --kills 60          part of `make torture`

A round is all stages of notebooks 02, 03, 06 and 04 on a small drawn world, which it draws itself. Each notebook's
stages run in a process that is killed with SIGKILL again and again until it comes to its end; then all are done once
more, as by somebody who does not know what was done. Every file must be equal to the byte: images, masks, embeddings,
label maps, states and weights of networks. The processes are forked from one that has imported everything, so that a
kill costs no import; the last round kills the command a user types, notebooks/run.py, and compares a grid's rows.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from hashlib import sha256
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "notebooks")]
os.environ |= {"PLG_PROGRESS": "0", "MPLBACKEND": "Agg"}

import reliability
import run
from tqdm import tqdm

from plg_utils import files, stages, training

NOTEBOOKS = ("02_zero_shot_labels", "03_refinement", "06_compare_labellers", "04_segmenter")
SMALL = {
    "run": "torture",
    "dataset_options": {"limit": 8},
    "labelled": 4,
    "warm_up": 6,
    "steps": 12,
    "batch_size": 2,
    "crop_size": 48,
    "methods": ["supervised", "unimatch", "paper_a"],
    "cam_sources": ["classifier", "clip_text"],
    "classifier_steps": 8,
    "classifier_batch_size": 2,
    "classifier_crop_size": 48,
    "images_at_once": 3,
}
REPLACE = os.replace
# Written by every start, not by the work: when, how long, and how often something started again.
CIRCUMSTANCES = ("manifest.json", "summary.json", "outputs.json", "contents.json")


class Lost(Exception):
    """A run that was killed did not come to the end of one that was not."""


def work(root: Path, names: Sequence[str] = NOTEBOOKS) -> None:
    """Do the stages of some notebooks of a small run below a folder."""
    os.environ["PLG_RESULTS"] = str(root / "results")
    os.replace = slow_replace
    training.SAVE_SECONDS = 0  # a state at every step
    training.fit.__kwdefaults__["log_every"] = 2
    os.chdir(ROOT / "notebooks")
    known = {name: value for each in names for name, value in run.defaults(run.NOTEBOOKS / f"{each}.ipynb").items()}
    parameters = known | {name: value for name, value in SMALL.items() if name in known}
    parameters |= {"dataset_options": SMALL["dataset_options"] | {"root": str(root / "world")}}
    list(stages.everything(stages.run_of(parameters), parameters))


def slow_replace(source: Path, target: Path) -> None:
    """Move a file into place, but not at once: so that kills fall between writing and moving more often."""
    time.sleep(0.01)
    REPLACE(source, target)
    time.sleep(0.01)


def begin(function: Callable[[Path], None], root: Path, log: Path) -> int:
    """Call the function in a process of its own; return its number."""
    if child := os.fork():
        return child
    code = 1
    try:
        with log.open("a", encoding="utf-8") as said:
            os.dup2(said.fileno(), 1)
            os.dup2(said.fileno(), 2)
            function(root)
            code = 0
    except BaseException:
        log.with_suffix(".error").write_text(traceback.format_exc(), encoding="utf-8")
    finally:
        os._exit(code)


def ends_within(child: int, seconds: float) -> int | None:
    """Exit code of a process that ends in time, else None."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    return None


def stage_at_work(root: Path) -> str:
    """Which stage a killed process was at: the one whose manifest says that it runs, and was written last."""
    running = []
    for path in (root / "results").glob("*/*/manifest.json"):
        if json.loads(path.read_text(encoding="utf-8"))["state"] == "running":  # written whole, even now
            running.append((path.stat().st_mtime, path.parent.name))
    if running:
        return max(running)[1]
    return "between stages" if (root / "results").exists() else "drawing the world"


def contents(root: Path) -> dict[str, str]:
    """SHA-256 of each file of the world and of the run, by name."""
    paths = (path for path in root.rglob("*") if path.is_file() and path.suffix not in (".log", ".error"))
    return {
        path.relative_to(root).as_posix(): sha256(path.read_bytes()).hexdigest()
        for path in paths
        if path.name not in CIRCUMSTANCES and not (path.name.startswith(".") and path.name.endswith(".partial"))
    }


def compare(expected: dict[str, str], found: dict[str, str]) -> None:
    """Refuse a difference between two runs, and say where it is."""
    wrong = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    if wrong:
        raise Lost(f"{len(wrong)} of {len(expected)} files differ or are missing: {', '.join(wrong[:5])}")


def one_round(root: Path, rng: random.Random, longest: float, killed: Counter, bar: tqdm) -> None:
    """Start each notebook and kill it until it comes to its end; start all again."""
    log = root / "said.log"
    for name in NOTEBOOKS:
        life, idle = longest, 0
        while True:
            before = contents(root)
            child = begin(partial(work, names=[name]), root, log)
            code = ends_within(child, rng.uniform(0.05, life))
            if code is not None:
                succeed(code, log)
                break
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            killed[stage_at_work(root)] += 1
            bar.update()
            idle = 0 if contents(root) != before else idle + 1
            if idle == 3:  # a slow machine: one start in a few must come further than those before
                life, idle = 1.5 * life, 0
    succeed(ends_within(begin(work, root, log), 3600), log)


def succeed(code: int | None, log: Path) -> None:
    """Refuse a process that failed, with what it said."""
    if code != 0:
        raise Lost(log.with_suffix(".error").read_text(encoding="utf-8"))


def command_round(root: Path, rng: random.Random, kills: int, killed: Counter, bar: tqdm) -> list[dict]:
    """Kill `notebooks/run.py`, with which its kernels end, some times; return the rows of the grid that it makes."""
    root.mkdir()
    environment = os.environ | {"PLG_RESULTS": str(root / "results"), "PLG_PROGRESS": "0"}
    options = SMALL["dataset_options"] | {"root": str(root / "world")}
    changes = {"dataset_options": options, "labelled": SMALL["labelled"], "images_at_once": 3}
    command = [sys.executable, str(ROOT / "notebooks" / "run.py"), "ablation_threshold", "-g", "threshold", "0.1,0.3"]
    command += [part for name, value in changes.items() for part in ("-p", name, json.dumps(value))]
    command += ["-g", "seed", "0"]
    for attempt in range(kills + 1):
        with (root / "said.log").open("a", encoding="utf-8") as said:
            process = subprocess.Popen(command, env=environment, stdout=said, stderr=said, start_new_session=True)
        try:
            code = process.wait(None if attempt == kills else rng.uniform(3, 12))
            break
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            killed["run.py, a grid"] += 1
            bar.update()
    if code:
        raise Lost((root / "said.log").read_text(encoding="utf-8")[-3000:])
    rows = files.read_json(root / "results" / "ablation_threshold" / "grid.json")["rows"]
    return [{key: row[key] for key in ("method", "stage", "miou", "point")} for row in rows]


def main() -> None:
    """Kill, compare, and say what happened as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--kills", type=int, default=60, help="at least so many")
    parser.add_argument("--commands", type=int, default=5, help="of these, of the command notebooks/run.py")
    parser.add_argument("--longest", type=float, default=4.0, help="seconds that a start may live")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--write", type=Path, help="JSON file, such as results/reliability.json")
    options = parser.parse_args()
    rng, killed, rounds = random.Random(options.seed), Counter(), 0
    with tempfile.TemporaryDirectory(prefix="plg-torture-") as place:
        root = Path(place) / "run"  # the same for all, because run.json names the folder of the images
        root.mkdir()
        succeed(ends_within(begin(work, root, root / "said.log"), 3600), root / "said.log")
        expected = contents(root)
        with tqdm(total=options.kills, desc="kills", ascii=True) as bar:
            while killed.total() < options.kills - options.commands:
                shutil.rmtree(root)
                root.mkdir()
                one_round(root, rng, options.longest, killed, bar)
                compare(expected, contents(root))
                rounds += 1
            if options.commands:
                left_alone = command_round(Path(place) / "left_alone", rng, 0, killed, bar)
                ended = command_round(Path(place) / "ended", rng, options.commands, killed, bar)
                if left_alone != ended:
                    raise Lost(f"the grid's rows differ: {left_alone}, {ended}")
    found = {"kills": killed.total(), "rounds": rounds + (options.commands > 0)}
    found |= {"files_compared": rounds * len(expected), "by_stage": dict(killed.most_common())}
    reliability.tell("kills", found, options.write)


if __name__ == "__main__":
    main()
