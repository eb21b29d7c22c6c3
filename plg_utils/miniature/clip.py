"""The miniature CLIP: the class `clip.model.CLIP`, small; miniatures/clip.py trains it."""

import re
from collections.abc import Sequence
from pathlib import Path

import clip
import torch
from clip.model import CLIP
from safetensors import safe_open
from torch import nn

WEIGHTS = Path(__file__).with_name("clip.safetensors")
TOKENS = 49408  # rows of CLIP's token table, of which the captions use about a hundred
CONTEXT = 40  # tokens of the longest caption
GRID = 12  # tokens along one side of an image: scenes are read at 96 pixels in patches of 8


def build(tokens: int = TOKENS) -> CLIP:
    """Build the network; `logit_bias` beside CLIP's own `logit_scale` makes a cosine a yes or no."""
    model = CLIP(
        embed_dim=128,
        image_resolution=8 * GRID,
        vision_layers=4,
        vision_width=128,
        vision_patch_size=8,
        context_length=CONTEXT,
        vocab_size=tokens,
        transformer_width=128,
        transformer_heads=2,
        transformer_layers=2,
    )
    model.logit_bias = nn.Parameter(torch.tensor(-3.0))
    return model


def load(path: str | Path | None = None) -> CLIP:
    """Load weights, by default those beside this file: float32, for evaluation.

    A token that training never met gets a random row that depends on its number alone; see `unseen_words`.
    """
    with safe_open(path or WEIGHTS, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}
    token_ids = tensors.pop("token_ids").long()
    tensors = {name: tensor.float() for name, tensor in tensors.items()}
    known = tensors["token_embedding.weight"]
    table = torch.randn(TOKENS, known.shape[1], generator=torch.Generator().manual_seed(0)) * known.std()
    table[token_ids] = known
    model = build()
    model.load_state_dict({**tensors, "token_embedding.weight": table})
    return model.eval()


def unseen_words(texts: Sequence[str], *, path: str | Path | None = None) -> list[str]:
    """Words of the texts that hold a token without a trained row, in the order in which they first occur."""
    with safe_open(path or WEIGHTS, framework="pt") as file:
        known = set(file.get_tensor("token_ids").tolist())
    words = dict.fromkeys(word for text in texts for word in re.findall(r"\w+|[^\w\s]", text.lower()))
    return [word for word in words if not known.issuperset(clip.tokenize(word)[0].tolist())]
