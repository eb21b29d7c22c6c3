"""How fast SAM's automatic masks are made, beside the generator of its own package: python benchmarks/bench_masks.py

Both look at the same scenes of the drawn world with the same network, in turn and in one process; then both are asked
whether their masks, and the zero-shot labels painted with them, are the same. `floor_s` is what image encoder and mask
decoder cost alone when they are called as the package calls them, once for each image and with all points together.

    --checkpoint sam_vit_h --device cuda --random --images 4     the large SAM with random weights, whose thresholds are
                                                                 set so that about a hundred masks an image are left
    --checkpoint sam_vit_b --random --images 1 --scenes 1 --repeats 1 --points-per-side 16       on a processor
    --full ...      where the time goes, part by part, with multiplications counted; encoder and decoder alone; and what
                    skip_covered changes: writes masks_full_*.json, the numbers of docs/speed.md
    --folder PATH   photos in place of scenes
"""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import side_by_side
import torch
from pycocotools import mask as coco
from segment_anything import SamPredictor, sam_model_registry
from segment_anything.utils.amg import build_point_grid
from segment_anything.utils.transforms import ResizeLongestSide
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from plg_utils import datasets, devices, encoders, files
from plg_utils.generators import segment_match
from plg_utils.masks import _encoder, _two_way, sam, sam_official
from plg_utils.masks._everything import SegmentEverything
from plg_utils.records import Masks


def networks_alone(network: sam.Sam, images: list[np.ndarray], points_per_side: int, at_once: int) -> None:
    """Encode the images and decode all points of each, and throw the answers away."""
    resize = ResizeLongestSide(network.image_encoder.img_size)
    points = torch.as_tensor(build_point_grid(points_per_side) * network.image_encoder.img_size, device=network.device)
    with torch.inference_mode():
        for image in images:
            pixels = torch.as_tensor(resize.apply_image(image), device=network.device).permute(2, 0, 1)[None]
            embedding = network.image_encoder(network.preprocess(pixels))
            for part in points.split(at_once):
                asked = part[:, None], torch.ones(len(part), 1, dtype=torch.int, device=network.device)
                sparse, dense = network.prompt_encoder(points=asked, boxes=None, masks=None)
                network.mask_decoder(embedding, network.prompt_encoder.get_dense_pe(), sparse, dense, True)


def thresholds_for(network: sam.Sam, image: np.ndarray, wanted: int, points_per_side: int) -> dict[str, float]:
    """Find the threshold of predicted IoU that leaves about `wanted` masks of a network with random weights."""
    rest = {"stability_score_thresh": 0.0, "box_nms_thresh": 1.0}
    everything = SegmentEverything(network, points_per_side=points_per_side, pred_iou_thresh=0.0, **rest)
    found = np.sort(everything(image).predicted_iou)[::-1]
    lowest = found[min(wanted, len(found) - 1)] if len(found) else 0.0
    return {"pred_iou_thresh": max(1e-6, float(lowest)), **rest}  # at 0 or below, SAM's generator keeps all masks


def zero_shot_labels(images: list[np.ndarray], found: list[Masks]) -> list[np.ndarray]:
    """Label maps that the miniature CLIP and the words of the storybook make of masks."""
    data, encode = datasets.load("storybook", limit=1), encoders.build("clip", checkpoint="miniature_clip")
    texts, maps = encode.class_embeddings(data.classes), []
    for image, masks in zip(images, found, strict=True):
        (embeddings,) = segment_match.segment_embeddings(encode, [image], [masks])
        how = {"background": 0, "threshold": 0.2}
        maps.append(segment_match.label_from_embeddings(masks, embeddings, *texts, **how).label)
    return maps


def spread_the_scores(network: sam.Sam, image: np.ndarray, wanted: int, points_per_side: int) -> None:
    """Scale the predicted IoU of a network with random weights: `wanted` masks of an image are above 0.88, one is 1."""
    everything = SegmentEverything(network, points_per_side, pred_iou_thresh=0.0)
    grid = torch.as_tensor(build_point_grid(points_per_side) * everything.side)
    with torch.inference_mode():
        embedding = everything.embed(image)
        found = torch.cat([everything.ask(embedding, part)[0] for part in grid.split(64)]).flatten().sort().values
    scale = 0.12 / (found[-1] - found[-1 - wanted])
    with torch.no_grad():
        last = network.mask_decoder.iou_prediction_head.layers[-1]
        last.weight *= scale
        last.bias.sub_(found[-1]).mul_(scale).add_(1)


