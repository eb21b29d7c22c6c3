r"""What runs measured, put together from their json, and written down for a paper: CSV and LaTeX.

    rows = tables.rows_of(["storybook_table"])        # of summary.json or grid.json, made here or published
    found = tables.grouped(rows)                      # what was measured -> its rows, one for each seed
    tables.write_csv("all.csv", *tables.long(found))
    tables.write_latex("all.tex", *tables.wide(found))

Numbers are fractions in CSV, percent in LaTeX. LaTeX needs the package booktabs and nothing else: any text in it is
escaped, so a class called `50%_off` does not break a paper.
"""

import csv
import json
from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import numpy as np

from plg_utils import files, statistics

SPECIAL = str.maketrans(
    {
        **{sign: f"\\{sign}" for sign in "&%$#_{}"},
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        "\n": " ",
    }
)
CEILING = "full"  # the method that learns from the truth of all images: shown, but no rival


class What(NamedTuple):
    """What was measured: all in which rows that are averaged agree."""

    stage: str
    name: str
    split: str
    labelled: int | str | None  # a number of images, or a part of them such as "1/8"


class Tex(str):
    """Text that is LaTeX already and is not escaped."""


# Reading


def rows_of(runs: Sequence[str]) -> list[dict]:
    """All rows of finished runs and grids that have a mean IoU, each with its run's name as `run`.

    A run made here (below `files.results_root()`) goes before the published one of the same name.
    """
    if isinstance(runs, str) or not runs:
        raise ValueError(f"runs is {runs!r}, not a list of names such as ['demo']")
    found = []
    for run in runs:
        rows = _content(run)["rows"]
        found += [row | {"run": run} for row in rows if row.get("miou") is not None]
    classes = {
        run: sorted({name for row in found if row["run"] == run for name in row.get("iou") or {}}) for run in runs
    }
    first, *others = classes
    for other in others:
        if classes[other] != classes[first]:
            raise ValueError(f"{first} and {other} have other classes: their mean IoU cannot stand in one table")
    return found


def _content(run: str) -> dict:
    """The grid.json or summary.json of a run; a grid tells in `axes` which parameters tell its rows apart."""
    places = [files.results_root() / files.check_stem(run), files.ROOT / "results" / run]
    for path in (place / name for place in places for name in ("grid.json", "summary.json")):
        if path.is_file():
            content = files.read_json(path)
            if not isinstance(content, dict) or not isinstance(content.get("rows"), list):
                raise ValueError(f"{path} has no list of rows: run notebooks/run.py {run} again")
            axes = [name for name in content.get("grid") or {} if name not in ("seed", "labelled")]
            return {"rows": [row | {"axes": {name: row[name] for name in axes}} for row in content["rows"]]}
    raise ValueError(
        f"neither {places[0]} nor {places[1]} holds a summary.json or grid.json: run notebooks/run.py {run}"
    )


def grouped(rows: Iterable[dict]) -> dict[What, list[dict]]:
    """Rows by what was measured, in the order in which it comes first; only seeds are averaged.

    A grid's other parameters become a part of the name. Where two runs measured the same, the names get their run's,
    since nothing says that other runs differ in the seed alone; where a run did so twice, the changed options. What a
    second run measured to the same last digit is the same measurement, such as that of the labels that both began with.
    """
    rows = _once(rows)
    several = any(len({row["run"] for row in own}) > 1 for own in _by_what(rows).values())
    told = ("run",) if several else ()
    found = {}
    for what, own in _by_what(rows, told).items():
        found |= _by_what(own, ("options", *told)) if _repeated(own) else {what: own}
    for what, own in found.items():
        if _repeated(own):
            told = f"{what.name}, {what.split}, {what.labelled} labelled, seed {own[0].get('seed')}"
            raise ValueError(
                f"{own[0]['run']} has two rows that nothing tells apart ({told}), so that they cannot be averaged: the "
                "notebook that writes them must say in `options` what differs"
            )
    return found


def _once(rows: Iterable[dict]) -> list[dict]:
    """Rows without those that repeat an earlier run's to the last digit."""
    kept, runs = [], {}
    for row in rows:
        told = [row["stage"], _name(row, ()), row["split"], row.get("labelled"), row.get("seed"), row["miou"]]
        told += [sorted((row.get(key) or {}).items(), key=str) for key in ("options", "iou")]
        if runs.setdefault(json.dumps(told), row["run"]) == row["run"]:
            kept.append(row)
    return kept


