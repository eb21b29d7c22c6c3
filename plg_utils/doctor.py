"""Will a run work on this machine? Checks, each of which says what it found and how to mend it.

A `check_...` is a pure function of what was found; a `look_at_...` finds it. Nothing here downloads weights or writes
into a run, and importing this module imports no torch: it must work where the environment does not.
"""

import importlib
import os
import re
import shutil
import subprocess
import sys
import tomllib
import uuid
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path

import numpy as np

from plg_utils import check, checkpoints, datasets, files
from plg_utils.records import SPLITS, Dataset

LEVELS = ("stop", "warning", "note")  # as the validator's: a run will stop; it may not go as you think; to know
DRIVERS = {13: 580, 12: 525, 11: 450}  # CUDA: oldest driver; docs.nvidia.com/deploy/cuda-compatibility, minor versions
CLIP_HAS = ("tokenize", "load", "available_models", "model.build_model", "clip._MODELS")  # of OpenAI's clip, by name
FATAL = (
    "torch",
    "torchvision",
    "setuptools",
    "openai-clip",
    "segment-anything",
    "numpy",
)  # another version may not run
AGAIN = "rm -f .venv/.ready && make doctor (it installs what requirements.lock says; with conda: see environment.yml)"
ROOM = 1.5  # times what is needed; less is a warning
GB, MB = 1e9, 2**20  # bytes: disks are sold by the first, `runs` counts memory by the second


@dataclass(frozen=True)
class Finding:
    """What was found, how bad it is, and how to mend it."""

    level: str  # of LEVELS
    subject: str  # "gpu", "disk"
    found: str
    fix: str = ""  # a sentence or a command

    def __post_init__(self):
        """Refuse a complaint without a remedy."""
        if self.level not in LEVELS:
            raise ValueError(f"the level of a finding is {self.level!r}; right are {', '.join(LEVELS)}")
        if self.level != "note" and not self.fix.strip():
            raise ValueError(f"a {self.level} needs a fix: {self.found}")


def stopped(findings: Sequence[Finding]) -> bool:
    """Whether something would stop the run."""
    return any(finding.level == "stop" for finding in findings)


def report(findings: Sequence[Finding]) -> str:
    """Findings as text, the worst first, each with its fix below."""
    lines = []
    for finding in sorted(findings, key=lambda each: LEVELS.index(each.level)):
        told = finding.found.replace("\n", f"\n{'':22}")
        lines.append(f"{finding.level:<8} {finding.subject:<12} {told}")
        if finding.fix:
            lines.append(f"{'':21} -> {finding.fix}")
    counts = {level: sum(finding.level == level for finding in findings) for level in LEVELS[:2]}
    lines.append(f"{counts['stop']} would stop the run, {counts['warning']} to think about")
    return "\n".join(lines)


# Environment


def check_packages(
    installed: Mapping[str, str], required: Mapping[str, str], locked: Mapping[str, set[str]]
) -> list[Finding]:
    """Compare versions with those of pyproject.toml and requirements.lock.

    installed: package -> version; what is not there is missing
    required: package -> specifier such as "==2.11.0", perhaps empty; locked: package -> versions that the lock allows
    """
    from packaging.specifiers import SpecifierSet

    found = []
    for name, wanted in required.items():
        version = installed.get(name)
        if version is None:
            found.append(Finding("stop", "packages", f"{name} is not installed", AGAIN))
        elif not SpecifierSet(wanted).contains(version, prereleases=True):  # torch's 2.11.0+cpu is 2.11.0
            level = "stop" if name in FATAL else "warning"
            found.append(Finding(level, "packages", f"{name} is {version}, pyproject.toml asks for {wanted}", AGAIN))
        elif name in locked and version.partition("+")[0] not in locked[name]:
            told = f"{name} is {version}, tried was {' or '.join(sorted(locked[name]))}: numbers may differ"
            found.append(Finding("warning", "packages", told, AGAIN))
    return found or [Finding("note", "packages", f"{len(required)} direct dependencies, versions as locked")]


