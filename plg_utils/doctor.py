"""Will a run work on this machine, and what will it cost? Findings, each with a remedy, and a cost card.

Nothing is downloaded, and the run's folder is left alone: the stages do a few images and steps in a temporary folder.
"""

import importlib
import math
import os
import platform
import re
import shutil
import time
import tomllib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any
from unittest.mock import patch  # patch.dict changes a dict while a block runs

import numpy as np
import pandas as pd
import psutil
import torch
from packaging.requirements import Requirement

from plg_utils import check, checkpoints, choices, devices, encoders, files, masks, segmenters, stages
from plg_utils.generators import concepts
from plg_utils.records import SPLITS, Dataset

Parameters = Mapping[str, Any]  # of the notebooks of a run, by name
LEVELS = ("stop", "warning", "ok")  # the run will stop; it may not go as you think; nothing to do
AGAIN = "rm -f .venv/.ready && make doctor (this installs what requirements.lock lists; conda: see environment.yml)"
ROOM = 1.5  # times what is needed; less is a warning
GB, MB, HOUR = 1e9, 2**20, 3600  # disks are sold in GB, manifests count memory in MiB
READ = 20  # images of each split that are read
NEEDS = {  # stages that cannot be timed without the weights that an option names, by the beginning of their folders
    "mask_options": ("masks", "labels_boxes"),
    "encoder_options": ("segments", "labels_cam", "labels_boxes"),
    "detector_options": ("labels_boxes",),
    "concept_options": ("concepts",),
}
MODELS = {"mask_options": (masks, "mask_model"), "encoder_options": (encoders, "encoder")}  # folder, and who names it
NUMBERS = ["times", "seconds once", "seconds each", "hours", "GB", "memory MB", "GPU MB"]
COLUMNS = ["stage", NUMBERS[0], "unit", *NUMBERS[1:], "not measured"]  # of the cost card


@dataclass(frozen=True)
class Finding:
    """What was found, how bad it is, and what to do."""

    level: str  # of LEVELS
    subject: str  # such as "disk"
    text: str
    remedy: str = ""  # a sentence or a command; only an ok needs none


def report(findings: Sequence[Finding]) -> str:
    """Findings as text, the worst first, each with its remedy below."""
    lines = []
    for finding in sorted(findings, key=lambda finding: LEVELS.index(finding.level)):
        lines.append(f"{finding.level:<8} {finding.subject:<10} {finding.text}")
        lines += [f"{'':19} -> {finding.remedy}"] if finding.remedy else []
    stops, warned = (sum(finding.level == level for finding in findings) for level in LEVELS[:2])
    return "\n".join([*lines, f"{stops} would stop the run, {warned} warnings"])


# The machine


