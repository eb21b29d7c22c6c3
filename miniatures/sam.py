"""Train and measure the miniature SAM, whose network is in plg_utils/miniature/sam.py.

    python -m miniatures.sam --minutes 80 --processes 2      # train, or go on training, to a state file
    python -m miniatures.sam --finish                        # write plg_utils/miniature/sam.safetensors

It learns from masks of objects, parts and background regions, never from names. What differs from the training of
Kirillov et al. 2023, because an hour of a CPU has to do for 256 GPUs of three days:
- The outputs have fixed roles instead of the lowest loss among three: whole, part, and a third that is free to choose.
- Dense tasks on the image embedding during training (which pixels belong to the same thing), thrown away afterwards.
"""

import argparse
import math
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from segment_anything import SamAutomaticMaskGenerator
from segment_anything.modeling import MaskDecoder, Sam
from segment_anything.utils.amg import batched_mask_to_box
from torch import nn

from miniatures import scenes as storybook_scenes
from miniatures import training
from plg_utils import files
from plg_utils.miniature.sam import GRID, PROMPT_DIM, SIDE, WEIGHTS, build, load

WHOLE, PART = 0, 1  # the two true masks of a prompt
ROLES = ("single", "whole", "part", "free")  # of the four outputs
MIN_AREA = 16  # pixels; a smaller true mask is one low-resolution pixel or so, and teaches noise


def decode(
    decoder: MaskDecoder, embeddings: torch.Tensor, image_pe: torch.Tensor, sparse: torch.Tensor, dense: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """All four outputs of the mask decoder for K prompts of each image at once; the package takes one image at a time.

    The same function as `MaskDecoder.predict_masks`, ordered so that the image's tokens are copied as late as possible.
    embeddings: (B, C, h, w), image_pe: (1, C, h, w), sparse: (B, K, T, C), dense: (C,) of the prompt without a mask
    returns: logits (B·K, 4, 16·h·w) in the order of `blocks`, predicted IoU (B·K, 4); the single mask first
    """
    n = sparse.shape[0] * sparse.shape[1]
    outputs = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight]).expand(n, -1, -1)
    tokens = torch.cat([outputs, sparse.flatten(0, 1)], dim=1)  # (N, T, C), T with the outputs from here on
    keys = embeddings.flatten(2).transpose(1, 2) + dense  # (G, L, C): G = B images, after the first layer N prompts
    pe = image_pe[0].flatten(1).T  # (L, C)
    queries = tokens
    for layer in decoder.transformer.layers:
        if layer.skip_first_layer_pe:
            queries = layer.norm1(layer.self_attn(q=queries, k=queries, v=queries))
        else:
            asked = queries + tokens
            queries = layer.norm1(queries + layer.self_attn(q=asked, k=asked, v=queries))
        queries = layer.norm2(queries + _tokens_read(layer.cross_attn_token_to_image, queries + tokens, keys, pe))
        queries = layer.norm3(queries + layer.mlp(queries))
        read = _image_reads(layer.cross_attn_image_to_token, keys, pe, queries + tokens, queries)  # (N, L, C)
        keys = layer.norm4(keys[:, None] + read.unflatten(0, (len(keys), -1))).flatten(0, 1)
    final = decoder.transformer.final_attn_token_to_image
    queries = decoder.transformer.norm_final_attn(queries + _tokens_read(final, queries + tokens, keys, pe))

    # A transposed convolution of kernel 2 and stride 2 is a matrix product that gives each pixel four.
    first, norm, act, second, _ = decoder.output_upscaling
    fine = _spread(first, keys)  # (N, L, 4, C/4)
    fine = act(F.layer_norm(fine, fine.shape[-1:], norm.weight, norm.bias, norm.eps))
    fine = act(_spread(second, fine))  # (N, L, 4, 4, C/8)
    hyper = torch.stack([mlp(queries[:, 1 + i]) for i, mlp in enumerate(decoder.output_hypernetworks_mlps)], dim=1)
    logits = (fine.flatten(1, 3) @ hyper.transpose(1, 2)).transpose(1, 2)  # in this order its gradient is contiguous
    return logits, decoder.iou_prediction_head(queries[:, 0])


