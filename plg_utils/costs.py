"""What a whole run costs on this machine: a few images and steps are timed, the rest is multiplication.

`measure` takes images and steps the way the notebooks take them and knows nothing of how many there are; `counts`
knows how many there are, and how often each is done; `cost_card` multiplies. What could not be measured stays
unmeasured and says why. Files go to a folder that the caller removes.
"""

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from inspect import signature
from itertools import cycle, islice
from pathlib import Path
from statistics import median

import numpy as np
import pandas as pd
import torch

from plg_utils import devices, diagnosis, encoders, files, losses, masks, metrics, segmenters, training
from plg_utils.generators import segment_match, sepl
from plg_utils.records import Dataset, Sample

SHARE = 2**30  # bytes of images that `training.fit` keeps decoded
GRID = np.arange(0.0, 0.71, 0.02)  # thresholds that notebook 02 tries
MB, GB, HOUR = 2**20, 1e9, 3600.0
STEPS_OF = {"direct_long": 2}  # methods of notebook 04 that take more steps than the parameter says
METHODS = {  # of notebook 04: loss, and what its targets are
    "supervised": ("supervised", None),
    "fixmatch": ("fixmatch", None),
    "unimatch": ("unimatch", "unimatch"),
    "semivl": ("semivl", None),
    "direct": ("unimatch", "zero_shot"),
    "direct_long": ("unimatch", "zero_shot"),
    "paper_a": ("unimatch", "zero_shot"),
    "paper_a_sepl": ("unimatch", "zero_shot"),
    "paper_a_warm": ("unimatch", "zero_shot"),
    "paper_a_sepl_warm": ("unimatch", "zero_shot"),
    "full": ("supervised", None),
}
COLUMNS = ["stage", "times", "unit", "seconds each", "hours", "GB", "memory MB", "GPU MB", "not measured"]


@dataclass(frozen=True)
class Cost:
    """What one image or one step was measured to cost."""

    seconds: float | None = None  # median; None: not measured
    unit: str = "image"
    bytes: float = 0.0  # that each one writes
    bytes_once: float = 0.0  # that all of them write together, such as a network's weights
    memory_mb: float | None = None  # peak of this process, from its start to the end of the stage
    cuda_memory_mb: float | None = None  # peak of torch on the GPU in this stage
    last: float | None = None  # seconds of the last one, to be compared with the same one done otherwise
    taken: int = 0  # how many were taken, with the first, which does not count
    why: str = ""  # why it was not measured


@dataclass(frozen=True)
class Count:
    """How often a run does something."""

    stage: str  # as the card calls it
    cost: str  # key of what was measured
    times: float  # images or steps
    once: int = 1  # how often it writes `bytes_once`
    memory_mb: float = 0.0  # that many images need and a few do not


# From what was measured to the whole run


def cost_card(measured: Mapping[str, Cost], counts: Sequence[Count]) -> pd.DataFrame:
    """Multiply. The last row is the total: sums of hours and GB, the largest memory; without what was not measured.

    returns: columns of COLUMNS; GB are 10**9 bytes, MB are MiB
    """
    rows = []
    for count in counts:
        cost = measured.get(count.cost, Cost(why="the doctor does not know it"))
        known = cost.seconds is not None
        rows.append(
            {
                "stage": count.stage,
                "times": count.times,
                "unit": cost.unit,
                "seconds each": cost.seconds,
                "hours": cost.seconds * count.times / HOUR if known else None,
                "GB": (cost.bytes * count.times + cost.bytes_once * count.once) / GB if known else None,
                "memory MB": cost.memory_mb + count.memory_mb if known and cost.memory_mb is not None else None,
                "GPU MB": cost.cuda_memory_mb if known else None,
                "not measured": "" if known else cost.why,
            }
        )
    left = [row["stage"] for row in rows if row["hours"] is None]

    def known(name: str) -> list[float]:
        return [row[name] for row in rows if row[name] is not None]

    total = {"stage": "total", "unit": "", "not measured": ", ".join(left)}
    total |= {name: sum(known(name)) for name in ("hours", "GB")}
    total |= {name: max(known(name), default=None) for name in ("memory MB", "GPU MB")}
    card = pd.DataFrame([*rows, total], columns=COLUMNS)
    numbers = [name for name in COLUMNS if name not in ("stage", "unit", "not measured")]
    return card.astype({name: "float64" for name in numbers})


