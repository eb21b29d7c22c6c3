"""The prompt lab: by hand on squares, to the byte against notebook 02, and the panel driven as a browser would."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_pipeline import execute

from conftest import COLOURS, RGB, colour_squares
from plg_utils import class_files, datasets, encoders, figures, files, labels, prompt_lab
from plg_utils.records import IGNORE, Classes, Masks, Sample

WORLD = {"run": "tiny", "labelled": 2}
ENCODER = {"encoder": "clip", "checkpoint": "miniature_clip"}


class Words:
    """An encoder whose sentences are directions: a word's own, or one of its own for a word that nobody told."""

    VECTORS = {"black": 0, "red": 1, "green": 2, "blue": 3, "sea": 3}

    def __init__(self):
        self.asked = []

    def texts(self, phrases):
        self.asked += phrases
        found = torch.zeros(len(phrases), 5)
        for row, phrase in zip(found, phrases, strict=True):
            row[next((k for word, k in self.VECTORS.items() if word in phrase), 4)] = 1
        return found

    def unseen_words(self, texts):
        return [word for text in texts for word in ("orange", "sea") if word in text]


def squares_lab(classes=COLOURS, *, truth=True, encode=None, images=2):
    """A lab of images with a black, a red, a green and a blue mask, whose embeddings name them a little unsurely."""
    drawn = [colour_squares(seed) for seed in range(images)]
    embeddings = torch.eye(5)[:4] * 0.8 + torch.eye(5)[4] * 0.6  # cosine 0.8 with its own colour
    return prompt_lab.Lab(
        classes=classes,
        how={"rule": "cosine", "threshold": 0.5, "overlap": "score"},
        samples=tuple(Sample(f"image_{k}", lambda k=k: drawn[k].image) for k in range(images)),
        masks=tuple(Masks.from_dense(each.masks) for each in drawn),
        segment_embeddings=(embeddings,) * images,
        truths=tuple(each.truth if truth else None for each in drawn),
        shown=tuple(range(images)),
        encode=encode or Words(),
    )


@pytest.fixture(scope="module")
def made(world, tmp_path_factory):
    """What notebook 02 made of two labelled and two unlabelled scenes with the miniatures."""
    results = tmp_path_factory.mktemp("results")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PLG_RESULTS", str(results))
        found = execute("02", WORLD | {"dataset_options": {"root": str(world), "limit": 2}})
    encode = encoders.build("clip", checkpoint="miniature_clip")
    return SimpleNamespace(
        results=results, folder=results / "tiny", data=found["data"], how=found["how"], encode=encode
    )


@pytest.fixture
def lab(made):
    """All four scenes, newly read."""
    return prompt_lab.load(made.folder, made.data, made.encode, made_with=ENCODER, shown=4)


def written(made, lab):
    """Label maps of notebook 02."""
    return [files.read_label(made.folder / "labels_zero_shot" / f"{sample.id}.png") for sample in lab.samples]


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
    row = prompt_lab.class_rows(before, swapped)[1]
    assert row == {"class": "red", "iou": 0, "change": -1, "segments": 2, "margin": pytest.approx(0.8)}

    assert prompt_lab.class_rows(before, swapped)[0]["margin"] == pytest.approx(0.8)  # black's, without its sign

    lost = lab.try_out(prompt_lab.edit(COLOURS, words={"background": [], "blue": ["an orange"]}))  # 0.6 near to all
    assert lost.assigned.tolist() == [3, 1, 2, 3] * 2
    np.testing.assert_allclose(lost.margins, [0.6, 0.2, 0.2, 0.6] * 2, atol=1e-6)
    assert lost.unknown == ((), (), (), ("orange",))
    higher = lab.try_out(threshold=0.81)
    assert not higher.assigned.any()
    assert higher.scores.iou[0] == 0.5  # half of the pixels are black, all are given it
    assert lab.try_out().mean_iou == 1.0  # nothing is left of what was tried


