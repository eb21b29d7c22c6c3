"""Class files: the names, words, templates and colours of a data set's classes, as YAML."""

import hashlib
import json
import re
import string
import warnings
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from plg_utils import files
from plg_utils.records import IGNORE, Classes

COMMAS = r"[,;|\t\n，；、]"  # what people write between names
BLANK = string.whitespace + "\u00a0\u200b\ufeff"  # around a name; the last two are not seen
NAMES = "class_names.txt"  # beside label maps, as labelme writes it: a name for each value, from 0 on
HEADS = ("name", "names", "class", "classes", "label", "category")  # of a column of names
OURS = {path.stem: path for path in sorted(Path(__file__).parent.glob("datasets/classes/*.yaml"))}  # voc, coco, ...
FILES = (".txt", ".csv", ".yaml", ".yml", ".json")  # how names end that are no names of classes


def read(path: str | Path, background: Sequence[str] = ()) -> Classes:
    """Read a class file; background: words for it, if the file is a list of names.

    A YAML file with the keys `classes` (a list of {name, words, colour}, the last two optional), `templates`
    (sentences with one {} each), `background` (words for what is none of the classes) and `version`. With
    `background`, even an empty list, label 0 is the background and the classes start at 1; without, at 0.
    Words are the name if not given, colours VOC's. Lists of names are read too, as classes with a background: a text
    file (`names_of`, such as labelme's labels.txt), a column of a table (.csv), a list or numbered names in YAML, and
    YOLO's data.yaml (`names`).
    """
    try:
        return parse(_content(path), background)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _content(path: str | Path) -> Any:
    """What a class file or a list of names holds; a column of a table without its head."""
    lines = files.read_lines(path)
    if Path(path).suffix.lower() == ".csv" and len(lines) > 1 and lines[0].strip(BLANK + "'\"").casefold() in HEADS:
        warnings.warn(f"{path}: {lines[0]!r} is the head of the column, and no class", stacklevel=3)
        lines = lines[1:]
    text = "\n".join(lines)
    content = "" if Path(path).suffix.lower() in (".txt", ".csv") else files.parse_yaml(text, "it")
    return names_of(text) if isinstance(content, str) else content


def path_or_names(text: str) -> Any:
    """What --classes names: a class file, by its path or as one of OURS, or names as people write them (`names_of`)."""
    if text in OURS:
        return OURS[text]
    path = Path(text).expanduser()
    named = path.suffix.lower() in FILES and path.suffix != ".csv" and not re.search("[,;\n]", text)
    with suppress(OSError):  # a list may be longer than a path
        if named or path.is_file():
            return path
    return names_of(text)


def words_of(text: str) -> Any:
    """What --background names: words as people write them, or those of a file."""
    found = path_or_names(text)
    return _content(found) if isinstance(found, Path) else found


def names_of(text: str) -> Any:
    """Names in a text, as people write lists: with commas, semicolons or bars, one in each line, or in YAML or JSON.

    A name that looks as if it were a part of a list is a ValueError.
    """
    text = text.strip(BLANK)
    if re.match(r"[\[{]|- |\d+ *:", text):
        return files.parse_yaml(text, "the list of names")
    parts = text.splitlines() if "\n" in text else re.split(COMMAS, text)
    names = [name for part in parts if (name := part.strip(BLANK))]
    names = [name[1:-1] if name[0] in "'\"" and name[0] == name[-1] and len(name) > 2 else name for name in names]
    for name in names:
        if re.search(r"[\x00-\x1f,;|:/\[\]{}\"，；、]|^-|(^|\s)#|^\d+[.)]?\s", name):
            absent = " and no file that is there" * ("/" in name)
            remedy = "write cat, dog, or one name in each line (of a table, keep only the column of names)"
            example = '{background: [], classes: [{name: "cat, black"}, {name: dog}]}'
            problem = f"{files.shown(name)} is no single name{absent}"
            raise ValueError(f"{problem}: {remedy}. A class file takes any name: {example}")
    return names


