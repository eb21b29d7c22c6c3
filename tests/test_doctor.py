"""The doctor on bad machines, the cost card on numbers small enough to count, the notebook on a tiny run."""

import ast
import inspect
import math
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import doctor as starter
import grid
import numpy as np
import pytest
import run
from test_pipeline import TINY, execute

from plg_utils import checkpoints, costs, datasets, doctor, files, masks
from plg_utils.costs import Cost, Count
from plg_utils.doctor import Driver, Finding, Torch

GOOD = Torch("2.11.0+cu130", "13.0", True, (9, 0), ("sm_75", "sm_80", "sm_90", "sm_120"))
SHUT = Torch("2.11.0+cu130", "13.0")
H100 = Driver("580.65.06", ("NVIDIA H100",))


def one(found, level, *texts, fix=""):
    """The only finding: its level, texts that it holds, a text of its fix."""
    (finding,) = found
    assert finding.level == level, finding
    assert all(text in finding.found for text in texts), finding
    assert fix in finding.fix, finding
    assert level == "note" or finding.fix.strip()
    return finding


# Findings


@pytest.mark.parametrize("level", ["stop", "warning"])
def test_no_complaint_without_a_fix(level):
    with pytest.raises(ValueError, match=f"a {level} needs a fix: no disk"):
        Finding(level, "disk", "no disk", " ")
    with pytest.raises(ValueError, match="right are stop, warning, note"):
        Finding("error", "disk", "no disk", "buy one")


def test_a_report_has_the_worst_first_and_each_fix():
    found = [
        Finding("note", "a", "one"),
        Finding("stop", "b", "two", "mend it"),
        Finding("warning", "c", "three", "think"),
    ]
    lines = doctor.report(found).splitlines()
    assert [line.split()[0] for line in lines] == ["stop", "->", "warning", "->", "note", "1"]
    assert lines[1].endswith("-> mend it") and lines[-1] == "1 would stop the run, 1 to think about"
    assert doctor.stopped(found) and not doctor.stopped(found[:1])


def test_every_stop_and_warning_of_the_package_gives_its_fix():
    """Each call of Finding that may complain has a fourth argument."""
    calls = [node for node in ast.walk(ast.parse(inspect.getsource(doctor))) if isinstance(node, ast.Call)]
    made = [call for call in calls if getattr(call.func, "id", "") == "Finding"]
    complaints = [
        call for call in made if not (isinstance(call.args[0], ast.Constant) and call.args[0].value == "note")
    ]
    assert len(complaints) > 20
    assert [ast.unparse(call) for call in complaints if len(call.args) < 4] == []


# Environment


def test_packages():
    required, locked = (
        {"torch": "==2.11.0", "numpy": "", "timm": ">=1"},
        {"torch": {"2.11.0"}, "numpy": {"2.4.6", "2.3"}},
    )
    good = {"torch": "2.11.0+cu130", "numpy": "2.3", "timm": "1.0"}

    def check(**changes):
        return doctor.check_packages({k: v for k, v in (good | changes).items() if v}, required, locked)

    one(check(), "note", "3 direct dependencies")
    one(check(torch="2.13.0+cpu"), "stop", "torch is 2.13.0+cpu", "==2.11.0", fix=".venv/.ready")
    one(check(timm=None), "stop", "timm is not installed", fix=".venv/.ready")
    one(check(timm="0.9"), "warning", "timm is 0.9", ">=1", fix=".venv/.ready")
    one(check(numpy="2.2"), "warning", "numpy is 2.2, tried was 2.3 or 2.4.6", fix=".venv/.ready")


def test_python():
    one(doctor.check_python((3, 11, 4), ">=3.11"), "note", "3.11.4")
    one(doctor.check_python((3, 9, 1), ">=3.11"), "stop", "3.9.1", ">=3.11", fix="PYTHON=")


def test_this_environment_is_the_locked_one():
    installed, required, locked, wanted = doctor.look_at_packages()
    assert required["torch"] == "==2.11.0" and locked["torch"] == {"2.11.0"} and wanted == ">=3.11"
    one(doctor.check_packages(installed, required, locked), "note", f"{len(required)} direct")


def test_clip_is_openais():
    assert doctor.look_at_clip() == doctor.Clip(file=sys.modules["clip"].__file__)
    one(doctor.check_clip(doctor.look_at_clip()), "note", "OpenAI")


def test_another_package_called_clip(monkeypatch):
    clipboard = ModuleType("clip")
    clipboard.__file__, clipboard.copy, clipboard.load = "/somewhere/clip.py", print, print
    monkeypatch.setitem(sys.modules, "clip", clipboard)
    found = doctor.look_at_clip()
    assert found.missing == ("tokenize", "available_models", "model.build_model", "clip._MODELS")
    one(doctor.check_clip(found), "stop", "/somewhere/clip.py", "tokenize", fix="pip uninstall clip")