def counts(
    parameters: Mapping,
    images: Mapping[str, int],
    notebooks: Sequence[str],
    *,
    background: int | None = 0,
    image_bytes: float = 0.0,
    points: Mapping[str, int] | None = None,
) -> list[Count]:
    """How often the notebooks of a run do each thing.

    parameters: of the run, by the notebooks' names; images: how many there are in each split
    background: of the classes; image_bytes: of one image and its label map, decoded
    points: of a grid, how many points there are ("all"), and how many do a shared stage anew ("masks", "segments")
    """
    points = {"all": 1} | dict(points or {})
    once, known, unlabelled, val = points["all"], images["labelled"], images["unlabelled"], images["val"]
    numbers = {name[:2] for name in notebooks}
    unseen = sum(images[split] for split in parameters["evaluated"]) if {"04", "05"} & numbers else 0
    steps, methods = parameters["steps"], parameters["methods"] if "04" in numbers else []
    cached = min(SHARE, (known + unlabelled) * image_bytes) / MB
    rows = [Count("starting the notebooks", "start", len(notebooks) * once)]
    if "01" in numbers:
        rows.append(Count("01 reading", "reading", (known + unlabelled + val) * once))
    if "02" in numbers:
        rows.append(Count("02 masks", "masks", (known + unlabelled) * points.get("masks", once)))
        rows.append(Count("02 segments", "segments", (known + unlabelled) * points.get("segments", once)))
        if parameters["threshold"] is None and background is not None and known:
            rows.append(Count("02 threshold", "threshold", known * once))
        rows.append(Count("02 labels", "labels", (known + unlabelled) * once))
    if "03" in numbers:
        rows.append(
            Count("03 refinement", training_key("unimatch", parameters["refine_target"]), steps * once, once, cached)
        )
        rows.append(Count("03 relabelling", "predictions", unlabelled * once))
        if background == 0:
            rows.append(Count("03 borders of SAM (3 times)", "borders", 3 * unlabelled * once))
    for method in methods:
        own = STEPS_OF.get(method, 1) * steps * once
        rows.append(Count(f"04 {method}", training_key(*METHODS.get(method, (method, None))), own, once, cached))
    if methods:
        networks = len(methods) + ("03" in numbers)
        rows.append(
            Count("04 predictions", "predictions", (networks * unseen + ("direct" in methods) * unlabelled) * once)
        )
    if "05" in numbers:
        maps = 1 + ("03" in numbers) * (4 if background == 0 else 1) + ("direct" in methods)
        networks = len(methods) + ("03" in numbers and "04" in numbers)
        rows.append(Count("05 evaluation", "evaluation", (maps * unlabelled + networks * unseen) * once))
    others = [name for name in notebooks if name[:2] not in ("00", "01", "02", "03", "04", "05")]
    return rows + [Count(name, name, 1) for name in others]


def training_key(loss: str, target: str | None) -> str:
    """Name under which a training is measured: methods with the same loss and kind of target cost the same."""
    return f"training {loss}" + (f", {target}" if target else "")


def image_bytes(data: Dataset | None) -> float:
    """Bytes of an image and its label map in memory, as large as the first one is; 0 if there is none."""
    first = next(iter((*data.labelled, *data.unlabelled)), None) if data else None
    try:
        return 0.0 if first is None else first.image().nbytes / 3 * 4
    except (OSError, ValueError):  # the validator tells it
        return 0.0


def trainings(rows: Sequence[Count]) -> list[str]:
    """Keys of the trainings that a run needs."""
    return list(dict.fromkeys(row.cost for row in rows if row.cost.startswith("training ")))


# Measuring


def clock(
    call: Callable,
    items: Sequence,
    *,
    wait: Callable[[], None] = lambda: None,
    now: Callable[[], float] = time.perf_counter,
    patience: float = math.inf,
) -> tuple[list, list[float]]:
    """Call with each item: what came back, and the seconds of each but the first, which warms up.

    wait: until the device is done; now: a clock; patience: seconds, after which two items are enough
    """
    results, seconds = [], []
    for item in items:
        wait()
        begin = now()
        results.append(call(item))
        wait()
        seconds.append(now() - begin)
        if len(seconds) > 1 and sum(seconds) > patience:
            break
    return results, seconds[1:] or seconds