def _by_what(rows: Sequence[dict], told: Sequence[str] = ()) -> dict[What, list[dict]]:
    found: dict[What, list[dict]] = {}
    for row in rows:
        what = What(row["stage"], _name(row, told), row["split"], row.get("labelled"))
        found.setdefault(what, []).append(row)
    return found


def _repeated(rows: Sequence[dict]) -> bool:
    return len({row.get("seed") for row in rows}) < len(rows)


def _name(row: dict, told: Sequence[str]) -> str:
    more = dict(row.get("axes") or {})
    if "options" in told:
        more |= row.get("options") or {}
    texts = [f"{name}={value}" for name, value in more.items()]
    texts += [f"checkpoint={row['checkpoint']}"] if row.get("checkpoint", "last") != "last" else []
    texts += [row["run"]] if "run" in told else []
    name = row.get("name") or row["method"]
    return f"{name} ({', '.join(texts)})" if texts else name


def titles(found: Iterable[What]) -> dict[What, str]:
    """What each thing measured is called in a figure: its name, and the split and the rest where it needs them."""
    found = list(found)
    forms = ("{0.name}", "{0.name}, {0.split}", "{0.name}, {0.split}, {0.labelled} labelled", "{0.name}, {0}")
    told = ([form.format(what) for what in found] for form in forms)
    return dict(zip(found, next(names for names in told if len(set(names)) == len(found)), strict=True))


def amount(labelled: int | str | None) -> float:
    """How many images are labelled, as a number to sort and draw by; "1/8" is 0.125, unknown is nan."""
    return float("nan") if labelled is None else float(Fraction(labelled))


def mean_iou(rows: Sequence[dict]) -> statistics.Summary:
    """Mean and spread of the mean IoU over the seeds."""
    return statistics.summarise([row["miou"] for row in rows])


def iou(rows: Sequence[dict], classes: Sequence[str]) -> np.ndarray:
    """IoU of each seed and class, nan where the class does not occur: (S, K)."""
    return np.array(
        [[np.nan if row["iou"].get(name) is None else row["iou"][name] for name in classes] for row in rows]
    )


def classes_of(rows: Iterable[dict]) -> list[str]:
    """Names of the classes, in the order of the file."""
    return list(dict.fromkeys(name for row in rows for name in row.get("iou") or {}))


# Which number is bold


def best(found: dict[What, list[dict]]) -> set[What]:
    """What may be set in bold: the best of its column, and only if chance is an unlikely reason.

    Its mean less its standard deviation must lie above mean plus standard deviation of each rival. Rivals are counted
    on as many images of the same split, with as many labelled ones; the network that learnt from the truth of all
    images is none. Where a rival, or the best itself, has one value only, its spread is unknown and nothing is bold.
    """
    fields: dict[tuple, dict[What, statistics.Summary]] = {}
    for what, rows in found.items():
        if rows[0].get("method") != CEILING:
            fields.setdefault((what.split, what.labelled, rows[0].get("images")), {})[what] = mean_iou(rows)
    chosen = set()
    for rivals in fields.values():
        if len(rivals) < 2:
            continue
        first = max(rivals, key=lambda what: rivals[what].mean)
        low = rivals[first].mean - rivals[first].std
        if all(low > other.mean + other.std for what, other in rivals.items() if what != first):  # never true of a nan
            chosen.add(first)
    return chosen


# Tables


def long(found: dict[What, list[dict]]) -> tuple[list[str], list[list]]:
    """A line for each thing measured, to be read by programs: (header, lines); `each` holds the seeds' values."""
    lines = []
    for what, rows in found.items():
        images = " ".join(str(count) for count in sorted({row["images"] for row in rows if row.get("images")}))
        lines.append([*what, images, *_told([row["miou"] for row in rows])])
    return ["stage", "what", "split", "labelled", "images", "seeds", "mean_iou", "std", "each"], lines


def long_by_class(found: dict[What, list[dict]], classes: Sequence[str]) -> tuple[list[str], list[list]]:
    """As `long`, a line for each class of each thing measured: (header, lines)."""
    lines = []
    for what, rows in found.items():
        for name, values in zip(classes, iou(rows, classes).T, strict=True):
            lines.append([*what, name, *_told(values[~np.isnan(values)])])
    return ["stage", "what", "split", "labelled", "class", "seeds", "iou", "std", "each"], lines


def _told(values: Sequence[float]) -> list:
    """Number, mean, spread and all of the values."""
    if not len(values):
        return [0, "", "", ""]
    told = statistics.summarise(values)
    each = " ".join(map(_fraction, told.values))
    return [len(told.values), _fraction(told.mean), _fraction(told.std), each]


