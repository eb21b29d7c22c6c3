"""CLIP as a dense encoder, with one of three kinds of features.

CLIP was trained to compare one token of an image with a sentence; in its last blocks the patch tokens drift away from
what they show.

    plain    its own patch tokens
    gem      GEM ("Grounding Everything", arXiv 2312.00878) runs a second stream beside the last blocks, in which
             similar tokens are averaged and nothing else is added
    corr     CorrCLIP (arXiv 2411.10086): in the last block patches attend to similar patches of their own mask only

Any `clip.model.CLIP` with a vision transformer will do, and what has its parts, such as encoders/open_clip.
"""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

import clip
import numpy as np
import torch
import torch.nn.functional as F
from clip.model import CLIP, VisionTransformer, build_model
from PIL import Image
from torch import nn

from plg_utils import checkpoints, devices, encoders, files
from plg_utils.choices import one_of
from plg_utils.miniature import DEFAULTS
from plg_utils.miniature import clip as miniature
from plg_utils.records import Classes, Masks

SMOKE = {"checkpoint": None}
MEAN = (0.48145466, 0.4578275, 0.40821073)  # of RGB in [0, 1], which all of OpenAI's CLIPs subtract
STD = (0.26862954, 0.26130258, 0.27577711)
FEATURES = ("plain", "gem", "corr")
GEM_DEPTH = 7  # GEM's default for twelve layers
CORR_SHARPNESS = 4.0  # of the softmax over similarities in [-1, 1], CorrCLIP's
UNSEGMENTED = -1  # number of the patches in no mask
OPENAI = {"features": "gem", "image_size": 448, "layer": "ln_1", "resize_by": "pil"}  # GEM's, CLIP-ES's, the package's
SENTENCES = 256  # encoded at once
LONGEST = 8  # times image_size: of the long side, if the size is kept
LARGE = 2**25  # numbers of an image, 11 megapixels


def build(
    *,
    checkpoint: str | None = "miniature_clip",
    features: str | None = None,
    depth: int | None = None,
    image_size: int | None = None,
    device: str = "cpu",
    **options,
) -> "Encoder":
    """Load a CLIP and say how its images are read.

    checkpoint: a name of `checkpoints` ("miniature_clip", "ViT-B/16", ...), a file, or None: the miniature untrained
    features: "plain", "gem" or "corr"; corr needs the masks of each image
    depth: gem wraps the last depth - 1 blocks, and depth 1 is plain; None: 7, or as many as there are
    image_size: pixels, a multiple of the patch
    device: see `devices.choose`; options: the further fields of `Encoder`
    A None of features or image_size is the value in OPENAI, or in `miniature.DEFAULTS`.
    """
    defaults = DEFAULTS.get(checkpoint or "miniature_clip", OPENAI)
    model = load(checkpoint).to(devices.choose(str(device)))
    return Encoder(
        model,
        features=features or defaults["features"],
        depth=depth,
        image_size=image_size or defaults["image_size"],
        cam_layer=defaults["layer"],
        resize_by=defaults["resize_by"],
        **options,
    )


def load(checkpoint: str | None) -> CLIP:
    """Load a CLIP in single precision, ready for inference; None is the miniature with random weights."""
    if checkpoint is not None:
        taken = "miniature_clip", *(name for name in checkpoints.clip_checkpoints() if name.startswith("ViT"))
        checkpoints.check_kind(checkpoint, taken, "the encoder clip (open_clip takes MODEL:TAG and hf-hub:owner/name)")
    path = None if checkpoint is None else checkpoints.locate(checkpoint)
    if checkpoint in (None, "miniature_clip"):
        return miniature.load(path)
    state = checkpoints.load_clip_state(path)
    with files.reading(path, "a CLIP with OpenAI's names", "give the file that its authors published"):
        model = build_model(dict(state)).float()  # the package halves the weights, so they are loaded again in full
        model.load_state_dict(state)
    return model.eval()