def packages() -> list[Finding]:
    """Compare the packages that pyproject.toml names with requirements.lock. An old Python cannot import this file."""
    project = tomllib.loads((files.ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lock = (files.ROOT / "requirements.lock").read_text(encoding="utf-8")
    found = []
    for wanted in map(Requirement, project["dependencies"]):
        locked, version, runs = re.findall(rf"^{wanted.name}==([^\s;\\]+)", lock, re.MULTILINE), "not installed", False
        with suppress(metadata.PackageNotFoundError):
            version = metadata.version(wanted.name)
            runs = wanted.specifier.contains(version, prereleases=True)
        if version.partition("+")[0] not in locked:  # torch's 2.11.0+cpu is 2.11.0
            text = f"{wanted.name} is {version}, and requirements.lock has {' or '.join(locked)}: numbers may differ"
            found.append(Finding("warning" if runs else "stop", "packages", text, AGAIN))
    try:
        importlib.import_module("clip").tokenize  # noqa: B018  a package for the clipboard has the same name
    except Exception as error:  # another package of this name may raise anything
        text = f"import clip does not give OpenAI's package ({type(error).__name__}: {error})"
        found.append(Finding("stop", "packages", text, f"pip uninstall clip, rename your own clip.py, then {AGAIN}"))
    return found or [Finding("ok", "packages", f"Python {platform.python_version()}, packages as in requirements.lock")]


def device(parameters: Parameters) -> list[Finding]:
    """Does torch work on the device that the run asks for, with its precision and processes?"""
    name = parameters.get("device", "auto")
    try:
        chip = devices.choose(name)
        torch.ones(2, device=chip).sum().item()  # fails on a GPU that this torch was not built for
    except Exception as error:  # CUDA raises many kinds
        return [Finding("stop", "device", f"device {name!r} does not work: {error}", "-p device auto, or cpu")]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    on_cpu = chip.type == "cpu"
    have, unit = (cores, "cores") if on_cpu else (torch.cuda.device_count(), "GPUs")
    processes, batch = parameters.get("processes", 1), parameters.get("batch_size", 0)
    waiting = round(os.getloadavg()[0]) if hasattr(os, "getloadavg") else 0
    checks = [  # what is wrong if the first is true
        (on_cpu and name == "auto" and shutil.which("nvidia-smi"), "stop", "device",
         f"nvidia-smi is installed, but torch {torch.__version__} sees no GPU: all would run on the CPU",
         f"see whether nvidia-smi lists the GPU; unset CUDA_VISIBLE_DEVICES; {AGAIN}; or -p device cpu"),
        (parameters.get("precision") == "bf16" and not devices.has_bf16(chip), "warning", "precision",
         "precision is bf16, which this hardware lacks: a step of the demo took eight times as long as in fp32",
         "-p precision auto"),
        (processes > have, "warning" if on_cpu else "stop", "processes",
         f"{processes} processes share {have} {unit}", f"-p processes {max(1, have)}"),
        (processes > 1 and batch % (2 * processes), "stop", "processes",
         f"batch_size {batch} cannot be shared by {processes} processes, which need two images each",
         f"-p batch_size {math.ceil(batch / 2 / processes) * 2 * processes}"),
        (chip.type == "cuda" and parameters.get("workers") == 0, "warning", "workers",
         "workers is 0: the GPU waits while one core draws the views of a step, 0.17 s for a batch of 8 at 321 pixels",
         f"-p workers {min(8, cores)}"),
        (waiting > cores, "warning", "load", f"{waiting} processes share {cores} cores: the times below are too long",
         "wait until the other work is done, and ask again"),
    ]  # fmt: skip
    found = [Finding("ok", "device", f"{devices.describe(chip)}, torch {torch.__version__}, {cores} cores")]
    return found + [Finding(*finding) for wrong, *finding in checks if wrong]


def free_memory() -> dict[str, float]:
    """Free MiB, as "memory MB" (a container's limit counts) and, with a GPU of NVIDIA, as "GPU MB"."""
    free = psutil.virtual_memory().available
    with suppress(OSError, ValueError):  # no container, or no limit ("max")
        group = Path("/sys/fs/cgroup")
        limit, used = (int((group / f"memory.{name}").read_text()) for name in ("max", "current"))
        free = min(free, limit - used)
    found = {"memory MB": (free + psutil.Process().memory_info().rss) / MB}  # this process will be gone then
    return found | ({"GPU MB": torch.cuda.mem_get_info()[0] / MB} if torch.cuda.is_available() else {})


def memory(free: Mapping[str, float], total: Mapping[str, float]) -> list[Finding]:
    """Compare `free_memory` with the last row of a card."""
    remedy = "fewer images_at_once, a smaller batch_size, sam_vit_b, or less points_per_batch in mask_options"
    return [_room(name[:-3], free[name] * MB, total[name] * MB, remedy) for name in free if total[name] > 0]


def disks(needed: Mapping[str, tuple[Path, float]]) -> list[Finding]:
    """Compare free disk with what will be written; what goes to one disk is added up.

    needed: environment variable -> the folder that it names, which need not exist, and bytes
    """
    found, totals = [], {}
    for name, (folder, count) in needed.items():
        place = next(place for place in (folder, *folder.parents) if place.exists())
        if place.is_dir() and os.access(place, os.W_OK | os.X_OK):
            totals.setdefault(place.stat().st_dev, [shutil.disk_usage(place).free, 0.0])[1] += count
        else:
            found.append(Finding("stop", "disk", f"{folder} cannot be written", f"export {name}=/a/folder/of/yours"))
    remedy = f"make room, or use another disk: {', '.join(needed)}=/other/disk"
    return found + [_room("disk", *total, remedy) for total in totals.values()]


def _room(what: str, free: float, needed: float, remedy: str) -> Finding:
    level = "stop" if free < needed else "warning" if free < ROOM * needed else "ok"
    text = f"{free / GB:,.1f} GB free, {needed / GB:,.2f} GB needed"
    return Finding(level, what, text, "" if level == "ok" else remedy)


def weights(parameters: Parameters) -> tuple[list[Finding], dict[str, int]]:
    """Are the weights here and verified? Nothing is downloaded.

    returns: findings, and the options whose weights are not here, each with the bytes to download as far as is known
    """
    found, absent, named = [], {}, {}
    try:
        for option in [option for option in MODELS if option in parameters]:
            named[option] = stages.checkpoint_of(_module(parameters, option).build, parameters[option])
        if parameters.get("detector") == "grounding_dino":
            named["detector_options"] = parameters["detector_options"].get("checkpoint", "grounding_dino_tiny")
        if parameters.get("concept_options") is not None:
            named["concept_options"] = stages.checkpoint_of(concepts.build, parameters["concept_options"])
        if "classifier" in parameters.get("cam_sources", ()):
            options = {"encoder": "resnet50"} | parameters["classifier_options"]
            named["classifier_options"] = segmenters.checkpoint("deeplabv3plus", **options)
        if "segmenter" in parameters:
            options = parameters["segmenter_options"]
            named["segmenter_options"] = segmenters.checkpoint(parameters["segmenter"], **options)
    except (TypeError, ValueError) as error:
        return [Finding("stop", "weights", str(error), "correct this option of the run")], {}
    for option, name in named.items():
        level, text, remedy, size = _look_at(name)
        found.append(Finding(level, "weights", f"{option}: {text}", remedy))
        absent |= {} if size is None else {option: size}
    return found, absent


def _module(parameters: Parameters, option: str) -> ModuleType:
    """The file of the model that an option of MODELS belongs to; notebook 06 always takes sam."""
    package, name = MODELS[option]
    return choices.choice(package.__name__, parameters.get(name, "sam"), name)


def _look_at(name: str | Path | None) -> tuple[str, str, str, int | None]:
    """Level, text and remedy, and the bytes to download: 0 if this is not known, None if the weights are here."""
    if name is None:
        return "ok", "random weights, as the run asks for", "", None
    try:
        known = checkpoints.known(name)
        place = known and checkpoints.place_of(known)
        needed = [place / file for file in known.files] if known and known.hub else [place]
        if not known or not (known.address or known.hub) or all(file.is_file() for file in needed):
            checkpoints.locate(name)  # all files are here, so that this only compares the SHA-256
            return "ok", f"{name} is here, {'verified' if known else 'a file of your own'}", "", None
    except (OSError, ValueError) as error:
        return "stop", str(error), "do as it says, or name other weights", 0
    source = known.address or f"{', '.join(known.files)} of {known.hub} on the Hugging Face hub"
    size = f"{known.size / GB:.2f} GB" if known.size else "its size is not known"
    remedy = f"without access to it, fetch it on another machine and put it at {place}"
    remedy += f"; its SHA-256 is {known.sha256}" if known.sha256 else ""
    return "warning", f"{known.name} is not here. The run downloads {source} ({size})", remedy, known.size or 0


def data(parameters: Parameters) -> tuple[Dataset | None, list[Finding]]:
    """Load the data set as the run does, None if that fails, and read a few photos and label maps."""
    options = {name: parameters[name] for name in ("labelled", "seed")} | parameters["dataset_options"]
    options = {"on_bad_image": None, "tags_of": SPLITS[:2] if parameters.get("cam_sources") else ()} | options
    opened = SPLITS[:2] if "full" in parameters.get("methods", ()) else SPLITS[:1]
    (loaded, rows), (readable, more) = (
        check.load(parameters["dataset"], options | {"truth_of": splits}) for splits in (opened, SPLITS[:3])
    )
    rows = dict.fromkeys(rows + more)  # the second time says the same again
    if refused := [f"{finding}: {text}" for level, finding, _, text in rows if level == "stop"]:
        remedy = "do as it says; if the folder is somewhere else: -p data_root /path/to/it"
        return None, [Finding("stop", "data", text, remedy) for text in refused]
    found = [Finding("warning", "data", text, "look at these files before a long run") for *_, text in rows]
    chosen = [sample for split in SPLITS[:3] for sample in _spaced(getattr(readable, split), READ)]
    problems = (problem for sample in chosen for problem in check.read(sample, readable.classes)[0].items())
    found += [Finding("stop", "data", message, check.FIXES[problem]) for problem, message in problems]
    if {"refine_target", "methods"} & parameters.keys() and not loaded.labelled:
        remedy = "-p labelled N, or a line `notebooks: [01_data, 02_zero_shot_labels]` in parameters.yaml"
        found.append(Finding("stop", "data", "no image is labelled, and training needs labelled images", remedy))
    counts = ", ".join(f"{len(getattr(loaded, split)):,} {split}" for split in SPLITS[:3])
    return loaded, [*found, Finding("ok", "data", f"{counts} images; {len(chosen)} were read with their label maps")]


def _spaced(samples: Sequence, count: int) -> tuple:
    return tuple(samples[k] for k in np.unique(np.linspace(0, len(samples) - 1, count).round().astype(int)) if samples)


# Costs


def measure(
    whole: Dataset | None, parameters: Parameters, absent: Sequence[str] = (), points: dict | None = None, **timing
) -> tuple[pd.DataFrame, list[Finding]]:
    """Do the stages of a run on a few images and steps, and multiply: the cost card, and what would stop the run.

    whole: of `data`, which may be None; absent: options whose weights are not here, see `weights`
    points: how often a grid does a stage, "all" the stages that are not named; timing: options of `_time`
    returns: columns of COLUMNS; the last row is the total
    """
    points, rows, nothing = points or {"all": 1}, [], ({}, {}, 1, "the data set cannot be loaded")
    few, many, steps, failed = _time(whole, parameters, absent, **timing) if whole else nothing
    for name, made in many.items():
        method, trained = stages.METHODS.get(name.removeprefix("network_")), "steps" in made["parameters"]
        if not trained:
            times = sum(len(getattr(whole, split)) for split in made["splits"]) or 1
        elif method and method.epochs:
            epoch = stages.steps_of_epoch(len(whole.labelled), made["parameters"]["batch_size"])
            times = method.epochs * max(1, epoch)
        else:
            asked = "warm_up" if name.startswith("warm_up") else "steps"
            asked = "classifier_steps" if name == "cam_network" else asked
            times = parameters[asked] * made["count"] / steps
        often, before = points.get(name, points["all"]), few.get(name, made)
        once, each = line(before["count"], before["wall_seconds"], made["count"], made["wall_seconds"])
        written = made["bytes"] if trained else made["bytes"] / max(1, made["count"]) * times
        row = [name, times * often, "step" if trained else "image" if made["splits"] else "run"]
        costs = [once * often, each, often * (once + each * times) / HOUR, often * written / GB]
        costs += [made["peak_memory_mb"], made["peak_cuda_memory_mb"], ""]
        lacking = [option for option in absent if name.startswith(NEEDS.get(option, ("no stage",)))]
        unknown = [None] * 6 + [f"the weights of {option} are not here" for option in lacking[:1]]
        rows.append(row + (unknown if lacking else costs))
    if failed:
        rows.append(["all further stages" if many else "all stages", None, "", *[None] * 6, failed])
    card = pd.DataFrame(rows, columns=COLUMNS).astype(dict.fromkeys(NUMBERS, float))
    total = {"stage": "total", "unit": ""} | card[["hours", "GB"]].sum().to_dict()
    total |= card[["memory MB", "GPU MB"]].max().to_dict()
    total["not measured"] = ", ".join(card["stage"][card["hours"].isna()])
    remedy = "do as it says" + (": smaller images_at_once, batch_size or crop_size" if "memory" in failed else "")
    stop = [Finding("stop", "stages", f"on a few images: {failed}", remedy)] if failed and whole else []
    return pd.concat([card, pd.DataFrame([total])], ignore_index=True), stop


def _time(
    whole: Dataset, parameters: Parameters, absent: list, images: int = 8, steps: int = 3, patience: float = 120
) -> tuple[dict, dict, int, str]:
    """Time the stages on one image and step, and on more: `_rehearse` of both, the steps of the second, what failed.

    The difference of the two is what images and steps cost without loading a model. The first time of one image and
    step warms up, and a second time counts, unless the first takes longer than `patience` seconds. Then more are two.
    """
    small = _without(absent, parameters, whole)
    for sample in [sample for split in SPLITS for sample in getattr(_cut(whole, images), split)]:
        sample.image()  # the first time may take longer: a cold disk, a scene to draw
    briefly = {name: replace(method, epochs=None) for name, method in stages.METHODS.items()}
    with TemporaryDirectory() as place, patch.dict(os.environ, PLG_RESULTS=place, PLG_PROGRESS="0"):
        with patch.dict(stages.METHODS, briefly):
            begin = time.perf_counter()
            few, _ = _rehearse(whole, small, "first", 1, 1)
            slow = time.perf_counter() - begin > patience
            few = few if slow else _rehearse(whole, small, "few", 1, 1)[0]
            images, steps = (2, 2) if slow else (images, 1 + steps)
            many, failed = _rehearse(whole, small, "many", images, steps)
    return few, many, steps, failed


def line(count: int, seconds: float, more: int, longer: float) -> tuple[float, float]:
    """From two counts and their times: seconds once, and seconds each. Without a difference, all is for each one."""
    if more <= count or longer <= seconds:  # a busy machine: rather too long than too short
        return 0.0, longer / max(1, more)
    each = (longer - seconds) / (more - count)
    return max(0.0, longer - each * more), each


def _cut(whole: Dataset, count: int) -> Dataset:
    """One labelled image, `count` of each other split; `count` labelled ones where none is unlabelled."""
    few = {split: _spaced(getattr(whole, split), count) for split in SPLITS}
    return replace(whole, **few | ({"labelled": whole.labelled[:1]} if whole.unlabelled else {}))


def _without(absent: Sequence[str], parameters: Parameters, whole: Dataset) -> dict[str, Any]:
    """Parameters for the timing: small random networks in place of absent weights, nothing compiled."""
    small = {**parameters, "compiled": False}
    small |= {option: _module(parameters, option).SMOKE for option in MODELS if option in absent}
    if "detector_options" in absent:
        small |= {"detector": "clip_boxes", "detector_options": {}}
    if "concept_options" in absent:
        small["concept_options"] = concepts.SMOKE
    for option in {"segmenter_options", "classifier_options"} & set(absent):
        small[option] = small[option] | {"pretrained": False}  # a step costs the same
    images = [*whole.labelled, *whole.unlabelled]
    if images and len(images) * images[0].image().nbytes > 2**30:  # more than `training.fit` keeps decoded
        small["training_options"] = small.get("training_options", {}) | {"cache_bytes": 0}
    return small


def _rehearse(whole: Dataset, parameters: dict, name: str, images: int, steps: int) -> tuple[dict[str, dict], str]:
    """Do all stages: the manifest of each, with count, splits and bytes of its files; and what failed."""
    run = stages.Run(name, _cut(whole, images), parameters["device"], parameters.get("images_at_once", 8))
    made, failed = {}, ""
    try:
        counts = {"steps": steps, "classifier_steps": steps, "warm_up": steps if parameters.get("warm_up") else None}
        for _ in stages.everything(run, parameters | counts):
            with suppress(OSError):  # let the peak begin again; outside of Linux it is that of all stages so far
                Path("/proc/self/clear_refs").write_text("5")
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
    except Exception as error:  # it would stop the run too
        failed = f"{type(error).__name__}: {error}".splitlines()[0]
    for path in sorted(run.folder.glob("*/manifest.json"), key=lambda path: path.stat().st_mtime_ns):
        manifest = files.read_json(path)
        if manifest["state"] == "done":
            ids = {Path(file).stem for file in files.read_json(path.with_name("outputs.json"))}
            parts = {split: sum(sample.id in ids for sample in getattr(run.data, split)) for split in SPLITS}
            done = manifest["counts"].get("steps") or manifest["parameters"].get("steps")
            manifest["count"] = done or sum(parts.values())
            manifest["splits"] = [split for split, count in parts.items() if count]
            manifest["bytes"] = sum(file.stat().st_size for file in path.parent.iterdir())
            made[path.parent.name] = manifest
    return made, failed


def hours(total: Mapping[str, Any], budget: float) -> list[Finding]:
    """Compare the time in the last row of a card with the hours that are there."""
    text = f"the run takes {duration(total['hours'])}, and {budget:g} h are there"
    if total["hours"] > budget:
        remedy = "fewer images (limit), methods or steps, lower mask density, or a faster machine"
        return [Finding("warning", "time", text, remedy)]
    if left := total["not measured"]:
        remedy = "see on the card why this was not timed; ask again"
        return [Finding("warning", "time", f"{text}, without {left}", remedy)]
    return [Finding("ok", "time", text)]


def duration(hours: float) -> str:
    """Hours for a reader."""
    return f"{hours * HOUR:.0f} s" if hours < 1 / 30 else f"{hours * 60:.0f} min" if hours < 2 else f"{hours:.1f} h"


def readable(card: pd.DataFrame) -> pd.DataFrame:
    """A card as rounded text; a column that says nothing is left out."""
    forms = {"hours": duration, "GB": "{:.2f}".format, "seconds once": "{:.2g}".format, "seconds each": "{:.2g}".format}
    forms |= dict.fromkeys(("times", "memory MB", "GPU MB"), "{:,.0f}".format)
    shown = {name: card[name].map(forms.get(name, str), na_action="ignore") for name in card}
    text = card.assign(**shown).astype(object).fillna("").rename(columns={"hours": "time"})
    return text.loc[:, (text != "").any()]
