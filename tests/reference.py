"""What the fast code must equal: the same formulas in plain loops, written separately, one number at a time."""

import math

import numpy as np

IGNORE = 255


# Labelling: pooling, GEM, assignment, painting


def upsampled(features, size):
    """Bilinear upsampling with align_corners=False of features (D, h, w) to (D, H, W)."""
    depth, cells_y, cells_x = features.shape
    large = np.zeros((depth, *size))
    for y in range(size[0]):
        for x in range(size[1]):
            from_y = max(0.0, (y + 0.5) * cells_y / size[0] - 0.5)
            from_x = max(0.0, (x + 0.5) * cells_x / size[1] - 0.5)
            top, left = int(from_y), int(from_x)
            bottom, right = min(top + 1, cells_y - 1), min(left + 1, cells_x - 1)
            down, across = from_y - top, from_x - left
            for d in range(depth):
                upper = features[d, top, left] * (1 - across) + features[d, top, right] * across
                lower = features[d, bottom, left] * (1 - across) + features[d, bottom, right] * across
                large[d, y, x] = upper * (1 - down) + lower * down
    return large


def pool(features, masks, size):
    """Mean of the upsampled features inside each mask, (N, D); zeros for an empty mask."""
    large = upsampled(features, size)
    means = np.zeros((len(masks), len(features)))
    for n, mask in enumerate(masks):
        inside = [large[:, y, x] for y in range(size[0]) for x in range(size[1]) if mask[y, x]]
        if inside:
            means[n] = sum(inside) / len(inside)
    return means


def softmax(values):
    """Softmax of a list of numbers."""
    powers = [math.exp(value - max(values)) for value in values]
    return [power / sum(powers) for power in powers]


def unit(vector):
    """Bring a vector to length 1; one of length 0 stays."""
    return vector / max(math.sqrt(sum(value * value for value in vector)), 1e-12)


def attend(queries, keys, values, factor):
    """softmax(factor * queries keys^T) values, for one head of one image: (L, d) each."""
    mixed = np.zeros_like(values)
    for i, query in enumerate(queries):
        weights = softmax([factor * float(query @ key) for key in keys])
        for weight, value in zip(weights, values, strict=True):
            mixed[i] += weight * value
    return mixed


def self_self_attention(tokens, in_weight, in_bias, out_weight, out_bias, heads, iterations, temperature):
    """GEM's attention and the ordinary one, of one image: tokens (L, C) after the norm -> two of (L, C)."""
    length, width = tokens.shape
    of_head = width // heads
    projected = np.stack([in_weight @ token + in_bias for token in tokens])  # (L, 3C): queries, keys, values
    if temperature is None:
        factor = sum(math.sqrt(float(token @ token)) for token in tokens) / length * of_head**-0.5
    else:
        factor = temperature
    gem, original = np.zeros((length, width)), np.zeros((length, width))
    for head in range(heads):
        part = slice(head * of_head, (head + 1) * of_head)
        query, key, value = (projected[:, k * width : (k + 1) * width][:, part] for k in range(3))
        original[:, part] = attend(query, key, value, of_head**-0.5)
        for own in (value, key, query):
            for _ in range(iterations):
                own = np.stack([unit(vector) for vector in own])
                own = attend(own, own, own, factor)
            own = np.stack([unit(vector) for vector in own])
            gem[:, part] += attend(own, own, value, factor) / 3
    return tuple(np.stack([out_weight @ vector + out_bias for vector in stream]) for stream in (gem, original))


def layer_norm(tokens, weight, bias):
    """Layer norm of (L, C), token by token."""
    normed = [(token - token.mean()) / math.sqrt(token.var() + 1e-5) for token in tokens]
    return np.stack(normed) * weight + bias


