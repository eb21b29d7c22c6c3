"""The prompt lab: by hand on squares, to the byte against notebook 02, and the panel's widgets."""

import html
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_pipeline import execute

from conftest import COLOURS, RGB, colour_squares
from plg_utils import class_files, datasets, encoders, files, labels, prompt_lab
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


def test_only_new_sentences_are_encoded_and_only_changed_images_are_painted(monkeypatch):
    lab, painted, paint = squares_lab(), [], labels.paint
    monkeypatch.setattr(labels, "paint", lambda *given, **how: painted.append(1) or paint(*given, **how))
    lab.try_out()
    lab.try_out(threshold=0.55)  # still below all scores
    assert (len(lab.encode.asked), len(painted)) == (4, 2)
    lab.try_out(prompt_lab.edit(COLOURS, add={"red": ["an orange", "black wine"]}))
    assert lab.encode.asked[4:] == ["a photo of a an orange.", "a photo of a black wine."]
    lab.try_out(threshold=0.9)
    lab.try_out()
    assert (len(lab.encode.asked), len(painted)) == (6, 2 + 2 + 2 + 2)  # black became red; all background; and back


def test_a_score_alone_changes_which_mask_is_on_top():
    lab = replace(squares_lab(truth=False, images=1), masks=(Masks.from_dense(np.ones((4, 2, 2), bool)),))
    assert (lab.try_out().labels[0] == 1).all()  # 0.8 all: the lowest class
    lower = lab.try_out(prompt_lab.edit(COLOURS, words={"red": ["an orange"]}))
    assert lower.assigned.tolist() == [0, 1, 2, 3]  # as before, but red's score is 0.6
    assert (lower.labels[0] == 2).all()


def test_unknown_words_have_their_class_and_give_no_warning(lab, recwarn):
    words = {"mushroom": ["a Toadstool", "a mushroom"]}
    edited = prompt_lab.edit(lab.classes, words=words, templates=["a photo of {}.", "an etching of {}"])
    assert lab.try_out(edited).unknown == {"mushroom": ("toadstool",), "templates": ("etching",)}
    assert not [warning for warning in recwarn if "never" in str(warning.message)]
    known = squares_lab()
    known.encode.unseen_words = None  # as an encoder that has read the whole web
    assert known.try_out().unknown == {}


def test_without_a_truth_or_a_background(tmp_path):
    blind, everything = squares_lab(truth=False), squares_lab(NO_BACKGROUND)
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


def test_classes_of_another_set_are_refused(lab):
    with pytest.raises(ValueError, match="The run's label maps hold background, house"):
        lab.try_out(COLOURS)


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
    paths = [f"{stage}/manifest.json" for stage in ("masks", "segments", "labels_zero_shot")]
    for path in paths:
        files.write_json(tmp_path / "tiny" / path, files.read_json(made.folder / path) | {"state": "running"})
    refused(ValueError, "masks is not finished: run notebooks/02_zero_shot_labels.ipynb for the run 'tiny'")
    for path in paths:
        files.write_json(tmp_path / "tiny" / path, files.read_json(made.folder / path))
    refused(FileNotFoundError, rf"{first}.json does not exist.*make the masks again")
    masks = files.read_masks(made.folder / "masks" / f"{first}.json")
    files.write_masks(tmp_path / "tiny" / "masks" / f"{first}.json", masks.take([0]))
    files.write_embeddings(tmp_path / "tiny" / "segments" / f"{first}.safetensors", torch.zeros(2, 4))
    refused(ValueError, f"{first} has 1 masks and 2 embeddings", scored=1)


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
        ({"words": {"red": ["a rose", "Blue "]}}, "red and blue both have the word 'blue'"),
        ({"add": {"background": ["a  sea"], "red": ["A sea"]}}, "background and red both have the word 'A sea'"),
        ({"templates": ["a photo"]}, "'a photo' needs one {}"),
    ],
)
def test_a_wrong_edit_is_refused(change, reason):
    with pytest.raises(ValueError) as error:
        prompt_lab.edit(COLOURS, **change)
    assert reason in str(error.value)


def test_words_between_commas():
    words = ["a tree", "an oak", "leaves", "a dog, asleep"]
    assert prompt_lab.words_of(' a tree,an oak , ,\nleaves\n"a dog, asleep"') == words


word = st.text("aÉß字 ,\"'#:{}-1", min_size=1, max_size=8).map(str.strip).filter(bool)


@given(st.lists(word, max_size=4))
def test_a_line_of_words_reads_back(words):
    assert prompt_lab.words_of(prompt_lab.line_of(words)) == words


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
        (tree, '"a tree', "fix the quotes"),
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


def test_names_and_words_are_text_and_never_html(tmp_path):
    lab = squares_lab(replace(COLOURS, names=("background", "<i>red", "green", "blue")))
    panel = prompt_lab.Panel(lab, tmp_path / "classes.yaml")
    panel.words["<i>red"].value = "<i>"
    shown = [panel.table.value, panel.message.value]
    panel.words["<i>red"].value = ""
    assert all("&lt;i&gt;" in value and "<i>" not in value for value in (*shown, panel.message.value))


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
    assert new == {f"07_classes-{digest[:8]}.yaml", "07_prompt_lab.json", *pictures}
    written = files.read_json(made.folder / "07_prompt_lab.json")
    assert written["classes_sha256"] == digest and written["edits"][1]["never read"] == "toadstool"
    assert [row["words"] for row in written["edits"]] == ["as it is", *found["edits"]]
    assert found["panel"].outcome.mean_iou == written["mean_iou"]
    assert all(sample.read_truth is None for sample in (*found["data"].unlabelled, *found["data"].val))
