"""SHA-256 of files, counted once: a file whose size and time of change are as they were is not read again.

The sums are remembered in `contents.json` below the results, so that the next process need not read the photos either.
"""

import os
from pathlib import Path

from plg_utils import files

_sums: dict[Path, dict[str, list]] = {}  # memory file -> path: [size, time of change in ns, SHA-256]
_unsaved: set[Path] = set()


def sha256(path: str | Path) -> str:
    """SHA-256 of a file, in hex. An edit that keeps both size and time of change to the nanosecond goes unnoticed."""
    path, memory = os.path.abspath(path), _memory()
    with files.reading(path, "a readable file", "put it back, or leave it out"):
        status = os.stat(path)
        known = _sums[memory].get(path)
        if known is None or known[:2] != [status.st_size, status.st_mtime_ns]:
            known = _sums[memory][path] = [status.st_size, status.st_mtime_ns, files.sha256(path)]
            _unsaved.add(memory)
    return known[2]


def save() -> None:
    """Keep the sums for the next process. Of two processes that save at once the last one wins; no sum gets wrong."""
    for memory in list(_unsaved):
        files.write_json(memory, _sums[memory])
        _unsaved.discard(memory)


def _memory() -> Path:
    """The file of the sums, which are read if they were not yet; a damaged one is counted again."""
    memory = files.results_root() / "contents.json"
    if memory not in _sums:
        try:
            rows = files.read_json(memory) if memory.exists() else {}
            fits = isinstance(rows, dict) and all(isinstance(row, list) and len(row) == 3 for row in rows.values())
            _sums[memory] = rows if fits else {}
        except ValueError:
            _sums[memory] = {}
    return memory