def test_the_runs_words_give_the_label_maps_of_notebook_02(made, lab):
    outcome = lab.try_out()
    lab.try_out(prompt_lab.edit(made.data.classes, words={"tree": ["a fish"], "fish": ["a tree"]}), threshold=0.4)
    again = lab.try_out()
    for label, first, second in zip(written(made, lab), outcome.labels, again.labels, strict=True):
        assert label.tobytes() == first.tobytes() == second.tobytes()
    assert prompt_lab.same_as_written(lab, outcome, made.folder) == 4
    moved = lab.try_out(threshold=0.6)
    assert prompt_lab.same_as_written(lab, moved, made.folder) < 4
    assert lab.best_threshold() == made.how["threshold"]
    assert {label.dtype for label in outcome.labels} == {np.dtype("uint8")}


def test_a_sentence_is_encoded_once_and_what_stays_the_same_is_not_painted_again(monkeypatch):
    lab, painted, paint = squares_lab(), [], labels.paint
    monkeypatch.setattr(labels, "paint", lambda *given, **how: painted.append(1) or paint(*given, **how))
    lab.try_out()
    assert len(lab.encode.asked) == 4
    assert len(painted) == 2
    lab.try_out(threshold=0.55)  # still below all scores
    assert (len(lab.encode.asked), len(painted)) == (4, 2)
    lab.try_out(prompt_lab.edit(COLOURS, add={"red": ["an orange", "black wine"]}))
    assert lab.encode.asked[4:] == ["a photo of a an orange.", "a photo of a black wine."]
    lab.try_out(threshold=0.9)
    lab.try_out()
    assert len(lab.encode.asked) == 6
    assert len(painted) == 2 + 2 + 2 + 2  # black became red; all became background; and back


def test_a_score_alone_changes_who_is_on_top():
    lab = replace(squares_lab(truth=False, images=1), masks=(Masks.from_dense(np.ones((4, 2, 2), bool)),))
    assert (lab.try_out().labels[0] == 1).all()  # 0.8 all: the lowest class
    lower = lab.try_out(prompt_lab.edit(COLOURS, words={"red": ["an orange"]}))
    assert lower.assigned.tolist() == [0, 1, 2, 3]  # as before, but red's score is 0.6
    assert (lower.labels[0] == 2).all()

    small = np.ones((4, 2, 2), bool)
    small[3, 0] = False  # blue has the lower row
    for overlap, expected in {"score": [[1, 1], [1, 1]], "small_on_top": [[1, 1], [3, 3]]}.items():
        how = lab.how | {"overlap": overlap}
        other = replace(lab, masks=(Masks.from_dense(small),), how=how, _painted={})
        assert other.try_out().labels[0].tolist() == expected


def test_unknown_words_stand_with_their_class(lab, recwarn):
    edited = prompt_lab.edit(
        lab.classes, words={"mushroom": ["a Toadstool", "a mushroom"]}, templates=["a photo of {}.", "an etching of {}"]
    )
    outcome = lab.try_out(edited)
    assert outcome.unknown == ((),) * 7 + (("toadstool",),) + ((),) * 3
    assert outcome.unknown_in_templates == ("etching",)
    assert not [warning for warning in recwarn if "never saw" in str(warning.message)]  # the outcome says it
    assert lab.try_out().unknown_in_templates == ()

    class Silent:
        texts = staticmethod(Words().texts)

    known = squares_lab(replace(COLOURS, words=((), *COLOURS.words[1:])), encode=Silent())
    assert not known.knows_its_words
    assert known.try_out().unknown == ((),) * 4


def test_without_a_truth_or_a_background():
    blind = squares_lab(truth=False)
    assert blind.try_out().scores is None
    assert np.isnan(blind.try_out().mean_iou)
    assert np.isnan(prompt_lab.class_rows(blind.try_out(), blind.try_out())[1]["iou"])
    assert blind.best_threshold() is None
    no_background = Classes(
        ("black", "red", "green", "blue"), tuple((n,) for n in Words.VECTORS if n != "sea"), RGB, None
    )
    everything = squares_lab(no_background)
    assert everything.try_out(threshold=0.99).mean_iou == 1.0  # it is not read
    assert everything.best_threshold() is None
    one = squares_lab(Classes(("background", "red"), ((), ("red",)), RGB[:2]), truth=False)
    assert np.isnan(one.try_out().margins).all()  # nothing to tell red from
    assert prompt_lab.margin_figure(one.try_out(), one.try_out())


