"""Your own photos: a folder of images, the names of what to look for, and label maps of some if you have any."""

from collections.abc import Sequence
from pathlib import Path

from plg_utils import datasets, files
from plg_utils.records import Classes, Dataset, Sample

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
SMOKE = {"classes": ["cat", "dog"]}


def load(
    *,
    root: str | Path | None = None,
    labelled: int | None = None,
    seed: int = 0,
    truth_of: tuple[str, ...] = ("labelled",),
    limit: int | None = None,
    classes: Sequence[str] | str | Path | None = None,
    background: Sequence[str] = (),
    labels: str | Path | None = None,
    val: int = 0,
) -> Dataset:
    """A folder of photos as a data set: all are unlabelled, unless they have a label map.

    root: folder of the photos (jpg, png, webp, bmp), by default `photos` in the data folder; it is not searched deeper
    classes: names of what to look for, or a class file (`files.read_classes`); 0 is the background, then comes the list
    background: words for what is none of the classes, if `classes` is a list of names; none are needed
    labels: folder of label maps, PNG, called as the photos, with values as in `classes` and 255 for void
    labelled: how many of the photos with label map are labelled, drawn by the seed; None for all. The others of them
        count as unlabelled. Without `labels` there are none.
    val: how many of the photos with label map are kept to measure with, drawn by the seed before the labelled ones
    """
    chosen_classes = _classes(classes, background)
    root = Path(root).expanduser() if root else files.data_root() / "photos"
    photos = _photos(root)
    maps = _label_maps(Path(labels).expanduser(), photos) if labels else {}
    if val < 0 or (labelled or 0) < 0 or ((labels or val) and val + (labelled or 0) > len(maps)):
        raise ValueError(f"labelled={labelled} and val={val}: only {len(maps)} of the photos have a label map")

    measured, rest = datasets.draw(sorted(maps), val, seed)
    taught, _ = datasets.draw(rest, len(rest) if labelled is None else labelled, seed)
    others = sorted(photos.keys() - set(measured) - set(taught))

    def samples(split: str, ids: list[str]) -> tuple[Sample, ...]:
        seen = maps if split in truth_of else {}
        count = chosen_classes.num_classes
        return tuple(datasets.photo(photos[id], seen.get(id), num_classes=count) for id in ids)

    return Dataset(
        "folder",
        chosen_classes,
        labelled=samples("labelled", taught),
        unlabelled=samples("unlabelled", others[:limit]),
        val=samples("val", measured[:limit]),
    )


def _classes(classes: Sequence[str] | str | Path | None, background: Sequence[str]) -> Classes:
    if classes is None or not isinstance(classes, str | Path) and not len(classes):
        raise ValueError('name what to look for: classes=["cat", "dog"], or the path of a class file')
    if isinstance(classes, str | Path):
        return files.read_classes(Path(classes).expanduser())
    return files.classes_from({"background": list(background), "classes": [{"name": name} for name in classes]})


def _photos(root: Path) -> dict[str, Path]:
    """Photos of a folder by id, sorted."""
    if not root.is_dir():
        raise FileNotFoundError(f"{root} is not a folder: root must be the folder of your photos")
    photos: dict[str, Path] = {}
    as_written = {}
    for path in sorted(root.iterdir()):
        if path.suffix.lower() not in SUFFIXES or path.name.startswith("."):
            continue
        other = as_written.setdefault(path.stem.casefold(), path)  # some file systems do not tell A from a
        if other is not path:
            raise ValueError(f"{other.name} and {path.name} of {root} would share the id {path.stem}: rename one")
        photos[files.check_stem(path.stem)] = path
    if not photos:
        raise FileNotFoundError(f"{root} holds no photo whose name ends in {', '.join(SUFFIXES)}")
    return photos


def _label_maps(folder: Path, photos: dict[str, Path]) -> dict[str, Path]:
    """Label maps of a folder that belong to a photo, by id."""
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder: labels must be the folder of your label maps")
    maps = {path.stem: path for path in sorted(folder.iterdir()) if path.suffix.lower() == ".png"}
    if not maps.keys() & photos.keys():
        raise FileNotFoundError(f"{folder} holds no PNG that is called as one of the photos, e.g. {min(photos)}.png")
    return {id: path for id, path in maps.items() if id in photos}
