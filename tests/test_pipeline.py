"""The whole pipeline on a few scenes with untrained miniatures: by the notebooks, and by the stages alone."""

import importlib
import json
import math
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import run
import safetensors.numpy
import torch
from IPython.core.interactiveshell import InteractiveShell

from plg_utils import files, losses, stages
from plg_utils.datasets import storybook

TINY = {
    "run": "tiny",
    "labelled": 2,
    "mask_options": {"checkpoint": None, "points_per_side": 2, "pred_iou_thresh": 0.0, "stability_score_thresh": 0.0},
    "encoder_options": {"checkpoint": None},
    "segmenter_options": {"encoder": "miniature", "width": 8, "skip": 4},
    "threshold": 0.0,
    "warm_up": 1,
    "steps": 1,
    "batch_size": 2,
    "crop_size": 32,
    "classifier_steps": 2,
    "classifier_batch_size": 2,
    "classifier_crop_size": 32,
}


def notebook(number: str) -> Path:
    """A numbered notebook."""
    return next(run.NOTEBOOKS.glob(f"{number}_*.ipynb"))


def tiny(numbers: list[str], **changes) -> dict:
    """All parameters of some notebooks for a tiny run."""
    known = {name: value for number in numbers for name, value in run.defaults(notebook(number)).items()}
    return known | {name: value for name, value in (TINY | changes).items() if name in known}


def do_stages(parameters: dict) -> stages.Run:
    """Do all stages that these parameters ask for; the run."""
    found = stages.run_of(parameters)
    list(stages.everything(found, parameters))
    return found


def execute(number: str, parameters: dict) -> dict:
    """Execute a notebook in IPython, in this process; return its variables."""
    shell = InteractiveShell()
    shell.history_manager.enabled = False
    for cell in files.read_json(notebook(number))["cells"]:
        if cell["cell_type"] == "code":
            shell.run_cell(run.source(cell)).raise_error()
            if run.tagged(cell, "parameters"):
                shell.user_ns |= {name: value for name, value in parameters.items() if name in shell.user_ns}
    return shell.user_ns


def scored(parameters: dict) -> list[dict]:
    """The rows of 05_evaluation: it opens every truth."""
    opened = {"truth_of": ("labelled", "unlabelled", "val", "test")}
    here = stages.run_of(parameters | {"dataset_options": parameters["dataset_options"] | opened})
    files.write_json(here.folder / "04_segmenter.json", {"methods": parameters["methods"]})  # as 04 writes it
    evaluated = parameters.get("evaluated", ["val"])
    return stages.score_all(here, labeller="segment_match", evaluated=evaluated, seed=0)[1]


def of_world(root, **more):
    return TINY | {"dataset_options": {"root": str(root), "limit": 2}} | more


@pytest.fixture
def results(tmp_path, monkeypatch):
    monkeypatch.setenv("PLG_RESULTS", str(tmp_path / "results"))
    return tmp_path / "results" / "tiny"


def test_nothing_before_05_opens_a_hidden_truth(world, tmp_path, results, monkeypatch):
    """With the hidden label maps broken, 01 to 04 write the bytes that the stages write without; only 05 notices."""
    parameters = {"few_shot": {}, "methods": ["direct", "paper_a"]}
    do_stages(tiny(["02", "03", "04"], **of_world(world, **parameters)))
    broken = tmp_path / "broken_world"
    shutil.copytree(world, broken)
    hidden = [path for path in (broken / "labels").glob("*.png") if not path.name.startswith("labelled")]
    assert len(hidden) >= 4  # other tests may have drawn test images too
    for path in hidden:
        path.write_bytes(b"not for reading")
    monkeypatch.setenv("PLG_RESULTS", str(tmp_path / "blind"))
    for number in ("01", "02", "03", "04"):
        execute(number, of_world(broken, **parameters))
    labels = [path.relative_to(results) for path in results.rglob("*.png")]
    # zero-shot and few-shot (labelled and val too), enhanced by two networks, both through SEPL, predictions of two
    assert len(labels) == 2 * (2 + 2 + 2) + 2 * 2 + 2 * 2 + 2 * 2
    for path in labels:
        assert (tmp_path / "blind" / "tiny" / path).read_bytes() == (results / path).read_bytes(), path
    with pytest.raises(ValueError, match="not a readable label map"):
        execute("05", of_world(broken, **parameters))
    for path in hidden:
        shutil.copy(world / "labels" / path.name, path)
    execute("05", of_world(broken, **parameters))
    summary = files.read_json(tmp_path / "blind" / "tiny" / "summary.json")
    assert set(summary) == {"run", "dataset", "rows", "manifest"} and len(summary["rows"]) == 10
    on_val = [row["name"] for row in summary["rows"] if row["split"] == "val"]
    assert on_val[:2] == ["zero-shot labels, no network", "few-shot labels, no network"] and len(on_val) == 5
    assert {row["stage"] for row in summary["rows"]} == {"zero_shot", "enhanced", "segmenter"}


