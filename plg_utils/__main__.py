"""The command plg, for people without notebooks: label a folder of photos, and everything that follows from it.

    plg label PHOTOS --classes "cat, dog" --sam sam_vit_b --clip ViT-B/16 --to OUT

`plg label` does the stages of notebook 02 and writes OUT/labels/*.png (palette PNG) with the list of the classes,
OUT/overlays/*.jpg, and OUT/index.html with all pictures. A photo with a label map (--labels) keeps that one. Masks and
embeddings are in OUT/run: the same command goes on where it was stopped, and other words or another threshold take
seconds. The other commands are those of the package and of notebooks/.
"""

import argparse
import importlib
import os
import re
import sys
import warnings
from collections.abc import Sequence
from functools import partial
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

WORDS = {  # what messages say to callers of the package: what they say here
    r"classes=\S+ name what to look for: classes=.*": 'name what to look for: --classes "cat, dog", or a class file',
    r"root must be the folder": "PHOTOS must be the folder",
    r"labels must name": "--labels must name",
    r"that the option labels names": "that --labels names",
    r"[.] Or label other images \(options labelled and seed\)": "",
    r"bands=(.*) must be (a list of .*), such as .*": r"bands=\1 must be \2: --bands 4,3,2",
    r"(?:[.] L|: l)et PLG_RESULTS name": ": give --to the name of",
    r"\w+: (?:\w+|\[[^]]*\]) in dataset_options \(plg label: ([^)]*)\)": r"\1",
    r": lower (pred_iou|stability_score)_thresh, .*": ": it gets no label. Another --sam, or --tile, may find some",
}

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
<p>Each photo links to its label map, its name to the photo. A pixel of a label map has the number of its class.
255 is no label: the pixel is in no mask of SAM, or void in a given map. Training should ignore this number.</p>
<table>
{% for value, name, colour, share in total %}<tr><td>{{ value }}<td><i style="background:{{ colour }}"></i>{{ name
  }}<td>{{ share }}
{% endfor %}</table>
<main>
{% for id, photo, given, shares in photos %}<figure><a href="labels/{{ id | url }}.png"><img loading="lazy"
  src="overlays/{{ id | url }}.jpg" alt=""></a><figcaption><a href="{{ photo }}"><b>{{ id }}</b></a>
  {% if given %}(given label map) {% endif %}{{ shares }}</figcaption></figure>
{% endfor %}</main>
</html>
"""


def label(options: argparse.Namespace) -> None:
    """Label the photos of a folder, and write label maps, overlays and the page."""
    out = Path(options.to).expanduser().absolute()
    given = _photos_and_labels(options)
    _check_results(out, Path(given["root"]), given.get("labels"))
    os.environ["PLG_RESULTS"] = str(out)
    from plg_utils import datasets, devices, stages  # torch takes seconds to import

    if options.threshold is not None and not -1 <= options.threshold <= 1:
        raise ValueError(f"--threshold is {options.threshold:g}, and right is a cosine: from -1 to 1, such as 0.2")
    devices.choose(options.device)
    data = datasets.load("folder", labelled=None, **given)
    sam, clip = _models(options)
    names = [f'"{name}"' if "," in name else name for name in data.classes.names]
    listed = ", ".join(f"{value} {name}" for value, name in enumerate(names))
    print(f"{len(data.labelled) + len(data.unlabelled)} photos, {len(names)} classes: {listed}", flush=True)
    if data.classes.background is None:
        print("no background: every segment is one of these classes, and numbers start at 0", flush=True)
    with files.lock(out / RUN / "run.lock") as holder:
        if holder:
            raise FileExistsError(f"{out} is being made by {holder}: two would write the same files. Wait, or stop it")
        run = stages.open_run(RUN, data, device=options.device)
        kept = {"dataset": "folder", "dataset_options": given, "labelled": None, "seed": 0, "device": options.device}
        content = files.read_json(run.folder / "run.json")
        files.write_json(run.folder / "run.json", content | {"parameters": kept | clip})  # for plg export
        stages.masks(run, **sam)
        stages.segments(run, **clip, embedding_options={})
        stages.labels(run, **clip, threshold=options.threshold, **SETTINGS)
        made = files.read_json(run.folder / "labels_zero_shot" / "manifest.json")["parameters"]
        how = "the default" if options.threshold is None else "as given"
        if options.threshold is None and data.labelled and data.classes.background is not None:
            how = f"the best on {len(data.labelled)} photos with labels"
        models = f"SAM: {sam['mask_options']['checkpoint']}. CLIP: {clip['encoder_options']['checkpoint']}"
        remark = f"{models}. Threshold: {made['threshold']:.2f}, {how}."
        remark += f" Photos that keep the label map they have: {len(data.labelled)}." if data.labelled else ""
        print("\n".join([*write(out, run, remark), f"{remark}\n{out / 'index.html'}"]))


def _photos_and_labels(options: argparse.Namespace) -> dict[str, Any]:
    """Options of the data set `folder`."""
    if "" in (options.photos, options.to, options.labels):  # it would be the current folder, or no labels at all
        raise ValueError("PHOTOS, --to or --labels is empty: is a variable of the shell not set?")
    given = {"root": str(Path(options.photos).expanduser().absolute()), "classes": _classes(options.classes)}
    given |= {"background": class_files.words_of(options.background)} if options.background else {}
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
        checkpoints.locate_weights(name)
        if name in MINIATURES.values():
            problem = f"without --{kind}, the small network {name} is used, which knows only the ten things of the"
            warnings.warn(f"{problem} storybook: it shows that your files work, and labels nothing else", stacklevel=3)
    return tuple(found)


def _classes(text: str) -> Any:
    """Names of classes as people write them, or the path of a class file."""
    found = class_files.path_or_names(text)
    return str(found.absolute()) if isinstance(found, Path) else found


def _in_its_words(message: object) -> str:
    """A message of the package with the options of this command."""
    text = str(message)
    for pattern, own in WORDS.items():
        text = re.sub(pattern, own, text)
    return text


def _bands(text: str) -> list[int]:
    if not re.fullmatch(r"[0-9]+(,[0-9]+)*", text):
        raise argparse.ArgumentTypeError(f"{text!r} are no numbers of bands, counted from 1, such as 4,3,2")
    return [int(number) for number in text.split(",")]


def _check_results(out: Path, root: Path, labels: str | None) -> None:
    """Refuse a folder of the results in which a person's work would be replaced, or taken for what it is not."""
    run, before = out / RUN, root
    # Without run.json it was stopped early, or it is empty but for what a system hides there.
    is_own = not out.exists() or run.is_dir() or (out.is_dir() and all(path.name[0] == "." for path in out.iterdir()))
    if (run / "run.json").is_file():
        content = files.read_json(run / "run.json", "give --to the name of a new folder")
        is_own = isinstance(content, dict) and isinstance(content.get("dataset_options"), dict)
        before = Path(content["dataset_options"].get("root") or root) if is_own else root
    if not is_own:
        raise FileExistsError(f"{out} is no folder that this command has written: give --to the name of a new one")
    if before.is_dir() and root.is_dir() and not before.samefile(root):
        raise FileExistsError(f"{out} holds the labels of {before}: give --to the name of another folder")
    known, changed = _written(out), []
    for path in (out / "labels").glob("*.png"):
        if files.sha256(path) not in (*known.get(path.stem, ()), _sha256(run / "labels_zero_shot" / path.name)):
            changed.append(path.name)
    if changed:
        problem = f"{len(changed)} label maps in {out / 'labels'} were changed by hand, e.g. {min(changed)}"
        raise FileExistsError(f"{problem}: move them to another folder, or give --to the name of a new one")
    own = (out / "labels").resolve(), run.resolve()  # on whose mistakes the threshold would be chosen
    if labels and any(Path(labels).resolve().is_relative_to(folder) for folder in own):
        problem = f"{labels} holds what this command has written, and would count as labels of a person"
        raise ValueError(f"{problem}: copy the maps that a person has looked at to another folder, and name that")
    given, twins = Path(labels or out), Path(labels or out).resolve().parent / RUN / "labels_zero_shot"
    if made := [path.name for path in given.glob("*.png") if files.sha256(path) == _sha256(twins / path.name)]:
        problem = f"{len(made)} label maps of {given} are as plg label has written them, e.g. {min(made)}, and count as"
        warnings.warn(f"{problem} labels of a person. Keep only those that a person has looked at", stacklevel=1)


