"""Stages: work that is done is kept, work that was made otherwise or from something else is not."""

import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from conftest import COLOURS
from plg_utils import class_files, devices, files, store
from plg_utils.records import Dataset, Sample

IDS = ["a", "b", "c"]


def samples_of(ids, **contents):
    """Images without pixels; contents: of a photo, where it is not its id."""
    return [Sample(id, None, read_content=lambda id=id: f"{contents.get(id, id):016}") for id in ids]


def data_of(ids=IDS, **contents):
    samples = samples_of(ids, **contents)
    return Dataset("pets", COLOURS, tuple(samples[:1]), tuple(samples[1:]))


def opened(folder, **options):
    return store.stage(folder, **{"parameters": {"points": 16}, "dataset": data_of()} | options)


def todo_of(stage, ids=IDS, together=1, **contents):
    return [sample.id for sample in stage.todo(samples_of(ids, **contents), [".json"], together)]


def work(folder, ids=IDS, *, finish=True, contents=None, **options):
    """A stage that writes one file for each image; returns the ids it had to do."""
    stage = opened(folder, **{"dataset": data_of(**contents or {})} | options)
    todo = todo_of(stage, ids, **contents or {})
    for id in todo:
        files.write_json(stage.path(id, ".json"), id)
    if finish:
        stage.finish(images=len(ids))
    return todo


def manifest(folder):
    return files.read_json(folder / "manifest.json")


def test_a_stage_goes_on_where_it_stopped(tmp_path, capsys):
    assert work(tmp_path, IDS[:2], finish=False) == ["a", "b"]
    assert manifest(tmp_path)["state"] == "running"
    assert work(tmp_path) == ["c"] and work(tmp_path) == []
    assert (manifest(tmp_path)["state"], manifest(tmp_path)["counts"]) == ("done", {"images": 3})
    (tmp_path / "b.json").unlink()
    assert todo_of(opened(tmp_path)) == ["b"]
    # Names reach the disk before bytes that were not forced there: after a loss of power the last files may be empty.
    (tmp_path / "b.json").write_bytes(b"")
    assert work(tmp_path) == ["b"] and (tmp_path / "b.json").read_text() == '"b"\n'
    (tmp_path / "manifest.json").unlink()
    assert work(tmp_path) == IDS
    assert "starts again, 3 files removed; manifest.json is missing" in capsys.readouterr().err


def test_what_a_killed_process_left_half_written_is_removed(tmp_path):
    work(tmp_path)
    paths = [tmp_path / name for name in (".a.json.1f.partial", ".b.json.2e.partial", ".x.json.3d.partial")]
    for path, age in zip(paths, (2 * store.STALE, 0, 2 * store.STALE), strict=True):
        path.write_text("half")
        os.utime(path, (time.time() - age,) * 2)
    work(tmp_path)
    assert [path.exists() for path in paths] == [False, True, True]  # the second may be at work, the third is another's


def test_what_others_rest_on_is_forced_to_the_disk(tmp_path, monkeypatch):
    """In this order: the list of outputs before any of them, the manifest that calls them done after the last."""
    forced, real = [], os.fsync

    def fsync(number):
        forced.append(sorted(path.name for path in tmp_path.glob("*.json")))
        forced[-1].append(os.readlink(f"/proc/self/fd/{number}").rsplit("/", 1)[1].strip(".").partition(".")[0])
        real(number)

    if not os.path.exists("/proc/self/fd"):
        pytest.skip("only Linux tells the name of an open file")
    monkeypatch.setattr(os, "fsync", fsync)
    work(tmp_path)
    everything = ["a.json", "b.json", "c.json", "manifest.json", "outputs.json", "manifest"]
    assert forced == [["manifest.json", "manifest"], ["manifest.json", "outputs"], everything]


