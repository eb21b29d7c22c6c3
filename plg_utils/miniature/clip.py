"""The miniature CLIP: the class `clip.model.CLIP`, small; miniatures/clip.py trains it."""

import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import clip
import torch
from clip.model import CLIP
from safetensors.torch import load_file
from torch import nn

from plg_utils.miniature import untrained

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


def load(path: str | Path | None = WEIGHTS) -> CLIP:
    """The network with the weights of a file, float32, ready for use; None: random weights, the same in each call.

    A token that training never met gets a random row that depends on its number alone. `unseen_words` of the network
    gives the words of some texts that hold such a token, in the order in which they first occur; without a file it is
    missing.
    """
    if path is None:
        return untrained(build)
    tensors = load_file(path)
    token_ids = tensors.pop("token_ids").long()
    tensors = {name: tensor.float() for name, tensor in tensors.items()}
    known = tensors["token_embedding.weight"]
    table = torch.randn(TOKENS, known.shape[1], generator=torch.Generator().manual_seed(0)) * known.std()
    table[token_ids] = known
    model = build()
    model.load_state_dict({**tensors, "token_embedding.weight": table})
    model.unseen_words = partial(_unseen_words, set(token_ids.tolist()))
    return model.eval()


def _unseen_words(known: set[int], texts: Sequence[str]) -> list[str]:
    words = dict.fromkeys(word for text in texts for word in re.findall(r"\w+|[^\w\s]", text.lower()))
    return [word for word in words if not known.issuperset(clip.tokenize(word)[0].tolist())]
