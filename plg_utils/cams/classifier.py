"""CAMs of a classifier that learned from image-level tags: which classes are in a photo, and not where.

The network ends in global average pooling and a bias-free 1x1 classifier, so the classifier's weights, applied to the
feature map before the pooling, show how much each place spoke for a class. As in IRN (github.com/jiwoon-ahn/irn,
step/train_cam.py and step/make_cam.py): ReLU, several scales and their mirror images summed, each class divided by its
maximum. `train` learns and writes the weights, what `build` returns makes the maps.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors import SafetensorError, safe_open
from torch import nn

from plg_utils import augment, devices, files, training
from plg_utils.cams import Cams, ScoredCue, TagSource, tagger
from plg_utils.encoders import by_size
from plg_utils.records import Classes, Sample, images_of
from plg_utils.segmenters import deeplabv3plus

SMOKE = {"weights": None, "tags": "all", "scales": (1.0,)}

SCALES = (1.0, 0.5, 1.5, 2.0)  # IRN's
THRESHOLD = 0.15  # IRN's background score


class Classifier(nn.Module):
    """An encoder, and a score for each foreground class at each place of its last feature map."""

    def __init__(self, encoder: nn.Module, foreground: Sequence[int]):
        """Put a fresh classifier on an encoder; foreground: the class index of each of its outputs."""
        super().__init__()
        self.encoder = encoder
        self.classifier = nn.Conv2d(encoder.channels[-1], len(foreground), 1, bias=False)
        self.foreground = tuple(foreground)

    def activations(self, images: torch.Tensor) -> torch.Tensor:
        """Scores (B, C, h, w) of images (B, 3, H, W), before the pooling."""
        return self.classifier(self.encoder(images)[-1])

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits (B, C) of images (B, 3, H, W): the mean over all places."""
        return self.activations(images).mean(dim=(2, 3))