def test_what_goes_through_a_network_together_is_done_together_again(tmp_path):
    """Else a stage that was stopped would write other last bits than one that was not."""
    ids = list("abcdefgh")
    work(tmp_path, ids)
    stage = opened(tmp_path)
    assert todo_of(stage, ids, 3) == []
    (tmp_path / "b.json").unlink()
    (tmp_path / "g.json").unlink()
    assert todo_of(stage, ids, 3) == ["a", "b", "c", "g", "h"]
    assert todo_of(stage, ids, 2) == ["a", "b", "g", "h"]
    assert todo_of(stage, ids) == ["b", "g"]
    assert manifest(tmp_path)["state"] == "running"


@pytest.mark.parametrize("finish", [True, False])
@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"parameters": {"points": 32, "layers": 1}}, "parameters.layers: None, now 1; parameters.points: 16, now 32"),
        ({"seed": 1}, "seed: None, now 1"),
    ],
)
def test_work_with_other_parameters_is_not_reused(tmp_path, capsys, change, said, finish):
    work(tmp_path, finish=finish)
    (tmp_path / "notes.json").write_text("mine")
    (tmp_path / ".b.json.0123.partial").write_text("left by a run that was killed")
    opened(tmp_path, **change)  # and killed here: the manifest says nothing of work that is gone
    assert manifest(tmp_path)["state"] == "running"
    assert work(tmp_path, ["a"], **change) == ["a"]
    out, printed = capsys.readouterr()
    assert not out  # or a notebook's print would depend on what was there before
    assert said in printed and printed.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json", "manifest.json", "notes.json", "outputs.json"]
    assert (tmp_path / "notes.json").read_text() == "mine"


def test_files_of_unknown_origin_are_neither_used_nor_removed(tmp_path):
    (tmp_path / "b.json").write_text("mine")
    for _ in range(2):  # the manifest that the first call leaves must not adopt them
        with pytest.raises(FileExistsError, match="b.json and 0 more files that this stage did not write"):
            work(tmp_path)
    with pytest.raises(FileExistsError):
        work(tmp_path, parameters={"points": 32})
    assert (tmp_path / "b.json").read_text() == "mine"


def test_a_change_of_a_parent_reaches_its_children(tmp_path, capsys):
    masks, segments = tmp_path / "masks", tmp_path / "segments"
    child = {"parameters": {}, "parents": [masks]}
    with pytest.raises(FileNotFoundError, match="masks has no manifest.json"):
        work(segments, **child)
    work(masks, finish=False)
    with pytest.raises(FileNotFoundError, match="masks is not finished"):
        work(segments, **child)
    work(masks)
    assert work(segments, **child) == IDS
    work(masks, [*IDS, "d"])  # more of the same
    assert work(segments, **child) == []
    work(masks, parameters={"points": 32})
    assert work(segments, **child) == IDS
    assert "parents.masks" in capsys.readouterr().err


def test_checkpoints_count_by_content(tmp_path):
    weights = tmp_path / "own.pth"
    weights.write_bytes(b"1")
    folder = tmp_path / "masks"
    work(folder, checkpoints=[weights])
    assert work(folder, checkpoints=[weights]) == []
    assert manifest(folder)["checkpoints"] == {"own.pth": files.sha256(weights)}
    weights.write_bytes(b"2")
    assert work(folder, checkpoints=[weights]) == IDS


def test_two_checkpoints_of_one_name_both_count(tmp_path):
    """Folders of transformers hold files of the same names."""
    paths = [tmp_path / name / "model.pth" for name in ("sam", "clip")]
    for path in paths:
        path.parent.mkdir()
        path.write_bytes(path.parent.name.encode())
    folder = tmp_path / "boxes"
    for changed in (*paths, None):
        assert work(folder, checkpoints=paths) == IDS
        assert work(folder, checkpoints=paths) == []
        if changed:
            changed.write_bytes(b"other")


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "preprocessor_config.json"])
def test_each_file_of_a_folder_of_weights_counts(name, tmp_path):
    hub = tmp_path / "my_sam"
    for file in ("model.safetensors", "config.json", "preprocessor_config.json"):
        files.write_json(hub / file, 1)
    folder = tmp_path / "masks"
    assert [len(work(folder, checkpoints=[hub])) for _ in range(2)] == [3, 0]
    files.write_json(hub / name, 2)
    assert [len(work(folder, checkpoints=[hub])) for _ in range(2)] == [3, 0]


