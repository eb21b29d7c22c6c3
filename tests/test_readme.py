"""README, docs and the list of runs: numbers as measured, links that exist, examples that work, plain words."""

import importlib.util
import json
import re
import shutil
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch

from plg_utils import datasets, encoders, files, stages
from plg_utils import masks as mask_models

ROOT = files.ROOT
SPEC = importlib.util.spec_from_file_location("tables_of_the_docs", ROOT / "docs" / "tables.py")
tables = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(tables)

TEXTS = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "results/README.md")]
TEXTS += sorted((ROOT / "docs").glob("*.md"))
NOTEBOOKS = sorted((ROOT / "notebooks").glob("**/*.ipynb"))
HARD_WORDS = ("anew", "mend", "mends", "mended", "whoever", "nobody", "dear")
text_of = pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.name)


def prose(path):
    """Lines of a Markdown file that are neither code nor table."""
    text = re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    return [line for line in text.splitlines() if not line.startswith("|")]


# Numbers


def test_tables_and_numbers_are_those_of_the_results(capsys):
    assert tables.main(["--check"]) == 0, capsys.readouterr().out


def test_a_number_that_was_not_measured_is_found_and_corrected(tmp_path, monkeypatch, capsys):
    for path in tables.documents():
        (tmp_path / path.relative_to(ROOT)).parent.mkdir(exist_ok=True)
        shutil.copy(path, tmp_path / path.relative_to(ROOT))
    monkeypatch.setattr(tables, "documents", lambda: sorted(tmp_path.rglob("*.md")))
    monkeypatch.setattr(tables, "ROOT", tmp_path)
    readme = tmp_path / "README.md"
    right = readme.read_text(encoding="utf-8")
    readme.write_text(right.replace("| 75.8 |", "| 85.8 |"), encoding="utf-8")
    assert tables.main(["--check"]) == 1
    assert capsys.readouterr().out == "out of date, run make tables: README.md: demo\n"
    assert tables.main([]) == 0 and readme.read_text(encoding="utf-8") == right


def by_seed(*grids, column="name"):
    """Mean IoU of each network or label map with twelve labelled scenes: name -> Series over the seeds."""
    found = tables.once(tables.rows(*grids))
    return {name: of.set_index("seed").miou.sort_index() for name, of in found.groupby([column, "labelled"])}


@pytest.mark.parametrize("grid", ["demo_seeds", "storybook_table"])
def test_what_the_text_says_about_each_seed(grid):
    of = {name: miou for (name, labelled), miou in by_seed(grid).items() if labelled == 12}
    assert (of[tables.SHARP] > of[tables.RAW] + 0.04).all() and (of[tables.SHARP] > of[tables.SOFT]).all()
    order = [tables.SUPERVISED, tables.UNIMATCH, tables.LONG, tables.PAPER]
    assert all((of[worse] < of[better]).all() for worse, better in zip(order, order[1:], strict=False))
    assert (of[tables.PAPER] > of[tables.UNIMATCH] + 0.1).all()
    assert of[tables.PLAIN].mean() < of[tables.LONG].mean()


def test_what_the_text_says_about_more_labelled_scenes():
    found = by_seed("storybook_labelled")
    for count in (24, 48):
        of = {name: miou for (name, labelled), miou in found.items() if labelled == count}
        assert len(of[tables.PAPER]) == 3 and (of[tables.PAPER] > of[tables.LONG]).all()
        assert (of[tables.PAPER] > of[tables.UNIMATCH]).all() and (of[tables.SHARP] > of[tables.RAW] + 0.04).all()


def test_what_the_text_says_about_camvid():
    camvid = tables.rows("camvid_table")
    supervised, unimatch = (camvid[camvid["name"] == name].set_index("seed") for name in camvid["name"].unique())
    assert (unimatch.miou < supervised.miou).all()
    for name in ("pedestrian", "sign", "pavement"):
        assert unimatch.iou.str[name].sum() < 0.8 * supervised.iou.str[name].sum()


