"""The stages on real files: what an edit, another option or another set of photos makes again, and what it leaves."""

import json
import os
import re
import shutil
import warnings
from contextlib import suppress
from dataclasses import replace
from inspect import signature
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from safetensors import safe_open
from test_pipeline import TINY, do_stages, of_world, tiny

from conftest import colour_squares
from plg_utils import checkpoints, contents, distributed, files, masks, stages, store, training
from plg_utils.cams import classifier
from plg_utils.detectors import grounding_dino
from plg_utils.encoders import clip
from plg_utils.generators import concepts, sepl
from plg_utils.masks import sam
from plg_utils.segmenters import dpt

SINGLE = ["masks", "segments", "labels_zero_shot"]


@pytest.fixture(autouse=True)
def results(tmp_path, monkeypatch):
    monkeypatch.setenv("PLG_RESULTS", str(tmp_path / "results"))
    monkeypatch.setattr(store, "_said", set())
    return tmp_path / "results" / "tiny"


@pytest.fixture
def untrained(monkeypatch):
    """Networks stay as they start, for tests of which stages are made, with what, and from what."""
    monkeypatch.setattr(training, "fit", lambda *_, part, **__: [{"step": part[1]}])


def photos(folder, seeds, labelled=0):
    """A folder of photos and, for the first ones, their label maps; all are called alike."""
    for number, seed in enumerate(seeds):
        drawn = colour_squares(seed, side=16)
        files.write_image(folder / "photos" / f"{number}.png", drawn.image)
        if number < labelled:
            files.write_label(folder / "truth" / f"{number}.png", drawn.truth)
    return folder


def of_photos(folder, labelled=0, **more):
    options = {"root": str(folder / "photos"), "classes": ["red", "green", "blue"]}
    options |= {"labels": str(folder / "truth")} if labelled else {}
    return TINY | {"dataset": "folder", "dataset_options": options, "labelled": labelled} | more


def stamps(results):
    """Time of change of each file of a stage; of a network, which is written each time, its bytes."""
    paths = [path for path in results.glob("*/*") if path.stem not in ("manifest", "outputs", "state")]
    found = {path: path.read_bytes() if path.stem == "network" else path.stat().st_mtime_ns for path in paths}
    return {path.relative_to(results).as_posix(): stamp for path, stamp in found.items()}


def made_again(results, before):
    """Files that were written since, by folder."""
    found = {}
    for name, stamp in stamps(results).items():
        if before.get(name) != stamp:
            found.setdefault(name.split("/")[0], []).append(name.split("/")[1].split(".")[0])
    return found


def test_photos_of_the_same_names_get_labels_of_their_own(tmp_path, results, capsys):
    """Two folders one after the other in one run: the files are those of a run that never saw the first folder."""
    cats, dogs = (photos(tmp_path / name, seeds) for name, seeds in (("cats", [0, 1]), ("dogs", [2, 3])))
    do_stages(tiny(["02"], **of_photos(cats)))
    capsys.readouterr()
    do_stages(tiny(["02"], **of_photos(dogs)))
    said = capsys.readouterr().err
    for stage in SINGLE:
        assert f"{stage}: 2 of 2 images are made again" in said
    do_stages(tiny(["02"], **of_photos(dogs, run="fresh")))
    for stage in SINGLE:
        found = list((results / stage).glob("[0-9].*"))
        assert found, stage
        for path in found:
            assert path.read_bytes() == (results.parent / "fresh" / stage / path.name).read_bytes(), path


def in_classes(change):
    def edit(folder, results):
        path = folder / "classes.yaml"
        content = yaml.safe_load(path.read_text())
        change(content)
        path.write_text(yaml.safe_dump(content))

    return edit


def with_photo(number, seed, side=16, name=None):
    def edit(folder, results):
        (folder / "photos" / f"{number}.png").unlink(missing_ok=True)
        files.write_image(folder / "photos" / (name or f"{number}.png"), colour_squares(seed, side=side).image)

    return edit


