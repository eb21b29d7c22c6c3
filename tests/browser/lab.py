"""A JupyterLab on copies of the notebooks, and a person at its window: opens one, runs all of it, saves, looks.

The server listens on this machine only. Its settings, its kernels' results and all that it writes lie in a folder that
the caller removes; the user's own Jupyter is neither read nor changed, and of the checkout only the data sets' folder,
into which the storybook's scenes are drawn as ever.
"""

import ast
import json
import os
import secrets
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import nbformat
import psutil

from plg_utils import files

NOTEBOOKS = files.ROOT / "notebooks"
SCREENSHOTS = files.ROOT / "results" / "local" / "browser"  # ignored by git
PATIENCE = 120.0  # seconds that anything may take but the cells of a notebook
CELLS_PATIENCE = 600.0  # seconds that all cells of a notebook may take
WINDOW = {"width": 1280, "height": 900}  # pixels, of a small laptop
TALLEST = 16000  # pixels; Chromium does not paint more in one piece
PORT = 18888  # the first that is tried; the server says which one it got

# What a person would set in the cell of parameters who only wants to see whether it works.
QUICK = {"dataset_options": {"limit": 12}, "classifier_steps": 3, "timed_images": 2, "timed_steps": 1}
QUICK["steps"] = 12  # two points of the curves, which have one for every ten
SETTINGS = {
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
    # All cells are painted, wherever the window is, and nothing but them.
    "notebook-extension/tracker": {"windowingMode": "none", "scrollPastEnd": False},
    "docmanager-extension/plugin": {"autosave": False},
}

PANEL = ".jp-NotebookPanel:not(.lm-mod-hidden)"
# What the cells are doing: their prompts, what the toolbar tells of the kernel, and a dialog where one is open.
STATE = f"""() => {{
    const panel = document.querySelector("{PANEL}");
    const dialog = document.querySelector(".jp-Dialog-content");
    return {{
        prompts: [...panel.querySelectorAll(".jp-CodeCell")].map(
            cell => cell.querySelector(".jp-InputPrompt").textContent.trim()),
        kernel: panel.querySelector(".jp-Notebook-ExecutionIndicator").dataset.status,
        dialog: dialog ? dialog.innerText : null,
    }};
}}"""
# What stands under the cells: figures, pictures that did not come, errors, widgets, what the window cuts off or wraps.
SHOWN = f"""() => {{
    const panel = document.querySelector("{PANEL}");
    const all = selector => [...panel.querySelectorAll(selector)];
    const cell = element => element.closest(".jp-Cell").dataset.windowedListIndex;
    const outputs = ".jp-OutputArea-output";
    const text = element => `cell ${{cell(element)}}: ${{element.textContent.trim().slice(0, 200)}}`;
    const wraps = drawing => {{  // JupyterLab wraps what is made of signs, too
        const code = drawing.querySelector("code");
        code.style.whiteSpace = "pre";
        const is_wide = drawing.scrollWidth > drawing.clientWidth;
        code.style.whiteSpace = "";
        return is_wide;
    }};
    return {{
        figures: all(`${{outputs}}.jp-RenderedImage img`).length,
        blank: all(`${{outputs}} img`).filter(image => !image.complete || !image.naturalWidth).map(cell),
        errors: all(outputs).filter(output => output.textContent.includes("Traceback (most recent")).map(text),
        widgets: all(`${{outputs}} > .jupyter-widgets`).length,
        cut: all(outputs).filter(output => output.scrollWidth > output.clientWidth + 1).map(text),
        wrapped: all(".jp-MarkdownOutput pre:has(code)").filter(wraps).map(text),
    }};
}}"""