def check_python(version: Sequence[int], wanted: str) -> list[Finding]:
    """Compare Python with `requires-python`. version: such as (3, 11, 4); wanted: such as ">=3.11"."""
    from packaging.specifiers import SpecifierSet

    told = ".".join(map(str, version[:3]))
    if SpecifierSet(wanted).contains(told):
        return [Finding("note", "python", told)]
    fix = "rm -r .venv && make doctor PYTHON=/path/to/a/newer/python3"
    return [Finding("stop", "python", f"Python is {told}, pyproject.toml asks for {wanted}", fix)]


def look_at_packages() -> tuple[dict[str, str], dict[str, str], dict[str, set[str]], str]:
    """Return what `check_packages` compares, and what Python pyproject.toml asks for."""
    from packaging.requirements import Requirement

    project = tomllib.loads((files.ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [Requirement(line) for line in project["dependencies"]]
    required = {each.name: str(each.specifier) for each in wanted if each.marker is None or each.marker.evaluate()}
    installed = {}
    for name in required:
        try:
            installed[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    lock, locked = files.ROOT / "requirements.lock", {}
    for name, version in re.findall(
        r"^([\w.-]+)==([^\s;\\]+)", lock.read_text() if lock.exists() else "", re.MULTILINE
    ):
        locked.setdefault(name, set()).add(version)
    return installed, required, locked, project["requires-python"]


@dataclass(frozen=True)
class Clip:
    """What `import clip` gives."""

    file: str | None = None
    missing: tuple[str, ...] = ()  # names of CLIP_HAS that it lacks
    error: str = ""  # why it cannot be imported


def look_at_clip() -> Clip:
    """Import `clip`, whatever it is."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pkg_resources says that it is going to be removed
            package = importlib.import_module("clip")
    except Exception as error:  # somebody else's package may raise anything
        return Clip(error=f"{type(error).__name__}: {error}")

    def has(name: str) -> bool:
        place = package
        for part in name.split("."):
            place = getattr(place, part, None)
        return place is not None

    return Clip(getattr(package, "__file__", None), tuple(name for name in CLIP_HAS if not has(name)))


def check_clip(clip: Clip) -> list[Finding]:
    """Is `import clip` OpenAI's package? Another one of that name minds the clipboard."""
    if "pkg_resources" in clip.error:
        fix = f"clip imports pkg_resources, which is in setuptools>=78.1.1,<81 and not in others: {AGAIN}"
        return [Finding("stop", "clip", f"import clip fails: {clip.error}", fix)]
    if clip.error:
        return [Finding("stop", "clip", f"import clip fails: {clip.error}", AGAIN)]
    if clip.missing:
        told = f"import clip gives {clip.file}, which has no {', '.join(clip.missing)}: another package of that name"
        return [Finding("stop", "clip", told, f"pip uninstall clip (or rename your own clip.py), then {AGAIN}")]
    return [Finding("note", "clip", "OpenAI's package")]


# GPU


@dataclass(frozen=True)
class Driver:
    """What the NVIDIA driver says of itself."""

    version: str | None = None  # such as "580.65.06"
    gpus: tuple[str, ...] = ()
    error: str = ""  # of nvidia-smi


@dataclass(frozen=True)
class Torch:
    """What torch says of the hardware."""

    version: str | None = None
    cuda: str | None = None  # version it was built with; None: a build for the CPU
    available: bool = False  # whether it can use a GPU of NVIDIA
    capability: tuple[int, int] | None = None  # of the GPU, such as (9, 0)
    architectures: tuple[str, ...] = ()  # it was built for, such as "sm_90"
    mps: bool = False  # Apple's GPU
    said: str = ""  # warnings of CUDA's start
    error: str = ""  # why it cannot be imported


def look_at_driver() -> Driver | None:
    """Ask nvidia-smi, or the kernel's module; None where there is no sign of a driver."""
    module = Path("/proc/driver/nvidia/version")
    if not shutil.which("nvidia-smi"):
        if not module.exists():
            return None
        version = re.search(r"\s(\d+\.[\d.]+)\s", module.read_text())
        return Driver(version and version[1], error="nvidia-smi is not installed here")
    command = ["nvidia-smi", "--query-gpu=driver_version,name", "--format=csv,noheader"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.SubprocessError) as error:
        return Driver(error=str(error))
    if answer.returncode or not answer.stdout.strip():
        said = (answer.stdout + answer.stderr).strip().splitlines()
        return Driver(error=said[0] if said else f"it says nothing and returns {answer.returncode}")
    rows = [line.split(", ", 1) for line in answer.stdout.strip().splitlines()]
    return Driver(rows[0][0], tuple(row[-1] for row in rows))


def look_at_torch() -> Torch:
    """Import torch and let it look for a GPU."""
    try:
        import torch
    except Exception as error:  # a broken install may raise anything
        return Torch(error=f"{type(error).__name__}: {error}")
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        available = torch.cuda.is_available()
    return Torch(
        str(torch.__version__),
        torch.version.cuda,
        available,
        torch.cuda.get_device_capability() if available else None,
        tuple(torch.cuda.get_arch_list()),
        torch.backends.mps.is_available(),
        " ".join(str(warning.message).splitlines()[0] for warning in told),
    )


def check_gpu(
    driver: Driver | None, torch: Torch, *, device: str = "auto", visible: str | None = None
) -> list[Finding]:
    """Can torch use the GPU that is there, and what does it mean if there is none?

    device: the run's parameter; visible: the environment's CUDA_VISIBLE_DEVICES, None if it is not set
    """
    if torch.error:
        return [Finding("stop", "torch", f"import torch fails: {torch.error}", AGAIN)]
    if torch.available:
        return _check_architecture(driver, torch)
    wanted = device.startswith("cuda")
    if driver is None and torch.mps and not wanted:
        found = "Apple's GPU (mps), and no GPU of NVIDIA"
        return [Finding("note", "gpu", found, "if an operation fails there: -p device cpu")]
    if driver is None:
        told = "no GPU: all runs on the CPU. That does for the miniatures; SAM ViT-H takes minutes an image there"
        if wanted:
            return [Finding("stop", "gpu", f"device is {device!r}, and there is no NVIDIA driver", "-p device auto")]
        return [
            Finding("note", "gpu", told, "for real photos take a machine with a GPU, or sam_vit_b and -p preset fast")
        ]
    if device == "cpu":
        return [Finding("note", "gpu", f"{_named(driver)} is not used, as the run asks for the CPU", "-p device auto")]
    if device == "mps":
        return [Finding("stop", "gpu", "device is 'mps', Apple's, and this machine has none", "-p device auto")]
    return [_why_not(driver, torch, visible)]


def _why_not(driver: Driver, torch: Torch, visible: str | None) -> Finding:
    """Why torch does not use a GPU that has a driver."""
    least = DRIVERS.get(int((torch.cuda or "0").split(".")[0]))
    if torch.cuda is None:
        told = f"{_named(driver)} is here, and torch {torch.version} is a build for the CPU: all would run on the CPU"
        return Finding("stop", "gpu", told, AGAIN)
    if driver.version and least and int(driver.version.split(".")[0]) < least:
        told = f"driver {driver.version} is too old for torch {torch.version}: CUDA {torch.cuda} needs {least} or later"
        return Finding("stop", "gpu", told, f"install a driver of version {least} or later, and restart")
    if visible is not None and visible.strip() in ("", "-1", "none", "NoDevFiles"):
        told = f"CUDA_VISIBLE_DEVICES={visible!r} hides {_named(driver)} from torch"
        return Finding("stop", "gpu", told, "unset CUDA_VISIBLE_DEVICES, or set it to the number of a GPU, such as 0")
    told = f"torch {torch.version} cannot use {_named(driver)}: {torch.said or driver.error or 'it does not say why'}"
    fix = "does nvidia-smi list the GPU? If not, restart (the driver was updated under it?); in a container: --gpus all"
    return Finding("stop", "gpu", told, fix)


def _named(driver: Driver) -> str:
    gpu = ", ".join(dict.fromkeys(driver.gpus)) or "a GPU"
    return f"{gpu} (driver {driver.version or 'of unknown version'})"


def _check_architecture(driver: Driver | None, torch: Torch) -> list[Finding]:
    """Was torch built for a GPU of this age? Machine code (sm) runs on later ones of the same major version."""
    major, minor = torch.capability or (0, 0)
    named = [re.match(r"(sm|compute)_(\d+)(\d)", name) for name in torch.architectures]
    built = [(match[1], int(match[2]), int(match[3])) for match in named if match]  # AMD's are called otherwise
    runs = any(
        (their_major == major and their_minor <= minor)
        if kind == "sm"
        else (their_major, their_minor) <= (major, minor)
        for kind, their_major, their_minor in built
    )
    name = _named(driver) if driver else "a GPU"
    if built and torch.capability and not runs:
        told = f"{name} is of compute capability {major}.{minor}, torch {torch.version} is built for "
        fix = "-p device cpu, or take another GPU: this one is not supported any more, or not yet"
        return [Finding("stop", "gpu", told + ", ".join(torch.architectures), fix)]
    return [Finding("note", "gpu", f"{name}, torch {torch.version} with CUDA {torch.cuda}")]


# Processor, memory, disk


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def check_threads(threads: str | None, cores: int, *, small: bool, on_cpu: bool) -> list[Finding]:
    """Do threads fit the networks? Those of small networks wait for each other, large networks want all cores.

    threads: the environment's OMP_NUM_THREADS, None if it is not set; small: only miniatures; on_cpu: no GPU is used
    """
    told = f"OMP_NUM_THREADS={threads}" if threads else "OMP_NUM_THREADS is not set"
    count = int(threads) if threads and threads.isdecimal() else cores
    if small and on_cpu and count > 2:
        why = "with four, a step of the demo took 3.0 s on a busy machine, with one 0.17 s; two do no harm"
        return [
            Finding("warning", "threads", f"{told}, and the miniatures are small: {why}", "export OMP_NUM_THREADS=2")
        ]
    if not small and on_cpu and count < cores:
        told += f" of {cores} cores, and large networks run on the CPU"
        return [Finding("warning", "threads", told, f"make doctor OMP_NUM_THREADS={cores}, and the run with it too")]
    return [Finding("note", "threads", f"{told}, {cores} cores")]


def check_processes(processes: int, *, gpus: int, cores: int, on_cpu: bool, batch_size: int | None) -> list[Finding]:
    """Can so many processes share the run, each with a GPU or a core of its own and two images of each batch?

    batch_size: None if the run trains nothing
    """
    if processes <= 1:
        return []
    found, have, what = [], cores if on_cpu else gpus, "cores" if on_cpu else "GPUs"
    if processes > have:
        told = f"{processes} processes on a machine with {have} {what}"
        found.append(Finding("warning" if on_cpu else "stop", "processes", told, f"-p processes {max(1, have)}"))
    if batch_size and batch_size % (2 * processes):
        told = f"batch_size={batch_size} cannot be shared by {processes} processes"
        fix = f"-p batch_size {-(-batch_size // (2 * processes)) * 2 * processes}, a multiple of {2 * processes}"
        found.append(Finding("stop", "processes", told, fix))
    return found or [Finding("note", "processes", f"{processes} share the run; the costs below are those of one")]


def check_precision(precision: str, *, built_in: bool) -> list[Finding]:
    """Is half precision asked of hardware that has it? built_in: see `devices.has_bf16`."""
    if precision == "bf16" and not built_in:
        told = "precision=bf16 on hardware without it: a step of the demo took eight times as long as in fp32"
        return [Finding("warning", "precision", told, "-p precision auto")]
    return []


def check_load(load: float, cores: int) -> list[Finding]:
    """Is the machine at other work? Then what is timed is too long. load: processes that ran or waited, last minute."""
    if round(load) <= cores:
        return []
    told = f"{load:.0f} processes share {cores} cores: what is timed now is too long"
    return [Finding("warning", "load", told, "wait until the other work is done, and ask again")]


def look_at_memory() -> float:
    """Free memory in MiB that a new process could have; a container's limit counts."""
    import psutil

    free, own = psutil.virtual_memory().available, psutil.Process().memory_info().rss
    group = Path("/sys/fs/cgroup")
    try:
        free = min(free, int((group / "memory.max").read_text()) - int((group / "memory.current").read_text()))
    except (OSError, ValueError):  # no container, no limit ("max")
        pass
    return (free + own) / MB  # this process will be gone then


def look_at_gpu_memory() -> float | None:
    """Free memory of the GPU in MiB; None without one of NVIDIA."""
    import torch

    return torch.cuda.mem_get_info()[0] / MB if torch.cuda.is_available() else None


def check_hours(hours: float, budget: float, advice: str) -> list[Finding]:
    """Does the run fit into the hours that there are? advice: what else to do."""
    if hours <= budget:
        return []
    return [Finding("warning", "time", f"the run takes {hours:.1f} hours, there are {budget:g}", advice)]


def check_memory(kind: str, free_mb: float, peak_mb: float | None) -> list[Finding]:
    """Compare free memory with the peak that was measured (None or nan: not). kind: "memory" or "gpu memory"."""
    if peak_mb is None or peak_mb != peak_mb:
        return [Finding("note", kind, f"{free_mb / 1024:.1f} GiB are free; the peak was not measured")]
    told = f"{free_mb / 1024:.1f} GiB are free, the peak measured is {peak_mb / 1024:.1f} GiB"
    if kind == "memory":
        fix = "close what else runs, make images_at_once or batch_size smaller, or take sam_vit_b"
    else:
        fix = "-p mask_options '{..., points_per_batch: 16}', a smaller images_at_once or batch_size, or sam_vit_b"
    if free_mb < peak_mb:
        return [Finding("stop", kind, told, fix)]
    return [
        Finding("warning" if free_mb < ROOM * peak_mb else "note", kind, told, fix if free_mb < ROOM * peak_mb else "")
    ]


def check_disk(place: str, free: float, needed: float) -> list[Finding]:
    """Compare free disk with what will be written there. free, needed: bytes; place: what the disk holds, and where."""
    told = f"{place}: {free / GB:.1f} GB free, {needed / GB:.2f} GB needed"
    fix = "make room, or put results, checkpoints or data elsewhere: PLG_RESULTS, PLG_CHECKPOINTS, PLG_DATA=/other/disk"
    if free < needed:
        return [Finding("stop", "disk", told, fix)]
    if free < ROOM * needed:
        return [Finding("warning", "disk", told, fix)]
    return [Finding("note", "disk", told)]


def look_at_disk(needed: Mapping[str, tuple[Path, float]]) -> list[tuple[str, float, float]]:
    """Put together what is written to one disk: rows of place, free bytes, needed bytes.

    needed: what -> (its folder, which need not exist yet, bytes)
    """
    disks: dict[int, list] = {}
    for what, (folder, count) in needed.items():
        there = existing(folder)
        place = disks.setdefault(there.stat().st_dev, [[], shutil.disk_usage(there).free, 0.0])
        place[0].append(f"{what} in {folder}")
        place[2] += count
    return [(", ".join(names), free, count) for names, free, count in disks.values()]


def existing(folder: Path) -> Path:
    """Nearest folder above that exists."""
    return next(place for place in (folder, *folder.parents) if place.exists())


def look_at_folder(folder: Path) -> str:
    """Why nothing can be written into a folder, which need not exist; empty if it can."""
    probe = existing(folder) / f".plg-doctor-{uuid.uuid4().hex}"
    try:
        probe.touch()
        probe.unlink()
    except OSError as error:
        return str(error)
    return ""


def check_folder(what: str, folder: Path, error: str) -> list[Finding]:
    """Can results, checkpoints and data be written? error: see `look_at_folder`."""
    if not error:
        return []
    variable = {"results": "PLG_RESULTS", "checkpoints": "PLG_CHECKPOINTS", "data": "PLG_DATA"}[what]
    fix = f"export {variable}=/a/folder/of/yours, or let whoever owns {existing(folder)} give you the right to write"
    return [Finding("stop", "folders", f"{what} cannot be written to {folder}: {error}", fix)]


# Weights


@dataclass(frozen=True)
class Weights:
    """The state of a network's weights."""

    name: str
    state: str  # "ready", "absent" (it can be downloaded), "missing", "damaged"
    finding: Finding
    bytes: int = 0  # to be downloaded, as far as is known


def size_of(known: checkpoints.Checkpoint) -> int:
    """Ask where a checkpoint lies how many bytes it has, 0 if that is not told; OSError if nobody answers."""
    if known.hub:
        import huggingface_hub

        address = huggingface_hub.hf_hub_url(known.hub, checkpoints.WEIGHTS, revision=known.revision)
        try:
            return huggingface_hub.get_hf_file_metadata(address, timeout=10).size or 0
        except Exception as error:  # some of the library's are those of its HTTP client
            raise OSError(str(error)) from error
    import requests

    response = requests.head(known.address, timeout=30, allow_redirects=True)
    response.raise_for_status()
    return int(response.headers.get("Content-Length") or 0)


def look_at_weights(name: str | Path, probe: Callable[[checkpoints.Checkpoint], int] = size_of) -> Weights:
    """Are the weights here, and are they what they should be? Nothing is downloaded.

    name: as for `checkpoints.locate`; probe: tells the size of what lies elsewhere, or raises OSError
    """
    try:
        known = checkpoints.known(name)
    except (FileNotFoundError, ValueError) as error:
        return Weights(str(name), "missing", Finding("stop", "weights", str(error), "write such a name, or a path"))
    if known is not None and (known.address or known.hub):
        path = checkpoints.place_of(known)
        if not all((path / file).is_file() for file in known.files) if known.hub else not path.exists():
            return _absent(known, path, probe)
    try:
        found = checkpoints.locate(name)  # all files are there, so this downloads nothing; it compares the SHA-256
    except FileNotFoundError as error:  # a miniature that is gone
        fix = "git checkout plg_utils/miniature"
        return Weights(str(name), "missing", Finding("stop", "weights", str(error), fix))
    except (OSError, ValueError) as error:
        fix = (
            f"rm -r {path}, and it is fetched anew"
            if known.address or known.hub
            else "git checkout plg_utils/miniature"
        )
        return Weights(str(name), "damaged", Finding("stop", "weights", str(error), fix))
    told = "SHA-256 verified" if known else f"a file of your own: {found}"
    return Weights(str(name), "ready", Finding("note", "weights", f"{name} is here, {told}"))


def _absent(known: checkpoints.Checkpoint, path: Path, probe: Callable[[checkpoints.Checkpoint], int]) -> Weights:
    """What to say of weights that are not here: can they be had?"""
    part = path.with_name(f"{path.name}.part")
    have = part.stat().st_size if part.exists() else 0
    where = known.address or f"{known.hub} on the Hugging Face hub"
    try:
        size = probe(known) or known.size or 0
    except OSError as error:
        told = f"{known.name} is not in {path.parent} and cannot be downloaded from here ({error})"
        size = f" ({known.size / GB:.2f} GB)" if known.size else ""
        proof = f"; its SHA-256 is {known.sha256}" if known.sha256 else ""
        what = f"{', '.join(known.files)} of {where}" if known.hub else where
        fix = f"fetch {what}{size} on a machine with access and put it at {path}{proof}"
        return Weights(known.name, "missing", Finding("stop", "weights", told, fix), known.size or 0)
    told = f"{known.name} will be downloaded from {where} to {path}: "
    told += f"{(size - have) / GB:.2f} GB" if size else "how much is not told"
    python = f"from plg_utils import checkpoints; checkpoints.locate('{known.name}')"
    fix = f'to have it now, and its cost measured: .venv/bin/python -c "{python}"'
    return Weights(known.name, "absent", Finding("note", "weights", told, fix), max(0, size - have))


def look_at_all_weights(
    parameters: Mapping, notebooks: Sequence[str], probe: Callable[[checkpoints.Checkpoint], int] = size_of
) -> dict[str, Weights]:
    """The weights that the notebooks of a run load: the parameter that names them -> their state."""
    numbers, found = {name[:2] for name in notebooks}, {}
    if numbers & {"00", "02", "06"}:
        for option in ("mask_options", "encoder_options"):
            if parameters[option].get("checkpoint") is not None:  # None: random weights
                found[option] = look_at_weights(parameters[option]["checkpoint"], probe)
    if numbers & {"03", "04"}:
        module = importlib.import_module(f"plg_utils.segmenters.{parameters['segmenter']}")
        try:
            name = module.checkpoint(**parameters["segmenter_options"])
        except (TypeError, ValueError) as error:
            finding = Finding(
                "stop", "weights", str(error), "change segmenter_options: pretrained: false, for instance"
            )
            return found | {"segmenter_options": Weights("the segmenter's weights", "missing", finding)}
        if name is not None:
            found["segmenter_options"] = look_at_weights(name, probe)
    return found


# Data


def few(data: Dataset, count: int | None) -> Dataset:
    """Keep all labelled images, `count` unlabelled and val ones, evenly spaced (None: all), and no test images."""

    def spaced(samples: tuple) -> tuple:
        if count is None or len(samples) <= count:
            return samples
        return tuple(samples[k] for k in np.linspace(0, len(samples) - 1, count).round().astype(int))

    return replace(data, unlabelled=spaced(data.unlabelled), val=spaced(data.val), test=())


def look_at_data(name: str, *, read: int | None, **options) -> tuple[Dataset | None, list[Finding]]:
    """Load a data set and let the validator read some of it.

    read: images of the unlabelled and val splits, None for all; options: of its load()
    returns: the data set, only the labelled images' truth open, or None if it cannot be loaded; and what was found
    """
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        try:
            options = {"on_bad_image": "when_read"} | options  # the validator looks at the photos itself
            data = datasets.load(name, **options)
            opened = datasets.load(name, truth_of=SPLITS[:3], **options)
        except (OSError, TypeError, ValueError) as error:
            return None, [unloadable(error)]
    said = dict.fromkeys(str(warning.message) for warning in told if issubclass(warning.category, UserWarning))
    looked_at = few(opened, read)
    rows = [("warning", "said while loading", 1, text) for text in said] + check.data_set(looked_at)
    seen, there = (sum(len(getattr(each, split)) for split in SPLITS[:3]) for each in (looked_at, opened))
    return data, check_data(rows, seen, there)


def check_labels(labelled: int, notebooks: Sequence[str]) -> list[Finding]:
    """Is there something to train with, if the run trains?"""
    trains = [name for name in notebooks if name[:2] in ("03", "04")]
    if labelled or not trains:
        return []
    fix = "-p labelled N, or leave them out: a line `notebooks: [01_data, 02_zero_shot_labels]` in parameters.yaml"
    return [Finding("stop", "data", f"no image is labelled, and {' and '.join(trains)} train with labelled ones", fix)]


def check_data(rows: Sequence[tuple[str, str, int, str]], read: int, images: int) -> list[Finding]:
    """Turn the validator's stops and warnings into findings.

    rows: level, finding, count, detail, as `plg_utils.check.data_set` returns; read: images that were
    read; images: that there are
    """
    other = "look at the files that are named; all of them: python -m plg_utils.check NAME --root FOLDER"
    found = [
        Finding(level, "data", f"{finding}: {count:,} ({detail})", check.FIXES.get(finding, other))
        for level, finding, count, detail in rows
        if level != "note"
    ]
    told = f"{read:,} of {images:,} images read with their label maps"
    rest = "" if read == images else "all of them: python -m plg_utils.check NAME --root FOLDER, or -p validated null"
    return [*found, Finding("note", "data", told, rest)]


def unloadable(error: Exception) -> Finding:
    """What to say of a data set that cannot be loaded."""
    fix = "do what it says; if the folder lies elsewhere: -p data_root /path/to/it"
    return Finding("stop", "data", f"the data set cannot be loaded: {error}", fix)


# The whole machine


def machine(device: str = "auto", *, small: bool = True) -> list[Finding]:
    """Look at Python, packages, clip, GPU, threads and folders. small: whether the run has only miniatures."""
    installed, required, locked, wanted = look_at_packages()
    torch = look_at_torch()
    on_cpu = device == "cpu" or not (torch.available or torch.mps)
    folders = {"results": files.results_root(), "checkpoints": checkpoints.folder(), "data": files.data_root()}
    return [
        *check_python(tuple(map(int, sys.version_info[:3])), wanted),
        *check_packages(installed, required, locked),
        *check_clip(look_at_clip()),
        *check_gpu(look_at_driver(), torch, device=device, visible=os.environ.get("CUDA_VISIBLE_DEVICES")),
        *check_load(os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0, cores()),
        *check_threads(os.environ.get("OMP_NUM_THREADS"), cores(), small=small, on_cpu=on_cpu),
        *(
            finding
            for what, folder in folders.items()
            for finding in check_folder(what, folder, look_at_folder(folder))
        ),
    ]