def _tokens_read(attention, queries, keys, pe):
    """`attention(q=queries, k=keys + pe, v=keys)`, for M = N/G prompts of the same keys. (N, T, C) -> (N, T, C)

    One product serves all heads: a query's copy for a head is zero in the channels of the others.
    """
    asked, own = _by_head(attention, attention.q_proj(queries), len(keys))  # (G, M·h·T, c)
    offered = attention.k_proj(keys) + F.linear(pe, attention.k_proj.weight)  # (G, L, c)
    read = (asked @ offered.transpose(1, 2)).softmax(dim=-1) @ attention.v_proj(keys)  # (G, M·h·T, c)
    read = read.view(len(queries), attention.num_heads, queries.shape[1], -1)
    return attention.out_proj((read * own).sum(dim=1))


def _image_reads(attention, keys, pe, tokens, values):
    """`attention(q=keys + pe, k=tokens, v=values)`. keys: (G, L, C), tokens and values: (N, T, C) -> (N, L, C)"""
    n, t = tokens.shape[:2]
    asked = attention.q_proj(keys) + F.linear(pe, attention.q_proj.weight)  # (G, L, c)
    offered, own = _by_head(attention, attention.k_proj(tokens), len(keys))  # (G, M·h·T, c)
    scores = (offered @ asked.transpose(1, 2)).view(n, attention.num_heads, t, -1)  # (N, h, T, L)
    held = (attention.v_proj(values)[:, None] * own).flatten(1, 2)  # (N, h·T, c)
    return attention.out_proj(scores.softmax(dim=2).flatten(1, 2).transpose(1, 2) @ held)


