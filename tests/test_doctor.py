"""The doctor on bad machines, weights and data; the cost card by hand and on a tiny run; the command."""

import os
import sys
from importlib import metadata
from types import ModuleType, SimpleNamespace

import doctor as starter
import numpy as np
import psutil
import pytest
import run
import torch
from test_pipeline import TINY, execute

from conftest import NO_IMAGES
from plg_utils import checkpoints, devices, doctor, files, stages


def only(found, level, *texts, remedy=""):
    """The only finding that is not ok: its level, texts that it holds, and a text of its remedy."""
    (finding,) = [finding for finding in found if finding.level != "ok" and "not searched" not in finding.text]
    assert finding.level == level and all(text in finding.text for text in texts), finding
    assert remedy in finding.remedy and finding.remedy, finding


def fine(found):
    assert found and {finding.level for finding in found if "not searched" not in finding.text} == {"ok"}, found


# The machine


def test_packages(monkeypatch):
    fine(doctor.packages())
    version = metadata.version
    for name, found, level, text in (
        ("torch", "2.13.0+cpu", "stop", "torch is 2.13.0+cpu, and requirements.lock has 2.11.0"),
        ("timm", "0.9", "warning", "timm is 0.9"),
        ("timm", None, "stop", "timm is not installed"),
    ):
        other = lambda asked, name=name, found=found: found or version("none") if asked == name else version(asked)  # noqa: E731
        monkeypatch.setattr(metadata, "version", other)
        only(doctor.packages(), level, text, remedy=".venv/.ready")
    monkeypatch.setattr(metadata, "version", version)
    monkeypatch.setitem(sys.modules, "clip", ModuleType("clip"))  # as the package for the clipboard
    only(doctor.packages(), "stop", "OpenAI's package", "tokenize", remedy="pip uninstall clip")


@pytest.fixture
def quiet(monkeypatch):
    """A machine without GPU, with four cores, two threads and no other work."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: range(4), raising=False)
    monkeypatch.setattr(os, "getloadavg", lambda: (4.4, 0, 0))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(devices, "has_bf16", lambda chip: False)
    monkeypatch.setattr(doctor.shutil, "which", lambda name: None)


@pytest.mark.parametrize(
    ("asked", "change", "level", "text", "remedy"),
    [
        ({"device": "cuda"}, (), "stop", "'cuda'", "-p device auto"),
        ({"device": "gpu"}, (), "stop", "'gpu' is not known", "-p device auto"),
        ({}, (doctor.shutil, "which", str), "stop", "sees no GPU", "CUDA_VISIBLE_DEVICES"),
        ({"precision": "bf16"}, (), "warning", "eight times", "-p precision auto"),
        ({"processes": 6, "batch_size": 12}, (), "warning", "6 processes share 4 cores", "-p processes 4"),
        ({"processes": 2, "batch_size": 6}, (), "stop", "batch_size 6", "-p batch_size 8"),
        ({}, (os, "getloadavg", lambda: (12.6, 0, 0)), "warning", "13 processes share 4 cores", "ask again"),
    ],
)
def test_device(asked, change, level, text, remedy, quiet, monkeypatch):
    fine(doctor.device({"device": "cpu", "precision": "fp32", "processes": 1}))
    if change:
        monkeypatch.setattr(*change)
    only(doctor.device(asked), level, text, remedy=remedy)


def test_a_gpu_that_waits_for_its_images(quiet, monkeypatch):
    monkeypatch.setattr(devices, "choose", lambda name: torch.device("cuda"))
    monkeypatch.setattr(devices, "describe", lambda chip: "a GPU")
    monkeypatch.setattr(torch, "ones", lambda *_, device: torch.zeros(()))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    only(doctor.device({"workers": 0}), "warning", "workers is 0", remedy="-p workers 4")  # there are four cores
    for trains_with_workers_or_not_at_all in ({"workers": 1}, {}):
        fine(doctor.device(trains_with_workers_or_not_at_all))
    monkeypatch.setattr(devices, "choose", lambda name: torch.device("cpu"))
    fine(doctor.device({"workers": 0}))


def test_memory(monkeypatch):
    total = {"memory MB": 2048.0, "GPU MB": np.nan}
    only(doctor.memory({"memory MB": 1024}, total), "stop", "1.1 GB free, 2.15 GB needed", remedy="batch_size")
    only(doctor.memory({"memory MB": 2500}, total), "warning", "2.6 GB free")
    fine(doctor.memory({"memory MB": 4096, "GPU MB": 10}, total))
    own = psutil.Process().memory_info().rss / 2**20
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=2**20))
    assert doctor.free_memory()["memory MB"] == pytest.approx(own + 1, rel=0.1)


def test_disks_are_added_up_and_must_be_writable(tmp_path, monkeypatch):
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda place: SimpleNamespace(free=4e9))
    places = {"PLG_RESULTS": (tmp_path / "a" / "b", 1e9), "PLG_CHECKPOINTS": (tmp_path / "c", 1e9)}
    fine(doctor.disks(places))
    only(doctor.disks(places | {"PLG_DATA": (tmp_path, 1e9)}), "warning", "4.0 GB free, 3.00 GB", remedy="PLG_RESULTS")
    only(doctor.disks(places | {"PLG_DATA": (tmp_path, 3e9)}), "stop", "4.0 GB free, 5.00 GB needed")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("")
    only(doctor.disks({"PLG_DATA": (tmp_path / "file" / "x", 0)}), "stop", "cannot be written", remedy="PLG_DATA=")


# Weights


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """A folder of checkpoints with half of SAM's ViT-L and a repository that a person filled; a download fails."""
    monkeypatch.setenv("PLG_CHECKPOINTS", str(tmp_path / "checkpoints"))
    for name in ("fetch", "_fetch_from_hub"):
        monkeypatch.setattr(checkpoints, name, lambda *_, **__: pytest.fail("the doctor downloads nothing"))
    for name in ("sam_vit_l_0b3195.pth", "hub/timm/by_hand/model.safetensors"):
        (tmp_path / "checkpoints" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "checkpoints" / name).write_bytes(b"a few bytes")
    return tmp_path / "checkpoints"


