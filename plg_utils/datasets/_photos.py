"""Photos that cannot be read, or not as they are, found before any work starts.

Only decoding the whole photo shows that it is cut off. On four busy cores that took 4 ms at VOC's size and 0.13 s for
12 megapixels: 40 s or 22 minutes for 10,000 photos. So the name, size and times of each readable file are kept in the
data folder, and the next call only compares these (0.6 s for 10,000). Unreadable photos are tried again each time: a
disk may have been away.
"""

import hashlib
import warnings
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from itertools import islice
from pathlib import Path

import PIL

from plg_utils import contents, distributed, files, store

SHOWN = 10  # photos that a warning names
RULES = 5  # number of the rules in `files.read_photo`: what was read by others is read again


def unreadable(paths: Sequence[Path], bands: Sequence[int] = ()) -> dict[Path, str]:
    """The photos that cannot be read and why, in the order given. Photos that were readable before are not decoded.

    A warning tells which photos are read in part or changed. bands: as in `files.read_photo`
    """
    bad: dict[Path, str] = {}
    changed: dict[str, str] = {}  # name: what of the file the image does not show
    folders: dict[Path, list[Path]] = {}
    for path in paths:
        folders.setdefault(path.parent, []).append(path)
    with distributed.main_first():  # the other processes find the results in the data folder
        for folder, own in folders.items():
            found, remarks = _in_folder(folder, own, bands)
            bad, changed = bad | found, changed | remarks
    if changed:
        problem = f"photos that are read in part or changed: {len(changed)}. Export as 8-bit RGB what is wrong so"
        remarks = [f"{name}: {remark}" for name, remark in changed.items()]
        warnings.warn(f"{problem}:{listed(remarks, SHOWN)}", stacklevel=1)
    return {path: bad[path] for path in paths if path in bad}


def listed(reasons: Collection[str], most: int) -> str:
    """The first of these reasons, each in a line of its own, and how many more there are."""
    more = [f"... and {len(reasons) - most} more"] if len(reasons) > most else []
    return "".join(f"\n  {reason}" for reason in [*islice(reasons, most), *more])


def _in_folder(folder: Path, paths: list[Path], bands: Sequence[int]) -> tuple[dict[Path, str], dict[str, str]]:
    """Why photos of a folder cannot be read, and what the others do not show of their files."""
    key = hashlib.sha256(folder.absolute().as_posix().encode()).hexdigest()[:12]
    memory = files.data_root() / "checked_photos" / f"{folder.name}-{key}.json"
    known: dict[str, list] = {}  # name: `contents.state` of a file that could be read in this way, and the remark
    way = {"pillow": PIL.__version__, "rules": RULES, "bands": list(bands)}
    with suppress(OSError, ValueError, TypeError, KeyError):
        content = files.read_json(memory)
        known = dict(content["read"]) if content["way"] == way else {}
    states = {}
    for path in paths:
        with suppress(OSError):
            states[path] = contents.state(path)
    unknown = [path for path in paths if path not in states or known.get(path.name, ())[:-1] != states[path]]
    bad, good = {}, {}
    with ThreadPoolExecutor(store.READERS) as readers:
        found = readers.map(partial(_look, bands=bands), unknown)
        found = store.progress(found, total=len(unknown), what=f"reading {folder.name}") if unknown else found
        try:
            for path, (error, remark) in zip(unknown, found, strict=True):
                if error:
                    bad[path] = error
                else:
                    good[path.name] = [*states[path], remark]
        finally:  # an interrupted call keeps what was read
            readers.shutdown(cancel_futures=True)
            with suppress(OSError):  # the data folder may be read-only
                if good:
                    files.write_json(memory, {"way": way, "read": known | good})
    known |= good
    remarks = {path.name: known[path.name][-1] for path in paths if path not in bad}
    return bad, {name: remark for name, remark in remarks.items() if remark}


def _look(path: Path, bands: Sequence[int]) -> tuple[str, str]:
    """Why a photo cannot be read or its name not be used, and what the image does not show of the file."""
    try:
        files.check_stem(path.stem)
        return "", files.read_photo(path, bands)[1]
    except (OSError, ValueError) as error:
        return str(error), ""
