"""Photos that cannot be read, found before any work starts.

Only decoding the whole photo shows that it is cut off. On four busy cores that took 4 ms at VOC's size and 0.13 s for
12 megapixels: 40 s or 22 minutes for 10,000 photos. So the name, size and time of each readable file are kept in the
data folder, and the next call only compares these (0.6 s for 10,000). Unreadable photos are tried again each time: a
disk may have been away.
"""

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import PIL

from plg_utils import distributed, files, store


def unreadable(paths: Sequence[Path]) -> dict[Path, str]:
    """The photos that cannot be read and why, in the order given. Photos that were readable before are not decoded."""
    bad: dict[Path, str] = {}
    with distributed.main_first():  # the other processes find the results in the data folder
        for folder in dict.fromkeys(path.parent for path in paths):
            bad |= _in_folder(folder, [path for path in paths if path.parent == folder])
    return {path: bad[path] for path in paths if path in bad}


def _in_folder(folder: Path, paths: list[Path]) -> dict[Path, str]:
    key = hashlib.sha256(folder.absolute().as_posix().encode()).hexdigest()[:12]
    memory = files.data_root() / "checked_photos" / f"{folder.name}-{key}.json"
    known: dict[str, list[int]] = {}  # name: size and time of a file that this version of Pillow could read
    with suppress(OSError, ValueError, TypeError, KeyError):
        content = files.read_json(memory)
        known = dict(content["photos"]) if content["pillow"] == PIL.__version__ else {}
    states = {}
    for path in paths:
        with suppress(OSError):
            states[path] = [path.stat().st_size, path.stat().st_mtime_ns]
    unknown = [path for path in paths if path not in states or known.get(path.name) != states[path]]
    if not unknown:
        return {}
    bad, good = {}, {}
    with ThreadPoolExecutor(store.READERS) as readers:
        errors = store.progress(readers.map(_error, unknown), total=len(unknown), what=f"reading {folder.name}")
        try:
            for path, error in zip(unknown, errors, strict=True):
                if error:
                    bad[path] = error
                else:
                    good[path.name] = states[path]
        finally:  # an interrupted call keeps what was read
            readers.shutdown(cancel_futures=True)
            with suppress(OSError):  # the data folder may be read-only
                if good:
                    files.write_json(memory, {"pillow": PIL.__version__, "photos": known | good})
    return bad


def _error(path: Path) -> str:
    """Why a photo cannot be read; empty if it can."""
    try:
        files.read_image(path)
    except (OSError, ValueError) as error:
        return str(error)
    return ""
