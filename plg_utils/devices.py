"""Where networks run: device, number format, threads, memory; and PLG_DETERMINISTIC, which fixes all that is random."""

import os
import random
import sys
import time

import numpy as np
import psutil
import torch

from plg_utils import distributed

MOST_THREADS = torch.get_num_threads()  # what OMP_NUM_THREADS says, or one for each core
_last_look: list[float] = []  # what `_seconds` gave


def deterministic(threads: int, seed: int = 0) -> None:
    """Make the same work give the same bytes on the same machine, on a GPU too; PLG_DETERMINISTIC=threads calls it.

    Seeds Python, NumPy and torch on every device, sets how many threads torch uses on the CPU, and asks torch, cuDNN
    and cuBLAS for algorithms whose result does not vary. Where torch has none it warns and goes on: SAM's cumsum of
    ones, say, is exact in any order.
    """
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002  other people's code draws from the global one
    torch.manual_seed(seed)
    torch.set_num_threads(threads)
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # cuBLAS reads it when CUDA starts
    torch.backends.cudnn.benchmark = False
    torch.utils.deterministic.fill_uninitialized_memory = False  # only a check, and slow
    torch.use_deterministic_algorithms(True, warn_only=True)


def use_free_cores(every: float | None = None) -> None:
    """Let torch use as many threads as other processes leave cores free, at most MOST_THREADS.

    A thread that waits for another keeps its core busy: beside one busy process on two cores, a training step of the
    demo took 0.6 s with two threads, and 0.3 s with one (results/bench/threads.json). PLG_DETERMINISTIC fixes the
    number, and several processes that share the work know theirs.

    every: look back over the time since the last look, if that is so many seconds; None: look at the next 0.2 seconds
    """
    if MOST_THREADS == 1 or _threads_asked_for() or distributed.joined():
        return
    if every is None:
        _last_look[:] = _seconds()
        time.sleep(0.2)
    now = _seconds()
    passed, busy, own = (new - old for new, old in zip(now, _last_look or now, strict=True))
    if _last_look and passed < (every or 0.1):
        return
    _last_look[:] = now
    if passed:
        free = (psutil.cpu_count() or 1) - (busy - own) / passed
        torch.set_num_threads(max(1, min(MOST_THREADS, round(free))))


def _seconds() -> tuple[float, float, float]:
    """The clock, the work of all cores so far, and that of this process."""
    cores = psutil.cpu_times()
    busy = sum(getattr(cores, name, 0.0) for name in ("user", "nice", "system", "steal"))
    return time.monotonic(), busy, time.process_time()


def choose(name: str = "auto") -> torch.device:
    """Choose where networks run: "cpu", "cuda" (or "cuda:1"), "mps", or "auto" for the best that is there.

    Where several processes share the work, each has a device of its own.
    """
    if distributed.local_device() is not None:
        return distributed.local_device()
    present = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return torch.device(next(kind for kind, is_there in present.items() if is_there))
    kind, _, index = name.partition(":")
    if kind not in present or (index and not index.isdecimal()):
        raise ValueError(f"device {name!r} is not known: use 'auto', 'cpu', 'cuda' or 'mps'")
    if not present[kind] or (kind == "cuda" and int(index or 0) >= torch.cuda.device_count()):
        raise ValueError(f"device {name!r} was asked for, but torch {torch.__version__} sees none; use 'auto' or 'cpu'")
    return torch.device(name)


def precision(name: str, on: torch.device) -> str:
    """Number format of a network's arithmetic on a device: "fp32", "bf16", or "auto": bf16 where it is built in.

    Processors that lack it take detours: without AVX-512 a step of training took eight times as long in bf16.
    """
    if name not in ("fp32", "bf16", "auto"):
        raise ValueError(f'precision is "{name}"; right are "fp32", "bf16" and "auto"')
    return ("bf16" if has_bf16(on) else "fp32") if name == "auto" else name


def has_bf16(on: torch.device) -> bool:
    """Whether a device computes in bf16 by itself."""
    if on.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    can = torch.cpu.get_capabilities() if on.type == "cpu" else {}
    return bool(can.get("avx512_bf16") or can.get("amx_bf16"))


def describe(place: torch.device) -> str:
    """Name a device for a manifest, with the GPU's model."""
    return f"{place} ({torch.cuda.get_device_name(place)})" if place.type == "cuda" else str(place)


def peak_memory_mb() -> float | None:
    """Largest memory that this process has held so far, in MiB; None where the system does not say."""
    try:
        from resource import RUSAGE_SELF, getrusage
    except ImportError:  # Windows
        return None
    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, Linux KiB
    return round(getrusage(RUSAGE_SELF).ru_maxrss * unit / 2**20, 1)


def peak_cuda_memory_mb() -> float | None:
    """Largest memory that torch has held on the current GPU, in MiB; None without one."""
    return round(torch.cuda.max_memory_allocated() / 2**20, 1) if torch.cuda.is_available() else None


def _threads_asked_for() -> int:
    value = os.environ.get("PLG_DETERMINISTIC") or "0"
    if not value.isdecimal():
        raise ValueError(f"PLG_DETERMINISTIC is {value!r}: right is a number of threads, or 0 for off")
    return int(value)


if _threads_asked_for():  # here, because CUDA must not have started yet, and each kernel and process comes by
    deterministic(_threads_asked_for())
