"""Several processes do together what one does alone."""

import json
import multiprocessing
import os
import socket
import subprocess
import sys

import numpy as np
import pytest
import run
import torch
import two_processes
from safetensors import safe_open
from test_pipeline import TINY, do_stages, of_world, tiny
from two_processes import CASES, train

from plg_utils import devices, distributed, files, stages, store

LABELS = ("labels_zero_shot", "labels_cam", "labels_sepl", "labels_boxes", "labels_ensemble")
OF_SINGLE_IMAGES = ("masks", "segments", *LABELS)
NOTEBOOK_06 = run.NOTEBOOKS / "06_compare_labellers.ipynb"
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


@pytest.fixture
def one_of(monkeypatch):
    """Pretend to be one of several processes, as far as arithmetic on its own goes."""

    def pretend(rank, count):
        monkeypatch.setattr(distributed, "rank", lambda: rank)
        monkeypatch.setattr(distributed, "count", lambda: count)
        monkeypatch.setattr(distributed, "wait", lambda: None)

    return pretend


@pytest.mark.parametrize(("size", "count"), [(4, 2), (8, 2), (8, 4), (12, 3), (6, 1)])
def test_shares_of_a_batch_are_all_of_it_and_closed_under_reversal(size, count, one_of):
    shares = []
    for rank in range(count):
        one_of(rank, count)
        shares.append(distributed.rows(size))
    assert sorted(sum(shares, [])) == list(range(size))
    assert len({len(share) for share in shares}) == 1
    for share in shares:
        assert share[::-1] == [size - 1 - row for row in share]  # the partner of the k-th is the k-th from behind


def test_what_cannot_be_shared_is_refused(one_of):
    for size, count, right in ((4, 4, 8), (6, 2, 4), (5, 1, 2)):
        one_of(0, count)
        with pytest.raises(ValueError, match=f"a batch of {size} .* {count} processes: right is a multiple of {right}"):
            distributed.rows(size)
    one_of(0, 2)
    model = torch.nn.Sequential(torch.nn.BatchNorm1d(3))
    with pytest.raises(TypeError, match="0 is a BatchNorm1d: on the CPU only a plain BatchNorm2d"):
        distributed.share_statistics(model, torch.device("cpu"))


@pytest.mark.parametrize("sizes", [[4, 2], [2]])
def test_an_image_loses_the_channels_that_it_loses_in_the_whole_batch(sizes, one_of):
    maps = torch.rand(2 * sum(sizes), 50, 3, 3) + 1
    torch.manual_seed(3)
    whole = torch.nn.functional.dropout2d(maps, 0.5)
    for rank in range(2):
        one_of(rank, 2)
        rows = [2 * sum(sizes[:k]) + row for k, size in enumerate(sizes) for row in distributed.rows(2 * size)]
        torch.manual_seed(3)
        assert distributed.dropout2d(maps[rows], 0.5, sizes).equal(whole[rows])


def test_each_process_gets_whole_batches_of_a_single_process(one_of):
    def batches():
        return [batch for batch, _ in store.loaded(range(11), 3, read=str)]

    alone, shares = batches(), []
    assert alone == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 10]]
    for rank in range(2):
        one_of(rank, 2)
        shares.append(batches())
    assert shares == [alone[::2], alone[1::2]]


def test_a_single_process_waits_for_nobody():
    assert (distributed.count(), distributed.rank(), distributed.is_main()) == (1, 0, True)
    distributed.wait()
    counted = torch.tensor(3)
    assert distributed.mean(counted) is counted and distributed.agreed([1]) == [1]
    assert distributed.local_device() is None
    model = torch.nn.BatchNorm2d(2)
    assert distributed.share_statistics(model, torch.device("cpu")) is model and type(model) is torch.nn.BatchNorm2d