def waiter(chip: torch.device) -> Callable[[], None]:
    """What waits for a device; the CPU needs no waiting."""
    waits = {"cuda": torch.cuda.synchronize, "mps": torch.mps.synchronize}
    return waits.get(chip.type, lambda: None)


def timed(
    call: Callable,
    items: Sequence,
    chip: torch.device,
    *,
    share: int = 1,
    paths: Sequence[Path] = (),
    patience: float = math.inf,
) -> tuple[list | None, Cost]:
    """Time a call for each item; if it fails, the cost says why, and there are no results.

    share: images that a call does together; paths: files that the calls write, one an image; patience: see `clock`
    """
    if chip.type == "cuda":
        torch.cuda.reset_peak_memory_stats(chip)
    try:
        results, seconds = clock(call, items, wait=waiter(chip), patience=patience)
    except Exception as error:  # whatever stops it would stop the run too, and is what the doctor is asked for
        return None, Cost(why=failure(error))
    written = [path.stat().st_size for path in paths if path.exists()]
    cost = Cost(
        median(seconds) / share,
        bytes=sum(written) / max(1, len(written)),
        memory_mb=devices.peak_memory_mb(),
        cuda_memory_mb=devices.peak_cuda_memory_mb(),
        last=seconds[-1] / share,
        taken=len(results),
    )
    return results, cost


def failure(error: Exception) -> str:
    """What an error says, in its first line."""
    kind = (
        "the GPU's memory does not suffice" if isinstance(error, torch.cuda.OutOfMemoryError) else type(error).__name__
    )
    return f"{kind}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"


def chosen(data: Dataset, images: int) -> list[Sample]:
    """The images that are timed: evenly spaced unlabelled ones, or labelled ones where there are too few."""
    pool = list(data.unlabelled)
    spaced = (
        [pool[k] for k in np.linspace(0, len(pool) - 1, min(images, len(pool))).round().astype(int)] if pool else []
    )
    return (spaced + list(data.labelled))[:images]


def measure(
    data: Dataset | None,
    parameters: Mapping,
    folder: Path,
    needed: Sequence[str],
    *,
    images: int = 5,
    steps: int = 3,
    patience: float = math.inf,
    shut: Mapping[str, str] | None = None,
) -> dict[str, Cost]:
    """Time the stages of a run on a few images and steps.

    data: with the truth of the labelled images open, or None if it cannot be loaded
    parameters: of the run; folder: where files may be written
    needed: trainings that the run needs, as `trainings` names them
    patience: seconds, after which two images or steps of a stage are enough
    shut: parameter that names weights ("mask_options") -> why they cannot be loaded; nothing is downloaded here
    """
    everything = ("reading", "masks", "segments", "threshold", "labels", "borders", "predictions", "evaluation")

    def unknown(why: str) -> dict[str, Cost]:
        return dict.fromkeys(everything, Cost(why=why)) | dict.fromkeys(needed, Cost(unit="step", why=why))

    if data is None:
        return unknown("the data set cannot be loaded")
    try:
        chip, shut = devices.choose(parameters["device"]), shut or {}
    except ValueError as error:
        return unknown(str(error))
    samples = chosen(data, images)
    photos, reading = timed(lambda sample: sample.image(), samples, chip)
    if photos is None or not photos:
        why = reading.why or "the data set has no image"
        return unknown(why)
    found = {"reading": reading} | measure_labels(data, photos, parameters, folder, chip, shut, patience)
    release(chip)
    for key in needed:
        found[key] = measure_training(data, parameters, folder, key, chip, images, steps, patience)
        release(chip)
    return found | measure_predictions(data, photos, parameters, folder, chip, found["labels"])


