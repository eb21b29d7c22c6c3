"""The prompt lab: by hand on squares, to the byte against notebook 02, and the panel's widgets."""

import html
import re
import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_pipeline import execute

from conftest import COLOURS, RGB, colour_squares
from plg_utils import class_files, datasets, encoders, files, labels, metrics, prompt_lab
from plg_utils.generators import segment_match
from plg_utils.records import IGNORE, Classes, Masks, Sample

WORLD = {"run": "tiny", "labelled": 2}
ENCODER = {"encoder": "clip", "checkpoint": "miniature_clip"}
NAMES = ("black", "red", "green", "blue")
NO_BACKGROUND = Classes(NAMES, tuple((name,) for name in NAMES), RGB, None)


class Words:
    """An encoder whose sentences are directions: one for each colour, and one for all other words."""

    def __init__(self):
        self.asked = []

    def texts(self, phrases):
        self.asked += phrases
        found = [next((k for k, word in enumerate(NAMES) if word in phrase), 4) for phrase in phrases]
        return torch.eye(5)[found]

    def unseen_words(self, texts):
        return [word for text in texts for word in ("orange", "<i>") if word in text]


def squares_lab(classes=COLOURS, *, truth=True, images=2):
    """A lab of images with a black, a red, a green and a blue mask; each has cosine 0.8 with its own colour."""
    drawn = [colour_squares(seed) for seed in range(images)]
    return prompt_lab.Lab(
        classes=classes,
        how={"rule": "cosine", "threshold": 0.5, "overlap": "score"},
        samples=tuple(Sample(f"image_{k}", lambda k=k: drawn[k].image) for k in range(images)),
        masks=tuple(Masks.from_dense(each.masks) for each in drawn),
        segment_embeddings=(torch.eye(5)[:4] * 0.8 + torch.eye(5)[4] * 0.6,) * images,
        truths=tuple(each.truth for each in drawn) if truth else (),
        shown=tuple(range(images)),
        encode=Words(),
    )


@pytest.fixture(scope="module")
def made(world, tmp_path_factory):
    """The results of notebook 02 on two labelled and two unlabelled scenes."""
    results = tmp_path_factory.mktemp("results")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PLG_RESULTS", str(results))
        found = execute("02", WORLD | {"dataset_options": {"root": str(world), "limit": 2}})
    encode = encoders.build("clip", checkpoint="miniature_clip")
    return SimpleNamespace(results=results, folder=results / "tiny", data=found["data"], encode=encode)


@pytest.fixture
def lab(made):
    return prompt_lab.load(made.folder, made.data, made.encode, made_with=ENCODER, shown=4)


# Trying out


def test_squares_by_hand():
    lab = squares_lab()
    before = lab.try_out()
    for label, truth in zip(before.labels, lab.truths, strict=True):
        np.testing.assert_array_equal(label, truth)
    assert before.mean_iou == 1.0
    # best minus second best: 0.8 with the own colour, 0 with all others; black is a background word, so it is negative
    np.testing.assert_allclose(before.margins, [-0.8, 0.8, 0.8, 0.8] * 2, atol=1e-6)

    swapped = lab.try_out(prompt_lab.edit(COLOURS, words={"red": ["green"], "green": ["red"]}))
    np.testing.assert_array_equal(swapped.iou, [1, 0, 0, 1])
    assert swapped.mean_iou == 0.5
    np.testing.assert_array_equal(prompt_lab.changed(before, swapped), [2 / 6] * 2)  # two of six squares
    rows = prompt_lab.class_rows(before, swapped)
    assert rows[1] == {"class": "red", "iou": 0, "change": -1, "segments": 2, "margin": pytest.approx(0.8)}
    assert rows[0]["margin"] == pytest.approx(0.8)  # black's, without its sign

    lost = lab.try_out(prompt_lab.edit(COLOURS, words={"background": [], "blue": ["an orange"]}))  # 0.6 near to all
    assert lost.assigned.tolist() == [3, 1, 2, 3] * 2
    np.testing.assert_allclose(lost.margins, [0.6, 0.2, 0.2, 0.6] * 2, atol=1e-6)
    assert lost.unknown == {"blue": ("orange",)}
    assert lab.try_out(threshold=0.81).iou[0] == 0.5  # half of the pixels are black, all are given it
    assert lab.try_out().mean_iou == 1.0  # nothing is left of what was tried
    assert len(lab.encode.asked) == len(set(lab.encode.asked)) == 5  # each sentence is encoded once


