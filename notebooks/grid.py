"""Grids of runs: the same notebooks with each combination of some parameters, each combination a point.

    results/local/RUN/points/labelled=12,seed=0/      what the point's notebooks write, removed when it is done
    results/local/RUN/points/labelled=12,seed=0.json  the finished point: parameters, rows, how they were made
    results/local/RUN/shared/masks-1a2b3c4d/          a stage that several points use, linked into their folders
    results/local/RUN/grid.json                       all rows of the finished points that the last call was about
    results/RUN/points/*.json, results/RUN/grid.json  what was published of these; counts as done on any machine

Done is what has a json with the same notebooks and parameters as now, defaults included, here or published; only
`NOT_COUNTED` may differ. A json made otherwise is named and its point computed anew; nothing published is replaced
before `--publish`. The folder of an unfinished point is gone on with if it was begun with the same parameters, else
emptied: 05_evaluation scores every folder that it finds, older ones too.

Shared is a stage only by points that agree in every parameter of the notebook that writes it and of those before,
except those known not to reach it (`UNRELATED`): they are the key in its folder's name. So a new parameter of that
notebook costs computing time, never a mix of two kinds of work, and no point can empty another's folder.

Several processes may work on a grid: each point has a lock, taken by whoever comes first, and so has each shared
stage while the notebook runs that writes it. The system gives a lock back when its process ends, however it ends, so
that none is ever stale; the file only tells who holds it.
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
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import yaml
from tqdm import tqdm

from plg_utils import files, statistics

try:
    import fcntl
except ImportError:  # Windows: no locks, one process at a time
    fcntl = None

SHARED = ("masks", "segments")  # where the yaml names none: the dear stages, which know single images only
# Where and how, not what; store.stage does not count them either.
NOT_COUNTED = ("run", "device", "images_at_once", "processes", "workers")
PLACEMENT = (*NOT_COUNTED, "labelled", "seed")  # the last two: which of the same images carry labels
LABELLING = ("rule", "threshold", "default_threshold", "overlap")  # what 02 does after the segments
UNRELATED = {  # stage: parameters of its notebook that do not reach it; a test compares them with 02
    "masks": (*PLACEMENT, *LABELLING, "encoder", "encoder_options", "embedding_options"),
    "segments": (*PLACEMENT, *LABELLING),
}
LONGEST = 150  # letters of a point's name; file systems take 255 bytes, some of which `files.atomic` needs
KEYS = ("stage", "method", "labels", "labelled", "split")  # columns of the table, before those of the grid


class Refused(Exception):
    """A run that cannot start, with what would be right."""


@dataclass(frozen=True)
class Point:
    """One run of a grid."""

    name: str  # such as labelled=12,seed=0; its folder's name, and what its notebooks get as `run`
    values: dict[str, Any]  # the grid's parameters
    steps: list  # run.Step: notebooks and what is injected into them
    known: dict[str, dict[str, Any]]  # notebook's stem -> all its parameters, defaults included

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What a point must agree in to be the same."""
        parameters = {name: value for own in self.known.values() for name, value in own.items()}
        counted = {name: value for name, value in parameters.items() if name not in NOT_COUNTED}
        return files.plain({"notebooks": list(self.known), "point": self.values, "parameters": counted})


@dataclass(frozen=True)
class Grid:
    """All points of a run, and where they go."""

    run: str
    axes: dict[str, list]  # parameter -> its values
    points: list[Point]
    folder: Path  # results/local/RUN
    published: Path  # results/RUN
    writers: dict[str, str]  # shared stage -> stem of the notebook that writes it


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
    """In what a point's json or folder differs from the point as it is now, as "steps: 100, now 200"."""
    if not isinstance(content, dict) or not all(isinstance(content.get(key), dict) for key in ("point", "parameters")):
        return ["it holds no point"]
    found = []
    for key in ("point", "parameters"):
        one, other = content[key], point.identity[key]
        for name in dict.fromkeys([*other, *one]):
            if name in NOT_COUNTED and key == "parameters":
                continue
            if name not in one or name not in other or not same(one[name], other[name]):
                found.append(f"{name}: {one.get(name, 'absent')!s:.40}, now {other.get(name, 'absent')!s:.40}")
    if content.get("notebooks") != point.identity["notebooks"]:
        found.append(f"notebooks: {content.get('notebooks')}, now {point.identity['notebooks']}")
    return list(dict.fromkeys(found))  # a parameter of the grid stands in both