def test_classes_of_another_set_and_a_sentence_that_is_too_long_are_refused(lab):
    with pytest.raises(ValueError, match="the label maps of the run know background, house"):
        lab.try_out(COLOURS)
    with pytest.raises(ValueError, match="more tokens than the encoder reads"):
        lab.try_out(prompt_lab.edit(lab.classes, words={"tree": ["a very tall tree " * 40]}))


# Reading a run


def test_only_the_truth_of_labelled_images_is_opened(made, world):
    opened = datasets.load("storybook", root=world, labelled=2, limit=2, truth_of=("labelled", "unlabelled"))
    lab = prompt_lab.load(made.folder, opened, made.encode, shown=4)
    assert [sample.id for sample in lab.samples] == [s.id for s in (*opened.labelled, *opened.unlabelled)]
    assert [truth is not None for truth in lab.truths] == [True, True, False, False]
    assert lab.shown == (0, 1, 2, 3)
    fewer = prompt_lab.load(made.folder, opened, made.encode, scored=1, shown=3)
    assert [truth is not None for truth in fewer.truths] == [True, False, False]
    assert fewer.shown == (0, 1, 2)


def test_what_is_missing_names_the_notebook_to_run(made, tmp_path):
    with pytest.raises(FileNotFoundError, match="no finished masks: run notebooks/02_zero_shot_labels.ipynb"):
        prompt_lab.load(tmp_path, made.data, made.encode)
    unfinished = tmp_path / "tiny"
    manifests = {stage: files.read_json(made.folder / stage / "manifest.json") for stage in prompt_lab.STAGES}
    for stage, manifest in manifests.items():
        state = "running" if stage == "segments" else "done"
        files.write_json(unfinished / stage / "manifest.json", manifest | {"state": state})
    with pytest.raises(FileNotFoundError, match="no finished segments: .* for the run 'tiny'"):
        prompt_lab.load(unfinished, made.data, made.encode)
    files.write_json(unfinished / "segments" / "manifest.json", manifests["segments"])
    with pytest.raises(FileNotFoundError, match=rf"{made.data.labelled[0].id}.json is missing: run notebooks/02"):
        prompt_lab.load(unfinished, made.data, made.encode)
    with pytest.raises(ValueError, match="'encoder': 'clip'.*not with .*'ViT-B/16'"):
        prompt_lab.load(made.folder, made.data, made.encode, made_with={"encoder": "clip", "checkpoint": "ViT-B/16"})
    with pytest.raises(ValueError, match="no image to try words on"):
        prompt_lab.load(made.folder, made.data, made.encode, scored=0)

    first = made.data.labelled[0].id
    masks = files.read_masks(made.folder / "masks" / f"{first}.json")
    files.write_masks(unfinished / "masks" / f"{first}.json", masks.take([0]))
    files.write_embeddings(unfinished / "segments" / f"{first}.safetensors", torch.zeros(2, 4))
    with pytest.raises(ValueError, match=f"{first} has 1 masks and 2 embeddings"):
        prompt_lab.load(unfinished, made.data, made.encode)


# Words