def _written(out: Path) -> dict[str, list]:
    """What each map in OUT/labels may be, by id: its SHA-256, perhaps a newer one, and the photo's."""
    note = out / RUN / "written.json"
    return files.read_json(note) if note.is_file() else {}


def write(out: Path, run: Any, remark: str) -> list[str]:
    """Write labels, overlays and index.html of a `stages.Run` with labels_zero_shot; returns lines for the terminal.

    A labelled photo has the label map that it was given, the others have that of labels_zero_shot.
    """
    import numpy as np

    from plg_utils import figures, store

    note, classes, before = run.folder / "written.json", run.data.classes, _written(out)
    samples = sorted(run.images, key=lambda sample: sample.id)
    source = {sample.id: run.folder / "labels_zero_shot" / f"{sample.id}.png" for sample in samples}
    for sample in run.data.labelled:
        source[sample.id] = run.folder / "given" / f"{sample.id}.png"
        files.write_label(source[sample.id], sample.truth(), classes.colours)
    new = {id: files.sha256(path) for id, path in source.items()}
    allowed = before | {id: [*before.get(id, []), sha256] for id, sha256 in new.items()}
    files.write_json(note, allowed)  # what a stop from here on may leave
    for id in before.keys() - new.keys():  # photos that are gone
        for path in (out / "labels" / f"{id}.png", out / "overlays" / f"{id}.jpg"):
            path.unlink(missing_ok=True)
    counts = {}
    for sample in store.progress(samples, what="overlays"):
        picture, found = out / "overlays" / f"{sample.id}.jpg", files.read_label(source[sample.id], classes.num_classes)
        copy = out / "labels" / f"{sample.id}.png"
        fresh = picture.is_file() and sample.content in before.get(sample.id, ())
        if not fresh or new[sample.id] != _sha256(copy):
            picture.unlink(missing_ok=True)  # else it may stay beside a newer map
            with files.atomic(copy) as file:
                file.write_bytes(source[sample.id].read_bytes())
            files.write_image(picture, figures.overlay(sample.image(), found, classes))
        counts[sample.id] = np.bincount(found.ravel(), minlength=256)
    class_files.write_beside(out / "labels", classes)
    files.write_json(note, {sample.id: [new[sample.id], sample.content] for sample in samples})
    page(out / "index.html", run.data, counts, remark)
    total = sum(counts.values())
    bare = [id for id, own in counts.items() if own[255] == own.sum()]
    said = [f"  {share:>7}  {value:>3}  {name}" for value, name, share in _shares(total, classes.names) if total[value]]
    if bare:
        said.insert(0, f"{len(bare)} photos have no label at all: {', '.join(bare[:8])}{', ...' * (len(bare) > 8)}")
    return said


