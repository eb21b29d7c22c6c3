"""Grids of runs: the same notebooks with each combination of some parameters, each combination a point.

    results/local/RUN/points/labelled=12,seed=0/      what the point's notebooks write; removed when the point is done
    results/local/RUN/points/labelled=12,seed=0.json  the finished point: parameters, rows, how they were made
    results/local/RUN/shared/masks-1a2b3c4d/          a stage that several points use, linked into their folders
    results/local/RUN/grid.json                       all rows of the finished points that the last call was about
    results/RUN/points/*.json, results/RUN/grid.json  the published ones, which count as done on any machine

A point is done if it has a json with the same notebooks and parameters as now; only `NOT_COUNTED` may differ. An
unfinished point goes on if its run.json has the same parameters, else its folder is emptied first. Points share the
folder of a stage of SHARED if all parameters that reach the stage are the same.

Several processes may work on a grid: each point has a lock, and so has each shared stage while the notebook runs that
writes it. The system frees a lock when its process ends, however it ends; the file only names the holder.
"""

import hashlib
import itertools
import json
import os
import re
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from inspect import signature
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from plg_utils import choices, files, tables
from plg_utils.files import lock
from plg_utils.records import SPLITS

SHARED = {  # stage that points share: the functions of plg_utils/stages.py that make it and what it is made from
    "masks": ("masks",),
    "segments": ("masks", "segments"),
    "cam_network": ("cam_network",),
}
NOT_COUNTED = ("run", "device", "images_at_once", "processes", "workers")  # where and how, not what
ROOTS = {"voc": "VOC2012", "folder": "photos"}  # in the data folder; other data sets have a folder of their name
REFUSED = (OSError, ValueError, TypeError, KeyError)  # what `datasets.load` raises
LONGEST = 150  # letters of a point's name; file systems take 255 bytes, some of which `files.atomic` needs
ONE_ROW = ("stage", "method", "labels", "labelled", "split", "split_name", "seed", "checkpoint", "options")


