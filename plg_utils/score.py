"""Scores of a folder of label maps, from any tool, against a folder of annotated ones.

python -m plg_utils.score PREDICTIONS TRUTH --classes voc
"""

import argparse
import os
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

from plg_utils import class_files, datasets, files, metrics
from plg_utils.datasets import _maps
from plg_utils.records import IGNORE, Classes, Scores


def pair_up(
    predictions: Path, truths: Path, *, ids: Sequence[str] | None = None, allow_missing: bool = False
) -> tuple[dict[str, tuple[Path | None, Path]], list[str]]:
    """Pairs of the PNG label maps of two folders that have the same name.

    ids: names without .png, to use only these truths
    returns: id -> (prediction, truth), where prediction is None if it is missing and that is allowed; and the ids of
        the predictions that are not used
    """
    predicted, annotated = _maps_in(predictions), _maps_in(truths)
    own = {files.same_name(id): id for id in annotated}  # case and the way to write accents do not matter
    predicted = {own.get(files.same_name(id), id): path for id, path in predicted.items()}
    wanted = sorted(annotated) if ids is None else list(ids)
    if unknown := [id for id in wanted if id not in annotated]:
        raise ValueError(f"{truths} holds no PNG for {_some(unknown)} of the list of ids: fix the list or the folder")
    missing = [id for id in wanted if id not in predicted]
    if len(missing) == len(wanted):
        has, needs = f"{predictions} holds {_some(predicted)}", f"{truths} needs {_some(wanted)}"
        raise ValueError(f"{has}, but {needs}: give both the same names")
    if missing and not allow_missing:
        remedy = "add them, name the images to score with --ids, or count them as uncovered with --allow-missing"
        raise ValueError(f"{predictions} holds no PNG for {_some(missing)} of {truths}: {remedy}")
    return {id: (predicted.get(id), annotated[id]) for id in wanted}, sorted(predicted.keys() - set(wanted))


def _maps_in(folder: Path) -> dict[str, Path]:
    """PNG files of a folder by their names without suffix."""
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder: give one that holds label maps as PNG")
    paths = datasets.files_in(folder, (".png",), "label map")
    if twice := files.repeated(files.same_name(path.stem) for path in paths):
        raise ValueError(f"{folder} holds two PNG called {twice[0]}: remove one")
    return {path.stem: path for path in paths}


def _some(names: Sequence[str]) -> str:
    """Three of the names, and how many there are."""
    names = list(names)
    return f"{', '.join(names[:3])}{f', ... ({len(names)} in all)' if len(names) > 3 else ''}"


def score_pair(prediction: Path | None, truth: Path, classes: Classes, void: int = IGNORE) -> np.ndarray:
    """Confusion matrix (K, K+1) of two label maps on disk; a missing prediction (None) covers no pixel.

    void: value of the truth that stands for void besides IGNORE
    """
    annotated = _maps.read(truth, classes, check=False)
    annotated[annotated == void] = IGNORE
    predicted = np.full_like(annotated, IGNORE) if prediction is None else _maps.read(prediction, classes, check=False)
    try:
        return metrics.confusion(annotated, predicted, classes.num_classes)
    except ValueError as error:
        hint = "; are these the classes of the maps?" if "holds the value" in str(error) else ""
        raise ValueError(f"{prediction} (label) against {truth} (truth): {error}{hint}") from error


