"""The pipeline: one function for each stage, and the table of methods.

    masks ─► segments, words ─► labels ─► refine ─► relabel, sharpen ─► train ─► predict   paper A, notebooks 02 to 04
             segments ─► few_shot_labels ─► filtered_labels           the same, named by examples, and what is believed
    cam_network ─► cams ─► sepl;   boxes;   concepts;   vote                               papers B and C, notebook 06

Each function opens its folder, makes what is missing, signs off and returns the stage. Notebooks, several processes,
grids, the doctor and the tests call these same functions; their keyword arguments have the names of the notebooks'
parameters. A new method is one entry in METHODS.
"""

import json
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, lru_cache, partial, wraps
from inspect import signature
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch

from plg_utils import (
    calibration,
    choices,
    contents,
    datasets,
    detectors,
    devices,
    diagnosis,
    distributed,
    encoders,
    files,
    generators,
    losses,
    metrics,
    segmenters,
    store,
    training,
    trust,
)
from plg_utils import cams as cue_maps
from plg_utils import masks as mask_models
from plg_utils.cams import classifier
from plg_utils.generators import concepts as sam3
from plg_utils.generators import few_shot as examples
from plg_utils.generators import segment_match, sepl
from plg_utils.labels import ThresholdChoice, assign
from plg_utils.records import SPLITS, Dataset, Masks, PseudoLabel, Sample, Scores

LABELLERS = {  # folder of each labeller's label maps, below that of the run
    "segment_match": "labels_zero_shot",
    "few_shot": "labels_few_shot",
    "filtered": "labels_filtered",
    "cam": "labels_cam",
    "sepl": "labels_sepl",
    "boxes": "labels_boxes",
    "concepts": "labels_concepts",
    "ensemble": "labels_ensemble",
}
WITHOUT_NETWORK = {"segment_match": "predictions_zero_shot", "few_shot": "predictions_few_shot"}  # labels of val images
RAW = "raw"  # in METHODS: the label maps of the labeller, as they are


# The table of methods


@dataclass(frozen=True)
class Method:
    """A way to train a network: a row of the comparison."""

    title: str  # in figures and tables
    loss: str  # a file of losses/
    takes: tuple[str, ...] = ()  # options of the loss that the run sets, of TARGETS
    fixed: dict[str, Any] = field(default_factory=dict)  # further options of the loss
    labels: str | None = None  # folder of the unlabelled images' label maps, or RAW
    start: str | None = None  # folder of the network that it starts from; None: a fresh one
    times_steps: int = 1
    epochs: int | None = None  # of the labelled images, instead of the run's steps
    learns_from: tuple[str, ...] = ("labelled",)  # splits whose truth it reads
    method: str | None = None  # column `method` of its row; None: the name in METHODS
    options: dict[str, str] = field(default_factory=dict)  # column `options` of its row: what differs from that method
    network: str | None = None  # folder of the network; None: network_NAME


TARGETS = ("threshold", "passes", "smoothing", "loss_options")
LABEL_TARGETS = (*TARGETS, "weak_weight")  # where the target is a label: it is taught to the undisturbed view too
ZERO_SHOT = {"refine_target": "zero_shot"}
SHARPENED = "labels_enhanced_sepl"  # the enhanced labels with SAM's borders
_A = partial(Method, loss="unimatch", takes=LABEL_TARGETS, fixed=ZERO_SHOT, method="paper_a")
METHODS = {
    "supervised": Method("supervised only", "supervised"),
    # UniMatch's own baseline, supervised.py: 80 epochs of the labelled list.
    "supervised_epochs": Method(
        "supervised only, 80 epochs", "supervised", epochs=80, method="supervised", options={"epochs": "80"}
    ),
    "fixmatch": Method("FixMatch, no zero-shot labels", "fixmatch", ("threshold",)),
    "unimatch": Method(
        "UniMatch, no zero-shot labels", "unimatch", ("threshold", "passes", "loss_options"),
        {"refine_target": "unimatch"},
    ),
    # As much as the two networks of paper A.
    "unimatch_long": Method(
        "UniMatch, no zero-shot labels, twice the steps", "unimatch", ("threshold", "passes", "loss_options"),
        {"refine_target": "unimatch"}, times_steps=2, method="unimatch", options={"steps": "twice"},
    ),
    "semivl": Method("UniMatch with fading zero-shot labels", "semivl", ("threshold", "passes"), labels=RAW),
    # With SemiVL's filter: zero-shot pixels below a probability of 0.9 are left out.
    "semivl_sure": Method(
        "UniMatch with fading, sure zero-shot labels", "semivl", ("threshold", "passes"),
        labels="labels_zero_shot_sure", method="semivl", options={"labels": "sure"},
    ),
    "direct": Method("raw zero-shot labels", "unimatch", LABEL_TARGETS, ZERO_SHOT, RAW),
    # What the two networks of paper A cost together.
    "direct_long": Method(
        "raw zero-shot labels, twice the steps", "unimatch", LABEL_TARGETS, ZERO_SHOT, RAW,
        times_steps=2, method="direct", options={"steps": "twice"},
    ),
    "fusion": Method("the refined network itself", "unimatch", TARGETS, labels=RAW, network="refined"),
    # The plain reading of the paper, then one change and the other, then both: our default.
    "paper_a_plain": _A(
        "paper A, plain reading", labels="labels_enhanced", options={"borders": "the network's", "start": "fresh"}
    ),
    "paper_a_fresh": _A("paper A with SEPL, second network fresh", labels=SHARPENED, options={"start": "fresh"}),
    "paper_a_soft": _A(
        "paper A, second network goes on", labels="labels_enhanced", start="refined",
        options={"borders": "the network's"},
    ),
    "paper_a": _A("paper A with SEPL (ours)", labels=SHARPENED, start="refined"),
    "full": Method("truth of all images", "supervised", learns_from=("labelled", "unlabelled")),
}  # fmt: skip


def method_of(name: str) -> Method:
    """The entry of METHODS; a file of losses/ that is not in the table is a method too, with raw labels."""
    if name in METHODS:
        return METHODS[name]
    return Method(name.replace("_", " "), name, labels=RAW)


def check_methods(names: Sequence[str]) -> None:
    """Refuse a method that there is not."""
    known = [*METHODS, *(name for name in losses.choices() if name not in METHODS)]
    for name in names:
        choices.one_of(name, known, "method")


def labels_of(labeller: str) -> str:
    """Folder of a labeller's label maps; labeller: one of LABELLERS."""
    return LABELLERS[choices.one_of(labeller, list(LABELLERS), "labeller")]


@dataclass(frozen=True)
class Row:
    """What a folder of label maps is, in the tables."""

    stage: str  # zero_shot, enhanced or segmenter
    method: str
    labels: str | None
    options: dict[str, str]
    title: str
    trained_by: str | None = None  # the method that notebook 04 must have trained for it; None: it needs none
    learnt_from: str | None = None  # folder of the unlabelled images' label maps that it rests on


