"""Grids of runs: the same notebooks with each combination of some parameters, each combination a point.

    results/local/RUN/points/labelled=12,seed=0/      what the point's notebooks write, removed when it is done
    results/local/RUN/points/labelled=12,seed=0.json  the finished point: parameters, rows, how they were made
    results/local/RUN/shared/masks-1a2b3c4d/          a stage that several points use, linked into their folders
    results/local/RUN/grid.json                       all rows of the finished points that the last call was about
    results/RUN/points/*.json, results/RUN/grid.json  what was published of these; counts as done on any machine

A point is done if it has a json with the same notebooks and parameters as now, here or published; only `NOT_COUNTED`
may differ. An unfinished point goes on if its run.json has the same parameters, else its folder is emptied first.
Points share the folder of a stage if all parameters that reach the stage are the same (`reaching`).

Several processes may work on a grid: each point has a lock, and so has each shared stage while the notebook runs that
writes it. The system gives a lock back when its process ends, however it ends; the file only names the holder.
"""

import hashlib
import itertools
import json
import os
import re
import shutil
import socket
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from inspect import signature
from pathlib import Path
from typing import Any

import yaml
from tqdm import tqdm

from plg_utils import files, statistics, tables

try:
    import fcntl
except ImportError:  # Windows: no locks, one process at a time
    fcntl = None

SHARED = ("masks", "segments")  # where the yaml names none
MADE_BY = {  # folder that can be shared: the functions of plg_utils/stages.py that make it and what it is made from
    "masks": ("masks",),
    "segments": ("masks", "segments"),
    "cam_network": ("cam_network",),
    "labels_boxes": ("boxes",),
}
NOT_COUNTED = ("run", "device", "images_at_once", "processes", "workers")  # where and how, not what
LONGEST = 150  # letters of a point's name; file systems take 255 bytes, some of which `files.atomic` needs


class Refused(Exception):
    """A run that cannot start, with what would be right."""