CHANGES = {
    "two photos are swapped": lambda folder, results: swapped(*(folder / "photos" / f"{k}.png" for k in (1, 3))),
    "a photo is of another size": with_photo(3, 9, side=12),
    "a PNG becomes a JPEG": with_photo(3, 3, name="3.jpg"),
    "a photo is renamed": with_photo(3, 3, name="x.png"),
    "a photo is added": with_photo(9, 9),
    "a photo is removed": lambda folder, results: (folder / "photos" / "3.png").unlink(),
    "a label map is edited": lambda folder, results: shutil.copy(*(folder / "truth" / f"{k}.png" for k in (1, 0))),
    "a label map is removed": lambda folder, results: (folder / "truth" / "1.png").unlink(),
    "a photo is labelled": lambda folder, results: shutil.copy(*(folder / "truth" / f"{k}.png" for k in (1, 3))),
    "the order of the classes": in_classes(lambda content: content["classes"].reverse()),
    "the words": in_classes(lambda content: content["classes"][0].update(words=["crimson"])),
    "a colour": in_classes(lambda content: content["classes"][0].update(colour=[9, 9, 9])),
    "the templates": in_classes(lambda content: content.update(templates=["a big {}"])),
    "a stage is deleted": lambda folder, results: shutil.rmtree(results / "segments"),
    "contents.json is damaged": lambda folder, results: (results.parent / "contents.json").write_text(
        '{"a": [1, 2, 3]}'
    ),
    "the run is copied without times": lambda folder, results: (
        shutil.copytree(results, results.with_name("copy"), copy_function=shutil.copyfile),
        shutil.rmtree(results),
        results.with_name("copy").rename(results),
    ),
    "the run becomes a link": lambda folder, results: results.symlink_to(results.rename(folder / "elsewhere")),
}