def test_what_the_text_says_about_few_labels():
    """The filter's promise, its networks in each draw, the best recipe, and the words that were chosen."""
    damage = tables.read("bench/filter_draws.json")["damage"]
    assert sum(of["broken"] for of in damage.values()) == 1 and len(damage) == 6
    miou = {
        (row["method"], row["labeller"], row["spoiled"], row["seed"]): row["miou"]
        for row in tables.read("spoiled_names/grid.json")["rows"]
        if row["stage"] == "segmenter"
    }
    plain = {(row["name"], row["seed"]): row["miou"] for row in tables.read("demo_seeds/grid.json")["rows"]}
    used = {(row["name"], row["seed"]): row["miou"] for row in tables.read("best_words/grid.json")["rows"]}
    for seed in range(3):
        raw, filtered = (
            {share: miou["direct", labeller, share, seed] for share in (0.0, 0.5)}
            for labeller in ("segment_match", "filtered")
        )
        assert filtered[0.5] > raw[0.5] + 0.1 and filtered[0.5] > plain[tables.SUPERVISED, seed]
        assert abs(filtered[0.0] - raw[0.0]) < 0.005
        assert used[f"{tables.PAPER}, with SAM", seed] > plain[tables.PAPER, seed] + 0.015

    def mean(table, *key):
        return np.mean([table[*key, seed] for seed in range(3)])

    for ending, gain in (("", 2), (", with SAM", 0.5)):  # of the refinement, points
        both = [mean(used, f"{name}{ending}") for name in (tables.PAPER, tables.LONG)]
        assert round(200 * (both[0] - both[1])) / 2 == gain
    half = [mean(miou, "direct", labeller, 0.5) for labeller in ("segment_match", "filtered")]
    assert half[0] < mean(plain, tables.UNIMATCH) < half[1]
    for labeller, lost in (("filtered", 3), ("segment_match", 16)):
        clean, spoiled = (mean(miou, "paper_a", labeller, share) for share in (0.0, 0.5))
        assert round(100 * (clean - spoiled)) == lost
    chosen = tables.read("chosen_words/07_prompt_lab.json")["chosen"]
    assert chosen["nested"] > chosen["before"] + 0.2


def test_what_the_text_says_about_speed_and_failures():
    read = tables.read
    for name in tables.SAMS.values():
        found = read(f"bench/{name}.json")["agreement"]
        assert found["masks"][0] == found["masks"][1]
        assert found["pixels_that_differ"] <= 0.1 * found["masks"][0] and found["largest_logit_there"] < 1e-4
    for name in ("masks", "labels"):
        found = read(f"bench/scaling_{name}_images.json")
        assert found["r2"] >= 0.99 and found["peak_memory_mb"][-1] < 1.03 * found["peak_memory_mb"][0]
    assert read("bench/scaling_processes.json")["agreement"] == {"equal_label_maps": True}
    assert read("bench/scaling_processes.json")["sizes"] == [1, 2, 4]
    failures = read("reliability.json")
    kills, fuzz, malformed = (dict(failures[name]) for name in ("kills", "fuzz", "malformed"))
    assert sum(kills["by_stage"].values()) == kills["kills"] >= 50
    assert sum(fuzz[end] for end in ("read", "refused", "failed", "crashed", "hung")) == fuzz["files"]
    assert malformed.pop("cases") == sum(malformed.values()) >= 80
    for name, digest in read("miniatures/measured.json")["sha256"].items():  # measured with the weights that are here
        assert files.sha256(ROOT / "plg_utils" / "miniature" / f"{name}.safetensors") == digest


# Links, length, words


def slugs(path):
    """Anchors of a Markdown file's headings, as GitHub makes them."""
    heads = [line.lstrip("# ") for line in prose(path) if line.startswith("#")]
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@text_of
def test_links_exist(path):
    text = path.read_text(encoding="utf-8")
    assert (found := re.findall(r"\]\((?!https?:)([^)\s]+)\)", text))
    for target in found:
        name, _, anchor = target.partition("#")
        file = path.parent / name if name else path
        assert file.exists(), target
        assert not anchor or anchor in slugs(file), target
    named = re.compile(r"`((?:tests|plg_utils|benchmarks)/[\w/]+\.\w+)`")
    assert any(named.search(each.read_text(encoding="utf-8")) for each in TEXTS)  # not in each text
    for name in named.findall(text):
        assert (ROOT / name).exists() or f": {name} -->" in text, name


def test_the_readme_stays_short():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 200 and len(text.split()) <= 2500


@text_of
def test_lines_are_short_and_words_plain(path):
    assert [line for line in prose(path) if len(line) > 120] == []
    assert re.findall(rf"\b(?:{'|'.join(HARD_WORDS)})\b", path.read_text(encoding="utf-8"), re.IGNORECASE) == []


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_words_of_the_notebooks_are_plain(path):
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    text = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    assert re.findall(rf"\b(?:{'|'.join(HARD_WORDS)})\b", text, re.IGNORECASE) == []


