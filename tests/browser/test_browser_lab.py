"""Each notebook in a real JupyterLab: Run All, and what a person then sees."""

import re

import pytest

from browser import lab
from plg_utils import class_files

NOTEBOOKS = sorted(path.stem for path in lab.NOTEBOOKS.glob("*.ipynb"))


def outputs(notebook):
    """All outputs of a saved notebook."""
    return [output for cell in notebook.cells for output in cell.get("outputs", [])]


@pytest.mark.parametrize("stem", NOTEBOOKS)
def test_run_all(ran, server, stem):
    found = ran(stem)
    assert found.shown["errors"] == []
    assert all(prompt.strip("[]:").isdigit() for prompt in found.prompts), f"cells that did not run: {found.prompts}"
    assert not [output for output in outputs(found.saved) if output.output_type == "error"]
    said = "".join(output.text for output in outputs(found.saved) if output.output_type == "stream")
    assert "Traceback" not in said

    kinds = [kind for output in outputs(found.saved) for kind in output.get("data", {})]
    assert found.shown["figures"] == kinds.count("image/png")
    assert found.shown["widgets"] == kinds.count("application/vnd.jupyter.widget-view+json")
    assert found.shown["blank"] == [], "cells with pictures that the browser could not draw"
    assert found.shown["cut"] == [], "outputs that are wider than a window of 1280 pixels"
    assert found.shown["wrapped"] == [], "drawings in the prose that a window of 1280 pixels wraps"

    assert found.heard.complaints == []
    assert found.heard.elsewhere(server.url) == []


# The panel of 07, as a person uses it


class Panel:
    """What can be operated and read in the panel, found by its CSS classes."""

    def __init__(self, notebook, heard, folder):
        self.notebook, self.page, self.heard, self.folder = notebook, notebook.page, heard, folder

    def part(self, name):
        return self.page.locator(f".plg-lab .plg-{name}")

    def box(self, name):
        """The box of words of a class, and what is typed into."""
        box = self.part("words").filter(has_text=name)
        return box, box.locator("input, textarea")

    def write(self, name, text):
        """Put words in place of those that stand there, and leave the box."""
        _, typed = self.box(name)
        typed.fill(text)
        typed.press("Tab")

    def score(self):
        """The mean IoU in the status line, without the time beside it."""
        return re.search(r"mean IoU [\d.]+ %", self.part("status").inner_text())[0]

    def threshold(self):
        return self.part("threshold").locator(".widget-readout")

    def pictures(self):
        """The bytes of the gallery's picture."""
        read = "async image => String(new Uint8Array(await (await fetch(image.src)).arrayBuffer()))"
        return self.part("gallery").evaluate(read)

    def saved(self):
        return sorted(self.folder.glob("07_classes*.yaml"))


@pytest.fixture(scope="module")
def opened(ran, server, tab):
    """Notebook 07 after Run All."""
    ran("02_zero_shot_labels")
    page, heard = tab()
    notebook = lab.NotebookPage(page, server, "07_prompt_lab.ipynb")
    notebook.run_all()
    panel = Panel(notebook, heard, server.results / "demo")
    panel.run_score = panel.score()
    yield panel
    notebook.close()


@pytest.fixture
def panel(opened, expect):
    """The panel as the run has it."""
    opened.part("reset").click()
    expect(opened.part("status")).to_contain_text(opened.run_score)
    expect(opened.part("message")).to_have_text("")
    return opened


def shot(panel, name):
    """Keep a picture of the whole panel."""
    panel.notebook.unfold()
    lab.keep(panel.page.locator(".plg-lab"), lab.SCREENSHOTS / f"07_prompt_lab_panel_{name}.png")
    panel.notebook.fold()


def test_other_words_change_labels_and_score(panel, expect):
    score, pictures = panel.score(), panel.pictures()
    panel.write("balloon", "a house for the clouds")
    expect(panel.part("status")).not_to_contain_text(score)
    assert panel.pictures() != pictures
    panel.part("reset").click()
    expect(panel.part("status")).to_contain_text(score)
    assert panel.pictures() == pictures


def test_an_unknown_word_is_listed(panel, expect):
    panel.write("mushroom", "a toadstool")
    expect(panel.part("message")).to_contain_text("toadstool (mushroom)")
    shot(panel, "unknown_word")
    panel.part("reset").click()
    expect(panel.part("message")).not_to_contain_text("toadstool")


def test_the_threshold_moves(panel, expect):
    score, threshold = panel.score(), panel.threshold().inner_text()
    rail, handle = (panel.part("threshold").locator(f".noUi-{part}") for part in ("base", "handle"))
    handle.scroll_into_view_if_needed()
    place, begin = rail.bounding_box(), handle.bounding_box()
    panel.page.mouse.move(begin["x"] + begin["width"] / 2, begin["y"] + begin["height"] / 2)
    panel.page.mouse.down()
    panel.page.mouse.move(place["x"] + 0.8 * place["width"], place["y"], steps=5)
    panel.page.mouse.up()
    expect(panel.part("status")).not_to_contain_text(score)
    assert abs(float(panel.threshold().inner_text()) - 0.8) < 0.05
    shot(panel, "high_threshold")
    panel.part("best").click()
    expect(panel.threshold()).to_have_text(threshold)
    expect(panel.part("status")).to_contain_text(score)


def test_save_writes_the_class_file(panel, expect):
    before = panel.saved()
    panel.write("car", "a car, a vehicle")
    panel.part("save").click()
    expect(panel.part("message")).to_contain_text("Saved")
    (path,) = set(panel.saved()) - set(before)
    classes = class_files.read(path)
    assert classes.words[classes.names.index("car")] == ("a car", "a vehicle")
    shot(panel, "saved")


def test_what_is_wrong_is_not_saved(panel, expect):
    before = panel.saved()
    panel.write("car", "a car, a house")  # the house's word
    expect(panel.part("message")).to_contain_text("a house")
    panel.part("save").click()
    expect(panel.part("message")).to_contain_text("Not saved")
    assert panel.saved() == before
    shot(panel, "refused")


def test_the_panel_makes_no_complaint_and_asks_nobody(panel, server):
    assert panel.heard.complaints == []
    assert panel.heard.elsewhere(server.url) == []