def with_class_file(folder):
    """Parameters of a run on photos, some of them labelled, with classes of a file."""
    parameters = tiny(["02"], **of_photos(folder, labelled=2, threshold=None, few_shot={}, sure_from=0.01))
    parameters["dataset_options"] |= {"classes": str(folder / "classes.yaml")}
    return parameters | {"labelled": None}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with photos and a class file in `own`, and the run that they gave in `results`."""
    place = tmp_path_factory.mktemp("made")
    folder = photos(place / "own", range(5), labelled=2)
    things = [{"name": name, "words": [name, f"a {name} thing"]} for name in ("red", "green", "blue")]
    content = {"classes": things, "background": ["black"], "templates": ["a {}"]}
    (folder / "classes.yaml").write_text(yaml.safe_dump(content))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PLG_RESULTS", str(place / "results"))
        do_stages(with_class_file(folder))
    return place


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_after_a_change_a_run_has_the_files_of_one_that_begins_with_it(change, made, tmp_path, results):
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    folder = tmp_path / "own"
    parameters = with_class_file(folder)
    change(folder, results)
    contents._sums.clear()  # as in the next process
    do_stages(parameters)
    do_stages(parameters | {"run": "fresh"})
    fresh = [path for path in (results.parent / "fresh").glob("*/*") if path.stem not in ("manifest", "outputs")]
    assert len(fresh) > 20
    for path in fresh:
        assert path.read_bytes() == (results / path.parent.name / path.name).read_bytes(), path
    assert set(path.name for path in (results / "labels_few_shot").iterdir()) == {
        path.name for path in (results.parent / "fresh" / "labels_few_shot").iterdir()
    }


def test_one_edited_photo_is_one_image_in_every_stage(tmp_path, results, capsys):
    folder = photos(tmp_path / "own", range(6), labelled=4)
    parameters = tiny(["02", "03", "04"], **of_photos(folder, labelled=2, methods=["supervised"]))
    parameters["dataset_options"] |= {"val": 2}
    do_stages(parameters)
    before = stamps(results)
    unlabelled = next((results / "labels_enhanced").glob("*.png")).stem
    files.write_image(folder / "photos" / f"{unlabelled}.png", colour_squares(9, side=16).image)
    capsys.readouterr()
    do_stages(parameters)
    again = made_again(results, before)
    assert {name: again[name] for name in SINGLE} == {name: [unlabelled] for name in SINGLE}
    assert "masks: 1 of 6 images are made again" in capsys.readouterr().err
    seen = next((results / "predictions_supervised").glob("*.png")).stem
    before = stamps(results)
    files.write_image(folder / "photos" / f"{seen}.png", colour_squares(8, side=16).image)
    do_stages(parameters)
    # A val image: no network learns from it.
    of_val = ("masks", "segments", "predictions_zero_shot", "predictions_supervised")
    assert made_again(results, before) == {name: [seen] for name in of_val}
    before = stamps(results)
    here = do_stages(parameters)
    assert made_again(results, before) == {}
    path = folder / "truth" / f"{here.data.labelled[0].id}.png"
    files.write_label(path, 3 - files.read_label(path))
    do_stages(parameters)
    again = made_again(results, before)
    assert {"refined", "labels_enhanced", "network_supervised"} <= again.keys()  # which learn from it
    assert not again.keys() & set(SINGLE)  # the threshold is fixed


def test_a_stage_is_not_made_from_an_earlier_one_that_saw_another_photo(tmp_path, results, untrained):
    """Notebook 03 alone, after a photo was edited: the labels of 02 are of the photo as it was."""
    folder = photos(tmp_path / "own", range(4), labelled=2)
    parameters = tiny(["02", "03"], **of_photos(folder, labelled=2))
    do_stages(parameters)
    edited = next((results / "labels_enhanced").glob("*.png")).stem
    files.write_image(folder / "photos" / f"{edited}.png", colour_squares(9, side=16).image)
    later = {name: value for name, value in parameters.items() if name not in ("rule", "sure_from")}
    changed = (
        rf"labels_zero_shot cannot be used: segments: masks: {edited} has changed since \(photo\)\. Run the notebook"
    )
    with pytest.raises(ValueError, match=changed):
        do_stages(later)
    do_stages(parameters)


def edited(one, other):
    one.write_bytes(other.read_bytes())


def swapped(one, other):
    rest = one.rename(one.with_name("rest"))
    other.rename(one)
    rest.rename(other)


def replaced(one, other):
    shutil.copy2(other, one)


@pytest.mark.parametrize("change", [edited, swapped, replaced])
def test_a_change_that_keeps_size_and_time_is_noticed(change, tmp_path):
    """Photos out of an archive, whose times are in steps of two seconds, or from a tool that sets the time back."""
    paths = [tmp_path / name for name in ("a.bmp", "b.bmp")]
    for path, text in zip(paths, (b"1", b"2"), strict=True):
        path.write_bytes(text)
        os.utime(path, (1e9, 1e9))
    before = [contents.sha256(path) for path in paths]
    change(*paths)
    os.utime(paths[0], (1e9, 1e9))
    assert contents.sha256(paths[0]) == before[1] != before[0]


def test_what_earlier_classes_have_left_is_refused(tmp_path, results, untrained, capsys):
    """The numbers in a label map mean other classes then. Notebook 03 alone would have learnt them, silently."""
    folder = photos(tmp_path / "own", range(4), labelled=2)
    parameters = tiny(["02", "03"], **of_photos(folder, labelled=2))
    here = do_stages(parameters)
    parameters["dataset_options"] |= {"classes": ["green", "red", "blue"]}
    other = stages.run_of(parameters).data
    for name in ("labels_zero_shot", "labels_enhanced"):
        assert store.outdated(results / name, here.data) == ""
        assert "the classes, or their order, words or colours have changed" in store.outdated(results / name, other)
    later = {name: value for name, value in parameters.items() if name not in ("rule", "sure_from")}
    with pytest.raises(ValueError, match="labels_zero_shot cannot be used: the classes, or their order"):
        do_stages(later)
    do_stages(parameters)
    assert store.outdated(results / "labels_enhanced", other) == ""
    assert re.search("labels_zero_shot: .* removed; the classes, or their order, words or col", capsys.readouterr().err)


def test_what_is_made_from_outdated_labels_is_refused_before_it_is_trained(world, results, untrained):
    """Notebook 04 alone, after 02 had another threshold: the enhanced labels are of the labels before."""
    parameters = tiny(["02", "03", "04"], **of_world(world, methods=["paper_a_plain"]))
    do_stages(parameters)
    do_stages(tiny(["02"], **of_world(world, threshold=0.9)))
    later = {name: parameters[name] for name in tiny(["04"])}
    with pytest.raises(ValueError, match="labels_enhanced cannot be used: refined: .* earlier labels_zero_shot"):
        do_stages(later)


def test_weights_of_the_same_name_are_read_again_when_they_changed(world, tmp_path, monkeypatch):
    """In a notebook that stays open, the encoder was the earlier one, while the manifest named the new weights."""
    path, here = tmp_path / "clip.pt", stages.run_of(tiny(["02"], **of_world(world)))
    monkeypatch.setattr(stages.encoders, "build", lambda *given, checkpoint, **options: path.read_bytes())
    for weights in (b"1", b"1", b"2"):
        path.write_bytes(weights)
        assert stages.encoder_of(here, "clip", {"checkpoint": str(path)}) == weights


def test_other_tags_make_the_labels_of_clip_s_cams_again(world, results):
    parameters = tiny(["02", "06"], **of_world(world, cam_sources=["clip_text"]))
    here = stages.run_of(parameters)
    options = {"source": "clip_text", "encoder": "clip", "encoder_options": parameters["encoder_options"]}
    for tags, made in ((None, 4), (None, 0), ((1, 2), 4)):
        images = [
            replace(sample, read_tags=lambda tags=tags: tags) if tags else sample for sample in here.data.unlabelled
        ]
        other = replace(here, data=replace(here.data, unlabelled=tuple(images)))
        before = stamps(results)
        stages.cams(other, "labels_cam_clip_text", **options)
        assert len(made_again(results, before).get("labels_cam_clip_text", ())) == made


def test_why_a_stage_starts_again_is_said_in_words(tmp_path, capsys, untrained):
    folder = photos(tmp_path / "own", range(5), labelled=3)
    parameters = tiny(["02", "03"], **of_photos(folder, labelled=2))
    do_stages(parameters)
    parameters["dataset_options"] |= {"val": 1}
    do_stages(parameters)
    said = capsys.readouterr().err
    assert re.search("refined: starts again, .* removed; photos or label maps have changed", said)


def test_sums_that_cannot_be_kept_or_read_cost_nothing_but_time(tmp_path, results, monkeypatch):
    """A folder of results that is another's and read-only, or a full disk: what reads it must go on."""
    (tmp_path / "a.bmp").write_bytes(b"1")
    (results.parent / "contents.json").mkdir(parents=True)  # where no file can be written, by anyone
    assert contents.sha256(tmp_path / "a.bmp") == files.sha256(tmp_path / "a.bmp")
    contents.save()


