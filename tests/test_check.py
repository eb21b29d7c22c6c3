"""notebooks/check.py on stand-in prints: what is the same, what is not, what cannot be compared."""

import tempfile
from pathlib import Path
from types import SimpleNamespace

import check
import nbformat
import pytest
import run
import torch
from test_run import PARAMETERS, write_notebook

from plg_utils import files

CODE = 'import os\nprint(steps, os.environ["OMP_NUM_THREADS"], os.listdir(os.environ["PLG_RESULTS"]))'
CPU = {"device": "cpu", "threads": 1, "deterministic": True}
GPU = {"device": "cuda (NVIDIA H100 80GB HBM3)", "threads": 2}


def publish(folder, *printed, stages=(CPU,), name="toy", more=""):
    """A run of as many notebooks as prints; what each shows."""
    names = [f"0{number}_toy" for number in range(len(printed) or 1)]
    files.write_json(folder / name / "summary.json", {"manifest": dict(enumerate(stages))})
    (folder / name / "parameters.yaml").write_text(f"notebooks: [{', '.join(names)}]\n{more}")
    for stem, text in zip(names, printed, strict=False):
        path = write_notebook(folder / name / f"{stem}.ipynb", PARAMETERS, CODE)
        notebook = nbformat.read(path, as_version=4)
        notebook.cells[2].outputs = [nbformat.v4.new_output("stream", name="stdout", text=text)]
        nbformat.write(run.clean(notebook), path)
    return names


@pytest.fixture
def sources(tmp_path, monkeypatch):
    """The notebooks of the runs."""
    for number in range(2):
        write_notebook(tmp_path / f"0{number}_toy.ipynb", PARAMETERS, CODE)
    real = run.read
    monkeypatch.setattr(run, "read", lambda name, published: real(name, notebooks=tmp_path, published=published))


@pytest.fixture
def called(monkeypatch):
    """Calls of pytest that were to be made, which are not; the exit code is that of `code`."""
    calls = SimpleNamespace(made=[], code=0)

    def pretend(command, **how):
        calls.made.append((command, how))
        return SimpleNamespace(returncode=calls.code)

    monkeypatch.setattr(check.subprocess, "run", pretend)
    return calls


def test_a_print_is_computed_again_and_a_difference_found(sources, capfd):
    """Below the repository, as real ones are: its conftest.py gives the empty folder."""
    place = files.ROOT / "results" / "local"
    place.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="check-", dir=place) as folder:
        publish(Path(folder), "3 1 []\n", "4 1 []\n")
        assert check.main(["toy"], published=Path(folder)) == 1
    out = capfd.readouterr().out
    assert "toy: 2 printed notebooks are computed again with OMP_NUM_THREADS=1 PLG_DETERMINISTIC=1" in out
    assert "1 failed, 3 passed" in out and "01_toy.ipynb::Cell 1" in out  # the first printed the same


@pytest.mark.parametrize(("code", "said"), [(0, "all that is printed is the same here"), (4, "not the same here")])
def test_prints_run_in_order_and_as_they_were_printed(code, said, sources, called, tmp_path, capsys):
    names, called.code = publish(tmp_path, "", ""), code
    assert check.main(["toy"], published=tmp_path) == min(code, 1)
    ((command, how),) = called.made
    assert [word for word in command if word.endswith(".ipynb")] == [
        str(tmp_path / "toy" / f"{n}.ipynb") for n in names
    ]
    assert str(files.ROOT / "tests" / "nbval_sanitize.cfg") in command
    found = {name: how["env"].get(name) for name in ("OMP_NUM_THREADS", "PLG_DETERMINISTIC", "CUDA_VISIBLE_DEVICES")}
    assert found == {"OMP_NUM_THREADS": "1", "PLG_DETERMINISTIC": "1", "CUDA_VISIBLE_DEVICES": ""}
    assert said in capsys.readouterr().out
    inexact = CPU | {"deterministic": False}
    assert check.surroundings({"a": inexact}) == ({"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}, "")
    assert check.surroundings({"a": GPU, "b": CPU})[0] == {}  # not one number of threads; a GPU is needed
    assert check.surroundings({}) == ({}, "")


def test_a_gpu_s_print_needs_that_gpu(sources, called, tmp_path, monkeypatch, capsys):
    publish(tmp_path, "", stages=(CPU, GPU))
    for here, code in (([], 3), (["NVIDIA A100-SXM4-40GB"], 3), (["NVIDIA H100 80GB HBM3"], 0)):
        monkeypatch.setattr(torch.cuda, "device_count", lambda here=here: len(here))
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda index, here=here: here[index])
        assert check.main(["toy"], published=tmp_path) == code
        there = f"it was printed on cuda (NVIDIA H100 80GB HBM3); here is {', '.join(here) or 'no GPU'}"
        assert (f"toy cannot be checked here: {there}" in capsys.readouterr().err) == (code == 3)


def test_what_has_no_print_is_refused_with_what_can_be_done(sources, called, tmp_path, capsys):
    publish(tmp_path, "", "", name="half")
    publish(tmp_path, name="grid", more="grid:\n  steps: [1, 2]\n")
    (tmp_path / "half" / "01_toy.ipynb").unlink()
    for name, said in (
        ("half", "lacks 01_toy.ipynb: notebooks/run.py half, then notebooks/run.py half --publish"),
        ("grid", "grid is a grid, of which points are published"),
        ("other", "'other', only grid, half"),
    ):
        assert check.main([name], published=tmp_path) == 2
        assert said in capsys.readouterr().err
    assert called.made == []


def test_each_committed_print_can_be_asked_for():
    folders = {path.parent for path in run.PUBLISHED.glob("*/*.ipynb")}
    assert folders
    for folder in folders:
        assert [path.parent for path in check.prints_of(folder.name, run.PUBLISHED)][0] == folder
