"""What the benchmarks share: ours and the original in turn, in one process; medians, their ratio, and a JSON file."""

import argparse
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from plg_utils import files

RESULTS = files.ROOT / "results" / "bench"


def arguments(about: str) -> argparse.ArgumentParser:
    """Options that all benchmarks have."""
    parser = argparse.ArgumentParser(description=about.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=15, help="of each, after one that warms up")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--write", type=Path, default=RESULTS, help="folder of the JSON files")
    return parser


def seconds(calls: dict[str, Callable], repeats: int, device: str = "cpu") -> dict[str, list[float]]:
    """Time all calls in turn, so that what disturbs the machine disturbs all; the first turn warms up."""
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(repeats + 1):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            if device.startswith("cuda"):
                torch.cuda.synchronize()
            if turn:
                taken[name].append(time.perf_counter() - start)
    return taken


def compare(ours: list[float], original: list[float]) -> dict[str, float]:
    """Medians and how often ours fits into the original; the same of the best turns, which are disturbed least."""
    middle, best = ((pick(ours), pick(original)) for pick in (statistics.median, min))
    return {
        "ours_s": middle[0],
        "original_s": middle[1],
        "ratio": middle[1] / middle[0],
        "best_s": list(best),
        "best_ratio": best[1] / best[0],
    }


def place(device: str) -> str:
    """Name the device, and its threads if it is a processor."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    name = f"{names[0] if names else platform.machine()} with {torch.backends.cpu.get_cpu_capability()}"
    return f"{name}, {torch.get_num_threads()} thread(s) of {os.cpu_count()} cores"


def report(folder: Path, name: str, device: str, **found) -> None:
    """Print what was found and write it to NAME.json, which keeps the last results of other devices as well."""
    tuned = "MALLOC_TOP_PAD_" in os.environ
    allocator = "as the Makefile sets it" if tuned else "its own settings"
    name = name if tuned else f"{name}_plain_malloc"
    found = {"name": name, "device": place(device), "torch": torch.__version__, "allocator": allocator} | found
    path = folder / f"{name}.json"
    earlier = files.read_json(path) if path.exists() else {}
    others = earlier.pop("on_other_devices", {}) | ({earlier["device"]: earlier} if earlier else {})
    others.pop(found["device"], None)
    files.write_json(path, files.plain(found | ({"on_other_devices": others} if others else {})))
    width = max(map(len, found))
    for key, value in found.items():
        print(f"{key:<{width}}  {value:.4g}" if isinstance(value, float) else f"{key:<{width}}  {value}")
    print()
