"""What the trainings of the miniatures share: schedule, optimizers, several processes, a state to resume from."""

import math
import os
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
import torch.distributed
import torch.multiprocessing
from torch import nn


def optimizers(
    modules: Iterable[nn.Module], *, lr: float, muon_lr: float, muon: Callable[[str], bool], weight_decay: float = 0.05
) -> list[torch.optim.Optimizer]:
    """Muon for the matrices whose name `muon` accepts, AdamW for all other parameters; vectors are not decayed.

    muon_lr: in AdamW's unit (update of equal root mean square; Liu et al. 2025, Muon is Scalable for LLM Training)
    """
    named = [(name, p) for module in modules for name, p in module.named_parameters() if p.requires_grad]
    matrices = [p for name, p in named if p.ndim == 2 and muon(name)]
    taken = {id(p) for p in matrices}
    rest = [p for _, p in named if id(p) not in taken]
    groups = [
        {"params": [p for p in rest if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in rest if p.ndim <= 1], "weight_decay": 0.0},
    ]
    found: list[torch.optim.Optimizer] = [torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.98), fused=True)]
    if matrices:
        found.append(torch.optim.Muon(matrices, lr=muon_lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"))
    for optimizer in found:
        for group in optimizer.param_groups:
            group["full_lr"] = group["lr"]
    return found


def set_rate(optimizers: Iterable[torch.optim.Optimizer], share: float) -> None:
    """Set every learning rate to `share` of its full value."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["full_lr"] * share


def schedule(step: int, progress: float, *, warmup: int, decay: float) -> float:
    """Share of the full learning rate: linear warmup, constant, and over the last `decay` of the run 1 - sqrt to zero.

    progress: share of the run that is done, in [0, 1]; a run cut short is finished by a run with decay=1
    (Hägele et al. 2024, Scaling Laws and Compute-Optimal Training Beyond Fixed Training Durations)
    """
    into = max(0.0, (progress - (1 - decay)) / decay) if decay > 0 else 0.0
    return min(1.0, (step + 1) / max(1, warmup)) * (1 - math.sqrt(min(1.0, into)))


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Average the gradients over the processes in one flat message; does nothing in a single process."""
    if not torch.distributed.is_initialized():
        return
    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([g.flatten() for g in gradients])
    torch.distributed.all_reduce(flat)
    flat /= torch.distributed.get_world_size()
    for gradient, mean in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(mean.view_as(gradient))


def agree(value: float) -> float:
    """The value of process 0, in every process: clocks differ, and all must stop at the same step."""
    if not torch.distributed.is_initialized():
        return value
    shared = torch.tensor([value], dtype=torch.float64)
    torch.distributed.broadcast(shared, 0)
    return float(shared)


class Clock:
    """Progress of a run of `steps` steps or of `minutes` minutes, whichever is given; earlier sittings count."""

    def __init__(self, *, steps: int | None, minutes: float | None, step: int = 0, seconds: float = 0.0):
        """Start the clock at what an earlier sitting has done."""
        if (steps is None) == (minutes is None):
            raise ValueError(f"give either steps or minutes, not steps={steps} and minutes={minutes}")
        self.steps, self.minutes, self.step, self.before, self.start = steps, minutes, step, seconds, time.monotonic()

    @property
    def seconds(self) -> float:
        """Seconds of training so far, over all sittings."""
        return self.before + time.monotonic() - self.start

    def progress(self) -> float:
        """Share of the run that is done; the same in every process."""
        return self.step / self.steps if self.steps is not None else agree(self.seconds / 60 / self.minutes)


def save_state(path: Path, state: dict) -> None:
    """Write a training state so that a reader never sees half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    torch.save(state, unfinished)
    os.replace(unfinished, path)


def load_state(path: Path) -> dict | None:
    """The state saved last, or None before the first."""
    return torch.load(path, weights_only=True) if path.exists() else None


def run(worker: Callable, processes: int, *arguments) -> None:
    """Call worker(rank, *arguments) in each of `processes` processes that can average gradients; one needs no start."""
    if processes == 1:
        worker(0, *arguments)
        return
    # Keep the memory of big tensors: to give it back to the kernel and fetch it again at every step can cost more than
    # the arithmetic (glibc; read when a process starts).
    os.environ |= {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(10**11), "MALLOC_TOP_PAD_": str(2**28)}
    with tempfile.TemporaryDirectory() as folder:
        meeting = f"file://{folder}/meeting"
        torch.multiprocessing.spawn(_join, (worker, processes, meeting, arguments), nprocs=processes)


def _join(rank: int, worker: Callable, processes: int, meeting: str, arguments: tuple) -> None:
    torch.set_num_threads(1)  # threads of several processes would only wait for each other
    torch.distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=processes)
    worker(rank, *arguments)
    torch.distributed.destroy_process_group()


def restore(optimizers: Iterable[torch.optim.Optimizer], states: Iterable[dict]) -> None:
    """Load the states of optimizers; full learning rates stay those of this run."""
    for optimizer, state in zip(optimizers, states, strict=True):
        full = [group["full_lr"] for group in optimizer.param_groups]
        optimizer.load_state_dict(state)
        for group, rate in zip(optimizer.param_groups, full, strict=True):
            group["full_lr"] = rate