def finished(grid: Grid, point: Point) -> tuple[dict | None, str]:
    """The json of a finished point and its path; or None and why a json that is there does not count."""
    reasons = []
    for folder in (grid.folder, grid.published):
        path = folder / "points" / f"{point.name}.json"
        if not path.is_file():
            continue
        try:
            content = files.read_json(path)
        except ValueError as error:
            reasons.append(str(error))
            continue
        other = differences(content, point)
        if not other and isinstance(content.get("rows"), list):
            return content, str(path)
        reasons.append(f"{path} was made otherwise ({'; '.join(other) or 'it holds no rows'})")
    return None, "; ".join(reasons)


def overview(grid: Grid) -> str:
    """The points, each done or to do."""
    lines, done = [], 0
    for point in grid.points:
        content, where = finished(grid, point)
        done += content is not None
        lines.append([point.name, f"done: {where}" if content else f"to do{where and ': '}{where}"])
    return f"{aligned(lines)}\n{len(lines)} points: {done} done, {len(lines) - done} to do"


def one_or_all(values: Iterable) -> Any:
    """The value that all have, or the list of those that occur."""
    found = []
    for value in values:
        found += [] if value in found else [value]
    return found[0] if len(found) == 1 else found


def record(grid: Grid, point: Point, folder: Path) -> dict:
    """What remains of a finished point: parameters, rows, and from the stages' manifests how they were made."""
    summary = files.read_json(folder / "summary.json")
    manifests = summary.get("manifest") or {}
    own = {name: stage for name, stage in manifests.items() if name not in grid.writers}

    def stated(stages: dict, key: str) -> list:
        return [stage[key] for stage in stages.values() if stage.get(key) is not None]

    packages = {}
    for versions in stated(manifests, "packages"):
        for package, version in versions.items():
            packages.setdefault(package, []).append(version)
    made = {key: one_or_all(stated(manifests, key)) for key in ("git_commit", "device", "threads")}
    made |= {
        "packages": {package: one_or_all(versions) for package, versions in packages.items()},
        "checkpoints": {name: sha for found in stated(manifests, "checkpoints") for name, sha in found.items()},
        "classes_sha256": one_or_all(stated(manifests, "classes_sha256")),
        # The manifest of a shared stage tells of the point that wrote it last, and its seconds are those of all.
        "split_sha256": one_or_all(stated(own, "split_sha256")),
        "wall_seconds": round(sum(stated(own, "wall_seconds")), 2),
        "shared_wall_seconds": round(sum(stated(manifests, "wall_seconds")) - sum(stated(own, "wall_seconds")), 2),
        "peak_memory_mb": max(stated(manifests, "peak_memory_mb"), default=None),
        "peak_cuda_memory_mb": max(stated(manifests, "peak_cuda_memory_mb"), default=None),
        "stages": {
            name: {key: stage.get(key) for key in ("fingerprint", "wall_seconds")} | {"shared": name in grid.writers}
            for name, stage in manifests.items()
        },
    }
    content = {"run": grid.run, "dataset": summary.get("dataset"), "rows": summary["rows"], "made": made}
    return point.identity | content


# Sharing and locks


def writer_of(stage: str, notebooks: dict[str, str]) -> str | None:
    """Stem of the first notebook, of stem -> code, that opens this stage."""
    call = re.compile(rf"runs\.stage\(\s*folder / [\"']{re.escape(stage)}[\"']")
    return next((stem for stem, code in notebooks.items() if call.search(code)), None)


def shared_folder(stage: str, point: Point, writer: str) -> str:
    """Name of the folder of a shared stage, by the parameters that may reach it."""
    stems = list(point.known)
    reaching = {}
    for stem in stems[: stems.index(writer) + 1]:
        reaching |= point.known[stem]
    unrelated = UNRELATED.get(stage, NOT_COUNTED)
    return f"{stage}-{short_hash({name: value for name, value in reaching.items() if name not in unrelated})}"


