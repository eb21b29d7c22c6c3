"""Grounding DINO, which finds boxes for the words of a caption; through transformers, without compiled code.

"Grounding DINO: Marrying DINO with Grounded Pre-Training for Open-Set Object Detection", arXiv 2303.05499. Each of the
network's 900 queries is a box with a score for each token of the caption. A caption holds the words of one class, such
as "a cat. a kitten.", as in the public code of this chain (zhaozhengChen/SAM_WSSS).

    pip install "plg-utils[models]"      installs transformers
"""

import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from plg_utils import checkpoints, devices
from plg_utils.detectors import Boxes, Detect, check_tags
from plg_utils.encoders import by_size
from plg_utils.records import Classes

if TYPE_CHECKING:
    from transformers import GroundingDinoForObjectDetection, GroundingDinoProcessor
    from transformers.models.grounding_dino.modeling_grounding_dino import GroundingDinoObjectDetectionOutput

SMOKE = {"box_threshold": 0.0, "text_threshold": 0.0}


def build(
    classes: Classes,
    *,
    checkpoint: str | Path = "grounding_dino_tiny",
    box_threshold: float = 0.3,
    text_threshold: float = 0.25,
    batch_size: int = 4,
    device: str = "cpu",
) -> Detect:
    """Load Grounding DINO and write the captions.

    checkpoint: "grounding_dino_tiny" (SwinT-OGC), "grounding_dino_base", or a folder as `load` describes it
    box_threshold, text_threshold: see `boxes_of_queries`
    batch_size: pairs of image and caption that go through the network together; images of one size only
    device: see `devices.choose`
    """
    captions = {index: caption(classes.names[index], classes.words[index]) for index in classes.foreground}
    model, processor = load(checkpoint)
    model = model.to(devices.choose(str(device)))
    boxes_of = partial(boxes_of_queries, processor, box_threshold=box_threshold, text_threshold=text_threshold)

    @torch.inference_mode()
    def detect(images: Sequence[np.ndarray], tags: Sequence[Sequence[int]]) -> list[Boxes]:
        """Find the classes `tags` in images, each (H, W, 3) uint8 RGB: class by class, in each in query order."""
        checked = check_tags(tags, classes, len(images))
        asked = [(image, index) for image, of_image in enumerate(checked) for index in of_image]  # one caption each

        def ask(together: list[int]) -> list[Boxes]:
            pictures = [images[asked[place][0]] for place in together]
            texts = [captions[asked[place][1]] for place in together]
            tokens = processor.tokenizer(texts, padding=True, return_tensors="pt")
            count, limit = tokens.input_ids.shape[1], model.config.max_text_len
            if count > limit:
                raise ValueError(f"a caption has {count} tokens, over {limit}: {max(texts, key=len)!r:.200}")
            pixels = processor.image_processor(images=pictures, return_tensors="pt")
            outputs = model(**tokens.to(model.device), **pixels.to(model.device))
            return boxes_of(outputs, tokens.input_ids, [picture.shape[:2] for picture in pictures])

        found = by_size([images[image].shape[:2] for image, _ in asked], batch_size, ask)
        parts = [[np.zeros((0, 6))] for _ in images]  # columns: box, score, class
        for (image, index), (xyxy, scores) in zip(asked, found, strict=True):
            parts[image].append(np.column_stack([xyxy, scores, np.full(len(xyxy), index)]))
        return [Boxes.of(rows[:, :4], rows[:, 5], rows[:, 4]) for rows in map(np.concatenate, parts)]

    return detect


def caption(name: str, words: Sequence[str]) -> str:
    """The caption of a class and its words, such as "a cat. a kitten."; lower case and dots as in training."""
    if not words or any("." in word or not word.strip() for word in words):
        raise ValueError(
            f"class {name} has the words {list(words)}. A caption needs at least one word, and none with a dot: dots "
            "end the words of a caption. Change the words in the class file"
        )
    return " ".join(f"{word.lower()}." for word in words)


def boxes_of_queries(
    processor: "GroundingDinoProcessor",
    outputs: "GroundingDinoObjectDetectionOutput",
    tokens: torch.Tensor,
    sizes: Sequence[tuple[int, int]],
    *,
    box_threshold: float = 0.3,
    text_threshold: float = 0.25,
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Boxes (N, 4) xyxy pixels and scores (N,) of each image and its caption, in the order of the queries.

    A query counts if any token scores more than box_threshold, which is then the score of its box, and a token of a
    word more than text_threshold: else its phrase, which transformers makes of such tokens, is empty.

    tokens: (B, T) of the captions; sizes: (H, W) of the images, to which boxes are clipped
    """
    found = processor.post_process_grounded_object_detection(
        outputs, tokens, threshold=box_threshold, text_threshold=text_threshold, target_sizes=list(sizes)
    )
    boxes = []
    for of_image, (height, width) in zip(found, sizes, strict=True):
        limits = torch.tensor([width, height] * 2)
        xyxy = torch.minimum(of_image["boxes"].float().cpu().clamp(min=0), limits)
        phrases = of_image["text_labels"][: len(xyxy)]  # of no query there is one, empty
        named = [re.sub(r"\[(CLS|SEP|PAD)\]|[.\s]", "", phrase) != "" for phrase in phrases]
        kept = torch.tensor(named, dtype=torch.bool)
        kept &= (xyxy[:, 2:] > xyxy[:, :2]).all(dim=1)  # with some area
        boxes.append((xyxy[kept].numpy(), of_image["scores"].float().cpu()[kept].numpy()))
    return boxes


def load(checkpoint: str | Path) -> tuple["GroundingDinoForObjectDetection", "GroundingDinoProcessor"]:
    """Load the network and what prepares its inputs, ready for inference.

    checkpoint: a name of `checkpoints`, or a folder in the layout of the hub, with config.json, model.safetensors,
        preprocessor_config.json and the tokenizer's files
    """
    transformers = checkpoints.import_extra("transformers", "Grounding DINO needs transformers")
    named = [name for name in checkpoints.LISTED if name.startswith("grounding_dino")]
    folder = checkpoints.locate(checkpoint) if checkpoint in named else Path(checkpoint).expanduser()
    if not folder.is_dir():
        raise FileNotFoundError(f"{checkpoint} is neither a folder nor one of {', '.join(named)}")
    classes = transformers.GroundingDinoForObjectDetection, transformers.GroundingDinoProcessor
    return checkpoints.of_transformers(*classes, folder, checkpoints.LISTED["grounding_dino_tiny"].files)