@dataclass(frozen=True)
class Point:
    """One run of a grid."""

    name: str  # such as labelled=12,seed=0; its folder's name, and what its notebooks get as `run`
    values: dict[str, Any]  # the grid's parameters
    steps: list  # run.Step: notebooks and what is injected into them

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What a point must agree in to be the same: notebooks, and parameters with their defaults."""
        known = {name: value for step in self.steps for name, value in step.known.items() if name not in NOT_COUNTED}
        notebooks = [step.notebook.stem for step in self.steps]
        return files.plain({"notebooks": notebooks, "point": self.values, "parameters": known})


@dataclass(frozen=True)
class Grid:
    """All points of a run, and where they go."""

    run: str
    axes: dict[str, list]  # parameter -> its values
    points: list[Point]
    folder: Path  # results/local/RUN
    published: Path  # results/RUN

    @cached_property
    def writers(self) -> dict[str, str]:
        """Shared stage -> stem of the notebook that has the parameters of the stage and those of `open_run`."""
        return {
            stage: step.notebook.stem
            for stage, step in itertools.product(SHARED, self.points[0].steps)
            if reaching(stage) | {"device", "images_at_once", "processes"} <= step.known.keys()
        }


# Names


def short_hash(value: Any) -> str:
    """Eight letters that stand for a value."""
    return hashlib.sha256(json.dumps(files.plain(value), sort_keys=True).encode()).hexdigest()[:8]


def text_of(value: Any) -> str:
    """A value as a part of a file name: itself if it is short and simple, else its letters and a hash."""
    if value is None or isinstance(value, bool | int | float):
        return json.dumps(value)
    # Capitals too get a hash, for file systems that do not tell them apart; so do texts that YAML reads as no text.
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


def differences(path: Path, point: Point) -> str:
    """In what the json of a point or of its folder differs from the point now, as "steps: 100, now 200"; "" if not.

    A parameter that was not known then counts as None: notebooks get new options, and None leaves them out.
    """
    try:
        content, now = files.read_json(path), point.identity
        found = [] if content["notebooks"] == now["notebooks"] else [f"notebooks: {content['notebooks']}"]
        then, now = ({**which["point"], **which["parameters"]} for which in (content, now))
        names = [name for name in {**now, **then} if name not in NOT_COUNTED]  # these are in run.json
        differ = [name for name in names if not same(then.get(name), now.get(name))]
        return "; ".join(found + [f"{name}: {then.get(name)!s:.40}, now {now.get(name)!s:.40}" for name in differ])
    except (OSError, KeyError, TypeError, ValueError) as error:
        return f"it does not say how it was made ({type(error).__name__}: {error})"


def inputs_sha256(point: Point) -> str | None:
    """Digest of the files that a point is made from: photos, label maps, classes, weights.

    None if they are not here: the root of the data set is not on this machine, or no notebook of the run has one. If
    the root is there and the data set is refused, this raises what `datasets.load` raises. The numbers of a drawn world
    follow from the parameters.
    """
    from plg_utils import class_files, contents, datasets, store  # torch takes seconds to import

    known = point.identity["parameters"]
    if not {"dataset", "dataset_options", "labelled", "seed"} <= known.keys():
        return None
    given = {name: known[name] for name in ("labelled", "seed")} | known["dataset_options"]
    root = Path(given.get("root") or files.data_root() / ROOTS.get(known["dataset"], known["dataset"])).expanduser()
    opened = ("labelled", "unlabelled", *known.get("evaluated", ["val"]))
    try:
        with warnings.catch_warnings(action="ignore"):  # the notebooks say them
            data = datasets.load(known["dataset"], **given, truth_of=opened)
    except REFUSED:
        if root.exists():
            raise
        return None
    images = [(split, sample) for split in SPLITS for sample in getattr(data, split)]
    rows = [
        [split, each.id, each.read_content and each.content, each.read_truth_content and each.truth_content]
        for split, each in images
    ]
    weights = [contents.sha256(path) for path in own_weights(known)]
    contents.save()
    return store.digest([class_files.sha256(data.classes), rows, weights])


def own_weights(options: dict[str, Any]) -> list[str]:
    """Files that parameters name as weights, in options of theirs too."""
    found = [value for key, value in options.items() if key in ("checkpoint", "pretrained") and isinstance(value, str)]
    below = [path for value in options.values() if isinstance(value, dict) for path in own_weights(value)]
    own = [Path(path) for path in found if os.path.isabs(path)]  # others are names
    return below + [str(path) for each in own for path in sorted([each, *each.glob("*")]) if path.is_file()]


def finished(grid: Grid, point: Point) -> tuple[dict | None, str]:
    """The json of a finished point and its path; or None and why a json that is there does not count."""
    reasons = []
    for path in (folder / "points" / f"{point.name}.json" for folder in (grid.folder, grid.published)):
        if path.is_file():
            if not (reason := differences(path, point) or changes(path, point)):
                return files.read_json(path), str(path)
            reasons.append(f"{path} was made otherwise ({reason})")
    return None, "; ".join(reasons)


def changes(path: Path, point: Point) -> str:
    """Why the rows in the json of a point are not those of the files that are here now; "" if they are."""
    content = files.read_json(path)
    if not isinstance(content.get("rows"), list):
        return "it holds no rows"
    then = (content.get("made") or {}).get("inputs_sha256")
    try:
        same_files = not then or inputs_sha256(point) in (then, None)
    except REFUSED as error:
        return f"its data set is refused now: {' '.join(str(error).split())[:300]}"
    return "" if same_files else "photos, label maps, classes or weights have changed since"


def record(grid: Grid, point: Point, folder: Path) -> dict:
    """What remains of a finished point: parameters, rows, and from the stages' manifests how they were made."""
    summary = files.read_json(folder / "summary.json")
    manifests = summary.get("manifest") or {}
    # Commit and packages of a shared stage are those of the point that made files last; its seconds are those of all.
    own = {name: stage for name, stage in manifests.items() if name not in grid.writers}

    def stated(key: str, stages: dict) -> Any:
        """What the stages say: one value if they agree, else a list."""
        values = {json.dumps(stage[key]): stage[key] for stage in stages.values() if stage.get(key) is not None}
        return values.popitem()[1] if len(values) == 1 else list(values.values())

    made = {key: stated(key, manifests) for key in ("git_commit", "device", "threads", "classes_sha256", "packages")}
    made |= {"split_sha256": stated("split_sha256", own), "stages": {}, "checkpoints": {}}
    made |= {"wall_seconds": 0, "shared_wall_seconds": 0, "inputs_sha256": None}
    with suppress(*REFUSED):  # its stages have read them; if they went away since, the point is done all the same
        made["inputs_sha256"] = inputs_sha256(point)
    for name, stage in manifests.items():
        kept = {key: stage.get(key) for key in ("fingerprint", "wall_seconds")}
        made["stages"][name] = kept | {"shared": name not in own}
        made["checkpoints"] |= stage.get("checkpoints") or {}
        made["wall_seconds" if name in own else "shared_wall_seconds"] += stage.get("wall_seconds") or 0
    for key in ("peak_memory_mb", "peak_cuda_memory_mb"):
        made[key] = max((stage.get(key) or 0 for stage in manifests.values()), default=0)
    return point.identity | {"run": grid.run, "dataset": summary.get("dataset"), "rows": summary["rows"], "made": made}


