r"""Put together what runs measured, and write it for a paper as CSV and LaTeX.

    found = tables.grouped(tables.rows_of(["storybook_table"]))    # what was measured -> its rows, one for each seed
    tables.write_csv("all.csv", tables.long(found))
    tables.write_latex("all.tex", *tables.wide(found))

Numbers are fractions in CSV and percent in LaTeX, which needs the package booktabs. Text is escaped: a class may be
called `50%_off`.
"""

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from plg_utils import files, statistics

NAMED = {"\\": "backslash", "~": "asciitilde", "^": "asciicircum", "<": "less", ">": "greater"}
SPECIAL = {"\n": " "} | {sign: f"\\{sign}" for sign in "&%$#_{}"}
SPECIAL |= {sign: rf"\text{name}{{}}" for sign, name in NAMED.items()}
CEILING = "full"  # the method that learns from the truth of all images: it is shown, but does not compete


class What(NamedTuple):
    """What was measured. Rows are averaged only if they agree in all of it."""

    stage: str
    name: str
    split: str
    labelled: int | str | None  # a number of images, or a part of them such as "1/8"
    split_name: str | None = None  # of the list that says which images are labelled, the same for all seeds


# Reading


def ladder(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of summary.json as `figures.ladder` draws them: one for a method, with its labels and its network.

    returns: "name", and mean IoU: "zero_shot" or "enhanced" of the labels of the unlabelled images that the method
        learns from, "segmenter" on the val or the test images. Labels that no method learns from have their own row.
    """
    labels = {row["made"]["folder"]: row for row in rows if row["split"] == "unlabelled"}
    used = {row.get("learnt_from") for row in rows} & labels.keys()
    found = []
    for row in sorted(rows, key=lambda row: ("zero_shot", "enhanced", "segmenter").index(row["stage"])):
        if row["split"] != "unlabelled":
            behind = labels.get(row.get("learnt_from"))
            learnt = {behind["stage"]: behind["miou"]} if behind else {}
            found.append({"name": row["name"], **learnt, "segmenter": row["miou"]})
        elif row["made"]["folder"] not in used:
            found.append({"name": row["name"], row["stage"]: row["miou"]})
    return found


def rows_of(runs: Sequence[str]) -> list[dict]:
    """All rows of finished runs and grids that have a mean IoU, each with its run's name as `run`.

    A local run (below `files.results_root()`) goes before the published one of the same name. Raises ValueError if a
    run has no results, or if runs have different classes.
    """
    if isinstance(runs, str) or not runs:
        raise ValueError(f"runs is {runs!r}. Give a list of names such as ['demo']")
    found = {run: [row | {"run": run} for row in _read(run) if row.get("miou") is not None] for run in runs}
    for run, rows in found.items():
        if set(classes_of(rows)) != set(classes_of(found[runs[0]])):
            raise ValueError(f"{runs[0]} and {run} have different classes. Make a table of each")
    return [row for rows in found.values() for row in rows]


def _read(run: str) -> list[dict]:
    """Rows of a grid.json or summary.json. `axes` of a grid's row holds the parameters that the grid varies."""
    places = [files.results_root() / files.check_stem(run), files.ROOT / "results" / run]
    for path in (place / name for place in places for name in ("grid.json", "summary.json")):
        if path.is_file():
            content = files.read_json(path)
            if not isinstance(content, dict) or not isinstance(content.get("rows"), list):
                raise ValueError(f"{path} has no list of rows. Run notebooks/run.py {run} again")
            axes = [name for name in content.get("grid") or {} if name not in ("seed", "labelled")]
            return [row | {"axes": {name: row[name] for name in axes}} for row in content["rows"]]
    raise ValueError(f"{places[0]} and {places[1]} have no summary.json or grid.json. Run notebooks/run.py {run}")


def grouped(rows: Iterable[dict]) -> dict[What, list[dict]]:
    """Rows by what was measured, in the order in which it comes first; only seeds are averaged.

    A name gets the parameters that its grid varies. If two runs measured the same thing, all names get their run's,
    because the runs may differ in more than the seed. If one run measured it twice, the name gets the changed options.
    A row that repeats an earlier run's to the last digit is left out: both runs began with the same labels. Raises
    ValueError if a run has two rows of one seed that cannot be told apart.
    """
    kept, first = [], {}
    for row in rows:
        key = [row["stage"], _name(row), row["split"], row.get("labelled"), row.get("seed"), row["miou"]]
        key += [sorted((row.get(more) or {}).items(), key=str) for more in ("options", "iou")]
        if first.setdefault(json.dumps(key), row["run"]) == row["run"]:
            kept.append(row)
    runs = defaultdict(set)
    for what, own in _by_what(kept).items():
        runs[what._replace(split_name=None)] |= {row["run"] for row in own}
    parts = ("run",) if any(len(own) > 1 for own in runs.values()) else ()
    found = {}
    for what, own in _by_what(kept, *parts).items():
        found |= _by_what(own, "options", *parts) if _repeated(own) else {what: own}
    for what, own in found.items():
        if _repeated(own):
            where = f"{what.name}, {what.split}, {what.labelled} labelled, seed {own[0].get('seed')}"
            raise ValueError(
                f"{own[0]['run']} has two rows that look the same ({where}), so they cannot be averaged. "
                "Write what differs into `options` in the notebook that makes them"
            )
    return found


def _by_what(rows: Sequence[dict], *parts: str) -> dict[What, list[dict]]:
    found = defaultdict(list)
    for row in rows:
        where = row["split"], row.get("labelled"), row.get("split_name")
        found[What(row["stage"], _name(row, *parts), *where)].append(row)
    return found


def _repeated(rows: Sequence[dict]) -> bool:
    return len({row.get("seed") for row in rows}) < len(rows)


def _name(row: dict, *parts: str) -> str:
    """Name of the method, and in brackets what its grid varies and the `parts`: "options", "run"."""
    more = (row.get("axes") or {}) | ((row.get("options") or {}) if "options" in parts else {})
    texts = [f"{name}={value}" for name, value in more.items()] + ([row["run"]] if "run" in parts else [])
    name = row.get("name") or row["method"]
    return f"{name} ({', '.join(texts)})" if texts else name


def titles(found: Iterable[What]) -> dict[What, str]:
    """A title for each thing measured, as short as can be: its name, and the split and the rest only if needed."""
    found = list(found)
    forms = ["{0.name}", "{0.name}, {0.split}", "{0.name}, {0.split}, {0.labelled} labelled"]
    forms += [f"{forms[-1]} (list {{0.split_name}})", "{0.name}, {0}"]
    candidates = ([form.format(what) for what in found] for form in forms)
    return dict(zip(found, next(names for names in candidates if len(set(names)) == len(found)), strict=True))


def amount(labelled: int | str | None) -> float:
    """Number of labelled images to sort by; "1/8" is 0.125, unknown is nan."""
    return float("nan") if labelled is None else float(Fraction(labelled))


def mean_iou(rows: Sequence[dict]) -> statistics.Summary:
    """Mean and spread of the mean IoU over the seeds."""
    return statistics.summarise([row["miou"] for row in rows])


def iou(rows: Sequence[dict], classes: Sequence[str]) -> np.ndarray:
    """IoU of each seed and class, nan where the class does not occur: (S, K)."""
    return pd.DataFrame([row["iou"] for row in rows], columns=classes, dtype=float).to_numpy()


def classes_of(rows: Iterable[dict]) -> list[str]:
    """Names of the classes, in the order of the class file where a row lists them in `classes`.

    json files sort the keys of `iou`, so rows without such a list give the alphabet.
    """
    rows = list(rows)
    return list(dict.fromkeys(name for key in ("classes", "iou") for row in rows for name in row.get(key) or ()))


# Tables


def best(found: dict[What, list[dict]]) -> set[What]:
    """What is bold in a table: the best of its column, if its lead is larger than the spread over seeds.

    Its mean minus its standard deviation must be above mean plus standard deviation of each rival. Rivals were scored
    on as many images of the same split, with as many labelled images from the same list. The network that learns from
    the truth of all images does not compete. One seed has no spread, so with a single seed on either side nothing is
    bold.
    """
    fields, bold = defaultdict(dict), set()
    for what, rows in found.items():
        if rows[0].get("method") != CEILING:
            fields[what.split, what.labelled, what.split_name, rows[0].get("images")][what] = mean_iou(rows)
    for rivals in fields.values():
        first, *others = sorted(rivals, key=lambda what: -rivals[what].mean)
        low = rivals[first].mean - rivals[first].std
        if others and all(low > rivals[other].mean + rivals[other].std for other in others):  # never true of a nan
            bold.add(first)
    return bold


def long(found: dict[What, list[dict]], classes: Sequence[str] = ()) -> pd.DataFrame:
    """A line for each thing measured, or with `classes` for each class of it, for programs; `each` holds the seeds."""
    lines = []
    for what, rows in found.items():
        line = {"stage": what.stage, "what": what.name, "split": what.split, "labelled": what.labelled}
        line |= {"list": what.split_name} if any(what.split_name for what in found) else {}
        images = " ".join(str(count) for count in sorted({row["images"] for row in rows if row.get("images")}))
        if not classes:
            lines.append(line | {"images": images} | _numbers("mean_iou", [row["miou"] for row in rows]))
        for name, values in zip(classes, iou(rows, classes).T, strict=bool(classes)):
            lines.append(line | {"class": name} | _numbers("iou", values[~np.isnan(values)]))
    return pd.DataFrame(lines, dtype=object)


def _numbers(name: str, values: Sequence[float]) -> dict:
    mean, std = pd.Series(values, dtype=float).agg(["mean", "std"])
    mean, std, *each = ["" if np.isnan(value) else f"{value:.6f}" for value in (mean, std, *values)]
    return {"seeds": len(values), name: mean, "std": std, "each": " ".join(each)}


def wide(found: dict[What, list[dict]]) -> tuple[pd.DataFrame, list[int]]:
    """A line for each method, a column for each number of labelled images and each list of them; bold is as in `best`.

    returns: cells as LaTeX, and the lines before which a rule goes: those where another split begins
    """
    bold, lines = best(found), {}
    columns = sorted({what[3:] for what in found}, key=lambda column: (amount(column[0]), column[1] or ""))
    of_lists = len({labelled for labelled, _ in columns}) < len(columns)
    headers = {
        (labelled, listed): f"{labelled} labelled" + (f" ({listed or 'no list'})" if of_lists else "")
        for labelled, listed in columns
    }
    headers = headers if len(columns) > 1 else dict.fromkeys(columns, "mean IoU (%)")
    for what, rows in found.items():
        line = lines.setdefault(what[:3], {"": escape(what.name), "counted on": escape(what.split)})
        line[headers[what[3:]]] = _cell([row["miou"] for row in rows], what in bold)
    table = pd.DataFrame(lines.values(), columns=["", "counted on", *headers.values()]).fillna("--")
    splits = pd.factorize(table["counted on"])[0]  # numbered in the order in which they come first
    order = np.argsort(splits, kind="stable")
    return table.iloc[order], (np.flatnonzero(np.diff(splits[order])) + 1).tolist()


def by_class(found: dict[What, list[dict]], classes: Sequence[str]) -> tuple[pd.DataFrame, list[int]]:
    """A line for each class and one for the mean, a column for each thing measured; nothing is bold.

    returns: cells as LaTeX, and the line before which a rule goes: that of the mean
    """
    table = pd.DataFrame({"": [*map(escape, classes), "mean"]})
    for what, title in titles(found).items():
        table[title] = [*map(_cell, iou(found[what], classes).T), _cell([row["miou"] for row in found[what]])]
    return table, [len(classes)]


def _cell(values: Sequence[float], bold: bool = False) -> str:
    known = [value for value in values if not np.isnan(value)]
    if not known:
        return "--"
    seeds = statistics.summarise(known)
    mean = rf"\mathbf{{{100 * seeds.mean:.1f}}}" if bold else f"{100 * seeds.mean:.1f}"
    return rf"${mean} \pm {100 * seeds.std:.1f}$" if len(known) > 1 else f"${mean}$"


def escape(text: str) -> str:
    """Text as LaTeX prints it, whatever signs it has."""
    return text.translate(str.maketrans(SPECIAL))


def write_latex(path: str | Path, table: pd.DataFrame, rules: Sequence[int] = (), remark: str = "") -> Path:
    """Write a tabular with the rules of booktabs: text to the left, numbers in the middle.

    table: cells as LaTeX; rules: lines before which a rule goes; remark: a comment below, for the caption's author
    """
    kinds = "".join("l" if name in ("", "counted on") else "c" for name in table)
    styler = table.style.hide(axis="index").format_index(escape, axis="columns")
    lines = styler.to_latex(column_format=kinds, hrules=True).splitlines()
    for rule in sorted(rules, reverse=True):
        lines.insert(4 + rule, r"\midrule")  # four lines are above the first: \begin, \toprule, the header, \midrule
    files.write_text(path, "\n".join([*lines, *(f"% {line}" for line in remark.splitlines()), ""]))
    return Path(path)


def write_csv(path: str | Path, table: pd.DataFrame) -> Path:
    """Write a table as CSV: UTF-8, commas, a newline after each line."""
    with files.atomic(path) as partial:
        table.to_csv(partial, index=False, lineterminator="\n", encoding="utf-8")
    return Path(path)
