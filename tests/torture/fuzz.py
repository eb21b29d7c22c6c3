"""Give every reader thousands of damaged files: each must be read, or refused by name; nothing may crash or hang.

    python tests/torture/fuzz.py --files 1000         of each kind; part of `make torture`

A whole file of each kind is damaged at random: bits flipped, bytes overwritten, pieces cut out, doubled or moved, the
end missing. It is then read in a child process with little memory and little time. Allowed is an answer, or a
ValueError or OSError (for parameter files a refusal) that names the file. Any other error, a crash of the process, a
file that takes seconds or more memory than there is, is a failure, and is kept.
"""

import argparse
import multiprocessing
import os
import random
import resource
import shutil
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "notebooks")]
warnings.simplefilter("ignore")

import numpy as np
import reliability
import run as runner
import torch
from tqdm import tqdm

from plg_utils import checkpoints, class_files, datasets, files, store, training
from plg_utils.records import Classes, Dataset, Masks

NO_IMAGES = Dataset("none", Classes(("thing",), (("thing",),), ((0, 0, 0),), None), labelled=())
SECONDS = 10  # for one file
MEMORY = 6 * 2**30  # bytes of address space, of which torch's libraries take most
FORK = multiprocessing.get_context("fork")
RNG = np.random.default_rng(0)
PHOTO = RNG.integers(0, 256, (24, 36, 3), dtype=np.uint8)
LABEL = np.arange(24 * 36, dtype=np.uint8).reshape(24, 36) % 4
NETWORK = torch.nn.Linear(3, 2)
OPTIMIZER = torch.optim.SGD(NETWORK.parameters())  # without memory
SHAPES = ([[2, 2, 12, 2, 12, 9, 2, 9]], {"size": [24, 36], "counts": [9, 9, 846]})  # a polygon, a crowd
COCO = {
    "images": [{"id": 1, "file_name": "a.png", "height": 24, "width": 36}],
    "categories": [{"id": 7, "name": "cat"}],
    "annotations": [
        {"id": k, "image_id": 1, "category_id": 7, "iscrowd": k, "area": 50, "segmentation": shape}
        for k, shape in enumerate(SHAPES)
    ],
}


def write_manifest(path: Path) -> None:
    """Write a stage's manifest."""
    store.stage(path.parent, dataset=NO_IMAGES, parameters={"points": 16}).finish(images=0)
    (path.parent / "manifest.json").rename(path)


@contextmanager
def naming(path: Path, *copies: Path) -> Iterator[None]:
    """Let an error that names a copy of the file, or a folder made of it, name the file."""
    try:
        yield
    except (ValueError, OSError) as error:
        text = str(error)
        for copy in copies:
            text = text.replace(str(copy), str(path))
        raise ValueError(text) from error


def read_manifest(path: Path) -> None:
    """Open a stage whose manifest this is, and one that comes after it."""
    folder = path.parent / "stage"
    folder.mkdir(exist_ok=True)
    shutil.copy(path, folder / "manifest.json")
    try:
        with naming(path, folder / "manifest.json", folder):
            store.stage(path.parent / "next", dataset=NO_IMAGES, parameters={}, parents=[folder])
            store.stage(folder, dataset=NO_IMAGES, parameters={"points": 16}).todo([], [])
    finally:
        shutil.rmtree(folder)
        shutil.rmtree(path.parent / "next", ignore_errors=True)


def read_coco(path: Path) -> None:
    """Load a folder of photos with labels in COCO's form."""
    photos = path.parent / "photos"
    if not photos.exists():
        files.write_image(photos / "a.png", PHOTO)
    data = datasets.load("folder", root=photos, classes=["cat"], labels=path, labelled=1)
    for sample in data.labelled:
        sample.truth()


