"""fit: minimise a loss on labelled and unlabelled images. predict: label images with a trained network.

Everything random in step t follows from (seed, t): which images, their views, the boxes, the dropout. So a run that
was stopped goes on as if it had not been, and the views of a step can be drawn in any process.
"""

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from torch.utils.data import DataLoader, Dataset

from plg_utils import augment, devices, distributed, files, store
from plg_utils.choices import one_of
from plg_utils.encoders import by_size
from plg_utils.records import IGNORE, PseudoLabel, Sample

LABELLED, UNLABELLED, DROPOUT = range(3)  # streams of random numbers
PRECISIONS = ("fp32", "bf16")
SAVE_SECONDS = 50  # between two writings of the state; with the step at work, less than a minute is lost


def fit(
    model: nn.Module,
    loss: Callable[[nn.Module, dict], dict[str, torch.Tensor]],
    labelled: Sequence[Sample],
    unlabelled: Sequence[Sample] = (),
    *,
    pseudo_label: Callable[[Sample], np.ndarray] | None = None,
    batches: type | None = None,
    steps: int,
    batch_size: int,
    crop_size: int,
    lr: float,
    head_lr_factor: float = 10.0,
    optimizer: str = "sgd",
    momentum: float = 0.9,
    weight_decay: float = 1e-4,
    power: float = 0.9,
    part: tuple[int, int] | None = None,
    ema: float | None = None,
    scale: tuple[float, float] = (0.5, 2.0),
    cutmix_partner: str = "batch",
    strong_views: bool = True,
    seed: int = 0,
    device: str | torch.device = "cpu",
    precision: str = "fp32",
    channels_last: bool = False,
    compiled: bool = False,
    workers: int = 0,
    cache_bytes: int = 2**30,
    state_file: str | Path | None = None,
    log_every: int = 10,
    progress: str | None = "training",
) -> list[dict[str, float]]:
    """Train the model in place; defaults are UniMatch's, with SGD and polynomial decay.

    loss: what `losses.build` returned; labelled: samples whose truth is open; unlabelled: samples, whose truth is
        never read; pseudo_label: reads the label map (H, W) uint8 of an unlabelled sample
    batches: a class in the place of `Batches`; such a training is that of one process, whoever else is there
    batch_size: labelled images of a step, and as many unlabelled ones; crop_size: pixels; scale: of the weak view
    lr: of the encoder; everything else learns head_lr_factor times as fast; optimizer: "sgd" or "adamw" (whose first
        beta is the momentum)
    part: (first, last): do only these steps of the training, counted from 0, last not included; what is random in them
        and the decay of lr are those of the whole. None: all
    ema: None, or how slowly an average of the weights moves; a loss may ask it for predictions, and it becomes the
        model at the end
    cutmix_partner: what CutMix pastes: "batch", another image of the batch, or "view", another view of the same image
    strong_views: False draws weak views alone, for a loss that looks at no others
    precision: "fp32", or "bf16" for autocast; channels_last: memory order that some machines prefer
    compiled: let torch.compile make both halves of the network faster, which takes minutes at the beginning
    workers: processes that draw views; cache_bytes: images kept decoded, in each of them
    state_file: safetensors, written each minute and at the end; if it exists, training goes on from it. It must be of
        the same arguments and initial weights; the caller makes sure that the samples' files are the same
    progress: what the bar on stderr is called; None shows none
    returns: a row for every log_every steps: step, lr, and the mean of each term of the loss since the row before

    Where several processes share the work (distributed.py), each learns from its share of each batch; batch_size is
    that of them all, and the steps are those of a single process.
    """
    settings = {
        "steps": steps, "batch_size": batch_size, "crop_size": crop_size, "lr": lr, "head_lr_factor": head_lr_factor,
        "optimizer": optimizer, "momentum": momentum, "weight_decay": weight_decay, "power": power, "part": part,
        "ema": ema, "scale": scale, "cutmix_partner": cutmix_partner, "strong_views": strong_views, "seed": seed,
        "precision": precision, "channels_last": channels_last, "compiled": compiled, "log_every": log_every,
        "loss": str(getattr(loss, "settings", "")),
        "labelled": [sample.id for sample in labelled], "unlabelled": [sample.id for sample in unlabelled],
        "pseudo labels": pseudo_label is not None, "initial weights": digest(model),
    }  # fmt: skip
    device = torch.device(device)
    for name in ("steps", "batch_size", "crop_size", "log_every"):
        if type(settings[name]) is not int or settings[name] < 1:
            raise ValueError(f"{name} is {settings[name]!r}; right is a whole number from 1 on")
    if len(scale) != 2 or not 0 < scale[0] <= scale[1] < math.inf:
        raise ValueError(f"scale is {scale}; right are two factors above 0, the smaller first, such as (0.5, 2)")
    is_sound = min(lr, head_lr_factor) > 0 and 0 <= momentum < 1 and 0 <= (ema or 0) < 1
    if not (is_sound and all(0 <= each < math.inf for each in (lr, head_lr_factor, weight_decay, power))):
        names = ("lr", "head_lr_factor", "weight_decay", "power", "momentum", "ema")
        given = ", ".join(f"{name}={settings[name]}" for name in names)
        raise ValueError(
            f"{given}: lr and head_lr_factor must be above 0, weight_decay and power from 0 on, momentum and ema from "
            "0 to below 1"
        )
    first, last = part or (0, steps)
    if not 0 <= first < last <= steps:
        raise ValueError(f"part is {part}; right are two of {steps} steps, the first and the one after the last")
    if crop_size % (multiple := getattr(model, "multiple", 1)):
        below = crop_size // multiple * multiple
        raise ValueError(
            f"crop_size is {crop_size}; this segmenter takes multiples of {multiple}: {below or multiple} or "
            f"{(below or multiple) + multiple}"
        )
    one_of(precision, PRECISIONS, "precision")
    one_of(cutmix_partner, ("batch", "view"), "cutmix_partner")
    is_shared = batches is None and distributed.count() > 1
    if is_shared:
        model = distributed.share_statistics(model, device)
    model.to(device, memory_format=layout(channels_last)).train()
    optimiser = build_optimizer(model, optimizer, lr, head_lr_factor, momentum, weight_decay)
    factors = [group["lr"] / lr for group in optimiser.param_groups]
    average = Average(model, ema) if ema is not None else None
    history, unfinished, done = load_state(state_file, settings, model, optimiser, average)
    start = max(first, done)
    batches = (batches or Batches)(
        labelled, unlabelled, pseudo_label,
        steps=steps, batch_size=batch_size, crop_size=crop_size, scale=scale, cutmix_partner=cutmix_partner,
        strong_views=strong_views, seed=seed, cache_bytes=cache_bytes,
        share=distributed.rows(batch_size) if is_shared else None,
    )  # fmt: skip
    network = Compiled(model) if compiled else model
    take_step = distributed.step(network, loss) if is_shared else partial(loss, network)
    loader = DataLoader(
        batches, batch_size=None, sampler=range(start, last), num_workers=workers, pin_memory=device.type == "cuda"
    )
    pending, saved = list(torch.tensor(unfinished, device=device)), time.monotonic()
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        drawn = zip(range(start, last), loader, strict=True)
        if progress is not None:
            drawn = store.progress(drawn, total=last - start, what=progress)
        for step, batch in drawn:
            devices.use_free_cores(every=10)
            torch.manual_seed(int(np.random.SeedSequence((seed, step, DROPOUT)).generate_state(1)[0]))
            batch = to_device(batch, device, channels_last) | {"progress": (step - first) / (last - first)}
            if average is not None:
                batch["average"] = average
            rate = learning_rate(step, steps, lr, power)
            for group, factor in zip(optimiser.param_groups, factors, strict=True):
                group["lr"] = rate * factor
            with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
                terms = take_step(batch)
            optimiser.zero_grad(set_to_none=True)
            terms["total"].backward()
            optimiser.step()
            if average is not None:
                average.update(step - first)
            values = torch.stack([term.detach() for term in terms.values()])
            pending.append(distributed.mean(values) if is_shared else values)
            ends_row = (step + 1) % log_every == 0 or step + 1 == last
            is_due = step + 1 == last or time.monotonic() - saved > SAVE_SECONDS
            is_due = is_due and state_file is not None and not (is_shared and distributed.rank())
            if ends_row or is_due:
                table = torch.stack(pending).cpu()  # waits for the device
                check_finite(table[:, list(terms).index("total")], step + 1 - len(pending), batches)
            if ends_row:
                means = dict(zip(terms, table.double().mean(dim=0).tolist(), strict=True))
                history.append({"step": step + 1, "lr": rate, **means})
                pending = []
            if is_due:
                rows = history if ends_row else [*history, {"unfinished": table.tolist()}]
                save_state(state_file, settings, model, optimiser, average, rows, step + 1)
                saved = time.monotonic()
    if average is not None:
        model.load_state_dict(average.weights)
    model.eval()
    return history


