"""Your own photos: a folder of images, the names of what to look for, and labels of some if you have any.

Labels are a folder of label maps (PNG), or objects in the form of COCO or of another tool (`_formats`). Objects are
painted by the rule of `_instances`, as COCO is. Their categories are matched to the classes by name, else by name or
word where case, "_" and "-" do not matter. Objects of a category that is no class are painted, too, as background. A
warning counts them: a category of another spelling ("sofa", where the class is "couch") is lost in the same way. A
category called void (`_instances.VOID`) is void, unless it is a class.

Names of photos, maps and images of a json are the same where they differ only in case, or in how accents are written.
Label Studio puts eight digits before the name of an upload, and leaves out signs such as blanks: these are understood.
"""

import re
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from urllib.parse import unquote

from PIL import Image

from plg_utils import class_files, datasets, files
from plg_utils.datasets import _formats, _instances
from plg_utils.records import Classes, Dataset, Sample

SMOKE = {"classes": ["cat", "dog"]}
ON_BAD_IMAGE = "stop"  # these photos come from anywhere
BESIDE = {".json", ".txt", ".xml", ".yaml", ".yml", ".csv", ".md", ".db", ".ini"}  # no one takes these for photos


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
    bands: Sequence[int] = (),
) -> Dataset:
    """A folder of photos as a data set: all are unlabelled, unless they have a label map.

    root: folder of the photos (`files.SUFFIXES`), by default `photos` in the data folder; without subfolders
    classes: names of what to look for, or a class file (`class_files.read`); 0 is the background, the list starts at 1
    background: words for what is none of the classes, if `classes` is a list of names, or a file with one; none needed
    labels: folder of label maps (PNG) with the names of the photos, values as in `classes`, and 255 for void, or the
        colours of a class file (`_maps.read`); it may be the folder of the photos, if these are no PNG. Or objects
        (`_formats`), whose images have the names of the photos; folders and suffix do not matter. A photo that they
        list without annotation counts as unlabelled, with a warning: tools list those that no one has annotated. Maps
        of objects are kept in `folder_labels` in the data folder
    labelled: how many of the photos with label map are labelled, or a part of them such as "1/8", drawn by the seed
        after val; None for all. The rest counts as unlabelled. Without `labels` there are none.
    val: how many of the photos with label map are kept to measure with, drawn by the seed before the labelled ones
    bands: of photos with more bands than colours, as satellites and microscopes take them: which are red, green and
        blue, such as [4, 3, 2], or one that is grey, counted from 1
    """
    if not isinstance(bands, list | tuple) or len(bands) not in (0, 1, 3):
        raise ValueError(f"bands={bands!r} must be a list of one or three numbers of bands, such as [4, 3, 2]")
    for band in bands:
        datasets.check_count("bands", band, "numbers of bands, counted from 1, such as [4, 3, 2]", least=1)
    chosen_classes = _classes(classes, background)
    root = Path(root).expanduser() if root else files.data_root() / "photos"
    labels = Path(labels).expanduser() if labels else None
    if labels and labels.resolve() == root.resolve():
        labels = root
    photos = _photos(root, has_maps=labels == root)
    _warn_of_the_rest(root, labels)
    objects = _formats.read(labels, has_maps=_has_maps(labels, photos)) if labels else None
    content = _renamed(objects, photos) if objects else None
    maps = _label_maps(labels, photos) if labels and not content else {}
    mapped = _annotated(content, photos) if content else sorted(maps)
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
        remarks, sample = _remarks(content, photos), _paint(content, seen, chosen_classes)
    else:
        _compare_palettes([maps[id] for id in (*taught, *measured) if maps], chosen_classes.num_classes)
        remarks, shown = (), {id: maps[id] for id in seen}
        sample = lambda photo: datasets.photo(photo, shown.get(photo.stem), classes=chosen_classes)  # noqa: E731
    if bands:
        read, how, of_colours = partial(files.read_image, bands=tuple(bands)), f"bands {tuple(bands)}", sample
        sample = lambda photo: datasets.otherwise(of_colours(photo), how, read_image=partial(read, photo))  # noqa: E731
    samples = {split: tuple(sample(photos[id]) for id in ids[split]) for split in ids}
    return Dataset("folder", chosen_classes, **samples, provenance=provenance, remarks=remarks)


