"""Run the same small run under other conditions, and say what is equal to the byte and what is not, and by how much.

    python tests/torture/determinism.py --write results/reliability.json        part of `make torture`

Notebooks 02 to 05 are executed on a small drawn world with one thread, and then again: as they were, killed and gone on
with, with more threads, with other instructions of the processor, by two processes, with other images at once, in half
precision. Each is a process of its own. What they write is compared file by file with the first.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
ONE = "--one"  # as first argument: this is the process of one condition
SMALL = {
    "run": "small",
    "dataset_options": {"limit": 8},
    "labelled": 4,
    "warm_up": None,
    "steps": 12,
    "batch_size": 4,
    "crop_size": 64,
    "methods": ["unimatch"],
    "images_at_once": 8,
}
OTHER_CHIP = {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41", "MKL_ENABLE_INSTRUCTIONS": "SSE4_2"}
CONDITIONS: dict[str, tuple[dict[str, str], dict[str, Any]]] = {  # environment, parameters
    "again": ({}, {}),
    "PLG_DETERMINISTIC=1": ({"PLG_DETERMINISTIC": "1"}, {}),
    "killed and gone on with": ({}, {}),
    "2 threads": ({"PLG_DETERMINISTIC": "2"}, {}),
    "2 threads again": ({"PLG_DETERMINISTIC": "2"}, {}),
    "4 threads": ({"PLG_DETERMINISTIC": "4"}, {}),
    "instructions of SSE4 only": (OTHER_CHIP, {}),
    "2 processes": ({}, {"processes": 2}),
    "1 image at once": ({}, {"images_at_once": 1}),
    "bf16": ({}, {"precision": "bf16"}),
}
AGAINST = {"2 threads again": "2 threads"}  # all others are compared with the first run
NOT_COMPARABLE = 1.0  # other numbers of masks


def one(folder: Path, given: dict[str, Any]) -> None:
    """Execute the notebooks in this process with the parameters that are given; results go to the folder."""
    os.environ |= {"PLG_RESULTS": str(folder), "PLG_PROGRESS": "0", "MPLBACKEND": "Agg"}
    sys.path[:0] = [str(ROOT / "notebooks"), str(ROOT / "tests")]
    from test_pipeline import execute

    from plg_utils import training

    training.SAVE_SECONDS = 0  # a state after each step, so that kills fall between
    os.chdir(ROOT / "notebooks")
    for number in ("02", "03", "04", "05"):
        execute(number, given)


def start(folder: Path, world: Path, environment: dict[str, str], parameters: dict[str, Any]) -> subprocess.Popen:
    """Start a condition in a process of its own."""
    told = SMALL | {"dataset_options": SMALL["dataset_options"] | {"root": str(world)}} | parameters
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, __file__, ONE, str(folder), json.dumps(told)]
    surroundings = os.environ | {"OMP_NUM_THREADS": "1"} | environment
    with (folder / "said.log").open("a", encoding="utf-8") as said:
        return subprocess.Popen(command, env=surroundings, stdout=said, stderr=said)


def run(folder: Path, world: Path, environment: dict[str, str], parameters: dict[str, Any]) -> float:
    """Execute a condition to its end; the seconds it took."""
    begin = time.perf_counter()
    if start(folder, world, environment, parameters).wait():
        raise RuntimeError((folder / "said.log").read_text(encoding="utf-8")[-3000:])
    return time.perf_counter() - begin


def run_with_kills(folder: Path, world: Path, seconds: float) -> int:
    """Execute a run and kill it after parts of the time that it takes, before it is left alone; how often it was."""
    kills = 0
    for part in (0.45, 0.6, 0.75):
        process = start(folder, world, {}, {})
        try:
            process.wait(part * seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            kills += 1
    run(folder, world, {}, {})
    return kills


def _of_masks(one: Path, other: Path) -> float:
    """Largest difference of a score; NOT_COMPARABLE where a mask is another."""
    masks = [json.loads(path.read_text(encoding="utf-8"))["masks"] for path in (one, other)]
    if [mask["counts"] for mask in masks[0]] != [mask["counts"] for mask in masks[1]]:
        return NOT_COMPARABLE
    scores = [[mask[name] for mask in of for name in ("predicted_iou", "stability")] for of in masks]
    return max((abs(a - b) for a, b in zip(*scores, strict=True)), default=0.0)


def _of_tensors(one: Path, other: Path) -> float:
    """Largest difference of a number, as a share of the largest of its tensor."""
    from safetensors.torch import load_file

    first, second = load_file(one), load_file(other)
    if [tensor.shape for tensor in first.values()] != [tensor.shape for tensor in second.values()]:
        return NOT_COMPARABLE
    pairs = ((first[name].double(), second[name].double()) for name in first if first[name].numel())
    return max(((a - b).abs().max() / a.abs().max().clamp(min=1e-12)).item() for a, b in pairs)


def _of_labels(one: Path, other: Path) -> float:
    """Share of the pixels that have another class."""
    from plg_utils import files

    return float((files.read_label(one) != files.read_label(other)).mean())


def _of_histories(one: Path, other: Path) -> float:
    """Largest difference of a loss."""
    rows = [json.loads(path.read_text(encoding="utf-8"))["histories"]["unimatch"] for path in (one, other)]
    return max(abs(a["total"] - b["total"]) for a, b in zip(*rows, strict=True))


def _of_scores(one: Path, other: Path) -> float:
    """Largest difference of a mean IoU."""
    rows = [json.loads(path.read_text(encoding="utf-8"))["rows"] for path in (one, other)]
    assert [row["name"] for row in rows[0]] == [row["name"] for row in rows[1]]
    return max(abs(a["miou"] - b["miou"]) for a, b in zip(*rows, strict=True))


ARTEFACTS = {  # what is compared: the files that hold it, and the largest difference of two of them
    "masks": ("masks/*.json", _of_masks),
    "segment embeddings": ("segments/*.safetensors", _of_tensors),
    "zero-shot labels": ("labels_zero_shot/*.png", _of_labels),
    "network after 12 steps": ("network_unimatch/network.safetensors", _of_tensors),
    "its loss": ("04_segmenter.json", _of_histories),
    "enhanced labels": ("labels_enhanced/*.png", _of_labels),
    "predictions": ("predictions_unimatch/*.png", _of_labels),
    "mean IoU": ("summary.json", _of_scores),
}


def differences(one: Path, other: Path) -> dict[str, float]:
    """Largest difference between what two runs wrote, of each of ARTEFACTS; 0 if all bytes are equal."""
    found = {}
    for artefact, (pattern, difference) in ARTEFACTS.items():
        names = sorted(path.relative_to(one) for path in one.glob(pattern) if path.name != "manifest.json")
        if not names:
            raise FileNotFoundError(f"{one} holds no {pattern}")
        pairs = [(one / name, other / name) for name in names]
        found[artefact] = max(0.0 if a.read_bytes() == b.read_bytes() else difference(a, b) for a, b in pairs)
    return found


def told(artefact: str, largest: float) -> str:
    """A cell of the table."""
    if largest == 0:
        return "equal"
    if ARTEFACTS[artefact][1] == _of_labels:
        return f"{100 * largest:.2g} % of an image"
    return "other masks" if artefact == "masks" and largest == NOT_COMPARABLE else f"{largest:.1g}"


def table(found: dict[str, Any]) -> str:
    """What was measured, as a table in Markdown."""
    names = list(ARTEFACTS)
    lines = [["compared with one thread", *names], ["---"] * (len(names) + 1)]
    for condition in (name for name in CONDITIONS if name in found["largest_difference"]):
        largest = found["largest_difference"][condition]
        title = f"{condition}, compared with {AGAINST[condition]}" if condition in AGAINST else condition
        lines.append([title, *(told(name, largest[name]) for name in names)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    """Measure, and say what was found as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--conditions", nargs="+", default=list(CONDITIONS), choices=list(CONDITIONS))
    parser.add_argument("--write", type=Path, help="JSON file, such as results/reliability.json")
    options = parser.parse_args()
    sys.path[:0] = [str(ROOT)]
    import reliability
    import torch
    from tqdm import tqdm

    found: dict[str, Any] = {"instructions": torch.backends.cpu.get_cpu_capability(), "torch": str(torch.__version__)}
    found |= {"steps": SMALL["steps"], "kills": 0, "largest_difference": {}}
    with tempfile.TemporaryDirectory(prefix="plg-determinism-") as place:
        world, first = Path(place) / "world", Path(place) / "first"
        run(first, world, {}, {})  # draws the world
        shutil.rmtree(first)
        seconds = run(first, world, {}, {})
        for name in tqdm(options.conditions, desc="conditions", ascii=True):
            folder = Path(place) / name
            if name == "killed and gone on with":
                found["kills"] = run_with_kills(folder, world, seconds)
            else:
                run(folder, world, *CONDITIONS[name])
            against = Path(place) / AGAINST[name] if name in AGAINST else first
            pair = (each / SMALL["run"] for each in (against, folder))
            found["largest_difference"][name] = differences(*pair)
    reliability.tell("determinism", found, options.write)
    print(table(found))


if __name__ == "__main__":
    if sys.argv[1:2] == [ONE]:
        one(Path(sys.argv[2]), json.loads(sys.argv[3]))
    else:
        main()