# Sharing and locks


def reaching(stage: str) -> set[str]:
    """The notebooks' parameters that a shared folder depends on: those of the functions that make it, and the images.

    A stage with a seed learns, so it depends on which images are labelled too. `evaluated`, which has a default, only
    says of which further images there are files.
    """
    from plg_utils import stages  # torch takes seconds to import

    found = [signature(getattr(stages, function)).parameters for function in SHARED[stage]]
    names = {name for own in found for name, one in own.items() if one.default is one.empty} - {"run"}
    return names | {"dataset", "dataset_options"} | ({"labelled"} if "seed" in names else set())


def shared_folder(stage: str, point: Point) -> str:
    """Name of the folder of a shared stage, by the parameters that reach it."""
    return f"{stage}-{short_hash({name: point.identity['parameters'][name] for name in reaching(stage)})}"


# Making


def make_point(grid: Grid, point: Point, execute_all: Callable[..., bool]) -> bool:
    """Run the notebooks of a point, write its json and remove its folder; whether all went well.

    The folder is gone on with if an interrupted session of the same point left it.
    """
    folder = grid.folder / "points" / point.name
    if folder.exists() and (other := differences(folder / "run.json", point)):
        print(f"{point.name}: starts again, {other}", flush=True)
        shutil.rmtree(folder)
    files.write_json(folder / "run.json", point.identity)
    (folder / "summary.json").unlink(missing_ok=True)  # one that exists after the work belongs to it
    for stage in grid.writers:
        target, link = grid.folder / "shared" / shared_folder(stage, point), folder / stage
        target.mkdir(parents=True, exist_ok=True)
        if link.is_dir() and not link.is_symlink():  # of an earlier version, which did not share this stage
            shutil.rmtree(link)
        link.unlink(missing_ok=True)
        link.symlink_to(os.path.relpath(target, folder), target_is_directory=True)

    @contextmanager
    def around(step: Any) -> Iterator[None]:
        """Hold the locks of the shared stages that a notebook writes; in one order, so that none waits for ever."""
        with ExitStack() as stack:
            for stage in sorted(stage for stage, writer in grid.writers.items() if writer == step.notebook.stem):
                path = grid.folder / "locks" / f"{shared_folder(stage, point)}.lock"
                stack.enter_context(lock(path, wait_for=stage))
            yield

    if not execute_all(point.steps, folder, around):
        return False
    if not (folder / "summary.json").is_file():
        raise ValueError("it left no summary.json: add the notebook that writes it, 05_evaluation")
    files.write_json(grid.folder / "points" / f"{point.name}.json", record(grid, point, folder))
    shutil.rmtree(folder)
    return True


def make(grid: Grid, execute_all: Callable[..., bool]) -> list[str]:
    """Make the points that are to do, one after the other; return the names of those that failed.

    execute_all: (steps, folder, around) -> whether all went well; holds around(step) while it executes a step
    """
    from plg_utils import store  # torch takes seconds to import

    failed = []
    for point in store.progress(grid.points, what=grid.run):
        with lock(grid.folder / "locks" / f"{point.name}.lock") as holder:
            content, reason = finished(grid, point)
            if holder:
                print(f"{point.name} is being made by {holder}", flush=True)
            elif content is None:
                print(f"{point.name}: is made again, {reason}\n" if reason else "", end="", flush=True)
                try:
                    failed += [] if make_point(grid, point, execute_all) else [point.name]
                except (OSError, ValueError, KeyError) as error:  # not of a notebook: of its folder or summary
                    print(f"{point.name} failed\n    {type(error).__name__}: {error}", file=sys.stderr)
                    failed.append(point.name)
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
    by_evaluation = [[row.get(key) for key in ONE_ROW] for row in rows if not row.get("added")]
    return [row for row in rows if not row.get("added") or [row.get(key) for key in ONE_ROW] not in by_evaluation]


