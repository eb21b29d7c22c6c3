"""The notebooks, cell by cell in one process, on a few scenes with untrained miniatures."""

import importlib
import json
import math
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import torch

from plg_utils import files, losses
from plg_utils.datasets import storybook

TINY = {
    "run": "tiny",
    "labelled": 2,
    "mask_options": {"checkpoint": None, "points_per_side": 2, "pred_iou_thresh": 0.0, "stability_score_thresh": 0.0},
    "encoder_options": {"checkpoint": None},
    "segmenter_options": {"encoder": "miniature", "width": 8, "skip": 4},
    "threshold": 0.0,
    "steps": 1,
    "batch_size": 2,
    "crop_size": 32,
    "classifier_steps": 2,
    "classifier_batch_size": 2,
    "classifier_crop_size": 32,
}


def execute(number: str, parameters: dict) -> dict:
    """Execute the cells of a notebook here, as papermill would with these parameters; return its variables."""
    (path,) = (files.ROOT / "notebooks").glob(f"{number}_*.ipynb")
    variables: dict = {"__name__": "__main__"}
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), path.stem, "exec"), variables)  # noqa: S102  our own notebook
            if "parameters" in cell["metadata"].get("tags", []):
                variables |= {name: value for name, value in parameters.items() if name in variables}
    return variables


def run_all(root, results, monkeypatch, numbers):
    monkeypatch.setenv("PLG_RESULTS", str(results))
    parameters = TINY | {"dataset_options": {"root": str(root), "limit": 2}}
    return [execute(number, parameters) for number in numbers][-1]


def test_nothing_before_05_opens_a_hidden_truth(world, tmp_path, monkeypatch):
    """With the hidden label maps broken, 01 to 04 write the same label maps; only 05 notices."""
    run_all(world, tmp_path / "whole", monkeypatch, ["01", "02", "03", "04"])
    broken = tmp_path / "broken_world"
    shutil.copytree(world, broken)
    hidden = [path for path in (broken / "labels").glob("*.png") if not path.name.startswith("labelled")]
    assert len(hidden) == 4
    for path in hidden:
        path.write_bytes(b"nobody may read this")
    run_all(broken, tmp_path / "blind", monkeypatch, ["01", "02", "03", "04"])
    written = sorted(path.relative_to(tmp_path / "whole") for path in (tmp_path / "whole").rglob("*.png"))
    labels = [path for path in written if "figures" not in path.parts]
    # zero-shot (labelled too), enhanced, both through SEPL (enhanced twice), five predictions, enhanced again
    assert len(labels) == 2 + 2 + 2 + 3 * 2 + 5 * 2 + 2
    for path in labels:
        assert (tmp_path / "blind" / path).read_bytes() == (tmp_path / "whole" / path).read_bytes(), path

    found = run_all(world, tmp_path / "whole", monkeypatch, ["05"])
    assert {sample.read_truth for sample in found["data"].test} == {None}  # nobody has asked for it
    assert {row["stage"] for row in found["rows"]} == {"zero_shot", "enhanced", "segmenter"}
    summary = files.read_json(tmp_path / "whole" / "tiny" / "summary.json")
    assert set(summary) == {"run", "dataset", "rows", "manifest"} and len(summary["rows"]) == 11
    with pytest.raises(ValueError, match="not a readable label map"):
        run_all(broken, tmp_path / "blind", monkeypatch, ["05"])