def test_what_the_options_reach(world, results):
    """Further options get where they are meant to; if asked, a network starts from the refined one, test is scored."""
    names = ("fusion", "paper_a_plain", "paper_a_soft")
    parameters = of_world(world, methods=list(names), evaluated=["val", "test"], learning_rate=1e-12)
    parameters |= {"embedding_options": {"normalise_patches": True}}
    parameters |= {"loss_options": {"weak_weight": 0.5}, "training_options": {"ema": 0.9}}
    do_stages(tiny(["02", "03"], **parameters))
    refined = safetensors.numpy.load_file(results / "refined" / "network.safetensors")
    refined = {name: values + 1 if values.ndim == 4 else values for name, values in refined.items()}
    safetensors.numpy.save_file(refined, results / "refined" / "network.safetensors")  # to see where it comes to
    do_stages(tiny(["04"], **parameters))
    rows = scored(tiny(["04"], **parameters))

    def made_with(stage):
        return files.read_json(results / stage / "manifest.json")["parameters"]

    assert made_with("segments")["normalise_patches"] is True
    assert made_with("network_paper_a_soft")["weak_weight"] == made_with("refined")["weak_weight"] == 0.5
    assert made_with("network_paper_a_soft")["ema"] == made_with("refined")["ema"] == 0.9
    for method, is_refined in (("paper_a_soft", True), ("paper_a_plain", False)):
        trained = safetensors.numpy.load_file(results / f"network_{method}" / "network.safetensors")
        kernels = [name for name, values in refined.items() if values.ndim == 4]
        assert all(np.allclose(trained[name], refined[name], atol=1e-6) == is_refined for name in kernels)
    found = [(row["method"], row["options"], row["split"]) for row in rows if row["stage"] == "segmenter"]
    methods = [(stages.METHODS[name].method or name, stages.METHODS[name].options) for name in names]
    assert found == [(*method, split) for method in methods for split in ("val", "test")]


def test_05_leaves_out_what_earlier_settings_have_left(world, results, capsys):
    both = tiny(["02", "04"], **of_world(world, methods=["supervised", "direct"]))

    def methods_of(rows):
        return {row["method"] for row in rows}

    def said(**changes):
        capsys.readouterr()
        scored(both | changes)
        return capsys.readouterr().out

    do_stages(both)
    assert methods_of(scored(both)) == {"segment_match", "supervised", "direct"}
    fewer = both | {"methods": ["supervised"], "steps": 2}
    do_stages(fewer)
    assert methods_of(scored(fewer)) == {"segment_match", "supervised"}
    for name in ("predictions_direct", "labels_enhanced_zero_shot"):
        assert f"{name} is left out: notebook 04 did not train it when it ran last" in said(**fewer)
    do_stages(both)
    others = [*scored(both), {"name": "old"}]  # as another notebook has added them

    def kept():
        return [row["name"] for row in stages.still_true(stages.run_of(both), others)]

    assert kept() == [row["name"] for row in others[:-1]]
    do_stages(tiny(["02"], **of_world(world, threshold=0.9)))  # the enhanced labels are of the earlier zero-shot ones
    left_out = "labels_enhanced_zero_shot is left out: network_direct: it was made from an earlier labels_zero_shot"
    assert left_out in said()
    assert kept() == ["supervised only"]
    other_split = "predictions_supervised is left out: it was made for another split of the images"
    assert other_split in said(dataset_options={"root": str(world), "limit": 1})
    manifest = results / "labels_zero_shot" / "manifest.json"
    files.write_json(manifest, files.read_json(manifest) | {"state": "running"})
    assert "labels_zero_shot is left out: it is not finished" in said()