def test_an_edit_changes_words_and_templates_alone():
    edited = prompt_lab.edit(
        COLOURS, words={"red": ["a rose"]}, add={"background": ["a sea"]}, templates=["{}", "a {}!"]
    )
    assert edited.words == (("black", "a sea"), ("a rose",), ("green",), ("blue",))
    assert edited.templates == ("{}", "a {}!")
    assert (edited.names, edited.colours, edited.background) == (COLOURS.names, COLOURS.colours, 0)
    assert prompt_lab.edit(COLOURS) == COLOURS
    assert prompt_lab.edit(COLOURS, words={"background": []}).words[0] == ()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"words": {"mauve": ["a sea"]}}, "no class 'mauve', only background, red"),
        ({"words": {"red": []}}, "red has no word left"),
        ({"words": {"red": [" "]}}, "words of red holds ' '"),
        ({"words": {"red": ["a rose", "Blue "]}}, "red and blue both have the word 'blue'"),
        ({"add": {"background": ["GREEN"]}}, "background and green both have the word 'green'"),
        ({"add": {"background": ["a  sea"], "red": ["A sea"]}}, "background and red both have the word 'A sea'"),
        ({"templates": []}, "no template left"),
        ({"templates": ["a photo"]}, "'a photo' needs one {}"),
        ({"templates": ["{} and {}"]}, "needs one {}"),
        ({"templates": ["a {} of {colour}"]}, "'a {} of {colour}'"),
    ],
)
def test_what_cannot_be_asked_is_refused(change, told):
    with pytest.raises(ValueError) as error:
        prompt_lab.edit(COLOURS, **change)
    assert told in str(error.value)


def test_words_between_commas():
    assert prompt_lab.words_of(" a tree,an oak , ,\nleaves\n") == ["a tree", "an oak", "leaves"]
    assert prompt_lab.words_of('a dog, "a dog, asleep"') == ["a dog", "a dog, asleep"]
    assert prompt_lab.words_of("") == prompt_lab.words_of(" , ") == []
    assert prompt_lab.line_of(["a dog", "a dog, asleep"]) == 'a dog, "a dog, asleep"'
    with pytest.raises(ValueError, match="mend the quotes"):
        prompt_lab.words_of('a dog, "a cat')


word = st.text("aÉß字 ,\"'#:{}-1", min_size=1, max_size=8).map(str.strip).filter(bool)


@given(st.lists(word, max_size=4))
def test_a_line_of_words_reads_back(words):
    assert prompt_lab.words_of(prompt_lab.line_of(words)) == words


# Class files


def test_a_class_file_reads_back_and_its_name_holds_its_hash(tmp_path):
    edited = prompt_lab.edit(
        COLOURS, words={"red": ["no", "1", "ein Röslein, rot", "# {x}: 'y'"]}, templates=["{}: so"]
    )
    path, digest = prompt_lab.save(tmp_path / "mine.yaml", edited, "run tiny\nthreshold 0.2")
    assert path == tmp_path / f"mine-{digest[:8]}.yaml"
    assert digest == class_files.sha256(edited)
    assert class_files.read(path) == edited
    head = path.read_text(encoding="utf-8").splitlines()[:3]
    assert digest in head[0]
    assert head[1:] == ["# run tiny", "# threshold 0.2"]

    earlier = path.stat().st_mtime_ns
    assert prompt_lab.save(tmp_path / "mine.yaml", edited) == (path, digest)
    assert path.stat().st_mtime_ns == earlier  # nothing to write
    other, _ = prompt_lab.save(tmp_path / "mine.yaml", COLOURS)
    assert sorted(tmp_path.iterdir()) == sorted([path, other])
    path.write_text(other.read_text(encoding="utf-8"), encoding="utf-8")
    with pytest.raises(ValueError, match="somebody changed it"):
        prompt_lab.save(tmp_path / "mine.yaml", edited)


@pytest.mark.parametrize("name", sorted(path.stem for path in datasets.CLASS_FILES.glob("*.yaml")))
def test_the_classes_of_every_data_set_can_be_saved(name, tmp_path):
    classes = class_files.read(datasets.CLASS_FILES / f"{name}.yaml")
    assert prompt_lab.edit(classes) == classes
    assert class_files.read(prompt_lab.save(tmp_path / "classes.yaml", classes)[0]) == classes
    lines = {of_class: prompt_lab.words_of(prompt_lab.line_of(of_class)) for of_class in classes.words}
    assert all(tuple(read) == of_class for of_class, read in lines.items())


def test_what_a_class_file_cannot_say_is_not_written(tmp_path):
    strange = replace(COLOURS, names=("void", *COLOURS.names[1:]))  # a class file calls it background
    with pytest.raises(ValueError, match="do not fit a class file"):
        prompt_lab.save(tmp_path / "mine.yaml", strange)
    assert list(tmp_path.iterdir()) == []


# The panel


