"""The benchmarks compare like with like: their originals give what ours gives."""

import copy
import sys

import numpy as np
import pytest
import torch

from plg_utils import files, labels, losses, segmenters

sys.path.insert(0, str(files.ROOT / "benchmarks"))

import bench_labels  # noqa: E402  it lies beside the package
import bench_training  # noqa: E402
import side_by_side  # noqa: E402


@pytest.mark.parametrize("frozen", [False, True], ids=["batch statistics", "stored statistics"])
def test_a_step_is_that_of_unimatch(frozen):
    torch.manual_seed(0)
    network = segmenters.build("deeplabv3plus", 3, encoder="resnet10t", width=8, skip=4, rates=(1, 2, 3))
    if frozen:
        for module in network.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.train = lambda mode=True, module=module: module  # stays in evaluation mode
                module.training = False
    batch = bench_training.batch_of(32, 2, 3, "cpu")
    batch["ignore"][:, :5] = True
    found, weights = [], []
    for step in ("original", "ours"):
        model = copy.deepcopy(network).train()
        optimiser = torch.optim.SGD(model.parameters(), lr=0.01)
        torch.manual_seed(1)
        if step == "original":
            terms = bench_training.official_step(model, optimiser, batch)
        else:
            loss = losses.build("unimatch", threshold=bench_training.THRESHOLD)
            terms = bench_training.our_step(model, optimiser, loss, batch, "fp32")
        found.append({name: float(value) for name, value in terms.items()})
        weights.append(torch.cat([tensor.flatten() for tensor in model.state_dict().values()]))
    assert found[0] == pytest.approx(found[1], abs=1e-5) and found[0]["sure"] > 0
    torch.testing.assert_close(*weights, atol=1e-5, rtol=1e-4)


def test_labels_are_those_of_plain_loops():
    masks = bench_labels.ellipses((20, 30), 6, 0)
    features = torch.randn(5, 3, 4)
    pooled = labels.pool(features, masks, (20, 30))
    torch.testing.assert_close(pooled, bench_labels.pool_by_pixel(features, masks), atol=1e-5, rtol=1e-5)
    classes, scores = np.array([0, 1, 2, 0, 2, 1]), np.array([0.9, 0.2, 0.4, 0.1, 0.3, 0.5], np.float32)
    painted = labels.paint(masks, classes, scores).label
    assert len(np.unique(painted)) == 4
    np.testing.assert_array_equal(painted, bench_labels.paint_by_pixel(masks, classes, scores))


def test_turns_alternate_and_the_first_does_not_count(tmp_path, monkeypatch, capsys):
    clock = iter([0, 9, *(100, 101, 101, 104), *(200, 202, 202, 208), *(300, 303, 303, 304)])
    monkeypatch.setattr(side_by_side.time, "perf_counter", lambda: next(clock))
    called = []
    taken = side_by_side.seconds({name: lambda n=name: called.append(n) for name in ("ours", "original")}, 3)
    assert called == ["ours", "original"] * 4
    assert taken == {"ours": [1, 2, 3], "original": [3, 6, 1]}
    found = side_by_side.compare(**taken)
    assert found == {"ours_s": 2, "original_s": 3, "ratio": 1.5, "best_s": [1, 1], "best_ratio": 1}
    for tuned, name in (("1", "steps"), (None, "steps_plain_malloc")):
        monkeypatch.delenv("MALLOC_TOP_PAD_", raising=False)
        if tuned:
            monkeypatch.setenv("MALLOC_TOP_PAD_", tuned)
        side_by_side.report(tmp_path, "steps", "cpu", **found, n={"repeats": 3})
        told = files.read_json(tmp_path / f"{name}.json")
        assert told["name"] == name and told["ratio"] == 1.5 and "thread" in told["device"]
    assert "best_ratio" in capsys.readouterr().out


def test_results_of_other_devices_are_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("MALLOC_TOP_PAD_", "1")
    for device, taken in (("one", 1), ("two", 2), ("one", 3), ("two", 4), ("two", 5)):
        monkeypatch.setattr(side_by_side, "place", lambda _, device=device: device)
        side_by_side.report(tmp_path, "steps", "cpu", ours_s=taken)
    told = files.read_json(tmp_path / "steps.json")
    assert (told["device"], told["ours_s"]) == ("two", 5)
    assert [(device, found["ours_s"]) for device, found in told["on_other_devices"].items()] == [("one", 3)]
