r"""One run in several processes, each with a device of its own, on one machine or on several.

A stage starts them if its run asks for `processes`, and finds its work done when they have ended. Or a terminal starts
them, on machines that share the folder of results:

    torchrun --nproc-per-node 4 notebooks/run.py voc_92 --stages
    torchrun --nnodes 2 --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint HOST:PORT \
        notebooks/run.py voc_92 --stages

All of them call the same stage functions. `store.loaded` gives each process its share of the images, whose
files never collide; `training.fit` gives it its share of each batch, and all steps are those of a single process:
views, dropout, batch statistics and the pixels by which a mean is divided are those of the whole batch. In a single
process nothing here does anything, and accelerate is not imported.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from plg_utils import files

PATIENCE = timedelta(days=7)  # for which a process waits for the slowest; torch's own is some minutes
_state = None  # accelerate.PartialState of a process that was started together with others


def start(device: str = "auto") -> None:
    """Join the processes that torchrun has started with this one.

    device: "cpu", or anything else for the GPUs of this machine, one for each process
    """
    global _state
    cpu = device == "cpu" or not torch.cuda.is_available()
    here = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    if not cpu and here > torch.cuda.device_count():
        raise ValueError(f"{here} processes on a machine with {torch.cuda.device_count()} GPUs: right is one for each")
    from accelerate import PartialState

    _state = PartialState(cpu=cpu, timeout=PATIENCE)


def stop() -> None:
    """Leave the others; from here on this process is alone."""
    global _state
    if _state is not None:
        _state.destroy_process_group()
    _state = None


def count() -> int:
    """How many processes share the work; 1 is the usual case."""
    return 1 if _state is None else _state.num_processes


def joined() -> bool:
    """Whether this process was started together with others."""
    return _state is not None


def rank() -> int:
    """Which of them this is, from 0."""
    return 0 if _state is None else _state.process_index


def is_main() -> bool:
    """Whether this process is the one that writes what all share, and that speaks."""
    return rank() == 0


def local_device() -> torch.device | None:
    """The device that is this process's own; None if there is only one process."""
    return None if _state is None else _state.device


def wait() -> None:
    """Go on when all have come here."""
    if _state is not None:
        _state.wait_for_everyone()


def main_first() -> AbstractContextManager:
    """Let the main process run the block, then the others."""
    return nullcontext() if _state is None else _state.main_process_first()


def agreed(value: Any) -> Any:
    """What the main process has for a value; all must ask."""
    if count() == 1:
        return value
    box = [value]
    torch.distributed.broadcast_object_list(box, src=0, device=_state.device)
    return box[0]


# Training


def rows(size: int) -> list[int]:
    """Which images of a batch are this process's.

    They are symmetric: with image i comes the one that stands as far from the end, so that the share in reverse order
    is the share of the batch in reverse order, from which CutMix pastes.
    """
    pairs = size // 2
    if size % 2 or pairs % count():
        problem = f"a batch of {size} cannot be shared by {count()} processes"
        raise ValueError(f"{problem}: right is a multiple of {2 * count()}, since CutMix needs two images in each")
    first = list(range(pairs))[rank() :: count()]
    return first + [size - 1 - index for index in reversed(first)]


def mean(tensor: torch.Tensor) -> torch.Tensor:
    """Mean of a tensor over the processes, as float; without gradient, and unchanged in a single process."""
    if count() == 1:
        return tensor
    total = tensor.detach().float()
    torch.distributed.all_reduce(total)
    return total / count()


def dropout2d(maps: torch.Tensor, part: float, sizes: Sequence[int]) -> torch.Tensor:
    """Drop channels of the maps (N, C, H, W) as F.dropout2d does, each image those that it loses in the whole batch.

    sizes: how many of the N images come from each batch that was shared, such as labelled and unlabelled
    """
    if count() == 1:
        return F.dropout2d(maps, part)
    whole = [size * count() for size in sizes]
    mine = [sum(whole[:number]) + row for number, size in enumerate(whole) for row in rows(size)]
    return maps * F.dropout2d(maps.new_ones(sum(whole), maps.shape[1], 1, 1), part)[mine]


class SharedBatchNorm(nn.BatchNorm2d):
    """Batch normalisation with the statistics of all processes; torch's own nn.SyncBatchNorm is for GPUs only."""

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        """Normalise maps (N, C, H, W)."""
        if not self.training or count() == 1:
            return super().forward(maps)
        from torch.distributed.nn.functional import all_reduce

        values = maps.float()
        number = count() * values[:, 0].numel()
        average = all_reduce(values.sum(dim=(0, 2, 3))) / number
        centred = values - average[:, None, None]
        variance = all_reduce(centred.square().sum(dim=(0, 2, 3))) / number
        with torch.no_grad():
            self.num_batches_tracked += 1
            factor = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
            self.running_mean.lerp_(average, factor)
            self.running_var.lerp_(variance * number / (number - 1), factor)
        scale = self.weight * (variance + self.eps).rsqrt()
        return (centred * scale[:, None, None] + self.bias[:, None, None]).to(maps.dtype)


def share_statistics(model: nn.Module, device: torch.device) -> nn.Module:
    """Let the model's batch normalisations use the statistics of all processes; parameters stay the same objects."""
    if count() == 1:
        return model
    if device.type != "cpu":
        from timm.layers import convert_sync_batchnorm  # knows timm's own kinds too

        return convert_sync_batchnorm(model)
    for name, module in model.named_modules():
        if type(module) is nn.BatchNorm2d and module.affine and module.track_running_stats:
            module.__class__ = SharedBatchNorm
        elif isinstance(module, nn.modules.batchnorm._BatchNorm) and not isinstance(module, SharedBatchNorm):
            raise TypeError(f"{name} is a {type(module).__name__}: on the CPU only a plain BatchNorm2d can be shared")
    return model


class _Step(nn.Module):
    """A model with its loss as one module, which DistributedDataParallel can wrap."""

    def __init__(self, model: nn.Module, loss):
        super().__init__()
        self.model, self.loss = model, loss

    def forward(self, batch: dict) -> dict[str, torch.Tensor]:
        """Return the loss's terms."""
        return self.loss(self.model, batch)


def step(model: nn.Module, loss):
    """Return what takes a batch to the loss's terms, and whose gradients are the mean of all processes'."""
    if count() == 1:
        return partial(loss, model)
    return nn.parallel.DistributedDataParallel(_Step(model, loss), broadcast_buffers=False, static_graph=True)


# Starting


def launch(processes: int, module: str, order: dict[str, Any]) -> None:
    """Run a module of this package in several processes on this machine, and show their progress on stderr.

    module: such as plg_utils.stages; order: what they are to do, as JSON, in a file that is their only argument
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "order.json"
        files.write_json(path, order)
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        threads = max(1, min(torch.get_num_threads(), cores // processes))
        environment = os.environ | {"PLG_RESULTS": str(files.results_root()), "OMP_NUM_THREADS": str(threads)}
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
        command += ["-m", module, str(path)]
        last = b""
        with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL) as process:
            try:
                while text := process.stderr.read1(4096):  # progress bars, shown as they come
                    sys.stderr.write(text.decode(errors="replace"))
                    sys.stderr.flush()
                    last = (last + text)[-8000:]
            except BaseException:  # an interrupted cell must not leave processes behind
                process.terminate()
                raise
        if process.returncode:
            said = last.decode(errors="replace")
            raise RuntimeError(f"{processes} processes failed in {order.get('stage', module)}:\n{said}")