@pytest.mark.parametrize(
    ("name", "damage"), [("owner.json", Path.unlink), ("embeddings.safetensors", lambda path: path.write_bytes(b""))]
)
def test_words_that_lack_a_file_are_embedded_again(name, damage, world, results):
    parameters = tiny(["02"], **of_world(world))
    clip = {key: parameters[key] for key in ("encoder", "encoder_options")}
    before = [
        tensor.clone() for tensor in stages.words(stages.run_of(parameters), **clip)
    ]  # the first is read from the file
    damage(results / "words" / name)
    assert all(map(torch.equal, before, stages.words(stages.run_of(parameters), **clip)))


def test_points_of_a_grid_may_sign_off_what_they_share_in_any_order(world, results):
    """Masks that two splits share: the second split's manifest does not make the first one's labels outdated."""
    first = do_stages(tiny(["02"], **of_world(world, labelled=2)))
    labels = results / "labels_zero_shot"
    manifest = files.read_json(results / "masks" / "manifest.json")
    files.write_json(results / "masks" / "manifest.json", manifest | {"split_sha256": "another split"})
    assert store.outdated(labels, first.data) == ""
    files.write_json(labels / "manifest.json", files.read_json(labels / "manifest.json") | {"split_sha256": "another"})
    assert "another split" in store.outdated(labels, first.data)