def test_the_runs_words_give_the_label_maps_of_notebook_02(made, lab):
    first = lab.try_out()
    lab.try_out(prompt_lab.edit(made.data.classes, words={"tree": ["a fish"], "fish": ["a tree"]}), threshold=0.4)
    again = lab.try_out()
    for sample, *both in zip(lab.samples, first.labels, again.labels, strict=True):
        written = files.read_label(made.folder / "labels_zero_shot" / f"{sample.id}.png")
        assert {written.tobytes()} == {label.tobytes() for label in both}
    assert prompt_lab.same_as_written(lab, first, made.folder) == 4
    assert prompt_lab.same_as_written(lab, lab.try_out(threshold=0.6), made.folder) < 4
    assert lab.best_threshold() == lab.how["threshold"]


def test_without_a_truth_or_a_background_and_with_names_that_look_like_html(tmp_path):
    tagged = replace(COLOURS, names=("background", "<i>red", "green", "blue"))
    blind, everything = squares_lab(tagged, truth=False), squares_lab(NO_BACKGROUND)
    one = squares_lab(Classes(("background", "red"), ((), ("red",)), RGB[:2]), truth=False)
    assert np.isnan(blind.try_out().mean_iou) and np.isnan(blind.try_out().iou).all()
    assert everything.try_out(threshold=0.99).mean_iou == 1.0  # the threshold is not read
    assert np.isnan(one.try_out().margins).all()
    for lab in (blind, everything, one):
        panel = prompt_lab.Panel(lab, tmp_path / "classes.yaml")
        assert lab.best_threshold() is None and panel.best.disabled and not panel.wrong
        assert panel.threshold.disabled == (lab is everything)
        assert ("no truth" in panel.status.value) == (lab is not everything)
        assert "nan" not in panel.status.value
        if lab is blind:
            panel.words["<i>red"].value = "<i>"
            assert all(
                "&lt;i&gt;" in shown and "<i>" not in shown for shown in (panel.table.value, panel.message.value)
            )


# Reading a run


def test_only_the_truth_of_labelled_images_is_opened(made, world):
    opened = datasets.load("storybook", root=world, labelled=2, limit=2, truth_of=("labelled", "unlabelled"))
    lab = prompt_lab.load(made.folder, opened, made.encode, shown=4)
    assert [sample.id for sample in lab.samples] == [s.id for s in (*opened.labelled, *opened.unlabelled)]
    assert (len(lab.truths), lab.shown) == (2, (0, 1, 2, 3))
    fewer = prompt_lab.load(made.folder, opened, made.encode, scored=1, shown=3)
    assert (len(fewer.truths), fewer.shown) == (1, (0, 1, 2))


def test_what_is_missing_names_the_notebook_to_run(made, tmp_path):
    def refused(error, says, folder=tmp_path / "tiny", **options):
        with pytest.raises(error, match=says):
            prompt_lab.load(folder, made.data, made.encode, **options)

    other, first = {"encoder": "clip", "checkpoint": "ViT-B/16"}, made.data.labelled[0].id
    refused(ValueError, "'encoder': 'clip'.*not with .*'ViT-B/16'", made.folder, made_with=other)
    refused(ValueError, "no image to try words on", made.folder, scored=0)
    refused(FileNotFoundError, "manifest.json does not exist.*run notebooks/02_zero_shot_labels.ipynb")
    shutil.copytree(made.folder, tmp_path / "tiny")
    files.write_json(tmp_path / "tiny/segments/outputs.json", {f"{first}.safetensors": {"photo": "of before"}})
    refused(ValueError, rf"segments cannot be used: {first} has changed since \(photo.*run notebooks/02")
    shutil.copy(made.folder / "segments/outputs.json", tmp_path / "tiny/segments")
    files.write_embeddings(tmp_path / "tiny" / "segments" / f"{first}.safetensors", torch.zeros(99, 4))
    refused(ValueError, "other numbers of masks than of embeddings", scored=1)
    path = tmp_path / "tiny" / "masks" / "manifest.json"
    files.write_json(path, files.read_json(path) | {"state": "running"})
    refused(ValueError, "masks cannot be used: it is not finished. To make it again, run notebooks/02")


# Words and class files


