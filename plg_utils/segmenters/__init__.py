"""Networks that learn from label maps: one file for each family.

A file holds `build(num_classes, **options)`, which makes a `Segmenter`, and `SMOKE`, options that build a tiny one
without weights. Where a network may start from trained weights, `checkpoint(**options)` names them.
"""

from collections.abc import Callable
from difflib import get_close_matches
from pathlib import Path

import torch
from torch import nn

from plg_utils import checkpoints, choices, files


class Segmenter(nn.Module):
    """A network that shows its seams, so that a method can disturb the features between them.

    encoder                 the pretrained part, which `training.fit` teaches at a lower rate than the rest
    encode(images)          (B, 3, H, W) normalised, any H and W -> list of feature maps (B, C, h, w)
    decode(features, size)  those maps and size = (H, W) of the images -> logits (B, K, H, W) float32
    """

    def __init__(self, **parts: nn.Module):
        super().__init__()
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits (B, K, H, W) of images (B, 3, H, W)."""
        return self.decode(self.encode(images), images.shape[-2:])


def build(name: str, num_classes: int, **options) -> nn.Module:
    """Build the segmenter in the file `name`.py for num_classes classes; one that can label no image is refused."""
    try:
        network = choices.choice(__name__, name, "segmenter").build(num_classes, **options)
    except TypeError as error:  # an option that the library behind the file does not take
        raise ValueError(f"{name} cannot be built with {options}: {error}") from error
    side = 128 // (multiple := getattr(network, "multiple", 1)) * multiple
    shape = (1, num_classes, side, side + multiple)
    try:
        with torch.no_grad():
            found = tuple(network.eval()(torch.zeros(1, 3, *shape[2:])).shape)
    except Exception as error:
        raise ValueError(
            f"{name} with {options} cannot label an image of {side} x {side + multiple} pixels ({error!s:.200}): choose"
            " an encoder of images of any size, with maps of falling size, or for dpt a vision transformer"
        ) from error
    if found != shape:
        raise ValueError(f"{name} with {options} gives logits {found} in the place of {shape}: choose another network")
    return network.train()


def checkpoint(name: str, **options) -> str | Path | None:
    """Name or path, as `checkpoints` knows it, of the weights with which `build` would start; None: random ones."""
    module = choices.choice(__name__, name, "segmenter")
    return module.checkpoint(**options) if hasattr(module, "checkpoint") else None


def locate(name: str | Path | None) -> Path | None:
    """The weight file of what `checkpoint` names."""
    return None if name is None else checkpoints.locate_weights(name)


def of_timm(name: str, weights: Path | None, make: Callable[..., nn.Module]) -> nn.Module:
    """What `make` builds around a network of timm, given the arguments with which timm reads a weight file.

    weights: the file; None: random weights
    raises: ValueError if timm has no network of this name, and for a file from which not all weights come: timm goes on
        with random ones
    """
    import timm  # it takes seconds

    known = [*timm.list_models(), *timm.list_pretrained()]
    if name not in known:
        near = ", ".join(get_close_matches(name, known, 5, cutoff=0))
        raise ValueError(f"encoder {name!r} is not the name of a network that timm itself has; near are {near}")
    if weights is None:
        return make()
    with torch.random.fork_rng(devices=[]):
        random = _encoder(make()).state_dict()
    remedy = "give the file that its authors published, or the state_dict() of such a network of timm alone"
    with files.reading(weights, f"the weights of {name}", remedy):
        try:
            network = make(pretrained=True, pretrained_cfg_overlay={"file": str(weights)})
        except RuntimeError as error:  # with a line for each weight
            raise ValueError(" ".join(str(error).split())[:200]) from error
        for key, weight in _encoder(network).state_dict().items():
            if not weight.isfinite().all():
                raise ValueError(f"{key} is nan or infinite")
            if weight.ndim > 1 and weight.equal(random[key]) and weight.flatten().unique().numel() > 1:
                raise ValueError(f"it has none for {key}")
    return network


def _encoder(network: nn.Module) -> nn.Module:
    """The part of a segmenter, or of a part of it, that has weights of timm."""
    return getattr(network, "encoder", network)
