"""The map in the package's docstring is the rule: what is there, in which order, and who may import whom."""

import ast
import re
from pathlib import Path

import pytest

import plg_utils

PACKAGE = Path(plg_utils.__file__).parent
ORDER = re.findall(r"^    (\w+)(/?) ", plg_utils.__doc__, re.MULTILINE)  # (name, "/" if it is a folder)
NAMES = [name for name, _ in ORDER]
CHOICES = [name for name, slash in ORDER if slash and name != "miniature"]
FILES = sorted(path for path in PACKAGE.rglob("*.py"))
CHOICE_FILES = [path for path in FILES if path.parent.name in CHOICES and not path.stem.startswith("_")]


def short(path):
    return path.relative_to(PACKAGE).as_posix()


def stage(module):
    """Position on the map of a dotted name below plg_utils."""
    return NAMES.index(module.split(".")[0])


def imported(tree, here):
    """Dotted names below plg_utils that a file imports, inside functions too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (
                name.name.removeprefix("plg_utils.") for name in node.names if name.name.startswith("plg_utils.")
            )
        elif isinstance(node, ast.ImportFrom) and node.level:
            raise AssertionError(f"{short(here)} has a relative import; write it out")
        elif isinstance(node, ast.ImportFrom) and node.module == "plg_utils":
            yield from (name.name for name in node.names if not name.name.startswith("__"))
        elif isinstance(node, ast.ImportFrom) and node.module.startswith("plg_utils."):
            yield node.module.removeprefix("plg_utils.")


def defined(tree):
    """Names that the top level of a file gives a value."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Assign):
            yield from (target.id for target in node.targets if isinstance(target, ast.Name))
        elif isinstance(node, ast.AnnAssign):
            yield node.target.id


def test_the_map_lists_what_is_there():
    present = {path.stem for path in PACKAGE.glob("*.py")} | {
        path.parent.name for path in PACKAGE.glob("*/__init__.py")
    }
    assert present - {"__init__"} == set(NAMES)
    assert {path.parent.name for path in PACKAGE.glob("*/__init__.py")} == {name for name, slash in ORDER if slash}
    assert len(NAMES) == len(set(NAMES))


@pytest.mark.parametrize("path", FILES, ids=short)
def test_imports_point_up_the_map(path):
    module = short(path).removesuffix(".py").replace("/", ".")
    if module == "__init__":
        return
    for name in imported(ast.parse(path.read_text(encoding="utf-8")), path):
        assert stage(name) <= stage(module), f"{short(path)} imports {name}, which comes later on the map"


@pytest.mark.parametrize("path", FILES, ids=short)
def test_what_is_public_has_a_docstring(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert ast.get_docstring(tree), f"{short(path)} has no docstring"
    for node in tree.body:
        for item in [node, *(node.body if isinstance(node, ast.ClassDef) else [])]:
            if isinstance(item, ast.FunctionDef | ast.ClassDef) and not item.name.startswith("_"):
                assert ast.get_docstring(item), f"{short(path)}: {item.name} has no docstring"


@pytest.mark.parametrize("path", CHOICE_FILES, ids=short)
def test_a_choice_can_be_built_and_smoked(path):
    entry = "load" if path.parent.name == "datasets" else "build"
    assert {entry, "SMOKE"} <= set(defined(ast.parse(path.read_text(encoding="utf-8"))))


@pytest.mark.parametrize("folder", CHOICES)
def test_a_folder_of_choices_finds_them_by_name(folder):
    tree = ast.parse((PACKAGE / folder / "__init__.py").read_text(encoding="utf-8"))
    entry = "load" if folder == "datasets" else "build"
    (function,) = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == entry]
    assert function.args.args[0].arg == "name"
    assert [path for path in CHOICE_FILES if path.parent.name == folder], f"{folder} offers no choice"