def _classes(classes: Sequence[str] | str | Path | None, background: Sequence[str]) -> Classes:
    if not isinstance(classes, str | Path | list | tuple | dict) or not classes:
        remedy = """classes=["cat", "dog"], or the path of a class file (for run.py: -p class_file '[cat, dog]')"""
        raise ValueError(f"classes={classes!r}: name what to look for: {remedy}")
    if not isinstance(background, list | tuple):
        raise ValueError(f'background={background!r} must be a list of words, such as ["wall", "sky"]')
    if isinstance(classes, str) and "," in classes and not ("/" in classes or Path(classes).suffix):
        classes = class_files.names_of(classes)  # cat,dog
    if isinstance(classes, str | Path):
        path = Path(classes).expanduser()
        if not path.is_file():
            remedy = f'["{path}"]' if not path.suffix and len(path.parts) == 1 else "cat, dog"
            raise FileNotFoundError(f"there is no class file {path}: give the path of one, or names: {remedy}")
        return class_files.read(path, background)
    if isinstance(classes, dict):
        return class_files.parse(classes, background)
    if len(classes) == 1 and isinstance(classes[0], str) and len(re.split(class_files.COMMAS, classes[0])) > 1:
        raise ValueError(f"classes={list(classes)!r} is one name with a comma: put each name into a text of its own")
    return class_files.parse(list(classes), background)


def _photos(root: Path, has_maps: bool) -> dict[str, Path]:
    """Photos of a folder by id, sorted; has_maps: a PNG with the name of another photo is its label map."""
    if not root.is_dir():
        raise FileNotFoundError(f"{root} is not a folder: root must be the folder of your photos")
    first: dict[str, Path] = {}
    paths = datasets.files_in(root, files.SUFFIXES)
    if has_maps:
        named = {files.same_name(path.stem) for path in paths if path.suffix.lower() != ".png"}
        paths = [path for path in paths if path.suffix.lower() != ".png" or files.same_name(path.stem) not in named]
    named = {files.same_name(path.stem) for path in paths if path.suffix.lower() not in files.HEIC}
    copied = {path for path in paths if path.suffix.lower() in files.HEIC and files.same_name(path.stem) in named}
    _warn_of_others([path.name for path in paths if path in copied], f"HEIC photos of {root} have a copy beside them")
    for path in (path for path in paths if path not in copied):
        other = first.setdefault(files.same_name(path.stem), path)
        if other is not path:
            remedy = "rename one. If one is a label map, move it into a folder that the option labels names"
            raise ValueError(f"{other.name} and {path.name} of {root} would share the id {path.stem}: {remedy}")
        if path.is_dir():
            raise IsADirectoryError(f"{path} is a folder with the name of a photo: rename it, or move it away")
    photos = {path.stem: path for path in first.values()}
    maps = [path.name for path in photos.values() if _looks_like_a_map(path, photos)]
    if maps:
        problem = f"{len(maps)} files of {root} look like label maps of other photos, e.g. {maps[0]}"
        warnings.warn(f"{problem}: move them into a folder that the option labels names", stacklevel=1)
    return photos


def _warn_of_the_rest(root: Path, labels: Path | None) -> None:
    """Say how many files of the folder are no photos by their suffix, and which folders in it are not searched."""
    entries = sorted(path for path in root.iterdir() if path.name[0] != ".")
    inner = [path.name for path in entries if path.is_dir() and not (labels and path.samefile(labels))]
    suffixes = Counter(path.suffix.lower() for path in entries if not path.is_dir())
    other = {suffix: n for suffix, n in suffixes.most_common() if suffix not in files.SUFFIXES and suffix not in BESIDE}
    kinds = ", ".join(f"{count} {suffix[1:] or 'without suffix'}" for suffix, count in other.items())
    said = [f"files left out: {kinds}"] if other else []
    said += [f"folders not searched: {', '.join(inner[:3])}" + ", ..." * (len(inner) > 3)] if inner else []
    if said:
        warnings.warn(f"{root}: {'; '.join(said)}. Convert or move what you want labelled", stacklevel=1)


def _looks_like_a_map(path: Path, photos: dict[str, Path]) -> bool:
    """Whether a PNG has the name of another photo and a word (dog_mask), and few colours."""
    parts = ((path.stem[: sign.start()], path.stem[sign.end() :]) for sign in re.finditer(r"[\W_]+", path.stem))
    named = any(id in photos and any(map(str.isalpha, word)) for pair in parts for id, word in (pair, pair[::-1]))
    if path.suffix.lower() != ".png" or not named:
        return False
    try:
        with Image.open(path, formats=files.FORMATS) as image:
            return image.getcolors(16) is not None
    except (OSError, ValueError, Image.DecompressionBombError):
        return False  # `_photos.unreadable` says why it cannot be read