def measure_labels(
    data: Dataset,
    photos: Sequence[np.ndarray],
    parameters: Mapping,
    folder: Path,
    chip: torch.device,
    shut: Mapping[str, str],
    patience: float,
) -> dict[str, Cost]:
    """Time masks, segment embeddings, threshold, labels and their borders, as notebooks 02 and 03 make them."""
    waiting = Cost(why="needs the stage before")
    found = dict.fromkeys(("masks", "segments", "threshold", "labels", "borders"), waiting)
    found |= {
        name: Cost(why=shut[option])
        for option, name in (("mask_options", "masks"), ("encoder_options", "segments"))
        if option in shut
    }
    if "mask_options" in shut:
        return found
    segments, found["masks"] = measure_masks(photos, parameters, folder, chip, patience)
    if segments is None or "encoder_options" in shut:
        return found
    photos = photos[: len(segments)]  # those for which patience sufficed
    asked, found["segments"] = measure_segments(data, photos, segments, parameters, folder, chip)
    if asked is None:
        return found
    return found | measure_naming(data, photos, segments, asked, parameters, folder, chip)


def measure_masks(
    photos: Sequence[np.ndarray], parameters: Mapping, folder: Path, chip: torch.device, patience: float
) -> tuple[list | None, Cost]:
    """Time the masks of each photo: the masks, and their cost."""
    paths = [folder / f"{k}.masks" for k in range(len(photos))]
    try:
        find_masks = masks.build(parameters["mask_model"], device=str(chip), **parameters["mask_options"])
    except Exception as error:  # as in `timed`
        return None, Cost(why=failure(error))

    def mask(k: int):
        segments = find_masks([photos[k]])[0]
        files.write_masks(paths[k], segments)
        return segments

    return timed(mask, range(len(photos)), chip, paths=paths, patience=patience)


def measure_segments(
    data: Dataset, photos: Sequence[np.ndarray], segments: list, parameters: Mapping, folder: Path, chip: torch.device
) -> tuple[tuple | None, Cost]:
    """Time a batch of segment embeddings: these, the text embeddings and whose they are, and the cost."""
    paths = [folder / f"{k}.segments" for k in range(len(photos))]
    try:
        encode = encoders.build(parameters["encoder"], device=str(chip), **parameters["encoder_options"])
        texts = [tensor.cpu() for tensor in encode.class_embeddings(data.classes)]
    except Exception as error:  # as in `timed`
        return None, Cost(why=failure(error))
    batch = list(islice(cycle(range(len(photos))), max(len(photos), parameters["images_at_once"])))

    def embed(_) -> None:
        images, masks_of_each = [photos[k] for k in batch], [segments[k] for k in batch]
        options = parameters["embedding_options"]
        embeddings = segment_match.segment_embeddings(encode, images, masks_of_each, **options)
        for k, embedding in zip(batch, embeddings, strict=True):
            files.write_embeddings(paths[k], embedding)

    done, cost = timed(embed, range(2), chip, share=len(batch), paths=paths)
    return ([files.read_embeddings(path) for path in paths], *texts) if done else None, cost


def measure_naming(
    data: Dataset,
    photos: Sequence[np.ndarray],
    segments: list,
    asked: tuple,
    parameters: Mapping,
    folder: Path,
    chip: torch.device,
) -> dict[str, Cost]:
    """Time what names the segments: labels, the choice of a threshold, and SAM's borders laid over labels.

    asked: of `measure_segments`
    """
    embeddings, *texts = asked
    numbers, count, background = range(len(photos)), data.classes.num_classes, data.classes.background
    how = {"rule": parameters["rule"], "overlap": parameters["overlap"], "background": background}
    threshold = 0.2 if parameters["threshold"] is None else parameters["threshold"]

    def stored(k: int):
        return files.read_masks(folder / f"{k}.masks", photos[k].shape[:2])

    def label(k: int) -> np.ndarray:
        guess = segment_match.label_from_embeddings(stored(k), embeddings[k], *texts, threshold=threshold, **how)
        files.write_label(folder / f"{k}.labels", guess.label, data.classes.colours)
        return guess.label

    def choose(_):
        score = partial(mean_iou, num_classes=count, background=background)
        return segment_match.choose_threshold(embeddings, segments, labels, *texts, GRID, mean_iou=score, **how)

    def sharpen(k: int) -> None:
        merged = sepl.merge(labels[k], stored(k).dense(), count, "paper")
        files.write_label(folder / f"{k}.borders", merged, data.classes.colours)

    labels, cost = timed(label, numbers, chip, paths=[folder / f"{k}.labels" for k in numbers])
    found = {"labels": cost}
    if labels is None:
        return found
    if parameters["threshold"] is None and background is not None:
        found["threshold"] = timed(choose, [0], chip, share=len(segments))[1]
    if background == 0:
        found["borders"] = timed(sharpen, numbers, chip, paths=[folder / f"{k}.borders" for k in numbers])[1]
    return found