def network(
    classes: Classes,
    *,
    encoder: str = "resnet50",
    pretrained: bool | str = False,
    output_stride: int | None = None,
    seed: int = 0,
) -> Classifier:
    """Build the network; what is not pretrained follows from the seed.

    encoder, pretrained, output_stride: see `segmenters.deeplabv3plus.build`; IRN has ResNet-50 at stride 16
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        whole = deeplabv3plus.build(
            1, encoder=encoder, pretrained=pretrained, output_stride=output_stride, width=1, skip=1
        )
        return Classifier(whole.encoder, classes.foreground)


def train(
    samples: Sequence[Sample],
    classes: Classes,
    weights: str | Path,
    *,
    steps: int,
    batch_size: int,
    crop_size: int,
    lr: float,
    encoder: str = "resnet50",
    pretrained: bool | str = False,
    output_stride: int | None = None,
    head_lr_factor: float = 10.0,
    optimizer: str = "sgd",
    momentum: float = 0.9,
    weight_decay: float = 1e-4,
    power: float = 0.9,
    scale: tuple[float, float] = (0.64, 1.28),
    seed: int = 0,
    device: str | torch.device = "cpu",
    channels_last: bool = False,
    cache_bytes: int = 2**30,
    state_file: str | Path | None = None,
    log_every: int = 10,
    progress: str | None = "tags",
) -> list[dict[str, float]]:
    """Train on the tags of samples and write the weights; nothing else of a sample's labels is read.

    Step t follows from (seed, t): which images, their views. The defaults are IRN's, whose images have a long side of
    320 to 640 pixels instead of 500, and are cut to a crop_size of 512.

    weights: the file to write, safetensors, with what `load` needs to build the network
    batch_size: images; the other options are those of `network` and `training.fit`
    returns: a row for every log_every steps: step, lr, the mean loss, and the part of the answers (class in the image,
        or not) that were right
    """
    device = devices.choose(str(device))
    built = {"encoder": encoder, "output_stride": output_stride}
    model = network(classes, pretrained=pretrained, seed=seed, **built)
    tags = {sample.id: tags for sample, tags in zip(samples, tagger("given", classes)(samples), strict=True)}

    def loss(model: Classifier, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        logits = model(batch["image"])
        right = ((logits > 0) == batch["target"]).float().mean()
        return {"total": F.multilabel_soft_margin_loss(logits, batch["target"].float()), "right": right}

    class Views(training.Batches):
        def __getitem__(self, step: int) -> dict[str, torch.Tensor]:
            rng, drawn = np.random.default_rng((self.seed, step)), self.samples(step, training.UNLABELLED)
            images = [self.weak(sample, training.UNLABELLED, rng)[0] for sample in drawn]
            target = [[index in tags[sample.id] for index in classes.foreground] for sample in drawn]
            return {"image": torch.from_numpy(np.stack(images)), "target": torch.tensor(target)}

    loss.settings = built | {"classes": classes.names, "tags": tags}
    history = training.fit(
        model, loss, samples, samples, batches=Views,
        steps=steps, batch_size=batch_size, crop_size=crop_size, lr=lr, head_lr_factor=head_lr_factor,
        optimizer=optimizer, momentum=momentum, weight_decay=weight_decay, power=power, scale=scale, seed=seed,
        device=device, channels_last=channels_last, cache_bytes=cache_bytes, state_file=state_file,
        log_every=log_every, progress=progress,
    )  # fmt: skip
    save(weights, model, classes, **built)
    return history


def save(path: str | Path, model: Classifier, classes: Classes, *, encoder: str, output_stride: int | None) -> None:
    """Write a trained network as safetensors, with its classes and architecture."""
    names = [classes.names[index] for index in classes.foreground]
    notes = json.dumps({"classes": names, "encoder": encoder, "output_stride": output_stride})
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    with files.atomic(path) as partial:
        partial.write_bytes(safetensors.torch.save(tensors, {"classifier": notes}))


def load(path: str | Path, classes: Classes) -> Classifier:
    """Load what `train` wrote for these classes, ready for inference."""
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not there: weights must be a file that cams.classifier.train wrote")
    try:
        with safe_open(path, framework="pt") as file:
            notes = json.loads((file.metadata() or {})["classifier"])
        trained = [str(name) for name in notes.pop("classes")]
    except (SafetensorError, KeyError, ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is not a file that cams.classifier.train wrote: train again") from error
    names = [classes.names[index] for index in classes.foreground]
    if trained != names:
        raise ValueError(f"{path} was trained for {', '.join(trained)}, not for {', '.join(names)}: train again")
    model = network(classes, **notes)
    files.read_weights(path, model)
    return model.eval()


def build(
    classes: Classes,
    *,
    weights: str | Path | None,
    tags: str | TagSource = "given",
    scales: Sequence[float] = SCALES,
    threshold: float = THRESHOLD,
    batch_size: int = 16,
    device: str | torch.device = "cpu",
) -> ScoredCue:
    """Load a trained classifier.

    weights: the file that `train` wrote; None: the miniature untrained
    tags: which classes are asked for, see `cams.tagger`; scales: see `cams`
    threshold: of the background, in [0, 1]; batch_size: images of one size that share a pass
    """
    if not len(scales) or min(scales) <= 0:
        raise ValueError(f"scales={tuple(scales)} must be factors above 0, at least one")
    model = network(classes, encoder="miniature").eval() if weights is None else load(weights, classes)
    model.to(devices.choose(str(device)))
    tags_of = tagger(tags, classes)

    def scores(samples: Sequence[Sample | np.ndarray]) -> list[Cams]:
        images, found = images_of(samples), tags_of(samples)

        def show(together: list[int]) -> list[np.ndarray]:
            batch = np.stack([images[index] for index in together])
            return cams(model, batch, [found[index] for index in together], scales=scales)

        return list(map(Cams, found, by_size([image.shape[:2] for image in images], batch_size, show)))

    return ScoredCue(scores, threshold=threshold, background=classes.background)


@torch.no_grad()
def cams(
    model: Classifier, images: np.ndarray, tags: Sequence[Sequence[int]], *, scales: Sequence[float] = SCALES
) -> list[np.ndarray]:
    """Class activation maps: the classifier's scores at each place, cut off at 0 and summed over sizes of the image.

    images: (B, H, W, 3) uint8 RGB of one size, tags: the classes asked for in each; model: in evaluation mode
    scales: factors of the image's size; at each the maps of the mirror image are added
    returns: (C, H, W) float32 in [0, 1] for each image, C classes in the order of its tags
    """
    size = images.shape[1:3]
    device = model.classifier.weight.device
    columns = [[model.foreground.index(index) for index in of_image] for of_image in tags]
    sums = [torch.zeros(len(of_image), *size, device=device) for of_image in columns]
    for scale in scales:
        height, width = (max(1, round(side * scale)) for side in size)
        resized = [Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC) for image in images]
        inputs = torch.from_numpy(np.stack([np.asarray(image) for image in resized])).to(device)
        inputs = augment.normalise(inputs.permute(0, 3, 1, 2))
        for mirrored in (False, True):
            maps = model.activations(inputs.flip(-1)).flip(-1) if mirrored else model.activations(inputs)
            for total, of_image, chosen in zip(sums, maps.relu(), columns, strict=True):
                if chosen:
                    total += F.interpolate(of_image[None, chosen], size, mode="bilinear", align_corners=False)[0]
    return [(total / (total.amax(dim=(1, 2), keepdim=True) + 1e-5)).cpu().numpy() for total in sums]
