"""SAM's mask decoder by algebra: the same function of one image and many prompts, with far fewer multiplications.

The decoder (transformer.py and mask_decoder.py of the package segment_anything) projects every image token for every
prompt. But a prompt has few tokens, T = 7 for a point or a box. At each place of the transformer the image tokens are

    X = I * r + R' z + b      I (C, N) and b (C) of the image; r (N), z (K, N) and R (K, C) of a prompt

An attention from the image to the prompt appends its H T weights to the rows of z, and what they weight to R. A layer
norm divides r and z by the deviation of each token, and the variance is a quadratic form in z. A product of X with a
projection is therefore a product with I, made once for an image, and a small one with R. X is never made: for the
prompts whose masks are drawn, the same sum gives the result of the first transposed convolution.

Letters: P prompts, T tokens of a prompt, H heads of d channels each, N image tokens, C channels.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from segment_anything.modeling import MaskDecoder
from segment_anything.modeling.transformer import Attention
from torch import nn

TOKENS_AT_ONCE = 2**14  # image tokens of all prompts on which a CPU works together: what fits into its cache

State = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # r (P, 1, N), z (P, K, N) and R (P, K, C) of prompts
Look = Callable[[torch.Tensor, State], torch.Tensor]


class Decoder:
    """A mask decoder for one image: `transform` is its transformer, `draw` its upscaling and its masks."""

    def __init__(self, decoder: MaskDecoder, image: torch.Tensor, place: torch.Tensor):
        """Make what all prompts share, of the image embedding and its positional encoding, (1, C, h, w) each."""
        self.decoder, self.grid = decoder, image.shape[-2:]
        weight = decoder.iou_token.weight  # for the type: in autocast an embedding may be bf16
        image, place = (each[0].flatten(1).to(weight) for each in (image, place))  # (C, N)
        constant = torch.zeros_like(image[:, 0])  # b
        self.layers, spreads, rows = [], [], []  # spreads (H, d, C) and rows (C,): what each layer up to here adds to R
        with torch.autocast(image.device.type, enabled=False):
            for layer in decoder.transformer.layers:
                look = looking(layer.cross_attn_token_to_image, image, place, constant)
                attention = layer.cross_attn_image_to_token
                asking, bias = heads_of(attention.q_proj.weight, attention), attention.q_proj.bias[:, None]
                asked = asking @ image, asking @ (place + constant[:, None]) + heads_of(bias, attention), asking
                spreads = [centred(each) for each in (*spreads, heads_of(attention.out_proj.weight.T, attention))]
                rows = [centred(each) for each in (*rows, constant + attention.out_proj.bias)]
                image = image - image.mean(dim=0)
                along = [(row @ image, spread @ image) for row, spread in zip(rows, spreads, strict=True)]
                self.layers.append((layer, look, asked, (rows[-1], spreads[-1], along, image.square().mean(dim=0))))
                scale, constant = layer.norm4.weight, layer.norm4.bias
                image = image * scale[:, None]
                spreads, rows = [each * scale for each in spreads], [each * scale for each in rows]
            self.last = looking(decoder.transformer.final_attn_token_to_image, image, place, constant)
            self.first = as_matrix(decoder.output_upscaling[0])  # (C, 4 c)
            self.image = image.T @ self.first  # (N, 4 c)
            self.constant = constant @ self.first + decoder.output_upscaling[0].bias.repeat(4)

    def transform(self, tokens: torch.Tensor) -> tuple[torch.Tensor, list[State]]:
        """Answers (P, T, C) to prompts of tokens (P, T, C), and what `draw` needs, of some prompts after the other."""
        cpu = tokens.device.type == "cpu"
        few = max(1, TOKENS_AT_ONCE // len(self.image)) if cpu else len(tokens)
        answers, states = zip(*map(self.answer, tokens.split(few)), strict=True)
        return torch.cat(answers), list(states)

    def answer(self, tokens: torch.Tensor) -> tuple[torch.Tensor, State]:
        """Answers (P, T, C) to prompts, and their state after all layers."""
        queries, image, given = tokens, self.image, []
        state = (
            image.new_ones(len(tokens), 1, len(image)),
            image.new_empty(len(tokens), 0, len(image)),
            image.new_empty(len(tokens), 0, tokens.shape[2]),
        )
        for layer, look, asked, spread in self.layers:
            if layer.skip_first_layer_pe:
                queries = layer.self_attn(queries, queries, queries)
            else:
                placed = queries + tokens
                queries = queries + layer.self_attn(placed, placed, queries)
            queries = layer.norm1(queries)
            queries = layer.norm2(queries + look(queries + tokens, state))
            queries = layer.norm3(queries + layer.mlp(queries))
            attention = layer.cross_attn_image_to_token
            keys = by_head(attention.k_proj(queries + tokens), attention)
            weights = scores(keys, *asked, state).softmax(dim=2).flatten(1, 2)  # over the T tokens; (P, H T, N)
            given.append(by_head(attention.v_proj(queries), attention))
            state = spread_and_normed(layer.norm4, weights, given, *spread, state)
        return self.decoder.transformer.norm_final_attn(queries + self.last(queries + tokens, state)), state

    def draw(self, states: list[State], answers: torch.Tensor, good: torch.Tensor) -> torch.Tensor:
        """Logits (M, 4 h, 4 w) float32 of the masks where `good` (P, 3) is true, of prompts from `transform`."""
        few = [len(state[0]) for state in states]
        parts = [(*state, *rest) for state, *rest in zip(states, answers.split(few), good.split(few), strict=True)]
        return torch.cat([self.masks(*(each[part[-1].any(dim=1)] for each in part)) for part in parts])

    def masks(
        self, scale: torch.Tensor, z: torch.Tensor, rows: torch.Tensor, answers: torch.Tensor, good: torch.Tensor
    ) -> torch.Tensor:
        """What `draw` gives, of prompts with one state."""
        _, norm, act, second, act_again = self.decoder.output_upscaling
        pixels = torch.baddbmm(scale.mT * self.image + self.constant, z.mT, rows @ self.first)
        pixels = pixels.unflatten(2, (4, -1))  # (P, N, 4, c): the four pixels of an image token
        pixels = act(F.layer_norm(pixels, pixels.shape[-1:], norm.weight, norm.bias, norm.eps))
        pixels = act_again(F.linear(pixels, as_matrix(second).T, second.bias.repeat(4)).unflatten(3, (4, -1)))
        mlps = self.decoder.output_hypernetworks_mlps[1:]
        kernels = torch.stack([mlp(answers[:, 2 + k]) for k, mlp in enumerate(mlps)], dim=1)  # (P, 3, c)
        masks = (kernels @ pixels.flatten(1, 3).mT)[good].float()  # (M, 16 N)
        # Of the 16 pixels of a token, two neighbours in a row move as one number of 64 bits: ten times as fast.
        pairs = masks.view(torch.float64).unflatten(1, (*self.grid, 2, 2, 2)).permute(0, 1, 3, 5, 2, 4).contiguous()
        return pairs.flatten(4).view(torch.float32).flatten(1, 3)


def looking(attention: Attention, image: torch.Tensor, place: torch.Tensor, constant: torch.Tensor) -> Look:
    """The attention from queries (P, T, C) of prompts, with their state, to the image, as (P, T, C)."""
    # What adds the same number to all N scores, such as the bias of the keys, changes no softmax.
    keys, values = (heads_of(each.weight, attention) for each in (attention.k_proj, attention.v_proj))  # (H, d, C)
    bias = heads_of((attention.v_proj.weight @ constant + attention.v_proj.bias)[:, None], attention)  # (H, d, 1)
    asked, of_image = (keys @ image, keys @ place, keys), (values @ image).mT.contiguous()

    def look(queries: torch.Tensor, state: State) -> torch.Tensor:
        scale, z, rows = state
        weights = scores(by_head(attention.q_proj(queries), attention), *asked, state).softmax(dim=-1)  # (P, H, T, N)
        of_rows = (weights.flatten(1, 2) @ z.mT @ rows).unflatten(1, weights.shape[1:3])  # (P, H, T, C)
        seen = product(weights * scale[:, None], of_image) + product(of_rows, values.mT) + bias.mT
        return attention.out_proj(seen.transpose(1, 2).flatten(2))

    return look


def scores(
    asked: torch.Tensor, image: torch.Tensor, fixed: torch.Tensor, projection: torch.Tensor, state: State
) -> torch.Tensor:
    """Scaled products (P, H, T, N) of heads (P, H, T, d) of a prompt with the projected image tokens.

    image, fixed: what the projection (H, d, C) makes of I, and what is added for all prompts, (H, d, N)
    """
    scale, z, rows = state
    asked = asked / asked.shape[-1] ** 0.5
    known = torch.addcmul(product(asked, fixed), product(asked, image), scale[:, None])
    of_rows = product(asked, projection).flatten(1, 2) @ rows.mT  # (P, H T, K)
    return torch.baddbmm(known.flatten(1, 2), of_rows, z).unflatten(1, asked.shape[1:3])


def spread_and_normed(
    norm: nn.LayerNorm,
    weights: torch.Tensor,
    given: list[torch.Tensor],
    row: torch.Tensor,
    spread: torch.Tensor,
    along: list[tuple[torch.Tensor, torch.Tensor]],
    square: torch.Tensor,
    state: State,
) -> State:
    """The state after the image has attended to the prompt, with weights (P, H T, N), and after the layer norm.

    given: projected values (P, H, T, d) of this layer and those before it
    row, spread: what their bias (C,) and what they themselves, by (H, d, C), add to X, of mean 0 over the channels
    along: for each of these layers, products of row and spread with I: (N,) and (H, d, N); square: mean of I**2 (N,)
    """
    scale, z, rows = state
    with torch.autocast(z.device.type, enabled=False):  # a variance by squares needs all digits
        given, ones = [each.to(scale) for each in given], torch.ones_like(scale)
        z = torch.cat([z, ones, weights], dim=1)
        rows = torch.cat([centred(rows), row.expand(len(z), 1, -1), product(given[-1], spread).flatten(1, 2)], dim=1)
        parts = [
            (fixed * ones, product(each, image).flatten(1, 2))
            for (fixed, image), each in zip(along, given, strict=True)
        ]
        products = torch.cat([part for pair in parts for part in pair], dim=1).mul_(2 * scale)  # (P, K, N)
        products = torch.baddbmm(products, rows @ rows.mT, z).mul_(z).sum(dim=1, keepdim=True)
        variance = (square * scale**2 + products / rows.shape[2]).clamp(min=0)  # (P, 1, N)
        factor = torch.rsqrt(variance + norm.eps)
        return scale * factor, z * factor, rows * norm.weight


def heads_of(weight: torch.Tensor, attention: Attention) -> torch.Tensor:
    """A weight (D, M) of all heads as (H, d, M)."""
    return weight.unflatten(0, (attention.num_heads, -1))


def product(tokens: torch.Tensor, shared: torch.Tensor) -> torch.Tensor:
    """Product (P, H, T, M) of what prompts have for each head, (P, H, T, L), and what they share, (H, L, M)."""
    return torch.einsum("phtl,hlm->phtm", tokens, shared)  # one product a head, while @ copies `shared` for each prompt


def by_head(tokens: torch.Tensor, attention: Attention) -> torch.Tensor:
    """Tokens (P, T, D) as (P, H, T, d)."""
    return tokens.unflatten(2, (attention.num_heads, -1)).transpose(1, 2)


def centred(rows: torch.Tensor) -> torch.Tensor:
    """Rows (..., C) less their means."""
    return rows - rows.mean(dim=-1, keepdim=True)


def as_matrix(convolution: nn.ConvTranspose2d) -> torch.Tensor:
    """The weight of a transposed convolution, 2 x 2 with stride 2, as (C, 4 c): upper left, upper right and so on."""
    return convolution.weight.permute(0, 2, 3, 1).flatten(1)
