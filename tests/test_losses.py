import itertools
from importlib import import_module
from pathlib import Path

import allowed
import numpy as np
import pytest
import reference_training
import torch
import torch.nn.functional as F

from plg_utils import losses
from plg_utils.losses.semivl import semivl_loss
from plg_utils.losses.unimatch import unimatch_loss
from plg_utils.losses.unimatch_v2 import lose_channels
from plg_utils.records import IGNORE

FILES = sorted(path.stem for path in Path(losses.__file__).parent.glob("[!_]*.py"))
U, K, H, W = 2, 3, 4, 5
LEARNT = ("logits_labelled", "logits_strong1", "logits_strong2", "logits_feature")


def arrays(seed):
    """What `unimatch_loss` takes: logits that are sure here and there, some padding, void and boxes of every kind."""
    rng = np.random.default_rng(seed)
    given = {name: rng.normal(0, 1, (U + (name == "logits_labelled"), K, H, W)) for name in LEARNT}
    given |= {name: rng.normal(0, 3, (U, K, H, W)) for name in ("logits_weak", "logits_partner")}
    given = {name: values.astype(np.float32) for name, values in given.items()}
    given["label"] = rng.choice([0, 1, 2, IGNORE], (U + 1, H, W))
    for name in ("pseudo_label", "partner_pseudo_label"):
        given[name] = rng.choice([0, 1, 2, IGNORE], (U, H, W))
    for name in ("ignore", "partner_ignore"):
        given[name] = rng.random((U, H, W)) < 0.2
    given["boxes1"] = np.array([[1, 0, 4, 3], [0, 0, 0, 0]])
    given["boxes2"] = np.array([[0, 0, W, H], [2, 1, 3, 4]])
    return given


def tensors(given):
    return {name: torch.tensor(values, requires_grad=name.startswith("logits")) for name, values in given.items()}


def assert_gradients(leaves, gradients):
    for name in LEARNT:
        np.testing.assert_allclose(leaves[name].grad, gradients[name], atol=1e-6, err_msg=name)


@pytest.mark.parametrize("refine_target", ["unimatch", "zero_shot", "fusion"])
def test_loss_and_gradients_equal_the_plain_loops(refine_target):
    grid = itertools.product((0.4, 0.95), (None, 0.0, 0.2), (None, False, True), (False, True))
    for seed, values in enumerate(grid):
        options = dict(zip(("threshold", "smoothing", "gate", "fill"), values, strict=True))
        options |= {"refine_target": refine_target, "weights": (0.25, 0.25, 0.5) if seed % 2 else (0.3, 0.1, 0.7)}
        options |= {"weak_weight": (0, 0, 0.4)[seed % 3], "labelled_smoothing": (0, 0.15)[seed % 2]}
        given = arrays(seed)
        leaves = tensors(given)
        terms = unimatch_loss(**leaves, **options)
        terms["total"].backward()
        total, gradients = reference_training.unimatch(given, **options)
        assert terms["total"].item() == pytest.approx(total, abs=1e-6), options
        assert_gradients(leaves, gradients)
        assert leaves["logits_partner"].grad is None
        weak = leaves["logits_weak"].grad
        assert (weak is None) == (not options["weak_weight"])
        if weak is not None:
            np.testing.assert_allclose(weak, gradients["logits_weak"], atol=1e-6)


def test_a_batch_counted_by_hand():
    """One row of four pixels, two classes: the model is sure of pixels 0 and 1; pixel 3 is padding."""
    sure, unsure = 10.0, 0.1
    weak = torch.tensor([[sure, -sure, unsure, sure]]).view(1, 1, 1, 4)
    weak = torch.cat([weak, -weak], 1)  # predicts 0, 1, 0, 0
    even = torch.zeros(1, 2, 1, 4)  # each pixel costs log 2, whatever its target
    given = dict.fromkeys(LEARNT, even) | dict.fromkeys(("logits_weak", "logits_partner"), weak)
    given |= dict.fromkeys(("ignore", "partner_ignore"), torch.tensor([[[False, False, False, True]]]))
    given |= dict.fromkeys(("boxes1", "boxes2"), torch.zeros(1, 4, dtype=torch.long))
    terms = unimatch_loss(**given, label=torch.tensor([[[0, 1, 255, 255]]]))
    log2 = np.log(2)
    assert terms["labelled"].item() == pytest.approx(log2)  # void is not divided by
    assert terms["strong"].item() == pytest.approx(2 / 3 * log2)  # two of three valid pixels: all valid are divided by
    assert terms["feature"].item() == pytest.approx(2 / 3 * log2)
    assert terms["total"].item() == pytest.approx((log2 + 2 / 3 * log2) / 2)
    assert terms["sure"].item() == pytest.approx(2 / 3)


