"""SHA-256 of files, counted once: a file whose size and times of change are as they were is not read again.

The sums are remembered in `contents.json` below the results, so that the next process need not read the photos either.
"""

import os
from contextlib import suppress
from pathlib import Path

from plg_utils import files

_sums: dict[Path, dict[str, list]] = {}  # memory file -> path: [*_state(...), SHA-256]
_unsaved: set[Path] = set()


def sha256(path: str | Path) -> str:
    """SHA-256 of a file, in hex, which is read if its state is another one than when it was read last."""
    path, memory = os.path.abspath(path), _memory()
    with files.reading(path, "a readable file", "put it back, or leave it out"):
        state, known = _state(os.stat(path)), _sums[memory].get(path)
        if known is None or known[:-1] != state:
            known = _sums[memory][path] = [*state, files.sha256(path)]
            _unsaved.add(memory)
    return known[-1]


def _state(status: os.stat_result) -> list[int]:
    """Size, and two times in ns: of the content, which copies and archives set back, and of the file, which none can.

    The second is that of creation on Windows. It also changes when a file is moved, and then the content is read again.
    """
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns]


def save() -> None:
    """Keep the sums for the next process, if there is space and the folder is not read-only.

    Of two processes that save at once the last one wins; no sum gets wrong.
    """
    for memory in list(_unsaved):
        with suppress(OSError):
            files.write_json(memory, _sums[memory])
        _unsaved.discard(memory)


def _memory() -> Path:
    """The file of the sums, which are read if they were not yet; a damaged one is counted again."""
    memory = files.results_root() / "contents.json"
    if memory not in _sums:
        try:
            rows = files.read_json(memory) if memory.exists() else {}
            fits = isinstance(rows, dict) and all(isinstance(row, list) and len(row) == 4 for row in rows.values())
            _sums[memory] = rows if fits else {}
        except (OSError, ValueError):
            _sums[memory] = {}
    return memory