def rows_of(folder: Path, labeller: str) -> dict[str, Row]:
    """Every folder of label maps that the notebooks 02 to 04 may write, in the order of the ladder."""
    raw = labels_of(labeller)
    own_titles = {"segment_match": "zero-shot labels", "few_shot": "few-shot labels", "filtered": "filtered labels"}
    title = own_titles.get(labeller, f"labels of {labeller}")
    fused, alone = {"refine_target": "fusion"}, {"network": "none"}
    sharp, official = fused | {"sepl": "paper"}, fused | {"sepl": "official"}
    rows = {
        raw: Row("zero_shot", labeller, labeller, {}, title),
        **{LABELLERS[name]: Row("zero_shot", name, name, {}, own_titles[name]) for name in own_titles},
        f"{raw}_sepl": Row("zero_shot", labeller, labeller, {"sepl": "paper"}, f"{title} through SEPL"),
        "labels_enhanced_zero_shot": Row("enhanced", labeller, labeller, ZERO_SHOT, "enhanced, raw targets", "direct"),
        "labels_enhanced": Row("enhanced", labeller, labeller, fused, "enhanced labels, the network's borders"),
        SHARPENED: Row("enhanced", labeller, labeller, sharp, "enhanced labels, SAM's borders"),
        f"{SHARPENED}_official": Row("enhanced", labeller, labeller, official, "enhanced labels, SEPL's official code"),
        **{
            folder: Row("zero_shot", name, name, alone, f"{own_titles[name]}, no network", learnt_from=LABELLERS[name])
            for name, folder in WITHOUT_NETWORK.items()
        },
    }
    own = [path.name.removeprefix("predictions_") for path in sorted(folder.glob("predictions_*"))]
    own = [name for name in own if name not in METHODS and f"predictions_{name}" not in rows]
    own = [name for name in own if not name.endswith("_sepl")]
    for name in [*METHODS, *own]:
        method = method_of(name)
        source = labeller if method.labels else None
        of_sam = {"predictions": "SAM's borders"} | method.options
        for ending, options, title in (
            ("", method.options, method.title),
            ("_sepl", of_sam, f"{method.title}, with SAM"),
        ):
            what = "segmenter", method.method or name, source, options, title
            rows[f"predictions_{name}{ending}"] = Row(*what, name, raw if method.labels == RAW else method.labels)
    return rows


# A run


@dataclass(frozen=True)
class Run:
    """A run: its images, and where its networks run. Every stage takes it first."""

    name: str  # the results are below `files.results_root()`, in a folder of this name
    data: Dataset
    device: str = "auto"
    images_at_once: int = 8  # that go through a network together
    processes: int = 1  # that share a stage's work

    @property
    def folder(self) -> Path:
        """Folder of the run."""
        return store.run_folder(self.name)

    @property
    def images(self) -> list[Sample]:
        """The labelled and the unlabelled images."""
        return [*self.data.labelled, *self.data.unlabelled]

    def images_of(self, evaluated: Sequence[str]) -> list[Sample]:
        """The images of the splits on which networks are scored, of val and test."""
        splits = [choices.one_of(split, ("val", "test"), "split in `evaluated`") for split in evaluated]
        return [sample for split in splits for sample in getattr(self.data, split)]

    @cached_property
    def chip(self) -> torch.device:
        """Where networks run."""
        return devices.choose(self.device)

    def masks_of(self, sample: Sample, size: tuple[int, int] | None = None) -> Masks:
        """SAM's masks of an image; size: (H, W), to be sure that they are its own."""
        return files.read_masks(self.folder / "masks" / f"{sample.id}.json", size)

    def embeddings_of(self, sample: Sample) -> torch.Tensor:
        """Embeddings (N, D) of the segments of an image, in the order of its masks."""
        return files.read_embeddings(self.folder / "segments" / f"{sample.id}.safetensors")

    def segments_of(self, sample: Sample) -> tuple[Masks, torch.Tensor]:
        """Masks of an image, and their embeddings."""
        return self.masks_of(sample), self.embeddings_of(sample)

    def labelled_segments(self) -> examples.Labelled:
        """What the labelled images show: their segments and truths."""
        parts = self.masks_of, self.embeddings_of, Sample.truth
        return examples.Labelled(*([part(sample) for sample in self.data.labelled] for part in parts))

    def label_of(self, name: str, sample: Sample) -> np.ndarray:
        """Label map (H, W) uint8 of an image in the folder `name` of the run."""
        return files.read_label(self.folder / name / f"{sample.id}.png", self.data.classes.num_classes)

    def write_label(self, name: str, id: str, label: np.ndarray) -> None:
        """Write a label map (H, W) uint8 into the folder `name` of the run."""
        files.write_label(self.folder / name / f"{id}.png", label, self.data.classes.colours)

    def stage(self, name: str, parameters: dict, *, parents: Sequence[str] = (), **more: Any) -> store.Stage:
        """Open a stage of this run, see `store.stage`; parents: names of folders of the run."""
        parents = [self.folder / parent for parent in parents]
        more |= {"dataset": self.data, "device": self.chip}
        return store.stage(self.folder / name, parameters=parameters, parents=parents, **more)

    def fill_labels(
        self, stage: store.Stage, samples: Sequence[Sample], *, read: Callable, make: Callable,
        at_once: int | None = None,
    ) -> store.Stage:  # fmt: skip
        """Make and write the label maps of a stage, NAME/ID.png, and sign off; see `store.Stage.fill`."""
        write = partial(self.write_label, stage.folder.name)
        stage.fill(samples, [".png"], read=read, make=make, write=write, at_once=at_once or self.images_at_once)
        return stage.finish(images=len(samples))


def open_run(name: str, data: Dataset, *, device: str = "auto", images_at_once: int = 8, processes: int = 1) -> Run:
    """Open a run, and note in its `run.json` which data set it has."""
    if type(processes) is not int or processes < 1:
        raise ValueError(f"processes is {processes!r}; give a whole number from 1 on")
    devices.use_free_cores()
    run = Run(name, data, device, images_at_once, processes)
    if data.source and distributed.is_main():
        opened = ("truth_of", "tags_of")
        options = {key: value for key, value in data.source.items() if key not in opened and value is not None}
        known = {"run": name, "dataset": options.pop("name"), "labelled": options.pop("labelled", None)}
        known |= {"seed": options.pop("seed", 0), "dataset_options": options}
        path = run.folder / "run.json"
        with files.reading(path, "the record of a run", "delete it, and start the same command again"):
            content = files.read_json(path) | {} if path.exists() else {}
        if content | known != content:
            files.write_json(path, content | known)
    return run


def run_of(parameters: dict[str, Any]) -> Run:
    """Open the run that the notebooks' parameters describe; its data set opens the truth and tags that they ask for."""
    both = ("labelled", "unlabelled")
    options = {name: parameters[name] for name in ("labelled", "seed")} | parameters["dataset_options"]
    options |= {"truth_of": both} if "full" in parameters.get("methods", ()) else {}
    options |= {"tags_of": both} if parameters.get("cam_sources") else {}
    place = {name: parameters[name] for name in ("device", "images_at_once", "processes") if name in parameters}
    return open_run(parameters["run"], datasets.load(parameters["dataset"], **options), **place)


# One call in several processes


SHARED: dict[str, Callable] = {}  # the stages that several processes may share, by name


def stage_function(function: Callable) -> Callable:
    """Let several processes share a stage, if the run asks for them: they do the work, and this call finds it done."""

    @wraps(function)
    def call(run: Run, *args: Any, **options: Any) -> Any:
        if run.processes > 1 and not distributed.joined():
            if run.data.source is None:
                raise ValueError("several processes need a data set that datasets.load has loaded")
            _, *given = signature(function).bind(run, *args, **options).arguments.items()
            given = {key: asdict(value) if isinstance(value, Training) else value for key, value in given}
            place = {"name": run.name, "device": run.device, "images_at_once": run.images_at_once}
            order = {"stage": function.__name__, "run": place, "data": run.data.source, "options": given}
            distributed.launch(run.processes, "plg_utils.stages", order)
        return function(run, *args, **options)

    SHARED[function.__name__] = call
    return call