def test_what_the_options_reach(world, tmp_path, monkeypatch):
    """Further options get where they are meant to; if asked, a network starts from the refined one, test is scored."""
    monkeypatch.setenv("PLG_RESULTS", str(tmp_path))
    parameters = TINY | {"dataset_options": {"root": str(world), "limit": 2}, "methods": ["paper_a", "paper_a_warm"]}
    parameters |= {"embedding_options": {"normalise_patches": True}, "evaluated": ["val", "test"]}
    parameters |= {"loss_options": {"weak_weight": 0.5}, "training_options": {"ema": 0.9}, "learning_rate": 1e-12}
    run = tmp_path / "tiny"
    for number in ("02", "03"):
        execute(number, parameters)
    refined = safetensors.numpy.load_file(run / "refined" / "network.safetensors")
    refined = {name: values + 1 if values.ndim == 4 else values for name, values in refined.items()}
    safetensors.numpy.save_file(refined, run / "refined" / "network.safetensors")  # so that one sees where it came to
    for number in ("04", "05"):
        found = execute(number, parameters)

    def made_with(stage):
        return files.read_json(run / stage / "manifest.json")["parameters"]

    assert made_with("segments")["normalise_patches"] is True
    assert made_with("network_paper_a")["weak_weight"] == made_with("refined")["weak_weight"] == 0.5
    assert made_with("network_paper_a")["ema"] == made_with("refined")["ema"] == 0.9
    for method, is_refined in (("paper_a_warm", True), ("paper_a", False)):
        trained = safetensors.numpy.load_file(run / f"network_{method}" / "network.safetensors")
        kernels = [name for name, values in refined.items() if values.ndim == 4]
        assert all(np.allclose(trained[name], refined[name], atol=1e-6) == is_refined for name in kernels)
    told = [(row["method"], row["options"], row["split"]) for row in found["rows"] if row["stage"] == "segmenter"]
    methods = [("fusion", {}), ("paper_a", {}), ("paper_a", {"start": "refined"})]
    assert told == [(*method, split) for method in methods for split in ("val", "test")]
    with pytest.raises(ValueError, match="evaluated holds tset; there are val, test"):
        execute("04", parameters | {"evaluated": ["tset"]})