def test_another_split_is_other_work_only_for_what_learns_from_it(tmp_path):
    one, samples = data_of(), samples_of(IDS)
    other = replace(one, labelled=tuple(samples[:2]), unlabelled=tuple(samples[2:]))
    assert store.split_sha256(one) != store.split_sha256(other)
    for learns_from in ([], ["labelled"]):
        folder = tmp_path / f"stage{len(learns_from)}"
        work(folder, dataset=one, learns_from=learns_from)
        assert work(folder, dataset=other, learns_from=learns_from) == (IDS if learns_from else [])


def test_a_changed_photo_is_done_again_and_what_was_made_of_it(tmp_path, capsys):
    masks, segments = tmp_path / "masks", tmp_path / "segments"
    child = {"parameters": {}, "parents": [masks]}
    for _ in range(2):
        work(masks)
        work(segments, **child)
    assert capsys.readouterr().err == ""
    assert work(masks, contents={"b": "edited"}) == ["b"]
    assert "masks: 1 of 3 images are made again, e.g. b. What changed: photo" in capsys.readouterr().err
    assert work(segments, contents={"b": "edited"}, **child) == ["b"]
    assert "segments: 1 of 3 images are made again, e.g. b. What changed: masks, photo" in capsys.readouterr().err
    assert work(segments, contents={"b": "edited"}, **child) == []
    assert store.outdated(segments, data_of(b="edited")) == ""
    assert store.outdated(segments, data_of()) == "masks: b has changed since (photo)"


def test_two_processes_that_make_one_stage_otherwise_leave_nothing_that_counts_as_done(tmp_path, capsys):
    """A notebook that is executed while its run is made with other parameters."""
    stage = opened(tmp_path)
    todo_of(stage)
    work(tmp_path, parameters={"points": 32})
    files.write_json(stage.path("a", ".json"), "of 16 points")
    with pytest.raises(FileExistsError, match="was begun otherwise by another process meanwhile"):
        stage.finish()
    assert work(tmp_path, parameters={"points": 32}) == IDS
    assert "manifest.json is missing" in capsys.readouterr().err


def test_a_number_that_is_written_otherwise_is_the_same_work(tmp_path):
    work(tmp_path)
    assert work(tmp_path, parameters={"points": 16.0}) == []


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"state": "done"}', '{"state": "done", "fingerprint": "1f"}'])
def test_a_damaged_manifest_is_named(content, tmp_path):
    work(tmp_path)
    (tmp_path / "manifest.json").write_text(content)
    for call in (lambda: store.outdated(tmp_path, data_of()), lambda: opened(tmp_path)):
        with pytest.raises(ValueError, match=r"manifest\.json"):
            call()


@pytest.mark.parametrize("content", ["", "[]", '{"a.json": 1}', "{}", None])
def test_a_damaged_list_of_outputs_is_refused_with_what_to_do(content, tmp_path):
    work(tmp_path)
    (tmp_path / "outputs.json").unlink()
    if content is not None:
        (tmp_path / "outputs.json").write_text(content)
    with pytest.raises((ValueError, FileExistsError), match="delete the folder|move them away"):
        work(tmp_path)
    assert sorted(path.stem for path in tmp_path.glob("?.json")) == IDS  # nothing is removed