def test_nothing_valid_is_zero_and_not_nan():
    given = arrays(1)
    given["label"][:] = IGNORE
    given["ignore"][:] = given["partner_ignore"][:] = True
    for refine_target in ("unimatch", "zero_shot", "fusion"):
        leaves = tensors(given)
        terms = unimatch_loss(**leaves, refine_target=refine_target)
        terms["total"].backward()
        assert terms["total"].item() == 0
        assert all(leaves[name].grad.abs().sum() == 0 for name in LEARNT)


def test_semivl_and_its_gradients_equal_the_plain_loops():
    for seed, (weight, threshold) in enumerate(itertools.product((0.0, 0.1, 1.5), (0.4, 0.95))):
        given, weights = arrays(seed + 40), (0.25, 0.25, 0.5) if seed % 2 else (0.3, 0.1, 0.7)
        leaves = tensors(given)
        terms = semivl_loss(**leaves, zero_shot_weight=weight, threshold=threshold, weights=weights)
        terms["total"].backward()
        total, gradients = reference_training.semivl(given, weight=weight, threshold=threshold, weights=weights)
        assert terms["total"].item() == pytest.approx(total, abs=1e-6)
        assert_gradients(leaves, gradients)


def test_settings_that_move_with_the_training():
    assert losses.schedule(0.95, {}) == 0.95
    assert losses.schedule((0.6, 0.9), {"progress": 0.0}) == 0.6
    assert losses.schedule([0.6, 0.9], {"progress": 0.5}) == pytest.approx(0.75)  # a list, as it comes from YAML
    for name, option in (("unimatch", "threshold"), ("fixmatch", "threshold"), ("semivl", "zero_shot_weight")):
        torch.manual_seed(0)
        model = reference_training.tiny().eval()
        drawn = batch() | {"progress": 0.25}
        fixed = {} if name == "fixmatch" else {"feature_dropout": 0.0}
        moving = losses.build(name, **{option: (0.3, 0.5)}, **fixed)(model, drawn)
        there = losses.build(name, **{option: 0.35}, **fixed)(model, drawn)
        start = losses.build(name, **{option: 0.3}, **fixed)(model, drawn)
        assert moving["total"].item() == pytest.approx(there["total"].item(), abs=1e-7)
        assert moving["total"].item() != start["total"].item(), name


def test_cutmix_pastes_what_is_inside_the_box():
    maps, partner = torch.zeros(2, 3, 4, dtype=torch.long), torch.ones(2, 3, 4, dtype=torch.long)
    mixed = losses.cutmix(maps, partner, torch.tensor([[1, 0, 3, 2], [0, 0, 0, 0]]))
    assert mixed.tolist() == [[[0, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 0]], [[0] * 4] * 3]
    images = losses.cutmix(maps[:, None].expand(-1, 3, -1, -1), partner[:, None], torch.tensor([[1, 0, 3, 2]] * 2))
    assert images[1, 2].tolist() == mixed[0].tolist()


def test_cross_entropy_is_torchs():
    logits, target = torch.randn(2, 3, 4, 5), torch.randint(0, 3, (2, 4, 5))
    target[0, :2] = IGNORE
    for smoothing in (0.0, 0.1):
        kwargs = {"ignore_index": IGNORE, "label_smoothing": smoothing}
        pixels = losses.cross_entropy(logits, target, smoothing=smoothing)
        torch.testing.assert_close(pixels, F.cross_entropy(logits, target, reduction="none", **kwargs))
        mean = losses.mean_cross_entropy(logits, target, smoothing=smoothing)
        # torch divides the smoothed part by other numbers where pixels are ignored; ours is the mean over valid pixels
        torch.testing.assert_close(mean, pixels[target != IGNORE].mean())