def test_clip_that_cannot_be_imported(monkeypatch, tmp_path):
    for name in [name for name in sys.modules if name == "clip" or name.startswith("clip.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "clip.py").write_text("raise ModuleNotFoundError(\"No module named 'pkg_resources'\")")
    one(doctor.check_clip(doctor.look_at_clip()), "stop", "pkg_resources", fix="setuptools>=78.1.1,<81")
    (tmp_path / "clip.py").write_text("1 / 0")
    one(doctor.check_clip(doctor.look_at_clip()), "stop", "ZeroDivisionError", fix=".venv/.ready")


# GPU


@pytest.mark.parametrize(
    ("driver", "torch", "how", "level", "found", "fix"),
    [
        (None, SHUT, {}, "note", "no GPU: all runs on the CPU", "sam_vit_b"),
        (None, SHUT, {"device": "cuda"}, "stop", "no NVIDIA driver", "-p device auto"),
        (None, Torch("2.11.0", mps=True), {}, "note", "Apple", "-p device cpu"),
        (None, Torch(error="OSError: libcudart"), {}, "stop", "import torch fails: OSError: libcudart", ".venv/.ready"),
        (H100, Torch("2.13.0+cpu"), {}, "stop", "torch 2.13.0+cpu is a build for the CPU", ".venv/.ready"),
        (H100, Torch("2.13.0+cpu"), {"device": "cpu"}, "note", "NVIDIA H100 (driver 580.65.06) is not used", "auto"),
        (Driver("535.1", ("T4",)), SHUT, {}, "stop", "driver 535.1 is too old", "version 580 or later"),
        (Driver("535.1", ("T4",)), Torch("2.6.0", "12.4"), {}, "stop", "cannot use T4", "nvidia-smi"),
        (Driver("470.1", ("T4",)), Torch("2.6.0", "12.4"), {}, "stop", "CUDA 12.4 needs 525", "version 525 or later"),
        (H100, SHUT, {"visible": ""}, "stop", "CUDA_VISIBLE_DEVICES='' hides NVIDIA H100", "unset CUDA_VISIBLE"),
        (H100, Torch("2.11.0", "13.0", said="Error 803"), {"visible": "0"}, "stop", "Error 803", "--gpus all"),
        (Driver(error="Driver/library version mismatch"), SHUT, {}, "stop", "version mismatch", "restart"),
        (H100, SHUT, {"device": "mps"}, "stop", "'mps', Apple's", "-p device auto"),
        (H100, GOOD, {}, "note", "NVIDIA H100 (driver 580.65.06), torch 2.11.0+cu130 with CUDA 13.0", ""),
        (None, Torch("2.11.0+rocm", None, True, (9, 4), ("gfx942",)), {}, "note", "a GPU, torch 2.11.0+rocm", ""),
    ],
)  # fmt: skip
def test_gpu(driver, torch, how, level, found, fix):
    one(doctor.check_gpu(driver, torch, **how), level, found, fix=fix)


@pytest.mark.parametrize(
    ("capability", "architectures", "runs"),
    [
        ((9, 0), ("sm_80", "sm_90"), True),
        ((8, 6), ("sm_80",), True),  # machine code runs on later GPUs of the same major version
        ((8, 0), ("sm_86",), False),
        ((6, 1), ("sm_75", "sm_80"), False),  # too old
        ((12, 0), ("sm_80", "sm_90"), False),  # too new
        ((12, 0), ("sm_80", "compute_90"), True),  # compiled when it is loaded
        ((12, 0), ("sm_120a",), True),
    ],
)
def test_a_gpu_that_torch_was_not_built_for(capability, architectures, runs):
    torch = Torch("2.11.0", "13.0", True, capability, architectures)
    if runs:
        one(doctor.check_gpu(H100, torch), "note", "NVIDIA H100")
    else:
        text = f"compute capability {capability[0]}.{capability[1]}"
        one(doctor.check_gpu(H100, torch), "stop", text, architectures[0], fix="-p device cpu")


@pytest.mark.parametrize(
    ("script", "driver"),
    [
        ("echo '580.65.06, NVIDIA A100-SXM4, 80GB'", Driver("580.65.06", ("NVIDIA A100-SXM4, 80GB",))),
        ("echo '550.1, T4'; echo '550.1, T4'", Driver("550.1", ("T4", "T4"))),
        ("echo 'Failed to initialize NVML: Driver/library version mismatch'; exit 18",
         Driver(error="Failed to initialize NVML: Driver/library version mismatch")),
        ("exit 9", Driver(error="it says nothing and returns 9")),
    ],
)  # fmt: skip
def test_what_nvidia_smi_says(script, driver, tmp_path, monkeypatch):
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert doctor.look_at_driver() == driver


def test_no_nvidia_smi(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    if not Path("/proc/driver/nvidia/version").exists():
        assert doctor.look_at_driver() is None
    assert doctor.look_at_torch().version.startswith("2.11.0")


# Processor, memory, disk


def test_threads():
    def check(threads, small, on_cpu):
        return doctor.check_threads(threads, 16, small=small, on_cpu=on_cpu)

    one(check("1", True, True), "note", "OMP_NUM_THREADS=1, 16 cores")
    one(check("2", True, True), "note", "OMP_NUM_THREADS=2")
    one(check("4", True, True), "warning", "3.0 s", fix="OMP_NUM_THREADS=2")
    one(check(None, True, True), "warning", "not set", fix="OMP_NUM_THREADS=2")
    one(check("1", False, True), "warning", "1 of 16 cores", fix="OMP_NUM_THREADS=16")
    one(check(None, False, True), "note", "not set")
    one(check("1", False, False), "note", "OMP_NUM_THREADS=1")


def test_the_doctor_needs_no_torch():
    """It is asked when torch does not work."""
    code = "import sys, plg_utils.doctor as doctor; assert doctor.cores() >= 1; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_half_precision_without_hardware_for_it():
    one(doctor.check_precision("bf16", built_in=False), "warning", "eight times", fix="-p precision auto")
    for precision, built_in in (("bf16", True), ("fp32", False), ("auto", False)):
        assert doctor.check_precision(precision, built_in=built_in) == []


def test_a_busy_machine():
    assert doctor.check_load(4.0, 4) == doctor.check_load(4.4, 4) == []
    one(doctor.check_load(12.6, 4), "warning", "13 processes share 4 cores", fix="ask again")


def test_memory():
    one(
        doctor.check_memory("memory", 1024, 2048),
        "stop",
        "1.0 GiB are free, the peak measured is 2.0 GiB",
        fix="batch_size",
    )
    one(doctor.check_memory("gpu memory", 2500, 2048), "warning", "2.4 GiB", fix="points_per_batch")
    one(doctor.check_memory("memory", 4096, 2048), "note")
    one(doctor.check_memory("memory", 4096, math.nan), "note", "the peak was not measured")
    assert 100 < doctor.look_at_memory() < 1e8


def test_disk():
    one(
        doctor.check_disk("results in /x", 1e9, 2e9),
        "stop",
        "results in /x: 1.0 GB free, 2.00 GB needed",
        fix="PLG_RESULTS",
    )
    one(doctor.check_disk("results in /x", 2.5e9, 2e9), "warning", "2.5 GB free", fix="PLG_RESULTS")
    one(doctor.check_disk("results in /x", 4e9, 2e9), "note")


def test_what_lies_on_one_disk_is_added_up(tmp_path):
    needed = {"results": (tmp_path / "a" / "b", 1e9), "checkpoints": (tmp_path / "c", 2e9)}
    ((place, free, count),) = doctor.look_at_disk(needed)
    assert place == f"results in {tmp_path}/a/b, checkpoints in {tmp_path}/c"
    assert count == 3e9 and free > 0
    assert not (tmp_path / "a").exists()


def test_a_folder_that_cannot_be_written(tmp_path):
    assert doctor.look_at_folder(tmp_path / "new") == "" and list(tmp_path.iterdir()) == []
    assert doctor.check_folder("results", tmp_path, "") == []
    (tmp_path / "file").write_text("")
    error = doctor.look_at_folder(tmp_path / "file" / "below")
    assert "Not a directory" in error
    one(
        doctor.check_folder("results", tmp_path / "file" / "below", error),
        "stop",
        "cannot be written",
        fix="PLG_RESULTS=",
    )


def test_time():
    assert doctor.check_hours(5, 24, "") == []
    one(doctor.check_hours(31.4, 24, "-p preset fast"), "warning", "31.4 hours, there are 24", fix="-p preset fast")


# Weights


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """An empty folder of checkpoints; whoever downloads fails the test."""

    def refuse(*_, **__):
        raise AssertionError("the doctor downloads nothing")

    monkeypatch.setenv("PLG_CHECKPOINTS", str(tmp_path / "checkpoints"))
    monkeypatch.setattr(checkpoints, "fetch", refuse)
    monkeypatch.setattr(checkpoints, "_fetch_from_hub", refuse)
    return tmp_path / "checkpoints"


def unreachable(known):
    raise OSError("no route to host")


def weights(name, probe=unreachable):
    found = doctor.look_at_weights(name, probe)
    return found, [found.finding]


def test_weights_that_are_here(offline, tmp_path):
    found, finding = weights("miniature_sam")
    assert (found.state, found.bytes) == ("ready", 0)
    one(finding, "note", "miniature_sam is here, SHA-256 verified")
    (tmp_path / "own.pth").write_bytes(b"mine")
    one(weights(str(tmp_path / "own.pth"))[1], "note", "a file of your own")


def test_weights_that_can_be_downloaded(offline):
    found, finding = weights("sam_vit_h", lambda known: 2_564_550_879)
    assert (found.state, found.bytes) == ("absent", 2_564_550_879)
    address = checkpoints.LISTED["sam_vit_h"].address
    one(finding, "note", address, f"to {offline}/sam_vit_h_4b8939.pth: 2.56 GB", fix="checkpoints.locate('sam_vit_h')")
    one(weights("ViT-B/16", lambda known: 0)[1], "note", "how much is not told")
    offline.mkdir()
    (offline / "sam_vit_h_4b8939.pth.part").write_bytes(b"x" * 879)
    assert weights("sam_vit_h", lambda known: 2_564_550_879)[0].bytes == 2_564_550_000


def test_weights_that_cannot_be_had(offline):
    found, finding = weights("sam_vit_h")
    assert found.state == "missing"
    known = checkpoints.LISTED["sam_vit_h"]
    one(finding, "stop", "no route to host", fix=f"fetch {known.address} (2.56 GB)")
    assert str(offline / known.file) in finding[0].fix and known.sha256 in finding[0].fix
    one(weights("sam_vit_z")[1], "stop", "neither a file nor a checkpoint", fix="write")


def test_weights_of_the_hub(offline):
    one(weights("hub:timm/resnet50")[1], "stop", "cannot be downloaded", fix="model.safetensors of timm/resnet50")
    found, finding = weights("hub:timm/resnet50", lambda known: 10**8)
    assert found.bytes == 10**8
    one(finding, "note", "timm/resnet50 on the Hugging Face hub", "0.10 GB", fix="hub:timm/resnet50")
    (offline / "hub" / "timm" / "resnet50").mkdir(parents=True)
    (offline / "hub" / "timm" / "resnet50" / "model.safetensors").write_bytes(b"by hand")
    assert weights("hub:timm/resnet50")[0].state == "ready"
    (offline / "hub" / "timm" / "resnet50" / "model.safetensors").write_bytes(b"other")
    found, finding = weights("hub:timm/resnet50")
    assert found.state == "damaged"
    one(finding, "stop", files.sha256(offline / "hub" / "timm" / "resnet50" / "model.safetensors"), fix="rm -r")


def test_damaged_weights_are_told_with_both_hashes(offline):
    offline.mkdir()
    path = offline / "sam_vit_b_01ec64.pth"
    path.write_bytes(b"half of it")
    found, finding = weights("sam_vit_b")
    assert found.state == "damaged"
    one(finding, "stop", files.sha256(path), checkpoints.LISTED["sam_vit_b"].sha256, fix=f"rm -r {path}")


def test_a_damaged_miniature(offline, monkeypatch, tmp_path):
    monkeypatch.setattr(checkpoints, "MINIATURE", tmp_path)
    one(weights("miniature_clip")[1], "stop", "is missing", fix="git checkout plg_utils/miniature")
    (tmp_path / "clip.safetensors").write_bytes(b"x")
    (tmp_path / "SHA256SUMS").write_text("0123  clip.safetensors\n")
    one(weights("miniature_clip")[1], "stop", "0123", fix="git checkout plg_utils/miniature")


def test_the_weights_that_a_run_names(offline):
    demo = run.all_defaults_of(run.read("demo"))

    def names(notebooks, **changes):
        found = doctor.look_at_all_weights(demo | changes, notebooks, unreachable)
        return {option: each.name for option, each in found.items()}

    labelling = {"mask_options": "miniature_sam", "encoder_options": "miniature_clip"}
    assert names(["02_zero_shot_labels"]) == labelling
    assert names(["02_zero_shot_labels", "04_segmenter"]) == labelling | {"segmenter_options": "miniature_encoder"}
    assert names(["03_refinement"], segmenter_options={"encoder": "resnet50"}) == {}
    assert names(["02_zero_shot_labels"], mask_options={"checkpoint": None}) == {"encoder_options": "miniature_clip"}
    hub = names(["04_segmenter"], segmenter_options={"encoder": "resnet50", "pretrained": True})
    assert hub["segmenter_options"].startswith("hub:timm/resnet50")
    unknown = {"segmenter": "smp", "segmenter_options": {"encoder": "resnet34", "pretrained": "imagenot"}}
    found = doctor.look_at_all_weights(demo | unknown, ["04_segmenter"], unreachable)
    one([found["segmenter_options"].finding], "stop", "imagenot", fix="pretrained: false")


# Data


def test_findings_of_the_check():
    rows = [
        ("stop", "photos that cannot be read", 3, "unlabelled 3; e.g. a"),
        ("warning", "new", 1, "b"),
        ("note", "images, val", 9, ""),
    ]
    broken, new, read = doctor.check_data(rows, 100, 5000)
    one([broken], "stop", "photos that cannot be read: 3 (unlabelled 3; e.g. a)", fix="fetch or export")
    one([new], "warning", "new: 1 (b)", fix="python -m plg_utils.check")
    one([read], "note", "100 of 5,000 images", fix="validated null")
    one(doctor.check_data([], 5, 5), "note", "5 of 5 images")


def test_a_broken_photo_is_found(tiny_root):
    (tiny_root / "03.png").write_bytes(b"no photo")
    options = {"root": tiny_root, "labels": tiny_root / "SegmentationClass", "classes": ["red", "green", "blue"]}
    data, found = doctor.look_at_data("folder", read=None, **options)
    assert data is not None
    one(found[:1], "stop", "photos that cannot be read", "03.png", fix="fetch or export these files again")
    assert doctor.look_at_data("folder", read=0, **options | {"labels": None})[1][-1].found.startswith("0 of 8 images")


def test_a_data_set_that_is_not_there(tmp_path):
    data, found = doctor.look_at_data("voc", read=5, root=tmp_path / "nowhere")
    assert data is None
    one(found, "stop", "cannot be loaded", "nowhere", fix="-p data_root")
    one(doctor.look_at_data("voc", read=5, rot=1)[1], "stop", "no option 'rot'", fix="-p data_root")


def test_few_images_are_spread_and_labelled_ones_all_kept():
    data = SimpleNamespace(**{name: tuple(range(9)) for name in ("labelled", "unlabelled", "val", "test")})
    kept = datasets.Dataset("x", None, **vars(data))
    kept = doctor.few(kept, 3)
    assert (kept.labelled, kept.unlabelled, kept.val, kept.test) == (tuple(range(9)), (0, 4, 8), (0, 4, 8), ())


def test_training_without_labels():
    assert doctor.check_labels(0, ["02_zero_shot_labels"]) == doctor.check_labels(3, ["03_refinement"]) == []
    one(
        doctor.check_labels(0, ["03_refinement", "04_segmenter"]),
        "stop",
        "03_refinement and 04_segmenter",
        fix="notebooks:",
    )


# The cost card


def test_a_cost_card_by_hand():
    measured = {
        "masks": Cost(2.0, bytes=1e6, memory_mb=500, cuda_memory_mb=100),
        "training a": Cost(0.5, "step", bytes_once=3e8, memory_mb=400, cuda_memory_mb=900),
        "segments": Cost(why="no weights"),
    }
    counts = [
        Count("02 masks", "masks", 900),
        Count("02 segments", "segments", 900),
        Count("04 a", "training a", 7200, once=2, memory_mb=250),
        Count("06 later", "06 later", 1),
    ]
    card = costs.cost_card(measured, counts)
    assert card["stage"].tolist() == ["02 masks", "02 segments", "04 a", "06 later", "total"]
    nan = math.nan
    np.testing.assert_allclose(card["hours"], [0.5, nan, 1.0, nan, 1.5])  # 900 x 2 s, 7200 x 0.5 s
    np.testing.assert_allclose(card["GB"], [0.9, nan, 0.6, nan, 1.5])  # 900 x 1 MB, 2 x 0.3 GB
    np.testing.assert_allclose(card["memory MB"], [500, nan, 650, nan, 650])
    np.testing.assert_allclose(card["GPU MB"], [100, nan, 900, nan, 900])
    assert card["not measured"].tolist() == [
        "",
        "no weights",
        "",
        "the doctor does not know it",
        "02 segments, 06 later",
    ]
    text = costs.printed(card).splitlines()
    assert text[1].split() == [
        "02",
        "masks",
        "900",
        "images",
        "2",
        "s",
        "30",
        "min",
        "900.0",
        "MB",
        "500",
        "MB",
        "100",
        "MB",
    ]
    assert text[2].split() == ["02", "segments", "900", "images", "not", "measured:", "no", "weights"]
    assert "1.5 GB" in text[-1] and "not measured: 02 segments, 06 later" in text[-1]


NOTEBOOKS = ["00_one_image", "01_data", "02_zero_shot_labels", "03_refinement", "04_segmenter", "05_evaluation"]


def count(notebooks=NOTEBOOKS, known=10, **more):
    parameters = run.all_defaults_of(run.read("demo")) | {
        "steps": 7,
        "methods": ["supervised", "direct", "direct_long"],
    }
    rows = costs.counts(parameters, {"labelled": known, "unlabelled": 100, "val": 20}, notebooks, **more)
    return {row.stage: row for row in rows}


def test_counts_by_hand():
    rows = count(image_bytes=2**20)
    assert {stage: row.times for stage, row in rows.items()} == {
        "starting the notebooks": 6,
        "01 reading": 130,
        "02 masks": 110,
        "02 segments": 110,
        "02 threshold": 10,
        "02 labels": 110,
        "03 refinement": 7,
        "03 relabelling": 100,
        "03 borders of SAM (3 times)": 300,
        "04 supervised": 7,
        "04 direct": 7,
        "04 direct_long": 14,
        "04 predictions": 4 * 20 + 100,  # three networks and the refined one on val; direct relabels
        "05 evaluation": 6 * 100 + 4 * 20,
    }
    assert rows["04 direct"].cost == rows["04 direct_long"].cost == "training unimatch, zero_shot"
    assert rows["03 refinement"].cost == "training unimatch, fusion"
    assert rows["03 refinement"].memory_mb == 110 and rows["02 masks"].memory_mb == 0  # 110 images of 1 MiB
    assert count(image_bytes=2**30)["03 refinement"].memory_mb == 1024  # what fit() keeps at most
    assert costs.trainings(list(rows.values())) == [
        "training unimatch, fusion",
        "training supervised",
        "training unimatch, zero_shot",
    ]


def test_counts_follow_the_notebooks_and_the_grid():
    assert list(count(["01_data", "06_compare_labellers"])) == [
        "starting the notebooks",
        "01 reading",
        "06_compare_labellers",
    ]
    assert "02 threshold" not in count(["02_zero_shot_labels"], known=0)
    assert "03 borders of SAM (3 times)" not in count(background=None)
    rows = count(points={"all": 9, "masks": 1, "segments": 3})
    assert rows["02 masks"].times == 110 and rows["02 segments"].times == 330 and rows["02 labels"].times == 990
    assert (rows["04 direct"].times, rows["04 direct"].once) == (63, 9)


def test_the_counts_agree_with_what_the_demo_wrote():
    """Its manifests and scores tell how many images, networks and label maps there were."""
    recipe, summary = run.read("demo"), files.read_json(run.PUBLISHED / "demo" / "summary.json")
    parameters = run.all_defaults_of(recipe)
    rows = costs.counts(
        parameters, {"labelled": 12, "unlabelled": 100, "val": 100}, [path.stem for path in recipe.known]
    )
    told = {row.stage: row.times for row in rows}
    assert told["05 evaluation"] == sum(row["images"] for row in summary["rows"])
    predicted = [row for row in summary["rows"] if row["stage"] == "segmenter"]
    relabelled = [row for row in summary["rows"] if row["options"] == {"refine_target": "zero_shot"}]
    assert told["04 predictions"] == sum(row["images"] for row in [*predicted, *relabelled])


def test_the_methods_are_those_of_notebook_04():
    for node in ast.walk(ast.parse(run.code_of(run.NOTEBOOKS / "04_segmenter.ipynb"))):
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "METHODS":
            names = {"sure": {}, "confidence": 0, "common": {}, "loss_options": {}, "raw": ""}
            table = eval(compile(ast.Expression(node.value), "04", "eval"), names)  # noqa: S307  our own notebook
    code = run.code_of(run.NOTEBOOKS / "04_segmenter.ipynb")
    assert {name: (loss, options.get("refine_target")) for name, (loss, options, _) in table.items()} == costs.METHODS
    assert '"steps": 2 * steps} if method == "direct_long"' in code and costs.STEPS_OF == {"direct_long": 2}


def test_the_first_one_warms_up():
    moments = iter([0, 9, 10, 11, 20, 23])
    results, seconds = costs.clock(str, [1, 2, 3], now=lambda: next(moments))
    assert (results, seconds) == (["1", "2", "3"], [1, 3])
    moments = iter([0, 9, 10, 20])
    assert costs.clock(str, [1, 2, 3], now=lambda: next(moments), patience=15) == (["1", "2"], [10])
    moments = iter([0, 9])
    assert costs.clock(str, [1], now=lambda: next(moments))[1] == [9]


def test_steps_are_timed_from_loss_to_loss(tmp_path, monkeypatch, tiny_root):
    """With a clock that ticks once a step, a step takes a tick, and the first interval is left out."""
    data = datasets.load("folder", root=tiny_root, labels=tiny_root / "SegmentationClass", classes=["a", "b", "c"])
    parameters = run.all_defaults_of(run.read("demo")) | TINY
    ticks = iter([0, 100, 101, 103, 108])
    monkeypatch.setattr(costs.time, "perf_counter", lambda: next(ticks))
    chip = costs.devices.choose("cpu")
    cost = costs.measure_training(data, parameters, tmp_path, "training supervised", chip, images=2, steps=3)
    assert (cost.seconds, cost.last, cost.unit) == (2, 5, "step"), cost.why
    assert cost.bytes_once > 1e5
    ticks = iter([0, 100, 150])
    early = costs.measure_training(data, parameters, tmp_path, "training supervised", chip, 2, 3, patience=120)
    assert (early.seconds, early.why) == (50, "")
    assert early.bytes_once == pytest.approx(cost.bytes_once, rel=0.1)  # the state was not written, only computed


def test_what_fails_is_not_measured():
    def fail(_):
        raise RuntimeError("no such kernel\nand more")

    results, cost = costs.timed(fail, [1], costs.devices.choose("cpu"))
    assert results is None and cost == Cost(why="RuntimeError: no such kernel")
    assert "GPU's memory" in costs.failure(costs.torch.cuda.OutOfMemoryError("tried to allocate"))


# Presets


def test_the_same_masks_by_other_words():
    own = {"mask_model": "sam", "mask_options": {"checkpoint": "miniature_sam"}}
    assert costs.same_masks(own, own | {"mask_options": {"checkpoint": "miniature_sam", "density": 1.0}})
    assert not costs.same_masks(own, own | {"mask_options": {"checkpoint": "miniature_sam", "density": 0.5}})
    assert not costs.same_masks(own, own | {"mask_options": {"checkpoint": "sam_vit_b"}})


def test_a_preset_is_timed_where_it_differs(tmp_path, monkeypatch):
    """Masks that take a third and steps that take twice the time, seen on one image and one training."""
    measured = {
        "masks": Cost(6.0, last=9.0, bytes=5, taken=2),
        "training supervised": Cost(1.0, "step"),
        "training unimatch": Cost(4.0, "step"),
        "predictions": Cost(0.1),
        "labels": Cost(0.3),
    }
    own = run.all_defaults_of(run.read("demo"))
    asked = []

    def build(name, **options):
        asked.append(options)
        return lambda images: [None]

    monkeypatch.setattr(masks, "build", build)
    timed = []
    monkeypatch.setattr(costs, "clock", lambda call, photos, **_: (timed.append(photos) or [None], [3.0]))
    monkeypatch.setattr(costs, "measure_training", lambda *_, **__: Cost(2.0, "step"))
    photos = tuple(SimpleNamespace(image=lambda k=k: k) for k in range(3))
    data = SimpleNamespace(labelled=photos, unlabelled=())
    fast = own | {"mask_options": own["mask_options"] | {"density": 0.5}, "precision": "bf16"}
    again = costs.measure_again(data, own, fast, measured, tmp_path)
    assert {name: cost.seconds for name, cost in again.items()} == {
        "masks": 2.0,  # 6 x 3 / 9
        "training supervised": 2.0,
        "training unimatch": 8.0,
        "predictions": 0.2,
        "labels": 0.3,
    }
    assert timed == [[1]]  # of the three images the second was the last for which patience sufficed
    assert again["masks"].bytes == 5 and asked[0]["density"] == 0.5
    slow = own | {"mask_options": own["mask_options"] | {"density": 1.0}, "precision": "fp32", "steps": 360}
    assert costs.measure_again(data, own, slow, measured, tmp_path) == measured
    assert len(asked) == 1


def cards(**hours):
    return {
        name.replace("_", " "): costs.cost_card({"a": Cost(3600)}, [Count("a", "a", each)])
        for name, each in hours.items()
    }


def test_which_preset_fits():
    table = costs.fitting(cards(as_it_is=40, fast=5, balanced=20, paper=50), 24)
    assert table["fits"].tolist() == ["no", "yes", "yes", "no"]
    assert costs.advice(table, 24).startswith("-p preset balanced: 20.0 h")
    assert "without a preset" in costs.advice(costs.fitting(cards(as_it_is=10, paper=12), 24), 24)
    assert costs.advice(costs.fitting(cards(as_it_is=40, fast=30), 24), 24).startswith("no preset fits into 24.0 h")
    unknown = {"as it is": costs.cost_card({}, [Count("a", "a", 1)])} | cards(fast=1)
    assert costs.fitting(unknown, 24)["fits"].tolist() == ["not known", "yes"]
    assert "nobody knows yet" in costs.advice(costs.fitting(unknown, 24), 24)
    assert costs.printed_presets(table).splitlines()[1].split() == ["fast", "5.0", "h", "fits:", "yes"]


# The notebook


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return tmp_path_factory.mktemp("world")


def examine(world, results, monkeypatch, **changes):
    monkeypatch.setenv("PLG_RESULTS", str(results))
    options = {
        "dataset_options": {"root": str(world), "limit": 3},
        "images_at_once": 2,
        "timed_images": 3,
        "timed_steps": 1,
    }
    execute("09", TINY | options | changes)
    return files.read_json(results / "doctor" / "tiny" / "09_doctor.json")


def test_the_notebook_on_a_tiny_run(world, tmp_path, monkeypatch, capsys):
    presets = {"less": {"mask_options": {"checkpoint": "miniature_sam", "density": 0.5}, "steps": 10}}
    found = examine(world, tmp_path, monkeypatch, presets=presets, threshold=None, steps=30, methods=["direct"])
    assert not [each for each in found["findings"] if each["level"] == "stop"]
    rows = {row["stage"]: row for row in found["card"]}
    assert [row["stage"] for row in found["card"] if row["not measured"]] == []
    assert rows["02 masks"]["times"] == 5 and rows["03 refinement"]["times"] == 30
    assert all(row["hours"] > 0 for stage, row in rows.items())
    assert math.isclose(rows["total"]["hours"], sum(row["hours"] for row in found["card"][:-1]))
    assert rows["total"]["GB"] > 0 and rows["total"]["memory MB"] > 100
    hours = {row["preset"]: row["hours"] for row in found["presets"]}
    assert set(hours) == {"as it is", "less"}
    assert hours["less"] < hours["as it is"]  # a third of the steps
    printed = capsys.readouterr().out
    assert "02 masks" in printed and "0 would stop the run" in printed and "02 masks" in found["text"]
    assert not (tmp_path / "tiny").exists()  # nothing of the run itself


def test_the_notebook_without_weights_and_without_data(world, tmp_path, monkeypatch, offline):
    def refuse(*_, **__):
        raise OSError("no route to host")

    monkeypatch.setattr("requests.head", refuse)
    large = {"mask_options": {"checkpoint": "sam_vit_b"}, "presets": {"none": {}}, "notebooks": ["02_zero_shot_labels"]}
    found = examine(world, tmp_path, monkeypatch, **large)
    stops = [each for each in found["findings"] if each["level"] == "stop"]
    assert [each["subject"] for each in stops] == ["weights"] and "no route to host" in stops[0]["found"]
    rows = {row["stage"]: row for row in found["card"]}
    assert "cannot be downloaded" in rows["02 masks"]["not measured"] and rows["02 masks"]["hours"] is None
    assert "not measured: 02 masks" in found["text"] and "nobody knows yet" in found["text"]
    assert not offline.exists()

    nowhere = {"dataset": "voc", "dataset_options": {"root": str(tmp_path / "nowhere")}, "presets": {"none": {}}}
    found = examine(world, tmp_path, monkeypatch, **nowhere)
    assert [each["subject"] for each in found["findings"] if each["level"] == "stop"] == ["data"]
    assert "the data set cannot be loaded" in {row["not measured"] for row in found["card"]}


@pytest.mark.parametrize(
    ("processes", "on_cpu", "batch_size", "told"),
    [
        (1, False, 3, []),
        (2, False, 8, [("note", "2 share the run")]),
        (4, False, 8, [("stop", "4 processes on a machine with 2 GPUs")]),
        (2, False, None, [("note", "2 share the run")]),
        (2, False, 6, [("stop", "batch_size=6 cannot be shared by 2 processes")]),
        (8, True, 4, [("warning", "8 processes on a machine with 4 cores"), ("stop", "batch_size=4 cannot be shared")]),
    ],
)
def test_processes_need_a_device_and_two_images_each(processes, on_cpu, batch_size, told):
    found = doctor.check_processes(processes, gpus=2, cores=4, on_cpu=on_cpu, batch_size=batch_size)
    assert [each.level for each in found] == [level for level, _ in told]
    assert all(text in each.found for each, (_, text) in zip(found, told, strict=True))
    if batch_size == 6:
        assert found[0].fix.startswith("-p batch_size 8")


# The starter


def test_the_notebook_gets_the_parameters_of_a_run():
    own = run.defaults(run.NOTEBOOKS / starter.NOTEBOOK)
    step = starter.step_of("voc_92", {"hours": 8, "steps": 100})
    recipe = run.read("voc_92")
    expected = {key: value for key, value in run.settled(recipe, {}).items() if key in own} | {"hours": 8, "steps": 100}
    told = dict(step.parameters)
    assert told.pop("run") == "voc_92" and told.pop("points") == {"all": 1, "masks": 1, "segments": 1}
    assert told.pop("notebooks") == [path.stem for path in recipe.known]
    presets = told.pop("presets")
    assert told == expected
    assert "steps" not in presets["fast"]  # -p says it
    assert presets["fast"]["mask_options"] == {"checkpoint": "sam_vit_h", "density": 0.5}
    assert starter.step_of("voc_92", {}).parameters["presets"]["fast"]["steps"] == round(recipe.values["steps"] / 4)
    fast = starter.step_of("voc_92", {"preset": "fast"}).parameters
    assert fast["precision"] == "auto" and fast["presets"]["paper"]["precision"] == "fp32"
    with pytest.raises(run.Refused, match="did you mean hours"):
        starter.step_of("voc_92", {"hour": 8})


def test_of_a_grid_the_first_point_is_examined_and_all_are_counted():
    step = starter.step_of("storybook_labelled", {})
    assert step.parameters["labelled"] == 24 and step.parameters["points"] == {"all": 6, "masks": 1, "segments": 1}
    assert starter.step_of("storybook_labelled", {"seed": 5}).parameters["points"]["all"] == 2
    assert starter.points({"encoder_options": [1, 2], "seed": [0, 1]}, None) == {"all": 4, "masks": 1, "segments": 2}
    assert starter.points({"seed": [0, 1]}, []) == {"all": 2}
    assert set(grid.SHARED) <= grid.UNRELATED.keys()


def test_every_run_of_the_repository_can_be_examined():
    for path in run.PUBLISHED.glob("*/parameters.yaml"):
        starter.step_of(path.parent.name, {})


@pytest.mark.parametrize(("level", "code"), [("stop", 1), ("warning", 0), ("note", 0)])
def test_what_is_found_is_printed_and_a_stop_is_exit_code_1(level, code, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PLG_RESULTS", str(tmp_path))

    def write(step, folder):
        files.write_json(folder / "09_doctor.json", {"text": "the card", "findings": [{"level": level}]})

    monkeypatch.setattr(run, "execute", write)
    assert starter.main(["demo"]) == code
    assert "the card" in capsys.readouterr().out


def test_a_notebook_that_stops_tells_about_the_machine(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PLG_RESULTS", str(tmp_path))

    def fail(step, folder):
        raise RuntimeError("the kernel died")

    monkeypatch.setattr(run, "execute", fail)
    assert starter.main([]) == 1
    told = capsys.readouterr()
    assert "the kernel died" in told.err and "clip" in told.out


def test_an_unknown_run_is_refused(capsys):
    assert starter.main(["nothing"]) == 2
    assert "no run 'nothing'" in capsys.readouterr().err
    assert starter.main(["demo", "-p", "stebs", "3"]) == 2