def test_a_manifest_says_how_it_was_made(tmp_path):
    work(tmp_path, classes=True, seed=3)
    content = manifest(tmp_path)
    assert (
        content["classes_sha256"] == class_files.sha256(COLOURS) and content["packages"]["torch"] == torch.__version__
    )
    assert (content["seed"], content["device"], content["deterministic"]) == (3, "cpu", False)
    assert content["wall_seconds"] >= 0 and content["peak_memory_mb"] > 50  # torch alone is larger
    assert set(store.HOW) < content.keys() and content["git_commit"] == store.git_commit()


def test_the_commit_is_that_of_this_repository(monkeypatch):
    in_git = (files.ROOT / ".git").exists() and shutil.which("git")  # an archive of the sources has no commit
    assert bool(re.fullmatch("[0-9a-f]{40}(-dirty)?", store.git_commit() or "")) == bool(in_git)
    monkeypatch.setattr(files, "ROOT", files.ROOT / "plg_utils")  # an installed copy inside another repository
    assert store.git_commit() is None


def test_a_repeat_that_makes_nothing_leaves_how_it_was_made(tmp_path, monkeypatch, capsys):
    """Commit and packages are those of the call that wrote files; which images there are is said anew."""

    def at(commit, **options):
        monkeypatch.setattr(store, "git_commit", lambda: commit * 40)
        monkeypatch.setattr(store, "package_versions", lambda: {"torch": commit})
        store._said.clear()
        done = work(tmp_path, **options)
        content = manifest(tmp_path)
        assert content["packages"] == {"torch": content["git_commit"][0]}
        return done, content["git_commit"][0], capsys.readouterr().err.count("holds results of commit")

    smaller = replace(data_of(), unlabelled=())
    assert at("a") == (IDS, "a", 0)
    assert at("b", dataset=smaller) == ([], "a", 1)
    assert manifest(tmp_path)["split_sha256"] == store.split_sha256(smaller)
    assert at("b") == ([], "a", 1)  # still true, so it is said again
    (tmp_path / "b.json").unlink()
    assert at("b") == (["b"], "b", 1)
    assert at("c", contents={"a": "edited"}) == (["a"], "c", 1)
    (tmp_path / "manifest.json").unlink()
    assert at("d") == (IDS, "d", 0)
    (tmp_path / "b.json").unlink()
    todo_of(opened(tmp_path))  # and stopped
    assert at("e") == (["b"], "e", 1)


def test_a_repeat_keeps_the_memory_that_the_work_took(tmp_path, monkeypatch):
    for peak in (70.0, None, 50.0):
        monkeypatch.setattr(devices, "peak_cuda_memory_mb", lambda peak=peak: peak)
        work(tmp_path)
        assert manifest(tmp_path)["peak_cuda_memory_mb"] == 70


def test_a_network_that_is_trained_again_says_how(tmp_path, monkeypatch):
    def train(commit):
        monkeypatch.setattr(store, "git_commit", lambda: commit)
        stage, network = opened(tmp_path), tmp_path / "network.safetensors"
        stage.register([network.name])
        assert (manifest(tmp_path)["state"] == "running") == (not network.exists())
        network.write_bytes(b"weights")
        stage.finish().finish()
        return manifest(tmp_path)["git_commit"]

    assert (train("a"), train("b")) == ("a", "a")
    (tmp_path / "network.safetensors").unlink()
    assert (train("b"), train("c")) == ("b", "b")


SWITCH = """
import json, os, random, numpy, torch
from plg_utils import devices, store
from plg_utils.records import Classes, Dataset
drawn = []
for _ in range(2):
    drawn.append([random.random(), numpy.random.random(), torch.rand(1).item()])
    devices.deterministic(2)
classes = Classes(("a",), (("a",),), ((0, 0, 0),))
store.stage("masks", parameters={}, dataset=Dataset("pets", classes, ()))
manifest = json.load(open("masks/manifest.json"))
print(json.dumps([drawn[0] == drawn[1], torch.get_num_threads(), torch.is_deterministic_algorithms_warn_only_enabled(),
    torch.backends.cudnn.benchmark, os.environ.get("CUBLAS_WORKSPACE_CONFIG"), torch.cuda.is_initialized(),
    manifest["deterministic"], manifest["threads"]]))
"""