def test_the_method_that_contributing_adds(world, tmp_path, results, monkeypatch):
    """The lines of CONTRIBUTING, saved where it says, are a method: trained, a row of the table; the contract holds."""
    text = (files.ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    path, code = re.search(r"<!-- add a method: (\S+) -->\n```python\n(.*?)```", text, re.DOTALL).groups()
    assert Path(path).parent == Path("plg_utils/losses")
    assert len(code.splitlines()) < 30 and not (files.ROOT / path).exists()
    (tmp_path / "losses").mkdir()
    (tmp_path / "losses" / Path(path).name).write_text(code, encoding="utf-8")
    monkeypatch.setattr(losses, "__path__", [*losses.__path__, str(tmp_path / "losses")])
    name = Path(path).stem
    here = do_stages(tiny(["04"], **of_world(world, methods=["supervised", name])))
    with safetensors.safe_open(results / f"network_{name}" / "state.safetensors", framework="np") as state:
        last = json.loads(state.metadata()["training"])["history"][-1]
    assert set(last) == {"step", "lr", "total", "labelled", name}
    assert last["total"] == pytest.approx(last["labelled"] + 0.1 * last[name], rel=1e-5)
    row = stages.rows_of(here.folder, "segment_match")[f"predictions_{name}"]
    assert (row.method, row.title) == (name, name) and len(list((results / f"predictions_{name}").glob("*.png"))) == 2

    uniform = importlib.import_module(f"plg_utils.losses.{name}").entropy
    ignore = torch.tensor([[[False, True]]])
    assert uniform(torch.zeros(1, 4, 1, 2), ignore).item() == pytest.approx(math.log(4))


def test_three_labellers_label_the_same_images(world, results):
    """06 labels with the truth closed, and says which supervision each labeller had; 03 takes any of them."""
    do_stages(tiny(["02"], **of_world(world)))
    data = execute("06", of_world(world))["data"]
    assert all(sample.read_truth is None for sample in (*data.unlabelled, *data.val))
    assert all(sample.read_tags is None for sample in data.val)
    labelled_by = [(row["method"], row["supervision"]) for row in files.read_json(results / "summary.json")["rows"]]
    cams = [("cam", "tags"), ("sepl", "tags")]
    assert labelled_by == [("segment_match", "none"), *cams, *cams, ("boxes", "none"), ("ensemble", "tags")]
    for name in ("cam", "cam_clip_text", "sepl", "sepl_clip_text", "boxes", "ensemble"):
        maps = [files.read_label(path, 11) for path in (results / f"labels_{name}").glob("*.png")]
        assert [label.shape for label in maps] == [(128, 128)] * 4
        wanted = "none" if name == "boxes" else "tags"
        assert files.read_json(results / f"labels_{name}" / "manifest.json")["parameters"]["supervision"] == wanted
    do_stages(tiny(["03"], **of_world(world, labeller="sepl")))
    assert set(files.read_json(results / "refined" / "manifest.json")["parents"]) == {
        "labels_sepl",
        "warm_up_labels_sepl",
    }


def test_a_folder_of_photos_needs_no_label_at_all(tmp_path, results, capsys):
    """Sizes that no network was made for, no truth anywhere: labels come out at the photos' sizes, 05 says it."""
    for name, seed in (("one.jpg", 0), ("two.png", 1)):
        files.write_image(tmp_path / "photos" / name, storybook.draw(seed).image[: 70 + seed, :99])
    options = {"root": str(tmp_path / "photos"), "classes": ["fish", "house"]}
    parameters = TINY | {"dataset": "folder", "dataset_options": options, "threshold": None}
    for number in ("00", "01", "02", "05"):
        execute(number, parameters)
    assert "There is no truth to compare with" in capsys.readouterr().out
    execute("06", parameters | {"cam_sources": []})
    assert "There is no truth to compare with" in capsys.readouterr().out
    with pytest.raises(ValueError, match="2 of 2 images have no tags.* set cam_sources = "):
        execute("06", parameters)
    assert files.read_label(results / "labels_zero_shot" / "one.png", 3).shape == (70, 99)
    assert files.read_label(results / "labels_zero_shot" / "two.png", 3).shape == (71, 99)
