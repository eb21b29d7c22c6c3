"""The cells of a notebook and the parameters that it names, read without executing anything."""

import ast
import json
from pathlib import Path
from typing import Any


def source(cell: dict) -> str:
    """Text of a cell; files hold it whole or as a list of lines."""
    return "".join(cell["source"])


def tagged(notebook: Path, tag: str) -> list[str]:
    """Texts of a notebook's code cells with this tag."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return [source(cell) for cell in cells if tag in cell["metadata"].get("tags", []) and cell["cell_type"] == "code"]


def code_of(notebook: Path) -> str:
    """All code of a notebook."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return "\n".join(source(cell) for cell in cells if cell["cell_type"] == "code")


def assigned(code: str) -> dict[str, Any]:
    """Names and values of a cell of literals; a value that is no literal becomes None."""
    values = {}
    for statement in ast.parse(code).body:
        targets = statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, "target", None)]
        for target in targets:
            if isinstance(target, ast.Name):
                try:
                    values[target.id] = ast.literal_eval(statement.value)
                except ValueError:
                    values[target.id] = None
    return values


def defaults(notebook: Path) -> dict[str, Any]:
    """Names and default values in the cell of a notebook that is tagged `parameters`."""
    return assigned("\n".join(tagged(notebook, "parameters")))
