"""Seed, device, progress, and the manifest by which a stage knows what is already done.

A stage writes its files into one folder, one or more for each image:

    stage = store.stage(folder, name="masks", parameters={...}, checkpoints=("miniature_sam",))
    for id in store.progress(stage.todo(ids, [".json"]), what="masks"):
        files.write_masks(stage.path(id, ".json"), ...)
    stage.finish(images=len(ids))

Stopped anywhere and started again, it goes on with what is missing. Started with other parameters, or after a stage
before it was run with others, it says what differs and begins anew: nothing made otherwise is reused silently.

The same lines in several processes share the work, see distributed.py: `batches`, `each` and `loaded` hand out a share.
"""

import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from importlib import metadata
from json import dumps
from pathlib import Path
from typing import Any, TextIO

import torch
import yaml
from tqdm import tqdm

from plg_utils import checkpoints as weights
from plg_utils import class_files, devices, distributed, files
from plg_utils.records import SPLITS, Classes, Dataset

PACKAGES = (
    "torchvision",
    "segment-anything",
    "openai-clip",
    "timm",
    "segmentation-models-pytorch",
    "transformers",
    "safetensors",
    "numpy",
    "pillow",
    "pycocotools",
)
STALE = 3600  # seconds after which nobody is writing a half-written file any more
READERS = 4  # threads that read ahead; decoding a photo leaves Python's lock to the others
LABELLERS = {  # where the label maps of each lie in a run
    "segment_match": "labels_zero_shot",
    "cam": "labels_cam",
    "sepl": "labels_sepl",
    "boxes": "labels_boxes",
    "ensemble": "labels_ensemble",
}


def run_folder(run: str) -> Path:
    """Folder of a run, below `files.results_root()`; it need not exist yet."""
    return files.results_root() / files.check_stem(run)


def labels_of(labeller: str) -> str:
    """Name of the folder in which a labeller's label maps lie: one of segment_match, cam, sepl, boxes, ensemble."""
    if labeller not in LABELLERS:
        raise ValueError(f"labeller is {labeller!r}; right are {', '.join(LABELLERS)}")
    return LABELLERS[labeller]


def progress(iterable: Iterable, total: int | None = None, what: str = "") -> Iterator:
    """Show on stderr how far a loop is and how long it will take."""
    hidden = not progress_shown()
    return iter(tqdm(iterable, desc=what, total=total, mininterval=1.0, ascii=True, file=_bars(), disable=hidden))


def _bars() -> TextIO:
    """Where bars go: to stderr, but for a notebook that a person runs, in which Jupyter paints stderr like an error."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    looked_at = hasattr(shell, "kernel") and os.environ.get("PLG_PROGRESS") != "stderr"
    return sys.stdout if looked_at else sys.stderr


def progress_shown() -> bool:
    """Whether bars are wanted: unless the environment says PLG_PROGRESS=0, and in one of several processes."""
    return os.environ.get("PLG_PROGRESS", "1") != "0" and distributed.is_main()


def batches(items: Sequence, size: int, what: str = "") -> Iterator[list]:
    """Hand out the items `size` at a time, with a bar that counts single items.

    Where several processes share the work, each gets every n-th batch, and all have done theirs at the end; the
    batches are those of a single process.
    """
    return _shown(_shares(items, size), what)


def each(items: Sequence, what: str = "") -> Iterator:
    """Hand out the items one at a time; else as `batches`."""
    for batch in batches(items, 1, what):
        yield from batch


def loaded(items: Sequence, size: int, read: Callable, what: str = "") -> Iterator[tuple[list, list]]:
    """As `batches`, each with what `read` gives of its items, which threads do while the batch before is worked on."""
    mine = _shares(items, size)
    readers = ThreadPoolExecutor(min(READERS, size))
    try:
        waiting = [readers.submit(read, item) for item in mine[0]] if mine else []
        for batch, following in zip(_shown(mine, what), [*mine, []][1:], strict=True):
            ready, waiting = waiting, [readers.submit(read, item) for item in following]
            yield batch, [future.result() for future in ready]
    finally:
        readers.shutdown(cancel_futures=True)


def _shares(items: Sequence, size: int) -> list[list]:
    """The batches that this process is to do."""
    return [list(items[start : start + size]) for start in distributed.share(range(0, len(items), size))]


def _shown(mine: list[list], what: str) -> Iterator[list]:
    """Hand out batches with a bar; wait at the end for the other processes."""
    what = what if distributed.count() == 1 else f"{what}, process 1 of {distributed.count()}"
    total = sum(len(batch) for batch in mine)
    with tqdm(total=total, desc=what, mininterval=1.0, ascii=True, file=_bars(), disable=not progress_shown()) as bar:
        for batch in mine:
            yield batch
            bar.update(len(batch))
    distributed.wait()


def recorded(run: str) -> dict[str, dict[str, float]]:
    """What was recorded of a committed run's trained numbers: name -> {"miou", "tolerance"}; empty if nothing was."""
    path = files.ROOT / "results" / files.check_stem(run) / "recorded.yaml"
    return yaml.safe_load(path.read_text(encoding="utf-8")) or {} if path.exists() else {}