def test_an_edit_changes_only_words_and_templates():
    words, add = {"red": ["a rose"], "blue": ["ink"]}, {"background": ["a sea"]}
    edited = prompt_lab.edit(COLOURS, words=words, add=add, templates=["{}", "a {}!"])
    new = (("black", "a sea"), ("a rose",), ("green",), ("ink",))
    assert edited == replace(COLOURS, words=new, templates=("{}", "a {}!"))
    assert prompt_lab.edit(COLOURS) == COLOURS


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"words": {"mauve": ["a sea"]}}, "no class 'mauve', only background, red"),
        ({"words": {"red": ["a rose", "Blue "]}}, "red and blue share the word 'blue'"),
        ({"add": {"background": ["a sea"], "red": ["A sea"]}}, "background and red share the word 'a sea'"),
        ({"templates": ["a photo"]}, "'a photo' needs one {}"),
    ],
)
def test_a_wrong_edit_is_refused(change, reason):
    with pytest.raises(ValueError, match=re.escape(reason)):
        prompt_lab.edit(COLOURS, **change)


word = st.text("aÉß字 ,\"'#:{}-1", min_size=1, max_size=8).map(str.strip).filter(bool)


@given(st.lists(word, max_size=4))
def test_a_line_of_words_reads_back(words):
    assert prompt_lab.words_of(prompt_lab.line_of(words)) == words
    assert prompt_lab.words_of("\n , ".join(map(prompt_lab.line_of, [words, words]))) == words * 2


def test_a_class_file_reads_back_and_its_name_holds_its_hash(tmp_path):
    words = {"red": ["no", "1", "ein Röslein, rot", "# {x}: 'y'"]}
    edited = prompt_lab.edit(COLOURS, words=words, templates=["{}: so"])
    path, digest = prompt_lab.save(tmp_path / "mine.yaml", edited, "run tiny\nthreshold 0.2")
    assert digest == class_files.sha256(edited)
    assert path == tmp_path / f"mine-{digest[:8]}.yaml" and class_files.read(path) == edited
    assert "# run tiny\n# threshold 0.2\n" in path.read_text(encoding="utf-8")
    assert prompt_lab.save(tmp_path / "mine.yaml", edited) == (path, digest)
    other, _ = prompt_lab.save(tmp_path / "mine.yaml", COLOURS)
    assert sorted(tmp_path.iterdir()) == sorted([path, other])
    path.write_text(other.read_text(encoding="utf-8"), encoding="utf-8")
    with pytest.raises(ValueError, match="was changed"):
        prompt_lab.save(tmp_path / "mine.yaml", edited)


# Words that the labelled images choose


class Random:
    """An encoder whose sentences are directions near one that the test wants, or anywhere."""

    def __init__(self, near=(), noise=0.8):
        self.near, self.noise = dict(near), noise

    def texts(self, phrases):
        found = []
        for phrase in phrases:
            drawn = torch.randn(5, generator=torch.Generator().manual_seed(sum(map(ord, phrase))))
            found.append(torch.eye(5)[self.near[phrase]] + self.noise * drawn if phrase in self.near else drawn)
        return torch.nn.functional.normalize(torch.stack(found), dim=1)


def random_lab(seed=0, images=4, *, classes=COLOURS, overlap="score", rule="cosine"):
    """A lab of boxes over each other, with noisy embeddings, noisy words, and void."""
    rng = np.random.default_rng(seed)
    masks, embeddings, truths = [], [], []
    for _ in range(images):
        owner, drawn, truth = rng.integers(0, 4, 8), np.zeros((8, 14, 18), bool), np.zeros((14, 18), np.uint8)
        for mask, k in zip(drawn, owner, strict=True):
            top, left = rng.integers(0, 10), rng.integers(0, 14)
            mask[top : top + rng.integers(2, 7), left : left + rng.integers(2, 7)] = True
            truth[mask] = k
        truth[rng.random(truth.shape) < 0.05] = IGNORE
        masks.append(Masks.from_dense(drawn, rng.random(8)))
        embeddings.append(torch.eye(5)[owner] + 0.4 * torch.tensor(rng.normal(size=(8, 5))).float())
        truths.append(truth)
    near = {f"a photo of a {word}.": k for k, word in enumerate(NAMES)}
    near |= {f"a photo of a {word} thing.": k for k, word in enumerate(NAMES)}
    how, samples = {"rule": rule, "threshold": 0.3, "overlap": overlap}, (Sample("0", None),) * images
    return prompt_lab.Lab(classes, how, samples, tuple(masks), tuple(embeddings), tuple(truths), (), Random(near))


