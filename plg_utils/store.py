"""A stage's folder: what is done, what it was made from, and what is outdated. Progress bars.

A stage writes its files into one folder, one or more for each image:

    stage = store.stage(folder / "masks", parameters={...}, checkpoints=["miniature_sam"], dataset=data)
    stage.fill(samples, [".json"], read=Sample.image, make=find_masks, write=write, at_once=8)

A stage that was stopped goes on with what is missing. With other parameters, weights or classes it begins again, and
says what differs. Where only the content of some photos changed, or what an earlier stage made of them, the files of
these images alone are made again. A file name is never enough: `outputs.json` holds, for each file, what it was made
from.

The same lines in several processes share the work, see distributed.py: `batches` and `loaded` hand out a share.
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
from tqdm import tqdm

from plg_utils import checkpoints as weights
from plg_utils import class_files, contents, devices, distributed, files
from plg_utils.records import SPLITS, Dataset, Sample

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
REMEDY = "delete the folder, and the stage starts again"
OUTPUTS = ("outputs.json", "outputs.txt")  # the second was written before version 0.2
STALE = 3600  # seconds after which a half-written file belongs to a process that died
READERS = 4  # threads that read ahead; decoding a photo leaves Python's lock to the others


def run_folder(run: str) -> Path:
    """Folder of a run, below `files.results_root()`; it need not exist yet."""
    return files.results_root() / files.check_stem(run)


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


def split_sha256(dataset: Dataset) -> str:
    """SHA-256 of which images are in which split, in hex."""
    splits = {split: [sample.id for sample in getattr(dataset, split)] for split in SPLITS}
    return digest({"name": dataset.name, "splits": splits})


def stage(
    folder: str | Path,
    *,
    parameters: dict[str, Any],
    dataset: Dataset,
    classes: bool = False,
    checkpoints: Sequence[str | Path | None] = (),
    parents: Sequence[str | Path] = (),
    seed: int | None = None,
    learns_from: Sequence[str] = (),
    device: torch.device | str = "cpu",
) -> "Stage":
    """Open the folder of a stage. What was made otherwise is removed first, and stderr says why.

    parameters: everything that changes the result, as plain values
    classes: whether the result depends on the classes or their words
    checkpoints: names or paths of the weights used; their SHA-256 counts. None stands for random weights
    parents: folders of the stages whose files are read, which must be finished
    learns_from: for a stage that learns from all images at once, the splits whose label maps it reads. The content of
        the labelled and unlabelled photos and of these label maps is then part of what it is
    device: recorded only: the same work on another device is the same work
    """
    folder = Path(folder)
    identity = {
        "stage": folder.name,
        "parameters": files.plain(parameters),
        "seed": seed,
        "checkpoints": {_called(item): weights.sha256_of(item) for item in checkpoints if item is not None},
        "classes_sha256": class_files.sha256(dataset.classes) if classes else None,
        "dataset": dataset.name,
        "learns_from": list(learns_from),
        "inputs_sha256": _inputs_sha256(dataset, parents, learns_from) if learns_from else None,
        "parents": {Path(parent).name: _fingerprint_of(Path(parent)) for parent in parents},
    }
    details = {
        "split_sha256": split_sha256(dataset),
        "left_out": getattr(dataset, "left_out", ()),  # photos that cannot be read, if the user asked to skip them
        "packages": package_versions(),
        "git_commit": git_commit(),
        "device": devices.describe(torch.device(device)),
        "threads": torch.get_num_threads(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "processes": distributed.count(),
    }
    with distributed.main_first():  # the main process empties the folder, the others find it empty
        return Stage(folder, identity, details, [] if learns_from else [Path(parent) for parent in parents])


class Stage:
    """A folder that a stage fills; made by `stage`."""

    def __init__(self, folder: Path, identity: dict, details: dict, parents: Sequence[Path] = ()):
        self.folder = folder
        self._started = time.perf_counter()
        self._identity = identity
        self._details = details
        self._manifest = folder / "manifest.json"
        self._parents = {parent.name: _made_from(parent) for parent in parents}  # name: id: what its files stem from
        earlier = _read_manifest(self._manifest) if self._manifest.exists() else {}
        differences = _differences({key: earlier.get(key) for key in identity}, identity) if earlier else []
        if not earlier and _outputs_of(folder):  # manifest.json is written first
            differences = ["manifest.json is missing, so how the files were made is unknown"]
        if differences:
            removed = self._clear()
            # Not to stdout: what a notebook prints must not depend on what was there before.
            print(f"{folder.name}: starts again, {removed} files removed; {'; '.join(differences)}", file=sys.stderr)
            earlier = {}
        self._earlier = earlier  # of the same work: this call continues it
        _say_older_commit(folder, earlier.get("git_commit"), details["git_commit"])
        if distributed.is_main():
            for path in self._partials():
                if time.time() - path.stat().st_mtime > STALE:
                    path.unlink(missing_ok=True)
        self._state = earlier.get("state")
        if self._state is None:
            self._write("running")

    @property
    def fingerprint(self) -> str:
        """SHA-256 of all that this stage and those before it were made with, the photos aside."""
        return digest(self._identity)

    def path(self, id: str, suffix: str) -> Path:
        """Where the stage writes about an image."""
        return self.folder / f"{id}{suffix}"

    def todo(self, samples: Sequence[Sample], suffixes: Sequence[str], together: int = 1) -> list[Sample]:
        """Samples to work on: those with a file that is missing, empty, or made from something that has changed since.

        together: images that go through a network together, as in `batches`. If a file of such a group is missing, all
            of the group are done: in other company the last bits of a result differ, and a stage that was stopped must
            write the bytes of one that was not. Of changed photos only they themselves are done
        returns: in the order given; the same for all processes that share the work
        """
        ids = distributed.agreed(self._todo(samples, suffixes, together) if distributed.is_main() else None)
        if ids and self._state == "done":
            self._write("running")
        return [sample for sample in samples if sample.id in ids]

    def _todo(self, samples: Sequence[Sample], suffixes: Sequence[str], together: int) -> set[str]:
        made_from = {sample.id: self._parts(sample) for sample in samples}
        contents.save()
        changed = self.register({f"{id}{suffix}": parts for id, parts in made_from.items() for suffix in suffixes})
        changed = {id for id in made_from if any(f"{id}{suffix}" in changed for suffix in suffixes)}
        ids = list(made_from)
        groups = [ids[start : start + together] for start in range(0, len(ids), together)]

        def complete(id: str) -> bool:
            return id in changed or all(_holds_something(self.path(id, suffix)) for suffix in suffixes)

        return changed | {id for group in groups if not all(map(complete, group)) for id in group}

    def _parts(self, sample: Sample) -> dict[str, str]:
        """What the files of an image are made from: its photo, and what earlier stages made of it."""
        of_parents = {name: made[sample.id] for name, made in self._parents.items() if sample.id in made}
        return {"photo": sample.content[:16]} | of_parents

    def register(self, names: Iterable[str] | dict[str, dict[str, str]]) -> list[str]:
        """Declare files that the stage will write; only these does it ever remove.

        names: perhaps with what each is made from, as part -> digest
        returns: the files whose parts have changed; they are removed
        """
        if not distributed.is_main():
            return []
        known, given = _outputs_of(self.folder), names if isinstance(names, dict) else {name: {} for name in names}
        strange = [name for name in given if name not in known and (self.folder / name).exists()]
        if strange:
            raise FileExistsError(
                f"{self.folder} holds {strange[0]} and {len(strange) - 1} more files that this stage did not write. "
                "How they were made is unknown: move them away, or choose another run"
            )
        changed = [name for name, parts in given.items() if known.get(name, parts) != parts]
        self._say_changed(changed, known, given)
        for name in changed:
            (self.folder / name).unlink(missing_ok=True)
        if any(known.get(name) != parts for name, parts in given.items()):
            with files.atomic(self.folder / "outputs.json") as partial:
                rows = (f"{dumps(name)}: {dumps(parts)}" for name, parts in (known | given).items())
                partial.write_text("{\n" + ",\n".join(rows) + "\n}\n", encoding="utf-8")
                to_disk(partial)
        return changed

    def _say_changed(self, changed: list[str], known: dict, given: dict) -> None:
        if changed:
            parts = {part for name in changed for part in given[name] if known[name].get(part) != given[name][part]}
            count, total = (len({Path(name).stem for name in names}) for names in (changed, given))
            print(
                f"{self.folder.name}: {count} of {total} images are made again, e.g. {Path(changed[0]).stem}. "
                f"What changed: {', '.join(sorted(parts))}",
                file=sys.stderr,
            )

    def fill(
        self,
        samples: Sequence[Sample],
        suffixes: Sequence[str],
        *,
        read: Callable[[Sample], Any],
        make: Callable[[list], Iterable],
        write: Callable[[str, Any], None],
        at_once: int = 1,
        alone: bool = False,
    ) -> "Stage":
        """Make the files that are missing, batch by batch. The caller signs off with `finish`.

        read: from a sample to what `make` needs of it, in threads, while the batch before is worked on
        make: from a list of these to results of the same order; write: one result, by the id of its image
        alone: a result does not depend on the other images of its batch
        """
        todo = self.todo(samples, suffixes, 1 if alone else at_once)
        for batch, inputs in loaded(todo, at_once, read, self.folder.name):
            for sample, result in zip(batch, make(inputs), strict=True):
                write(sample.id, result)
        return self

    def finish(self, **counts: Any) -> "Stage":
        """Write the manifest of the finished stage, with what there was to count."""
        distributed.wait()
        self._write("done", counts=counts)
        distributed.wait()
        return self

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
        """Remove the files that this stage declared earlier; return how many there were."""
        names, partials = _outputs_of(self.folder), self._partials()
        done = [path for name in names if (path := self.folder / name).is_file() and path.parent == self.folder]
        for path in (*partials, *done):
            path.unlink()
        for name in OUTPUTS:
            (self.folder / name).unlink(missing_ok=True)
        return len(done)

    def _partials(self) -> list[Path]:
        """Half-written files of this stage, from processes that were killed or are at work now."""
        names = _outputs_of(self.folder)
        return [path for path in self.folder.glob(".*.partial") if path.name[1:].rsplit(".", 2)[0] in names]


def _outputs_of(folder: Path) -> dict[str, dict[str, str]]:
    """Files that a stage declared, each with what it is made from; a version before 0.2 kept the names alone."""
    new, old = (folder / name for name in OUTPUTS)
    if new.exists():
        outputs = files.read_json(new, REMEDY)
        if not isinstance(outputs, dict) or not all(isinstance(parts, dict) for parts in outputs.values()):
            raise ValueError(f"{new} is no list of a stage's files; {REMEDY}")
        return outputs
    return {name: {} for name in old.read_text(encoding="utf-8").splitlines()} if old.exists() else {}


def _made_from(folder: Path) -> dict[str, str]:
    """For each image, a digest of what a stage's files about it were made from."""
    return {Path(name).stem: digest(parts)[:16] for name, parts in _outputs_of(folder).items() if parts}


