"""What the parameters of a run may be. What no notebook and no function would take is refused before any work."""

import json
import math
import re
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from importlib import import_module
from inspect import Parameter, signature
from typing import Any, get_args

from plg_utils import choices, files

FOLDERS = {"dataset": "datasets", "mask_model": "masks", "encoder": "encoders", "segmenter": "segmenters"}
FOLDERS |= {"detector": "detectors", "cam_sources": "cams"}  # parameter: folder of plg_utils whose files it names
WORDS = {  # what other parameters may be, or may hold; a test compares this with the notebooks' comments
    "device": ("auto", "cpu", "cuda", "mps"),
    "rule": ("cosine", "softmax"),
    "overlap": ("score", "small_on_top", "predicted_iou", "vote"),
    "refine_target": ("fusion", "zero_shot", "unimatch"),
    "borders_too": ("official", "zero_shot"),
    "passes": ("exact", "fast", "v2"),
    "optimizer": ("sgd", "adamw"),
    "precision": ("fp32", "bf16", "auto"),
    "evaluated": ("val", "test"),
}
COUNTS = ("steps", "batch_size", "crop_size", "images_at_once", "processes")  # whole numbers from 1 on
COUNTS += ("classifier_steps", "classifier_batch_size", "classifier_crop_size")
FROM_ZERO = ("seed", "labelled", "warm_up", "workers")
BOUNDS = dict.fromkeys(("threshold", "default_threshold", "look_threshold"), -1)  # of a cosine; the upper one is 1
BOUNDS |= dict.fromkeys(("sure_from", "refine_confidence", "confidence", "smoothing", "spoiled"), 0)  # of a share
MAY_BE_NONE = ("warm_up", "weak_weight", "borders_too", "labelled")  # besides parameters whose default is None
TAKEN_BY = {  # a mapping of options: the functions of plg_utils that take them; {x}: what the parameter x says
    "dataset_options": ("datasets:load", "datasets.{dataset}:load"),
    "mask_options": ("masks:build", "masks.{mask_model}:build"),
    "encoder_options": ("encoders:build", "encoders.{encoder}:build"),
    "segmenter_options": ("segmenters.{segmenter}:build",),
    "detector_options": ("detectors.{detector}:build",),
    "concept_options": ("generators.concepts:build",),
    "classifier_options": ("cams.classifier:train",),
    "embedding_options": ("generators.segment_match:segment_embeddings",),
    "few_shot": ("generators.few_shot:learn",),
    "label_filter": ("calibration:calibrate",),
    "loss_options": ("losses.{loss}:build",),
    "training_options": ("training:fit",),
}
TAKES_THE_REST = dict.fromkeys(("masks.sam:build", "masks.hf:build"), ("masks._everything:SegmentEverything",))
TAKES_THE_REST |= dict.fromkeys(("encoders.clip:build", "encoders.open_clip:build"), ("encoders.clip:Encoder",))
TAKES_THE_REST["masks.sam_official:build"] = ("masks.sam:settings", "masks.sam_official:SamAutomaticMaskGenerator")
TAKES_THE_REST["encoders.noisy_words:build"] = ("encoders.{of}:build", "encoders.clip:Encoder")
# Options of these functions that a stage sets by itself: it would pass over what is given, or fail.
SET_BY_STAGES = "truth_of seed labelled unlabelled pseudo_label overlap others device steps batch_size crop_size lr"
SET_BY_STAGES += " scale part strong_views state_file progress workers tokenizer batches"
SCALARS = (bool, int, float, str)


def check_value(name: str, value: Any, default: Any) -> None:
    """Refuse a value of a parameter that is of another kind than the default, or out of its bounds."""
    for word in value if isinstance(value, list) else [value]:
        if isinstance(word, str) and name in FOLDERS:
            paths = (files.ROOT / "plg_utils" / FOLDERS[name]).glob("[a-z]*.py")
            choices.one_of(word, sorted(path.stem for path in paths), name)
        elif isinstance(word, str) and name in WORDS and not re.fullmatch(r"cuda:\d+", word):
            choices.one_of(word, WORDS[name], name)
    given = type(value)
    if given is float and not math.isfinite(value):
        right = "a finite number"
    elif name in BOUNDS and given in (int, float) and not BOUNDS[name] <= value <= 1:
        right = f"a number from {BOUNDS[name]} to 1"
    elif default is None and given is str:
        right = "a number, or options"
    elif default is None or (value is None and name in MAY_BE_NONE):
        return
    elif name == "labelled" and given is str and re.fullmatch(r"[1-9]\d*/[1-9]\d*", value):  # a part such as 1/8
        return
    elif given is not type(default) and (type(default), given) != (float, int):
        right = f"a value of type {type(default).__name__}"
    elif name in COUNTS and value < 1:
        right = "a whole number from 1 on"
    elif name in FROM_ZERO and value < 0:
        right = "a whole number from 0 on"
    else:
        return
    such = "" if default is None else f", such as the default {default!r}"
    raise ValueError(f"{name} is {value!r}, a {given.__name__}; give {right}{such}")


