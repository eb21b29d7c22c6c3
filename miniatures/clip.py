"""Train and measure the miniature CLIP, which learns from pictures and their captions alone.

A caption says which nouns occur in a picture, not where. The loss is that of multiple instances: each of the 144
tokens of the picture has a logit for each noun, scale x cosine + bias; over the picture they are pooled to one logit,
which says whether the caption names the noun. No mask, box or class map takes part; nouns are read from the caption's
words. Half-size scenes side by side (a collage) have a caption for each quarter, which is joining pairs and no more.
The usual contrast of pictures and captions teaches the class token. Scenes are read at 96 pixels, and at 64 for most of
the run: what can be learned in a given time depends above all on the number of scenes seen.

    python -m miniatures.clip --minutes 56      # train; stop and start again at will
    python -m miniatures.clip --finish          # measure, and write plg_utils/miniature/clip.safetensors
"""

import argparse
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import clip
import numpy as np
import torch
import torch.nn.functional as F
from clip.model import CLIP
from safetensors.torch import save_file
from torch import nn

from miniatures import scenes, training
from plg_utils import files
from plg_utils.datasets import storybook
from plg_utils.encoders.clip import MEAN, STD
from plg_utils.miniature.clip import CONTEXT, GRID, TOKENS, WEIGHTS, build, load

NOUNS = tuple(scenes.NOUNS)  # what is asked of each image
IS_THING = torch.tensor([noun.removeprefix("a ") in storybook.NAMES for noun in NOUNS])
WORD_TEMPLATES = (  # hold a bare word; the first seven are CLIP's own choice for ImageNet
    "itap of a {}.",
    "a bad photo of the {}.",
    "a origami {}.",
    "a photo of the large {}.",
    "a {} in a video game.",
    "art of the {}.",
    "a photo of the small {}.",
    "a photo of a {}.",
    "a photo of the {}.",
    "a clean origami {}.",
    "{}.",
)

POSITIVE = 2.0  # weight of a noun that is named against one that is not
STUFF = 0.4  # weight of a region's noun against a thing's
CONTRAST = 0.025  # weight of the contrast of class token and caption
PAIRS = 8  # captions of a batch that take part in it; texts cost time too


def threshold(model: CLIP) -> float:
    """The cosine at which training takes a token to be neither of a noun nor not."""
    return float(-model.logit_bias / _scale(model))


def image_tokens(model: CLIP, images: torch.Tensor, *, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Tokens of the last layer in the space shared with texts; the same as `model.visual`, which keeps the first only.

    images: (B, 3, H, W) normalised
    returns: (B, 1 + h * w, D) not normalised, the class token first
    """
    visual = model.visual
    patch = visual.conv1.kernel_size[0]
    # A convolution whose stride is its size is a product with the pixels of each patch.
    pixels = F.pixel_unshuffle(images.to(dtype), patch).flatten(2).transpose(1, 2)  # (B, h * w, 3 * patch * patch)
    x = pixels @ visual.conv1.weight.flatten(1).to(dtype).T
    first = visual.class_embedding.to(dtype).expand(len(x), 1, -1)
    positions = _positions(visual, images.shape[2] // patch, images.shape[3] // patch)
    x = _norm(visual.ln_pre, torch.cat([first, x], 1) + positions.to(dtype))
    for block in visual.transformer.resblocks:
        x = _block(block, x)
    return _norm(visual.ln_post, x) @ visual.proj.to(dtype)


def text_embeddings(model: CLIP, tokens: torch.Tensor, *, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Embed tokenized texts; the same as `model.encode_text`, but stops at the end of the longest text.

    tokens: (M, 40) int
    returns: (M, D) not normalised
    """
    end = tokens.argmax(1)  # the end token has the highest number
    tokens = tokens[:, : int(end.max()) + 1]
    x = (model.token_embedding(tokens) + model.positional_embedding[: tokens.shape[1]]).to(dtype)
    mask = torch.full((tokens.shape[1], tokens.shape[1]), float("-inf"), dtype=dtype).triu(1)
    for block in model.transformer.resblocks:
        x = _block(block, x, mask)
    return _norm(model.ln_final, x)[torch.arange(len(x)), end] @ model.text_projection.to(dtype)


def _positions(visual, h, w):
    """Positional embeddings of the class token and of h x w tokens, interpolated where the network has others."""
    first, grid = visual.positional_embedding[:1], visual.positional_embedding[1:]
    side = int(len(grid) ** 0.5)
    if (h, w) == (side, side):
        return visual.positional_embedding
    grid = F.interpolate(grid.T.unflatten(1, (side, side))[None], size=(h, w), mode="bilinear")
    return torch.cat([first, grid[0].flatten(1).T])


def _norm(layer, x):
    return F.layer_norm(x, layer.normalized_shape, layer.weight.to(x.dtype), layer.bias.to(x.dtype), layer.eps)


def _linear(x, weight, bias):
    return F.linear(x, weight.to(x.dtype), bias.to(x.dtype))


def _block(block, x, mask=None):
    """CLIP's residual attention block on (B, L, D), written out: on a CPU several times faster to train."""
    heads = block.attn.num_heads
    qkv = _linear(_norm(block.ln_1, x), block.attn.in_proj_weight, block.attn.in_proj_bias)
    q, k, v = qkv.unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)  # (B, heads, L, D / heads) each
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    attention = (scores if mask is None else scores + mask).softmax(-1)
    x = x + _linear((attention @ v).transpose(1, 2).flatten(2), block.attn.out_proj.weight, block.attn.out_proj.bias)
    rise, fall = block.mlp.c_fc, block.mlp.c_proj
    # CLIP's x * sigmoid(1.702 x) is silu(1.702 x) / 1.702
    hidden = F.silu(_linear(_norm(block.ln_2, x), 1.702 * rise.weight, 1.702 * rise.bias))
    return x + _linear(hidden, fall.weight / 1.702, fall.bias)


