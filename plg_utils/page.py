"""A run as one page for the browser: ladder, pictures under sliders, classes, errors, and how all was made.

    python -m plg_utils.page demo                # writes results/local/demo/index.html
    python -m plg_utils.page demo --to demo.html

The page is one file that asks for nothing: pictures, style and the few lines of script stand in it, and its
Content-Security-Policy lets a browser load nothing else and run no other script. All text goes through a tree of
elements, which escapes it: a class may be called `<script>`. The same files give the same bytes; what changes from
run to run though nothing else did, the seconds, stands in the manifest alone.

Pictures are those of 05_evaluation's galleries, and truth is opened for these images only. They need the run's label
maps; of a run of which only the json was published, the page tells its numbers.
"""

import argparse
import base64
import hashlib
import io
import json
import sys
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from xml.etree.ElementTree import Element, tostring

import numpy as np
import yaml
from PIL import Image

from plg_utils import __version__, datasets, diagnosis, figures, files, notebooks, store
from plg_utils.records import IGNORE, Classes, Dataset, Sample

EVALUATION = files.ROOT / "notebooks" / "05_evaluation.ipynb"  # its defaults are those of a run without copies
PARAMETERS = ("dataset", "dataset_options", "labelled", "seed", "shown_images")
LONGEST = 480  # pixels of a picture's longer side; larger ones are made smaller
METHODS = ("supervised", "fixmatch", "unimatch", "semivl", "direct", "direct_long", "fusion", "paper_a")  # their order