def made_with(results, stage):
    return files.read_json(results / stage / "manifest.json")


def training_of(parameters):
    return stages.Training(
        **{name: parameters[name] for name in signature(stages.Training).parameters if name in parameters}
    )


def test_unimatch_v2_takes_the_place_of_unimatch_in_every_method(world, results, untrained):
    segmenter = {"segmenter": "dpt", "segmenter_options": dpt.SMOKE, "crop_size": 28, "passes": "v2"}
    methods = ["supervised", "unimatch", "direct", "paper_a"]
    parameters = tiny(["02", "03", "04"]) | of_world(world, methods=methods, steps=2, warm_up=1) | segmenter
    do_stages(parameters | {"training_options": {"ema": 0.9}})
    for name in ("refined", "network_unimatch", "network_direct", "network_paper_a", "network_supervised"):
        made = made_with(results, name)["parameters"]
        assert made["loss"] == ("supervised" if name == "network_supervised" else "unimatch_v2"), name
        assert "passes" not in made and made["segmenter"] == "dpt" and made["ema"] == 0.9
    assert made_with(results, "network_unimatch")["parameters"]["refine_target"] == "unimatch"
    assert made_with(results, "network_direct")["parameters"]["weak_weight"] == 0.5
    assert len(list((results / "predictions_paper_a").glob("*.png"))) == 2


def test_methods_with_the_same_labels_share_a_warm_up(world, results, untrained):
    methods = ["supervised", "supervised_epochs", "unimatch", "direct_long", "paper_a_plain", "paper_a", "full"]
    parameters = tiny(["02", "03", "04"], **of_world(world, methods=methods, warm_up=2, steps=3))
    here = do_stages(parameters)
    raw, soft, sharp = "labels_zero_shot", "labels_enhanced", "labels_enhanced_sepl"
    of = {  # network: its warm-up and the labels, start and images of that
        "refined": (f"warm_up_{raw}", [raw]),
        "network_supervised": ("warm_up_labelled", []),
        "network_unimatch": ("warm_up_labelled", []),
        "network_direct_long": (f"warm_up_{raw}_x2", [raw]),
        "network_paper_a_plain": (f"warm_up_{soft}", [soft]),
        "network_paper_a": (f"warm_up_{sharp}_from_refined", [sharp, "refined"]),
        "network_full": ("warm_up_truth", []),
    }
    for network, (warm_up, parents) in of.items():
        first, then = (made_with(results, name) for name in (warm_up, network))
        times = 2 if network == "network_direct_long" else 1
        assert list(first["parents"]) == parents
        assert list(then["parents"]) == [*parents[:1], warm_up]
        assert (first["counts"]["steps"], then["counts"]["steps"]) == (2 * times, 3 * times)
        assert first["parameters"]["steps"] == then["parameters"]["steps"] == 5 * times  # one decay of the rate
        assert (first["parameters"]["part"], then["parameters"]["part"]) == ([0, 2 * times], [2 * times, 5 * times])
        assert first["parameters"]["loss"] == ("weak" if parents else "supervised")
        assert first["learns_from"] == then["learns_from"]
        is_label = then["parameters"].get("refine_target") == "zero_shot"  # not the network's own prediction
        assert then["parameters"].get("weak_weight") == (0.5 if is_label else None)
        settings = ("lr", "optimizer", "crop_size", "scale", "momentum", "segmenter")
        assert all(first["parameters"].get(name) == then["parameters"].get(name) for name in settings)
    assert {path.name for path in results.glob("warm_up*")} == {warm_up for warm_up, _ in of.values()}
    assert made_with(results, "network_supervised_epochs")["parents"] == {}
    found = stages.train(here, training_of(parameters), "paper_a", labeller="segment_match", confidence=0.95)
    assert [row["step"] for row in found.history] == [2, 5]
    assert len(found.seconds) == 2 and min(found.seconds) > 0


