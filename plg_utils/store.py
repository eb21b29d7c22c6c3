"""A stage's folder: what is done, what it was made from, and what is outdated. Progress bars.

A stage writes its files into one folder, one or more for each image:

    stage = store.stage(folder / "masks", parameters={...}, checkpoints=["miniature_sam"], dataset=data)
    stage.fill(samples, [".json"], read=Sample.image, make=find_masks, write=write, at_once=8)

A stage that was stopped goes on with what is missing. With other parameters, weights or classes it begins again, and
says what differs. Where only the content of some photos changed, or what an earlier stage made of them, the files of
these images alone are made again. A file name is never enough: `outputs.json` holds, for each file, what it was made
from.

The same lines in several processes share the work, see distributed.py: `loaded` hands out a share.
"""

import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from hashlib import sha256
from importlib import metadata
from json import dumps
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from plg_utils import checkpoints as weights
from plg_utils import class_files, contents, devices, distributed, files
from plg_utils.records import SPLITS, Dataset, Sample

PACKAGES = "torchvision segment-anything openai-clip timm segmentation-models-pytorch transformers safetensors"
PACKAGES += " numpy pillow pycocotools"
REMEDY = "delete the folder, and the stage starts again"
HASHED = {  # what a SHA-256 in a manifest stands for
    "classes_sha256": "the classes, or their order, words or colours",
    "inputs_sha256": "photos or label maps",
    "tags_sha256": "tags",
}
HOW = ("packages", "git_commit", "device", "threads", "instructions", "deterministic", "processes")  # a stage is made
STALE = 3600  # seconds after which a half-written file belongs to a process that died
READERS = 4  # threads that read ahead; decoding a photo leaves Python's lock to the others


def run_folder(run: str) -> Path:
    """Folder of a run, below `files.results_root()`; it need not exist yet."""
    return files.results_root() / files.check_stem(run)


def progress(iterable: Iterable, total: int | None = None, what: str = "") -> Iterator:
    """Show on stderr how far a loop is and how long it will take."""
    return iter(_bar(iterable, total=total, desc=what))