def write_list(path: Path, numbers: Iterable[int] = range(1, 6)) -> None:
    """Write a list of images."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"2007_00000{k}\n" for k in numbers), encoding="utf-8")


def read_voc(path: Path) -> None:
    """Load VOC with this list of labelled images."""
    root = path.parent / "voc"
    lists = root / "ImageSets" / "Segmentation"
    if not root.exists():
        for k in range(1, 9):
            files.write_image(root / "JPEGImages" / f"2007_00000{k}.jpg", PHOTO)
            files.write_label(root / "SegmentationClass" / f"2007_00000{k}.png", LABEL)
        write_list(lists / "val.txt", (7, 8))
    shutil.copy(path, lists / "train.txt")
    with naming(path, lists / "train.txt"):
        datasets.load("voc", root=root, labelled=1)


def read_run(path: Path) -> None:
    """Plan the run of a parameter file."""
    place = path.parent / "published" / "fuzzed"
    place.mkdir(parents=True, exist_ok=True)
    shutil.copy(path, place / "parameters.yaml")
    try:
        runner.steps_of(runner.read("fuzzed", published=path.parent / "published"), {}, "fuzzed")
    except runner.Refused as refusal:
        raise ValueError(f"{path}: {refusal}") from refusal


KINDS: dict[str, tuple[str, Callable[[Path], None], Callable[[Path], object]]] = {
    "photo, PNG": ("a.png", lambda path: files.write_image(path, PHOTO), files.read_image),
    "photo, JPEG": ("a.jpg", lambda path: files.write_image(path, PHOTO), files.read_image),
    "size of a photo": ("a.jpg", lambda path: files.write_image(path, PHOTO), files.image_size),
    "label map": ("a.png", lambda path: files.write_label(path, LABEL), lambda path: files.read_label(path, 4)),
    "masks": (
        "a.json",
        lambda path: files.write_masks(path, Masks.from_dense(LABEL[None] == np.arange(4)[:, None, None])),
        lambda path: files.read_masks(path).dense(),
    ),
    "embeddings": (
        "a.safetensors", lambda path: files.write_embeddings(path, torch.zeros(4, 6)), files.read_embeddings
    ),
    "weights": (
        "a.safetensors",
        lambda path: files.write_weights(path, NETWORK),
        lambda path: files.read_weights(path, torch.nn.Linear(3, 2)),
    ),
    "state of a training": (
        "a.safetensors",
        lambda path: training.save_state(path, {}, NETWORK, OPTIMIZER, None, [{"step": 1, "total": 0.5}], 1),
        lambda path: training.load_state(path, {}, torch.nn.Linear(3, 2), OPTIMIZER, None),
    ),
    "SAM's checkpoint": ("a.pth", lambda path: torch.save(NETWORK.state_dict(), path), checkpoints.load_sam_state),
    "CLIP's checkpoint": (
        "a.pt",
        lambda path: torch.save(dict.fromkeys(checkpoints.CLIP_WEIGHTS, torch.zeros(2)), path),
        checkpoints.load_clip_state,
    ),
    "class file": (
        "a.yaml", lambda path: shutil.copy(ROOT / "plg_utils/datasets/classes/voc.yaml", path), class_files.read
    ),
    "table": ("a.json", lambda path: files.write_json(path, COCO), files.read_json),
    "annotations, COCO": ("instances.json", lambda path: files.write_json(path, COCO), read_coco),
    "list of a split": ("train.txt", write_list, read_voc),
    "parameters of a run": (
        "a.yaml", lambda path: shutil.copy(ROOT / "results/voc_92/parameters.yaml", path), read_run
    ),
    "manifest": ("a.manifest", write_manifest, read_manifest),
}  # fmt: skip


def damaged(whole: bytes, rng: random.Random) -> bytes:
    """Damage a file in one to four ways."""
    data = bytearray(whole)
    for _ in range(rng.randint(1, 4)):
        if not data:
            break
        where, length = rng.randrange(len(data)), rng.choice((1, 2, 4, 16, 64))
        piece = bytes(data[where : where + length])
        way = rng.randrange(7)
        if way == 0:
            data[where] ^= 1 << rng.randrange(8)
        elif way == 1:
            data[where : where + length] = rng.randbytes(len(piece))
        elif way == 2:
            del data[where : where + length]
        elif way == 3:
            data[where:where] = piece * rng.choice((1, 2, 9))
        elif way == 4:
            del data[where:]
        elif way == 5:
            other = rng.randrange(len(data))
            data[other : other + length] = piece
        else:  # numbers and signs that mean something to parsers
            data[where : where + length] = rng.choice(
                (b"\0", b"\xff" * 4, b"-1", b"9" * 30, b"[[[[", b"null", b"../", b"1e999")
            )
    return bytes(data)


def try_all(kind: str, paths: list[Path], results: Connection) -> None:
    """Read files one after another, in a child process; send what came of each."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    for path in paths:
        try:
            KINDS[kind][2](path)
            outcome = "read"
        except (ValueError, OSError) as error:
            outcome = "refused" if str(path) in str(error) or path.name in str(error) else f"not named: {error!r}"
        except BaseException as error:
            outcome = f"{type(error).__name__}: {error}"
        results.send(outcome[:300])