class Compiled(nn.Module):
    """A segmenter whose `encode` and `decode` are compiled; its parameters are the segmenter's own."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model
        # A step sees a handful of batch sizes: code made for each of them is faster than one for all.
        self.encode = torch.compile(model.encode, dynamic=False)
        self.decode = torch.compile(model.decode, dynamic=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits (B, K, H, W) of images (B, 3, H, W)."""
        return self.decode(self.encode(images), images.shape[-2:])


@torch.no_grad()
def predict(
    model: nn.Module,
    images: Iterable[np.ndarray],
    *,
    batch_size: int = 8,
    device: str | torch.device = "cpu",
    precision: str = "fp32",
    channels_last: bool = False,
) -> list[PseudoLabel]:
    """Label whole images at a single scale, as UniMatch evaluates (supervised.py, mode "original").

    images: (H, W, 3) uint8, of any sizes; those of the same size share a batch
    returns: one PseudoLabel for each, in order, at the image's exact size; confidence is the largest probability
    """
    device = torch.device(device)
    model.to(device, memory_format=layout(channels_last)).eval()
    images = list(images)

    def label(together: list[int]) -> list[PseudoLabel]:
        batch = {"image": torch.from_numpy(np.stack([images[index] for index in together]))}
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            logits = model(to_device(batch, device, channels_last)["image"])
        confidence, classes = logits.float().softmax(dim=1).max(dim=1)
        return list(map(PseudoLabel, classes.to(torch.uint8).cpu().numpy(), confidence.cpu().numpy()))

    return by_size([image.shape[:2] for image in images], batch_size, label)


