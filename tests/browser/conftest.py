"""The browser, the JupyterLab and the finished run that the browser tests look at; all of it is gone afterwards.

These tests run under `make test-browser` alone, which says so by PLG_BROWSER=1; else they are skipped. They need
Chromium, which no package index has: PLG_CHROMIUM=/path/to/it, or a name that a system gives it (see CHROMIUMS).
"""

import os
import shutil
import signal
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import pytest

from browser import lab

CHROMIUMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = ["--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
FLAGS += ["--disable-component-update", "--disable-sync"]
FLAGS += ["--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"]  # nothing but this machine can be reached


def pytest_collection_modifyitems(items):
    """Skip the tests of this folder unless they were asked for; they take minutes and need a browser."""
    if os.environ.get("PLG_BROWSER") != "1":
        for item in items:
            if item.path.is_relative_to(Path(__file__).parent):
                item.add_marker(pytest.mark.skip(reason="takes minutes and needs Chromium: make test-browser"))


@pytest.fixture(scope="session")
def browser():
    """Start a headless Chromium with a profile of its own."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        pytest.fail("playwright is not installed: make test-browser does it", pytrace=False)
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=chromium_path(), args=FLAGS, timeout=lab.PATIENCE * 1000)
        yield chromium
        chromium.close()


def chromium_path() -> str:
    """Return the path of Chromium, or fail with what to install."""
    named = os.environ.get("PLG_CHROMIUM")
    found = [path for name in ([named] if named else CHROMIUMS) if (path := shutil.which(name))]
    if not found:
        missing = (
            f"PLG_CHROMIUM is {named}, and that is no program" if named else f"no {', '.join(CHROMIUMS)} on the PATH"
        )
        remedy = "On Debian and Ubuntu: sudo apt install chromium; or PLG_CHROMIUM=/path/to/chromium make test-browser"
        pytest.fail(f"{missing}. {remedy}", pytrace=False)
    return found[0]


@dataclass
class Heard:
    """What a browser's tab complained of, and what it asked for."""

    complaints: list[str] = field(default_factory=list)  # errors of the console and of scripts
    requests: list[str] = field(default_factory=list)  # addresses, but for what stands in the page itself

    def listen(self, page):
        """Collect from now on."""
        page.on("console", lambda said: self.complaints.append(said.text) if said.type == "error" else None)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("websocket", lambda socket: self.requests.append(socket.url))
        page.on("request", lambda asked: self.requests.append(asked.url))
        return page

    def elsewhere(self, home: str) -> list[str]:
        """Requests to any place but this one."""
        inside = (home, home.replace("http:", "ws:"), "data:", "blob:")
        return [address for address in self.requests if not address.startswith(inside)]


@pytest.fixture(scope="session")
def tab(browser):
    """Open a new tab, in a profile of its own: `tab(width=...)` -> (page, what was heard from it)."""

    def tab(**window):
        context = browser.new_context(viewport=lab.WINDOW | window, accept_downloads=False)
        context.set_default_timeout(lab.PATIENCE * 1000)
        heard = Heard()
        return heard.listen(context.new_page()), heard

    return tab


@pytest.fixture(scope="session")
def expect(browser):
    """Playwright's `expect`, which waits until what is expected is so."""
    from playwright.sync_api import expect

    expect.set_options(timeout=lab.PATIENCE * 1000)
    return expect


@pytest.fixture(scope="session")
def server():
    """Start JupyterLab on copies of the notebooks; end it with all its kernels."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl+C, after which pytest tidies up
    with tempfile.TemporaryDirectory(prefix="plg-browser-", ignore_cleanup_errors=True) as folder:
        running = lab.Lab(Path(folder))
        try:
            yield running
        finally:
            running.stop()


@pytest.fixture(scope="session")
def ran(server, tab):
    """Run a notebook in the browser: `ran("03_refinement")`; those of 00 to 05 before it are run before."""
    done = {}

    def run(stem):
        page, heard = tab()
        notebook = lab.NotebookPage(page, server, f"{stem}.ipynb")
        try:
            notebook.run_all()
        finally:
            notebook.photograph(lab.SCREENSHOTS)
            saved, prompts, shown = notebook.save(), notebook.prompts(), notebook.shown()
            notebook.close()
        return SimpleNamespace(prompts=prompts, saved=saved, shown=shown, heard=heard)

    def ran(stem):
        numbered = sorted(path.stem for path in lab.NOTEBOOKS.glob("0[0-5]_*.ipynb"))
        for each in [*(before for before in numbered if before < stem), stem]:
            if each not in done:
                try:
                    done[each] = run(each)
                except Exception as error:  # once is enough: those who need it fail at once
                    done[each] = error
            if isinstance(done[each], Exception):
                raise done[each]
        return done[stem]

    return ran
