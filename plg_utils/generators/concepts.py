"""Labeller D: SAM 3 is asked by words, and answers with masks and with how sure it is. No masks or CLIP are needed.

"SAM 3: Segment Anything with Concepts", arXiv 2511.16719, by transformers' Sam3Model. A word gets two answers: masks of
the things that it names, and a map of all that it names. How these become a label map is the rule that ConceptBank uses
(sam3_ovss.py of PGSmall/ConceptBank): in each pixel a word counts as much as the surest answer that covers it, the
surest word names the pixel, and a pixel of which no word is sure is background.

The weights, "sam3", are 3.4 GB under Meta's own licence (SAM License, of 19 November 2025: no military use, pass it on
with a copy), behind a form that a person at Meta confirms. Needs the extra: pip install "plg-utils[models]"
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F

from plg_utils import checkpoints, devices, files, labels, metrics
from plg_utils.choices import one_of
from plg_utils.encoders.clip import tokens_of
from plg_utils.generators import Generate
from plg_utils.miniature import untrained
from plg_utils.records import Classes, PseudoLabel, Sample, images_of

if TYPE_CHECKING:
    from transformers import Sam3Config, Sam3ImageProcessor, Sam3Model
    from transformers.models.sam3.modeling_sam3 import Sam3ImageSegmentationOutput, Sam3VisionEncoderOutput

SMOKE = {"checkpoint": None}
MOST = 30  # masks of a word that are looked at: ConceptBank's
GRID = np.arange(0.05, 0.96, 0.05)  # background thresholds that are tried
DEFAULT_THRESHOLD = 0.5  # ConceptBank's for VOC with background


def build(
    classes: Classes,
    *,
    checkpoint: str | Path | None = "sam3",
    threshold: float | None = DEFAULT_THRESHOLD,
    mask_score: float = 0.3,
    words_at_once: int = 8,
    precision: str = "fp32",
    device: str = "cpu",
) -> Generate:
    """Load SAM 3 and read the words of the classes once.

    checkpoint: "sam3", a folder in the layout of the hub, or None: a tiny one with random weights, which knows nothing
    threshold: a pixel whose surest word scores less is background; None leaves the surest word to all
    mask_score: a mask counts if it scores more: 0.3 is ConceptBank's for photos and transformers' own
    words_at_once: that go through the network together, with one image
    precision: "fp32", or "bf16" for autocast
    device: see `devices.choose`
    """
    one_of(precision, ("fp32", "bf16"), "precision")
    if not (threshold is None or 0 <= threshold <= 1) or not 0 <= mask_score <= 1 or words_at_once < 1:
        wrong = f"threshold={threshold}, mask_score={mask_score}, words_at_once={words_at_once}"
        raise ValueError(f"of {wrong}, the first two are shares from 0 to 1, and the last is a number from 1 on")
    words = [(index, word) for index, of_class in enumerate(classes.words) for word in of_class]
    if nameless := [classes.names[index] for index in classes.foreground if not classes.words[index]]:
        raise ValueError(f"these classes have no words to ask SAM 3 for: {', '.join(nameless)}")
    model, processor = load(checkpoint)
    model = model.to(devices.choose(str(device)))
    tokens = tokenize([word for _, word in words], model.config.text_config.max_position_embeddings).to(model.device)
    attended = (torch.arange(tokens.shape[1], device=tokens.device) <= tokens.argmax(1, keepdim=True)).long()
    with torch.inference_mode():
        pairs = zip(tokens.split(words_at_once), attended.split(words_at_once), strict=True)
        texts = [(model.get_text_features(ids, attention_mask=seen), seen) for ids, seen in pairs]

    @torch.inference_mode()
    def label(image: np.ndarray) -> PseudoLabel:
        size = image.shape[:2]
        best = torch.zeros(size, device=model.device)  # score of the surest word
        which = torch.full(size, classes.nothing, dtype=torch.uint8, device=model.device)  # its class
        owners = iter(words)
        with torch.autocast(model.device.type, torch.bfloat16, enabled=precision == "bf16"):
            pixels = processor(images=image, return_tensors="pt").pixel_values.to(model.device)
            seen = model.get_vision_features(pixels)
            for text, mask in texts:
                answer = model(vision_embeds=_repeated(seen, len(mask)), text_embeds=text, attention_mask=mask)
                for place in range(len(mask)):
                    score = word_map(answer, place, size, mask_score)  # (H, W)
                    which = torch.where(score > best, next(owners)[0], which)
                    best = torch.maximum(score, best)
        return named(PseudoLabel(which.cpu().numpy(), best.cpu().numpy()), threshold, classes.background)

    def generate(samples: Sequence[Sample | np.ndarray]) -> list[PseudoLabel]:
        return [*map(label, images_of(samples))]

    return generate


def word_map(
    answer: "Sam3ImageSegmentationOutput", place: int, size: tuple[int, int], mask_score: float
) -> torch.Tensor:
    """How surely each pixel shows a word: the greatest of what its masks and its map of everything say.

    A mask's score is sigmoid(pred_logits) x sigmoid(presence_logits), and of the MOST masks of the highest scores those
    above mask_score count: in each pixel by score x sigmoid(mask). The map counts by sigmoid(map) x sigmoid(presence).

    answer: of the network for B words; place: of the word among them; size: (H, W) of the image
    returns: (H, W) float32 in [0, 1]
    """
    presence = answer.presence_logits[place].float().sigmoid()  # (1,)
    scores = answer.pred_logits[place].float().sigmoid() * presence  # (Q,)
    chosen = scores.topk(min(MOST, len(scores))).indices

    def enlarged(logits: torch.Tensor) -> torch.Tensor:  # one at a time, because the image may be large
        return F.interpolate(logits[None, None].float(), size, mode="bilinear", align_corners=False)[0, 0].sigmoid()

    surest = enlarged(answer.semantic_seg[place, 0]) * presence
    for index in chosen[scores[chosen] > mask_score].tolist():
        surest = torch.maximum(surest, enlarged(answer.pred_masks[place, index]) * scores[index])
    return surest


def named(found: PseudoLabel, threshold: float | None, background: int | None) -> PseudoLabel:
    """Make pixels whose score is below the threshold background, sure by 1 - score; without either, nothing changes."""
    if threshold is None or background is None:
        return found
    below = found.confidence < threshold
    label = np.where(below, np.uint8(background), found.label)
    return PseudoLabel(label, np.where(below, 1 - found.confidence, found.confidence))


def choose_threshold(
    found: Sequence[PseudoLabel], truths: Sequence[np.ndarray], *, num_classes: int, background: int
) -> labels.ThresholdChoice:
    """Choose the threshold of `named` that labels the labelled images best; no other truth is read.

    found: of the labelled images, without a threshold; truths: (H, W) each
    """

    def score(threshold: float) -> float:
        chosen = [named(each, threshold, background).label for each in found]
        return metrics.mean_iou(truths, chosen, num_classes, background=background)

    return labels.choose_threshold(GRID, score, smooth=True)


def tokenize(words: Sequence[str], limit: int) -> torch.Tensor:
    """Tokens (M, limit) int64 of words by CLIP's byte pairs, which SAM 3 has too; its text tower reads 32 at most."""
    return tokens_of(words, limit, "SAM 3").long()