def main(arguments: Sequence[str] | None = None) -> int:
    """Score a folder of label maps as the command line says; returns the exit status."""
    listed = ", ".join(class_files.OURS)
    parser = argparse.ArgumentParser(
        prog="plg score",
        description="Score a folder of PNG label maps: mean IoU over the whole set, from one confusion matrix. Values "
        "are class indices. 255 is void in a truth and 'no label' in a prediction.",
    )
    parser.add_argument("predictions", type=Path, metavar="PREDICTIONS", help="folder of label maps, grey or palette")
    parser.add_argument("truth", type=Path, metavar="TRUTH", help="folder of annotated maps: same names and sizes")
    parser.add_argument("--classes", required=True, help=f'{listed}, your class file, or "cat, dog", as for plg label')
    parser.add_argument("--ids", type=Path, metavar="FILE", help="score only these: one name without .png in each line")
    parser.add_argument("--allow-missing", action="store_true", help="a truth without prediction counts as uncovered")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the scores here")
    options = parser.parse_args(arguments)
    try:
        found = class_files.path_or_names(options.classes)
        if isinstance(found, Path) and not found.is_file():
            raise ValueError(f'there is no class file {found}: give one of {listed}, a class file, or "cat, dog"')
        if not isinstance(found, Path) and (meant := get_close_matches(options.classes, class_files.OURS, 1)):
            one = f'for a single class of this name write "{options.classes},"'
            raise ValueError(f"--classes {options.classes}: did you mean {meant[0]}? If not, {one}")
        return _score(options, class_files.read(found) if isinstance(found, Path) else class_files.parse(found))
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _score(options: argparse.Namespace, classes: Classes) -> int:
    """Read, count, print, write; returns the exit status."""
    if options.json and (options.json.is_dir() or any(path.is_file() for path in options.json.parents)):
        raise ValueError(f"--json {options.json} is a folder, or inside a file: give the name of a file")
    ids = _listed(options.ids) if options.ids else None
    pairs, others = pair_up(options.predictions, options.truth, ids=ids, allow_missing=options.allow_missing)
    if others:
        reason = f"not in {options.ids}" if options.ids else "no truth has this name"
        print(f"left out, {reason}: {_some(others)}", file=sys.stderr)
    if missing := [id for id, (prediction, _) in pairs.items() if prediction is None]:
        print(f"counted as uncovered, because there is no prediction: {_some(missing)}", file=sys.stderr)
    hidden = os.environ.get("PLG_PROGRESS", "1") == "0"  # as in store.progress, whose module imports torch
    bar = tqdm(pairs.values(), desc="label maps", mininterval=1.0, delay=1.0, ascii=True, disable=hidden)
    void = classes.num_classes if options.classes == "camvid" else IGNORE  # in its own label maps, see datasets/camvid
    matrix = sum(score_pair(*pair, classes, void) for pair in bar)
    scores, missed = metrics.scores(matrix, background=classes.background), metrics.scores(matrix, uncovered="miss")
    precision, recall = metrics.precision_recall(matrix, background=classes.background)
    if np.isnan(scores.mean_iou):
        raise ValueError(f"every pixel in {options.truth} is void: there is nothing to score. Give annotated maps")
    things = list(classes.foreground)
    if not matrix[things].any():
        raise ValueError(f"no map in {options.truth} shows a class: {_maps.why_empty({0, IGNORE})}")
    if not matrix[:, things].any():
        print(f"no map in {options.predictions} shows a class: {_maps.why_empty({0, IGNORE})}", file=sys.stderr)
    by_class = {"iou": scores.iou, "precision": precision, "recall": recall}
    print(_table(classes, by_class, scores, missed, len(pairs)))
    if options.json:
        content = {name: dict(zip(classes.names, values.tolist(), strict=True)) for name, values in by_class.items()}
        content |= {"miou": scores.mean_iou, "miou_uncovered_missed": missed.mean_iou, "coverage": scores.coverage}
        content |= {"images": len(pairs), "missing": missing, "left_out": others, "confusion": matrix}
        content |= {name: str(getattr(options, name)) for name in ("predictions", "truth", "classes")}
        files.write_json(options.json, content)
    return 0


def _listed(path: Path) -> list[str]:
    """Ids of a text file, one in each line."""
    ids = [line.strip() for line in files.read_lines(path) if line.strip()]
    if not ids or (repeated := files.repeated(ids)):
        problem = f"lists {_some(repeated)} more than once" if ids else "is empty"
        raise ValueError(f"{path} {problem}: give each image one line")
    return ids


def _table(classes: Classes, by_class: dict[str, np.ndarray], scores: Scores, missed: Scores, images: int) -> str:
    """The scores in percent, as text."""
    table = 100 * pd.DataFrame(by_class, classes.names).rename(columns={"iou": "IoU %"})
    table["pixels"] = [f"{pixels:,}" for pixels in scores.confusion.sum(axis=1)]
    counted = "a miss" if classes.background is None else "background (the default number)"
    return "\n".join([
        table.to_string(float_format="{:.2f}".format, na_rep="-"),
        f"mean IoU {100 * scores.mean_iou:.2f}  uncovered pixels as {counted}",
        f"         {100 * missed.mean_iou:.2f}  uncovered pixels as a miss",
        f"coverage {100 * scores.coverage:.2f}",
        f"images   {images:,}",
    ])  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