def damage(kind: str, count: int, seed: int, folder: Path) -> list[Path]:
    """Write damaged files of a kind; a whole one is read first, so that what is refused is refused for its damage."""
    rng, (name, write, read) = random.Random(f"{kind} {seed}"), KINDS[kind]
    write(folder / name)
    read(folder / name)
    whole, paths = (folder / name).read_bytes(), []
    stem, dot, suffix = name.rpartition(".")
    for number in range(count):
        paths.append(folder / f"{stem}{number}{dot}{suffix}")
        paths[-1].write_bytes(damaged(whole, rng))
    return paths


def outcomes_of(kind: str, paths: list[Path], kept: Path, bar: tqdm) -> Counter:
    """Read files in a child process, and those after one that kills it in another; what fails is copied to `kept`."""
    outcomes = Counter()
    while paths:
        results, sender = FORK.Pipe(duplex=False)
        child = FORK.Process(target=try_all, args=(kind, paths, sender))
        child.start()
        sender.close()
        end = ""
        while paths and end not in ("hung", "crashed"):
            try:
                end = outcome = results.recv() if results.poll(SECONDS) else "hung"
                if outcome not in ("read", "refused", "hung"):
                    end = "failed"
            except EOFError:
                child.join()
                end, outcome = "crashed", f"exit code {child.exitcode}"
            outcomes[end] += 1
            path, *paths = paths
            if end not in ("read", "refused"):
                keep(kept, kind, path, f"{end} {outcome}")
            bar.update()
        child.kill()
        child.join()
    return outcomes


def keep(kept: Path, kind: str, path: Path, what: str) -> None:
    """Copy a file that failed, and say why."""
    kept.mkdir(parents=True, exist_ok=True)
    number = len(list(kept.iterdir()))
    shutil.copy(path, kept / f"{number}_{path.name}")
    print(f"\n{kind}, {number}_{path.name}: {what}", file=sys.stderr)


def main() -> int:
    """Try all kinds, and say what happened as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--files", type=int, default=1000, help="of each kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=list(KINDS))
    parser.add_argument("--kept", type=Path, default=files.results_root() / "fuzz", help="folder for files that fail")
    parser.add_argument("--write", type=Path, help="JSON file, such as results/reliability.json")
    options = parser.parse_args()
    found, total = {}, options.files * len(options.kinds)
    with tqdm(total=total, desc="files", ascii=True) as bar:
        for kind in options.kinds:
            with tempfile.TemporaryDirectory(prefix="plg-fuzz-") as place:
                paths = damage(kind, options.files, options.seed, Path(place))
                found[kind] = outcomes_of(kind, paths, options.kept, bar)
    ends = ("read", "refused", "failed", "crashed", "hung")
    table = {kind: {end: outcomes[end] for end in ends} for kind, outcomes in found.items()}
    sums = {end: sum(of[end] for of in table.values()) for end in ends}
    reliability.tell("fuzz", {"files": total, **sums, "by_kind": table}, options.write)
    return int(sums["failed"] + sums["crashed"] + sums["hung"] > 0)


if __name__ == "__main__":
    sys.exit(main())