def mean_iou(
    truths: Sequence[np.ndarray], guesses: Sequence[np.ndarray], num_classes: int, background: int | None
) -> float:
    """Mean IoU over images, as notebook 02 chooses by."""
    pairs = zip(truths, guesses, strict=True)
    return metrics.scores(sum(metrics.confusion(*pair, num_classes) for pair in pairs), background=background).mean_iou


def empty(sample: Sample) -> np.ndarray:
    """A label map that stands for any other: what it says does not change what a step costs."""
    return np.zeros(sample.image().shape[:2], np.uint8)


def network_of(data: Dataset, parameters: Mapping) -> torch.nn.Module:
    """The run's segmenter with random weights, which cost the same time and need no download."""
    options = parameters["segmenter_options"]
    options = options | ({"pretrained": False} if "pretrained" in options else {})
    return segmenters.build(parameters["segmenter"], data.classes.num_classes, **options)


class Enough(Exception):
    """Ends a training that takes longer than anybody wants to wait."""


def measure_training(
    data: Dataset,
    parameters: Mapping,
    folder: Path,
    key: str,
    chip: torch.device,
    images: int,
    steps: int,
    patience: float = math.inf,
) -> Cost:
    """Time steps of a training, as notebooks 03 and 04 take them: views, loss, gradients, update."""
    name, _, target = key.removeprefix("training ").partition(", ")
    if not data.labelled:
        return Cost(unit="step", why="no labelled image to train with")
    wait, moments = waiter(chip), []
    state, weights = folder / f"{key}.state.safetensors", folder / f"{key}.network.safetensors"
    alone = name == "supervised"
    photos, unlabelled = data.labelled[:images], data.unlabelled[:images]
    if chip.type == "cuda":
        torch.cuda.reset_peak_memory_stats(chip)
    try:
        options = {"refine_target": target} if target else {}
        options |= {"passes": parameters["passes"]} if name in ("unimatch", "semivl") else {}
        loss = losses.build(name, **options)

        def watched(model: torch.nn.Module, batch: dict) -> dict:
            wait()
            moments.append(time.perf_counter())
            if len(moments) > 1 and moments[-1] - moments[0] > patience:
                raise Enough
            return loss(model, batch)

        watched.settings = loss.settings
        image = photos[0].image()
        kept = image.shape[0] * image.shape[1] * 4 * (len(data.labelled) + len(data.unlabelled)) <= SHARE
        network = network_of(data, parameters)
        training.fit(
            network, watched, photos, () if alone else unlabelled,
            pseudo_label=empty if target in ("zero_shot", "fusion") or name == "semivl" else None,
            steps=steps + 2,  # from one call of the loss to the next, and the first of these warms up
            batch_size=parameters["batch_size"] * (2 if alone else 1),
            crop_size=parameters["crop_size"], scale=parameters["resize_range"], lr=parameters["learning_rate"],
            head_lr_factor=parameters["head_lr_factor"], optimizer=parameters["optimizer"],
            precision=devices.precision(parameters["precision"], chip), channels_last=parameters["channels_last"],
            cache_bytes=SHARE if kept else 0,  # where not all images fit in memory, they are read again and again
            device=chip, state_file=state, progress=None,
        )  # fmt: skip
    except Enough:
        pass
    except Exception as error:  # as in `timed`
        return Cost(unit="step", why=failure(error))
    seconds = np.diff(moments).tolist()
    seconds = seconds[1:] or seconds
    files.write_weights(weights, network)
    # The state holds weights and moments: two of these for AdamW, one for SGD.
    own = weights.stat().st_size
    written = own + (state.stat().st_size if state.exists() else own * (3 if parameters["optimizer"] == "adamw" else 2))
    state.unlink(missing_ok=True)  # the next training of this name begins anew
    return Cost(
        median(seconds), "step", bytes_once=written, memory_mb=devices.peak_memory_mb(),
        cuda_memory_mb=devices.peak_cuda_memory_mb(), last=seconds[-1],
    )  # fmt: skip