@contextmanager
def lock(path: Path, *, what: str = "", wait: bool = False) -> Iterator[str]:
    """Hold a lock while the block runs; give "", or, unless it is to be waited for, who else holds it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+", encoding="utf-8") as file:
        holder = ""
        if fcntl:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if not isinstance(error, BlockingIOError):
                    raise Refused(f"{path} cannot be locked ({error}): let PLG_RESULTS name a disk that can") from error
                file.seek(0)
                holder = file.read().strip() or "another process"
                if wait:
                    print(f"waits for {holder} with {what}", file=sys.stderr, flush=True)
                    fcntl.flock(file, fcntl.LOCK_EX)
                    holder = ""
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
                name = shared_folder(stage, point, writer)
                stack.enter_context(lock(grid.folder / "locks" / f"{name}.lock", what=stage, wait=True))
        yield


# Making


def prepare(grid: Grid, point: Point) -> Path:
    """The folder of a point: as an interrupted session of the same point left it, else new; shared stages linked."""
    folder = grid.folder / "points" / point.name
    stamp = folder / "parameters.json"
    if folder.exists():
        try:
            other = differences(files.read_json(stamp), point)
        except (FileNotFoundError, ValueError):
            other = ["nothing tells what it was begun with"]
        if other:
            print(f"{point.name}: begins anew, {'; '.join(other)}", flush=True)
            shutil.rmtree(folder)
    files.write_json(stamp, point.identity)
    (folder / "summary.json").unlink(missing_ok=True)  # one that exists after the work belongs to it
    for stage, writer in grid.writers.items():
        target = grid.folder / "shared" / shared_folder(stage, point, writer)
        target.mkdir(parents=True, exist_ok=True)
        link = folder / stage
        relative = os.path.relpath(target, folder)
        if link.is_symlink() and os.readlink(link) != relative:
            link.unlink()
        if not os.path.lexists(link):
            link.symlink_to(relative, target_is_directory=True)
    return folder


def make_point(grid: Grid, point: Point, execute_all: Callable[..., bool], *, keep: bool) -> bool:
    """Run the notebooks of a point, write its json and remove its folder; whether all went well."""
    folder = prepare(grid, point)
    around: Callable[[Any], AbstractContextManager] = partial(alone, grid, point)
    if not execute_all(point.steps, folder, around=around):
        return False
    if not (folder / "summary.json").is_file():
        print(f"{point.name} left no summary.json: the run's notebooks must hold one that writes it", file=sys.stderr)
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
                        print(f"{point.name}: computed anew, {reason}", flush=True)
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


# Collecting


def collect(grid: Grid) -> dict:
    """All rows of all finished points, in the order of the grid; a parameter of the grid is a column of each row.

    Where a row has a column of that name already, as `labelled`, the grid's value stands.
    """
    rows, missing = [], []
    for point in grid.points:
        content, _ = finished(grid, point)
        if content is None:
            missing.append(point.name)
        else:
            own = without_repeats(content["rows"])
            rows += [row | {"point": point.name} | files.plain(point.values) for row in own]
    return {"run": grid.run, "grid": grid.axes, "points": len(grid.points), "missing": missing, "rows": rows}


def cell(value: Any) -> str:
    """A value in a table."""
    if isinstance(value, dict):
        return " ".join(f"{name}={cell(item)}" for name, item in value.items())
    if isinstance(value, list):
        return "+".join(map(cell, value))
    return "-" if value is None else str(value)


def columns(axes: dict[str, list]) -> list[str]:
    """Columns that tell apart what is not averaged: all but `seed`."""
    return [*KEYS, *(name for name in axes if name not in (*KEYS, "seed"))]


def remarks(row: dict) -> str:
    """What else tells a row apart: changed options, a checkpoint other than the last, a named split."""
    more = {"checkpoint": row["checkpoint"]} if row.get("checkpoint", "last") != "last" else {}
    more |= {"split_name": row["split_name"]} if row.get("split_name") else {}
    return cell((row.get("options") or {}) | more)


def without_repeats(rows: list[dict]) -> list[dict]:
    """Rows of a point; one that was added to a summary gives way to the same one by 05_evaluation."""

    def told(row: dict) -> list:
        return [row.get(key) for key in (*KEYS, "split_name", "seed", "checkpoint", "options")]

    by_evaluation = [told(row) for row in rows if not row.get("added")]
    return [row for row in rows if not row.get("added") or told(row) not in by_evaluation]


def groups(rows: list[dict], names: list[str]) -> dict[tuple, dict[Any, dict]]:
    """Rows by what is not averaged, then by seed."""
    found: dict[tuple, dict[Any, dict]] = {}
    for row in rows:
        key = (*(cell(row.get(name)) for name in names), remarks(row))
        by_seed = found.setdefault(key, {})
        if row.get("seed") in by_seed:
            told = " ".join(text for text in key if text)
            raise Refused(
                f"{row['point']} has two rows that nothing tells apart ({told}, seed {row.get('seed')}), so that they "
                "cannot be averaged: the notebook that writes them must say in `options` what differs"
            )
        by_seed[row.get("seed")] = row
    return found


def mean_and_spread(found: statistics.Summary, form: str = ".1f") -> str:
    """Mean ± sample standard deviation of fractions, in percent; of one value no deviation is known."""
    spread = f"{100 * found.std:.1f}" if len(found.values) > 1 else "-"
    return f"{100 * found.mean:{form}} ± {spread}"


def table(rows: list[dict], axes: dict[str, list]) -> str:
    """mIoU in percent, mean ± sample standard deviation over the seeds, n of them."""
    names = columns(axes)
    lines = [[*names, "n", "mIoU %", "options"]]
    for key, by_seed in groups(rows, names).items():
        values = [row["miou"] for row in by_seed.values() if row["miou"] is not None]
        told = mean_and_spread(statistics.summarise(values)) if values else "-"
        lines.append([*key[:-1], str(len(values)), told, key[-1]])
    return aligned(lines)


def paired(rows: list[dict], axes: dict[str, list], against: str) -> str:
    """Differences in mIoU to a method, seed by seed, in percentage points: mean ± deviation, n, and each one.

    Compared are rows of the same stage, split and checkpoint, and of the same point but for `methods`. The method
    stands for its rows without changed options: `direct`, say, and not `direct` with twice the steps.
    """
    methods = list(dict.fromkeys(row["method"] for row in rows if not row.get("options")))
    if against not in methods:
        raise Refused(f"no row is of the method {against!r}; there are: {', '.join(map(str, methods)) or 'no rows'}")
    names = columns(axes)
    common = ["stage", "labelled", "split", "checkpoint", "split_name", "seed"]
    common += [name for name in axes if name not in (*common, "methods")]

    def partner(row: dict) -> tuple:
        return tuple(cell(row.get(name)) for name in common)

    reference: dict[tuple, float | None] = {}
    others = []
    for row in rows:
        if row["method"] != against or row.get("options"):
            others.append(row)
        else:
            if partner(row) in reference:
                raise Refused(f"{row['point']} has more than one row of {against} ({cell(row['stage'])}): which is it?")
            reference[partner(row)] = row["miou"]
    lines = [[*names, "n", f"- {against}", "each seed", "options"]]
    for key, by_seed in groups(others, names).items():
        pairs = {seed: (row["miou"], reference.get(partner(row))) for seed, row in by_seed.items()}
        pairs = {seed: pair for seed, pair in pairs.items() if None not in pair}
        if pairs:
            mine, theirs = ({seed: pair[side] for seed, pair in pairs.items()} for side in (0, 1))
            gains = statistics.paired(mine, theirs)
            each = [
                f"{cell(seed)}: {100 * gain:+.1f}" if gain else f"{cell(seed)}: 0"
                for seed, gain in zip(pairs, gains.values, strict=True)
            ]
            lines.append([*key[:-1], str(len(pairs)), mean_and_spread(gains, "+.1f"), "  ".join(each), key[-1]])
    return aligned(lines)


def aligned(lines: list[list[str]]) -> str:
    """Lines of texts, column below column."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(map(str.ljust, texts, widths)).rstrip() for texts in lines)


# Publishing


def publish(grid: Grid) -> list[Path]:
    """Copy the json files of the finished points, and grid.json, from results/local/RUN to results/RUN.

    A point that was published before and is not there anew stays; notebooks of points are never copied.
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


# The command line's part


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
        failed = make(grid, execute_all, keep=options.keep)
        content = collect(grid)
        files.write_json(grid.folder / "grid.json", content)
    if content["rows"]:
        print(f"\n{table(content['rows'], grid.axes)}")
    if options.against:
        print(f"\n{paired(content['rows'], grid.axes, options.against)}")
    if not options.publish:
        print(f"\nrows: {grid.folder / 'grid.json'}")
    if content["missing"]:
        print(f"{len(content['missing'])} of {len(grid.points)} points are not done: {' '.join(content['missing'])}")
    return 1 if failed else 0
