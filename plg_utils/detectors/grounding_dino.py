"""Grounding DINO, which finds boxes for the words of a caption; through transformers, without compiled code.

"Grounding DINO: Marrying DINO with Grounded Pre-Training for Open-Set Object Detection", arXiv 2303.05499. Each of the
network's 900 queries is a box with a score for each token of the caption. Which class a token belongs to is known from
its place in the caption, so no phrase is ever read back from tokens.

    pip install "plg-utils[grounding]"      installs transformers
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torchvision.ops import batched_nms, box_convert

from plg_utils import checkpoints, devices
from plg_utils.detectors import Boxes, Detect, check_tags
from plg_utils.records import Classes

if TYPE_CHECKING:
    from transformers import GroundingDinoForObjectDetection, GroundingDinoProcessor

SMOKE = {"checkpoint": None, "box_threshold": 0.0, "text_threshold": 0.0}


def build(
    classes: Classes,
    *,
    checkpoint: str | Path | None = "grounding_dino_tiny",
    words: Mapping[str, str | Sequence[str]] | None = None,
    joined: bool = False,
    box_threshold: float = 0.3,
    text_threshold: float = 0.25,
    nms: float | None = None,
    batch_size: int = 4,
    device: str = "cpu",
) -> Detect:
    """Load Grounding DINO and write the captions.

    checkpoint: "grounding_dino_tiny" (SwinT-OGC), "grounding_dino_base", a folder as `load` describes it, or None: a
        tiny network with random weights
    words: from the name of a class to what stands in the caption for it, in place of the words of the class file. The
        public code of this chain (zhaozhengChen/SAM_WSSS) asks for {"bird": "wild bird", "dining table":
        "dining table", "tv monitor": "monitor/tv"} and for the names of the other classes of VOC
    joined: one caption for all classes of an image, or for as many as fit the network's 256 tokens, in place of one
        caption for each. Joined classes compete for a box, and the network runs less often
    box_threshold, text_threshold: see `boxes_of_queries`
    nms: IoU from which on the lower scored of two boxes of a class is dropped; None keeps all, as the authors do
    batch_size: pairs of image and caption that go through the network together; images of one size only
    device: see `devices.choose`
    """
    words = _words(classes, words or {})
    model, processor = load(checkpoint, [word for index in classes.foreground for word in words[index]])
    model = model.to(devices.choose(str(device)))
    limit = model.config.max_text_len

    @torch.inference_mode()
    def detect(images: Sequence[np.ndarray], tags: Sequence[Sequence[int]]) -> list[Boxes]:
        """Find the classes `tags` in images, each (H, W, 3) uint8 RGB: caption by caption, in each in query order."""
        asked = []  # pairs of an image and a caption
        for image, of_image in enumerate(check_tags(tags, classes, len(images))):
            chosen = {index: words[index] for index in of_image}
            parts = [{index: chosen[index]} for index in chosen]
            captions = join(processor.tokenizer, chosen, limit) if joined else [caption(part) for part in parts]
            asked += [(image, each) for each in captions]
        asked.sort(key=lambda pair: images[pair[0]].shape[:2])  # a stable sort: an image's captions keep their order
        found: list[list[Boxes]] = [[] for _ in images]
        for _, same in groupby(asked, key=lambda pair: images[pair[0]].shape[:2]):
            same = list(same)
            for start in range(0, len(same), batch_size):
                part = same[start : start + batch_size]
                for (image, _), boxes in zip(part, _forward(images, part), strict=True):
                    found[image].append(boxes)
        return [_together(of_image, nms) for of_image in found]

    def _forward(images: Sequence[np.ndarray], asked: Sequence[tuple[int, "Caption"]]) -> list[Boxes]:
        texts = [each.text for _, each in asked]
        tokens = processor.tokenizer(texts, padding=True, return_offsets_mapping=True, return_tensors="pt")
        if tokens.input_ids.shape[1] > limit:
            longest = max(texts, key=len)
            raise ValueError(f"a caption has {tokens.input_ids.shape[1]} tokens, over {limit}: {longest!r:.200}")
        offsets = tokens.pop("offset_mapping")
        pixels = processor.image_processor(images=[images[image] for image, _ in asked], return_tensors="pt")
        outputs = model(**tokens.to(model.device), **pixels.to(model.device))
        sizes = [images[image].shape[:2] for image, _ in asked]
        return [
            boxes_of_queries(
                logits,
                boxes,
                token_classes(each, offset),
                size,
                box_threshold=box_threshold,
                text_threshold=text_threshold,
            )
            for logits, boxes, (_, each), offset, size in zip(
                outputs.logits.float().cpu(), outputs.pred_boxes.float().cpu(), asked, offsets, sizes, strict=True
            )
        ]

    return detect


# Captions


@dataclass(frozen=True)
class Caption:
    """A text for the network, and which class each word of it stands for."""

    text: str  # lower case; each word ends with a dot, as in training
    spans: tuple[tuple[int, int, int], ...]  # first letter, letter behind the last, class


def caption(words: Mapping[int, Sequence[str]]) -> Caption:
    """Write the caption of some classes, such as "a cat. a dog."; words: from a class to its words."""
    text, spans = "", []
    for index, of_class in words.items():
        for word in of_class:
            text += " " if text else ""
            spans.append((len(text), len(text) + len(word), index))
            text += f"{word.lower()}."
    return Caption(text, tuple(spans))


def join(tokenizer, words: Mapping[int, Sequence[str]], limit: int) -> list[Caption]:
    """Write as few captions as hold all classes in their order with at most `limit` tokens each."""
    captions, part = [], {}
    for index, of_class in words.items():
        longer = caption(part | {index: of_class})
        if part and len(tokenizer(longer.text).input_ids) > limit:
            captions.append(caption(part))
            part = {}
        part[index] = of_class
    return [*captions, caption(part)] if part else captions


def token_classes(of: Caption, offsets: torch.Tensor) -> torch.Tensor:
    """Say which class each token belongs to.

    offsets: (T, 2) first letter of the token and the one behind its last, as the tokenizer gives them
    returns: (T,) int64, -1 for dots, special tokens and padding
    """
    owners = torch.full((len(offsets),), -1)
    for first, end, index in of.spans:
        owners[(offsets[:, 0] >= first) & (offsets[:, 1] <= end) & (offsets[:, 0] < offsets[:, 1])] = index
    return owners


def _words(classes: Classes, given: Mapping[str, str | Sequence[str]]) -> dict[int, tuple[str, ...]]:
    """Words of each foreground class for captions: those given, else those of the class file."""
    names = {classes.names[index]: index for index in classes.foreground}
    unknown = sorted(set(given) - set(names))
    if unknown:
        raise ValueError(f"words are given for unknown classes: {', '.join(unknown)}; known are {', '.join(names)}")
    words = {index: classes.words[index] for index in classes.foreground}
    words |= {names[name]: (word,) if isinstance(word, str) else tuple(word) for name, word in given.items()}
    for index, of_class in words.items():
        if not of_class or any("." in word or not word.strip() for word in of_class):
            raise ValueError(
                f"class {classes.names[index]} has the words {list(of_class)}; it needs at least one, and none with a "
                "dot, because dots end the words of a caption"
            )
    return words


# Boxes


def boxes_of_queries(
    logits: torch.Tensor,
    boxes: torch.Tensor,
    owners: torch.Tensor,
    size: tuple[int, int],
    *,
    box_threshold: float = 0.3,
    text_threshold: float = 0.25,
) -> Boxes:
    """Turn the queries of one image and caption into boxes, in the order of the queries.

    A query counts if any token scores more than box_threshold; that is the score of its box. Its class is that of the
    likeliest token of all classes, and must score more than text_threshold: else the authors' phrase would be empty.

    logits: (Q, T') of T tokens, then -inf, boxes: (Q, 4) centre x, centre y, width, height as parts of the image
    owners: (T,) class of each token, -1 for none; size: (H, W) of the image, to which boxes are clipped
    """
    scores = logits.sigmoid()
    score = scores.amax(dim=1)  # (Q,)
    likeliest, token = scores[:, : len(owners)].masked_fill(owners < 0, -1).max(dim=1)
    height, width = size
    xyxy = box_convert(boxes, "cxcywh", "xyxy") * boxes.new_tensor([width, height, width, height])
    xyxy = torch.minimum(xyxy.clamp(min=0), xyxy.new_tensor([width, height, width, height]))
    some_area = (xyxy[:, 2:] > xyxy[:, :2]).all(dim=1)
    kept = (score > box_threshold) & (likeliest > text_threshold) & some_area
    return Boxes.of(xyxy[kept].numpy(), owners[token][kept].numpy(), score[kept].numpy())


def _together(parts: Sequence[Boxes], nms: float | None) -> Boxes:
    """Join the boxes that the captions of an image gave, and drop doubles."""
    if not parts:
        return Boxes.of([], [], [])
    boxes = Boxes.of(
        *(np.concatenate([getattr(part, name) for part in parts]) for name in ("xyxy", "classes", "scores"))
    )
    if nms is None:
        return boxes
    kept = batched_nms(*(torch.from_numpy(array) for array in (boxes.xyxy, boxes.scores, boxes.classes)), nms)
    return boxes.take(kept.sort().values.numpy())


# Weights


def load(
    checkpoint: str | Path | None, words: Sequence[str] = ()
) -> tuple["GroundingDinoForObjectDetection", "GroundingDinoProcessor"]:
    """Load the network and what prepares its inputs, ready for inference.

    checkpoint: a name of `checkpoints`; a folder in the layout of the hub, with config.json, model.safetensors,
        preprocessor_config.json and the tokenizer's files; or None: random weights. The files behind a name are
        fetched once and compared with their SHA-256 ever after, those of a folder are taken as they are. Weights are
        read as safetensors only, because opening a pickle runs what is in it
    words: that the tokenizer of None should know
    """
    transformers = _transformers()
    if checkpoint is None:
        return _untrained(words)
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


def _transformers():
    try:
        import transformers
    except ImportError as error:
        raise ImportError(
            'Grounding DINO needs transformers, the extra "grounding": pip install "plg-utils[grounding]"'
        ) from error
    return transformers


def _untrained(words: Sequence[str]) -> tuple["GroundingDinoForObjectDetection", "GroundingDinoProcessor"]:
    """A network small enough for a test, with random weights and a tokenizer that knows these words."""
    from transformers import (
        BertConfig,
        BertTokenizerFast,
        GroundingDinoConfig,
        GroundingDinoForObjectDetection,
        GroundingDinoImageProcessor,
        GroundingDinoProcessor,
        SwinConfig,
    )

    # The network knows BERT's numbers of these by heart.
    special = {"[PAD]": 0, "[UNK]": 100, "[CLS]": 101, "[SEP]": 102, "[MASK]": 103, ".": 1012, "?": 1029}
    known = dict.fromkeys(part for word in words for part in word.lower().split())
    vocabulary = special | {part: 2000 + number for number, part in enumerate(known)}
    config = GroundingDinoConfig(
        backbone_config=SwinConfig(
            image_size=32, embed_dim=8, depths=[1, 1], num_heads=[1, 2], window_size=2, out_indices=[1, 2]
        ),
        text_config=BertConfig(
            vocab_size=2000 + len(known),
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=16,
        ),
        num_queries=8,
        d_model=32,
        encoder_layers=1,
        decoder_layers=2,  # it ties the layers after the first to the first, and stops if there is none
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        num_feature_levels=3,
        disable_custom_kernels=True,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = GroundingDinoForObjectDetection(config).eval()
    tokenizer = BertTokenizerFast(vocab=vocabulary, do_lower_case=True)
    pictures = GroundingDinoImageProcessor(size={"shortest_edge": 32, "longest_edge": 64})
    return model, GroundingDinoProcessor(pictures, tokenizer)