def load(checkpoint: str | Path | None) -> tuple["Sam3Model", "Sam3ImageProcessor"]:
    """Load the network and what prepares its images, ready for inference; see `build`.

    A folder has the files of `checkpoints.LISTED["sam3"]`, of a Sam3Model or of SAM 3 as it is published; its tracker
    is left out.
    """
    transformers = checkpoints.import_extra("transformers", "SAM 3 needs transformers")
    if checkpoint is None:
        processor = transformers.Sam3ImageProcessor(size={"height": 56, "width": 56})
        return untrained(lambda: transformers.Sam3Model(tiny())), processor
    needed = checkpoints.LISTED["sam3"].files
    folder = checkpoints.locate(checkpoint, needed)
    config = folder / "config.json"
    if config.is_file() and (kind := files.read_json(config).get("model_type")) not in ("sam3", "sam3_video"):
        raise ValueError(f"{config} is of {kind}, not of sam3")
    classes = transformers.Sam3Model, transformers.Sam3ImageProcessor
    model, processor = checkpoints.of_transformers(*classes, folder, needed)
    if dict(processor.size).get("height") != (wanted := model.config.vision_config.image_size):
        raise ValueError(f"{folder} resizes images to {dict(processor.size)}, and its SAM 3 sees {wanted} pixels")
    return model, processor


def tiny() -> "Sam3Config":
    """Settings of a SAM 3 that is built in a second."""
    from transformers import Sam3Config

    head = {"hidden_size": 32, "num_attention_heads": 2}
    one, two = ({"num_hidden_layers": count, "intermediate_size": 64, **head} for count in (1, 2))
    grid = {"image_size": 56, "patch_size": 14, "window_size": 2, "pretrain_image_size": 28, "global_attn_indexes": [1]}
    return Sam3Config(
        vision_config={
            "backbone_config": {"model_type": "sam3_vit_model", **two, **grid},
            "fpn_hidden_size": 32,
            "backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]],
        },
        text_config={"model_type": "clip_text_model", "vocab_size": 49408, "max_position_embeddings": 32, **one},
        geometry_encoder_config={**head, "num_layers": 1, "intermediate_size": 64},
        detr_encoder_config=one,
        detr_decoder_config={**one, "num_queries": 5},
        mask_decoder_config=head,
    )


def _repeated(seen: "Sam3VisionEncoderOutput", count: int) -> "Sam3VisionEncoderOutput":
    """What the network saw in one image, once for each of `count` words; no memory is copied."""
    parts = {name: getattr(seen, name) for name in ("fpn_hidden_states", "fpn_position_encoding")}
    return type(seen)(**{name: tuple(each.expand(count, -1, -1, -1) for each in part) for name, part in parts.items()})