SAM_H = checkpoints.LISTED["sam_vit_h"]
WEIGHTS = [
    ({"checkpoint": "miniature_sam"}, "ok", "miniature_sam is here, verified", ""),
    ({"density": 0.7}, "ok", "miniature_sam is here", ""),  # without the key it is the model's default, not random
    ({"checkpoint": None}, "ok", "random weights", ""),
    ({"checkpoint": __file__}, "ok", "a file of your own", ""),
    ({"checkpoint": "hub:timm/by_hand"}, "ok", "is here", ""),
    ({"checkpoint": "sam_vit_h"}, "warning", f"{SAM_H.address} (2.56 GB)", "put it at {}/sam_vit_h_4b8939.pth"),
    ({"checkpoint": "sam_vit_h"}, "warning", "sam_vit_h is not here", SAM_H.sha256),
    ({"checkpoint": "sam_vit_b"}, "warning", "size is not known", ""),
    ({"checkpoint": "hub:timm/resnet50"}, "warning", "model.safetensors of timm/resnet50", "{}/hub/timm/resnet50"),
    ({"checkpoint": "sam_vit_l"}, "stop", checkpoints.LISTED["sam_vit_l"].sha256, "do as it says"),
    ({"checkpoint": "sam_vit_z"}, "stop", "neither a file nor a checkpoint", "other weights"),
]


@pytest.mark.parametrize(("options", "level", "text", "remedy"), WEIGHTS)
def test_weights(options, level, text, remedy, offline):
    (found,), absent = doctor.weights({"mask_model": "sam", "mask_options": options})
    assert (found.level, text in found.text, remedy.format(offline) in found.remedy) == (level, True, True), found
    known = checkpoints.LISTED.get(options.get("checkpoint")) if level == "warning" else None
    assert absent == ({} if level == "ok" else {"mask_options": (known and known.size) or 0})


def test_options_of_weights_that_are_wrong(monkeypatch, tmp_path):
    monkeypatch.setattr(checkpoints, "MINIATURE", tmp_path)
    only(doctor.weights({"mask_options": {}})[0], "stop", "sam.safetensors is missing", "git")
    smp = {"segmenter": "smp", "segmenter_options": {"encoder": "resnet34", "pretrained": "imagenot"}}
    only(doctor.weights(smp)[0], "stop", "imagenot", remedy="correct this option")