def _scale(model):
    return model.logit_scale.exp().clamp(max=60)


def mimetic_start(model: CLIP) -> None:
    """Start the vision tower near what trained ones look like: Q'K near the identity, V'P near its negative.

    Positions are 2-D sines (Trockman & Kolter 2023, Mimetic Initialization of Self-Attention Layers).
    """
    visual = model.visual
    width = visual.conv1.out_channels
    angles = torch.arange(GRID)[:, None] / 100 ** (torch.arange(width // 4) / (width // 4))
    waves = torch.cat([angles.sin(), angles.cos()], 1)  # (h, D / 2)
    rows, columns = waves[:, None].expand(-1, GRID, -1), waves[None].expand(GRID, -1, -1)
    visual.positional_embedding.data[1:] = 0.7 * torch.cat([rows, columns], 2).flatten(0, 1)
    for block in visual.transformer.resblocks:
        attention, eye = block.attn, torch.eye(width)
        size = width // attention.num_heads
        for head in range(attention.num_heads):
            left, values, right = torch.linalg.svd(0.7 * torch.randn(width, width) / width**0.5 + 0.7 * eye)
            root = values[:size].sqrt()
            rows = slice(head * size, (head + 1) * size)
            attention.in_proj_weight.data[:width][rows] = (left[:, :size] * root).T
            attention.in_proj_weight.data[width : 2 * width][rows] = right[:size] * root[:, None]
        left, values, right = torch.linalg.svd(0.4 * torch.randn(width, width) / width**0.5 - 0.4 * eye)
        attention.out_proj.weight.data = left * values.sqrt()
        attention.in_proj_weight.data[2 * width :] = right * values.sqrt()[:, None]


# Weights on disk: only the rows of the token table that were trained


def save(model: CLIP, path: Path, token_ids: Sequence[int], notes: dict | None = None) -> None:
    """Write weights in half precision; row i of the model's token table is the token token_ids[i]."""
    tensors = {name: tensor.detach().half().contiguous() for name, tensor in model.state_dict().items()}
    tensors["token_ids"] = torch.tensor(list(token_ids), dtype=torch.int32)
    learned = {"scale": _scale(model).item(), "bias": model.logit_bias.item(), "threshold": threshold(model)}
    metadata = {name: str(value) for name, value in {**learned, **(notes or {})}.items()}
    with files.atomic(path) as partial:
        save_file(tensors, partial, metadata=metadata)


def vocabulary() -> list[int]:
    """Numbers of the tokens that a caption or a training prompt can hold, sorted; 0 fills up short texts."""
    words = {*scenes.VOCABULARY, ",", "."}
    words |= {word for template in WORD_TEMPLATES for word in re.findall("[a-z]+", template)}
    return sorted(set(clip.tokenize(sorted(words)).unique().tolist()))


# What is asked, and what the captions answer


@cache
def _tokenize(text):
    """(40,) numbers of the tokens as rows of the trained table."""
    return torch.from_numpy(np.searchsorted(vocabulary_array(), clip.tokenize(text, CONTEXT, truncate=True)[0].numpy()))


@cache
def vocabulary_array() -> np.ndarray:
    """`vocabulary()` as an array, made once."""
    return np.array(vocabulary())


def prompts(rng: np.random.Generator) -> list[str]:
    """One sentence for each noun, in words and a template drawn for this call: (K) texts."""

    def sentence(noun, words):
        if rng.random() < 0.5:
            return storybook.TEMPLATES[rng.integers(len(storybook.TEMPLATES))].format(noun)
        return WORD_TEMPLATES[rng.integers(len(WORD_TEMPLATES))].format(words[rng.integers(len(words))])

    return [sentence(noun, words) for noun, words in scenes.NOUNS.items()]


@dataclass(frozen=True, eq=False)
class Batch:
    """Images with up to four captioned regions each."""

    images: torch.Tensor  # (B, 3, H, W) normalised
    region: torch.Tensor  # (B, h * w) int, 0 to 3
    named: torch.Tensor  # (B, 4, K) bool
    exists: torch.Tensor  # (B, 4) bool, regions that the image has
    whole: list[tuple[int, str]]  # position and caption of the images that show a single scene


def draw_grid(rng: np.random.Generator, progress: float) -> int:
    """Tokens along a side of the next batch: about two thirds of GRID, and GRID on average from 70 % of the run on.

    A small scene costs less and teaches as much, as long as the last part of the run shows the true size
    (progressive resizing; Touvron et al. 2022, DeiT III). Sizes are mixed so that no single one is learned by heart.
    """
    middle = GRID * (2 + float(np.clip((progress - 0.6) / 0.1, 0, 1))) / 3
    return int(np.clip(2 * round((middle + rng.uniform(-3, 3)) / 2), 2 * GRID // 3, GRID + 2))


def draw_batch(
    images: np.ndarray,
    captions: Sequence[str],
    rng: np.random.Generator,
    *,
    size: int = 16,
    grid: int = GRID,
    collage: float = 0.3,
) -> Batch:
    """Draw scenes, or with probability `collage` four of them side by side at about half their size.

    images: (M, H, W, 3) uint8; grid: tokens along a side of the images drawn
    """
    batch = torch.empty(size, 3, 8 * grid, 8 * grid)
    region = torch.zeros(size, grid, grid, dtype=torch.long)
    named = np.zeros((size, 4, len(NOUNS)), bool)
    exists = torch.zeros(size, 4, dtype=torch.bool)
    joined = rng.random(size) < collage
    chosen = rng.integers(len(images), size=(size, 4))  # the first alone where an image shows a single scene
    mirrored = rng.random((size, 4)) < 0.5
    batch[~joined] = _shrink(images[chosen[~joined, 0]], 8 * grid, 8 * grid, mirrored[~joined, 0])
    for b in np.flatnonzero(joined):
        y, x = rng.integers(grid // 2 - 1, grid // 2 + 2, 2)  # where the four meet, in tokens
        cells = [(rows, columns) for rows in ((0, y), (y, grid)) for columns in ((0, x), (x, grid))]
        for cell, ((top, bottom), (left, right)) in enumerate(cells):
            picture = images[chosen[b, cell]][None]
            batch[b, :, 8 * top : 8 * bottom, 8 * left : 8 * right] = _shrink(
                picture, 8 * (bottom - top), 8 * (right - left), mirrored[b, cell][None]
            )
            region[b, top:bottom, left:right] = cell
    for b in range(size):
        cells = 4 if joined[b] else 1
        named[b, :cells] = [scenes.nouns_in(captions[scene]) for scene in chosen[b, :cells]]
        exists[b, :cells] = True
    whole = [(int(b), captions[chosen[b, 0]]) for b in np.flatnonzero(~joined)]
    # Brighter or darker, more or less contrast, another tint: together one gain and offset for each channel.
    light, contrast = rng.uniform(0.8, 1.2, (2, size, 1))
    gain = light * rng.uniform(0.88, 1.14, (size, 3)) / (255 * np.array(STD))
    mean = batch.mean((2, 3)).numpy()  # (B, 3)
    offset = (1 - contrast) * mean * gain - np.array(MEAN) / np.array(STD)
    gain, offset = (torch.from_numpy(x.astype(np.float32))[..., None, None] for x in (contrast * gain, offset))
    batch.mul_(gain).add_(offset)
    return Batch(batch, region.flatten(1), torch.from_numpy(named), exists, whole)


def _shrink(images, height, width, mirrored):
    """From (M, H, W, 3) uint8 to (M, 3, height, width) float in 0 to 255; `mirrored`, (M,) bool, says which to flip."""
    pictures = torch.from_numpy(images).permute(0, 3, 1, 2)
    if (height, width) != images.shape[1:3]:
        pictures = F.interpolate(pictures, size=(height, width), mode="bilinear", antialias=True)
    pictures = pictures.float()
    pictures[mirrored] = pictures[mirrored].flip(3)
    return pictures


def normalise(images: np.ndarray) -> torch.Tensor:
    """From (B, H, W, 3) uint8 to (B, 3, h, w) of the size and in the units that the network reads."""
    pictures = _shrink(images, 8 * GRID, 8 * GRID, np.zeros(len(images), bool)) / 255
    return (pictures - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


# Loss


def pool_regions(logits: torch.Tensor, region: torch.Tensor, regions: int = 4) -> torch.Tensor:
    """Logarithm of the mean of exp(logit) over the tokens of each region: near the maximum, but every token learns.

    logits: (B, L, K), region: (B, L) int
    returns: (B, regions, K)
    """
    member = F.one_hot(region, regions).to(logits.dtype).transpose(1, 2)  # (B, regions, L)
    top = logits.detach().amax(1, keepdim=True)  # exp must not overflow
    mean = member @ (logits - top).exp() / member.sum(2, keepdim=True).clamp(min=1)
    return (mean + 1e-30).log() + top


def noun_loss(pooled: torch.Tensor, named: torch.Tensor, exists: torch.Tensor) -> torch.Tensor:
    """Cross entropy of "the caption names the noun", weighted by POSITIVE and STUFF.

    pooled: (B, R, K) logits, named: (B, R, K) bool, exists: (B, R) bool
    """
    weight = torch.where(IS_THING, 1.0, STUFF) * exists[..., None]
    positive = torch.tensor(POSITIVE)
    loss = F.binary_cross_entropy_with_logits(pooled, named.float(), weight, reduction="sum", pos_weight=positive)
    return loss / weight.sum()


def losses(model: CLIP, batch: Batch, asked: Sequence[str], dtype: torch.dtype = torch.bfloat16) -> dict:
    """The loss of a batch and its terms; `asked` holds a sentence for each noun."""
    whole = batch.whole[:PAIRS]
    captions = [caption for _, caption in whole]
    tokens = torch.stack([_tokenize(text) for text in [*asked, *captions]])
    texts = F.normalize(text_embeddings(model, tokens, dtype=dtype).float(), dim=-1)
    image = F.normalize(image_tokens(model, batch.images, dtype=dtype).float(), dim=-1)
    scale = _scale(model)
    logits = scale * (image[:, 1:] @ texts[: len(asked)].T) + model.logit_bias
    pooled = pool_regions(logits, batch.region)
    nouns = noun_loss(pooled, batch.named, batch.exists)
    contrast = torch.zeros(())
    if len(captions) > 1:
        pairs = scale * (image[[b for b, _ in whole], 0] @ texts[len(asked) :].T)
        same = torch.arange(len(captions))
        contrast = (F.cross_entropy(pairs, same) + F.cross_entropy(pairs.T, same)) / 2
    with torch.no_grad():
        yes = pooled[batch.exists][:, IS_THING] > 0
        truth = batch.named[batch.exists][:, IS_THING]
        recall, false = yes[truth].float().mean(), yes[~truth].float().mean()
    return {
        "total": nouns + CONTRAST * contrast,
        "nouns": nouns,
        "contrast": contrast,
        "recall": recall,
        "false": false,
    }


# Training


def train(
    images: np.ndarray,
    captions: Sequence[str],
    *,
    state: Path,
    steps: int | None = None,
    minutes: float | None = None,
    tokens: int = 3072,
    collage: float = 0.3,
    warmup: int = 60,
    decay: float = 0.3,
    processes: int = 1,
    seed: int = 0,
    held_out: scenes.Scenes | None = None,
    report: int = 50,
    keep: int = 100,
) -> dict:
    """Train for `steps` steps or `minutes` minutes, earlier sittings with this `state` file included.

    images: (M, H, W, 3) uint8, captions: M texts
    tokens: of images, per step and process; collage: share of the largest images that show four scenes
    decay: share of the run in which the rate falls to zero
    report, keep: steps between two printed lines, and between two writes of `state`
    returns: the state, as saved
    """
    options = dict(state=Path(state), steps=steps, minutes=minutes, tokens=tokens, collage=collage, warmup=warmup)
    options |= dict(decay=decay, seed=seed, held_out=held_out, report=report, keep=keep)
    training.run(_train, processes, images, captions, options)
    return training.load_state(Path(state))


def _start(seed):
    """A fresh model with the trained rows only, and its optimizers."""
    torch.manual_seed(seed)
    model = build(len(vocabulary()))
    mimetic_start(model)
    optimizers = training.optimizers([model], lr=1e-3, muon_lr=3e-3, muon=lambda name: "visual.transformer" in name)
    calibration = [model.logit_scale, model.logit_bias]  # two numbers that have far to go
    for group in optimizers[0].param_groups:
        group["params"] = [p for p in group["params"] if not any(p is q for q in calibration)]
    optimizers[0].add_param_group({"params": calibration, "lr": 1e-2, "full_lr": 1e-2, "weight_decay": 0.0})
    return model, optimizers


def _train(rank, images, captions, options):
    model, optimizers = _start(options["seed"])
    saved = training.load_state(options["state"])
    if saved:
        model.load_state_dict(saved["model"])
        training.restore(optimizers, saved["optimizers"])
    step, seen, before = (saved[name] if saved else 0 for name in ("step", "images", "seconds"))
    clock = training.Clock(steps=options["steps"], minutes=options["minutes"], step=step, seconds=before)
    recent = []

    def keep():
        contents = {"model": model.state_dict(), "optimizers": [o.state_dict() for o in optimizers]}
        training.save_state(options["state"], contents | {"step": clock.step, "images": seen, "seconds": clock.seconds})

    while (progress := clock.progress()) < 1:
        rate = training.schedule(clock.step, progress, warmup=options["warmup"], decay=options["decay"])
        training.set_rate(optimizers, rate)
        # Numbers drawn from (seed, step, process): a run that was stopped goes on as if it had not been.
        rng = np.random.default_rng((options["seed"], clock.step, rank))
        grid = draw_grid(rng, progress)
        size, collage = max(1, options["tokens"] // grid**2), options["collage"] if grid > GRID else 0.0
        batch = draw_batch(images, captions, rng, size=size, grid=grid, collage=collage)
        terms = losses(model, batch, prompts(rng))
        for optimizer in optimizers:
            optimizer.zero_grad()
        terms["total"].backward()
        training.average_gradients(model.parameters())
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        clock.step += 1
        seen += size * (torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1)
        recent.append([float(value) for value in terms.values()])
        if rank == 0 and clock.step % options["report"] == 0:
            _, nouns, contrast, recall, false = np.nanmean(recent[-options["report"] :], axis=0)
            print(
                f"{clock.seconds:6.0f} s, step {clock.step}, {seen} images: nouns {nouns:.4f}, "
                f"contrast {contrast:.3f}, recall {recall:.3f}, false {false:.4f}, {8 * grid} pixels, "
                f"scale {float(_scale(model)):.1f}, threshold {threshold(model):.3f}, rate {rate:.2f}",
                flush=True,
            )
        if rank == 0 and clock.step % options["keep"] == 0:
            keep()
            if options["held_out"] is not None:
                found = evaluate(model, options["held_out"])
                print("       held out:", {k: v for k, v in found.items() if k != "per_class"}, flush=True)
    if rank == 0:
        keep()


# Measuring


@torch.no_grad()
def class_embeddings(model: CLIP) -> torch.Tensor:
    """Embeddings of the ten class names, each the mean over the templates: (10, D) of length 1; rows as trained."""
    short = model.token_embedding.num_embeddings != TOKENS
    texts = [template.format(f"a {name}") for name in storybook.NAMES for template in storybook.TEMPLATES]
    tokens = torch.stack([_tokenize(text) for text in texts]) if short else clip.tokenize(texts, CONTEXT)
    each = F.normalize(text_embeddings(model, tokens), dim=-1).unflatten(0, (len(storybook.NAMES), -1))
    return F.normalize(each.mean(1), dim=-1)


@torch.no_grad()
def evaluate(model: CLIP, held_out: scenes.Scenes, *, smallest: int = 64) -> dict:
    """Name the true masks of scenes by the mean of the tokens in them.

    returns: accuracy over the objects of at least `smallest` visible pixels, overall and per_class; auc, how well the
        best class's cosine separates tokens of objects from those of the background; mean_iou of the label maps painted
        with the true masks of objects and regions, where a mask below `threshold(model)` is background
    """
    classes = class_embeddings(model)
    spread = F.interpolate(torch.eye(GRID)[None], storybook.SIZE, mode="linear")[0]  # (h, H): tokens to pixels
    right, kind, cosine_object, cosine_background = [], [], [], []
    confusion = np.zeros((11, 11), np.int64)
    for start in range(0, len(held_out), 20):
        part = slice(start, start + 20)
        tokens = image_tokens(model, normalise(held_out.image[part]), dtype=torch.bfloat16)[:, 1:].float()
        best = (F.normalize(tokens, dim=-1) @ classes.T).amax(-1)  # (B, h * w)
        for b, label in enumerate(held_out.label[part]):
            instances, stuff = held_out.instances[part][b], held_out.stuff[part][b]
            masks = [instances == k for k in np.unique(instances[label > 0])]
            masks += [(stuff == k) & (label == 0) for k in np.unique(stuff[label == 0])]
            masks = np.stack([mask for mask in masks if mask.sum() >= smallest])
            weights = (spread @ torch.from_numpy(masks).float() @ spread.T).flatten(1)  # (N, h * w)
            cosine = F.normalize(weights @ tokens[b], dim=-1) @ classes.T
            named = np.where(cosine.amax(1) > threshold(model), cosine.argmax(1) + 1, 0)
            painted = np.zeros_like(label)
            for mask, guess, name in zip(masks, cosine.argmax(1).numpy() + 1, named, strict=True):
                painted[mask] = name
                if (truth := label[mask][0]) > 0:
                    kind.append(truth)
                    right.append(guess == truth)
            confusion += np.bincount(label.ravel() * 11 + painted.ravel(), minlength=121).reshape(11, 11)
            covered = F.adaptive_avg_pool2d(torch.from_numpy(label > 0).float()[None], GRID).flatten()
            cosine_object.append(best[b][covered > 0.7])
            cosine_background.append(best[b][covered < 0.05])
    right, kind = np.array(right), np.array(kind)
    known = np.diag(confusion)
    union = confusion.sum(0) + confusion.sum(1) - known
    seen = [(k, name) for k, name in enumerate(storybook.NAMES, 1) if k in kind]
    per_class = {name: round(float(right[kind == k].mean()), 3) for k, name in seen}
    auc = _auc(torch.cat(cosine_object), torch.cat(cosine_background))
    mean_iou = float((known / np.maximum(union, 1))[confusion.sum(1) > 0].mean())
    found = {"accuracy": float(right.mean()), "auc": auc, "mean_iou": mean_iou}
    return {name: round(value, 4) for name, value in found.items()} | {"per_class": per_class}


def _auc(high, low):
    """The probability that a number of `high` exceeds one of `low`."""
    low = low.sort().values
    return float(torch.searchsorted(low, high).double().mean() / len(low))


def main() -> None:
    """Train, or measure and write the weights."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--minutes", type=float, default=56, help="of training, earlier sittings included")
    parser.add_argument("--steps", type=int, help="in place of minutes")
    parser.add_argument("--scenes", type=int, default=12000, help="drawn for training")
    parser.add_argument("--held-out", type=int, default=60, help="scenes to measure on")
    parser.add_argument("--tokens", type=int, default=3072, help="of images, per step and process")
    parser.add_argument("--collage", type=float, default=0.3, help="share of the largest images that show four scenes")
    parser.add_argument("--decay", type=float, default=0.3, help="share of the run in which the rate falls to zero")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--state", type=Path, default=files.data_root() / "miniature_state" / "clip.pt")
    parser.add_argument("--finish", action="store_true", help="measure the state, and write the weights")
    options = parser.parse_args()
    torch.set_num_threads(1)
    held_out = scenes.load(options.held_out, first=scenes.HELD_OUT)
    if options.finish:
        state = training.load_state(options.state)
        model = build(len(vocabulary()))
        model.load_state_dict(state["model"])
        save(model, WEIGHTS, vocabulary(), {name: state[name] for name in ("step", "images", "seconds")})
        print(evaluate(load(), held_out), f"threshold {threshold(model):.3f}", flush=True)
        return
    drawn = scenes.load(options.scenes)
    minutes = None if options.steps else options.minutes
    chosen = {name: getattr(options, name) for name in ("steps", "tokens", "collage", "decay", "processes", "state")}
    train(drawn.image, drawn.captions, minutes=minutes, held_out=held_out, **chosen)


if __name__ == "__main__":
    main()