def _bar(iterable: Iterable | None = None, **options: Any) -> tqdm:
    """A bar on stderr, but for a notebook that a person runs, in which Jupyter paints stderr like an error."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    looked_at = hasattr(shell, "kernel") and os.environ.get("PLG_PROGRESS") != "stderr"
    file = sys.stdout if looked_at else sys.stderr
    return tqdm(iterable, mininterval=1.0, ascii=True, file=file, disable=not progress_shown(), **options)


def progress_shown() -> bool:
    """Whether bars are wanted: unless the environment says PLG_PROGRESS=0, and in one of several processes."""
    return os.environ.get("PLG_PROGRESS", "1") != "0" and distributed.is_main()


def loaded(items: Sequence, size: int, read: Callable, what: str = "") -> Iterator[tuple[list, list]]:
    """Hand out the items `size` at a time, with what `read` gives of each; threads read the next batch meanwhile.

    A bar counts items. Where several processes share the work, each gets every n-th batch, and all have done theirs at
    the end; the batches are those of a single process.
    """
    starts = range(0, len(items), size)[distributed.rank() :: distributed.count()]
    mine = [list(items[start : start + size]) for start in starts]
    what = what if distributed.count() == 1 else f"{what}, process 1 of {distributed.count()}"
    readers = ThreadPoolExecutor(min(READERS, size))
    try:
        waiting = [readers.submit(read, item) for item in mine[0]] if mine else []
        with _bar(total=sum(map(len, mine)), desc=what) as bar:
            for batch, following in zip(mine, [*mine, []][1:], strict=True):
                ready, waiting = waiting, [readers.submit(read, item) for item in following]
                yield batch, [future.result() for future in ready]
                bar.update(len(batch))
        distributed.wait()
    finally:
        readers.shutdown(cancel_futures=True)


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
    for parent in map(Path, parents):
        _fingerprint_of(parent)
        if reason := outdated(parent, dataset, is_parent=True):
            raise ValueError(f"{parent} cannot be used: {reason}. Run the notebook that makes it again")
    identity = {
        "stage": folder.name,
        "parameters": files.plain(parameters),
        "seed": seed,
        "checkpoints": _sums_of([item for item in checkpoints if item is not None]),
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
        self._works = self._state != "done"  # whether this call makes files: else HOW stays that of the earlier call
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

        together: images that go through a network together, as in `loaded`. If a file of such a group is missing, all
            of the group are done: in other company the last bits of a result differ, and a stage that was stopped must
            write the bytes of one that was not. Of changed photos only they themselves are done
        returns: in the order given; the same for all processes that share the work
        """
        ids = distributed.agreed(self._todo(samples, suffixes, together) if distributed.is_main() else None)
        if ids and self._state == "done":
            self._write("running")
        return [sample for sample in samples if sample.id in ids]

    def _todo(self, samples: Sequence[Sample], suffixes: Sequence[str], together: int) -> set[str]:
        made_from = {sample.id: _parts_of(sample, self._parents) for sample in samples}
        contents.save()
        changed = self.register({f"{id}{suffix}": parts for id, parts in made_from.items() for suffix in suffixes})
        changed = {id for id in made_from if any(f"{id}{suffix}" in changed for suffix in suffixes)}
        ids = list(made_from)
        groups = [ids[start : start + together] for start in range(0, len(ids), together)]

        def complete(id: str) -> bool:
            """Whether the files of an image are there and not empty, or it is done anyway."""
            return id in changed or all(_is_written(self.path(id, suffix)) for suffix in suffixes)

        return changed | {id for group in groups if not all(map(complete, group)) for id in group}

    def register(self, names: Iterable[str] | dict[str, dict[str, str]]) -> list[str]:
        """Declare files that the stage will write; only these does it ever remove.

        names: perhaps with what each is made from, as part -> digest
        returns: the files whose parts have changed; they are removed
        """
        if not distributed.is_main():
            return []
        known, given = _outputs_of(self.folder), names if isinstance(names, dict) else {name: {} for name in names}
        if self._state == "done" and given is not names and not all(map(_is_written, map(self.folder.joinpath, given))):
            self._write("running")
        strange = [name for name in given if name not in known and (self.folder / name).exists()]
        if strange:
            raise FileExistsError(
                f"{self.folder} holds {strange[0]} and {len(strange) - 1} more files that this stage did not write. "
                "How they were made is unknown: move them away, or choose another run"
            )
        changed = [name for name, parts in given.items() if known.get(name, parts) != parts]
        for name in changed:
            (self.folder / name).unlink(missing_ok=True)
        if changed:
            parts = {part for name in changed for part in given[name] if known[name].get(part) != given[name][part]}
            count, total = (len({Path(name).stem for name in names}) for names in (changed, given))
            print(
                f"{self.folder.name}: {count} of {total} images are made again, e.g. {Path(changed[0]).stem}. "
                f"What changed: {', '.join(sorted(parts))}",
                file=sys.stderr,
            )
        if any(known.get(name) != parts for name, parts in given.items()):
            with files.atomic(self.folder / "outputs.json") as partial:
                rows = (f"{dumps(name)}: {dumps(parts)}" for name, parts in (known | given).items())
                partial.write_text("{\n" + ",\n".join(rows) + "\n}\n", encoding="utf-8")
                to_disk(partial)
        return changed

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
        """Write the manifest of the finished stage, with what there was to count.

        raises: FileExistsError if another process has begun the stage otherwise meanwhile; the files count as unknown
        """
        distributed.wait()
        now = _read_manifest(self._manifest)["fingerprint"] if self._manifest.exists() else None
        if distributed.is_main() and now not in (self.fingerprint, self._earlier.get("fingerprint")):  # 1 for 1.0
            self._manifest.unlink(missing_ok=True)
            problem = f"{self.folder} was begun otherwise by another process meanwhile, so its files are mixed"
            raise FileExistsError(f"{problem}: stop one of the two, and start the other one again")
        self._write("done", counts=counts)
        distributed.wait()
        return self

    def _write(self, state: str, **more: Any) -> None:
        self._state, self._works = state, self._works or state == "running"
        if not distributed.is_main():
            return
        made = {} if self._works else {key: self._earlier[key] for key in HOW if key in self._earlier}
        seconds = self._earlier.get("wall_seconds", 0) + time.perf_counter() - self._started
        peaks = {"peak_memory_mb": devices.peak_memory_mb(), "peak_cuda_memory_mb": devices.peak_cuda_memory_mb()}
        peaks = {name: max(self._earlier.get(name) or 0, peak or 0) or None for name, peak in peaks.items()}
        content = self._identity | self._details | made | more | {"state": state, "fingerprint": self.fingerprint}
        content |= {"wall_seconds": round(seconds, 2), **peaks}
        files.write_json(self._manifest, content)
        to_disk(self._manifest)

    def _clear(self) -> int:
        """Remove the files that this stage declared earlier; return how many there were."""
        names, partials = _outputs_of(self.folder), self._partials()
        done = [path for name in names if (path := self.folder / name).is_file() and path.parent == self.folder]
        for path in (*partials, *done):
            path.unlink()
        (self.folder / "outputs.json").unlink(missing_ok=True)
        return len(done)

    def _partials(self) -> list[Path]:
        """Half-written files of this stage, from processes that were killed or are at work now."""
        names = _outputs_of(self.folder)
        return [path for path in self.folder.glob(".*.partial") if path.name[1:].rsplit(".", 2)[0] in names]