def _sha256(path: Path) -> str | None:
    return files.sha256(path) if path.is_file() else None


def _shares(counts: "np.ndarray", names: Sequence[str]) -> list[tuple[int, str, str]]:
    """Values, names, and their share of the pixels, (256,), the largest first."""
    rows = sorted([*enumerate(names), (255, "no label")], key=lambda row: -counts[row[0]])
    return [(value, name, f"{counts[value] / counts.sum():.1%}") for value, name in rows]


def page(path: Path, data: "Dataset", counts: dict[str, "np.ndarray"], remark: str) -> None:
    """Write one HTML page with the overlays beside it; counts: pixels of each value, (256,), by id."""
    import jinja2

    from plg_utils import figures

    names = data.classes.names
    colours = (*enumerate(data.classes.colours), (255, figures.VOID))
    colours = {value: "#{:02x}{:02x}{:02x}".format(*colour) for value, colour in colours}
    total = [(value, name, colours[value], share) for value, name, share in _shares(sum(counts.values()), names)]
    photos, given = [], {sample.id for sample in data.labelled}
    for sample in sorted((*data.labelled, *data.unlabelled), key=lambda sample: sample.id):
        own = counts[sample.id]
        shown = ", ".join(f"{name} {share}" for value, name, share in _shares(own, names) if own[value])
        try:
            address = quote(Path(os.path.relpath(sample.path, path.parent)).as_posix())
        except ValueError:  # on another drive of Windows
            address = sample.path.as_uri()
        photos.append((sample.id, address, sample.id in given, shown))
    environment = jinja2.Environment(autoescape=True)
    environment.filters["url"] = partial(quote, safe="")
    shown = {"title": f"{len(photos)} photos", "remark": remark, "total": total, "photos": photos}
    files.write_text(path, environment.from_string(PAGE).render(shown))


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
    sys.argv[0] = f"plg {command}"  # argparse shows it
    return importlib.import_module(module).main(arguments)