STYLE = """
:root { color-scheme: light dark; --ink: #20242c; --faint: #5c6573; --line: #d5dae2; --paper: #ffffff; --well: #f3f5f8;
  --zero_shot: #9db4d3; --enhanced: #4f7cac; --segmenter: #1f3f66; --tint: 79 124 172;
  --k0: #a9b1bd; --k1: #f0b429; --k2: #56b4e9; --k3: #c8553d; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ee; --faint: #a4adba; --line: #3a414d; --paper: #15181d;
  --well: #1f242b; --zero_shot: #44607f; --enhanced: #6f9dcc; --segmenter: #bcd6f2; --tint: 111 157 204;
  --k0: #7d8694; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 72rem; padding: 1rem 1.2rem 3rem; background: var(--paper); color: var(--ink);
  font: 1rem/1.5 system-ui, sans-serif; }
h1 { font-size: 1.7rem; margin: .5rem 0 0; overflow-wrap: anywhere; }
h2 { font-size: 1.25rem; margin: 2.4rem 0 .3rem; }
h3 { font-size: 1rem; margin: 1.6rem 0 .2rem; }
p { margin: .3rem 0 .8rem; max-width: 46rem; }
.faint, figcaption, footer { color: var(--faint); font-size: .88rem; }
nav { display: flex; flex-wrap: wrap; gap: .2rem 1rem; }
a { color: inherit; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .92rem; }
th, td { padding: .25rem .7rem .25rem 0; text-align: left; vertical-align: middle;
  border-bottom: 1px solid var(--line); }
thead th { vertical-align: bottom; font-weight: 600; }
tbody th { font-weight: 400; }
.number { text-align: right; padding-left: .5rem; white-space: nowrap; }
.bars { width: 100%; }
.bar { width: 40%; min-width: 5rem; }
.bars thead th { white-space: normal; }
.made td { vertical-align: top; } .made td:nth-child(n + 3) { white-space: nowrap; }
.bars th.faint { padding-top: .8rem; }
@media (min-width: 45rem) { .bars tbody th, .ladder thead th { white-space: nowrap; } .bar { width: 100%; } }
.bar svg { display: block; width: 100%; height: 1.05rem; }
.zero_shot { fill: var(--zero_shot); } .enhanced { fill: var(--enhanced); } .segmenter { fill: var(--segmenter); }
.k0 { fill: var(--k0); } .k1 { fill: var(--k1); } .k2 { fill: var(--k2); } .k3 { fill: var(--k3); }
.swatch { width: .8rem; height: .8rem; margin-right: .35rem; vertical-align: -.05rem; }
.swatch rect { stroke: var(--faint); }
.legend { display: flex; flex-wrap: wrap; gap: .1rem 1rem; padding: 0; margin: .6rem 0; list-style: none;
  font-size: .88rem; }
.grid th, .grid td { padding: .25rem .5rem; text-align: right; }
.grid th:first-child { position: sticky; left: 0; background: var(--paper); text-align: left; }
.grid thead th { max-width: 8rem; }
.grid button { font: inherit; color: inherit; background: none; border: 0; padding: 0; cursor: pointer;
  text-align: inherit; }
.grid th[aria-sort=descending] button::after { content: " \\25be"; }
.grid th[aria-sort=ascending] button::after { content: " \\25b4"; }
TINTS
.cases { display: grid; gap: 1.2rem; }
.case { min-width: 0; }
.stages { display: grid; grid-template-columns: repeat(auto-fill, minmax(6.5rem, 1fr)); gap: .5rem; }
figure { margin: 0; }
img { display: block; width: 100%; height: auto; }
img.map { image-rendering: pixelated; }
.choice, input[type=range] { display: none; }
pre { background: var(--well); padding: .8rem; overflow: auto; max-height: 30rem; font-size: .8rem; }
summary { cursor: pointer; }
code { overflow-wrap: anywhere; }
:focus-visible { outline: 2px solid var(--enhanced); outline-offset: 2px; }
@media screen {
  .script .choice { display: flex; flex-wrap: wrap; gap: .4rem 1.2rem; align-items: center; margin: .6rem 0 1rem;
    position: sticky; top: 0; z-index: 2; background: var(--paper); padding: .5rem 0; }
  .script select { font: inherit; max-width: 15rem; }
  .compared .cases { grid-template-columns: repeat(auto-fill, minmax(min(18rem, 100%), 1fr)); }
  .compared .stages { display: block; position: relative; overflow: hidden; }
  .compared figure { position: absolute; inset: 0; visibility: hidden; }
  .compared figure:first-child { position: static; }
  .compared figure.left, .compared figure.right { visibility: visible; }
  .compared figure.right { clip-path: inset(0 0 0 var(--cut, 50%)); z-index: 1; }
  .compared .stages::after { content: ""; position: absolute; top: 0; bottom: 0; left: var(--cut, 50%); width: 2px;
    margin-left: -1px; background: #fff; box-shadow: 0 0 0 1px #000; z-index: 1; }
  .compared figcaption { display: none; }
  .compared input[type=range] { display: block; width: 100%; height: 1.9rem; margin: .1rem 0 0; }
}
@media print {
  body { max-width: none; padding: 0; font-size: 9pt; }
  nav { display: none; }
  h2, h3 { break-after: avoid; }
  .case, tr { break-inside: avoid; }
  .cases { display: block; }
  .stages { grid-template-columns: repeat(10, 1fr); gap: 3pt; font-size: 8pt; }
  .wide { overflow: visible; }
  table { font-size: 7pt; }
  .grid th:first-child { position: static; }
  svg, td { print-color-adjust: exact; }
}
"""
TINTS = "\n".join(f".q{k} {{ background: rgb(var(--tint) / {5 * k}%); }}" for k in range(10))  # of a tenth of IoU each
STYLE = STYLE.replace("TINTS", TINTS)

SCRIPT = """
document.documentElement.classList.add('script');
for (const gallery of document.querySelectorAll('.gallery')) {
  const [left, right] = gallery.querySelectorAll('select');
  const side = gallery.querySelector('input[type=checkbox]');
  const show = () => {
    gallery.classList.toggle('compared', !side.checked);
    for (const stages of gallery.querySelectorAll('.stages')) {
      [...stages.children].forEach((figure, k) => {
        figure.classList.toggle('left', k == left.value);
        figure.classList.toggle('right', k == right.value);
      });
    }
  };
  for (const input of [left, right, side]) input.addEventListener('change', show);
  for (const slider of gallery.querySelectorAll('input[type=range]')) {
    const cut = () => slider.previousElementSibling.style.setProperty('--cut', slider.value + '%');
    slider.addEventListener('input', cut);
    cut();
  }
  show();
}
for (const table of document.querySelectorAll('table.grid')) {
  const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0], rows = [...body.rows];
  heads.forEach((head, column) => head.firstChild.addEventListener('click', () => {
    const before = head.getAttribute('aria-sort'), down = before ? before == 'ascending' : column > 0;
    const key = row => column ? parseFloat(row.cells[column].textContent) : rows.indexOf(row);
    const known = row => !Number.isNaN(key(row));
    const order = (a, b) => known(b) - known(a) || (down ? key(b) - key(a) : key(a) - key(b)) || 0;
    heads.forEach(other => other.removeAttribute('aria-sort'));
    head.setAttribute('aria-sort', down ? 'descending' : 'ascending');
    body.append(...rows.slice().sort(order));
  }));
}
"""