@pytest.fixture
def panel(lab, tmp_path):
    """A panel over four scenes, which saves into a folder of its own."""
    return prompt_lab.Panel(lab, figures.overlay, tmp_path / "classes.yaml", "a test")


def test_the_panel_begins_as_the_run_is(panel, made, lab):
    assert panel.classes() == made.data.classes
    assert panel.threshold.value == made.how["threshold"]
    assert prompt_lab.same_as_written(lab, panel.outcome, made.folder) == 4
    assert f"<b>{100 * panel.outcome.mean_iou:.1f}</b>" in panel.status.value
    assert "on 2 labelled images" in panel.status.value
    assert panel.gallery.value.count("<figure") == 4
    assert panel.gallery.value.count('title="truth"') == 2
    assert panel.table.value.count("<tr data-class=") == 11
    operated = (*panel.words.values(), panel.templates, panel.threshold)
    assert not any(widget.continuous_update for widget in operated)  # nothing is computed for a key that is pressed
    assert "plg-words-7" in panel.words["mushroom"]._dom_classes
    assert panel.wrong is None


def test_a_word_in_a_box_is_tried_and_marked(panel, lab):
    thing = next(lab.classes.names[k] for k in np.unique(lab.truths[0]) if k not in (0, IGNORE))
    panel.words[thing].value = "a <b>toadstool</b>"
    expected = lab.try_out(prompt_lab.edit(lab.classes, words={thing: ["a <b>toadstool</b>"]}))
    for label, wanted in zip(panel.outcome.labels, expected.labels, strict=True):
        np.testing.assert_array_equal(label, wanted)
    assert panel.outcome.mean_iou < panel.saved.mean_iou
    points = 100 * (panel.outcome.mean_iou - panel.saved.mean_iou)
    assert f"({points:+.1f})" in panel.status.value
    assert "plg-worse" in panel.table.value
    assert "plg-unknown" in panel.words[thing]._dom_classes
    assert "toadstool" in panel.unknown_words.value
    assert "<b>toadstool" not in panel.marks[thing].value

    panel.reset.click()
    assert "plg-unknown" not in panel.words[thing]._dom_classes
    assert panel.unknown_words.value == panel.marks[thing].value == ""
    assert panel.outcome.mean_iou == panel.saved.mean_iou
    assert "(+0.0)" in panel.status.value


def test_what_is_wrong_is_told_and_not_saved(panel, tmp_path):
    before = panel.outcome
    for box, text, told in (
        (panel.words["tree"], "", "tree has no word left"),
        (panel.words["tree"], "a fish", "tree and fish both have"),
        (panel.words["tree"], '"a tree', "mend the quotes"),
        (panel.words["tree"], "a tree " * 60, "more tokens"),
        (panel.templates, "a photo", "needs one {}"),
        (panel.templates, "a {} of {x}", "{x}"),
        (panel.templates, "\n", "no template left"),
    ):
        box.value = text
        assert told in panel.wrong
        assert 'class="plg-wrong"' in panel.message.value
        assert panel.outcome is before
        for button in (panel.best, panel.save):
            button.click()
            assert told in panel.wrong
        assert "Not saved" in panel.message.value
        assert list(tmp_path.glob("*.yaml")) == []
        panel.reset.click()
        assert panel.wrong is None
        assert panel.message.value == ""
        before = panel.outcome


def test_changes_are_counted_from_what_was_saved(panel, tmp_path, lab):
    panel.threshold.value = 0.7
    lost = panel.outcome.mean_iou
    assert lost < panel.saved.mean_iou
    panel.words["tree"].value = 'a tree, "a tree, green"'
    panel.save.click()
    (path,) = tmp_path.glob("*.yaml")
    assert str(path) in panel.message.value
    assert class_files.sha256(panel.classes()) in panel.message.value
    assert class_files.read(path).words[2] == ("a tree", "a tree, green")
    assert "# rule cosine, threshold 0.7: mean IoU" in path.read_text(encoding="utf-8")
    assert "(+0.0)" in panel.status.value
    panel.best.click()
    assert panel.threshold.value == lab.best_threshold(panel.classes())
    assert panel.saved.mean_iou == lost < panel.outcome.mean_iou
    assert "plg-better" in panel.status.value