class Lab:
    """A running JupyterLab; made by starting it in an empty folder, and stopped by `stop`."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.notebooks = folder / "notebooks"
        self.results = folder / "results"
        self.notebooks.mkdir()
        for path in NOTEBOOKS.glob("*.*"):
            shutil.copy(path, self.notebooks)
        for name, values in SETTINGS.items():
            path = folder / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(values), encoding="utf-8")
        self.token = secrets.token_hex(16)
        self.process = self._start()
        try:
            self.url = self._wait_until_it_answers()
        except BaseException:
            self.stop()
            raise

    def _start(self) -> subprocess.Popen:
        places = {f"JUPYTERLAB_{name.upper()}_DIR": name for name in ("settings", "workspaces")}
        places |= {f"JUPYTER_{name.upper()}_DIR": name for name in ("config", "data", "runtime")}
        places |= {"IPYTHONDIR": "ipython", "PLG_RESULTS": "results"}
        environment = dict(os.environ)
        environment.pop("PLG_PROGRESS", None)  # bars are drawn, as for everybody
        environment |= {name: str(self.folder / place) for name, place in places.items()}
        environment["JUPYTER_TOKEN"] = self.token
        options = {
            "ServerApp.ip": "127.0.0.1",
            "ServerApp.port": PORT,
            "ServerApp.root_dir": self.notebooks,
            "ServerApp.open_browser": False,
            "ServerApp.allow_root": True,  # containers
            "LabApp.news_url": None,
            "LabApp.check_for_updates_class": "jupyterlab.NeverCheckForUpdate",
            "LabApp.extension_manager": "readonly",
        }
        command = [sys.executable, "-m", "jupyterlab", *(f"--{name}={value}" for name, value in options.items())]
        with open(self.folder / "server.log", "wb") as log:
            return subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def _wait_until_it_answers(self) -> str:
        """Wait for the file in which a server that listens tells its port; return its address."""
        deadline = time.monotonic() + PATIENCE
        while True:
            for path in (self.folder / "runtime").glob("jpserver-*.json"):
                with suppress(ValueError):  # it is being written
                    return json.loads(path.read_text(encoding="utf-8"))["url"]
            if self.process.poll() is not None or time.monotonic() > deadline:
                log = (self.folder / "server.log").read_text(encoding="utf-8", errors="replace")
                raise RuntimeError(f"JupyterLab did not start:\n{log}")
            time.sleep(0.1)

    def address(self, notebook: str) -> str:
        """Where a browser finds a notebook; each in a workspace of its own, so that no other is open beside it."""
        return f"{self.url}lab/workspaces/{Path(notebook).stem}/tree/{notebook}?token={self.token}"

    def stop(self) -> None:
        """End the server and its kernels, at the latest by force."""
        try:
            family = [psutil.Process(self.process.pid), *psutil.Process(self.process.pid).children(recursive=True)]
        except psutil.NoSuchProcess:
            return
        self.process.terminate()  # it tells its kernels
        _, alive = psutil.wait_procs(family, timeout=20)
        for process in alive:
            process.kill()
        self.process.wait()


def shorten(notebook: Path) -> None:
    """Put QUICK's values into the cell of parameters, as one does by hand."""
    content = files.read_json(notebook)
    for cell in content["cells"]:
        if "parameters" not in cell["metadata"].get("tags", []):
            continue
        code = "".join(cell["source"])
        for statement in ast.parse(code).body:
            name = statement.targets[0].id
            if name in QUICK:
                before, after = ast.get_source_segment(code, statement), f"{name} = {QUICK[name]!r}"
                assert before.startswith(f"{name} = "), f"{notebook.name}: {before!r} is not written as name = literal"
                code = code.replace(before, after, 1)
        cell["source"] = code
    files.write_json(notebook, content)