def wide(found: dict[What, list[dict]]) -> tuple[list, list[list | None]]:
    """A line for each stage or method, a column for each number of labelled images: (header, lines) for LaTeX.

    None stands for a rule, here between two splits. Bold is what `best` says.
    """
    columns = sorted({what.labelled for what in found}, key=amount)
    bold = best(found)
    lines: list[list | None] = []
    splits = list(dict.fromkeys(what.split for what in found))
    for stage, name, split in sorted(dict.fromkeys(what[:3] for what in found), key=lambda what: splits.index(what[2])):
        if lines and lines[-1] and lines[-1][1] != split:
            lines.append(None)
        cells = [What(stage, name, split, labelled) for labelled in columns]
        lines.append([name, split, *(_cell(found.get(what), what in bold) for what in cells)])
    one = len(columns) == 1
    return ["", "counted on", *(Tex(r"mean IoU (\%)") if one else f"{each} labelled" for each in columns)], lines


def by_class(found: dict[What, list[dict]], classes: Sequence[str]) -> tuple[list, list[list | None]]:
    """A line for each class, a column for each thing measured: (header, lines) for LaTeX; nothing is bold."""
    values = {what: iou(rows, classes) for what, rows in found.items()}
    lines: list[list | None] = [
        [name, *(_mean_and_spread(each[:, k]) for each in values.values())] for k, name in enumerate(classes)
    ]
    return ["", *(what.name for what in found)], [*lines, None, ["mean", *map(_cell, found.values())]]


def confusions(matrix: np.ndarray, classes: Sequence[str]) -> tuple[list[str], list[list]]:
    """A confusion matrix as it was counted, in pixels: (header, lines) for CSV.

    matrix: (K, K+1), the last column is for pixels without a label
    """
    return ["truth", *classes, "no label"], [[name, *row] for name, row in zip(classes, matrix.tolist(), strict=True)]


def _cell(rows: list[dict] | None, bold: bool = False) -> Tex:
    return _mean_and_spread([row["miou"] for row in rows], bold) if rows else Tex("--")


def _mean_and_spread(values: Sequence[float], bold: bool = False) -> Tex:
    known = [value for value in values if value == value]
    if not known:
        return Tex("--")
    told = statistics.summarise(known)
    mean = f"{100 * told.mean:.1f}"
    mean = rf"\mathbf{{{mean}}}" if bold else mean
    return Tex(rf"${mean} \pm {100 * told.std:.1f}$" if len(known) > 1 else f"${mean}$")


def _fraction(value: float) -> str:
    return "" if value != value else f"{value:.6f}"


def escape(text: str) -> str:
    """Text as LaTeX shows it, whatever signs it holds."""
    return text.translate(SPECIAL)


def latex(header: Sequence, lines: Sequence[Sequence | None], remark: str = "") -> str:
    """A tabular with the rules of booktabs; the first column, and those of text, to the left, numbers in the middle.

    lines: None stands for a rule; a `Tex` is taken as it is, all else is escaped
    remark: a comment below, for whoever writes the caption
    """
    whole = [line for line in lines if line is not None]
    wrong = [line for line in whole if len(line) != len(header)]
    if wrong:
        raise ValueError(f"a line has {len(wrong[0])} cells, the header {len(header)}: {wrong[0]}")
    kinds = ["c" if whole and isinstance(whole[0][k], Tex) else "l" for k in range(len(header))]

    def joined(cells: Sequence) -> str:
        return " & ".join(cell if isinstance(cell, Tex) else escape(str(cell)) for cell in cells) + r" \\"

    body = [r"\midrule" if line is None else joined(line) for line in lines]
    told = [f"% {line}" for line in remark.splitlines()]
    begin = [rf"\begin{{tabular}}{{{''.join(kinds)}}}", r"\toprule", joined(header), r"\midrule"]
    return "\n".join([*begin, *body, r"\bottomrule", r"\end{tabular}", *told, ""])


def write_latex(path: str | Path, header: Sequence, lines: Sequence[Sequence | None], remark: str = "") -> Path:
    """Write `latex` to a file."""
    text = latex(header, lines, remark)
    with files.atomic(path) as partial:
        partial.write_text(text, encoding="utf-8")
    return Path(path)


def write_csv(path: str | Path, header: Sequence, lines: Sequence[Sequence]) -> Path:
    """Write a table as CSV: UTF-8, commas, a newline after each line."""
    with files.atomic(path) as partial, open(partial, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(lines)
    return Path(path)