# A page is a tree of elements; text in it is escaped when it is written


def tag(kind: str, /, *children: Element | str, **attributes: str) -> Element:
    """An element with its children, which are elements and texts; a trailing _ of an attribute's name is dropped."""
    element = Element(kind, {key.rstrip("_").replace("_", "-"): value for key, value in attributes.items()})
    last = None
    for child in children:
        if isinstance(child, Element):
            element.append(child)
            last = child
        elif last is None:
            element.text = (element.text or "") + child
        else:
            last.tail = (last.tail or "") + child
    return element


def text_of(element: Element) -> str:
    """An element as HTML."""
    return tostring(element, encoding="unicode", method="html")


def _table(header: Sequence[Element], rows: Iterable[Element], kind: str = "") -> Element:
    table = tag("table", tag("thead", tag("tr", *header)), tag("tbody", *rows), class_=kind)
    return tag("div", table, class_="wide")


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}"


def _bar(parts: Sequence[tuple[float, str]]) -> Element:
    """A bar of parts, each with its share of the whole width in percent and its kind."""
    rects, begin = [], 0.0
    for length, kind in parts:
        rects.append(tag("rect", x=f"{begin:.2f}", width=f"{length:.2f}", height="10", class_=kind))
        begin += length
    view = {"viewBox": "0 0 100 10", "preserveAspectRatio": "none", "aria-hidden": "true"}
    return tag("td", tag("svg", *rects, **view), class_="bar")


def _swatch(fill: tuple[int, int, int] | None = None, kind: str = "") -> Element:
    colour = {"fill": "#{:02x}{:02x}{:02x}".format(*fill)} if fill else {}
    rect = tag("rect", width="10", height="10", class_=kind, **colour)
    return tag("svg", rect, viewBox="0 0 10 10", class_="swatch", **{"aria-hidden": "true"})


# Numbers


def ladder(rows: Sequence[dict]) -> Element:
    """Mean IoU of each stage and method as a table with bars."""
    header, lines, before = [tag("th"), tag("th"), tag("th", "mean IoU (%)", class_="number")], [], None
    for row in rows:
        on = f"on {row['images']} {row['split']} images" if row.get("images") else f"on {row['split']} images"
        if on != before:
            lines.append(tag("tr", tag("th", on, colspan="3", class_="faint")))
            before = on
        bar = _bar([(100 * (row["miou"] or 0), row["stage"] if row["stage"] in figures.STAGES else "k0")])
        lines.append(tag("tr", tag("th", _name(row)), bar, tag("td", _percent(row["miou"]), class_="number")))
    told = {
        "zero_shot": "labels before any training",
        "enhanced": "labels after the refinement",
        "segmenter": "networks",
    }
    legend = [
        tag("li", _swatch(kind=kind), text) for kind, text in told.items() if any(row["stage"] == kind for row in rows)
    ]
    note = "Label maps are scored on the images they were made for, networks on val images: compare within a colour."
    return tag("div", tag("p", note), tag("ul", *legend, class_="legend"), _table(header, lines, "bars ladder"))


def differences(bootstrap: dict) -> Element:
    """Differences with their intervals over other images, as 05_evaluation measured them."""
    header = [tag("th", "difference (points)"), tag("th", class_="number"), tag("th", "interval", class_="number")]
    lines = []
    for name, found in bootstrap.items():
        value, low, high = (f"{100 * found[key]:+.1f}" for key in ("difference", "low", "high"))
        cells = tag("td", value, class_="number"), tag("td", f"{low} to {high}", class_="number")
        lines.append(tag("tr", tag("th", name), *cells))
    note = (
        "How far other val images would move the difference (bootstrap, 95 %): what lies across zero is not certain. "
        "It does not tell what another seed would change."
    )
    return tag("div", tag("h3", "Would other images have told the same?"), tag("p", note), _table(header, lines))


