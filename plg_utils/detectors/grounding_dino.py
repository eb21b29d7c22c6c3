"""Grounding DINO, which finds boxes for the words of a caption; through transformers, without compiled code.

"Grounding DINO: Marrying DINO with Grounded Pre-Training for Open-Set Object Detection", arXiv 2303.05499. Each of the
network's 900 queries is a box with a score for each token of the caption. A caption holds the words of one class, such
as "a cat. a kitten.", as in the public code of this chain (zhaozhengChen/SAM_WSSS).

    pip install "plg-utils[grounding]"      installs transformers
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torchvision.ops import box_convert

from plg_utils import checkpoints, devices
from plg_utils.detectors import Boxes, Detect, check_tags
from plg_utils.encoders import by_size
from plg_utils.records import Classes

if TYPE_CHECKING:
    from transformers import GroundingDinoForObjectDetection, GroundingDinoProcessor

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
    thresholds = {"box_threshold": box_threshold, "text_threshold": text_threshold}

    @torch.inference_mode()
    def detect(images: Sequence[np.ndarray], tags: Sequence[Sequence[int]]) -> list[Boxes]:
        """Find the classes `tags` in images, each (H, W, 3) uint8 RGB: class by class, in each in query order."""
        checked = check_tags(tags, classes, len(images))
        asked = [(image, index) for image, of_image in enumerate(checked) for index in of_image]  # one caption each

        def ask(together: list[int]) -> list[Boxes]:
            pictures = [images[asked[place][0]] for place in together]
            texts = [captions[asked[place][1]] for place in together]
            tokens = processor.tokenizer(texts, padding=True, return_offsets_mapping=True, return_tensors="pt")
            count, limit = tokens.input_ids.shape[1], model.config.max_text_len
            if count > limit:
                raise ValueError(f"a caption has {count} tokens, over {limit}: {max(texts, key=len)!r:.200}")
            words = map(word_tokens, texts, tokens.pop("offset_mapping").tolist())
            pixels = processor.image_processor(images=pictures, return_tensors="pt")
            outputs = model(**tokens.to(model.device), **pixels.to(model.device))
            queries = outputs.logits.float().cpu(), outputs.pred_boxes.float().cpu()
            return [
                boxes_of_queries(*of_caption, picture.shape[:2], **thresholds)
                for *of_caption, picture in zip(*queries, words, pictures, strict=True)
            ]

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


def word_tokens(text: str, offsets: Sequence[tuple[int, int]]) -> torch.Tensor:
    """Which tokens of a caption belong to its words, (T,) bool: not the dots, the special tokens and the padding.

    offsets: of T tokens, the first letter and the one behind the last, as the tokenizer gives them
    """
    return torch.tensor([text[first:end] not in ("", ".") for first, end in offsets])


def boxes_of_queries(
    logits: torch.Tensor,
    boxes: torch.Tensor,
    words: torch.Tensor,
    size: tuple[int, int],
    *,
    box_threshold: float = 0.3,
    text_threshold: float = 0.25,
) -> tuple[np.ndarray, np.ndarray]:
    """Boxes (N, 4) xyxy pixels and scores (N,) of one image and caption, in the order of the queries.

    A query counts if any token scores more than box_threshold, which is then the score of its box, and a token of a
    word more than text_threshold: else the authors' phrase would be empty.

    logits: (Q, T') of T tokens, then -inf, boxes: (Q, 4) centre x, centre y, width, height as parts of the image
    words: (T,) bool, tokens of words; size: (H, W) of the image, to which boxes are clipped
    """
    scores = logits.sigmoid()
    score = scores.amax(dim=1)  # (Q,)
    named = scores[:, : len(words)].masked_fill(~words, -1).amax(dim=1) > text_threshold
    limits = boxes.new_tensor([size[1], size[0]] * 2)
    xyxy = torch.minimum((box_convert(boxes, "cxcywh", "xyxy") * limits).clamp(min=0), limits)
    kept = (score > box_threshold) & named & (xyxy[:, 2:] > xyxy[:, :2]).all(dim=1)  # with some area
    return xyxy[kept].numpy(), score[kept].numpy()


def load(checkpoint: str | Path) -> tuple["GroundingDinoForObjectDetection", "GroundingDinoProcessor"]:
    """Load the network and what prepares its inputs, ready for inference.

    checkpoint: a name of `checkpoints`; a folder in the layout of the hub, with config.json, model.safetensors,
        preprocessor_config.json and the tokenizer's files. The files behind a name are fetched once and compared with
        their SHA-256 ever after, those of a folder are taken as they are. Weights are read as safetensors only, because
        opening a pickle runs what is in it
    """
    try:
        import transformers
    except ImportError as error:
        raise ImportError(
            'Grounding DINO needs transformers, the extra "grounding": pip install "plg-utils[grounding]"'
        ) from error
    named = [name for name, listed in checkpoints.LISTED.items() if listed.hub]
    if checkpoint not in named and not Path(checkpoint).expanduser().is_dir():
        raise FileNotFoundError(f"{checkpoint} is neither a folder nor one of {', '.join(named)}")
    folder = checkpoints.locate(checkpoint) if checkpoint in named else Path(checkpoint).expanduser()
    try:
        model = transformers.GroundingDinoForObjectDetection.from_pretrained(
            folder, use_safetensors=True, local_files_only=True
        )
        processor = transformers.GroundingDinoProcessor.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:  # what transformers raises for files that lack or are broken
        wanted = checkpoints.LISTED["grounding_dino_tiny"].files
        raise FileNotFoundError(f"{folder} could not be loaded ({error}); it needs {', '.join(wanted)}") from error
    return model.eval(), processor