def test_all_weights_of_a_run(offline):
    found, absent = doctor.weights(starter.examined("compare_labellers", {})[0])
    assert [finding.text[:2] for finding in found] == ["ma", "en", "co", "cl"] and not absent
    assert "concept_options: random weights, as the run asks for" in [finding.text for finding in found]
    dino = {"detector": "grounding_dino", "detector_options": {}}
    assert list(doctor.weights(dino)[1]) == ["detector_options"]
    assert list(doctor.weights({"concept_options": {}})[1]) == ["concept_options"]
    small = doctor._without(["concept_options"], {"concept_options": {}}, NO_IMAGES)
    assert small["concept_options"] == {"checkpoint": None}
    absent = doctor.weights(starter.examined("voc_92", {})[0])[1]
    assert list(absent) == ["mask_options", "encoder_options", "segmenter_options"]


# Data


@pytest.fixture
def own(tiny_root):
    options = {"root": tiny_root, "labels": tiny_root / "SegmentationClass", "classes": ["red", "green", "blue"]}
    return {"dataset": "folder", "dataset_options": options, "labelled": 2, "seed": 0}


def test_data(own, tiny_root):
    data, found = doctor.data(own)
    fine(found)
    assert len(data.labelled) == 2 and all(sample.read_truth is None for sample in data.unlabelled)
    none = own | {"labelled": 0}
    fine(doctor.data(none)[1])
    only(doctor.data(none | {"methods": ["direct"]})[1], "stop", "no image is labelled", remedy="-p labelled N")
    only(doctor.data(own | {"dataset_options": {"rot": 1}})[1], "stop", "no option 'rot'")
    only(doctor.data(own | {"dataset_options": own["dataset_options"] | {"labels": 3}})[1], "stop", "not int")


def test_bad_files_of_the_data(own, tiny_root):
    (tiny_root / "07.png").write_bytes(b"no photo")
    data, found = doctor.data(own)
    assert data is None and doctor.measure(None, own)[0]["not measured"].iloc[-1] == "all stages"
    only(found, "stop", "cannot be loaded", "07.png", remedy="data_root")
    skip = own | {"dataset_options": own["dataset_options"] | {"on_bad_image": "skip"}}
    only(doctor.data(skip)[1], "warning", "07.png")
    files.write_label(tiny_root / "SegmentationClass" / "05.png", np.zeros((3, 3), np.uint8))
    assert "05.png" in doctor.report(doctor.data(skip)[1]).splitlines()[0]


# Costs


def test_a_line_through_two_measurements():
    assert doctor.line(2, 7.0, 5, 13.0) == (3.0, 2.0)  # loading takes 3 s, an image 2 s
    assert doctor.line(2, 7.0, 5, 6.0) == (0.0, 1.2)  # a busy machine
    assert doctor.line(5, 10.0, 5, 10.0) == (0.0, 2.0)


def made(seconds, count, *splits, steps=None, size=0):
    parameters = {"steps": steps, "batch_size": 4} if steps else {}
    peaks = {"peak_memory_mb": 500.0 + seconds, "peak_cuda_memory_mb": None}
    return {"wall_seconds": seconds, "count": count, "splits": splits, "parameters": parameters, "bytes": size, **peaks}


@pytest.fixture
def by_hand(monkeypatch):
    """A card: 10 labelled, 90 unlabelled images, 1000 steps; two points of a grid that share the masks."""
    few = {
        "masks": made(4, 2, "labelled", "unlabelled", size=2e6),
        "network_direct_long": made(3, 2, steps=2, size=3e8),
        "network_supervised_epochs": made(1, 1, steps=1),
    }
    many = {
        "masks": made(10, 5, "labelled", "unlabelled", size=5e6),
        "network_direct_long": made(6, 8, steps=8, size=3e8),
        "network_supervised_epochs": made(7, 4, steps=4),
        "segments": made(9, 9, "unlabelled"),
    }
    monkeypatch.setattr(doctor, "_time", lambda *_, **__: (few, many, 4, "RuntimeError: no such kernel"))
    data = SimpleNamespace(labelled=range(10), unlabelled=range(90))
    return doctor.measure(data, {"steps": 1000}, ["encoder_options"], {"all": 2, "masks": 1})