def classes_table(rows: Sequence[dict], names: Sequence[str]) -> Element:
    """IoU of each class in each stage and method, to be sorted by a click on a column's head."""

    def head(text: str) -> Element:
        return tag("th", tag("button", text, type="button"), scope="col")

    def cell(value: float | None) -> Element:
        return tag("td", _percent(value), class_=f"q{min(9, int(10 * value))}" if value is not None else "none")

    lines = [tag("tr", tag("th", name, scope="row"), *(cell(row["iou"].get(name)) for row in rows)) for name in names]
    return _table([head("class"), *(head(_name(row)) for row in rows)], lines, "grid")


def errors(rows: Sequence[dict]) -> Element:
    """The share of pixels that are wrong, by kind, as a table with bars."""
    kinds = diagnosis.OUTCOMES[:-1]
    shares = [
        [100 * row["wrong_pixels"][kind] / max(1, sum(row["wrong_pixels"].values())) for kind in kinds] for row in rows
    ]
    longest = max([*map(sum, shares), 1e-9])
    header = [tag("th", "% of the pixels that are wrong"), tag("th"), tag("th", "all", class_="number")]
    header += [tag("th", _swatch(kind=f"k{k}"), kind, class_="number") for k, kind in enumerate(kinds)]
    lines = []
    for row, each in zip(rows, shares, strict=True):
        bar = _bar([(100 * share / longest, f"k{k}") for k, share in enumerate(each)])
        numbers = [tag("td", f"{share:.1f}", class_="number") for share in [sum(each), *each]]
        lines.append(tag("tr", tag("th", _name(row)), bar, *numbers))
    return _table(header, lines, "bars")


def _name(row: dict) -> str:
    return str(row.get("name") or ", ".join([row["method"], *map(str, (row.get("options") or {}).values())]))


# Pictures


def parameters_of(folder: Path) -> dict:
    """Which data set a run was made with: what its executed notebooks say, else its parameters.yaml."""
    known = notebooks.defaults(EVALUATION) if EVALUATION.exists() else {}
    copies = [path for path in sorted((folder / "notebooks").glob("*.ipynb")) if ".partial" not in path.suffixes]
    for copy in copies:
        known |= notebooks.defaults(copy) | notebooks.assigned("\n".join(notebooks.tagged(copy, "injected-parameters")))
    published = files.ROOT / "results" / folder.name / "parameters.yaml"
    if not copies and published.exists():
        known |= yaml.safe_load(published.read_text(encoding="utf-8")) or {}
    return {name: known[name] for name in PARAMETERS if name in known}


def opened(folder: Path, parameters: dict) -> Dataset:
    """The data set of a run, truth open; one in which its stages did not work is refused."""
    data = datasets.load(
        parameters["dataset"],
        labelled=parameters["labelled"],
        seed=parameters["seed"],
        truth_of=("labelled", "unlabelled", "val"),
        **parameters["dataset_options"],
    )
    told = {content.get("split_sha256") for content in manifests(folder).values()} - {None}
    if told and store.split_sha256(data) not in told:
        raise ValueError("the data set that its notebooks name has other images than its manifests")
    return data


def manifests(folder: Path) -> dict[str, dict]:
    """Manifests of a run's stages, by the names of their folders."""
    return {path.parent.name: files.read_json(path) for path in sorted(folder.glob("*/manifest.json"))}


def _stages(folder: Path, prefix: str) -> list[str]:
    """Folders of label maps that are finished, in the order of the pipeline."""
    done = [name for name, content in manifests(folder).items() if content.get("state") == "done"]
    found = [name for name in done if name.startswith(prefix)]

    def place(name: str) -> tuple:
        method = name.removeprefix(prefix)
        return method.startswith("enhanced"), METHODS.index(method) if method in METHODS else len(METHODS), method

    return sorted(found, key=place)


def called(folder: str) -> str:
    """How a folder of label maps is called above its pictures: labels_zero_shot is zero-shot."""
    return folder.split("_", 1)[-1].replace("zero_shot", "zero-shot").replace("_", " ")


