"""The command plg, for people without notebooks: label a folder of photos, and everything that follows from it.

    plg label PHOTOS --classes "cat, dog" --sam sam_vit_b --clip ViT-B/16 --to OUT

`plg label` does the stages of notebook 02 and writes OUT/labels/*.png (palette PNG), OUT/overlays/*.jpg, and
OUT/index.html with all pictures. Masks and embeddings are in OUT/run: the same command goes on where it was stopped,
and other words or another threshold take seconds. The other commands are those of the package and of notebooks/:
what follows `plg score` is read as by `python -m plg_utils.score`.
"""

import argparse
import importlib
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from plg_utils import class_files, files

if TYPE_CHECKING:
    import numpy as np

    from plg_utils.records import Dataset

MINIATURES = {"sam": "miniature_sam", "clip": "miniature_clip"}
SETTINGS = {"rule": "cosine", "default_threshold": 0.2, "overlap": "score"}  # those of notebook 02
OTHERS = {  # command: its module, and what it does
    "export": ("plg_utils.review", "write labels for labelme, CVAT, Label Studio and YOLO, and read corrected ones"),
    "score": ("plg_utils.score", "compare a folder of label maps with the truth"),
    "check": ("plg_utils.check", "read all files of a data set, and list what would stop a run"),
    "doctor": ("doctor", "will a run work on this machine, and what will it cost?"),
    "run": ("run", "execute the notebooks of a run"),
}
RUN = "run"  # folder of the stages, in the folder of the results
NOTEBOOKS = files.ROOT / "notebooks"  # only in the repository

PAGE = """<!DOCTYPE html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{{ title }}</title>
<style>
  body { font: 1rem/1.5 system-ui, sans-serif; margin: 1rem auto; max-width: 76rem; padding: 0 1rem }
  main { display: grid; grid-template-columns: repeat(auto-fill, minmax(17rem, 1fr)); gap: 1rem }
  figure { margin: 0 } img { width: 100% } figcaption { font-size: .88rem; overflow-wrap: anywhere }
  i { display: inline-block; width: .8em; height: .8em; border: 1px solid #777; margin-right: .3em }
  td { padding-right: 1rem }
</style>
<h1>{{ title }}</h1>
<p>{{ remark }}</p>
<table>
{% for name, colour, share in total %}<tr><td><i style="background:{{ colour }}"></i>{{ name }}<td>{{ share }}
{% endfor %}</table>
<main>
{% for id, shares in photos %}<figure><a href="labels/{{ id | url }}.png"><img loading="lazy"
  src="overlays/{{ id | url }}.jpg" alt=""></a><figcaption><b>{{ id }}</b> {{ shares }}</figcaption></figure>
{% endfor %}</main>
</html>
"""


def label(options: argparse.Namespace) -> None:
    """Label the photos of a folder, and write label maps, overlays and the page."""
    out = Path(options.to).expanduser().absolute()
    given = _photos_and_labels(options)
    _refuse_others(out, Path(given["root"]))
    _refuse_changes(out)
    os.environ["PLG_RESULTS"] = str(out)
    from plg_utils import datasets, devices, stages  # torch takes seconds to import

    if options.threshold is not None and not -1 <= options.threshold <= 1:
        raise ValueError(f"--threshold is {options.threshold:g}, and right is a cosine: from -1 to 1, such as 0.2")
    devices.choose(options.device)
    data = datasets.load("folder", labelled=None, **given)
    sam, clip = _models(options)
    run = stages.open_run(RUN, data, device=options.device)
    kept = {"dataset": "folder", "dataset_options": given, "labelled": None, "seed": 0, "device": options.device}
    content = files.read_json(run.folder / "run.json")
    files.write_json(run.folder / "run.json", content | {"parameters": kept | clip})  # for plg export
    print(f"{len(run.images)} photos, {data.classes.num_classes} classes: {', '.join(data.classes.names)}", flush=True)
    stages.masks(run, **sam)
    stages.segments(run, **clip, embedding_options={})
    stages.labels(run, **clip, threshold=options.threshold, **SETTINGS)
    made = files.read_json(run.folder / "labels_zero_shot" / "manifest.json")["parameters"]
    chosen = data.labelled and data.classes.background is not None  # as stages.choose_threshold does it
    how = f"the best on {len(data.labelled)} photos with labels" if chosen else "the default"
    how = how if options.threshold is None else "as given"
    names = [found["checkpoint"] for found in (sam["mask_options"], clip["encoder_options"])]
    remark = f"SAM: {names[0]}. CLIP: {names[1]}. Threshold: {made['threshold']:.2f}, {how}."
    print("\n".join([*write(out, run, remark), f"{remark}\n{out / 'index.html'}"]))