@dataclass(eq=False)
class Batches(Dataset):
    """The batch of each step, drawn from (seed, step) alone; images (B, H, W, 3) and label maps are uint8 still."""

    labelled: Sequence[Sample]
    unlabelled: Sequence[Sample]
    pseudo_label: Callable[[Sample], np.ndarray] | None
    steps: int
    batch_size: int
    crop_size: int
    scale: tuple[float, float]
    cutmix_partner: str
    seed: int
    cache_bytes: int  # what is left of them, once images are kept
    strong_views: bool = True
    share: Sequence[int] | None = None  # images of a batch that are handed out; all are drawn, so that each is the same
    cache: dict[tuple[int, str], tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)

    def __post_init__(self):
        """Refuse what no batch can be drawn from."""
        if not self.labelled:
            raise ValueError("there is no labelled image to learn from")

    def __len__(self) -> int:
        return self.steps

    def samples(self, step: int, stream: int) -> list[Sample]:
        """The samples of a step: all in random order, then all again in another order, and so on."""
        pool = self.unlabelled if stream == UNLABELLED else self.labelled
        chosen = []
        for position in range(step * self.batch_size, (step + 1) * self.batch_size):
            epoch, index = divmod(position, len(pool))
            chosen.append(pool[shuffled(self.seed, epoch, stream, len(pool))[index]])
        return chosen

    def read(self, sample: Sample, stream: int) -> tuple[np.ndarray, np.ndarray]:
        """Image (H, W, 3) uint8 and label map (H, W) uint8 of a sample, from memory if there is room."""
        key = stream, sample.id
        if key in self.cache:
            return self.cache[key]
        image = sample.image()
        if stream == LABELLED:
            label = sample.truth()
        elif self.pseudo_label is not None:
            label = self.pseudo_label(sample)
        else:
            label = np.full(image.shape[:2], IGNORE, np.uint8)
        if label.dtype != np.uint8 or label.shape != image.shape[:2]:
            raise ValueError(
                f"{sample.id}: the label map is {label.dtype} {label.shape}, not uint8 {image.shape[:2]} as its image"
            )
        if (size := image.nbytes + label.nbytes) <= self.cache_bytes:
            self.cache_bytes -= size
            self.cache[key] = image, label
        return image, label

    def __getitem__(self, step: int) -> dict[str, torch.Tensor]:
        """Draw the batch of a step, as `losses` describes it."""
        rng = np.random.default_rng((self.seed, step, LABELLED))
        views = [self.weak(sample, LABELLED, rng) for sample in self.samples(step, LABELLED)]
        batch = {"image": [image for image, _, _ in views], "label": [label for _, label, _ in views]}
        if self.unlabelled:
            rng = np.random.default_rng((self.seed, step, UNLABELLED))
            samples = self.samples(step, UNLABELLED)
            batch |= self.unlabelled_views(samples, rng)
            for name in ("boxes1", "boxes2") if self.strong_views else ():
                batch[name] = [np.array(augment.cutmix_box(self.crop_size, rng)) for _ in samples]
            if self.strong_views and self.cutmix_partner == "view":
                batch |= {f"partner_{name}": views for name, views in self.unlabelled_views(samples, rng).items()}
        if self.share is not None:
            batch = {name: [arrays[index] for index in self.share] for name, arrays in batch.items()}
        return {name: torch.from_numpy(np.stack(arrays)) for name, arrays in batch.items()}

    def weak(self, sample: Sample, stream: int, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
        """Weak view of a sample: image, label map, padding."""
        return augment.weak(*self.read(sample, stream), self.crop_size, rng, scale=self.scale)

    def unlabelled_views(self, samples: list[Sample], rng: np.random.Generator) -> dict[str, list[np.ndarray]]:
        """Weak and, if they are wanted, strong views of unlabelled samples."""
        views: dict[str, list[np.ndarray]] = {}
        for sample in samples:
            image, label, padding = self.weak(sample, UNLABELLED, rng)
            view = {"weak": image, "ignore": padding}
            if self.strong_views:
                view |= {"strong1": augment.strong(image, rng), "strong2": augment.strong(image, rng)}
            if self.pseudo_label is not None:
                view["pseudo_label"] = label
            for name, array in view.items():
                views.setdefault(name, []).append(array)
        return views


@lru_cache(maxsize=4)  # both streams, and two rounds at the end of one; COCO's 118,000 images take 6 ms to shuffle
def shuffled(seed: int, epoch: int, stream: int, count: int) -> np.ndarray:
    """The numbers below `count` in the order of a round of a stream: (count,) int64, not to be changed."""
    return np.random.default_rng((seed, epoch, stream)).permutation(count)


class Average:
    """Exponential moving average of a model's weights and batch statistics."""

    def __init__(self, model: nn.Module, decay: float):
        self.model, self.decay = model, decay
        self.weights = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}

    @torch.no_grad()
    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Logits (B, K, H, W) of the model with the averaged weights, in evaluation mode."""
        training = self.model.training
        self.model.eval()
        logits = torch.func.functional_call(self.model, self.weights, (images,))
        self.model.train(training)
        return logits

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after a step; the first steps count fully, as in UniMatch V2."""
        decay = min(1 - 1 / (step + 1), self.decay)
        for name, tensor in self.model.state_dict().items():
            if tensor.dtype.is_floating_point:
                self.weights[name].lerp_(tensor, 1 - decay)
            else:
                self.weights[name].copy_(tensor)