def test_one_switch_fixes_seeds_algorithms_and_threads(tmp_path):
    environment = {key: told for key, told in os.environ.items() if key != "CUBLAS_WORKSPACE_CONFIG"}
    environment |= {"PLG_DETERMINISTIC": "2", "PYTHONPATH": str(files.ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", SWITCH]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [True, 2, True, False, ":4096:8", False, True, 2]


def test_the_switch_is_off_unless_it_is_asked_for(monkeypatch):
    for value, threads in (("", 0), ("0", 0), ("4", 4)):
        monkeypatch.setenv("PLG_DETERMINISTIC", value)
        assert devices._threads_asked_for() == threads
    monkeypatch.setenv("PLG_DETERMINISTIC", "yes")
    with pytest.raises(ValueError, match="PLG_DETERMINISTIC is 'yes': right is a number of threads, or 0 for off"):
        devices._threads_asked_for()


def test_devices():
    assert devices.choose("cpu") == torch.device("cpu")
    assert devices.choose("auto").type in {"cpu", "cuda", "mps"}
    for name, says in (("cuda:x", "is not known"), ("cuda:99", "'cuda:99' was asked for, but torch .* sees none; use")):
        with pytest.raises(ValueError, match=says):
            devices.choose(name)


def test_the_next_batch_is_read_while_one_is_worked_on():
    read, one_done = [], threading.Event()

    def reader(item):
        if item >= 2:
            one_done.wait(30)  # only what was asked for ahead can wait for the first batch
        if item == 5:
            raise ValueError("image 5 is broken")
        read.append((item, threading.current_thread() is threading.main_thread()))
        return 10 * item

    found = []
    with pytest.raises(ValueError, match="image 5 is broken"):  # it stops at its batch
        for batch, contents in store.loaded(range(8), 2, reader):
            found.append((batch, contents))
            one_done.set()
    assert found == [([0, 1], [0, 10]), ([2, 3], [20, 30])]
    assert not any(main for _, main in read)


def test_progress_goes_to_stderr_and_in_a_notebook_that_a_person_runs_to_stdout(monkeypatch, capsys):
    def said(progress=None, **modules):
        monkeypatch.setenv("PLG_PROGRESS", progress) if progress else monkeypatch.delenv("PLG_PROGRESS", raising=False)
        for name, module in modules.items():
            monkeypatch.setitem(sys.modules, name, module)
        assert list(store.progress(range(3), what="masks")) == [0, 1, 2]
        return capsys.readouterr()

    out, err = said()
    assert not out and err.isascii() and "masks" in err and "3/3" in err
    kernel = SimpleNamespace(get_ipython=lambda: SimpleNamespace(kernel="is there"))
    out, err = said(IPython=kernel)
    assert "masks" in out and not err
    out, err = said("stderr")  # run.py asks for it: from there the bars reach the terminal
    assert "masks" in err and not out
    assert said("0") == ("", "")


def test_half_precision_is_taken_where_the_chip_has_it(monkeypatch):
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    for has, right in (
        ({}, "fp32"),
        ({"avx512_bf16": True}, "bf16"),
        ({"amx_bf16": True, "avx512_bf16": False}, "bf16"),
    ):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda has=has: has)
        assert [devices.precision(name, cpu) for name in ("auto", "fp32", "bf16")] == [right, "fp32", "bf16"]
    for native, right in ((True, "bf16"), (False, "fp32")):
        monkeypatch.setattr(
            torch.cuda, "is_bf16_supported", lambda including_emulation, n=native: n or including_emulation
        )
        assert devices.precision("auto", cuda) == right
    assert devices.precision("auto", torch.device("mps")) == "fp32"