class Multiplications(TorchDispatchMode):
    """Counts those of matrix products and convolutions; torch's FlopCounterMode does not work in inference mode."""

    total = 0

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        """Call a function of torch, and count."""
        with self:  # in inference mode a linear layer comes as it is, and not as the product in it
            result = function.decompose(*arguments, **(options or {}))
        if result is not NotImplemented:
            return result
        result = function(*arguments, **(options or {}))
        if count := flop_registry.get(function._overloadpacket):
            self.total += count(*arguments, **(options or {}), out_val=result) // 2  # an addition is another one
        return result


PARTS = {
    "image encoder": (_encoder, "encode"),
    "decoder, once an image": (_two_way.Decoder, "__init__"),
    "decoder, transformer": (_two_way.Decoder, "transform"),
    "decoder, masks of good points": (_two_way.Decoder, "draw"),
    "boxes and stability": (SegmentEverything, "measure"),
    "run lengths": (SegmentEverything, "run_lengths"),
}


@contextmanager
def by_part(reading: Callable) -> Iterator[dict[str, float]]:
    """What `reading`, a clock or a counter, gains in this context, and in each part of it."""
    gained = dict.fromkeys(PARTS, 0)

    def watched(name: str, function: Callable) -> Callable:
        def inner(*arguments, **options):
            start = reading()
            result = function(*arguments, **options)
            gained[name] += reading() - start
            return result

        return inner

    with ExitStack() as stack:
        for name, (owner, attribute) in PARTS.items():
            stack.enter_context(mock.patch.object(owner, attribute, watched(name, getattr(owner, attribute))))
        start = reading()
        yield gained
        gained["whole"] = reading() - start
    gained["rest"] = gained["whole"] - sum(gained[name] for name in PARTS)


def in_turn(calls: dict[str, Callable], turns: int) -> tuple[dict[str, list[float]], dict[str, Any]]:
    """Processor seconds of calls in turn, which on a shared machine count less of what the others do; and results."""
    taken, found = defaultdict(list), {}
    for _ in range(turns):
        for name, call in calls.items():
            start = time.process_time()
            found[name] = call()
            taken[name].append(time.process_time() - start)
    return taken, found


@torch.inference_mode()
def networks_side_by_side(network: sam.Sam, image: np.ndarray, repeats: int, points: int = 16) -> dict:
    """Encoder and decoder alone beside the package's: seconds, multiplications, and the largest difference."""
    everything = SegmentEverything(network, 1)
    pixels = torch.as_tensor(everything.resize.apply_image(image)).permute(2, 0, 1)[None].contiguous()
    pixels, place = network.preprocess(pixels), network.prompt_encoder.get_dense_pe()
    embedding = network.image_encoder(pixels)
    asked = torch.rand(points, 2) * everything.side
    sparse, dense = network.prompt_encoder(
        points=(asked[:, None], torch.ones(points, 1, dtype=torch.int)), boxes=None, masks=None
    )
    shared = _two_way.Decoder(network.mask_decoder, embedding + dense[:1], place)

    def ours() -> tuple[torch.Tensor, torch.Tensor]:
        scores, draw = everything.ask(shared, asked)
        return draw(scores > -torch.inf), scores

    calls = {
        "encoder": lambda: _encoder.encode(network.image_encoder, pixels),
        "encoder_original": lambda: network.image_encoder(pixels),
        "decoder": ours,
        "decoder_original": lambda: network.mask_decoder(embedding, place, sparse, dense, True),
        "decoder_scores_only": lambda: everything.ask(shared, asked),
    }
    calls["encoder"]()  # the first call of all is slower
    (taken, found), counted = in_turn(calls, repeats), {}
    for name in ("decoder", "decoder_original", "decoder_scores_only"):
        with Multiplications() as counter:
            calls[name]()
        counted[name] = counter.total
    masks, scores = found["decoder"]
    theirs, their_scores = found["decoder_original"]
    return {
        "encoder": side_by_side.compare(taken["encoder"], taken["encoder_original"]),
        "decoder": side_by_side.compare(taken["decoder"], taken["decoder_original"]),
        "decoder_scores_only_s": float(np.median(taken["decoder_scores_only"])),
        "points_of_decoder": points,
        "multiplications": counted,
        "largest_difference": {
            "embedding": float((found["encoder"] - found["encoder_original"]).abs().max()),
            "masks": float((masks - theirs.flatten(0, 1)).abs().max()),
            "predicted_iou": float((scores - their_scores).abs().max()),
        },
    }


