import json
import re

import numpy as np
import pytest
import reference_training
import safetensors.torch
import torch
from safetensors import safe_open

from plg_utils import losses, training
from plg_utils.records import Sample

COLOURS = np.array([[30, 30, 30], [220, 40, 40], [40, 40, 220]], np.uint8)


def hidden():
    raise AssertionError("the truth of an unlabelled image was read")


def squares(count, truth=True, height=14, width=12):
    """Flat-coloured squares on a dark ground; the colour is the class."""
    samples = []
    for index in range(count):
        rng = np.random.default_rng((index, truth))
        label = np.zeros((height, width), np.uint8)
        for name in (1, 2):
            top, left = rng.integers(0, height - 5), rng.integers(0, width - 5)
            label[top : top + 5, left : left + 5] = name
        read_truth = (lambda label=label: label) if truth else hidden
        name = f"{'labelled' if truth else 'unlabelled'}{index}"
        samples.append(Sample(name, lambda label=label: COLOURS[label], read_truth))
    return samples


def colour_label(sample):
    """The label map of squares, seen from the image."""
    return np.abs(sample.image()[:, :, None].astype(int) - COLOURS).sum(-1).argmin(-1).astype(np.uint8)


OPTIONS = {"steps": 6, "batch_size": 3, "crop_size": 8, "lr": 0.01, "log_every": 2, "progress": None}


def fit(model, loss=None, **options):
    loss = loss or losses.build("unimatch", refine_target="fusion", threshold=0.5)
    arguments = {"pseudo_label": colour_label} | OPTIONS | options
    return training.fit(model, loss, squares(4), squares(5, truth=False), **arguments)


def test_it_learns_the_squares():
    model = reference_training.tiny(width=8)
    history = training.fit(
        model,
        losses.build("supervised"),
        squares(4),
        **OPTIONS | {"steps": 60, "lr": 0.05, "head_lr_factor": 1.0, "batch_size": 4, "log_every": 20},
    )
    assert [row["step"] for row in history] == [20, 40, 60]
    assert set(history[0]) == {"step", "lr", "total"} and history[-1]["total"] < history[0]["total"] / 2
    assert not model.training
    tests = squares(3, truth=False)
    guesses = training.predict(model, [sample.image() for sample in tests])
    right = [(guess.label == colour_label(sample)).mean() for guess, sample in zip(guesses, tests, strict=True)]
    assert np.mean(right) > 0.9


OTHER = {"optimizer": "adamw", "ema": 0.9, "channels_last": True, "precision": "bf16", "cutmix_partner": "view"}


@pytest.mark.parametrize(("done", "options"), [(4, {}), (5, OTHER)])  # at a row of the history, and between two
def test_a_killed_run_ends_as_if_it_had_not_been(done, options, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "SAVE_SECONDS", 0)
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    one = reference_training.tiny()
    torch.manual_seed(1)
    history = fit(one, state_file=straight, **options)

    loss = losses.build("unimatch", refine_target="fusion", threshold=0.5)

    def killed(model, batch):
        if len(model.calls) == 3 * done:  # three passes a step
            raise KeyboardInterrupt
        return loss(model, batch)

    killed.settings = loss.settings
    with pytest.raises(KeyboardInterrupt):
        fit(reference_training.tiny(), killed, state_file=broken, **options)
    with safe_open(broken, framework="pt") as file:
        notes = json.loads(file.metadata()["training"])
    assert notes["step"] == done
    assert [row.get("step") for row in notes["history"]] == [2, 4] + [None] * (done - 4)
    torch.manual_seed(2)  # nothing depends on the random numbers of the process
    for calls in (3 * (6 - done), 0):  # then a finished state is taken as it is
        other = reference_training.tiny()
        assert fit(other, state_file=broken, **options) == history and len(other.calls) == calls
        assert broken.read_bytes() == straight.read_bytes()
        assert training.digest(other) == training.digest(one)
    assert len(list(tmp_path.iterdir())) == 2  # no partial files