def main(path: str) -> None:
    """Do the stage of an order, a JSON file, together with the processes that torchrun has started."""
    order = files.read_json(path)
    distributed.start(order["run"]["device"])
    source = {key: value for key, value in order["data"].items() if value is not None}
    options = order["options"]
    if "training" in options:
        options["training"] = Training(**options["training"])
    SHARED[order["stage"]](Run(data=datasets.load(**source), **order["run"]), **options)
    distributed.wait()
    distributed.stop()


def _lazily(build: Callable[[], Callable]) -> Callable:
    """A function that builds a model at the first call: where nothing is to do, no weights are read."""
    build = lru_cache(build)
    return lambda *inputs: build()(*inputs)


def checkpoint_of(build: Callable, options: dict) -> str | Path | None:
    """The weights that a model is built with: its option `checkpoint`, or the default of this option, if it has one."""
    default = signature(build).parameters.get("checkpoint")
    return options.get("checkpoint", default.default if default else None)


def _checkpoint(package: ModuleType, name: str, options: dict) -> str | Path | None:
    return checkpoint_of(choices.choice(package.__name__, name, "model").build, options)


@lru_cache(maxsize=1)
def _encoder(name: str, options: str, device: str, weights: str | None) -> Any:
    """The encoder that several stages of a notebook share; options as JSON, weights: SHA-256 of an own file."""
    return encoders.build(name, device=device, **json.loads(options))


def encoder_of(run: Run, encoder: str, encoder_options: dict) -> Any:
    """Build the encoder of a run, once in a row."""
    file = _checkpoint(encoders, encoder, encoder_options)
    weights = contents.sha256(file) if file is not None and Path(file).is_file() else None
    return _encoder(encoder, json.dumps(encoder_options), str(run.chip), weights)


# Paper A: labels without training


# Notebook 02 labels the images of the splits `evaluated` too: what a network is worth is seen on the same images.


@stage_function
def masks(run: Run, *, mask_model: str, mask_options: dict, evaluated: Sequence[str] = ()) -> store.Stage:
    """SAM's masks of every labelled and unlabelled image, and of the splits `evaluated`: masks/ID.json."""
    weights = _checkpoint(mask_models, mask_model, mask_options)
    stage = run.stage("masks", {"model": mask_model, **mask_options}, checkpoints=[weights])
    find = _lazily(lambda: mask_models.build(mask_model, device=str(run.chip), **mask_options))

    def make(images: list[tuple[str, np.ndarray]]) -> Iterator[Masks]:
        for id, image in images:
            token = mask_models.LOOKED_AT.set(id)  # a warning says which photo it is
            (found,) = find([image])
            mask_models.LOOKED_AT.reset(token)
            yield found

    how = {"read": lambda sample: (sample.id, sample.image()), "make": make, "alone": True}
    how |= {"write": lambda id, found: files.write_masks(stage.path(id, ".json"), found)}
    stage.fill([*run.images, *run.images_of(evaluated)], [".json"], **how, at_once=run.images_at_once)
    counts = mask_counts(run, evaluated)
    return stage.finish(images=len(counts), masks=sum(counts))


def mask_counts(run: Run, evaluated: Sequence[str] = ()) -> list[int]:
    """How many masks each labelled and unlabelled image has, and each of the splits `evaluated`."""
    samples = [*run.images, *run.images_of(evaluated)]
    return [len(files.read_json(run.folder / "masks" / f"{sample.id}.json")["masks"]) for sample in samples]


@stage_function
def segments(
    run: Run, *, encoder: str, encoder_options: dict, embedding_options: dict, evaluated: Sequence[str] = ()
) -> store.Stage:
    """CLIP's embedding of each mask, `labels.pool` of its features: segments/ID.safetensors, (N, D)."""
    parameters = {"encoder": encoder, **encoder_options, **embedding_options}
    weights = _checkpoint(encoders, encoder, encoder_options)
    stage = run.stage("segments", parameters, checkpoints=[weights], parents=["masks"])

    def image_and_masks(sample: Sample) -> tuple[np.ndarray, Masks]:
        image = sample.image()
        return image, run.masks_of(sample, image.shape[:2])

    def embed(pairs: list) -> list[torch.Tensor]:
        encode = encoder_of(run, encoder, encoder_options)
        return segment_match.segment_embeddings(encode, *zip(*pairs, strict=True), **embedding_options)

    def write(id: str, found: torch.Tensor) -> None:
        files.write_embeddings(stage.path(id, ".safetensors"), found)

    how = {"read": image_and_masks, "make": embed, "write": write, "at_once": run.images_at_once}
    stage.fill(run.images, [".safetensors"], **how)
    if unseen := run.images_of(evaluated):  # apart, so that the others' batches do not depend on them
        stage.fill(unseen, [".safetensors"], **how)
    return stage.finish(images=len(run.images) + len(unseen))


def words(run: Run, *, encoder: str, encoder_options: dict) -> tuple[torch.Tensor, torch.Tensor]:
    """Text embeddings (K', D) of the words of the classes, and the class (K',) that each belongs to, on the CPU.

    They are kept in words/: without a GPU, CLIP ViT-B/16 reads some twenty sentences a second.
    """
    weights = _checkpoint(encoders, encoder, encoder_options)
    stage = run.stage("words", {"encoder": encoder, **encoder_options}, classes=True, checkpoints=[weights])
    owners, embeddings = paths = [stage.folder / name for name in ("owner.json", "embeddings.safetensors")]
    stage.register([path.name for path in paths])
    with distributed.main_first():
        if not all(path.is_file() and path.stat().st_size for path in paths):
            found, owner = encoder_of(run, encoder, encoder_options).class_embeddings(run.data.classes)
            files.write_json(owners, owner.tolist())
            files.write_embeddings(embeddings, found)
    owner = torch.tensor(files.read_json(owners))
    stage.finish(words=len(owner))
    return files.read_embeddings(embeddings), owner


def choose_threshold(
    run: Run, *, encoder: str, encoder_options: dict, rule: str, overlap: str
) -> ThresholdChoice | None:
    """The threshold that names the labelled images best; None where there is no labelled image or no background."""
    data, background = run.data, run.data.classes.background
    if not data.labelled or background is None:
        return None
    known = run.labelled_segments()
    texts = words(run, encoder=encoder, encoder_options=encoder_options)
    how = {"num_classes": data.classes.num_classes, "background": background, "rule": rule, "overlap": overlap}
    return segment_match.choose_threshold(known.embeddings, known.masks, known.truths, *texts, **how)


@stage_function
def labels(
    run: Run, *, encoder: str, encoder_options: dict, rule: str, threshold: float | None, default_threshold: float,
    overlap: str, spoiled: float = 0.0, evaluated: Sequence[str] = (),
) -> store.Stage:  # fmt: skip
    """Paper A's zero-shot labels: each segment gets a class, and is painted. labels_zero_shot/ID.png.

    Those of the splits `evaluated` are predictions_zero_shot/ID.png: what needs no network at all.

    threshold: None chooses it on the labelled images, and takes default_threshold where there are none
    spoiled: share of the names that is wrong on purpose, to see what notices it; see `segment_match.spoiled`
    """
    if threshold is None:
        choice = choose_threshold(run, encoder=encoder, encoder_options=encoder_options, rule=rule, overlap=overlap)
        threshold = choice.threshold if choice else default_threshold
    how = {"rule": rule, "threshold": threshold, "overlap": overlap} | ({"spoiled": spoiled} if spoiled else {})
    texts = words(run, encoder=encoder, encoder_options=encoder_options)
    return _paint(run, "segment_match", how, _by_words(run, texts, how), evaluated, parents=["segments"])


