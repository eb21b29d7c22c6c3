"""SAM's image encoder with less memory traffic: the function of `ImageEncoderViT` (image_encoder.py of its package).

The package makes the attention scores of all tokens and heads of a block and passes over them several times. Here the
scores of a few queries are made, stay in the cache, and are used. What a window has beyond the edge of the image is not
projected: the package fills it with 0, so its queries, keys and values are their biases.
"""

import torch
from segment_anything.modeling import ImageEncoderViT
from segment_anything.modeling.image_encoder import Attention, get_rel_pos

ON_CPU, ELSEWHERE = 2**20, 2**26  # scores at once: 4 MB, the fastest of six sizes; 256 MB, not measured


def encode(encoder: ImageEncoderViT, images: torch.Tensor) -> torch.Tensor:
    """Embeddings (B, C, h, w) of preprocessed images (B, 3, H, W)."""
    tokens = encoder.patch_embed(images)  # (B, h, w, D)
    if encoder.pos_embed is not None:
        tokens = tokens + encoder.pos_embed
    for block in encoder.blocks:
        scores = block.attn.num_heads * tokens[..., 0].numel() * (block.window_size**2 or tokens[0, ..., 0].numel())
        if scores <= few_scores(tokens):  # nothing to gain: the miniature
            tokens = block(tokens)
            continue
        tokens = tokens + attend(block.attn, block.norm1(tokens), block.window_size)
        tokens = tokens + block.mlp(block.norm2(tokens))
    return encoder.neck(tokens.permute(0, 3, 1, 2))


def few_scores(tokens: torch.Tensor) -> int:
    """How many attention scores are made at once where these tokens are."""
    return ON_CPU if tokens.device.type == "cpu" else ELSEWHERE


def attend(attention: Attention, tokens: torch.Tensor, window: int) -> torch.Tensor:
    """Attention among tokens (B, h, w, D) in windows of window x window, or among all of an image (0)."""
    height, width = tokens.shape[1:3]
    rows, columns = (window, window) if window else (height, width)
    projected = attention.qkv(tokens)
    if height % rows or width % columns:
        whole = len(tokens), height + -height % rows, width + -width % columns, projected.shape[3]
        padded = projected.new_zeros(whole) if attention.qkv.bias is None else attention.qkv.bias.expand(whole).clone()
        padded[:, :height, :width] = projected
        projected = padded
    # (B, windows, rows, windows, columns, 3, heads, d), then queries, keys and values of G heads of windows
    parts = projected.unflatten(3, (3, attention.num_heads, -1)).unflatten(2, (-1, columns)).unflatten(1, (-1, rows))
    parts = parts.permute(5, 0, 1, 3, 6, 2, 4, 7)
    seen = over_all(attention, *parts.flatten(1, 4)).unflatten(0, parts.shape[1:5])
    seen = seen.permute(0, 1, 4, 2, 5, 3, 6).flatten(5).flatten(3, 4).flatten(1, 2)[:, :height, :width]
    return attention.proj(seen)


def over_all(attention: Attention, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Attention (G, h, w, d) of G heads, each among all h x w tokens, of a few queries after the other."""
    size = queries.shape[1:3]
    num_tokens, at_once = size.numel(), few_scores(queries)
    places = []
    if attention.use_rel_pos:
        of_rows, of_columns = attention.rel_pos_h, attention.rel_pos_w
        places.append(torch.einsum("ghwc,hkc->ghwk", queries, get_rel_pos(size[0], size[0], of_rows))[..., None])
        places.append(torch.einsum("ghwc,wkc->ghwk", queries, get_rel_pos(size[1], size[1], of_columns))[..., None, :])
        places = [each.flatten(1, 2) for each in places]  # (G, h w, h, 1) and (G, h w, 1, w)
    queries, keys, values = (each.flatten(1, 2) for each in (queries * attention.scale, keys, values))
    found = torch.empty_like(values)
    few_heads, few = max(1, at_once // num_tokens**2), max(1, at_once // num_tokens)
    for head in range(0, len(queries), few_heads):
        heads = slice(head, head + few_heads)
        for first in range(0, num_tokens, few):
            part = heads, slice(first, first + few)
            scores = (queries[part] @ keys[heads].mT).unflatten(2, size)
            for place in places:
                scores += place[part]
            found[part] = scores.flatten(2).softmax(dim=-1) @ values[heads]
    return found.unflatten(1, size)
