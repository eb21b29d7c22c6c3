"""What the CAM sources must equal: their formulas in plain loops, written separately; slow, for the tests."""

import numpy as np
import torch
from PIL import Image
from reference import upsampled
from reference_boxes import components
from torch import nn

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Cells(nn.Module):
    """An encoder small enough to follow: the mean colour of cells of 4 x 4 pixels, through a matrix and a tanh."""

    channels = (3, 5)

    def __init__(self):
        super().__init__()
        self.mix = nn.Conv2d(3, 5, 1)

    def forward(self, images):
        cells = nn.functional.avg_pool2d(images, 4, ceil_mode=True)
        return [cells, self.mix(cells).tanh()]


def label(maps, tags, threshold, background=0):
    """Label map (H, W) of maps (C, H, W), pixel by pixel; the background stands first among equals."""
    _, height, width = maps.shape
    found = np.zeros((height, width), np.uint8)
    for y in range(height):
        for x in range(width):
            scores = [threshold, *(maps[c, y, x] for c in range(len(tags)))]
            found[y, x] = [background, *tags][scores.index(max(scores))]
    return found


def classifier_cams(model, image, tags, scales):
    """CAMs (C, H, W) of one image (H, W, 3) uint8, class by class and place by place."""
    size = image.shape[:2]
    weights = model.classifier.weight.detach().numpy()[:, :, 0, 0]  # (classes, D)
    maps = np.zeros((len(tags), *size))
    for scale in scales:
        width, height = round(size[1] * scale), round(size[0] * scale)
        resized = np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))
        for mirrored in (False, True):
            seen = resized[:, ::-1] if mirrored else resized
            pixels = np.array([(seen[:, :, c] / 255 - MEAN[c]) / STD[c] for c in range(3)])
            with torch.no_grad():
                features = model.encoder(torch.tensor(pixels[None], dtype=torch.float32))[-1][0].numpy()
            for position, index in enumerate(tags):
                row = weights[model.foreground.index(index)]
                score = np.zeros(features.shape[1:])
                for y in range(score.shape[0]):
                    for x in range(score.shape[1]):
                        score[y, x] = max(0, sum(row[d] * features[d, y, x] for d in range(len(row))))
                score = score[:, ::-1] if mirrored else score
                maps[position] += upsampled(score[None], size)[0]
    for each in maps:
        each /= each.max() + 1e-5
    return maps


def embedded(visual, image):
    """What enters CLIP's transformer of one image (3, H, W), (1 + h * w, 1, C), and the grid (h, w)."""
    patches = visual.conv1(image[None])
    tokens = patches.flatten(2).transpose(1, 2)
    tokens = torch.cat([visual.class_embedding[None, None], tokens], dim=1) + visual.positional_embedding
    return visual.ln_pre(tokens).transpose(0, 1), patches.shape[2:]


def grad_cam(visual, layer, image, tag, tags, text_embeddings, owner, background, scale):
    """Grad-CAM (h, w) of one class on one image (3, H, W), by hooks on CLIP's own module and one backward pass.

    CLIP's visual transformer is run as it is, save that the tokens of the patches are averaged in place of the first.
    """
    kept = {}

    def keep(module, inputs, output):
        output.retain_grad()
        kept["normed"] = output

    module = visual.transformer.resblocks[-1].ln_1 if layer == "ln_1" else visual.ln_post
    hook = module.register_forward_hook(keep)
    tokens, grid = embedded(visual, image)
    tokens = visual.ln_post(visual.transformer(tokens))
    hook.remove()
    embedding = tokens[1:, 0].mean(dim=0) @ visual.proj
    embedding = embedding / embedding.norm()
    asked = [word for word, name in enumerate(owner.tolist()) if name in (*tags, background)]
    exponents = [(scale * (embedding @ text_embeddings[word])).exp() for word in asked]
    own = [each for each, word in zip(exponents, asked, strict=True) if owner[word] == tag]
    visual.zero_grad()
    (sum(own) / sum(exponents)).backward()
    normed, gradient = kept["normed"][1:, 0].detach().numpy(), kept["normed"].grad[1:, 0].numpy()  # (h * w, C)
    weights = [np.mean(gradient[:, c]) for c in range(gradient.shape[1])]
    scores = np.array([max(0.0, sum(w * value for w, value in zip(weights, row, strict=True))) for row in normed])
    return to_unit(scores).reshape(grid)


def attention(visual, image, layers):
    """Mean attention (h * w, h * w) of the patches in the last layers, head by head from queries and keys."""
    tokens, maps = embedded(visual, image)[0], []
    for block in visual.transformer.resblocks:
        heads = block.attn.num_heads
        query, key, _ = (block.ln_1(tokens)[:, 0] @ block.attn.in_proj_weight.T + block.attn.in_proj_bias).chunk(3, 1)
        of_heads = [
            (q @ k.T / q.shape[1] ** 0.5).softmax(dim=1)
            for q, k in zip(query.chunk(heads, dim=1), key.chunk(heads, dim=1), strict=True)
        ]
        maps.append(sum(of_heads) / heads)
        tokens = block(tokens)
    chosen = maps[-layers:]
    return (sum(chosen) / len(chosen))[1:, 1:].detach().numpy()


def refined(maps, similar, cut=0.4):
    """CLIP-ES's refinement of maps (C, h, w) by the attention (h * w, h * w), entry by entry."""
    count = len(similar)
    similar = similar.astype(np.float64).copy()
    for _ in range(3):
        for column in range(count):
            similar[:, column] /= similar[:, column].sum()
        for row in range(count):
            similar[row] /= similar[row].sum()
    similar = np.array([[(similar[i, j] + similar[j, i]) / 2 for j in range(count)] for i in range(count)])
    similar = np.array([[sum(similar[i] * similar[:, j]) for j in range(count)] for i in range(count)])
    results = []
    for each in maps:
        inside = boxes(each > cut * each.max()).ravel()
        scores = [sum(similar[i, j] * each.ravel()[j] for j in range(count) if inside[j]) for i in range(count)]
        results.append(to_unit(np.array(scores)).reshape(each.shape))
    return np.array(results)


def boxes(region):
    """Smallest boxes around the connected parts of a region (h, w) bool."""
    filled = np.zeros_like(region)
    for part in components(region):
        rows, columns = zip(*part, strict=True)
        filled[min(rows) : max(rows) + 1, min(columns) : max(columns) + 1] = True
    return filled


def to_unit(values):
    """Bring values to [0, 1]."""
    values = values - values.min()
    return values / (values.max() + 1e-7)