@dataclass(eq=False, kw_only=True)
class Encoder:
    """Dense image features and text embeddings of one CLIP; see `build` for the options."""

    model: CLIP = field(kw_only=False)
    features: str
    depth: int | None
    image_size: int
    resize: str = "squash"  # to a square of image_size, as GEM does; "keep": the short side becomes image_size
    precision: str = "fp32"  # "bf16" for autocast of the images
    batch_size: int = 16
    cam_layer: str = OPENAI["layer"]  # where cams/clip_text takes its gradient
    resize_by: str = OPENAI["resize_by"]  # "pil", whole grey values; "torch", as the miniature learned
    mean: Sequence[float] = MEAN
    std: Sequence[float] = STD
    interpolation: str = "bicubic"  # or "bilinear"

    def __post_init__(self):
        """Check the options against the model."""
        layers, self.patch, self.own_size = self._parts()
        self.depth = min(GEM_DEPTH, layers + 1) if self.depth is None else self.depth
        one_of(self.features, FEATURES, "kind of features")
        one_of(self.resize, ("squash", "keep"), "way to resize")
        one_of(self.precision, ("fp32", "bf16"), "precision")
        if not 1 <= self.depth <= layers + 1:
            raise ValueError(f"depth is {self.depth}; with {layers} layers right are 1 (plain) to {layers + 1} (all)")
        if self.image_size < self.patch or self.image_size % self.patch:
            raise ValueError(f"image_size is {self.image_size}, not a multiple of the patch of {self.patch} pixels")
        self.unseen_words, self.warned = getattr(self.model, "unseen_words", None), set()

    def _parts(self) -> tuple[int, int, tuple[int, int]]:
        """Blocks, pixels of a patch, and the size (H, W) of the images that the network was trained on."""
        visual = self.model.visual
        return len(visual.transformer.resblocks), visual.conv1.kernel_size[0], (visual.input_resolution,) * 2

    def images(self, images: Sequence[np.ndarray], masks: Sequence[Masks] | None = None) -> list[torch.Tensor]:
        """Encode images, each (H, W, 3) uint8 RGB of any size: (D, h, w) float32 each, not of length 1.

        masks: those of each image, which only features "corr" needs, and reads
        """
        sizes = [self.network_size(image.shape[:2]) for image in images]
        if self.features == "corr":
            if masks is None:
                raise ValueError("features: corr needs the masks of each image, which are not given here: take gem")
            grids = [(height // self.patch, width // self.patch) for height, width in sizes]
            regions = [region_map(*pair).to(self.device) for pair in zip(masks, grids, strict=True)]
            return self._batches(images, sizes, partial(corr_features, self.model.visual), regions)
        depth = self.depth if self.features == "gem" else 1
        return self._batches(images, sizes, partial(dense_features, self.model.visual, depth=depth))

    def class_tokens(self, images: Sequence[np.ndarray]) -> list[torch.Tensor]:
        """Embed whole images by the class token: (D,) float32 each, not of length 1.

        An image is squashed to the square that the network was trained on, so that nothing at its borders is lost.
        """
        return self._batches(images, [self.own_size] * len(images), self.model.visual)

    @torch.no_grad()
    def _batches(self, images, sizes, network, *more) -> list[torch.Tensor]:
        """What the network makes of each image in its size; more: lists of what it gets beside the images."""

        def encode(together: list[int]) -> torch.Tensor:
            batch = torch.stack([self.preprocess(images[index], sizes[index]) for index in together])
            beside = [torch.stack([of_images[index] for index in together]) for of_images in more]
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
                return network(batch, *beside).float()

        return encoders.by_size(sizes, self.batch_size, encode)

    @torch.no_grad()
    def texts(self, phrases: Sequence[str]) -> torch.Tensor:
        """Encode M phrases: (M, D) of length 1."""
        self.warn_of_unseen_words(phrases)
        tokens = self.tokenize(list(phrases)).to(self.device)
        encoded = [self.model.encode_text(part) for part in tokens.split(SENTENCES)]
        return F.normalize(torch.cat(encoded).float(), dim=1)

    def tokenize(self, phrases: list[str]) -> torch.Tensor:
        """Tokens of M phrases: (M, T) int64; a phrase that is too long is refused."""
        return tokens_of(phrases, self.model.context_length, "CLIP")

    def class_embeddings(self, classes: Classes) -> tuple[torch.Tensor, torch.Tensor]:
        """Embed every word of every class: (K', D) of length 1, and (K',) the class that owns the row."""
        return encoders.class_embeddings(self.texts, classes)

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return self.model.logit_scale.device

    def network_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Size in which the network sees an image of this size, both (H, W)."""
        if self.resize == "squash":
            return self.image_size, self.image_size
        scale = self.image_size / min(size)
        height, width = (max(1, round(length * scale / self.patch)) * self.patch for length in size)
        longest = LONGEST * self.image_size
        if max(height, width) > longest:  # attention grows with the square: 3 x 900 pixels would be 235,200 tokens
            problem = f"CLIP sees an image of {size[0]} x {size[1]} pixels squeezed: with resize: keep"
            warnings.warn(f"{problem} it is at most {LONGEST} times as long as wide. Cut it into parts", stacklevel=4)
        return min(height, longest), min(width, longest)

    def preprocess(self, image: np.ndarray, size: tuple[int, int]) -> torch.Tensor:
        """Turn an image (H, W, 3) uint8 RGB into what the network reads: (3, *size) float32."""
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise ValueError(f"an image is a uint8 (H, W, 3) array, not {image.dtype} {image.shape}")
        if self.resize_by == "pil":
            by = Image.Resampling[self.interpolation.upper()]
            image = np.asarray(Image.fromarray(image).resize(size[::-1], by))
        pixels = torch.tensor(image, device=self.device).permute(2, 0, 1)
        # Colours of a large image are resized one after the other: as floats they take four times as much.
        pixels = torch.cat([self._resized(part, size) for part in pixels.split(1 if image.size > LARGE else 3)])
        mean, std = (pixels.new_tensor(values)[:, None, None] for values in (self.mean, self.std))
        return (pixels - mean) / std

    @staticmethod
    def _resized(pixels: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        """Colours (C, H, W) uint8 as (C, *size) float32 in [0, 1]."""
        pixels = pixels.float() / 255
        if pixels.shape[1:] == size:
            return pixels
        return F.interpolate(pixels[None], size=size, mode="bicubic", antialias=True)[0].clamp(0, 1)

    def warn_of_unseen_words(self, phrases: Sequence[str]) -> None:
        """Warn once of words that a miniature never read in its training: its answer to them means nothing."""
        unseen = [word for word in self.unseen_words(phrases) if word not in self.warned] if self.unseen_words else []
        if unseen:
            self.warned.update(unseen)
            warnings.warn(f"the miniature CLIP never saw these words: {', '.join(unseen)}", stacklevel=3)


def tokens_of(phrases: Sequence[str], limit: int, network: str) -> torch.Tensor:
    """Tokens (M, limit) of phrases by CLIP's byte pairs; a phrase that is too long for the network is refused."""
    try:
        return clip.tokenize(list(phrases), context_length=limit)
    except RuntimeError as error:
        problem = f"{network} reads {limit} tokens, start and end included"
        raise ValueError(f"{str(error)[:80]} ... is too long: {problem}. Shorten it in the class file") from error


def dense_features(visual: VisionTransformer, images: torch.Tensor, *, depth: int = GEM_DEPTH, **how) -> torch.Tensor:
    """Features of all patch tokens in the space of the text, by GEM over the last depth - 1 blocks.

    The original stream passes all blocks unchanged. GEM's stream starts as the hidden state that enters the first
    wrapped block, and each wrapped block adds its self-self attention of the original stream: no MLP, no own norm.

    images: (B, 3, H, W) normalised, H and W multiples of the patch; how: options of `self_self_attention`
    returns: (B, D, h, w) after ln_post and the projection; with depth 1 the plain final tokens
    """
    original, grid = embed_patches(visual, images)
    blocks = list(visual.transformer.resblocks)
    unwrapped = len(blocks) - (depth - 1)
    for block in blocks[:unwrapped]:
        original = block(original)
    gem = original
    for block in blocks[unwrapped:]:
        gem_update, update = self_self_attention(block.ln_1(original), block.attn, **how)
        gem = gem + gem_update
        original = original + update
        original = original + block.mlp(block.ln_2(original))

    features = visual.ln_post(gem[1:]) @ visual.proj  # (h*w, B, D)
    return features.permute(1, 2, 0).unflatten(2, grid)


def corr_features(visual: VisionTransformer, images: torch.Tensor, regions: torch.Tensor) -> torch.Tensor:
    """Features of all patch tokens in the space of the text, by CorrCLIP's last block (corrclip.py of zdk258/CorrCLIP).

    All heads share one attention, softmax(4 x cosine), between patches of the same region. A patch in no mask attends
    to those, and is attended by those, whose cosine is above the image's mean. The values pass through the block's
    output projection, the last norm and the projection: no residual, no MLP.

    CorrCLIP compares patches by the last layer of a second network (DINO ViT-B/8), query plus key; here it is CLIP's
    own last layer, which needs no more weights. In storybook CLIP's value, key, tokens and final tokens were no better.
    CorrCLIP also adds earlier blocks' features (its spatial branch, which made storybook's labels worse), one class
    token for each region, and joins similar regions by DBSCAN. These are left out.

    images: (B, 3, H, W) normalised, H and W multiples of the patch; regions: (B, h, w) of `region_map`
    returns: (B, D, h, w)
    """
    tokens, grid = embed_patches(visual, images)
    *blocks, last = visual.transformer.resblocks
    for block in blocks:
        tokens = block(tokens)
    projected = F.linear(last.ln_1(tokens[1:]), last.attn.in_proj_weight, last.attn.in_proj_bias)
    query, key, value = projected.transpose(0, 1).chunk(3, dim=2)  # (B, h*w, C) each
    unit = F.normalize(query + key, dim=2)
    similarity = unit @ unit.mT  # (B, h*w, h*w)
    number = regions.flatten(1)
    outside = number == UNSEGMENTED
    allowed = number[:, :, None] == number[:, None]
    above = similarity > similarity.mean(dim=(1, 2), keepdim=True)
    allowed = torch.where(outside[:, :, None] | outside[:, None], above, allowed)
    allowed.diagonal(dim1=1, dim2=2).fill_(True)  # of patches that are all alike, none is above the mean
    attention = (CORR_SHARPNESS * similarity).masked_fill(~allowed, float("-inf")).softmax(dim=2)
    features = visual.ln_post(last.attn.out_proj(attention @ value)) @ visual.proj  # (B, h*w, D)
    return features.mT.unflatten(2, grid)


def region_map(masks: Masks, grid: tuple[int, int]) -> torch.Tensor:
    """Number of the mask in which the centre of each patch lies, the largest where several do: grid, int64."""
    (height, width), (rows, columns) = masks.size, grid
    y, x = ((2 * np.arange(n) + 1) * length // (2 * n) for n, length in ((rows, height), (columns, width)))
    place = x * height + y[:, None]  # run lengths go down the columns
    numbers = np.full(grid, UNSEGMENTED)
    for index in np.argsort(masks.areas(), kind="stable"):  # later ones, which are larger, overwrite
        numbers[np.searchsorted(masks.runs[index].cumsum(), place, side="right") % 2 == 1] = index
    return torch.from_numpy(numbers)


def embed_patches(visual: VisionTransformer, images: torch.Tensor) -> tuple[torch.Tensor, tuple[int, int]]:
    """Tokens (1 + h*w, B, C) that enter the first block, the class token first, and the grid (h, w) of the others."""
    patches = visual.conv1(images)  # (B, C, h, w)
    grid = tuple(patches.shape[2:])
    tokens = torch.cat([visual.class_embedding.expand(1, len(images), -1), patches.flatten(2).permute(2, 0, 1)])
    return visual.ln_pre(tokens + position_embedding(visual, grid)[:, None]), grid


def self_self_attention(
    tokens: torch.Tensor, attention: nn.MultiheadAttention, *, iterations: int = 1, temperature: float | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention of each of query, key and value with itself, and the ordinary attention beside it.

    For y in {value, key, query}: `iterations` times y = softmax(s n n^T) n, where n is y with each token of each head
    brought to length 1; then softmax(s n n^T) value. GEM's update is the mean of the three, through the block's own
    output projection.

    tokens: (L, B, C), normalised by the block's first norm
    iterations, temperature: options of GEM's package (ss_attn_iter, ss_attn_temp), whose defaults these are
    temperature: the sharpness s itself, a factor and not a divisor as the name says (GEM calls it so);
        None: the mean length of the image's tokens, divided by the square root of a head's width
    returns: GEM's update and the ordinary update of the block, both (L, B, C)
    """
    length, batch, width = tokens.shape
    heads = attention.num_heads
    projected = F.linear(tokens, attention.in_proj_weight, attention.in_proj_bias)
    projected = projected.reshape(length, batch, 3, heads, width // heads).permute(2, 1, 3, 0, 4)
    query, key, value = projected  # (B, heads, L, C/heads)
    if temperature is None:
        sharpness = tokens.norm(dim=-1).mean(dim=0) / math.sqrt(width // heads)  # (B,)
        temperature = sharpness.repeat(3)[:, None, None, None]

    similar = projected.flatten(0, 1)  # (3B, heads, L, C/heads): the three attend to themselves side by side
    for _ in range(iterations):
        unit = F.normalize(similar, dim=-1)
        similar = F.scaled_dot_product_attention(temperature * unit, unit, unit, scale=1.0)
    unit = F.normalize(similar, dim=-1)
    averaged = F.scaled_dot_product_attention(temperature * unit, unit, value.repeat(3, 1, 1, 1), scale=1.0)
    gem = averaged.unflatten(0, (3, batch)).mean(dim=0)
    original = F.scaled_dot_product_attention(query, key, value)

    merged = (of_heads.permute(2, 0, 1, 3).reshape(length, batch, width) for of_heads in (gem, original))
    return tuple(map(attention.out_proj, merged))


def position_embedding(visual: VisionTransformer, grid: tuple[int, int]) -> torch.Tensor:
    """Position embedding of the class token and of a grid of patches: (1 + h*w, C), resized if the grid is another."""
    embedding = visual.positional_embedding
    side = math.isqrt(len(embedding) - 1)
    if grid == (side, side):
        return embedding
    patches = embedding[1:].T.unflatten(1, (side, side))[None]  # (1, C, side, side)
    resized = F.interpolate(patches, size=grid, mode="bicubic", antialias=True)
    return torch.cat([embedding[:1], resized[0].flatten(1).T])
