"""Names that a user chooses from: the files of a folder of choices, and any other list."""

from collections.abc import Sequence
from difflib import get_close_matches
from importlib import import_module
from pkgutil import iter_modules
from types import ModuleType

MANY = 20  # names: a longer list would hide the hint after it


def one_of(name: str, names: Sequence[str], what: str) -> str:
    """Return a name if it is one of those that there are, else refuse it and say which come near."""
    if name not in names:
        near = get_close_matches(str(name), names, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        listed = "" if near and len(names) > MANY else f", only {', '.join(names)}"
        raise ValueError(f"there is no {what} {name!r}{listed}{hint}")
    return name


def choice(package: str, name: str, what: str) -> ModuleType:
    """Import the file `name`.py of a folder of choices, or say which there are; `what` they are."""
    names = sorted(module.name for module in iter_modules(import_module(package).__path__))
    return import_module(f"{package}.{one_of(name, [name for name in names if name[0] != '_'], what)}")