def logits_that_differ(predictor: SamPredictor, image: np.ndarray, said: list[dict], mine: Masks) -> list[float]:
    """What the package's network says in each pixel of an image in which our masks are not its own: |logit|.

    said: what the package's generator returned, in order, as many as ours
    """
    differ = mine.dense() != np.array([coco.decode(record["segmentation"]) for record in said], dtype=bool)
    numbers, found = np.flatnonzero(differ.any(axis=(1, 2))), []
    if len(numbers):
        predictor.set_image(image)
    for number in numbers:
        points = {"point_coords": np.array(said[number]["point_coords"]), "point_labels": np.ones(1)}
        logits = predictor.predict(**points, return_logits=True)[0]  # (3, H, W)
        its_own = ((logits > 0) == coco.decode(said[number]["segmentation"])).mean(axis=(1, 2)).argmax()
        found += np.abs(logits[its_own][differ[number]]).tolist()
    return found


def full(network: sam.Sam, images: list[np.ndarray], chosen: dict, options) -> None:
    """Compare all, part by part, and write results/bench/masks_full_*.json."""
    ours = SegmentEverything(network, **chosen)
    faster = {"skip_covered": SegmentEverything(network, **chosen, skip_covered=True)}
    if devices.has_bf16(network.device):
        faster["skip_covered_bf16"] = SegmentEverything(network, **chosen, skip_covered=True, precision="bf16")
    generator, said = sam_official.Generator(network, **chosen, output_mode="coco_rle"), []
    generate, original = generator.generate, sam_official.masks_by(generator)
    generator.generate = lambda image: said.append(generate(image)) or said[-1]
    alone = networks_side_by_side(network, images[0], options.repeats)
    parts, asked, large = [], {}, torch.rand(2048, 2048)

    def ours_by_part() -> list[Masks]:
        with by_part(time.process_time) as gained:
            result = [ours(image) for image in images]
        parts.append(gained)
        return result

    def counted(name: str, fast: SegmentEverything) -> list[Masks]:
        asked[name] = []
        count = lambda _, points: asked[name].append(len(points)) or SegmentEverything.decode(fast, _, points)  # noqa: E731
        with mock.patch.object(fast, "decode", count):
            return [fast(image) for image in images]

    calls = {"ours": ours_by_part, **{name: partial(counted, name, fast) for name, fast in faster.items()}}
    calls["original"] = lambda: [original(image) for image in images]
    products, _ = in_turn({"product": lambda: large @ large}, 9)
    taken, found = in_turn(calls, options.turns)
    products["product"] += in_turn({"product": lambda: large @ large}, 9)[0]["product"]
    taken = {name: [each / len(images) for each in values] for name, values in taken.items()}
    with Multiplications() as counter, by_part(lambda: counter.total) as products_of:
        ours(images[0])
    is_miniature = options.checkpoint == "miniature_sam" and not options.folder
    labels = {name: zero_shot_labels(images, found[name]) for name in ("ours", *faster)} if is_miniature else {}
    skipping = {}
    for name in faster:
        again = [
            coco.iou(list(exact.rles), list(few.rles), [0] * len(few)).max(axis=1)
            for exact, few in zip(found["ours"], found[name], strict=True)
            if len(exact) and len(few)
        ]
        skipping[name] = {
            **side_by_side.compare(taken[name], taken["ours"]),
            "points": [sum(asked[name]) / len(images), chosen["points_per_side"] ** 2],
            "masks": [sum(map(len, found[of])) for of in (name, "ours")],
            "found_again_at_iou_0.9": float((np.concatenate(again) >= 0.9).mean()),
        }
        if is_miniature:
            equal = [(a == b).mean() for a, b in zip(labels[name], labels["ours"], strict=True)]
            skipping[name]["equal_pixels_of_labels"] = float(np.mean(equal))
    pairs, logits = [*zip(found["ours"], found["original"], strict=True)], []
    for image, records, mine in zip(images, said[-len(images) :], found["ours"], strict=True):
        logits += logits_that_differ(generator.predictor, image, records, mine) if len(records) == len(mine) else []
    name = f"masks_full_{options.checkpoint}{'_random' * options.random}_{chosen['points_per_side']}"
    side_by_side.report(
        options.write,
        name,
        options.device,
        **side_by_side.compare(taken["ours"], taken["original"]),
        unit="processor seconds an image",
        agreement={
            "images_with_equal_masks": float(np.mean([mine.rles == theirs.rles for mine, theirs in pairs])),
            "masks": [sum(map(len, side)) for side in zip(*pairs, strict=True)],
            "pixels_that_differ": len(logits),
            "largest_logit_there": max(logits, default=0.0),
        },
        alone=alone,
        **skipping,
        profile={
            "seconds": {name: np.median([each[name] for each in parts]) / len(images) for name in parts[0]},
            "multiplications": products_of,  # of the first image
            "possible_a_second": 2048**3 / float(np.median(products["product"])),
        },
        n={"images": len(images), "turns": options.turns, "repeats_alone": options.repeats},
        settings=chosen,
    )


