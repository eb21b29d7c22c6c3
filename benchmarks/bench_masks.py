"""How fast SAM's automatic masks are made, beside the generator of its own package: python benchmarks/bench_masks.py

Both look at the same scenes of the drawn world with the same network, in turn and in one process; then both are asked
whether their masks, and the zero-shot labels painted with them, are the same. `floor_s` is what image encoder and mask
decoder cost alone when they are called as the package calls them, once for each image and with all points together: a
generator that calls them so cannot be faster.

    --checkpoint sam_vit_h --device cuda --random --images 4     the large SAM with random weights, whose thresholds are
                                                                 set so that about a hundred masks an image are left
    --checkpoint sam_vit_b --random --images 1 --scenes 1 --repeats 1 --points-per-side 16       on a processor
"""

from functools import partial

import numpy as np
import side_by_side
import torch
from segment_anything import sam_model_registry
from segment_anything.utils.amg import build_point_grid
from segment_anything.utils.transforms import ResizeLongestSide

from plg_utils import datasets, encoders
from plg_utils.generators import segment_match
from plg_utils.masks import sam, sam_official
from plg_utils.masks._everything import SegmentEverything


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


def main() -> None:
    """Compare and write results/bench/masks_*.json."""
    parser = side_by_side.arguments(__doc__)
    parser.add_argument("--checkpoint", default="miniature_sam")
    parser.add_argument("--random", action="store_true", help="random weights instead of the checkpoint's")
    parser.add_argument("--images", type=int, default=3, help="timed in each turn")
    parser.add_argument("--scenes", type=int, default=200, help="compared: masks and labels")
    parser.add_argument("--points-per-batch", type=int, default=64)
    parser.add_argument("--precision", default="fp32", choices=("fp32", "bf16"), help="of ours; the original has fp32")
    parser.add_argument("--points-per-side", type=int, help="other than those of the checkpoint's settings")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    data = datasets.load("storybook", labelled=12)
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
        encode = encoders.build("clip", checkpoint="miniature_clip")
        texts = encode.class_embeddings(data.classes)
        equal = []
        for image, both in zip(images, pairs, strict=False):
            embeddings = segment_match.segment_embeddings(encode, [image, image], list(both))
            mine, theirs = (
                segment_match.label_from_embeddings(masks, of_masks, *texts, background=0, threshold=0.2).label
                for masks, of_masks in zip(both, embeddings, strict=True)
            )
            equal.append(np.mean(mine == theirs))
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
