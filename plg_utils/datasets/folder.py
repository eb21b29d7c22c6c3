"""Your own photos: a folder of images, the names of what to look for, and labels of some if you have any.

Labels are a folder of label maps (PNG), or a json of objects in COCO's form. The json is painted by the rule of
`_instances`, as COCO is. Its categories are matched to the classes by name, else by name or word where case, "_" and
"-" do not matter. Objects of a category that is no class are painted, too, as background. A warning counts them: a
category of another spelling ("sofa", where the class is "couch") is lost in the same way.
"""

import re
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from plg_utils import class_files, datasets, files
from plg_utils.datasets import _instances
from plg_utils.records import IGNORE, Classes, Dataset

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
SMOKE = {"classes": ["cat", "dog"]}
ON_BAD_IMAGE = "stop"  # these photos come from anywhere


def load(
    *,
    root: str | Path | None = None,
    labelled: int | str | None = None,
    seed: int = 0,
    truth_of: tuple[str, ...] = ("labelled",),
    limit: int | None = None,
    classes: Sequence[str] | str | Path | None = None,
    background: Sequence[str] = (),
    labels: str | Path | None = None,
    val: int = 0,
) -> Dataset:
    """A folder of photos as a data set: all are unlabelled, unless they have a label map.

    root: folder of the photos (jpg, png, webp, bmp), by default `photos` in the data folder; without subfolders
    classes: names of what to look for, or a class file (`class_files.read`); 0 is the background, the list starts at 1
    background: words for what is none of the classes, if `classes` is a list of names; none are needed
    labels: folder of label maps (PNG) with the names of the photos, values as in `classes`, and 255 for void; or a file
        .json in COCO's form, whose images have the names of the photos (folders and suffix do not matter). A photo
        that the json lists without annotation has a label map that is all background: only list photos that a person
        has annotated. Maps are kept in `folder_labels` in the data folder
    labelled: how many of the photos with label map are labelled, or a part of them such as "1/8", drawn by the seed
        after val; None for all. The rest counts as unlabelled. Without `labels` there are none.
    val: how many of the photos with label map are kept to measure with, drawn by the seed before the labelled ones
    """
    chosen_classes = _classes(classes, background)
    root = Path(root).expanduser() if root else files.data_root() / "photos"
    photos = _photos(root)
    labels = Path(labels).expanduser() if labels else None
    is_json = labels is not None and labels.suffix.lower() == ".json" and not labels.is_dir()
    content = _instances.read(labels) if is_json else None
    maps = _label_maps(labels, photos) if labels and not content else {}
    mapped = sorted(photos.keys() & content.sizes.keys()) if content else sorted(maps)
    if content and not mapped:
        listed = f"e.g. {min(content.sizes)}" if content.sizes else "it lists none at all"
        raise FileNotFoundError(f"{labels} lists no image with the name of a photo, {listed}")
    datasets.check_count("val", val, "a number of photos with label map")
    left = len(mapped) - val
    if left < 0 or (labels and isinstance(labelled, int) and labelled > left):
        problem = f"labelled={labelled} and val={val}: only {len(mapped)} of the photos have a label map"
        raise ValueError(f"{problem}; ask for fewer, or add label maps")
    if labels is None:
        labelled = 0  # notebooks always name a number
    measured, rest = datasets.draw(mapped, val, seed)
    taught, _, provenance = datasets.choose(rest, left if labelled is None else labelled, seed)
    if taught and len(taught) == len(mapped):
        provenance = f"all {len(taught)} photos with a label map are labelled: no published list is followed"

    unlabelled = sorted(photos.keys() - set(measured) - set(taught))[:limit]
    ids = {"labelled": taught, "unlabelled": unlabelled, "val": measured[:limit]}
    has_map = set(mapped)
    seen = dict.fromkeys(id for split in ids if split in truth_of for id in ids[split] if id in has_map)
    if content:
        painted = _painted(content, seen, chosen_classes)
        remarks, sample = _remarks(content, photos, painted), painted.sample
    else:
        remarks, shown, num_classes = (), {id: maps[id] for id in seen}, chosen_classes.num_classes
        sample = lambda photo: datasets.photo(photo, shown.get(photo.stem), num_classes=num_classes)  # noqa: E731
    samples = {split: tuple(sample(photos[id]) for id in ids[split]) for split in ids}
    return Dataset("folder", chosen_classes, **samples, provenance=provenance, remarks=remarks)