def test_05_leaves_out_what_earlier_settings_have_left(world, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PLG_RESULTS", str(tmp_path))
    both = TINY | {"dataset_options": {"root": str(world), "limit": 2}, "methods": ["supervised", "direct"]}
    for number in ("02", "04"):
        execute(number, both)
    assert {row["method"] for row in execute("05", both)["rows"]} == {"segment_match", "supervised", "direct"}

    execute("04", both | {"methods": ["supervised"], "steps": 2})
    capsys.readouterr()
    assert {row["method"] for row in execute("05", both)["rows"]} == {"segment_match", "supervised"}
    assert "predictions_direct is left out: notebook 04 did not train it when it ran last" in capsys.readouterr().out
    execute("02", both | {"threshold": 0.9})  # labels_zero_shot are other ones now, the enhanced ones are of the old
    capsys.readouterr()
    execute("05", both)
    told = capsys.readouterr().out
    assert "labels_enhanced_zero_shot is left out: network_direct: it was made from an earlier labels_zero_shot" in told
    execute("05", both | {"dataset_options": {"root": str(world), "limit": 1}})
    told = capsys.readouterr().out
    assert "predictions_supervised is left out: it was made for another draw of the images" in told
    manifest = tmp_path / "tiny" / "labels_zero_shot" / "manifest.json"
    files.write_json(manifest, files.read_json(manifest) | {"state": "running"})
    execute("05", both)
    assert "labels_zero_shot is left out: it is not finished" in capsys.readouterr().out


def test_the_method_that_the_readme_adds(world, tmp_path, monkeypatch):
    """The README's lines, saved where it says, are trained by notebook 04 and scored by 05; the contract holds too."""
    readme = (files.ROOT / "README.md").read_text(encoding="utf-8")
    path, code = re.search(r"<!-- add a method: (\S+) -->\n```python\n(.*?)```", readme, re.DOTALL).groups()
    assert Path(path).parent == Path("plg_utils/losses") and f"Saved as `{path}`" in readme
    assert len(code.splitlines()) < 30 and not (files.ROOT / path).exists()
    (tmp_path / "losses").mkdir()
    (tmp_path / "losses" / Path(path).name).write_text(code, encoding="utf-8")
    monkeypatch.setattr(losses, "__path__", [*losses.__path__, str(tmp_path / "losses")])
    monkeypatch.setenv("PLG_RESULTS", str(tmp_path))
    name = Path(path).stem
    parameters = TINY | {"dataset_options": {"root": str(world), "limit": 2}, "methods": ["supervised", name]}
    history = execute("04", parameters)["histories"][name]
    assert set(history[-1]) == {"step", "lr", "total", "labelled", name}
    assert history[-1]["total"] == pytest.approx(history[-1]["labelled"] + 0.1 * history[-1][name], rel=1e-5)
    found = execute("05", parameters)
    assert [(row["method"], row["name"]) for row in found["rows"]] == [("supervised", "supervised only"), (name, name)]

    uniform = importlib.import_module(f"plg_utils.losses.{name}").entropy
    ignore = torch.tensor([[[False, True]]])
    assert uniform(torch.zeros(1, 4, 1, 2), ignore).item() == pytest.approx(math.log(4))


def test_three_labellers_label_the_same_images(world, tmp_path, monkeypatch):
    """06 labels with the truth closed, says which supervision each labeller had."""
    found = run_all(world, tmp_path, monkeypatch, ["02", "06"])
    run = tmp_path / "tiny"
    data = found["data"]
    assert all(sample.read_truth is None for sample in (*data.unlabelled, *data.val))
    assert all(sample.read_tags is None for sample in data.val)
    labelled_by = [(row["method"], row["supervision"]) for row in files.read_json(run / "summary.json")["rows"]]
    cams = [("cam", "tags"), ("sepl", "tags")]
    assert labelled_by == [("segment_match", "none"), *cams, *cams, ("boxes", "none"), ("ensemble", "tags")]
    for name in ("cam", "cam_clip_text", "sepl", "sepl_clip_text", "boxes", "ensemble"):
        maps = [
            files.read_label(run / f"labels_{name}" / f"{sample.id}.png", 11) for sample in found["samples"].values()
        ]
        assert {label.shape for label in maps} == {(128, 128)}
        wanted = "none" if name == "boxes" else "tags"
        assert files.read_json(run / f"labels_{name}" / "manifest.json")["parameters"]["supervision"] == wanted

    parameters = TINY | {"dataset_options": {"root": str(world), "limit": 2}, "labeller": "sepl"}
    refined = execute("03", parameters)
    one = data.unlabelled[0]
    expected = files.read_label(run / "labels_sepl" / f"{one.id}.png", 11)
    assert (refined["zero_shot_label"](one) == expected).all()
    assert set(files.read_json(run / "refined" / "manifest.json")["parents"]) == {"labels_sepl"}


def test_a_folder_of_photos_needs_no_label_at_all(tmp_path, monkeypatch, capsys):
    """Sizes that no network was made for, no truth anywhere: labels come out at the photos' sizes, 05 says it."""
    for name, seed in (("one.jpg", 0), ("two.png", 1)):
        files.write_image(tmp_path / "photos" / name, storybook.draw(seed).image[: 70 + seed, :99])
    monkeypatch.setenv("PLG_RESULTS", str(tmp_path / "results"))
    options = {"root": str(tmp_path / "photos"), "classes": ["fish", "house"]}
    parameters = TINY | {"dataset": "folder", "dataset_options": options, "threshold": None}
    for number in ("00", "01", "02", "05"):
        execute(number, parameters)
    assert "There is no truth to compare with" in capsys.readouterr().out
    execute("06", parameters | {"cam_sources": []})
    assert "There is no truth to compare with" in capsys.readouterr().out
    with pytest.raises(ValueError, match="2 of 2 images have no tags.* set cam_sources = "):
        execute("06", parameters)
    labels = tmp_path / "results" / "tiny" / "labels_zero_shot"
    assert files.read_label(labels / "one.png", 3).shape == (70, 99)
    assert files.read_label(labels / "two.png", 3).shape == (71, 99)