def say(value: float, record: dict[str, float] | None = None) -> str:
    """Tell a number, or, where one is recorded, whether it lies within the recorded spread: the same everywhere."""
    if record is None:
        return f"{value:.2f}"
    answer = "yes" if abs(value - record["miou"]) <= record["tolerance"] else f"no, {value:.3f}"
    return f"within {record['tolerance']:.2f} of the recorded {record['miou']:.2f}: {answer}"


def split_sha256(dataset: Dataset) -> str:
    """SHA-256 of which images are in which split, in hex."""
    splits = {split: [sample.id for sample in getattr(dataset, split)] for split in SPLITS}
    return _sha256({"name": dataset.name, "splits": splits})


def stage(
    folder: str | Path,
    *,
    name: str,
    parameters: dict[str, Any],
    classes: Classes | None = None,
    checkpoints: Sequence[str | Path] = (),
    parents: Sequence[str | Path] = (),
    seed: int | None = None,
    dataset: Dataset | None = None,
    whole_set: bool = False,
    device: torch.device | str = "cpu",
) -> "Stage":
    """Open the folder of a stage, emptied of what it wrote there if that was made otherwise.

    parameters: everything that changes the result, as plain values
    classes: given if the result depends on the classes or their words
    checkpoints: names or paths of the weights used, whose SHA-256 is what counts; None stands for random weights
    parents: folders of the stages whose files are read, which must be finished
    dataset, whole_set: whose images; if the stage learns from all of them at once, another split is other work
    device: where it ran; recorded, but the same work elsewhere is the same work
    """
    identity = {
        "stage": name,
        "parameters": files.plain(parameters),
        "seed": seed,
        "checkpoints": {_called(item): weights.sha256_of(item) for item in checkpoints if item is not None},
        "classes_sha256": class_files.sha256(classes) if classes else None,
        "dataset": dataset.name if dataset else None,
        "whole_set_sha256": split_sha256(dataset) if dataset and whole_set else None,
        "parents": {Path(parent).name: _fingerprint_of(Path(parent)) for parent in parents},
    }
    details = {
        "split_sha256": split_sha256(dataset) if dataset else None,
        "left_out": getattr(dataset, "left_out", ()),  # photos that cannot be read, if somebody asked to skip them
        "packages": package_versions(),
        "git_commit": git_commit(),
        "device": devices.describe(torch.device(device)),
        "threads": torch.get_num_threads(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "processes": distributed.count(),
    }
    with distributed.main_first():  # it empties the folder, the others find it so
        return Stage(Path(folder), identity, details)


class Stage:
    """A folder that a stage fills; made by `stage`."""

    def __init__(self, folder: Path, identity: dict, details: dict):
        self.folder = folder
        self._started = time.perf_counter()
        self._identity = identity
        self._details = details
        self._manifest = folder / "manifest.json"
        self._outputs = folder / "outputs.txt"  # names of the files that the stage writes, and nobody else
        earlier = _read_manifest(self._manifest) if self._manifest.exists() else {}
        differences = _differences({key: earlier.get(key) for key in identity}, identity) if earlier else []
        if not earlier and self._outputs.exists():  # it is written after the manifest
            differences = ["manifest.json: there, now missing, so that nobody knows how the files were made"]
        if differences:
            removed = self._clear()
            said = f"{folder.name}: begins anew, {removed} files removed, for {'; '.join(differences)}"
            print(said, file=sys.stderr)  # not to stdout: a printed notebook must not depend on what was there before
            earlier = {}
        self._earlier = earlier  # of the same work: this call goes on from it
        if distributed.is_main():
            for path in self._partials():
                if time.time() - path.stat().st_mtime > STALE:
                    path.unlink(missing_ok=True)
        self._state = earlier.get("state")
        if self._state is None:
            self._write("running")

    @property
    def fingerprint(self) -> str:
        """All that this stage and those before it were made with, in one number."""
        return _sha256(self._identity)

    def path(self, id: str, suffix: str) -> Path:
        """Where the stage writes about an image."""
        return self.folder / f"{id}{suffix}"

    def todo(self, ids: Sequence[str], suffixes: Sequence[str], together: int = 1) -> list[str]:
        """Ids of which a file is missing or empty, in the order given; the same for all processes that share the work.

        together: images that go through a network together, as in `batches`. Of such a group all are to do if one is
            missing: in other company the last bits of a result differ, and a stage that was stopped and goes on is to
            write the bytes of one that was not.
        """
        self.register(f"{id}{suffix}" for id in ids for suffix in suffixes)
        groups = [ids[start : start + together] for start in range(0, len(ids), together)]
        missing = [
            id
            for group in groups
            if not all(_holds_something(self.path(id, suffix)) for id in group for suffix in suffixes)
            for id in group
        ]
        missing = distributed.agreed(missing)  # one of them may be at work already
        if missing and self._state == "done":
            self._write("running")
        return missing

    def register(self, names: Iterable[str]) -> None:
        """Declare files that the stage is going to write here, so that it may remove them when it begins anew."""
        if not distributed.is_main():
            return
        known = self._declared()
        new = [name for name in dict.fromkeys(names) if name not in known]
        strange = [name for name in new if (self.folder / name).exists()]
        if strange:
            raise FileExistsError(
                f"{self.folder} holds {strange[0]} and {len(strange) - 1} more that this stage did not write, so that "
                "nobody knows how they were made: move them away, or choose another run"
            )
        if new:
            with files.atomic(self._outputs) as partial:
                partial.write_text("".join(f"{name}\n" for name in [*known, *new]), encoding="utf-8")
                to_disk(partial)

    def finish(self, **counts: Any) -> None:
        """Write the manifest of the finished stage, with what there was to count."""
        distributed.wait()
        self._write("done", counts=counts)
        distributed.wait()

    def _write(self, state: str, **more: Any) -> None:
        self._state = state
        if not distributed.is_main():
            return
        seconds = self._earlier.get("wall_seconds", 0) + time.perf_counter() - self._started
        memory = max(self._earlier.get("peak_memory_mb") or 0, devices.peak_memory_mb() or 0) or None
        content = self._identity | self._details | more
        content |= {
            "state": state,
            "fingerprint": self.fingerprint,
            "wall_seconds": round(seconds, 2),
            "peak_memory_mb": memory,
            "peak_cuda_memory_mb": devices.peak_cuda_memory_mb(),
        }
        files.write_json(self._manifest, content)
        to_disk(self._manifest)

    def _clear(self) -> int:
        """Remove the files that this stage declared in the earlier run; return how many there were."""
        names, partials = self._declared(), self._partials()
        done = [path for name in names if (path := self.folder / name).is_file() and path.parent == self.folder]
        for path in (*partials, *done):
            path.unlink()
        self._outputs.unlink(missing_ok=True)
        return len(done)

    def _partials(self) -> list[Path]:
        """What killed processes left half-written of this stage's files, and what others are writing now."""
        names = self._declared()
        return [path for path in self.folder.glob(".*.partial") if path.name[1:].rsplit(".", 2)[0] in names]

    def _declared(self) -> dict[str, None]:
        """Names of the files that the stage said it writes, in their order."""
        return dict.fromkeys(self._outputs.read_text(encoding="utf-8").splitlines() if self._outputs.exists() else [])


def to_disk(path: Path) -> None:
    """Have the disk hold what a file holds: 4 to 8 ms, which a file that others rest on is worth and an image is not.

    Of what was not forced to the disk, a loss of power leaves the names of the last seconds without bytes: see `todo`.
    """
    with open(path, "rb+") as file:
        os.fsync(file.fileno())


def _holds_something(path: Path) -> bool:
    """Whether a file is there and has bytes; all that a stage writes has some."""
    return path.exists() and path.stat().st_size > 0


def outdated(folder: str | Path, dataset: Dataset) -> str:
    """Why what a stage left is not of the run as it stands, such as other images or an earlier parent; "" if it is."""
    folder = Path(folder)
    manifest = files.read_json(folder / "manifest.json")
    if manifest["state"] != "done":
        return "it is not finished"
    if manifest["split_sha256"] not in (None, split_sha256(dataset)):
        return "it was made for another draw of the images"
    for parent, fingerprint in manifest["parents"].items():
        try:
            known = _fingerprint_of(folder.parent / parent)
        except (OSError, ValueError):
            return f"{parent}, which it was made from, is no longer there"
        if known != fingerprint:
            return f"it was made from an earlier {parent}"
        if reason := outdated(folder.parent / parent, dataset):
            return f"{parent}: {reason}"
    return ""


def _called(checkpoint: str | Path) -> str:
    """Name a checkpoint for a manifest: without where it lies, if it is a file or a folder of one's own."""
    is_own = checkpoint not in weights.LISTED and Path(checkpoint).exists()
    return Path(checkpoint).name if is_own else str(checkpoint)


def _fingerprint_of(parent: Path) -> str:
    """What a finished stage was made with, in one number."""
    manifest = parent / "manifest.json"
    if not manifest.exists():
        raise FileNotFoundError(f"{parent} has no manifest.json: run the stage that makes it first")
    content = _read_manifest(manifest)
    if content["state"] != "done":
        raise FileNotFoundError(f"{parent} is not finished: run the stage that makes it to its end first")
    return content["fingerprint"]


def _read_manifest(path: Path) -> dict:
    content = files.read_json(path)
    fit = isinstance(content, dict) and content.get("state") in ("running", "done")
    if not fit or not isinstance(content.get("fingerprint"), str):
        raise ValueError(f"{path} is no manifest of a stage: delete it, and the stage begins anew")
    return content


def _differences(earlier: dict, now: dict, prefix: str = "") -> list[str]:
    """Name what differs between two nested dicts, as "size: 128, now 256"."""
    found = []
    for key in sorted(earlier.keys() | now.keys()):
        one, other = earlier.get(key), now.get(key)
        if isinstance(one, dict) and isinstance(other, dict):
            found += _differences(one, other, f"{prefix}{key}.")
        elif one != other:
            found.append(f"{prefix}{key}: {_short(one)}, now {_short(other)}")
    return found


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:12]}..."


def _sha256(content: Any) -> str:
    return sha256(dumps(content, sort_keys=True).encode()).hexdigest()


def package_versions() -> dict[str, str]:
    """Versions of Python and of the packages that make the numbers."""
    versions = {"python": platform.python_version(), "torch": str(torch.__version__)}  # with its build, as +cu130
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions


def git_commit() -> str | None:
    """Commit of this repository, with "-dirty" if a file of it was changed; None outside of git."""
    if not (files.ROOT / ".git").exists():  # an installed copy inside somebody else's repository
        return None
    command = ["git", "-C", str(files.ROOT), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout.strip() or None
    except (OSError, subprocess.SubprocessError):
        return None