def table(content: dict, against: str | None = None) -> str:
    """mIoU of a grid.json in percent: n values, their mean ± sample standard deviation over the seeds.

    against: instead, the differences to this method, seed by seed, in percentage points. Compared are rows of the same
        stage, split and checkpoint, and of the same point but for `methods`. The method stands for its rows without
        changed options: `direct`, say, and not `direct` with twice the steps
    """
    axes = [name for name in content["grid"] if name not in ("seed", "labelled")]
    rows = [row | {"axes": {name: row[name] for name in axes}} for row in content["rows"] if row["miou"] is not None]
    found = tables.grouped(row | {"run": content["run"]} for row in rows)
    frame = pd.DataFrame([row | what._asdict() for what, own in found.items() for row in own])
    if against and rows:
        common = ["stage", "labelled", "split_name", "split", "checkpoint", "seed"]
        common += [name for name in axes if name != "methods"]
        frame["pair"] = [json.dumps([row.get(name) for name in common]) for row in frame.to_dict("records")]
        plain = frame[~frame.options.astype(bool)]
        choices.one_of(against, plain.method.unique().tolist(), "row of the method")
        reference = plain[plain.method == against]
        if reference.pair.duplicated().any():
            raise ValueError(f"a point has two rows of {against}, of the same stage and split: choose another method")
        frame.miou -= frame.pair.map(reference.set_index("pair").miou)
        frame = frame.drop(reference.index).dropna(subset="miou")
    lines = []
    for what, own in frame.groupby(list(tables.What._fields), sort=False, dropna=False) if len(frame) else ():
        title, sign = (f"- {against}", "+") if against else ("mIoU %", "")
        text = f"{100 * own.miou.mean():{sign}.1f} ± {100 * own.miou.std():.1f}".replace("nan", "-")
        seeds = "  ".join(f"{seed}: {100 * gain:+.1f}" for seed, gain in zip(own.seed, own.miou, strict=True))
        line = dict(zip(tables.What._fields, what, strict=True)) | {"n": len(own), title: text}
        lines.append(line | ({"each seed": seeds} if against else {}))
    shown = pd.DataFrame(lines, dtype=object)
    if lines and shown.split_name.isna().all():
        shown = shown.drop(columns="split_name")
    return shown.to_string(index=False) if lines else "no rows to compare"


# The command line's part


def main(grid: Grid, options: Any, execute_all: Callable[..., bool]) -> int:
    """List, publish, or make and collect what notebooks/run.py was asked for; 0, or 1 if a point failed."""
    if options.dry_run:
        found = [(point.name, *finished(grid, point)) for point in grid.points]
        for name, content, why in found:
            print(f"{name}  {'done' if content else 'to do'}{why and ': '}{why}")
        done = sum(content is not None for _, content, _ in found)
        print(f"{len(found)} points: {done} done, {len(found) - done} to do")
        return 0
    failed = [] if options.publish else make(grid, execute_all)
    content = collect(grid)
    if options.publish:  # a point that was published before and is not here now stays
        if len(content["missing"]) == len(grid.points):
            raise ValueError(f"no point of {grid.run} is finished: run first: notebooks/run.py {grid.run}")
        for point in grid.points:
            if done := finished(grid, point)[0]:
                files.write_json(grid.published / "points" / f"{point.name}.json", done)
    path = (grid.published if options.publish else grid.folder) / "grid.json"
    files.write_json(path, content)
    for against in [None, options.against] if options.against else [None]:
        print(f"\n{table(content, against)}")
    print(f"\nrows: {path}")
    if content["missing"]:
        print(f"{len(content['missing'])} of {len(grid.points)} points are not done: {' '.join(content['missing'])}")
    return 1 if failed else 0