def _outputs_of(folder: Path) -> dict[str, dict[str, str]]:
    """Files that a stage declared, each with what it is made from."""
    path = folder / "outputs.json"
    outputs = files.read_json(path, REMEDY) if path.exists() else {}
    if not isinstance(outputs, dict) or not all(isinstance(parts, dict) for parts in outputs.values()):
        raise ValueError(f"{path} is no list of a stage's files; {REMEDY}")
    return outputs


def _is_written(path: Path) -> bool:
    """Whether a file is there and not empty, as some are after a power cut."""
    return path.exists() and path.stat().st_size > 0


def made_from(folder: Path) -> str | None:
    """A digest of all that the files of a stage's folder are made from; None if there is no such folder."""
    manifest = folder / "manifest.json"
    return digest([_read_manifest(manifest)["fingerprint"], _outputs_of(folder)]) if manifest.exists() else None


def _made_from(folder: Path) -> dict[str, str]:
    """For each image, a digest of what a stage's files about it were made from."""
    return {Path(name).stem: digest(parts)[:16] for name, parts in _outputs_of(folder).items() if parts}


def _changed(folder: Path, dataset: Dataset, parents: dict[str, dict[str, str]]) -> dict[str, list[str]]:
    """Images that a stage's files were made from, and what of each has changed since: its photo, or a parent's files.

    parents: name -> id: what its files stem from, `_made_from`
    """
    by_id = {Path(name).stem: parts for name, parts in _outputs_of(folder).items() if parts}
    changed = {}
    for sample in [sample for split in SPLITS for sample in getattr(dataset, split) if sample.id in by_id]:
        then, now = by_id[sample.id], _parts_of(sample, parents)
        changed[sample.id] = [part for part in {**now, **then} if then.get(part) != now.get(part)]
    return {id: parts for id, parts in changed.items() if parts}


def _parts_of(sample: Sample, parents: dict[str, dict[str, str]]) -> dict[str, str]:
    """What the files of an image are made from: its photo, and what earlier stages made of it."""
    return {"photo": sample.content[:16]} | {
        name: made[sample.id] for name, made in parents.items() if sample.id in made
    }


def _inputs_sha256(dataset: Dataset, parents: Sequence[str | Path], learns_from: Sequence[str]) -> str:
    """Digest of all images that a stage learns from: photos, what earlier stages made of them, label maps."""
    made = [_made_from(parent) for parent in sorted(map(Path, parents))]  # in one order, which json files sort, too
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
    run = folder.parent
    if earlier and now and earlier != now and run not in _said and distributed.is_main():
        kept = f"They are kept: delete {run} to make them again"
        print(
            f"{run.name} holds results of commit {earlier[:12]} of this code; this is {now[:12]}. {kept}",
            file=sys.stderr,
        )
        _said.add(run)


def to_disk(path: Path) -> None:
    """Flush a file to the disk (4 to 8 ms). Used for manifests and training state.

    The files of single images are not flushed: after a power cut some may be empty. `todo` treats them as missing.
    """
    with open(path, "rb+") as file:
        os.fsync(file.fileno())