def _inputs_sha256(dataset: Dataset, parents: Sequence[str | Path], learns_from: Sequence[str]) -> str:
    """Digest of all images that a stage learns from: photos, what earlier stages made of them, label maps."""
    made = [_made_from(Path(parent)) for parent in parents]
    rows = [
        [sample.id, sample.content, [of.get(sample.id) for of in made], split in learns_from and sample.truth_content]
        for split in ("labelled", "unlabelled")
        for sample in getattr(dataset, split)
    ]
    contents.save()
    return digest(rows)


_said = set()  # folders of runs of which it was said


def _say_older_commit(folder: Path, earlier: str | None, now: str | None) -> None:
    """Say once for each run that its results are of another commit of this code. They are kept."""
    if earlier and now and earlier != now and folder.parent not in _said and distributed.is_main():
        print(
            f"{folder.parent.name} holds results of commit {earlier[:12]} of this code; this is {now[:12]}. They are "
            f"kept: delete {folder.parent} to make them again",
            file=sys.stderr,
        )
        _said.add(folder.parent)


def to_disk(path: Path) -> None:
    """Flush a file to the disk (4 to 8 ms). Used for manifests and training state.

    The files of single images are not flushed: after a power cut some may be empty. `todo` treats them as missing.
    """
    with open(path, "rb+") as file:
        os.fsync(file.fileno())