def parse(content: Any, background: Sequence[str] = ()) -> Classes:
    """Check the content of a class file (see `read`); background: words for it, if the content is a list of names."""
    if isinstance(content, dict) and content and all(re.fullmatch(r"\d+", str(key)) for key in content):
        content = {"names": content}
    if isinstance(content, dict) and "names" in content and "classes" not in content:
        content = yolo_names(content)
    if isinstance(content, list):
        content = {"background": list(background), "classes": _things(content)}
    elif background:
        listed = json.dumps(list(background), ensure_ascii=False)
        raise ValueError(
            f"a class file has the words of the background itself: write `background: {listed}` into it, or into a copy"
        )
    _check_keys(content, "a class file", "classes", "background", "templates", "version")
    if repr(content.get("version", 1)) != "1":  # True is 1, too
        raise ValueError(f"version {content['version']!r} of class files is not known, only 1")
    templates = _texts(content.get("templates", ["a photo of a {}."]), "templates")
    for template in templates:
        if template.count("{}") != 1 or template.count("{") != 1 or template.count("}") != 1:
            raise ValueError(f"the template {template!r} needs one {{}} where the word goes, and no other brace")
    if not isinstance(content["classes"], list) or not content["classes"]:
        raise ValueError("`classes` must be a list of at least one {name, words, colour}, beside the background")

    has_background, palette = "background" in content, files.voc_palette().tolist()
    entries = [{"name": entry} if isinstance(entry, str) else entry for entry in content["classes"]]
    names, words, colours = [], [], []
    if has_background:
        names, colours = ["background"], [tuple(palette[0])]
        words = [_texts([] if content["background"] is None else content["background"], "background", empty=True)]
    chosen = [entry.get("colour") for entry in entries if isinstance(entry, dict)]
    free = [colour for colour in palette if colour not in chosen]
    for entry in entries:
        _check_keys(entry, "a class", "name", "colour", "words")
        (name,) = _texts([entry["name"]], "name")
        names.append(name)
        words.append(_texts(entry.get("words", [name]), f"words of {name}"))
        own = palette[len(colours) % 256]  # VOC's of this value, or the next that no class has chosen
        own = own if own not in chosen else next(colour for colour in free if tuple(colour) not in colours)
        colours.append(_colour(entry.get("colour", own), name))
    if has_background and any(map(is_background, names[1:])):
        problem = "`background` is class 0 by itself, and a class of the list has this name, too"
        raise ValueError(f"{problem}: remove it from the list. The others keep their order, and are numbered from 1 on")
    if repeated := files.repeated(names):
        raise ValueError(f"these class names occur more than once: {', '.join(repeated)}")
    if len(names) > IGNORE:
        raise ValueError(f"{len(names)} classes do not fit a uint8 label map, where {IGNORE} is void")
    _check_one_owner({name: {*map(files.same_name, own)} for name, own in zip(names, words, strict=True)}, "word")
    _check_one_owner({name: {colour} for name, colour in zip(names, colours, strict=True)}, "colour")
    return Classes(tuple(names), tuple(words), tuple(colours), 0 if has_background else None, templates)


def yolo_names(content: dict[str, Any]) -> list:
    """Names in the content of YOLO's data.yaml: a list, or a mapping from 0, 1, 2 and so on."""
    names = content["names"]
    if isinstance(names, dict):
        by_number = {str(number): name for number, name in names.items()}
        names = [by_number.pop(str(number), None) for number in range(len(names))]
        if by_number:
            raise ValueError(f"`names` has the numbers {files.shown([*content['names']])}, which must count from 0 on")
    if not isinstance(names, list) or content.get("nc", len(names)) != len(names):
        raise ValueError(f"`names` must be a list of as many names as `nc` says, not {files.shown(names)}")
    return names