def _classes(classes: Sequence[str] | str | Path | None, background: Sequence[str]) -> Classes:
    if classes is None or not isinstance(classes, str | Path | list | tuple) or not classes:
        raise ValueError(
            f'classes={classes!r}: name what to look for: classes=["cat", "dog"], or the path of a class file '
            "(for run.py: -p class_file '[cat, dog]')"
        )
    if not isinstance(background, list | tuple):
        raise ValueError(f'background={background!r} must be a list of words, such as ["wall", "sky"]')
    if isinstance(classes, str | Path):
        path = Path(classes).expanduser()
        if not path.is_file():
            raise FileNotFoundError(f'{path} is no class file: give the path of one, or a list of names: ["{classes}"]')
        return class_files.read(path)
    return class_files.parse({"background": list(background), "classes": [{"name": name} for name in classes]})


def _photos(root: Path) -> dict[str, Path]:
    """Photos of a folder by id, sorted."""
    if not root.is_dir():
        raise FileNotFoundError(f"{root} is not a folder: root must be the folder of your photos")
    first: dict[str, Path] = {}
    for path in datasets.files_in(root, SUFFIXES):
        other = first.setdefault(path.stem.casefold(), path)  # some file systems do not distinguish A from a
        if other is not path:
            raise ValueError(f"{other.name} and {path.name} of {root} would share the id {path.stem}: rename one")
        if path.is_dir():
            raise IsADirectoryError(f"{path} is a folder with the name of a photo: rename it, or move it away")
    return {path.stem: path for path in first.values()}


def _label_maps(folder: Path, photos: dict[str, Path]) -> dict[str, Path]:
    """Label maps of a folder that belong to a photo, by id."""
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{folder} is not a folder: labels must be the folder of your label maps, or a file .json in COCO's form"
        )
    maps = {path.stem: path for path in datasets.files_in(folder, (".png",), "label map") if path.stem in photos}
    if not maps:
        raise FileNotFoundError(f"{folder} holds no PNG with the name of a photo, e.g. {min(photos)}.png")
    return maps


# Labels from a json


def _painted(content: _instances.Instances, ids: Iterable[str], classes: Classes) -> _instances.Painted:
    """Paint the label maps of these photos; warn of broken annotations, and of categories that are no class."""
    nothing = IGNORE if classes.background is None else classes.background
    found = {id: class_of(name, classes) for id, name in content.categories.items()}
    if not any(value in classes.foreground for value in found.values()):
        known = ", ".join(list(content.categories.values())[:8]) or "none"
        raise ValueError(
            f"no category of {content.path} is a class: its categories are {known}, the classes are "
            f"{', '.join(classes.names[index] for index in classes.foreground)[:200]}"
        )
    values = {id: nothing if value is None else value for id, value in found.items()}
    maps = files.data_root() / "folder_labels"
    painted = _instances.make_maps(content.path, maps, ids, classes, lambda: (content, values), nothing, values)
    _instances.warn_of_broken(painted.broken, "folder")
    lost = Counter(
        content.categories[annotation["category_id"]]
        for id, reason in painted.broken.items()
        if not reason
        for annotation in content.annotations[id]
        if found[annotation["category_id"]] is None
    )
    if lost:
        shown = ", ".join(f"{name} ({count})" for name, count in lost.most_common())
        warnings.warn(
            f"{lost.total()} annotations have categories that are no class: {shown}; they count as "
            f"{'void' if classes.background is None else 'background'}. If a class means one of them, rename the "
            f"category in the json, or add it to the words of the class",
            stacklevel=3,
        )
    return painted


def class_of(name: str, classes: Classes) -> int | None:
    """Class of a category of a json: the class of that name, else the one with a name or word that reads the same."""
    if name in classes.names:
        return classes.names.index(name)
    words = [{_plain(word) for word in (own, *words)} for own, words in zip(classes.names, classes.words, strict=True)]
    fitting = [index for index, own in enumerate(words) if _plain(name) in own]
    if len(fitting) > 1:
        both = " and of ".join(classes.names[index] for index in fitting)
        raise ValueError(f"the category {name!r} could be a word of {both}: give it to one of them")
    return fitting[0] if fitting else None


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]+", " ", name).strip().casefold()


def _remarks(
    content: _instances.Instances, photos: dict[str, Path], painted: _instances.Painted
) -> tuple[tuple[str, str, int, str], ...]:
    """Rows for `plg_utils.check`: photos without annotation, and where json and folder differ."""
    empty = [id for id, reason in painted.broken.items() if not reason and not content.annotations[id]]
    absent, unlisted = sorted(content.sizes.keys() - photos.keys()), sorted(photos.keys() - content.sizes.keys())
    rows = [
        ("warning", "listed photos without annotation", len(empty), f"e.g. {min(empty, default='')}"),
        ("warning", "annotations of images that the json does not list", content.strays, ""),
        ("note", "images of the json that are not in the folder", len(absent), f"e.g. {min(absent, default='')}"),
        ("note", "photos that the json does not list", len(unlisted), f"e.g. {min(unlisted, default='')}"),
    ]
    return tuple(row for row in rows if row[2])