def galleries(folder: Path, data: Dataset, shown: int) -> list[Element]:
    """The first images of the unlabelled and of the val split, each with its stages under a slider."""
    found = []
    for split, prefix in (("unlabelled", "labels_"), ("val", "predictions_")):
        samples = getattr(data, split)
        # As in 05_evaluation: the first ones with a truth, if there are any.
        samples = ([sample for sample in samples if sample.read_truth] or samples)[:shown]
        paths = {name: [folder / name / f"{sample.id}.png" for sample in samples] for name in _stages(folder, prefix)}
        names = [name for name, own in paths.items() if all(path.exists() for path in own)]
        if not names or not samples:
            continue
        title = f"{split.capitalize()} images" + ("" if prefix == "labels_" else ", which no training has seen")
        cases = [_pictures(folder, sample, names, prefix, data.classes) for sample in samples]
        preferred = "enhanced" if prefix == "labels_" else "paper a"
        found.append(_gallery(title, cases, [sample.id for sample in samples], preferred))
    return found


def _pictures(
    folder: Path, sample: Sample, names: Sequence[str], prefix: str, classes: Classes
) -> dict[str, tuple[str, str]]:
    """Pictures of one image: title -> (data URI, kind)."""
    image = sample.image()
    found = {"image": (_photo(image), "photo")}
    masks = folder / "masks" / f"{sample.id}.json"
    if prefix == "labels_" and masks.exists():
        dense = files.read_masks(masks, image.shape[:2]).dense()
        found["SAM's masks"] = _photo(figures.mask_picture(image, dense)), "photo"
    for name in names:
        label = files.read_label(folder / name / f"{sample.id}.png", classes.num_classes)
        found[called(name)] = _map(label, classes), "map"
    if sample.read_truth:
        found["truth"] = _map(sample.truth(), classes), "map"
    return found


def _size(height: int, width: int) -> tuple[int, int]:
    """(width, height) of a picture in the page."""
    factor = min(1, LONGEST / max(height, width))
    return max(1, round(factor * width)), max(1, round(factor * height))