def test_the_map_names_what_there_is():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").split("```")[1]
    inside = re.findall(r"^  ([\w.]+)/? ", text, re.MULTILINE)
    assert len(inside) > 8 and all((ROOT / "plg_utils" / name).exists() for name in inside)
    assert all((ROOT / name).is_dir() for name in re.findall(r"^(\w+)/ ", text, re.MULTILINE))


def test_each_situation_has_a_test():
    rows = [
        line for line in (ROOT / "docs" / "situations.md").read_text(encoding="utf-8").splitlines() if "test_" in line
    ]
    tests = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").glob("test_*.py"))
    assert len(rows) >= 60
    for name in {name for row in rows for name in re.findall(r"test_\w+", row)}:
        assert f"def {name}(" in tests, name


# The examples; the loss of the README is trained in test_pipeline.py


def example(what):
    """Path and code of an example of the README or of CONTRIBUTING.md."""
    text = "".join((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "CONTRIBUTING.md"))
    ((path, code),) = re.findall(rf"<!-- add {what}: (\S+) -->\n```python\n(.*?)```", text, re.DOTALL)
    return Path(path), code


def test_the_mask_model_the_encoder_and_the_method_of_the_text_work(world, tmp_path, monkeypatch):
    """Copied where the text says, they label two storybook scenes, and a network learns from these labels."""
    monkeypatch.setenv("PLG_RESULTS", str(tmp_path))
    modules = {}
    for what, package in (("a mask model", mask_models), ("an encoder", encoders)):
        path, code = example(what)
        assert path.parent.name == package.__name__.rpartition(".")[2] and not (ROOT / path).exists()
        folder = tmp_path / path.parent.name
        folder.mkdir()
        (folder / path.name).write_text(code, encoding="utf-8")
        monkeypatch.setattr(package, "__path__", [*package.__path__, str(folder)])
        modules[path.stem] = import_module(f"{package.__name__}.{path.stem}")
        assert modules[path.stem].build(**modules[path.stem].SMOKE)

    run = stages.open_run("examples", datasets.load("storybook", root=world, labelled=2, limit=2), device="cpu")
    stages.masks(run, mask_model="grid", mask_options={"cells": 4})
    found = run.masks_of(run.images[0]).dense()
    assert len(found) == 16 and (found.sum(axis=0) == 1).all() and (found.sum(axis=(1, 2)) == 32 * 32).all()

    clip = {"encoder": "colours", "encoder_options": {"words": {"sky": "lightblue", "tree": "green"}}}
    stages.segments(run, **clip, embedding_options={})
    mean = run.images[0].image()[found[0]].mean(axis=0) / 127.5 - 1
    assert run.embeddings_of(run.images[0])[0].numpy() == pytest.approx(mean, abs=1e-5)
    assert stages.words(run, **clip)[0].norm(dim=1).numpy() == pytest.approx(1)
    stages.labels(run, **clip, rule="cosine", threshold=0.0, default_threshold=0.0, overlap="score")
    tree = run.data.classes.names.index("tree")
    assert any((run.label_of("labels_zero_shot", sample) == tree).any() for sample in run.images)

    path, code = example("an arm")
    monkeypatch.setattr(stages, "METHODS", dict(stages.METHODS))
    assert path == Path("plg_utils/stages.py")
    exec(code, vars(stages))  # noqa: S102  the lines of our own README
    training = stages.Training(
        segmenter="deeplabv3plus", segmenter_options={"encoder": "miniature", "width": 8, "skip": 4},
        smoothing=0.1, weak_weight=None, passes="exact", loss_options={}, warm_up=None, steps=1, batch_size=2,
        crop_size=32, resize_range=(0.5, 2.0),
        optimizer="adamw", learning_rate=1e-3, head_lr_factor=1.0, training_options={}, precision="fp32",
        channels_last=False, compiled=False, workers=0, seed=0,
    )  # fmt: skip
    trained = stages.train(run, training, "direct_hard", labeller="segment_match", confidence=0.95)
    assert torch.isfinite(torch.tensor(trained.history[-1]["total"]))
    made_with = files.read_json(run.folder / "network_direct_hard" / "manifest.json")["parameters"]
    assert (made_with["smoothing"], made_with["refine_target"]) == (0.0, "zero_shot")
