"""The page of a run in a real browser: drawn without a complaint, without a request, and its controls do something."""

import os
import subprocess
import sys

import pytest

from browser import lab
from plg_utils import files

PHONE = {"width": 375, "height": 812}  # pixels


def make_page(run, results, to):
    """Write the page of a run as the command does."""
    command = [sys.executable, "-m", "plg_utils.page", run, "--to", str(to)]
    environment = os.environ | {"PLG_RESULTS": str(results)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return to


@pytest.fixture(scope="module")
def run_page(ran, server, tmp_path_factory):
    """The page of the run that the notebooks have just made."""
    ran("05_evaluation")
    run = {"run": "demo", "dataset": "storybook", "dataset_options": lab.QUICK["dataset_options"], "labelled": 12}
    content = run | {"seed": 0, "parameters": {"shown_images": 6}, "notebooks": []}
    files.write_json(server.results / "demo" / "run.json", content)  # as the runner writes it
    return make_page("demo", server.results, tmp_path_factory.mktemp("page") / "run.html")


@pytest.fixture(scope="module")
def published_page(tmp_path_factory):
    """The page of a run of which only the json is here."""
    folder = tmp_path_factory.mktemp("page")
    return make_page("demo", folder / "empty", folder / "published.html")


@pytest.fixture(scope="module")
def committed_page():
    """The page that the repository holds."""
    path = files.ROOT / "results" / "demo" / "index.html"
    if not path.exists():
        pytest.skip("results/demo holds no index.html")
    return path


@pytest.fixture(params=["run", "published", "committed"])
def shown(request, tab):
    """A page in a tab: which one, the tab, and what was heard from it."""
    address = request.getfixturevalue(f"{request.param}_page").as_uri()
    page, heard = tab()
    page.goto(address)
    yield request.param, page, heard
    page.context.close()


def keep(page, name):
    """Keep a picture of the whole page."""
    lab.keep(page, lab.SCREENSHOTS / f"page_{name}.png", full_page=True)


def test_it_is_drawn_without_complaint_or_request(shown):
    name, page, heard = shown
    keep(page, name)
    assert heard.complaints == []
    assert heard.elsewhere(page.url) == []
    assert page.locator("img").count() == page.evaluate("[...document.images].filter(i => i.naturalWidth).length")
    for section in ("ladder", "classes", "errors", "manifest"):
        assert page.locator(f"#{section} tbody tr").count() > 3, section
    assert page.locator("#gallery img").count() > 50 or name != "run"


def cut(stages):
    """Where the border between two stages stands, in percent of their width."""
    return float(stages.evaluate("element => getComputedStyle(element).getPropertyValue('--cut')").strip(" %"))


def test_sliders_move_the_border_between_two_stages(shown):
    _, page, _ = shown
    for gallery in page.locator(".gallery").all():
        case = gallery.locator(".case").first
        stages, slider = case.locator(".stages"), case.locator("input[type=range]")
        slider.scroll_into_view_if_needed()
        before, begin = stages.screenshot(), cut(stages)
        place = slider.bounding_box()
        page.mouse.click(place["x"] + 0.2 * place["width"], place["y"] + place["height"] / 2)
        assert begin == 50
        moved = cut(stages)
        assert abs(moved - 20) < 5
        assert stages.screenshot() != before
        slider.press("ArrowRight")
        assert cut(stages) == moved + 1


def test_other_stages_can_be_chosen(shown):
    name, page, _ = shown
    for gallery in page.locator(".gallery").all():
        stages = gallery.locator(".stages").first
        left, right = gallery.locator("select").all()
        before = stages.screenshot()
        left.select_option(label="truth")
        assert stages.screenshot() != before
        gallery.locator("input[type=checkbox]").check()
        assert all(figure.is_visible() for figure in stages.locator("figure").all())
    keep(page, f"{name}_side_by_side")


def test_a_click_on_a_head_sorts(shown):
    _, page, _ = shown
    table = page.locator("#classes table")
    table.locator("thead th").nth(1).click()
    column = table.locator("tbody tr td:nth-child(2)").all_inner_texts()
    assert column == sorted(column, key=lambda text: -1 if text == "–" else float(text), reverse=True)


def test_a_phone_does_not_scroll_sideways(shown):
    name, page, _ = shown
    page.set_viewport_size(PHONE)
    keep(page, f"{name}_phone")
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]


def test_dark_and_on_paper(shown):
    name, page, _ = shown
    page.emulate_media(color_scheme="dark")
    keep(page, f"{name}_dark")
    red, green, blue = page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)")
    assert red + green + blue < 150
    page.emulate_media(color_scheme="light", media="print")
    keep(page, f"{name}_paper")
    assert not any(slider.is_visible() for slider in page.locator("input[type=range]").all())