def test_without_a_background_paper_a_learns_the_network_s_own_labels(world, results, untrained):
    """SEPL's rule needs one, so there are no labels with SAM's borders to learn from."""
    parameters = tiny(["02", "03", "04"], **of_world(world, methods=["paper_a"], warm_up=None))
    here = do_stages(parameters)
    shutil.rmtree(results / "labels_enhanced_sepl")
    bare = replace(here, data=replace(here.data, classes=replace(here.data.classes, background=None)))
    assert stages.sharpen(bare, labeller="segment_match") == []
    list(stages.everything(bare, {name: parameters[name] for name in tiny(["02", "03"])}))
    stages.train(bare, training_of(parameters), "paper_a", labeller="segment_match", confidence=0.95)
    assert list(made_with(results, "network_paper_a")["parents"]) == ["labels_enhanced", "refined"]


def test_a_network_goes_on_from_its_warm_up_and_without_one_from_its_own_start(world, results):
    parameters = tiny(["02", "04"], **of_world(world, methods=["unimatch"], warm_up=2))
    here, digests = do_stages(parameters), []
    for warm_up in (2, None):
        how = training_of(parameters | {"warm_up": warm_up})
        stages.train(here, how, "unimatch", labeller="segment_match", confidence=0.95)
        with safe_open(results / "network_unimatch" / "state.safetensors", framework="np") as file:
            digests.append(json.loads(file.metadata()["training"])["settings"]["initial weights"])
    fresh = training_of(parameters).network(here.data.classes.num_classes)
    warm = training_of(parameters).network(here.data.classes.num_classes)
    files.read_weights(results / "warm_up_labelled" / "network.safetensors", warm)
    assert digests == [training.digest(warm), training.digest(fresh)] and digests[0] != digests[1]


def test_photos_read_at_another_size_are_other_photos(tmp_path, results, capsys):
    root = tmp_path / "camvid"
    for split in ("train", "val"):
        for seed in range(2):
            drawn = colour_squares(seed, side=16)
            files.write_image(root / split / f"{split}{seed}.png", drawn.image)
            files.write_label(root / f"{split}annot" / f"{split}{seed}.png", drawn.truth)
    given = TINY | {"dataset": "camvid", "labelled": 1, "methods": ["supervised"]}
    for shrink, again in ((1, 0), (2, 4), (2, 0)):
        capsys.readouterr()
        do_stages(tiny(["02"], **given, dataset_options={"root": str(root), "shrink": shrink}))
        said = capsys.readouterr().err
        assert (f"masks: {again} of 4 images are made again" in said) == bool(again)
    size = files.read_masks(next((results / "masks").glob("train*.json"))).size
    assert size == (16, 24)


def test_other_options_of_the_encoder_make_boxes_and_cams_again(world, results, capsys):
    given = of_world(world, cam_sources=["clip_text"])
    do_stages(tiny(["02", "06"], **given))
    before = stamps(results)
    capsys.readouterr()
    do_stages(tiny(["02", "06"], **given | {"encoder_options": {"checkpoint": None, "depth": 3, "features": "corr"}}))
    again = made_again(results, before)
    assert set(again.pop("words")) == {"owner", "embeddings"}
    counts = dict.fromkeys(["labels_zero_shot", "labels_cam", "labels_sepl", "labels_boxes", "labels_ensemble"], 4)
    counts |= {"segments": 4 + 2, "predictions_zero_shot": 2}  # of val images, too
    assert {name: len(set(ids)) for name, ids in again.items()} == counts
    assert "labels_boxes: starts again" in capsys.readouterr().err
    assert made_with(results, "segments")["parameters"]["features"] == "corr"  # by masks, which boxes do without
    assert made_with(results, "labels_boxes")["parameters"]["encoder"]["features"] == "gem"


