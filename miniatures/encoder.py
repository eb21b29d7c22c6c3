"""Train and measure the miniature encoder, which takes the place of a segmenter's ImageNet weights.

ImageNet's images carry a name and no map, and so do these: the network learns which nouns the caption of a scene
names, and sees no mask, box or class map.

    python -m miniatures.encoder --minutes 8    # train; stop and start again at will
    python -m miniatures.encoder --finish       # measure, and write plg_utils/miniature/encoder.safetensors
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from miniatures import scenes, training
from plg_utils import files
from plg_utils.miniature.encoder import CHANNELS, WEIGHTS, build

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, as a segmenter expects of an encoder
CROP = 96  # pixels


def save(features: nn.Module, path: Path, notes: dict | None = None) -> None:
    """Write weights in half precision."""
    tensors = {k: (v.half() if v.is_floating_point() else v).contiguous() for k, v in features.state_dict().items()}
    with files.atomic(path) as partial:
        save_file(tensors, partial, metadata={name: str(value) for name, value in (notes or {}).items()})


class Tagger(nn.Module):
    """The encoder with a head that says which nouns a caption names; the head is thrown away."""

    def __init__(self):
        super().__init__()
        self.features = build()
        self.head = nn.Conv2d(CHANNELS[-1], len(scenes.NOUNS), 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """images (B, 3, H, W) -> logits of the nouns (B, K): a mean over places that is near the maximum."""
        logits = self.head(self.features(images)[-1]).float().flatten(2)
        return logits.logsumexp(2) - np.log(logits.shape[2])


def draw_batch(images: np.ndarray, captions: Sequence[str], rng: np.random.Generator, *, size: int = 32) -> tuple:
    """Draw crops of at least nine sixteenths of a scene, flipped and recoloured, and which nouns its caption names.

    images: (M, H, W, 3) uint8
    returns: (B, 3, 96, 96) normalised and (B, K) float, which for a crop is a little too generous, as ImageNet's is
    """
    crops = np.empty((size, CROP, CROP, 3), np.float32)
    named = np.zeros((size, len(scenes.NOUNS)), np.float32)
    for b, scene in enumerate(rng.integers(len(images), size=size)):
        side = int(rng.integers(CROP, images.shape[1] + 1))
        y, x = rng.integers(images.shape[1] - side + 1, size=2)
        picture = images[scene, :, :: -1 if rng.random() < 0.5 else 1]
        box = (x, y, x + side, y + side)
        crops[b] = Image.fromarray(picture).resize((CROP, CROP), Image.Resampling.BILINEAR, box=box)
        named[b] = scenes.nouns_in(captions[scene])
    light, contrast = (rng.uniform(0.7, 1.3, (size, 1, 1, 1)).astype(np.float32) for _ in range(2))
    tint = rng.uniform(0.85, 1.15, (size, 1, 1, 3)).astype(np.float32)
    mean = crops.mean((1, 2), keepdims=True)
    return normalise((mean + contrast * (crops - mean)) * (light * tint)), torch.from_numpy(named)


def normalise(images: np.ndarray) -> torch.Tensor:
    """From (B, H, W, 3) in 0 to 255 to (B, 3, H, W) as the network sees it, channels last in memory."""
    images = (np.clip(images, 0, 255) / 255 - np.float32(MEAN)) / np.float32(STD)
    return torch.from_numpy(images.astype(np.float32)).permute(0, 3, 1, 2)


def train(
    images: np.ndarray,
    captions: Sequence[str],
    *,
    state: Path,
    steps: int | None = None,
    minutes: float | None = None,
    batch: int = 32,
    warmup: int = 30,
    decay: float = 0.7,
    seed: int = 0,
    report: int = 50,
) -> dict:
    """Train for `steps` steps or `minutes` minutes, earlier sittings with this `state` file included.

    images: (M, H, W, 3) uint8, captions: M texts
    returns: the state, as saved
    """
    torch.manual_seed(seed)
    model = Tagger().to(memory_format=torch.channels_last)
    optimizers = training.optimizers([model], lr=4e-3, muon_lr=0.0, muon=lambda name: False)
    saved = training.load_state(Path(state))
    if saved:
        model.load_state_dict(saved["model"])
        training.restore(optimizers, saved["optimizers"])
    step, seen, before = (saved[name] if saved else 0 for name in ("step", "images", "seconds"))
    clock = training.Clock(steps=steps, minutes=minutes, step=step, seconds=before)

    def keep():
        contents = {"model": model.state_dict(), "optimizers": [optimizer.state_dict() for optimizer in optimizers]}
        training.save_state(Path(state), contents | {"step": clock.step, "images": seen, "seconds": clock.seconds})

    while (progress := clock.progress()) < 1:
        training.set_rate(optimizers, training.schedule(clock.step, progress, warmup=warmup, decay=decay))
        rng = np.random.default_rng((seed, clock.step))  # a run that was stopped goes on as if it had not been
        crops, named = draw_batch(images, captions, rng, size=batch)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = model(crops)
        loss = F.binary_cross_entropy_with_logits(logits, named)
        optimizers[0].zero_grad()
        loss.backward()
        optimizers[0].step()
        clock.step, seen = clock.step + 1, seen + batch
        if clock.step % report == 0:
            right = ((logits > 0) == (named > 0)).float().mean()
            print(
                f"{clock.seconds:6.0f} s, step {clock.step}, {seen} images: "
                f"loss {loss.item():.4f}, nouns right {right.item():.3f}",
                flush=True,
            )
            keep()
    keep()
    return training.load_state(Path(state))


@torch.no_grad()
def evaluate(model: Tagger, held_out: scenes.Scenes) -> dict:
    """Ask which nouns the captions of scenes name: recall of named nouns, share of false ones, over all nouns."""
    model.eval()
    yes = torch.cat([model(normalise(held_out.image[i : i + 20])) > 0 for i in range(0, len(held_out), 20)])
    named = torch.tensor([scenes.nouns_in(caption) for caption in held_out.captions])
    each = {noun: round(float((yes == named)[:, k].float().mean()), 3) for k, noun in enumerate(scenes.NOUNS)}
    found = {"recall": yes[named].float().mean(), "false": yes[~named].float().mean()}
    return {name: round(float(value), 4) for name, value in found.items()} | {"right": each}


def main() -> None:
    """Train, or measure and write the weights."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--minutes", type=float, default=8, help="of training, earlier sittings included")
    parser.add_argument("--steps", type=int, help="in place of minutes")
    parser.add_argument("--scenes", type=int, default=6000, help="drawn for training")
    parser.add_argument("--batch", type=int, default=32, help="images per step")
    parser.add_argument("--state", type=Path, default=files.data_root() / "miniature_state" / "encoder.pt")
    parser.add_argument("--finish", action="store_true", help="measure the state, and write the weights")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.finish:
        state = training.load_state(options.state)
        model = Tagger()
        model.load_state_dict(state["model"])
        save(model.features, WEIGHTS, {name: state[name] for name in ("step", "images", "seconds")})
        print(evaluate(model, scenes.load(100, first=scenes.HELD_OUT)), flush=True)
        return
    drawn = scenes.load(options.scenes)
    minutes = None if options.steps else options.minutes
    chosen = {"steps": options.steps, "minutes": minutes, "batch": options.batch, "state": options.state}
    train(drawn.image, drawn.captions, **chosen)


if __name__ == "__main__":
    main()