class NotebookPage:
    """A notebook that is open in JupyterLab, in a tab of the browser."""

    def __init__(self, page: Any, lab: Lab, notebook: str):
        self.page, self.lab, self.notebook = page, lab, notebook
        shutil.copy(NOTEBOOKS / notebook, lab.notebooks)  # not what an earlier test has saved
        shorten(lab.notebooks / notebook)
        page.goto(lab.address(notebook))
        page.locator(f"{PANEL} .jp-Toolbar-kernelName", has_text="Python 3").wait_for()
        page.locator(f'{PANEL} .jp-Notebook-ExecutionIndicator[data-status="idle"]').wait_for()

    def choose(self, menu: str, entry: str) -> None:
        """Click an entry of a menu."""
        self.page.get_by_role("menuitem", name=menu, exact=True).click()
        self.page.locator(".lm-Menu .lm-Menu-itemLabel").get_by_text(entry, exact=True).click()

    def run_all(self) -> None:
        """Run all cells; return when the kernel rests, whatever came out."""
        self.choose("Run", "Run All Cells")
        deadline = time.monotonic() + CELLS_PATIENCE
        while True:
            state = self.page.evaluate(STATE)
            if state["dialog"]:
                raise AssertionError(f"{self.notebook}: JupyterLab asks something: {state['dialog']}")
            # An error leaves the cells after it without a number, so that only the first must have one.
            if state["kernel"] == "idle" and state["prompts"][0] != "[ ]:" and "[*]:" not in state["prompts"]:
                return
            assert time.monotonic() < deadline, f"{self.notebook}: after {CELLS_PATIENCE:.0f} s {state['prompts']}"
            self.page.wait_for_timeout(250)  # between two looks

    def prompts(self) -> list[str]:
        """The numbers that stand before the code cells."""
        return self.page.evaluate(STATE)["prompts"]

    def shown(self) -> dict[str, Any]:
        """What stands under the cells, see SHOWN."""
        return self.page.evaluate(SHOWN)

    def save(self) -> nbformat.NotebookNode:
        """Save, as the menu does; return what is in the file then."""
        path = self.lab.notebooks / self.notebook
        before = path.stat().st_mtime_ns
        self.choose("File", "Save Notebook")
        deadline = time.monotonic() + PATIENCE
        while path.stat().st_mtime_ns == before:
            assert time.monotonic() < deadline, f"{self.notebook} was not saved"
            self.page.wait_for_timeout(100)
        self.page.locator(".lm-TabBar-tab.lm-mod-current.jp-mod-dirty").wait_for(state="detached")
        return nbformat.read(path, as_version=4)

    def unfold(self) -> None:
        """Make the window as high as the notebook is."""
        needed = self.page.evaluate(
            f"""() => {{
                const outer = document.querySelector("{PANEL} .jp-WindowedPanel-outer");
                return window.innerHeight - outer.clientHeight + outer.scrollHeight;
            }}"""
        )
        self.page.set_viewport_size(WINDOW | {"height": min(max(needed, WINDOW["height"]), TALLEST)})

    def fold(self) -> None:
        """Make the window as high as it was."""
        self.page.set_viewport_size(WINDOW)

    def photograph(self, folder: Path) -> None:
        """Keep a picture of the whole notebook, and one of each output that holds a figure, a table or a widget."""
        stem = Path(self.notebook).stem
        for path in folder.glob(f"{stem}*.png"):
            path.unlink()
        self.unfold()
        keep(self.page, folder / f"{stem}.png")
        for index, cell in enumerate(self.page.locator(f"{PANEL} .jp-Notebook-cell").all()):
            if cell.locator(".jp-OutputArea-output :is(img, table, .jupyter-widgets)").count():
                keep(cell.locator(".jp-Cell-outputWrapper"), folder / f"{stem}_cell-{index:02d}.png")
        self.fold()

    def close(self) -> None:
        """Close the tab and end its kernel."""
        context, headers = self.page.context, {"Authorization": f"token {self.lab.token}"}
        self.page.close()
        sessions = context.request.get(f"{self.lab.url}api/sessions", headers=headers).json()
        for session in sessions:
            if session["path"] == self.notebook:
                context.request.delete(f"{self.lab.url}api/sessions/{session['id']}", headers=headers)
        context.close()


def keep(what: Any, path: Path, **options) -> None:
    """Write the picture of a page or of a part of it."""
    with files.atomic(path) as partial:
        partial.write_bytes(what.screenshot(animations="disabled", **options))