def outdated(folder: str | Path, dataset: Dataset, is_parent: bool = False) -> str:
    """Why the results of a stage do not belong to the run as it is now; "" if they do.

    is_parent: a stage that this one was made from, which a run with another split may have signed off since, or may be
        at work on now
    """
    folder = Path(folder)
    manifest = _read_manifest(folder / "manifest.json")
    if manifest["state"] != "done" and not is_parent:
        return "it is not finished"
    if not is_parent and manifest.get("split_sha256") not in (None, split_sha256(dataset)):
        return "it was made for another split of the images"
    if manifest.get("classes_sha256") not in (None, class_files.sha256(dataset.classes)):
        return f"{HASHED['classes_sha256']} have changed since"
    for parent, fingerprint in manifest["parents"].items():
        try:
            known = _read_manifest(folder.parent / parent / "manifest.json")["fingerprint"]
        except (OSError, ValueError):
            return f"{parent}, which it was made from, is gone"
        if known != fingerprint:
            return f"it was made from an earlier {parent}"
        if reason := outdated(folder.parent / parent, dataset, is_parent=True):
            return f"{parent}: {reason}"
    parents = [folder.parent / parent for parent in manifest["parents"]]
    if learns_from := manifest.get("learns_from"):
        can_tell = all(sample.read_truth for split in learns_from for sample in getattr(dataset, split))
        if can_tell and manifest["inputs_sha256"] != _inputs_sha256(dataset, parents, learns_from):
            return "photos or labels have changed since"
        return ""
    for id, parts in _changed(folder, dataset, {parent.name: _made_from(parent) for parent in parents}).items():
        return f"{id} has changed since ({', '.join(parts)})"
    return ""


def _sums_of(checkpoints: Sequence[str | Path]) -> dict[str, str]:
    """SHA-256 of checkpoints by their names; of those that are called alike, the later ones are numbered.

    Of a folder of the user's its json count too: they say how large the network is, and what it sees of an image.
    """
    found = {}
    for item in checkpoints:
        is_own = item not in weights.LISTED and Path(item).exists()
        sums = {Path(item).name if is_own else str(item): weights.sha256_of(item)}
        if item not in weights.LISTED and (folder := Path(item).expanduser()).is_dir():
            sums |= {f"{folder.name}/{path.name}": files.sha256(path) for path in sorted(folder.glob("*.json"))}
        for name, own in sums.items():
            found[name if found.get(name, own) == own else f"{name}, {len(found) + 1}"] = own
    return found


def _fingerprint_of(parent: Path) -> str:
    path = parent / "manifest.json"
    if not path.exists() or (content := _read_manifest(path))["state"] != "done":
        problem = "is not finished" if path.exists() else "has no manifest.json"
        raise FileNotFoundError(f"{parent} {problem}: run the stage that makes it first")
    return content["fingerprint"]


def _read_manifest(path: Path) -> dict:
    content = files.read_json(path)
    fit = isinstance(content, dict) and content.get("state") in ("running", "done")
    if not fit or not isinstance(content.get("fingerprint"), str) or not isinstance(content.get("parents"), dict):
        raise ValueError(f"{path} is no manifest of a stage: delete it, and the stage starts again")
    return content


def _differences(earlier: dict, now: dict, prefix: str = "") -> list[str]:
    """Name what differs between two nested dicts, as "size: 128, now 256"."""
    found = []
    for key in sorted(earlier.keys() | now.keys()):
        one, other = earlier.get(key), now.get(key)
        if isinstance(one, dict) and isinstance(other, dict):
            found += _differences(one, other, f"{prefix}{key}.")
        elif one != other and key in HASHED and one and other:
            found.append(f"{HASHED[key]} have changed")
        elif one != other:
            texts = [str(value) if len(str(value)) <= 40 else f"{str(value)[:12]}..." for value in (one, other)]
            found.append(f"{prefix}{key}: {texts[0]}, now {texts[1]}")
    return found


def digest(content: Any) -> str:
    """SHA-256 of plain values, in hex."""
    return sha256(dumps(content, sort_keys=True).encode()).hexdigest()


def package_versions() -> dict[str, str]:
    """Versions of Python and of the packages that make the numbers."""
    versions = {"python": platform.python_version(), "torch": str(torch.__version__)}  # with its build, as +cu130
    for package in PACKAGES.split():
        with suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
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
