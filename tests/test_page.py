"""The page of a run: numbers, pictures, one file without requests, and names that stay text."""

import base64
import hashlib
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image
from test_review import make_stage

from plg_utils import datasets, files, page
from plg_utils.datasets import storybook

DEMO = files.ROOT / "results" / "demo"
VOID = {"meta", "img", "input"}
HOSTILE = (
    "<script>alert(1)</script>",
    '" onload="alert(1)',
    "'><img src=x onerror=alert(1)>",
    "</style><b>&amp;",
    "{{ 7 * 7 }}{% raw %}",
    "javascript:alert(1)",
)


class Reader(HTMLParser):
    """Elements of a page with their attributes, and its text, as a browser reads them."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.elements, self.texts, self.inside = [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.inside.append(tag)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.inside.pop() == tag

    def handle_data(self, text):
        self.texts.append((self.inside[-1] if self.inside else "", text))

    def of(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]

    def text(self, *tags):
        return [text for tag, text in self.texts if tag in tags]


def row(name, miou, *, stage="zero_shot", split="unlabelled", **more):
    iou = {"background": miou, "cat": None}
    kinds = ("boundary", "background bleed", "missed object", "wrong class", "right")
    pixels = dict(zip(kinds, (10, 20, 0, 5, 65), strict=True))
    parts = {"stage": stage, "method": name, "name": name, "labelled": 2, "seed": 0, "split": split, "images": 4}
    return parts | {"miou": miou, "iou": iou, "options": {}, "wrong_pixels": pixels} | more


def write_run(folder, dataset, options, shown=1):
    run = {"run": folder.name, "dataset": dataset, "dataset_options": options, "labelled": 2, "seed": 0}
    files.write_json(folder / "run.json", run | {"parameters": {"shown_images": shown}, "notebooks": []})


@pytest.fixture
def results(tmp_path, monkeypatch):
    monkeypatch.setenv("PLG_RESULTS", str(tmp_path / "results"))
    return tmp_path / "results"


@pytest.fixture
def tiny(world, results):
    """An evaluated run on two scenes: zero-shot and enhanced labels, and the predictions of two networks."""
    options = {"root": str(world), "limit": 2}
    data = datasets.load("storybook", labelled=2, truth_of=("labelled", "unlabelled", "val"), **options)
    folder = results / "tiny"
    truth = {sample.id: sample.truth() for sample in data.unlabelled}
    make_stage(folder, "labels_zero_shot", data, {id: np.where(label == 0, 255, label) for id, label in truth.items()})
    make_stage(folder, "labels_enhanced", data, {id: np.zeros_like(label) for id, label in truth.items()})
    make_stage(folder, "labels_of_other_images", data, {})  # it has no map of the images that are shown
    for name in ("predictions_a_loss_of_mine", "predictions_supervised"):
        make_stage(folder, name, data, {sample.id: sample.truth() for sample in data.val})
    write_run(folder, "storybook", options)
    rows = [row("zero-shot labels", 0.5), row("enhanced labels", 0.25, stage="enhanced")]
    rows += [row("supervised", 0.75, stage="segmenter", split="val")]
    rows += [row("a_loss_of_mine", None, stage="segmenter", split="val")]
    files.write_json(folder / "summary.json", {"run": "tiny", "dataset": "storybook", "rows": rows})
    return folder


def decoded(address):
    kind, encoded = re.fullmatch(r"data:image/(png|jpeg);base64,([A-Za-z0-9+/=]+)", address).groups()
    picture = Image.open(io.BytesIO(base64.b64decode(encoded)))
    assert picture.format.lower() == kind
    return picture


def test_numbers_and_bars_are_those_of_the_summary(tiny):
    interval = {"difference": -0.026, "low": -0.031, "high": 0.02}
    files.write_json(tiny / "05_evaluation.json", {"bootstrap": {"a minus b": interval}})
    text = page.html(tiny)
    read = Reader(text)
    assert read.text("h1") == ["tiny"]
    assert read.text("h2") == ["Mean IoU", "Pictures", "Classes", "Errors", "Manifest"]
    assert {"50.0", "25.0", "75.0", "on 4 unlabelled images", "on 4 val images"} <= set(read.text("td", "th"))
    assert {"-2.6", "-3.1 to +2.0"} <= set(read.text("td"))
    bars = [float(rect["width"]) for rect in read.of("rect") if "x" in rect]
    assert bars[:4] == [50, 25, 75, 0]
    assert bars[4:8] == pytest.approx([100 * share / 35 for share in (10, 20, 0, 5)], abs=0.01)  # 35 % are wrong
    assert "data set storybook, 2 labelled images, seed 0" in read.text("p")
    classes, errors = (text.split(f'<section id="{id}">')[1].split("</section>")[0] for id in ("classes", "errors"))
    cells = re.findall('<td class="(.*?)">(.*?)</td>', classes)
    assert cells == [("q5", "50.0"), ("q2", "25.0"), ("q7", "75.0"), *[("none", "–")] * 5]
    assert re.findall('<td class="number">(.*?)</td>', errors)[:5] == ["35.0", "10.0", "20.0", "0.0", "5.0"]


def test_a_gallery_shows_the_first_images_pixel_by_pixel_in_the_order_of_the_summary(tiny, world):
    read = Reader(page.html(tiny))
    pictures = {attributes["alt"]: decoded(attributes["src"]) for attributes in read.of("img")}
    one, val = "unlabelled_000", "val_000"
    stages = [f"{one}: {name}" for name in ("image", "zero-shot", "enhanced", "truth")]
    stages += [f"{val}: {name}" for name in ("image", "supervised", "a loss of mine", "truth")]
    assert list(pictures) == stages
    data = datasets.load("storybook", root=world, labelled=2, limit=2, truth_of=("unlabelled",))
    truth, colours = data.unlabelled[0].truth(), np.array(data.classes.colours, np.uint8)
    np.testing.assert_array_equal(np.array(pictures[f"{one}: truth"].convert("RGB")), colours[truth])
    shown = np.array(pictures[f"{one}: zero-shot"].convert("RGB"))
    assert (shown[truth == 0] == (224, 224, 192)).all()  # no label
    np.testing.assert_array_equal(shown[truth > 0], colours[truth][truth > 0])
    photo = np.array(pictures[f"{one}: image"]).astype(float)
    assert np.abs(photo - data.unlabelled[0].image()).mean() < 6  # a JPEG
    selected = [each["value"] for each in read.of("option") if "selected" in each]
    assert selected == ["0", "2", "0", "2"]  # image and enhanced, image and a loss of mine


def test_large_pictures_become_small_ones():
    label = np.zeros((1000, 700), np.uint8)
    label[:503] = 10
    classes = datasets.load("storybook", labelled=2, limit=0).classes
    small = np.array(decoded(page.data_uri(label, classes)))
    assert small.shape == (480, 336) and set(np.unique(small)) == {0, 10}  # values are never mixed
    assert decoded(page.data_uri(np.zeros((70, 960, 3), np.uint8), classes)).size == (480, 35)


def test_own_photos_have_pictures_and_no_numbers(tmp_path, results):
    files.write_image(tmp_path / "photos" / "one.jpg", storybook.draw(0).image[:70, :99])
    options = {"root": str(tmp_path / "photos"), "classes": ["fish", "house"]}
    folder = results / "mine"
    make_stage(folder, "labels_zero_shot", datasets.load("folder", **options), {"one": np.ones((70, 99), np.uint8)})
    write_run(folder, "folder", options)
    files.write_json(folder / "summary.json", {"run": "mine", "dataset": "folder", "rows": [], "manifest": {}})
    read = Reader(page.html(folder))
    assert any(text.startswith("There is no truth") for text in read.text("p"))
    assert [each["alt"] for each in read.of("img")] == ["one: image", "one: zero-shot"]
    assert read.text("h2") == ["Mean IoU", "Pictures", "Manifest"]


def test_without_pictures_the_page_shows_the_numbers_and_says_why(tiny, world):
    def says(sentence):
        read = Reader(page.html(tiny))
        assert "50.0" in read.text("td") and not read.of("img")
        assert any(sentence in text for text in read.text("p"))

    write_run(tiny, "storybook", {"root": str(world), "limit": 1})  # other images than the stages worked on
    with pytest.warns(UserWarning, match="other images than the manifests"):
        says("could not be read, so there are no pictures")
    (tiny / "run.json").unlink()
    with pytest.warns(UserWarning, match="run.json does not exist"):
        says("could not be read, so there are no pictures")
    for path in tiny.glob("*/manifest.json"):
        path.unlink()
    says("The label maps of this run are not here")


def test_pictures_of_other_photos_or_classes_are_left_out(tiny, world):
    """An edited photo under the label map of the one before looked like a bad label."""
    for name, change in (("labels_zero_shot", {"state": "running"}), ("labels_enhanced", {"classes_sha256": "1f"})):
        path = tiny / name / "manifest.json"
        files.write_json(path, files.read_json(path) | change)
    outputs = files.read_json(tiny / "predictions_supervised" / "outputs.json")
    changed = {name: {"photo": "of before"} for name in outputs}
    files.write_json(tiny / "predictions_supervised" / "outputs.json", changed)
    with pytest.warns(UserWarning, match="the page does not show labels_enhanced: the classes.*supervised: .* changed"):
        galleries, _, _ = page.pictures(tiny, [])
    assert [list(case)[1:] for gallery in galleries for case in gallery["cases"].values()] == [
        ["a loss of mine", "truth"]
    ]


def test_the_same_files_make_the_same_page_and_only_the_manifest_shows_seconds_and_no_folder(tiny, world):
    summary = files.read_json(tiny / "summary.json") | {"manifest": page.manifests(tiny)}
    files.write_json(tiny / "summary.json", summary)
    before = page.html(tiny)
    assert before == page.html(tiny)
    assert not [folder for folder in (world, tiny, files.ROOT) if str(folder) in before]
    for number, content in enumerate(summary["manifest"].values()):
        content.update(wall_seconds=99.9, device=f"device {number % 2}")
    files.write_json(tiny / "summary.json", summary)
    after, mark = page.html(tiny), '<section id="manifest">'
    assert after.split(mark)[0] == before.split(mark)[0]
    assert {"99.9", "device 0, device 1"} <= set(Reader(after).text("code"))


# One file without requests, whatever the names in it


def hash_of(text):
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def tags_of_one_file(text):
    """Check that no address but data is in a page, and that the policy names script and style by hash: its tags."""
    read = Reader(text)
    assert read.inside == []  # each element was closed by its own end
    names = {(tag, name) for tag, attributes in read.elements for name in attributes}
    assert not [
        name for _, name in names if name.startswith("on") or name in ("style", "srcset", "action", "formaction")
    ]
    assert {tag for tag, name in names if name == "src"} <= {"img"}
    assert all(each["src"].startswith("data:image/") for each in read.of("img"))
    assert all(re.fullmatch("#[a-z]+", each["href"]) for each in read.of("a"))
    (script,), (style,) = (re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL) for tag in ("script", "style"))
    assert "url(" not in style and "@import" not in style and "http" not in script + style
    charset, policy = read.of("meta")[:2]  # the policy comes before anything that it governs
    assert charset == {"charset": "utf-8"} and policy["http-equiv"] == "Content-Security-Policy"
    allowed = f"default-src 'none'; img-src data:; style-src {hash_of(style)}; script-src {hash_of(script)}; "
    assert policy["content"] == allowed + "base-uri 'none'; form-action 'none'"
    return {tag for tag, _ in read.elements}


def write_hostile_run(results, tmp_path):
    """A run in which every name is an attack: classes, images, rows, data set, parameters, the run itself."""
    ids = [name.replace("/", "") for name in HOSTILE]
    for id in ids:
        files.write_image(tmp_path / "photos" / f"{id}.png", np.full((4, 6, 3), 99, np.uint8))
    options = {"root": str(tmp_path / "photos"), "classes": list(HOSTILE)}
    data, folder = datasets.load("folder", **options), results / "hostile"
    make_stage(folder, "labels_zero_shot", data, {sample.id: np.ones((4, 6), np.uint8) for sample in data.unlabelled})
    write_run(folder, "folder", options, shown=9)
    iou = dict.fromkeys(("background", *HOSTILE), 0.5)
    rows = [row(name, 0.5, stage=name, split=name, iou=iou) for name in HOSTILE]
    manifest = {
        name: {name: name, "parameters": {name: name}, "packages": {name: name}, "seed": name}
        | {"checkpoints": {name: name}, "fingerprint": name}
        for name in HOSTILE
    }
    summary = {"run": HOSTILE[0], "dataset": HOSTILE[1], "rows": rows, "manifest": manifest}
    files.write_json(folder / "summary.json", summary)
    interval = {"difference": 0.1, "low": 0.0, "high": 0.2}
    files.write_json(folder / "05_evaluation.json", {"bootstrap": dict.fromkeys(HOSTILE, interval)})
    return folder, ids


def test_no_name_in_a_run_becomes_a_tag(results, tmp_path, tiny):
    folder, ids = write_hostile_run(results, tmp_path)
    read = Reader(page.html(folder))
    assert tags_of_one_file(page.html(folder)) == tags_of_one_file(page.html(tiny))
    assert read.text("h1") == [HOSTILE[0]] and HOSTILE[0] in read.text("title")[0]
    for tag in ("button", "li", "th", "code"):
        assert all(any(name in text for text in read.text(tag)) for name in HOSTILE), tag
    expected = {f"{id}: {name}" for id in ids for name in ("image", "zero-shot")}
    assert {each["alt"] for each in read.of("img")} == expected


# The command, and what is committed


def test_the_command_writes_one_file_and_leaves_a_published_run_as_it_is(tiny, results, tmp_path, capsys):
    assert page.main(["tiny", "--to", str(tmp_path / "deep" / "a.html")]) == 0
    assert (tmp_path / "deep" / "a.html").read_text(encoding="utf-8") == page.html(tiny)
    assert f"{tmp_path / 'deep' / 'a.html'}, 0." in capsys.readouterr().out
    before = {path: path.stat().st_mtime_ns for path in (DEMO, *DEMO.iterdir())}
    assert page.main(["demo"]) == 0
    assert before == {path: path.stat().st_mtime_ns for path in (DEMO, *DEMO.iterdir())}
    read = Reader((results / "demo" / "index.html").read_text(encoding="utf-8"))
    assert "zero-shot labels" in read.text("th") and not read.of("img")


@pytest.mark.parametrize(
    ("run", "reason"),
    [
        ("nowhere", "is a finished run: run notebooks/run.py nowhere first"),
        ("../demo", "cannot be a file name"),
    ],
)
def test_a_name_of_no_run_is_refused(run, reason, results, capsys):
    assert page.main([run]) == 2
    assert reason in capsys.readouterr().err


def test_the_committed_page_shows_the_committed_numbers():
    text = (DEMO / "index.html").read_text(encoding="utf-8")
    assert not tags_of_one_file(text) & {"link", "iframe", "object", "form"}
    assert len(text.encode()) < 1.5e6
    read = Reader(text)
    for each in files.read_json(DEMO / "summary.json")["rows"]:
        values = [each["miou"], *each["iou"].values()]
        assert {f"{100 * value:.1f}" for value in values if value is not None} <= set(read.text("td"))
        assert each["name"] in read.text("th")
    assert len({each["alt"].split(": ")[0] for each in read.of("img")}) == 12  # six unlabelled, six val
