"""OpenCLIP, MetaCLIP, DFN and SigLIP 2 by open_clip's names MODEL:TAG, with all that encoders/clip.py does.

    name                                      licence of the weights     parameters
    ViT-B-16:datacomp_xl_s13b_b90k            MIT                        150 M
    ViT-B-16:laion2b_s34b_b88k                MIT                        150 M
    ViT-L-14:datacomp_xl_s13b_b90k            MIT                        428 M
    ViT-H-14:laion2b_s32b_b79k                MIT                        986 M
    ViT-B-16-quickgelu:openai                 MIT for the code alone     150 M
    ViT-B-16-quickgelu:metaclip_fullcc        CC-BY-NC 4.0               150 M
    ViT-B-16-quickgelu:metaclip_400m          CC-BY-NC 4.0               150 M
    ViT-L-14-quickgelu:metaclip_fullcc        CC-BY-NC 4.0               428 M
    ViT-B-16-quickgelu:dfn2b                  Apple's sample code        150 M
    ViT-L-14-quickgelu:dfn2b                  Apple's sample code        428 M
    ViT-B-16-SigLIP2-256:webli                Apache-2.0                 375 M
    ViT-L-16-SigLIP2-256:webli                Apache-2.0                 882 M
    ViT-SO400M-14-SigLIP2-378:webli           Apache-2.0                 1.14 G

None is gated. All others of `open_clip.list_pretrained` whose image encoder is a plain vision transformer or SigLIP's
do as well, and so do repositories of the hub with an open_clip_config.json, such as hf-hub:imageomics/bioclip.

SigLIP has no class token: a probe attends to the patches. Its dense features are the values that this attention adds
up, through its output projection: the region feature of TextRegion (arXiv 2505.23769, avaxiao/TextRegion) is their
mean over a mask, which `labels.pool` takes. The pooling's MLP is left out, as there. What GEM and CorrCLIP do to the
last block leads to the text through the class token's projection, so SigLIP has "plain" features only.

    pip install "plg-utils[models]"      installs open_clip_torch
"""

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timm.layers import AttentionPoolLatent, resample_abs_pos_embed
from timm.models import VisionTransformer
from torch import nn

from plg_utils import checkpoints, devices, files
from plg_utils.encoders import clip
from plg_utils.miniature import untrained
from plg_utils.records import Masks

_SMALL = {"width": 64, "layers": 1}
SMOKE = {
    "checkpoint": None,
    "image_size": 32,
    "model": {
        "model_cfg": {
            "embed_dim": 32,
            "vision_cfg": _SMALL | {"image_size": 32, "patch_size": 8},
            "text_cfg": _SMALL | {"heads": 1},
        }
    },
}


def build(
    *,
    checkpoint: str | None = "ViT-B-16:datacomp_xl_s13b_b90k",
    model: str | Mapping | None = None,
    features: str | None = None,
    image_size: int | None = None,
    depth: int | None = None,
    device: str = "cpu",
    **options,
) -> "Encoder":
    """Load one of open_clip's networks and say how its images are read: by its own mean, deviation and interpolation.

    checkpoint: MODEL:TAG as in `open_clip.list_pretrained`, hf-hub:owner/name, a file, or None: random weights of
        `model`
    model: what the weights of a file belong to: MODEL:TAG, or the content of open_clip_config.json, which is read
        where it lies beside the file. SigLIP also needs the files of its tokenizer there
    features: "plain", "gem" or "corr"; None: gem, of SigLIP plain, which has no other
    image_size: pixels, a multiple of the patch; None: that of encoders/clip.py, of SigLIP its own
    depth, device, options: see encoders/clip.py
    """
    network, tokenizer, how = load(checkpoint, model)
    network = network.to(devices.choose(str(device)))
    kind, own, size = Encoder, clip.OPENAI["features"], clip.OPENAI["image_size"]
    if hasattr(network.visual, "trunk"):
        kind, own, size, depth = SigLIP, "plain", network.visual.image_size[0], 1
    how |= {"features": features or own, "image_size": image_size or size, "depth": depth}
    return kind(network, tokenizer=tokenizer, **how, **options)