def test_a_state_is_written_each_minute_however_slow_the_steps(tmp_path, monkeypatch):
    """A step of twenty seconds and a row for every six: the state is never older than a minute when a step ends."""
    clock, saved = [0.0], []
    monkeypatch.setattr(training.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(training, "save_state", lambda *what: saved.append((what[-1], clock[0])))
    inner = losses.build("unimatch", threshold=0.5)

    def slow(model, batch):
        clock[0] += 20
        return inner(model, batch)

    fit(reference_training.tiny(), slow, steps=12, log_every=6, state_file=tmp_path / "state")
    assert saved == [(3, 60), (6, 120), (9, 180), (12, 240)]


def test_a_state_is_on_the_disk_before_it_takes_the_place_of_the_one_before(tmp_path, monkeypatch):
    seen, state = [], tmp_path / "state"
    monkeypatch.setattr(training, "SAVE_SECONDS", 0)
    monkeypatch.setattr(training.store, "to_disk", lambda path: seen.append((path.suffix, state.exists())))
    fit(reference_training.tiny(), state_file=state, steps=2)
    assert seen == [(".partial", False), (".partial", True)]


def test_a_broken_state_is_named_and_another_trainings_is_refused(tmp_path):
    state = tmp_path / "state.safetensors"
    fit(reference_training.tiny(), state_file=state, steps=2)
    for change, named in (({"lr": 0.02}, "lr: 0.01, now 0.02"), ({"seed": 1}, "seed"), ({"steps": 4}, "steps")):
        with pytest.raises(ValueError, match=f"^{state} is the state of a training with other {named}"):
            fit(reference_training.tiny(), state_file=state, **{"steps": 2} | change)
    with pytest.raises(ValueError, match="initial weights"):
        fit(reference_training.tiny(seed=1), state_file=state, steps=2)
    with pytest.raises(ValueError, match="loss"):
        fit(reference_training.tiny(), losses.build("unimatch", threshold=0.5), state_file=state, steps=2)
    cut = state.read_bytes()[:-100]
    for notes in (None, {"training": "{"}, {"training": '{"history": []}'}, cut):
        if notes is cut:
            state.write_bytes(cut)
        else:
            safetensors.torch.save_file({"model.a": torch.zeros(1)}, state, notes)
        with pytest.raises(ValueError, match="is not the state of a training .*remove it to train again"):
            fit(reference_training.tiny(), state_file=state, steps=2)


def test_seed_and_nothing_else_decides():
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    first, second, third = (reference_training.tiny() for _ in range(3))
    fit(first, steps=2)
    assert torch.equal(torch.random.get_rng_state(), before)  # the caller's random numbers are left alone
    torch.rand(3)
    fit(second, steps=2, workers=1)
    fit(third, steps=2, seed=1)
    assert training.digest(first) == training.digest(second) != training.digest(third)


def test_a_compiled_network_learns_the_same(tmp_path, monkeypatch):
    """Traced and split as torch.compile does it, then executed as it stands: making machine code takes minutes."""
    parts, real = [], torch.compile
    monkeypatch.setattr(torch, "compile", lambda part, **how: parts.append(part) or real(part, backend="eager", **how))
    plain, traced = (reference_training.tiny() for _ in range(2))
    history = fit(plain)
    assert parts == []
    state = tmp_path / "state.safetensors"
    assert fit(traced, compiled=True, state_file=state) == history
    assert parts == [traced.encode, traced.decode]
    assert training.digest(traced) == training.digest(plain)
    fit(reference_training.tiny(), compiled=True, state_file=state)  # the file holds the segmenter's own names
    with pytest.raises(ValueError, match="compiled: True, now False"):
        fit(reference_training.tiny(), state_file=state)


def test_a_loss_that_is_not_a_number_names_step_and_images_and_is_in_no_state(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "SAVE_SECONDS", 0)
    inner, state = losses.build("unimatch", threshold=0.5), tmp_path / "state"

    def loss(model, batch):
        terms = inner(model, batch)
        return terms | {"total": terms["total"] * (np.nan if batch["progress"] == 3 / 6 else 1)}

    for _ in range(2):  # gone on with, it stops at the same step
        with pytest.raises(FloatingPointError, match="step 4 is nan; labelled images: .*; unlabelled") as error:
            fit(reference_training.tiny(), loss, log_every=6, state_file=state)
        with safe_open(state, framework="pt") as file:
            assert json.loads(file.metadata()["training"])["step"] == 3
            assert all(file.get_tensor(name).isfinite().all() for name in file.keys())  # noqa: SIM118  it is no dict
    batches = batches_of(squares(4), squares(5, truth=False))
    names = {sample.id for stream in (training.LABELLED, training.UNLABELLED) for sample in batches.samples(3, stream)}
    assert all(name in str(error.value) for name in names)


def test_two_parts_are_the_whole(tmp_path):
    """Images, views, dropout and learning rate of the second half are those of the whole; SGD without memory."""
    options = {"steps": 6, "momentum": 0.0}
    whole, first = reference_training.tiny(), reference_training.tiny()
    rows = fit(whole, **options)
    halves = [*fit(first, **options, part=(0, 4)), *fit(first, **options, part=(4, 6), state_file=tmp_path / "state")]
    assert halves == rows and training.digest(first) == training.digest(whole)
    again = reference_training.tiny()
    fit(again, **options, part=(0, 4))
    assert fit(again, **options, part=(4, 6), state_file=tmp_path / "state") == rows[2:]  # it was finished
    for part in ((4, 4), (3, 7), (-1, 2)):
        with pytest.raises(ValueError, match=re.escape(f"part is {part}; right are two of 6 steps")):
            fit(again, **options, part=part)


def batches_of(labelled, unlabelled, **options):
    arguments = {"steps": 9, "batch_size": 3, "crop_size": 8, "scale": (0.5, 2.0), "cutmix_partner": "batch", "seed": 0}
    return training.Batches(labelled, unlabelled, colour_label, **{**arguments, "cache_bytes": 10**6, **options})


def test_the_order_of_a_round_is_drawn_once_and_is_the_same_in_any_order_of_steps(monkeypatch):
    """Shuffling COCO's 118,000 images for each image of a batch took longer than the step on a GPU."""
    batches, draw, drawn = batches_of(squares(7), squares(50, truth=False), seed=505), np.random.default_rng, []
    monkeypatch.setattr(np.random, "default_rng", lambda of: drawn.append(of) or draw(of))
    pools = {training.LABELLED: batches.labelled, training.UNLABELLED: batches.unlabelled}
    for steps in (range(21), [9, 0, 20, 3]):
        found = {(step, stream): batches.samples(step, stream) for step in steps for stream in pools}
        if steps == range(21):  # 63 images of each stream
            assert len(drawn) == len(set(drawn)) == 9 + 2
        for (step, stream), samples in found.items():
            for place, sample in enumerate(samples):
                epoch, index = divmod(3 * step + place, len(pools[stream]))
                assert sample is pools[stream][draw((505, epoch, stream)).permutation(len(pools[stream]))[index]]
    order = [sample.id for step in range(7) for sample in batches.samples(step, training.LABELLED)]
    assert all(len(set(order[start : start + 7])) == 7 for start in (0, 7, 14))  # each image once in a round


def test_batches_are_as_the_losses_expect_them():
    batches = batches_of(squares(4), squares(5, truth=False))
    assert {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in batches[0].items()} == {
        **{name: ((3, 8, 8, 3), torch.uint8) for name in ("image", "weak", "strong1", "strong2")},
        **{name: ((3, 8, 8), torch.uint8) for name in ("label", "pseudo_label")},
        "ignore": ((3, 8, 8), torch.bool),
        **{name: ((3, 4), torch.int64) for name in ("boxes1", "boxes2")},
    }
    moved = training.to_device(batches[0], torch.device("cpu"), True)
    assert moved["weak"].shape == (3, 3, 8, 8) and moved["weak"].is_contiguous(memory_format=torch.channels_last)
    assert moved["label"].dtype == moved["boxes1"].dtype == torch.int64 and moved["ignore"].dtype == torch.bool
    # the pseudo label lies on its image, and padding is ignored
    for step in range(9):
        drawn = batches[step]
        inside = ~drawn["ignore"]
        assert ((drawn["pseudo_label"] == 255) == drawn["ignore"]).all()
        red = (drawn["weak"][..., 0] > 200) & inside
        assert (drawn["pseudo_label"][red] == 1).all()
        assert all((batches[step][name] == drawn[name]).all() for name in drawn)  # drawn again: the same
    assert any((batches[0][name].float() != batches[1][name].float()).any() for name in ("weak", "boxes1"))

    views = batches_of(squares(4), squares(5, truth=False), cutmix_partner="view")[0]
    own = {name for name in views if not name.startswith("partner_")}
    assert set(views) - own == {f"partner_{name}" for name in ("weak", "strong1", "strong2", "ignore", "pseudo_label")}
    assert (views["partner_weak"] != views["weak"]).any()
    weak = batches_of(squares(4), squares(5, truth=False), cutmix_partner="view", strong_views=False)[0]
    assert set(weak) == {"image", "label", "weak", "ignore", "pseudo_label"}
    alone = batches_of(squares(2), ())[0]
    assert set(alone) == {"image", "label"}


def test_images_are_read_once_if_there_is_room():
    reads = []
    sample = squares(1)[0]
    counted = Sample("counted", lambda: reads.append(1) or sample.image(), sample.truth)
    for room, expected in ((10**6, 1), (0, 3)):
        reads.clear()
        batches_of([counted], (), cache_bytes=room)[0]
        assert len(reads) == expected


def test_learning_rate_is_set_after_the_step():
    """UniMatch: after step i (from 0) the rate becomes lr (1 - i / steps) ^ 0.9."""
    rate, seen = 0.01, []
    for step in range(6):
        seen.append(rate)
        rate = 0.01 * (1 - step / 6) ** 0.9
    assert [row["lr"] for row in fit(reference_training.tiny(), log_every=1)] == pytest.approx(seen)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_the_head_learns_faster(name):
    model = reference_training.tiny()
    groups = training.build_optimizer(model, name, 0.01, 10, 0.9, 1e-4).param_groups
    assert [group["lr"] for group in groups] == [0.01, 0.1]
    assert [len(group["params"]) for group in groups] == [4, 2]
    assert all(group["weight_decay"] == 1e-4 for group in groups)


def test_a_loss_may_ask_the_average():
    """At each step it predicts with the average of all weights so far, batch statistics included, and is left alone."""
    inner, snapshots, asked = losses.build("supervised"), [], []

    def loss(model, batch):
        snapshots.append({name: tensor.detach().clone().double() for name, tensor in model.state_dict().items()})
        asked.append((batch["weak"], batch["average"](batch["weak"])))
        assert model.training and not asked[-1][1].requires_grad
        return inner(model, batch)

    fit(reference_training.tiny(), loss, ema=0.6, steps=5)
    plain, twin = snapshots[0], reference_training.tiny().eval()
    for step, (images, logits) in enumerate(asked):
        if step:  # after the first step the average is the network itself
            decay = min(1 - 1 / step, 0.6)
            plain = {name: decay * plain[name] + (1 - decay) * snapshots[step][name] for name in plain}
        counts = {name: tensor.long() for name, tensor in snapshots[step].items() if name.endswith("tracked")}
        twin.load_state_dict(plain | counts)
        torch.testing.assert_close(logits, twin(images), atol=1e-5, rtol=1e-5)


def test_crops_that_are_no_whole_patches_are_refused():
    model = reference_training.tiny()
    model.multiple = 14
    for crop_size, right in ((500, "490 or 504"), (8, "14 or 28")):
        with pytest.raises(ValueError, match=f"crop_size is {crop_size}; .* multiples of 14: {right}"):
            fit(model, crop_size=crop_size)


def test_predictions_keep_order_and_size():
    model = reference_training.tiny()
    rng = np.random.default_rng(0)
    sizes = [(5, 7), (6, 4), (5, 7), (5, 7), (6, 4), (9, 9)]
    images = [rng.integers(0, 255, (*size, 3)).astype(np.uint8) for size in sizes]
    guesses = training.predict(model, iter(images), batch_size=2)
    assert sorted(model.calls) == [(False, 1), (False, 1), (False, 2), (False, 2)]
    for image, guess in zip(images, guesses, strict=True):
        (alone,) = training.predict(model, [image])
        assert guess.label.shape == guess.confidence.shape == image.shape[:2]
        assert guess.label.dtype == np.uint8 and guess.confidence.dtype == np.float32
        assert (guess.label == alone.label).all()
        np.testing.assert_allclose(guess.confidence, alone.confidence, atol=1e-6)
        inputs = (torch.from_numpy(image.copy()).permute(2, 0, 1)[None] / 255 - MEAN) / STD
        probabilities = model(inputs).softmax(1)[0].detach().numpy()
        assert (guess.label == probabilities.argmax(0)).all()
        np.testing.assert_allclose(guess.confidence, probabilities.max(0), atol=1e-5)
    assert training.predict(model, []) == []
    half = training.predict(model, images, precision="bf16", channels_last=True)
    assert np.mean([(a.label == b.label).mean() for a, b in zip(half, guesses, strict=True)]) > 0.9


MEAN = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
STD = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)