@dataclass(frozen=True)
class Point:
    """One run of a grid."""

    name: str  # such as labelled=12,seed=0; its folder's name, and what its notebooks get as `run`
    values: dict[str, Any]  # the grid's parameters
    steps: list  # run.Step: notebooks and what is injected into them
    known: dict[str, dict[str, Any]]  # notebook's stem -> all its parameters, defaults included

    @property
    def parameters(self) -> dict[str, Any]:
        """Those of all notebooks."""
        return {name: value for own in self.known.values() for name, value in own.items()}

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What a point must agree in to be the same."""
        counted = {name: value for name, value in self.parameters.items() if name not in NOT_COUNTED}
        return files.plain({"notebooks": list(self.known), "point": self.values, "parameters": counted})


@dataclass(frozen=True)
class Grid:
    """All points of a run, and where they go."""

    run: str
    axes: dict[str, list]  # parameter -> its values
    points: list[Point]
    folder: Path  # results/local/RUN
    published: Path  # results/RUN
    shared: list[str] | None = None  # stages that points share; None: SHARED

    @cached_property
    def writers(self) -> dict[str, str]:
        """Shared stage -> stem of the first notebook that has the parameters of the stage and those of `open_run`."""
        found, notebooks = {}, self.points[0].known
        for stage in SHARED if self.shared is None else self.shared:
            needed = reaching(stage) | {"device", "images_at_once", "processes"}
            if stem := next((stem for stem, own in notebooks.items() if needed <= own.keys()), None):
                found[stage] = stem
            elif self.shared:
                raise Refused(f"{stage} cannot be shared: no notebook of the run has {', '.join(sorted(needed))}")
        return found


# Names


def short_hash(value: Any) -> str:
    """Eight letters that stand for a value."""
    return hashlib.sha256(json.dumps(files.plain(value), sort_keys=True).encode()).hexdigest()[:8]


def text_of(value: Any) -> str:
    """A value as a part of a file name: itself if it is short and simple, else its letters and a hash."""
    if value is None or isinstance(value, bool | int | float):
        return json.dumps(value)
    # Capitals too get a hash, for file systems that do not tell them apart; so do texts that read as no text.
    if isinstance(value, str) and re.fullmatch(r"[a-z][a-z0-9_.+-]{,23}", value) and yaml.safe_load(value) == value:
        return value
    letters = re.sub(r"[^a-z0-9]+", "-", json.dumps(files.plain(value)).lower()).strip("-")[:24].strip("-")
    return f"{letters}~{short_hash(value)}"


def name_of(values: dict[str, Any]) -> str:
    """Name of a point, safe as a file name: labelled=12,seed=0."""
    name = ",".join(f"{key}={text_of(value)}" for key, value in values.items())
    return name if len(name) <= LONGEST else f"{name[: LONGEST - 9]}~{short_hash(values)}"


def combinations(axes: dict[str, list]) -> list[dict[str, Any]]:
    """Each value of each parameter with each of the others; the last parameter changes fastest."""
    return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]


def same(one: Any, other: Any) -> bool:
    """Whether two values are one: 1 and 1.0 are, 1 and true are not."""
    return one == other and isinstance(one, bool) == isinstance(other, bool)


# Done points


def differences(content: Any, point: Point) -> list[str]:
    """In what a point's json or folder differs from the point as it is now, as "steps: 100, now 200".

    A parameter that was not known then counts as None: notebooks get new options, and None leaves them out.
    """
    try:
        found = [] if content["notebooks"] == point.identity["notebooks"] else [f"notebooks: {content['notebooks']}"]
        for key in ("point", "parameters"):
            one, other = dict(content[key]), point.identity[key]
            names = [name for name in dict.fromkeys([*other, *one]) if key == "point" or name not in NOT_COUNTED]
            differ = [name for name in names if not same(one.get(name), other.get(name))]
            found += [f"{name}: {one.get(name)!s:.40}, now {other.get(name)!s:.40}" for name in differ]
    except (KeyError, TypeError, ValueError):
        return ["it holds no point"]
    return list(dict.fromkeys(found))  # a parameter of the grid stands in both


def finished(grid: Grid, point: Point) -> tuple[dict | None, str]:
    """The json of a finished point and its path; or None and why a json that is there does not count."""
    reasons = []
    for folder in (grid.folder, grid.published):
        path = folder / "points" / f"{point.name}.json"
        try:
            content = files.read_json(path) if path.is_file() else None
        except ValueError as error:
            reasons.append(str(error))
            continue
        other = differences(content, point)
        if not other and isinstance(content.get("rows"), list):
            return content, str(path)
        if path.is_file():
            reasons.append(f"{path} was made otherwise ({'; '.join(other) or 'it holds no rows'})")
    return None, "; ".join(reasons)


def overview(grid: Grid) -> str:
    """The points, each done or to do."""
    found = {point.name: finished(grid, point) for point in grid.points}
    done = sum(content is not None for content, _ in found.values())
    states = [f"done: {why}" if content else f"to do{why and ': '}{why}" for content, why in found.values()]
    lines = aligned([list(pair) for pair in zip(found, states, strict=True)])
    return f"{lines}\n{len(found)} points: {done} done, {len(found) - done} to do"


def record(grid: Grid, point: Point, folder: Path) -> dict:
    """What remains of a finished point: parameters, rows, and from the stages' manifests how they were made."""
    summary = files.read_json(folder / "summary.json")
    manifests = summary.get("manifest") or {}
    own = {name: stage for name, stage in manifests.items() if name not in grid.writers}

    def stated(key: str, stages: dict) -> list:
        return [stage[key] for stage in stages.values() if stage.get(key) is not None]

    def one_or_all(values: Iterable) -> Any:
        found = []
        for value in values:
            found += [] if value in found else [value]
        return found[0] if len(found) == 1 else found

    pairs = [pair for versions in stated("packages", manifests) for pair in versions.items()]
    packages = {name: one_or_all(version for other, version in pairs if other == name) for name, _ in pairs}
    seconds = round(sum(stated("wall_seconds", own)), 2)
    made = {key: one_or_all(stated(key, manifests)) for key in ("git_commit", "device", "threads", "classes_sha256")}
    checkpoints = {name: sha for found in stated("checkpoints", manifests) for name, sha in found.items()}
    made |= {"packages": packages, "checkpoints": checkpoints}
    # The manifest of a shared stage is of the point that wrote it last, and its seconds are those of all.
    made |= {"split_sha256": one_or_all(stated("split_sha256", own)), "wall_seconds": seconds}
    made |= {"shared_wall_seconds": round(sum(stated("wall_seconds", manifests)) - seconds, 2)}
    made |= {key: max(stated(key, manifests), default=None) for key in ("peak_memory_mb", "peak_cuda_memory_mb")}
    made["stages"] = {
        name: {key: stage.get(key) for key in ("fingerprint", "wall_seconds")} | {"shared": name in grid.writers}
        for name, stage in manifests.items()
    }
    return point.identity | {"run": grid.run, "dataset": summary.get("dataset"), "rows": summary["rows"], "made": made}