def _by_head(attention, features, groups):
    """Each head's copy of (N, T, c), scaled as queries are, as (G, M·h·T, c); and the heads' channels (h, 1, c)."""
    heads, channels = attention.num_heads, features.shape[-1]
    own = torch.eye(heads, dtype=features.dtype).repeat_interleave(channels // heads, dim=1)[:, None]
    copies = features[:, None] * (own / math.sqrt(channels // heads))  # (N, h, T, c)
    return copies.reshape(groups, -1, channels), own


def in_place(logits: torch.Tensor) -> torch.Tensor:
    """The logits of `decode` as masks. (N, M, 256·16) -> (N, M, 64, 64)"""
    n, m, _ = logits.shape
    pixels = logits.reshape(
        n, m, GRID, GRID, 2, 2, 2, 2
    )  # row and column of the token, its quarter, that one's quarter
    return pixels.permute(0, 1, 2, 4, 6, 3, 5, 7).reshape(n, m, 4 * GRID, 4 * GRID)


def blocks(maps: torch.Tensor) -> torch.Tensor:
    """Pixels in the order in which the decoder makes them: token by token, in it quarter by quarter, and so on.

    (B, C, 64, 64) -> (B, C, 256·16), or (B, C, 32, 32) -> (B, C, 256·4)
    """
    b, c, side, _ = maps.shape
    if side == 2 * GRID:
        return maps.reshape(b, c, GRID, 2, GRID, 2).permute(0, 1, 2, 4, 3, 5).flatten(2)
    return maps.reshape(b, c, GRID, 2, 2, GRID, 2, 2).permute(0, 1, 2, 5, 3, 6, 4, 7).flatten(2)


def _spread(layer, features):
    """(..., C) -> (..., 4, D): the four pixels that a transposed convolution of stride 2 makes of each."""
    weight = layer.weight.permute(2, 3, 1, 0).flatten(0, 2)  # (2·2·D, C)
    return F.linear(features, weight, layer.bias.repeat(4)).unflatten(-1, (4, -1))


class DenseTasks(nn.Module):
    """What the image embedding must say about the pixels while it is trained; not part of the model.

    Which pixels lie in the same thing as a token (as whole, as part), where edges are, how far the thing's centre is.
    """

    def __init__(self, dim: int = PROMPT_DIM, keys: int = 32):
        """Linear maps on the tokens, and two small upsamplings."""
        super().__init__()
        self.queries = nn.Linear(dim, 2 * (keys + 1))  # one set for whole, one for part, each with a bias
        self.finer = nn.Linear(dim, 4 * dim)
        self.keys = nn.Linear(dim, 2 * keys)
        self.centre = nn.Linear(dim, 2)
        self.edges = nn.Linear(dim, 4 * 3)

    def forward(self, embeddings: torch.Tensor, tokens: torch.Tensor):
        """Affinities of some tokens (B, 2, T, 32·32), offsets (B, 32·32, 2), edges (B, 32·32, 2·2, 3).

        embeddings: (B, C, 16, 16), tokens: (B, T) positions in the grid
        The 32·32 pixels come token by token, see `blocks`.
        """
        features = embeddings.flatten(2).transpose(1, 2)  # (B, 256, C)
        chosen = features.gather(1, tokens[..., None].expand(-1, -1, features.shape[2]))
        queries = self.queries(chosen).unflatten(-1, (2, -1)).transpose(1, 2)  # (B, 2, T, keys + 1)
        fine = F.relu(self.finer(features)).unflatten(-1, (4, -1)).flatten(1, 2)  # (B, 1024, C)
        keys = self.keys(fine).unflatten(-1, (2, -1)).permute(0, 2, 3, 1)  # (B, 2, keys, 1024)
        return queries[..., :-1] @ keys + queries[..., -1:], self.centre(fine), self.edges(fine).unflatten(-1, (4, -1))


class Student(nn.Module):
    """The model and its dense tasks; the forward pass gives the loss terms of a batch."""

    def __init__(self):
        """A new miniature SAM."""
        super().__init__()
        self.sam, self.tasks = build(), DenseTasks()

    def forward(self, images, tokens, image_pe, sparse):
        """(logits, predicted IoU) of `decode`, and the outputs of `DenseTasks`.

        images: (B, 3, H, W) normalized, tokens: (B, T), image_pe: (1, C, h, w), sparse: (B, K, 2, C)
        """
        embeddings = self.sam.image_encoder(images)
        dense = self.sam.prompt_encoder.no_mask_embed.weight[0]
        return *decode(self.sam.mask_decoder, embeddings, image_pe, sparse, dense), *self.tasks(embeddings, tokens)


def draw_batch(world, rng: np.random.Generator, *, images: int, points: int, boxes: int) -> dict[str, torch.Tensor]:
    """Scenes, each with point prompts and box prompts and the two true masks of every prompt.

    A pixel is drawn with weight 1/sqrt(area of its thing), half way between the mask generator's even grid and thing by
    thing, and three times as often on an object, because regions are learned long before objects. The whole at a pixel
    is its object, or its background region; the part there is its part, or the whole again.
    returns: image (B, 3, H, W) float32 0..255, maps (B, 2, H, W) int16 of things as whole and as part,
    pixels (B, K, 2) the (x, y) of each prompt, centre (B, H, W, 2) and object (B, H, W) of the dense tasks
    """
    batch = {name: [] for name in ("image", "maps", "pixels", "centre", "object")}
    for index in rng.integers(len(world), size=images):
        flip = slice(None, None, -1 if rng.random() < 0.5 else 1)
        image, instances, parts, stuff = (
            array[index][:, flip] for array in (world.image, world.instances, world.parts, world.stuff)
        )
        whole = np.where(instances > 0, instances, 256 + stuff.astype(np.int16)).astype(np.int16)
        part = np.where((parts > 0) & (instances > 0), 512 + parts.astype(np.int16), whole).astype(np.int16)
        area = np.bincount(whole.ravel(), minlength=512)
        chance = np.cumsum((area[whole] ** -0.5 * np.where(instances > 0, 3, 1)).ravel())
        drawn = np.searchsorted(chance, rng.random(points + boxes) * chance[-1]).clip(max=chance.size - 1)
        rows, columns = np.indices(whole.shape)
        middle = np.stack(
            [np.bincount(whole.ravel(), c.ravel(), minlength=512) / area.clip(min=1) for c in (columns, rows)], axis=1
        )
        gain = rng.uniform(0.85, 1.15) * rng.uniform(0.94, 1.06, 3)
        batch["image"].append((image * gain + rng.normal(0, 8)).clip(0, 255).astype(np.float32).transpose(2, 0, 1))
        batch["maps"].append(np.stack([whole, part]))
        batch["pixels"].append(np.stack([drawn % SIDE, drawn // SIDE], axis=1))
        batch["centre"].append((middle[whole] - np.stack([columns, rows], axis=2)).astype(np.float32))
        batch["object"].append(np.ascontiguousarray(instances > 0))
    return {name: torch.from_numpy(np.stack(values)) for name, values in batch.items()}


def true_masks(maps: torch.Tensor, pixels: torch.Tensor) -> torch.Tensor:
    """The whole and the part at each pixel. maps: (B, 2, H, W), pixels: (B, K, 2) -> (B, K, 2, H, W) bool."""
    at = maps.flatten(2).gather(2, (pixels[..., 1] * SIDE + pixels[..., 0])[:, None].expand(-1, 2, -1))  # (B, 2, K)
    return (maps[:, :, None] == at[..., None, None]).transpose(1, 2)


def embed_prompts(prompt_encoder, batch, masks, rng, *, boxes: int) -> torch.Tensor:
    """Sparse embeddings of the prompts, (B, K, 2, C): the last `boxes` of each image are boxes, the others points.

    A box strays from the true one by up to a tenth of its sides, at most 20 pixels (Kirillov et al. 2023, appendix A).
    """
    b, k = batch["pixels"].shape[:2]
    points = batch["pixels"][:, : k - boxes].flatten(0, 1)[:, None].float()
    sparse, _ = prompt_encoder(points=(points, torch.ones(len(points), 1)), boxes=None, masks=None)
    sparse = sparse.unflatten(0, (b, -1))
    if boxes == 0:
        return sparse
    true = batched_mask_to_box(masks[:, k - boxes :, WHOLE]).float()  # (B, boxes, 4)
    sides = (true[..., 2:] - true[..., :2] + 1).repeat(1, 1, 2)
    noise = torch.from_numpy(rng.normal(0, 0.1 / 2, true.shape).astype(np.float32)) * sides
    asked = (true + noise.clamp(-20, 20)).clamp(0, SIDE - 1)
    boxed, _ = prompt_encoder(points=None, boxes=asked.flatten(0, 1), masks=None)
    return torch.cat([sparse, boxed.unflatten(0, (b, -1))], dim=1)


def mask_losses(logits: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """Cross entropy plus Dice of every output against every true mask.

    logits: (N, M, P), truth: (N, R, P) in [0, 1] -> (N, M, R)
    SAM takes focal loss and Dice 20 : 1. Plain cross entropy, with Dice as in Mask2Former (Cheng et al. 2022, 1 : 1),
    does not reward logits near zero: the stability score asks for the same mask at logits -1 and +1.
    """
    truth = truth.transpose(1, 2)
    entropy = F.softplus(logits).mean(2)[..., None] - logits @ truth / logits.shape[2]
    probability = logits.sigmoid()
    overlap = probability @ truth
    dice = 1 - (2 * overlap + 1) / (probability.sum(2)[..., None] + truth.sum(1)[:, None] + 1)
    return entropy + dice


@torch.no_grad()
def mask_ious(logits: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """IoU of every output, cut at zero, with every true mask.

    logits: (N, M, P), truth: (N, R, P) in [0, 1] -> (N, M, R)
    At low resolution, for a quarter of the work; the mask generator's masks at the image's differ from it by little.
    """
    masks, truth = (logits > 0).float(), (truth > 0.5).float()
    overlap = masks @ truth.transpose(1, 2)
    return overlap / (masks.sum(2)[..., None] + truth.sum(2)[:, None] - overlap).clamp(min=1)


def decoder_losses(logits, predicted_iou, masks) -> dict[str, torch.Tensor]:
    """Loss terms of the prompts, and the mean IoU of each role.

    Output 0, the single mask, and output 1 are the whole, output 2 is the part, output 3 whichever costs it less. Each
    output's predicted IoU learns its own true IoU (squared error, as in SAM).
    logits: (N, 4, P) in the order of `blocks`, predicted_iou: (N, 4), masks: (N, 2, H, W) bool
    """
    coarse = masks.view(torch.uint8)
    coarse = sum(coarse[..., i::2, j::2] for i in (0, 1) for j in (0, 1))
    coarse = blocks(coarse).float() / 4  # (N, 2, P)
    costs = mask_losses(logits, coarse)  # (N, 4, 2)
    free = costs[:, 3].min(dim=1).values
    by_role = torch.stack([costs[:, 0, WHOLE], costs[:, 1, WHOLE], costs[:, 2, PART], free], dim=1)
    area = 4 * coarse.sum(2)  # (N, 2) pixels
    counted = (area[:, [WHOLE, WHOLE, PART, WHOLE]] >= MIN_AREA).float()
    ious = mask_ious(logits, coarse)
    iou = torch.stack([ious[:, 0, WHOLE], ious[:, 1, WHOLE], ious[:, 2, PART], ious[:, 3].amax(dim=1)], dim=1)
    weight = counted / counted.sum(dim=0).clamp(min=1) / 4  # (N, 4), sums to 1
    terms = {"mask": (by_role * weight).sum(), "iou": ((predicted_iou - iou).square() * weight).sum()}
    for role, mean in zip(ROLES, 4 * (iou * weight).sum(dim=0), strict=True):
        terms[f"iou_{role}"] = mean
    return terms | {"iou_error": ((predicted_iou.detach() - iou).abs() * weight).sum()}


def dense_losses(affinity, centre, edges, batch, tokens) -> dict[str, torch.Tensor]:
    """Loss terms of `DenseTasks`, from the maps of things."""
    maps, step = batch["maps"], SIDE // (2 * GRID)
    every = maps[:, :, step // 2 :: step, step // 2 :: step]  # (B, 2, 32, 32)
    own = maps[:, :, step :: 2 * step, step :: 2 * step].flatten(2)  # (B, 2, 256), the token's middle
    own = own.gather(2, tokens[:, None].expand(-1, 2, -1))
    same = (own[..., None] == blocks(every).flatten(2)[:, :, None]).float()  # (B, 2, T, 1024)
    group = mask_losses(affinity.flatten(0, 2)[:, None], same.flatten(0, 2)[:, None]).mean()

    there = (batch["object"][:, None], _edge(maps[:, :1]), _edge(maps[:, 1:]))
    there = F.max_pool2d(torch.cat(there, dim=1).float(), 2)  # (B, 3, 64, 64)
    outline = F.binary_cross_entropy_with_logits(edges, blocks(there).unflatten(2, (-1, 4)).permute(0, 2, 3, 1))
    target = batch["centre"][:, step // 2 :: step, step // 2 :: step].permute(0, 3, 1, 2) / 32  # about -1..1
    target = blocks(target).transpose(1, 2)  # (B, 1024, 2)
    return {"group": group, "edge": outline, "centre": F.smooth_l1_loss(centre, target)}


def _edge(things):
    """Pixels whose right or lower neighbour is another thing. (B, 1, H, W) -> bool"""
    right = F.pad(things[..., :, 1:] != things[..., :, :-1], (0, 1))
    return right | F.pad(things[..., 1:, :] != things[..., :-1, :], (0, 0, 0, 1))


def loss_terms(student: Student, batch: dict, rng: np.random.Generator, *, boxes: int, tokens: int):
    """All named loss terms of a batch; "total" is what training minimises.

    tokens: of the 256 of each image, how many ask for the pixels of their thing
    """
    sam = student.sam
    masks = true_masks(batch["maps"], batch["pixels"])  # (B, K, 2, H, W)
    sparse = embed_prompts(sam.prompt_encoder, batch, masks, rng, boxes=boxes)
    asked = np.stack([rng.choice(GRID * GRID, tokens, replace=False) for _ in range(len(masks))])
    asked = torch.from_numpy(asked)
    half = {name: p.bfloat16() for name, p in student.named_parameters()}  # products in bfloat16, updates in float32
    inputs = sam.preprocess(batch["image"]).bfloat16().contiguous(memory_format=torch.channels_last)
    arguments = (inputs, asked, sam.prompt_encoder.get_dense_pe().bfloat16(), sparse.bfloat16())
    outputs = torch.func.functional_call(student, half, arguments)
    logits, predicted_iou, affinity, centre, edges = (output.float() for output in outputs)
    terms = decoder_losses(logits, predicted_iou, masks.flatten(0, 1))
    terms |= dense_losses(affinity, centre, edges, batch, asked)
    total = 2 * terms["mask"] + terms["iou"] + terms["group"] + 0.5 * terms["edge"] + 0.5 * terms["centre"]
    return {"total": total} | terms


def train(
    *,
    folder: str | Path | None = None,
    minutes: float | None = None,
    steps: int | None = None,
    sitting: int | None = None,
    init: str | Path | None = None,
    processes: int = 1,
    images: int = 12,
    points: int = 6,
    boxes: int = 2,
    tokens: int = 64,
    scenes: int = 12_000,
    lr: float = 1e-3,
    muon_lr: float = 2e-3,
    warmup: int = 100,
    decay: float = 0.3,
    seed: int = 0,
    log_every: int = 50,
    save_every: int = 200,
) -> Path:
    """Train, or go on training, to `folder`/sam.pt, and return that path.

    minutes or steps: length of the whole run; a run already in `folder` goes on with the time it has used
    sitting: stop after this many steps of it (the same call again goes on)
    init: weights file that a run with no state yet starts from, e.g. `WEIGHTS`; default: random weights
    images, points, boxes: per step and process; scenes: how many are drawn, shared out among the processes
    decay: last share of the run, in which the learning rate falls to zero; seed: of weights and batches
    """
    options = {k: v for k, v in locals().items() if k not in ("folder", "processes")}
    folder = Path(folder) if folder else files.data_root() / "miniature_state"
    training.run(_train, processes, folder / "sam.pt", processes, options)
    return folder / "sam.pt"


def _train(rank: int, path: Path, processes: int, options: dict) -> None:
    """The training loop of one process."""
    o = argparse.Namespace(**options)
    share = -(-o.scenes // processes)
    world = storybook_scenes.load(share, first=storybook_scenes.TRAIN + rank * share)
    torch.manual_seed(o.seed)
    student = Student()
    optimizers = training.optimizers([student], lr=o.lr, muon_lr=o.muon_lr, muon=lambda name: "blocks." in name)
    state = training.load_state(path) or {"step": 0, "seconds": 0.0}
    if o.init and not state["step"]:
        student.sam.load_state_dict(load(o.init).state_dict())
    if state["step"]:
        student.load_state_dict(state["student"])
        training.restore(optimizers, state["optimizers"])
    clock = training.Clock(steps=o.steps, minutes=o.minutes, step=state["step"], seconds=state["seconds"])
    end = math.inf if o.sitting is None else clock.step + o.sitting
    recent: list[dict] = []

    def save():
        if rank == 0:
            trained = {"student": student.state_dict(), "optimizers": [each.state_dict() for each in optimizers]}
            training.save_state(path, {"step": clock.step, "seconds": clock.seconds} | trained)

    while clock.step < end and (progress := clock.progress()) < 1:
        rng = np.random.default_rng([o.seed, rank, clock.step])  # a resumed run draws what an uninterrupted one does
        batch = draw_batch(world, rng, images=o.images, points=o.points, boxes=o.boxes)
        terms = loss_terms(student, batch, rng, boxes=o.boxes, tokens=o.tokens)
        training.set_rate(optimizers, training.schedule(clock.step, progress, warmup=o.warmup, decay=o.decay))
        for optimizer in optimizers:
            optimizer.zero_grad()
        terms["total"].backward()
        training.average_gradients(student.parameters())
        nn.utils.clip_grad_norm_(student.parameters(), 1.0, error_if_nonfinite=True)
        for optimizer in optimizers:
            optimizer.step()
        clock.step += 1
        recent.append({name: value.item() for name, value in terms.items()})
        if rank == 0 and clock.step % o.log_every == 0:
            means = "  ".join(f"{name} {np.mean([r[name] for r in recent]):.3f}" for name in recent[0])
            seen = clock.step * o.images * processes
            print(f"step {clock.step}  {clock.seconds / 60:.1f} min  {seen} images  {means}", flush=True)
            recent.clear()
        if clock.step % o.save_every == 0:
            save()
    save()


def finish(state: str | Path | None = None, path: str | Path = WEIGHTS) -> Path:
    """Write the weights of a training state as a half precision file that `load` reads."""
    state = Path(state) if state else files.data_root() / "miniature_state" / "sam.pt"
    student = training.load_state(state)["student"]
    half = {k.removeprefix("sam."): v.half().contiguous() for k, v in student.items() if k.startswith("sam.")}
    with files.atomic(Path(path)) as temporary:
        save_file(half, temporary)
    return Path(path)


def evaluate(
    model: Sam,
    scenes,
    *,
    points_per_side: int = 8,
    pred_iou_thresh: float = 0.7,
    stability_score_thresh: float = 0.7,
    min_area: int = 64,
    **options,
) -> dict[str, float]:
    """Masks of the official mask generator against the objects that show at least `min_area` pixels.

    options: others of `SamAutomaticMaskGenerator`
    returns: mean_best_iou over the objects, recall_50 and recall_75 (share of them with a mask of that IoU),
    iou_error: mean difference of a mask's predicted IoU from its IoU with the nearest object, part or region,
    masks_per_image
    """
    generator = SamAutomaticMaskGenerator(
        model,
        points_per_side=points_per_side,
        pred_iou_thresh=pred_iou_thresh,
        stability_score_thresh=stability_score_thresh,
        **options,
    )
    best, errors, count = [], [], 0
    for i in range(len(scenes)):
        found = generator.generate(scenes.image[i])
        count += len(found)
        objects, others = _true_masks(scenes, i, min_area)
        if not found:
            best += [0.0] * len(objects)
            continue
        ious = _pairwise_iou(np.stack([mask["segmentation"] for mask in found]), np.stack(objects + others))
        best += ious[:, : len(objects)].max(axis=0).tolist()
        errors += np.abs(np.array([mask["predicted_iou"] for mask in found]) - ious.max(axis=1)).tolist()
    best = np.array(best)
    return {
        "mean_best_iou": float(best.mean()),
        "recall_50": float((best >= 0.5).mean()),
        "recall_75": float((best >= 0.75).mean()),
        "iou_error": float(np.mean(errors)) if errors else math.nan,
        "masks_per_image": count / len(scenes),
        "objects": len(best),
    }


def _true_masks(scenes, i, min_area):
    """Objects of at least `min_area` pixels; and smaller objects, parts and background regions. Lists of (H, W)."""
    instances, parts, stuff = scenes.instances[i], scenes.parts[i], scenes.stuff[i]
    whole = [instances == k for k in np.unique(instances) if k]
    objects = [mask for mask in whole if mask.sum() >= min_area]
    others = [mask for mask in whole if mask.sum() < min_area]
    others += [parts == k for k in np.unique(parts) if k]
    others += [(stuff == k) & (instances == 0) for k in np.unique(stuff[instances == 0])]
    return objects, others


def _pairwise_iou(masks, truth):
    """(N, H, W) bool, (T, H, W) bool -> (N, T)."""
    masks, truth = (m.reshape(len(m), -1).astype(np.float32) for m in (masks, truth))
    overlap = masks @ truth.T
    return overlap / (masks.sum(1)[:, None] + truth.sum(1)[None] - overlap)


def main() -> None:
    """Train or finish from the command line; every option of `train` that is a number is an option here."""
    parser = argparse.ArgumentParser(description="Train the miniature SAM.")
    parser.add_argument("--folder", help="of the training state; default: miniature_state in the data folder")
    parser.add_argument("--finish", action="store_true", help="write the weights instead of training")
    for name, default in train.__kwdefaults__.items():
        if name != "folder":
            kind = float if name in ("minutes", "lr", "muon_lr", "decay") else str if name == "init" else int
            parser.add_argument(f"--{name.replace('_', '-')}", type=kind, default=default)
    arguments = vars(parser.parse_args())
    if arguments.pop("finish"):
        folder = arguments["folder"]
        print(finish(Path(folder) / "sam.pt" if folder else None))
    else:
        print(train(**arguments))


if __name__ == "__main__":
    main()