def test_a_cost_card_by_hand(by_hand):
    card, stop = by_hand
    stages_ = ["masks", "network_direct_long", "network_supervised_epochs", "segments", "all further stages", "total"]
    assert card["stage"].tolist() == stages_
    nan = np.nan  # masks: 100 images of 2 s; direct_long: 2 x 2000 steps of 0.5 s; epochs: 2 x 80 x 3 of 2 s
    np.testing.assert_array_equal(card["times"], [100, 4000, 480, 180, nan, nan])
    np.testing.assert_allclose(card["hours"] * 3600, [200, 2 * 2 + 2000, 960, nan, nan, 3164])
    np.testing.assert_allclose(card["GB"], [0.1, 0.6, 0, nan, nan, 0.7])
    np.testing.assert_allclose(card["memory MB"], [510, 506, 507, nan, nan, 510])
    assert card["not measured"][3] == "the weights of encoder_options are not here"
    assert card["not measured"][5] == "segments, all further stages"
    only(stop, "stop", "on a few images: RuntimeError: no such kernel", remedy="do as it says")
    shown = doctor.readable(card)
    assert shown.iloc[0].tolist()[:8] == ["masks", "100", "image", "0", "2", "3 min", "0.10", "510"]
    assert "not measured" in shown and "not measured" not in doctor.readable(card[:3])  # these say nothing there


def test_hours(by_hand):
    total = by_hand[0].iloc[-1]
    only(doctor.hours(total, 0.5), "warning", "takes 53 min, and 0.5 h are there", remedy="lower mask density")
    only(doctor.hours(total, 1), "warning", "without segments, all further stages", remedy="ask again")
    fine(doctor.hours(dict(total) | {"not measured": ""}, 1))


@pytest.mark.parametrize(
    ("name", "changes", "counts"),
    [
        ("demo", {}, {"all": 1, "masks": 1, "segments": 1}),
        # Four labellers with three seeds each. CAMs learn from tags, so they depend on the seed, but on no labeller.
        ("labeller_networks", {}, {"all": 12, "masks": 1, "segments": 1, "cam_network": 3}),
        ("labeller_networks", {"seed": 1}, {"all": 4, "masks": 1, "segments": 1, "cam_network": 1}),
        ("first_real_run", {}, {"all": 2, "masks": 1, "segments": 2, "cam_network": 1}),
        ("few_shot", {}, {"all": 9, "masks": 3, "segments": 3}),  # three class files
    ],
)
def test_points_of_a_grid_share_stages(name, changes, counts):
    """As the grid itself does: the same folders of the same points."""
    assert starter.examined(name, changes)[1] == counts


def tiny(world, **changes):
    options = {"dataset_options": {"root": str(world), "limit": 2}, "images_at_once": 2, "methods": ["direct", "mine"]}
    return starter.examined("labeller_networks", {})[0] | TINY | options | changes


def test_the_card_counts_what_a_run_does(world, tmp_path, monkeypatch):
    """All stages of paper A and of its rivals, also a method that is new, as their manifests count them."""
    monkeypatch.setitem(stages.METHODS, "mine", stages.Method("mine", "fixmatch", times_steps=3))
    monkeypatch.setenv("PLG_RESULTS", str(tmp_path))
    parameters = tiny(world, steps=4, warm_up=3, concept_options=None)
    data = doctor.data(parameters)[0]
    card, stop = doctor.measure(data, parameters, patience=-1)  # one image and step, then two
    assert not stop and not list(tmp_path.glob("*/*")) and not any(card["not measured"])
    for _ in stages.everything(stages.open_run("whole", data, images_at_once=2), parameters):
        pass
    done = {path.parent.name: files.read_json(path) for path in (tmp_path / "whole").glob("*/manifest.json")}
    counted = dict(zip(card["stage"][:-1], card["times"], strict=False))
    assert counted["network_mine"] == 12 and counted["cam_network"] == 2
    assert counted["warm_up_labels_zero_shot"] == 3 and counted["warm_up_labelled_x3"] == 9

    def count(name, manifest):
        of = manifest["counts"]
        once = name == "words"
        return manifest["parameters"]["steps"] if name == "cam_network" else of.get("steps") or once or of["images"]

    assert counted == {name: count(name, manifest) for name, manifest in done.items()}
    assert (card["memory MB"] > 100).all() and card["hours"].iloc[-1] == pytest.approx(card["hours"][:-1].sum())