def main() -> None:
    """Compare and write results/bench/masks_*.json, with --full masks_full_*.json."""
    parser = side_by_side.arguments(__doc__)
    parser.add_argument("--checkpoint", default="miniature_sam")
    parser.add_argument("--random", action="store_true", help="random weights instead of the checkpoint's")
    parser.add_argument("--images", type=int, default=3, help="timed in each turn")
    parser.add_argument("--scenes", type=int, default=200, help="compared: masks and labels")
    parser.add_argument("--points-per-batch", type=int, default=64)
    parser.add_argument("--precision", default="fp32", choices=("fp32", "bf16"), help="of ours; the original has fp32")
    parser.add_argument("--points-per-side", type=int, help="other than those of the checkpoint's settings")
    parser.add_argument("--folder", type=Path, help="of photos, in place of the storybook")
    parser.add_argument("--full", action="store_true", help="part by part, and with skip_covered")
    parser.add_argument("--turns", type=int, default=2, help="of all images, with --full")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    data = datasets.load("storybook", labelled=12)
    if options.folder:
        images = [files.read_image(path) for path in sorted(options.folder.iterdir())[: options.images]]
    else:
        images = [sample.image() for sample in data.unlabelled[: max(options.images, options.scenes)]]
    torch.manual_seed(0)
    if options.random:
        network = sam_model_registry[options.checkpoint.removeprefix("sam_")]().eval()
    else:
        network = sam.load(options.checkpoint)
    network = network.to(options.device)
    chosen = sam.settings(options.checkpoint, 1.0) | {"points_per_batch": options.points_per_batch}
    if options.points_per_side:
        chosen["points_per_side"] = options.points_per_side
    if options.full:
        if options.random:
            spread_the_scores(network, images[0], 100, chosen["points_per_side"])
            chosen |= {"stability_score_thresh": 0.0, "box_nms_thresh": 1.0}
        return full(network, images[: options.images], chosen, options)
    if options.random:
        chosen |= thresholds_for(network, images[0], 100, chosen["points_per_side"])
    ours = SegmentEverything(network, **chosen, precision=options.precision)
    generator = sam_official.Generator(network, **chosen, output_mode="coco_rle")
    original = sam_official.masks_by(generator)

    timed = images[: options.images]
    taken = side_by_side.seconds(
        {
            "ours": lambda: [ours(image) for image in timed],
            "original": lambda: [original(image) for image in timed],
            "floor": partial(networks_alone, network, timed, chosen["points_per_side"], options.points_per_batch),
        },
        options.repeats,
        options.device,
    )
    taken = {name: [each / len(timed) for each in values] for name, values in taken.items()}
    pairs = [(ours(image), original(image)) for image in images[: options.scenes]]
    agreement = {
        "images_with_equal_masks": np.mean([mine.rles == theirs.rles for mine, theirs in pairs]),
        "masks": [sum(len(masks) for masks in side) for side in zip(*pairs, strict=True)],
    }
    if options.checkpoint == "miniature_sam" and not options.random:
        maps = [zero_shot_labels(images[: len(pairs)], list(side)) for side in zip(*pairs, strict=True)]
        equal = [np.mean(mine == theirs) for mine, theirs in zip(*maps, strict=True)]
        agreement["equal_pixels_of_labels"] = np.mean(equal)
    parts = [options.checkpoint, "random" if options.random else "", options.precision.replace("fp32", "")]
    name = "_".join(part for part in ("masks", *parts, options.device.partition(":")[0]) if part)
    side_by_side.report(
        options.write,
        name,
        options.device,
        **side_by_side.compare(taken["ours"], taken["original"]),
        floor_s=float(np.median(taken["floor"])),
        unit="seconds an image",
        agreement=agreement,
        n={"images": len(timed), "repeats": options.repeats, "scenes": len(pairs)},
        settings={key: value for key, value in chosen.items()},
    )


if __name__ == "__main__":
    main()
