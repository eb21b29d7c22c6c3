"""A run as one HTML page: mean IoU, pictures with sliders, classes, errors, and how every stage was made.

    python -m plg_utils.page demo                # writes results/local/demo/index.html
    python -m plg_utils.page demo --to demo.html

The page is one file that works without a network. page.html is its template, with style and script; jinja2 escapes all
text, so a class may be called `<script>`. The Content-Security-Policy names style and script by their hash: a
browser loads and runs nothing else. The same files give the same bytes. Seconds change from run to run, and appear in
the manifest only.

The pictures are those of 05_evaluation's galleries, and this module opens the truth of these images only. Pictures need
the label maps of the run; if only the json files of a run were published, the page shows the numbers.
"""

import argparse
import base64
import hashlib
import io
import json
import sys
import warnings
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import jinja2
import numpy as np
from PIL import Image

from plg_utils import __version__, datasets, diagnosis, figures, files, store
from plg_utils.records import Classes, Dataset, Sample

SHOWN = ("labels_", "predictions_")  # how the names of folders of label maps begin
LONGEST = 480  # pixels of a picture's longer side; larger pictures are made smaller


def html(folder: Path) -> str:
    """Return the page of the run in `folder`."""
    paths = [folder / name for name in ("summary.json", "05_evaluation.json")]
    summary, evaluation = (files.read_json(path) if path.is_file() else {} for path in paths)
    rows, errors, kinds = summary.get("rows") or [], [], diagnosis.OUTCOMES[:-1]
    for row in rows:
        if pixels := row.get("wrong_pixels"):
            errors.append((row["name"], [pixels[kind] / max(1, sum(pixels.values())) for kind in kinds]))
    galleries, classes, remark = pictures(folder, rows)
    names = list(dict.fromkeys(name for row in rows for name in row.get("iou") or {}))
    if classes and set(names) == set(classes.names):
        names = classes.names  # json has them sorted by name
    fills = zip((*classes.names, "no label"), (*classes.colours, figures.VOID), strict=True) if classes else ()
    return _template().render(
        version=__version__,
        run=str(summary.get("run") or folder.name),
        dataset=summary.get("dataset"),
        rows=rows,
        bootstrap=evaluation.get("bootstrap"),
        galleries=galleries,
        remark=remark,
        fills=[(name, "#{:02x}{:02x}{:02x}".format(*colour)) for name, colour in fills],
        names=names,
        kinds=kinds,
        errors=errors,
        stages=summary.get("manifest") or manifests(folder),
    )


def manifests(folder: Path) -> dict[str, dict]:
    """Return the manifests of a run's stages, by the names of their folders."""
    return {path.parent.name: files.read_json(path) for path in sorted(folder.glob("*/manifest.json"))}


def versions(stages: dict[str, dict]) -> dict[str, str]:
    """Return commit, device, threads and packages of all stages; values that differ are separated by commas."""
    values = defaultdict(dict)
    for stage in stages.values():
        common = {"git commit": stage.get("git_commit"), "device": stage.get("device"), "threads": stage.get("threads")}
        for key, value in (common | dict(sorted((stage.get("packages") or {}).items()))).items():
            values[key]["–" if value is None else str(value)] = None
    return {key: ", ".join(different) for key, different in values.items()}


# Pictures


def pictures(folder: Path, rows: Sequence[dict]) -> tuple[list[dict], Classes | None, str]:
    """Return the galleries of a run, its classes, and a sentence that says which pictures are missing, and why."""
    if not (made := manifests(folder)):
        return [], None, "The label maps of this run are not here, so there are no pictures."
    try:
        run = files.read_json(folder / "run.json")
        draw = {"labelled": run["labelled"], "seed": run["seed"], "truth_of": ("labelled", "unlabelled", "val")}
        data = datasets.load(run["dataset"], **draw, **run["dataset_options"])
        splits = {manifest.get("split_sha256") for manifest in made.values()} - {None}
        if splits and store.split_sha256(data) not in splits:
            raise ValueError(f"{folder / 'run.json'} names other images than the manifests: run it again")
        reasons = {stage: store.outdated(folder / stage, data) for stage in made if stage.startswith(SHOWN)}
        if left_out := [f"{stage}: {reason}" for stage, reason in reasons.items() if reason]:
            warnings.warn(f"the page does not show {'; '.join(left_out)}", stacklevel=2)
        done = [stage for stage, reason in reasons.items() if not reason]
        shown = run["parameters"].get("shown_images", 6)
        galleries = [_gallery(folder, data, rows, done, split, shown) for split in ("unlabelled", "val")]
    except (OSError, ValueError, TypeError, KeyError) as error:  # moved photos, another class file: numbers remain
        warnings.warn(f"the page has no pictures: {error}", stacklevel=2)  # may name folders, so it is not in the page
        return [], None, "The images or their label maps could not be read, so there are no pictures."
    return [*filter(None, galleries)], data.classes, "There are no label maps of the unlabelled or val images."


