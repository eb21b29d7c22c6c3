"""tests/torture/determinism.py compares rightly, it found what is promised, and CUDA meets no vague algorithm."""

import ast
import sys

import numpy as np
import pytest
import reference_training
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from test_training import colour_label, squares

from plg_utils import devices, files, losses, training
from plg_utils.records import Masks

sys.path.append(str(files.ROOT / "tests" / "torture"))

import determinism

RELIABILITY = files.ROOT / "results" / "reliability.json"


@pytest.fixture(scope="module")
def found():
    """What was measured last."""
    content = files.read_json(RELIABILITY)
    if "determinism" not in content:
        pytest.skip("results/reliability.json has no section determinism: make torture")
    return content["determinism"]


def write_run(folder, *, score=0.5, mask=True, number=1.0, pixel=0, loss=1.0, miou=0.5):
    """A run of two images of 2 x 5 pixels, in which one thing may be otherwise."""
    dense = np.zeros((1, 2, 5), bool)
    dense[0, 0, 0] = mask
    label = np.zeros((2, 5), np.uint8)
    for id in "ab":
        files.write_masks(folder / "masks" / f"{id}.json", Masks.from_dense(dense, [score], [0.9]))
        files.write_embeddings(folder / "segments" / f"{id}.safetensors", torch.tensor([[number, 2.0]]))
        label[1, 4] = pixel if id == "b" else 0
        for name in ("labels_zero_shot", "labels_enhanced", "predictions_unimatch"):
            files.write_label(folder / name / f"{id}.png", label)
    (folder / "network_unimatch").mkdir(parents=True)
    save_file({"w": torch.tensor(number), "empty": torch.zeros(0)}, folder / "network_unimatch/network.safetensors")
    files.write_json(folder / "04_segmenter.json", {"histories": {"unimatch": [{"step": 1, "total": loss}]}})
    files.write_json(folder / "summary.json", {"rows": [{"name": "a", "miou": miou}], "manifest": {"seconds": miou}})
    files.write_json(folder / "masks" / "manifest.json", {"wall_seconds": number})
    return folder


def test_each_kind_of_difference_is_found_and_measured(tmp_path):
    one = write_run(tmp_path / "one")
    assert set(determinism.differences(one, write_run(tmp_path / "same")).values()) == {0.0}
    expected = {
        "score": (0.75, {"masks": 0.25}),
        "mask": (False, {"masks": determinism.NOT_COMPARABLE}),
        "number": (1.5, {"segment embeddings": 0.25, "network after 12 steps": 0.5}),  # of 2, and of 1
        "pixel": (1, {"zero-shot labels": 0.1, "enhanced labels": 0.1, "predictions": 0.1}),
        "loss": (1.25, {"its loss": 0.25}),
        "miou": (0.25, {"mean IoU": 0.25}),
    }
    for name, (value, differs) in expected.items():
        measured = determinism.differences(one, write_run(tmp_path / name, **{name: value}))
        assert measured == pytest.approx(dict.fromkeys(determinism.ARTEFACTS, 0) | differs), name


def test_nothing_to_compare_is_no_agreement(tmp_path):
    one, other = (write_run(tmp_path / name) for name in ("one", "other"))
    (other / "masks" / "b.json").unlink()
    with pytest.raises(FileNotFoundError):
        determinism.differences(one, other)
    for path in one.glob("labels_enhanced/*"):
        path.unlink()
    with pytest.raises(FileNotFoundError, match="one holds no labels_enhanced"):
        determinism.differences(one, one)


def test_the_table_tells_what_was_measured():
    largest = dict.fromkeys(determinism.ARTEFACTS, 0.0)
    rows = {"again": largest, "2 threads again": largest | {"masks": 1.0, "predictions": 0.0123, "its loss": 2.4e-7}}
    _, _, first, second = determinism.table({"largest_difference": rows}).splitlines()
    assert first == "| again | equal | equal | equal | equal | equal | equal | equal | equal |"
    cells = "other masks | equal | equal | equal | 2e-07 | equal | 1.2 % of an image | equal"
    assert second == f"| 2 threads again, compared with 2 threads | {cells} |"


def test_what_is_promised_to_be_equal_was_equal(found):
    measured = found["largest_difference"]
    assert list(measured) == sorted(determinism.CONDITIONS) and found["kills"] >= 2
    for condition in ("again", "killed and gone on with", "2 threads again", "PLG_DETERMINISTIC=1"):
        assert set(measured[condition].values()) == {0}, condition
    labelling = ("masks", "segment embeddings", "zero-shot labels")
    assert all(measured["2 processes"][name] == 0 for name in labelling)  # the README's promise
    for condition, largest in measured.items():
        assert largest.keys() == determinism.ARTEFACTS.keys()
        if condition not in ("bf16", "instructions of SSE4 only"):
            assert largest["mean IoU"] <= 0.01, condition  # what 05 allows a trained number


