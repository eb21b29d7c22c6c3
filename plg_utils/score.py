"""Score a folder of label maps, from any tool, against a folder of truths.

python -m plg_utils.score PREDICTIONS TRUTH --classes voc
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from plg_utils import class_files, datasets, files, metrics
from plg_utils.records import IGNORE, Classes, Scores


def pair_up(
    predictions: str | Path, truths: str | Path, *, ids: Sequence[str] | None = None, allow_missing: bool = False
) -> tuple[dict[str, tuple[Path | None, Path]], list[str]]:
    """Pair the PNG label maps of two folders by their names without suffix.

    ids: only these truths
    returns: id -> (prediction, truth), the prediction None where it is missing and that is allowed; and the ids of
        predictions that have no truth, or none among ids
    """
    given, true = _maps_in(Path(predictions)), _maps_in(Path(truths))
    wanted = sorted(true) if ids is None else list(ids)
    unknown = [id for id in wanted if id not in true]
    if unknown:
        raise ValueError(f"{truths} holds no PNG for {_some(unknown)} of the list of ids: mend the list, or the folder")
    missing = [id for id in wanted if id not in given]
    if len(missing) == len(wanted):
        raise ValueError(
            f"{predictions} holds {_some(given)}, but wanted are {_some(wanted)} of {truths}: give both the same names"
        )
    if missing and not allow_missing:
        raise ValueError(
            f"{predictions} holds no PNG for {_some(missing)} of {truths}: add them, name the images to score by "
            "--ids, or count the missing ones as uncovered by --allow-missing"
        )
    return {id: (given.get(id), true[id]) for id in wanted}, sorted(given.keys() - set(wanted))


def _maps_in(folder: Path) -> dict[str, Path]:
    """PNG files of a folder by their names without suffix."""
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder: give one that holds label maps as PNG")
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() == ".png" and not path.name.startswith(".") and path.is_file():
            if path.stem in found:
                raise ValueError(f"{folder} holds both {found[path.stem].name} and {path.name}: remove one")
            found[path.stem] = path
    if not found:
        raise ValueError(f"{folder} holds no PNG: label maps lie directly in it, as ID.png")
    return found


def _some(names: Sequence[str]) -> str:
    """Three of the names, and how many there are."""
    names = list(names)
    return f"{', '.join(names[:3])}{f', ... ({len(names)} in all)' if len(names) > 3 else ''}"


def score_pair(prediction: Path | None, truth: Path, num_classes: int) -> np.ndarray:
    """Confusion matrix (K, K+1) of two label maps on disk; an image without prediction (None) is uncovered."""
    true = files.read_label(truth)  # values are checked when they are counted
    given = np.full_like(true, IGNORE) if prediction is None else files.read_label(prediction)
    try:
        return metrics.confusion(true, given, num_classes)
    except ValueError as error:
        hint = "; are these the classes of the maps?" if "holds the value" in str(error) else ""
        raise ValueError(f"{prediction} (label) against {truth} (truth): {error}{hint}") from error


def main(arguments: Sequence[str] | None = None) -> int:
    """Score a folder of label maps, as the command line says; returns the exit status."""
    options = _parsed(arguments)
    try:
        _score(options)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m plg_utils.score",
        description="Score a folder of PNG label maps: mean IoU over the whole set, from one confusion matrix. Values "
        "are class indices, 255 is void in a truth and 'no label' in a prediction.",
    )
    parser.add_argument("predictions", metavar="PREDICTIONS", help="folder of label maps, grey or palette PNG")
    parser.add_argument("truth", metavar="TRUTH", help="folder of annotated label maps of the same names and sizes")
    listed = ", ".join(sorted(path.stem for path in datasets.CLASS_FILES.glob("*.yaml")))
    parser.add_argument("--classes", required=True, help=f"{listed}, or a class file of your own (YAML)")
    parser.add_argument("--ids", metavar="FILE", help="score only these images: one name without .png in each line")
    parser.add_argument("--allow-missing", action="store_true", help="a truth without prediction counts as uncovered")
    parser.add_argument("--json", metavar="FILE", help="write the scores here")
    row = parser.add_argument_group("a row of a run's table")
    row.add_argument("--add-to", metavar="RUN", help="name of a run, to whose summary.json a row is added; it needs:")
    row.add_argument("--stage", choices=("zero_shot", "enhanced", "segmenter"))
    row.add_argument("--method", help="what made the label maps, such as unimatch or the name of your tool")
    row.add_argument("--labels", help="pseudo labels that the method learnt from; the method itself if it labels")
    row.add_argument("--split", help="by default val for a segmenter, else unlabelled")
    row.add_argument("--split-name", help="name of the list of labelled images, if it has one")
    row.add_argument("--labelled", type=int, help="how many labelled images were used")
    row.add_argument("--seed", type=int)
    row.add_argument("--checkpoint", choices=("last", "best_val"), default="last")
    row.add_argument("--options", default="{}", help="changed parameters, such as '{refine_target: zero_shot}'")
    row.add_argument("--name", help="how figures call it; by default the method")
    options = parser.parse_args(arguments)
    if options.add_to and not (options.stage and options.method):
        parser.error("--add-to needs --stage and --method")
    for name in ("stage", "method", "labels", "split", "split_name", "labelled", "seed", "name"):
        if not options.add_to and getattr(options, name) is not None:
            parser.error(f"--{name.replace('_', '-')} describes a row, and --add-to RUN is missing")
    return options


def _score(options: argparse.Namespace) -> None:
    """Read, count, print, write."""
    classes = class_files.read(_class_file(options.classes))
    summary = _Summary(options, classes) if options.add_to else None  # refuses before the work, not after it
    if options.json and (Path(options.json).is_dir() or any(path.is_file() for path in Path(options.json).parents)):
        raise ValueError(f"--json {options.json} is a folder, or lies below a file: give the name of a file")
    ids = _listed(Path(options.ids)) if options.ids else None
    pairs, others = pair_up(options.predictions, options.truth, ids=ids, allow_missing=options.allow_missing)
    if others:
        reason = f"not in {options.ids}" if options.ids else "for want of a truth to compare with"
        print(f"left out, {reason}: {_some(others)}", file=sys.stderr)
    missing = [id for id, (prediction, _) in pairs.items() if prediction is None]
    if missing:
        print(f"counted as uncovered, since there is no prediction: {_some(missing)}", file=sys.stderr)
    hidden = os.environ.get("PLG_PROGRESS", "1") == "0"  # as in store.progress, whose module imports torch
    bar = tqdm(pairs.values(), desc="label maps", mininterval=1.0, delay=1.0, ascii=True, disable=hidden)
    matrix = sum(score_pair(*pair, classes.num_classes) for pair in bar)
    found = metrics.scores(matrix, background=classes.background)
    missed = metrics.scores(matrix, uncovered="miss")
    precision, recall = metrics.precision_recall(matrix, background=classes.background)
    if np.isnan(found.mean_iou):
        raise ValueError(f"no truth in {options.truth} has a pixel that is not void: there is nothing to score")
    print(_table(classes, found, missed, precision, recall, len(pairs)))
    named = {"miou": found.mean_iou, "iou": dict(zip(classes.names, found.iou.tolist(), strict=True))}
    named |= {"coverage": found.coverage, "miou_uncovered_missed": missed.mean_iou, "images": len(pairs)}
    if options.json:
        more = {"predictions": options.predictions, "truth": options.truth, "classes": options.classes}
        more |= {"missing": missing, "left_out": others, "confusion": matrix}
        more |= {"precision": dict(zip(classes.names, precision.tolist(), strict=True))}
        more |= {"recall": dict(zip(classes.names, recall.tolist(), strict=True))}
        files.write_json(options.json, named | more)
    if summary:
        summary.add(named)
        print(f"added to {summary.path}")


def _class_file(name: str) -> Path:
    """Path of a class file: one of ours by its name, else the path itself."""
    ours = datasets.CLASS_FILES / f"{name}.yaml"
    if ours.is_file():
        return ours
    if not Path(name).is_file():
        listed = ", ".join(sorted(path.stem for path in datasets.CLASS_FILES.glob("*.yaml")))
        raise ValueError(f"--classes {name}: neither one of {listed} nor a file; give the path of a class file (YAML)")
    return Path(name)


def _listed(path: Path) -> list[str]:
    """Ids of a text file, one in each line."""
    try:
        ids = [line.strip() for line in files.read_lines(path) if line.strip()]
    except (ValueError, OSError) as error:
        raise ValueError(
            f"{path} is not a readable list of ids ({error}); give a text file, one id in each line"
        ) from error
    repeated = [id for id in dict.fromkeys(ids) if ids.count(id) > 1]
    if repeated or not ids:
        problem = f"lists {_some(repeated)} more than once" if repeated else "is empty"
        raise ValueError(f"{path} {problem}: give each image one line")
    return ids


def _table(
    classes: Classes, found: Scores, missed: Scores, precision: np.ndarray, recall: np.ndarray, images: int
) -> str:
    """Text of the scores, in percent."""

    def percent(value: float) -> str:
        return f"{'-' if np.isnan(value) else f'{100 * value:.2f}':>10}"

    width = max(12, *map(len, classes.names))
    lines = [f"{'class':{width}}{'IoU %':>10}{'precision':>10}{'recall':>10}{'pixels':>12}"]
    for name, *values, pixels in zip(
        classes.names, found.iou, precision, recall, found.confusion.sum(axis=1), strict=True
    ):
        lines.append(f"{name:{width}}{''.join(map(percent, values))}{pixels:>12,}")
    lines.append(f"{'mean IoU':{width}}{percent(found.mean_iou)}  uncovered pixels as background (the default number)")
    lines.append(f"{'':{width}}{percent(missed.mean_iou)}  uncovered pixels as a miss")
    lines.append(f"{'coverage':{width}}{percent(found.coverage)}")
    return "\n".join([*lines, f"{'images':{width}}{images:>10,}"])


class _Summary:
    """The summary.json of a run, and the row that the command line asks to add."""

    def __init__(self, options: argparse.Namespace, classes: Classes):
        self.path = files.results_root() / files.check_stem(options.add_to) / "summary.json"
        try:
            changed = files.parse_yaml(options.options, "--options")
        except ValueError:
            changed = None
        if not isinstance(changed, dict):
            raise ValueError(f"--options {options.options!r} is no mapping; write it as '{{refine_target: zero_shot}}'")
        is_network = options.stage == "segmenter"
        self._key = {
            "stage": options.stage,
            "method": options.method,
            "labels": options.labels if options.labels or is_network else options.method,
            "labelled": options.labelled,
            "split_name": options.split_name,
            "seed": options.seed,
            "split": options.split or ("val" if is_network else "unlabelled"),
            "checkpoint": options.checkpoint,
            "options": changed,
        }
        self._name = options.name or options.method
        self._classes = classes
        self._read()

    def _read(self) -> dict:
        """Read the summary as it is now; refuse it if the row does not fit."""
        if not self.path.is_file():
            raise ValueError(f"{self.path} is not there: run notebooks/05_evaluation.ipynb of this run first")
        content = files.read_json(self.path)
        rows = content.get("rows") if isinstance(content, dict) else None
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise ValueError(f"{self.path} has no list of rows: run notebooks/05_evaluation.ipynb of this run again")
        if any({key: row.get(key) for key in self._key} == files.plain(self._key) for row in rows):
            told = ", ".join(f"{key}={value}" for key, value in self._key.items() if value not in (None, {}))
            raise ValueError(f"{self.path} has this row already ({told}): remove it there, or tell them apart")
        for row in rows:
            if set(row.get("iou") or self._classes.names) != set(self._classes.names):
                raise ValueError(f"{self.path} scores other classes ({_some(row['iou'])}): give --classes of this run")
        return content

    def add(self, found: dict) -> None:
        """Write the summary with the row at its end, marked: notebooks/05_evaluation.ipynb keeps such rows."""
        content = self._read()  # once more: the scoring took a while
        row = self._key | {"name": self._name, "seconds": None} | found | {"added": True}
        files.write_json(self.path, content | {"rows": [*content["rows"], row]})


if __name__ == "__main__":
    sys.exit(main())