def test_each_process_has_a_device_of_its_own(monkeypatch):
    monkeypatch.setattr(distributed, "local_device", lambda: torch.device("cuda:1"))
    assert devices.choose("auto") == devices.choose("cuda") == torch.device("cuda:1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    with pytest.raises(ValueError, match="3 processes on a machine with 2 GPUs: right is one for each"):
        distributed.start()
    assert distributed.count() == 1


def test_two_processes_train_as_one(tmp_path):
    """Loss curve and weights of each method; both end with the same weights, and with the state of the main one."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    start = multiprocessing.get_context("forkserver" if hasattr(os, "fork") else "spawn").Process  # torchrun: seconds
    both = [start(target=two_processes.main, args=(tmp_path, rank, port)) for rank in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join()
        assert process.exitcode == 0
    ranks = [json.loads((tmp_path / f"rank{rank}.json").read_text(encoding="utf-8")) for rank in range(2)]
    assert ranks[0] == ranks[1]
    (tmp_path / "alone").mkdir()
    for case in CASES:
        alone = train(case, tmp_path / "alone" / f"{case}.safetensors")
        for one, other in zip(alone["history"], ranks[0][case]["history"], strict=True):
            assert one == pytest.approx(other, abs=2e-5), case
        for name, values in alone["weights"].items():
            np.testing.assert_allclose(ranks[0][case]["weights"][name], values, atol=2e-4, err_msg=f"{case} {name}")
        assert (tmp_path / f"{case}.safetensors").exists()


def written(root):
    """Files of the stages below a folder of results, without what depends on the circumstances."""
    found = (path.relative_to(root) for path in root.glob("*/*/**/*.*") if path.is_file())
    return sorted(name for name in found if name.name not in ("manifest.json", "outputs.json"))


def test_two_processes_write_the_files_of_one(world, tmp_path, monkeypatch):
    """Masks, embeddings and label maps by torchrun and run.py --stages; a network by the order that a stage gives."""
    changes = {name: value for name, value in TINY.items() if name != "run" and name in run.defaults(NOTEBOOK_06)}
    changes |= {name: TINY[name] for name in ("mask_options", "threshold")}
    changes |= {"dataset_options": {"root": str(world), "limit": 2}, "cam_sources": ["classifier"], "images_at_once": 1}
    changes["concept_options"] = None
    one, two = tmp_path / "one", tmp_path / "two"
    monkeypatch.setenv("PLG_RESULTS", str(two))
    training = of_world(world, **changes, steps=2, batch_size=4)  # batches of twice the processes
    training["segmenter_options"] = TINY["segmenter_options"]
    name = {"run": "compare_labellers"}
    given = [part for key, value in changes.items() for part in ("-p", key, json.dumps(value))]
    command = [*TORCHRUN, str(files.ROOT / "notebooks" / "run.py"), "compare_labellers", *given, "--stages"]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    expected = "masks segments labels cam_network cams classifier merge_cams boxes vote"
    assert done.stdout.split() == expected.split()
    known = tiny(["03"], **training | name | {"processes": 2})
    how = stages.Training(**{field: known[field] for field in stages.Training.__dataclass_fields__ if field in known})
    target = {name: known[name] for name in ("labeller", "refine_target", "refine_confidence")}

    def launch(processes, module, order):  # here: to start them takes seconds, and other tests do
        assert (processes, module) == (2, "plg_utils.stages")
        files.write_json(tmp_path / "order.json", order)
        stages.main(tmp_path / "order.json")

    monkeypatch.setattr(distributed, "launch", launch)
    stages.refine(stages.run_of(known), how, **target)

    before = {path: path.stat().st_mtime_ns for path in two.rglob("*.png")}
    do_stages(tiny(["02", "03", "06"], **training | name))  # as one process: it finds the work done
    assert before and {path: path.stat().st_mtime_ns for path in before} == before
    monkeypatch.setenv("PLG_RESULTS", str(one))
    do_stages(tiny(["02", "03", "06"], **training | name))
    manifest = files.read_json(two / "compare_labellers" / "labels_enhanced" / "manifest.json")
    assert manifest["state"] == "done" and manifest["counts"] == {"images": 2}

    assert written(one) == written(two)
    stored = [name for name in written(one) if name.parts[1] in OF_SINGLE_IMAGES]
    # Boxes come with a json, and two val images have masks and segments.
    assert len(stored) == (len(OF_SINGLE_IMAGES) + 1) * 4 + 2 * 2
    for name in stored:
        assert (one / name).read_bytes() == (two / name).read_bytes(), name
    curves, labels = [], []
    for root in (one, two):
        with safe_open(root / "compare_labellers" / "refined" / "state.safetensors", framework="pt") as state:
            curves.append(json.loads(state.metadata()["training"])["history"])
        paths = sorted((root / "compare_labellers" / "labels_enhanced").glob("*.png"))
        labels.append(np.stack([files.read_label(path) for path in paths]))
    assert curves[0] == [pytest.approx(row, abs=1e-4) for row in curves[1]]
    assert (labels[0] == labels[1]).mean() > 0.99  # two steps from random weights: a logit may be as large as another


def test_what_one_process_says_at_its_end_is_told(tmp_path, monkeypatch):
    (tmp_path / "short.py").write_text(
        "import json, os, sys, time\n"
        "assert json.load(open(sys.argv[1])) == {'stage': 'masks', 'run': 'seven'}\n"
        "assert os.environ['OMP_NUM_THREADS'] == '3', 'threads'\n"
        "sys.exit('no such cat') if os.environ['RANK'] == '1' else time.sleep(600)\n",
        encoding="utf-8",
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(6)), raising=False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)  # twice that would be more than there are cores
    with pytest.raises(RuntimeError, match=r"2 processes failed in masks:[\s\S]*no such cat"):
        distributed.launch(2, "short", {"stage": "masks", "run": "seven"})