def _by_words(run: Run, texts: tuple[torch.Tensor, torch.Tensor], how: dict[str, Any]) -> Callable:
    """Names segments, (N, D), as the zero-shot labels do; how: parameters of their stage."""
    classes, rule = run.data.classes, {key: how[key] for key in ("rule", "threshold")}

    def name(embeddings: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        named = assign(embeddings, texts[0], owner=texts[1], background=classes.background, **rule)
        share = how.get("spoiled", 0)
        return segment_match.spoiled(embeddings, named, share, classes.num_classes) if share else named

    return name


def _paint(
    run: Run, labeller: str, how: dict[str, Any], name: Callable, evaluated: Sequence[str], *, parents: list[str],
    **identity: Any,
) -> store.Stage:  # fmt: skip
    """Name the segments of all images, and paint them, into a folder each for `run.images` and the splits evaluated.

    how, parents, identity: parameters of the stage, and what else `Run.stage` takes
    """
    own = LABELLERS[labeller]

    def make(pairs: list) -> list[np.ndarray]:
        options = {"background": run.data.classes.background, "overlap": how["overlap"]}
        return [each.label for each in segment_match.painted(*zip(*pairs, strict=True), name, **options)]

    def fill(folder: str, samples: list[Sample], parents: list[str]) -> store.Stage:
        stage = run.stage(folder, how, classes=True, parents=parents, **identity)
        return run.fill_labels(stage, samples, read=run.segments_of, make=make)

    stage = fill(own, run.images, parents)
    if unseen := run.images_of(evaluated):  # outdated as soon as the labels are made otherwise
        fill(WITHOUT_NETWORK[labeller], unseen, [*parents, own])
    return stage


@stage_function
def sure_labels(run: Run, *, encoder: str, encoder_options: dict, sure_from: float) -> store.Stage:
    """The zero-shot labels without the pixels that CLIP is not sure of: labels_zero_shot_sure/ID.png.

    SemiVL's filter: a pixel whose probability is below sure_from, 0.9 there, becomes IGNORE. The probability is the
    softmax of 100 x cosine over the classes, each by its best word, see `segment_match.only_sure`.
    """
    raw = "labels_zero_shot"
    how = files.read_json(run.folder / raw / "manifest.json")["parameters"]
    texts, background = words(run, encoder=encoder, encoder_options=encoder_options), run.data.classes.background
    stage = run.stage("labels_zero_shot_sure", {"sure_from": sure_from}, classes=True, parents=[raw])

    def sure(stored: list) -> list[np.ndarray]:
        return [segment_match.only_sure(*each, *texts, sure_from, background, how["overlap"]) for each in stored]

    def read(sample: Sample) -> tuple:
        return run.label_of(raw, sample), *run.segments_of(sample)

    return run.fill_labels(stage, run.images, read=read, make=sure)


@dataclass(frozen=True, eq=False)
class FewShot:
    """The few-shot labels, and what named them."""

    stage: store.Stage
    name: examples.Namer


@stage_function
def few_shot_labels(
    run: Run, *, encoder: str, encoder_options: dict, overlap: str, few_shot: dict, evaluated: Sequence[str] = ()
) -> FewShot:
    """Paper A's segments, named by the words and by the labelled images' segments: labels_few_shot/ID.png.

    Those of the splits `evaluated` are predictions_few_shot/ID.png.

    few_shot: strength, share and words_of of `generators.few_shot.learn`
    """
    data = run.data
    texts = words(run, encoder=encoder, encoder_options=encoder_options)
    others = map(run.embeddings_of, data.unlabelled)
    namer = examples.learn(run.labelled_segments(), data.classes, *texts, others=others, overlap=overlap, **few_shot)
    how = few_shot | {"strength": namer.choice.threshold, "overlap": overlap}
    identity = {"parents": ["masks", "segments"], "learns_from": ["labelled"]}
    return FewShot(_paint(run, "few_shot", how, namer, evaluated, **identity), namer)


@dataclass(frozen=True, eq=False)
class Filtered:
    """The filtered labels, and what the labelled images said of the names."""

    stage: store.Stage
    found: calibration.Calibrated


@stage_function
def filtered_labels(
    run: Run, *, encoder: str, encoder_options: dict, overlap: str, few_shot: dict | None, label_filter: dict
) -> Filtered:
    """Labels without the names that are probably wrong, by what the labelled images show: labels_filtered/ID.png.

    The pixels of a segment whose name is left out become IGNORE, see `calibration`.

    few_shot: as in `few_shot_labels`, whose labels are filtered; None: the zero-shot labels are
    label_filter: precision and confidence of `calibration.calibrate`
    """
    data = run.data
    if not data.labelled:
        raise ValueError("the filter is calibrated on labelled images, and there are none: label some, or do without")
    source = LABELLERS["segment_match" if few_shot is None else "few_shot"]
    options = {"encoder": encoder, "encoder_options": encoder_options}
    known = run.labelled_segments()
    if few_shot is None:
        how = files.read_json(run.folder / source / "manifest.json")["parameters"]
        name = _by_words(run, words(run, **options), how)
        named = [*map(name, known.embeddings)]
    else:
        name = few_shot_labels(run, **options, overlap=overlap, few_shot=few_shot).name
        named = name.left_out
    others = map(run.embeddings_of, data.unlabelled)
    believed = calibration.learn(known, named, data.classes, others=others, overlap=overlap, **label_filter)
    if believed.calibrated.threshold is None:
        names = f"{len(believed.calibrated.right)} names of {len(data.labelled)} labelled images"
        problem = f"the filter keeps no name, so no pixel has a label: by {names} it cannot promise what is asked"
        warnings.warn(f"{problem}. Label more images, or ask for less, such as {{precision: 0.7}}", stacklevel=2)
    parameters = {"of": source, "threshold": believed.calibrated.threshold, **label_filter}
    identity = {"classes": True, "parents": [source], "learns_from": ["labelled"]}
    stage = run.stage(LABELLERS["filtered"], parameters, **identity)

    def filtered(stored: list[tuple]) -> list[np.ndarray]:
        return [believed.label(*each, name(each[1])) for each in stored]

    run.fill_labels(stage, run.images, read=run.segments_of, make=filtered)
    return Filtered(stage, believed.calibrated)


# Training


@dataclass(frozen=True)
class Training:
    """How the networks of a run are trained, whatever the method. The names are the notebooks' parameters."""

    segmenter: str
    segmenter_options: dict
    smoothing: float
    passes: str
    loss_options: dict
    warm_up: int | None
    steps: int
    batch_size: int
    crop_size: int
    resize_range: Sequence[float]
    optimizer: str
    learning_rate: float
    head_lr_factor: float
    training_options: dict
    precision: str
    channels_last: bool
    compiled: bool
    workers: int
    seed: int
    weak_weight: float | None = None

    def network(self, num_classes: int) -> torch.nn.Module:
        """A fresh network; its random weights follow from the seed."""
        torch.manual_seed(self.seed)
        return segmenters.build(self.segmenter, num_classes, **self.segmenter_options)

    def settings(self, run: Run) -> dict[str, Any]:
        """Keyword arguments of `training.fit`."""
        return {
            "batch_size": self.batch_size,
            "crop_size": self.crop_size,
            "scale": self.resize_range,
            "optimizer": self.optimizer,
            "lr": self.learning_rate,
            "head_lr_factor": self.head_lr_factor,
            "precision": devices.precision(self.precision, run.chip),
            "channels_last": self.channels_last,
            "compiled": self.compiled,
            "seed": self.seed,
            **self.training_options,
        }


@dataclass(frozen=True, eq=False)
class Trained:
    """A trained network, its stage, and the rows of its training, with those of its warm-up before."""

    stage: store.Stage
    network: torch.nn.Module
    history: list[dict[str, float]]
    warm_up: "Trained | None" = None

    @property
    def seconds(self) -> list[float]:
        """What the warm-up took, 0 if there was none, and what the rest took."""
        parts = [part.stage.folder / "manifest.json" for part in (self.warm_up, self) if part]
        return [0.0] * (2 - len(parts)) + [files.read_json(path)["wall_seconds"] for path in parts]


@stage_function
def refine(run: Run, training: Training, *, labeller: str, refine_target: str, refine_confidence: float) -> Trained:
    """Paper A's refinement: UniMatch with a target that the zero-shot labels share in. refined/network.safetensors."""
    method, smoothing = replace(METHODS["fusion"], fixed={"refine_target": refine_target}), training.smoothing
    reached = 1 - smoothing + smoothing / run.data.classes.num_classes  # by targets that are learnt perfectly
    if refine_target == "fusion" and refine_confidence > reached:
        problem = f"refine_confidence {refine_confidence} is out of reach: targets smoothed by {smoothing} pull the "
        problem += f"confidence to {reached:.3f} at most, so zero-shot labels stay the targets. Give less, such as 0.8"
        warnings.warn(problem, stacklevel=2)
    return _train(run, training, "refined", method, labeller, refine_confidence)


@stage_function
def train(run: Run, training: Training, method: str, *, labeller: str, confidence: float) -> Trained:
    """A network by one of METHODS: network_METHOD/network.safetensors."""
    check_methods([method])
    entry = method_of(method)
    if method not in METHODS and not (run.folder / labels_of(labeller)).exists():
        entry = replace(entry, labels=None)  # a loss of the user's may need no labels
    return _train(run, training, f"network_{method}", entry, labeller, confidence)


def loss_of(method: Method, training: Training, threshold: float) -> tuple[str, dict[str, Any]]:
    """Name and options of a method's loss, in a run with this training."""
    given = {"threshold": threshold, "passes": training.passes, "smoothing": training.smoothing}
    given |= {"weak_weight": training.weak_weight} if training.weak_weight else {}
    options = method.fixed | {name: given[name] for name in method.takes if name in given}
    options |= training.loss_options if "loss_options" in method.takes else {}
    if training.passes == "v2" and method.loss == "unimatch":
        return "unimatch_v2", {name: value for name, value in options.items() if name != "passes"}
    return method.loss, options


def steps_of_epoch(images: int, batch_size: int) -> int:
    """Steps of an epoch by UniMatch's code: each of its 4 GPUs takes a quarter, rounded up, and drops what is left."""
    return -(-images // 4) * 4 // batch_size


def _train(run: Run, how: Training, name: str, method: Method, labeller: str, threshold: float) -> Trained:
    """Train the network of a method, after a warm-up on undisturbed views if the run has one.

    The warm-up is the same for every method: the network learns the labels that the method has, from weak views, one
    pass a step. Methods with the same labels and the same start share it, in a folder of its own.
    """
    source = labels_of(labeller) if method.labels == RAW else method.labels
    if source == SHARPENED and run.data.classes.background != 0:
        source = "labels_enhanced"  # SEPL needs a background, see `sharpen`
    fit = partial(_fit, run, how, source=source, learns_from=method.learns_from)
    start, warm_up, first = method.start, None, 0
    steps = how.steps * method.times_steps
    if method.epochs:  # a schedule of its own, without a warm-up; for `supervised`, whose batch is doubled
        steps = method.epochs * max(1, steps_of_epoch(len(run.data.labelled), 2 * how.batch_size))
    elif how.warm_up:
        loss, options = ("weak", {"smoothing": how.smoothing}) if source else ("supervised", {})
        first = how.warm_up * method.times_steps
        warm_up = fit(_warm_up_folder(method, source), loss, options, start=start, steps=first + steps, part=(0, first))
        start = warm_up.stage.folder.name
    part = (first, first + steps)
    trained = fit(name, *loss_of(method, how, threshold), start=start, steps=part[1], part=part)
    return replace(trained, history=[*(warm_up.history if warm_up else ()), *trained.history], warm_up=warm_up)


def _warm_up_folder(method: Method, source: str | None) -> str:
    """Name of the folder of a method's warm-up: all that methods must have in common to share it."""
    labels = source or ("truth" if "unlabelled" in method.learns_from else "labelled")
    start = f"_from_{method.start}" if method.start else ""
    return f"warm_up_{labels}{start}" + (f"_x{method.times_steps}" if method.times_steps > 1 else "")


def _fit(
    run: Run, how: Training, name: str, loss: str, options: dict[str, Any], *, source: str | None,
    learns_from: Sequence[str], start: str | None, steps: int, part: tuple[int, int],
) -> Trained:  # fmt: skip
    """Open the stage of a network, train it with one loss, write its weights.

    source: folder of the unlabelled images' label maps; start: folder of the network to go on from
    steps, part: see `training.fit`
    """
    devices.use_free_cores()
    data, settings = run.data, how.settings(run)
    if alone := loss == "supervised":
        # Twice the labelled images, so that a step looks at as many images as the others' (UniMatch does so).
        settings["batch_size"] *= 2
    settings |= {"steps": steps, "part": part, "strong_views": loss not in ("weak", "supervised")}
    stage = run.stage(
        name,
        {"segmenter": how.segmenter, **how.segmenter_options, "loss": loss, **options, **settings},
        classes=True,
        seed=how.seed,
        checkpoints=[segmenters.checkpoint(how.segmenter, **how.segmenter_options)],
        parents=[parent for parent in (source, start) if parent],
        learns_from=learns_from,
    )
    stage.register(["state.safetensors", "network.safetensors"])
    network = how.network(data.classes.num_classes)
    if start:
        files.read_weights(run.folder / start / "network.safetensors", network)
    history = training.fit(
        network,
        losses.build(loss, **options),
        run.images if "unlabelled" in learns_from else data.labelled,
        () if alone else data.unlabelled,
        pseudo_label=(lambda sample: run.label_of(source, sample)) if source else None,
        device=run.chip,
        workers=how.workers,
        state_file=stage.folder / "state.safetensors",
        progress=name.removeprefix("network_") if store.progress_shown() else None,
        **settings,
    )
    files.write_weights(stage.folder / "network.safetensors", network)
    return Trained(stage.finish(steps=part[1] - part[0]), network, history)


@stage_function
def predict(run: Run, training: Training, name: str, *, network: str, splits: Sequence[str]) -> store.Stage:
    """The label maps of a trained network on whole, undisturbed images: NAME/ID.png.

    network: folder of the network, such as refined; splits: such as val
    """
    samples = [sample for split in splits for sample in getattr(run.data, split)]
    stage = run.stage(name, {}, parents=[network])
    make = _lazily(lambda: _predictor(run, training, network))
    return run.fill_labels(stage, samples, read=Sample.image, make=make)


def _predictor(run: Run, how: Training, network: str) -> Callable:
    model = how.network(run.data.classes.num_classes)
    files.read_weights(run.folder / network / "network.safetensors", model)
    options = {"precision": devices.precision(how.precision, run.chip), "channels_last": how.channels_last}
    return lambda images: [found.label for found in training.predict(model, images, device=run.chip, **options)]


def predict_all(run: Run, training: Training, *, methods: Sequence[str], evaluated: Sequence[str]) -> list[str]:
    """The label maps of all networks on the splits `evaluated`; that of `direct` relabels the unlabelled images too.

    returns: the methods
    """
    networks = {method: method_of(method).network or f"network_{method}" for method in methods}
    for method, network in networks.items():
        predict(run, training, f"predictions_{method}", network=network, splits=evaluated)
    if "direct" in methods:
        predict(run, training, "labels_enhanced_zero_shot", network="network_direct", splits=["unlabelled"])
    return list(networks)


def relabel(run: Run, training: Training) -> store.Stage:
    """Paper A's enhanced labels: the refined network labels the unlabelled images. labels_enhanced/ID.png."""
    return predict(run, training, "labels_enhanced", network="refined", splits=["unlabelled"])


def sharpen(run: Run, *, labeller: str, borders_too: Sequence[str] | None = ()) -> list[store.Stage]:
    """SAM's borders for the enhanced labels: paper B's rule chooses masks by them. labels_enhanced_sepl/ID.png.

    borders_too: what else to make, to compare: "official", by the rule of paper B's code instead of that of its text;
        "zero_shot", of the labels from before the refinement, to know whether the network has a part in the gain
    """
    also = {"official": ("labels_enhanced", "_official", "official"), "zero_shot": (labels_of(labeller), "", "paper")}
    passes = [also[choices.one_of(name, list(also), "entry of borders_too")] for name in borders_too or ()]
    if run.data.classes.background != 0:
        return []  # the rule needs background to be class 0
    return [
        merge(run, f"{cue}_sepl{ending}", cue=cue, mode=mode, splits=["unlabelled"])
        for cue, ending, mode in [("labels_enhanced", "", "paper"), *passes]
    ]


def sharpen_predictions(run: Run, methods: Sequence[str], *, evaluated: Sequence[str]) -> list[store.Stage]:
    """SAM's borders for the predictions of methods, by paper B's rule as in `sharpen`: predictions_METHOD_sepl/ID.png.

    So SAM is asked when a network is used, too, which costs more than the network. The masks are those that notebook 02
    made of the images. Nothing is made if class 0 is not the background: the rule needs one.
    """
    if run.data.classes.background != 0:
        return []
    without = [one.id for one in run.images_of(evaluated) if not (run.folder / "masks" / f"{one.id}.json").exists()]
    if methods and without:
        remedy = f"run notebook 02 with evaluated = {list(evaluated)}, or leave `sharpened` empty"
        raise ValueError(f"{len(without)} images have no masks to take borders from, e.g. {without[0]}: {remedy}")
    of = {f"predictions_{method}": f"predictions_{method}_sepl" for method in methods}
    return [merge(run, name, cue=cue, mode="paper", splits=evaluated) for cue, name in of.items()]


@stage_function
def merge(
    run: Run, name: str, *, cue: str, mode: str, splits: Sequence[str], supervision: str | None = None
) -> store.Stage:
    """Paper B: label maps as the cue that chooses and joins SAM's masks. NAME/ID.png; see `generators.sepl.merge`.

    cue: folder of the label maps; supervision: noted with the result, such as "tags"
    """
    samples = [sample for split in splits for sample in getattr(run.data, split)]
    num_classes = run.data.classes.num_classes

    def cue_and_masks(sample: Sample) -> tuple[np.ndarray, np.ndarray]:
        label = run.label_of(cue, sample)
        return label, run.masks_of(sample, label.shape).dense()

    parameters = {"mode": mode} | ({"supervision": supervision} if supervision else {})
    stage = run.stage(name, parameters, parents=[cue, "masks"])

    def chosen(pairs: list) -> list[np.ndarray]:
        return [sepl.merge(*pair, num_classes, mode) for pair in pairs]

    return run.fill_labels(stage, samples, read=cue_and_masks, make=chosen, at_once=1)


def merge_cams(run: Run, *, cam_sources: Sequence[str], source: str) -> store.Stage:
    """Paper B's labels: the CAM labels of a source choose SAM's masks, by the authors' code. labels_sepl*/ID.png."""
    cue = cam_folder(cam_sources, source)
    name = cue.replace("cam", "sepl", 1)
    return merge(run, name, cue=cue, mode="official", splits=["labelled", "unlabelled"], supervision="tags")


# Papers B and C: labels from tags and boxes


def _tags_sha256(run: Run) -> str:
    return store.digest({sample.id: list(sample.tags()) for sample in run.images})


@stage_function
def cam_network(
    run: Run, *, classifier_options: dict, classifier_steps: int, classifier_batch_size: int,
    classifier_crop_size: int, classifier_learning_rate: float, seed: int,
) -> store.Stage:  # fmt: skip
    """A classifier that learns the tags of all images, and nothing else of them: cam_network/network.safetensors."""
    settings = classifier_options | {"steps": classifier_steps, "batch_size": classifier_batch_size}
    settings |= {"crop_size": classifier_crop_size, "lr": classifier_learning_rate, "channels_last": True}
    stage = run.stage(
        "cam_network",
        {"supervision": "tags", "tags_sha256": _tags_sha256(run), **settings},
        classes=True,
        seed=seed,
        checkpoints=[segmenters.checkpoint("deeplabv3plus", **{"encoder": "resnet50", **classifier_options})],
        learns_from=["labelled"],
    )
    stage.register(["state.safetensors", "network.safetensors"])
    with distributed.main_first():  # one process learns, the others take what it has learnt
        how = settings | {"state_file": stage.folder / "state.safetensors", "seed": seed, "device": run.chip}
        how |= {"progress": "tags" if store.progress_shown() else None}
        classifier.train(run.images, run.data.classes, stage.folder / "network.safetensors", **how)
    return stage.finish(images=len(run.images))


@dataclass(frozen=True, eq=False)
class Cams:
    """The label maps of a source of CAMs, the source itself, and how its background threshold was chosen."""

    stage: store.Stage
    cue: cue_maps.ScoredCue
    choice: ThresholdChoice | None


def cam_folder(cam_sources: Sequence[str], source: str) -> str:
    """Folder of the label maps of a source of CAMs; the first source is the labeller `cam`."""
    return "labels_cam" if source == cam_sources[0] else f"labels_cam_{source}"


@stage_function
def cams(run: Run, name: str, *, source: str, encoder: str, encoder_options: dict) -> Cams:
    """Label maps by class activation maps: NAME/ID.png. The labelled images choose the background threshold."""
    data, learnt = run.data, source == "classifier"
    if learnt:
        options = {"weights": run.folder / "cam_network" / "network.safetensors", "device": run.chip}
    else:
        options = {"encoder": encoder_of(run, encoder, encoder_options)}
    cue, choice = cue_maps.build(source, data.classes, **options), None
    if data.labelled:
        truths = [sample.truth() for sample in data.labelled]
        choice = cue_maps.choose_threshold(
            cue.scores(data.labelled), truths, num_classes=data.classes.num_classes, background=data.classes.background
        )
        cue.threshold = choice.threshold
    how = {"source": source, "threshold": cue.threshold, "supervision": "tags"}
    if not learnt:
        how |= {"encoder": encoder, **encoder_options, "tags_sha256": _tags_sha256(run)}
    weights = [] if learnt else [_checkpoint(encoders, encoder, encoder_options)]
    stage = run.stage(name, how, classes=True, checkpoints=weights, parents=["cam_network"] if learnt else [])
    return Cams(run.fill_labels(stage, run.images, read=lambda sample: sample, make=cue), cue, choice)


@stage_function
def boxes(
    run: Run, *, detector: str, detector_options: dict, encoder: str, encoder_options: dict, mask_options: dict
) -> store.Stage:
    """Paper C's labels: CLIP tags an image, a detector boxes the tags, SAM cuts them out. labels_boxes/ID.png, .json.

    mask_options: of the mask model; SAM takes its weights from them
    """
    if encoder_options.get("features") == "corr":  # which needs masks, and here are none yet
        encoder_options = encoder_options | {"features": "gem"}
    name, encode = "labels_boxes", encoder_of(run, encoder, encoder_options)
    of_detector = {"encoder": encode, **detector_options} if detector == "clip_boxes" else detector_options
    if "device" in signature(choices.choice(detectors.__name__, detector, "detector").build).parameters:
        of_detector = {"device": str(run.chip), **of_detector}
    of_sam = {key: mask_options[key] for key in ("checkpoint", "model") if key in mask_options}
    weights = [_checkpoint(mask_models, "sam", mask_options), _checkpoint(encoders, encoder, encoder_options)]
    if detector == "grounding_dino":
        weights.append(detector_options.get("checkpoint", "grounding_dino_tiny"))
    models = {"encoder": {"name": encoder, **encoder_options}, "masks": of_sam}
    parameters = {"detector": detector, **detector_options, **models, "supervision": "none"}
    stage = run.stage(name, parameters, classes=True, checkpoints=weights)
    options = {"tags_options": {"encoder": encode}, "detector": detector, "detector_options": of_detector}
    options |= {"masks_options": of_sam | {"device": str(run.chip)}}
    generate = _lazily(partial(generators.build, "boxes", run.data.classes, **options))

    def write(id: str, found: Any) -> None:
        record = {"tags": found.tags.classes.tolist(), "boxes": found.boxes.xyxy.tolist()}
        record |= {"classes": found.boxes.classes.tolist(), "scores": found.boxes.scores.tolist()}
        files.write_json(stage.path(id, ".json"), record)
        run.write_label(name, id, found.label)

    stage.fill(run.images, [".png", ".json"], read=Sample.image, make=generate, write=write, at_once=run.images_at_once)
    records = [files.read_json(stage.path(sample.id, ".json")) for sample in run.images]
    without_box = sum(len(set(record["tags"]) - set(record["classes"])) for record in records)
    tags = sum(len(record["tags"]) for record in records)
    return stage.finish(images=len(records), tags=tags, tags_without_box=without_box)


@stage_function
def concepts(run: Run, *, concept_options: dict) -> store.Stage:
    """Labeller D's labels, from SAM 3 asked by words: labels_concepts/ID.png.

    What it said stays in concepts/ID.png, as colours: the class of the surest word, and 255 x its score. The threshold
    is that of the options; without one, the labelled images choose it.
    """
    data, options = run.data, {"threshold": None} | concept_options
    threshold = options.pop("threshold")
    said = run.stage("concepts", options, classes=True, checkpoints=[checkpoint_of(sam3.build, options)])
    build = partial(generators.build, "concepts", data.classes, device=str(run.chip))

    def write(id: str, found: PseudoLabel) -> None:
        parts = found.label, np.rint(255 * found.confidence).astype(np.uint8), np.zeros_like(found.label)
        files.write_image(said.path(id, ".png"), np.dstack(parts))

    make = _lazily(lambda: build(threshold=None, **options))
    said.fill(run.images, [".png"], read=Sample.image, make=make, write=write, alone=True)
    said.finish(images=len(run.images))

    def stored(sample: Sample) -> PseudoLabel:
        parts = files.read_image(said.path(sample.id, ".png"))
        return PseudoLabel(parts[..., 0], parts[..., 1] / np.float32(255))

    if threshold is None and data.labelled and data.classes.background is not None:
        truths, how = [sample.truth() for sample in data.labelled], {"num_classes": data.classes.num_classes}
        found = sam3.choose_threshold([*map(stored, data.labelled)], truths, background=data.classes.background, **how)
        threshold = found.threshold
    threshold = sam3.DEFAULT_THRESHOLD if threshold is None else threshold
    stage = run.stage("labels_concepts", {"threshold": threshold, "supervision": "none"}, parents=["concepts"])

    def above(batch: list[PseudoLabel]) -> list[np.ndarray]:
        return [sam3.named(each, threshold, data.classes.background).label for each in batch]

    return run.fill_labels(stage, run.images, read=stored, make=above)


@dataclass(frozen=True)
class Labeller:
    """A labeller in notebook 06."""

    row: Row
    supervision: str  # what a person gave: tags or none
    needs: tuple[str, ...]  # folders of the stages that it takes


def labellers_of(
    cam_sources: Sequence[str], detector: str, concept_options: dict | None = None, few_shot: dict | None = None
) -> dict[str, Labeller]:
    """Papers A, B and C, few-shot labels and SAM 3 if there are options for them, and the vote: by their folders."""

    def entry(labeller: str, options: dict, supervision: str, *needs: str) -> Labeller:
        title = " ".join([labeller, *options.values()])
        return Labeller(Row("zero_shot", labeller, labeller, options, title), supervision, needs)

    found = {"labels_zero_shot": entry("segment_match", {}, "none", "masks", "segments", "labels_zero_shot")}
    if few_shot is not None:
        found["labels_few_shot"] = entry("few_shot", {}, "none", "masks", "segments", "labels_few_shot")
    for source in cam_sources:
        cue = cam_folder(cam_sources, source)
        merged, needs = cue.replace("cam", "sepl", 1), [*(["cam_network"] if source == "classifier" else []), cue]
        found[cue] = entry("cam", {"cam": source}, "tags", *needs)
        found[merged] = entry("sepl", {"cam": source}, "tags", *needs, "masks", merged)
    found["labels_boxes"] = entry("boxes", {"detector": detector}, "none", "labels_boxes")
    if concept_options is not None:
        found["labels_concepts"] = entry("concepts", {}, "none", "concepts", "labels_concepts")
    members = voters(cam_sources, concept_options, few_shot)
    needs = {name for member in members for name in found[member].needs} | {"labels_ensemble"}
    supervision = "tags" if cam_sources else "none"
    found["labels_ensemble"] = entry("ensemble", {}, supervision, *sorted(needs))
    return found


def voters(cam_sources: Sequence[str], concept_options: dict | None = None, few_shot: dict | None = None) -> list[str]:
    """Folders of the labellers that vote: A, B where there are tags, C, and SAM 3 unless its weights are random.

    few_shot: if not None, A votes with its few-shot labels
    """
    asked = concept_options is not None and not knows_nothing(concept_options)
    first = LABELLERS["segment_match" if few_shot is None else "few_shot"]
    return [first, *["labels_sepl"] * bool(cam_sources), "labels_boxes", *["labels_concepts"] * asked]


def knows_nothing(concept_options: dict) -> bool:
    """Whether labeller D only shows its path: a SAM 3 with random weights, whose scores measure nothing."""
    return checkpoint_of(sam3.build, concept_options) is None


@stage_function
def vote(
    run: Run, *, cam_sources: Sequence[str], concept_options: dict | None = None, few_shot: dict | None = None
) -> store.Stage:
    """A vote of labellers in which the ones that agree with the others count more: labels_ensemble/ID.png."""
    num_classes, members = run.data.classes.num_classes, voters(cam_sources, concept_options, few_shot)
    stage = run.stage("labels_ensemble", {"supervision": "tags" if cam_sources else "none"}, parents=members)

    def elect(batch: list) -> list[np.ndarray]:
        weights = [trust.support(trust.agreement(maps, num_classes)) for maps in batch]
        return [trust.vote(*pair, num_classes).label for pair in zip(batch, weights, strict=True)]

    def maps_of(sample: Sample) -> list[np.ndarray]:
        return [run.label_of(member, sample) for member in members]

    return run.fill_labels(stage, run.images, read=maps_of, make=elect, at_once=1)


# The whole pipeline


def everything(run: Run, parameters: dict[str, Any]) -> Iterator[str]:
    """Do all stages of notebooks 02, 03, 04 and 06 that the parameters of a run ask for; give the name of each.

    parameters: of the notebooks, by name. Which are there says which stages are meant
    """

    def call(function: Callable, *args: Any, **more: Any) -> str:
        own = {name: parameters[name] for name in [*signature(function).parameters][1:] if name in parameters}
        function(run, *args, **own | more)
        return function.__name__

    of_paper_a = {"rule": (masks, segments, labels), "sure_from": (sure_labels,)}  # by the parameter that asks for them
    of_paper_a |= {"few_shot": (few_shot_labels,), "label_filter": (filtered_labels,)}
    for asks, functions in of_paper_a.items():
        if parameters.get(asks) is not None:
            yield from map(call, functions)
    if "cam_sources" in parameters:
        sources = parameters["cam_sources"]
        if "classifier" in sources:
            yield call(cam_network)
        for source in sources:
            name = cam_folder(sources, source)
            yield f"{call(cams, name=name, source=source)} {source}"
            yield call(merge_cams, cam_sources=sources, source=source)
        yield call(boxes)
        if parameters.get("concept_options") is not None:
            yield call(concepts)
        yield call(vote, cam_sources=sources)
    if {"refine_target", "methods"} & parameters.keys():
        how = Training(**{name: parameters[name] for name in signature(Training).parameters if name in parameters})
    if "refine_target" in parameters:
        yield from (call(function, training=how) for function in (refine, relabel))
        yield call(sharpen)
    for method in (name for name in parameters.get("methods", ()) if not method_of(name).network):
        yield f"{call(train, training=how, method=method)} {method}"
    if "methods" in parameters:
        yield call(predict_all, training=how)
    if chosen := [name for name in parameters.get("sharpened", ()) if name in parameters["methods"]]:
        yield call(sharpen_predictions, methods=chosen)


# Scores: the only functions here that read the truth of images that are not labelled


@dataclass(frozen=True, eq=False)
class Scored:
    """Counts of a folder of label maps against the truth."""

    made: dict[str, str]  # the folder, and what its label maps are made from
    matrices: np.ndarray  # (M, K, K+1), the confusion matrix of each image
    kinds: np.ndarray  # (K, 5) pixels by kind of error, see diagnosis.OUTCOMES
    borders: np.ndarray  # (K, 4) border pixels, see diagnosis.boundaries
    background: int | None

    @property
    def matrix(self) -> np.ndarray:
        """(K, K+1) of all images."""
        return self.matrices.sum(axis=0)

    @property
    def scores(self) -> Scores:
        """With uncovered pixels as background."""
        return metrics.scores(self.matrix, background=self.background)


def score(run: Run, name: str, samples: Sequence[Sample]) -> Scored:
    """Compare the label maps of a folder with the truth of these images."""
    num_classes, background = run.data.classes.num_classes, run.data.classes.background
    matrices, kinds, borders = [], 0, 0
    for sample in store.progress(samples, what=name):
        pair = sample.truth(), run.label_of(name, sample)
        matrices.append(metrics.confusion(*pair, num_classes))
        kinds = kinds + diagnosis.error_types(*pair, num_classes, background=background)
        borders = borders + diagnosis.boundaries(*pair, num_classes, background=background)
    made = {"folder": name, "sha256": store.made_from(run.folder / name)}
    return Scored(made, np.stack(matrices), kinds, borders, background)


def score_all(run: Run, *, labeller: str, evaluated: Sequence[str], seed: int) -> tuple[dict[str, Scored], list[dict]]:
    """Score each folder of label maps of a run that its last settings made; of the others, say why not.

    Labels are scored on the unlabelled images, predictions on the splits `evaluated`, on images with a truth.

    returns: the counts by folder ("predictions_paper_a", on the test images "predictions_paper_a/test"), and a row of
        summary.json for each, in the same order
    """
    notes = run.folder / "04_segmenter.json"
    trained = files.read_json(notes)["methods"] if notes.exists() else []
    judged = {split: [sample for sample in getattr(run.data, split) if sample.read_truth] for split in SPLITS}
    scored, rows = {}, []
    for name, row in rows_of(run.folder, labeller).items():
        if not (run.folder / name / "manifest.json").exists():
            continue
        reason = "notebook 04 did not train it when it ran last"
        if row.trained_by is None or row.trained_by in trained:
            reason = store.outdated(run.folder / name, run.data)
        if reason:
            print(f"{name} is left out: {reason}")
            continue
        seconds = files.read_json(run.folder / name / "manifest.json")["wall_seconds"]
        for split in evaluated if name.startswith("predictions_") else ["unlabelled"]:
            if judged[split]:
                key, ending = (f"{name}/test", ", test") if split == "test" else (name, "")
                scored[key] = score(run, name, judged[split])
                rows.append(table_row(run, row, scored[key], split=split, seed=seed, seconds=seconds))
                rows[-1]["name"] += ending
    return scored, rows


def table_row(run: Run, row: Row, found: Scored, *, split: str, seed: int, seconds: float) -> dict[str, Any]:
    """A row of summary.json."""
    scores = found.scores
    return {
        "stage": row.stage,
        "method": row.method,
        "labels": row.labels,
        "options": row.options,
        "name": row.title,
        "checkpoint": "last",
        "labelled": len(run.data.labelled),
        "split_name": (run.data.source or {}).get("split"),
        "seed": seed,
        "split": split,
        "images": len(found.matrices),
        "miou": scores.mean_iou,
        "classes": list(run.data.classes.names),  # in their order, which json files do not keep
        "iou": dict(zip(run.data.classes.names, scores.iou.tolist(), strict=True)),
        "coverage": scores.coverage,
        "miou_uncovered_missed": metrics.scores(found.matrix, uncovered="miss", background=found.background).mean_iou,
        "seconds": seconds,
        "made": found.made,
        "learnt_from": row.learnt_from,
    }


def still_true(run: Run, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows that another notebook wrote, without those of label maps that are other ones now; stderr names these."""
    kept = []
    for row in rows:
        made = row.get("made", {"folder": "", "sha256": ""})  # rows of earlier versions of this code say nothing
        folder = run.folder / made["folder"]
        reason = "its label maps were made again since"
        if made["sha256"] == store.made_from(folder):
            reason = store.outdated(folder, run.data)
        if reason:
            print(f"the row of {row['name']} is left out: {reason}", file=sys.stderr)
        kept += [] if reason else [row]
    return kept


if __name__ == "__main__":
    # Under `python -m` this file is called __main__; the functions of the imported module are the ones to call.
    from plg_utils import stages

    stages.main(sys.argv[1])