def parser() -> argparse.ArgumentParser:
    """The parser of the command line."""
    plg = argparse.ArgumentParser(prog="plg", description="Label maps for photos that no one has labelled.")
    commands = plg.add_subparsers(dest="command", metavar="COMMAND", required=True)
    one = commands.add_parser("label", help="label the photos of a folder", description=label.__doc__)
    one.add_argument("photos", metavar="PHOTOS", help="folder of the photos")
    numbers = "in label maps 0 is the background, they count from 1, and 255 is no label"
    what = f'what to look for: "cat, dog", a class file, or one of {", ".join(class_files.OURS)}'
    one.add_argument("--classes", required=True, help=f"{what}; {numbers}")
    one.add_argument("--to", required=True, metavar="OUT", help="folder of the results, a new one or that of before")
    of_models = "(default: a miniature); docs/models.md has all names"
    one.add_argument("--sam", metavar="NAME", help=f"sam_vit_h, sam2.1_hiera_large, sam3, ..., or a file {of_models}")
    one.add_argument("--clip", metavar="NAME", help=f"ViT-B/16, ViT-B-16-SigLIP2-256:webli, ..., or a file {of_models}")
    one.add_argument("--tile", type=int, metavar="PIXELS", help="look at large photos in tiles of this side")
    one.add_argument("--device", default="auto", help="cpu, cuda, mps, or auto: the fastest there is (default)")
    one.add_argument("--background", metavar="WORDS", help='what is none of the classes: "wall, sky", or a text')
    kept = "labels of a few of the photos, which choose the threshold and are kept as they are"
    one.add_argument("--labels", metavar="DIR", help=kept)
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
        text = str(message) if arguments[0] in OTHERS else _in_its_words(message)
        if text not in said:
            print(f"warning: {text}", file=sys.stderr, flush=True)
        said.add(text)

    with warnings.catch_warnings():
        warnings.filterwarnings("always", category=UserWarning, module="plg_utils|__main__")
        warnings.showwarning = say
        if arguments and arguments[0] in OTHERS:
            return hand_over(arguments[0], arguments[1:])
        try:
            options, rest = parser().parse_known_args(arguments)
            if rest:
                remedy = 'Names with blanks between them need quotes: --classes "cat, dog". PHOTOS is one folder'
                problem = f"{' '.join(rest)}: this is one word too many, or no option (plg label --help)"
                raise ValueError(f"{problem}. {remedy}")
            label(options)
        except (OSError, ValueError, TypeError, MemoryError) as error:
            print(f"plg label: {_in_its_words(error)}", file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            print("\nStopped. The same command goes on from here.", file=sys.stderr)
            return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