def test_every_model_gets_the_device_of_the_run(world, results, monkeypatch):
    """Detector and CAM classifier ran on the CPU of machines with a GPU."""
    parameters = tiny(["02", "06"], **of_world(world, cam_sources=["classifier"]))
    here, found = stages.run_of(parameters), {}
    do_stages(tiny(["02"], **of_world(world)))
    vars(here)["chip"] = torch.device("meta")
    monkeypatch.setattr(checkpoints, "sha256_of", lambda _: "0")  # no download

    def watched(module):
        def build(*given, device="cpu", **options):
            found[module.__name__.rpartition(".")[2]] = str(device)
            if module is not clip:
                raise InterruptedError
            return SimpleNamespace(images=None, class_embeddings=lambda _: (torch.eye(3), torch.arange(3)))

        monkeypatch.setattr(module, "build", build)

    for module in (sam, clip, grounding_dino, classifier, concepts):
        watched(module)
    options = {"encoder": "clip", "encoder_options": {}}
    monkeypatch.setattr(classifier, "train", lambda *_, device, **__: found.update(train=str(device)))
    of_classifier = {name: parameters[name] for name in parameters if name.startswith("classifier")}
    stages.cam_network(here, **of_classifier, seed=0)
    (results / "cam_network" / "network.safetensors").touch()
    for stage in (
        lambda: stages.segments(here, **options, embedding_options={}),
        lambda: stages.boxes(here, detector="grounding_dino", detector_options={}, mask_options={}, **options),
        lambda: stages.cams(here, "labels_cam", source="classifier", **options),
        lambda: stages.concepts(here, concept_options={"checkpoint": None}),
        lambda: stages.masks(here, mask_model="sam", mask_options={}),
    ):
        with suppress(InterruptedError, TypeError):
            stage()
    assert found == dict.fromkeys(["sam", "clip", "grounding_dino", "train", "classifier", "concepts"], "meta")


def test_a_confidence_that_smoothed_targets_do_not_reach_is_told(world, results, untrained):
    parameters = tiny(["02", "03"], **of_world(world, refine_confidence=0.92))
    with pytest.warns(UserWarning, match="refine_confidence 0.92 is out of reach: .* to 0.909 at most"):
        do_stages(parameters)
    with warnings.catch_warnings(action="error", category=UserWarning):
        do_stages(parameters | {"refine_confidence": 0.9})
        do_stages(parameters | {"refine_confidence": 0.92, "smoothing": 0.0})
        do_stages(parameters | {"refine_target": "zero_shot"})


def test_val_images_are_labelled_by_words_as_the_others_are(world, results):
    """What a network is compared with; the batches of the others, and so their last bits, stay as they were."""
    parameters = tiny(["02"], **of_world(world, few_shot={}, images_at_once=3))
    do_stages(parameters | {"evaluated": []})
    before = {path: path.read_bytes() for path in results.glob("*/*.*") if path.suffix != ".json"}
    here = do_stages(parameters)
    assert all(path.read_bytes() == content for path, content in before.items())
    val = {sample.id for sample in here.data.val}
    for name in ("masks", "segments", "predictions_zero_shot", "predictions_few_shot"):
        assert {path.stem for path in (results / name).glob("*[0-9].*")} - {s.id for s in here.images} == val
    data = replace(here.data, unlabelled=here.data.val, val=())
    shown = replace(here, name="shown", data=data)
    list(stages.everything(shown, parameters | {"evaluated": []}))
    for sample in data.unlabelled:
        np.testing.assert_array_equal(
            shown.label_of("labels_zero_shot", sample), here.label_of("predictions_zero_shot", sample)
        )
    do_stages(parameters | {"evaluated": [], "threshold": 0.9})
    assert (
        store.outdated(results / "predictions_zero_shot", here.data) == "it was made from an earlier labels_zero_shot"
    )
    with pytest.raises(ValueError, match="evaluated.*'train'|'train'.*evaluated"):
        do_stages(parameters | {"evaluated": ["train"]})