def load(checkpoint: str | None, model: str | Mapping | None = None) -> tuple[nn.Module, Any, dict[str, Any]]:
    """Load network, tokenizer and preprocessing; see `build`.

    returns: the network in single precision for inference, `_tokenizer`, and mean, std and interpolation
    """
    package = checkpoints.open_clip_package()
    config = deepcopy(_config(checkpoint, model))
    architecture, preprocessing = config["model_cfg"], config.get("preprocess_cfg", {})
    text, name = architecture["text_cfg"], model if isinstance(model, str) else checkpoint or "the network"
    custom = architecture.pop("custom_text", False)
    if "hf_model_name" in text or "multimodal_cfg" in architecture:
        raise ValueError(f"{name} has a text encoder that is not open_clip's own: take a ViT-* or ViT-*-SigLIP2-*")
    architecture["vision_cfg"]["timm_model_pretrained"] = False  # else timm downloads weights of its own
    network = untrained(partial(package.CustomTextCLIP if custom else package.CLIP, **architecture))
    if not (_is_plain(network.visual) or _is_siglip(network.visual)):
        raise ValueError(f"the patches of {name} are not in the space of its text: take a ViT-* or ViT-*-SigLIP2-*")
    weights = None if checkpoint is None else checkpoints.locate_weights(checkpoint)
    if weights is not None:
        wanted = network.state_dict()
        shapes = {weight: value.shape for weight, value in wanted.items()}
        state = checkpoints.load_clip_state(weights, shapes, f"open_clip's {name}")
        network.load_state_dict({weight: state[weight] for weight in wanted})
    if _is_plain(network.visual):
        # Then tokens are (L, B, C) as in OpenAI's package, and encoders/clip.py serves both.
        for part in (network.visual.transformer, *(block.attn for block in network.visual.transformer.resblocks)):
            part.batch_first = False
    network.logit_bias = None  # `tags` takes one for that of the miniature, which was learned on patches
    how = {key: preprocessing[key] for key in ("mean", "std", "interpolation") if key in preprocessing}
    return network, _tokenizer(text, weights and weights.parent, name), how


def _config(checkpoint: str | None, model: str | Mapping | None) -> Mapping:
    """Content of open_clip_config.json: `model_cfg` is the architecture, `preprocess_cfg` may be missing."""
    if isinstance(model, Mapping):
        return model
    name = model or checkpoint
    if name is None:
        raise ValueError("checkpoint: None is random weights, and needs model, such as ViT-B-16-quickgelu:openai")
    checkpoints.known(name)
    package, path = checkpoints.open_clip_package(), Path(name).expanduser().absolute()
    if name.startswith("hf-hub:"):
        path = checkpoints.locate_weights(name)
    beside = path.with_name(checkpoints.OPEN_CLIP_CONFIG)
    if name in package.list_pretrained(as_str=True):
        architecture, tag = name.split(":")
        preprocessing = package.get_pretrained_cfg(architecture, tag)
        return {"model_cfg": package.get_model_config(architecture), "preprocess_cfg": preprocessing}
    if beside.is_file():
        return files.read_json(beside)
    remedy = f"give model, such as ViT-B-16-quickgelu:openai, or put {checkpoints.OPEN_CLIP_CONFIG} beside it"
    raise ValueError(f"{name} does not say which of open_clip's networks it belongs to: {remedy}")


def _is_plain(visual: nn.Module) -> bool:
    """Whether an image encoder has the parts and the order of OpenAI's vision transformer."""
    if not hasattr(visual, "class_embedding") or visual.attn_pool is not None or visual.final_ln_after_pool:
        return False
    return all(isinstance(getattr(block, "ls_1", None), nn.Identity) for block in visual.transformer.resblocks)


def _is_siglip(visual: nn.Module) -> bool:
    """Whether an image encoder is timm's vision transformer of patches alone, pooled by attention."""
    trunk = getattr(visual, "trunk", None)
    if not isinstance(trunk, VisionTransformer) or not isinstance(trunk.attn_pool, AttentionPoolLatent):
        return False
    return trunk.num_prefix_tokens == 0 and isinstance(trunk.norm_pre, nn.Identity) and not len(visual.head)


