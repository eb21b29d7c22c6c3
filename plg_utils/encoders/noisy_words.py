"""Another encoder with spoiled words: a test bed for what labels its segments in spite of poor words.

Each word's embedding, of length 1, gets a random vector of a chosen length added, and is brought to length 1 again.
Images are embedded as they are.
"""

from typing import Any

import torch
import torch.nn.functional as F

from plg_utils import encoders
from plg_utils.records import Classes

SMOKE = {"checkpoint": None}


def build(
    *, of: str = "clip", word_noise: float = 1.0, noise_seed: int = 0, checkpoint: Any = "miniature_clip", **options
) -> "NoisyWords":
    """Load another encoder, and draw the noise of its words.

    of: the file of the encoder; checkpoint, options: its own
    word_noise: length of what is added, from 0 on; noise_seed: of its direction, which depends on the word's place
    """
    if not word_noise >= 0:
        raise ValueError(f"word_noise is {word_noise!r}; give a length from 0 on")
    return NoisyWords(encoders.build(of, checkpoint=checkpoint, **options), word_noise, noise_seed)


class NoisyWords:
    """An encoder, and the noise of its words."""

    def __init__(self, encoder: Any, length: float, seed: int):
        self.encoder, self.length, self.seed = encoder, length, seed

    def __getattr__(self, name: str) -> Any:
        """All else is the encoder's."""
        return getattr(self.encoder, name)

    def class_embeddings(self, classes: Classes) -> tuple[torch.Tensor, torch.Tensor]:
        """Embeddings (K', D) of length 1, and the class (K',) of each."""
        texts, owner = self.encoder.class_embeddings(classes)
        noise = torch.randn(texts.shape, generator=torch.Generator().manual_seed(self.seed)).to(texts.device)
        return F.normalize(texts + self.length * F.normalize(noise, dim=1), dim=1), owner