def batch(size=6, views=False):
    generator = torch.Generator().manual_seed(0)
    names = ["image", "weak", "strong1", "strong2"]
    names += ["partner_weak", "partner_strong1", "partner_strong2"] if views else []
    drawn = {name: torch.randn(3, 3, size, size, generator=generator) for name in names}
    drawn["label"] = torch.randint(0, 3, (3, size, size), generator=generator)
    for prefix in ("", "partner_") if views else ("",):
        drawn[f"{prefix}pseudo_label"] = torch.randint(0, 3, (3, size, size), generator=generator)
        drawn[f"{prefix}ignore"] = torch.rand(3, size, size, generator=generator) < 0.2
    drawn["progress"] = 0.5
    drawn["boxes1"] = torch.tensor([[0, 0, 3, 4], [0, 0, 0, 0], [2, 2, 6, 6]])
    drawn["boxes2"] = torch.tensor([[1, 1, 2, 5], [0, 0, 6, 6], [0, 0, 0, 0]])
    return drawn


@pytest.mark.parametrize("name", FILES)
def test_every_loss_gives_finite_named_terms_and_gradients(name):
    smoke = import_module(f"plg_utils.losses.{name}").SMOKE
    loss, model = losses.build(name, **smoke), reference_training.tiny()
    assert loss.settings == {"loss": name, **smoke}
    terms = loss(model, batch() | {"average": teacher()})
    assert all(value.ndim == 0 and value.isfinite() for value in terms.values())
    terms["total"].backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in model.parameters())
    assert model.training


def teacher():
    """Another network, as the average of the weights: images to logits, without gradient."""
    return torch.no_grad()(reference_training.tiny(seed=1).eval())


# Steps written out once more, with the same random numbers


def cut_and_paste(drawn, views):
    """What CutMix pastes, by name, and the two strong views with it."""
    names = ("weak", "strong1", "strong2", "ignore", "pseudo_label")
    mix = {name: drawn[f"partner_{name}"] if views else drawn[name][[2, 2, 0]] for name in names}
    pasted = []
    for which in "12":
        pasted.append(drawn[f"strong{which}"].clone())
        for index, (left, top, right, bottom) in enumerate(drawn[f"boxes{which}"].tolist()):
            place = index, slice(None), slice(top, bottom), slice(left, right)
            pasted[-1][place] = mix[f"strong{which}"][place]
    return mix, pasted


def by_loops(logits, drawn, mix, **options):
    """Total and gradients of `reference_training.unimatch`; logits without the prefix, by the names of the views."""
    maps = {name: drawn[name] for name in ("label", "pseudo_label", "ignore", "boxes1", "boxes2")}
    maps |= {f"partner_{name}": mix[name] for name in ("pseudo_label", "ignore")}
    maps |= {f"logits_{name}": of_view for name, of_view in logits.items()}
    given = {name: tensor.detach().numpy() for name, tensor in maps.items()}
    return reference_training.unimatch(given, **{"threshold": 0.4, "smoothing": None, "gate": None} | options)