CANDIDATES = {"red": ["red thing", "red cloth"], "green": ["green thing"]}
CANDIDATES |= {"background": ["black thing"], "templates": ["see {}"]}


@pytest.mark.parametrize("rule", ["cosine", "softmax"])
@pytest.mark.parametrize("overlap", labels.OVERLAPS)
def test_parts_are_counted_as_pixels(overlap, rule):
    lab = random_lab(overlap=overlap, rule=rule)
    trials = prompt_lab._Trials(lab)
    for words in ({}, {"red": ["red thing", "red cloth"], "background": []}):
        classes = prompt_lab.edit(lab.classes, words=words)
        counts = trials.counts(classes)
        for threshold, of_threshold in list(zip(segment_match.GRID, counts, strict=True))[::5]:
            outcome = lab.try_out(classes, threshold=float(threshold))
            pairs = zip(lab.truths, outcome.labels, strict=True)
            expected = [np.stack(metrics.margins(metrics.confusion(*pair, 4), "background", 0)) for pair in pairs]
            np.testing.assert_array_equal(of_threshold, expected)
            assert prompt_lab._mean_iou(of_threshold.sum(axis=0)) == pytest.approx(outcome.mean_iou, abs=1e-12)
        assert segment_match.GRID[prompt_lab._best(counts.sum(axis=1))] == lab.best_threshold(classes)
    everything = random_lab(classes=NO_BACKGROUND, overlap=overlap, rule=rule)
    counts = prompt_lab._Trials(everything).counts(NO_BACKGROUND).sum(axis=1)
    assert prompt_lab._mean_iou(counts) == pytest.approx([everything.try_out().mean_iou], abs=1e-12)


def of_images(lab, images):
    """The lab with some of its images."""
    parts = {name: tuple(getattr(lab, name)[k] for k in images) for name in ("masks", "segment_embeddings", "truths")}
    return replace(lab, samples=tuple(lab.samples[k] for k in images), **parts)


def pooled(lab, choose):
    """Mean IoU of all images, each with the words and the threshold that `choose` takes from a lab of the others."""
    matrix = 0
    for out in range(len(lab.truths)):
        classes, threshold = choose(of_images(lab, [k for k in range(len(lab.truths)) if k != out]))
        label = of_images(lab, [out]).try_out(classes, threshold=threshold).labels[0]
        matrix = matrix + metrics.confusion(lab.truths[out], label, 4)
    return metrics.scores(matrix).mean_iou


def test_each_image_is_labelled_by_what_the_others_choose():
    lab = random_lab(3)
    choice = prompt_lab.choose_words(lab, CANDIDATES)
    for classes, found in ((lab.classes, choice.before), (choice.classes, choice.after)):
        expected = pooled(lab, lambda rest, classes=classes: (classes, rest.best_threshold(classes)))
        assert found == pytest.approx(expected, abs=1e-12)

    def chosen_by(rest):
        found = prompt_lab.choose_words(rest, CANDIDATES)
        return found.classes, found.threshold

    assert choice.nested == pytest.approx(pooled(lab, chosen_by), abs=1e-12)
    assert choice.threshold == lab.best_threshold(choice.classes)


def test_a_candidate_must_help_whichever_image_is_left_out():
    """The effects in plain words, and that the loop stops where none rises."""
    lab = random_lab(1)
    choice = prompt_lab.choose_words(lab, CANDIDATES)
    rows = {(row["class"], row["word"]): row for row in choice.rows}
    assert set(rows) == {(name, word) for name, words in CANDIDATES.items() for word in words}
    kept = [row for row in rows.values() if row["kept"]]
    assert kept and all(row["effect"] > 0 and row["worst"] > 0 for row in kept)
    assert choice.after == pytest.approx(choice.before + sum(row["effect"] for row in kept))

    others = [of_images(lab, [k for k in range(4) if k != out]) for out in range(4)]

    def scores(classes):
        labels_of = [rest.try_out(classes, threshold=rest.best_threshold(classes)) for rest in others]
        return np.array([outcome.mean_iou for outcome in labels_of])

    refused, chosen = [row for row in rows.values() if not row["kept"]], scores(choice.classes)
    assert any(row["effect"] > 0 for row in refused)  # it helps, but one image alone is the reason
    for row in refused:
        assert min(row["effect"], row["worst"]) <= 1e-9
        more = {"templates": [*choice.classes.templates, row["word"]]} if row["class"] == "templates" else {}
        classes = prompt_lab.edit(choice.classes, **more or {"add": {row["class"]: [row["word"]]}})
        assert row["worst"] == pytest.approx((scores(classes) - chosen).min(), abs=1e-12)