def test_the_second_time_counts_unless_the_machine_is_slow(world, monkeypatch):
    seconds, asked = iter([9.0, 2.0, 4.0, 9.0, 4.0]), []

    def rehearse(whole, small, name, images, steps):
        asked.append((images, steps))
        return {"masks": made(next(seconds), images)}, ""

    monkeypatch.setattr(doctor, "_rehearse", rehearse)
    data = doctor.data(tiny(world))[0]
    few, many, steps, _ = doctor._time(data, tiny(world), [], images=8, steps=3)
    assert (few["masks"]["wall_seconds"], many["masks"]["wall_seconds"], steps) == (2.0, 4.0, 4)
    few, _, steps, _ = doctor._time(data, tiny(world), [], patience=-1)
    assert asked == [(1, 1), (1, 1), (8, 4), (1, 1), (2, 2)] and few["masks"]["wall_seconds"] == 9.0


def test_what_fails_in_a_stage_stops_the_run(world):
    parameters = tiny(world, overlap="last")
    card, stop = doctor.measure(doctor.data(parameters)[0], parameters, images=1, steps=1)
    only(stop, "stop", "on a few images: ", "'last'")
    assert card["stage"].iloc[-2] == "all further stages" and "masks" in set(card["stage"])


# The notebook and the command


def test_the_notebook(world, tmp_path, monkeypatch, offline, capsys):
    own = {name: TINY[name] for name in ("labelled", "encoder_options", "segmenter_options", "batch_size", "crop_size")}
    own |= {"dataset_options": {"root": str(world), "limit": 2}, "methods": ["direct"]}
    monkeypatch.setenv("PLG_RESULTS", str(tmp_path))
    own |= {"mask_options": {"checkpoint": "sam_vit_b"}}
    execute("09", {"run": "demo", "changes": own, "timed_images": 2, "timed_steps": 1})
    found = files.read_json(tmp_path / "doctor" / "demo" / "09_doctor.json")
    levels = {(each["level"], each["subject"]) for each in found["findings"]} - {("warning", "load")}
    assert {subject for level, subject in levels if level == "warning"} >= {"weights", "time"}
    assert not {subject for level, subject in levels if level == "stop"}
    rows = {row["stage"]: row for row in found["card"]}
    assert "mask_options" in rows["masks"]["not measured"] and rows["refined"]["times"] == 120
    assert "not measured" in found["text"] and "0 would stop the run" in capsys.readouterr().out
    assert not (tmp_path / "demo").exists()


def test_what_is_examined_of_a_run():
    parameters, _ = starter.examined("voc_92", {"steps": 100})
    assert parameters.items() >= (run.settled(run.read("voc_92"), {}) | {"steps": 100}).items()
    assert parameters["default_threshold"] == 0.2 and "mask_model" in parameters
    parameters, points = starter.examined("storybook_labelled", {"seed": 5})
    assert (parameters["labelled"], parameters["seed"], points["all"]) == (24, 5, 2)  # of 24 and 48
    for path in [*run.PUBLISHED.glob("*/parameters.yaml")][::7]:
        starter.examined(path.parent.name, {})


def test_the_command_prints_and_a_stop_is_exit_code_1(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PLG_RESULTS", str(tmp_path))
    for level, code in (("stop", 1), ("warning", 0), ("ok", 0)):

        def write(step, folder, level=level):
            assert step.parameters == {"run": "demo", "changes": {"steps": 9}, "hours": 8}
            files.write_json(folder / "09_doctor.json", {"text": "the card", "findings": [{"level": level}]})

        monkeypatch.setattr(run, "execute", write)
        assert starter.main(["demo", "-p", "hours", "8", "-p", "steps", "9"]) == code
        assert "the card" in capsys.readouterr().out


def test_a_notebook_that_stops_and_a_run_that_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PLG_RESULTS", str(tmp_path))
    monkeypatch.setattr(run, "execute", lambda step, folder: 1 / 0)
    assert starter.main([]) == 1
    said = capsys.readouterr()
    assert "division by zero" in said.err and "rm -f .venv/.ready" in said.out
    for wrong in (["nothing"], ["demo", "-p", "stebs", "3"], ["demo", "-p", "hours", "long"]):
        assert starter.main(wrong) == 2
    assert "no run 'nothing'" in capsys.readouterr().err