def _photo(image: np.ndarray) -> str:
    """A photo (H, W, 3) uint8 as the address of a JPEG."""
    encoded = io.BytesIO()
    small = Image.fromarray(image).resize(_size(*image.shape[:2]), Image.Resampling.LANCZOS)
    small.save(encoded, "JPEG", quality=88, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(encoded.getvalue()).decode()


def _map(label: np.ndarray, classes: Classes) -> str:
    """A label map (H, W) uint8 as the address of a palette PNG."""
    colours = np.zeros((256, 3), np.uint8)
    colours[: classes.num_classes], colours[IGNORE] = classes.colours, figures.VOID
    small = Image.fromarray(label).resize(_size(*label.shape), Image.Resampling.NEAREST)
    small.putpalette(colours.tobytes())
    encoded = io.BytesIO()
    small.save(encoded, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(encoded.getvalue()).decode()


def _gallery(title: str, cases: Sequence[dict], ids: Sequence[str], preferred: str) -> Element:
    """Images with a slider each, between two stages that are chosen for all of them."""
    titles = [name for name in cases[0] if all(name in case for case in cases)]
    right = preferred if preferred in titles else titles[-1]

    def choice(text: str, chosen: str) -> Element:
        options = [tag("option", name, value=str(k)) for k, name in enumerate(titles)]
        options[titles.index(chosen)].set("selected", "selected")
        return tag("label", f"{text} ", tag("select", *options))

    shown = []
    for id, case in zip(ids, cases, strict=True):
        stages = tag("div", class_="stages")
        for name in titles:
            address, kind = case[name]
            picture = tag("img", src=address, alt=f"{id}: {name}", class_=kind)
            stages.append(tag("figure", picture, tag("figcaption", name)))
        meets = f"{id}: where the two stages meet"
        slider = tag("input", type="range", min="0", max="100", value="50", aria_label=meets)
        shown.append(tag("div", stages, slider, tag("p", id, class_="faint"), class_="case"))
    side = tag("label", tag("input", type="checkbox"), " all stages side by side")
    chosen = tag("div", choice("left", "image"), choice("right", right), side, class_="choice")
    return tag("div", tag("h3", title), chosen, tag("div", *shown, class_="cases"), class_="gallery")


def _legend(classes: Classes) -> Element:
    told = [*zip(classes.colours, classes.names, strict=True), (figures.VOID, "no label")]
    return tag("ul", *(tag("li", _swatch(colour), name) for colour, name in told), class_="legend")


# How it was made


def manifest_section(stages: dict[str, dict]) -> Element:
    """What all stages agree in, a line for each stage, and everything that their manifests hold."""

    def agreed(key: str) -> str:
        values = list(dict.fromkeys(json.dumps(stage.get(key), sort_keys=True) for stage in stages.values()))
        return ", ".join("–" if value == "null" else value.strip('"') for value in values)

    packages: dict[str, list[str]] = {}
    for stage in stages.values():
        for package, version in (stage.get("packages") or {}).items():
            packages.setdefault(package, []).append(version)
    told = [("git commit", agreed("git_commit")), ("device", agreed("device")), ("threads", agreed("threads"))]
    told += [(package, ", ".join(dict.fromkeys(versions))) for package, versions in sorted(packages.items())]
    common = _table(
        [tag("th", "made with"), tag("th")],
        [tag("tr", tag("th", name), tag("td", tag("code", value))) for name, value in told],
    )
    header = ["stage", "parameters", "seed", "weights (SHA-256)", "fingerprint", "seconds"]
    lines = []
    for name, stage in stages.items():
        weights = "; ".join(f"{weight} {str(sha)[:12]}" for weight, sha in (stage.get("checkpoints") or {}).items())
        seconds = stage.get("wall_seconds")
        cells = [
            json.dumps(stage.get("parameters") or {}, ensure_ascii=False, sort_keys=True)[1:-1] or "–",
            str(stage.get("seed") if stage.get("seed") is not None else "–"),
            weights or "–",
            str(stage.get("fingerprint") or "–")[:12],
            "–" if seconds is None else f"{seconds:.1f}",
        ]
        lines.append(tag("tr", tag("th", name), *(tag("td", tag("code", cell)) for cell in cells)))
    whole = json.dumps(stages, ensure_ascii=False, indent=1, sort_keys=True)
    return tag(
        "div",
        tag("details", tag("summary", "Versions, device, commit"), common),
        tag(
            "details",
            tag("summary", f"{len(stages)} stages"),
            _table([tag("th", name) for name in header], lines, "made"),
        ),
        tag("details", tag("summary", "Everything, as in summary.json"), tag("pre", whole)),
    )


# The page


def folder_of(run: str) -> Path:
    """Where a run lies: here, else published."""
    places = [files.results_root() / files.check_stem(run), files.ROOT / "results" / run]
    for place in places:
        if (place / "summary.json").is_file() or any(place.glob("*/manifest.json")):
            return place
    if any((place / "grid.json").is_file() for place in places):
        raise ValueError(f"{run} is a grid, whose label maps are not kept: 08_paper_figures shows its numbers")
    raise ValueError(f"neither {places[0]} nor {places[1]} is a finished run: run notebooks/run.py {run} first")


def html(folder: Path) -> str:
    """The page of a run whose results lie in `folder`."""
    summary = files.read_json(folder / "summary.json") if (folder / "summary.json").is_file() else {}
    rows, stages = summary.get("rows") or [], summary.get("manifest") or manifests(folder)
    evaluation = files.read_json(folder / "05_evaluation.json") if (folder / "05_evaluation.json").is_file() else {}
    classes, pictures, remark = None, [], "The label maps of this run are not here, so there are no pictures."
    if manifests(folder):
        try:
            parameters = parameters_of(folder)
            data = opened(folder, parameters)
            pictures = galleries(folder, data, parameters.get("shown_images", 6))
        except (OSError, ValueError, TypeError, KeyError) as error:  # moved photos, another class file: numbers remain
            remark = "The images or their label maps could not be read, so there are no pictures."
            warnings.warn(f"the page has no pictures: {error}", stacklevel=2)  # it may name folders: not in the page
        else:
            classes = data.classes
            remark = "" if pictures else "There are no label maps of the unlabelled or val images."
    gallery = [tag("p", remark)]
    if pictures:
        note = "Choose two stages, and move the slider below an image (or focus it and press the arrow keys)."
        gallery = [tag("p", note, class_="choice"), _legend(classes), *pictures]
    seen = dict.fromkeys(name for row in rows for name in row.get("iou") or {})
    names = [*(classes.names if classes and set(seen) == set(classes.names) else seen)]
    return _document(
        str(summary.get("run") or folder.name),
        _subtitle(summary.get("dataset"), rows),
        _sections(rows, names, evaluation.get("bootstrap") or {}, gallery, stages),
    )


def _subtitle(dataset: str | None, rows: Sequence[dict]) -> str:
    told = [f"data set {dataset}"] if dataset else []
    for key, form in (("labelled", "{} labelled images"), ("seed", "seed {}")):
        values = list(dict.fromkeys(str(row[key]) for row in rows if row.get(key) is not None))
        told += [form.format(", ".join(values))] if values else []
    return ", ".join(told)


def _sections(
    rows: Sequence[dict], names: Sequence[str], bootstrap: dict, gallery: list[Element], stages: dict[str, dict]
) -> dict[str, list[Element]]:
    """What the page shows, by its headings."""
    no_truth = "There is no truth to compare with, and so no number: look at the label maps, and judge them yourself."
    sections = {"Ladder": [ladder(rows)] if rows else [tag("p", no_truth)], "Gallery": gallery}
    if bootstrap:
        sections["Ladder"].append(differences(bootstrap))
    if names:
        with_iou = [row for row in rows if row.get("iou")]
        note = "IoU in percent; a dash stands for a class that does not occur. Click a head to sort."
        sections["Classes"] = [tag("p", note), classes_table(with_iou, names)]
    counted = [row for row in rows if row.get("wrong_pixels")]
    if counted:
        note = (
            "Each wrong pixel falls under the first kind that fits: it lies at a border, background got a name, "
            "a thing got none, a thing got the name of another."
        )
        sections["Errors"] = [tag("p", note), errors(counted)]
    if stages:
        sections["Manifest"] = [manifest_section(stages)]
    return sections


def _document(run: str, subtitle: str, sections: dict[str, list[Element]]) -> str:
    allowed = {"default-src": "'none'", "img-src": "data:", "style-src": _hash(STYLE), "script-src": _hash(SCRIPT)}
    allowed |= {"base-uri": "'none'", "form-action": "'none'"}
    policy = "; ".join(f"{what} {where}" for what, where in allowed.items())
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("title", f"{run}: results"),
        tag("style", STYLE),
    )
    links = [tag("a", title, href=f"#{title.lower()}") for title in sections]
    body = [tag("header", tag("h1", run), tag("p", subtitle, class_="faint"), tag("nav", *links))]
    body += [tag("section", tag("h2", title), *found, id=title.lower()) for title, found in sections.items()]
    body.append(tag("footer", tag("p", f"Made by plg_utils {__version__} from the files of the run.")))
    body.append(tag("script", SCRIPT))
    return "<!doctype html>\n" + text_of(tag("html", head, tag("body", *body), lang="en")) + "\n"


def _hash(text: str) -> str:
    """How a Content-Security-Policy names a style or script that stands in the page."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def write(folder: Path, to: Path | None = None) -> Path:
    """Write the page of the run in `folder`, by default beside its summary.json; return where."""
    to, text = Path(to or folder / "index.html"), html(folder)
    with files.atomic(to) as partial:
        partial.write_text(text, encoding="utf-8")
    return to


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the page that the command line asks for; 2 if there is no such run."""
    command = argparse.ArgumentParser(prog="python -m plg_utils.page", description=__doc__.split("\n\n")[0])
    command.add_argument("run", metavar="RUN", help="name of a finished run, such as demo")
    command.add_argument("--to", metavar="FILE", type=Path, help="by default index.html in results/local/RUN")
    options = command.parse_args(arguments)
    try:
        here = files.results_root() / options.run / "index.html"  # what was published is replaced by run.py alone
        written = write(folder_of(options.run), options.to or here)
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    print(f"{written}, {written.stat().st_size / 1e6:.2f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
