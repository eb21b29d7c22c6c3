"""Each notebook in a real JupyterLab: Run All, and what a person then sees."""

import re
from types import SimpleNamespace

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


# The panel of 07, as a person uses it: each kind of widget once


@pytest.fixture(scope="module")
def opened(ran, server, tab):
    """Notebook 07 after Run All, and what was heard from its tab."""
    ran("02_zero_shot_labels")
    page, heard = tab()
    notebook = lab.NotebookPage(page, server, "07_prompt_lab.ipynb")
    notebook.run_all()
    yield notebook, heard
    notebook.close()


@pytest.fixture
def panel(opened, server, expect):
    """The parts of the panel, found by their CSS classes, with the run's words."""
    notebook, _ = opened
    page = notebook.page

    def part(name):
        return page.locator(f".plg-lab .plg-{name}")

    def write(name, text):
        """Put words in place of those of a class, and leave the box."""
        typed = part("words").filter(has_text=name).locator("input, textarea")
        typed.fill(text)
        typed.press("Tab")

    def score():
        """The mean IoU in the status line, without the time beside it."""
        return re.search(r"mean IoU [\d.]+ %", part("status").inner_text())[0]

    def picture():
        """The bytes of the gallery."""
        read = "async image => String(new Uint8Array(await (await fetch(image.src)).arrayBuffer()))"
        return part("gallery").evaluate(read)

    def saved():
        return set((server.results / "demo").glob("07_classes*.yaml"))

    def shot(name):
        notebook.unfold()
        lab.keep(page.locator(".plg-lab"), lab.SCREENSHOTS / f"07_prompt_lab_panel_{name}.png")
        notebook.fold()

    part("reset").click()
    expect(part("message")).to_have_text("")
    return SimpleNamespace(page=page, part=part, write=write, score=score, picture=picture, saved=saved, shot=shot)


def test_other_words_change_labels_and_score_and_unknown_ones_are_listed(panel, expect):
    score, picture = panel.score(), panel.picture()
    panel.write("balloon", "a house for the clouds")
    expect(panel.part("status")).not_to_contain_text(score)
    assert panel.picture() != picture
    panel.write("mushroom", "a toadstool")
    expect(panel.part("message")).to_contain_text("toadstool (mushroom)")
    panel.shot("unknown_word")
    panel.part("reset").click()
    expect(panel.part("status")).to_contain_text(score)
    expect(panel.part("message")).not_to_contain_text("toadstool")
    assert panel.picture() == picture


def test_the_threshold_moves(panel, expect):
    score, readout = panel.score(), panel.part("threshold").locator(".widget-readout")
    threshold = readout.inner_text()
    rail, handle = (panel.part("threshold").locator(f".noUi-{part}") for part in ("base", "handle"))
    handle.scroll_into_view_if_needed()
    place, begin = rail.bounding_box(), handle.bounding_box()
    panel.page.mouse.move(begin["x"] + begin["width"] / 2, begin["y"] + begin["height"] / 2)
    panel.page.mouse.down()
    panel.page.mouse.move(place["x"] + 0.8 * place["width"], place["y"], steps=5)
    panel.page.mouse.up()
    expect(panel.part("status")).not_to_contain_text(score)
    assert abs(float(readout.inner_text()) - 0.8) < 0.05
    panel.shot("high_threshold")
    panel.part("best").click()
    expect(readout).to_have_text(threshold)
    expect(panel.part("status")).to_contain_text(score)


def test_save_writes_the_class_file_and_nothing_that_is_wrong(panel, opened, server, expect):
    before = panel.saved()
    panel.write("car", "a car, a house")  # the house's word
    expect(panel.part("message")).to_contain_text("a house")
    panel.part("save").click()
    expect(panel.part("message")).to_contain_text("Not saved")
    assert panel.saved() == before
    panel.shot("refused")
    panel.write("car", "a car, a vehicle")
    panel.part("save").click()
    expect(panel.part("message")).to_contain_text("Saved")
    (path,) = panel.saved() - before
    classes = class_files.read(path)
    assert classes.words[classes.names.index("car")] == ("a car", "a vehicle")
    panel.shot("saved")
    _, heard = opened
    assert heard.complaints == [] and heard.elsewhere(server.url) == []