def learning_rate(step: int, steps: int, lr: float, power: float) -> float:
    """Polynomial decay; step counts from 0. UniMatch sets the rate after a step, so steps 0 and 1 have the same."""
    return lr * (1 - max(step - 1, 0) / steps) ** power


def build_optimizer(
    model: nn.Module, name: str, lr: float, head_lr_factor: float, momentum: float, weight_decay: float
) -> torch.optim.Optimizer:
    """Build SGD or AdamW with two groups: the encoder, and everything else at head_lr_factor times its rate."""
    encoder = list(model.encoder.parameters())
    known = {id(parameter) for parameter in encoder}
    rest = [parameter for parameter in model.parameters() if id(parameter) not in known]
    groups = [{"params": encoder, "lr": lr}, {"params": rest, "lr": lr * head_lr_factor}]
    if one_of(name, ("sgd", "adamw"), "optimizer") == "sgd":
        return torch.optim.SGD(groups, momentum=momentum, weight_decay=weight_decay)
    # Fused: on the CPU a step of the miniature segmenter's takes a quarter of the time.
    return torch.optim.AdamW(groups, betas=(momentum, 0.999), weight_decay=weight_decay, fused=True)


def layout(channels_last: bool) -> torch.memory_format:
    """Memory order of images, feature maps and kernels."""
    return torch.channels_last if channels_last else torch.contiguous_format