def gem_features(state, image, *, heads, depth, iterations, temperature):
    """GEM's patch features of one image (3, H, W) whose grid is the network's own: (D, h, w).

    state: weights of a clip.model.VisionTransformer as float64 arrays
    """
    kernel = state["conv1.weight"]  # (C, 3, p, p)
    patch = kernel.shape[-1]
    rows, columns = image.shape[1] // patch, image.shape[2] // patch
    tokens = [state["class_embedding"]]
    for y in range(rows):
        for x in range(columns):
            cut = image[:, y * patch : (y + 1) * patch, x * patch : (x + 1) * patch]
            tokens.append(np.array([(cut * of_channel).sum() for of_channel in kernel]))
    hidden = np.stack(tokens) + state["positional_embedding"]
    hidden = layer_norm(hidden, state["ln_pre.weight"], state["ln_pre.bias"])
    layers = 1 + max(int(name.split(".")[2]) for name in state if name.startswith("transformer."))
    gem = None
    for layer in range(layers):
        block = {name.split(".", 3)[3]: weight for name, weight in state.items() if f"resblocks.{layer}." in name}
        if layer == layers - (depth - 1):
            gem = hidden  # what enters the first of the last depth - 1 blocks
        gem_update, update = self_self_attention(
            layer_norm(hidden, block["ln_1.weight"], block["ln_1.bias"]),
            block["attn.in_proj_weight"],
            block["attn.in_proj_bias"],
            block["attn.out_proj.weight"],
            block["attn.out_proj.bias"],
            heads,
            iterations,
            temperature,
        )
        if gem is not None:
            gem = gem + gem_update
        hidden = hidden + update
        inner = layer_norm(hidden, block["ln_2.weight"], block["ln_2.bias"]) @ block["mlp.c_fc.weight"].T
        inner = inner + block["mlp.c_fc.bias"]
        inner = inner / (1 + np.exp(-1.702 * inner))  # CLIP's quick GELU
        hidden = hidden + inner @ block["mlp.c_proj.weight"].T + block["mlp.c_proj.bias"]
    tokens = layer_norm(hidden if gem is None else gem, state["ln_post.weight"], state["ln_post.bias"])
    return (tokens[1:] @ state["proj"]).T.reshape(-1, rows, columns)


def assign(segments, texts, owner, *, background, threshold, rule, temperature):
    """Class and score of each segment; see `labels.assign`."""
    classes, scores = [], []
    for segment in segments:
        nearest = {}  # class, or a background word by its row -> score
        for row, (text, index) in enumerate(zip(texts, owner, strict=True)):
            key = ("word", row) if index in (background, -1) else ("class", index)
            nearest[key] = max(nearest.get(key, -2.0), float(unit(segment) @ unit(text)))
        if rule == "softmax":
            shares = softmax([score / temperature for score in nearest.values()])
            nearest = dict(zip(nearest, shares, strict=True))
        named = {key[1]: score for key, score in nearest.items() if key[0] == "class"}
        winner = min(named, key=lambda index: (-named[index], index))
        score = named[winner]
        words = [score for key, score in nearest.items() if key[0] == "word"]
        if background is not None and (score < threshold or any(word > score for word in words)):
            winner, score = background, 1 - score
        classes.append(winner)
        scores.append(score)
    return classes, scores


def paint(masks, classes, scores, *, background, overlap, predicted_iou):
    """Label and confidence of each pixel; see `labels.paint`."""
    size = masks.shape[1:]
    label, confidence = np.full(size, IGNORE), np.zeros(size)
    for y in range(size[0]):
        for x in range(size[1]):
            here = [n for n in range(len(masks)) if masks[n, y, x]]
            named = [n for n in here if classes[n] != background]
            if not here:
                continue
            if named and overlap == "vote":
                votes = {}
                for n in named:
                    votes[classes[n]] = votes.get(classes[n], 0) + min(max(float(scores[n]), 0), 1)
                winner = min(votes, key=lambda index: (-votes[index], index))
                label[y, x], confidence[y, x] = winner, votes[winner] / len(named)
                continue
            rank = {
                "score": lambda n: -scores[n],
                "vote": lambda n: -scores[n],
                "small_on_top": lambda n: masks[n].sum(),
                "predicted_iou": lambda n: -predicted_iou[n],
            }[overlap]
            best = min(named or here, key=lambda n: (rank(n), -scores[n], classes[n]))
            label[y, x], confidence[y, x] = classes[best], min(max(scores[best], 0), 1)
    return label, confidence