def test_words_are_embedded_once_and_others_anew(world, results, monkeypatch):
    asked = []

    def embed(classes):
        asked.append(classes)
        owner = torch.tensor([index for index, words in enumerate(classes.words) for _ in words])
        return torch.eye(len(owner)), owner

    monkeypatch.setattr(stages, "encoder_of", lambda *_: SimpleNamespace(class_embeddings=embed))
    here = stages.run_of(tiny(["02"], **of_world(world)))
    classes = here.data.classes
    said = replace(classes, templates=("a {}",))
    more = replace(classes, words=(("sky", "sea"), *classes.words[1:]))
    for known in (classes, classes, said, more, more):
        run = replace(here, data=replace(here.data, classes=known))
        found, owner = stages.words(run, encoder="clip", encoder_options={"checkpoint": None})
        words = [(index, word) for index, of_class in enumerate(known.words) for word in of_class]
        assert found.equal(torch.eye(len(words))) and owner.tolist() == [index for index, _ in words]
    assert asked == [classes, said, more]


def test_several_processes_need_a_data_set_that_can_be_loaded_again(world):
    here = stages.run_of(tiny(["02"], **of_world(world)))
    alone = replace(here, processes=2, data=replace(here.data, source=None))
    with pytest.raises(ValueError, match="datasets.load"):
        stages.masks(alone, mask_model="sam", mask_options=TINY["mask_options"])
    with pytest.raises(ValueError, match="processes is 0"):
        stages.open_run("tiny", here.data, processes=0)
    assert distributed.count() == 1


def test_predictions_get_the_borders_of_the_masks_of_val_images(world, results, monkeypatch):
    """Paper B's rule on the predictions."""
    modes, merge = set(), sepl.merge
    monkeypatch.setattr(sepl, "merge", lambda *given: modes.add(given[3]) or merge(*given))
    parameters = tiny(["02", "04"], **of_world(world, methods=["supervised"], sharpened=["supervised", "unimatch"]))
    here = do_stages(parameters)
    find = masks.build("sam", **parameters["mask_options"])
    for sample in here.data.val:
        plain = here.label_of("predictions_supervised", sample)
        expected = sepl.merge(plain, find([sample.image()])[0].dense(), here.data.classes.num_classes, "paper")
        np.testing.assert_array_equal(here.label_of("predictions_supervised_sepl", sample), expected)
    no_background = replace(here.data, classes=replace(here.data.classes, background=None))
    bare = replace(here, data=no_background)
    assert stages.sharpen_predictions(bare, ["supervised"], evaluated=["val"]) == []  # the rule needs one
    assert modes == {"paper"}  # the rule of its text, as for the enhanced labels
    with pytest.raises(ValueError, match=r"no masks .*: run notebook 02 with evaluated = \['val', 'test'\]"):
        stages.sharpen_predictions(here, ["supervised"], evaluated=["val", "test"])
    rows = stages.rows_of(here.folder, "segment_match")
    row = rows["predictions_supervised_sepl"]
    assert row.title == "supervised only, with SAM" and row.trained_by == "supervised"
    assert row.options == {"predictions": "SAM's borders"}
    learnt = {
        name: rows[f"predictions_{name}"].learnt_from for name in ("zero_shot", "supervised", "direct", "paper_a")
    }
    raw = "labels_zero_shot"
    assert learnt == {"zero_shot": raw, "supervised": None, "direct": raw, "paper_a": "labels_enhanced_sepl"}
    assert "predictions_supervised_sepl_sepl" not in rows