def _things(names: list) -> list:
    """Names of a list without those that stand for 255 and 0 in label maps: labelme's __ignore__, void, background."""
    names = [name.strip() if isinstance(name, str) else name for name in names]  # others may be rows of a class file
    names = names[1:] if names[:1] == ["__ignore__"] else names
    names = names[1:] if names and is_background(names[0]) else names
    names = names[:-1] if names[-1:] == ["void"] else names  # the last name of review's names.txt
    if paths := [name for name in names if isinstance(name, str) and name.casefold().endswith(FILES)]:
        raise ValueError(f"{paths[0]!r} is the name of a file, not of a class: give the path of one that is there")
    return [name if isinstance(name, dict) else {"name": name} for name in names]


def is_background(name: Any) -> bool:
    """Whether this is a name of the background, as tools write it."""
    return isinstance(name, str) and name.strip("_ ").casefold() == "background"


def _check_one_owner(of_classes: dict[str, set], what: str) -> None:
    """Refuse what two classes share: a word that means both, or a colour that shows both."""
    owner: dict[Any, str] = {}
    for name, values in of_classes.items():
        for value in values:
            if owner.setdefault(value, name) != name:
                raise ValueError(f"{owner[value]} and {name} share the {what} {value!r}: give it to one of them")


def content_of(classes: Classes) -> dict[str, Any]:
    """The content of a class file, as `parse` reads it."""
    rows = [
        {"name": name, "words": list(words), "colour": [int(part) for part in colour]}
        for name, words, colour in zip(classes.names, classes.words, classes.colours, strict=True)
    ]
    content: dict[str, Any] = {"version": 1, "templates": list(classes.templates)}
    if classes.background is not None:
        content["background"] = rows.pop(classes.background)["words"]
    return content | {"classes": rows}


def write(path: str | Path, classes: Classes) -> None:
    """Write a class file that `read` turns into equal classes; a ValueError if no class file can hold them."""
    content = content_of(classes)
    with files.atomic(path) as partial:
        text = yaml.safe_dump(content, default_flow_style=None, sort_keys=False, allow_unicode=True, width=110)
        partial.write_text(text, encoding="utf-8")
        with suppress(ValueError):
            if read(partial) == classes:
                return
        raise ValueError(
            f"these classes do not fit a class file, so {path} was not written. With a background, class 0 is black"
            f" and called background, and no word has a line break. The classes are {', '.join(classes.names)}"
        )


def write_beside(maps: Path, classes: Classes) -> None:
    """Write into a folder of label maps what their numbers mean: a class file, and the names from the value 0 on."""
    write(maps / "classes.yaml", classes)
    files.write_text(maps / NAMES, "".join(f"{name}\n" for name in classes.names))


def sha256(classes: Classes) -> str:
    """SHA-256 of what a class file says, in hex: comments and layout of the file do not change it."""
    return hashlib.sha256(json.dumps(asdict(classes), sort_keys=True).encode()).hexdigest()


def _check_keys(mapping: Any, what: str, needed: str, *others: str) -> None:
    allowed = sorted((needed, *others))
    if not isinstance(mapping, dict):
        raise ValueError(f"{what} is a mapping with the keys {', '.join(allowed)}, not {files.shown(mapping)}")
    if unknown := sorted(str(key) for key in mapping if key not in allowed):
        raise ValueError(f"{what} has no key {', '.join(unknown)}, only {', '.join(allowed)}")
    if needed not in mapping:
        raise ValueError(f"{what} needs the key {needed}")


def _texts(values: Any, what: str, *, empty: bool = False) -> tuple[str, ...]:
    if not isinstance(values, list) or not (values or empty):
        raise ValueError(f"{what} must be a list of texts, not {files.shown(values)}")
    for value in values:
        if not isinstance(value, str) or not value.strip():  # YAML reads a bare `no` or `1` as something else
            raise ValueError(f"{what} holds {files.shown(value)}, which is no text; put it in quotes")
    return tuple(value.strip() for value in values)


def _colour(value: Any, name: str) -> tuple[int, int, int]:
    is_colour = isinstance(value, list | tuple) and len(value) == 3
    if not is_colour or not all(type(part) is int and 0 <= part <= 255 for part in value):
        raise ValueError(f"the colour of {name} is {files.shown(value)}, not [red, green, blue] with 0 to 255 each")
    return tuple(value)