def measure_predictions(
    data: Dataset, photos: Sequence[np.ndarray], parameters: Mapping, folder: Path, chip: torch.device, labels: Cost
) -> dict[str, Cost]:
    """Time a network's label maps, and their evaluation; maps are taken to be as large as the zero-shot ones."""
    batch = list(islice(cycle(range(len(photos))), parameters["images_at_once"]))
    paths = [folder / f"{k}.prediction" for k in range(len(photos))]
    count = data.classes.num_classes
    try:
        network = network_of(data, parameters)
    except Exception as error:  # as in `timed`
        return dict.fromkeys(("predictions", "evaluation"), Cost(why=failure(error)))

    def predict(_) -> None:
        how = {"precision": devices.precision(parameters["precision"], chip)}
        how |= {"channels_last": parameters["channels_last"]}
        guesses = training.predict(network, [photos[k] for k in batch], device=chip, **how)
        for k, guess in zip(batch, guesses, strict=True):
            files.write_label(paths[k], guess.label, data.classes.colours)

    def evaluate(k: int) -> None:
        label, truth = (files.read_label(paths[k], count) for _ in range(2))
        metrics.confusion(truth, label, count)
        diagnosis.error_types(truth, label, count, background=data.classes.background)

    made, predictions = timed(predict, range(2), chip, share=len(batch), paths=[paths[k] for k in sorted(set(batch))])
    if made is None:
        return {"predictions": predictions, "evaluation": Cost(why="needs the stage before")}
    if labels.bytes:  # what a network with random weights says is noise, and large
        predictions = replace(predictions, bytes=labels.bytes)
    _, evaluation = timed(evaluate, sorted(set(batch)), chip)
    return {"predictions": predictions, "evaluation": evaluation}


def release(chip: torch.device) -> None:
    """Give the GPU's memory back between stages, as the end of a notebook does."""
    if chip.type == "cuda":
        torch.cuda.empty_cache()


# Presets


def same_masks(one: Mapping, other: Mapping) -> bool:
    """Whether two runs ask the mask model for the same, defaults filled in."""

    def filled(parameters: Mapping) -> str:
        known = signature(import_module(f"plg_utils.masks.{parameters['mask_model']}").build).parameters
        defaults = {name: item.default for name, item in known.items()}
        return json.dumps(defaults | parameters["mask_options"], sort_keys=True, default=str)

    return one["mask_model"] == other["mask_model"] and filled(one) == filled(other)


def measure_again(
    data: Dataset | None,
    own: Mapping,
    other: Mapping,
    measured: Mapping[str, Cost],
    folder: Path,
    *,
    images: int = 5,
    steps: int = 3,
    patience: float = math.inf,
) -> dict[str, Cost]:
    """Costs of a run with other parameters, from those of the run as it is.

    Masks are timed again on the last of the images, the first of the trainings is timed again, and what they cost
    more or less is taken to hold for all. What else a preset might change is not timed again.
    """
    if not any(cost.seconds is not None for cost in measured.values()):
        return dict(measured)
    chip, found = devices.choose(own["device"]), dict(measured)
    if measured["masks"].seconds is not None and not same_masks(own, other):
        found["masks"] = _masks_again(chosen(data, images)[measured["masks"].taken - 1], other, measured["masks"], chip)
        release(chip)
    names = ["segmenter", "segmenter_options", "batch_size", "crop_size", "passes"]
    names += ["optimizer", "precision", "channels_last"]
    keys = [key for key in measured if key.startswith("training ") and measured[key].seconds is not None]
    if keys and any(own[name] != other[name] for name in names):
        again = measure_training(data, other, folder, keys[0], chip, images, steps, patience)
        for key in [*keys, "predictions"]:
            found[key] = _times(measured[key], again, measured[keys[0]].seconds)
    return found