def _photos_and_labels(options: argparse.Namespace) -> dict[str, Any]:
    """Options of the data set `folder`."""
    given = {"root": str(Path(options.photos).expanduser().absolute()), "classes": _classes(options.classes)}
    given |= {"background": class_files.names_of(options.background)} if options.background else {}
    given |= {"labels": str(Path(options.labels).expanduser().absolute())} if options.labels else {}
    given |= {"bands": options.bands} if options.bands else {}
    return given | ({"on_bad_image": "skip"} if options.skip_unreadable else {})


def _models(options: argparse.Namespace) -> tuple[dict[str, Any], dict[str, Any]]:
    """Mask model and encoder, as the stages take them; weights are fetched now: a wrong name must not cost work."""
    from plg_utils import checkpoints

    found = []
    for kind, what, its_options, usual, of_hub in (
        ("sam", "mask_model", "mask_options", "sam", "hf"),
        ("clip", "encoder", "encoder_options", "clip", "open_clip"),
    ):
        name = getattr(options, kind) or MINIATURES[kind]
        known = checkpoints.known(name)
        from_hub = bool(known and known.hub) or Path(name).expanduser().is_dir()  # a repository, or what lies in one
        cut = {} if options.tile is None else {"tile": options.tile}
        found.append({what: of_hub if from_hub else usual, its_options: {"checkpoint": name} | cut})
        checkpoints.sha256_of(name)
        if name in MINIATURES.values():
            problem = f"without --{kind}, the small network {name} is used, which knows only the ten things of the"
            warnings.warn(f"{problem} storybook: it shows that your files work, and labels nothing else", stacklevel=3)
    return tuple(found)


def _classes(text: str) -> Any:
    """Names of classes as people write them, or the path of a class file."""
    found = class_files.path_or_names(text)
    return str(found.absolute()) if isinstance(found, Path) else found


