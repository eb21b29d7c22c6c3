"""Write a section of results/reliability.json, which docs/reliability.md is made of."""

import json
from pathlib import Path
from typing import Any

from plg_utils import files


def tell(section: str, found: dict[str, Any], path: Path | None) -> None:
    """Print what was found as JSON; with a path replace this section of the file."""
    print(json.dumps(found, indent=2))
    if path:
        known = files.read_json(path) if path.exists() else {}
        files.write_json(path, known | {section: found})