# Sharing and locks


def reaching(stage: str) -> set[str]:
    """The notebooks' parameters that a shared folder depends on: those of the functions that make it, and the images.

    A stage with a seed learns, so it depends on which images are labelled too.
    """
    if stage not in MADE_BY:
        raise Refused(f"{stage} cannot be shared; these can: {', '.join(MADE_BY)}")
    from plg_utils import stages  # torch takes seconds to import

    names = {name for function in MADE_BY[stage] for name in signature(stages.STAGES[function]).parameters} - {"run"}
    return names | {"dataset", "dataset_options"} | ({"labelled"} if "seed" in names else set())


def shared_folder(stage: str, point: Point) -> str:
    """Name of the folder of a shared stage, by the parameters that reach it."""
    return f"{stage}-{short_hash({name: point.parameters[name] for name in reaching(stage)})}"


@contextmanager
def lock(path: Path, *, what: str = "", wait: bool = False) -> Iterator[str]:
    """Hold a lock while the block runs; give "", or, unless it is to be waited for, who else holds it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+", encoding="utf-8") as file:
        holder = ""
        try:
            fcntl and fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "another process"
            if wait:
                print(f"waits for {holder} with {what}", file=sys.stderr, flush=True)
                fcntl.flock(file, fcntl.LOCK_EX)
                holder = ""
        except OSError as error:
            raise Refused(f"{path} cannot be locked ({error}): let PLG_RESULTS name a disk that can") from error
        if not holder:
            file.truncate(0)  # what is appended then stands at the start
            file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
            file.flush()
        yield holder


@contextmanager
def alone(grid: Grid, point: Point, step: Any) -> Iterator[None]:
    """Hold the locks of the shared stages that a notebook writes; in a fixed order, so that none waits for ever."""
    with ExitStack() as stack:
        for stage, writer in sorted(grid.writers.items()):
            if writer == step.notebook.stem:
                path = grid.folder / "locks" / f"{shared_folder(stage, point)}.lock"
                stack.enter_context(lock(path, what=stage, wait=True))
        yield


# Making


def prepare(grid: Grid, point: Point) -> Path:
    """The folder of a point: as an interrupted session of the same point left it, else new; shared stages linked."""
    folder = grid.folder / "points" / point.name
    if folder.exists():
        try:
            other = differences(files.read_json(folder / "run.json"), point)
        except (FileNotFoundError, ValueError):
            other = ["run.json does not say with what it was begun"]
        if other:
            print(f"{point.name}: starts again, {'; '.join(other)}", flush=True)
            shutil.rmtree(folder)
    files.write_json(folder / "run.json", point.identity)
    (folder / "summary.json").unlink(missing_ok=True)  # one that exists after the work belongs to it
    for stage in grid.writers:
        target, link = grid.folder / "shared" / shared_folder(stage, point), folder / stage
        target.mkdir(parents=True, exist_ok=True)
        link.unlink(missing_ok=True)
        link.symlink_to(os.path.relpath(target, folder), target_is_directory=True)
    return folder


def make_point(grid: Grid, point: Point, execute_all: Callable[..., bool], *, keep: bool) -> bool:
    """Run the notebooks of a point, write its json and remove its folder; whether all went well."""
    folder = prepare(grid, point)
    if not execute_all(point.steps, folder, around=partial(alone, grid, point)):
        return False
    if not (folder / "summary.json").is_file():
        print(f"{point.name} left no summary.json: add the notebook that writes it, 05_evaluation", file=sys.stderr)
        return False
    files.write_json(grid.folder / "points" / f"{point.name}.json", record(grid, point, folder))
    if not keep:
        shutil.rmtree(folder)
    return True


def make(grid: Grid, execute_all: Callable[..., bool], *, keep: bool = False) -> list[str]:
    """Make the points that are to do, one after the other; return the names of those that failed.

    execute_all: (steps, folder, around) -> whether all went well; holds around(step) while it executes a step
    """
    failed, elsewhere = [], []
    hidden = os.environ.get("PLG_PROGRESS", "1") == "0"  # as store.progress_shown, whose module needs torch
    form = "{desc}: {n_fmt}/{total_fmt} points [{elapsed}]"  # no rate: points that are done take no time
    with tqdm(total=len(grid.points), desc=grid.run, bar_format=form, file=sys.stderr, disable=hidden) as bar:
        for point in grid.points:
            bar.set_description_str(point.name)
            with lock(grid.folder / "locks" / f"{point.name}.lock") as holder:
                content, reason = (None, "") if holder else finished(grid, point)
                if holder:
                    elsewhere.append(f"{point.name} is being made by {holder}")
                elif content is None:
                    if reason:
                        print(f"{point.name}: is made again, {reason}", flush=True)
                    try:
                        good = make_point(grid, point, execute_all, keep=keep)
                    except (OSError, ValueError, KeyError) as error:  # not of a notebook: of its folder or summary
                        print(f"{point.name} failed\n    {type(error).__name__}: {error}", file=sys.stderr)
                        good = False
                    failed += [] if good else [point.name]
            bar.update()
    if elsewhere:
        print("\n".join(elsewhere), flush=True)
    if failed:
        print(f"{len(failed)} of {len(grid.points)} points failed: {' '.join(failed)}", file=sys.stderr)
    return failed


# Tables


def collect(grid: Grid) -> dict:
    """All rows of all finished points, in the order of the grid; a parameter of the grid is a column of each row.

    Where a row has a column of that name already, as `labelled`, the grid's value stands.
    """
    rows, missing = [], []
    for point in grid.points:
        content, _ = finished(grid, point)
        missing += [] if content else [point.name]
        own = without_repeats(content["rows"]) if content else []
        rows += [row | {"point": point.name} | files.plain(point.values) for row in own]
    return {"run": grid.run, "grid": grid.axes, "points": len(grid.points), "missing": missing, "rows": rows}


def without_repeats(rows: list[dict]) -> list[dict]:
    """Rows of a point; one that was added to a summary gives way to the same one by 05_evaluation."""

    def what(row: dict) -> list:
        keys = ("stage", "method", "labels", "labelled", "split", "split_name", "seed", "checkpoint", "options")
        return [row.get(key) for key in keys]

    by_evaluation = [what(row) for row in rows if not row.get("added")]
    return [row for row in rows if not row.get("added") or what(row) not in by_evaluation]


def grouped(content: dict) -> dict[tables.What, list[dict]]:
    """Rows of a grid.json that have a mean IoU, by what was measured: those of different seeds are together."""
    axes = [name for name in content["grid"] if name not in ("seed", "labelled")]
    rows = [row | {"axes": {name: row[name] for name in axes}} for row in content["rows"] if row["miou"] is not None]
    try:
        return tables.grouped(row | {"run": content["run"]} for row in rows)
    except ValueError as error:
        raise Refused(str(error)) from error


def line_of(what: tables.What, values: list[float], sign: str = "") -> list[str]:
    """A line of a table: mean ± sample standard deviation in percent; of one value no deviation is known."""
    found = statistics.summarise(values)
    spread = f"{100 * found.std:.1f}" if len(values) > 1 else "-"
    return [*map(str, what), str(len(values)), f"{100 * found.mean:{sign}.1f} ± {spread}"]


def table(content: dict) -> str:
    """mIoU of a grid.json in percent, mean ± standard deviation over the seeds, n of them."""
    lines = [line_of(what, [row["miou"] for row in own]) for what, own in grouped(content).items()]
    return aligned([[*tables.What._fields, "n", "mIoU %"], *lines])


def paired(content: dict, against: str) -> str:
    """Differences in mIoU to a method, seed by seed, in percentage points: mean ± deviation, n, and each one.

    Compared are rows of the same stage, split and checkpoint, and of the same point but for `methods`. The method
    stands for its rows without changed options: `direct`, say, and not `direct` with twice the steps.
    """
    common = [
        "stage",
        "labelled",
        "split",
        "checkpoint",
        "seed",
        *(name for name in content["grid"] if name != "methods"),
    ]
    found, reference = grouped(content), {}
    partner = {id(row): json.dumps([row.get(name) for name in common]) for own in found.values() for row in own}
    plain = [row for own in found.values() for row in own if not row.get("options")]
    for row in [row for row in plain if row["method"] == against]:
        if partner[id(row)] in reference:
            raise Refused(f"{row['point']} has more than one row of {against} ({row['stage']}): choose another method")
        reference[partner[id(row)]] = row
    if not reference:
        methods = ", ".join(dict.fromkeys(row["method"] for row in plain)) or "no rows"
        raise Refused(f"no row is of the method {against!r}; there are: {methods}")
    lines = [[*tables.What._fields, "n", f"- {against}", "each seed"]]
    for what, own in found.items():
        pairs = [(row, reference.get(partner[id(row)], row)) for row in own]
        gains = {row["seed"]: row["miou"] - other["miou"] for row, other in pairs if row is not other}
        if gains:
            each = "  ".join(f"{seed}: {100 * gain:+.1f}" for seed, gain in gains.items())
            lines.append([*line_of(what, list(gains.values()), "+"), each])
    return aligned(lines)


def aligned(lines: list[list[str]]) -> str:
    """Lines of texts, column below column."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(map(str.ljust, texts, widths)).rstrip() for texts in lines)


