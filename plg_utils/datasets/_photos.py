"""Photos that cannot be read, found before any work: each is decoded once, and remembered for as long as it stays.

Whether a photo is cut short shows only when all of it is decoded. On four busy cores that took 4 ms at VOC's size and
0.13 s at a camera's 12 megapixels: 40 s or 22 minutes for 10,000. So what could be read is remembered by its file's
name, size and time in the data folder, and the next notebook asks no more than these (0.6 s for 10,000). What could
not be read is tried each time: a disk may have been away.
"""

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import PIL

from plg_utils import distributed, files, store

TOGETHER = 256  # photos that wait for the threads


def unreadable(paths: Sequence[Path]) -> dict[Path, str]:
    """Decode the photos that nobody remembers; which cannot be read, and why, in the order given."""
    bad: dict[Path, str] = {}
    with distributed.main_first():  # the others find it remembered
        for folder in dict.fromkeys(path.parent for path in paths):
            bad |= _in_folder(folder, [path for path in paths if path.parent == folder])
    return {path: bad[path] for path in paths if path in bad}


def _in_folder(folder: Path, paths: list[Path]) -> dict[Path, str]:
    memory = _memory_of(folder)
    known = _remembered(memory)
    states = {path: _state(path) for path in paths}
    unknown = [path for path in paths if states[path] is None or known.get(path.name) != states[path]]
    if not unknown:
        return {}
    starts = range(0, len(unknown), TOGETHER)
    bad, read = {}, {}
    with ThreadPoolExecutor(store.READERS) as readers:
        found = (pair for start in starts for pair in _looked_at(unknown[start : start + TOGETHER], readers))
        try:
            for path, told in store.progress(found, total=len(unknown), what=f"looking at {folder.name}"):
                if told:
                    bad[path] = told
                else:
                    read[path.name] = states[path]
        finally:  # what was looked at was looked at, even if somebody stops it
            if read:
                with suppress(OSError):  # the folder may be read-only
                    files.write_json(memory, {"pillow": PIL.__version__, "photos": known | read})
    return bad


def _looked_at(paths: list[Path], readers: ThreadPoolExecutor) -> list[tuple[Path, str]]:
    return list(zip(paths, readers.map(_trouble, paths), strict=True))


def _trouble(path: Path) -> str:
    """Why a photo cannot be read; empty if it can."""
    try:
        files.read_image(path)
    except (OSError, ValueError) as error:
        return str(error)
    return ""


def _state(path: Path) -> list[int] | None:
    """What changes when a file does; None if it is not there."""
    try:
        state = path.stat()
    except OSError:
        return None
    return [state.st_size, state.st_mtime_ns]


def _memory_of(folder: Path) -> Path:
    key = hashlib.sha256(folder.absolute().as_posix().encode()).hexdigest()[:12]
    return files.data_root() / "checked_photos" / f"{folder.name}-{key}.json"


def _remembered(memory: Path) -> dict[str, list[int]]:
    """Photos that this version of Pillow could read, with the states of their files."""
    with suppress(OSError, ValueError, TypeError, KeyError):
        content = files.read_json(memory)
        if content["pillow"] == PIL.__version__:
            return dict(content["photos"])
    return {}
