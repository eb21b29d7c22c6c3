"""Class files: the names, words, templates and colours of a data set's classes, as YAML."""

import hashlib
import json
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from plg_utils import files
from plg_utils.records import IGNORE, Classes


def read(path: str | Path) -> Classes:
    """Read a class file.

    A YAML file with the keys `classes` (a list of {name, words, colour}, the last two optional), `templates`
    (sentences with one {} each), `background` (words for what is none of the classes) and `version`. With
    `background`, even an empty list, label 0 is the background and the classes start at 1; without, at 0.
    Words are the name if not given, colours VOC's.
    """
    content = files.read_yaml(path)
    try:
        return parse(content)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def parse(content: Any) -> Classes:
    """Check the content of a class file (see `read`)."""
    _check_keys(
        content, needed={"classes"}, allowed={"version", "templates", "background", "classes"}, what="a class file"
    )
    if repr(content.get("version", 1)) != "1":  # True is 1, too
        raise ValueError(f"version {content['version']!r} of class files is not known, only 1")
    templates = _texts(content.get("templates", ["a photo of a {}."]), "templates")
    for template in templates:
        if template.count("{}") != 1 or template.count("{") != 1 or template.count("}") != 1:
            raise ValueError(f"the template {template!r} needs one {{}} where the word goes, and no other brace")
    if not isinstance(content["classes"], list) or not content["classes"]:
        raise ValueError("`classes` must be a list of at least one {name, words, colour}")

    has_background = "background" in content
    names, words, colours = [], [], []
    palette = files.voc_palette().tolist()
    if has_background:
        names.append("background")
        listed = [] if content["background"] is None else content["background"]
        words.append(_texts(listed, "background", empty=True))
        colours.append(tuple(palette[0]))
    for entry in content["classes"]:
        _check_keys(entry, needed={"name"}, allowed={"name", "words", "colour"}, what="a class")
        (name,) = _texts([entry["name"]], "name")
        names.append(name)
        words.append(_texts(entry.get("words", [name]), f"words of {name}"))
        colours.append(_colour(entry.get("colour", palette[len(colours) % 256]), name))
    repeated = files.repeated(names)
    if repeated:
        raise ValueError(f"these class names occur more than once: {', '.join(repeated)}")
    if len(names) > IGNORE:
        raise ValueError(f"{len(names)} classes do not fit a uint8 label map, where {IGNORE} is void")
    return Classes(tuple(names), tuple(words), tuple(colours), 0 if has_background else None, templates)


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


def sha256(classes: Classes) -> str:
    """SHA-256 of what a class file says, in hex: comments and layout of the file do not change it."""
    return hashlib.sha256(json.dumps(asdict(classes), sort_keys=True).encode()).hexdigest()


def _check_keys(mapping: Any, *, needed: set[str], allowed: set[str], what: str) -> None:
    if not isinstance(mapping, dict):
        raise ValueError(f"{what} is a mapping with the keys {', '.join(sorted(allowed))}, not {files.shown(mapping)}")
    unknown = sorted(str(key) for key in mapping if key not in allowed)
    if unknown:
        raise ValueError(f"{what} has no key {', '.join(unknown)}, only {', '.join(sorted(allowed))}")
    if needed - mapping.keys():
        raise ValueError(f"{what} needs the key {', '.join(sorted(needed - mapping.keys()))}")


def _texts(values: Any, what: str, *, empty: bool = False) -> tuple[str, ...]:
    if not isinstance(values, list) or not (values or empty):
        raise ValueError(f"{what} must be a list of texts, not {files.shown(values)}")
    for value in values:
        if not isinstance(value, str) or not value.strip():  # YAML reads a bare `no` or `1` as something else
            raise ValueError(f"{what} holds {files.shown(value)}, which is no text; put it in quotes")
    return tuple(values)


def _colour(value: Any, name: str) -> tuple[int, int, int]:
    is_colour = isinstance(value, list | tuple) and len(value) == 3
    if not is_colour or not all(type(part) is int and 0 <= part <= 255 for part in value):
        raise ValueError(f"the colour of {name} is {files.shown(value)}, not [red, green, blue] with 0 to 255 each")
    return tuple(value)