# The command line's part


def publish(grid: Grid) -> list[Path]:
    """Copy the json files of the finished points, and grid.json, from results/local/RUN to results/RUN.

    A point that was published before and is not there now stays; notebooks of points are never copied.
    """
    content = collect(grid)
    if len(content["missing"]) == content["points"]:
        raise Refused(f"no point of {grid.run} is finished: run first: notebooks/run.py {grid.run}")
    copies = []
    for point in grid.points:
        found, path = finished(grid, point)
        copy = grid.published / "points" / f"{point.name}.json"
        if found and Path(path) != copy:
            files.write_json(copy, found)
            copies.append(copy)
    files.write_json(grid.published / "grid.json", content)
    return [*copies, grid.published / "grid.json"]


def main(grid: Grid, options: Any, execute_all: Callable[..., bool]) -> int:
    """List, publish, or make and collect what notebooks/run.py was asked for; 0, or 1 if a point failed."""
    if options.dry_run:
        print(overview(grid))
        return 0
    if options.publish:
        copies = publish(grid)
        print(f"{len(copies)} files in {grid.published}")
        failed, content = [], files.read_json(copies[-1])
    else:
        grid.writers  # noqa: B018  what cannot be shared is refused before any work
        failed = make(grid, execute_all, keep=options.keep)
        content = collect(grid)
        files.write_json(grid.folder / "grid.json", content)
    if content["rows"]:
        print(f"\n{table(content)}")
    if options.against:
        print(f"\n{paired(content, options.against)}")
    if not options.publish:
        print(f"\nrows: {grid.folder / 'grid.json'}")
    if content["missing"]:
        print(f"{len(content['missing'])} of {len(grid.points)} points are not done: {' '.join(content['missing'])}")
    return 1 if failed else 0