def _bands(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


def _refuse_others(out: Path, root: Path) -> None:
    """Refuse a folder that holds something else: label maps of other photos would be replaced."""
    if not out.exists():
        return
    note = out / RUN / "run.json"
    if note.is_file():
        content = files.read_json(note, "give --to the name of a new folder")
        is_own = isinstance(content, dict) and isinstance(content.get("dataset_options"), dict)
        before = Path(content["dataset_options"].get("root") or root) if is_own else root
    else:  # stopped before it was written, or empty but for what a system hides there
        is_own = (out / RUN).is_dir() or (out.is_dir() and all(path.name[0] == "." for path in out.iterdir()))
        before = root
    if not is_own:
        raise FileExistsError(f"{out} is no folder that this command has written: give --to the name of a new one")
    if before.is_dir() and root.is_dir() and not before.samefile(root):
        raise FileExistsError(f"{out} holds the labels of {before}: give --to the name of another folder")


def _refuse_changes(out: Path) -> None:
    """Refuse to go on where label maps in OUT/labels are not those that were written: a person's work is kept."""
    note, stage = out / RUN / "written.json", out / RUN / "labels_zero_shot"
    known = files.read_json(note) if note.is_file() else {}
    maps = {path: [*known.get(path.stem, []), _sha256(stage / path.name)] for path in (out / "labels").glob("*.png")}
    changed = sorted(path.name for path, own in maps.items() if files.sha256(path) not in own)
    if changed:
        problem = f"{len(changed)} label maps in {out / 'labels'} were changed by hand, e.g. {changed[0]}"
        raise FileExistsError(f"{problem}: move them to another folder, or give --to the name of a new one")


def write(out: Path, run: Any, remark: str) -> list[str]:
    """Write labels, overlays and index.html of a `stages.Run` with labels_zero_shot; returns lines for the terminal."""
    import numpy as np

    from plg_utils import figures, store

    source, note, classes = run.folder / "labels_zero_shot", run.folder / "written.json", run.data.classes
    samples = sorted(run.images, key=lambda sample: sample.id)
    before = files.read_json(note) if note.is_file() else {}  # SHA-256 that a map may have, and its photo
    new = {sample.id: files.sha256(source / f"{sample.id}.png") for sample in samples}
    allowed = before | {id: [*before.get(id, []), sha256] for id, sha256 in new.items()}
    files.write_json(note, allowed)  # what a stop from here on may leave
    for id in before.keys() - new.keys():  # photos that are gone
        for path in (out / "labels" / f"{id}.png", out / "overlays" / f"{id}.jpg"):
            path.unlink(missing_ok=True)
    counts = {}
    for sample in store.progress(samples, what="overlays"):
        picture, found = out / "overlays" / f"{sample.id}.jpg", run.label_of("labels_zero_shot", sample)
        copy = out / "labels" / f"{sample.id}.png"
        fresh = picture.is_file() and sample.content in before.get(sample.id, ())
        if not fresh or new[sample.id] != _sha256(copy):
            picture.unlink(missing_ok=True)  # else it may stay beside a newer map
            with files.atomic(copy) as partial:
                partial.write_bytes((source / f"{sample.id}.png").read_bytes())
            files.write_image(picture, figures.overlay(sample.image(), found, classes))
        counts[sample.id] = np.bincount(found.ravel(), minlength=256)
    files.write_json(note, {sample.id: [new[sample.id], sample.content] for sample in samples})
    page(out / "index.html", run.data, counts, remark)
    total = sum(counts.values())
    return [f"  {share:>7}  {name}" for name, share in _shares(total, classes.names)]


def _sha256(path: Path) -> str | None:
    return files.sha256(path) if path.is_file() else None


def _shares(counts: "np.ndarray", names: Sequence[str]) -> list[tuple[str, str]]:
    """Names that occur, and their share of the pixels, (256,), the largest first."""
    rows = zip((*names, "no label"), [*counts[: len(names)].tolist(), int(counts[255])], strict=True)
    rows = sorted(rows, key=lambda row: -row[1])
    return [(name, f"{pixels / counts.sum():.1%}") for name, pixels in rows if pixels]


def page(path: Path, data: "Dataset", counts: dict[str, "np.ndarray"], remark: str) -> None:
    """Write one HTML page with the overlays beside it; counts: pixels of each value, (256,), by id."""
    import jinja2

    from plg_utils import figures

    names = data.classes.names
    colours = dict(zip((*names, "no label"), (*data.classes.colours, figures.VOID), strict=True))
    shares = _shares(sum(counts.values()), names)
    total = [(name, "#{:02x}{:02x}{:02x}".format(*colours[name]), share) for name, share in shares]
    photos = [(id, ", ".join(" ".join(one) for one in _shares(own, names))) for id, own in counts.items()]
    environment = jinja2.Environment(autoescape=True)
    environment.filters["url"] = lambda text: quote(text, safe="")
    shown = {"title": f"{len(photos)} photos", "remark": remark, "total": total, "photos": photos}
    with files.atomic(path) as partial:
        partial.write_text(environment.from_string(PAGE).render(shown), encoding="utf-8")


def hand_over(command: str, arguments: list[str]) -> int:
    """Let another command of the package, or of the repository's notebooks, do its work; returns its exit status."""
    module = OTHERS[command][0]
    if "." not in module:
        if not (NOTEBOOKS / f"{module}.py").is_file():
            problem = f"plg {command} executes notebooks, which the installed package does not hold"
            rest = f"Without notebooks there are plg label, plg {', plg '.join(list(OTHERS)[:3])}"
            print(f"{problem}: clone the repository and call it there. {rest}", file=sys.stderr)
            return 2
        sys.path.insert(0, str(NOTEBOOKS))
    if command == "export" and arguments and (Path(arguments[0]) / RUN / "run.json").is_file():
        os.environ["PLG_RESULTS"] = str(Path(arguments[0]).absolute())  # what plg label has written
        arguments = [RUN, *arguments[1:]]
    sys.argv[0] = f"plg {command}"  # argparse shows it
    return importlib.import_module(module).main(arguments)


def parser() -> argparse.ArgumentParser:
    """The parser of the command line."""
    plg = argparse.ArgumentParser(prog="plg", description="Label maps for photos that no one has labelled.")
    commands = plg.add_subparsers(dest="command", metavar="COMMAND", required=True)
    one = commands.add_parser("label", help="label the photos of a folder", description=label.__doc__)
    one.add_argument("photos", metavar="PHOTOS", help="folder of the photos")
    one.add_argument("--classes", required=True, help='what to look for: "cat, dog", or a class file')
    one.add_argument("--to", required=True, metavar="OUT", help="folder of the results, a new one or that of before")
    of_models = "(default: a miniature); docs/models.md has all names"
    one.add_argument("--sam", metavar="NAME", help=f"sam_vit_h, sam2.1_hiera_large, sam3, ..., or a file {of_models}")
    one.add_argument("--clip", metavar="NAME", help=f"ViT-B/16, ViT-B-16-SigLIP2-256:webli, ..., or a file {of_models}")
    one.add_argument("--tile", type=int, metavar="PIXELS", help="look at large photos in tiles of this side")
    one.add_argument("--device", default="auto", help="cpu, cuda, mps, or auto: the fastest there is (default)")
    one.add_argument("--background", metavar="WORDS", help='what is none of the classes: "wall, sky"')
    one.add_argument("--labels", metavar="DIR", help="labels of a few of the photos, which choose the threshold")
    one.add_argument("--threshold", type=float, help="cosine below which a segment is background (default: 0.2)")
    one.add_argument("--bands", type=_bands, metavar="R,G,B", help="of photos of many bands: which to look at, from 1")
    one.add_argument("--skip-unreadable", action="store_true", help="leave out photos that cannot be read")
    for name, (_, what) in OTHERS.items():
        commands.add_parser(name, help=what, add_help=False)
    return plg


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the command line says; returns the exit status: 0 if all went well, 2 for what cannot be used."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not (NOTEBOOKS / "run.py").is_file():  # installed: nothing is written beside the package
        os.environ.setdefault("PLG_DATA", str(Path.home() / ".cache" / "plg_utils"))
    said = set()

    def say(message: Warning | str, *_: Any) -> None:
        if str(message) not in said:
            print(f"warning: {message}", file=sys.stderr, flush=True)
        said.add(str(message))

    with warnings.catch_warnings():
        warnings.filterwarnings("always", category=UserWarning, module="plg_utils|__main__")
        warnings.showwarning = say
        if arguments and arguments[0] in OTHERS:
            return hand_over(arguments[0], arguments[1:])
        try:
            label(parser().parse_args(arguments))
        except (OSError, ValueError, TypeError, MemoryError) as error:
            print(f"plg label: {error}", file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            print("\nStopped. The same command goes on from here.", file=sys.stderr)
            return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