def _tokenizer(text: Mapping, folder: Path | None, name: str) -> tuple[Callable[[str], list[int]], int]:
    """From a phrase to its tokens, those of begin and end too, and the token that fills the rest of the length.

    folder: of tokenizer.json, if the text encoder has a tokenizer of its own. The file is taken as it is: what
        transformers 5 makes of it by its class (Gemma's, of SigLIP 2) drops its normaliser, and may pad on the left
    """
    package, how = checkpoints.open_clip_package(), text.get("tokenizer_kwargs", {})
    if "hf_tokenizer_name" not in text:
        simple = package.SimpleTokenizer(**how)
        return lambda phrase: [simple.sot_token_id, *simple.encode(phrase), simple.eot_token_id], 0
    source = f"fetch {', '.join(checkpoints.TOKENIZER)} of {text['hf_tokenizer_name']} from the Hugging Face hub"
    if folder is None:
        raise ValueError(f"{name} with random weights has no tokenizer: {source}, and give a file of weights beside")
    with files.reading(folder / checkpoints.TOKENIZER[0], f"the tokenizer of {name}", f"{source}, and put them there"):
        from transformers import PreTrainedTokenizerFast

        fast = PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
        clean, filler = package.tokenizer.get_clean_fn(how.get("clean", "whitespace")), int(fast.pad_token_id)
    return lambda phrase: fast(clean(phrase)).input_ids, filler


@dataclass(eq=False, kw_only=True)
class Encoder(clip.Encoder):
    """Dense image features and text embeddings of one of open_clip's networks; see `build` for the options."""

    tokenizer: tuple[Callable[[str], list[int]], int]  # see `_tokenizer`

    def _parts(self) -> tuple[int, int, tuple[int, int]]:
        visual = self.model.visual
        return len(visual.transformer.resblocks), visual.patch_size[0], visual.image_size

    def tokenize(self, phrases: list[str]) -> torch.Tensor:
        """Tokens of M phrases, padded to the network's length: (M, T) int64; a phrase that is too long is refused."""
        encode, filler = self.tokenizer
        tokens = torch.full((len(phrases), self.model.context_length), filler)
        for row, phrase in zip(tokens, phrases, strict=True):
            numbers = torch.tensor(encode(phrase))
            if len(numbers) > len(row):
                limit = f"the {len(row)} that the network reads: shorten it, or the template"
                raise ValueError(f"{phrase!r:.80} has {len(numbers)} tokens, over {limit}")
            row[: len(numbers)] = numbers
        return tokens


class SigLIP(Encoder):
    """The same of a SigLIP, see the head of this file."""

    def __post_init__(self):
        """Check the options against the model."""
        if self.features != "plain":
            raise ValueError(f"features: {self.features} needs a class token, which SigLIP lacks: take plain")
        super().__post_init__()

    def _parts(self) -> tuple[int, int, tuple[int, int]]:
        trunk = self.model.visual.trunk
        return len(trunk.blocks), trunk.patch_embed.patch_size[0], self.model.visual.image_size

    def images(self, images: Sequence[np.ndarray], masks: Sequence[Masks] | None = None) -> list[torch.Tensor]:
        """Encode images, each (H, W, 3) uint8 RGB of any size: (D, h, w) float32 each, not of length 1."""
        sizes = [self.network_size(image.shape[:2]) for image in images]
        return self._batches(images, sizes, partial(patch_values, self.model.visual.trunk))


def patch_values(trunk: VisionTransformer, images: torch.Tensor) -> torch.Tensor:
    """What each patch adds to the pooled embedding of a SigLIP if the pooling attends to it alone, without its MLP.

    Position embeddings are resized as timm does where the grid is another one.

    images: (B, 3, H, W) normalised, H and W multiples of the patch
    returns: (B, D, h, w)
    """
    patches = trunk.patch_embed.proj(images)  # (B, C, h, w)
    grid = patches.shape[2:]
    position = resample_abs_pos_embed(trunk.pos_embed, list(grid), num_prefix_tokens=0)
    tokens = trunk.norm(trunk.blocks(patches.flatten(2).mT + position))  # (B, h*w, C)
    pool = trunk.attn_pool
    _, value = pool.kv(tokens).chunk(2, dim=2)
    return trunk.fc_norm(pool.proj(value)).mT.unflatten(2, grid)
