"""SHA-256 of files, counted once: a file whose size and times of change are as they were is not read again.

The sums are remembered in `contents.json` below the results, so that the next process need not read the photos either.
"""

import os
from contextlib import suppress
from pathlib import Path

from plg_utils import files

_sums: dict[Path, dict[str, list]] = {}  # memory file -> path: [*state(...), SHA-256]
_unsaved: set[Path] = set()


def sha256(path: str | Path) -> str:
    """SHA-256 of a file, in hex, which is read if its state is another one than when it was read last."""
    path, memory = os.path.abspath(path), _memory()
    with files.reading(path, "a readable file", "put it back, or leave it out"):
        now, known = state(path), _sums[memory].get(path)
        if known is None or known[:-1] != now:
            known = _sums[memory][path] = [*now, files.sha256(path)]
            _unsaved.add(memory)
    return known[-1]


def state(path: str | Path) -> list[int]:
    """Size of a file, and two times in ns: of the content, which copies and archives set back, and of the file.

    No program sets back the second; on Windows it is that of creation. A file that is moved gets a new one, too, and
    then its content is read again.
    """
    status = os.stat(path)
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns]


def save() -> None:
    """Keep the sums for the next process, if the folder takes them; of two processes the last one wins."""
    for memory in list(_unsaved):
        with suppress(OSError):
            files.write_json(memory, _sums[memory])
        _unsaved.discard(memory)


def _memory() -> Path:
    """The file of the sums, which are read if they were not yet; a damaged one is counted again."""
    memory = files.results_root() / "contents.json"
    if memory not in _sums:
        _sums[memory] = {}
        with suppress(OSError, ValueError, TypeError, AttributeError):
            _sums[memory] = {path: [*map(int, now), digest] for path, (*now, digest) in files.read_json(memory).items()}
    return memory