def check_options(values: dict[str, Any], known: dict[str, Any]) -> None:
    """Refuse a method, a labeller or an option that there is not, and an option of another type than its own.

    values: the parameters that are set; known: the defaults of all
    """
    values = {name: value for name, value in values.items() if name in known and value != known[name]}
    if {"methods", "labeller"} & values.keys():
        from plg_utils import stages  # torch takes seconds to import

        stages.check_methods(values.get("methods", ()))
        stages.labels_of(values.get("labeller", known.get("labeller", "segment_match")))
        fading = [name for name in values.get("methods", ()) if stages.method_of(name).loss == "semivl"]
        if fading and values.get("passes") == "v2":
            raise ValueError(f"methods names {fading[0]}, whose loss takes passes exact or fast, and passes is v2")
    words = known | values
    words["loss"] = "unimatch_v2" if words.get("passes") == "v2" else "unimatch"
    for name in values.keys() & TAKEN_BY.keys():
        # What an extra would bring the stage says; nor may a notebook of the run say whose the options are.
        with suppress(ImportError, KeyError):
            _check_options_of(name, values[name] or {}, [place.format(**words) for place in TAKEN_BY[name]])
    with suppress(ImportError, KeyError):
        if "loss_options" in values:
            _function("losses:build")(words["loss"], **words["loss_options"] or {})
        if {"segmenter", "segmenter_options"} & values.keys():
            _check_segmenter(words["segmenter"], json.dumps(words["segmenter_options"] or {}))


@cache
def _check_segmenter(name: str, options: str) -> None:
    """Build a network without memory and without weights, so that one that cannot be built is refused at once."""
    import torch

    options = json.loads(options)
    options |= {"pretrained": False} if "pretrained" in options else {}
    try:
        with torch.device("meta"), torch.random.fork_rng(devices=[]):
            _function("segmenters:build")(name, 2, **options)
    except (RuntimeError, ValueError, NotImplementedError) as error:
        if "meta" not in str(error):  # else it looks into its numbers, which are not there
            raise ValueError(f"segmenter_options: {error}") from error


def _check_options_of(name: str, given: Any, places: list[str]) -> None:
    """Refuse what is given under this name, where none of these functions would take it."""
    if not isinstance(given, dict):
        raise ValueError(f"{name} is {given!r}; give a mapping of options, such as {{checkpoint: FILE}}")
    takes = {"classes": Parameter("classes", Parameter.KEYWORD_ONLY)} if name == "dataset_options" else {}
    more = [one.format(of=given.get("of", "clip")) for place in places for one in TAKES_THE_REST.get(place, ())]
    functions = [*places, *more]
    for own in (signature(_function(place)).parameters for place in functions):
        takes |= {key: one for key, one in own.items() if one.default is not one.empty}
    right = [key for key in takes if key not in SET_BY_STAGES.split()]
    for key, value in given.items():
        if not any(one.kind is one.VAR_KEYWORD for one in own.values()):  # of the last function
            choices.one_of(key, right, f"option of {name} called")
        annotation = takes[key].annotation if key in takes else None
        kinds = [kind for kind in get_args(annotation) or [annotation] if kind in SCALARS]
        fits = type(value) in kinds or (type(value) is int and float in kinds)
        if kinds and type(value) in SCALARS and not fits:
            problem = f"{key} in {name} is {value!r}, a {type(value).__name__}"
            raise ValueError(f"{problem}; give a value of type {' or '.join(kind.__name__ for kind in kinds)}")


def _function(place: str) -> Callable:
    module, name = place.split(":")
    return getattr(import_module(f"plg_utils.{module}"), name)