def _masks_again(sample: Sample, parameters: Mapping, before: Cost, chip: torch.device) -> Cost:
    photo = sample.image()
    try:
        find_masks = masks.build(parameters["mask_model"], device=str(chip), **parameters["mask_options"])
    except Exception as error:  # as in `timed`
        return Cost(why=failure(error))
    _, again = timed(lambda image: find_masks([image]), [photo], chip)
    return _times(before, again, before.last)


def _times(cost: Cost, again: Cost, before: float) -> Cost:
    """A cost as many times larger as `again` is than `before`, seconds of the same work."""
    if again.seconds is None:
        return replace(again, unit=cost.unit)
    if cost.seconds is None:
        return cost
    return replace(cost, seconds=cost.seconds * again.seconds / before)


def fitting(cards: Mapping[str, pd.DataFrame], budget: float) -> pd.DataFrame:
    """Which presets fit into a budget of hours.

    cards: preset -> `cost_card`
    returns: columns preset, hours, fits ("yes", "no", "not known"), not measured; in the order given
    """
    rows = []
    for name, card in cards.items():
        total = card.iloc[-1]
        fits = "no" if total["hours"] > budget else "not known" if total["not measured"] else "yes"
        rows.append({"preset": name, "hours": total["hours"], "fits": fits, "not measured": total["not measured"]})
    return pd.DataFrame(rows, columns=["preset", "hours", "fits", "not measured"])


def advice(table: pd.DataFrame, budget: float) -> str:
    """Which preset to take: none if the run fits as it is, else the dearest that fits, as time buys quality.

    table: of `fitting`, whose first row is the run as it is
    """
    own, fit = table.iloc[0], table[table["fits"] == "yes"]
    if own["fits"] == "yes":
        return f"the run takes {duration(own['hours'])} as it is, and fits into {duration(budget)} without a preset"
    if own["fits"] == "not known":
        return "not all of the run could be measured, so nobody knows yet which preset fits"
    if len(fit):
        best = fit.sort_values("hours").iloc[-1]
        return f"-p preset {best['preset']}: {duration(best['hours'])}, the dearest that fits into {duration(budget)}"
    return f"no preset fits into {duration(budget)}: fewer images (limit), methods or steps, or a faster machine"


# Print


def duration(hours: float) -> str:
    """Hours for a reader."""
    if hours < 1 / 60:
        return f"{hours * 3600:.0f} s"
    return f"{hours * 60:.0f} min" if hours < 2 else f"{hours:.1f} h"


def few(stages: str) -> str:
    """Names between commas, or how many there are."""
    count = stages.count(", ") + 1
    return stages if count <= 3 else f"{count} stages"


def size(gigabytes: float) -> str:
    """Bytes on disk for a reader."""
    return f"{gigabytes:,.1f} GB" if gigabytes >= 1 else f"{1000 * gigabytes:,.1f} MB"


def printed_presets(table: pd.DataFrame) -> str:
    """The table of `fitting` as text."""
    rows = table.itertuples(index=False, name=None)
    return "\n".join(
        f"{name:<12} {duration(hours):>8}  {'fits: ' + fits if fits != 'not known' else f'without {few(left)}'}"
        for name, hours, fits, left in rows
    )


def printed(card: pd.DataFrame) -> str:
    """A cost card as text, in columns."""
    rows = [["stage", "times", "each", "together", "disk", "memory", "GPU", ""]]
    for row in card.itertuples(index=False, name=None):
        stage, times, unit, each, hours, disk, memory, gpu, left = row
        told = f"not measured: {few(left) if stage == 'total' else left}" if left else ""
        rows.append(
            [
                stage,
                "" if np.isnan(times) else f"{times:,.0f} {unit}{'s' if times != 1 else ''}",
                "" if np.isnan(each) else f"{each:.3g} s",
                "" if np.isnan(hours) else duration(hours),
                "" if np.isnan(disk) else size(disk),
                "" if np.isnan(memory) else f"{memory:,.0f} MB",
                "" if np.isnan(gpu) else f"{gpu:,.0f} MB",
                told,
            ]
        )
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]) - 1)]
    return "\n".join(
        "  ".join(
            [
                row[0].ljust(widths[0]),
                *(text.rjust(width) for text, width in zip(row[1:-1], widths[1:], strict=True)),
                row[-1],
            ]
        ).rstrip()
        for row in rows
    )