def test_a_disk_that_refuses_is_told(lab, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    panel = prompt_lab.Panel(lab, figures.overlay, tmp_path / "file" / "classes.yaml")
    panel.save.click()
    assert "Not saved" in panel.message.value


def test_another_rule_has_another_threshold(panel, lab):
    panel.rule.value = "softmax"
    assert panel.threshold.value == lab.best_threshold(rule="softmax")
    assert panel.outcome.rule == "softmax"
    panel.reset.click()
    assert (panel.outcome.rule, panel.outcome.threshold) == (lab.how["rule"], lab.how["threshold"])


def test_a_panel_without_truth_or_background(tmp_path):
    no_background = Classes(
        ("black", "red", "green", "blue"), tuple((n,) for n in Words.VECTORS if n != "sea"), RGB, None
    )
    panel = prompt_lab.Panel(squares_lab(no_background, truth=False), figures.overlay, tmp_path / "classes.yaml")
    assert panel.threshold.disabled and panel.best.disabled
    assert "no image has a truth" in panel.status.value
    panel.words["red"].value = "red, an orange"
    panel.rule.value = "softmax"
    panel.best.click()
    assert panel.wrong is None


def test_names_and_words_are_text_and_never_html(tmp_path):
    encode = Words()
    encode.unseen_words = lambda texts: ["<i>orange</i>"]
    classes = replace(COLOURS, names=("background", "<i>red", "green", "blue"))
    lab = squares_lab(classes, encode=encode, images=1)
    lab = replace(lab, samples=(replace(lab.samples[0], id="<i>0"),))
    panel = prompt_lab.Panel(lab, figures.overlay, tmp_path / "classes.yaml")
    told = [mark.value for mark in (*panel.marks.values(), panel.template_mark)]
    told += [panel.unknown_words.value, panel.table.value, panel.gallery.value]
    panel.words["<i>red"].value = ""
    told.append(panel.message.value)
    assert all("&lt;i&gt;" in value and "<i>" not in value for value in told)


def test_large_photos_are_shown_small(tmp_path):
    lab = squares_lab(images=1)
    big = np.zeros((1000, 3000, 3), np.uint8)
    lab = replace(lab, samples=(Sample("big", lambda: big),), masks=(Masks.from_dense(np.ones((4, 1000, 3000), bool)),))
    lab = replace(lab, truths=(None,))
    seen = []
    prompt_lab.Panel(
        lab, lambda image, label, classes: seen.append((image.shape, label.shape)) or image, tmp_path / "x"
    )
    assert seen == [((72, 215, 3), (72, 215))]


def test_a_cell_shows_the_panel_and_no_text_that_differs(panel, monkeypatch):
    shown = []
    monkeypatch.setattr(prompt_lab, "display", lambda content, raw: shown.append((set(content), raw)))
    panel._ipython_display_()
    assert shown == [({"application/vnd.jupyter.widget-view+json"}, True)]


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
    assert "those of notebook 02 to the pixel: 4 of 4" in said
    assert "read back and compared: True" in said
    new = {path.relative_to(made.folder).as_posix() for path in made.folder.rglob("*") if path.is_file()}
    new -= {path.relative_to(made.folder).as_posix() for path in before}
    digest = class_files.sha256(made.data.classes)
    pictures = {f"figures/07_{name}.png" for name in ("edits", "margins", "panel")}
    assert new == {f"07_classes-{digest[:8]}.yaml", "07_prompt_lab.json", *pictures}
    assert all(path.read_bytes() == content for path, content in before.items())
    written = files.read_json(made.folder / "07_prompt_lab.json")
    assert written["classes_sha256"] == digest
    assert [row["words"] for row in written["edits"]] == ["as it is", *found["edits"]]
    assert written["edits"][1]["never read"] == "toadstool"
    assert found["panel"].outcome.mean_iou == written["mean_iou"]
    assert all(sample.read_truth is None for sample in (*found["data"].unlabelled, *found["data"].val))
