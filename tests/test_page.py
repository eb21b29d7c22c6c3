"""The page of a run: what it shows, that it asks for nothing, and that no name in a run can break out of its text."""

import base64
import hashlib
import io
import re
import shutil
import subprocess
from html.parser import HTMLParser

import nbformat
import numpy as np
import pytest
from PIL import Image

from plg_utils import datasets, files, page, store
from plg_utils.datasets import storybook

DEMO = files.ROOT / "results" / "demo"
VOID = {"meta", "img", "input", "rect"}
KNOWN = {
    *("html", "head", "meta", "title", "style", "body", "header", "h1", "h2", "h3", "p", "nav", "a", "section", "div"),
    *("table", "thead", "tbody", "tr", "th", "td", "svg", "rect", "ul", "li", "button", "label", "select", "option"),
    *("input", "figure", "img", "figcaption", "details", "summary", "pre", "code", "footer", "script"),
}
HOSTILE = (
    "<script>alert(1)</script>",
    '" onload="alert(1)',
    "'><img src=x onerror=alert(1)>",
    "</style><b>&amp;",
    "</script><script>alert(1)//",
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


def row(name, miou, *, stage="zero_shot", split="unlabelled", classes=("background", "cat"), **more):
    told = {"stage": stage, "method": name, "name": name, "labelled": 2, "seed": 0, "split": split, "images": 4}
    told |= {"miou": miou, "iou": dict(zip(classes, (miou, None), strict=True)), "options": {}}
    kinds = ("boundary", "background bleed", "missed object", "wrong class", "right")
    return told | {"wrong_pixels": dict(zip(kinds, (10, 20, 0, 5, 65), strict=True))} | more


def stage(folder, name, data, labels):
    """A finished stage of label maps."""
    opened = store.stage(folder / name, name=name, parameters={"name": name}, dataset=data)
    for id in opened.todo(list(labels), [".png"]):
        files.write_label(opened.path(id, ".png"), labels[id], data.classes.colours)
    opened.finish(images=len(labels))


def copy_of_05(folder, **parameters):
    """The executed copy of a notebook, which tells what a run was made with."""
    cells = [
        nbformat.v4.new_code_cell("\n".join(f"{name} = {value!r}" for name, value in parameters.items()), metadata=meta)
        for meta in ({"tags": ["injected-parameters"]},)
    ]
    (folder / "notebooks").mkdir(parents=True, exist_ok=True)
    nbformat.write(nbformat.v4.new_notebook(cells=cells), folder / "notebooks" / "05_evaluation.ipynb")


@pytest.fixture
def results(tmp_path, monkeypatch):
    monkeypatch.setenv("PLG_RESULTS", str(tmp_path / "results"))
    return tmp_path / "results"


@pytest.fixture
def tiny(world, results):
    """A run on two scenes, evaluated: zero-shot and enhanced labels, the predictions of a network."""
    options = {"root": str(world), "limit": 2}
    data = datasets.load("storybook", labelled=2, truth_of=("labelled", "unlabelled", "val"), **options)
    folder = results / "tiny"
    truth = {sample.id: sample.truth() for sample in data.unlabelled}
    stage(folder, "labels_zero_shot", data, {id: np.where(label == 0, 255, label) for id, label in truth.items()})
    stage(folder, "labels_enhanced", data, {id: np.zeros_like(label) for id, label in truth.items()})
    stage(folder, "predictions_paper_a", data, {sample.id: sample.truth() for sample in data.val})
    copy_of_05(folder, run="tiny", dataset="storybook", dataset_options=options, labelled=2, seed=0, shown_images=1)
    rows = [row("zero-shot labels", 0.5), row("enhanced labels", 0.25, stage="enhanced")]
    rows += [row("paper A", 0.75, stage="segmenter", split="val")]
    summary = {"run": "tiny", "dataset": "storybook", "rows": rows, "manifest": page.manifests(folder)}
    files.write_json(folder / "summary.json", summary)
    return folder


def decoded(address):
    kind, encoded = re.fullmatch(r"data:image/(png|jpeg);base64,([A-Za-z0-9+/=]+)", address).groups()
    picture = Image.open(io.BytesIO(base64.b64decode(encoded)))
    assert picture.format.lower() == kind
    return picture


# What it shows


def test_the_numbers_are_those_of_the_summary(tiny):
    read = Reader(page.html(tiny))
    assert read.text("h1") == ["tiny"]
    assert read.text("h2") == ["Ladder", "Gallery", "Classes", "Errors", "Manifest"]
    assert {"50.0", "25.0", "75.0", "on 4 unlabelled images", "on 4 val images"} <= set(read.text("td", "th"))
    bars = [
        float(rect["width"]) for rect in read.of("rect") if rect.get("class") in ("zero_shot", "enhanced", "segmenter")
    ]
    assert [width for width in bars if width != 10] == [50, 25, 75]  # 10 are those of the legend
    assert "data set storybook, 2 labelled images, seed 0" in read.text("p")


def test_classes_without_a_truth_are_dashes_and_errors_are_shares_of_the_pixels():
    table = page.classes_table([row("x", 0.456), row("y", 1.0)], ["background", "cat"])
    cells = [(cell.text, cell.get("class")) for cell in table.iter("td")]
    assert cells == [("45.6", "q4"), ("100.0", "q9"), ("–", "none"), ("–", "none")]
    assert [button.text for button in table.iter("button")] == ["class", "x", "y"]
    errors = page.errors([row("x", 0.5), row("y", 0.5, wrong_pixels={**row("y", 0)["wrong_pixels"], "right": 165})])
    numbers = [cell.text for cell in errors.iter("td") if cell.get("class") == "number"]
    assert numbers == ["35.0", "10.0", "20.0", "0.0", "5.0", "17.5", "5.0", "10.0", "0.0", "2.5"]
    widths = [
        float(rect.get("width")) for bar in errors.iter("td") if bar.get("class") == "bar" for rect in bar.iter("rect")
    ]
    assert sum(widths[:4]) == pytest.approx(100, abs=0.05) and sum(widths[4:]) == pytest.approx(50, abs=0.05)


def test_rows_without_a_name_are_told_apart_by_their_options():
    row = {"stage": "zero_shot", "method": "cam", "split": "val", "images": 2, "miou": 0.5}
    rows = [row | {"options": {"cam": which}} for which in ("classifier", "clip_text")]
    names = [cell.text for cell in page.ladder([*rows, row | {"name": "its name"}]).iter("th")]
    assert names[-3:] == ["cam, classifier", "cam, clip_text", "its name"]


def test_a_gallery_holds_the_first_images_with_their_stages_pixel_by_pixel(tiny, world):
    read = Reader(page.html(tiny))
    pictures = {attributes["alt"]: decoded(attributes["src"]) for attributes in read.of("img")}
    one, val = "unlabelled_000", "val_000"
    stages = [f"{one}: {name}" for name in ("image", "zero-shot", "enhanced", "truth")]
    assert list(pictures) == stages + [f"{val}: {name}" for name in ("image", "paper a", "truth")]
    data = datasets.load("storybook", root=world, labelled=2, limit=2, truth_of=("unlabelled",))
    truth = data.unlabelled[0].truth()
    colours = np.array(data.classes.colours, np.uint8)
    np.testing.assert_array_equal(np.array(pictures[f"{one}: truth"].convert("RGB")), colours[truth])
    shown = np.array(pictures[f"{one}: zero-shot"].convert("RGB"))
    assert (shown[truth == 0] == (224, 224, 192)).all()  # no label
    np.testing.assert_array_equal(shown[truth > 0], colours[truth][truth > 0])
    photo = np.array(pictures[f"{one}: image"]).astype(float)
    assert np.abs(photo - data.unlabelled[0].image()).mean() < 6  # a JPEG


def test_sliders_are_inputs_of_the_keyboard_and_have_names(tiny):
    read = Reader(page.html(tiny))
    sliders = [each for each in read.of("input") if each["type"] == "range"]
    assert [each["aria-label"] for each in sliders] == [
        "unlabelled_000: where the two stages meet",
        "val_000: where the two stages meet",
    ]
    chosen = [each for each in read.of("option") if "selected" in each]
    assert [each["value"] for each in chosen] == ["0", "2", "0", "1"]  # image and enhanced, image and paper a
    assert all(each["alt"] for each in read.of("img"))


def test_large_pictures_become_small_ones(results):
    label = np.zeros((1000, 700), np.uint8)
    label[:503] = 10
    data = datasets.load("storybook", labelled=2, limit=0)
    small = np.array(decoded(page._map(label, data.classes)))
    assert small.shape == (480, 336) and set(np.unique(small)) == {0, 10}  # values are never mixed
    assert decoded(page._photo(np.zeros((70, 960, 3), np.uint8))).size == (480, 35)


def test_own_photos_have_a_gallery_and_no_numbers(tmp_path, results):
    files.write_image(tmp_path / "photos" / "one.jpg", storybook.draw(0).image[:70, :99])
    options = {"root": str(tmp_path / "photos"), "classes": ["fish", "house"]}
    data = datasets.load("folder", **options)
    folder = results / "mine"
    stage(folder, "labels_zero_shot", data, {"one": np.ones((70, 99), np.uint8)})
    copy_of_05(folder, run="mine", dataset="folder", dataset_options=options)
    files.write_json(folder / "summary.json", {"run": "mine", "dataset": "folder", "rows": [], "manifest": {}})
    read = Reader(page.html(folder))
    assert any(text.startswith("There is no truth to compare with") for text in read.text("p"))
    assert [each["alt"] for each in read.of("img")] == ["one: image", "one: zero-shot"]
    assert decoded(read.of("img")[1]["src"]).size == (99, 70)
    assert read.text("h2") == ["Ladder", "Gallery", "Manifest"]


def test_without_label_maps_the_page_tells_the_numbers_and_that_there_are_no_pictures(results):
    summary = {"run": "gone", "dataset": "storybook", "rows": [row("zero-shot labels", 0.5)], "manifest": {}}
    files.write_json(results / "gone" / "summary.json", summary)
    read = Reader(page.html(results / "gone"))
    assert not read.of("img") and "50.0" in read.text("td")
    assert "The label maps of this run are not here, so there are no pictures." in read.text("p")


def test_pictures_of_another_draw_are_not_shown(tiny, world):
    copy_of_05(tiny, dataset="storybook", dataset_options={"root": str(world), "limit": 1}, labelled=2, seed=0)
    with pytest.warns(UserWarning, match="no pictures: the data set .* has other images than its manifests"):
        read = Reader(page.html(tiny))
    assert not read.of("img")
    assert "The images or their label maps could not be read, so there are no pictures." in read.text("p")
    assert "50.0" in read.text("td")


# What it was made with


def test_parameters_are_those_of_the_executed_copies_else_of_the_published_file(tiny, results, monkeypatch):
    known = page.parameters_of(tiny)
    assert known["labelled"] == 2 and known["shown_images"] == 1 and known["dataset_options"]["limit"] == 2
    shutil.rmtree(tiny / "notebooks")
    known = page.parameters_of(tiny)
    assert (known["dataset"], known["labelled"], known["dataset_options"]) == ("storybook", 12, {"limit": 100})
    assert page.parameters_of(results / "voc_92")["labelled"] == 92  # of results/voc_92/parameters.yaml


def test_the_same_files_make_the_same_page_and_seconds_change_the_manifest_alone(tiny):
    before = page.html(tiny)
    assert before == page.html(tiny)
    summary = files.read_json(tiny / "summary.json")
    for content in summary["manifest"].values():
        content.update(wall_seconds=99.9, peak_memory_mb=1.0)
    files.write_json(tiny / "summary.json", summary)
    after = page.html(tiny)
    assert after != before
    mark = '<section id="manifest">'
    assert after.split(mark)[0] == before.split(mark)[0]
    assert "99.9" in Reader(after).text("code") and '"wall_seconds": 99.9' in Reader(after).text("pre")[0]


def test_no_folder_of_this_machine_stands_in_the_page(tiny, world):
    text = page.html(tiny)
    assert str(world) not in text and str(tiny) not in text and str(files.ROOT) not in text


# That it asks for nothing


def policy(text):
    (content,) = [
        each["content"] for each in Reader(text).of("meta") if each.get("http-equiv") == "Content-Security-Policy"
    ]
    return dict(part.split(" ", 1) for part in content.split("; "))


def hash_of(text):
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def check_asks_for_nothing(text):
    """One file: no address but data, one script and one style, which the policy names by their hash."""
    read = Reader(text)
    assert {tag for tag, _ in read.elements} <= KNOWN
    names = [(tag, name) for tag, attributes in read.elements for name in attributes]
    assert not [
        name for _, name in names if name.startswith("on") or name in ("style", "srcset", "action", "formaction")
    ]
    assert {tag for tag, name in names if name == "src"} <= {"img"}
    assert all(each["src"].startswith("data:image/") for each in read.of("img"))
    assert all(re.fullmatch("#[a-z]+", each["href"]) for each in read.of("a"))
    (script,), (style,) = (re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL) for tag in ("script", "style"))
    assert policy(text) == {
        "default-src": "'none'",
        "img-src": "data:",
        "style-src": hash_of(style),
        "script-src": hash_of(script),
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    assert "url(" not in style and "@import" not in style and "http" not in script + style
    meta = read.of("meta")
    assert meta[0] == {"charset": "utf-8"} and "http-equiv" in meta[1]  # before anything that it is to govern


def test_the_page_is_one_file_that_asks_for_nothing(tiny):
    check_asks_for_nothing(page.html(tiny))


def hostile_run(results, tmp_path):
    """A run in which every name is an attack: classes, images, rows, data set, parameters, the run itself."""
    ids = [name.replace("/", "") for name in HOSTILE]
    for id in ids:
        files.write_image(tmp_path / "photos" / f"{id}.png", np.full((4, 6, 3), 99, np.uint8))
    options = {"root": str(tmp_path / "photos"), "classes": list(HOSTILE)}
    data = datasets.load("folder", **options)
    folder = results / "hostile"
    stage(folder, "labels_zero_shot", data, {sample.id: np.ones((4, 6), np.uint8) for sample in data.unlabelled})
    copy_of_05(folder, dataset="folder", dataset_options=options, shown_images=9)
    names = ("background", *HOSTILE)
    rows = [row(name, 0.5, stage=name, split=name) | {"iou": dict.fromkeys(names, 0.5)} for name in HOSTILE]
    manifest = {
        name: {name: name, "parameters": {name: name}, "packages": {name: name}, "seed": name} for name in HOSTILE
    }
    manifest = {name: content | {"checkpoints": {name: name}} for name, content in manifest.items()}
    files.write_json(
        folder / "summary.json", {"run": HOSTILE[0], "dataset": HOSTILE[1], "rows": rows, "manifest": manifest}
    )
    interval = {"difference": 0.1, "low": 0.0, "high": 0.2}
    files.write_json(folder / "05_evaluation.json", {"bootstrap": dict.fromkeys(HOSTILE, interval)})
    return folder, ids


def test_no_name_in_a_run_breaks_out_of_its_text(results, tmp_path):
    folder, ids = hostile_run(results, tmp_path)
    text = page.html(folder)
    check_asks_for_nothing(text)
    read = Reader(text)
    assert read.inside == []  # each element was closed by its own end
    assert read.text("h1") == [HOSTILE[0]] and HOSTILE[0] in read.text("title")[0]
    assert (
        set(HOSTILE) <= set(read.text("button"))
        and set(HOSTILE) <= set(read.text("li"))
        and set(HOSTILE) <= set(read.text("th"))
    )
    assert sorted({each["alt"] for each in read.of("img")}) == sorted(
        f"{id}: {name}" for id in ids for name in ("image", "zero-shot")
    )
    assert len(read.of("script")) == 1


# In a browser

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def browse(path, profile):
    """The page as a browser holds it after its script, and what the browser said."""
    if not BROWSER:
        pytest.skip("no chromium on this machine")
    quiet = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
    command = [BROWSER, *quiet, f"--user-data-dir={profile}", "--enable-logging=stderr", "--v=0", "--dump-dom"]
    done = subprocess.run([*command, path.as_uri()], capture_output=True, text=True, timeout=100)
    if "<body" not in done.stdout:
        pytest.skip(f"the browser does not start here: {done.stderr[-200:]}")
    return done.stdout, done.stderr


def test_a_browser_runs_the_script_and_nothing_else(results, tmp_path):
    folder, _ = hostile_run(results, tmp_path)
    dom, said = browse(page.write(folder), tmp_path / "profile")
    assert 'class="script"' in dom.split("<head")[0]  # the hash of the policy fits the script
    assert dom.count('class="left"') == dom.count('class="right"') == len(HOSTILE)
    assert "--cut: 50%" in dom
    assert "Content Security Policy" not in said  # nothing was tried that it forbids


def test_a_click_sorts_the_classes_and_a_slider_moves_the_cut(tiny, tmp_path):
    rows = [row("x", 0.5) | {"iou": {"a": 0.2, "b": 0.9, "c": None, "d": 0.4}}]
    files.write_json(tiny / "summary.json", files.read_json(tiny / "summary.json") | {"rows": rows})
    act = """
      const [slider] = document.querySelectorAll('input[type=range]');
      slider.value = 20; slider.dispatchEvent(new Event('input'));
      const [left] = document.querySelectorAll('select');
      left.value = 3; left.dispatchEvent(new Event('change'));
      for (const k of [0, 1]) document.querySelectorAll('.grid thead button')[k].click();
    """
    text = page.html(tiny).replace("</script>", f"</script><script>{act}</script>")
    text = re.sub('<meta http-equiv="Content-Security-Policy"[^>]*>', "", text)  # which forbids what is added here
    (tmp_path / "acted.html").write_text(text, encoding="utf-8")
    dom, _ = browse(tmp_path / "acted.html", tmp_path / "profile")
    assert "--cut: 20%" in dom and "--cut: 50%" in dom
    assert re.search('<figure class="left"><img src="[^"]*" alt="unlabelled_000: truth"', dom)
    assert re.findall('aria-sort="([a-z]+)"', dom) == ["descending"]  # that of the first click is gone
    body = dom.split('class="grid"')[1].split("<tbody>")[1].split("</tbody>")[0]
    assert re.findall('<th scope="row">(.)</th>', body) == ["b", "d", "a", "c"]  # what has no number comes last


# The command, and what is committed


def test_the_command_writes_where_it_is_told(tiny, tmp_path, capsys):
    assert page.main(["tiny"]) == 0
    assert (tiny / "index.html").read_text(encoding="utf-8") == page.html(tiny)
    assert f"{tiny / 'index.html'}, 0." in capsys.readouterr().out
    assert page.main(["tiny", "--to", str(tmp_path / "deep" / "a.html")]) == 0
    assert (tmp_path / "deep" / "a.html").read_bytes() == (tiny / "index.html").read_bytes()


def test_the_command_leaves_a_published_run_as_it_is(results):
    before = {path: path.stat().st_mtime_ns for path in (DEMO, *DEMO.iterdir())}
    assert page.main(["demo"]) == 0  # not made here: what was published is read
    assert before == {path: path.stat().st_mtime_ns for path in (DEMO, *DEMO.iterdir())}
    read = Reader((results / "demo" / "index.html").read_text(encoding="utf-8"))
    assert "zero-shot labels" in read.text("th") and not read.of("img")


def test_what_is_no_run_is_refused(results, capsys):
    assert page.main(["nowhere"]) == 2
    assert "is a finished run: run notebooks/run.py nowhere first" in capsys.readouterr().err
    assert page.main(["storybook_table"]) == 2
    assert "storybook_table is a grid" in capsys.readouterr().err
    assert page.main(["../demo"]) == 2
    assert "cannot be a file name" in capsys.readouterr().err


@pytest.mark.skipif(
    not (DEMO / "index.html").exists(), reason="results/demo has no page yet: make demo, make publish RUN=demo"
)
def test_the_committed_page_shows_the_committed_numbers():
    text = (DEMO / "index.html").read_text(encoding="utf-8")
    check_asks_for_nothing(text)
    assert len(text.encode()) < 1.5e6
    rows = files.read_json(DEMO / "summary.json")["rows"]
    names = datasets.load("storybook", labelled=2, limit=0).classes.names
    for part in (page.ladder(rows), page.classes_table(rows, names), page.errors(rows)):
        assert page.text_of(part) in text
    assert len({each["alt"].split(": ")[0] for each in Reader(text).of("img")}) == 12  # six unlabelled, six val