def test_each_step_has_its_progress_and_other_random_numbers():
    told, drawn = [], set()

    def loss(model, batch):
        told.append(batch["progress"])
        drawn.add(torch.rand(1).item())  # as dropout draws them
        return {"total": model(batch["image"]).mean()}

    fit(reference_training.tiny(), loss, steps=4)
    assert told == [0, 0.25, 0.5, 0.75] and len(drawn) == 4


def test_wrong_input_is_refused():
    model = reference_training.tiny()
    for change, named in (
        ({"precision": "fp8"}, "fp8"),
        ({"optimizer": "lion"}, "lion"),
        ({"cutmix_partner": "none"}, "none"),
        ({"momentum": 1.5}, "momentum=1.5.* momentum and ema from 0 to below 1"),
        ({"scale": (0.5, 0.4)}, r"scale is \(0.5, 0.4\); .*the smaller first"),
        ({"scale": [0.5]}, r"scale is \[0.5\]; right are two factors above 0"),
        ({"pseudo_label": lambda sample: np.zeros((2, 2), np.uint8)}, r"unlabelled\d: the label map is uint8 \(2, 2\)"),
    ):
        with pytest.raises(ValueError, match=named):
            fit(model, **change)
    with pytest.raises(ValueError, match="no labelled image"):
        training.fit(model, losses.build("supervised"), [], **OPTIONS)