def _holds_something(path: Path) -> bool:
    """Whether a file exists and is not empty."""
    return path.exists() and path.stat().st_size > 0


def outdated(folder: str | Path, dataset: Dataset) -> str:
    """Why the results of a stage do not belong to the run as it is now; "" if they do."""
    folder = Path(folder)
    manifest = files.read_json(folder / "manifest.json")
    if manifest["state"] != "done":
        return "it is not finished"
    if manifest["split_sha256"] not in (None, split_sha256(dataset)):
        return "it was made for another split of the images"
    for parent, fingerprint in manifest["parents"].items():
        try:
            known = _fingerprint_of(folder.parent / parent)
        except (OSError, ValueError):
            return f"{parent}, which it was made from, is gone"
        if known != fingerprint:
            return f"it was made from an earlier {parent}"
        if reason := outdated(folder.parent / parent, dataset):
            return f"{parent}: {reason}"
    parents = [folder.parent / parent for parent in manifest["parents"]]
    if learns_from := manifest.get("learns_from"):
        can_tell = all(sample.read_truth for split in learns_from for sample in getattr(dataset, split))
        if can_tell and manifest["inputs_sha256"] != _inputs_sha256(dataset, parents, learns_from):
            return "photos or labels have changed since"
        return ""
    outputs, of_parents = _outputs_of(folder), {parent.name: _made_from(parent) for parent in parents}
    by_id = {Path(name).stem: parts for name, parts in outputs.items() if parts}
    for sample in [sample for split in SPLITS for sample in getattr(dataset, split) if sample.id in by_id]:
        now = {"photo": sample.content[:16]}
        now |= {name: made[sample.id] for name, made in of_parents.items() if sample.id in made}
        if by_id[sample.id] != now:
            return f"{sample.id} has changed since ({', '.join(k for k in now if by_id[sample.id].get(k) != now[k])})"
    return ""


def _called(checkpoint: str | Path) -> str:
    """Name a checkpoint for a manifest: without its folder, if it is a file or a folder of the user's."""
    is_own = checkpoint not in weights.LISTED and Path(checkpoint).exists()
    return Path(checkpoint).name if is_own else str(checkpoint)


def _fingerprint_of(parent: Path) -> str:
    """Fingerprint of a finished stage."""
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
        raise ValueError(f"{path} is no manifest of a stage: delete it, and the stage starts again")
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


def digest(content: Any) -> str:
    """SHA-256 of plain values, in hex."""
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
    if not (files.ROOT / ".git").exists():  # an installed copy inside another repository
        return None
    command = ["git", "-C", str(files.ROOT), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout.strip() or None
    except (OSError, subprocess.SubprocessError):
        return None