def match(names: Iterable[str], photos: dict[str, Path], where: Path) -> dict[str, str]:
    """Ids of the photos that these names mean, by name; names of no photo are left out."""
    known, uploads = {files.same_name(id): id for id in photos}, defaultdict(set)
    for same, id in known.items():  # Label Studio stores the upload "a b.jpg" as 0123abcd-a_b.jpg
        uploads[same].add(id)
        uploads[re.sub(r"[^-\w.]", "", same.strip().replace(" ", "_"))].add(id)
    found = {}
    for name in names:
        same = files.same_name(name) if files.same_name(name) in known else files.same_name(unquote(name))
        meant = {known[same]} if same in known else uploads.get(re.sub("^[0-9a-f]{8}-", "", same), set())
        if same in known or (len(meant) == 1 and re.match("[0-9a-f]{8}-", same)):
            found[name] = min(meant)
        elif len(meant) > 1:
            raise ValueError(f"{name!r} of {where} could be {' or '.join(sorted(meant))}: rename one, and export again")
    for id in files.repeated(found.values()):
        both = " and ".join(repr(name) for name, own in found.items() if own == id)
        raise ValueError(f"{both} of {where} could each belong to {photos[id].name}: rename or remove one")
    return found


def _has_maps(labels: Path, photos: dict[str, Path]) -> bool:
    """Whether a folder holds a PNG with the name of a photo that is not this photo."""
    names, own = {files.same_name(id) for id in photos}, set(photos.values())
    return any(path not in own and files.same_name(path.stem) in names for path in labels.glob("*.[pP][nN][gG]"))


def _label_maps(folder: Path, photos: dict[str, Path]) -> dict[str, Path]:
    """Label maps of a folder that belong to a photo, by id."""
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not there: labels must name what you have; {_formats.KNOWN}")
    own = set(photos.values())  # a folder may hold both
    paths = {path.stem: path for path in datasets.files_in(folder, (".png",), "label map") if path not in own}
    found = match(paths, photos, folder)
    if not found:
        problem = f"{folder} holds no PNG with the name of a photo, e.g. {min(photos)}.png"
        raise FileNotFoundError(f"{problem}; it holds e.g. {min(paths, default='no other PNG')}; {_formats.KNOWN}")
    _warn_of_others(sorted(paths.keys() - found.keys()), f"label maps of {folder} have the name of no photo")
    named = [path for path in folder.iterdir() if path.suffix and path not in own and path not in paths.values()]
    bare, taken = ({files.same_name(id) for id in ids} for ids in (photos.keys() - found.values(), found.values()))
    others = sorted(path.name for path in named if files.same_name(path.stem) in bare)
    _warn_of_others(others, f"files of {folder} have the name of a photo without label map, but are no PNG,")
    objects = (path for path in named if path.suffix in (".json", ".txt"))
    objects = sorted(path.name for path in objects if files.same_name(path.stem) in taken)
    _warn_of_others(objects, f"files of {folder} may hold objects of photos that have a PNG there, too,")
    return {id: paths[name] for name, id in found.items()}


def _warn_of_others(names: list[str], what: str) -> None:
    if names:
        warnings.warn(f"{len(names)} {what} and are not used, e.g. {names[0]}", stacklevel=1)


def _compare_palettes(paths: list[Path], num_classes: int) -> None:
    """Warn of label maps in which the same number has different colours: it may mean different classes."""
    first: dict[int, tuple[tuple, Path]] = {}  # number: its colour, and the map that has it
    for path in paths:
        with suppress(OSError, ValueError), Image.open(path, formats=files.FORMATS) as image:
            colours = image.getpalette("RGB") or [] if image.mode == "P" else []
            for number, colour in enumerate(list(zip(*[iter(colours)] * 3, strict=True))[:num_classes]):
                known, other = first.setdefault(number, (colour, path))
                if known != colour:
                    problem = f"{other} and {path} show the value {number} in different colours, {known} and {colour}"
                    remedy = "write the numbers of the classes with one palette, or as 8-bit grey"
                    warnings.warn(f"{problem}. It may mean different classes; {remedy}", stacklevel=1)
                    return


# Labels from objects