def to_device(batch: dict[str, torch.Tensor], device: torch.device, channels_last: bool) -> dict[str, torch.Tensor]:
    """Move a batch to the device; images become (B, 3, H, W) normalised, label maps and boxes int64, bool stays."""
    moved = {}
    for name, tensor in batch.items():
        tensor = tensor.to(device, non_blocking=True)
        if tensor.ndim == 4:
            tensor = augment.normalise(tensor.permute(0, 3, 1, 2)).contiguous(memory_format=layout(channels_last))
        elif tensor.dtype != torch.bool:
            tensor = tensor.long()
        moved[name] = tensor
    return moved


def check_finite(losses: torch.Tensor, first: int, batches: Batches) -> None:
    """Stop at the first loss (M,) that is not a number; `first` is the step, counted from 0, of losses[0]."""
    for step, value in enumerate(losses.tolist(), start=first):
        if not math.isfinite(value):
            message = f"the loss of step {step + 1} is {value}"
            for name, stream in (("labelled", LABELLED), ("unlabelled", UNLABELLED))[: 1 + bool(batches.unlabelled)]:
                message += f"; {name} images: {', '.join(sample.id for sample in batches.samples(step, stream))}"
            raise FloatingPointError(message)


def digest(model: nn.Module) -> str:
    """SHA-256 of a model's weights, in hex."""
    sha = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        sha.update(name.encode())
        sha.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()


def save_state(
    path: str | Path,
    settings: dict,
    model: nn.Module,
    optimiser: torch.optim.Optimizer,
    average: Average | None,
    history: list[dict[str, float]],
    step: int,
) -> None:
    """Write everything that the next step depends on as safetensors; the same state gives the same bytes."""
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    for index, memory in optimiser.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": tensor for name, tensor in memory.items() if tensor is not None}
    if average is not None:
        tensors |= {f"average.{name}": tensor for name, tensor in average.weights.items()}
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    notes = json.dumps({"step": step, "settings": settings, "history": history})
    with files.atomic(path) as partial:
        partial.write_bytes(safetensors.torch.save(tensors, {"training": notes}))
        store.to_disk(partial)  # before it takes the place of the state before


def load_state(
    path: str | Path | None, settings: dict, model: nn.Module, optimiser: torch.optim.Optimizer, average: Average | None
) -> tuple[list[dict[str, float]], list, int]:
    """Continue from a state that was saved with the same settings, if there is one.

    returns: its history, the terms of the steps since the last row of the history, and the number of steps done
    """
    if path is None or not Path(path).exists():
        return [], [], 0
    try:
        with safe_open(path, framework="pt") as file:
            notes = json.loads((file.metadata() or {})["training"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  it is no dict
        history, step, saved = list(notes["history"]), int(notes["step"]), notes["settings"]
        unfinished = history.pop()["unfinished"] if history and "unfinished" in history[-1] else []
        settings = json.loads(json.dumps(settings))
        other = [name for name, value in settings.items() if saved.get(name) != value]
        if not other:
            restore(tensors, model, optimiser, average)
    except (SafetensorError, LookupError, ValueError, TypeError, AttributeError, RuntimeError) as error:
        raise ValueError(f"{path} is not the state of a training ({error!r}); remove it to train again") from error
    if other:
        raise ValueError(
            f"{path} is the state of a training with other {other[0]}: {saved.get(other[0])!s:.60}, now "
            f"{settings[other[0]]!s:.60}; remove it to train again, or give the arguments it was made with"
        )
    return history, unfinished, step


def restore(
    tensors: dict[str, torch.Tensor], model: nn.Module, optimiser: torch.optim.Optimizer, average: Average | None
) -> None:
    """Give model, optimizer and average the tensors that `save_state` named."""
    parameters = [parameter for group in optimiser.param_groups for parameter in group["params"]]
    of_model, memory = {}, {}
    for key, tensor in tensors.items():
        part, name = key.split(".", 1)
        if part == "model":
            of_model[name] = tensor
        elif part == "average":
            average.weights[name].copy_(tensor)
        else:
            index, name = name.split(".", 1)
            like = parameters[int(index)]
            if tensor.shape == like.shape:  # in the parameter's memory order, as the optimizer had made it
                tensor = torch.empty_like(like, dtype=tensor.dtype).copy_(tensor)
            memory.setdefault(int(index), {})[name] = tensor
    model.load_state_dict(of_model)
    optimiser.load_state_dict({"state": memory, "param_groups": optimiser.state_dict()["param_groups"]})