def test_swapped_words_find_their_class():
    """By hand: red has green's word and green red's; a candidate takes its word from the class that has it."""
    wrong = prompt_lab.edit(COLOURS, words={"red": ["green"], "green": ["red"]})
    lab = squares_lab(wrong, images=3)
    candidates = {"red": ["red"], "green": ["green"], "blue": ["a sea"]}
    choice = prompt_lab.choose_words(lab, candidates)
    assert choice.classes.words == (("black",), ("red",), ("green",), ("blue",))
    assert (choice.before, choice.after, choice.nested) == (0.5, 1, 1)
    first, second, third = choice.rows
    assert first == {"class": "red", "word": "red", "kept": True, "effect": 0.5, "worst": 0.5}
    assert second["kept"] and np.isnan(second["effect"])  # it came with the first
    assert third == {"class": "blue", "word": "a sea", "kept": False, "effect": 0, "worst": 0}
    alone = prompt_lab.choose_words(lab, {"red": ["red"]})  # green would be left without a word
    assert alone.classes == wrong and not alone.rows[0]["kept"] and np.isnan(alone.rows[0]["effect"])
    assert np.isnan(prompt_lab.choose_words(squares_lab(wrong), candidates).nested)  # of two images
    assert "unknown on others" in str(prompt_lab.choose_words(squares_lab(wrong), candidates))


def test_one_class_and_words_that_were_never_read(tmp_path):
    one = Classes(("background", "red"), ((), ("red",)), RGB[:2])
    lab = replace(squares_lab(one), truths=tuple((truth == 1).astype(np.uint8) for truth in squares_lab().truths))
    with pytest.warns(UserWarning, match=r"never read these candidates.*\['an orange'\]"):
        choice = prompt_lab.choose_words(lab, {"red": ["an orange"], "background": ["black"], "templates": []})
    assert not any(row["kept"] for row in choice.rows)
    path = tmp_path / "candidates.yaml"
    path.write_text("red: [RED, a rose]")
    assert prompt_lab.read_candidates(path, one) == {"red": ["RED", "a rose"]}
    assert [row["word"] for row in prompt_lab.choose_words(lab, path).rows] == ["a rose"]  # the class has the other


@pytest.mark.parametrize(
    ("candidates", "reason"),
    [
        (["red"], "candidates must map classes to lists of words, and are ['red']"),
        ({"mauve": []}, "no class 'mauve', only background, red"),
        ({"red": "a rose"}, "candidates of red must be a list of texts, not 'a rose'"),
        ({"red": [True]}, "candidates of red must be a list of texts, not [True]"),
        ({"red": ["a rose"], "blue": ["a  Rose"]}, "both have the word 'a "),
        ({"templates": ["a photo"]}, "'a photo' needs one {}"),
    ],
)
def test_wrong_candidates_are_refused(candidates, reason, tmp_path):
    with pytest.raises(ValueError, match=re.escape(reason)):
        prompt_lab.choose_words(squares_lab(), candidates)
    path = tmp_path / "candidates.yaml"
    path.write_text("red: a rose")
    with pytest.raises(ValueError, match=re.escape(f"candidates of red in {path} must be a list of texts")):
        prompt_lab.read_candidates(path, COLOURS)
    for lab in (squares_lab(truth=False), squares_lab(images=1)):
        with pytest.raises(ValueError, match=f"left out in turn, and {len(lab.truths)} have a truth: label two"):
            prompt_lab.choose_words(lab, {"red": ["a rose"]})


# The panel


@pytest.fixture
def panel(lab, tmp_path):
    return prompt_lab.Panel(lab, tmp_path / "classes.yaml", "a test")