def test_the_table_of_the_documentation_is_the_measured_one(found):
    text = (files.ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    if "<!-- determinism -->" not in text:
        pytest.skip("docs/reliability.md has no table of determinism")
    told = text.split("<!-- determinism -->")[1].split("<!-- /determinism -->")[0].strip()
    assert told == determinism.table(found)


# On CUDA


def test_cross_entropy_sees_rows_never_maps(monkeypatch):
    """CUDA's loss of (B, K, H, W) adds up in any order, and is refused or warned of; that of (N, K) is exact."""
    seen, real = [], F.nll_loss

    def nll_loss(logits, target, **how):
        seen.append((logits.ndim, target.ndim))
        return real(logits, target, **how)

    monkeypatch.setattr(F, "nll_loss", nll_loss)
    monkeypatch.setattr(F, "cross_entropy", lambda *what, **how: pytest.fail("it may be given maps"))
    for name in ("supervised", "fixmatch", "unimatch", "semivl"):
        options = {} if name == "supervised" else {"threshold": 0.4}
        training.fit(
            reference_training.tiny(), losses.build(name, **options), squares(3), squares(3, truth=False),
            pseudo_label=colour_label, steps=1, batch_size=2, crop_size=8, lr=0.01, progress=None,
        )  # fmt: skip
    assert len(seen) >= 8 and set(seen) == {(2, 1)}


VAGUE = {  # torch's operations that vary on CUDA and for which it has no other algorithm
    "adaptive_max_pool2d", "AdaptiveMaxPool2d", "fractional_max_pool2d", "ctc_loss", "grid_sample", "histc", "kthvalue",
    "put_", "max_unpool2d", "MaxUnpool2d", "reflection_pad2d", "ReflectionPad2d", "EmbeddingBag", "median",
}  # fmt: skip


def test_what_trains_uses_no_operation_that_varies_on_cuda():
    for folder in ("losses", "segmenters", "augment.py", "training.py"):
        place = files.ROOT / "plg_utils" / folder
        for path in [place] if place.is_file() else place.glob("*.py"):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            names = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
            assert not names & VAGUE, path.name


def test_a_step_under_the_switch_warns_of_nothing(recwarn):
    """On this machine's CPU; a GPU may know fewer exact algorithms."""
    before = torch.utils.deterministic.fill_uninitialized_memory
    try:
        torch.use_deterministic_algorithms(True)  # not only a warning
        torch.utils.deterministic.fill_uninitialized_memory = False
        model = reference_training.tiny()
        loss = losses.build("unimatch", refine_target="fusion", threshold=0.4)
        options = {"steps": 2, "batch_size": 2, "crop_size": 8, "lr": 0.01, "progress": None}
        training.fit(model, loss, squares(3), squares(3, truth=False), pseudo_label=colour_label, **options)
        exact = training.digest(model)
    finally:
        torch.use_deterministic_algorithms(False)
        torch.utils.deterministic.fill_uninitialized_memory = before
    assert not [warning for warning in recwarn if "deterministic" in str(warning.message)]
    model = reference_training.tiny()
    training.fit(model, loss, squares(3), squares(3, truth=False), pseudo_label=colour_label, **options)
    assert training.digest(model) == exact  # the switch changes no result on the CPU


@pytest.mark.parametrize(
    ("most", "cores", "busy", "own", "threads"),
    [
        (2, 2, 0.1, 0.0, 2),
        (2, 2, 1.1, 0.0, 1),  # another process has a core
        (2, 2, 2.0, 0.0, 1),
        (2, 2, 2.0, 1.9, 2),  # it is this process that works
        (2, 2, 2.0, 1.2, 1),  # it shares a core with another
        (2, 16, 0.0, 0.0, 2),  # OMP_NUM_THREADS says two
        (16, 16, 8.0, 0.0, 8),
        (2, None, 0.0, 0.0, 1),  # a system that cannot tell
        (1, 2, 0.0, 0.0, None),  # nothing to choose
    ],
)
def test_torch_takes_as_many_threads_as_cores_are_free(most, cores, busy, own, threads, monkeypatch):
    taken, clock = [], [0.0]
    monkeypatch.delenv("PLG_DETERMINISTIC", raising=False)
    monkeypatch.setattr(devices, "MOST_THREADS", most)
    monkeypatch.setattr(devices, "_last_look", [])
    monkeypatch.setattr("psutil.cpu_count", lambda: cores)
    monkeypatch.setattr(devices, "_seconds", lambda: (clock[0], busy * clock[0], own * clock[0]))
    monkeypatch.setattr("time.sleep", lambda seconds: clock.__setitem__(0, clock[0] + seconds))
    monkeypatch.setattr(torch, "set_num_threads", taken.append)
    expected = [] if threads is None else [threads]
    devices.use_free_cores(every=10)  # the first look of all tells nothing yet
    assert taken == []
    devices.use_free_cores()
    assert taken == expected
    clock[0] += 9.9
    devices.use_free_cores(every=10)
    assert taken == expected
    clock[0] += 0.2
    devices.use_free_cores(every=10)
    assert taken == 2 * expected
    monkeypatch.setenv("PLG_DETERMINISTIC", "4")  # a number that was asked for stays
    devices.use_free_cores()
    assert taken == 2 * expected


def test_the_work_of_this_process_is_counted():
    before = devices._seconds()
    while devices._seconds()[2] - before[2] < 0.3:
        pass
    passed, busy, own = (new - old for new, old in zip(devices._seconds(), before, strict=True))
    assert passed >= own - 0.05 and busy >= own - 0.05  # the system counts in hundredths of a second