def _gallery(folder: Path, data: Dataset, rows: Sequence[dict], done: list[str], split: str, shown: int) -> dict | None:
    """Return the first images of a split, those with a truth if there are any, with their finished label maps."""
    prefix = "labels_" if split == "unlabelled" else "predictions_"
    samples = ([sample for sample in getattr(data, split) if sample.read_truth] or getattr(data, split))[:shown]

    def place(stage: str) -> int:
        """Position in summary.json: labels_zero_shot belongs to a row by its stage, labels_sepl by its method."""
        title = stage.removeprefix(prefix)
        belongs = [title.startswith((str(row.get("method")), str(row.get("stage")))) for row in rows]
        return [*belongs, True].index(True)

    needed = {f"{sample.id}.png" for sample in samples}
    whole = [stage for stage in done if needed <= {path.name for path in (folder / stage).iterdir()}]
    stages = sorted((stage for stage in whole if stage.startswith(prefix)), key=lambda stage: (place(stage), stage))
    if not stages or not samples:
        return None
    return {
        "title": "Unlabelled images" if split == "unlabelled" else "Val images, which no network has seen in training",
        "cases": {sample.id: _case(folder, sample, stages, data.classes) for sample in samples},
        "right": _title(next(stage for stage in stages if place(stage) == place(stages[-1]))),
    }


def _title(stage: str) -> str:
    """A short name: labels_zero_shot is zero-shot, predictions_paper_a is paper a."""
    return stage.split("_", 1)[-1].replace("zero_shot", "zero-shot").replace("_", " ")


def _case(folder: Path, sample: Sample, stages: Sequence[str], classes: Classes) -> dict[str, str]:
    """Return the pictures of one image as data URIs, by their titles."""
    image, masks = sample.image(), folder / "masks" / f"{sample.id}.json"
    case = {"image": image}
    if stages[0].startswith("labels_") and masks.exists():
        case["SAM's masks"] = figures.mask_picture(image, files.read_masks(masks, image.shape[:2]))
    for stage in stages:
        case[_title(stage)] = files.read_label(folder / stage / f"{sample.id}.png", classes.num_classes)
    if sample.read_truth:
        case["truth"] = sample.truth()
    return {title: data_uri(picture, classes) for title, picture in case.items()}


def data_uri(picture: np.ndarray, classes: Classes) -> str:
    """Return a photo (H, W, 3) uint8 as a JPEG or a label map (H, W) uint8 as a palette PNG, no side over LONGEST."""
    factor, (height, width), is_map = min(1, LONGEST / max(picture.shape)), picture.shape[:2], picture.ndim == 2
    size = max(1, round(factor * width)), max(1, round(factor * height))
    small = Image.fromarray(picture).resize(size, Image.Resampling.NEAREST if is_map else Image.Resampling.LANCZOS)
    if is_map:
        small.putpalette(figures.colour(np.arange(256, dtype=np.uint8), classes).tobytes())
    encoded, kind = io.BytesIO(), "png" if is_map else "jpeg"
    small.save(encoded, kind, optimize=True, quality=88)  # of a JPEG; a PNG loses nothing
    return f"data:image/{kind};base64,{base64.b64encode(encoded.getvalue()).decode()}"


# The file


def _template() -> jinja2.Template:
    options = {"trim_blocks": True, "lstrip_blocks": True}
    loader, dash = jinja2.FileSystemLoader(Path(__file__).parent), lambda value: "–" if value is None else value
    environment = jinja2.Environment(autoescape=True, loader=loader, finalize=dash, **options)
    environment.filters |= {
        "versions": versions,
        "percent": lambda fraction: "–" if fraction is None else f"{100 * fraction:.1f}",
        "json": lambda value, **how: json.dumps(value, ensure_ascii=False, sort_keys=True, **how),
        "sha256": lambda text: base64.b64encode(hashlib.sha256(text.encode()).digest()).decode(),
    }
    return environment.get_template("page.html")


def folder_of(run: str) -> Path:
    """Return the folder of a run: results/local, else where it was published."""
    places = [files.results_root() / files.check_stem(run), files.ROOT / "results" / run]
    for place in places:
        if (place / "summary.json").is_file() or any(place.glob("*/manifest.json")):
            return place
    problem = f"neither {places[0]} nor {places[1]} is a finished run"
    raise ValueError(f"{problem}: run notebooks/run.py {run} first; 08_paper_figures shows the numbers of a grid")


def write(folder: Path, to: Path | None = None) -> Path:
    """Write the page of the run in `folder`, by default beside its summary.json; return its path."""
    to, text = Path(to or folder / "index.html"), html(folder)
    files.write_text(to, text)
    return to


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the page that the command line names; return 2 if there is no such run."""
    command = argparse.ArgumentParser(prog="python -m plg_utils.page", description=__doc__.split("\n\n")[0])
    command.add_argument("run", metavar="RUN", help="name of a finished run, such as demo")
    command.add_argument("--to", metavar="FILE", type=Path, help="by default index.html in results/local/RUN")
    options = command.parse_args(arguments)
    try:
        here = files.results_root() / options.run / "index.html"  # only run.py replaces what was published
        written = write(folder_of(options.run), options.to or here)
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    print(f"{written}, {written.stat().st_size / 1e6:.2f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