def _renamed(content: _instances.Instances, photos: dict[str, Path]) -> _instances.Instances:
    """The content of a json whose images are called as the photos are, and have their sizes if they have none."""
    ids = match(content.sizes, photos, content.path)
    if not ids:
        listed = f"e.g. {min(content.sizes)}" if content.sizes else "it lists none at all"
        problem = f"{content.path} lists no image with the name of a photo, {listed}"
        raise FileNotFoundError(f"{problem}. The photos are called e.g. {min(photos)}")
    _warn_of_others(sorted(content.sizes.keys() - ids.keys()), f"images of {content.path} have the name of no photo")
    unknown = [name for name in ids if content.sizes[name] is None]
    sizes = content.sizes | {name: files.image_size(photos[ids[name]]) for name in unknown}
    return replace(
        content,
        sizes={ids.get(name, name): size for name, size in sizes.items()},
        annotations={ids.get(name, name): rows for name, rows in content.annotations.items()},
        repeated=frozenset(ids.get(name, name) for name in content.repeated),
    )


def _annotated(content: _instances.Instances, photos: dict[str, Path]) -> list[str]:
    """Ids of the photos with an annotation; of the others no one knows whether they show nothing."""
    listed = sorted(photos.keys() & content.sizes.keys())
    empty = [id for id in listed if not content.annotations[id]]
    if content.strays:
        problem = f"{content.strays} annotations of {content.path} have an image_id that no image has"
        warnings.warn(f"{problem}: they are left out. Export the json again, with all its images", stacklevel=1)
    if len(empty) == len(listed):
        remedy = "annotate them, and export the json again"
        raise ValueError(f"{content.path} has no annotation of the {len(listed)} photos that it lists: {remedy}")
    if empty:
        problem = f"{len(empty)} photos are listed in {content.path} without annotation, e.g. {empty[0]}"
        remedy = "where a person has looked and nothing is there, add a label map or an annotation of the background"
        warnings.warn(f"{problem}. They count as unlabelled; {remedy}", stacklevel=1)
    return sorted(set(listed) - set(empty))


def _paint(content: _instances.Instances, ids: Iterable[str], classes: Classes) -> Callable[[Path], Sample]:
    """Paint the label maps of these photos; warn of broken annotations, and of categories that are no class.

    returns: what makes the sample of a photo
    """
    found = _instances.values_of(content.categories, classes)
    if not any(value in classes.foreground for value in found.values()):
        known = ", ".join(list(content.categories.values())[:8]) or "none"
        names = ", ".join(classes.names[index] for index in classes.foreground)[:200]
        problem = f"no category of {content.path} is a class"
        raise ValueError(f"{problem}: its categories are {known}, the classes are {names}")
    values = {id: classes.nothing if value is None else value for id, value in found.items()}
    maps = files.data_root() / "folder_labels"
    more = [files.sha256(source) for source in content.sources]  # where sizes are those of photos, they count too
    more += [sorted(content.sizes.items(), key=str)] if more else []
    broken, sample = _instances.make_maps(
        content.path, maps, ids, classes, lambda: (content, values), classes.nothing, values, *more
    )
    _instances.warn_of_broken(broken, "folder")
    categories = [row.get("category_id") for id in ids for row in content.annotations[id] if row.get("iscrowd")]
    crowds = sum(found.get(category) in classes.foreground for category in categories)
    if crowds:
        problem = f"{crowds} annotations of {content.path} are crowds (iscrowd 1), which are void"
        warnings.warn(f"{problem}. If they are single objects, set their iscrowd to 0 in the json", stacklevel=1)
    strange = {id: content.categories[id] for id, value in found.items() if value is None}
    strange = {id: name for id, name in strange.items() if not _instances.is_nothing(name, classes)}
    painted = [row["category_id"] for id, reason in broken.items() if not reason for row in content.annotations[id]]
    lost = Counter(strange[category] for category in painted if category in strange)
    if lost:
        shown = ", ".join(f"{name} ({count})" for name, count in lost.most_common())
        problem = f"{lost.total()} annotations have categories that are no class: {shown}"
        counts = f"they count as {'void' if classes.background is None else 'background'}"
        remedy = "If a class means one of them, rename the category in the json, or add it to the words of the class"
        warnings.warn(f"{problem}; {counts}. {remedy}", stacklevel=1)
    return sample


def _remarks(content: _instances.Instances, photos: dict[str, Path]) -> tuple[tuple[str, str, int, str], ...]:
    """Rows for `plg check`: where json and folder differ."""
    ids = {
        "images of the json that are not in the folder": content.sizes.keys() - photos.keys(),
        "photos that the json does not list": photos.keys() - content.sizes.keys(),
    }
    return tuple(("note", finding, len(own), f"e.g. {min(own)}") for finding, own in ids.items() if own)
