"""The miniature SAM: the class `segment_anything.Sam`, small enough for a CPU; miniatures/sam.py trains it.

Image encoder, prompt encoder and mask decoder are the package's own classes and run unmodified in its predictor and
mask generator. What differs from Kirillov et al. 2023:
- 128 pixels, 16 x 16 tokens, and convolutions before the transformer (Xiao et al. 2021, Early Convolutions).
- The decoder begins with its attention at the prompt's place, and the prompts' waves run along the axes.
"""

import math
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer
from torch import nn

from plg_utils import files
from plg_utils.miniature import untrained

WEIGHTS = Path(__file__).with_name("sam.safetensors")
SIDE, GRID = 128, 16  # pixels of an image, tokens of its embedding
ENCODER = {"embed_dim": 128, "depth": 5, "num_heads": 4, "window_size": 8, "global_attn_indexes": (2, 4)}
PROMPT_DIM = 64  # channels of the image embedding and of the decoder


class Stem(nn.Module):
    """Convolutions down to the token grid, in the place of ViT's patch embedding.

    (B, 3, 128, 128) -> (B, 16, 16, D), channels last as `ImageEncoderViT` wants them
    """

    def __init__(self, dim: int):
        """Three convolutions of stride 2 and one residual pair between the second and the third."""
        super().__init__()
        self.down = nn.ModuleList([nn.Conv2d(a, b, 3, 2, 1) for a, b in ((3, 32), (32, 64), (64, dim))])
        self.pair = nn.ModuleList([nn.Conv2d(64, 64, 3, padding=1) for _ in range(2)])
        self.project = nn.Linear(dim, dim)
        for layer in (*self.down, *self.pair):
            nn.init.kaiming_normal_(layer.weight)  # no normalization corrects a poor scale
            nn.init.zeros_(layer.bias)
        nn.init.zeros_(self.pair[1].weight)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Tokens of normalized images."""
        features = F.relu(self.down[1](F.relu(self.down[0](images))))
        features = F.relu(features + self.pair[1](F.relu(self.pair[0](features))))
        return self.project(F.relu(self.down[2](features)).permute(0, 2, 3, 1))


def build() -> Sam:
    """The network with random weights (from torch's generator)."""
    encoder = ImageEncoderViT(
        img_size=SIDE,
        patch_size=SIDE // GRID,
        out_chans=PROMPT_DIM,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
        act_layer=nn.ReLU,  # GELU took a fifth of a block's time
        **ENCODER,
    )
    encoder.patch_embed = Stem(ENCODER["embed_dim"])
    with torch.no_grad():
        encoder.pos_embed.copy_(0.5 * _waves(GRID, ENCODER["embed_dim"]))
    prompts = PromptEncoder(
        embed_dim=PROMPT_DIM, image_embedding_size=(GRID, GRID), input_image_size=(SIDE, SIDE), mask_in_chans=8
    )
    # 16 waves along each axis instead of 32 in random directions: the few that a head can hold then point to one place.
    frequencies = torch.arange(1, PROMPT_DIM // 4 + 1) / 4  # waves per 64 pixels
    both_axes = torch.kron(frequencies, torch.eye(2))  # (2, 32): x, y, x, y and so on
    prompts.pe_layer.positional_encoding_gaussian_matrix.copy_(both_axes)
    decoder = MaskDecoder(
        num_multimask_outputs=3,
        transformer=TwoWayTransformer(depth=2, embedding_dim=PROMPT_DIM, mlp_dim=128, num_heads=2),
        transformer_dim=PROMPT_DIM,
        activation=nn.ReLU,
        iou_head_depth=3,
        iou_head_hidden_dim=64,
    )
    for layer in decoder.transformer.layers:
        _attend_to_the_same_place(layer.cross_attn_token_to_image, 2.2)
        _attend_to_the_same_place(layer.cross_attn_image_to_token, 1.3)
    _attend_to_the_same_place(decoder.transformer.final_attn_token_to_image, 2.2)
    # Mean and deviation of ImageNet, as in segment_anything.build_sam.
    return Sam(encoder, prompts, decoder, pixel_mean=[123.675, 116.28, 103.53], pixel_std=[58.395, 57.12, 57.375])


@torch.no_grad()
def _attend_to_the_same_place(attention, scale: float) -> None:
    """Begin with queries and keys alike in the channels of their position, so that a prompt first looks where it is.

    From random weights nearly all of a short training goes by until the decoder finds the prompt's place
    (in the spirit of Trockman and Kolter 2023, Mimetic Initialization of Self-Attention Layers).
    """
    heads, channels = attention.num_heads, attention.internal_dim
    waves = channels // heads // 2  # a sine and a cosine each
    same = torch.zeros(channels, PROMPT_DIM)
    for head in range(heads):
        for i in range(waves):
            wave = 2 * (i // 2 * 2 * heads + 2 * head) + i % 2  # x and y of every fourth frequency
            row = head * 2 * waves + i
            same[row, wave] = same[row + waves, wave + PROMPT_DIM // 2] = scale
    for layer in (attention.q_proj, attention.k_proj):
        layer.weight.mul_(0.3).add_(same)


def load(path: str | Path | None = WEIGHTS) -> Sam:
    """The network with the weights of a file, float32, ready for use; None: random weights, the same in each call."""
    if path is None:
        return untrained(build)
    model = build()
    files.read_weights(path, model)
    return model.eval()


def _waves(side, dim):
    """Sines and cosines of a pixel's row and column. (1, side, side, dim)"""
    frequencies = math.pi / 2 * torch.logspace(0, 1, dim // 4) / side  # from a quarter wave per image upwards
    angles = (torch.arange(side) + 0.5)[:, None] * 2 * frequencies
    line = torch.cat([angles.sin(), angles.cos()], dim=1)  # (side, dim / 2)
    both = [line[:, None].expand(side, side, -1), line[None].expand(side, side, -1)]
    return torch.cat(both, dim=2)[None]