def test_a_word_in_a_box_is_tried_at_once(panel, made, lab):
    assert panel.classes() == made.data.classes and panel.threshold.value == lab.how["threshold"]
    assert f"mean IoU {100 * panel.outcome.mean_iou:.1f} %" in panel.status.value
    assert not any(box.continuous_update for box in (*panel.words.values(), panel.templates, panel.threshold))
    before = bytes(panel.gallery.value), bytes(panel.margins.value), panel.table.value
    assert before[0].startswith(b"\x89PNG") and before[1].startswith(b"\x89PNG")

    thing = next(lab.classes.names[k] for k in np.unique(lab.truths[0]) if k not in (0, IGNORE))
    panel.words[thing].value = "a <b>toadstool</b>"
    expected = lab.try_out(prompt_lab.edit(lab.classes, words={thing: ["a <b>toadstool</b>"]}))
    for label, wanted in zip(panel.outcome.labels, expected.labels, strict=True):
        np.testing.assert_array_equal(label, wanted)
    points = 100 * (expected.mean_iou - panel.saved.mean_iou)
    assert points < 0 and f"({points:+.1f})" in panel.status.value
    assert "toadstool" in panel.message.value and f"({thing})" in panel.message.value
    after = bytes(panel.gallery.value), bytes(panel.margins.value), panel.table.value
    assert not set(before) & set(after)

    panel.reset.click()
    assert panel.message.value == "" and "(+0.0)" in panel.status.value
    assert before == (bytes(panel.gallery.value), bytes(panel.margins.value), panel.table.value)
    assert repr(panel) == "the panel of the prompt lab"  # executed notebooks hold it


def test_wrong_words_are_explained_and_not_saved(panel, tmp_path):
    tree = panel.words["tree"]
    for box, text, reason in (
        (tree, "", "words of tree must be a list of texts"),
        (tree, '"a <i>tree', "fix the quotes"),
        (tree, "a tree " * 60, "too long"),
        (panel.templates, "\n", "templates must be"),
    ):
        before, box.value = panel.outcome, text
        assert reason in panel.wrong and html.escape(panel.wrong) in panel.message.value
        panel.best.click()
        panel.save.click()
        assert panel.message.value == html.escape(f"Not saved: {panel.wrong}")
        assert panel.outcome is before and list(tmp_path.glob("*.yaml")) == []
        panel.reset.click()
        assert panel.wrong == panel.message.value == ""


def test_changes_are_counted_from_the_saved_words(panel, tmp_path, lab):
    panel.threshold.value = 0.7
    lost = panel.outcome.mean_iou
    assert lost < panel.saved.mean_iou
    panel.words["tree"].value = 'a tree, "a tree, green"'
    panel.save.click()
    (path,) = tmp_path.glob("*.yaml")
    assert str(path) in panel.message.value and class_files.sha256(panel.classes()) in panel.message.value
    assert class_files.read(path).words[2] == ("a tree", "a tree, green")
    assert "# threshold 0.7, mean IoU" in path.read_text(encoding="utf-8")
    assert "(+0.0)" in panel.status.value
    panel.best.click()
    assert panel.threshold.value == lab.best_threshold(panel.classes())
    assert panel.saved.mean_iou == lost < panel.outcome.mean_iou
    (tmp_path / "file").write_text("not a folder")
    panel.path = tmp_path / "file" / "classes.yaml"
    panel.save.click()
    assert "Not saved" in panel.message.value


# The notebook


def test_the_notebook_runs_without_a_browser(made, world, monkeypatch, capsys, tmp_path):
    parameters = WORLD | {"dataset_options": {"root": str(world), "limit": 2}}
    monkeypatch.setenv("PLG_RESULTS", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="run notebooks/02_zero_shot_labels.ipynb"):
        execute("07", parameters)
    monkeypatch.setenv("PLG_RESULTS", str(made.results))
    before = {path: path.read_bytes() for path in made.folder.rglob("*") if path.is_file()}
    found = execute("07", parameters)
    said = capsys.readouterr().out
    assert "4 of 4 label maps equal those of notebook 02" in said and "read back and compared: True" in said
    after = {path: path.read_bytes() for path in made.folder.rglob("*") if path.is_file()}
    digest = class_files.sha256(made.data.classes)
    pictures = {f"figures/07_{name}.png" for name in ("edits", "margins", "panel")}
    new = {path.relative_to(made.folder).as_posix() for path in after.keys() - before.keys()}
    assert before.items() <= after.items()
    chosen = found["choice"].classes
    names = {f"07_classes-{digest[:8]}.yaml", f"07_chosen-{class_files.sha256(chosen)[:8]}.yaml"}
    assert new == {*names, "07_prompt_lab.json", *pictures}
    written = files.read_json(made.folder / "07_prompt_lab.json")
    assert written["classes_sha256"] == digest and written["edits"][1]["never read"] == "toadstool"
    assert [row["words"] for row in written["edits"]] == ["as it is", *found["edits"]]
    assert found["panel"].outcome.mean_iou == written["mean_iou"]
    assert all(sample.read_truth is None for sample in (*found["data"].unlabelled, *found["data"].val))