@pytest.mark.parametrize("views", [False, True])
@pytest.mark.parametrize("refine_target", ["unimatch", "zero_shot", "fusion"])
def test_the_step_of_unimatch_v2(refine_target, views):
    """The official step (unimatch_v2.py): loss and gradients."""
    drawn, model, twin = batch(views=views) | {"average": teacher()}, *(reference_training.tiny() for _ in "12")
    mix, pasted = cut_and_paste(drawn, views)
    for weak_weight in (0, 0.3):
        torch.manual_seed(5)
        got = losses.build("unimatch_v2", refine_target=refine_target, threshold=0.4, weak_weight=weak_weight)
        got = got(model, drawn)
        got["total"].backward()

        torch.manual_seed(5)
        lost = lose_channels([torch.ones(6, maps.shape[1], 1, 1) for maps in twin.encode(drawn["weak"])])
        features = [maps * factor for maps, factor in zip(twin.encode(torch.cat(pasted)), lost, strict=True)]
        strong1, strong2 = twin.decode(features, (6, 6)).chunk(2)
        # V2 has no view with dropped features. The weak view of the network that learns is taught the same target.
        learnt = twin(drawn["weak"]) if weak_weight else torch.zeros_like(strong1)
        leaves = {"labelled": twin(drawn["image"]), "strong1": strong1, "strong2": strong2, "feature": learnt}
        logits = leaves | {"weak": teacher()(drawn["weak"]), "partner": teacher()(mix["weak"])}
        options = {"refine_target": refine_target, "weights": (0.5, 0.5, weak_weight)}
        total, gradients = by_loops(logits, drawn, mix, **options)
        for name in leaves if weak_weight else [*leaves][:3]:
            gradient = torch.tensor(gradients[f"logits_{name}"], dtype=torch.float32)
            leaves[name].backward(gradient, retain_graph=True)
        assert got["total"].item() == pytest.approx(total, abs=1e-6)
        for (name, mine), other in zip(model.named_parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(mine.grad, other.grad, atol=1e-6, rtol=1e-5, msg=f"{name} {weak_weight}")
        model.zero_grad()
        twin.zero_grad()
    if refine_target != "zero_shot":
        del drawn["average"]
        with pytest.raises(ValueError, match="training_options: {ema: 0.996}"):
            losses.build("unimatch_v2", refine_target=refine_target)(model, drawn)


@pytest.mark.parametrize("views", [False, True])
def test_the_step_of_fixmatch(views):
    """fixmatch.py: UniMatch with one strong view and no other."""
    drawn, model, twin = batch(views=views), *(reference_training.tiny() for _ in "12")
    mix, pasted = cut_and_paste(drawn, views)
    got = losses.build("fixmatch", threshold=0.4)(model, drawn)
    with torch.no_grad():
        logits = {"partner": twin.eval()(mix["weak"])}
    labelled, weak = twin.train()(torch.cat([drawn["image"], drawn["weak"]])).chunk(2)
    logits |= {"labelled": labelled, "weak": weak, "strong1": twin(pasted[0])}
    logits |= dict.fromkeys(("strong2", "feature"), logits["strong1"])
    total, _ = by_loops(logits, drawn, mix, refine_target="unimatch", weights=(1, 0, 0))
    assert got["total"].item() == pytest.approx(total, abs=1e-6)
    assert got["total"].item() == pytest.approx((got["labelled"] + got["strong"]).item() / 2)
    assert set(got) == {"total", "labelled", "strong", "sure"} and 0 < got["sure"] < 1
    assert model.calls == [(False, 3), (True, 6), (True, 3)]


def test_strong_views_lose_complementary_channels():
    torch.manual_seed(0)
    narrow, wide, again = lose_channels([torch.ones(10, 40, 2, 3), torch.ones(10, 60, 1, 1), torch.ones(10, 40, 1, 1)])
    for factors in (narrow, wide):
        first, second = factors[:5], factors[5:]
        assert torch.equal(first + second, torch.full_like(first, 2))
        whole = (first == 1).flatten(1).all(dim=1)
        assert whole.sum() == 2  # of five images, half rounded down
        assert set(first[~whole].unique().tolist()) == {0.0, 2.0}
        assert 0.3 < (first[~whole] == 2).float().mean() < 0.7
        assert torch.equal(first, first[:, :, :1, :1].expand_as(first))  # at each place the same channels
    assert torch.equal(narrow[:, :, :1, :1], again)  # and in each map with as many channels


def test_each_process_loses_the_channels_of_its_images(monkeypatch):
    """Two processes with three images each, together what one process does with all six."""
    torch.manual_seed(1)
    (whole,) = lose_channels([torch.ones(12, 8, 1, 1)])
    first, second = whole.chunk(2)
    monkeypatch.setattr("plg_utils.distributed.count", lambda: 2)
    for rows in ([0, 2, 4], [1, 3, 5]):
        monkeypatch.setattr("plg_utils.distributed.rows", lambda size, rows=rows: rows if size == 6 else None)
        torch.manual_seed(1)
        (own,) = lose_channels([torch.ones(6, 8, 1, 1)])
        assert torch.equal(own, torch.cat([first[rows], second[rows]]))


def test_the_warm_up_is_one_pass_over_labelled_and_weak_views():
    drawn, model, twin = batch(), reference_training.tiny(), reference_training.tiny()
    terms = losses.build("weak", smoothing=0.2)(model, drawn)
    assert model.calls == [(True, 6)]
    logits = twin(torch.cat([drawn["image"], drawn["weak"]])).chunk(2)
    target = torch.where(drawn["ignore"], IGNORE, drawn["pseudo_label"])
    labelled = losses.mean_cross_entropy(logits[0], drawn["label"])
    weak = losses.mean_cross_entropy(logits[1], target, smoothing=0.2)
    expected = {"total": (labelled + weak) / 2, "labelled": labelled, "weak": weak}
    torch.testing.assert_close(terms, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("views", [False, True])
@pytest.mark.parametrize("refine_target", ["unimatch", "zero_shot", "fusion"])
def test_the_three_passes_of_unimatch(refine_target, views):
    drawn, model, twin = batch(views=views), *(reference_training.tiny() for _ in "12")
    torch.manual_seed(5)
    got = losses.build("unimatch", refine_target=refine_target, threshold=0.4)(model, drawn)

    mix, pasted = cut_and_paste(drawn, views)
    torch.manual_seed(5)
    with torch.no_grad():
        logits = {"partner": twin.eval()(mix["weak"])}
    twin.train()
    features = twin.encode(torch.cat([drawn["image"], drawn["weak"]]))
    features = [torch.cat([maps, F.dropout2d(maps, 0.5)]) for maps in features]
    clean, dropped = twin.decode(features, (6, 6)).chunk(2)
    strong1, strong2 = twin(torch.cat(pasted)).chunk(2)
    logits |= {"labelled": clean[:3], "weak": clean[3:], "feature": dropped[3:], "strong1": strong1, "strong2": strong2}
    total, _ = by_loops(logits, drawn, mix, refine_target=refine_target)
    assert got["total"].item() == pytest.approx(total, abs=1e-5)

    passes = [(False, 3), (True, 6), (True, 6)]  # evaluation mode; labelled and weak; both strong
    assert model.calls == (passes if refine_target != "zero_shot" else passes[1:])
    for mine, other in zip(model.buffers(), twin.buffers(), strict=True):
        assert torch.allclose(mine, other)  # the evaluation pass left the batch statistics alone
    model.calls.clear()
    terms = losses.build("unimatch", refine_target=refine_target, weak_weight=0.5)(model, batch())
    assert "sure" in terms  # the weak view is asked for, at no further pass
    assert model.calls == (passes if refine_target != "zero_shot" else passes[1:])


@pytest.mark.parametrize(
    "name", ["weak_weight", "labelled_smoothing", "smoothing", "gate", "weights", "threshold", "fill"]
)
def test_each_option_of_build_reaches_the_loss(name):
    values = {"gate": True, "weights": (1.0, 0.0, 0.0), "fill": True}
    options = {"refine_target": "fusion", "threshold": 0.4}  # of three classes: sure here and there
    drawn, totals = batch(), []
    drawn["pseudo_label"][:, :2] = IGNORE
    for more in ({}, {name: values.get(name, 0.37)}):
        torch.manual_seed(0)
        totals.append(losses.build("unimatch", **options | more)(reference_training.tiny(), drawn)["total"].item())
    assert totals[0] != pytest.approx(totals[1], abs=1e-6)


@pytest.mark.parametrize("refine_target", ["zero_shot", "fusion"])
def test_labels_that_are_left_behind(refine_target):
    """Up to labels_until the loss is that of the labels, from there on UniMatch's own, to the last bit."""
    options = {"threshold": 0.4, "weak_weight": 0.5, "labelled_smoothing": 0.1}
    late = losses.build("unimatch", refine_target=refine_target, labels_until=0.6, **options)
    early = losses.build("unimatch", refine_target=refine_target, **options)
    own = losses.build("unimatch", **options | {"weak_weight": 0.0})
    for progress, expected in ((0.0, early), (0.59, early), (0.6, own), (0.9, own)):
        drawn, totals = batch() | {"progress": progress}, []
        for loss in (late, expected):
            torch.manual_seed(0)
            totals.append(loss(reference_training.tiny(), drawn)["total"].item())
        assert totals[0] == totals[1], progress


def test_fast_passes():
    model = reference_training.tiny()
    for refine_target in ("unimatch", "zero_shot", "fusion"):
        model.calls.clear()
        loss = losses.build("unimatch", refine_target=refine_target, passes="fast", threshold=0.4)
        loss(model, batch())["total"].backward()
        assert model.calls == [(True, 6), (True, 6)]
    with pytest.raises(ValueError, match="exact"):
        loss(model, batch(views=True))
    # without feature dropout and batch statistics both ways are the same
    model = reference_training.tiny().eval()
    for refine_target in ("unimatch", "zero_shot", "fusion"):
        options = {"refine_target": refine_target, "threshold": 0.4, "feature_dropout": 0.0}
        fast, exact = (losses.build("unimatch", passes=way, **options)(model, batch()) for way in ("fast", "exact"))
        torch.testing.assert_close(fast["total"], exact["total"])


def test_gradients_survive_mixed_precision():
    model = reference_training.tiny()
    with torch.autocast("cpu", torch.bfloat16):  # the first pass, without gradients, must not leave its weights behind
        losses.build("unimatch", threshold=0.4)(model, batch())["total"].backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in model.parameters())


def test_supervised_is_the_mean_over_labelled_pixels():
    model, drawn = reference_training.tiny().eval(), batch()
    drawn["label"][0] = IGNORE
    labelled = F.cross_entropy(model(drawn["image"]), drawn["label"], ignore_index=IGNORE)
    torch.testing.assert_close(losses.build("supervised")(model, drawn)["total"], labelled)


@pytest.mark.parametrize("count", [2, 3, 4, 5, 8])
def test_cutmix_pastes_another_image_of_the_batch(count):
    images = torch.arange(count)[:, None, None].expand(-1, 2, 3)
    order = losses.partner({"weak": images}, "weak")[:, 0, 0].tolist()
    assert all(other != index for index, other in enumerate(order))
    expected = list(reversed(range(count)))
    if count % 2:
        expected[count // 2] = count // 2 + 1  # the middle image would meet itself
    assert order == expected


@pytest.mark.parametrize(("name", "options"), [("fixmatch", {}), ("unimatch", {}), ("semivl", {"passes": "fast"})])
def test_a_batch_of_one_image_has_nothing_to_paste(name, options):
    one, two = (
        {key: value[:1] if isinstance(value, torch.Tensor) else value for key, value in batch(views=views).items()}
        for views in (False, True)
    )
    with pytest.raises(ValueError, match=r"training_options: \{cutmix_partner: view\}"):
        losses.build(name, **options)(reference_training.tiny(), one)
    if not options:
        losses.build(name)(reference_training.tiny(), two)


@pytest.mark.parametrize(
    ("passes", "options", "says"),
    [
        ("exact", {"threshold": 95}, "threshold of the loss is 95; give numbers from 0 to 1"),  # no pixel was sure
        ("exact", {"threshold": (0.5, 1.5)}, "give numbers from 0 to 1"),
        ("exact", {"smoothing": 10}, "smoothing of the loss is 10"),
        ("exact", {"feature_dropout": 50}, "feature_dropout of the loss is 50"),
        ("exact", {"weights": [0.5, 0.5]}, "give 3 numbers from 0 on"),
        ("exact", {"weights": [-1, 0, 0]}, "give 3 numbers from 0 on"),
        ("v2", {"weights": [0.25, 0.25, 0.5]}, "give 2 numbers from 0 on"),  # the third was passed over
        ("v2", {"threshold": 95}, "threshold of the loss is 95"),
        ("v2", {"feature_dropout": 0.5}, "no option of loss_options called 'feature_dropout'"),
        ("v2", {"labels_until": 0.5}, "no option of loss_options called 'labels_until'"),
    ],
)
def test_loss_options_are_those_of_the_passes(passes, options, says):
    """They were refused in the first step, after hours, or passed over."""
    known = {"passes": "exact", "loss_options": {}}
    with pytest.raises(ValueError, match=says):
        allowed.check_options({"passes": passes, "loss_options": options}, known)
    allowed.check_options({"passes": passes, "loss_options": {"fill": True, "threshold": (0.9, 0.95)}}, known)


def test_a_method_that_has_no_such_passes_is_refused_before_the_refinement():
    known = {"passes": "exact", "methods": ["supervised"]}
    allowed.check_options({"passes": "fast", "methods": ["supervised", "semivl_sure"]}, known)
    allowed.check_options({"passes": "v2", "methods": ["unimatch", "paper_a"]}, known)
    with pytest.raises(ValueError, match="methods names semivl_sure, .* exact or fast, and passes is v2"):
        allowed.check_options({"passes": "v2", "methods": ["supervised", "semivl_sure"]}, known)


def test_wrong_options_are_refused():
    for option, says in (
        ({"refine_target": "e2"}, "unimatch, zero_shot, fusion"),
        ({"passes": "quick"}, "no passes 'quick', only exact, fast"),
        ({"labels_until": 0}, "labels_until is 0; give a share of the training"),
    ):
        with pytest.raises(ValueError, match=says):
            losses.build("unimatch", **option)
    drawn = batch()
    del drawn["pseudo_label"]
    with pytest.raises(ValueError, match="needs pseudo labels"):
        losses.build("unimatch", refine_target="fusion")(reference_training.tiny(), drawn)
    losses.build("unimatch")(reference_training.tiny(), drawn)  # UniMatch itself needs none
